//! The program as people and scripts run it, on stores and journals in a folder of its own.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]
#![expect(clippy::print_stdout, reason = "a test says why it is skipped")]

use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

#[path = "rotations/adopted.rs"]
mod adopted;
#[path = "rotations/ci.rs"]
mod ci;
#[path = "rotations/claims.rs"]
mod claims;
#[path = "rotations/incidents.rs"]
mod incidents;
#[path = "rotations/kubernetes.rs"]
mod kubernetes;
#[path = "rotations/kubernetes_workload.rs"]
mod kubernetes_workload;
#[path = "rotations/notify.rs"]
mod notify;
#[path = "rotations/orphans.rs"]
mod orphans;
#[path = "rotations/parked.rs"]
mod parked;
#[path = "rotations/provider.rs"]
mod provider;
#[path = "rotations/quiet.rs"]
mod quiet;
#[path = "rotations/redis.rs"]
mod redis_user;
#[path = "rotations/refused.rs"]
mod refused;
#[cfg(feature = "demo")]
#[path = "rotations/service_tokens.rs"]
mod service_tokens;
#[path = "rotations/staged.rs"]
mod staged;
#[path = "rotations/tokens.rs"]
mod tokens;

const CONFIG: &str = "
project: shop
policies:
  fast: { cryptoperiod: 90d, soak: 1s, rollback: 1s, watch: 1s }
stores:
  app: { env_file: { path: app.env } }
  web: { env_file: { path: web.env } }
secrets:
  pepper:
    policy: fast
    issuer: { random: { length: 32 } }
    stores: { app: { PEPPER: current }, web: { PEPPER: current } }
    read_by: nobody
    because: it is read when the image is built
";

const OLD: &str = "kwcanary-0123456789abcdefghijkl";

/// A project in a folder of its own.
struct Project {
    folder: tempfile::TempDir,
}

impl Project {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let project = Self { folder };
        project.make(&["project", "state", "keys"]);
        project.write("keywheel.yaml", CONFIG);
        project.write("app.env", &format!("# app\nPEPPER={OLD}\nOTHER=1\n"));
        project.write("web.env", &format!("PEPPER='{OLD}'\r\n"));
        project
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("project").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        use std::io::Write;
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.path(name))
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.command_of("", arguments)
    }

    /// Prepares a command of somebody, whose journal and key stand in `state` and `keys` behind this prefix.
    fn command_of(&self, whose: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keywheel"));
        command.args(arguments).stdin(Stdio::null());
        command.arg("--config").arg(self.path("keywheel.yaml"));
        let folder = self.folder.path();
        command.arg("--journal").arg(folder.join(format!("{whose}state/journal.sqlite")));
        command.arg("--kek").arg(folder.join(format!("{whose}keys/kek")));
        command
    }

    /// Makes folders of the ground, which nobody else may enter.
    fn make(&self, names: &[&str]) {
        for name in names {
            std::fs::DirBuilder::new().mode(0o700).create(self.folder.path().join(name)).unwrap();
        }
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(&self.command(arguments).output().unwrap())
    }

    /// Returns the hash of the plan as it is now.
    fn plan(&self) -> String {
        self.json(&["plan", "pepper"])["plan"].as_str().unwrap().to_owned()
    }

    /// Returns every file with its contents, but the index that SQLite shares between processes, which readers write too.
    fn everything(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = ["project", "state", "keys"].map(|name| self.folder.path().join(name));
        let files = files.into_iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
        let files = files
            .map(|file| file.unwrap().path())
            .filter(|path| path.is_file() && !path.ends_with("journal.sqlite-shm"));
        files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let ran = self.run(&[arguments, &["--output", "json"]].concat());
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
    }
}

/// Starts a Redis; none where it cannot be had, and why.
fn redis(settings: &keywheel_ground::redis::Settings) -> Option<keywheel_ground::redis::Redis> {
    match keywheel_ground::redis::Redis::start(settings) {
        Ok(redis) => Some(redis),
        Err(why) => {
            println!("skipped: Redis ({why})");
            None
        }
    }
}

