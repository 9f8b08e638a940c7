//! One life: rotations from plan to outcome, with faults, and then without.
//!
//! The executor is a loop over two queues, the world's acts and the wake times of the engine's tasks, in order of true time.
//! The engine's own futures run in it unchanged; a crash drops them where they stand, a pause leaves them unpolled. After the
//! faults everything is healed, former processes are proven dead, and what is left must come to rest by itself.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use keywheel_core::call::RefusalKind;
use keywheel_core::event::{Event, Outcome, ParkReason, Step};
use keywheel_core::fingerprint::Fingerprinter;
use keywheel_core::inventory::{Inventory, OpenRotation, Version};
use keywheel_core::plan::{Mode, Plan, Reason, VersionRef};
use keywheel_core::rotation::Rotation;
use keywheel_core::secret::SecretName;
use keywheel_core::strategy::Side;
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::{IssuedId, Stage, State as VersionState, VersionId};
use keywheel_engine::limits::Limits;
use keywheel_engine::request::secrets;
use keywheel_engine::run::{Group, Ran, Until};
use keywheel_engine::{Engine, EngineError, Watch, recover};
use keywheel_journal::memory::MemoryJournal;
use keywheel_journal::{Actor, Holder, Journal, JournalError};
use smallvec::SmallVec;
use zeroize::Zeroizing;

use crate::drivers::{Endless, SimBuild, SimClock, index};
use crate::faults::{Fault, Hit, Hits, StepKind};
use crate::invariants::Violation;
use crate::journal::SimJournal;
use crate::scenario::{self, Scenario, Shape};
use crate::world::{self, EPOCH, Kind, Millis, Order, Planned, RequestKind, Shared, State, Up};

/// What a life came to.
#[derive(Clone)]
pub struct Verdict {
    /// The first invariant that did not hold.
    pub violation: Option<Violation>,
    /// The pairs of step and fault that were reached.
    pub hit: Hit,
    /// The faults that were done.
    pub fired: Vec<Fault>,
    /// How the rotations ended; none for one that waits for an operator.
    pub outcomes: Vec<Option<Outcome>>,
    /// How many rotations with at least one fault ended.
    pub lifecycles: u64,
    /// How often a check ran.
    pub checks: u64,
    pub(crate) trace: Vec<(StepKind, Hits, RequestKind)>,
}

/// How a life is led.
#[derive(Clone, Default)]
pub(crate) struct Options {
    pub(crate) focus: Option<(StepKind, Fault)>,
    pub(crate) shape: Option<Shape>,
    pub(crate) faults: Option<Vec<Planned>>,
    pub(crate) trace: bool,
    pub(crate) log: bool,
}

/// Leads the life of a seed.
pub(crate) fn lead(seed: u64, options: &Options) -> Verdict {
    let mut life = Life::new(seed, options);
    life.adopt();
    life.begin();
    life.until_rest(FAULTY_FOR);
    if life.violation().is_none() {
        life.heal();
    }
    life.verdict()
}

/// How long the phase with faults lasts at most.
const FAULTY_FOR: Millis = 400 * 86_400_000;
/// How long healed rotations may take to come to rest.
const HEALED_FOR: Millis = 60 * 86_400_000;
/// How many acknowledged commits a journal lacks at most that is put in the place of another.
const MOST_LOST: usize = 12;
/// How long that takes: no call that is under way lands later.
const PUT_BACK_AFTER: Millis = 120_000;
/// More turns than any life takes: a life that takes them stands still.
const TURNS: u64 = 20_000;

struct Life {
    shared: Shared,
    journal: Arc<MemoryJournal>,
    processes: Vec<Process>,
    tasks: Vec<Task>,
    groups: Vec<Duty>,
    shapes: SmallVec<[Shape; 3]>,
    bad: bool,
    unidentified: bool,
    turns: u64,
    log: bool,
}

struct Process {
    engine: Arc<Engine>,
    stop: Arc<AtomicBool>,
    held_until: Millis,
}

type Running = Pin<Box<dyn Future<Output = Result<Ran, EngineError>>>>;

struct Task {
    process: usize,
    group: usize,
    running: Option<Running>,
    woken: Arc<Woken>,
    waker: Waker,
}

/// Whether another task woke this one: by leaving a place at a limit that it waits for. Everything else that a task waits for
/// has a time.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What people want of the rotations of one group.
struct Duty {
    plans: Vec<Arc<Plan>>,
    secrets: Vec<SecretName>,
    next: Option<(Millis, Job)>,
    wanted: Option<Job>,
    at_rest: bool,
    failures: u32,
    undo_granted: Granted,
}

/// The secrets whose rotations an operator was allowed to undo: those of a batch that had not ended by then.
type Granted = Arc<Mutex<Vec<SecretName>>>;

/// What a process is started for.
#[derive(Clone)]
enum Job {
    Begin,
    Recover,
    Undo,
    LetGoOn,
    CloseWindow,
    Emergency,
    TakeOver(Arc<Plan>),
}

struct SimWatch {
    world: Shared,
    process: usize,
    log: bool,
}

