//! The simulator: the engine that ships, in a world that lies, crashes and delays.
//!
//! One seed is one life ([`life`]): rotations run through `keywheel-engine`'s own loop and recovery, against drivers, clocks
//! and a journal that fail as the seed says ([`faults`]), while numbered invariants are checked after every record and every
//! effect ([`invariants`]). The same seed gives the same life on every machine.

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
    let pairs: Vec<_> = faults::pairs().collect();
    let focus = if random.chance(5) { None } else { Some(random.pick(&pairs)) };
    life::lead(seed, &life::Options { focus, log, ..life::Options::default() })
}

/// Leads the life of one seed with a wanted pair of step and fault.
pub fn live_with(seed: u64, pair: (faults::StepKind, faults::Fault)) -> Verdict {
    life::lead(seed, &life::Options { focus: Some(pair), ..life::Options::default() })
}
