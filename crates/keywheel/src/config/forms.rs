//! The forms of the file that serde cannot derive: names, and short forms beside long ones (a slot, a list of readers, a
//! workload with its driver among its keys).
//!
//! They are written out because serde's `untagged` and `flatten` lose the place and the names that were expected.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::LazyLock;

use keywheel_core::plan;
use keywheel_core::secret::{Field, check_name};
use keywheel_driver::duration::Duration;
use keywheel_drivers::{ProbeConfig, WorkloadConfig};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::StrDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::file::{Name, Named, ReadBy, SlotsEntry, SoakEntry, WorkloadEntry};
use super::suggest::nearest;

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        match check_name(&name) {
            Ok(()) => Ok(Self(name)),
            Err(_) => Err(D::Error::invalid_length(
                name.len(),
                &"a name: 1 to 64 letters, digits, `-` or `_`",
            )),
        }
    }
}

impl JsonSchema for Name {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Name".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$" })
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Named<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(Name(name)) = map.next_key()? {
                    entries.push((name, map.next_value()?));
                }
                Ok(Named(entries))
            }
        }

        deserializer.deserialize_map(Entries(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Named<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("NamedOf{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "propertyNames": Name::json_schema(generator),
            "additionalProperties": generator.subschema_for::<T>(),
        })
    }
}

impl<'de> Deserialize<'de> for WorkloadEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(WorkloadVisitor)
    }
}

/// The keys of a workload: the drivers, and what stands beside them.
static WORKLOAD_KEYS: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| WorkloadConfig::KINDS.iter().copied().chain(["probes", "reads"]).collect());

struct WorkloadVisitor;

impl WorkloadVisitor {
    fn one_driver() -> String {
        format!("a mapping with one driver of `{}`", WorkloadConfig::KINDS.join("`, `"))
    }
}

impl<'de> Visitor<'de> for WorkloadVisitor {
    type Value = WorkloadEntry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Self::one_driver())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WorkloadEntry, A::Error> {
        let (mut driver, mut probes, mut reads) = (None, Vec::new(), None);
        while let Some(key) = map.next_key_seed(KnownKey(&WORKLOAD_KEYS))? {
            match key {
                "probes" => probes = map.next_value()?,
                "reads" => reads = Some(map.next_value()?),
                _ if driver.is_some() => return Err(A::Error::invalid_length(2, &self)),
                kind => driver = Some(map.next_value_seed(Tagged { kind, of: PhantomData })?),
            }
        }
        let driver = driver.ok_or_else(|| A::Error::invalid_length(0, &self))?;
        Ok(WorkloadEntry { driver, probes, reads })
    }
}

impl JsonSchema for WorkloadEntry {
    fn schema_name() -> Cow<'static, str> {
        "Workload".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let probes = generator.subschema_for::<Vec<ProbeConfig>>();
        let mut schema = WorkloadConfig::json_schema(generator);
        let variants = schema.get_mut("oneOf").and_then(|of| of.as_array_mut());
        for variant in variants.into_iter().flatten() {
            if let Some(properties) = variant.get_mut("properties").and_then(|p| p.as_object_mut())
            {
                properties.insert("probes".into(), probes.clone().to_value());
                properties.insert(
                    "reads".into(),
                    serde_json::json!({ "type": "array", "items": { "type": "string" } }),
                );
            }
        }
        schema
    }
}

/// A key out of a list; any other is an unknown key where it stands.
struct KnownKey(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for KnownKey {
    type Value = &'static str;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<&'static str, D::Error> {
        let key = String::deserialize(deserializer)?;
        let known = self.0.iter().find(|known| **known == key).copied();
        known.ok_or_else(|| D::Error::unknown_field(&key, self.0))
    }
}

/// The content of an externally tagged enum whose tag was read as one key among others.
struct Tagged<T> {
    kind: &'static str,
    of: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Tagged<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, content: D) -> Result<T, D::Error> {
        T::deserialize(TaggedContent { kind: self.kind, content })
    }
}

struct TaggedContent<D> {
    kind: &'static str,
    content: D,
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for TaggedContent<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        visitor.visit_enum(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, D: Deserializer<'de>> EnumAccess<'de> for TaggedContent<D> {
    type Error = D::Error;
    type Variant = Content<D>;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Content<D>), D::Error> {
        let tag: StrDeserializer<'_, D::Error> = self.kind.into_deserializer();
        Ok((seed.deserialize(tag)?, Content(self.content)))
    }
}

struct Content<D>(D);

impl<'de, D: Deserializer<'de>> VariantAccess<'de> for Content<D> {
    type Error = D::Error;

