//! `compose_service` on a real Docker Engine, with each generation of Compose that is installed.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]
#![expect(clippy::print_stdout, reason = "a test says why it is skipped")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use keywheel_core::evidence::{Expected, Proof, judge};
use keywheel_core::fingerprint::{Fingerprint, FingerprintKeyId, Fingerprinter};
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::workload::{Ensure, Notes, ReadLog, Reading};
use keywheel_driver::{CallError, RefusalKind, Severity, Workload, slot};
use keywheel_drivers::{Build, Context, WorkloadConfig};
use keywheel_ground::Engine;
use keywheel_ground::docker::{Docker, IMAGE, composes};
use keywheel_ground::podman::Podman;
use serde_json::{Value, json};

/// A backend whose fate its value decides.
const BACKEND: &str = r#"
    image: IMAGE
    network_mode: none
    stop_grace_period: 1s
    command: ["/bin/busybox", "sh", "-c", "trap 'echo ends; exit 0' TERM; [ \"$$VALUE\" = crash ] && exit 7; echo begins; busybox sleep 1d & wait"]
"#;

const HEALTH: &str = r#"    healthcheck: { test: ["CMD", "/bin/busybox", "sh", "-c", "[ \"$$VALUE\" != sick ]"], interval: 500ms, timeout: 2s, retries: 1 }
"#;

struct Project {
    engine: Engine,
    folder: tempfile::TempDir,
    compose: PathBuf,
    fingerprinter: Fingerprinter,
}

type Slots = Vec<(String, Option<Fingerprint>)>;

impl Project {
    /// Begins a project with one service; none, with the reason, where that cannot be had.
    fn begin(compose: PathBuf, extra: &str) -> Option<Self> {
        let docker = match Docker::start() {
            Ok(docker) => docker,
            Err(why) => {
                println!("skipped: Docker Compose ({why})");
                return None;
            }
        };
        Some(Self::over(Engine::Docker(docker.into()), compose, extra))
    }

    fn over(engine: Engine, compose: PathBuf, extra: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fingerprinter = Fingerprinter::new(FingerprintKeyId(1), [7; 32].into());
        let project = Self { engine, folder, compose, fingerprinter };
        project.write("app.env", "VALUE=old\n");
        let backend = BACKEND.replace("IMAGE", IMAGE);
        // Podman leaves health checks to systemd, which a test cannot start.
        let health = if matches!(project.engine, Engine::Docker(_)) { HEALTH } else { "" };
        project.write(
            "docker-compose.yml",
            &format!(
                "version: \"3.8\"\nservices:\n  backend:{backend}{health}    env_file: [app.env]\n{extra}"
            ),
        );
        project
    }

    /// Begins one after the other with each generation of Compose.
    fn each(extra: &str, mut with: impl FnMut(Self)) {
        let composes = composes();
        if composes.is_empty() {
            println!("skipped: Docker Compose (none is installed)");
        }
        composes.into_iter().filter_map(|compose| Self::begin(compose, extra)).for_each(&mut with);
    }

    /// Begins one with the present generation of Compose.
    fn one(extra: &str) -> Option<Self> {
        let compose = composes().into_iter().next();
        if compose.is_none() {
            println!("skipped: Docker Compose (none is installed)");
        }
        Self::begin(compose?, extra)
    }

    fn write(&self, name: &str, text: &str) {
        let staged = self.folder.path().join("staged");
        std::fs::write(&staged, text).unwrap();
        std::fs::rename(staged, self.folder.path().join(name)).unwrap();
    }

