//! `postgres`: logins of a PostgreSQL server that take turns, members of one role that owns everything.
//!
//! PostgreSQL keeps one password for a login, so there are two logins: while readers move from the one to the other, both work.
//! Each belongs to the owner role and acts as it in the application's databases; what the one makes, the other may change. A
//! version is a login and its generation, which stands in the comment of the login with the label of the mint:
//! `[keywheel 7 kw-4c1e9a-1 2026-11-26T10:00:00Z]`; what else the comment says stays. Every change is one transaction that holds
//! a lock of the pair and looks at the generation first (H92). With a single login the strategy is `cutover`.
//!
//! The server is sent a verifier and never a password, since it may log every statement (H70). A login is suspended by
//! `NOLOGIN`, and revoked by taking its password away too; it stays for the next turn and is never dropped, and neither is
//! anything that it owns (H69). Sessions outlive a login's end, so they are ended by name, in batches, and counted again (H66,
//! H78).

mod compare;
mod convert;
mod record;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::facts::{Authority, IssuerFacts, LastUsedFacts, Observe, ValueOrigin};
use keywheel_core::plan::Label;
use keywheel_core::planted;
use keywheel_core::secret::{Credential, Field, SecretValue};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::IssuedId;
use keywheel_driver::duration::Duration;
use keywheel_driver::issuer::{
    Audit, Convert, Identity, Issuer, LastUsed, Live, Mint, Minted, Randomness, Suspend, Usage,
    Verdict,
};
use keywheel_driver::{CallError, Finding, Refusal, RefusalKind, SecretReference, fail_point};
use postgres_protocol::escape::{escape_identifier, escape_literal};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::random::characters;
use crate::api::{self, unsupported};
use crate::postgres::{self, Failed, Reach};
use crate::{Build, Context, reference};

const TARGET: &str = "issuer `postgres`";

/// How our own connections are called.
const OURS: &str = "keywheel";

/// How long a connection may take to come about.
const CONNECT: std::time::Duration = std::time::Duration::from_secs(10);

/// How many characters a password has: 258 bits.
const LENGTH: u16 = 43;

/// How many sessions are ended at once, so that they do not all come back in one moment (H78).
const BATCH: i64 = 20;

/// How long the next batch waits.
const BETWEEN_BATCHES: std::time::Duration = std::time::Duration::from_millis(100);

/// How often a standby is asked whether it has heard of a change.
const LOOKS_AT_A_STANDBY: usize = 200;

/// How often sessions are counted again before they are said to be still there.
const COUNTS: usize = 50;

/// Two logins of a PostgreSQL server that take turns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the connection string of a login is read that may change the others: `postgresql://admin:…@host:5432/app`. It
    /// names the application's database.
    pub admin_url: SecretReference,
    /// The role that owns everything, and that nobody logs in as.
    pub owner: String,
    /// The two logins; a single one is cut over.
    pub logins: Vec<String>,
    /// Further databases of the server that the logins use, beside the one that `admin_url` names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<String>,
    /// Standbys that the logins use too, as `host:port`; each learns of a change late.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub standbys: Vec<String>,
    /// How the server is reached.
    #[serde(default, skip_serializing_if = "Reach::is_direct")]
    pub reach: Reach,
    /// A file with the certificates of those who may sign the server's, instead of whom this machine trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// How long a call without an answer can still take effect.
    #[serde(default = "default_settle_for")]
    pub settle_for: Duration,
}

/// Twice as long as the server lets a change of ours take.
fn default_settle_for() -> Duration {
    Span::seconds(30).into()
}

impl Build for Config {
    type Driver = dyn Issuer;

    fn build(&self, context: &Context) -> Result<Arc<dyn Issuer>, Refusal> {
        let roles: BTreeSet<&String> = self.logins.iter().chain([&self.owner]).collect();
        let is_name = |name: &&String| (1..=63).contains(&name.len()) && !name.contains('\0');
        if !(1..=2).contains(&self.logins.len()) {
            return Err(unsupported("`logins` must name two logins, or a single one"));
        }
        if roles.len() != self.logins.len() + 1 {
            return Err(unsupported("`owner` and `logins` must name different roles"));
        }
        if !roles.iter().all(is_name) {
            return Err(unsupported("`owner` and `logins` must have 1 to 63 bytes"));
        }
        if let Some(standby) = self.standbys.iter().find(|standby| host_and_port(standby).is_none())
        {
            return Err(unsupported(&format!("`standbys`: `{standby}` is not `host:port`")));
        }
        let admin_url = reference::from_root(&self.admin_url, context);
        let ca = self.ca.as_ref().map(|ca| context.root.join(ca));
        let reach = self.reach.rooted(context);
        Ok(Arc::new(Postgres { config: Self { admin_url, ca, reach, ..self.clone() } }))
    }
}

struct Postgres {
    config: Config,
}

/// A connection of the admin login. It ends with the call, unless the call came to its end and keeps it for the next one: one
/// that was broken off may still be busy.
struct Admin<'a> {
    place: tokio_postgres::Config,
    client: Client,
    of: &'a Postgres,
}

impl Admin<'_> {
    fn keep(self) {
        postgres::keep(self.place, self.of.config.ca.as_deref(), self.client);
    }
}

impl std::ops::Deref for Admin<'_> {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

#[async_trait]
impl Issuer for Postgres {
    fn facts(&self) -> IssuerFacts {
        let alone = self.config.logins.len() == 1;
        IssuerFacts {
            max_live: alone.then_some(1),
            label: true,
            suspend: !alone,
            destroy: true,
            reset_repeatable: true,
            last_used: Some(LastUsedFacts { lag: Span::ZERO, granularity: Span::seconds(1) }),
            propagation: Span::ZERO,
            settle_for: self.config.settle_for.span(),
            takes_turns: !alone,
            ..IssuerFacts::new(ValueOrigin::Ours, Observe::Label, Authority::Issuer)
        }
    }

    /// Logs in afresh: a connection that waits says nothing of whether the admin login is still let in (H19).
    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        let place = self.place().await?;
        let admin = match planted!("preflight_takes_a_login_before_it") {
            true => self.connected(&place).await?,
            false => {
                let connected = postgres::connect(&place, self.config.ca.as_deref()).await;
                self.admin_of(&place, connected)?
            }
        };
        let findings = compare::findings(&admin, &self.config).await?;
        admin.keep();
        Ok(findings)
    }

    /// The login whose turn it is, and a new password for it.
    fn generate(&self, random: Randomness<'_>, previous: Option<&IssuedId>) -> Option<Credential> {
        let is_used = |login: &&String| previous.is_some_and(|previous| previous.id == **login);
        let turn = self.config.logins.iter().find(|login| !is_used(login));
        let login = turn.unwrap_or(&self.config.logins[0]);
        let username = SecretValue::new(login.clone().into_bytes());
        Some(
            Credential::default()
                .with(Field::new("username"), username)
                .with(Field::new("password"), characters(LENGTH, random)),
        )
    }

    /// Gives the login its password under the next generation. A login that may be somebody's is refused.
    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        let value = request.value.ok_or_else(|| unsupported("nothing was generated"))?;
        let login = self.login_of(value)?;
        let verifier = verifier(field(value, "password")?)?;
        let (change, found) = self.change_of(login).await?;
        let found = found.ok_or_else(|| absent(login))?;
        self.has_its_turn(&found, login, request)?;
        let generation = found.mark.as_ref().map_or(0, |mark| mark.generation) + 1;
        let secret = match planted!("password_in_the_statement") {
            true => String::from_utf8_lossy(field(value, "password")?.expose()).into_owned(),
            false => verifier,
        };
        let name = escape_identifier(login);
        let alter = format!("ALTER ROLE {name} LOGIN PASSWORD {}", escape_literal(&secret));
        let since = change.run_by_the_clock(&alter).await?;
        let mark = Mark { generation, label: Some(request.label.clone()), since };
        mark.write(&change, login, &found.comment).await?;
        change.commit().await?.keep();
        fail_point::pass("login_changed", "mint");
        if self.config.logins.len() > 1 {
            // Nobody was given the new password yet: whoever is logged in was so under a former generation.
            self.end_sessions(login, None).await?;
        }
        let issued = IssuedId { id: login.to_owned(), generation: Some(generation) };
        Ok(Minted { issued: Some(issued), ..Minted::default() })
    }

    /// Logs in with the credential, and with nothing else, at the server and at each standby.
    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        let (login, password) = (self.login_of(credential)?, field(credential, "password")?);
        let mut verdicts = Vec::new();
        for place in self.places().await? {
            verdicts.push(self.verdict(place, login, password).await?);
            if planted!("standbys_not_asked") {
                break;
            }
        }
        let first = verdicts.swap_remove(0);
        match verdicts.into_iter().find(|verdict| *verdict != first) {
            None => Ok(first),
            Some(Verdict::CannotTell(why)) => Ok(Verdict::CannotTell(why)),
            Some(_) => {
                Ok(Verdict::CannotTell("the server and a standby do not say the same".into()))
            }
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Live>, CallError> {
        let admin = self.admin().await?;
        let mut live = Vec::new();
        for login in &self.config.logins {
            let Some(found) = role_now(&admin, login).await? else { continue };
            let Some(Mark { generation, label: Some(label), .. }) = found.mark else { continue };
            if label.0.starts_with(prefix) {
                let issued = IssuedId { id: login.clone(), generation: Some(generation) };
                live.push(Live { issued, label: Some(label) });
            }
        }
        admin.keep();
        Ok(live)
    }

    /// Takes the password away and ends every session. A generation that was followed by another is gone already; its
    /// sessions, which began before the other, are ended all the same.
    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError> {
        let (change, found) = self.change_of(&id.id).await?;
        let Some(found) = found else { return Ok(()) };
        match found.meets(id) {
            Meets::Later(since) => {
                // Nothing is left to change, and to end sessions takes a while.
                drop(change);
                return self.end_sessions(&id.id, Some(since)).await;
            }
            Meets::Exactly => {}
            Meets::Never => return Err(another_generation(id).into()),
        }
        let name = escape_identifier(&id.id);
        let alter = format!("ALTER ROLE {name} NOLOGIN PASSWORD NULL");
        let since = change.run_by_the_clock(&alter).await?;
        let mark = Mark { generation: id.generation.unwrap_or(0), label: None, since };
        mark.write(&change, &id.id, &found.comment).await?;
        change.commit().await?.keep();
        fail_point::pass("login_changed", "revoke");
        self.end_sessions(&id.id, None).await
    }

    async fn identify(&self, credential: &Credential) -> Result<Identity, CallError> {
        let admin = self.admin().await?;
        let Some(username) = credential.field(&Field::new("username")) else {
            let logins = self.config.logins.iter();
            let known = |login: &String| IssuedId { id: login.clone(), generation: Some(0) };
            return Ok(Identity::Candidates(logins.map(known).collect()));
        };
        let named = |login: &&String| login.as_bytes() == username.expose();
        let Some(login) = self.config.logins.iter().find(named) else {
            return Ok(Identity::Unknown);
        };
        let Some(found) = role_now(&admin, login).await? else { return Ok(Identity::Unknown) };
        let generation = found.mark.as_ref().map_or(0, |mark| mark.generation);
        Ok(Identity::Known {
            issued: IssuedId { id: login.clone(), generation: Some(generation) },
            how: "the user name is that of a login".into(),
            created_at: found.mark.map(|mark| mark.since),
        })
    }

    fn suspend(&self) -> Option<&dyn Suspend> {
        (self.config.logins.len() > 1).then_some(self)
    }

    fn usage(&self) -> Option<&dyn Usage> {
        Some(self)
    }

    fn audit(&self) -> Option<&dyn Audit> {
        Some(self)
    }

    fn convert(&self) -> Option<&dyn Convert> {
        (self.config.logins.len() > 1).then_some(self)
    }
}

