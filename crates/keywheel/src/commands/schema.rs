//! `keywheel schema`: the JSON Schema of the configuration, for editors.

use clap::Args;

use crate::cli::Globals;
use crate::config::schema;
use crate::exit::Exit;
use crate::output::Failure;

/// Print the JSON Schema of keywheel.yaml
#[derive(Debug, Args)]
pub(crate) struct SchemaArgs {}

pub(crate) fn run(_: &SchemaArgs, globals: &Globals) -> Result<Exit, Failure> {
    globals.output().text(&format!("{:#}\n", schema::schema()))?;
    Ok(Exit::Done)
}
