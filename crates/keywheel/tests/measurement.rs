//! Sentry and PostHog, from `adopt` to the proof that the former credential is dead, each against its twin.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use keywheel_twins::fault::{Fault, Rule, Seen};
use keywheel_twins::{posthog, sentry};

const CONFIG: &str = "
project: shop
policies:
  fast: { cryptoperiod: 90d, soak: SOAK, rollback: 1s, watch: 1s, refusals: 2, retry: 100ms, call: 2s }
stores:
  app: { env_file: { path: app.env } }
secrets:
  measured:
    issuer: ISSUER
    stores: { app: MEASURED }
    read_by: nobody
    because: it is read when the image is built
";

/// A project in a folder of its own.
struct Project {
    folder: tempfile::TempDir,
}

impl Project {
    fn new(issuer: &str, soak: &str, admin: &str, value: &str) -> Self {
        let project = Self { folder: tempfile::tempdir().unwrap() };
        for name in ["project", "state", "keys"] {
            let folder = project.folder.path().join(name);
            std::fs::DirBuilder::new().mode(0o700).create(folder).unwrap();
        }
        let config = CONFIG.replace("ISSUER", issuer).replace("SOAK", soak);
        project.write("keywheel.yaml", &config);
        project.write("admin.key", &format!("{admin}\n"));
        project.write("app.env", &format!("MEASURED={value}\n"));
        project
    }

    fn sentry(twin: &sentry::Twin, soak: &str, value: &str) -> Self {
        let issuer = format!(
            "{{ sentry: {{ organization: {}, project: {}, auth_token: {{ file: admin.key }}, base_url: {}, propagation: 1s, settle_for: 1s }} }}\n    policy: fast",
            sentry::ORGANIZATION,
            sentry::PROJECT,
            twin.base_url(),
        );
        Self::new(&issuer, soak, twin.token(), value)
    }

    fn posthog(twin: &posthog::Twin, kind: &str, rest: &str, value: &str) -> Self {
        Self::soaking(twin, kind, rest, "1s", value)
    }

    fn soaking(twin: &posthog::Twin, kind: &str, rest: &str, soak: &str, value: &str) -> Self {
        let issuer = format!(
            "{{ posthog: {{ kind: {kind}, project: {}, personal_key: {{ file: admin.key }}, base_url: {}, propagation: 1s, settle_for: 1s }} }}\n    policy: fast{rest}",
            posthog::PROJECT,
            twin.base_url(),
        );
        Self::new(&issuer, soak, twin.personal_key(), value)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("project").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(self.path(name)).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn value(&self) -> String {
        let app = std::fs::read_to_string(self.path("app.env")).unwrap();
        app.trim().strip_prefix("MEASURED=").unwrap().to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keywheel"));
        command.args(arguments).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.arg("--config").arg(self.path("keywheel.yaml"));
        command.arg("--journal").arg(self.folder.path().join("state/journal.sqlite"));
        command.arg("--kek").arg(self.folder.path().join("keys/kek"));
        command
    }

    /// Runs with nobody to ask.
    fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).spawn().unwrap(), String::new())
    }

    /// Runs with somebody who is logged in to PostHog and clicks as they are told.
    fn guide(&self, twin: &posthog::Twin, arguments: &[&str]) -> Ran {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut told = String::new();
        while let Some(question) = next_question(&mut child, &mut told) {
            match question {
                text if text.contains("click to reset it") => drop(twin.reset_token()),
                text if text.contains("click to rotate it") => drop(twin.rotate_secret_token()),
                text if text.contains("delete its backup") => twin.delete_backup(),
                text => panic!("nobody knows how to do this: {text}"),
            }
            writeln!(child.stdin.as_mut().unwrap(), "done").unwrap();
        }
        Ran::of(child, told)
    }

    /// Checks that none of the values was printed, and that the journal holds none in the open.
    #[track_caller]
    fn keeps(&self, values: &[&str], said: &[&Ran]) {
        for value in values {
            assert!(said.iter().all(|ran| !ran.said.contains(value)), "a value was printed");
            for file in std::fs::read_dir(self.folder.path().join("state")).unwrap() {
                let path = file.unwrap().path();
                let bytes = if path.is_file() { std::fs::read(path).unwrap() } else { continue };
                let holds = bytes.windows(value.len()).any(|part| part == value.as_bytes());
                assert!(!holds, "the journal holds a value");
            }
        }
    }
}

