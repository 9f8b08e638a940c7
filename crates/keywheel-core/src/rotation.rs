//! The state machine of one rotation.
//!
//! **What can happen next?** [`Rotation::next`] answers by going down one list and naming the first thing that is not yet
//! so. **What has happened?** [`Rotation::apply`] folds the records of the journal, one at a time. Nothing else changes a
//! rotation, so recovery is replay and there is no second path.
//!
//! A rotation walks along a line of arrangements ([`crate::strategy`]) `toward` one of its two versions. Undo and reversal
//! turn it round: the same list, read for the other version.
//!
//! ```text
//! toward the pending version:   preflight, capture, mint, verify, walk, promote, retire previous, sweep, purge → completed
//! turned round before promote:                            walk back,             retire pending,  sweep, purge → undone
//! turned round after promote:   resume, verify previous,  walk back, promote,    retire pending,  sweep, purge → undone
//! ```

use std::sync::Arc;

use smallvec::SmallVec;

use crate::call::{Refusal, RefusalKind, Remedy};
use crate::ending::Ending;
use crate::event::{Because, Event, OutOfOrder, Outcome, ParkReason, Report, Step};
use crate::facts::{Authority, Observe};
use crate::gate::Clocks;
use crate::phase::Phase;
use crate::plan::{Mode, Plan, RotationId, StorePlan};
use crate::strategy::{Line, Position, Side, Strategy};
use crate::time::{Span, Timestamp};
use crate::version::{IssuedId, State, VersionId};
use crate::walk::Walk;

/// How often a value that the issuer rejects is made anew before the rotation turns round (H06).
const VALUES: u32 = 3;

/// How often a lease that nobody was given is made anew because its time was nearly over, or its issuer no longer accepts it.
const LEASES: u16 = 5;

/// The one thing owed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Journal the intent, then take this step.
    Do(Step),
    /// Journal this; nothing happens outside the journal.
    Record(Event),
    /// Nothing before `until`.
    Wait {
        /// When to ask again.
        until: Timestamp,
        /// What for.
        why: Why,
    },
    /// A step's call has not come back.
    Await(Step),
    /// An operator.
    Operator(ParkReason),
    /// Nothing, ever again.
    Rest(Outcome),
}

/// What a wait is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A refused or unanswered step is tried again then.
    Retry(Step),
    /// The suspects are ended then, although not every reader has the new version.
    Stage,
    /// A call without an answer can no longer land then.
    Settle,
    /// Tokens of the version to be dropped have expired then.
    Tokens,
    /// The gates are looked at again then.
    Soak,
    /// The version is suspended for a brown-out; the gates are looked at again then.
    BrownOut,
    /// The rollback window ends then, or is looked at.
    Rollback,
    /// Readers that may have begun with the version have ended then.
    Runs,
}

/// One rotation, folded from its records.
#[derive(Clone, Debug)]
pub struct Rotation {
    pub(crate) plan: Arc<Plan>,
    pub(crate) id: RotationId,
    pub(crate) began_at: Timestamp,
    /// The latest time of any record.
    latest: Timestamp,
    /// The clocks before the last step.
    clocks: Option<Clocks>,
    /// The version that the rotation walks towards.
    pub(crate) toward: Side,
    /// Why it turned round, where it did.
    turned_back: Option<Because>,
    /// The version that readers are told to use, by record.
    pub(crate) promoted: Side,
    pub(crate) promoted_at: Timestamp,
    /// Whether the pending version was ever promoted: then its retirement has every gate, wait and window.
    pub(crate) was_promoted: bool,
    pub(crate) preflighted: bool,
    pub(crate) captured: bool,
    pub(crate) minting: Minting,
    pub(crate) verified: [bool; 2],
    pub(crate) walk: Walk,
    pub(crate) ending: Ending,
    pub(crate) stage_closed: bool,
    pub(crate) swept: bool,
    /// How many stores were asked to clean up, or leave nothing behind.
    cleaned: u8,
    pub(crate) purged: bool,
    /// One step, or those that an emergency takes at once.
    open: SmallVec<[Open; 1]>,
    pub(crate) tries: SmallVec<[Tries; 1]>,
    pub(crate) parked: Option<ParkReason>,
    /// Before when no lease is extended again.
    keeps_alive_at: Timestamp,
    pub(crate) outcome: Option<Outcome>,
}

/// A step whose intent is durable and whose outcome is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) step: Step,
    pub(crate) since: Timestamp,
    pub(crate) until: Timestamp,
}

/// What is known of the pending version's mint.
#[derive(Clone, Debug, Default)]
pub(crate) struct Minting {
    /// Attempts whose intent is durable.
    pub(crate) attempts: u16,
    /// Those among them that may have made something: answered, or without an answer.
    may_have_made: SmallVec<[u16; 1]>,
    /// How many of them made anew what was made before.
    anew: u16,
    pub(crate) done: bool,
    /// Whether it is asked for again before any store is given it, although it was accepted.
    asks_again: bool,
    pub(crate) issued: Option<IssuedId>,
    pub(crate) minted_at: Timestamp,
    pub(crate) expires_at: Option<Timestamp>,
    /// When that was said.
    expiry_known_at: Timestamp,
    /// An attempt whose outcome is unknown.
    lost: Option<Lost>,
    /// Live credentials under our labels whose value nobody has.
    pub(crate) strays: SmallVec<[IssuedId; 1]>,
    /// Until when any lost attempt can still land.
    settles_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug)]
struct Lost {
    attempt: u16,
    settles_at: Timestamp,
    looked: bool,
    /// An id that may be its, or somebody else's.
    ambiguous: bool,
}

/// A step that was refused, unanswered or not yet enough, and when it is tried again.
#[derive(Clone, Debug)]
pub(crate) struct Tries {
    pub(crate) step: Step,
    first_at: Timestamp,
    last_at: Timestamp,
    not_before: Timestamp,
    count: u32,
    /// How many of them the issuer answered with a no to the value.
    rejected: u32,
    last: Option<Refusal>,
}

/// What an emergency's move can do: now, or when what failed may be tried again.
#[derive(Default)]
struct Rush {
    ready: SmallVec<[Step; 2]>,
    retry_at: Option<Timestamp>,
}

