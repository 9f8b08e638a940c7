//! What each step means in calls to drivers.
//!
//! Nothing here decides what comes next, and nothing here is retried: a call's answer is reported as it came.

use keywheel_core::call::{CallError, Refusal, RefusalKind};
use keywheel_core::event::{Death, Report, Step};
use keywheel_core::evidence::{self, Count, Expected, Proof, Replica};
use keywheel_core::facts::{Authority, Observe, ReadBack, ValueOrigin};
use keywheel_core::fingerprint::{Compared, Fingerprint};
use keywheel_core::gate::{UsageSample, Visit};
use keywheel_core::incident::{Behind, BehindStore, WorkloadLogs};
use keywheel_core::plan::{Part, Pinned, Plan, Role, Slot, StorePlan};
use keywheel_core::planted;
use keywheel_core::secret::{Credential, Field, SecretValue};
use keywheel_core::strategy::{Arrangement, Position, Side};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::{IssuedId, VersionId};
use keywheel_driver::issuer::{Live, Mint, Suspect, Verdict};
use keywheel_driver::pin;
use keywheel_driver::probe::{Asked, Health};
use keywheel_driver::store::{Accept, Edit, Written};
use keywheel_driver::workload::{Ensure, Notes, Stamp};
use keywheel_driver::{Finding, Severity, slot, writer};
use keywheel_journal::{Sealed, ValueKey};
use smallvec::SmallVec;

use futures_util::future::{join, join_all};

use crate::clock::within;
use crate::run::{Member, resources};
use crate::{Drivers, Engine, held, readers, recover};

mod compare;

/// How long a look at stores and workloads may hold up what does not depend on it.
const LOOK: Span = Span::seconds(5);

/// What a step brought, and the values to be sealed with its record.
pub(crate) struct Performed {
    pub(crate) report: Report,
    pub(crate) seal: Vec<Sealed>,
}

impl From<Report> for Performed {
    fn from(report: Report) -> Self {
        Self { report, seal: Vec::new() }
    }
}

type Outcome<T = Performed> = Result<T, CallError>;

/// The bytes of the slots of one store, in their order.
type Held = Vec<Option<SecretValue>>;

/// Takes one step that no other rotation shares.
pub(crate) async fn perform(engine: &Engine, member: &Member, step: Step) -> Outcome {
    let work = Work { engine, member, plan: member.rotation.plan() };
    work.compare(step).await?;
    match step {
        Step::Preflight => work.preflight().await,
        Step::Capture => work.capture().await,
        Step::Mint { attempt } => work.mint(attempt).await,
        Step::FindMint { attempt } => work.find_mint(attempt).await,
        Step::RevokeStray { .. } => work.revoke_stray().await,
        Step::Verify(version) => work.verify(version).await,
        Step::Write { store, to } => work.write(usize::from(store), to).await,
        Step::Roll { .. } => roll(engine, &[(member, step)]).await,
        Step::Evidence { workload, to } => {
            Ok(Report::Seen(work.evidence(usize::from(workload), to).await?).into())
        }
        Step::Probe { .. } => work.probe().await,
        Step::Visit => work.visit().await,
        Step::Suspend(version) => work.suspend(version).await,
        Step::Resume(version) => work.resume(version).await,
        Step::Revoke(version) => work.revoke(version).await,
        Step::VerifyDead(version) => Ok(Report::Dead(work.verify_dead(version).await?).into()),
        Step::Sweep => work.sweep().await,
        Step::Extend => work.extend().await,
        Step::KeepAlive(version) => work.keep_alive(version).await,
        Step::CleanUp { store } => work.clean_up(usize::from(store)).await,
    }
}

/// Returns the name of what a step calls; calls to the same thing are limited together.
pub(crate) fn called(member: &Member, step: Step) -> String {
    let plan = member.rotation.plan();
    match step {
        Step::Write { store, .. } | Step::CleanUp { store } => {
            member.drivers.stores[usize::from(store)].container()
        }
        Step::Roll { workload, .. } | Step::Evidence { workload, .. } => {
            member.drivers.workloads[usize::from(workload)].resource()
        }
        Step::Preflight | Step::Capture | Step::Probe { .. } | Step::Visit => {
            format!("rotation {}", member.rotation.id())
        }
        _ => format!("issuer {}@{}", plan.issuer.bound.name, plan.secret.environment()),
    }
}

/// Names the sealed credential of a version.
pub fn credential_key(plan: &Plan, version: VersionId) -> ValueKey {
    ValueKey { secret: plan.secret.clone(), version, part: "credential".into() }
}

/// Names the sealed bytes of every slot as they were captured under a version.
pub fn slot_keys(plan: &Plan, version: VersionId) -> impl Iterator<Item = ValueKey> {
    plan.stores.iter().flat_map(move |store| {
        store
            .slots
            .iter()
            .map(move |slot| slot_key(plan, version, &store.bound.name, &slot.address))
    })
}

fn slot_key(plan: &Plan, version: VersionId, store: &str, address: &str) -> ValueKey {
    ValueKey { secret: plan.secret.clone(), version, part: format!("slot:{store}/{address}") }
}

/// Rolls one workload for every member at once: each brings the slots that it owns.
pub(crate) async fn roll(engine: &Engine, members: &[(&Member, Step)]) -> Outcome {
    let fingerprinter = &engine.journal.installation().fingerprinter;
    let (mut slots, mut stamps) = (Vec::new(), Vec::new());
    let (mut held_since, mut untouched) = (None, Vec::new());
    for (member, step) in members {
        let Step::Roll { workload, to } = *step else { continue };
        let work = Work { engine, member, plan: member.rotation.plan() };
        let expected = work.expected(usize::from(workload), to).await?;
        stamps.push(Stamp::new(&work.plan.secret, &expected, fingerprinter));
        slots.extend(expected);
        let planned = &work.plan.workloads[usize::from(workload)];
        work.check_workload(usize::from(workload)).await?;
        let walk = member.rotation.walk();
        held_since = held_since.max(walk.held_since(planned, to));
        untouched.push(work.untouched_before(to));
    }
    if planted!("stamp_ignores_also_accepted") && stamp_is_the_same(engine, members).await? {
        return Ok(Report::Plain.into());
    }
    let (first, Step::Roll { workload, .. }) = members[0] else { return Ok(Report::Plain.into()) };
    let notes = first.rotation.plan().is_emergency().then(Notes::default);
    let ensure = Ensure {
        emergency: notes.as_ref(),
        stamps,
        // None of them may have read anything, or it is not as it was.
        untouched_before: untouched.into_iter().min().flatten(),
        ..Ensure::new(&slots, held_since.unwrap_or_default(), fingerprinter)
    };
    let rolled = first.drivers.workloads[usize::from(workload)].roll(&ensure).await;
    let notes = notes.map(Notes::into_inner).unwrap_or_default();
    match rolled {
        Ok(()) => Ok(noted(notes).into()),
        Err(error) => Err(with_notes(error, &notes)),
    }
}

fn noted(notes: Vec<String>) -> Report {
    if notes.is_empty() { Report::Plain } else { Report::Noted { notes } }
}

/// A refusal keeps what was noted on the way to it.
fn with_notes(error: CallError, notes: &[String]) -> CallError {
    match error {
        CallError::Refused(refusal) if !notes.is_empty() => {
            let message = format!("{}; {}", refusal.message, notes.join("; "));
            Refusal { message, ..refusal }.into()
        }
        error => error,
    }
}

/// What was put right.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PutRight {
    /// The stores that were written.
    pub stores: Vec<String>,
    /// The workloads that were rolled.
    pub workloads: Vec<String>,
}

/// Writes what the stores of a rotation should hold over what somebody else wrote there, and replaces the replicas that may
/// have read it. Where no move is under way, replicas that somebody made to hold something else are replaced too.
pub(crate) async fn put_right(engine: &Engine, member: &Member) -> Outcome<PutRight> {
    let work = Work { engine, member, plan: member.rotation.plan() };
    let at = member.rotation.walk().should_hold();
    let mut written = Vec::new();
    for index in 0..work.plan.stores.len() {
        if work.put_right(index, at).await? {
            written.push(index);
        }
    }
    let held_since = engine.clock.now();
    let fingerprinter = &engine.journal.installation().fingerprinter;
    let mut rolled = Vec::new();
    for (index, planned) in work.plan.workloads.iter().enumerate() {
        let may_have_read = planned.reads.iter().any(|read| written.contains(&usize::from(*read)));
        let is_stale = member.rotation.rests()
            && !planted!("stale_replicas_stay")
            && !work.evidence(index, at).await?.complete();
        if !may_have_read && !is_stale {
            continue;
        }
        let workload = member.drivers.workloads[index].as_ref();
        work.check_workload(index).await?;
        let slots = work.expected(index, at).await?;
        let ensure = Ensure {
            stamps: vec![Stamp::new(&work.plan.secret, &slots, fingerprinter)],
            ..Ensure::new(&slots, held_since, fingerprinter)
        };
        workload.roll(&ensure).await?;
        rolled.push(planned.bound.name.clone());
    }
    let stores = written.into_iter().map(|index| work.plan.stores[index].bound.name.clone());
    Ok(PutRight { stores: stores.collect(), workloads: rolled })
}

