//! The password of a Redis user, rotated by the program on real servers.

use keywheel_ground::redis::{Redis, Settings};

use super::{OLD, Project};

const CONFIG: &str = "
project: shop
policies:
  fast: { cryptoperiod: 90d, soak: SOAK, rollback: 1s, watch: 1s, patience: 2s }
stores:
  app: { env_file: { path: app.env } }
secrets:
  cache:
    policy: fast
    issuer:
      redis_acl:
        nodes: [NODES]
        user: app
        admin: { user: keywheel, password: { file: admin } }
    stores: { app: SLOTS }
    read_by: nobody
    because: a test
";

const ADMIN: &str = "kwcanary-redis-admin-0123456789";

/// A project whose application logs in to two nodes.
struct Shop {
    project: Project,
    nodes: Vec<Redis>,
}

impl Shop {
    /// Returns none, and says why, where Redis cannot be had.
    fn start(slots: &str, app: &str) -> Option<Self> {
        let project = Project::new();
        let lines = ["user default off".to_owned()].into_iter().chain(
            [("keywheel", ADMIN), ("app", OLD)]
                .map(|(user, password)| format!("user {user} on >{password} ~* &* +@all")),
        );
        let settings = Settings { lines: lines.collect(), ..Settings::default() };
        let mut nodes = Vec::new();
        for _ in 0..2 {
            nodes.push(super::redis(&settings)?);
        }
        let ports: Vec<_> =
            nodes.iter().map(|node| format!("\"127.0.0.1:{}\"", node.port())).collect();
        let config = CONFIG.replace("NODES", &ports.join(", ")).replace("SLOTS", slots);
        project.write("keywheel.yaml", &config.replace("SOAK", "1s"));
        project.write("admin", ADMIN);
        project.write("app.env", app);
        Some(Self { project, nodes })
    }

    fn accepts(&self, password: &str) -> [bool; 2] {
        [0, 1].map(|node| self.session(node, "app", password).is_some())
    }

    fn session(&self, node: usize, user: &str, password: &str) -> Option<redis::Connection> {
        let url = format!("redis://{user}:{password}@127.0.0.1:{}/", self.nodes[node].port());
        redis::Client::open(url).unwrap().get_connection().ok()
    }

    fn soak(&self, soak: &str) {
        let config = self.project.read("keywheel.yaml");
        self.project.write("keywheel.yaml", &config.replace("soak: 1s", &format!("soak: {soak}")));
    }
}

#[test]
fn h35_a_field_that_no_slot_holds_is_no_edit_by_hand() {
    for (slots, url) in [
        ("{ REDIS_URL: { url: password } }", format!("redis://app:{OLD}@cache:6379/0?x=1")),
        ("{ REDIS_URL: password }", OLD.to_owned()),
    ] {
        let Some(shop) = Shop::start(slots, &format!("REDIS_URL={url}\n")) else { return };
        let mut before = OLD.to_owned();
        for version in [2, 3] {
            let ran = shop.project.run(&["rotate", "cache", "--yes", "--soak"]);
            ran.ends(0).says(&format!("completed; v{version} is current"));
            let app = shop.project.read("app.env");
            let value = app.trim_end().strip_prefix("REDIS_URL=").unwrap();
            let password = match value.split_once("app:") {
                Some((_, rest)) => rest.split_once('@').unwrap().0.to_owned(),
                None => value.to_owned(),
            };
            assert_eq!(value, url.replace(OLD, &password));
            assert_eq!(shop.accepts(&password), [true, true]);
            assert_eq!(shop.accepts(&before), [false, false], "{slots} {version}");
            before = password;
        }
        shop.project.run(&["doctor"]).ends(0).says("world and journal agree");
        shop.project.run(&["audit", "verify"]).ends(0).says("holds");
    }
}

#[test]
fn stores_that_hold_different_fields_of_one_login_are_compared_by_what_they_share() {
    let url = |password: &str| format!("REDIS_URL=redis://app:{password}@cache/\n");
    let slots = "{ REDIS_URL: { url: userinfo } }, file: { content: password }";
    let Some(shop) = Shop::start(slots, &url(OLD)) else { return };
    let project = &shop.project;
    let config = project.read("keywheel.yaml");
    let stores = "stores:\n  file: { file: { path: password } }";
    project.write("keywheel.yaml", &config.replacen("stores:", stores, 1));
    project.write("password", "kwcanary-another-password-0123");
    let check = project.run(&["check"]);
    check.ends(4).says("hold different values in `password` of `cache@default`");
    project.write("password", OLD);
    project.run(&["adopt", "--yes"]).ends(0);
    project.run(&["rotate", "cache", "--yes", "--soak"]).ends(0).says("completed");
    let new = project.read("password");
    assert_eq!(project.read("app.env"), url(&new));
    assert_eq!((shop.accepts(&new), shop.accepts(OLD)), ([true, true], [false, false]));
    project.run(&["doctor"]).ends(0).says("world and journal agree");
    project.write("password", OLD);
    project.run(&["doctor"]).ends(3).says("store `file` was changed by somebody else");
    project.run(&["reconcile", "cache", "--yes"]).ends(0).says("wrote store `file`");
    assert_eq!((project.read("password"), project.read("app.env")), (new.clone(), url(&new)));
}

