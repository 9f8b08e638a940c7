//! `vault_kv`: keys of one secret in a KV engine of version 2, at Vault or OpenBao; a slot is the name of a key.
//!
//! A write merges its keys into the newest version, on the condition that no newer one came in between, so that keys of others
//! stay as they are (H63). Each write makes a version; the engine keeps the last ones and deletes older ones for good.
//!
//! A reader that asks for one version by its number cannot be seen from here, and never moves (H65).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::facts::{Pickup, ReadBack, Revert, StoreFacts};
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::Span;
use keywheel_driver::store::{Edit, Written};
use keywheel_driver::{
    CallError, Claim, Claims, Duration, Finding, Owner, Refusal, RefusalKind, Store,
};
use reqwest::Method;
use schemars::JsonSchema;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::api::unsupported;
use crate::http::Effect;
use crate::secret_json::{self, Text};
use crate::vault::{self, Auth, Body, Data, Place, Vault};
use crate::{Build, Context};

const TARGET: &str = "store `vault_kv`";

/// The fewest versions that the engine must keep: those of a rotation with three moves and of the way back, the one before it,
/// and the one of somebody else in between.
const FEWEST: u64 = 8;

/// What an engine keeps that was told nothing.
const USUAL: u64 = 10;

/// How often a write that another one overtook is judged anew.
const ATTEMPTS: usize = 20;

/// The longest value that the engine keeps beside a secret.
const LONGEST: usize = 512;

/// A secret in a KV engine of version 2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the server is; HTTPS, or a loopback address.
    pub address: String,
    /// The namespace, if it is not the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The file of the certificates that sign the server's, where this machine does not trust it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// How keywheel proves who it is.
    pub auth: Auth,
    /// Where the engine is mounted.
    #[serde(default = "secret")]
    pub mount: String,
    /// The path of the secret below that, without `data/`.
    pub path: String,
    /// Whether the secret is made where it is missing.
    #[serde(default)]
    pub create: bool,
    /// How many versions the engine must keep of it; 8 at the least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_versions: Option<u64>,
    /// How long a write without an answer can still take effect.
    #[serde(default = "minute")]
    pub settle_for: Duration,
}

fn secret() -> String {
    "secret".into()
}

fn minute() -> Duration {
    Span::minutes(1).into()
}

impl Build for Config {
    type Driver = dyn Store;

    fn build(&self, context: &Context) -> Result<Arc<dyn Store>, Refusal> {
        vault::check_path("mount", &self.mount)?;
        vault::check_path("path", &self.path)?;
        if self.path.starts_with("data/") {
            return Err(unsupported("`path` begins behind `data/`, which is a word of the API"));
        }
        let place = Place {
            address: &self.address,
            namespace: self.namespace.as_deref(),
            ca: self.ca.as_deref(),
            auth: &self.auth,
        };
        let vault = Vault::new(TARGET, &place, context)?;
        Ok(Arc::new(VaultKv { vault, config: self.clone(), ours: context.claim.clone() }))
    }
}

struct VaultKv {
    vault: Vault,
    config: Config,
    ours: Option<Claim>,
}

/// The newest version of a secret.
#[derive(Default)]
struct Newest {
    /// Its number; 0 where there was never one.
    version: u64,
    /// Whether it was deleted or destroyed.
    is_deleted: bool,
    keys: BTreeMap<String, Held>,
}

/// What a key holds.
enum Held {
    Text(SecretValue),
    /// A number, a list, an object: nothing that readers of a slot read.
    Other,
}

#[async_trait]
impl Store for VaultKv {
    fn facts(&self) -> StoreFacts {
        StoreFacts {
            read_back: ReadBack::Value,
            conditional: true,
            staged: false,
            revert: Revert::Append,
            history: true,
            pickup: Pickup::Roll,
            settle_for: self.config.settle_for.span(),
            answers_logins: false,
        }
    }

    fn container(&self) -> String {
        format!("vault:{}{}/{}", self.vault.name(), self.config.mount, self.config.path)
    }

