//! `keywheel-sim`: leads lives for a while, counts them, and shows the command that leads a failing one again.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use keywheel_core::event::Outcome;
use keywheel_sim::faults::{self, Fault, Hit, StepKind};
use keywheel_sim::planted::Bug;
use keywheel_sim::walk::Walked;
use keywheel_sim::{model, planted, walk};

const HELP: &str = "\
Leads simulated lives of rotations and checks that nothing is violated.

  --seconds N      how long random lives are led, after what is the same in every run (60 unless told)
  --output json    one line of JSON instead of words
  --from N         the first seed (0 unless told)
  --threads N      how many threads (2 unless told)
  --seed N         leads one life again, and shows its records
  --again SHAPE POINT:FAULT…
                   leads one life of the walk again, and shows its records
  --walk           only the exhaustive walk: every point, every fault, and pairs of them
  --planted        only the hunt for planted bugs
  --lives          only the random lives (the options before it count)";

fn main() -> ExitCode {
    let mut options = Options { seconds: 60, json: false, from: 0, threads: 2 };
    let mut arguments = std::env::args().skip(1);
    let number = |arguments: &mut dyn Iterator<Item = String>| {
        arguments.next().and_then(|text| text.parse::<u64>().ok())
    };
    while let Some(argument) = arguments.next() {
        let read = match argument.as_str() {
            "--seconds" => number(&mut arguments).map(|seconds| options.seconds = seconds),
            "--from" => number(&mut arguments).map(|from| options.from = from),
            "--threads" => number(&mut arguments).map(|threads| options.threads = threads.max(1)),
            "--output" => {
                arguments.next().filter(|form| form == "json").map(|_| options.json = true)
            }
            "--seed" => match number(&mut arguments) {
                Some(seed) => return replay(seed),
                None => None,
            },
            "--again" => return again(arguments.collect()),
            "--lives" => return lives_only(&options),
            "--walk" => return walk_all(),
            "--planted" => return hunt_all(),
            _ => None,
        };
        if read.is_none() {
            eprintln!("{HELP}");
            return ExitCode::from(2);
        }
    }
    simulate(&options)
}

/// How many lives a planted bug has to be caught in.
const LIVES_OF_A_BUG: u64 = 20_000;

struct Options {
    seconds: u64,
    json: bool,
    from: u64,
    threads: u64,
}

/// What one thread counted.
#[derive(Default)]
struct Counted {
    next_seed: u64,
    lifecycles: u64,
    checks: u64,
    hit: Hit,
    completed: u64,
    undone: u64,
    needs_operator: u64,
    failures: Vec<(u64, String)>,
}

fn simulate(options: &Options) -> ExitCode {
    let hunted = Hunted::all(options.threads);
    let (counted, spent) = live(options);
    report(options, &counted, &hunted, spent)
}

/// Leads random lives for as long as was asked for; returns what each thread counted, and how long it took.
fn live(options: &Options) -> (Vec<Counted>, Duration) {
    let begun = Instant::now();
    let end = begun + Duration::from_secs(options.seconds);
    let threads: Vec<u64> = (0..options.threads).collect();
    let counted = on_threads(options.threads, &threads, |number| lead(options, *number, end));
    (counted, begun.elapsed())
}

/// What is not seeded by the command: it is the same in every run, and comes before the seeds and beside their time.
#[derive(Default)]
struct Hunted {
    walked: Walked,
    reached: Vec<(StepKind, Fault, u64, String)>,
    model: Option<String>,
    caught: usize,
}

/// One piece of it.
#[derive(Clone, Copy)]
enum Hunt {
    Model,
    Bug(&'static Bug),
    Walk(usize),
}

/// In how many pieces the walk is done, so that no thread is left with a long one at the end.
const PIECES: usize = 12;

impl Hunted {
    fn all(threads: u64) -> Self {
        let bugs = planted::BUGS.iter().map(Hunt::Bug);
        let hunts: Vec<Hunt> =
            std::iter::once(Hunt::Model).chain(bugs).chain((0..PIECES).map(Hunt::Walk)).collect();
        let found = on_threads(threads, &hunts, |hunt| hunt.run());
        let mut hunted = Self::default();
        found.into_iter().for_each(|found| hunted.add(found));
        let missing = hunted.walked.hit.missing();
        let reached = on_threads(threads, &missing, |(step, fault)| reach(*step, *fault));
        for (hit, violations) in reached {
            hunted.walked.hit.merge(&hit);
            hunted.reached.extend(violations);
        }
        hunted
    }

