//! What is promised of Secrets, before the stand-in of a cluster.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keywheel_driver::conformance::canary;
use keywheel_driver::conformance::store::{self as conformance, Subject};
use keywheel_driver::store::Accept;
use keywheel_twins::fault;
use keywheel_twins::kubernetes::faults::{Class, Fault, Rule as FaultRule};
use keywheel_twins::kubernetes::rbac::Rule;
use keywheel_twins::kubernetes::{self as twin, Key, Kind};
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::object::LAST_APPLIED;
use super::*;
use crate::kubernetes::Head;

const NAMESPACE: &str = "shop";
const NAME: &str = "api-keys";
const BOTH: [Approach; 2] = [Approach::InPlace, Approach::Versioned];

/// A cluster with one Secret, and the stores of it.
struct Bench {
    twin: twin::Cluster,
    folder: TempDir,
}

impl Bench {
    fn start() -> Self {
        let bench = Self::empty();
        let labels = json!({ "team": "shop" });
        let annotations = json!({ "example.com/note": "kept" });
        bench.make(json!({
            "metadata": { "name": NAME, "labels": labels, "annotations": annotations },
            "data": { "OTHER": STANDARD.encode("theirs") },
        }));
        bench
    }

    fn empty() -> Self {
        let twin = twin::Cluster::start().unwrap();
        twin.objects().make_namespace(NAMESPACE);
        let bench = Self { twin, folder: TempDir::new().unwrap() };
        bench.write_kubeconfig();
        bench
    }

    fn write_kubeconfig(&self) {
        self.twin.write_kubeconfig(&self.folder.path().join("kube")).unwrap();
    }

    /// Makes a Secret of a user's own, as `kubectl create` does.
    fn make(&self, mut secret: Value) {
        secret["apiVersion"] = json!("v1");
        secret["kind"] = json!("Secret");
        secret["metadata"]["namespace"] = json!(NAMESPACE);
        self.twin.objects().create(Kind::Secret, secret, "kubectl-create").unwrap();
    }

    fn config(&self, user: &str, approach: Approach) -> Config {
        let cluster = Cluster {
            context: Some(user.into()),
            kubeconfig: Some("kube".into()),
            in_cluster: None,
            id: None,
        };
        Config {
            namespace: NAMESPACE.into(),
            name: NAME.into(),
            approach,
            create: false,
            cluster: Some(cluster),
        }
    }