/// A planted bug: a stamp over the current slots alone is the same before and after a move that changes what is also accepted.
async fn stamp_is_the_same(engine: &Engine, members: &[(&Member, Step)]) -> Outcome<bool> {
    for (member, step) in members {
        let Step::Roll { workload, to } = *step else { continue };
        let work = Work { engine, member, plan: member.rotation.plan() };
        let (before, after) = (member.rotation.walk().position(), to);
        let (before, after) = (
            work.expected(usize::from(workload), before).await?,
            work.expected(usize::from(workload), after).await?,
        );
        if before.first() != after.first() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// One member at work.
struct Work<'a> {
    engine: &'a Engine,
    member: &'a Member,
    plan: &'a Plan,
}

/// What an emergency passes over.
fn in_the_way(planned: &dyn Pinned, looked: Result<Vec<Finding>, String>) -> Vec<String> {
    let told = |why: String| format!("{}: {why}", planned.what());
    match looked {
        Ok(findings) => {
            let blocks = findings.into_iter().filter(|one| one.severity == Severity::Blocks);
            blocks.map(|finding| told(finding.message)).collect()
        }
        Err(why) => vec![told(why)],
    }
}

/// Before anything changes.
impl Work<'_> {
    async fn preflight(&self) -> Outcome {
        let moved = self.moved_by_another().await?;
        let drivers = &self.member.drivers;
        let mut findings = match self.plan.is_emergency() {
            true => drivers.issuer.preflight_emergency().await?,
            false => drivers.issuer.preflight().await?,
        };
        let mut passed_over = Vec::new();
        if self.plan.is_emergency() && !planted!("stores_stop_an_emergency") {
            passed_over.extend(self.stores_in_the_way().await?);
        } else {
            for index in 0..drivers.stores.len() {
                findings.extend(self.examine_store(index).await?);
            }
        }
        if self.plan.is_emergency() {
            passed_over.extend(self.workloads_in_the_way().await);
        } else {
            for index in 0..drivers.workloads.len() {
                findings.extend(self.examine(index).await?);
            }
        }
        let blocks = findings.into_iter().find(|finding| finding.severity == Severity::Blocks);
        let Some(finding) = blocks else { return Ok(noted(passed_over).into()) };
        // What another rotation is about to put right stands in nobody's way for long.
        Err(match moved.or(self.moved_by_another().await?) {
            Some(other) => Refusal::retry(RefusalKind::Unavailable, None, other).into(),
            None => Refusal::operator(RefusalKind::Unsupported, finding.message).into(),
        })
    }

    /// Looks whether a store is where it was, can be written, and has the slots that readers use.
    async fn examine_store(&self, index: usize) -> Outcome<Vec<Finding>> {
        self.check_store(index).await?;
        let (store, planned) = (&self.member.drivers.stores[index], &self.plan.stores[index]);
        let mut findings = store.preflight(&addresses(&planned.slots)).await?;
        if !planted!("absent_slots_are_not_looked_for") {
            findings.extend(store.missing(&in_use(&planned.slots)).await?);
        }
        Ok(findings)
    }

    /// Looks whether a workload is where it was, can be rolled, and is read by those who are listed.
    async fn examine(&self, index: usize) -> Outcome<Vec<Finding>> {
        let Drivers { stores, workloads, .. } = self.member.drivers.as_ref();
        self.check_workload(index).await?;
        readers::preflight(self.plan, stores, workloads, index).await
    }

    /// Refuses to touch a workload at another place than the one that it is pinned to.
    async fn check_workload(&self, index: usize) -> Result<(), Refusal> {
        let (workload, planned) =
            (&self.member.drivers.workloads[index], &self.plan.workloads[index]);
        let pinned = self.member.inventory.pin_of(planned);
        pin::check(workload.identity(), &planned.what(), pinned, false).await
    }

    /// Refuses to touch a store at another place than the one that it is pinned to.
    async fn check_store(&self, index: usize) -> Result<(), Refusal> {
        let (store, planned) = (&self.member.drivers.stores[index], &self.plan.stores[index]);
        let pinned = self.member.inventory.pin_of(planned);
        // An emergency may have passed over a preflight that would have refused the place.
        let is_written = !self.plan.is_emergency()
            && u8::try_from(index)
                .is_ok_and(|store| self.member.rotation.walk().is_store_touched(store));
        pin::check(store.identity(), &planned.what(), pinned, is_written).await
    }

    /// Says which other rotation is moving a store or a workload of this one.
    async fn moved_by_another(&self) -> Outcome<Option<String>> {
        let own = resources(&self.member.drivers);
        let leases = self.engine.journal.leases().await;
        let leases =
            leases.map_err(|error| Refusal::operator(RefusalKind::Local, error.to_string()))?;
        let other = leases.into_iter().find(|(resource, _)| own.contains(resource));
        Ok(other.map(|(resource, other)| format!("rotation {other} is moving {}", resource.0)))
    }

    /// What speaks against writing a store. It keeps no emergency from ending a suspect either: that store is written as soon as it
    /// can be. One that another installation owns is for an operator to take over.
    async fn stores_in_the_way(&self) -> Outcome<Vec<String>> {
        let owners =
            (0..self.plan.stores.len()).map(|index| self.in_time(self.foreign_owner(index)));
        if let Some(objection) = join_all(owners).await.into_iter().flatten().flatten().next() {
            return Err(Refusal::operator(RefusalKind::Permission, objection).into());
        }
        let looks = self.plan.stores.iter().enumerate().map(|(index, planned)| async move {
            in_the_way(planned, self.in_time(self.examine_store(index)).await)
        });
        Ok(join_all(looks).await.concat())
    }

    /// Says which other installation owns a store.
    async fn foreign_owner(&self, index: usize) -> Outcome<Option<String>> {
        let store = &self.member.drivers.stores[index];
        let Some(claims) = store.claims() else { return Ok(None) };
        self.check_store(index).await?;
        Ok(claims.owner().await?.objection(&self.plan.stores[index].what()))
    }

    /// What speaks against rolling a workload. It keeps no emergency from ending a suspect, so it is told and passed over.
    async fn workloads_in_the_way(&self) -> Vec<String> {
        let looks = self.plan.workloads.iter().enumerate().map(|(index, planned)| async move {
            in_the_way(planned, self.in_time(self.examine(index)).await)
        });
        join_all(looks).await.concat()
    }

    /// Looks at something for a while only; else says why nothing was seen.
    async fn in_time<T>(&self, look: impl Future<Output = Outcome<T>>) -> Result<T, String> {
        let clock = self.engine.clock.as_ref();
        match within(clock, clock.now() + LOOK, look).await {
            Some(seen) => seen.map_err(|error| error.to_string()),
            None => Err(format!("it did not answer within {LOOK}")),
        }
    }

    /// Where the logs of all replicas are. What is not known holds nothing up, and is said (H124).
    async fn logs(&self) -> Vec<WorkloadLogs> {
        if planted!("logs_not_referenced") {
            return Vec::new();
        }
        let looks =
            (0..).zip(&self.member.drivers.workloads).map(|(workload, driver)| async move {
                let (replicas, not_captured) = match self.in_time(driver.logs()).await {
                    Ok(Some(replicas)) if replicas.is_empty() => {
                        (replicas, Some("there was no replica".into()))
                    }
                    Ok(Some(replicas)) => (replicas, None),
                    Ok(None) => (Vec::new(), Some("its kind does not tell where logs are".into())),
                    Err(why) => (Vec::new(), Some(why)),
                };
                WorkloadLogs { workload, replicas, not_captured }
            });
        join_all(looks).await
    }

    /// Reads every slot. Stores must agree on the version in use, unless an emergency takes them as they are.
    async fn capture(&self) -> Outcome {
        let version = self.captured_under();
        let mut found: Vec<(&str, Credential)> = Vec::new();
        let (mut seal, mut passed_over) = (Vec::new(), Vec::new());
        let read = self.read_all(&mut passed_over).await?;
        for (planned, held) in self.plan.stores.iter().zip(read) {
            let Some(held) = held else { continue };
            let name = planned.bound.name.as_str();
            for (slot, bytes) in planned.slots.iter().zip(&held) {
                self.check_slot(name, slot, bytes.as_ref())?;
            }
            seal.extend(self.slots_to_seal(planned, &held));
            match credential_of(&planned.slots, &held) {
                Ok(held) => found.extend(held.map(|credential| (name, credential))),
                Err(why) if self.plan.is_emergency() => {
                    passed_over.push(format!("{}: {why}", planned.what()))
                }
                Err(why) => return Err(why.into()),
            }
        }
        let known_to_us = self.known_to_us().await?;
        let agreed = if self.plan.is_emergency() { None } else { self.agree(&found)? };
        let agreed = match (agreed, &known_to_us) {
            (Some(agreed), known) => Some(held::completed(&agreed, known)),
            (None, Some(known)) if !self.plan.is_emergency() => Some(known.duplicate()),
            (None, _) => None,
        };
        let fingerprint = agreed.as_ref().map(|credential| self.fingerprint(credential));
        let known = self.plan.previous.as_ref().and_then(|previous| previous.fingerprint);
        if let (Some(known), Some(seen)) = (known, fingerprint)
            && known.compare(&seen) == Compared::Different
            && !planted!("edit_by_hand_unnoticed")
        {
            let message = format!(
                "stores hold a value that is not version {} as keywheel knows it",
                version.0
            );
            return Err(Refusal::operator(RefusalKind::Conflict, message).into());
        }
        // Stores of a rotation that was taken over may be half written; what it captured is the version, what they hold may not be.
        let taken_over = match &self.plan.previous {
            Some(previous) if self.plan.takes_over.is_some() => {
                self.sealed(previous.version).await?.is_some()
            }
            _ => false,
        };
        let in_use = if taken_over { None } else { self.in_use(&found, known) };
        let in_use = in_use.map(|in_use| held::completed(&in_use, &known_to_us));
        let mut changed_at = Vec::new();
        // An emergency goes forward only, over whatever a store holds.
        if !self.plan.is_emergency() {
            let in_use = in_use.as_ref().or(known_to_us.as_ref());
            changed_at = self.times_of_change().await?;
            seal.extend(self.way_back(version, in_use, &changed_at));
        }
        if let (Some(previous), Some(value)) = (&self.plan.previous, in_use) {
            seal.push(Sealed { key: credential_key(self.plan, previous.version), value });
        }
        let logs = self.logs().await;
        Ok(Performed {
            report: Report::Captured { fingerprint, logs, changed_at, passed_over },
            seal,
        })
    }

    /// The version in use when the rotation began, under which what slots held before is sealed; its own one where there was none.
    fn captured_under(&self) -> VersionId {
        self.plan.previous.as_ref().map_or(self.plan.pending, |previous| previous.version)
    }

    /// Reads every store that can be read. One that an emergency cannot read for now is read when it is written, and told.
    async fn read_all(&self, passed_over: &mut Vec<String>) -> Outcome<Vec<Option<Held>>> {
        let passes = self.plan.is_emergency() && !planted!("unread_store_stops_an_emergency");
        if !passes {
            let mut read = Vec::new();
            for index in 0..self.plan.stores.len() {
                read.push(self.read(index).await?);
            }
            return Ok(read);
        }
        let looks = (0..self.plan.stores.len()).map(|index| self.in_time(self.read(index)));
        let read = join_all(looks).await.into_iter().zip(&self.plan.stores);
        let told = |(read, planned): (Result<Option<Held>, String>, &StorePlan)| {
            read.unwrap_or_else(|why| {
                passed_over.push(format!("{}: {why}", planned.what()));
                None
            })
        };
        Ok(read.map(told).collect())
    }

    /// Reads the slots of one store; none where it cannot be read.
    async fn read(&self, index: usize) -> Outcome<Option<Held>> {
        let planned = &self.plan.stores[index];
        if !planned.facts.is_readable() {
            return Ok(None);
        }
        self.check_store(index).await?;
        Ok(Some(self.member.drivers.stores[index].read(&addresses(&planned.slots)).await?))
    }

    fn slots_to_seal<'s>(
        &'s self,
        planned: &'s StorePlan,
        held: &'s Held,
    ) -> impl Iterator<Item = Sealed> + 's {
        let version = self.captured_under();
        planned.slots.iter().zip(held).map(move |(slot, bytes)| Sealed {
            key: slot_key(self.plan, version, &planned.bound.name, &slot.address),
            value: as_credential(bytes),
        })
    }

    /// When each slot was changed last, of the stores that tell nothing else.
    async fn times_of_change(&self) -> Outcome<Vec<(u8, Vec<Option<Timestamp>>)>> {
        let mut all = Vec::new();
        for (index, (store, planned)) in
            (0..).zip(self.member.drivers.stores.iter().zip(&self.plan.stores))
        {
            if planned.facts.read_back == ReadBack::Timestamp {
                self.check_store(usize::from(index)).await?;
                all.push((index, store.changed_at(&addresses(&planned.slots)).await?));
            }
        }
        Ok(all)
    }

    /// The version in use as it is sealed, where some stores cannot be read: what they hold is kept for the next rotation.
    async fn known_to_us(&self) -> Outcome<Option<Credential>> {
        match &self.plan.previous {
            Some(previous) if self.plan.stores.iter().any(|store| !store.facts.is_readable()) => {
                self.sealed(previous.version).await
            }
            _ => Ok(None),
        }
    }

    /// What is written again on the way back to stores that cannot be read: the version in use, where the other stores hold it or
    /// it is sealed. A slot that is absent becomes absent again; where neither is known, nothing is sealed, and there is no way back.
    fn way_back(
        &self,
        version: VersionId,
        in_use: Option<&Credential>,
        changed_at: &[(u8, Vec<Option<Timestamp>>)],
    ) -> Vec<Sealed> {
        let mut seal = Vec::new();
        for (index, planned) in (0..).zip(&self.plan.stores) {
            if planned.facts.is_readable() {
                continue;
            }
            let is_absent: Vec<bool> = match changed_at.iter().find(|(store, _)| *store == index) {
                Some((_, times)) => times.iter().map(Option::is_none).collect(),
                None => vec![false; planned.slots.len()],
            };
            for (slot, is_absent) in planned.slots.iter().zip(is_absent) {
                let key = slot_key(self.plan, version, &planned.bound.name, &slot.address);
                let known = in_use.and_then(|in_use| slot::compose(&slot.part, in_use, None).ok());
                if known.is_none() && !is_absent {
                    continue;
                }
                let held = known.flatten().filter(|_| !is_absent);
                seal.push(Sealed { key, value: as_credential(&held) });
            }
        }
        seal
    }

    /// The credential that is the version in use: the one that is known to be, else the one that every store holds. In an
    /// emergency neither may be there; then nothing is sealed, and nobody is asked whether it is dead.
    fn in_use(
        &self,
        found: &[(&str, Credential)],
        known: Option<Fingerprint>,
    ) -> Option<Credential> {
        let all = || found.iter().map(|(_, credential)| credential);
        match known {
            Some(known) => all().map(|one| held::completed(one, all())).find(|credential| {
                known.compare(&self.fingerprint(credential)) != Compared::Different
            }),
            None => self.agree(found).ok().flatten(),
        }
    }

    /// A slot for a second accepted version must be free: what stands there may be alive.
    fn check_slot(
        &self,
        store: &str,
        slot: &Slot,
        held: Option<&SecretValue>,
    ) -> Result<(), Refusal> {
        let occupied =
            slot.role == Role::AlsoAccepted && held.is_some_and(|bytes| !bytes.expose().is_empty());
        if occupied && !self.plan.is_emergency() {
            let message = format!(
                "slot `{}` of store `{store}` still holds a version that may be accepted",
                slot.address
            );
            return Err(Refusal::operator(RefusalKind::Conflict, message));
        }
        Ok(())
    }

    fn agree(&self, found: &[(&str, Credential)]) -> Result<Option<Credential>, Refusal> {
        let is_read = self.plan.stores.iter().any(|store| store.facts.is_readable());
        match held::together(found)? {
            None if is_read && self.plan.previous.is_some() => {
                Err(Refusal::operator(RefusalKind::NotFound, "no store holds a value"))
            }
            agreed => Ok(agreed),
        }
    }

    fn fingerprint(&self, credential: &Credential) -> Fingerprint {
        fingerprint(self.engine, &self.plan.stores, credential)
    }
}

