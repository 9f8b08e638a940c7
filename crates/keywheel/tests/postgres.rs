//! Database logins, rotated by the whole program on a real PostgreSQL while an application works through its pools.
//!
//! The application is this test, started again as a process of its own for each replica: it reads its connection string from its
//! environment, keeps a pool of connections busy, and drains when it is asked to end. It repeats nothing, and every statement
//! that fails is written down.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use keywheel_ground::pgbouncer::{ADMIN, PgBouncer};
use keywheel_ground::postgres::Postgres;
use tokio_postgres::NoTls;

mod kills;

const ROOT: &str = "kwcanary-postgres-root";
const OLD: &str = "kwcanary-postgres-old";
const WARDEN: &str = "kwcanary-postgres-warden";

/// How many connections each replica has.
const POOL: usize = 4;

/// How many worlds share a server at once.
const AT_ONCE: usize = 6;

/// The shortest waits.
const SHORT: (&str, &str) = ("soak: 1s, rollback: 1s", "soak: 400ms, rollback: 400ms");

/// A server, or none where PostgreSQL cannot be had.
fn server() -> Option<Postgres> {
    match Postgres::start_with(ROOT, None, &["fsync=off", "max_connections=300"]) {
        Ok(server) => Some(server),
        Err(why) => {
            let mut out = std::io::stdout();
            writeln!(out, "skipped: PostgreSQL ({why})").unwrap();
            None
        }
    }
}

/// An application with its database, its two logins, its store and its journal.
struct World<'a> {
    server: &'a Postgres,
    /// Where the application logs in.
    port: u16,
    folder: tempfile::TempDir,
    name: String,
    calls: std::cell::Cell<u32>,
    supervisors: Vec<Supervisor>,
}

/// What a world's application does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    /// Its pools work all the time.
    Busy,
    /// It holds its values and does nothing.
    Idle,
}

impl<'a> World<'a> {
    fn new(server: &'a Postgres, name: &str, load: Load, changes: &[(&str, &str)]) -> Self {
        Self::behind(server, server.port(), name, load, changes)
    }

    /// The same, with an application that logs in at a pooler before the server.
    fn behind(
        server: &'a Postgres,
        pooler: u16,
        name: &str,
        load: Load,
        changes: &[(&str, &str)],
    ) -> Self {
        let folder = tempfile::TempDir::new().unwrap();
        for below in ["run", "state", "config", "tmp"] {
            fs::create_dir(folder.path().join(below)).unwrap();
        }
        let world = Self {
            server,
            port: pooler,
            folder,
            name: name.to_owned(),
            calls: std::cell::Cell::new(0),
            supervisors: Vec::new(),
        };
        let shape = "
            CREATE ROLE NAME_own NOLOGIN;
            CREATE ROLE NAME_a LOGIN PASSWORD 'OLD' IN ROLE NAME_own;
            CREATE ROLE NAME_b NOLOGIN IN ROLE NAME_own;
            CREATE ROLE NAME_warden LOGIN CREATEROLE PASSWORD 'WARDEN' IN ROLE pg_signal_backend, pg_read_all_stats;
            CREATE DATABASE NAME OWNER NAME_own;
            ALTER ROLE NAME_a IN DATABASE NAME SET role TO NAME_own;
            ALTER ROLE NAME_b IN DATABASE NAME SET role TO NAME_own";
        for statement in world.named(shape).split(';') {
            world.sql("postgres", statement);
        }
        world.sql(
            name,
            &world.named("CREATE TABLE seen (n int); ALTER TABLE seen OWNER TO NAME_own"),
        );
        let (port, database) = (server.port(), name);
        world.write(
            "admin-url",
            &format!("postgresql://{name}_warden:{WARDEN}@127.0.0.1:{port}/{database}"),
        );
        let env = format!(
            "DATABASE_URL=postgresql://{name}_a:{OLD}@127.0.0.1:{pooler}/{database}\nPGUSER={name}_a\nPGPASSWORD={OLD}\n"
        );
        world.write("app.env", &env);
        let mut config = world.named(CONFIG);
        for (old, new) in changes {
            assert!(config.contains(old), "{old}");
            config = config.replace(old, &world.named(new));
        }
        world.write("keywheel.yaml", &config);
        let supervisors =
            ["web-1", "web-2"].map(|replica| Supervisor::start(world.path(), replica, load));
        Self { supervisors: supervisors.into(), ..world }
    }