/// Reads on until the program asks something, and returns what it told since the last question.
fn next_question(child: &mut Child, told: &mut String) -> Option<String> {
    let began = told.len();
    let stderr = child.stderr.as_mut().unwrap();
    let mut byte = [0];
    while stderr.read(&mut byte).unwrap() == 1 {
        told.push(char::from(byte[0]));
        let question = &told[began..];
        let line = question.rsplit('\n').next().unwrap().trim_start();
        if line.starts_with("`done`") && line.ends_with(": ") {
            return Some(question.to_owned());
        }
    }
    None
}

#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    said: String,
}

impl Ran {
    fn of(child: Child, told: String) -> Self {
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = format!("{told}{}{}", text(&output.stderr), text(&output.stdout));
        Self { code: output.status.code(), said }
    }

    #[track_caller]
    fn ends(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "{}", self.said);
        self
    }

    #[track_caller]
    fn says(&self, words: &str) -> &Self {
        assert!(self.said.contains(words), "not said: {words}\n{}", self.said);
        self
    }
}

/// The calls that changed something, in order.
fn changes(seen: &[Seen]) -> Vec<&'static str> {
    let changing = seen.iter().filter(|seen| seen.method != "GET");
    let of_api = changing.filter_map(|seen| seen.operation);
    of_api.filter(|operation| !["envelope", "flags", "query"].contains(operation)).collect()
}

/// The names of the keys that are live at Sentry, and whether each is active.
fn live(twin: &sentry::Twin) -> Vec<(String, bool)> {
    let live = twin.keys().into_iter().filter(|key| key.live);
    live.map(|key| (key.name, key.active)).collect()
}

#[test]
fn a_client_key_of_sentry_is_suspended_then_deleted_and_proven_dead() {
    let twin = sentry::Twin::start(sentry::TwinOptions::default()).unwrap();
    let old = twin.make_key("backend");
    twin.configure(&old, &serde_json::json!({ "rateLimit": { "window": 60, "count": 9 } }));
    let project = Project::sentry(&twin, "1s", &twin.dsn(&old));
    project.run(&["adopt", "measured", "--yes"]).ends(0).says(&old);
    let rotated = project.run(&["rotate", "measured", "--yes", "--soak"]);
    rotated.ends(0).says("completed; v2 is current, v1 is refused everywhere");
    let keys = twin.keys();
    let new = keys.iter().find(|key| key.live).unwrap();
    assert!(new.name.starts_with("kw-") && new.name.ends_with("-1"), "{}", new.name);
    assert_eq!(new.shown["rateLimit"]["count"], 9);
    assert_eq!((live(&twin).len(), project.value()), (1, twin.dsn(&new.id)));
    let changed = changes(&twin.faults().seen());
    assert_eq!(changed, ["create_key", "update_key", "update_key", "delete_key"]);
    project.run(&["doctor"]).ends(0);
    project.run(&["audit", "verify"]).ends(0);
}

#[test]
fn a_lost_mint_leaves_no_second_key_at_sentry() {
    let twin = sentry::Twin::start(sentry::TwinOptions::default()).unwrap();
    let old = twin.make_key("backend");
    let project = Project::sentry(&twin, "1s", &twin.dsn(&old));
    project.run(&["adopt", "measured", "--yes"]).ends(0);
    for (operation, fault) in
        [("update_key", Fault::Cut), ("create_key", Fault::LateLanding { after_ms: 300 })]
    {
        twin.faults().set(vec![Rule::first(operation, fault.clone())]).unwrap();
        let rotated = project.run(&["rotate", "measured", "--yes", "--soak"]);
        rotated.ends(0).says("completed");
        assert_eq!((live(&twin).len(), twin.faults().unfired()), (1, vec![]), "{fault:?}");
        let current = twin.keys().into_iter().find(|key| key.live).unwrap();
        assert_eq!(project.value(), twin.dsn(&current.id));
    }
}

