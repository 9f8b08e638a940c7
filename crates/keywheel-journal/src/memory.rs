//! A journal in memory, for simulation and tests: the same rules, no durability.
//!
//! Values are held as they are, nothing is serialized unless the audit chain is asked for. A simulator can make commits fail
//! before or after they are written, lose the tail as a power cut or a failover does, and put an old state back.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use keywheel_core::event::Event;
use keywheel_core::fingerprint::{FingerprintKeyId, Fingerprinter};
use keywheel_core::inventory::Inventory;
use keywheel_core::plan::RotationId;
use keywheel_core::secret::{Credential, SecretName};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::VersionId;
use zeroize::Zeroizing;

use crate::audit::{self, Head, SealedHash, Stored, Walk};
use crate::rules::{self, Claim, Known, Place};
use crate::{
    Actor, Append, AuditRecord, AuditVerdict, Entry, Epoch, Holder, Installation, Journal,
    JournalError, Record, Resource, RotationRow, ValueKey,
};

/// A journal in memory.
pub struct MemoryJournal {
    installation: Installation,
    state: Mutex<State>,
}

/// What goes wrong with a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is written; the answer is [`JournalError::Storage`].
    RefuseBefore,
    /// Everything is written; the answer is [`JournalError::Storage`] all the same.
    FailAfter,
    /// The commit and those before it, this many in all, are lost: a power cut or a failover. The answer is
    /// [`JournalError::Storage`].
    LoseTail(usize),
}

/// The whole of a journal at one moment.
#[derive(Clone)]
pub struct Snapshot(Box<State>);

impl MemoryJournal {
    /// Makes an empty journal, with its audit chain, that cannot lose its tail.
    pub fn new(installation_id: impl Into<String>, fingerprint_key: Zeroizing<[u8; 32]>) -> Self {
        let fingerprinter = Arc::new(Fingerprinter::new(FingerprintKeyId(1), fingerprint_key));
        Self {
            installation: Installation { id: installation_id.into(), fingerprinter },
            state: Mutex::new(State { chain: Some(Vec::new()), ..State::default() }),
        }
    }

    /// Keeps the audit chain, or only counts its links: a simulation that does not look at it runs several times faster.
    #[must_use]
    pub fn with_audit(self, audit: bool) -> Self {
        self.state().chain = audit.then(Vec::new);
        self
    }

    /// Remembers how to take this many commits back, for [`Fault::LoseTail`] and [`MemoryJournal::lose_tail`].
    #[must_use]
    pub fn with_undo(self, commits: usize) -> Self {
        self.state().undo_depth = commits;
        self
    }

    /// Lets the next append go wrong.
    pub fn fail_next(&self, fault: Fault) {
        self.fail_nth(0, fault);
    }

    /// Lets an append go wrong after `good` more have gone well.
    pub fn fail_nth(&self, good: u64, fault: Fault) {
        let mut state = self.state();
        let at = state.appends + good;
        state.faults.push((at, fault));
    }

    /// Returns how many appends were asked for, refused ones included.
    pub fn appends(&self) -> u64 {
        self.state().appends
    }

    /// Takes the last commits back, with the claims that were made since, and returns how many that were: at most as many
    /// as [`MemoryJournal::with_undo`] remembers.
    pub fn lose_tail(&self, commits: usize) -> usize {
        self.state().lose_tail(commits)
    }

    /// Lets a process be proven dead: its claims can be taken over at once.
    pub fn declare_dead(&self, holder: &Holder) {
        self.state().dead.push(holder.id.clone());
    }

