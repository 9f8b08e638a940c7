//! The retirement of a version: soak, withdraw and suspend, rollback window, revoke, proof of death.
//!
//! Nothing here runs unless a visit that is fresh enough saw every gate green. A version that was never promoted, an
//! emergency, a lease and a cutover have no soak and no window: the version is revoked once no reader can need it.

use smallvec::SmallVec;

use crate::brownout::BrownOut;
use crate::event::{Death, Event, ParkReason, Step};
use crate::facts::Authority;
use crate::gate::{self, Gate, Gates, Light, Soak, Terms, Visit};
use crate::plan::{CannotTell, Keep};
use crate::rotation::{Next, Rotation, Why, wait};
use crate::strategy::{Side, Strategy};
use crate::time::{Span, Timestamp};
use crate::version::{IssuedId, VersionId};

/// How far a retirement is.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    soak: Soak,
    pub(crate) brownout: BrownOut,
    soaked_at: Option<Timestamp>,
    window: Soak,
    window_over_at: Option<Timestamp>,
    visited: Option<Visited>,
    /// Since when no visit was green, whatever it was made for.
    closed_since: Option<Timestamp>,
    pub(crate) suspended: Option<Suspended>,
    /// Until when a suspend without an answer can still land.
    late_suspend: Option<Timestamp>,
    /// Until when a resume without an answer can still land.
    late_resume: Option<Timestamp>,
    /// Since when brown-outs proved nothing.
    pub(crate) unproven_since: Option<Timestamp>,
    /// Probes turned red soon after a suspend.
    pub(crate) alarm: bool,
    pub(crate) window_closed: bool,
    pub(crate) overridden: bool,
    versions: SmallVec<[Version; 1]>,
    identified: Option<(VersionId, IssuedId)>,
}

#[derive(Clone, Copy, Debug)]
struct Visited {
    at: Timestamp,
    light: Light,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Suspended {
    pub(crate) version: VersionId,
    pub(crate) at: Timestamp,
    /// Whether it is to be resumed, and soak to go on.
    pub(crate) for_brown_out: bool,
}

#[derive(Clone, Copy, Debug)]
struct Version {
    version: VersionId,
    /// A revoke was intended and not definitely refused.
    harmed: bool,
    /// A revoke had no answer: that a later one was refused says nothing of it (H93).
    may_be_revoked: bool,
    revoked_at: Option<Timestamp>,
    death: Option<Death>,
}

impl Rotation {
    /// The list of a retirement.
    pub(crate) fn retire(&self, now: Timestamp) -> Option<Next> {
        self.sound_alarm(now)
            .or_else(|| self.settle_mint(now))
            .or_else(|| self.identify())
            .or_else(|| self.brown_out(now))
            .or_else(|| self.soak(now))
            .or_else(|| self.await_runs(now))
            .or_else(|| self.withdraw(now))
            .or_else(|| self.suspend(now))
            .or_else(|| self.window(now))
            .or_else(|| self.revoke(now))
            .or_else(|| self.prove_dead())
    }

    /// Returns the versions that the rotation ends.
    pub fn retiring(&self) -> SmallVec<[VersionId; 2]> {
        match self.toward.other() {
            Side::Pending => self.minting.done.then_some(self.plan.pending).into_iter().collect(),
            Side::Previous => self
                .plan
                .previous
                .iter()
                .chain(&self.plan.suspects)
                .map(|version| version.version)
                .collect(),
        }
    }

    /// Returns whether the retirement has a soak and a rollback window.
    pub fn has_windows(&self) -> bool {
        self.was_promoted && self.plan.has_soak() && !self.retiring().is_empty()
    }

    /// Where soak must hear of the version's last use, its id is asked for now, and not when a gate has stayed closed for days.
    fn identify(&self) -> Option<Next> {
        let asks = self.plan.issuer.facts.last_used.is_some()
            && self.plan.policy.cannot_tell == CannotTell::Wait;
        if asks && self.has_windows() {
            self.unless_identified(*self.retiring().first()?)
        } else {
            None
        }
    }

    fn soak(&self, now: Timestamp) -> Option<Next> {
        if !self.has_windows() || self.ending.soaked_at.is_some() {
            return None;
        }
        let whole = self.plan.policy.soak;
        Some(self.visit(now, self.ending.soak.pause(whole, self.ending.visited)))
    }

