//! Gates and soak: what must be seen before anything is ended, and how quiet time is counted.

use serde::{Deserialize, Serialize};

use crate::evidence::Count;
use crate::facts::LastUsedFacts;
use crate::plan::CannotTell;
use crate::time::{Span, Timestamp};

/// What one look at the world brought. The journal keeps the raw sample; judging it is pure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visit {
    /// The clocks at the visit.
    pub clocks: Clocks,
    /// Whether every probe was green; none where there is no probe, or one gave no answer.
    pub probes: Option<bool>,
    /// Whether every store holds the arrangement; none where one could not be read.
    pub stores: Option<bool>,
    /// What the replicas of each workload proved.
    pub evidence: Vec<Count>,
    /// The issuer's last-used data for the version to be ended, where it has them and answered.
    pub usage: Option<UsageSample>,
    /// Words for people on what was not green.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One sample of last-used data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageSample {
    /// When the issuer was asked.
    pub asked_at: Timestamp,
    /// The last use that it knows of.
    pub last_used_at: Option<Timestamp>,
}

/// Three clocks read together. Soak counts the least that any of them shows (H32, H33).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// The wall clock.
    pub wall: Timestamp,
    /// Time since boot, suspended time included.
    pub boot: Span,
    /// Tells one boot from another.
    pub boot_id: u64,
    /// Somebody else's wall clock: an issuer's `Date`, a database's `now()`.
    pub outside: Option<Timestamp>,
}

impl Clocks {
    /// Returns the least time that any clock says has passed since `earlier`.
    pub fn least_since(&self, earlier: &Self) -> Span {
        if crate::planted!("soak_on_wall_clock") {
            return self.wall.since(earlier.wall);
        }
        let boot =
            if self.boot_id == earlier.boot_id { self.boot.less(earlier.boot) } else { self.boot };
        let mut least = self.wall.since(earlier.wall).min(boot);
        if let (Some(now), Some(then)) = (self.outside, earlier.outside) {
            least = least.min(now.since(then));
        }
        least
    }

    /// Returns what the wall clock would show now, had it not been set back since `earlier`; none where it was not, or where nothing
    /// tells. A clock that is slowed down by less than a thousandth is not set: it shows what comes later as later (H32).
    pub fn set_back_since(&self, earlier: &Self) -> Option<Timestamp> {
        if self.boot_id != earlier.boot_id || crate::planted!("set_back_between_records_unseen") {
            return None;
        }
        let passed = self.boot.less(earlier.boot);
        let shown = earlier.wall + passed;
        let slack = passed.part(1, 1_000).max(Span::millis(10));
        (shown.since(self.wall) > slack).then_some(shown)
    }
}

/// What a gate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// Nothing speaks against it.
    Open,
    /// Something was seen that speaks against it.
    Closed,
    /// There is a way to know, and it did not answer.
    CannotTell,
    /// The sample was taken too early to prove anything; only time helps, whatever policy says of silence.
    NotYet,
    /// There is no way to know; decided when the plan was made, and printed.
    NotApplicable,
}

/// What the gates are judged by.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// When every replica was first proven to hold the new arrangement.
    pub evidence_at: Timestamp,
    /// How the issuer tells last use, where it does.
    pub last_used: Option<LastUsedFacts>,
    /// Whether there are probes at all.
    pub has_probes: bool,
    /// Whether any store tells what it holds, or when it was changed.
    pub shows_drift: bool,
    /// What a gate that cannot tell does.
    pub cannot_tell: CannotTell,
}

/// The gates of one visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gates {
    /// Probes are green.
    pub probes: Gate,
    /// No store drifted.
    pub drift: Gate,
    /// Every replica proves the arrangement.
    pub evidence: Gate,
    /// Nobody used the version that is to be ended.
    pub quiet: Gate,
}

/// What all gates say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Light {
    /// Soak counts, and something may be ended.
    Green,
    /// Nothing is known against it, and not enough for it: soak stands still.
    Amber,
    /// Soak starts anew.
    Red,
}

/// Judges a visit.
pub fn judge(visit: &Visit, terms: &Terms) -> Gates {
    Gates {
        probes: probes(visit.probes, terms),
        drift: drift(visit.stores, terms),
        evidence: evidence(&visit.evidence),
        quiet: quiet(visit.usage, terms),
    }
}

impl Gates {
    /// Folds the gates into one light.
    pub fn light(self, cannot_tell: CannotTell) -> Light {
        let all = [self.probes, self.drift, self.evidence, self.quiet];
        if all.contains(&Gate::Closed) {
            return Light::Red;
        }
        // Evidence and drift that cannot be told block harm whatever policy says: unknown is never green (I08).
        let unproven =
            [self.drift, self.evidence].contains(&Gate::CannotTell) || self.quiet == Gate::NotYet;
        let untold = all.contains(&Gate::CannotTell) && cannot_tell == CannotTell::Wait;
        if unproven || untold { Light::Amber } else { Light::Green }
    }
}

/// A probe that gave no answer leaves it open whether all is well.
fn probes(green: Option<bool>, terms: &Terms) -> Gate {
    match green {
        Some(green) => from_green(green),
        None if terms.has_probes => Gate::CannotTell,
        None => Gate::NotApplicable,
    }
}

/// Where no store shows a change, none that was seen means nothing.
fn drift(hold: Option<bool>, terms: &Terms) -> Gate {
    match hold {
        _ if !terms.shows_drift && !crate::planted!("unseen_drift_is_none") => Gate::NotApplicable,
        Some(false) if crate::planted!("drift_is_no_gate") => Gate::Open,
        Some(hold) => from_green(hold),
        None => Gate::CannotTell,
    }
}

