//! Secrets in OpenBao, rotated by the whole program: a value of keywheel's own beside one of somebody else, and a login that a
//! database engine leases, which is extended and replaced before it ends.
//!
//! The reader is a process that is given, when it starts, what OpenBao holds then.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use keywheel_ground::openbao::OpenBao;
use keywheel_ground::postgres::Postgres;
use serde_json::{Value, json};

const ROOT: &str = "kwcanary-vault-root";
const WARDEN: &str = "kwcanary-vault-warden";
const OTHER: &str = "kwcanary-vault-other";

const CONFIG: &str = r#"project: shop
policies:
  default: { cryptoperiod: 90d, soak: 1s, rollback: 1s, watch: 1s }
stores:
  kv: { vault_kv: { address: "ADDRESS", auth: { token: { file: token } }, path: shop/backend, create: true, settle_for: 500ms } }
workloads:
  web: { process: { replicas: [{ pid_file: run/web.pid }], shows: environ, ready_for: 100ms, settle_for: 500ms } }
secrets:
  session:
    issuer: random
    stores: { kv: SESSION }
    read_by: [web]
  database:
    issuer:
      vault_dynamic:
        address: "ADDRESS"
        auth: { token: { file: token } }
        path: database/creds/shop
        longest_life: 30s
        login_at: "postgresql://127.0.0.1:PORT/shop"
        settle_for: 500ms
    stores: { kv: { PGUSER: username, PGPASSWORD: password } }
    read_by: [web]
"#;

/// How long a login lives that is not extended: an extension is due after half of it, another login after 15 s.
const TTL: &str = "10s";

struct World {
    bao: Arc<OpenBao>,
    postgres: Postgres,
    folder: tempfile::TempDir,
    reader: Option<Reader>,
}

impl World {
    fn start() -> Option<Self> {
        let mut out = std::io::stdout();
        let mut skipped = |why: String| writeln!(out, "skipped: {why}").unwrap();
        let bao = Arc::new(OpenBao::start().map_err(&mut skipped).ok()?);
        let postgres = Postgres::start_with(ROOT, None, &["fsync=off", "log_statement=all"]);
        let postgres = postgres.map_err(skipped).ok()?;
        let folder = tempfile::TempDir::new().unwrap();
        for below in ["run", "state", "config"] {
            fs::create_dir(folder.path().join(below)).unwrap();
        }
        let world = Self { bao, postgres, folder, reader: None };
        world.sql(&format!(
            "CREATE ROLE shop_owner NOLOGIN; \
             CREATE ROLE warden LOGIN CREATEROLE PASSWORD '{WARDEN}' IN ROLE shop_owner, pg_signal_backend"
        ));
        world.sql("CREATE DATABASE shop OWNER shop_owner");
        world.write("admin-password", WARDEN);
        world.write("token", world.bao.token());
        let config = CONFIG.replace("ADDRESS", world.bao.address());
        world.write("keywheel.yaml", &config.replace("PORT", &world.postgres.port().to_string()));
        world
            .bao
            .run(&["secrets", "enable", "-path=secret", "-version=2", "kv"], &Value::Null)
            .unwrap();
        let first = json!({ "data": { "SESSION": "kwcanary-vault-first", "OTHER": OTHER } });
        let since = Instant::now();
        while world.bao.write("secret/data/shop/backend", &first).is_err() {
            assert!(since.elapsed() < Duration::from_secs(20), "the engine does not come up");
        }
        Some(world)
    }

    fn sql(&self, statements: &str) {
        self.ask("postgres", ROOT, "postgres", statements).unwrap();
    }