impl Tries {
    /// Whether only an operator can change the answer.
    fn is_answered_no(&self) -> bool {
        self.last.as_ref().is_some_and(Refusal::is_for_good)
    }

    /// Whether it was refused only because nobody was there: going back would need somebody as much as going on.
    fn waits_for_a_person(&self) -> bool {
        let refused = self.last.as_ref();
        refused.is_some_and(|refusal| refusal.kind == RefusalKind::NeedsPerson)
    }
}

impl Rotation {
    /// Begins a rotation from its first record.
    ///
    /// # Errors
    /// [`OutOfOrder`] where the first record is no plan.
    pub fn begin(at: Timestamp, event: &Event) -> Result<Self, OutOfOrder> {
        let Event::Planned(plan) = event else {
            return Err(OutOfOrder { event: format!("{event:?}"), phase: "not begun".into() });
        };
        let asks_issuer = plan.issuer.facts.authority == Authority::Issuer;
        let minting = Minting { settles_at: plan.inherits_until, ..Minting::default() };
        Ok(Self {
            id: plan.rotation(),
            began_at: at,
            latest: at,
            clocks: None,
            toward: Side::Pending,
            turned_back: None,
            promoted: Side::Previous,
            promoted_at: at,
            was_promoted: false,
            preflighted: false,
            captured: false,
            minting,
            verified: [true, !asks_issuer],
            walk: Walk::new(plan, at),
            ending: Ending::default(),
            stage_closed: false,
            swept: false,
            cleaned: 0,
            purged: false,
            open: SmallVec::new(),
            tries: SmallVec::new(),
            parked: None,
            keeps_alive_at: at,
            outcome: None,
            plan: Arc::clone(plan),
        })
    }

    /// Returns the one thing owed at `now`.
    pub fn next(&self, now: Timestamp) -> Next {
        if let Some(outcome) = self.outcome {
            return Next::Rest(outcome);
        }
        if let Some(reason) = &self.parked {
            return Next::Operator(reason.clone());
        }
        if let Some(open) = self.open.first() {
            return Next::Await(open.step);
        }
        let next =
            self.stage_over(now).or_else(|| self.verdict(now)).unwrap_or_else(|| self.owed(now));
        match (next, self.stage_ends_at()) {
            // Whatever is waited for, the suspects are ended when the stage is over.
            (Next::Wait { until, why }, Some(end)) => wait(until.min(end), why),
            (next, _) => next,
        }
    }

    /// Returns the steps to take together with the one that [`Rotation::next`] named, that one first. Only an emergency takes
    /// several: it writes every store, and rolls every workload whose stores are written, at once.
    pub fn together(&self, step: Step, now: Timestamp) -> SmallVec<[Step; 2]> {
        let rush = if self.plan.is_emergency() { self.rush(now).ready } else { SmallVec::new() };
        if rush.contains(&step) { rush } else { SmallVec::from_iter([step]) }
    }

    /// The list. Each line names what it still owes, or nothing.
    fn owed(&self, now: Timestamp) -> Next {
        let owed = self
            .extend()
            .or_else(|| self.prepare())
            .or_else(|| self.obtain(now))
            .or_else(|| if self.ends_first() { self.revoke(now) } else { None })
            .or_else(|| self.in_brown_out(now))
            .or_else(|| self.deliver(now))
            .or_else(|| self.promote())
            .or_else(|| self.retire(now))
            .or_else(|| self.clean_up(now))
            .unwrap_or(Next::Record(Event::Ended { outcome: self.destination() }));
        self.not_before(owed, now)
    }

    /// An extension keeps the value: nothing is delivered, ended or purged.
    fn extend(&self) -> Option<Next> {
        if !self.plan.extend {
            return None;
        }
        let owes = !self.minting.done && self.toward == Side::Pending;
        Some(if owes {
            Next::Do(Step::Extend)
        } else {
            Next::Record(Event::Ended { outcome: self.destination() })
        })
    }

    /// Everything that can be known before anything is changed (H19).
    fn prepare(&self) -> Option<Next> {
        match (self.toward, self.preflighted, self.captured) {
            (Side::Previous, ..) => None,
            (Side::Pending, false, _) => Some(Next::Do(Step::Preflight)),
            (Side::Pending, true, false) => Some(Next::Do(Step::Capture)),
            (Side::Pending, true, true) => None,
        }
    }

    /// A version that works: minted and verified, or resumed and verified.
    fn obtain(&self, now: Timestamp) -> Option<Next> {
        let version = self.version(self.toward)?;
        match self.toward {
            Side::Pending if !self.minting.done => {
                let attempt = self.minting.attempts + 1;
                return self
                    .settle_mint(now)
                    .or_else(|| self.settle_inherited(now))
                    .or(Some(Next::Do(Step::Mint { attempt })));
            }
            Side::Pending if self.is_made_anew(now) => {
                return Some(Next::Do(Step::Mint { attempt: self.minting.attempts + 1 }));
            }
            Side::Pending if self.has_ended(now) => return Some(self.ended_too_soon(version)),
            Side::Previous if self.ending.is_or_may_be_suspended(version) => {
                return Some(self.resume_once_settled(version, now));
            }
            _ => {}
        }
        let asks_again = self.toward == Side::Pending && self.minting.asks_again;
        let is_accepted = self.verified[self.toward.index()] && !asks_again;
        (!is_accepted).then_some(Next::Do(Step::Verify(version)))
    }

    /// Whether a lease that no store was given yet is of no use to readers: another one takes its place.
    fn is_made_anew(&self, now: Timestamp) -> bool {
        let minting = &self.minting;
        let anew = match crate::planted!("refused_mints_count_as_leases") {
            true => minting.attempts,
            false => minting.anew,
        };
        self.plan.strategy == Strategy::Lease
            && self.is_kept_from_readers()
            && anew < LEASES
            && (self.is_spent(now) || self.has_ended(now) || self.is_no_longer_accepted())
    }

    /// Whether the pending version was made and no store can hold it.
    fn is_kept_from_readers(&self) -> bool {
        self.minting.done
            && self.toward == Side::Pending
            && self.promoted == Side::Previous
            && !self.walk.is_given()
    }

    /// Whether half of its time is over: it was made before a long stop.
    fn is_spent(&self, now: Timestamp) -> bool {
        let since = self.minting.expiry_known_at;
        let is_half_over = |ends: Timestamp| now >= since + ends.since(since).part(1, 2);
        self.minting.expires_at.is_some_and(is_half_over)
            && !crate::planted!("spent_lease_delivered")
    }

