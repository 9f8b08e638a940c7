//! The program on a real Docker Compose project.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]
#![expect(clippy::print_stdout, reason = "a test says why it is skipped")]

use std::collections::BTreeSet;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use keywheel_ground::Engine;
use keywheel_ground::docker::{Docker, IMAGE, composes};
use keywheel_ground::podman::Podman;

#[path = "compose/bad_days.rs"]
mod bad_days;
#[path = "compose/batches.rs"]
mod batches;
#[path = "compose/by_hand.rs"]
mod by_hand;
#[path = "compose/drill.rs"]
mod drill;
#[path = "compose/elsewhere.rs"]
mod elsewhere;
#[path = "compose/emergency.rs"]
mod emergency;
#[path = "compose/found.rs"]
mod found;
#[path = "compose/interrupted.rs"]
mod interrupted;
#[path = "compose/refused.rs"]
mod refused;

#[path = "compose/environments.rs"]
mod environments;

/// Two services read the key: `backend` under its name, `worker` under another one. Neither starts without it, and `backend`
/// does not start with a key that is longer than it knows.
const COMPOSE: &str = r#"
services:
  backend:
    image: IMAGE
    network_mode: none
    stop_grace_period: 1s
    env_file: [.env]
    command: ["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM; [ $${#APP_KEY} -le 40 ] || exit 7; busybox sleep 1d & wait"]
    healthcheck: { test: ["CMD", "/bin/busybox", "true"], interval: 1s }
  worker:
    image: IMAGE
    network_mode: none
    stop_grace_period: 1s
    environment: { KEY: "${APP_KEY}" }
    command: ["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM; busybox sleep 1d & wait"]
"#;

const CONFIG: &str = r#"
project: shop
policies:
  fast: { soak: 1s, rollback: 1s, watch: 1s }
stores:
  app: { env_file: { path: .env } }
workloads:
  backend:
    compose_service: { file: docker-compose.yml, service: backend, replicas: 2, program: [COMPOSE], socket: SOCKET, ready_for: 200ms, settle_for: 1s }
  worker:
    compose_service: { file: docker-compose.yml, service: worker, start_first: true, variables: { APP_KEY: KEY }, program: [COMPOSE], socket: SOCKET, ready_for: 200ms, settle_for: 1s }
secrets:
  app-key:
    policy: fast
    issuer: { random: { length: LENGTH } }
    stores: { app: { APP_KEY: current } }
    read_by: [backend, worker]
"#;

const OLD: &str = "kwcanary-0123456789abcdefghijkl";

/// What a project is made of. `IMAGE`, `COMPOSE`, `SOCKET` and `LENGTH` are filled in.
#[derive(Clone, Copy)]
struct Files<'f> {
    compose: &'f str,
    config: &'f str,
    env: &'f str,
    /// Arguments of the first `up`.
    up: &'f [&'f str],
    /// How many containers it makes.
    containers: usize,
}

const SHOP: Files<'_> = Files {
    compose: COMPOSE,
    config: CONFIG,
    env: "# the shop\nAPP_KEY=kwcanary-0123456789abcdefghijkl\nOTHER=1\n",
    up: &["--scale", "backend=2"],
    containers: 3,
};

struct Project {
    ground: Engine,
    folder: tempfile::TempDir,
    compose: String,
    config: String,
}

impl Project {
    /// Begins a project whose services run, with the present generation of Compose; none, with the reason, where that
    /// cannot be had.
    fn begin() -> Option<Self> {
        let compose = compose()?;
        Some(Self::with(Engine::Docker(engine()?), &compose))
    }

    fn with(ground: Engine, compose: &Path) -> Self {
        Self::of(ground, compose, &SHOP)
    }

    fn of(ground: Engine, compose: &Path, files: &Files<'_>) -> Self {
        let project = Self::laid_out(ground, compose, files.config);
        project.write("docker-compose.yml", &files.compose.replace("IMAGE", IMAGE));
        project.write(".env", &format!("{}{}", files.env, project.named()));
        project.mint(32);
        project.up(files.up, &[]);
        project.wait_for(files.containers);
        project
    }

    /// Makes the folders of a project, with nothing in them.
    fn laid_out(ground: Engine, compose: &Path, config: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("shop").tempdir().unwrap();
        for name in ["project", "state", "keys"] {
            private(&folder.path().join(name));
        }
        Self { ground, folder, compose: compose.display().to_string(), config: config.into() }
    }

    fn named(&self) -> String {
        format!("COMPOSE_PROJECT_NAME={}\n", self.name())
    }

