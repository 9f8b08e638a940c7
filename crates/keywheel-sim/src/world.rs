//! The world that rotations happen in: what issuers, stores and replicas truly hold, whatever anybody believes.
//!
//! Calls of drivers arrive as [`Request`]s with a time at which they land. A caller that dies or gives up changes nothing
//! about that: the call lands all the same, as late as its fault says. Time is a number; nothing here sleeps.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, MutexGuard};

use keywheel_core::call::{CallError, Refusal, RefusalKind};
use keywheel_core::event::{ParkReason, Step};
use keywheel_core::facts::{Authority, IssuerFacts};
use keywheel_core::fingerprint::{Fingerprint, Fingerprinter};
use keywheel_core::plan::RotationId;
use keywheel_core::time::Timestamp;
use keywheel_journal::memory::MemoryJournal;
use smallvec::SmallVec;

use crate::faults::{Fault, Hit, Hits, StepKind};
use crate::invariants::Violation;
use crate::random::Random;

/// Milliseconds of true time since the beginning of a life.
pub(crate) type Millis = i64;

/// What the wall clock shows when a life begins.
pub(crate) const EPOCH: Millis = 1_700_000_000_000;

/// The world, shared by drivers, clock and journal of one life. A life runs on one thread; the lock only satisfies the traits.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<World>>);

impl Shared {
    pub(crate) fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("a life runs on one thread and stops at its first panic")
    }
}

/// The truth.
pub(crate) struct World {
    pub(crate) now: Millis,
    pub(crate) random: Random,
    pub(crate) wall_offset: Millis,
    pub(crate) boot_id: u64,
    pub(crate) boot_from: Millis,
    pub(crate) outside_clock: bool,
    queue: BinaryHeap<Reverse<(Millis, u64, Act)>>,
    queued: u64,
    pub(crate) values: Vec<Value>,
    pub(crate) secrets: Vec<Secret>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) calls: Vec<Call>,
    pub(crate) probes_red_until: Millis,
    pub(crate) fingerprinter: Arc<Fingerprinter>,
    /// The true book of the journal, kept beside it by the simulator's wrapper.
    pub(crate) book: Vec<Book>,
    /// The journal itself, for checks that read it as a fresh process would.
    pub(crate) journal: Option<Arc<MemoryJournal>>,
    pub(crate) agenda: Vec<Planned>,
    pub(crate) points: u32,
    pub(crate) trace: Vec<(StepKind, Hits, RequestKind)>,
    pub(crate) tracing: bool,
    pub(crate) hit: Hit,
    pub(crate) fired: SmallVec<[Fault; 4]>,
    pub(crate) orders: SmallVec<[Order; 2]>,
    pub(crate) task: usize,
    pub(crate) wakes: SmallVec<[Millis; 4]>,
    pub(crate) alive: SmallVec<[bool; 4]>,
    pub(crate) violation: Option<Violation>,
    pub(crate) checks: u64,
    /// How many commits of rotations are durable.
    pub(crate) commits: usize,
    /// How often the engine read the clock in the present turn.
    pub(crate) clock_reads: u32,
    pub(crate) crash_at_next_commit: bool,
    pub(crate) healed: bool,
    /// Two people begin at once, and reads of the journal take time.
    pub(crate) racing: bool,
    /// The store in the way of an emergency, by its first slot, until people see to it; and whether its no is for good.
    pub(crate) in_the_way: Option<(usize, bool)>,
}

/// What happens at its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Act {
    /// A call lands.
    Land(usize),
    /// A replica comes up and reads its stores.
    Start { workload: usize, replica: usize, generation: u32 },
    /// A roll goes on with its next replica.
    RollOn(usize),
    /// A replica reads its stores while it runs.
    Reread { workload: usize, replica: usize, generation: u32 },
}

/// What the executor does after the poll in which a fault fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Crash,
    Hold(Millis),
    HoldAll(Millis),
    TakeOverAt(Millis),
    Stop,
    Reboot,
    SecondEngine,
    SecondTask,
    Undo,
    Emergency,
    CloseWindow,
    JournalBehind,
}

/// A fault that waits for its moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) when: When,
    pub(crate) fault: Fault,
}

/// The moment of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// The n-th point of a kind of step at which the fault can happen, from 0.
    Step(StepKind, u8),
    /// The first point from this one on at which it can happen.
    From(u32),
    /// This point, if the fault can happen there.
    At(u32),
}

/// The bytes of one version, or of somebody's edit.
pub(crate) struct Value {
    pub(crate) secret: Option<usize>,
    pub(crate) fingerprint: Option<Fingerprint>,
    /// Replicas that start with it as current do not come up.
    pub(crate) bad: bool,
    pub(crate) suspect: bool,
    pub(crate) ended: bool,
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Held {
    Absent,
    Empty,
    Value(u16),
}

/// How an issuer makes and knows credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The issuer keeps a list of ids; the value is its own or ours.
    Keys,
    /// Two logins that take turns.
    Logins,
    /// One value at a time.
    Reset,
    /// Nobody keeps anything.
    Nothing,
}

/// One secret at its issuer.
pub(crate) struct Secret {
    pub(crate) kind: Kind,
    pub(crate) facts: IssuerFacts,
    pub(crate) lag: Millis,
    pub(crate) end_lag: Millis,
    pub(crate) lifetime: Option<Millis>,
    pub(crate) credentials: Vec<Credential>,
    pub(crate) signed: SmallVec<[(u16, Millis); 4]>,
    pub(crate) token_life: Millis,
    pub(crate) rogue_until: Millis,
    pub(crate) next_is_bad: bool,
    pub(crate) outage_declared: bool,
    pub(crate) emergency: bool,
    pub(crate) slots: SmallVec<[usize; 4]>,
    pub(crate) workloads: SmallVec<[usize; 2]>,
    pub(crate) call_for: Millis,
    pub(crate) tampered: bool,
    pub(crate) duplicated: bool,
}

/// One credential as its issuer knows it.
pub(crate) struct Credential {
    pub(crate) name: String,
    pub(crate) generation: Option<u64>,
    pub(crate) label: Option<String>,
    pub(crate) value: u16,
    pub(crate) state: State,
    pub(crate) accepted_from: Millis,
    pub(crate) listed_from: Millis,
    pub(crate) ended_at: Millis,
    pub(crate) expires_at: Option<Millis>,
    pub(crate) used_at: Option<Millis>,
    /// Somebody else's: not ours to end.
    pub(crate) bystander: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Live,
    Suspended,
    Revoked,
}

