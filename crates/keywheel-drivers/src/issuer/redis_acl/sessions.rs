//! Who is logged in as the user, who was refused, and the end of the sessions that a former password opened.
//!
//! Redis does not tell with which password a session logged in: only those that are older than the next version are surely of
//! a former one.

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
        let sessions = match self.sessions(at).await {
            Ok(sessions) => sessions,
            Err(error) => {
                return vec![Entry::untimed(format!(
                    "the sessions at `{address}` could not be read: {error}; that takes `+client|list`"
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
        sessions.iter().map(entry).collect()
    }

    /// Tells of what a node refused.
    async fn refused_on_record(&self, at: &mut At<'_>) -> Vec<Entry> {
        let address = at.node.address();
        let record = at.link.ask::<Value>(redis::cmd("ACL").arg("LOG").arg(RECORD)).await;
        match record {
            Ok(record) => refused(&record, &self.config.user, at.now)
                .into_iter()
                .map(|entry| Entry { what: format!("at `{address}`: {}", entry.what), ..entry })
                .collect(),
            Err(trouble) => vec![Entry::untimed(format!(
                "what was refused at `{address}` could not be read: {}; that takes `+acl|log`",
                trouble.in_words(at.node)
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

    /// The sessions of the user at a node.
    pub(super) async fn sessions(&self, at: &mut At<'_>) -> Result<Vec<Session>, CallError> {
        let asked = at.link.ask(redis::cmd("CLIENT").arg("LIST")).await;
        let list: String = asked.map_err(|trouble| trouble.refusal(TARGET, at.node))?;
        let user = self.config.user.as_str();
        let of_user = |line: &&str| property(line, "user") == Some(user);
        Ok(list.lines().filter(of_user).filter_map(|line| Session::read(line, at.now)).collect())
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
    /// Reads a line of `CLIENT LIST`.
    pub(super) fn read(line: &str, now: Timestamp) -> Option<Self> {
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
        let name = if self.name.is_empty() { String::new() } else { format!(" ({})", self.name) };
        format!("{}{name} for {}", self.address, self.age)
    }
}

/// Reads one property of a line such as `id=7 addr=127.0.0.1:4242 name= …`.
pub(super) fn property<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// What a node's record says was refused to a user: logins, and what the user may not do.
fn refused(record: &Value, user: &str, now: Timestamp) -> Vec<Entry> {
    let Value::Array(entries) = record else { return Vec::new() };
    let of_user = |entry: &Value| {
        let entry: std::collections::BTreeMap<String, String> =
            redis::from_redis_value(entry.clone()).ok()?;
        let value = |name: &str| entry.get(name).map(String::as_str);
        if value("username") != Some(user) {
            return None;
        }
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
        let name = property(client, "name").filter(|name| !name.is_empty());
        let name = name.map(|name| format!(" ({name})")).unwrap_or_default();
        let times = value("count").unwrap_or("1");
        Some(Entry {
            at: Some(Timestamp::from_millis(now.millis() - (age * 1_000.0) as i64)),
            what: format!("{times} {what}, the last from {from}{name}"),
        })
    };
    entries.iter().filter_map(of_user).collect()
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
    use crate::redis::Trouble;

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
    async fn what_the_user_may_not_do_is_on_record_and_a_session_is_told_from_later_ones() {
        let Some(world) = World::start(1) else { return };
        let issuer = world.issuer();
        let mut before = world.link(0, "app", &world.first).await.unwrap();
        let denied = before.ask::<Value>(redis::cmd("CONFIG").arg("GET").arg("*")).await;
        assert!(matches!(denied, Err(Trouble::Said("NOPERM"))));
        let id = mint(&*issuer, "kw-1-1", &canary("redis-second"), None).await.unwrap();
        let _later = world.link(0, "app", &world.first).await.unwrap();
        let of_former = told(&*issuer, &IssuedId::new("keywheel-before@app")).await;
        assert_eq!(of_former.matches("; older than the next version\n").count(), 1, "{of_former}");
        assert_eq!(of_former.matches("still open").count(), 2, "{of_former}");
        assert!(of_former.contains("1 refused calls of `config|get` by `app`, the last from 127."));
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
        let mut less = redis::cmd("ACL");
        less.arg("SETUSER").arg("keywheel").arg("-acl|log");
        admin.ask::<()>(&less).await.unwrap();
        let without_log = told(&*issuer, &id).await;
        assert!(without_log.contains("that takes `+acl|log`"), "{without_log}");
        assert!(without_log.contains("still open"), "{without_log}");
        let gone = format!("node `127.0.0.1:{}` could not be read: ", world.nodes[1].port());
        drop(world.nodes.remove(1));
        let one_left = told(&*issuer, &id).await;
        assert!(one_left.contains(&gone) && one_left.contains("still open"), "{one_left}");
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