#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let ran = Self {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        };
        assert!(
            !ran.stdout.contains(OLD) && !ran.stderr.contains(OLD),
            "a value was printed: {ran:?}"
        );
        ran
    }

    #[track_caller]
    fn ends(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    #[track_caller]
    fn says(&self, words: &str) -> &Self {
        assert!(
            self.stdout.contains(words) || self.stderr.contains(words),
            "not said: {words}\n{self:?}"
        );
        self
    }
}

/// Returns the secrets that an answer tells of, each with what became of its rotation.
fn outcomes(told: &Value) -> Vec<[&str; 2]> {
    let rotations = told["rotations"].as_array().unwrap().iter();
    rotations.map(|one| ["secret", "outcome"].map(|key| one[key].as_str().unwrap())).collect()
}

#[test]
fn a_rotation_replaces_the_value_everywhere_and_nothing_else() {
    let project = Project::new();
    project.run(&["check"]).ends(0).says("ready");
    assert!(
        !project.folder.path().join("state/journal.sqlite").exists(),
        "`check` makes no journal"
    );
    project.run(&["rotate", "pepper", "--yes", "--soak"]).ends(0).says("completed; v2 is current");
    let (app, web) = (project.read("app.env"), project.read("web.env"));
    assert!(!app.contains(OLD) && !web.contains(OLD));
    let value = app.lines().find_map(|line| line.strip_prefix("PEPPER=")).unwrap();
    assert_eq!(app, format!("# app\nPEPPER={value}\nOTHER=1\n"));
    assert_eq!(web, format!("PEPPER='{value}'\r\n"));
    project.run(&["status", "--all"]).ends(0).says("v2");
    project.run(&["doctor"]).ends(0).says("world and journal agree");
    project.run(&["audit", "verify"]).ends(0).says("holds");
}

#[test]
fn i16_a_plan_changes_nothing_and_is_run_exactly_or_not_at_all() {
    let project = Project::new();
    let before = project.read("app.env");
    let plan = project.plan();
    assert_eq!(project.read("app.env"), before);
    project
        .run(&["rotate", "pepper", "--plan", "0123456789"])
        .ends(4)
        .says("K0205")
        .says("now: nothing changed");
    project.run(&["rotate", "pepper", "--soak", "--plan", &plan[..8]]).ends(0).says("completed");
    project.run(&["rotate", "pepper", "--plan", &plan[..8]]).ends(4).says("K0205");
}

#[test]
fn h127_a_plan_that_changed_since_it_was_read_is_not_run() {
    let project = Project::new();
    let plan = project.plan();
    project.write("keywheel.yaml", &CONFIG.replace("soak: 1s", "soak: 2s"));
    project.run(&["rotate", "pepper", "--plan", &plan]).ends(4).says("K0205");
    assert!(project.read("app.env").contains(OLD));
    project.write("keywheel.yaml", CONFIG);
    project.run(&["rotate", "pepper", "--soak", "--plan", &plan]).ends(0).says("completed");
}

#[test]
fn h131_a_plan_leaves_journal_and_stores_as_they_were() {
    let project = Project::new();
    project.plan();
    project.run(&["status"]).ends(0).says("never adopted");
    project.run(&["adopt", "pepper", "--yes"]).ends(0);
    let before = project.everything();
    project.plan();
    assert!(project.everything() == before, "`plan` wrote something");
}

#[test]
fn h39_a_parked_rotation_comes_first_and_is_resumed_where_it_stands() {
    let project = Project::new();
    project.write("keywheel.yaml", &CONFIG.replace("soak: 1s", "soak: 1h"));
    project.run(&["rotate", "pepper", "--yes"]).ends(0).says("promoted");
    let kept = project.read("app.env");
    std::fs::remove_file(project.path("app.env")).unwrap();
    let undo = ["undo", "pepper", "--yes", "--because", "a test"];
    project.run(&undo).ends(3).says("keywheel resume pepper");
    for _ in 0..2 {
        let status = project.run(&["status", "--fail-on", "needs-operator"]);
        let leads = status.stdout.lines().nth(1).unwrap_or_default();
        assert_eq!((status.code, leads), (Some(6), "needs you (1)"), "{status:?}");
    }
    project.write("app.env", &kept);
    project.run(&["resume", "pepper"]).ends(0).says("v1 is current again");
    project.run(&["status", "--fail-on", "needs-operator"]).ends(0);
    assert!(project.read("app.env").contains(OLD));
}

