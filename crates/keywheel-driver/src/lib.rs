//! The contracts that every driver keeps.
//!
//! A driver is the code behind one issuer, store, workload, probe or notifier. What it can do is data ([`keywheel_core::facts`]); an
//! optional ability is an `Option<&dyn …>`, so that the two cannot disagree. Every method is safe to repeat, and safe to
//! drop at any await: the engine treats a dropped call as unknown and observes it.
//!
//! Duties common to all:
//! - Give a definite no as [`CallError::Refused`] only where it is certain that nothing was done and nothing will land.
//!   Everything else is [`CallError::Unknown`].
//! - Never put a value, a URL, or the body of an answer into a message: issuers echo keys (H115).
//! - Do not retry. The engine does, after it has journaled what came of the call.

pub mod claim;
pub mod duration;
pub mod fail_point;
pub mod guide;
pub mod issuer;
pub mod notifier;
pub mod pin;
pub mod probe;
pub mod reference;
pub mod right;
pub mod slot;
pub mod store;
pub mod workload;
pub mod writer;

#[cfg(feature = "conformance")]
pub mod conformance;

pub use claim::{Claim, Claims, Owner};
pub use duration::Duration;
pub use issuer::Issuer;
pub use keywheel_core::call::{CallError, Refusal, RefusalKind, Remedy};
pub use notifier::Notifier;
pub use probe::Probe;
pub use reference::SecretReference;
pub use right::Right;
pub use store::Store;
pub use workload::Workload;
pub use writer::Writer;

/// One thing that `check` and `preflight` found, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether a rotation can go on with it.
    pub severity: Severity,
    /// One lower-case sentence without values.
    pub message: String,
}

impl Finding {
    /// Makes a finding that a rotation can go on with.
    pub fn note(message: impl Into<String>) -> Self {
        Self { severity: Severity::Note, message: message.into() }
    }

    /// Makes a finding that a rotation must not begin with.
    pub fn blocks(message: impl Into<String>) -> Self {
        Self { severity: Severity::Blocks, message: message.into() }
    }
}

/// How much a finding weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// A rotation must not begin.
    Blocks,
}
