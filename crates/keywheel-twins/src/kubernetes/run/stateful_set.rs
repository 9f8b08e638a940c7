//! StatefulSets: pods with names that stay, made and replaced one after the other.
//!
//! As in a real cluster, an ordered set waits for a pod that never becomes ready, also once its template was set right again:
//! somebody has to delete that pod.

use std::sync::Arc;

use serde_json::{Value, json};

use super::json::{count, is_ending, name, number, put, text};
use super::pass::Pass;
use super::pods::{is_finished, is_ready, owned};
use super::revision::{History, LABEL, of_pod};
use super::template::pod;
use crate::kubernetes::Kind;

/// Takes every StatefulSet one step on.
pub(super) fn reconcile(pass: &Pass<'_>) {
    for set in pass.list(Kind::StatefulSet) {
        if is_ending(&set) {
            continue;
        }
        let history = History::of(pass, Kind::StatefulSet, &set);
        let look = Look::at(pass, &set, &history);
        look.step();
        let look = Look::at(pass, &set, &history);
        look.report();
        let mut used: Vec<&str> = look.pods.iter().map(|(_, pod)| of_pod(pod)).collect();
        used.push(&look.current);
        history.forget(pass, &set, &used);
    }
}

struct Look<'a> {
    pass: &'a Pass<'a>,
    set: &'a Value,
    history: &'a History,
    /// The revision that was rolled out to the end at last.
    current: String,
    /// Its pods with their ordinals, in order.
    pods: Vec<(usize, Arc<Value>)>,
    replicas: usize,
    partition: usize,
    /// Whether each pod waits for those before it.
    ordered: bool,
}

impl<'a> Look<'a> {
    fn at(pass: &'a Pass<'a>, set: &'a Value, history: &'a History) -> Self {
        let prefix = format!("{}-", name(set));
        let ordinal = |pod: &Value| name(pod).strip_prefix(&prefix)?.parse().ok();
        let pods = owned(&pass.list(Kind::Pod), set).into_iter();
        let mut pods: Vec<_> = pods.filter_map(|pod| Some((ordinal(&pod)?, pod))).collect();
        pods.sort_by_key(|(ordinal, _)| *ordinal);
        let current = text(set, "/status/currentRevision");
        let known = history.template(current).is_some();
        Self {
            pass,
            set,
            history,
            current: if known { current } else { history.newest() }.to_owned(),
            pods,
            replicas: number(set, "/spec/replicas").unwrap_or(1).try_into().unwrap_or_default(),
            partition: count(set, "/spec/updateStrategy/rollingUpdate/partition"),
            ordered: text(set, "/spec/podManagementPolicy") != "Parallel",
        }
    }

    fn step(&self) {
        for ordinal in 0..self.replicas {
            if !self.keep(ordinal) && self.ordered {
                return;
            }
        }
        for (_, pod) in self.pods.iter().rev().filter(|(ordinal, _)| *ordinal >= self.replicas) {
            if !is_ending(pod) {
                self.pass.delete(Kind::Pod, pod);
            }
            if self.ordered {
                return;
            }
        }
        if text(self.set, "/spec/updateStrategy/type") != "OnDelete" {
            self.update();
        }
    }

    /// Makes a pod where it is missing; tells whether it is there and available.
    fn keep(&self, ordinal: usize) -> bool {
        let Some(pod) = self.pod(ordinal) else {
            self.make(ordinal);
            return false;
        };
        if is_finished(pod) && !is_ending(pod) {
            self.pass.delete(Kind::Pod, pod);
            return false;
        }
        !is_ending(pod) && self.is_available(pod)
    }

    fn make(&self, ordinal: usize) {
        let is_rolling = text(self.set, "/spec/updateStrategy/type") != "OnDelete";
        let revision = match is_rolling && ordinal < self.partition {
            true => &self.current,
            false => self.history.newest(),
        };
        let Some(template) = self.history.template(revision) else { return };
        let mut pod = pod(&template, "StatefulSet", "apps/v1", self.set);
        let own = format!("{}-{ordinal}", name(self.set));
        let labels = [
            (LABEL, revision),
            ("statefulset.kubernetes.io/pod-name", &own),
            ("apps.kubernetes.io/pod-index", &ordinal.to_string()),
        ];
        for (name, value) in labels {
            put(&mut pod, &["metadata", "labels", name], value);
        }
        pod["metadata"]["name"] = own.as_str().into();
        pod["spec"]["hostname"] = own.as_str().into();
        self.pass.create(Kind::Pod, &pod);
    }

    /// Ends the last pod that is of another revision, once those after it are ready.
    fn update(&self) {
        for ordinal in (self.partition..self.replicas).rev() {
            let Some(pod) = self.pod(ordinal) else { return };
            if of_pod(pod) != self.history.newest() && !is_ending(pod) {
                return self.pass.delete(Kind::Pod, pod);
            }
            if is_ending(pod) || !is_ready(pod) {
                return;
            }
        }
    }

    fn pod(&self, ordinal: usize) -> Option<&Arc<Value>> {
        self.pods.iter().find(|(at, _)| *at == ordinal).map(|(_, pod)| pod)
    }

    fn is_available(&self, pod: &Value) -> bool {
        let least = number(self.set, "/spec/minReadySeconds").unwrap_or_default();
        self.pass.is_available(pod, least)
    }

    fn report(&self) {
        let newest = self.history.newest();
        let pods = || self.pods.iter().map(|(_, pod)| pod);
        let of = |revision: &str| {
            pods().filter(|pod| !is_ending(pod) && of_pod(pod) == revision).count()
        };
        let ready = pods().filter(|pod| is_ready(pod)).count();
        let updated = of(newest);
        let is_done = text(self.set, "/spec/updateStrategy/type") != "OnDelete"
            && updated == self.pods.len()
            && ready == self.pods.len();
        let current = if is_done { newest } else { &self.current };
        let mut status = json!({
            "observedGeneration": self.set["metadata"]["generation"],
            "replicas": self.pods.len(),
            "availableReplicas": pods().filter(|pod| self.is_available(pod)).count(),
            "currentRevision": current,
            "updateRevision": newest,
            "collisionCount": 0,
        });
        let counts = [
            ("readyReplicas", ready),
            ("currentReplicas", of(current)),
            ("updatedReplicas", updated),
        ];
        for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            status[name] = count.into();
        }
        self.pass.set_status(Kind::StatefulSet, self.set, status);
    }
}