#[test]
fn an_undone_rotation_leaves_the_former_key_of_sentry_as_it_was() {
    let limited = sentry::TwinOptions { no_rate_limits: true, ..sentry::TwinOptions::default() };
    let twin = sentry::Twin::start(limited).unwrap();
    let old = twin.make_key("backend");
    twin.configure(&old, &serde_json::json!({ "rateLimit": { "window": 60, "count": 9 } }));
    let project = Project::sentry(&twin, "1h", &twin.dsn(&old));
    project.run(&["adopt", "measured", "--yes"]).ends(0);
    let rotated = project.run(&["rotate", "measured", "--yes"]);
    rotated.ends(0).says("the rate limit could not be copied").says("promoted; v2 is current");
    assert_ne!(project.value(), twin.dsn(&old));
    project.run(&["undo", "measured", "--yes"]).ends(0).says("turned round; v1 is current again");
    assert_eq!(project.value(), twin.dsn(&old));
    // The rejected version is ended after a soak of its own.
    assert_eq!(live(&twin)[0], ("backend".to_owned(), true));
    assert_eq!(
        changes(&twin.faults().seen()),
        ["create_key", "update_key"],
        "one try to set the limit"
    );
}

#[test]
fn an_emergency_ends_a_key_of_sentry_in_either_order() {
    for revoke_first in [false, true] {
        let twin = sentry::Twin::start(sentry::TwinOptions::default()).unwrap();
        let old = twin.make_key("backend");
        let project = Project::sentry(&twin, "1h", &twin.dsn(&old));
        project.run(&["adopt", "measured", "--yes"]).ends(0);
        let mut arguments =
            vec!["rotate", "measured", "--emergency", "--because", "it is abused", "--yes"];
        arguments.extend(revoke_first.then_some("--revoke-first"));
        project.run(&arguments).ends(0).says("completed");
        assert_eq!(live(&twin).len(), 1);
        assert_ne!(project.value(), twin.dsn(&old));
        let changed = changes(&twin.faults().seen());
        assert_eq!(changed.last(), Some(&"delete_key"), "{changed:?}");
        project.run(&["incident", "show"]).ends(0).says("exposed");
    }
}

#[test]
fn a_publishable_identifier_is_on_no_schedule_unless_a_policy_is_named() {
    let twin = sentry::Twin::start(sentry::TwinOptions::default()).unwrap();
    let old = twin.make_key("backend");
    let project = Project::sentry(&twin, "1s", &twin.dsn(&old));
    let named = std::fs::read_to_string(project.path("keywheel.yaml")).unwrap();
    let named = named.replace("cryptoperiod: 90d", "cryptoperiod: 1ms, next: close_window");
    let unnamed = named.replace("\n    policy: fast", "").replace("  fast:", "  default:");
    let words =
        "publishable identifier, not a secret: on no schedule unless `policy:` is named explicitly";
    project.write("keywheel.yaml", &unnamed);
    project.run(&["check"]).ends(0).says(words);
    project.run(&["adopt", "measured", "--yes"]).ends(0).says("never due");
    project.run(&["status", "--all", "--fail-on", "due"]).ends(0).says(words);
    project.run(&["rotate", "--due", "--yes"]).ends(0);
    project.run(&["config", "show"]).ends(0).says("none");
    assert_eq!(live(&twin), [("backend".to_owned(), true)]);
    project.write("keywheel.yaml", &named);
    project.run(&["status", "--fail-on", "due"]).ends(6);
    project.run(&["check"]).ends(0).says("on a schedule, since `policy:` is named explicitly");
}

