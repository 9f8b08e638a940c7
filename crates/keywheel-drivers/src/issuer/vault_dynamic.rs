//! `vault_dynamic`: what an engine of Vault or OpenBao makes for a time, under a lease: logins of a database, and whatever else
//! a path returns with one.
//!
//! An issued id is the id of the lease. A lease ends with the token that asked for it, whatever its own time is: a token that
//! ends before is refused.
//!
//! The engine keeps no label. A lease whose answer was lost ends by itself; where nobody else reads the path (`exclusive`), it is
//! known by the time at which it was issued, and ended before the next one is made.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::facts::{Authority, IssuerFacts, LeaseFacts, Observe, ValueOrigin};
use keywheel_core::planted;
use keywheel_core::secret::{Credential, Field};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{Extend, Identity, Issuer, Live, Mint, Minted, Verdict};
use keywheel_driver::{CallError, Duration, Finding, Refusal, RefusalKind};
use reqwest::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{moment, now, unsupported};
use crate::http::Effect;
use crate::vault::{self, Auth, Body, Data, Door, Held, Place, Vault};
use crate::{Build, Context, secret_json};

const TARGET: &str = "issuer `vault_dynamic`";

/// A path that returns a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the server is; HTTPS, or a loopback address.
    pub address: String,
    /// The namespace, if it is not the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The file of the certificates that sign the server's, where this machine does not trust it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// How keywheel proves who it is. A lease ends with the token that asked for it.
    pub auth: Auth,
    /// The path that returns a lease when it is read: `database/creds/app`.
    pub path: String,
    /// The fields of the credential, and the name of each in the answer.
    #[serde(default = "login")]
    pub fields: BTreeMap<String, String>,
    /// How long a lease lives at most, however often it is extended (`max_ttl`). Without it a lease is not extended, only
    /// replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_life: Option<Duration>,
    /// Whether nobody and nothing else reads this path, no other secret either: a lease of which nobody knows is then ended.
    #[serde(default)]
    pub exclusive: bool,
    /// The PostgreSQL at which logins are tried, as a connection string without a login: `postgresql://host:5432/app`. Without
    /// it nobody is asked whether a login is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login_at: Option<String>,
    /// How long a new lease may be refused where it is used, and an ended one accepted.
    #[serde(default = "at_once")]
    pub propagation: Duration,
    /// How long a call without an answer can still take effect.
    #[serde(default = "minute")]
    pub settle_for: Duration,
}

fn login() -> BTreeMap<String, String> {
    ["username", "password"].map(|name| (name.to_owned(), name.to_owned())).into()
}

fn at_once() -> Duration {
    Span::ZERO.into()
}

fn minute() -> Duration {
    Span::minutes(1).into()
}

impl Build for Config {
    type Driver = dyn Issuer;

    fn build(&self, context: &Context) -> Result<Arc<dyn Issuer>, Refusal> {
        vault::check_path("path", &self.path)?;
        if self.fields.is_empty() {
            return Err(unsupported("`fields` is empty"));
        }
        let place = Place {
            address: &self.address,
            namespace: self.namespace.as_deref(),
            ca: self.ca.as_deref(),
            auth: &self.auth,
        };
        let door = self.login_at.as_deref().map(Door::at).transpose()?;
        let vault = Vault::new(TARGET, &place, context)?;
        Ok(Arc::new(VaultDynamic { vault, door, config: self.clone() }))
    }
}

struct VaultDynamic {
    vault: Vault,
    door: Option<Door>,
    config: Config,
}

