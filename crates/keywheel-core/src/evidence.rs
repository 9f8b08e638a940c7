//! Evidence: what a replica proves about the values that it holds. Pure judgement over what a workload driver saw.

use serde::{Deserialize, Serialize};

use crate::fingerprint::{Compared, Fingerprint};
use crate::time::{Span, Timestamp};

/// One replica as a workload driver saw it. Every replica that is not finally gone is listed: not ready and stopped ones too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// What people call it: a pid, a container name, a pod name.
    pub id: String,
    /// When it started, by the clock that journal times use.
    pub started_at: Option<Timestamp>,
    /// What it shows of the values that it holds.
    pub shows: Shows,
}

/// What a replica shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shows {
    /// The slots that it holds, by address; an address that is absent is not held.
    Slots(Vec<(String, Fingerprint)>),
    /// Nothing, but its values were fixed when it started.
    FixedAtStart,
    /// Some of its slots, as in [`Slots`](Self::Slots); those named in `fixed` it does not show, and they were fixed when it
    /// started.
    Partly {
        /// The slots that it shows.
        shown: Vec<(String, Fingerprint)>,
        /// The slots that it does not show.
        fixed: Vec<String>,
    },
    /// Some of its slots, as in [`Slots`](Self::Slots), or none; those named in `unseen` it does not show, and it may have read
    /// them at any time since it started.
    Live {
        /// The slots that it shows.
        shown: Vec<(String, Fingerprint)>,
        /// The slots that it does not show.
        unseen: Vec<String>,
    },
    /// Nothing.
    Nothing,
}

/// What a workload should hold, and since when a store has certainly held it.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The slots it reads: address and fingerprint; `None` where the slot is absent.
    pub slots: &'a [(String, Option<Fingerprint>)],
    /// Since when every store it reads certainly holds the arrangement, with no write to another one intended since (H45).
    pub held_since: Option<Timestamp>,
    /// On the way back to what was there when the rotation began: when a write was intended first. A replica that started before
    /// has read nothing of the rotation, and is as it was, where it read nothing later.
    pub untouched_before: Option<Timestamp>,
    /// How exact start times are.
    pub granularity: Span,
}

/// What one replica proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// It holds the expected arrangement.
    Holds,
    /// It holds another one.
    Other,
    /// Nothing is proven; it is treated as the worst that it could be, and replaced.
    Unknown,
}

/// What a workload's replicas prove together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Replicas that hold the expected arrangement.
    pub holds: u32,
    /// Replicas that hold another one.
    pub other: u32,
    /// Replicas that prove nothing.
    pub unknown: u32,
}

impl Count {
    /// Returns whether every replica holds the arrangement. No replica at all is unknown, never green.
    pub fn complete(self) -> bool {
        let vacuous_is_fine = crate::planted!("vacuous_evidence");
        let mixed_is_fine = crate::planted!("old_beside_new_is_enough") && self.holds > 0;
        let all_hold = (self.other == 0 && self.unknown == 0) || mixed_is_fine;
        all_hold && (self.holds > 0 || vacuous_is_fine)
    }

    /// Returns how many replicas there are.
    pub fn all(self) -> u32 {
        self.holds + self.other + self.unknown
    }
}

/// Judges one replica.
pub fn judge(replica: &Replica, expected: &Expected<'_>) -> Proof {
    match &replica.shows {
        Shows::Slots(shown) => judge_slots(shown, expected.slots.iter()),
        Shows::FixedAtStart => judge_start(replica.started_at, expected),
        Shows::Partly { shown, fixed } => judge_partly(replica, shown, fixed, expected),
        // Whatever it held when it started, it may have read something else since.
        Shows::Live { shown, unseen } => {
            let trusts = crate::planted!("untouched_proves_what_is_live");
            let untouched_before = expected.untouched_before.filter(|_| trusts);
            judge_partly(replica, shown, unseen, &Expected { untouched_before, ..*expected })
        }
        Shows::Nothing => Proof::Unknown,
    }
}

fn judge_partly(
    replica: &Replica,
    shown: &[(String, Fingerprint)],
    hidden: &[String],
    expected: &Expected<'_>,
) -> Proof {
    let visible = expected.slots.iter().filter(|(address, _)| !hidden.contains(address));
    match judge_slots(shown, visible) {
        Proof::Holds => judge_start(replica.started_at, expected),
        proof => proof,
    }
}

/// Judges every replica and counts.
pub fn count(replicas: &[Replica], expected: &Expected<'_>) -> Count {
    tally(replicas.iter().map(|replica| judge(replica, expected)))
}

/// Counts what replicas prove.
pub fn tally(proofs: impl IntoIterator<Item = Proof>) -> Count {
    proofs.into_iter().fold(Count::default(), |mut count, proof| {
        match proof {
            Proof::Holds => count.holds += 1,
            Proof::Other => count.other += 1,
            Proof::Unknown => count.unknown += 1,
        }
        count
    })
}

fn judge_slots<'a>(
    shown: &[(String, Fingerprint)],
    expected: impl Iterator<Item = &'a (String, Option<Fingerprint>)>,
) -> Proof {
    let mut proof = Proof::Holds;
    for (address, wanted) in expected {
        let held =
            shown.iter().find(|(shown, _)| shown == address).map(|(_, fingerprint)| fingerprint);
        match (held, wanted) {
            (None, None) => {}
            (Some(held), Some(wanted)) => match held.compare(wanted) {
                Compared::Same => {}
                Compared::Different => return Proof::Other,
                Compared::Unknown => proof = Proof::Unknown,
            },
            (None, Some(_)) | (Some(_), None) => return Proof::Other,
        }
    }
    proof
}