    /// Copies the whole journal.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(Box::new(self.state().clone()))
    }

    /// Puts an earlier state back, as a restored backup does (H17). Faults that were ordered stay.
    pub fn restore(&self, snapshot: &Snapshot) {
        let mut state = self.state();
        let mut restored = State::clone(&snapshot.0);
        restored.faults = std::mem::take(&mut state.faults);
        restored.appends = state.appends;
        restored.dead = std::mem::take(&mut state.dead);
        *state = restored;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic of the simulated world while it held the lock is reported where it happened.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Journal for MemoryJournal {
    fn installation(&self) -> &Installation {
        &self.installation
    }

    async fn claim(
        &self,
        secret: &SecretName,
        holder: &Holder,
        now: Timestamp,
        lease: Span,
    ) -> Result<Epoch, JournalError> {
        let mut state = self.state();
        let present = state.claims.get(secret);
        let dead = |former: &Holder| state.dead.contains(&former.id);
        let claim = rules::claim(present, secret, holder, now, lease, dead)?;
        let epoch = claim.epoch;
        state.put_claim(secret, claim);
        Ok(epoch)
    }

    async fn give_up(&self, secret: &SecretName, epoch: Epoch) -> Result<(), JournalError> {
        let mut state = self.state();
        if let Some(claim) = state.claims.get(secret).filter(|claim| claim.epoch == epoch).cloned()
        {
            state.put_claim(secret, Claim { holder: None, ..claim });
        }
        Ok(())
    }

    async fn append(&self, append: Append) -> Result<(), JournalError> {
        self.state().append(append)
    }

    async fn records(&self, rotation: &RotationId) -> Result<Vec<Record>, JournalError> {
        let state = self.state();
        let records =
            state.rotations.get(rotation).map(|row| row.records.iter().map(Kept::record).collect());
        Ok(records.unwrap_or_default())
    }

    async fn rotations(
        &self,
        secret: Option<&SecretName>,
    ) -> Result<Vec<RotationRow>, JournalError> {
        let state = self.state();
        let wanted = |row: &&Rotation| secret.is_none_or(|secret| &row.secret == secret);
        let mut rows: Vec<&Rotation> = state.rotations.values().filter(wanted).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.order));
        Ok(rows.into_iter().map(Rotation::row).collect())
    }

    async fn inventory(&self, secret: &SecretName) -> Result<Option<Inventory>, JournalError> {
        Ok(self.state().inventory.get(secret).cloned())
    }

    async fn inventories(&self) -> Result<Vec<Inventory>, JournalError> {
        Ok(self.state().inventory.values().cloned().collect())
    }

    async fn unseal(&self, key: &ValueKey) -> Result<Option<Credential>, JournalError> {
        Ok(self.state().values.get(key).map(|value| value.duplicate()))
    }

    async fn sealed(&self, secret: &SecretName) -> Result<Vec<ValueKey>, JournalError> {
        let first = ValueKey { secret: secret.clone(), version: VersionId(0), part: String::new() };
        let state = self.state();
        let of_secret =
            state.values.range(first..).map(|(key, _)| key).take_while(|key| &key.secret == secret);
        Ok(of_secret.cloned().collect())
    }

    async fn leases(&self) -> Result<Vec<(Resource, RotationId)>, JournalError> {
        Ok(self
            .state()
            .leases
            .iter()
            .map(|(resource, rotation)| (resource.clone(), rotation.clone()))
            .collect())
    }

    async fn audit(&self, from: u64) -> Result<Vec<AuditRecord>, JournalError> {
        let state = self.state();
        let links = state.chain.iter().flatten().filter(|link| link.record.sequence >= from);
        Ok(links.map(|link| link.record.clone()).collect())
    }

    async fn verify_audit(&self) -> Result<AuditVerdict, JournalError> {
        Ok(self.state().verify_audit())
    }
}

const CLAIMS_PER_APPEND: usize = 8;

#[derive(Clone, Default)]
struct State {
    claims: BTreeMap<SecretName, Claim>,
    open: HashMap<SecretName, RotationId>,
    inventory: BTreeMap<SecretName, Inventory>,
    rotations: HashMap<RotationId, Rotation>,
    values: BTreeMap<ValueKey, Arc<Credential>>,
    leases: BTreeMap<Resource, RotationId>,
    head: Head,
    /// The links; none where they are only counted.
    chain: Option<Vec<Link>>,
    last_actor: Option<Arc<Actor>>,
    planned: u64,
    undo: VecDeque<Vec<Undo>>,
    undo_depth: usize,
    appends: u64,
    faults: Vec<(u64, Fault)>,
    dead: Vec<String>,
}

#[derive(Clone)]
struct Link {
    record: AuditRecord,
    of_event: bool,
    sealed_hash: String,
}

#[derive(Clone)]
struct Rotation {
    id: RotationId,
    secret: SecretName,
    order: u64,
    open: bool,
    records: Vec<Kept>,
}

#[derive(Clone)]
struct Kept {
    sequence: u64,
    epoch: Epoch,
    at: Timestamp,
    actor: Arc<Actor>,
    event: Event,
}

