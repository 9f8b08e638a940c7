//! The password of a Redis user, rotated by the whole program on two real nodes and killed at every place where they are changed.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use keywheel_ground::redis::{Redis, Settings};

mod kills;

const ADMIN: &str = "kwcanary-redis-admin-of-kills";
const OLD: &str = "kwcanary-redis-old-of-kills-0123456";

/// How many worlds share the nodes at once.
const AT_ONCE: usize = 10;

const CONFIG: &str = "
project: shop
policies:
  fast: { cryptoperiod: 90d, soak: 200ms, rollback: 200ms, watch: 200ms, call: 4s }
stores:
  app: { env_file: { path: app.env } }
secrets:
  cache:
    policy: fast
    issuer:
      redis_acl:
        nodes: [NODES]
        user: USER
        admin: { user: keywheel, password: { file: admin } }
        settle_for: 200ms
    stores: { app: { REDIS_PASSWORD: password } }
    read_by: nobody
    because: a test
";

/// Two nodes, or none where Redis cannot be had.
fn nodes() -> Option<[Redis; 2]> {
    let lines =
        ["user default off".to_owned(), format!("user keywheel on >{ADMIN} ~* &* +@all")].into();
    let settings = Settings { lines, ..Settings::default() };
    match (Redis::start(&settings), Redis::start(&settings)) {
        (Ok(one), Ok(other)) => Some([one, other]),
        (Err(why), _) | (_, Err(why)) => {
            let mut out = std::io::stdout();
            writeln!(out, "skipped: Redis ({why})").unwrap();
            None
        }
    }
}

/// A user of the nodes with its store and its journal.
struct World<'a> {
    nodes: &'a [Redis; 2],
    user: String,
    folder: tempfile::TempDir,
}

impl<'a> World<'a> {
    fn new(nodes: &'a [Redis; 2], user: &str) -> Self {
        let folder = tempfile::TempDir::new().unwrap();
        for below in ["state", "config", "tmp"] {
            fs::create_dir(folder.path().join(below)).unwrap();
        }
        let world = Self { nodes, user: user.into(), folder };
        for node in nodes {
            let password = format!(">{OLD}");
            let set = ["SETUSER", user, "on", &password, "~*", "+@all"];
            redis::cmd("ACL").arg(&set).query::<()>(&mut admin(node)).unwrap();
        }
        let addresses = nodes.each_ref().map(|node| format!("\"127.0.0.1:{}\"", node.port()));
        let config = CONFIG.replace("NODES", &addresses.join(", ")).replace("USER", user);
        world.write("keywheel.yaml", &config);
        world.write("admin", ADMIN);
        world.write("app.env", &format!("REDIS_PASSWORD={OLD}\n"));
        world
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.path().join(file);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut keywheel = Command::new(env!("CARGO_BIN_EXE_keywheel"));
        keywheel
            .args(arguments)
            .current_dir(self.path())
            .env("XDG_STATE_HOME", self.path().join("state"))
            .env("XDG_CONFIG_HOME", self.path().join("config"))
            .stdin(Stdio::null());
        keywheel
    }

    /// Rotates with a place at which it may be killed, and says nothing.
    fn rotate(&self, prepare: impl FnOnce(&mut Command)) -> ExitStatus {
        let mut keywheel = self.command(&["rotate", "cache", "--yes", "--soak"]);
        prepare(keywheel.stdout(Stdio::null()).stderr(Stdio::null()));
        keywheel.status().unwrap()
    }

    /// Runs the program and returns all that it said.
    fn run(&self, arguments: &[&str], code: i32) -> String {
        let output = self.command(arguments).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(!said.contains("kwcanary"), "a value was printed");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        said
    }

    fn logs_in(&self, node: &Redis, password: &str) -> bool {
        let url = format!("redis://{}:{password}@127.0.0.1:{}/", self.user, node.port());
        redis::Client::open(url).unwrap().get_connection().is_ok()
    }

    /// What holds after every rotation, whatever became of it: one password, that the store holds, on each node, and one name.
    fn assert_one_password_is_left(&self, place: &str) {
        let text = fs::read_to_string(self.path().join("app.env")).unwrap();
        let held = text.trim_end().strip_prefix("REDIS_PASSWORD=").unwrap();
        assert_ne!(held, OLD, "{place}");
        for node in self.nodes {
            assert!(self.logs_in(node, held) && !self.logs_in(node, OLD), "{place}");
            let lines: Vec<String> = redis::cmd("ACL").arg("LIST").query(&mut admin(node)).unwrap();
            let hashes_of = |begins: &str, ends: &str| {
                let mut hashes = Vec::new();
                for line in &lines {
                    let name = line.split(' ').nth(1).unwrap();
                    if name.starts_with(begins) && name.ends_with(ends) {
                        hashes.push(line.split(' ').filter(|word| word.starts_with('#')).count());
                    }
                }
                hashes
            };
            let of_user = format!("@{}", self.user);
            assert_eq!(hashes_of(&self.user, ""), [1], "{place}: another password is left");
            assert_eq!(hashes_of("kw-", &of_user), [1], "{place}: another name is left");
            assert_eq!(hashes_of("keywheel-before", &of_user), [0], "{place}");
        }
    }

    fn assert_it_completed(&self, place: &str) {
        kills::assert_one_completed(|arguments| self.run(arguments, 0), place);
    }
}

fn admin(node: &Redis) -> redis::Connection {
    let url = format!("redis://keywheel:{ADMIN}@127.0.0.1:{}/", node.port());
    redis::Client::open(url).unwrap().get_connection().unwrap()
}

#[test]
fn a_kill_where_the_nodes_are_changed_ends_as_if_there_was_none() {
    let Some(nodes) = nodes() else { return };
    let reference = World::new(&nodes, "unkilled");
    let list = reference.path().join("tmp/passed");
    let status = reference.rotate(|keywheel| {
        keywheel.env("KEYWHEEL_FAIL_POINT_LIST", &list);
    });
    assert!(status.success());
    reference.assert_one_password_is_left("none");
    reference.assert_it_completed("none");
    kills::at_each(&kills::places(&list), AT_ONCE, |nth, place| {
        killed_at(&nodes, &format!("user{nth}of"), place);
    });
}

fn killed_at(nodes: &[Redis; 2], user: &str, place: &str) {
    let world = World::new(nodes, user);
    let log = world.path().join("tmp/fired");
    let killed = world.rotate(|keywheel| {
        keywheel.env("KEYWHEEL_FAIL_POINT", place).env("KEYWHEEL_FAIL_POINT_LOG", &log);
    });
    kills::assert_killed(killed, &log, place);
    world.run(&["resume", "--all", "--yes", "--soak"], 0);
    world.assert_one_password_is_left(place);
    world.assert_it_completed(place);
}
