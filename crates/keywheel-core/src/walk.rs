//! The walk along the line: writes, rolls, evidence and probes, one neighbour move at a time.
//!
//! A move writes every store, rolls every workload, looks at every replica and asks every probe. It has arrived when all of
//! that is proven at one arrangement, and only then does the next move begin.

use smallvec::SmallVec;

use crate::event::{Event, Step};
use crate::facts::ReadBack;
use crate::plan::{Plan, StorePlan, WorkloadPlan};
use crate::rotation::{Next, Why, wait};
use crate::strategy::{Line, Position, Side};
use crate::time::{Span, Timestamp};

/// Where a rotation stands on its line.
#[derive(Clone, Debug)]
pub struct Walk {
    position: Position,
    arrived_at: Timestamp,
    /// When a write was intended first.
    touched_at: Option<Timestamp>,
    /// Whether starts can be compared with that: not once the wall clock was set back, when a replica that started after it may
    /// seem to have started before.
    starts_tell: bool,
    /// Whether readers may ever have used a side: it was current in an arrangement that a write was intended for.
    used: [bool; 2],
    stores: SmallVec<[Store; 2]>,
    moving: Option<Move>,
    probes: bool,
}

/// What is known of one store.
#[derive(Clone, Debug)]
struct Store {
    /// The arrangement it certainly holds.
    at: Option<Position>,
    /// What it certainly held before the write that is under way, and still holds if that is the same.
    before: Option<Position>,
    since: Timestamp,
    /// Whether a write to it was ever intended.
    touched: bool,
    /// Whether such a write was made, or may have been.
    given: bool,
    /// When it changed each slot at our last write, before that at the capture, where that is all it tells; empty once a write
    /// had no answer.
    changed_at: SmallVec<[Option<Timestamp>; 1]>,
    /// Whether that is all it tells: then a write that lands late looks like somebody else's, whatever it wrote.
    tells_time_only: bool,
    /// Writes without an answer, to which arrangement, and until when they can still land.
    late: SmallVec<[(Position, Timestamp); 1]>,
}

#[derive(Clone, Debug)]
struct Move {
    to: Position,
    /// Whether a store may have changed.
    dirty: bool,
    workloads: SmallVec<[Taken; 2]>,
    probed: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    rolled: bool,
    proven: bool,
}

impl Walk {
    pub(crate) fn new(plan: &Plan, at: Timestamp) -> Self {
        // An emergency takes over from wherever the stores are; calls of the rotation before it can still land.
        let late = plan.inherits_until.map(|until| (Position::MAX, until));
        let late: SmallVec<[_; 1]> = late.into_iter().collect();
        let store = |planned: &StorePlan| Store {
            at: (!plan.is_emergency()).then_some(0),
            before: None,
            since: at,
            touched: false,
            given: false,
            changed_at: SmallVec::new(),
            tells_time_only: planned.facts.read_back == ReadBack::Timestamp,
            late: late.clone(),
        };
        Self {
            position: 0,
            arrived_at: at,
            touched_at: None,
            starts_tell: true,
            used: [true, false],
            stores: plan.stores.iter().map(store).collect(),
            moving: None,
            probes: !plan.probes.is_empty(),
        }
    }

    /// Returns the last arrangement that every store held and every replica proved.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Returns when that was.
    pub fn arrived_at(&self) -> Timestamp {
        self.arrived_at
    }

    /// Returns the arrangement that a move leads to, while one is under way.
    pub fn moving_to(&self) -> Option<Position> {
        self.moving.as_ref().map(|moving| moving.to)
    }

    /// Returns the arrangement that the stores should hold now.
    pub fn should_hold(&self) -> Position {
        self.moving_to().unwrap_or(self.position)
    }

    /// Returns since when every store that a workload reads certainly holds arrangement `to` (H45).
    pub fn held_since(&self, workload: &WorkloadPlan, to: Position) -> Option<Timestamp> {
        workload.reads.iter().try_fold(Timestamp::from_millis(i64::MIN), |latest, store| {
            let store = &self.stores[usize::from(*store)];
            (store.at == Some(to)).then_some(latest.max(store.since))
        })
    }

