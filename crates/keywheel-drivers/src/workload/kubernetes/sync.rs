//! A roll that replaces nothing: pods whose program reads its mounted files again by itself keep running, and the kubelet is made
//! to bring their files up to date at once, by an annotation of each pod.
//!
//! A pod proves a value by the files in it, which are looked into. What its program made of them nobody shows: it is given the time
//! that the configuration says it takes. A roll that is broken off leaves annotations, and nothing else.

use std::collections::BTreeMap;
use std::time::Duration as StdDuration;

use k8s_openapi::api::core::v1::{Container, Pod};
use keywheel_core::evidence::Proof;
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::workload::{Ensure, Workload};
use keywheel_driver::{CallError, Finding, fail_point, slot};
use serde_json::json;
use tokio::time::Instant;

use super::pod::{Look, is_ready, statuses, trouble};
use super::reads::{How, Read, reads};
use super::roll::{Moves, Pace, Patience, passes};
use super::secrets::Known;
use super::target::{Progress, Target};
use super::{OnePod, Pods, Seen};
use crate::http::Effect;
use crate::kubernetes::{Answer, Change as Asked};
use crate::workload::clock;

/// The annotation of a pod that counts how often its files were to be brought up to date.
const SYNC: &str = "keywheel.dev/sync";

/// How long after they were asked for first a pod's files are asked for again: the kubelet may have looked before it heard of the
/// write. Each further time it is twice as long.
const AGAIN: StdDuration = StdDuration::from_secs(1);

/// How long that is at the most.
const LONGEST: StdDuration = StdDuration::from_secs(30);

/// How long a pod that may suffer from the former values may go on ending badly: it may start once more before its files are there.
const RECOVERS: Span = Span::seconds(20);

/// What is known of pods while they are waited for.
#[derive(Default)]
struct Waited {
    /// When the files of each are asked for again, and how long after that once more.
    asked: BTreeMap<String, (Instant, StdDuration)>,
    /// From when on each may no longer end badly, by the clock of the cluster.
    well_since: BTreeMap<String, Timestamp>,
    /// Since when all show the values.
    held_since: Option<Instant>,
    /// What last kept files from being asked for.
    refused: Option<CallError>,
}

/// How one pod stands.
struct Judged<'s> {
    one: &'s OnePod,
    /// It shows the values.
    holds: bool,
    /// It may have read others before.
    is_older: bool,
}

impl Pods {
    /// Says which of the slots pods would not take up while they run, and what helps.
    pub(super) async fn examine_sync(&self, slots: &[String]) -> Result<Vec<Finding>, CallError> {
        let known = Known::find(&self.namespace, slots).await?;
        let Some(target) = self.target().await? else { return Ok(Vec::new()) };
        let pods = self.pods_of(&target).await?;
        let mut told = self.fixed(&target, slots, &known);
        if told.is_empty() {
            for (file, held) in self.look_into(&pods, slots, &known).await {
                if let Err(why) = held {
                    told.push(format!(
                        "has {}, which cannot be looked into: {why}",
                        file.in_words()
                    ));
                }
            }
        }
        if told.is_empty()
            && let Some(one) = pods.first()
        {
            told.extend(self.try_annotation(&one.pod).await?);
        }
        let helps = "a roll does without: leave `take_up: sync` out";
        let told = told.into_iter().map(|why| format!("{} {why}; {helps}", self.what()));
        Ok(told.map(Finding::blocks).collect())
    }

    /// Says what gives slots in a way that stays as it was when a container started.
    fn fixed(&self, target: &Target, slots: &[String], known: &Known) -> Vec<String> {
        let Some(spec) = target.pod_spec() else { return Vec::new() };
        if planted!("fixed_readers_are_synced") {
            return Vec::new();
        }
        let reads = reads(spec);
        let prepares =
            |container: &&Container| container.restart_policy.as_deref() != Some("Always");
        let prepares: Vec<_> = spec.init_containers.iter().flatten().filter(prepares).collect();
        let counts = self.config.container.as_deref();
        let counts = |read: &&Read| counts.is_none() || read.container.as_deref() == counts;
        let mut told = Vec::new();
        for slot in slots {
            let (container, key) = slot::parts(slot);
            let Some(names) = known.secrets.get(container) else { continue };
            if names.is_versioned {
                told.push(format!("is given `{key}` by a Secret whose versions never change"));
                continue;
            }
            let gives = |read: &&Read| read.secret == names.current && read.gives(key);
            for read in reads.iter().filter(counts).filter(gives) {
                let within = read.container.as_deref().unwrap_or_default();
                if prepares.iter().any(|container| container.name == within) {
                    told.push(format!(
                        "has container `{within}`, which reads `{key}` before the others start and never again"
                    ));
                } else if !matches!(read.how, How::Volume | How::Projected) {
                    told.push(format!(
                        "is given `{key}` by {}, which stays as it was when a container started",
                        read.how.words()
                    ));
                }
            }
        }
        told
    }