/// One slot of one container.
pub(crate) struct Slot {
    pub(crate) secret: usize,
    /// The first slot of the same store.
    pub(crate) store_of: usize,
    pub(crate) container: usize,
    pub(crate) is_current: bool,
    pub(crate) held: Held,
    pub(crate) before: Held,
    /// What it held before the last write of its store.
    pub(crate) before_write: Held,
    /// What keywheel wrote last: where a repair puts it back.
    pub(crate) written: Held,
    /// When it was written last, by whoever wrote.
    pub(crate) changed_at: Millis,
    /// Whether keywheel asked for that time since its last write and before somebody's edit, and whether it asked again after it.
    pub(crate) was_told: bool,
    pub(crate) edit_was_told: bool,
    /// Whether that is all that anybody is told of it.
    pub(crate) tells_time_only: bool,
    /// Whether what it holds can be read.
    pub(crate) is_readable: bool,
}

impl Slot {
    fn hold(&mut self, held: Held, now: Millis) {
        self.held = held;
        self.changed_at = now.max(self.changed_at + 1);
    }
}

/// One workload.
pub(crate) struct Workload {
    pub(crate) slots: SmallVec<[usize; 4]>,
    pub(crate) shows_slots: bool,
    /// Whether a replica may read its stores again while it runs, or may not.
    pub(crate) is_live: bool,
    pub(crate) granularity: Millis,
    pub(crate) restart_for: Millis,
    pub(crate) settle_for: Millis,
    pub(crate) replicas: SmallVec<[Replica; 4]>,
    pub(crate) rolls: SmallVec<[Roll; 1]>,
}

pub(crate) struct Replica {
    pub(crate) up: Up,
    pub(crate) started_wall: Millis,
    pub(crate) held: SmallVec<[Held; 4]>,
    pub(crate) generation: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Up {
    Serving,
    Starting,
    Crashed,
}

pub(crate) struct Roll {
    call: usize,
    /// The replica that it waits for.
    waits_for: Option<usize>,
    left: SmallVec<[usize; 4]>,
}

/// A call to a driver.
pub(crate) struct Call {
    pub(crate) request: Option<Request>,
    pub(crate) answer: Option<Result<Answer, CallError>>,
    pub(crate) ready_at: Millis,
    pub(crate) task: usize,
    pub(crate) after: Millis,
    pub(crate) how: How,
}

/// What becomes of a call's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Answered,
    Unanswered,
    Unclear,
    CrashOnAnswer,
}

/// What a driver asks of the world.
pub(crate) enum Request {
    Check,
    Examine {
        slot: usize,
    },
    CleanUp,
    Mint {
        secret: usize,
        label: String,
        value: Option<u16>,
        previous: Option<(String, Option<u64>)>,
    },
    Verify {
        secret: usize,
        value: u16,
    },
    List {
        secret: usize,
        prefix: String,
    },
    Reread {
        secret: usize,
        name: String,
    },
    End {
        secret: usize,
        name: String,
        generation: Option<u64>,
        to: State,
    },
    LastUsed {
        secret: usize,
        name: String,
        generation: Option<u64>,
    },
    Extend {
        secret: usize,
        name: String,
    },
    Read {
        slots: SmallVec<[usize; 2]>,
        stale: bool,
    },
    Changed {
        slots: SmallVec<[usize; 2]>,
    },
    Write {
        secret: usize,
        edits: SmallVec<[Edit; 2]>,
    },
    Observe {
        workload: usize,
        slots: SmallVec<[usize; 4]>,
        hidden: bool,
    },
    Roll {
        workload: usize,
        expected: Expected,
        skips: bool,
    },
    Present {
        workload: usize,
        value: u16,
        secret: usize,
    },
    Ask {
        workloads: SmallVec<[usize; 2]>,
    },
}

pub(crate) struct Edit {
    pub(crate) slot: usize,
    pub(crate) accept: Option<SmallVec<[Held; 4]>>,
    pub(crate) value: Held,
}

/// What a roll is to bring about.
pub(crate) struct Expected {
    pub(crate) slots: SmallVec<[(usize, Option<Fingerprint>); 4]>,
    pub(crate) held_since: Millis,
    pub(crate) untouched_before: Option<Millis>,
}

pub(crate) enum Answer {
    Plain,
    Minted { name: Option<(String, Option<u64>)>, value: Option<u16>, expires_at: Option<Millis> },
    Verdict(bool),
    Listed(Vec<(String, Option<u64>, Option<String>)>),
    Value(Option<u16>),
    Used(Option<Millis>),
    Until(Millis),
    Slots(SmallVec<[Held; 2]>),
    Times(SmallVec<[Option<Millis>; 2]>),
    Written(bool),
    Replicas(SmallVec<[(Millis, SmallVec<[Held; 4]>); 4]>),
    Answers(SmallVec<[bool; 4]>),
    Health(bool),
}

/// Requests by kind: what a fault can be done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RequestKind {
    Commit,
    Read,
    Mint,
    Write,
    Roll,
    Observe,
    Ask,
    OtherRead,
    OtherWrite,
}

/// What is durable of one secret, as the simulator's own book has it.
pub(crate) struct Book {
    pub(crate) epoch: u64,
    pub(crate) holder: Option<usize>,
    pub(crate) claimed_until: Millis,
    pub(crate) rotation: Option<String>,
    pub(crate) next: u64,
    pub(crate) intent: Option<Intent>,
    /// Intents whose calls may still be under way: until their deadlines.
    pub(crate) running: SmallVec<[Intent; 4]>,
    pub(crate) taken: Vec<(String, String)>,
    pub(crate) outcome: Option<keywheel_core::event::Outcome>,
    pub(crate) planned: u32,
    pub(crate) promoted_at: Millis,
    /// When the issuer was last asked for uses, by the wall clock.
    pub(crate) sampled_at: Option<Timestamp>,
    /// The step that was last refused in a way that only an operator can change.
    pub(crate) refused: Option<keywheel_core::event::Step>,
    pub(crate) brown_out: BrownOut,
    /// The stores that a write of a rotation was intended for.
    pub(crate) touched: Vec<(RotationId, u8)>,
}

/// What truly happened in the brown-out of a retirement.
#[derive(Clone, Copy, Default)]
pub(crate) struct BrownOut {
    /// Since when the version is suspended for it, and the process that did so.
    pub(crate) since: Option<Millis>,
    pub(crate) by: usize,
    /// Somebody missed the version, and it is still suspended.
    pub(crate) missed: bool,
    /// It lasted as long as it should, and nobody missed the version.
    pub(crate) passed: bool,
}

#[derive(Clone, Copy)]
pub(crate) struct Intent {
    pub(crate) step: StepKind,
    pub(crate) until: Millis,
    pub(crate) process: usize,
}

