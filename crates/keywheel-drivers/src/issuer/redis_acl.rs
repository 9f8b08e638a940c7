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

mod acl;
mod before;
#[cfg(test)]
mod bench;
mod cluster;
mod preflight;
mod sessions;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;
use keywheel_core::facts::{Authority, IssuerFacts, LastUsedFacts, Observe, ValueOrigin};
use keywheel_core::plan::Label;
use keywheel_core::planted;
use keywheel_core::secret::{Credential, Field, SecretValue};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{
    Audit, Identity, Issuer, Live, Mint, Minted, Randomness, Suspend, Usage, Verdict,
};
use keywheel_driver::{CallError, Duration, Finding, Refusal, RefusalKind, SecretReference};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::acl::{Account, Acl, MADE, Marker, acl_deluser, acl_setuser, hash};
use self::before::marked_before;
use super::random;
use crate::api::unsupported;
use crate::redis::{Link, Login, Node, Trouble, field};
use crate::{Build, Context, reference};

const TARGET: &str = "issuer `redis_acl`";

/// The random characters of a password, of 6 bits each.
const LENGTH: u16 = 43;

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
    /// Whether there are nodes that are not listed, on purpose: nobody logs in to them as this user. Those of a cluster must be.
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
        self.findings().await
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

fn username() -> Field {
    Field::new("username")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::Duration as Pause;

    use keywheel_driver::conformance::canary;
    use keywheel_driver::conformance::issuer::{Subject, run};
    use keywheel_ground::redis::{Settings, Users};
    use serde_json::json;

    use super::bench::{Relay, World, answers_always, at, login, mint, of, started};
    use super::*;

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
