//! One thing that is wrong in the configuration, and where.

use std::fmt;
use std::path::Path;

use crate::code::Code;
use crate::exit::Exit;
use crate::output::Failure;

/// A line and a column of the file, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The line.
    pub(crate) line: u64,
    /// The column, in characters.
    pub(crate) column: u64,
}

impl Place {
    /// The beginning of the file.
    pub(crate) const START: Self = Self { line: 1, column: 1 };
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One thing that is wrong: in words that repeat no value of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The kind of it.
    pub(crate) code: Code,
    /// Where it is.
    pub(crate) place: Place,
    /// What it is.
    pub(crate) message: String,
    /// What to do.
    pub(crate) hint: Option<String>,
}

impl Problem {
    /// Makes a problem at the beginning of the file.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, place: Place::START, message: message.into(), hint: None }
    }

    /// Says where it is.
    #[must_use]
    pub(crate) fn at(self, place: Place) -> Self {
        Self { place, ..self }
    }

    /// Says what to do.
    #[must_use]
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Makes the failure that people see.
    pub(crate) fn failure(self, file: &Path) -> Failure {
        Failure {
            hint: self.hint.map(Into::into),
            code: Some(self.code),
            exit: Exit::Usage,
            ..Failure::new(format!("{}:{}: {}", file.display(), self.place, self.message))
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.code, self.place, self.message)?;
        self.hint.iter().try_for_each(|hint| write!(f, " ({hint})"))
    }
}