#[async_trait]
impl Suspend for Postgres {
    async fn suspend(&self, id: &IssuedId) -> Result<(), CallError> {
        self.switch(id, "NOLOGIN").await?;
        fail_point::pass("login_changed", "suspend");
        self.end_sessions(&id.id, None).await
    }

    async fn resume(&self, id: &IssuedId) -> Result<(), CallError> {
        self.switch(id, "LOGIN").await
    }
}

#[async_trait]
impl Usage for Postgres {
    /// Whoever is logged in now uses it now. A session that came and went between two looks is not seen.
    async fn last_used(&self, id: &IssuedId) -> Result<LastUsed, CallError> {
        let admin = self.admin().await?;
        let found = role_now(&admin, &id.id).await?.ok_or_else(|| absent(&id.id))?;
        let before = match found.meets(id) {
            Meets::Exactly => None,
            Meets::Later(since) => Some(since),
            Meets::Never => return Err(another_generation(id).into()),
        };
        let user = admin.place.get_user().map(str::to_owned);
        let rotates_itself = user.is_some_and(|user| self.config.logins.contains(&user));
        admin.keep();
        let mut sessions = Vec::new();
        for admin in self.everywhere().await? {
            sessions.extend(sessions_of(&admin, &id.id, before).await?);
            admin.keep();
        }
        // Where the admin login rotates itself, connections of ours may wait as the former one. Elsewhere none is left out: a
        // client chooses what it is called.
        if rotates_itself {
            sessions.retain(|session| session.application != OURS);
        }
        if sessions.is_empty() {
            return Ok(LastUsed { at: None, detail: None });
        }
        let from: BTreeSet<String> = sessions.iter().map(Session::whose).collect();
        let from = from.into_iter().take(5).collect::<Vec<_>>().join(", ");
        let detail = format!("{} sessions of login `{}`: {from}", sessions.len(), id.id);
        Ok(LastUsed { at: Some(api::now()), detail: Some(detail) })
    }
}

impl Postgres {
    /// The server, and after it each standby.
    async fn places(&self) -> Result<Vec<tokio_postgres::Config>, CallError> {
        let server = self.place().await?;
        let mut places = vec![server.clone()];
        for standby in &self.config.standbys {
            let (host, port) = host_and_port(standby).expect("`build` looked at it");
            let mut place = tokio_postgres::Config::new();
            place.host(host).port(port).ssl_mode(postgres::secured(host, server.get_ssl_mode()));
            place.application_name(OURS).connect_timeout(CONNECT);
            if let Some(user) = server.get_user() {
                place.user(user);
            }
            if let Some(password) = server.get_password() {
                place.password(password);
            }
            if let Some(name) = server.get_dbname() {
                place.dbname(name);
            }
            places.push(place);
        }
        Ok(places)
    }

