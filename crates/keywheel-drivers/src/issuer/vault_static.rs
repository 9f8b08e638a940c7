//! `vault_static`: the password of a login that a database engine of Vault or OpenBao keeps as a static role.
//!
//! The login has one password at a time, so it is cut over: the engine sets a new one and shows it as often as it is asked. It
//! also rotates by itself when its period is over, and then every reader holds a former password: the version ends at that
//! time, and is rotated before. Creating a static role rotates its password at once, so that is left to people.
//!
//! Two rotations at once are answered with an error, though the password may be another one: what holds is read, never guessed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use keywheel_core::facts::{Authority, IssuerFacts, Observe, ValueOrigin};
use keywheel_core::planted;
use keywheel_core::secret::{Credential, Field};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{Identity, Issuer, Live, Mint, Minted, Verdict};
use keywheel_driver::{CallError, Duration, Finding, Refusal, RefusalKind};
use reqwest::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{moment, now, unsupported};
use crate::http::Effect;
use crate::secret_json::Text;
use crate::vault::{self, Auth, Body, Data, Door, Place, Vault};
use crate::{Build, Context};

const TARGET: &str = "issuer `vault_static`";

/// A role that rotates by itself more often leaves no time to move its readers.
const SHORTEST: Span = Span::hours(1);

/// How long the password is looked at after a rotation that had no answer: an engine that failed half-way tries again by itself.
const LOOKS_FOR: Span = Span::seconds(15);

/// How far apart two looks are.
const BETWEEN_LOOKS: std::time::Duration = std::time::Duration::from_millis(500);

/// A static role of a database engine.
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
    /// How keywheel proves who it is.
    pub auth: Auth,
    /// Where the engine is mounted.
    #[serde(default = "database")]
    pub mount: String,
    /// The static role.
    pub role: String,
    /// The PostgreSQL at which logins are tried, as a connection string without a login: `postgresql://host:5432/app`. Without
    /// it nobody is asked whether a password is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login_at: Option<String>,
    /// How long a call without an answer can still take effect.
    #[serde(default = "minute")]
    pub settle_for: Duration,
}

fn database() -> String {
    "database".into()
}

fn minute() -> Duration {
    Span::minutes(1).into()
}

impl Build for Config {
    type Driver = dyn Issuer;

    fn build(&self, context: &Context) -> Result<Arc<dyn Issuer>, Refusal> {
        vault::check_path("mount", &self.mount)?;
        vault::check_path("role", &self.role)?;
        let place = Place {
            address: &self.address,
            namespace: self.namespace.as_deref(),
            ca: self.ca.as_deref(),
            auth: &self.auth,
        };
        let door = self.login_at.as_deref().map(Door::at).transpose()?;
        let vault = Vault::new(TARGET, &place, context)?;
        Ok(Arc::new(VaultStatic { vault, door, config: self.clone() }))
    }
}

struct VaultStatic {
    vault: Vault,
    door: Option<Door>,
    config: Config,
}

#[async_trait]
impl Issuer for VaultStatic {
    fn facts(&self) -> IssuerFacts {
        let authority = if self.door.is_some() { Authority::Issuer } else { Authority::None };
        IssuerFacts {
            max_live: Some(1),
            reset_repeatable: true,
            propagation: Span::ZERO,
            settle_for: self.config.settle_for.span(),
            ..IssuerFacts::new(ValueOrigin::TheirsRereadable, Observe::None, authority)
        }
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        let wanted = [(self.at("static-creds"), "read"), (self.at("rotate-role"), "update")];
        let mut findings = self.vault.not_permitted(&wanted).await?;
        if !findings.is_empty() {
            return Ok(findings);
        }
        let Some(shown) = self.shown().await? else {
            let role = &self.config.role;
            let message = format!("{TARGET}: the static role `{role}` is not there");
            return Ok(vec![Finding::blocks(message)]);
        };
        findings.extend(shown.rotates_by_itself());
        Ok(findings)
    }