/// The fields of a credential that current slots are given.
fn delivered(stores: &[StorePlan], credential: &Credential) -> Credential {
    let slots = stores.iter().flat_map(|store| &store.slots);
    let parts = slots.filter(|slot| slot.role == Role::Current).map(|slot| &slot.part);
    let held = parts.flat_map(Part::fields).filter_map(|name| {
        let value = credential.field(&name)?.duplicate();
        Some((name, value))
    });
    held.fold(Credential::default(), |held, (name, value)| held.with(name, value))
}

/// Fingerprints what the stores hold of a credential, its fields in order: a field that none of them is given can be read back
/// nowhere.
pub(crate) fn fingerprint(
    engine: &Engine,
    stores: &[StorePlan],
    credential: &Credential,
) -> Fingerprint {
    let held = delivered(stores, credential);
    let all = held.fields().next().is_none() || planted!("fields_of_no_slot_compared");
    let fingerprinter = &engine.journal.installation().fingerprinter;
    let fields: SmallVec<[(&str, Fingerprint); 2]> = if all { credential } else { &held }
        .fields()
        .map(|(field, value)| (field.as_str(), fingerprinter.of(value.expose())))
        .collect();
    fingerprinter.digest(fields.iter().map(|(field, held)| (*field, Some(held))))
}