#[async_trait]
impl Issuer for VaultDynamic {
    fn facts(&self) -> IssuerFacts {
        let authority = if self.door.is_some() { Authority::Issuer } else { Authority::None };
        IssuerFacts {
            destroy: true,
            // A lease that nobody knows of ends by itself.
            reset_repeatable: true,
            propagation: self.config.propagation.span(),
            settle_for: self.config.settle_for.span(),
            lease: Some(LeaseFacts { longest_life: self.config.longest_life.map(Duration::span) }),
            ..IssuerFacts::new(ValueOrigin::Theirs, Observe::None, authority)
        }
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        let mut wanted = vec![
            (self.config.path.clone(), "read"),
            ("sys/leases/lookup".to_owned(), "update"),
            ("sys/leases/revoke".to_owned(), "update"),
        ];
        if self.config.longest_life.is_some() {
            wanted.push(("sys/leases/renew".to_owned(), "update"));
        }
        let mut findings = self.vault.not_permitted(&wanted).await?;
        match self.leases().await {
            Err(CallError::Refused(no)) if no.kind == RefusalKind::Permission => {
                let path = &self.config.path;
                findings.push(Finding::blocks(format!(
                    "{TARGET}: the token may not list leases; add to its policy: path \"sys/leases/lookup/{path}/*\" {{ capabilities = [\"list\", \"sudo\"] }}"
                )));
            }
            leases => drop(leases?),
        }
        findings.extend(self.ends_with_its_token().await?);
        Ok(findings)
    }

    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        if let Some(previous) =
            request.previous.filter(|_| self.config.exclusive && !planted!("lost_lease_is_left"))
        {
            let known: Vec<&IssuedId> =
                request.suspects.iter().filter_map(|suspect| suspect.issued.as_ref()).collect();
            self.end_orphans(previous, &known).await?;
        }
        let answer = self.vault.call(Method::GET, &self.config.path, Body::Empty).await?;
        let made: Made = answer.read(Effect::Changes)?;
        if made.lease_id.is_empty() {
            return Err(unsupported("`path` returns no lease").into());
        }
        self.check_new(&made.lease_id, request)?;
        let mut data = made.data;
        let mut credential = Credential::default();
        for (field, name) in &self.config.fields {
            let Some(Held::Text(value)) = data.remove(name) else {
                let message = format!("{TARGET}: `path` returns no text `{name}`");
                // Nobody can use what was made, and it is known by its id.
                self.end(&made.lease_id).await?;
                return Err(Refusal::operator(RefusalKind::Unsupported, message).into());
            };
            credential = credential.with(Field::new(field), value);
        }
        Ok(Minted {
            issued: Some(IssuedId::new(made.lease_id)),
            credential: Some(credential),
            expires_at: Some(now() + Span::seconds(made.lease_duration)),
            notes: Vec::new(),
        })
    }

    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        match &self.door {
            Some(door) => door.verdict(credential).await,
            None => Ok(Verdict::CannotTell("no database is named to ask (`login_at`)".into())),
        }
    }

    async fn list(&self, _prefix: &str) -> Result<Vec<Live>, CallError> {
        let live = |id| Live { issued: IssuedId::new(id), label: None };
        Ok(self.leases().await?.into_iter().map(live).collect())
    }

    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError> {
        self.end(self.ours(id)?).await
    }

    /// Whatever is asked renews the token where half of its life is over.
    async fn keep_alive(&self) -> Result<(), CallError> {
        self.leases().await.map(drop)
    }

    fn extend(&self) -> Option<&dyn Extend> {
        self.config.longest_life.map(|_| self as &dyn Extend)
    }

    /// A lease does not show what it is for, so each one of the path may be it.
    async fn identify(&self, _: &Credential) -> Result<Identity, CallError> {
        let leases = self.leases().await?;
        Ok(match leases.is_empty() {
            true => Identity::Unknown,
            false => Identity::Candidates(leases.into_iter().map(IssuedId::new).collect()),
        })
    }
}

#[async_trait]
impl Extend for VaultDynamic {
    async fn extend(&self, id: &IssuedId) -> Result<Timestamp, CallError> {
        #[derive(Serialize)]
        struct Renewal<'a> {
            lease_id: &'a str,
        }
        #[derive(Deserialize)]
        struct Renewed {
            lease_id: String,
            lease_duration: u64,
        }
        let lease_id = self.ours(id)?;
        if self.lease(lease_id).await?.is_none() {
            let message = format!("{TARGET}: the lease has ended");
            return Err(Refusal::operator(RefusalKind::NotFound, message).into());
        }
        let asked = Renewal { lease_id };
        let renewed: Renewed = self.vault.ask("sys/leases/renew", &asked, Effect::Changes).await?;
        if renewed.lease_id != lease_id {
            return Err(CallError::Unknown(format!("{TARGET} answered with another lease")));
        }
        Ok(now() + Span::seconds(renewed.lease_duration))
    }
}

