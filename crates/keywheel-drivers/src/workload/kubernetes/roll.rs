//! A roll: one patch of the template where pods do not prove the values, and the wait until every one does.

use std::collections::BTreeMap;
use std::time::Duration as StdDuration;

use k8s_openapi::api::core::v1::Pod;
use keywheel_core::evidence::{Proof, Shows};
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::workload::Ensure;
use keywheel_driver::{CallError, Refusal, RefusalKind, Remedy, fail_point};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::files::Files;
use super::pod::{is_broken, is_ready, trouble};
use super::secrets::Known;
use super::stamp::{self, Annotations};
use super::target::{Kind, Progress, Target};
use super::{OnePod, Pods, Seen, TakeUp};
use crate::api::plain;
use crate::http::Effect;
use crate::kubernetes::Change as Asked;
use crate::workload::clock;

/// How soon the cluster is asked again after something moved: three questions each time.
const SOON: StdDuration = StdDuration::from_millis(100);

/// How long it is left alone at the most while something is waited for.
const LATER: StdDuration = StdDuration::from_secs(1);

/// How long after a write a pod is made at the earliest: more than the granularity of starts on both sides, so that a pod
/// that starts at once proves the values.
const AFTER_THE_WRITE: Span = Span::millis(1_600);

/// How often a patch is tried that others keep getting ahead of.
const TRIES: usize = 10;

/// What of a roll was done so far.
#[derive(Default)]
struct Done {
    /// Our annotations as the last patch left them.
    stamped: Option<Annotations>,
    /// Whether pods were replaced once more although every stamp was right.
    again: bool,
    /// How often the object had changed since it was read.
    conflicts: usize,
    /// When its controller had given up the rollout before ours.
    gave_up: Option<jiff::Timestamp>,
    /// What last kept a change from being made.
    refused: Option<CallError>,
}

/// What a roll does next.
enum Next {
    /// Every pod proves the values.
    Done,
    /// The template changes.
    Patch(Change),
    /// A pod that stands in the way of its successor is removed.
    Remove(Box<Pod>),
    /// Something is awaited, which the words say.
    Wait(String),
}

/// A change of the template.
struct Change {
    /// Our annotations as they shall be.
    wanted: Annotations,
    /// The specification, where references change.
    spec: Option<Value>,
    /// Whether it brings back what pods that serve have, and has none made before this roll removes one. Then it comes at once: a
    /// broken pod that starts again with the former value would let the rollout go on.
    is_at_once: bool,
}

/// Notices that nothing moves any more.
pub(super) struct Pace {
    within: Span,
    best: Option<Moves>,
    since: Instant,
    wait: StdDuration,
}

/// Bears for a while that a question gets no answer.
pub(super) struct Patience {
    within: StdDuration,
    answered_at: Instant,
}

/// How far a roll has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Moves {
    /// Pods of the present template.
    pub new: usize,
    /// Pods that hold the values and are ready.
    pub ready: usize,
    /// Pods of another template.
    pub old: usize,
}

impl Moves {
    fn of(judged: &[Judged<'_>]) -> Self {
        let count = |counts: fn(&Judged<'_>) -> bool| judged.iter().filter(|it| counts(it)).count();
        Self {
            new: count(|judged| judged.one.is_current),
            ready: count(|judged| judged.holds && judged.runs()),
            old: count(|judged| !judged.one.is_current),
        }
    }

    /// Returns the furthest of both: a pod that comes and goes again and again brings nothing nearer.
    fn best(self, other: Self) -> Self {
        Self {
            new: self.new.max(other.new),
            ready: self.ready.max(other.ready),
            old: self.old.min(other.old),
        }
    }
}

impl Pace {
    /// Returns whether nothing came nearer to the end for too long.
    pub(super) fn is_over(&mut self, now: Moves) -> bool {
        let best = self.best.filter(|_| !planted!("flapping_is_moving"));
        let best = best.map_or(now, |best| best.best(now));
        if self.best != Some(best) {
            *self = Self { best: Some(best), ..Self::new(self.within) };
        }
        self.since.elapsed() > StdDuration::from(self.within)
    }

    pub(super) fn new(within: Span) -> Self {
        Self { within, best: None, since: Instant::now(), wait: SOON }
    }

    /// Waits until a pod that is made now gets what was written; that time is no standstill.
    async fn wait_for_the_write(&mut self, ensure: &Ensure<'_>) -> Result<(), CallError> {
        let began = Instant::now();
        clock::pass(ensure.held_since, AFTER_THE_WRITE).await?;
        self.since += began.elapsed();
        Ok(())
    }

    pub(super) async fn rest(&mut self) {
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 3 / 2).min(LATER);
    }
}

impl Patience {
    pub(super) fn new(within: Span) -> Self {
        Self { within: within.into(), answered_at: Instant::now() }
    }

