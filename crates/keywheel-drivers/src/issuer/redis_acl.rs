//! `redis_acl`: passwords of one user of Redis' access control lists, on every node.
//!
//! A user may have several passwords at once, and Redis keeps the SHA-256 of each: only that is ever sent for a password of
//! ours, so no log, no `MONITOR` and no file of the server holds one. Redis keeps no name with a password. Each version is
//! therefore kept once more as a user of its own that is off and may do nothing, called `<label>@<user>`: the name is the
//! issued id, and the hash that it carries says which password is meant, also while that is suspended (H92). It lists what
//! keywheel made, and nothing else is ever ended.
//!
//! Every node has users of its own. A change is made on all of them and kept by each, in its ACL file or its configuration;
//! where a node cannot be reached, nothing begins, but for a revoke, which ends what it can and says where it could not.
//!
//! Redis does not tell with which password a session logged in. Those that are older than the next version are surely of a
//! former one; they end with it (H66), some at a time (H78). Of later ones nothing can be told, and an emergency ends all.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration as Pause;

use async_trait::async_trait;
use futures_util::future::join_all;
use keywheel_core::facts::{Authority, IssuerFacts, LastUsedFacts, Observe, ValueOrigin};
use keywheel_core::plan::Label;
use keywheel_core::planted;
use keywheel_core::secret::{Credential, Field, SecretValue};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{
    Audit, Entry, Identity, Issuer, LastUsed, Live, Mint, Minted, Randomness, Suspend, Usage,
    Verdict,
};
use keywheel_driver::{CallError, Duration, Finding, Refusal, RefusalKind, SecretReference};
use redis::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::random;
use crate::api::plain;
use crate::redis::{Link, Login, Node, Trouble, field};
use crate::{Build, Context, reference};

const TARGET: &str = "issuer `redis_acl`";

/// The random characters of a password, of 6 bits each.
const LENGTH: u16 = 43;

/// Carries the hash of the password that was there before keywheel came, and none once that is gone.
const BEFORE: &str = "keywheel-before";

/// What the pattern begins with that says when a version was made; a user who is off reaches nothing by it.
const MADE: &str = "~keywheel:";

/// How many sessions end at once, and how long their clients are given to come back.
const BATCH: usize = 20;
const PAUSE: Pause = Pause::from_millis(100);

/// How often sessions are looked at again before the rest is left to the next try.
const ROUNDS: usize = 10_000;

/// How many refused logins the record of a node is asked for; Redis keeps 128 unless told.
const RECORD: usize = 1_024;

/// A user of Redis (6 or later) with two live passwords.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Every node that the user logs in to, as `host:port`: primaries and replicas.
    pub nodes: Vec<String>,
    /// The user whose password is rotated.
    pub user: String,
    /// Who changes it: another user, with the rights for `ACL`, `CLIENT`, `CONFIG` and `INFO`.
    pub admin: Admin,
    /// Whether connections are secured by TLS: where it does not say, those to other machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    /// A file with the certificates of those who may sign the servers', instead of whom this machine trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Whether there are nodes that are not listed, on purpose: nobody logs in to them as this user.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub other_nodes: bool,
    /// How long a node may take for one answer.
    #[serde(default = "seconds::<5>")]
    pub within: Duration,
    /// How long a call without an answer can still take effect.
    #[serde(default = "seconds::<60>")]
    pub settle_for: Duration,
}

/// Who changes the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// Its name.
    #[serde(default = "default_admin")]
    pub user: String,
    /// Where its password is read.
    pub password: SecretReference,
}

fn default_admin() -> String {
    "default".into()
}

fn seconds<const N: u64>() -> Duration {
    Span::seconds(N).into()
}

impl Build for Config {
    type Driver = dyn Issuer;

    fn build(&self, context: &Context) -> Result<Arc<dyn Issuer>, Refusal> {
        let is_name = |name: &str| {
            let is_odd = |c: char| c.is_whitespace() || c.is_control() || c == '@';
            !name.is_empty() && !name.chars().any(is_odd)
        };
        if !is_name(&self.user) || !is_name(&self.admin.user) {
            return Err(unsupported("a user's name is not empty, and holds no space and no `@`"));
        }
        if self.user == self.admin.user && !planted!("admin_ends_itself") {
            return Err(unsupported(
                "`admin` is the user whose password is rotated, and would lock itself out; give keywheel a user of its own",
            ));
        }
        if self.nodes.is_empty() {
            return Err(unsupported("`nodes` is empty"));
        }
        let ca = self.ca.as_ref().map(|ca| context.root.join(ca));
        let within = self.within.span();
        let node = |address: &String| Node::new(address, self.tls, ca.as_deref(), within);
        let nodes = self.nodes.iter().map(node).collect::<Result<_, _>>()?;
        let password = reference::from_root(&self.admin.password, context);
        let admin = Admin { password, ..self.admin.clone() };
        Ok(Arc::new(RedisAcl { nodes, config: Self { admin, ..self.clone() } }))
    }
}

struct RedisAcl {
    config: Config,
    nodes: Vec<Node>,
}

#[async_trait]
impl Issuer for RedisAcl {
    fn facts(&self) -> IssuerFacts {
        IssuerFacts {
            label: true,
            settable_old_value: true,
            suspend: true,
            destroy: true,
            last_used: Some(LastUsedFacts { lag: Span::ZERO, granularity: Span::seconds(1) }),
            propagation: Span::ZERO,
            settle_for: self.config.settle_for.span(),
            told_in_use: true,
            ..IssuerFacts::new(ValueOrigin::Ours, Observe::Label, Authority::Issuer)
        }
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        let mut nodes = Vec::new();
        for (node, asked) in self.wherever().await? {
            match asked {
                Ok(asked) => nodes.push(asked),
                Err(trouble @ Trouble::Said("WRONGPASS" | "NOAUTH" | "NOPERM")) => {
                    let admin = &self.config.admin.user;
                    let words = trouble.in_words(node);
                    return Ok(vec![Finding::blocks(format!(
                        "the admin user `{admin}` is not accepted, or may not do what is needed: {words}"
                    ))]);
                }
                Err(trouble) => return Err(trouble.refusal(TARGET, node).into()),
            }
        }
        let mut findings = Vec::new();
        for at in &mut nodes {
            findings.extend(self.examine(at).await?);
        }
        findings.extend(self.differences(&nodes));
        if !self.config.other_nodes {
            findings.extend(missing_nodes(&nodes));
        }
        Ok(findings)
    }

