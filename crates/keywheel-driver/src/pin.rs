//! Pins: a store or a workload is touched where it was found first, and nowhere else: the name by which it is reached may lead to
//! another cluster, or another engine, tomorrow.

use std::future::Future;

use keywheel_core::call::{CallError, Refusal, RefusalKind};
use keywheel_core::plan::Pin;
use keywheel_core::planted;

/// Says why what is pinned may not be touched where it is reached now; none where that is the place of its pin. `identity` is the
/// [store's](crate::Store::identity) or the [workload's](crate::Workload::identity), and is asked only where there is a pin.
///
/// # Errors
/// [`CallError`] where the place gives no answer.
pub async fn elsewhere(
    identity: impl Future<Output = Result<Option<Pin>, CallError>>,
    pinned: Option<&Pin>,
) -> Result<Option<String>, CallError> {
    let Some(pinned) = pinned.filter(|_| !planted!("pin_ignored")) else { return Ok(None) };
    let found = identity.await?;
    if found.as_ref() == Some(pinned) {
        return Ok(None);
    }
    let found = found.map_or("one without a name".into(), |found| found.to_string());
    Ok(Some(format!("it is pinned to {pinned}, and another place answers: {found}")))
}

/// Refuses to touch `what`, such as "workload `backend`", at another place than the one it is pinned to.
///
/// # Errors
/// A refusal that names both, or one that may pass where the place gives no answer.
pub async fn check(
    identity: impl Future<Output = Result<Option<Pin>, CallError>>,
    what: &str,
    pinned: Option<&Pin>,
) -> Result<(), Refusal> {
    match elsewhere(identity, pinned).await {
        Ok(None) => Ok(()),
        Ok(Some(objection)) => {
            Err(Refusal::operator(RefusalKind::Permission, format!("{what}: {objection}")))
        }
        Err(CallError::Refused(refusal)) => Err(refusal),
        // Nothing was done yet, whatever becomes of the question.
        Err(CallError::Unknown(why)) => {
            Err(Refusal::retry(RefusalKind::Unavailable, None, format!("{what}: {why}")))
        }
    }
}
