//! The one command: brings the tools that are missing, runs every check, and says what it could not check.
//!
//! Everything runs inside one folder, and the last stage reads every byte of that folder for the secrets that tests used.

use std::fs::File;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Context;

use crate::report::{Counts, Report};
use crate::run_folder::RunFolder;
use crate::{cargo, deny, example, fmt, hazards, leaks, links, shipped, sim, tools};

/// How much.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long the simulator leads random lives.
    #[arg(long, default_value_t = 30)]
    sim_seconds: u32,
    /// Keeps the folder of the run even if nothing failed.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut report = Report::default();
    for (tool, why) in tools::bring() {
        report.skip(tool.without, &format!("`{}` is {why}", tool.name));
    }
    let folder = RunFolder::make()?;
    println!("everything runs in {}", folder.path().display());
    report.stage("format", || fmt::format(true));
    report.stage("links", links::check);
    report.stage("lints", lints);
    let mut skipped = Vec::new();
    let passed = report.stage("tests", || tests(&folder, &mut skipped));
    report.stage("examples in the documentation", || doc_tests(&folder));
    report.explain(skipped);
    report.stage("hazards", || hazards::check(None, passed));
    report.stage("simulator", || simulator(args.sim_seconds));
    let mut program = None;
    report.stage("shipped binary", || {
        let (built, counts) = shipped::check()?;
        program = Some(built);
        Ok(counts)
    });
    report.stage("demonstration", || {
        demo(&folder, program.as_deref().context("there is no binary")?)
    });
    match deny::check() {
        Ok(None) => {
            report.skip("licences and advisories of dependencies", "cargo-deny is not installed");
        }
        checked => {
            report.stage("dependencies", || checked.map(Option::unwrap_or_default));
        }
    }
    report.stage("leaks", || leaks::check(folder.path()));
    match report.failed() || args.keep {
        true => println!("what it left is in {}", folder.path().display()),
        false => folder.remove()?,
    }
    Ok(report.close())
}

/// Lints everything with every feature; what is left without them has its warnings counted where it is shipped.
fn lints() -> anyhow::Result<Counts> {
    let mut clippy = cargo::cargo(&["clippy", "--quiet", "--workspace", "--all-targets"]);
    let status = clippy.args(["--all-features", "--", "-D", "warnings"]).status()?;
    Ok(Counts::one(status.success()))
}

/// Runs the tests of every crate, with nextest where there is one.
fn tests(folder: &RunFolder, skipped: &mut Vec<String>) -> anyhow::Result<Counts> {
    // Tests would build it one after another otherwise.
    let _program = example::build()?;
    let features = cargo::test_features()?;
    let nextest = tools::find("cargo-nextest").is_some();
    let mut runner = match nextest {
        true => {
            cargo::cargo(&["nextest", "run", "--workspace", "--no-fail-fast", "--color", "never"])
        }
        false => cargo::cargo(&[
            "test",
            "--workspace",
            "--no-fail-fast",
            "--lib",
            "--bins",
            "--tests",
            "--color",
            "never",
        ]),
    };
    let kept = folder.path().join("kill9");
    std::fs::create_dir(&kept)?;
    runner.args(["--features", &features]).env("KEYWHEEL_TEST_KEEP", kept);
    match nextest {
        true => runner.args(["--test-threads", &cargo::side_by_side().to_string()]).args([
            "--success-output",
            "immediate",
            "--failure-output",
            "immediate-final",
        ]),
        false => runner.args(["--", "--show-output"]),
    };
    let told = listen(folder, "tests", &mut runner)?;
    let mut counts = if nextest { of_nextest(&told)? } else { of_cargo(&told)? };
    let own: Vec<_> = told
        .lines()
        .filter_map(|line| line.trim().strip_prefix("skipped: "))
        .map(str::to_owned)
        .collect();
    counts.passed -= own.len() as u64;
    counts.skipped += own.len() as u64;
    skipped.extend(own);
    Ok(counts)
}

/// Runs the examples in the documentation. Each crate is read once more for them, so that nothing is where there are none.
fn doc_tests(folder: &RunFolder) -> anyhow::Result<Counts> {
    let mut is_any = false;
    for file in cargo::tracked("rs")?.iter().filter(|file| file.contains("/src/")) {
        is_any |= has_example(&std::fs::read_to_string(cargo::root().join(file))?);
    }
    if !is_any {
        return Ok(Counts::default());
    }
    let mut cargo =
        cargo::cargo(&["test", "--workspace", "--doc", "--no-fail-fast", "--color", "never"]);
    let told = listen(folder, "doc-tests", cargo.args(["--features", &cargo::test_features()?]))?;
    of_cargo(&told)
}

/// Whether the documentation in a source has an example that can be run.
fn has_example(source: &str) -> bool {
    let comments = source.lines().map(str::trim_start);
    let words = comments.filter_map(|it| it.strip_prefix("//!").or_else(|| it.strip_prefix("///")));
    let fences = words.filter_map(|words| words.trim_start().strip_prefix("```"));
    let mut opening = fences.step_by(2);
    opening.any(|language| !["text", "ignore", "yaml", "json", "sh"].contains(&language))
}

fn simulator(seconds: u32) -> anyhow::Result<Counts> {
    let (verdict, counts) = sim::check(cargo::build_tests()?, seconds, None)?;
    for line in verdict.to_string().lines() {
        println!("   {line}");
    }
    Ok(counts)
}

