//! Tokens that are refused before they end, by marks in a real Redis.

use keywheel_ground::redis::{Redis, Settings};
use redis::Commands;

use super::{OLD, Project};

const CONFIG: &str = "
project: shop
stores:
  app: { env_file: { path: app.env } }
secrets:
  jwt:
    issuer: { jwt_secret: { bytes: 32 } }
    strategy: { keyring: { longest_token: 10m, skew: 1m } }
    stores: { app: { JWT_SECRET: current, JWT_SECRET_ALSO_ACCEPTED: also_accepted } }
    deny_list: { redis: { url: { file: url }, prefix: \"shop:deny:\" } }
    read_by: nobody
    because: a test
";

struct Shop {
    project: Project,
    redis: Redis,
    marks: redis::Connection,
}

impl Shop {
    /// Returns none, and says why, where Redis cannot be had.
    fn start(configuration: &[&str]) -> Option<Self> {
        let project = Project::new();
        project.write("keywheel.yaml", CONFIG);
        project.write("app.env", &format!("JWT_SECRET={OLD}\nJWT_SECRET_ALSO_ACCEPTED=\n"));
        let configuration = configuration.iter().map(|line| (*line).to_owned()).collect();
        let redis = super::redis(&Settings { configuration, ..Settings::default() })?;
        let url = format!("redis://127.0.0.1:{}/", redis.port());
        project.write("url", &url);
        let marks = redis::Client::open(url).unwrap().get_connection().unwrap();
        project.run(&["adopt", "--yes"]).ends(0);
        Some(Self { project, redis, marks })
    }
}

const BECAUSE: [&str; 3] = ["--because", "a lost phone", "--yes"];

#[test]
fn tokens_are_revoked_listed_counted_and_on_record() {
    let Some(mut shop) = Shop::start(&[]) else { return };
    shop.project.run(&["token", "list"]).ends(0).says("nothing is revoked");
    let revoke = |shop: &Shop, words: &[&str]| {
        shop.project.run(&[&["token", "revoke"], words, &BECAUSE[..]].concat())
    };
    revoke(&shop, &["--jti", "a1", "--jti", "b2"]).ends(0).says("revoked 2").says("token `a1`");
    revoke(&shop, &["jwt", "--subject", "dana"]).ends(0).says("tokens of `dana` issued before");
    revoke(&shop, &["--before", "now"]).ends(0).says("everybody has to log in again");

    let left = |shop: &mut Shop, key: &str| shop.marks.ttl::<_, i64>(key).unwrap();
    for key in ["shop:deny:jti:a1", "shop:deny:jti:b2", "shop:deny:sub:dana", "shop:deny:all"] {
        assert!((600..=663).contains(&left(&mut shop, key)), "the longest life and the skew");
    }
    let now = jiff::Timestamp::now().as_second();
    let before: i64 = shop.marks.get("shop:deny:sub:dana").unwrap();
    assert!((now - 60..=now + 1).contains(&before));

    shop.project.run(&["token", "count"]).ends(0).says("2 tokens, 1 subject, and all");
    let listed = shop.project.json(&["token", "list", "--most", "1"]);
    assert_eq!((&listed["total"], &listed["complete"]), (&4.into(), &true.into()));
    assert_eq!(listed["marks"][0]["kind"], "jti");
    assert_eq!(listed["marks"][0]["name"], "a1");
    shop.project.run(&["token", "list", "--most", "1"]).ends(0).says("and 3 more");

    let record = shop.project.run(&["audit", "list"]);
    record.ends(0).says("set out to revoke token `a1`, token `b2`: a lost phone");
    record.says("revoked token `b2`: a lost phone").says("revoked tokens of `dana` issued before");
    shop.project.run(&["audit", "verify"]).ends(0).says("holds");

    let again = shop
        .project
        .json(&[&["token", "revoke", "--before", "2020-01-01T00:00:00Z"], &BECAUSE[..]].concat());
    assert_eq!(again["revoked"], serde_json::json!([]));
    assert_eq!(again["ended_before"].as_array().unwrap().len(), 1, "such tokens have ended");
}

#[test]
fn a_token_is_refused_to_its_own_end_and_through_its_last_second() {
    let Some(mut shop) = Shop::start(&[]) else { return };
    let now = jiff::Timestamp::now();
    for (id, end, seconds) in [("soon", 30, 90), ("last", 0, 60), ("over", -59, 1)] {
        let end = (now + jiff::SignedDuration::from_secs(end)).to_string();
        let words = ["token", "revoke", "--jti", id, "--expires", &end];
        shop.project.run(&[&words[..], &BECAUSE].concat()).ends(0);
        let left: i64 = shop.marks.ttl(format!("shop:deny:jti:{id}")).unwrap();
        // The clock goes on while the program works.
        assert!(
            (-2..=seconds + 1).contains(&left) && (seconds < 30 || left > seconds - 25),
            "{id}: {left}"
        );
    }
    let end = (now - jiff::SignedDuration::from_secs(61)).to_string();
    let words = ["token", "revoke", "--jti", "gone", "--expires", &end];
    let ran = shop.project.run(&[&words[..], &BECAUSE].concat());
    ran.ends(0).says("revoked 0").says("nothing to refuse");
    assert!(!shop.marks.exists::<_, bool>("shop:deny:jti:gone").unwrap());
}

#[test]
fn h86_a_redis_that_forgets_is_refused_and_nothing_else_is_touched() {
    let Some(mut shop) = Shop::start(&["maxmemory 64mb", "maxmemory-policy volatile-ttl"]) else {
        return;
    };
    let _: () = shop.marks.set("queue:1", "kept").unwrap();
    let words = [&["token", "revoke", "--jti", "a1"], &BECAUSE[..]].concat();
    let ran = shop.project.run(&words);
    ran.ends(4).says("K0214").says("`maxmemory-policy volatile-ttl`").says("now: nothing changed");
    shop.project.run(&["check"]).ends(0).says("deny list").says("may forget marks");
    assert!(!shop.marks.exists::<_, bool>("shop:deny:jti:a1").unwrap());
    let _: () = redis::cmd("CONFIG")
        .arg(&["SET", "maxmemory-policy", "noeviction"])
        .query(&mut shop.marks)
        .unwrap();
    shop.project.run(&words).ends(0).says("revoked 1");
    assert_eq!(shop.marks.get::<_, String>("queue:1").unwrap(), "kept");

    let _: () =
        redis::cmd("CONFIG").arg(&["SET", "maxmemory", "1mb"]).query(&mut shop.marks).unwrap();
    let full = shop.project.run(&[&["token", "revoke", "--jti", "b2"], &BECAUSE[..]].concat());
    full.ends(4).says("OOM").says("it is not refused");
    shop.project.run(&["audit", "list"]).ends(0).says("did not revoke token `b2`");
    shop.redis.kill();
    shop.project.run(&words).ends(4).says("K0214").says("cannot be reached");
}

#[test]
fn nothing_is_revoked_without_a_reason_a_yes_and_a_secret_that_is_known() {
    let Some(shop) = Shop::start(&[]) else { return };
    let run = |words: &[&str]| shop.project.run(&[&["token", "revoke"], words].concat());
    run(&["--jti", "a1", "--yes"]).ends(1).says("--because");
    run(&["--because", "x", "--yes"]).ends(1).says("--jti");
    run(&["--jti", "a1", "--before", "now", "--because", "x", "--yes"]).ends(1);
    run(&["--jti", "a1", "--because", "x"]).ends(4).says("K0206").says("until");
    run(&["--before", "2999-01-01T00:00:00Z", "--because", "x", "--yes"])
        .ends(1)
        .says("has not come yet");
    run(&["--before", "monday", "--because", "x", "--yes"]).ends(1).says("not a time");
    run(&["--jti", "eyJhbGciOi.eyJzdWIi.c2ln", "--because", "x", "--yes"])
        .ends(1)
        .says("whole token");
    run(&["pepper", "--jti", "a1", "--because", "x", "--yes"])
        .ends(1)
        .says("not in the configuration");
    shop.project.run(&["token", "count"]).ends(0).says("0 tokens, 0 subjects");

    let other = Project::new();
    other.run(&["token", "list"]).ends(4).says("no secret has a deny list");
    other.write("keywheel.yaml", CONFIG);
    other.write("app.env", &format!("JWT_SECRET={OLD}\nJWT_SECRET_ALSO_ACCEPTED=\n"));
    other.write("url", &shop.project.read("url"));
    let unknown = other.run(&[&["token", "revoke", "--jti", "a1"], &BECAUSE[..]].concat());
    unknown.ends(4).says("keywheel adopt jwt");
    for (old, new, words) in [
        ("{ keyring: { longest_token: 10m, skew: 1m } }", "cutover", "K0108"),
        ("prefix: \"shop:deny:\"", "prefix: \"\"", "K0117"),
        ("{ file: url }", "\"redis://a:kwcanary@b/\"", "K0107"),
    ] {
        other.write("keywheel.yaml", &CONFIG.replace(old, new));
        let ran = other.run(&["check"]);
        ran.ends(1).says(words);
        assert!(!ran.stderr.contains("kwcanary"));
    }
}

/// The backend of the example, with the signing secret and the Redis of a shop.
struct Backend {
    runtime: tokio::runtime::Runtime,
    address: std::net::SocketAddr,
}

impl Backend {
    fn of(shop: &Shop) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let variables = [
            ("JWT_SECRET", OLD.repeat(2)),
            ("JWT_LIFE_SECONDS", "600".into()),
            ("REDIS_URL", shop.project.read("url")),
        ];
        let value = |name: &str| {
            let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
            Some(keywheel_core::secret::SecretValue::new(value.clone().into_bytes()))
        };
        let settings = keywheel_example::backend::Settings::read(value, None).unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let serving = keywheel_example::backend::serve(settings, listener, std::future::pending());
        runtime.spawn(serving);
        Self { runtime, address }
    }

    /// Logs in, and returns a token and its id.
    fn login(&self) -> (String, String) {
        use base64::Engine;
        let url = format!("http://{}/login", self.address);
        let answer = self.runtime.block_on(async {
            let sent = keywheel_example::client(0).unwrap().post(url).send().await.unwrap();
            sent.json::<serde_json::Value>().await.unwrap()
        });
        let token = answer["token"].as_str().unwrap().to_owned();
        let claims = token.split('.').nth(1).unwrap();
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
        (token, claims["jti"].as_str().unwrap().to_owned())
    }

    /// Shows a token, and returns the status of the answer.
    fn shows(&self, token: &str) -> u16 {
        let url = format!("http://{}/me", self.address);
        self.runtime.block_on(async {
            let client = keywheel_example::client(0).unwrap();
            client.get(url).bearer_auth(token).send().await.unwrap().status().as_u16()
        })
    }
}

#[test]
fn the_backend_of_the_example_refuses_what_was_revoked_and_nothing_else() {
    let Some(mut shop) = Shop::start(&["appendonly yes"]) else { return };
    let backend = Backend::of(&shop);
    let ((one, id), (other, _)) = (backend.login(), backend.login());
    assert_eq!((backend.shows(&one), backend.shows(&other)), (200, 200));
    let revoke = |shop: &Shop, words: &[&str]| {
        shop.project
            .run(&[&["token", "revoke"], words, &BECAUSE[..]].concat())
            .ends(0)
            .says("revoked 1");
    };
    revoke(&shop, &["--jti", &id]);
    assert_eq!((backend.shows(&one), backend.shows(&other)), (401, 200));
    revoke(&shop, &["--subject", "somebody else"]);
    assert_eq!(backend.shows(&other), 200);

    // Whoever cannot ask says so, and logs nobody out; a crash loses nothing that was written.
    shop.redis.kill();
    assert_eq!((backend.shows(&one), backend.shows(&other)), (503, 503));
    shop.redis.begin().unwrap();
    assert_eq!((backend.shows(&one), backend.shows(&other)), (401, 200));

    revoke(&shop, &["--subject", "demo"]);
    assert_eq!(backend.shows(&other), 401);
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let (new, _) = backend.login();
    assert_eq!(backend.shows(&new), 200);
    revoke(&shop, &["--before", "now"]);
    assert_eq!(backend.shows(&new), 401);
}

#[test]
fn the_guide_shows_what_the_backend_of_the_example_does() {
    let source = include_str!("../../../../examples/compose/app/src/deny_list.rs");
    let (_, check) = source.split_once("    pub async fn refuses").unwrap();
    let (check, _) = check.split_once("\n    }\n").unwrap();
    let shown = format!("pub async fn refuses{}\n}}\n", check.replace("\n    ", "\n"));
    let guide = include_str!("../../../../docs/guide/jwt.md");
    assert!(guide.contains(&shown), "{shown}");
    let login = "+get +set +pttl +watch +unwatch +multi +exec +scan +info +time +select";
    assert!(guide.contains(login));
}