    /// Lets the cluster do everything with an annotation of a pod but keep it.
    async fn try_annotation(&self, pod: &Pod) -> Result<Option<String>, CallError> {
        let answer = self.annotate(pod, true).await?;
        if answer.status.is_success() || matches!(answer.status.as_u16(), 404 | 409) {
            return Ok(None);
        }
        match answer.error(Effect::Reads) {
            CallError::Refused(refusal) => {
                Ok(Some(format!("has pods that may not be annotated: {refusal}")))
            }
            error => Err(error),
        }
    }

    /// Makes the kubelet bring the files of a pod up to date soon: it does so whenever an annotation changes.
    async fn annotate(&self, pod: &Pod, is_trial: bool) -> Result<Answer, CallError> {
        let meta = &pod.metadata;
        let syncs = meta.annotations.as_ref().and_then(|all| all.get(SYNC));
        let syncs = syncs.and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
        let wanted = json!({"metadata": {
            "uid": meta.uid,
            "annotations": {SYNC: syncs.saturating_add(1).to_string()}
        }});
        let wanted = SecretValue::new(wanted.to_string().into_bytes());
        let name = meta.name.as_deref().unwrap_or_default();
        let place = self.namespace.place("", "pods").named(name);
        self.namespace.cluster.change(&place, &Asked::Merge(&wanted), is_trial).await
    }

    /// Makes every pod show the values, and gives its program the time to read them.
    pub(super) async fn sync(&self, ensure: &Ensure<'_>, rereads: Span) -> Result<(), CallError> {
        let within = self.config.ready_within.span();
        let slots: Vec<_> = ensure.slots.iter().map(|(slot, _)| slot.clone()).collect();
        let known = Known::find(&self.namespace, &slots).await?;
        let mut pace = Pace::new(within);
        let mut waited = Waited::default();
        let mut patience = Patience::new(within);
        loop {
            let Some(seen) = patience.take(self.seen().await)? else {
                pace.rest().await;
                continue;
            };
            let files = self.files(&seen.pods, &slots, &known, ensure.fingerprinter).await;
            let look = self.look(&slots, &known, seen.skew, &files);
            let judged = self.judge_files(&seen, &look, ensure);
            if let Some(why) = waited.trouble(&judged, &seen, ensure) {
                return Err(self.failed(&why));
            }
            let Some(why) = self.lacking(&seen, &judged)? else {
                if waited.is_read(&judged, rereads) {
                    return Ok(());
                }
                pace.rest().await;
                continue;
            };
            waited.held_since = None;
            let open: Vec<_> = judged.iter().filter(|judged| !judged.holds).collect();
            if pace.is_over(moves(&judged)) {
                let still = || self.stands_still(&why, open.iter().map(|it| it.one), ensure);
                return Err(waited.refused.take().unwrap_or_else(still));
            }
            for judged in open {
                self.bring_up_to_date(judged.one, &mut waited).await?;
            }
            pace.rest().await;
        }
    }

