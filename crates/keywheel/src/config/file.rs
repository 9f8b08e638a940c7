//! The types of `keywheel.yaml`, as one environment sees it: `by_env` is already resolved.
//!
//! Unknown keys are refused everywhere. Where a short form stands beside a long one (a slot, a list of readers, a workload
//! with its driver among its keys) the reading is written out here, because serde's `untagged` and `flatten` lose the place
//! and the names that were expected.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::LazyLock;

use keywheel_core::plan;
use keywheel_core::secret::{Field, check_name};
use keywheel_core::strategy::Strategy;
use keywheel_core::time::Span;
use keywheel_driver::duration::Duration;
use keywheel_drivers::{IssuerConfig, ProbeConfig, StoreConfig, WorkloadConfig};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::StrDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::suggest::nearest;

/// The whole file.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "keywheel.yaml")]
pub(crate) struct File {
    /// The versions of keywheel that may read this file, such as `>=0.1`.
    #[expect(dead_code, reason = "it is checked in the tree, before this type is read")]
    pub(crate) requires: Option<String>,
    /// The name of the project; journals are kept apart by it.
    pub(crate) project: Name,
    /// Limits and rules, by name; the one called `default` holds where a secret names none.
    #[serde(default)]
    pub(crate) policies: Named<PolicyEntry>,
    /// The environments, by name. A file with one environment may leave this out and declare `stores` and `workloads` itself;
    /// the environment is then called `default`.
    pub(crate) environments: Option<Named<EnvironmentEntry>>,
    /// The stores of the one environment.
    pub(crate) stores: Option<Named<StoreConfig>>,
    /// The workloads of the one environment.
    pub(crate) workloads: Option<Named<WorkloadEntry>>,
    /// The secrets, by name.
    #[serde(default)]
    pub(crate) secrets: Named<SecretEntry>,
}

/// A policy; what it leaves out is taken from the built-in one.
#[derive(Clone, Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PolicyEntry {
    /// How long a version may stay current.
    pub(crate) cryptoperiod: Option<Duration>,
    /// From promotion until the previous version is suspended.
    pub(crate) soak: Option<Duration>,
    /// From suspension until the previous version is revoked.
    pub(crate) rollback: Option<Duration>,
    /// How long before the end of the cryptoperiod a secret counts as due soon.
    pub(crate) remind: Option<Duration>,
    /// When workloads may be rolled, such as `Sun 02:00-05:00 Europe/Berlin`.
    pub(crate) roll_window: Option<RollWindow>,
    /// What each secret (`owner`) and each rotation (`reason`) under this policy must name.
    #[serde(default)]
    pub(crate) require: Vec<Requirement>,
    /// When an issuer that can only destroy ends the previous version.
    pub(crate) keep: Option<Keep>,
    /// What a gate does that has no way to know.
    pub(crate) cannot_tell: Option<CannotTell>,
    /// How long after a suspension red probes resume the version.
    pub(crate) watch: Option<Duration>,
    /// How long a gate may stay closed before the rotation parks.
    pub(crate) gate_limit: Option<Duration>,
    /// How old a green visit may be when something is ended on its word.
    pub(crate) fresh_for: Option<Duration>,
    /// What a rotation does that becomes due during the rollback window of the last one; without it, it waits.
    pub(crate) next: Option<Next>,
    /// The hard deadline of one call.
    pub(crate) call: Option<Duration>,
    /// The hard deadline of one roll.
    pub(crate) roll: Option<Duration>,
    /// How long a step that is refused for now is tried again.
    pub(crate) patience: Option<Duration>,
    /// The first wait between two tries.
    pub(crate) retry: Option<Duration>,
    /// How many refusals in a row prove a version dead.
    #[schemars(range(min = 1))]
    pub(crate) refusals: Option<u8>,
}

/// What a policy wants to be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Requirement {
    /// The secret names its owner.
    Owner,
    /// Whoever rotates says why.
    Reason,
}

/// What follows when the next rotation comes during a rollback window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Next {
    /// The window is ended early, and the record says so.
    CloseWindow,
}