    fn generate(&self, random: Randomness<'_>, _previous: Option<&IssuedId>) -> Option<Credential> {
        let user = SecretValue::new(self.config.user.clone().into_bytes());
        let password = random::characters(LENGTH, random);
        Some(Credential::default().with(username(), user).with(Field::new("password"), password))
    }

    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        let value = request.value.ok_or_else(|| unsupported("the value is not there"))?;
        let password = self.password(value)?;
        let hash = hash(password);
        let rule = match planted!("password_sent_in_the_clear") {
            true => format!(">{}", String::from_utf8_lossy(password.expose())),
            false => format!("#{hash}"),
        };
        let id = format!("{}@{}", request.label.0, self.config.user);
        let mut nodes = self.everywhere().await?;
        for at in &nodes {
            self.account(at)?;
            if at.persistence == Persistence::None {
                return Err(unsupported(&forgets(at.node)).into());
            }
        }
        let before = request.previous.filter(|previous| previous.id == self.before());
        let before = before.and_then(|_| self.note_of_before(&nodes, request.in_use));
        for index in 0..nodes.len() {
            let added = self.add(&mut nodes[index], &id, (&rule, &hash), before.as_ref()).await;
            if let Err(trouble) = added {
                return Err(self.take_back(&mut nodes[..=index], &id, &trouble).await);
            }
        }
        Ok(Minted { issued: Some(IssuedId::new(id)), ..Minted::default() })
    }

    /// Accepted or refused where every node says so. `NOAUTH`, `NOPERM` and a node that is loading or gone prove nothing.
    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        let password = self.password(credential)?;
        let login = Login { user: Some(&self.config.user), password };
        let tries = self.nodes.iter().map(|node| node.log_in(Some(&login)));
        let asked = self.nodes.iter().zip(join_all(tries).await);
        let asked: Vec<_> = asked.map(|(node, tried)| (node, tried.map(drop))).collect();
        Ok(verdict(&asked))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Live>, CallError> {
        let nodes = self.everywhere().await?;
        let before = self.before();
        let mut live: Vec<Live> = Vec::new();
        for marker in nodes.iter().flat_map(|at| &at.acl.markers) {
            let label = marker.id.rsplit_once('@').map_or("", |(label, _)| label);
            let label = (marker.id != before).then(|| Label(label.into()));
            let begins = label.as_ref().map_or("", |label| &label.0).starts_with(prefix);
            if begins && live.iter().all(|known| known.issued.id != marker.id) {
                live.push(Live { issued: IssuedId::new(marker.id.clone()), label });
            }
        }
        Ok(live)
    }

    /// A mint that was broken off reached some nodes only, or was not saved by the last one.
    async fn confirm(&self, id: &IssuedId) -> Result<bool, CallError> {
        let id = self.own(id)?;
        let mut nodes = self.everywhere().await?;
        let has_it = |at: &At<'_>| {
            let marker = at.acl.marker(id);
            marker.zip(at.acl.account.as_ref()).is_some_and(|(one, user)| user.has(&one.hash))
        };
        if !nodes.iter().all(has_it) && !planted!("half_made_mint_is_taken") {
            return Ok(false);
        }
        for at in &mut nodes {
            at.persist().await.map_err(|trouble| trouble.of_change(TARGET, at.node))?;
        }
        Ok(true)
    }

    /// Ends what can be reached, and says where it could not: a password that leaked is better gone from most nodes than from none.
    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError> {
        let id = self.own(id)?;
        let (mut nodes, mut left) = (Vec::new(), Vec::new());
        for (node, asked) in self.wherever().await? {
            match asked {
                Ok(asked) => nodes.push(asked),
                Err(trouble) => left.push((node, trouble)),
            }
        }
        if let ([], [(node, trouble), ..]) = (nodes.as_slice(), left.as_slice()) {
            return Err(trouble.refusal(TARGET, node).into());
        }
        self.end(&mut nodes, id, End::Revoke).await?;
        match left.first() {
            None if id == self.before() => self.forget_before(&mut nodes).await,
            None => Ok(()),
            Some((node, trouble)) => {
                let done = addresses(nodes.iter().map(|at| at.node));
                let words = trouble.in_words(node);
                Err(CallError::Unknown(format!("{TARGET}: ended on {done} only; {words}")))
            }
        }
    }

    async fn identify(&self, credential: &Credential) -> Result<Identity, CallError> {
        let hash = hash(self.password(credential)?);
        let nodes = self.everywhere().await?;
        let marker =
            |at: &At<'_>| at.acl.markers.iter().find(|marker| marker.hash == hash).cloned();
        if let Some(marker) = nodes.iter().find_map(marker) {
            return Ok(Identity::Known {
                how: "keywheel made it, and keeps its hash under this name".into(),
                created_at: Some(marker.made_at).filter(|at| at.millis() > 0),
                issued: IssuedId::new(marker.id),
            });
        }
        let before = self.before();
        let held = |at: &At<'_>| at.acl.account.as_ref().is_some_and(|user| user.has(&hash));
        let is_free = nodes.iter().all(|at| at.acl.marker(&before).is_none());
        Ok(if is_free && nodes.iter().any(held) {
            Identity::Known {
                issued: IssuedId::new(before),
                how: "Redis accepts it, and keywheel did not make it".into(),
                created_at: None,
            }
        } else {
            Identity::Unknown
        })
    }

    fn suspend(&self) -> Option<&dyn Suspend> {
        Some(self)
    }

    fn usage(&self) -> Option<&dyn Usage> {
        Some(self)
    }

    fn audit(&self) -> Option<&dyn Audit> {
        Some(self)
    }

    async fn end_sessions(&self, id: &IssuedId) -> Result<(), CallError> {
        self.own(id)?;
        let mut nodes = self.everywhere().await?;
        for at in &mut nodes {
            let own = at.link.ask(redis::cmd("CLIENT").arg("ID")).await;
            let own = own.map_err(|trouble| trouble.refusal(TARGET, at.node))?;
            self.end_sessions_before(at, own).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Suspend for RedisAcl {
    async fn suspend(&self, id: &IssuedId) -> Result<(), CallError> {
        let id = self.own(id)?;
        let mut nodes = self.everywhere().await?;
        self.end(&mut nodes, id, End::Suspend).await
    }

    async fn resume(&self, id: &IssuedId) -> Result<(), CallError> {
        let id = self.own(id)?;
        let mut nodes = self.everywhere().await?;
        let kept = |at: &At<'_>| at.acl.marker(id).map(|marker| marker.hash.clone());
        let hash = nodes.iter().find_map(kept).ok_or_else(|| {
            Refusal::operator(RefusalKind::NotFound, format!("{TARGET} keeps no `{id}`"))
        })?;
        let mut done = Vec::new();
        for at in &mut nodes {
            let question = acl_setuser(&self.config.user).arg(format!("#{hash}")).clone();
            let set = at.link.ask::<()>(&question).await.map_err(Stopped::Before);
            let set = match set {
                Ok(()) => at.persist().await.map_err(Stopped::Saving),
                stopped => stopped,
            };
            set.map_err(|stopped| half_done("accepted again", &done, at.node, stopped))?;
            done.push(at.node);
        }
        Ok(())
    }
}

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

/// How a version ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Its name is kept, and with it the way back.
    Suspend,
    /// For good.
    Revoke,
}

/// What is asked of one node, and what it said at first.
struct At<'a> {
    node: &'a Node,
    link: Link,
    acl: Acl,
    info: String,
    persistence: Persistence,
    now: Timestamp,
}

/// Where a node keeps its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Persistence {
    /// In a file of their own.
    AclFile,
    /// In its configuration.
    Configuration,
    /// In its memory.
    None,
}

impl RedisAcl {
    fn before(&self) -> String {
        format!("{BEFORE}@{}", self.config.user)
    }

