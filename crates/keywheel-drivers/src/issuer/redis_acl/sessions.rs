//! Who is logged in as the user, who was refused, and the end of the sessions that a former password opened.
//!
//! Redis does not tell with which password a session logged in: only those that are older than the next version are surely of
//! a former one.

use std::collections::BTreeMap;
use std::time::Duration as Pause;

use async_trait::async_trait;
use keywheel_core::planted;
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::IssuedId;
use keywheel_driver::CallError;
use keywheel_driver::issuer::{Audit, Entry, LastUsed, Usage};
use redis::Value;

use super::{At, RedisAcl, TARGET, counted};
use crate::api::plain;
use crate::redis::Trouble;

/// How many sessions end at once, and how long their clients are given to come back.
const BATCH: usize = 20;
const PAUSE: Pause = Pause::from_millis(100);

/// How often sessions are looked at again before the rest is left to the next try.
const ROUNDS: usize = 10_000;

/// How many refused logins the record of a node is asked for; Redis keeps 128 unless told.
const RECORD: usize = 1_024;

#[async_trait]
impl Usage for RedisAcl {
    /// A session that is older than the next version uses this one, or a former one, now.
    async fn last_used(&self, id: &IssuedId) -> Result<LastUsed, CallError> {
        let id = self.own(id)?;
        let mut nodes = self.everywhere().await?;
        let (mut older, mut later, mut now) = (Vec::new(), 0, None);
        for at in &mut nodes {
            let mark = at.mark_of_next(id);
            let (before, after): (Vec<_>, Vec<_>) =
                self.sessions(at).await?.into_iter().partition(|one| Some(one.id) < mark);
            if !before.is_empty() {
                now = now.max(Some(at.now));
            }
            older.extend(before.iter().map(Session::in_words));
            later += after.len();
        }
        let user = &self.config.user;
        let later = format!(
            "{later} later, of which Redis does not tell the password",
            later = counted(later, "session")
        );
        let detail = match older.as_slice() {
            [] => later,
            older => format!(
                "{} of `{user}` older than the next version: {}; {later}",
                counted(older.len(), "session"),
                some_of(older)
            ),
        };
        Ok(LastUsed { at: now, detail: Some(detail) })
    }
}

#[async_trait]
impl Audit for RedisAcl {
    /// Redis keeps in memory what it refused for a while, and the sessions that are open, which are in use now whenever they
    /// began. A node that cannot be read is named, and holds up no other.
    async fn since(&self, id: &IssuedId, since: Timestamp) -> Result<Vec<Entry>, CallError> {
        let id = self.own(id)?;
        let user = &self.config.user;
        let mut entries = vec![Entry::untimed(format!(
            "Redis keeps no record of logins as `{user}`, and does not tell the password of an open session"
        ))];
        for (node, asked) in self.wherever().await? {
            let address = node.address();
            match asked {
                Ok(mut at) => {
                    entries.extend(self.sessions_on_record(&mut at, id).await);
                    let refused = self.refused_on_record(&mut at).await.into_iter();
                    entries.extend(refused.filter(|entry| entry.at.is_none_or(|at| at >= since)));
                }
                Err(trouble) => entries.push(Entry::untimed(format!(
                    "node `{address}` could not be read: {}",
                    trouble.in_words(node)
                ))),
            }
        }
        entries.sort_by_key(|entry| entry.at);
        Ok(entries)
    }
}

impl RedisAcl {
    /// Tells of the sessions that are open at a node.
    async fn sessions_on_record(&self, at: &mut At<'_>, id: &str) -> Vec<Entry> {
        let (address, mark) = (at.node.address().to_owned(), at.mark_of_next(id));
        let clients = match self.clients(at).await {
            Ok(clients) => clients,
            Err(trouble) => {
                return vec![Entry::untimed(format!(
                    "the sessions at `{address}` could not be read: {}{}",
                    trouble.in_words(at.node),
                    rule_for(&trouble, "+client|list")
                ))];
            }
        };
        let entry = |session: &Session| {
            let is_older = mark.is_some_and(|mark| session.id < mark);
            let whose = if is_older { "; older than the next version" } else { "" };
            Entry {
                at: Some(session.opened_at),
                what: format!("session at `{address}`, still open: {}{whose}", session.in_words()),
            }
        };
        let unread = unread(&address, clients.unread, "open session");
        clients.sessions.iter().map(entry).chain(unread).collect()
    }

