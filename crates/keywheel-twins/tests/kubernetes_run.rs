//! The cluster behind the twin of the Kubernetes API rolls, watches and ends pods as a real one does.

#![expect(clippy::unwrap_used, reason = "a test may panic in its helpers too")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use keywheel_twins::kubernetes::run::{Fate, Given, Pace, Run, Runtime, Settings};
use keywheel_twins::kubernetes::{Key, Kind, Objects};
use serde_json::{Value, json};

const SPACE: &str = "default";

struct Cluster {
    objects: Objects,
    run: Run,
}

fn settings(runtime: Runtime) -> Settings {
    Settings { pace: Pace::times(20.0), runtime, ..Settings::default() }
}

/// Comes up unless the value of `TOKEN` begins with `bad`.
fn by_value() -> Runtime {
    Runtime::judged(|given: &Given| match given.env.get("TOKEN") {
        Some(token) if token.starts_with("bad") => Fate::Crashes(Duration::from_secs(1), 3),
        _ => Fate::ComesUp(Duration::from_secs(1)),
    })
}

impl Cluster {
    fn start(settings: Settings) -> Self {
        let objects = Objects::new();
        let run = Run::start(&objects, settings).unwrap();
        Self { objects, run }
    }

    fn get(&self, kind: Kind, name: &str) -> Arc<Value> {
        self.objects.get(&Key::new(kind, SPACE, name)).unwrap()
    }

    fn create(&self, kind: Kind, object: Value) {
        self.objects.create(kind, object, "test").unwrap();
    }

    fn change(&self, kind: Kind, name: &str, edit: impl FnOnce(&mut Value)) {
        self.objects.change(&Key::new(kind, SPACE, name), "test", edit).unwrap();
    }

    fn set_secret(&self, name: &str, value: &str) {
        let data = json!({ "token": base64(value) });
        if self.objects.get(&Key::new(Kind::Secret, SPACE, name)).is_some() {
            return self.change(Kind::Secret, name, |secret| secret["data"] = data);
        }
        self.create(Kind::Secret, json!({ "metadata": metadata(name), "data": data }));
    }

    fn stamp(&self, kind: Kind, name: &str, stamp: &str) {
        self.change(kind, name, |object| {
            object["spec"]["template"]["metadata"]["annotations"]["stamp"] = stamp.into();
        });
    }

