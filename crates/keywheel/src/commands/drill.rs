//! `keywheel drill`: rotates a throwaway secret in the chosen place, as a rehearsal. Never touches a real one.

use clap::{Args, Subcommand};

use crate::cli::Globals;
use crate::drill::{self, Made, compose, kubernetes};
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
    /// In a namespace of a Kubernetes cluster
    Kubernetes(kubernetes::Options),
    /// Take away what drills left that were killed, or kept with `--keep`
    Clean,
}

pub(crate) async fn run(args: &DrillArgs, globals: &Globals) -> Result<Exit, Failure> {
    let id = drill::id()?;
    let made = match &args.place {
        Place::Compose(options) => Made::Compose(compose::Ground::new(options.clone(), &id)),
        Place::Kubernetes(options) => {
            Made::Kubernetes(kubernetes::Ground::new(options.clone(), &id))
        }
        Place::Clean => return drill::clean(globals).await,
    };
    drill::run(made, &id, args.keep, globals).await
}
