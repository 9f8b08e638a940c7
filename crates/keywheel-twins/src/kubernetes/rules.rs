//! What the server fills in and refuses: defaults and validation.
//!
//! Only what clients of a Secret and of workloads meet is here; a field that nothing here names is kept as it is.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use super::kinds::{Kind, Resource};
use super::status::{Cause, Status};
use super::workloads;

/// Fills in what an object leaves open, and refuses what is wrong with it.
///
/// # Errors
/// Where the object is not right, or changes what may not change.
pub(super) fn settle(
    resource: &Resource,
    new: &mut Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let mut causes = Vec::new();
    read_metadata(resource, new)?;
    if resource.kind == Kind::Secret {
        read_secret(new)?;
    }
    if resource.kind != Kind::ControllerRevision {
        prune(new, resource.is_custom());
        prune(&mut new["metadata"], false);
    }
    metadata(resource, &new["metadata"], &mut causes);
    match resource.kind {
        Kind::Secret => secret(new, old, &mut causes),
        Kind::ConfigMap => data_fields(new, old, &mut causes),
        Kind::Namespace => fill(
            new,
            &[
                ("/spec", json!({ "finalizers": ["kubernetes"] })),
                ("/status", json!({ "phase": "Active" })),
            ],
        ),
        Kind::ExternalSecret => external_secret(new, &mut causes),
        _ => workloads::settle(resource, new, old, &mut causes),
    }
    if causes.is_empty() {
        return Ok(());
    }
    let name = new["metadata"]["name"].as_str().unwrap_or_default();
    Err(Status::invalid(resource, name, &causes))
}

/// Returns whether a change is one of what is wanted, not only of what is said about it.
///
/// The server counts a changed annotation of a Deployment too, because its ReplicaSets take them over.
pub(super) fn is_new_generation(resource: &Resource, old: &Value, new: &Value) -> bool {
    let differs = |name: &str| old.get(name) != new.get(name);
    let annotated = || old["metadata"].get("annotations") != new["metadata"].get("annotations");
    differs("spec") || (resource.kind == Kind::Deployment && annotated())
}

/// Fills in values where none stand yet; where something stands above them is made.
pub(super) fn fill(object: &mut Value, defaults: &[(&str, Value)]) {
    for (at, value) in defaults {
        let mut place = &mut *object;
        for step in at.split('/').skip(1) {
            if place.is_null() {
                *place = json!({});
            }
            let Some(map) = place.as_object_mut() else { return };
            place = map.entry(step).or_insert(Value::Null);
        }
        if place.is_null() {
            place.clone_from(value);
        }
    }
}

/// The maps that are the same empty as not there.
const OMITTED: &[&str] = &[
    "annotations",
    "labels",
    "matchLabels",
    "nodeSelector",
    "data",
    "binaryData",
    "limits",
    "requests",
];

/// Drops what is null, and what is the same empty as not there, as a server does that knows its types.
///
/// A template that got an annotation and lost it again is thereby the one that it was.
fn prune(value: &mut Value, custom: bool) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(|value| prune(value, custom));
            map.retain(|name, value| match value {
                Value::Null => false,
                Value::Array(items) => custom || !items.is_empty(),
                Value::Object(map) => {
                    custom || !map.is_empty() || !OMITTED.contains(&name.as_str())
                }
                _ => true,
            });
        }
        Value::Array(items) => items.iter_mut().for_each(|item| prune(item, custom)),
        _ => {}
    }
}

/// Refuses metadata that cannot be read at all.
fn read_metadata(resource: &Resource, object: &Value) -> Result<(), Status> {
    for field in ["labels", "annotations"] {
        let Some(map) = object["metadata"].get(field).filter(|map| !map.is_null()) else {
            continue;
        };
        let texts = map.as_object().is_some_and(|map| map.values().all(Value::is_string));
        if !texts {
            let why = format!(
                "{} in version \"{}\" cannot be handled as a {}: json: cannot unmarshal value into Go struct field ObjectMeta.metadata.{field} of type string",
                resource.name, resource.version, resource.name
            );
            return Err(Status::bad_request(why));
        }
    }
    Ok(())
}

