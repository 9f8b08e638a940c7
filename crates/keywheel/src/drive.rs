//! Running rotations from a command: stop signals, what is printed at the end, and the exit code.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use keywheel_core::event::{Because, Death, Outcome, ParkReason, Step};
use keywheel_core::plan::RotationId;
use keywheel_core::planted;
use keywheel_core::rotation::{Next, Rotation};
use keywheel_core::strategy::Side;
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::VersionId;
use keywheel_engine::run::{Group, Until};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Exit;
use crate::incident;
use crate::output::{Failure, Format, Output};
use crate::queue::Waiting;
use crate::session::{Session, engine_failure};
use crate::{notify, words};

/// The longest wait of a retirement that a command without `--soak` sits out.
const PATIENCE: Span = Span::seconds(2);

/// Groups that can run, and why others cannot: one bad item stops no other (H20).
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) groups: Vec<Group>,
    pub(crate) failures: Vec<Failure>,
}

impl Taken {
    /// Notes what became of taking up one group.
    pub(crate) fn add(&mut self, group: Result<Group, Failure>) -> Result<(), Failure> {
        match group {
            Ok(group) => self.groups.push(group),
            Err(failure) if planted!("one_failure_stops_all") => return Err(failure),
            Err(failure) => self.failures.push(failure),
        }
        Ok(())
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.groups.extend(other.groups);
        self.failures.extend(other.failures);
    }

    /// Whether one of them ends suspects, and with these what they signed.
    pub(crate) fn has_emergency(&self) -> bool {
        let mut rotations = self.groups.iter().flat_map(Group::rotations);
        rotations.any(|rotation| rotation.plan().is_emergency())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.failures.is_empty()
    }
}

/// Runs what can run, says how that and what waits in the queue stand then, and fails with what could not run.
pub(crate) async fn run(
    session: &Session,
    Taken { groups, failures }: Taken,
    queued: &[Waiting],
    rest: bool,
    output: Output,
) -> Result<Exit, Failure> {
    let stand = go(session, groups, rest, output).await;
    tell_all(session, stand, failures, queued, output).await
}

/// Runs what can run, and then what follows from it, and says how all of it stands then. Whatever fails of the one keeps nothing of
/// the other from running; after a stop nothing follows.
pub(crate) async fn run_followed(
    session: &Session,
    Taken { groups, mut failures }: Taken,
    follow: impl AsyncFnOnce() -> Result<Taken, Failure>,
    rest: bool,
    output: Output,
) -> Result<Exit, Failure> {
    let mut stand = go(session, groups, rest, output).await;
    if stand.stopped && !planted!("follows_after_a_stop") {
        output.note("nothing more is begun; `keywheel resume --all` looks what hangs on these");
    } else if stand.failures.is_empty() || !planted!("one_failure_stops_all") {
        match follow().await {
            Ok(followed) => {
                failures.extend(followed.failures);
                stand.extend(go(session, followed.groups, rest, output).await);
            }
            Err(failure) => failures.push(failure),
        }
    }
    tell_all(session, stand, failures, &[], output).await
}

async fn tell_all(
    session: &Session,
    mut stand: Stand,
    mut failures: Vec<Failure>,
    queued: &[Waiting],
    output: Output,
) -> Result<Exit, Failure> {
    failures.splice(0..0, stand.failures.drain(..));
    let told = match stand.rotations.is_empty() && queued.is_empty() && !failures.is_empty() {
        true => Ok(Exit::Refused),
        false => stand.tell(session, queued, output),
    };
    notify::deliver(session, output).await;
    ended(told, failures)
}

/// Says how a run ended, beside what could not run at all.
pub(crate) fn ended(ran: Result<Exit, Failure>, failures: Vec<Failure>) -> Result<Exit, Failure> {
    let (exit, failure) = match ran {
        Ok(exit) => (exit, None),
        Err(failure) => (failure.exit, Some(failure)),
    };
    Failure::of_all(failure.into_iter().chain(failures)).map_or(Ok(exit), Err)
}

/// How rotations stand after a run.
pub(crate) struct Stand {
    pub(crate) rotations: Vec<Rotation>,
    /// Those that were promoted before the run already.
    waited: Vec<RotationId>,
    /// Whether somebody asked to stop.
    pub(crate) stopped: bool,
    /// Why others are not among them.
    pub(crate) failures: Vec<Failure>,
}

