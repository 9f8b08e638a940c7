//! What a plan will do if nothing goes wrong: the state machine itself, run in a world in which every step is done at once.

use std::sync::Arc;

use crate::batch::{self, Turn};
use crate::event::{Death, Event, Report, Step};
use crate::evidence::Count;
use crate::gate::{Clocks, UsageSample, Visit};
use crate::plan::Plan;
use crate::rotation::Rotation;
use crate::time::{Span, Timestamp};
use crate::version::IssuedId;

/// One thing that will happen, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coming {
    /// When.
    pub at: Timestamp,
    /// To which members of the group: more than one for a shared roll.
    pub members: Vec<usize>,
    /// What: a step as it begins, or a record. For a shared roll, the step of the first member.
    pub event: Event,
}

/// Returns what these plans will do together from `now` on. Looks at the gates are left out.
pub fn forecast(plans: &[Arc<Plan>], now: Timestamp) -> Vec<Coming> {
    let begin = |plan: &Arc<Plan>| Rotation::begin(now, &Event::Planned(Arc::clone(plan)));
    let rotations =
        plans.iter().map(|plan| begin(plan).expect("a plan begins a rotation")).collect();
    continue_forecast(rotations, now)
}

/// Returns what is still to come of a group of rotations, from `now` on.
pub fn continue_forecast(mut group: Vec<Rotation>, mut now: Timestamp) -> Vec<Coming> {
    let began_at = now;
    let mut coming = Vec::new();
    // A plan has a few dozen steps; the bound only guards against a state machine that stands still.
    for _ in 0..10_000 {
        let members: Vec<&Rotation> = group.iter().collect();
        match batch::turn(&members, now) {
            Turn::Record(member, event) => {
                group[member].apply(now, &event).expect("turn() records what apply() takes");
                coming.push(Coming { at: now, members: vec![member], event });
            }
            Turn::Do(steps) => {
                for (member, step) in &steps {
                    take(&mut group[*member], *step, began_at, now);
                }
                for (step, members) in calls(&steps) {
                    let event = Event::Intended { step, until: now, clocks: None };
                    coming.push(Coming { at: now, members, event });
                }
            }
            Turn::Wait { until, .. } => now = until,
            Turn::Rest => break,
        }
    }
    coming
}

/// The calls of one turn, and whose they are; looks at the gates are left out.
fn calls(steps: &[(usize, Step)]) -> Vec<(Step, Vec<usize>)> {
    let is_shared = steps.windows(2).any(|pair| pair[0].0 != pair[1].0);
    let shown = steps.iter().filter(|(_, step)| *step != Step::Visit);
    match steps {
        [(_, step), ..] if is_shared => vec![(*step, shown.map(|(member, _)| *member).collect())],
        _ => shown.map(|(member, step)| (*step, vec![*member])).collect(),
    }
}

fn take(rotation: &mut Rotation, step: Step, began_at: Timestamp, now: Timestamp) {
    let intended = Event::Intended { step, until: now, clocks: None };
    rotation.apply(now, &intended).expect("turn() does what apply() takes");
    let done = Event::Done { step, report: ideal(rotation, step, began_at, now) };
    rotation.apply(now, &done).expect("the step was just intended");
}

fn ideal(rotation: &Rotation, step: Step, began_at: Timestamp, now: Timestamp) -> Report {
    let everyone = Count { holds: 1, other: 0, unknown: 0 };
    match step {
        Step::Mint { .. } => Report::Minted {
            issued: Some(IssuedId::new("forecast")),
            fingerprint: None,
            expires_at: None,
            notes: Vec::new(),
        },
        Step::Write { .. } => Report::Written { changed: true, changed_at: Vec::new() },
        Step::Evidence { .. } => Report::Seen(everyone),
        Step::Sweep => Report::Swept { strays: Vec::new() },
        Step::VerifyDead(_) => Report::Dead(Death::Refused),
        Step::Extend | Step::KeepAlive(_) => Report::Extended { expires_at: now },
        Step::Visit => {
            let boot = now.since(began_at) + Span::hours(1);
            Report::Visited(Box::new(Visit {
                clocks: Clocks { wall: now, boot, boot_id: 1, outside: None },
                probes: Some(true),
                stores: Some(true),
                evidence: rotation.plan().workloads.iter().map(|_| everyone).collect(),
                usage: Some(UsageSample { asked_at: now, last_used_at: None }),
                notes: Vec::new(),
            }))
        }
        _ => Report::Plain,
    }
}
