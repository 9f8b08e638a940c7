//! The program before twins of providers: from adoption to the proof that the former key is dead, and every way back.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

#[path = "providers/anthropic.rs"]
mod anthropic;
#[path = "providers/openrouter.rs"]
mod openrouter;
#[path = "providers/records.rs"]
mod records;

const CONFIG: &str = "
project: shop
policies:
  fast: { cryptoperiod: 90d, soak: SOAK, rollback: 1s, watch: 1s, call: 2s }
stores:
  app: { env_file: { path: app.env } }
secrets:
  model:
    policy: fast
    issuer: { ISSUER }
    stores: { app: MODEL_KEY }
    read_by: nobody
    because: it is read when the image is built
";

/// A project with one secret, in a folder of its own.
struct Project {
    folder: tempfile::TempDir,
    issuer: String,
    /// What the program must never print.
    values: [String; 2],
}

impl Project {
    /// Writes the configuration of an issuer, its admin credential, and the key in use.
    fn new(issuer: &str, admin: &str, key: &str) -> Self {
        let project = Self {
            folder: tempfile::tempdir().unwrap(),
            issuer: issuer.into(),
            values: [admin.into(), key.into()],
        };
        for name in ["project", "state", "keys"] {
            let folder = project.folder.path().join(name);
            std::fs::DirBuilder::new().mode(0o700).create(folder).unwrap();
        }
        project.write("admin.key", admin);
        project.write("app.env", &format!("MODEL_KEY={key}\n"));
        project.soaks("1s");
        project
    }

    /// Says how long a version soaks.
    fn soaks(&self, soak: &str) {
        let config = CONFIG.replace("SOAK", soak).replace("ISSUER", &self.issuer);
        self.write("keywheel.yaml", &config);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("project").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(self.path(name)).unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Returns the key that the application reads.
    fn key(&self) -> String {
        let text = std::fs::read_to_string(self.path("app.env")).unwrap();
        text.trim_end().strip_prefix("MODEL_KEY=").unwrap().to_owned()
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
        self.finished(self.command(arguments).spawn().unwrap(), String::new())
    }

    /// Runs with somebody who answers each question, as long as they are asked.
    fn guide(&self, arguments: &[&str], answer: impl Fn(&str) -> String) -> Ran {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut told = String::new();
        while let Some(question) = next_question(&mut child, &mut told) {
            writeln!(child.stdin.as_mut().unwrap(), "{}", answer(&question)).unwrap();
        }
        self.finished(child, told)
    }

    fn finished(&self, child: Child, told: String) -> Ran {
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = format!("{told}{}{}", text(&output.stderr), text(&output.stdout));
        for value in self.values.iter().chain([&self.key()]) {
            assert!(!said.contains(value), "a value was printed: {said}");
        }
        Ran { code: output.status.code(), said }
    }
}

/// Reads on until the program asks something, and returns what it told since the last question.
fn next_question(child: &mut Child, told: &mut String) -> Option<String> {
    let began = told.len();
    let stderr = child.stderr.as_mut().unwrap();
    let mut byte = [0];
    while stderr.read(&mut byte).unwrap() == 1 {
        told.push(char::from(byte[0]));
        let prompts = ["its value: ", "if there is none: ", "if it is not: "];
        if prompts.iter().any(|prompt| told.ends_with(prompt)) {
            return Some(told[began..].to_owned());
        }
    }
    None
}

/// Returns the name that a question gives to a key, or asks for.
fn name_in(question: &str) -> &str {
    let words = ["name it exactly `", "name begins with `", "the key named `"];
    let after = words.iter().find_map(|words| question.rsplit_once(words)).unwrap().1;
    after.split('`').next().unwrap()
}

#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    said: String,
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