/// When an issuer that can only destroy ends the previous version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Keep {
    /// At the end of soak: the least exposure.
    Exposure,
    /// At the end of the rollback window: the longest way back.
    Rollback,
}

impl From<Keep> for plan::Keep {
    fn from(keep: Keep) -> Self {
        match keep {
            Keep::Exposure => Self::Exposure,
            Keep::Rollback => Self::Rollback,
        }
    }
}

/// What a gate does that has no way to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CannotTell {
    /// It holds the rotation up.
    Wait,
    /// It lets the rotation pass, and the record says so.
    Allow,
}

impl From<CannotTell> for plan::CannotTell {
    fn from(answer: CannotTell) -> Self {
        match answer {
            CannotTell::Wait => Self::Wait,
            CannotTell::Allow => Self::Allow,
        }
    }
}

/// A loss that the owner of a secret accepts beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Accept {
    /// Requests may fail while one value gives way to another.
    Outage,
    /// Sessions signed by the previous version end.
    SessionsEnd,
}

impl From<Accept> for plan::Accept {
    fn from(accept: Accept) -> Self {
        match accept {
            Accept::Outage => Self::Outage,
            Accept::SessionsEnd => Self::SessionsEnd,
        }
    }
}

/// When workloads may be rolled: days, a time of day, and a time zone.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct RollWindow(String);

impl RollWindow {
    /// Returns the text as the file has it.
    #[expect(dead_code, reason = "the commands that act follow")]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RollWindow {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if is_window(&text) {
            Ok(Self(text))
        } else {
            Err("a window is days, a time of day and a time zone, as in `Mon-Fri 02:00-05:00 UTC`")
        }
    }
}

fn is_window(text: &str) -> bool {
    let parts: Vec<&str> = text.split(' ').collect();
    let (days, times, zone) = match parts.as_slice() {
        ["daily", times, zone] => ("Mon-Sun", *times, *zone),
        [days, times, zone] => (*days, *times, *zone),
        _ => return false,
    };
    let day = |day: &str| ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"].contains(&day);
    let time = |text: &str| match text.split_once(':') {
        Some((hour, minute)) if hour.len() == 2 && minute.len() == 2 => {
            let below =
                |part: &str, limit: u8| part.parse::<u8>().is_ok_and(|number| number < limit);
            below(hour, 24) && below(minute, 60)
        }
        _ => false,
    };
    let word = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+'))
    };
    days.split(',').all(|range| range.split('-').count() <= 2 && range.split('-').all(day))
        && times.split_once('-').is_some_and(|(from, to)| time(from) && time(to) && from != to)
        && zone.split('/').all(word)
}

impl JsonSchema for RollWindow {
    fn schema_name() -> Cow<'static, str> {
        "RollWindow".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "Days, a time of day and a time zone: `Sun 02:00-05:00 Europe/Berlin`, `daily 01:00-04:00 UTC`.",
        })
    }
}

/// One environment.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EnvironmentEntry {
    /// Asks for the environment's name before anything is changed in it.
    #[serde(default)]
    pub(crate) protected: bool,
    /// The environment in which the same rotation must have completed first.
    pub(crate) after: Option<After>,
    /// Where readers get values, by name.
    #[serde(default)]
    pub(crate) stores: Named<StoreConfig>,
    /// What runs and reads stores, by name.
    #[serde(default)]
    pub(crate) workloads: Named<WorkloadEntry>,
}

/// Another environment that goes first.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct After {
    /// Its name.
    pub(crate) environment: String,
    /// How long ago its rotation may have completed.
    pub(crate) within: Option<Duration>,
}

/// A workload: one key names its driver, the others are these.
#[derive(Debug)]
pub(crate) struct WorkloadEntry {
    /// The driver.
    pub(crate) driver: WorkloadConfig,
    /// Questions put to the running system after each roll.
    pub(crate) probes: Vec<ProbeConfig>,
    /// The stores that it reads; all of its environment where it does not say.
    pub(crate) reads: Option<Vec<String>>,
}

