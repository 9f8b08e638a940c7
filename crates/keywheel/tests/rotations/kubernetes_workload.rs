//! A secret that the pods of a cluster read, as the program rotates it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keywheel_twins::kubernetes::run::{Fate, Given, Pace, Run, Runtime, Settings};
use keywheel_twins::kubernetes::{Cluster, Key, Kind};
use serde_json::json;

use super::{OLD, Project};

const CONFIG: &str = "
project: shop
policies:
  fast: { cryptoperiod: 90d, soak: 1s, rollback: 1s, watch: 1s }
cluster: { context: admin, kubeconfig: kube }
stores:
  app: { kubernetes_secret: { namespace: shop, name: api-keys } }
workloads:
  backend: { kubernetes: { namespace: shop, deployment: backend, ready_within: 20s } }
secrets:
  pepper:
    policy: fast
    issuer: { random: { length: 32 } }
    stores: { app: pepper }
    read_by: [backend]
";

struct Shop {
    cluster: Cluster,
    run: Run,
    project: Project,
    refuses: Arc<AtomicBool>,
}

impl Shop {
    /// Starts a cluster with a Deployment, which takes another value than the first one unless it refuses it.
    fn open() -> Self {
        let cluster = Cluster::start().unwrap();
        cluster.objects().make_namespace("shop");
        let metadata = |name: &str| json!({"name": name, "namespace": "shop"});
        let secret = json!({"metadata": metadata("api-keys"), "stringData": {"pepper": OLD}});
        cluster.objects().create(Kind::Secret, secret, "kubectl-create").unwrap();
        let refuses = Arc::new(AtomicBool::new(false));
        let is_strict = Arc::clone(&refuses);
        let judge = move |given: &Given| {
            let is_new = given.env.get("PEPPER").is_none_or(|value| value != OLD);
            match is_new && is_strict.load(Ordering::SeqCst) {
                true => Fate::Crashes(Duration::from_secs(1), 3),
                false => Fate::ComesUp(Duration::from_secs(1)),
            }
        };
        let runtime = Runtime::judged(judge);
        let settings = Settings { pace: Pace::times(20.0), runtime, ..Settings::default() };
        let run = Run::start(cluster.objects(), settings).unwrap();
        let env = json!([{"name": "PEPPER", "valueFrom": {"secretKeyRef": {"name": "api-keys", "key": "pepper"}}}]);
        let probe = json!({"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1});
        let container =
            json!({"name": "app", "image": "app:1", "env": env, "readinessProbe": probe});
        let backend = json!({"metadata": metadata("backend"), "spec": {
            "replicas": 3,
            "selector": {"matchLabels": {"app": "backend"}},
            "template": {"metadata": {"labels": {"app": "backend"}}, "spec": {"containers": [container]}}
        }});
        cluster.objects().create(Kind::Deployment, backend, "kubectl-create").unwrap();
        let project = Project::new();
        project.write("keywheel.yaml", CONFIG);
        cluster.write_kubeconfig(&project.path("kube")).unwrap();
        let shop = Self { cluster, run, project, refuses };
        let end = Instant::now() + Duration::from_secs(10);
        while shop.available() < 3 {
            assert!(Instant::now() < end, "it is not rolled out");
            std::thread::sleep(Duration::from_millis(20));
        }
        // What started within a second of the first write is not known to have started before it.
        std::thread::sleep(Duration::from_millis(2_100));
        shop
    }

    fn available(&self) -> u64 {
        let backend = self.cluster.objects().get(&Key::new(Kind::Deployment, "shop", "backend"));
        backend.unwrap()["status"]["availableReplicas"].as_u64().unwrap_or_default()
    }

    fn uids(&self) -> BTreeSet<String> {
        let pods = self.cluster.objects().list(Kind::Pod, Some("shop")).0;
        pods.iter().map(|pod| pod["metadata"]["uid"].to_string()).collect()
    }

    fn held(&self) -> Vec<String> {
        self.run
            .held()
            .into_iter()
            .filter_map(|held| held.given.env.get("PEPPER").cloned())
            .collect()
    }
}

#[test]
fn pods_take_up_a_rotated_key_and_every_one_proves_it() {
    let shop = Shop::open();
    let before = shop.uids();
    shop.project.run(&["adopt", "pepper", "--yes"]).ends(0);
    shop.project
        .run(&["rotate", "pepper", "--yes", "--soak"])
        .ends(0)
        .says("completed; v2 is current");
    assert_eq!(shop.uids().intersection(&before).count(), 0);
    let held = shop.held();
    assert!(held.len() == 3 && held.iter().all(|value| value != OLD && *value == held[0]));
    assert_eq!(shop.cluster.faults().disclosed(), []);
}

#[test]
fn a_value_that_pods_refuse_is_undone_and_no_pod_that_serves_is_touched() {
    let shop = Shop::open();
    let before = shop.uids();
    shop.project.run(&["adopt", "pepper", "--yes"]).ends(0);
    shop.refuses.store(true, Ordering::SeqCst);
    let rotated = shop.project.run(&["rotate", "pepper", "--yes", "--soak"]);
    rotated.ends(2);
    rotated.says("container `app` ended with exit code 3");
    assert_eq!(shop.uids(), before);
    assert_eq!(shop.held(), [OLD; 3]);
}
