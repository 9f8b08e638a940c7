//! `random`: a value of random characters that no issuer knows.

use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::facts::{Authority, IssuerFacts, Observe, ValueOrigin};
use keywheel_core::secret::{Credential, SecretValue};
use keywheel_core::time::Span;
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{Issuer, Live, Mint, Minted, Randomness, Verdict};
use keywheel_driver::{CallError, Finding, Refusal, RefusalKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Build, Context};

/// The letters, digits, `-` and `_`: nothing that a URL, a shell or an `.env` file reads as its own (H75, H99).
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// A value of random characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How many characters, of 6 random bits each; at least 22 (128 bits).
    #[serde(default = "default_length")]
    pub length: u16,
}

fn default_length() -> u16 {
    43
}

impl Build for Config {
    type Driver = dyn Issuer;

    fn build(&self, _context: &Context) -> Result<Arc<dyn Issuer>, Refusal> {
        if self.length < 22 {
            return Err(Refusal::operator(
                RefusalKind::Unsupported,
                "`length` must be at least 22 (128 bits)",
            ));
        }
        Ok(Arc::new(Random { length: self.length }))
    }
}

/// Makes a value of random characters, of 6 bits each.
pub(super) fn characters(length: u16, random: Randomness<'_>) -> SecretValue {
    let mut bytes = vec![0; usize::from(length)];
    random(&mut bytes);
    bytes.iter_mut().for_each(|b| *b = ALPHABET[usize::from(*b & 63)]);
    SecretValue::new(bytes)
}

struct Random {
    length: u16,
}

#[async_trait]
impl Issuer for Random {
    fn facts(&self) -> IssuerFacts {
        IssuerFacts {
            settable_old_value: true,
            reset_repeatable: true,
            propagation: Span::ZERO,
            settle_for: Span::ZERO,
            ..IssuerFacts::new(ValueOrigin::Ours, Observe::Probe, Authority::None)
        }
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    fn generate(&self, random: Randomness<'_>, _previous: Option<&IssuedId>) -> Option<Credential> {
        Some(Credential::of_value(characters(self.length, random)))
    }

    async fn mint(&self, _request: &Mint<'_>) -> Result<Minted, CallError> {
        Ok(Minted::default())
    }

    async fn verify(&self, _credential: &Credential) -> Result<Verdict, CallError> {
        Ok(Verdict::CannotTell("a random value has no issuer to ask".into()))
    }

    async fn list(&self, _prefix: &str) -> Result<Vec<Live>, CallError> {
        Ok(Vec::new())
    }

    async fn revoke(&self, _id: &IssuedId) -> Result<(), CallError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use keywheel_driver::conformance::issuer::{Subject, run};

    use super::*;

    fn build(length: u16) -> Result<Arc<dyn Issuer>, Refusal> {
        Config { length }.build(&Context::at("/"))
    }

    #[tokio::test]
    async fn the_issuer_keeps_its_contract() {
        for length in [22, 43] {
            let issuer = build(length).unwrap_or_else(|e| panic!("{e}"));
            let of = |value: &str| Credential::of_value(SecretValue::new(value.into()));
            run(&Subject {
                issuer: &*issuer,
                prefix: "kw-suite-",
                garbage: &of("garbage"),
                lose_next_answer: None,
                broken: &[&*issuer],
                canaries: &[&of("kwcanary-5e1f-kwcanary-5e1f")],
            })
            .await;
        }
    }

    #[test]
    fn a_short_value_is_refused() {
        assert!(build(21).is_err());
    }
}
