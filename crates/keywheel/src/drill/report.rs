//! What came of a drill, for people and for programs.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::words;

/// One thing that was to be seen.
pub(crate) struct Check {
    /// What.
    pub(crate) name: &'static str,
    /// Whether it was seen.
    pub(crate) passed: bool,
    /// How long after the beginning.
    pub(crate) after: Duration,
}

/// The report of one drill.
pub(crate) struct Report {
    place: String,
    began_at: jiff::Timestamp,
    checks: Vec<Check>,
    broke_off: Vec<String>,
}

impl Report {
    /// Begins a report.
    pub(crate) fn new(place: &str) -> Self {
        Self {
            place: place.to_owned(),
            began_at: jiff::Timestamp::now(),
            checks: Vec::new(),
            broke_off: Vec::new(),
        }
    }

    /// Adds what was seen.
    pub(crate) fn add(&mut self, check: Check) {
        self.checks.push(check);
    }

    /// Notes why it did not go on.
    pub(crate) fn broke_off(&mut self, why: &str) {
        self.broke_off.push(why.to_owned());
    }

    /// Returns whether everything was seen.
    pub(crate) fn passed(&self) -> bool {
        self.failures().next().is_none()
    }

    /// Returns what was not.
    pub(crate) fn failures(&self) -> impl Iterator<Item = String> {
        let unseen = self.checks.iter().filter(|check| !check.passed);
        let unseen = unseen.map(|check| format!("not seen: {}", check.name));
        unseen.chain(self.broke_off.iter().cloned())
    }

    /// Returns it for programs.
    pub(crate) fn json(&self, folder: &Path) -> Value {
        let check = |check: &Check| {
            json!({
                "name": check.name,
                "passed": check.passed,
                "after_ms": u64::try_from(check.after.as_millis()).unwrap_or(u64::MAX),
            })
        };
        json!({
            "place": self.place,
            "began_at": self.began_at.to_string(),
            "keywheel": env!("CARGO_PKG_VERSION"),
            "passed": self.passed(),
            "checks": self.checks.iter().map(check).collect::<Vec<_>>(),
            "failures": self.failures().collect::<Vec<_>>(),
            "evidence": folder.display().to_string(),
        })
    }

    /// Returns it for people.
    pub(crate) fn text(&self) -> String {
        let mut rows = vec![["after", "what", "seen"].map(str::to_owned).to_vec()];
        rows.extend(self.checks.iter().map(|check| {
            let after = format!("{:.1} s", check.after.as_secs_f64());
            vec![after, check.name.into(), if check.passed { "yes" } else { "NO" }.into()]
        }));
        let verdict = if self.passed() { "passed" } else { "FAILED" };
        let seen = if self.checks.is_empty() { String::new() } else { words::table(&rows, "") };
        format!("drill {} {}: {verdict}\n{seen}", self.place, self.began_at)
    }

    /// Keeps it with the evidence.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(&self.json(folder))?;
        std::fs::write(folder.join("report.json"), json + "\n")?;
        let why: String = self.failures().map(|why| format!("{why}\n")).collect();
        Ok(std::fs::write(folder.join("report.txt"), self.text() + &why)?)
    }
}
