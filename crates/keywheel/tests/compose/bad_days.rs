//! Containers that hang, crash, or cannot be made.

use super::*;

/// One service that reads the key, whose fate the key decides.
const BACKEND: &str = r#"
services:
  backend:
    image: IMAGE
    network_mode: none
    stop_grace_period: 1s
    env_file: [.env]
    command: ["/bin/busybox", "sh", "-c", "PROGRAM"]
    healthcheck: { test: ["CMD", "/bin/busybox", "sh", "-c", "HEALTH"], interval: 300ms, timeout: 60s }
EXTRA
"#;

pub(crate) const CONFIG: &str = r#"
project: shop
policies:
  fast: { soak: SOAK, rollback: 1s, watch: 1s }
stores:
  app: { env_file: { path: .env } }
workloads:
  backend:
    compose_service: { file: docker-compose.yml, service: backend, replicas: 2, program: [COMPOSE], socket: SOCKET, ready_within: 4s, ready_for: 200ms, settle_for: 1s }
secrets:
  app-key:
    policy: fast
    issuer: { random: { length: LENGTH } }
    stores: { app: { APP_KEY: current } }
    read_by: [backend]
"#;

const SERVES: &str = "trap 'exit 0' TERM; busybox sleep 1d & wait";
const REFUSES: &str =
    "trap 'exit 0' TERM; [ $${#APP_KEY} -le 40 ] || exit 7; busybox sleep 1d & wait";
const HANGS: &str = "trap '' TERM; busybox sleep 1d & wait";

/// Says what a bad day is made of.
#[derive(Clone, Copy)]
pub(crate) struct Day<'d> {
    pub(crate) program: &'d str,
    pub(crate) health: &'d str,
    pub(crate) extra: &'d str,
    pub(crate) soak: &'d str,
}

pub(crate) const GOOD: Day<'_> = Day { program: SERVES, health: "true", extra: "", soak: "1s" };

impl Day<'_> {
    pub(crate) fn begin(&self, ground: &Engine, compose: &Path) -> Project {
        let parts = [("PROGRAM", self.program), ("HEALTH", self.health), ("EXTRA", self.extra)];
        let fill = |text: String, (name, part): &(&str, &str)| text.replace(name, part);
        let files = Files {
            compose: &parts.iter().fold(BACKEND.to_owned(), fill),
            config: &CONFIG.replace("SOAK", self.soak),
            containers: 2,
            ..SHOP
        };
        Project::of(ground.clone(), compose, &files)
    }
}

/// Runs scenarios beside each other, each with a project of its own on one engine.
pub(crate) fn side_by_side(scenarios: &[fn(&Engine, &Path)]) {
    let (Some(compose), Some(docker)) = (compose(), engine()) else { return };
    let ground = Engine::Docker(docker);
    std::thread::scope(|scope| {
        for scenario in scenarios {
            scope.spawn(|| scenario(&ground, &compose));
        }
    });
}

#[test]
fn containers_that_do_not_do_as_they_should_end_a_rotation_as_it_began() {
    side_by_side(&[hangs_at_its_end, crashes_again_and_again, never_answers, cannot_be_made]);
}

fn hangs_at_its_end(ground: &Engine, compose: &Path) {
    let project = Day { program: HANGS, ..GOOD }.begin(ground, compose);
    let before = project.containers();
    project.run(&["rotate", "app-key", "--yes", "--soak"], 0);
    assert!(before.is_disjoint(&project.containers()), "they were killed after their grace");
    assert_eq!(project.holders(&project.key()), 2);
}

fn crashes_again_and_again(ground: &Engine, compose: &Path) {
    let extra = "    restart: always";
    let project = Day { program: REFUSES, extra, ..GOOD }.begin(ground, compose);
    let before = project.containers();
    project.mint(64);
    let since = std::time::Instant::now();
    let said = project.run(&["rotate", "app-key", "--yes"], 2);
    println!("a value that is refused was undone {:?} after `rotate` was called", since.elapsed());
    assert!(said.contains("before it was ready"), "{said}");
    assert_eq!((project.key().as_str(), project.holders(OLD)), (OLD, 2));
    assert_eq!(before.intersection(&project.containers()).count(), 1);
    project.run(&["doctor"], 0);
    // One that crashes before the rotation is found by the preflight, and nothing begins.
    project.set("APP_KEY", &"x".repeat(64));
    project.up(&["--scale", "backend=2"], &[]);
    project.set("APP_KEY", OLD);
    let before = project.containers();
    let said = project.run(&["rotate", "app-key", "--yes"], 4);
    assert!(said.contains("nothing was changed"), "{said}");
    assert_eq!(project.containers(), before);
}

fn never_answers(ground: &Engine, compose: &Path) {
    let health = "[ $${#APP_KEY} -le 40 ] || sleep 100";
    let project = Day { health, ..GOOD }.begin(ground, compose);
    let before = project.containers();
    project.mint(64);
    let said = project.run(&["rotate", "app-key", "--yes"], 2);
    assert!(said.contains("was not ready within 4 s"), "{said}");
    assert_eq!((project.key().as_str(), project.holders(OLD)), (OLD, 2));
    assert_eq!(before.intersection(&project.containers()).count(), 1);
}

/// What every container of the service mounts goes away, so that neither the new value nor the old one can be rolled out.
fn cannot_be_made(ground: &Engine, compose: &Path) {
    let extra = "    volumes: [{ type: bind, source: /tmp/FOLDER, target: /data, bind: { create_host_path: false } }]";
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let data = folder.path().to_owned();
    let extra = extra.replace("/tmp/FOLDER", &data.display().to_string());
    let project = Day { extra: &extra, ..GOOD }.begin(ground, compose);
    let before = project.containers();
    drop(folder);
    let said = project.run(&["rotate", "app-key", "--yes"], 3);
    assert!(said.contains("gets no new container"), "{said}");
    assert!(said.contains("keywheel resume app-key"), "{said}");
    assert_eq!(project.key(), OLD, "the old value was written back");
    assert_eq!(before.intersection(&project.containers()).count(), 1, "one serves on");
    let said = project.run(&["status", "--fail-on", "needs-operator"], 6);
    assert!(said.contains("needs you (1)"), "{said}");
    std::fs::create_dir(&data).unwrap();
    let said = project.run(&["resume", "app-key", "--soak"], 2);
    std::fs::remove_dir(&data).ok();
    assert!(said.contains("undone; v1 is current"), "{said}");
    assert_eq!(project.holders(OLD), 2);
    project.run(&["doctor"], 0);
}
