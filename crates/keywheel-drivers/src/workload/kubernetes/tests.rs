//! The workload against the stand-in of a cluster, whose pods are simulated.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration as StdDuration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keywheel_core::evidence::{Proof, Shows};
use keywheel_core::fingerprint::{FingerprintKeyId, Fingerprinter};
use keywheel_core::secret::SecretName;
use keywheel_core::time::Timestamp;
use keywheel_driver::workload::Stamp;
use keywheel_driver::{Severity, slot};
use keywheel_twins::kubernetes::faults::Rule as FaultRule;
use keywheel_twins::kubernetes::run::{Fate, Given, Pace, Run, Runtime, Settings};
use keywheel_twins::kubernetes::{Class, Cluster as Twin, Fault, Key, Kind as Kinds};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

mod sync;

use super::*;
use crate::kubernetes::{Approach, SecretRef};

const SPACE: &str = "shop";
const OLD: &str = "kwcanary-old";
const NEW: &str = "kwcanary-new";
/// A value with which no container comes up.
const BAD: &str = "kwcanary-bad";

/// How much faster than a real one the cluster is.
const FASTER: f64 = 20.0;

struct Ground {
    twin: Twin,
    run: Run,
    folder: TempDir,
    fingerprinter: Fingerprinter,
}

/// What a roll is for.
struct Wish<'a> {
    held: &'a str,
    since: Timestamp,
    untouched_before: Option<Timestamp>,
    secrets: &'a [&'a str],
}

impl Ground {
    /// Starts a cluster with the Secret `keys`, whose pods are simulated.
    fn start() -> Self {
        Self::start_at(FASTER)
    }

    fn start_at(faster: f64) -> Self {
        let judge = |given: &Given| match given.env.values().any(|value| value.starts_with(BAD)) {
            true => Fate::Crashes(StdDuration::from_secs(1), 3),
            false => Fate::ComesUp(StdDuration::from_secs(1)),
        };
        Self::start_with(Runtime::judged(judge), Settings::default().creation, faster)
    }

    /// Starts one in which a container takes so long to be made.
    fn start_with(runtime: Runtime, creation: StdDuration, faster: f64) -> Self {
        let pace = Pace::times(faster);
        Self::start_as(Settings { pace, runtime, creation, ..Settings::default() })
    }

    fn start_as(settings: Settings) -> Self {
        let twin = Twin::start().unwrap();
        twin.objects().make_namespace(SPACE);
        let run = twin.run(settings).unwrap();
        let folder = tempfile::tempdir().unwrap();
        twin.write_kubeconfig(&folder.path().join("kubeconfig")).unwrap();
        let fingerprinter =
            Fingerprinter::new(FingerprintKeyId(1), zeroize::Zeroizing::new([1; 32]));
        let ground = Self { twin, run, folder, fingerprinter };
        ground.create(Kinds::Secret, secret("keys", OLD));
        ground
    }

    /// Starts one with an object that is rolled out.
    async fn with(kind: Kinds, object: Value) -> (Self, Arc<dyn Workload>) {
        Self::start().rolled_out(kind, object).await
    }

    async fn rolled_out(self, kind: Kinds, object: Value) -> (Self, Arc<dyn Workload>) {
        let ground = self;
        ground.create(kind, object);
        let driver = ground.driver(of(kind));
        ground.until("it is rolled out", async || ground.is_settled(kind)).await;
        (ground, driver)
    }

    async fn deployment() -> (Self, Arc<dyn Workload>) {
        Self::with(Kinds::Deployment, workload(3)).await
    }

    fn driver(&self, config: Value) -> Arc<dyn Workload> {
        self.driver_for("admin", config)
    }

    fn driver_for(&self, user: &str, mut config: Value) -> Arc<dyn Workload> {
        self.twin.write_kubeconfig(&self.folder.path().join("kubeconfig")).unwrap();
        config["namespace"] = json!(SPACE);
        config["cluster"] = json!({"context": user, "kubeconfig": "kubeconfig"});
        let config: Config = serde_json::from_value(config).unwrap();
        config.build(&Context::at(self.folder.path())).unwrap()
    }

    fn create(&self, kind: Kinds, object: Value) {
        self.twin.objects().create(kind, object, "kubectl").unwrap();
    }

    fn change(&self, kind: Kinds, name: &str, edit: impl FnMut(&mut Value)) {
        self.twin.objects().change(&Key::new(kind, SPACE, name), "kubectl", edit).unwrap();
    }

    fn get(&self, kind: Kinds) -> Arc<Value> {
        self.twin.objects().get(&Key::new(kind, SPACE, "app")).unwrap()
    }

    /// Writes the Secret, and returns since when it holds the value.
    fn write(&self, value: &str) -> Timestamp {
        self.change(Kinds::Secret, "keys", |keys| {
            keys["data"]["a"] = json!(STANDARD.encode(value))
        });
        clock::now()
    }

    fn slot(&self) -> String {
        let config = self.folder.path().join("kubeconfig");
        let secret = SecretRef {
            approach: Approach::InPlace,
            cluster: format!("context admin of {}", config.display()),
            namespace: SPACE.into(),
            name: "keys".into(),
        };
        slot::name(&secret.to_string(), "a")
    }

