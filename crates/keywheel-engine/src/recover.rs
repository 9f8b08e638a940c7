//! Recovery: replay, then the same loop as ever.
//!
//! The only thing that recovery adds to a journal is the word *unknown* for an intent that has no outcome. Whether its call
//! was made, will still land, or never began is for the core to have observed.

use std::sync::Arc;

use keywheel_core::call::{Refusal, RefusalKind};
use keywheel_core::event::{Event, OutOfOrder, Step};
use keywheel_core::inventory::Inventory;
use keywheel_core::plan::RotationId;
use keywheel_core::planted;
use keywheel_core::rotation::Rotation;
use keywheel_core::secret::SecretName;
use keywheel_core::time::{Span, Timestamp};
use keywheel_journal::{Journal, JournalError, Record, RotationRow};

use crate::run::{Group, Member, as_if_done, group_name};
use crate::{Engine, EngineError};

/// How long recovery claims a secret at first; the loop renews it.
const CLAIM: Span = Span::minutes(30);

impl Engine {
    /// Takes over the open rotations of these secrets, as one group in the given order.
    ///
    /// # Errors
    /// [`JournalError::Held`] while another process works on one of them, [`EngineError::NotOpen`] where nothing is open.
    pub async fn recover(&self, secrets: &[SecretName]) -> Result<Group, EngineError> {
        let mut members = Vec::new();
        for secret in secrets {
            members.push(self.recover_one(secret).await?);
        }
        let name = self.name(&members).await?;
        let mut group = Group { name, members, pending: Vec::new() };
        self.close_open_intents(&mut group).await?;
        group.members.iter_mut().for_each(|member| member.rotation.ask_again());
        Ok(group)
    }

    async fn recover_one(&self, secret: &SecretName) -> Result<Member, EngineError> {
        let now = self.clock.now();
        let epoch = self.journal.claim(secret, &self.holder, now, CLAIM).await?;
        let inventory = self.journal.inventory(secret).await?;
        let open = inventory.as_ref().and_then(|inventory| inventory.open.as_ref());
        let Some(open) = open.map(|open| open.rotation.clone()) else {
            self.journal.give_up(secret, epoch).await?;
            return Err(EngineError::NotOpen(secret.to_string()));
        };
        let records = self.journal.records(&open).await?;
        let rotation = replay(&records)?;
        let drivers = Arc::new(self.build.build(rotation.plan())?);
        let inventory = inventory.unwrap_or_else(|| Inventory::new(secret.clone()));
        let sequence = records.len() as u64;
        Ok(Member {
            rotation,
            drivers,
            inventory,
            epoch,
            claimed_until: now + CLAIM,
            sequence,
            known_until: Some(known_until(&records)),
            waited: false,
        })
    }

    /// The name under which a group holds its wave leases. The member that gave it may have ended; whoever holds the leases of
    /// a move that is under way is this group.
    async fn name(&self, members: &[Member]) -> Result<RotationId, EngineError> {
        let first = members.first().ok_or_else(|| EngineError::NotOpen("no secret".into()))?;
        if let Some(moving) =
            members.iter().find(|member| member.rotation.walk().moving_to().is_some())
        {
            let batch = self.of_batch(&moving.rotation).await?;
            if let Some(holder) = self.held_by(&moving.rotation, &batch).await? {
                return Ok(holder);
            }
        }
        Ok(group_name(first.rotation.id(), members.len()))
    }

    /// Returns the name under which a rotation holds wave leases: its own, or that of its batch, which any member gave. What it shares
    /// with another emergency, that one may hold.
    pub(crate) async fn held_by(
        &self,
        rotation: &Rotation,
        batch: &[RotationRow],
    ) -> Result<Option<RotationId>, EngineError> {
        let of_batch = batch.iter().map(|member| group_name(&member.rotation, batch.len()));
        let names: Vec<_> = of_batch.chain([rotation.id().clone()]).collect();
        let is_ours =
            |holder: &RotationId| names.contains(holder) || planted!("leases_of_another_are_ours");
        let leases = self.journal.leases().await?;
        let mut holders = leases.into_iter().map(|(_, holder)| holder);
        Ok(holders.find(is_ours))
    }

