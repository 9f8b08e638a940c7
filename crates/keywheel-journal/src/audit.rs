//! The audit chain: who did what, in one line of links, each bound to the one before it (H132, I14).
//!
//! A link is made in the commit of the entry it is of (I13). Its hash covers every field of it, the hash of the event as it is
//! stored, and the digests of the ciphertexts that were sealed with it; no value, and nothing that could be guessed back from
//! a value, enters the chain. Hashes are SHA-256 over parts, each fed with its length in front (8 bytes, big-endian), the first
//! part being a domain word, so that no two lists of parts read alike:
//!
//! ```text
//! event     "keywheel-event-1"      rotation secret sequence epoch at account origin? host method authenticated json
//! inventory "keywheel-inventory-1"  the same, with the row in place of the event
//! sealed    "keywheel-sealed-1"     for each value: "seal" secret version part digest | "destroy" secret version part
//! link      "keywheel-audit-1"      sequence previous event-hash sealed-hash at account … authenticated secret rotation record action
//! ```
//!
//! Numbers are 8 bytes, big-endian. An absent origin is fed as one byte 0, a present one as byte 1 and then its text.

use keywheel_core::event::Event;
use keywheel_core::inventory::{Decision, Inventory};
use keywheel_core::plan::RotationId;
use keywheel_core::planted;
use keywheel_core::secret::SecretName;
use keywheel_core::time::Timestamp;
use sha2::{Digest, Sha256};

use crate::{Actor, AuditRecord, AuditVerdict, Entry, Epoch, Journal, JournalError, ValueKey};

/// Returns how the journal contradicts a verdict that was exported earlier; none where it does not.
///
/// A chain whose tail was cut off, or that was written anew from some link on, is consistent in itself; only a head that was
/// kept elsewhere shows it (I14).
///
/// # Errors
/// Whatever reading the audit records brings.
pub async fn contradiction(
    journal: &dyn Journal,
    exported: &AuditVerdict,
) -> Result<Option<String>, JournalError> {
    let Some(last) = exported.links.checked_sub(1) else { return Ok(None) };
    let found = journal.audit(last).await?.into_iter().next().filter(|link| link.sequence == last);
    Ok(match found {
        None => Some(format!("audit link {last} was exported and is gone")),
        Some(link) if link.hash != exported.head => {
            Some(format!("audit link {last} is not the one that was exported"))
        }
        Some(_) => None,
    })
}

/// Computes the hash of a link from its other fields.
pub fn link_hash(link: &AuditRecord) -> String {
    let mut hash = Parts::new("keywheel-audit-1");
    hash.number(link.sequence);
    hash.text(&link.previous_hash).text(&link.event_hash).text(&link.sealed_hash);
    hash.time(link.at).actor(&link.actor);
    hash.text(&link.secret.to_string())
        .text(&link.rotation.0)
        .number(link.record)
        .text(&link.action);
    hash.end()
}

/// The end of the chain, to which the next link is bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// How many links there are.
    pub(crate) links: u64,
    /// The hash of the last one; empty before the first.
    pub(crate) hash: String,
}

impl Head {
    /// Makes the next link and moves on to it.
    pub(crate) fn append(
        &mut self,
        entry: &Entry,
        actor: &Actor,
        action: String,
        event_hash: String,
        sealed_hash: String,
    ) -> AuditRecord {
        let mut link = AuditRecord {
            sequence: self.links,
            at: entry.at,
            actor: actor.clone(),
            secret: entry.secret.clone(),
            rotation: entry.rotation.clone(),
            record: entry.sequence,
            action,
            event_hash,
            sealed_hash,
            previous_hash: self.hash.clone(),
            hash: String::new(),
        };
        link.hash = link_hash(&link);
        self.links += 1;
        self.hash.clone_from(&link.hash);
        link
    }
}