    async fn preflight(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        let mut findings = Vec::new();
        if let Some(finding) = self.wrong_engine().await? {
            return Ok(vec![finding]);
        }
        let newest = match self.newest().await {
            Err(CallError::Refused(no)) if no.kind == RefusalKind::Permission => {
                return Ok(vec![Finding::blocks(no.message)]);
            }
            newest => newest?,
        };
        findings.extend(self.not_permitted(&newest).await?);
        findings.extend(self.unfit(&newest, addresses));
        if self.ours.is_some() {
            let owner = self.owner().await?;
            findings.extend(owner.objection(&self.named()).map(Finding::blocks));
        }
        findings.extend(self.forgets_too_soon().await?);
        Ok(findings)
    }

    async fn addresses(&self) -> Result<Option<Vec<String>>, CallError> {
        Ok(Some(self.newest().await?.keys.into_keys().collect()))
    }

    async fn read(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        let newest = self.newest().await?;
        Ok(addresses.iter().map(|key| self.slot(&newest, key)).collect::<Result<_, _>>()?)
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        let keys: BTreeSet<&str> = edits.iter().map(|edit| edit.address).collect();
        if keys.len() < edits.len() {
            return Err(self.no(RefusalKind::Unsupported, "two edits name one key").into());
        }
        if self.ours.is_some() {
            self.owner().await?.check(&self.named())?;
        }
        for _ in 0..ATTEMPTS {
            let newest = self.newest().await?;
            let Some(due) = self.due(&newest, edits)? else {
                return Ok(Written { changed: false });
            };
            match self.put(&newest, &due).await {
                Ok(true) => return Ok(Written { changed: true }),
                // Somebody else was faster: what the keys hold now is judged anew.
                Ok(false) => {}
                Err(CallError::Unknown(why)) => {
                    if self.landed(&newest, &due).await.map_err(|_| CallError::Unknown(why))? {
                        return Ok(Written { changed: true });
                    }
                }
                Err(refused) => return Err(refused),
            }
        }
        let message = format!("{TARGET}: {} changes all the time", self.named());
        Err(Refusal::retry(RefusalKind::Unavailable, None, message).into())
    }

    fn claims(&self) -> Option<&dyn Claims> {
        self.ours.as_ref().map(|_| self as &dyn Claims)
    }
}

impl VaultKv {
    fn named(&self) -> String {
        format!("the secret `{}/{}`", self.config.mount, self.config.path)
    }

    fn below(&self, what: &str) -> String {
        format!("{}/{what}/{}", self.config.mount, self.config.path)
    }

    fn no(&self, kind: RefusalKind, why: &str) -> Refusal {
        Refusal::operator(kind, format!("{TARGET}: {}: {why}", self.named()))
    }

    /// Reads the newest version. One that was deleted is told from none by what is kept of it.
    async fn newest(&self) -> Result<Newest, CallError> {
        let answer = self.vault.call(Method::GET, &self.below("data"), Body::Empty).await?;
        let read: Data<Read> = match answer.status.as_u16() {
            404 => match answer.decode() {
                Some(read) => read,
                None => return Ok(Newest::default()),
            },
            _ => answer.read(Effect::Reads)?,
        };
        let Read { data, metadata } = read.data;
        let is_deleted = metadata.destroyed || data.is_none();
        Ok(Newest { version: metadata.version, is_deleted, keys: data.unwrap_or_default() })
    }

    fn slot(&self, newest: &Newest, key: &str) -> Result<Option<SecretValue>, Refusal> {
        match newest.keys.get(key) {
            None => Ok(None),
            Some(Held::Text(value)) => Ok(Some(value.duplicate())),
            Some(Held::Other) => {
                let why = format!("the key `{key}` holds no text");
                Err(self.no(RefusalKind::Unsupported, &why))
            }
        }
    }

