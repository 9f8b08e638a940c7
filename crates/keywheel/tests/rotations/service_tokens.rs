//! Tokens of services: minted, kept fresh in their file, and accepted by every replica while the key that signs them rotates.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Project, Ran, outcomes};

const KEY: &str = "kwcanary-0123456789abcdefghijklmnopq";

const CONFIG: &str = "
project: shop
policies:
  fast: { cryptoperiod: 90d, soak: 100ms, rollback: 100ms, watch: 100ms }
stores:
  app: { env_file: { path: .env } }
  worker: { file: { path: token, create: true } }
workloads: {}
secrets:
  jwt:
    policy: fast
    issuer: { jwt_secret: { bytes: 32 } }
    strategy: { keyring: { longest_token: 4s, skew: 1s } }
    stores: { app: { JWT_SECRET: current, JWT_SECRET_ALSO_ACCEPTED: also_accepted } }
    read_by: nobody
    because: a test
  worker-token:
    issuer: { service_token: { signed_by: jwt, life: 4s, subject: worker, scopes: [orders:read] } }
    stores: { worker: { content: value } }
    read_by: nobody
    because: it reads the file anew for each call
";

fn project(config: &str) -> Project {
    let project = Project::new();
    project.write("keywheel.yaml", config);
    let variables = format!("JWT_SECRET={KEY}\nJWT_SECRET_ALSO_ACCEPTED=\nJWT_LIFE_SECONDS=4\n");
    project.write(".env", &variables);
    project.run(&["adopt", "--all", "--yes"]).ends(0);
    project
}

fn part(token: &str, index: usize) -> Value {
    let part = token.split('.').nth(index).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

fn id(token: &str) -> String {
    part(token, 1)["jti"].as_str().unwrap().to_owned()
}

fn key(token: &str) -> String {
    part(token, 0)["kid"].as_str().unwrap().to_owned()
}

#[test]
fn a_token_is_replaced_before_it_ends_and_says_when_the_former_one_does() {
    let project = project(&CONFIG.replace("life: 4s", "life: 2s"));
    project.run(&["rotate", "worker-token", "--yes"]).ends(0).says("the first version");
    let first = project.read("token");
    assert_eq!(part(&first, 1)["scope"], "orders:read");
    project.run(&["status", "--all"]).ends(0).says("leased until");
    let mut ran = project.run(&["resume", "--all"]);
    while project.read("token") == first {
        ran = project.run(&["resume", "--all"]);
    }
    ran.ends(0);
    assert_ne!(id(&project.read("token")), id(&first));
    project.run(&["check"]).ends(0).says("more often than every five minutes");

    let config = CONFIG.replace("4s", "1h");
    project.write("keywheel.yaml", &config);
    project.run(&["rotate", "worker-token", "--yes"]).ends(0);
    let ran = project.run(&["rotate", "worker-token", "--yes"]);
    ran.ends(0).says("is accepted until").says("when it ends by itself");
    project.run(&["resume", "--all"]).ends(0).says("nothing is owed");
    let leaked = ["rotate", "worker-token", "--emergency", "--because", "a leak", "--yes"];
    let ended = project.json(&leaked);
    let reason = ended["rotations"][0]["old_refused_reason"].as_str().unwrap();
    assert!(reason.starts_with("it ends by itself at"), "{ended}");
    let incident = ended["rotations"][0]["incident"].as_str().unwrap();
    project.run(&["incident", "show", incident]).ends(0).says("nobody can end it before");
    project.run(&["audit", "verify"]).ends(0).says("holds");
}

#[test]
fn h80_a_token_that_would_outlive_its_key_is_refused_with_its_line() {
    let project = Project::new();
    project.write("keywheel.yaml", &CONFIG.replace("life: 4s", "life: 5s"));
    let ran = project.run(&["check"]);
    ran.ends(1).says("`life` is longer than the 4 s for which a former key is accepted");
    ran.says("keywheel.yaml:18");
    project.write("keywheel.yaml", &CONFIG.replace("signed_by: jwt", "signed_by: jwd"));
    project.run(&["check"]).ends(1).says("did you mean `jwt`?");
    project.write("keywheel.yaml", &CONFIG.replace("signed_by: jwt", "signed_by: worker-token"));
    project.run(&["check"]).ends(1).says("something else than a `jwt_secret`");
}

/// After an emergency of the key nothing that the suspect signed is left where services read it.
#[test]
fn h80_tokens_of_a_suspect_are_replaced_with_it() {
    let project = project(&CONFIG.replace("4s", "1h"));
    project.run(&["rotate", "worker-token", "--yes"]).ends(0);
    let before = project.read("token");
    let leaked = ["rotate", "jwt", "--emergency", "--because", "a leak", "--yes"];
    let ran = project.json(&leaked);
    assert_eq!(ran["rotations"].as_array().unwrap().len(), 2, "{ran}");
    let after = project.read("token");
    assert_ne!(key(&after), key(&before));
    let env = project.read(".env");
    let secret = env.lines().find_map(|line| line.strip_prefix("JWT_SECRET=")).unwrap();
    assert_ne!(secret, KEY);
    assert!(project.run(&["resume", "--all"]).ends(0).stdout.contains("nothing is owed"));
}

/// A reader of the key that shows what stands in its file, and keeps whoever looks at it waiting as long as there is a file `wait`.
const READER: &str = r#"workloads:
  reader:
    command:
      id: reader
      gap: false
      observe: [sh, -c, "cat >/dev/null; touch looked; while [ -e wait ]; do sleep 0.02; done; . ./.env; printf '[{\"id\":\"a\",\"started_at\":null,\"shows\":{\"slots\":{\"JWT_SECRET\":\"%s\",\"JWT_SECRET_ALSO_ACCEPTED\":\"%s\"}}}]' \"$JWT_SECRET\" \"$JWT_SECRET_ALSO_ACCEPTED\""]
      roll: [sh, -c, "cat >/dev/null"]
"#;

#[test]
fn h80_after_a_stop_nothing_follows_an_emergency_and_whoever_ends_it_replaces_tokens() {
    let config = CONFIG.replace("4s", "1h").replace("workloads: {}\n", READER);
    let readers = "read_by: [reader]";
    let project = project(&config.replacen("read_by: nobody\n    because: a test", readers, 1));
    project.run(&["rotate", "worker-token", "--yes"]).ends(0);
    let before = project.read("token");
    project.write("wait", "");
    std::fs::remove_file(project.path("looked")).unwrap_or_default();
    let leaked = ["rotate", "jwt", "--emergency", "--because", "a leak", "--yes"];
    let mut leaked = project.command(&[&leaked[..], &["--output", "json"]].concat());
    let mut running = leaked.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while !project.path("looked").exists() {
        thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&running), Signal::INT).unwrap();
    let mut said = BufReader::new(running.stderr.take().unwrap()).lines();
    let stops = said.find(|line| line.as_ref().unwrap().contains("stopping after this step"));
    assert!(stops.is_some(), "it does not stop");
    std::fs::remove_file(project.path("wait")).unwrap();
    let hints = said.any(|line| line.unwrap().contains("`keywheel resume --all` looks what"));
    let ended = running.wait_with_output().unwrap();
    let told: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!((told["rotations"].as_array().unwrap().len(), hints), (1, true), "{told}");
    assert_eq!(project.read("token"), before);

    let resumed = project.json(&["resume", "--all"]);
    let both = ["jwt@default", "worker-token@default"].map(|secret| [secret, "completed"]);
    assert_eq!(outcomes(&resumed), both);
    assert_ne!(key(&project.read("token")), key(&before));
}

