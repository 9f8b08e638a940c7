//! The command line. To add a command: write its file in `commands/`, and name it once in [`Command`] and once in
//! [`Command::run`].

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

use crate::commands::{completions, config, explain, man, schema};
use crate::config::Config;
use crate::exit::Exit;
use crate::output::{Failure, Format, Output};

/// Rotates every credential that an application uses, without dropping a request, and proves that it did.
#[derive(Debug, Parser)]
#[command(name = "keywheel", version, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// What holds for every command.
#[derive(Debug, Args)]
pub(crate) struct Globals {
    /// The configuration file [default: the nearest keywheel.yaml here or above]
    #[arg(long, short, global = true, value_name = "FILE", env = "KEYWHEEL_CONFIG")]
    config: Option<PathBuf>,
    /// The form of what is printed on stdout
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Format,
    /// Print data and errors only
    #[arg(long, short, global = true)]
    quiet: bool,
}

impl Globals {
    /// Returns where and how the program speaks.
    pub(crate) const fn output(&self) -> Output {
        Output { format: self.output, quiet: self.quiet }
    }

    /// Finds, reads and checks the configuration.
    ///
    /// # Errors
    /// A [`Failure`] for each problem in it.
    pub(crate) fn load(&self) -> Result<Config, Failure> {
        crate::config::load(self.config.as_deref())
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Config(config::ConfigArgs),
    Schema(schema::SchemaArgs),
    Explain(explain::ExplainArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

impl Command {
    fn run(self, globals: &Globals) -> Result<Exit, Failure> {
        match self {
            Self::Config(args) => config::run(&args, globals),
            Self::Schema(args) => schema::run(&args, globals),
            Self::Explain(args) => explain::run(&args, globals),
            Self::Completions(args) => completions::run(&args, globals),
            Self::Man(args) => man::run(&args, globals),
        }
    }
}

/// Reads the command line, runs the command, and says how it ended.
pub(crate) fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(Cli { globals, command }) => match command.run(&globals) {
            Ok(exit) => exit.into(),
            Err(failure) => {
                globals.output().failure(&failure);
                failure.exit.into()
            }
        },
        Err(error) => usage(&error),
    }
}

/// clap ends with 2 on a wrong command line; here 2 means that a rotation was undone.
fn usage(error: &clap::Error) -> ExitCode {
    let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    // A closed stdout or stderr leaves nowhere to say so.
    error.print().unwrap_or_default();
    if asked { Exit::Done.into() } else { Exit::Usage.into() }
}