    async fn roll(&self, driver: &Arc<dyn Workload>, wish: &Wish<'_>) -> Result<(), CallError> {
        let slots = [(self.slot(), Some(self.fingerprinter.of(wish.held.as_bytes())))];
        let stamps = wish.secrets.iter().map(|name| {
            let name = SecretName::new(name, "production").unwrap();
            Stamp::new(&name, &slots, &self.fingerprinter)
        });
        let ensure = Ensure {
            slots: &slots,
            held_since: wish.since,
            untouched_before: wish.untouched_before,
            stamps: stamps.collect(),
            fingerprinter: &self.fingerprinter,
            emergency: None,
        };
        driver.roll(&ensure).await
    }

    fn versioned_slot(&self) -> String {
        self.slot().replace("kubernetes-secret:", "kubernetes-secret-versions:")
    }

    /// Makes the first version of the Secret, and makes it the current one.
    fn add_version(&self, value: &str) {
        let mut version = secret("keys-v1", value);
        version["immutable"] = json!(true);
        self.create(Kinds::Secret, version);
        let head = json!({"metadata": metadata("keys.keywheel"), "data": head("keys-v1")});
        self.create(Kinds::ConfigMap, head);
    }

    async fn roll_versions(
        &self,
        driver: &Arc<dyn Workload>,
        value: &str,
        untouched_before: Option<Timestamp>,
    ) -> Result<(), CallError> {
        let held = Some(self.fingerprinter.of(value.as_bytes()));
        let slots = [(self.versioned_slot(), held)];
        let jwt = SecretName::new("jwt", "production").unwrap();
        let ensure = Ensure {
            slots: &slots,
            held_since: clock::now(),
            untouched_before,
            stamps: vec![Stamp::new(&jwt, &slots, &self.fingerprinter)],
            fingerprinter: &self.fingerprinter,
            emergency: None,
        };
        driver.roll(&ensure).await
    }

    async fn forward(
        &self,
        driver: &Arc<dyn Workload>,
        held: &str,
        since: Timestamp,
    ) -> Result<(), CallError> {
        let wish = Wish { held, since, untouched_before: None, secrets: &["jwt"] };
        self.roll(driver, &wish).await
    }

    /// Writes the former value, and returns what a roll back to it is for.
    fn way_back(&self, untouched_before: Timestamp) -> Wish<'static> {
        let (since, untouched_before) = (self.write(OLD), Some(untouched_before));
        Wish { held: OLD, since, untouched_before, secrets: &["jwt"] }
    }

    async fn proofs(&self, driver: &Arc<dyn Workload>, held: &str, since: Timestamp) -> Vec<Proof> {
        let slots = [(self.slot(), Some(self.fingerprinter.of(held.as_bytes())))];
        let expected = keywheel_core::evidence::Expected {
            slots: &slots,
            held_since: Some(since),
            untouched_before: None,
            granularity: driver.facts().start_granularity,
        };
        let replicas = driver.observe(&[self.slot()], &self.fingerprinter).await.unwrap();
        replicas.iter().map(|one| keywheel_core::evidence::judge(one, &expected)).collect()
    }

    /// Returns what the containers that run hold.
    fn held(&self) -> Vec<String> {
        let held = self.run.held().into_iter();
        held.filter_map(|held| held.given.env.get("A").cloned()).collect()
    }

    fn uids(&self) -> BTreeSet<String> {
        let pods = self.twin.objects().list(Kinds::Pod, Some(SPACE)).0;
        pods.iter().map(|pod| pod["metadata"]["uid"].as_str().unwrap().to_owned()).collect()
    }

    fn template_patches(&self) -> usize {
        // One that came after somebody else's write changed nothing.
        let seen = self.twin.faults().seen().into_iter().filter(|seen| seen.code != Some(409));
        seen.filter(|seen| seen.verb == "patch" && !seen.dry_run).count()
    }

    fn is_settled(&self, kind: Kinds) -> bool {
        let target = Target::parse(as_kind(kind), (*self.get(kind)).clone()).unwrap();
        target.progress() == target::Progress::Done
    }

    fn statuses(&self) -> Vec<Value> {
        let kinds = [
            Kinds::Deployment,
            Kinds::ReplicaSet,
            Kinds::StatefulSet,
            Kinds::DaemonSet,
            Kinds::Pod,
        ];
        let all = kinds.into_iter().flat_map(|kind| self.twin.objects().list(kind, None).0);
        all.map(|object| json!([object["metadata"]["name"], object["status"]])).collect()
    }

    async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let end = Instant::now() + StdDuration::from_secs(15);
        while !holds().await {
            assert!(Instant::now() < end, "not in time: {what}: {:#?}", self.statuses());
            tokio::time::sleep(StdDuration::from_millis(10)).await;
        }
    }
}

fn as_kind(kind: Kinds) -> Kind {
    match kind {
        Kinds::StatefulSet => Kind::StatefulSet,
        Kinds::DaemonSet => Kind::DaemonSet,
        _ => Kind::Deployment,
    }
}

fn of(kind: Kinds) -> Value {
    match kind {
        Kinds::StatefulSet => json!({"stateful_set": "app"}),
        Kinds::DaemonSet => json!({"daemon_set": "app"}),
        _ => json!({"deployment": "app"}),
    }
}

fn metadata(name: &str) -> Value {
    json!({"name": name, "namespace": SPACE})
}

