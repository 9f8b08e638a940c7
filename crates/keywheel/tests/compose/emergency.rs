//! Emergencies: a key that leaked, in each order, beside a container that does not come up, and in the middle of a rotation.

use std::os::unix::fs::MetadataExt;

use keywheel_twins::openai::{Twin, TwinOptions};
use serde_json::Value;

use super::*;

/// `backend` reads both keys and writes when it begins and ends; `BROKEN` keeps a new container from coming up. `worker` reads
/// the other key only, and writes it into its log.
const COMPOSE: &str = r#"
services:
  backend:
    image: IMAGE
    network_mode: none
    stop_grace_period: 1s
    env_file: [.env]
    command: ["/bin/busybox", "sh", "-c", "trap 'echo backend ends; exit 0' TERM; [ \"$$BROKEN\" = 1 ] && exit 7; echo backend begins; echo AUDIT user 7 changed order 12; busybox sleep 1d & wait"]
    healthcheck: { test: ["CMD", "/bin/busybox", "true"], interval: 1s }
  worker:
    image: IMAGE
    network_mode: none
    stop_grace_period: 1s
    environment: { KEY: "${APP_KEY}" }
    command: ["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM; echo AUDIT job 3 done; echo AUDIT job 4 for $$KEY >&2; echo job 5; busybox sleep 1d & wait"]
"#;

const CONFIG: &str = r#"
project: shop
policies:
  fast: { soak: 1h, rollback: 1h }
stores:
  app: { env_file: { path: .env } }
workloads:
  backend:
    compose_service: { file: docker-compose.yml, service: backend, replicas: 2, program: [COMPOSE], socket: SOCKET, ready_for: 200ms, settle_for: 1s, keep_logs: logs }
  worker:
    compose_service: { file: docker-compose.yml, service: worker, start_first: true, variables: { APP_KEY: KEY }, program: [COMPOSE], socket: SOCKET, ready_for: 200ms, settle_for: 1s }
secrets:
  model:
    policy: fast
    issuer:
      openai: { project: PROJECT, admin_key: { file: admin-key }, base_url: "BASE", propagation: 0s, settle_for: 500ms }
    stores: { app: MODEL_KEY }
    read_by: [backend]
  app-key:
    policy: fast
    issuer: { random: { length: 32 } }
    stores: { app: APP_KEY }
    read_by: [backend, worker]
"#;

/// A project whose `MODEL_KEY` is one of the twin's.
struct Leaked {
    project: Project,
    twin: Twin,
    /// The key that leaked, as the twin names it, and its value.
    old: (String, String),
}

impl Leaked {
    fn begin(docker: &Arc<Docker>, compose: &Path) -> Self {
        let project = Project::laid_out(Engine::Docker(Arc::clone(docker)), compose, CONFIG);
        let admin_key = format!("kwcanary-admin-{}", project.name());
        let options = TwinOptions { admin_key: Some(admin_key.clone()), ..TwinOptions::default() };
        let twin = Twin::start(options).unwrap();
        let by_hand = twin.make_key("by-hand");
        project.write("run.canaries", &by_hand.value);
        project.write("admin-key", &admin_key);
        project.write("docker-compose.yml", &COMPOSE.replace("IMAGE", IMAGE));
        let config = project
            .config
            .replace("PROJECT", twin.project())
            .replace("BASE", &twin.base_url())
            .replace("COMPOSE", &project.compose)
            .replace("SOCKET", &project.ground.socket().display().to_string());
        project.write("keywheel.yaml", &config);
        let (named, key) = (project.named(), &by_hand.value);
        let env = format!("APP_KEY={OLD}\nMODEL_KEY={key}\nSMTP_PASSWORD=kwcanary-smtp\n{named}");
        project.write(".env", &env);
        project.up(&["--scale", "backend=2"], &[]);
        project.wait_for(3);
        Self { project, twin, old: (by_hand.id, by_hand.value) }
    }

    fn model_key(&self) -> String {
        let text = std::fs::read_to_string(self.project.path().join(".env")).unwrap();
        text.lines().find_map(|line| line.strip_prefix("MODEL_KEY=")).unwrap().to_owned()
    }