    /// Whether its time is over before any store was given it.
    fn has_ended(&self, now: Timestamp) -> bool {
        self.is_kept_from_readers()
            && self.minting.expires_at.is_some_and(|ends| ends <= now)
            && !crate::planted!("ended_version_delivered")
    }

    /// Whether its issuer accepted it and does so no longer, or says for certain that it does not.
    fn is_no_longer_accepted(&self) -> bool {
        let refuses = |tries: &Tries| {
            let is_over = || self.minting.asks_again && self.is_exhausted(tries);
            let is_refused = tries.last.as_ref().is_some_and(|refusal| {
                refusal.kind == RefusalKind::Invalid && (refusal.is_for_good() || is_over())
            });
            is_refused && tries.step == Step::Verify(self.plan.pending)
        };
        self.tries.iter().any(refuses) && !crate::planted!("refused_lease_parks")
    }

    fn ended_too_soon(&self, version: VersionId) -> Next {
        let message = format!(
            "{version} ended before any store was given it; let its issuer make it for longer, or find out what held its delivery up"
        );
        let refusal = Refusal::operator(RefusalKind::Invalid, message);
        let step = Step::Verify(version);
        Next::Record(
            self.back_or_parked(step, Some(refusal.clone()), || ParkReason::Refused {
                step,
                refusal,
            }),
        )
    }

    /// Where one mint takes the place of another at the issuer, a lost one of the rotation that was taken over would end the
    /// version that is made now: it is waited for first.
    fn settle_inherited(&self, now: Timestamp) -> Option<Next> {
        let replaces = matches!(self.plan.strategy, Strategy::Alternate | Strategy::Cutover);
        let until = self.plan.inherits_until.filter(|until| replaces && now < *until)?;
        Some(wait(until, Why::Settle))
    }

    /// What became of a mint whose answer never came: presence is proven at once, absence only when it can no longer land.
    pub(crate) fn settle_mint(&self, now: Timestamp) -> Option<Next> {
        if !self.minting.strays.is_empty() {
            return Some(Next::Do(Step::RevokeStray { attempt: self.minting.attempts }));
        }
        let lost = self.minting.lost?;
        let facts = &self.plan.issuer.facts;
        if facts.observe == Observe::None {
            if !facts.reset_repeatable {
                return Some(Next::Record(Event::Parked { reason: ParkReason::MintUnobservable }));
            }
            // A lost one that landed after the next would take its place.
            let repeat = Step::Mint { attempt: self.minting.attempts + 1 };
            let lands = now < lost.settles_at && !crate::planted!("lost_reset_repeated_at_once");
            return lands.then_some(wait(lost.settles_at, Why::Retry(repeat)));
        }
        if lost.ambiguous {
            return Some(Next::Record(Event::Parked { reason: ParkReason::MintUnobservable }));
        }
        if lost.looked && now < lost.settles_at {
            return Some(wait(lost.settles_at, Why::Settle));
        }
        Some(Next::Do(Step::FindMint { attempt: lost.attempt }))
    }

    /// Every store and every replica at the nearest arrangement in which readers use the version walked towards.
    fn deliver(&self, now: Timestamp) -> Option<Next> {
        self.walk_to(self.line().promotes(self.toward, self.walk.position()), now)
    }

    pub(crate) fn walk_to(&self, goal: Position, now: Timestamp) -> Option<Next> {
        let owed = self.walk.owed(self.line(), self.token_wait(), goal, now)?;
        let Next::Do(step) = owed else { return Some(owed) };
        if !self.plan.is_emergency() || !self.walk.at_once(&self.plan).contains(&step) {
            return Some(owed);
        }
        let rush = self.rush(now);
        Some(match (rush.ready.first(), rush.retry_at) {
            (Some(ready), _) => Next::Do(*ready),
            (None, Some(until)) => wait(until, Why::Retry(step)),
            (None, None) => owed,
        })
    }

    /// What an emergency's move can do now. What was refused for good holds up nothing but itself.
    fn rush(&self, now: Timestamp) -> Rush {
        let mut rush = Rush::default();
        for step in self.walk.at_once(&self.plan) {
            match self.tries.iter().find(|tries| same_try(step, tries.step)) {
                Some(tries) if self.is_exhausted(tries) => {}
                Some(tries) if now < tries.not_before => {
                    let earliest = rush.retry_at.unwrap_or(tries.not_before);
                    rush.retry_at = Some(earliest.min(tries.not_before));
                }
                _ => rush.ready.push(step),
            }
        }
        rush
    }

    fn promote(&self) -> Option<Next> {
        (self.promoted != self.toward)
            .then_some(Next::Record(Event::Promoted { side: self.toward }))
    }

    /// No live credential that nobody owns, and no sealed value that nobody needs.
    fn clean_up(&self, now: Timestamp) -> Option<Next> {
        if self.minting.attempts > 0 || self.plan.takes_over.is_some() {
            if let Some(owed) = self.settle_mint(now) {
                return Some(owed);
            }
            if let Some(until) = self.minting.settles_at.filter(|until| now < *until && !self.swept)
            {
                return Some(wait(until, Why::Settle));
            }
            if self.plan.issuer.facts.label && !self.swept && !crate::planted!("no_last_sweep") {
                return Some(Next::Do(Step::Sweep));
            }
        }
        let mut stores = (0..).zip(&self.plan.stores).skip(usize::from(self.cleaned));
        let leaves_behind = |(store, planned): &(u8, &StorePlan)| {
            let is_touched = self.walk.is_store_touched(*store);
            planned.facts.leaves_behind
                && (is_touched || crate::planted!("untouched_store_is_cleaned"))
        };
        if let Some((store, _)) = stores.find(leaves_behind) {
            return Some(Next::Do(Step::CleanUp { store }));
        }
        (!self.purged).then_some(Next::Record(Event::Purged))
    }

    fn destination(&self) -> Outcome {
        match self.toward {
            Side::Pending => Outcome::Completed,
            Side::Previous => Outcome::Undone,
        }
    }

