//! Checks licences, sources and advisories of the dependencies with cargo-deny, where it is installed.

use std::process::ExitCode;

use crate::report::Counts;
use crate::{cargo, tools};

pub(crate) fn run() -> anyhow::Result<ExitCode> {
    match check()? {
        Some(counts) => Ok(counts.exit()),
        None => {
            println!("skipped: cargo-deny is not installed (`cargo install --locked cargo-deny`)");
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Checks the dependencies; none where cargo-deny is not there.
pub(crate) fn check() -> anyhow::Result<Option<Counts>> {
    if tools::find("cargo-deny").is_none() {
        return Ok(None);
    }
    let status = cargo::cargo(&["deny", "check"]).status()?;
    Ok(Some(Counts::one(status.success())))
}
