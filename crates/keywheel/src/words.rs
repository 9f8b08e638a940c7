//! Steps and times in words for people: the same ones in `plan`, in progress lines and in `rotation show`.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp as Instant};
use keywheel_core::call::{Refusal, RefusalKind};
use keywheel_core::event::{Because, Event, Outcome, ParkReason, Report, Step};
use keywheel_core::facts::Authority;
use keywheel_core::plan::{Plan, Policy, Role, Slot};
use keywheel_core::rotation::Why;
use keywheel_core::strategy::{Arrangement, Position, Side, Strategy};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::VersionId;

/// Below it, minutes are too coarse.
const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// Returns the name of a strategy.
pub(crate) fn strategy(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Overlap => "overlap",
        Strategy::Keyring { .. } => "keyring",
        Strategy::Alternate => "alternate",
        Strategy::Cutover => "cutover",
        Strategy::Lease => "lease",
        Strategy::Append => "append",
    }
}

/// One line of a plan or of progress.
pub(crate) struct Line {
    /// The kind of step.
    pub(crate) step: &'static str,
    /// What it does.
    pub(crate) what: String,
    /// How it is undone.
    pub(crate) undo: &'static str,
}

/// Puts a step into words.
pub(crate) fn step(plan: &Plan, step: Step) -> Line {
    let name = plan.secret.name();
    let issuer = &plan.issuer.bound.name;
    let line = |step, what: String, undo| Line { step, what, undo };
    let workload = |index: u8| plan.workloads[usize::from(index)].bound.name.as_str();
    match step {
        Step::Preflight => {
            line("preflight", format!("{name}: permissions, quotas, stores, workloads"), "-")
        }
        Step::Capture => {
            line("capture", format!("{name}: what every store holds now, sealed"), "-")
        }
        Step::Mint { attempt } => {
            let label = plan.rotation().label(attempt);
            let what = if plan.issuer.facts.label {
                format!("{issuer}: {label}")
            } else {
                format!("{name} {}", plan.pending)
            };
            line("mint", what, if plan.issuer.facts.destroy { "revoke it" } else { "forget it" })
        }
        Step::FindMint { attempt } => {
            line("find", format!("{issuer}: what became of attempt {attempt}"), "-")
        }
        Step::RevokeStray { .. } => {
            line("revoke", format!("{issuer}: a stray that a lost answer left"), "none")
        }
        Step::Verify(version) => line("verify", acceptance(plan, version), "-"),
        Step::Write { store, to } => {
            let planned = &plan.stores[usize::from(store)];
            let is_lost = !planned.facts.is_readable() && plan.previous.is_none();
            let undo = if is_lost { "none" } else { "write back" };
            line("write", write(plan, usize::from(store), to), undo)
        }
        Step::Roll { workload: index, .. } => {
            line("roll", format!("{}: one replica at a time", workload(index)), "write back, roll")
        }
        Step::Evidence { workload: index, .. } => {
            line("evidence", format!("{}: every replica holds it", workload(index)), "-")
        }
        Step::Probe { .. } => {
            let names: Vec<&str> =
                plan.probes.iter().map(|probe| probe.bound.name.as_str()).collect();
            line("probe", names.join(", "), "-")
        }
        Step::Visit => line("gates", format!("{name}: probes, drift, evidence, quiet"), "-"),
        Step::Suspend(version) => {
            line("suspend", format!("{name} {version}, reversibly"), "resume it")
        }
        Step::Resume(version) => line("resume", format!("{name} {version}"), "suspend it"),
        Step::Revoke(version) => line("revoke", format!("{name} {version}, for good"), "none"),
        Step::VerifyDead(version) => line("dead", death(plan, version), "-"),
        Step::Sweep => {
            line("sweep", format!("{issuer}: nothing else carries this rotation's label"), "-")
        }
        Step::Extend => line("extend", format!("{name}: its lease"), "-"),
        Step::KeepAlive(version) => line("extend", format!("{name}: the lease of {version}"), "-"),
        Step::CleanUp { store } => {
            let store = &plan.stores[usize::from(store)].bound.name;
            line("clean up", format!("{store}: what was kept for the way back"), "-")
        }
    }
}

fn acceptance(plan: &Plan, version: VersionId) -> String {
    let name = plan.secret.name();
    match plan.acceptances() {
        1 => format!("{name} {version} is accepted"),
        times => format!("{name} {version} is accepted {times} times in a row"),
    }
}