    /// Waits until something holds, at the most ten seconds.
    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !holds(self) {
            assert!(Instant::now() < end, "{what}\n{:#?}", self.statuses());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn statuses(&self) -> Vec<Value> {
        [Kind::Deployment, Kind::ReplicaSet, Kind::StatefulSet, Kind::DaemonSet, Kind::Pod]
            .into_iter()
            .flat_map(|kind| self.objects.list(kind, None).0)
            .map(|object| json!([object["metadata"]["name"], object["status"]]))
            .collect()
    }

    fn pods(&self) -> Vec<Arc<Value>> {
        self.objects.list(Kind::Pod, Some(SPACE)).0
    }

    /// Returns the values of `TOKEN` that containers hold.
    fn tokens(&self) -> Vec<String> {
        let mut tokens: Vec<_> = self
            .run
            .held()
            .into_iter()
            .filter_map(|held| held.given.env.get("TOKEN").cloned())
            .collect();
        tokens.sort();
        tokens
    }

    /// Returns whether kubectl would say that a Deployment is rolled out.
    fn is_rolled_out(&self, name: &str) -> bool {
        let deployment = self.get(Kind::Deployment, name);
        let wanted = deployment["spec"]["replicas"].as_u64().unwrap();
        let counted = |name: &str| deployment["status"][name].as_u64().unwrap_or_default();
        deployment["metadata"]["generation"] == deployment["status"]["observedGeneration"]
            && counted("updatedReplicas") == wanted
            && counted("replicas") == wanted
            && counted("availableReplicas") == wanted
    }

    fn reason(&self, name: &str) -> String {
        let deployment = self.get(Kind::Deployment, name);
        let conditions = deployment["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|it| it["type"] == "Progressing");
        found.map(|it| it["reason"].as_str().unwrap().to_owned()).unwrap_or_default()
    }
}

fn base64(value: &str) -> String {
    use ::base64::Engine;
    ::base64::engine::general_purpose::STANDARD.encode(value)
}

fn metadata(name: &str) -> Value {
    json!({ "name": name, "namespace": SPACE })
}

fn template() -> Value {
    json!({
        "metadata": { "labels": { "app": "api" } },
        "spec": { "terminationGracePeriodSeconds": 5, "containers": [{
            "name": "app",
            "image": "api:1",
            "env": [{ "name": "TOKEN", "valueFrom": { "secretKeyRef": { "name": "api", "key": "token" } } }],
            "readinessProbe": { "httpGet": { "path": "/", "port": 80 }, "periodSeconds": 1 },
        }] },
    })
}

fn workload(name: &str, replicas: usize) -> Value {
    json!({
        "metadata": metadata(name),
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": "api" } },
            "template": template(),
        },
    })
}

fn rolled_out(runtime: Runtime) -> Cluster {
    let cluster = Cluster::start(settings(runtime));
    cluster.set_secret("api", "one");
    cluster.create(Kind::Deployment, workload("api", 3));
    cluster.until("it is rolled out", |cluster| cluster.is_rolled_out("api"));
    cluster
}

#[test]
fn a_deployment_rolls_one_pod_at_a_time_and_never_below_its_replicas() {
    let cluster = rolled_out(by_value());
    assert_eq!(cluster.reason("api"), "NewReplicaSetAvailable");
    assert_eq!(cluster.tokens(), ["one", "one", "one"]);
    cluster.set_secret("api", "two");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(cluster.tokens(), ["one", "one", "one"], "an environment does not change");
    cluster.stamp(Kind::Deployment, "api", "2");
    cluster.until("it is rolled out again", |cluster| {
        let status = &cluster.get(Kind::Deployment, "api")["status"];
        let available = status["availableReplicas"].as_u64().unwrap_or_default();
        assert!(available >= 3, "{status}");
        assert!(status["replicas"].as_u64().unwrap_or_default() <= 4, "{status}");
        cluster.is_rolled_out("api")
    });
    cluster.until("the old pods are gone", |cluster| cluster.pods().len() == 3);
    assert_eq!(cluster.tokens(), ["two", "two", "two"]);
    assert_eq!(cluster.objects.list(Kind::ReplicaSet, None).0.len(), 2);
    assert_eq!(
        cluster.get(Kind::Deployment, "api")["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
        "2"
    );
}

#[test]
fn a_bad_value_crash_loops_and_the_way_back_leaves_the_old_pods_alone() {
    let cluster = rolled_out(by_value());
    let before: Vec<_> = cluster.pods().iter().map(|pod| pod["metadata"]["uid"].clone()).collect();
    cluster.set_secret("api", "bad");
    std::thread::sleep(Duration::from_millis(20));
    cluster.stamp(Kind::Deployment, "api", "2");
    cluster.until("a pod crash-loops", |cluster| {
        cluster.pods().iter().any(|pod| {
            let container = &pod["status"]["containerStatuses"][0];
            container["state"]["waiting"]["reason"] == "CrashLoopBackOff"
                && container["restartCount"] == 1
                && container["lastState"]["terminated"]["exitCode"] == 3
                && pod["status"]["phase"] == "Running"
        })
    });
    assert_eq!(cluster.pods().len(), 4);
    cluster.set_secret("api", "one");
    cluster.change(Kind::Deployment, "api", |api| {
        api["spec"]["template"]["metadata"].as_object_mut().unwrap().remove("annotations");
    });
    cluster
        .until("it is back", |cluster| cluster.is_rolled_out("api") && cluster.pods().len() == 3);
    let after: Vec<_> = cluster.pods().iter().map(|pod| pod["metadata"]["uid"].clone()).collect();
    assert_eq!(before, after);
    assert_eq!(
        cluster.get(Kind::Deployment, "api")["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
        "3"
    );
}