/// Every command that meets a value, where all is well and where the stores disagree.
#[test]
fn h119_no_command_prints_a_value() {
    const HAND: &str = "kwcanary-made-by-hand-0123456";
    let project = Project::new();
    let files = project.path("").display().to_string();
    let looks: [&[&str]; 10] = [
        &["config", "show"],
        &["check"],
        &["plan", "pepper"],
        &["status", "--all"],
        &["doctor"],
        &["where", "pepper", "--scan", &files],
        &["rotation", "list"],
        &["audit", "list"],
        &["incident", "list"],
        &["rotate", "pepper"],
    ];
    let look = |values: &[&str]| {
        for format in ["text", "json"] {
            for arguments in looks {
                let ran = project.run(&[arguments, &["--output", format]].concat());
                let printed = format!("{}{}", ran.stdout, ran.stderr);
                let shown = values.iter().any(|value| printed.contains(value));
                assert!(!shown, "{arguments:?} prints a value: {printed}");
            }
        }
    };
    look(&[OLD]);
    project.run(&["adopt", "pepper", "--yes"]).ends(0);
    project.run(&["rotate", "pepper", "--yes", "--soak"]).ends(0);
    let app = project.read("app.env");
    let new = app.lines().find_map(|line| line.strip_prefix("PEPPER=")).unwrap();
    look(&[OLD, new]);
    project.write("web.env", &format!("PEPPER={HAND}\n"));
    look(&[OLD, new, HAND]);
}

#[test]
fn without_a_terminal_and_without_yes_the_answer_is_no() {
    let project = Project::new();
    let ran = project.run(&["rotate", "pepper"]);
    ran.ends(4).says("K0206").says("now: nothing changed").says("read the plan above, then say");
    assert!(project.read("app.env").contains(OLD));
    project.run(&["adopt", "pepper"]).ends(4).says("K0206").says("hint: say `--yes`");
}

#[test]
fn stores_that_disagree_are_refused_with_nothing_changed() {
    let project = Project::new();
    project.write("web.env", "PEPPER=somethingelse0123456789abcd\n");
    project.run(&["rotate", "pepper", "--yes"]).ends(4).says("K0207").says("nothing changed");
    assert!(project.read("app.env").contains(OLD));
    project.run(&["check"]).ends(4).says("hold different values");
}

#[test]
fn h35_an_edit_by_hand_is_found_and_put_right_or_kept() {
    let project = Project::new();
    project.run(&["rotate", "pepper", "--yes", "--soak"]).ends(0);
    project.write("web.env", "PEPPER=somethingelse0123456789abcd\n");
    project.run(&["doctor"]).ends(3).says("store `web` was changed by somebody else");
    project.run(&["rotate", "pepper", "--yes"]).ends(4).says("nothing was changed");
    project.run(&["reconcile", "pepper", "--yes"]).ends(0).says("wrote store `web`");
    project.run(&["doctor"]).ends(0);
    project.write("app.env", "PEPPER=somethingelse0123456789abcd\n");
    project.write("web.env", "PEPPER=somethingelse0123456789abcd\n");
    project
        .run(&["rotate", "pepper", "--yes"])
        .ends(4)
        .says("is not version 2 as keywheel knows it");
    project.run(&["reconcile", "pepper", "--yes"]).ends(4).says("K0210");
    project.run(&["reconcile", "pepper", "--keep", "--yes"]).ends(0).says("is v5 now");
    project.run(&["rotate", "pepper", "--yes", "--soak"]).ends(0).says("completed; v6 is current");
}

#[test]
fn h35_an_edit_by_hand_while_a_rotation_soaks_is_found() {
    let project = Project::new();
    project.write("keywheel.yaml", &CONFIG.replace("soak: 1s", "soak: 1h"));
    project.run(&["rotate", "pepper", "--yes"]).ends(0).says("promoted");
    project.run(&["doctor"]).ends(0).says("world and journal agree");
    project.write("web.env", "PEPPER=somethingelse0123456789abcd\n");
    project.run(&["doctor"]).ends(3).says("store `web` was changed by somebody else");
    let parked = project.run(&["undo", "pepper", "--because", "a test", "--yes"]);
    parked
        .ends(3)
        .says("parked")
        .says("write web: PEPPER")
        .says("keywheel resolve pepper@default --as");
    assert!(
        !parked.stdout.contains("keywheel undo") && !parked.stdout.contains("arrangement"),
        "{parked:?}"
    );
    project.run(&["status"]).ends(0).says("write web: PEPPER");
    project.run(&["doctor"]).ends(3).says("parked: drift: write web: PEPPER");
    project
        .run(&["undo", "pepper", "--because", "again"])
        .ends(4)
        .says("it is on its way back already");
}

