//! The protobuf form in which kubectl sends the objects that it makes itself: Secrets, ConfigMaps, scales and reviews of rights.

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Map, Value, json};

/// What every object in this form begins with.
const MAGIC: &[u8] = b"k8s\0";

/// What a field is.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Bytes,
    Flag,
    Number,
    Texts,
    ByteTexts,
    Message(&'static [Field]),
}

type Field = (u64, &'static str, Form);

const METADATA: &[Field] = &[
    (1, "name", Form::Text),
    (2, "generateName", Form::Text),
    (3, "namespace", Form::Text),
    (6, "resourceVersion", Form::Text),
    (11, "labels", Form::Texts),
    (12, "annotations", Form::Texts),
];

const SECRET: &[Field] = &[
    (1, "metadata", Form::Message(METADATA)),
    (2, "data", Form::ByteTexts),
    (3, "type", Form::Text),
    (4, "stringData", Form::Texts),
    (5, "immutable", Form::Flag),
];

const CONFIG_MAP: &[Field] = &[
    (1, "metadata", Form::Message(METADATA)),
    (2, "data", Form::Texts),
    (3, "binaryData", Form::ByteTexts),
    (4, "immutable", Form::Flag),
];

const SCALE: &[Field] = &[
    (1, "metadata", Form::Message(METADATA)),
    (2, "spec", Form::Message(&[(1, "replicas", Form::Number)])),
];

const REVIEW: &[Field] =
    &[(2, "spec", Form::Message(&[(1, "resourceAttributes", Form::Message(ATTRIBUTES))]))];

const ATTRIBUTES: &[Field] = &[
    (1, "namespace", Form::Text),
    (2, "verb", Form::Text),
    (3, "group", Form::Text),
    (5, "resource", Form::Text),
    (6, "subresource", Form::Text),
    (7, "name", Form::Text),
];

const UNKNOWN: &[Field] = &[(1, "type", Form::Message(TYPE)), (2, "raw", Form::Bytes)];

const TYPE: &[Field] = &[(1, "apiVersion", Form::Text), (2, "kind", Form::Text)];

/// Reads an object; none where it is of another kind, or is not in this form.
pub(super) fn read(body: &[u8]) -> Option<Value> {
    let unknown = message(body.strip_prefix(MAGIC)?, UNKNOWN)?;
    let fields = match unknown["type"]["kind"].as_str()? {
        "Secret" => SECRET,
        "ConfigMap" => CONFIG_MAP,
        "Scale" => SCALE,
        "SelfSubjectAccessReview" => REVIEW,
        _ => return None,
    };
    let raw = BASE64_STANDARD.decode(unknown["raw"].as_str().unwrap_or_default()).ok()?;
    let mut object = message(&raw, fields)?;
    object["apiVersion"] = unknown["type"]["apiVersion"].clone();
    object["kind"] = unknown["type"]["kind"].clone();
    Some(object)
}

fn message(bytes: &[u8], fields: &[Field]) -> Option<Value> {
    let mut found = json!({});
    for (number, content) in parts(bytes)? {
        let Some((_, name, form)) = fields.iter().find(|(known, _, _)| *known == number) else {
            continue;
        };
        match (form, content) {
            (Form::Flag, Part::Number(value)) => found[name] = (value != 0).into(),
            (Form::Number, Part::Number(value)) => found[name] = value.into(),
            (Form::Text, Part::Bytes([])) => {}
            (Form::Text, Part::Bytes(bytes)) => found[name] = text(bytes)?.into(),
            (Form::Bytes, Part::Bytes(bytes)) => found[name] = BASE64_STANDARD.encode(bytes).into(),
            (Form::Message(fields), Part::Bytes(bytes)) => found[name] = message(bytes, fields)?,
            (Form::Texts | Form::ByteTexts, Part::Bytes(bytes)) => {
                let (key, value) = entry(bytes)?;
                let value = match form {
                    Form::Texts => text(value)?.to_owned(),
                    _ => BASE64_STANDARD.encode(value),
                };
                let map = found.as_object_mut()?.entry(*name).or_insert(Value::Object(Map::new()));
                map[key] = value.into();
            }
            _ => return None,
        }
    }
    Some(found)
}

/// Reads an entry of a map: its key and its value.
fn entry(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (mut key, mut value): (&str, &[u8]) = ("", &[]);
    for part in parts(bytes)? {
        match part {
            (1, Part::Bytes(bytes)) => key = text(bytes)?,
            (2, Part::Bytes(bytes)) => value = bytes,
            _ => {}
        }
    }
    Some((key, value))
}

enum Part<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Splits a message into its fields.
fn parts(mut bytes: &[u8]) -> Option<Vec<(u64, Part<'_>)>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = number(&mut bytes)?;
        let part = match tag & 7 {
            0 => Part::Number(number(&mut bytes)?),
            2 => {
                let length = usize::try_from(number(&mut bytes)?).ok()?;
                let (content, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Part::Bytes(content)
            }
            _ => return None,
        };
        found.push((tag >> 3, part));
    }
    Some(found)
}

fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}