impl Watch for SimWatch {
    fn recorded(&self, rotation: &Rotation, event: &Event, at: Timestamp) {
        let secret = index(rotation.plan().secret.name());
        let mut world = self.world.lock();
        world.check_recorded(self.process, secret, rotation, event, at);
        if self.log {
            log(&world, self.process, secret, event);
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "a replay shows its records; the library does so only when it is asked to"
)]
fn log(world: &world::World, process: usize, secret: usize, event: &Event) {
    let text = match event {
        Event::Planned(_) => "Planned".to_owned(),
        event => format!("{event:?}"),
    };
    eprintln!("{:>12.3} s  process {process} secret {secret}  {text}", world.now as f64 / 1_000.0);
}

impl Life {
    fn new(seed: u64, options: &Options) -> Self {
        let journal = MemoryJournal::new("simulation", Zeroizing::new([7; 32]))
            .with_audit(seed.is_multiple_of(64));
        let fingerprinter: Arc<Fingerprinter> = Arc::clone(&journal.installation().fingerprinter);
        let Scenario { mut world, groups, shapes, bad, unidentified } =
            scenario::draw(seed, fingerprinter, options.focus, options.shape);
        world.tracing = options.trace;
        world.agenda = match &options.faults {
            Some(faults) => faults.clone(),
            None => faults(&mut world, options.focus),
        };
        let loses = |fault| world.agenda.iter().any(|planned| planned.fault == fault);
        let journal = match (loses(Fault::TailLost), loses(Fault::JournalBehind)) {
            (_, true) => journal.with_undo(MOST_LOST + 1),
            (true, false) => journal.with_undo(2),
            (false, false) => journal,
        };
        let groups = groups
            .into_iter()
            .map(|plans| Duty {
                secrets: plans.iter().map(|plan| plan.secret.clone()).collect(),
                plans,
                next: None,
                wanted: None,
                at_rest: false,
                failures: 0,
                undo_granted: Arc::default(),
            })
            .collect();
        let journal = Arc::new(journal);
        world.journal = Some(Arc::clone(&journal));
        Self {
            shared: Shared::new(world),
            journal,
            processes: Vec::new(),
            tasks: Vec::new(),
            groups,
            shapes,
            bad,
            unidentified,
            turns: 0,
            log: options.log,
        }
    }

    fn violation(&self) -> Option<Violation> {
        self.shared.lock().violation.clone()
    }

    /// The secrets are known to the inventory before anything is rotated.
    fn adopt(&mut self) {
        let process = self.start_process();
        let engine = Arc::clone(&self.processes[process].engine);
        for plan in self.groups.iter().flat_map(|group| group.plans.clone()) {
            let mut row = Inventory::new(plan.secret.clone());
            if let Some(previous) = &plan.previous {
                // A lease of which half is over: it is extended before all else.
                let lease = plan.issuer.facts.lease.map(|_| EPOCH);
                let lasts =
                    |epoch: Millis, days: i64| Timestamp::from_millis(epoch + days * 86_400_000);
                row.versions.push(Version {
                    version: previous.version,
                    stage: Some(Stage::Current),
                    state: VersionState::Active,
                    issued: previous.issued.clone(),
                    label: None,
                    created_at: lease.map(|epoch| lasts(epoch, -35)),
                    expires_at: lease.map(|epoch| lasts(epoch, 5)),
                    extended_at: None,
                    dies_at: None,
                    gave_less: false,
                    fingerprint: None,
                });
                row.next = plan.pending;
            }
            let secret = row.secret.clone();
            let adopted = ready(engine.note(&secret, "adopt", |_| Some(row)));
            debug_assert!(adopted.is_ok());
        }
    }

    fn begin(&mut self) {
        for group in 0..self.groups.len() {
            let process = if group == 0 || self.shared.lock().random.chance(50) {
                0
            } else {
                self.start_process()
            };
            self.spawn(process, group, Job::Begin);
        }
        if self.groups.len() == 1 && self.shared.lock().random.chance(2) {
            self.shared.lock().racing = true;
            let mut plans = self.groups[0].plans.clone();
            plans.iter_mut().for_each(|plan| Arc::make_mut(plan).reason = Reason::Scheduled);
            self.spawn_with(0, 0, Job::Begin, plans);
        }
    }

    fn start_process(&mut self) -> usize {
        let number = self.processes.len();
        let world = self.shared.clone();
        let (filled, journal) = (world.clone(), Arc::clone(&self.journal));
        let engine = Engine {
            journal: Arc::new(SimJournal { inner: journal, world: world.clone(), process: number }),
            clock: Arc::new(SimClock(world.clone())),
            build: Arc::new(SimBuild { world: world.clone(), process: number }),
            random: Arc::new(move |buffer| buffer.fill(filled.lock().random.next() as u8)),
            holder: Holder { id: format!("p{number}"), name: String::new() },
            actor: Actor {
                account: "sim".into(),
                origin: None,
                host: String::new(),
                method: "simulation".into(),
                authenticated: true,
            },
            limits: Limits::new(1 + (number % 2)),
            watch: Arc::new(SimWatch { world: world.clone(), process: number, log: self.log }),
        };
        world.lock().alive.push(true);
        self.processes.push(Process {
            engine: Arc::new(engine),
            stop: Arc::default(),
            held_until: Millis::MIN,
        });
        number
    }

