//! Proves of each closed hazard that its test notices when the protection is gone.
//!
//! The table is `docs/hazards.md`. A pair `` `switch` → `crate::test` `` in a row says: the switch (a `planted!` in the code)
//! removes the protection, and the test then fails. Each test runs once with every switch off, unless all tests just passed, and once
//! for each switch that it must notice. A switch that no row names, and a row that names no switch of the code, are failures too.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};

use crate::cargo::{self, Built};
use crate::report::Counts;

const TABLE: &str = "docs/hazards.md";

/// How many hazards there are.
const HAZARDS: usize = 132;

/// How long a test may take before its failure to end counts as a failure.
const PATIENCE: Duration = Duration::from_secs(180);

/// Which hazards.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only rows whose number begins so, or pairs whose switch or test contains this.
    only: Option<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let counts = check(args.only.as_deref(), false)?;
    println!("{counts}");
    Ok(counts.exit())
}

/// Runs the test of each pair with the switch off, where not all tests are known to pass so, and on; says what failed in the order of
/// the table.
pub(crate) fn check(only: Option<&str>, all_pass: bool) -> anyhow::Result<Counts> {
    let rows = rows(&std::fs::read_to_string(cargo::root().join(TABLE)).context(TABLE)?);
    let mut counts = Counts::one(is_complete(&rows));
    counts.add(Counts::one(switches_agree(&rows)?));
    let chosen = |row: &Row, pair: &Pair| {
        only.is_none_or(|only| {
            row.number == only || pair.switch.contains(only) || pair.test.contains(only)
        })
    };
    let tests = Tests::build(all_pass)?;
    let pairs: Vec<_> = rows
        .iter()
        .flat_map(|row| row.pairs.iter().map(move |pair| (row, pair)))
        .filter(|(row, pair)| chosen(row, pair))
        .collect();
    let answers = side_by_side(&pairs, |(_, pair)| tests.prove(pair));
    for ((row, pair), answer) in pairs.iter().zip(answers) {
        if let Err(why) = &answer {
            println!("   {} `{}` → `{}`: {why:#}", row.number, pair.switch, pair.test);
        }
        counts.add(Counts::one(answer.is_ok()));
    }
    Ok(counts)
}

/// Works on several items at once, and returns what came of them in their order.
fn side_by_side<T: Sync, R: Send + Sync>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let results: Vec<_> = items.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let worker = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { break };
            results[at].get_or_init(|| work(item));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..cargo::side_by_side() {
            scope.spawn(worker);
        }
    });
    results.into_iter().map(|result| result.into_inner().expect("every item has a turn")).collect()
}

/// One row of the table.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    number: String,
    state: String,
    pairs: Vec<Pair>,
}

/// A switch that removes a protection, and the test that notices.
#[derive(Debug, PartialEq, Eq)]
struct Pair {
    switch: String,
    test: String,
}

fn rows(table: &str) -> Vec<Row> {
    let row = |line: &str| {
        let cells: Vec<_> = line
            .strip_prefix("| ")?
            .trim_end_matches(['|', ' '])
            .split(" | ")
            .map(str::trim)
            .collect();
        let [number, _, state, rest @ ..] = &cells[..] else { return None };
        let digits = number.strip_prefix(['H', 'I', 'L'])?;
        digits.chars().all(|digit| digit.is_ascii_digit()).then(|| Row {
            number: (*number).to_owned(),
            state: (*state).to_owned(),
            pairs: pairs(rest.first().copied().unwrap_or_default()),
        })
    };
    table.lines().filter_map(row).collect()
}

fn pairs(cell: &str) -> Vec<Pair> {
    let quoted = |text: &str| Some(text.split('`').nth(1)?.to_owned());
    let pair = |text: &str| {
        let (switch, test) = text.split_once('→')?;
        Some(Pair { switch: quoted(switch)?, test: quoted(test)? })
    };
    cell.split("; ").filter_map(pair).collect()
}

/// Returns whether every hazard has one row, and exactly the closed ones name a pair.
fn is_complete(rows: &[Row]) -> bool {
    let mut complete = true;
    let mut complain = |what: String| {
        println!("   {TABLE}: {what}");
        complete = false;
    };
    let hazards: Vec<_> = rows.iter().filter(|row| row.number.starts_with('H')).collect();
    for number in (1..=HAZARDS).map(|number| format!("H{number:02}")) {
        match hazards.iter().filter(|row| row.number == number).count() {
            1 => {}
            count => complain(format!("{count} rows for {number}")),
        }
    }
    for row in rows {
        let state = row.state.split([':', ' ']).next().unwrap_or_default();
        match (state, row.pairs.is_empty()) {
            ("closed", false) | ("later", true) => {}
            ("closed", true) => complain(format!("{} is closed by nothing", row.number)),
            _ => complain(format!("{} is `{}`", row.number, row.state)),
        }
    }
    complete
}

/// Returns whether the table and the code name the same switches.
fn switches_agree(rows: &[Row]) -> anyhow::Result<bool> {
    let mut code = BTreeSet::new();
    for file in cargo::tracked("rs")?.iter().filter(|file| file.starts_with("crates/")) {
        code.extend(switches(&std::fs::read_to_string(cargo::root().join(file))?));
    }
    let table: BTreeSet<_> =
        rows.iter().flat_map(|row| &row.pairs).map(|pair| pair.switch.clone()).collect();
    for switch in code.difference(&table) {
        println!("   {TABLE}: no row names the switch `{switch}`");
    }
    for switch in table.difference(&code) {
        println!("   {TABLE}: there is no switch `{switch}`");
    }
    Ok(code == table)
}

