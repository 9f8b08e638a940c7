//! `command`: whatever the user's own programs read and write; a slot's address is any text that they understand.
//!
//! A program is given one JSON object on its input and answers with one on its output. A value is never among its arguments
//! or in its environment (H111, H112), so it must be UTF-8; any other is refused before anything runs.
//!
//! Before a write keywheel reads and compares. Between that and the write somebody else may write, which only the program can
//! notice: `conditional: true` says that it compares each slot with `accept` and writes in one step.

use keywheel_core::planted;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::facts::{Pickup, ReadBack, Revert, StoreFacts};
use keywheel_core::secret::SecretValue;
use keywheel_core::time::Span;
use keywheel_driver::duration::Duration;
use keywheel_driver::store::{Accept, Edit, Written};
use keywheel_driver::{CallError, Finding, Refusal, RefusalKind, Store};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::secret_json::{self, Text};
use crate::{Build, Context, program};

/// The version of what is said to a program.
const SCHEMA: u32 = 1;

/// Programs that read and write slots, run without a shell and without keywheel's environment. Values go through their input
/// and output only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The one name of what the programs write to: stores with the same `id` take turns.
    #[schemars(length(min = 1))]
    pub id: String,
    /// The program that is given `{"schema": 1, "addresses": ["A"]}` and answers `{"slots": {"A": "its value"}}`, with `null`
    /// for a slot that is absent. A relative path begins at the folder of the configuration file.
    pub read: Vec<String>,
    /// The program that is given `{"schema": 1, "edits": [{"address": "A", "accept": ["old", null], "value": "new"}]}`, where
    /// `accept` lists what the slot may hold, or is `"any"`, and a `value` of `null` removes it. It writes all edits or none,
    /// and answers `{"outcome": "written"}`, or `{"outcome": "conflict"}` where a slot holds something else.
    pub write: Vec<String>,
    /// Whether `write` itself compares each slot with `accept`, in one step with the write. Without it, what somebody else
    /// writes between keywheel's own look and the write is lost.
    #[serde(default)]
    pub conditional: bool,
    /// How long a program may run before it is killed.
    #[serde(default = "seconds::<30>")]
    pub within: Duration,
    /// How long a write that was broken off can still take effect.
    #[serde(default = "seconds::<60>")]
    pub settle_for: Duration,
}

fn seconds<const N: u64>() -> Duration {
    Span::seconds(N).into()
}

impl Build for Config {
    type Driver = dyn Store;

    fn build(&self, context: &Context) -> Result<Arc<dyn Store>, Refusal> {
        program::check("read", &self.read)?;
        program::check("write", &self.write)?;
        if self.id.is_empty() {
            return Err(Refusal::operator(RefusalKind::Unsupported, "`id` is empty"));
        }
        Ok(Arc::new(Command { config: self.clone(), folder: context.root.clone() }))
    }
}

struct Command {
    config: Config,
    folder: PathBuf,
}

#[async_trait]
impl Store for Command {
    fn facts(&self) -> StoreFacts {
        StoreFacts {
            read_back: ReadBack::Value,
            conditional: self.config.conditional,
            staged: false,
            revert: Revert::Restore,
            history: false,
            pickup: Pickup::Roll,
            settle_for: self.config.settle_for.span(),
            answers_logins: false,
            leaves_behind: false,
            longest_run: None,
        }
    }

    fn container(&self) -> String {
        format!("command-store:{}", self.config.id)
    }

    async fn preflight(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        let mut findings = Vec::new();
        if let Err(refusal) = self.slots(addresses).await {
            findings.push(Finding::blocks(refusal.message));
        }
        if !self.config.conditional {
            let message = "does not compare before it writes (`conditional: true`): what somebody else writes at that moment is lost";
            findings
                .push(Finding::note(format!("{} {message}", program::name(&self.config.write))));
        }
        Ok(findings)
    }

    async fn read(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        Ok(self.slots(addresses).await?)
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        let question = self.question(edits)?;
        let addresses: Vec<_> = edits.iter().map(|edit| edit.address.to_owned()).collect();
        let present = self.slots(&addresses).await?;
        let mut changed = false;
        for (edit, present) in edits.iter().zip(&present) {
            if !edit.accepts(present.as_ref()) {
                return Err(self.conflict(&format!("`{}` holds", edit.address)).into());
            }
            changed |= edit.changes(present.as_ref());
        }
        if changed {
            self.change(&question).await?;
        }
        Ok(Written { changed })
    }
}

