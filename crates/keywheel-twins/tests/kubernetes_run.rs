//! The cluster behind the twin of the Kubernetes API rolls, watches and ends pods as a real one does.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and say that it is skipped, in its helpers too"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use keywheel_twins::kubernetes::run::{Fate, Given, Pace, Run, Runtime, Settings};
use keywheel_twins::kubernetes::{Deletion, Key, Kind, Objects};
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
    let told = cluster.objects.list(Kind::Event, Some(SPACE)).0;
    let back_off = told.iter().find(|event| event["reason"] == "BackOff").unwrap();
    assert_eq!(
        (&back_off["type"], &back_off["involvedObject"]["kind"]),
        (&json!("Warning"), &json!("Pod"))
    );
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

#[test]
fn a_paused_deployment_does_not_move_and_its_condition_says_so() {
    let cluster = rolled_out(by_value());
    cluster.change(Kind::Deployment, "api", |api| api["spec"]["paused"] = true.into());
    cluster.stamp(Kind::Deployment, "api", "2");
    cluster.until("it says so", |cluster| cluster.reason("api") == "DeploymentPaused");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(cluster.objects.list(Kind::ReplicaSet, None).0.len(), 1);
    cluster.change(Kind::Deployment, "api", |api| api["spec"]["paused"] = false.into());
    cluster.until("it goes on", |cluster| cluster.is_rolled_out("api"));
    assert_eq!(cluster.reason("api"), "NewReplicaSetAvailable");
}

#[test]
fn a_node_without_room_leaves_new_pods_pending_until_the_deadline_is_exceeded() {
    let cluster = rolled_out(by_value());
    cluster
        .change(Kind::Deployment, "api", |api| api["spec"]["progressDeadlineSeconds"] = 10.into());
    cluster.run.switch(|switches| switches.capacity = Some(3));
    cluster.stamp(Kind::Deployment, "api", "2");
    cluster.until("the deadline is exceeded", |cluster| {
        cluster.reason("api") == "ProgressDeadlineExceeded"
    });
    let pods = cluster.pods();
    let pending: Vec<_> = pods.iter().filter(|pod| pod["status"]["phase"] == "Pending").collect();
    assert_eq!((pods.len(), pending.len()), (4, 1));
    assert_eq!(pending[0]["status"]["conditions"][0]["reason"], "Unschedulable");
    cluster.run.switch(|switches| switches.capacity = None);
    cluster.until("it goes on", |cluster| cluster.is_rolled_out("api"));
    assert_eq!(cluster.reason("api"), "NewReplicaSetAvailable");
}

#[test]
fn stopped_controllers_observe_nothing() {
    let cluster = rolled_out(by_value());
    cluster.run.switch(|switches| switches.controllers_are_stopped = true);
    cluster.stamp(Kind::Deployment, "api", "2");
    std::thread::sleep(Duration::from_millis(200));
    let api = cluster.get(Kind::Deployment, "api");
    assert!(api["metadata"]["generation"].as_i64() > api["status"]["observedGeneration"].as_i64());
}

#[test]
fn recreate_ends_every_pod_before_it_makes_one() {
    let cluster = rolled_out(by_value());
    cluster.change(Kind::Deployment, "api", |api| {
        api["spec"]["strategy"] = json!({ "type": "Recreate" });
    });
    let old: Vec<_> = cluster.pods().iter().map(|pod| pod["metadata"]["uid"].clone()).collect();
    cluster.stamp(Kind::Deployment, "api", "2");
    cluster.until("it is rolled out", |cluster| {
        let pods = cluster.pods();
        let left = pods.iter().filter(|pod| old.contains(&pod["metadata"]["uid"])).count();
        assert!(left == 0 || left == pods.len(), "old and new run beside each other");
        left == 0 && cluster.is_rolled_out("api")
    });
}