    /// Calls Compose by hand.
    fn up(&self, arguments: &[&str], variables: &[(&str, &str)]) {
        let mut up = self.ground.command(&self.compose);
        up.args(["up", "-d"]).args(arguments).current_dir(self.path());
        up.envs(variables.iter().copied()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(up.status().unwrap().success());
    }

    /// Waits until so many containers run, and none has a health check that was not answered yet.
    fn wait_for(&self, containers: usize) {
        let count = |filter: &str| self.docker(&["ps", "-q", "--filter", filter]).lines().count();
        for _ in 0..600 {
            if count("status=running") >= containers && count("health=starting") == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("{}", self.docker(&["ps", "-a"]));
    }

    /// Tells this project's containers apart from those of others on the same engine.
    fn name(&self) -> String {
        let name = self.folder.path().file_name().unwrap().to_str().unwrap();
        name.to_lowercase()
    }

    fn docker(&self, arguments: &[&str]) -> String {
        let own = format!("label=com.docker.compose.project={}", self.name());
        self.ground.run(&[arguments, &["--filter", &own]].concat())
    }

    /// Configures how long a new key is.
    fn mint(&self, length: usize) {
        let config = self
            .config
            .replace("COMPOSE", &self.compose)
            .replace("SOCKET", &self.ground.socket().display().to_string())
            .replace("LENGTH", &length.to_string());
        self.write("keywheel.yaml", &config);
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("project")
    }

    fn write(&self, name: &str, text: &str) {
        write(&self.path().join(name), text);
    }

    fn key(&self) -> String {
        self.variable("APP_KEY")
    }

    fn variable(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.path().join(".env")).unwrap();
        let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_owned());
        text.lines().find_map(value).unwrap()
    }

    /// Edits `.env` as a person would.
    fn set(&self, name: &str, value: &str) {
        let text = std::fs::read_to_string(self.path().join(".env")).unwrap();
        let old = format!("{name}={}", self.variable(name));
        self.write(".env", &text.replace(&old, &format!("{name}={value}")));
    }

    /// Writes a program that stands before Compose, and has it used.
    fn instead_of_compose(&mut self, text: &str) {
        self.write("compose", &text.replace("COMPOSE", &self.compose));
        let path = self.path().join("compose");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        self.config = self.config.replace("COMPOSE", &path.display().to_string());
        self.mint(32);
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
        let env = std::fs::read_to_string(self.path().join(".env")).unwrap();
        let values = env.lines().filter_map(|line| Some(line.split_once('=')?.1));
        let is_told = |value: &str| value.len() > 12 && said.contains(value);
        assert!(!said.contains("kwcanary") && !values.into_iter().any(is_told), "{said}");
        assert_eq!(status.code(), Some(ends), "{said}");
        said
    }

    fn containers(&self) -> BTreeSet<String> {
        let told = self.docker(&["ps", "-aq", "--no-trunc"]);
        told.lines().map(str::to_owned).collect()
    }

    /// Returns how many containers were given a key, under any name.
    fn holders(&self, key: &str) -> usize {
        let each = self.containers().into_iter();
        let environments =
            each.map(|id| self.ground.run(&["inspect", "-f", "{{.Config.Env}}", &id]));
        environments.filter(|environment| environment.contains(&format!("KEY={key}"))).count()
    }
}