    /// Takes an answer. Where there is none, the question changed nothing, and is asked again for a while.
    pub(super) fn take<T>(&mut self, answer: Result<T, CallError>) -> Result<Option<T>, CallError> {
        match answer {
            Err(error) if passes(&error) && self.answered_at.elapsed() < self.within => Ok(None),
            answer => {
                self.answered_at = Instant::now();
                answer.map(Some)
            }
        }
    }
}

impl Pods {
    pub(super) async fn ensure(&self, ensure: &Ensure<'_>) -> Result<(), CallError> {
        if let TakeUp::Sync(sync) = &self.config.take_up {
            return self.sync(ensure, sync.rereads_within.span()).await;
        }
        let within = self.config.ready_within.span();
        let mut pace = Pace::new(within);
        let mut done = Done::default();
        let mut patience = Patience::new(within);
        let slots: Vec<_> = ensure.slots.iter().map(|(slot, _)| slot.clone()).collect();
        let mut known = Known::find(&self.namespace, &slots).await?;
        loop {
            let seen = self.seen_with_secrets(&mut known, ensure).await;
            let Some(seen) = patience.take(seen)? else {
                pace.rest().await;
                continue;
            };
            let judged = self.judge(&seen, &known, ensure);
            let next = self.next(&seen, &judged, &known, ensure, &done)?;
            let is_over = pace.is_over(Moves::of(&judged)) && !planted!("refusals_have_no_end");
            match next {
                Next::Done => return Ok(()),
                Next::Wait(why) if is_over => return Err(self.stuck(&why, &judged, ensure)),
                Next::Patch(_) | Next::Remove(_) if is_over => {
                    let why = "its template could not be changed";
                    let stuck = || self.stuck(why, &judged, ensure);
                    return Err(done.refused.take().unwrap_or_else(stuck));
                }
                Next::Patch(change) => {
                    if !change.is_at_once {
                        pace.wait_for_the_write(ensure).await?;
                    }
                    if self.patch(&seen.target, change, &mut done).await? {
                        pace = Pace::new(within);
                    }
                }
                Next::Remove(pod) => {
                    pace.wait_for_the_write(ensure).await?;
                    self.remove(&pod, &mut done).await?;
                }
                Next::Wait(_) => {}
            }
            pace.rest().await;
        }
    }

    async fn seen_with_secrets(
        &self,
        known: &mut Known,
        ensure: &Ensure<'_>,
    ) -> Result<Seen, CallError> {
        let seen = self.seen().await?;
        known.read(&self.namespace, &seen.pods, ensure.fingerprinter).await?;
        Ok(seen)
    }

    /// Judges each pod as the core will.
    fn judge<'s>(&self, seen: &'s Seen, known: &Known, ensure: &Ensure<'_>) -> Vec<Judged<'s>> {
        let slots: Vec<_> = ensure.slots.iter().map(|(slot, _)| slot.clone()).collect();
        let files = Files::default();
        let look = self.look(&slots, known, seen.skew, &files);
        let facts = keywheel_driver::Workload::facts(self);
        let judged = seen.pods.iter().map(|one| {
            let as_current = look.at(&one.pod, true);
            let is_blind = as_current.shows == Shows::Nothing;
            let would_hold = ensure.judge(&as_current, facts) == Proof::Holds;
            let times = as_current.started_at.zip(ensure.untouched_before);
            let is_untouched = would_hold && times.is_some_and(|(at, before)| at < before);
            Judged { one, holds: would_hold && one.is_current, is_untouched, is_blind }
        });
        judged.collect()
    }

