//! Measures; asserts no time. Bars and recorded runs stand in `docs/benchmarks.md`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::cargo;
use crate::sim::Output;
use crate::tools;

mod postgres;

/// How many rotations are open at once, and how many are run.
const SIZES: [(u32, u32); 3] = [(1, 500), (100, 5_000), (1_000, 10_000)];

/// How many rotations a run is long in which fsyncs are counted.
const COUNTED: [(u32, u32); 2] = [(1, 100), (1_000, 2_000)];

/// How many secrets `keywheel status` is asked about, and how often.
const SECRETS: u32 = 1_000;
const ASKED: usize = 11;

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// The engine alone: drivers that answer at once, the journal on disk.
    Engine {
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Database logins: whole rotations beside OpenBao's, and beside the bare statement, on one PostgreSQL.
    Postgres(postgres::Args),
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Engine { output } => print(*output, &engine()?)?,
        What::Postgres(args) => print(args.output, &postgres::measure(args)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print(output: Output, result: &(impl Serialize + std::fmt::Display)) -> anyhow::Result<()> {
    match output {
        Output::Json => println!("{}", serde_json::to_string(result)?),
        Output::Text => println!("{result}"),
    }
    Ok(())
}

/// What was measured, and on what.
#[derive(Debug, Serialize)]
struct Measured {
    /// By the number of rotations that were open.
    rotations_per_second: BTreeMap<u32, f64>,
    /// By the number of rotations that were open; none without strace.
    fsyncs_per_step: Option<BTreeMap<u32, f64>>,
    /// The most memory that a run with so many open rotations held, in MiB.
    rss_mib: BTreeMap<u32, Option<u64>>,
    /// The median time of `keywheel status` over 1,000 secrets, the start of the process included.
    status_ms: f64,
    machine: Machine,
}

/// The machine, without its name.
#[derive(Debug, Serialize)]
struct Machine {
    processors: usize,
    memory_mib: u64,
    kernel: String,
    /// How many processes wanted to run before the measurement; more than one or two, and the numbers say little.
    load: f64,
}

/// What one run of the benchmark says.
#[derive(Debug, Deserialize)]
struct Run {
    steps: u64,
    rotations_per_second: f64,
    rss_mib: Option<u64>,
}

fn engine() -> anyhow::Result<Measured> {
    let machine = machine();
    let built = cargo::build(&["bench", "--no-run", "-p", "keywheel-engine", "--bench", "engine"])?;
    let program = built.into_iter().next().context("cargo built no benchmark")?.program;
    let mut rotations_per_second = BTreeMap::new();
    let mut rss_mib = BTreeMap::new();
    for (open, rotations) in SIZES {
        let folder = tempfile::TempDir::new()?;
        let run = one(&mut Command::new(&program), open, rotations, folder.path())?;
        rotations_per_second.insert(open, run.rotations_per_second);
        rss_mib.insert(open, run.rss_mib);
    }
    let fsyncs_per_step = match tools::find("strace") {
        None => None,
        Some(strace) => Some(
            COUNTED
                .iter()
                .map(|size| fsyncs(&strace, &program, *size))
                .collect::<anyhow::Result<_>>()?,
        ),
    };
    Ok(Measured {
        rotations_per_second,
        fsyncs_per_step,
        rss_mib,
        status_ms: status(&program)?,
        machine,
    })
}

fn one(command: &mut Command, open: u32, rotations: u32, folder: &Path) -> anyhow::Result<Run> {
    command
        .args(["--open", &open.to_string(), "--rotations", &rotations.to_string(), "--folder"])
        .arg(folder);
    let said = String::from_utf8(cargo::output(command.stdin(Stdio::null()))?)?;
    serde_json::from_str(said.trim()).context("the benchmark said something else than its result")
}

/// Counts the fsyncs of a run of its own: tracing slows a run down.
fn fsyncs(
    strace: &Path,
    program: &Path,
    (open, rotations): (u32, u32),
) -> anyhow::Result<(u32, f64)> {
    let folder = tempfile::TempDir::new()?;
    let counts = folder.path().join("syncs");
    let mut traced = Command::new(strace);
    traced
        .args(["-f", "--seccomp-bpf", "-qq", "-e", "trace=fsync,fdatasync", "-o"])
        .arg(&counts)
        .arg(program);
    let run = one(&mut traced, open, rotations, folder.path())?;
    let trace = std::fs::read_to_string(counts)?;
    let syncs = trace.lines().filter(|line| line.contains("sync(")).count();
    Ok((open, syncs as f64 / run.steps as f64))
}

/// Times `keywheel status` over a journal in which each of 1,000 secrets was rotated once.
fn status(bench: &Path) -> anyhow::Result<f64> {
    let keywheel = cargo::build(&["build", "--release", "-p", "keywheel"])?;
    let keywheel = keywheel.into_iter().next().context("cargo built no program")?.program;
    let folder = tempfile::TempDir::new()?;
    one(&mut Command::new(bench), SECRETS, SECRETS, folder.path())?;
    std::fs::write(folder.path().join("keywheel.yaml"), configuration())?;
    let mut times = Vec::new();
    for _ in 0..ASKED {
        let begun = Instant::now();
        let said = cargo::output(&mut ask(&keywheel, folder.path()))?;
        times.push(begun.elapsed().as_secs_f64() * 1_000.0);
        let rows = String::from_utf8(said)?.matches("@production").count();
        ensure!(rows >= SECRETS as usize, "`keywheel status` shows {rows} secrets of {SECRETS}");
    }
    times.sort_by(f64::total_cmp);
    Ok(times[ASKED / 2])
}

fn ask(keywheel: &Path, folder: &Path) -> Command {
    let mut ask = Command::new(keywheel);
    ask.args(["status", "--all", "--output", "json"]).current_dir(folder).stdin(Stdio::null());
    ask.env("KEYWHEEL_JOURNAL", folder.join("state/journal.db"))
        .env("KEYWHEEL_KEK", folder.join("config/kek"));
    ask
}

fn configuration() -> String {
    let secret = |number| {
        format!(
            "  s{number}: {{ issuer: {{ random: {{}} }}, stores: {{ app: S{number} }}, read_by: nobody, because: bench }}\n"
        )
    };
    let secrets: String = (0..SECRETS).map(secret).collect();
    format!(
        "requires: \">=0.1\"\nproject: bench\nenvironments:\n  production:\n    stores: {{ app: {{ env_file: {{ path: app.env }} }} }}\nsecrets:\n{secrets}"
    )
}

fn machine() -> Machine {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let memory = read("/proc/meminfo");
    let kib = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next());
    Machine {
        processors: std::thread::available_parallelism().map_or(0, usize::from),
        memory_mib: kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() / 1_024,
        kernel: read("/proc/sys/kernel/osrelease")
            .split('-')
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned(),
        load: read("/proc/loadavg")
            .split(' ')
            .next()
            .and_then(|load| load.parse().ok())
            .unwrap_or_default(),
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (open, rate) in &self.rotations_per_second {
            let memory = self.rss_mib.get(open).copied().flatten().unwrap_or_default();
            writeln!(f, "{open:>5} open: {rate:.0} whole rotations a second, {memory} MiB")?;
        }
        match &self.fsyncs_per_step {
            None => writeln!(f, "skipped: fsyncs a step; there is no strace")?,
            Some(counts) => {
                counts.iter().try_for_each(|(open, syncs)| {
                    writeln!(f, "{open:>5} open: {syncs:.3} fsyncs a step")
                })?;
            }
        }
        writeln!(f, "`keywheel status` over {SECRETS} secrets: {:.1} ms", self.status_ms)?;
        self.machine.fmt(f)
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { processors, memory_mib, kernel, load } = self;
        write!(
            f,
            "{processors} processors, {memory_mib} MiB, Linux {kernel}, load {load:.1} at the start"
        )
    }
}
