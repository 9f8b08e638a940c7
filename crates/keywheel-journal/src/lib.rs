//! The durable record of every rotation.
//!
//! A journal is append-only and knows nothing of drivers. One [`Append`] is one durable commit: events, sealed values, the
//! inventory rows they change, wave leases and audit records stand or fall together (I03, I13). An append names the epoch of
//! the secret and the sequence of the rotation that it continues; a stale one is refused (I05).

pub mod audit;
#[cfg(test)]
mod golden;
pub mod memory;
mod place;
mod rules;
pub mod seal;
pub mod sqlite;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;

#[cfg(feature = "planted-bugs")]
pub use rules::PLANTED;

use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::event::Event;
use keywheel_core::fingerprint::Fingerprinter;
use keywheel_core::inventory::Inventory;
use keywheel_core::plan::RotationId;
use keywheel_core::secret::{Credential, SecretName};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::VersionId;
use serde::{Deserialize, Serialize};

/// The durable record of every rotation.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Returns this installation's id and its fingerprint key, which belong to the journal.
    fn installation(&self) -> &Installation;

    /// Takes or keeps the right to append for one secret, for `lease` from `now`.
    ///
    /// The same holder keeps its epoch and extends its lease; a new holder gets the next epoch once the lease of the former
    /// one is over, or once that holder is proven dead on this machine.
    ///
    /// # Errors
    /// [`JournalError::Held`] while another holder lives.
    async fn claim(
        &self,
        secret: &SecretName,
        holder: &Holder,
        now: Timestamp,
        lease: Span,
    ) -> Result<Epoch, JournalError>;

    /// Gives the right back, if it is still this epoch's.
    async fn give_up(&self, secret: &SecretName, epoch: Epoch) -> Result<(), JournalError>;

    /// Commits all of `append`, durably, or none of it.
    ///
    /// # Errors
    /// [`JournalError::Stale`] where an epoch or sequence is not the expected one, [`JournalError::Busy`] where a resource is
    /// taken, [`JournalError::OpenAlready`] where the secret has another open rotation; nothing was written in each case.
    /// [`JournalError::Storage`] stops the engine: whether the commit is durable is unknown until the journal is read again.
    async fn append(&self, append: Append) -> Result<(), JournalError>;

    /// Returns the records of one rotation, in order; none where it is not known.
    async fn records(&self, rotation: &RotationId) -> Result<Vec<Record>, JournalError>;

    /// Returns every rotation of a secret, newest first, or of all secrets.
    async fn rotations(
        &self,
        secret: Option<&SecretName>,
    ) -> Result<Vec<RotationRow>, JournalError>;

    /// Returns one row of the inventory.
    async fn inventory(&self, secret: &SecretName) -> Result<Option<Inventory>, JournalError>;

    /// Returns the whole inventory, in order of names.
    async fn inventories(&self) -> Result<Vec<Inventory>, JournalError>;

    /// Opens a sealed value; none where it was never sealed or its key was destroyed.
    async fn unseal(&self, key: &ValueKey) -> Result<Option<Credential>, JournalError>;

    /// Returns the keys of the values that can still be opened.
    async fn sealed(&self, secret: &SecretName) -> Result<Vec<ValueKey>, JournalError>;

    /// Returns which rotation holds which wave lease.
    async fn leases(&self) -> Result<Vec<(Resource, RotationId)>, JournalError>;

    /// Returns audit records with a sequence of `from` or later.
    async fn audit(&self, from: u64) -> Result<Vec<AuditRecord>, JournalError>;

    /// Checks the whole audit chain against itself and against the events it is of.
    async fn verify_audit(&self) -> Result<AuditVerdict, JournalError>;
}

/// The installation that a journal belongs to.
pub struct Installation {
    /// Its id; claims on targets carry it.
    pub id: String,
    /// Makes fingerprints under its key.
    pub fingerprinter: Arc<Fingerprinter>,
}

/// Who holds the right to append for a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Unique for each process and start.
    pub id: String,
    /// For people: `pid 4711 on web-1`.
    pub name: String,
}

/// Grows with each new holder of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// Who did something, and how that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// The account: `dana`, `scheduler`.
    pub account: String,
    /// The account behind `sudo`, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The machine.
    pub host: String,
    /// How the request came in: `cli`, `cron`, `simulation`.
    pub method: String,
    /// Whether the account was proven to us, or only says so.
    pub authenticated: bool,
}

/// One durable commit.
pub struct Append {
    /// Who did it.
    pub actor: Actor,
    /// What is written, in order; several rotations of a batch may share a commit.
    pub entries: Vec<Entry>,
}

