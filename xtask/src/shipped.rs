//! The binary that is shipped holds no planted bug and no fail point, and is compiled without a warning.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use aho_corasick::AhoCorasick;
use anyhow::Context;

use crate::cargo;
use crate::report::Counts;

/// What stands in a binary only if a test's feature was compiled into it.
const FORBIDDEN: [&str; 4] =
    ["KEYWHEEL_PLANTED", "KEYWHEEL_FAIL_POINT", "soak_on_wall_clock", "parks_on_any_unknown"];

pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let (program, counts) = check()?;
    println!("{}: {counts}", program.display());
    Ok(counts.exit())
}

/// Builds the program by itself (a build of the whole workspace would unite the features of all its parts) and looks into it.
pub(crate) fn check() -> anyhow::Result<(PathBuf, Counts)> {
    let (built, warnings) = cargo::build_warned(&["build", "--release", "-p", "keywheel"])?;
    let program =
        built.into_iter().map(|built| built.program).next().context("cargo built no program")?;
    let found = search(&std::fs::read(&program)?);
    for name in &found {
        println!("   {} holds `{name}`", program.display());
    }
    let mut counts = Counts::one(found.is_empty());
    counts.add(Counts::one(warnings == 0));
    Ok((program, counts))
}

fn search(program: &[u8]) -> Vec<&'static str> {
    let names = AhoCorasick::new(FORBIDDEN).expect("four short names make a searcher");
    let found: BTreeSet<_> =
        names.find_iter(program).map(|found| found.pattern().as_usize()).collect();
    found.into_iter().map(|name| FORBIDDEN[name]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forbidden_name_is_found_anywhere() {
        assert_eq!(search(b"\x7fELF..KEYWHEEL_FAIL_POINT.."), ["KEYWHEEL_FAIL_POINT"]);
        assert!(search(b"\x7fELF").is_empty());
    }
}
