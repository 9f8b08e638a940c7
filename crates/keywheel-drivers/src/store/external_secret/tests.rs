use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keywheel_driver::Severity;
use keywheel_driver::conformance::canary;
use keywheel_driver::store::Accept;
use keywheel_twins::kubernetes::{self as twin, Key, Kind, Objects};
use serde_json::Value;
use tempfile::TempDir;

use super::*;

const NAMESPACE: &str = "shop";

/// What the operator does when it is made to read.
#[derive(Clone, Copy, PartialEq)]
enum Operator {
    Syncs,
    /// It stays ready, and never reads again.
    Sleeps,
    /// It says that it read, and the Secret holds what it held.
    SaysSo,
    Fails,
}

struct Bench {
    twin: twin::Cluster,
    folder: TempDir,
    stop: Arc<AtomicBool>,
    operator: Option<JoinHandle<()>>,
}

impl Bench {
    fn start(operator: Operator) -> Self {
        let twin = twin::Cluster::start().unwrap();
        let folder = TempDir::new().unwrap();
        twin.write_kubeconfig(&folder.path().join("kube")).unwrap();
        fs::write(
            folder.path().join("upstream.env"),
            format!("key={}\nother=theirs\n", canary("old")),
        )
        .unwrap();
        let objects = twin.objects().clone();
        objects.make_namespace(NAMESPACE);
        objects.create(Kind::ExternalSecret, external(), "test").unwrap();
        sync(&objects, &folder.path().join("upstream.env"), true);
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, path) = (Arc::clone(&stop), folder.path().join("upstream.env"));
        let work = std::thread::spawn(move || {
            let mut seen = Value::Null;
            while !stopped.load(Ordering::SeqCst) {
                let mark = object(&objects)["metadata"]["annotations"][FORCE].clone();
                if mark != seen {
                    seen = mark;
                    match operator {
                        Operator::Syncs => sync(&objects, &path, true),
                        Operator::SaysSo => read_at(&objects, "True", "SecretSynced"),
                        Operator::Fails => read_at(&objects, "False", "SecretSyncedError"),
                        Operator::Sleeps => {}
                    }
                }
                std::thread::sleep(StdDuration::from_millis(100));
            }
        });
        Self { twin, folder, stop, operator: Some(work) }
    }

    fn store(&self) -> Arc<dyn Store> {
        let config: Config = serde_json::from_value(json!({
            "namespace": NAMESPACE,
            "name": "app",
            "upstream": { "env_file": { "path": "upstream.env" } },
            "synced_within": "2s",
            "cluster": { "context": twin::ADMIN, "kubeconfig": "kube" },
        }))
        .unwrap();
        config.build(&Context::at(self.folder.path())).unwrap_or_else(|no| panic!("{no}"))
    }

    fn edit(&self, edit: impl FnOnce(&mut Value)) {
        let key = Key::new(Kind::ExternalSecret, NAMESPACE, "app");
        self.twin.objects().change(&key, "test", edit).unwrap();
    }

    fn upstream(&self) -> String {
        fs::read_to_string(self.folder.path().join("upstream.env")).unwrap()
    }

    async fn blocks(&self) -> Vec<String> {
        let found = self.store().preflight(&["key".into()]).await.unwrap();
        let blocks = found.into_iter().filter(|one| one.severity == Severity::Blocks);
        blocks.map(|one| one.message).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.operator.take().map(JoinHandle::join);
    }
}

fn external() -> Value {
    json!({
        "apiVersion": "external-secrets.io/v1",
        "metadata": { "name": "app", "namespace": NAMESPACE },
        "spec": {
            "refreshInterval": "1h",
            "secretStoreRef": { "name": "files", "kind": "SecretStore" },
            "target": { "name": "app" },
            "data": [
                { "secretKey": "key", "remoteRef": { "key": "upstream.env", "property": "key" } },
                { "secretKey": "other", "remoteRef": { "key": "upstream.env", "property": "other" } },
            ],
        },
    })
}

fn object(objects: &Objects) -> Value {
    (*objects.get(&Key::new(Kind::ExternalSecret, NAMESPACE, "app")).unwrap()).clone()
}

/// Does what the operator does: copies every value, and notes that it read.
fn sync(objects: &Objects, upstream: &std::path::Path, ready: bool) {
    let text = fs::read_to_string(upstream).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let data: serde_json::Map<String, Value> =
        pairs.map(|(key, value)| (key.to_owned(), STANDARD.encode(value).into())).collect();
    let key = Key::new(Kind::Secret, NAMESPACE, "app");
    if objects.get(&key).is_none() {
        let secret = json!({ "metadata": { "name": "app", "namespace": NAMESPACE }, "data": data });
        objects.create(Kind::Secret, secret, "external-secrets").unwrap();
    } else {
        objects.change(&key, "external-secrets", |secret| secret["data"] = data.into()).unwrap();
    }
    if ready {
        read_at(objects, "True", "SecretSynced");
    }
}

fn read_at(objects: &Objects, ready: &str, reason: &str) {
    let key = Key::new(Kind::ExternalSecret, NAMESPACE, "app");
    let condition = json!([{ "type": "Ready", "status": ready, "reason": reason }]);
    let at = jiff::Timestamp::now().to_string();
    objects
        .change_status(&key, "external-secrets", |external| {
            external["status"] = json!({ "refreshTime": at, "conditions": condition });
        })
        .unwrap();
}

async fn write(store: &dyn Store, value: &str) -> Result<Written, CallError> {
    let value = SecretValue::new(value.as_bytes().to_vec());
    let edit = Edit { address: "key", accept: Accept::Anything, value: Some(&value) };
    store.write(&[edit]).await
}

