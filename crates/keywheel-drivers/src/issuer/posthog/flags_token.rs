//! The feature flags secure token: a primary and a backup, both of which work. A person rotates it: the primary becomes the
//! backup, and the backup before it is refused.
//!
//! A second rotation would therefore end the token that is in use. Both are read before a person is asked, and what an earlier
//! try of the same rotation did is not done again (H05). Where there is a backup beforehand, nothing is done at all.
//!
//! PostHog keeps no ids of these tokens; only its value tells which one a version is. There is no way back either: a backup
//! cannot be made the primary, and a version that was given up goes on beside the one in use.

use async_trait::async_trait;
use keywheel_core::facts::{Authority, IssuerFacts, Observe, ValueOrigin};
use keywheel_core::planted;
use keywheel_core::secret::{Credential, SecretValue};
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{Identity, Issuer, Live, Mint, Minted, Verdict};
use keywheel_driver::{CallError, Finding, RefusalKind};

use super::{Project, Tokens, is, is_first, nobody_did};
use crate::api::unsupported;

const BACKUP: &str = "there is a backup of the feature flags token, and a rotation would end it: delete it once nothing uses it";

pub(super) struct FlagsToken(pub(super) Project);

#[async_trait]
impl Issuer for FlagsToken {
    fn facts(&self) -> IssuerFacts {
        IssuerFacts {
            max_live: Some(2),
            destroy: true,
            // A mint looks before it asks, so that it can be repeated.
            reset_repeatable: true,
            propagation: self.0.config.propagation.span(),
            settle_for: self.0.config.settle_for.span(),
            by_hand: Some(self.0.config.within.span()),
            ..IssuerFacts::new(ValueOrigin::TheirsRereadable, Observe::None, Authority::Issuer)
        }
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        let tokens = match self.0.tokens().await {
            Err(CallError::Refused(refusal))
                if matches!(refusal.kind, RefusalKind::Permission | RefusalKind::NotFound) =>
            {
                return Ok(vec![Finding::blocks(refusal.to_string())]);
            }
            tokens => tokens?,
        };
        let asked = self.0.guided.finding("you are asked to rotate the feature flags token");
        let missing = || Finding::blocks("the project has no feature flags token");
        let backup = || Finding::blocks(BACKUP);
        let primary = tokens.secret_api_token.is_none().then(missing);
        let backup = tokens.secret_api_token_backup.is_some().then(backup);
        Ok([asked].into_iter().chain(primary).chain(backup).collect())
    }

    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        let value = match standing(self.0.tokens().await?, request)? {
            Standing::Rotated(value) if !planted!("token_is_rotated_again") => value,
            _ => self.rotated(request.in_use).await?,
        };
        Ok(Minted {
            issued: Some(IssuedId::new(&request.label.0)),
            credential: Some(Credential::of_value(value)),
            ..Minted::default()
        })
    }

    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        self.0.evaluate(credential).await
    }

    /// PostHog keeps no names of these tokens.
    async fn list(&self, _prefix: &str) -> Result<Vec<Live>, CallError> {
        Ok(Vec::new())
    }

    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError> {
        self.revoke_held(id, None).await
    }

    /// Deletes the backup, where it is this version. Neither primary nor backup is gone already.
    async fn revoke_held(
        &self,
        _id: &IssuedId,
        held: Option<&Credential>,
    ) -> Result<(), CallError> {
        if held.is_none() {
            return Err(unsupported(
                "the value of this version is not known any more, and PostHog names its tokens by nothing else: look at the project, and delete the backup if it is the former token",
            )
            .into());
        }
        let tokens = self.0.tokens().await?;
        let is_backup = |tokens: &Tokens| is(tokens.secret_api_token_backup.as_ref(), held);
        if is(tokens.secret_api_token.as_ref(), held) && !planted!("backup_of_another_is_deleted") {
            return Err(unsupported(
                "this version is the primary token, and PostHog ends it only when another one was rotated in twice",
            )
            .into());
        }
        if !is_backup(&tokens) && !planted!("backup_of_another_is_deleted") {
            return Ok(());
        }
        let steps = [
            self.0.settings(),
            "find the feature flags secure token (`phs_…`) and delete its backup; leave the token itself as it is".into(),
        ];
        match self.0.until(&steps, |tokens| tokens.secret_api_token_backup.is_none()).await? {
            Some(_) => Ok(()),
            None => Err(nobody_did("nobody deleted the backup of the feature flags token")),
        }
    }

    async fn identify(&self, credential: &Credential) -> Result<Identity, CallError> {
        let tokens = self.0.tokens().await?;
        let known = |name: &str, how: &str| Identity::Known {
            issued: IssuedId::new(name),
            how: how.into(),
            created_at: None,
        };
        Ok(match Some(credential) {
            held if is(tokens.secret_api_token.as_ref(), held) => {
                known("secret_api_token", "the project shows it as its feature flags token")
            }
            held if is(tokens.secret_api_token_backup.as_ref(), held) => {
                known("secret_api_token_backup", "the project shows it as its backup token")
            }
            _ => Identity::Unknown,
        })
    }
}

impl FlagsToken {
    /// Has the token rotated by a person, once.
    async fn rotated(&self, in_use: Option<&Credential>) -> Result<SecretValue, CallError> {
        let steps = [
            self.0.settings(),
            "find the feature flags secure token (`phs_…`), click to rotate it, and confirm".into(),
            "do it once only: a second time would end the token that is in use".into(),
        ];
        let done = |tokens: &Tokens| !is(tokens.secret_api_token.as_ref(), in_use);
        let tokens = self.0.until(&steps, done).await?;
        let value = tokens.and_then(|tokens| tokens.secret_api_token).map(|token| token.0);
        value.ok_or_else(|| nobody_did("nobody rotated the feature flags token"))
    }
}

/// How the tokens stand before a mint.
enum Standing {
    /// The primary is in use, and there is no backup.
    ToRotate,
    /// The primary is the new version already.
    Rotated(SecretValue),
}

fn standing(tokens: Tokens, request: &Mint<'_>) -> Result<Standing, CallError> {
    let Tokens { secret_api_token: primary, secret_api_token_backup: backup, .. } = tokens;
    let Some(primary) = primary else {
        let why = "the project has no feature flags token: make the first one by hand";
        return Err(unsupported(why).into());
    };
    let (is_primary, is_backup) =
        (is(Some(&primary), request.in_use), is(backup.as_ref(), request.in_use));
    match (request.in_use, is_first(request.label)) {
        // No store holds a token yet: the one that there is will do.
        (None, _) => Ok(Standing::Rotated(primary.0)),
        (Some(_), _) if is_primary && backup.is_none() => Ok(Standing::ToRotate),
        // A primary that an emergency ends is no new version.
        (Some(_), false) if is_backup && request.compromised.is_empty() => {
            Ok(Standing::Rotated(primary.0))
        }
        (Some(_), _) if is_primary || is_backup => Err(unsupported(BACKUP).into()),
        _ => {
            let why = "the token in use is neither the primary nor the backup of the project: somebody else rotated it";
            Err(unsupported(why).into())
        }
    }
}
