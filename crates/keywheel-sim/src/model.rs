//! The model: the same `Rotation::next` and `Rotation::apply`, explored without sampling by Stateright.
//!
//! One secret, one store, one workload. At every step the model may let the call be done, be refused, be lost before or after
//! it took effect, let a lost call land later, or let an operator undo. The truth beside the rotation is small: which versions
//! live, what the store and the replica hold, and what is still in the air.

use std::sync::Arc;

use keywheel_core::call::{Refusal, RefusalKind};
use keywheel_core::event::{Because, Death, Event, Outcome, Report, Step};
use keywheel_core::evidence::Count;
use keywheel_core::gate::{Clocks, Visit};
use keywheel_core::plan::Plan;
use keywheel_core::rotation::{Next, Rotation};
use keywheel_core::strategy::{Position, Side, Strategy};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::IssuedId;
use stateright::{Checker, Model, Property};

use crate::scenario::{self, Shape};

/// A rotation and the truth beside it.
#[derive(Clone, Debug)]
struct State {
    rotation: Rotation,
    now: Timestamp,
    truth: Truth,
    /// How many things went wrong.
    troubles: u8,
    undone: bool,
}

/// What is true.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Truth {
    /// Whether the previous version works.
    previous: bool,
    /// Attempts that minted something that works.
    minted: Vec<u16>,
    /// The attempt whose value we hold.
    held: Option<u16>,
    store: Position,
    replica: Position,
    /// Calls that were lost and can still land.
    in_the_air: Vec<(InTheAir, Timestamp)>,
    worst: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum InTheAir {
    Mint(u16),
    Write(Position),
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    /// The owed step, record or wait goes well.
    Well,
    /// The owed step is refused for good.
    Refused,
    /// The owed step is lost on its way.
    Lost,
    /// The owed step takes effect and its answer is lost.
    Unanswered,
    /// The owed step is lost for now, and may land later.
    InTheAir,
    /// What is in the air lands.
    Lands,
    /// An operator undoes.
    Undo,
}

/// How many things may go wrong in one history.
const TROUBLES: u8 = 2;

struct Life {
    plan: Arc<Plan>,
    /// The planted bug that is on: the checker runs in threads of its own.
    planted: Option<&'static str>,
}

/// Explores the model for the main strategies.
///
/// # Errors
/// The property that does not hold, with the actions that lead there.
pub fn check() -> Result<usize, String> {
    check_with(None)
}

fn check_with(planted: Option<&'static str>) -> Result<usize, String> {
    let mut states = 0;
    for shape in [Shape::Keys, Shape::Keyring] {
        let checker = Life { plan: plan(shape), planted }.checker().spawn_dfs().join();
        states += checker.unique_state_count();
        for (name, path) in checker.discoveries() {
            if !name.starts_with("sometimes") {
                return Err(format!("{shape:?}: {name}: {:?}", path.into_actions()));
            }
        }
        for name in ["sometimes completed", "sometimes undone"] {
            if checker.discovery(name).is_none() {
                return Err(format!("{shape:?}: never {}", name.trim_start_matches("sometimes ")));
            }
        }
    }
    Ok(states)
}

fn plan(shape: Shape) -> Arc<Plan> {
    let key = zeroize::Zeroizing::new([7; 32]);
    let id = keywheel_core::fingerprint::FingerprintKeyId(1);
    let fingerprinter = Arc::new(keywheel_core::fingerprint::Fingerprinter::new(id, key));
    let drawn = scenario::draw(1, fingerprinter, None, Some(shape));
    let mut plan = Plan::clone(&drawn.groups[0][0]);
    plan.stores.truncate(1);
    plan.workloads.truncate(1);
    plan.workloads[0].reads = vec![0];
    plan.probes.clear();
    plan.policy.soak = Span::seconds(8);
    plan.policy.rollback = Span::ZERO;
    plan.issuer.facts.last_used = None;
    plan.issuer.facts.suspend = false;
    Arc::new(plan)
}

impl Model for Life {
    type State = Key;
    type Action = Action;

    fn init_states(&self) -> Vec<Key> {
        let now = Timestamp::from_millis(1_000_000);
        let rotation = Rotation::begin(now, &Event::Planned(Arc::clone(&self.plan)))
            .expect("a plan begins a rotation");
        let truth = Truth {
            previous: true,
            minted: Vec::new(),
            held: None,
            store: 0,
            replica: 0,
            in_the_air: Vec::new(),
            worst: None,
        };
        vec![Key(State { rotation, now, truth, troubles: 0, undone: false })]
    }

    fn actions(&self, Key(state): &Key, actions: &mut Vec<Action>) {
        keywheel_core::planted::switch(self.planted);
        let next = state.rotation.next(state.now);
        if matches!(next, Next::Rest(_) | Next::Operator(_)) || state.truth.worst.is_some() {
            return;
        }
        actions.push(Action::Well);
        if !state.truth.in_the_air.is_empty() {
            actions.push(Action::Lands);
        }
        if state.troubles >= TROUBLES {
            return;
        }
        if let Next::Do(step) = next {
            actions.extend([Action::Refused, Action::Lost, Action::Unanswered]);
            if matches!(step, Step::Mint { .. } | Step::Write { .. }) {
                actions.push(Action::InTheAir);
            }
        }
        if !state.undone && state.rotation.way_back().is_ok() {
            actions.push(Action::Undo);
        }
    }

