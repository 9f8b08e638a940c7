//! Progress: the journal made visible, one line a step, on stderr.

use std::collections::BTreeMap;
use std::sync::Mutex;

use keywheel_core::event::{Event, Report, Step};
use keywheel_core::evidence::Count;
use keywheel_core::plan::RotationId;
use keywheel_core::rotation::{Rotation, Why};
use keywheel_core::time::{Span, Timestamp};
use keywheel_engine::Watch;

use crate::output::Output;
use crate::words;

/// Prints a line for each step and each record that people want to know of.
pub(crate) struct Progress {
    output: Output,
    begun: Mutex<BTreeMap<RotationId, (Step, Timestamp)>>,
    /// The last roll that was told of, so that one that several rotations share is told once.
    told: Mutex<Option<(String, Timestamp)>>,
}

impl Progress {
    /// Speaks where `output` says.
    pub(crate) fn new(output: Output) -> Self {
        Self { output, begun: Mutex::default(), told: Mutex::default() }
    }

    fn line(&self, line: &words::Line, rest: &str) {
        self.output.note(&format!("  {:<10} {}{rest}", line.step, line.what));
    }

    fn began_at(&self, rotation: &Rotation, at: Timestamp) -> Timestamp {
        let begun = self.begun.lock().expect("no holder of the lock panics");
        begun.get(rotation.id()).map_or(at, |(_, since)| *since)
    }

    fn is_told(&self, line: &words::Line, at: Timestamp) -> bool {
        let mut told = self.told.lock().expect("no holder of the lock panics");
        let this = Some((format!("{} {}", line.step, line.what), at));
        std::mem::replace(&mut *told, this.clone()) == this
    }
}

impl Watch for Progress {
    fn recorded(&self, rotation: &Rotation, event: &Event, at: Timestamp) {
        let plan = rotation.plan();
        match event {
            Event::Intended { step, .. } => {
                let mut begun = self.begun.lock().expect("no holder of the lock panics");
                begun.insert(rotation.id().clone(), (*step, at));
            }
            Event::Done { step: Step::Visit, .. } => {}
            Event::Done { step, report } => {
                let line = words::step(plan, *step);
                let took = at.since(self.began_at(rotation, at));
                if !matches!(step, Step::Roll { .. }) || !self.is_told(&line, at) {
                    self.line(&line, &format!("{}{}", seen(report), elapsed(took)));
                }
            }
            Event::Refused { step, refusal } => {
                self.line(&words::step(plan, *step), &format!("\n             refused: {refusal}"));
            }
            Event::Unknown { step } => self
                .line(&words::step(plan, *step), "\n             no answer: it will be observed"),
            _ => {
                if let Some(line) = words::record(plan, event) {
                    self.line(&line, "");
                }
            }
        }
    }

    fn waiting(&self, until: Timestamp, why: Why) {
        let left = until.since(crate::session::now());
        if left >= Span::seconds(2) {
            self.output.note(&format!("  {:<10} {left}: {}", "wait", words::why(why)));
        }
    }
}

fn seen(report: &Report) -> String {
    match report {
        Report::Seen(count) if count.complete() => format!(" ({} of {0})", count.holds),
        Report::Seen(Count { holds, other, unknown }) => {
            format!(" ({holds} of {} hold it, {unknown} unknown)", holds + other + unknown)
        }
        _ => String::new(),
    }
}

fn elapsed(took: Span) -> String {
    if took >= Span::millis(100) { format!("  {took}") } else { String::new() }
}