    /// Tells of what a node refused.
    async fn refused_on_record(&self, at: &mut At<'_>) -> Vec<Entry> {
        let address = at.node.address();
        let record = at.link.ask::<Vec<Value>>(redis::cmd("ACL").arg("LOG").arg(RECORD)).await;
        match record {
            Ok(record) => {
                let (refused, left) = refused(&record, &self.config.user, at.now);
                let refused = refused.into_iter().map(|entry| Entry {
                    what: format!("at `{address}`: {}", entry.what),
                    ..entry
                });
                refused.chain(unread(address, left, "refusal")).collect()
            }
            Err(trouble) => vec![Entry::untimed(format!(
                "what was refused at `{address}` could not be read: {}{}",
                trouble.in_words(at.node),
                rule_for(&trouble, "+acl|log")
            ))],
        }
    }
}

impl RedisAcl {
    /// Ends the user's sessions that were opened before the client with this number, some at a time, until none is left.
    pub(super) async fn end_sessions_before(
        &self,
        at: &mut At<'_>,
        mark: i64,
    ) -> Result<(), CallError> {
        let batch = if planted!("every_session_at_once") { usize::MAX } else { BATCH };
        for _ in 0..ROUNDS {
            let sessions = self.sessions(at).await?;
            let older = sessions.into_iter().map(|session| session.id).filter(|id| *id < mark);
            let older: Vec<i64> = older.take(batch).collect();
            if older.is_empty() {
                return Ok(());
            }
            let mut together = redis::pipe();
            for id in older {
                together.cmd("CLIENT").arg(&["KILL", "ID"]).arg(id);
            }
            let killed = at.link.ask_each::<Vec<i64>>(&together).await;
            killed.map_err(|trouble| trouble.of_change(TARGET, at.node))?;
            tokio::time::sleep(PAUSE).await;
        }
        let address = at.node.address();
        Err(CallError::Unknown(format!("{TARGET}: node `{address}` keeps sessions open")))
    }

    /// The sessions of the user at a node: all of them, or an error.
    pub(super) async fn sessions(&self, at: &mut At<'_>) -> Result<Vec<Session>, CallError> {
        let clients = self.clients(at).await.map_err(|trouble| trouble.refusal(TARGET, at.node))?;
        clients.all().ok_or_else(|| {
            CallError::Unknown(format!(
                "{TARGET}: node `{}` answered something else than expected",
                at.node.address()
            ))
        })
    }

    async fn clients(&self, at: &mut At<'_>) -> Result<Clients, Trouble> {
        let list: String = at.link.ask(redis::cmd("CLIENT").arg("LIST")).await?;
        Ok(Clients::read(&list, &self.config.user, at.now))
    }
}

/// What `CLIENT LIST` tells of a user.
struct Clients {
    sessions: Vec<Session>,
    /// How many lines were not understood that may be about the user.
    unread: usize,
}

impl Clients {
    fn read(list: &str, user: &str, now: Timestamp) -> Self {
        let may_be_of_user = |line: &&str| property(line, "user").is_none_or(|of| of == user);
        let mut clients = Self { sessions: Vec::new(), unread: 0 };
        for line in list.lines().filter(may_be_of_user) {
            match Session::read(line, now) {
                Some(session) => clients.sessions.push(session),
                None => clients.unread += 1,
            }
        }
        clients
    }

    /// None where there may be more.
    fn all(self) -> Option<Vec<Session>> {
        (self.unread == 0).then_some(self.sessions)
    }
}

/// An open session.
pub(super) struct Session {
    pub(super) id: i64,
    pub(super) address: String,
    pub(super) name: String,
    pub(super) opened_at: Timestamp,
    pub(super) age: Span,
}

impl Session {
    /// Reads a line of `CLIENT LIST`, which says whose session it is.
    pub(super) fn read(line: &str, now: Timestamp) -> Option<Self> {
        property(line, "user")?;
        let age = Span::seconds(property(line, "age")?.parse().ok()?);
        let text = |name| property(line, name).unwrap_or_default().to_owned();
        let age_millis = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        Some(Self {
            id: property(line, "id")?.parse().ok()?,
            address: text("addr"),
            name: text("name"),
            opened_at: Timestamp::from_millis(now.millis().saturating_sub(age_millis)),
            age,
        })
    }