    /// An emergency ends the suspects before delivery is complete: at once, or when `stage_for` is over.
    fn ends_first(&self) -> bool {
        let asked_for = match self.plan.mode {
            Mode::Normal => false,
            Mode::Emergency { revoke_first, .. } => {
                revoke_first || crate::planted!("emergency_ends_first")
            }
        };
        asked_for || self.stage_closed
    }

    /// Returns whether the rotation moves although another one is moving the same store or workload: an emergency, once its
    /// suspects are ended anyhow. Until then it waits like any other, so that it causes no outage.
    pub fn waits_for_nobody(&self) -> bool {
        self.plan.is_emergency() && self.ends_first()
    }

    fn stage_over(&self, now: Timestamp) -> Option<Next> {
        self.stage_ends_at().filter(|until| now >= *until).map(|_| Next::Record(Event::StageClosed))
    }

    /// Returns when an emergency ends the suspects although delivery is not complete, while that is still to come.
    pub fn stage_ends_at(&self) -> Option<Timestamp> {
        let Mode::Emergency { revoke_first: false, stage_for } = self.plan.mode else {
            return None;
        };
        let delivering = self.minting.done && self.promoted != self.toward && !self.stage_closed;
        delivering.then_some(self.minting.minted_at + stage_for)
    }

    /// What a refusal for good, or for too long, leads to: the way back where there is one, else an operator.
    fn verdict(&self, now: Timestamp) -> Option<Next> {
        let parks_on = |tries: &&Tries| {
            crate::planted!("parks_on_any_unknown") && tries.last.is_none() && tries.step.mutates()
        };
        if let Some(tries) = self.tries.iter().find(parks_on) {
            return Some(Next::Record(Event::Parked {
                reason: ParkReason::OutOfPatience { step: tries.step },
            }));
        }
        let mut exhausted = self.tries.iter().filter(|tries| self.is_exhausted(tries));
        let is_passed = |step| {
            let is_anew = matches!(step, Step::Verify(_)) && self.is_made_anew(now);
            is_anew || self.goes_on_without(step, now)
        };
        let tries = exhausted.find(|tries| !is_passed(tries.step))?;
        if let Some(resume) = self.before_parking(tries.step, now) {
            return Some(self.not_before(resume, now));
        }
        Some(Next::Record(match tries.waits_for_a_person() {
            true => Event::Parked { reason: park_reason(tries) },
            false => self.back_or_parked(tries.step, tries.last.clone(), || park_reason(tries)),
        }))
    }

    /// The way back for the sake of a step where there is one, else an operator.
    fn back_or_parked(
        &self,
        step: Step,
        refusal: Option<Refusal>,
        parked: impl FnOnce() -> ParkReason,
    ) -> Event {
        match self.way_back().is_ok() && self.promoted == Side::Previous {
            true => Event::TurnedBack { because: Because::Step { step, refusal } },
            false => Event::Parked { reason: parked() },
        }
    }

    /// In an emergency a delivery that fails for good stops neither the others nor the end of the suspects.
    fn goes_on_without(&self, step: Step, now: Timestamp) -> bool {
        if !self.plan.is_emergency() || !(delivers(step) || matches!(step, Step::Probe { .. })) {
            return false;
        }
        let rush = self.rush(now);
        !rush.ready.is_empty()
            || rush.retry_at.is_some()
            || self.stage_ends_at().is_some()
            || (self.ends_first() && self.revoke(now).is_some())
    }

    /// Returns whether an emergency only waits for its suspects to be ended, since something was refused for good or for too long.
    pub fn has_given_up(&self) -> bool {
        let given_up = || self.tries.iter().any(|tries| self.is_exhausted(tries));
        self.plan.is_emergency() && self.open.is_empty() && given_up()
    }

    pub(crate) fn is_exhausted(&self, tries: &Tries) -> bool {
        let patience = match tries.step {
            Step::Visit => self.plan.policy.gate_limit,
            Step::Verify(_) | Step::VerifyDead(_)
                if !crate::planted!("a_key_that_spreads_is_refused") =>
            {
                self.plan.policy.patience + self.plan.issuer.facts.propagation
            }
            _ => self.plan.policy.patience,
        };
        match &tries.last {
            Some(Refusal { kind: RefusalKind::ValueRejected, .. }) => {
                tries.rejected >= VALUES && !crate::planted!("values_are_rejected_for_ever")
            }
            Some(_) if tries.is_answered_no() && !crate::planted!("asks_again_after_a_no") => true,
            _ => tries.count >= 3 && tries.last_at >= tries.first_at + patience,
        }
    }

    /// Puts a retry off until its time has come; in an emergency, what was refused for good until the stage is over, when the
    /// suspects are ended and an operator is asked.
    fn not_before(&self, owed: Next, now: Timestamp) -> Next {
        let Next::Do(step) = owed else { return owed };
        match self.tries.iter().find(|tries| same_try(step, tries.step)) {
            Some(tries) if now < tries.not_before => wait(tries.not_before, Why::Retry(step)),
            Some(tries) if self.is_exhausted(tries) => {
                self.stage_ends_at().map_or(owed, |until| wait(until, Why::Stage))
            }
            _ => owed,
        }
    }

    /// A replacement goes forward only. What cannot be extended stays as it is, and the replacement comes.
    fn is_lease_forward_only(&self) -> bool {
        let stays = self.plan.extend && !crate::planted!("refused_extension_parks");
        self.plan.strategy == Strategy::Lease && !stays
    }

    /// Returns whether the rotation can turn round, or why it cannot (I10).
    ///
    /// # Errors
    /// [`NoWayBack`] with the reason, in words that `undo` shows.
    pub fn way_back(&self) -> Result<(), NoWayBack> {
        let previous = self.plan.previous.as_ref();
        let minted = self.minting.attempts > 0;
        if self.outcome.is_some() {
            Err(NoWayBack::Over)
        } else if self.toward == Side::Previous {
            Err(NoWayBack::Already)
        } else if self.plan.is_emergency()
            || previous.is_some_and(|previous| previous.state == State::Compromised)
        {
            Err(NoWayBack::Compromised)
        } else if self.is_lease_forward_only()
            || (self.plan.strategy == Strategy::Cutover && minted)
        {
            Err(NoWayBack::ForwardOnly)
        } else if self.promoted == Side::Pending && previous.is_none() {
            Err(NoWayBack::First)
        } else if self.promoted == Side::Pending
            && self.ending.harmed(self.version(Side::Previous))
            && !crate::planted!("way_back_to_a_revoked_version")
        {
            Err(NoWayBack::Revoked)
        } else if self.purged {
            Err(NoWayBack::Purged)
        } else {
            Ok(())
        }
    }
}

