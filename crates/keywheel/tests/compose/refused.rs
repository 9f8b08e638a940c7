//! What stands in the way before anything is changed: it is named, and nothing changes.

use super::bad_days::{Day, GOOD, side_by_side};
use super::*;

/// Asks a command that looks, and the one that acts: each names the same obstacle, and nothing changes.
#[track_caller]
fn names(project: &Project, obstacle: &str) {
    let (containers, env) = (project.containers(), project.env());
    let said = project.run(&["check"], 4);
    assert!(said.contains(obstacle), "check: {said}");
    let said = project.run(&["rotate", "app-key", "--yes"], 4);
    assert!(said.contains(obstacle) && said.contains("nothing was changed"), "rotate: {said}");
    assert_eq!((project.containers(), project.env()), (containers, env));
}

impl Project {
    fn env(&self) -> String {
        std::fs::read_to_string(self.path().join(".env")).unwrap()
    }
}

#[test]
fn h19_what_stands_in_the_way_is_named_before_anything_is_changed() {
    side_by_side(&[no_compose_file, no_compose, paused, needs_another, read_by_others]);
}

fn no_compose_file(ground: &Engine, compose: &Path) {
    let project = GOOD.begin(ground, compose);
    std::fs::rename(
        project.path().join("docker-compose.yml"),
        project.path().join("elsewhere.yml"),
    )
    .unwrap();
    names(&project, "there is no Compose file");
    project.write("docker-compose.yml", "services: [");
    names(&project, "`docker compose config` says why");
}

fn no_compose(ground: &Engine, compose: &Path) {
    let mut project = GOOD.begin(ground, compose);
    project.config = project.config.replace("[COMPOSE]", "[/nonexistent/docker-compose]");
    project.mint(32);
    names(&project, "Docker Compose does not answer");
    // An engine that is gone may come back, so `rotate` waits for it as long as its policy has patience.
    project.config = project.config.replace("SOCKET", "/nonexistent/docker.sock");
    project.config = project.config.replace("fast: {", "fast: { patience: 1s, retry: 100ms,");
    project.mint(32);
    names(&project, "there is no such socket; does the engine run?");
    let said = project.run(&["plan", "app-key"], 0);
    assert!(said.contains("v1 → "), "a plan asks the stores only: {said}");
}

fn paused(ground: &Engine, compose: &Path) {
    let project = GOOD.begin(ground, compose);
    let first = project.containers().into_iter().next().unwrap();
    let _name = project.ground.run(&["pause", &first]);
    names(&project, "is paused");
    let _name = project.ground.run(&["unpause", &first]);
}

/// `depends_on`: what a roll does not touch must be there, and is not touched.
fn needs_another(ground: &Engine, compose: &Path) {
    let extra = r#"
    depends_on: { db: { condition: service_started }, migrate: { condition: service_completed_successfully } }
  db: &other
    image: IMAGE
    network_mode: none
    stop_grace_period: 0s
    command: ["/bin/busybox", "sleep", "1000"]
  migrate: { <<: *other, command: ["/bin/busybox", "true"] }
"#;
    let project = Day { extra, ..GOOD }.begin(ground, compose);
    project.wait_for(3);
    let others = |project: &Project| {
        ["db", "migrate"].map(|service| {
            let own = format!("label=com.docker.compose.service={service}");
            project.docker(&["ps", "-aq", "--filter", &own]).trim().to_owned()
        })
    };
    let before = others(&project);
    let _name = project.ground.run(&["stop", &before[0]]);
    names(&project, "depends on `db`, which is not there: `docker compose up -d db` starts it");
    assert_eq!(others(&project), before);
    let _name = project.ground.run(&["start", &before[0]]);
    project.run(&["rotate", "app-key", "--yes", "--soak"], 0);
    assert_eq!(others(&project), before, "other services were left alone");
    assert_eq!(project.holders(&project.key()), 2);
}