fn secret(name: &str, value: &str) -> Value {
    json!({"metadata": metadata(name), "data": {"a": STANDARD.encode(value)}})
}

fn pod_spec() -> Value {
    json!({"terminationGracePeriodSeconds": 5, "containers": [{
        "name": "app",
        "image": "app:1",
        "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "a"}}}],
        "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1}
    }]})
}

fn template() -> Value {
    json!({"metadata": {"labels": {"app": "app"}}, "spec": pod_spec()})
}

fn workload(replicas: usize) -> Value {
    json!({
        "metadata": metadata("app"),
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "app"}},
            "template": template()
        }
    })
}

/// What the head of the Secret holds.
fn head(current: &str) -> Value {
    json!({"current": current, "known": "keys\nkeys-v1"})
}

/// Returns an instant that every pod that is there was certainly made before, and those of a roll that begins now after: it lets as
/// much time pass itself.
fn before_the_roll() -> Timestamp {
    clock::now() + Span::millis(2_900)
}

fn message(result: Result<(), CallError>) -> String {
    match result {
        Err(CallError::Refused(refusal)) => {
            assert_eq!(refusal.kind, RefusalKind::WorkloadFailed, "{refusal}");
            assert!(!refusal.message.contains("kwcanary"), "{refusal}");
            refusal.message
        }
        other => panic!("{other:?} is no refusal"),
    }
}

#[tokio::test]
async fn h53_a_deployment_is_rolled_by_one_patch_and_every_pod_proves_the_value() {
    let (ground, driver) = Ground::deployment().await;
    let since = ground.write(NEW);
    assert_eq!(ground.proofs(&driver, NEW, since).await, [Proof::Unknown; 3]);
    ground.forward(&driver, NEW, since).await.unwrap();
    assert_eq!(ground.held(), [NEW; 3]);
    assert_eq!(ground.proofs(&driver, NEW, since).await, [Proof::Holds; 3]);
    assert_eq!(ground.template_patches(), 1);
    let seen = ground.twin.faults().seen();
    let patch = seen.iter().find(|seen| seen.verb == "patch").unwrap();
    assert_eq!(patch.manager, "keywheel");
    assert_eq!(ground.twin.faults().disclosed(), []);
}

#[tokio::test]
async fn a_stateful_set_is_rolled() {
    let (ground, driver) = Ground::with(Kinds::StatefulSet, workload(2)).await;
    let since = ground.write(NEW);
    ground.forward(&driver, NEW, since).await.unwrap();
    assert_eq!(ground.held(), [NEW; 2]);
    assert_eq!(ground.proofs(&driver, NEW, since).await, [Proof::Holds; 2]);
}

#[tokio::test]
async fn a_daemon_set_is_rolled() {
    let mut object = workload(1);
    object["spec"].as_object_mut().unwrap().remove("replicas");
    let (ground, driver) = Ground::with(Kinds::DaemonSet, object).await;
    let since = ground.write(NEW);
    ground.forward(&driver, NEW, since).await.unwrap();
    assert_eq!(ground.held(), [NEW]);
    assert_eq!(ground.proofs(&driver, NEW, since).await, [Proof::Holds]);
}

#[tokio::test]
async fn h46_h47_two_secrets_are_one_patch_and_a_hundred_ensures_are_none() {
    let (ground, driver) = Ground::deployment().await;
    let since = ground.write(NEW);
    let wish = Wish { held: NEW, since, untouched_before: None, secrets: &["jwt", "database"] };
    ground.roll(&driver, &wish).await.unwrap();
    let sets = ground.twin.objects().list(Kinds::ReplicaSet, Some(SPACE)).0.len();
    assert_eq!((ground.template_patches(), sets), (1, 2));
    let deployment = ground.get(Kinds::Deployment);
    let annotations =
        deployment["spec"]["template"]["metadata"]["annotations"].as_object().unwrap();
    let names: Vec<_> = annotations.keys().map(String::as_str).collect();
    assert_eq!(names, ["keywheel.dev/stamp.database", "keywheel.dev/stamp.jwt"]);
    for _ in 0..100 {
        ground.roll(&driver, &wish).await.unwrap();
        assert_eq!(ground.template_patches(), 1);
    }
}

#[tokio::test]
async fn h51_a_crash_loop_ends_the_roll_at_once_and_the_way_back_touches_no_pod_that_was_there() {
    let (ground, _) = Ground::deployment().await;
    let driver = ground.driver(json!({"deployment": "app", "ready_within": "5s"}));
    let before = ground.uids();
    let written = before_the_roll();
    let since = ground.write(BAD);
    let why = message(ground.forward(&driver, BAD, since).await);
    assert!(why.contains("container `app` ended with exit code 3"), "{why}");
    assert_eq!(ground.uids().intersection(&before).count(), 3);
    let wish = ground.way_back(written);
    ground.roll(&driver, &wish).await.unwrap();
    assert_eq!(ground.uids(), before);
    assert_eq!(ground.held(), [OLD; 3]);
    let deployment = ground.get(Kinds::Deployment);
    let annotations = &deployment["spec"]["template"]["metadata"]["annotations"];
    assert!(annotations.as_object().is_none_or(serde_json::Map::is_empty), "{annotations}");
    ground.roll(&driver, &wish).await.unwrap();
    assert_eq!(ground.template_patches(), 2, "once there and once back");
}

