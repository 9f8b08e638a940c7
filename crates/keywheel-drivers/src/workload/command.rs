//! `command`: replicas that the user's own programs look at and roll.
//!
//! What `observe` answers is believed: a replica that shows its values shows them by value, and they are fingerprinted at once
//! and kept nowhere. That `roll` ended well proves nothing; only the next look does.

use keywheel_core::planted;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration as StdDuration;

use async_trait::async_trait;
use keywheel_core::evidence::{Proof, Replica, Shows};
use keywheel_core::facts::WorkloadFacts;
use keywheel_core::fingerprint::Fingerprinter;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::duration::Duration;
use keywheel_driver::workload::{Ensure, Workload};
use keywheel_driver::{CallError, Finding, Refusal, RefusalKind, slot};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::clock::pass;
use crate::secret_json::{self, Text};
use crate::{Build, Context, program};

/// The version of what is said to a program.
const SCHEMA: u32 = 1;

/// How long is waited between two looks.
const POLL: StdDuration = StdDuration::from_millis(500);

/// The longest name of a replica.
const LONGEST_NAME: usize = 100;

/// Replicas that programs look at and roll, run without a shell and without keywheel's environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The one name of what the programs roll: workloads with the same `id` take turns.
    #[schemars(length(min = 1))]
    pub id: String,
    /// The program that is given `{"schema": 1, "addresses": ["A"]}` and answers with every replica that is not finally gone:
    /// `[{"id": "web-1", "started_at": 1767225600000, "shows": {"slots": {"A": "its value"}}}]`. `shows` may be
    /// `"fixed_at_start"` too, or `"nothing"`; `started_at` is in milliseconds since 1970 by this machine's clock, or `null`.
    pub observe: Vec<String>,
    /// The program that makes replicas take up the values, and ends with 0 when they are ready. It is given
    /// `{"schema": 1, "replicas": ["web-1"]}`: those that do not prove the values yet.
    pub roll: Vec<String>,
    /// Whether a roll leaves a time in which no replica serves.
    pub gap: bool,
    /// How long `observe` may run before it is killed.
    #[serde(default = "seconds::<30>")]
    pub within: Duration,
    /// How long `roll` may run before it is killed.
    #[serde(default = "seconds::<600>")]
    pub roll_within: Duration,
    /// How long after the end of `roll` a replica may take to prove the values.
    #[serde(default = "seconds::<60>")]
    pub ready_within: Duration,
    /// How long a roll that was broken off can still restart replicas.
    #[serde(default = "seconds::<600>")]
    pub settle_for: Duration,
    /// How exact `started_at` is.
    #[serde(default = "seconds::<1>")]
    pub start_granularity: Duration,
}

fn seconds<const N: u64>() -> Duration {
    Span::seconds(N).into()
}

impl Build for Config {
    type Driver = dyn Workload;

    fn build(&self, context: &Context) -> Result<Arc<dyn Workload>, Refusal> {
        program::check("observe", &self.observe)?;
        program::check("roll", &self.roll)?;
        if self.id.is_empty() {
            return Err(unsupported("`id` is empty"));
        }
        Ok(Arc::new(Command { config: self.clone(), folder: context.root.clone() }))
    }
}

struct Command {
    config: Config,
    folder: PathBuf,
}

#[async_trait]
impl Workload for Command {
    fn facts(&self) -> WorkloadFacts {
        WorkloadFacts {
            settle_for: self.config.settle_for.span(),
            start_granularity: self.config.start_granularity.span(),
            answers_tokens: false,
            gap: self.config.gap,
        }
    }

    fn resource(&self) -> String {
        format!("command-workload:{}", self.config.id)
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        let replicas = match self.replicas(&[]).await {
            Ok(replicas) => replicas,
            Err(refusal) => return Ok(vec![Finding::blocks(refusal.message)]),
        };
        let mut findings: Vec<_> = replicas.iter().filter_map(mute).collect();
        if replicas.is_empty() {
            findings.push(Finding::blocks(format!("{} finds no replica", self.observer())));
        }
        if self.config.gap {
            findings.push(Finding::note("requests fail during a roll (`gap: true`)"));
        }
        Ok(findings)
    }

    async fn observe(
        &self,
        slots: &[String],
        fingerprinter: &Fingerprinter,
    ) -> Result<Vec<Replica>, CallError> {
        Ok(self.look(slots, fingerprinter).await?)
    }

