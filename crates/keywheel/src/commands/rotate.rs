//! `keywheel rotate`: plan, confirm, begin, run.

use std::sync::Arc;

use clap::Args;
use keywheel_core::plan::{Mode, Reason};
use keywheel_core::planted;
use keywheel_core::secret::SecretName;
use keywheel_core::time::Span;
use keywheel_driver::duration::Duration;
use serde_json::json;

use crate::cli::Globals;
use crate::config::{Config, Environment, Secret};
use crate::copies::Copies;
use crate::drive::{Stand, Taken};
use crate::exit::Exit;
use crate::output::{Failure, Format, Output};
use crate::prepare::{self, Prepared, Request};
use crate::progress::Progress;
use crate::queue::Asked;
use crate::select::Selection;
use crate::session::Session;
use crate::then::Then;
use crate::{code, confirm, drive, leases, notify, queue};

/// Rotate secrets: mint, verify, deliver, roll, prove, promote; then soak, end the former version, prove it dead
#[derive(Debug, Args)]
pub(crate) struct RotateArgs {
    #[command(flatten)]
    selection: Selection,
    /// Run exactly the plan with this hash, or refuse
    #[arg(long, value_name = "HASH")]
    plan: Option<String>,
    /// Stay until the former version is ended; otherwise return once the new one is promoted
    #[arg(long)]
    soak: bool,
    /// One rotation for each secret, with rolls of its own
    #[arg(long)]
    separately: bool,
    /// The present version is in other hands: forward only, no soak, no windows
    #[arg(long)]
    emergency: bool,
    /// In an emergency, revoke before anything is delivered: an outage, and the least exposure
    #[arg(long, requires = "emergency")]
    revoke_first: bool,
    /// In an emergency, how long delivery may take before the suspect is revoked all the same
    #[arg(long, value_name = "TIME", requires = "emergency", default_value = "10m")]
    stage_for: Duration,
    /// Rotate them in this environment too, once they have completed in the first one
    #[arg(long, value_name = "ENV", conflicts_with_all = ["emergency", "plan"])]
    then: Option<String>,
    /// Why, in your words
    #[arg(long, value_name = "TEXT")]
    because: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(args: &RotateArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let environment = args.selection.environment(&config)?;
    let secrets = args.selection.secrets(globals, &config).await?;
    let output = globals.output();
    if secrets.is_empty() {
        return nothing_due(output);
    }
    let then = match &args.then {
        Some(then) => {
            let environments = (environment, then.as_str());
            Some(Then::plan(globals, &config, environments, &secrets, &request(args)).await?)
        }
        None => None,
    };
    let session =
        Session::act(globals, &config, &environment.name, Arc::new(Progress::new(output)))?;
    let asked = if args.emergency {
        Asked { now: secrets.clone(), windows: Vec::new(), later: Vec::new() }
    } else {
        for secret in &secrets {
            prepare::check_order(globals, &config, secret).await?;
        }
        Asked::of(&session, &secrets).await?
    };
    if let Some(waiting) = asked.later.first().filter(|_| then.is_some()) {
        return Err(not_free(waiting.secret()));
    }
    let copies = Copies::of_same_name(&config, secrets.iter().copied()).await;
    let mut now = asked.now;
    if !asked.windows.is_empty() {
        let question = "Close the rollback window first? The former version is revoked then.";
        confirm::go_on(environment, question, confirm::SAY_YES, args.yes)?;
        let ran = close_windows(&session, &config, &asked.windows, output).await?;
        let is_open = ran.rotations.iter().any(|rotation| rotation.outcome().is_none());
        if is_open || ran.stopped {
            for waiting in &asked.later {
                waiting.note(&session, args.because.as_deref()).await?;
            }
            let told = ran.tell(&session, &asked.later, output);
            notify::deliver(&session, output).await;
            if is_open {
                return told;
            }
            let failure = Failure::new("stopped before the rotation that was asked for began");
            return Err(failure
                .exit(Exit::NeedsOperator)
                .now("the rollback window is closed; nothing else was begun")
                .hint("ask for it again"));
        }
        now.extend(asked.windows);
    }
    let batches = batches(args, &session, &config, &now).await?;
    for prepared in &batches {
        output.note(super::plan::text(prepared, session.now(), "").trim_end());
        check_hash(args.plan.as_deref(), prepared)?;
    }
    copies.tell(secrets.iter().copied(), output);
    if let Some(then) = &then {
        then.show(output);
    }
    if !args.yes {
        asked.later.iter().for_each(|waiting| output.note(waiting.text().trim_end()));
    }
    confirm(args, environment, &batches)?;
    if let Some(then) = &then {
        then.confirm(args.yes)?;
    }
    for waiting in &asked.later {
        waiting.note(&session, args.because.as_deref()).await?;
    }
    let mut taken = Taken::default();
    for prepared in &batches {
        taken.extend(prepare::begin(&session, prepared).await?);
    }
    match then {
        Some(then) => {
            then.run((globals, &config), &session, taken, &request(args), args.soak).await
        }
        // What the suspect signed ended with it, and its readers wait for what its successor signs.
        None if args.emergency && !planted!("tokens_of_a_suspect_are_left") => {
            let follow = async || leases::begin_due(&session, &config, environment).await;
            drive::run_followed(&session, taken, follow, args.soak, output).await
        }
        None => drive::run(&session, taken, &asked.later, args.soak, output).await,
    }
}

/// Ends the rollback windows before these secrets, once nothing else would keep them from being rotated.
async fn close_windows(
    session: &Session,
    config: &Config,
    secrets: &[&Secret],
    output: Output,
) -> Result<Stand, Failure> {
    for secret in secrets {
        prepare::check_ours(session, config, secret).await?;
    }
    let closing = queue::close_windows(session, secrets).await?;
    let mut stand = drive::go(session, closing, true, output).await;
    Failure::of_all(stand.failures.drain(..)).map_or(Ok(stand), Err)
}

/// The plans of what can begin now: together, or each by itself.
async fn batches(
    args: &RotateArgs,
    session: &Session,
    config: &Config,
    now: &[&Secret],
) -> Result<Vec<Vec<Prepared>>, Failure> {
    let mut batches = Vec::new();
    // The rotations of an emergency never share what they roll, but they are one incident.
    let is_apart = args.separately && !args.emergency;
    for together in now.chunks(if is_apart { 1 } else { now.len().max(1) }) {
        batches.push(prepare::plans(session, config, together, &request(args)).await?);
    }
    if args.emergency {
        // Its preflight does not wait for readers that nobody listed, so the plan names them.
        for prepared in &mut batches {
            prepare::compare_readers(prepared).await?;
        }
    }
    Ok(batches)
}

fn confirm(
    args: &RotateArgs,
    environment: &Environment,
    batches: &[Vec<Prepared>],
) -> Result<(), Failure> {
    let (question, hint) = match batches {
        [] => ("Queue this?", confirm::SAY_YES),
        _ => ("Run this plan?", confirm::READ_THE_PLAN),
    };
    let is_named = args.plan.is_some() && !batches.is_empty();
    confirm::go_on(environment, question, hint, args.yes || is_named)
}

fn not_free(secret: &SecretName) -> Failure {
    let failure = Failure::new(format!(
        "`{secret}` still retires a version, and nothing can follow what waits for that"
    ));
    let failure = failure.code(code::NOT_NOW).exit(Exit::Refused).now("nothing changed");
    failure.hint("`keywheel status` says until when; leave `--then` out to queue this one alone")
}

/// Says that nothing is due, which is no failure.
pub(crate) fn nothing_due(output: Output) -> Result<Exit, Failure> {
    match output.format {
        Format::Json => output.json(&json!({ "rotations": [] }))?,
        Format::Text if output.quiet => {}
        Format::Text => output.text("nothing is due\n")?,
    }
    Ok(Exit::Done)
}

fn request(args: &RotateArgs) -> Request {
    if !args.emergency {
        return Request::at_a_steady_pace(args.because.clone());
    }
    let stage_for = Span::from(args.stage_for);
    Request {
        reason: Reason::Compromised,
        because: args.because.clone(),
        mode: Mode::Emergency { revoke_first: args.revoke_first, stage_for },
        in_store: args.selection.in_store.clone(),
        extend: false,
    }
}

/// `--plan` runs exactly what was shown before (H127).
fn check_hash(wanted: Option<&str>, prepared: &[Prepared]) -> Result<(), Failure> {
    let Some(wanted) = wanted else { return Ok(()) };
    let hash = prepare::hash(prepared);
    if wanted.len() >= 6 && hash.0.starts_with(wanted) || planted!("another_plan_is_run") {
        return Ok(());
    }
    let failure = Failure::new(format!("the plan is {} now, not {wanted}", hash.short()));
    let failure = failure.code(code::PLAN_CHANGED).exit(Exit::Refused).now("nothing changed");
    Err(failure.hint(
        "the configuration or the journal changed since; read the plan above and name its hash",
    ))
}
