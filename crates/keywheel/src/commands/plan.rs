//! `keywheel plan`: what a rotation would do, step by step, and how each step is undone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use clap::Args;
use keywheel_core::event::{Event, Step};
use keywheel_core::forecast::{Coming, forecast};
use keywheel_core::plan::{Accept, CannotTell, Mode, Plan, Reason, WorkloadPlan};
use keywheel_core::strategy::Strategy;
use keywheel_core::time::Timestamp;
use serde_json::json;

use crate::cli::Globals;
use crate::copies::Copies;
use crate::exit::Exit;
use crate::exposed;
use crate::output::{Failure, Format};
use crate::prepare::{self, Prepared, Request};
use crate::select::Selection;
use crate::session::Session;
use crate::words;

/// Show what a rotation would do; changes nothing
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    selection: Selection,
    /// Why, in your words
    #[arg(long, value_name = "TEXT")]
    because: Option<String>,
}

pub(crate) async fn run(args: &PlanArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let environment = args.selection.environment(&config)?;
    let secrets = args.selection.secrets(globals, &config).await?;
    if secrets.is_empty() {
        return super::rotate::nothing_due(globals.output());
    }
    let session = Session::plan(globals, &config, &environment.name)?;
    let request = Request::at_a_steady_pace(args.because.clone());
    let mut prepared = prepare::plans(&session, &config, &secrets, &request).await?;
    prepare::compare_readers(&mut prepared).await?;
    let copies = Copies::of_same_name(&config, secrets.iter().copied()).await;
    let output = globals.output();
    match output.format {
        Format::Text => {
            let names: Vec<&str> = secrets.iter().map(|secret| secret.name.name()).collect();
            let run = format!("keywheel rotate {} -e {}", names.join(" "), environment.name);
            output.text(&text(&prepared, session.now(), &run))?;
            copies.tell(secrets.iter().copied(), output);
            for secret in &secrets {
                if let Some(open) = session.inventory(&secret.name).await?.and_then(|row| row.open)
                {
                    let (name, rotation, phase) = (&secret.name, &open.rotation, &open.phase);
                    output.note(&format!("  {name} has an open rotation, {rotation}, in phase {phase}: this plan is for after it"));
                }
            }
        }
        Format::Json => output.json(&json!({
            "plan": prepare::hash(&prepared),
            "environment": environment.name,
            "rotations": prepared.iter().map(|one| one.plan.as_ref()).collect::<Vec<_>>(),
            "steps": steps(&prepared, session.now()),
            "readers": prepared.iter().flat_map(|one| &one.readers).collect::<Vec<_>>(),
            "same_value": secrets.iter().flat_map(|secret| copies.of(&secret.name)).collect::<Vec<_>>(),
        }))?,
    }
    Ok(Exit::Done)
}

fn arcs(prepared: &[Prepared]) -> Vec<Arc<Plan>> {
    prepared.iter().map(|one| Arc::clone(&one.plan)).collect()
}

fn steps(prepared: &[Prepared], now: Timestamp) -> Vec<serde_json::Value> {
    let coming = forecast(&arcs(prepared), now);
    let told = coming.iter().filter_map(|coming| Some((coming, line(prepared, coming)?)));
    told.map(|(coming, line)| {
        let members: Vec<_> = coming.members.iter().map(|member| prepared[*member].plan.secret.to_string()).collect();
        json!({ "at": words::rfc3339(coming.at), "step": line.step, "what": line.what, "secrets": members })
    })
    .collect()
}

/// Puts plans into the table that people confirm.
pub(crate) fn text(prepared: &[Prepared], now: Timestamp, run: &str) -> String {
    let hash = prepare::hash(prepared);
    let first = &prepared[0].plan;
    let coming = forecast(&arcs(prepared), now);
    let count = words::counted(prepared.len(), "secret");
    let mut text = format!(
        "plan {} · {} · {count} · {} · disruption: {}\n",
        hash.short(),
        first.secret.environment(),
        rolls(prepared, &coming),
        disruption(prepared)
    );
    let heads: Vec<Vec<String>> = prepared.iter().map(|one| head(&one.plan)).collect();
    text.push_str(&words::table(&heads, "  "));
    text.push_str(&words::table(&rows(prepared, &coming, now), "  "));
    text.extend(prepared.iter().filter_map(|one| quiet(&one.plan)));
    text.extend(prepared.iter().filter_map(|one| brown_out(&one.plan)));
    text.extend(prepared.iter().flat_map(attested));
    text.push_str(&exposed(prepared));
    if prepared.iter().any(|one| one.adopted.is_some()) {
        text.push_str(
            "  values that are in use now are adopted as v1 first; they are not changed by that\n",
        );
    }
    for one in prepared {
        let name = one.plan.secret.name();
        text.extend(one.readers.iter().map(|found| format!("  {name}: {found}\n")));
    }
    if !run.is_empty() {
        text.push_str(&format!("  run it: {run} --plan {}\n", hash.short()));
    }
    text
}