    async fn roll(&self, ensure: &Ensure<'_>) -> Result<(), CallError> {
        pass(ensure.held_since, self.facts().start_granularity).await?;
        let looked = self.unproven(ensure).await?;
        if looked.are_proven() {
            return Ok(());
        }
        self.start(&looked.unproven).await?;
        if planted!("roll_is_believed") {
            return Ok(());
        }
        let deadline = Instant::now() + self.config.ready_within.span().into();
        loop {
            let looked = self.unproven(ensure).await;
            if looked.as_ref().is_ok_and(Looked::are_proven) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.too_late(looked));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// What a look saw.
struct Looked {
    all: usize,
    unproven: Vec<String>,
}

impl Looked {
    /// No replica at all proves nothing.
    fn are_proven(&self) -> bool {
        let one_is_enough = planted!("one_proof_is_enough") && self.unproven.len() < self.all;
        self.all > 0 && (self.unproven.is_empty() || one_is_enough)
    }
}

impl Command {
    fn observer(&self) -> String {
        program::name(&self.config.observe)
    }

    async fn unproven(&self, ensure: &Ensure<'_>) -> Result<Looked, Refusal> {
        let slots: Vec<_> = ensure.slots.iter().map(|(slot, _)| slot.clone()).collect();
        let replicas = self.look(&slots, ensure.fingerprinter).await?;
        let proves = |replica: &Replica| ensure.judge(replica, self.facts()) == Proof::Holds;
        let all = replicas.len();
        let unproven = replicas.into_iter().filter(|r| !proves(r)).map(|replica| replica.id);
        Ok(Looked { all, unproven: unproven.collect() })
    }

    async fn look(
        &self,
        slots: &[String],
        fingerprinter: &Fingerprinter,
    ) -> Result<Vec<Replica>, Refusal> {
        let replica = |seen: Seen| {
            let shows = seen.shows.fingerprinted(slots, fingerprinter).map_err(|address| {
                unsupported(&format!(
                    "{}: replica `{}` says nothing of `{address}`",
                    self.observer(),
                    seen.id
                ))
            })?;
            let started_at = seen.started_at.map(Timestamp::from_millis);
            Ok(Replica { id: seen.id, started_at, shows })
        };
        self.replicas(slots).await?.into_iter().map(replica).collect()
    }

    async fn replicas(&self, slots: &[String]) -> Result<Vec<Seen>, Refusal> {
        let addresses: Vec<_> = slots.iter().map(|slot| slot::parts(slot).1).collect();
        let question = secret_json::write(&Look { schema: SCHEMA, addresses: &addresses });
        let Config { observe, within, .. } = &self.config;
        let answer = program::ask(observe, &self.folder, &question, within.span()).await?;
        let told = |why: &str| format!("{} {why}", self.observer());
        if !answer.ended.well() {
            let why = told(&answer.ended.in_words());
            return Err(Refusal::retry(RefusalKind::Unavailable, None, why));
        }
        let seen = answer.output.as_ref().and_then(secret_json::read::<Vec<Seen>>);
        let seen =
            seen.ok_or_else(|| unsupported(&told("answered something else than replicas")))?;
        match seen.iter().all(|replica| is_name(&replica.id)) {
            true => Ok(seen),
            false => Err(unsupported(&told("calls a replica by what is no name"))),
        }
    }

    /// Runs the program that rolls. From its start on, nothing certain is known until replicas are looked at again.
    async fn start(&self, replicas: &[String]) -> Result<(), CallError> {
        let Config { roll, roll_within, .. } = &self.config;
        let question = secret_json::write(&Roll { schema: SCHEMA, replicas });
        let answer = program::ask(roll, &self.folder, &question, roll_within.span()).await?;
        if answer.ended.well() {
            return Ok(());
        }
        let message = format!("{} {}", program::name(roll), answer.ended.in_words());
        Err(match planted!("broken_roll_is_a_refusal") {
            true => Refusal::operator(RefusalKind::Unavailable, message).into(),
            false => CallError::Unknown(message),
        })
    }

    fn too_late(&self, looked: Result<Looked, Refusal>) -> CallError {
        let within = self.config.ready_within.span();
        let failed = |why: String| Refusal::operator(RefusalKind::WorkloadFailed, why).into();
        match looked {
            Ok(Looked { all: 0, .. }) => failed(format!("no replica came up within {within}")),
            Ok(Looked { unproven, .. }) => failed(format!(
                "replica `{}` did not prove the values within {within} of the roll",
                unproven.join("`, `")
            )),
            // The roll was made, and what it did is not known.
            Err(refusal) => CallError::Unknown(refusal.message),
        }
    }
}

/// Finds what no roll could change: a replica that will never prove anything.
fn mute(replica: &Seen) -> Option<Finding> {
    let why = match (&replica.shows, replica.started_at) {
        (Showing::Nothing, _) => "shows nothing of the values that it holds",
        (Showing::FixedAtStart, None) => {
            "has values that were fixed at its start, which is not told"
        }
        _ => return None,
    };
    Some(Finding::blocks(format!("replica `{}` {why}", replica.id)))
}

/// The name of a replica stands in messages, so nothing that could be a value or a key passes for one.
fn is_name(text: &str) -> bool {
    (1..=LONGEST_NAME).contains(&text.len()) && !text.contains(char::is_control)
}

fn unsupported(message: &str) -> Refusal {
    Refusal::operator(RefusalKind::Unsupported, message)
}

#[derive(Serialize)]
struct Look<'a> {
    schema: u32,
    addresses: &'a [&'a str],
}

