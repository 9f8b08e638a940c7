//! The keywheel program.

mod cli;
mod code;
mod commands;
#[cfg_attr(not(test), expect(dead_code, reason = "the commands that act follow"))]
mod compile;
mod config;
mod exit;
mod output;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
