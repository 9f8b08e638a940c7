//! This machine's clock, against which starts of replicas are held.

use std::time::SystemTime;

use keywheel_core::planted;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::{Refusal, RefusalKind};

/// Returns the time.
pub(super) fn now() -> Timestamp {
    timestamp(SystemTime::now())
}

/// Returns a time of the system as journals hold it.
pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    let millis = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
}

/// Waits until whatever starts from now on proves that it started after an instant, where starts are as exact as that.
pub(super) async fn pass(instant: Timestamp, granularity: Span) -> Result<(), Refusal> {
    let end = instant + granularity + granularity;
    if planted!("roll_races_the_write") {
        return Ok(());
    }
    let ahead = end.since(now());
    if ahead > Span::seconds(1) {
        let message = "this machine's clock stands before the last write to a store";
        return Err(Refusal::retry(RefusalKind::Local, Some(ahead), message));
    }
    tokio::time::sleep(ahead.into()).await;
    Ok(())
}