fn switches(source: &str) -> Vec<String> {
    let named = source.split("planted!(").skip(1);
    named
        .filter_map(|rest| Some(rest.trim_start().strip_prefix('"')?.split_once('"')?.0.to_owned()))
        .collect()
}

/// Every test of the workspace, built once with the switches in it.
struct Tests {
    programs: Vec<Built>,
    by_crate: BTreeMap<String, Vec<Found>>,
    /// Whether all of them just passed with the protections in place.
    all_pass: bool,
}

/// A test, and the program that it is in.
struct Found {
    name: String,
    program: usize,
    /// Whether it passes with the protection in place, which many pairs ask of the same test.
    in_place: OnceLock<anyhow::Result<bool>>,
}

impl Tests {
    fn build(all_pass: bool) -> anyhow::Result<Self> {
        let built = cargo::build_tests()?;
        let programs: Vec<_> = built.into_iter().filter(|built| built.test).collect();
        let mut by_crate = BTreeMap::<_, Vec<_>>::new();
        for (program, built) in programs.iter().enumerate() {
            let mut list = Command::new(&built.program);
            let listed = cargo::output(
                list.current_dir(&built.folder).args(["--list", "--format", "terse"]),
            )?;
            for name in
                String::from_utf8(listed)?.lines().filter_map(|line| line.strip_suffix(": test"))
            {
                let found = Found { name: name.to_owned(), program, in_place: OnceLock::new() };
                by_crate.entry(built.package.clone()).or_default().push(found);
            }
        }
        Ok(Self { programs, by_crate, all_pass })
    }

    /// Runs the test of a pair with the switch off, unless another pair did, and on.
    fn prove(&self, pair: &Pair) -> anyhow::Result<()> {
        let (package, name) =
            pair.test.split_once("::").context("a test is named `crate::test`")?;
        let inside = format!("::{name}");
        let all = self
            .by_crate
            .get(package)
            .with_context(|| format!("no crate `{package}` has tests"))?;
        let found: Vec<_> =
            all.iter().filter(|test| test.name == name || test.name.ends_with(&inside)).collect();
        ensure!(!found.is_empty(), "there is no such test");
        for test in found.iter().filter(|_| !self.all_pass) {
            let passes = test.in_place.get_or_init(|| self.passes(test, None));
            let passes = passes.as_ref().map_err(|why| anyhow!("{why:#}"))?;
            ensure!(passes, "it fails with the protection in place");
        }
        for test in &found {
            if !self.passes(test, Some(&pair.switch))? {
                return Ok(());
            }
        }
        anyhow::bail!("it passes with the protection removed")
    }

    /// Runs one test in a process of its own; one that does not end fails.
    fn passes(&self, test: &Found, switch: Option<&str>) -> anyhow::Result<bool> {
        let built = &self.programs[test.program];
        let mut command = Command::new(&built.program);
        command.current_dir(&built.folder).args(["--exact", &test.name, "--test-threads", "1"]);
        command.env("CARGO_MANIFEST_DIR", &built.folder);
        // A failure that is wanted leaves nothing in the work tree.
        command.env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1").env("INSTA_UPDATE", "no");
        match switch {
            Some(switch) => command.env("KEYWHEEL_PLANTED", switch),
            None => command.env_remove("KEYWHEEL_PLANTED"),
        };
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(end(child)?)
    }
}

fn end(mut child: Child) -> std::io::Result<bool> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill()?;
    child.wait()?;
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_with_all_its_pairs() {
        let table = "# Words\n| # | what | state | by |\n|---|---|---|---|\n| H01 | effect first | closed | `a` → `x::t`; `b` → `y::u` |\n";
        let pair = |switch: &str, test: &str| Pair { switch: switch.into(), test: test.into() };
        let row = Row {
            number: "H01".into(),
            state: "closed".into(),
            pairs: vec![pair("a", "x::t"), pair("b", "y::u")],
        };
        assert_eq!(rows(table), [row]);
    }

    #[test]
    fn a_closed_row_needs_a_pair_and_a_later_one_has_none() {
        let all = |state: &str, cell: &str| {
            let line = |number| format!("| H{number:02} | words | {state} | {cell} |\n");
            rows(&(1..=HAZARDS).map(line).collect::<String>())
        };
        assert!(is_complete(&all("closed", "`a` → `x::t`")));
        assert!(is_complete(&all("later: PostgreSQL", "")));
        assert!(!is_complete(&all("closed", "")));
        assert!(!is_complete(&all("later: PostgreSQL", "`a` → `x::t`")));
        assert!(!is_complete(&all("open", "")));
        assert!(!is_complete(&all("closed", "`a` → `x::t`")[1..]));
    }

    #[test]
    fn work_side_by_side_is_done_once_and_stays_in_order() {
        let begun = AtomicUsize::new(0);
        let double = |n: &usize| {
            begun.fetch_add(1, Ordering::Relaxed);
            n * 2
        };
        let items: Vec<_> = (0..100).collect();
        let doubled: Vec<_> = items.iter().map(|n| n * 2).collect();
        assert_eq!(side_by_side(&items, double), doubled);
        assert_eq!(begun.into_inner(), items.len());
    }

    #[test]
    fn switches_are_found_in_source() {
        let source = concat!("if planted", "!(\"one\") || crate::planted", "!(\n    \"two\"\n) {}");
        assert_eq!(switches(source), ["one", "two"]);
    }
}
