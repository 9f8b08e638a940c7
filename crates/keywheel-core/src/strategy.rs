//! Strategies, and the line of arrangements that each one walks.
//!
//! Everything that delivers is a walk along one line by neighbour moves: a rotation walks towards the pending version, an
//! undo walks back, a reversal walks back after promotion, and the `suspend` of a keyring is the last step of the walk.
//!
//! ```text
//! overlap, alternate, cutover, lease    {previous} ─ {pending}
//! keyring, append                       {previous} ─ {previous, +pending} ─ {pending, +previous} ─ {pending}
//! keyring and append, emergency         {previous} ─ {previous, +pending} ─ {pending}
//! ```
//!
//! The emergency line has no arrangement that writes the suspect version again.

use serde::{Deserialize, Serialize};

use crate::time::Span;

/// How one version gives way to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The issuer holds two live credentials.
    Overlap,
    /// A symmetric signing secret: readers accept two, and sign with one.
    Keyring {
        /// The longest life of a token that a reader signs.
        longest_token: Span,
        /// How far readers' clocks may differ (H84).
        skew: Span,
    },
    /// Two logins that take turns, members of one owner role.
    Alternate,
    /// One live value at a time: the mint itself ends the former one.
    Cutover,
    /// A short-lived credential with a time to live: forward only.
    Lease,
    /// An encryption key: added, made the encrypting one, removed only with proof that nothing is sealed under it (H85).
    Append,
}

/// One of the two versions of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The version that was current when the rotation began.
    Previous,
    /// The version that the rotation makes.
    Pending,
}

impl Side {
    /// Returns the other side.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Previous => Self::Pending,
            Self::Pending => Self::Previous,
        }
    }

    /// Returns 0 for previous and 1 for pending.
    pub const fn index(self) -> usize {
        match self {
            Self::Previous => 0,
            Self::Pending => 1,
        }
    }
}

/// Which version stands in which role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Arrangement {
    /// The version that readers use.
    pub current: Side,
    /// A second version that readers accept.
    pub also: Option<Side>,
}

impl Arrangement {
    const fn only(current: Side) -> Self {
        Self { current, also: None }
    }

    const fn both(current: Side) -> Self {
        Self { current, also: Some(current.other()) }
    }

    /// Returns whether readers accept a version.
    pub fn accepts(&self, side: Side) -> bool {
        self.current == side || self.also == Some(side)
    }
}

/// A place on the line.
pub type Position = u8;

/// The arrangements of one rotation, in order; a walk moves between neighbours only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line(&'static [Arrangement]);

const ONE: &[Arrangement] = &[Arrangement::only(Side::Previous), Arrangement::only(Side::Pending)];
const TWO: &[Arrangement] = &[
    Arrangement::only(Side::Previous),
    Arrangement::both(Side::Previous),
    Arrangement::both(Side::Pending),
    Arrangement::only(Side::Pending),
];
const TWO_IN_EMERGENCY: &[Arrangement] = &[
    Arrangement::only(Side::Previous),
    Arrangement::both(Side::Previous),
    Arrangement::only(Side::Pending),
];

impl Strategy {
    /// Returns the line that this strategy walks.
    pub fn line(self, emergency: bool) -> Line {
        match (self, emergency) {
            (Self::Overlap | Self::Alternate | Self::Cutover | Self::Lease, _) => Line(ONE),
            (Self::Keyring { .. } | Self::Append, false) => Line(TWO),
            (Self::Keyring { .. } | Self::Append, true) => Line(TWO_IN_EMERGENCY),
        }
    }

    /// Returns how long tokens of a version that no reader signs with any more must still be accepted.
    pub fn token_wait(self) -> Span {
        match self {
            Self::Keyring { longest_token, .. } if crate::planted!("skew_ignored") => longest_token,
            Self::Keyring { longest_token, skew } => longest_token + skew,
            _ => Span::ZERO,
        }
    }
}

impl Line {
    /// Returns the arrangement at a position.
    pub fn at(self, position: Position) -> Arrangement {
        self.0[usize::from(position)]
    }

    /// Returns the nearest position, from `from`, at which readers use `side`: where it can be promoted.
    pub fn promotes(self, side: Side, from: Position) -> Position {
        let there = |p: &Position| self.at(*p).current == side;
        let found = match side {
            Side::Pending => (from..self.end(Side::Pending) + 1).find(there),
            Side::Previous => (0..from + 1).rev().find(there),
        };
        found.expect("each side is current at its own end of the line")
    }

    /// Returns the end of the line at which only `side` is accepted.
    pub fn end(self, side: Side) -> Position {
        match side {
            Side::Previous => 0,
            Side::Pending => (self.0.len() - 1) as Position,
        }
    }

    /// Returns the neighbour of `from` on the way to `goal`.
    pub fn neighbour(self, from: Position, goal: Position) -> Position {
        if crate::planted!("moves_are_leaps") {
            return goal;
        }
        match from.cmp(&goal) {
            std::cmp::Ordering::Less => from + 1,
            std::cmp::Ordering::Equal => from,
            std::cmp::Ordering::Greater => from - 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYRING: Strategy =
        Strategy::Keyring { longest_token: Span::minutes(15), skew: Span::minutes(2) };

    #[test]
    fn i19_neighbours_on_a_keyring_line_always_accept_what_the_other_signs() {
        let line = KEYRING.line(false);
        for p in 0..line.end(Side::Pending) {
            let (here, next) = (line.at(p), line.at(p + 1));
            assert!(
                next.accepts(here.current) && here.accepts(next.current),
                "between {p} and {}",
                p + 1
            );
        }
    }

    #[test]
    fn an_emergency_never_moves_the_suspect_into_a_slot() {
        let line = KEYRING.line(true);
        for p in 0..line.end(Side::Pending) {
            let (here, next) = (line.at(p), line.at(p + 1));
            assert!(next.also != Some(Side::Previous));
            assert!(next.current == Side::Pending || here.current == next.current);
        }
    }

    #[test]
    fn the_line_reads_the_same_from_both_ends() {
        for strategy in [Strategy::Overlap, KEYRING] {
            let line = strategy.line(false);
            let end = line.end(Side::Pending);
            for p in 0..=end {
                let (here, mirror) = (line.at(p), line.at(end - p));
                assert_eq!(here.current, mirror.current.other());
                assert_eq!(here.also, mirror.also.map(Side::other));
            }
        }
    }

    #[test]
    fn promotion_is_at_the_nearest_place_where_the_version_is_current() {
        let line = KEYRING.line(false);
        assert_eq!(line.promotes(Side::Pending, 0), 2);
        assert_eq!(line.promotes(Side::Previous, 3), 1);
        assert_eq!(line.promotes(Side::Previous, 1), 1);
        assert_eq!(Strategy::Overlap.line(false).promotes(Side::Pending, 0), 1);
    }
}