#[derive(Serialize)]
struct Roll<'a> {
    schema: u32,
    replicas: &'a [String],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    id: String,
    started_at: Option<i64>,
    shows: Showing,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Showing {
    Slots(BTreeMap<String, Option<Text>>),
    FixedAtStart,
    Nothing,
}

impl Showing {
    /// Fingerprints what is shown of `slots`, or returns the address of one of which nothing is said: that proves no absence.
    fn fingerprinted<'a>(
        &self,
        slots: &'a [String],
        fingerprinter: &Fingerprinter,
    ) -> Result<Shows, &'a str> {
        let said = match self {
            Self::Slots(said) => said,
            Self::FixedAtStart => return Ok(Shows::FixedAtStart),
            Self::Nothing => return Ok(Shows::Nothing),
        };
        let mut shown = Vec::new();
        for slot in slots {
            let (_, address) = slot::parts(slot);
            let held = said.get(address).ok_or(address)?;
            let print = |Text(value): &Text| fingerprinter.of(SecretValue::expose(value));
            shown.extend(held.as_ref().map(|held| (slot.clone(), print(held))));
        }
        Ok(Shows::Slots(shown))
    }
}

#[cfg(test)]
mod tests {
    use keywheel_core::fingerprint::{Fingerprint, FingerprintKeyId};
    use keywheel_driver::conformance::canary;
    use keywheel_driver::{Remedy, Severity};
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::super::clock::now;
    use super::*;

    /// Replicas that are lines of a file: `observe` prints what stands in it.
    struct World {
        folder: TempDir,
        fingerprinter: Fingerprinter,
    }

    fn sh(script: &str) -> Value {
        json!(["/bin/sh", "-c", script])
    }

    fn replica(id: &str, value: &str) -> Value {
        json!({ "id": id, "started_at": null, "shows": { "slots": { "KEY": value, "OTHER": null } } })
    }

    impl World {
        fn new(replicas: &[Value]) -> Self {
            let world = Self {
                folder: TempDir::new().unwrap(),
                fingerprinter: Fingerprinter::new(FingerprintKeyId(1), [7; 32].into()),
            };
            world.write("state", replicas);
            world
        }

        fn write(&self, name: &str, replicas: &[Value]) {
            let text = serde_json::to_string(replicas).unwrap();
            std::fs::write(self.folder.path().join(name), text).unwrap();
        }

        fn file(&self, name: &str) -> String {
            std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
        }

        fn build(&self, extra: Value) -> Arc<dyn Workload> {
            let mut config = json!({
                "id": "web", "gap": false, "observe": sh("cat state"),
                "roll": sh("cat > rolled; cp next state"),
                "ready_within": "300ms", "start_granularity": "50ms",
            });
            config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let config: Config = serde_json::from_value(config).unwrap();
            config.build(&Context::at(self.folder.path())).unwrap()
        }

        async fn roll_to(&self, workload: &dyn Workload, value: &str) -> Result<(), CallError> {
            let print = |text: &str| Some(self.fingerprinter.of(text.as_bytes()));
            let slots: [(String, Option<Fingerprint>); 2] =
                [("KEY".into(), print(value)), ("OTHER".into(), None)];
            workload.roll(&Ensure::new(&slots, now(), &self.fingerprinter)).await
        }

        async fn observe(&self, workload: &dyn Workload) -> Result<Vec<Replica>, CallError> {
            workload.observe(&["KEY".into(), "OTHER".into()], &self.fingerprinter).await
        }
    }