    /// Logs in as the admin login everywhere.
    async fn everywhere(&self) -> Result<Vec<Admin<'_>>, CallError> {
        let mut clients = Vec::new();
        for place in self.places().await? {
            clients.push(self.connected(&place).await?);
        }
        Ok(clients)
    }

    /// Says what one server makes of a password.
    async fn verdict(
        &self,
        mut place: tokio_postgres::Config,
        login: &str,
        password: &SecretValue,
    ) -> Result<Verdict, CallError> {
        let as_admin = place.clone();
        place.user(login).password(password.expose());
        let code = match postgres::connect(&place, self.config.ca.as_deref()).await {
            Ok(client) => {
                let asked = client.simple_query("SELECT 1").await;
                return Ok(match asked {
                    Ok(_) => Verdict::Accepted,
                    Err(error) => Verdict::CannotTell(postgres::in_words(&error)),
                });
            }
            Err(Failed::Here(refusal)) => return Err(refusal.into()),
            Err(Failed::There(error)) => match error.code() {
                Some(code) => code.code().to_owned(),
                None => return Err(unavailable(postgres::in_words(&error)).into()),
            },
        };
        match code.as_str() {
            "28P01" => Ok(Verdict::Refused),
            // A login that is switched off and one that no line of pg_hba.conf lets in get the same code.
            "28000" => {
                let admin = self.connected(&as_admin).await?;
                let found = role_now(&admin, login).await?;
                admin.keep();
                let is_switched_off = found.is_none_or(|role| !role.may_log_in);
                let unknown =
                    || Verdict::CannotTell("no line of pg_hba.conf lets the login in".into());
                Ok(if is_switched_off { Verdict::Refused } else { unknown() })
            }
            _ => Ok(Verdict::CannotTell(format!(
                "the server answered with {}",
                postgres::coded(&code)
            ))),
        }
    }

    async fn place(&self) -> Result<tokio_postgres::Config, CallError> {
        let mut place = postgres::place(&self.config.admin_url, &self.config.reach).await?;
        place.application_name(OURS).connect_timeout(CONNECT);
        Ok(place)
    }

    /// Logs in as the login that may change the others.
    async fn admin(&self) -> Result<Admin<'_>, CallError> {
        self.connected(&self.place().await?).await
    }

    /// Takes a connection that waits, or logs in.
    async fn connected(&self, place: &tokio_postgres::Config) -> Result<Admin<'_>, CallError> {
        let connected = postgres::connect_or_take(place, self.config.ca.as_deref()).await;
        self.admin_of(place, connected)
    }

    fn admin_of(
        &self,
        place: &tokio_postgres::Config,
        connected: Result<Client, Failed>,
    ) -> Result<Admin<'_>, CallError> {
        match connected {
            Ok(client) => Ok(Admin { place: place.clone(), client, of: self }),
            Err(Failed::Here(refusal)) => Err(refusal.into()),
            Err(Failed::There(error)) => Err(match error.code().map(|code| code.code()) {
                Some(code @ ("28P01" | "28000" | "3D000" | "42501")) => {
                    let why = postgres::coded(code);
                    let message = format!("{TARGET} refuses the admin login with {why}");
                    Refusal::operator(RefusalKind::Permission, message).into()
                }
                _ => unavailable(postgres::in_words(&error)).into(),
            }),
        }
    }

    /// Logs in as a login that is not the one to be changed: nobody changes what they are logged in as (H76). Where the admin
    /// login rotates itself, the connection string that it is read from has moved on by then.
    async fn admin_beside(&self, login: &str) -> Result<Admin<'_>, CallError> {
        let place = self.place().await?;
        if place.get_user() == Some(login) && !planted!("own_login_is_changed") {
            let message =
                format!("`admin_url` logs in as `{login}`, which is the login to be changed");
            return Err(Refusal::operator(RefusalKind::Unsupported, message).into());
        }
        self.connected(&place).await
    }

    /// Begins a change of the pair, which nobody else changes meanwhile. It ends soon, one way or the other.
    async fn change<'a>(&self, admin: Admin<'a>) -> Result<Change<'a>, CallError> {
        admin.batch_execute(&self.begin()).await.map_err(|error| nothing_done(&error))?;
        Ok(Change { admin })
    }

    /// Begins a change of the pair, and returns what one of its logins is then.
    async fn change_of(&self, login: &str) -> Result<(Change<'_>, Option<Role>), CallError> {
        let admin = self.admin_beside(login).await?;
        let begin = format!("{}; {ROLE} {}", self.begin(), escape_literal(login));
        let answers = admin.simple_query(&begin).await.map_err(|error| nothing_done(&error))?;
        let role = answers.iter().find_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => {
                let may_log_in = row.try_get("may_log_in").ok().flatten()?;
                Some(Role::new(may_log_in == "t", row.get("comment").unwrap_or_default()))
            }
            _ => None,
        });
        Ok((Change { admin }, role))
    }

    /// The statements that begin a change, for one message. Each statement sees what others committed before it, whatever the
    /// server's default is: else what is read once the lock is held may be older than the lock.
    fn begin(&self) -> String {
        let pair = escape_literal(&format!("keywheel {}", self.config.owner));
        let isolation = match planted!("generation_read_before_the_lock") {
            true => "",
            false => " ISOLATION LEVEL READ COMMITTED",
        };
        format!(
            "BEGIN{isolation}; SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '15s'; \
             SET LOCAL idle_in_transaction_session_timeout = '15s'; \
             SELECT pg_advisory_xact_lock(hashtextextended({pair}, 0))"
        )
    }

    /// Returns which of the logins a credential is for.
    fn login_of<'a>(&'a self, credential: &Credential) -> Result<&'a str, Refusal> {
        let logins = &self.config.logins;
        match credential.field(&Field::new("username")) {
            None if logins.len() == 1 => Ok(&logins[0]),
            None => Err(unsupported("the credential has no user name")),
            Some(username) => logins
                .iter()
                .find(|login| login.as_bytes() == username.expose())
                .map(String::as_str)
                .ok_or_else(|| unsupported("the credential is of another login")),
        }
    }

    /// Checks that a login may be given a new password: it rests, or what it holds must end anyway.
    fn has_its_turn(&self, found: &Role, login: &str, request: &Mint<'_>) -> Result<(), Refusal> {
        if self.config.logins.len() == 1 || planted!("turn_not_checked") {
            return Ok(());
        }
        let is_in_use = request.previous.is_some_and(|previous| previous.id == login);
        let mut suspects = request.suspects.iter().filter_map(|suspect| suspect.issued.as_ref());
        let mut ends_anyway = |mark: &Mark| suspects.any(|id| mark.is(id, login));
        // What an earlier attempt of the same rotation left was given to nobody.
        let is_ours = |label: &Label| same_rotation(label, request.label);
        let rests = match &found.mark {
            Some(mark) => mark.label.as_ref().is_none_or(is_ours) || ends_anyway(mark),
            None => !found.may_log_in,
        };
        if rests && !is_in_use {
            return Ok(());
        }
        let message =
            format!("login `{login}` does not rest: it may be in use, and is left as it is");
        Err(Refusal::operator(RefusalKind::Conflict, message))
    }

    /// Ends the sessions of a login once it was changed. Whatever becomes of them, the change was not refused.
    async fn end_sessions(&self, login: &str, before: Option<Timestamp>) -> Result<(), CallError> {
        let ended = self.end_sessions_everywhere(login, before).await;
        if planted!("sessions_refuse_the_change") {
            return ended;
        }
        ended.map_err(|error| CallError::Unknown(error.to_string()))
    }

    /// Ends the sessions of a login wherever it can have some. A standby lets it in until it has heard of the change.
    async fn end_sessions_everywhere(
        &self,
        login: &str,
        before: Option<Timestamp>,
    ) -> Result<(), CallError> {
        let mut clients = self.everywhere().await?.into_iter();
        let Some(server) = clients.next() else { return Ok(()) };
        end_sessions(&server, login, before).await?;
        if clients.len() > 0 {
            let at = server.query_one("SELECT pg_current_wal_lsn()::text", &[]).await;
            let at: String = at.map_err(|error| sessions_left(&error, login))?.get(0);
            for standby in clients {
                replayed(&standby, &at).await?;
                end_sessions(&standby, login, before).await?;
                standby.keep();
            }
        }
        server.keep();
        Ok(())
    }

    async fn switch(&self, id: &IssuedId, to: &str) -> Result<(), CallError> {
        let (change, found) = self.change_of(&id.id).await?;
        let found = found.ok_or_else(|| absent(&id.id))?;
        if !matches!(found.meets(id), Meets::Exactly) {
            return Err(another_generation(id).into());
        }
        change.run(&format!("ALTER ROLE {} {to}", escape_identifier(&id.id))).await?;
        change.commit().await?.keep();
        Ok(())
    }
}

/// A change that is under way. Where it is not committed it is taken back, for its connection ends with it.
struct Change<'a> {
    admin: Admin<'a>,
}

impl<'a> Change<'a> {
    async fn run(&self, statement: &str) -> Result<(), CallError> {
        self.admin.batch_execute(statement).await.map_err(|error| nothing_done(&error))
    }

    /// Runs a statement, and returns when it was done by the server's clock.
    async fn run_by_the_clock(&self, statement: &str) -> Result<Timestamp, CallError> {
        let clock = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
        let answers = self.admin.simple_query(&format!("{statement}; {clock}")).await;
        let answers = answers.map_err(|error| nothing_done(&error))?;
        let told = answers.iter().find_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
            _ => None,
        });
        let no_time = || unsupported("the server does not tell the time").into();
        told.map(Timestamp::from_millis).ok_or_else(no_time)
    }

    /// From here on a lost answer leaves it open whether the change was made.
    async fn commit(self) -> Result<Admin<'a>, CallError> {
        match self.admin.batch_execute("COMMIT").await {
            Ok(()) => Ok(self.admin),
            Err(error) if error.code().is_some() => Err(nothing_done(&error)),
            Err(error) if planted!("lost_commit_is_a_refusal") => Err(nothing_done(&error)),
            Err(error) => {
                Err(CallError::Unknown(format!("{TARGET}: {}", postgres::in_words(&error))))
            }
        }
    }
}

/// A login as the server has it.
struct Role {
    may_log_in: bool,
    comment: String,
    mark: Option<Mark>,
}

/// How a login's generation stands to the one that is asked about.
enum Meets {
    Exactly,
    /// Another one followed, at this time.
    Later(Timestamp),
    /// It is of a time that this server does not know: it was restored from a backup, or is another one.
    Never,
}

impl Role {
    fn new(may_log_in: bool, comment: &str) -> Self {
        let (comment, mark) = Mark::read(comment);
        Self { may_log_in, comment, mark }
    }

    fn meets(&self, id: &IssuedId) -> Meets {
        let asked = id.generation.unwrap_or(0);
        let there = self.mark.as_ref().map_or(0, |mark| mark.generation);
        match (&self.mark, there.cmp(&asked)) {
            _ if planted!("generation_not_checked") => Meets::Exactly,
            (_, std::cmp::Ordering::Equal) => Meets::Exactly,
            (Some(mark), std::cmp::Ordering::Greater) => Meets::Later(mark.since),
            _ => Meets::Never,
        }
    }
}

/// What keywheel keeps in the comment of a login.
struct Mark {
    generation: u64,
    /// The label of the mint; none once the generation was revoked.
    label: Option<Label>,
    /// When it was made or revoked, by the server's clock.
    since: Timestamp,
}

const OPEN: &str = "[keywheel ";

impl Mark {
    /// Finds the mark in a comment, and returns the rest of the comment.
    fn read(comment: &str) -> (String, Option<Self>) {
        for (start, _) in comment.match_indices(OPEN) {
            let inside = &comment[start + OPEN.len()..];
            let Some(length) = inside.find(']') else { break };
            if let Some(mark) = Self::parse(&inside[..length]) {
                let rest = &inside[length + 1..];
                return (format!("{}{rest}", &comment[..start]).trim().to_owned(), Some(mark));
            }
        }
        (comment.to_owned(), None)
    }

    fn parse(inside: &str) -> Option<Self> {
        let words: Vec<&str> = inside.split(' ').collect();
        let [generation, label, since] = words.as_slice() else { return None };
        let since = since.parse::<jiff::Timestamp>().ok()?;
        let label = (*label != "revoked").then(|| Label((*label).to_owned()));
        Some(Self {
            generation: generation.parse().ok()?,
            label,
            since: Timestamp::from_millis(since.as_millisecond()),
        })
    }

    fn is(&self, id: &IssuedId, login: &str) -> bool {
        id.id == login && id.generation == Some(self.generation)
    }

    /// Puts the mark into the comment of a login, behind what else it says.
    async fn write(
        &self,
        change: &Change<'_>,
        login: &str,
        comment: &str,
    ) -> Result<(), CallError> {
        let label = self.label.as_ref().map_or("revoked", |label| &label.0);
        let since = jiff::Timestamp::from_millisecond(self.since.millis()).unwrap_or_default();
        let mark = format!("{comment} {OPEN}{} {label} {since}]", self.generation);
        let text = escape_literal(mark.trim());
        change.run(&format!("COMMENT ON ROLE {} IS {text}", escape_identifier(login))).await
    }
}