/// Runs groups side by side, so that one that hangs or fails delays nobody else.
pub(crate) async fn go(session: &Session, groups: Vec<Group>, rest: bool, output: Output) -> Stand {
    let before = groups.iter().flat_map(Group::rotations);
    let waited = before.filter(|one| one.retires()).map(|one| one.id().clone()).collect();
    stop_on_signals(output);
    let until = Until { rest, patience: PATIENCE, stop: &STOP };
    let runs = groups.into_iter().map(|mut group| async {
        let ran = session.engine.run(&mut group, &until).await;
        (group, ran)
    });
    let mut rotations = Vec::new();
    let mut failures = Vec::new();
    for (group, ran) in join_all(runs).await {
        match ran {
            Ok(_) => rotations.extend(group.rotations().cloned()),
            Err(error) => failures.push(engine_failure(error)),
        }
    }
    Stand { rotations, waited, stopped: STOP.load(Ordering::SeqCst), failures }
}

/// Set once this program is asked to stop; whatever a command runs ends after the step under way.
pub(crate) static STOP: AtomicBool = AtomicBool::new(false);

/// Listens, once for the whole program. The first signal asks to stop after the step under way; the second one leaves at once,
/// which is safe because the intent of every step is journaled before it begins.
fn stop_on_signals(output: Output) {
    static LISTENS: Once = Once::new();
    LISTENS.call_once(|| {
        tokio::spawn(async move {
            let heard = |kind| signal(kind).ok();
            let (Some(mut interrupt), Some(mut terminate)) =
                (heard(SignalKind::interrupt()), heard(SignalKind::terminate()))
            else {
                return;
            };
            for times in 0.. {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if times > 0 {
                    output.note("left at once; `keywheel resume` goes on from the last intent");
                    std::process::exit(i32::from(Exit::NeedsOperator.number()));
                }
                STOP.store(true, Ordering::SeqCst);
                output.note("stopping after this step; once more leaves at once");
            }
        });
    });
}

impl Stand {
    /// Adds how further rotations stand.
    pub(crate) fn extend(&mut self, other: Self) {
        self.rotations.extend(other.rotations);
        self.waited.extend(other.waited);
        self.stopped |= other.stopped;
        self.failures.extend(other.failures);
    }

    /// Says what is true of these rotations now, and of requests that wait in the queue, and which exit code that is.
    pub(crate) fn tell(
        &self,
        session: &Session,
        queued: &[Waiting],
        output: Output,
    ) -> Result<Exit, Failure> {
        let rotations = &self.rotations;
        match output.format {
            Format::Json => {
                let ran = rotations.iter().map(|rotation| summary(session, rotation));
                let list: Vec<Value> = ran.chain(queued.iter().map(Waiting::json)).collect();
                output.json(&json!({ "rotations": list }))?;
            }
            Format::Text => {
                let is_news = |rotation: &&Rotation| !output.quiet || self.is_news(rotation);
                let ran = rotations
                    .iter()
                    .filter(is_news)
                    .map(|rotation| ending(session, rotation, &self.back(rotation)));
                let lines: String = ran.chain(queued.iter().map(Waiting::text)).collect();
                output.text(&lines)?;
            }
        }
        let mut incidents: Vec<_> =
            rotations.iter().filter_map(|one| incident::id_of(one.plan())).collect();
        incidents.dedup();
        for id in incidents {
            output.note(&format!(
                "exposure, outage, logs and what else may be exposed: keywheel incident show {id}"
            ));
        }
        if let Some(hint) = not_attributed(rotations) {
            output.note(&hint);
        }
        if self.stopped && rotations.iter().any(|rotation| rotation.outcome().is_none()) {
            output.note("stopped; `keywheel resume` goes on");
        }
        Ok(rotations.iter().map(exit).max_by_key(|exit| weight(*exit)).unwrap_or(Exit::Done))
    }

    /// Cron need not tell again and again what is only waited for.
    fn is_news(&self, rotation: &Rotation) -> bool {
        rotation.outcome().is_some()
            || rotation.parked().is_some()
            || !self.waited.contains(rotation.id())
    }

