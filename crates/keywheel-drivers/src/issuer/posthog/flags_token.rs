//! The feature flags secure token: a primary and a backup, both of which work. A person rotates it: the primary becomes the
//! backup, and the backup before it is refused.
//!
//! A second rotation would therefore end the token that is in use. Both are read before a person is asked, and what an earlier
//! try of the same rotation did is not done again (H05). Where there is a backup beforehand, nothing is done at all, unless an
//! emergency ends the backup anyway.
//!
//! PostHog keeps no ids of these tokens; only its value tells which one a version is. There is no way back either: a backup
//! cannot be made the primary, and a version that was given up goes on beside the one in use.

use async_trait::async_trait;
use keywheel_core::facts::{Authority, IssuerFacts, Observe, ValueOrigin};
use keywheel_core::planted;
use keywheel_core::secret::{Credential, SecretValue};
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{Audit, Identity, Issuer, Live, Mint, Minted, Verdict};
use keywheel_driver::{CallError, Finding, RefusalKind};

use super::{Project, Tokens, is, is_first, nobody_did};
use crate::api::{Shown, unsupported};

const EITHER: &str = "there is a backup of the feature flags token, and a rotation would end it: delete it where nothing uses it; where the stores hold it, do not delete the backup, but put the primary into them and run `keywheel reconcile NAME --keep` first";
const BACKUP: &str = "the primary is in use, and a rotation would end the backup that there is: delete it once nothing uses it";
const IN_USE: &str = "the token in use is the backup, and a rotation would end it at once: do not delete the backup; put the primary into the stores and run `keywheel reconcile NAME --keep` first";

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
        self.look(Finding::blocks(EITHER)).await
    }

    /// A backup may be one of the suspects; the mint tells by its value.
    async fn preflight_emergency(&self) -> Result<Vec<Finding>, CallError> {
        self.look(Finding::note("there is a backup of the feature flags token")).await
    }

    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        let value = match standing(self.0.tokens_before().await?, request)? {
            Standing::Rotated(value) if planted!("token_is_rotated_again") => {
                self.rotated(&value, false).await?
            }
            Standing::Rotated(value) => value,
            Standing::ToRotate { before, ends_in_use } => {
                self.rotated(&before, ends_in_use).await?
            }
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

    fn audit(&self) -> Option<&dyn Audit> {
        Some(self)
    }
}

impl FlagsToken {
    /// Looks at the tokens beforehand; `backup` is what is found where there is one.
    async fn look(&self, backup: Finding) -> Result<Vec<Finding>, CallError> {
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
        let primary = tokens.secret_api_token.is_none().then(missing);
        let backup = tokens.secret_api_token_backup.map(|_| backup);
        Ok([asked].into_iter().chain(primary).chain(backup).collect())
    }

    /// Has the token rotated by a person, once.
    async fn rotated(
        &self,
        before: &SecretValue,
        ends_in_use: bool,
    ) -> Result<SecretValue, CallError> {
        let once = match ends_in_use {
            true => {
                "do it once only; it ends the token in use at once, which is the backup: primary and backup are both suspect, and requests fail until the readers have the new one"
            }
            false => "do it once only: a second time would end the token that is in use",
        };
        let steps = [
            self.0.settings(),
            "find the feature flags secure token (`phs_…`), click to rotate it, and confirm".into(),
            once.into(),
        ];
        let done = |tokens: &Tokens| {
            tokens.secret_api_token.as_ref().is_some_and(|now| !now.0.same_as(before))
        };
        let tokens = self.0.until(&steps, done).await?;
        let value = tokens.and_then(|tokens| tokens.secret_api_token).map(|token| token.0);
        value.ok_or_else(|| nobody_did("nobody rotated the feature flags token"))
    }
}

/// How the tokens stand before a mint.
enum Standing {
    /// The primary is to be replaced, and whatever the backup is may end with that.
    ToRotate { before: SecretValue, ends_in_use: bool },
    /// The primary is the new version already.
    Rotated(SecretValue),
}

fn standing(tokens: Tokens, request: &Mint<'_>) -> Result<Standing, CallError> {
    let Tokens { secret_api_token: primary, secret_api_token_backup: backup, .. } = tokens;
    let Some(primary) = primary else {
        let why = "the project has no feature flags token: make the first one by hand";
        return Err(unsupported(why).into());
    };
    if request.in_use.is_none() {
        // No store holds a token yet: the one that there is will do.
        return Ok(Standing::Rotated(primary.0));
    }
    let is_former = |token: &Shown| {
        let mut suspects = request.suspects.iter().map(|suspect| suspect.value.as_ref());
        is(Some(token), request.in_use) || suspects.any(|value| is(Some(token), value))
    };
    let in_use_is_backup = is(backup.as_ref(), request.in_use);
    let backup_is_former = backup.as_ref().is_some_and(is_former);
    if is_former(&primary) {
        return match backup.is_none() || backup_is_former {
            true => Ok(Standing::ToRotate { before: primary.0, ends_in_use: in_use_is_backup }),
            false => Err(unsupported(BACKUP).into()),
        };
    }
    // A suspect whose value is not known may be the primary.
    let suspects_are_known = request.suspects.iter().all(|suspect| suspect.value.is_some());
    if backup_is_former && !is_first(request.label) && suspects_are_known {
        return Ok(Standing::Rotated(primary.0));
    }
    Err(unsupported(match in_use_is_backup {
        true => IN_USE,
        false => "the token in use is neither the primary nor the backup of the project: somebody else rotated it",
    })
    .into())
}
