//! `aws_access_key`: access keys of one IAM user.
//!
//! A user has two keys at most, and a key keeps neither a name nor a label. So a rotation begins only where there is room for one
//! more, and a key that appeared while the answer to its making was lost is somebody's key as far as can be told: the rotation
//! waits for a person, who knows it by its id (I23). It is neither used nor ended by keywheel.
//!
//! A key is suspended by being made inactive, and ended by being deleted. What AWS shows of its last use is late and coarse; that
//! it shows none at all, of a key that was in use, proves nothing.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_iam::error::SdkError;
use aws_sdk_iam::types::{AccessKeyMetadata, StatusType};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::DateTime;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use keywheel_core::facts::{Authority, IssuerFacts, LastUsedFacts, Observe, ValueOrigin};
use keywheel_core::planted;
use keywheel_core::secret::{Credential, Field, SecretValue};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{
    Identity, Issuer, LastUsed, Live, Mint, Minted, Suspend, Usage, Verdict,
};
use keywheel_driver::{CallError, Duration, Finding, Refusal, RefusalKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{MOST_PAGES, plain, unsupported};
use crate::aws::{Access, Aws, Failed, ago};
use crate::http::Effect;
use crate::{Build, Context};

const TARGET: &str = "issuer `aws_access_key`";

/// The field that names the key.
const ID: &str = "access_key_id";

/// The field that is the secret.
const SECRET: &str = "secret_access_key";

/// How many keys a user can have.
const MOST: usize = 2;

/// What is said of a key that is not there, or of whose secret the request was not made, by any service.
const NO_KEY: [&str; 4] = [
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
];

/// AWS records the first use in a span of this length and no further one.
const SPAN_OF_A_USE: Span = Span::minutes(15);

/// The access keys of an IAM user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The name of the user, without its path.
    pub user: String,
    /// The region whose endpoints are asked; another one than the default for another partition of AWS.
    #[serde(default = "default_region")]
    pub region: String,
    /// Where IAM and STS are, if not at the official addresses; HTTPS, or a loopback address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// With which credentials keys are made and ended; never with a key of the user itself.
    #[serde(default)]
    pub credentials: Access,
    /// What shows whether the former key is still in use.
    #[serde(default)]
    pub usage: Shows,
    /// How exact and how late the issuer's last-used data are.
    #[serde(default)]
    pub last_used: LastUsedConfig,
    /// How long a new key may be refused, and an ended one accepted.
    #[serde(default = "default_propagation")]
    pub propagation: Duration,
    /// How long a call without an answer can still take effect and stay out of a list.
    #[serde(default = "default_settle_for")]
    pub settle_for: Duration,
}

/// What shows whether the former key is still in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shows {
    /// When AWS says that it was used last.
    #[default]
    LastUsed,
    /// Nothing: the former key ends with soak and rollback window, whether it was used or not.
    Nothing,
}

/// How exact and how late the issuer's last-used data are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LastUsedConfig {
    /// How long after a use it shows.
    #[serde(default = "default_lag")]
    pub lag: Duration,
    /// How coarse its times are; at least `15m`.
    #[serde(default = "default_granularity")]
    pub granularity: Duration,
}

impl Default for LastUsedConfig {
    fn default() -> Self {
        Self { lag: default_lag(), granularity: default_granularity() }
    }
}

fn default_region() -> String {
    "us-east-1".into()
}

// No source states the delays, so each is long on purpose: too long a value costs waiting, too short a one an outage.

fn default_propagation() -> Duration {
    Span::minutes(5).into()
}

fn default_settle_for() -> Duration {
    Span::minutes(15).into()
}

fn default_lag() -> Duration {
    Span::hours(4).into()
}

fn default_granularity() -> Duration {
    SPAN_OF_A_USE.into()
}

impl Build for Config {
    type Driver = dyn Issuer;

    fn build(&self, context: &Context) -> Result<Arc<dyn Issuer>, Refusal> {
        let fits = (1..=64).contains(&self.user.len())
            && self.user.bytes().all(|b| b.is_ascii_alphanumeric() || b"+=,.@_-".contains(&b));
        if !fits {
            return Err(unsupported("`user` is not the name of an IAM user"));
        }
        if self.last_used.granularity.span() < SPAN_OF_A_USE {
            return Err(unsupported(
                "`last_used.granularity` must be at least `15m`: AWS records one use in that time",
            ));
        }
        let endpoint = self.endpoint.as_deref();
        let aws = Aws::new(TARGET, &self.region, endpoint, &self.credentials, context)?;
        let iam = aws_sdk_iam::Client::new(aws.own());
        Ok(Arc::new(AccessKeys { config: self.clone(), aws, iam }))
    }
}

struct AccessKeys {
    config: Config,
    aws: Aws,
    iam: aws_sdk_iam::Client,
}