#[tokio::test]
async fn h52_a_stateful_set_whose_new_pod_crashes_comes_back() {
    let (ground, _) = Ground::with(Kinds::StatefulSet, workload(2)).await;
    let driver = ground.driver(json!({"stateful_set": "app", "ready_within": "5s"}));
    let written = before_the_roll();
    ground.add_version(BAD);
    let why = message(ground.roll_versions(&driver, BAD, None).await);
    assert!(why.contains("pod `app-1`"), "{why}");
    ground.change(Kinds::ConfigMap, "keys.keywheel", |it| it["data"] = head("keys"));
    // The pod names the version that it does not come up with, so that only another pod can.
    ground.roll_versions(&driver, OLD, Some(written)).await.unwrap();
    assert_eq!(ground.held(), [OLD; 2]);
}

#[tokio::test]
async fn h51_the_way_back_of_a_stateful_set_replaces_the_broken_pod_only() {
    // As slow as a real one: a container that ended is started again a second later.
    let (ground, driver) = Ground::start_at(1.0).rolled_out(Kinds::StatefulSet, workload(2)).await;
    let before = ground.uids();
    let written = before_the_roll();
    let since = ground.write(BAD);
    let why = message(ground.forward(&driver, BAD, since).await);
    assert!(why.contains("pod `app-1`"), "{why}");
    let wish = ground.way_back(written);
    // The broken one comes up with the former value by itself, whereupon the rollout would go on to the one that serves.
    ground.roll(&driver, &wish).await.unwrap();
    assert_eq!(ground.held(), [OLD; 2]);
    assert_eq!(ground.uids().intersection(&before).count(), 1, "the pod that served is gone");
}

#[tokio::test]
async fn h45_a_pod_that_started_too_early_is_replaced_although_its_stamp_is_right() {
    let (ground, driver) = Ground::deployment().await;
    let since = ground.write(NEW);
    ground.forward(&driver, NEW, since).await.unwrap();
    let before = ground.uids();
    // The same arrangement is written anew, so that the same stamp is right.
    let since = clock::now();
    ground.forward(&driver, NEW, since).await.unwrap();
    assert_eq!(ground.proofs(&driver, NEW, since).await, [Proof::Holds; 3]);
    assert_eq!(ground.uids().intersection(&before).count(), 0);
    assert_eq!(ground.template_patches(), 2);
}