    fn named(&self, text: &str) -> String {
        text.replace("NAME", &self.name).replace("OLD", OLD).replace("WARDEN", WARDEN)
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.path().join(file);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn url(&self, user: &str, password: &str, database: &str) -> String {
        format!("postgresql://{user}:{password}@127.0.0.1:{}/{database}", self.server.port())
    }

    /// Where the application logs in, as its store has it.
    fn app_url(&self, user: &str, password: &str) -> String {
        format!("postgresql://{user}:{password}@127.0.0.1:{}/{}", self.port, self.name)
    }

    fn sql(&self, database: &str, statements: &str) -> Vec<String> {
        ask(&self.url("postgres", ROOT, database), statements).unwrap()
    }

    /// Returns the user and the password that the store holds, which all of its slots agree on.
    fn held(&self) -> (String, String) {
        let text = fs::read_to_string(self.path().join("app.env")).unwrap();
        let line = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
            line.unwrap_or_else(|| panic!("no {name}")).to_owned()
        };
        let (user, password) = (line("PGUSER"), line("PGPASSWORD"));
        assert_eq!(line("DATABASE_URL"), self.app_url(&user, &password));
        (user, password)
    }

    fn logs_in(&self, user: &str, password: &str) -> bool {
        ask(&self.url(user, password, &self.name), "SELECT 1").is_ok()
    }

    fn sessions_of(&self, user: &str) -> String {
        let count = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{user}'");
        self.sql("postgres", &count).remove(0)
    }

    /// How many logins hold a version that was not revoked.
    fn live(&self) -> usize {
        let comments = self.named(
            "SELECT coalesce(shobj_description(oid, 'pg_authid'), '') FROM pg_roles WHERE rolname IN ('NAME_a', 'NAME_b')",
        );
        self.sql("postgres", &comments).iter().filter(|comment| comment.contains(" kw-")).count()
    }

    fn keywheel(&self, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> ExitStatus {
        let call = self.calls.get() + 1;
        self.calls.set(call);
        let output = |stream: &str| {
            fs::File::create(self.path().join(format!("tmp/{call}.{stream}"))).unwrap()
        };
        let mut keywheel = Command::new(env!("CARGO_BIN_EXE_keywheel"));
        keywheel
            .args(arguments)
            .current_dir(self.path())
            .env("XDG_STATE_HOME", self.path().join("state"))
            .env("XDG_CONFIG_HOME", self.path().join("config"))
            .stdin(Stdio::null())
            .stdout(output("out"))
            .stderr(output("err"));
        prepare(&mut keywheel);
        keywheel.status().unwrap()
    }

    /// Runs the program and returns all that it said.
    fn run(&self, arguments: &[&str], code: i32) -> String {
        let status = self.keywheel(arguments, |_| {});
        let said = ["out", "err"].map(|stream| {
            fs::read_to_string(self.path().join(format!("tmp/{}.{stream}", self.calls.get())))
                .unwrap()
        });
        let said = said.concat();
        assert_eq!(status.code(), Some(code), "{arguments:?}: {said}");
        said
    }

    /// Returns what the replicas wrote down: how many statements succeeded, and what each of the others came to.
    fn statements(&self) -> (usize, Vec<String>) {
        let text = fs::read_to_string(self.path().join("run/statements")).unwrap_or_default();
        let failed = text.lines().filter(|line| *line != "ok").map(str::to_owned).collect();
        (text.lines().filter(|line| *line == "ok").count(), failed)
    }

    /// What holds after every rotation, whatever became of it: one live login that the store and every replica hold.
    fn assert_one_login_is_left(&self, user: &str) {
        let (held, password) = self.held();
        assert_eq!(held, user);
        assert!(self.logs_in(&held, &password));
        let other = if held.ends_with("_a") { "_b" } else { "_a" };
        let other = format!("{}{other}", self.name);
        assert_eq!(self.sessions_of(&other), "0", "sessions of {other}");
        assert!(!self.logs_in(&other, OLD));
        let url = self.app_url(&held, &password);
        assert!(self.supervisors.iter().all(|replica| replica.holds(&url)));
    }
}

const CONFIG: &str = r#"project: NAME
policies:
  default: { cryptoperiod: 90d, soak: 1s, rollback: 1s, watch: 1s }
stores:
  app: { env_file: { path: app.env } }
workloads:
  web:
    process:
      replicas: [{ pid_file: run/web-1.pid }, { pid_file: run/web-2.pid }]
      shows: environ
      ready_for: 100ms
      settle_for: 500ms
secrets:
  database:
    issuer: { postgres: { admin_url: { file: admin-url }, owner: NAME_own, logins: [NAME_a, NAME_b], settle_for: 500ms } }
    stores: { app: { DATABASE_URL: { url: userinfo }, PGUSER: username, PGPASSWORD: password } }
    read_by: [web]
"#;

/// Asks one question, and returns the first column of the answer.
fn ask(url: &str, statements: &str) -> Result<Vec<String>, tokio_postgres::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        let serving = tokio::spawn(connection);
        let answer = client.simple_query(statements).await?;
        drop(client);
        serving.await.ok();
        let cells = answer.iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0)?.to_owned()),
            _ => None,
        });
        Ok(cells.collect())
    })
}