impl World {
    pub(crate) fn new(seed: u64, fingerprinter: Arc<Fingerprinter>) -> Self {
        Self {
            now: 0,
            random: Random::new(seed),
            wall_offset: 0,
            boot_id: 1,
            boot_from: -3_600_000,
            outside_clock: false,
            queue: BinaryHeap::with_capacity(16),
            queued: 0,
            values: Vec::with_capacity(8),
            secrets: Vec::new(),
            slots: Vec::new(),
            workloads: Vec::new(),
            calls: Vec::with_capacity(64),
            probes_red_until: -1,
            fingerprinter,
            book: Vec::new(),
            journal: None,
            agenda: Vec::new(),
            points: 0,
            trace: Vec::new(),
            tracing: false,
            hit: Hit::default(),
            fired: SmallVec::new(),
            orders: SmallVec::new(),
            task: 0,
            wakes: SmallVec::new(),
            alive: SmallVec::new(),
            violation: None,
            checks: 0,
            commits: 0,
            clock_reads: 0,
            crash_at_next_commit: false,
            healed: false,
            racing: false,
            in_the_way: None,
        }
    }

    /// What the wall clock shows.
    pub(crate) fn wall(&self) -> Timestamp {
        Timestamp::from_millis(EPOCH + self.now + self.wall_offset)
    }

    /// The true time at which the wall clock will show `at`, as it goes now.
    pub(crate) fn true_time(&self, at: Timestamp) -> Millis {
        at.millis() - EPOCH - self.wall_offset
    }

    pub(crate) fn at(&mut self, time: Millis, act: Act) {
        self.queued += 1;
        self.queue.push(Reverse((time, self.queued, act)));
    }

    pub(crate) fn next_act(&self) -> Option<Millis> {
        self.queue.peek().map(|Reverse((time, _, _))| *time)
    }

    /// Takes the next act from the queue and lets it happen.
    pub(crate) fn act(&mut self) {
        let Some(Reverse((time, _, act))) = self.queue.pop() else { return };
        self.now = self.now.max(time);
        match act {
            Act::Land(call) => self.land(call),
            Act::Start { workload, replica, generation } => {
                self.start(workload, replica, generation)
            }
            Act::RollOn(workload) => self.roll_on(workload),
            Act::Reread { workload, replica, generation } => {
                self.reread(workload, replica, generation)
            }
        }
    }

    /// Asks for a poll of the present task at `time`.
    pub(crate) fn wake_at(&mut self, time: Millis) {
        let wake = &mut self.wakes[self.task];
        *wake = (*wake).min(time);
    }

    pub(crate) fn new_value(&mut self, secret: Option<usize>) -> u16 {
        self.values.push(Value {
            secret,
            fingerprint: None,
            bad: false,
            suspect: false,
            ended: false,
        });
        (self.values.len() - 1) as u16
    }

    /// Makes the value of a version; it may be one that workloads refuse.
    pub(crate) fn make(&mut self, secret: usize) -> u16 {
        let value = self.new_value(Some(secret));
        self.values[usize::from(value)].bad = std::mem::take(&mut self.secrets[secret].next_is_bad);
        value
    }

    pub(crate) fn fingerprint(&mut self, value: u16) -> Fingerprint {
        if let Some(known) = self.values[usize::from(value)].fingerprint {
            return known;
        }
        let made = self.fingerprinter.of(&bytes_of(value));
        self.values[usize::from(value)].fingerprint = Some(made);
        made
    }
}

/// Calls on their way.
impl World {
    /// Takes a call in and says which number it has; a fault may be done to it or around it.
    pub(crate) fn begin(&mut self, process: usize, secret: usize, mut request: Request) -> usize {
        let kind = request.kind();
        self.check_call(process, secret, kind);
        let step = self.book[secret].intent.map(|intent| intent.step);
        let fault = step.and_then(|step| self.fault_at(step, kind));
        let (first, second) = (self.random.between(1, 40), self.random.between(1, 40));
        let mut land_at = Some(self.now + first);
        let mut call = Call {
            request: None,
            answer: None,
            ready_at: Millis::MAX,
            task: self.task,
            after: second,
            how: How::Answered,
        };
        if let Some(fault) = fault {
            self.disturb(fault, secret, &mut request, &mut call, &mut land_at);
        }
        if let Some(refusal) = self.stands_in_the_way(&request) {
            land_at = None;
            call.answer = Some(Err(refusal.into()));
            call.ready_at = self.now + 20;
        }
        let number = self.calls.len();
        if let Some(at) = land_at {
            call.request = Some(request);
            self.at(at, Act::Land(number));
        }
        self.calls.push(call);
        number
    }

    /// The no of a store that stands in the way.
    fn stands_in_the_way(&self, request: &Request) -> Option<Refusal> {
        let (first, for_good) = self.in_the_way.filter(|_| !self.healed)?;
        self.secrets[self.slots[first].secret].emergency.then_some(())?;
        let touches = |slot: usize| self.slots[slot].store_of == self.slots[first].store_of;
        let touched = match request {
            Request::Examine { slot } => touches(*slot),
            Request::Read { slots, .. } | Request::Changed { slots } => {
                slots.iter().any(|slot| touches(*slot))
            }
            Request::Write { edits, .. } => edits.iter().any(|edit| touches(edit.slot)),
            _ => false,
        };
        touched.then(|| match for_good {
            true => Refusal::operator(RefusalKind::Permission, "the store is in the way"),
            false => Refusal::retry(RefusalKind::Unavailable, None, "the store is in the way"),
        })
    }

    /// Takes the answer of a call, if it is there.
    pub(crate) fn poll(&mut self, number: usize) -> Option<Result<Answer, CallError>> {
        let now = self.now;
        let call = &mut self.calls[number];
        if call.answer.is_none() || now < call.ready_at {
            if call.ready_at < Millis::MAX {
                let ready_at = call.ready_at;
                self.wake_at(ready_at);
            }
            return None;
        }
        match call.how {
            How::CrashOnAnswer => {
                self.orders.push(Order::Crash);
                None
            }
            _ => call.answer.take(),
        }
    }

    fn land(&mut self, number: usize) {
        let Some(request) = self.calls[number].request.take() else { return };
        if let Request::Roll { workload, expected, skips } = request {
            return self.begin_roll(number, workload, &expected, skips);
        }
        let answer = self.perform(request);
        self.answer(number, answer);
    }

    fn answer(&mut self, number: usize, answer: Result<Answer, CallError>) {
        let now = self.now;
        let call = &mut self.calls[number];
        let answer = match call.how {
            How::Unanswered => return,
            How::Unclear => Err(CallError::Unknown("an answer that says nothing".into())),
            How::Answered | How::CrashOnAnswer => answer,
        };
        call.answer.get_or_insert(answer);
        call.ready_at = call.ready_at.min(now + call.after);
        let (task, ready_at) = (call.task, call.ready_at);
        if let Some(wake) = self.wakes.get_mut(task) {
            *wake = (*wake).min(ready_at);
        }
    }

    /// How long after it was sent a call can land at the latest: what the drivers' facts promise.
    fn longest_life(&self, secret: usize, kind: RequestKind) -> Millis {
        let secret = &self.secrets[secret];
        let settle = match kind {
            RequestKind::Roll => self.workloads[secret.workloads[0]].settle_for,
            RequestKind::Write => STORE_SETTLES,
            _ => secret.facts.settle_for.as_millis() as Millis - secret.lag,
        };
        // A wall clock that is set ahead by two seconds must not make a promise of the drivers' facts a lie.
        (settle - 3_000).max(1)
    }
}

