//! The program on the stand-in of a Kubernetes cluster.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]
#![expect(clippy::print_stdout, reason = "a test says what it measured")]

use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keywheel_twins::kubernetes::run::{Fate, Given, Pace, Run, Runtime, Settings};
use keywheel_twins::kubernetes::{ADMIN, Cluster, Deletion, Key, Kind};
use serde_json::{Value, json};

#[path = "kubernetes/drill.rs"]
mod drill;
#[path = "kubernetes/emergency.rs"]
mod emergency;
#[path = "kubernetes/exports.rs"]
mod exports;
#[path = "kubernetes/load.rs"]
mod load;
#[path = "kubernetes/pod.rs"]
mod pod;
#[path = "example/readme.rs"]
mod readme;
#[path = "kubernetes/scenarios.rs"]
mod scenarios;
#[path = "kubernetes/walkthrough.rs"]
mod walkthrough;

const NAMESPACE: &str = "shop";
const OLD: &str = "kwcanary-0123456789abcdef";

const CONFIG: &str = r#"
project: shop
cluster: { context: "USER", kubeconfig: kubeconfig }
policies:
  fast: { soak: 1s, rollback: 1s, watch: 1s }
stores:
  app: { kubernetes_secret: { namespace: shop, name: app, approach: APPROACH } }
workloads:
  backend:
    kubernetes: { namespace: shop, deployment: backend, settle_for: 1s }
secrets:
  key:
    policy: fast
    issuer: { random: { length: LENGTH } }
    stores: { app: key }
    read_by: [backend]
"#;

struct Shop {
    cluster: Cluster,
    run: Option<Run>,
    folder: tempfile::TempDir,
    approach: &'static str,
}

impl Shop {
    /// Starts three simulated pods, which end at once with a key that is longer than they know.
    fn open(approach: &'static str) -> Self {
        Self::open_with(approach, OLD, |key| key.len() <= 40)
    }

    /// Starts three simulated pods with a key, which end at once with one that they do not know.
    fn open_with(approach: &'static str, key: &str, knows: fn(&str) -> bool) -> Self {
        let (cluster, run) = started(key, knows);
        Self { run: Some(run), ..Self::begin(cluster, approach) }
    }

    /// Begins in a cluster in which nothing runs.
    fn begin(cluster: Cluster, approach: &'static str) -> Self {
        let folder = tempfile::Builder::new().prefix("keywheel-shop-").tempdir().unwrap();
        for name in ["project", "state", "keys", "state-2", "keys-2"] {
            std::fs::DirBuilder::new().mode(0o700).create(folder.path().join(name)).unwrap();
        }
        let shop = Self { cluster, run: None, folder, approach };
        shop.reach();
        shop.configure(32);
        shop
    }

    /// Writes how the cluster is reached.
    fn reach(&self) {
        self.cluster.write_kubeconfig(&self.project().join("kubeconfig")).unwrap();
    }

    fn project(&self) -> PathBuf {
        self.folder.path().join("project")
    }

    /// Configures how long a new key is.
    fn configure(&self, length: usize) {
        self.configure_as(ADMIN, length);
    }

    /// Configures who asks the cluster, too.
    fn configure_as(&self, user: &str, length: usize) {
        let config = CONFIG.replace("APPROACH", self.approach).replace("USER", user);
        let config = config.replace("LENGTH", &length.to_string());
        std::fs::write(self.project().join("keywheel.yaml"), config).unwrap();
    }

    fn command(&self, journal: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keywheel"));
        command.args(arguments).stdin(Stdio::null());
        command.arg("--config").arg(self.project().join("keywheel.yaml"));
        let place = |folder: &str, file: &str| {
            self.folder.path().join(format!("{folder}{journal}")).join(file)
        };
        command.arg("--journal").arg(place("state", "journal.sqlite"));
        command.arg("--kek").arg(place("keys", "kek"));
        command
    }

    #[track_caller]
    fn run(&self, arguments: &[&str], ends: i32) -> String {
        self.run_as("", arguments, ends)
    }

    #[track_caller]
    fn run_as(&self, journal: &str, arguments: &[&str], ends: i32) -> String {
        let Output { status, stdout, stderr } = self.command(journal, arguments).output().unwrap();
        let said = String::from_utf8([stdout, stderr].concat()).unwrap();
        assert!(!said.contains("kwcanary"), "{said}");
        assert_eq!(status.code(), Some(ends), "{said}");
        said
    }

    fn pods(&self) -> BTreeSet<String> {
        let (pods, _) = self.cluster.objects().list(Kind::Pod, Some(NAMESPACE));
        pods.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }

    fn delete(&self, pod: &str) {
        let key = Key::new(Kind::Pod, NAMESPACE, pod);
        self.cluster.objects().delete(&key, &Deletion::default()).unwrap();
    }

    #[track_caller]
    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..600 {
            if holds(self) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("not in 30 s: {what}");
    }

    /// Returns the key that each pod which runs was given.
    fn held(&self) -> Vec<String> {
        let held = self.run.iter().flat_map(Run::held);
        held.filter_map(|held| held.given.env.get("KEY").cloned()).collect()
    }

    fn secrets(&self) -> Vec<Value> {
        let (secrets, _) = self.cluster.objects().list(Kind::Secret, Some(NAMESPACE));
        secrets.iter().map(|secret| (**secret).clone()).collect()
    }

    fn stored(&self, name: &str) -> String {
        let secret = self.cluster.objects().get(&Key::new(Kind::Secret, NAMESPACE, name)).unwrap();
        let held = STANDARD.decode(secret["data"]["key"].as_str().unwrap()).unwrap();
        String::from_utf8(held).unwrap()
    }
}

