//! `service_token`: tokens (JWT, RFC 7519) for programs that call others, signed with the signing secret of this configuration
//! and so short-lived that nobody has to revoke them.
//!
//! A token is signed with what readers of the signing secret use at that time, as its store holds it: every one of them accepts
//! that, in the middle of a rotation too (H79). It lives no longer than a token that those readers sign themselves, so that its
//! key is not taken away before it ends (H80); one of a former key is replaced at the next visit.
//!
//! Nobody can end a token before its time here. It is asked of the same rules that its readers have: a good signature, and a
//! time between `nbf` and `exp`.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::Mac;
use keywheel_core::facts::{Authority, IssuerFacts, LeaseFacts, Observe, ValueOrigin};
use keywheel_core::planted;
use keywheel_core::secret::{Credential, SecretValue};
use keywheel_core::strategy::Strategy;
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{Identity, Issuer, Live, Mint, Minted, Verdict};
use keywheel_driver::{CallError, Duration, Finding, Refusal, RefusalKind, Store};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::IssuerConfig;
use super::jwt_secret::{self, Encoding, mac, sign};
use crate::api::{instant, now, unsupported};
use crate::{Build, Context, Lent, StoreConfig};

const TARGET: &str = "issuer `service_token`";

/// The longest life.
const LONGEST: Span = Span::hours(24);

/// The shortest life that visits every five minutes can serve.
const SERVED: Span = Span::minutes(15);

/// How many bytes the key of HS256 has at least (RFC 7518, 3.2).
const KEY: usize = 32;

/// What is made for each token.
const OURS: [&str; 4] = ["iat", "nbf", "exp", "jti"];

/// What the configuration has a key of its own for.
const NAMED: [&str; 4] = ["iss", "sub", "aud", "scope"];

/// Tokens that are signed with the signing secret of this configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The signing secret: a secret of the same environment with `issuer: jwt_secret` and `strategy: keyring`.
    pub signed_by: String,
    /// How long a token lives; no longer than `longest_token` of the signing secret, and 24 hours.
    #[serde(default = "quarter")]
    pub life: Duration,
    /// Who the bearer is (`sub`).
    pub subject: String,
    /// Who issues it (`iss`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Whom it is for (`aud`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audience: Vec<String>,
    /// What it allows (`scope`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// Further claims.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, Value>,
    /// Where the signing secret is: noted in a plan, and not for the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub signing: Option<Box<Signing>>,
}

/// Where the signing secret is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signing {
    store: StoreConfig,
    current: String,
    also_accepted: Option<String>,
    encoding: Encoding,
    key: jwt_secret::Key,
    skew: Duration,
}

fn quarter() -> Duration {
    Span::minutes(15).into()
}

impl Build for Config {
    type Driver = dyn Issuer;

    fn build(&self, context: &Context) -> Result<Arc<dyn Issuer>, Refusal> {
        self.check()?;
        let signing = match &self.signing {
            Some(signing) => Some((Signing::clone(signing), signing.store.build(context)?)),
            None => None,
        };
        Ok(Arc::new(ServiceToken { signing, config: self.clone() }))
    }

    fn borrows(&self) -> Option<&str> {
        Some(&self.signed_by)
    }

    fn lend(&mut self, lent: &Lent<'_>) -> Result<(), Refusal> {
        if self.signing.is_some() {
            return Err(unsupported("`signing` is not for the file"));
        }
        let IssuerConfig::JwtSecret(secret) = lent.issuer else {
            return Err(unsupported("`signed_by` names something else than a `jwt_secret`"));
        };
        let Strategy::Keyring { longest_token, skew } = lent.strategy else {
            return Err(unsupported(
                "the secret that signs it has no `keyring`, so that a rotation of it would end tokens",
            ));
        };
        if self.life.span() > longest_token && !planted!("token_outlives_its_key") {
            return Err(unsupported(&format!(
                "`life` is longer than the {longest_token} for which a former key is accepted (`longest_token`)"
            )));
        }
        self.signing = Some(Box::new(Signing {
            store: lent.store.clone(),
            current: lent.current.to_owned(),
            also_accepted: lent.also_accepted.map(str::to_owned),
            encoding: secret.encoding,
            key: secret.token.key,
            skew: skew.into(),
        }));
        Ok(())
    }
}