/// How long after its start a replica counts as ready.
const READY_FOR: Millis = 200;

/// How long a write without an answer can still take effect.
pub(crate) const STORE_SETTLES: Millis = 45_000;

/// Faults.
impl World {
    /// Counts a point at which something can go wrong, and takes the fault that was meant for it.
    pub(crate) fn fault_at(&mut self, step: StepKind, kind: RequestKind) -> Option<Fault> {
        let point = self.points;
        self.points += 1;
        if self.tracing {
            self.trace.push((
                step,
                if kind == RequestKind::Commit { Hits::Commit } else { Hits::Call },
                kind,
            ));
        }
        if self.agenda.is_empty() {
            return None;
        }
        let mut due = None;
        for (index, planned) in self.agenda.iter_mut().enumerate() {
            if !fits(planned.fault, step, kind) {
                continue;
            }
            let now = match &mut planned.when {
                When::Step(wanted, 0) => *wanted == step,
                When::Step(wanted, left) => {
                    *left -= u8::from(*wanted == step);
                    false
                }
                When::From(first) => point >= *first,
                When::At(exact) => point == *exact,
            };
            if now {
                due = Some(index);
                break;
            }
        }
        let fault = self.agenda.swap_remove(due?).fault;
        self.hit.note(step, fault);
        self.fired.push(fault);
        Some(fault)
    }

    fn disturb(
        &mut self,
        fault: Fault,
        secret: usize,
        request: &mut Request,
        call: &mut Call,
        land_at: &mut Option<Millis>,
    ) {
        let kind = request.kind();
        let late = self.now + self.longest_life(secret, kind);
        let mut refuse = |refusal: Refusal| {
            *land_at = None;
            call.answer = Some(Err(refusal.into()));
            call.ready_at = self.now + 20;
        };
        match fault {
            Fault::CrashBefore => {
                *land_at = None;
                self.orders.push(Order::Crash);
            }
            Fault::CrashInFlight => self.orders.push(Order::Crash),
            Fault::CrashLate => {
                *land_at = Some(late);
                self.orders.push(Order::Crash);
            }
            Fault::CrashAfter => call.how = How::CrashOnAnswer,
            Fault::CrashInRecovery => {
                self.crash_at_next_commit = true;
                self.orders.push(Order::Crash);
            }
            Fault::Pause => {
                let pause = self.random.between(1_000, 20 * 60_000);
                self.orders.push(Order::Hold(pause));
            }
            Fault::PauseTakenOver => {
                let taken_over = self.random.between(31 * 60_000, 40 * 60_000);
                let until = taken_over + self.random.between(10_000, 600_000);
                self.orders.push(Order::Hold(until));
                self.orders.push(Order::TakeOverAt(self.now + taken_over));
            }
            Fault::RequestLost => {
                *land_at = None;
                call.how = How::Unanswered;
            }
            Fault::AnswerLost => call.how = How::Unanswered,
            Fault::AnswerUnclear => call.how = How::Unclear,
            Fault::LateLanding => {
                *land_at = Some(late);
                call.how = How::Unanswered;
            }
            Fault::Duplicate => self.duplicate(secret, request),
            Fault::Throttled => {
                let after = Some(keywheel_core::time::Span::seconds(5));
                refuse(Refusal::retry(RefusalKind::RateLimited, after, "too many calls"));
            }
            Fault::Unavailable => {
                refuse(Refusal::retry(RefusalKind::Unavailable, None, "not there for now"))
            }
            Fault::Forbidden => refuse(Refusal::operator(RefusalKind::Permission, "not allowed")),
            Fault::ValueRejected => {
                refuse(Refusal::retry(RefusalKind::ValueRejected, None, "value not taken"))
            }
            Fault::QuotaFull => refuse(Refusal::operator(RefusalKind::Quota, "cap is reached")),
            Fault::Slow => call.after = self.secrets[secret].call_for - 1_000,
            // Once records are lost, one look is all that is taken.
            Fault::StaleRead if self.is_behind() => {}
            Fault::StaleRead => {
                if let Request::Read { stale, .. } = request {
                    *stale = true;
                }
            }
            Fault::RollSkipsSome => {
                if let Request::Roll { skips, .. } = request {
                    *skips = true;
                }
            }
            Fault::ReplicasHidden => {
                if let Request::Observe { hidden, .. } = request {
                    *hidden = true;
                }
            }
            Fault::ProbeRed => self.probes_red_until = self.now + 90_000,
            Fault::StoreBehind => self.forget_write(secret, request),
            _ => self.around(fault, secret),
        }
    }

    /// A second delivery of the same request, just before the first.
    fn duplicate(&mut self, secret: usize, request: &Request) {
        let again = match request {
            Request::Mint { secret, label, value, previous } => {
                let (label, value, previous) = (label.clone(), *value, previous.clone());
                Some(Request::Mint { secret: *secret, label, value, previous })
            }
            Request::End { secret, name, generation, to } => Some(Request::End {
                secret: *secret,
                name: name.clone(),
                generation: *generation,
                to: *to,
            }),
            _ => None,
        };
        self.secrets[secret].duplicated = true;
        if let Some(again) = again {
            drop(self.perform(again));
            // A sweep after an answered mint takes the list at its word.
            self.secrets[secret]
                .credentials
                .iter_mut()
                .for_each(|known| known.listed_from = known.listed_from.min(self.now));
        }
    }

