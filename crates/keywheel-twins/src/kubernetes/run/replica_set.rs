//! ReplicaSets: so many pods of one template.

use std::sync::Arc;

use serde_json::{Value, json};

use super::json::{count, is_ending, label, name, number};
use super::pass::Pass;
use super::pods::{by_worth, is_active, is_ready, owned};
use super::template::pod;
use crate::kubernetes::kinds::Kind;

/// Brings every ReplicaSet to its number of pods.
pub(super) fn reconcile(pass: &Pass<'_>) {
    for set in pass.list(Kind::ReplicaSet) {
        if is_ending(&set) {
            continue;
        }
        let mut pods = owned(&pass.list(Kind::Pod), &set);
        pods.retain(|pod| is_active(pod));
        resize(pass, &set, &mut pods);
        let mut pods = owned(&pass.list(Kind::Pod), &set);
        pods.retain(|pod| is_active(pod));
        report(pass, &set, &pods);
    }
}

fn resize(pass: &Pass<'_>, set: &Value, pods: &mut [Arc<Value>]) {
    let wanted = count(set, "/spec/replicas");
    for _ in pods.len()..wanted {
        let mut pod = pod(&set["spec"]["template"], "ReplicaSet", "apps/v1", set);
        pod["metadata"]["generateName"] = format!("{}-", name(set)).into();
        pass.create(Kind::Pod, &pod);
    }
    by_worth(pods, pass.readiness);
    for pod in pods.iter().take(pods.len().saturating_sub(wanted)) {
        pass.delete(Kind::Pod, pod);
    }
}

fn report(pass: &Pass<'_>, set: &Value, pods: &[Arc<Value>]) {
    let least = number(set, "/spec/minReadySeconds").unwrap_or_default();
    let mut status = json!({
        "replicas": pods.len(),
        "observedGeneration": set["metadata"]["generation"],
    });
    let hash = super::template::HASH;
    let labelled = pods.iter().filter(|pod| label(pod, hash) == label(set, hash)).count();
    let counts = [
        ("fullyLabeledReplicas", labelled),
        ("readyReplicas", pods.iter().filter(|pod| is_ready(pod)).count()),
        ("availableReplicas", pods.iter().filter(|pod| pass.is_available(pod, least)).count()),
    ];
    for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        status[name] = count.into();
    }
    pass.set_status(Kind::ReplicaSet, set, status);
}