/// Services that are given the value too and that nobody listed: by a file, by interpolation, and by name.
fn read_by_others(ground: &Engine, compose: &Path) {
    let extra = r#"
  by-file: &other
    image: IMAGE
    network_mode: none
    stop_grace_period: 0s
    env_file: [.env]
    command: ["/bin/busybox", "sleep", "1000"]
  inside: { image: IMAGE, network_mode: none, stop_grace_period: 0s, environment: { URL: "https://x:${APP_KEY}@host" }, command: ["/bin/busybox", "sleep", "1000"] }
  once: { <<: *other, command: ["/bin/busybox", "true"] }
  unrelated: { image: IMAGE, network_mode: none, stop_grace_period: 0s, environment: { APP_KEY: mine, A: "$$APP_KEY ${APP_KEYS:-}" }, command: ["/bin/busybox", "sleep", "1000"] }
"#;
    let project = Day { extra, ..GOOD }.begin(ground, compose);
    project.wait_for(5);
    let told = "service `by-file` is given `APP_KEY` too and would keep the old version: list it in `read_by` of `app-key`";
    names(&project, told);
    let said = project.run(&["check"], 4);
    assert!(said.contains("service `inside` is given `APP_KEY` too and would"), "{said}");
    assert!(said.contains("service `once` was given `APP_KEY` too: it does not run"), "{said}");
    assert!(!said.contains("unrelated"), "{said}");
    let said = project.run(&["plan", "app-key"], 0);
    assert!(said.contains(told), "{said}");
    // One that is listed and is given nothing proves nothing.
    project.write(
        "keywheel.yaml",
        &std::fs::read_to_string(project.path().join("keywheel.yaml"))
            .unwrap()
            .replace("service: backend", "service: unrelated")
            .replace("replicas: 2", "replicas: 1, start_first: true"),
    );
    let said = project.run(&["check"], 4);
    assert!(said.contains("service `unrelated` is not given `APP_KEY`"), "{said}");
}

#[test]
fn a_disk_that_is_full_or_cannot_be_written_leaves_everything_as_it_was() {
    side_by_side(&[full_or_read_only]);
}

/// A small disk of its own, for a folder of the project.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "none"]).arg(at);
        mount.status().is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }

    fn remount(&self, how: &str) {
        let option = format!("remount,{how}");
        let mounted = Command::new("mount").args(["-o", &option]).arg(&self.0).status();
        assert!(mounted.unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.0).status().ok();
    }
}

fn full_or_read_only(ground: &Engine, compose: &Path) {
    let project = GOOD.begin(ground, compose);
    let place = project.path().join("disk");
    let Some(disk) = Disk::mount(&place) else {
        return println!("skipped: a disk of its own cannot be mounted here");
    };
    std::fs::rename(project.path().join(".env"), place.join("app.env")).ok();
    let text = format!("# the shop\nAPP_KEY={OLD}\n");
    std::fs::write(place.join("app.env"), text).unwrap();
    let own = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(place.join("app.env"), own).unwrap();
    project.write(".env", &format!("COMPOSE_PROJECT_NAME={}\nAPP_KEY={OLD}\n", project.name()));
    let file = project.path().join("docker-compose.yml");
    let text = std::fs::read_to_string(file).unwrap();
    project.write("docker-compose.yml", &text.replace("[.env]", "[disk/app.env]"));
    let config = project.config.replace("path: .env", "path: disk/app.env");
    let project = Project { config, ..project };
    project.mint(32);
    project.up(&["--scale", "backend=2"], &[]);
    project.wait_for(2);
    let before = project.containers();
    let held = || std::fs::read(place.join("app.env")).unwrap();
    let text = held();
    disk.remount("ro");
    let said = project.run(&["check"], 4);
    assert!(said.contains("read-only"), "{said}");
    let said = project.run(&["rotate", "app-key", "--yes"], 4);
    assert!(said.contains("read-only") && said.contains("nothing was changed"), "{said}");
    disk.remount("rw");
    let filler = place.join("filler");
    std::fs::write(&filler, vec![0; 1 << 20]).expect_err("the disk is small");
    let said = project.run(&["rotate", "app-key", "--yes"], 2);
    assert!(said.contains("undone; v1 is current"), "{said}");
    assert_eq!((project.containers(), held()), (before.clone(), text));
    std::fs::remove_file(filler).unwrap();
    project.run(&["rotate", "app-key", "--yes", "--soak"], 0);
    assert!(before.is_disjoint(&project.containers()));
    project.run(&["doctor"], 0);
}
