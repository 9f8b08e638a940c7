//! Objects as JSON: a place is named by a pointer, and what is absent reads as nothing.

use jiff::Timestamp;
use serde_json::{Map, Value};

/// Returns a text, or the empty one.
pub(super) fn text<'a>(object: &'a Value, at: &str) -> &'a str {
    object.pointer(at).and_then(Value::as_str).unwrap_or_default()
}

/// Returns a whole number.
pub(super) fn number(object: &Value, at: &str) -> Option<i64> {
    object.pointer(at).and_then(Value::as_i64)
}

/// Returns a number of replicas, or 0.
pub(super) fn count(object: &Value, at: &str) -> usize {
    number(object, at).and_then(|n| usize::try_from(n).ok()).unwrap_or_default()
}

/// Returns whether something is said to be so.
pub(super) fn is(object: &Value, at: &str) -> bool {
    object.pointer(at).and_then(Value::as_bool).unwrap_or_default()
}

/// Returns the elements of a list, or none.
pub(super) fn each<'a>(object: &'a Value, at: &str) -> &'a [Value] {
    object.pointer(at).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Returns the entries of a map, or none.
pub(super) fn entries<'a>(object: &'a Value, at: &str) -> Vec<(&'a String, &'a Value)> {
    object.pointer(at).and_then(Value::as_object).into_iter().flatten().collect()
}

/// Writes a value at a path, making the maps on the way.
pub(super) fn put(object: &mut Value, path: &[&str], value: impl Into<Value>) {
    let mut place = object;
    for step in path {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        place = &mut place[*step];
    }
    *place = value.into();
}

/// Returns the value of an annotation, or the empty text.
pub(super) fn annotation<'a>(object: &'a Value, name: &str) -> &'a str {
    object["metadata"]["annotations"][name].as_str().unwrap_or_default()
}

/// Returns the value of a label, or the empty text.
pub(super) fn label<'a>(object: &'a Value, name: &str) -> &'a str {
    object["metadata"]["labels"][name].as_str().unwrap_or_default()
}

/// Returns the name of an object.
pub(super) fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// Returns the namespace of an object.
pub(super) fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

/// Returns the identity of an object, which outlives no deletion.
pub(super) fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

/// Returns whether somebody has asked for its end.
pub(super) fn is_ending(object: &Value) -> bool {
    !text(object, "/metadata/deletionTimestamp").is_empty()
}

/// Returns the object that manages this one, by its identity.
pub(super) fn owner(object: &Value) -> Option<&str> {
    let owners = each(object, "/metadata/ownerReferences");
    owners.iter().find(|owner| is(owner, "/controller")).map(|owner| text(owner, "/uid"))
}

/// Returns whether labels are those that a selector asks for.
pub(super) fn selects(selector: &Value, labels: &Value) -> bool {
    let equal =
        entries(selector, "/matchLabels").into_iter().all(|(k, v)| labels.get(k) == Some(v));
    equal && each(selector, "/matchExpressions").iter().all(|rule| holds(rule, labels))
}

fn holds(rule: &Value, labels: &Value) -> bool {
    let value = labels.get(text(rule, "/key"));
    let among = value.is_some_and(|value| each(rule, "/values").contains(value));
    match text(rule, "/operator") {
        "In" => among,
        "NotIn" => !among,
        "Exists" => value.is_some(),
        _ => value.is_none(),
    }
}

/// Returns whether two values say the same, where an empty map and an absent one are no difference.
pub(super) fn same(one: &Value, other: &Value) -> bool {
    if is_nothing(one) || is_nothing(other) {
        return is_nothing(one) && is_nothing(other);
    }
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let mut keys = one.keys().chain(other.keys());
            keys.all(|key| {
                same(one.get(key).unwrap_or(&Value::Null), other.get(key).unwrap_or(&Value::Null))
            })
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        _ => one == other,
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().all(is_nothing),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// Returns this moment as the API writes it: whole seconds.
pub(super) fn second() -> String {
    let now = Timestamp::from_second(Timestamp::now().as_second());
    now.expect("this moment can be written").to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_empty_map_and_an_absent_one_are_no_difference() {
        assert!(same(&json!({ "a": 1, "b": {} }), &json!({ "a": 1 })));
        assert!(same(&json!({ "a": { "b": {} } }), &json!({ "a": null })));
        assert!(!same(&json!({ "a": 1 }), &json!({ "a": 2 })));
        assert!(!same(&json!({ "a": 0 }), &json!({})));
    }

    #[test]
    fn a_selector_asks_for_labels_and_expressions() {
        let labels = json!({ "app": "api", "tier": "front" });
        let expression = |operator: &str| json!({ "matchExpressions": [{ "key": "tier", "operator": operator, "values": ["front"] }] });
        assert!(selects(&json!({ "matchLabels": { "app": "api" } }), &labels));
        assert!(!selects(&json!({ "matchLabels": { "app": "web" } }), &labels));
        assert!(selects(&expression("In"), &labels) && selects(&expression("Exists"), &labels));
        assert!(!selects(&expression("NotIn"), &labels));
        assert!(!selects(&expression("DoesNotExist"), &labels));
    }
}
