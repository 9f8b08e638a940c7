//! Workloads: what runs and reads stores.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use keywheel_core::call::CallError;
use keywheel_core::evidence::{self, Expected, Proof, Replica};
use keywheel_core::facts::WorkloadFacts;
use keywheel_core::fingerprint::{Fingerprint, Fingerprinter};
use keywheel_core::incident::LogReference;
use keywheel_core::plan::Pin;
use keywheel_core::secret::{SecretName, SecretValue};
use keywheel_core::time::{Span, Timestamp};

use crate::{Finding, Right, Writer};

/// Something that runs as replicas and takes up values.
#[async_trait]
pub trait Workload: Send + Sync {
    /// Returns what this workload can show, as it is configured.
    fn facts(&self) -> WorkloadFacts;

    /// Returns the one name under which everyone who rolls this workload knows it; wave leases are taken on it.
    fn resource(&self) -> String;

    /// Checks that it can be rolled, and how it reads its stores, without changing anything.
    async fn preflight(&self) -> Result<Vec<Finding>, CallError>;

    /// Says who takes up which of these slots, which are [names](crate::slot::name), as far as the configuration of what runs
    /// tells it: this workload, and whoever else does; none where it tells nothing.
    async fn readers(&self, _slots: &[String]) -> Result<Option<Vec<Reader>>, CallError> {
        Ok(None)
    }

    /// Says which of these slots, which are [names](crate::slot::name), it would not take up as it is configured, and what helps;
    /// changes nothing.
    async fn takes_up(&self, _slots: &[String]) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    /// Returns the place where it runs, as that place names itself now; none where it has no name of its own, or none that
    /// lasts.
    async fn identity(&self) -> Result<Option<Pin>, CallError> {
        Ok(None)
    }

    /// Lists every replica that is not finally gone, ready or not, stopped ones too, with what it shows of
    /// `slots`, which are [names](crate::slot::name).
    async fn observe(
        &self,
        slots: &[String],
        fingerprinter: &Fingerprinter,
    ) -> Result<Vec<Replica>, CallError>;

    /// Makes every replica hold the expected arrangement: replaces, one after another, those that do not prove it, and waits
    /// until each is ready. Replicas that prove it are left alone. A replica that does not come up with the new values ends
    /// the roll at once as [`WorkloadFailed`](keywheel_core::call::RefusalKind::WorkloadFailed).
    async fn roll(&self, ensure: &Ensure<'_>) -> Result<(), CallError>;

    /// Names who took away what the last roll left on it, and is not keywheel, as the place itself tells it: the stamps, or the names
    /// by which it reads these slots. `since` is when the stores came to hold what it was rolled for. Nobody where nothing is
    /// missing, or the place tells nothing. Asked for people only, and puts nothing back.
    async fn others(
        &self,
        _slots: &[String],
        _stamps: &[Stamp],
        _since: Timestamp,
    ) -> Result<Vec<Writer>, CallError> {
        Ok(Vec::new())
    }

    /// Says where the log of each replica is, stopped ones included; none where that is not known. Asked before anything is
    /// replaced (H124), and changes nothing.
    async fn logs(&self) -> Result<Option<Vec<LogReference>>, CallError> {
        Ok(None)
    }

    /// Reads what every replica wrote, stopped ones included, and hands on each line. Returns how far each log was read; none where
    /// a workload of this kind has no log that can be read. Changes nothing.
    async fn read_logs(
        &self,
        _reading: &mut Reading<'_>,
    ) -> Result<Option<Vec<ReadLog>>, CallError> {
        Ok(None)
    }

    /// Lists what an account must be allowed in a cluster that looks at it and rolls it; nothing where it is not in one.
    fn rights(&self) -> Vec<Right> {
        Vec::new()
    }

    /// Shows a bearer token to every replica at its own address, where the workload answers tokens.
    async fn present(&self, _token: &SecretValue) -> Result<Vec<Answer>, CallError> {
        Ok(Vec::new())
    }
}

/// What of the logs of a workload is read, and who is told.
pub struct Reading<'a> {
    /// From when on.
    pub since: Timestamp,
    /// How much of each log is read at most.
    pub most_bytes: u64,
    /// How long all of it may take.
    pub within: Span,
    /// Takes each line, with the name of the replica that wrote it. A line may hold a value.
    pub take: &'a mut (dyn FnMut(&str, &str) + Send),
}

/// How far the log of one replica was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadLog {
    /// What people call the replica.
    pub replica: String,
    /// What its engine calls it.
    pub id: Option<String>,
    /// Why it was not read, or not to its end, and what would help.
    pub not_read: Option<String>,
}

/// Who takes up slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    /// What people call it.
    pub name: String,
    /// Its [`Workload::resource`], if it were a workload.
    pub resource: String,
    /// The slots.
    pub slots: Vec<String>,
    /// Whether it runs, and holds what it took up.
    pub runs: bool,
}

/// What a roll brings about.
pub struct Ensure<'a> {
    /// The slots the workload reads, by [name](crate::slot::name), with the fingerprints it should hold; `None` where a slot is absent.
    pub slots: &'a [(String, Option<Fingerprint>)],
    /// Since when the stores certainly hold them.
    pub held_since: Timestamp,
    /// On the way back to what was there when the rotation began: a replica that started before this has read nothing of the
    /// rotation, is as it was, and is left alone.
    pub untouched_before: Option<Timestamp>,
    /// One for each secret that is rolled: what a workload that keeps stamps is stamped with.
    pub stamps: Vec<Stamp>,
    /// Fingerprints what a replica shows.
    pub fingerprinter: &'a Fingerprinter,
    /// In an emergency, what the roll gives up to be quick is noted here; at a steady pace it fails instead.
    pub emergency: Option<&'a Notes>,
}

/// What a workload shows for one secret once it was rolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The secret.
    pub secret: SecretName,
    /// A digest of the arrangement of its slots: other values, or other places, make another one.
    pub digest: Fingerprint,
}

impl Stamp {
    /// Makes the stamp of a secret whose slots should hold these.
    pub fn new(
        secret: &SecretName,
        slots: &[(String, Option<Fingerprint>)],
        fingerprinter: &Fingerprinter,
    ) -> Self {
        let pairs = slots.iter().map(|(slot, held)| (slot.as_str(), held.as_ref()));
        Self { secret: secret.clone(), digest: fingerprinter.digest(pairs) }
    }
}

/// Sentences for people, about what was done all the same.
#[derive(Default)]
pub struct Notes(Mutex<Vec<String>>);

impl Notes {
    /// Adds a sentence without values.
    pub fn add(&self, note: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(note.into());
    }

    /// Returns them, in order.
    pub fn into_inner(self) -> Vec<String> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Ensure<'a> {
    /// Makes an ensure of slots that stores hold since an instant, at a steady pace and without stamps.
    pub fn new(
        slots: &'a [(String, Option<Fingerprint>)],
        held_since: Timestamp,
        fingerprinter: &'a Fingerprinter,
    ) -> Self {
        Self {
            slots,
            held_since,
            untouched_before: None,
            stamps: Vec::new(),
            fingerprinter,
            emergency: None,
        }
    }

    /// Judges one replica as the core will.
    pub fn judge(&self, replica: &Replica, facts: WorkloadFacts) -> Proof {
        let expected = Expected {
            slots: self.slots,
            held_since: Some(self.held_since),
            untouched_before: self.untouched_before,
            granularity: facts.start_granularity,
        };
        evidence::judge(replica, &expected)
    }
}

/// How one replica answered a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The replica.
    pub replica: String,
    /// Whether it took the token; none where the answer proves neither.
    pub accepted: Option<bool>,
}