impl VaultDynamic {
    /// Returns the id of a lease, if it is one of the path: nothing else is ever extended or ended (H92).
    fn ours<'i>(&self, id: &'i IssuedId) -> Result<&'i str, Refusal> {
        let below = id.id.strip_prefix(&self.config.path).and_then(|rest| rest.strip_prefix('/'));
        match below {
            Some(name) if !name.is_empty() && !name.contains('/') => Ok(&id.id),
            _ => {
                let message = format!("{TARGET}: the id is not that of a lease of `path`");
                Err(Refusal::operator(RefusalKind::NotFound, message))
            }
        }
    }

    async fn leases(&self) -> Result<Vec<String>, CallError> {
        let path = &self.config.path;
        let mut names = self.vault.keys(&format!("sys/leases/lookup/{path}/")).await?;
        names.retain(|name| !name.ends_with('/'));
        Ok(names.into_iter().map(|name| format!("{path}/{name}")).collect())
    }

    async fn lease(&self, lease_id: &str) -> Result<Option<Lease>, CallError> {
        let asked = secret_json::write(&OneLease { lease_id, sync: None });
        let answer = self.vault.call(Method::POST, "sys/leases/lookup", Body::Json(&asked)).await?;
        match answer.status.as_u16() {
            404 => Ok(None),
            400 if answer.says("invalid lease") => Ok(None),
            _ => Ok(Some(answer.read::<Data<Lease>>(Effect::Reads)?.data)),
        }
    }

    /// Ends a lease, and waits until what it is for has ended too. Only that it is gone says so: an engine that fails to end
    /// what it made keeps the lease, and tries again for ever.
    async fn end(&self, lease_id: &str) -> Result<(), CallError> {
        if self.lease(lease_id).await?.is_none() {
            return Ok(());
        }
        let asked = secret_json::write(&OneLease { lease_id, sync: Some(true) });
        let ended = self.vault.call(Method::POST, "sys/leases/revoke", Body::Json(&asked)).await;
        let ended = ended.and_then(|answer| answer.done());
        if planted!("failed_revocation_is_an_end") {
            return Ok(());
        }
        match (self.lease(lease_id).await, ended) {
            (Ok(None), _) => Ok(()),
            // It is on its way, and may end the lease yet.
            (Ok(Some(_)), Err(CallError::Unknown(why))) if !planted!("late_end_is_a_refusal") => {
                Err(CallError::Unknown(why))
            }
            (Ok(Some(_)), Err(CallError::Refused(refusal)))
                if refusal.kind != RefusalKind::Unsupported =>
            {
                Err(refusal.into())
            }
            (Ok(Some(_)), _) => {
                let message = format!(
                    "{TARGET}: the engine does not end what the lease is for, so that it still works: look at the role's `revocation_statements`"
                );
                Err(Refusal::retry(RefusalKind::Unavailable, None, message).into())
            }
            (Err(error), _) => Err(CallError::Unknown(error.to_string())),
        }
    }

    /// What a cache hands out again is no new lease, and is ended together with the one that it is.
    fn check_new(&self, lease_id: &str, request: &Mint<'_>) -> Result<(), Refusal> {
        let suspects = request.suspects.iter().filter_map(|suspect| suspect.issued.as_ref());
        let mut known = request.previous.into_iter().chain(suspects);
        if known.all(|known| known.id != lease_id) || planted!("cached_lease_is_new") {
            return Ok(());
        }
        let message = format!(
            "{TARGET}: `path` returns the lease that is in use already: does `address` name an agent that caches leases? Name the server"
        );
        Err(Refusal::operator(RefusalKind::Conflict, message))
    }

    /// Ends what mints without an answer left: every lease of the path that was issued after the one in use.
    async fn end_orphans(&self, previous: &IssuedId, known: &[&IssuedId]) -> Result<(), CallError> {
        let Ok(previous) = self.ours(previous) else { return Ok(()) };
        let Some(in_use) = self.lease(previous).await? else { return Ok(()) };
        let is_known = |id: &String| id == previous || known.iter().any(|known| known.id == *id);
        for orphan in self.leases().await?.iter().filter(|id| !is_known(id)) {
            let Some(found) = self.lease(orphan).await? else { continue };
            if moment(&found.issue_time) > moment(&in_use.issue_time) {
                self.end(orphan).await?;
            }
        }
        Ok(())
    }

    /// A lease ends with the token that asked for it.
    async fn ends_with_its_token(&self) -> Result<Option<Finding>, CallError> {
        let Some(own) = self.vault.own_token().await? else {
            let message = format!(
                "{TARGET}: the token may not look at itself, so that nobody can tell when it ends, and each lease with it"
            );
            return Ok(Some(Finding::note(message)));
        };
        let lives = self.config.longest_life.map(Duration::span);
        let outlives = lives.is_some_and(|lives| Span::seconds(own.ttl) >= lives);
        if self.vault.outlives_all(&own) || outlives || planted!("lease_outlives_its_token") {
            return Ok(None);
        }
        let left = Span::seconds(own.ttl);
        Ok(Some(Finding::blocks(format!(
            "{TARGET}: the token that asks for a lease ends in {left}, and the lease with it, whatever its own time is: use a periodic token, or one that outlives `longest_life`"
        ))))
    }
}

