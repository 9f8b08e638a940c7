//! Two environments: one goes first, and the next one follows with the plan that was approved.

use std::process::Stdio;
use std::time::Duration;

use super::{OLD, Project, Ran, outcomes};

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
    let both = ["pepper@staging", "pepper@production"].map(|secret| [secret, "completed"]);
    assert_eq!(outcomes(&answer), both);
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

/// A second secret, in files of its own.
const SALT: &str = "  salt:
    policy: fast
    issuer: { random: { length: 32 } }
    stores: { side: { by_env: { staging: { STAGING_SALT: current }, production: { SALT: current } } } }
    read_by: nobody
    because: a test
";

#[test]
fn h20_a_rotation_that_cannot_begin_stops_neither_others_nor_what_follows_them() {
    let project = project("100ms");
    let config = config("100ms", 32).replace("1s", "100ms");
    let side = |environment: &str| {
        let app = format!("app: {{ env_file: {{ path: {environment}.env }} }}");
        (app.clone(), format!("{app}, side: {{ env_file: {{ path: {environment}-side.env }} }}"))
    };
    let (staging, production) = (side("staging"), side("production"));
    let config = config.replace(&staging.0, &staging.1).replace(&production.0, &production.1);
    project.write("keywheel.yaml", &format!("{config}{SALT}"));
    project.write("staging-side.env", &format!("STAGING_SALT={OLD}\n"));
    project.write("production-side.env", &format!("SALT={HAND}\n"));
    project.make(&["their-state", "their-keys"]);
    let theirs =
        project.command_of("their-", &["adopt", "salt", "-e", "staging", "--yes"]).output();
    Ran::of(&theirs.unwrap()).ends(0);
    let both = ["rotate", "pepper", "salt", "-e", "staging", "--then", "production"];
    let more = ["--separately", "--yes", "--soak", "--output", "json"];
    let ran = project.run(&[&both[..], &more].concat());
    ran.ends(4).says("K0212").says("`salt@staging`");
    let told: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let both = ["pepper@staging", "pepper@production"].map(|secret| [secret, "completed"]);
    assert_eq!(outcomes(&told), both);
    assert!(project.read("staging-side.env").contains(OLD));
    assert!(project.read("production-side.env").contains(HAND));
    let nothing = ["cancel", "salt", "-e", "production"];
    project.run(&nothing).ends(4).says("salt@production");
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

/// Tokens of a service, which staging is given by a program that waits as long as there is a file `wait`.
const TOKENS: &str = r#"
project: shop
environments:
  staging:
    stores:
      app: { env_file: { path: staging.env } }
      worker:
        command:
          id: worker
          read: [sh, -c, "cat >/dev/null; echo '{\"slots\": {\"TOKEN\": null}}' > none; cat held 2>/dev/null || cat none"]
          write: [sh, -c, "sed 's/.*\"value\": *\\(\"[^\"]*\"\\).*/{\"slots\": {\"TOKEN\": \\1}}/' >held; touch writing; while [ -e wait ]; do sleep 0.02; done; echo '{\"outcome\": \"written\"}'"]
  production:
    stores:
      app: { env_file: { path: production.env } }
      worker: { file: { path: production.token, create: true } }
secrets:
  jwt:
    issuer: { jwt_secret: { bytes: 32 } }
    strategy: { keyring: { longest_token: 1h, skew: 1s } }
    stores: { app: { JWT_SECRET: current, JWT_SECRET_ALSO_ACCEPTED: also_accepted } }
    read_by: nobody
    because: a test
  token:
    issuer: { service_token: { signed_by: jwt, life: { by_env: { staging: 1h, production: 2s } }, subject: worker } }
    stores: { worker: { by_env: { staging: { TOKEN: current }, production: { content: value } } } }
    read_by: nobody
    because: it reads the file anew for each call
"#;

/// The lease in production does not wait for staging, and leaves what was asked for and approved where it is.
#[test]
fn h127_a_lease_that_is_replaced_meanwhile_follows_staging_all_the_same() {
    let project = Project::new();
    project.write("keywheel.yaml", TOKENS);
    for (environment, key) in [("staging", "s"), ("production", "p")] {
        let key = format!("kwcanary-of-{environment}-{}", key.repeat(32));
        let variables = format!("JWT_SECRET={key}\nJWT_SECRET_ALSO_ACCEPTED=\n");
        project.write(&format!("{environment}.env"), &variables);
        project.run(&["adopt", "--all", "--yes", "-e", environment]).ends(0);
    }
    project.run(&["rotate", "token", "--yes", "-e", "production"]).ends(0);
    let first = project.read("production.token");
    project.write("wait", "");
    let both = ["rotate", "token", "-e", "staging", "--then", "production", "--yes"];
    let mut both = project.command(&[&both[..], &["--output", "json"]].concat());
    let running = both.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while !project.path("writing").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    while project.read("production.token") == first {
        project.run(&["resume", "--all", "-e", "production"]);
    }
    let replaced = project.read("production.token");
    let waits = "the next rotation waits: `token@staging` is in phase";
    project.run(&["status", "-e", "production"]).ends(0).says(waits);
    std::fs::remove_file(project.path("wait")).unwrap();
    let ran = Ran::of(&running.wait_with_output().unwrap());
    let told: serde_json::Value = serde_json::from_str(&ran.ends(0).stdout).unwrap();
    let both = ["token@staging", "token@production"].map(|secret| [secret, "completed"]);
    assert_eq!(outcomes(&told), both);
    assert_ne!(project.read("production.token"), replaced);
}
