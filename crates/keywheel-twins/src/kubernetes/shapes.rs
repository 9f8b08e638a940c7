//! The shapes in which an object is answered.

use serde_json::{Value, json};

use super::request::Target;

pub(super) fn api_version(target: &Target) -> String {
    match target.resource.group {
        "" => target.version.clone(),
        group => format!("{group}/{}", target.version),
    }
}

pub(super) fn at_version(object: &Value, version: &str) -> Value {
    let mut object = object.clone();
    object["apiVersion"] = version.into();
    object
}

pub(super) fn shown(object: &Value, target: &Target) -> Value {
    at_version(object, &api_version(target))
}

/// Returns an object as lists have it: without its kind, but for custom resources.
pub(super) fn listed(object: &Value, target: &Target) -> Value {
    let mut object = shown(object, target);
    if let Some(object) = object.as_object_mut().filter(|_| !target.resource.is_custom()) {
        object.remove("kind");
        object.remove("apiVersion");
    }
    object
}

pub(super) fn metadata_only(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"],
    })
}

pub(super) fn scale_of(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let labels = object.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
    let selector: Vec<_> = labels
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()))
        .collect();
    let mut kept = json!({});
    for name in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        kept[name] = metadata[name].clone();
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": kept,
        "spec": { "replicas": object["spec"]["replicas"] },
        "status": {
            "replicas": object["status"]["replicas"].as_u64().unwrap_or(0),
            "selector": selector.join(","),
        },
    })
}