    /// Asks as a login, and returns the first cell of the answer.
    fn ask(
        &self,
        user: &str,
        password: &str,
        database: &str,
        what: &str,
    ) -> Result<String, String> {
        let mut psql = Command::new("psql");
        psql.args(["-X", "-q", "-A", "-t", "-h", "127.0.0.1", "-U", user, "-d", database, "-p"]);
        psql.arg(self.postgres.port().to_string()).env("PGPASSWORD", password);
        psql.args(["-v", "ON_ERROR_STOP=1"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut psql = psql.stderr(Stdio::piped()).spawn().unwrap();
        psql.stdin.take().unwrap().write_all(what.as_bytes()).unwrap();
        let said = psql.wait_with_output().unwrap();
        match said.status.success() {
            true => Ok(String::from_utf8(said.stdout).unwrap().trim().to_owned()),
            false => Err(String::from_utf8_lossy(&said.stderr).into_owned()),
        }
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.folder.path().join(file), text).unwrap();
    }

    /// Runs the program and returns all that it said.
    fn run(&self, arguments: &[&str], code: i32) -> String {
        let mut keywheel = Command::new(env!("CARGO_BIN_EXE_keywheel"));
        keywheel.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        keywheel.env("XDG_STATE_HOME", self.folder.path().join("state"));
        keywheel.env("XDG_CONFIG_HOME", self.folder.path().join("config"));
        let output = keywheel.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(!said.contains("kwcanary"), "{arguments:?} says a value");
        said
    }

    fn held(&self) -> Value {
        held(&self.bao)
    }

    fn login(&self) -> (String, String) {
        let held = self.held();
        let text = |key: &str| held[key].as_str().unwrap_or_default().to_owned();
        (text("PGUSER"), text("PGPASSWORD"))
    }

    /// Puts a claim beside the values, and returns the one that stood there.
    fn claim(&self, claim: &Value) -> Value {
        let metadata = "secret/metadata/shop/backend";
        let former = self.bao.read(metadata).unwrap()["data"]["custom_metadata"].take();
        self.bao.write(metadata, &json!({ "custom_metadata": claim })).unwrap();
        former
    }

    /// Returns the ids of the leases, and when each ends.
    fn leases(&self) -> Vec<(String, String)> {
        let listed = self.bao.list("sys/leases/lookup/database/creds/shop/").unwrap_or_default();
        let one = |name: String| {
            let lease_id = format!("database/creds/shop/{name}");
            let lease =
                self.bao.write("sys/leases/lookup", &json!({ "lease_id": lease_id })).ok()?;
            Some((lease_id, lease["data"]["expire_time"].as_str()?.to_owned()))
        };
        listed.into_iter().filter_map(one).collect()
    }
}

fn held(bao: &OpenBao) -> Value {
    bao.read("secret/data/shop/backend").unwrap()["data"]["data"].clone()
}

/// Keeps the reader alive: it is given what OpenBao holds whenever it starts.
struct Reader {
    stop: Arc<AtomicBool>,
    pid_file: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    fn start(bao: &Arc<OpenBao>, folder: &Path) -> Self {
        let (bao, pid_file) = (Arc::clone(bao), folder.join("run/web.pid"));
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, pids) = (Arc::clone(&stop), pid_file.clone());
        let mut process = start(&bao, &pids);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                if process.try_wait().unwrap().is_some() {
                    process = start(&bao, &pids);
                }
                thread::sleep(Duration::from_millis(10));
            }
            process.kill().unwrap();
            process.wait().unwrap();
        });
        Self { stop, pid_file, thread: Some(thread) }
    }

    fn holds(&self, key: &str, value: &str) -> bool {
        let pid = fs::read_to_string(&self.pid_file).unwrap();
        let environ = fs::read(format!("/proc/{}/environ", pid.trim())).unwrap();
        environ.split(|byte| *byte == 0).any(|held| held == format!("{key}={value}").as_bytes())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn start(bao: &OpenBao, pid_file: &Path) -> Child {
    let held = held(bao);
    let values = held.as_object().unwrap().iter();
    let values = values.map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()));
    let mut process = Command::new("sleep");
    let process = process.arg("600").env_clear().envs(values).stdin(Stdio::null()).spawn().unwrap();
    fs::write(pid_file, process.id().to_string()).unwrap();
    process
}

#[test]
fn what_openbao_holds_and_leases_is_rotated_before_it_ends() {
    let Some(mut world) = World::start() else { return };
    world.reader = Some(Reader::start(&world.bao, world.folder.path()));
    a_value_is_rotated_beside_that_of_somebody_else(&world);
    the_engine_is_set_up_and_proven(&world);
    a_lease_is_delivered_extended_and_replaced(&world);
    let log = world.postgres.log();
    let passwords = log.lines().filter(|line| line.contains("PASSWORD '"));
    let of_engine: Vec<_> = passwords.filter(|line| !line.contains("ROLE warden LOGIN")).collect();
    assert!(of_engine.len() >= 4, "{} passwords were set", of_engine.len());
    let is_verifier = |line: &&str| line.contains("PASSWORD 'SCRAM-SHA-256$");
    assert_eq!(of_engine.iter().filter(|line| !is_verifier(line)).count(), 0, "one is logged");
}

