//! What is said of rotations that wait or are parked, and whether what it advises helps.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{CONFIG, OLD, Project};

const HAND: &str = "kwcanary-made-by-hand-0123456";

fn value(project: &Project, store: &str) -> String {
    let text = project.read(store);
    let line = text.lines().find_map(|line| line.strip_prefix("PEPPER="));
    line.unwrap().trim_matches('\'').to_owned()
}

/// A project whose new version was just promoted, and whose soak takes this long.
fn soaking(soak: &str) -> Project {
    let project = Project::new();
    project.write("keywheel.yaml", &CONFIG.replace("soak: 1s", soak));
    project.run(&["rotate", "pepper", "--yes"]).ends(0).says("promoted");
    project
}

#[test]
fn h35_an_edit_by_hand_while_a_rotation_soaks_is_put_right() {
    let project = soaking("soak: 1h");
    let new = value(&project, "app.env");
    project.write("web.env", &format!("PEPPER={HAND}\n"));
    project.run(&["resume", "--all"]).ends(0);
    assert_eq!(value(&project, "web.env"), HAND, "`resume` looks, and writes nothing here");
    project.run(&["doctor"]).ends(3).says("keywheel reconcile pepper@default");
    project.run(&["reconcile", "pepper", "--keep", "--yes"]).ends(4).says("K0202");
    project.run(&["reconcile", "pepper", "--yes"]).ends(0).says("wrote store `web`");
    assert_eq!((value(&project, "app.env"), value(&project, "web.env")), (new.clone(), new));
    project.run(&["doctor"]).ends(0).says("world and journal agree");
    project.run(&["reconcile", "pepper", "--yes"]).ends(0).says("nothing to do");
    project.run(&["undo", "pepper", "--yes"]).ends(0).says("v1 is current again");
}

#[test]
fn h35_a_way_back_that_met_an_edit_by_hand_goes_on_once_it_is_put_right() {
    let project = soaking("soak: 1h");
    project.write("web.env", &format!("PEPPER={HAND}\n"));
    project.run(&["undo", "pepper", "--yes"]).ends(3).says("drift: write web: PEPPER");
    project.run(&["resume", "pepper"]).ends(3).says("drift: write web: PEPPER");
    project.run(&["doctor"]).ends(3).says("keywheel reconcile pepper@default");
    project.run(&["reconcile", "pepper", "--yes"]).ends(0).says("wrote store `web`");
    project.run(&["resume", "pepper"]).ends(0).says("v1 is current again");
    assert!(project.read("app.env").contains(OLD) && project.read("web.env").contains(OLD));
    project.run(&["doctor"]).ends(0);
}

#[test]
fn a_parked_rotation_that_can_turn_round_offers_the_way_back() {
    let project = soaking("soak: 12s, gate_limit: 1s");
    project.run(&["undo", "pepper"]).ends(4).says("K0206").says("hint: say `--yes`");
    project.write("web.env", &format!("PEPPER={HAND}\n"));
    let parked = project.run(&["resume", "pepper", "--soak"]);
    parked.ends(3).says("a gate stayed closed").says("back: keywheel undo pepper@default");
    let status = project.json(&["status"]);
    let told = &status["environments"][0]["secrets"][0];
    assert_eq!(told["standing"], "needs_operator");
    assert_eq!(told["parked"], "a gate stayed closed for too long");
    let seen = "store `web` was changed by somebody else";
    assert_eq!(
        (&told["held_up"]["drift"], &told["held_up"]["seen"]),
        (&"closed".into(), &seen.into())
    );
    project.run(&["status"]).ends(0).says(&format!("too long: {seen}; since"));
    project.run(&["reconcile", "pepper", "--yes"]).ends(0).says("wrote store `web`");
    let undone = project.json(&["undo", "pepper", "--yes"]);
    let rotation = &undone["rotations"][0];
    assert_eq!((&rotation["outcome"], &rotation["parked"]), (&"open".into(), &().into()));
    assert!(project.read("web.env").contains(OLD));
}

#[test]
fn a_summary_says_why_a_rotation_is_parked() {
    let project = soaking("soak: 1h");
    project.write("web.env", &format!("PEPPER={HAND}\n"));
    let parked = project.json(&["undo", "pepper", "--yes"]);
    let rotation = &parked["rotations"][0];
    assert_eq!(rotation["outcome"], "needs_operator");
    assert!(rotation["parked"].as_str().unwrap().starts_with("drift: write web: PEPPER ← v1"));
}