    /// Returns the keys that are to be changed; none where there is nothing to do.
    fn due<'e>(
        &self,
        newest: &Newest,
        edits: &'e [Edit<'e>],
    ) -> Result<Option<Due<'e>>, Refusal> {
        let mut due = Due::new();
        for edit in edits {
            let present = self.slot(newest, edit.address)?;
            if !edit.accepts(present.as_ref()) {
                let why = format!("the key `{}` holds something else than expected", edit.address);
                return Err(self.no(RefusalKind::Conflict, &why));
            }
            let value = edit.value.map(secret_json::text);
            if value == Some(None) {
                let why = format!("a value for `{}` is not UTF-8, which JSON cannot carry", edit.address);
                return Err(self.no(RefusalKind::Unsupported, &why));
            }
            if !same(edit.value, present.as_ref()) {
                due.insert(edit.address, value.flatten());
            }
        }
        if due.is_empty() {
            return Ok(None);
        }
        if newest.is_deleted {
            return Err(self.no(RefusalKind::Conflict, &self.how_to_undelete(newest)));
        }
        if newest.version == 0 && !self.config.create {
            return Err(self.no(RefusalKind::NotFound, "it is not there (`create: true` makes it)"));
        }
        Ok(Some(due))
    }

    /// Writes one version on top of the one that was read; false where another one came in between.
    async fn put(&self, newest: &Newest, due: &Due<'_>) -> Result<bool, CallError> {
        let condition = Condition { cas: newest.version };
        let options = (!planted!("vault_condition_not_sent")).then_some(condition);
        if newest.version > 0 && !planted!("siblings_not_kept") {
            let patch = secret_json::write(&Change { options: &options, data: due });
            let path = self.below("data");
            let answer = self.vault.call(Method::PATCH, &path, Body::Merge(&patch)).await?;
            if !matches!(answer.status.as_u16(), 403 | 405) {
                return written(&answer);
            }
        }
        // A policy without `patch`: the whole map is written, with what the others hold.
        let mut whole = BTreeMap::new();
        for (key, held) in &newest.keys {
            let Held::Text(value) = held else {
                let why = format!(
                    "the key `{key}` holds no text, and only a token with `patch` leaves it as it is"
                );
                return Err(self.no(RefusalKind::Permission, &why).into());
            };
            whole.insert(key.as_str(), secret_json::text(value));
        }
        if planted!("siblings_not_kept") {
            whole.clear();
        }
        for (key, value) in due {
            match value {
                Some(_) => whole.insert(key, *value),
                None => whole.remove(key),
            };
        }
        let post = secret_json::write(&Change { options: &options, data: &whole });
        let answer = self.vault.call(Method::POST, &self.below("data"), Body::Json(&post)).await?;
        written(&answer)
    }

    /// Returns whether a write without an answer landed. It never does any more once a newer version is there, for its condition
    /// names the former one; until then it still may.
    async fn landed(&self, before: &Newest, due: &Due<'_>) -> Result<bool, CallError> {
        let now = self.newest().await?;
        if now.version <= before.version {
            return Err(CallError::Unknown(String::new()));
        }
        Ok(due.iter().all(|(key, wanted)| match (now.keys.get(*key), wanted) {
            (Some(Held::Text(held)), Some(wanted)) => held.expose() == wanted.as_bytes(),
            (None, None) => true,
            _ => false,
        }))
    }

    async fn wrong_engine(&self) -> Result<Option<Finding>, CallError> {
        let path = format!("sys/internal/ui/mounts/{}", self.config.mount);
        let answer = self.vault.call(Method::GET, &path, Body::Empty).await?;
        // Whoever may not even see the mount hears of it from the read.
        let Some(mount) = answer.decode::<Data<Mount>>() else { return Ok(None) };
        let version = mount.data.options.unwrap_or_default().remove("version");
        let is_two = mount.data.kind == "kv" && version.as_deref() == Some("2");
        Ok((!is_two).then(|| {
            let mount = &self.config.mount;
            Finding::blocks(format!("{TARGET}: `{mount}` is no KV engine of version 2"))
        }))
    }

    async fn not_permitted(&self, newest: &Newest) -> Result<Vec<Finding>, CallError> {
        let (data, metadata) = (self.below("data"), self.below("metadata"));
        let Some(may) = self.vault.capabilities(&[data.clone(), metadata.clone()]).await? else {
            return Ok(vec![Finding::note(format!(
                "{TARGET}: the token may not ask what it may do, so only the write shows it"
            ))]);
        };
        let has = |at: usize, wanted: &[&str]| {
            may[at].iter().any(|one| one == "root" || wanted.contains(&one.as_str()))
        };
        let mut findings = Vec::new();
        let mut lacks = |path: &str, needed: &str| {
            findings.push(Finding::blocks(format!(
                "{TARGET}: the token lacks a capability: its policy needs `path \"{path}\" {{ capabilities = [{needed}] }}`"
            )));
        };
        let writes: &[&str] =
            if newest.version == 0 { &["create", "update"] } else { &["patch", "update"] };
        if !has(0, writes) {
            lacks(&data, "\"read\", \"create\", \"patch\"");
        }
        if self.ours.is_some() && !(has(1, &["read"]) && has(1, &["patch", "update"])) {
            lacks(&metadata, "\"read\", \"create\", \"update\", \"patch\"");
        }
        Ok(findings)
    }

    fn unfit(&self, newest: &Newest, addresses: &[String]) -> Vec<Finding> {
        let blocks = |why: &str| Finding::blocks(self.no(RefusalKind::Conflict, why).message);
        if newest.is_deleted {
            return vec![blocks(&self.how_to_undelete(newest))];
        }
        if newest.version == 0 && !self.config.create {
            return vec![blocks("it is not there (`create: true` makes it)")];
        }
        let unfit = addresses.iter().filter_map(|key| self.slot(newest, key).err());
        unfit.map(|refusal| Finding::blocks(refusal.message)).collect()
    }

    fn how_to_undelete(&self, newest: &Newest) -> String {
        let Config { mount, path, .. } = &self.config;
        format!(
            "its newest version, {}, is deleted: `vault kv undelete -mount={mount} -versions={} {path}` brings it back, unless it was destroyed",
            newest.version, newest.version
        )
    }

    /// Checks that the engine keeps the former values as long as a rotation may want them back.
    async fn forgets_too_soon(&self) -> Result<Option<Finding>, CallError> {
        let of_secret = match self.metadata().await {
            Err(CallError::Refused(no)) if no.kind == RefusalKind::Permission => None,
            metadata => metadata?.map(|metadata| metadata.max_versions).filter(|most| *most > 0),
        };
        let of_engine = async || {
            let path = format!("{}/config", self.config.mount);
            match self.vault.find::<Data<Limits>>(&path).await {
                Ok(limits) => limits.map(|limits| limits.data.max_versions).filter(|most| *most > 0),
                Err(_) => None,
            }
        };
        let kept = match of_secret {
            Some(kept) => kept,
            None => of_engine().await.unwrap_or(USUAL),
        };
        let wanted = self.config.max_versions.unwrap_or(FEWEST).max(FEWEST);
        let Config { mount, path, .. } = &self.config;
        Ok((kept < wanted && !planted!("versions_not_counted")).then(|| {
            Finding::blocks(format!(
                "{TARGET}: {} keeps {kept} versions, and a rotation may want {wanted}: `vault kv metadata put -mount={mount} -max-versions={wanted} {path}`",
                self.named()
            ))
        }))
    }

    async fn metadata(&self) -> Result<Option<Metadata>, CallError> {
        let read = self.vault.find::<Data<Metadata>>(&self.below("metadata")).await?;
        Ok(read.map(|read| read.data))
    }

    /// Merges keys into what is kept beside the secret; none removes one.
    async fn note(&self, keys: &BTreeMap<&str, Option<String>>) -> Result<(), CallError> {
        let metadata = self.metadata().await?;
        let path = self.below("metadata");
        if let Some(metadata) = metadata {
            let patch = secret_json::write(&Noted { custom_metadata: keys });
            let answer = self.vault.call(Method::PATCH, &path, Body::Merge(&patch)).await?;
            if !matches!(answer.status.as_u16(), 403 | 405) {
                return answer.done();
            }
            let mut whole: BTreeMap<&str, Option<String>> = BTreeMap::new();
            let present = metadata.custom_metadata.unwrap_or_default();
            whole.extend(present.iter().map(|(key, held)| (key.as_str(), Some(held.clone()))));
            whole.extend(keys.iter().map(|(key, value)| (*key, value.clone())));
            whole.retain(|_, value| value.is_some());
            return self.vault.change(&path, &Noted { custom_metadata: &whole }).await;
        }
        self.vault.change(&path, &Noted { custom_metadata: keys }).await
    }

    fn claimed_by(&self) -> Result<&Claim, Refusal> {
        self.ours.as_ref().ok_or_else(|| unsupported("no installation claims anything here"))
    }

    async fn make(&self) -> Result<(), CallError> {
        let ours = self.claimed_by()?;
        let keys = fields(ours).map(|(key, value)| (key, Some(shortened(value))));
        self.note(&keys.into_iter().collect()).await
    }
}