#[async_trait]
impl Issuer for AccessKeys {
    fn facts(&self) -> IssuerFacts {
        IssuerFacts {
            max_live: Some(2),
            suspend: true,
            destroy: true,
            last_used: (self.config.usage == Shows::LastUsed).then_some(LastUsedFacts {
                lag: self.config.last_used.lag.span(),
                granularity: self.config.last_used.granularity.span(),
            }),
            propagation: self.config.propagation.span(),
            settle_for: self.config.settle_for.span(),
            ..IssuerFacts::new(ValueOrigin::Theirs, Observe::IdSetDifference, Authority::Issuer)
        }
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        let keys = match self.keys().await {
            Err(CallError::Refused(refusal)) if refusal.is_for_good() => {
                return Ok(vec![Finding::blocks(refusal.message)]);
            }
            keys => keys?,
        };
        let user = &self.config.user;
        let mut findings = Vec::new();
        let is_own = match self.is_own_user(&keys).await {
            Err(CallError::Refused(refusal)) if refusal.is_for_good() => {
                return Ok(vec![Finding::blocks(refusal.message)]);
            }
            is_own => is_own?,
        };
        if is_own && !planted!("own_key_is_rotated") {
            findings.push(Finding::blocks(format!(
                "keywheel calls AWS with a key of user `{user}` itself, or by one, and would lock itself out: let `credentials` be another's"
            )));
        }
        let mut told = Vec::new();
        for key in &keys {
            told.push(format!("`{}` ({})", plain(&key.id), self.in_words(key).await));
        }
        let told = told.join(" and ");
        findings.push(match keys.len() {
            0 => Finding::note(format!("user `{user}` has no key")),
            n if n >= MOST && !planted!("full_user_is_no_finding") => Finding::blocks(format!(
                "user `{user}` has as many keys as it can have, {told}: end the one that nobody needs, keywheel does not choose"
            )),
            _ => Finding::note(format!("user `{user}` has {told}")),
        });
        Ok(findings)
    }

    /// Lists before it makes: an answer that names a key that was there names another one (H92).
    async fn mint(&self, _: &Mint<'_>) -> Result<Minted, CallError> {
        let before = self.keys().await?;
        if before.len() >= MOST {
            return Err(self.is_full(&before).into());
        }
        let made = self.iam.create_access_key().user_name(&self.config.user).send().await;
        let made = made.map_err(|error| match self.failed(Effect::Changes, &error) {
            failed if failed.is(&["LimitExceeded"]) => self.is_full(&before).into(),
            failed => failed.error,
        })?;
        let another =
            || CallError::Unknown(format!("{TARGET} made another key than was asked for"));
        let made = made.access_key.ok_or_else(another)?;
        let was_there = before.iter().any(|key| key.id == made.access_key_id);
        let is_another = was_there || !self.is_user(&made.user_name);
        if is_another && !planted!("made_key_not_compared") {
            return Err(another());
        }
        let issued = IssuedId::new(made.access_key_id.clone());
        let field = |text: String| SecretValue::new(text.into_bytes());
        let credential = Credential::default()
            .with(Field::new(ID), field(made.access_key_id))
            .with(Field::new(SECRET), field(made.secret_access_key));
        Ok(Minted { issued: Some(issued), credential: Some(credential), ..Minted::default() })
    }

    /// Asks who the key is, which takes no permission. A wrong clock, a throttle and a proxy prove nothing.
    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        let part = |name| {
            let field = credential.field(&Field::new(name));
            field.ok_or_else(|| unsupported(&format!("the credential has no field `{name}`")))
        };
        let key = self.aws.with_key(part(ID)?, part(SECRET)?)?;
        let asked = aws_sdk_sts::Client::new(&key).get_caller_identity().send().await;
        let error = match asked {
            Ok(answer) => {
                return Ok(
                    match answer.arn().and_then(user_of).is_some_and(|user| self.is_user(user)) {
                        true => Verdict::Accepted,
                        false => Verdict::CannotTell("the key is one of another user".into()),
                    },
                );
            }
            Err(error) => error,
        };
        let failed = self.failed(Effect::Reads, &error);
        let is_no = failed.is(&NO_KEY) && !failed.is_late;
        if is_no || planted!("any_no_of_aws_is_death") {
            return Ok(Verdict::Refused);
        }
        match failed.is_answered {
            true if failed.is_late => {
                Ok(Verdict::CannotTell("the clock of this machine and that of AWS differ".into()))
            }
            true => Ok(Verdict::CannotTell(failed.error.to_string())),
            false => Err(failed.error),
        }
    }

    async fn list(&self, _: &str) -> Result<Vec<Live>, CallError> {
        let keys = self.keys().await?.into_iter();
        Ok(keys.map(|key| Live { issued: IssuedId::new(key.id), label: None }).collect())
    }

    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError> {
        let ended = self.iam.delete_access_key().user_name(&self.config.user);
        let Err(error) = ended.access_key_id(&id.id).send().await else { return Ok(()) };
        let failed = self.failed(Effect::Changes, &error);
        if !failed.is(&["NoSuchEntity"]) {
            return Err(failed.error);
        }
        // The user may be what is not there, and then nothing is known of the key.
        let is_left = self.keys().await?.iter().any(|key| key.id == id.id);
        if is_left { Err(failed.error) } else { Ok(()) }
    }

    async fn identify(&self, credential: &Credential) -> Result<Identity, CallError> {
        let id = credential.field(&Field::new(ID));
        let Some(id) = id.and_then(|id| std::str::from_utf8(id.expose()).ok()) else {
            return Ok(Identity::Unknown);
        };
        let found = self.keys().await?.into_iter().find(|key| key.id == id);
        Ok(found.map_or(Identity::Unknown, |key| Identity::Known {
            issued: IssuedId::new(key.id),
            how: "the access key names itself, and the user has it".into(),
            created_at: key.created,
        }))
    }

    fn suspend(&self) -> Option<&dyn Suspend> {
        Some(self)
    }

    fn usage(&self) -> Option<&dyn Usage> {
        (self.config.usage == Shows::LastUsed).then_some(self as &dyn Usage)
    }
}

