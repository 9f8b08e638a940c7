//! Stamps: annotations of the pod template that say which arrangement of which secret a pod was made for. A stamp is a digest
//! and no time: two rolls in the same second do not pass for one (H46), and an ensure that changes nothing writes nothing (H47).

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use keywheel_core::planted;
use keywheel_driver::workload::Stamp;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::reads::DRIVERS;
use super::target::Target;
use crate::kubernetes::{MANAGER, deployer};

/// What every annotation of ours begins with.
pub(super) const PREFIX: &str = "keywheel.dev/";

/// Counts the rolls that were needed although every stamp was right already.
const AGAIN: &str = "keywheel.dev/roll";

/// How long the part of an annotation's name after the slash may be.
const LONGEST: usize = 63;

/// Annotations by name.
pub(super) type Annotations = BTreeMap<String, String>;

/// Returns those that are ours.
pub(super) fn ours(all: Option<&Annotations>) -> Annotations {
    let ours = all.into_iter().flatten().filter(|(name, _)| name.starts_with(PREFIX));
    ours.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Returns the annotation that holds the stamp of a secret.
pub(super) fn name(secret: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let last_fits = secret.ends_with(|c: char| c.is_ascii_alphanumeric());
    let room = LONGEST - "stamp.".len();
    if last_fits && secret.chars().all(fits) && secret.len() <= room {
        return format!("{PREFIX}stamp.{secret}");
    }
    let mut kept: String = secret.chars().map(|c| if fits(c) { c } else { '-' }).collect();
    kept.truncate(room - 9);
    let digest = hex::encode(&Sha256::digest(secret)[..4]);
    format!("{PREFIX}stamp.{kept}-{digest}")
}

/// Returns our annotations once these stamps stand among them.
pub(super) fn stamped(present: &Annotations, stamps: &[Stamp]) -> Annotations {
    let mut stamped = present.clone();
    for stamp in stamps {
        stamped.insert(name(stamp.secret.name()), String::from(stamp.digest));
    }
    if planted!("stamped_with_the_time") {
        let seconds = jiff::Timestamp::now().as_second();
        stamped.insert(AGAIN.into(), seconds.to_string());
    }
    stamped
}

/// Returns our annotations for one roll more with the same stamps.
pub(super) fn again(present: &Annotations) -> Annotations {
    let mut again = present.clone();
    let rolls = present.get(AGAIN).and_then(|rolls| rolls.parse::<u64>().ok()).unwrap_or(0);
    again.insert(AGAIN.into(), (rolls + 1).to_string());
    again
}

/// Whether the stamps of one roll are the same in both; those of others come and go.
pub(super) fn same(left: &Annotations, right: &Annotations, stamps: &[Stamp]) -> bool {
    if planted!("stamps_of_others_are_ours") {
        return left == right;
    }
    let mut names = stamps.iter().map(|stamp| name(stamp.secret.name()));
    names.all(|name| left.get(&name) == right.get(&name))
}

/// Whether a change of our annotations is for one roll more.
pub(super) fn is_again(present: &Annotations, wanted: &Annotations) -> bool {
    present.get(AGAIN) != wanted.get(AGAIN)
}

/// Makes the one patch of a roll: our annotations as wanted, and the references to Secrets as wanted; refused by the cluster
/// where the object changed since it was read.
pub(super) fn patch(target: &Target, wanted: &Annotations, spec: Option<&Value>) -> Value {
    let present = target.ours();
    let mut annotations = Map::new();
    for (name, value) in wanted.iter().filter(|(name, value)| present.get(*name) != Some(*value)) {
        annotations.insert(name.clone(), json!(value));
    }
    for name in present.keys().filter(|name| !wanted.contains_key(*name)) {
        annotations.insert(name.clone(), Value::Null);
    }
    let mut template = Map::new();
    if !annotations.is_empty() {
        template.insert("metadata".into(), json!({"annotations": annotations}));
    }
    if let Some(changes) = spec.and_then(|spec| changes(&target.raw, spec)) {
        template.insert("spec".into(), changes);
    }
    json!({
        "metadata": {"resourceVersion": target.meta().resource_version},
        "spec": {"template": template}
    })
}

/// Returns the lists of a pod's specification that differ: a merge patch knows lists as a whole only.
fn changes(raw: &Value, spec: &Value) -> Option<Value> {
    let present = &raw["spec"]["template"]["spec"];
    let differs = |(name, value): &(&String, &Value)| &present[name.as_str()] != *value;
    let changed = spec.as_object()?.iter().filter(differs);
    let changed: Map<_, _> = changed.map(|(name, value)| (name.clone(), value.clone())).collect();
    (!changed.is_empty()).then_some(Value::Object(changed))
}

/// Returns a template's specification with every reference to one of these Secrets led to another, if that changes anything.
pub(super) fn switched(target: &Target, to: impl Fn(&str) -> Option<String>) -> Option<Value> {
    let present = &target.raw["spec"]["template"]["spec"];
    let mut spec = present.clone();
    let mut lead = |at: &mut Value| {
        if let Some(led) = at.as_str().and_then(&to) {
            *at = Value::String(led);
        }
    };
    for list in ["initContainers", "containers"] {
        for container in items(&mut spec, list) {
            items(container, "env").for_each(|it| {
                at(it, &["valueFrom", "secretKeyRef", "name"], &mut lead);
            });
            items(container, "envFrom").for_each(|it| at(it, &["secretRef", "name"], &mut lead));
        }
    }
    for volume in items(&mut spec, "volumes") {
        at(volume, &["secret", "secretName"], &mut lead);
        DRIVERS.iter().for_each(|path| at(volume, path, &mut lead));
        if let Some(projected) = volume.get_mut("projected") {
            items(projected, "sources").for_each(|it| at(it, &["secret", "name"], &mut lead));
        }
    }
    items(&mut spec, "imagePullSecrets").for_each(|it| at(it, &["name"], &mut lead));
    (spec != *present).then_some(spec)
}

fn items<'v>(of: &'v mut Value, list: &str) -> impl Iterator<Item = &'v mut Value> {
    of.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten()
}

