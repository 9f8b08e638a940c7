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
use keywheel_core::plan::Pin;
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::Span;
use keywheel_driver::store::{Edit, Written};
use keywheel_driver::{
    CallError, Claim, Claims, Duration, Finding, Owner, Refusal, RefusalKind, Store,
};
use reqwest::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::unsupported;
use crate::http::Effect;
use crate::secret_json;
use crate::vault::{self, Auth, Body, Data, Held, Place, Vault};
use crate::{Build, Context};

const TARGET: &str = "store `vault_kv`";

/// The fewest versions that the engine must keep: those of a rotation with three moves and of the way back, the one before it,
/// and the one of somebody else in between.
const FEWEST: u64 = 8;

/// What an engine keeps that was told nothing.
const USUAL: u64 = 10;

/// For how many hours a version must be kept: a secret is rotated more often, and its way back is shorter.
const LASTS_HOURS: u64 = 30 * 24;

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
    /// Whether the secret, or a key of it, is made where it is missing.
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

/// What became of a write without an answer.
enum Landed {
    /// It is the newest version, or another one that holds the same.
    Here,
    /// It was not made and never will be.
    Never,
    /// Others wrote, and theirs may be on top of it.
    Perhaps,
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
            leaves_behind: false,
            answers_logins: false,
            longest_run: None,
        }
    }

    fn container(&self) -> String {
        format!("vault:{}{}/{}", self.vault.name(), self.config.mount, self.config.path)
    }

    async fn identity(&self) -> Result<Option<Pin>, CallError> {
        let id = self.vault.cluster().await?;
        Ok(id.map(|id| Pin { id, machine: String::new(), folder: String::new() }))
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

    async fn missing(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        let newest = self.newest().await?;
        // That the secret is missing, or deleted, is among what `preflight` finds.
        let is_there = newest.version > 0 && !newest.is_deleted;
        if self.config.create || !is_there || planted!("mistyped_keys_are_made") {
            return Ok(Vec::new());
        }
        let absent = addresses.iter().filter(|key| !newest.keys.contains_key(*key));
        let others: Vec<&str> = newest.keys.keys().map(String::as_str).collect();
        let finding = |key: &String| {
            let message = format!(
                "{TARGET}: {} has no key `{key}` among these: {}; a key that is to be new is made with `create: true`",
                self.named(),
                others.join(", "),
            );
            Finding::blocks(message)
        };
        Ok(absent.map(finding).collect())
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
        let mut lost = None;
        for _ in 0..ATTEMPTS {
            match self.attempt(edits, &mut lost).await {
                Ok(None) => {}
                Ok(Some(written)) => return Ok(written),
                // One of ours may have been there for a while, and readers may have it.
                Err(CallError::Refused(_))
                    if lost.is_some() && !planted!("overtaken_write_is_a_refusal") =>
                {
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(why) = lost {
            return Err(CallError::Unknown(why));
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
    fn due<'e>(&self, newest: &Newest, edits: &'e [Edit<'e>]) -> Result<Option<Due<'e>>, Refusal> {
        let mut due = Due::new();
        for edit in edits {
            let present = self.slot(newest, edit.address)?;
            if !edit.accepts(present.as_ref()) {
                let why = format!("the key `{}` holds something else than expected", edit.address);
                return Err(self.no(RefusalKind::Conflict, &why));
            }
            let value = edit.value.map(secret_json::text);
            if value == Some(None) {
                let why =
                    format!("a value for `{}` is not UTF-8, which JSON cannot carry", edit.address);
                return Err(self.no(RefusalKind::Unsupported, &why));
            }
            if edit.changes(present.as_ref()) {
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

    /// Writes once, on top of what is there now; none where it is to be judged anew. `lost` is why one that may have landed had no
    /// answer.
    async fn attempt(
        &self,
        edits: &[Edit<'_>],
        lost: &mut Option<String>,
    ) -> Result<Option<Written>, CallError> {
        let newest = self.newest().await?;
        let Some(due) = self.due(&newest, edits)? else {
            return Ok(Some(Written { changed: lost.is_some() }));
        };
        let why = match self.put(&newest, &due).await {
            Ok(true) => return Ok(Some(Written { changed: true })),
            // Somebody else was faster: what the keys hold now is judged anew.
            Ok(false) => return Ok(None),
            Err(CallError::Unknown(why)) => why,
            Err(refused) => return Err(refused),
        };
        match self.landed(&newest, &due).await {
            Some(Landed::Here) => return Ok(Some(Written { changed: true })),
            Some(Landed::Never) => {}
            Some(Landed::Perhaps) => *lost = Some(why),
            None => return Err(CallError::Unknown(why)),
        }
        Ok(None)
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

    /// Returns what became of a write without an answer; none while nobody can tell. It never lands any more once a newer version is
    /// there, for its condition names the former one; until then it still may.
    async fn landed(&self, before: &Newest, due: &Due<'_>) -> Option<Landed> {
        let now = self.newest().await.ok().filter(|now| now.version > before.version)?;
        let is_ours = due.iter().all(|(key, wanted)| match (now.keys.get(*key), wanted) {
            (Some(Held::Text(held)), Some(wanted)) => held.expose() == wanted.as_bytes(),
            (None, None) => true,
            _ => false,
        });
        Some(match is_ours {
            true => Landed::Here,
            // It would have been the version after the one that it names.
            false if now.version == before.version + 1 => Landed::Never,
            false => Landed::Perhaps,
        })
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
        // The first write makes the secret; the next one is an update.
        let writes = |at: usize| match newest.version {
            0 => has(at, &["create"]) && has(at, &["patch", "update"]),
            _ => has(at, &["patch", "update"]),
        };
        let mut findings = Vec::new();
        let mut lacks = |path: &str, needed: &str| {
            findings.push(Finding::blocks(format!(
                "{TARGET}: the token lacks a capability: its policy needs `path \"{path}\" {{ capabilities = [{needed}] }}`"
            )));
        };
        let texts_only = newest.keys.values().all(|held| matches!(held, Held::Text(_)));
        let keeps_others = has(0, &["patch"]) || texts_only || planted!("patch_not_asked_for");
        if !(writes(0) && keeps_others) {
            lacks(&data, "\"read\", \"create\", \"update\", \"patch\"");
        }
        if self.ours.is_some() && !(has(1, &["read"]) && writes(1)) {
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

    /// Checks that the engine keeps the value in use, and former ones as long as a rotation may want them back.
    async fn forgets_too_soon(&self) -> Result<Vec<Finding>, CallError> {
        let of_secret = match self.metadata().await {
            Err(CallError::Refused(no)) if no.kind == RefusalKind::Permission => None,
            metadata => metadata?,
        };
        let of_engine: Option<Data<Metadata>> =
            self.vault.find(&format!("{}/config", self.config.mount)).await.unwrap_or_default();
        let of_engine = of_engine.map(|limits| limits.data);
        let limits = || [of_secret.as_ref(), of_engine.as_ref()].into_iter().flatten();
        let kept = limits().map(|limits| limits.max_versions).find(|most| *most > 0);
        let kept = kept.unwrap_or(USUAL);
        let wanted = self.config.max_versions.unwrap_or(FEWEST).max(FEWEST);
        let Config { mount, path, .. } = &self.config;
        let mut findings = Vec::new();
        if kept < wanted && !planted!("versions_not_counted") {
            findings.push(Finding::blocks(format!(
                "{TARGET}: {} keeps {kept} versions, and a rotation may want {wanted}: `vault kv metadata put -mount={mount} -max-versions={wanted} {path}`",
                self.named()
            )));
        }
        findings.extend(self.deletes_by_itself(of_secret.as_ref(), of_engine.as_ref()));
        Ok(findings)
    }

    /// Says that the engine deletes each version after a time, the one in use too.
    fn deletes_by_itself(
        &self,
        of_secret: Option<&Metadata>,
        of_engine: Option<&Metadata>,
    ) -> Option<Finding> {
        let Config { mount, path, .. } = &self.config;
        let is_off = of_engine.is_some_and(|engine| engine.delete_version_after.starts_with('-'));
        if is_off || planted!("deletion_unnoticed") {
            return None;
        }
        let for_secret =
            format!("vault kv metadata put -mount={mount} -delete-version-after=0s {path}");
        let for_engine = format!("vault write {mount}/config delete_version_after=0s");
        let told = [(of_secret, for_secret), (of_engine, for_engine)];
        let (after, mend) = told
            .into_iter()
            .filter_map(|(limits, mend)| Some((limits?.deletes_after()?, mend)))
            .min_by_key(|(after, _)| after.hours)?;
        let message = format!(
            "{TARGET}: {} loses each version after {}, the one in use too: `{mend}`",
            self.named(),
            after.text
        );
        Some(match after.hours < LASTS_HOURS {
            true => Finding::blocks(message),
            false => Finding::note(message),
        })
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

/// What is kept beside a secret; the limits of the whole engine have the same names.
#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    custom_metadata: Option<BTreeMap<String, String>>,
    #[serde(default)]
    max_versions: u64,
    /// As `720h0m0s`; negative where an engine turns it off.
    #[serde(default)]
    delete_version_after: String,
}

impl Metadata {
    /// After what time each version is deleted; none where they are not.
    fn deletes_after(&self) -> Option<After<'_>> {
        let text = self.delete_version_after.as_str();
        let is_time = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
        let is_some = is_time && text.bytes().any(|b| (b'1'..=b'9').contains(&b));
        let hours = text.split_once('h').and_then(|(hours, _)| hours.parse().ok());
        is_some.then_some(After { text, hours: hours.unwrap_or(0) })
    }
}

/// A time in the server's words, and its whole hours.
struct After<'a> {
    text: &'a str,
    hours: u64,
}

#[derive(Deserialize)]
struct Mount {
    #[serde(rename = "type")]
    kind: String,
    options: Option<BTreeMap<String, String>>,
}

#[cfg(test)]
mod tests {
    use keywheel_driver::Severity;
    use keywheel_driver::conformance::canary;
    use keywheel_driver::conformance::store::{self as conformance, Subject};
    use keywheel_driver::store::Accept;
    use keywheel_ground::lossy::{Fault, Lossy};
    use keywheel_ground::openbao::OpenBao;
    use serde_json::json;
    use std::io::Write;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tempfile::TempDir;

    use super::*;

    /// A server with a KV engine, and a folder for tokens.
    struct Ground {
        bao: OpenBao,
        folder: TempDir,
    }

    impl Ground {
        fn start() -> Option<Self> {
            let bao = match OpenBao::start() {
                Ok(bao) => bao,
                Err(why) => {
                    writeln!(std::io::stdout(), "skipped: OpenBao ({why})").unwrap();
                    return None;
                }
            };
            bao.run(&["secrets", "enable", "-path=secret", "-version=2", "kv"], &json!(null))
                .unwrap();
            let ground = Self { bao, folder: tempfile::tempdir().unwrap() };
            let root = ground.bao.token().to_owned();
            // An engine takes nothing while it is set up.
            let is_up = || ground.bao.write("secret/data/up", &json!({ "data": {} })).is_ok();
            assert!((0..50).any(|_| is_up()), "the engine does not come up");
            ground.keep("root", &root);
            Some(ground)
        }

        fn keep(&self, name: &str, token: &str) {
            std::fs::write(self.folder.path().join(name), token).unwrap();
        }

        fn store(&self, path: &str, changes: &serde_json::Value) -> Arc<dyn Store> {
            self.store_of(path, changes, None)
        }

        fn store_of(
            &self,
            path: &str,
            changes: &serde_json::Value,
            claim: Option<&str>,
        ) -> Arc<dyn Store> {
            let mut driver = json!({
                "address": self.bao.address(), "auth": { "token": { "file": "root" } },
                "path": path, "create": true,
            });
            for (key, value) in changes.as_object().into_iter().flatten() {
                driver[key] = value.clone();
            }
            let config: Config = serde_json::from_value(driver).unwrap();
            let claim = claim.map(|who| Claim {
                installation: who.into(),
                folder: format!("/home/{who}/{}", "shop".repeat(200)),
                environment: "production".into(),
                host: "web-1".into(),
                account: who.into(),
                since: "2026-01-31T09:14:00Z".into(),
            });
            let context = Context { claim, ..Context::at(self.folder.path()) };
            config.build(&context).unwrap()
        }

        fn versions(&self, path: &str) -> u64 {
            let metadata = self.bao.read(&format!("secret/metadata/{path}")).unwrap();
            metadata["data"]["current_version"].as_u64().unwrap()
        }

        fn raw(&self, path: &str) -> serde_json::Value {
            self.bao.read(&format!("secret/data/{path}")).unwrap()["data"]["data"].clone()
        }
    }

    async fn set(store: &dyn Store, key: &str, value: &str) -> Result<Written, CallError> {
        set_from(store, key, Accept::Anything, value).await
    }

    async fn set_from(
        store: &dyn Store,
        address: &str,
        accept: Accept<'_>,
        value: &str,
    ) -> Result<Written, CallError> {
        let value = SecretValue::new(value.into());
        store.write(&[Edit { address, accept, value: Some(&value) }]).await
    }

    async fn blocking(store: &dyn Store, key: &str) -> Vec<String> {
        let findings = store.preflight(&[key.to_owned()]).await.unwrap();
        let blocks = findings.into_iter().filter(|found| found.severity == Severity::Blocks);
        blocks.map(|found| found.message).collect()
    }

    const CHANGED: Result<Written, CallError> = Ok(Written { changed: true });

    #[tokio::test]
    async fn h63_keys_of_one_secret_are_written_beside_those_of_others() {
        let Some(ground) = Ground::start() else { return };
        let number = AtomicU32::new(0);
        conformance::every_case(async || {
            let path = format!("conformance/{}", number.fetch_add(1, Ordering::Relaxed));
            Subject {
                store: ground.store(&path, &json!({})),
                other: ground.store(&path, &json!({})),
                addresses: vec!["api-key".into(), "B".into(), "c.d".into()],
                uncarriable: vec![vec![0xff, 0xfe], b"a\xc3".to_vec()],
                guard: Box::new(()),
            }
        })
        .await;
        siblings_stay_as_they_are(&ground).await;
        a_policy_without_patch_serves(&ground).await;
        what_cannot_be_written_is_said_before(&ground).await;
        h61_another_installation_is_refused(&ground).await;
    }

    /// A number and an object are no slots, and stay as they are.
    async fn siblings_stay_as_they_are(ground: &Ground) {
        let others =
            json!({ "a": canary("old"), "n": 9_007_199_254_740_991_i64, "o": { "x": [1, null] } });
        ground.bao.write("secret/data/siblings", &json!({ "data": others })).unwrap();
        let store = ground.store("siblings", &json!({}));
        assert_eq!(set(&*store, "a", &canary("new")).await, CHANGED);
        let after = ground.raw("siblings");
        assert_eq!((&after["n"], &after["o"]), (&others["n"], &others["o"]));
        assert_ne!(after["a"], others["a"]);
        let number = store.read(&["n".into()]).await.err().unwrap().to_string();
        assert!(number.contains("the key `n` holds no text"), "{number}");
        assert_eq!(blocking(&*store, "o").await.len(), 1);
    }

    async fn a_policy_without_patch_serves(ground: &Ground) {
        let policy = json!({
            "secret/data/narrow": ["read", "create", "update"], "secret/metadata/narrow": ["read", "create", "update"],
        });
        ground.keep("narrow", &ground.bao.token_for("narrow", &policy).unwrap());
        let auth = json!({ "auth": { "token": { "file": "narrow" } } });
        let store = ground.store_of("narrow", &auth, Some("dana"));
        assert_eq!(blocking(&*store, "a").await, [""; 0]);
        assert_eq!(store.claims().unwrap().take().await, Ok(true));
        assert_eq!(set(&*store, "a", "one").await, CHANGED);
        assert_eq!(set(&*store, "b", "two").await, CHANGED);
        assert_eq!(ground.raw("narrow"), json!({ "a": "one", "b": "two" }));
        assert_eq!(store.claims().unwrap().owner().await, Ok(Owner::Us));
        ground.bao.write("secret/data/narrow", &json!({ "data": { "a": "1", "n": 7 } })).unwrap();
        let refused = set(&*store, "a", "three").await.unwrap_err().to_string();
        assert!(refused.contains("only a token with `patch`"), "{refused}");
        assert_eq!(ground.raw("narrow")["n"], 7);
        let asked = blocking(&*store, "a").await.join("\n");
        assert!(asked.contains("lacks a capability"), "{asked}");
        let policy = json!({ "secret/data/first": ["read", "create"] });
        ground.keep("once", &ground.bao.token_for("once", &policy).unwrap());
        let first = ground.store("first", &json!({ "auth": { "token": { "file": "once" } } }));
        let asked = blocking(&*first, "a").await.join("\n");
        assert!(asked.contains("lacks a capability"), "what makes the secret changes it next");
        // The same token may not touch another secret, and says what it lacks.
        let other = ground.store("siblings", &auth);
        let lacks = blocking(&*other, "a").await.join("\n");
        assert!(lacks.contains("the token may not `GET secret/data/siblings`"), "{lacks}");
    }

    async fn a_mistyped_key_is_said(ground: &Ground) {
        let typed = ground.store("siblings", &json!({ "create": false }));
        let missing = async |store: &dyn Store, key: &str| {
            let found = store.missing(&["a".to_owned(), key.to_owned()]).await.unwrap();
            found.into_iter().map(|found| found.message).collect::<Vec<_>>().join("")
        };
        let said = missing(&*typed, "A").await;
        assert!(said.contains("has no key `A` among these: a, n, o"), "{said}");
        assert_eq!(missing(&*typed, "n").await, "");
        assert_eq!(missing(&*ground.store("siblings", &json!({})), "A").await, "");
        assert_eq!(missing(&*ground.store("absent", &json!({ "create": false })), "A").await, "");
    }

    async fn what_cannot_be_written_is_said_before(ground: &Ground) {
        a_mistyped_key_is_said(ground).await;
        let absent = ground.store("absent", &json!({ "create": false }));
        assert!(blocking(&*absent, "a").await.join("").contains("it is not there"));
        assert!(set(&*absent, "a", "one").await.is_err());
        ground.bao.write("secret/data/gone", &json!({ "data": { "a": "1" } })).unwrap();
        ground.bao.run(&["kv", "delete", "-mount=secret", "gone"], &json!(null)).unwrap();
        let gone = ground.store("gone", &json!({}));
        let why = blocking(&*gone, "a").await.join("");
        assert!(why.contains("`vault kv undelete -mount=secret -versions=1 gone`"), "{why}");
        assert!(set(&*gone, "a", "2").await.unwrap_err().to_string().contains("is deleted"));
        assert_eq!(ground.versions("gone"), 1);
        ground
            .bao
            .run(&["kv", "undelete", "-mount=secret", "-versions=1", "gone"], &json!(null))
            .unwrap();
        assert_eq!(set(&*gone, "a", "2").await, CHANGED);
        h93_an_engine_that_forgets_too_soon_blocks(ground).await;
        ground
            .bao
            .run(&["secrets", "enable", "-path=one", "-version=1", "kv"], &json!(null))
            .unwrap();
        let one = ground.store("gone", &json!({ "mount": "one" }));
        assert!(blocking(&*one, "a").await.join("").contains("no KV engine of version 2"));
        ground.keep("dead", "s.kwcanaryNoSuchToken");
        let dead = ground.store("gone", &json!({ "auth": { "token": { "file": "dead" } } }));
        let why = dead.read(&["a".into()]).await.err().unwrap().to_string();
        assert!(
            why.contains("the token has ended, or was revoked") && !why.contains("kwcanary"),
            "{why}"
        );
    }

    async fn h93_an_engine_that_forgets_too_soon_blocks(ground: &Ground) {
        let put = ["kv", "metadata", "put", "-mount=secret", "-max-versions=3", "gone"];
        ground.bao.run(&put, &json!(null)).unwrap();
        let gone = ground.store("gone", &json!({}));
        let why = blocking(&*gone, "a").await.join("");
        assert!(
            why.contains("`vault kv metadata put -mount=secret -max-versions=8 gone`"),
            "{why}"
        );
        let wants_more = ground.store("siblings", &json!({ "max_versions": 20 }));
        let why = blocking(&*wants_more, "a").await.join("");
        assert!(why.contains("keeps 10 versions, and a rotation may want 20"), "{why}");
        let config = |after: &str| json!({ "delete_version_after": after });
        ground.bao.write("secret/config", &config("24h")).unwrap();
        let siblings = ground.store("siblings", &json!({}));
        let why = blocking(&*siblings, "a").await.join("");
        let mend = "loses each version after 24h0m0s, the one in use too: `vault write secret/config delete_version_after=0s`";
        assert!(why.contains(mend), "{why}");
        ground.bao.write("secret/config", &config("8760h")).unwrap();
        assert_eq!(blocking(&*siblings, "a").await, [""; 0]);
        let notes = siblings.preflight(&["a".into()]).await.unwrap();
        assert!(notes.iter().any(|note| note.message.contains("after 8760h0m0s")), "{notes:?}");
        ground.bao.write("secret/config", &config("0s")).unwrap();
    }

    async fn h61_another_installation_is_refused(ground: &Ground) {
        let (dana, alex) = (
            ground.store_of("claimed", &json!({}), Some("dana")),
            ground.store_of("claimed", &json!({}), Some("alex")),
        );
        let (of_dana, of_alex) = (dana.claims().unwrap(), alex.claims().unwrap());
        assert_eq!(of_dana.owner().await, Ok(Owner::Nobody));
        assert_eq!((of_dana.take().await, of_dana.take().await), (Ok(true), Ok(false)));
        let with = json!({ "custom_metadata": { "team": "shop" } });
        ground
            .bao
            .run(
                &[
                    "kv",
                    "metadata",
                    "patch",
                    "-mount=secret",
                    "-custom-metadata=team=shop",
                    "claimed",
                ],
                &with,
            )
            .unwrap();
        assert_eq!(set(&*dana, "a", "one").await, CHANGED);
        let refused = set(&*alex, "a", "two").await.unwrap_err().to_string();
        assert!(refused.contains("claimed by dana on web-1"), "{refused}");
        assert!(of_alex.take().await.is_err());
        assert_eq!(blocking(&*alex, "a").await.len(), 1);
        assert_eq!((of_alex.take_over().await, of_alex.owner().await), (Ok(()), Ok(Owner::Us)));
        assert!(of_dana.release().await.is_ok() && of_alex.owner().await == Ok(Owner::Us));
        assert_eq!((of_alex.release().await, of_dana.owner().await), (Ok(()), Ok(Owner::Nobody)));
        let kept = ground.bao.read("secret/metadata/claimed").unwrap();
        assert_eq!(kept["data"]["custom_metadata"], with["custom_metadata"]);
    }

    #[tokio::test]
    async fn a_write_without_an_answer_is_told_by_the_version_after_it() {
        let Some(ground) = Ground::start() else { return };
        ground.bao.write("secret/data/lost", &json!({ "data": { "a": "old", "b": "x" } })).unwrap();
        let lossy = Lossy::to(ground.bao.port());
        let store = ground.store("lost", &json!({ "address": lossy.address() }));
        for (number, fault) in [Fault::AnswerLost, Fault::DoneAnd500].into_iter().enumerate() {
            lossy.next("PATCH /v1/secret/data/lost", fault);
            assert_eq!(set(&*store, "a", &format!("new {number}")).await, CHANGED, "{fault:?}");
        }
        assert_eq!(ground.versions("lost"), 3);
        for fault in [Fault::RequestLost, Fault::Status(500), Fault::Status(503)] {
            lossy.next("PATCH /v1/secret/data/lost", fault);
            let lost = set(&*store, "a", "never").await;
            assert!(matches!(lost, Err(CallError::Unknown(_))), "{fault:?}: {lost:?}");
        }
        lossy.next("PATCH /v1/secret/data/lost", Fault::Status(429));
        assert!(matches!(set(&*store, "a", "never").await, Err(CallError::Refused(_))));
        let (direct, through) = (ground.store("lost", &json!({})), &store);
        let pin = direct.identity().await.unwrap();
        assert!(pin.is_some_and(|pin| pin.id.len() == 36), "the cluster has a name");
        assert_eq!(through.identity().await, direct.identity().await, "whatever leads to it");
        let namespace = ground.store("lost", &json!({ "namespace": "nowhere" }));
        assert_eq!(namespace.identity().await, direct.identity().await, "it is the server's");
        assert_eq!((lossy.fired(), ground.versions("lost")), (6, 3));
        for status in [200, 400, 429, 502] {
            lossy.next("GET /v1/sys/health", Fault::Status(status));
            assert!(through.identity().await.is_err(), "{status} of something else is no place");
        }
        h05_a_write_that_others_are_on_top_of_is_unknown(&ground, &lossy, &**through).await;
        a_token_that_was_replaced_is_read_again(&ground).await;
        assert_eq!(ground.raw("lost"), json!({ "a": "new 1", "b": "x" }));
        // A login ends in the middle of the work: it is made anew.
        an_approle_logs_in_again(&ground).await;
    }

    async fn h05_a_write_that_others_are_on_top_of_is_unknown(
        ground: &Ground,
        lossy: &Lossy,
        store: &dyn Store,
    ) {
        lossy.next("PATCH /v1/secret/data/lost", Fault::AnswerHeld);
        let before = ground.versions("lost");
        let present = SecretValue::new(b"new 1".to_vec());
        let accept = Accept::OneOf(vec![Some(&present)]);
        let on_top = async {
            while ground.versions("lost") == before {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            let others = json!({ "data": { "a": "theirs", "b": "x" } });
            ground.bao.write("secret/data/lost", &others).unwrap();
            lossy.release();
        };
        let (lost, ()) =
            futures_util::future::join(set_from(store, "a", accept, "ours"), on_top).await;
        assert!(matches!(lost, Err(CallError::Unknown(_))), "{lost:?}");
        assert_eq!(ground.raw("lost")["a"], "theirs");
        assert_eq!(set(store, "a", "new 1").await, CHANGED);
    }

    /// An agent puts another token into the file before the one that it gave ends.
    async fn a_token_that_was_replaced_is_read_again(ground: &Ground) {
        let policy = json!({ "secret/data/lost": ["read"] });
        let first = ground.bao.token_for("reads", &policy).unwrap();
        ground.keep("agent", &first);
        let store = ground.store("lost", &json!({ "auth": { "token": { "file": "agent" } } }));
        assert!(store.read(&["a".into()]).await.is_ok());
        ground.keep("agent", &ground.bao.token_for("reads", &policy).unwrap());
        ground.bao.write("auth/token/revoke", &json!({ "token": first })).unwrap();
        assert!(store.read(&["a".into()]).await.is_ok(), "the next one is not read");
    }

    async fn an_approle_logs_in_again(ground: &Ground) {
        let bao = &ground.bao;
        bao.run(&["auth", "enable", "approle"], &json!(null)).unwrap();
        bao.token_for(
            "lost",
            &json!({ "secret/data/lost": ["read", "patch"], "sys/capabilities-self": ["update"] }),
        )
        .unwrap();
        let role = json!({ "token_policies": ["lost"], "token_ttl": "1h" });
        bao.write("auth/approle/role/kw", &role).unwrap();
        let role_id = bao.read("auth/approle/role/kw/role-id").unwrap()["data"]["role_id"].clone();
        let made = bao.write("auth/approle/role/kw/secret-id", &json!({})).unwrap();
        ground.keep("secret-id", made["data"]["secret_id"].as_str().unwrap());
        let auth = json!({ "auth": { "app_role": { "role_id": role_id, "secret_id": { "file": "secret-id" } } } });
        let store = ground.store("lost", &auth);
        assert_eq!(set(&*store, "a", "by role").await, CHANGED);
        let accessors = bao.write("auth/approle/login", &json!({})).is_err();
        assert!(accessors, "a login without a secret id is refused");
        // Every token of the role ends; the next call gets another one.
        bao.run(&["lease", "revoke", "-sync", "-prefix", "auth/approle/login"], &json!(null))
            .unwrap();
        assert_eq!(set(&*store, "a", "by role again").await, CHANGED);
        ground.keep("secret-id", "kwcanary-wrong");
        let wrong = ground.store("lost", &auth).read(&["a".into()]).await.err().unwrap();
        let wrong = wrong.to_string();
        assert!(wrong.contains("the login at `auth/approle` is refused"), "{wrong}");
    }
}