impl Config {
    fn check(&self) -> Result<(), Refusal> {
        let life = self.life.span();
        if life > LONGEST {
            return Err(unsupported("`life` is longer than 24 hours"));
        }
        if life.is_zero() || !life.as_millis().is_multiple_of(1_000) {
            return Err(unsupported("`life` must be whole seconds"));
        }
        if self.subject.trim().is_empty() {
            return Err(unsupported("`subject` is empty"));
        }
        let is_scope =
            |scope: &String| !scope.is_empty() && scope.bytes().all(|byte| byte.is_ascii_graphic());
        if !self.scopes.iter().all(is_scope) {
            return Err(unsupported("one of the `scopes` is empty, or holds a space"));
        }
        let has = |claim: &&&str| self.claims.contains_key(**claim);
        if let Some(taken) = OURS.iter().find(has) {
            return Err(unsupported(&format!(
                "claim `{taken}` is made for each token and cannot be chosen"
            )));
        }
        match NAMED.iter().find(has) {
            Some(named) => Err(unsupported(&format!("claim `{named}` has a key of its own"))),
            None => Ok(()),
        }
    }
}

struct ServiceToken {
    signing: Option<(Signing, Arc<dyn Store>)>,
    config: Config,
}

/// The keys that readers of the signing secret accept.
struct Keys {
    current: SecretValue,
    also_accepted: Option<SecretValue>,
    skew: Span,
}

#[async_trait]
impl Issuer for ServiceToken {
    fn facts(&self) -> IssuerFacts {
        IssuerFacts {
            // One whose making was interrupted is in nobody's hands.
            reset_repeatable: true,
            propagation: Span::ZERO,
            settle_for: Span::ZERO,
            lease: Some(LeaseFacts { longest_life: None }),
            ..IssuerFacts::new(ValueOrigin::Theirs, Observe::None, Authority::Issuer)
        }
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        self.keys().await?;
        let life = self.config.life.span();
        let needs = format!(
            "{TARGET}: tokens that live {life} need `keywheel resume --all` more often than every five minutes"
        );
        Ok((life < SERVED).then(|| Finding::note(needs)).into_iter().collect())
    }

    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        // Where the key gives way to another one in this moment, the token still ends as early as one that readers signed.
        let before = now();
        let keys = self.keys().await?;
        let at = if planted!("dated_after_its_key_was_read") { now() } else { before };
        let issued_at = at.millis().div_euclid(1_000);
        let expires_at = issued_at + seconds(self.config.life.span());
        let id = key_id(&keys.current);
        let mut claims = self.claims();
        claims["jti"] = json!(request.label);
        claims["iat"] = json!(issued_at);
        // Readers whose clocks are behind accept it at once.
        let lead = if planted!("valid_from_now") { 0 } else { seconds(keys.skew) };
        claims["nbf"] = json!(issued_at - lead);
        claims["exp"] = json!(expires_at);
        let token = sign(json!({ "alg": "HS256", "typ": "JWT", "kid": id }), claims, &keys.current);
        Ok(Minted {
            issued: Some(issued(&request.label.0, &id)),
            credential: Some(Credential::of_value(token)),
            expires_at: Some(instant(expires_at)),
            notes: Vec::new(),
        })
    }

    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        let keys = self.keys().await?;
        let Some(token) = credential.value().and_then(|token| keys.read(token)) else {
            return Ok(Verdict::Refused);
        };
        let now = now();
        Ok(if now >= token.expires_at + keys.skew {
            Verdict::Refused
        } else if now >= token.expires_at {
            Verdict::CannotTell(
                "it has ended, and readers whose clocks are behind accept it".into(),
            )
        } else {
            Verdict::Accepted
        })
    }

    async fn list(&self, _prefix: &str) -> Result<Vec<Live>, CallError> {
        Ok(Vec::new())
    }

    async fn revoke(&self, _id: &IssuedId) -> Result<(), CallError> {
        Err(unsupported("nobody can end a token before its time").into())
    }

    async fn outdated(&self, id: &IssuedId) -> Result<Option<String>, CallError> {
        let key = key_id(&self.keys().await?.current);
        let is_former = id.id.rsplit_once('/').is_none_or(|(_, signed_by)| signed_by != key);
        Ok((is_former && !planted!("former_key_is_fine"))
            .then(|| "it is signed with a former key".into()))
    }

    async fn ends_at(&self, credential: &Credential) -> Result<Option<Timestamp>, CallError> {
        let keys = self.keys().await?;
        let token = credential.value().and_then(|token| keys.read(token));
        Ok(token.map(|token| token.expires_at + keys.skew))
    }

    async fn identify(&self, credential: &Credential) -> Result<Identity, CallError> {
        let keys = self.keys().await?;
        let known = credential.value().and_then(|token| keys.read(token));
        Ok(match known {
            Some(Token { id: Some(id), key, issued_at, .. }) => Identity::Known {
                issued: issued(&id, &key),
                how: "the token says it".into(),
                created_at: issued_at,
            },
            _ => Identity::Unknown,
        })
    }
}