#[test]
fn a_duplicate_name_an_expansion_and_a_missing_file_are_refused() {
    let cases = [
        ("PEPPER=a23456789012345678901234\nPEPPER=b23456789012345678901234\n", "twice"),
        ("PEPPER=$HOME-34567890123456789012\n", "`PEPPER`"),
    ];
    for (text, _words) in cases {
        let project = Project::new();
        project.write("app.env", text);
        let ran = project.run(&["rotate", "pepper", "--yes"]);
        assert_eq!(ran.code, Some(4), "{ran:?}");
        assert_eq!(project.read("app.env"), text);
        assert!(project.read("web.env").contains(OLD));
    }
    let project = Project::new();
    std::fs::remove_file(project.path("app.env")).unwrap();
    project.run(&["rotate", "pepper", "--yes"]).ends(4);
    assert!(project.read("web.env").contains(OLD));
}

#[test]
fn an_unknown_secret_is_named_with_a_suggestion() {
    Project::new().run(&["rotate", "peper", "--yes"]).ends(1).says("did you mean `pepper@default`");
}

#[test]
fn a_wrong_key_is_refused_and_named() {
    let project = Project::new();
    project.run(&["rotate", "pepper", "--yes", "--soak"]).ends(0);
    let other = Project::new();
    other.run(&["rotate", "pepper", "--yes", "--soak"]).ends(0);
    let key = |project: &Project| project.folder.path().join("keys/kek");
    std::fs::copy(key(&other), key(&project)).unwrap();
    project.run(&["rotate", "pepper", "--yes"]).ends(5).says("K0302").says("now: nothing changed");
    project.run(&["status"]).ends(5).says("K0302");
}

