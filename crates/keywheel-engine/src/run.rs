//! The loop: ask what is owed, journal the intent, take the step, journal the outcome.
//!
//! An outcome is durable in the same commit as the next intent, and before the loop waits or returns. A crash before that
//! commit leaves an open intent, which [`crate::recover`] records as unknown; the core then has it observed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use keywheel_core::call::{CallError, Refusal, RefusalKind};
use keywheel_core::event::{Event, Report, Step};
use keywheel_core::inventory::Inventory;
use keywheel_core::plan::RotationId;
use keywheel_core::rotation::{Rotation, Why};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::VersionId;
use keywheel_core::{batch, due, planted};
use keywheel_journal::{Append, Entry, Epoch, JournalError, Resource, Sealed, ValueKey};
use smallvec::SmallVec;

use crate::clock::within;
use crate::perform::{self, Performed};
use keywheel_driver::fail_point;

use crate::{Drivers, Engine, EngineError};

/// Rotations that run together: one, or the members of a batch.
pub struct Group {
    /// The name under which the group holds wave leases: see [`group_name`].
    pub(crate) name: RotationId,
    pub(crate) members: Vec<Member>,
    /// Entries that the next commit takes with it.
    pub(crate) pending: Vec<Entry>,
}

/// One rotation with everything it runs on.
pub struct Member {
    pub(crate) rotation: Rotation,
    pub(crate) drivers: Arc<Drivers>,
    pub(crate) inventory: Inventory,
    pub(crate) epoch: Epoch,
    pub(crate) claimed_until: Timestamp,
    pub(crate) sequence: u64,
    /// Where another process began the rotation, when it wrote the last of its records: what was done since may have had records that
    /// are lost (H18).
    pub(crate) known_until: Option<Timestamp>,
    /// Whether its move waited for another rotation's.
    pub(crate) waited: bool,
}

impl Group {
    /// Returns the rotations, in order.
    pub fn rotations(&self) -> impl Iterator<Item = &Rotation> {
        self.members.iter().map(|member| &member.rotation)
    }
}

/// The lease that a group extends next beside all else that it does, the parked ones too, and when.
fn keep_alive(group: &Group) -> Option<(Timestamp, usize, Step)> {
    let of_member = |(index, member): (usize, &Member)| {
        let (version, at) = due::keep_alive(&member.rotation, &member.inventory)?;
        Some((at, index, Step::KeepAlive(version)))
    };
    group.members.iter().enumerate().filter_map(of_member).min_by_key(|(at, ..)| *at)
}

/// Whether an emergency has something to do, which no lease is extended before.
fn waits_for_no_lease(group: &Group, turn: &batch::Turn) -> bool {
    group.rotations().any(|rotation| rotation.plan().is_emergency())
        && matches!(turn, batch::Turn::Record(..) | batch::Turn::Do(_))
        && !planted!("extensions_hold_up_an_emergency")
}

/// Names a group: a rotation alone by its id, a batch by that of its first member, told apart so that no member's end gives
/// the leases of the others back.
pub(crate) fn group_name(first: &RotationId, members: usize) -> RotationId {
    if members > 1 { RotationId(format!("batch-{first}")) } else { first.clone() }
}

/// One call, the steps that it is for, and its deadline.
struct Call<'s> {
    steps: &'s [(usize, Step)],
    until: Timestamp,
}

/// How far a run goes.
pub struct Until<'a> {
    /// Whether it waits until nothing is owed any more; otherwise it returns at the first wait of a retirement, or for tokens
    /// or an answer that may still land, that is longer than `patience`.
    pub rest: bool,
    /// The longest such wait that it sits out all the same.
    pub patience: Span,
    /// Ends the run after the step that is under way.
    pub stop: &'a AtomicBool,
}