    async fn mint(&self, _: &Mint<'_>) -> Result<Minted, CallError> {
        let before = self.must_be_shown().await?;
        let path = self.at("rotate-role");
        let rotated = self.vault.call(Method::POST, &path, Body::Empty).await;
        let rotated = rotated.and_then(|answer| answer.done());
        match rotated {
            Ok(()) => {}
            Err(CallError::Unknown(why)) if !planted!("rotation_guessed") => {
                return self.looked_for(&before, why).await;
            }
            Err(CallError::Unknown(_)) => {}
            Err(refused) => return Err(refused),
        }
        let after = self.must_be_shown().await.map_err(unknown)?;
        if after.is_like(&before) && !planted!("rotation_guessed") {
            let why = format!("{TARGET} answered that it rotated, and shows the former password");
            return Err(CallError::Unknown(why));
        }
        self.let_in(after).await
    }

    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        match &self.door {
            Some(door) => door.verdict(credential).await,
            None => Ok(Verdict::CannotTell("no database is named to ask (`login_at`)".into())),
        }
    }

    async fn list(&self, _prefix: &str) -> Result<Vec<Live>, CallError> {
        let shown = self.shown().await?;
        Ok(shown.into_iter().map(|shown| Live { issued: shown.issued(), label: None }).collect())
    }

    async fn reread(&self, id: &IssuedId) -> Result<Option<Credential>, CallError> {
        let shown = self.shown().await?.filter(|shown| shown.issued() == *id);
        Ok(shown.map(Shown::credential))
    }

    /// A former password ended when the next one was set.
    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError> {
        match self.shown().await?.filter(|shown| shown.issued() == *id) {
            None => Ok(()),
            Some(_) => Err(unsupported(
                "a static role has one password at a time, which only the next rotation ends",
            )
            .into()),
        }
    }

    async fn identify(&self, credential: &Credential) -> Result<Identity, CallError> {
        let Some(shown) = self.shown().await? else { return Ok(Identity::Unknown) };
        let (issued, created_at) = (shown.issued(), moment(&shown.last_vault_rotation));
        let password = Field::new("password");
        let held = credential.field(&password).or_else(|| credential.value());
        let is_held = held.is_some_and(|held| held.same_as(&shown.password.0));
        let how = "the engine shows the same password".to_owned();
        Ok(match is_held {
            true => Identity::Known { issued, how, created_at },
            false => Identity::Unknown,
        })
    }
}

impl VaultStatic {
    fn at(&self, what: &str) -> String {
        format!("{}/{what}/{}", self.config.mount, self.config.role)
    }

    async fn shown(&self) -> Result<Option<Shown>, CallError> {
        let answer = self.vault.call(Method::GET, &self.at("static-creds"), Body::Empty).await?;
        match answer.status.as_u16() {
            404 => Ok(None),
            400 if answer.says("unknown role") => Ok(None),
            _ => Ok(Some(answer.read::<Data<Shown>>(Effect::Reads)?.data)),
        }
    }

    async fn must_be_shown(&self) -> Result<Shown, CallError> {
        self.shown().await?.ok_or_else(|| {
            let role = &self.config.role;
            let message = format!("{TARGET}: the static role `{role}` is not there");
            Refusal::operator(RefusalKind::NotFound, message).into()
        })
    }