/// Says how it is known that the former version is of no more use, where it is ended on that.
fn quiet(plan: &Plan) -> Option<String> {
    let facts = &plan.issuer.facts;
    let is_ended =
        facts.destroy || facts.suspend || matches!(plan.strategy, Strategy::Keyring { .. });
    let previous = plan.previous.as_ref().filter(|_| is_ended && plan.has_soak())?.version;
    let (name, issuer) = (plan.secret.name(), &plan.issuer.bound.name);
    let how = match (facts.last_used, plan.policy.cannot_tell) {
        (None, _) => format!(
            "whether {previous} is still used cannot be told: it is ended on the other gates alone"
        ),
        (Some(used), answer) => {
            let otherwise = match answer {
                CannotTell::Wait => "it waits",
                CannotTell::Allow => "it is ended all the same",
            };
            format!(
                "{previous} is ended once {issuer} tells no use of it (told after up to {}, to {}); without an answer {otherwise}",
                used.lag, used.granularity
            )
        }
    };
    Some(format!("  {name}: {how}\n"))
}

/// Says what becomes of the brown-out that policy asks for.
fn brown_out(plan: &Arc<Plan>) -> Option<String> {
    let whole = plan.policy.brownout.filter(|_| plan.has_soak())?;
    let previous = plan.previous.as_ref()?.version;
    let (name, issuer) = (plan.secret.name(), &plan.issuer.bound.name);
    let watched = match plan.probes.is_empty() {
        true => ", and no probe sees who misses it",
        false => ", watched",
    };
    Some(match plan.issuer.facts.suspend {
        true => format!(
            "  {name}: in the middle of soak {previous} is suspended for {whole}{watched}, and resumed\n"
        ),
        false => {
            format!("  {name}: no brown-out: {issuer} cannot suspend {previous} and resume it\n")
        }
    })
}

/// Says what is not known of stores that cannot be read, whether there is a way back for them, and how long runs are waited for.
fn attested(prepared: &Prepared) -> Vec<String> {
    let plan = &prepared.plan;
    let name = plan.secret.name();
    let unread = plan.stores.iter().filter(|store| !store.facts.is_readable());
    let mut told: Vec<String> = unread
        .map(|store| {
            let store = &store.bound.name;
            let back = match (&plan.previous, prepared.has_way_back) {
                (Some(previous), true) => format!("undo writes {} again", previous.version),
                _ => "there is no way back for it, since what it holds now is not known".into(),
            };
            format!(
                "  {name}: {store} cannot be read: what is written to it is attested, and {back}\n"
            )
        })
        .collect();
    let previous = plan.previous.as_ref().filter(|_| plan.has_soak());
    if let (Some(previous), Some(longest)) = (previous, plan.longest_run()) {
        let how = if plan.policy.soak < longest {
            "unless its issuer tells no use of it"
        } else {
            "so soak lasts that long"
        };
        told.push(format!(
            "  {name}: runs that began with {} go on with it for up to {longest}, {how}; no brown-out\n",
            previous.version
        ));
    }
    told
}

/// Counts the rolls of each workload, and those that there would be if each secret had its own.
fn rolls(prepared: &[Prepared], coming: &[Coming]) -> String {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for one in coming {
        let Event::Intended { step: Step::Roll { workload, .. }, .. } = &one.event else {
            continue;
        };
        let plan = &prepared[one.members[0]].plan;
        let workload = &plan.workloads[usize::from(*workload)].bound.name;
        let (together, apart) = counts.entry(workload).or_default();
        *together += 1;
        *apart += one.members.len();
    }
    let count = |(workload, (together, apart)): (&str, (usize, usize))| {
        let rolls = words::counted(together, "roll");
        match apart {
            _ if apart == together => format!("{rolls} of {workload}"),
            _ => format!("{rolls} of {workload}, shared ({apart} apart)"),
        }
    };
    let counts: Vec<String> = counts.into_iter().map(count).collect();
    if counts.is_empty() { "no roll".into() } else { counts.join(", ") }
}