#[test]
fn h95_a_refusal_is_told_until_it_no_longer_holds() {
    let slots = "{ REDIS_URL: { url: userinfo } }";
    let url = format!("REDIS_URL=redis://app:{OLD}@cache/\n");
    let Some(mut shop) = Shop::start(slots, &url) else { return };
    let switch = |shop: &Shop, to: &str| {
        for node in [0, 1] {
            let mut admin = shop.session(node, "keywheel", ADMIN).unwrap();
            redis::cmd("ACL").arg("SETUSER").arg("app").arg(to).exec(&mut admin).unwrap();
        }
    };
    let told = |shop: &Shop| shop.project.run(&["status"]).stdout;
    shop.project.run(&["adopt", "--yes"]).ends(0);
    switch(&shop, "off");
    shop.project.run(&["doctor"]).ends(3).says("refuses v1");
    shop.nodes[0].kill();
    let silent = shop.project.run(&["doctor"]);
    assert!(!silent.stdout.contains("refuses"), "no answer is no refusal");
    assert!(told(&shop).contains("its issuer refuses v1 that readers use"), "and no acceptance");
    shop.nodes[0].begin().unwrap();
    switch(&shop, "on");
    shop.project.run(&["doctor"]).ends(0);
    assert!(!told(&shop).contains("refuses"));
    let status = shop.project.json(&["status"]);
    assert!(status["environments"][0]["secrets"][0]["refused_at"].is_null());
    shop.project.run(&["audit", "verify"]).ends(0).says("holds");
}

#[test]
fn a_session_that_is_older_than_the_rotation_is_named_and_holds_it_up() {
    let slots = "{ REDIS_URL: { url: userinfo } }";
    let Some(shop) = Shop::start(slots, &format!("REDIS_URL=redis://app:{OLD}@cache/\n")) else {
        return;
    };
    shop.soak("1s, retry: 1h");
    let mut old = shop.session(0, "app", OLD).unwrap();
    shop.project.run(&["rotate", "cache", "--yes"]).ends(0).says("promoted");
    assert_eq!(shop.accepts(OLD), [true, true], "it was ended while it was in use");
    let rotations = shop.project.json(&["rotation", "list"]);
    let id = rotations["rotations"][0]["rotation"].as_str().unwrap().to_owned();
    let shown = shop.project.run(&["rotation", "show", &id]);
    shown.ends(0).says("1 session of `app` older than the next version: 127.0.0.1:");
    assert_eq!(redis::cmd("PING").query::<String>(&mut old).unwrap(), "PONG");
}

#[test]
fn an_emergency_ends_every_session_that_the_suspect_may_have_opened() {
    let slots = "{ REDIS_URL: { url: userinfo } }";
    let Some(shop) = Shop::start(slots, &format!("REDIS_URL=redis://app:{OLD}@cache/\n")) else {
        return;
    };
    shop.soak("1h");
    shop.project.run(&["rotate", "cache", "--yes"]).ends(0).says("promoted");
    // Younger than the version that readers use, and opened with the former one.
    let mut old = shop.session(1, "app", OLD).unwrap();
    let leaked = ["rotate", "cache", "--emergency", "--because", "a leak", "--yes"];
    shop.project.run(&leaked).ends(0).says("completed");
    assert_eq!(shop.accepts(OLD), [false, false]);
    assert!(redis::cmd("PING").query::<String>(&mut old).is_err(), "a session is left");
    let shown = shop.project.run(&["incident", "show"]);
    shown.ends(0).says("Redis keeps no record of logins as `app`");
}

#[test]
fn a_node_that_is_down_is_named_and_nothing_is_changed() {
    let slots = "{ REDIS_URL: { url: userinfo } }";
    let Some(mut shop) = Shop::start(slots, &format!("REDIS_URL=redis://app:{OLD}@cache/\n"))
    else {
        return;
    };
    shop.project.run(&["adopt", "--yes"]).ends(0);
    shop.nodes[1].kill();
    let ran = shop.project.run(&["rotate", "cache", "--yes"]);
    ran.ends(4).says("nothing was changed, v1 is current").says("cannot be reached");
    shop.nodes[1].begin().unwrap();
    assert_eq!(shop.accepts(OLD), [true, true]);
    assert!(shop.project.read("app.env").contains(OLD));
    shop.project.run(&["rotate", "cache", "--yes", "--soak"]).ends(0).says("completed");
    assert_eq!(shop.accepts(OLD), [false, false]);
}
