//! PodDisruptionBudgets: their status is kept for evictions to heed. Rolls do not, here as in a real cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::json::{count, namespace, owner, selects, uid};
use super::pass::Pass;
use super::pods::{is_active, is_ready};
use super::rolling::share;
use crate::kubernetes::{Kind, Objects};

/// Keeps the status of every budget.
pub(super) fn reconcile(pass: &Pass<'_>) {
    for budget in pass.list(Kind::PodDisruptionBudget) {
        let status = judged(pass.objects, &budget);
        pass.set_status(Kind::PodDisruptionBudget, &budget, status);
    }
}

/// Returns the status of a budget as things are now.
fn judged(objects: &Objects, budget: &Value) -> Value {
    let mut pods = objects.list(Kind::Pod, Some(namespace(budget))).0;
    pods.retain(|pod| {
        is_active(pod) && selects(&budget["spec"]["selector"], &pod["metadata"]["labels"])
    });
    let expected = expected(objects, &pods);
    let healthy = pods.iter().filter(|pod| is_ready(pod)).count();
    let spec = &budget["spec"];
    let desired = match (&spec["minAvailable"], &spec["maxUnavailable"]) {
        (Value::Null, Value::Null) => 0,
        (Value::Null, most) => expected.saturating_sub(share(most, expected, usize::div_ceil)),
        (least, _) => share(least, expected, usize::div_ceil),
    };
    json!({
        "observedGeneration": budget["metadata"]["generation"],
        "expectedPods": expected,
        "currentHealthy": healthy,
        "desiredHealthy": desired,
        "disruptionsAllowed": healthy.saturating_sub(desired),
    })
}

/// Returns how many pods those who manage these want together; a pod that nobody manages counts for itself.
fn expected(objects: &Objects, pods: &[Arc<Value>]) -> usize {
    let mut wanted = BTreeMap::new();
    for pod in pods {
        let managing = managing(objects, pod).unwrap_or_else(|| Arc::clone(pod));
        let replicas =
            managing["spec"].get("replicas").map_or(1, |_| count(&managing, "/spec/replicas"));
        wanted.insert(uid(&managing).to_owned(), replicas);
    }
    wanted.values().sum()
}

/// Returns the outermost object that manages a pod.
fn managing(objects: &Objects, object: &Value) -> Option<Arc<Value>> {
    let by = owner(object)?;
    let kinds = [Kind::ReplicaSet, Kind::StatefulSet, Kind::DaemonSet, Kind::Job, Kind::Deployment];
    let all = kinds.into_iter().flat_map(|kind| objects.list(kind, Some(namespace(object))).0);
    let found = all.into_iter().find(|it| uid(it) == by)?;
    Some(managing(objects, &found).unwrap_or(found))
}