/// Runs the demonstration with every process's arguments written down, and reads its verdict.
fn demo(folder: &RunFolder, program: &Path) -> anyhow::Result<Counts> {
    let kept = folder.path().join("demo");
    std::fs::create_dir(&kept)?;
    let mut demo = match tools::find("strace") {
        None => Command::new(program),
        Some(strace) => {
            let mut traced = Command::new(strace);
            traced.args(["-f", "--seccomp-bpf", "-qq", "-s", "65536", "-e", "trace=execve", "-o"]);
            traced.arg(kept.join("execve")).arg(program);
            traced
        }
    };
    folder.enter(demo.args(["demo", "--output", "json"]));
    let errors = File::create(folder.output("demo.stderr"))?;
    let output = demo
        .current_dir(&kept)
        .stderr(errors)
        .output()
        .context("the demonstration cannot be run")?;
    std::fs::write(folder.output("demo.stdout"), &output.stdout)?;
    let said = String::from_utf8(output.stdout)?;
    println!("   {}", said.trim());
    let verdict: serde_json::Value =
        serde_json::from_str(&said).context("the demonstration said no JSON")?;
    Ok(Counts::one(output.status.success() && verdict.is_object()))
}

/// Runs something inside the folder, keeps what it prints there, and shows the end of it where it failed.
fn listen(folder: &RunFolder, stage: &str, command: &mut Command) -> anyhow::Result<String> {
    let path = folder.output(stage);
    let file = File::create(&path)?;
    command
        .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1")
        .env("INSTA_UPDATE", "no")
        .env_remove("KEYWHEEL_PLANTED");
    folder.enter(command);
    let status = command.stdout(file.try_clone()?).stderr(file).status()?;
    let told = String::from_utf8_lossy(&std::fs::read(path)?).into_owned();
    if !status.success() {
        println!("{}", cargo::tail(&told, 200));
    }
    Ok(told)
}

/// Reads the counts from the last line of nextest: `Summary [1.0s] 12 tests run: 11 passed (1 slow), 1 failed, 2 skipped`. Where
/// it ended early, that says `12/14 tests run`, and what was not run has failed.
fn of_nextest(told: &str) -> anyhow::Result<Counts> {
    let mut summaries = told.lines().filter(|line| line.trim_start().starts_with("Summary ["));
    let summary = summaries.next_back().context("the tests could not be run")?;
    let (begun, numbers) =
        summary.split_once("run: ").context("nextest counts in other words than it did")?;
    let mut counts = count(numbers, &[("passed", 0), ("failed", 1), ("timed", 1), ("skipped", 2)]);
    let of_all = begun.split_whitespace().find_map(|word| word.split_once('/'));
    if let Some((run, all)) = of_all {
        counts.failed += all.parse::<u64>()? - run.parse::<u64>()?;
    }
    Ok(counts)
}

/// Adds up the counts of every program that cargo ran: `test result: ok. 5 passed; 0 failed; 1 ignored; …`.
fn of_cargo(told: &str) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    for line in told.lines().filter_map(|line| line.strip_prefix("test result: ")) {
        let numbers = line.split_once(". ").map_or(line, |(_, numbers)| numbers);
        counts.add(count(numbers, &[("passed", 0), ("failed", 1), ("ignored", 2)]));
    }
    anyhow::ensure!(
        counts != Counts::default() || told.contains("test result:"),
        "the tests could not be run"
    );
    Ok(counts)
}

fn count(numbers: &str, names: &[(&str, usize)]) -> Counts {
    let words: Vec<_> = numbers
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    let mut sums = [0; 3];
    for pair in words.windows(2) {
        let named = names.iter().find(|(name, _)| *name == pair[1]);
        if let (Ok(number), Some((_, kind))) = (pair[0].parse::<u64>(), named) {
            sums[*kind] += number;
        }
    }
    Counts { passed: sums[0], failed: sums[1], skipped: sums[2] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_what_runners_print() {
        let nextest = "     Summary [   1.2s] 14 tests run: 11 passed (1 slow), 2 failed, 1 timed out, 3 skipped\n";
        assert_eq!(of_nextest(nextest).unwrap(), Counts { passed: 11, failed: 3, skipped: 3 });
        let early = "     Summary [   1.2s] 11/14 tests run: 11 passed (1 slow), 1 skipped\n";
        assert_eq!(of_nextest(early).unwrap(), Counts { passed: 11, failed: 3, skipped: 1 });
        let cargo = "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                     test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        assert_eq!(of_cargo(cargo).unwrap(), Counts { passed: 6, failed: 2, skipped: 1 });
    }

    #[test]
    fn a_run_that_said_nothing_is_no_success() {
        assert!(of_nextest("error: could not compile").is_err());
        assert!(of_cargo("error: could not compile").is_err());
    }

    #[test]
    fn an_example_in_the_documentation_is_found() {
        let source = |language: &str| {
            format!("/// It is so:\n/// ```{language}\n/// one\n/// ```\nfn f() {{}}\n")
        };
        assert!(has_example(&source("")));
        assert!(has_example(&source("no_run")));
        assert!(!has_example(&source("text")));
        assert!(!has_example("let fence = \"```\";\n"));
    }
}
