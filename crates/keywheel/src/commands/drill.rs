//! `keywheel drill`: rotates a throwaway secret in the chosen place, as a rehearsal. Never touches a real one.

use clap::{Args, Subcommand};

use crate::cli::Globals;
use crate::drill::{self, compose};
use crate::exit::Exit;
use crate::output::Failure;

/// Rehearse a rotation with a throwaway secret and workload: rotated, undone, refused, ended; timed and kept as evidence
#[derive(Debug, Args)]
pub(crate) struct DrillArgs {
    #[command(subcommand)]
    place: Place,
    /// Leave the throwaway workload and its folder in place at the end, and say where they are
    #[arg(long, global = true)]
    keep: bool,
}

#[derive(Debug, Subcommand)]
enum Place {
    /// On the container engine of this machine, by Docker Compose
    Compose(compose::Options),
}

pub(crate) async fn run(args: &DrillArgs, globals: &Globals) -> Result<Exit, Failure> {
    match &args.place {
        Place::Compose(options) => {
            drill::run(&compose::Ground::new(options.clone()), args.keep, globals).await
        }
    }
}
