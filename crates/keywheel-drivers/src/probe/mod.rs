//! Probes. To add one: write its file beside this one, with a `Config` that implements [`Build`](crate::Build), and name it
//! in the list below. Nothing else in the program changes.

use keywheel_core::time::Timestamp;
use keywheel_driver::duration::Duration;
use keywheel_driver::{CallError, Probe, Refusal, RefusalKind};

use crate::list::drivers;

drivers! {
    /// The configuration of a probe: `{ http: {…} }`.
    ProbeConfig for dyn Probe {
        http => Http,
        command => Command,
        log_scan => LogScan,
        posthog_events => PosthogEvents,
        prometheus_query => PrometheusQuery,
        sentry_issues => SentryIssues,
        sql => Sql,
        tcp => Tcp,
        tls => Tls,
    }
}

/// Waits so long for an answer. What was asked changes nothing, so no answer leaves nothing behind.
async fn within<T>(
    target: &str,
    limit: Duration,
    asked: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    let later = |why| Refusal::retry(RefusalKind::Unavailable, None, why).into();
    match tokio::time::timeout(limit.span().into(), asked).await {
        Ok(Err(CallError::Unknown(why))) => Err(later(why)),
        Ok(answer) => answer,
        Err(_) => Err(later(format!("{target}: the answer did not come in time"))),
    }
}

/// Writes a time as most APIs read it, in whole seconds.
fn in_seconds(at: Timestamp) -> String {
    let at = jiff::Timestamp::from_second(at.millis().div_euclid(1_000));
    at.map(|at| at.to_string()).unwrap_or_default()
}

/// A moment for the tests of probes that compare nothing.
#[cfg(test)]
pub(crate) const NOW: keywheel_driver::probe::Asked = keywheel_driver::probe::Asked {
    began_at: keywheel_core::time::Timestamp::from_millis(0),
    now: keywheel_core::time::Timestamp::from_millis(1),
};
