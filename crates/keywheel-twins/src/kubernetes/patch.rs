//! The ways to patch an object: JSON patch, merge patch, strategic merge patch, and what a server-side apply merges.

use serde_json::{Map, Value, json};

use super::fields;
use super::status::Status;

/// Does the operations of a JSON patch.
pub(super) fn json_patch(object: &mut Value, patch: &Value) -> Result<(), Status> {
    let Some(operations) = patch.as_array() else {
        return Err(Status::bad_request("error decoding patch: not a list of operations"));
    };
    operations.iter().try_for_each(|operation| operate(object, operation))
}

fn operate(object: &mut Value, operation: &Value) -> Result<(), Status> {
    let text = |name: &str| operation[name].as_str().unwrap_or_default();
    let path = text("path");
    let value = || operation.get("value").cloned().ok_or_else(|| rejected("missing value"));
    let from = || {
        let found = object.pointer(text("from")).cloned();
        found.ok_or_else(|| {
            rejected(&format!(
                "{} operation does not apply: doc is missing from path: {}: missing value",
                text("op"),
                text("from")
            ))
        })
    };
    match text("op") {
        "add" => add(object, path, value()?),
        "replace" => {
            let value = value()?;
            let place = object.pointer_mut(path).ok_or_else(|| missing("replace", path))?;
            *place = value;
            Ok(())
        }
        "remove" => take(object, path).map(drop).ok_or_else(|| missing("remove", path)),
        "copy" => {
            let value = from()?;
            add(object, path, value)
        }
        "move" => {
            let value = from()?;
            take(object, text("from"));
            add(object, path, value)
        }
        "test" => match object.pointer(path).unwrap_or(&Value::Null) == &value()? {
            true => Ok(()),
            false => Err(rejected(&format!("testing value {path} failed: test failed"))),
        },
        other => Err(rejected(&format!("Unexpected kind: {other}"))),
    }
}

fn missing(operation: &str, path: &str) -> Status {
    rejected(&format!(
        "{operation} operation does not apply: doc is missing path: {path}: missing value"
    ))
}

/// A patch that cannot be done is 422, not 409: the real server tells no conflict here.
fn rejected(why: &str) -> Status {
    let said = "the server rejected our request due to an error in our request";
    let mut status = Status::new(422, "Invalid", said);
    status.details =
        Some(json!({ "causes": [{ "reason": "UnexpectedServerResponse", "message": why }] }));
    status
}

/// Splits a pointer into where a field stands and its name.
fn parted(path: &str) -> Option<(&str, String)> {
    let (parent, last) = path.rsplit_once('/')?;
    Some((parent, last.replace("~1", "/").replace("~0", "~")))
}

fn add(object: &mut Value, path: &str, value: Value) -> Result<(), Status> {
    let Some((parent, last)) = parted(path) else {
        *object = value;
        return Ok(());
    };
    match object.pointer_mut(parent) {
        Some(Value::Object(map)) => {
            map.insert(last, value);
            Ok(())
        }
        Some(Value::Array(items)) if last == "-" => {
            items.push(value);
            Ok(())
        }
        Some(Value::Array(items)) => match last.parse() {
            Ok(index) if index <= items.len() => {
                items.insert(index, value);
                Ok(())
            }
            _ => Err(missing("add", path)),
        },
        _ => Err(missing("add", path)),
    }
}

fn take(object: &mut Value, path: &str) -> Option<Value> {
    let (parent, last) = parted(path)?;
    match object.pointer_mut(parent)? {
        Value::Object(map) => map.remove(&last),
        Value::Array(items) => {
            let index = last.parse().ok().filter(|index| *index < items.len())?;
            Some(items.remove(index))
        }
        _ => None,
    }
}

/// Does a merge patch (RFC 7396).
pub(super) fn merge(object: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    let Some(map) = object.as_object_mut() else { return };
    for (name, value) in patch {
        match value {
            Value::Null => drop(map.remove(name)),
            value => merge(map.entry(name.clone()).or_insert(Value::Null), value),
        }
    }
}

/// Does a strategic merge patch: lists with keys are merged by key, and directives say otherwise.
pub(super) fn strategic(object: &mut Value, patch: &Value) -> Result<(), Status> {
    let Some(patch) = patch.as_object() else {
        return Err(Status::bad_request("error decoding patch: not an object"));
    };
    if !object.is_object() {
        *object = json!({});
    }
    let Some(map) = object.as_object_mut() else { return Ok(()) };
    if patch.get("$patch").is_some_and(|directive| directive == "replace") {
        map.clear();
    }
    for (name, value) in patch {
        if let Some((directive, field)) = name.split_once('/').filter(|_| name.starts_with('$')) {
            listed(map, directive, field, value);
            continue;
        }
        match (name.as_str(), value) {
            ("$patch" | "$retainKeys", _) => {}
            (_, Value::Null) => drop(map.remove(name)),
            (_, Value::Object(_)) => strategic(map.entry(name).or_insert(json!({})), value)?,
            (_, Value::Array(items)) => {
                strategic_list(name, map.entry(name).or_insert(json!([])), items)?;
            }
            (_, value) => drop(map.insert(name.clone(), value.clone())),
        }
    }
    if let Some(Value::Array(kept)) = patch.get("$retainKeys") {
        map.retain(|name, _| kept.iter().any(|key| key == name));
    }
    Ok(())
}

