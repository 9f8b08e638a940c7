//! Finds what a Secret holds where it may not stand: in annotations and labels, which anybody reads who may list.

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::Value;

use super::faults::Disclosure;
use super::kinds::Kind;
use super::objects::{Key, Objects};

/// The shortest value that is looked for: a shorter one stands anywhere by chance.
const SHORTEST: usize = 8;

const PLACES: &[&str] = &[
    "/metadata/annotations",
    "/metadata/labels",
    "/spec/template/metadata/annotations",
    "/spec/template/metadata/labels",
];

/// Returns which annotations and labels of an object that was written hold the value of any Secret, plain or in base64.
pub(super) fn find(path: &str, object: &Value, objects: &Objects) -> Vec<Disclosure> {
    let texts: Vec<(&String, &str)> = PLACES
        .iter()
        .filter_map(|place| object.pointer(place)?.as_object())
        .flatten()
        .filter_map(|(name, value)| Some((name, value.as_str()?)))
        .collect();
    if texts.is_empty() {
        return Vec::new();
    }
    let (secrets, _) = objects.list(Kind::Secret, None);
    let mut values = Vec::new();
    let written = (object["kind"] == "Secret").then_some(object);
    for secret in secrets.iter().map(AsRef::as_ref).chain(written) {
        let name = Key::of(Kind::Secret, secret).name;
        for (field, encoded) in secret["data"].as_object().into_iter().flatten() {
            let encoded = encoded.as_str().unwrap_or_default();
            let plain = BASE64_STANDARD.decode(encoded).ok();
            let plain = plain.and_then(|plain| String::from_utf8(plain).ok()).unwrap_or_default();
            values.push((name.clone(), field, encoded, plain));
        }
    }
    let mut found = Vec::new();
    for (name, text) in texts {
        for (secret, field, encoded, plain) in &values {
            let holds = |value: &str| value.len() >= SHORTEST && text.contains(value);
            if holds(encoded) || holds(plain) {
                let secret = (secret.clone(), (*field).clone());
                let name = name.clone();
                let disclosure = Disclosure { path: path.into(), name, secret };
                if !found.contains(&disclosure) {
                    found.push(disclosure);
                }
            }
        }
    }
    found
}
