//! The configuration: `keywheel.yaml`, strictly read.
//!
//! The way of a file: text → [`yaml`] → [`tree`] (nodes with places) → [`by_env`] (one environment's view) → [`cluster`] (handed down to drivers) → [`file`] (types, read by
//! [`typed`]) → [`resolve`] (names looked up in [`scope`], rules checked in [`rules`]). An error names file, line, column, the key and a suggestion,
//! and never repeats what stands in the file, because a pasted key may stand there.

pub(crate) mod by_env;
mod cluster;
pub(crate) mod file;
mod forms;
mod lend;
pub(crate) mod problem;
pub(crate) mod resolve;
mod rules;
pub(crate) mod schema;
mod scope;
pub(crate) mod suggest;
#[cfg(test)]
mod tests;
pub(crate) mod tree;
pub(crate) mod typed;
mod version;
pub(crate) mod yaml;

use std::path::{Path, PathBuf};

pub(crate) use resolve::{Config, Environment, Secret, Workload};

use crate::code;
use crate::output::Failure;

/// The name of the file.
pub(crate) const FILE: &str = "keywheel.yaml";

/// Finds, reads and checks the configuration: the file given, else the nearest `keywheel.yaml` here or above.
///
/// # Errors
/// A [`Failure`] for the file, with one more for each further problem in it.
pub(crate) fn load(given: Option<&Path>) -> Result<Config, Failure> {
    let file = match given {
        Some(file) => file.to_owned(),
        None => nearest_file()?,
    };
    parse(&read(&file)?, &file)
}

/// Reads the text of a configuration file.
///
/// # Errors
/// A [`Failure`] that names it.
pub(crate) fn read(file: &Path) -> Result<String, Failure> {
    let bytes = std::fs::read(file).map_err(|error| unreadable(file, &error))?;
    String::from_utf8(bytes).map_err(|_| {
        Failure::new(format!("`{}` is not UTF-8", file.display())).code(code::NOT_YAML)
    })
}

/// Checks a text that stands in a file, or is to stand there.
///
/// # Errors
/// As [`load`].
pub(crate) fn parse(text: &str, file: &Path) -> Result<Config, Failure> {
    let folder = std::path::absolute(file).map_err(|error| unreadable(file, &error))?;
    let folder = folder.parent().unwrap_or(Path::new("/"));
    Config::parse(text, file, folder).map_err(|problems| {
        Failure::of_all(problems.into_iter().map(|problem| problem.failure(file)))
            .expect("a refusal names at least one problem")
    })
}

fn unreadable(file: &Path, error: &std::io::Error) -> Failure {
    let failure =
        Failure::new(format!("`{}` cannot be read", file.display())).code(code::UNREADABLE);
    failure.caused_by(error.kind().to_string())
}

fn nearest_file() -> Result<PathBuf, Failure> {
    let missing = |cause: &str| {
        let failure = Failure::new(format!("there is no `{FILE}` here or in a folder above"))
            .code(code::UNREADABLE);
        let failure = failure.hint(
            "let `keywheel init` propose one (`keywheel explain K0101` shows the smallest), or name one with `--config`",
        );
        if cause.is_empty() { failure } else { failure.caused_by(cause) }
    };
    let here = std::env::current_dir().map_err(|error| missing(&error.kind().to_string()))?;
    let found = here.ancestors().map(|folder| folder.join(FILE)).find(|file| file.is_file());
    let found = found.ok_or_else(|| missing(""))?;
    Ok(found.strip_prefix(&here).map(Path::to_owned).unwrap_or(found))
}