/// Why a rotation cannot turn round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoWayBack {
    /// It has ended.
    #[error("it has ended")]
    Over,
    /// It is on its way back.
    #[error("it is on its way back already")]
    Already,
    /// The previous version is in other hands.
    #[error("the previous version is compromised and is never written again")]
    Compromised,
    /// The strategy has no way back.
    #[error("its strategy goes forward only")]
    ForwardOnly,
    /// There was no version before.
    #[error("there is no version before this one")]
    First,
    /// The previous version was ended for good.
    #[error("the previous version is revoked, or may be")]
    Revoked,
    /// The previous version's value is destroyed.
    #[error("the previous version is no longer sealed")]
    Purged,
}

/// Folding records.
impl Rotation {
    /// Folds one record.
    ///
    /// # Errors
    /// [`OutOfOrder`] where the record does not fit; the rotation is unchanged then.
    pub fn apply(&mut self, at: Timestamp, event: &Event) -> Result<(), OutOfOrder> {
        if !self.fits(event) {
            return Err(OutOfOrder {
                event: format!("{event:?}"),
                phase: self.phase().to_string(),
            });
        }
        if at < self.latest {
            self.walk.clock_was_set_back();
        }
        self.latest = self.latest.max(at);
        match event {
            Event::Planned(_) => {}
            Event::Intended { step, until, clocks } => {
                clocks.iter().for_each(|clocks| self.read(clocks));
                self.intended(*step, at, *until)
            }
            Event::Done { step, report } => self.done(*step, report, at),
            Event::Refused { step, refusal } => self.refused(*step, refusal, at),
            Event::Unknown { step } => self.unknown(*step, at),
            Event::MoveBegun { to } => self.walk.begin(*to, self.plan.workloads.len()),
            Event::Arrived { at: position } => {
                self.walk.arrived(*position, at);
                self.tries.clear();
            }
            Event::Promoted { side } => self.promoted(*side, at),
            Event::StageClosed => self.stage_closed = true,
            Event::TurnedBack { because } => self.turn_back(because),
            Event::Parked { reason } => self.parked = Some(reason.clone()),
            Event::Resumed => self.resumed(),
            Event::Identified { version, issued } => {
                self.ending.identified(*version, issued.clone())
            }
            Event::Overridden { .. } => self.ending.overridden = true,
            Event::WindowClosed { .. } => self.ending.window_closed = true,
            Event::Resolved { outcome, .. } | Event::Ended { outcome } => {
                self.outcome = Some(*outcome)
            }
            Event::Superseded { .. } => self.outcome = Some(Outcome::Superseded),
            Event::Purged => self.purged = true,
        }
        Ok(())
    }

    /// Finds a wall clock that was set back although each record is later than the one before it.
    fn read(&mut self, clocks: &Clocks) {
        let Some(before) = self.clocks.replace(*clocks) else { return };
        if let Some(shown) = clocks.set_back_since(&before) {
            self.latest = self.latest.max(shown);
            self.walk.clock_was_set_back();
            self.walk.dates_anew(before.wall, shown);
        }
    }

    fn fits(&self, event: &Event) -> bool {
        let answers_open = |step: &Step| self.open.iter().any(|open| open.step == *step);
        match event {
            _ if self.outcome.is_some() => false,
            Event::Planned(_) => false,
            Event::Done { step, .. } | Event::Refused { step, .. } | Event::Unknown { step } => {
                answers_open(step)
            }
            Event::Superseded { .. } => true,
            Event::Resumed => self.parked.is_some() || self.has_given_up(),
            Event::Resolved { .. } => self.parked.is_some(),
            Event::Identified { .. } | Event::Overridden { .. } | Event::WindowClosed { .. } => {
                self.open.is_empty()
            }
            Event::TurnedBack { .. } => self.open.is_empty() && self.way_back().is_ok(),
            Event::Intended { step: Step::KeepAlive(_), .. } => self.open.is_empty(),
            Event::Intended { step, .. } => self.parked.is_none() && self.has_room_for(*step),
            _ => self.open.is_empty() && self.parked.is_none(),
        }
    }

    /// One step at a time; in an emergency, all that its move can do at once.
    fn has_room_for(&self, step: Step) -> bool {
        let joins = |other: Step| delivers(other) && delivers(step) && other != step;
        self.open.is_empty()
            || (self.plan.is_emergency() && self.open.iter().all(|open| joins(open.step)))
    }

    fn intended(&mut self, step: Step, at: Timestamp, until: Timestamp) {
        if matches!(step, Step::KeepAlive(_)) {
            return self.open.push(Open { step, since: at, until });
        }
        self.forgive(self.tries.iter().map(|tries| tries.not_before).max(), at);
        self.open.push(Open { step, since: at, until });
        match step {
            Step::Mint { attempt } => self.mints(attempt),
            Step::Write { store, to } => self.walk.writing(store, to, self.line(), at),
            Step::Revoke(version) => self.ending.revoking(version),
            Step::Resume(_) => self.ending.break_off_brown_out(at),
            _ => {}
        }
    }

