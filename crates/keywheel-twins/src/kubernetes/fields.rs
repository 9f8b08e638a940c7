//! Who owns which field: the leaves of an object, and `metadata.managedFields`.
//!
//! A leaf is a path of the steps that `fieldsV1` writes: `f:data`, `k:{"name":"app"}`, and `.` for an item itself.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// The steps to a field.
pub type Path = Vec<String>;

/// A set of fields.
pub type Fields = BTreeSet<Path>;

/// What tells one entry of `managedFields` from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Manager {
    /// Its name.
    pub name: String,
    /// Whether it applied the fields, rather than updated them.
    pub applies: bool,
    /// The sub-resource through which it wrote; empty for the object itself.
    pub subresource: String,
}

/// What of an object nobody owns.
const UNOWNED: &[&str] = &[
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
];

/// Returns the keys that tell the items of a list apart; none for a list that is one value.
pub fn keys_of(field: &str, items: &[Value], custom: bool) -> Option<&'static [&'static str]> {
    let keys: &[&str] = match field {
        "ownerReferences" => &["uid"],
        _ if custom => return None,
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "env"
        | "volumes"
        | "imagePullSecrets"
        | "secrets" => &["name"],
        "volumeMounts" => &["mountPath"],
        "ports" if items.iter().all(|item| item.get("containerPort").is_some()) => {
            &["containerPort"]
        }
        "ports" => &["port"],
        "conditions" => &["type"],
        _ => return None,
    };
    let told = |item: &Value| item.get(keys[0]).is_some();
    (!items.is_empty() && items.iter().all(told)).then_some(keys)
}

/// Returns the step to an item of a list with keys.
fn item_step(item: &Value, keys: &[&str]) -> String {
    let named: BTreeMap<&str, &Value> =
        keys.iter().filter_map(|key| Some((*key, item.get(*key)?))).collect();
    format!("k:{}", json!(named))
}

/// Returns every leaf of an object.
pub fn leaves(object: &Value, custom: bool) -> Fields {
    let mut found = Fields::new();
    for (name, value) in object.as_object().into_iter().flatten() {
        match name.as_str() {
            "apiVersion" | "kind" => {}
            "metadata" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    if !UNOWNED.contains(&name.as_str()) {
                        let mut path = vec!["f:metadata".to_owned(), format!("f:{name}")];
                        walk(name, value, custom, &mut path, &mut found);
                    }
                }
            }
            _ => walk(name, value, custom, &mut vec![format!("f:{name}")], &mut found),
        }
    }
    found
}

fn walk(field: &str, value: &Value, custom: bool, path: &mut Path, found: &mut Fields) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (name, value) in map {
                path.push(format!("f:{name}"));
                walk(name, value, custom, path, found);
                path.pop();
            }
        }
        Value::Array(items) => match keys_of(field, items, custom) {
            Some(keys) => {
                for item in items {
                    path.push(item_step(item, keys));
                    path.push(".".into());
                    found.insert(path.clone());
                    path.pop();
                    walk("", item, custom, path, found);
                    path.pop();
                }
            }
            None => {
                found.insert(path.clone());
            }
        },
        _ => {
            found.insert(path.clone());
        }
    }
}

/// Returns what stands at a path.
pub fn at<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, step| {
        if step == "." {
            return Some(value);
        }
        match step.strip_prefix("f:") {
            Some(name) => value.get(name),
            None => value.as_array()?.iter().find(|item| is_item(item, step)),
        }
    })
}

fn is_item(item: &Value, step: &str) -> bool {
    let keys: Option<Map<String, Value>> =
        step.strip_prefix("k:").and_then(|keys| serde_json::from_str(keys).ok());
    keys.is_some_and(|keys| keys.iter().all(|(name, value)| item.get(name) == Some(value)))
}

/// Takes away what stands at a path.
pub fn remove(object: &mut Value, path: &[String]) {
    let path = path.strip_suffix(&[".".to_owned()]).unwrap_or(path);
    let Some((last, before)) = path.split_last() else { return };
    let mut value = object;
    for step in before {
        let next = match step.strip_prefix("f:") {
            Some(name) => value.get_mut(name),
            None => value
                .as_array_mut()
                .and_then(|items| items.iter_mut().find(|item| is_item(item, step))),
        };
        let Some(next) = next else { return };
        value = next;
    }
    match value {
        Value::Object(map) => {
            map.remove(last.trim_start_matches("f:"));
        }
        Value::Array(items) => items.retain(|item| !is_item(item, last)),
        _ => {}
    }
}

/// Returns the leaves that one object has otherwise than another.
pub fn changed(old: &Value, new: &Value, custom: bool) -> Fields {
    let differs = |path: &Path| match path.last().map(String::as_str) {
        Some(".") => at(old, path).is_none(),
        _ => at(old, path) != at(new, path),
    };
    leaves(new, custom).into_iter().filter(differs).collect()
}

/// Writes a path as a message names it: `.data.token`, `.spec.containers[name="app"].image`.
pub fn shown(path: &[String]) -> String {
    path.iter().filter(|step| *step != ".").map(|step| shown_step(step)).collect()
}

fn shown_step(step: &str) -> String {
    if let Some(name) = step.strip_prefix("f:") {
        return format!(".{name}");
    }
    let keys: Map<String, Value> =
        serde_json::from_str(step.trim_start_matches("k:")).unwrap_or_default();
    let keys: Vec<_> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("[{}]", keys.join(","))
}

/// The entries of `managedFields`: the fields of each manager, and when it last changed them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Owners(BTreeMap<Manager, (Fields, String)>);