#[tokio::test]
async fn h50_every_pod_counts_whatever_template_it_is_of() {
    let (ground, driver) = Ground::deployment().await;
    ground.run.switch(|switches| switches.capacity = Some(5));
    ground.run.switch(|switches| switches.ignores_term = true);
    let since = ground.write(NEW);
    tokio::time::sleep(StdDuration::from_millis(2_100)).await;
    ground.change(Kinds::Deployment, "app", |app| {
        app["spec"]["template"]["metadata"]["annotations"] = json!({"their": "own"});
        app["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(60);
    });
    ground.until("a new pod is there", async || ground.held().contains(&NEW.to_owned())).await;
    let proofs = ground.proofs(&driver, NEW, since).await;
    assert!(proofs.contains(&Proof::Unknown), "{proofs:?}");
    assert!(proofs.len() > 3, "{proofs:?}");
}

#[tokio::test]
async fn h48_a_stamp_that_somebody_takes_away_is_named_and_not_fought_over() {
    let (ground, _) = Ground::deployment().await;
    let driver = ground.driver(json!({"deployment": "app", "ready_within": "3s"}));
    let since = ground.write(NEW);
    let key = Key::new(Kinds::Deployment, SPACE, "app");
    let revert = |app: &mut Value| {
        app["metadata"]["annotations"]["argocd.argoproj.io/tracking-id"] = json!("shop:apps/app");
        if let Some(meta) = app["spec"]["template"]["metadata"].as_object_mut() {
            meta.remove("annotations");
        }
    };
    let every = StdDuration::from_millis(50);
    let rival = ground.twin.rival("argocd-controller", key, every, revert).unwrap();
    let roll = ground.forward(&driver, NEW, since);
    let why = message(tokio::time::timeout(StdDuration::from_secs(15), roll).await.unwrap());
    assert!(why.contains("`argocd-controller`"), "{why}");
    assert_eq!((ground.template_patches(), rival.writes()), (1, 2));
}

#[tokio::test]
async fn h48_whoever_takes_a_stamp_away_after_the_roll_is_named() {
    let (ground, driver) = Ground::deployment().await;
    let since = ground.write(NEW);
    ground.forward(&driver, NEW, since).await.unwrap();
    let others = async |held: &str, since| {
        let slots = [(ground.slot(), Some(ground.fingerprinter.of(held.as_bytes())))];
        let jwt = SecretName::new("jwt", "production").unwrap();
        let stamp = Stamp::new(&jwt, &slots, &ground.fingerprinter);
        driver.others(&[ground.slot()], &[stamp], since).await.unwrap()
    };
    assert_eq!(others(NEW, since).await, []);
    let later = clock::now() + Span::minutes(1);
    assert_eq!(others(OLD, later).await, [], "nobody but keywheel wrote it since");
    let revert = |app: &mut Value| {
        app["metadata"]["annotations"]["argocd.argoproj.io/tracking-id"] = json!("shop:apps/app");
        app["spec"]["template"]["metadata"].as_object_mut().unwrap().remove("annotations");
    };
    let key = Key::new(Kinds::Deployment, SPACE, "app");
    ground.twin.objects().change(&key, "argocd-controller", revert).unwrap();
    let patches = ground.template_patches();
    let [other] = others(NEW, since).await.try_into().unwrap();
    assert!(other.in_words().starts_with("`argocd-controller` (Argo CD, 20"), "{other:?}");
    assert!(other.helps.unwrap().contains("ignoreDifferences"));
    assert_eq!(ground.template_patches(), patches, "it is not put back");
}

#[tokio::test]
async fn h48_admission_that_takes_stamps_away_is_found_before_anything_changes() {
    let (ground, driver) = Ground::deployment().await;
    let drops = Fault::DropsAnnotation("keywheel.dev/stamp.trial".into());
    let on = Class::new("patch", "deployments");
    ground.twin.faults().set(vec![FaultRule::every(on, drops)]);
    let findings = driver.preflight().await.unwrap();
    let blocks = findings.iter().find(|it| it.severity == Severity::Blocks).unwrap();
    assert!(blocks.message.contains("takes the stamp away"), "{}", blocks.message);
    assert_eq!(ground.twin.faults().writes(), 0);
}

#[tokio::test]
async fn h52_a_roll_that_does_not_move_ends_and_names_the_pods_that_hold_the_old_value() {
    let (ground, _) = Ground::deployment().await;
    let driver = ground.driver(json!({"deployment": "app", "ready_within": "2s"}));
    ground.run.switch(|switches| switches.capacity = Some(3));
    let since = ground.write(NEW);
    let why = message(ground.forward(&driver, NEW, since).await);
    assert!(why.contains("did not move for 2 s") && why.matches("`app-").count() >= 3, "{why}");
    assert_eq!(ground.held(), [OLD; 3]);
}

#[tokio::test]
async fn h52_the_cluster_s_own_deadline_ends_a_roll() {
    let mut object = workload(3);
    object["spec"]["progressDeadlineSeconds"] = json!(20);
    let (ground, driver) = Ground::with(Kinds::Deployment, object).await;
    ground.run.switch(|switches| switches.capacity = Some(3));
    let since = ground.write(NEW);
    let why = message(ground.forward(&driver, NEW, since).await);
    assert!(why.contains("no progress before its deadline"), "{why}");
}

#[tokio::test]
async fn a_paused_deployment_is_not_begun() {
    let (ground, driver) = Ground::deployment().await;
    ground.change(Kinds::Deployment, "app", |app| app["spec"]["paused"] = json!(true));
    let findings = driver.preflight().await.unwrap();
    assert!(
        findings.iter().any(|it| it.severity == Severity::Blocks && it.message.contains("paused"))
    );
    let since = ground.write(NEW);
    let why = message(ground.forward(&driver, NEW, since).await);
    assert!(why.contains("paused"), "{why}");
    assert_eq!(ground.template_patches(), 0);
}

#[tokio::test]
async fn a_lost_answer_and_a_lost_race_are_looked_at_again() {
    let (ground, driver) = Ground::deployment().await;
    let on = || Class::new("patch", "deployments");
    let lost = Fault::Http(keywheel_twins::fault::Fault::Cut);
    ground.twin.faults().set(vec![
        FaultRule::times(on(), 3, Fault::status(409)),
        FaultRule::times(Class::new("get", "deployments"), 2, Fault::status(503)),
        FaultRule::first(on(), lost).after(3),
    ]);
    let since = ground.write(NEW);
    ground.forward(&driver, NEW, since).await.unwrap();
    assert_eq!(ground.twin.faults().unfired(), []);
    assert_eq!(ground.held(), [NEW; 3]);
    assert_eq!(ground.twin.objects().list(Kinds::ReplicaSet, Some(SPACE)).0.len(), 2);
}

#[tokio::test]
async fn h56_every_reader_in_the_namespace_is_found() {
    let (ground, driver) = Ground::deployment().await;
    let job = json!({"template": {"spec": pod_spec()}});
    ground.create(Kinds::CronJob, json!({"metadata": metadata("nightly"), "spec": {"schedule": "0 3 * * *", "jobTemplate": {"spec": job}}}));
    let mut pod = json!({"metadata": metadata("shell"), "spec": pod_spec()});
    pod["spec"]["containers"][0] =
        json!({"name": "sh", "image": "sh:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    pod["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "keys"}}]);
    ground.create(Kinds::Pod, pod);
    let mut other = workload(1);
    other["metadata"]["name"] = json!("other");
    other["spec"]["selector"]["matchLabels"] = json!({"app": "other"});
    other["spec"]["template"] = json!({"metadata": {"labels": {"app": "other"}}, "spec": {"containers": [{"name": "c", "image": "c:1"}]}});
    ground.create(Kinds::StatefulSet, other);
    let readers = driver.readers(&[ground.slot()]).await.unwrap().unwrap();
    let told: Vec<_> = readers.iter().map(|reader| (reader.name.as_str(), reader.runs)).collect();
    assert_eq!(
        told,
        [
            ("Deployment `app` (by env)", true),
            ("CronJob `nightly` (by env; its next run reads anew)", false),
            ("Pod `shell` (by volume)", true),
        ]
    );
    assert_eq!(readers[0].resource, driver.resource());
}