impl ServiceToken {
    /// Reads the keys that are in use now.
    async fn keys(&self) -> Result<Keys, CallError> {
        let (signing, store) = self.signing.as_ref().ok_or_else(|| {
            unsupported("the secret that signs it is not named in this configuration")
        })?;
        let addresses: Vec<String> = [Some(&signing.current), signing.also_accepted.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let mut held = store.read(&addresses).await?.into_iter();
        let mut key = || {
            let held = held.next().flatten().filter(|value| !value.expose().is_empty());
            held.map(|value| signing.key.of(&value, signing.encoding).ok_or(value))
        };
        let no_key = |message: &str| {
            let message = format!("{TARGET}: {message}");
            CallError::from(Refusal::operator(RefusalKind::Invalid, message))
        };
        let current = match key() {
            Some(Ok(current)) => current,
            Some(Err(_)) => {
                return Err(no_key(
                    "the secret that signs it is not written as its `encoding` says",
                ));
            }
            None => return Err(no_key("the secret that signs it is not in its store")),
        };
        if current.expose().len() < KEY && !planted!("short_key_signs") {
            return Err(no_key(
                "the secret that signs it has fewer than 32 bytes, and HS256 needs as many: rotate it first",
            ));
        }
        let also_accepted = key().and_then(Result::ok);
        let keys = Keys { current, also_accepted, skew: signing.skew.span() };
        Ok(match keys.also_accepted {
            Some(newest) if planted!("signs_with_what_some_accept") => {
                Keys { also_accepted: Some(keys.current), current: newest, ..keys }
            }
            _ => keys,
        })
    }

    fn claims(&self) -> Value {
        let config = &self.config;
        let mut claims = json!({ "sub": config.subject });
        for (name, value) in &config.claims {
            claims[name] = value.clone();
        }
        if let Some(issuer) = &config.issuer {
            claims["iss"] = json!(issuer);
        }
        match config.audience.as_slice() {
            [] => {}
            [one] => claims["aud"] = json!(one),
            several => claims["aud"] = json!(several),
        }
        if !config.scopes.is_empty() {
            claims["scope"] = json!(config.scopes.join(" "));
        }
        claims
    }
}

/// What a token with a good signature says.
struct Token {
    id: Option<String>,
    key: String,
    issued_at: Option<Timestamp>,
    expires_at: Timestamp,
}

impl Keys {
    /// Reads a token as its readers do; none where one of them would refuse it, whatever the time is.
    fn read(&self, token: &SecretValue) -> Option<Token> {
        let text = std::str::from_utf8(token.expose()).ok()?;
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let is_good =
            |key: &&SecretValue| mac(signed.as_bytes(), key).verify_slice(&signature).is_ok();
        let key = [Some(&self.current), self.also_accepted.as_ref()]
            .into_iter()
            .flatten()
            .find(is_good)?;
        let part = |text| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(text).ok()?).ok();
        let (header, claims) = (part(header)?, part(claims)?);
        let time = |name: &str| claims[name].as_i64().map(instant);
        (header["alg"] == "HS256").then_some(Token {
            id: claims["jti"].as_str().map(str::to_owned),
            key: key_id(key),
            issued_at: time("iat"),
            expires_at: time("exp")?,
        })
    }
}

/// Names a key by itself, so that no two keys ever have one name (H81). It tells as little of the key as a signature does.
fn key_id(key: &SecretValue) -> String {
    hex::encode(&mac(b"keywheel key id", key).finalize().into_bytes()[..8])
}

/// A token is known by its own id and that of its key.
fn issued(id: &str, key: &str) -> IssuedId {
    IssuedId::new(format!("{id}/{key}"))
}

