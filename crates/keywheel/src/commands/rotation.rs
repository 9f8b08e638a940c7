//! `keywheel rotation`: the rotations that the journal holds.

use clap::{Args, Subcommand};
use keywheel_core::event::{Event, Report, Step};
use keywheel_core::plan::RotationId;
use keywheel_core::rotation::Rotation;
use keywheel_core::time::Timestamp;
use keywheel_engine::recover::replay;
use keywheel_journal::{Record, RotationRow};
use serde_json::json;

use crate::cli::Globals;
use crate::exit::Exit;
use crate::output::{Failure, Format};
use crate::session::{Session, environment, journal_failure};
use crate::{code, drive, words};

/// Show rotations, open and ended
#[derive(Debug, Args)]
pub(crate) struct RotationArgs {
    #[command(subcommand)]
    command: RotationCommand,
    /// The environment
    #[arg(long, short, global = true, value_name = "ENV")]
    environment: Option<String>,
}

#[derive(Debug, Subcommand)]
enum RotationCommand {
    /// List rotations, newest first
    List {
        /// Of one secret only
        #[arg(value_name = "SECRET")]
        secret: Option<String>,
    },
    /// Show one rotation, record by record
    Show {
        /// Its id, or the first six digits or more
        #[arg(value_name = "ID")]
        id: String,
        /// As an entry for a rotation log
        #[arg(long)]
        markdown: bool,
    },
}

pub(crate) async fn run(args: &RotationArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let chosen = environment(&config, args.environment.as_deref())?;
    let session = Session::look(globals, &config, &chosen.name)?;
    let rows = session.journal.rotations(None).await.map_err(journal_failure)?;
    match &args.command {
        RotationCommand::List { secret } => {
            list(&session, &rows, secret.as_deref(), globals).await?
        }
        RotationCommand::Show { id, markdown } => {
            show(&session, &rows, id, *markdown, globals).await?
        }
    }
    Ok(Exit::Done)
}

async fn list(
    session: &Session,
    rows: &[RotationRow],
    secret: Option<&str>,
    globals: &Globals,
) -> Result<(), Failure> {
    let wanted = |row: &&RotationRow| {
        secret.is_none_or(|name| row.secret.name() == name || row.secret.to_string() == name)
    };
    let mut found = Vec::new();
    for row in rows.iter().filter(wanted) {
        let records = session.journal.records(&row.rotation).await.map_err(journal_failure)?;
        found.push((row, replay(&records).map_err(journal_failure)?));
    }
    let output = globals.output();
    match output.format {
        Format::Text => {
            let cells = |(row, rotation): &(&RotationRow, Rotation)| {
                vec![
                    row.rotation.0.clone(),
                    row.secret.to_string(),
                    rotation.phase().to_string(),
                    words::when(row.began_at),
                    words::when(row.last_at),
                ]
            };
            let mut table = vec![
                ["rotation", "secret", "phase", "began", "last record"].map(str::to_owned).to_vec(),
            ];
            table.extend(found.iter().map(cells));
            output.text(&words::table(&table, ""))
        }
        Format::Json => {
            let list = found.iter().map(|(row, rotation)| {
                json!({
                    "rotation": row.rotation, "secret": row.secret, "open": row.open,
                    "phase": rotation.phase().to_string(), "version": rotation.plan().pending,
                    "began_at": words::rfc3339(row.began_at), "last_at": words::rfc3339(row.last_at),
                })
            });
            output.json(&json!({ "rotations": list.collect::<Vec<_>>() }))
        }
    }
}

fn unknown(id: &str) -> Failure {
    Failure::new(format!("no rotation is called `{id}`"))
        .code(code::UNKNOWN_NAME)
        .hint("`keywheel rotation list` lists them")
}

async fn show(
    session: &Session,
    rows: &[RotationRow],
    id: &str,
    markdown: bool,
    globals: &Globals,
) -> Result<(), Failure> {
    let mut matching = rows.iter().filter(|row| row.rotation.0.starts_with(id));
    let (Some(row), None) = (matching.next(), matching.next()) else { return Err(unknown(id)) };
    let records = session.journal.records(&row.rotation).await.map_err(journal_failure)?;
    let rotation = replay(&records).map_err(journal_failure)?;
    let output = globals.output();
    match output.format {
        Format::Json => output.json(&json!({
            "rotation": drive::summary(session, &rotation),
            "records": records.iter().map(|record| json!({
                "sequence": record.sequence, "epoch": record.epoch, "at": words::rfc3339(record.at),
                "actor": record.actor, "event": record.event,
            })).collect::<Vec<_>>(),
        })),
        Format::Text if markdown => output.text(&log_entry(&rotation, &records)),
        Format::Text => output.text(&history(&row.rotation, &rotation, &records)),
    }
}