    fn build(&self, config: &Config, claim: Option<Claim>) -> Arc<dyn Store> {
        let context = Context { claim, ..Context::at(self.folder.path()) };
        config.build(&context).unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    fn store(&self, approach: Approach) -> Arc<dyn Store> {
        self.build(&self.config(twin::ADMIN, approach), None)
    }

    fn store_of(&self, user: &str, approach: Approach, rules: Vec<Rule>) -> Arc<dyn Store> {
        self.twin.add_user(user, rules);
        self.write_kubeconfig();
        self.build(&self.config(user, approach), None)
    }

    fn secret(&self, name: &str) -> Option<Arc<Value>> {
        self.twin.objects().get(&Key::new(Kind::Secret, NAMESPACE, name))
    }

    /// Returns what the Secret itself holds, whoever wrote it.
    fn raw(&self, name: &str, key: &str) -> Option<Vec<u8>> {
        let secret = self.secret(name)?;
        Some(STANDARD.decode(secret["data"][key].as_str()?).unwrap())
    }

    fn edit(&self, manager: &str, mut edit: impl FnMut(&mut Value)) {
        let key = Key::new(Kind::Secret, NAMESPACE, NAME);
        self.twin.objects().change(&key, manager, &mut edit).unwrap();
    }

    fn secrets(&self) -> Vec<String> {
        let (secrets, _) = self.twin.objects().list(Kind::Secret, Some(NAMESPACE));
        secrets.iter().map(|one| one["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }

    fn current(&self) -> String {
        let key = Key::new(Kind::ConfigMap, NAMESPACE, "api-keys.keywheel");
        let head = self.twin.objects().get(&key).unwrap();
        head["data"]["current"].as_str().unwrap().to_owned()
    }

    /// Lets the next change of a kind of object go wrong.
    fn arm(&self, verb: &str, resource: &str, fault: Fault) {
        self.twin.faults().set(vec![FaultRule::first(Class::new(verb, resource), fault)]);
    }

    /// Waits until the fault that was armed has happened.
    async fn struck(&self) {
        for _ in 0..500 {
            if self.twin.faults().unfired().is_empty() {
                return tokio::time::sleep(Duration::from_millis(50)).await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn subject(self, approach: Approach) -> Subject {
        let config = Config { create: true, ..self.config(twin::ADMIN, approach) };
        Subject {
            store: self.build(&config, None),
            other: self.build(&config, None),
            addresses: ["API_KEY", "api-key", "tls.crt", "_x"].map(Into::into).into(),
            uncarriable: vec![vec![b'x'; LARGEST + 1]],
            guard: Box::new(self),
        }
    }
}

fn secret(bytes: &[u8]) -> SecretValue {
    SecretValue::new(bytes.to_vec())
}

async fn set(store: &dyn Store, address: &str, bytes: &[u8]) -> Result<Written, CallError> {
    let value = secret(bytes);
    store.write(&[Edit { address, accept: Accept::Anything, value: Some(&value) }]).await
}

async fn swap(store: &dyn Store, old: &[u8], new: &[u8]) -> Result<Written, CallError> {
    let (old, new) = (secret(old), secret(new));
    let accept = Accept::OneOf(vec![Some(&old)]);
    store.write(&[Edit { address: "OTHER", accept, value: Some(&new) }]).await
}

async fn told(store: &dyn Store, addresses: &[&str]) -> (Vec<String>, Vec<String>) {
    let addresses: Vec<_> = addresses.iter().map(|address| (*address).to_owned()).collect();
    let findings = store.preflight(&addresses).await.unwrap_or_else(|e| panic!("{e}"));
    let (blocks, notes): (Vec<_>, Vec<_>) =
        findings.into_iter().partition(|finding| finding.severity == Severity::Blocks);
    let messages = |findings: Vec<Finding>| findings.into_iter().map(|f| f.message).collect();
    (messages(blocks), messages(notes))
}

fn refusal<T: std::fmt::Debug>(answer: Result<T, CallError>) -> Refusal {
    match answer {
        Err(CallError::Refused(refusal)) => refusal,
        other => panic!("expected a refusal, and got {other:?}"),
    }
}

fn claim_of(installation: &str) -> Claim {
    let text = |text: &str| text.to_owned();
    Claim {
        installation: text(installation),
        folder: text("/srv/shop"),
        environment: text("production"),
        host: text("here"),
        account: text("dana"),
        since: text("2026-01-31T00:00:00Z"),
    }
}

#[tokio::test]
async fn it_conforms_in_place() {
    conformance::every_case(async || Bench::start().subject(Approach::InPlace)).await;
}

#[tokio::test]
async fn it_conforms_over_a_secret_that_it_makes() {
    conformance::every_case(async || Bench::empty().subject(Approach::InPlace)).await;
}

#[tokio::test]
async fn it_conforms_in_versions() {
    conformance::every_case(async || Bench::start().subject(Approach::Versioned)).await;
}

#[tokio::test]
async fn h47_a_write_that_changes_nothing_is_no_request_to_write() {
    for approach in BOTH {
        let bench = Bench::start();
        let store = bench.store(approach);
        set(&*store, "OTHER", b"one").await.unwrap();
        bench.twin.faults().forget();
        for _ in 0..100 {
            assert_eq!(set(&*store, "OTHER", b"one").await, Ok(Written { changed: false }));
        }
        assert_eq!(bench.twin.faults().writes(), 0);
    }
}

#[tokio::test]
async fn h54_an_immutable_secret_is_refused_with_the_way_out_and_kept_in_versions() {
    let bench = Bench::start();
    bench.edit("kubectl-edit", |secret| secret["immutable"] = json!(true));
    let store = bench.store(Approach::InPlace);
    let (blocks, _) = told(&*store, &["OTHER"]).await;
    assert!(blocks.iter().any(|why| why.contains("`approach: versioned`")), "{blocks:?}");
    let refused = refusal(set(&*store, "OTHER", b"new").await);
    assert_eq!((refused.kind, refused.remedy), (RefusalKind::Unsupported, Remedy::Operator));
    assert_eq!(bench.raw(NAME, "OTHER").unwrap(), b"theirs");
    let store = bench.store(Approach::Versioned);
    assert_eq!(told(&*store, &["OTHER"]).await.0, [""; 0]);
    assert_eq!(set(&*store, "OTHER", b"new").await, Ok(Written { changed: true }));
    assert_eq!(bench.raw("api-keys-v1", "OTHER").unwrap(), b"new");
}

#[tokio::test]
async fn h58_no_annotation_ever_holds_a_value() {
    for approach in BOTH {
        let bench = Bench::start();
        let applied = format!(r#"{{"data":{{"OTHER":"{}"}}}}"#, STANDARD.encode("theirs"));
        bench.edit("kubectl-client-side-apply", |secret| {
            secret["metadata"]["annotations"][LAST_APPLIED] = json!(applied);
        });
        let store = bench.store(approach);
        let (blocks, notes) = told(&*store, &["OTHER"]).await;
        assert_eq!(blocks, [""; 0]);
        if approach == Approach::InPlace {
            assert!(notes.iter().any(|note| note.contains(LAST_APPLIED)), "{notes:?}");
        }
        let value = canary("secret");
        set(&*store, "OTHER", value.as_bytes()).await.unwrap();
        for name in bench.secrets() {
            let metadata = bench.secret(&name).unwrap()["metadata"].to_string();
            let encodings = [value.clone(), STANDARD.encode(&value), hex::encode(&value)];
            assert!(encodings.iter().all(|value| !metadata.contains(value)), "{name}");
            assert!(name == NAME || !metadata.contains("last-applied"), "{name}");
        }
        // Only the one that was there, which keywheel leaves as it is.
        assert!(bench.twin.faults().disclosed().iter().all(|one| one.name == LAST_APPLIED));
    }
}

#[tokio::test]
async fn i12_everything_but_the_key_stays_as_it_is() {
    let bench = Bench::start();
    let before = bench.secret(NAME).unwrap();
    let store = bench.store(Approach::InPlace);
    set(&*store, "NEW", b"one").await.unwrap();
    let mut after = (*bench.secret(NAME).unwrap()).clone();
    assert_eq!(after["data"]["NEW"].take(), json!(STANDARD.encode("one")));
    after["data"].as_object_mut().unwrap().remove("NEW");
    for part in ["data", "type"] {
        assert_eq!(after[part], before[part]);
    }
    for part in ["labels", "annotations", "uid"] {
        assert_eq!(after["metadata"][part], before["metadata"][part]);
    }
    let seen = bench.twin.faults().seen();
    let patches = seen.iter().filter(|one| one.verb == "patch").collect::<Vec<_>>();
    assert!(patches.len() == 1 && patches[0].manager == "keywheel", "{patches:?}");
}

#[test]
fn h60_any_key_holds_any_bytes_exactly() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bench = Bench::start();
    let sizes = prop_oneof![6 => 1_usize..80, 3 => 80_usize..4_096, 1 => 200_000_usize..=262_144];
    let values = (sizes, any::<u8>(), any::<[u8; 32]>()).prop_map(|(size, first, seed)| {
        let mut bytes: Vec<u8> = seed.iter().copied().cycle().take(size).collect();
        bytes[0] = first;
        bytes
    });
    let cases =
        Cases { cases: 40, max_shrink_iters: 20, failure_persistence: None, ..Cases::default() };
    let strategy = ("[-_a-zA-Z0-9][-._a-zA-Z0-9]{0,80}", values, any::<bool>());
    let ran = TestRunner::new(cases).run(&strategy, |(key, bytes, versioned)| {
        let approach = if versioned { Approach::Versioned } else { Approach::InPlace };
        let store = bench.store(approach);
        runtime.block_on(async {
            set(&*store, &key, &bytes).await.map_err(|e| TestCaseError::fail(e.to_string()))?;
            let name = if versioned { bench.current() } else { NAME.into() };
            prop_assert!(bench.raw(&name, &key).as_deref() == Some(&bytes[..]), "{}", key);
            let read = store.read(std::slice::from_ref(&key)).await;
            let read = read.map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert!(read[0].as_ref().is_some_and(|value| value.expose() == bytes));
            let edit = Edit { address: &key, accept: Accept::Anything, value: None };
            prop_assert!(store.write(&[edit]).await.is_ok());
            Ok(())
        })
    });
    ran.unwrap_or_else(|error| panic!("{error}"));
    for key in ["..", ".", "..data", "a/b", "a~b", "a b", "", "ü"] {
        let refused = runtime.block_on(set(&*bench.store(Approach::InPlace), key, b"x"));
        assert_eq!(refusal(refused).kind, RefusalKind::Unsupported, "{key}");
    }
}

#[tokio::test]
async fn h63_what_somebody_else_writes_to_another_key_stays() {
    let bench = Bench::start();
    let store = bench.store(Approach::InPlace);
    let mut last = 0_u64;
    let key = Key::new(Kind::Secret, NAMESPACE, NAME);
    let every = Duration::from_micros(500);
    let rival = bench.twin.rival("kubectl-patch", key, every, move |secret| {
        let held = secret["data"]["COUNT"].as_str().and_then(|text| STANDARD.decode(text).ok());
        let held = held.and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok());
        assert_eq!(held.unwrap_or(0), last, "what was counted before is lost");
        last += 1;
        secret["data"]["COUNT"] = json!(STANDARD.encode(last.to_string()));
    });
    let rival = rival.unwrap();
    for round in 0..40_u32 {
        let text = round.to_string();
        for _ in 0..100 {
            match set(&*store, "OTHER", text.as_bytes()).await {
                Err(CallError::Refused(Refusal { remedy: Remedy::Retry { .. }, .. })) => {}
                written => {
                    assert!(written.is_ok(), "{written:?}");
                    break;
                }
            }
        }
        assert_eq!(bench.raw(NAME, "OTHER").unwrap(), text.as_bytes());
    }
    let counted = rival.writes();
    assert!(counted > 20, "{counted}");
    std::thread::sleep(Duration::from_millis(2));
    let later = rival.writes();
    drop(rival);
    let held = String::from_utf8(bench.raw(NAME, "COUNT").unwrap()).unwrap();
    assert!(held.parse::<usize>().unwrap() >= later, "{held} of {later}");
}

#[tokio::test]
async fn h64_a_write_that_lands_late_loses_against_the_one_after_it() {
    let bench = Bench::start();
    let store = bench.store(Approach::InPlace);
    let late = fault::Fault::LateLanding { after_ms: 400 };
    bench.arm("patch", "secrets", Fault::Http(late));
    assert!(matches!(swap(&*store, b"theirs", b"late").await, Err(CallError::Unknown(_))));
    assert_eq!(swap(&*store, b"theirs", b"next").await, Ok(Written { changed: true }));
    for _ in 0..100 {
        if bench.twin.faults().has_landed() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(bench.twin.faults().has_landed() && bench.twin.faults().unfired().is_empty());
    assert_eq!(bench.raw(NAME, "OTHER").unwrap(), b"next");
}

#[tokio::test]
async fn h40_a_write_whose_answer_is_lost_is_unknown_and_is_found_done() {
    let applied = |code| fault::Fault::Status {
        code,
        retry_after: None,
        body: fault::Echo::Json,
        applied: true,
    };
    for approach in BOTH {
        let requests: &[(&str, &str)] = match approach {
            Approach::InPlace => &[("patch", "secrets")],
            Approach::Versioned => &[("create", "secrets"), ("create", "configmaps")],
        };
        for (verb, resource) in requests {
            for fault in [fault::Fault::Cut, applied(500), applied(504), fault::Fault::TimeoutAfter]
            {
                let bench = Bench::start();
                let store = bench.store(approach);
                bench.arm(verb, resource, Fault::Http(fault.clone()));
                let lost = tokio::select! {
                    answer = swap(&*store, b"theirs", b"new") => Some(answer),
                    () = bench.struck(), if fault == fault::Fault::TimeoutAfter => None,
                };
                let is_unknown = matches!(lost, None | Some(Err(CallError::Unknown(_))));
                assert!(is_unknown, "{verb} {resource} {fault:?}: {lost:?}");
                assert!(bench.twin.faults().unfired().is_empty(), "{verb} {resource} {fault:?}");
                assert!(swap(&*store, b"theirs", b"new").await.is_ok());
                let values = store.read(&["OTHER".into()]).await.unwrap();
                assert!(values[0].as_ref().is_some_and(|value| value.expose() == b"new"));
                let made = bench.secrets().len() - 1;
                assert_eq!(made, usize::from(approach == Approach::Versioned), "{fault:?}");
            }
        }
    }
}

#[tokio::test]
async fn each_answer_that_is_no_success_is_told_for_what_it_is() {
    use RefusalKind::{NotFound, Permission, RateLimited, Unavailable, Unsupported};
    for (code, expected) in [
        (401, Some((Permission, false))),
        (403, Some((Permission, false))),
        (404, Some((NotFound, false))),
        (410, Some((Unavailable, true))),
        (422, Some((Unsupported, false))),
        (429, Some((RateLimited, true))),
        (500, None),
        (503, None),
        (504, None),
    ] {
        for html in [false, true] {
            let bench = Bench::start();
            let store = bench.store(Approach::InPlace);
            let body = if html { fault::Echo::Html } else { fault::Echo::EchoKey };
            let retry_after = (code == 429).then(|| "7".into());
            let fault = fault::Fault::Status { code, retry_after, body, applied: false };
            // Where nobody knows who asks, it is asked once more with a login that is read again.
            let times = if code == 401 { 2 } else { 1 };
            let class = Class::new("patch", "secrets");
            let fault = FaultRule::times(class, times, Fault::Http(fault));
            bench.twin.faults().set(vec![fault]);
            let answer = set(&*store, "OTHER", b"kwcanary-written").await;
            let told = format!("{answer:?}");
            assert!(!told.contains("kwcanary"), "{told}");
            match (answer, expected) {
                (Err(CallError::Refused(refusal)), Some((kind, may_pass))) => {
                    assert_eq!(refusal.kind, kind, "{code}");
                    let passes = matches!(refusal.remedy, Remedy::Retry { .. });
                    assert_eq!(passes, may_pass, "{code}");
                    if code == 429 {
                        let after = Some(keywheel_core::time::Span::seconds(7));
                        assert_eq!(refusal.remedy, Remedy::Retry { after });
                    }
                }
                (Err(CallError::Unknown(_)), None) => {}
                (answer, _) => panic!("{code}: {answer:?}"),
            }
            assert_eq!(bench.raw(NAME, "OTHER").unwrap(), b"theirs", "{code}");
            assert!(set(&*store, "OTHER", b"next").await.is_ok(), "{code}");
        }
    }
}

#[tokio::test]
async fn a_storm_of_conflicts_passes_or_is_told_as_one() {
    let bench = Bench::start();
    let store = bench.store(Approach::InPlace);
    let storm = |times| {
        let class = Class::new("patch", "secrets");
        bench.twin.faults().set(vec![FaultRule::times(class, times, Fault::status(409))]);
    };
    storm(5);
    assert_eq!(swap(&*store, b"theirs", b"new").await, Ok(Written { changed: true }));
    storm(100);
    let refused = refusal(swap(&*store, b"new", b"newer").await);
    assert_eq!(refused.remedy, Remedy::Retry { after: None });
    assert_eq!(bench.raw(NAME, "OTHER").unwrap(), b"new");
}

#[tokio::test]
async fn h61_a_secret_that_is_written_between_look_and_write_is_judged_anew() {
    let bench = Bench::start();
    let store = bench.store(Approach::InPlace);
    // Between the look and the patch somebody else sets the key.
    let objects = bench.twin.objects().clone();
    let class = Class::new("patch", "secrets");
    let slow = fault::Fault::LateLanding { after_ms: 300 };
    bench.twin.faults().set(vec![FaultRule::first(class, Fault::Http(slow))]);
    assert!(matches!(swap(&*store, b"theirs", b"ours").await, Err(CallError::Unknown(_))));
    let key = Key::new(Kind::Secret, NAMESPACE, NAME);
    let by_hand = |secret: &mut Value| secret["data"]["OTHER"] = json!(STANDARD.encode("by hand"));
    objects.change(&key, "dana", by_hand).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(bench.raw(NAME, "OTHER").unwrap(), b"by hand");
    let refused = refusal(swap(&*store, b"theirs", b"ours").await);
    assert_eq!(refused.kind, RefusalKind::Conflict);
    assert!(refused.message.contains("written by `dana`"), "{refused}");
}

#[tokio::test]
async fn a_look_that_is_behind_writes_nothing_over() {
    for approach in BOTH {
        let bench = Bench::start();
        let store = bench.store(approach);
        swap(&*store, b"theirs", b"one").await.unwrap();
        let stale = Fault::Http(fault::Fault::DelayedList { for_ms: 3_600_000 });
        let (resource, name) = match approach {
            Approach::InPlace => ("secrets", NAME),
            Approach::Versioned => ("configmaps", "api-keys.keywheel"),
        };
        let class = Class::new("get", resource).named(name);
        bench.twin.faults().set(vec![FaultRule::times(class, 1, stale)]);
        // What it sees is what is expected, and it is not there any more. An hour ago there was no Secret at all.
        let (theirs, two) = (secret(b"theirs"), secret(b"two"));
        let accept = Accept::OneOf(vec![Some(&theirs), None]);
        let edit = Edit { address: "OTHER", accept, value: Some(&two) };
        let refused = refusal(store.write(&[edit]).await);
        assert!(bench.twin.faults().unfired().is_empty());
        assert!(matches!(refused.kind, RefusalKind::Conflict | RefusalKind::NotFound), "{refused}");
        let values = store.read(&["OTHER".into()]).await.unwrap();
        assert!(values[0].as_ref().is_some_and(|value| value.expose() == b"one"));
    }
}

#[tokio::test]
async fn h61_a_claim_that_is_not_kept_is_none() {
    let bench = Bench::start();
    let config = bench.config(twin::ADMIN, Approach::InPlace);
    let store = bench.build(&config, Some(claim_of("dana")));
    bench.arm("patch", "secrets", Fault::DropsAnnotation(CLAIM.into()));
    let refused = refusal(store.claims().unwrap().take().await);
    assert!(refused.message.contains("did not keep the claim"), "{refused}");
    assert_eq!(store.claims().unwrap().owner().await, Ok(Owner::Nobody));
}

#[tokio::test]
async fn a_secret_that_was_made_anew_is_written_for_what_it_holds_now() {
    let bench = Bench::start();
    let store = bench.store(Approach::InPlace);
    let before = bench.secret(NAME).unwrap()["metadata"]["uid"].clone();
    bench.arm("patch", "secrets", Fault::Recreated);
    assert_eq!(swap(&*store, b"theirs", b"new").await, Ok(Written { changed: true }));
    assert_ne!(bench.secret(NAME).unwrap()["metadata"]["uid"], before);
    assert_eq!(bench.raw(NAME, "OTHER").unwrap(), b"new");
    bench
        .twin
        .objects()
        .delete(&Key::new(Kind::Secret, NAMESPACE, NAME), &Default::default())
        .unwrap();
    let refused = refusal(swap(&*store, b"new", b"newer").await);
    assert_eq!(refused.kind, RefusalKind::NotFound);
    assert!(refused.message.contains("`create: true`"), "{refused}");
    assert!(bench.secret(NAME).is_none(), "what somebody deleted is not made again");
}

#[tokio::test]
async fn h19_what_the_account_may_not_do_is_named_before_anything_changes() {
    let bench = Bench::start();
    let reads = Rule::new(&["get"], "", &["secrets"]).named(&[NAME]);
    let identifies = identifies();
    let store = bench.store_of("reader", Approach::InPlace, vec![reads.clone()]);
    let (blocks, _) = told(&*store, &["OTHER"]).await;
    let said = [
        "cluster `reader` does not allow `get` of `namespaces/kube-system`",
        "cluster `reader` does not allow `patch` of `secrets/api-keys` in namespace `shop`",
    ];
    assert_eq!(blocks, said);
    let writes = Rule::new(&["get", "patch"], "", &["secrets"]).named(&[NAME]);
    bench.twin.set_rules("reader", vec![writes, identifies.clone()]);
    assert_eq!(told(&*store, &["OTHER"]).await.0, [""; 0]);
    assert_eq!(swap(&*store, b"theirs", b"new").await, Ok(Written { changed: true }));
    bench.twin.set_rules("reader", vec![reads, identifies]);
    let refused = refusal(swap(&*store, b"new", b"newer").await);
    assert_eq!(refused.kind, RefusalKind::Permission);
    assert!(refused.message.contains("patch of `secrets/api-keys`"), "{refused}");
    let seen = bench.twin.faults().seen();
    assert!(
        seen.iter().all(|one| one.resource != "secrets" || !["list", "watch"].contains(&one.verb))
    );
}

fn identifies() -> Rule {
    Rule::new(&["get"], "", &["namespaces"]).named(&["kube-system"]).in_namespace("kube-system")
}

#[tokio::test]
async fn the_guides_rules_are_enough_for_versions_and_without_a_list_old_ones_stay() {
    let bench = Bench::start();
    let secrets = Rule::new(&["get", "create", "delete"], "", &["secrets"]);
    let makes = Rule::new(&["create"], "", &["configmaps"]);
    let head = Rule::new(&["get", "patch"], "", &["configmaps"]).named(&["api-keys.keywheel"]);
    let marks = Rule::new(&["patch"], "", &["secrets"]).named(&[NAME]);
    let rules = vec![secrets, makes, head, marks, identifies()];
    let store = bench.store_of("narrow", Approach::Versioned, rules.clone());
    let (blocks, notes) = told(&*store, &["OTHER"]).await;
    assert_eq!(blocks, [""; 0]);
    assert_eq!(notes.len(), 11, "{notes:?}");
    assert!(notes.iter().all(|note| note.ends_with("so that old versions stay")), "{notes:?}");
    swap(&*store, b"theirs", b"one").await.unwrap();
    swap(&*store, b"one", b"two").await.unwrap();
    assert_eq!(refusal(store.clean_up().await).kind, RefusalKind::Permission);
    let lists = [
        ("", &["pods", "serviceaccounts", "replicationcontrollers"][..]),
        ("batch", &["jobs", "cronjobs"]),
        ("networking.k8s.io", &["ingresses"]),
    ];
    let apps = ["deployments", "statefulsets", "daemonsets", "replicasets", "controllerrevisions"];
    let lists = lists.into_iter().chain([("apps", &apps[..])]);
    let lists = lists.map(|(group, resources)| Rule::new(&["list"], group, resources));
    bench.twin.set_rules("narrow", rules.into_iter().chain(lists).collect());
    assert_eq!(told(&*store, &["OTHER"]).await, (vec![], vec![]));
    assert_eq!(store.clean_up().await.unwrap(), [""; 0]);
    assert_eq!(bench.secrets(), [NAME, "api-keys-v2"]);
}

#[tokio::test]
async fn h19_an_admission_webhook_has_its_say_before_anything_changes() {
    for approach in BOTH {
        let bench = Bench::start();
        let store = bench.store(approach);
        let message =
            "admission webhook \"policy.example.com\" denied the request: kwcanary-5e1f is weak";
        let refused = Fault::Refused { code: 403, message: message.into() };
        let verb = if approach == Approach::InPlace { "patch" } else { "create" };
        let class = Class::new(verb, "secrets");
        bench.twin.faults().set(vec![FaultRule::every(class, refused)]);
        let (blocks, _) = told(&*store, &["OTHER"]).await;
        assert_eq!(blocks.len(), 1, "{blocks:?}");
        assert!(blocks[0].contains("webhook `policy.example.com`"), "{blocks:?}");
        let refused = refusal(set(&*store, "OTHER", b"new").await);
        for told in [blocks[0].clone(), format!("{refused:?}")] {
            assert!(!told.contains("kwcanary"), "{told}");
        }
        assert_eq!(bench.twin.faults().writes(), 1, "only the write itself, which was refused");
        assert_eq!(bench.raw(NAME, "OTHER").unwrap(), b"theirs");
    }
}

#[tokio::test]
async fn a_mistyped_key_is_an_error_with_the_one_that_was_meant() {
    for approach in BOTH {
        let bench = Bench::start();
        bench.edit("kubectl-patch", |s| s["data"]["OPENAI_API_KEY"] = json!(STANDARD.encode("a")));
        let config = bench.config(twin::ADMIN, approach);
        let store = bench.build(&config, None);
        let missing = async |store: &dyn Store, key: &str| {
            let found = store.missing(&[key.to_owned()]).await.unwrap();
            found.into_iter().map(|f| (f.severity, f.message)).collect::<Vec<_>>()
        };
        assert_eq!(missing(&*store, "OPENAI_API_KEY").await, []);
        for (typed, meant) in [("OPENAI_APIKEY", true), ("openai-api-key", true), ("JWT", false)] {
            let found = missing(&*store, typed).await;
            assert_eq!(found.len(), 1);
            let (severity, message) = &found[0];
            assert_eq!(*severity, Severity::Blocks);
            let suggests = message.contains("did you mean `OPENAI_API_KEY`?");
            assert_eq!(suggests, meant, "{message}");
        }
        let store = bench.build(&Config { create: true, ..config }, None);
        assert_eq!(missing(&*store, "JWT").await, []);
    }
}

#[tokio::test]
async fn h61_a_secret_that_something_else_makes_is_refused_with_the_way_out() {
    for (kind, says) in [
        ("ExternalSecret", "`external_secret`"),
        ("SealedSecret", "seal each new value"),
        ("VaultStaticSecret", "in Vault"),
    ] {
        for approach in BOTH {
            let bench = Bench::start();
            bench.edit("controller", |secret| {
                secret["metadata"]["ownerReferences"] = json!([{
                    "apiVersion": "example.com/v1", "kind": kind, "name": "keys", "uid": "1", "controller": true,
                }]);
            });
            let (blocks, _) = told(&*bench.store(approach), &["OTHER"]).await;
            assert_eq!(blocks.len(), 1, "{blocks:?}");
            assert!(blocks[0].contains(&format!("{kind} `keys`")), "{blocks:?}");
            assert!(blocks[0].contains(says), "{blocks:?}");
        }
    }
}

#[tokio::test]
async fn h61_what_an_operator_makes_is_known_without_an_owner_too() {
    type Mark = fn(&mut Value);
    let edits: [(&str, Mark, &str); 3] = [
        (
            "cert-manager-certificates-issuing",
            |s| s["metadata"]["annotations"]["cert-manager.io/certificate-name"] = json!("web"),
            "Certificate `web`",
        ),
        (
            "externalsecrets.external-secrets.io/app",
            |s| s["data"]["FROM"] = json!("YQ=="),
            "an ExternalSecret",
        ),
        (
            "other",
            |s| s["metadata"]["labels"]["reconcile.external-secrets.io/managed"] = json!("true"),
            "an ExternalSecret",
        ),
    ];
    for (manager, edit, maker) in edits {
        let bench = Bench::start();
        bench.edit(manager, edit);
        for approach in BOTH {
            let (blocks, _) = told(&*bench.store(approach), &["OTHER"]).await;
            assert!(blocks.len() == 1 && blocks[0].contains(maker), "{blocks:?}");
        }
    }
}

#[tokio::test]
async fn h49_a_key_that_is_set_from_git_is_refused_and_its_neighbour_is_noted() {
    for (manager, deployer) in [
        ("argocd-controller", "Argo CD"),
        ("kustomize-controller", "Flux"),
        ("helm", "Helm"),
        ("Terraform", "Terraform"),
    ] {
        let bench = Bench::start();
        bench.edit(manager, |secret| {
            secret["data"]["FROM_GIT"] = json!(STANDARD.encode("in git"));
            secret["metadata"]["labels"]["argocd.argoproj.io/instance"] = json!("shop");
        });
        let store = bench.store(Approach::InPlace);
        let (blocks, _) = told(&*store, &["FROM_GIT"]).await;
        assert_eq!(blocks.len(), 1, "{blocks:?}");
        assert!(
            blocks[0].contains(&format!(
                "`FROM_GIT` of Secret `shop/api-keys` of cluster `admin` is set by {deployer}"
            )),
            "{blocks:?}"
        );
        let (blocks, notes) = told(&*store, &["OTHER"]).await;
        assert_eq!(blocks, [""; 0]);
        assert!(
            notes.iter().any(|note| note.contains(&format!("is deployed by {deployer}"))),
            "{notes:?}"
        );
    }
    let bench = Bench::start();
    bench.edit("backup-operator", |s| s["data"]["OTHER"] = json!(STANDARD.encode("x")));
    let (blocks, notes) = told(&*bench.store(Approach::InPlace), &["OTHER"]).await;
    assert_eq!(blocks, [""; 0]);
    assert!(notes[0].contains("last written by `backup-operator`"), "{notes:?}");
}

#[tokio::test]
async fn h61_a_secret_of_another_installation_is_refused_until_it_is_taken_over() {
    for approach in BOTH {
        let bench = Bench::start();
        let config = bench.config(twin::ADMIN, approach);
        let store = |name: &str| bench.build(&config, Some(claim_of(name)));
        let (dana, alex) = (store("dana"), store("alex"));
        let (danas, alexs) = (dana.claims().unwrap(), alex.claims().unwrap());
        assert_eq!(danas.owner().await, Ok(Owner::Nobody));
        assert_eq!(danas.take().await, Ok(true));
        assert_eq!(danas.take().await, Ok(false));
        assert_eq!(danas.owner().await, Ok(Owner::Us));
        assert_eq!(alexs.owner().await, Ok(Owner::Other(Box::new(claim_of("dana")))));
        assert_eq!(refusal(alexs.take().await).kind, RefusalKind::Permission);
        assert_eq!(set(&*dana, "OTHER", b"one").await, Ok(Written { changed: true }));
        let refused = refusal(set(&*alex, "OTHER", b"two").await);
        assert!(refused.message.contains("belongs to another installation"), "{refused}");
        let (blocks, _) = told(&*alex, &["OTHER"]).await;
        assert!(blocks[0].contains("belongs to another installation"), "{blocks:?}");
        assert_eq!(alexs.release().await, Ok(()));
        assert_eq!(danas.owner().await, Ok(Owner::Us), "only one's own claim is given back");
        assert_eq!(alexs.take_over().await, Ok(()));
        assert_eq!(refusal(set(&*dana, "OTHER", b"three").await).kind, RefusalKind::Permission);
        assert_eq!(set(&*alex, "OTHER", b"two").await, Ok(Written { changed: true }));
        assert_eq!(alexs.release().await, Ok(()));
        assert_eq!(danas.owner().await, Ok(Owner::Nobody));
        let values = dana.read(&["OTHER".into()]).await.unwrap();
        assert!(values[0].as_ref().is_some_and(|value| value.expose() == b"two"));
    }
}

#[tokio::test]
async fn a_claim_that_cannot_be_read_blocks() {
    for text in ["", "{}", r#"{"keywheel_claim": 2}"#] {
        let bench = Bench::start();
        bench.edit("kubectl-annotate", |secret| {
            secret["metadata"]["annotations"][CLAIM] = json!(text);
        });
        let config = bench.config(twin::ADMIN, Approach::InPlace);
        let store = bench.build(&config, Some(claim_of("dana")));
        let refused = refusal(set(&*store, "OTHER", b"one").await);
        assert!(refused.message.contains("cannot be read"), "{refused}");
    }
}

#[tokio::test]
async fn a_cluster_is_known_by_itself_and_not_by_its_name() {
    let bench = Bench::start();
    let store = bench.store(Approach::InPlace);
    let first = store.identity().await.unwrap().unwrap();
    assert_eq!(first.id, bench.twin.identity());
    let other = Bench::start();
    let pin = other.store(Approach::InPlace).identity().await.unwrap().unwrap();
    assert_ne!(pin, first, "another cluster by the same name of a context");
    let rules = vec![Rule::new(&["get", "patch"], "", &["secrets"])];
    let refused = refusal(bench.store_of("narrow", Approach::InPlace, rules).identity().await);
    assert_eq!(refused.kind, RefusalKind::Permission);
    assert!(refused.message.contains("`get` of that one namespace"), "{refused}");
}

#[tokio::test]
async fn a_cluster_that_cannot_be_reached_is_refused_and_not_unknown() {
    let bench = Bench::start();
    let config = bench.config("elsewhere", Approach::InPlace);
    let refused = refusal(set(&*bench.build(&config, None), "OTHER", b"one").await);
    assert_eq!(refused.kind, RefusalKind::Unavailable);
    let file = bench.folder.path().join("kube");
    let secure = std::fs::read_to_string(&file)
        .unwrap()
        .replace(&bench.twin.url(), "https://127.0.0.1:PORT");
    let port = bench.twin.url().rsplit_once(':').unwrap().1.to_owned();
    std::fs::write(&file, secure.replace("PORT", &port)).unwrap();
    let refused = refusal(set(&*bench.store(Approach::InPlace), "OTHER", b"one").await);
    assert_eq!(refused.kind, RefusalKind::Unavailable);
    assert!(refused.message.contains("the certificate or protocol was not accepted"), "{refused}");
    let config = bench.config("mistyped", Approach::InPlace);
    let refused = refusal(set(&*bench.build(&config, None), "OTHER", b"one").await);
    assert_eq!(refused.kind, RefusalKind::Local);
    assert!(refused.message.contains("has no context of that name"), "{refused}");
    assert_eq!(bench.twin.faults().seen().len(), 0, "the current context is never used");
}

#[tokio::test]
async fn a_version_is_immutable_and_the_way_back_names_the_former_one() {
    let bench = Bench::start();
    bench.edit("argocd-controller", |secret| {
        secret["metadata"]["labels"]["argocd.argoproj.io/instance"] = json!("shop");
    });
    let store = bench.store(Approach::Versioned);
    let before = bench.secret(NAME).unwrap();
    swap(&*store, b"theirs", b"one").await.unwrap();
    swap(&*store, b"one", b"two").await.unwrap();
    assert_eq!(bench.secret(NAME).unwrap()["data"], before["data"]);
    assert_eq!(bench.secrets(), [NAME, "api-keys-v1", "api-keys-v2"]);
    let made = bench.secret("api-keys-v2").unwrap();
    assert_eq!(made["immutable"], json!(true));
    assert_eq!(
        made["metadata"]["labels"],
        json!({ "team": "shop" }),
        "a deployer prunes what it marks"
    );
    assert_eq!(made["metadata"]["annotations"]["example.com/note"], json!("kept"));
    swap(&*store, b"two", b"one").await.unwrap();
    assert_eq!(bench.current(), "api-keys-v1");
    swap(&*store, b"one", b"theirs").await.unwrap();
    assert_eq!(bench.current(), NAME);
    assert_eq!(bench.secrets().len(), 3, "the way back makes no new one");
    let head = Head::read(&cluster_of(&bench), NAMESPACE, NAME).await.unwrap();
    assert_eq!(head.known, [NAME, "api-keys-v1", "api-keys-v2"]);
}

fn cluster_of(bench: &Bench) -> Kubernetes {
    let config = bench.config(twin::ADMIN, Approach::Versioned);
    Kubernetes::new(config.cluster.as_ref(), &Context::at(bench.folder.path())).unwrap()
}

fn head_key() -> Key {
    Key::new(Kind::ConfigMap, NAMESPACE, "api-keys.keywheel")
}

#[tokio::test]
async fn h63_versions_whose_head_is_lost_are_not_begun_anew_from_values_that_are_long_gone() {
    let bench = Bench::start();
    bench.edit("kubectl-patch", |s| s["data"]["SIBLING"] = json!(STANDARD.encode("old")));
    let store = bench.store(Approach::Versioned);
    set(&*store, "SIBLING", b"new").await.unwrap();
    bench.twin.objects().delete(&head_key(), &Default::default()).unwrap();
    let (blocks, _) = told(&*store, &["OTHER"]).await;
    assert!(blocks.iter().any(|why| why.contains("is gone: restore that")), "{blocks:?}");
    let refused = refusal(swap(&*store, b"theirs", b"one").await);
    assert_eq!((refused.kind, refused.remedy), (RefusalKind::NotFound, Remedy::Operator));
    let claimed =
        bench.build(&bench.config(twin::ADMIN, Approach::Versioned), Some(claim_of("dana")));
    assert!(claimed.claims().unwrap().take().await.is_err(), "a claim makes none anew either");
    let spec = json!({ "tls": [{ "hosts": ["x"], "secretName": "api-keys-v1" }] });
    let ingress = json!({ "metadata": { "name": "web", "namespace": NAMESPACE }, "spec": spec });
    bench.twin.objects().create(Kind::Ingress, ingress, "test").unwrap();
    let places = store.whereabouts(&["SIBLING".to_owned()]).await.unwrap().unwrap().found;
    let places = places.iter().map(|one| format!("{} {}: {}", one.kind, one.name, one.how));
    let unknown = "holds a version, and it is not known which one is current";
    let expected = [
        "ConfigMap api-keys.keywheel: is gone, and named the current version: `keywheel check` says how it is restored".into(),
        format!("Secret api-keys: {unknown}"),
        format!("Secret api-keys-v1: {unknown}"),
        "Ingress web: names `api-keys-v1`".into(),
    ];
    assert_eq!(places.collect::<Vec<_>>(), expected);
    let head = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "api-keys.keywheel", "namespace": NAMESPACE },
        "data": { "current": "api-keys-v1", "last": "1" },
    });
    bench.twin.objects().create(Kind::ConfigMap, head, "kubectl-create").unwrap();
    swap(&*store, b"theirs", b"one").await.unwrap();
    assert_eq!(bench.current(), "api-keys-v2");
    assert_eq!(bench.raw("api-keys-v2", "SIBLING").unwrap(), b"new");
}

#[tokio::test]
async fn h61_keys_that_are_read_from_versions_are_not_written_in_place() {
    let bench = Bench::start();
    swap(&*bench.store(Approach::Versioned), b"theirs", b"one").await.unwrap();
    let (blocks, _) = told(&*bench.store(Approach::InPlace), &["OTHER"]).await;
    assert!(blocks.iter().any(|why| why.contains("set `approach: versioned`")), "{blocks:?}");
}

#[tokio::test]
async fn what_the_head_names_counts_only_where_it_is_a_version() {
    let bench = Bench::start();
    bench.make(
        json!({ "metadata": { "name": "payments" }, "data": { "OTHER": STANDARD.encode("a") } }),
    );
    let store = bench.store(Approach::Versioned);
    swap(&*store, b"theirs", b"one").await.unwrap();
    let name = |current: &str| {
        let edit = |head: &mut Value| head["data"]["current"] = json!(current);
        bench.twin.objects().change(&head_key(), "kubectl-edit", edit).unwrap();
    };
    name("payments");
    for refused in [
        refusal(store.read(&["OTHER".into()]).await.map(|values| values.len())),
        refusal(set(&*store, "OTHER", b"two").await),
    ] {
        assert_eq!(refused.kind, RefusalKind::Conflict);
        assert!(refused.message.contains("names Secret `payments`"), "{refused}");
    }
    name("api-keys-v1");
    assert_eq!(swap(&*store, b"one", b"two").await, Ok(Written { changed: true }));
}

#[tokio::test]
async fn a_current_version_that_somebody_deleted_is_told_with_the_way_out() {
    let bench = Bench::start();
    let store = bench.store(Approach::Versioned);
    swap(&*store, b"theirs", b"one").await.unwrap();
    swap(&*store, b"one", b"two").await.unwrap();
    let delete = |name: &str| {
        let key = Key::new(Kind::Secret, NAMESPACE, name);
        bench.twin.objects().delete(&key, &Default::default()).unwrap();
    };
    delete("api-keys-v2");
    let refused = refusal(set(&*store, "OTHER", b"three").await);
    assert_eq!(refused.kind, RefusalKind::NotFound);
    let kube = bench.folder.path().join("kube");
    let patch = |name: &str| {
        format!(
            "current with `kubectl --kubeconfig {} --context admin -n shop patch configmap api-keys.keywheel --type merge --patch '{{\"data\":{{\"current\":\"{name}\"}}}}'`",
            kube.display()
        )
    };
    let says = format!("`api-keys-v1`, `api-keys` is there: make one {}", patch("api-keys-v1"));
    assert!(refused.message.contains(&says), "{refused}");
    delete("api-keys-v1");
    delete(NAME);
    let refused = refusal(set(&*store, "OTHER", b"three").await);
    let says = format!("make Secret `api-keys` with its values, and then {}", patch(NAME));
    assert!(refused.message.contains(&says), "{refused}");
    bench
        .make(json!({ "metadata": { "name": NAME }, "data": { "OTHER": STANDARD.encode("two") } }));
    let edit = |head: &mut Value| head["data"]["current"] = json!(NAME);
    bench.twin.objects().change(&head_key(), "kubectl-patch", edit).unwrap();
    swap(&*store, b"two", b"three").await.unwrap();
    assert_eq!(bench.current(), "api-keys-v3", "no number is given twice");
}

#[tokio::test]
async fn h65_the_number_of_a_version_is_given_once() {
    let bench = Bench::start();
    let store = bench.store(Approach::Versioned);
    swap(&*store, b"theirs", b"one").await.unwrap();
    swap(&*store, b"one", b"theirs").await.unwrap();
    assert_eq!(store.clean_up().await.unwrap(), [""; 0]);
    assert_eq!(bench.secrets(), [NAME]);
    swap(&*store, b"theirs", b"two").await.unwrap();
    assert_eq!(bench.current(), "api-keys-v2");
}

#[tokio::test]
async fn a_version_that_was_changed_on_its_way_is_not_made_current() {
    let bench = Bench::start();
    let store = bench.store(Approach::Versioned);
    bench.arm("create", "secrets", Fault::DropsAnnotation("keywheel.dev/version-of".into()));
    let refused = refusal(swap(&*store, b"theirs", b"one").await);
    assert!(refused.message.contains("made something else of a new version"), "{refused}");
    assert!(bench.twin.objects().get(&head_key()).is_none());
    assert_eq!(bench.secrets(), [NAME]);
    assert_eq!(swap(&*store, b"theirs", b"one").await, Ok(Written { changed: true }));
}

#[tokio::test]
async fn typed_secrets_are_tried_out_as_what_they_are() {
    for approach in BOTH {
        for (kind, key, data) in [
            ("kubernetes.io/tls", "tls.key", json!({ "tls.crt": "YQ==", "tls.key": "YQ==" })),
            (
                "kubernetes.io/dockerconfigjson",
                ".dockerconfigjson",
                json!({ ".dockerconfigjson": STANDARD.encode("{}") }),
            ),
        ] {
            let bench = Bench::empty();
            bench.make(json!({ "metadata": { "name": NAME }, "type": kind, "data": data }));
            assert_eq!(told(&*bench.store(approach), &[key]).await.0, [""; 0], "{kind}");
        }
    }
}

#[tokio::test]
async fn an_answer_404_of_something_else_is_no_proof_of_absence() {
    for approach in BOTH {
        let bench = Bench::empty();
        let config = Config { create: true, ..bench.config(twin::ADMIN, approach) };
        let store = bench.build(&config, None);
        let html = |code| fault::Fault::Status {
            code,
            retry_after: None,
            body: fault::Echo::Html,
            applied: false,
        };
        let class = Class::new("get", "*");
        bench.twin.faults().set(vec![FaultRule::first(class, Fault::Http(html(404)))]);
        let refused = refusal(set(&*store, "OTHER", b"one").await);
        assert_eq!(refused.kind, RefusalKind::Unavailable);
        assert!(refused.message.contains("not in the form of an API server"), "{refused}");
        assert_eq!(bench.twin.faults().writes(), 0);
        assert_eq!(set(&*store, "OTHER", b"one").await, Ok(Written { changed: true }));
    }
}

#[tokio::test]
async fn marks_by_which_a_deployer_deletes_are_not_copied_to_versions() {
    let bench = Bench::start();
    bench.edit("kubectl-edit", |secret| {
        let labels = &mut secret["metadata"]["labels"];
        for mark in [
            "applyset.kubernetes.io/part-of",
            "kapp.k14s.io/app",
            "olm.managed",
            "objectset.rio.cattle.io/hash",
        ] {
            labels[mark] = json!("x");
        }
        secret["metadata"]["annotations"]["config.k8s.io/owning-inventory"] = json!("x");
    });
    swap(&*bench.store(Approach::Versioned), b"theirs", b"one").await.unwrap();
    let made = bench.secret("api-keys-v1").unwrap();
    assert_eq!(made["metadata"]["labels"], json!({ "team": "shop" }));
    let annotations = made["metadata"]["annotations"].as_object().unwrap();
    assert_eq!(annotations.len(), 2, "{annotations:?}");
}

#[tokio::test]
async fn names_that_others_took_are_left_alone() {
    let bench = Bench::start();
    bench.make(json!({ "metadata": { "name": "api-keys-v1" }, "data": {} }));
    let store = bench.store(Approach::Versioned);
    swap(&*store, b"theirs", b"one").await.unwrap();
    assert_eq!(bench.current(), "api-keys-v2");
    swap(&*store, b"one", b"two").await.unwrap();
    assert_eq!(store.clean_up().await.unwrap(), [""; 0]);
    assert_eq!(bench.secrets(), [NAME, "api-keys-v1", "api-keys-v3"]);
}

#[tokio::test]
async fn h55_a_version_stays_as_long_as_anything_names_it() {
    let bench = Bench::start();
    let store = bench.store(Approach::Versioned);
    let values = ["theirs", "1", "2", "3", "4", "5", "6", "7", "8"];
    for (old, new) in values.iter().zip(&values[1..]) {
        swap(&*store, old.as_bytes(), new.as_bytes()).await.unwrap();
    }
    let container = |env: Value| json!({ "metadata": { "labels": { "app": "x" } }, "spec": { "containers": [{ "name": "x", "image": "x", "env": [env] }], "restartPolicy": "Always" } });
    let reads = |secret: &str| {
        let from = json!({ "secretKeyRef": { "name": secret, "key": "OTHER" } });
        container(json!({ "name": "K", "valueFrom": from }))
    };
    let selector = json!({ "matchLabels": { "app": "x" } });
    let make = |kind, object: Value| bench.twin.objects().create(kind, object, "test").unwrap();
    let named = |kind: &str, api: &str, spec: Value| json!({ "apiVersion": api, "kind": kind, "metadata": { "name": "old", "namespace": NAMESPACE }, "spec": spec });
    let spec = json!({ "replicas": 0, "selector": selector, "template": reads("api-keys-v1") });
    make(Kind::ReplicaSet, named("ReplicaSet", "apps/v1", spec));
    let mut template = reads("api-keys-v2");
    template["spec"]["restartPolicy"] = json!("OnFailure");
    let job =
        json!({ "schedule": "0 3 * * *", "jobTemplate": { "spec": { "template": template } } });
    make(Kind::CronJob, named("CronJob", "batch/v1", job));
    let mut template = container(json!({ "name": "K", "value": "x" }));
    template["spec"]["volumes"] = json!([{ "name": "v", "projected": { "sources": [{ "secret": { "name": "api-keys-v3" } }] } }]);
    let spec = json!({ "replicas": 0, "selector": selector, "template": template });
    make(Kind::Deployment, named("Deployment", "apps/v1", spec));
    let revision = json!({
        "apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": 1,
        "metadata": { "name": "old", "namespace": NAMESPACE },
        "data": { "spec": { "template": reads("api-keys-v4") } },
    });
    make(Kind::ControllerRevision, revision);
    let spec = json!({ "tls": [{ "hosts": ["x"], "secretName": "api-keys-v5" }] });
    make(Kind::Ingress, named("Ingress", "networking.k8s.io/v1", spec));
    let spec = json!({ "replicas": 0, "template": reads("api-keys-v6") });
    make(Kind::ReplicationController, named("ReplicationController", "v1", spec));
    let told = store.whereabouts(&["OTHER".to_owned()]).await.unwrap().unwrap();
    let mut found: Vec<_> =
        told.found.iter().map(|one| format!("{} {}: {}", one.kind, one.name, one.how)).collect();
    found.sort();
    let history = "history, to which a rollout can be undone";
    let kept =
        |number: u8| format!("Secret api-keys-v{number}: holds a former version, which is kept");
    let expected = [
        format!("ControllerRevision old: reads it of `api-keys-v4` by env; {history}"),
        "CronJob old: reads it of `api-keys-v2` by env; its next run reads that one".into(),
        "Deployment old: names `api-keys-v3`; scaled to zero".into(),
        "Ingress old: names `api-keys-v5`".into(),
        format!("ReplicaSet old: reads it of `api-keys-v1` by env; {history}"),
        "ReplicationController old: reads it of `api-keys-v6` by env; scaled to zero".into(),
        kept(1),
        kept(2),
        kept(3),
        kept(4),
        kept(5),
        kept(6),
        kept(7),
        "Secret api-keys-v8: holds it; the current version".into(),
        "Secret api-keys: holds a former version, which is kept".into(),
    ];
    assert_eq!((found.as_slice(), told.unseen.len()), (&expected[..], 0));
    let mut stays = store.clean_up().await.unwrap();
    stays.sort();
    assert_eq!(stays.len(), 6, "{stays:?}");
    for (number, who) in [
        (1, "replicasets"),
        (2, "cronjobs"),
        (3, "deployments"),
        (4, "controllerrevisions"),
        (5, "ingresses"),
        (6, "replicationcontrollers"),
    ] {
        let words = [format!("api-keys-v{number}`"), format!("`{who}/old` names it")];
        assert!(words.iter().all(|part| stays[number - 1].contains(part)), "{stays:?}");
    }
    let left = [1, 2, 3, 4, 5, 6, 8].map(|number| format!("api-keys-v{number}"));
    let left: Vec<_> = [NAME.to_owned()].into_iter().chain(left).collect();
    assert_eq!(bench.secrets(), left);
    let key = Key::new(Kind::CronJob, NAMESPACE, "old");
    bench.twin.objects().delete(&key, &Default::default()).unwrap();
    assert_eq!(store.clean_up().await.unwrap().len(), 5);
    assert!(bench.secret("api-keys-v2").is_none(), "what stayed is looked at again");
}

#[tokio::test]
async fn h55_a_clean_up_that_cannot_see_what_names_a_version_deletes_nothing() {
    for resource in ["pods", "replicasets", "cronjobs"] {
        let bench = Bench::start();
        let store = bench.store(Approach::Versioned);
        swap(&*store, b"theirs", b"one").await.unwrap();
        swap(&*store, b"one", b"two").await.unwrap();
        bench.arm("list", resource, Fault::status(403));
        assert_eq!(refusal(store.clean_up().await).kind, RefusalKind::Permission);
        assert_eq!(bench.secrets().len(), 3);
        assert_eq!(store.clean_up().await.unwrap(), [""; 0]);
        assert_eq!(bench.secrets(), [NAME, "api-keys-v2"]);
    }
}

#[tokio::test]
async fn h126_of_two_that_move_the_head_one_loses() {
    let bench = Bench::start();
    let cluster = cluster_of(&bench);
    swap(&*bench.store(Approach::Versioned), b"theirs", b"one").await.unwrap();
    let mut ours = Head::read(&cluster, NAMESPACE, NAME).await.unwrap();
    let mut theirs = Head::read(&cluster, NAMESPACE, NAME).await.unwrap();
    theirs.current = "api-keys-v8".into();
    ours.current = "api-keys-v9".into();
    assert_eq!(theirs.write(&cluster, NAMESPACE, NAME).await, Ok(true));
    assert_eq!(ours.write(&cluster, NAMESPACE, NAME).await, Ok(false));
    assert_eq!(bench.current(), "api-keys-v8");
}

#[test]
fn a_key_that_is_alike_is_suggested() {
    let keys = ["openai-api-key", "JWT_SECRET"].map(String::from);
    for (typed, meant) in [
        ("OPENAI_API_KEY", Some("openai-api-key")),
        ("openai-apikey", Some("openai-api-key")),
        ("JWT_SECERT", Some("JWT_SECRET")),
        ("DATABASE_URL", None),
        ("x", None),
    ] {
        assert_eq!(nearest(typed, keys.iter()), meant, "{typed}");
    }
}
