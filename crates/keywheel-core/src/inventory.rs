//! The inventory: one row for each secret, which `status` reads and each commit keeps in step with the rotation it belongs to.

use serde::{Deserialize, Serialize};

use crate::event::{Outcome, ParkReason};
use crate::plan::{Label, RotationId};
use crate::secret::SecretName;
use crate::time::Timestamp;
use crate::version::{IssuedId, Stage, State, VersionId};

/// What is known of one secret between rotations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// The secret.
    pub secret: SecretName,
    /// Its versions that are not destroyed, oldest first.
    pub versions: Vec<Version>,
    /// The number that the next version gets. Numbers are never used twice.
    pub next: VersionId,
    /// The open rotation and what it owes.
    pub open: Option<OpenRotation>,
    /// When the current version became current, where it is known.
    pub rotated_at: Option<Timestamp>,
    /// How the last rotation ended.
    pub last_outcome: Option<Outcome>,
    /// Why the schedule is held, where it is: after a reversal, until an operator clears it.
    pub held_because: Option<String>,
}

/// One version of a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Its number.
    pub version: VersionId,
    /// Which readers are given it.
    pub stage: Option<Stage>,
    /// Whether it may be used.
    pub state: State,
    /// Its id at the issuer, where it is known.
    pub issued: Option<IssuedId>,
    /// The label it was minted under.
    pub label: Option<Label>,
    /// When it was made, where it is known.
    pub created_at: Option<Timestamp>,
    /// When the issuer ends it by itself.
    pub expires_at: Option<Timestamp>,
}

/// The open rotation of a secret, as `status` shows it without replaying its records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRotation {
    /// Its id.
    pub rotation: RotationId,
    /// Its phase, in the pinned words.
    pub phase: String,
    /// When it owes something next; none while it waits for an operator.
    pub owed_at: Option<Timestamp>,
    /// Why it waits for an operator, where it does.
    pub parked: Option<ParkReason>,
    /// Whether the new version was promoted: what is left is the retirement of the previous one.
    pub retirement: bool,
}

impl Inventory {
    /// Begins the row of a secret that was never seen.
    pub fn new(secret: SecretName) -> Self {
        Self {
            secret,
            versions: Vec::new(),
            next: VersionId(1),
            open: None,
            rotated_at: None,
            last_outcome: None,
            held_because: None,
        }
    }

    /// Returns the version at a stage.
    pub fn at(&self, stage: Stage) -> Option<&Version> {
        self.versions.iter().find(|version| version.stage == Some(stage))
    }
}