fn history(id: &RotationId, rotation: &Rotation, records: &[Record]) -> String {
    let plan = rotation.plan();
    let mut text = format!(
        "rotation {id} · {} · {} · {}\n",
        plan.secret,
        words::strategy(plan.strategy),
        rotation.phase()
    );
    let rows: Vec<Vec<String>> = told(rotation, records)
        .map(|(record, line)| {
            vec![record.sequence.to_string(), words::logged(record.at), line.step.into(), line.what]
        })
        .collect();
    text.push_str(&words::table(&rows, "  "));
    text
}

/// The records that people want to read: what was done, refused or unknown, and the turns of the rotation.
fn told<'a>(
    rotation: &'a Rotation,
    records: &'a [Record],
) -> impl Iterator<Item = (&'a Record, words::Line)> {
    let plan = rotation.plan();
    records.iter().filter_map(move |record| {
        let line = match &record.event {
            Event::Done { step: Step::Visit, report: Report::Visited(visit) }
                if visit.notes.is_empty() =>
            {
                return None;
            }
            Event::Done { step, report } => {
                let line = words::step(plan, *step);
                let what = match report {
                    Report::Seen(count) => {
                        format!("{} ({} of {})", line.what, count.holds, count.all())
                    }
                    Report::Visited(visit) => format!("{}: {}", line.what, visit.notes.join("; ")),
                    Report::Minted { issued: Some(issued), .. } => {
                        format!("{} ({issued}){}", line.what, words::noted(report))
                    }
                    Report::Captured { .. } | Report::Noted { .. } | Report::Revoked { .. } => {
                        format!("{}{}", line.what, words::noted(report))
                    }
                    _ => line.what,
                };
                words::Line { what, ..line }
            }
            Event::Refused { step, refusal } => {
                let line = words::step(plan, *step);
                words::Line { what: format!("{}: refused: {refusal}", line.what), ..line }
            }
            Event::Unknown { step } => {
                let line = words::step(plan, *step);
                words::Line { what: format!("{}: no answer", line.what), ..line }
            }
            event => words::record(plan, event)?,
        };
        Some((record, line))
    })
}

/// Fills in a rotation log: ids, evidence, actor, zone, revoke time.
fn log_entry(rotation: &Rotation, records: &[Record]) -> String {
    let plan = rotation.plan();
    let actor = &records[0].actor;
    let who = match &actor.origin {
        Some(origin) => format!("{} (as {}) on {}, asserted", origin, actor.account, actor.host),
        None => format!(
            "{} on {}, {}",
            actor.account,
            actor.host,
            if actor.authenticated { "authenticated" } else { "asserted" }
        ),
    };
    let reason = match &plan.because {
        Some(because) => format!("{:?}: {because}", plan.reason).to_lowercase(),
        None => format!("{:?}", plan.reason).to_lowercase(),
    };
    let mut text = format!(
        "## Secret rotation log\n\n- **Date:** {}\n- **Rotated by:** {who}\n- **Secret:** {} ({} → {})\n- **Reason:** {reason}\n\
         - **Method:** {} by keywheel, rotation `{}`, plan `{}`\n\n**Timeline**\n\n",
        words::logged(records[0].at),
        plan.secret,
        plan.previous.as_ref().map_or("nothing".into(), |previous| previous.version.to_string()),
        plan.pending,
        words::strategy(plan.strategy),
        rotation.id(),
        plan.hash().short(),
    );
    for (record, line) in told(rotation, records) {
        text.push_str(&format!("- {} - {}: {}\n", words::logged(record.at), line.step, line.what));
    }
    text.push_str(&verification(rotation, records));
    text
}

fn verification(rotation: &Rotation, records: &[Record]) -> String {
    let seen = records.iter().filter_map(|record| match &record.event {
        Event::Done { step: Step::Evidence { workload, to }, report: Report::Seen(count) } => {
            Some((workload, to, count))
        }
        _ => None,
    });
    let mut text = String::from("\n**Verification**\n\n");
    for (workload, to, count) in seen {
        let name = &rotation.plan().workloads[usize::from(*workload)].bound.name;
        let mark = if count.complete() { "x" } else { " " };
        text.push_str(&format!(
            "- [{mark}] {name}: {} of {} replicas hold arrangement {to}\n",
            count.holds,
            count.all()
        ));
    }
    for version in rotation.retiring() {
        let revoked = rotation
            .ending()
            .revoked_at(version)
            .map_or("not revoked by a call".into(), |at: Timestamp| {
                format!("revoked {}", words::logged(at))
            });
        let refused = match drive::old_refused(rotation) {
            Some(true) => "refused by everyone who was asked",
            _ => "its refusal was not observed",
        };
        text.push_str(&format!("- {version}: {revoked}; {refused}\n"));
    }
    let outcome = rotation.outcome().map_or("open".into(), |outcome| outcome.to_string());
    text.push_str(&format!("- outcome: {outcome}\n"));
    text
}