fn seconds(span: Span) -> i64 {
    i64::try_from(span.as_millis() / 1_000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use keywheel_core::plan::Label;
    use keywheel_driver::conformance::canary;
    use keywheel_driver::conformance::issuer::{Subject, run};

    use super::*;

    const FORMER: &str = "kwcanary-former-kwcanary-former-kwcanary";
    const LATTER: &str = "kwcanary-latter-kwcanary-latter-kwcanary";

    fn config(more: Value) -> Config {
        let mut config = json!({ "signed_by": "jwt", "subject": "worker" });
        for (name, value) in more.as_object().unwrap() {
            config[name] = value.clone();
        }
        serde_json::from_value(config).unwrap()
    }

    fn keyring(longest_token: Span) -> Strategy {
        Strategy::Keyring { longest_token, skew: Span::minutes(2) }
    }

    fn lend(config: &mut Config, store: &Value, strategy: Strategy) -> Result<(), Refusal> {
        let store: StoreConfig = serde_json::from_value(store.clone()).unwrap();
        let issuer: IssuerConfig = serde_json::from_value(json!({ "jwt_secret": {} })).unwrap();
        config.lend(&Lent {
            issuer: &issuer,
            strategy,
            store: &store,
            current: "JWT",
            also_accepted: Some("ALSO"),
        })
    }

    /// An issuer beside a file of keys.
    struct Bench {
        folder: tempfile::TempDir,
        issuer: Arc<dyn Issuer>,
    }

    impl Bench {
        fn of(more: Value) -> Self {
            let folder = tempfile::TempDir::new().unwrap();
            let issuer = built(more, &json!({ "env_file": { "path": "keys.env" } }), folder.path());
            let bench = Self { folder, issuer };
            bench.hold(FORMER, "");
            bench
        }

        fn hold(&self, current: &str, also_accepted: &str) {
            let text = format!("JWT={current}\nALSO={also_accepted}\n");
            fs::write(self.folder.path().join("keys.env"), text).unwrap();
        }

        async fn mint(&self) -> Minted {
            mint(&*self.issuer).await.unwrap_or_else(|error| panic!("{error}"))
        }

        async fn verdict(&self, token: &str) -> Verdict {
            let token = Credential::of_value(SecretValue::new(token.into()));
            self.issuer.verify(&token).await.unwrap()
        }
    }

    fn built(more: Value, store: &Value, root: &Path) -> Arc<dyn Issuer> {
        let mut config = config(more);
        lend(&mut config, store, keyring(Span::hours(24))).unwrap_or_else(|no| panic!("{no}"));
        config.build(&Context::at(root)).unwrap_or_else(|no| panic!("{no}"))
    }

    async fn mint(issuer: &dyn Issuer) -> Result<Minted, CallError> {
        issuer.mint(&Mint::new(&Label("kw-0123456789ab-1".into()))).await
    }

    fn token(minted: &Minted) -> String {
        let value = minted.credential.as_ref().unwrap().value().unwrap();
        String::from_utf8(value.expose().to_vec()).unwrap()
    }

    fn part(token: &str, index: usize) -> Value {
        let part = token.split('.').nth(index).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    }

    fn signed(header: Value, claims: Value, key: &str) -> String {
        let token = sign(header, claims, &SecretValue::new(key.into()));
        String::from_utf8(token.expose().to_vec()).unwrap()
    }

    fn refusal(config: &Config) -> String {
        config.build(&Context::at("/")).err().unwrap().message
    }

    #[tokio::test]
    async fn the_issuer_keeps_its_contract() {
        let bench = Bench::of(json!({}));
        let broken =
            built(json!({}), &json!({ "env_file": { "path": "none.env" } }), Path::new("/"));
        let garbage = Credential::of_value(SecretValue::new(canary("service-token").into()));
        run(&Subject {
            issuer: &*bench.issuer,
            prefix: "kw-suite-",
            garbage: &garbage,
            lose_next_answer: None,
            broken: &[&*broken],
            canaries: &[&garbage],
        })
        .await;
    }

    #[tokio::test]
    async fn a_token_says_who_may_do_what_and_until_when() {
        let bench = Bench::of(json!({
            "life": "1h", "issuer": "https://shop.example", "audience": ["orders", "stock"],
            "scopes": ["orders:read", "stock:read"], "claims": { "tenant": 7 },
        }));
        let minted = bench.mint().await;
        let token = token(&minted);
        let (header, claims) = (part(&token, 0), part(&token, 1));
        assert_eq!((&header["alg"], &header["typ"]), (&json!("HS256"), &json!("JWT")));
        let issued = minted.issued.unwrap().id;
        assert_eq!(issued, format!("kw-0123456789ab-1/{}", header["kid"].as_str().unwrap()));
        let issued_at = claims["iat"].as_i64().unwrap();
        assert!((issued_at - now().millis() / 1_000).abs() < 60);
        assert_eq!(
            claims,
            json!({
                "sub": "worker", "iss": "https://shop.example", "aud": ["orders", "stock"],
                "scope": "orders:read stock:read", "tenant": 7, "jti": "kw-0123456789ab-1",
                "iat": issued_at, "nbf": issued_at - 120, "exp": issued_at + 3_600,
            })
        );
        assert_eq!(minted.expires_at, Some(instant(issued_at + 3_600)));
        assert_eq!(bench.verdict(&token).await, Verdict::Accepted);
        let identity = bench.issuer.identify(&minted.credential.unwrap()).await.unwrap();
        let Identity::Known { issued: known, created_at, .. } = identity else { panic!("unknown") };
        assert_eq!((known.id, created_at), (issued, Some(instant(issued_at))));
    }

    #[tokio::test]
    async fn h79_a_token_is_signed_with_what_every_reader_accepts() {
        let bench = Bench::of(json!({}));
        // In the middle of a rotation some readers do not have the new key yet.
        bench.hold(FORMER, LATTER);
        let token = token(&bench.mint().await);
        bench.hold(FORMER, "");
        assert_eq!(bench.verdict(&token).await, Verdict::Accepted);
        bench.hold(LATTER, FORMER);
        assert_eq!(bench.verdict(&token).await, Verdict::Accepted);
        bench.hold(LATTER, "");
        assert_eq!(bench.verdict(&token).await, Verdict::Refused);
    }

    #[tokio::test]
    async fn h80_a_token_of_a_former_key_is_to_be_replaced() {
        let bench = Bench::of(json!({}));
        let issued = bench.mint().await.issued.unwrap();
        let outdated = async || bench.issuer.outdated(&issued).await.unwrap();
        assert_eq!(outdated().await, None);
        bench.hold(FORMER, LATTER);
        assert_eq!(outdated().await, None);
        bench.hold(LATTER, FORMER);
        assert_eq!(outdated().await.as_deref(), Some("it is signed with a former key"));
        bench.hold(LATTER, "");
        assert!(outdated().await.is_some());
    }

    #[tokio::test]
    async fn h80_a_token_ends_no_later_than_one_of_the_moment_before_its_key_was_read() {
        let folder = tempfile::TempDir::new().unwrap();
        let script = format!(
            "date +%s > began; sleep 1.1; echo '{{\"slots\": {{\"JWT\": \"{FORMER}\", \"ALSO\": null}}}}'"
        );
        let read = json!(["/bin/sh", "-c", script]);
        let store = json!({ "command": { "id": "keys", "read": read, "write": ["/bin/false"] } });
        let issuer = built(json!({ "life": "1h" }), &store, folder.path());
        let minted = mint(&*issuer).await.unwrap_or_else(|error| panic!("{error}"));
        let began = fs::read_to_string(folder.path().join("began")).unwrap();
        let began: i64 = began.trim().parse().unwrap();
        assert!(minted.expires_at.unwrap() <= instant(began + 3_600));
    }

    #[test]
    fn h80_a_token_lives_no_longer_than_its_key_is_accepted() {
        let store = json!({ "env_file": { "path": "keys.env" } });
        let lent = |life: &str| {
            let mut config = config(json!({ "life": life }));
            lend(&mut config, &store, keyring(Span::minutes(30))).map_err(|no| no.message)
        };
        assert_eq!(lent("30m"), Ok(()));
        let refusal =
            "`life` is longer than the 30 min for which a former key is accepted (`longest_token`)";
        assert_eq!(lent("31m"), Err(refusal.to_owned()));
    }

    #[tokio::test]
    async fn h84_a_token_is_valid_where_the_clock_is_behind() {
        let token = token(&Bench::of(json!({})).mint().await);
        let time = |name: &str| part(&token, 1)[name].as_i64().unwrap();
        assert_eq!(time("iat") - time("nbf"), 120);
    }

    #[tokio::test]
    async fn a_key_id_is_of_one_key() {
        let bench = Bench::of(json!({}));
        let mut ids = Vec::new();
        for key in [FORMER, LATTER, FORMER] {
            bench.hold(key, "");
            ids.push(part(&token(&bench.mint().await), 0)["kid"].as_str().unwrap().to_owned());
        }
        assert!(ids[0] == ids[2] && ids[0] != ids[1], "{ids:?}");
    }

    #[tokio::test]
    async fn h118_a_key_that_could_be_guessed_from_a_token_signs_nothing() {
        let bench = Bench::of(json!({}));
        bench.hold("kwcanary-of-31-characters-short", "");
        let Err(CallError::Refused(no)) = mint(&*bench.issuer).await else { panic!("it signs") };
        assert_eq!(
            no.message,
            "issuer `service_token`: the secret that signs it has fewer than 32 bytes, and HS256 needs as many: rotate it first"
        );
        assert!(bench.issuer.preflight().await.is_err());
        bench.hold("", "");
        let Err(CallError::Refused(no)) = mint(&*bench.issuer).await else { panic!("it signs") };
        assert!(no.message.ends_with("is not in its store"), "{no}");
    }

    #[tokio::test]
    async fn what_readers_refuse_is_refused() {
        let bench = Bench::of(json!({}));
        let second = now().millis() / 1_000;
        let claims = |left: i64| json!({ "sub": "worker", "exp": second + left });
        let hs256 = || json!({ "alg": "HS256" });
        let good = signed(hs256(), claims(60), FORMER);
        assert_eq!(bench.verdict(&good).await, Verdict::Accepted);
        for (what, bad) in [
            ("no signature", format!("{}.", good.rsplit_once('.').unwrap().0)),
            ("no algorithm", signed(json!({ "alg": "none" }), claims(60), FORMER)),
            ("another algorithm", signed(json!({ "alg": "HS512" }), claims(60), FORMER)),
            ("another key", signed(hs256(), claims(60), LATTER)),
            ("no end", signed(hs256(), json!({ "sub": "worker" }), FORMER)),
            ("its end", signed(hs256(), claims(-121), FORMER)),
            ("no token", "kwcanary".into()),
        ] {
            assert_eq!(bench.verdict(&bad).await, Verdict::Refused, "{what}");
        }
        let ended = bench.verdict(&signed(hs256(), claims(-60), FORMER)).await;
        assert!(matches!(ended, Verdict::CannotTell(_)), "some clocks are behind: {ended:?}");
    }

    #[tokio::test]
    async fn a_token_ends_once_the_slowest_clock_says_so() {
        let bench = Bench::of(json!({}));
        let minted = bench.mint().await;
        let (token, expires_at) = (minted.credential.unwrap(), minted.expires_at.unwrap());
        let ends_at = bench.issuer.ends_at(&token).await.unwrap();
        assert_eq!(ends_at, Some(expires_at + Span::minutes(2)));
        bench.hold(LATTER, "");
        assert_eq!(bench.issuer.ends_at(&token).await.unwrap(), None, "its key is gone");
        let revoked = bench.issuer.revoke(&minted.issued.unwrap()).await;
        assert!(matches!(revoked, Err(CallError::Refused(_))));
    }

    #[test]
    fn settings_that_weaken_a_token_are_refused() {
        for (more, why) in [
            (json!({ "life": "25h" }), "`life` is longer than 24 hours"),
            (json!({ "life": "1500ms" }), "`life` must be whole seconds"),
            (json!({ "subject": " " }), "`subject` is empty"),
            (json!({ "scopes": ["a b"] }), "one of the `scopes` is empty, or holds a space"),
            (
                json!({ "claims": { "exp": 1 } }),
                "claim `exp` is made for each token and cannot be chosen",
            ),
            (json!({ "claims": { "sub": "a" } }), "claim `sub` has a key of its own"),
        ] {
            assert_eq!(refusal(&config(more)), why);
        }
        let unknown = json!({ "signed_by": "jwt", "subject": "worker", "algorithm": "none" });
        assert!(serde_json::from_value::<Config>(unknown).is_err());
    }

    #[test]
    fn only_a_keyring_of_a_signing_secret_signs() {
        let store = json!({ "env_file": { "path": "keys.env" } });
        let mut lonely = config(json!({}));
        let no = lend(&mut lonely, &store, Strategy::Cutover).unwrap_err();
        assert!(no.message.contains("has no `keyring`"), "{no}");
        let issuer: IssuerConfig = serde_json::from_value(json!({ "random": {} })).unwrap();
        let store: StoreConfig = serde_json::from_value(store).unwrap();
        let lent = Lent {
            issuer: &issuer,
            strategy: keyring(Span::hours(1)),
            store: &store,
            current: "JWT",
            also_accepted: None,
        };
        let no = lonely.lend(&lent).unwrap_err();
        assert!(no.message.contains("something else than a `jwt_secret`"), "{no}");
    }
}