    /// The line that offers `undo`; empty where there is no way back. Members of a batch turn round together or not at all.
    fn back(&self, rotation: &Rotation) -> String {
        let batch = &rotation.plan().batch;
        let together = |other: &&Rotation| {
            other.id() == rotation.id()
                || (!batch.is_empty() && other.plan().batch == *batch && other.outcome().is_none())
        };
        let mut members = self.rotations.iter().filter(together);
        if members.all(|member| member.way_back().is_ok()) {
            format!("  back: keywheel undo {}\n", rotation.plan().secret)
        } else {
            String::new()
        }
    }
}

/// Members of a batch that were undone by a roll that they shared: nobody knows which of them it was.
fn not_attributed(rotations: &[Rotation]) -> Option<String> {
    let failed_at_roll = |rotation: &&Rotation| {
        let because = rotation.turned_back_because();
        matches!(because, Some(Because::Step { step: Step::Roll { .. }, .. }))
            && !rotation.plan().batch.is_empty()
    };
    let failed: Vec<&str> =
        rotations.iter().filter(failed_at_roll).map(|one| one.plan().secret.name()).collect();
    (failed.len() > 1).then(|| {
        format!(
            "they shared the roll that failed, so which of them it was is not known: `keywheel rotate {} --separately` tells",
            failed.join(" ")
        )
    })
}

/// Returns what programs are told of a rotation.
pub(crate) fn summary(session: &Session, rotation: &Rotation) -> Value {
    let plan = rotation.plan();
    json!({
        "secret": plan.secret,
        "rotation": rotation.id(),
        "plan": plan.hash(),
        "incident": incident::id_of(plan),
        "strategy": words::strategy(plan.strategy),
        "version": plan.pending,
        "outcome": outcome(rotation),
        "phase": rotation.phase().to_string(),
        "because": rotation.turned_back_because().map(|because| words::turned_back(plan, because)),
        "parked": rotation.parked().map(|reason| words::parked(rotation.plan(), reason)),
        "owed_at": owed_at(session, rotation),
        "old_refused": old_refused(rotation),
        "old_refused_reason": reason_unasked(rotation),
    })
}

fn outcome(rotation: &Rotation) -> &'static str {
    match rotation.outcome() {
        Some(Outcome::Completed) => "completed",
        Some(Outcome::Undone) => "undone",
        Some(Outcome::Superseded) => "superseded",
        None if rotation.parked().is_some() => "needs_operator",
        None if rotation.promoted_side() == Side::Pending && rotation.toward() == Side::Pending => {
            "promoted"
        }
        None => "open",
    }
}

fn owed_at(session: &Session, rotation: &Rotation) -> Option<String> {
    match rotation.next(session.now()) {
        Next::Wait { until, .. } => Some(words::rfc3339(until)),
        Next::Operator(_) | Next::Rest(_) => None,
        _ => Some(words::rfc3339(session.now())),
    }
}

/// Whether the version that was ended is refused: true only where somebody who can know said so.
pub(crate) fn old_refused(rotation: &Rotation) -> Option<bool> {
    let deaths: Vec<Option<Death>> =
        rotation.retiring().into_iter().map(|version| rotation.ending().death(version)).collect();
    (!deaths.is_empty() && deaths.iter().all(|death| *death == Some(Death::Refused)))
        .then_some(true)
}

fn reason_unasked(rotation: &Rotation) -> Option<String> {
    let mut deaths =
        rotation.retiring().into_iter().filter_map(|version| rotation.ending().death(version));
    deaths.find_map(|death| match death {
        Death::NoOneToAsk => Some("no one to ask".into()),
        Death::EndsAt { at } => Some(format!("it ends by itself at {}", words::rfc3339(at))),
        _ => None,
    })
}

/// Returns when the version that was replaced ends, where nobody can end it before.
fn ends_at(rotation: &Rotation) -> Option<Timestamp> {
    let deaths = rotation.retiring().into_iter().map(|version| rotation.ending().death(version));
    let ends = deaths.filter_map(|death| match death {
        Some(Death::EndsAt { at }) => Some(at),
        _ => None,
    });
    ends.max()
}