impl Command {
    async fn slots(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, Refusal> {
        if addresses.is_empty() {
            return Ok(Vec::new());
        }
        let Config { read, within, .. } = &self.config;
        let question = secret_json::write(&Look { schema: SCHEMA, addresses });
        let answer = program::ask(read, &self.folder, &question, within.span()).await?;
        let told = |why: &str| format!("{} {why}", program::name(read));
        if !answer.ended.well() {
            let why = told(&answer.ended.in_words());
            return Err(Refusal::retry(RefusalKind::Unavailable, None, why));
        }
        let unsupported = |why: &str| Refusal::operator(RefusalKind::Unsupported, told(why));
        let seen = answer.output.as_ref().and_then(secret_json::read::<Seen>);
        let Seen { mut slots } =
            seen.ok_or_else(|| unsupported("answered something else than slots"))?;
        let slot = |address: &String| match slots.remove(address) {
            Some(held) => Ok(held.map(|Text(value)| value)),
            None => Err(unsupported(&format!("says nothing of `{address}`"))),
        };
        addresses.iter().map(slot).collect()
    }

    /// Makes the question before anything runs, so that what cannot be asked changes nothing.
    fn question(&self, edits: &[Edit<'_>]) -> Result<SecretValue, Refusal> {
        let refused = |why: String| {
            let name = program::name(&self.config.write);
            Refusal::operator(RefusalKind::Unsupported, format!("{name}: {why}"))
        };
        let mut addresses = BTreeSet::new();
        let mut wired = Vec::new();
        for edit in edits {
            let address = edit.address;
            if !addresses.insert(address) {
                return Err(refused(format!("two edits name `{address}`")));
            }
            wired.push(wire(edit).ok_or_else(|| {
                refused(format!("a value for `{address}` is not UTF-8, which JSON cannot carry"))
            })?);
        }
        Ok(secret_json::write(&Change { schema: SCHEMA, edits: wired }))
    }

    /// Runs the program that writes. From its start on, only its own word says what came of it.
    async fn change(&self, question: &SecretValue) -> Result<(), CallError> {
        let Config { write, within, .. } = &self.config;
        let answer = program::ask(write, &self.folder, question, within.span()).await?;
        let told = |why: &str| format!("{} {why}", program::name(write));
        let unknown = |why: &str| match planted!("failed_write_is_a_refusal") {
            true => Refusal::operator(RefusalKind::Unavailable, told(why)).into(),
            false => CallError::Unknown(told(why)),
        };
        if !answer.ended.well() {
            let said = answer.output.as_ref().map_or(&b""[..], SecretValue::expose);
            let said = match planted!("output_repeated") {
                true => String::from_utf8_lossy(said),
                false => "".into(),
            };
            return Err(unknown(&format!("{}{said}", answer.ended.in_words())));
        }
        match answer.output.as_ref().and_then(secret_json::read::<Done>) {
            Some(Done { outcome: Outcome::Written }) => Ok(()),
            Some(Done { outcome: Outcome::Conflict }) => Err(self.conflict("a slot holds").into()),
            None => Err(unknown("answered something else than an outcome")),
        }
    }

    fn conflict(&self, what: &str) -> Refusal {
        let message = format!("store `{}`: {what} something else than expected", self.config.id);
        Refusal::operator(RefusalKind::Conflict, message)
    }
}

/// Returns an edit as the program reads it; none where a value is not UTF-8.
fn wire<'a>(edit: &'a Edit<'a>) -> Option<WireEdit<'a>> {
    let text = |value: Option<&'a SecretValue>| match value {
        Some(value) => secret_json::text(value).map(Some),
        None => Some(None),
    };
    let value = text(edit.value)?;
    let accept = match &edit.accept {
        Accept::Anything => WireAccept::Anything("any"),
        Accept::OneOf(values) => {
            let accepted = values.iter().map(|value| text(*value));
            // The new value itself is always accepted.
            WireAccept::OneOf(accepted.chain([Some(value)]).collect::<Option<_>>()?)
        }
    };
    Some(WireEdit { address: edit.address, accept, value })
}

#[derive(Serialize)]
struct Look<'a> {
    schema: u32,
    addresses: &'a [String],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    slots: BTreeMap<String, Option<Text>>,
}

#[derive(Serialize)]
struct Change<'a> {
    schema: u32,
    edits: Vec<WireEdit<'a>>,
}