#[test]
fn a_deployment_is_scaled_and_forgets_all_but_its_latest_revisions() {
    let cluster = rolled_out(by_value());
    cluster.change(Kind::Deployment, "api", |api| api["spec"]["revisionHistoryLimit"] = 1.into());
    for stamp in ["2", "3", "4"] {
        cluster.stamp(Kind::Deployment, "api", stamp);
        cluster.until("it is rolled out", |cluster| cluster.is_rolled_out("api"));
    }
    cluster.until("the others are forgotten", |cluster| {
        cluster.objects.list(Kind::ReplicaSet, None).0.len() == 2
    });
    cluster.change(Kind::Deployment, "api", |api| api["spec"]["replicas"] = 0.into());
    cluster
        .until("nothing runs", |cluster| cluster.pods().is_empty() && cluster.is_rolled_out("api"));
    cluster.change(Kind::Deployment, "api", |api| api["spec"]["replicas"] = 2.into());
    cluster.until("two run", |cluster| cluster.pods().len() == 2 && cluster.is_rolled_out("api"));
    assert_eq!(cluster.objects.list(Kind::ReplicaSet, None).0.len(), 2);
}

#[test]
fn a_deployment_that_is_deleted_takes_its_pods_along() {
    let cluster = rolled_out(by_value());
    let key = Key::new(Kind::Deployment, SPACE, "api");
    cluster.objects.delete(&key, &Deletion::default()).unwrap();
    cluster.until("all are gone", |cluster| cluster.pods().is_empty());
    assert!(cluster.tokens().is_empty());
}

fn is_ready(pod: &Value) -> bool {
    pod["status"]["containerStatuses"][0]["ready"] == true
}