    /// What happens to the world, the process or the people while a call is under way.
    pub(crate) fn around(&mut self, fault: Fault, secret: usize) {
        match fault {
            Fault::Stop => self.orders.push(Order::Stop),
            Fault::SecondEngine => self.orders.push(Order::SecondEngine),
            Fault::SecondTask => self.orders.push(Order::SecondTask),
            Fault::Undo => self.orders.push(Order::Undo),
            Fault::Emergency => self.orders.push(Order::Emergency),
            Fault::WindowClosed => self.orders.push(Order::CloseWindow),
            Fault::JournalBehind => self.orders.push(Order::JournalBehind),
            Fault::Reboot => {
                self.boot_id += 1;
                self.boot_from = self.now + 30_000;
                self.orders.push(Order::Reboot);
            }
            Fault::Suspended => {
                let asleep = self.random.between(60_000, 29 * 60_000);
                self.orders.push(Order::HoldAll(asleep));
            }
            Fault::WallForward => {
                // Only soak is counted by three clocks; other waits take the wall clock at its word (see the crate's documentation).
                let soaking =
                    self.book[secret].intent.is_some_and(|intent| intent.step == StepKind::Visit);
                let waits_by_wall =
                    self.secrets.iter().any(|known| known.token_life > 0) || self.secrets.len() > 1;
                let leaps: &[Millis] = if soaking && !waits_by_wall {
                    &[2_000, 7_200_000, 40 * 86_400_000]
                } else {
                    &[2_000]
                };
                let leap = self.random.pick(leaps);
                self.set_wall(leap);
            }
            Fault::WallBack => {
                // Start times prove nothing of restarts that other rotations caused before the clock was set back (see the
                // crate's documentation), and what a task saw that another one overtook has no record.
                let is_unseen = self.secrets.len() > 1 || self.fired.contains(&Fault::SecondTask);
                let leaps: &[Millis] = if is_unseen { &[1] } else { &[2_000, 120_000] };
                let leap = self.random.pick(leaps);
                self.set_wall(-leap);
            }
            Fault::RivalEdit => {
                let slot = self.a_slot(secret);
                let foreign = self.new_value(None);
                self.slots[slot].hold(Held::Value(foreign), self.now);
                self.secrets[secret].tampered = true;
            }
            Fault::RivalRevert => {
                let slot = self.a_slot(secret);
                let before = self.slots[slot].before;
                self.slots[slot].hold(before, self.now);
                self.secrets[secret].tampered = true;
            }
            Fault::ReplicaRestarts => {
                for workload in self.secrets[secret].workloads.clone() {
                    for replica in 0..self.workloads[workload].replicas.len() {
                        if self.workloads[workload].replicas[replica].up == Up::Serving {
                            self.read_stores(workload, replica);
                        }
                    }
                }
            }
            Fault::ScaleUp => {
                let workload = self.secrets[secret].workloads[0];
                let generation = 0;
                let fresh = Replica {
                    up: Up::Starting,
                    started_wall: 0,
                    held: SmallVec::new(),
                    generation,
                };
                self.workloads[workload].replicas.push(fresh);
                let replica = self.workloads[workload].replicas.len() - 1;
                self.read_stores(workload, replica);
            }
            _ => {}
        }
    }

    /// Lets a store forget its last write: the one that is being read, so that nobody has looked at it just before. Nothing is
    /// forgotten where what was there before is ended, or about to be by a call that is under way: no look comes before that. Nor
    /// while another write is, which would put it back before anybody saw it.
    fn forget_write(&mut self, secret: usize, request: &Request) {
        let readable = |slot: &usize| self.slots[*slot].is_readable;
        let slots = self.secrets[secret].slots.iter().copied().filter(readable);
        let slots: SmallVec<[usize; 4]> = slots.collect();
        let disturbs = |request: &Request| {
            matches!(request, Request::End { .. } | Request::Mint { .. } | Request::Write { .. })
        };
        let under_way = self.calls.iter().filter_map(|call| call.request.as_ref());
        if self.secrets[secret].emergency
            || self.is_behind()
            || under_way.chain([request]).any(disturbs)
        {
            return;
        }
        let some = match request {
            Request::Read { slots, .. } | Request::Changed { slots } => slots[0],
            _ => self.random.pick(&slots),
        };
        let store = self.slots[some].store_of;
        let of_store = || slots.iter().copied().filter(|slot| self.slots[*slot].store_of == store);
        let works = |slot: usize| match self.slots[slot].before_write {
            Held::Value(value) => self.works(secret, value),
            Held::Absent | Held::Empty => !self.slots[slot].is_current,
        };
        if !of_store().all(|slot| works(slot) && self.slots[slot].held == self.slots[slot].written)
        {
            return;
        }
        for slot in of_store().collect::<SmallVec<[usize; 4]>>() {
            let before = self.slots[slot].before_write;
            self.slots[slot].hold(before, self.now);
        }
    }

    fn a_slot(&mut self, secret: usize) -> usize {
        let current: SmallVec<[usize; 4]> = self.secrets[secret]
            .slots
            .iter()
            .copied()
            .filter(|slot| self.slots[*slot].is_current)
            .collect();
        self.random.pick(&current)
    }

    fn set_wall(&mut self, leap: Millis) {
        self.wall_offset += leap;
        let now = self.now;
        self.wakes.iter_mut().for_each(|wake| *wake = (*wake).min(now + 1));
    }

    /// Ends every fault of the world that people would see to.
    pub(crate) fn heal(&mut self) {
        self.agenda.clear();
        self.healed = true;
        self.crash_at_next_commit = false;
        self.probes_red_until = -1;
        for secret in &mut self.secrets {
            secret.rogue_until = secret.rogue_until.min(self.now);
        }
        for slot in &mut self.slots {
            let foreign = match slot.held {
                Held::Value(value) => self.values[usize::from(value)].secret.is_none(),
                _ => false,
            };
            if foreign || self.secrets[slot.secret].tampered {
                slot.hold(slot.written, self.now);
            }
        }
        for workload in 0..self.workloads.len() {
            for replica in 0..self.workloads[workload].replicas.len() {
                let (slots, held) = (
                    &self.workloads[workload].slots,
                    &self.workloads[workload].replicas[replica].held,
                );
                let foreign = slots.iter().zip(held).any(|(_, held)| matches!(held, Held::Value(value) if self.values[usize::from(*value)].secret.is_none()));
                if foreign {
                    self.read_stores(workload, replica);
                }
            }
        }
    }
}

/// Returns whether a fault can be done at a point.
pub(crate) fn fits(fault: Fault, step: StepKind, kind: RequestKind) -> bool {
    let writes = matches!(
        kind,
        RequestKind::Mint | RequestKind::Write | RequestKind::Roll | RequestKind::OtherWrite
    );
    if crate::faults::impossible(step, fault).is_some() {
        return false;
    }
    match fault.hits() {
        Hits::Commit => kind == RequestKind::Commit,
        Hits::Around => kind != RequestKind::Commit,
        Hits::Call => match fault {
            Fault::CrashLate | Fault::LateLanding | Fault::Duplicate => writes,
            Fault::ValueRejected | Fault::QuotaFull => kind == RequestKind::Mint,
            Fault::StaleRead => kind == RequestKind::Read,
            Fault::RollSkipsSome => kind == RequestKind::Roll,
            Fault::ReplicasHidden => kind == RequestKind::Observe,
            Fault::ProbeRed => kind == RequestKind::Ask,
            _ => kind != RequestKind::Commit,
        },
    }
}