#[test]
fn a_project_secret_key_of_posthog_gives_way_to_one_with_its_scopes() {
    let twin = posthog::Twin::start(posthog::TwinOptions::default()).unwrap();
    let old = twin.make_key("backend", &["feature_flag:read"]);
    let project = Project::posthog(
        &twin,
        "project_secret_key, last_used: { lag: 0s, granularity: 1s }",
        "",
        &old.value,
    );
    project.run(&["adopt", "measured", "--yes"]).ends(0).says(&old.id);
    twin.faults().set(vec![Rule::first("create_key", Fault::Cut)]).unwrap();
    let rotated = project.run(&["rotate", "measured", "--yes", "--soak"]);
    rotated.ends(0).says("completed; v2 is current, v1 is refused everywhere");
    let live: Vec<_> = twin.keys().into_iter().filter(|key| key.live).collect();
    assert_eq!((live.len(), live[0].scopes.as_slice()), (1, &["feature_flag:read".to_owned()][..]));
    let new = project.value();
    assert!(twin.accepts(&new) && !twin.accepts(&old.value));
    assert_eq!(
        changes(&twin.faults().seen()),
        ["create_key", "delete_key", "create_key", "delete_key"]
    );
    project.keeps(&[&old.value, &new], &[&rotated]);

    let emergency = project.run(&[
        "rotate",
        "measured",
        "--emergency",
        "--revoke-first",
        "--because",
        "pasted",
        "--yes",
    ]);
    emergency.ends(0).says("completed");
    assert!(twin.accepts(&project.value()) && !twin.accepts(&new));
}

#[test]
fn a_project_token_of_posthog_is_reset_by_a_person_and_cut_over() {
    let twin = posthog::Twin::start(posthog::TwinOptions::default()).unwrap();
    let old = twin.project_token();
    let rest = "\n    strategy: cutover\n    accept: [outage]";
    let project = Project::posthog(&twin, "project_token", rest, &old);
    project.run(&["check"]).ends(0).says("publishable identifier");
    project.run(&["adopt", "measured", "--yes"]).ends(0);
    project.run(&["rotate", "measured", "--yes"]).ends(3).says("needs a person");
    assert_eq!(project.value(), old);
    let resumed = project.guide(&twin, &["resume", "measured", "--soak"]);
    resumed.ends(0).says("completed; v2 is current, v1 is refused everywhere");
    assert_eq!(project.value(), twin.project_token());
    assert!(!twin.accepts(&old));
}

#[test]
fn a_feature_flags_token_of_posthog_is_rotated_once_and_its_backup_deleted() {
    let twin = posthog::Twin::start(posthog::TwinOptions::default()).unwrap();
    let old = twin.secret_token();
    let project = Project::posthog(&twin, "feature_flags_token", "", &old);
    project.run(&["adopt", "measured", "--yes"]).ends(0).says("secret_api_token");
    let rotated = project.guide(&twin, &["rotate", "measured", "--yes", "--soak"]);
    rotated.ends(0).says("completed; v2 is current, v1 is refused everywhere");
    let new = project.value();
    assert_eq!((twin.secret_token(), twin.backup_token()), (new.clone(), None));
    assert!(twin.accepts(&new) && !twin.accepts(&old));
    project.keeps(&[&old, &new], &[&rotated]);
}

