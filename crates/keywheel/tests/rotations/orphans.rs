//! Live credentials that carry our label and that nobody owns: `doctor` lists them, and ends them where it is told to.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use keywheel_twins::fault::{Fault, Rule};
use keywheel_twins::github;
use keywheel_twins::openai::KeyState;
use serde_json::json;

use super::provider::Provider;

/// A provider that shows, long after the rotation completed, what a lost mint of it made, beside what is somebody else's.
struct Late {
    provider: Provider,
    label: String,
    account: String,
}

impl Late {
    fn new() -> Self {
        let provider = Provider::rotated();
        let label = second_attempt(&provider.current().label);
        let late = provider.twin.make_key(&label);
        provider.twin.make_key("kw-0123456789ab-7");
        provider.twin.make_key("of a colleague");
        Self { provider, label, account: late.owner }
    }

    /// Everything lives that nobody may end here.
    #[track_caller]
    fn assert_others_live(&self) {
        let live = self.provider.live();
        let current = self.provider.current().label;
        for label in [current.as_str(), "kw-0123456789ab-7", "of a colleague"] {
            assert!(live.iter().any(|one| one == label), "{label} is not among {live:?}");
        }
    }
}

fn second_attempt(label: &str) -> String {
    format!("{}-2", label.strip_suffix("-1").unwrap())
}

#[test]
fn h90_only_what_carries_our_label_and_nobody_owns_is_ended() {
    let late = Late::new();
    let provider = &late.provider;
    let listed = provider.run(&["doctor"]);
    listed.ends(3).says(&late.label).says("keywheel doctor --end-orphans model@default");
    assert!(!listed.stdout.contains("kw-0123456789ab-7"), "{listed:?}");
    provider.run(&["doctor", "--end-orphans"]).ends(4).says("K0206").says(&late.label);
    assert_eq!(provider.twin.live(&late.label).len(), 1, "nothing is ended before it is confirmed");
    let ended = provider.run(&["doctor", "--end-orphans", "--yes", "--because", "it came late"]);
    ended.ends(0).says("ended  model").says("left").says("no rotation of this journal made it");
    assert!(provider.twin.live(&late.label).is_empty());
    late.assert_others_live();
    let audit = provider.run(&["audit", "list"]);
    let asked = "asked for the end of credential";
    audit.says(asked).says("saw the end of credential").says("it came late");
    assert!(audit.stdout.find(asked) < audit.stdout.find("saw the end"), "{audit:?}");
    provider.run(&["audit", "verify"]).ends(0);
    provider.run(&["doctor", "--end-orphans"]).ends(0).says("world and journal agree");
    late.assert_others_live();
}

#[test]
fn h90_what_an_open_rotation_may_still_find_is_no_orphan() {
    let late = Late::new();
    let provider = &late.provider;
    let slow = provider.config.replace("soak: 1s", "soak: 1h");
    provider.project.write("keywheel.yaml", &slow);
    provider.run(&["doctor", "--end-orphans", "--yes"]).ends(0);
    provider.run(&["rotate", "model", "--yes"]).ends(0).says("promoted; v3 is current");
    let before = provider.live();
    let pending = before.iter().rfind(|label| label.ends_with("-1")).unwrap();
    provider.twin.make_key(&second_attempt(pending));
    provider.run(&["doctor", "--end-orphans", "--yes"]).ends(0).says("agree");
    assert_eq!(provider.live().len(), before.len() + 1, "its open rotation sweeps it by itself");
}

#[test]
fn an_orphan_that_cannot_be_ended_is_left_with_the_reason() {
    let late = Late::new();
    let provider = &late.provider;
    provider.twin.set_script(vec![Rule::every("delete_api_key", Fault::status(403))]).unwrap();
    let ran = provider.run(&["doctor", "--end-orphans", "--yes"]);
    ran.ends(3).says("was not ended: credential").says("answered 403").says("left");
    assert_eq!(provider.twin.live(&late.label).len(), 1);
    provider.twin.set_script(Vec::new()).unwrap();
    let ran = provider.project.json(&["doctor", "--end-orphans", "--yes"]);
    assert_eq!((&ran["ended"][0]["label"], &ran["findings"]), (&json!(late.label), &json!([])));
    assert_eq!(ran["left"][0]["label"], "kw-0123456789ab-7");
    late.assert_others_live();
}

