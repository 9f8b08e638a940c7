//! `jwt_secret`: a symmetric secret that applications sign tokens with. No issuer knows it; the workloads are the ones who
//! accept or refuse what is signed by it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use keywheel_core::facts::{Authority, IssuerFacts, Observe, ValueOrigin};
use keywheel_core::secret::{Credential, SecretValue};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{Issuer, Live, Mint, Minted, Randomness, Tokens, Verdict};
use keywheel_driver::{CallError, Finding, Refusal, RefusalKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::{Build, Context};

/// How long a harmless token is good for, in seconds.
const LIFE: i64 = 60;

/// A symmetric signing secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How many random bytes; at least 32, as many as the signature has (RFC 7518, 3.2).
    #[serde(default = "default_bytes")]
    pub bytes: u16,
    /// How they are written.
    #[serde(default)]
    pub encoding: Encoding,
    /// The tokens that replicas are asked about.
    #[serde(default)]
    pub token: Token,
}

fn default_bytes() -> u16 {
    32
}

/// How random bytes are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// Letters, digits, `-` and `_`, without padding.
    #[default]
    Base64url,
    /// Lower-case hex digits.
    Hex,
}

/// A token that grants nothing: a replica that holds the secret accepts its signature, and one that does not refuses it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// How it is signed.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// What the application takes for the key of the signature.
    #[serde(default)]
    pub key: Key,
    /// Further claims that the application looks for; `sub` may be one of them, `iat`, `exp` and `jti` may not.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, Value>,
}

/// How a token is signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    #[default]
    HS256,
}

/// What an application takes for the key of a signature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// The text as it stands in the store.
    #[default]
    Text,
    /// The bytes that the text encodes.
    Decoded,
}

impl Build for Config {
    type Driver = dyn Issuer;

    fn build(&self, _context: &Context) -> Result<Arc<dyn Issuer>, Refusal> {
        if self.bytes < 32 {
            return Err(unsupported("`bytes` must be at least 32"));
        }
        if let Some(taken) =
            ["iat", "exp", "jti"].into_iter().find(|claim| self.token.claims.contains_key(*claim))
        {
            return Err(unsupported(&format!(
                "claim `{taken}` is made for each token and cannot be chosen"
            )));
        }
        Ok(Arc::new(JwtSecret { config: self.clone(), signed: AtomicU64::new(0) }))
    }
}

fn unsupported(message: &str) -> Refusal {
    Refusal::operator(RefusalKind::Unsupported, message)
}

struct JwtSecret {
    config: Config,
    /// How many tokens were signed, so that no two are alike.
    signed: AtomicU64,
}

#[async_trait]
impl Issuer for JwtSecret {
    fn facts(&self) -> IssuerFacts {
        IssuerFacts {
            settable_old_value: true,
            reset_repeatable: true,
            propagation: Span::ZERO,
            settle_for: Span::ZERO,
            ..IssuerFacts::new(ValueOrigin::Ours, Observe::Probe, Authority::Workload)
        }
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    fn generate(&self, random: Randomness<'_>, _previous: Option<&IssuedId>) -> Option<Credential> {
        let mut bytes = vec![0; usize::from(self.config.bytes)];
        random(&mut bytes);
        let bytes = SecretValue::new(bytes);
        let text = match self.config.encoding {
            Encoding::Base64url => URL_SAFE_NO_PAD.encode(bytes.expose()).into_bytes(),
            Encoding::Hex => hex(bytes.expose()),
        };
        Some(Credential::of_value(SecretValue::new(text)))
    }

    async fn mint(&self, _request: &Mint<'_>) -> Result<Minted, CallError> {
        Ok(Minted::default())
    }

    async fn verify(&self, _credential: &Credential) -> Result<Verdict, CallError> {
        Ok(Verdict::CannotTell("a signing secret has no issuer to ask".into()))
    }

    async fn list(&self, _prefix: &str) -> Result<Vec<Live>, CallError> {
        Ok(Vec::new())
    }

    async fn revoke(&self, _id: &IssuedId) -> Result<(), CallError> {
        Ok(())
    }

    fn tokens(&self) -> Option<&dyn Tokens> {
        Some(self)
    }
}

impl Tokens for JwtSecret {
    /// Returns none where the secret is not written as the configuration says, which can be so with an adopted one.
    fn harmless(&self, credential: &Credential, now: Timestamp) -> Option<SecretValue> {
        let key = self.config.token.key.of(credential.value()?, self.config.encoding)?;
        let Algorithm::HS256 = self.config.token.algorithm;
        Some(sign(json!({ "alg": "HS256", "typ": "JWT" }), self.claims(now), &key))
    }
}

impl Key {
    /// Returns the bytes that an application signs with; none where a value is not written as the configuration says.
    pub(super) fn of(self, value: &SecretValue, encoding: Encoding) -> Option<SecretValue> {
        Some(match (self, encoding) {
            (Self::Text, _) => value.duplicate(),
            (Self::Decoded, Encoding::Base64url) => {
                SecretValue::new(URL_SAFE_NO_PAD.decode(value.expose()).ok()?)
            }
            (Self::Decoded, Encoding::Hex) => SecretValue::new(unhex(value.expose())?),
        })
    }
}

/// Signs claims with HS256, in the compact form of RFC 7515.
pub(super) fn sign(header: Value, claims: Value, key: &SecretValue) -> SecretValue {
    let body = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    let signature = URL_SAFE_NO_PAD.encode(mac(body.as_bytes(), key).finalize().into_bytes());
    SecretValue::new(format!("{body}.{signature}").into_bytes())
}

/// Begins the signature of HS256 over some bytes.
pub(super) fn mac(bytes: &[u8], key: &SecretValue) -> Hmac<Sha256> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key.expose()).expect("a key of any length is taken");
    mac.update(bytes);
    mac
}