#[async_trait]
impl Claims for VaultKv {
    fn place(&self) -> String {
        format!("custom metadata of {}", self.named())
    }

    async fn owner(&self) -> Result<Owner, CallError> {
        let ours = self.claimed_by()?;
        let found = self.metadata().await?.and_then(|metadata| metadata.custom_metadata);
        let found = found.unwrap_or_default();
        if fields(ours).iter().all(|(key, _)| !found.contains_key(*key)) {
            return Ok(Owner::of(None, ours));
        }
        let of = |name: &str| found.get(name).cloned().unwrap_or_default();
        let [installation, folder, environment, host, account, since] = NAMES.map(of);
        if installation.is_empty() {
            return Ok(Owner::Unreadable(format!("`{}` is missing", NAMES[0])));
        }
        let mut claim = Claim { installation, folder, environment, host, account, since };
        if claim.folder == shortened(&ours.folder) {
            claim.folder.clone_from(&ours.folder);
        }
        Ok(Owner::of(Some(claim), ours))
    }

    async fn take(&self) -> Result<bool, CallError> {
        let owner = self.owner().await?;
        owner.check(&self.named())?;
        if owner == Owner::Us {
            return Ok(false);
        }
        self.make().await?;
        // Of two who came at once, the last one has it.
        self.owner().await?.check(&self.named())?;
        Ok(true)
    }