/// The issuer.
impl Work<'_> {
    async fn mint(&self, attempt: u16) -> Outcome {
        let label = self.member.rotation.id().label(attempt);
        let ours = self.sealed(self.plan.pending).await?;
        let previous = self.plan.previous.as_ref().and_then(|previous| previous.issued.as_ref());
        let facts = &self.plan.issuer.facts;
        let in_use = match &self.plan.previous {
            Some(previous) if facts.by_hand.is_some() || facts.told_in_use => {
                self.sealed(previous.version).await?
            }
            _ => None,
        };
        let suspects = self.suspects().await?;
        let request = Mint {
            label: &label,
            value: ours.as_ref(),
            previous,
            in_use: in_use.as_ref(),
            suspects: &suspects,
        };
        let minted = self.member.drivers.issuer.mint(&request).await?;
        let credential = minted.credential.as_ref().or(ours.as_ref());
        let fingerprint = credential.map(|credential| self.fingerprint(credential));
        let report = Report::Minted {
            issued: minted.issued,
            fingerprint,
            expires_at: minted.expires_at,
            notes: minted.notes,
        };
        Ok(Performed { report, seal: self.seal_pending(minted.credential) })
    }

    /// What an emergency ends beside the previous version; where names take turns, the next one may still be held by it, and by
    /// what the rotations that were taken over minted without an answer.
    async fn suspects(&self) -> Outcome<Vec<Suspect>> {
        let facts = &self.plan.issuer.facts;
        let mut suspects = Vec::new();
        for known in &self.plan.suspects {
            let value = match facts.by_hand {
                Some(_) => self.sealed(known.version).await?,
                None => None,
            };
            suspects.push(Suspect { issued: known.issued.clone(), value });
        }
        if facts.takes_turns {
            let left = self.left_by_taken_over().await?.into_iter();
            suspects.extend(left.map(|issued| Suspect { issued: Some(issued), value: None }));
        }
        Ok(suspects)
    }

    /// What is live under the labels of the rotation that was taken over, and of all that it took over before.
    async fn left_by_taken_over(&self) -> Outcome<Vec<IssuedId>> {
        let journal = self.engine.journal.as_ref();
        let lineage = recover::lineage(journal, self.plan.takes_over.as_ref()).await;
        let lineage =
            lineage.map_err(|error| Refusal::operator(RefusalKind::Local, error.to_string()))?;
        let mut left = Vec::new();
        for rotation in lineage {
            let live = self.member.drivers.issuer.list(&rotation.label_prefix()).await?;
            left.extend(live.into_iter().map(|live| live.issued));
        }
        Ok(left)
    }

    fn seal_pending(&self, credential: Option<Credential>) -> Vec<Sealed> {
        let key = credential_key(self.plan, self.plan.pending);
        credential.map(|value| Sealed { key, value }).into_iter().collect()
    }

    async fn find_mint(&self, attempt: u16) -> Outcome {
        let facts = &self.plan.issuer.facts;
        let ours = facts.value == ValueOrigin::Ours || planted!("value_of_theirs_taken_for_ours");
        if ours && facts.authority != Authority::Issuer {
            // No one but us knows the value: it was sealed with the intent, and that is all a mint is here.
            let value = self.sealed(self.plan.pending).await?;
            return Ok(self.found(IssuedId::new(""), true, value.as_ref()).into());
        }
        if facts.observe == Observe::Probe {
            let Some(value) = self.sealed(self.plan.pending).await? else {
                return Ok(absent().into());
            };
            return match self.member.drivers.issuer.verify(&value).await? {
                Verdict::Accepted => Ok(self.found(IssuedId::new(""), true, Some(&value)).into()),
                Verdict::Refused => Ok(absent().into()),
                Verdict::CannotTell(reason) => Err(cannot_tell(reason)),
            };
        }
        let label = self.member.rotation.id().label(attempt);
        let live = self.member.drivers.issuer.list(if facts.label { &label.0 } else { "" }).await?;
        let known: SmallVec<[&IssuedId; 2]> = self
            .plan
            .previous
            .iter()
            .chain(&self.plan.suspects)
            .filter_map(|version| version.issued.as_ref())
            .collect();
        let ours = live.into_iter().find(|live| match facts.observe {
            Observe::Label => live.label.as_ref() == Some(&label),
            _ => !known.contains(&&live.issued),
        });
        let Some(found) = ours else { return Ok(absent().into()) };
        if facts.value == ValueOrigin::Ours {
            // The value was sealed with the intent of this very attempt, whose label was found.
            let value = self.sealed(self.plan.pending).await?;
            let is_whole = self.member.drivers.issuer.confirm(&found.issued).await?;
            let value = value.filter(|_| is_whole);
            return Ok(self.found(found.issued, value.is_some(), value.as_ref()).into());
        }
        let credential = self.member.drivers.issuer.reread(&found.issued).await?;
        let report = self.found(found.issued, credential.is_some(), credential.as_ref());
        Ok(Performed { report, seal: self.seal_pending(credential) })
    }

    fn found(&self, issued: IssuedId, held: bool, value: Option<&Credential>) -> Report {
        let fingerprint = value.map(|credential| self.fingerprint(credential));
        Report::Found { issued: Some(issued), held, fingerprint }
    }

    async fn revoke_stray(&self) -> Outcome {
        let stray = self.member.rotation.stray().expect("the core owes this step only for a stray");
        self.member.drivers.issuer.revoke(stray).await?;
        Ok(Report::Plain.into())
    }

    /// Several acceptances in a row: a new version may be known to one node and not to the next (H87). Where nothing has to
    /// spread, one is definite.
    async fn verify(&self, version: VersionId) -> Outcome {
        let credential = self.needed(version).await?;
        let once = planted!("accepted_once_is_enough");
        for _ in 0..if once { 1 } else { self.plan.acceptances() } {
            match self.member.drivers.issuer.verify(&credential).await? {
                Verdict::Accepted => {}
                Verdict::Refused => return Err(self.refused_by_issuer(version).into()),
                Verdict::CannotTell(reason) => return Err(cannot_tell(reason)),
            }
        }
        self.check_outdated(version).await?;
        Ok(Report::Plain.into())
    }

    fn refused_by_issuer(&self, version: VersionId) -> Refusal {
        let message = format!("issuer `{}` refuses {version}", self.plan.issuer.bound.name);
        match self.one_refusal_is_definite() {
            true => Refusal::operator(RefusalKind::Invalid, message),
            false => Refusal::retry(RefusalKind::Invalid, None, message),
        }
    }

    /// Refuses a lease that would be replaced as soon as readers had it: what it was made with is no longer in use.
    async fn check_outdated(&self, version: VersionId) -> Outcome<()> {
        let issued = self.member.rotation.issued(version);
        let (Some(issued), true) = (issued, version == self.plan.pending) else { return Ok(()) };
        if self.plan.issuer.facts.lease.is_none() || planted!("outdated_lease_is_delivered") {
            return Ok(());
        }
        match self.member.drivers.issuer.outdated(issued).await? {
            None => Ok(()),
            Some(because) => {
                let message = format!("{version} is of no use to readers: {because}");
                Err(Refusal::operator(RefusalKind::Invalid, message).into())
            }
        }
    }

    /// Where nothing has to spread, a value that was refused is refused everywhere. It is not tried again: an account may count
    /// wrong attempts, and lock (H77).
    fn one_refusal_is_definite(&self) -> bool {
        self.plan.issuer.facts.propagation.is_zero() && !planted!("refused_value_is_tried_again")
    }

    async fn suspend(&self, version: VersionId) -> Outcome {
        let switch = self.member.drivers.issuer.suspend().ok_or_else(|| unsupported("suspend"))?;
        switch.suspend(self.issued(version)?).await?;
        Ok(Report::Plain.into())
    }

    async fn resume(&self, version: VersionId) -> Outcome {
        let switch = self.member.drivers.issuer.suspend().ok_or_else(|| unsupported("resume"))?;
        switch.resume(self.issued(version)?).await?;
        Ok(Report::Plain.into())
    }

    async fn revoke(&self, version: VersionId) -> Outcome {
        let issued = self.issued(version)?;
        let revoke = self.revoke_at_issuer(version, issued);
        if !self.plan.is_emergency() {
            revoke.await?;
            let kept = self.forget_login(version).await?;
            return match kept.into_iter().next() {
                None => Ok(Report::Plain.into()),
                Some((store, error)) => {
                    let name = &self.plan.stores[usize::from(store)].bound.name;
                    let what = format!("{version} is revoked, and still in store `{name}`");
                    Err(CallError::Unknown(format!("{what}: {error}")))
                }
            };
        }
        let is_staged = self.member.rotation.was_ever_promoted();
        let behind = async { if is_staged { Vec::new() } else { self.behind().await } };
        let (revoked, behind) = join(revoke, behind).await;
        revoked?;
        // The suspect is ended: a store that keeps its password keeps no other suspect alive.
        let mut stores = if is_staged { Vec::new() } else { self.stores_behind() };
        let kept = self.forget_login(version).await?.into_iter();
        stores
            .extend(kept.map(|(store, error)| BehindStore { store, why: Some(error.to_string()) }));
        stores.sort_by_key(|behind| behind.store);
        stores.dedup_by_key(|behind| behind.store);
        if is_staged && stores.is_empty() {
            return Ok(Report::Plain.into());
        }
        Ok(Report::Revoked { behind, stores }.into())
    }

    /// The stores that may still hold a suspect while it is ended, and what kept them from being written.
    fn stores_behind(&self) -> Vec<BehindStore> {
        let rotation = &self.member.rotation;
        let to = rotation.line().promotes(rotation.toward(), rotation.walk().position());
        let stores = 0..self.plan.stores.len() as u8;
        let behind = stores.filter(|store| !rotation.walk().holds(*store, to));
        let why = |store| rotation.last_refusal(Step::Write { store, to }).map(Refusal::to_string);
        behind.map(|store| BehindStore { store, why: why(store) }).collect()
    }

    /// An emergency ends the sessions too that a suspect may have opened.
    async fn revoke_at_issuer(&self, version: VersionId, issued: &IssuedId) -> Outcome<()> {
        let issuer = &self.member.drivers.issuer;
        let held = match self.plan.issuer.facts.by_hand {
            Some(_) => self.sealed(version).await?,
            None => None,
        };
        issuer.revoke_held(issued, held.as_ref()).await?;
        if !self.plan.is_emergency() || planted!("sessions_of_a_suspect_stay") {
            return Ok(());
        }
        // The revoke was made: whatever becomes of its sessions, it was not refused.
        let ended = issuer.end_sessions(issued).await;
        ended.map_err(|error| CallError::Unknown(error.to_string()))
    }

    /// The replicas that do not prove the new version while a suspect is ended: a declared outage (H123).
    async fn behind(&self) -> Vec<Behind> {
        let to = self
            .member
            .rotation
            .line()
            .promotes(self.member.rotation.toward(), self.member.rotation.walk().position());
        let looks = (0..).zip(&self.plan.workloads).map(|(workload, _)| async move {
            let (replicas, unknown) =
                match self.in_time(self.unproven(usize::from(workload), to)).await {
                    Ok(replicas) => (replicas, None),
                    Err(why) => (Vec::new(), Some(why)),
                };
            Behind { workload, replicas, unknown }
        });
        let mut behind = join_all(looks).await;
        behind.retain(|behind| !behind.replicas.is_empty() || behind.unknown.is_some());
        behind
    }

    fn issued(&self, version: VersionId) -> Result<&IssuedId, Refusal> {
        let unknown = || {
            Refusal::operator(
                RefusalKind::NotFound,
                format!("the issuer's id of {version} is not known"),
            )
        };
        self.member.rotation.issued(version).ok_or_else(unknown)
    }

    async fn extend(&self) -> Outcome {
        self.keep_alive(self.captured_under()).await
    }

    async fn keep_alive(&self, version: VersionId) -> Outcome {
        let extend = self.member.drivers.issuer.extend().ok_or_else(|| unsupported("extend"))?;
        let expires_at = extend.extend(self.issued(version)?).await?;
        Ok(Report::Extended { expires_at }.into())
    }

    /// Everything live under this rotation's labels, and under those of the rotations that it took over.
    async fn sweep(&self) -> Outcome {
        let own = self.member.rotation.id().label_prefix();
        let live = self.member.drivers.issuer.list(&own).await?;
        let ours = live.into_iter().filter(|live| self.is_of_this_journal(live));
        let mut strays: Vec<IssuedId> = ours.map(|live| live.issued).collect();
        strays.extend(self.left_by_taken_over().await?);
        Ok(Report::Swept { strays }.into())
    }

    /// A plan that is made again after its records were lost gives the same labels again, and readers may use what has them already (H18).
    fn is_of_this_journal(&self, live: &Live) -> bool {
        let rotation = &self.member.rotation;
        let mut made = (1..=rotation.mint_attempts()).filter(|it| rotation.may_have_made(*it));
        let label = live.label.as_ref();
        label.is_none_or(|label| made.any(|attempt| rotation.id().label(attempt) == *label))
            || planted!("stray_of_a_lost_rotation_is_ended")
    }

    async fn verify_dead(&self, version: VersionId) -> Outcome<Death> {
        let death = match self.plan.issuer.facts.authority {
            Authority::Issuer => self.issuer_refuses(version).await?,
            Authority::Workload => self.workloads_refuse(version).await?,
            Authority::None => Death::NoOneToAsk,
        };
        match death {
            Death::Refused if !planted!("pooler_not_asked") => self.stores_refuse(version).await,
            death => Ok(death),
        }
    }

    /// Every store at which readers log in refuses the version, and lets the current one in (H72).
    async fn stores_refuse(&self, version: VersionId) -> Outcome<Death> {
        let doors = self.member.drivers.stores.iter().zip(&self.plan.stores);
        let doors = doors.filter(|(_, planned)| planned.facts.answers_logins);
        for (store, _) in doors {
            let (Some(dead), Some(control)) = (self.sealed(version).await?, self.control().await?)
            else {
                return Ok(Death::CannotTell);
            };
            for _ in 0..self.plan.policy.refusals.max(1) {
                match store.lets_in(&dead).await? {
                    Verdict::Refused => {}
                    Verdict::Accepted => return Ok(Death::StillAccepted),
                    Verdict::CannotTell(_) => return Ok(Death::CannotTell),
                }
            }
            if store.lets_in(&control).await? != Verdict::Accepted {
                return Ok(Death::CannotTell);
            }
        }
        Ok(Death::Refused)
    }

    /// The version is refused k times, once where that is definite, while the current one is accepted, and the list no longer
    /// has it (H88).
    async fn issuer_refuses(&self, version: VersionId) -> Outcome<Death> {
        let issuer = &self.member.drivers.issuer;
        if let Some(issued) = self.member.rotation.issued(version)
            && self.plan.issuer.facts.destroy
            && issuer.list("").await?.iter().any(|live| live.issued == *issued)
        {
            return Ok(Death::StillAccepted);
        }
        let (Some(dead), Some(control)) = (self.sealed(version).await?, self.control().await?)
        else {
            let spreads = self.is_spreading(version);
            return Ok(if spreads { Death::CannotTell } else { Death::NoOneToAsk });
        };
        if let Some(at) = issuer.ends_at(&dead).await?
            && at > self.engine.clock.now()
        {
            let is_planted = planted!("end_ahead_is_death");
            return Ok(if is_planted { Death::Refused } else { Death::EndsAt { at } });
        }
        let definite = self.one_refusal_is_definite();
        if definite && issuer.verify(&control).await? != Verdict::Accepted {
            return Ok(Death::CannotTell);
        }
        for _ in 0..if definite { 1 } else { self.plan.policy.refusals.max(1) } {
            match issuer.verify(&dead).await? {
                Verdict::Refused => {}
                Verdict::Accepted => return Ok(Death::StillAccepted),
                Verdict::CannotTell(_) => return Ok(Death::CannotTell),
            }
        }
        match issuer.verify(&control).await? {
            Verdict::Accepted => Ok(Death::Refused),
            Verdict::Refused | Verdict::CannotTell(_) => Ok(Death::CannotTell),
        }
    }

    /// Whether parts of the issuer may not have heard of a revoke yet: where nobody can be asked, that much is waited for (I27).
    fn is_spreading(&self, version: VersionId) -> bool {
        let propagation = self.plan.issuer.facts.propagation;
        let revoked_at = self.member.rotation.ending().revoked_at(version);
        revoked_at.is_some_and(|at| self.engine.clock.now() < at + propagation)
    }

    /// Every replica, at its own address, refuses a token of the version and takes one of the current version.
    async fn workloads_refuse(&self, version: VersionId) -> Outcome<Death> {
        let Some(tokens) = self.member.drivers.issuer.tokens() else {
            return Ok(Death::NoOneToAsk);
        };
        let (Some(dead), Some(control)) = (self.sealed(version).await?, self.control().await?)
        else {
            return Ok(Death::NoOneToAsk);
        };
        let now = self.engine.clock.now();
        let (Some(dead), Some(control)) =
            (tokens.harmless(&dead, now), tokens.harmless(&control, now))
        else {
            return Ok(Death::NoOneToAsk);
        };
        let asked = self.member.drivers.workloads.iter().zip(&self.plan.workloads);
        let mut asked = asked.filter(|(_, planned)| planned.facts.answers_tokens).peekable();
        if asked.peek().is_none() {
            return Ok(Death::NoOneToAsk);
        }
        for (workload, _) in asked {
            let refused = workload.present(&dead).await?;
            let taken = workload.present(&control).await?;
            if refused.iter().any(|answer| answer.accepted == Some(true)) {
                return Ok(Death::StillAccepted);
            }
            let proven = !refused.is_empty()
                && refused.len() == taken.len()
                && refused.iter().all(|answer| answer.accepted == Some(false))
                && taken.iter().all(|answer| answer.accepted == Some(true));
            if !proven {
                return Ok(Death::CannotTell);
            }
        }
        Ok(Death::Refused)
    }

    /// The version that stays: what a proof of death is compared with.
    async fn control(&self) -> Outcome<Option<Credential>> {
        match self.member.rotation.version(self.member.rotation.toward()) {
            Some(version) => self.sealed(version).await,
            None => Ok(None),
        }
    }

    async fn sealed(&self, version: VersionId) -> Outcome<Option<Credential>> {
        self.unseal(&credential_key(self.plan, version)).await
    }

    async fn unseal(&self, key: &ValueKey) -> Outcome<Option<Credential>> {
        let opened = self.engine.journal.unseal(key).await;
        opened.map_err(|error| Refusal::operator(RefusalKind::Local, error.to_string()).into())
    }

    async fn needed(&self, version: VersionId) -> Outcome<Credential> {
        let lost = || {
            Refusal::operator(
                RefusalKind::NotFound,
                format!("{version} is not sealed in the journal"),
            )
        };
        Ok(self.sealed(version).await?.ok_or_else(lost)?)
    }
}

