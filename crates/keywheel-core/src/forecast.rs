//! What a plan will do if nothing goes wrong: the state machine itself, run in a world in which every step is done at once.

use std::sync::Arc;

use crate::event::{Death, Event, Report, Step};
use crate::evidence::Count;
use crate::gate::{Clocks, UsageSample, Visit};
use crate::plan::Plan;
use crate::rotation::{Next, Rotation};
use crate::time::{Span, Timestamp};
use crate::version::IssuedId;

/// One thing that will happen, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coming {
    /// When.
    pub at: Timestamp,
    /// What.
    pub event: Event,
}

/// Returns what `plan` will do from `now` on: its steps as they begin, and its records. Looks at the gates are left out.
pub fn forecast(plan: &Arc<Plan>, now: Timestamp) -> Vec<Coming> {
    let planned = Event::Planned(Arc::clone(plan));
    let rotation = Rotation::begin(now, &planned).expect("a plan begins a rotation");
    continue_forecast(rotation, now)
}

/// Returns what is still to come of a rotation, from `now` on.
pub fn continue_forecast(mut rotation: Rotation, mut now: Timestamp) -> Vec<Coming> {
    let began_at = now;
    let mut coming = Vec::new();
    // A plan has a few dozen steps; the bound only guards against a state machine that stands still.
    for _ in 0..10_000 {
        let event = match rotation.next(now) {
            Next::Do(step) => Event::Intended { step, until: now + rotation.plan().policy.call },
            Next::Record(event) => event,
            Next::Wait { until, .. } => {
                now = until;
                continue;
            }
            Next::Await(step) => Event::Done { step, report: ideal(&rotation, step, began_at, now) },
            Next::Operator(_) | Next::Rest(_) => break,
        };
        rotation.apply(now, &event).expect("next() owes what apply() takes");
        let is_news = !matches!(event, Event::Done { .. } | Event::Intended { step: Step::Visit, .. });
        if is_news {
            coming.push(Coming { at: now, event });
        }
    }
    coming
}

fn ideal(rotation: &Rotation, step: Step, began_at: Timestamp, now: Timestamp) -> Report {
    let everyone = Count { holds: 1, other: 0, unknown: 0 };
    match step {
        Step::Mint { .. } => Report::Minted { issued: Some(IssuedId::new("forecast")), fingerprint: None, expires_at: None },
        Step::Write { .. } => Report::Written { changed: true },
        Step::Evidence { .. } => Report::Seen(everyone),
        Step::Sweep => Report::Swept { strays: Vec::new() },
        Step::VerifyDead(_) => Report::Dead(Death::Refused),
        Step::Extend => Report::Extended { expires_at: now },
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