fn private(folder: &Path) {
    std::fs::DirBuilder::new().mode(0o700).create(folder).unwrap();
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn first_or_skip<T>(all: Vec<T>, why: &str) -> Option<T> {
    let first = all.into_iter().next();
    if first.is_none() {
        println!("skipped: Docker Compose ({why})");
    }
    first
}

fn compose() -> Option<PathBuf> {
    first_or_skip(composes(), "none is installed")
}

fn engine() -> Option<Arc<Docker>> {
    match Docker::start() {
        Ok(docker) => Some(Arc::new(docker)),
        Err(why) => {
            println!("skipped: Docker Compose ({why})");
            None
        }
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
    project.up(&["--no-deps", "worker"], &[("APP_KEY", "masked-by-a-shell")]);
    let said = project.run(&["doctor"], 3);
    assert!(said.contains("1 of 1 replicas of `worker` hold another value"), "{said}");
    let said = project.run(&["check"], 4);
    assert!(said.contains("made from other settings"), "{said}");
    project.run(&["reconcile", "app-key", "--yes"], 0);
    assert_eq!(project.holders(OLD), 3);
    project.run(&["doctor"], 0);
}

#[test]
fn h111_no_value_stands_among_arguments() {
    let Some(project) = Project::begin() else { return };
    let trace = project.folder.path().join("execve");
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-s", "65536", "-v", "-e", "trace=execve", "-o"]).arg(&trace);
    let rotate = project.command(&["rotate", "app-key", "--yes"]);
    traced.arg(rotate.get_program()).args(rotate.get_args()).stdin(Stdio::null());
    let output = traced.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let started = std::fs::read_to_string(trace).unwrap();
    assert!(started.contains("--no-recreate"), "Compose was called");
    assert!(!started.contains(OLD) && !started.contains(&project.key()));
}

#[cfg(feature = "fail-points")]
mod kills {
    use std::collections::{BTreeMap, VecDeque};
    use std::os::unix::process::ExitStatusExt;
    use std::sync::Mutex;

    use super::*;

    /// How many projects live at once on one engine.
    const AT_ONCE: usize = 5;

    /// Steps at which a kill meets containers half-way; the driver's own places begin otherwise.
    const STEPS: [&str; 4] = ["write", "roll", "evidence", "container_"];

    /// Runs a rotation that nobody kills, and returns the places that it passed.
    fn places(project: &Project) -> Vec<String> {
        let list = project.folder.path().join("passed");
        let mut rotate = project.command(&["rotate", "app-key", "--yes"]);
        let output = rotate.env("KEYWHEEL_FAIL_POINT_LIST", &list).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut times = BTreeMap::new();
        let passed = std::fs::read_to_string(list).unwrap();
        let places = passed.lines().filter(|place| STEPS.iter().any(|step| place.contains(step)));
        let numbered = places.map(|place| {
            let nth = times.entry(place.to_owned()).and_modify(|nth| *nth += 1).or_insert(1);
            format!("{place}#{nth}")
        });
        numbered.collect()
    }

    fn killed_at(project: &Project, place: &str) {
        let log = project.folder.path().join("fired");
        let mut rotate = project.command(&["rotate", "app-key", "--yes"]);
        rotate.env("KEYWHEEL_FAIL_POINT", place).env("KEYWHEEL_FAIL_POINT_LOG", &log);
        let output = rotate.output().unwrap();
        assert_eq!(output.status.signal(), Some(9), "{place}: {output:?}");
        assert!(log.exists(), "{place} did not fire");
        let _said = project.run(&["resume", "--all", "--yes", "--soak"], 0);
        let key = project.key();
        assert_ne!(key, OLD, "{place}");
        assert_eq!((project.holders(OLD), project.holders(&key)), (0, 3), "{place}");
        assert_eq!(project.containers().len(), 3, "{place}");
        let _said = project.run(&["doctor"], 0);
        let _said = project.run(&["audit", "verify"], 0);
        // Their health checks would keep the machine busy until the engine ends.
        let all = project.containers();
        let all = all.iter().map(String::as_str);
        let _gone = project.ground.run(&["rm", "-f"].into_iter().chain(all).collect::<Vec<_>>());
    }

    fn kill_at_each(compose: &Path, choose: impl Fn(&[String]) -> Vec<String>) {
        let Some(docker) = engine() else { return };
        let ground = Engine::Docker(docker);
        let chosen = choose(&places(&Project::with(ground.clone(), compose)));
        let queue = Mutex::new(VecDeque::from(chosen.clone()));
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    while let Some(place) = { queue.lock().unwrap().pop_front() } {
                        killed_at(&Project::with(ground.clone(), compose), &place);
                    }
                });
            }
        });
        println!("killed at {} places: {chosen:?}", chosen.len());
    }

    /// What a place does to the first container and to the last one differs; to those between, it does the same again.
    fn first_and_last(places: &[String]) -> Vec<String> {
        fn name(place: &str) -> &str {
            place.rsplit_once('#').map_or(place, |(name, _)| name)
        }
        let is_among =
            |some: &[String], place: &str| some.iter().any(|one| name(one) == name(place));
        let each = places.iter().enumerate();
        let ends = each.filter(|(at, place)| {
            !is_among(&places[..*at], place) || !is_among(&places[at + 1..], place)
        });
        ends.map(|(_, place)| place.clone()).collect()
    }

    #[test]
    fn a_kill_at_any_write_roll_or_evidence_ends_as_if_there_was_none() {
        let Some(compose) = compose() else { return };
        kill_at_each(&compose, |places| {
            assert!(places.len() > 15, "{places:?}");
            first_and_last(places)
        });
    }

    #[test]
    fn a_kill_ends_as_if_there_was_none_with_compose_1_too() {
        let second = composes().into_iter().skip(1).collect();
        let Some(compose) = first_or_skip(second, "the first generation is not installed") else {
            return;
        };
        kill_at_each(&compose, |places| {
            let wanted = ["after_call:write", "container_removed", "container_made"];
            let first = |word: &&str| places.iter().find(|place| place.contains(*word)).cloned();
            let chosen: Vec<_> = wanted.iter().filter_map(first).collect();
            assert_eq!(chosen.len(), wanted.len(), "{places:?}");
            chosen
        });
    }
}