#[tokio::test]
async fn h42_a_key_behind_a_later_source_is_not_given_and_a_source_that_cannot_be_seen_is_told() {
    let ground = Ground::start();
    let mut object = workload(0);
    let container = &mut object["spec"]["template"]["spec"]["containers"][0];
    container["env"] = json!([]);
    container["envFrom"] = json!([
        {"prefix": "APP_", "secretRef": {"name": "keys"}},
        {"configMapRef": {"name": "settings"}}
    ]);
    ground.create(Kinds::Deployment, object);
    let map = json!({"metadata": metadata("settings"), "data": {"APP_b": "x"}});
    ground.create(Kinds::ConfigMap, map);
    let driver = ground.driver(json!({"deployment": "app"}));
    let told = async || {
        let readers = driver.readers(&[ground.slot()]).await.unwrap().unwrap();
        let [reader] = &readers[..] else { panic!("{readers:?}") };
        (reader.name.clone(), reader.slots.len())
    };
    assert_eq!(told().await, ("Deployment `app` (by envFrom)".into(), 1));
    ground.change(Kinds::ConfigMap, "settings", |map| map["data"]["APP_a"] = json!("x"));
    let why = "`a` is hidden by ConfigMap `settings`, which comes later in `envFrom`";
    assert_eq!(told().await, (format!("Deployment `app` ({why})"), 0));
    let mut rules = vec![keywheel_twins::kubernetes::Rule::everything()];
    rules[0].resources = vec!["pods".into(), "deployments".into(), "namespaces".into()];
    let rest = ["statefulsets", "daemonsets", "replicasets", "jobs", "cronjobs"];
    rules[0].resources.extend(rest.map(String::from));
    rules[0].resources.push("selfsubjectaccessreviews".into());
    ground.twin.add_user("few", rules);
    let findings = ground.driver_for("few", json!({"deployment": "app"})).preflight().await;
    let findings = findings.unwrap();
    let says = "is given ConfigMap `settings` by `envFrom` after a Secret, and this account may not `get` it";
    assert!(findings.iter().any(|one| one.message.contains(says)), "{findings:?}");
}

#[tokio::test]
async fn h51_what_drops_requests_is_said_before_anything_changes() {
    let mut object = workload(2);
    object["spec"]["strategy"] = json!({"type": "Recreate"});
    object["spec"]["template"]["spec"]["containers"][0]
        .as_object_mut()
        .unwrap()
        .remove("readinessProbe");
    let (ground, driver) = Ground::with(Kinds::Deployment, object).await;
    let findings = driver.preflight().await.unwrap();
    let told = |severity: Severity, what: &str| {
        findings.iter().any(|it| it.severity == severity && it.message.contains(what))
    };
    assert!(told(Severity::Blocks, "`Recreate`"), "{findings:?}");
    assert!(told(Severity::Note, "no readiness probe"), "{findings:?}");
    assert!(told(Severity::Note, "no `preStop`"), "{findings:?}");
    let driver = ground.driver(json!({"deployment": "app", "gap": true}));
    assert!(driver.facts().gap);
    let findings = driver.preflight().await.unwrap();
    assert!(findings.iter().all(|it| it.severity == Severity::Note), "{findings:?}");
    assert_eq!(ground.twin.faults().writes(), 0);
}

#[tokio::test]
async fn h19_what_an_account_may_not_do_is_said_before_anything_changes() {
    let (ground, _) = Ground::deployment().await;
    let read = keywheel_twins::kubernetes::Rule::everything();
    ground.twin.add_user(
        "reader",
        vec![keywheel_twins::kubernetes::Rule {
            verbs: vec!["get".into(), "list".into(), "create".into()],
            ..read
        }],
    );
    let driver = ground.driver_for("reader", json!({"deployment": "app"}));
    let findings = driver.preflight().await.unwrap();
    let told: Vec<_> = findings.iter().map(|it| it.message.as_str()).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("does not allow `patch` of `deployments/app` in namespace `shop`"),
        "{told:?}"
    );
}

#[tokio::test]
async fn h124_the_log_of_every_container_is_named_and_read() {
    let (ground, driver) = Ground::deployment().await;
    ground.twin.serve_logs(|log| Some(format!("line of {}\n", log.pod.name)));
    let references = driver.logs().await.unwrap().unwrap();
    assert_eq!(references.len(), 3);
    let place = references[0].place.as_deref().unwrap();
    let kube = ground.folder.path().join("kubeconfig").display().to_string();
    let says = format!("kubectl --kubeconfig {kube} --context admin -n shop logs app-");
    assert!(place.starts_with(&says), "{place}");
    let mut lines = Vec::new();
    let mut take = |replica: &str, line: &str| lines.push(format!("{replica}: {line}"));
    let mut reading = Reading {
        since: Timestamp::from_millis(0),
        most_bytes: 1 << 20,
        within: Span::seconds(5),
        take: &mut take,
    };
    let read = driver.read_logs(&mut reading).await.unwrap().unwrap();
    assert_eq!(read.iter().filter(|read| read.not_read.is_none()).count(), 3);
    assert_eq!(lines.len(), 3);
    let mut reading = Reading {
        since: Timestamp::from_millis(0),
        most_bytes: 4,
        within: Span::seconds(5),
        take: &mut |_, _| {},
    };
    let read = driver.read_logs(&mut reading).await.unwrap().unwrap();
    assert!(read[0].not_read.as_deref().unwrap().contains("longer"));
}