    fn unit_variant(self) -> Result<(), D::Error> {
        <()>::deserialize(self.0)
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, D::Error> {
        seed.deserialize(self.0)
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_tuple(length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_struct("", fields, visitor)
    }
}

impl<'de> Deserialize<'de> for ReadBy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Readers;

        impl<'de> Visitor<'de> for Readers {
            type Value = ReadBy;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of workloads, or `nobody` (and `because`)")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ReadBy, E> {
                match text {
                    "nobody" => Ok(ReadBy::Nobody),
                    _ => Err(E::invalid_length(1, &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ReadBy, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = list.next_element()? {
                    names.push(name);
                }
                if names.is_empty() {
                    Err(A::Error::invalid_length(0, &self))
                } else {
                    Ok(ReadBy::Workloads(names))
                }
            }
        }

        deserializer.deserialize_any(Readers)
    }
}

impl JsonSchema for ReadBy {
    fn schema_name() -> Cow<'static, str> {
        "ReadBy".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [
                { "const": "nobody" },
                { "type": "array", "minItems": 1, "items": { "type": "string" } },
            ],
        })
    }
}

impl<'de> Deserialize<'de> for SoakEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Soak;

        impl<'de> Visitor<'de> for Soak {
            type Value = SoakEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a length of time as in `24h`, or a mapping of `for` and `brownout`")
            }

            fn visit_str<E: Error>(self, lasts: &str) -> Result<SoakEntry, E> {
                let lasts = lasts.parse().map_err(E::custom)?;
                Ok(SoakEntry { lasts: Some(lasts), brownout: None })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SoakEntry, A::Error> {
                let mut soak = SoakEntry::default();
                while let Some(key) = map.next_key_seed(KnownKey(&["for", "brownout"]))? {
                    let length = Some(map.next_value()?);
                    match key {
                        "for" => soak.lasts = length,
                        _ => soak.brownout = length,
                    }
                }
                Ok(soak)
            }
        }

        deserializer.deserialize_any(Soak)
    }
}

impl JsonSchema for SoakEntry {
    fn schema_name() -> Cow<'static, str> {
        "Soak".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let length = generator.subschema_for::<Duration>();
        json_schema!({
            "oneOf": [
                length,
                {
                    "type": "object",
                    "properties": { "for": length, "brownout": length },
                    "additionalProperties": false,
                },
            ],
        })
    }
}

impl<'de> Deserialize<'de> for SlotsEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Slots;

        impl<'de> Visitor<'de> for Slots {
            type Value = SlotsEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address, or a mapping of addresses to `current`, `also_accepted`, a field or `{ url: … }`")
            }

            fn visit_str<E: Error>(self, address: &str) -> Result<SlotsEntry, E> {
                if address.is_empty() {
                    return Err(E::invalid_length(0, &self));
                }
                let SlotEntry { role, part } = SlotEntry::value(plan::Role::Current);
                Ok(SlotsEntry(vec![plan::Slot { address: address.into(), role, part }]))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SlotsEntry, A::Error> {
                let mut slots = Vec::new();
                while let Some(address) = map.next_key::<String>()? {
                    let SlotEntry { role, part } = map.next_value()?;
                    slots.push(plan::Slot { address, role, part });
                }
                if slots.is_empty() {
                    Err(A::Error::invalid_length(0, &self))
                } else {
                    Ok(SlotsEntry(slots))
                }
            }
        }

        deserializer.deserialize_any(Slots)
    }
}

/// What one slot holds.
struct SlotEntry {
    role: plan::Role,
    part: plan::Part,
}

impl SlotEntry {
    fn value(role: plan::Role) -> Self {
        Self { role, part: plan::Part::Plain(Field::value()) }
    }

    fn named<E: Error>(text: &str) -> Result<Self, E> {
        const ROLES: &[&str] = &["current", "also_accepted"];
        match text {
            "current" => Ok(Self::value(plan::Role::Current)),
            "also_accepted" => Ok(Self::value(plan::Role::AlsoAccepted)),
            // A mistyped role must not become a field of that name.
            _ if nearest(text, ROLES.iter().copied()).is_some() => {
                Err(E::unknown_variant(text, ROLES))
            }
            _ => Ok(Self { role: plan::Role::Current, part: plan::Part::Plain(field(text)?) }),
        }
    }
}