    pub(super) fn in_words(&self) -> String {
        format!("{}{} for {}", self.address, called(&self.name), self.age)
    }
}

/// What a client calls itself, after its address.
fn called(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!(" ({})", plain(name)) }
}

/// Names the rule that the admin needs, where it is that which is missing.
fn rule_for(trouble: &Trouble, rule: &str) -> String {
    match trouble {
        Trouble::Said("NOPERM") => format!("; that takes `{rule}`"),
        _ => String::new(),
    }
}

/// Tells that a node said more than was understood.
fn unread(address: &str, left: usize, what: &str) -> Option<Entry> {
    let left = (left > 0).then(|| counted(left, what))?;
    Some(Entry::untimed(format!("at `{address}`: {left} in words that are not understood")))
}

/// Reads one property of a line such as `id=7 addr=127.0.0.1:4242 name= …`.
pub(super) fn property<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// What a node's record says was refused to a user, logins and what the user may not do; and how much that may be about the user
/// was not understood.
fn refused(record: &[Value], user: &str, now: Timestamp) -> (Vec<Entry>, usize) {
    let (mut refused, mut left) = (Vec::new(), 0);
    for entry in record {
        let entry: Refused = redis::from_redis_value(entry.clone()).unwrap_or_default();
        if entry.get("username").is_some_and(|of| of != user) {
            continue;
        }
        match told(&entry, user, now) {
            Some(entry) => refused.push(entry),
            None => left += 1,
        }
    }
    (refused, left)
}

/// An entry of `ACL LOG`, by the names of what it says.
type Refused = BTreeMap<String, String>;

fn told(entry: &Refused, user: &str, now: Timestamp) -> Option<Entry> {
    let value = |name: &str| entry.get(name).map(String::as_str);
    value("username")?;
    let object = || plain(value("object").unwrap_or_default());
    let what = match value("reason")? {
        "auth" => format!("refused logins as `{user}`"),
        "command" => format!("refused calls of `{}` by `{user}`", object()),
        "key" => format!("refused calls with key `{}` by `{user}`", object()),
        "channel" => format!("refused calls with channel `{}` by `{user}`", object()),
        _ => format!("refusals of another kind to `{user}`"),
    };
    let age: f64 = value("age-seconds")?.parse().ok()?;
    let client = value("client-info").unwrap_or_default();
    let from = property(client, "addr").unwrap_or("an address that is not known");
    let name = called(property(client, "name").unwrap_or_default());
    let times = value("count").unwrap_or("1");
    Some(Entry {
        at: Some(Timestamp::from_millis(now.millis() - (age * 1_000.0) as i64)),
        what: format!("{times} {what}, the last from {from}{name}"),
    })
}

