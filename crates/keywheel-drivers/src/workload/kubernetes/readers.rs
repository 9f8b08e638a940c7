//! Everything in a namespace that is given a Secret, listed or not (H56): what makes pods, and pods that nothing made.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keywheel_driver::workload::Reader;
use keywheel_driver::{CallError, slot};
use serde::Deserialize;
use serde_json::Value;

use super::RUNNERS;
use super::inventory::{is_over, pod_spec};
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
    let mut owners = BTreeMap::new();
    for (group, resource, kind) in RUNNERS.into_iter().filter(|(.., kind)| *kind != "Pod") {
        for object in namespace.list::<Value>(group, resource, &[]).await? {
            let (meta, found) = found(kind, &object).ok_or_else(|| {
                let cluster = namespace.cluster.target();
                CallError::Unknown(format!("{cluster}: one of its `{resource}` is not understood"))
            })?;
            match super::owner(&meta).filter(|_| matches!(kind, "Job" | "ReplicaSet")) {
                None => all.push(found),
                // That counts; an older set of replicas that is empty is only its history.
                Some(owner) => {
                    let above = (owner.kind.clone(), owner.name.clone());
                    owners.insert(meta.uid.clone().unwrap_or_default(), above);
                }
            }
        }
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

/// Returns what makes pods, with its metadata; none where it is not understood.
fn found(kind: &str, object: &Value) -> Option<(ObjectMeta, Found)> {
    let meta = ObjectMeta::deserialize(&object["metadata"]).ok()?;
    let spec = Option::<PodSpec>::deserialize(pod_spec(kind, object)).ok()?;
    let found = Found {
        kind: kind.to_owned(),
        name: meta.name.clone().unwrap_or_default(),
        reads: spec.as_ref().map(reads).unwrap_or_default(),
        runs: match kind {
            "CronJob" => false,
            "Job" => !is_over(object),
            _ => object["spec"]["replicas"] != 0,
        },
        comes_round: kind == "CronJob",
    };
    Some((meta, found))
}

/// Returns what a pod belongs to in the end, of whatever kind that is (H50).
fn root(owners: &BTreeMap<String, (String, String)>, owner: &OwnerReference) -> (String, String) {
    let above = owners.get(&owner.uid).cloned();
    above.unwrap_or_else(|| (owner.kind.clone(), owner.name.clone()))
}
