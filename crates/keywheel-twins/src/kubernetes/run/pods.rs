//! What controllers read off a pod.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use super::json::{annotation, each, is_ending, number, owner, text, uid};
use super::pace::Pace;

/// Pods as controllers count them, and since when each is ready: the API keeps whole seconds only, which is too coarse for a time
/// that runs fast.
#[derive(Default)]
pub(super) struct Readiness(BTreeMap<String, Instant>);

impl Readiness {
    /// Notes which pods are ready now.
    pub(super) fn note(&mut self, pods: &[Arc<Value>], now: Instant) {
        let ready: Vec<&str> =
            pods.iter().filter(|pod| is_ready(pod)).map(|pod| uid(pod)).collect();
        self.0.retain(|uid, _| ready.contains(&uid.as_str()));
        for uid in ready {
            self.0.entry(uid.to_owned()).or_insert(now);
        }
    }

    /// Returns when a pod counts as available, if it is ready now.
    pub(super) fn available_at(&self, pod: &Value, least: i64, pace: Pace) -> Option<Instant> {
        self.0.get(uid(pod)).map(|since| *since + pace.seconds(least))
    }
}

/// Returns whether a pod says that it is ready.
pub(super) fn is_ready(pod: &Value) -> bool {
    let conditions = each(pod, "/status/conditions");
    conditions.iter().any(|it| text(it, "/type") == "Ready" && text(it, "/status") == "True")
}

/// Returns whether a pod has neither ended nor been asked to end.
pub(super) fn is_active(pod: &Value) -> bool {
    !is_finished(pod) && !is_ending(pod)
}

/// Returns whether every container of a pod has ended for good.
pub(super) fn is_finished(pod: &Value) -> bool {
    ["Succeeded", "Failed"].contains(&text(pod, "/status/phase"))
}

/// Returns the pods that an object manages.
pub(super) fn owned(pods: &[Arc<Value>], by: &Value) -> Vec<Arc<Value>> {
    pods.iter().filter(|pod| owner(pod) == Some(uid(by))).cloned().collect()
}

/// Orders pods so that those whose end hurts least come first.
pub(super) fn by_worth(pods: &mut [Arc<Value>], readiness: &Readiness) {
    pods.sort_by_key(|pod| {
        let phase = match text(pod, "/status/phase") {
            "Running" => 2,
            "Pending" => 0,
            _ => 1,
        };
        let cost: i64 =
            annotation(pod, "controller.kubernetes.io/pod-deletion-cost").parse().unwrap_or(0);
        let since = readiness.0.get(uid(pod)).copied();
        let restarts = each(pod, "/status/containerStatuses").iter();
        let restarts = restarts.filter_map(|status| number(status, "/restartCount")).max();
        (
            !text(pod, "/spec/nodeName").is_empty(),
            phase,
            is_ready(pod),
            cost,
            std::cmp::Reverse(since),
            std::cmp::Reverse(restarts),
        )
    });
}
