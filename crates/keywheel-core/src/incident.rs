//! What an emergency keeps for whoever looks into it afterwards: what else may be exposed, and where the logs are.
//!
//! Names and places only. No line of a log and no value ever stands here.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::secret::SecretName;
use crate::time::Timestamp;
use crate::version::VersionId;

/// The id that the rotations of one emergency have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IncidentId(pub String);

impl IncidentId {
    /// Returns the id of an emergency: the same for the same request, and never used twice, since version numbers are not.
    pub fn of<'a>(
        installation: &str,
        members: impl IntoIterator<Item = (&'a SecretName, VersionId)>,
    ) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(installation);
        members
            .into_iter()
            .for_each(|(secret, pending)| hasher.update(format!("\0{secret}\0{pending}")));
        Self(hex::encode(hasher.finalize())[..12].to_owned())
    }
}

impl fmt::Display for IncidentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The part of an emergency that one rotation keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// Which emergency it is of.
    pub id: IncidentId,
    /// When each suspect version was made, where that is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made: Vec<(VersionId, Timestamp)>,
    /// What else stands in the stores from which the suspect may have leaked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<Beside>,
}

/// What else stands in one store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    /// The store, by its name in the configuration.
    pub store: String,
    /// Every slot in it that the suspect does not own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slots: Vec<BesideSlot>,
    /// Why they could not be listed, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_listed: Option<String>,
}

/// One slot beside a suspect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BesideSlot {
    /// Its address.
    pub address: String,
    /// The secret that owns it; none where keywheel does not manage it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<SecretName>,
}

/// Where the logs of one workload are, as they were found before anything was replaced (H124).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadLogs {
    /// Which workload, by index into the plan.
    pub workload: u8,
    /// One for each replica.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<LogReference>,
    /// Why the logs of its replicas are not among them, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_captured: Option<String>,
}

/// Where one replica's log is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogReference {
    /// What people call the replica.
    pub replica: String,
    /// What its engine calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What takes the log: `json-file`, `journald`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// How it is read, a command or a file; none where nothing keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// The file behind it, where its engine tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// From when on, where it is known when the replica was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Until when it was there: the time of the look.
    pub until: Timestamp,
    /// Whether it is still there once the replica is gone, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlives: Option<bool>,
    /// The file into which it is copied before the replica is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_in: Option<String>,
}

/// The replicas of one workload that did not prove the new version when a suspect was ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// Which workload, by index into the plan.
    pub workload: u8,
    /// The replicas, as people call them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<String>,
    /// Why they could not be named, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

/// A store that may still hold a suspect that was ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BehindStore {
    /// Which store, by index into the plan.
    pub store: u8,
    /// What kept it from being written, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emergency_is_named_by_what_it_rotates_to() {
        let of = |installation, versions: [u32; 2]| {
            let names = ["a", "b"].map(|name| SecretName::new(name, "test").unwrap());
            IncidentId::of(installation, names.iter().zip(versions.map(VersionId)))
        };
        let id = of("here", [2, 8]);
        assert_eq!((id.0.len(), &id), (12, &of("here", [2, 8])));
        assert_ne!(id, of("here", [2, 9]));
        assert_ne!(id, of("there", [2, 8]));
    }
}
