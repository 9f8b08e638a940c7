//! A Secret as the API server shows it, and what is sent to change one.
//!
//! Values are decoded while they are read and encoded while they are written, by a serializer: nothing is wrapped, encoded twice or
//! pasted together (H60).

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::api::Shown;

/// The most that all values of a Secret take together.
pub(super) const LARGEST: usize = 1024 * 1024;

/// The annotation in which `kubectl apply` keeps what it was given.
pub(super) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The values of a Secret, by key.
pub(in crate::store) type Data = BTreeMap<String, SecretValue>;

/// A Secret.
#[derive(Deserialize)]
pub(in crate::store) struct Object {
    pub(super) metadata: Metadata,
    #[serde(default, rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) immutable: bool,
    #[serde(default, deserialize_with = "decoded")]
    pub(in crate::store) data: Data,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) uid: String,
    pub(super) resource_version: String,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    /// One of them may hold a copy of the values.
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, Shown>,
    #[serde(default)]
    pub(super) owner_references: Vec<OwnerReference>,
    #[serde(default)]
    pub(super) managed_fields: Vec<ManagedFields>,
    #[serde(default)]
    pub(super) deletion_timestamp: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct OwnerReference {
    pub(super) kind: String,
    pub(super) name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ManagedFields {
    #[serde(default)]
    pub(super) manager: String,
    #[serde(default)]
    pub(super) time: Option<jiff::Timestamp>,
    #[serde(default)]
    fields_v1: Fields,
}

#[derive(Default, Deserialize)]
struct Fields {
    #[serde(default, rename = "f:data")]
    data: BTreeMap<String, serde::de::IgnoredAny>,
}

impl Object {
    /// Returns the text of an annotation.
    pub(super) fn annotation(&self, name: &str) -> Option<&str> {
        let Shown(value) = self.metadata.annotations.get(name)?;
        std::str::from_utf8(value.expose()).ok()
    }

    /// Returns who set a key last.
    pub(super) fn managers<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        self.setters(key).map(|entry| entry.manager.as_str())
    }

    /// Returns what is on record of who set a key last.
    pub(super) fn setters<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a ManagedFields> {
        let field = format!("f:{key}");
        let sets = move |entry: &&ManagedFields| entry.fields_v1.data.contains_key(&field);
        self.metadata.managed_fields.iter().filter(sets)
    }
}

/// Returns whether two Secrets hold the same values.
pub(super) fn same(one: &Data, other: &Data) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|((a, x), (b, y))| a == b && x.same_as(y))
}

/// Says what is wrong with the name of a key; none where it is one.
pub(super) fn not_a_key(key: &str) -> Option<&'static str> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    if key.is_empty() || key.len() > 253 || !key.bytes().all(fits) {
        return Some("a key has 1 to 253 letters, digits, `-`, `_` or `.`");
    }
    (key == "." || key.starts_with("..")).then_some("a key does not begin with `..`")
}

/// A change of a Secret: a JSON merge patch, which leaves all that it does not name.
#[derive(Serialize)]
pub(super) struct Patch<'a> {
    pub(super) metadata: PatchMetadata<'a>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) data: BTreeMap<&'a str, Option<Encoded<'a>>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PatchMetadata<'a> {
    /// The state that the change is for; the server refuses it for any other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resource_version: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<&'a str, Option<String>>,
}

/// A new Secret.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct New<'a> {
    api_version: &'a str,
    kind: &'a str,
    metadata: NewMetadata<'a>,
    #[serde(rename = "type")]
    secret_type: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    immutable: bool,
    data: BTreeMap<&'a str, Encoded<'a>>,
}

#[derive(Serialize)]
pub(super) struct NewMetadata<'a> {
    pub(super) name: &'a str,
    pub(super) labels: BTreeMap<&'a str, &'a str>,
    pub(super) annotations: BTreeMap<&'a str, &'a str>,
}

impl<'a> New<'a> {
    pub(super) fn of(
        metadata: NewMetadata<'a>,
        secret_type: &'a str,
        immutable: bool,
        data: &'a Data,
    ) -> Self {
        let data = data.iter().map(|(key, value)| (key.as_str(), Encoded(value))).collect();
        Self { api_version: "v1", kind: "Secret", metadata, secret_type, immutable, data }
    }
}

/// A value on its way out, in base64.
pub(super) struct Encoded<'a>(pub(super) &'a SecretValue);

impl Serialize for Encoded<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if planted!("value_encoded_twice") {
            let once = STANDARD.encode(self.0.expose());
            return serializer.collect_str(&Base64Display::new(once.as_bytes(), &STANDARD));
        }
        if planted!("newline_added") {
            let longer = [self.0.expose(), b"\n"].concat();
            return serializer.collect_str(&Base64Display::new(&longer, &STANDARD));
        }
        serializer.collect_str(&Base64Display::new(self.0.expose(), &STANDARD))
    }
}

struct Decoded(SecretValue);

impl<'de> Deserialize<'de> for Decoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Decoded;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("base64")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Decoded, E> {
                let bytes = STANDARD.decode(text).map_err(|_| E::custom("not base64"))?;
                Ok(Decoded(SecretValue::new(bytes)))
            }
        }

        deserializer.deserialize_str(Text)
    }
}

fn decoded<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Data, D::Error> {
    let data: Option<BTreeMap<String, Decoded>> = Option::deserialize(deserializer)
        .map_err(|_| D::Error::custom("values of a Secret are base64"))?;
    let data = data.unwrap_or_default();
    Ok(data.into_iter().map(|(key, Decoded(value))| (key, value)).collect())
}