    /// Judges each pod as the core will.
    fn judge_files<'s>(
        &self,
        seen: &'s Seen,
        look: &Look<'_>,
        ensure: &Ensure<'_>,
    ) -> Vec<Judged<'s>> {
        let facts = Workload::facts(self);
        let judged = seen.pods.iter().map(|one| {
            let replica = look.at(&one.pod, one.is_current);
            let holds = ensure.judge(&replica, facts) == Proof::Holds;
            let since = ensure.held_since + facts.start_granularity;
            Judged { one, holds, is_older: replica.started_at.is_none_or(|at| at <= since) }
        });
        judged.collect()
    }

    /// Says what is still lacking; nothing where every pod shows the values and serves.
    fn lacking(&self, seen: &Seen, judged: &[Judged<'_>]) -> Result<Option<String>, CallError> {
        if seen.target.is_scaled_to_zero() {
            return Err(self.failed("runs no pod, and none can show which values it holds"));
        }
        if judged.is_empty() {
            return Ok(Some("its pods are not there yet".into()));
        }
        if judged.iter().any(|judged| !judged.holds) && !planted!("sync_is_believed") {
            return Ok(Some("the files of some pods are not up to date".into()));
        }
        Ok(match seen.target.progress() {
            Progress::Done => None,
            Progress::Waits(why) | Progress::Failed(why) => Some(why),
        })
    }

    /// Lets the kubelet bring the files of a pod up to date, unless that was asked for just now.
    async fn bring_up_to_date(&self, one: &OnePod, waited: &mut Waited) -> Result<(), CallError> {
        let uid = one.pod.metadata.uid.clone().unwrap_or_default();
        let (due, wait) = waited.asked.get(&uid).copied().unwrap_or((Instant::now(), AGAIN));
        let is_leaving = one.pod.metadata.deletion_timestamp.is_some();
        let is_due = due <= Instant::now() && !planted!("kubelet_is_left_alone");
        if !is_due || is_leaving || !has_begun(&one.pod) {
            return Ok(());
        }
        let answer = match self.annotate(&one.pod, false).await {
            Ok(answer) => answer,
            // The next look tells whether it came to anything.
            Err(error @ CallError::Unknown(_)) => {
                waited.refused = Some(error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        fail_point::pass("pod_annotated", one.name());
        // One that is gone or is another one by now is looked for again.
        if !answer.status.is_success() && !matches!(answer.status.as_u16(), 404 | 409 | 422) {
            let error = answer.error(Effect::Changes);
            if !passes(&error) {
                return Err(error);
            }
            waited.refused = Some(error);
            return Ok(());
        }
        waited.asked.insert(uid, (Instant::now() + wait, (wait * 2).min(LONGEST)));
        Ok(())
    }
}

impl Waited {
    /// Says which pod does not stay up with the values, and why. One that may suffer from the former ones has a while to come back:
    /// on the way back, or where it had ended badly before.
    fn trouble(
        &mut self,
        judged: &[Judged<'_>],
        seen: &Seen,
        ensure: &Ensure<'_>,
    ) -> Option<String> {
        let now = seen.skew.there(clock::now());
        let leads_back = ensure.untouched_before.is_some();
        for judged in judged.iter().filter(|judged| !judged.is_leaving()) {
            let pod = &judged.one.pod;
            let well_since = self
                .well_since
                .entry(pod.metadata.uid.clone().unwrap_or_default())
                .or_insert_with(|| {
                    let suffers = leads_back || trouble(pod, None, now).is_some();
                    match judged.is_older && suffers {
                        true => now + RECOVERS,
                        false => seen.skew.there(ensure.held_since),
                    }
                });
            if judged.holds {
                // Starts are noted by the second: one that was before this look is not taken for a later one.
                *well_since = (now + Span::seconds(1)).min(*well_since);
            }
            if let Some(why) = trouble(pod, Some(*well_since), now) {
                return Some(format!("has pod `{}`, whose {why}", judged.one.name()));
            }
        }
        None
    }

    /// Whether every program has had the time to read what its files show.
    fn is_read(&mut self, judged: &[Judged<'_>], rereads: Span) -> bool {
        let since = *self.held_since.get_or_insert_with(Instant::now);
        let is_read = since.elapsed() >= StdDuration::from(rereads);
        is_read || !judged.iter().any(|it| it.is_older) || planted!("reread_is_not_awaited")
    }
}

impl Judged<'_> {
    fn is_leaving(&self) -> bool {
        self.one.pod.metadata.deletion_timestamp.is_some()
    }
}

fn moves(judged: &[Judged<'_>]) -> Moves {
    let holding = judged.iter().filter(|judged| judged.holds);
    Moves {
        new: 0,
        ready: holding.clone().filter(|judged| is_ready(&judged.one.pod)).count(),
        old: judged.len() - holding.count(),
    }
}

/// Whether a container of a pod runs, or ran. Where none did, they read their files when they start.
fn has_begun(pod: &Pod) -> bool {
    statuses(pod).any(|status| {
        let runs = status.state.as_ref().is_some_and(|state| state.running.is_some());
        runs || status.restart_count > 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h44_programs_are_given_the_time_to_read_what_their_files_show() {
        let one = OnePod { pod: Pod::default(), is_current: true };
        let judged = |is_older| [Judged { one: &one, holds: true, is_older }];
        let mut waited = Waited::default();
        assert!(waited.is_read(&judged(false), Span::minutes(1)), "it read nothing before");
        assert!(!waited.is_read(&judged(true), Span::minutes(1)));
        assert!(waited.is_read(&judged(true), Span::ZERO));
    }
}