    /// Returns the rotations that were begun together with one, and itself; nothing where it was begun alone.
    pub(crate) async fn of_batch(
        &self,
        rotation: &Rotation,
    ) -> Result<Vec<RotationRow>, EngineError> {
        let batch = &rotation.plan().batch;
        let mut members = Vec::new();
        for secret in batch {
            for row in self.journal.rotations(Some(secret)).await? {
                if read(self.journal.as_ref(), &row.rotation).await?.plan().batch == *batch {
                    members.push(row);
                    break;
                }
            }
        }
        Ok(members)
    }

    async fn close_open_intents(&self, group: &mut Group) -> Result<(), EngineError> {
        for index in 0..group.members.len() {
            while let Some(step) = group.members[index].rotation.open_step() {
                let event = closed(step);
                self.enter(group, index, event, self.clock.now(), Vec::new())?;
            }
        }
        self.flush(group).await
    }

    /// Returns the groups of secrets that have an open rotation: members of a batch together, in their order.
    ///
    /// # Errors
    /// [`JournalError`] where the journal cannot be read.
    pub async fn open_groups(&self) -> Result<Vec<Vec<SecretName>>, EngineError> {
        let mut groups: Vec<Vec<SecretName>> = Vec::new();
        for inventory in self.journal.inventories().await? {
            let Some(open) = &inventory.open else { continue };
            if groups.iter().any(|group| group.contains(&inventory.secret)) {
                continue;
            }
            let plan = read(self.journal.as_ref(), &open.rotation).await?;
            let mut group = Vec::new();
            for secret in &plan.plan().batch {
                let row = self.journal.inventory(secret).await?;
                if row.is_some_and(|row| row.open.is_some()) {
                    group.push(secret.clone());
                }
            }
            if !group.contains(&inventory.secret) {
                group = vec![inventory.secret];
            }
            groups.push(group);
        }
        Ok(groups)
    }
}

/// When the process that began a rotation wrote the last of its records. Later ones may be those of a process that found a journal
/// without what came in between.
fn known_until(records: &[Record]) -> Timestamp {
    let began = records.first().map(|first| first.epoch);
    let of_the_first = records.iter().take_while(|record| Some(record.epoch) == began);
    of_the_first.last().map(|last| last.at).unwrap_or_default()
}

/// What is recorded of an intent without an outcome.
fn closed(step: Step) -> Event {
    if planted!("recovery_assumes_done") && step.mutates() {
        return as_if_done(step);
    }
    if planted!("recovery_assumes_undone") && step.mutates() {
        let refusal = Refusal::retry(RefusalKind::Unavailable, None, "crashed");
        return Event::Refused { step, refusal };
    }
    Event::Unknown { step }
}

/// Reads a rotation without taking it over.
///
/// # Errors
/// [`EngineError`] where the journal cannot be read, or holds records that do not fit each other.
pub async fn read(journal: &dyn Journal, rotation: &RotationId) -> Result<Rotation, EngineError> {
    let records = journal.records(rotation).await?;
    Ok(replay(&records)?)
}

/// Returns a rotation and all that were taken over on the way to it, the latest first: what one of them left, the next may not
/// have come to.
///
/// # Errors
/// [`EngineError`] where the journal cannot be read, or holds records that do not fit each other.
pub async fn lineage(
    journal: &dyn Journal,
    rotation: Option<&RotationId>,
) -> Result<Vec<RotationId>, EngineError> {
    let mut lineage = Vec::new();
    let mut next = rotation.cloned();
    while let Some(id) = next {
        let former = read(journal, &id).await?.plan().takes_over.clone();
        lineage.push(id);
        next = former.filter(|_| !planted!("taken_over_one_level_back"));
    }
    Ok(lineage)
}

/// Folds records into the rotation that they are of.
///
/// # Errors
/// [`JournalError::Corrupt`] with the record that does not fit.
pub fn replay(records: &[Record]) -> Result<Rotation, JournalError> {
    let corrupt = |record: &Record, error: &OutOfOrder| JournalError::Corrupt {
        place: format!("record {}", record.sequence),
        detail: error.to_string(),
    };
    let Some((first, rest)) = records.split_first() else {
        return Err(JournalError::Corrupt {
            place: "record 0".into(),
            detail: "a rotation without records".into(),
        });
    };
    let mut rotation =
        Rotation::begin(first.at, &first.event).map_err(|error| corrupt(first, &error))?;
    for record in rest {
        rotation.apply(record.at, &record.event).map_err(|error| corrupt(record, &error))?;
    }
    Ok(rotation)
}
