//! What came of a call to a driver: done, refused, or unknown. There is no fourth.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::time::Span;

/// A call that was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum CallError {
    /// Definitely not done; nothing changed.
    #[error("{0}")]
    Refused(Refusal),
    /// No answer, or one that says nothing: it may have been done, and may still land. It is observed, never guessed.
    #[error("no answer: {0}")]
    Unknown(String),
}

/// A definite no, in words that hold no value, no URL and no body of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What kind of no.
    pub kind: RefusalKind,
    /// What the caller may do.
    pub remedy: Remedy,
    /// One lower-case sentence for people, such as ``issuer `openai` answered 403 (request 9f2c)``.
    pub message: String,
}

impl Refusal {
    /// A no that only an operator can change.
    pub fn operator(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, remedy: Remedy::Operator, message: message.into() }
    }

    /// Returns whether asking again gets the same answer.
    pub fn is_for_good(&self) -> bool {
        self.remedy == Remedy::Operator
    }

    /// A no that may pass by itself.
    pub fn retry(kind: RefusalKind, after: Option<Span>, message: impl Into<String>) -> Self {
        Self { kind, remedy: Remedy::Retry { after }, message: message.into() }
    }
}

impl From<Refusal> for CallError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// What a refused caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// Try again, not before the time the other side named (`Retry-After`).
    Retry {
        /// The wait that the other side asked for.
        after: Option<Span>,
    },
    /// Stop: asking again gets the same answer (L03).
    Operator,
}

/// The kinds of no that a decision hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The caller may not do this.
    Permission,
    /// A cap is reached.
    Quota,
    /// The slot holds something that no version of ours explains.
    Conflict,
    /// Stores hold different versions of one secret.
    Disagree,
    /// The credential is not accepted.
    Invalid,
    /// The issuer will not take the value that we made; another one may do (H06).
    ValueRejected,
    /// A replica with the pending version does not come up.
    WorkloadFailed,
    /// Too many calls.
    RateLimited,
    /// The other side is down or unreachable, and it is certain that nothing was done.
    Unavailable,
    /// The thing is not there.
    NotFound,
    /// The driver cannot do this here, and says why.
    Unsupported,
    /// The local system refused: permission, disk full, read-only.
    Local,
    /// It takes a person, and nobody is there to be asked.
    NeedsPerson,
}
