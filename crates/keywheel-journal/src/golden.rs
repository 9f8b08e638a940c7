//! Golden records: what released versions wrote is read for ever (H15).
//!
//! `fixtures/events-v1.jsonl` holds one event a line, as the journal stores it: every variant of every type in it, no value
//! of a secret. A line is never edited once its version is released; a new variant gets a new line.

use std::collections::BTreeSet;

use keywheel_core::event::{Because, Death, Event, Outcome, ParkReason, Report, Step};

const EVENTS: &str = include_str!("../fixtures/events-v1.jsonl");

#[test]
fn h15_every_event_that_was_ever_written_is_read_and_written_back_identically() {
    for (number, line) in EVENTS.lines().enumerate() {
        let event: Event = serde_json::from_str(line)
            .unwrap_or_else(|error| panic!("line {}: {error}", number + 1));
        assert_eq!(serde_json::to_string(&event).unwrap(), line, "line {}", number + 1);
    }
}

#[test]
fn h15_the_golden_records_hold_every_variant() {
    let mut seen = Seen::default();
    EVENTS.lines().for_each(|line| seen.event(&serde_json::from_str(line).unwrap()));
    let missing: Vec<_> = ALL.iter().filter(|name| !seen.0.contains(*name)).collect();
    assert_eq!(missing, Vec::<&&str>::new());
    assert_eq!(seen.0.len(), ALL.len(), "the list names each variant once");
}

/// Every variant that the fixture has to hold. The matches below do not compile when one is added to the core; add it here
/// and in the fixture.
const ALL: [&str; 63] = [
    "planned",
    "intended",
    "done",
    "refused",
    "unknown",
    "move_begun",
    "arrived",
    "promoted",
    "stage_closed",
    "turned_back",
    "parked",
    "resumed",
    "identified",
    "overridden",
    "window_closed",
    "resolved",
    "superseded",
    "ended",
    "step preflight",
    "step capture",
    "step mint",
    "step find_mint",
    "step revoke_stray",
    "step verify",
    "step write",
    "step roll",
    "step evidence",
    "step probe",
    "step visit",
    "step suspend",
    "step resume",
    "step revoke",
    "step verify_dead",
    "step sweep",
    "purged",
    "step extend",
    "step keep_alive",
    "report plain",
    "report captured",
    "report noted",
    "report revoked",
    "report minted",
    "report found",
    "report written",
    "report seen",
    "report visited",
    "report dead",
    "report swept",
    "report extended",
    "because operator",
    "because step",
    "because batch",
    "parked refused",
    "parked out_of_patience",
    "parked mint_unobservable",
    "parked id_unknown",
    "parked gate_closed",
    "parked red_after_suspend",
    "parked proof_needed",
    "parked death_unproven",
    "outcome completed",
    "outcome undone",
    "outcome superseded",
];

#[derive(Default)]
struct Seen(BTreeSet<&'static str>);

impl Seen {
    fn event(&mut self, event: &Event) {
        let name = match event {
            Event::Planned(_) => "planned",
            Event::Intended { step, .. } => self.with_step(step, "intended"),
            Event::Done { step, report } => {
                self.report(report);
                self.with_step(step, "done")
            }
            Event::Refused { step, .. } => self.with_step(step, "refused"),
            Event::Unknown { step } => self.with_step(step, "unknown"),
            Event::MoveBegun { .. } => "move_begun",
            Event::Arrived { .. } => "arrived",
            Event::Promoted { .. } => "promoted",
            Event::StageClosed => "stage_closed",
            Event::TurnedBack { because } => {
                self.because(because);
                "turned_back"
            }
            Event::Parked { reason } => {
                self.park(reason);
                "parked"
            }
            Event::Resumed => "resumed",
            Event::Identified { .. } => "identified",
            Event::Overridden { .. } => "overridden",
            Event::WindowClosed { .. } => "window_closed",
            Event::Resolved { outcome, .. } => self.with_outcome(*outcome, "resolved"),
            Event::Superseded { .. } => "superseded",
            Event::Purged => "purged",
            Event::Ended { outcome } => self.with_outcome(*outcome, "ended"),
        };
        self.0.insert(name);
    }

    fn with_step(&mut self, step: &Step, name: &'static str) -> &'static str {
        self.0.insert(match step {
            Step::Preflight => "step preflight",
            Step::Capture => "step capture",
            Step::Mint { .. } => "step mint",
            Step::FindMint { .. } => "step find_mint",
            Step::RevokeStray { .. } => "step revoke_stray",
            Step::Verify(_) => "step verify",
            Step::Write { .. } => "step write",
            Step::Roll { .. } => "step roll",
            Step::Evidence { .. } => "step evidence",
            Step::Probe { .. } => "step probe",
            Step::Visit => "step visit",
            Step::Suspend(_) => "step suspend",
            Step::Resume(_) => "step resume",
            Step::Revoke(_) => "step revoke",
            Step::VerifyDead(_) => "step verify_dead",
            Step::Sweep => "step sweep",
            Step::Extend => "step extend",
            Step::KeepAlive(_) => "step keep_alive",
            Step::CleanUp { .. } => "step clean_up",
        });
        name
    }

    fn with_outcome(&mut self, outcome: Outcome, name: &'static str) -> &'static str {
        self.0.insert(match outcome {
            Outcome::Completed => "outcome completed",
            Outcome::Undone => "outcome undone",
            Outcome::Superseded => "outcome superseded",
        });
        name
    }

    fn report(&mut self, report: &Report) {
        self.0.insert(match report {
            Report::Plain => "report plain",
            Report::Captured { .. } => "report captured",
            Report::Noted { .. } => "report noted",
            Report::Revoked { .. } => "report revoked",
            Report::Minted { .. } => "report minted",
            Report::Found { .. } => "report found",
            Report::Written { .. } => "report written",
            Report::Seen(_) => "report seen",
            Report::Visited(_) => "report visited",
            Report::Dead(
                Death::Refused
                | Death::StillAccepted
                | Death::CannotTell
                | Death::NoOneToAsk
                | Death::EndsAt { .. },
            ) => "report dead",
            Report::Swept { .. } => "report swept",
            Report::Extended { .. } => "report extended",
        });
    }

    fn because(&mut self, because: &Because) {
        self.0.insert(match because {
            Because::Operator { .. } => "because operator",
            Because::Step { .. } => "because step",
            Because::Batch => "because batch",
        });
    }

    fn park(&mut self, reason: &ParkReason) {
        self.0.insert(match reason {
            ParkReason::Refused { .. } => "parked refused",
            ParkReason::OutOfPatience { .. } => "parked out_of_patience",
            ParkReason::MintUnobservable => "parked mint_unobservable",
            ParkReason::IdUnknown { .. } => "parked id_unknown",
            ParkReason::GateClosed => "parked gate_closed",
            ParkReason::RedAfterSuspend => "parked red_after_suspend",
            ParkReason::ProofNeeded => "parked proof_needed",
            ParkReason::DeathUnproven => "parked death_unproven",
        });
    }
}