#[derive(Serialize)]
struct WireEdit<'a> {
    address: &'a str,
    accept: WireAccept<'a>,
    value: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum WireAccept<'a> {
    Anything(&'static str),
    OneOf(Vec<Option<&'a str>>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Done {
    outcome: Outcome,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Written,
    Conflict,
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use keywheel_driver::conformance::canary;
    use keywheel_driver::conformance::store::{self as conformance, Subject};
    use keywheel_driver::{Remedy, Severity};
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;

    /// Keeps slots in a file of its own; `compare` makes it heed `accept`.
    const KEEPER: &str = r#"
import fcntl, json, sys
what = sys.argv[1:]
question = json.load(sys.stdin)
assert question["schema"] == 1
with open("slots.json", "a+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.seek(0)
    slots = json.loads(file.read() or "{}")
    if "read" in what:
        answer = {"slots": {address: slots.get(address) for address in question["addresses"]}}
    else:
        edits = question["edits"]
        fits = lambda edit: edit["accept"] == "any" or slots.get(edit["address"]) in edit["accept"]
        if "compare" in what and not all(map(fits, edits)):
            answer = {"outcome": "conflict"}
        else:
            slots.update({edit["address"]: edit["value"] for edit in edits})
            file.truncate(0)
            file.write(json.dumps({address: value for address, value in slots.items() if value is not None}))
            answer = {"outcome": "written"}
print(json.dumps(answer))
"#;

    /// The interpreter itself: a stand-in for it in `PATH` takes longer than the program.
    fn python() -> &'static str {
        static PYTHON: OnceLock<String> = OnceLock::new();
        PYTHON.get_or_init(|| {
            let mut command = std::process::Command::new("python3");
            let output = command.args(["-c", "import sys; print(sys.executable)"]).output();
            String::from_utf8(output.unwrap().stdout).unwrap().trim().to_owned()
        })
    }

    fn keeper(arguments: &[&str]) -> Vec<String> {
        let python = [python(), "-I", "-S", "-c", KEEPER];
        python.iter().chain(arguments).map(|&word| word.to_owned()).collect()
    }

    fn sh(script: &str) -> Value {
        json!(["/bin/sh", "-c", script])
    }

    fn store(folder: &TempDir, extra: Value) -> Arc<dyn Store> {
        let mut config =
            json!({ "id": "vault", "read": keeper(&["read"]), "write": keeper(&["write"]) });
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let config: Config = serde_json::from_value(config).unwrap();
        config.build(&Context::at(folder.path())).unwrap()
    }

    fn comparing(folder: &TempDir) -> Arc<dyn Store> {
        store(folder, json!({ "conditional": true, "write": keeper(&["write", "compare"]) }))
    }

    fn subject(folder: TempDir, store: impl Fn(&TempDir) -> Arc<dyn Store>) -> Subject {
        Subject {
            store: store(&folder),
            other: store(&folder),
            addresses: ["A", "B", "any text: \"it's\""].map(Into::into).into(),
            uncarriable: vec![b"latin\xe91".to_vec(), vec![0xff]],
            guard: Box::new(folder),
        }
    }

    async fn set(store: &dyn Store, value: &[u8]) -> Result<Written, CallError> {
        let value = SecretValue::new(value.to_vec());
        store.write(&[Edit { address: "A", accept: Accept::Anything, value: Some(&value) }]).await
    }

    async fn held(store: &dyn Store) -> Option<String> {
        let values = store.read(&["A".into()]).await.unwrap_or_else(|error| panic!("{error}"));
        values[0].as_ref().map(|value| String::from_utf8(value.expose().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn it_conforms_with_a_program_that_compares() {
        conformance::every_case(async || subject(TempDir::new().unwrap(), comparing)).await;
    }

    #[tokio::test]
    async fn it_conforms_with_a_program_that_does_not_compare() {
        let plain = |folder: &TempDir| store(folder, json!({}));
        let fresh = || subject(TempDir::new().unwrap(), plain);
        conformance::bytes_come_back_as_they_were_written(fresh()).await;
        conformance::the_new_value_itself_is_always_accepted(fresh()).await;
        conformance::an_absent_slot_is_none_and_can_be_absent_again(fresh()).await;
        conformance::a_refused_edit_holds_up_all_edits(fresh()).await;
        conformance::h63_writers_of_sibling_slots_lose_nothing(fresh()).await;
    }

    #[tokio::test]
    async fn what_only_the_program_can_promise_is_promised_only_by_it() {
        let folder = TempDir::new().unwrap();
        let plain = store(&folder, json!({}));
        assert!(comparing(&folder).facts().conditional && !plain.facts().conditional);
        let findings = plain.preflight(&["A".into()]).await.unwrap();
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].severity, Severity::Note);
        assert_eq!(comparing(&folder).preflight(&["A".into()]).await.unwrap(), []);
    }

    #[tokio::test]
    async fn h111_values_are_neither_arguments_nor_variables() {
        let folder = TempDir::new().unwrap();
        let spy = sh("cat /proc/$$/cmdline > arguments; env > variables; cat > input; exit 1");
        let store = store(&folder, json!({ "write": spy }));
        let canary = canary("store-command");
        assert!(set(&*store, canary.as_bytes()).await.is_err());
        let file = |name| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(file("input").contains(&canary));
        std::fs::remove_file(folder.path().join("input")).unwrap();
        for name in ["arguments", "variables"] {
            assert!(!file(name).contains(&canary), "{name}");
        }
    }

    #[tokio::test]
    async fn h40_a_write_that_began_and_has_no_answer_is_unknown() {
        let folder = TempDir::new().unwrap();
        for (script, why) in [
            ("exit 3", "ended with 3"),
            ("echo '{\"outcome\": \"written\"}'; exit 1", "ended with 1"),
            ("echo '{\"outcome\": \"conflict\"}'; kill -9 $$", "was ended by signal 9"),
            ("sleep 600", "did not end in time"),
            (":", "answered something else than an outcome"),
            ("echo '{\"outcome\": \"perhaps\"}'", "answered something else than an outcome"),
            ("echo '{\"outcome\": \"written\"} more'", "answered something else than an outcome"),
        ] {
            let store = store(&folder, json!({ "write": sh(script), "within": "2s" }));
            let expected = CallError::Unknown(format!("command `/bin/sh` {why}"));
            assert_eq!(set(&*store, b"new").await, Err(expected), "{script}");
        }
    }

    #[tokio::test]
    async fn a_program_that_cannot_be_started_is_a_refusal() {
        let folder = TempDir::new().unwrap();
        let missing = store(&folder, json!({ "write": ["./missing"] }));
        let answer = set(&*missing, b"new").await;
        assert!(
            matches!(&answer, Err(CallError::Refused(r)) if r.kind == RefusalKind::Local),
            "{answer:?}"
        );
    }

    #[tokio::test]
    async fn where_nothing_can_be_read_nothing_is_written() {
        let folder = TempDir::new().unwrap();
        let kept = store(&folder, json!({}));
        assert_eq!(set(&*kept, b"kept").await, Ok(Written { changed: true }));
        let nothing = "says nothing of `A`";
        let other = "answered something else than slots";
        for (script, why, retried) in [
            ("exit 1", "ended with 1", true),
            ("sleep 600", "did not end in time", true),
            ("echo '{\"slots\": {\"B\": null}}'", nothing, false),
            ("echo '{\"slots\": {\"A\": 7}}'", other, false),
            ("printf '{\"slots\": {\"A\": \"\\377\"}}'", other, false),
        ] {
            let store = store(&folder, json!({ "read": sh(script), "within": "2s" }));
            let Err(CallError::Refused(refusal)) = set(&*store, b"new").await else {
                panic!("{script}")
            };
            assert_eq!(refusal.message, format!("command `/bin/sh` {why}"));
            assert_eq!(matches!(refusal.remedy, Remedy::Retry { .. }), retried, "{script}");
            let findings = store.preflight(&["A".into()]).await.unwrap();
            assert_eq!(findings[0], Finding::blocks(refusal.message));
        }
        assert_eq!(held(&*kept).await.as_deref(), Some("kept"));
    }

    #[tokio::test]
    async fn a_value_that_json_cannot_carry_is_refused_before_anything_runs() {
        let folder = TempDir::new().unwrap();
        let trace = sh("echo ran >> trace");
        let store = store(&folder, json!({ "read": trace, "write": trace }));
        let (binary, text) = (SecretValue::new(vec![0xff]), SecretValue::new(b"text".to_vec()));
        for (accepted, value) in [(&text, &binary), (&binary, &text)] {
            let accept = Accept::OneOf(vec![Some(accepted)]);
            let answer = store.write(&[Edit { address: "A", accept, value: Some(value) }]).await;
            assert!(
                matches!(answer, Err(CallError::Refused(r)) if r.kind == RefusalKind::Unsupported)
            );
        }
        let twice = || Edit { address: "A", accept: Accept::Anything, value: Some(&text) };
        assert!(matches!(store.write(&[twice(), twice()]).await, Err(CallError::Refused(_))));
        assert!(!folder.path().join("trace").exists());
    }

    #[tokio::test]
    async fn h115_what_a_program_writes_is_in_no_message() {
        let folder = TempDir::new().unwrap();
        let canary = canary("store-command");
        let echo = sh("cat; cat >&2; exit 1");
        let store = store(&folder, json!({ "write": echo }));
        let error = set(&*store, canary.as_bytes()).await.expect_err("it ended with 1");
        assert!(!format!("{error} {error:?}").contains(&canary));
    }

    #[test]
    fn a_program_and_a_name_are_needed() {
        let context = Context::at("/");
        for (id, read, write) in [("", "true", "true"), ("x", "", "true"), ("x", "true", "")] {
            let config = json!({ "id": id, "read": [read], "write": [write] });
            let config: Config = serde_json::from_value(config).unwrap();
            assert!(config.build(&context).is_err());
        }
    }
}