#[async_trait]
impl Suspend for AccessKeys {
    async fn suspend(&self, id: &IssuedId) -> Result<(), CallError> {
        self.set(id, StatusType::Inactive).await
    }

    async fn resume(&self, id: &IssuedId) -> Result<(), CallError> {
        self.set(id, StatusType::Active).await
    }
}

#[async_trait]
impl Usage for AccessKeys {
    async fn last_used(&self, id: &IssuedId) -> Result<LastUsed, CallError> {
        let (at, detail) = self.use_of(&id.id).await?;
        if at.is_none() && !planted!("no_data_is_no_use") {
            let why = "AWS shows no use of the key at all, although it was in use: whether it is used now cannot be told";
            let why = format!("{TARGET}: {why}");
            return Err(Refusal::operator(RefusalKind::Unsupported, why).into());
        }
        Ok(LastUsed { at, detail })
    }
}

/// A key as the list shows it.
struct Key {
    id: String,
    active: bool,
    created: Option<Timestamp>,
}

impl Key {
    fn of(shown: AccessKeyMetadata) -> Option<Self> {
        let active = shown.status != Some(StatusType::Inactive);
        let created = shown.create_date.as_ref().and_then(moment);
        Some(Self { id: shown.access_key_id?, active, created })
    }
}

impl AccessKeys {
    fn failed<E>(&self, effect: Effect, error: &SdkError<E, HttpResponse>) -> Failed
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        self.aws.failed(effect, error)
    }

    /// IAM does not tell names apart that differ in case only.
    fn is_user(&self, name: &str) -> bool {
        name.eq_ignore_ascii_case(&self.config.user)
    }

    /// Whether keywheel itself calls with one of these keys, by a role that one of them assumes, or by a session of the user.
    async fn is_own_user(&self, keys: &[Key]) -> Result<bool, CallError> {
        let own = self.aws.own_key_ids().await?;
        if keys.iter().any(|key| own.contains(&key.id)) {
            return Ok(true);
        }
        let asked = aws_sdk_sts::Client::new(self.aws.own()).get_caller_identity().send().await;
        let answer = asked.map_err(|error| self.failed(Effect::Reads, &error).error)?;
        Ok(answer.arn().and_then(user_of).is_some_and(|user| self.is_user(user)))
    }

    fn is_full(&self, keys: &[Key]) -> Refusal {
        let ids: Vec<String> = keys.iter().map(|key| format!("`{}`", plain(&key.id))).collect();
        let user = &self.config.user;
        let why = format!("user `{user}` has no room for another key beside {}", ids.join(" and "));
        Refusal::operator(RefusalKind::Quota, why)
    }

    async fn keys(&self) -> Result<Vec<Key>, CallError> {
        let mut keys = Vec::new();
        let mut marker = None;
        for _ in 0..MOST_PAGES {
            let page = self.iam.list_access_keys().user_name(&self.config.user);
            let page = page.set_marker(marker.take()).send().await;
            let page = page.map_err(|error| self.failed(Effect::Reads, &error).error)?;
            keys.extend(page.access_key_metadata.into_iter().filter_map(Key::of));
            match page.marker.filter(|_| page.is_truncated) {
                Some(next) => marker = Some(next),
                None => return Ok(keys),
            }
        }
        Err(unsupported(&format!("{TARGET}: the list of keys has no end")).into())
    }

    async fn set(&self, id: &IssuedId, status: StatusType) -> Result<(), CallError> {
        let set = self.iam.update_access_key().user_name(&self.config.user);
        let set = set.access_key_id(&id.id).status(status).send().await;
        set.map(drop).map_err(|error| self.failed(Effect::Changes, &error).error)
    }

    /// Returns when a key was used last, where AWS shows a use of it, and what for.
    async fn use_of(&self, id: &str) -> Result<(Option<Timestamp>, Option<String>), CallError> {
        let asked = self.iam.get_access_key_last_used().access_key_id(id).send().await;
        let answer = asked.map_err(|error| self.failed(Effect::Reads, &error).error)?;
        if answer.user_name.is_some_and(|user| !self.is_user(&user)) {
            let why = format!("{TARGET}: the key is one of another user");
            return Err(Refusal::operator(RefusalKind::Conflict, why).into());
        }
        let Some(used) = answer.access_key_last_used else { return Ok((None, None)) };
        let at = used.last_used_date.as_ref().and_then(moment);
        let what = format!("last used for `{}`", plain(&used.service_name));
        Ok((at, at.is_some().then_some(what)))
    }

    async fn in_words(&self, key: &Key) -> String {
        let state = if key.active { "active" } else { "inactive" };
        let made = key.created.map_or("at an unknown time".into(), ago);
        let used = match self.use_of(&key.id).await {
            Ok((Some(at), _)) => format!("last used {}", ago(at)),
            Ok((None, _)) => "no use shown".to_owned(),
            Err(_) => "its last use cannot be read".to_owned(),
        };
        format!("{state}, made {made}, {used}")
    }
}

