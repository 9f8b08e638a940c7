//! Why a secret is due: a list of small questions in order. The first to say yes gives the reason, and the sentence that
//! people and the audit log both see.

use crate::facts::LeaseFacts;
use crate::inventory::{Inventory, Version};
use crate::plan::{Policy, Reason};
use crate::rotation::Rotation;
use crate::secret::SecretName;
use crate::time::{Span, Timestamp};
use crate::version::{Stage, State, VersionId};
use sha2::{Digest, Sha256};

/// Why a secret is due, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The reason.
    pub reason: Reason,
    /// Since when; in the future where it is not due yet.
    pub since: Timestamp,
    /// The sentence.
    pub because: String,
}

type Question = fn(&Inventory, &Version, &Policy) -> Option<Due>;

/// The questions, most urgent first.
const QUESTIONS: [Question; 5] =
    [compromised, expiring, asked_for, past_its_cryptoperiod, of_unknown_age];

/// Returns why a secret is due at `now`; none where it is not, where nothing is known of it, or while its schedule is held.
pub fn due(inventory: &Inventory, policy: &Policy, now: Timestamp) -> Option<Due> {
    next(inventory, policy).filter(|due| due.since <= now)
}

/// Returns when a secret is due next, and why.
pub fn next(inventory: &Inventory, policy: &Policy) -> Option<Due> {
    let current = inventory.at(Stage::Current)?;
    let is_held = inventory.held_because.is_some() && current.state != State::Compromised;
    let mut answers = QUESTIONS.iter().filter_map(|question| question(inventory, current, policy));
    if is_held { None } else { answers.next() }
}

/// NIST SP 800-57 pt 1, 8.3.4: a compromised key is replaced at once.
fn compromised(_: &Inventory, current: &Version, _: &Policy) -> Option<Due> {
    let because = format!("{} is compromised", current.version);
    let since = Timestamp::from_millis(i64::MIN);
    (current.state == State::Compromised).then_some(Due {
        reason: Reason::Compromised,
        since,
        because,
    })
}

/// The issuer ends it by itself: time for the longest move and a retry is left, whatever the cryptoperiod says.
fn expiring(_: &Inventory, current: &Version, policy: &Policy) -> Option<Due> {
    let expires_at = current.expires_at?;
    let lead = policy.soak + policy.patience + policy.patience;
    let third = current.created_at.map_or(lead, |created| expires_at.since(created).part(1, 3));
    let since = expires_at - third.min(lead.max(Span::days(1)));
    Some(Due {
        reason: Reason::Expiring,
        since,
        because: format!("its issuer ends {} by itself", current.version),
    })
}

/// Somebody asked for it while the rotation before it was still retiring a version.
fn asked_for(inventory: &Inventory, _: &Version, _: &Policy) -> Option<Due> {
    // One that waits for another environment begins by itself.
    let queued = inventory.queued.as_ref().filter(|queued| queued.after.is_none())?;
    let because = queued.because.as_deref().unwrap_or("an operator asked");
    Some(Due {
        reason: Reason::Requested,
        since: queued.at,
        because: format!("it waited in the queue: {because}"),
    })
}

fn past_its_cryptoperiod(inventory: &Inventory, current: &Version, policy: &Policy) -> Option<Due> {
    if policy.unscheduled {
        return None;
    }
    let began_at = inventory.rotated_at.or(current.created_at)?;
    let day = match crate::planted!("days_are_counted_inclusively") {
        true => Span::days(1),
        false => Span::ZERO,
    };
    let since = began_at + policy.cryptoperiod + day;
    Some(Due {
        reason: Reason::Scheduled,
        since,
        because: format!("its cryptoperiod of {} ends", policy.cryptoperiod),
    })
}

/// Nobody knows how old it is. What was taken over together would be due together; so each has its own turn, which hangs on
/// its name alone, within one cryptoperiod.
fn of_unknown_age(inventory: &Inventory, current: &Version, policy: &Policy) -> Option<Due> {
    let is_known = inventory.rotated_at.or(current.created_at).is_some();
    let adopted_at = inventory.adopted_at.filter(|_| !is_known && !policy.unscheduled)?;
    let since = adopted_at + policy.cryptoperiod.part(turn(&inventory.secret), 1 << 32);
    Some(Due {
        reason: Reason::Scheduled,
        since,
        because: "its age is not known, and this is its turn".into(),
    })
}

/// A share of 2³², even over names and the same for one name at any time.
fn turn(secret: &SecretName) -> u64 {
    let digest = Sha256::digest(secret.to_string());
    u64::from(u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])) + 1
}

