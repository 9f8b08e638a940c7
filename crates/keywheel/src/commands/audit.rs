//! `keywheel audit`: the chain of who did what.

use clap::{Args, Subcommand};
use serde_json::json;

use crate::cli::Globals;
use crate::exit::Exit;
use crate::output::{Failure, Format};
use crate::session::{Session, environment, journal_failure};
use crate::words;

/// Show or check the audit chain
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
    /// The environment
    #[arg(long, short, global = true, value_name = "ENV")]
    environment: Option<String>,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// List the links of the chain
    List {
        /// From this link on
        #[arg(long, default_value_t = 0)]
        from: u64,
    },
    /// Check the chain against itself and against the records that it is of
    Verify,
}

pub(crate) async fn run(args: &AuditArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let chosen = environment(&config, args.environment.as_deref())?;
    let output = globals.output();
    let Some(session) = Session::read(globals, &config, &chosen.name)? else {
        match output.format {
            Format::Text => output.text("no journal yet\n")?,
            Format::Json => output.json(&json!({ "links": 0, "faults": [] }))?,
        }
        return Ok(Exit::Done);
    };
    match &args.command {
        AuditCommand::List { from } => {
            let links = session.journal.audit(*from).await.map_err(journal_failure)?;
            match output.format {
                Format::Json => output.json(&json!({ "links": links }))?,
                Format::Text => {
                    let rows: Vec<Vec<String>> = links
                        .iter()
                        .map(|link| {
                            let who = format!("{} ({})", link.actor.account, link.actor.method);
                            vec![
                                link.sequence.to_string(),
                                words::logged(link.at),
                                who,
                                link.secret.to_string(),
                                link.action.clone(),
                            ]
                        })
                        .collect();
                    output.text(&words::table(&rows, ""))?;
                }
            }
            Ok(Exit::Done)
        }
        AuditCommand::Verify => {
            let verdict = session.journal.verify_audit().await.map_err(journal_failure)?;
            match output.format {
                Format::Json => output.json(&verdict)?,
                Format::Text => {
                    let faults: String =
                        verdict.faults.iter().map(|fault| format!("  {fault}\n")).collect();
                    let word = if verdict.faults.is_empty() { "holds" } else { "is broken" };
                    let head = &verdict.head;
                    output.text(&format!(
                        "the chain of {} links {word}; its head is {head}\n{faults}keep the head elsewhere: a cut tail shows against it\n",
                        verdict.links
                    ))?;
                }
            }
            Ok(if verdict.faults.is_empty() { Exit::Done } else { Exit::NeedsOperator })
        }
    }
}