/// How one change is taken back.
#[derive(Clone)]
enum Undo {
    Claim(SecretName, Option<Claim>),
    Open(SecretName, Option<RotationId>),
    Row(SecretName, Option<Box<Inventory>>),
    Value(ValueKey, Option<Arc<Credential>>),
    Lease(Resource, Option<RotationId>),
    Record {
        rotation: RotationId,
        was_open: bool,
    },
    Link {
        head_before: Head,
    },
    /// The end of one append: what lies between two marks are the claims made since.
    Append,
}

/// The changes of one commit, noted only where they may have to be taken back.
struct UndoLog(Option<Vec<Undo>>);

impl UndoLog {
    fn push(&mut self, undo: impl FnOnce() -> Undo) {
        if let Some(log) = &mut self.0 {
            log.push(undo());
        }
    }
}

impl State {
    fn append(&mut self, append: Append) -> Result<(), JournalError> {
        let number = self.appends;
        self.appends += 1;
        let fault = self
            .faults
            .iter()
            .position(|(at, _)| *at == number)
            .map(|at| self.faults.swap_remove(at).1);
        if fault == Some(Fault::RefuseBefore) {
            return Err(JournalError::Storage("refused before anything was written".into()));
        }
        rules::check(self, &append)?;
        self.apply(append);
        match fault {
            None | Some(Fault::RefuseBefore) => Ok(()),
            Some(Fault::FailAfter) => {
                Err(JournalError::Storage("failed after everything was written".into()))
            }
            Some(Fault::LoseTail(commits)) => {
                self.lose_tail(commits);
                Err(JournalError::Storage("the tail was lost".into()))
            }
        }
    }

    fn apply(&mut self, append: Append) {
        let actor = self.intern(append.actor);
        let mut undo = self.undo_log();
        for entry in append.entries {
            self.apply_entry(entry, &actor, &mut undo);
        }
        undo.push(|| Undo::Append);
        self.remember(undo);
    }

    fn apply_entry(&mut self, entry: Entry, actor: &Arc<Actor>, undo: &mut UndoLog) {
        undo.push(|| Undo::Link { head_before: self.head.clone() });
        self.link(&entry, actor);
        self.change_leases(&entry, undo);
        self.change_values(&entry, undo);
        if let Some(row) = entry.inventory {
            let before = self.put_row(&entry.secret, row);
            undo.push(|| Undo::Row(entry.secret.clone(), before.map(Box::new)));
        }
        if let Some(event) = entry.event {
            self.change_open(&event, &entry.secret, &entry.rotation, undo);
            let actor = Arc::clone(actor);
            let kept =
                Kept { sequence: entry.sequence, epoch: entry.epoch, at: entry.at, actor, event };
            self.push_record(entry.rotation, entry.secret, kept, undo);
        }
    }

    fn link(&mut self, entry: &Entry, actor: &Arc<Actor>) {
        let Some(chain) = &mut self.chain else {
            self.head.links += 1;
            return;
        };
        let mut sealed = SealedHash::new();
        rules::seals(entry).iter().for_each(|value| sealed.seal(&value.key, &[]));
        rules::destroys(entry).iter().for_each(|key| sealed.destroy(key));
        let sealed = sealed.end();
        let action = audit::action(entry, || self.inventory.get(&entry.secret).cloned());
        let record =
            self.head.append(entry, actor, action, event_hash(entry, actor), sealed.clone());
        chain.push(Link { record, of_event: entry.event.is_some(), sealed_hash: sealed });
    }

    fn change_leases(&mut self, entry: &Entry, undo: &mut UndoLog) {
        if rules::gives_back(entry) && !self.leases.is_empty() {
            self.leases.retain(|resource, rotation| {
                let kept = rotation != &entry.group;
                if !kept {
                    undo.push(|| Undo::Lease(resource.clone(), Some(rotation.clone())));
                }
                kept
            });
        }
        for resource in &entry.take {
            let before = self.leases.insert(resource.clone(), entry.group.clone());
            undo.push(|| Undo::Lease(resource.clone(), before));
        }
    }

    fn change_values(&mut self, entry: &Entry, undo: &mut UndoLog) {
        for sealed in rules::seals(entry) {
            let before = self.values.insert(sealed.key.clone(), Arc::new(sealed.value.duplicate()));
            undo.push(|| Undo::Value(sealed.key.clone(), before));
        }
        for key in rules::destroys(entry) {
            if let Some(before) = self.values.remove(key) {
                undo.push(|| Undo::Value(key.clone(), Some(before)));
            }
        }
    }

