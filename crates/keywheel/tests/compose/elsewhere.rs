//! The first generation of Compose, and Podman.

use super::bad_days::CONFIG as ONE;
use super::*;

/// Whole rotations: one that completes, and one that is undone.
fn serves(ground: &Engine, compose: &Path, files: &Files<'_>) {
    let project = Project::of(ground.clone(), compose, files);
    let before = project.containers();
    project.run(&["check"], 0);
    assert_eq!(project.containers(), before);
    let said = project.run(&["rotate", "app-key", "--yes", "--soak"], 0);
    assert!(said.contains("completed; v2 is current"), "{said}");
    let key = project.key();
    assert_eq!((project.holders(OLD), project.holders(&key)), (0, files.containers));
    assert!(before.is_disjoint(&project.containers()));
    let before = project.containers();
    project.mint(64);
    let said = project.run(&["rotate", "app-key", "--yes"], 2);
    assert!(said.contains("ended with 7 before it was ready"), "{said}");
    assert_eq!((project.key(), project.holders(&key)), (key.clone(), files.containers));
    assert_eq!(before.intersection(&project.containers()).count(), files.containers - 1);
    project.run(&["doctor"], 0);
    project.run(&["check"], 0);
}

#[test]
fn compose_1_serves_as_the_present_one_does() {
    let first = composes().into_iter().nth(1).into_iter().collect();
    let Some(compose) = first_or_skip(first, "the first generation is not installed") else {
        return;
    };
    let Some(docker) = engine() else { return };
    // Compose 1 wants to be told which form the file has.
    let text = format!("version: \"3.8\"{COMPOSE}");
    serves(&Engine::Docker(docker), &compose, &Files { compose: &text, ..SHOP });
}

#[test]
fn podman_serves_as_docker_does() {
    let Some(compose) = compose() else { return };
    let podman = match Podman::start() {
        Ok(podman) => podman,
        Err(why) => return println!("skipped: Podman ({why})"),
    };
    // Podman leaves health checks to systemd, which a test cannot start.
    let is_check = |line: &&str| !line.contains("healthcheck") && !line.contains("worker:");
    let backend = COMPOSE.lines().take_while(|line| !line.contains("worker:"));
    let text = backend.filter(is_check).collect::<Vec<_>>().join("\n");
    let config = ONE.replace("SOAK", "1s");
    let files = Files { compose: &text, config: &config, containers: 2, ..SHOP };
    serves(&Engine::Podman(podman.into()), &compose, &files);
}