fn listed(map: &mut Map<String, Value>, directive: &str, field: &str, value: &Value) {
    let (Some(Value::Array(items)), Some(named)) = (map.get_mut(field), value.as_array()) else {
        return;
    };
    match directive {
        "$deleteFromPrimitiveList" => items.retain(|item| !named.contains(item)),
        "$setElementOrder" => {
            let place = |item: &Value| {
                let same = |other: &Value| match other.as_object() {
                    Some(keys) => keys.iter().all(|(key, value)| item.get(key) == Some(value)),
                    None => other == item,
                };
                named.iter().position(same).unwrap_or(named.len())
            };
            items.sort_by_key(place);
        }
        _ => {}
    }
}

/// The lists of plain values that are merged.
const UNITED: &[&str] = &["finalizers"];

fn strategic_list(name: &str, present: &mut Value, patch: &[Value]) -> Result<(), Status> {
    let (directives, wanted): (Vec<_>, Vec<_>) =
        patch.iter().cloned().partition(|item| item.as_object().is_some_and(is_only_directive));
    let keys = fields::keys_of(name, &wanted, false);
    let replaced = directives.iter().any(|item| item["$patch"] == "replace");
    if !present.is_array() || replaced {
        *present = json!([]);
    }
    let Some(items) = present.as_array_mut() else { return Ok(()) };
    let Some(key) = keys.and_then(|keys| keys.first()) else {
        if !UNITED.contains(&name) {
            items.clear();
        }
        let fresh: Vec<_> = wanted.into_iter().filter(|item| !items.contains(item)).collect();
        items.extend(fresh);
        return Ok(());
    };
    for item in wanted {
        let same = |other: &Value| other.get(*key) == item.get(*key);
        if item["$patch"] == "delete" {
            items.retain(|other| !same(other));
            continue;
        }
        match items.iter_mut().find(|other| same(other)) {
            Some(other) => strategic(other, &item)?,
            None => {
                let mut fresh = json!({});
                strategic(&mut fresh, &item)?;
                items.push(fresh);
            }
        }
    }
    Ok(())
}

fn is_only_directive(item: &Map<String, Value>) -> bool {
    item.len() == 1 && item.contains_key("$patch")
}

/// Merges an applied configuration into an object: maps by name, lists with keys by key, everything else as a whole.
pub(super) fn apply(object: &mut Value, config: &Value, custom: bool) {
    let (Some(map), Some(config)) = (object.as_object_mut(), config.as_object()) else { return };
    for (name, wanted) in config {
        let present = map.entry(name.clone()).or_insert(Value::Null);
        match wanted {
            Value::Object(_) => {
                if !present.is_object() {
                    *present = json!({});
                }
                apply(present, wanted, custom);
            }
            Value::Array(items) => match fields::keys_of(name, items, custom) {
                Some(keys) => apply_items(present, items, keys, custom),
                None => present.clone_from(wanted),
            },
            _ => present.clone_from(wanted),
        }
    }
}

fn apply_items(present: &mut Value, wanted: &[Value], keys: &[&str], custom: bool) {
    if !present.is_array() {
        *present = json!([]);
    }
    let Some(items) = present.as_array_mut() else { return };
    for item in wanted {
        let same = |other: &Value| keys.iter().all(|key| other.get(*key) == item.get(*key));
        match items.iter_mut().find(|other| same(other)) {
            Some(other) => apply(other, item, custom),
            None => items.push(item.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Value {
        json!({ "spec": { "containers": [{ "name": "app", "image": "a", "env": [
            { "name": "A", "value": "1" }, { "name": "B", "value": "2" }] }] } })
    }

    #[test]
    fn a_json_patch_escapes_names_and_tests_values() {
        let mut object = json!({ "data": { "a/b~c": "1" } });
        let patch = json!([
            { "op": "test", "path": "/data/a~1b~0c", "value": "1" },
            { "op": "replace", "path": "/data/a~1b~0c", "value": "2" },
            { "op": "add", "path": "/data/new", "value": "3" },
        ]);
        json_patch(&mut object, &patch).unwrap();
        assert_eq!(object, json!({ "data": { "a/b~c": "2", "new": "3" } }));
        assert_eq!(json_patch(&mut object, &patch).unwrap_err().code, 422);
        let absent = json!([{ "op": "replace", "path": "/data/typo", "value": "" }]);
        assert_eq!(json_patch(&mut object, &absent).unwrap_err().code, 422);
    }

    #[test]
    fn a_strategic_merge_patch_knows_containers_and_variables_by_name() {
        let mut object = pod();
        let patch = json!({ "spec": { "containers": [{ "name": "app", "env": [
            { "name": "B", "$patch": "delete" }, { "name": "A", "value": "9" }, { "name": "C" }] }] } });
        strategic(&mut object, &patch).unwrap();
        assert_eq!(
            object["spec"]["containers"][0],
            json!({ "name": "app", "image": "a", "env": [{ "name": "A", "value": "9" }, { "name": "C" }] })
        );
        let ordered = json!({ "$setElementOrder/env": [{ "name": "C" }, { "name": "A" }] });
        strategic(&mut object["spec"]["containers"][0], &ordered).unwrap();
        assert_eq!(object["spec"]["containers"][0]["env"][0]["name"], "C");
        strategic(&mut object, &json!({ "spec": { "$patch": "replace", "x": 1 } })).unwrap();
        assert_eq!(object, json!({ "spec": { "x": 1 } }));
    }

    #[test]
    fn a_merge_patch_replaces_lists_and_removes_by_null() {
        let mut object = pod();
        merge(
            &mut object,
            &json!({ "spec": { "containers": [], "a": null }, "data": { "k": "v" } }),
        );
        assert_eq!(object, json!({ "spec": { "containers": [] }, "data": { "k": "v" } }));
    }
}