    /// Returns when a store changed each slot at our last write, or before it was first written, where that is all it tells, and
    /// no other write of ours may have landed since.
    pub fn changed_at(&self, store: usize) -> Option<&[Option<Timestamp>]> {
        let store = &self.stores[store];
        let may_have_landed = store.late.iter().any(|(_, until)| *until > store.since)
            && !crate::planted!("late_write_is_somebody_elses");
        (!store.changed_at.is_empty() && !may_have_landed).then_some(&store.changed_at)
    }

    /// Returns whether a write to a store was ever intended.
    pub fn is_store_touched(&self, store: u8) -> bool {
        self.stores[usize::from(store)].touched
    }

    /// Returns whether a store certainly holds an arrangement.
    pub fn holds(&self, store: u8, to: Position) -> bool {
        self.stores[usize::from(store)].at == Some(to)
    }

    /// Returns whether any write was ever intended.
    pub fn is_touched(&self) -> bool {
        self.touched_at.is_some()
    }

    /// Returns whether any store may have been given anything.
    pub(crate) fn is_given(&self) -> bool {
        self.stores.iter().any(|store| store.given)
    }

    /// Returns before which start a replica has certainly read nothing of the rotation: that is enough where it leads back to what
    /// was there when it began. An emergency leads back to nothing, and the one that it took over may have written before.
    pub fn untouched_before(&self, plan: &Plan, to: Position) -> Option<Timestamp> {
        let leads_back = to == 0 || crate::planted!("untouched_proves_any_move");
        self.touched_at.filter(|_| leads_back && self.starts_tell && !plan.is_emergency())
    }

    /// Returns whether readers may ever have used a side.
    pub fn was_used(&self, side: Side) -> bool {
        self.used[side.index()]
    }

    /// Returns until when any write without an answer can still land.
    pub(crate) fn settles_at(&self) -> Option<Timestamp> {
        self.stores.iter().flat_map(|store| store.late.iter().map(|(_, until)| *until)).max()
    }

    /// Returns what the walk owes on its way to `goal`.
    pub(crate) fn owed(
        &self,
        line: Line,
        token_wait: Span,
        goal: Position,
        now: Timestamp,
    ) -> Option<Next> {
        let Some(moving) = &self.moving else {
            if self.position == goal {
                return None;
            }
            let to = line.neighbour(self.position, goal);
            let free_at = self.free_at(line, to, token_wait);
            return Some(if now < free_at {
                wait(free_at, Why::Tokens)
            } else {
                Next::Record(Event::MoveBegun { to })
            });
        };
        let owed = self
            .write(moving)
            .or_else(|| self.settle(moving, now).filter(|owed| matches!(owed, Next::Do(_))))
            .or_else(|| moving.take_up())
            .or_else(|| {
                (self.probes && !moving.probed).then_some(Next::Do(Step::Probe { to: moving.to }))
            })
            .or_else(|| self.settle(moving, now));
        Some(owed.unwrap_or(Next::Record(Event::Arrived { at: moving.to })))
    }

    /// When a move may begin that takes a version out of what readers accept: not before the last token that it signed has
    /// expired, counted from the evidence that nobody signs with it any more (H80).
    fn free_at(&self, line: Line, to: Position, token_wait: Span) -> Timestamp {
        let (here, there) = (line.at(self.position), line.at(to));
        let dropped =
            |side: Side| here.accepts(side) && !there.accepts(side) && self.used[side.index()];
        let drops = dropped(Side::Previous) || dropped(Side::Pending);
        if drops && !crate::planted!("drop_without_token_wait") {
            self.arrived_at + token_wait
        } else {
            self.arrived_at
        }
    }