    fn done(&mut self, step: Step, report: &Report, at: Timestamp) {
        let open = self.close(step);
        if let Step::KeepAlive(version) = step {
            return self.kept_alive(version, report, at);
        }
        match (step, report) {
            (Step::Preflight, _) => self.preflighted = true,
            (Step::Capture, report) => {
                self.captured = true;
                let changed_at = match report {
                    Report::Captured { changed_at, .. } => changed_at.as_slice(),
                    _ => &[],
                };
                self.walk.captured(at, changed_at);
            }
            (Step::Mint { .. }, Report::Minted { issued, expires_at, .. }) => {
                self.minted(issued.clone(), *expires_at, at)
            }
            (Step::FindMint { .. }, Report::Found { issued, held, .. }) => {
                self.found(issued.clone(), *held, open.since, at)
            }
            (Step::RevokeStray { .. }, _) => drop(self.minting.strays.pop()),
            (Step::Extend, Report::Extended { expires_at }) => {
                self.minted(None, Some(*expires_at), at)
            }
            (Step::Verify(_), _) => {
                self.verified[self.toward.index()] = true;
                self.minting.asks_again &= self.toward == Side::Previous;
            }
            (Step::Write { store, to }, Report::Written { changed, changed_at }) => {
                // Where the wall clock was set back, replicas that started before the write seem to have started after it.
                let since =
                    if crate::planted!("evidence_on_a_clock_set_back") { at } else { self.latest };
                self.walk.written(store, to, *changed, changed_at, since, &self.plan.workloads);
            }
            (Step::Roll { workload, .. }, _) => return self.walk.rolled(workload),
            (Step::Evidence { workload, to }, Report::Seen(count)) if !count.complete() => {
                self.walk.must_roll(workload);
                return self.tried(Step::Roll { workload, to }, None, at);
            }
            (Step::Evidence { workload, .. }, _) => self.walk.proven(workload),
            (Step::Probe { .. }, _) => self.walk.probed(),
            (Step::Visit, Report::Visited(visit)) => self.visited(visit, open.since),
            (Step::Suspend(version), _) => self.ending.suspended(version, at),
            (Step::Resume(_), _) => self.ending.resumed(at),
            (Step::Revoke(version), _) => self.ending.revoked(version, at),
            (Step::VerifyDead(version), Report::Dead(death)) => {
                let settled = self.ending.died(version, *death);
                if !settled {
                    return self.tried(step, None, at);
                }
            }
            (Step::Sweep, Report::Swept { strays }) => self.swept(strays),
            (Step::CleanUp { store }, _) => self.cleaned = store + 1,
            _ => {}
        }
        let emergency = self.plan.is_emergency();
        self.tries
            .retain(|tries| settles(step, tries.step) || emergency && !same_try(step, tries.step));
    }

    fn close(&mut self, step: Step) -> Open {
        let open = self.open.iter().position(|open| open.step == step);
        self.open.remove(open.expect("fits() checked that the step is open"))
    }

    fn refused(&mut self, step: Step, refusal: &Refusal, at: Timestamp) {
        self.close(step);
        match step {
            Step::KeepAlive(version) => {
                let is_gone = refusal.kind == RefusalKind::NotFound && refusal.is_for_good();
                if is_gone && version == self.plan.pending {
                    self.minting.expires_at = self.minting.expires_at.map(|ends| ends.min(at));
                }
                return self.not_kept_alive(at);
            }
            Step::Write { store, .. } => self.walk.refused(store),
            Step::Roll { workload, .. } => self.walk.must_roll(workload),
            Step::Revoke(version) => self.ending.not_revoked(version),
            // A reader that hangs looks like that: the version is resumed.
            Step::Visit => self.ending.break_off_brown_out(at),
            Step::CleanUp { store } => return self.cleaned = store + 1,
            _ => {}
        }
        self.tried(step, Some(refusal), at);
    }

    fn unknown(&mut self, step: Step, at: Timestamp) {
        let open = self.close(step);
        if matches!(step, Step::KeepAlive(_)) {
            return self.not_kept_alive(at);
        }
        let settles_at = open.until + self.settle_for(step);
        self.forgive(Some(open.until), at);
        match step {
            // A person was told, and no request is on its way: what they did by now shows once a list has caught up.
            Step::Mint { attempt } if self.plan.issuer.facts.by_hand.is_some() => {
                self.lost(attempt, at + self.settle_for(step))
            }
            Step::Mint { attempt } => self.lost(attempt, settles_at),
            Step::Write { store, to } => self.walk.unanswered(store, to, settles_at),
            Step::Roll { workload, .. } => self.walk.must_roll(workload),
            Step::Suspend(version) => self.ending.suspend_unanswered(version, settles_at),
            Step::Revoke(version) => self.ending.revoke_unanswered(version),
            Step::Resume(_) => self.ending.resume_unanswered(settles_at),
            // A reader that hangs looks like that: the version is resumed.
            Step::Visit => self.ending.break_off_brown_out(at),
            // What stays harms nobody, and is looked for again at the end of the next rotation.
            Step::CleanUp { store } => return self.cleaned = store + 1,
            _ => {}
        }
        self.tried(step, None, at);
    }

    /// Patience is with a step that is tried, not with a time in which nobody ran: after such a gap it begins anew. A no stays
    /// a no.
    fn forgive(&mut self, expected: Option<Timestamp>, at: Timestamp) {
        if expected
            .is_some_and(|expected| at.since(expected) > self.plan.policy.patience.part(1, 4))
        {
            // What became of a lost mint is waited for by rule: that is no gap.
            let is_lost = |tries: &Tries| tries.last.is_none() && is_mint(tries.step);
            self.tries.retain(|tries| tries.is_answered_no() || is_lost(tries));
        }
    }

    fn settle_for(&self, step: Step) -> Span {
        if crate::planted!("absence_before_settle") {
            return Span::ZERO;
        }
        match step {
            Step::Write { store, .. } => self.plan.stores[usize::from(store)].facts.settle_for,
            Step::Roll { workload, .. } => {
                self.plan.workloads[usize::from(workload)].facts.settle_for
            }
            _ => self.plan.issuer.facts.settle_for,
        }
    }

    fn lost(&mut self, attempt: u16, settles_at: Timestamp) {
        self.minting.lost = Some(Lost { attempt, settles_at, looked: false, ambiguous: false });
        self.minting.may_have_made.push(attempt);
        self.minting.settles_at = self.minting.settles_at.max(Some(settles_at));
    }

    fn minted(&mut self, issued: Option<IssuedId>, expires_at: Option<Timestamp>, at: Timestamp) {
        let minting = &mut self.minting;
        minting.may_have_made.push(minting.attempts);
        minting.done = true;
        minting.lost = None;
        minting.issued = issued;
        minting.expires_at = expires_at;
        minting.expiry_known_at = at;
        minting.minted_at = at;
    }

    /// What was made before and no store was given is ended at the next occasion.
    fn mints(&mut self, attempt: u16) {
        self.minting.attempts = attempt;
        if std::mem::take(&mut self.minting.done) {
            // What nobody can end before its time ends by itself.
            let former = self.minting.issued.take();
            self.minting.strays.extend(former.filter(|_| self.plan.issuer.facts.destroy));
            self.minting.expires_at = None;
            self.minting.anew += 1;
            self.minting.asks_again = false;
            self.verified[Side::Pending.index()] =
                self.plan.issuer.facts.authority != Authority::Issuer;
            self.tries.retain(|tries| !matches!(tries.step, Step::Verify(_)));
        }
    }