    fn spawn(&mut self, process: usize, group: usize, job: Job) {
        let plans = self.groups[group].plans.clone();
        self.spawn_with(process, group, job, plans);
    }

    fn spawn_with(&mut self, process: usize, group: usize, job: Job, plans: Vec<Arc<Plan>>) {
        let engine = Arc::clone(&self.processes[process].engine);
        let stop = Arc::clone(&self.processes[process].stop);
        let duty = &mut self.groups[group];
        duty.at_rest = false;
        duty.next = None;
        let (secrets, granted) = (duty.secrets.clone(), Arc::clone(&duty.undo_granted));
        let running: Running = Box::pin(work(engine, job, secrets, plans, stop, granted));
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        self.tasks.push(Task { process, group, running: Some(running), woken, waker });
        let mut world = self.shared.lock();
        let now = world.now;
        world.wakes.push(now);
    }
}

/// What one process does for one group.
async fn work(
    engine: Arc<Engine>,
    job: Job,
    secrets: Vec<SecretName>,
    plans: Vec<Arc<Plan>>,
    stop: Arc<AtomicBool>,
    undo_granted: Granted,
) -> Result<Ran, EngineError> {
    let mut group = match &job {
        Job::Begin => engine.begin(&plans).await?,
        Job::TakeOver(plan) => engine.begin(std::slice::from_ref(plan)).await?,
        _ => {
            let groups = engine.open_groups().await?;
            let open =
                groups.into_iter().find(|open| open.iter().any(|secret| secrets.contains(secret)));
            let open = open.ok_or_else(|| EngineError::NotOpen(secrets[0].to_string()))?;
            engine.recover(&open).await?
        }
    };
    match job {
        Job::Undo => match engine.undo(&mut group, "a person said so").await {
            Ok(()) => grant(&undo_granted, &group),
            Err(EngineError::Refused(_)) => {}
            Err(error) => return Err(error),
        },
        Job::LetGoOn => {
            identify(&engine, &mut group).await?;
            override_gates(&engine, &mut group).await?;
            if turn_away(&engine, &mut group).await? {
                grant(&undo_granted, &group);
            } else {
                match engine.let_go_on(&mut group).await {
                    // Another rotation is moving: the operator comes again.
                    Err(EngineError::Journal(JournalError::Busy { .. })) => return Ok(Ran::Rested),
                    answer => answer?,
                }
            }
        }
        Job::CloseWindow => {
            engine
                .say(&mut group, &Event::WindowClosed { because: "a person said so".into() })
                .await?
        }
        Job::Begin | Job::Recover | Job::Emergency | Job::TakeOver(_) => {}
    }
    engine.run(&mut group, &Until { rest: true, patience: Span::ZERO, stop: &stop }).await
}

fn grant(undo_granted: &Granted, group: &Group) {
    undo_granted.lock().expect("one thread").extend(secrets(group));
}

/// An operator names the ids that rotations wait for.
async fn identify(engine: &Engine, group: &mut Group) -> Result<(), EngineError> {
    let alone = group.rotations().count() == 1;
    let wanted: Vec<VersionId> = group
        .rotations()
        .filter_map(|rotation| match rotation.parked() {
            Some(ParkReason::IdUnknown { version }) if *version == VersionId(7) => Some(*version),
            _ => None,
        })
        .collect();
    let known = group.rotations().next().map(|rotation| rotation.plan().strategy);
    if let (true, [version], Some(strategy)) = (alone, wanted.as_slice(), known) {
        let issued = match strategy {
            keywheel_core::strategy::Strategy::Alternate => {
                IssuedId { id: "login_a".into(), generation: Some(1) }
            }
            _ => IssuedId::new("k0"),
        };
        engine.say(group, &Event::Identified { version: *version, issued }).await?;
    }
    Ok(())
}

/// An operator who sees that a gate is closed for the clocks' sake alone says so.
async fn override_gates(engine: &Engine, group: &mut Group) -> Result<(), EngineError> {
    let closed =
        group.rotations().any(|rotation| rotation.parked() == Some(&ParkReason::GateClosed));
    let idle = group
        .rotations()
        .all(|rotation| rotation.open_step().is_none() && rotation.outcome().is_none());
    if closed && idle {
        engine
            .say(group, &Event::Overridden { because: "the uses were before the promotion".into() })
            .await?;
    }
    Ok(())
}

/// An operator turns away from a promoted version with which replicas do not come up. A rival that puts the former value back
/// just before a roll hides that until after the promotion, and then a rotation goes back on an operator's word alone.
async fn turn_away(engine: &Engine, group: &mut Group) -> Result<bool, EngineError> {
    let refused = |rotation: &Rotation| {
        matches!(
            rotation.parked(),
            Some(ParkReason::Refused { step: Step::Roll { .. }, refusal })
                if refusal.kind == RefusalKind::WorkloadFailed
        ) && rotation.promoted_side() == Side::Pending
    };
    if !group.rotations().any(refused) {
        return Ok(false);
    }
    match engine.undo(group, "replicas do not come up with the new version").await {
        Ok(()) => Ok(true),
        Err(EngineError::Refused(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The executor.
impl Life {
    /// Goes on until every group is at rest, or until `span` has passed.
    fn until_rest(&mut self, span: Millis) {
        let end = self.shared.lock().now + span;
        while self.turn(end) {
            self.turns += 1;
            if self.turns > TURNS {
                // Whoever waits for the wave of a rotation that an operator must see to waits for as long as that takes.
                if self
                    .groups
                    .iter()
                    .enumerate()
                    .any(|(number, group)| group.at_rest && self.is_open(number))
                {
                    self.turns = 0;
                    return;
                }
                self.shared
                    .lock()
                    .violate("L01", || "the life goes on for ever without coming to rest".into());
                return;
            }
        }
    }

    fn turn(&mut self, end: Millis) -> bool {
        let (act, violated) = {
            let world = self.shared.lock();
            (world.next_act(), world.violation.is_some())
        };
        if violated || self.groups.iter().all(|group| group.at_rest) {
            return false;
        }
        let task = self.next_task();
        let start = self.next_start();
        let times = [act, task.map(|(at, _)| at), start.map(|(at, _)| at)];
        let Some(next) = times.into_iter().flatten().min() else {
            self.shared
                .lock()
                .violate("L01", || "a rotation is open, and nothing will ever happen again".into());
            return false;
        };
        if next > end {
            self.shared
                .lock()
                .violate("L02", || "the rotations do not come to rest in time".into());
            return false;
        }
        if act == Some(next) {
            self.shared.lock().act();
        } else if let Some((at, group)) = start.filter(|(at, _)| *at == next) {
            self.advance(at);
            self.start(group);
        } else if let Some((at, task)) = task {
            self.advance(at);
            self.poll(task);
        }
        true
    }

    fn advance(&self, to: Millis) {
        let mut world = self.shared.lock();
        world.now = world.now.max(to);
    }

    fn next_task(&self) -> Option<(Millis, usize)> {
        let world = self.shared.lock();
        let due = self.tasks.iter().enumerate().filter(|(_, task)| task.running.is_some()).map(
            |(number, task)| {
                (world.wakes[number].max(self.processes[task.process].held_until), number)
            },
        );
        due.filter(|(at, _)| *at < Millis::MAX).min()
    }

    fn next_start(&self) -> Option<(Millis, usize)> {
        self.groups
            .iter()
            .enumerate()
            .filter_map(|(group, duty)| Some((duty.next.as_ref()?.0, group)))
            .min()
    }

    /// Starts the process that a group waits for.
    fn start(&mut self, group: usize) {
        let Some((_, job)) = self.groups[group].next.take() else { return };
        let job = match job {
            Job::Emergency => {
                self.emergency(group).map_or(Job::Recover, |plan| Job::TakeOver(Arc::new(plan)))
            }
            job => job,
        };
        let process = self.start_process();
        self.spawn(process, group, job);
    }

    fn poll(&mut self, number: usize) {
        {
            let mut world = self.shared.lock();
            world.task = number;
            world.wakes[number] = Millis::MAX;
            world.clock_reads = 0;
        }
        let Task { running: Some(running), waker, .. } = &mut self.tasks[number] else { return };
        let mut context = Context::from_waker(waker);
        let polled = match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(&mut context))) {
            Ok(polled) => polled,
            Err(panic) if panic.is::<Endless>() => return self.stands_still(),
            Err(panic) => resume_unwind(panic),
        };
        let orders = std::mem::take(&mut self.shared.lock().orders);
        match polled {
            Poll::Ready(ended) => self.ended(number, ended),
            Poll::Pending => {}
        }
        for order in orders {
            self.obey(number, order);
        }
        self.wake_others();
    }

    fn stands_still(&self) {
        let what = || "the engine goes on for ever without waiting for anything".into();
        self.shared.lock().violate("L01", what);
    }

    fn wake_others(&self) {
        for (number, task) in self.tasks.iter().enumerate() {
            if task.woken.0.swap(false, Ordering::SeqCst) {
                let mut world = self.shared.lock();
                world.wakes[number] = world.wakes[number].min(world.now);
            }
        }
    }

    fn obey(&mut self, number: usize, order: Order) {
        let (process, group) = (self.tasks[number].process, self.tasks[number].group);
        let now = self.shared.lock().now;
        match order {
            Order::Crash => self.crash(process, true),
            Order::Reboot => {
                for process in 0..self.processes.len() {
                    self.crash(process, true);
                }
            }
            Order::JournalBehind => self.put_journal_back(),
            Order::Hold(span) => self.processes[process].held_until = now + span,
            Order::HoldAll(span) => {
                self.processes.iter_mut().for_each(|process| process.held_until = now + span)
            }
            Order::TakeOverAt(at) => self.groups[group].next = Some((at, Job::Recover)),
            Order::Stop => self.processes[process].stop.store(true, Ordering::SeqCst),
            Order::SecondEngine => {
                let second = self.start_process();
                self.spawn(second, group, Job::Recover);
            }
            Order::SecondTask => self.spawn(process, group, Job::Recover),
            Order::Undo => self.want(process, group, Job::Undo),
            Order::CloseWindow => self.want(process, group, Job::CloseWindow),
            Order::Emergency => self.want(process, group, Job::Emergency),
        }
    }

    /// Every process dies, and what is started later finds the journal as it was some commits ago.
    fn put_journal_back(&mut self) {
        for process in 0..self.processes.len() {
            self.crash(process, true);
        }
        let mut world = self.shared.lock();
        // Where a store lacks writes as well, nobody is left to ask: one of them is lost at a time.
        let wanted = match world.fired.contains(&Fault::StoreBehind) {
            true => 0,
            false => 1 + world.random.below(MOST_LOST as u64) as usize,
        };
        let lost = self.journal.lose_tail(wanted.min(world.commits));
        world.commits -= lost;
        world.read_again(&self.journal);
        let now = world.now;
        for duty in &mut self.groups {
            let job = duty.next.take().map(|(_, job)| job).or(duty.wanted.take());
            let after = PUT_BACK_AFTER + world.random.between(0, 600_000);
            duty.next = Some((now + after, job.unwrap_or(Job::Recover)));
            duty.at_rest = false;
        }
    }

    /// An operator stops the process, by a signal or harder, and then says what they want.
    fn want(&mut self, process: usize, group: usize, job: Job) {
        self.groups[group].wanted = Some(job);
        let gently = self.shared.lock().random.chance(60);
        if gently {
            self.processes[process].stop.store(true, Ordering::SeqCst)
        } else {
            self.crash(process, true)
        }
    }

    /// A process dies: its futures are dropped where they stand. Others know that it is dead, or must wait for its lease.
    fn crash(&mut self, process: usize, known_dead: bool) {
        let now = {
            let mut world = self.shared.lock();
            world.alive[process] = false;
            world.now
        };
        if known_dead && self.shared.lock().random.chance(80) {
            self.journal.declare_dead(&self.processes[process].engine.holder);
        }
        for number in 0..self.tasks.len() {
            if self.tasks[number].process == process && self.tasks[number].running.take().is_some()
            {
                let group = self.tasks[number].group;
                self.restart_later(group, now);
            }
        }
    }

    /// Cron starts another process, for what is wanted or to go on.
    fn restart_later(&mut self, group: usize, now: Millis) {
        let running = self.tasks.iter().any(|task| task.group == group && task.running.is_some());
        if running {
            return;
        }
        let pause = {
            let mut world = self.shared.lock();
            if world.random.chance(80) {
                world.random.between(500, 20_000)
            } else {
                world.random.between(60_000, 3_600_000)
            }
        };
        let duty = &mut self.groups[group];
        let job = duty.wanted.take().unwrap_or(Job::Recover);
        if duty.next.is_none() {
            duty.next = Some((now + pause, job));
        }
    }

    fn ended(&mut self, number: usize, ended: Result<Ran, EngineError>) {
        self.tasks[number].running = None;
        let (process, group) = (self.tasks[number].process, self.tasks[number].group);
        let now = self.shared.lock().now;
        if self.log {
            note_end(now, process, &ended);
        }
        let others = self.tasks.iter().any(|task| task.group == group && task.running.is_some());
        match ended {
            Ok(Ran::Rested) if self.groups[group].wanted.is_none() => {
                self.groups[group].at_rest = !others
            }
            Ok(_) => self.leave(process, group, now),
            Err(EngineError::NotOpen(_)) => self.not_open(group, now, others),
            Err(EngineError::Journal(
                JournalError::Held { .. } | JournalError::OpenAlready { .. },
            )) if others => {}
            Err(EngineError::Journal(JournalError::Held { until, .. })) => {
                let free_at = self.shared.lock().true_time(until);
                self.groups[group].next = Some((free_at.max(now + 1_000), Job::Recover));
            }
            Err(error) => {
                self.fail(group, &error);
                self.leave(process, group, now);
            }
        }
    }

    /// A process that ended is gone; what is open is taken up by the next one.
    fn leave(&mut self, process: usize, group: usize, now: Millis) {
        let busy = self.tasks.iter().any(|task| task.process == process && task.running.is_some());
        if !busy {
            self.shared.lock().alive[process] = false;
            self.journal.declare_dead(&self.processes[process].engine.holder);
        }
        self.restart_later(group, now);
    }

    fn fail(&mut self, group: usize, error: &EngineError) {
        self.groups[group].failures += 1;
        let stale_plan =
            matches!(error, EngineError::Refused(refusal) if refusal.kind == RefusalKind::Conflict);
        let legal = stale_plan
            || matches!(
                error,
                EngineError::Journal(
                    JournalError::Storage(_)
                        | JournalError::Stale { .. }
                        | JournalError::OpenAlready { .. }
                )
            );
        if !legal || self.groups[group].failures > 40 {
            let error = error.to_string();
            self.shared.lock().violate("L02", || format!("the engine stops with: {error}"));
        }
    }

    /// Nothing is open: everything has ended, or the first record never became durable.
    fn not_open(&mut self, group: usize, now: Millis, others: bool) {
        if others {
            return;
        }
        let never_begun = self.groups[group].secrets.iter().all(|secret| {
            ready(self.journal.rotations(Some(secret))).is_ok_and(|rotations| rotations.is_empty())
        });
        if never_begun {
            self.groups[group].next = Some((now + 1_000, Job::Begin));
        } else {
            self.groups[group].at_rest = true;
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "a replay shows its records; the library does so only when it is asked to"
)]
fn note_end(now: Millis, process: usize, ended: &Result<Ran, EngineError>) {
    eprintln!("{:>12.3} s  process {process} ends: {ended:?}", now as f64 / 1_000.0);
}

/// Takes what a future that never waits has to give.
pub(crate) fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("the journal in memory never waits"),
    }
}

/// People.
impl Life {
    /// The plan of an emergency that takes the open rotation of a group of one over; both of its versions are suspect.
    fn emergency(&mut self, group: usize) -> Option<Plan> {
        let [secret] = self.groups[group].secrets.as_slice() else { return None };
        let row = ready(self.journal.inventory(secret)).ok()??;
        let open = row.open.as_ref()?.rotation.clone();
        let rotation = ready(recover::read(self.journal.as_ref(), &open)).ok()?;
        if rotation.plan().is_emergency() || rotation.plan().extend {
            return None;
        }
        let suspect = |side: Side| -> Option<VersionRef> {
            let version = rotation.version(side)?;
            let live = side == Side::Previous || rotation.is_minted();
            live.then(|| VersionRef {
                version,
                issued: rotation.issued(version).cloned(),
                state: VersionState::Compromised,
                fingerprint: row.version(version).and_then(|known| known.fingerprint).or_else(
                    || {
                        rotation
                            .plan()
                            .previous
                            .as_ref()
                            .filter(|known| known.version == version)?
                            .fingerprint
                    },
                ),
            })
        };
        let (first, second) = match rotation.promoted_side() {
            Side::Previous => (suspect(Side::Previous), suspect(Side::Pending)),
            Side::Pending => (suspect(Side::Pending), suspect(Side::Previous)),
        };
        let revoke_first = self.shared.lock().random.chance(30);
        let mut plan = Plan::clone(rotation.plan());
        plan.reason = Reason::Compromised;
        plan.mode = Mode::Emergency { revoke_first, stage_for: Span::minutes(10) };
        plan.previous = first;
        plan.suspects = second.into_iter().collect();
        plan.pending = row.next;
        plan.takes_over = Some(open);
        plan.inherits_until = rotation.unsettled_until();
        self.put_in_the_way(&plan);
        Some(plan)
    }
}

/// What emergencies meet.
impl Life {
    /// Now and then a store cannot be reached, or its login is refused, until people see to it.
    fn put_in_the_way(&self, plan: &Plan) {
        let mut world = self.shared.lock();
        if !world.random.chance(30) {
            return;
        }
        let store = world.random.below(plan.stores.len() as u64) as usize;
        let for_good = world.random.chance(50);
        world.in_the_way = Some((index(&plan.stores[store].slots[0].address), for_good));
    }
}

/// After the faults.
impl Life {
    fn heal(&mut self) {
        {
            let mut world = self.shared.lock();
            world.heal();
        }
        self.check_rest(false);
        for process in 0..self.processes.len() {
            self.crash(process, false);
            self.journal.declare_dead(&self.processes[process].engine.holder);
        }
        for _ in 0..3 {
            if self.violation().is_some() || !self.any_open() {
                break;
            }
            for group in 0..self.groups.len() {
                if self.is_open(group) {
                    let process = self.start_process();
                    self.spawn(process, group, Job::LetGoOn);
                }
            }
            self.until_rest(HEALED_FOR);
            for process in 0..self.processes.len() {
                self.journal.declare_dead(&self.processes[process].engine.holder);
                self.shared.lock().alive[process] = false;
            }
        }
        if self.violation().is_none() {
            self.check_rest(true);
        }
    }

    fn any_open(&self) -> bool {
        (0..self.groups.len()).any(|group| self.is_open(group))
    }

    fn is_open(&self, group: usize) -> bool {
        self.groups[group].secrets.iter().any(|secret| {
            ready(self.journal.inventory(secret))
                .ok()
                .flatten()
                .is_some_and(|row| row.open.is_some())
        })
    }
}

/// At rest.
impl Life {
    /// L02, L04, I06, I10, I13, I14, I29: what must be so when nothing happens any more.
    fn check_rest(&mut self, healed: bool) {
        for group in 0..self.groups.len() {
            for secret in self.groups[group].secrets.clone() {
                let number = index(secret.name());
                let Ok(Some(row)) = ready(self.journal.inventory(&secret)) else { continue };
                match (&row.open, &row.last_outcome) {
                    (Some(open), _) => self.check_parked(number, open, healed),
                    (None, Some(outcome)) if healed => {
                        self.check_outcome(number, &secret, *outcome, group)
                    }
                    _ => {}
                }
            }
        }
        if healed && !self.any_open() {
            let leases = ready(self.journal.leases()).unwrap_or_default();
            if !leases.is_empty() {
                self.shared.lock().violate("L02", || format!("wave leases are left: {leases:?}"));
            }
            self.check_audit();
        }
    }

    /// I13, I14: the audit chain verifies, and has a link for every record and every adoption.
    fn check_audit(&self) {
        let mut links = self.shapes.len() as u64;
        for row in ready(self.journal.rotations(None)).unwrap_or_default() {
            links += ready(self.journal.records(&row.rotation))
                .map_or(0, |records| records.len() as u64);
        }
        match ready(self.journal.verify_audit()) {
            Ok(verdict) if verdict.faults.is_empty() && verdict.links == links => {}
            Ok(verdict) if verdict.faults.is_empty() => {
                self.shared.lock().violate("I13", || {
                    format!("{} audit links for {links} records and adoptions", verdict.links)
                });
            }
            other => self
                .shared
                .lock()
                .violate("I14", || format!("the audit chain does not hold: {other:?}")),
        }
    }

    /// L02: a rotation waits for an operator only for a reason that is listed here.
    fn check_parked(&mut self, secret: usize, open: &OpenRotation, healed: bool) {
        let (rotation, parked) = (&open.rotation, open.parked.clone());
        let mut world = self.shared.lock();
        let shape = self.shapes[secret];
        let fired = |faults: &[Fault]| world.fired.iter().any(|fault| faults.contains(fault));
        // What goes forward only cannot turn away from a value that its workloads refuse.
        let stays_bad = self.bad
            && (matches!(shape, Shape::Lease | Shape::Reset) || world.secrets[secret].emergency);
        // What becomes of a change that nobody can read is for a person to say, also once it was taken back.
        let mut slots = world.secrets[secret].slots.iter();
        let is_unread = slots.any(|slot| world.slots[*slot].tells_time_only);
        let is_unread_change = is_unread && fired(&[Fault::RivalEdit, Fault::RivalRevert]);
        let Some(reason) = parked else {
            let waits = self.groups.len() > 1;
            return if waits {
            } else {
                world.violate("L02", || format!("secret {secret} is open and not parked at rest"))
            };
        };
        // What nobody has records of any more is for a person to compare.
        if world.is_behind() {
            return;
        }
        let waits_for_store = world.in_the_way.is_some()
            && !healed
            && matches!(
                reason,
                ParkReason::Refused { step: Step::Write { .. }, .. }
                    | ParkReason::OutOfPatience { step: Step::Write { .. } }
            );
        let open = || ready(recover::read(self.journal.as_ref(), rotation)).ok();
        // The rotation that an emergency was to take over may still be the open one.
        let emergency = waits_for_store.then(open).flatten();
        if let Some(open) = emergency.filter(|open| open.plan().is_emergency()) {
            return world.check_suspects_ended(secret, open.plan());
        }
        let legal = match &reason {
            ParkReason::ProofNeeded => shape == Shape::Append,
            ParkReason::MintUnobservable => matches!(shape, Shape::Blind | Shape::Unlabelled),
            // The operator names the id of an adopted version; that of a mint found by its value alone is nobody's to name.
            ParkReason::IdUnknown { version } => {
                (*version == VersionId(7)
                    && self.unidentified
                    && (!healed || self.groups.iter().any(|group| group.secrets.len() > 1)))
                    || matches!(shape, Shape::OurKeys | Shape::Logins)
                    || world.secrets[secret].emergency
            }
            ParkReason::Refused { refusal, .. } => {
                stays_bad
                    || is_unread_change && refusal.kind == RefusalKind::Conflict
                    || world.is_held_down_by_another(secret)
                    || !healed
                        && (self.bad
                            || fired(&[
                                Fault::Forbidden,
                                Fault::QuotaFull,
                                Fault::RivalEdit,
                                Fault::RivalRevert,
                                Fault::StaleRead,
                                Fault::StoreBehind,
                                Fault::ReplicaRestarts,
                                Fault::ScaleUp,
                            ]))
            }
            ParkReason::RedAfterSuspend => !healed && fired(&[Fault::ProbeRed]),
            ParkReason::GateClosed => {
                is_unread_change
                    || world.is_held_down_by_another(secret)
                    || !healed
                        && fired(&[
                            Fault::RivalEdit,
                            Fault::RivalRevert,
                            Fault::StoreBehind,
                            Fault::WallForward,
                            Fault::WallBack,
                        ])
            }
            // Three tries that fail, one of them for as long as a roll may take, are the end of patience by design. A wall
            // clock that is set back makes some fail, and so does a replica that starts in the second of the write.
            ParkReason::OutOfPatience { .. } | ParkReason::DeathUnproven => {
                let failing = world.fired.len()
                    + usize::from(fired(&[Fault::WallBack]))
                    + usize::from(world.tells_starts_by_the_second(&reason));
                stays_bad
                    || is_unread_change
                    || world.is_held_down_by_another(secret)
                    || !healed
                        && (failing >= 3
                            || fired(&[Fault::RivalEdit, Fault::RivalRevert, Fault::StoreBehind]))
            }
        };
        if !legal {
            world.violate("L02", || format!("secret {secret} ({shape:?}) is parked: {reason}"));
        }
    }

    fn check_outcome(&mut self, secret: usize, name: &SecretName, outcome: Outcome, group: usize) {
        let sealed = ready(self.journal.sealed(name)).unwrap_or_default();
        let mut world = self.shared.lock();
        let shape = self.shapes[secret];
        let emergency = world.secrets[secret].emergency;
        if outcome == Outcome::Superseded {
            return world.violate("L02", || {
                format!("secret {secret} is superseded, and nothing came after")
            });
        }
        if world.fired.is_empty() && !self.bad && outcome != Outcome::Completed {
            return world.violate("L02", || {
                format!("secret {secret} ({shape:?}) is {outcome} although nothing went wrong")
            });
        }
        let granted = self.groups[group].undo_granted.lock().expect("one thread").contains(name);
        if granted && outcome != Outcome::Undone && !emergency && !world.is_behind() {
            return world.violate("I10", || {
                format!("an undo of secret {secret} was granted, and it is {outcome}")
            });
        }
        let kept = usize::from(!sealed.is_empty());
        let versions: SmallVec<[VersionId; 2]> = sealed.iter().map(|key| key.version).collect();
        if versions.windows(2).any(|pair| pair[0] != pair[1]) || kept > 1 {
            return world.violate("I29", || {
                format!("secret {secret} is {outcome}, and these are still sealed: {sealed:?}")
            });
        }
        if world.secrets[secret].kind != Kind::Keys || shape == Shape::Extension {
            return;
        }
        let live: SmallVec<[String; 2]> = world.secrets[secret]
            .credentials
            .iter()
            .filter(|known| !known.bystander && known.state != State::Revoked)
            .map(|known| known.name.clone())
            .collect();
        let orphan_may_be = matches!(shape, Shape::Blind | Shape::Unlabelled | Shape::OurKeys);
        let accounted_for = live.len() == 1 || (orphan_may_be && !live.is_empty());
        if !accounted_for && !world.is_behind() {
            return world.violate("L04", || {
                format!("secret {secret} ({shape:?}) is {outcome}, and these are live: {live:?}")
            });
        }
        let serving_dead = !world.secrets[secret].tampered
            && world.serving().any(|(workload, replica)| {
                let known = &world.workloads[workload];
                known.slots.iter().zip(&known.replicas[replica].held).any(|(slot, held)| {
                    let slot = &world.slots[*slot];
                    slot.secret == secret
                        && slot.is_current
                        && matches!(held, world::Held::Value(value) if !world.works(secret, *value))
                })
            });
        // An emergency whose every record is lost ended a version, and nobody knows before it is asked for again.
        let is_forgotten = world.is_behind() && world.fired.contains(&Fault::Emergency);
        if serving_dead && !is_forgotten {
            world.violate("I01", || {
                format!(
                    "secret {secret} is {outcome}, and a replica holds a value that does not work"
                )
            });
        }
        let crashed = world
            .workloads
            .iter()
            .any(|workload| workload.replicas.iter().any(|replica| replica.up == Up::Crashed));
        if crashed && !self.bad {
            world.violate("L02", || format!("secret {secret} is {outcome}, and a replica is down"));
        }
    }

    fn verdict(mut self) -> Verdict {
        self.tasks.clear();
        let secrets: Vec<SecretName> =
            self.groups.iter().flat_map(|group| group.secrets.clone()).collect();
        let outcomes: Vec<Option<Outcome>> = secrets
            .iter()
            .map(|secret| {
                let row = ready(self.journal.inventory(secret)).ok().flatten()?;
                if row.open.is_some() { None } else { row.last_outcome }
            })
            .collect();
        let mut world = self.shared.lock();
        let lifecycles = if world.fired.is_empty() {
            0
        } else {
            world.book.iter().map(|book| u64::from(book.planned)).sum()
        };
        Verdict {
            violation: world.violation.take(),
            hit: std::mem::take(&mut world.hit),
            fired: world.fired.to_vec(),
            outcomes,
            lifecycles,
            checks: world.checks,
            trace: std::mem::take(&mut world.trace),
        }
    }
}

/// The faults of a seed: the wanted pair first, and a few more.
fn faults(world: &mut world::World, focus: Option<(StepKind, Fault)>) -> Vec<Planned> {
    use world::When;
    let random = &mut world.random;
    let mut planned = Vec::new();
    if let Some((step, fault)) = focus {
        let nth = if random.chance(70) { 0 } else { random.below(3) as u8 };
        match step {
            StepKind::RevokeStray | StepKind::FindMint => {
                let lost = random.pick(&[
                    Fault::AnswerLost,
                    Fault::CrashInFlight,
                    Fault::LateLanding,
                    Fault::AnswerUnclear,
                ]);
                planned.push(Planned { when: When::Step(StepKind::Mint, 0), fault: lost });
            }
            StepKind::Resume => {
                let fault = if random.chance(50) { Fault::ProbeRed } else { Fault::Undo };
                planned.push(Planned {
                    when: When::Step(StepKind::Visit, 6 + random.below(8) as u8),
                    fault,
                });
            }
            _ => {}
        }
        planned.push(Planned { when: When::Step(step, nth), fault });
    }
    for _ in 0..random.below(4) {
        let fault = random.pick(Fault::ALL);
        planned.push(Planned { when: When::From(random.below(60) as u32), fault });
    }
    planned
}