    fn next_state(&self, Key(state): &Key, action: Action) -> Option<Key> {
        keywheel_core::planted::switch(self.planted);
        let mut state = state.clone();
        state.take(action)?;
        Some(Key(state))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("the truth is never harmed", |_, Key(state)| {
                state.truth.worst.is_none()
            }),
            Property::sometimes("sometimes completed", |_, Key(state)| {
                state.rotation.outcome() == Some(Outcome::Completed)
            }),
            Property::sometimes("sometimes undone", |_, Key(state)| {
                state.rotation.outcome() == Some(Outcome::Undone)
            }),
            Property::always("I10: an undo ends undone", |_, Key(state)| {
                !(state.undone && state.rotation.outcome() == Some(Outcome::Completed))
            }),
            Property::always("I06: an end leaves one live version", |life, Key(state)| {
                let theirs = life.plan.issuer.facts.label;
                let live = usize::from(state.truth.previous) + state.truth.minted.len();
                state.rotation.outcome().is_none() || !theirs || live == 1
            }),
        ]
    }
}

impl State {
    fn take(&mut self, action: Action) -> Option<()> {
        match action {
            Action::Lands => {
                let (what, _) = self.truth.in_the_air.pop()?;
                self.land(what);
                return Some(());
            }
            Action::Undo => {
                self.undone = true;
                self.troubles += 1;
                return self.apply(Event::TurnedBack {
                    because: Because::Operator { because: String::new() },
                });
            }
            _ => {}
        }
        match (self.rotation.next(self.now), action) {
            (Next::Do(step), _) => self.step(step, action),
            (Next::Record(event), Action::Well) => self.apply(event),
            (Next::Wait { until, .. }, Action::Well) => {
                // What is in the air has landed, or never will.
                let over = |(_, at): &(InTheAir, Timestamp)| *at <= until;
                if self.truth.in_the_air.iter().any(over) {
                    self.truth.in_the_air.retain(|air| !over(air));
                }
                self.now = until;
                Some(())
            }
            _ => None,
        }
    }

    fn step(&mut self, step: Step, action: Action) -> Option<()> {
        let until = self.now + Span::seconds(30);
        self.apply(Event::Intended { step, until, clocks: None })?;
        if action != Action::Well {
            self.troubles += 1;
        }
        self.now = self.now + Span::seconds(1);
        match action {
            Action::Well => {
                let report = self.perform(step);
                self.apply(Event::Done { step, report })
            }
            Action::Refused => {
                let refusal = Refusal::operator(RefusalKind::Permission, "no");
                self.apply(Event::Refused { step, refusal })
            }
            Action::Unanswered => {
                let report = self.perform(step);
                drop(report);
                if matches!(step, Step::Mint { .. }) && self.rotation.plan().issuer.facts.label {
                    self.truth.held = None;
                }
                self.unknown(step, until)
            }
            Action::InTheAir => {
                let life = match step {
                    Step::Write { .. } => self.rotation.plan().stores[0].facts.settle_for,
                    _ => self.rotation.plan().issuer.facts.settle_for,
                };
                let what = match step {
                    Step::Mint { attempt } => InTheAir::Mint(attempt),
                    Step::Write { to, .. } => InTheAir::Write(to),
                    _ => return None,
                };
                self.truth.in_the_air.push((what, until + life));
                self.unknown(step, until)
            }
            Action::Lost => self.unknown(step, until),
            Action::Lands | Action::Undo => None,
        }
    }

    fn unknown(&mut self, step: Step, until: Timestamp) -> Option<()> {
        self.now = until;
        self.apply(Event::Unknown { step })
    }

    fn apply(&mut self, event: Event) -> Option<()> {
        if let Event::Intended { step: Step::Mint { .. }, .. } = event
            && self
                .truth
                .in_the_air
                .iter()
                .any(|(what, at)| matches!(what, InTheAir::Mint(_)) && *at > self.now)
        {
            self.truth.worst = Some("I06: a mint begins while an earlier one can still land");
        }
        self.rotation.apply(self.now, &event).ok()?;
        self.truth.in_the_air.retain(|(_, at)| *at > self.now);
        Some(())
    }

    fn land(&mut self, what: InTheAir) {
        match what {
            InTheAir::Mint(attempt) => self.truth.minted.push(attempt),
            InTheAir::Write(to) => self.truth.store = to,
        }
        self.judge();
    }

