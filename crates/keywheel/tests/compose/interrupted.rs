//! Rotations that are stopped, killed, or begun twice, and what `resume` makes of them.

use std::os::unix::process::ExitStatusExt;
use std::process::Child;

use rustix::process::{Pid, Signal, kill_process};

use super::bad_days::{GOOD, side_by_side};
use super::*;

/// Compose takes its time to make a container, and says when it has begun.
const SLOW: &str = "#!/bin/sh
for word; do [ \"$word\" = up ] && { echo x >> made; sleep 1; }; done
exec COMPOSE \"$@\"
";

/// A rotation on its way.
struct Running {
    child: Child,
    project: Project,
}

impl Running {
    /// Begins a rotation and waits until it has a container made.
    fn begin(ground: &Engine, compose: &Path) -> Self {
        let mut project = GOOD.begin(ground, compose);
        project.instead_of_compose(SLOW);
        project.run(&["adopt", "app-key", "--yes"], 0);
        let mut rotate = project.command(&["rotate", "app-key", "--yes"]);
        let child = rotate.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let running = Self { child, project };
        let is_making = || running.project.path().join("made").exists();
        for _ in 0..600 {
            if is_making() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(is_making(), "Compose was never called");
        running
    }

    fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn ends(self) -> (Project, Output) {
        let output = self.child.wait_with_output().unwrap();
        (self.project, output)
    }
}

fn ended_as_an_unkilled_one(project: &Project) {
    let key = project.key();
    assert_ne!(key, OLD);
    assert_eq!((project.holders(OLD), project.holders(&key)), (0, 2));
    assert_eq!(project.containers().len(), 2, "nothing was made behind our back");
    for command in [&["doctor"][..], &["check"], &["audit", "verify"]] {
        let _said = project.run(command, 0);
    }
}

#[test]
fn h14_a_rotation_of_containers_that_is_stopped_or_killed_ends_as_if_it_was_not() {
    side_by_side(&[stopped_once, stopped_twice, killed, two_at_once]);
}

fn stopped_once(ground: &Engine, compose: &Path) {
    let running = Running::begin(ground, compose);
    running.send(Signal::INT);
    let (project, output) = running.ends();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("stopping after this step; once more leaves at once"), "{said}");
    assert!(said.contains("`keywheel resume` goes on"), "{said}");
    let key = project.key();
    assert_eq!(project.holders(&key), 2, "the step was taken to its end");
    project.run(&["resume", "--all", "--soak"], 0);
    assert_eq!(project.key(), key);
    ended_as_an_unkilled_one(&project);
}

fn stopped_twice(ground: &Engine, compose: &Path) {
    let running = Running::begin(ground, compose);
    running.send(Signal::INT);
    std::thread::sleep(Duration::from_millis(300));
    running.send(Signal::INT);
    let (project, output) = running.ends();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("left at once"), "{said}");
    assert_eq!(project.containers().len(), 1, "Compose had not made the successor yet");
    project.run(&["resume", "app-key", "--soak"], 0);
    ended_as_an_unkilled_one(&project);
}

/// Killed without a chance to clean up, while Compose goes on; then cron comes, twice at the same moment.
fn killed(ground: &Engine, compose: &Path) {
    let running = Running::begin(ground, compose);
    running.send(Signal::KILL);
    let (project, output) = running.ends();
    assert_eq!(output.status.signal(), Some(9));
    let quiet = ["resume", "--all", "--quiet", "--soak"];
    let mut other = project.command(&quiet);
    let other = other.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let first = project.command(&quiet).output().unwrap();
    let second = other.wait_with_output().unwrap();
    let mut codes = [first.status.code(), second.status.code()];
    codes.sort_unstable();
    // The other one is told who works on it, or comes when nothing is owed any more.
    assert!(matches!(codes, [Some(0), Some(0 | 4)]), "{first:?} {second:?}");
    for output in [&first, &second].into_iter().filter(|output| output.status.code() == Some(4)) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("is being worked on by pid"), "{said}");
    }
    ended_as_an_unkilled_one(&project);
    let nothing = project.command(&["resume", "--all", "--quiet"]).output().unwrap();
    assert!(nothing.status.success() && nothing.stdout.is_empty() && nothing.stderr.is_empty());
}

/// The second request for one secret is refused while the first one is on its way, and changes nothing.
fn two_at_once(ground: &Engine, compose: &Path) {
    let running = Running::begin(ground, compose);
    let said = running.project.run(&["rotate", "app-key", "--yes"], 4);
    assert!(said.contains("`app-key@default` has an open rotation"), "{said}");
    let (project, output) = running.ends();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    project.run(&["resume", "--all", "--soak"], 0);
    ended_as_an_unkilled_one(&project);
}

/// One service that reads two keys.
const SHARED: &str = r#"
services:
  backend:
    image: IMAGE
    network_mode: none
    stop_grace_period: 1s
    environment: [FIRST_KEY, APP_KEY]
    command: ["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM; busybox sleep 1d & wait"]
"#;

const TWO: &str = r#"
project: shop
policies:
  fast: { soak: 1s, rollback: 1s, watch: 1s }
stores:
  app: { env_file: { path: .env } }
workloads:
  backend: { compose_service: { file: docker-compose.yml, service: backend, replicas: 2, program: [COMPOSE], socket: SOCKET, ready_for: 200ms, settle_for: 1s } }
secrets:
  first: { policy: fast, issuer: { random: { length: 32 } }, stores: { app: FIRST_KEY }, read_by: [backend] }
  second: { policy: fast, issuer: { random: { length: LENGTH } }, stores: { app: APP_KEY }, read_by: [backend] }
"#;

#[test]
fn h61_two_rotations_of_one_service_take_turns() {
    let (Some(compose), Some(docker)) = (compose(), engine()) else { return };
    let env = "FIRST_KEY=kwcanary-first-0123456789\nAPP_KEY=kwcanary-0123456789abcdefghijkl\n";
    let files = Files { compose: SHARED, config: TWO, env, containers: 2, ..SHOP };
    let mut project = Project::of(Engine::Docker(docker), &compose, &files);
    project.instead_of_compose(SLOW);
    project.run(&["adopt", "--all", "--yes"], 0);
    let rotate = |name: &str| {
        let mut rotate = project.command(&["rotate", name, "--yes", "--soak"]);
        rotate.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let both = [rotate("first"), rotate("second")].map(|child| child.wait_with_output().unwrap());
    let said = both.each_ref().map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(both.iter().all(|output| output.status.success()), "{said:?}");
    assert!(said.iter().any(|said| said.contains("is moving")), "{said:?}");
    assert_eq!(project.containers().len(), 2);
    for name in ["FIRST_KEY", "APP_KEY"] {
        let key = project.variable(name);
        assert!(!key.starts_with("kwcanary"), "{name}");
        assert_eq!(project.holders(&key), 2, "{name}");
    }
    project.run(&["doctor"], 0);
}
