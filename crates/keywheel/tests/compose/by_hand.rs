//! What somebody does by hand while a rotation soaks.

use super::bad_days::{Day, GOOD, side_by_side};
use super::*;

const HAND: &str = "kwcanary-made-by-hand-0123456789";

/// Begins a rotation that is promoted, with both versions alive for longer than a command waits.
fn soaking(ground: &Engine, compose: &Path) -> Project {
    let project = Day { soak: "9s", ..GOOD }.begin(ground, compose);
    project.run(&["rotate", "app-key", "--yes"], 0);
    project.open();
    project
}

impl Project {
    fn open(&self) {
        let told = self.run(&["rotation", "list"], 0);
        assert!(told.contains("soaking"), "{told}");
    }

    fn completes(&self) {
        let said = self.run(&["resume", "--all", "--soak"], 0);
        assert!(said.contains("completed; v2 is current"), "{said}");
        self.run(&["doctor"], 0);
    }

    /// Looks again, as cron does, and finds that nothing may be ended yet.
    fn is_held_up(&self) {
        self.run(&["resume", "--all"], 0);
        self.open();
    }
}

#[test]
fn what_is_changed_by_hand_holds_the_end_of_the_former_version_up() {
    side_by_side(&[edited, recreated, stopped]);
}

fn edited(ground: &Engine, compose: &Path) {
    let project = soaking(ground, compose);
    let new = project.key();
    for value in [OLD, HAND] {
        project.set("APP_KEY", value);
        project.is_held_up();
        let said = project.run(&["doctor"], 3);
        assert!(said.contains("store `app` was changed by somebody else"), "{said}");
        project.run(&["reconcile", "app-key", "--keep", "--yes"], 4);
        let said = project.run(&["reconcile", "app-key", "--yes"], 0);
        assert!(said.contains("wrote store `app`"), "{said}");
        assert_eq!(project.key(), new);
    }
    project.completes();
    // With nothing open, what was made by hand can be kept.
    project.set("APP_KEY", HAND);
    project.run(&["doctor"], 3);
    let said = project.run(&["reconcile", "app-key", "--keep", "--yes"], 0);
    assert!(said.contains("is v3 now"), "{said}");
    project.run(&["doctor"], 3);
    project.run(&["reconcile", "app-key", "--yes"], 0);
    assert_eq!(project.holders(HAND), 2);
    project.run(&["doctor"], 0);
}

fn recreated(ground: &Engine, compose: &Path) {
    let project = soaking(ground, compose);
    let new = project.key();
    project.set("APP_KEY", OLD);
    project.up(&["--force-recreate", "--scale", "backend=2"], &[]);
    project.set("APP_KEY", &new);
    project.wait_for(2);
    project.is_held_up();
    let said = project.run(&["doctor"], 3);
    assert!(said.contains("2 of 2 replicas of `backend` hold another value"), "{said}");
    let said = project.run(&["reconcile", "app-key", "--yes"], 0);
    assert!(said.contains("every replica of `backend` holds it"), "{said}");
    assert_eq!((project.holders(OLD), project.holders(&new)), (0, 2));
    project.completes();
}

fn stopped(ground: &Engine, compose: &Path) {
    let project = soaking(ground, compose);
    let before = project.containers();
    let new = project.key();
    project.set("APP_KEY", OLD);
    project.up(&["--no-recreate", "--scale", "backend=3"], &[]);
    project.set("APP_KEY", &new);
    let stale = project.containers().into_iter().find(|id| !before.contains(id)).unwrap();
    let _id = project.ground.run(&["stop", &stale]);
    project.is_held_up();
    let said = project.run(&["doctor"], 3);
    assert!(said.contains("1 of 3 replicas of `backend` hold another value"), "{said}");
    let _id = project.ground.run(&["rm", &stale]);
    project.completes();
}

#[test]
fn h41_no_container_at_all_is_never_green() {
    side_by_side(&[|ground, compose| {
        let project = soaking(ground, compose);
        for id in project.containers() {
            let _id = project.ground.run(&["rm", "-f", &id]);
        }
        project.is_held_up();
        let said = project.run(&["doctor"], 3);
        assert!(said.contains("workload `backend` has no replica"), "{said}");
        let said = project.run(&["check"], 4);
        assert!(said.contains("has no container"), "{said}");
    }]);
}