    fn change_open(
        &mut self,
        event: &Event,
        secret: &SecretName,
        rotation: &RotationId,
        undo: &mut UndoLog,
    ) {
        let before = if matches!(event, Event::Planned(_)) {
            self.open.insert(secret.clone(), rotation.clone())
        } else if rules::closes(event) && self.open.get(secret) == Some(rotation) {
            self.open.remove(secret)
        } else {
            return;
        };
        undo.push(|| Undo::Open(secret.clone(), before));
    }

    fn put_row(&mut self, secret: &SecretName, row: Inventory) -> Option<Inventory> {
        match self.inventory.get_mut(secret) {
            Some(present) => Some(std::mem::replace(present, row)),
            None => self.inventory.insert(secret.clone(), row),
        }
    }

    fn push_record(&mut self, id: RotationId, secret: SecretName, kept: Kept, undo: &mut UndoLog) {
        let row = self.rotations.entry(id).or_insert_with_key(|id| {
            self.planned += 1;
            Rotation {
                id: id.clone(),
                secret,
                order: self.planned,
                open: true,
                records: Vec::new(),
            }
        });
        undo.push(|| Undo::Record { rotation: row.id.clone(), was_open: row.open });
        row.open = row.open && !rules::closes(&kept.event);
        row.records.push(kept);
    }

    fn put_claim(&mut self, secret: &SecretName, claim: Claim) {
        let mut undo = self.undo_log();
        let before = self.claims.insert(secret.clone(), claim);
        undo.push(|| Undo::Claim(secret.clone(), before));
        self.remember(undo);
    }

    /// Keeps one copy of an actor for all the records that it writes in a row.
    fn intern(&mut self, actor: Actor) -> Arc<Actor> {
        match &self.last_actor {
            Some(last) if **last == actor => Arc::clone(last),
            _ => Arc::clone(self.last_actor.insert(Arc::new(actor))),
        }
    }

    fn undo_log(&self) -> UndoLog {
        UndoLog((self.undo_depth > 0).then(Vec::new))
    }

    fn remember(&mut self, undo: UndoLog) {
        let Some(undo) = undo.0 else { return };
        self.undo.push_back(undo);
        // Claims between the appends are kept as well, and bounded in case nothing else happens.
        while self.undo.len() > CLAIMS_PER_APPEND * self.undo_depth
            || self.undo_appends() > self.undo_depth
        {
            self.undo.pop_front();
        }
    }

    fn undo_appends(&self) -> usize {
        self.undo.iter().filter(|undo| matches!(undo.last(), Some(Undo::Append))).count()
    }

    fn lose_tail(&mut self, commits: usize) -> usize {
        let mut lost = 0;
        while lost < commits {
            let Some(undo) = self.undo.pop_back() else { break };
            lost += usize::from(matches!(undo.last(), Some(Undo::Append)));
            undo.into_iter().rev().for_each(|undo| self.take_back(undo));
        }
        lost
    }

    fn take_back(&mut self, undo: Undo) {
        match undo {
            Undo::Claim(secret, before) => put(&mut self.claims, secret, before),
            Undo::Row(secret, before) => put(&mut self.inventory, secret, before.map(|row| *row)),
            Undo::Value(key, before) => put(&mut self.values, key, before),
            Undo::Lease(resource, before) => put(&mut self.leases, resource, before),
            Undo::Open(secret, Some(before)) => drop(self.open.insert(secret, before)),
            Undo::Open(secret, None) => drop(self.open.remove(&secret)),
            Undo::Record { rotation, was_open } => self.take_record_back(&rotation, was_open),
            Undo::Link { head_before } => {
                self.chain.iter_mut().for_each(|chain| drop(chain.pop()));
                self.head = head_before;
            }
            Undo::Append => {}
        }
    }

    fn take_record_back(&mut self, rotation: &RotationId, was_open: bool) {
        let Some(row) = self.rotations.get_mut(rotation) else { return };
        drop(row.records.pop());
        row.open = was_open;
        if row.records.is_empty() {
            self.rotations.remove(rotation);
        }
    }

    fn verify_audit(&self) -> AuditVerdict {
        let Some(chain) = &self.chain else {
            return AuditVerdict {
                links: self.head.links,
                head: String::new(),
                faults: Vec::new(),
            };
        };
        let mut walk = Walk::default();
        for link in chain {
            let stored = link.of_event.then(|| self.stored_hash(&link.record).unwrap_or_default());
            walk.link(&link.record, stored.as_deref(), &link.sealed_hash);
        }
        walk.end()
    }

