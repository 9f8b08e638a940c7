//! How fast time runs: every wait of the twin is divided by one number, so that orders and relations stay and tests are short.

use std::time::Duration;

/// By how much every wait is shortened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace(f64);

impl Pace {
    /// As it is in a cluster.
    pub const REAL: Self = Self(1.0);

    /// Makes time run so many times as fast.
    pub fn times(faster: f64) -> Self {
        Self(faster)
    }

    /// Returns how long a wait is here.
    pub fn of(self, wait: Duration) -> Duration {
        wait.div_f64(self.0)
    }

    /// Returns how long a number of seconds is here; what is negative is no wait.
    pub(super) fn seconds(self, seconds: i64) -> Duration {
        self.of(Duration::from_secs(seconds.try_into().unwrap_or_default()))
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self::REAL
    }
}
