//! This machine's clock, as far as workloads need it.

use keywheel_core::planted;
use std::time::SystemTime;

use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::{CallError, Refusal, RefusalKind};

/// How far a write may lie ahead of this machine's clock and just be waited for.
const AHEAD: Span = Span::seconds(1);

/// Waits until whatever starts from now on proves, with starts that are this exact, that it started after an instant.
pub(super) async fn pass(instant: Timestamp, granularity: Span) -> Result<(), CallError> {
    if planted!("roll_races_the_write") {
        return Ok(());
    }
    let wait = (instant + granularity + granularity).since(now());
    if instant.since(now()) > AHEAD {
        let message = "this machine's clock stands before the last write to a store";
        return Err(Refusal::retry(RefusalKind::Local, Some(wait), message).into());
    }
    tokio::time::sleep(wait.into()).await;
    Ok(())
}

pub(super) fn now() -> Timestamp {
    timestamp(SystemTime::now())
}

pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    let millis = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
}
