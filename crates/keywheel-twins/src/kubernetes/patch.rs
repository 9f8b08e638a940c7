//! The ways to patch an object: JSON patch, merge patch, strategic merge patch, and what a server-side apply merges.

use serde_json::{Value, json};

use super::fields;

/// Merges an applied configuration into an object: maps by name, lists with keys by key, everything else as a whole.
pub(super) fn apply(object: &mut Value, config: &Value, custom: bool) {
    let Some(config) = config.as_object() else { return };
    for (name, wanted) in config {
        let present =
            object.as_object_mut().map(|map| map.entry(name.clone()).or_insert(Value::Null));
        if let Some(present) = present {
            apply_field(name, present, wanted, custom);
        }
    }
}

fn apply_field(name: &str, present: &mut Value, wanted: &Value, custom: bool) {
    match wanted {
        Value::Object(map) if !map.is_empty() => {
            if !present.is_object() {
                *present = json!({});
            }
            apply(present, wanted, custom);
        }
        Value::Array(items) => match fields::keys_of(name, items, custom) {
            Some(keys) => apply_items(present, items, keys, custom),
            None => *present = wanted.clone(),
        },
        _ => *present = wanted.clone(),
    }
}

fn apply_items(present: &mut Value, wanted: &[Value], keys: &[&str], custom: bool) {
    if !present.is_array() {
        *present = json!([]);
    }
    let Some(items) = present.as_array_mut() else { return };
    for item in wanted {
        match items
            .iter_mut()
            .find(|other| keys.iter().all(|key| other.get(*key) == item.get(*key)))
        {
            Some(other) => apply(other, item, custom),
            None => items.push(item.clone()),
        }
    }
}
