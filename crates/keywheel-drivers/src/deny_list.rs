//! A list of tokens that are refused before they end, which applications ask: marks in Redis, each with an end of its own.
//!
//! ```text
//! <prefix>jti:<id>        "1"          this token is refused
//! <prefix>sub:<subject>   "<seconds>"  tokens of the subject are refused that were issued before this time (since 1970)
//! <prefix>all             "<seconds>"  so are all tokens
//! ```
//!
//! A mark is there for as long as a token that it refuses could be accepted otherwise. It is never shortened, never moved back,
//! and never removed: Redis forgets it by itself. A server that may forget it earlier, to make room, is refused, and nothing is
//! ever done to a key without the prefix (H86).

use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::{CallError, Duration, Finding, Refusal, RefusalKind, SecretReference};
use percent_encoding::percent_decode;
use redis::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::redis::{Link, Login, Node, Trouble, field};
use crate::{Context, reference};

const TARGET: &str = "the deny list";

/// The longest id or subject.
const LONGEST: usize = 512;

/// How many keys Redis looks at in one step of a count.
const STEP: usize = 1_000;

/// How many steps a count has at most.
const STEPS: usize = 100_000;

/// How often a mark is tried that somebody else changes meanwhile.
const TRIES: usize = 10;

/// Where the marks are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DenyListConfig {
    /// In Redis.
    Redis(RedisConfig),
}

/// Marks in one Redis (6.2 or later), which the application asks too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisConfig {
    /// Where its URL is read: `redis://user:password@host:6379/0`, or `rediss://` for TLS.
    pub url: SecretReference,
    /// What every key begins with.
    pub prefix: String,
    /// A file with the certificates of those who may sign the server's, instead of whom this machine trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<std::path::PathBuf>,
    /// How long it may take for one answer.
    #[serde(default = "default_within")]
    pub within: Duration,
}

fn default_within() -> Duration {
    Span::seconds(5).into()
}

/// Which tokens a mark refuses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Of {
    /// The one with this id (`jti`).
    Token(String),
    /// Those of a subject (`sub`) that were issued before a time.
    Subject(String),
    /// Every one that was issued before a time.
    All,
}

/// A mark.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Which tokens.
    pub of: Of,
    /// The second since 1970 before which they were issued; none for one token.
    pub before: Option<i64>,
    /// Until when it is there.
    pub until: Timestamp,
}

/// What is on the list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The first marks, in order.
    pub marks: Vec<Mark>,
    /// How many there are of single tokens.
    pub tokens: usize,
    /// How many there are of subjects.
    pub subjects: usize,
    /// How many there are of all tokens: one or none.
    pub all: usize,
    /// Whether every key was looked at; there are so many others that the count was broken off, where not.
    pub complete: bool,
}

/// What became of a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    /// It was made, or reaches further now.
    Made,
    /// One that reaches as far was there.
    Before,
}

/// A list of tokens that are refused.
pub struct DenyList {
    config: RedisConfig,
}

impl DenyListConfig {
    /// Builds the list; asks nobody.
    ///
    /// # Errors
    /// A refusal that names what is wrong with the configuration.
    pub fn build(&self, context: &Context) -> Result<DenyList, Refusal> {
        let Self::Redis(config) = self;
        let is_plain = |c: char| !c.is_whitespace() && !c.is_control();
        if config.prefix.is_empty() || !config.prefix.chars().all(is_plain) {
            return Err(unsupported("`prefix` is empty, or holds a space"));
        }
        let url = reference::from_root(&config.url, context);
        let ca = config.ca.as_ref().map(|ca| context.root.join(ca));
        Ok(DenyList { config: RedisConfig { url, ca, ..config.clone() } })
    }

    /// Returns what every key begins with.
    pub fn prefix(&self) -> &str {
        let Self::Redis(config) = self;
        &config.prefix
    }
}

