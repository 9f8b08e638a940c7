//! What people ask of rotations: begin, undo, let go on, resolve, take over.
//!
//! Each request is one commit. It changes what a rotation owes; the loop then does it.

use std::sync::Arc;

use keywheel_core::call::{CallError, Refusal, RefusalKind};
use keywheel_core::event::{Because, Event, Outcome, ParkReason};
use keywheel_core::inventory::{Inventory, News};
use keywheel_core::plan::{Plan, RotationId, StorePlan};
use keywheel_core::rotation::{Next, Rotation};
use keywheel_core::secret::{Credential, SecretName};
use keywheel_core::time::{Span, Timestamp};
use keywheel_journal::{Append, Entry, Epoch, JournalError};

use crate::perform::{self, PutRight};
use crate::run::{Group, Member, group_name, resources};
use crate::{Engine, EngineError};

pub(crate) const CLAIM: Span = Span::minutes(30);

impl Engine {
    /// Begins the rotations of these plans as one group. Every plan is durable before anything else happens.
    ///
    /// # Errors
    /// [`JournalError::Held`] or [`JournalError::OpenAlready`] where a secret is being rotated; nothing was begun then.
    pub async fn begin(&self, plans: &[Arc<Plan>]) -> Result<Group, EngineError> {
        let first = plans
            .first()
            .map(|plan| plan.rotation())
            .ok_or_else(|| EngineError::NotOpen("no plan".into()))?;
        let name = group_name(&first, plans.len());
        let mut group = Group { name, members: Vec::new(), pending: Vec::new() };
        let now = self.clock.now();
        for plan in plans {
            let drivers = Arc::new(self.build.build(plan)?);
            let epoch = self.journal.claim(&plan.secret, &self.holder, now, CLAIM).await?;
            let inventory = self.journal.inventory(&plan.secret).await?;
            let mut inventory = inventory.unwrap_or_else(|| Inventory::new(plan.secret.clone()));
            let event = Event::Planned(Arc::clone(plan));
            let at = self.not_before_the_last(plan, now).await?;
            let rotation = Rotation::begin(at, &event)?;
            self.check_free(plan, &inventory)?;
            if let Some(taken_over) = &plan.takes_over {
                group.pending.push(self.supersede(plan, taken_over, epoch).await?);
            }
            inventory.follow(&rotation, &event, at);
            self.watch.recorded(&rotation, &event, at);
            let mut member = Member {
                rotation,
                drivers,
                inventory,
                epoch,
                claimed_until: now + CLAIM,
                sequence: 0,
                known_until: None,
                waited: false,
            };
            group.pending.push(member.next_entry(group.name.clone(), event, at));
            member.sequence = 1;
            group.members.push(member);
        }
        self.flush(&mut group).await?;
        Ok(group)
    }

    /// A rotation begins no earlier than any record of the one before it: where the wall clock was set back since, replicas
    /// of before would seem to have started after its writes.
    async fn not_before_the_last(
        &self,
        plan: &Plan,
        now: Timestamp,
    ) -> Result<Timestamp, EngineError> {
        let former = self.journal.rotations(Some(&plan.secret)).await?;
        Ok(former.iter().map(|former| former.last_at).chain([now]).max().unwrap_or(now))
    }

    fn check_free(&self, plan: &Plan, inventory: &Inventory) -> Result<(), EngineError> {
        match &inventory.open {
            Some(open) if plan.takes_over.as_ref() != Some(&open.rotation) => {
                let (secret, rotation) = (plan.secret.clone(), open.rotation.clone());
                Err(JournalError::OpenAlready { secret, rotation }.into())
            }
            _ => Ok(()),
        }
    }

    /// The record by which an emergency takes a running rotation over; its obligations stand in the new plan (H125).
    async fn supersede(
        &self,
        plan: &Plan,
        taken_over: &keywheel_core::plan::RotationId,
        epoch: keywheel_journal::Epoch,
    ) -> Result<Entry, EngineError> {
        let records = self.journal.records(taken_over).await?;
        let rotation = crate::recover::replay(&records)?;
        let minted = rotation.is_minted().then_some(rotation.plan().pending);
        let named = |version| {
            plan.previous.iter().chain(&plan.suspects).any(|known| known.version == version)
        };
        if minted.is_some_and(|version| !named(version))
            || rotation.unsettled_until() > plan.inherits_until
        {
            let message =
                format!("rotation {taken_over} went on since this plan was made; plan again");
            return Err(Refusal::operator(RefusalKind::Conflict, message).into());
        }
        let holder = self.holder_of_leases(&rotation).await?;
        Ok(Entry {
            give_back: holder.is_some(),
            group: holder.unwrap_or_else(|| taken_over.clone()),
            rotation: taken_over.clone(),
            secret: plan.secret.clone(),
            epoch,
            sequence: records.len() as u64,
            at: self.clock.now(),
            event: Some(Event::Superseded { by: plan.rotation() }),
            inventory: None,
            seal: Vec::new(),
            destroy: Vec::new(),
            take: Vec::new(),
        })
    }