/// One event and all that stands or falls with it.
pub struct Entry {
    /// The name in which wave leases are held: the batch's, or that of the rotation itself where it is alone.
    pub group: RotationId,
    /// The rotation.
    pub rotation: RotationId,
    /// Its secret.
    pub secret: SecretName,
    /// The epoch under which the writer holds the secret.
    pub epoch: Epoch,
    /// The place in the rotation's records, from 0.
    pub sequence: u64,
    /// When it happened.
    pub at: Timestamp,
    /// What happened; none where only the inventory changes (`adopt`).
    pub event: Option<Event>,
    /// The row of the secret from now on.
    pub inventory: Option<Inventory>,
    /// Values to seal.
    pub seal: Vec<Sealed>,
    /// Values whose keys are destroyed.
    pub destroy: Vec<ValueKey>,
    /// Wave leases to take; all of them or none.
    pub take: Vec<Resource>,
    /// Whether this rotation's wave leases are given back.
    pub give_back: bool,
}

/// A value to be sealed.
pub struct Sealed {
    /// Its name.
    pub key: ValueKey,
    /// The value.
    pub value: Credential,
}

/// The name of a sealed value; it is bound to the ciphertext as associated data.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ValueKey {
    /// The secret.
    pub secret: SecretName,
    /// The version.
    pub version: VersionId,
    /// `credential`, or `slot:<store>/<address>` for the exact bytes that were captured.
    pub part: String,
}

/// Something that one wave at a time may touch: a file, a Secret, a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Resource(pub String);

/// One record of a rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place, from 0.
    pub sequence: u64,
    /// The epoch it was written under.
    pub epoch: Epoch,
    /// When it happened.
    pub at: Timestamp,
    /// Who did it.
    pub actor: Actor,
    /// What happened.
    pub event: Event,
}

/// One rotation in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotationRow {
    /// Its id.
    pub rotation: RotationId,
    /// Its secret.
    pub secret: SecretName,
    /// When it began.
    pub began_at: Timestamp,
    /// The latest time of any of its records; the last one may be earlier, where the wall clock was set back.
    pub last_at: Timestamp,
    /// Whether it is still open.
    pub open: bool,
}

/// One link of the audit chain. It holds no value and nothing derived from one without a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Its place in the chain, from 0.
    pub sequence: u64,
    /// When it happened.
    pub at: Timestamp,
    /// Who did it.
    pub actor: Actor,
    /// The secret.
    pub secret: SecretName,
    /// The rotation.
    pub rotation: RotationId,
    /// The place in the rotation's records.
    pub record: u64,
    /// What happened, in the words of the event.
    pub action: String,
    /// SHA-256 over the event as it is stored, in hex.
    pub event_hash: String,
    /// SHA-256 over the values sealed and destroyed in the same commit (ciphertexts and names), in hex.
    pub sealed_hash: String,
    /// The hash of the link before, in hex.
    pub previous_hash: String,
    /// The hash of this link, in hex.
    pub hash: String,
}

/// What a check of the audit chain found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditVerdict {
    /// How many links there are.
    pub links: u64,
    /// The hash of the last one; keep it elsewhere, and a cut tail shows.
    pub head: String,
    /// What is wrong, in order; empty where the chain holds.
    pub faults: Vec<String>,
}

/// Why a journal did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process works on this secret.
    #[error("`{secret}` is being worked on by {holder} until {until:?}")]
    Held {
        /// The secret.
        secret: SecretName,
        /// The holder, for people.
        holder: String,
        /// When its lease ends.
        until: Timestamp,
    },
    /// The writer's epoch or sequence is no longer the present one; somebody else went on.
    #[error("`{secret}` was taken over by another process")]
    Stale {
        /// The secret.
        secret: SecretName,
    },
    /// Another rotation's wave touches the resource.
    #[error("`{}` is in use by rotation {rotation}", resource.0)]
    Busy {
        /// The resource.
        resource: Resource,
        /// The rotation that holds it.
        rotation: RotationId,
    },
    /// The secret has an open rotation.
    #[error("`{secret}` has an open rotation, {rotation}")]
    OpenAlready {
        /// The secret.
        secret: SecretName,
        /// The open rotation.
        rotation: RotationId,
    },
    /// The append contradicts itself; nothing was written.
    #[error("append makes no sense: {0}")]
    Malformed(String),
    /// The disk is nearly full, and no rotation begins on it; nothing was written.
    #[error("{free} bytes are free where the journal is, and no rotation begins below {floor}")]
    LowSpace {
        /// The free space in bytes.
        free: u64,
        /// The least for a rotation to begin.
        floor: u64,
    },
    /// A sealed value cannot be opened: a wrong or missing key-encryption key, or a damaged record.
    #[error("{0}")]
    Sealing(String),
    /// A record is damaged.
    #[error("journal is damaged at {place}: {detail}")]
    Corrupt {
        /// Which record.
        place: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The place of the journal or of its key is not safe.
    #[error("{0}")]
    Place(String),
    /// The storage failed; the commit may or may not be durable.
    #[error("journal storage failed: {0}")]
    Storage(String),
}