#[tokio::test]
async fn the_cluster_is_known_by_itself_and_not_by_its_context() {
    let (ground, driver) = Ground::deployment().await;
    let pin = driver.identity().await.unwrap().unwrap();
    assert_eq!(pin.id, ground.twin.identity());
}

#[tokio::test]
async fn a_half_replaced_deployment_goes_back_and_keeps_the_pods_that_were_not_replaced() {
    let (ground, driver) = Ground::deployment().await;
    let before = ground.uids();
    let written = before_the_roll();
    ground.run.switch(|switches| switches.slow = Some((2, StdDuration::from_secs(600))));
    let since = ground.write(NEW);
    let roll = ground.forward(&driver, NEW, since);
    let half = ground.until("one pod is replaced", async || {
        let held = ground.held();
        held.len() == 3 && held.iter().filter(|value| *value == NEW).count() == 1
    });
    tokio::select! {
        () = half => {}
        ended = roll => panic!("it ended: {ended:?}"),
    }
    ground.run.switch(|switches| switches.slow = None);
    let kept: BTreeSet<_> = ground.uids().intersection(&before).cloned().collect();
    assert_eq!(kept.len(), 2);
    let wish = ground.way_back(written);
    ground.roll(&driver, &wish).await.unwrap();
    assert_eq!(ground.held(), [OLD; 3]);
    assert!(ground.uids().is_superset(&kept));
}

#[tokio::test]
async fn h50_a_pod_counts_although_what_made_it_is_gone() {
    let mut object = workload(3);
    object["spec"]["revisionHistoryLimit"] = json!(0);
    object["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(200);
    let (ground, driver) = Ground::with(Kinds::Deployment, object).await;
    ground.run.switch(|switches| switches.ignores_term = true);
    ground.change(Kinds::Deployment, "app", |app| {
        app["spec"]["template"]["metadata"]["annotations"] = json!({"their": "own"});
    });
    let is_new = |set: &Arc<Value>| set["spec"]["template"]["metadata"]["annotations"].is_object();
    ground
        .until("the former set is gone", async || {
            ground.twin.objects().list(Kinds::ReplicaSet, Some(SPACE)).0.iter().all(is_new)
        })
        .await;
    let replicas = driver.observe(&[ground.slot()], &ground.fingerprinter).await.unwrap();
    assert!(replicas.len() > 3, "{replicas:?}");
    let blind = replicas.iter().filter(|replica| replica.shows == Shows::Nothing).count();
    assert_eq!(blind, replicas.len() - 3);
}

#[tokio::test]
async fn h38_a_patch_that_is_refused_again_and_again_ends_the_roll() {
    let (ground, _) = Ground::deployment().await;
    let driver = ground.driver(json!({"deployment": "app", "ready_within": "1s"}));
    let on = Class::new("patch", "deployments");
    ground.twin.faults().set(vec![FaultRule::every(on, Fault::status(503))]);
    let since = ground.write(NEW);
    let roll = ground.forward(&driver, NEW, since);
    let error = tokio::time::timeout(StdDuration::from_secs(30), roll).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("503"), "{error}");
    assert_eq!(ground.held(), [OLD; 3]);
}

#[tokio::test]
async fn h48_a_stamp_of_another_installation_is_none_of_ours() {
    let (ground, driver) = Ground::deployment().await;
    let since = ground.write(NEW);
    let stamped = ground.until("it is stamped", async || {
        let app = ground.get(Kinds::Deployment);
        app.pointer("/spec/template/metadata/annotations").is_some()
    });
    let other = async {
        stamped.await;
        ground.change(Kinds::Deployment, "app", |app| {
            let annotations = &mut app["spec"]["template"]["metadata"]["annotations"];
            annotations["keywheel.dev/stamp.other"] = json!("theirs");
        });
    };
    let (rolled, ()) = tokio::join!(ground.forward(&driver, NEW, since), other);
    rolled.unwrap();
    assert_eq!(ground.proofs(&driver, NEW, since).await, [Proof::Holds; 3]);
    assert_eq!(ground.template_patches(), 1);
}

/// Returns a workload that reads its value from a file.
fn reads_a_volume() -> Value {
    let mut object = workload(2);
    let spec = &mut object["spec"]["template"]["spec"];
    spec["volumes"] = json!([{"name": "v", "secret": {"secretName": "keys"}}]);
    let container = spec["containers"][0].as_object_mut().unwrap();
    container.remove("env");
    container.insert("volumeMounts".into(), json!([{"name": "v", "mountPath": "/v"}]));
    object
}

#[tokio::test]
async fn h44_on_the_way_back_a_pod_that_reads_a_volume_is_replaced() {
    let (ground, driver) = Ground::with(Kinds::Deployment, reads_a_volume()).await;
    let before = ground.uids();
    let wish = ground.way_back(before_the_roll());
    ground.roll(&driver, &wish).await.unwrap();
    assert_eq!(ground.uids().intersection(&before).count(), 0);
}