    /// Without a soak, a version that readers may have begun with is ended once none of their runs can still go on (H56).
    fn await_runs(&self, now: Timestamp) -> Option<Next> {
        let was_used = self.walk.was_used(self.toward.other());
        if self.has_windows() || self.plan.is_emergency() || !was_used || self.retiring().is_empty()
        {
            return None;
        }
        let ended_at = self.walk.arrived_at() + self.plan.longest_run()?;
        let waits = now < ended_at && !crate::planted!("runs_are_cut_off");
        waits.then(|| wait(ended_at, Why::Runs))
    }

    /// Takes the version out of what readers accept: the last move of a keyring, and its suspend.
    fn withdraw(&self, now: Timestamp) -> Option<Next> {
        let end = self.line().end(self.toward);
        if self.walk.position() == end && self.walk.moving_to().is_none() {
            return None;
        }
        if self.plan.strategy == Strategy::Append
            && (self.was_promoted || self.walk.was_used(self.toward.other()))
        {
            return Some(Next::Record(Event::Parked { reason: ParkReason::ProofNeeded }));
        }
        let owed = self.walk_to(end, now)?;
        match owed {
            Next::Record(Event::MoveBegun { .. }) => self.unless_green(now).or(Some(owed)),
            _ => Some(owed),
        }
    }

    fn suspend(&self, now: Timestamp) -> Option<Next> {
        if !self.has_windows() || !self.plan.issuer.facts.suspend || self.ending.suspended.is_some()
        {
            return None;
        }
        let version = *self.retiring().first()?;
        self.before_suspend(version, now).or(Some(Next::Do(Step::Suspend(version))))
    }

    /// What is owed before a version may be suspended. A resume that can still land would undo the suspend.
    pub(crate) fn before_suspend(&self, version: VersionId, now: Timestamp) -> Option<Next> {
        self.unless_identified(version)
            .or_else(|| self.unless_green(now))
            .or_else(|| self.ending.settled_resume(now).map(|until| wait(until, Why::Settle)))
    }

    fn window(&self, now: Timestamp) -> Option<Next> {
        let ending = &self.ending;
        if !self.has_windows() || ending.window_closed || ending.window_over_at.is_some() {
            return None;
        }
        let whole = self.rollback();
        if whole.is_zero() {
            return None;
        }
        let mut pause = ending.window.pause(whole, ending.visited);
        if self.watched_until().is_some_and(|until| now < until) {
            pause = pause.min(self.plan.policy.watch.part(1, 6));
        }
        Some(self.visit(now, pause))
    }

    /// Ends each version at the issuer, by the id that the journal names (H92).
    pub(crate) fn revoke(&self, now: Timestamp) -> Option<Next> {
        let facts = &self.plan.issuer.facts;
        if !facts.destroy
            || (self.plan.strategy == Strategy::Cutover && self.toward == Side::Pending)
        {
            return None;
        }
        let version =
            self.retiring().into_iter().find(|version| !self.ending.is_revoked(*version))?;
        self.unless_identified(version)
            .or_else(|| self.unless_green(now))
            .or(Some(Next::Do(Step::Revoke(version))))
    }

    /// Asks whoever can know whether each version is refused; a version that nobody ever accepted needs no proof.
    fn prove_dead(&self) -> Option<Next> {
        let never_accepted = self.toward == Side::Previous
            && match self.plan.issuer.facts.authority {
                Authority::Issuer => !self.verified[Side::Pending.index()],
                Authority::Workload => !self.walk.is_touched(),
                Authority::None => false,
            };
        if never_accepted {
            return None;
        }
        let version =
            self.retiring().into_iter().find(|version| self.ending.death(*version).is_none())?;
        Some(Next::Do(Step::VerifyDead(version)))
    }

    /// Probes that turn red soon after a suspend resume the version, and an operator decides.
    fn sound_alarm(&self, now: Timestamp) -> Option<Next> {
        if !self.ending.alarm {
            return None;
        }
        if let Some(suspended) = self.ending.suspended {
            return Some(Next::Do(Step::Resume(suspended.version)));
        }
        // Nothing runs while it is parked: a suspend that may still land is undone before.
        if let Some(version) = self.retiring().first().filter(|_| self.ending.has_late_suspend()) {
            return Some(self.resume_once_settled(*version, now));
        }
        let end = self.line().end(self.toward);
        let before = self.line().neighbour(end, self.line().end(self.toward.other()));
        let back = if self.line().at(before).current == self.toward { before } else { end };
        self.walk_to(back, now)
            .or(Some(Next::Record(Event::Parked { reason: ParkReason::RedAfterSuspend })))
    }

