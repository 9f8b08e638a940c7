//! Pods that are real processes, under the load of people who use them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keywheel_example::load::{Counts, Load, Target};
use keywheel_example::replicas::Replicas;
use keywheel_twins::kubernetes::run::{Balancer, Run, Runtime, Settings};
use keywheel_twins::kubernetes::{Cluster, Key, Kind, Objects};
use serde_json::{Value, json};

use super::pod::PORT;

const NAMESPACE: &str = "shop";
const FIRST: &str = "kwcanary-0123456789abcdefghijklmnop";
/// Tokens live so long; the configuration says so too.
const TOKEN_LIFE: u32 = 8;
const EACH_SECOND: u32 = 200;

const CONFIG: &str = r#"
project: shop
cluster: { context: admin, kubeconfig: kubeconfig }
policies:
  fast: { soak: 1s, rollback: 1s, watch: 1s }
stores:
  app: { kubernetes_secret: { namespace: shop, name: app } }
workloads:
  backend:
    kubernetes: { namespace: shop, deployment: backend, token: { port: 8080, path: /me }, settle_for: 1s }
secrets:
  jwt:
    policy: fast
    issuer: { jwt_secret: { bytes: 32 } }
    strategy: { keyring: { longest_token: 8s, skew: 1s } }
    stores: { app: { jwt: current, jwt-also: also_accepted } }
    read_by: [backend]
  pepper:
    policy: fast
    issuer: { random: { length: PEPPER } }
    stores: { app: pepper }
    read_by: [backend]
"#;

struct Shop {
    cluster: Cluster,
    _run: Run,
    edge: Balancer,
    folder: tempfile::TempDir,
}