/// Starts a cluster, and waits until the pods of its Deployment are ready.
fn started(key: &str, knows: fn(&str) -> bool) -> (Cluster, Run) {
    let cluster = Cluster::start().unwrap();
    let runtime = Runtime::judged(move |given: &Given| match given.env.get("KEY") {
        Some(key) if !knows(key) => Fate::Crashes(Duration::from_millis(500), 7),
        _ => Fate::ComesUp(Duration::from_secs(1)),
    });
    let settings = Settings { pace: Pace::times(10.0), runtime, ..Settings::default() };
    let run = cluster.run(settings).unwrap();
    let objects = cluster.objects();
    objects.make_namespace(NAMESPACE);
    objects.create(Kind::Secret, secret(key), "test").unwrap();
    objects.create(Kind::Deployment, deployment(), "test").unwrap();
    let key = Key::new(Kind::Deployment, NAMESPACE, "backend");
    for _ in 0..600 {
        if objects.get(&key).is_some_and(|backend| backend["status"]["availableReplicas"] == 3) {
            // Starts are told by the second: pods that are this old have certainly read nothing of what follows.
            std::thread::sleep(Duration::from_millis(2_500));
            return (cluster, run);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the pods do not come up")
}

fn secret(key: &str) -> Value {
    let encoded = |text: &str| STANDARD.encode(text);
    json!({
        "metadata": { "name": "app", "namespace": NAMESPACE },
        "data": { "key": encoded(key), "other": encoded("kwcanary-other") },
    })
}

fn deployment() -> Value {
    json!({
        "metadata": { "name": "backend", "namespace": NAMESPACE },
        "spec": {
            "replicas": 3,
            "selector": { "matchLabels": { "app": "backend" } },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
            "template": {
                "metadata": { "labels": { "app": "backend" } },
                "spec": { "containers": [{
                    "name": "backend",
                    "image": "shop/backend",
                    "env": [{ "name": "KEY", "valueFrom": { "secretKeyRef": { "name": "app", "key": "key" } } }],
                    "readinessProbe": { "httpGet": { "path": "/health", "port": 8080 }, "periodSeconds": 1 },
                }] },
            },
        },
    })
}

#[test]
fn a_secret_that_is_kept_in_place_is_rotated_and_undone() {
    let shop = Shop::open("in_place");
    let said = shop.run(&["check"], 0);
    assert!(said.contains("ready"), "{said}");
    shop.run(&["rotate", "key", "--yes", "--soak"], 0);
    let new = shop.stored("app");
    assert_ne!(new, OLD);
    assert_eq!(shop.held(), [new.as_str(); 3]);
    shop.run(&["doctor"], 0);
    // Pods that are younger may have been started with what comes next.
    std::thread::sleep(Duration::from_millis(3_500));
    let before = shop.pods();
    shop.configure(64);
    let said = shop.run(&["rotate", "key", "--yes"], 2);
    assert!(said.contains("exit code 7"), "{said}");
    assert_eq!((shop.stored("app"), shop.held()), (new.clone(), vec![new; 3]));
    assert!(before.is_subset(&shop.pods()), "no pod that served was touched");
    shop.run(&["audit", "verify"], 0);
}

#[test]
fn a_secret_that_is_kept_in_versions_is_rotated_and_the_former_one_stays_while_something_names_it()
{
    let shop = Shop::open("versioned");
    shop.run(&["check"], 0);
    shop.run(&["rotate", "key", "--yes", "--soak"], 0);
    assert_eq!(shop.stored("app"), OLD, "the Secret that was there is as it was");
    let (held, secrets) = (shop.held(), shop.secrets());
    assert!(held.len() == 3 && held.iter().all(|key| key != OLD && *key == held[0]));
    let made = secrets.iter().filter(|secret| secret["immutable"] == true);
    assert_eq!((secrets.len(), made.count()), (2, 1));
    shop.run(&["doctor"], 0);
    shop.configure(64);
    shop.run(&["rotate", "key", "--yes"], 2);
    assert_eq!(shop.held(), held);
    shop.run(&["doctor"], 0);
}

#[test]
fn h61_two_installations_never_both_win_one_secret() {
    let shop = Shop::open("in_place");
    let mut first = shop.command("", &["rotate", "key", "--yes"]);
    let mut second = shop.command("-2", &["rotate", "key", "--yes"]);
    let quiet = |command: &mut Command| {
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let (first, second) = (quiet(&mut first), quiet(&mut second));
    let ended = [first, second].map(|child| child.wait_with_output().unwrap());
    let mut codes = ended.each_ref().map(|output| output.status.code().unwrap());
    codes.sort_unstable();
    let said = ended.each_ref().map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
    assert_eq!(codes, [0, 4], "{said:?}");
    assert!(said.iter().any(|said| said.contains("another installation")), "{said:?}");
    assert_eq!(shop.held(), vec![shop.stored("app"); 3]);
}

#[test]
fn another_cluster_behind_the_same_context_is_not_touched() {
    let mut shop = Shop::open("in_place");
    shop.run(&["adopt", "key", "--yes"], 0);
    let (cluster, run) = started(OLD, |_| true);
    (shop.cluster, shop.run) = (cluster, Some(run));
    shop.reach();
    let before = shop.cluster.faults().writes();
    let said = shop.run(&["rotate", "key", "--yes"], 4);
    assert!(said.contains("it is pinned to"), "{said}");
    assert_eq!((shop.cluster.faults().writes(), shop.stored("app").as_str()), (before, OLD));
}