/// Stores and workloads.
impl Work<'_> {
    /// Makes a store hold an arrangement. Each slot may hold what any arrangement of this rotation puts there; anything else
    /// is somebody's change, and is refused (H104, H126).
    async fn write(&self, index: usize, to: Position) -> Outcome {
        self.check_store(index).await?;
        let late = self.capture_late(index).await?;
        let (store, planned) = (&self.member.drivers.stores[index], &self.plan.stores[index]);
        let line = self.member.rotation.line();
        let mut contents = Vec::new();
        for slot in &planned.slots {
            if self.is_suspect(slot, line.at(to)) || self.is_of_another_login(slot, to).await? {
                continue;
            }
            if to == 0 && !planned.facts.is_readable() {
                self.check_way_back(index, slot).await?;
            }
            let captured = match late.iter().find(|late| self.is_of(&late.key, planned, slot)) {
                Some(late) => late.value.value().map(SecretValue::duplicate),
                None => self.captured(index, slot).await?,
            };
            let mut known = Vec::new();
            for position in 0..=line.end(Side::Pending) {
                known.push(self.composed(slot, position, captured.as_ref()).await?);
            }
            contents.push((slot, known));
        }
        let edits: Vec<Edit<'_>> = contents
            .iter()
            .map(|(slot, known)| Edit {
                address: &slot.address,
                accept: if self.plan.is_emergency() || planted!("writes_unconditionally") {
                    Accept::Anything
                } else {
                    Accept::OneOf(known.iter().map(Option::as_ref).collect())
                },
                value: known[usize::from(to)].as_ref(),
            })
            .collect();
        if planned.facts.read_back == ReadBack::Timestamp {
            return self.write_attested(index, &edits).await;
        }
        let written = store.write(&edits).await?;
        if planned.facts.read_back == ReadBack::Value
            && !planted!("refused_read_back_is_a_refused_write")
        {
            // The write was made: whatever becomes of reading it back, it was not refused.
            self.read_back(index, &edits)
                .await
                .map_err(|error| CallError::Unknown(error.to_string()))?;
        } else if planned.facts.read_back == ReadBack::Value {
            self.read_back(index, &edits).await?;
        }
        // On the way back nothing waits for a store that cannot be asked: the way back must stay open.
        if planned.facts.answers_logins && to > 0 && !planted!("pooler_trusted") {
            self.lets_in(index, to).await?;
        }
        let report = Report::Written { changed: written.changed, changed_at: Vec::new() };
        Ok(Performed { report, seal: late })
    }

    /// Claims a store and reads what could not be read in time when an emergency began: bytes of a slot that are not ours have to
    /// stay, and the suspect is needed for the proof that it is dead.
    async fn capture_late(&self, index: usize) -> Outcome<Vec<Sealed>> {
        if !self.plan.is_emergency() {
            return Ok(Vec::new());
        }
        if let Some(claims) = self.member.drivers.stores[index].claims() {
            // Whose it is, the write asks again.
            claims.take().await.unwrap_or_default();
        }
        let planned = &self.plan.stores[index];
        let mut is_captured = true;
        for slot in &planned.slots {
            let key =
                slot_key(self.plan, self.captured_under(), &planned.bound.name, &slot.address);
            is_captured &= self.unseal(&key).await?.is_some();
        }
        if is_captured || planted!("unread_store_is_written_blindly") {
            return Ok(Vec::new());
        }
        let Some(held) = self.read(index).await? else { return Ok(Vec::new()) };
        let mut late: Vec<Sealed> = self.slots_to_seal(planned, &held).collect();
        late.extend(self.suspect_in(planned, &held).await?);
        Ok(late)
    }

    /// The version in use, where it is certainly what a store holds and was found nowhere yet.
    async fn suspect_in(&self, planned: &StorePlan, held: &Held) -> Outcome<Option<Sealed>> {
        let Some(previous) = &self.plan.previous else { return Ok(None) };
        let Some(known) = previous.fingerprint else { return Ok(None) };
        if self.sealed(previous.version).await?.is_some() {
            return Ok(None);
        }
        let held = credential_of(&planned.slots, held).ok().flatten();
        let is_it = |held: &Credential| known.compare(&self.fingerprint(held)) == Compared::Same;
        let key = credential_key(self.plan, previous.version);
        Ok(held.filter(is_it).map(|value| Sealed { key, value }))
    }

    fn is_of(&self, key: &ValueKey, planned: &StorePlan, slot: &Slot) -> bool {
        *key == slot_key(self.plan, self.captured_under(), &planned.bound.name, &slot.address)
    }

    /// Writes to a store that tells nothing but when it was changed. Where that time is not the one of our last write, somebody else
    /// wrote; where it does not move with this write, nothing shows that the write was made.
    async fn write_attested(&self, index: usize, edits: &[Edit<'_>]) -> Outcome {
        let (store, planned) = (&self.member.drivers.stores[index], &self.plan.stores[index]);
        let name = &planned.bound.name;
        let every = addresses(&planned.slots);
        let before = store.changed_at(&every).await?;
        let left = self.member.rotation.walk().changed_at(index);
        let is_as_left = left.is_none_or(|left| before == left);
        if !is_as_left && !self.plan.is_emergency() && !planted!("attested_change_overwritten") {
            let message = format!(
                "store `{name}` was changed by somebody else, and what it holds cannot be read"
            );
            return Err(Refusal::operator(RefusalKind::Conflict, message).into());
        }
        store.write(edits).await?;
        // The write was made: whatever becomes of looking at it, it was not refused.
        let after = store.changed_at(&every).await;
        let after = after.map_err(|error| CallError::Unknown(error.to_string()))?;
        // A slot that was not written has the time that it had: where it has another one, that is somebody else's change.
        let mut changed_at = before.clone();
        for (index, slot) in planned.slots.iter().enumerate() {
            let Some(edit) = edits.iter().find(|edit| edit.address == slot.address) else {
                continue;
            };
            let (before, after) = (before[index], after[index]);
            let moved = if edit.value.is_some() { after > before } else { after.is_none() };
            if !moved && !planted!("time_of_change_not_compared") {
                let message = format!("store `{name}` does not show that it was changed");
                return Err(CallError::Unknown(message));
            }
            changed_at[index] = after;
        }
        Ok(Report::Written { changed: true, changed_at }.into())
    }

    /// Refuses to lead a slot back that cannot be read, and of which nothing else says what it held: a removal, or a guess, would
    /// take from its readers what they use.
    async fn check_way_back(&self, index: usize, slot: &Slot) -> Outcome<()> {
        let store = &self.plan.stores[index].bound.name;
        let key = slot_key(self.plan, self.captured_under(), store, &slot.address);
        if self.unseal(&key).await?.is_some() || planted!("unknown_content_is_removed") {
            return Ok(());
        }
        let message = format!(
            "store `{store}` has no way back: what `{}` held before is not known to keywheel",
            slot.address
        );
        Err(Refusal::operator(RefusalKind::Unsupported, message).into())
    }

    /// Asks a store at which readers log in whether it lets the version in, several times in a row (H72, H73). What was written
    /// stays written, so that a no is an outcome which is not known yet: the write is tried again.
    async fn lets_in(&self, index: usize, to: Position) -> Outcome<()> {
        let side = self.member.rotation.line().at(to).current;
        let version = self.member.rotation.version(side).expect("a side on the line has a version");
        let credential = self.needed(version).await?;
        let told = |what: &str| {
            CallError::Unknown(format!("store `{}` {what}", self.plan.stores[index].bound.name))
        };
        for _ in 0..self.plan.policy.refusals.max(1) {
            match self.member.drivers.stores[index].lets_in(&credential).await {
                Ok(Verdict::Accepted) => {}
                Ok(Verdict::Refused) => return Err(told(&format!("does not let {version} in"))),
                Ok(Verdict::CannotTell(reason)) => {
                    return Err(told(&format!(
                        "does not tell whether it lets {version} in: {reason}"
                    )));
                }
                Err(error) => return Err(told(&error.to_string())),
            }
        }
        Ok(())
    }

    /// Takes the password of a revoked version's login out of the stores that list logins, and returns those that keep it. A slot
    /// that holds another password is somebody else's, and stays.
    async fn forget_login(&self, version: VersionId) -> Outcome<Vec<(u8, CallError)>> {
        let mut kept = Vec::new();
        let Some(credential) = self.sealed(version).await? else { return Ok(kept) };
        let password = credential.field(&Field::new("password"));
        for (index, planned) in self.plan.stores.iter().enumerate() {
            let is_its = |slot: &&Slot| match &slot.part {
                Part::PasswordOf(login) => slot::is_login(&credential, login),
                _ => false,
            };
            for slot in planned.slots.iter().filter(is_its) {
                let accept = Accept::OneOf(vec![password, None]);
                let edit = Edit { address: &slot.address, accept, value: None };
                match self.write_where_it_is(index, &[edit]).await {
                    Ok(_) => {}
                    Err(CallError::Refused(no)) if no.kind == RefusalKind::Conflict => {}
                    Err(error) => kept.push((index as u8, error)),
                }
            }
        }
        Ok(kept)
    }

    async fn write_where_it_is(&self, index: usize, edits: &[Edit<'_>]) -> Outcome<Written> {
        self.check_store(index).await?;
        self.member.drivers.stores[index].write(edits).await
    }

    /// Has a store remove what it kept for the way back.
    async fn clean_up(&self, index: usize) -> Outcome {
        if !planted!("cleaned_wherever_it_is") {
            self.check_store(index).await?;
        }
        Ok(noted(self.member.drivers.stores[index].clean_up().await?).into())
    }

    /// Makes a store hold an arrangement, whatever it holds now, and says whether it had to be written.
    async fn put_right(&self, index: usize, at: Position) -> Outcome<bool> {
        if !self.plan.stores[index].facts.is_readable() || self.store_holds(index, at).await? {
            return Ok(false);
        }
        let (store, planned) = (&self.member.drivers.stores[index], &self.plan.stores[index]);
        let present = store.read(&addresses(&planned.slots)).await?;
        let line = self.member.rotation.line();
        let mut wanted = Vec::new();
        for (slot, present) in planned.slots.iter().zip(&present) {
            if !self.is_suspect(slot, line.at(at)) && !self.is_of_another_login(slot, at).await? {
                let content = self.content(index, slot, at).await?;
                if content.is_none() && self.has_content(slot, line.at(at)) {
                    return Err(unsupported("a value that is no longer sealed"));
                }
                wanted.push((slot, present, content));
            }
        }
        let edits: Vec<Edit<'_>> = wanted
            .iter()
            .map(|(slot, present, content)| Edit {
                address: &slot.address,
                accept: Accept::OneOf(vec![present.as_ref()]),
                value: content.as_ref(),
            })
            .collect();
        store.write(&edits).await?;
        Ok(true)
    }

    /// Whether an arrangement puts a version into a slot.
    fn has_content(&self, slot: &Slot, arrangement: Arrangement) -> bool {
        let side = in_role(slot.role, arrangement);
        side.is_some_and(|side| self.member.rotation.version(side).is_some())
    }

    /// A slot that would be given a suspect version is left as it is: a suspect is never written again.
    fn is_suspect(&self, slot: &Slot, arrangement: Arrangement) -> bool {
        let side = in_role(slot.role, arrangement);
        self.plan.is_emergency()
            && side == Some(Side::Previous)
            && !planted!("suspect_written_again")
    }

    /// In a list of logins the password of another login than that of the version in use is left as it is, also on the way back:
    /// replicas may log in with it until its version is revoked.
    async fn is_of_another_login(&self, slot: &Slot, position: Position) -> Outcome<bool> {
        let Part::PasswordOf(login) = &slot.part else { return Ok(false) };
        if planted!("login_taken_early") {
            return Ok(false);
        }
        let side = self.member.rotation.line().at(position).current;
        let in_use = match self.member.rotation.version(side) {
            Some(version) => self.sealed(version).await?,
            None => None,
        };
        Ok(match (in_use, self.sealed(self.plan.pending).await?) {
            (Some(in_use), _) => !slot::is_login(&in_use, login),
            (None, pending) => pending.is_some_and(|pending| slot::is_login(&pending, login)),
        })
    }

    async fn read_back(&self, index: usize, edits: &[Edit<'_>]) -> Outcome<()> {
        let addresses: Vec<String> = edits.iter().map(|edit| edit.address.to_owned()).collect();
        let held = self.member.drivers.stores[index].read(&addresses).await?;
        let name = &self.plan.stores[index].bound.name;
        if edits.iter().zip(&held).all(|(edit, held)| !edit.changes(held.as_ref())) {
            Ok(())
        } else {
            Err(CallError::Unknown(format!("store `{name}` reads back something else")))
        }
    }

    /// The bytes of a slot under an arrangement.
    async fn content(
        &self,
        index: usize,
        slot: &Slot,
        position: Position,
    ) -> Outcome<Option<SecretValue>> {
        let captured = self.captured(index, slot).await?;
        self.composed(slot, position, captured.as_ref()).await
    }

    /// What was captured, at the beginning of the line; composed, elsewhere.
    async fn composed(
        &self,
        slot: &Slot,
        position: Position,
        captured: Option<&SecretValue>,
    ) -> Outcome<Option<SecretValue>> {
        if position == 0 || self.is_suspect(slot, self.member.rotation.line().at(position)) {
            return Ok(captured.map(SecretValue::duplicate));
        }
        match in_role(slot.role, self.member.rotation.line().at(position)) {
            None => Ok(Some(SecretValue::new(Vec::new()))),
            Some(side) => {
                let version =
                    self.member.rotation.version(side).expect("a side on the line has a version");
                let Some(credential) = self.sealed(version).await? else { return Ok(None) };
                Ok(slot::compose(&slot.part, &credential, captured)?)
            }
        }
    }

    async fn captured(&self, index: usize, slot: &Slot) -> Outcome<Option<SecretValue>> {
        let key = slot_key(
            self.plan,
            self.captured_under(),
            &self.plan.stores[index].bound.name,
            &slot.address,
        );
        Ok(self
            .unseal(&key)
            .await?
            .and_then(|credential| credential.value().map(SecretValue::duplicate)))
    }

    /// What a workload should hold under an arrangement: every slot of every store that it reads, but for those that are left
    /// as they are, whatever they hold.
    async fn expected(
        &self,
        workload: usize,
        to: Position,
    ) -> Outcome<Vec<(String, Option<Fingerprint>)>> {
        let fingerprinter = &self.engine.journal.installation().fingerprinter;
        let arrangement = self.member.rotation.line().at(to);
        let mut slots = Vec::new();
        for store in &self.plan.workloads[workload].reads {
            let container = self.member.drivers.stores[usize::from(*store)].container();
            for slot in &self.plan.stores[usize::from(*store)].slots {
                if self.is_suspect(slot, arrangement) || self.is_of_another_login(slot, to).await? {
                    continue;
                }
                let content = self.content(usize::from(*store), slot, to).await?;
                slots.push((
                    slot::name(&container, &slot.address),
                    content.map(|bytes| fingerprinter.of(bytes.expose())),
                ));
            }
        }
        Ok(slots)
    }

    async fn evidence(&self, workload: usize, to: Position) -> Outcome<Count> {
        let proofs = self.proofs(workload, to).await?;
        Ok(evidence::tally(proofs.into_iter().map(|(_, proof)| proof)))
    }

    /// The replicas of a workload that do not prove an arrangement, by name.
    async fn unproven(&self, workload: usize, to: Position) -> Outcome<Vec<String>> {
        let mut proofs = self.proofs(workload, to).await?;
        proofs.retain(|(_, proof)| *proof != Proof::Holds);
        Ok(proofs.into_iter().map(|(replica, _)| replica).collect())
    }

    /// Before which start a replica has certainly read nothing of the rotation, also where the first write has no record any more.
    fn untouched_before(&self, to: Position) -> Option<Timestamp> {
        let before = self.member.rotation.walk().untouched_before(self.plan, to)?;
        let known_until = self.member.known_until.filter(|_| !planted!("lost_writes_were_none"));
        Some(known_until.map_or(before, |until| before.min(until)))
    }

    /// What each replica of a workload proves.
    async fn proofs(&self, workload: usize, to: Position) -> Outcome<Vec<(String, Proof)>> {
        let slots = self.expected(workload, to).await?;
        let names: Vec<String> = slots.iter().map(|(name, _)| name.clone()).collect();
        let fingerprinter = &self.engine.journal.installation().fingerprinter;
        let replicas =
            self.member.drivers.workloads[workload].observe(&names, fingerprinter).await?;
        let planned = &self.plan.workloads[workload];
        let walk = self.member.rotation.walk();
        let expected = Expected {
            slots: &slots,
            held_since: walk.held_since(planned, to),
            untouched_before: self.untouched_before(to),
            granularity: planned.facts.start_granularity,
        };
        let proof = |replica: Replica| {
            let proof = evidence::judge(&replica, &expected);
            (replica.id, proof)
        };
        Ok(replicas.into_iter().map(proof).collect())
    }

    fn asked(&self) -> Asked {
        Asked { began_at: self.member.rotation.began_at(), now: self.engine.clock.now() }
    }

    async fn probe(&self) -> Outcome {
        for (probe, planned) in self.member.drivers.probes.iter().zip(&self.plan.probes) {
            if let Health::Red(reason) = probe.ask(&self.asked()).await? {
                let message = format!("probe `{}` is red: {reason}", planned.bound.name);
                return Err(Refusal::retry(RefusalKind::WorkloadFailed, None, message).into());
            }
        }
        Ok(Report::Plain.into())
    }
}

/// Visits.
impl Work<'_> {
    /// Looks at every gate. What does not answer is reported as not known; a visit itself never fails.
    async fn visit(&self) -> Outcome {
        let mut notes = Vec::new();
        let at = self.member.rotation.walk().should_hold();
        let stores = self.stores_hold(at, &mut notes).await;
        let mut counts = Vec::new();
        for workload in 0..self.plan.workloads.len() {
            let seen = self.evidence(workload, at).await;
            counts.push(seen.unwrap_or_else(|error| {
                notes.push(format!(
                    "workload `{}`: {error}",
                    self.plan.workloads[workload].bound.name
                ));
                Count { unknown: 1, ..Count::default() }
            }));
            notes.extend(self.disturbed(workload, at).await);
        }
        let visit = Visit {
            clocks: self.engine.clock.clocks(),
            probes: self.probes_are_green(&mut notes).await,
            stores,
            evidence: counts,
            usage: self.usage(&mut notes).await,
            notes,
        };
        Ok(Report::Visited(Box::new(visit)).into())
    }

    async fn stores_hold(&self, at: Position, notes: &mut Vec<String>) -> Option<bool> {
        let mut all = Some(true);
        for (index, planned) in self.plan.stores.iter().enumerate() {
            let holds = match planned.facts.read_back {
                ReadBack::Value => self.store_holds(index, at).await,
                ReadBack::Timestamp => self.is_as_left(index).await,
                ReadBack::Digest | ReadBack::None => continue,
            };
            match holds {
                Ok(true) => {}
                Ok(false) => {
                    notes.push(self.changed_by_others(index).await);
                    all = Some(false);
                }
                Err(error) => {
                    notes.push(format!("store `{}`: {error}", planned.bound.name));
                    all = all.filter(|holds| !holds);
                }
            }
        }
        all
    }

    /// Says that a store was changed, and by whom where it tells that.
    async fn changed_by_others(&self, index: usize) -> String {
        let planned = &self.plan.stores[index];
        let store = &self.member.drivers.stores[index];
        let others = store.others(&addresses(&planned.slots)).await.unwrap_or_default();
        format!("store `{}` was changed by {}", planned.bound.name, writer::in_words(&others))
    }

    /// Says who took away what the last roll left on a workload. Nothing is put back: whoever did it would do so again.
    async fn disturbed(&self, workload: usize, at: Position) -> Option<String> {
        let planned = &self.plan.workloads[workload];
        let since = self.member.rotation.walk().held_since(planned, at)?;
        let slots = self.expected(workload, at).await.ok()?;
        let fingerprinter = &self.engine.journal.installation().fingerprinter;
        let stamp = Stamp::new(&self.plan.secret, &slots, fingerprinter);
        let names: Vec<String> = slots.into_iter().map(|(name, _)| name).collect();
        let asked = self.member.drivers.workloads[workload].as_ref();
        let others = asked.others(&names, &[stamp], since).await.unwrap_or_default();
        (!others.is_empty()).then(|| {
            let by = writer::in_words(&others);
            format!("workload `{}` lost what its roll left on it, to {by}", planned.bound.name)
        })
    }

    /// Whether a store that tells nothing but when it was changed was changed last by us.
    async fn is_as_left(&self, index: usize) -> Outcome<bool> {
        let Some(left) = self.member.rotation.walk().changed_at(index) else { return Ok(true) };
        self.check_store(index).await?;
        let slots = &self.plan.stores[index].slots;
        let now = self.member.drivers.stores[index].changed_at(&addresses(slots)).await?;
        Ok(now == left || planted!("attested_drift_unseen"))
    }

    async fn store_holds(&self, index: usize, at: Position) -> Outcome<bool> {
        self.check_store(index).await?;
        let slots = &self.plan.stores[index].slots;
        let held = self.member.drivers.stores[index].read(&addresses(slots)).await?;
        for (slot, held) in slots.iter().zip(&held) {
            if self.is_of_another_login(slot, at).await? {
                continue;
            }
            let wanted = self.content(index, slot, at).await?;
            if !SecretValue::same(wanted.as_ref(), held.as_ref()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn probes_are_green(&self, notes: &mut Vec<String>) -> Option<bool> {
        let mut all = (!self.plan.probes.is_empty()).then_some(true);
        for (probe, planned) in self.member.drivers.probes.iter().zip(&self.plan.probes) {
            match probe.ask(&self.asked()).await {
                Ok(Health::Green) => {}
                Ok(Health::Red(reason)) => {
                    notes.push(format!("probe `{}` is red: {reason}", planned.bound.name));
                    all = Some(false);
                }
                Err(error) => {
                    notes.push(format!("probe `{}`: {error}", planned.bound.name));
                    all = all.filter(|green| !green);
                }
            }
        }
        all
    }

    async fn usage(&self, notes: &mut Vec<String>) -> Option<UsageSample> {
        let usage = self.member.drivers.issuer.usage()?;
        let version = self.member.rotation.retiring().first().copied()?;
        let asked_at = self.engine.clock.now();
        match usage.last_used(self.member.rotation.issued(version)?).await {
            Ok(used) => {
                notes.extend(used.detail);
                Some(UsageSample { asked_at, last_used_at: used.at })
            }
            Err(error) => {
                notes.push(format!("last use of {version}: {error}"));
                None
            }
        }
    }
}

fn addresses(slots: &[Slot]) -> Vec<String> {
    slots.iter().map(|slot| slot.address.clone()).collect()
}

/// Returns the slots that readers use now: what is also accepted may well be absent.
fn in_use(slots: &[Slot]) -> Vec<String> {
    let used = slots.iter().filter(|slot| slot.role == Role::Current);
    used.map(|slot| slot.address.clone()).collect()
}

fn in_role(role: Role, arrangement: Arrangement) -> Option<Side> {
    match role {
        Role::Current => Some(arrangement.current),
        Role::AlsoAccepted => arrangement.also,
    }
}

/// The exact bytes of a slot as a sealed value; a slot that is absent is sealed as no field at all.
fn as_credential(bytes: &Option<SecretValue>) -> Credential {
    match bytes {
        Some(bytes) => Credential::of_value(bytes.duplicate()),
        None => Credential::default(),
    }
}

/// Puts the credential together that the current slots of one store hold; none where all of them are absent.
///
/// # Errors
/// A refusal where two slots hold different values of one field, or a URL slot holds no URL.
pub(crate) fn credential_of(
    slots: &[Slot],
    held: &[Option<SecretValue>],
) -> Result<Option<Credential>, Refusal> {
    let mut whole: Option<Credential> = None;
    let is_login = |slot: &Slot| matches!(slot.part, Part::PasswordOf(_));
    let logins = slots.iter().zip(held).filter(|(slot, held)| is_login(slot) && held.is_some());
    // Of several logins in a list nothing says which one is in use: that is for the other stores to say.
    let one_login = logins.count() == 1;
    let current = slots
        .iter()
        .zip(held)
        .filter(|(slot, _)| slot.role == Role::Current && (one_login || !is_login(slot)));
    for (slot, bytes) in current.filter_map(|(slot, bytes)| Some((slot, bytes.as_ref()?))) {
        let part = slot::extract(&slot.part, bytes)?;
        let mut sum = whole.unwrap_or_default();
        for (field, value) in part.fields() {
            if sum.field(field).is_some_and(|known| !known.same_as(value)) {
                let message = format!(
                    "slot `{}` holds another `{}` than its neighbours",
                    slot.address,
                    field.as_str()
                );
                return Err(Refusal::operator(RefusalKind::Disagree, message));
            }
            sum = sum.with(field.clone(), value.duplicate());
        }
        whole = Some(sum);
    }
    Ok(whole)
}

fn absent() -> Report {
    Report::Found { issued: None, held: false, fingerprint: None }
}

fn cannot_tell(reason: String) -> CallError {
    Refusal::retry(RefusalKind::Unavailable, None, reason).into()
}

fn unsupported(what: &str) -> CallError {
    Refusal::operator(RefusalKind::Unsupported, format!("the issuer cannot {what}")).into()
}
