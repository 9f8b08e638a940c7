//! DaemonSets: one pod on the one node.

use std::sync::Arc;

use serde_json::{Value, json};

use super::json::{is_ending, name, number, put, text};
use super::pass::Pass;
use super::pods::{is_active, is_finished, is_ready, owned};
use super::revision::{History, LABEL, of_pod};
use super::rolling::share;
use super::template::pod;
use crate::kubernetes::Kind;

/// Takes every DaemonSet one step on.
pub(super) fn reconcile(pass: &Pass<'_>) {
    for set in pass.list(Kind::DaemonSet) {
        if is_ending(&set) {
            continue;
        }
        let history = History::of(pass, Kind::DaemonSet, &set);
        let pods = owned(&pass.list(Kind::Pod), &set);
        step(pass, &set, &history, &pods);
        let pods = owned(&pass.list(Kind::Pod), &set);
        report(pass, &set, history.newest(), &pods);
        let used: Vec<&str> = pods.iter().map(|pod| of_pod(pod)).collect();
        history.forget(pass, &set, &used);
    }
}

fn step(pass: &Pass<'_>, set: &Value, history: &History, pods: &[Arc<Value>]) {
    for pod in pods.iter().filter(|pod| is_finished(pod) && !is_ending(pod)) {
        pass.delete(Kind::Pod, pod);
    }
    let newest = history.newest();
    let surges = surge(set) > 0;
    let new = pods.iter().find(|pod| is_active(pod) && of_pod(pod) == newest);
    let old: Vec<_> = pods.iter().filter(|pod| is_active(pod) && of_pod(pod) != newest).collect();
    // Where pods may not surge, the node is free only once the former pod is gone at last.
    let is_free = surges || pods.iter().all(|pod| is_finished(pod));
    if text(set, "/spec/updateStrategy/type") == "OnDelete" {
        if old.is_empty() && new.is_none() && is_free {
            make(pass, set, history);
        }
        return;
    }
    if new.is_none() && is_free {
        make(pass, set, history);
    }
    let is_replaced = new.is_some_and(|new| is_available(pass, set, new));
    for pod in old {
        if !surges || is_replaced || !is_available(pass, set, pod) {
            pass.delete(Kind::Pod, pod);
        }
    }
}

/// Returns how many pods more than one the node may have.
fn surge(set: &Value) -> usize {
    match &set["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] {
        Value::Null => 0,
        written => share(written, 1, usize::div_ceil),
    }
}

fn make(pass: &Pass<'_>, set: &Value, history: &History) {
    let mut pod = pod(&set["spec"]["template"], "DaemonSet", "apps/v1", set);
    put(&mut pod, &["metadata", "labels", LABEL], history.newest());
    pod["metadata"]["generateName"] = format!("{}-", name(set)).into();
    pass.create(Kind::Pod, &pod);
}

fn is_available(pass: &Pass<'_>, set: &Value, pod: &Value) -> bool {
    pass.is_available(pod, number(set, "/spec/minReadySeconds").unwrap_or_default())
}

fn report(pass: &Pass<'_>, set: &Value, newest: &str, pods: &[Arc<Value>]) {
    let active = || pods.iter().filter(|pod| is_active(pod));
    let any = |holds: bool| usize::from(holds);
    let available = any(active().any(|pod| is_available(pass, set, pod)));
    let mut status = json!({
        "observedGeneration": set["metadata"]["generation"],
        "desiredNumberScheduled": 1,
        "currentNumberScheduled": any(active().next().is_some()),
        "numberMisscheduled": 0,
        "numberReady": any(active().any(|pod| is_ready(pod))),
    });
    let counts = [
        ("updatedNumberScheduled", any(active().any(|pod| of_pod(pod) == newest))),
        ("numberAvailable", available),
        ("numberUnavailable", 1 - available),
    ];
    for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        status[name] = count.into();
    }
    pass.set_status(Kind::DaemonSet, set, status);
}