/// Keeps one replica alive, with the store's values in its environment.
struct Supervisor {
    stop: Arc<AtomicBool>,
    pid_file: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    fn start(folder: &Path, name: &str, load: Load) -> Self {
        let (folder, pid_file) = (folder.to_owned(), folder.join(format!("run/{name}.pid")));
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, pids) = (Arc::clone(&stop), pid_file.clone());
        let mut replica = start_replica(&folder, &pids, load);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                if replica.try_wait().unwrap().is_some() {
                    replica = start_replica(&folder, &pids, load);
                }
                thread::sleep(Duration::from_millis(10));
            }
            end(replica);
        });
        Self { stop, pid_file, thread: Some(thread) }
    }

    fn holds(&self, url: &str) -> bool {
        let pid = fs::read_to_string(&self.pid_file).unwrap();
        let environ = fs::read(format!("/proc/{}/environ", pid.trim())).unwrap();
        environ
            .split(|byte| *byte == 0)
            .any(|held| held == format!("DATABASE_URL={url}").as_bytes())
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

fn start_replica(folder: &Path, pid_file: &Path, load: Load) -> Child {
    let text = fs::read_to_string(folder.join("app.env")).unwrap();
    let values = text.lines().filter_map(|line| line.split_once('='));
    let mut replica = match load {
        Load::Busy => {
            let mut replica = Command::new(std::env::current_exe().unwrap());
            replica.args(["--exact", "replica", "--ignored", "--nocapture"]);
            replica.env_clear().env("STATEMENTS", folder.join("run/statements"));
            replica
        }
        Load::Idle => {
            let mut replica = Command::new("sleep");
            replica.arg("600").env_clear();
            replica
        }
    };
    let replica = replica.envs(values).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    fs::write(pid_file, replica.id().to_string()).unwrap();
    replica
}

fn end(mut replica: Child) {
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&replica),
        rustix::process::Signal::TERM,
    )
    .ok();
    replica.wait().unwrap();
}

/// One replica of the application.
#[test]
#[ignore = "it is started by the other tests, as their application"]
fn replica() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let drains = Arc::new(AtomicBool::new(false));
        let workers: Vec<_> = (0..POOL).map(|_| tokio::spawn(work(Arc::clone(&drains)))).collect();
        let mut term =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        term.recv().await;
        drains.store(true, Ordering::SeqCst);
        for worker in workers {
            worker.await.unwrap();
        }
    });
}

