//! What was checked: counted, timed and said once.

use std::process::ExitCode;
use std::time::Instant;

/// Counts of everything that was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    /// Counts one check by its answer.
    pub(crate) fn one(passed: bool) -> Self {
        Self { passed: u64::from(passed), failed: u64::from(!passed), skipped: 0 }
    }

    pub(crate) fn add(&mut self, more: Self) {
        self.passed += more.passed;
        self.failed += more.failed;
        self.skipped += more.skipped;
    }

    /// Returns the exit code of a chore that checked this.
    pub(crate) fn exit(self) -> ExitCode {
        ExitCode::from(u8::from(self.failed > 0))
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Everything that one run of the chore `test` found.
#[derive(Default)]
pub(crate) struct Report {
    counts: Counts,
    skipped: Vec<String>,
}

impl Report {
    /// Runs a stage, and says how it ended and how long it took; returns whether nothing failed. A stage that cannot even run counts
    /// as one failure.
    pub(crate) fn stage(
        &mut self,
        name: &str,
        stage: impl FnOnce() -> anyhow::Result<Counts>,
    ) -> bool {
        println!("== {name}");
        let begun = Instant::now();
        let counts = stage().unwrap_or_else(|error| {
            println!("   error: {error:#}");
            Counts::one(false)
        });
        println!("   {name}: {counts} ({:.1} s)", begun.elapsed().as_secs_f64());
        self.counts.add(counts);
        counts.failed == 0
    }

    /// Says that something was not checked, and why.
    pub(crate) fn skip(&mut self, what: &str, why: &str) {
        self.counts.skipped += 1;
        self.skipped.push(format!("{what}: {why}"));
    }

    /// Names skips that a stage has counted already.
    pub(crate) fn explain(&mut self, whys: impl IntoIterator<Item = String>) {
        self.skipped.extend(whys);
    }

    pub(crate) fn failed(&self) -> bool {
        self.counts.failed > 0
    }

    /// Says everything, the counts alone on the last line.
    pub(crate) fn close(self) -> ExitCode {
        for skipped in &self.skipped {
            println!("skipped {skipped}");
        }
        println!("{}", self.counts);
        self.counts.exit()
    }
}