#[tokio::test]
async fn h44_a_pod_that_reads_a_volume_is_replaced() {
    let (ground, driver) = Ground::with(Kinds::Deployment, reads_a_volume()).await;
    let before = ground.uids();
    let since = ground.write(NEW);
    ground.forward(&driver, NEW, since).await.unwrap();
    assert_eq!(ground.uids().intersection(&before).count(), 0);
    assert!(ground.proofs(&driver, NEW, since).await.iter().all(|proof| *proof == Proof::Holds));
    let held: Vec<_> =
        ground.run.held().iter().map(|held| held.given.files["/v/a"].clone()).collect();
    assert_eq!(held, [NEW.as_bytes(), NEW.as_bytes()]);
}

#[tokio::test]
async fn h65_a_versioned_secret_is_switched_in_the_same_patch_and_back_again() {
    let (ground, driver) = Ground::deployment().await;
    let before = ground.uids();
    let pinned = json!({"metadata": metadata("pinned"), "spec": pod_spec()});
    ground.create(Kinds::Pod, pinned);
    let written = before_the_roll();
    ground.add_version(NEW);
    let slot = ground.versioned_slot();
    let names = [slot.clone()];
    let readers = driver.readers(&names).await.unwrap().unwrap();
    assert!(readers.iter().any(|reader| reader.name.starts_with("Pod `pinned`")), "{readers:?}");
    ground.roll_versions(&driver, NEW, None).await.unwrap();
    assert_eq!(ground.template_patches(), 1);
    assert_eq!(
        ground.get(Kinds::Deployment)["spec"]["template"]["spec"]["containers"][0]["env"][0]["valueFrom"]
            ["secretKeyRef"]["name"],
        "keys-v1"
    );
    let shown = driver.observe(&names, &ground.fingerprinter).await.unwrap();
    let new = Shows::Slots(vec![(slot.clone(), ground.fingerprinter.of(NEW.as_bytes()))]);
    assert!(shown.iter().all(|replica| replica.shows == new) && shown.len() == 3, "{shown:?}");
    ground.change(Kinds::ConfigMap, "keys.keywheel", |it| it["data"] = head("keys"));
    ground.roll_versions(&driver, OLD, Some(written)).await.unwrap();
    assert_eq!(ground.uids().intersection(&before).count(), 0);
    let held = ground.held().into_iter().filter(|value| value == OLD).count();
    assert_eq!(held, 4, "three pods and the one by hand");
}

#[tokio::test]
async fn a_token_is_shown_to_each_pod() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::Processes { folder: folder.path().into() };
    let ground = Ground::start_with(runtime, StdDuration::ZERO, FASTER);
    let mut object = workload(2);
    let container = &mut object["spec"]["template"]["spec"]["containers"][0];
    container["command"] = json!(["sleep", "60"]);
    container.as_object_mut().unwrap().remove("readinessProbe");
    ground.create(Kinds::Deployment, object);
    ground.until("it is rolled out", async || ground.is_settled(Kinds::Deployment)).await;
    let pods = ground.twin.objects().list(Kinds::Pod, Some(SPACE)).0;
    let mut port = 0;
    for (number, pod) in pods.iter().enumerate() {
        let address = pod["status"]["podIP"].as_str().unwrap();
        let listener = tokio::net::TcpListener::bind((address, port)).await.unwrap();
        port = listener.local_addr().unwrap().port();
        tokio::spawn(answer(listener, number));
    }
    let driver =
        ground.driver(json!({"deployment": "app", "token": {"port": port, "path": "/token"}}));
    let answers = driver.present(&SecretValue::new(NEW.into())).await.unwrap();
    let accepted: Vec<_> = answers.iter().map(|answer| answer.accepted).collect();
    assert_eq!(accepted, [Some(true), Some(false)]);
    let hostile = SecretValue::new(b"a\r\nb".to_vec());
    assert!(driver.present(&hostile).await.is_err());
}

/// Takes the token, if it is that of the first pod.
async fn answer(listener: tokio::net::TcpListener, number: usize) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut chunk = [0; 1024];
            let read = stream.read(&mut chunk).await.unwrap();
            assert!(read > 0);
            request.extend_from_slice(&chunk[..read]);
        }
        let request = String::from_utf8(request).unwrap();
        assert!(request.starts_with("GET /token HTTP/1.1\r\n"));
        assert!(request.contains(&format!("authorization: Bearer {NEW}\r\n")));
        let status = if number == 0 { "200 OK" } else { "401 Unauthorized" };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

#[test]
fn a_configuration_names_one_object() {
    let build = |config: Value| {
        let mut config = config;
        config["namespace"] = json!(SPACE);
        config["cluster"] = json!({"context": "x"});
        let config: Config = serde_json::from_value(config).unwrap();
        config.build(&Context::at("/")).map(|_| ()).map_err(|refusal| refusal.message)
    };
    assert!(build(json!({"deployment": "app"})).is_ok());
    assert!(build(json!({"daemon_set": "app", "token": {"port": 80, "path": "/t"}})).is_ok());
    assert!(build(json!({})).unwrap_err().contains("`deployment`"));
    assert!(build(json!({"deployment": "app", "stateful_set": "app"})).is_err());
    assert!(build(json!({"deployment": "../app"})).is_err());
    assert!(build(json!({"deployment": "app", "token": {"port": 80, "path": "/a b"}})).is_err());
}