/// The request that made the key was delivered twice.
#[test]
fn h04_a_second_key_under_the_label_of_a_version_is_ended() {
    let provider = Provider::rotated();
    let current = provider.current();
    let twice = provider.twin.make_key(&current.label);
    provider.run(&["doctor"]).ends(3).says(&current.label).says(&twice.owner);
    let ended = ["doctor", "--end-orphans", "--yes", "--because", "it was made twice"];
    provider.run(&ended).ends(0).says("ended  model").says(&twice.owner);
    assert_eq!(provider.current().id, current.id, "the key that readers use was ended");
    provider.run(&["doctor"]).ends(0).says("world and journal agree");
}

/// A backup of the journal is put back, and the rotation that it lacks is asked for again: its labels are those of the one that
/// is lost.
#[test]
fn h92_what_a_store_holds_is_no_orphan_of_a_journal_that_lost_its_record() {
    let provider = Provider::new();
    provider.project.write("keywheel.yaml", &quick(&provider));
    provider.run(&["rotate", "model", "--yes", "--soak"]).ends(0).says("completed; v2 is current");
    let current = lose_the_record_of_a_rotation(&provider);
    let again = provider.run(&["rotate", "model", "--yes", "--soak"]);
    assert_ne!(again.code, Some(0), "{again:?}");
    provider.note_value();

    let end = ["doctor", "--end-orphans", "--yes"];
    let told = format!("labelled `{}` is of no version of the journal", current.label);
    let listed = provider.run(&["doctor"]);
    listed.ends(3).says(&told).says("store `app` holds it").says("reconcile --keep model@default");
    provider.run(&end).ends(3).says("left  model").says("store `app` holds it");
    assert_eq!(provider.twin.live(&current.label).len(), 1, "readers use it");

    let (file, aside) = ("app.env", "aside.env");
    let path = |name: &str| provider.project.path(name);
    std::fs::rename(path(file), path(aside)).unwrap();
    std::fs::create_dir(path(file)).unwrap();
    provider.project.run(&end).ends(3).says("store `app` may hold it").says("keywheel where");
    std::fs::remove_dir(path(file)).unwrap();
    std::fs::rename(path(aside), path(file)).unwrap();
    assert_eq!(provider.twin.live(&current.label).len(), 1, "nobody knows what the store holds");

    provider.run(&["reconcile", "--keep", "model", "--yes"]).ends(0);
    provider.run(&end);
    assert_eq!(provider.current().id, current.id);
}

const CI: &str = r#"
  ci:
    github_actions: { repository: acme/shop, token: { file: token }, base_url: "CI", longest_run: 100ms, settle_for: 500ms }
secrets:"#;

/// A provider whose key stands in GitHub Actions too, rotated once.
fn in_ci_too() -> (Provider, github::Twin) {
    let provider = Provider::new();
    let ci = github::Twin::start(github::TwinOptions::default()).unwrap();
    ci.set_by_hand("MODEL_KEY", provider.value().as_bytes());
    provider.project.write("token", ci.token());
    let config = quick(&provider).replace("\nsecrets:", &CI.replace("CI", &ci.base_url()));
    let both = config.replace("{ app: MODEL_KEY }", "{ app: MODEL_KEY, ci: MODEL_KEY }");
    provider.project.write("keywheel.yaml", &both);
    provider.run(&["rotate", "model", "--yes", "--soak"]).ends(0).says("completed; v2 is current");
    (provider, ci)
}