    /// Everything that the move owes and that waits for nothing else of it: each store that is not there yet, and each workload
    /// whose stores are.
    pub(crate) fn at_once(&self, plan: &Plan) -> SmallVec<[Step; 2]> {
        let Some(moving) = &self.moving else { return SmallVec::new() };
        let to = moving.to;
        let stores = (0..).zip(&self.stores).filter(|(_, store)| store.at != Some(to));
        let writes = stores.map(|(store, _)| Step::Write { store, to });
        let workloads = (0..).zip(&moving.workloads).zip(&plan.workloads);
        let waiting = workloads.filter(|((_, taken), workload)| {
            !taken.proven && self.held_since(workload, to).is_some()
        });
        writes.chain(waiting.map(|((workload, taken), _)| taken.step(workload, to))).collect()
    }

    fn write(&self, moving: &Move) -> Option<Next> {
        let store = self.stores.iter().position(|store| store.at != Some(moving.to))?;
        Some(Next::Do(Step::Write { store: store as u8, to: moving.to }))
    }

    /// A store to which a write of another arrangement can still land is written again once it no longer can: before anything
    /// else then, since replicas may have read what landed.
    fn settle(&self, moving: &Move, now: Timestamp) -> Option<Next> {
        if crate::planted!("trusts_read_back_of_unknown_write") {
            return None;
        }
        let mut late = self
            .stores
            .iter()
            .enumerate()
            .filter_map(|(i, store)| Some((i, store.unsure(moving.to)?)));
        let (store, until) = late.next()?;
        let step = Step::Write { store: store as u8, to: moving.to };
        Some(if now < until { wait(until, Why::Settle) } else { Next::Do(step) })
    }

    pub(crate) fn begin(&mut self, to: Position, workloads: usize) {
        self.moving = Some(Move::new(to, workloads));
    }

    pub(crate) fn arrived(&mut self, position: Position, at: Timestamp) {
        self.position = position;
        self.arrived_at = at;
        self.moving = None;
    }

    pub(crate) fn captured(&mut self, at: Timestamp, changed_at: &[(u8, Vec<Option<Timestamp>>)]) {
        self.stores.iter_mut().for_each(|store| store.since = at);
        if crate::planted!("times_of_the_capture_are_forgotten") {
            return;
        }
        for (store, times) in changed_at {
            self.stores[usize::from(*store)].changed_at = SmallVec::from_slice(times);
        }
    }

    pub(crate) fn clock_was_set_back(&mut self) {
        self.starts_tell = crate::planted!("evidence_on_a_clock_set_back");
    }

    /// What was written since `read_at` may have been written before `shown`, as replicas tell the time.
    pub(crate) fn dates_anew(&mut self, read_at: Timestamp, shown: Timestamp) {
        for store in self.stores.iter_mut().filter(|store| store.since >= read_at) {
            store.since = store.since.max(shown);
        }
    }

    pub(crate) fn writing(&mut self, store: u8, to: Position, line: Line, at: Timestamp) {
        self.touched_at.get_or_insert(at);
        self.used[line.at(to).current.index()] = true;
        let store = &mut self.stores[usize::from(store)];
        store.touched = true;
        store.before = store.at.take().or(store.before);
    }

    pub(crate) fn written(
        &mut self,
        store: u8,
        to: Position,
        changed: bool,
        changed_at: &[Option<Timestamp>],
        at: Timestamp,
        workloads: &[WorkloadPlan],
    ) {
        let written = &mut self.stores[usize::from(store)];
        written.given = true;
        written.changed_at = SmallVec::from_slice(changed_at);
        // A write that changed nothing leaves the store as it was before, and as old as it was, unless late writes may have led away
        // from that and back.
        let anew = changed || written.before != Some(to) || written.may_have_come_back(to);
        written.at = Some(to);
        written.before = None;
        if anew {
            written.since = at;
        }
        written.late.retain(|(_, until)| *until > at);
        let Some(moving) = &mut self.moving else { return };
        moving.dirty = true;
        if anew {
            moving.probed = false;
            for (taken, workload) in moving.workloads.iter_mut().zip(workloads) {
                if workload.reads.contains(&store) {
                    *taken = Taken::default();
                }
            }
        }
    }