/// Why a run returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran {
    /// Every rotation has ended or waits for an operator.
    Rested,
    /// Something is owed later.
    Owes {
        /// When.
        at: Timestamp,
        /// What for.
        why: Why,
    },
    /// It was asked to stop.
    Stopped,
}

/// How long a claim is held without being renewed.
const CLAIM: Span = Span::minutes(30);

impl Engine {
    /// Runs a group until it rests, owes something later, or is asked to stop.
    ///
    /// # Errors
    /// [`EngineError`] when the journal fails or was taken over; what is durable is safe to resume from.
    pub async fn run(&self, group: &mut Group, until: &Until<'_>) -> Result<Ran, EngineError> {
        loop {
            if until.stop.load(Ordering::SeqCst) {
                if planted!("undone_on_the_way_out") {
                    self.undo(group, "the program was stopped").await?;
                }
                if !planted!("stop_drops_the_answer") {
                    self.flush(group).await?;
                }
                return Ok(Ran::Stopped);
            }
            let now = self.clock.now();
            let kept_alive = keep_alive(group);
            let kept_alive_now = kept_alive.filter(|(at, ..)| *at <= now);
            let turn = batch::turn(&group.rotations().collect::<SmallVec<[&Rotation; 2]>>(), now);
            match (kept_alive_now, turn) {
                (Some((_, member, step)), turn) if !waits_for_no_lease(group, &turn) => {
                    self.step(group, &[(member, step)]).await?;
                }
                (kept_alive_now, batch::Turn::Record(member, event @ Event::MoveBegun { .. })) => {
                    if let Some(busy_until) = self.begin_move(group, member, event, now).await? {
                        if let Some((_, member, step)) = kept_alive_now {
                            self.step(group, &[(member, step)]).await?;
                        }
                        self.clock.sleep_until(busy_until).await;
                    }
                }
                (_, batch::Turn::Record(member, event)) => {
                    self.record(group, member, event, now)?
                }
                (_, batch::Turn::Do(steps)) => self.step(group, &steps).await?,
                (_, batch::Turn::Wait { until: at, why }) => {
                    self.flush(group).await?;
                    let sits_out = matches!(why, Why::Retry(_) | Why::Stage)
                        || group.rotations().any(Rotation::is_watched);
                    if !until.rest && !sits_out && at.since(now) > until.patience {
                        return Ok(Ran::Owes { at, why });
                    }
                    self.watch.waiting(at, why);
                    let at = kept_alive.map_or(at, |(keep_alive_at, ..)| at.min(keep_alive_at));
                    self.sleep(at, until.stop).await;
                }
                (_, batch::Turn::Rest) => {
                    self.flush(group).await?;
                    self.give_up(group).await?;
                    return Ok(Ran::Rested);
                }
            }
        }
    }

    /// Extends the lease of a group that is due next, if it is due by now, and does nothing else: whatever then keeps the group from
    /// being run is made no worse by a lease that runs out.
    ///
    /// # Errors
    /// [`EngineError`] when the journal fails.
    pub async fn extend_lease(&self, group: &mut Group) -> Result<(), EngineError> {
        let now = self.clock.now();
        let due = keep_alive(group).filter(|(at, ..)| *at <= now);
        let Some((_, member, step)) = due else { return Ok(()) };
        self.step(group, &[(member, step)]).await?;
        self.flush(group).await
    }

    /// Gives the secrets of a group free for whoever goes on with them.
    ///
    /// # Errors
    /// [`EngineError`] when the journal fails.
    pub async fn give_up(&self, group: &Group) -> Result<(), EngineError> {
        for member in &group.members {
            self.journal.give_up(&member.rotation.plan().secret, member.epoch).await?;
        }
        Ok(())
    }

    /// Sleeps in pieces, so that a stop is heard.
    async fn sleep(&self, until: Timestamp, stop: &AtomicBool) {
        while self.clock.now() < until && !stop.load(Ordering::SeqCst) {
            let piece = (self.clock.now() + self.clock.hears_within()).min(until);
            self.clock.sleep_until(piece).await;
        }
    }