/// The first few of a list, and how many more there are.
fn some_of(list: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = list.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match list.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}, and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use keywheel_driver::conformance::canary;
    use keywheel_driver::issuer::Issuer;

    use super::super::bench::{Relay, World, mint};
    use super::*;

    #[tokio::test]
    async fn h66_sessions_of_a_password_end_with_it_and_later_ones_stay() {
        let Some(world) = World::start(2) else { return };
        let issuer = world.issuer();
        let mut old = Vec::new();
        for node in [0, 1] {
            old.push(world.link(node, "app", &world.first).await.unwrap());
        }
        let stranger = world.link(0, "other", &world.other).await.unwrap();
        let second = canary("redis-second");
        let id = mint(&*issuer, "kw-1-1", &second, world.previous()).await.unwrap();
        let mut new = world.link(0, "app", &second).await.unwrap();

        let before = IssuedId::new("keywheel-before@app");
        let used = issuer.usage().unwrap().last_used(&before).await.unwrap();
        assert!(used.at.is_some());
        let detail = used.detail.unwrap();
        assert!(detail.starts_with("2 sessions of `app` older than the next version"), "{detail}");
        let used = issuer.usage().unwrap().last_used(&id).await.unwrap();
        assert_eq!(used.at, None, "{:?}", used.detail);

        issuer.suspend().unwrap().suspend(&before).await.unwrap();
        for old in &mut old {
            assert!(old.ask::<String>(&redis::cmd("PING")).await.is_err(), "a session is left");
        }
        assert_eq!(new.ask(&redis::cmd("PING")).await, Ok("PONG".to_owned()));
        drop(stranger);
        let used = issuer.usage().unwrap().last_used(&before).await.unwrap();
        assert_eq!(used.at, None, "{:?}", used.detail);

        issuer.end_sessions(&before).await.unwrap();
        assert!(new.ask::<String>(&redis::cmd("PING")).await.is_err());
        assert!(world.accepts(0, "app", &second).await);
    }

    #[tokio::test]
    async fn h78_sessions_end_some_at_a_time() {
        let Some(world) = World::start(1) else { return };
        let relay = Relay::before(world.nodes[0].port()).await;
        let issuer = world.issuer_at(&[relay.port]);
        let mut old = Vec::new();
        for _ in 0..3 * BATCH {
            old.push(world.link(0, "app", &world.first).await.unwrap());
        }
        mint(&*issuer, "kw-1-1", &canary("redis-second"), world.previous()).await.unwrap();
        issuer.revoke(&IssuedId::new("keywheel-before@app")).await.unwrap();
        assert_eq!(world.sessions(0).await, 0);
        // After each batch it looks again.
        let heard = String::from_utf8_lossy(&relay.heard.lock().unwrap()).into_owned();
        let batches = heard.split("LIST").map(|asked| asked.matches("KILL").count());
        assert_eq!(batches.filter(|ended| *ended > 0).collect::<Vec<_>>(), [BATCH; 3]);
    }

    /// What is on record about a version, one line for each entry.
    async fn told(issuer: &dyn Issuer, id: &IssuedId) -> String {
        let entries = issuer.audit().unwrap().since(id, Timestamp::default()).await.unwrap();
        let told: String = entries.iter().map(|entry| format!("{}\n", entry.what)).collect();
        assert!(!told.contains("kwcanary"), "{told}");
        told
    }

    #[tokio::test]
    async fn h115_what_the_user_may_not_do_is_on_record_and_a_session_is_told_from_later_ones() {
        let Some(world) = World::start(1) else { return };
        let issuer = world.issuer();
        let mut before = world.link(0, "app", &world.first).await.unwrap();
        let called = ["SETNAME", "sk-ant-api03-kwcanary-5e1f"];
        before.ask::<()>(redis::cmd("CLIENT").arg(&called)).await.unwrap();
        let denied = before.ask::<Value>(redis::cmd("CONFIG").arg("GET").arg("*")).await;
        assert!(matches!(denied, Err(Trouble::Said("NOPERM"))));
        let id = mint(&*issuer, "kw-1-1", &canary("redis-second"), None).await.unwrap();
        let _later = world.link(0, "app", &world.first).await.unwrap();
        let of_former = told(&*issuer, &IssuedId::new("keywheel-before@app")).await;
        assert_eq!(of_former.matches("; older than the next version\n").count(), 1, "{of_former}");
        assert_eq!(of_former.matches("still open").count(), 2, "{of_former}");
        assert!(of_former.contains("1 refused calls of `config|get` by `app`, the last from 127."));
        assert_eq!(of_former.matches(" (…)").count(), 2, "{of_former}");
        let of_new = told(&*issuer, &id).await;
        assert!(!of_new.contains("older than"), "{of_new}");
    }

    #[tokio::test]
    async fn what_of_a_node_could_not_be_read_is_told_beside_the_rest() {
        let Some(mut world) = World::start(2) else { return };
        let issuer = world.issuer();
        let id = mint(&*issuer, "kw-1-1", &canary("redis-second"), None).await.unwrap();
        let _open = world.link(0, "app", &world.first).await.unwrap();
        let mut admin = world.link(0, "keywheel", &world.admin).await.unwrap();
        let mut rule = async |rule: &str| {
            let words = ["SETUSER", "keywheel", rule];
            admin.ask::<()>(redis::cmd("ACL").arg(&words)).await.unwrap();
        };
        rule("-acl|log").await;
        let without_log = told(&*issuer, &id).await;
        assert!(without_log.contains("that takes `+acl|log`"), "{without_log}");
        assert!(without_log.contains("still open"), "{without_log}");
        rule("-client|list").await;
        let without_list = told(&*issuer, &id).await;
        assert!(without_list.contains("that takes `+client|list`"), "{without_list}");
        rule("+client|list").await;
        let gone = format!("node `127.0.0.1:{}` could not be read: ", world.nodes[1].port());
        drop(world.nodes.remove(1));
        let one_left = told(&*issuer, &id).await;
        assert!(one_left.contains(&gone) && one_left.contains("still open"), "{one_left}");
    }

    #[test]
    fn a_rule_is_named_only_where_it_is_what_is_missing() {
        assert_eq!(rule_for(&Trouble::Said("NOPERM"), "+acl|log"), "; that takes `+acl|log`");
        for trouble in [Trouble::Said("LOADING"), Trouble::NoAnswer("no answer in time")] {
            assert_eq!(rule_for(&trouble, "+acl|log"), "");
        }
    }

    #[test]
    fn a_session_that_is_not_understood_is_not_taken_for_none() {
        let read = |list: &str| {
            let clients = Clients::read(list, "app", Timestamp::from_millis(60_000));
            let ids: Vec<i64> = clients.sessions.iter().map(|session| session.id).collect();
            (ids, clients.unread, clients.all().is_some())
        };
        let app = "id=7 addr=127.0.0.1:4242 name= age=5 user=app";
        let other = "id=8 addr=127.0.0.1:4243 name= age=never user=other";
        assert_eq!(
            read(&format!(
                "{app}
{other}
"
            )),
            (vec![7], 0, true)
        );
        for line in ["id=9 age=never user=app", "age=5 user=app", "id=9 age=5", "what else"] {
            assert_eq!(
                read(&format!(
                    "{app}
{line}
"
                )),
                (vec![7], 1, false),
                "{line}"
            );
        }
        let entry = unread("127.0.0.1:6379", 2, "open session").unwrap();
        assert_eq!(
            entry.what,
            "at `127.0.0.1:6379`: 2 open sessions in words that are not understood"
        );
        assert_eq!(unread("127.0.0.1:6379", 0, "open session"), None);
    }

    #[test]
    fn a_refusal_that_is_not_understood_is_counted() {
        let text = |text: &str| Value::BulkString(text.into());
        let entry = |words: &[&str]| Value::Array(words.iter().map(|word| text(word)).collect());
        let whole = ["username", "app", "reason", "auth", "age-seconds", "1.5", "count", "3"];
        let of_other = entry(&["username", "other", "reason", "auth"]);
        let record = [
            entry(&whole),
            of_other,
            entry(&whole[2..]),
            entry(&whole[..4]),
            entry(&["username", "app", "age-seconds", "1.5"]),
            text("what else"),
        ];
        let (refused, left) = refused(&record, "app", Timestamp::from_millis(60_000));
        assert_eq!(left, 4);
        let [entry] = refused.as_slice() else { panic!("{refused:?}") };
        assert_eq!(entry.at, Some(Timestamp::from_millis(58_500)));
        assert!(entry.what.starts_with("3 refused logins as `app`, the last from "));
    }

    #[tokio::test]
    async fn refused_logins_and_open_sessions_are_on_record() {
        let Some(world) = World::start(1) else { return };
        let issuer = world.issuer();
        let id = mint(&*issuer, "kw-1-1", &canary("redis-second"), None).await.unwrap();
        let _open = world.link(0, "app", &world.first).await.unwrap();
        for _ in 0..3 {
            assert!(!world.accepts(0, "app", &canary("redis-wrong")).await);
        }
        let since = |millis| issuer.audit().unwrap().since(&id, Timestamp::from_millis(millis));
        let mut told: Vec<_> =
            since(0).await.unwrap().into_iter().map(|entry| entry.what).collect();
        told.sort_by_key(|what| (!what.starts_with("Redis"), !what.starts_with("session")));
        let [plain, open, refused] = told.as_slice() else { panic!("{told:?}") };
        assert!(plain.starts_with("Redis keeps no record of logins as `app`"), "{plain}");
        assert!(open.starts_with("session at `127.0.0.1:"), "{open}");
        assert!(
            refused.contains(" refused logins as `app`, the last from 127.0.0.1:"),
            "{refused}"
        );
        assert_eq!(since(i64::MAX).await.unwrap().len(), 2, "what is open is in use now");
    }
}