/// What else may be in other hands, where that is why these plans are made.
fn exposed(prepared: &[Prepared]) -> String {
    let plans: Vec<&Plan> = prepared.iter().map(|one| one.plan.as_ref()).collect();
    let (exposed, not_listed) = exposed::merged(&plans);
    let mut text = String::new();
    if !exposed.is_empty() {
        text.push_str("  may be exposed too, since it stands in the same store:\n");
    }
    let rows: Vec<Vec<String>> = exposed
        .into_iter()
        .map(|one| vec![one.store.clone(), one.address.clone(), one.advice()])
        .collect();
    text.push_str(&words::table(&rows, "    "));
    for (store, why) in not_listed {
        text.push_str(&format!("  what else store `{store}` holds is not known: {why}\n"));
    }
    text
}

fn disruption(prepared: &[Prepared]) -> String {
    if prepared.iter().any(|one| one.plan.is_emergency()) {
        return emergency(prepared);
    }
    let accepts = |what: Accept| prepared.iter().any(|one| one.plan.policy.accept.contains(&what));
    if accepts(Accept::Outage) {
        return "an outage, which you accepted".into();
    }
    if accepts(Accept::SessionsEnd) {
        return "sessions end, which you accepted".into();
    }
    let workloads = prepared.iter().flat_map(|one| &one.plan.workloads);
    gaps(workloads).unwrap_or_else(|| "none".into())
}

fn gaps<'a>(workloads: impl Iterator<Item = &'a WorkloadPlan>) -> Option<String> {
    let gaps: BTreeSet<&str> = workloads
        .filter(|workload| workload.facts.gap)
        .map(|workload| workload.bound.name.as_str())
        .collect();
    let names: Vec<&str> = gaps.into_iter().collect();
    (!names.is_empty()).then(|| format!("requests fail while {} restarts", names.join(", ")))
}

/// What an emergency costs beside the end of its suspects.
fn emergency(prepared: &[Prepared]) -> String {
    let plans = || prepared.iter().map(|one| one.plan.as_ref());
    let revokes = plans().any(|plan| plan.issuer.facts.destroy && plan.previous.is_some());
    let ends = match prepared[0].plan.mode {
        Mode::Emergency { revoke_first: true, .. } if revokes => {
            Some("requests fail from the revoke until every replica holds the new version".into())
        }
        Mode::Emergency { revoke_first: false, stage_for } if revokes => {
            Some(format!("replicas that are not ready {stage_for} after the mint fail then"))
        }
        _ => None,
    };
    let signs = plans().any(|plan| matches!(plan.strategy, Strategy::Keyring { .. }));
    let sessions = signs.then(|| "sessions that a suspect signed end".into());
    let gaps = gaps(plans().flat_map(|plan| &plan.workloads));
    let all: Vec<String> = [ends, sessions, gaps].into_iter().flatten().collect();
    if all.is_empty() { "none".into() } else { all.join("; ") }
}

fn head(plan: &Plan) -> Vec<String> {
    let previous =
        plan.previous.as_ref().map_or("nothing".into(), |previous| previous.version.to_string());
    let reason = match plan.reason {
        Reason::Scheduled => "due",
        Reason::Requested => "requested",
        Reason::Expiring => "expiring",
        Reason::Compromised => "compromised",
    };
    vec![
        plan.secret.name().into(),
        words::strategy(plan.strategy).into(),
        format!("{previous} → {}", plan.pending),
        reason.into(),
    ]
}

/// One row a step. Checks that change nothing are folded away, except the first ones.
fn rows(prepared: &[Prepared], coming: &[Coming], now: Timestamp) -> Vec<Vec<String>> {
    let mut rows = vec![["when", "", "step", "what", "undo"].map(str::to_owned).to_vec()];
    let mut last_when = String::new();
    let mut number = 0;
    for one in coming {
        let Some(line) = line(prepared, one) else { continue };
        number += 1;
        let when = if one.at <= now { "now".into() } else { words::when(one.at) };
        let shown = if when == last_when { String::new() } else { when.clone() };
        last_when = when;
        let undo = if prepared[one.members[0]].plan.is_emergency() { "-" } else { line.undo };
        rows.push(vec![shown, number.to_string(), line.step.into(), line.what, undo.into()]);
    }
    rows
}

fn line(prepared: &[Prepared], coming: &Coming) -> Option<words::Line> {
    let plan = &prepared[coming.members[0]].plan;
    match &coming.event {
        Event::Intended {
            step:
                Step::Preflight
                | Step::Capture
                | Step::Evidence { .. }
                | Step::Sweep
                | Step::CleanUp { .. },
            ..
        } => None,
        Event::Intended { step, .. } => Some(with_help(plan, *step)),
        Event::Promoted { .. } => words::record(plan, &coming.event),
        _ => None,
    }
}

/// A step in words, and whether it takes a person.
fn with_help(plan: &Plan, step: Step) -> words::Line {
    let mut line = words::step(plan, step);
    if plan.by_hand(step).is_some() {
        line.what.push_str(" (guided: needs you)");
    }
    line
}