    /// Takes one step, one roll that several members share, or the steps that an emergency takes at once.
    async fn step(&self, group: &mut Group, steps: &[(usize, Step)]) -> Result<(), EngineError> {
        let now = self.clock.now();
        let calls = self.calls(group, steps, now);
        for call in &calls {
            for (member, _) in call.steps {
                self.renew(&mut group.members[*member], now, call.until).await?;
            }
        }
        let first = name(steps[0].1);
        fail_point::pass("before_intent", first);
        if !planted!("intent_after_effect") {
            self.intend(group, &calls, now).await?;
        }
        fail_point::pass("after_intent", first);
        let answers = join_all(calls.iter().map(|call| self.call(group, call))).await;
        fail_point::pass("after_call", first);
        if planted!("intent_after_effect") {
            self.intend(group, &calls, now).await?;
        }
        for (call, answer) in calls.iter().zip(answers) {
            self.conclude(group, call.steps, answer)?;
        }
        fail_point::pass("before_outcome", first);
        Ok(())
    }

    /// The calls that these steps are: a roll that members share is one.
    fn calls<'s>(
        &self,
        group: &Group,
        steps: &'s [(usize, Step)],
        now: Timestamp,
    ) -> SmallVec<[Call<'s>; 1]> {
        let is_shared = steps.windows(2).any(|pair| pair[0].0 != pair[1].0);
        let calls = steps.chunks(if is_shared { steps.len() } else { 1 });
        let until = |(member, step): &(usize, Step)| {
            let rotation = &group.members[*member].rotation;
            let until = now + self.allowed(rotation, *step);
            // A roll that takes longer than the stage does not put off the end of the suspects.
            let is_cut = matches!(step, Step::Roll { .. }) && !planted!("roll_outlasts_the_stage");
            let stage = rotation.stage_ends_at().filter(|_| is_cut);
            stage.map_or(until, |end| until.min(end))
        };
        calls
            .map(|steps| Call { steps, until: steps.iter().map(until).max().unwrap_or(now) })
            .collect()
    }

    async fn intend(
        &self,
        group: &mut Group,
        calls: &[Call<'_>],
        now: Timestamp,
    ) -> Result<(), EngineError> {
        let clocks = Some(self.clock.clocks());
        for Call { steps, until } in calls {
            for (member, step) in *steps {
                let seal = self.value_to_mint(&group.members[*member], *step);
                let event = Event::Intended { step: *step, until: *until, clocks };
                self.enter(group, *member, event, now, seal)?;
            }
        }
        self.flush(group).await
    }

    /// A value that is ours is sealed in the same commit as the intent to mint it (I04).
    fn value_to_mint(&self, member: &Member, step: Step) -> Vec<Sealed> {
        if !matches!(step, Step::Mint { .. }) || planted!("value_not_sealed_with_intent") {
            return Vec::new();
        }
        if planted!("rejected_value_again") && member.rotation.mint_attempts() > 0 {
            return Vec::new();
        }
        let plan = member.rotation.plan();
        let mut random = |buffer: &mut [u8]| (self.random)(buffer);
        let previous = plan.previous.as_ref().and_then(|previous| previous.issued.as_ref());
        let made = member.drivers.issuer.generate(&mut random, previous);
        let key = perform::credential_key(plan, plan.pending);
        made.map(|value| Sealed { key, value }).into_iter().collect()
    }

    /// Makes one call, under its deadline and the limits of what it calls.
    async fn call(&self, group: &Group, call: &Call<'_>) -> Result<Performed, CallError> {
        let until = call.until;
        let too_late = |why: &str| Refusal::retry(RefusalKind::Unavailable, None, why);
        if self.clock.now() >= until {
            // The process was held up between its commit and its call; the call was certainly not made.
            return Err(too_late("the deadline passed before the call began").into());
        }
        let members: SmallVec<[(&Member, Step); 2]> =
            call.steps.iter().map(|(member, step)| (&group.members[*member], *step)).collect();
        let (member, step) = members[0];
        let called = perform::called(member, step);
        let place = async {
            match step {
                Step::Roll { .. } if !planted!("rolls_meet") => {
                    self.limits.enter_alone(&called).await
                }
                _ => self.limits.enter(&called).await,
            }
        };
        let Some(_place) = within(self.clock.as_ref(), until, place).await else {
            return Err(too_late("the deadline passed while other calls had the place").into());
        };
        let calls = async {
            match step {
                Step::Roll { .. } => perform::roll(self, &members).await,
                _ => perform::perform(self, member, step).await,
            }
        };
        let answer = within(self.clock.as_ref(), until, calls).await;
        answer.unwrap_or_else(|| Err(CallError::Unknown("the deadline passed".into())))
    }

    fn conclude(
        &self,
        group: &mut Group,
        steps: &[(usize, Step)],
        performed: Result<Performed, CallError>,
    ) -> Result<(), EngineError> {
        let now = self.clock.now();
        let (events, seal) = match performed {
            Ok(Performed { report, seal }) => (
                steps
                    .iter()
                    .map(|(_, step)| Event::Done { step: *step, report: report.clone() })
                    .collect(),
                seal,
            ),
            Err(CallError::Refused(refusal)) => (
                steps
                    .iter()
                    .map(|(_, step)| Event::Refused { step: *step, refusal: refusal.clone() })
                    .collect(),
                vec![],
            ),
            Err(CallError::Unknown(reason)) => {
                tracing::debug!(step = name(steps[0].1), reason, "unknown outcome");
                for (member, step) in steps {
                    self.watch.unanswered(&group.members[*member].rotation, *step, &reason);
                }
                let guessed = planted!("unknown_is_done") && steps[0].1.mutates();
                let event = |step| {
                    if guessed { as_if_done(step) } else { Event::Unknown { step } }
                };
                (
                    steps.iter().map(|(_, step)| event(*step)).collect::<SmallVec<[Event; 2]>>(),
                    vec![],
                )
            }
        };
        let mut seal = seal;
        for ((member, _), event) in steps.iter().zip(events) {
            self.enter(group, *member, event, now, std::mem::take(&mut seal))?;
        }
        Ok(())
    }

    fn record(
        &self,
        group: &mut Group,
        member: usize,
        event: Event,
        now: Timestamp,
    ) -> Result<(), EngineError> {
        self.enter(group, member, event, now, Vec::new())
    }

    /// Applies an event and puts it among the entries of the next commit.
    pub(crate) fn enter(
        &self,
        group: &mut Group,
        index: usize,
        event: Event,
        at: Timestamp,
        seal: Vec<Sealed>,
    ) -> Result<(), EngineError> {
        let holder = group.name.clone();
        let member = &mut group.members[index];
        let was_moving = member.is_moving();
        member.rotation.apply(at, &event)?;
        member.inventory.follow(&member.rotation, &event, at);
        self.watch.recorded(&member.rotation, &event, at);
        let destroy =
            if matches!(event, Event::Purged) { purge(&member.rotation) } else { Vec::new() };
        // A move ends where it arrives, and where a rotation turns round before it changed anything.
        let ends_move = was_moving && !member.is_moving() || member.rotation.outcome().is_some();
        let mut entry = member.entry(holder, event, at, seal, destroy);
        // The leases are the group's: they are given back when its last move has arrived.
        entry.give_back = ends_move && group.members.iter().all(|member| !member.is_moving());
        group.pending.push(entry);
        Ok(())
    }

    /// Takes the wave leases of a move with its record; where one is taken, says when to ask again.
    async fn begin_move(
        &self,
        group: &mut Group,
        index: usize,
        event: Event,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, EngineError> {
        self.flush(group).await?;
        let take = resources(&group.members[index].drivers);
        self.enter_move(group, index, event, now, take).await
    }

    async fn enter_move(
        &self,
        group: &mut Group,
        index: usize,
        event: Event,
        now: Timestamp,
        mut take: Vec<Resource>,
    ) -> Result<Option<Timestamp>, EngineError> {
        let holder = group.name.clone();
        let member = &group.members[index];
        let (mut rotation, mut inventory) = (member.rotation.clone(), member.inventory.clone());
        rotation.apply(now, &event)?;
        inventory.follow(&rotation, &event, now);
        loop {
            let entry = Entry {
                inventory: Some(inventory.clone()),
                take: take.clone(),
                ..member.next_entry(holder.clone(), event.clone(), now)
            };
            let append = Append { actor: self.actor.clone(), entries: vec![entry] };
            match self.journal.append(append).await {
                Ok(()) => break,
                Err(JournalError::Busy { resource, rotation: other }) => {
                    if rotation.waits_for_nobody()
                        || self.share_an_incident(&rotation, &other).await
                    {
                        take.retain(|wanted| *wanted != resource);
                        continue;
                    }
                    self.watch.busy(&resource, &other);
                    group.members[index].waited = true;
                    return Ok(Some(now + rotation.plan().policy.retry));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let member = &mut group.members[index];
        member.sequence += 1;
        member.rotation = rotation;
        member.inventory = inventory;
        if std::mem::take(&mut member.waited) {
            member.rotation.ask_again();
        }
        self.watch.recorded(&member.rotation, &event, now);
        Ok(None)
    }

    /// Whether another rotation is of the same emergency: those move together, and take turns only where they roll.
    async fn share_an_incident(&self, rotation: &Rotation, other: &RotationId) -> bool {
        let id_of = |rotation: &Rotation| {
            rotation.plan().incident.as_ref().map(|incident| incident.id.clone())
        };
        let Some(mine) = id_of(rotation) else { return false };
        let other = crate::recover::read(self.journal.as_ref(), other).await;
        other.is_ok_and(|other| id_of(&other) == Some(mine))
    }

    /// Commits what is pending, and each member's row of the inventory with its last entry.
    pub(crate) async fn flush(&self, group: &mut Group) -> Result<(), EngineError> {
        if group.pending.is_empty() {
            return Ok(());
        }
        let mut entries = std::mem::take(&mut group.pending);
        for member in &group.members {
            let of_member = |entry: &&mut Entry| entry.rotation == *member.rotation.id();
            if let Some(last) = entries.iter_mut().rev().find(of_member) {
                last.inventory = Some(member.inventory.clone());
            }
        }
        let answer = self.journal.append(Append { actor: self.actor.clone(), entries }).await;
        if planted!("swallows_storage_error") && matches!(answer, Err(JournalError::Storage(_))) {
            return Ok(());
        }
        Ok(answer?)
    }

    /// Renews the claim before a call that would outlast it (H25).
    async fn renew(
        &self,
        member: &mut Member,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<(), EngineError> {
        if until < member.claimed_until {
            return Ok(());
        }
        let lease = CLAIM.max(until.since(now) + Span::minutes(1));
        let epoch =
            self.journal.claim(&member.rotation.plan().secret, &self.holder, now, lease).await?;
        if epoch != member.epoch {
            return Err(
                JournalError::Stale { secret: member.rotation.plan().secret.clone() }.into()
            );
        }
        member.claimed_until = now + lease;
        Ok(())
    }

    fn allowed(&self, rotation: &Rotation, step: Step) -> Span {
        let policy = &rotation.plan().policy;
        if let Some(given) = rotation.plan().by_hand(step) {
            return given;
        }
        match step {
            Step::Roll { .. } => policy.roll,
            Step::Verify(_) | Step::VerifyDead(_) => {
                Span::millis(policy.call.as_millis() * u64::from(policy.refusals))
            }
            _ => policy.call,
        }
    }
}

impl Member {
    fn entry(
        &mut self,
        holder: RotationId,
        event: Event,
        at: Timestamp,
        seal: Vec<Sealed>,
        destroy: Vec<ValueKey>,
    ) -> Entry {
        let entry = Entry { seal, destroy, ..self.next_entry(holder, event, at) };
        self.sequence += 1;
        entry
    }

    pub(crate) fn is_moving(&self) -> bool {
        self.rotation.outcome().is_none() && self.rotation.walk().moving_to().is_some()
    }

    pub(crate) fn next_entry(&self, group: RotationId, event: Event, at: Timestamp) -> Entry {
        Entry {
            group,
            rotation: self.rotation.id().clone(),
            secret: self.rotation.plan().secret.clone(),
            epoch: self.epoch,
            sequence: self.sequence,
            at,
            event: Some(event),
            inventory: None,
            seal: Vec::new(),
            destroy: Vec::new(),
            take: Vec::new(),
            give_back: false,
        }
    }
}

/// Every container that a move writes and every workload that it rolls, sorted, so that two moves never wait in a ring.
pub(crate) fn resources(drivers: &Drivers) -> Vec<Resource> {
    let containers = drivers.stores.iter().flat_map(|store| store.containers());
    let workloads = drivers.workloads.iter().map(|workload| workload.resource());
    let mut all: Vec<Resource> = containers.chain(workloads).map(Resource).collect();
    all.sort();
    all.dedup();
    all
}

/// The sealed values that a rotation that is over no longer needs: of every version but the one that stays, and that one too
/// where every store can be read back. A value that was sealed for a mint that never came is among them (I29).
fn purge(rotation: &Rotation) -> Vec<ValueKey> {
    let plan = rotation.plan();
    let staying = rotation.version(rotation.toward());
    let keeps = !plan.stores.iter().all(|store| store.facts.is_readable());
    let known = plan
        .previous
        .iter()
        .chain(&plan.suspects)
        .map(|known| known.version.0)
        .chain([plan.pending.0]);
    // A rotation that was taken over may have sealed a version between them that nobody knows to be minted.
    let versions: SmallVec<[_; 3]> =
        (known.min().unwrap_or_default()..=plan.pending.0).map(VersionId).collect();
    let credentials = versions.iter().filter(|version| !keeps || Some(**version) != staying);
    let credentials = credentials.map(|version| perform::credential_key(plan, *version));
    let slots = versions.iter().flat_map(|version| perform::slot_keys(plan, *version));
    credentials.chain(slots).collect()
}

/// A planted bug's record of a step whose outcome nobody knows.
pub(crate) fn as_if_done(step: Step) -> Event {
    let report = match step {
        Step::Write { .. } => Report::Written { changed: true, changed_at: Vec::new() },
        _ => Report::Plain,
    };
    Event::Done { step, report }
}

/// The short name of a step, for fail points and logs.
pub fn name(step: Step) -> &'static str {
    match step {
        Step::Preflight => "preflight",
        Step::Capture => "capture",
        Step::Mint { .. } => "mint",
        Step::FindMint { .. } => "find_mint",
        Step::RevokeStray { .. } => "revoke_stray",
        Step::Verify(_) => "verify",
        Step::Write { .. } => "write",
        Step::Roll { .. } => "roll",
        Step::Evidence { .. } => "evidence",
        Step::Probe { .. } => "probe",
        Step::Visit => "visit",
        Step::Suspend(_) => "suspend",
        Step::Resume(_) => "resume",
        Step::Revoke(_) => "revoke",
        Step::VerifyDead(_) => "verify_dead",
        Step::Sweep => "sweep",
        Step::Extend => "extend",
        Step::KeepAlive(_) => "keep_alive",
        Step::CleanUp { .. } => "clean_up",
    }
}