fn stateful(cluster: &Cluster) -> Vec<String> {
    cluster.set_secret("api", "one");
    let mut set = workload("db", 3);
    set["spec"]["serviceName"] = "db".into();
    cluster.create(Kind::StatefulSet, set);
    cluster.until("it is rolled out", |cluster| is_settled(cluster, "db"));
    cluster.pods().iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

/// Returns whether kubectl would say that a StatefulSet is rolled out.
fn is_settled(cluster: &Cluster, name: &str) -> bool {
    let set = cluster.get(Kind::StatefulSet, name);
    let status = &set["status"];
    set["metadata"]["generation"] == status["observedGeneration"]
        && status["readyReplicas"] == set["spec"]["replicas"]
        && status["updateRevision"] == status["currentRevision"]
}

#[test]
fn a_stateful_set_replaces_its_pods_from_the_last_one_after_the_other() {
    let cluster = Cluster::start(settings(by_value()));
    assert_eq!(stateful(&cluster), ["db-0", "db-1", "db-2"]);
    cluster.set_secret("api", "two");
    std::thread::sleep(Duration::from_millis(20));
    cluster.stamp(Kind::StatefulSet, "db", "2");
    let order = std::cell::RefCell::new(Vec::new());
    cluster.until("it is rolled out", |cluster| {
        let set = cluster.get(Kind::StatefulSet, "db");
        let pods = cluster.pods();
        assert!(pods.iter().filter(|pod| is_ready(pod)).count() >= 2 || pods.len() < 3);
        for pod in pods.iter().filter(|pod| {
            pod["metadata"]["labels"]["controller-revision-hash"] == set["status"]["updateRevision"]
                && pod["metadata"]["annotations"]["stamp"] == "2"
        }) {
            let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
            if !order.borrow().contains(&name) {
                order.borrow_mut().push(name);
            }
        }
        order.borrow().len() == 3 && is_settled(cluster, "db")
    });
    assert_eq!(*order.borrow(), ["db-2", "db-1", "db-0"]);
    assert_eq!(cluster.tokens(), ["two", "two", "two"]);
}

#[test]
fn a_stateful_set_heeds_its_partition_and_waits_for_a_pod_that_never_comes_up() {
    let cluster = Cluster::start(settings(by_value()));
    stateful(&cluster);
    cluster.set_secret("api", "bad");
    std::thread::sleep(Duration::from_millis(20));
    cluster.change(Kind::StatefulSet, "db", |set| {
        set["spec"]["updateStrategy"]["rollingUpdate"] = json!({ "partition": 1 });
    });
    cluster.stamp(Kind::StatefulSet, "db", "2");
    let restarts = |cluster: &Cluster| {
        cluster.get(Kind::Pod, "db-2")["status"]["containerStatuses"][0]["restartCount"].clone()
    };
    cluster.until("the last pod crashes", |cluster| restarts(cluster) == 1);
    cluster.set_secret("api", "one");
    cluster.change(Kind::StatefulSet, "db", |set| {
        set["spec"]["template"]["metadata"].as_object_mut().unwrap().remove("annotations");
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(cluster.get(Kind::Pod, "db-2")["metadata"]["annotations"]["stamp"] == "2");
    let key = Key::new(Kind::Pod, SPACE, "db-2");
    cluster.objects.delete(&key, &Deletion::default()).unwrap();
    cluster.until("it is back", |cluster| is_settled(cluster, "db"));
    cluster.stamp(Kind::StatefulSet, "db", "3");
    cluster.until("all but the first are replaced", |cluster| {
        let set = cluster.get(Kind::StatefulSet, "db");
        set["status"]["updatedReplicas"] == 2 && set["status"]["readyReplicas"] == 3
    });
    std::thread::sleep(Duration::from_millis(100));
    assert!(cluster.get(Kind::Pod, "db-0")["metadata"]["annotations"]["stamp"].is_null());
}

#[test]
fn a_daemon_set_replaces_its_pod() {
    let cluster = Cluster::start(settings(by_value()));
    cluster.set_secret("api", "one");
    let mut set = workload("agent", 1);
    set["spec"].as_object_mut().unwrap().remove("replicas");
    cluster.create(Kind::DaemonSet, set);
    let is_done = |cluster: &Cluster| {
        let set = cluster.get(Kind::DaemonSet, "agent");
        set["metadata"]["generation"] == set["status"]["observedGeneration"]
            && set["status"]["updatedNumberScheduled"] == 1
            && set["status"]["numberAvailable"] == 1
    };
    cluster.until("it is rolled out", is_done);
    cluster.set_secret("api", "two");
    std::thread::sleep(Duration::from_millis(20));
    cluster.stamp(Kind::DaemonSet, "agent", "2");
    cluster.until("it is rolled out again", |cluster| {
        assert!(cluster.pods().len() <= 1);
        is_done(cluster)
    });
    assert_eq!(cluster.tokens(), ["two"]);
    assert_eq!(cluster.objects.list(Kind::ControllerRevision, None).0.len(), 2);
}

#[test]
fn a_job_runs_one_pod_to_its_end_and_the_pod_stays() {
    let ends = Runtime::judged(|_| Fate::Crashes(Duration::from_secs(1), 0));
    let cluster = Cluster::start(settings(ends));
    cluster.set_secret("api", "one");
    let mut job = json!({ "metadata": metadata("once"), "spec": { "template": template() } });
    job["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
    cluster.create(Kind::Job, job);
    cluster.until("it is complete", |cluster| {
        cluster.get(Kind::Job, "once")["status"]["succeeded"] == 1
    });
    let pods = cluster.pods();
    assert_eq!((pods.len(), &pods[0]["status"]["phase"]), (1, &json!("Succeeded")));
}

fn pod(name: &str, spec: Value) -> Value {
    json!({ "metadata": metadata(name), "spec": spec })
}

fn waiting(cluster: &Cluster, pod: &str) -> String {
    let pod = cluster.get(Kind::Pod, pod);
    let reason = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
    reason.as_str().unwrap_or_default().to_owned()
}

#[test]
fn what_is_missing_keeps_a_container_waiting_and_says_why() {
    let cluster = Cluster::start(settings(by_value()));
    let reading = |key: Value| json!({ "containers": [{ "name": "app", "image": "x", "env": [{ "name": "TOKEN", "valueFrom": { "secretKeyRef": key } }] }] });
    let create = |name: &str, spec| cluster.create(Kind::Pod, pod(name, spec));
    cluster.set_secret("there", "one");
    create("no-secret", reading(json!({ "name": "api", "key": "token" })));
    create("no-key", reading(json!({ "name": "there", "key": "other" })));
    create("optional", reading(json!({ "name": "api", "key": "token", "optional": true })));
    create(
        "no-image",
        json!({ "containers": [{ "name": "app", "image": "registry.test/missing:1" }] }),
    );
    create(
        "no-volume",
        json!({
            "volumes": [{ "name": "v", "secret": { "secretName": "api" } }],
            "containers": [{ "name": "app", "image": "x", "volumeMounts": [{ "name": "v", "mountPath": "/v" }] }],
        }),
    );
    cluster.until("each says so", |cluster| {
        waiting(cluster, "no-secret") == "CreateContainerConfigError"
            && waiting(cluster, "no-key") == "CreateContainerConfigError"
            && waiting(cluster, "no-image") == "ImagePullBackOff"
            && is_ready(&cluster.get(Kind::Pod, "optional"))
    });
    let said = |pod: &str| {
        cluster.get(Kind::Pod, pod)["status"]["containerStatuses"][0]["state"]["waiting"]["message"]
            .clone()
    };
    assert_eq!(said("no-secret"), "secret \"api\" not found");
    assert_eq!(said("no-key"), "couldn't find key other in Secret default/there");
    assert_eq!(waiting(&cluster, "no-volume"), "ContainerCreating");
    cluster.set_secret("api", "one");
    cluster.until("they come up", |cluster| {
        is_ready(&cluster.get(Kind::Pod, "no-secret"))
            && is_ready(&cluster.get(Kind::Pod, "no-volume"))
    });
}

#[test]
fn a_pod_that_starts_before_the_node_knows_of_a_write_holds_the_former_value() {
    let lagging = Settings { cache_lag: Duration::from_secs(60), ..settings(by_value()) };
    let cluster = Cluster::start(lagging);
    cluster.set_secret("api", "one");
    cluster.create(Kind::Deployment, workload("api", 1));
    cluster.until("it is rolled out", |cluster| cluster.is_rolled_out("api"));
    cluster.set_secret("api", "two");
    cluster.stamp(Kind::Deployment, "api", "2");
    cluster.until("it is rolled out", |cluster| {
        cluster.is_rolled_out("api") && cluster.pods().len() == 1
    });
    assert_eq!(cluster.tokens(), ["one"]);
    std::thread::sleep(Duration::from_secs(3));
    cluster.stamp(Kind::Deployment, "api", "3");
    cluster.until("it is rolled out", |cluster| {
        cluster.is_rolled_out("api") && cluster.pods().len() == 1
    });
    assert_eq!(cluster.tokens(), ["two"]);
}

#[test]
fn a_volume_follows_after_a_while_and_soon_after_an_annotation_and_a_sub_path_never() {
    let cluster = Cluster::start(settings(by_value()));
    cluster.set_secret("api", "one");
    cluster.create(Kind::Pod, pod("reader", json!({
        "volumes": [
            { "name": "v", "secret": { "secretName": "api", "items": [{ "key": "token", "path": "a/token" }] } },
            { "name": "p", "projected": { "sources": [{ "secret": { "name": "api" } }] } },
        ],
        "containers": [{ "name": "app", "image": "x", "volumeMounts": [
            { "name": "v", "mountPath": "/v" },
            { "name": "p", "mountPath": "/p" },
            { "name": "v", "mountPath": "/fixed", "subPath": "a/token" },
        ] }],
    })));
    let holds = |cluster: &Cluster, path: &str, value: &str| {
        let held = cluster.run.held();
        held.first()
            .and_then(|held| held.given.files.get(path))
            .is_some_and(|file| file == value.as_bytes())
    };
    cluster.until("it holds the first", |cluster| holds(cluster, "/v/a/token", "one"));
    cluster.set_secret("api", "two");
    std::thread::sleep(Duration::from_millis(200));
    assert!(holds(&cluster, "/v/a/token", "one"), "a volume follows only after a while");
    let asked = Instant::now();
    cluster.change(Kind::Pod, "reader", |pod| {
        pod["metadata"]["annotations"] = json!({ "sync": "1" });
    });
    cluster.until("it holds the second", |cluster| holds(cluster, "/v/a/token", "two"));
    assert!(asked.elapsed() < Duration::from_millis(500));
    assert!(holds(&cluster, "/p/token", "two") && holds(&cluster, "/fixed", "one"));
    cluster.set_secret("api", "three");
    cluster.until("it holds the third", |cluster| holds(cluster, "/v/a/token", "three"));
    assert!(holds(&cluster, "/fixed", "one"));
}

#[test]
fn a_pod_that_does_not_heed_the_signal_is_there_until_its_grace_is_over() {
    let cluster = rolled_out(by_value());
    cluster.run.switch(|switches| switches.ignores_term = true);
    let name = cluster.pods()[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let began = Instant::now();
    cluster.objects.delete(&Key::new(Kind::Pod, SPACE, &name), &Deletion::default()).unwrap();
    let ending = cluster.get(Kind::Pod, &name);
    assert!(!ending["metadata"]["deletionTimestamp"].is_null() && is_ready(&ending));
    assert_eq!(cluster.run.held().iter().filter(|held| held.is_ending).count(), 1);
    cluster.until("it is gone", |cluster| {
        cluster.objects.get(&Key::new(Kind::Pod, SPACE, &name)).is_none()
    });
    assert!(began.elapsed() >= Duration::from_millis(250), "five seconds, twenty times as fast");
}

#[test]
fn a_budget_says_how_many_pods_may_be_disrupted() {
    let cluster = rolled_out(by_value());
    cluster.create(
        Kind::PodDisruptionBudget,
        json!({
            "metadata": metadata("api"),
            "spec": { "maxUnavailable": 1, "selector": { "matchLabels": { "app": "api" } } },
        }),
    );
    let allowed = |cluster: &Cluster| {
        cluster.get(Kind::PodDisruptionBudget, "api")["status"]["disruptionsAllowed"].clone()
    };
    cluster.until("one", |cluster| allowed(cluster) == 1);
    let name = cluster.pods()[0]["metadata"]["name"].as_str().unwrap().to_owned();
    cluster.objects.delete(&Key::new(Kind::Pod, SPACE, &name), &Deletion::default()).unwrap();
    cluster.until("none", |cluster| allowed(cluster) == 0);
    cluster.until("one again", |cluster| allowed(cluster) == 1);
}

/// A port that pods listen on, each at an address of its own.
const PORT: u16 = 18080;

/// How requests fared.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(usize, usize)>>,
}

impl Load {
    /// Asks from now on, with eight connections at a time.
    fn on(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ask = |stop: Arc<AtomicBool>| {
            move || {
                let (mut asked, mut lost) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    asked += 1;
                    lost += usize::from(!is_answered(address).unwrap_or(false));
                    std::thread::sleep(Duration::from_millis(20));
                }
                (asked, lost)
            }
        };
        let threads = (0..8).map(|_| std::thread::spawn(ask(Arc::clone(&stop)))).collect();
        Self { stop, threads }
    }

    /// Returns how many requests were made, and how many were lost.
    fn end(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.threads.into_iter().map(|thread| thread.join().unwrap());
        ended.fold((0, 0), |(asked, lost), (a, l)| (asked + a, lost + l))
    }
}

fn is_answered(address: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.contains(" 200 ") && (answer.ends_with("one") || answer.ends_with("two")))
}

/// Returns whether a program is there; says so where it is not.
fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    if !there {
        println!("skipped: {program} (it is not in the path)");
    }
    there
}

fn processes(folder: &std::path::Path) -> Settings {
    let runtime = Runtime::Processes { folder: folder.to_owned() };
    Settings { pace: Pace::times(10.0), endpoint_lag: Duration::from_secs(2), ..settings(runtime) }
}

/// Rolls three web servers under load; returns how many requests were made, and how many were lost.
fn rolled_under_load(strategy: Value, hook: Value) -> (usize, usize) {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(Settings { pace: Pace::times(10.0), ..processes(folder.path()) });
    let secret = |page: &str| json!({ "index.html": base64(page) });
    cluster.create(Kind::Secret, json!({ "metadata": metadata("page"), "data": secret("one") }));
    let mut api = workload("api", 3);
    api["spec"]["strategy"] = strategy;
    api["spec"]["template"]["spec"] = json!({
        "volumes": [{ "name": "page", "secret": { "secretName": "page" } }],
        "containers": [{
            "name": "app",
            "image": "busybox:1",
            "command": ["busybox", "httpd", "-f", "-h", "$(VOLUME_ROOT)/www", "-p", format!("$(POD_IP):{PORT}")],
            "volumeMounts": [{ "name": "page", "mountPath": "/www" }],
            "readinessProbe": { "httpGet": { "path": "/index.html", "port": PORT }, "periodSeconds": 1 },
            "lifecycle": hook,
        }],
    });
    cluster.create(Kind::Deployment, api);
    cluster.create(
        Kind::Service,
        json!({
            "metadata": metadata("api"),
            "spec": { "selector": { "app": "api" }, "ports": [{ "port": 80, "targetPort": PORT }] },
        }),
    );
    cluster.until("it is rolled out", |cluster| cluster.is_rolled_out("api"));
    let service = cluster.run.serve(SPACE, "api").unwrap();
    let load = Load::on(service.address());
    std::thread::sleep(Duration::from_millis(200));
    cluster.change(Kind::Secret, "page", |page| page["data"] = secret("two"));
    cluster.stamp(Kind::Deployment, "api", "2");
    cluster.until("it is rolled out again", |cluster| {
        cluster.is_rolled_out("api") && cluster.pods().len() == 3
    });
    std::thread::sleep(Duration::from_millis(500));
    let counted = load.end();
    let addresses: Vec<SocketAddr> = cluster
        .pods()
        .iter()
        .map(|pod| format!("{}:{PORT}", pod["status"]["podIP"].as_str().unwrap()).parse().unwrap())
        .collect();
    assert!(addresses.iter().all(|address| TcpStream::connect(address).is_ok()));
    drop(cluster);
    assert!(
        addresses.iter().all(|address| TcpStream::connect(address).is_err()),
        "processes are left"
    );
    counted
}

#[test]
fn a_roll_with_readiness_and_a_hook_before_the_end_loses_no_request() {
    if !has("busybox") || !has("setpriv") {
        return;
    }
    let one_by_one = json!({ "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } });
    let waits = json!({ "preStop": { "sleep": { "seconds": 12 } } });
    let (asked, lost) = rolled_under_load(one_by_one.clone(), waits.clone());
    assert!(asked > 100, "{asked}");
    assert_eq!(lost, 0, "of {asked}");
    let (_, lost) = rolled_under_load(one_by_one, json!({}));
    assert!(lost > 0, "without the hook a pod ends before the Service knows of it");
    let (_, lost) = rolled_under_load(json!({ "type": "Recreate" }), waits);
    assert!(lost > 0, "where all are replaced at once nobody answers");
}

#[tokio::test]
async fn a_process_that_ends_is_started_again_with_what_the_secret_says_then() {
    if !has("busybox") || !has("setpriv") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let api = keywheel_twins::kubernetes::Cluster::start().unwrap();
    let run = api.run(processes(folder.path())).unwrap();
    let cluster = Cluster { objects: api.objects().clone(), run };
    cluster.set_secret("api", "bad");
    let script = "echo run $1; test $TOKEN = good || exit 7; exec busybox sleep 100";
    cluster.create(Kind::Pod, pod("reader", json!({ "containers": [{
        "name": "app",
        "image": "x",
        "command": ["busybox", "sh", "-c", script, "sh", "$(NAME)"],
        "env": [
            { "name": "NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
            { "name": "TOKEN", "valueFrom": { "secretKeyRef": { "name": "api", "key": "token" } } },
        ],
        "readinessProbe": { "exec": { "command": ["busybox", "sh", "-c", "test $TOKEN = good"] }, "periodSeconds": 1 },
    }] })));
    cluster.until("it crash-loops", |cluster| waiting(cluster, "reader") == "CrashLoopBackOff");
    let last = &cluster.get(Kind::Pod, "reader")["status"]["containerStatuses"][0]["lastState"];
    assert_eq!(last["terminated"]["exitCode"], 7);
    cluster.set_secret("api", "good");
    cluster.until("it is ready", |cluster| is_ready(&cluster.get(Kind::Pod, "reader")));
    rustls::crypto::ring::default_provider().install_default().ok();
    let url = format!("{}/api/v1/namespaces/default/pods/reader/log?previous=true", api.url());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let sent = client.get(url).bearer_auth(api.token("admin").unwrap()).send().await.unwrap();
    assert_eq!(sent.text().await.unwrap(), "run reader\n");
}

#[test]
fn kubectl_waits_for_a_rollout_and_undoes_one() {
    if !has("kubectl") {
        return;
    }
    let api = keywheel_twins::kubernetes::Cluster::start().unwrap();
    let run = api.run(settings(by_value())).unwrap();
    let cluster = Cluster { objects: api.objects().clone(), run };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    api.write_kubeconfig(&path).unwrap();
    let kubectl = |arguments: &str| {
        let mut command = Command::new("kubectl");
        command.args(["--context", "admin-kubectl", "--kubeconfig"]).arg(&path);
        command.args(arguments.split(' ')).env("HOME", folder.path());
        let output = command.output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments}: {said}");
        said.into_owned()
    };
    cluster.set_secret("api", "one");
    cluster.create(Kind::Deployment, workload("api", 3));
    let mut set = workload("db", 2);
    set["spec"]["selector"]["matchLabels"]["app"] = "db".into();
    set["spec"]["template"]["metadata"]["labels"]["app"] = "db".into();
    cluster.create(Kind::StatefulSet, set);
    let names = ["deployment/api", "statefulset/db"];
    let status = || {
        for name in names {
            kubectl(&format!("rollout status {name} --timeout=20s"));
        }
    };
    status();
    kubectl(&format!("rollout restart {}", names.join(" ")));
    status();
    let hash = |cluster: &Cluster| {
        let pods = cluster.pods();
        let api = pods.iter().find(|pod| pod["metadata"]["labels"]["app"] == "api").unwrap();
        api["metadata"]["labels"]["pod-template-hash"].clone()
    };
    cluster.until("the old pods are gone", |cluster| cluster.pods().len() == 5);
    let restarted = hash(&cluster);
    assert!(kubectl(&format!("rollout undo {}", names.join(" "))).contains("rolled back"));
    status();
    cluster.until("the old pods are gone", |cluster| cluster.pods().len() == 5);
    assert_ne!(hash(&cluster), restarted);
    assert_eq!(cluster.objects.list(Kind::ReplicaSet, None).0.len(), 2);
    assert_eq!(cluster.objects.list(Kind::ControllerRevision, None).0.len(), 2);
    let stamp = "kubectl.kubernetes.io/restartedAt";
    assert!(cluster.pods().iter().all(|pod| pod["metadata"]["annotations"][stamp].is_null()));
    assert!(kubectl("rollout history deployment/api").contains("3"));
}

#[test]
fn a_process_that_fails_its_liveness_probe_is_ended_and_started_again() {
    if !has("busybox") || !has("setpriv") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(processes(folder.path()));
    cluster.create(Kind::Pod, pod("deaf", json!({ "containers": [{
        "name": "app",
        "image": "x",
        "command": ["busybox", "sleep", "100"],
        "livenessProbe": { "tcpSocket": { "port": PORT }, "periodSeconds": 1, "failureThreshold": 2 },
    }] })));
    cluster.until("it is started again", |cluster| {
        let container = &cluster.get(Kind::Pod, "deaf")["status"]["containerStatuses"][0];
        container["restartCount"] == 1 && container["lastState"]["terminated"]["exitCode"] == 143
    });
}

#[test]
fn an_init_container_has_to_succeed_before_the_others_start() {
    let runtime = Runtime::judged(|given: &Given| match given.container.as_str() {
        "first" => Fate::Crashes(Duration::from_secs(1), i32::from(given.restarts == 0)),
        _ => Fate::ComesUp(Duration::ZERO),
    });
    let cluster = Cluster::start(settings(runtime));
    cluster.create(
        Kind::Pod,
        pod(
            "ordered",
            json!({
                "initContainers": [{ "name": "first", "image": "x" }],
                "containers": [{ "name": "app", "image": "x" }],
            }),
        ),
    );
    cluster.until("it comes up", |cluster| {
        let status = &cluster.get(Kind::Pod, "ordered")["status"];
        let (first, app) = (&status["initContainerStatuses"][0], &status["containerStatuses"][0]);
        if app.is_null() {
            return false;
        }
        let has_succeeded = first["state"]["terminated"]["exitCode"] == 0;
        assert!(has_succeeded || app["state"]["running"].is_null());
        has_succeeded
            && first["restartCount"] == 1
            && app["ready"] == true
            && status["phase"] == "Running"
    });
}

#[test]
fn every_second_pod_may_be_slow_and_the_update_waits_for_it() {
    let cluster = rolled_out(by_value());
    cluster.run.switch(|switches| switches.slow = Some((2, Duration::from_secs(10))));
    let began = Instant::now();
    cluster.stamp(Kind::Deployment, "api", "2");
    cluster.until("it is rolled out", |cluster| cluster.is_rolled_out("api"));
    assert!(began.elapsed() > Duration::from_millis(500), "ten seconds, twenty times as fast");
}

#[test]
fn an_environment_takes_every_key_of_a_secret_under_a_prefix() {
    let cluster = Cluster::start(settings(by_value()));
    cluster.set_secret("api", "one");
    cluster.create(
        Kind::Pod,
        pod(
            "reader",
            json!({ "containers": [{
        "name": "app",
        "image": "x",
        "envFrom": [
            { "prefix": "API_", "secretRef": { "name": "api" } },
            { "secretRef": { "name": "absent", "optional": true } },
        ],
        "env": [{ "name": "URL", "value": "https://x/?$(API_token)&$(OTHER)" }],
    }] }),
        ),
    );
    cluster.until("it runs", |cluster| is_ready(&cluster.get(Kind::Pod, "reader")));
    let held = cluster.run.held();
    assert_eq!(held[0].given.env["API_token"], "one");
    assert_eq!(held[0].given.env["URL"], "https://x/?one&$(OTHER)");
}

#[test]
fn a_pod_counts_only_after_it_was_ready_for_as_long_as_is_asked() {
    let cluster = rolled_out(by_value());
    cluster.change(Kind::Deployment, "api", |api| {
        api["spec"]["replicas"] = 1.into();
        api["spec"]["minReadySeconds"] = 10.into();
    });
    cluster
        .until("one is left", |cluster| cluster.pods().len() == 1 && cluster.is_rolled_out("api"));
    cluster.stamp(Kind::Deployment, "api", "2");
    cluster.until("the new pod is ready", |cluster| {
        cluster
            .pods()
            .iter()
            .any(|pod| pod["metadata"]["annotations"]["stamp"] == "2" && is_ready(pod))
    });
    let ready = Instant::now();
    cluster.until("the old pod is asked to end", |cluster| {
        cluster.pods().iter().any(|pod| !pod["metadata"]["deletionTimestamp"].is_null())
    });
    assert!(ready.elapsed() > Duration::from_millis(400), "ten seconds, twenty times as fast");
}

#[test]
fn sets_that_update_on_delete_wait_until_somebody_deletes_a_pod() {
    let cluster = Cluster::start(settings(by_value()));
    stateful(&cluster);
    cluster.change(Kind::StatefulSet, "db", |set| {
        set["spec"]["updateStrategy"] = json!({ "type": "OnDelete" });
    });
    cluster.stamp(Kind::StatefulSet, "db", "2");
    cluster.until("it is observed", |cluster| {
        let set = cluster.get(Kind::StatefulSet, "db");
        set["metadata"]["generation"] == set["status"]["observedGeneration"]
    });
    std::thread::sleep(Duration::from_millis(100));
    let stamped = |cluster: &Cluster| {
        let pods = cluster.pods();
        let names = pods.iter().filter(|pod| pod["metadata"]["annotations"]["stamp"] == "2");
        names.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert!(stamped(&cluster).is_empty());
    let key = Key::new(Kind::Pod, SPACE, "db-1");
    cluster.objects.delete(&key, &Deletion::default()).unwrap();
    cluster.until("only that one is new", |cluster| stamped(cluster) == ["db-1"]);
    let set = cluster.get(Kind::StatefulSet, "db");
    assert_ne!(set["status"]["currentRevision"], set["status"]["updateRevision"]);
}

#[test]
fn a_daemon_set_that_crash_loops_comes_back_by_itself_once_its_template_is_right() {
    let cluster = Cluster::start(settings(by_value()));
    cluster.set_secret("api", "bad");
    let mut set = workload("agent", 1);
    set["spec"].as_object_mut().unwrap().remove("replicas");
    cluster.create(Kind::DaemonSet, set);
    cluster.until("it crashes", |cluster| {
        cluster.pods().iter().any(|pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1)
    });
    assert_eq!(cluster.get(Kind::DaemonSet, "agent")["status"]["numberUnavailable"], 1);
    cluster.set_secret("api", "one");
    cluster.stamp(Kind::DaemonSet, "agent", "2");
    cluster.until("it is back", |cluster| {
        cluster.get(Kind::DaemonSet, "agent")["status"]["numberAvailable"] == 1
    });
}