/// What calls do.
impl World {
    fn perform(&mut self, request: Request) -> Result<Answer, CallError> {
        match request {
            // What a store keeps beside its slots is read by nobody here.
            Request::Check | Request::Examine { .. } | Request::CleanUp => Ok(Answer::Plain),
            Request::Mint { secret, label, value, previous } => {
                self.mint(secret, label, value, previous)
            }
            Request::Verify { secret, value } => {
                Ok(Answer::Verdict(self.answers_to(secret, value)))
            }
            Request::List { secret, prefix } => Ok(Answer::Listed(self.list(secret, &prefix))),
            Request::Reread { secret, name } => {
                let rereads = self.secrets[secret].facts.value
                    == keywheel_core::facts::ValueOrigin::TheirsRereadable;
                let found = self.find(secret, &name, None).filter(|_| rereads);
                Ok(Answer::Value(found.map(|index| self.secrets[secret].credentials[index].value)))
            }
            Request::End { secret, name, generation, to } => {
                self.end(secret, &name, generation, to)
            }
            Request::LastUsed { secret, name, generation } => {
                Ok(Answer::Used(self.last_used(secret, &name, generation)))
            }
            Request::Extend { secret, name } => self.extend(secret, &name),
            Request::Read { slots, stale } => {
                let slots = slots.iter().map(|slot| &self.slots[*slot]);
                Ok(Answer::Slots(
                    slots.map(|slot| if stale { slot.before } else { slot.held }).collect(),
                ))
            }
            Request::Changed { slots } => {
                for slot in &slots {
                    let is_edit = self.is_somebodys(self.slots[*slot].held);
                    let slot = &mut self.slots[*slot];
                    slot.edit_was_told = is_edit && slot.was_told;
                    slot.was_told |= !is_edit;
                }
                let changed_at = |slot: &usize| {
                    let slot = &self.slots[*slot];
                    (slot.held != Held::Absent).then_some(slot.changed_at)
                };
                Ok(Answer::Times(slots.iter().map(changed_at).collect()))
            }
            Request::Write { secret, edits } => self.write(secret, &edits),
            Request::Observe { workload, slots, hidden } => {
                Ok(Answer::Replicas(self.observe(workload, &slots, hidden)))
            }
            Request::Present { workload, value, secret } => {
                Ok(Answer::Answers(self.present(workload, secret, value)))
            }
            Request::Ask { workloads } => {
                let up = |workload: &usize| {
                    self.workloads[*workload]
                        .replicas
                        .iter()
                        .all(|replica| replica.up != Up::Crashed)
                };
                Ok(Answer::Health(self.now >= self.probes_red_until && workloads.iter().all(up)))
            }
            Request::Roll { .. } => Ok(Answer::Plain),
        }
    }

    fn mint(
        &mut self,
        secret: usize,
        label: String,
        value: Option<u16>,
        previous: Option<(String, Option<u64>)>,
    ) -> Result<Answer, CallError> {
        let theirs = self.secrets[secret].facts.value != keywheel_core::facts::ValueOrigin::Ours;
        if !theirs && value.is_none() {
            return Err(Refusal::operator(RefusalKind::Unsupported, "a value is needed").into());
        }
        let value = match value {
            Some(value) if !theirs => value,
            _ => self.make(secret),
        };
        let now = self.now;
        let known = &self.secrets[secret];
        let expires_at = known.lifetime.map(|life| now + life);
        let accepted_from = now + known.facts.propagation.as_millis() as Millis * i64::from(theirs);
        let listed_from = now + known.lag;
        let already = known.credentials.iter().position(|known| known.value == value);
        let shown = |known: &Credential| Some((known.name.clone(), known.generation));
        let (name, generation) = match known.kind {
            Kind::Nothing => {
                return Ok(Answer::Minted { name: None, value: None, expires_at: None });
            }
            Kind::Keys | Kind::Reset => (format!("k{}", known.credentials.len()), None),
            Kind::Logins => {
                let other = match &previous {
                    Some((name, _)) if *name == "login_a" => "login_b",
                    _ => "login_a",
                };
                let generations =
                    known.credentials.iter().filter(|known| known.name == other).count() as u64;
                (other.to_owned(), Some(generations + 1))
            }
        };
        if let Some(already) = already {
            return Ok(Answer::Minted {
                name: shown(&known.credentials[already]),
                value: None,
                expires_at,
            });
        }
        let ends_former = |former: &Credential| {
            known.kind == Kind::Reset || (known.kind == Kind::Logins && former.name == name)
        };
        let ended: SmallVec<[usize; 2]> = known
            .credentials
            .iter()
            .enumerate()
            .filter(|(_, former)| ends_former(former))
            .map(|(index, _)| index)
            .collect();
        for index in ended {
            self.check_replaced(secret, index, previous.as_ref().map(|(name, _)| name.as_str()));
            self.end_credential(secret, index, State::Revoked);
        }
        let label = self.secrets[secret].facts.label.then_some(label);
        let reset = self.secrets[secret].kind == Kind::Reset;
        self.secrets[secret].outage_declared |= reset;
        self.secrets[secret].credentials.push(Credential {
            name: name.clone(),
            generation,
            label,
            value,
            state: State::Live,
            accepted_from,
            listed_from,
            ended_at: Millis::MAX,
            expires_at,
            used_at: None,
            bystander: false,
        });
        if !theirs {
            self.check_recoverable(secret, value);
        }
        self.check_minted(secret);
        self.check_never_zero();
        Ok(Answer::Minted {
            name: Some((name, generation)),
            value: theirs.then_some(value),
            expires_at,
        })
    }

    /// What the issuer answers to a credential now; an end shows late.
    pub(crate) fn answers_to(&self, secret: usize, value: u16) -> bool {
        let known = &self.secrets[secret];
        known.credentials.iter().any(|credential| {
            let shows_live =
                credential.state == State::Live || self.now < credential.ended_at + known.end_lag;
            credential.value == value
                && shows_live
                && self.now >= credential.accepted_from
                && !self.expired(credential)
        })
    }

    fn expired(&self, credential: &Credential) -> bool {
        credential.expires_at.is_some_and(|at| self.now >= at)
    }

    /// Whether a value certainly works.
    pub(crate) fn works(&self, secret: usize, value: u16) -> bool {
        let known = &self.secrets[secret];
        if known.facts.authority != Authority::Issuer {
            return true;
        }
        known.credentials.iter().any(|credential| {
            credential.value == value
                && credential.state == State::Live
                && self.now >= credential.accepted_from
                && !self.expired(credential)
        })
    }

    fn list(&self, secret: usize, prefix: &str) -> Vec<(String, Option<u64>, Option<String>)> {
        let listed = |known: &&Credential| {
            known.state != State::Revoked
                && self.now >= known.listed_from
                && known.label.as_deref().unwrap_or_default().starts_with(prefix)
        };
        let known = self.secrets[secret].credentials.iter().filter(listed);
        known.map(|known| (known.name.clone(), known.generation, known.label.clone())).collect()
    }

    pub(crate) fn find(&self, secret: usize, name: &str, generation: Option<u64>) -> Option<usize> {
        let credentials = &self.secrets[secret].credentials;
        credentials.iter().position(|known| {
            known.name == name && (generation.is_none() || known.generation == generation)
        })
    }