    fn next(
        &self,
        seen: &Seen,
        judged: &[Judged<'_>],
        known: &Known,
        ensure: &Ensure<'_>,
        done: &Done,
    ) -> Result<Next, CallError> {
        let target = &seen.target;
        if let Some(obstacle) = target.obstacle() {
            return Err(self.failed(&obstacle));
        }
        if target.is_scaled_to_zero() {
            return Err(self.failed("runs no pod, and none can show which values it holds"));
        }
        let progress = target.progress();
        let all_hold = !judged.is_empty() && judged.iter().all(|judged| judged.holds);
        let all_hold = all_hold || planted!("rollout_is_believed");
        if all_hold && progress == Progress::Done {
            let writes_again = planted!("stamped_on_every_ensure") && done.stamped.is_none();
            return Ok(match writes_again {
                true => once_more(target, ensure),
                false => Next::Done,
            });
        }
        let spec = stamp::switched(target, |name| known.successor(name));
        let is_as_left = |left: &Annotations| {
            spec.is_none() && stamp::same(left, &target.ours(), &ensure.stamps)
        };
        if !done.stamped.as_ref().is_none_or(is_as_left) && !planted!("lost_stamp_is_put_back") {
            return Err(self.taken_away(target));
        }
        let former = former(judged).filter(|_| !done.again);
        let is_at_once = former.is_some() && self.makes_no_pod(target, judged);
        let wanted = former.unwrap_or_else(|| stamp::stamped(&target.ours(), &ensure.stamps));
        if wanted != target.ours() || spec.is_some() {
            return Ok(Next::Patch(Change { wanted, spec, is_at_once }));
        }
        let now = seen.skew.there(clock::now());
        if let Some(why) = why_not_up(judged, seen.skew.there(ensure.held_since), now) {
            return Err(self.failed(&why));
        }
        match progress {
            Progress::Failed(why) if !is_former(target, done) => Err(self.failed(&why)),
            Progress::Failed(_) => Ok(Next::Wait("its rollout has not begun to move yet".into())),
            Progress::Waits(why) => {
                Ok(self.in_the_way(judged, seen, ensure).unwrap_or(Next::Wait(why)))
            }
            Progress::Done => self.not_proven(target, judged, ensure, done),
        }
    }

    /// The rollout is over, and some pods do not prove the values: those that leave are waited for, those that started too
    /// early are replaced once more.
    fn not_proven(
        &self,
        target: &Target,
        judged: &[Judged<'_>],
        ensure: &Ensure<'_>,
        done: &Done,
    ) -> Result<Next, CallError> {
        let open: Vec<_> = judged.iter().filter(|judged| !judged.holds).collect();
        if let Some(blind) =
            open.iter().find(|judged| judged.one.is_current && judged.is_blind && judged.runs())
        {
            return Err(self.failed(&format!(
                "has pod `{}`, which does not show what it was given: its template does not read every key, or reads it from another Secret",
                blind.one.name()
            )));
        }
        let leaving = open.iter().filter(|it| !it.one.is_current || it.is_leaving());
        let names: Vec<_> = leaving.map(|judged| format!("`{}`", judged.one.name())).collect();
        if !names.is_empty() {
            return Ok(Next::Wait(format!("old pods are still ending: {}", names.join(", "))));
        }
        if open.is_empty() || open.iter().any(|judged| !judged.runs()) {
            return Ok(Next::Wait("its pods are not there yet".into()));
        }
        if done.again {
            return Err(self.failed(
                "has pods that started too early to hold the new values, and replacing them did not help: compare the clock of the cluster with this machine's",
            ));
        }
        Ok(once_more(target, ensure))
    }

    /// A StatefulSet replaces no pod before the one that is not ready, also where only its replacement would help. What befell it
    /// before the values, or on the way back the first of the rotation, were there is none of this roll's business, but in an
    /// emergency.
    fn in_the_way(&self, judged: &[Judged<'_>], seen: &Seen, ensure: &Ensure<'_>) -> Option<Next> {
        let since = ensure.untouched_before.unwrap_or(ensure.held_since);
        let since = ensure.emergency.is_none().then(|| seen.skew.there(since));
        if self.kind != Kind::StatefulSet || planted!("broken_pod_is_waited_for") {
            return None;
        }
        let blocks = judged.iter().find(|judged| {
            let one = judged.one;
            !one.is_current
                && !judged.is_leaving()
                && !is_ready(&one.pod)
                && is_broken(&one.pod, since)
        })?;
        Some(Next::Remove(Box::new(blocks.one.pod.clone())))
    }

    /// Whether the former template has no pod made by itself: every pod is there, or the broken one of a StatefulSet stays until it
    /// is removed.
    fn makes_no_pod(&self, target: &Target, judged: &[Judged<'_>]) -> bool {
        let untouched = judged.iter().filter(|judged| judged.is_untouched).count();
        let all = target.replicas().and_then(|all| usize::try_from(all).ok());
        all.is_some_and(|all| all <= untouched)
            || (self.kind == Kind::StatefulSet && !planted!("way_back_of_a_set_waits"))
    }

    /// Changes the template; tells whether that is certainly done.
    async fn patch(
        &self,
        target: &Target,
        change: Change,
        done: &mut Done,
    ) -> Result<bool, CallError> {
        let Change { wanted, spec, .. } = change;
        let patch = stamp::patch(target, &wanted, spec.as_ref());
        let patch = SecretValue::new(patch.to_string().into_bytes());
        let cluster = &self.namespace.cluster;
        done.gave_up = target.gave_up_at();
        let answer = match cluster.change(&self.place(), &Asked::Merge(&patch), false).await {
            Ok(answer) => answer,
            // It names the state that it changes, so that it lands once at most, and the next look tells.
            Err(error @ CallError::Unknown(_)) => {
                done.refused = Some(error);
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        fail_point::pass("template_patched", &self.name);
        if answer.status.as_u16() == 409 {
            done.conflicts += 1;
            return match done.conflicts < TRIES {
                true => Ok(false),
                false => Err(self.failed("is changed by somebody else again and again")),
            };
        }
        if !answer.status.is_success() {
            let error = answer.error(Effect::Changes);
            if !passes(&error) {
                return Err(error);
            }
            done.refused = Some(error);
            return Ok(false);
        }
        let patched = Target::parse(self.kind, answer.decode()?)?;
        if patched.ours() != wanted && !planted!("lost_stamp_is_put_back") {
            return Err(self.failed(
                "lost its stamp while it was admitted to the cluster: let annotations of its template that begin with `keywheel.dev/` pass",
            ));
        }
        done.again |= stamp::is_again(&target.ours(), &wanted);
        done.stamped = Some(wanted);
        done.refused = None;
        Ok(true)
    }

    /// Removes this one pod, and not another one that got its name meanwhile.
    async fn remove(&self, pod: &Pod, done: &mut Done) -> Result<(), CallError> {
        let meta = &pod.metadata;
        let options =
            json!({"preconditions": {"uid": meta.uid, "resourceVersion": meta.resource_version}});
        let options = SecretValue::new(options.to_string().into_bytes());
        let name = meta.name.as_deref().unwrap_or_default();
        let place = self.namespace.place("", "pods").named(name);
        let answer = self.namespace.cluster.change(&place, &Asked::Delete(&options), false).await;
        match answer {
            Ok(answer) if answer.status.is_success() => Ok(()),
            Ok(answer) if matches!(answer.status.as_u16(), 404 | 409) => Ok(()),
            Ok(answer) => Err(answer.error(Effect::Changes)),
            Err(error @ CallError::Unknown(_)) => {
                done.refused = Some(error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn stuck(&self, why: &str, judged: &[Judged<'_>], ensure: &Ensure<'_>) -> CallError {
        let open = judged.iter().filter(|judged| !judged.holds);
        self.stands_still(why, open.map(|judged| judged.one), ensure)
    }

    /// Says that nothing moves any more, and what is still open.
    pub(super) fn stands_still<'p>(
        &self,
        why: &str,
        open: impl Iterator<Item = &'p OnePod>,
        ensure: &Ensure<'_>,
    ) -> CallError {
        let names: Vec<_> = open.map(|one| format!("`{}`", one.name())).collect();
        let within = self.config.ready_within.span();
        let message = format!(
            "did not move for {within}: {why}; pods that do not hold the new values: {}",
            names.join(", ")
        );
        if let Some(notes) = ensure.emergency {
            notes.add(format!("{} {message}", self.what()));
        }
        self.failed(&message)
    }

    fn taken_away(&self, target: &Target) -> CallError {
        let rival = stamp::rival(target.meta()).and_then(|entry| entry.manager.as_deref());
        let rival = rival.map_or("somebody".into(), |rival| format!("`{}`", plain(rival)));
        self.failed(&format!(
            "lost its stamp, and {rival} writes it too: it is not stamped again before annotations that begin with `keywheel.dev/` are left alone there"
        ))
    }

    pub(super) fn failed(&self, what: &str) -> CallError {
        let message = format!("{} {what}", self.what());
        Refusal::operator(RefusalKind::WorkloadFailed, message).into()
    }
}

/// What one pod proves.
struct Judged<'s> {
    one: &'s OnePod,
    /// It holds the values, and is of the present template.
    holds: bool,
    /// It was there before the rotation and holds what it held then, of whichever template it is.
    is_untouched: bool,
    /// It shows nothing that could prove them.
    is_blind: bool,
}

impl Judged<'_> {
    fn is_leaving(&self) -> bool {
        self.one.pod.metadata.deletion_timestamp.is_some()
    }

    fn runs(&self) -> bool {
        is_ready(&self.one.pod)
    }
}

/// Says which new pod does not come up, and why. What it did before the values were there does not count.
fn why_not_up(judged: &[Judged<'_>], since: Timestamp, now: Timestamp) -> Option<String> {
    if planted!("crash_loop_is_waited_for") {
        return None;
    }
    // One that is being deleted is told to end, and may call that an error.
    let comes_up = |judged: &&Judged<'_>| {
        judged.one.is_current && (!judged.is_leaving() || planted!("leaving_pod_must_come_up"))
    };
    judged.iter().filter(comes_up).find_map(|judged| {
        let why = trouble(&judged.one.pod, Some(since), now)?;
        Some(format!("got pod `{}`, whose {why}", judged.one.name()))
    })
}

/// Returns our annotations as they are on pods that were there before: with those the cluster finds the template of these pods
/// again, and leaves them alone.
fn former(judged: &[Judged<'_>]) -> Option<Annotations> {
    if planted!("untouched_pods_are_replaced") {
        return None;
    }
    let untouched = judged.iter().filter(|judged| judged.is_untouched);
    let all = untouched.map(|it| stamp::ours(it.one.pod.metadata.annotations.as_ref()));
    let mut counts = BTreeMap::<Annotations, usize>::new();
    all.for_each(|one| *counts.entry(one).or_default() += 1);
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(most, _)| most)
}

/// Replaces every pod although the template is right.
fn once_more(target: &Target, ensure: &Ensure<'_>) -> Next {
    let wanted = stamp::again(&stamp::stamped(&target.ours(), &ensure.stamps));
    Next::Patch(Change { wanted, spec: None, is_at_once: false })
}

/// Whether what is said of a rollout that was given up is said of the one before ours.
fn is_former(target: &Target, done: &Done) -> bool {
    let former = done.gave_up.filter(|_| !planted!("former_rollout_counts"));
    former.is_some() && former == target.gave_up_at()
}

/// Whether a question may get another answer a little later.
pub(crate) fn passes(error: &CallError) -> bool {
    match error {
        CallError::Unknown(_) => true,
        CallError::Refused(refusal) => matches!(refusal.remedy, Remedy::Retry { .. }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(meta: Value) -> OnePod {
        let ended = json!({"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 143, "startedAt": "2026-01-01T00:00:00Z"}}});
        let pod = json!({"metadata": meta, "status": {"containerStatuses": [ended]}});
        OnePod { pod: serde_json::from_value(pod).unwrap(), is_current: true }
    }

    fn judged(one: &OnePod) -> Judged<'_> {
        Judged { one, holds: false, is_untouched: false, is_blind: false }
    }

    #[test]
    fn h52_a_pod_that_is_being_deleted_may_end_as_it_likes() {
        let start = Timestamp::from_millis(0);
        let why = |meta: Value| why_not_up(&[judged(&one(meta))], start, start);
        assert!(why(json!({"name": "app-1"})).unwrap().contains("exit code 143"));
        let leaves = json!({"name": "app-1", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        assert_eq!(why(leaves), None);
    }

    #[test]
    fn h52_a_rollout_that_was_given_up_before_ours_does_not_end_it() {
        let given_up = |at: &str| {
            let condition = json!({"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "lastUpdateTime": at});
            let raw = json!({"metadata": {"generation": 2}, "spec": {"selector": {}, "template": {}},
                "status": {"observedGeneration": 2, "conditions": [condition]}});
            Target::parse(Kind::Deployment, raw).unwrap()
        };
        let (before, later) = (given_up("2026-01-01T00:00:00Z"), given_up("2026-01-01T00:10:00Z"));
        let done = Done { gave_up: before.gave_up_at(), ..Done::default() };
        assert!(is_former(&before, &done));
        assert!(!is_former(&later, &done));
        assert!(!is_former(&before, &Done::default()), "it is ours where nothing was changed");
    }

    #[test]
    fn h52_a_pod_that_comes_and_goes_brings_nothing_nearer() {
        let mut pace = Pace::new(Span::seconds(5));
        let moves = |new: usize, old: usize| Moves { new, ready: 0, old };
        assert!(!pace.is_over(moves(0, 3)));
        for _ in 0..4 {
            pace.since -= StdDuration::from_secs(1);
            assert!(!pace.is_over(moves(1, 3)));
            assert!(!pace.is_over(moves(0, 3)));
        }
        pace.since -= StdDuration::from_secs(3);
        assert!(pace.is_over(moves(1, 3)));
        assert!(!pace.is_over(moves(1, 2)), "an old one is gone");
    }
}