    /// A look at the gates, when one is due; an operator, when they stayed closed for too long.
    fn visit(&self, now: Timestamp, pause: Span) -> Next {
        let (closed_since, limit) = (self.ending.closed_since, self.plan.policy.gate_limit);
        let is_closed = closed_since.is_some_and(|since| now.since(since) >= limit);
        // Each brown-out that proved nothing had soak begin anew.
        let limit = limit + self.plan.policy.soak;
        let is_unproven = self.ending.unproven_since.is_some_and(|since| now.since(since) >= limit);
        if is_closed || is_unproven {
            return Next::Record(Event::Parked { reason: ParkReason::GateClosed });
        }
        let why = if self.ending.soaked_at.is_some() { Why::Rollback } else { Why::Soak };
        match self.ending.visited {
            Some(visited) => {
                // The longer a gate stays closed, the more seldom it is looked at: a short soak must not become a busy loop.
                let closed_for = closed_since.map_or(Span::ZERO, |since| visited.at.since(since));
                let floor = if visited.light == Light::Green {
                    Span::ZERO
                } else {
                    self.plan.policy.retry.max(closed_for.part(1, 8))
                };
                let due = visited.at + pause.max(floor);
                if now < due { wait(due, why) } else { Next::Do(Step::Visit) }
            }
            None => Next::Do(Step::Visit),
        }
    }

    /// Nothing is harmed but on the word of the last visit: it was green, and is fresh. One that seems to lie ahead was made
    /// before the wall clock was set back, and proves nothing.
    pub(crate) fn unless_green(&self, now: Timestamp) -> Option<Next> {
        if !self.has_windows() {
            return None;
        }
        let fresh = |visited: &Visited| {
            let in_time = visited.at <= now && now.since(visited.at) <= self.plan.policy.fresh_for;
            in_time || crate::planted!("revoke_before_fresh_sample")
        };
        match &self.ending.visited {
            Some(visited) if visited.light == Light::Green && fresh(visited) => None,
            Some(visited) if visited.light == Light::Green => Some(Next::Do(Step::Visit)),
            Some(_) => Some(self.visit(now, self.plan.policy.soak.part(1, 8))),
            None => Some(Next::Do(Step::Visit)),
        }
    }

    pub(crate) fn unless_identified(&self, version: VersionId) -> Option<Next> {
        self.issued(version)
            .is_none()
            .then_some(Next::Record(Event::Parked { reason: ParkReason::IdUnknown { version } }))
    }

    /// How long the way back stays open after the version was suspended, withdrawn, or could have been revoked.
    pub fn rollback(&self) -> Span {
        let facts = &self.plan.issuer.facts;
        let reversible = facts.suspend || matches!(self.plan.strategy, Strategy::Keyring { .. });
        if reversible || self.plan.policy.keep == Keep::Rollback {
            self.plan.policy.rollback
        } else {
            Span::ZERO
        }
    }

    /// Until when red probes undo the suspend by themselves.
    fn watched_until(&self) -> Option<Timestamp> {
        let suspended = self.ending.suspended.map(|suspended| suspended.at);
        let withdrawn = || {
            let end = self.line().end(self.toward);
            let moved =
                self.line().promotes(self.toward, self.line().end(self.toward.other())) != end;
            (moved && self.walk.position() == end).then_some(self.walk.arrived_at())
        };
        Some(suspended.or_else(withdrawn)? + self.plan.policy.watch)
    }

