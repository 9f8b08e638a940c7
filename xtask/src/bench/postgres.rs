//! Rotations of database logins beside OpenBao's and beside the bare statement: brings OpenBao, runs the benchmark, and sets what
//! it says of each round in relation.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{Machine, machine};
use crate::cargo;
use crate::sim::Output;
use crate::tools;

/// What is set in relation to what.
const RATIOS: [(&str, &str); 12] = [
    ("keywheel_cutover", "openbao_rotate_role"),
    ("keywheel_alternate", "openbao_rotate_role"),
    ("keywheel_move", "openbao_rotate_role"),
    ("keywheel_mint_and_verify", "openbao_rotate_role"),
    ("alter_role_and_login", "openbao_rotate_role"),
    ("keywheel_cutover", "alter_role_and_login"),
    ("keywheel_move", "alter_role_and_login"),
    ("keywheel_mint_and_verify", "alter_role_and_login"),
    ("keywheel_move", "bare_alter_role"),
    ("keywheel_mint_and_verify", "bare_alter_role"),
    ("alter_role_and_login", "bare_alter_role"),
    ("openbao_rotate_role", "bare_alter_role"),
];

/// How it is measured.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many rounds are run for each size.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// How many seconds each of them has its turn in a round.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t)]
    pub(super) output: Output,
}

/// What was measured, and on what.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    sizes: Vec<Size>,
    /// By what is rotated and by kind of step: how many a rotation has, and the median of what one takes.
    steps_one_at_a_time: BTreeMap<String, BTreeMap<String, Step>>,
    openbao_errors: u64,
    rounds: u32,
    seconds: u32,
    machine: Machine,
}

#[derive(Debug, Serialize)]
struct Size {
    secrets: u32,
    at_once: u32,
    rotations_per_second: BTreeMap<String, Spread>,
    /// `a / b`: taken within each round, since the machine differs from round to round.
    ratios: BTreeMap<String, Spread>,
}

/// The rounds in short.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Step {
    each: f64,
    ms: f64,
}

/// What the benchmark says.
#[derive(Deserialize)]
#[serde(untagged)]
enum Said {
    Rounds(Rounds),
    Skipped { skipped: String },
}

#[derive(Deserialize)]
struct Rounds {
    sizes: Vec<SizeRounds>,
    steps_one_at_a_time: BTreeMap<String, BTreeMap<String, Step>>,
    openbao_errors: u64,
}

#[derive(Deserialize)]
struct SizeRounds {
    secrets: u32,
    at_once: u32,
    rotations_per_second: BTreeMap<String, Vec<f64>>,
}

pub(super) fn measure(args: &Args) -> anyhow::Result<Measured> {
    ensure!(args.rounds > 0 && args.seconds > 0, "there must be rounds, and they take time");
    ensure!(tools::bring_openbao(), "there is no OpenBao, and pip could not install it");
    let arguments = ["bench", "--no-run", "-p", "keywheel-engine", "--bench", "postgres"];
    let program =
        cargo::build(&arguments)?.into_iter().next().context("cargo built no benchmark")?;
    let folder = tempfile::TempDir::new()?;
    let machine = machine();
    let mut bench = Command::new(program.program);
    bench.args(["--rounds", &args.rounds.to_string(), "--seconds", &args.seconds.to_string()]);
    bench.arg("--folder").arg(folder.path()).stdin(Stdio::null());
    let said = String::from_utf8(cargo::output(&mut bench)?)?;
    let said = serde_json::from_str(said.trim());
    let rounds = match said.context("the benchmark said something else than its result")? {
        Said::Rounds(rounds) => rounds,
        Said::Skipped { skipped } => bail!("{skipped}"),
    };
    Ok(Measured {
        sizes: rounds.sizes.into_iter().map(in_relation).collect(),
        steps_one_at_a_time: rounds.steps_one_at_a_time,
        openbao_errors: rounds.openbao_errors,
        rounds: args.rounds,
        seconds: args.seconds,
        machine,
    })
}

fn in_relation(size: SizeRounds) -> Size {
    let rates = &size.rotations_per_second;
    let ratio = |(ours, theirs): (&str, &str)| {
        let rounds = rates.get(ours)?.iter().zip(rates.get(theirs)?);
        let spread = spread(rounds.map(|(ours, theirs)| ours / theirs).collect())?;
        Some((format!("{ours} / {theirs}"), spread))
    };
    let rate = |(who, rates): (&String, &Vec<f64>)| Some((who.clone(), spread(rates.clone())?));
    Size {
        secrets: size.secrets,
        at_once: size.at_once,
        ratios: RATIOS.into_iter().filter_map(ratio).collect(),
        rotations_per_second: rates.iter().filter_map(rate).collect(),
    }
}

fn spread(mut of: Vec<f64>) -> Option<Spread> {
    of.sort_by(f64::total_cmp);
    Some(Spread { min: *of.first()?, median: of[of.len() / 2], max: *of.last()? })
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for size in &self.sizes {
            writeln!(f, "{} secrets, {} at a time: min, median, max", size.secrets, size.at_once)?;
            for (who, rate) in &size.rotations_per_second {
                writeln!(f, "  {who:<24} {rate} rotations a second")?;
            }
            for (what, ratio) in &size.ratios {
                writeln!(f, "  {what}: {ratio}")?;
            }
        }
        for (who, steps) in &self.steps_one_at_a_time {
            writeln!(f, "{who}, one at a time:")?;
            for (step, Step { each, ms }) in steps {
                writeln!(f, "  {step:<12} {each:.0} of {ms:.2} ms")?;
            }
        }
        writeln!(f, "{} rotations failed at OpenBao", self.openbao_errors)?;
        self.machine.fmt(f)
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2}, {:.2}, {:.2}", self.min, self.median, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        let rates = [
            ("keywheel_cutover", vec![30.0, 10.0, 40.0]),
            ("openbao_rotate_role", vec![10.0, 10.0, 20.0]),
        ];
        let rates = rates.map(|(who, rates)| (who.to_owned(), rates));
        let size =
            in_relation(SizeRounds { secrets: 8, at_once: 1, rotations_per_second: rates.into() });
        let ratio = size.ratios["keywheel_cutover / openbao_rotate_role"];
        assert_eq!(ratio, Spread { min: 1.0, median: 2.0, max: 3.0 });
        let rate = size.rotations_per_second["openbao_rotate_role"];
        assert_eq!(rate, Spread { min: 10.0, median: 10.0, max: 20.0 });
        assert_eq!(size.ratios.len(), 1, "what was not measured is in no relation");
    }
}