impl JwtSecret {
    fn claims(&self, now: Timestamp) -> Value {
        let seconds = now.millis().div_euclid(1_000);
        let nth = self.signed.fetch_add(1, Ordering::Relaxed);
        let mut claims = json!({ "sub": "keywheel-probe" });
        for (name, value) in &self.config.token.claims {
            claims[name] = value.clone();
        }
        claims["iat"] = json!(seconds);
        claims["exp"] = json!(seconds + LIFE);
        claims["jti"] = json!(format!("kw-{}-{nth}", now.millis()));
        claims
    }
}

fn hex(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .collect()
}

fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digit =
        |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = |pair: &[u8]| match *pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    text.chunks(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use keywheel_driver::conformance::issuer::{Subject, run};

    use super::*;

    fn issuer(config: Value) -> Arc<dyn Issuer> {
        let config: Config = serde_json::from_value(config).unwrap();
        config.build(&Context::at("/")).unwrap_or_else(|e| panic!("{e}"))
    }

    fn credential(value: &str) -> Credential {
        Credential::of_value(SecretValue::new(value.into()))
    }

    fn token(issuer: &dyn Issuer, value: &str) -> Option<String> {
        let now = Timestamp::from_millis(1_700_000_000_500);
        let token = issuer.tokens().unwrap().harmless(&credential(value), now)?;
        Some(String::from_utf8(token.expose().to_vec()).unwrap())
    }

    fn claims(token: &str) -> Value {
        let part = token.split('.').nth(1).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    }

    fn counting() -> impl FnMut(&mut [u8]) + Send {
        |bytes| bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8)
    }

    #[test]
    fn the_bytes_are_written_as_configured() {
        let text = |config| {
            let made = issuer(config).generate(&mut counting(), None).unwrap();
            String::from_utf8(made.value().unwrap().expose().to_vec()).unwrap()
        };
        assert_eq!(text(json!({})), "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8");
        let hex = text(json!({ "encoding": "hex", "bytes": 33 }));
        assert_eq!(hex, "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20");
        assert_eq!(unhex(hex.as_bytes()).unwrap(), (0..33).collect::<Vec<u8>>());
        assert_eq!((unhex(b"0"), unhex(b"0g")), (None, None));
    }

    #[tokio::test]
    async fn the_issuer_keeps_its_contract() {
        for config in [json!({}), json!({ "encoding": "hex", "bytes": 64 })] {
            let issuer = issuer(config);
            run(&Subject {
                issuer: &*issuer,
                prefix: "kw-suite-",
                garbage: &credential("garbage"),
                lose_next_answer: None,
                broken: &[&*issuer],
                canaries: &[&credential("kwcanary-5e1f-kwcanary-5e1f")],
            })
            .await;
        }
    }

    #[test]
    fn a_short_secret_is_refused() {
        let config: Config = serde_json::from_value(json!({ "bytes": 31 })).unwrap();
        assert!(config.build(&Context::at("/")).is_err());
    }

    /// RFC 7515, A.1: its key is 64 bytes in base64url and its signature covers these two parts.
    #[test]
    fn a_signature_is_the_one_of_the_standard() {
        let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
        let body = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
                    eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&URL_SAFE_NO_PAD.decode(key).unwrap()).unwrap();
        mac.update(body.as_bytes());
        let signature = URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
        assert_eq!(signature, "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");

        let token = token(&*issuer(json!({ "token": { "key": "decoded" } })), key).unwrap();
        let (body, signature) = token.rsplit_once('.').unwrap();
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&URL_SAFE_NO_PAD.decode(key).unwrap()).unwrap();
        mac.update(body.as_bytes());
        mac.verify_slice(&URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
    }

    #[test]
    fn a_token_opens_nothing_and_ends_soon() {
        let issuer = issuer(json!({ "token": { "claims": { "aud": "app", "admin": false } } }));
        let (first, second) = (token(&*issuer, "one").unwrap(), token(&*issuer, "one").unwrap());
        assert_ne!(first, second);
        let claims = claims(&first);
        assert_eq!(claims["sub"], "keywheel-probe");
        assert_eq!(
            (&claims["iat"], &claims["exp"]),
            (&json!(1_700_000_000), &json!(1_700_000_060))
        );
        assert_eq!((&claims["aud"], &claims["admin"]), (&json!("app"), &json!(false)));
    }

    #[test]
    fn the_life_of_a_token_cannot_be_chosen() {
        let config: Config =
            serde_json::from_value(json!({ "token": { "claims": { "exp": 9e9 } } })).unwrap();
        let refusal = config.build(&Context::at("/")).err().unwrap();
        assert_eq!(refusal.message, "claim `exp` is made for each token and cannot be chosen");
    }

    #[test]
    fn an_adopted_secret_that_is_written_otherwise_signs_nothing() {
        assert!(token(&*issuer(json!({ "token": { "key": "decoded" } })), "not base64!").is_none());
        assert!(token(&*issuer(json!({})), "not base64!").is_some());
    }
}
