//! Two environments: one goes first, and the next one follows with the plan that was approved.

use super::{OLD, Project};

const CONFIG: &str = "
project: shop
policies:
  fast: { soak: SOAK, rollback: 1s, watch: 1s }
environments:
  staging:
    stores: { app: { env_file: { path: staging.env } } }
  production:
    protected: true
    stores: { app: { env_file: { path: production.env } } }
secrets:
  pepper:
    policy: fast
    issuer: { random: { length: LENGTH } }
    stores: { app: { by_env: { staging: { STAGING_PEPPER: current }, production: { PEPPER: current } } } }
    after: { environment: staging, within: 14d }
    read_by: nobody
    because: a test
";

const TOGETHER: [&str; 6] = ["rotate", "pepper", "-e", "staging", "--then", "production"];

const HAND: &str = "kwcanary-of-production-0123456";

fn project(soak: &str) -> Project {
    let project = Project::new();
    project.write("keywheel.yaml", &config(soak, 32));
    project.write("staging.env", &format!("STAGING_PEPPER={OLD}\n"));
    project.write("production.env", &format!("PEPPER={HAND}\n"));
    project
}

fn config(soak: &str, length: usize) -> String {
    CONFIG.replace("SOAK", soak).replace("LENGTH", &length.to_string())
}

/// A project in which staging was promoted and soaks, and production waits for it.
fn waiting() -> Project {
    let project = project("9s");
    let ran = project.run(&[&TOGETHER[..], &["--yes", "--because", "audit"]].concat());
    ran.ends(0).says("pepper@staging: promoted").says("pepper@production: queued");
    ran.says("keywheel resume --all --quiet -e production");
    assert!(project.read("production.env").contains(HAND));
    project
}

#[test]
fn production_follows_staging_in_one_command_where_staging_completes_in_it() {
    let project = project("1s");
    let files = || (project.read("staging.env"), project.read("production.env"));
    let before = files();
    let asked = project.run(&TOGETHER);
    asked.ends(4).says("K0206").says("· staging ·").says("· production ·");
    assert_eq!(files(), before);
    let answer = project.json(&[&TOGETHER[..], &["--yes", "--soak"]].concat());
    let told = answer["rotations"].as_array().unwrap();
    let names: Vec<_> = told.iter().map(|one| (&one["secret"], &one["outcome"])).collect();
    let (staging, production) = ("pepper@staging".into(), "pepper@production".into());
    assert_eq!(names, [(&staging, &"completed".into()), (&production, &"completed".into())]);
    assert!(!project.read("staging.env").contains(OLD));
    assert!(!project.read("production.env").contains(HAND));
}

#[test]
fn production_waits_for_the_soak_of_staging_and_cron_begins_it() {
    let project = waiting();
    let production = ["resume", "--all", "--quiet", "-e", "production"];
    let status = project.run(&["status", "-e", "production"]);
    status.ends(0).says("the next rotation waits: `pepper@staging` is in phase soaking");
    project.run(&production).ends(0);
    assert!(project.read("production.env").contains(HAND), "staging has not completed");
    project.run(&[&TOGETHER[..], &["--yes"]].concat()).ends(4);
    project.run(&["resume", "--all", "--soak", "-e", "staging"]).ends(0).says("completed");
    project.run(&["status", "-e", "production"]).ends(0).says("has completed");
    project.run(&production).ends(0).says("pepper@production: promoted");
    assert!(!project.read("production.env").contains(HAND));
    project.run(&["status", "-e", "production"]).ends(0).says("soaking");
}

#[test]
fn h127_another_plan_than_the_approved_one_does_not_follow() {
    let project = waiting();
    project.run(&["resume", "--all", "--soak", "-e", "staging"]).ends(0).says("completed");
    project.write("keywheel.yaml", &config("9s", 40));
    let refused = project.run(&["resume", "--all", "-e", "production"]);
    refused.ends(4).says("K0205").says("was approved").says("the request still waits");
    assert!(project.read("production.env").contains(HAND));
    project.write("keywheel.yaml", &config("9s", 32));
    project.run(&["resume", "--all", "-e", "production"]).ends(0).says("promoted");
}

#[test]
fn production_does_not_follow_a_staging_that_was_undone_and_is_taken_back() {
    let project = waiting();
    project.run(&["undo", "pepper", "-e", "staging", "--yes", "--soak"]).ends(2).says("undone");
    project.run(&["resume", "--all", "-e", "production"]).ends(0);
    assert!(project.read("production.env").contains(HAND));
    let status = ["status", "-e", "production", "--fail-on", "needs-operator"];
    project.run(&status).ends(6).says("`pepper@staging` was undone");
    project.run(&["cancel", "pepper", "-e", "production"]).ends(0).says("no longer queued");
    project.run(&status).ends(0);
}

#[test]
fn what_can_not_follow_is_refused_before_anything_begins() {
    let project = project("1s");
    let rotate = |more: &[&str]| {
        project.run(&[&["rotate", "pepper", "-e", "staging", "--yes"], more].concat())
    };
    rotate(&["--then", "staging"]).ends(1).says("cannot follow itself");
    rotate(&["--then", "test"]).ends(1).says("is not declared");
    rotate(&["--then", "production", "--emergency"]).ends(1);
    assert!(project.read("staging.env").contains(OLD));
}

#[test]
fn one_value_in_two_environments_is_told_wherever_it_matters() {
    let project = project("1s");
    project.write("production.env", &format!("PEPPER={OLD}\n"));
    let told = "`pepper@production` holds the same value";
    project.run(&["check", "-e", "staging"]).ends(0).says(told).says("ready");
    project.run(&["plan", "pepper", "-e", "staging"]).ends(0).says(told);
    project.run(&["adopt", "-e", "staging"]).ends(4).says(told);
    project.run(&["rotate", "pepper", "-e", "staging", "--yes", "--soak"]).ends(0).says(told);
    assert!(project.read("production.env").contains(OLD));
    let after = project.run(&["check", "-e", "production"]);
    assert!(!after.stdout.contains("holds the same value"), "{after:?}");
}