#[test]
fn h18_what_its_issuer_refuses_is_not_put_back_where_readers_have_something_else() {
    let (provider, _ci) = in_ci_too();
    let by_hand = format!("MODEL_KEY={}\n", provider.twin.make_key("by-hand").value);
    provider.note_value();
    provider.project.write("app.env", &by_hand);
    provider.twin.end_by_itself(&provider.current().id);
    let put_back = provider.run(&["reconcile", "model", "--yes"]);
    put_back.ends(4).says("refuses v2 of `model@default`").says("reconcile --keep");
    assert_eq!(provider.project.read("app.env"), by_hand);
}

/// A store that cannot be read tells when it was written.
#[test]
fn h92_what_a_store_may_hold_that_cannot_be_read_is_no_orphan_of_such_a_journal() {
    let (provider, _ci) = in_ci_too();
    provider.twin.make_key(&second_attempt(&provider.current().label));
    let end = ["doctor", "--end-orphans", "--yes"];
    provider.run(&end).ends(0).says("ended  model");
    let config = provider.project.read("keywheel.yaml");
    let config = config.replace("{ app: MODEL_KEY, ci: MODEL_KEY }", "{ ci: MODEL_KEY }");
    provider.project.write("keywheel.yaml", &config);
    let current = lose_the_record_of_a_rotation(&provider);
    provider.run(&["rotate", "model", "--yes", "--soak"]).ends(2).says("undone; v2 is current");
    provider.run(&end).ends(3).says("store `ci` may hold it: it was written since");
    assert_eq!(provider.twin.live(&current.label).len(), 1, "readers use it");
}

/// Returns its configuration with windows that are short.
fn quick(provider: &Provider) -> String {
    let short = "soak: 100ms, rollback: 100ms, watch: 100ms";
    provider.config.replace("soak: 1s, rollback: 1s, watch: 1s", short)
}

/// Rotates the key, puts a backup of the journal back that was made before, and returns the key that readers use.
fn lose_the_record_of_a_rotation(provider: &Provider) -> KeyState {
    let folder = provider.project.folder.path();
    let (state, backup) = (folder.join("state"), folder.join("backup"));
    copy(&state, &backup);
    provider.run(&["rotate", "model", "--yes", "--soak"]).ends(0).says("v3 is current");
    let current = provider.current();
    copy(&backup, &state);
    current
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for old in std::fs::read_dir(to).unwrap().map(|file| file.unwrap().path()) {
        if old.is_file() {
            std::fs::remove_file(old).unwrap();
        }
    }
    for file in std::fs::read_dir(from).unwrap().map(|file| file.unwrap().path()) {
        if file.is_file() {
            std::fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
        }
    }
}

/// While the question is on the terminal, somebody takes the account for something else.
#[test]
fn h92_an_orphan_is_looked_at_again_just_before_it_ends() {
    let late = Late::new();
    let (code, shown) = answered(&late, "y\n");
    assert_eq!(code, Some(3), "{shown}");
    assert!(shown.contains("it is gone, or carries another label by now"), "{shown}");
    assert_eq!(late.provider.twin.live("taken over by ops").len(), 1, "{shown}");
    late.assert_others_live();
}

/// Answers the question of `doctor --end-orphans` at a terminal, after the orphan was renamed.
fn answered(late: &Late, line: &str) -> (Option<i32>, String) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let open = || {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).open(name.to_str().unwrap()).unwrap()
    };
    let mut command = late.provider.project.command(&["doctor", "--end-orphans"]);
    let mut child = command.stdin(open()).stdout(open()).stderr(open()).spawn().unwrap();
    drop(command);
    let mut master = std::fs::File::from(master);
    let mut shown = String::new();
    let mut byte = [0];
    while master.read(&mut byte).is_ok_and(|read| read == 1) {
        shown.push(char::from(byte[0]));
        if shown.ends_with("for good? [y/N] ") {
            late.provider.twin.rename_account(&late.account, "taken over by ops");
            std::thread::sleep(Duration::from_millis(50));
            master.write_all(line.as_bytes()).unwrap();
        }
    }
    (child.wait().unwrap().code(), shown)
}
