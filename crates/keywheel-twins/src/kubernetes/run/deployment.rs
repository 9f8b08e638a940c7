//! Deployments: one ReplicaSet for each template, replaced step by step, as the controller of Kubernetes does it. The arithmetic
//! is in [`rolling`](super::rolling).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::json::{
    annotation, count, each, entries, is, is_ending, name, namespace, number, owner, put, second,
    text, uid,
};
use super::pass::Pass;
use super::pods;
use super::rolling::{Bounds, Tally, grown, shrunk};
use super::template::{HASH, equal, hash, managed_by};
use crate::kubernetes::kinds::Kind;

const REVISION: &str = "deployment.kubernetes.io/revision";
const FORMER_REVISIONS: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MOST: &str = "deployment.kubernetes.io/max-replicas";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Since when each Deployment has made no progress.
pub(super) type Progress = BTreeMap<String, Instant>;

/// One look at a Deployment and its ReplicaSets.
struct Look<'a> {
    pass: &'a Pass<'a>,
    deployment: Arc<Value>,
    /// The ReplicaSet of the present template.
    new: Option<Arc<Value>>,
    /// The others, the oldest first.
    old: Vec<Arc<Value>>,
    replicas: usize,
    bounds: Bounds,
}

/// Takes every Deployment one step on.
pub(super) fn reconcile(pass: &Pass<'_>, progress: &mut Progress) {
    for deployment in pass.list(Kind::Deployment) {
        if is_ending(&deployment) {
            continue;
        }
        let look = Look::at(pass, deployment);
        if is(&look.deployment, "/spec/paused") || look.is_scaled() {
            look.name_revision();
            look.scale();
        } else if text(&look.deployment, "/spec/strategy/type") == "Recreate" {
            look.recreate();
        } else {
            look.roll();
        }
        Look::at(pass, look.deployment).report(progress);
    }
}

impl<'a> Look<'a> {
    fn at(pass: &'a Pass<'a>, deployment: Arc<Value>) -> Self {
        let mut sets = pass.list(Kind::ReplicaSet);
        sets.retain(|set| owner(set) == Some(uid(&deployment)));
        sets.sort_by_key(|set| {
            (text(set, "/metadata/creationTimestamp").to_owned(), revision(set))
        });
        let template = &deployment["spec"]["template"];
        let new = sets.iter().position(|set| equal(&set["spec"]["template"], template));
        let new = new.map(|at| sets.remove(at));
        let replicas = number(&deployment, "/spec/replicas").unwrap_or(1);
        let replicas = usize::try_from(replicas).unwrap_or_default();
        let bounds = match text(&deployment, "/spec/strategy/type") {
            "Recreate" => Bounds { surge: 0, unavailable: 0 },
            _ => Bounds::of(&deployment["spec"]["strategy"]["rollingUpdate"], replicas),
        };
        Self { pass, deployment, new, old: sets, replicas, bounds }
    }

    /// Returns whether the wanted number of replicas changed since the last step.
    fn is_scaled(&self) -> bool {
        let all = self.new.iter().chain(&self.old);
        let mut active = all.filter(|set| count(set, "/spec/replicas") > 0);
        active.any(|set| annotation(set, DESIRED).parse() != Ok(self.replicas))
    }

    fn roll(&self) {
        let new = self.ensure_new();
        let old: Vec<Tally> = self.old.iter().map(tally).collect();
        let wanted = grown(self.replicas, self.bounds, tally(&new), &old);
        if wanted != count(&new, "/spec/replicas") {
            return self.resize(&new, wanted);
        }
        let left = shrunk(self.replicas, self.bounds, tally(&new), &old);
        for (set, left) in self.old.iter().zip(left) {
            if left != count(set, "/spec/replicas") {
                self.resize(set, left);
            }
        }
        self.forget_oldest();
    }

    /// Ends every old pod before the first new one is made.
    fn recreate(&self) {
        let mut gone = true;
        for set in &self.old {
            if count(set, "/spec/replicas") > 0 {
                self.resize(set, 0);
            }
            let left = pods::owned(&self.pass.list(Kind::Pod), set);
            gone &= left.iter().all(|pod| pods::is_finished(pod));
        }
        if !gone {
            return;
        }
        let new = self.ensure_new();
        if count(&new, "/spec/replicas") != self.replicas {
            return self.resize(&new, self.replicas);
        }
        self.forget_oldest();
    }

