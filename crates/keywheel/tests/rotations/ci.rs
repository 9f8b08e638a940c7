//! A secret that stands in a file and in GitHub Actions, whose value nobody can read back.

use std::process::Stdio;
use std::time::{Duration, Instant};

use keywheel_twins::fault::{Fault, Rule};
use keywheel_twins::github::{Twin, TwinOptions};

use super::{OLD, Project};

const CONFIG: &str = r#"
project: shop
policies:
  fast: { cryptoperiod: 90d, soak: SOAK, rollback: 1s, watch: 1s, call: 4s }
stores:
  app: { env_file: { path: app.env } }
  ci:
    github_actions:
      repository: acme/shop
      token: { file: token }
      base_url: "BASE"
      longest_run: 2s
      settle_for: 500ms
secrets:
  pepper:
    policy: fast
    issuer: { random: { length: 32 } }
    stores: { ci: PEPPER, app: PEPPER }
    read_by: nobody
    because: it is read when the image is built
"#;

fn configured(project: &Project, twin: &Twin, soak: &str) {
    let config = CONFIG.replace("BASE", &twin.base_url()).replace("SOAK", soak);
    project.write("keywheel.yaml", &config);
}

fn in_file(project: &Project) -> String {
    let text = project.read("app.env");
    text.lines().find_map(|line| line.strip_prefix("PEPPER=")).unwrap().to_owned()
}

fn in_ci(twin: &Twin) -> String {
    String::from_utf8(twin.value("PEPPER").unwrap()).unwrap()
}

#[test]
fn h40_a_secret_in_a_file_and_in_ci_survives_a_kill_at_a_lost_answer_and_an_undo() {
    let twin = Twin::start(TwinOptions::default()).unwrap();
    let project = Project::new();
    twin.set_by_hand("PEPPER", OLD.as_bytes());
    project.write("token", twin.token());
    configured(&project, &twin, "1s");
    let planned = project.run(&["plan", "pepper"]);
    planned.ends(0).says("ci: PEPPER ← v2 (attested)").says("undo writes v1 again");
    planned.says("go on with it for up to 2 s, so soak lasts that long");
    project.run(&["check"]).ends(0);

    twin.faults().set(vec![Rule::first("put_secret", Fault::TimeoutAfter)]).unwrap();
    let mut rotate = project.command(&["rotate", "pepper", "--yes", "--soak"]);
    let mut rotate = rotate.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    while twin.writes("PEPPER") < 2 {
        assert!(Instant::now() < patience && rotate.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    rotate.kill().unwrap();
    rotate.wait().unwrap();
    project.run(&["resume", "pepper", "--soak"]).ends(0).says("completed; v2 is current");
    let second = in_file(&project);
    assert_eq!(in_ci(&twin), second);
    assert_ne!(second, OLD);
    project.run(&["doctor"]).ends(0).says("world and journal agree");
    project.run(&["status", "--all"]).ends(0).says("v2");
    let listed = project.json(&["rotation", "list"]);
    let id = listed["rotations"][0]["rotation"].as_str().unwrap().to_owned();
    project.run(&["rotation", "show", &id]).ends(0).says("ci: PEPPER ← v2 (attested)");

    configured(&project, &twin, "1h");
    project.run(&["rotate", "pepper", "--yes"]).ends(0).says("promoted");
    assert!(in_ci(&twin) == in_file(&project) && in_ci(&twin) != second);
    project.run(&["undo", "pepper", "--yes"]).ends(0).says("v2 is current again");
    assert!(in_ci(&twin) == second && in_file(&project) == second);
    project.run(&["audit", "verify"]).ends(0).says("holds");
}

#[test]
fn h126_somebody_elses_change_in_ci_is_seen_and_not_written_over_by_an_undo() {
    let twin = Twin::start(TwinOptions::default()).unwrap();
    let project = Project::new();
    twin.set_by_hand("PEPPER", OLD.as_bytes());
    project.write("token", twin.token());
    configured(&project, &twin, "1h");
    project.run(&["rotate", "pepper", "--yes"]).ends(0).says("promoted");
    // The times of secrets are told to the second.
    std::thread::sleep(Duration::from_millis(1_100));
    twin.set_by_hand("PEPPER", b"kwcanary-somebody-elses");
    project.run(&["undo", "pepper", "--yes"]).ends(3).says("changed by somebody else");
    assert_eq!(in_ci(&twin), "kwcanary-somebody-elses");
}

#[test]
fn a_mistyped_name_in_ci_is_told_before_anything_is_made() {
    let twin = Twin::start(TwinOptions::default()).unwrap();
    let project = Project::new();
    twin.set_by_hand("PEPER", OLD.as_bytes());
    project.write("token", twin.token());
    configured(&project, &twin, "1h");
    project.run(&["check"]).ends(4).says("has no secret `PEPPER`");
    assert!(project.read("app.env").contains(OLD));
}