impl Owners {
    /// Reads them from an object.
    pub fn of(object: &Value) -> Self {
        let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
        let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let read = |entry: &Value| {
            let manager = Manager {
                name: text(entry, "manager"),
                applies: entry["operation"] == "Apply",
                subresource: text(entry, "subresource"),
            };
            let mut fields = Fields::new();
            read_fields(&entry["fieldsV1"], &mut Path::new(), &mut fields);
            (manager, (fields, text(entry, "time")))
        };
        Self(entries.into_iter().flatten().map(read).collect())
    }

    /// Returns the fields of one.
    pub fn fields(&self, manager: &Manager) -> Fields {
        self.0.get(manager).map(|(fields, _)| fields.clone()).unwrap_or_default()
    }

    /// Returns whether anybody but one owns a field.
    pub fn has_other(&self, manager: &Manager, path: &Path) -> bool {
        self.others(manager, path).next().is_some()
    }

    /// Returns whether anybody but one owns an item of a list or anything in it.
    pub fn has_other_below(&self, manager: &Manager, item: &[String]) -> bool {
        let others = self.0.iter().filter(|(other, _)| *other != manager);
        others.flat_map(|(_, (fields, _))| fields).any(|path| path.starts_with(item))
    }

    /// Returns who else owns a field.
    pub fn others<'a>(
        &'a self,
        manager: &'a Manager,
        path: &'a Path,
    ) -> impl Iterator<Item = &'a Manager> {
        let owns = move |(other, (fields, _)): &(&Manager, &(Fields, String))| {
            *other != manager && fields.contains(path)
        };
        self.0.iter().filter(owns).map(|(other, _)| other)
    }

    /// Gives fields to a manager that wrote them, and takes them from all others.
    pub fn take(&mut self, manager: &Manager, fields: Fields, now: &str) {
        if fields.is_empty() {
            return;
        }
        for (other, (theirs, time)) in &mut self.0 {
            let before = theirs.len();
            theirs.retain(|path| other == manager || !fields.contains(path));
            if theirs.len() != before {
                now.clone_into(time);
            }
        }
        let (mine, time) = self.0.entry(manager.clone()).or_default();
        mine.extend(fields);
        now.clone_into(time);
    }

    /// Makes the fields of a manager exactly these, beside all others.
    pub fn set(&mut self, manager: &Manager, fields: Fields, now: &str) {
        if self.fields(manager) != fields {
            self.0.insert(manager.clone(), (fields, now.into()));
        }
    }

    /// Forgets fields that are no longer there, and managers without any.
    pub fn keep(&mut self, present: &Fields) {
        for (fields, _) in self.0.values_mut() {
            fields.retain(|path| present.contains(path));
        }
        self.0.retain(|_, (fields, _)| !fields.is_empty());
    }

    /// Returns them as an object has them.
    pub fn entries(&self, api_version: &str) -> Value {
        let entry = |(manager, (fields, time)): (&Manager, &(Fields, String))| {
            let mut entry = json!({
                "manager": manager.name,
                "operation": if manager.applies { "Apply" } else { "Update" },
                "apiVersion": api_version,
                "time": time,
                "fieldsType": "FieldsV1",
                "fieldsV1": write_fields(fields),
            });
            if !manager.subresource.is_empty() {
                entry["subresource"] = manager.subresource.as_str().into();
            }
            entry
        };
        self.0.iter().map(entry).collect()
    }
}

fn read_fields(value: &Value, path: &mut Path, found: &mut Fields) {
    let Some(map) = value.as_object().filter(|map| !map.is_empty()) else {
        if !path.is_empty() {
            found.insert(path.clone());
        }
        return;
    };
    for (step, value) in map {
        path.push(step.clone());
        read_fields(value, path, found);
        path.pop();
    }
}

fn write_fields(fields: &Fields) -> Value {
    let mut root = json!({});
    for path in fields {
        let mut value = &mut root;
        for step in path {
            value = value
                .as_object_mut()
                .expect("a step is a map")
                .entry(step.clone())
                .or_insert_with(|| json!({}));
        }
    }
    root
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_of_a_list_with_keys_are_leaves_of_their_own() {
        let pod = json!({ "metadata": { "name": "a", "labels": { "x": "y" } }, "spec": { "containers": [
            { "name": "app", "env": [{ "name": "A", "value": "1" }], "args": ["b"] }] } });
        let shown: Vec<_> = leaves(&pod, false).iter().map(|path| shown(path)).collect();
        assert_eq!(
            shown,
            [
                ".metadata.labels.x",
                ".spec.containers[name=\"app\"]",
                ".spec.containers[name=\"app\"].args",
                ".spec.containers[name=\"app\"].env[name=\"A\"]",
                ".spec.containers[name=\"app\"].env[name=\"A\"].name",
                ".spec.containers[name=\"app\"].env[name=\"A\"].value",
                ".spec.containers[name=\"app\"].name",
            ]
        );
        let mut other = pod.clone();
        for path in leaves(&pod, false) {
            remove(&mut other, &path);
        }
        assert_eq!(other["spec"]["containers"], json!([]));
    }

    #[test]
    fn a_field_that_is_written_changes_hands() {
        let manager =
            |name: &str| Manager { name: name.into(), applies: false, subresource: String::new() };
        let old = json!({ "data": { "a": "1", "b": "2" } });
        let new = json!({ "data": { "a": "3", "b": "2" } });
        let mut owners = Owners::default();
        owners.take(&manager("first"), leaves(&old, false), "t1");
        owners.take(&manager("second"), changed(&old, &new, false), "t2");
        let entries = owners.entries("v1");
        assert_eq!(entries[0]["fieldsV1"], json!({ "f:data": { "f:b": {} } }));
        assert_eq!(entries[1]["fieldsV1"], json!({ "f:data": { "f:a": {} } }));
        let object = json!({ "metadata": { "managedFields": entries } });
        assert_eq!(Owners::of(&object), owners);
    }
}
