//! Formats every Rust file that git tracks: `cargo fmt` does not see modules that a macro declares.

use std::process::{Command, ExitCode};

use crate::cargo;
use crate::report::Counts;

/// How to format.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Changes nothing, and fails where something would change.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    Ok(format(args.check)?.exit())
}

/// Formats, or checks that nothing is left to be formatted.
pub(crate) fn format(check: bool) -> anyhow::Result<Counts> {
    let mut rustfmt = Command::new("rustfmt");
    rustfmt.current_dir(cargo::root()).args(["--edition", "2024", "--config-path", "rustfmt.toml"]);
    if check {
        rustfmt.arg("--check");
    }
    let status = rustfmt.args(cargo::tracked("rs")?).status()?;
    Ok(Counts::one(status.success()))
}
