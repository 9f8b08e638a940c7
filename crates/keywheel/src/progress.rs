//! Progress: the journal made visible, one line a step, on stderr.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use keywheel_core::event::{Event, Report, Step};
use keywheel_core::evidence::Count;
use keywheel_core::plan::RotationId;
use keywheel_core::rotation::{Rotation, Why};
use keywheel_core::time::{Span, Timestamp};
use keywheel_engine::Watch;
use keywheel_journal::Resource;

use crate::output::Output;
use crate::words;

/// How long a step may take before it is told that it is still under way; then each time twice as long.
const SLOW: Duration = Duration::from_secs(10);

/// Prints a line for each step and each record that people want to know of.
pub(crate) struct Progress {
    output: Output,
    open: Arc<Mutex<Vec<Open>>>,
    /// The last roll that was told of, so that one that several rotations share is told once.
    told: Mutex<Option<(String, Timestamp)>>,
    /// Why steps have no answer whose record is about to be made.
    unanswered: Mutex<Vec<(RotationId, Step, String)>>,
}

/// A step whose call has not come back.
struct Open {
    rotation: RotationId,
    step: Step,
    line: words::Line,
    since: Instant,
    limit: Span,
    told_after: Duration,
}

impl Progress {
    /// Speaks where `output` says, for as long as it is kept.
    pub(crate) fn new(output: Output) -> Self {
        let open = Arc::default();
        tokio::spawn(tell_of_slow_steps(Arc::downgrade(&open), output));
        Self { output, open, told: Mutex::default(), unanswered: Mutex::default() }
    }

    fn began(&self, rotation: &Rotation, step: Step, limit: Span) {
        let by_hand = rotation.plan().by_hand(step);
        let open = Open {
            rotation: rotation.id().clone(),
            step,
            line: words::step(rotation.plan(), step),
            since: Instant::now(),
            limit,
            // A person who is at it is not disturbed.
            told_after: by_hand.map_or(SLOW, Into::into),
        };
        self.open.lock().expect("no holder of the lock panics").push(open);
    }

    /// Returns how long the step took.
    fn ended(&self, rotation: &Rotation, step: Step) -> Duration {
        let mut open = self.open.lock().expect("no holder of the lock panics");
        let is_it = |open: &Open| open.rotation == *rotation.id() && open.step == step;
        match open.iter().position(is_it) {
            Some(index) => open.swap_remove(index).since.elapsed(),
            None => Duration::ZERO,
        }
    }

    /// Returns why a step has no answer, where that was told.
    fn why(&self, rotation: &Rotation, step: Step) -> Option<String> {
        let mut unanswered = self.unanswered.lock().expect("no holder of the lock panics");
        let is_it = |(id, of, _): &(RotationId, Step, String)| id == rotation.id() && *of == step;
        let index = unanswered.iter().position(is_it)?;
        Some(unanswered.swap_remove(index).2)
    }

    fn line(&self, line: &words::Line, rest: &str) {
        self.output.note(&format!("  {:<10} {}{rest}", line.step, line.what));
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
            Event::Intended { step, until, .. } => self.began(rotation, *step, until.since(at)),
            Event::Done { step, report } => {
                let took = self.ended(rotation, *step);
                let line = words::step(plan, *step);
                let is_told = matches!(step, Step::Roll { .. }) && self.is_told(&line, at);
                if *step != Step::Visit && !is_told {
                    self.line(&line, &format!("{}{}", seen(report), elapsed(took)));
                }
            }
            Event::Refused { step, refusal } => {
                self.ended(rotation, *step);
                self.line(&words::step(plan, *step), &format!("\n             refused: {refusal}"));
            }
            Event::Unknown { step } => {
                self.ended(rotation, *step);
                let line = words::step(plan, *step);
                let why = self.why(rotation, *step).map(|why| format!(" ({why})"));
                let why = why.unwrap_or_default();
                self.line(&line, &format!("\n             no answer: it will be observed{why}"));
            }
            _ => {
                if let Some(line) = words::record(plan, event) {
                    self.line(&line, "");
                }
            }
        }
    }

    fn unanswered(&self, rotation: &Rotation, step: Step, reason: &str) {
        let mut unanswered = self.unanswered.lock().expect("no holder of the lock panics");
        unanswered.push((rotation.id().clone(), step, reason.to_owned()));
    }

    fn busy(&self, resource: &Resource, other: &RotationId) {
        let what = format!("for rotation {other}, which is moving {}", resource.0);
        let line = words::Line { step: "wait", what, undo: "-" };
        if !self.is_told(&line, Timestamp::default()) {
            self.line(&line, "");
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
        _ => words::noted(report),
    }
}

fn elapsed(took: Duration) -> String {
    if took >= Duration::from_millis(100) { format!("  {}", span(took)) } else { String::new() }
}

fn span(length: Duration) -> Span {
    Span::millis(u64::try_from(length.as_millis()).unwrap_or(u64::MAX))
}

/// Says of each step that is under way for long what it is, how long it has taken, and how long it may.
async fn tell_of_slow_steps(open: Weak<Mutex<Vec<Open>>>, output: Output) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let Some(open) = open.upgrade() else { return };
        for open in open.lock().expect("no holder of the lock panics").iter_mut() {
            let elapsed = open.since.elapsed();
            if elapsed < open.told_after {
                continue;
            }
            open.told_after *= 2;
            let seconds = Span::seconds(elapsed.as_secs());
            let words::Line { step, what, .. } = &open.line;
            output.note(&format!("  {step:<10} {what}: {seconds} of at most {}", open.limit));
        }
    }
}
