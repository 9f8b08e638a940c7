//! `keywheel man`: the manual page.

use clap::{Args, CommandFactory};

use crate::cli::{Cli, Globals};
use crate::exit::Exit;
use crate::output::Failure;

/// Print the manual page (`keywheel man | man -l -`)
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The page of one command
    command: Option<String>,
}

pub(crate) fn run(args: &ManArgs, globals: &Globals) -> Result<Exit, Failure> {
    let mut whole = Cli::command();
    whole.build();
    let command = match &args.command {
        None => whole,
        Some(name) => {
            let found = whole.get_subcommands().find(|command| command.get_name() == name).cloned();
            found.ok_or_else(|| {
                Failure::new("there is no command of this name")
                    .hint("`keywheel --help` lists them")
            })?
        }
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).map_err(|error| {
        Failure::new("the page cannot be made").caused_by(error.kind().to_string())
    })?;
    globals.output().text(&String::from_utf8_lossy(&page))?;
    Ok(Exit::Done)
}
