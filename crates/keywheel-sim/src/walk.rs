//! The exhaustive fault walk: no sampling, every point of a life and every fault that can happen there.
//!
//! A life without faults is led once to learn its points: every call of a driver and every commit. Then it is led again for
//! each point and each fault; and for the core shapes again with each second fault at the points right after the first, which
//! are those of the recovery.

use crate::faults::{Fault, Hit};
use crate::life::{self, Options, Verdict};
use crate::scenario::Shape;
use crate::world::{self, Planned, When};

/// What a walk found.
#[derive(Clone, Default)]
pub struct Walked {
    /// How many lives were led.
    pub lives: u64,
    /// How many rotations with faults they had.
    pub lifecycles: u64,
    /// The pairs of step and fault that were reached.
    pub hit: Hit,
    /// What was violated, with the faults that did it.
    pub violations: Vec<String>,
}

/// The seed of all walks: walks differ in their faults alone.
const SEED: u64 = 1_234;

/// The faults that are tried as a second one: what can happen to a recovery.
const SECOND: [Fault; 6] = [
    Fault::CrashInFlight,
    Fault::CrashAfter,
    Fault::CommitUnacknowledged,
    Fault::AnswerLost,
    Fault::LateLanding,
    Fault::Undo,
];

/// How many points after the first fault a second one is tried at.
const REACH: u32 = 8;

/// Walks every shape with one fault; `part` of `parts` of it.
pub fn singles(part: usize, parts: usize) -> Walked {
    let mut walked = Walked::default();
    for shape in Shape::ALL {
        for (point, fault) in points(shape).into_iter().skip(part).step_by(parts) {
            walked.lead(shape, &[planned(point, fault)]);
        }
    }
    walked
}

/// Walks the core shapes with two faults, the second in the recovery from the first; `part` of `parts` of it.
pub fn pairs(part: usize, parts: usize) -> Walked {
    let mut walked = Walked::default();
    for shape in [Shape::Keys, Shape::Keyring, Shape::Logins] {
        let firsts = points(shape).into_iter().filter(|(_, fault)| SECOND.contains(fault));
        for (point, first) in firsts.skip(part).step_by(parts) {
            for next in point + 1..=point + REACH {
                for second in SECOND {
                    walked.lead(shape, &[planned(point, first), planned(next, second)]);
                }
            }
        }
    }
    walked
}

/// Leads one life of a walk again: a shape, and faults as `<point>:<fault>`.
///
/// # Errors
/// What cannot be read, in words.
pub fn again(shape: &str, faults: &[String], log: bool) -> Result<Verdict, String> {
    let known = Shape::ALL.into_iter().find(|known| format!("{known:?}") == shape);
    let shape = known.ok_or_else(|| format!("`{shape}` is no shape"))?;
    let read = |text: &String| {
        let (point, fault) = text.split_once(':')?;
        let fault = Fault::ALL.iter().find(|known| format!("{known:?}") == fault)?;
        Some(planned(point.parse().ok()?, *fault))
    };
    let faults = faults
        .iter()
        .map(|text| read(text).ok_or_else(|| format!("`{text}` is no fault at a point")));
    let faults: Vec<Planned> = faults.collect::<Result<_, _>>()?;
    Ok(life::lead(
        SEED,
        &Options { shape: Some(shape), faults: Some(faults), log, ..Options::default() },
    ))
}

fn text(planned: &Planned) -> String {
    match planned.when {
        When::At(point) => format!("{point}:{:?}", planned.fault),
        When::From(point) => format!("{point}+:{:?}", planned.fault),
        When::Step(step, nth) => format!("{step:?}#{nth}:{:?}", planned.fault),
    }
}

fn planned(point: u32, fault: Fault) -> Planned {
    Planned { when: When::At(point), fault }
}

/// Every point of a shape's life with every fault that can happen there.
fn points(shape: Shape) -> Vec<(u32, Fault)> {
    let clean = lead(shape, &[], true);
    let all = clean.trace.iter().enumerate().flat_map(|(point, (step, _, kind))| {
        let fitting = Fault::ALL.iter().filter(|fault| world::fits(**fault, *step, *kind));
        fitting.map(move |fault| (point as u32, *fault))
    });
    all.collect()
}

fn lead(shape: Shape, faults: &[Planned], trace: bool) -> Verdict {
    life::lead(
        SEED,
        &Options { shape: Some(shape), faults: Some(faults.to_vec()), trace, ..Options::default() },
    )
}

impl Walked {
    fn lead(&mut self, shape: Shape, faults: &[Planned]) {
        let verdict = lead(shape, faults, false);
        self.lives += 1;
        self.lifecycles += verdict.lifecycles;
        self.hit.merge(&verdict.hit);
        if let Some(violation) = verdict.violation {
            let faults: Vec<String> = faults.iter().map(text).collect();
            self.violations.push(format!("--again {shape:?} {}: {violation}", faults.join(" ")));
        }
    }

    /// Adds another walk.
    pub fn merge(&mut self, other: Self) {
        self.lives += other.lives;
        self.lifecycles += other.lifecycles;
        self.hit.merge(&other.hit);
        self.violations.extend(other.violations);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_fault_anywhere_violates_nothing() {
        // Every eighth life of the walk, beginning elsewhere in each shape; `keywheel-sim --walk` leads them all.
        let walked = singles(3, 8);
        assert!(walked.violations.is_empty(), "{:#?}", walked.violations);
        assert!(walked.lives > 2_000, "only {} lives", walked.lives);
    }
}