    /// Takes an id for one of this user, or refuses it.
    fn own<'i>(&self, id: &'i IssuedId) -> Result<&'i str, Refusal> {
        let user = id.id.rsplit_once('@').map(|(_, user)| user);
        if user == Some(&self.config.user) || planted!("id_of_another_user_taken") {
            Ok(&id.id)
        } else {
            Err(unsupported(&format!(
                "the issued id is not `<label>@{}`, and nothing was ended",
                self.config.user
            )))
        }
    }

    /// Returns the password of a credential of this user.
    fn password<'c>(&self, credential: &'c Credential) -> Result<&'c SecretValue, Refusal> {
        if let Some(name) = credential.field(&username())
            && name.expose() != self.config.user.as_bytes()
        {
            return Err(unsupported(&format!(
                "the credential is of another user than `{}`",
                self.config.user
            )));
        }
        let password = credential.field(&Field::new("password")).or(credential.value());
        password.ok_or_else(|| unsupported("the credential has no field `password`"))
    }

    /// Asks every node for what it keeps.
    async fn wherever(&self) -> Result<Vec<(&Node, Result<At<'_>, Trouble>)>, Refusal> {
        let password = reference::read(&self.config.admin.password).await?;
        let login = Login { user: Some(&self.config.admin.user), password: &password };
        let asked = join_all(self.nodes.iter().map(|node| self.look(node, &login))).await;
        Ok(self.nodes.iter().zip(asked).collect())
    }

    /// The same, where one node that gives no answer is reason enough to begin nothing.
    async fn everywhere(&self) -> Result<Vec<At<'_>>, CallError> {
        let mut nodes = Vec::new();
        for (node, asked) in self.wherever().await? {
            match asked {
                Ok(asked) => nodes.push(asked),
                Err(_) if planted!("nodes_that_are_down_left_out") => {}
                Err(trouble) => return Err(trouble.refusal(TARGET, node).into()),
            }
        }
        Ok(nodes)
    }

    async fn look<'a>(&self, node: &'a Node, login: &Login<'_>) -> Result<At<'a>, Trouble> {
        let mut link = node.log_in(Some(login)).await?;
        let (seconds, micros): (i64, i64) = link.ask(&redis::cmd("TIME")).await?;
        let lines: Vec<String> = link.ask(redis::cmd("ACL").arg("LIST")).await?;
        let info: String = link.ask(&redis::cmd("INFO")).await?;
        let file: Vec<String> = link.ask(redis::cmd("CONFIG").arg("GET").arg("aclfile")).await?;
        let persistence = match (file.get(1).map(String::as_str), field(&info, "config_file")) {
            (Some(file), _) if !file.is_empty() => Persistence::AclFile,
            (_, Some(file)) if !file.is_empty() => Persistence::Configuration,
            _ => Persistence::None,
        };
        let acl = Acl::read(&lines, &self.config.user);
        let now = Timestamp::from_millis(seconds * 1_000 + micros / 1_000);
        Ok(At { node, link, acl, info, persistence, now })
    }

    fn account<'a>(&self, at: &'a At<'_>) -> Result<&'a Account, Refusal> {
        let absent = || {
            let address = at.node.address();
            let user = &self.config.user;
            Refusal::operator(
                RefusalKind::NotFound,
                format!("{TARGET}: node `{address}` has no user `{user}`"),
            )
        };
        at.acl.account.as_ref().ok_or_else(absent)
    }

    /// Looks at what one node says of itself and of the user.
    async fn examine(&self, at: &mut At<'_>) -> Result<Vec<Finding>, CallError> {
        let user = &self.config.user;
        let address = at.node.address();
        let mut findings = Vec::new();
        let Some(account) = &at.acl.account else {
            return Ok(vec![Finding::blocks(format!("node `{address}` has no user `{user}`"))]);
        };
        if account.any_password {
            findings.push(Finding::blocks(format!(
                "node `{address}` lets `{user}` log in with any password (`nopass`)"
            )));
        }
        if !account.on {
            findings.push(Finding::blocks(format!("user `{user}` is off at node `{address}`")));
        }
        if at.acl.open {
            findings.push(Finding::note(format!(
                "node `{address}` needs no password of whoever logs in as `default`"
            )));
        }
        match at.persistence {
            Persistence::None => findings.push(Finding::blocks(forgets(at.node))),
            Persistence::Configuration if user == "default" => findings.push(Finding::blocks(format!(
                "`requirepass` at node `{address}` is a password of `default` too; keep users in a file (`aclfile`), or rotate another user"
            ))),
            Persistence::Configuration => findings.push(Finding::note(format!(
                "node `{address}` keeps users in its configuration, which `CONFIG REWRITE` writes as a whole"
            ))),
            Persistence::AclFile => {}
        }
        findings.extend(self.replication(at).await?);
        findings.extend(self.rights(at).await?);
        Ok(findings)
    }

    /// A replica that logs in to its primary as this user would be cut off with the former password.
    async fn replication(&self, at: &mut At<'_>) -> Result<Option<Finding>, CallError> {
        if field(&at.info, "role") != Some("slave") {
            return Ok(None);
        }
        let asked = at.link.ask(redis::cmd("CONFIG").arg("GET").arg("masteruser")).await;
        let asked: Vec<String> = asked.map_err(|trouble| trouble.refusal(TARGET, at.node))?;
        let user = asked.get(1).map(String::as_str).filter(|user| !user.is_empty());
        let is_same = user.unwrap_or("default") == self.config.user;
        Ok(is_same.then(|| {
            Finding::blocks(format!(
                "node `{}` is fed by its primary as `{}` (`masteruser`); give replication a user of its own",
                at.node.address(),
                self.config.user
            ))
        }))
    }

    /// Asks whether the admin may do what a rotation does, where the server can be asked (Redis 7).
    async fn rights(&self, at: &mut At<'_>) -> Result<Vec<Finding>, CallError> {
        let persist = match at.persistence {
            Persistence::AclFile => ["ACL", "SAVE"],
            _ => ["CONFIG", "REWRITE"],
        };
        let needed = [
            &["ACL", "SETUSER", "x"][..],
            &["ACL", "DELUSER", "x"],
            &["ACL", "LOG"],
            &persist,
            &["CLIENT", "LIST"],
            &["CLIENT", "KILL", "ID", "1"],
        ];
        let mut findings = Vec::new();
        for command in needed {
            let mut question = redis::cmd("ACL");
            question.arg("DRYRUN").arg(&self.config.admin.user).arg(command);
            match at.link.ask::<String>(&question).await {
                Ok(answer) if answer == "OK" => {}
                Ok(_) => findings.push(Finding::blocks(format!(
                    "the admin user `{}` may not call `{} {}` at node `{}`",
                    self.config.admin.user,
                    command[0],
                    command[1],
                    at.node.address()
                ))),
                Err(Trouble::Said(_)) => break,
                Err(trouble) => return Err(trouble.refusal(TARGET, at.node).into()),
            }
        }
        Ok(findings)
    }

    /// What nodes say differently of the user, and which passwords nobody labelled.
    fn differences(&self, nodes: &[At<'_>]) -> Vec<Finding> {
        let user = &self.config.user;
        let mut findings = Vec::new();
        let accounts: Vec<_> =
            nodes.iter().filter_map(|at| Some((at, at.acl.account.as_ref()?))).collect();
        let Some((first, known)) = accounts.first() else { return findings };
        for (at, account) in &accounts[1..] {
            let (one, other) = (first.node.address(), at.node.address());
            if account.rules != known.rules {
                findings.push(Finding::note(format!(
                    "`{user}` may do other things at node `{other}` than at `{one}`"
                )));
            }
            if account.hashes != known.hashes {
                findings.push(Finding::note(format!(
                    "`{user}` has other passwords at node `{other}` ({}) than at `{one}` ({})",
                    account.hashes.len(),
                    known.hashes.len()
                )));
            }
        }
        let by_hand = first.acl.by_hand().len();
        if by_hand > 1 {
            findings.push(Finding::note(format!(
                "`{user}` has {by_hand} passwords that keywheel did not make; only the one that the stores hold is ended"
            )));
        }
        findings
    }

    /// What nodes keep of the password that was there before keywheel came: the hash of the credential in use, or that it is
    /// gone where no node has that. Where nobody told it, the only one by hand.
    fn note_of_before(&self, nodes: &[At<'_>], in_use: Option<&Credential>) -> Option<redis::Cmd> {
        let before = self.before();
        if nodes.iter().any(|at| at.acl.marker(&before).is_some()) {
            return None;
        }
        let password = in_use.and_then(|credential| self.password(credential).ok());
        let is_held = |hash: &str| nodes.iter().any(|at| at.acl.by_hand().contains(&hash));
        match password.map(hash) {
            Some(hash) if is_held(&hash) => Some(marked_before(&before, &hash)),
            Some(_) if !planted!("another_password_taken_for_the_one_in_use") => {
                Some(marked_gone(&before))
            }
            _ => Some(marked_before(&before, &self.guess_before(nodes).ok().flatten()?)),
        }
    }

    /// The one password by hand, where keywheel made none yet and ended none by this name; a refusal where it may be another one.
    fn guess_before(&self, nodes: &[At<'_>]) -> Result<Option<String>, Refusal> {
        let is_gone = nodes.iter().any(|at| at.acl.before_is_gone);
        if is_gone && !planted!("another_password_ended_by_a_repeated_revoke") {
            return Ok(None);
        }
        let mut found: Vec<&str> = nodes.iter().flat_map(|at| at.acl.by_hand()).collect();
        found.sort_unstable();
        found.dedup();
        let is_first = is_gone || nodes.iter().all(|at| at.acl.markers.is_empty());
        match found.as_slice() {
            [] => Ok(None),
            [only] if is_first => Ok(Some((*only).to_owned())),
            [first, ..] if planted!("any_password_by_hand_is_meant") => Ok(Some((*first).into())),
            found => Err(unsupported(&format!(
                "`{user}` has {} that keywheel did not make, and which one is meant, if any, is not known; remove it with `ACL SETUSER {user} !<hash>`",
                counted(found.len(), "password"),
                user = self.config.user
            ))),
        }
    }

    /// Adds a password and its name in one step, and lets the node keep both.
    async fn add(
        &self,
        at: &mut At<'_>,
        id: &str,
        (rule, hash): (&str, &str),
        before: Option<&redis::Cmd>,
    ) -> Result<(), Trouble> {
        let own: i64 = at.link.ask(redis::cmd("CLIENT").arg("ID")).await?;
        let run = field(&at.info, "run_id").unwrap_or_default().to_owned();
        let made = format!("{MADE}{}:{run}:{own}", at.now.millis());
        let mut together = redis::pipe();
        let user = acl_setuser(&self.config.user).arg(rule).clone();
        let marker =
            acl_setuser(id).arg(&["reset", "off"]).arg(format!("#{hash}")).arg(made).clone();
        together.add_command(user).ignore().add_command(marker).ignore();
        if let Some(before) = before {
            together.add_command(before.clone()).ignore();
        }
        at.link.together::<()>(&mut together).await?;
        at.persist().await
    }

    /// Takes a mint back that a node refused. Where all of them took it back, nothing was done.
    async fn take_back(&self, nodes: &mut [At<'_>], id: &str, trouble: &Trouble) -> CallError {
        let (failed, done) = nodes.split_last_mut().expect("a node failed");
        let error = trouble.of_change(TARGET, failed.node);
        if matches!(error, CallError::Unknown(_)) {
            return error;
        }
        let mut kept = failed.forget(&self.config.user, id).await.is_err();
        for at in done {
            let cleared = at.forget(&self.config.user, id).await;
            let kept_here = match cleared {
                Ok(()) => at.persist().await.is_err(),
                Err(_) => true,
            };
            kept |= kept_here;
        }
        match error {
            CallError::Refused(refusal) if !kept => {
                let message = format!("{}; no node has the new password", refusal.message);
                Refusal { message, ..refusal }.into()
            }
            error => CallError::Unknown(error.to_string()),
        }
    }

    /// Ends a version on these nodes: the hash that its name carries goes, then the sessions that are surely of it or older.
    async fn end(&self, nodes: &mut [At<'_>], id: &str, end: End) -> Result<(), CallError> {
        nodes.iter().try_for_each(|at| self.account(at).map(drop))?;
        // A node that lost the name, and not the password, is told by another one which password that is.
        let kept = nodes.iter().find_map(|at| at.acl.marker(id));
        let victim = match kept.map(|marker| marker.hash.clone()) {
            None if id == self.before() => self.guess_before(nodes)?,
            kept => kept,
        };
        let mut done = Vec::new();
        for at in nodes.iter_mut() {
            let ended = self.end_at(at, id, victim.as_deref(), end).await;
            ended.map_err(|stopped| half_done("ended", &done, at.node, stopped))?;
            done.push(at.node);
        }
        Ok(())
    }

    async fn end_at(
        &self,
        at: &mut At<'_>,
        id: &str,
        victim: Option<&str>,
        end: End,
    ) -> Result<(), Stopped> {
        let account = at.acl.account.as_ref().expect("its presence was checked");
        let mut together = redis::pipe();
        let is_marked = at.acl.marker(id).is_some();
        let victim = victim.filter(|hash| is_marked || account.has(hash));
        if let Some(hash) = victim.filter(|_| !is_marked) {
            together.add_command(marked_before(id, hash)).ignore();
        }
        if planted!("every_password_ended") {
            together.add_command(acl_setuser(&self.config.user).arg("resetpass").clone()).ignore();
        } else if let Some(hash) =
            victim.filter(|hash| account.has(hash) || planted!("gone_password_is_a_failure"))
        {
            let remove = acl_setuser(&self.config.user).arg(format!("!{hash}")).clone();
            together.add_command(remove).ignore();
        }
        if together.cmd_iter().next().is_some() {
            at.link.together::<()>(&mut together).await.map_err(Stopped::Before)?;
        }
        // Also where nothing was left to remove: the try before may have failed at this.
        at.persist().await.map_err(Stopped::Saving)?;
        if let Some(mark) = at.mark_of_next(id)
            && !planted!("sessions_outlive_their_password")
        {
            let ended = self.end_sessions_before(at, mark).await;
            ended.map_err(|error| Stopped::Sessions(error.to_string()))?;
        }
        let is_kept = is_marked || victim.is_some();
        if end == End::Revoke && is_kept && id != self.before() {
            at.keep(&acl_deluser(id)).await.map_err(Stopped::Saving)?;
        }
        Ok(())
    }

    /// Nobody could tell a second time which password was there before. Its hash is kept until every node ended it, and from
    /// then on that it is gone.
    async fn forget_before(&self, nodes: &mut [At<'_>]) -> Result<(), CallError> {
        for at in nodes {
            let kept = at.keep(&marked_gone(&self.before())).await;
            kept.map_err(|trouble| half_done("ended", &[], at.node, Stopped::Saving(trouble)))?;
        }
        Ok(())
    }

    /// Ends the user's sessions that were opened before the client with this number, some at a time, until none is left.
    async fn end_sessions_before(&self, at: &mut At<'_>, mark: i64) -> Result<(), CallError> {
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
    async fn sessions(&self, at: &mut At<'_>) -> Result<Vec<Session>, CallError> {
        let asked = at.link.ask(redis::cmd("CLIENT").arg("LIST")).await;
        let list: String = asked.map_err(|trouble| trouble.refusal(TARGET, at.node))?;
        let user = self.config.user.as_str();
        let of_user = |line: &&str| property(line, "user") == Some(user);
        Ok(list.lines().filter(of_user).filter_map(|line| Session::read(line, at.now)).collect())
    }
}

/// Where a change of one node stopped.
enum Stopped {
    /// It did not take the change.
    Before(Trouble),
    /// It took the change, and did not save it.
    Saving(Trouble),
    /// Sessions are left, in words.
    Sessions(String),
}

impl At<'_> {
    /// Writes the users to where the node reads them when it starts.
    async fn persist(&mut self) -> Result<(), Trouble> {
        if planted!("users_not_saved") {
            return Ok(());
        }
        match self.persistence {
            Persistence::AclFile => self.link.ask(redis::cmd("ACL").arg("SAVE")).await,
            Persistence::Configuration => self.link.ask(redis::cmd("CONFIG").arg("REWRITE")).await,
            Persistence::None => Ok(()),
        }
    }

    /// Makes a change, and saves it.
    async fn keep(&mut self, change: &redis::Cmd) -> Result<(), Trouble> {
        self.link.ask::<()>(change).await?;
        self.persist().await
    }

    /// Makes the node forget a mint, whatever came of it.
    async fn forget(&mut self, user: &str, id: &str) -> Result<(), Trouble> {
        let lines: Vec<String> = self.link.ask(redis::cmd("ACL").arg("LIST")).await?;
        let acl = Acl::read(&lines, user);
        let Some(marker) = acl.marker(id) else { return Ok(()) };
        let mut together = redis::pipe();
        if acl.account.as_ref().is_some_and(|account| account.has(&marker.hash)) {
            let remove = acl_setuser(user).arg(format!("!{}", marker.hash)).clone();
            together.add_command(remove).ignore();
        }
        together.add_command(acl_deluser(id)).ignore();
        self.link.together(&mut together).await
    }

    /// The number of the client that made the version after this one. Sessions with lower numbers are older than it. None where
    /// there is none, or where the node was started since: then every session is younger.
    fn mark_of_next(&self, id: &str) -> Option<i64> {
        let own = self.acl.marker(id).map_or((Timestamp::from_millis(0), 0), Marker::order);
        let later =
            self.acl.markers.iter().filter(|marker| marker.id != id && marker.order() > own);
        let next = later.min_by_key(|marker| marker.order())?;
        (field(&self.info, "run_id") == Some(next.run.as_str())).then_some(next.client)
    }
}

/// What is kept of the user, and in its name.
#[derive(Default)]
struct Acl {
    account: Option<Account>,
    markers: Vec<Marker>,
    /// Whether the password that was there before keywheel came is known to be gone.
    before_is_gone: bool,
    /// Whether `default` is let in without a password.
    open: bool,
}

/// The user as `ACL LIST` shows it.
#[derive(Default)]
struct Account {
    on: bool,
    any_password: bool,
    hashes: Vec<String>,
    rules: String,
}

/// A version as it is kept.
#[derive(Clone)]
struct Marker {
    id: String,
    hash: String,
    made_at: Timestamp,
    /// The run of the server in which it was made, and the number of the client that did.
    run: String,
    client: i64,
}

impl Account {
    fn has(&self, hash: &str) -> bool {
        self.hashes.iter().any(|known| known == hash)
    }
}

impl Marker {
    fn order(&self) -> (Timestamp, i64) {
        (self.made_at, self.client)
    }

    fn read(id: &str, words: &[&str]) -> Option<Self> {
        let hash = words.iter().find_map(|word| word.strip_prefix('#'))?;
        let made = words.iter().find_map(|word| word.strip_prefix(MADE)).unwrap_or_default();
        let mut parts = made.split(':');
        let mut part = || parts.next().unwrap_or_default();
        let made_at = Timestamp::from_millis(part().parse().unwrap_or(0));
        let (run, client) = (part().to_owned(), part().parse().unwrap_or(0));
        Some(Self { id: id.into(), hash: hash.into(), made_at, run, client })
    }
}

impl Acl {
    /// Reads what `ACL LIST` says of one user: each line is `user <name> <word>…`.
    fn read(lines: &[String], user: &str) -> Self {
        let mut acl = Self::default();
        for line in lines {
            let mut words = line.split_whitespace().skip(1);
            let Some(name) = words.next() else { continue };
            let words: Vec<&str> = words.collect();
            let has = |word| words.contains(&word);
            if name == "default" {
                acl.open = has("on") && has("nopass");
            }
            if name == user {
                let is_rule = |word: &&&str| !word.starts_with('#');
                let rules: Vec<&str> = words.iter().filter(is_rule).copied().collect();
                let mut hashes: Vec<String> = words
                    .iter()
                    .filter_map(|word| word.strip_prefix('#').map(str::to_owned))
                    .collect();
                hashes.sort_unstable();
                acl.account = Some(Account {
                    on: has("on"),
                    any_password: has("nopass"),
                    hashes,
                    rules: rules.join(" "),
                });
            }
            let of_user = name.rsplit_once('@').is_some_and(|(_, of)| of == user);
            if of_user && has("off") && words.iter().any(|word| word.starts_with(MADE)) {
                let marker = Marker::read(name, &words);
                acl.before_is_gone |= marker.is_none() && name.starts_with(BEFORE);
                acl.markers.extend(marker);
            }
        }
        acl
    }

    fn marker(&self, id: &str) -> Option<&Marker> {
        self.markers.iter().find(|marker| marker.id == id)
    }

    /// The passwords that carry no name of ours.
    fn by_hand(&self) -> Vec<&str> {
        let hashes = self.account.iter().flat_map(|account| &account.hashes);
        let is_ours = |hash: &&String| self.markers.iter().any(|marker| marker.hash == **hash);
        hashes.filter(|hash| !is_ours(hash)).map(String::as_str).collect()
    }
}

/// An open session.
struct Session {
    id: i64,
    address: String,
    name: String,
    opened_at: Timestamp,
    age: Span,
}

impl Session {
    /// Reads a line of `CLIENT LIST`.
    fn read(line: &str, now: Timestamp) -> Option<Self> {
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

    fn in_words(&self) -> String {
        let name = if self.name.is_empty() { String::new() } else { format!(" ({})", self.name) };
        format!("{}{name} for {}", self.address, self.age)
    }
}

/// Reads one property of a line such as `id=7 addr=127.0.0.1:4242 name= …`.
fn property<'a>(line: &'a str, name: &str) -> Option<&'a str> {
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

/// Nodes that belong to those listed, and are not among them.
fn missing_nodes(nodes: &[At<'_>]) -> Vec<Finding> {
    let number = |at: &At<'_>, name| field(&at.info, name).and_then(|n| n.parse::<usize>().ok());
    let mut findings = Vec::new();
    let mut groups: Vec<&str> = Vec::new();
    // A replica that has lost its primary belongs to no group that could be counted.
    let is_linked = |at: &&At<'_>| field(&at.info, "master_link_status").unwrap_or("up") == "up";
    for at in nodes.iter().filter(is_linked) {
        let Some(group) = field(&at.info, "master_replid").filter(|group| !groups.contains(group))
        else {
            continue;
        };
        groups.push(group);
        let members = || nodes.iter().filter(|at| field(&at.info, "master_replid") == Some(group));
        let replicas: usize = members().filter_map(|at| number(at, "connected_slaves")).sum();
        let has_primary = members().any(|at| field(&at.info, "role") == Some("master"));
        let missing = match has_primary {
            true => (replicas + 1).saturating_sub(members().count()),
            false => 1,
        };
        if missing > 0 {
            let what = if has_primary { "replicas" } else { "primary" };
            findings.push(Finding::blocks(format!(
                "{missing} {what} of node `{}` not listed in `nodes`; each node has users of its own (`other_nodes: true` where nobody logs in to them)",
                at.node.address()
            )));
        }
    }
    findings
}

/// Accepted or refused, where all nodes agree.
fn verdict(asked: &[(&Node, Result<(), Trouble>)]) -> Verdict {
    let unknown = asked.iter().find_map(|(node, tried)| match tried {
        Err(trouble) if !trouble.is_wrong_password() && !planted!("any_error_is_refusal") => {
            Some(trouble.in_words(node))
        }
        _ => None,
    });
    let those = |accepting: bool| {
        let nodes = asked.iter().filter(|(_, tried)| tried.is_ok() == accepting);
        nodes.map(|(node, _)| *node).collect::<Vec<_>>()
    };
    let (accepting, refusing) = (those(true), those(false));
    match (unknown, accepting.is_empty(), refusing.is_empty()) {
        (Some(words), ..) => Verdict::CannotTell(words),
        (None, false, true) => Verdict::Accepted,
        (None, true, _) => Verdict::Refused,
        (None, false, false) if planted!("one_node_speaks_for_all") => Verdict::Refused,
        (None, false, false) => Verdict::CannotTell(format!(
            "{} accept it, and {} refuse it",
            addresses(accepting),
            addresses(refusing)
        )),
    }
}

/// What it means that a change stopped at a node, after these had made it.
fn half_done(what: &str, done: &[&Node], at: &Node, stopped: Stopped) -> CallError {
    let (words, changed) = match &stopped {
        Stopped::Before(trouble) => (trouble.in_words(at), false),
        Stopped::Saving(trouble) => {
            (format!("{}, and may forget it at its next start", trouble.in_words(at)), true)
        }
        Stopped::Sessions(words) => (words.clone(), true),
    };
    match (stopped, done) {
        (Stopped::Before(trouble), []) => trouble.of_change(TARGET, at),
        (_, []) => CallError::Unknown(format!("{TARGET}: {words}")),
        _ => {
            let done = addresses(done.iter().copied().chain(changed.then_some(at)));
            CallError::Unknown(format!("{TARGET}: {what} on {done} only; {words}"))
        }
    }
}

fn forgets(node: &Node) -> String {
    format!(
        "node `{}` keeps users in memory only: start it with an `aclfile`, or with a configuration file",
        node.address()
    )
}

fn addresses<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> String {
    let nodes = nodes.into_iter().map(|node| format!("`{}`", node.address()));
    nodes.collect::<Vec<_>>().join(", ")
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
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

fn acl_setuser(name: &str) -> redis::Cmd {
    redis::cmd("ACL").arg("SETUSER").arg(name).clone()
}

fn acl_deluser(name: &str) -> redis::Cmd {
    redis::cmd("ACL").arg("DELUSER").arg(name).clone()
}

fn marked_before(id: &str, hash: &str) -> redis::Cmd {
    marked_gone(id).arg(format!("#{hash}")).clone()
}

/// Keeps a name without a hash.
fn marked_gone(id: &str) -> redis::Cmd {
    acl_setuser(id).arg(&["reset", "off"]).arg(format!("{MADE}0")).clone()
}

fn hash(password: &SecretValue) -> String {
    hex::encode(Sha256::digest(password.expose()))
}

fn username() -> Field {
    Field::new("username")
}

fn unsupported(message: &str) -> Refusal {
    Refusal::operator(RefusalKind::Unsupported, message)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};

    use keywheel_driver::Severity;
    use keywheel_driver::conformance::canary;
    use keywheel_driver::conformance::issuer::{Subject, run};
    use keywheel_ground::redis::{Redis, Settings, Users};
    use serde_json::json;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// What the guide gives the admin.
    const ADMIN_RULES: &str = "resetkeys -@all +acl +client|list +client|kill +client|id +config|get +config|rewrite +info +time +multi +exec";

    /// Nodes with the users `keywheel`, `app` and `other`, and what is configured for them.
    struct World {
        nodes: Vec<Redis>,
        folder: TempDir,
        admin: String,
        first: String,
        other: String,
    }

    impl World {
        /// Returns none, and says why, where Redis cannot be had.
        fn start(nodes: usize) -> Option<Self> {
            Self::with(nodes, Users::File)
        }

        fn with(nodes: usize, users: Users) -> Option<Self> {
            let mut world = Self {
                nodes: Vec::new(),
                folder: TempDir::new().unwrap(),
                admin: canary("redis-admin"),
                first: canary("redis-first"),
                other: canary("redis-other"),
            };
            std::fs::write(world.folder.path().join("admin"), &world.admin).unwrap();
            for _ in 0..nodes {
                let settings = Settings { users, lines: world.lines(), ..Settings::default() };
                world.nodes.push(started(&settings)?);
            }
            Some(world)
        }

        fn lines(&self) -> Vec<String> {
            let line = |user: &str, password: &str, rules: &str| {
                format!("user {user} on #{} {rules}", hash(&of(password)))
            };
            vec![
                "user default off".to_owned(),
                line("keywheel", &self.admin, ADMIN_RULES),
                line("app", &self.first, "~* &* +@all -acl -config"),
                line("other", &self.other, "~* &* +@all"),
            ]
        }

        fn ports(&self) -> Vec<u16> {
            self.nodes.iter().map(Redis::port).collect()
        }

        fn issuer(&self) -> Arc<dyn Issuer> {
            self.issuer_at(&self.ports())
        }

        fn issuer_at(&self, ports: &[u16]) -> Arc<dyn Issuer> {
            self.build(json!({ "nodes": at(ports) })).unwrap_or_else(|e| panic!("{e}"))
        }

        fn build(&self, changes: serde_json::Value) -> Result<Arc<dyn Issuer>, Refusal> {
            let mut config = json!({
                "nodes": at(&self.ports()),
                "user": "app",
                "admin": { "user": "keywheel", "password": { "file": "admin" } },
                "within": "2s",
            });
            config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let config: Config = serde_json::from_value(config).unwrap();
            config.build(&Context::at(self.folder.path()))
        }

        async fn link(&self, node: usize, user: &str, password: &str) -> Result<Link, Trouble> {
            let address = format!("127.0.0.1:{}", self.nodes[node].port());
            let node = Node::new(&address, Some(false), None, Span::seconds(5)).unwrap();
            node.log_in(Some(&Login { user: Some(user), password: &of(password) })).await
        }

        /// Asks a node something as the admin.
        async fn ask<T: redis::FromRedisValue>(&self, node: usize, words: &[&str]) -> T {
            let mut link = self.link(node, "keywheel", &self.admin).await.unwrap();
            link.ask(redis::cmd(words[0]).arg(&words[1..])).await.unwrap()
        }

        /// The version in use, as a mint is told it.
        fn previous(&self) -> Option<(&str, &str)> {
            Some(("keywheel-before@app", &self.first))
        }

        async fn accepts(&self, node: usize, user: &str, password: &str) -> bool {
            self.link(node, user, password).await.is_ok()
        }

        async fn sessions(&self, node: usize) -> usize {
            let list: String = self.ask(node, &["CLIENT", "LIST"]).await;
            list.lines().filter(|line| property(line, "user") == Some("app")).count()
        }

        async fn blocks(&self, issuer: &dyn Issuer) -> Vec<String> {
            let findings = issuer.preflight().await.unwrap_or_else(|e| panic!("{e}"));
            let blocks = findings.into_iter().filter(|one| one.severity == Severity::Blocks);
            blocks.map(|finding| finding.message).collect()
        }
    }

    fn started(settings: &Settings) -> Option<Redis> {
        match Redis::start(settings) {
            Ok(redis) => Some(redis),
            Err(why) => {
                writeln!(std::io::stdout(), "skipped: Redis ({why})").unwrap();
                None
            }
        }
    }

    fn at(ports: &[u16]) -> Vec<String> {
        ports.iter().map(|port| format!("127.0.0.1:{port}")).collect()
    }

    fn of(password: &str) -> SecretValue {
        SecretValue::new(password.into())
    }

    fn login(password: &str) -> Credential {
        Credential::default().with(Field::new("password"), of(password))
    }

    /// Mints a version with a value that is known to the test.
    async fn mint(
        issuer: &dyn Issuer,
        label: &str,
        value: &str,
        previous: Option<(&str, &str)>,
    ) -> Result<IssuedId, CallError> {
        let (label, value) = (Label(label.into()), login(value));
        let id = previous.map(|(id, _)| IssuedId::new(id));
        let in_use = previous.map(|(_, value)| login(value));
        let request = Mint {
            value: Some(&value),
            previous: id.as_ref(),
            in_use: in_use.as_ref(),
            ..Mint::new(&label)
        };
        Ok(issuer.mint(&request).await?.issued.expect("a version has an id"))
    }

    /// What stands between keywheel and a node, and can lose an answer, or say something of its own.
    struct Relay {
        port: u16,
        loses: Arc<AtomicBool>,
        heard: Arc<std::sync::Mutex<Vec<u8>>>,
    }

    impl Relay {
        /// Passes everything on; once told to, it passes on the next question that adds a password, and no answer after it.
        async fn before(port: u16) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let relay = Self {
                port: listener.local_addr().unwrap().port(),
                loses: Arc::default(),
                heard: Arc::default(),
            };
            let (loses, heard) = (Arc::clone(&relay.loses), Arc::clone(&relay.heard));
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    let (loses, heard) = (Arc::clone(&loses), Arc::clone(&heard));
                    tokio::spawn(relayed(client, server, loses, heard));
                }
            });
            relay
        }
    }

    async fn relayed(
        client: TcpStream,
        server: TcpStream,
        loses: Arc<AtomicBool>,
        heard: Arc<std::sync::Mutex<Vec<u8>>>,
    ) {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let is_lost = Arc::new(AtomicBool::new(false));
        let lost = Arc::clone(&is_lost);
        let back = async move {
            let mut buffer = [0; 16_384];
            while let Ok(size @ 1..) = from_server.read(&mut buffer).await {
                if !lost.load(Ordering::SeqCst)
                    && to_client.write_all(&buffer[..size]).await.is_err()
                {
                    return;
                }
            }
        };
        let forth = async move {
            let mut buffer = [0; 16_384];
            while let Ok(size @ 1..) = from_client.read(&mut buffer).await {
                let text = String::from_utf8_lossy(&buffer[..size]);
                if text.contains("SETUSER") && loses.swap(false, Ordering::SeqCst) {
                    is_lost.store(true, Ordering::SeqCst);
                }
                heard.lock().unwrap().extend_from_slice(&buffer[..size]);
                if to_server.write_all(&buffer[..size]).await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(back, forth);
    }

    /// A server that answers every question with the same line, in which `<said>` is what it was sent.
    async fn answers_always(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut buffer = [0; 16_384];
                    while let Ok(size @ 1..) = client.read(&mut buffer).await {
                        let said = String::from_utf8_lossy(&buffer[..size]);
                        let said = said.replace("\r\n", " ");
                        let line = answer.replace("<said>", &said) + "\r\n";
                        if client.write_all(line.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        port
    }

    #[tokio::test]
    async fn the_issuer_keeps_its_contract() {
        let Some(world) = World::start(2) else { return };
        let relay = Relay::before(world.nodes[0].port()).await;
        let issuer = world.issuer_at(&[relay.port, world.nodes[1].port()]);
        let echo = answers_always("-<said>").await;
        let code = answers_always("-ERR <said>").await;
        let broken: Vec<_> = [1, echo, code].map(|port| world.issuer_at(&[port])).into();
        let broken: Vec<&dyn Issuer> = broken.iter().map(|issuer| &**issuer).collect();
        let loses = Arc::clone(&relay.loses);
        run(&Subject {
            issuer: &*issuer,
            prefix: "kw-suite-",
            garbage: &login(&canary("redis-garbage")),
            lose_next_answer: Some(&move || loses.store(true, Ordering::SeqCst)),
            broken: &broken,
            canaries: &[&login(&world.admin), &login(&world.first)],
        })
        .await;
        assert!(world.accepts(0, "app", &world.first).await, "what was there before stays");
    }

    #[tokio::test]
    async fn a_password_by_hand_gives_way_to_one_of_ours_on_every_node() {
        let Some(world) = World::start(2) else { return };
        let issuer = world.issuer();
        assert_eq!(world.blocks(&*issuer).await, Vec::<String>::new());
        let Ok(Identity::Known { issued: before, .. }) =
            issuer.identify(&login(&world.first)).await
        else {
            panic!("the password in use is not known")
        };
        let second = canary("redis-second");
        let previous = Some((before.id.as_str(), world.first.as_str()));
        let id = mint(&*issuer, "kw-4c1e9a-1", &second, previous).await.unwrap();
        assert_eq!(id.id, "kw-4c1e9a-1@app");
        let found = issuer.identify(&login(&second)).await.unwrap();
        assert!(matches!(found, Identity::Known { issued, .. } if issued == id));
        let accepted = async |password: &str| {
            (world.accepts(0, "app", password).await, world.accepts(1, "app", password).await)
        };
        assert_eq!(
            (accepted(&world.first).await, accepted(&second).await),
            ((true, true), (true, true))
        );

        let switch = issuer.suspend().unwrap();
        for _ in 0..2 {
            switch.suspend(&before).await.unwrap();
            assert_eq!(accepted(&world.first).await, (false, false));
        }
        for _ in 0..2 {
            switch.resume(&before).await.unwrap();
            assert_eq!(accepted(&world.first).await, (true, true));
        }
        switch.suspend(&before).await.unwrap();
        for _ in 0..2 {
            issuer.revoke(&before).await.unwrap();
            assert_eq!(
                (accepted(&world.first).await, accepted(&second).await),
                ((false, false), (true, true))
            );
        }
        let live = issuer.list("").await.unwrap();
        assert_eq!(live, [Live { issued: id, label: Some(Label("kw-4c1e9a-1".into())) }]);
        assert!(world.accepts(0, "other", &world.other).await);
        let gone = switch.resume(&before).await;
        assert!(matches!(gone, Err(CallError::Refused(r)) if r.kind == RefusalKind::NotFound));
    }

    #[test]
    fn the_guide_gives_the_admin_what_it_needs() {
        let guide = include_str!("../../../../docs/guide/redis.md");
        assert!(guide.contains(ADMIN_RULES));
    }

    #[tokio::test]
    async fn h96_what_is_gone_is_done_and_a_user_that_is_not_there_is_not() {
        let Some(world) = World::start(2) else { return };
        let issuer = world.issuer();
        let id = mint(&*issuer, "kw-1-1", &canary("redis-second"), None).await.unwrap();
        // Somebody took the password away by hand, and left its name.
        let marker: Vec<String> = world.ask(0, &["ACL", "LIST"]).await;
        let hash = Acl::read(&marker, "app").marker(&id.id).unwrap().hash.clone();
        let _: () = world.ask(0, &["ACL", "SETUSER", "app", &format!("!{hash}")]).await;
        for _ in 0..2 {
            assert_eq!(issuer.revoke(&id).await, Ok(()));
        }
        // One node lost the name, and not the password.
        let third = canary("redis-third");
        let id = mint(&*issuer, "kw-2-1", &third, None).await.unwrap();
        let _: () = world.ask(0, &["ACL", "DELUSER", &id.id]).await;
        assert_eq!(issuer.revoke(&id).await, Ok(()));
        assert!(!world.accepts(0, "app", &third).await && !world.accepts(1, "app", &third).await);
        assert_eq!(issuer.revoke(&IssuedId::new("kw-never-1@app")).await, Ok(()));
        let wrong = world.build(json!({ "user": "nobody" })).unwrap_or_else(|e| panic!("{e}"));
        let refused = wrong.revoke(&IssuedId::new("kw-1-1@nobody")).await;
        assert!(matches!(refused, Err(CallError::Refused(r)) if r.kind == RefusalKind::NotFound));
    }

    #[tokio::test]
    async fn h88_what_was_ended_stays_ended_after_a_restart() {
        for users in [Users::File, Users::Configuration] {
            let Some(mut world) = World::with(1, users) else { return };
            let issuer = world.issuer();
            let second = canary("redis-second");
            let id = mint(&*issuer, "kw-1-1", &second, world.previous()).await.unwrap();
            let before = IssuedId::new("keywheel-before@app");
            issuer.revoke(&before).await.unwrap();
            world.nodes[0].kill();
            world.nodes[0].begin().unwrap();
            assert!(!world.accepts(0, "app", &world.first).await, "{users:?}");
            assert!(world.accepts(0, "app", &second).await, "{users:?}");
            assert_eq!(issuer.list("kw-1-").await.unwrap()[0].issued, id);
        }
    }

    #[tokio::test]
    async fn h70_only_the_hash_of_a_password_is_sent() {
        let Some(world) = World::start(1) else { return };
        let relay = Relay::before(world.nodes[0].port()).await;
        let issuer = world.issuer_at(&[relay.port]);
        let second = canary("redis-second");
        let id = mint(&*issuer, "kw-1-1", &second, world.previous()).await.unwrap();
        issuer.suspend().unwrap().suspend(&id).await.unwrap();
        issuer.suspend().unwrap().resume(&id).await.unwrap();
        issuer.revoke(&id).await.unwrap();
        let heard = String::from_utf8_lossy(&relay.heard.lock().unwrap()).into_owned();
        assert!(heard.contains(&hash(&of(&second))));
        assert!(!heard.contains(&second) && !heard.contains(&world.first));
    }

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

    #[tokio::test]
    async fn h92_no_other_password_is_ended() {
        let Some(world) = World::start(2) else { return };
        let issuer = world.issuer();
        let (second, third, by_hand) =
            (canary("redis-second"), canary("redis-third"), canary("redis-by-hand"));
        let added = format!("#{}", hash(&of(&by_hand)));
        let _: () = world.ask(0, &["ACL", "SETUSER", "app", &added]).await;
        let second_id = mint(&*issuer, "kw-1-1", &second, world.previous()).await.unwrap();
        mint(&*issuer, "kw-2-1", &third, None).await.unwrap();
        issuer.revoke(&second_id).await.unwrap();
        issuer.revoke(&IssuedId::new("keywheel-before@app")).await.unwrap();
        assert!(
            !world.accepts(0, "app", &second).await && !world.accepts(0, "app", &world.first).await
        );
        assert!(world.accepts(0, "app", &third).await && world.accepts(1, "app", &third).await);
        assert!(world.accepts(0, "app", &by_hand).await);
        for wrong in ["kw-2-1@other", "kw-2-1", "", "@app@"] {
            let refused = issuer.revoke(&IssuedId::new(wrong)).await;
            assert!(matches!(refused, Err(CallError::Refused(_))), "{wrong}: {refused:?}");
        }
        assert!(world.accepts(0, "other", &world.other).await);
    }

    #[tokio::test]
    async fn h92_a_repeated_revoke_ends_no_other_password_by_hand() {
        let Some(world) = World::start(2) else { return };
        let issuer = world.issuer();
        let by_hand = canary("redis-by-hand");
        let add = async || {
            for node in [0, 1] {
                let added = format!("#{}", hash(&of(&by_hand)));
                let _: () = world.ask(node, &["ACL", "SETUSER", "app", &added]).await;
            }
        };
        add().await;
        let (second, before) = (canary("redis-second"), IssuedId::new("keywheel-before@app"));
        mint(&*issuer, "kw-1-1", &second, world.previous()).await.unwrap();
        for _ in 0..3 {
            assert_eq!(issuer.revoke(&before).await, Ok(()));
            assert!(!world.accepts(0, "app", &world.first).await);
            for node in [0, 1] {
                assert!(world.accepts(node, "app", &by_hand).await, "another one was ended");
            }
        }
        assert_eq!(issuer.list("kw-").await.unwrap().len(), 1);
        assert_eq!(issuer.list("").await.unwrap().len(), 1, "what is gone is not live");
        assert!(issuer.suspend().unwrap().resume(&before).await.is_err());

        // Also where nothing was minted: an emergency may end the suspect first, and make its successor then.
        let Some(world) = World::start(1) else { return };
        let issuer = world.issuer();
        issuer.revoke(&before).await.unwrap();
        let added = format!("#{}", hash(&of(&by_hand)));
        let _: () = world.ask(0, &["ACL", "SETUSER", "app", &added]).await;
        issuer.revoke(&before).await.unwrap();
        mint(&*issuer, "kw-1-1", &second, world.previous()).await.unwrap();
        issuer.revoke(&before).await.unwrap();
        assert!(!world.accepts(0, "app", &world.first).await);
        assert!(world.accepts(0, "app", &by_hand).await && world.accepts(0, "app", &second).await);
        assert_eq!(issuer.list("").await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_node_that_was_down_is_told_later_which_password_was_there_before() {
        let Some(mut world) = World::start(2) else { return };
        let issuer = world.issuer();
        world.nodes[1].kill();
        let before = IssuedId::new("keywheel-before@app");
        let half = issuer.revoke(&before).await;
        assert!(matches!(half, Err(CallError::Unknown(_))), "{half:?}");
        world.nodes[1].begin().unwrap();
        let by_hand = canary("redis-by-hand");
        let added = format!("#{}", hash(&of(&by_hand)));
        let _: () = world.ask(0, &["ACL", "SETUSER", "app", &added]).await;
        for _ in 0..2 {
            issuer.revoke(&before).await.unwrap();
            assert!(!world.accepts(0, "app", &world.first).await);
            assert!(!world.accepts(1, "app", &world.first).await, "it lives where nobody was told");
            assert!(world.accepts(0, "app", &by_hand).await, "another one was ended");
        }
        // One that is adopted afterwards is meant anew.
        let previous = Some(("keywheel-before@app", by_hand.as_str()));
        mint(&*issuer, "kw-1-1", &canary("redis-second"), previous).await.unwrap();
        issuer.revoke(&before).await.unwrap();
        assert!(!world.accepts(0, "app", &by_hand).await);
    }

    #[tokio::test]
    async fn h92_no_other_password_is_taken_for_the_one_in_use() {
        let Some(world) = World::start(2) else { return };
        let issuer = world.issuer();
        let by_hand = canary("redis-by-hand");
        for node in [0, 1] {
            let change = [hash(&of(&by_hand)), hash(&of(&world.first))];
            let [added, removed] = [format!("#{}", change[0]), format!("!{}", change[1])];
            let _: () = world.ask(node, &["ACL", "SETUSER", "app", &added, &removed]).await;
        }
        let before = IssuedId::new("keywheel-before@app");
        mint(&*issuer, "kw-1-1", &canary("redis-second"), world.previous()).await.unwrap();
        assert_eq!(issuer.list("").await.unwrap().len(), 1);
        issuer.suspend().unwrap().suspend(&before).await.unwrap();
        issuer.revoke(&before).await.unwrap();
        for node in [0, 1] {
            assert!(world.accepts(node, "app", &by_hand).await, "another one was ended");
        }
    }

    #[tokio::test]
    async fn after_a_mint_that_was_not_told_the_one_in_use_none_is_guessed() {
        let Some(world) = World::start(1) else { return };
        let issuer = world.issuer();
        mint(&*issuer, "kw-1-1", &canary("redis-second"), None).await.unwrap();
        let before = IssuedId::new("keywheel-before@app");
        let refused = issuer.revoke(&before).await;
        let Err(CallError::Refused(refusal)) = refused else { panic!("{refused:?}") };
        assert!(refusal.message.contains("which one is meant, if any, is not known"), "{refusal}");
        assert!(world.accepts(0, "app", &world.first).await);
        let removed = format!("!{}", hash(&of(&world.first)));
        let _: () = world.ask(0, &["ACL", "SETUSER", "app", &removed]).await;
        assert_eq!(issuer.revoke(&before).await, Ok(()));
    }

    #[tokio::test]
    async fn h92_of_two_passwords_by_hand_none_is_guessed() {
        let Some(world) = World::start(2) else { return };
        let issuer = world.issuer();
        let by_hand = canary("redis-by-hand");
        let added = format!("#{}", hash(&of(&by_hand)));
        let _: () = world.ask(1, &["ACL", "SETUSER", "app", &added]).await;
        mint(&*issuer, "kw-1-1", &canary("redis-second"), None).await.unwrap();
        let refused = issuer.revoke(&IssuedId::new("keywheel-before@app")).await;
        let Err(CallError::Refused(refusal)) = refused else { panic!("{refused:?}") };
        assert!(refusal.message.contains("2 passwords that keywheel did not make"), "{refusal}");
        for node in [0, 1] {
            assert!(world.accepts(node, "app", &world.first).await);
        }
        assert!(world.accepts(1, "app", &by_hand).await);
    }

    #[tokio::test]
    async fn h89_one_node_that_accepts_a_password_is_no_death() {
        let Some(world) = World::start(2) else { return };
        let issuer = world.issuer();
        let verify = async |password: &str| issuer.verify(&login(password)).await.unwrap();
        assert_eq!(verify(&world.first).await, Verdict::Accepted);
        assert_eq!(verify(&canary("redis-wrong")).await, Verdict::Refused);
        let removed = format!("!{}", hash(&of(&world.first)));
        let _: () = world.ask(1, &["ACL", "SETUSER", "app", &removed]).await;
        let Verdict::CannotTell(words) = verify(&world.first).await else {
            panic!("one node speaks for all")
        };
        let [one, other] = at(&world.ports()).try_into().unwrap();
        assert_eq!(words, format!("`{one}` accept it, and `{other}` refuse it"));
    }

    #[tokio::test]
    async fn h88_an_error_is_no_refusal_of_a_password() {
        let Some(world) = World::start(1) else { return };
        for answer in [
            "-LOADING Redis is loading the dataset in memory",
            "-NOPERM this user has no permissions",
            "-NOAUTH Authentication required.",
            "-ERR max number of clients reached",
            "-KWCANARY",
            "nonsense",
        ] {
            let port = answers_always(answer).await;
            let verdict = world.issuer_at(&[port]).verify(&login(&world.first)).await;
            assert!(matches!(verdict, Ok(Verdict::CannotTell(_))), "{answer}: {verdict:?}");
        }
        let verdict = world.issuer_at(&[1]).verify(&login(&world.first)).await;
        assert!(matches!(verdict, Ok(Verdict::CannotTell(_))), "{verdict:?}");
    }

    #[tokio::test]
    async fn h88_nothing_begins_while_a_node_is_down_and_a_revoke_says_where_it_was_not_made() {
        let Some(mut world) = World::start(2) else { return };
        let issuer = world.issuer();
        let (second, third) = (canary("redis-second"), canary("redis-third"));
        let id = mint(&*issuer, "kw-1-1", &second, None).await.unwrap();
        world.nodes[1].kill();
        let down = format!("127.0.0.1:{}", world.nodes[1].port());
        let is_refused = |called: Result<(), CallError>| {
            let Err(CallError::Refused(refusal)) = called else { panic!("{called:?}") };
            assert!(refusal.message.contains(&down), "{refusal}");
            assert!(matches!(refusal.remedy, keywheel_driver::Remedy::Retry { .. }));
        };
        is_refused(mint(&*issuer, "kw-2-1", &third, None).await.map(drop));
        is_refused(issuer.suspend().unwrap().suspend(&id).await);
        is_refused(issuer.preflight().await.map(drop));
        assert!(!world.accepts(0, "app", &third).await && world.accepts(0, "app", &second).await);

        let Err(CallError::Unknown(words)) = issuer.revoke(&id).await else { panic!("half done") };
        let up = format!("127.0.0.1:{}", world.nodes[0].port());
        assert!(
            words.contains(&format!("ended on `{up}` only")) && words.contains(&down),
            "{words}"
        );
        assert!(!world.accepts(0, "app", &second).await);

        world.nodes[1].begin().unwrap();
        assert!(world.accepts(1, "app", &second).await, "it was not there to be told");
        world.nodes[1].freeze();
        let hangs = issuer.verify(&login(&second)).await;
        assert!(
            matches!(hangs, Ok(Verdict::CannotTell(words)) if words.contains("no answer in time"))
        );
        is_refused(issuer.suspend().unwrap().suspend(&id).await);
        world.nodes[1].thaw();
        issuer.revoke(&id).await.unwrap();
        assert!(!world.accepts(1, "app", &second).await);
        assert_eq!(issuer.list("kw-").await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_mint_that_is_broken_off_between_nodes_is_found_and_ended_on_all() {
        let Some(world) = World::start(2) else { return };
        let relay = Relay::before(world.nodes[1].port()).await;
        let issuer = world.issuer_at(&[world.nodes[0].port(), relay.port]);
        let second = canary("redis-second");
        relay.loses.store(true, Ordering::SeqCst);
        let until_asked = async {
            while relay.loses.load(Ordering::SeqCst) {
                tokio::time::sleep(Pause::from_millis(5)).await;
            }
        };
        tokio::select! {
            done = mint(&*issuer, "kw-1-1", &second, None) => panic!("it was not broken off: {done:?}"),
            () = until_asked => {}
        }
        let live = issuer.list("kw-1-").await.unwrap();
        let [orphan] = live.as_slice() else { panic!("{live:?}") };
        issuer.revoke(&orphan.issued).await.unwrap();
        assert!(!world.accepts(0, "app", &second).await && !world.accepts(1, "app", &second).await);
        assert_eq!(issuer.list("").await.unwrap(), []);
    }

    #[tokio::test]
    async fn h89_a_mint_that_reached_one_node_only_is_not_confirmed() {
        let Some(world) = World::start(2) else { return };
        let relay = Relay::before(world.nodes[0].port()).await;
        let issuer = world.issuer_at(&[relay.port, world.nodes[1].port()]);
        let (second, third) = (canary("redis-second"), canary("redis-third"));
        relay.loses.store(true, Ordering::SeqCst);
        let lost = mint(&*issuer, "kw-1-1", &second, world.previous()).await;
        assert!(matches!(lost, Err(CallError::Unknown(_))), "{lost:?}");
        let live = issuer.list("kw-1-1").await.unwrap();
        let [half] = live.as_slice() else { panic!("{live:?}") };
        assert!(world.accepts(0, "app", &second).await && !world.accepts(1, "app", &second).await);
        assert_eq!(issuer.confirm(&half.issued).await, Ok(false));
        issuer.revoke(&half.issued).await.unwrap();

        let whole = mint(&*issuer, "kw-1-2", &third, world.previous()).await.unwrap();
        assert_eq!(issuer.confirm(&whole).await, Ok(true));
        assert_eq!(issuer.verify(&login(&third)).await, Ok(Verdict::Accepted));
        // The marker of a password that a node lost vouches for nothing.
        let removed = format!("!{}", hash(&of(&third)));
        let _: () = world.ask(1, &["ACL", "SETUSER", "app", &removed]).await;
        assert_eq!(issuer.confirm(&whole).await, Ok(false));
    }

    #[tokio::test]
    async fn what_is_confirmed_was_saved_by_every_node() {
        let Some(mut world) = World::start(2) else { return };
        let issuer = world.issuer();
        let second = canary("redis-second");
        let (added, marker) = (format!("#{}", hash(&of(&second))), "kw-1-1@app");
        for node in [0, 1] {
            let _: () = world.ask(node, &["ACL", "SETUSER", "app", &added]).await;
            let made = ["ACL", "SETUSER", marker, "reset", "off", &added, "~keywheel:1:run:1"];
            let _: () = world.ask(node, &made).await;
        }
        assert_eq!(issuer.confirm(&IssuedId::new(marker)).await, Ok(true));
        for node in [0, 1] {
            world.nodes[node].kill();
            world.nodes[node].begin().unwrap();
            assert!(world.accepts(node, "app", &second).await);
        }
    }

    #[tokio::test]
    async fn a_node_that_cannot_keep_its_users_takes_the_mint_back_everywhere() {
        let Some(world) = World::start(2) else { return };
        let issuer = world.issuer();
        // A folder that is not empty is in the way of the file.
        std::fs::remove_file(world.nodes[1].users()).unwrap();
        std::fs::create_dir_all(world.nodes[1].users().join("in the way")).unwrap();
        let second = canary("redis-second");
        let refused = mint(&*issuer, "kw-1-1", &second, None).await;
        let Err(CallError::Refused(refusal)) = refused else { panic!("{refused:?}") };
        assert!(
            refusal.message.ends_with("answered ERR; no node has the new password"),
            "{refusal}"
        );
        assert_eq!(issuer.list("").await.unwrap(), []);
        for node in [0, 1] {
            assert!(!world.accepts(node, "app", &second).await);
            assert!(world.accepts(node, "app", &world.first).await);
        }
        let kept = std::fs::read_to_string(world.nodes[0].users()).unwrap();
        assert!(!kept.contains("kw-1-1@app") && !kept.contains(&hash(&of(&second))));

        let ended = issuer.revoke(&IssuedId::new("keywheel-before@app")).await;
        assert!(matches!(ended, Err(CallError::Unknown(_))), "{ended:?}");
    }

    #[tokio::test]
    async fn h76_the_admin_does_not_rotate_itself() {
        let Some(world) = World::start(1) else { return };
        let Err(refusal) = world.build(json!({ "user": "keywheel" })) else {
            panic!("the admin rotates itself")
        };
        assert!(refusal.message.contains("give keywheel a user of its own"));
        for (changes, words) in [
            (json!({ "nodes": [] }), "`nodes` is empty"),
            (json!({ "nodes": ["redis.internal"] }), "`host:port`"),
            (json!({ "user": "app other" }), "holds no space"),
            (json!({ "user": "app@other" }), "no `@`"),
        ] {
            let Err(refusal) = world.build(changes) else { panic!("{words}") };
            assert!(refusal.message.contains(words), "{refusal}");
        }
    }

    #[tokio::test]
    async fn h19_what_would_fail_later_blocks_at_first() {
        let Some(world) = World::start(1) else { return };
        let blocked = async |changes: serde_json::Value, words: &str| {
            let issuer = world.build(changes).unwrap_or_else(|e| panic!("{e}"));
            let blocks = world.blocks(&*issuer).await;
            assert!(blocks.iter().any(|block| block.contains(words)), "{words}: {blocks:?}");
        };
        std::fs::write(world.folder.path().join("other"), &world.other).unwrap();
        let admin = |user: &str, file: &str| json!({ "admin": { "user": user, "password": { "file": file } } });
        blocked(admin("keywheel", "other"), "the admin user `keywheel` is not accepted").await;
        blocked(json!({ "user": "nobody" }), "has no user `nobody`").await;
        let _: () = world.ask(0, &["ACL", "SETUSER", "other", "-client|kill"]).await;
        blocked(admin("other", "other"), "may not call `CLIENT KILL`").await;
        let _: () = world.ask(0, &["ACL", "SETUSER", "other", "-@admin"]).await;
        blocked(admin("other", "other"), "may not do what is needed").await;
        let _: () = world.ask(0, &["ACL", "SETUSER", "other", "off"]).await;
        blocked(json!({ "user": "other" }), "user `other` is off").await;
        let _: () = world.ask(0, &["ACL", "SETUSER", "other", "on", "nopass"]).await;
        blocked(json!({ "user": "other" }), "with any password").await;

        let Some(forgetful) = started(&Settings { users: Users::Nowhere, ..Settings::default() })
        else {
            return;
        };
        let set = |user: &str, password: &str| {
            acl_setuser(user)
                .arg("on")
                .arg(format!("#{}", hash(&of(password))))
                .arg("+@all")
                .clone()
        };
        let address = format!("127.0.0.1:{}", forgetful.port());
        let node = Node::new(&address, None, None, Span::seconds(5)).unwrap();
        let mut link = node.log_in(None).await.unwrap();
        link.ask::<()>(&set("keywheel", &world.admin)).await.unwrap();
        link.ask::<()>(&set("app", &world.first)).await.unwrap();
        let nodes = json!({ "nodes": [address] });
        blocked(nodes.clone(), "keeps users in memory only").await;
        let issuer = world.build(nodes).unwrap_or_else(|e| panic!("{e}"));
        let refused = mint(&*issuer, "kw-1-1", &canary("redis-second"), None).await;
        assert!(matches!(refused, Err(CallError::Refused(_))), "{refused:?}");
    }

    #[tokio::test]
    async fn a_replica_is_not_forgotten() {
        let Some(mut world) = World::start(1) else { return };
        let primary = world.nodes[0].port();
        let feeds = |user: &str, password: &str| {
            vec![format!("masteruser {user}"), format!("masterauth {password}")]
        };
        for (user, password) in [("other", world.other.clone()), ("app", world.first.clone())] {
            let settings = Settings {
                lines: world.lines(),
                replica_of: Some(primary),
                configuration: feeds(user, &password),
                ..Settings::default()
            };
            let Some(replica) = started(&settings) else { return };
            world.nodes.push(replica);
        }
        let since = std::time::Instant::now();
        for replica in [1, 2] {
            let info = async || world.ask::<String>(replica, &["INFO", "replication"]).await;
            while field(&info().await, "master_link_status") != Some("up") {
                assert!(since.elapsed() < std::time::Duration::from_secs(60), "no replica comes");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
        let ports = world.ports();
        let blocks = async |ports: &[u16]| world.blocks(&*world.issuer_at(ports)).await;
        let one = blocks(&ports[..1]).await;
        assert!(one[0].starts_with("2 replicas of node"), "{one:?}");
        let two = blocks(&ports[1..2]).await;
        assert!(two[0].starts_with("1 primary of node"), "{two:?}");
        let all = blocks(&ports).await;
        let [all] = all.as_slice() else { panic!("{all:?}") };
        assert!(all.contains("is fed by its primary as `app`"), "{all}");
        let on_purpose = json!({ "nodes": at(&ports[..1]), "other_nodes": true });
        let on_purpose = world.build(on_purpose).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(world.blocks(&*on_purpose).await, Vec::<String>::new());

        let second = canary("redis-second");
        mint(&*world.issuer(), "kw-1-1", &second, None).await.unwrap();
        assert!(world.accepts(1, "app", &second).await, "a replica has users of its own");
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

    #[tokio::test]
    async fn a_node_on_another_machine_is_spoken_to_over_tls() {
        use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        let pem = |kind: &str, der: &[u8]| {
            use base64::Engine;
            let text = base64::engine::general_purpose::STANDARD.encode(der);
            format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
        };
        let Some(mut world) = World::start(0) else { return };
        let certificate =
            (pem("CERTIFICATE", certificate.der()), pem("PRIVATE KEY", &key.serialize_der()));
        let settings = Settings {
            lines: world.lines(),
            certificate: Some(certificate),
            ..Settings::default()
        };
        let Some(redis) = started(&settings) else { return };
        let port = redis.port();
        world.nodes.push(redis);
        std::fs::write(world.folder.path().join("ca.pem"), pem("CERTIFICATE", authority.der()))
            .unwrap();
        let verdict = async |node: String, changes: serde_json::Value| {
            let mut config = json!({ "nodes": [node] });
            config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let issuer = world.build(config).unwrap_or_else(|e| panic!("{e}"));
            issuer.verify(&login(&world.first)).await.unwrap()
        };
        let ca = json!({ "ca": "ca.pem" });
        let secure = verdict(format!("localhost:{port}"), ca.clone()).await;
        assert_eq!(secure, Verdict::Accepted);
        for (node, changes) in [
            (format!("127.0.0.1:{port}"), ca),
            (format!("localhost:{port}"), json!({ "tls": true })),
            (format!("localhost:{port}"), json!({})),
        ] {
            let verdict = verdict(node, changes).await;
            assert!(matches!(verdict, Verdict::CannotTell(_)), "{verdict:?}");
        }
        for (host, secured) in
            [("127.0.0.1", false), ("localhost", false), ("cache.internal", true)]
        {
            let node = Node::new(&format!("{host}:6379"), None, None, Span::seconds(1)).unwrap();
            assert_eq!(node.is_secured(), secured, "{host}");
        }
    }
}