    pub(crate) fn visited(&mut self, visit: &Visit, since: Timestamp) {
        let unseen = self.is_browned_out() && crate::planted!("brownout_ignores_red");
        let light = if unseen { Light::Green } else { self.light(visit) };
        let policy = &self.plan.policy;
        let watched = self.is_browned_out()
            || self.ending.has_late_suspend() && self.ending.suspended.is_none()
            || self.watched_until().is_some_and(|until| visit.clocks.wall < until);
        let rollback = self.rollback();
        let whole = policy.soak;
        let may_end = self.needs_no_brown_out();
        let begins_anew = self.looked_in_brown_out(visit, light);
        let ending = &mut self.ending;
        if ending.soaked_at.is_none() {
            let counts_as = if begins_anew { Light::Red } else { light };
            ending.soak.visit(visit.clocks, counts_as, whole);
            if light == Light::Green && may_end && ending.soak.counted >= whole {
                ending.soaked_at = Some(since);
            }
        } else if ending.window_over_at.is_none() {
            ending.window.visit(
                visit.clocks,
                if light == Light::Red { Light::Amber } else { Light::Green },
                rollback,
            );
            if ending.window.counted >= rollback {
                ending.window_over_at = Some(since);
            }
        }
        let is_red = visit.probes == Some(false) && !ending.overridden;
        ending.alarm = watched && is_red && !unseen;
        ending.visited = Some(Visited { at: since, light });
        ending.closed_since = match light {
            Light::Green => None,
            Light::Amber | Light::Red => ending.closed_since.or(Some(visit.clocks.wall)),
        };
    }

    fn light(&self, visit: &Visit) -> Light {
        self.gates(visit).light(self.plan.policy.cannot_tell)
    }

    /// Judges what a visit of this rotation saw.
    pub fn gates(&self, visit: &Visit) -> Gates {
        let policy = &self.plan.policy;
        let terms = Terms {
            has_probes: !self.plan.probes.is_empty(),
            shows_drift: self.plan.stores.iter().any(|store| store.facts.shows_changes()),
            evidence_at: self.promoted_at,
            last_used: self.plan.issuer.facts.last_used,
            cannot_tell: policy.cannot_tell,
        };
        let mut gates = gate::judge(visit, &terms);
        if self.ending.overridden {
            (gates.quiet, gates.probes) = (Gate::NotApplicable, Gate::NotApplicable);
        }
        gates
    }
}

impl Soak {
    /// Returns how long after the last visit the next one is due: a quarter of the whole, or what is left; sooner where the
    /// last one was not green.
    fn pause(&self, whole: Span, visited: Option<Visited>) -> Span {
        match visited.map(|visited| visited.light) {
            Some(Light::Green) => whole.part(1, 4).min(whole.less(self.counted)),
            _ => whole.part(1, 8),
        }
        .max(Span::millis(10))
    }
}

impl Ending {
    /// A retirement begins: nothing of an earlier one counts (its deadlines died with it).
    pub(crate) fn begin(&mut self) {
        if crate::planted!("deadline_survives_undo") {
            return;
        }
        *self = Self {
            suspended: self.suspended,
            late_suspend: self.late_suspend,
            late_resume: self.late_resume,
            versions: std::mem::take(&mut self.versions),
            identified: self.identified.take(),
            ..Self::default()
        };
    }

    /// An operator lets a parked retirement go on: soak counts anew, what was ended stays ended, what was overridden stays so.
    pub(crate) fn begin_again(&mut self) {
        let (overridden, window_closed) = (self.overridden, self.window_closed);
        self.begin();
        (self.overridden, self.window_closed) = (overridden, window_closed);
    }

    pub(crate) fn suspended(&mut self, version: VersionId, at: Timestamp) {
        let for_brown_out = self.soaked_at.is_none();
        self.suspended = Some(Suspended { version, at, for_brown_out });
        if for_brown_out {
            self.brownout = BrownOut::On(None, Span::ZERO);
        }
    }

    /// Ends a brown-out that is under way: the version is to be resumed, or a resume may land.
    pub(crate) fn break_off_brown_out(&mut self, at: Timestamp) {
        match self.brownout {
            // Whoever says that gates do not count has soak go on.
            BrownOut::On(..) if self.overridden => self.brownout = BrownOut::Passed,
            BrownOut::On(..) => self.brown_out_proved_nothing(at),
            BrownOut::Owed | BrownOut::Passed => {}
        }
    }

    pub(crate) fn resume_unanswered(&mut self, settles_at: Timestamp) {
        self.late_resume = self.late_resume.max(Some(settles_at));
    }

    pub(crate) fn settled_resume(&self, now: Timestamp) -> Option<Timestamp> {
        self.late_resume.filter(|until| now < *until)
    }

    /// The version is resumed, soak begins anew, and it is not tried for ever.
    pub(crate) fn brown_out_proved_nothing(&mut self, at: Timestamp) {
        self.brownout = BrownOut::Owed;
        self.soak = Soak::default();
        self.unproven_since = self.unproven_since.or(Some(at));
    }