/// The fields of a stored record that its hash covers.
pub(crate) struct Stored<'a> {
    /// The rotation.
    pub(crate) rotation: &'a RotationId,
    /// Its secret.
    pub(crate) secret: &'a SecretName,
    /// The place in the rotation's records.
    pub(crate) sequence: u64,
    /// The epoch it was written under.
    pub(crate) epoch: Epoch,
    /// When it happened.
    pub(crate) at: Timestamp,
    /// Who did it.
    pub(crate) actor: &'a Actor,
}

impl<'a> Stored<'a> {
    /// Takes the fields from an entry.
    pub(crate) fn of(entry: &'a Entry, actor: &'a Actor) -> Self {
        Self {
            rotation: &entry.rotation,
            secret: &entry.secret,
            sequence: entry.sequence,
            epoch: entry.epoch,
            at: entry.at,
            actor,
        }
    }

    /// Hashes the record of an event.
    pub(crate) fn event_hash(&self, json: &[u8]) -> String {
        self.hash("keywheel-event-1", json)
    }

    /// Hashes an inventory row that was written without an event.
    pub(crate) fn inventory_hash(&self, json: &[u8]) -> String {
        self.hash("keywheel-inventory-1", json)
    }

    fn hash(&self, domain: &str, json: &[u8]) -> String {
        let mut hash = Parts::new(domain);
        hash.text(&self.rotation.0).text(&self.secret.to_string());
        hash.number(self.sequence).number(self.epoch.0).time(self.at).actor(self.actor).bytes(json);
        hash.end()
    }
}

/// Hashes what an entry sealed and destroyed.
pub(crate) struct SealedHash(Parts);

impl SealedHash {
    /// Begins with nothing sealed.
    pub(crate) fn new() -> Self {
        Self(Parts::new("keywheel-sealed-1"))
    }

    /// Adds a value that was sealed, by the digest of its ciphertext.
    pub(crate) fn seal(&mut self, key: &ValueKey, digest: &[u8]) {
        self.named("seal", key).bytes(digest);
    }

    /// Adds a value whose key was destroyed.
    pub(crate) fn destroy(&mut self, key: &ValueKey) {
        self.named("destroy", key);
    }

    /// Ends the hash.
    pub(crate) fn end(self) -> String {
        self.0.end()
    }

    fn named(&mut self, what: &str, key: &ValueKey) -> &mut Parts {
        self.0.text(what).text(&key.secret.to_string()).number(key.version.0.into()).text(&key.part)
    }
}

/// Walks along the chain and notes what is wrong.
#[derive(Default)]
pub(crate) struct Walk {
    head: Head,
    faults: Vec<String>,
}

impl Walk {
    /// Judges the next link by itself, against the link before, and against what is stored of its entry.
    ///
    /// `event_hash` is none where the entry had no event.
    pub(crate) fn link(&mut self, link: &AuditRecord, event_hash: Option<&str>, sealed_hash: &str) {
        let place = format!("audit link {}", link.sequence);
        if link.sequence != self.head.links {
            self.fault(format!("{place} stands where link {} belongs", self.head.links));
        }
        if link.previous_hash != self.head.hash {
            self.fault(format!("{place} does not follow the link before it"));
        }
        if link.hash != link_hash(link) && !planted!("link_not_checked") {
            self.fault(format!("{place} was changed"));
        }
        if event_hash.is_some_and(|stored| stored != link.event_hash)
            && !planted!("event_not_checked")
        {
            let (record, rotation) = (link.record, &link.rotation);
            self.fault(format!(
                "record {record} of rotation {rotation} is not the one that {place} is of"
            ));
        }
        if sealed_hash != link.sealed_hash {
            self.fault(format!("what was sealed with {place} is not what it is of"));
        }
        self.head = Head { links: link.sequence + 1, hash: link.hash.clone() };
    }