/// Returns the name of the user whose ARN this is; none where it is the ARN of something else, such as a role.
fn user_of(arn: &str) -> Option<&str> {
    arn.split_once(":user/")?.1.rsplit('/').next()
}

fn moment(at: &DateTime) -> Option<Timestamp> {
    at.to_millis().ok().map(Timestamp::from_millis)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration as Time;

    use keywheel_core::plan::Label;
    use keywheel_driver::conformance::{canary, issuer as conformance};
    use keywheel_driver::{SecretReference, Severity};
    use keywheel_ground::ministack::{ADMIN_ID, Ministack};
    use keywheel_twins::aws::{Key as Made, Twin, TwinOptions};
    use keywheel_twins::fault::{Echo, Fault, Rule};
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;
    use crate::api::now;
    use crate::issuer::bench::{
        changes_are_known_later, is_unknown, mint, refusal, revoke_means, status,
        suspend_is_made_again, taken_over, unclear_answers_prove_nothing,
    };

    const USER: &str = "backend";

    struct Bench {
        twin: Twin,
        issuer: Arc<dyn Issuer>,
        folder: TempDir,
    }

    impl Bench {
        fn new() -> Self {
            Self::with(TwinOptions::default(), json!({}))
        }

        fn with(options: TwinOptions, changes: Value) -> Self {
            let twin = Twin::start(options).unwrap();
            twin.make_user(USER);
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("id.key"), &twin.administrator().id).unwrap();
            std::fs::write(folder.path().join("secret.key"), &twin.administrator().secret).unwrap();
            let issuer = issuer(&twin.endpoint(), &folder, changes);
            Self { twin, issuer, folder }
        }

        fn script(&self, operation: &str, fault: Fault) {
            self.twin.faults().set(vec![Rule::first(operation, fault)]).unwrap();
        }

        fn live(&self) -> Vec<String> {
            let keys = self.twin.keys(USER).into_iter().filter(|key| key.live);
            keys.map(|key| key.id).collect()
        }

        async fn minted(&self) -> (IssuedId, Credential) {
            let minted = mint(&*self.issuer, "kw-1-1", None, None).await;
            let minted = minted.unwrap_or_else(|e| panic!("{e}"));
            minted.issued.zip(minted.credential).unwrap()
        }

        async fn verdict(&self, credential: &Credential) -> Verdict {
            self.issuer.verify(credential).await.unwrap_or_else(|e| panic!("{e}"))
        }

        async fn messages(&self, severity: Severity) -> Vec<String> {
            let found = self.issuer.preflight().await.unwrap();
            found
                .into_iter()
                .filter(|one| one.severity == severity)
                .map(|one| one.message)
                .collect()
        }
    }

    fn issuer(endpoint: &str, folder: &TempDir, changes: Value) -> Arc<dyn Issuer> {
        let config = json!({
            "user": USER,
            "endpoint": endpoint,
            "credentials": {
                "access_key_id": { "file": "id.key" }, "secret_access_key": { "file": "secret.key" },
            },
        });
        let config: Config = serde_json::from_value(taken_over(config, changes)).unwrap();
        config.build(&Context::at(folder.path())).unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    fn credential(key: &Made) -> Credential {
        let field = |text: &str| SecretValue::new(text.into());
        Credential::default()
            .with(Field::new(ID), field(&key.id))
            .with(Field::new(SECRET), field(&key.secret))
    }

    fn id_of(key: &Made) -> IssuedId {
        IssuedId::new(&key.id)
    }

    #[tokio::test]
    async fn it_keeps_the_contract_before_an_emulator_that_checks_who_calls() {
        let secret = canary("root");
        let ministack = match Ministack::start(&secret) {
            Ok(ministack) => ministack,
            Err(why) => return writeln!(std::io::stdout(), "skipped: ministack ({why})").unwrap(),
        };
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("id.key"), ADMIN_ID).unwrap();
        std::fs::write(folder.path().join("secret.key"), &secret).unwrap();
        let issuer = issuer(&ministack.endpoint(), &folder, json!({}));
        let admin = Access {
            access_key_id: Some(SecretReference::File("id.key".into())),
            secret_access_key: Some(SecretReference::File("secret.key".into())),
            ..Access::default()
        };
        let (endpoint, context) = (ministack.endpoint(), Context::at(folder.path()));
        let aws = Aws::new(TARGET, "us-east-1", Some(&endpoint), &admin, &context).ok().unwrap();
        let iam = aws_sdk_iam::Client::new(aws.own());
        iam.create_user().user_name(USER).send().await.unwrap();
        let garbage = Made { id: "AKIAUNKNOWNUNKNOWN".into(), secret: canary("garbage") };
        conformance::run(&conformance::Subject {
            issuer: &*issuer,
            prefix: "kw-row-",
            garbage: &credential(&garbage),
            lose_next_answer: None,
            broken: &[],
            canaries: &[],
        })
        .await;
        let minted = mint(&*issuer, "kw-1-1", None, None).await.unwrap_or_else(|e| panic!("{e}"));
        let (issued, value) = minted.issued.zip(minted.credential).unwrap();
        let suspend = issuer.suspend().unwrap();
        for (switch, verdict) in [(false, Verdict::Refused), (true, Verdict::Accepted)] {
            match switch {
                true => suspend.resume(&issued).await.unwrap(),
                false => suspend.suspend(&issued).await.unwrap(),
            }
            assert_eq!(issuer.verify(&value).await.unwrap(), verdict);
        }
        let wrong = Made { id: issued.id.clone(), secret: canary("wrong") };
        assert_eq!(issuer.verify(&credential(&wrong)).await.unwrap(), Verdict::Refused);
        let unknown = refusal(issuer.usage().unwrap().last_used(&issued).await);
        assert!(unknown.message.contains("shows no use of the key at all"), "{unknown}");
        issuer.revoke(&issued).await.unwrap();
        assert_eq!(issuer.verify(&value).await.unwrap(), Verdict::Refused);
    }

    #[tokio::test]
    async fn it_keeps_the_contract_of_an_issuer() {
        let bench = Bench::new();
        let garbage = Made { id: "AKIAUNKNOWN".into(), secret: canary("garbage") };
        let garbage = credential(&garbage);
        let echoes = Twin::start(TwinOptions::default()).unwrap();
        let echo = Rule::every("*", status(401, Echo::EchoKey));
        echoes.faults().set(vec![echo]).unwrap();
        let pages = Twin::start(TwinOptions::default()).unwrap();
        pages.faults().set(vec![Rule::every("*", status(200, Echo::Html))]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let admin = Made { id: "AKIAADMIN".into(), secret: canary("admin") };
        std::fs::write(folder.path().join("id.key"), &admin.id).unwrap();
        std::fs::write(folder.path().join("secret.key"), &admin.secret).unwrap();
        let broken = [
            issuer(&echoes.endpoint(), &folder, json!({})),
            issuer(&pages.endpoint(), &folder, json!({})),
            issuer("http://127.0.0.1:1", &folder, json!({})),
        ];
        let broken: Vec<&dyn Issuer> = broken.iter().map(|issuer| &**issuer).collect();
        let secret_of =
            |key: &Made| Credential::of_value(SecretValue::new(key.secret.clone().into()));
        let admin = secret_of(&admin);
        conformance::run(&conformance::Subject {
            issuer: &*bench.issuer,
            prefix: "kw-row-",
            garbage: &garbage,
            lose_next_answer: Some(&|| bench.script("create_access_key", Fault::Cut)),
            broken: &broken,
            canaries: &[&admin],
        })
        .await;
    }

    #[tokio::test]
    async fn h04_h92_whatever_comes_of_a_mint_is_what_is_said_of_it() {
        let bench = Bench::new();
        let other = bench.twin.make_key(USER);
        for fault in [
            Fault::Cut,
            Fault::Twice,
            Fault::LateLanding { after_ms: 20 },
            Fault::status(400),
            Fault::status(409),
            Fault::status(500),
            Fault::busy(),
            status(403, Echo::Html),
            status(401, Echo::EchoKey),
            status(200, Echo::Html),
            Fault::Status { code: 503, retry_after: None, body: Echo::Json, applied: true },
            Fault::AnotherId { at: "<AccessKeyId>".into(), id: other.id.clone() },
            Fault::AnotherId { at: "<UserName>".into(), id: "somebody".into() },
        ] {
            bench.script("create_access_key", fault.clone());
            let outcome = mint(&*bench.issuer, "kw-1-1", Some(&id_of(&other)), None).await;
            assert_eq!(bench.twin.faults().unfired(), [], "{fault:?}");
            while !bench.twin.faults().has_landed() {
                tokio::time::sleep(Time::from_millis(2)).await;
            }
            bench.twin.faults().set(Vec::new()).unwrap();
            let mut new = bench.live();
            new.retain(|id| *id != other.id);
            match outcome {
                Ok(minted) => {
                    let issued = minted.issued.unwrap();
                    assert_eq!(new, [issued.id], "{fault:?}");
                    let verdict = bench.verdict(&minted.credential.unwrap()).await;
                    assert_eq!(verdict, Verdict::Accepted, "{fault:?}");
                }
                // Delivered twice: what the first one made stands in the way of the second.
                Err(CallError::Refused(refusal)) if fault == Fault::Twice => {
                    assert_eq!(refusal.kind, RefusalKind::Quota, "{refusal}");
                }
                Err(CallError::Refused(refusal)) => {
                    assert_eq!(new, [""; 0], "{fault:?}: {refusal}")
                }
                Err(CallError::Unknown(_)) => {}
            }
            for id in new {
                bench.issuer.revoke(&IssuedId::new(id)).await.unwrap_or_else(|e| panic!("{e}"));
            }
            assert_eq!(bench.live(), std::slice::from_ref(&other.id), "{fault:?}");
            assert_eq!(bench.verdict(&credential(&other)).await, Verdict::Accepted, "{fault:?}");
        }
    }

    #[tokio::test]
    async fn h90_a_full_user_is_named_and_no_key_is_ended_for_it() {
        let bench = Bench::new();
        assert_eq!(bench.messages(Severity::Note).await, ["user `backend` has no key"]);
        let (one, two) = (bench.twin.make_key(USER), bench.twin.make_key(USER));
        bench.twin.use_key(&one.id, Time::from_secs(3 * 3_600));
        bench.issuer.suspend().unwrap().suspend(&id_of(&two)).await.unwrap();
        let blocks = bench.messages(Severity::Blocks).await;
        let [block] = &blocks[..] else { panic!("{blocks:?}") };
        for part in [&one.id, &two.id, "(active, made ", "last used 3 h ago", "(inactive, made "] {
            assert!(block.contains(part), "{part}: {block}");
        }
        let refused = refusal(mint(&*bench.issuer, "kw-1-1", Some(&id_of(&one)), None).await);
        assert_eq!(refused.kind, RefusalKind::Quota);
        assert!(refused.message.contains(&one.id) && refused.message.contains(&two.id));
        assert_eq!(bench.live(), [one.id, two.id]);
    }

    #[tokio::test]
    async fn keywheel_does_not_lock_itself_out() {
        let bench = Bench::new();
        let own = bench.twin.make_key(USER);
        std::fs::write(bench.folder.path().join("id.key"), &own.id).unwrap();
        std::fs::write(bench.folder.path().join("secret.key"), &own.secret).unwrap();
        let blocks = bench.messages(Severity::Blocks).await;
        assert!(blocks.len() == 1 && blocks[0].contains("lock itself out"), "{blocks:?}");
    }

    #[tokio::test]
    async fn h88_only_a_definite_no_about_the_key_proves_death() {
        let bench = Bench::new();
        let (issued, live) = bench.minted().await;
        let faults = bench.twin.faults();
        unclear_answers_prove_nothing(&*bench.issuer, faults, "get_caller_identity", &live).await;
        faults.set(Vec::new()).unwrap();
        let wrong = Made { id: issued.id.clone(), secret: canary("wrong") };
        assert_eq!(bench.verdict(&credential(&wrong)).await, Verdict::Refused);
        let stranger = bench.twin.make_key("stranger");
        let verdict = bench.verdict(&credential(&stranger)).await;
        assert_eq!(verdict, Verdict::CannotTell("the key is one of another user".into()));
        bench.issuer.revoke(&issued).await.unwrap();
        assert_eq!(bench.verdict(&live).await, Verdict::Refused);
    }

    #[tokio::test]
    async fn h87_h88_a_key_is_known_and_ended_later() {
        let wait = Time::from_millis(400);
        let options = TwinOptions { propagation: wait, revocation: wait, ..TwinOptions::default() };
        let bench = Bench::with(options, json!({}));
        let (issued, credential) = bench.minted().await;
        changes_are_known_later(&*bench.issuer, &issued, &credential).await;
    }

    #[tokio::test]
    async fn a_suspended_key_is_refused_until_it_is_resumed() {
        let bench = Bench::new();
        let (issued, credential) = bench.minted().await;
        let suspend = bench.issuer.suspend().unwrap();
        for _ in 0..2 {
            suspend.suspend(&issued).await.unwrap();
            assert_eq!(bench.verdict(&credential).await, Verdict::Refused);
        }
        for _ in 0..2 {
            suspend.resume(&issued).await.unwrap();
            assert_eq!(bench.verdict(&credential).await, Verdict::Accepted);
        }
        let version = (issued, credential);
        let lost = [Fault::Cut, Fault::status(500), status(200, Echo::Html)];
        for fault in lost {
            suspend.resume(&version.0).await.unwrap();
            let call = ("update_access_key", fault);
            suspend_is_made_again(&*bench.issuer, bench.twin.faults(), &version, call).await;
        }
        bench.twin.faults().set(Vec::new()).unwrap();
        let gone = refusal(suspend.suspend(&IssuedId::new("AKIAGONE")).await);
        assert_eq!(gone.kind, RefusalKind::NotFound);
    }

    #[tokio::test]
    async fn h92_h96_a_revoke_ends_the_key_of_this_user_and_no_other() {
        let bench = Bench::new();
        let stranger = bench.twin.make_key("stranger");
        bench.issuer.revoke(&id_of(&stranger)).await.unwrap();
        assert!(bench.twin.keys("stranger")[0].live);
        for (fault, done) in [
            (Fault::Cut, None),
            (Fault::status(500), None),
            (Fault::busy(), Some(false)),
            (status(403, Echo::Html), Some(false)),
            (Fault::Twice, Some(true)),
        ] {
            let (issued, credential) = bench.minted().await;
            let call = ("delete_access_key", fault, done);
            revoke_means(&*bench.issuer, bench.twin.faults(), &issued, call).await;
            assert_eq!(bench.verdict(&credential).await, Verdict::Refused);
        }
        let nobody = issuer(&bench.twin.endpoint(), &bench.folder, json!({ "user": "nobody" }));
        let refused = refusal(nobody.revoke(&IssuedId::new("AKIAGONE")).await);
        assert_eq!(refused.kind, RefusalKind::NotFound, "of a user that is not there");
    }

    #[tokio::test]
    async fn the_last_use_is_told_and_none_at_all_proves_nothing() {
        let bench = Bench::new();
        let key = bench.twin.make_key(USER);
        let usage = bench.issuer.usage().unwrap();
        let none = refusal(usage.last_used(&id_of(&key)).await);
        assert!(none.message.contains("shows no use of the key at all"), "{none}");
        bench.twin.use_key(&key.id, Time::from_secs(3_600));
        let used = usage.last_used(&id_of(&key)).await.unwrap();
        let ago = now().since(used.at.unwrap());
        assert!(Span::minutes(60) <= ago && ago < Span::minutes(62), "{ago}");
        assert_eq!(used.detail.as_deref(), Some("last used for `s3`"));
        let stranger = bench.twin.make_key("stranger");
        let refused = refusal(usage.last_used(&id_of(&stranger)).await);
        assert_eq!(refused.kind, RefusalKind::Conflict);
        bench.issuer.revoke(&id_of(&key)).await.unwrap();
        let gone = refusal(usage.last_used(&id_of(&key)).await);
        assert_eq!(gone.kind, RefusalKind::Permission);
        let nothing = Bench::with(TwinOptions::default(), json!({ "usage": "nothing" }));
        assert!(nothing.issuer.usage().is_none() && nothing.issuer.facts().last_used.is_none());
    }

    #[tokio::test]
    async fn h76_a_session_of_the_user_itself_is_recognised() {
        let bench = Bench::new();
        let (session, token) =
            bench.twin.make_session(&format!("arn:aws:iam::123456789012:user/{USER}"));
        let write =
            |name: &str, text: &str| std::fs::write(bench.folder.path().join(name), text).unwrap();
        write("id.key", &session.id);
        write("secret.key", &session.secret);
        write("token.key", &token);
        let given = json!({ "credentials": {
            "access_key_id": { "file": "id.key" },
            "secret_access_key": { "file": "secret.key" },
            "session_token": { "file": "token.key" },
        }});
        let issuer = issuer(&bench.twin.endpoint(), &bench.folder, given);
        let found = issuer.preflight().await.unwrap();
        assert!(found.iter().any(|one| one.message.contains("lock itself out")), "{found:?}");
    }

    /// What is found with the credentials of a profile, in a process that has the variables of AWS's tools.
    #[test]
    fn h76_h117_a_key_that_assumes_a_role_is_recognised_and_goes_nowhere_in_the_open() {
        const FOLDER: &str = "KEYWHEEL_TEST_PROFILES";
        const NAME: &str =
            "h76_h117_a_key_that_assumes_a_role_is_recognised_and_goes_nowhere_in_the_open";
        if let Some(folder) = std::env::var_os(FOLDER) {
            return with_a_profile(std::path::Path::new(&folder));
        }
        let bench = Bench::new();
        let profile = |key: &Made| {
            let Made { id, secret } = key;
            let role = "[profile rotation]\nrole_arn = arn:aws:iam::123456789012:role/rotator\nsource_profile = base\n";
            format!(
                "[profile base]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n{role}"
            )
        };
        let file = |name: &str| bench.folder.path().join(name);
        std::fs::write(file("profiles"), profile(bench.twin.administrator())).unwrap();
        std::fs::write(file("profiles.later"), profile(&bench.twin.make_key(USER))).unwrap();
        std::fs::write(file("endpoint"), bench.twin.endpoint()).unwrap();
        let module = module_path!().split_once("::").unwrap().1;
        for endpoint in [bench.twin.endpoint(), "http://keywheel.invalid".into()] {
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            again.args(["--exact", &format!("{module}::{NAME}")]).env(FOLDER, bench.folder.path());
            again.env("AWS_CONFIG_FILE", file("profiles")).env("AWS_ENDPOINT_URL", endpoint);
            again.env("AWS_SHARED_CREDENTIALS_FILE", file("none"));
            let output = again.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{said}");
        }
    }

    #[tokio::main(flavor = "current_thread")]
    async fn with_a_profile(folder: &std::path::Path) {
        let endpoint = std::fs::read_to_string(folder.join("endpoint")).unwrap();
        let config = json!({
            "user": USER, "endpoint": endpoint, "credentials": { "profile": "rotation" },
        });
        let config: Config = serde_json::from_value(config).unwrap();
        let issuer = config.build(&Context::at(folder)).unwrap_or_else(|no| panic!("{no}"));
        let blocks = async || {
            let found = issuer.preflight().await.unwrap_or_else(|e| panic!("{e}"));
            let blocks = found.into_iter().filter(|one| one.severity == Severity::Blocks);
            blocks.map(|one| one.message).collect::<Vec<_>>().join("; ")
        };
        if std::env::var("AWS_ENDPOINT_URL").unwrap() != endpoint {
            let told = blocks().await;
            return assert!(told.contains("to which no credential goes"), "{told}");
        }
        assert_eq!(blocks().await, "");
        // The profile has another key from now on.
        std::fs::rename(folder.join("profiles.later"), folder.join("profiles")).unwrap();
        let told = blocks().await;
        assert!(told.contains("lock itself out"), "{told}");
    }

    #[tokio::test]
    async fn a_user_is_the_same_whatever_the_case_of_its_name() {
        let bench = Bench::with(TwinOptions::default(), json!({ "user": "BackEnd" }));
        let (_, credential) = bench.minted().await;
        assert_eq!(bench.verdict(&credential).await, Verdict::Accepted);
    }

    #[tokio::test]
    async fn a_key_that_was_made_by_hand_names_itself() {
        let bench = Bench::with(TwinOptions { page: Some(1), ..TwinOptions::default() }, json!({}));
        bench.twin.make_key(USER);
        let key = bench.twin.make_key(USER);
        match bench.issuer.identify(&credential(&key)).await.unwrap() {
            Identity::Known { issued, created_at, .. } => {
                assert_eq!(issued, id_of(&key));
                assert!(created_at.is_some());
            }
            other => panic!("{other:?}"),
        }
        let stranger = bench.twin.make_key("stranger");
        let unknown = bench.issuer.identify(&credential(&stranger)).await.unwrap();
        assert_eq!(unknown, Identity::Unknown);
        let label = Label("kw-1-1".into());
        let value = Credential::of_value(SecretValue::new(b"x".to_vec()));
        assert_eq!(bench.issuer.identify(&value).await.unwrap(), Identity::Unknown);
        assert_eq!(bench.issuer.list(&label.0).await.unwrap().len(), 2);
        assert!(!is_unknown(&bench.issuer.verify(&value).await));
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused() {
        let build = |changes: Value| {
            let config: Config =
                serde_json::from_value(taken_over(json!({ "user": USER }), changes)).unwrap();
            config.build(&Context::at("/")).err().map(|refusal| refusal.kind)
        };
        assert_eq!(build(json!({})), None);
        for wrong in [
            json!({ "user": "" }),
            json!({ "user": "path/backend" }),
            json!({ "last_used": { "granularity": "1m" } }),
            json!({ "endpoint": "http://twin:4566" }),
        ] {
            assert_eq!(build(wrong.clone()), Some(RefusalKind::Unsupported), "{wrong}");
        }
    }
}