/// The most bytes that the annotations of an object have together.
const MOST_ANNOTATIONS: usize = 256 * 1024;

/// Judges names, labels and annotations.
fn metadata(resource: &Resource, metadata: &Value, causes: &mut Vec<Cause>) {
    // The names of roles have a grammar of their own.
    let free = matches!(resource.kind, Kind::Role | Kind::RoleBinding);
    let name = &metadata["name"];
    match name.as_str() {
        None | Some("") => {
            causes.push(Cause::required("metadata.name", "name or generateName is required"));
        }
        Some(text) if !free && !is_subdomain(text) => {
            let why = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
            causes.push(Cause::invalid("metadata.name", name, why));
        }
        Some(_) => {}
    }
    marks(metadata, "metadata", causes);
}

/// Judges labels and annotations.
pub(super) fn marks(metadata: &Value, at: &str, causes: &mut Vec<Cause>) {
    let mut size = 0;
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        size += key.len() + value.as_str().unwrap_or_default().len();
        if !is_qualified(&key.to_lowercase()) {
            causes.push(Cause::invalid(format!("{at}.annotations"), &json!(key), QUALIFIED));
        }
    }
    if size > MOST_ANNOTATIONS {
        causes.push(Cause::too_long(format!("{at}.annotations"), MOST_ANNOTATIONS));
    }
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        if !is_qualified(key) {
            causes.push(Cause::invalid(format!("{at}.labels"), &json!(key), QUALIFIED));
        }
        let text = value.as_str().unwrap_or_default();
        if !text.is_empty() && !is_label(text) {
            let why = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
            causes.push(Cause::invalid(format!("{at}.labels"), value, why));
        }
    }
}

const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

fn is_subdomain(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let part = |part: &str| {
        let bytes = part.as_bytes();
        bytes.first().is_some_and(|byte| plain(*byte))
            && bytes.last().is_some_and(|byte| plain(*byte))
            && bytes.iter().all(|byte| plain(*byte) || *byte == b'-')
    };
    text.len() <= 253 && text.split('.').all(part)
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let within = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    bytes.len() <= 63
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(within)
}

fn is_qualified(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_label(name),
        None => is_label(text),
    }
}

/// The most bytes that the values of a Secret have together.
const MOST_DATA: usize = 1024 * 1024;

/// Go reads base64 whose last bits are not zero, and passes over line ends.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// Folds `stringData` in, and refuses what is no base64.
fn read_secret(object: &mut Value) -> Result<(), Status> {
    let texts = object.as_object_mut().and_then(|object| object.remove("stringData"));
    let Some(object) = object.as_object_mut() else { return Ok(()) };
    let data = object.entry("data").or_insert(Value::Null);
    if data.is_null() {
        *data = json!({});
    }
    let Some(data) = data.as_object_mut() else {
        return Err(unreadable("cannot unmarshal value into Go struct field Secret.data"));
    };
    for (_, value) in data.iter_mut() {
        *value = normal(value)?.into();
    }
    for (key, text) in texts.as_ref().and_then(Value::as_object).into_iter().flatten() {
        let Some(text) = text.as_str() else {
            return Err(unreadable(
                "cannot unmarshal value into Go struct field Secret.stringData of type string",
            ));
        };
        data.insert(key.clone(), BASE64_STANDARD.encode(text).into());
    }
    if data.is_empty() {
        object.remove("data");
    }
    Ok(())
}

fn normal(value: &Value) -> Result<String, Status> {
    let text = match value {
        Value::String(text) => text.replace(['\r', '\n'], ""),
        Value::Null => String::new(),
        _ => {
            return Err(unreadable(
                "cannot unmarshal value into Go struct field Secret.data of type []uint8",
            ));
        }
    };
    match LENIENT.decode(&text) {
        Ok(bytes) => Ok(BASE64_STANDARD.encode(bytes)),
        Err(fault) => {
            let at = match fault {
                base64::DecodeError::InvalidByte(at, _) => at,
                _ => text.len(),
            };
            Err(unreadable(&format!("illegal base64 data at input byte {at}")))
        }
    }
}

