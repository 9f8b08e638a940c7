//! Pods that read their mounted files again by themselves.

use super::*;

/// How late the kubelet hears of a write, before time is made to run faster.
const LATE: StdDuration = StdDuration::from_secs(10);
const AT_ONCE: StdDuration = StdDuration::ZERO;

/// Starts a cluster whose kubelet brings no file up to date by itself, and hears of a write some time after it.
async fn ground(
    runtime: Runtime,
    object: Value,
    cache_lag: StdDuration,
) -> (Ground, Arc<dyn Workload>) {
    let ground = Ground::start_as(Settings {
        runtime,
        creation: StdDuration::ZERO,
        sync_period: StdDuration::from_secs(100_000),
        cache_lag,
        pace: Pace::times(FASTER),
        ..Settings::default()
    });
    ground.create(Kinds::Deployment, object);
    let driver = ground.driver(config());
    ground.until("it is rolled out", async || ground.is_settled(Kinds::Deployment)).await;
    (ground, driver)
}

fn comes_up() -> Runtime {
    Runtime::simulated(StdDuration::from_millis(100))
}

fn config() -> Value {
    let take_up = json!({"sync": {"rereads_within": "10ms"}});
    json!({"deployment": "app", "take_up": take_up, "ready_within": "10s"})
}

/// Returns what the containers that run find in their files.
fn found(ground: &Ground) -> Vec<String> {
    let held = ground.run.held().into_iter();
    held.map(|held| String::from_utf8(held.given.files["/v/a"].clone()).unwrap()).collect()
}

#[tokio::test]
async fn h44_the_files_of_pods_that_reread_them_are_brought_up_to_date_and_looked_into() {
    let (ground, driver) = ground(comes_up(), reads_a_volume(), LATE).await;
    let before = ground.uids();
    assert!(driver.preflight().await.unwrap().is_empty());
    assert!(driver.takes_up(&[ground.slot()]).await.unwrap().is_empty());
    let since = ground.write(NEW);
    // One that starts in the middle counts too.
    ground.change(Kinds::Deployment, "app", |it| it["spec"]["replicas"] = json!(3));
    ground.forward(&driver, NEW, since).await.unwrap();
    assert_eq!(found(&ground), [NEW; 3]);
    assert_eq!(ground.proofs(&driver, NEW, since).await, [Proof::Holds; 3]);
    assert_eq!(ground.uids().intersection(&before).count(), 2);
    // The same way back.
    let wish = ground.way_back(since);
    let before = ground.uids();
    ground.roll(&driver, &wish).await.unwrap();
    assert_eq!((found(&ground), ground.uids()), (vec![OLD.into(); 3], before));
    let seen = ground.twin.faults().seen().into_iter();
    let changed: BTreeSet<_> = seen.filter(|it| it.verb == "patch").map(|it| it.resource).collect();
    assert_eq!(changed, BTreeSet::from(["pods".to_owned()]), "no template was changed");
    let patches = ground.template_patches();
    ground.roll(&driver, &wish).await.unwrap();
    assert_eq!(ground.template_patches(), patches, "what holds the value is left alone");
    assert_eq!(ground.twin.faults().disclosed(), []);
}

#[tokio::test]
async fn h52_a_value_that_ends_programs_which_reread_it_ends_the_roll_and_they_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::Processes { folder: folder.path().into() };
    let mut object = reads_a_volume();
    let container = object["spec"]["template"]["spec"]["containers"][0].as_object_mut().unwrap();
    let program = format!("while ! grep -q {BAD} $VOLUME_ROOT/v/a; do sleep 0.05; done; exit 3");
    container.insert("command".into(), json!(["sh", "-c", program]));
    container.remove("readinessProbe");
    let (ground, driver) = ground(runtime, object, AT_ONCE).await;
    let before = ground.uids();
    let since = ground.write(BAD);
    let why = message(ground.forward(&driver, BAD, since).await);
    assert!(why.contains("whose container `app` ended with exit code 3"), "{why}");
    let wish = ground.way_back(since);
    ground.roll(&driver, &wish).await.unwrap();
    assert_eq!((found(&ground), ground.uids()), (vec![OLD.into(); 2], before));
}

#[tokio::test]
async fn h42_h43_what_never_changes_in_a_pod_is_no_file_to_bring_up_to_date() {
    let mut bare = reads_a_volume();
    bare["spec"]["template"]["spec"]["containers"][0]["image"] = json!("bare:1");
    let (ground, driver) = ground(comes_up(), bare, AT_ONCE).await;
    let told = async |slot: String| {
        let findings = driver.takes_up(&[slot]).await.unwrap().into_iter();
        let blocks = findings.filter(|it| it.severity == Severity::Blocks);
        blocks.map(|it| it.message).collect::<Vec<_>>().join("\n")
    };
    let without = told(ground.slot()).await;
    assert!(without.contains("`cat` cannot be run in its image"), "{without}");
    assert!(without.contains("leave `take_up: sync` out"), "{without}");
    ground.add_version(NEW);
    assert!(told(ground.versioned_slot()).await.contains("whose versions never change"));
    let spec = |edit: fn(&mut Value)| {
        ground
            .change(Kinds::Deployment, "app", move |it| edit(&mut it["spec"]["template"]["spec"]));
    };
    spec(|spec| spec["containers"][0]["volumeMounts"][0]["subPath"] = json!("a"));
    assert!(told(ground.slot()).await.contains("is given `a` by subPath"));
    spec(|spec| spec["containers"] = pod_spec()["containers"].clone());
    assert!(told(ground.slot()).await.contains("is given `a` by env"));
    spec(|spec| {
        spec["initContainers"] = reads_a_volume()["spec"]["template"]["spec"]["containers"].clone();
        spec["initContainers"][0]["name"] = json!("prepares");
    });
    assert!(told(ground.slot()).await.contains("`prepares`, which reads `a` before the others"));
    assert_eq!(ground.twin.faults().writes(), 0);
}

#[tokio::test]
async fn a_file_is_seen_to_be_missing_and_an_account_needs_no_more_than_it_is_said_to() {
    let (ground, _) = ground(comes_up(), reads_a_volume(), AT_ONCE).await;
    let driver = ground.driver(config());
    let right = |right: Right| {
        let name = right.name.map_or(Vec::new(), |name| vec![name]);
        let names: Vec<_> = name.iter().map(String::as_str).collect();
        keywheel_twins::kubernetes::Rule::new(&[&right.verb], &right.group, &[&right.resource])
            .named(&names)
    };
    let rules = driver.rights().into_iter().map(right).collect();
    ground.twin.add_user("keywheel", rules);
    let driver = ground.driver_for("keywheel", config());
    assert!(driver.preflight().await.unwrap().is_empty());
    let slot = ground.slot().replace("context admin", "context keywheel");
    let missing = slot.replace("\na", "\nb");
    assert_eq!(driver.takes_up(std::slice::from_ref(&missing)).await.unwrap(), []);
    let since = ground.write(NEW);
    let slots = [(slot, Some(ground.fingerprinter.of(NEW.as_bytes()))), (missing, None)];
    let ensure = Ensure::new(&slots, since, &ground.fingerprinter);
    driver.roll(&ensure).await.unwrap();
    assert_eq!(found(&ground), [NEW; 2]);
}