    /// What a step does to the truth, and what it reports.
    fn perform(&mut self, step: Step) -> Report {
        let everyone =
            |holds: bool| Count { holds: u32::from(holds), other: u32::from(!holds), unknown: 0 };
        let report = match step {
            Step::Mint { attempt } => {
                self.truth.minted.push(attempt);
                self.truth.held = Some(attempt);
                let issued = self.rotation.plan().issuer.facts.label.then(|| name(attempt));
                Report::Minted { issued, fingerprint: None, expires_at: None, notes: Vec::new() }
            }
            Step::FindMint { attempt } if !self.rotation.plan().issuer.facts.label => {
                self.truth.held = Some(attempt);
                if !self.truth.minted.contains(&attempt) {
                    self.truth.minted.push(attempt);
                }
                Report::Found { issued: Some(IssuedId::new("")), held: true, fingerprint: None }
            }
            Step::FindMint { attempt } => {
                let issued = self.truth.minted.contains(&attempt).then(|| name(attempt));
                Report::Found { issued, held: false, fingerprint: None }
            }
            Step::RevokeStray { .. } => {
                let stray = self.rotation.stray().cloned();
                self.truth.minted.retain(|attempt| Some(name(*attempt)) != stray);
                Report::Plain
            }
            Step::Write { to, .. } => {
                let changed = self.truth.store != to;
                self.truth.store = to;
                Report::Written { changed, changed_at: Vec::new() }
            }
            Step::Roll { .. } => {
                self.truth.replica = self.truth.store;
                Report::Plain
            }
            Step::Evidence { to, .. } => Report::Seen(everyone(self.truth.replica == to)),
            Step::Visit => {
                let at = self.rotation.walk().should_hold();
                let boot = self.now.since(Timestamp::from_millis(0));
                Report::Visited(Box::new(Visit {
                    clocks: Clocks { wall: self.now, boot, boot_id: 1, outside: None },
                    probes: None,
                    stores: Some(self.truth.store == at),
                    evidence: vec![everyone(self.truth.replica == at)],
                    usage: None,
                    notes: Vec::new(),
                }))
            }
            Step::Revoke(version) => {
                if Some(version) == self.rotation.version(Side::Previous) {
                    self.truth.previous = false;
                } else {
                    let held = self.truth.held;
                    self.truth.minted.retain(|attempt| Some(*attempt) != held);
                }
                Report::Plain
            }
            Step::VerifyDead(_) => Report::Dead(Death::Refused),
            Step::Sweep => Report::Swept {
                strays: self.truth.minted.iter().map(|attempt| name(*attempt)).collect(),
            },
            _ => Report::Plain,
        };
        self.judge();
        report
    }

    /// I01, I19: the replica and whoever would start now use a version that works; all accept what any may have signed.
    fn judge(&mut self) {
        let line = self.rotation.line();
        let works = |side: Side| match side {
            Side::Previous => self.truth.previous,
            Side::Pending => self.truth.held.is_some_and(|held| self.truth.minted.contains(&held)),
        };
        let (store, replica) = (line.at(self.truth.store), line.at(self.truth.replica));
        if !works(store.current) || !works(replica.current) {
            self.truth.worst = Some("I01: a version in use does not work");
        }
        let keyring = matches!(self.rotation.plan().strategy, Strategy::Keyring { .. });
        if keyring && !(store.accepts(replica.current) && replica.accepts(store.current)) {
            self.truth.worst = Some("I19: two replicas do not take each other's tokens");
        }
    }
}

fn name(attempt: u16) -> IssuedId {
    IssuedId::new(format!("k{attempt}"))
}

/// A state that is told apart by everything but its absolute times.
#[derive(Clone, Debug)]
struct Key(State);

impl Key {
    fn text(&self) -> String {
        let state = &self.0;
        let next = state.rotation.next(state.now);
        let phase = state.rotation.phase();
        let walk = state.rotation.walk();
        let until = state.rotation.unsettled_until().map(|until| until.since(state.now));
        let air: Vec<_> =
            state.truth.in_the_air.iter().map(|(what, at)| (*what, at.since(state.now))).collect();
        let truth = (
            &state.truth.previous,
            &state.truth.minted,
            state.truth.held,
            state.truth.store,
            state.truth.replica,
            state.truth.worst,
        );
        let next = match next {
            Next::Wait { until, why } => format!("{why:?} for {}", until.since(state.now)),
            next => format!("{next:?}"),
        };
        format!(
            "{next} {phase} {:?} {:?} {:?} {:?} {until:?} {air:?} {truth:?} {} {} {}",
            state.rotation.toward(),
            walk.position(),
            walk.moving_to(),
            state.rotation.ending().soak_counted(),
            state.rotation.mint_attempts(),
            state.troubles,
            state.undone
        )
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for Key {}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, hasher: &mut H) {
        self.text().hash(hasher);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_can_happen_twice_harms_the_truth() {
        let states = check().unwrap_or_else(|violation| panic!("{violation}"));
        assert!(states > 500, "only {states} states: the model is vacuous");
    }

    #[test]
    fn the_model_finds_a_planted_bug() {
        assert!(
            check_with(Some("moves_are_leaps")).is_err(),
            "an undo that leaps from S2 to S0 is not seen"
        );
    }
}