    fn end(
        &mut self,
        secret: usize,
        name: &str,
        generation: Option<u64>,
        to: State,
    ) -> Result<Answer, CallError> {
        let Some(index) = self.find(secret, name, generation) else { return Ok(Answer::Plain) };
        if self.secrets[secret].credentials[index].state == State::Revoked {
            return Ok(Answer::Plain);
        }
        self.check_end(secret, index, to);
        self.end_credential(secret, index, to);
        self.check_never_zero();
        Ok(Answer::Plain)
    }

    fn end_credential(&mut self, secret: usize, index: usize, to: State) {
        let now = self.now;
        let credential = &mut self.secrets[secret].credentials[index];
        if to != State::Live && credential.state == State::Live {
            credential.ended_at = now;
        }
        credential.state = to;
        if to == State::Live {
            credential.ended_at = Millis::MAX;
        }
        let value = usize::from(credential.value);
        self.values[value].ended |= to == State::Revoked;
    }

    fn last_used(&self, secret: usize, name: &str, generation: Option<u64>) -> Option<Millis> {
        let facts = self.secrets[secret].facts.last_used?;
        let credential = &self.secrets[secret].credentials[self.find(secret, name, generation)?];
        let in_use = self.serving().any(|(workload, replica)| {
            let held = &self.workloads[workload].replicas[replica].held;
            let slots = &self.workloads[workload].slots;
            slots.iter().zip(held).any(|(slot, held)| {
                *held == Held::Value(credential.value) && self.slots[*slot].is_current
            })
        });
        let used_at = if in_use { Some(self.now) } else { credential.used_at };
        let known = used_at.map(|used| used.min(self.now - facts.lag.as_millis() as Millis))?;
        let granularity = facts.granularity.as_millis().max(1) as Millis;
        Some(known - known.rem_euclid(granularity))
    }

    fn extend(&mut self, secret: usize, name: &str) -> Result<Answer, CallError> {
        let until = self.now + self.secrets[secret].lifetime.unwrap_or(3_600_000);
        let Some(index) = self.find(secret, name, None) else {
            return Err(Refusal::operator(RefusalKind::NotFound, "no such lease").into());
        };
        self.secrets[secret].credentials[index].expires_at = Some(until);
        Ok(Answer::Until(until))
    }

    fn write(&mut self, secret: usize, edits: &[Edit]) -> Result<Answer, CallError> {
        for edit in edits {
            let held = self.slots[edit.slot].held;
            // What cannot be read cannot be compared either.
            let compares = !self.slots[edit.slot].tells_time_only;
            let accept = edit.accept.as_ref().filter(|_| compares);
            let accepted = accept.is_none_or(|accept| held == edit.value || accept.contains(&held));
            if !accepted {
                return Err(Refusal::operator(
                    RefusalKind::Conflict,
                    "the slot holds something else",
                )
                .into());
            }
        }
        let changed = edits.iter().any(|edit| self.slots[edit.slot].held != edit.value);
        for edit in edits {
            self.check_write(secret, edit);
            let slot = &mut self.slots[edit.slot];
            slot.written = edit.value;
            slot.was_told = false;
            if changed {
                slot.before_write = slot.held;
            }
            if slot.held != edit.value {
                slot.before = slot.held;
            }
            slot.hold(edit.value, self.now);
        }
        if changed {
            self.check_never_zero();
            self.show_to_the_live(edits);
        }
        Ok(Answer::Written(changed))
    }

    fn observe(
        &self,
        workload: usize,
        slots: &[usize],
        hidden: bool,
    ) -> SmallVec<[(Millis, SmallVec<[Held; 4]>); 4]> {
        if hidden {
            return SmallVec::new();
        }
        let known = &self.workloads[workload];
        let shown = |replica: &Replica| {
            let held = slots.iter().map(|slot| {
                let index = known.slots.iter().position(|known| known == slot);
                index.and_then(|index| replica.held.get(index).copied()).unwrap_or(Held::Absent)
            });
            (replica.started_wall, held.collect())
        };
        known.replicas.iter().map(shown).collect()
    }

    /// Which replicas take a token that was signed with a value.
    fn present(&self, workload: usize, secret: usize, value: u16) -> SmallVec<[bool; 4]> {
        let known = &self.workloads[workload];
        let takes = |replica: &Replica| {
            known.slots.iter().zip(&replica.held).any(|(slot, held)| {
                self.slots[*slot].secret == secret && *held == Held::Value(value)
            })
        };
        known.replicas.iter().filter(|replica| replica.up == Up::Serving).map(takes).collect()
    }

    pub(crate) fn serving(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.workloads.iter().enumerate().flat_map(|(workload, known)| {
            let up =
                known.replicas.iter().enumerate().filter(|(_, replica)| replica.up == Up::Serving);
            up.map(move |(replica, _)| (workload, replica))
        })
    }
}

/// Replicas.
impl World {
    /// Whether a workload of a secret cannot come up for the value that the store of another secret holds.
    pub(crate) fn is_held_down_by_another(&self, secret: usize) -> bool {
        let read = self.secrets[secret]
            .workloads
            .iter()
            .flat_map(|workload| &self.workloads[*workload].slots);
        let mut others = read.map(|slot| &self.slots[*slot]).filter(|slot| slot.secret != secret);
        others.any(|slot| slot.is_current && self.is_bad(slot.held))
    }

    /// Whether a rotation is parked at a roll of replicas whose start times are told by the second.
    pub(crate) fn tells_starts_by_the_second(&self, parked: &ParkReason) -> bool {
        matches!(parked, ParkReason::OutOfPatience { step: Step::Roll { workload, .. } }
            if self.workloads[usize::from(*workload)].granularity == 1_000)
    }

    fn is_bad(&self, held: Held) -> bool {
        matches!(held, Held::Value(value) if self.values[usize::from(value)].bad)
    }

    fn begin_roll(&mut self, call: usize, workload: usize, expected: &Expected, skips: bool) {
        let mut left: SmallVec<[usize; 4]> = (0..self.workloads[workload].replicas.len())
            .filter(|replica| !self.proves(workload, *replica, expected))
            .collect();
        if skips {
            left.truncate(left.len() / 2);
        }
        left.reverse();
        self.workloads[workload].rolls.push(Roll { call, waits_for: None, left });
        self.roll_on(workload);
    }

    fn proves(&mut self, workload: usize, replica: usize, expected: &Expected) -> bool {
        let known = &self.workloads[workload];
        if !known.shows_slots {
            let started = known.replicas[replica].started_wall;
            let untouched = !known.is_live
                && expected
                    .untouched_before
                    .is_some_and(|before| started + known.granularity < before);
            return known.replicas[replica].up == Up::Serving
                && (untouched || started > expected.held_since + known.granularity);
        }
        let held: SmallVec<[(Held, Option<Fingerprint>); 4]> = expected
            .slots
            .iter()
            .map(|(slot, wanted)| {
                let index = known.slots.iter().position(|known| known == slot);
                (
                    index
                        .and_then(|index| known.replicas[replica].held.get(index).copied())
                        .unwrap_or(Held::Absent),
                    *wanted,
                )
            })
            .collect();
        let up = self.workloads[workload].replicas[replica].up == Up::Serving;
        up && held.into_iter().all(|(held, wanted)| self.fingerprint_of(held) == wanted)
    }

