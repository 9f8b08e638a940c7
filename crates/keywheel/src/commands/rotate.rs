//! `keywheel rotate`: plan, confirm, begin, run.

use std::sync::Arc;

use clap::Args;
use keywheel_core::plan::{Mode, Plan, Reason};
use keywheel_core::time::Span;
use keywheel_driver::duration::Duration;

use crate::cli::Globals;
use crate::exit::Exit;
use crate::output::Failure;
use crate::prepare::{self, Prepared, Request};
use crate::progress::Progress;
use crate::select::Selection;
use crate::session::{Session, engine_failure};
use crate::{code, confirm, drive};

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
    let session =
        Session::act(globals, &config, &environment.name, Arc::new(Progress::new(output)))?;
    if !args.emergency {
        for secret in &secrets {
            prepare::check_order(globals, &config, secret).await?;
        }
    }
    let mut batches = Vec::new();
    if args.separately {
        for secret in &secrets {
            batches.push(prepare::plans(&session, &config, &[secret], &request(args)).await?);
        }
    } else {
        batches.push(prepare::plans(&session, &config, &secrets, &request(args)).await?);
    }
    for prepared in &batches {
        check_free(&session, prepared).await?;
        output.note(super::plan::text(prepared, session.now(), "").trim_end());
        check_hash(args.plan.as_deref(), prepared)?;
    }
    confirm::go_on(environment, "Run this plan?", args.yes || args.plan.is_some())?;
    let mut groups = Vec::new();
    for prepared in &batches {
        prepare::note_adopted(&session, prepared).await?;
        let plans: Vec<Arc<Plan>> = prepared.iter().map(|one| Arc::clone(&one.plan)).collect();
        if plans.iter().all(|plan| plan.batch.len() > 1) {
            groups.push(session.engine.begin(&plans).await.map_err(engine_failure)?);
        } else {
            for plan in plans {
                groups.push(session.engine.begin(&[plan]).await.map_err(engine_failure)?);
            }
        }
    }
    drive::run(&session, groups, args.soak, output).await
}

fn request(args: &RotateArgs) -> Request {
    let mode = if args.emergency {
        Mode::Emergency { revoke_first: args.revoke_first, stage_for: Span::from(args.stage_for) }
    } else {
        Mode::Normal
    };
    let reason = if args.emergency { Reason::Compromised } else { Reason::Requested };
    Request { reason, because: args.because.clone(), mode }
}

/// A rotation that is open must be let go on or turned round first; only an emergency takes it over.
async fn check_free(session: &Session, prepared: &[Prepared]) -> Result<(), Failure> {
    for one in prepared.iter().filter(|one| one.plan.mode == Mode::Normal) {
        let secret = &one.plan.secret;
        if let Some(open) = session.inventory(secret).await?.and_then(|row| row.open) {
            let failure =
                Failure::new(format!("`{secret}` has an open rotation, {}", open.rotation));
            return Err(failure
                .code(code::OPEN_ALREADY)
                .exit(Exit::Refused)
                .now(format!("nothing changed; the open rotation is in phase {}", open.phase))
                .hint(format!("`keywheel resume {secret}` lets it go on, `keywheel undo {secret}` turns it round")));
        }
    }
    Ok(())
}

/// `--plan` runs exactly what was shown before (H127).
fn check_hash(wanted: Option<&str>, prepared: &[Prepared]) -> Result<(), Failure> {
    let Some(wanted) = wanted else { return Ok(()) };
    let hash = prepare::hash(prepared);
    if wanted.len() >= 6 && hash.0.starts_with(wanted) {
        return Ok(());
    }
    let failure = Failure::new(format!("the plan is {} now, not {wanted}", hash.short()));
    let failure = failure.code(code::PLAN_CHANGED).exit(Exit::Refused).now("nothing changed");
    Err(failure.hint(
        "the configuration or the journal changed since; read the plan above and name its hash",
    ))
}