#[tokio::test]
async fn h44_a_write_is_done_once_the_secret_holds_what_was_written_upstream() {
    let bench = Bench::start(Operator::Syncs);
    let store = bench.store();
    assert_eq!(bench.blocks().await, [""; 0]);
    let new = canary("new");
    assert!(write(&*store, &new).await.unwrap().changed);
    assert_eq!(bench.upstream(), format!("key={new}\nother=theirs\n"));
    let held = store.read(&["key".into(), "other".into(), "absent".into()]).await.unwrap();
    let held: Vec<_> = held.iter().map(|one| one.as_ref().map(SecretValue::expose)).collect();
    assert_eq!(held, [Some(new.as_bytes()), Some(b"theirs"), None]);
    let forced = bench.twin.faults().writes();
    assert!(!write(&*store, &new).await.unwrap().changed);
    assert_eq!(bench.twin.faults().writes(), forced, "nothing changed, and nobody is made to read");
}

#[tokio::test]
async fn h44_an_operator_that_calls_itself_ready_and_did_not_bring_the_value_is_not_believed() {
    for operator in [Operator::Sleeps, Operator::SaysSo] {
        let bench = Bench::start(operator);
        let Err(CallError::Unknown(why)) = write(&*bench.store(), &canary("new")).await else {
            panic!("the Secret holds the old value")
        };
        assert!(
            !why.contains("kwcanary")
                && why.contains("did not read") | why.contains("something else"),
            "{why}"
        );
    }
}

#[tokio::test]
async fn an_operator_that_fails_is_told_with_its_reason() {
    let bench = Bench::start(Operator::Fails);
    let failed = write(&*bench.store(), &canary("new")).await;
    assert!(matches!(failed, Err(CallError::Unknown(why)) if why.contains("SecretSyncedError")));
    let blocks = bench.blocks().await.join("; ");
    assert!(blocks.contains("is not ready: SecretSyncedError"), "{blocks}");
}

#[tokio::test]
async fn h49_what_would_never_bring_a_new_value_is_refused_before_anything_is_written() {
    let bench = Bench::start(Operator::Syncs);
    let refused = async |edit: fn(&mut Value), why: &str| {
        let kept = object(bench.twin.objects())["spec"].clone();
        bench.edit(edit);
        let blocks = bench.blocks().await.join("; ");
        assert!(blocks.contains(why), "{why}: {blocks}");
        bench.edit(move |external| external["spec"] = kept);
    };
    refused(|it| it["spec"]["refreshPolicy"] = "CreatedOnce".into(), "read once only").await;
    refused(|it| it["spec"]["refreshInterval"] = "0s".into(), "read once only").await;
    refused(|it| it["spec"]["target"]["creationPolicy"] = "None".into(), "makes no Secret").await;
    refused(|it| it["spec"]["target"]["name"] = "elsewhere".into(), "name it as `target`").await;
    refused(|it| it["spec"]["target"]["template"] = json!({ "data": {} }), "template").await;
    refused(|it| it["spec"]["data"] = json!([]), "it makes no key `key`").await;
    assert_eq!(bench.blocks().await, [""; 0]);
}

#[tokio::test]
async fn h65_a_key_that_is_pinned_to_a_version_is_refused() {
    let bench = Bench::start(Operator::Syncs);
    bench.edit(|it| it["spec"]["data"][0]["remoteRef"]["version"] = "3".into());
    let blocks = bench.blocks().await.join("; ");
    assert!(blocks.contains("is pinned to one version"), "{blocks}");
    let refused = write(&*bench.store(), &canary("new")).await;
    assert!(matches!(refused, Err(CallError::Refused(_))));
    assert!(!bench.upstream().contains("-new-"));
}

#[tokio::test]
async fn h61_an_upstream_that_the_operator_does_not_read_is_refused() {
    let bench = Bench::start(Operator::Syncs);
    fs::write(bench.folder.path().join("upstream.env"), "key=another\nother=theirs\n").unwrap();
    let blocks = bench.blocks().await.join("; ");
    assert!(blocks.contains("`key` differs"), "{blocks}");
}

#[tokio::test]
async fn an_operator_that_is_too_old_or_not_there_is_named() {
    let bench = Bench::start(Operator::Syncs);
    let key = Key::new(Kind::ExternalSecret, NAMESPACE, "app");
    bench.twin.objects().delete(&key, &twin::Deletion::now()).unwrap();
    let blocks = bench.blocks().await.join("; ");
    assert!(blocks.contains("is not served as `external-secrets.io/v1`"), "{blocks}");
}

#[tokio::test]
async fn h61_the_secret_that_it_is_brought_from_holds_the_value_too() {
    let bench = Bench::start(Operator::Sleeps);
    let upstream = json!({"metadata": {"name": "source", "namespace": NAMESPACE}, "data": {"key": STANDARD.encode(canary("old"))}});
    bench.twin.objects().create(Kind::Secret, upstream, "test").unwrap();
    let cluster = json!({ "context": twin::ADMIN, "kubeconfig": "kube" });
    let config: Config = serde_json::from_value(json!({
        "namespace": NAMESPACE,
        "name": "app",
        "upstream": { "kubernetes_secret": { "namespace": NAMESPACE, "name": "source", "cluster": cluster } },
        "cluster": cluster,
    }))
    .unwrap();
    let store = config.build(&Context::at(bench.folder.path())).unwrap_or_else(|no| panic!("{no}"));
    let containers = store.containers();
    assert_eq!(containers[0], store.container());
    assert!(containers.len() == 2 && containers[1].contains("source"), "{containers:?}");
    let told = store.whereabouts(&["key".into()]).await.unwrap().unwrap();
    let holds = |name: &str| told.found.iter().any(|one| one.kind == "Secret" && one.name == name);
    assert!(holds("app") && holds("source"), "{told:?}");
}