/// What a lease needs (`Strategy::Lease`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseNeed {
    /// Nothing yet; ask again then.
    Nothing(Timestamp),
    /// More time, with the same value.
    Extend,
    /// Another value.
    Replace,
}

/// How long a lease runs.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// When its value was made.
    pub created_at: Timestamp,
    /// When it was extended last, else made.
    pub extended_at: Timestamp,
    /// When it ends, if it is not extended.
    pub expires_at: Timestamp,
    /// How long it lives at most, however often it is extended.
    pub longest_life: Span,
    /// Until when it may live where a later extension gives more than the last one.
    pub at_best_until: Timestamp,
}

/// Returns the version whose lease is to be extended while a rotation of its secret is open, and from when on: the one that readers
/// are told to use, and the one that they are being given. The rotation begins with as much time as there is.
pub fn keep_alive(rotation: &Rotation, row: &Inventory) -> Option<(VersionId, Timestamp)> {
    let facts = rotation.plan().issuer.facts.lease?;
    let has_ended = rotation.outcome().is_some();
    if has_ended || rotation.plan().extend || crate::planted!("open_rotation_stops_extensions") {
        return None;
    }
    let in_use = rotation.version(rotation.promoted_side());
    let on_its_way = Some(rotation.plan().pending).filter(|_| rotation.is_minted());
    let due_at = |version: VersionId| {
        let known = row.version(version)?;
        // A suspect is given no time.
        let lease = Lease::of(known, facts).filter(|_| known.state == State::Active)?;
        let due_at = lease.extended_while_open(rotation)?;
        Some((version, due_at.max(rotation.keeps_alive_at())))
    };
    in_use.into_iter().chain(on_its_way).filter_map(due_at).min_by_key(|(_, at)| *at)
}

impl Lease {
    /// Returns how the lease of a version runs; none where that is not known.
    pub fn of(version: &Version, facts: LeaseFacts) -> Option<Self> {
        let (created_at, expires_at) = (version.created_at?, version.expires_at?);
        // What is not known by its id cannot be extended.
        let longest_life = facts.longest_life.filter(|_| version.issued.is_some());
        let declared = longest_life.unwrap_or(expires_at.since(created_at));
        let shown = version.dies_at.map_or(declared, |dies_at| dies_at.since(created_at));
        let longest_life = declared.min(shown);
        let may_give_more = version.gave_less && !crate::planted!("short_extension_is_the_last");
        let at_best = if may_give_more { declared } else { longest_life };
        Some(Self {
            created_at,
            extended_at: version.extended_at.unwrap_or(created_at),
            expires_at,
            longest_life,
            at_best_until: created_at + at_best,
        })
    }

    fn dies_at(&self) -> Timestamp {
        self.created_at + self.longest_life
    }

    /// When half of what was left is over.
    fn half_at(&self) -> Timestamp {
        self.extended_at + self.expires_at.since(self.extended_at).part(1, 2)
    }

    /// From when on an open rotation extends it; none where that brings nothing. Where an extension gave less than the one before,
    /// it tries again: nobody replaces the lease before the rotation has ended.
    fn extended_while_open(&self, rotation: &Rotation) -> Option<Timestamp> {
        if self.expires_at >= self.at_best_until {
            return None;
        }
        let began_at = rotation.began_at();
        let is_of_before = self.extended_at < began_at
            && self.expires_at < began_at + rotation.plan().longest_move();
        let half_at = self.half_at();
        Some(if is_of_before { half_at.min(began_at) } else { half_at })
    }

    /// Returns what it needs at `now`: a replacement early enough for three moves and a visit, else an extension at half of what
    /// was left of it, as long as its longest life allows one.
    pub fn need(&self, longest_move: Span, visit: Span, now: Timestamp) -> LeaseNeed {
        let (created_at, expires_at, dies_at) = (self.created_at, self.expires_at, self.dies_at());
        let by_share = created_at + self.longest_life.part(2, 3);
        let by_moves = dies_at - (longest_move + longest_move + longest_move + visit);
        // A life too short for that many moves is used up to its half: it would be replaced at each visit otherwise.
        let replace_at = by_share.min(by_moves.max(created_at + self.longest_life.part(1, 2)));
        let extend_at = self.half_at();
        if now >= replace_at || now >= expires_at {
            LeaseNeed::Replace
        } else if now >= extend_at && expires_at < dies_at {
            LeaseNeed::Extend
        } else {
            LeaseNeed::Nothing(if expires_at < dies_at {
                replace_at.min(extend_at)
            } else {
                replace_at
            })
        }
    }