fn unreadable(why: &str) -> Status {
    Status::bad_request(format!("Secret in version \"v1\" cannot be handled as a Secret: {why}"))
}

/// The keys that a type of Secret has to have.
const TYPED: &[(&str, &[&str])] = &[
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
];

fn secret(new: &mut Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    fill(new, &[("/type", "Opaque".into())]);
    if old.is_some_and(|old| old["type"] != new["type"]) {
        causes.push(Cause::invalid("type", &new["type"], "field is immutable"));
    }
    for (_, keys) in TYPED.iter().filter(|(name, _)| new["type"] == *name) {
        for key in keys.iter().filter(|key| new["data"].get(**key).is_none()) {
            causes.push(Cause::required(format!("data[{key}]"), ""));
        }
    }
    if new["type"] == "kubernetes.io/dockerconfigjson" {
        let held = new["data"][".dockerconfigjson"].as_str().unwrap_or_default();
        let held = BASE64_STANDARD.decode(held).unwrap_or_default();
        if serde_json::from_slice::<Value>(&held).is_err() {
            let why = "<secret contents redacted>";
            causes.push(Cause::invalid("data[.dockerconfigjson]", &json!(why), "must be JSON"));
        }
    }
    data_fields(new, old, causes);
}

/// Judges the data of a Secret or a ConfigMap: names, size, and whether it may change.
fn data_fields(new: &mut Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let is_secret = new["kind"] == "Secret";
    let mut size = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in new.get(field).and_then(Value::as_object).into_iter().flatten() {
            if let Some(why) = wrong_key(key) {
                causes.push(Cause::invalid(format!("{field}[{key}]"), &json!(key), &why));
            }
            let text = value.as_str().unwrap_or_default();
            size += match is_secret || field == "binaryData" {
                true => BASE64_STANDARD.decode(text).map_or(0, |bytes| bytes.len()),
                false => text.len(),
            };
        }
    }
    if size > MOST_DATA {
        let field = if is_secret { "data" } else { "" };
        causes.push(Cause::too_long(field, MOST_DATA));
    }
    let Some(old) = old.filter(|old| old["immutable"] == true) else { return };
    let why = "field is immutable when `immutable` is set";
    if new.get("immutable") != Some(&Value::Bool(true)) {
        causes.push(Cause::forbidden("immutable", why));
    }
    let empty = Value::Object(Map::new());
    for field in ["data", "binaryData"] {
        if old.get(field).unwrap_or(&empty) != new.get(field).unwrap_or(&empty) {
            causes.push(Cause::forbidden(field, why));
        }
    }
}

fn wrong_key(key: &str) -> Option<String> {
    let within = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if key.len() > 253 {
        return Some("must be no more than 253 characters".into());
    }
    if key.is_empty() || !key.bytes().all(within) {
        return Some("a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')".into());
    }
    match key {
        "." | ".." => Some(format!("must not be '{key}'")),
        _ if key.starts_with("..") => Some("must not start with '..'".into()),
        _ => None,
    }
}

fn external_secret(new: &mut Value, causes: &mut Vec<Cause>) {
    fill(
        new,
        &[
            ("/spec/refreshInterval", "1h0m0s".into()),
            ("/spec/target/creationPolicy", "Owner".into()),
            ("/spec/target/deletionPolicy", "Retain".into()),
        ],
    );
    let policy = &new["spec"]["refreshPolicy"];
    let known = ["CreatedOnce", "Periodic", "OnChange"];
    if policy.as_str().is_some_and(|policy| !known.contains(&policy)) {
        let why = "supported values: \"CreatedOnce\", \"Periodic\", \"OnChange\"";
        causes.push(Cause::invalid("spec.refreshPolicy", policy, why));
    }
}