/// One connection of the pool, which is opened anew where it fails.
async fn work(drains: Arc<AtomicBool>) {
    let url = std::env::var("DATABASE_URL").unwrap();
    let write_down = |line: &str| {
        let path = std::env::var_os("STATEMENTS").unwrap();
        let file = fs::OpenOptions::new().create(true).append(true).open(path);
        file.unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    };
    while !drains.load(Ordering::SeqCst) {
        let (client, connection) = match tokio_postgres::connect(&url, NoTls).await {
            Ok(connected) => connected,
            Err(error) => {
                write_down(&format!("connect: {error}"));
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        tokio::spawn(connection);
        // No connection lives for long, as in a pool with a longest life.
        for _ in 0..20 {
            if drains.load(Ordering::SeqCst) {
                return;
            }
            let change = "INSERT INTO seen VALUES (1); SELECT count(*) FROM seen; DELETE FROM seen WHERE n = 2";
            match client.batch_execute(change).await {
                Ok(()) => write_down("ok"),
                Err(error) => {
                    write_down(&format!("statement: {error:?}"));
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Waits until the application works.
fn wait_for_work(world: &World<'_>) {
    let begun = Instant::now();
    while world.statements().0 < 20 {
        assert!(begun.elapsed() < Duration::from_secs(30), "the application does nothing");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn h67_logins_take_turns_under_load_and_no_statement_fails() {
    let Some(server) = server() else { return };
    let world = World::new(&server, "turns", Load::Busy, &[]);
    wait_for_work(&world);
    let checked = world.run(&["check"], 0);
    assert!(checked.contains("ready"), "{checked}");
    let planned = world.run(&["plan", "database"], 0);
    assert!(planned.contains("alternate") && planned.contains("suspend"), "{planned}");
    for user in ["turns_b", "turns_a", "turns_b"] {
        let before = world.held();
        let said = world.run(&["rotate", "database", "--yes", "--soak"], 0);
        assert!(said.contains("completed"), "{said}");
        assert!(!world.logs_in(&before.0, &before.1), "the former login is alive");
        world.assert_one_login_is_left(user);
        assert_eq!(world.live(), 1);
    }
    let (done, failed) = world.statements();
    assert!(failed.is_empty(), "{} of {done} failed: {failed:?}", failed.len());
    assert!(done > 200, "{done} statements");
}

#[test]
fn h72_logins_take_turns_behind_a_pooler_and_no_statement_fails() {
    let Some(server) = server() else { return };
    let list = format!("\"pooled_a\" \"{OLD}\"\n");
    // Its idle sessions count as use of a login, as long as it keeps them.
    let pooler = match PgBouncer::start(&server, WARDEN, &list, "server_idle_timeout = 1") {
        Ok(pooler) => pooler,
        Err(why) => {
            let mut out = std::io::stdout();
            return writeln!(out, "skipped: PgBouncer ({why})").unwrap();
        }
    };
    let (port, list) = (pooler.port(), pooler.auth_file());
    let store = format!(
        "app: {{ env_file: {{ path: app.env }} }}\n  pooler: {{ pgbouncer: {{ auth_file: {}, through: \
         [\"postgresql://127.0.0.1:{port}/NAME\"], console: {{ file: console }} }} }}",
        list.display()
    );
    let slots = "PGPASSWORD: password }, \
                 pooler: { NAME_a: { password_of: NAME_a }, NAME_b: { password_of: NAME_b } }";
    let changes =
        [("app: { env_file: { path: app.env } }", &*store), ("PGPASSWORD: password }", slots)];
    let world = World::behind(&server, port, "pooled", Load::Busy, &changes);
    world.write("console", &format!("postgresql://{ADMIN}:{WARDEN}@127.0.0.1:{port}/pgbouncer"));
    wait_for_work(&world);
    let checked = world.run(&["check"], 0);
    assert!(checked.contains("ready"), "{checked}");
    for user in ["pooled_b", "pooled_a"] {
        let before = world.held();
        let said = world.run(&["rotate", "database", "--yes", "--soak"], 0);
        assert!(said.contains("completed"), "{said}");
        assert!(ask(&world.app_url(&before.0, &before.1), "SELECT 1").is_err(), "{}", before.0);
        world.assert_one_login_is_left(user);
        let listed = fs::read_to_string(&list).unwrap();
        assert!(listed.contains(user) && !listed.contains(&before.0), "the former login is listed");
    }
    let (done, failed) = world.statements();
    assert!(failed.is_empty(), "{} of {done} failed: {failed:?}", failed.len());
    assert!(done > 200, "{done} statements");
}

#[test]
fn a_single_login_is_cut_over_with_consent_and_its_statements_fail_meanwhile() {
    let Some(server) = server() else { return };
    let single = ("logins: [NAME_a, NAME_b]", "logins: [NAME_a]");
    let single = (&*single.0.replace("NAME", "single"), single.1);
    let world = World::new(&server, "single", Load::Busy, &[single]);
    wait_for_work(&world);
    let refused = world.run(&["rotate", "database", "--yes"], 1);
    assert!(refused.contains("holds one live credential"), "{refused}");
    let consent = fs::read_to_string(world.path().join("keywheel.yaml")).unwrap();
    let consent = consent
        .replace("read_by: [web]", "read_by: [web]\n    strategy: cutover\n    accept: [outage]");
    world.write("keywheel.yaml", &consent);
    world.run(&["rotate", "database", "--yes", "--soak"], 0);
    let (user, password) = world.held();
    assert!(world.logs_in(&user, &password) && !world.logs_in(&user, OLD));
    thread::sleep(Duration::from_millis(300));
    assert!(!world.statements().1.is_empty(), "the control run fails nothing");
}

/// An application whose one login owns its tables, in two databases, and was given rights on what others own.
#[test]
fn h69_an_application_with_one_login_is_converted_and_nothing_is_dropped() {
    let Some(server) = server() else { return };
    let world = World::new(&server, "one", Load::Busy, &[]);
    wait_for_work(&world);
    for (database, statements) in [
        (
            "postgres",
            "DROP ROLE one_b; REVOKE one_own FROM one_a; ALTER ROLE one_a IN DATABASE one RESET role",
        ),
        (
            "postgres",
            "ALTER ROLE one_a SET search_path TO public, pg_catalog; ALTER ROLE one_a CONNECTION LIMIT 90",
        ),
        (
            "postgres",
            "ALTER ROLE one_a SET \"app.tenant\" TO 'the tenant''s =$copy$'; ALTER ROLE one_a IN DATABASE one SET \"app.tenant\" TO 'shop, one'",
        ),
        (
            "postgres",
            "CREATE ROLE reader NOLOGIN; GRANT pg_monitor TO one_a; ALTER DATABASE one OWNER TO one_a",
        ),
        (
            "one",
            "REASSIGN OWNED BY one_own TO one_a; CREATE TABLE of_root (n int); GRANT SELECT, INSERT ON of_root TO one_a",
        ),
        ("one", "ALTER DEFAULT PRIVILEGES FOR ROLE one_a GRANT SELECT ON TABLES TO reader"),
        ("one", "ALTER DEFAULT PRIVILEGES FOR ROLE one_a REVOKE EXECUTE ON ROUTINES FROM PUBLIC"),
        ("postgres", "DROP ROLE one_own"),
    ] {
        statements.split(';').for_each(|statement| drop(world.sql(database, statement)));
    }
    world.sql("postgres", "CREATE DATABASE one_more OWNER one_a");
    let own_settings = |login: &str| {
        let query = "SELECT concat(setdatabase, one) FROM pg_db_role_setting, unnest(setconfig) one \
                     WHERE one LIKE 'app.%' AND setrole::regrole::text = ";
        world.sql("postgres", &format!("{query}'{login}' ORDER BY 1"))
    };
    // Connections of the shape before are gone by then.
    thread::sleep(Duration::from_secs(1));
    world.write("run/statements", "");
    ask(&world.url("one_a", OLD, "one_more"), "CREATE TABLE public.other (n int)").unwrap();
    let wrong = world.run(&["check"], 4);
    assert!(wrong.contains("there is no role `one_own`"), "{wrong}");
    for statement in [
        r#"CREATE ROLE "one_own" NOLOGIN;"#,
        r#"CREATE ROLE "one_b" NOLOGIN CONNECTION LIMIT 90;"#,
        r#"GRANT "pg_monitor" TO "one_b";"#,
        r#"ALTER ROLE "one_b" SET "search_path" TO 'public', 'pg_catalog';"#,
        r#" ALTER ROLE "one_b" SET "app.tenant" FROM CURRENT; END';"#,
        r#"REASSIGN OWNED BY "one_a" TO "one_own";"#,
        r#"GRANT SELECT ON TABLE public.of_root TO "one_own";"#,
        r#"ALTER DEFAULT PRIVILEGES FOR ROLE "one_own" GRANT SELECT ON TABLES TO "reader";"#,
        r#"ALTER DEFAULT PRIVILEGES FOR ROLE "one_own" REVOKE EXECUTE ON ROUTINES FROM PUBLIC;"#,
        r#"ALTER DEFAULT PRIVILEGES FOR ROLE "one_a" GRANT EXECUTE ON ROUTINES TO PUBLIC;"#,
        "-- in database one_more",
        r#"ALTER ROLE "one_b" IN DATABASE "one" SET role TO "one_own";"#,
    ] {
        assert!(wrong.contains(statement), "{statement}: {wrong}");
    }
    assert!(!wrong.contains("the tenant") && !wrong.contains("shop, one"), "{wrong}");
    let convert =
        ["adopt", "database", "--convert", "--because", "one login has no overlap", "--yes"];
    let denied = world.run(&convert, 4);
    assert!(denied.contains("42501") && denied.contains("nothing is dropped"), "{denied}");
    let root = world.url("postgres", ROOT, "one");
    let warden = fs::read_to_string(world.path().join("admin-url")).unwrap();
    world.write("admin-url", &root);
    let said = world.run(&convert, 0);
    world.write("admin-url", &warden);
    assert!(said.contains("statements"), "{said}");
    assert!(world.run(&["audit", "list"], 0).contains("into shape"));
    assert!(world.run(&["check"], 0).contains("ready"));
    assert_eq!(own_settings("one_b"), own_settings("one_a"));
    assert_eq!(own_settings("one_b").len(), 2);
    world.run(&["rotate", "database", "--yes", "--soak"], 0);
    world.assert_one_login_is_left("one_b");
    // The new login does what the old one did, a migration first of all.
    let (user, password) = world.held();
    for (database, statement) in [
        (
            "one",
            "ALTER TABLE seen ADD m int; CREATE TABLE later (n int); INSERT INTO of_root VALUES (1)",
        ),
        ("one_more", "ALTER TABLE public.other ADD m int"),
    ] {
        ask(&world.url(&user, &password, database), statement).unwrap();
    }
    let (done, failed) = world.statements();
    assert!(failed.is_empty(), "{} of {done} failed: {failed:?}", failed.len());

    // And all of it is undone by what it printed.
    let undo = said.split("what undoes it").nth(1).unwrap();
    let mut database = "one".to_owned();
    world.sql("postgres", "ALTER ROLE one_a LOGIN");
    ask(&world.url(&user, &password, "one"), "SELECT 1").unwrap();
    for line in undo.lines().map(str::trim).take_while(|line| !line.starts_with("database: ")) {
        match line.strip_prefix("-- in database ") {
            Some(name) => database = name.to_owned(),
            None if line.ends_with(';') && !line.contains("DROP ROLE") => {
                world.sql(&database, line);
            }
            None => {}
        }
    }
    let owner = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'seen'";
    assert_eq!(world.sql("one", owner), ["one_a"]);
    assert!(own_settings("one_b").is_empty());
}

#[test]
fn an_undo_brings_the_former_login_back_before_and_after_it_was_suspended() {
    let Some(server) = server() else { return };
    let long = ("rollback: 1s", "rollback: 60s");
    let world = World::new(&server, "undone", Load::Idle, &[long]);
    world.run(&["rotate", "database", "--yes"], 0);
    thread::sleep(Duration::from_millis(1_100));
    let begun = Instant::now();
    while world.logs_in("undone_a", OLD) {
        assert!(begun.elapsed() < Duration::from_secs(30), "it is never suspended");
        world.run(&["resume", "--all"], 0);
        thread::sleep(Duration::from_millis(200));
    }
    world.run(&["undo", "database", "--yes"], 0);
    let (user, password) = world.held();
    assert_eq!((user.as_str(), password.as_str()), ("undone_a", OLD));
    assert!(world.logs_in("undone_a", OLD));
    assert_eq!(world.sessions_of("undone_b"), "0");
}

#[test]
fn an_emergency_leaves_no_suspect_login_in_either_order() {
    let Some(server) = server() else { return };
    for (name, more) in [("staged", None), ("revoked", Some("--revoke-first"))] {
        let world = World::new(&server, name, Load::Busy, &[]);
        wait_for_work(&world);
        let mut arguments =
            vec!["rotate", "database", "--emergency", "--because", "it leaked", "--yes"];
        arguments.extend(more);
        world.run(&arguments, 0);
        world.run(&["resume", "--all", "--soak"], 0);
        assert!(!world.logs_in(&format!("{name}_a"), OLD));
        world.assert_one_login_is_left(&format!("{name}_b"));
    }
}

#[test]
fn h125_an_emergency_over_a_rotation_that_was_killed_ends_both_logins() {
    let Some(server) = server() else { return };
    let world = World::new(&server, "taken", Load::Idle, &[]);
    let killed = world.keywheel(&["rotate", "database", "--yes"], |keywheel| {
        keywheel.env("KEYWHEEL_FAIL_POINT", "after_call:roll#1");
    });
    assert_eq!(killed.signal(), Some(9));
    let (suspect, password) = world.held();
    assert_eq!(suspect, "taken_b");
    world.run(&["rotate", "database", "--emergency", "--because", "both leaked", "--yes"], 0);
    world.run(&["resume", "--all", "--soak"], 0);
    assert!(!world.logs_in("taken_b", &password), "the pending version is alive");
    assert!(!world.logs_in("taken_a", OLD), "the previous version is alive");
    world.assert_one_login_is_left("taken_b");
}

#[test]
fn h76_the_admin_login_rotates_through_the_other_one() {
    let Some(server) = server() else { return };
    let admin = "secrets:
  admin:
    issuer: { postgres: { admin_url: { file: admin-url }, owner: NAME_wardens, logins: [NAME_warden, NAME_warden_b] } }
    stores: { admin: { content: { url: userinfo } } }
    read_by: nobody
    because: keywheel reads it at every call
";
    let stores = "stores:\n  admin: { file: { path: admin-url } }\n";
    let world =
        World::new(&server, "admin", Load::Idle, &[("secrets:\n", admin), ("stores:\n", stores)]);
    let shape = "CREATE ROLE NAME_wardens NOLOGIN; GRANT NAME_wardens TO NAME_warden; \
        CREATE ROLE NAME_warden_b NOLOGIN CREATEROLE IN ROLE NAME_wardens, pg_signal_backend, pg_read_all_stats; \
        ALTER ROLE NAME_warden IN DATABASE NAME SET role TO NAME_wardens; \
        ALTER ROLE NAME_warden_b IN DATABASE NAME SET role TO NAME_wardens; \
        ALTER ROLE NAME_wardens CREATEROLE; GRANT pg_signal_backend, pg_read_all_stats TO NAME_wardens";
    for statement in world.named(shape).split(';') {
        world.sql("postgres", statement);
    }
    world.run(&["rotate", "admin", "--yes", "--soak"], 0);
    assert!(!world.logs_in("admin_warden", WARDEN), "the former admin login is alive");
    let url = fs::read_to_string(world.path().join("admin-url")).unwrap();
    assert!(url.contains("admin_warden_b:") && ask(url.trim(), "SELECT 1").is_ok());
    world.run(&["rotate", "database", "--yes", "--soak"], 0);
    world.assert_one_login_is_left("admin_b");
}

/// Only the steps that the issuer has a part in; `kill9` has the others.
#[test]
fn a_kill_where_the_server_is_changed_ends_as_if_there_was_none() {
    let Some(server) = server() else { return };
    let reference = World::new(&server, "unkilled", Load::Idle, &[SHORT]);
    let list = reference.path().join("tmp/passed");
    let status = reference.keywheel(&["rotate", "database", "--yes", "--soak"], |keywheel| {
        keywheel.env("KEYWHEEL_FAIL_POINT_LIST", &list);
    });
    assert!(status.success());
    reference.assert_one_login_is_left("unkilled_b");
    kills::at_each(&kills::places(&list), AT_ONCE, |_, place| killed_at(&server, place));
}

fn killed_at(server: &Postgres, place: &str) {
    let name: String =
        place.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let name = format!("k_{name}");
    let world = World::new(server, &name, Load::Idle, &[SHORT]);
    let log = world.path().join("tmp/fired");
    let killed = world.keywheel(&["rotate", "database", "--yes", "--soak"], |keywheel| {
        keywheel.env("KEYWHEEL_FAIL_POINT", place).env("KEYWHEEL_FAIL_POINT_LOG", &log);
    });
    kills::assert_killed(killed, &log, place);
    world.run(&["resume", "--all", "--yes", "--soak"], 0);
    world.assert_one_login_is_left(&format!("{name}_b"));
    assert_eq!(world.live(), 1, "{place}");
    kills::assert_one_completed(|arguments| world.run(arguments, 0), place);
}