    /// Brings the ReplicaSets to another number of replicas, each by its share.
    fn scale(&self) {
        let all: Vec<_> = self.new.iter().chain(&self.old).collect();
        let active: Vec<_> =
            all.iter().filter(|set| count(set, "/spec/replicas") > 0).copied().collect();
        match active.as_slice() {
            [] => self.new.iter().for_each(|set| self.resize(set, self.replicas)),
            [one] => self.resize(one, self.replicas),
            several => self.share(several),
        }
    }

    fn share(&self, sets: &[&Arc<Value>]) {
        let all: usize = sets.iter().map(|set| count(set, "/spec/replicas")).sum();
        let allowed = if self.replicas == 0 { 0 } else { self.replicas + self.bounds.surge };
        let mut left = allowed;
        for (at, set) in sets.iter().enumerate() {
            let last = at + 1 == sets.len();
            let part = (count(set, "/spec/replicas") * allowed + all / 2) / all;
            let part = if last { left } else { part.min(left) };
            left -= part;
            self.resize(set, part);
        }
    }

    /// Returns the ReplicaSet of the present template with its revision, made where there is none.
    fn ensure_new(&self) -> Arc<Value> {
        self.name_revision();
        if let Some(new) = &self.new {
            return self.pass.fresh(Kind::ReplicaSet, new).unwrap_or_else(|| Arc::clone(new));
        }
        let template = &self.deployment["spec"]["template"];
        let hash = hash(template);
        let mut selector = self.deployment["spec"]["selector"].clone();
        put(&mut selector, &["matchLabels", HASH], hash.as_str());
        let mut template = template.clone();
        put(&mut template, &["metadata", "labels", HASH], hash.as_str());
        let mut annotations = self.annotations();
        annotations.insert(REVISION.into(), self.next_revision().to_string().into());
        annotations.insert(DESIRED.into(), self.replicas.to_string().into());
        annotations.insert(MOST.into(), (self.replicas + self.bounds.surge).to_string().into());
        let old: Vec<Tally> = self.old.iter().map(tally).collect();
        let nothing = Tally { wanted: 0, available: 0 };
        let set = json!({
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": format!("{}-{hash}", name(&self.deployment)),
                "namespace": namespace(&self.deployment),
                "labels": template["metadata"]["labels"],
                "annotations": annotations,
                "ownerReferences": managed_by("Deployment", "apps/v1", &self.deployment),
            },
            "spec": {
                "replicas": grown(self.replicas, self.bounds, nothing, &old),
                "minReadySeconds": self.min_ready_seconds(),
                "selector": selector,
                "template": template,
            },
        });
        self.pass.create(Kind::ReplicaSet, &set);
        Arc::new(set)
    }

    fn annotations(&self) -> Map<String, Value> {
        let own = [LAST_APPLIED, REVISION, FORMER_REVISIONS, DESIRED, MOST];
        let all = entries(&self.deployment, "/metadata/annotations").into_iter();
        let all = all.filter(|(name, _)| !own.contains(&name.as_str()));
        all.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    fn min_ready_seconds(&self) -> i64 {
        number(&self.deployment, "/spec/minReadySeconds").unwrap_or_default()
    }

    fn next_revision(&self) -> i64 {
        self.old.iter().map(|set| revision(set)).max().unwrap_or_default() + 1
    }

    /// Gives the present template the newest revision: one that is used again moves to the front of the history.
    fn name_revision(&self) {
        let next = self.next_revision();
        let mut named = next;
        if let Some(new) = &self.new {
            named = next.max(revision(new));
            let annotations = self.annotations();
            let least = self.min_ready_seconds();
            self.pass.change(Kind::ReplicaSet, new, |set| {
                put(set, &["spec", "minReadySeconds"], least);
                for (name, value) in &annotations {
                    put(set, &["metadata", "annotations", name], value.clone());
                }
                let former = revision(set);
                if former < next {
                    let mut all = annotation(set, FORMER_REVISIONS).to_owned();
                    if former > 0 {
                        let comma = if all.is_empty() { "" } else { "," };
                        all = format!("{all}{comma}{former}");
                        put(set, &["metadata", "annotations", FORMER_REVISIONS], all);
                    }
                    put(set, &["metadata", "annotations", REVISION], next.to_string());
                }
            });
        } else if is(&self.deployment, "/spec/paused") {
            return;
        }
        self.pass.change(Kind::Deployment, &self.deployment, |deployment| {
            put(deployment, &["metadata", "annotations", REVISION], named.to_string());
        });
    }

    fn resize(&self, set: &Value, replicas: usize) {
        self.pass.change(Kind::ReplicaSet, set, |set| {
            put(set, &["spec", "replicas"], replicas);
            let most = self.replicas + self.bounds.surge;
            put(set, &["metadata", "annotations", DESIRED], self.replicas.to_string());
            put(set, &["metadata", "annotations", MOST], most.to_string());
        });
    }

    /// Deletes what the history may not keep, once the update is done.
    fn forget_oldest(&self) {
        if reason(&self.deployment, "Progressing") != "NewReplicaSetAvailable" {
            return;
        }
        let kept = number(&self.deployment, "/spec/revisionHistoryLimit").unwrap_or(10);
        let empty = self
            .old
            .iter()
            .filter(|set| count(set, "/spec/replicas") == 0 && count(set, "/status/replicas") == 0);
        let mut empty: Vec<_> = empty.collect();
        empty.sort_by_key(|set| revision(set));
        let kept = usize::try_from(kept).unwrap_or(usize::MAX);
        for set in empty.iter().take(empty.len().saturating_sub(kept)) {
            self.pass.delete(Kind::ReplicaSet, set);
        }
    }

    /// Writes the status.
    fn report(&self, progress: &mut Progress) {
        let all = || self.new.iter().chain(&self.old);
        let sum = |at: &str| all().map(|set| count(set, at)).sum::<usize>();
        let available = sum("/status/availableReplicas");
        let wanted = sum("/spec/replicas");
        let updated = self.new.as_ref().map_or(0, |new| count(new, "/status/replicas"));
        let mut status = json!({
            "observedGeneration": self.deployment["metadata"]["generation"],
            "conditions": self.deployment["status"]["conditions"],
        });
        let counts = [
            ("replicas", sum("/status/replicas")),
            ("updatedReplicas", updated),
            ("readyReplicas", sum("/status/readyReplicas")),
            ("availableReplicas", available),
            ("unavailableReplicas", wanted.saturating_sub(available)),
        ];
        for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            status[name] = count.into();
        }
        self.judge_available(&mut status);
        self.judge_progress(&mut status, progress);
        self.pass.set_status(Kind::Deployment, &self.deployment, status);
    }

    fn judge_available(&self, status: &mut Value) {
        let least = self.replicas.saturating_sub(self.bounds.unavailable);
        let condition = if count(status, "/availableReplicas") >= least {
            [
                "Available",
                "True",
                "MinimumReplicasAvailable",
                "Deployment has minimum availability.",
            ]
        } else {
            [
                "Available",
                "False",
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.",
            ]
        };
        set_condition(status, condition);
    }

    fn judge_progress(&self, status: &mut Value, progress: &mut Progress) {
        let limit = number(&self.deployment, "/spec/progressDeadlineSeconds").unwrap_or(600);
        if limit >= i64::from(i32::MAX) {
            return;
        }
        let before = reason(&self.deployment, "Progressing").to_owned();
        let id = uid(&self.deployment).to_owned();
        let now = self.pass.now;
        if is(&self.deployment, "/spec/paused") {
            set_condition(
                status,
                ["Progressing", "Unknown", "DeploymentPaused", "Deployment is paused"],
            );
            progress.insert(id, now);
            return;
        }
        let Some(set) = &self.new else { return };
        let is_settled = count(status, "/replicas") == count(status, "/updatedReplicas");
        if before == "NewReplicaSetAvailable" && is_settled && self.old_is_gone() {
            return;
        }
        let new = name(set);
        let is_fresh = number(set, "/status/observedGeneration").is_none();
        let (state, message) = if is_complete(status, self.replicas) {
            ("NewReplicaSetAvailable", format!("ReplicaSet \"{new}\" has successfully progressed."))
        } else if is_fresh && before != "NewReplicaSetCreated" {
            ("NewReplicaSetCreated", format!("Created new replica set \"{new}\""))
        } else if before == "DeploymentPaused" {
            ("DeploymentResumed", "Deployment is resumed".to_owned())
        } else if progressed(&self.deployment["status"], status) {
            ("ReplicaSetUpdated", format!("ReplicaSet \"{new}\" is progressing."))
        } else {
            return self.judge_deadline(status, &before, *progress.entry(id).or_insert(now), limit);
        };
        progress.insert(id, now);
        touch_condition(status, ["Progressing", "True", state, &message]);
        self.pass.wake_at(now + self.pass.pace.seconds(limit));
    }

    fn judge_deadline(&self, status: &mut Value, before: &str, since: Instant, limit: i64) {
        let end = since + self.pass.pace.seconds(limit);
        if ["NewReplicaSetAvailable", "ProgressDeadlineExceeded"].contains(&before) {
            return;
        }
        if self.pass.now < end {
            return self.pass.wake_at(end);
        }
        let new = self.new.as_ref().map_or("", |set| name(set));
        let message = format!("ReplicaSet \"{new}\" has timed out progressing.");
        set_condition(status, ["Progressing", "False", "ProgressDeadlineExceeded", &message]);
    }

    fn old_is_gone(&self) -> bool {
        self.old.iter().all(|set| count(set, "/status/replicas") == 0)
    }
}