fn from_green(green: bool) -> Gate {
    if green { Gate::Open } else { Gate::Closed }
}

fn evidence(counts: &[Count]) -> Gate {
    if counts.iter().any(|count| count.other > 0) {
        Gate::Closed
    } else if counts.iter().all(|count| count.complete()) {
        Gate::Open
    } else {
        Gate::CannotTell
    }
}

/// A sample counts only if it was taken after every use up to the evidence must show; a use after that closes the gate.
fn quiet(sample: Option<UsageSample>, terms: &Terms) -> Gate {
    let Some(facts) = terms.last_used else { return Gate::NotApplicable };
    let Some(sample) = sample else { return Gate::CannotTell };
    let used_since =
        sample.last_used_at.is_some_and(|at| at > terms.evidence_at + facts.granularity);
    let fresh = sample.asked_at >= terms.evidence_at + facts.lag + facts.granularity;
    match (used_since, fresh || crate::planted!("stale_quiet_sample")) {
        (true, _) => Gate::Closed,
        (false, true) => Gate::Open,
        (false, false) => Gate::NotYet,
    }
}

/// Soak, counted by visits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Soak {
    /// What counts so far.
    pub counted: Span,
    /// The clocks of the last visit.
    pub last: Option<Clocks>,
}

impl Soak {
    /// Counts one visit of a soak of length `whole`.
    pub fn visit(&mut self, clocks: Clocks, light: Light, whole: Span) {
        let most = if crate::planted!("one_visit_counts_all") { whole } else { whole.part(1, 4) };
        let step = self.last.map_or(Span::ZERO, |last| clocks.least_since(&last)).min(most);
        match light {
            Light::Green => self.counted = self.counted + step,
            Light::Amber => {}
            Light::Red => self.counted = Span::ZERO,
        }
        self.last = Some(clocks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clocks(wall: i64, boot: u64) -> Clocks {
        Clocks {
            wall: Timestamp::from_millis(wall),
            boot: Span::millis(boot),
            boot_id: 1,
            outside: None,
        }
    }

    #[test]
    fn h32_a_leap_of_the_wall_clock_does_not_count() {
        let mut soak = Soak::default();
        soak.visit(clocks(0, 0), Light::Green, Span::hours(4));
        soak.visit(clocks(36_000_000, 1_000), Light::Green, Span::hours(4));
        assert_eq!(soak.counted, Span::seconds(1));
    }

    #[test]
    fn h33_one_visit_counts_a_quarter_at_most() {
        let mut soak = Soak::default();
        soak.visit(clocks(0, 0), Light::Green, Span::hours(4));
        soak.visit(clocks(360_000_000, 360_000_000), Light::Green, Span::hours(4));
        assert_eq!(soak.counted, Span::hours(1));
    }

    #[test]
    fn i07_a_red_visit_starts_anew_and_an_amber_one_stands_still() {
        let mut soak = Soak::default();
        soak.visit(clocks(0, 0), Light::Green, Span::hours(4));
        soak.visit(clocks(1_000, 1_000), Light::Green, Span::hours(4));
        soak.visit(clocks(2_000, 2_000), Light::Amber, Span::hours(4));
        assert_eq!(soak.counted, Span::seconds(1));
        soak.visit(clocks(3_000, 3_000), Light::Red, Span::hours(4));
        assert_eq!(soak.counted, Span::ZERO);
    }

    fn terms() -> Terms {
        let last_used = LastUsedFacts { lag: Span::seconds(60), granularity: Span::seconds(10) };
        Terms {
            evidence_at: Timestamp::from_millis(0),
            last_used: Some(last_used),
            has_probes: true,
            shows_drift: true,
            cannot_tell: CannotTell::Allow,
        }
    }

    fn sample(asked: i64, used: Option<i64>) -> Option<UsageSample> {
        let last_used_at = used.map(Timestamp::from_millis);
        Some(UsageSample { asked_at: Timestamp::from_millis(asked), last_used_at })
    }

    #[test]
    fn probes_that_give_no_answer_are_not_green() {
        assert_eq!(probes(None, &terms()), Gate::CannotTell);
        assert_eq!(probes(None, &Terms { has_probes: false, ..terms() }), Gate::NotApplicable);
        assert_eq!(probes(Some(true), &terms()), Gate::Open);
        assert_eq!(probes(Some(false), &terms()), Gate::Closed);
    }

    #[test]
    fn where_no_store_shows_a_change_the_gate_of_drift_does_not_apply() {
        assert_eq!(drift(Some(true), &terms()), Gate::Open);
        assert_eq!(drift(Some(false), &terms()), Gate::Closed);
        assert_eq!(drift(None, &terms()), Gate::CannotTell);
        let blind = Terms { shows_drift: false, ..terms() };
        assert_eq!(drift(Some(true), &blind), Gate::NotApplicable);
    }

    #[test]
    fn h56_a_sample_taken_too_early_proves_no_silence() {
        assert_eq!(quiet(sample(69_999, None), &terms()), Gate::NotYet);
        assert_eq!(quiet(sample(70_000, None), &terms()), Gate::Open);
        assert_eq!(quiet(sample(70_000, Some(10_000)), &terms()), Gate::Open);
        assert_eq!(quiet(sample(70_000, Some(10_001)), &terms()), Gate::Closed);
        assert_eq!(quiet(None, &terms()), Gate::CannotTell);
    }
}