    /// Returns what it needs at `now` while a rotation that somebody asked for waits to replace it: more time only, as long as there
    /// is some.
    pub fn need_until_replaced(&self, now: Timestamp) -> LeaseNeed {
        let is_extended = now < self.expires_at && self.expires_at < self.dies_at();
        match is_extended && now >= self.half_at() && !crate::planted!("queue_stops_extensions") {
            true => LeaseNeed::Extend,
            false => LeaseNeed::Nothing(self.half_at()),
        }
    }

    /// Returns from when on somebody must hear that nobody gave it what it needs: half of what was left then is over.
    pub fn late_at(&self, longest_move: Span, visit: Span) -> Timestamp {
        let due_at = match self.need(longest_move, visit, self.extended_at) {
            LeaseNeed::Nothing(at) => at,
            LeaseNeed::Extend | LeaseNeed::Replace => self.extended_at,
        };
        due_at + self.expires_at.since(due_at).part(1, 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::VersionId;

    fn inventory(change: impl FnOnce(&mut Inventory, &mut Version)) -> Inventory {
        let mut inventory = Inventory::new("jwt@production".parse().unwrap());
        let mut version =
            Version::adopted(VersionId(1), None, Some(Timestamp::from_millis(0)), None);
        inventory.rotated_at = Some(Timestamp::from_millis(0));
        change(&mut inventory, &mut version);
        inventory.versions.push(version);
        inventory
    }

    fn after(span: Span) -> Timestamp {
        Timestamp::from_millis(0) + span
    }

    #[test]
    fn h34_a_cryptoperiod_of_90_days_ends_after_90_times_86400_seconds() {
        let (row, policy) = (inventory(|_, _| {}), Policy::default());
        assert_eq!(due(&row, &policy, after(Span::millis(90 * 86_400_000 - 1))), None);
        assert_eq!(
            due(&row, &policy, after(Span::days(90))).map(|due| due.reason),
            Some(Reason::Scheduled)
        );
    }

    #[test]
    fn a_compromised_version_is_due_at_once_even_while_the_schedule_is_held() {
        let row = inventory(|row, version| {
            version.state = State::Compromised;
            row.held_because = Some("reversed".into());
        });
        assert_eq!(
            due(&row, &Policy::default(), after(Span::ZERO)).map(|due| due.reason),
            Some(Reason::Compromised)
        );
    }

    #[test]
    fn a_held_schedule_is_never_due_by_age() {
        let row = inventory(|row, _| row.held_because = Some("reversed".into()));
        assert_eq!(due(&row, &Policy::default(), after(Span::days(400))), None);
    }

    #[test]
    fn what_is_on_no_schedule_is_due_for_every_other_reason() {
        let policy = Policy { unscheduled: true, ..Policy::default() };
        let reason = |change: fn(&mut Inventory, &mut Version)| {
            due(&inventory(change), &policy, after(Span::days(4_000))).map(|due| due.reason)
        };
        assert_eq!(reason(|_, _| {}), None);
        let of_unknown_age = |row: &mut Inventory, version: &mut Version| {
            (row.rotated_at, version.created_at) = (None, None);
            row.adopted_at = Some(after(Span::ZERO));
        };
        assert_eq!(reason(of_unknown_age), None);
        assert_eq!(
            reason(|_, version| version.state = State::Compromised),
            Some(Reason::Compromised)
        );
        let ends = |_: &mut Inventory, version: &mut Version| {
            version.expires_at = Some(after(Span::days(30)));
        };
        assert_eq!(reason(ends), Some(Reason::Expiring));
    }

    #[test]
    fn an_expiry_comes_before_the_cryptoperiod() {
        let row = inventory(|_, version| version.expires_at = Some(after(Span::days(30))));
        let due = next(&row, &Policy::default()).unwrap();
        assert_eq!(due.reason, Reason::Expiring);
        assert!(due.since < after(Span::days(30)) && due.since >= after(Span::days(20)));
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(64))]

        /// What was taken over together has its first turns spread: each within one cryptoperiod, the same at any time, and no
        /// day with much more than its share.
        #[test]
        fn h29_first_turns_of_unknown_ages_are_spread(
            prefix in "[a-z]{1,12}",
            count in 1_usize..2_000,
            days in 1_u64..400,
        ) {
            let policy = Policy { cryptoperiod: Span::days(days), ..Policy::default() };
            let adopted_at = after(Span::days(1_000));
            let mut of_day = std::collections::BTreeMap::<u64, usize>::new();
            for number in 0..count {
                let mut row = inventory(|row, version| {
                    row.secret = format!("{prefix}-{number}@production").parse().unwrap();
                    (row.rotated_at, version.created_at) = (None, None);
                    row.adopted_at = Some(adopted_at);
                });
                let due = next(&row, &policy).unwrap().since;
                proptest::prop_assert!(due > adopted_at && due <= adopted_at + policy.cryptoperiod);
                row.next = VersionId(9);
                proptest::prop_assert_eq!(next(&row, &policy).unwrap().since, due);
                *of_day.entry(due.since(adopted_at).as_millis() / 86_400_001).or_default() += 1;
            }
            // Five deviations of an even draw, and what a few draws may do.
            let share = count as f64 / days as f64;
            let most = share + 5.0 * share.sqrt() + 8.0;
            proptest::prop_assert!(of_day.values().all(|due| (*due as f64) <= most), "{of_day:?}");
        }
    }