/// Returns the number of a ReplicaSet in the history of its Deployment.
fn revision(set: &Value) -> i64 {
    annotation(set, REVISION).parse().unwrap_or_default()
}

fn tally(set: &Arc<Value>) -> Tally {
    Tally {
        wanted: count(set, "/spec/replicas"),
        available: count(set, "/status/availableReplicas"),
    }
}

fn is_complete(status: &Value, replicas: usize) -> bool {
    ["/updatedReplicas", "/replicas", "/availableReplicas"]
        .iter()
        .all(|at| count(status, at) == replicas)
}

fn progressed(former: &Value, status: &Value) -> bool {
    let old = |status: &Value| {
        count(status, "/replicas").saturating_sub(count(status, "/updatedReplicas"))
    };
    let grew = |at: &str| count(status, at) > count(former, at);
    grew("/updatedReplicas")
        || old(status) < old(former)
        || grew("/readyReplicas")
        || grew("/availableReplicas")
}

/// Returns why a condition is as it is.
fn reason<'a>(object: &'a Value, condition: &str) -> &'a str {
    let conditions = each(object, "/status/conditions");
    let found = conditions.iter().find(|it| text(it, "/type") == condition);
    found.map_or("", |found| text(found, "/reason"))
}

/// Writes a condition unless it stands there already.
fn set_condition(status: &mut Value, condition: [&str; 4]) {
    let [kind, state, reason, _] = condition;
    let stands = each(status, "/conditions").iter().any(|it| {
        text(it, "/type") == kind && text(it, "/status") == state && text(it, "/reason") == reason
    });
    if !stands {
        touch_condition(status, condition);
    }
}

/// Writes a condition as of now; the moment of its transition stays where its status does.
fn touch_condition(status: &mut Value, [kind, state, reason, message]: [&str; 4]) {
    let now = second();
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return };
    let former = conditions.iter().position(|it| text(it, "/type") == kind);
    let former = former.map(|at| conditions.remove(at)).unwrap_or_default();
    let since = match text(&former, "/status") == state {
        true => text(&former, "/lastTransitionTime").to_owned(),
        false => now.clone(),
    };
    conditions.push(json!({
        "type": kind,
        "status": state,
        "reason": reason,
        "message": message,
        "lastUpdateTime": now,
        "lastTransitionTime": since,
    }));
}
