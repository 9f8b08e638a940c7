//! Runs the simulator and passes on what it found.

use std::process::{ExitCode, Stdio};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::cargo::{self, Built};
use crate::report::Counts;

/// How long, and from which seed.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long it leads random lives, after what is the same in every run.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// The first seed; 0 unless told.
    #[arg(long)]
    seed: Option<u64>,
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// What the simulator says.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Verdict {
    lifecycles: u64,
    lifecycles_per_minute: u64,
    step_fault_pairs: Pairs,
    violations: u64,
    outcomes: Outcomes,
    planted_bugs: Bugs,
}

#[derive(Debug, Deserialize, Serialize)]
struct Pairs {
    hit: u64,
    all: u64,
    excluded: u64,
}

#[derive(Debug, Deserialize, Serialize)]
struct Outcomes {
    completed: u64,
    undone: u64,
    needs_operator: u64,
}

#[derive(Debug, Deserialize, Serialize)]
struct Bugs {
    caught: u64,
    all: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let built = cargo::build(&["build", "--release", "-p", "keywheel-sim", "--bins"])?;
    let (verdict, counts) = check(built, args.seconds, args.seed)?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string(&verdict)?),
        Output::Text => println!("{verdict}"),
    }
    Ok(counts.exit())
}

/// Runs the simulator among what was built, and judges what it says: no violation, every pair hit, every planted bug caught.
pub(crate) fn check(
    built: Vec<Built>,
    seconds: u32,
    seed: Option<u64>,
) -> anyhow::Result<(Verdict, Counts)> {
    let is_it =
        |built: &Built| !built.test && built.program.file_stem() == Some("keywheel-sim".as_ref());
    let program = built.into_iter().find(is_it).context("cargo built no simulator")?.program;
    let mut sim = std::process::Command::new(program);
    sim.current_dir(cargo::root()).args(["--seconds", &seconds.to_string(), "--output", "json"]);
    if let Some(seed) = seed {
        sim.args(["--from", &seed.to_string()]);
    }
    let output = sim
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("the simulator cannot be run")?;
    let said = String::from_utf8(output.stdout)?;
    let last = said.lines().last().context("the simulator said nothing")?;
    let verdict: Verdict =
        serde_json::from_str(last).context("the simulator said something else than its verdict")?;
    ensure!(verdict.lifecycles > 0, "the simulator lived through nothing");
    let mut counts = Counts::one(verdict.violations == 0 && output.status.success());
    counts.add(Counts::one(verdict.step_fault_pairs.hit == verdict.step_fault_pairs.all));
    counts.add(Counts::one(
        verdict.planted_bugs.caught == verdict.planted_bugs.all && verdict.planted_bugs.all > 0,
    ));
    Ok((verdict, counts))
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { step_fault_pairs: pairs, outcomes, planted_bugs: bugs, .. } = self;
        writeln!(
            f,
            "{} lifecycles ({} a minute): {} completed, {} undone, {} need an operator",
            self.lifecycles,
            self.lifecycles_per_minute,
            outcomes.completed,
            outcomes.undone,
            outcomes.needs_operator
        )?;
        writeln!(
            f,
            "{} of {} pairs of step and fault, {} excluded",
            pairs.hit, pairs.all, pairs.excluded
        )?;
        write!(
            f,
            "{} violations; {} of {} planted bugs caught",
            self.violations, bugs.caught, bugs.all
        )
    }
}