impl Shop {
    /// Starts three backends behind a Service, and waits until each is ready.
    async fn open() -> Self {
        let folder = tempfile::Builder::new().prefix("keywheel-shop-").tempdir().unwrap();
        for name in ["project", "state", "keys", "pods"] {
            std::fs::DirBuilder::new().mode(0o700).create(folder.path().join(name)).unwrap();
        }
        let cluster = Cluster::start().unwrap();
        let runtime = Runtime::Processes { folder: folder.path().join("pods") };
        let run = cluster.run(Settings { runtime, ..Settings::default() }).unwrap();
        let objects = cluster.objects();
        objects.make_namespace(NAMESPACE);
        objects.create(Kind::Secret, secret(), "test").unwrap();
        objects.create(Kind::Service, service(), "test").unwrap();
        objects.create(Kind::Deployment, deployment(), "test").unwrap();
        let edge = run.serve(NAMESPACE, "backend").unwrap();
        let shop = Self { cluster, _run: run, edge, folder };
        shop.cluster.write_kubeconfig(&shop.project().join("kubeconfig")).unwrap();
        shop.configure(32);
        for _ in 0..600 {
            if ready(shop.cluster.objects()).len() == 3 && shop.answers().await {
                return shop;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the backends do not come up: {:?}", shop.pods())
    }

    /// Returns whether the Service leads to a pod.
    async fn answers(&self) -> bool {
        let url = format!("http://{}/health", self.edge.address());
        let client = keywheel_example::client(0).unwrap();
        client.get(url).send().await.is_ok_and(|answer| answer.status().is_success())
    }

    /// Waits until a container ends with this exit code.
    async fn crashed(objects: Objects, code: i32) -> Instant {
        loop {
            let (pods, _) = objects.list(Kind::Pod, Some(NAMESPACE));
            let ended = |pod: &std::sync::Arc<Value>| {
                let state = &pod["status"]["containerStatuses"][0];
                [&state["state"], &state["lastState"]]
                    .iter()
                    .any(|state| state["terminated"]["exitCode"] == code)
            };
            if pods.iter().any(ended) {
                return Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn project(&self) -> PathBuf {
        self.folder.path().join("project")
    }

    /// Configures how long a new pepper is.
    fn configure(&self, pepper: usize) {
        let config = CONFIG.replace("PEPPER", &pepper.to_string());
        std::fs::write(self.project().join("keywheel.yaml"), config).unwrap();
    }

    fn load(&self) -> Load {
        let objects = self.cluster.objects().clone();
        let replicas = Replicas::told_by(move || ready(&objects));
        let target = Target { edge: self.edge.address().to_string(), replicas, asks: false };
        Load::start(target, EACH_SECOND).unwrap()
    }

    fn pods(&self) -> BTreeSet<String> {
        let (pods, _) = self.cluster.objects().list(Kind::Pod, Some(NAMESPACE));
        pods.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }

    fn held(&self, key: &str) -> String {
        let secret = self.cluster.objects().get(&Key::new(Kind::Secret, NAMESPACE, "app")).unwrap();
        let held = STANDARD.decode(secret["data"][key].as_str().unwrap()).unwrap();
        String::from_utf8(held).unwrap()
    }

    async fn run(&self, arguments: &[&str], ends: i32) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keywheel"));
        command.args(arguments).stdin(Stdio::null());
        command.arg("--config").arg(self.project().join("keywheel.yaml"));
        command.arg("--journal").arg(self.folder.path().join("state/journal.sqlite"));
        command.arg("--kek").arg(self.folder.path().join("keys/kek"));
        let ran = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let Output { status, stdout, stderr } = ran;
        let said = String::from_utf8([stdout, stderr].concat()).unwrap();
        assert!(!said.contains("kwcanary") && !said.contains(&self.held("jwt")), "{said}");
        assert_eq!(status.code(), Some(ends), "{said}");
        said
    }
}

/// The addresses of the pods that are ready.
fn ready(objects: &Objects) -> Vec<SocketAddr> {
    let is_ready = |pod: &&std::sync::Arc<Value>| {
        let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        pod["metadata"]["deletionTimestamp"].is_null()
            && conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
    };
    let (pods, _) = objects.list(Kind::Pod, Some(NAMESPACE));
    let address = |pod: &std::sync::Arc<Value>| {
        Some(SocketAddr::new(pod["status"]["podIP"].as_str()?.parse().ok()?, PORT))
    };
    pods.iter().filter(is_ready).filter_map(address).collect()
}

fn secret() -> Value {
    let encoded = |text: &str| STANDARD.encode(text);
    json!({
        "metadata": { "name": "app", "namespace": NAMESPACE, "labels": { "team": "shop" } },
        "data": {
            "jwt": encoded(FIRST),
            "jwt-also": "",
            "pepper": encoded("kwcanary-pepper-0123456789"),
            "other": encoded("kwcanary-other"),
        },
    })
}

fn service() -> Value {
    json!({
        "metadata": { "name": "backend", "namespace": NAMESPACE },
        "spec": { "selector": { "app": "backend" }, "ports": [{ "port": PORT }] },
    })
}

fn deployment() -> Value {
    let from = |name: &str, key: &str| json!({ "name": name, "valueFrom": { "secretKeyRef": { "name": "app", "key": key } } });
    let program = std::env::current_exe().unwrap();
    json!({
        "metadata": { "name": "backend", "namespace": NAMESPACE },
        "spec": {
            "replicas": 3,
            "selector": { "matchLabels": { "app": "backend" } },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
            "template": {
                "metadata": { "labels": { "app": "backend" } },
                "spec": { "terminationGracePeriodSeconds": 15, "containers": [{
                    "name": "backend",
                    "image": "shop/backend",
                    "command": [program, "--exact", "pod::pod", "--nocapture"],
                    "env": [
                        { "name": "KEYWHEEL_TEST_POD", "value": "7" },
                        { "name": "JWT_LIFE_SECONDS", "value": TOKEN_LIFE.to_string() },
                        from("JWT_SECRET", "jwt"),
                        from("JWT_SECRET_ALSO_ACCEPTED", "jwt-also"),
                        from("SESSION_PEPPER", "pepper"),
                    ],
                    "ports": [{ "containerPort": PORT }],
                    "readinessProbe": { "httpGet": { "path": "/health", "port": PORT }, "periodSeconds": 1 },
                    "lifecycle": { "preStop": { "exec": { "command": ["sleep", "1"] } } },
                }] },
            },
        },
    })
}

fn told(what: &str, counts: &Counts) {
    println!("{what}: {counts}; {:?}", counts.failures);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h51_no_request_fails_and_no_token_is_refused_while_the_signing_secret_of_three_pods_rotates()
 {
    let shop = Shop::open().await;
    let before = shop.pods();
    let load = shop.load();
    let said = shop.run(&["check"], 0).await;
    assert!(said.contains("ready"), "{said}");
    let said = shop.run(&["rotate", "jwt", "--yes", "--soak"], 0).await;
    assert!(said.contains("completed; v2 is current"), "{said}");
    shop.run(&["doctor"], 0).await;
    let counts = load.stop().await;
    told("keyring", &counts);
    assert_eq!((counts.failed, counts.tokens_refused), (0, 0), "{:?}", counts.failures);
    assert!(counts.requests > 2_000 && counts.tokens_shown > 500, "{counts}");
    assert_ne!(shop.held("jwt"), FIRST);
    assert_eq!((shop.held("jwt-also"), shop.held("other")), ("".into(), "kwcanary-other".into()));
    assert!(before.is_disjoint(&shop.pods()));
}

/// What people do by hand: the value is replaced in place, and the Deployment is restarted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_after_a_patch_in_place_refuses_tokens() {
    let shop = Shop::open().await;
    let load = shop.load();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let objects = shop.cluster.objects();
    let other = STANDARD.encode("kwcanary-abcdefghijklmnop0123456789");
    objects
        .change(&Key::new(Kind::Secret, NAMESPACE, "app"), "kubectl", |secret| {
            secret["data"]["jwt"] = other.clone().into();
        })
        .unwrap();
    let before = shop.pods();
    objects
        .change(&Key::new(Kind::Deployment, NAMESPACE, "backend"), "kubectl", |backend| {
            backend["spec"]["template"]["metadata"]["annotations"]["restartedAt"] = "now".into();
        })
        .unwrap();
    for _ in 0..600 {
        if before.is_disjoint(&shop.pods()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let counts = load.stop().await;
    told("patch and restart", &counts);
    assert!(counts.tokens_refused > 0, "the load would notice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_the_pods_refuse_is_undone_and_no_pod_that_serves_is_touched() {
    let shop = Shop::open().await;
    let (before, pepper) = (shop.pods(), shop.held("pepper"));
    let load = shop.load();
    // Starts are told by the second: pods that are this old have certainly read nothing of the rotation.
    tokio::time::sleep(Duration::from_secs(6)).await;
    shop.configure(80);
    let crashed = tokio::spawn(Shop::crashed(shop.cluster.objects().clone(), 7));
    let said = shop.run(&["rotate", "pepper", "--yes"], 2).await;
    println!("undone {:?} after the first crash", crashed.await.unwrap().elapsed());
    assert!(said.contains("exit code 7"), "{said}");
    let counts = load.stop().await;
    told("undone", &counts);
    assert_eq!(counts.failed, 0, "{:?}", counts.failures);
    assert_eq!(shop.held("pepper"), pepper);
    for _ in 0..100 {
        if shop.pods() == before {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(shop.pods(), before, "the pods that served serve on");
    shop.run(&["doctor"], 0).await;
}