    /// The name under which a rotation that is taken over holds wave leases: none while other members of its batch need them.
    async fn holder_of_leases(
        &self,
        rotation: &Rotation,
    ) -> Result<Option<RotationId>, EngineError> {
        let batch = self.of_batch(rotation).await?;
        if batch.iter().any(|member| member.open && member.rotation != *rotation.id()) {
            return Ok(None);
        }
        self.held_by(rotation, &batch).await
    }

    /// Turns every rotation of a group round.
    ///
    /// # Errors
    /// A refusal with the reason where one cannot turn round; none of them was turned then.
    pub async fn undo(&self, group: &mut Group, because: &str) -> Result<(), EngineError> {
        group.rotations().try_for_each(can_undo)?;
        let because = Because::Operator { because: because.into() };
        self.say(group, &Event::TurnedBack { because }).await
    }

    /// Lets parked rotations go on, and emergencies that only wait for the end of their suspects; everything is observed anew, and written and rolled where it differs, under the wave leases
    /// that every move has.
    ///
    /// # Errors
    /// [`JournalError::Busy`] while another rotation moves a store or workload of theirs: they stay parked. [`EngineError`]
    /// where the journal fails.
    pub async fn let_go_on(&self, group: &mut Group) -> Result<(), EngineError> {
        for index in 0..group.members.len() {
            // One that stopped after a refusal and before it was parked for that is tried again as well.
            let next = group.members[index].rotation.next(self.clock.now());
            match next {
                Next::Record(parked @ Event::Parked { .. }) if is_of_a_try(&parked) => {
                    self.enter(group, index, parked, self.clock.now(), Vec::new())?;
                }
                _ => {}
            }
            let rotation = &group.members[index].rotation;
            if rotation.parked().is_none() && !rotation.has_given_up() {
                continue;
            }
            self.enter(group, index, Event::Resumed, self.clock.now(), Vec::new())?;
            let member = &group.members[index];
            let moves = member.is_moving() && !member.rotation.waits_for_nobody();
            if let Some(resumed) = group.pending.last_mut().filter(|_| moves) {
                resumed.take = resources(&member.drivers);
            }
        }
        self.flush(group).await
    }

    /// Puts the stores of the open rotations of these secrets right after an edit by hand: writes what they should hold, and
    /// replaces replicas that may have read something else. Returns each secret with the stores that were written.
    ///
    /// # Errors
    /// A refusal where one of them is on its way ([`can_be_put_right`]), or where a store or a workload refuses; what was
    /// written before stays, and it can be asked again.
    pub async fn put_right(
        &self,
        secrets: &[SecretName],
    ) -> Result<Vec<(SecretName, PutRight)>, EngineError> {
        let group = self.recover(secrets).await?;
        let done = self.put_group_right(&group).await;
        self.give_up(&group).await?;
        done
    }

    async fn put_group_right(
        &self,
        group: &Group,
    ) -> Result<Vec<(SecretName, PutRight)>, EngineError> {
        group.rotations().try_for_each(can_be_put_right)?;
        let mut done = Vec::new();
        for member in &group.members {
            let written = perform::put_right(self, member).await.map_err(not_put_right)?;
            done.push((member.rotation.plan().secret.clone(), written));
        }
        Ok(done)
    }

    /// Closes parked rotations on the operator's word.
    ///
    /// # Errors
    /// [`EngineError::OutOfOrder`] where one is not parked.
    pub async fn resolve(
        &self,
        group: &mut Group,
        outcome: Outcome,
        because: &str,
    ) -> Result<(), EngineError> {
        self.say(group, &Event::Resolved { outcome, because: because.into() }).await
    }

    /// Journals one operator's event for every rotation of a group.
    ///
    /// # Errors
    /// [`EngineError::OutOfOrder`] where it does not fit one of them.
    pub async fn say(&self, group: &mut Group, event: &Event) -> Result<(), EngineError> {
        for index in 0..group.members.len() {
            self.enter(group, index, event.clone(), self.clock.now(), Vec::new())?;
        }
        self.flush(group).await
    }

