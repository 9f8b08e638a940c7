//! `keywheel completions`: what a shell needs to complete this program's commands.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::{Cli, Globals};
use crate::exit::Exit;
use crate::output::Failure;

/// Print a completion script for a shell
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(args: &CompletionsArgs, globals: &Globals) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "keywheel", &mut script);
    globals.output().text(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}