fn at(value: &mut Value, path: &[&str], lead: &mut impl FnMut(&mut Value)) {
    let mut here = Some(value);
    for step in path {
        here = here.and_then(|value| value.get_mut(step));
    }
    if let Some(found) = here {
        lead(found);
    }
}

/// Who writes to every object, and never takes a stamp away; small distributions run all of them in one program.
const CONTROLLERS: &[&str] = &["kube-controller-manager", "k3s", "rke2", "kubelite"];

/// What is on record of who else writes an object. Who took an annotation away stands nowhere: it is a deployer, if there is
/// one, or whoever wrote last.
pub(super) fn rival(meta: &ObjectMeta) -> Option<&ManagedFieldsEntry> {
    let entries = meta.managed_fields.iter().flatten();
    let others = entries.filter(|entry| {
        let is_other = |name: &str| name != MANAGER && !CONTROLLERS.contains(&name);
        let is_whole = entry.subresource.as_deref().is_none_or(str::is_empty);
        is_whole && entry.manager.as_deref().is_some_and(is_other)
    });
    others.max_by_key(|entry| {
        let name = entry.manager.as_deref().unwrap_or_default();
        (deployer(name).is_some(), entry.time.as_ref().map(|at| at.0))
    })
}

#[cfg(test)]
mod tests {
    use super::super::target::Kind;
    use super::*;

    fn target(template: Value) -> Target {
        let raw = json!({"metadata": {"resourceVersion": "7"}, "spec": {"selector": {}, "template": template}});
        Target::parse(Kind::Deployment, raw).unwrap()
    }

    #[test]
    fn h48_a_deployer_is_the_rival_and_no_controller_is() {
        let rival_of = |entries: Value| {
            let meta = serde_json::from_value(json!({"managedFields": entries})).unwrap();
            rival(&meta).and_then(|entry| entry.manager.clone())
        };
        let entry = |manager: &str, second: u8| json!({"manager": manager, "time": format!("2026-01-01T00:00:0{second}Z")});
        let controllers = json!([entry("k3s", 3), entry("kube-controller-manager", 4)]);
        assert_eq!(rival_of(controllers), None);
        let by_hand = json!([entry("kubectl-edit", 2), entry("vim", 1), entry("keywheel", 3)]);
        assert_eq!(rival_of(by_hand).unwrap(), "kubectl-edit");
        let deployed = json!([entry("kubectl-edit", 2), entry("argocd-controller", 1)]);
        assert_eq!(rival_of(deployed).unwrap(), "argocd-controller");
    }

    #[test]
    fn a_name_fits_whatever_the_secret_is_called() {
        assert_eq!(name("jwt"), "keywheel.dev/stamp.jwt");
        let (odd, other) = (name("jwt@production"), name("jwt/production"));
        assert!(odd.starts_with("keywheel.dev/stamp.jwt-production-"));
        assert_ne!(odd, other, "two secrets never share a stamp");
        let long = name(&"x".repeat(200));
        assert_eq!(long.len(), PREFIX.len() + LONGEST);
    }

    #[test]
    fn a_patch_names_what_differs_and_nothing_else() {
        let template = json!({"metadata": {"annotations": {"keywheel.dev/stamp.a": "1", "keywheel.dev/roll": "1", "their": "own"}},
            "spec": {"containers": [{"name": "app", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "a"}}}], "unknownField": 3}],
                     "volumes": [{"name": "v", "secret": {"secretName": "other"}}]}});
        let target = target(template);
        let wanted = Annotations::from([("keywheel.dev/stamp.a".into(), "2".into())]);
        let spec = switched(&target, |name| (name == "keys").then(|| "keys-2".into()));
        assert_eq!(
            patch(&target, &wanted, spec.as_ref()),
            json!({"metadata": {"resourceVersion": "7"}, "spec": {"template": {
                "metadata": {"annotations": {"keywheel.dev/stamp.a": "2", "keywheel.dev/roll": null}},
                "spec": {"containers": [{"name": "app", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "keys-2", "key": "a"}}}], "unknownField": 3}]}}}})
        );
    }

    #[test]
    fn every_reference_is_led_to_the_new_name() {
        let target = target(json!({"spec": {
            "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "keys"}}]}],
            "containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "other"}}]}],
            "volumes": [{"secret": {"secretName": "keys"}}, {"csi": {"nodePublishSecretRef": {"name": "keys"}}}, {"projected": {"sources": [{"secret": {"name": "keys"}}, {"configMap": {"name": "keys"}}]}}],
            "imagePullSecrets": [{"name": "keys"}]}}));
        let spec = switched(&target, |name| (name == "keys").then(|| "keys-2".into())).unwrap();
        let text = spec.to_string();
        assert_eq!(text.matches("keys-2").count(), 5);
        assert_eq!(text.matches("\"keys\"").count(), 1, "the ConfigMap of that name stays: {text}");
        assert!(switched(&target, |_| None).is_none());
    }
}