    async fn take_over(&self) -> Result<(), CallError> {
        match self.owner().await? {
            Owner::Us => Ok(()),
            _ => self.make().await,
        }
    }

    async fn release(&self) -> Result<(), CallError> {
        match self.owner().await? {
            Owner::Us => self.note(&NAMES.map(|name| (name, None)).into_iter().collect()).await,
            _ => Ok(()),
        }
    }
}

/// The keys under which a claim stands, one for each of its parts, since the length of a value is limited.
const NAMES: [&str; 6] = [
    "keywheel-installation",
    "keywheel-folder",
    "keywheel-environment",
    "keywheel-host",
    "keywheel-account",
    "keywheel-since",
];

fn fields(claim: &Claim) -> [(&'static str, &str); 6] {
    let Claim { installation, folder, environment, host, account, since } = claim;
    let values = [installation, folder, environment, host, account, since];
    std::array::from_fn(|index| (NAMES[index], values[index].as_str()))
}

fn shortened(value: &str) -> String {
    let mut end = value.len().min(LONGEST);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    value[..end].to_owned()
}

/// Reads what became of a write; false where its condition was not met.
fn written(answer: &vault::Answer) -> Result<bool, CallError> {
    if answer.status.as_u16() == 400 && answer.says("check-and-set parameter did not match") {
        return Ok(false);
    }
    answer.done().map(|()| true)
}

fn same(wanted: Option<&SecretValue>, present: Option<&SecretValue>) -> bool {
    match (wanted, present) {
        (Some(wanted), Some(present)) => wanted.same_as(present),
        (wanted, present) => wanted.is_none() && present.is_none(),
    }
}

/// The keys of a write; none removes one.
type Due<'a> = BTreeMap<&'a str, Option<&'a str>>;

#[derive(Serialize)]
struct Change<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    options: &'a Option<Condition>,
    data: &'a Due<'a>,
}

#[derive(Serialize)]
struct Condition {
    cas: u64,
}

#[derive(Serialize)]
struct Noted<'a> {
    custom_metadata: &'a BTreeMap<&'a str, Option<String>>,
}

#[derive(Deserialize)]
struct Read {
    data: Option<BTreeMap<String, Held>>,
    metadata: Version,
}

#[derive(Deserialize)]
struct Version {
    version: u64,
    #[serde(default)]
    destroyed: bool,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    max_versions: u64,
    #[serde(default)]
    custom_metadata: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Limits {
    #[serde(default)]
    max_versions: u64,
}

#[derive(Deserialize)]
struct Mount {
    #[serde(rename = "type")]
    kind: String,
    options: Option<BTreeMap<String, String>>,
}

impl<'de> Deserialize<'de> for Held {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(HeldVisitor)
    }
}

struct HeldVisitor;

impl<'de> Visitor<'de> for HeldVisitor {
    type Value = Held;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Held, E> {
        let Text(value) = Text::deserialize(serde::de::value::StrDeserializer::new(text))?;
        Ok(Held::Text(value))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Held, E> {
        Ok(Held::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Held, E> {
        Ok(Held::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Held, E> {
        Ok(Held::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Held, E> {
        Ok(Held::Other)
    }

    fn visit_unit<E>(self) -> Result<Held, E> {
        Ok(Held::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Held, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Held::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Held, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Held::Other)
    }
}