    /// Nothing was done: the store holds what it held.
    pub(crate) fn refused(&mut self, store: u8) {
        let store = &mut self.stores[usize::from(store)];
        store.at = store.before.take();
    }

    pub(crate) fn unanswered(&mut self, store: u8, to: Position, settles_at: Timestamp) {
        let written = &mut self.stores[usize::from(store)];
        written.given = true;
        // What another late write may have put there, this one may have replaced without a word: then nothing is certain.
        let certain = written.unsure(to).is_none();
        written.before = written.before.filter(|before| *before == to && certain);
        written.late.push((to, settles_at));
        written.changed_at.clear();
        if let Some(moving) = &mut self.moving {
            moving.dirty = true;
        }
    }

    pub(crate) fn rolled(&mut self, workload: u8) {
        self.taken(workload, |taken| taken.rolled = true);
    }

    pub(crate) fn must_roll(&mut self, workload: u8) {
        self.taken(workload, |taken| *taken = Taken::default());
    }

    pub(crate) fn proven(&mut self, workload: u8) {
        self.taken(workload, |taken| taken.proven = true);
    }

    pub(crate) fn probed(&mut self) {
        if let Some(moving) = &mut self.moving {
            moving.probed = true;
        }
    }

    /// A move that may have changed something is taken back to where it began; one that changed nothing is forgotten. So is
    /// one that began where it leads to: it only looks again at what was proven, and where replicas no longer come up with
    /// that, a way back that waited for it would never begin.
    pub(crate) fn turned_back(&mut self, workloads: usize) {
        self.moving = self
            .moving
            .take()
            .filter(|moving| moving.dirty && moving.to != self.position)
            .map(|_| Move::back(self.position, workloads));
    }

    pub(crate) fn observe_anew(&mut self, workloads: usize) {
        let to = self.should_hold();
        for store in &mut self.stores {
            (store.at, store.before) = (None, None);
            store.changed_at.clear();
        }
        self.moving = Some(Move::back(to, workloads));
    }

    fn taken(&mut self, workload: u8, change: impl FnOnce(&mut Taken)) {
        if let Some(taken) =
            self.moving.as_mut().and_then(|moving| moving.workloads.get_mut(usize::from(workload)))
        {
            change(taken);
        }
    }
}

impl Store {
    /// Until when a write of another arrangement than `to` can land on what the store holds now; of any, where it tells its time only.
    fn unsure(&self, to: Position) -> Option<Timestamp> {
        let anything = self.tells_time_only && !crate::planted!("late_write_is_somebody_elses");
        self.late
            .iter()
            .filter(|(position, until)| (anything || *position != to) && *until > self.since)
            .map(|(_, until)| *until)
            .max()
    }

    /// Whether one write without an answer can have led away from what the store held, and another one back to it.
    fn may_have_come_back(&self, to: Position) -> bool {
        let can_land = |is_back: bool| {
            let mut late = self.late.iter();
            late.any(|(position, until)| (*position == to) == is_back && *until > self.since)
        };
        can_land(false) && can_land(true) && !crate::planted!("late_writes_cancel_out")
    }
}

impl Move {
    fn new(to: Position, workloads: usize) -> Self {
        Self {
            to,
            dirty: false,
            workloads: std::iter::repeat_n(Taken::default(), workloads).collect(),
            probed: false,
        }
    }

    fn back(to: Position, workloads: usize) -> Self {
        Self { dirty: true, ..Self::new(to, workloads) }
    }

    fn take_up(&self) -> Option<Next> {
        let workload = self.workloads.iter().position(|taken| !taken.proven)?;
        Some(Next::Do(self.workloads[workload].step(workload as u8, self.to)))
    }
}

impl Taken {
    fn step(self, workload: u8, to: Position) -> Step {
        if self.rolled { Step::Evidence { workload, to } } else { Step::Roll { workload, to } }
    }
}
