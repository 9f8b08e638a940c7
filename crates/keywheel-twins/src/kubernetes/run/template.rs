//! Pod templates: which two are the same, what a hash of one is, and the pod that is made of one.

use serde_json::{Value, json};

use super::json::{name, namespace, same, uid};

/// The label that tells the pods of one template of a Deployment from those of another.
pub(super) const HASH: &str = "pod-template-hash";

/// Returns whether two templates are the same but for the label that names their hash.
pub(super) fn equal(one: &Value, other: &Value) -> bool {
    same(&without_hash(one), &without_hash(other))
}

fn without_hash(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(HASH);
    }
    template
}

/// Returns a short hash of something, in letters that spell no word.
pub(super) fn hash(of: &Value) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let fnv = of
        .to_string()
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    fnv.to_string()
        .bytes()
        .map(|digit| char::from(LETTERS[usize::from(digit) % LETTERS.len()]))
        .collect()
}

/// Returns the reference by which an object says who manages it.
pub(super) fn managed_by(kind: &str, api_version: &str, owner: &Value) -> Value {
    json!([{
        "apiVersion": api_version,
        "kind": kind,
        "name": name(owner),
        "uid": uid(owner),
        "controller": true,
        "blockOwnerDeletion": true,
    }])
}

/// Returns the pod of a template; whoever makes it says what it is called.
pub(super) fn pod(template: &Value, kind: &str, api_version: &str, owner: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": template["metadata"].clone(),
        "spec": template["spec"].clone(),
    });
    pod["metadata"]["namespace"] = namespace(owner).into();
    pod["metadata"]["ownerReferences"] = managed_by(kind, api_version, owner);
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_of_the_hash_makes_no_other_template() {
        let plain =
            json!({ "metadata": { "labels": { "app": "api" } }, "spec": { "containers": [] } });
        let mut labelled = plain.clone();
        labelled["metadata"]["labels"][HASH] = "abc".into();
        labelled["metadata"]["annotations"] = json!({});
        assert!(equal(&plain, &labelled));
        labelled["metadata"]["annotations"]["stamp"] = "1".into();
        assert!(!equal(&plain, &labelled));
    }

    #[test]
    fn a_hash_is_short_and_differs() {
        let (one, other) = (hash(&json!({ "a": 1 })), hash(&json!({ "a": 2 })));
        assert_ne!(one, other);
        assert!(one.len() <= 10 && one == hash(&json!({ "a": 1 })));
    }
}
