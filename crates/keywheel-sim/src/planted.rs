//! Known bugs, switched on one at a time, that the simulator must catch: the test of the test.

use std::panic::{AssertUnwindSafe, catch_unwind};

use keywheel_core::planted::switch;

use crate::faults::{Fault, StepKind};

/// One planted bug.
#[derive(Clone, Copy, Debug)]
pub struct Bug {
    /// Its name, as in `planted!(…)`.
    pub name: &'static str,
    /// The crate that holds it.
    pub home: Home,
    /// The pair of step and fault that shows it soonest; every second life has it.
    pub shown_by: Option<(StepKind, Fault)>,
}

impl Bug {
    const fn shown_by(self, step: StepKind, fault: Fault) -> Self {
        Self { shown_by: Some((step, fault)), ..self }
    }
}

/// The crate that holds a planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// `keywheel-core`.
    Core,
    /// `keywheel-engine`.
    Engine,
    /// `keywheel-journal`.
    Journal,
}

const fn core(name: &'static str) -> Bug {
    Bug { name, home: Home::Core, shown_by: None }
}

const fn engine(name: &'static str) -> Bug {
    Bug { name, home: Home::Engine, shown_by: None }
}

const fn journal(name: &'static str) -> Bug {
    Bug { name, home: Home::Journal, shown_by: None }
}

/// Every planted bug.
pub const BUGS: [Bug; 48] = [
    core("vacuous_evidence").shown_by(StepKind::Evidence, Fault::ReplicasHidden),
    core("moves_are_leaps"),
    core("drop_without_token_wait"),
    core("absence_before_settle"),
    core("trusts_read_back_of_unknown_write").shown_by(StepKind::Write, Fault::LateLanding),
    core("stale_quiet_sample"),
    core("revoke_before_fresh_sample"),
    core("soak_on_wall_clock").shown_by(StepKind::Visit, Fault::WallForward),
    core("deadline_survives_undo"),
    core("parks_on_any_unknown"),
    core("unproven_death_is_fine"),
    core("asks_again_after_a_no"),
    core("no_last_sweep").shown_by(StepKind::Mint, Fault::Duplicate),
    core("evidence_on_a_clock_set_back").shown_by(StepKind::Roll, Fault::WallBack),
    core("brownout_ignores_red").shown_by(StepKind::Visit, Fault::ProbeRed),
    core("soak_without_brownout"),
    core("late_write_is_somebody_elses").shown_by(StepKind::Write, Fault::LateLanding),
    core("times_of_the_capture_are_forgotten").shown_by(StepKind::Verify, Fault::RivalEdit),
    core("untouched_store_is_cleaned").shown_by(StepKind::Mint, Fault::Forbidden),
    core("untouched_proves_any_move").shown_by(StepKind::Roll, Fault::RollSkipsSome),
    core("untouched_proves_what_is_live").shown_by(StepKind::Roll, Fault::RollSkipsSome),
    engine("intent_after_effect"),
    engine("value_not_sealed_with_intent"),
    engine("unknown_is_done"),
    engine("swallows_storage_error"),
    engine("recovery_assumes_done"),
    engine("recovery_assumes_undone"),
    engine("writes_unconditionally"),
    engine("suspect_written_again").shown_by(StepKind::Roll, Fault::Emergency),
    engine("stores_stop_an_emergency").shown_by(StepKind::Visit, Fault::Emergency),
    engine("unread_store_stops_an_emergency").shown_by(StepKind::Visit, Fault::Emergency),
    engine("ended_while_a_store_names_it").shown_by(StepKind::Visit, Fault::StoreBehind),
    engine("stray_ended_unseen").shown_by(StepKind::Write, Fault::JournalBehind),
    engine("minted_over_an_unknown_value").shown_by(StepKind::Evidence, Fault::JournalBehind),
    engine("attempt_is_made_twice").shown_by(StepKind::Verify, Fault::JournalBehind),
    engine("written_without_asking").shown_by(StepKind::Revoke, Fault::JournalBehind),
    engine("lost_writes_were_none").shown_by(StepKind::Roll, Fault::JournalBehind),
    engine("stamp_ignores_also_accepted"),
    engine("deadline_after_the_call"),
    engine("refused_read_back_is_a_refused_write").shown_by(StepKind::Write, Fault::Forbidden),
    journal("claim_of_the_living"),
    journal("lost_seal"),
    journal("destroy_ignored"),
    journal("ignore_epoch").shown_by(StepKind::Visit, Fault::PauseTakenOver),
    journal("ignore_sequence"),
    journal("open_twice"),
    journal("no_wave_leases"),
    journal("nothing_is_given_back"),
];

/// Leads lives with a bug switched on until one of them shows it; returns the seed and what was seen.
///
/// A life that violates something without the bug as well shows nothing of it, and does not count.
pub fn hunt(bug: &Bug, lives: u64) -> Option<(u64, String)> {
    (0..lives).find_map(|seed| {
        let lead = || match bug.shown_by.filter(|_| seed % 2 == 1) {
            Some(focus) => crate::live_with(seed, focus),
            None => crate::live(seed, false),
        };
        switch(Some(bug.name));
        // A bug may break an assumption of the simulator or of the engine before it breaks an invariant; both show it.
        let seen = match catch_unwind(AssertUnwindSafe(lead)) {
            Ok(verdict) => verdict.violation.map(|violation| violation.to_string()),
            Err(_) => Some("a panic".into()),
        };
        switch(None);
        seen.filter(|_| lead().violation.is_none()).map(|seen| (seed, seen))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_planted_bug_is_caught() {
        let survivors: Vec<&str> =
            BUGS.iter().filter(|bug| hunt(bug, 6_000).is_none()).map(|bug| bug.name).collect();
        assert!(survivors.is_empty(), "nothing shows {survivors:?}");
    }

    #[test]
    fn enough_of_them_are_in_the_engine_and_the_journal() {
        let outside_core = BUGS.iter().filter(|bug| bug.home != Home::Core).count();
        assert!(BUGS.len() >= 20 && outside_core >= 8);
    }
}
