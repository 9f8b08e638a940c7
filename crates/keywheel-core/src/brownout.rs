//! Brown-out: in the middle of soak the version to be ended is suspended for a while, watched, and resumed.
//!
//! It shows who still needs the version while a word brings it back. It is asked for by policy, where the issuer can suspend;
//! it ends nothing, and the suspend at the end of soak comes after it all the same. A probe that turns red meanwhile resumes
//! the version at once and asks an operator; any other gate that closes, and a look without an answer, resumes it, and soak
//! begins anew. Where an operator overrode the gates there is none: it would prove nothing.

use crate::event::Step;
use crate::gate::{Clocks, Light, Visit};
use crate::rotation::{Next, Rotation, Tries, Why, wait};
use crate::time::{Span, Timestamp};
use crate::version::VersionId;

/// How far the brown-out of a soak is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum BrownOut {
    /// It is still to come.
    #[default]
    Owed,
    /// The version is suspended for it: when it was last looked at, and how long it was watched until then.
    On(Option<Clocks>, Span),
    /// Nobody missed the version for as long as policy says.
    Passed,
}

/// What one look brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looked {
    GoesOn,
    Passed,
    Failed,
}

impl Rotation {
    /// The version is suspended for a brown-out: the next look, or its end.
    pub(crate) fn in_brown_out(&self, now: Timestamp) -> Option<Next> {
        let whole = self.brown_out_for().filter(|_| self.retires())?;
        let suspended = self.ending.suspended.filter(|suspended| suspended.for_brown_out)?;
        // Nobody watched it to its end: it is not left suspended for another look. A look may take as long as a call.
        let is_forgotten = now.since(suspended.at) >= whole + whole + self.plan.policy.call;
        let goes_on = !is_forgotten && !self.ending.overridden;
        Some(match self.ending.brownout {
            BrownOut::On(..) if goes_on => self.next_look(whole, now),
            _ => Next::Do(Step::Resume(suspended.version)),
        })
    }

    /// Begins the brown-out once half of soak has passed.
    pub(crate) fn brown_out(&self, now: Timestamp) -> Option<Next> {
        self.brown_out_for()?;
        let ending = &self.ending;
        if ending.suspended.is_some() || ending.soaked_at().is_some() {
            return None;
        }
        let version = *self.retiring().first()?;
        let may_be = ending.is_or_may_be_suspended(version);
        let is_owed = matches!(ending.brownout, BrownOut::Owed)
            && ending.last_visit().is_some()
            && !ending.overridden;
        if is_owed && ending.soak_counted() >= self.plan.policy.soak.part(1, 2) {
            match self.before_suspend(version, now) {
                None => return Some(Next::Do(Step::Suspend(version))),
                // Nothing is waited for while the version may be suspended already.
                Some(_) if may_be => {}
                blocked => return blocked,
            }
        }
        may_be.then(|| self.resume_once_settled(version, now))
    }

    /// A suspend without an answer may still land, and would then last until somebody notices.
    pub(crate) fn resume_once_settled(&self, version: VersionId, now: Timestamp) -> Next {
        let resume = Next::Do(Step::Resume(version));
        self.ending.settled_suspend(now).map_or(resume, |until| wait(until, Why::Settle))
    }

    /// A suspend that is given up may land all the same: it is undone before an operator is asked.
    pub(crate) fn before_parking(&self, step: Step, now: Timestamp) -> Option<Next> {
        let Step::Suspend(version) = step else { return None };
        let is_owed = self.ending.soaked_at().is_none() && self.ending.has_late_suspend();
        let is_resume = |tries: &&Tries| matches!(tries.step, Step::Resume(_));
        let gave_up = self.tries.iter().filter(is_resume).any(|tries| self.is_exhausted(tries));
        (is_owed && !gave_up).then(|| self.resume_once_settled(version, now))
    }

    fn next_look(&self, whole: Span, now: Timestamp) -> Next {
        let pause = whole.part(1, 6).max(Span::millis(10));
        match (self.ending.brownout, self.ending.last_visit()) {
            (BrownOut::On(Some(_), _), Some((at, _))) if at <= now && now < at + pause => {
                wait(at + pause, Why::BrownOut)
            }
            _ => Next::Do(Step::Visit),
        }
    }

    /// Returns how long this retirement's brown-out lasts; none where it has none.
    pub fn brown_out_for(&self) -> Option<Span> {
        let can = self.has_windows() && self.plan.issuer.facts.suspend;
        self.plan.policy.brownout.filter(|_| can)
    }

    /// Returns whether the version to be ended is suspended for a brown-out now.
    pub fn is_browned_out(&self) -> bool {
        self.outcome.is_none() && self.ending.suspended.is_some_and(|one| one.for_brown_out)
    }

    /// Returns whether somebody has to stay: the version is suspended for a brown-out, or a suspend may land that is to be undone.
    pub fn is_watched(&self) -> bool {
        let ending = &self.ending;
        let lands = ending.has_late_suspend() && ending.suspended.is_none();
        let is_soon_resumed = lands && (ending.soaked_at().is_none() || ending.alarm);
        self.parked.is_none()
            && self.outcome.is_none()
            && (self.is_browned_out() || (self.retires() && is_soon_resumed))
    }

    /// Returns whether soak may be over, as far as a brown-out is concerned.
    pub(crate) fn needs_no_brown_out(&self) -> bool {
        let is_ended = self.ending.suspended.is_some_and(|suspended| !suspended.for_brown_out);
        self.brown_out_for().is_none()
            || is_ended
            || self.ending.overridden
            || matches!(self.ending.brownout, BrownOut::Passed)
            || crate::planted!("soak_without_brownout")
    }

    /// Counts a look at the gates while the version is suspended. Returns whether soak has to begin anew.
    pub(crate) fn looked_in_brown_out(&mut self, visit: &Visit, light: Light) -> bool {
        let BrownOut::On(last, watched) = self.ending.brownout else { return false };
        // Whoever does not answer has not said that all is well, whatever policy says of soak.
        let is_mute = visit.probes.is_none() && !self.plan.probes.is_empty();
        let light = match light {
            Light::Green if is_mute && !self.ending.overridden => Light::Amber,
            light => light,
        };
        let clocks = visit.clocks;
        let whole = self.plan.policy.brownout.unwrap_or(Span::ZERO);
        // What nobody watched counts for no more than a part of it, or for a look that takes long.
        let most = whole.part(1, 2).max(self.plan.policy.call);
        let watched = last.map_or(watched, |last| watched + clocks.least_since(&last).min(most));
        let looked = look(watched >= whole, light);
        match looked {
            Looked::GoesOn => self.ending.brownout = BrownOut::On(Some(clocks), watched),
            Looked::Passed => {
                self.ending.brownout = BrownOut::Passed;
                self.ending.unproven_since = None;
            }
            Looked::Failed => self.ending.brown_out_proved_nothing(clocks.wall),
        }
        looked == Looked::Failed
    }
}

/// A look at which it could not be told whether anybody misses the version proves nothing, and the time is over all the same.
fn look(is_over: bool, light: Light) -> Looked {
    match (light, is_over) {
        (Light::Red, _) => Looked::Failed,
        (Light::Amber, true) => Looked::Failed,
        (_, true) => Looked::Passed,
        (_, false) => Looked::GoesOn,
    }
}
