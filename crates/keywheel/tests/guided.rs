//! The guided lane: a person who clicks in a console on what the program says, at a terminal or at the other end of a pipe.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

const CONFIG: &str = "
project: shop
policies:
  fast: { cryptoperiod: 90d, soak: 1s, rollback: 1s, watch: 1s }
stores:
  app: { env_file: { path: app.env } }
secrets:
  model:
    policy: fast
    issuer:
      manual:
        url: https://console.example.com/keys
        prefix: kwcanary-
        min_length: 20
        verify: { command: [./verify] }
        propagation: 1s
    stores: { app: MODEL_KEY }
    read_by: nobody
    because: it is read when the image is built
";

/// Accepts a credential that one line of the provider's list ends with.
const VERIFY: &str = r#"#!/bin/sh
question=$(cat)
while read -r name value; do
  case "$question" in *"\"$value\""*) echo '{"verdict": "accepted"}'; exit;; esac
done < keys
echo '{"verdict": "refused"}'
"#;

const OLD: &str = "kwcanary-guided-0123456789abcdef";

/// A project in a folder of its own, and a provider's list of keys.
struct Project {
    folder: tempfile::TempDir,
}

impl Project {
    fn with_soak(soak: &str) -> Self {
        let project = Self { folder: tempfile::tempdir().unwrap() };
        for name in ["project", "state", "keys"] {
            let folder = project.folder.path().join(name);
            std::fs::DirBuilder::new().mode(0o700).create(folder).unwrap();
        }
        project.write(
            "keywheel.yaml",
            &CONFIG.replace("soak: 1s", &format!("soak: {soak}")),
            0o600,
        );
        project.write("app.env", &format!("MODEL_KEY={OLD}\n"), 0o600);
        project.write("verify", VERIFY, 0o700);
        project.write("keys", &format!("by-hand {OLD}\n"), 0o600);
        project
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("project").join(name)
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(mode);
        options.open(self.path(name)).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
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
        finished(self.command(arguments).spawn().unwrap(), String::new())
    }

    /// Runs with somebody who does as they are told, until `until` stops them.
    fn guide(&self, arguments: &[&str]) -> Ran {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut told = String::new();
        while let Some(question) = next_question(&mut child, &mut told) {
            let answer = self.does(&question);
            writeln!(child.stdin.as_mut().unwrap(), "{answer}").unwrap();
        }
        finished(child, told)
    }

    /// Clicks.
    fn does(&self, question: &str) -> String {
        let keys = self.read("keys");
        let name = question.split('`').nth(1).unwrap();
        if question.ends_with("its value: ") {
            let value = format!("kwcanary-guided-made-{name}");
            self.write("keys", &format!("{keys}{name} {value}\n"), 0o600);
            return value;
        }
        let names: Vec<&str> = keys.lines().filter_map(|key| key.split(' ').next()).collect();
        if question.contains("whose name begins with") {
            let found: Vec<&str> = names.into_iter().filter(|key| key.starts_with(name)).collect();
            return if found.is_empty() { "none".into() } else { found.join(" ") };
        }
        let others = keys.lines().filter(|key| key.split(' ').next() != Some(name));
        self.write("keys", &others.map(|key| format!("{key}\n")).collect::<String>(), 0o600);
        "ended".into()
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
        if question.contains("needs you:") && question.ends_with(": ") && is_prompt(question) {
            return Some(question.to_owned());
        }
    }
    None
}

fn is_prompt(question: &str) -> bool {
    let line = question.rsplit('\n').next().unwrap().trim_start();
    ["its value", "their names", "`ended`"].iter().any(|prompt| line.starts_with(prompt))
}

#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    said: String,
}

fn finished(child: Child, told: String) -> Ran {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = format!("{told}{}{}", text(&output.stderr), text(&output.stdout));
    assert!(!said.contains("kwcanary-guided"), "a value was printed: {said}");
    Ran { code: output.status.code(), said }
}

