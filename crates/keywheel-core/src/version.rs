//! Versions of a secret: what readers are given (stage) and whether a version may be used (state). Two questions, two types.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A generation of a secret: `v8`. Numbers only grow; a version that was undone keeps its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VersionId(pub u32);

impl VersionId {
    /// Returns the number after this one.
    #[must_use]
    pub const fn successor(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// Which version readers are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Being delivered; not every reader has it.
    Pending,
    /// What every reader has.
    Current,
    /// What every reader had before.
    Previous,
}

/// Whether a version may be used (NIST SP 800-57 pt 1, 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Intended, and not yet known to be accepted by its issuer.
    PreActivation,
    /// Accepted.
    Active,
    /// Refused for now; can be accepted again.
    Suspended,
    /// Refused for good.
    Deactivated,
    /// Known or suspected to be in other hands; never written again.
    Compromised,
    /// Refused for good, and its value can no longer be unsealed.
    Destroyed,
}

/// How the issuer names a version: an opaque id, and the generation where one id is used again (a database login).
///
/// An end (suspend, resume, revoke) names both, and the issuer driver checks both just before it acts (H92).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IssuedId {
    /// The issuer's id.
    pub id: String,
    /// The generation kept at the issuer, for ids that are used again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

impl IssuedId {
    /// Names an id that is never used again.
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), generation: None }
    }
}

impl fmt::Display for IssuedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.generation {
            Some(generation) => write!(f, "{} (generation {generation})", self.id),
            None => f.write_str(&self.id),
        }
    }
}
