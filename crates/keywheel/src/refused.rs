//! Whether an issuer still accepts what readers use: a leak scanner or an expiry may have ended it by itself (H95).
//!
//! The value is read from its stores and tried once. A refusal is told and not asked again, since an account may count wrong
//! attempts (H77); an answer that proves nothing says nothing.

use keywheel_core::facts::Authority;
use keywheel_core::fingerprint::Compared;
use keywheel_core::inventory::{Inventory, Refused, Version};
use keywheel_core::plan::Plan;
use keywheel_core::planted;
use keywheel_core::rotation::Rotation;
use keywheel_core::secret::{Credential, SecretName};
use keywheel_core::version::{Stage, VersionId};
use keywheel_driver::issuer::Verdict;
use keywheel_engine::{EngineError, held};

use crate::compile::Built;
use crate::session::Session;

/// What an issuer says of what readers use.
pub(crate) enum Answer {
    Accepts,
    /// Definitely, and in words.
    Refuses(String),
}

/// Asks the issuer of a secret about what readers use; none where there is nothing to ask about, or no answer.
pub(crate) async fn in_use(
    session: &Session,
    plan: &Plan,
    built: &Built,
    row: Option<&Inventory>,
) -> Option<Answer> {
    if built.issuer.facts().authority != Authority::Issuer || planted!("dead_key_unnoticed") {
        return None;
    }
    let current = row.and_then(|row| row.at(Stage::Current));
    let held = held(session, plan, built, current).await?;
    match built.issuer.verify(&held).await {
        Ok(Verdict::Accepted) => Some(Answer::Accepts),
        Ok(Verdict::Refused) => {
            let what = current.map_or("the value".into(), |current| current.version.to_string());
            let issuer = &plan.issuer.bound.name;
            Some(Answer::Refuses(format!("issuer `{issuer}` refuses {what} that readers use")))
        }
        Ok(Verdict::CannotTell(_)) | Err(_) => None,
    }
}

/// An emergency ends what readers use, and is on its way to replace it: a refusal is what it is for.
pub(crate) fn is_being_replaced(open: &Rotation) -> bool {
    open.plan().is_emergency() && !open.rests() && !planted!("emergency_under_way_is_advised")
}

/// Returns the command that replaces what is refused.
pub(crate) fn then(secret: &SecretName) -> String {
    format!("keywheel rotate {secret} --emergency --because …")
}

/// Keeps in the journal that a version is refused, or no longer is, so that `status` tells of it without asking; another one that
/// readers use by now was not asked about.
pub(crate) async fn keep(
    session: &Session,
    secret: &SecretName,
    version: VersionId,
    is_refused: bool,
) -> Result<(), EngineError> {
    let action = if is_refused { "saw its issuer refuse" } else { "saw its issuer accept" };
    let change = |row: Option<Inventory>| {
        let row = row?;
        row.at(Stage::Current).filter(|current| current.version == version)?;
        let refused = is_refused.then(|| Refused { version, at: session.now() });
        Some(Inventory { refused, ..row })
    };
    session.engine.note(secret, action, change).await
}

/// What the first store holds that holds the version in use; what somebody else wrote there is nobody's to try.
async fn held(
    session: &Session,
    plan: &Plan,
    built: &Built,
    current: Option<&Version>,
) -> Option<Credential> {
    let known = current.and_then(|current| current.fingerprint);
    let read = held::by_each(&built.stores, plan).await;
    let all: Vec<Credential> = read.into_iter().filter_map(|held| held.ok().flatten()).collect();
    all.iter().map(|held| held::completed(held, &all)).find(|held| {
        let seen = session.engine.fingerprint(&plan.stores, held);
        known.is_none_or(|known| known.compare(&seen) != Compared::Different)
    })
}