impl Ran {
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

#[test]
fn a_person_makes_the_new_key_and_ends_the_former_one() {
    let project = Project::with_soak("1s");
    project.run(&["plan", "model"]).ends(0).says("(guided: needs you)");
    let ran = project.guide(&["rotate", "model", "--yes", "--soak"]);
    ran.says("- open https://console.example.com/keys").says("- name it exactly `kw-");
    ran.ends(3).says("v2 is current").says("keywheel resume model@default --previous-id ID");
    assert!(project.read("app.env").starts_with("MODEL_KEY=kwcanary-guided-made-kw-"));
    assert_eq!(project.read("keys").lines().count(), 2);
    let ran = project.guide(&["resume", "model", "--previous-id", "by-hand", "--soak"]);
    ran.says("end the key named `by-hand` for good").ends(0);
    ran.says("completed; v2 is current, v1 is refused everywhere");
    assert_eq!(project.read("keys").lines().count(), 1);
    let ran = project.guide(&["rotate", "model", "--yes", "--soak"]);
    ran.ends(0).says("completed; v3 is current, v2 is refused everywhere");
    project.run(&["doctor"]).ends(0);
    project.run(&["audit", "verify"]).ends(0);
}

#[test]
fn where_nobody_is_there_the_rotation_waits_and_nothing_is_changed() {
    let project = Project::with_soak("1h");
    let ran = project.run(&["rotate", "model", "--yes"]);
    ran.ends(3).says("needs a person: run `keywheel resume model@default` at a terminal");
    assert!(!ran.said.contains("name it exactly"), "{}", ran.said);
    assert!(project.read("app.env").contains(OLD));
    project.run(&["resume", "--all", "--quiet"]).ends(3);
    project.run(&["status"]).ends(0).says("needs a person");
    project.guide(&["resume", "model"]).ends(0).says("promoted; v2 is current");
    assert!(!project.read("app.env").contains(OLD));
}

#[test]
fn h94_a_key_whose_value_was_lost_in_a_crash_is_named_and_ended() {
    let verify = "        verify: { command: [./verify] }\n";
    for config in [CONFIG.to_owned(), CONFIG.replace(verify, "")] {
        let project = Project::with_soak("1h");
        project.write("keywheel.yaml", &config.replace("soak: 1s", "soak: 1h"), 0o600);
        let mut command = project.command(&["rotate", "model", "--yes"]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut told = String::new();
        let question = next_question(&mut child, &mut told).unwrap();
        let lost = project.does(&question);
        kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
        child.wait().unwrap();
        let ran = project.guide(&["resume", "model"]);
        let name = question.split('`').nth(1).unwrap();
        ran.says(&format!("find every key whose name begins with `{name}`"));
        ran.says(&format!("end the key named `{name}` for good"));
        ran.ends(0).says("promoted; v2 is current");
        let keys = project.read("keys");
        assert!(!keys.contains(&lost) && keys.lines().count() == 2, "{keys}");
        let app = project.read("app.env");
        assert!(app.starts_with("MODEL_KEY=kwcanary-") && !app.contains(&lost), "{app}");
    }
}

#[test]
fn status_reminds_of_what_waits_for_a_person() {
    let project = Project::with_soak("1h");
    let long_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(80 * 24);
    let day = &long_ago.to_string()[..10];
    project.run(&["adopt", "model", "--yes", "--last-rotated", day]).ends(0);
    let due = project.run(&["status"]);
    due.ends(0).says("guided: needs you at a terminal").says("keywheel rotate model");
    project.run(&["rotate", "model", "--yes"]).ends(3);
    let waits = project.run(&["status"]);
    waits.ends(0).says("needs you (1)").says("needs a person").says("; since ");
    waits.says("keywheel resume model@default");
    let told = project.run(&["status", "--output", "json"]);
    let told: serde_json::Value = serde_json::from_str(&told.said).unwrap();
    assert!(told["environments"][0]["secrets"][0]["parked_at"].is_string(), "{told}");
    project.guide(&["resume", "model"]).ends(0).says("promoted; v2 is current");
    project.run(&["resume", "model", "--previous-id", "by-hand"]).ends(0);
    project.run(&["status"]).ends(0).says("revoked").says("(guided: needs you)");
}

#[test]
fn a_person_is_asked_for_orphans_where_they_are_to_be_ended() {
    let project = Project::with_soak("1s");
    project.guide(&["rotate", "model", "--yes"]).ends(3);
    project.guide(&["resume", "model", "--previous-id", "by-hand", "--soak"]).ends(0);
    let keys = project.read("keys");
    let name = keys.split(' ').next().unwrap().strip_suffix("-1").unwrap().to_owned();
    let others = format!("{keys}{name}-2 kwcanary-guided-late\n");
    project.write("keys", &others, 0o600);
    project.run(&["doctor"]).ends(0);
    let nobody = project.run(&["doctor", "--end-orphans", "--yes"]);
    nobody.ends(0).says("orphans were not looked for: needs a person");
    assert_eq!(project.read("keys"), others);
    let ran = project.guide(&["doctor", "--end-orphans", "--yes"]);
    ran.ends(0).says(&format!("end the key named `{name}-2` for good, and no other"));
    assert_eq!(project.read("keys"), keys);
}

/// What a terminal shows of a rotation in which this line is typed.
fn typed(project: &Project, line: &str) -> (Option<i32>, String) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let open = || {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).open(name.to_str().unwrap()).unwrap()
    };
    let mut command = project.command(&["rotate", "model", "--yes"]);
    let mut child = command.stdin(open()).stdout(open()).stderr(open()).spawn().unwrap();
    drop(command);
    let mut master = std::fs::File::from(master);
    let mut shown = String::new();
    let mut byte = [0];
    // The other end of a terminal that nobody holds open any more fails.
    while master.read(&mut byte).is_ok_and(|read| read == 1) {
        shown.push(char::from(byte[0]));
        if shown.ends_with("its value (not shown): ") || shown.ends_with("its value: ") {
            master.write_all(line.as_bytes()).unwrap();
        }
    }
    (child.wait().unwrap().code(), shown)
}

#[test]
fn h119_a_value_is_not_shown_while_it_is_typed() {
    let project = Project::with_soak("1h");
    let value = "kwcanary-guided-typed-0123456789";
    project.write("keys", &format!("by-hand {OLD}\nnew {value}\n"), 0o600);
    let (code, shown) = typed(&project, &format!("{value}\n"));
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("promoted; v2 is current") && !shown.contains(value), "{shown}");
    assert_eq!(project.read("app.env"), format!("MODEL_KEY={value}\n"));
}

#[test]
fn a_person_who_leaves_is_asked_later_what_became_of_the_key() {
    let project = Project::with_soak("1h");
    let mut child =
        project.command(&["rotate", "model", "--yes"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut told = String::new();
    next_question(&mut child, &mut told).unwrap();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    finished(child, told).ends(3).says("`keywheel resume` goes on");
    project.guide(&["resume", "model"]).ends(0).says("promoted; v2 is current");
    assert_eq!(project.read("keys").lines().count(), 2);
}