/// A value fixed at start counts only if the replica started while the stores certainly held it; an earlier start proves
/// nothing, since the stores may have been half written then.
fn judge_start(started_at: Option<Timestamp>, expected: &Expected<'_>) -> Proof {
    match (started_at, expected.held_since) {
        (Some(started), Some(since))
            if started > since + expected.granularity || crate::planted!("early_start_counts") =>
        {
            Proof::Holds
        }
        (Some(started), Some(_)) if is_untouched(started, expected) => Proof::Holds,
        _ => Proof::Unknown,
    }
}

fn is_untouched(started: Timestamp, expected: &Expected<'_>) -> bool {
    expected.untouched_before.is_some_and(|before| started + expected.granularity < before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fingerprint::{FingerprintKeyId, Fingerprinter};

    const NOTHING: Expected<'_> =
        Expected { slots: &[], held_since: None, untouched_before: None, granularity: Span::ZERO };

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn fixed(started: i64) -> Replica {
        Replica { id: "1".into(), started_at: Some(at(started)), shows: Shows::FixedAtStart }
    }

    #[test]
    fn h45_a_replica_that_started_before_the_write_was_certain_proves_nothing() {
        let expected =
            Expected { held_since: Some(at(1_000)), granularity: Span::millis(10), ..NOTHING };
        assert_eq!(judge(&fixed(900), &expected), Proof::Unknown);
        assert_eq!(judge(&fixed(1_010), &expected), Proof::Unknown);
        assert_eq!(judge(&fixed(1_011), &expected), Proof::Holds);
        assert_eq!(
            judge(&fixed(1_011), &Expected { held_since: None, ..expected }),
            Proof::Unknown
        );
    }

    #[test]
    fn on_the_way_back_a_replica_that_read_nothing_of_the_rotation_is_as_it_was() {
        let expected = Expected {
            held_since: Some(at(2_000)),
            untouched_before: Some(at(1_000)),
            granularity: Span::millis(10),
            ..NOTHING
        };
        assert_eq!(judge(&fixed(989), &expected), Proof::Holds);
        assert_eq!(judge(&fixed(990), &expected), Proof::Unknown);
        assert_eq!(judge(&fixed(1_500), &expected), Proof::Unknown);
        assert_eq!(judge(&fixed(2_011), &expected), Proof::Holds);
        let uncertain = Expected { held_since: None, ..expected };
        assert_eq!(judge(&fixed(989), &uncertain), Proof::Unknown);
    }

    #[test]
    fn h44_what_may_have_been_read_since_a_start_is_proven_by_a_later_start_only() {
        let expected = Expected {
            held_since: Some(at(2_000)),
            untouched_before: Some(at(1_000)),
            granularity: Span::millis(10),
            ..NOTHING
        };
        let live = |started| {
            let shows = Shows::Live { shown: Vec::new(), unseen: vec!["mounted".into()] };
            Replica { id: "1".into(), started_at: Some(at(started)), shows }
        };
        assert_eq!(judge(&fixed(500), &expected), Proof::Holds);
        assert_eq!(judge(&live(500), &expected), Proof::Unknown);
        assert_eq!(judge(&live(2_011), &expected), Proof::Holds);
    }

    #[test]
    fn i08_no_replica_at_all_is_not_green() {
        assert!(!Count::default().complete());
        assert!(Count { holds: 1, ..Count::default() }.complete());
        assert!(!Count { holds: 2, unknown: 1, ..Count::default() }.complete());
    }

    #[test]
    fn a_replica_that_shows_some_slots_must_prove_the_others_by_its_start() {
        let f = Fingerprinter::new(FingerprintKeyId(1), zeroize::Zeroizing::new([1; 32]));
        let wanted = [("A".to_owned(), Some(f.of(b"a"))), ("mounted".to_owned(), Some(f.of(b"b")))];
        let expected = Expected { slots: &wanted, held_since: Some(at(1_000)), ..NOTHING };
        let replica = |value: &[u8], started| {
            let shows = Shows::Partly {
                shown: vec![("A".into(), f.of(value))],
                fixed: vec!["mounted".into()],
            };
            Replica { id: "1".into(), started_at: Some(at(started)), shows }
        };
        assert_eq!(judge(&replica(b"a", 1_001), &expected), Proof::Holds);
        assert_eq!(judge(&replica(b"a", 900), &expected), Proof::Unknown);
        assert_eq!(judge(&replica(b"x", 1_001), &expected), Proof::Other);
    }

    #[test]
    fn shown_slots_are_compared_one_by_one() {
        let key = |id| Fingerprinter::new(FingerprintKeyId(id), zeroize::Zeroizing::new([1; 32]));
        let (f, g) = (key(1), key(2));
        let replica =
            |slots| Replica { id: "1".into(), started_at: None, shows: Shows::Slots(slots) };
        let wanted = [("A".to_owned(), Some(f.of(b"a"))), ("B".to_owned(), None)];
        let expected = Expected { slots: &wanted, ..NOTHING };
        assert_eq!(judge(&replica(vec![("A".into(), f.of(b"a"))]), &expected), Proof::Holds);
        assert_eq!(judge(&replica(vec![("A".into(), f.of(b"x"))]), &expected), Proof::Other);
        assert_eq!(judge(&replica(vec![]), &expected), Proof::Other);
        assert_eq!(
            judge(&replica(vec![("A".into(), f.of(b"a")), ("B".into(), f.of(b"b"))]), &expected),
            Proof::Other
        );
        assert_eq!(judge(&replica(vec![("A".into(), g.of(b"a"))]), &expected), Proof::Unknown);
    }
}