#[test]
fn a_batch_whose_members_can_turn_round_does_so_together() {
    let project = Project::new();
    let second = CONFIG.split_once("  pepper:").unwrap().1.replace("PEPPER", "SALT");
    let config = format!("{}  salt:{second}", CONFIG.replace("soak: 1s", "soak: 1h"));
    project.write("keywheel.yaml", &config);
    project.write("app.env", &format!("PEPPER={OLD}\nSALT={OLD}\n"));
    project.write("web.env", &format!("PEPPER={OLD}\nSALT={OLD}\n"));
    let ran = project.run(&["rotate", "--all", "--yes"]);
    ran.ends(0).says("back: keywheel undo salt@default").says("back: keywheel undo pepper@default");
    project.run(&["undo", "salt"]).ends(4).says("K0206");
    let ran = project.run(&["undo", "salt", "--yes"]);
    ran.ends(0).says("salt@default: turned round").says("pepper@default: turned round");
    assert!(!ran.stdout.contains("keywheel undo"), "{ran:?}");
}

/// The store of a first version is empty until the first write, and `doctor` does not mind.
#[test]
fn a_first_rotation_before_its_first_write_is_no_finding() {
    const STORE: &str = r#"
  app:
    command:
      id: app
      read: [sh, -c, "cat >/dev/null; echo '{\"slots\": {\"PEPPER\": null}}'"]
      write: [sh, -c, "cat >/dev/null; touch began; sleep 20"]
      within: 30s
"#;
    let project = Project::new();
    let (head, tail) = CONFIG.split_once("stores:").unwrap();
    let (_, secrets) = tail.split_once("secrets:").unwrap();
    let secrets = secrets.replace(", web: { PEPPER: current }", "");
    project.write("keywheel.yaml", &format!("{head}stores:{STORE}secrets:{secrets}"));
    let rotate = Ended(project.command(&["rotate", "pepper", "--yes"]).spawn().unwrap());
    while !project.path("began").exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let doctor = project.run(&["doctor"]);
    drop(rotate);
    doctor.ends(0).says("world and journal agree");
}

/// A program that is ended with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let ended = self.0.kill().and_then(|()| self.0.wait());
        assert!(ended.is_ok(), "{ended:?}");
    }
}

/// Keeps one process alive whose environment is what the store, and then a file `override`, held when it began.
const SUPERVISOR: &str = "
while [ ! -e stop ]; do
  ( set -a; . ./app.env; [ ! -e override ] || . ./override; exec sleep 600 ) &
  echo $! > new.pid; mv new.pid web.pid
  wait $!
done";

struct Supervised {
    project: Project,
    supervisor: Option<Child>,
}

impl Supervised {
    fn new() -> Self {
        let project = Project::new();
        let supervisor = Command::new("sh")
            .args(["-c", SUPERVISOR])
            .current_dir(project.path(""))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Self { project, supervisor: Some(supervisor) };
        begun.replica();
        begun
    }

    /// Returns the replica that runs now.
    fn replica(&self) -> rustix::process::Pid {
        loop {
            let text = std::fs::read_to_string(self.project.path("web.pid")).unwrap_or_default();
            let pid = text.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
            let runs = |pid: &rustix::process::Pid| {
                let name = format!("/proc/{}/comm", pid.as_raw_nonzero());
                std::fs::read_to_string(Path::new(&name)).is_ok_and(|name| name == "sleep\n")
            };
            if let Some(pid) = pid.filter(runs) {
                return pid;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end_replica(&self) {
        rustix::process::kill_process(self.replica(), rustix::process::Signal::TERM).unwrap();
    }

    fn replace_by_hand(&self) {
        let before = self.replica();
        self.end_replica();
        while self.replica() == before {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.project.write("stop", "");
        self.end_replica();
        if let Some(mut supervisor) = self.supervisor.take() {
            supervisor.wait().unwrap();
        }
    }
}

#[test]
fn h35_a_replica_with_another_environment_is_found_and_replaced_while_a_rotation_soaks() {
    const WORKLOAD: &str = "workloads:
  web: { process: { replicas: [{ pid_file: web.pid }], shows: environ, ready_for: 50ms, settle_for: 500ms } }
secrets:";
    let supervised = Supervised::new();
    let project = &supervised.project;
    let config = CONFIG.replace("secrets:", WORKLOAD).replace("soak: 1s", "soak: 1h");
    let config = config.replace(", web: { PEPPER: current }", "");
    let config = config.replace(
        "read_by: nobody\n    because: it is read when the image is built",
        "read_by: [web]",
    );
    project.write("keywheel.yaml", &config);
    project.run(&["rotate", "pepper", "--yes"]).ends(0).says("promoted; v2 is current");
    project.run(&["doctor"]).ends(0).says("world and journal agree");
    project.write("override", &format!("PEPPER={HAND}\n"));
    supervised.replace_by_hand();
    project.run(&["doctor"]).ends(3).says("1 of 1 replicas of `web` hold another value");
    std::fs::remove_file(project.path("override")).unwrap();
    project.run(&["reconcile", "pepper", "--yes"]).ends(0).says("every replica of `web` holds it");
    project.run(&["doctor"]).ends(0);
    project.run(&["reconcile", "pepper", "--yes"]).ends(0).says("nothing to do");
}