    /// Reads what holds after a rotation that had no answer, or an error: another password than before is the one that holds.
    async fn looked_for(&self, before: &Shown, why: String) -> Result<Minted, CallError> {
        let looks_for = LOOKS_FOR.min(self.config.settle_for.span()).as_millis();
        let until = Instant::now() + std::time::Duration::from_millis(looks_for);
        loop {
            if let Ok(after) = self.must_be_shown().await
                && !after.is_like(before)
            {
                return self.let_in(after).await;
            }
            if Instant::now() >= until {
                return Err(CallError::Unknown(why));
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    /// Asks the database for what the engine shows. Of two rotations at once, the engine may keep the password of the one while
    /// the database has that of the other: it is rotated again.
    async fn let_in(&self, shown: Shown) -> Result<Minted, CallError> {
        let minted = shown.minted();
        let Some((door, credential)) = self.door.as_ref().zip(minted.credential.as_ref()) else {
            return Ok(minted);
        };
        match door.verdict(credential).await {
            Ok(Verdict::Refused) if !planted!("rotation_guessed") => {
                Err(CallError::Unknown(format!(
                    "{TARGET} shows a password that the database refuses: was it rotated twice at once?"
                )))
            }
            _ => Ok(minted),
        }
    }
}

/// Once a rotation was answered, nothing after it makes it undone.
fn unknown(error: CallError) -> CallError {
    CallError::Unknown(error.to_string())
}

/// What the engine shows of a static role.
#[derive(Deserialize)]
struct Shown {
    username: String,
    password: Text,
    /// In RFC 3339.
    last_vault_rotation: String,
    /// How many seconds are left until it rotates by itself.
    #[serde(default)]
    ttl: Option<u64>,
    #[serde(default)]
    rotation_period: Option<u64>,
}

impl Shown {
    fn is_like(&self, other: &Self) -> bool {
        self.password.0.same_as(&other.password.0)
    }

    /// A password goes by the login, and the time at which it was set.
    fn issued(&self) -> IssuedId {
        let set_at =
            moment(&self.last_vault_rotation).and_then(|at| u64::try_from(at.millis()).ok());
        IssuedId { id: self.username.clone(), generation: set_at }
    }

    fn credential(self) -> Credential {
        let username = keywheel_core::secret::SecretValue::new(self.username.into_bytes());
        Credential::default()
            .with(Field::new("username"), username)
            .with(Field::new("password"), self.password.0)
    }

    fn ends_at(&self) -> Option<Timestamp> {
        self.ttl.filter(|ttl| *ttl > 0).map(|ttl| now() + Span::seconds(ttl))
    }

    fn minted(self) -> Minted {
        Minted {
            issued: Some(self.issued()),
            expires_at: self.ends_at(),
            credential: Some(self.credential()),
            notes: Vec::new(),
        }
    }

    fn rotates_by_itself(&self) -> Option<Finding> {
        let left = Span::seconds(self.ttl?);
        let period = self.rotation_period.map(Span::seconds);
        if period.is_some_and(|period| period < SHORTEST) {
            let message = format!(
                "{TARGET}: the engine rotates the login by itself every {}, which leaves no time to move its readers: give the role a `rotation_period` of {SHORTEST} or more",
                period.unwrap_or_default()
            );
            return Some(Finding::blocks(message));
        }
        let message = format!(
            "{TARGET}: the engine rotates the login by itself in {left}; from then on the readers are refused, unless keywheel rotates it before"
        );
        Some(Finding::note(message))
    }
}

#[cfg(test)]
mod tests {
    use keywheel_core::plan::Label;
    use keywheel_driver::Severity;
    use keywheel_driver::conformance::canary;
    use keywheel_driver::conformance::issuer::{self as conformance, Subject};
    use keywheel_ground::lossy::{Fault, Lossy};
    use serde_json::json;

    use super::*;
    use crate::vault::ground::{Ground, login};

    async fn rotate(issuer: &dyn Issuer) -> Result<Minted, CallError> {
        issuer.mint(&Mint::new(&Label("kw-test-1".into()))).await
    }

    async fn blocking(issuer: &dyn Issuer) -> Vec<String> {
        let findings = issuer.preflight().await.unwrap();
        let blocks = findings.into_iter().filter(|found| found.severity == Severity::Blocks);
        blocks.map(|found| found.message).collect()
    }

    #[tokio::test]
    async fn h05_a_rotation_without_an_answer_is_read_and_never_guessed() {
        let Some(ground) = Ground::start().await else { return };
        ground.sql("CREATE ROLE app_static LOGIN").await;
        let role =
            json!({ "db_name": "postgres", "username": "app_static", "rotation_period": "24h" });
        ground.bao.write("database/static-roles/app", &role).unwrap();
        let lossy = Lossy::to(ground.bao.port());
        let broken = Lossy::to(ground.bao.port());
        let issuer = ground.issuer("vault_static", &json!({ "role": "app" }));
        let settings = json!({ "role": "app", "address": lossy.address(), "settle_for": "600ms" });
        let through = ground.issuer("vault_static", &settings);
        let token = canary("vault-token");
        ground.keep("canary", &token);
        let echoing = json!({ "role": "app", "address": broken.address(), "auth": { "token": { "file": "canary" } } });
        broken.each("", Fault::Echo(500));
        let garbage = login("app_static", &canary("garbage"));
        let token = Credential::of_value(keywheel_core::secret::SecretValue::new(token.into()));
        conformance::run(&Subject {
            issuer: &*issuer,
            prefix: "kw-conformance-",
            garbage: &garbage,
            lose_next_answer: None,
            broken: &[&*ground.issuer("vault_static", &echoing)],
            canaries: &[&token, &garbage],
        })
        .await;
        let mut former = rotate(&*issuer).await.unwrap();
        for fault in [Fault::AnswerLost, Fault::DoneAnd500] {
            lossy.next("POST /v1/database/rotate-role/app", fault);
            let made = rotate(&*through).await.unwrap_or_else(|e| panic!("{fault:?}: {e}"));
            let (old, new) = (former.credential.unwrap(), made.credential.as_ref().unwrap());
            assert_eq!(issuer.verify(new).await, Ok(Verdict::Accepted), "{fault:?}");
            assert_eq!(issuer.verify(&old).await, Ok(Verdict::Refused), "{fault:?}");
            assert!(made.expires_at.is_some_and(|at| at.since(now()) > Span::hours(23)));
            former = made;
        }
        for fault in [Fault::RequestLost, Fault::Status(500), Fault::Status(204)] {
            lossy.next("POST /v1/database/rotate-role/app", fault);
            let lost = rotate(&*through).await.err();
            assert!(matches!(lost, Some(CallError::Unknown(_))), "{fault:?}: {lost:?}");
        }
        assert_eq!(lossy.fired(), 5);
        let held = former.credential.unwrap();
        assert_eq!(issuer.verify(&held).await, Ok(Verdict::Accepted), "nothing was rotated");
        let issued = former.issued.unwrap();
        assert!(issuer.reread(&issued).await.unwrap().is_some_and(|read| read.same_as(&held)));
        let known = issuer.identify(&held).await.unwrap();
        assert!(matches!(known, Identity::Known { issued: known, .. } if known == issued));
        two_at_once_leave_a_way_on(&*issuer).await;
        assert!(issuer.reread(&issued).await.unwrap().is_none(), "it is another password by now");
        h19_a_role_that_rotates_by_itself_is_said(&ground).await;
    }

    /// Whatever two rotations at once leave behind, the next one that is believed holds at the database.
    async fn two_at_once_leave_a_way_on(issuer: &dyn Issuer) {
        for _ in 0..4 {
            drop(futures_util::future::join(rotate(issuer), rotate(issuer)).await);
            let mut made = rotate(issuer).await;
            for _ in 0..20 {
                if made.is_ok() {
                    break;
                }
                made = rotate(issuer).await;
            }
            let made = made.unwrap().credential.unwrap();
            assert_eq!(issuer.verify(&made).await, Ok(Verdict::Accepted));
        }
    }

    async fn h19_a_role_that_rotates_by_itself_is_said(ground: &Ground) {
        let issuer = ground.issuer("vault_static", &json!({ "role": "app" }));
        let said = issuer.preflight().await.unwrap().remove(0);
        assert!(
            said.severity == Severity::Note && said.message.contains("by itself in"),
            "{said:?}"
        );
        ground.sql("CREATE ROLE app_often LOGIN").await;
        let role =
            json!({ "db_name": "postgres", "username": "app_often", "rotation_period": "5m" });
        ground.bao.write("database/static-roles/often", &role).unwrap();
        let often = ground.issuer("vault_static", &json!({ "role": "often" }));
        assert!(blocking(&*often).await.join("").contains("leaves no time"));
        let absent = ground.issuer("vault_static", &json!({ "role": "absent" }));
        assert!(
            blocking(&*absent).await.join("").contains("the static role `absent` is not there")
        );
        let policy = json!({ "database/static-creds/app": ["read"] });
        ground.keep("narrow", &ground.bao.token_for("narrow", &policy).unwrap());
        let auth = json!({ "role": "app", "auth": { "token": { "file": "narrow" } } });
        let why = blocking(&*ground.issuer("vault_static", &auth)).await.join("");
        assert!(why.contains("lacks `update` on `database/rotate-role/app`"), "{why}");
    }
}