/// What a login is; its name follows.
const ROLE: &str = "SELECT rolcanlogin AS may_log_in, coalesce(shobj_description(oid, 'pg_authid'), '') AS comment \
                    FROM pg_roles WHERE rolname =";

async fn role_now(admin: &Client, login: &str) -> Result<Option<Role>, CallError> {
    let rows = admin.query_typed(&format!("{ROLE} $1"), &[(&login, Type::NAME)]).await;
    let rows = rows.map_err(|error| nothing_done(&error))?;
    Ok(rows.first().map(|row| Role::new(row.get(0), row.get(1))))
}

/// A session of a login.
struct Session {
    pid: i32,
    application: String,
    address: String,
    database: String,
}

impl Session {
    fn whose(&self) -> String {
        let application = if self.application.is_empty() { "?" } else { &self.application };
        let address = if self.address.is_empty() { "this machine" } else { &self.address };
        format!("{application} in {} from {address}", self.database)
    }
}

/// The sessions of a login, but for our own; those that began before a time, where one is given.
async fn sessions_of(
    admin: &Client,
    login: &str,
    before: Option<Timestamp>,
) -> Result<Vec<Session>, CallError> {
    let rows = admin
        .query_typed(
            "SELECT pid, coalesce(application_name, ''), coalesce(host(client_addr), ''), coalesce(datname, ''), \
             (extract(epoch FROM backend_start) * 1000)::bigint FROM pg_stat_activity \
             WHERE usename = $1 AND pid <> pg_backend_pid() ORDER BY backend_start, pid",
            &[(&login, Type::NAME)],
        )
        .await
        .map_err(|error| nothing_done(&error))?;
    let mut sessions = Vec::new();
    for row in &rows {
        // What began in the second of the change may have been let in by the password before it.
        let is_meant = match (before, row.get::<_, Option<i64>>(4)) {
            (None, _) => true,
            (Some(before), Some(began)) => began < before.millis() + 1_000,
            (Some(_), None) => {
                let message = format!("{TARGET}: the admin login may not see when sessions began");
                return Err(Refusal::operator(RefusalKind::Permission, message).into());
            }
        };
        if is_meant {
            sessions.push(Session {
                pid: row.get(0),
                application: row.get(1),
                address: row.get(2),
                database: row.get(3),
            });
        }
    }
    Ok(sessions)
}

/// Ends the sessions of a login in batches and counts again, until none is left (H66, H78).
async fn end_sessions(
    admin: &Client,
    login: &str,
    before: Option<Timestamp>,
) -> Result<(), CallError> {
    if planted!("sessions_live_on") {
        return Ok(());
    }
    let mut left = sessions_of(admin, login, before).await?;
    for _ in 0..COUNTS {
        if left.is_empty() {
            return Ok(());
        }
        let size = if planted!("all_sessions_at_once") { left.len() } else { BATCH as usize };
        let pids: Vec<i32> = left.iter().take(size).map(|session| session.pid).collect();
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE pid = ANY($1) AND usename = $2";
        admin.execute(end, &[&pids, &login]).await.map_err(|error| sessions_left(&error, login))?;
        tokio::time::sleep(BETWEEN_BATCHES).await;
        left = sessions_of(admin, login, before).await?;
    }
    let message = format!("{} sessions of login `{login}` do not end", left.len());
    Err(CallError::Unknown(message))
}

/// Waits until a standby has replayed what was written up to a place in the log.
async fn replayed(standby: &Client, at: &str) -> Result<(), CallError> {
    for _ in 0..LOOKS_AT_A_STANDBY {
        let ask = "SELECT coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, true)";
        let row = standby.query_one(ask, &[&at]).await;
        let row = row.map_err(|error| CallError::Unknown(postgres::in_words(&error)))?;
        if row.get(0) || planted!("standbys_not_asked") {
            return Ok(());
        }
        tokio::time::sleep(BETWEEN_BATCHES).await;
    }
    Err(CallError::Unknown(format!("{TARGET}: a standby has not heard of the change yet")))
}

/// The change was made; only its sessions are left.
fn sessions_left(error: &tokio_postgres::Error, login: &str) -> CallError {
    let why = postgres::in_words(error);
    CallError::Unknown(format!("the sessions of login `{login}` could not be ended: {why}"))
}

/// What went wrong before anything was committed: it is rolled back, so nothing was done and nothing will land.
fn nothing_done(error: &tokio_postgres::Error) -> CallError {
    let message = format!("{TARGET}: {}", postgres::in_words(error));
    match error.code().map(|code| code.code()) {
        Some("42501") => Refusal::operator(RefusalKind::Permission, message).into(),
        // A lock or a statement took too long, the server goes down, or it has no room.
        Some("55P03" | "57014" | "57P01" | "57P02" | "57P03" | "53300" | "40001" | "40P01") => {
            unavailable(message).into()
        }
        Some(_) => Refusal::operator(RefusalKind::Unsupported, message).into(),
        None => unavailable(message).into(),
    }
}

fn unavailable(message: String) -> Refusal {
    Refusal::retry(RefusalKind::Unavailable, None, message)
}

fn absent(login: &str) -> Refusal {
    Refusal::operator(RefusalKind::NotFound, format!("{TARGET} has no login `{login}`"))
}

fn another_generation(id: &IssuedId) -> Refusal {
    let message =
        format!("login `{}` has not the generation that was meant, and is left as it is", id.id);
    Refusal::operator(RefusalKind::Conflict, message)
}

fn field<'a>(credential: &'a Credential, name: &str) -> Result<&'a SecretValue, Refusal> {
    credential
        .field(&Field::new(name))
        .ok_or_else(|| unsupported(&format!("the credential has no field `{name}`")))
}

/// Makes what the server keeps instead of a password (RFC 5803). Anything else in its place would be taken for a password.
///
/// # Errors
/// A refusal where it is not in that form.
fn verifier(password: &SecretValue) -> Result<String, Refusal> {
    let made = postgres_protocol::password::scram_sha_256(password.expose());
    if is_verifier(&made) {
        return Ok(made);
    }
    Err(unsupported("no verifier could be made of the password"))
}

/// `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`, with 16, 32 and 32 bytes in base64.
fn is_verifier(text: &str) -> bool {
    let parts = || {
        let (iterations, rest) = text.strip_prefix("SCRAM-SHA-256$")?.split_once(':')?;
        let (salt, keys) = rest.split_once('$')?;
        let (stored, server) = keys.split_once(':')?;
        Some((iterations, [(salt, 16), (stored, 32), (server, 32)]))
    };
    let Some((iterations, keys)) = parts() else { return false };
    let holds = |(text, length): (&str, usize)| {
        use base64::Engine;
        let decoded = base64::engine::general_purpose::STANDARD.decode(text);
        decoded.is_ok_and(|bytes| bytes.len() == length)
    };
    iterations.parse::<u32>().is_ok_and(|count| count >= 4096) && keys.into_iter().all(holds)
}

/// Whether two labels are of one rotation: they differ in the number of the attempt only.
fn same_rotation(one: &Label, other: &Label) -> bool {
    let of = |label: &Label| label.0.rsplit_once('-').map(|(rotation, _)| rotation.to_owned());
    of(one).is_some() && of(one) == of(other)
}

fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok()?;
    (!host.is_empty()).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use keywheel_driver::conformance::canary;
    use keywheel_driver::conformance::issuer::{Subject, run as run_suite};
    use keywheel_driver::issuer::Suspect;
    use keywheel_driver::{Remedy, Severity};
    use keywheel_ground::postgres::Postgres as Server;
    use serde_json::json;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// The owner, the two logins, and an admin login that is no superuser.
    const SHAPE: &str = "
        CREATE ROLE app_own NOLOGIN;
        CREATE ROLE app_a NOLOGIN IN ROLE app_own;
        CREATE ROLE app_b NOLOGIN IN ROLE app_own;
        CREATE ROLE warden LOGIN CREATEROLE PASSWORD 'kwcanary-warden'
            IN ROLE pg_signal_backend, pg_read_all_stats;
        CREATE DATABASE app OWNER app_own;
        REVOKE CONNECT ON DATABASE app FROM PUBLIC;
        GRANT CONNECT ON DATABASE app TO warden;
        ALTER ROLE app_a IN DATABASE app SET role TO app_own;
        ALTER ROLE app_b IN DATABASE app SET role TO app_own;";

    const ROOT: &str = "kwcanary-postgres-root";
    const WARDEN: &str = "kwcanary-warden";

    /// A server with the right shape in it, and the issuer that is configured for it.
    struct Bench {
        server: Server,
        folder: TempDir,
    }

    impl Bench {
        /// Returns none, and says why, where PostgreSQL cannot be had.
        async fn new(settings: &[&str]) -> Option<Self> {
            let server = match Server::start_with(ROOT, None, settings) {
                Ok(server) => server,
                Err(why) => {
                    use std::io::Write;
                    writeln!(std::io::stdout(), "skipped: PostgreSQL ({why})").unwrap();
                    return None;
                }
            };
            let bench = Self { server, folder: TempDir::new().unwrap() };
            for statement in SHAPE.split(';').map(str::trim).filter(|text| !text.is_empty()) {
                bench.run("postgres", statement).await;
            }
            let schema = "ALTER SCHEMA public OWNER TO app_own; CREATE TABLE seen (n int); ALTER TABLE seen OWNER TO app_own";
            bench.run("app", schema).await;
            Some(bench)
        }

        fn url(&self, user: &str, password: &str, database: &str, port: u16) -> String {
            format!("postgresql://{user}:{password}@127.0.0.1:{port}/{database}")
        }

        async fn client(
            &self,
            user: &str,
            password: &str,
            database: &str,
        ) -> Result<Client, String> {
            let url = self.url(user, password, database, self.server.port());
            let place: tokio_postgres::Config = url.parse().unwrap();
            let mut place = place;
            place.ssl_mode(tokio_postgres::config::SslMode::Disable);
            postgres::connect(&place, None).await.map_err(|failed| failed.in_words())
        }

        async fn run(&self, database: &str, statements: &str) {
            let root = self.client("postgres", ROOT, database).await.unwrap();
            root.batch_execute(statements).await.unwrap();
        }

        fn issuer(&self) -> Arc<dyn Issuer> {
            self.issuer_with(self.server.port(), "warden", WARDEN, json!({}))
        }

        fn issuer_with(
            &self,
            port: u16,
            user: &str,
            password: &str,
            changes: serde_json::Value,
        ) -> Arc<dyn Issuer> {
            let name = format!("{user}-{port}-{}", password.len());
            std::fs::write(self.folder.path().join(&name), self.url(user, password, "app", port))
                .unwrap();
            let mut config = json!({ "admin_url": { "file": name }, "owner": "app_own", "logins": ["app_a", "app_b"] });
            config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let config: Config = serde_json::from_value(config).unwrap();
            config.build(&Context::at(self.folder.path())).unwrap_or_else(|e| panic!("{e}"))
        }

        /// What stands in the way of a turn.
        async fn blocks(&self) -> Vec<String> {
            let findings = self.issuer().preflight().await.unwrap();
            let blocks = findings.into_iter().filter(|one| one.severity == Severity::Blocks);
            blocks.map(|finding| finding.message).collect()
        }
    }

    /// Mints a version beside the previous one, and returns its credential with it.
    async fn mint(
        issuer: &dyn Issuer,
        label: &str,
        previous: Option<&IssuedId>,
        suspects: &[Suspect],
    ) -> Result<(IssuedId, Credential), CallError> {
        let mut random = |bytes: &mut [u8]| getrandom::fill(bytes).unwrap();
        let value = issuer.generate(&mut random, previous).unwrap();
        let label = Label(label.into());
        let request = Mint { value: Some(&value), previous, suspects, ..Mint::new(&label) };
        let minted = issuer.mint(&request).await?;
        Ok((minted.issued.unwrap(), value))
    }

    fn text<'a>(credential: &'a Credential, name: &str) -> &'a str {
        std::str::from_utf8(credential.field(&Field::new(name)).unwrap().expose()).unwrap()
    }

    fn login(username: &str, password: &str) -> Credential {
        Credential::default()
            .with(Field::new("username"), SecretValue::new(username.into()))
            .with(Field::new("password"), SecretValue::new(password.into()))
    }

    /// Waits until the server answers with a number.
    async fn until(client: &Client, ask: &str, number: i64) {
        for _ in 0..100 {
            if client.query_one(ask, &[]).await.unwrap().get::<_, i64>(0) == number {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("{ask}: not {number}");
    }

    /// Passes connections on, and keeps the answer to the next commit to itself.
    async fn losing(port: u16) -> (u16, Arc<std::sync::atomic::AtomicBool>) {
        use std::sync::atomic::{AtomicBool, Ordering};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let lose = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&lose);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let told = Arc::clone(&told);
                tokio::spawn(async move {
                    let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let back = tokio::spawn(async move {
                        tokio::io::copy(&mut from_server, &mut to_client).await.ok();
                    });
                    let mut buffer = vec![0; 65_536];
                    while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
                        let is_commit = buffer[..length].windows(7).any(|part| part == b"COMMIT\0");
                        let lost = is_commit && told.swap(false, Ordering::SeqCst);
                        if lost {
                            back.abort();
                        }
                        if to_server.write_all(&buffer[..length]).await.is_err() || lost {
                            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                            break;
                        }
                    }
                });
            }
        });
        (own, lose)
    }

    /// Passes connections on. When it is told to, those that stand fall silent, and stay open.
    async fn silencing(port: u16) -> (u16, Arc<tokio::sync::Notify>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let silence = Arc::new(tokio::sync::Notify::new());
        let told = Arc::clone(&silence);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let told = Arc::clone(&told);
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        () = told.notified() => std::future::pending().await,
                    }
                });
            }
        });
        (own, silence)
    }

    #[tokio::test]
    async fn a_connection_that_fell_silent_is_made_anew() {
        let Some(bench) = Bench::new(&["fsync=off"]).await else { return };
        let (port, silence) = silencing(bench.server.port()).await;
        let issuer = bench.issuer_with(port, "warden", WARDEN, json!({}));
        issuer.list("kw-").await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
        silence.notify_waiters();
        let listed = tokio::time::timeout(CONNECT, issuer.list("kw-")).await;
        assert_eq!(listed.expect("it waits for what will never answer"), Ok(Vec::new()));
    }

    #[tokio::test]
    async fn those_who_log_in_with_the_same_words_share_a_connection_and_nobody_else_does() {
        let Some(bench) = Bench::new(&["fsync=off"]).await else { return };
        for _ in 0..3 {
            bench.issuer().list("kw-").await.unwrap();
        }
        let root = bench.client("postgres", ROOT, "app").await.unwrap();
        let ours = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'warden'";
        let count: i64 = root.query_one(ours, &[]).await.unwrap().get(0);
        assert_eq!(count, 1);
        let port = bench.server.port();
        let wrong = bench.issuer_with(port, "warden", "kwcanary-wrong-password", json!({}));
        let refused = wrong.list("kw-").await;
        assert!(
            matches!(refused, Err(CallError::Refused(r)) if r.kind == RefusalKind::Permission),
            "a wrong password was let in"
        );
    }

    #[tokio::test]
    async fn h05_the_issuer_keeps_its_contract_where_a_commit_has_no_answer() {
        let Some(bench) = Bench::new(&["fsync=off"]).await else { return };
        let (port, lose) = losing(bench.server.port()).await;
        let issuer = bench.issuer_with(port, "warden", WARDEN, json!({}));
        let unread = bench.issuer_with(1, "warden", WARDEN, json!({}));
        let wrong =
            bench.issuer_with(bench.server.port(), "warden", "kwcanary-wrong-password", json!({}));
        run_suite(&Subject {
            issuer: &*issuer,
            prefix: "kw-suite-",
            garbage: &login("app_a", "kwcanary-garbage"),
            lose_next_answer: Some(&|| lose.store(true, std::sync::atomic::Ordering::SeqCst)),
            broken: &[&*unread, &*wrong],
            canaries: &[
                &login("app_a", WARDEN),
                &login("app_a", "kwcanary-wrong-password"),
                &login("app_b", &canary("postgres")),
            ],
        })
        .await;
    }

    #[tokio::test]
    async fn h67_two_logins_take_turns_and_both_work_meanwhile() {
        let Some(bench) = Bench::new(&["fsync=off"]).await else { return };
        let issuer = bench.issuer();
        assert_eq!(bench.blocks().await, Vec::<String>::new());
        let (a, first) = mint(&*issuer, "kw-one-1", None, &[]).await.unwrap();
        assert_eq!((a.id.as_str(), a.generation), ("app_a", Some(1)));
        let (b, second) = mint(&*issuer, "kw-two-1", Some(&a), &[]).await.unwrap();
        assert_eq!((b.id.as_str(), b.generation), ("app_b", Some(1)));
        for credential in [&first, &second] {
            assert_eq!(issuer.verify(credential).await, Ok(Verdict::Accepted));
        }
        // What the one login makes, the other changes.
        let one = bench.client("app_a", text(&first, "password"), "app").await.unwrap();
        one.batch_execute("CREATE TABLE made (n int)").await.unwrap();
        let other = bench.client("app_b", text(&second, "password"), "app").await.unwrap();
        other.batch_execute("ALTER TABLE made ADD m int; DROP TABLE made").await.unwrap();
        let refused = mint(&*issuer, "kw-three-1", None, &[]).await.err();
        assert!(matches!(refused, Some(CallError::Refused(r)) if r.kind == RefusalKind::Conflict));

        let switch = issuer.suspend().unwrap();
        switch.suspend(&a).await.unwrap();
        assert_eq!(issuer.verify(&first).await, Ok(Verdict::Refused));
        switch.resume(&a).await.unwrap();
        assert_eq!(issuer.verify(&first).await, Ok(Verdict::Accepted));
        issuer.revoke(&a).await.unwrap();
        assert_eq!(issuer.verify(&first).await, Ok(Verdict::Refused));
        assert_eq!(issuer.verify(&second).await, Ok(Verdict::Accepted));
        let (again, _) = mint(&*issuer, "kw-four-1", Some(&b), &[]).await.unwrap();
        assert_eq!((again.id.as_str(), again.generation), ("app_a", Some(2)));
    }

    #[tokio::test]
    async fn h66_a_suspended_and_a_revoked_login_has_no_session_left() {
        let Some(bench) = Bench::new(&["fsync=off"]).await else { return };
        let issuer = bench.issuer();
        let (a, first) = mint(&*issuer, "kw-one-1", None, &[]).await.unwrap();
        let usage = issuer.usage().unwrap();
        assert_eq!(usage.last_used(&a).await.unwrap().at, None);
        let held = bench.client("app_a", text(&first, "password"), "app").await.unwrap();
        let used = usage.last_used(&a).await.unwrap();
        assert!(used.at.is_some());
        assert!(
            used.detail
                .unwrap()
                .starts_with("1 sessions of login `app_a`: ? in app from 127.0.0.1")
        );
        issuer.suspend().unwrap().suspend(&a).await.unwrap();
        assert!(held.simple_query("SELECT 1").await.is_err(), "the session lives on");
        issuer.suspend().unwrap().resume(&a).await.unwrap();
        let held = bench.client("app_a", text(&first, "password"), "app").await.unwrap();
        issuer.revoke(&a).await.unwrap();
        assert!(held.simple_query("SELECT 1").await.is_err(), "the session lives on");
    }

    #[tokio::test]
    async fn a_session_is_seen_whatever_it_calls_itself() {
        let Some(bench) = Bench::new(&["fsync=off"]).await else { return };
        let issuer = bench.issuer();
        let (a, first) = mint(&*issuer, "kw-one-1", None, &[]).await.unwrap();
        let held = bench.client("app_a", text(&first, "password"), "app").await.unwrap();
        let call = format!("SET application_name = '{OURS}'");
        held.simple_query(&call).await.unwrap();
        assert!(issuer.usage().unwrap().last_used(&a).await.unwrap().at.is_some());
        let record = told(&*issuer, &a, Timestamp::default()).await;
        assert!(record.contains("session, still open: `keywheel` in database `app`"), "{record}");
    }

    #[tokio::test]
    async fn h05_a_change_whose_sessions_cannot_be_ended_is_not_refused() {
        let Some(bench) = Bench::new(&["fsync=off"]).await else { return };
        let (a, first) = mint(&*bench.issuer(), "kw-one-1", None, &[]).await.unwrap();
        // A standby that is down: the login is changed all the same.
        let gone = json!({ "standbys": ["127.0.0.1:1"] });
        let issuer = bench.issuer_with(bench.server.port(), "warden", WARDEN, gone);
        let minted = mint(&*issuer, "kw-two-1", Some(&a), &[]).await.err();
        assert!(matches!(minted, Some(CallError::Unknown(_))));
        assert_eq!(bench.issuer().list("kw-two-1").await.unwrap().len(), 1);
        mint(&*bench.issuer(), "kw-two-2", Some(&a), &[]).await.unwrap();
        let suspended = issuer.suspend().unwrap().suspend(&a).await;
        assert!(matches!(suspended, Err(CallError::Unknown(_))));
        assert_eq!(bench.issuer().verify(&first).await, Ok(Verdict::Refused));
        assert!(matches!(issuer.revoke(&a).await, Err(CallError::Unknown(_))));
    }

    #[tokio::test]
    async fn h78_sessions_are_ended_in_batches() {
        let Some(bench) = Bench::new(&["fsync=off", "log_statement=all"]).await else { return };
        let issuer = bench.issuer();
        let (a, first) = mint(&*issuer, "kw-one-1", None, &[]).await.unwrap();
        let mut held = Vec::new();
        for _ in 0..2 * BATCH + 1 {
            held.push(bench.client("app_a", text(&first, "password"), "app").await.unwrap());
        }
        let calls = || bench.server.log().matches("SELECT pg_terminate_backend").count();
        let before = calls();
        issuer.suspend().unwrap().suspend(&a).await.unwrap();
        assert_eq!(calls() - before, 3);
        for session in held {
            assert!(session.simple_query("SELECT 1").await.is_err());
        }
    }

    #[tokio::test]
    async fn h92_another_generation_is_left_alone() {
        let Some(bench) = Bench::new(&["fsync=off"]).await else { return };
        let issuer = bench.issuer();
        let (a, _) = mint(&*issuer, "kw-one-1", None, &[]).await.unwrap();
        issuer.revoke(&a).await.unwrap();
        let (_, second) = mint(&*issuer, "kw-two-1", None, &[]).await.unwrap();
        let held = bench.client("app_a", text(&second, "password"), "app").await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
        issuer.revoke(&a).await.unwrap();
        let switch = issuer.suspend().unwrap();
        for refused in [switch.suspend(&a).await, switch.resume(&a).await] {
            assert!(
                matches!(refused, Err(CallError::Refused(r)) if r.kind == RefusalKind::Conflict)
            );
        }
        assert_eq!(issuer.verify(&second).await, Ok(Verdict::Accepted));
        drop(held);
        let of_tomorrow = IssuedId { id: "app_a".into(), generation: Some(9) };
        assert!(issuer.revoke(&of_tomorrow).await.is_err());
    }

    #[tokio::test]
    async fn h92_a_generation_is_read_once_nobody_else_changes_the_pair() {
        let snapshots = "default_transaction_isolation=repeatable read";
        let Some(bench) = Bench::new(&["fsync=off", snapshots]).await else { return };
        let issuer = bench.issuer();
        let (a, _) = mint(&*issuer, "kw-one-1", None, &[]).await.unwrap();
        let other = bench.client("postgres", ROOT, "app").await.unwrap();
        let lock = "SELECT pg_advisory_lock(hashtextextended('keywheel app_own', 0))";
        other.batch_execute(lock).await.unwrap();
        let revoked = tokio::spawn({
            let issuer = Arc::clone(&issuer);
            let a = a.clone();
            async move { issuer.revoke(&a).await }
        });
        let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        until(&other, waiting, 1).await;
        let next = "COMMENT ON ROLE app_a IS '[keywheel 2 kw-two-1 2026-01-31T09:00:00Z]'";
        other.batch_execute(next).await.unwrap();
        other.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
        revoked.await.unwrap().unwrap();
        let role = role_now(&other, "app_a").await.unwrap().unwrap();
        assert!(role.may_log_in, "another generation was ended");
    }

    #[tokio::test]
    async fn nobody_waits_for_the_pair_while_former_sessions_end() {
        let Some(bench) = Bench::new(&["fsync=off"]).await else { return };
        let (a, _) = mint(&*bench.issuer(), "kw-one-1", None, &[]).await.unwrap();
        bench.issuer().revoke(&a).await.unwrap();
        mint(&*bench.issuer(), "kw-two-1", None, &[]).await.unwrap();
        // A standby that lets nobody in, and refuses nobody either.
        let standby = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = json!({ "standbys": [standby.local_addr().unwrap().to_string()] });
        let issuer = bench.issuer_with(bench.server.port(), "warden", WARDEN, silent);
        let revoked = tokio::spawn(async move { issuer.revoke(&a).await });
        let _held = standby.accept().await.unwrap();
        let root = bench.client("postgres", ROOT, "app").await.unwrap();
        until(&root, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", 0).await;
        revoked.abort();
    }

    #[tokio::test]
    async fn h19_preflight_logs_in_as_the_admin_itself() {
        let Some(bench) = Bench::new(&["fsync=off"]).await else { return };
        let issuer = bench.issuer();
        issuer.list("kw-").await.unwrap();
        bench.run("postgres", "ALTER ROLE warden PASSWORD 'kwcanary-another'").await;
        let refused = issuer.preflight().await;
        assert!(matches!(refused, Err(CallError::Refused(r)) if r.kind == RefusalKind::Permission));
    }

    #[tokio::test]
    async fn an_emergency_takes_a_login_whose_holder_is_suspect_too() {
        let Some(bench) = Bench::new(&["fsync=off"]).await else { return };
        let issuer = bench.issuer();
        let (a, _) = mint(&*issuer, "kw-one-1", None, &[]).await.unwrap();
        let (b, second) = mint(&*issuer, "kw-two-1", Some(&a), &[]).await.unwrap();
        let held = bench.client("app_b", text(&second, "password"), "app").await.unwrap();
        assert!(mint(&*issuer, "kw-three-1", Some(&a), &[]).await.is_err());
        let (taken, third) = mint(
            &*issuer,
            "kw-three-1",
            Some(&a),
            &[Suspect { issued: Some(b.clone()), value: None }],
        )
        .await
        .unwrap();
        assert_eq!((taken.id.as_str(), taken.generation), ("app_b", Some(2)));
        assert!(held.simple_query("SELECT 1").await.is_err(), "a suspect's session lives on");
        assert_eq!(issuer.verify(&second).await, Ok(Verdict::Refused));
        issuer.revoke(&b).await.unwrap();
        assert_eq!(issuer.verify(&third).await, Ok(Verdict::Accepted));
    }

    #[tokio::test]
    async fn h70_h71_no_password_gets_into_the_log_of_the_server() {
        let loud = [
            "fsync=off",
            "log_statement=all",
            "log_min_duration_statement=0",
            "log_min_error_statement=debug5",
            "log_duration=on",
            "log_connections=on",
        ];
        let Some(bench) = Bench::new(&loud).await else { return };
        let issuer = bench.issuer();
        let (a, first) = mint(&*issuer, "kw-one-1", None, &[]).await.unwrap();
        issuer.verify(&first).await.unwrap();
        // An error in the middle of a change is logged with its statement.
        bench.run("postgres", "ALTER ROLE app_b SUPERUSER").await;
        let mut random = |bytes: &mut [u8]| getrandom::fill(bytes).unwrap();
        let unset = issuer.generate(&mut random, Some(&a)).unwrap();
        let label = Label("kw-two-1".into());
        let request = Mint { value: Some(&unset), previous: Some(&a), ..Mint::new(&label) };
        let refused = issuer.mint(&request).await.err().unwrap();
        assert!(
            matches!(&refused, CallError::Refused(r) if r.kind == RefusalKind::Permission),
            "{refused}"
        );
        let log = bench.server.log();
        assert!(log.contains("ALTER ROLE"), "the log has no statements");
        assert!(log.contains("ERROR"), "the log has no error");
        for credential in [&first, &unset] {
            assert!(!log.contains(text(credential, "password")), "a password is in the log");
        }
    }

    #[tokio::test]
    async fn h68_each_difference_between_the_logins_is_named() {
        let Some(bench) = Bench::new(&["fsync=off"]).await else { return };
        let hba = bench.server.socket().join("data/pg_hba.conf");
        let rules = std::fs::read_to_string(&hba).unwrap();
        for (difference, undo, wanted) in [
            (
                "ALTER ROLE app_b CONNECTION LIMIT 5",
                "ALTER ROLE app_b CONNECTION LIMIT -1",
                "`app_a` and `app_b` differ in `connection limit`: -1 and 5",
            ),
            (
                "ALTER ROLE app_a SET shop.word TO 'kwcanary-setting'",
                "ALTER ROLE app_a RESET shop.word",
                "`app_a` has another setting of `shop.word` than `app_b`",
            ),
            (
                "GRANT pg_read_all_data TO app_b",
                "REVOKE pg_read_all_data FROM app_b",
                "only `app_b` is a member of role `pg_read_all_data`",
            ),
            (
                "ALTER ROLE app_b IN DATABASE app RESET role",
                "ALTER ROLE app_b IN DATABASE app SET role TO app_own",
                "login `app_b` does not act as the owner in database `app`",
            ),
            (
                "GRANT SELECT ON seen TO app_a",
                "REVOKE SELECT ON seen FROM app_a",
                "`app_a` itself was given rights on 1 objects in database `app`: table seen; the owner should",
            ),
            (
                "ALTER TABLE seen OWNER TO app_a",
                "ALTER TABLE seen OWNER TO app_own",
                "`app_a` itself owns 1 objects in database `app`: table seen; the owner should",
            ),
            (
                "REVOKE app_own FROM app_a",
                "GRANT app_own TO app_a",
                "login `app_a` is no member of the owner: GRANT \"app_own\" TO \"app_a\"",
            ),
            (
                "ALTER ROLE app_a VALID UNTIL '2020-01-01'",
                "ALTER ROLE app_a VALID UNTIL 'infinity'",
                "the password of login `app_a` is no longer valid (VALID UNTIL)",
            ),
            (
                "REVOKE pg_signal_backend FROM warden",
                "GRANT pg_signal_backend TO warden",
                "the admin login `warden` may not end the sessions of `app_a`",
            ),
            (
                "REVOKE pg_read_all_stats FROM warden",
                "GRANT pg_read_all_stats TO warden",
                "the admin login `warden` may not see the sessions of others: GRANT pg_read_all_stats",
            ),
            (
                "ALTER ROLE app_a NOINHERIT; ALTER ROLE app_b NOINHERIT",
                "ALTER ROLE app_a INHERIT; ALTER ROLE app_b INHERIT",
                "login `app_a` does not inherit the rights of the owner: ALTER ROLE \"app_a\" INHERIT",
            ),
            (
                "ALTER ROLE warden NOCREATEROLE",
                "ALTER ROLE warden CREATEROLE",
                "the admin login `warden` may not change roles: it lacks CREATEROLE",
            ),
        ] {
            bench.run("app", difference).await;
            let found = bench.blocks().await;
            assert!(found.iter().any(|block| block.starts_with(wanted)), "{wanted}: {found:?}");
            assert!(found.iter().all(|block| !block.contains("kwcanary")), "{found:?}");
            bench.run("app", undo).await;
            assert_eq!(bench.blocks().await, Vec::<String>::new(), "{undo}");
        }
        std::fs::write(&hba, format!("host all app_a all scram-sha-256\n{rules}")).unwrap();
        bench
            .run(
                "postgres",
                "SELECT pg_reload_conf(); GRANT SELECT ON pg_hba_file_rules TO warden; \
            GRANT EXECUTE ON FUNCTION pg_hba_file_rules() TO warden",
            )
            .await;
        bench
            .run(
                "app",
                "GRANT SELECT ON pg_hba_file_rules TO warden; \
            GRANT EXECUTE ON FUNCTION pg_hba_file_rules() TO warden",
            )
            .await;
        assert_eq!(bench.blocks().await, ["line 1 of pg_hba.conf names `app_a` and not `app_b`"]);
    }

    #[tokio::test]
    async fn h74_what_logs_in_later_is_named() {
        let Some(bench) = Bench::new(&["fsync=off"]).await else { return };
        bench
            .run(
                "app",
                "CREATE EXTENSION postgres_fdw; CREATE SERVER reports FOREIGN DATA WRAPPER postgres_fdw; \
                 CREATE USER MAPPING FOR postgres SERVER reports OPTIONS (user 'app_a', password 'kwcanary-mapping'); \
                 CREATE SUBSCRIPTION feed CONNECTION 'host=127.0.0.1 user=app_b password=kwcanary-feed' \
                 PUBLICATION p WITH (connect = false)",
            )
            .await;
        let root = bench.issuer_with(bench.server.port(), "postgres", ROOT, json!({}));
        let said = |findings: Vec<Finding>| {
            findings.into_iter().map(|one| one.message).collect::<Vec<_>>().join("\n")
        };
        let told = said(root.preflight().await.unwrap());
        assert!(
            told.contains(
                "a user mapping of foreign server `reports` keeps the password of `app_a`"
            ),
            "{told}"
        );
        assert!(told.contains("subscription `feed` keeps the password of `app_b`"), "{told}");
        assert!(!told.contains("kwcanary"));
        let told = said(bench.issuer().preflight().await.unwrap());
        assert!(
            told.contains("a user mapping of foreign server `reports` may keep a password"),
            "{told}"
        );
        assert!(told.contains("subscription `feed` may keep a password"), "{told}");
    }

    #[tokio::test]
    async fn h73_a_standby_that_is_behind_is_waited_for() {
        let Some(bench) = Bench::new(&["fsync=off"]).await else { return };
        let late = ["fsync=off", "recovery_min_apply_delay=1s", "hot_standby=on"];
        let standby = bench.server.standby(ROOT, &late).unwrap();
        let at = json!({ "standbys": [format!("127.0.0.1:{}", standby.port())] });
        let issuer = bench.issuer_with(bench.server.port(), "warden", WARDEN, at);
        let (a, first) = mint(&*issuer, "kw-one-1", None, &[]).await.unwrap();
        assert_eq!(issuer.verify(&first).await, Ok(Verdict::Accepted));
        let url = bench.url("app_a", text(&first, "password"), "app", standby.port());
        let mut place: tokio_postgres::Config = url.parse().unwrap();
        place.ssl_mode(tokio_postgres::config::SslMode::Disable);
        let held =
            postgres::connect(&place, None).await.map_err(|failed| failed.in_words()).unwrap();
        assert!(issuer.usage().unwrap().last_used(&a).await.unwrap().at.is_some());
        issuer.revoke(&a).await.unwrap();
        assert!(
            held.simple_query("SELECT 1").await.is_err(),
            "the session on the standby lives on"
        );
        assert_eq!(issuer.verify(&first).await, Ok(Verdict::Refused));
    }

    #[tokio::test]
    async fn h76_nobody_changes_the_login_that_is_logged_in_as() {
        let Some(bench) = Bench::new(&["fsync=off"]).await else { return };
        let own = json!({ "owner": "wardens", "logins": ["warden", "warden_b"] });
        bench
            .run(
                "postgres",
                "CREATE ROLE wardens NOLOGIN; GRANT wardens TO warden; \
            CREATE ROLE warden_b NOLOGIN CREATEROLE IN ROLE wardens, pg_signal_backend, pg_read_all_stats; \
            GRANT CONNECT ON DATABASE app TO wardens",
            )
            .await;
        let issuer = bench.issuer_with(bench.server.port(), "warden", WARDEN, own.clone());
        let a = IssuedId { id: "warden".into(), generation: Some(0) };
        let (b, second) = mint(&*issuer, "kw-one-1", Some(&a), &[]).await.unwrap();
        let refused = issuer.revoke(&a).await;
        assert!(matches!(refused, Err(CallError::Refused(r)) if r.remedy == Remedy::Operator));
        // The connection string has moved on, as the store has that holds it.
        let moved =
            bench.issuer_with(bench.server.port(), "warden_b", text(&second, "password"), own);
        // Connections of ours that wait as the former login use nothing.
        assert_eq!(moved.usage().unwrap().last_used(&a).await.unwrap().at, None);
        moved.suspend().unwrap().suspend(&a).await.unwrap();
        moved.revoke(&a).await.unwrap();
        assert_eq!(moved.verify(&second).await, Ok(Verdict::Accepted));
        assert!(moved.revoke(&b).await.is_err());
    }

    #[tokio::test]
    async fn a_single_login_is_cut_over_and_its_former_sessions_end() {
        let Some(bench) = Bench::new(&["fsync=off"]).await else { return };
        let issuer = bench.issuer_with(
            bench.server.port(),
            "warden",
            WARDEN,
            json!({ "logins": ["app_a"] }),
        );
        assert_eq!(issuer.facts().max_live, Some(1));
        let (first_id, first) = mint(&*issuer, "kw-one-1", None, &[]).await.unwrap();
        let held = bench.client("app_a", text(&first, "password"), "app").await.unwrap();
        let (second_id, second) = mint(&*issuer, "kw-two-1", Some(&first_id), &[]).await.unwrap();
        assert_eq!(second_id.generation, Some(2));
        assert_eq!(issuer.verify(&first).await, Ok(Verdict::Refused));
        tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
        let fresh = bench.client("app_a", text(&second, "password"), "app").await.unwrap();
        issuer.revoke(&first_id).await.unwrap();
        assert!(held.simple_query("SELECT 1").await.is_err(), "the former session lives on");
        assert!(fresh.simple_query("SELECT 1").await.is_ok(), "the new session was ended");
    }

    #[tokio::test]
    async fn a_setting_is_copied_whatever_its_name_and_its_database_are_called() {
        let Some(bench) = Bench::new(&["fsync=off"]).await else { return };
        for statement in [
            "DROP ROLE app_b",
            "CREATE DATABASE \"x$copy$y'\\\"",
            "ALTER ROLE app_a IN DATABASE \"x$copy$y'\\\" SET shop.\"a$copy$b\" TO 'kwcanary-setting'",
        ] {
            bench.run("postgres", statement).await;
        }
        let root = bench.issuer_with(bench.server.port(), "postgres", ROOT, json!({}));
        let changes = root.convert().unwrap().changes().await.unwrap();
        assert!(changes.iter().all(|change| !change.what.contains("kwcanary")));
        root.convert().unwrap().run(&changes).await.unwrap();
        let root = bench.client("postgres", ROOT, "app").await.unwrap();
        let ask = "SELECT s.setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase \
                   WHERE s.setrole = 'app_b'::regrole AND d.datname LIKE 'x%'";
        let copied: Vec<String> = root.query_one(ask, &[]).await.unwrap().get(0);
        assert_eq!(copied, ["shop.a$copy$b=kwcanary-setting"]);
    }

    #[test]
    fn a_verifier_is_told_from_anything_else() {
        let made = postgres_protocol::password::scram_sha_256(b"kwcanary-verifier");
        assert!(is_verifier(&made));
        for other in [
            "",
            "kwcanary-verifier",
            "md5d41d8cd98f00b204e9800998ecf8427e",
            &made[..made.len() - 2],
        ] {
            assert!(!is_verifier(other));
        }
        assert!(!is_verifier(&made.replace("$4096:", "$1:")));
    }

    #[test]
    fn a_mark_keeps_the_rest_of_the_comment() {
        for (comment, rest) in [
            ("", ""),
            ("the shop's login", "the shop's login"),
            ("before [keywheel 7 kw-4c1e9a-1 2026-11-26T10:00:00Z] after", "before  after"),
        ] {
            let (found, mark) = Mark::read(comment);
            assert_eq!(found, rest);
            assert_eq!(mark.map(|mark| mark.generation), comment.contains("keywheel").then_some(7));
        }
        assert!(Mark::read("[keywheel 7 revoked 2026-11-26T10:00:00Z]").1.unwrap().label.is_none());
        let (rest, mark) =
            Mark::read("[keywheel turns it] [keywheel 7 kw-1-1 2026-11-26T10:00:00Z]");
        assert_eq!((rest.as_str(), mark.unwrap().generation), ("[keywheel turns it]", 7));
        assert!(Mark::read("[keywheel seven revoked 2026-11-26T10:00:00Z]").1.is_none());
    }

    #[test]
    fn a_configuration_that_cannot_be_is_refused() {
        for changes in [
            json!({ "logins": [] }),
            json!({ "logins": ["a", "b", "c"] }),
            json!({ "logins": ["a", "a"] }),
            json!({ "logins": ["app_own", "b"] }),
            json!({ "logins": ["", "b"] }),
            json!({ "standbys": ["db2"] }),
        ] {
            let mut config =
                json!({ "admin_url": { "env": "X" }, "owner": "app_own", "logins": ["a", "b"] });
            config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let config: Config = serde_json::from_value(config).unwrap();
            assert!(config.build(&Context::at("/")).is_err(), "{changes}");
        }
    }

    /// What is on record about a version, one line for each entry.
    async fn told(issuer: &dyn Issuer, id: &IssuedId, since: Timestamp) -> String {
        let entries = issuer.audit().unwrap().since(id, since).await.unwrap();
        assert!(entries.is_sorted_by_key(|entry| entry.at));
        let soon = api::now() + Span::seconds(5);
        assert!(
            entries.iter().all(|entry| entry.at <= Some(soon)),
            "a time is read in another zone"
        );
        let told: String = entries.iter().map(|entry| format!("{}\n", entry.what)).collect();
        assert!(!told.contains("kwcanary"), "{told}");
        told
    }

    /// The same, once it holds so many refusals: the server's log is written by a process of its own.
    async fn told_with(issuer: &dyn Issuer, id: &IssuedId, refusals: usize) -> String {
        let mut record = String::new();
        for _ in 0..200 {
            record = told(issuer, id, Timestamp::default()).await;
            if record.matches("refused: ").count() >= refusals {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        record
    }

    #[tokio::test]
    async fn the_record_of_a_login_says_who_was_let_in_and_who_was_refused() {
        let settings = ["logging_collector=on", "log_connections=on", "lc_messages=C"];
        let settings = [&["fsync=off", "log_timezone=Asia/Shanghai"], &settings[..]].concat();
        let Some(bench) = Bench::new(&settings).await else { return };
        let root = bench.issuer_with(bench.server.port(), "postgres", ROOT, json!({}));
        let began = Timestamp::default();
        let (a, value) = mint(&*root, "kw-1-1", None, &[]).await.unwrap();
        let open = bench.client("app_a", text(&value, "password"), "app").await.unwrap();
        open.simple_query("SET application_name = 'web'; SELECT 'kwcanary-in-a-statement'")
            .await
            .unwrap();
        assert!(bench.client("app_a", "kwcanary-wrong", "app").await.is_err());
        let of_a = told_with(&*root, &a, 1).await;
        for line in [
            "generation 1 was made\n",
            "let in: `?` in database `app` from 127.0.0.1\n",
            "refused: wrong password from 127.0.0.1\n",
            "session, still open: `web` in database `app` from 127.0.0.1, last active ",
            "of no password\n",
        ] {
            assert!(of_a.contains(line), "{line} in {of_a}");
        }
        assert_eq!(of_a.lines().count(), 5, "{of_a}");
        let later = told(&*root, &a, api::now() + Span::hours(1)).await;
        assert!(later.contains("still open") && !later.contains("let in"), "{later}");

        root.revoke(&a).await.unwrap();
        assert!(bench.client("app_a", text(&value, "password"), "app").await.is_err());
        let revoked = told_with(&*root, &a, 2).await;
        assert!(revoked.contains("generation 1 was revoked\n"), "{revoked}");
        assert!(revoked.contains("let in: ") && !revoked.contains("still open"), "{revoked}");
        // One without a password is refused as one with a wrong password is.
        assert_eq!(revoked.matches("refused: ").count(), 2, "{revoked}");
        let (next, _) = mint(&*root, "kw-2-1", None, &[]).await.unwrap();
        assert_eq!(next.generation, Some(2));
        let former = told(&*root, &a, began).await;
        assert!(former.contains("generation 2 is there since then\n"), "{former}");
        bench.run("postgres", "DROP ROLE app_a").await;
        let gone = told(&*root, &a, began).await;
        assert!(gone.contains("the server has no login `app_a` any more"), "{gone}");
        assert!(gone.contains("let in: ") && gone.contains("refused: "), "{gone}");
    }

    #[tokio::test]
    async fn what_of_a_login_could_not_be_read_is_told_with_what_it_takes() {
        let Some(bench) = Bench::new(&["fsync=off"]).await else { return };
        let (issuer, began) = (bench.issuer(), Timestamp::default());
        let (a, value) = mint(&*issuer, "kw-1-1", None, &[]).await.unwrap();
        let _open = bench.client("app_a", text(&value, "password"), "app").await.unwrap();
        let of_a = told(&*issuer, &a, began).await;
        assert!(of_a.contains("`log_connections` is off"), "{of_a}");
        assert!(of_a.contains("the admin login may not read files of the server"), "{of_a}");
        assert!(of_a.contains("session, still open: "), "{of_a}");
        bench.run("postgres", "REVOKE pg_read_all_stats FROM warden").await;
        let blind = told(&*bench.issuer(), &a, began).await;
        assert!(blind.contains("that takes `pg_read_all_stats`"), "{blind}");
        assert!(!blind.contains("still open"), "{blind}");
        let root = bench.issuer_with(bench.server.port(), "postgres", ROOT, json!({}));
        let no_file = told(&*root, &a, began).await;
        assert!(no_file.contains("the server writes no log file in plain text"), "{no_file}");
    }
}