    /// Runs the program, which prints neither key.
    #[track_caller]
    fn run(&self, arguments: &[&str], ends: i32) -> String {
        let said = self.project.run(arguments, ends);
        for value in [&self.old.1, &self.model_key(), "kwcanary"] {
            assert!(!said.contains(value), "a value was printed: {said}");
        }
        said
    }

    fn incident(&self) -> Value {
        let mut show = self.project.command(&["incident", "show", "--output", "json"]);
        serde_json::from_slice(&show.output().unwrap().stdout).unwrap()
    }

    fn containers_of(&self, service: &str) -> BTreeSet<String> {
        let label = format!("label=com.docker.compose.service={service}");
        let told = self.project.docker(&["ps", "-aq", "--no-trunc", "--filter", &label]);
        told.lines().map(str::to_owned).collect()
    }

    /// Nobody accepts or holds anything that may have leaked, and exactly one key is live.
    #[track_caller]
    fn assert_nothing_leaked_is_of_use(&self, leaked: &[&str]) {
        let keys = self.twin.keys();
        assert!(!keys.iter().any(|key| key.live && key.id == self.old.0), "{keys:?}");
        assert_eq!(keys.iter().filter(|key| key.live).count(), 1, "{keys:?}");
        for value in leaked {
            assert_eq!(self.project.holders(value), 0);
        }
        assert_eq!(self.project.holders(&self.model_key()), 2);
    }
}

/// Runs every scenario at once on one engine.
fn side_by_side(scenarios: &[fn(&Leaked)]) {
    let Some(compose) = first_or_skip(composes(), "none is installed") else { return };
    let Some(docker) = engine() else { return };
    std::thread::scope(|scope| {
        for scenario in scenarios {
            scope.spawn(|| scenario(&Leaked::begin(&docker, &compose)));
        }
    });
}

#[test]
fn h124_an_emergency_ends_what_leaked_and_says_what_it_cost() {
    side_by_side(&[
        a_leaked_file_staged_first,
        a_leaked_file_revoked_first,
        a_leaked_key_revoked_first,
        a_container_that_does_not_come_up,
    ]);
}

/// The `.env` leaked: both keys are rotated, the log of each removed backend is kept, and the rest of the file is named.
fn a_leaked_file_staged_first(leaked: &Leaked) {
    let (before, backends) = (leaked.project.containers(), leaked.containers_of("backend"));
    let emergency = ["rotate", "--in-store", "app", "--emergency", "--because", "it was pasted"];
    let said = leaked.run(&emergency, 4);
    assert!(said.contains("SMTP_PASSWORD") && said.contains("rotate it by hand"), "{said}");
    assert_eq!(
        (leaked.project.containers(), leaked.model_key()),
        (before.clone(), leaked.old.1.clone())
    );
    let said = leaked.run(&[&emergency[..], &["--yes"]].concat(), 0);
    assert!(said.contains("keywheel incident show"), "{said}");
    leaked.assert_nothing_leaked_is_of_use(&[OLD, &leaked.old.1]);

    let incident = leaked.incident();
    assert_eq!((&incident["open"], &incident["because"]), (&false.into(), &"it was pasted".into()));
    for secret in incident["secrets"].as_array().unwrap() {
        assert!(secret["outage"].is_null() && secret["delivered_at"].is_string(), "{secret}");
    }
    let model = of_secret(&incident, "model@default");
    assert_eq!(model["suspects"][0]["dead"], "proven");
    assert!(model["suspects"][0]["exposed_ms"].as_u64() > Some(0), "{model}");
    assert_eq!(of_secret(&incident, "app-key@default")["suspects"][0]["dead"], "no_one_to_ask");
    let standing = |slot: &str| {
        let exposed = incident["exposed"].as_array().unwrap();
        exposed.iter().find(|one| one["slot"] == slot).map(|one| one["standing"].clone()).unwrap()
    };
    assert_eq!(
        ["APP_KEY", "MODEL_KEY", "SMTP_PASSWORD"].map(standing),
        ["rotated", "rotated", "unmanaged"]
    );
    assert_eq!(incident["owed"], serde_json::json!([]));

    let logs = incident["logs"].as_array().unwrap();
    let referenced: BTreeSet<_> =
        logs.iter().map(|log| log["id"].as_str().unwrap().to_owned()).collect();
    assert!(before.is_subset(&referenced), "{logs:?}");
    for log in logs.iter().filter(|log| backends.contains(log["id"].as_str().unwrap())) {
        let kept = Path::new(log["kept_in"].as_str().unwrap());
        let (file, folder) = (kept.metadata().unwrap(), kept.parent().unwrap().metadata().unwrap());
        assert_eq!((file.mode() & 0o777, folder.mode() & 0o777), (0o600, 0o700));
        let text = std::fs::read_to_string(kept).unwrap();
        assert!(text.contains("backend begins") && text.contains("backend ends"), "{text:?}");
        assert!(!text.contains("kwcanary"));
    }
    let worker = logs.iter().find(|log| log["workload"] == "worker").unwrap();
    assert!(worker["kept_in"].is_null() && worker["outlives"] == false, "{worker}");
    assert_audit_lines_are_told_of_every_replica(leaked, &before, &incident);
    leaked.run(&["doctor"], 0);
    leaked.run(&["audit", "verify"], 0);
    let text = leaked.run(&["incident", "show"], 0);
    assert!(text.contains("proven") && text.contains("goes with the replica"), "{text}");
    assert!(text.contains("AUDIT job 3 done") && text.contains("the replica is gone"), "{text}");
    let later = leaked.run(&["incident", "show", "--since", "0s"], 0);
    assert!(!later.contains("AUDIT job 3 done") && !later.contains("AUDIT user 7"), "{later}");
    assert!(leaked.run(&["incident", "list"], 0).contains("closed"));
}