    /// Has the issuer asked again whether it accepts the pending version, before the first store is given it: by whoever takes the
    /// rotation over, or had to wait for another one. What it was made with may be gone by now.
    pub fn ask_again(&mut self) {
        let asks = self.plan.issuer.facts.authority == Authority::Issuer
            && self.verified[Side::Pending.index()]
            && self.is_kept_from_readers();
        self.minting.asks_again |= asks && !crate::planted!("acceptance_outlives_a_wait");
    }

    /// A lease is extended beside whatever the rotation does: its tries stay as they are.
    fn kept_alive(&mut self, version: VersionId, report: &Report, at: Timestamp) {
        self.keeps_alive_at = at + self.plan.policy.retry;
        if let (Report::Extended { expires_at }, true) = (report, version == self.plan.pending) {
            self.minting.expires_at = Some(*expires_at);
            self.minting.expiry_known_at = at;
        }
    }

    fn not_kept_alive(&mut self, at: Timestamp) {
        self.keeps_alive_at = at + self.plan.policy.patience.part(1, 10);
    }

    /// A search that began before the last moment at which the mint could land proves no absence.
    fn found(&mut self, issued: Option<IssuedId>, held: bool, since: Timestamp, at: Timestamp) {
        let Some(lost) = &mut self.minting.lost else { return };
        match issued {
            // Without labels, an id that nobody knows may be somebody else's: it is neither taken nor ended (I23).
            Some(_) if self.plan.issuer.facts.observe == Observe::IdSetDifference => {
                lost.ambiguous = true
            }
            Some(issued) if held => {
                self.minted(Some(issued).filter(|issued| !issued.id.is_empty()), None, at)
            }
            Some(issued) => {
                self.minting.strays.push(issued);
                self.minting.lost = None;
            }
            None if since >= lost.settles_at => self.minting.lost = None,
            None => lost.looked = true,
        }
    }

    fn swept(&mut self, strays: &[IssuedId]) {
        let owned = self
            .plan
            .previous
            .iter()
            .chain(&self.plan.suspects)
            .filter_map(|version| version.issued.as_ref());
        let owned: SmallVec<[&IssuedId; 2]> = owned.chain(&self.minting.issued).collect();
        let strays: SmallVec<[IssuedId; 1]> =
            strays.iter().filter(|id| !owned.contains(id)).cloned().collect();
        self.swept = strays.is_empty();
        self.minting.strays = strays;
    }

    fn promoted(&mut self, side: Side, at: Timestamp) {
        self.promoted = side;
        self.promoted_at = at;
        self.was_promoted = true;
        self.tries.clear();
        self.ending.begin();
    }

    fn turn_back(&mut self, because: &Because) {
        self.toward = Side::Previous;
        self.turned_back = Some(because.clone());
        self.verified[Side::Previous.index()] = self.promoted == Side::Previous
            || self.plan.issuer.facts.authority != Authority::Issuer;
        self.walk.turned_back(self.plan.workloads.len());
        self.ending.begin();
        self.tries.clear();
        self.parked = None;
    }

    /// Everything is observed anew: stores are written again where they differ, and replicas prove themselves again.
    fn resumed(&mut self) {
        self.parked = None;
        self.tries.clear();
        // What carries a label that it should not carry was looked at.
        self.minting.may_have_made = (1..=self.minting.attempts).collect();
        if let Some(lost) = &mut self.minting.lost {
            lost.ambiguous = false;
        }
        self.minting.anew = 0;
        self.ask_again();
        self.ending.begin_again();
        if self.walk.is_touched() {
            self.walk.observe_anew(self.plan.workloads.len());
        }
    }

    /// Notes a try that did not do, and when the next one may begin.
    fn tried(&mut self, step: Step, refusal: Option<&Refusal>, at: Timestamp) {
        let former = self.tries.iter().position(|tries| same_try(tries.step, step));
        let former = former.map(|former| self.tries.remove(former));
        let (first_at, count, rejected) = former
            .map_or((at, 1, 0), |former| (former.first_at, former.count + 1, former.rejected));
        let is_rejected = refusal.is_some_and(|refusal| refusal.kind == RefusalKind::ValueRejected);
        if !self.plan.is_emergency() {
            self.tries.retain(|tries| settles(step, tries.step));
        }
        let asked = match refusal {
            Some(Refusal { remedy: Remedy::Retry { after: Some(after) }, .. }) => *after,
            _ => Span::ZERO,
        };
        let pause = self.pause(count).max(asked);
        self.tries.push(Tries {
            step,
            first_at,
            last_at: at,
            not_before: at + pause,
            count,
            rejected: rejected + u32::from(is_rejected),
            last: refusal.cloned(),
        });
    }

    /// The pause before the next try: doubling, capped, and spread by up to a quarter that is the same in every replay.
    fn pause(&self, count: u32) -> Span {
        let policy = &self.plan.policy;
        let doubled =
            Span::millis(policy.retry.as_millis().saturating_mul(1 << (count - 1).min(20)));
        let capped = doubled.min(policy.patience.part(1, 4));
        let spread = self
            .id
            .0
            .bytes()
            .fold(u64::from(count), |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        capped + capped.part(spread % 256, 1024)
    }
}

/// Reading a rotation.
impl Rotation {
    /// Returns its id.
    pub fn id(&self) -> &RotationId {
        &self.id
    }

    /// Returns its plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Returns when it began.
    pub fn began_at(&self) -> Timestamp {
        self.began_at
    }

    /// Returns the latest time of any of its records; the last one may be earlier, where the wall clock was set back.
    pub fn latest(&self) -> Timestamp {
        self.latest
    }

    /// Returns its phase, in the pinned words.
    pub fn phase(&self) -> Phase {
        Phase::of(self)
    }

    /// Returns the version that it walks towards.
    pub fn toward(&self) -> Side {
        self.toward
    }

    /// Returns why it turned round, where it did.
    pub fn turned_back_because(&self) -> Option<&Because> {
        self.turned_back.as_ref()
    }

    /// Returns the version that readers are told to use.
    pub fn promoted_side(&self) -> Side {
        self.promoted
    }

