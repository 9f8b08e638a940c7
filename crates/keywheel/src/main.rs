//! The keywheel program.

mod claims;
mod cli;
mod code;
mod commands;
mod compile;
mod config;
mod confirm;
mod copies;
#[cfg(feature = "demo")]
mod demo;
mod drill;
mod drive;
mod exit;
mod exposed;
mod guide;
mod incident;
mod init;
mod leases;
mod manifest;
mod notify;
mod outlook;
mod output;
mod prepare;
mod progress;
mod queue;
mod refused;
mod select;
mod session;
mod then;
mod traces;
mod words;

use std::process::ExitCode;

/// The configuration of a large project is tens of thousands of small values, read at every start.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