/// The lines of the containers that were removed are told where they were copied, and those of their successors as the engine
/// has them, from both streams; no value is among them.
#[track_caller]
fn assert_audit_lines_are_told_of_every_replica(
    leaked: &Leaked,
    before: &BTreeSet<String>,
    incident: &Value,
) {
    let logs = incident["audit_lines"].as_array().unwrap();
    let lines = |log: &Value| {
        let lines = log["lines"].as_array().unwrap().iter();
        let without_time =
            |line: &Value| line.as_str().unwrap().split_once(' ').unwrap().1.to_owned();
        // Which stream is read out first is up to the engine.
        let mut lines: Vec<String> = lines.map(without_time).collect();
        lines.sort();
        lines
    };
    let told: Vec<(&str, bool, Vec<String>)> = logs
        .iter()
        .map(|log| (log["workload"].as_str().unwrap(), log["not_read"].is_null(), lines(log)))
        .collect();
    let of = |name: &str| told.iter().filter(|one| one.0 == name).collect::<Vec<_>>();
    let backends = of("backend");
    assert_eq!(backends.len(), leaked.containers_of("backend").len() + 2, "{logs:?}");
    for (_, is_read, lines) in backends {
        assert!(*is_read && *lines == ["AUDIT user 7 changed order 12"], "{logs:?}");
    }
    assert_eq!(before.len(), 3);
    match &of("worker")[..] {
        [(_, false, gone), (_, true, there)] => {
            assert!(gone.is_empty(), "{logs:?}");
            assert_eq!(there[..], ["AUDIT job 3 done", "AUDIT job 4 for …"], "{logs:?}");
        }
        other => panic!("{other:?}"),
    }
}

/// Both keys at once, whose rotations take turns at the services that they share.
fn a_leaked_file_revoked_first(leaked: &Leaked) {
    let emergency = ["rotate", "--in-store", "app", "--emergency", "--revoke-first", "--yes"];
    leaked.run(&emergency, 0);
    leaked.assert_nothing_leaked_is_of_use(&[OLD, &leaked.old.1]);
    assert!(leaked.incident()["revoke_first"] == true);
    leaked.run(&["doctor"], 0);
}

