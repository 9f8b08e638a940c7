//! Kills the program with SIGKILL at each of its fail points, lets it resume, and compares the end with that of a run that
//! nobody killed: the same phases, the same store but for the values, every replica with what the store holds, one live key at
//! the issuer, and an audit chain that holds.
//!
//! The world is real but for the issuer, which is the twin of OpenAI: real files, a real journal, real processes that are
//! replaced one after another by supervisors of their own. `KEYWHEEL_TEST_KEEP` names a folder in which everything is left.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use keywheel_twins::openai::{Twin, TwinOptions};
use serde_json::Value;

/// How many worlds live at once; each waits most of the time.
const AT_ONCE: usize = 6;

/// How often one place is tried; a wait passes the same places again and again, and not equally often in each run.
const MOST: u32 = 3;

/// The two secrets and the variables that hold them.
const SECRETS: [(&str, &str); 2] = [("openai", "OPENAI_API_KEY"), ("session", "SESSION_KEY")];

const REPLICAS: [&str; 2] = ["web-1", "web-2"];

#[test]
fn a_kill_at_any_fail_point_ends_as_if_there_was_none() {
    let keep = Keep::new();
    let reference = World::new(keep.path(), "unkilled");
    let points = reference.rotate_and_list_fail_points();
    assert!(points.len() > 40, "only {} fail points were passed", points.len());
    let end = reference.end();
    end.assert_good();
    let queue = Mutex::new(points.iter().cloned().enumerate().collect::<VecDeque<_>>());
    let differing = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((number, point)) = { queue.lock().unwrap().pop_front() } {
                    let killed = || killed_at(keep.path(), number, &point, &end);
                    if catch_unwind(AssertUnwindSafe(killed)).is_err() {
                        differing.lock().unwrap().push(point);
                    }
                }
            });
        }
    });
    println!("killed at {} fail points", points.len());
    let differing = differing.into_inner().unwrap();
    assert!(differing.is_empty(), "after a kill at {differing:?} the end is another one");
}

/// Runs a rotation that is killed at one fail point, and compares its end.
fn killed_at(keep: &Path, number: usize, point: &str, end: &End) {
    let world = World::new(keep, &format!("kill-{number:03}"));
    let log = world.folder.join("fired");
    let status = world.keywheel(&["rotate", "--all", "--yes", "--soak"], |keywheel| {
        keywheel.env("KEYWHEEL_FAIL_POINT", point).env("KEYWHEEL_FAIL_POINT_LOG", &log);
    });
    let place = point.split('#').next().unwrap();
    assert_eq!(status.signal(), Some(9), "{point}: {status}");
    assert_eq!(fs::read_to_string(log).unwrap().trim(), place, "{point} did not fire");
    let resumed = world.keywheel(&["resume", "--all", "--yes", "--soak"], |_| {});
    assert!(resumed.success(), "{point}: resume ended with {resumed}");
    assert_eq!(world.end(), *end, "{point}");
}

/// The folder in which worlds are made.
enum Keep {
    Named(PathBuf),
    Own(tempfile::TempDir),
}

impl Keep {
    fn new() -> Self {
        match std::env::var_os("KEYWHEEL_TEST_KEEP") {
            Some(named) => Self::Named(named.into()),
            None => Self::Own(tempfile::TempDir::new().unwrap()),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Named(path) => path,
            Self::Own(folder) => folder.path(),
        }
    }
}

/// One application with its store, its replicas, its issuer and its journal.
struct World {
    folder: PathBuf,
    twin: Twin,
    old_key: String,
    calls: std::cell::Cell<u32>,
    supervisors: Vec<Supervisor>,
}

impl World {
    fn new(keep: &Path, name: &str) -> Self {
        let folder = keep.join(name);
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        for below in ["run", "state", "config", "tmp"] {
            fs::create_dir(folder.join(below)).unwrap();
        }
        let admin_key = format!("kwcanary-admin-{name}");
        let options = TwinOptions { admin_key: Some(admin_key.clone()), ..TwinOptions::default() };
        let twin = Twin::start(options).unwrap();
        let by_hand = twin.make_key("by-hand");
        let session = format!("kwcanary-session-{name}");
        write(
            &folder.join("app.env"),
            &format!(
                "# of the application\nPORT=80\nOPENAI_API_KEY={}\nSESSION_KEY={session}\n",
                by_hand.value
            ),
        );
        write(&folder.join("admin-key"), &admin_key);
        write(&folder.join("run.canaries"), &by_hand.value);
        write(&folder.join("keywheel.yaml"), &configuration(&twin));
        let supervisors = REPLICAS.map(|replica| Supervisor::start(&folder, replica));
        Self {
            folder,
            twin,
            old_key: by_hand.id,
            calls: std::cell::Cell::new(0),
            supervisors: supervisors.into(),
        }
    }