    fn add(&mut self, other: Self) {
        self.walked.merge(other.walked);
        self.model = self.model.take().or(other.model);
        self.caught += other.caught;
    }
}

impl Hunt {
    fn run(self) -> Hunted {
        match self {
            Self::Model => Hunted { model: model::check().err(), ..Hunted::default() },
            Self::Bug(bug) => {
                let caught = usize::from(planted::hunt(bug, LIVES_OF_A_BUG).is_some());
                Hunted { caught, ..Hunted::default() }
            }
            Self::Walk(piece) => {
                Hunted { walked: walk::singles(piece, PIECES), ..Hunted::default() }
            }
        }
    }
}

/// Does every job once, each thread the next that nobody took.
fn on_threads<J: Sync, R: Send>(threads: u64, jobs: &[J], work: impl Fn(&J) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let take = || jobs.get(next.fetch_add(1, Ordering::Relaxed));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| std::iter::from_fn(take).map(&work).collect::<Vec<R>>()))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a thread only leads lives"))
            .collect()
    })
}

/// After how many failing lives a thread has seen enough.
const FAILURES: usize = 10;

/// Leads the lives of every n-th seed until the time is over or too many of them failed.
fn lead(options: &Options, number: u64, end: Instant) -> Counted {
    let mut counted = Counted { next_seed: options.from + number, ..Counted::default() };
    while Instant::now() < end && counted.failures.len() < FAILURES {
        let seed = counted.next_seed;
        let verdict = keywheel_sim::live(seed, false);
        counted.lifecycles += verdict.lifecycles;
        counted.checks += verdict.checks;
        counted.hit.merge(&verdict.hit);
        for outcome in verdict.outcomes {
            match outcome {
                Some(Outcome::Completed) => counted.completed += 1,
                Some(Outcome::Undone) => counted.undone += 1,
                Some(Outcome::Superseded) | None => counted.needs_operator += 1,
            }
        }
        if let Some(violation) = verdict.violation {
            counted.failures.push((seed, violation.to_string()));
        }
        counted.next_seed += options.threads;
    }
    counted
}

/// Leads lives for a pair until it is reached; returns the violations found on the way.
fn reach(step: StepKind, fault: Fault) -> (Hit, Vec<(StepKind, Fault, u64, String)>) {
    let (mut hit, mut violations) = (Hit::default(), Vec::new());
    for seed in 0..200 {
        let verdict = keywheel_sim::live_with(seed, (step, fault));
        hit.merge(&verdict.hit);
        violations.extend(verdict.violation.map(|seen| (step, fault, seed, seen.to_string())));
        if hit.has(step, fault) {
            break;
        }
    }
    (hit, violations)
}