    fn refusal(outcome: Result<(), CallError>) -> Refusal {
        match outcome {
            Err(CallError::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn what_is_shown_is_fingerprinted() {
        let fixed = json!({ "id": "b", "started_at": 5_000, "shows": "fixed_at_start" });
        let mute = json!({ "id": "c", "started_at": null, "shows": "nothing" });
        let world = World::new(&[replica("a", "old"), fixed, mute]);
        let print = world.fingerprinter.of(b"old");
        let seen = |id: &str, started: Option<i64>, shows| Replica {
            id: id.into(),
            started_at: started.map(Timestamp::from_millis),
            shows,
        };
        let expected = [
            seen("a", None, Shows::Slots(vec![("KEY".into(), print)])),
            seen("b", Some(5_000), Shows::FixedAtStart),
            seen("c", None, Shows::Nothing),
        ];
        let workload = world.build(json!({}));
        assert_eq!(world.observe(&*workload).await.unwrap(), expected);
    }

    #[tokio::test]
    async fn replicas_that_prove_the_values_are_left_alone() {
        let world = World::new(&[replica("a", "new"), replica("b", "old")]);
        world.write("next", &[replica("a", "new"), replica("b", "new")]);
        let workload = world.build(json!({}));
        world.roll_to(&*workload, "new").await.unwrap();
        assert_eq!(world.file("rolled"), r#"{"schema":1,"replicas":["b"]}"#);
        std::fs::remove_file(world.folder.path().join("rolled")).unwrap();
        world.roll_to(&*workload, "new").await.unwrap();
        assert_eq!(world.file("rolled"), "", "nothing was left to be rolled");
    }

    #[tokio::test]
    async fn what_is_fixed_at_the_start_is_proven_by_a_start_after_the_write() {
        let world = World::new(&[]);
        let start = r#"echo "[{\"id\": \"a\", \"started_at\": $(date +%s%3N), \"shows\": \"fixed_at_start\"}]" > state"#;
        assert!(
            std::process::Command::new("sh")
                .args(["-c", start])
                .current_dir(&world.folder)
                .status()
                .unwrap()
                .success()
        );
        let before = world.file("state");
        let workload = world.build(json!({ "roll": sh(start) }));
        world.roll_to(&*workload, "new").await.unwrap();
        assert_ne!(world.file("state"), before);
    }

    #[tokio::test]
    async fn h50_a_roll_ends_when_every_replica_proves_the_values() {
        let world = World::new(&[replica("a", "old"), replica("b", "old"), replica("c", "old")]);
        world.write("next", &[replica("a", "new"), replica("b", "old"), replica("c", "old")]);
        let workload = world.build(json!({}));
        let half = refusal(world.roll_to(&*workload, "new").await);
        assert_eq!(half.kind, RefusalKind::WorkloadFailed);
        let why = "replica `b`, `c` did not prove the values within 300 ms of the roll";
        assert_eq!(half.message, why);
        world.write("next", &[]);
        let none = refusal(world.roll_to(&*workload, "new").await);
        assert_eq!(none.message, "no replica came up within 300 ms");

        world.write("state", &[replica("a", "old")]);
        world.write("next", &[replica("a", "new")]);
        let later = "(sleep 1; cp next soon; mv soon state) > /dev/null &";
        let workload = world.build(json!({ "roll": sh(later), "ready_within": "60s" }));
        world.roll_to(&*workload, "new").await.unwrap();
        assert!(world.file("state").contains("new"));
    }

    /// Nothing rolls them: each lets go of what it cached when its own time is over.
    #[tokio::test]
    async fn h57_a_roll_waits_for_readers_that_cache_until_the_last_of_them_is_through() {
        let world = World::new(&[replica("a", "old"), replica("b", "old"), replica("c", "old")]);
        let hasher = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), "order");
        let mut now = ["old"; 3];
        for at in 0..3 {
            now[(at + usize::try_from(hasher % 3).unwrap()) % 3] = "new";
            let all = [replica("a", now[0]), replica("b", now[1]), replica("c", now[2])];
            world.write(&format!("state-{at}"), &all);
        }
        let ends = "(for at in 0 1 2; do sleep 0.7; mv state-$at state; done) > /dev/null &";
        let workload = world.build(json!({ "roll": sh(ends), "ready_within": "60s" }));
        world.roll_to(&*workload, "new").await.unwrap();
        assert!(!world.file("state").contains("old"), "{}", world.file("state"));
    }

    #[tokio::test]
    async fn h53_a_roll_that_changed_nothing_fails() {
        let world = World::new(&[replica("a", "old")]);
        let workload = world.build(json!({ "roll": ["true"] }));
        let refusal = refusal(world.roll_to(&*workload, "new").await);
        assert_eq!((refusal.kind, refusal.remedy), (RefusalKind::WorkloadFailed, Remedy::Operator));
    }

    #[tokio::test]
    async fn h52_a_roll_that_was_broken_off_is_unknown() {
        let world = World::new(&[replica("a", "old")]);
        for (script, why) in [("sleep 600", "did not end in time"), ("exit 4", "ended with 4")] {
            let workload = world.build(json!({ "roll": sh(script), "roll_within": "2s" }));
            let expected = CallError::Unknown(format!("command `/bin/sh` {why}"));
            assert_eq!(world.roll_to(&*workload, "new").await, Err(expected));
        }
        let missing = world.build(json!({ "roll": ["./missing"] }));
        assert_eq!(refusal(world.roll_to(&*missing, "new").await).kind, RefusalKind::Local);
        let blind = world.build(json!({ "roll": sh("echo > state") }));
        let outcome = world.roll_to(&*blind, "new").await;
        let expected = "command `/bin/sh` answered something else than replicas";
        assert_eq!(outcome, Err(CallError::Unknown(expected.into())));
    }

    #[tokio::test]
    async fn an_answer_that_cannot_be_understood_is_no_evidence() {
        let world = World::new(&[]);
        let canary = canary("workload-command");
        let long = canary.repeat(5);
        let nameless = |id: &str| json!([replica(id, "x")]).to_string();
        let slots = |slots: Value| {
            json!([{ "id": "a", "started_at": null, "shows": { "slots": slots } }]).to_string()
        };
        let answers = [
            canary.clone(),
            nameless(""),
            nameless(&long),
            nameless(&format!("a\n{canary}")),
            slots(json!({ "KEY": canary })),
            slots(json!({ "KEY": [canary], "OTHER": null })),
            json!([{ "id": "a", "started_at": canary, "shows": "nothing" }]).to_string(),
            json!([{ "id": "a", "started_at": null, "shows": canary }]).to_string(),
        ];
        let workload = world.build(json!({}));
        for answer in answers {
            std::fs::write(world.folder.path().join("state"), &answer).unwrap();
            let error = world.observe(&*workload).await.expect_err("no replica is shown");
            assert!(matches!(&error, CallError::Refused(r) if r.kind == RefusalKind::Unsupported));
            assert!(!format!("{error} {error:?}").contains(&canary), "{error}");
        }
        let failing = world.build(json!({ "observe": sh("cat state; exit 1") }));
        let error = world.observe(&*failing).await.expect_err("it ended with 1");
        assert!(!error.to_string().contains(&canary));
    }

    #[tokio::test]
    async fn preflight_finds_what_could_never_be_proven() {
        let world = World::new(&[replica("a", "old")]);
        let workload = world.build(json!({}));
        assert_eq!(workload.preflight().await.unwrap(), []);
        let gap = world.build(json!({ "gap": true }));
        assert!(gap.facts().gap);
        assert_eq!(gap.preflight().await.unwrap()[0].severity, Severity::Note);
        let blocks = async |replicas: &[Value]| {
            world.write("state", replicas);
            workload.preflight().await.unwrap()
        };
        for replicas in [
            vec![],
            vec![json!({ "id": "a", "started_at": 1, "shows": "nothing" })],
            vec![json!({ "id": "a", "started_at": null, "shows": "fixed_at_start" })],
            vec![json!("nonsense")],
        ] {
            let findings = blocks(&replicas).await;
            assert_eq!(findings.len(), 1, "{replicas:?}");
            assert_eq!(findings[0].severity, Severity::Blocks);
        }
    }

    #[test]
    fn programs_and_a_name_are_needed() {
        let context = Context::at("/");
        for (id, observe, roll) in [("", "true", "true"), ("x", "", "true"), ("x", "true", "")] {
            let config = json!({ "id": id, "gap": false, "observe": [observe], "roll": [roll] });
            let config: Config = serde_json::from_value(config).unwrap();
            assert!(config.build(&context).is_err());
        }
        let silent = json!({ "id": "x", "observe": ["true"], "roll": ["true"] });
        assert!(serde_json::from_value::<Config>(silent).is_err(), "a gap is said or denied");
    }
}