fn field<E: Error>(name: &str) -> Result<Field, E> {
    match check_name(name) {
        Ok(()) => Ok(Field::new(name)),
        Err(_) => {
            Err(E::invalid_length(name.len(), &"`current`, `also_accepted` or the name of a field"))
        }
    }
}

/// The long form of a slot.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SlotMapping {
    /// The part of a URL that is owned; every other byte of the URL stays.
    url: Option<UrlPart>,
    /// The properties of a JDBC URL that are owned; every other byte of it stays.
    jdbc: Option<LoginPart>,
    /// The keywords of a libpq connection string that are owned; every other byte of it stays.
    libpq: Option<LoginPart>,
    /// User name and password of a line of a libpq password file that are owned; every other byte of it stays.
    pgpass: Option<LoginPart>,
    /// The login whose password the slot holds, in a store that lists logins; while another login is in use it stays.
    password_of: Option<String>,
    /// The field of the credential.
    field: Option<String>,
    /// The role in the arrangement.
    role: Option<Role>,
}

#[derive(serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum UrlPart {
    /// `username:password`.
    Userinfo,
    /// The user name only.
    Username,
    /// The password only.
    Password,
}

#[derive(serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum LoginPart {
    /// User name and password.
    Login,
    /// The user name only.
    Username,
    /// The password only.
    Password,
}

impl From<UrlPart> for plan::Part {
    fn from(part: UrlPart) -> Self {
        Self::Url(match part {
            UrlPart::Userinfo => plan::UrlPart::Userinfo,
            UrlPart::Username => plan::UrlPart::Username,
            UrlPart::Password => plan::UrlPart::Password,
        })
    }
}

impl From<LoginPart> for plan::LoginPart {
    fn from(part: LoginPart) -> Self {
        match part {
            LoginPart::Login => Self::Login,
            LoginPart::Username => Self::Username,
            LoginPart::Password => Self::Password,
        }
    }
}

impl SlotMapping {
    /// Returns which bytes of the slot are owned.
    fn part<E: Error>(&mut self) -> Result<plan::Part, E> {
        let named = [
            self.url.take().map(plan::Part::from),
            self.jdbc.take().map(|part| plan::Part::Jdbc(part.into())),
            self.libpq.take().map(|part| plan::Part::Libpq(part.into())),
            self.pgpass.take().map(|part| plan::Part::Pgpass(part.into())),
            self.password_of.take().map(plan::Part::PasswordOf),
            self.field.take().map(|name| field(&name).map(plan::Part::Plain)).transpose()?,
        ];
        let mut named = named.into_iter().flatten();
        match (named.next(), named.count()) {
            (None, _) => Ok(plan::Part::Plain(Field::value())),
            (Some(plan::Part::PasswordOf(login)), _) if login.is_empty() => {
                Err(E::invalid_length(0, &"the name of a login"))
            }
            (Some(part), 0) => Ok(part),
            (Some(_), others) => Err(E::invalid_length(
                others + 1,
                &"one of `url`, `jdbc`, `libpq`, `pgpass`, `password_of` and `field`",
            )),
        }
    }
}

#[derive(serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Role {
    /// The version that readers use.
    Current,
    /// A second version that readers accept.
    AlsoAccepted,
}

impl<'de> Deserialize<'de> for SlotEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One;

        impl<'de> Visitor<'de> for One {
            type Value = SlotEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "`current`, `also_accepted`, a field of the credential, or `{ url: userinfo }`",
                )
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<SlotEntry, E> {
                SlotEntry::named(text)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SlotEntry, A::Error> {
                let mut mapping =
                    SlotMapping::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                let role = match mapping.role {
                    None | Some(Role::Current) => plan::Role::Current,
                    Some(Role::AlsoAccepted) => plan::Role::AlsoAccepted,
                };
                let part = mapping.part()?;
                Ok(SlotEntry { role, part })
            }
        }

        deserializer.deserialize_any(One)
    }
}

impl JsonSchema for SlotsEntry {
    fn schema_name() -> Cow<'static, str> {
        "Slots".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An address, or a mapping of addresses to what each holds.",
            "oneOf": [
                { "type": "string", "minLength": 1 },
                {
                    "type": "object",
                    "minProperties": 1,
                    "additionalProperties": {
                        "oneOf": [
                            { "type": "string", "description": "`current`, `also_accepted`, or a field of the credential" },
                            generator.subschema_for::<SlotMapping>(),
                        ],
                    },
                },
            ],
        })
    }
}
