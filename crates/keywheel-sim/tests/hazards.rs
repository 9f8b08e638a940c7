//! What `cargo xtask hazards` runs for protections of the engine, the journal and the state machine: it passes by itself, and
//! fails for whichever of them is removed in the whole process.

use keywheel_sim::planted::BUGS;
use keywheel_sim::{live, live_with};

/// How many lives are led; more where something is to be found.
const LIVES: u64 = 200;
const LIVES_TO_FIND: u64 = 6_000;

#[test]
fn no_life_violates_anything() {
    let removed = std::env::var("KEYWHEEL_PLANTED").ok();
    let bug = BUGS.iter().find(|bug| Some(bug.name) == removed.as_deref());
    let shown_by = bug.and_then(|bug| bug.shown_by);
    for seed in 0..if removed.is_some() { LIVES_TO_FIND } else { LIVES } {
        let verdict = match shown_by.filter(|_| seed % 2 == 1) {
            Some(focus) => live_with(seed, focus),
            None => live(seed, false),
        };
        assert!(verdict.violation.is_none(), "seed {seed}: {}", verdict.violation.unwrap());
    }
}