#[test]
fn two_runs_at_once_rotate_once_or_one_after_the_other() {
    let project = Project::new();
    project.run(&["adopt", "pepper", "--yes"]).ends(0);
    let arguments = ["rotate", "pepper", "--yes", "--soak"];
    let spawn = || {
        project.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let both = [spawn(), spawn()].map(|child| Ran::of(&child.wait_with_output().unwrap()));
    let done = both.iter().filter(|ran| ran.code == Some(0)).count();
    assert!(done >= 1, "{both:?}");
    for ran in both.iter().filter(|ran| ran.code != Some(0)) {
        ran.ends(4).says("now:");
    }
    project.run(&["audit", "verify"]).ends(0);
    assert_eq!(project.json(&["rotation", "list"])["rotations"].as_array().unwrap().len(), done);
    project.run(&["doctor"]).ends(0);
}

/// Interrupted whenever: the rotation goes on with `resume`, and ends as an undisturbed one does.
#[test]
fn an_interrupted_rotation_stops_after_its_step_and_is_resumed() {
    for pause in [0, 5, 10, 20, 40, 80, 160, 320] {
        let project = Project::new();
        let child = project
            .command(&["rotate", "pepper", "--yes", "--soak"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let ran = Ran::of(&child.wait_with_output().unwrap());
        project.run(&["resume", "--all", "--soak", "--yes"]).ends(0);
        let rotations = project.json(&["rotation", "list"])["rotations"].as_array().unwrap().len();
        let replaced =
            !project.read("app.env").contains(OLD) && !project.read("web.env").contains(OLD);
        let untouched =
            project.read("app.env").contains(OLD) && project.read("web.env").contains(OLD);
        assert!(if rotations == 0 { untouched } else { replaced }, "after {pause} ms: {ran:?}");
        project.run(&["audit", "verify"]).ends(0);
    }
}

#[test]
fn an_undo_before_promotion_puts_back_the_exact_bytes() {
    let project = Project::new();
    project.write("keywheel.yaml", &CONFIG.replace("soak: 1s", "soak: 1h"));
    let (app, web) = (project.read("app.env"), project.read("web.env"));
    let ran = project.run(&["rotate", "pepper", "--yes"]);
    ran.ends(0).says("promoted; v2 is current").says("keywheel resume --all --quiet");
    project.run(&["resume", "--all", "--quiet"]).ends(0);
    project
        .run(&["undo", "pepper", "--yes", "--because", "a test"])
        .says("turned round; v1 is current again")
        .ends(0);
    assert_eq!(project.read("app.env"), app);
    assert_eq!(project.read("web.env"), web);
    project.run(&["rotate", "pepper", "--yes"]).ends(0).says("queued");
}

/// A project whose retirements wait in a rollback window of an hour.
fn project_with_window(next: &str) -> Project {
    let project = Project::new();
    let policy = format!("rollback: 1h, keep: rollback{next}");
    project.write("keywheel.yaml", &CONFIG.replace("rollback: 1s", &policy));
    project.run(&["rotate", "pepper", "--yes"]).ends(0).says("promoted; v2 is current");
    project
}

#[test]
fn a_request_during_a_retirement_waits_and_begins_when_it_is_over() {
    let project = project_with_window("");
    let request = ["rotate", "pepper", "--yes", "--because", "audit"];
    project.run(&request).ends(0).says("queued");
    assert_eq!(project.json(&request)["rotations"][0]["outcome"], "queued");
    project.run(&["status"]).ends(0).says("the next rotation waits");
    project.run(&["resume", "--all", "--quiet"]).ends(0);
    assert_eq!(project.json(&["status"])["environments"][0]["secrets"][0]["current"], 2);
    project.run(&["resume", "pepper", "--close-window", "audit", "--soak"]).ends(0);
    project.run(&["status"]).ends(0).says("it waited in the queue: audit");
    project.run(&["resume", "--all", "--quiet"]).ends(0).says("promoted; v3 is current");
    assert_eq!(project.json(&["rotation", "list"])["rotations"].as_array().unwrap().len(), 2);
}

#[test]
fn a_queued_request_can_be_taken_back() {
    let project = project_with_window("");
    project.run(&["cancel", "pepper"]).ends(4);
    project.run(&["rotate", "pepper"]).ends(4).says("K0206");
    project.run(&["rotate", "pepper", "--yes"]).ends(0).says("queued");
    project.run(&["cancel", "pepper"]).ends(0).says("no longer queued");
    project.run(&["resume", "pepper", "--close-window", "audit", "--soak"]).ends(0);
    project.run(&["resume", "--all"]).ends(0).says("nothing is owed");
    project.run(&["audit", "list"]).ends(0).says("took a rotation out of the queue");
}

#[test]
fn a_request_ends_the_rollback_window_where_policy_says_so() {
    let project = project_with_window(", next: close_window");
    project.run(&["rotate", "pepper"]).ends(4).says("K0206");
    project.run(&["rotate", "pepper", "--yes"]).ends(0).says("promoted; v3 is current");
    let rotations = project.json(&["rotation", "list"]);
    let rotations = rotations["rotations"].as_array().unwrap();
    assert_eq!(rotations.len(), 2);
    assert!(rotations.iter().any(|rotation| rotation["phase"] == "completed"), "{rotations:?}");
}

#[test]
fn nothing_owed_is_no_fault() {
    let project = Project::new();
    let ran = project.run(&["resume", "--all", "--quiet"]);
    ran.ends(0);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
    project.run(&["undo", "pepper", "--yes"]).ends(4).says("has no open rotation");
}

#[test]
fn an_emergency_ends_without_soak() {
    let project = Project::new();
    project.write("keywheel.yaml", &CONFIG.replace("soak: 1s", "soak: 24h"));
    project.run(&["rotate", "pepper", "--yes"]).ends(0).says("promoted");
    project.run(&["incident", "list"]).ends(0).says("no emergency yet");
    project.run(&["incident", "show"]).ends(1).says("K0109");
    let ran = project.run(&["rotate", "pepper", "--emergency", "--because", "it leaked", "--yes"]);
    ran.ends(0).says("completed; v3 is current");
    assert!(!project.read("app.env").contains(OLD));
    let rotations = project.json(&["rotation", "list"]);
    assert_eq!(rotations["rotations"].as_array().unwrap().len(), 2);
    project.run(&["status"]).ends(0);
    project.run(&["doctor"]).ends(0);
    let listed = project.json(&["incident", "list"]);
    let id = listed["incidents"][0]["incident"].as_str().unwrap();
    project.run(&["incident", "show", &id[..6]]).ends(0).says("it leaked").says("OTHER");
    let shown = project.json(&["incident", "show", id]);
    let suspects = shown["secrets"][0]["suspects"].as_array().unwrap();
    let versions: Vec<_> = suspects.iter().map(|one| one["version"].as_u64().unwrap()).collect();
    assert_eq!(versions, [2, 1], "both versions of the rotation that was taken over are suspect");
    assert!(suspects.iter().all(|one| one["dead"] == "no_one_to_ask"), "{suspects:?}");
}

#[test]
fn an_emergency_in_one_store_names_what_stands_beside_its_suspects() {
    let project = project_of_two();
    let emergency = ["rotate", "pepper", "--in-store", "app", "--emergency"];
    let asked = project.run(&emergency);
    asked.ends(4).says("OTHER").says("keywheel rotate salt@default --emergency");
    project.run(&[&emergency[..], &["--yes"]].concat()).ends(0);
    let shown = project.json(&["incident", "show"]);
    let exposed: Vec<_> = shown["exposed"].as_array().unwrap().iter().collect();
    assert!(exposed.iter().all(|one| one["store"] == "app"), "`web` did not leak: {exposed:?}");
    assert_eq!(shown["owed"][0]["command"], "keywheel rotate salt@default --emergency");
    project.run(&["rotate", "salt", "--emergency", "--yes"]).ends(0);
    let listed = project.json(&["incident", "list"]);
    let first = listed["incidents"][1]["incident"].as_str().unwrap();
    let shown = project.json(&["incident", "show", first]);
    assert_eq!(shown["owed"], serde_json::json!([]), "the other secret was rotated since");
}

/// A project with a second secret, whose retirement takes an hour; the first one's rotation waits in its rollback window.
fn project_of_two() -> Project {
    let project = project_with_window("");
    let (config, second) = (project.read("keywheel.yaml"), CONFIG.split_once("  pepper:").unwrap());
    let slow = config.replace("stores:\n", "  slow: { cryptoperiod: 90d, soak: 1h }\nstores:\n");
    let salt = second.1.replace("PEPPER", "SALT").replace("policy: fast", "policy: slow");
    project.write("keywheel.yaml", &format!("{slow}  salt:{salt}"));
    project.write("app.env", &format!("{}SALT={OLD}\n", project.read("app.env")));
    project.write("web.env", &format!("{}SALT={OLD}\n", project.read("web.env")));
    project
}

#[test]
fn h20_a_rotation_that_another_process_works_on_stops_no_other() {
    let project = project_of_two();
    let mut other = project
        .command(&["rotate", "salt", "--yes", "--soak"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while project.read("web.env").contains(OLD) {
        assert!(other.try_wait().unwrap().is_none(), "it waits for the end of its soak");
        std::thread::sleep(Duration::from_millis(10));
    }
    let ran = project.run(&["resume", "--all", "--close-window", "audit", "--soak"]);
    other.kill().unwrap();
    other.wait().unwrap();
    ran.ends(4).says("`salt@default` is being worked on").says("pepper@default: completed");
}

#[test]
fn h20_an_undo_that_is_refused_stops_no_other() {
    let project = project_of_two();
    project.run(&["rotate", "salt", "--yes"]).ends(0).says("promoted");
    project.run(&["undo", "pepper", "--yes"]).ends(0).says("turned round");
    let ran = project.run(&["undo", "--all", "--yes"]);
    ran.ends(4).says("it is on its way back already").says("salt@default: turned round");
}

#[test]
fn h21_a_rotation_goes_on_after_its_secret_is_no_longer_declared() {
    let project = project_with_window("");
    let (before, _) = CONFIG.split_once("stores:").unwrap();
    project.write("keywheel.yaml", &format!("{before}stores: {{}}\nsecrets: {{}}\n"));
    project.run(&["status"]).ends(0).says("pepper");
    let ran = project.run(&["resume", "--all", "--close-window", "audit", "--soak"]);
    ran.ends(0).says("pepper@default: completed");
    project.run(&["audit", "verify"]).ends(0);
}
