//! The program on a real Docker Compose project.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]
#![expect(clippy::print_stdout, reason = "a test says why it is skipped")]

use std::collections::BTreeSet;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::process::{Command, Output, Stdio};

use keywheel_ground::docker::{Docker, IMAGE, composes};

/// Two services read the key: `backend` under its name, `worker` under another one. Neither starts without it, and `backend`
/// does not start with a key that is longer than it knows.
const COMPOSE: &str = r#"
services:
  backend:
    image: IMAGE
    network_mode: none
    stop_grace_period: 1s
    env_file: [.env]
    command: ["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM; [ $${#APP_KEY} -le 40 ] || exit 7; while :; do busybox sleep 0.1; done"]
    healthcheck: { test: ["CMD", "/bin/busybox", "true"], interval: 500ms }
  worker:
    image: IMAGE
    network_mode: none
    stop_grace_period: 1s
    environment: { KEY: "${APP_KEY}" }
    command: ["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM; while :; do busybox sleep 0.1; done"]
"#;

const CONFIG: &str = r#"
project: shop
policies:
  fast: { soak: 1s, rollback: 1s, watch: 1s }
stores:
  app: { env_file: { path: .env } }
workloads:
  backend:
    compose_service: { file: docker-compose.yml, service: backend, replicas: 2, program: [COMPOSE], socket: SOCKET, ready_for: 200ms }
  worker:
    compose_service: { file: docker-compose.yml, service: worker, start_first: true, variables: { APP_KEY: KEY }, program: [COMPOSE], socket: SOCKET, ready_for: 200ms }
secrets:
  app-key:
    policy: fast
    issuer: { random: { length: LENGTH } }
    stores: { app: { APP_KEY: current } }
    read_by: [backend, worker]
"#;

const OLD: &str = "kwcanary-0123456789abcdefghijkl";

struct Project {
    docker: Docker,
    folder: tempfile::TempDir,
    compose: String,
}

impl Project {
    /// Begins a project whose services run; none, with the reason, where that cannot be had.
    fn begin() -> Option<Self> {
        let Some(compose) = composes().into_iter().next() else {
            println!("skipped: Docker Compose (none is installed)");
            return None;
        };
        let docker = match Docker::start() {
            Ok(docker) => docker,
            Err(why) => {
                println!("skipped: Docker Compose ({why})");
                return None;
            }
        };
        let folder = tempfile::tempdir().unwrap();
        for name in ["project", "state", "keys"] {
            std::fs::DirBuilder::new().mode(0o700).create(folder.path().join(name)).unwrap();
        }
        let project = Self { docker, folder, compose: compose.display().to_string() };
        project.write("docker-compose.yml", &COMPOSE.replace("IMAGE", IMAGE));
        project.write(".env", &format!("# the shop\nAPP_KEY={OLD}\nOTHER=1\n"));
        project.mint(32);
        let mut up = project.docker.command(&project.compose);
        up.args(["up", "-d", "--wait", "--scale", "backend=2"]).current_dir(project.path());
        assert!(up.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
        Some(project)
    }

    /// Configures how long a new key is.
    fn mint(&self, length: usize) {
        let config = CONFIG
            .replace("COMPOSE", &self.compose)
            .replace("SOCKET", &self.docker.socket().display().to_string())
            .replace("LENGTH", &length.to_string());
        self.write("keywheel.yaml", &config);
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("project")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn key(&self) -> String {
        let text = std::fs::read_to_string(self.path().join(".env")).unwrap();
        text.lines().find_map(|line| line.strip_prefix("APP_KEY=")).unwrap().to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keywheel"));
        command.args(arguments).stdin(Stdio::null());
        command.arg("--config").arg(self.path().join("keywheel.yaml"));
        command.arg("--journal").arg(self.folder.path().join("state/journal.sqlite"));
        command.arg("--kek").arg(self.folder.path().join("keys/kek"));
        command
    }

    #[track_caller]
    fn run(&self, arguments: &[&str], ends: i32) -> String {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        let said = [stdout, stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(!said.contains(OLD) && !said.contains(&self.key()), "a value was printed: {said}");
        assert_eq!(status.code(), Some(ends), "{said}");
        said
    }

    fn containers(&self) -> BTreeSet<String> {
        let told = self.docker.docker(&["ps", "-aq", "--no-trunc"]);
        told.lines().map(str::to_owned).collect()
    }

    /// Returns how many containers were given a key, under any name.
    fn holders(&self, key: &str) -> usize {
        let each = self.containers().into_iter();
        let environments =
            each.map(|id| self.docker.docker(&["inspect", "-f", "{{.Config.Env}}", &id]));
        environments.filter(|environment| environment.contains(&format!("KEY={key}"))).count()
    }
}

#[test]
fn a_rotation_reaches_every_container_of_every_service_that_reads_it() {
    let Some(project) = Project::begin() else { return };
    assert_eq!(project.holders(OLD), 3);
    let before = project.containers();
    let said = project.run(&["check"], 0);
    assert!(said.contains("ready"), "{said}");
    assert_eq!(project.containers(), before, "`check` changes nothing");
    let said = project.run(&["rotate", "app-key", "--yes", "--soak"], 0);
    assert!(said.contains("completed; v2 is current"), "{said}");
    let key = project.key();
    assert_ne!(key, OLD);
    assert_eq!((project.holders(OLD), project.holders(&key)), (0, 3));
    assert!(before.is_disjoint(&project.containers()));
    let said = project.run(&["doctor"], 0);
    assert!(said.contains("world and journal agree"), "{said}");
}

#[test]
fn a_value_that_the_program_refuses_is_undone() {
    let Some(project) = Project::begin() else { return };
    let before = project.containers();
    project.mint(64);
    let said = project.run(&["rotate", "app-key", "--yes"], 2);
    assert!(said.contains("ended with 7 before it was ready"), "{said}");
    assert_eq!((project.key().as_str(), project.holders(OLD)), (OLD, 3));
    assert_eq!(
        before.intersection(&project.containers()).count(),
        2,
        "one container was the price"
    );
}

#[test]
fn a_container_with_another_value_is_found() {
    let Some(project) = Project::begin() else { return };
    project.run(&["adopt", "app-key", "--yes"], 0);
    let mut up = project.docker.command(&project.compose);
    up.args(["up", "-d", "--no-deps", "worker"])
        .current_dir(project.path())
        .env("APP_KEY", "masked-by-a-shell");
    assert!(up.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    let said = project.run(&["doctor"], 3);
    assert!(said.contains("1 of 1 replicas of `worker` hold another value"), "{said}");
    let said = project.run(&["check"], 4);
    assert!(said.contains("made from other settings"), "{said}");
    project.run(&["reconcile", "app-key", "--yes"], 0);
    assert_eq!(project.holders(OLD), 3);
    project.run(&["doctor"], 0);
}