fn report(options: &Options, counted: &[Counted], hunted: &Hunted, spent: Duration) -> ExitCode {
    let Hunted { walked, reached, model, caught } = hunted;
    let mut hit = walked.hit.clone();
    counted.iter().for_each(|counted| hit.merge(&counted.hit));
    let all = faults::pairs().count();
    let every = StepKind::ALL.len() * Fault::ALL.len();
    let missing = hit.missing();
    let sum = |of: fn(&Counted) -> u64| counted.iter().map(of).sum::<u64>();
    let led = sum(|counted| counted.lifecycles);
    let failures: usize = counted.iter().map(|counted| counted.failures.len()).sum();
    let violations =
        failures + walked.violations.len() + reached.len() + usize::from(model.is_some());
    let numbers = serde_json::json!({
        "lifecycles": led + walked.lifecycles,
        "lifecycles_per_minute": per_minute(led, spent),
        "step_fault_pairs": { "hit": all - missing.len(), "all": all, "excluded": every - all },
        "violations": violations,
        "outcomes": {
            "completed": sum(|counted| counted.completed),
            "undone": sum(|counted| counted.undone),
            "needs_operator": sum(|counted| counted.needs_operator),
        },
        "planted_bugs": { "caught": caught, "all": planted::BUGS.len() },
    });
    if options.json {
        println!("{numbers}");
    } else {
        println!("{numbers:#}");
        println!("{} checks", sum(|counted| counted.checks));
    }
    show_failures(counted);
    walked.violations.iter().for_each(|violation| eprintln!("{violation}\n  replay: cargo run --release -p keywheel-sim -- (the words from `--again` to the colon)"));
    reached.iter().for_each(|(step, fault, seed, violation)| {
        eprintln!("{step:?} with {fault:?}, seed {seed}: {violation}")
    });
    model.iter().for_each(|violation| eprintln!("model: {violation}"));
    missing.iter().for_each(|(step, fault)| eprintln!("not reached: {fault:?} at {step:?}"));
    if violations > 0 || !missing.is_empty() || *caught < planted::BUGS.len() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn per_minute(lifecycles: u64, spent: Duration) -> u64 {
    (lifecycles as f64 / spent.as_secs_f64().max(0.001) * 60.0) as u64
}

fn show_failures(counted: &[Counted]) {
    for (seed, violation) in counted.iter().flat_map(|counted| &counted.failures) {
        eprintln!("{violation}\n  replay: cargo run --release -p keywheel-sim -- --seed {seed}");
    }
}

fn again(arguments: Vec<String>) -> ExitCode {
    let (shape, faults) =
        arguments.split_first().map_or(("", &[][..]), |(shape, faults)| (shape.as_str(), faults));
    match walk::again(shape, faults, true) {
        Ok(verdict) => show(verdict),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn replay(seed: u64) -> ExitCode {
    show(keywheel_sim::live(seed, true))
}

fn show(verdict: keywheel_sim::Verdict) -> ExitCode {
    eprintln!("faults: {:?}, outcomes: {:?}", verdict.fired, verdict.outcomes);
    match verdict.violation {
        Some(violation) => {
            println!("{violation}");
            ExitCode::FAILURE
        }
        None => {
            println!("nothing is violated");
            ExitCode::SUCCESS
        }
    }
}

fn walk_all() -> ExitCode {
    let mut walked = walk::singles(0, 1);
    let singles = walked.lives;
    let pairs = thread::scope(|scope| {
        let threads = [0, 1].map(|part| scope.spawn(move || walk::pairs(part, 2)));
        threads.map(|thread| thread.join().expect("a thread only leads lives"))
    });
    pairs.into_iter().for_each(|pairs| walked.merge(pairs));
    println!(
        "{singles} lives with one fault, {} with two, {} violations",
        walked.lives - singles,
        walked.violations.len()
    );
    walked.violations.iter().for_each(|violation| eprintln!("{violation}"));
    if walked.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn lives_only(options: &Options) -> ExitCode {
    let (counted, spent) = live(options);
    let led = counted.iter().map(|counted| counted.lifecycles).sum();
    let next_seed = counted.iter().map(|counted| counted.next_seed).min().unwrap_or(options.from);
    println!(
        "{led} lifecycles ({} a minute), every seed from {} to before {next_seed}",
        per_minute(led, spent),
        options.from
    );
    show_failures(&counted);
    let clean = counted.iter().all(|counted| counted.failures.is_empty());
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn hunt_all() -> ExitCode {
    let mut survivors = 0;
    for bug in &planted::BUGS {
        match planted::hunt(bug, LIVES_OF_A_BUG) {
            Some((seed, seen)) => println!("{:<38} seed {seed:>5}  {seen}", bug.name),
            None => {
                survivors += 1;
                println!("{:<38} survives", bug.name);
            }
        }
    }
    if survivors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