    fn up(&self, containers: usize, variables: &[(&str, &str)]) {
        let scale = format!("backend={containers}");
        let mut up = self.engine.command(&self.compose);
        up.args(["up", "-d", "--scale", &scale, "backend"]).current_dir(&self.folder);
        up.envs(variables.iter().copied()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(up.status().unwrap().success());
        loop {
            let up = match self.engine {
                Engine::Docker(_) => "health=healthy",
                Engine::Podman(_) => "status=running",
            };
            if self.engine.run(&["ps", "-q", "--filter", up]).lines().count() == containers {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    /// Writes a program that stands before Compose.
    fn program(&self, name: &str, text: &str) -> PathBuf {
        self.write(name, &text.replace("COMPOSE", &self.compose.display().to_string()));
        let path = self.folder.path().join(name);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        path
    }

    fn ids(&self) -> BTreeSet<String> {
        let told = self.engine.run(&["ps", "-aq", "--no-trunc"]);
        told.lines().map(str::to_owned).collect()
    }

    fn workload(&self, extra: Value) -> Arc<dyn Workload> {
        let mut config = json!({
            "file": "docker-compose.yml",
            "service": "backend",
            "replicas": 2,
            "program": [self.compose],
            "socket": self.engine.socket(),
            "ready_for": "200ms",
            "ready_within": "30s",
        });
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let config: WorkloadConfig =
            serde_json::from_value(json!({ "compose_service": config })).unwrap();
        config.build(&Context::at(self.folder.path())).unwrap()
    }

    fn slots(&self, file: &str, address: &str, value: &str) -> Slots {
        let container = format!("file:{}", self.folder.path().join(file).display());
        vec![(slot::name(&container, address), Some(self.fingerprinter.of(value.as_bytes())))]
    }

    /// Writes a value and rolls to it.
    async fn roll_to(&self, workload: &dyn Workload, value: &str) -> Result<(), CallError> {
        self.write("app.env", &format!("VALUE={value}\n"));
        self.roll(workload, &self.slots("app.env", "VALUE", value), now()).await
    }

    async fn roll(
        &self,
        workload: &dyn Workload,
        slots: &Slots,
        held_since: Timestamp,
    ) -> Result<(), CallError> {
        self.roll_as(workload, slots, held_since, None).await
    }

    async fn roll_as(
        &self,
        workload: &dyn Workload,
        slots: &Slots,
        held_since: Timestamp,
        emergency: Option<&Notes>,
    ) -> Result<(), CallError> {
        let ensure = Ensure::new(slots, held_since, &self.fingerprinter);
        workload.roll(&Ensure { emergency, ..ensure }).await
    }

    async fn proofs(
        &self,
        workload: &dyn Workload,
        slots: &Slots,
        held_since: Timestamp,
    ) -> Vec<Proof> {
        let names: Vec<_> = slots.iter().map(|(name, _)| name.clone()).collect();
        let replicas = workload.observe(&names, &self.fingerprinter).await.unwrap();
        let granularity = workload.facts().start_granularity;
        let held_since = Some(held_since);
        let expected = Expected { slots, held_since, untouched_before: None, granularity };
        replicas.iter().map(|replica| judge(replica, &expected)).collect()
    }

    async fn hold(&self, workload: &dyn Workload, value: &str) -> Vec<Proof> {
        self.proofs(workload, &self.slots("app.env", "VALUE", value), now()).await
    }
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp::from_millis(since.as_millis().try_into().unwrap())
}

fn why_it_failed(ended: Result<(), CallError>) -> String {
    match ended {
        Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::WorkloadFailed => {
            refusal.message
        }
        other => panic!("{other:?}"),
    }
}

async fn blocking(workload: &dyn Workload) -> Vec<String> {
    let findings = workload.preflight().await.unwrap();
    let blocks = findings.into_iter().filter(|finding| finding.severity == Severity::Blocks);
    blocks.map(|finding| finding.message).collect()
}

/// Runs the future of one project.
fn wait(future: impl Future<Output = ()>) {
    tokio::runtime::Runtime::new().unwrap().block_on(future);
}

#[test]
fn h98_a_roll_replaces_every_container_one_after_another() {
    Project::each("", |project| wait(replaces_every_container(&project)));
}

#[test]
fn podman_serves_as_docker_does() {
    let Some(compose) = composes().into_iter().next() else {
        return println!("skipped: Podman (Docker Compose is not installed)");
    };
    let podman = match Podman::start() {
        Ok(podman) => podman,
        Err(why) => return println!("skipped: Podman ({why})"),
    };
    wait(replaces_every_container(&Project::over(Engine::Podman(podman.into()), compose, "")));
}

async fn replaces_every_container(project: &Project) {
    project.up(2, &[]);
    let (before, workload) = (project.ids(), project.workload(json!({})));
    let workload = workload.as_ref();
    assert_eq!(blocking(workload).await, [""; 0]);
    let (logs, lines) = read(workload, Timestamp::default(), (1 << 20, Span::seconds(20))).await;
    assert!(logs.len() == 2 && logs.iter().all(|log| log.not_read.is_none()), "{logs:?}");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(project.hold(workload, "old").await, [Proof::Holds; 2]);
    assert_eq!(project.hold(workload, "new").await, [Proof::Other; 2]);
    project.roll_to(workload, "new").await.unwrap();
    assert_eq!(project.hold(workload, "new").await, [Proof::Holds; 2]);
    assert!(before.is_disjoint(&project.ids()));
    let after = project.ids();
    project.roll_to(workload, "new").await.unwrap();
    assert_eq!(project.ids(), after, "who holds the values is left alone");
    assert_eq!(blocking(workload).await, [""; 0]);
}

#[test]
fn h100_a_masked_variable_is_found_before_a_container_is_touched() {
    Project::each("    environment: { VALUE: old }\n", |project| {
        wait(async {
            project.up(2, &[]);
            let (before, workload) = (project.ids(), project.workload(json!({})));
            let why = why_it_failed(project.roll_to(workload.as_ref(), "new").await);
            assert!(why.contains("`VALUE` of service `backend`"), "{why}");
            assert_eq!(project.ids(), before);
        });
    });
}

#[test]
fn h100_containers_made_from_other_settings_are_found_before_anything_changes() {
    Project::each("    labels: { tag: \"${TAG:-none}\" }\n", |project| {
        wait(async {
            project.up(2, &[("TAG", "from-a-shell")]);
            let found = blocking(project.workload(json!({})).as_ref()).await;
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains("made from other settings"), "{found:?}");
        });
    });
}

#[test]
fn i08_a_stopped_container_counts() {
    Project::each("", |project| {
        wait(async {
            project.up(2, &[]);
            let stopped = project.ids().first().unwrap().clone();
            let _name = project.engine.run(&["stop", &stopped]);
            let workload = project.workload(json!({}));
            let found = blocking(workload.as_ref()).await;
            assert!(found.len() == 1 && found[0].contains("is exited"), "{found:?}");
            assert_eq!(project.hold(workload.as_ref(), "new").await, [Proof::Other; 2]);
            project.roll_to(workload.as_ref(), "new").await.unwrap();
            assert_eq!(project.hold(workload.as_ref(), "new").await, [Proof::Holds; 2]);
            assert!(!project.ids().contains(&stopped));
        });
    });
}

#[test]
fn i08_no_container_at_all_shows_nothing() {
    let Some(project) = Project::one("") else { return };
    wait(async {
        let workload = project.workload(json!({}));
        assert_eq!(project.hold(workload.as_ref(), "new").await, []);
        let found = blocking(workload.as_ref()).await;
        assert!(found[0].contains("has no container"), "{found:?}");
    });
}

#[test]
fn an_engine_that_cannot_be_reached_is_named() {
    let socket = PathBuf::from("/nonexistent/docker.sock");
    let config =
        json!({ "compose_service": { "file": "c.yml", "service": "s", "socket": socket } });
    let config: WorkloadConfig = serde_json::from_value(config).unwrap();
    let workload = config.build(&Context::at("/nonexistent")).unwrap();
    wait(async {
        let error = workload.preflight().await.expect_err("nobody answers").to_string();
        assert!(
            error.starts_with("the container engine at `/nonexistent/docker.sock`: "),
            "{error}"
        );
    });
}

#[test]
fn a_value_that_crashes_the_program_costs_one_container() {
    Project::each("", |project| {
        wait(async {
            project.up(2, &[]);
            let (before, workload) = (project.ids(), project.workload(json!({})));
            let why = why_it_failed(project.roll_to(workload.as_ref(), "crash").await);
            assert!(why.contains("ended with 7 before it was ready"), "{why}");
            assert_eq!(before.intersection(&project.ids()).count(), 1);
            project.roll_to(workload.as_ref(), "old").await.unwrap();
            assert_eq!(project.hold(workload.as_ref(), "old").await, [Proof::Holds; 2]);
            assert_eq!(before.intersection(&project.ids()).count(), 1);
        });
    });
}

#[test]
fn h51_the_next_container_waits_until_the_one_before_is_healthy() {
    let Some(project) = Project::one("") else { return };
    wait(async {
        project.up(2, &[]);
        let (before, workload) = (project.ids(), project.workload(json!({})));
        let why = why_it_failed(project.roll_to(workload.as_ref(), "sick").await);
        assert!(why.contains("is unhealthy"), "{why}");
        assert_eq!(before.intersection(&project.ids()).count(), 1);
    });
}

/// A Compose that gives containers something else than it says.
const LIAR: &str =
    "#!/bin/sh\nfor word; do [ \"$word\" = up ] && export TAG=other; done\nexec COMPOSE \"$@\"\n";

#[test]
fn h53_a_new_container_with_other_values_fails_the_roll() {
    let Some(project) = Project::one("    environment: { VALUE: \"${TAG:-new}\" }\n") else {
        return;
    };
    wait(async {
        project.up(2, &[("TAG", "old")]);
        let liar = project.program("liar", LIAR);
        let (before, workload) = (project.ids(), project.workload(json!({ "program": [liar] })));
        let why = why_it_failed(project.roll_to(workload.as_ref(), "new").await);
        assert!(why.contains("with other values than its stores hold"), "{why}");
        assert_eq!(before.intersection(&project.ids()).count(), 1);
    });
}

#[test]
fn h51_nothing_is_removed_where_no_successor_could_be_made() {
    let Some(project) = Project::one("") else { return };
    wait(async {
        let _said = project.engine.run(&["tag", IMAGE, "local/app:1"]);
        let file = project.folder.path().join("docker-compose.yml");
        let text = std::fs::read_to_string(&file).unwrap().replace(IMAGE, "local/app:1");
        project.write("docker-compose.yml", &text);
        project.up(2, &[]);
        let (before, workload) = (project.ids(), project.workload(json!({})));
        let _said = project.engine.run(&["rmi", "local/app:1"]);
        let found = blocking(workload.as_ref()).await;
        assert!(found.len() == 2 && found[0].contains("is no longer there"), "{found:?}");
        let why = why_it_failed(project.roll_to(workload.as_ref(), "new").await);
        assert!(why.contains("image `local/app:1`"), "{why}");
        assert_eq!(project.ids(), before);
        // Built anew meanwhile: a roll would deploy that too.
        project.write("app.env", "VALUE=old\n");
        let other = project.folder.path().join("other.tar");
        let archive = Command::new("tar")
            .arg("-cf")
            .arg(&other)
            .args(["-C", "/"])
            .arg("etc/hostname")
            .status();
        assert!(archive.unwrap().success());
        let _id = project.engine.run(&["import", &other.display().to_string(), "local/app:1"]);
        let found = blocking(workload.as_ref()).await;
        assert!(found.len() == 2 && found[0].contains("is another image now"), "{found:?}");
        let why = why_it_failed(project.roll_to(workload.as_ref(), "new").await);
        assert!(why.contains("is another image now"), "{why}");
        assert_eq!(project.ids(), before);
    });
}

#[test]
fn h14_a_compose_whose_keywheel_was_killed_is_waited_for() {
    let Some(project) = Project::one("") else { return };
    wait(async {
        project.up(2, &[]);
        let (before, workload) = (project.ids(), project.workload(json!({})));
        project.write("app.env", "VALUE=new\n");
        let slots = project.slots("app.env", "VALUE", "new");
        // As long as it makes containers, a Compose holds the lock that its keywheel took.
        let file = std::fs::File::open(project.folder.path().join("docker-compose.yml")).unwrap();
        file.lock().unwrap();
        let end = async {
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            assert_eq!(project.ids(), before, "nothing is touched while it works");
            drop(file);
        };
        let (ended, ()) = tokio::join!(project.roll(workload.as_ref(), &slots, now()), end);
        ended.unwrap();
        assert!(before.is_disjoint(&project.ids()));
    });
}

/// A Compose that makes no container.
const IDLER: &str =
    "#!/bin/sh\nfor word; do [ \"$word\" = up ] && exit 1; done\nexec COMPOSE \"$@\"\n";

#[test]
fn h51_no_second_container_is_removed_while_the_first_has_no_successor() {
    let Some(project) = Project::one("") else { return };
    wait(async {
        project.up(2, &[]);
        let idler = project.program("idler", IDLER);
        let (before, workload) = (project.ids(), project.workload(json!({ "program": [idler] })));
        for _ in 0..2 {
            let why = why_it_failed(project.roll_to(workload.as_ref(), "new").await);
            assert!(why.contains("gets no new container: `compose up` ended with 1"), "{why}");
            assert_eq!(before.intersection(&project.ids()).count(), 1);
        }
        project.roll_to(project.workload(json!({})).as_ref(), "new").await.unwrap();
        assert_eq!(project.hold(workload.as_ref(), "new").await, [Proof::Holds; 2]);
    });
}

#[test]
fn h51_a_successor_that_ends_later_keeps_the_others_from_being_removed() {
    let Some(project) = Project::one("") else { return };
    wait(async {
        project.up(3, &[]);
        let workload = project.workload(json!({ "replicas": 3, "ready_for": "200ms" }));
        project.write("app.env", "VALUE=new\n");
        let slots = project.slots("app.env", "VALUE", "new");
        let before = project.ids();
        let kill = async {
            let mut first = None;
            for _ in 0..600 {
                let new: Vec<_> = project.ids().difference(&before).cloned().collect();
                first = first.or_else(|| new.first().cloned());
                if let (Some(first), 2) = (&first, new.len()) {
                    let _id = project.engine.run(&["kill", first]);
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let (ended, ()) = tokio::join!(project.roll(workload.as_ref(), &slots, now()), kill);
        let why = why_it_failed(ended);
        assert!(why.contains("ended with 137"), "{why}");
        assert_eq!(before.intersection(&project.ids()).count(), 1);
    });
}

#[test]
fn a_container_that_was_removed_before_a_crash_is_made_again() {
    let Some(project) = Project::one("") else { return };
    wait(async {
        project.up(2, &[]);
        let _id = project.engine.run(&["rm", "-f", project.ids().first().unwrap()]);
        let workload = project.workload(json!({}));
        project.roll_to(workload.as_ref(), "new").await.unwrap();
        assert_eq!(project.hold(workload.as_ref(), "new").await, [Proof::Holds; 2]);
    });
}

#[test]
fn h101_a_mounted_file_is_taken_up_by_a_new_container_only() {
    let mount = "    secrets: [key]\nsecrets:\n  key: { file: ./key.txt }\n";
    Project::each(mount, |project| {
        wait(async {
            project.write("key.txt", "old");
            project.up(2, &[]);
            let (before, workload) = (project.ids(), project.workload(json!({})));
            let workload = workload.as_ref();
            project.write("key.txt", "new");
            let (slots, since) = (project.slots("key.txt", "content", "new"), now());
            assert_eq!(project.proofs(workload, &slots, since).await, [Proof::Unknown; 2]);
            project.roll(workload, &slots, since).await.unwrap();
            assert_eq!(project.proofs(workload, &slots, since).await, [Proof::Holds; 2]);
            assert!(before.is_disjoint(&project.ids()));
        });
    });
}

#[test]
fn a_single_container_is_removed_after_its_successor_serves() {
    let Some(project) = Project::one("") else { return };
    wait(async {
        project.up(1, &[]);
        let before = project.ids();
        assert!(project.workload(json!({ "replicas": 1 })).facts().gap);
        let workload = project.workload(json!({ "replicas": 1, "start_first": true }));
        assert!(!workload.facts().gap);
        let why = why_it_failed(project.roll_to(workload.as_ref(), "crash").await);
        assert!(why.contains("ended with 7"), "{why}");
        assert!(before.is_subset(&project.ids()), "the old one serves on");
        project.roll_to(workload.as_ref(), "old").await.unwrap();
        project.roll_to(workload.as_ref(), "new").await.unwrap();
        assert_eq!(project.hold(workload.as_ref(), "new").await, [Proof::Holds]);
    });
}

#[test]
fn h124_the_log_of_a_container_is_copied_before_it_is_removed() {
    let Some(project) = Project::one("") else { return };
    wait(async {
        project.up(1, &[]);
        let before = project.ids();
        let folder = project.folder.path().join("logs");
        let workload = project.workload(json!({ "replicas": 1, "keep_logs": folder }));
        let workload = workload.as_ref();
        std::fs::write(&folder, "").unwrap();
        assert!(blocking(workload).await[0].contains("is no folder"));
        let refused = project.roll_to(workload, "new").await;
        assert!(matches!(refused, Err(CallError::Refused(_))), "{refused:?}");
        assert_eq!(
            project.ids(),
            before,
            "a log that cannot be kept ends the roll before the stop"
        );
        assert_eq!(project.engine.run(&["ps", "-q"]).lines().count(), 1);

        std::fs::remove_file(&folder).unwrap();
        let [log] = &workload.logs().await.unwrap().unwrap()[..] else { panic!("it has one") };
        assert_eq!((log.driver.as_deref(), log.outlives), (Some("json-file"), Some(false)));
        assert_eq!(log.id.as_ref(), before.first());
        project.roll_to(workload, "new").await.unwrap();
        let kept = std::fs::read_to_string(log.kept_in.as_ref().unwrap()).unwrap();
        let lines: Vec<_> = kept.lines().map(|line| line.split_once(' ').unwrap().1).collect();
        assert_eq!(lines, ["begins", "ends"], "{kept}");

        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::write(&folder, "").unwrap();
        let (notes, between) = (Notes::default(), project.ids());
        project.write("app.env", "VALUE=newer\n");
        let slots = project.slots("app.env", "VALUE", "newer");
        project.roll_as(workload, &slots, now(), Some(&notes)).await.unwrap();
        assert!(between.is_disjoint(&project.ids()), "an emergency does not wait for a log");
        let notes = notes.into_inner();
        assert!(notes.len() == 1 && notes[0].contains("is not kept"), "{notes:?}");
    });
}

/// Reads the logs of all containers from a time on, within bounds. Returns how far, and every line without its time.
async fn read(
    workload: &dyn Workload,
    since: Timestamp,
    (most_bytes, within): (u64, Span),
) -> (Vec<ReadLog>, BTreeSet<(String, String)>) {
    let mut lines = BTreeSet::new();
    let mut take = |replica: &str, line: &str| {
        let text = line.split_once(' ').unwrap().1;
        lines.insert((replica.to_owned(), text.to_owned()));
    };
    let mut reading = Reading { since, most_bytes, within, take: &mut take };
    let logs = workload.read_logs(&mut reading).await.unwrap().unwrap();
    (logs, lines)
}

#[test]
fn h124_the_log_of_every_container_is_read_within_bounds() {
    let Some(project) = Project::one("") else { return };
    wait(async {
        project.up(2, &[]);
        let workload = project.workload(json!({}));
        let stopped = project.engine.run(&["ps", "-q"]).lines().next().unwrap().to_owned();
        project.engine.run(&["stop", &stopped]);
        let whole = (1 << 20, Span::seconds(20));
        let (logs, lines) = read(&*workload, Timestamp::default(), whole).await;
        let ids: BTreeSet<_> = logs.iter().filter_map(|log| log.id.clone()).collect();
        assert_eq!(ids, project.ids(), "{logs:?}");
        assert!(logs.iter().all(|log| log.not_read.is_none()), "{logs:?}");
        let told: Vec<_> = lines.iter().map(|(_, line)| line.as_str()).collect();
        assert_eq!(told.iter().filter(|line| **line == "begins").count(), 2, "{lines:?}");
        assert_eq!(told.iter().filter(|line| **line == "ends").count(), 1, "{lines:?}");

        let later = now() + Span::hours(1);
        let (logs, lines) = read(&*workload, later, whole).await;
        assert!(lines.is_empty() && logs.iter().all(|log| log.not_read.is_none()), "{logs:?}");
        let says =
            |log: &ReadLog, why| log.not_read.as_ref().is_some_and(|said| said.contains(why));
        let (logs, lines) = read(&*workload, Timestamp::default(), (8, whole.1)).await;
        let longer = logs.iter().filter(|log| says(log, "is longer than")).count();
        assert!(logs.len() == 2 && longer == 2 && lines.is_empty(), "{logs:?}");
        // The first one may be read before anybody looks at the time.
        let (logs, _) = read(&*workload, Timestamp::default(), (whole.0, Span::ZERO)).await;
        let late = logs.iter().filter(|log| says(log, "later lines are missing")).count();
        assert!(logs.len() == 2 && late >= 1, "{logs:?}");
    });
}

#[test]
fn h56_a_container_of_compose_run_is_named() {
    let Some(project) = Project::one("") else { return };
    wait(async {
        project.up(2, &[]);
        let mut run = project.engine.command(&project.compose);
        run.args(["run", "-d", "backend", "/bin/busybox", "sleep", "600"]);
        run.current_dir(&project.folder).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(run.status().unwrap().success());
        let workload = project.workload(json!({}));
        let found = blocking(workload.as_ref()).await;
        assert!(found.iter().any(|one| one.contains("was made by `compose run`")), "{found:?}");
        let before = project.ids();
        let refused = project.roll_to(workload.as_ref(), "new").await;
        assert!(matches!(refused, Err(CallError::Refused(_))), "{refused:?}");
        assert_eq!(project.ids(), before);
    });
}
