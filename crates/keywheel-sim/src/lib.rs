//! The simulator: the engine that ships, in a world that lies, crashes and delays.
//!
//! One seed is one life (`life.rs`): rotations run through `keywheel-engine`'s own loop and recovery, against drivers, clocks
//! and a journal that fail as the seed says ([`faults`]), while numbered invariants are checked after every record and every
//! effect ([`invariants`]). The same seed gives the same life on every machine. [`walk`] leaves nothing to chance, [`model`]
//! explores the state machine by itself, and [`planted`] tests the simulator with known bugs.
//!
//! What the world promises, and so what is not tried: a call lands no later than the driver's `settle_for` says; a durable
//! commit stays durable; a process that is declared dead is dead; a wall clock is set ahead by more than two seconds only
//! during soak, since only soak is counted by three clocks, and set back by more than a millisecond only where one secret is
//! rotated, since a start time proves nothing of a restart that another rotation caused before the clock was set back. A
//! rival's edit that puts back a version that keywheel knows is seen at the next visit, not before; where that hid a version
//! with which replicas do not come up until it was promoted, the operator of the life undoes it.
//!
//! Where the time goes (a profile of the release build): some 23 % in the allocator, for the boxed futures of the drivers'
//! traits and for keys, addresses and records that are strings; 17 % in commits, of which the rules and tables of the journal
//! in memory are two thirds; 12 % in unsealing what slots should hold; 7 % in plan hashes, which name a rotation whenever its
//! records are read; 6 % in copies; 2 % in SHA-256. One life in some four thousand waits in small steps for the wave of a
//! rotation that an operator must see to, and takes as long as a hundred others or more.

use std::sync::LazyLock;

mod drivers;
pub mod faults;
pub mod invariants;
mod journal;
mod life;
pub mod model;
pub mod planted;
mod random;
mod scenario;
pub mod walk;
mod world;

pub use life::Verdict;

/// Leads the life of one seed.
pub fn live(seed: u64, log: bool) -> Verdict {
    let mut random = random::Random::new(seed ^ 0xf0c5);
    static PAIRS: LazyLock<Vec<(faults::StepKind, faults::Fault)>> =
        LazyLock::new(|| faults::pairs().collect());
    let focus = if random.chance(5) { None } else { Some(random.pick(&PAIRS)) };
    life::lead(seed, &life::Options { focus, log, ..life::Options::default() })
}

/// Leads the life of one seed with a wanted pair of step and fault.
pub fn live_with(seed: u64, pair: (faults::StepKind, faults::Fault)) -> Verdict {
    life::lead(seed, &life::Options { focus: Some(pair), ..life::Options::default() })
}
