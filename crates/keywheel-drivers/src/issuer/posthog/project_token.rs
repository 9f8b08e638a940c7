//! The project token: an identifier that is published in browsers and has one value at a time. A person resets it; from then on
//! the one before it is refused, and whoever still holds it reports nothing.
//!
//! It is read before a person is asked. A later try of a rotation that finds another token than the one in use takes that one:
//! it was reset already, and is not reset again.

use async_trait::async_trait;
use keywheel_core::facts::{Authority, IssuerFacts, Observe, ValueOrigin};
use keywheel_core::planted;
use keywheel_core::secret::Credential;
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{Audit, Identity, Issuer, Live, Mint, Minted, Suspect, Verdict};
use keywheel_driver::{CallError, Finding, RefusalKind};

use super::{Project, Tokens, is, is_first, nobody_did};
use crate::api::unsupported;

pub(super) struct ProjectToken(pub(super) Project);

#[async_trait]
impl Issuer for ProjectToken {
    fn facts(&self) -> IssuerFacts {
        IssuerFacts {
            max_live: Some(1),
            // A mint looks before it asks, so that it can be repeated.
            reset_repeatable: true,
            publishable: true,
            propagation: self.0.config.propagation.span(),
            settle_for: self.0.config.settle_for.span(),
            by_hand: Some(self.0.config.within.span()),
            ..IssuerFacts::new(ValueOrigin::TheirsRereadable, Observe::None, Authority::Issuer)
        }
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        Ok(match self.0.tokens().await {
            Err(CallError::Refused(refusal))
                if matches!(refusal.kind, RefusalKind::Permission | RefusalKind::NotFound) =>
            {
                vec![Finding::blocks(refusal.to_string())]
            }
            tokens => {
                tokens?;
                vec![
                    self.0.guided.finding("you are asked to reset the project token"),
                    Finding::note(
                        "every client that was shipped with the former token reports nothing until it is replaced",
                    ),
                ]
            }
        })
    }

    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        let mut tokens = self.0.tokens_before().await?;
        if self.must_be_reset(&tokens, request) {
            let before = tokens.api_token.0;
            let reset = |tokens: &Tokens| !tokens.api_token.0.same_as(&before);
            tokens = self
                .0
                .until(&self.steps(), reset)
                .await?
                .ok_or_else(|| nobody_did("nobody reset the project token"))?;
        }
        Ok(Minted {
            issued: Some(IssuedId::new(&request.label.0)),
            credential: Some(Credential::of_value(tokens.api_token.0)),
            ..Minted::default()
        })
    }

    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        self.0.flags(credential).await
    }

    /// PostHog keeps no names of project tokens.
    async fn list(&self, _prefix: &str) -> Result<Vec<Live>, CallError> {
        Ok(Vec::new())
    }

    async fn revoke(&self, _id: &IssuedId) -> Result<(), CallError> {
        Err(unsupported("a project token ends when the next one takes its place").into())
    }

    async fn identify(&self, credential: &Credential) -> Result<Identity, CallError> {
        let tokens = self.0.tokens().await?;
        Ok(match is(Some(&tokens.api_token), Some(credential)) {
            true => Identity::Known {
                issued: IssuedId::new("api_token"),
                how: "the project shows it as its token".into(),
                created_at: None,
            },
            false => Identity::Unknown,
        })
    }

    fn audit(&self) -> Option<&dyn Audit> {
        Some(self)
    }
}

impl ProjectToken {
    /// Where no store holds a token yet, nothing is gained by ending the one that there is.
    fn must_be_reset(&self, tokens: &Tokens, request: &Mint<'_>) -> bool {
        let token = Some(&tokens.api_token);
        // A suspect whose value is not known may be the token.
        let may_be_it =
            |suspect: &Suspect| suspect.value.is_none() || is(token, suspect.value.as_ref());
        request.in_use.is_some()
            && (is_first(request.label)
                || is(token, request.in_use)
                || request.suspects.iter().any(may_be_it)
                || planted!("token_is_reset_again"))
    }

    fn steps(&self) -> Vec<String> {
        vec![
            self.0.settings(),
            "find the project token (`phc_…`), click to reset it, and confirm".into(),
            "the former token is refused from that moment on; nothing needs to be copied".into(),
        ]
    }
}