    /// Runs a rotation to its end, with the arguments of every process written down where strace is there.
    fn rotate_and_list_fail_points(&self) -> Vec<String> {
        let list = self.folder.join("passed");
        let rotated = self.keywheel(&["rotate", "--all", "--yes", "--soak"], |keywheel| {
            keywheel.env("KEYWHEEL_FAIL_POINT_LIST", &list);
        });
        assert!(
            rotated.success(),
            "the run that nobody kills ends with {rotated}: {}",
            self.said()
        );
        let mut times = BTreeMap::new();
        let passed = fs::read_to_string(list).unwrap();
        let points = passed.lines().filter_map(|place| {
            let nth = times.entry(place.to_owned()).and_modify(|nth| *nth += 1).or_insert(1);
            (*nth <= MOST).then(|| format!("{place}#{nth}"))
        });
        points.collect()
    }

    /// Runs the program in this world.
    fn keywheel(&self, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> ExitStatus {
        let call = self.calls.get();
        self.calls.set(call + 1);
        let program = env!("CARGO_BIN_EXE_keywheel");
        let mut keywheel = Command::new(program);
        if self.folder.ends_with("unkilled") && call == 0 && has_strace() {
            keywheel = Command::new("strace");
            keywheel
                .args(["-f", "-qq", "-s", "65536", "-e", "trace=execve", "-o"])
                .arg(self.folder.join("execve"))
                .arg(program);
        }
        keywheel
            .args(arguments)
            .args(["--output", "json"])
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        keywheel
            .env("XDG_STATE_HOME", self.folder.join("state"))
            .env("XDG_CONFIG_HOME", self.folder.join("config"));
        keywheel.env("TMPDIR", self.folder.join("tmp"));
        for (stream, file) in [("out", self.output(call, "out")), ("err", self.output(call, "err"))]
        {
            let file = fs::File::create(file).unwrap();
            if stream == "out" {
                keywheel.stdout(file)
            } else {
                keywheel.stderr(file)
            };
        }
        prepare(&mut keywheel);
        keywheel.status().unwrap()
    }

    fn output(&self, call: u32, stream: &str) -> PathBuf {
        self.folder.join(format!("keywheel-{call}.{stream}"))
    }

    /// Returns what the last call wrote to its standard error.
    fn said(&self) -> String {
        fs::read_to_string(self.output(self.calls.get() - 1, "err")).unwrap()
    }

    /// Asks the program for JSON.
    fn ask(&self, arguments: &[&str]) -> Value {
        let status = self.keywheel(arguments, |_| {});
        assert!(status.success(), "{arguments:?} ended with {status}: {}", self.said());
        serde_json::from_slice(&fs::read(self.output(self.calls.get() - 1, "out")).unwrap())
            .unwrap()
    }

    /// Looks at everything that a rotation leaves.
    fn end(&self) -> End {
        let store = fs::read_to_string(self.folder.join("app.env")).unwrap();
        let values: BTreeMap<_, _> =
            store.lines().filter_map(|line| line.split_once('=')).collect();
        let mut canaries =
            fs::OpenOptions::new().append(true).open(self.folder.join("run.canaries")).unwrap();
        SECRETS
            .iter()
            .for_each(|(_, variable)| writeln!(canaries, "\n{}", values[variable]).unwrap());
        let masked = SECRETS
            .iter()
            .fold(store.clone(), |text, (_, variable)| text.replace(values[variable], "…"));
        let keys = self.twin.keys();
        let verdict = self.ask(&["audit", "verify"]);
        End {
            phases: self.phases(),
            store: masked,
            store_mode: fs::metadata(self.folder.join("app.env")).unwrap().mode(),
            session_is_new: !values["SESSION_KEY"].contains("kwcanary"),
            replicas_hold_it: self
                .supervisors
                .iter()
                .map(|replica| replica.holds(&values))
                .collect(),
            key_is_accepted: accepts(&self.twin, values["OPENAI_API_KEY"]),
            live_by_label: keys
                .iter()
                .filter(|key| key.live && key.label.starts_with("kw-"))
                .count(),
            old_is_live: keys.iter().any(|key| key.live && key.id == self.old_key),
            audit_faults: verdict["faults"].as_array().unwrap().len(),
            beside: names(&self.folder, &["keywheel-", "fired", "passed", "execve"]),
            temporary: names(&self.folder.join("tmp"), &[]),
        }
    }

    /// Returns for each secret how each of its rotations ended.
    fn phases(&self) -> BTreeMap<String, Vec<(String, String)>> {
        let mut phases = BTreeMap::<_, Vec<_>>::new();
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for row in self.ask(&["rotation", "list"])["rotations"].as_array().unwrap() {
            let shown = self.ask(&["rotation", "show", row["rotation"].as_str().unwrap()]);
            let rotation = &shown["rotation"];
            phases
                .entry(word(&row["secret"]))
                .or_default()
                .push((word(&rotation["outcome"]), word(&rotation["phase"])));
        }
        phases
    }
}

/// Everything that a rotation leaves, without what differs from run to run.
#[derive(Debug, PartialEq, Eq)]
struct End {
    phases: BTreeMap<String, Vec<(String, String)>>,
    store: String,
    store_mode: u32,
    session_is_new: bool,
    replicas_hold_it: Vec<bool>,
    key_is_accepted: bool,
    live_by_label: usize,
    old_is_live: bool,
    audit_faults: usize,
    beside: Vec<String>,
    temporary: Vec<String>,
}

impl End {
    /// The run that the others are compared with must itself have done what it is for.
    fn assert_good(&self) {
        let completed = vec![("completed".to_owned(), "completed".to_owned())];
        assert_eq!(self.phases.values().collect::<Vec<_>>(), [&completed, &completed]);
        assert_eq!(self.replicas_hold_it, [true, true]);
        assert!(self.session_is_new && self.key_is_accepted && !self.old_is_live);
        assert_eq!((self.live_by_label, self.audit_faults), (1, 0));
        assert!(self.temporary.is_empty());
    }
}

fn configuration(twin: &Twin) -> String {
    format!(
        r#"requires: ">=0.1"
project: kill9
policies:
  default: {{ cryptoperiod: 90d, soak: 400ms, rollback: 400ms }}
stores:
  app: {{ env_file: {{ path: app.env }} }}
workloads:
  web:
    process:
      replicas: [{{ pid_file: run/web-1.pid }}, {{ pid_file: run/web-2.pid }}]
      shows: environ
      ready_for: 50ms
      settle_for: 500ms
secrets:
  openai:
    issuer:
      openai:
        project: {project}
        admin_key: {{ file: admin-key }}
        base_url: "{base}"
        last_used: {{ lag: 100ms, granularity: 1s }}
        propagation: 0s
        settle_for: 500ms
    stores: {{ app: OPENAI_API_KEY }}
    read_by: [web]
  session:
    issuer: {{ random: {{}} }}
    stores: {{ app: SESSION_KEY }}
    read_by: [web]
"#,
        project = twin.project(),
        base = twin.base_url(),
    )
}

/// Keeps one replica alive: a process that has its values in its environment since its start.
struct Supervisor {
    stop: Arc<AtomicBool>,
    pid_file: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    fn start(folder: &Path, name: &str) -> Self {
        let (store, pid_file) = (folder.join("app.env"), folder.join(format!("run/{name}.pid")));
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, pids) = (Arc::clone(&stop), pid_file.clone());
        let mut replica = start_replica(&store, &pids);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                if replica.try_wait().unwrap().is_some() {
                    replica = start_replica(&store, &pids);
                }
                thread::sleep(Duration::from_millis(10));
            }
            replica.kill().unwrap();
            replica.wait().unwrap();
        });
        Self { stop, pid_file, thread: Some(thread) }
    }

    /// Returns whether the replica's environment holds exactly these values.
    fn holds(&self, values: &BTreeMap<&str, &str>) -> bool {
        let pid = fs::read_to_string(&self.pid_file).unwrap();
        let environ = fs::read(format!("/proc/{}/environ", pid.trim())).unwrap();
        let held: Vec<_> = environ.split(|byte| *byte == 0).collect();
        values.iter().all(|(name, value)| held.contains(&format!("{name}={value}").as_bytes()))
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn start_replica(store: &Path, pid_file: &Path) -> Child {
    let text = fs::read_to_string(store).unwrap();
    let values = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut replica = Command::new("sleep");
    let replica = replica
        .arg("600")
        .env_clear()
        .envs(values)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    fs::write(pid_file, replica.id().to_string()).unwrap();
    replica
}

/// Returns whether the issuer accepts a key.
fn accepts(twin: &Twin, key: &str) -> bool {
    let base = twin.base_url();
    let address = base.strip_prefix("http://").and_then(|rest| rest.strip_suffix("/v1")).unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /v1/models HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.starts_with("HTTP/1.1 200")
}

fn has_strace() -> bool {
    Command::new("strace")
        .arg("-V")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Returns the names in a folder, without those of the test itself.
fn names(folder: &Path, but: &[&str]) -> Vec<String> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> =
        entries.filter(|name| !but.iter().any(|prefix| name.starts_with(prefix))).collect();
    names.sort();
    names
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
