//! The project's own chores. Each subcommand is one file; the recipes of the justfile and CI call them.

#![expect(clippy::print_stdout, reason = "a chore tells its caller what it does")]

mod bench;
mod cargo;
mod deny;
mod e2e;
mod example;
mod fmt;
mod hazards;
mod leaks;
mod links;
mod report;
mod run_folder;
mod shipped;
mod sim;
mod test;
mod tools;

use std::process::ExitCode;

use clap::Parser;

/// The project's own chores.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
enum Chore {
    /// Brings the tools that are missing and runs every check there is.
    Test(test::Args),
    /// Formats every Rust file that git tracks.
    Fmt(fmt::Args),
    /// Runs the simulator and prints what it found.
    Sim(sim::Args),
    /// Measures; asserts no time.
    Bench(bench::Args),
    /// Proves of each closed hazard that its test notices when the protection is gone.
    Hazards(hazards::Args),
    /// Searches a folder for secrets that a test used.
    Leaks(leaks::Args),
    /// Follows every relative link in the documents.
    Links,
    /// Builds the image of the example for Docker Compose.
    Example(example::Args),
    /// Rotates on a cluster, under load, in a namespace of its own.
    E2e(e2e::Args),
    /// Builds the binary that is shipped, and looks for what may not be in it.
    Shipped,
    /// Checks licences, sources and advisories of the dependencies.
    Deny,
}

fn main() -> anyhow::Result<ExitCode> {
    match Chore::parse() {
        Chore::Test(args) => test::run(&args),
        Chore::Fmt(args) => fmt::run(&args),
        Chore::Sim(args) => sim::run(&args),
        Chore::Bench(args) => bench::run(&args),
        Chore::Hazards(args) => hazards::run(&args),
        Chore::Leaks(args) => leaks::run(&args),
        Chore::Links => links::run(),
        Chore::Example(args) => example::run(&args),
        Chore::E2e(args) => e2e::run(&args),
        Chore::Shipped => shipped::run(),
        Chore::Deny => deny::run(),
    }
}