#[derive(Serialize)]
struct OneLease<'a> {
    lease_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sync: Option<bool>,
}

#[derive(Deserialize)]
struct Lease {
    /// In RFC 3339.
    issue_time: String,
}

/// What a path returns with a lease.
#[derive(Deserialize)]
struct Made {
    #[serde(default)]
    lease_id: String,
    #[serde(default)]
    lease_duration: u64,
    data: BTreeMap<String, Held>,
}

#[cfg(test)]
mod tests {
    use keywheel_core::plan::Label;
    use keywheel_core::secret::SecretValue;
    use keywheel_driver::Severity;
    use keywheel_driver::conformance::canary;
    use keywheel_driver::conformance::issuer::{self as conformance, Subject};
    use keywheel_ground::lossy::{Fault, Lossy};
    use serde_json::json;

    use super::*;
    use crate::vault::ground::{Ground, login};

    async fn mint(
        issuer: &dyn Issuer,
        previous: Option<&IssuedId>,
    ) -> Result<(IssuedId, Credential, Timestamp), CallError> {
        let label = Label("kw-test-1".into());
        let minted = issuer.mint(&Mint { previous, ..Mint::new(&label) }).await?;
        Ok((minted.issued.unwrap(), minted.credential.unwrap(), minted.expires_at.unwrap()))
    }

    async fn blocking(issuer: &dyn Issuer) -> Vec<String> {
        let findings = issuer.preflight().await.unwrap();
        let blocks = findings.into_iter().filter(|found| found.severity == Severity::Blocks);
        blocks.map(|found| found.message).collect()
    }

    async fn ground() -> Option<Ground> {
        let ground = Ground::start().await?;
        ground
            .sql("CREATE ROLE app_owner NOLOGIN; GRANT CREATE ON SCHEMA public TO app_owner")
            .await;
        let role = json!({
            "db_name": "postgres", "default_ttl": "10m", "max_ttl": "1h",
            "creation_statements": [
                "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' IN ROLE app_owner",
            ],
            "revocation_statements": [
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{{name}}'",
                "DROP ROLE IF EXISTS \"{{name}}\"",
            ],
        });
        ground.bao.write("database/roles/app", &role).unwrap();
        let naive = json!({
            "db_name": "postgres", "default_ttl": "10m",
            "creation_statements": [
                "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}'; GRANT ALL PRIVILEGES ON DATABASE postgres TO \"{{name}}\"",
            ],
        });
        ground.bao.write("database/roles/naive", &naive).unwrap();
        Some(ground)
    }

