//! What may never be true, numbered as in `hazards.md` B2.
//!
//! Each check looks at the truth of the world or at the simulator's own book of what is durable, never at what the engine
//! says of itself alone. They run after every record and after every effect; the first violation ends the life.

use keywheel_core::event::{Event, Outcome, Report, Step};
use keywheel_core::facts::Authority;
use keywheel_core::gate::Light;
use keywheel_core::plan::Plan;
use keywheel_core::rotation::Rotation;
use keywheel_core::secret::SecretName;
use keywheel_core::strategy::Strategy;
use keywheel_core::time::Timestamp;
use keywheel_core::version::IssuedId;

use keywheel_journal::Journal;

use crate::drivers::value_of;
use crate::faults::{Fault, StepKind};
use crate::journal::Asks;
use crate::life::ready;
use crate::world::{
    BrownOut, EPOCH, Edit, Held, Kind, Millis, RequestKind, Slot, State, Up, World,
};

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its number.
    pub id: &'static str,
    /// What was seen.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.id, self.what)
    }
}

/// How an invariant is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// By the simulator, in this file or where it says.
    Here(&'static str),
    /// Not by the simulator, for this reason.
    Elsewhere(&'static str),
}

/// Every invariant and property of liveness, and how it is looked at.
pub const ALL: [(&str, Looked); 34] = [
    (
        "I01",
        Looked::Here(
            "every serving replica, and every process that would start now, holds a current version that works",
        ),
    ),
    (
        "I02",
        Looked::Here(
            "a version is ended only after soak, on a fresh green visit, with no store or replica naming it",
        ),
    ),
    ("I03", Looked::Here("a mutating call begins only under its own durable intent")),
    (
        "I04",
        Looked::Here(
            "a value that a store is given, or that alone works, can be unsealed from the journal",
        ),
    ),
    (
        "I05",
        Looked::Here(
            "one holder, one epoch, one sequence, one open rotation, one wave for each resource; no call after its deadline",
        ),
    ),
    (
        "I06",
        Looked::Here(
            "at most two live credentials of a secret; at rest, exactly the ones that the outcome names",
        ),
    ),
    (
        "I07",
        Looked::Here(
            "counted soak is never longer than true time, and nothing is ended before its soak in true time",
        ),
    ),
    (
        "I08",
        Looked::Here("evidence is complete only when every replica truly holds the arrangement"),
    ),
    (
        "I09",
        Looked::Elsewhere(
            "values leave the process only through real drivers, logs and files; the leak scan of the binary looks there",
        ),
    ),
    ("I10", Looked::Here("an undo that is granted reaches `undone` once faults stop")),
    ("I11", Looked::Here("an ended version, and in an emergency a suspect one, is never written")),
    ("I12", Looked::Here("somebody else's edit is never overwritten outside an emergency")),
    ("I13", Looked::Here("audit links are as many as records, at rest")),
    ("I14", Looked::Here("the audit chain verifies, at rest")),
    (
        "I15",
        Looked::Elsewhere(
            "permissions and approvals are given by the command line; the simulator has one actor",
        ),
    ),
    (
        "I16",
        Looked::Here(
            "duplicated and repeated calls end in the same world (duplicate, second task, every crash)",
        ),
    ),
    (
        "I17",
        Looked::Elsewhere("the schedule is a later part; the simulator begins rotations itself"),
    ),
    (
        "I18",
        Looked::Here(
            "after lost commits or a lost write of a store nothing is ended, replaced or written without a new look (I01, I02 and I11 hold for all that follows)",
        ),
    ),
    (
        "I19",
        Looked::Here(
            "every token that any replica may have signed is taken by every replica until it expires",
        ),
    ),
    ("I20", Looked::Elsewhere("breakers over many rotations belong to the schedule, a later part")),
    ("I21", Looked::Here("completed and undone mean that the ended version is refused")),
    (
        "I22",
        Looked::Elsewhere(
            "attributes of credentials live in real issuers; their drivers' suites look",
        ),
    ),
    (
        "I23",
        Looked::Here(
            "an end hits a credential of this secret, and never the one that readers use or somebody else's; no store is cleaned up that was not written",
        ),
    ),
    ("I24", Looked::Elsewhere("the engine's own credentials are not rotated yet")),
    ("I25", Looked::Here("an `append` rotation never takes a version out by itself")),
    (
        "I26",
        Looked::Elsewhere("there is no network in the simulator; drivers and configuration look"),
    ),
    (
        "I27",
        Looked::Here(
            "after an emergency completes, no suspect works anywhere; a store in its way keeps none alive",
        ),
    ),
    (
        "I28",
        Looked::Elsewhere(
            "the journal in memory seals nothing; the suite of the durable journal looks",
        ),
    ),
    ("I29", Looked::Here("at rest, no value of an ended version can be unsealed")),
    (
        "L01",
        Looked::Here(
            "a rotation that is neither ended nor parked always has a time at which it goes on",
        ),
    ),
    (
        "L02",
        Looked::Here(
            "once faults stop, every rotation ends or parks for a listed reason; without faults it completes",
        ),
    ),
    ("L03", Looked::Here("a refusal that only an operator can change is not asked again")),
    ("L04", Looked::Here("at rest, no credential under our labels is live but the one in use")),
    ("L05", Looked::Elsewhere("there are no sinks yet; the watch of the engine is a plain call")),
];

impl World {
    pub(crate) fn violate(&mut self, id: &'static str, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { id, what: what() });
        }
    }

    /// Whether a process began with a journal that lacks what others did: what they owed, nobody knows.
    pub(crate) fn is_behind(&self) -> bool {
        self.fired.contains(&Fault::JournalBehind)
    }

    /// Whether what was counted by records may have been counted by some that are lost.
    fn has_lost_records(&self) -> bool {
        self.fired.contains(&Fault::TailLost) || self.is_behind()
    }

    /// Whether a store may hold again what was replaced there.
    fn may_have_forgotten(&self) -> bool {
        self.fired.contains(&Fault::StoreBehind) || self.is_behind()
    }

    /// Whether a slot holds what somebody else wrote there.
    pub(crate) fn is_somebodys(&self, held: Held) -> bool {
        matches!(held, Held::Value(value) if self.is_foreign(value))
    }

    fn is_foreign(&self, value: u16) -> bool {
        self.values[usize::from(value)].secret.is_none()
    }

    /// I01: whoever serves, and whoever would start now, holds a current version that works.
    pub(crate) fn check_never_zero(&mut self) {
        self.checks += 1;
        let mut dead = None;
        let judged = |world: &Self, slot: usize, held: Held| {
            let secret = world.slots[slot].secret;
            let known = &world.secrets[secret];
            let Held::Value(value) = held else { return false };
            let exempt = known.emergency
                || known.outage_declared
                || known.tampered
                || known.kind == Kind::Reset;
            world.slots[slot].is_current
                && !exempt
                && !world.is_foreign(value)
                && !world.works(secret, value)
        };
        for (slot, known) in self.slots.iter().enumerate() {
            if judged(self, slot, known.held) {
                dead = Some((slot, known.held, "a store"));
            }
        }
        for (workload, replica) in self.serving() {
            let known = &self.workloads[workload];
            for (slot, held) in known.slots.iter().zip(&known.replicas[replica].held) {
                if judged(self, *slot, *held) {
                    dead = Some((*slot, *held, "a serving replica"));
                }
            }
        }
        if let Some((slot, held, who)) = dead {
            let secret = self.slots[slot].secret;
            self.violate("I01", || {
                format!(
                    "{who} holds {held:?} of secret {secret} in slot {slot}, which does not work"
                )
            });
        }
    }

    /// I19: every token that is not yet expired is taken by every replica that serves.
    pub(crate) fn check_tokens(&mut self) {
        for secret in 0..self.secrets.len() {
            let known = &self.secrets[secret];
            if known.token_life == 0
                || known.emergency
                || known.tampered
                || self.may_have_forgotten()
            {
                continue;
            }
            self.checks += 1;
            let mut signing: smallvec::SmallVec<[u16; 4]> = smallvec::SmallVec::new();
            signing.extend(
                known
                    .signed
                    .iter()
                    .filter(|(_, at)| self.now < at + known.token_life)
                    .map(|(value, _)| *value),
            );
            for (slot, held) in self.serving_slots(secret) {
                if let Held::Value(value) = held
                    && self.slots[slot].is_current
                {
                    signing.push(value);
                }
            }
            signing.retain(|value| self.values[usize::from(*value)].secret.is_some());
            let refused = self.serving().find_map(|(workload, replica)| {
                let (slots, held) = (
                    &self.workloads[workload].slots,
                    &self.workloads[workload].replicas[replica].held,
                );
                let mut reads = slots
                    .iter()
                    .zip(held)
                    .filter(|(slot, _)| self.slots[**slot].secret == secret)
                    .peekable();
                reads.peek()?;
                let accepted: smallvec::SmallVec<[Held; 4]> =
                    reads.map(|(_, held)| *held).collect();
                signing
                    .iter()
                    .find(|value| !accepted.contains(&Held::Value(**value)))
                    .map(|value| (workload, replica, *value))
            });
            if let Some((workload, replica, value)) = refused {
                self.violate("I19", || {
                    format!("replica {replica} of workload {workload} refuses a live token of secret {secret} signed with value {value}")
                });
            }
        }
    }

    fn serving_slots(&self, secret: usize) -> impl Iterator<Item = (usize, Held)> + '_ {
        self.serving().flat_map(move |(workload, replica)| {
            let (slots, held) =
                (&self.workloads[workload].slots, &self.workloads[workload].replicas[replica].held);
            slots
                .iter()
                .zip(held)
                .filter(move |(slot, _)| self.slots[**slot].secret == secret)
                .map(|(slot, held)| (*slot, *held))
        })
    }

    /// I03, I05: a call begins under a durable intent of its own process, before its deadline; a mutating one under its step.
    pub(crate) fn check_call(&mut self, process: usize, secret: usize, kind: RequestKind) {
        self.checks += 1;
        let wall = self.wall().millis() - EPOCH;
        let meant = |intent: &crate::world::Intent| match kind {
            RequestKind::Mint => intent.step == StepKind::Mint,
            RequestKind::Write => intent.step == StepKind::Write,
            RequestKind::Roll => intent.step == StepKind::Roll,
            RequestKind::OtherWrite => intent.step.mutates(),
            _ => true,
        };
        let running = &self.book[secret].running;
        let own =
            running.iter().rev().find(|intent| intent.process == process && meant(intent)).copied();
        match own {
            None => self.violate("I03", || {
                format!("a call ({kind:?}) for secret {secret} begins without a durable intent")
            }),
            Some(intent) if wall >= intent.until => {
                let late = wall - intent.until;
                self.violate("I05", || {
                    format!(
                        "a call ({kind:?}) for secret {secret} begins {late} ms after its deadline"
                    )
                });
            }
            Some(_) => {}
        }
    }

    /// I06: a mint leaves at most two live credentials, and those of an emergency's suspects.
    pub(crate) fn check_minted(&mut self, secret: usize) {
        self.checks += 1;
        let known = &self.secrets[secret];
        let live = known
            .credentials
            .iter()
            .filter(|known| known.state != State::Revoked && !known.bystander)
            .count();
        // Where the issuer keeps no labels, or an operator says so, a mint whose records are lost is made again.
        let times_behind =
            self.fired.iter().filter(|fault| **fault == Fault::JournalBehind).count();
        let is_unseen = !known.facts.label || self.healed;
        let most = 2
            + 2 * usize::from(known.emergency)
            + usize::from(known.duplicated)
            + times_behind * usize::from(is_unseen);
        if live > most {
            self.violate("I06", || format!("{live} live credentials of secret {secret}"));
        }
    }

    /// I18: after records were lost, a mint that takes the place of another version takes none that a store holds and no record names.
    pub(crate) fn check_replaced(&mut self, secret: usize, index: usize, previous: Option<&str>) {
        self.checks += 1;
        let known = &self.secrets[secret];
        let replaced = &known.credentials[index];
        let is_named = previous == Some(replaced.name.as_str());
        if !self.is_behind() || known.emergency || is_named || replaced.state != State::Live {
            return;
        }
        let held = Held::Value(replaced.value);
        if self.slots.iter().any(|slot| slot.is_current && slot.held == held) {
            let name = replaced.name.clone();
            self.violate("I18", || {
                format!("a mint for secret {secret} ends `{name}`, which a store holds and no record names")
            });
        }
    }

    /// I02, I23: an end hits a credential of ours that no store names and no replica uses.
    pub(crate) fn check_end(&mut self, secret: usize, index: usize, to: State) {
        self.checks += 1;
        let known = &self.secrets[secret];
        let credential = &known.credentials[index];
        let name = credential.name.clone();
        if credential.bystander {
            return self.violate("I23", || {
                format!("`{name}` of secret {secret} is somebody else's, and is ended")
            });
        }
        if to == State::Live || known.emergency || known.tampered {
            return;
        }
        let value = Held::Value(credential.value);
        // What was written without a record of it to a store that tells nothing, nobody can know.
        let is_told = |slot: &Slot| slot.is_readable || slot.tells_time_only;
        if self.is_behind() && !known.slots.iter().all(|slot| is_told(&self.slots[*slot])) {
            return;
        }
        let named = self.slots.iter().any(|slot| slot.is_current && slot.held == value);
        let used = self
            .serving_slots(secret)
            .any(|(slot, held)| self.slots[slot].is_current && held == value);
        if named || used {
            self.violate("I02", || format!("`{name}` of secret {secret} is ended while a store names it or a replica uses it"));
        }
    }

    /// I11, I12: nothing ended or suspect is written, and nothing of somebody else's is overwritten.
    pub(crate) fn check_write(&mut self, secret: usize, edit: &Edit) {
        self.checks += 1;
        let held = self.slots[edit.slot].held;
        let emergency = self.secrets[secret].emergency;
        if let Held::Value(value) = edit.value
            && held != edit.value
        {
            let written = &self.values[usize::from(value)];
            let (ended, suspect) = (written.ended, written.suspect);
            // A write that was sent before the emergency lands where a rival, or the rotation that turned round, puts back what
            // it was to replace, or where a suspect was ended before any store was written.
            let late = [Fault::LateLanding, Fault::CrashLate, Fault::JournalBehind];
            let was_sent_before = late.iter().any(|fault| self.fired.contains(fault));
            let of_emergency = emergency && suspect;
            if (ended || of_emergency) && !(of_emergency && was_sent_before) {
                let which = if ended { "ended" } else { "suspect" };
                self.violate("I11", || {
                    format!("value {value} of secret {secret} is {which}, and is written again")
                });
            }
        }
        if let Held::Value(value) = edit.value
            && held != edit.value
            && self.values[usize::from(value)].secret == Some(secret)
        {
            self.check_recoverable(secret, value);
        }
        if let Held::Value(value) = held
            && self.is_foreign(value)
            && !emergency
            && held != edit.value
            && self.could_be_seen(edit.slot)
        {
            self.violate("I12", || format!("somebody's edit of slot {} is overwritten", edit.slot));
        }
    }

    /// Whether an edit could be seen before a write. Where nothing but a time is told, that is so if the time was asked for before the
    /// edit and after it, and no write of ours is without an answer: one such may have moved it.
    fn could_be_seen(&self, slot: usize) -> bool {
        let slot = &self.slots[slot];
        !slot.tells_time_only || slot.edit_was_told && self.fired.as_slice() == [Fault::RivalEdit]
    }

    /// I27: an emergency that waits for the store in its way, and for nothing else, has ended its suspects.
    pub(crate) fn check_suspects_ended(&mut self, secret: usize, plan: &Plan) {
        self.checks += 1;
        let suspects = plan.previous.iter().chain(&plan.suspects);
        let named = suspects.filter_map(|suspect| suspect.issued.as_ref());
        let lives = |issued: &&IssuedId| {
            let found = self.find(secret, &issued.id, issued.generation);
            found.is_some_and(|found| {
                self.secrets[secret].credentials[found].state != State::Revoked
            })
        };
        let left = named.filter(|_| plan.issuer.facts.destroy).find(lives).cloned();
        if let Some(issued) = left {
            self.violate("I27", || {
                format!(
                    "{issued} of secret {secret} is suspect and lives on, for a store in the way"
                )
            });
        }
    }

    /// I23: a store is cleaned up after this rotation if it was written by it.
    fn check_cleaned(&mut self, secret: usize, rotation: &Rotation, event: &Event) {
        let touched = &mut self.book[secret].touched;
        let of = |store: u8| (rotation.id().clone(), store);
        match event {
            Event::Intended { step: Step::Write { store, .. }, .. } => touched.push(of(*store)),
            Event::Intended { step: Step::CleanUp { store }, .. }
                if !touched.contains(&of(*store)) =>
            {
                self.violate("I23", || {
                    format!("store {store} of secret {secret} is cleaned up, and was never written")
                });
            }
            _ => {}
        }
    }

    /// I04: a value that is about to be used can be unsealed by a fresh process.
    pub(crate) fn check_recoverable(&mut self, secret: usize, value: u16) {
        self.checks += 1;
        // What a process sealed before its records were lost may be put to use by a call that it left under way.
        let Some(journal) = self.journal.clone().filter(|_| !self.is_behind()) else { return };
        let Ok(name) = SecretName::new(&format!("secret{secret}"), "sim") else { return };
        let keys = ready(journal.sealed(&name)).unwrap_or_default();
        let held = keys.iter().any(|key| {
            let opened = ready(journal.unseal(key)).ok().flatten();
            opened.and_then(|credential| value_of(&credential)) == Some(value)
        });
        if !held {
            self.violate("I04", || {
                format!("value {value} of secret {secret} is put to use and cannot be unsealed")
            });
        }
    }

    /// L03: what only an operator can change is not asked for again before one was told. A refusal counts once it is durable: one
    /// that a process took along was told to nobody, and whoever goes on asks again.
    pub(crate) fn check_refused(&mut self, secret: usize, asks: &Asks) {
        let refused = &mut self.book[secret].refused;
        match asks {
            Asks::For(step) if *refused == Some(*step) => self.violate("L03", || {
                format!("{step} of secret {secret} was refused for good, and is tried again")
            }),
            Asks::InVain(step) => *refused = Some(*step),
            Asks::Anew => *refused = None,
            Asks::For(_) | Asks::Nothing => {}
        }
    }

    /// What the engine believes after a record, compared with the truth.
    pub(crate) fn check_recorded(
        &mut self,
        process: usize,
        secret: usize,
        rotation: &Rotation,
        event: &Event,
        _at: Timestamp,
    ) {
        if self.book[secret].holder != Some(process) {
            return;
        }
        self.checks += 1;
        self.check_cleaned(secret, rotation, event);
        self.check_brown_out(process, secret, rotation, event);
        match event {
            Event::Intended { step: step @ (Step::Suspend(_) | Step::Revoke(_)), .. } => {
                self.check_harm(secret, rotation, *step)
            }
            Event::Intended { step: Step::Mint { attempt }, .. } => {
                self.check_attempt(secret, rotation, *attempt)
            }
            Event::Done { step: Step::Visit, report } => {
                if let keywheel_core::event::Report::Visited(visit) = report {
                    self.book[secret].sampled_at = visit.usage.map(|sample| sample.asked_at);
                }
                self.check_soak(secret, rotation);
            }
            Event::Arrived { at } => self.check_arrived(secret, rotation, *at),
            Event::Ended { outcome } => self.check_ended(secret, rotation, *outcome),
            _ => {}
        }
    }

    /// I07: a brown-out is part of soak where policy asks for it. It ends at once where somebody misses the version, and nothing
    /// is ended before one in which nobody did.
    fn check_brown_out(
        &mut self,
        process: usize,
        secret: usize,
        rotation: &Rotation,
        event: &Event,
    ) {
        let now = self.now;
        let brown_out = &mut self.book[secret].brown_out;
        if matches!(event, Event::Promoted { .. } | Event::TurnedBack { .. } | Event::Planned(_)) {
            *brown_out = BrownOut::default();
        }
        let Some(whole) = rotation.brown_out_for() else { return };
        let before = *brown_out;
        match event {
            Event::Done { step: Step::Suspend(_), .. } if rotation.is_browned_out() => {
                *brown_out = BrownOut { since: Some(now), by: process, ..BrownOut::default() };
            }
            Event::Done { step: Step::Visit, report } => {
                let Report::Visited(visit) = report else { return };
                brown_out.missed |= before.since.is_some() && visit.probes == Some(false);
            }
            // What was seen was never durable.
            Event::Unknown { step: Step::Visit } => brown_out.missed = false,
            Event::Done { step: Step::Resume(_), .. } => {
                let Some(since) = before.since else { return };
                let lasted = now - since;
                let passed = !before.missed && lasted >= whole.as_millis() as Millis;
                *brown_out = BrownOut { passed, ..BrownOut::default() };
            }
            _ => {}
        }
        // Where the process runs on, the version is not left suspended: a resume that is refused is tried for as long as
        // policy has patience.
        let policy = &rotation.plan().policy;
        let most = whole + whole + policy.call + policy.call + policy.patience;
        let lasts = before.since.map_or(0, |since| now - since);
        let slept = [Fault::Pause, Fault::PauseTakenOver, Fault::Suspended];
        let slept = slept.iter().any(|fault| self.fired.contains(fault));
        if lasts > most.as_millis() as Millis
            && before.by == process
            && !slept
            && !matches!(event, Event::Parked { .. } | Event::Resumed)
        {
            self.violate("I07", || {
                format!("secret {secret} is suspended for a brown-out of {whole} since {lasts} ms")
            });
        }
        let Event::Intended { step, .. } = event else { return };
        let leapt = self.has_lost_records();
        let ends = match step {
            Step::Suspend(_) => rotation.ending().soaked_at().is_some(),
            _ => matches!(step, Step::Revoke(_)),
        };
        let is_suspended = before.since.is_some();
        if leapt || rotation.ending().is_overridden() {
            return;
        }
        if before.missed && !matches!(step, Step::Resume(_)) {
            self.violate("I07", || {
                format!(
                    "{step:?} of secret {secret} while somebody misses a version in its brown-out"
                )
            });
        }
        if ends && (is_suspended || !before.passed) {
            self.violate("I07", || {
                format!("{step:?} of secret {secret} without a brown-out that nobody minded")
            });
        }
    }

    /// I02, I07: the soak is over in true time, and a fresh green visit stands behind the end.
    fn check_harm(&mut self, secret: usize, rotation: &Rotation, step: Step) {
        if !rotation.has_windows() {
            return;
        }
        let policy = &rotation.plan().policy;
        let promoted_for = self.now - self.book[secret].promoted_at;
        let for_brown_out =
            rotation.brown_out_for().is_some() && rotation.ending().soaked_at().is_none();
        let soak = if for_brown_out { policy.soak.part(1, 2) } else { policy.soak };
        let leapt = self.has_lost_records();
        if promoted_for < soak.as_millis() as Millis && !leapt {
            self.violate("I07", || format!("{step:?} of secret {secret} after {promoted_for} ms of true time, before its soak"));
        }
        let now = self.wall();
        let ending = rotation.ending();
        let sampled_at = self.book[secret].sampled_at;
        let stands = ending.last_visit().is_some_and(|(at, light)| {
            light == Light::Green
                && now.since(at) <= policy.fresh_for
                && rotation.plan().issuer.facts.last_used.is_none_or(|facts| {
                    sampled_at.is_none_or(|at| {
                        at.since(rotation.promoted_at()) >= facts.lag + facts.granularity
                    })
                })
        });
        if !stands {
            self.violate("I02", || {
                format!(
                    "{step:?} of secret {secret} without a fresh green visit: {:?} at {now:?}",
                    ending.last_visit()
                )
            });
        }
    }

    /// H04 behind I06: no earlier attempt of this rotation is alive, or can still land.
    fn check_attempt(&mut self, secret: usize, rotation: &Rotation, attempt: u16) {
        let prefix = rotation.id().label_prefix();
        let under_way = self.calls.iter().any(|call| {
            matches!(&call.request, Some(crate::world::Request::Mint { secret: minted, label, .. })
                if *minted == secret && label.starts_with(&prefix))
        });
        let theirs = self.secrets[secret].kind == Kind::Keys;
        if under_way && theirs {
            self.violate("I06", || format!("attempt {attempt} of secret {secret} begins while an earlier mint can still land"));
        }
    }

    /// I07: counted time is not longer than true time.
    fn check_soak(&mut self, secret: usize, rotation: &Rotation) {
        let gone = self.now - self.book[secret].promoted_at;
        let counted = rotation.ending().soak_counted().as_millis() as Millis;
        let lost = self.has_lost_records();
        if rotation.was_ever_promoted() && counted > gone && !lost {
            self.violate("I07", || {
                format!("secret {secret} counts {counted} ms of soak in {gone} ms of true time")
            });
        }
    }

    /// I08: every store and every replica truly holds the arrangement that is said to be reached.
    fn check_arrived(&mut self, secret: usize, rotation: &Rotation, position: u8) {
        let known = &self.secrets[secret];
        if known.tampered || known.emergency || self.healed || self.may_have_forgotten() {
            return;
        }
        let arrangement = rotation.line().at(position);
        let holds = |slot: usize, held: Held, others: &mut Option<Held>| {
            if !self.slots[slot].is_current {
                return arrangement.also.is_some() == matches!(held, Held::Value(_));
            }
            match others {
                Some(first) => *first == held,
                None => {
                    *others = Some(held);
                    true
                }
            }
        };
        let mut current = None;
        let stores =
            known.slots.iter().all(|slot| holds(*slot, self.slots[*slot].held, &mut current));
        let replicas =
            self.serving_slots(secret).all(|(slot, held)| holds(slot, held, &mut current));
        let strangers = self.workloads.iter().any(|workload| {
            workload.slots.iter().any(|slot| self.slots[*slot].secret == secret)
                && workload.replicas.iter().any(|replica| replica.up == Up::Starting)
        });
        let holds = stores && replicas;
        if !holds && !strangers {
            self.violate("I08", || format!("secret {secret} is said to have arrived at {position}: stores {stores}, replicas {replicas}"));
        }
    }

    /// I21, I25, I27: an outcome is what it says.
    fn check_ended(&mut self, secret: usize, rotation: &Rotation, outcome: Outcome) {
        let strategy = rotation.plan().strategy;
        if strategy == Strategy::Append
            && outcome == Outcome::Completed
            && !rotation.plan().is_emergency()
        {
            self.violate("I25", || format!("secret {secret} is an encryption key, and a version was taken out without proof"));
        }
        let plan = rotation.plan();
        if plan.extend
            || plan.issuer.facts.authority != Authority::Issuer
            || !plan.issuer.facts.destroy
        {
            return;
        }
        for version in rotation.retiring() {
            let Some(issued) = rotation.issued(version).cloned() else { continue };
            let Some(index) = self.find(secret, &issued.id, issued.generation) else { continue };
            let value = self.secrets[secret].credentials[index].value;
            let unused = outcome == Outcome::Undone && !rotation.walk().is_touched();
            if unused && self.secrets[secret].credentials[index].state == State::Revoked {
                continue;
            }
            if self.answers_to(secret, value) {
                let id = if rotation.plan().is_emergency() { "I27" } else { "I21" };
                self.violate(id, || {
                    format!("secret {secret} is {outcome}, and `{issued}` is still accepted")
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_listed_once() {
        let numbers =
            (1..=29).map(|n| format!("I{n:02}")).chain((1..=5).map(|n| format!("L{n:02}")));
        assert!(numbers.eq(ALL.iter().map(|(id, _)| (*id).to_owned())));
    }
}
