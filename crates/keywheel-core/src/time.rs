//! Instants and spans as plain numbers. The core never reads a clock; it is told `now`.

use std::fmt;
use std::ops::{Add, Sub};

use serde::{Deserialize, Serialize};

/// An instant of the wall clock: milliseconds since the Unix epoch, UTC.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Makes an instant from milliseconds since the Unix epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Returns the milliseconds since the Unix epoch.
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// Returns how long `earlier` lies back, or zero where it lies ahead: time never runs backwards in a rotation.
    pub const fn since(self, earlier: Self) -> Span {
        let gone = self.0.saturating_sub(earlier.0);
        Span(if gone > 0 { gone as u64 } else { 0 })
    }
}

impl Add<Span> for Timestamp {
    type Output = Self;

    fn add(self, span: Span) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.0).unwrap_or(i64::MAX)))
    }
}

impl Sub<Span> for Timestamp {
    type Output = Self;

    fn sub(self, span: Span) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.0).unwrap_or(i64::MAX)))
    }
}

/// A length of time in milliseconds. A day is 86,400 seconds, whatever a calendar says (H34).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Span(u64);

impl Span {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// Makes a span of milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Makes a span of seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000))
    }

    /// Makes a span of minutes.
    pub const fn minutes(minutes: u64) -> Self {
        Self::seconds(minutes.saturating_mul(60))
    }

    /// Makes a span of hours.
    pub const fn hours(hours: u64) -> Self {
        Self::minutes(hours.saturating_mul(60))
    }

    /// Makes a span of days of 24 hours.
    pub const fn days(days: u64) -> Self {
        Self::hours(days.saturating_mul(24))
    }

    /// Returns the whole milliseconds.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Returns a fraction of the span, rounded down.
    pub const fn part(self, numerator: u64, denominator: u64) -> Self {
        Self((self.0 as u128 * numerator as u128 / denominator as u128) as u64)
    }

    /// Returns the span less another, or zero.
    pub const fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Returns whether there is no time in it.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl Add for Span {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl From<Span> for std::time::Duration {
    fn from(span: Span) -> Self {
        Self::from_millis(span.0)
    }
}

/// As people write it: the two largest units, as in `1 d 6 h`, `4 min`, `250 ms`.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 5] =
            [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"), (1, "ms")];
        let Some(first) = UNITS.iter().position(|(size, _)| self.0 >= *size) else {
            return f.write_str("0 s");
        };
        let (size, unit) = UNITS[first];
        write!(f, "{} {unit}", self.0 / size)?;
        match UNITS.get(first + 1) {
            Some((next, unit)) if self.0 % size / next > 0 => {
                write!(f, " {} {unit}", self.0 % size / next)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_reads_as_its_two_largest_units() {
        assert_eq!(Span::ZERO.to_string(), "0 s");
        assert_eq!(Span::millis(250).to_string(), "250 ms");
        assert_eq!((Span::days(1) + Span::hours(6) + Span::seconds(3)).to_string(), "1 d 6 h");
        assert_eq!(Span::minutes(4).to_string(), "4 min");
    }

    #[test]
    fn h32_an_instant_ahead_is_no_time_ago() {
        let now = Timestamp::from_millis(1_000);
        assert_eq!(now.since(Timestamp::from_millis(5_000)), Span::ZERO);
        assert_eq!(now.since(Timestamp::from_millis(400)), Span::millis(600));
    }
}