    #[tokio::test]
    async fn a_lease_is_made_extended_and_ended_for_good() {
        let Some(ground) = ground().await else { return };
        let path = json!({ "path": "database/creds/app", "longest_life": "1h" });
        let issuer = ground.issuer("vault_dynamic", &path);
        let broken = Lossy::to(ground.bao.port());
        broken.each("", Fault::Echo(500));
        let token = canary("vault-token");
        ground.keep("canary", &token);
        let echoing = json!({ "path": "owner", "address": broken.address(), "auth": { "token": { "file": "canary" } } });
        let garbage = login("v-root-app-none", &canary("garbage"));
        let token = Credential::of_value(SecretValue::new(token.into()));
        conformance::run(&Subject {
            issuer: &*issuer,
            prefix: "kw-conformance-",
            garbage: &garbage,
            lose_next_answer: None,
            broken: &[&*ground.issuer("vault_dynamic", &echoing)],
            canaries: &[&token, &garbage],
        })
        .await;
        let former = issuer.list("").await.unwrap();
        for live in former {
            issuer.revoke(&live.issued).await.unwrap();
        }
        an_open_session_ends_with_its_lease(&ground, &*issuer).await;
        an_extension_moves_the_end(&*issuer).await;
        h92_nothing_but_a_lease_of_the_path_is_touched(&ground, &*issuer).await;
        h94_a_login_that_is_not_dropped_is_not_ended(&ground).await;
        h93_a_token_that_ends_before_the_lease_blocks(&ground).await;
        h04_a_lease_whose_answer_was_lost_is_ended_before_the_next(&ground).await;
        h95_a_cache_between_is_no_server(&ground).await;
        h94_an_end_on_its_way_is_no_refusal(&ground, &*issuer).await;
        assert!(!ground.postgres.log().contains("PASSWORD 'kw"), "no password of ours is logged");
    }

    /// H66, H67: dropping a login leaves its sessions open, so the statements end them.
    async fn an_open_session_ends_with_its_lease(ground: &Ground, issuer: &dyn Issuer) {
        let (issued, credential, _) = mint(issuer, None).await.unwrap();
        let field = |name: &str| credential.field(&Field::new(name)).unwrap().expose();
        let place = format!("host=127.0.0.1 port={} dbname=postgres", ground.postgres.port());
        let mut place: tokio_postgres::Config = place.parse().unwrap();
        place.user(std::str::from_utf8(field("username")).unwrap()).password(field("password"));
        let (client, connection) = place.connect(tokio_postgres::NoTls).await.unwrap();
        let served = tokio::spawn(connection);
        client.batch_execute("SELECT 1").await.unwrap();
        issuer.revoke(&issued).await.unwrap();
        assert!(client.batch_execute("SELECT 1").await.is_err(), "the session goes on");
        drop(served);
        assert_eq!(issuer.verify(&credential).await, Ok(Verdict::Refused));
        assert_eq!(issuer.list("").await, Ok(Vec::new()));
        issuer.revoke(&issued).await.unwrap();
    }

    async fn an_extension_moves_the_end(issuer: &dyn Issuer) {
        let (issued, _, ends_at) = mint(issuer, None).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
        let extended = issuer.extend().unwrap().extend(&issued).await.unwrap();
        assert!(extended > ends_at && extended.since(now()) <= Span::hours(1), "{extended:?}");
        issuer.revoke(&issued).await.unwrap();
        let ended = issuer.extend().unwrap().extend(&issued).await.unwrap_err().to_string();
        assert!(ended.contains("the lease has ended"), "{ended}");
    }

    async fn h92_nothing_but_a_lease_of_the_path_is_touched(ground: &Ground, issuer: &dyn Issuer) {
        let path = json!({ "path": "database/creds/naive" });
        let other = ground.issuer("vault_dynamic", &path);
        assert!(other.extend().is_none(), "without a longest life nothing is extended");
        let (of_other, credential, _) = mint(&*other, None).await.unwrap();
        assert!(issuer.revoke(&of_other).await.is_err());
        assert!(issuer.extend().unwrap().extend(&of_other).await.is_err());
        assert_eq!(other.verify(&credential).await, Ok(Verdict::Accepted));
    }

