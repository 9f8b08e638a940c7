//! The command line. To add a command: write its file in `commands/`, and name it once in [`Command`] and once in
//! [`Command::run`].

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

use crate::commands::{
    adopt, audit, check, completions, config, doctor, drill, explain, export, incident, init, man,
    plan, reconcile, resume, rotate, rotation, schema, status, token, vault, where_,
};
use crate::config::Config;
use crate::exit::Exit;
use crate::output::{Failure, Format, Output};

/// Rotates every credential that an application uses, without dropping a request, and proves that it did.
#[derive(Parser)]
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
    /// The journal's file, in place of the usual one; needs `--kek`
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "KEYWHEEL_JOURNAL",
        requires = "kek",
        hide_short_help = true
    )]
    journal: Option<PathBuf>,
    /// The file of the key that seals values, in another folder than the journal; needs `--journal`
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "KEYWHEEL_KEK",
        requires = "journal",
        hide_short_help = true
    )]
    kek: Option<PathBuf>,
    /// Print data and errors only
    #[arg(long, short, global = true)]
    quiet: bool,
}

impl Globals {
    /// Returns where and how the program speaks.
    pub(crate) const fn output(&self) -> Output {
        Output { format: self.output, quiet: self.quiet }
    }

    /// Returns the configuration file that was named.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// Returns where journal and key lie, where somebody named the places.
    pub(crate) fn places(&self) -> Option<(PathBuf, PathBuf)> {
        Some((self.journal.clone()?, self.kek.clone()?))
    }

    /// Returns how a request came in, for the audit chain: from cron, nobody is at a terminal.
    #[expect(clippy::unused_self, reason = "a daemon will answer otherwise")]
    pub(crate) fn method(&self) -> &'static str {
        use std::io::IsTerminal;
        if std::io::stdin().is_terminal() { "cli" } else { "script" }
    }

    /// Finds, reads and checks the configuration.
    ///
    /// # Errors
    /// A [`Failure`] for each problem in it.
    pub(crate) fn load(&self) -> Result<Config, Failure> {
        crate::config::load(self.config.as_deref())
    }
}

#[derive(Subcommand)]
enum Command {
    Init(init::InitArgs),
    Check(check::CheckArgs),
    Plan(plan::PlanArgs),
    Adopt(adopt::AdoptArgs),
    Rotate(rotate::RotateArgs),
    Resume(resume::ResumeArgs),
    Undo(resume::UndoArgs),
    Cancel(resume::CancelArgs),
    Resolve(resume::ResolveArgs),
    Status(status::StatusArgs),
    Where(where_::WhereArgs),
    Reconcile(reconcile::ReconcileArgs),
    Doctor(doctor::DoctorArgs),
    Drill(drill::DrillArgs),
    Rotation(rotation::RotationArgs),
    Incident(incident::IncidentArgs),
    Token(token::TokenArgs),
    Vault(vault::VaultArgs),
    Audit(audit::AuditArgs),
    Config(config::ConfigArgs),
    Export(export::ExportArgs),
    Explain(explain::ExplainArgs),
    Schema(schema::SchemaArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
    #[cfg(feature = "demo")]
    Demo(crate::demo::DemoArgs),
    #[cfg(feature = "demo")]
    #[command(flatten)]
    Process(crate::demo::Process),
}

impl Command {
    async fn run(self, globals: &Globals) -> Result<Exit, Failure> {
        match self {
            Self::Init(args) => init::run(&args, globals).await,
            Self::Check(args) => check::run(&args, globals).await,
            Self::Plan(args) => plan::run(&args, globals).await,
            Self::Adopt(args) => adopt::run(&args, globals).await,
            Self::Rotate(args) => rotate::run(&args, globals).await,
            Self::Resume(args) => resume::resume(&args, globals).await,
            Self::Undo(args) => resume::undo(&args, globals).await,
            Self::Cancel(args) => resume::cancel(&args, globals).await,
            Self::Resolve(args) => resume::resolve(&args, globals).await,
            Self::Status(args) => status::run(&args, globals).await,
            Self::Where(args) => where_::run(&args, globals).await,
            Self::Reconcile(args) => reconcile::run(&args, globals).await,
            Self::Doctor(args) => doctor::run(&args, globals).await,
            Self::Drill(args) => drill::run(&args, globals).await,
            Self::Rotation(args) => rotation::run(&args, globals).await,
            Self::Incident(args) => incident::run(&args, globals).await,
            Self::Token(args) => token::run(&args, globals).await,
            Self::Vault(args) => vault::run(&args, globals).await,
            Self::Audit(args) => audit::run(&args, globals).await,
            Self::Config(args) => config::run(&args, globals),
            Self::Export(args) => export::run(&args, globals),
            Self::Explain(args) => explain::run(&args, globals),
            Self::Schema(args) => schema::run(&args, globals),
            Self::Completions(args) => completions::run(&args, globals),
            Self::Man(args) => man::run(&args, globals),
            #[cfg(feature = "demo")]
            Self::Demo(args) => crate::demo::run(args, globals).await,
            #[cfg(feature = "demo")]
            Self::Process(_) => unreachable!("start() runs these on an event loop of their own"),
        }
    }

    /// Runs the command on an event loop of its own.
    fn start(self, globals: &Globals) -> Result<Exit, Failure> {
        #[cfg(feature = "demo")]
        if let Self::Process(process) = self {
            return process.run().map(|()| Exit::Done).map_err(Failure::from);
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|error| {
            Failure::new("the event loop cannot be started").caused_by(error.to_string())
        })?;
        let exit = runtime.block_on(self.run(globals));
        // Blocking work that outlived its deadline must not hold the process up.
        runtime.shutdown_timeout(std::time::Duration::from_millis(500));
        exit
    }
}

/// Reads the command line, runs the command, and says how it ended.
pub(crate) fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(Cli { globals, command }) => match command.start(&globals) {
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