impl DenyList {
    /// Checks that the server can hold marks, and keeps them.
    ///
    /// # Errors
    /// A refusal where it gives no answer.
    pub async fn examine(&self) -> Result<Vec<Finding>, Refusal> {
        let (node, mut link) = self.open().await?;
        let info = link.ask::<String>(&redis::cmd("INFO")).await;
        let info = info.map_err(|trouble| trouble.refusal(TARGET, &node))?;
        let address = node.address();
        let mut findings = Vec::new();
        let policy = field(&info, "maxmemory_policy").unwrap_or("unknown");
        let limited = field(&info, "maxmemory") != Some("0");
        match (limited, policy) {
            (_, "noeviction") => {}
            (true, _) if !planted!("eviction_is_fine") => findings.push(Finding::blocks(format!(
                "Redis at `{address}` may forget marks before their end to make room (`maxmemory-policy {policy}`), and revoked tokens would be accepted again"
            ))),
            _ => findings.push(Finding::note(format!(
                "Redis at `{address}` would forget marks if it had a limit (`maxmemory-policy {policy}`); `noeviction` would not"
            ))),
        }
        if field(&info, "role") == Some("slave") {
            findings.push(Finding::blocks(format!(
                "Redis at `{address}` is a replica; marks are made at its primary"
            )));
        }
        if field(&info, "aof_enabled") != Some("1") {
            findings.push(Finding::note(format!(
                "Redis at `{address}` writes no append-only file, and may have lost marks after a crash"
            )));
        }
        Ok(findings)
    }

    /// Makes a mark. One that is there stays at least as long, and refuses at least as much.
    ///
    /// # Errors
    /// A refusal where no mark was made, [`CallError::Unknown`] where one may have been.
    pub async fn mark(&self, mark: &Mark) -> Result<Marked, CallError> {
        let key = self.key(&mark.of)?;
        let (node, mut link) = self.open().await?;
        let seen = held(&mut link, &key).await.map_err(|trouble| trouble.refusal(TARGET, &node))?;
        let wanted = (mark.before.unwrap_or(1), at_server(mark.until, seen.now));
        for _ in 0..TRIES {
            let tried = self.try_mark(&mut link, &key, wanted).await;
            let tried = tried.map_err(|trouble| trouble.of_change(TARGET, &node))?;
            if let Some(marked) = tried {
                return confirmed(&mut link, &node, &key, wanted).await.map(|()| marked);
            }
        }
        let message = format!("{TARGET}: others change the same mark all the time");
        Err(Refusal::retry(RefusalKind::Conflict, None, message).into())
    }

    async fn try_mark(
        &self,
        link: &mut Link,
        key: &str,
        wanted: (i64, Timestamp),
    ) -> Result<Option<Marked>, Trouble> {
        link.ask::<()>(redis::cmd("WATCH").arg(key)).await?;
        let held = held(link, key).await?;
        let (value, until) = match held.value {
            Some(value) if !planted!("mark_moves_back") => {
                (value.max(wanted.0), held.until.max(wanted.1))
            }
            _ => wanted,
        };
        if held.value == Some(value) && held.until == until {
            link.ask::<()>(&redis::cmd("UNWATCH")).await?;
            return Ok(Some(Marked::Before));
        }
        let mut together = redis::pipe();
        if planted!("revoke_clears_the_store") {
            together.cmd("FLUSHALL").ignore();
        }
        together.cmd("SET").arg(key).arg(value).arg("PXAT").arg(until.millis());
        let done: Value = link.together(&mut together).await?;
        Ok((done != Value::Nil).then_some(Marked::Made))
    }

    /// Counts the marks, and returns the first of them; in small steps, so that nobody else waits for long.
    ///
    /// # Errors
    /// A refusal where the server gives no answer.
    pub async fn list(&self, most: usize) -> Result<Listed, Refusal> {
        let (node, mut link) = self.open().await?;
        let listed = self.listed(&mut link, most).await;
        listed.map_err(|trouble| trouble.refusal(TARGET, &node))
    }