    pub(crate) fn fingerprint_of(&mut self, held: Held) -> Option<Fingerprint> {
        match held {
            Held::Absent => None,
            Held::Empty => Some(self.fingerprinter.of(b"")),
            Held::Value(value) => Some(self.fingerprint(value)),
        }
    }

    /// Lets every roll of a workload go on: with its next replica once the one before is up, to its end where one does not come up.
    fn roll_on(&mut self, workload: usize) {
        let mut index = 0;
        while index < self.workloads[workload].rolls.len() {
            let roll = &self.workloads[workload].rolls[index];
            let up = roll
                .waits_for
                .map_or(Up::Serving, |replica| self.workloads[workload].replicas[replica].up);
            match up {
                Up::Starting => index += 1,
                Up::Crashed => {
                    let roll = self.workloads[workload].rolls.remove(index);
                    let failed = Refusal::operator(
                        RefusalKind::WorkloadFailed,
                        "a replica does not come up",
                    );
                    self.answer(roll.call, Err(failed.into()));
                }
                Up::Serving => match self.workloads[workload].rolls[index].left.pop() {
                    Some(replica) => {
                        self.workloads[workload].rolls[index].waits_for = Some(replica);
                        self.restart(workload, replica);
                        index += 1;
                    }
                    None => {
                        let roll = self.workloads[workload].rolls.remove(index);
                        self.answer(roll.call, Ok(Answer::Plain));
                    }
                },
            }
        }
    }

    fn restart(&mut self, workload: usize, replica: usize) {
        let restart_for = self.workloads[workload].restart_for;
        self.stop(workload, replica);
        let known = &mut self.workloads[workload].replicas[replica];
        known.up = Up::Starting;
        known.generation += 1;
        let generation = known.generation;
        self.at(self.now + restart_for, Act::Start { workload, replica, generation });
    }

    fn start(&mut self, workload: usize, replica: usize, generation: u32) {
        if self.workloads[workload].replicas[replica].generation == generation {
            self.read_stores(workload, replica);
        }
        self.at(self.now + READY_FOR, Act::RollOn(workload));
    }

    fn stop(&mut self, workload: usize, replica: usize) {
        let now = self.now;
        let known = &self.workloads[workload];
        if known.replicas[replica].up != Up::Serving {
            return;
        }
        let held: SmallVec<[(usize, u16); 4]> = known
            .slots
            .iter()
            .zip(&known.replicas[replica].held)
            .filter_map(|(slot, held)| match held {
                Held::Value(value) if self.slots[*slot].is_current => {
                    Some((self.slots[*slot].secret, *value))
                }
                _ => None,
            })
            .collect();
        for (secret, value) in held {
            let secret = &mut self.secrets[secret];
            match secret.signed.iter_mut().find(|(known, _)| *known == value) {
                Some((_, at)) => *at = now,
                None => secret.signed.push((value, now)),
            }
            for credential in secret.credentials.iter_mut().filter(|known| known.value == value) {
                credential.used_at = Some(now);
            }
        }
    }

    /// Replicas that read while they run see a write, each by chance and when it happens to look.
    fn show_to_the_live(&mut self, edits: &[Edit]) {
        for workload in 0..self.workloads.len() {
            let known = &self.workloads[workload];
            if !known.is_live || !edits.iter().any(|edit| known.slots.contains(&edit.slot)) {
                continue;
            }
            for replica in 0..known.replicas.len() {
                let generation = self.workloads[workload].replicas[replica].generation;
                if self.random.chance(50) {
                    let at = self.now + self.random.between(1, 3_000);
                    self.at(at, Act::Reread { workload, replica, generation });
                }
            }
        }
    }

    /// A replica takes up what its stores hold, and keeps what it has where it could not work with that.
    fn reread(&mut self, workload: usize, replica: usize, generation: u32) {
        let known = &self.workloads[workload];
        let held: SmallVec<[Held; 4]> =
            known.slots.iter().map(|slot| self.slots[*slot].held).collect();
        let mut slots = known.slots.iter().zip(&held);
        let bad = slots.any(|(slot, held)| self.slots[*slot].is_current && self.is_bad(*held));
        let reader = &known.replicas[replica];
        if bad || reader.up != Up::Serving || reader.generation != generation {
            return;
        }
        self.stop(workload, replica);
        self.workloads[workload].replicas[replica].held = held;
        self.check_never_zero();
        self.check_tokens();
    }

    /// A replica comes up with what its stores hold at this moment.
    pub(crate) fn read_stores(&mut self, workload: usize, replica: usize) {
        self.stop(workload, replica);
        let wall = self.wall().millis();
        let held: SmallVec<[Held; 4]> =
            self.workloads[workload].slots.iter().map(|slot| self.slots[*slot].held).collect();
        let mut slots = self.workloads[workload].slots.iter().zip(&held);
        let bad = slots.any(|(slot, held)| self.slots[*slot].is_current && self.is_bad(*held));
        let known = &mut self.workloads[workload].replicas[replica];
        known.held = held;
        known.started_wall = wall;
        known.generation += 1;
        known.up = if bad { Up::Crashed } else { Up::Serving };
        self.check_never_zero();
        self.check_tokens();
    }
}

impl Request {
    pub(crate) fn kind(&self) -> RequestKind {
        match self {
            Self::Mint { .. } => RequestKind::Mint,
            Self::Write { .. } => RequestKind::Write,
            Self::Roll { .. } => RequestKind::Roll,
            Self::Read { .. } | Self::Changed { .. } => RequestKind::Read,
            Self::Observe { .. } => RequestKind::Observe,
            Self::Ask { .. } => RequestKind::Ask,
            Self::End { .. } | Self::Extend { .. } | Self::CleanUp => RequestKind::OtherWrite,
            Self::Check
            | Self::Examine { .. }
            | Self::Verify { .. }
            | Self::List { .. }
            | Self::Reread { .. }
            | Self::LastUsed { .. }
            | Self::Present { .. } => RequestKind::OtherRead,
        }
    }
}

/// The bytes of a value: they carry its number.
pub(crate) fn bytes_of(value: u16) -> [u8; 12] {
    let mut bytes = *b"sim-value-..";
    bytes[10..].copy_from_slice(&value.to_be_bytes());
    bytes
}

/// What a slot with these bytes holds.
pub(crate) fn held_of(bytes: &[u8]) -> Held {
    match bytes {
        [] => Held::Empty,
        [.., high, low] => Held::Value(u16::from_be_bytes([*high, *low])),
        [_] => Held::Absent,
    }
}