/// A secret, in each environment or in those it names.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SecretEntry {
    /// The policy's name.
    pub(crate) policy: Option<String>,
    /// Who answers for it.
    pub(crate) owner: Option<String>,
    /// The environments that have it; all of them where it does not say.
    pub(crate) environments: Option<Vec<String>>,
    /// What mints and ends its versions.
    pub(crate) issuer: IssuerConfig,
    /// How one version gives way to the next.
    #[serde(default)]
    pub(crate) strategy: StrategyEntry,
    /// The slots that it owns, by store.
    pub(crate) stores: Named<SlotsEntry>,
    /// The workloads that read it, or `nobody`.
    pub(crate) read_by: ReadBy,
    /// Why nobody reads it.
    pub(crate) because: Option<String>,
    /// The environment in which the same rotation must have completed first.
    pub(crate) after: Option<After>,
    /// Losses that its owner accepts beforehand.
    #[serde(default)]
    pub(crate) accept: Vec<Accept>,
}

/// How one version gives way to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum StrategyEntry {
    /// The issuer holds two live credentials.
    #[default]
    Overlap,
    /// A symmetric signing secret: readers accept two values, and sign with one.
    Keyring {
        /// The longest life of a token that a reader signs.
        longest_token: Duration,
        /// How far the clocks of readers may differ.
        #[serde(default = "two_minutes")]
        skew: Duration,
    },
    /// Two logins that take turns.
    Alternate,
    /// One live value at a time; needs `accept`.
    Cutover,
    /// A short-lived credential: forward only.
    Lease,
    /// An encryption key: added, and removed only with proof that nothing needs it.
    Append,
}

fn two_minutes() -> Duration {
    Span::minutes(2).into()
}

impl From<StrategyEntry> for Strategy {
    fn from(entry: StrategyEntry) -> Self {
        match entry {
            StrategyEntry::Overlap => Self::Overlap,
            StrategyEntry::Keyring { longest_token, skew } => {
                Self::Keyring { longest_token: longest_token.span(), skew: skew.span() }
            }
            StrategyEntry::Alternate => Self::Alternate,
            StrategyEntry::Cutover => Self::Cutover,
            StrategyEntry::Lease => Self::Lease,
            StrategyEntry::Append => Self::Append,
        }
    }
}

/// The slots of one store: an address alone, or a mapping of addresses to what each holds.
#[derive(Debug)]
pub(crate) struct SlotsEntry(pub(crate) Vec<plan::Slot>);

/// Who reads a secret.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ReadBy {
    /// These workloads.
    Workloads(Vec<String>),
    /// No workload; the secret says why.
    Nobody,
}

/// A name of a project, secret, store, workload, policy or environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name(pub(crate) String);

/// Entries by name, in the order of the file.
#[derive(Debug)]
pub(crate) struct Named<T>(pub(crate) Vec<(String, T)>);

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Named<T> {
    /// Returns the entry with a name.
    pub(crate) fn get(&self, name: &str) -> Option<&T> {
        self.0.iter().find(|(candidate, _)| candidate == name).map(|(_, entry)| entry)
    }

    /// Returns the names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.0.iter().map(|(name, _)| name.as_str())
    }
}

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
                let mapping =
                    SlotMapping::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                let role = match mapping.role {
                    None | Some(Role::Current) => plan::Role::Current,
                    Some(Role::AlsoAccepted) => plan::Role::AlsoAccepted,
                };
                let part = match (mapping.url, mapping.field) {
                    (Some(_), Some(_)) => {
                        return Err(A::Error::invalid_length(
                            2,
                            &"either `url` or `field`, not both",
                        ));
                    }
                    (Some(UrlPart::Userinfo), None) => plan::Part::Url(plan::UrlPart::Userinfo),
                    (Some(UrlPart::Username), None) => plan::Part::Url(plan::UrlPart::Username),
                    (Some(UrlPart::Password), None) => plan::Part::Url(plan::UrlPart::Password),
                    (None, Some(name)) => plan::Part::Plain(field(&name)?),
                    (None, None) => plan::Part::Plain(Field::value()),
                };
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
