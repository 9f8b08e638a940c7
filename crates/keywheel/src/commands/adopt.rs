//! `keywheel adopt`: takes over live credentials without changing them.

use std::sync::Arc;

use clap::Args;
use keywheel_core::inventory::Inventory;
use keywheel_core::time::Timestamp;
use keywheel_core::version::Stage;
use keywheel_engine::NoWatch;
use serde_json::json;

use crate::cli::Globals;
use crate::exit::Exit;
use crate::output::{Failure, Format};
use crate::select::Selection;
use crate::session::{Session, engine_failure};
use crate::{code, confirm, prepare, words};

/// Take over the values that are in use now, as version 1 of each secret; changes no value
#[derive(Debug, Args)]
pub(crate) struct AdoptArgs {
    #[command(flatten)]
    selection: Selection,
    /// When they were made, where the issuer does not say: 2026-01-31
    #[arg(long, value_name = "DATE")]
    last_rotated: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(args: &AdoptArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let environment = args.selection.environment(&config)?;
    let secrets = args.selection.secrets(globals, &config).await?;
    let last_rotated = args.last_rotated.as_deref().map(date).transpose()?;
    let session = Session::act(globals, &config, &environment.name, Arc::new(NoWatch))?;
    let (mut rows, mut told) = (Vec::new(), String::new());
    for secret in secrets {
        if session.inventory(&secret.name).await?.is_none() {
            let row = prepare::adoption(&session, &config, secret, last_rotated).await?;
            let facts = prepare::draft(&session, &config, secret)?.issuer.facts;
            told.push_str(&line(&row, facts.destroy || facts.suspend));
            rows.push(row);
        }
    }
    let output = globals.output();
    output.note(told.trim_end());
    if !rows.is_empty() {
        confirm::go_on(environment, "Adopt these?", confirm::SAY_YES, args.yes)?;
    }
    for row in &rows {
        session.engine.note(row.clone(), "adopted").await.map_err(engine_failure)?;
    }
    match output.format {
        Format::Text => output.text(&format!("adopted {}\n", rows.len()))?,
        Format::Json => output
            .json(&json!({ "adopted": rows.iter().map(|row| &row.secret).collect::<Vec<_>>() }))?,
    }
    Ok(Exit::Done)
}

/// Says what is taken over. An id matters only to an issuer that ends versions by it.
fn line(row: &Inventory, is_ended_by_id: bool) -> String {
    let Some(current) = row.at(Stage::Current) else {
        return format!(
            "  {}: no store holds a value yet; its first rotation makes one\n",
            row.secret
        );
    };
    let id = match &current.issued {
        Some(issued) => format!("; its issuer calls it {issued}"),
        None if is_ended_by_id => {
            "; its id at the issuer is not known: name it before it is to be ended".into()
        }
        None => String::new(),
    };
    let age = row.rotated_at.map_or("age unknown".into(), |at| format!("made {}", words::when(at)));
    format!("  {}: {}, {age}{id}\n", row.secret, current.version)
}

fn date(text: &str) -> Result<Timestamp, Failure> {
    let parsed = text
        .parse::<jiff::civil::Date>()
        .ok()
        .and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC).ok());
    let parsed = parsed.map(|zoned| Timestamp::from_millis(zoned.timestamp().as_millisecond()));
    parsed.ok_or_else(|| {
        Failure::new(format!("`{text}` is not a date"))
            .code(code::USAGE)
            .hint("write it as 2026-01-31")
    })
}
