//! The exit codes, in one place.

use std::process::ExitCode;

/// How the program ends, as scripts see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Completed, or promoted with the retirement owed.
    Done,
    /// The command line or the configuration is wrong; nothing was begun.
    Usage,
    /// The rotation was undone; nothing changed.
    Undone,
    /// An operator is needed, or `doctor` or `audit verify` found something.
    NeedsOperator,
    /// Policy, preflight or `check` refused.
    Refused,
    /// The journal or the seal is at fault.
    Journal,
    /// What `--fail-on` names was found.
    FailOn,
}

impl Exit {
    /// Returns the number.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Usage => 1,
            Self::Undone => 2,
            Self::NeedsOperator => 3,
            Self::Refused => 4,
            Self::Journal => 5,
            Self::FailOn => 6,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_can_rely_on_the_numbers() {
        let all = [
            Exit::Done,
            Exit::Usage,
            Exit::Undone,
            Exit::NeedsOperator,
            Exit::Refused,
            Exit::Journal,
            Exit::FailOn,
        ];
        assert_eq!(all.map(Exit::number), [0, 1, 2, 3, 4, 5, 6]);
    }
}
