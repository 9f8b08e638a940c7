//! Time as the engine sees it: a trait, so that a simulation can hand it out.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use keywheel_core::gate::Clocks;
use keywheel_core::planted;
use keywheel_core::time::{Span, Timestamp};

/// Hands out time.
#[async_trait]
pub trait Clock: Send + Sync {
    /// Reads the wall clock.
    fn now(&self) -> Timestamp;

    /// Reads all clocks together.
    fn clocks(&self) -> Clocks;

    /// Waits until the wall clock shows `until`; a stop of the wall clock (suspend, step) is noticed within seconds (H33).
    async fn sleep_until(&self, until: Timestamp);

    /// Returns how soon a sleeping engine hears a stop.
    fn hears_within(&self) -> Span {
        Span::millis(200)
    }
}

/// Runs a call under its hard deadline; none where the deadline came first.
///
/// The clock is read before every poll: a process that stood still past the deadline sends nothing more when it wakes up, not
/// even the rest of a call that it had begun (I05).
pub(crate) async fn within<T>(
    clock: &dyn Clock,
    until: Timestamp,
    call: impl Future<Output = T>,
) -> Option<T> {
    if planted!("calls_have_no_deadline") {
        return Some(call.await);
    }
    let mut call = pin!(call);
    let mut over = clock.sleep_until(until);
    poll_fn(|context| {
        if clock.now() >= until && !planted!("deadline_after_the_call") {
            return Poll::Ready(None);
        }
        match call.as_mut().poll(context) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending => over.as_mut().poll(context).map(|()| None),
        }
    })
    .await
}

/// The clocks of this machine.
pub struct SystemClock {
    boot_id: u64,
}

impl SystemClock {
    /// Reads which boot this is.
    pub fn new() -> Self {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot_id = id
            .bytes()
            .fold(0_u64, |hash, byte| hash.wrapping_mul(1_099_511_628_211) ^ u64::from(byte));
        Self { boot_id }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn clocks(&self) -> Clocks {
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let millis = u64::try_from(boot.tv_sec).unwrap_or(0) * 1_000
            + u64::try_from(boot.tv_nsec).unwrap_or(0) / 1_000_000;
        Clocks {
            wall: self.now(),
            boot: Span::millis(millis),
            boot_id: self.boot_id,
            outside: None,
        }
    }

    async fn sleep_until(&self, until: Timestamp) {
        while self.now() < until {
            let left = Duration::from(until.since(self.now()));
            tokio::time::sleep(left.min(Duration::from_secs(5))).await;
        }
    }
}