    /// Returns whether the rotation ever promoted a version.
    pub fn was_ever_promoted(&self) -> bool {
        self.was_promoted
    }

    /// Returns whether readers were told to use the version that it walks towards: what is left is a retirement.
    pub fn retires(&self) -> bool {
        self.was_promoted && self.promoted == self.toward
    }

    /// Returns whether it [retires](Self::retires) a version and no move is under way: what stores and replicas hold can be
    /// judged.
    pub fn rests(&self) -> bool {
        self.retires() && self.walk.moving_to().is_none()
    }

    /// Returns when that version was promoted; when the rotation began, where none was.
    pub fn promoted_at(&self) -> Timestamp {
        self.promoted_at
    }

    /// Returns the line that it walks.
    pub fn line(&self) -> Line {
        self.plan.strategy.line(self.plan.is_emergency())
    }

    /// Returns its walk along the line.
    pub fn walk(&self) -> &Walk {
        &self.walk
    }

    /// Returns its retirement of the version that it walks away from.
    pub fn ending(&self) -> &Ending {
        &self.ending
    }

    /// Returns how it ended, where it has.
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome
    }

    /// Returns what it waits for an operator for.
    pub fn parked(&self) -> Option<&ParkReason> {
        self.parked.as_ref()
    }

    /// Returns the first step whose call has not come back.
    pub fn open_step(&self) -> Option<Step> {
        self.open.first().map(|open| open.step)
    }

    /// Returns the version at a side: its number.
    pub fn version(&self, side: Side) -> Option<VersionId> {
        match side {
            Side::Previous => self.plan.previous.as_ref().map(|previous| previous.version),
            Side::Pending => Some(self.plan.pending),
        }
    }

    /// Returns whether the pending version exists, as far as is known.
    pub fn is_minted(&self) -> bool {
        self.minting.done
    }

    /// Returns how many mint attempts were begun.
    pub fn mint_attempts(&self) -> u16 {
        self.minting.attempts
    }

    /// Returns whether something may be live under the label of a mint attempt: it was not refused, as far as its records go.
    pub fn may_have_made(&self, attempt: u16) -> bool {
        self.minting.may_have_made.contains(&attempt)
    }

    /// Returns when the issuer ends the pending version by itself.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.minting.expires_at
    }

    /// Returns before when no lease is [kept alive](crate::due::keep_alive): after a try that brought nothing there is a pause.
    pub fn keeps_alive_at(&self) -> Timestamp {
        self.keeps_alive_at
    }

    /// Returns the credential that the next [`Step::RevokeStray`] ends.
    pub fn stray(&self) -> Option<&IssuedId> {
        self.minting.strays.last()
    }

    /// Returns how the issuer names a version.
    pub fn issued(&self, version: VersionId) -> Option<&IssuedId> {
        if version == self.plan.pending {
            return self.minting.issued.as_ref();
        }
        let planned = || {
            let mut known = self.plan.previous.iter().chain(&self.plan.suspects);
            known.find(|known| known.version == version).and_then(|known| known.issued.as_ref())
        };
        self.ending.issued(version).or_else(planned)
    }

    /// Returns until when any call of this rotation can still change a store or the issuer, at the latest. A roll that was
    /// broken off is not among them: whoever goes on rolls again, and looks at every replica. Nor is more time for a lease.
    pub fn unsettled_until(&self) -> Option<Timestamp> {
        let is_harmless = |step| matches!(step, Step::Roll { .. } | Step::KeepAlive(_));
        let lands = |open: &&Open| open.step.mutates() && !is_harmless(open.step);
        let open = self.open.iter().filter(lands);
        let open = open.map(|open| open.until + self.settle_for(open.step)).max();
        open.max(self.minting.settles_at).max(self.walk.settles_at())
    }

    /// Returns the last refusal of a step that was not done since.
    pub fn last_refusal(&self, step: Step) -> Option<&Refusal> {
        self.tries.iter().find(|tries| same_try(step, tries.step))?.last.as_ref()
    }

    /// Returns the sentence of the last refusal, where a step is being tried again.
    pub fn trouble(&self) -> Option<(Step, Option<&Refusal>)> {
        self.tries.last().map(|tries| (tries.step, tries.last.as_ref()))
    }

    fn token_wait(&self) -> Span {
        if self.plan.is_emergency() { Span::ZERO } else { self.plan.strategy.token_wait() }
    }
}

pub(crate) fn wait(until: Timestamp, why: Why) -> Next {
    Next::Wait { until, why }
}

/// Whether a step brings a version to a store or a workload.
fn delivers(step: Step) -> bool {
    matches!(step, Step::Write { .. } | Step::Roll { .. } | Step::Evidence { .. })
}

fn is_mint(step: Step) -> bool {
    matches!(step, Step::Mint { .. })
}

/// Whether a step settles what became of another one, between two tries of it or before an operator is asked: it is no reason to
/// forget those tries.
fn settles(step: Step, other: Step) -> bool {
    match step {
        Step::FindMint { .. } | Step::RevokeStray { .. } => {
            is_mint(other) && !crate::planted!("lost_mints_are_repeated_for_ever")
        }
        Step::Resume(_) => matches!(other, Step::Suspend(_)),
        // Between two tries of a write: what was to be written is made anew, or asked for again.
        Step::Mint { .. } | Step::Verify(_) => matches!(other, Step::Write { .. }),
        _ => false,
    }
}

/// Roll and evidence of one workload are one endeavour: evidence that is not complete leads to another roll.
fn same_try(a: Step, b: Step) -> bool {
    match (a, b) {
        (
            Step::Roll { workload: a, .. } | Step::Evidence { workload: a, .. },
            Step::Roll { workload: b, .. } | Step::Evidence { workload: b, .. },
        ) => a == b,
        (Step::Mint { .. }, Step::Mint { .. }) => true,
        _ => a == b,
    }
}

fn park_reason(tries: &Tries) -> ParkReason {
    match (&tries.last, tries.step) {
        (None, Step::VerifyDead(_)) => ParkReason::DeathUnproven,
        (Some(refusal), step) if refusal.is_for_good() => {
            ParkReason::Refused { step, refusal: refusal.clone() }
        }
        (_, step) => ParkReason::OutOfPatience { step },
    }
}