    /// Notes something that is wrong.
    pub(crate) fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    /// Ends the walk.
    pub(crate) fn end(self) -> AuditVerdict {
        AuditVerdict { links: self.head.links, head: self.head.hash, faults: self.faults }
    }
}

/// Says in words what an entry is.
pub(crate) fn action(entry: &Entry, row_before: impl FnOnce() -> Option<Inventory>) -> String {
    match (&entry.event, &entry.inventory) {
        (Some(event), _) => event_action(event),
        (None, Some(after)) => inventory_action(row_before().as_ref(), after),
        (None, None) => "nothing".into(),
    }
}

fn event_action(event: &Event) -> String {
    match event {
        Event::Planned(plan) if plan.is_emergency() => "planned (emergency)".into(),
        Event::Planned(_) => "planned".into(),
        Event::Intended { step, .. } => format!("intended: {step}"),
        Event::Done { step, .. } => format!("done: {step}"),
        Event::Refused { step, .. } => format!("refused: {step}"),
        Event::Unknown { step } => format!("unknown: {step}"),
        Event::MoveBegun { to } => format!("began the move to arrangement {to}"),
        Event::Arrived { at } => format!("arrived at arrangement {at}"),
        Event::Promoted { side } => format!("promoted the {side} version"),
        Event::StageClosed => "closed the stage".into(),
        Event::TurnedBack { .. } => "turned back".into(),
        Event::Parked { reason } => format!("parked: {reason}"),
        Event::Resumed => "resumed".into(),
        Event::Identified { version, issued } => format!("identified {version} as {issued}"),
        Event::Overridden { because } => format!("overrode a closed gate: {because}"),
        Event::WindowClosed { because } => format!("closed the rollback window: {because}"),
        Event::Resolved { outcome, because } => format!("resolved as {outcome}: {because}"),
        Event::Superseded { by } => format!("superseded by {by}"),
        Event::Purged => "destroyed the sealed values that are no longer needed".into(),
        Event::Ended { outcome } => format!("ended: {outcome}"),
    }
}

fn inventory_action(before: Option<&Inventory>, after: &Inventory) -> String {
    let change = inventory_change(before, after);
    match &after.decided {
        Some(decided) if before.is_none_or(|before| before.decided != after.decided) => {
            let Decision { what, because, .. } = decided;
            match before {
                None => format!("{change}, and {what}: {because}"),
                Some(_) => format!("{what}: {because}"),
            }
        }
        _ => change.into(),
    }
}

fn inventory_change(before: Option<&Inventory>, after: &Inventory) -> &'static str {
    match before {
        None => "adopted",
        Some(before) if before.held_because.is_some() && after.held_because.is_none() => {
            "cleared the hold"
        }
        Some(before) if before.held_because.is_none() && after.held_because.is_some() => {
            "held the schedule"
        }
        Some(before) if before.queued.is_none() && after.queued.is_some() => "queued a rotation",
        Some(before) if before.queued.is_some() && after.queued.is_none() => {
            "took a rotation out of the queue"
        }
        Some(_) => "changed the inventory",
    }
}

/// SHA-256 over parts, each with its length in front.
struct Parts(Sha256);

impl Parts {
    fn new(domain: &str) -> Self {
        let mut parts = Self(Sha256::new());
        parts.text(domain);
        parts
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    fn number(&mut self, number: u64) -> &mut Self {
        self.bytes(&number.to_be_bytes())
    }

    fn time(&mut self, at: Timestamp) -> &mut Self {
        self.bytes(&at.millis().to_be_bytes())
    }

    fn actor(&mut self, actor: &Actor) -> &mut Self {
        self.text(&actor.account);
        match &actor.origin {
            None => self.bytes(&[0]),
            Some(origin) => self.bytes(&[1]).text(origin),
        };
        self.text(&actor.host).text(&actor.method).bytes(&[u8::from(actor.authenticated)])
    }

    fn end(self) -> String {
        hex::encode(self.0.finalize())
    }
}