    fn stored_hash(&self, link: &AuditRecord) -> Option<String> {
        let row = self.rotations.get(&link.rotation)?;
        let kept = row.records.get(usize::try_from(link.record).ok()?)?;
        let stored = Stored {
            rotation: &row.id,
            secret: &row.secret,
            sequence: kept.sequence,
            epoch: kept.epoch,
            at: kept.at,
            actor: &kept.actor,
        };
        Some(stored.event_hash(&json(&kept.event)))
    }
}

impl Known for State {
    fn epoch(&self, secret: &SecretName) -> Result<Option<Epoch>, JournalError> {
        Ok(self.claims.get(secret).filter(|claim| claim.holder.is_some()).map(|claim| claim.epoch))
    }

    fn place(
        &self,
        rotation: &RotationId,
        secret: &SecretName,
    ) -> Result<Option<Place>, JournalError> {
        Ok(self.rotations.get(rotation).map(|row| Place {
            of_secret: &row.secret == secret,
            next: row.records.len() as u64,
            open: row.open,
        }))
    }

    fn open(&self, secret: &SecretName) -> Result<Option<RotationId>, JournalError> {
        Ok(self.open.get(secret).cloned())
    }

    fn lease(&self, resource: &Resource) -> Result<Option<RotationId>, JournalError> {
        Ok(self.leases.get(resource).cloned())
    }
}

impl Kept {
    fn record(&self) -> Record {
        Record {
            sequence: self.sequence,
            epoch: self.epoch,
            at: self.at,
            actor: Actor::clone(&self.actor),
            event: self.event.clone(),
        }
    }
}

impl Rotation {
    fn row(&self) -> RotationRow {
        let times = || self.records.iter().map(|record| record.at);
        RotationRow {
            rotation: self.id.clone(),
            secret: self.secret.clone(),
            began_at: times().next().unwrap_or_default(),
            last_at: times().max().unwrap_or_default(),
            open: self.open,
        }
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, before: Option<V>) {
    match before {
        Some(before) => drop(map.insert(key, before)),
        None => drop(map.remove(&key)),
    }
}

fn event_hash(entry: &Entry, actor: &Actor) -> String {
    let stored = Stored::of(entry, actor);
    match &entry.event {
        Some(event) => stored.event_hash(&json(event)),
        None => stored.inventory_hash(&json(&entry.inventory)),
    }
}

fn json(data: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(data).expect("events and inventory rows are plain data")
}

#[cfg(test)]
mod tests {
    use keywheel_core::event::Outcome;

    use super::*;
    use crate::conformance::{self, Begun};

    fn journal() -> MemoryJournal {
        MemoryJournal::new("here", Zeroizing::new([7; 32]))
    }

    #[tokio::test]
    async fn it_passes_the_suite_of_every_journal() {
        conformance::all(|| Box::new(journal())).await;
    }

    #[tokio::test]
    async fn it_passes_the_suite_while_it_remembers_how_to_go_back() {
        conformance::all(|| Box::new(journal().with_undo(3))).await;
    }

    #[tokio::test]
    async fn an_append_fails_before_or_after_it_is_written() {
        let journal = journal();
        let begun = Begun::of(&journal, "a@test").await;
        journal.fail_next(Fault::RefuseBefore);
        assert!(matches!(
            begun.append(&journal, 1, Event::Resumed).await,
            Err(JournalError::Storage(_))
        ));
        assert_eq!(journal.records(&begun.rotation).await.unwrap().len(), 1);
        journal.fail_nth(1, Fault::FailAfter);
        begun.append(&journal, 1, Event::Resumed).await.unwrap();
        assert!(matches!(
            begun.append(&journal, 2, Event::Resumed).await,
            Err(JournalError::Storage(_))
        ));
        assert_eq!(journal.records(&begun.rotation).await.unwrap().len(), 3);
        begun.append(&journal, 3, Event::Resumed).await.unwrap();
    }

