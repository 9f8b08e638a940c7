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
use super::reads::{Read, reads};
use super::secrets::Known;
use super::shadows::Shadows;

/// Something that is given Secrets, in the words of its kind.
#[derive(Clone, Debug)]
struct Found {
    kind: String,
    name: String,
    reads: Vec<Read>,
    runs: bool,
    /// Whether it runs by itself again and again, and reads anew each time.
    comes_round: bool,
}

/// Lists who is given which of the slots; the one of the resource `own` also where it is given none.
pub(super) async fn find(
    namespace: &Namespace,
    known: &Known,
    slots: &[String],
    own: &str,
) -> Result<Vec<Reader>, CallError> {
    let all = everything(namespace).await?;
    let reads = all.iter().flat_map(|found| &found.reads);
    let shadows = Shadows::behind(namespace, reads.filter(|read| known.holds(read))).await?;
    let mut readers: Vec<Reader> = Vec::new();
    for found in &all {
        let Taken { slots: taken, how } = taken(found, known, &shadows, slots);
        let resource = namespace.resource(&found.kind, &found.name);
        if taken.is_empty() && (resource != own || how.is_empty()) {
            continue;
        }
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
                let name = format!("{} `{}` ({how}{next})", found.kind, found.name);
                readers.push(Reader { name, resource, slots: taken, runs });
            }
        }
    }
    Ok(readers)
}

/// What something is given, and in which ways; or what keeps it from that.
struct Taken {
    slots: Vec<String>,
    how: String,
}

fn taken(found: &Found, known: &Known, shadows: &Shadows, slots: &[String]) -> Taken {
    let mut hows = BTreeSet::new();
    let mut hidden = BTreeSet::new();
    let mut taken = Vec::new();
    for slot in slots {
        let (container, key) = slot::parts(slot);
        let Some(names) = known.secrets.get(container) else { continue };
        let given = |read: &&Read| names.all.contains_key(&read.secret) && read.gives(key);
        let (behind, by): (Vec<_>, Vec<_>) = found
            .reads
            .iter()
            .filter(given)
            .map(|read| (shadows.before(read, key), read.how))
            .partition(|(before, _)| before.is_some());
        hidden.extend(behind.into_iter().filter_map(|(before, _)| {
            let source = before?.source.words();
            Some(format!("`{key}` is hidden by {source}, which comes later in `envFrom`"))
        }));
        if !by.is_empty() {
            taken.push(slot.clone());
            hows.extend(by.into_iter().map(|(_, how)| how));
        }
    }
    let hows: Vec<String> = hows.into_iter().map(|how| how.words().to_owned()).collect();
    let by = (!hows.is_empty()).then(|| format!("by {}", hows.join(", ")));
    let how: Vec<String> = by.into_iter().chain(hidden).collect();
    Taken { slots: taken, how: how.join("; ") }
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
        let reads = one.spec.as_ref().map(reads).unwrap_or_default();
        all.push(Found { kind, name, reads, runs: true, comes_round: false });
    }
    Ok(all)
}

fn is_end(condition: &str) -> bool {
    matches!(condition, "Complete" | "Failed")
}

fn found(kind: &str, meta: &ObjectMeta, spec: Option<PodSpec>, runs: bool) -> Found {
    let name = meta.name.clone().unwrap_or_default();
    let reads = spec.as_ref().map(reads).unwrap_or_default();
    Found { kind: kind.to_owned(), name, reads, runs, comes_round: false }
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