    #[test]
    fn a_known_age_has_no_turn() {
        let row = inventory(|row, _| row.adopted_at = Some(after(Span::days(50))));
        assert_eq!(next(&row, &Policy::default()).unwrap().since, after(Span::days(90)));
    }

    fn lease(extended: Span, expires: Span) -> Lease {
        Lease {
            created_at: after(Span::ZERO),
            extended_at: after(extended),
            expires_at: after(expires),
            longest_life: Span::hours(24),
            at_best_until: after(Span::hours(24)),
        }
    }

    #[test]
    fn a_lease_is_extended_at_half_and_replaced_in_time_for_three_moves() {
        let new = lease(Span::ZERO, Span::hours(1));
        let need = |lease: &Lease, now| lease.need(Span::minutes(10), Span::minutes(1), after(now));
        assert_eq!(need(&new, Span::minutes(29)), LeaseNeed::Nothing(after(Span::minutes(30))));
        assert_eq!(need(&new, Span::minutes(30)), LeaseNeed::Extend);
        assert_eq!(need(&new, Span::hours(1)), LeaseNeed::Replace, "it has ended");
        let old = lease(Span::hours(10), Span::hours(11));
        assert_eq!(
            need(&old, Span::minutes(10 * 60 + 29)),
            LeaseNeed::Nothing(after(Span::minutes(10 * 60 + 30))),
            "half of what was left when it was extended"
        );
        assert_eq!(need(&old, Span::hours(16)), LeaseNeed::Replace);
        let whole = lease(Span::hours(2), Span::hours(24));
        assert_eq!(need(&whole, Span::hours(15)), LeaseNeed::Nothing(after(Span::hours(16))));
    }

    #[test]
    fn a_lease_is_extended_and_not_replaced_while_a_rotation_waits_to_replace_it() {
        let need = |lease: Lease, now| lease.need_until_replaced(after(now));
        let old = || lease(Span::hours(20), Span::hours(21));
        assert_eq!(
            old().need(Span::hours(1), Span::ZERO, after(Span::hours(20))),
            LeaseNeed::Replace
        );
        let half = Span::minutes(20 * 60 + 30);
        assert_eq!(need(old(), Span::hours(20)), LeaseNeed::Nothing(after(half)));
        assert_eq!(need(old(), half), LeaseNeed::Extend);
        assert!(matches!(need(old(), Span::hours(21)), LeaseNeed::Nothing(_)), "it has ended");
        let whole = lease(Span::hours(20), Span::hours(24));
        assert!(matches!(need(whole, Span::hours(23)), LeaseNeed::Nothing(_)), "it has all");
    }

    #[test]
    fn a_life_too_short_for_three_moves_is_used_up_to_its_half() {
        let need =
            |now| lease(Span::ZERO, Span::hours(24)).need(Span::hours(9), Span::ZERO, after(now));
        assert_eq!(need(Span::hours(11)), LeaseNeed::Nothing(after(Span::hours(12))));
        assert_eq!(need(Span::hours(12)), LeaseNeed::Replace);
    }

    #[test]
    fn a_lease_that_nobody_serves_is_late_at_half_of_what_is_left() {
        let late = |lease: Lease| lease.late_at(Span::minutes(10), Span::minutes(1));
        assert_eq!(late(lease(Span::ZERO, Span::hours(1))), after(Span::minutes(45)));
        assert_eq!(late(lease(Span::hours(2), Span::hours(24))), after(Span::hours(20)));
    }
}