    /// A role without statements that end what it makes: the engine keeps the lease, and the login works on.
    async fn h94_a_login_that_is_not_dropped_is_not_ended(ground: &Ground) {
        let path = json!({ "path": "database/creds/naive" });
        let naive = ground.issuer("vault_dynamic", &path);
        let (issued, _, _) = mint(&*naive, None).await.unwrap();
        let Err(CallError::Refused(refusal)) = naive.revoke(&issued).await else {
            panic!("it is believed to be ended")
        };
        assert!(refusal.message.contains("revocation_statements"), "{refusal}");
        let live = naive.list("").await.unwrap();
        assert!(live.iter().any(|live| live.issued == issued));
    }

    async fn h93_a_token_that_ends_before_the_lease_blocks(ground: &Ground) {
        let policy = json!({
            "database/creds/app": ["read"], "sys/leases/lookup": ["update"], "sys/leases/revoke": ["update"],
            "sys/leases/renew": ["update"], "sys/leases/lookup/database/creds/app/*": ["list", "sudo"],
        });
        ground.keep("short", &ground.bao.token_for("leases", &policy).unwrap());
        let settings = |file: &str, life: &str| json!({ "path": "database/creds/app", "longest_life": life, "auth": { "token": { "file": file } } });
        let why =
            blocking(&*ground.issuer("vault_dynamic", &settings("short", "2h"))).await.join("");
        assert!(why.contains("the token that asks for a lease ends in"), "{why}");
        assert_eq!(
            blocking(&*ground.issuer("vault_dynamic", &settings("short", "30m"))).await,
            [""; 0]
        );
        h95_a_login_does_not_renew_the_token_of_the_one_before(ground).await;
        h95_a_token_is_renewed_whether_a_lease_needs_it_or_not(ground).await;
        let asked = json!({ "policies": ["leases"], "period": "1h" });
        let made = ground.bao.write("auth/token/create", &asked).unwrap();
        ground.keep("periodic", made["auth"]["client_token"].as_str().unwrap());
        let periodic = ground.issuer("vault_dynamic", &settings("periodic", "2h"));
        assert_eq!(blocking(&*periodic).await, [""; 0]);
        // What the finding says holds at the server: the lease ends with the token.
        let (_, credential, _) = mint(&*periodic, None).await.unwrap();
        assert_eq!(periodic.verify(&credential).await, Ok(Verdict::Accepted));
        let accessor = json!({ "accessor": made["auth"]["accessor"] });
        ground.bao.write("auth/token/revoke-accessor", &accessor).unwrap();
        let root = ground.issuer("vault_dynamic", &json!({ "path": "database/creds/app" }));
        let mut is_ended = false;
        for _ in 0..50 {
            is_ended = root.verify(&credential).await == Ok(Verdict::Refused);
            if is_ended {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert!(is_ended, "the lease outlives its token");
    }

    async fn h95_a_login_does_not_renew_the_token_of_the_one_before(ground: &Ground) {
        let bao = &ground.bao;
        bao.run(&["auth", "enable", "approle"], &json!(null)).unwrap();
        let role = json!({ "token_policies": ["leases"], "token_period": "1h" });
        bao.write("auth/approle/role/kw", &role).unwrap();
        let role_id = bao.read("auth/approle/role/kw/role-id").unwrap()["data"]["role_id"].clone();
        let made = bao.write("auth/approle/role/kw/secret-id", &json!({})).unwrap();
        ground.keep("secret-id", made["data"]["secret_id"].as_str().unwrap());
        let auth =
            json!({ "app_role": { "role_id": role_id, "secret_id": { "file": "secret-id" } } });
        let path = json!({ "path": "database/creds/app", "longest_life": "2h", "auth": auth });
        let why = blocking(&*ground.issuer("vault_dynamic", &path)).await.join("");
        assert!(why.contains("the token that asks for a lease ends in"), "{why}");
    }

    async fn h95_a_token_is_renewed_whether_a_lease_needs_it_or_not(ground: &Ground) {
        let asked = json!({ "policies": ["leases"], "ttl": "1h" });
        let made = ground.bao.write("auth/token/create", &asked).unwrap();
        let token = made["auth"]["client_token"].as_str().unwrap();
        ground.keep("kept", token);
        // It is given less than half of the time that it had.
        let less = json!({ "token": token, "increment": "10m" });
        ground.bao.write("auth/token/renew", &less).unwrap();
        let way = Lossy::to(ground.bao.port());
        way.next("POST /v1/auth/token/renew-self", Fault::DoneAnd500);
        let settings = json!({ "path": "database/creds/app", "address": way.address(), "auth": { "token": { "file": "kept" } } });
        let issuer = ground.issuer("vault_dynamic", &settings);
        issuer.keep_alive().await.unwrap();
        assert_eq!(way.fired(), 1, "it is renewed");
        ground.bao.write("auth/token/revoke", &json!({ "token": token })).unwrap();
        let ended = issuer.keep_alive().await.unwrap_err().to_string();
        assert!(ended.contains("the token has ended"), "{ended}");
    }

    async fn h95_a_cache_between_is_no_server(ground: &Ground) {
        let cache = Lossy::to(ground.bao.port());
        let settings = json!({ "path": "database/creds/app", "address": cache.address() });
        let issuer = ground.issuer("vault_dynamic", &settings);
        let (in_use, held, _) = mint(&*issuer, None).await.unwrap();
        cache.next("GET /v1/database/creds/app", Fault::Cached);
        let Err(CallError::Refused(refusal)) = mint(&*issuer, Some(&in_use)).await else {
            panic!("the lease in use passes for a new one")
        };
        assert!(refusal.message.contains("an agent that caches leases"), "{refusal}");
        assert_eq!(issuer.verify(&held).await, Ok(Verdict::Accepted), "it was not ended");
        assert!(mint(&*issuer, Some(&in_use)).await.is_ok());
    }

    async fn h94_an_end_on_its_way_is_no_refusal(ground: &Ground, issuer: &dyn Issuer) {
        let lossy = Lossy::to(ground.bao.port());
        let settings = json!({ "path": "database/creds/app", "address": lossy.address() });
        let through = ground.issuer("vault_dynamic", &settings);
        let (issued, _, _) = mint(issuer, None).await.unwrap();
        for fault in [Fault::RequestLost, Fault::Status(503)] {
            lossy.next("POST /v1/sys/leases/revoke", fault);
            let lost = through.revoke(&issued).await;
            assert!(matches!(lost, Err(CallError::Unknown(_))), "{fault:?}: {lost:?}");
        }
        lossy.next("POST /v1/sys/leases/revoke", Fault::AnswerLost);
        assert_eq!(through.revoke(&issued).await, Ok(()), "it is gone");
    }

    async fn h04_a_lease_whose_answer_was_lost_is_ended_before_the_next(ground: &Ground) {
        let lossy = Lossy::to(ground.bao.port());
        let shared = ground.issuer("vault_dynamic", &json!({ "path": "database/creds/app" }));
        let (foreign, foreigners, _) = mint(&*shared, None).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        let settings =
            json!({ "path": "database/creds/app", "exclusive": true, "address": lossy.address() });
        let issuer = ground.issuer("vault_dynamic", &settings);
        let (in_use, held, _) = mint(&*issuer, None).await.unwrap();
        lossy.next("GET /v1/database/creds/app", Fault::AnswerLost);
        let lost = mint(&*issuer, Some(&in_use)).await;
        assert!(matches!(lost, Err(CallError::Unknown(_))), "it was not lost");
        let logins = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'v-%app%'";
        let before = ground.count(logins).await;
        let (next, _, _) = mint(&*issuer, Some(&in_use)).await.unwrap();
        assert_eq!(ground.count(logins).await, before, "one was made, and the lost one ended");
        let live: Vec<IssuedId> =
            issuer.list("").await.unwrap().into_iter().map(|live| live.issued).collect();
        for kept in [&foreign, &in_use, &next] {
            assert!(live.contains(kept), "{kept}");
        }
        assert_eq!(live.len(), 3, "{live:?}");
        assert_eq!(issuer.verify(&held).await, Ok(Verdict::Accepted));
        assert_eq!(issuer.verify(&foreigners).await, Ok(Verdict::Accepted));
    }
}
