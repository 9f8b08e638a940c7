//! `keywheel-sim`: leads lives for a while, counts them, and shows the command that leads a failing one again.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use keywheel_core::event::Outcome;
use keywheel_sim::faults::{self, Fault, Hit, StepKind};
use keywheel_sim::walk::Walked;
use keywheel_sim::{model, planted, walk};

const HELP: &str = "\
Leads simulated lives of rotations and checks that nothing is violated.

  --seconds N      how long (60 unless told)
  --output json    one line of JSON instead of words
  --from N         the first seed (0 unless told)
  --threads N      how many threads (2 unless told)
  --seed N         leads one life again, and shows its records
  --again SHAPE POINT:FAULT…
                   leads one life of the walk again, and shows its records
  --walk           only the exhaustive walk: every point, every fault, and pairs of them
  --planted        only the hunt for planted bugs";

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

struct Options {
    seconds: u64,
    json: bool,
    from: u64,
    threads: u64,
}

/// What one thread counted.
#[derive(Default)]
struct Counted {
    lifecycles: u64,
    checks: u64,
    hit: Hit,
    completed: u64,
    undone: u64,
    needs_operator: u64,
    failures: Vec<(u64, String)>,
}

fn simulate(options: &Options) -> ExitCode {
    let begun = Instant::now();
    // What is not seeded comes first, on two threads; the rest of the time belongs to the seeds.
    let (hunted, (mut walked, reached)) = thread::scope(|scope| {
        let hunted = scope.spawn(|| {
            let caught =
                planted::BUGS.iter().filter(|bug| planted::hunt(bug, 20_000).is_some()).count();
            (caught, model::check().err(), walk::singles(1, 2))
        });
        let mut walked = walk::singles(0, 2);
        let reached = reach_all(&mut walked.hit);
        (hunted.join().expect("a hunt catches its panics"), (walked, reached))
    });
    let (caught, model, half) = hunted;
    walked.merge(half);
    let led = Instant::now();
    let end = begun + Duration::from_secs(options.seconds);
    let failed = AtomicBool::new(false);
    let counted: Vec<Counted> = thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads)
            .map(|number| {
                scope.spawn({
                    let failed = &failed;
                    move || lead(options, number, end, failed)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a thread only leads lives"))
            .collect()
    });
    let spent = led.elapsed();
    report(options, &counted, &walked, reached, model, caught, spent)
}

/// Leads the lives of every n-th seed until the time is over or one of them failed.
fn lead(options: &Options, number: u64, end: Instant, failed: &AtomicBool) -> Counted {
    let mut counted = Counted::default();
    let mut seed = options.from + number;
    while Instant::now() < end && !failed.load(Ordering::Relaxed) {
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
            failed.store(true, Ordering::Relaxed);
        }
        seed += options.threads;
    }
    counted
}

/// Leads lives for each pair that was not reached yet; returns the violations found on the way.
fn reach_all(hit: &mut Hit) -> Vec<(StepKind, Fault, u64, String)> {
    let mut violations = Vec::new();
    for (step, fault) in hit.missing() {
        for seed in 0..200 {
            let verdict = keywheel_sim::live_with(seed, (step, fault));
            hit.merge(&verdict.hit);
            if let Some(violation) = verdict.violation {
                violations.push((step, fault, seed, violation.to_string()));
            }
            if hit.has(step, fault) {
                break;
            }
        }
    }
    violations
}

fn report(
    options: &Options,
    counted: &[Counted],
    walked: &Walked,
    reached: Vec<(StepKind, Fault, u64, String)>,
    model: Option<String>,
    caught: usize,
    spent: Duration,
) -> ExitCode {
    let mut hit = walked.hit.clone();
    counted.iter().for_each(|counted| hit.merge(&counted.hit));
    let all = faults::pairs().count();
    let every = StepKind::ALL.len() * Fault::ALL.len();
    let missing = hit.missing();
    let sum = |of: fn(&Counted) -> u64| counted.iter().map(of).sum::<u64>();
    let led = sum(|counted| counted.lifecycles);
    let failures: Vec<&(u64, String)> =
        counted.iter().flat_map(|counted| &counted.failures).collect();
    let violations =
        failures.len() + walked.violations.len() + reached.len() + usize::from(model.is_some());
    let per_minute = (led as f64 / spent.as_secs_f64().max(0.001) * 60.0) as u64;
    let numbers = serde_json::json!({
        "lifecycles": led + walked.lifecycles,
        "lifecycles_per_minute": per_minute,
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
    for (seed, violation) in failures {
        eprintln!("{violation}\n  replay: cargo run --release -p keywheel-sim -- --seed {seed}");
    }
    walked.violations.iter().for_each(|violation| eprintln!("{violation}\n  replay: cargo run --release -p keywheel-sim -- (the words from `--again` to the colon)"));
    reached.iter().for_each(|(step, fault, seed, violation)| {
        eprintln!("{step:?} with {fault:?}, seed {seed}: {violation}")
    });
    model.iter().for_each(|violation| eprintln!("model: {violation}"));
    missing.iter().for_each(|(step, fault)| eprintln!("not reached: {fault:?} at {step:?}"));
    if violations > 0 || !missing.is_empty() || caught < planted::BUGS.len() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
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

fn hunt_all() -> ExitCode {
    let mut survivors = 0;
    for bug in &planted::BUGS {
        match planted::hunt(bug, 20_000) {
            Some((seed, seen)) => println!("{:<38} seed {seed:>5}  {seen}", bug.name),
            None => {
                survivors += 1;
                println!("{:<38} survives", bug.name);
            }
        }
    }
    if survivors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