    /// Changes a secret's row of the inventory outside a rotation, with an audit record that calls it `action`. `change` is
    /// given the row as it is when nobody else can change it, and returns what it is to be; none leaves it as it is.
    ///
    /// # Errors
    /// [`JournalError::Held`] where the secret is being worked on.
    pub async fn note(
        &self,
        secret: &SecretName,
        action: &str,
        change: impl FnOnce(Option<Inventory>) -> Option<Inventory>,
    ) -> Result<(), EngineError> {
        let now = self.clock.now();
        let epoch = self.journal.claim(secret, &self.holder, now, CLAIM).await?;
        let row = self.journal.inventory(secret).await?;
        match change(row) {
            Some(row) => self.write_row(row, action, epoch, now).await,
            None => Ok(self.journal.give_up(secret, epoch).await?),
        }
    }

    /// Takes what people were told of out of a secret's row.
    ///
    /// # Errors
    /// [`JournalError::Held`] where the secret is being worked on: it stays, and is told again.
    pub async fn told(&self, secret: &SecretName, news: &News) -> Result<(), EngineError> {
        self.note(secret, "told", |row| {
            let mut row = row?;
            row.untold.retain(|untold| untold != news);
            Some(row)
        })
        .await
    }

    async fn write_row(
        &self,
        inventory: Inventory,
        action: &str,
        epoch: Epoch,
        now: Timestamp,
    ) -> Result<(), EngineError> {
        let secret = inventory.secret.clone();
        self.append_row(inventory, action, epoch, now).await?;
        Ok(self.journal.give_up(&secret, epoch).await?)
    }

    /// Writes a row outside a rotation, and keeps the right to append.
    pub(crate) async fn append_row(
        &self,
        inventory: Inventory,
        action: &str,
        epoch: Epoch,
        now: Timestamp,
    ) -> Result<(), EngineError> {
        let rotation = keywheel_core::plan::RotationId(action.into());
        let entry = Entry {
            group: rotation.clone(),
            rotation,
            secret: inventory.secret.clone(),
            epoch,
            sequence: 0,
            at: now,
            event: None,
            inventory: Some(inventory),
            seal: Vec::new(),
            destroy: Vec::new(),
            take: Vec::new(),
            give_back: false,
        };
        Ok(self.journal.append(Append { actor: self.actor.clone(), entries: vec![entry] }).await?)
    }

    /// Returns the fingerprint of a credential, as the inventory keeps it for a secret with the slots of these stores.
    pub fn fingerprint(
        &self,
        stores: &[StorePlan],
        credential: &Credential,
    ) -> keywheel_core::fingerprint::Fingerprint {
        perform::fingerprint(self, stores, credential)
    }
}

/// Whether it is parked for a step that may be tried again; of whatever else it is parked for an operator has to hear first.
fn is_of_a_try(event: &Event) -> bool {
    let Event::Parked { reason } = event else { return false };
    matches!(
        reason,
        ParkReason::Refused { .. } | ParkReason::OutOfPatience { .. } | ParkReason::DeathUnproven
    )
}

/// Checks that a rotation can turn round, without asking anybody.
///
/// # Errors
/// A refusal that says why it cannot.
pub fn can_undo(rotation: &Rotation) -> Result<(), Refusal> {
    rotation.way_back().map_err(|no| {
        let message = format!("`{}` cannot be undone: {no}", rotation.plan().secret);
        Refusal::operator(RefusalKind::Unsupported, message)
    })
}

fn not_put_right(error: CallError) -> Refusal {
    match error {
        CallError::Refused(refusal) => refusal,
        CallError::Unknown(_) => Refusal::retry(RefusalKind::Unavailable, None, error.to_string()),
    }
}

/// Checks that the stores of an open rotation may be put right from outside: it is parked, or what is left of it is the
/// retirement of a version. One that is on its way writes them itself.
///
/// # Errors
/// A refusal that says so.
pub fn can_be_put_right(rotation: &Rotation) -> Result<(), Refusal> {
    if rotation.walk().is_touched() && (rotation.rests() || rotation.parked().is_some()) {
        return Ok(());
    }
    let message = format!("`{}` has an open rotation that is on its way", rotation.plan().secret);
    Err(Refusal::operator(RefusalKind::Unsupported, message))
}

/// Returns the secrets of a group, in order.
pub fn secrets(group: &Group) -> Vec<SecretName> {
    group.rotations().map(|rotation| rotation.plan().secret.clone()).collect()
}
