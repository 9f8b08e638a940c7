//! Everything in a namespace that is given a Secret, listed or not (H56): what makes pods, and pods that nothing made.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keywheel_driver::workload::Reader;
use keywheel_driver::{CallError, slot};

use super::namespace::Namespace;
use super::pod::is_gone;
use super::reads::reads;
use super::secrets::Known;

/// Something that is given Secrets, in the words of its kind.
#[derive(Clone, Debug)]
struct Found {
    kind: String,
    name: String,
    spec: Option<PodSpec>,
    runs: bool,
    /// Whether it runs by itself again and again, and reads anew each time.
    comes_round: bool,
}

/// Lists who is given which of the slots.
pub(super) async fn find(
    namespace: &Namespace,
    known: &Known,
    slots: &[String],
) -> Result<Vec<Reader>, CallError> {
    let all = everything(namespace).await?;
    let mut readers: Vec<Reader> = Vec::new();
    for found in &all {
        let (taken, how) = taken(found, known, slots);
        if taken.is_empty() {
            continue;
        }
        let resource = namespace.resource(&found.kind, &found.name);
        // One that names a version by name goes on with that one.
        let is_pinned = found.comes_round && taken.iter().any(|slot| known.is_versioned(slot));
        let runs = found.runs || is_pinned;
        match readers.iter_mut().find(|reader| reader.resource == resource) {
            // A pod that its owner no longer describes so: an older one, or one of a kind that is not known here.
            Some(reader) => {
                reader.runs |= runs;
                let new = taken.into_iter().filter(|slot| !reader.slots.contains(slot));
                let new: Vec<_> = new.collect();
                reader.slots.extend(new);
            }
            None => {
                let next =
                    if found.comes_round && !is_pinned { "; its next run reads anew" } else { "" };
                let name = format!("{} `{}` (by {how}{next})", found.kind, found.name);
                readers.push(Reader { name, resource, slots: taken, runs });
            }
        }
    }
    Ok(readers)
}

fn taken(found: &Found, known: &Known, slots: &[String]) -> (Vec<String>, String) {
    let reads = found.spec.as_ref().map(reads).unwrap_or_default();
    let mut hows = BTreeSet::new();
    let mut taken = Vec::new();
    for slot in slots {
        let (container, key) = slot::parts(slot);
        let Some(names) = known.secrets.get(container) else { continue };
        let gives = reads.iter().filter(|it| names.all.contains_key(&it.secret) && it.gives(key));
        let by: Vec<_> = gives.map(|read| read.how).collect();
        if !by.is_empty() {
            taken.push(slot.clone());
            hows.extend(by);
        }
    }
    let hows: Vec<_> = hows.into_iter().map(|how| how.words()).collect();
    (taken, hows.join(", "))
}

async fn everything(namespace: &Namespace) -> Result<Vec<Found>, CallError> {
    let mut all = Vec::new();
    for one in namespace.list::<Deployment>("apps", "deployments", &[]).await? {
        let runs = one.spec.as_ref().is_none_or(|spec| spec.replicas != Some(0));
        let spec = one.spec.and_then(|spec| spec.template.spec);
        all.push(found("Deployment", &one.metadata, spec, runs));
    }
    for one in namespace.list::<StatefulSet>("apps", "statefulsets", &[]).await? {
        let runs = one.spec.as_ref().is_none_or(|spec| spec.replicas != Some(0));
        let spec = one.spec.and_then(|spec| spec.template.spec);
        all.push(found("StatefulSet", &one.metadata, spec, runs));
    }
    for one in namespace.list::<DaemonSet>("apps", "daemonsets", &[]).await? {
        let spec = one.spec.and_then(|spec| spec.template.spec);
        all.push(found("DaemonSet", &one.metadata, spec, true));
    }
    for one in namespace.list::<CronJob>("batch", "cronjobs", &[]).await? {
        let spec = one.spec.and_then(|spec| spec.job_template.spec);
        let spec = spec.and_then(|spec| spec.template.spec);
        let found = found("CronJob", &one.metadata, spec, false);
        all.push(Found { comes_round: true, ..found });
    }
    let mut owners = BTreeMap::new();
    for one in namespace.list::<Job>("batch", "jobs", &[]).await? {
        let ended = one.status.as_ref().is_some_and(|status| {
            let conditions = status.conditions.iter().flatten();
            conditions.into_iter().any(|it| is_end(&it.type_) && it.status == "True")
        });
        let spec = one.spec.and_then(|spec| spec.template.spec);
        add_owned(&mut all, &mut owners, "Job", &one.metadata, spec, !ended);
    }
    for one in namespace.list::<ReplicaSet>("apps", "replicasets", &[]).await? {
        let runs = one.spec.as_ref().is_none_or(|spec| spec.replicas != Some(0));
        let spec = one.spec.and_then(|spec| spec.template).and_then(|template| template.spec);
        add_owned(&mut all, &mut owners, "ReplicaSet", &one.metadata, spec, runs);
    }
    for one in namespace.list::<Pod>("", "pods", &[]).await? {
        if is_gone(&one) {
            continue;
        }
        let (kind, name) = match super::owner(&one.metadata) {
            None => ("Pod".to_owned(), one.metadata.name.clone().unwrap_or_default()),
            Some(owner) => root(&owners, owner),
        };
        all.push(Found { kind, name, spec: one.spec, runs: true, comes_round: false });
    }
    Ok(all)
}

fn is_end(condition: &str) -> bool {
    matches!(condition, "Complete" | "Failed")
}

fn found(kind: &str, meta: &ObjectMeta, spec: Option<PodSpec>, runs: bool) -> Found {
    let name = meta.name.clone().unwrap_or_default();
    Found { kind: kind.to_owned(), name, spec, runs, comes_round: false }
}

/// Adds what may belong to something else: that counts then, and an older set of replicas that is empty is only its history.
fn add_owned(
    all: &mut Vec<Found>,
    owners: &mut BTreeMap<String, (String, String)>,
    kind: &str,
    meta: &ObjectMeta,
    spec: Option<PodSpec>,
    runs: bool,
) {
    match super::owner(meta) {
        None => all.push(found(kind, meta, spec, runs)),
        Some(owner) => {
            let above = (owner.kind.clone(), owner.name.clone());
            owners.insert(meta.uid.clone().unwrap_or_default(), above);
        }
    }
}

/// Returns what a pod belongs to in the end, of whatever kind that is (H50).
fn root(owners: &BTreeMap<String, (String, String)>, owner: &OwnerReference) -> (String, String) {
    let above = owners.get(&owner.uid).cloned();
    above.unwrap_or_else(|| (owner.kind.clone(), owner.name.clone()))
}