/// A store whose program keeps whoever writes waiting as long as there is a file `wait`.
const SLOW_STORE: &str = r#"  slow:
    command:
      id: slow
      read: [sh, -c, "cat >/dev/null; echo '{\"slots\": {\"PEPPER\": \"kwcanary-pepper-0123456789\"}}'"]
      write: [sh, -c, "cat >/dev/null; touch writing; while [ -e wait ]; do sleep 0.02; done; echo '{\"outcome\": \"written\"}'"]
workloads: {}
"#;

const PEPPER: &str = "  pepper:
    policy: fast
    issuer: random
    stores: { slow: { PEPPER: current } }
    read_by: nobody
    because: a test
";

/// Has every process that holds a secret now taken for dead.
fn take_for_dead(project: &Project) {
    let holders = std::fs::read_dir(project.folder.path().join("state/holders")).unwrap();
    for lock in holders.map(|lock| lock.unwrap().path()) {
        std::fs::remove_file(&lock).unwrap();
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&lock).unwrap();
    }
}

#[test]
fn h20_a_rotation_that_is_lost_to_another_process_stops_neither_others_nor_what_follows_them() {
    let config = CONFIG.replace("4s", "1h").replace("workloads: {}\n", SLOW_STORE);
    let project = project(&format!("{config}{PEPPER}"));
    project.run(&["rotate", "worker-token", "--yes"]).ends(0);
    let before = project.read("token");
    project.write("wait", "");
    let leaked = ["rotate", "jwt", "pepper", "--emergency", "--because", "a leak", "--yes"];
    let mut leaked = project.command(&[&leaked[..], &["--output", "json"]].concat());
    let running = leaked.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while !project.path("writing").exists() {
        thread::sleep(Duration::from_millis(5));
    }
    take_for_dead(&project);
    project.run(&["cancel", "pepper"]).ends(4).says("its mint was begun");
    std::fs::remove_file(project.path("wait")).unwrap();
    let ran = Ran::of(&running.wait_with_output().unwrap());
    ran.ends(4).says("`pepper@default` was taken over by another process");
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    let both = ["jwt@default", "worker-token@default"].map(|secret| [secret, "completed"]);
    assert_eq!(outcomes(&told), both);
    assert_ne!(key(&project.read("token")), key(&before));
}