    pub(crate) fn has_late_suspend(&self) -> bool {
        self.late_suspend.is_some()
    }

    pub(crate) fn suspend_unanswered(&mut self, version: VersionId, settles_at: Timestamp) {
        self.late_suspend = self.late_suspend.max(Some(settles_at));
        self.version(version);
    }

    /// The version is accepted again; a suspend that can still land would end that, and is not forgotten.
    pub(crate) fn resumed(&mut self, at: Timestamp) {
        self.suspended = None;
        self.late_suspend = self.settled_suspend(at);
    }

    pub(crate) fn is_or_may_be_suspended(&self, version: VersionId) -> bool {
        self.suspended.is_some_and(|suspended| suspended.version == version)
            || self.late_suspend.is_some()
    }

    /// Until when a resume would be undone by a suspend that lands late.
    pub(crate) fn settled_suspend(&self, now: Timestamp) -> Option<Timestamp> {
        self.late_suspend.filter(|until| now < *until)
    }

    pub(crate) fn revoking(&mut self, version: VersionId) {
        self.version(version).harmed = true;
    }

    pub(crate) fn revoke_unanswered(&mut self, version: VersionId) {
        self.version(version).may_be_revoked = true;
    }

    pub(crate) fn not_revoked(&mut self, version: VersionId) {
        let version = self.version(version);
        version.harmed = version.may_be_revoked;
    }

    pub(crate) fn revoked(&mut self, version: VersionId, at: Timestamp) {
        self.version(version).revoked_at = Some(at);
    }

    /// Notes what a proof of death found; returns whether it settles the question.
    pub(crate) fn died(&mut self, version: VersionId, death: Death) -> bool {
        let settled = match death {
            Death::Refused | Death::NoOneToAsk | Death::EndsAt { .. } => true,
            Death::StillAccepted | Death::CannotTell => crate::planted!("unproven_death_is_fine"),
        };
        if settled {
            self.version(version).death = Some(death);
        }
        settled
    }

    pub(crate) fn identified(&mut self, version: VersionId, issued: IssuedId) {
        self.identified = Some((version, issued));
    }

    pub(crate) fn issued(&self, version: VersionId) -> Option<&IssuedId> {
        self.identified
            .as_ref()
            .filter(|(identified, _)| *identified == version)
            .map(|(_, issued)| issued)
    }

    pub(crate) fn harmed(&self, version: Option<VersionId>) -> bool {
        self.versions.iter().any(|known| Some(known.version) == version && known.harmed)
    }

    fn version(&mut self, version: VersionId) -> &mut Version {
        let known = self.versions.iter().position(|known| known.version == version);
        let index = known.unwrap_or_else(|| {
            self.versions.push(Version {
                version,
                harmed: false,
                may_be_revoked: false,
                revoked_at: None,
                death: None,
            });
            self.versions.len() - 1
        });
        &mut self.versions[index]
    }

    /// Returns whether a version was revoked.
    pub fn is_revoked(&self, version: VersionId) -> bool {
        self.revoked_at(version).is_some()
    }

    /// Returns when a version was revoked.
    pub fn revoked_at(&self, version: VersionId) -> Option<Timestamp> {
        self.versions.iter().find(|known| known.version == version)?.revoked_at
    }

    /// Returns what a proof of death found.
    pub fn death(&self, version: VersionId) -> Option<Death> {
        self.versions.iter().find(|known| known.version == version)?.death
    }

    /// Returns when a version was suspended at its issuer.
    pub fn suspended_at(&self, version: VersionId) -> Option<Timestamp> {
        self.suspended
            .filter(|suspended| suspended.version == version)
            .map(|suspended| suspended.at)
    }

    /// Returns how much soak was counted.
    pub fn soak_counted(&self) -> Span {
        self.soak.counted
    }

    /// Returns when soak was over.
    pub fn soaked_at(&self) -> Option<Timestamp> {
        self.soaked_at
    }

    /// Returns how much of the rollback window was counted.
    pub fn window_counted(&self) -> Span {
        self.window.counted
    }

    /// Returns whether an operator overrode its gates.
    pub fn is_overridden(&self) -> bool {
        self.overridden
    }

    /// Returns when the last visit began and what it saw.
    pub fn last_visit(&self) -> Option<(Timestamp, Light)> {
        self.visited.map(|visited| (visited.at, visited.light))
    }
}