fn ending(session: &Session, rotation: &Rotation, back: &str) -> String {
    let plan = rotation.plan();
    let (secret, new) = (&plan.secret, plan.pending);
    let old =
        plan.previous.as_ref().map_or("nothing".into(), |previous| previous.version.to_string());
    match (rotation.outcome(), rotation.parked()) {
        (Some(Outcome::Completed), _) if plan.previous.is_none() => {
            format!("{secret}: completed; {new} is current, the first version\n")
        }
        (Some(Outcome::Completed), _) => {
            let dead = match (old_refused(rotation), ends_at(rotation)) {
                (Some(true), _) => "refused everywhere".into(),
                (_, Some(at)) => {
                    format!("accepted until {}, when it ends by itself", words::when(at))
                }
                _ => "ended; there was no one to ask".into(),
            };
            format!("{secret}: completed; {new} is current, {old} is {dead}\n")
        }
        (Some(Outcome::Undone), _) => {
            let because =
                rotation.turned_back_because().map(|because| words::turned_back(plan, because));
            let because =
                because.map(|because| format!("  because: {because}\n")).unwrap_or_default();
            if rotation.mint_attempts() == 0 {
                format!("{secret}: refused; nothing was changed, {old} is current\n{because}")
            } else {
                format!("{secret}: undone; {old} is current, {new} is ended\n{because}")
            }
        }
        (Some(Outcome::Superseded), _) => format!("{secret}: taken over by an emergency\n"),
        (None, Some(reason)) => {
            let name_it = match reason {
                ParkReason::IdUnknown { .. } => " --previous-id ID",
                _ => "",
            };
            format!(
                "{secret}: needs you: {}\n  then: keywheel resume {secret}{name_it}\n{back}  \
                 or close it on your word: keywheel resolve {secret} --as completed|undone --because \"…\"\n",
                words::parked(plan, reason)
            )
        }
        (None, None) => owed(session, rotation, back),
    }
}

fn owed(session: &Session, rotation: &Rotation, back: &str) -> String {
    let plan = rotation.plan();
    let (secret, new) = (&plan.secret, plan.pending);
    let old =
        plan.previous.as_ref().map_or("nothing".into(), |previous| previous.version.to_string());
    let next = match rotation.next(session.now()) {
        Next::Wait { until, .. } => {
            format!("{} ({})", words::when(until), words::distance(until, session.now()))
        }
        _ => "now".into(),
    };
    let is_suspended = |version: &VersionId| rotation.ending().suspended_at(*version).is_some();
    let works = match rotation.retiring().first() {
        _ if rotation.is_browned_out() => {
            "stays suspended for a brown-out until the next command resumes it,"
        }
        Some(version) if is_suspended(version) => "is suspended",
        _ => "still works",
    };
    if rotation.retires() && rotation.toward() == Side::Pending {
        format!(
            "{secret}: promoted; {new} is current, {old} {works} and is ended later: next look {next}\n  \
             for cron: keywheel resume --all --quiet -e {}\n{back}",
            secret.environment()
        )
    } else if rotation.retires() {
        format!(
            "{secret}: turned round; {old} is current again, {new} {works} and is ended later: next look {next}\n  \
             for cron: keywheel resume --all --quiet -e {}\n",
            secret.environment()
        )
    } else {
        format!(
            "{secret}: {}; next step {next}\n  goes on with: keywheel resume {secret}\n",
            rotation.phase()
        )
    }
}

fn exit(rotation: &Rotation) -> Exit {
    match rotation.outcome() {
        Some(Outcome::Undone) if rotation.mint_attempts() == 0 => Exit::Refused,
        Some(Outcome::Undone) => Exit::Undone,
        Some(_) => Exit::Done,
        None if rotation.parked().is_some() => Exit::NeedsOperator,
        // Only a command that was asked to stop leaves one suspended.
        None if rotation.is_browned_out() => Exit::NeedsOperator,
        None if rotation.retires() => Exit::Done,
        None => Exit::NeedsOperator,
    }
}

/// Whether readers have what the rotation walks towards: what is left is the retirement of the other version.
fn weight(exit: Exit) -> u8 {
    match exit {
        Exit::Done => 0,
        Exit::Refused => 1,
        Exit::Undone => 2,
        _ => 3,
    }
}