/// Two replicas of the backend, under a supervisor that starts them again.
struct Backends {
    supervisor: Child,
    ports: Vec<u16>,
}

impl Backends {
    fn start(project: &Project) -> Self {
        let mut supervisor = Command::new(env!("CARGO_BIN_EXE_keywheel"));
        supervisor.arg("demo-supervisor").arg("--folder").arg(project.path(""));
        supervisor.arg("--env-file").arg(project.path(".env"));
        supervisor.args(["--replicas", "2", "--warm-up-ms", "0"]).env_clear();
        supervisor.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let supervisor = supervisor.spawn().unwrap();
        let ports = (1..=2).map(|replica| {
            let file = project.path(&format!("backend-{replica}.port"));
            loop {
                match std::fs::read_to_string(&file).map(|text| text.parse()) {
                    Ok(Ok(port)) => return port,
                    _ => thread::sleep(Duration::from_millis(10)),
                }
            }
        });
        let ports: Vec<u16> = ports.collect();
        for port in &ports {
            while ask(*port, "/health", "") != Some(200) {
                thread::sleep(Duration::from_millis(10));
            }
        }
        Self { supervisor, ports }
    }

    fn workloads(&self) -> String {
        let replica = |(at, port): (usize, &u16)| {
            format!(
                "{{ pid_file: backend-{}.pid, ready_url: \"http://127.0.0.1:{port}/health\", token_url: \"http://127.0.0.1:{port}/me\" }}",
                at + 1
            )
        };
        let replicas: Vec<String> = self.ports.iter().enumerate().map(replica).collect();
        let replicas = replicas.join(", ");
        format!(
            "workloads:\n  api: {{ process: {{ replicas: [{replicas}], shows: start, ready_for: 50ms, settle_for: 500ms }} }}\n"
        )
    }
}

impl Drop for Backends {
    fn drop(&mut self) {
        // It ends, and they with it, when nobody holds the other end.
        drop(self.supervisor.stdin.take());
        self.supervisor.wait().unwrap();
    }
}

/// Returns the status of an answer; none where nobody answers.
fn ask(port: u16, path: &str, token: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: api\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

/// What a service saw that shows each token that was ever in its file to every replica, until the token ends.
#[derive(Default)]
struct Shown {
    tokens: Vec<String>,
    accepted: usize,
    refused: Vec<String>,
}

fn show(file: &Path, ports: &[u16], stop: &AtomicBool) -> Shown {
    let mut shown = Shown::default();
    while !stop.load(Ordering::SeqCst) {
        let token = std::fs::read_to_string(file).unwrap();
        if !shown.tokens.contains(&token) {
            shown.tokens.push(token);
        }
        for token in &shown.tokens {
            for port in ports {
                let answer = ask(*port, "/me", token);
                let is_live =
                    jiff::Timestamp::now().as_second() < part(token, 1)["exp"].as_i64().unwrap();
                match answer {
                    Some(200) => shown.accepted += 1,
                    Some(status) if is_live => shown.refused.push(format!("{status} by {port}")),
                    // A replica that is being replaced refuses nothing.
                    _ => {}
                }
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    shown
}

#[test]
fn h79_no_token_is_refused_before_its_end_while_the_key_rotates() {
    let config = CONFIG.replace("4s", "2s").replace("skew: 1s", "skew: 500ms");
    let project = project(&config);
    let backends = Backends::start(&project);
    let readers = config.replacen("read_by: nobody\n    because: a test", "read_by: [api]", 1);
    project.write("keywheel.yaml", &readers.replace("workloads: {}\n", &backends.workloads()));
    project.run(&["rotate", "worker-token", "--yes"]).ends(0);
    let first = project.read("token");
    assert_eq!(
        backends.ports.iter().map(|port| ask(*port, "/me", &first)).collect::<Vec<_>>(),
        [Some(200); 2]
    );
    let (stop, file) = (AtomicBool::new(false), project.path("token"));
    let shown = thread::scope(|scope| {
        let showing = scope.spawn(|| show(&file, &backends.ports, &stop));
        let visiting = scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                // The rotation of the key is somebody else's, which is no reason to leave tokens alone.
                project.run(&["resume", "--all", "--quiet"]);
                thread::sleep(Duration::from_millis(100));
            }
        });
        let rotated = project.json(&["rotate", "jwt", "--yes", "--soak"]);
        stop.store(true, Ordering::SeqCst);
        visiting.join().unwrap();
        assert_eq!(rotated["rotations"][0]["outcome"], "completed", "{rotated}");
        assert_eq!(rotated["rotations"][0]["old_refused"], true, "{rotated}");
        showing.join().unwrap()
    });
    assert_eq!(shown.refused, Vec::<String>::new(), "of {} tokens", shown.tokens.len());
    assert!(shown.accepted > 0 && shown.tokens.len() > 1, "{} tokens", shown.tokens.len());
    project.run(&["resume", "--all"]).ends(0);
    assert_ne!(key(&project.read("token")), key(&first), "the key that is in use signs");
}
