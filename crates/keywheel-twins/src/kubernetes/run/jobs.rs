//! Jobs: one pod that runs to its end. A CronJob is only kept: its schedule makes no Jobs here.

use std::sync::Arc;

use serde_json::{Value, json};

use super::json::{is, is_ending, name, number, put, second, text, uid};
use super::pass::Pass;
use super::pods::{is_active, is_ready, owned};
use super::template::pod;
use crate::kubernetes::Kind;

/// Takes every Job one step on.
pub(super) fn reconcile(pass: &Pass<'_>) {
    for job in pass.list(Kind::Job) {
        if is_ending(&job) || !text(&job, "/status/completionTime").is_empty() || has_failed(&job) {
            continue;
        }
        let pods = owned(&pass.list(Kind::Pod), &job);
        let ended = |phase| pods.iter().filter(|pod| text(pod, "/status/phase") == phase).count();
        let (succeeded, failed) = (ended("Succeeded"), ended("Failed"));
        let limit = number(&job, "/spec/backoffLimit").unwrap_or(6).try_into().unwrap_or(6);
        let is_over = succeeded > 0 || failed > limit;
        let is_waiting = is(&job, "/spec/suspend") || pods.iter().any(|pod| is_active(pod));
        if !is_over && !is_waiting {
            make(pass, &job);
        }
        report(pass, &job, succeeded, failed, failed > limit);
    }
}

fn has_failed(job: &Value) -> bool {
    let conditions = super::json::each(job, "/status/conditions");
    conditions.iter().any(|it| text(it, "/type") == "Failed")
}

fn make(pass: &Pass<'_>, job: &Value) {
    let mut pod = pod(&job["spec"]["template"], "Job", "batch/v1", job);
    for (label, value) in [
        ("batch.kubernetes.io/job-name", name(job)),
        ("batch.kubernetes.io/controller-uid", uid(job)),
    ] {
        put(&mut pod, &["metadata", "labels", label], value);
    }
    pod["metadata"]["generateName"] = format!("{}-", name(job)).into();
    pass.create(Kind::Pod, &pod);
}

fn report(pass: &Pass<'_>, job: &Value, succeeded: usize, failed: usize, gave_up: bool) {
    let pods: Vec<Arc<Value>> = owned(&pass.list(Kind::Pod), job);
    let active = || pods.iter().filter(|pod| is_active(pod));
    let mut status =
        json!({ "startTime": started(job), "ready": active().filter(|pod| is_ready(pod)).count() });
    let counts = [("active", active().count()), ("succeeded", succeeded), ("failed", failed)];
    for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        status[name] = count.into();
    }
    if succeeded > 0 {
        let now = second();
        status["conditions"] =
            json!([{ "type": "Complete", "status": "True", "lastTransitionTime": now }]);
        status["completionTime"] = now.into();
    } else if gave_up {
        status["conditions"] = json!([{
            "type": "Failed",
            "status": "True",
            "reason": "BackoffLimitExceeded",
            "message": "Job has reached the specified backoff limit",
            "lastTransitionTime": second(),
        }]);
    }
    pass.set_status(Kind::Job, job, status);
}

fn started(job: &Value) -> String {
    match text(job, "/status/startTime") {
        "" => second(),
        started => started.to_owned(),
    }
}