    #[tokio::test]
    async fn h18_a_lost_tail_leaves_the_journal_as_it_was_before() {
        let journal = journal().with_undo(8);
        let begun = Begun::of(&journal, "a@test").await;
        begun.append(&journal, 1, Event::Resumed).await.unwrap();
        let before = journal.state().describe();
        let resource = Resource("x".into());
        let key = ValueKey {
            secret: begun.secret.clone(),
            version: VersionId(1),
            part: "credential".into(),
        };
        let sealed = vec![crate::Sealed { key: key.clone(), value: Credential::default() }];
        let row = Some(Inventory::new(begun.secret.clone()));
        let full = Entry {
            take: vec![resource],
            seal: sealed,
            inventory: row,
            ..begun.entry(2, Event::Resumed)
        };
        conformance::append(&journal, vec![full]).await.unwrap();
        let destroyed =
            Entry { destroy: vec![key], give_back: true, ..begun.entry(3, Event::Resumed) };
        conformance::append(&journal, vec![destroyed]).await.unwrap();
        let later = Holder { id: "other".into(), name: "other".into() };
        journal
            .claim(&begun.secret, &later, Timestamp::from_millis(20_000), Span::seconds(1))
            .await
            .unwrap();
        let after = Begun { epoch: Epoch(2), ..begun.clone() };
        journal.fail_next(Fault::LoseTail(3));
        let ended = Event::Ended { outcome: Outcome::Undone };
        assert!(matches!(after.append(&journal, 4, ended).await, Err(JournalError::Storage(_))));
        assert_eq!(journal.state().describe(), before);
        begun.append(&journal, 2, Event::Resumed).await.unwrap();
        assert_eq!(journal.verify_audit().await.unwrap().faults, Vec::<String>::new());
        assert_eq!(journal.lose_tail(100), 3);
        assert_eq!(journal.rotations(None).await.unwrap(), Vec::new());
    }

    #[tokio::test]
    async fn h17_a_restored_snapshot_is_the_past() {
        let journal = journal();
        let begun = Begun::of(&journal, "a@test").await;
        let snapshot = journal.snapshot();
        let exported = {
            begun.append(&journal, 1, Event::Resumed).await.unwrap();
            journal.verify_audit().await.unwrap()
        };
        journal.restore(&snapshot);
        assert_eq!(journal.records(&begun.rotation).await.unwrap().len(), 1);
        assert_eq!(journal.verify_audit().await.unwrap().faults, Vec::<String>::new());
        assert!(audit::contradiction(&journal, &exported).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_dead_holder_is_taken_over_at_once() {
        let journal = journal();
        let begun = Begun::of(&journal, "a@test").await;
        let [first, second] =
            ["first", "second"].map(|id| Holder { id: id.into(), name: id.into() });
        let claim =
            || journal.claim(&begun.secret, &second, Timestamp::from_millis(5), Span::seconds(1));
        assert!(matches!(claim().await, Err(JournalError::Held { .. })));
        journal.declare_dead(&first);
        assert_eq!(claim().await.unwrap(), Epoch(2));
    }

    #[tokio::test]
    async fn without_an_audit_chain_links_are_only_counted() {
        let journal = journal().with_audit(false);
        Begun::of(&journal, "a@test").await;
        assert_eq!(journal.audit(0).await.unwrap(), Vec::new());
        assert_eq!(journal.verify_audit().await.unwrap().links, 1);
    }

    #[tokio::test]
    async fn h132_a_changed_record_breaks_the_chain() {
        let journal = journal();
        let begun = Begun::of(&journal, "a@test").await;
        begun.append(&journal, 1, Event::Resumed).await.unwrap();
        journal.state().rotations.get_mut(&begun.rotation).unwrap().records[1].event =
            Event::StageClosed;
        assert_eq!(journal.verify_audit().await.unwrap().faults.len(), 1);
    }

    #[cfg(feature = "planted-bugs")]
    #[test]
    fn every_planted_bug_of_the_rules_fails_the_suite() {
        use keywheel_core::planted::switch;

        for bug in crate::rules::PLANTED {
            let suite = std::panic::catch_unwind(|| {
                switch(Some(bug));
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(conformance::all(|| Box::new(journal())));
            });
            switch(None);
            assert!(suite.is_err(), "{bug} passes");
        }
    }

    impl State {
        fn describe(&self) -> String {
            let records: usize = self.rotations.values().map(|row| row.records.len()).sum();
            let rows: Vec<_> = self.rotations.values().map(Rotation::row).collect();
            let values: Vec<_> = self.values.keys().collect();
            format!(
                "{:?} {:?} {:?} {rows:?} {records} {values:?} {:?} {:?}",
                self.claims, self.open, self.inventory, self.leases, self.head
            )
        }
    }
}