fn death(plan: &Plan, version: VersionId) -> String {
    let name = plan.secret.name();
    let facts = &plan.issuer.facts;
    match facts.authority {
        Authority::Issuer if facts.lease.is_some() && !facts.destroy => {
            format!("{name} {version}: it ends by itself")
        }
        Authority::Issuer => {
            format!("{name} {version}: its issuer refuses it, and accepts the other")
        }
        Authority::Workload => {
            format!("{name} {version}: every replica refuses it, and accepts the other")
        }
        Authority::None => format!("{name} {version}: there is no one to ask"),
    }
}

fn write(plan: &Plan, store: usize, to: Position) -> String {
    let arrangement = plan.strategy.line(plan.is_emergency()).at(to);
    let store = &plan.stores[store];
    let slots = store
        .slots
        .iter()
        .map(|slot| format!("{} ← {}", slot.address, content(plan, slot, arrangement)));
    let slots = slots.collect::<Vec<_>>().join(", ");
    let attested = if store.facts.is_readable() { "" } else { " (attested)" };
    format!("{}: {slots}{attested}", store.bound.name)
}

fn content(plan: &Plan, slot: &Slot, arrangement: Arrangement) -> String {
    let side = match slot.role {
        Role::Current => Some(arrangement.current),
        Role::AlsoAccepted => arrangement.also,
    };
    match side {
        Some(Side::Pending) => plan.pending.to_string(),
        Some(Side::Previous) => {
            plan.previous.as_ref().map_or("empty".into(), |previous| previous.version.to_string())
        }
        None => "empty".into(),
    }
}

/// Puts a record into words; none for records that need none.
pub(crate) fn record(plan: &Plan, event: &Event) -> Option<Line> {
    let line = |step, what: String| Some(Line { step, what, undo: "-" });
    let name = plan.secret.name();
    match event {
        Event::Promoted { side: Side::Pending } => {
            line("promote", format!("{name} {} is current; forward from here", plan.pending))
        }
        Event::Promoted { side: Side::Previous } => {
            line("promote", format!("{name}: the previous version is current again"))
        }
        Event::TurnedBack { because } => {
            line("undo", format!("{name}: {}", turned_back(plan, because)))
        }
        Event::Parked { reason } => line("parked", format!("{name}: {}", parked(plan, reason))),
        Event::Resumed => line("resumed", format!("{name}: everything is observed anew")),
        Event::StageClosed => line(
            "stage",
            format!("{name}: the suspect is ended although not every replica has moved"),
        ),
        Event::Resolved { outcome, because } => {
            line("resolved", format!("{name}: {outcome}, because {because}"))
        }
        Event::Superseded { by } => line("superseded", format!("{name}: by {by}")),
        Event::Ended { outcome: Outcome::Completed } => line("done", format!("{name}: completed")),
        Event::Ended { outcome } => line("done", format!("{name}: {outcome}")),
        _ => None,
    }
}

/// Says why a rotation is parked.
pub(crate) fn parked(plan: &Plan, reason: &ParkReason) -> String {
    match reason {
        ParkReason::Refused { step, refusal } if refusal.kind == RefusalKind::Conflict => {
            format!("drift: {}", failed(plan, *step, Some(refusal)))
        }
        ParkReason::Refused { step, refusal } => failed(plan, *step, Some(refusal)),
        ParkReason::OutOfPatience { step } => failed(plan, *step, None),
        other => other.to_string(),
    }
}

fn failed(plan: &Plan, of: Step, refusal: Option<&Refusal>) -> String {
    let line = step(plan, of);
    match refusal {
        Some(refusal) => format!("{} {}: {refusal}", line.step, line.what),
        None => format!("{} {}: not done in time", line.step, line.what),
    }
}

/// Says of an identifier that anybody may see why it is on no schedule, or that it is on one because somebody wanted it.
pub(crate) fn publishable(policy: &Policy) -> &'static str {
    match policy.unscheduled {
        true => {
            "publishable identifier, not a secret: on no schedule unless `policy:` is named explicitly"
        }
        false => {
            "publishable identifier, not a secret: on a schedule, since `policy:` is named explicitly"
        }
    }
}