fn a_value_is_rotated_beside_that_of_somebody_else(world: &World) {
    let before = world.held();
    world.run(&["rotate", "session", "--yes", "--soak"], 0);
    let after = world.held();
    assert_ne!(after["SESSION"], before["SESSION"]);
    assert_eq!(after["OTHER"], OTHER);
    let reader = world.reader.as_ref().unwrap();
    assert!(reader.holds("SESSION", after["SESSION"].as_str().unwrap()));
    let claimed = world.bao.read("secret/metadata/shop/backend").unwrap();
    let claim = &claimed["data"]["custom_metadata"];
    assert!(claim["keywheel-installation"].is_string(), "{claim}");
}

fn the_engine_is_set_up_and_proven(world: &World) {
    let server = format!("127.0.0.1:{}", world.postgres.port());
    let setup = |changes: &[&'static str]| {
        let mut arguments: Vec<String> = [
            "vault",
            "setup-database",
            "database",
            "--server",
            &server,
            "--database",
            "shop",
            "--sslmode",
            "disable",
            "--admin",
            "warden",
            "--admin-password-file",
            "admin-password",
            "--owner",
            "shop_owner",
            "--default-ttl",
            TTL,
        ]
        .map(str::to_owned)
        .into();
        arguments.extend(changes.iter().map(|&change| change.to_owned()));
        arguments
    };
    let run = |arguments: Vec<String>, code| {
        world.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), code)
    };
    let shown = run(setup(&[]), 4);
    for told in ["enable a database engine at `database`", "scram-sha-256", "NOLOGIN", "--yes"] {
        assert!(shown.contains(told), "{told}: {shown}");
    }
    assert!(world.bao.read("database/config/shop").is_err(), "a plan writes nothing");
    world.write("wrong-password", "kwcanary-vault-wrong");
    let mut wrong = setup(&["--yes"]);
    wrong
        .iter_mut()
        .filter(|one| *one == "admin-password")
        .for_each(|one| *one = "wrong-password".into());
    let refused = run(wrong, 4);
    assert!(refused.contains("the engine cannot log in at the database"), "{refused}");
    let written = run(setup(&["--yes", "--rotate-root"]), 0);
    assert!(written.contains("written, and proven"), "{written}");
    assert_eq!(world.leases(), [], "the login that proved it is gone");
    let gone = world.ask("warden", WARDEN, "shop", "SELECT 1");
    assert!(gone.is_err(), "the password of the admin is the engine's alone");
}

fn a_lease_is_delivered_extended_and_replaced(world: &World) {
    let reader = world.reader.as_ref().unwrap();
    world.run(&["rotate", "database", "--yes"], 0);
    let first = world.login();
    assert!(reader.holds("PGUSER", &first.0) && reader.holds("PGPASSWORD", &first.1));
    let table = "CREATE TABLE made (n int); SELECT current_user";
    assert_eq!(world.ask(&first.0, &first.1, "shop", table).as_deref(), Ok("shop_owner"));
    let leases = world.leases();
    let [(lease, ends)] = leases.as_slice() else { panic!("{leases:?}") };
    let nothing = world.run(&["resume", "--all"], 0);
    assert!(nothing.contains("nothing is owed"), "{nothing}");
    // An extension goes to the engine alone: it is made although the store is somebody else's by now.
    let claim = world.claim(&json!({ "keywheel-installation": "another" }));
    let mut was_extended = false;
    let since = Instant::now();
    while world.login() == first {
        assert!(since.elapsed() < Duration::from_secs(60), "it is never replaced");
        thread::sleep(Duration::from_millis(500));
        world.run(&["resume", "--all", "--quiet"], 0);
        let now = world.leases();
        if !was_extended && now.iter().any(|(id, at)| id == lease && at > ends) {
            was_extended = true;
            world.claim(&claim);
        }
        assert!(
            world.ask(&first.0, &first.1, "shop", "SELECT 1").is_ok() || world.login() != first
        );
    }
    assert!(was_extended, "it is replaced without an extension");
    let next = world.login();
    assert!(reader.holds("PGUSER", &next.0) && reader.holds("PGPASSWORD", &next.1));
    let dropped = world.ask(&next.0, &next.1, "shop", "DROP TABLE made; SELECT current_user");
    assert_eq!(dropped.as_deref(), Ok("shop_owner"), "what the former login made is the owner's");
    assert!(world.ask(&first.0, &first.1, "shop", "SELECT 1").is_err(), "the former one is dead");
    let status = world.run(&["status", "--all"], 0);
    assert!(status.contains("leased until"), "{status}");
    let left = world.leases();
    assert!(left.len() == 1 && left[0].0 != *lease, "{left:?}");
}