#[test]
fn a_feature_flags_token_that_was_given_up_goes_on_beside_the_one_in_use() {
    let twin = posthog::Twin::start(posthog::TwinOptions::default()).unwrap();
    let old = twin.secret_token();
    let project = Project::soaking(&twin, "feature_flags_token", "", "9s", &old);
    project.run(&["adopt", "measured", "--yes"]).ends(0);
    project.guide(&twin, &["rotate", "measured", "--yes"]).ends(0).says("v2 is current");
    let given_up = twin.secret_token();
    let undone = project.guide(&twin, &["undo", "measured", "--yes", "--soak"]);
    undone.ends(3).says("this version is the primary token");
    assert_eq!(project.value(), old);
    assert!(twin.accepts(&old) && twin.accepts(&given_up));

    // The way on: the backup, which is in use, is left alone until the readers have the primary.
    let word = ["resolve", "measured", "--as", "undone", "--because", "both go on", "--yes"];
    project.run(&word).ends(0);
    project.run(&["check"]).says("do not delete the backup");
    project.write("app.env", &format!("MEASURED={given_up}\n"));
    project.run(&["reconcile", "measured", "--keep", "--yes"]).ends(0);
    twin.delete_backup();
    let config = std::fs::read_to_string(project.path("keywheel.yaml")).unwrap();
    project.write("keywheel.yaml", &config.replace("soak: 9s", "soak: 1s"));
    let rotated = project.guide(&twin, &["rotate", "measured", "--yes", "--soak"]);
    rotated.ends(0).says("completed; v4 is current, v3 is refused everywhere");
    assert_eq!((twin.secret_token(), twin.backup_token()), (project.value(), None));
    assert!(!twin.accepts(&given_up));
}

/// The arguments of an emergency, in either order.
fn emergency(revoke_first: bool) -> Vec<&'static str> {
    let mut arguments =
        vec!["rotate", "measured", "--emergency", "--because", "it is abused", "--yes"];
    arguments.extend(revoke_first.then_some("--revoke-first"));
    arguments
}

#[test]
fn an_emergency_resets_a_project_token_of_posthog_in_either_order() {
    for revoke_first in [false, true] {
        let twin = posthog::Twin::start(posthog::TwinOptions::default()).unwrap();
        let old = twin.project_token();
        let rest = "\n    strategy: cutover\n    accept: [outage]";
        let project = Project::posthog(&twin, "project_token", rest, &old);
        project.run(&["adopt", "measured", "--yes"]).ends(0);
        project.guide(&twin, &emergency(revoke_first)).ends(0).says("completed");
        assert_eq!(project.value(), twin.project_token());
        assert!(!twin.accepts(&old));
        project.run(&["incident", "show"]).ends(0).says("exposed");
    }
}

#[test]
fn an_emergency_ends_a_feature_flags_token_of_posthog_in_either_order() {
    for revoke_first in [false, true] {
        let twin = posthog::Twin::start(posthog::TwinOptions::default()).unwrap();
        let old = twin.secret_token();
        let project = Project::posthog(&twin, "feature_flags_token", "", &old);
        project.run(&["adopt", "measured", "--yes"]).ends(0);
        let ended = project.guide(&twin, &emergency(revoke_first));
        ended.ends(0).says("completed");
        let last = |words: &str| ended.said.rfind(words).unwrap_or_else(|| panic!("{words}"));
        let asked_first = last("delete its backup") < last("write      app: MEASURED");
        assert_eq!(asked_first, revoke_first, "{}", ended.said);
        let new = project.value();
        assert_eq!((twin.secret_token(), twin.backup_token()), (new.clone(), None));
        assert!(twin.accepts(&new) && !twin.accepts(&old));
        project.keeps(&[&old, &new], &[&ended]);
    }
}

#[test]
fn an_emergency_ends_both_feature_flags_tokens_of_posthog_after_an_undo() {
    for revoke_first in [false, true] {
        let twin = posthog::Twin::start(posthog::TwinOptions::default()).unwrap();
        let old = twin.secret_token();
        let project = Project::soaking(&twin, "feature_flags_token", "", "9s", &old);
        project.run(&["adopt", "measured", "--yes"]).ends(0);
        project.guide(&twin, &["rotate", "measured", "--yes"]).ends(0);
        let given_up = twin.secret_token();
        project.guide(&twin, &["undo", "measured", "--yes"]).ends(0);
        assert_eq!(project.value(), old);
        let ended = project.guide(&twin, &emergency(revoke_first));
        ended.ends(0).says("ends the token in use at once").says("completed");
        assert_eq!((twin.secret_token(), twin.backup_token()), (project.value(), None));
        assert!(!twin.accepts(&old) && !twin.accepts(&given_up));
    }
}