    async fn listed(&self, link: &mut Link, most: usize) -> Result<Listed, Trouble> {
        let pattern = format!("{}*", escaped(&self.config.prefix));
        let mut keys = std::collections::BTreeSet::new();
        let mut cursor = 0_u64;
        for _ in 0..STEPS {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg(&["MATCH", &pattern, "COUNT"]).arg(STEP);
            let (next, found): (u64, Vec<String>) = link.ask(&scan).await?;
            keys.extend(found.into_iter().filter_map(|key| self.of(&key)));
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        let count = |is: fn(&Of) -> bool| keys.iter().filter(|of| is(of)).count();
        let mut listed = Listed {
            marks: Vec::new(),
            tokens: count(|of| matches!(of, Of::Token(_))),
            subjects: count(|of| matches!(of, Of::Subject(_))),
            all: count(|of| *of == Of::All),
            complete: cursor == 0,
        };
        for of in keys.into_iter().take(most) {
            let key = self.key(&of).expect("it was read from a key");
            let held = held(link, &key).await?;
            // One that ended meanwhile is no longer on the list.
            if let Some(value) = held.value {
                let before = (!matches!(of, Of::Token(_))).then_some(value);
                listed.marks.push(Mark { of, before, until: held.until });
            }
        }
        Ok(listed)
    }

    fn key(&self, of: &Of) -> Result<String, Refusal> {
        let prefix = &self.config.prefix;
        let (kind, name) = match of {
            Of::All => return Ok(format!("{prefix}all")),
            Of::Token(id) => ("jti", id),
            Of::Subject(subject) => ("sub", subject),
        };
        let fits = !name.is_empty() && name.len() <= LONGEST && !name.chars().any(char::is_control);
        if fits {
            Ok(format!("{prefix}{kind}:{name}"))
        } else {
            Err(unsupported(&format!("a `{kind}` has 1 to {LONGEST} characters, all printable")))
        }
    }

    fn of(&self, key: &str) -> Option<Of> {
        let rest = key.strip_prefix(&self.config.prefix)?;
        match rest.split_once(':') {
            None => (rest == "all").then_some(Of::All),
            Some(("jti", id)) => Some(Of::Token(id.into())),
            Some(("sub", subject)) => Some(Of::Subject(subject.into())),
            Some(_) => None,
        }
        .filter(|of| self.key(of).is_ok())
    }

    async fn open(&self) -> Result<(Node, Link), Refusal> {
        let place = Place::read(&self.config).await?;
        let password = place.password.as_ref();
        let login = password.map(|password| Login { user: place.user.as_deref(), password });
        let opened = place.node.log_in(login.as_ref()).await;
        let refused = |trouble: Trouble| trouble.refusal(TARGET, &place.node);
        let mut link = opened.map_err(refused)?;
        if place.database > 0 {
            let selected = link.ask::<()>(redis::cmd("SELECT").arg(place.database)).await;
            selected.map_err(refused)?;
        }
        Ok((place.node, link))
    }
}

/// What is known of a key.
struct Held {
    value: Option<i64>,
    until: Timestamp,
    now: Timestamp,
}

/// Reads a key and the clock of its server, in one go.
async fn held(link: &mut Link, key: &str) -> Result<Held, Trouble> {
    let mut together = redis::pipe();
    together.cmd("TIME").cmd("GET").arg(key).cmd("PTTL").arg(key);
    let ((seconds, micros), value, left): ((i64, i64), Option<String>, i64) =
        link.ask_each(&together).await?;
    let now = seconds * 1_000 + micros / 1_000;
    // A key without an end is there for ever. The others end at a whole second.
    let until = if left == -1 { i64::MAX } else { (now + left.max(0) + 500) / 1_000 * 1_000 };
    Ok(Held {
        value: value.map(|value| value.parse().unwrap_or(0)),
        until: Timestamp::from_millis(until),
        now: Timestamp::from_millis(now),
    })
}

/// A mark that is not there after it was made is not reported as made.
async fn confirmed(
    link: &mut Link,
    node: &Node,
    key: &str,
    wanted: (i64, Timestamp),
) -> Result<(), CallError> {
    let held = held(link, key).await;
    let held = held
        .map_err(|trouble| CallError::Unknown(format!("{TARGET}: {}", trouble.in_words(node))))?;
    if held.value.is_some_and(|value| value >= wanted.0) && held.until >= wanted.1 {
        return Ok(());
    }
    Err(CallError::Unknown(format!(
        "{TARGET}: node `{}` took the mark, and does not hold it",
        node.address()
    )))
}

/// The end of a mark by the clock of the server, at the next whole second: where that clock is ahead, the mark ends as much later.
fn at_server(until: Timestamp, now: Timestamp) -> Timestamp {
    let own = jiff::Timestamp::now().as_millisecond();
    let ahead = now.millis().saturating_sub(own).max(0);
    let until = until.millis().saturating_add(ahead).saturating_add(999);
    Timestamp::from_millis(until / 1_000 * 1_000)
}

/// What a URL says.
struct Place {
    node: Node,
    user: Option<String>,
    password: Option<SecretValue>,
    database: u32,
}

impl Place {
    async fn read(config: &RedisConfig) -> Result<Self, Refusal> {
        let value = reference::read(&config.url).await?;
        let no_url = || {
            let message = format!("{} holds no URL of a Redis server", config.url);
            Refusal::operator(RefusalKind::Local, message)
        };
        let text = std::str::from_utf8(value.expose()).map_err(|_| no_url())?;
        let url = Url::parse(text).map_err(|_| no_url())?;
        let secured = match url.scheme() {
            "redis" => false,
            "rediss" => true,
            _ => return Err(no_url()),
        };
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(no_url)?;
        let address = format!("{host}:{}", url.port().unwrap_or(6379));
        let decoded = |text: &str| percent_decode(text.as_bytes()).collect::<Vec<u8>>();
        let user = String::from_utf8(decoded(url.username())).map_err(|_| no_url())?;
        let database = url.path().trim_matches('/');
        Ok(Self {
            node: Node::new(&address, Some(secured), config.ca.as_deref(), config.within.span())?,
            user: Some(user).filter(|user| !user.is_empty()),
            password: url.password().map(|password| SecretValue::new(decoded(password))),
            database: if database.is_empty() {
                0
            } else {
                database.parse().map_err(|_| no_url())?
            },
        })
    }
}

/// A prefix as a pattern that means itself.
fn escaped(prefix: &str) -> String {
    let special = |c: char| matches!(c, '*' | '?' | '[' | ']' | '\\' | '^');
    prefix.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

fn unsupported(message: &str) -> Refusal {
    Refusal::operator(RefusalKind::Unsupported, message)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use keywheel_driver::Severity;
    use keywheel_driver::conformance::canary;
    use keywheel_ground::redis::{Redis, Settings};
    use tempfile::TempDir;

    use super::*;

    /// A Redis with a login for the list, which may do nothing beyond what the guide says.
    struct World {
        redis: Redis,
        folder: TempDir,
        password: String,
    }

    impl World {
        /// Returns none, and says why, where Redis cannot be had.
        fn start(configuration: &[&str]) -> Option<Self> {
            let password = canary("deny-list");
            let settings = Settings {
                lines: vec![
                    "user default on nopass ~* &* +@all".into(),
                    format!(
                        "user list on >{password} ~shop:deny:* +get +set +pttl +watch +unwatch +multi +exec +scan +info +time +select"
                    ),
                ],
                configuration: configuration.iter().map(|line| (*line).to_owned()).collect(),
                ..Settings::default()
            };
            match Redis::start(&settings) {
                Ok(redis) => Some(Self { redis, folder: TempDir::new().unwrap(), password }),
                Err(why) => {
                    writeln!(std::io::stdout(), "skipped: Redis ({why})").unwrap();
                    None
                }
            }
        }

        fn list(&self) -> DenyList {
            let url = format!("redis://list:{}@127.0.0.1:{}/2", self.password, self.redis.port());
            self.list_at(&url)
        }

        fn list_at(&self, url: &str) -> DenyList {
            std::fs::write(self.folder.path().join("url"), url).unwrap();
            let config = serde_json::json!({
                "redis": { "url": { "file": "url" }, "prefix": "shop:deny:", "within": "1s" },
            });
            let config: DenyListConfig = serde_json::from_value(config).unwrap();
            config.build(&Context::at(self.folder.path())).unwrap()
        }

        /// Asks the server as its superuser, in the database of the list.
        async fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
            let address = format!("127.0.0.1:{}", self.redis.port());
            let node = Node::new(&address, None, None, Span::seconds(5)).unwrap();
            let mut link = node.log_in(None).await.unwrap();
            link.ask::<()>(redis::cmd("SELECT").arg(2)).await.unwrap();
            link.ask(redis::cmd(words[0]).arg(&words[1..])).await.unwrap()
        }

        async fn blocks(&self) -> Vec<String> {
            let findings = self.list().examine().await.unwrap();
            let blocks = findings.into_iter().filter(|one| one.severity == Severity::Blocks);
            blocks.map(|finding| finding.message).collect()
        }
    }

    fn in_seconds(seconds: i64) -> Timestamp {
        Timestamp::from_millis(jiff::Timestamp::now().as_millisecond() + seconds * 1_000)
    }

    fn token(id: &str, seconds: i64) -> Mark {
        Mark { of: Of::Token(id.into()), before: None, until: in_seconds(seconds) }
    }

    fn subject(name: &str, before: i64, seconds: i64) -> Mark {
        Mark { of: Of::Subject(name.into()), before: Some(before), until: in_seconds(seconds) }
    }

    #[tokio::test]
    async fn a_mark_is_there_until_the_token_ends() {
        let Some(world) = World::start(&[]) else { return };
        let list = world.list();
        assert_eq!(list.mark(&token("a", 60)).await, Ok(Marked::Made));
        assert_eq!(list.mark(&subject("dana", 1_700_000_000, 90)).await, Ok(Marked::Made));
        let all = Mark { of: Of::All, before: Some(1_700_000_001), until: in_seconds(120) };
        assert_eq!(list.mark(&all).await, Ok(Marked::Made));
        for (key, value, seconds) in [
            ("shop:deny:jti:a", "1", 60),
            ("shop:deny:sub:dana", "1700000000", 90),
            ("shop:deny:all", "1700000001", 120),
        ] {
            assert_eq!(world.ask::<String>(&["GET", key]).await, value);
            let left: i64 = world.ask(&["TTL", key]).await;
            assert!((seconds - 10..=seconds + 1).contains(&left), "{key}: {left}");
        }
        // One in its last second is refused until that is over, and is gone afterwards.
        assert_eq!(list.mark(&token("last", 1)).await, Ok(Marked::Made));
        let listed = list.list(10).await.unwrap();
        assert_eq!((listed.tokens, listed.subjects, listed.all, listed.complete), (2, 1, 1, true));
        let of: Vec<_> = listed.marks.iter().map(|mark| (&mark.of, mark.before)).collect();
        assert_eq!(
            of,
            [
                (&Of::Token("a".into()), None),
                (&Of::Token("last".into()), None),
                (&Of::Subject("dana".into()), Some(1_700_000_000)),
                (&Of::All, Some(1_700_000_001)),
            ]
        );
        let since = std::time::Instant::now();
        while world.ask::<i64>(&["EXISTS", "shop:deny:jti:last"]).await == 1 {
            assert!(since.elapsed() < std::time::Duration::from_secs(30), "it does not end");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert_eq!(list.list(1).await.unwrap().marks.len(), 1);
    }

    #[tokio::test]
    async fn h86_a_mark_is_never_shortened_or_moved_back() {
        let Some(world) = World::start(&[]) else { return };
        let list = world.list();
        list.mark(&subject("dana", 2_000, 600)).await.unwrap();
        list.mark(&subject("dana", 1_000, 60)).await.unwrap();
        list.mark(&token("a", 600)).await.unwrap();
        list.mark(&token("a", 60)).await.unwrap();
        assert_eq!(world.ask::<String>(&["GET", "shop:deny:sub:dana"]).await, "2000");
        for key in ["shop:deny:sub:dana", "shop:deny:jti:a"] {
            assert!(world.ask::<i64>(&["TTL", key]).await > 500, "{key}");
        }
        list.mark(&subject("dana", 3_000, 900)).await.unwrap();
        assert_eq!(world.ask::<String>(&["GET", "shop:deny:sub:dana"]).await, "3000");
        assert!(world.ask::<i64>(&["TTL", "shop:deny:sub:dana"]).await > 800);
        let same = token("a", 700);
        assert_eq!(list.mark(&same).await, Ok(Marked::Made));
        assert_eq!(list.mark(&same).await, Ok(Marked::Before));
    }

    #[tokio::test]
    async fn h86_no_other_key_is_touched() {
        let Some(mut world) = World::start(&[]) else { return };
        let others =
            ["queue", "shop:session:1", "shop:denx", "Xshop:deny:jti:x", "shop:deny:other"];
        for key in others {
            let _: () = world.ask(&["SET", key, "kept"]).await;
        }
        let _: () = world.ask(&["ACL", "SETUSER", "list", "+@all", "~*"]).await;
        world.list().mark(&token("a", 60)).await.unwrap();
        let listed = world.list().list(10).await.unwrap();
        assert_eq!((listed.tokens, listed.marks.len()), (1, 1));
        for key in others {
            assert_eq!(world.ask::<Option<String>>(&["GET", key]).await.as_deref(), Some("kept"));
        }
        world.redis.kill();
        let gone = world.list().mark(&token("b", 60)).await;
        assert!(matches!(gone, Err(CallError::Refused(_))), "{gone:?}");
    }

    #[tokio::test]
    async fn h86_a_server_that_makes_room_by_forgetting_marks_is_refused() {
        let Some(world) = World::start(&[]) else { return };
        assert_eq!(world.blocks().await, Vec::<String>::new());
        for (limit, policy, fits) in [
            ("0", "allkeys-lru", true),
            ("64mb", "noeviction", true),
            ("64mb", "allkeys-lru", false),
            ("64mb", "allkeys-lfu", false),
            ("64mb", "allkeys-random", false),
            ("64mb", "volatile-lru", false),
            ("64mb", "volatile-lfu", false),
            ("64mb", "volatile-random", false),
            ("64mb", "volatile-ttl", false),
        ] {
            let _: () =
                world.ask(&["CONFIG", "SET", "maxmemory", limit, "maxmemory-policy", policy]).await;
            assert_eq!(world.blocks().await.is_empty(), fits, "{limit} {policy}");
        }
    }

    /// What the refusal of a policy is for: the server of before forgets marks, and that of after refuses what it cannot hold.
    #[tokio::test]
    async fn h86_marks_are_forgotten_under_one_policy_and_none_under_the_other() {
        let Some(world) = World::start(&[]) else { return };
        let list = world.list();
        for id in 0..200 {
            list.mark(&token(&id.to_string(), 600)).await.unwrap();
        }
        let fill = async |policy: &str| {
            let info: String = world.ask(&["INFO", "memory"]).await;
            let used: u64 = field(&info, "used_memory").unwrap().parse().unwrap();
            let limit = (used + 2_000_000).to_string();
            let _: () = world
                .ask(&["CONFIG", "SET", "maxmemory", &limit, "maxmemory-policy", policy])
                .await;
            let address = format!("127.0.0.1:{}", world.redis.port());
            let node = Node::new(&address, None, None, Span::seconds(5)).unwrap();
            let mut link = node.log_in(None).await.unwrap();
            let value = "x".repeat(20_000);
            let (mut full, mut filled) = (false, 0);
            for number in 0..400 {
                // With an end that comes later than those of the marks, which are the first to be forgotten.
                let mut set = redis::cmd("SET");
                set.arg(format!("{policy}:{number}")).arg(&value).arg(&["EX", "90000"]);
                match link.ask::<()>(&set).await {
                    Ok(()) => filled += 1,
                    Err(trouble) => {
                        assert_eq!(trouble, Trouble::Said("OOM"));
                        full = true;
                    }
                }
            }
            assert!(filled > 0);
            full
        };
        assert!(fill("noeviction").await, "it was never full");
        let held = list.list(0).await.unwrap().tokens;
        assert_eq!(held, 200);
        let _: () = world.ask(&["CONFIG", "SET", "maxmemory", "1mb"]).await;
        let full = list.mark(&token("one more", 600)).await;
        assert!(matches!(full, Err(CallError::Refused(_))), "{full:?}");

        assert!(!fill("volatile-ttl").await);
        let held = list.list(0).await.unwrap().tokens;
        assert!(held < 200, "nothing was forgotten");
        assert_eq!(world.blocks().await.len(), 1);
    }

    #[tokio::test]
    async fn many_keys_are_counted_in_steps() {
        let Some(world) = World::start(&[]) else { return };
        let address = format!("127.0.0.1:{}", world.redis.port());
        let node = Node::new(&address, None, None, Span::seconds(30)).unwrap();
        let mut link = node.log_in(None).await.unwrap();
        let mut many = redis::pipe();
        many.cmd("SELECT").arg(2).ignore();
        for number in 0..5_000 {
            many.cmd("SET")
                .arg(format!("shop:deny:jti:{number}"))
                .arg(&["1", "EX", "600"])
                .ignore();
            many.cmd("SET").arg(format!("other:{number}")).arg("1").ignore();
        }
        link.ask_each::<()>(&many).await.unwrap();
        let listed = world.list().list(3).await.unwrap();
        assert_eq!((listed.tokens, listed.marks.len(), listed.complete), (5_000, 3, true));
    }

    #[tokio::test]
    async fn h115_no_message_holds_the_url_or_what_it_is_about() {
        let Some(world) = World::start(&[]) else { return };
        let wrong = canary("deny-list-wrong");
        let port = world.redis.port();
        for url in [
            format!("redis://list:{wrong}@127.0.0.1:{port}/2"),
            format!("redis://list:{wrong}@127.0.0.1:1/2"),
            format!("rediss://list:{wrong}@127.0.0.1:{port}/2"),
            format!("http://list:{wrong}@127.0.0.1:{port}/2"),
            format!("redis://list:{wrong}@127.0.0.1:{port}/{wrong}"),
            wrong.clone(),
        ] {
            let said = format!("{:?}", world.list_at(&url).mark(&token("a", 60)).await);
            assert!(said.starts_with("Err(Refused(") && !said.contains(&wrong), "{said}");
        }
        let long = "x".repeat(LONGEST + 1);
        for id in ["", "a\nb", &long] {
            let refused = world.list().mark(&token(id, 60)).await;
            assert!(matches!(refused, Err(CallError::Refused(_))), "{refused:?}");
        }
        let _: () = world.ask(&["LPUSH", "shop:deny:jti:list", "x"]).await;
        let other = world.list().mark(&token("list", 60)).await;
        assert!(matches!(other, Err(CallError::Refused(_))), "{other:?}");
    }
}