/// Says what a step brought beside being done.
pub(crate) fn noted(report: &Report) -> String {
    match report {
        Report::Minted { notes, .. } if !notes.is_empty() => format!("; {}", notes.join("; ")),
        Report::Noted { notes } => format!("; passed over: {}", notes.join("; ")),
        Report::Captured { passed_over, .. } if !passed_over.is_empty() => {
            format!("; passed over: {}", passed_over.join("; "))
        }
        Report::Revoked { behind, stores } => {
            let mut text = String::new();
            if !behind.is_empty() {
                let count: usize = behind.iter().map(|behind| behind.replicas.len()).sum();
                let is_unknown = behind.iter().any(|behind| behind.unknown.is_some());
                let unknown = if is_unknown { " at least" } else { "" };
                let count = counted(count, "replica");
                text.push_str(&format!("; out until they hold the new version: {count}{unknown}"));
            }
            if !stores.is_empty() {
                let count = counted(stores.len(), "store");
                text.push_str(&format!("; may still hold the suspect: {count}"));
            }
            text
        }
        _ => String::new(),
    }
}

/// Says why a rotation turned round.
pub(crate) fn turned_back(plan: &Plan, because: &Because) -> String {
    match because {
        Because::Operator { because } => format!("asked for: {because}"),
        Because::Step { step, refusal } => failed(plan, *step, refusal.as_ref()),
        Because::Batch => "another member of the batch failed at a shared roll".into(),
    }
}

/// Says what a wait is for.
pub(crate) fn why(why: Why) -> String {
    match why {
        Why::Retry(step) => format!("{} is tried again", keywheel_engine::run::name(step)),
        Why::Stage => {
            "the suspects are ended then; mend what is out, and `keywheel resume` tries it at once"
                .into()
        }
        Why::Settle => "a call without an answer can no longer land then".into(),
        Why::Tokens => "tokens of the version that is dropped have expired then".into(),
        Why::Runs => "runs that may have begun with the version have ended then".into(),
        Why::Soak => "soak: the gates are looked at then".into(),
        Why::BrownOut => {
            "brown-out: the gates are looked at then, and the version is resumed at its end".into()
        }
        Why::Rollback => "rollback window: the gates are looked at then".into(),
    }
}

/// Puts an instant into words, in this machine's zone: `Tue 24 Nov 09:14`, with the year where it is another one, and with
/// seconds where it is less than an hour away.
pub(crate) fn when(at: Timestamp) -> String {
    let zone = TimeZone::system();
    let Ok(instant) = Instant::from_millisecond(at.millis()) else { return "never".into() };
    let (then, now) = (instant.to_zoned(zone.clone()), Instant::now());
    let form = if instant.duration_since(now).abs() < HOUR {
        "%a %d %b %H:%M:%S"
    } else if now.to_zoned(zone).year() == then.year() {
        "%a %d %b %H:%M"
    } else {
        "%a %d %b %Y %H:%M"
    };
    then.strftime(form).to_string()
}

/// Puts an instant into the form that programs read: RFC 3339, UTC.
pub(crate) fn rfc3339(at: Timestamp) -> String {
    Instant::from_millisecond(at.millis())
        .map_or_else(|_| "never".into(), |instant| instant.to_string())
}

/// Puts an instant into the form of a log, with its zone.
pub(crate) fn logged(at: Timestamp) -> String {
    let Ok(instant) = Instant::from_millisecond(at.millis()) else { return "never".into() };
    instant.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string()
}

/// Says how far off an instant is: `in 4 min`, `2 h ago`.
pub(crate) fn distance(at: Timestamp, now: Timestamp) -> String {
    if at >= now {
        format!("in {}", rounded(at.since(now)))
    } else {
        format!("{} ago", rounded(now.since(at)))
    }
}

fn rounded(span: Span) -> Span {
    let unit = if span >= Span::days(1) {
        Span::hours(1)
    } else if span >= Span::minutes(2) {
        Span::minutes(1)
    } else {
        Span::seconds(1)
    };
    Span::millis(span.as_millis() / unit.as_millis() * unit.as_millis())
}

/// Counts things: `1 secret`, `3 secrets`.
pub(crate) fn counted(count: usize, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// Lays rows out in columns, each as wide as its widest cell.
pub(crate) fn table(rows: &[Vec<String>], indent: &str) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::from(indent);
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
