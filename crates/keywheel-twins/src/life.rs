//! The lives of what a twin keeps: nothing is forgotten, and others come to see each change in their own time.

use std::time::Duration;

use axum::extract::Extension;

use crate::fault::Lag;
use crate::now;

/// From when to when something lives, and its place in lists.
#[derive(Clone, Copy)]
pub(crate) struct Life {
    pub(crate) order: u64,
    pub(crate) created: i64,
    pub(crate) ended: Option<i64>,
}

impl Life {
    /// Begins a life, and counts it.
    pub(crate) fn begin(order: &mut u64) -> Self {
        *order += 1;
        Self { order: *order, created: now(), ended: None }
    }

    /// Returns whether a look at this time shows it.
    pub(crate) fn shows_at(&self, time: i64) -> bool {
        self.created <= time && self.ended.is_none_or(|ended| time < ended)
    }

    pub(crate) fn end(&mut self) {
        self.ended.get_or_insert_with(now);
    }
}

/// When a credential was switched on and off.
#[derive(Clone)]
pub(crate) struct Switch(Vec<(i64, bool)>);

impl Switch {
    /// Makes one that is on from now.
    pub(crate) fn on() -> Self {
        Self(vec![(now(), true)])
    }

    /// Makes one that everybody knows to be on.
    pub(crate) fn on_since_long() -> Self {
        Self(vec![(0, true)])
    }

    pub(crate) fn set(&mut self, on: bool) {
        if self.is_on() != on {
            self.0.push((now(), on));
        }
    }

    /// Returns whether it is on, for who made the last change.
    pub(crate) fn is_on(&self) -> bool {
        self.0.last().is_some_and(|(_, on)| *on)
    }

    /// Returns whether it is on for others, who learn of it that much later.
    pub(crate) fn is_known_on(&self, propagation: Duration, revocation: Duration) -> bool {
        let delay = |on| millis(if on { propagation } else { revocation });
        let known = self.0.iter().rfind(|(at, on)| at + delay(*on) <= now());
        known.is_some_and(|(_, on)| *on)
    }
}

/// Returns the time that a list is of: it may be behind for good, and once more where the script says so.
pub(crate) fn as_of(behind: Duration, lag: Option<Extension<Lag>>) -> i64 {
    let lag = lag.map_or_else(Default::default, |Extension(lag)| lag);
    now() - millis(behind + lag.0)
}

pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2)
}

/// Writes a time as most APIs do.
pub(crate) fn rfc3339(at: i64) -> String {
    jiff::Timestamp::from_millisecond(at).expect("the year has four digits").to_string()
}

/// Returns the day that a time lies in, in UTC: `2026-01-31`.
pub(crate) fn day(at: i64) -> String {
    rfc3339(at)[..10].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_shows_as_it_did_before() {
        let life = Life { order: 1, created: 10, ended: Some(20) };
        assert_eq!([9, 10, 19, 20].map(|time| life.shows_at(time)), [false, true, true, false]);
    }

    #[test]
    fn a_switch_is_known_after_its_delay() {
        let (none, long) = (Duration::ZERO, Duration::from_secs(3_600));
        let mut switch = Switch::on();
        assert!(switch.is_known_on(none, none) && !switch.is_known_on(long, none));
        switch.set(false);
        assert!(!switch.is_on() && !switch.is_known_on(none, none));
        assert!(switch.is_known_on(none, long));
    }
}