/// One key of the file: the containers that still hold it are named as out, and the other key as what is left to rotate.
fn a_leaked_key_revoked_first(leaked: &Leaked) {
    leaked.run(&["adopt", "--all", "--yes"], 0);
    leaked.run(&["rotate", "model", "--emergency", "--revoke-first", "--yes"], 0);
    leaked.assert_nothing_leaked_is_of_use(&[&leaked.old.1]);
    let incident = leaked.incident();
    let outage = &of_secret(&incident, "model@default")["outage"];
    assert_eq!(outage["behind"][0]["replicas"].as_array().unwrap().len(), 2, "{outage}");
    assert!(outage["until"].is_string() && outage["lasted_ms"].as_u64() > Some(0), "{outage}");
    let owed = incident["owed"].as_array().unwrap();
    assert!(owed.iter().any(|one| one["command"] == "keywheel rotate app-key@default --emergency"));
}

/// It is named as a declared outage, and the key is ended when the stage is over.
fn a_container_that_does_not_come_up(leaked: &Leaked) {
    let env = std::fs::read_to_string(leaked.project.path().join(".env")).unwrap();
    leaked.project.write(".env", &format!("{env}BROKEN=1\n"));
    let emergency = ["rotate", "model", "--emergency", "--stage-for", "15s", "--yes"];
    let said = leaked.run(&emergency, 3);
    assert!(said.contains("keywheel resume model@default"), "{said}");
    let live: Vec<_> = leaked.twin.keys().into_iter().filter(|key| key.live).collect();
    assert!(live.len() == 1 && live[0].id != leaked.old.0, "{live:?}");
    let incident = leaked.incident();
    let model = of_secret(&incident, "model@default");
    let outage = &model["outage"];
    assert!(outage["until"].is_null(), "{outage}");
    assert_eq!(outage["behind"][0]["replicas"].as_array().unwrap().len(), 1, "{outage}");
    assert!(outage["behind"][0]["trouble"].as_str().unwrap().contains("ended with 7"), "{outage}");
    assert!(
        model["passed_over"][0].as_str().unwrap().contains("made from other settings"),
        "{model}"
    );
    assert_eq!(incident["owed"][0]["command"], "keywheel resume model@default");

    let env = std::fs::read_to_string(leaked.project.path().join(".env")).unwrap();
    leaked.project.write(".env", &env.replace("BROKEN=1\n", ""));
    leaked.run(&["resume", "model", "--yes"], 0);
    leaked.assert_nothing_leaked_is_of_use(&[&leaked.old.1]);
    let incident = leaked.incident();
    let model = of_secret(&incident, "model@default");
    assert!(
        model["outage"]["until"].is_string() && model["suspects"][0]["dead"] == "proven",
        "{model}"
    );
}

fn of_secret<'a>(incident: &'a Value, name: &str) -> &'a Value {
    let secrets = incident["secrets"].as_array().unwrap();
    secrets.iter().find(|one| one["rotation"]["secret"] == name).unwrap()
}

#[cfg(feature = "fail-points")]
mod in_the_middle {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn h125_an_emergency_takes_over_a_rotation_that_was_killed_in_its_roll() {
        side_by_side(&[
            |leaked| takes_over(leaked, &[]),
            |leaked| takes_over(leaked, &["--revoke-first"]),
        ]);
    }

    fn takes_over(leaked: &Leaked, order: &[&str]) {
        let before = leaked.containers_of("backend");
        let mut rotate = leaked.project.command(&["rotate", "model", "--yes"]);
        rotate.env("KEYWHEEL_FAIL_POINT", "container_made:backend");
        let output = rotate.output().unwrap();
        assert_eq!(output.status.signal(), Some(9), "{output:?}");
        let middle = leaked.model_key();
        assert_ne!(middle, leaked.old.1);
        leaked.run(&[&["rotate", "model", "--emergency", "--yes"], order].concat(), 0);
        leaked.assert_nothing_leaked_is_of_use(&[&leaked.old.1, &middle]);
        let incident = leaked.incident();
        let suspects = of_secret(&incident, "model@default")["suspects"].as_array().unwrap();
        assert!(
            suspects.len() == 2 && suspects.iter().all(|one| one["dead"] == "proven"),
            "{suspects:?}"
        );
        let logs = incident["logs"].as_array().unwrap();
        let referenced = logs.iter().map(|log| log["id"].as_str().unwrap().to_owned());
        assert!(before.is_subset(&referenced.collect()), "{logs:?}");
        leaked.run(&["doctor"], 0);
    }
}
