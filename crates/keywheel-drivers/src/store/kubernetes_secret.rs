//! `kubernetes_secret`: keys of a Secret; a slot is a key, and holds exactly its bytes.
//!
//! `in_place` changes the keys that it owns with one conditional patch and leaves every other key, label and annotation as it is.
//! `versioned` never changes a Secret: each write makes a new, immutable one, which no reader has before the roll of a workload
//! switches its references, and going back is naming the former one again. What is still named by anything in the namespace, its
//! history included, is not deleted (H55).
//!
//! It reads Secrets by name and never lists or watches them, so the account needs no more than that. A Secret that something else
//! makes or deploys is refused: its word would be the last one (H49, H61).

mod claim;
pub(crate) mod glance;
mod marks;
pub(super) mod object;
mod versions;
pub(super) mod whereabouts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::facts::{Pickup, ReadBack, Revert, StoreFacts};
use keywheel_core::plan::Pin;
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_driver::store::{Edit, Whereabouts, Written};
use keywheel_driver::{
    CallError, Claim, Claims, Finding, Owner, Refusal, RefusalKind, Remedy, Right, Severity, Store,
    Writer,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::claim::Claimed;
use self::object::{
    Data, Encoded, LARGEST, New, NewMetadata, Object, Patch, PatchMetadata, not_a_key,
};
use self::whereabouts::Asked;
use crate::api::unsupported;
use crate::http::Effect;
use crate::kubernetes::{
    Access, Answer, Approach, CLAIM, Change, Cluster, Kubernetes, Place, SETTLE_FOR, SecretRef,
    head_of, is_name,
};
use crate::{Build, Context, secret_json};

/// How often a write is judged anew that somebody else came before.
const RACES: usize = 8;

/// A Secret of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The namespace.
    pub namespace: String,
    /// The name of the Secret.
    pub name: String,
    /// Whether the Secret itself changes, or each write makes a new one.
    #[serde(default)]
    pub approach: Approach,
    /// Whether a Secret, or a key that readers use, is made where it is missing. Without it, what is missing is taken for a
    /// mistyped name.
    #[serde(default)]
    pub create: bool,
    /// The cluster; that of the environment where it is not named here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
}

impl Build for Config {
    type Driver = dyn Store;

    fn build(&self, context: &Context) -> Result<Arc<dyn Store>, Refusal> {
        for (what, name) in [("namespace", &self.namespace), ("name", &self.name)] {
            if !is_name(name) {
                let why = "is no name: lower-case letters, digits, `-` and `.`, at most 253";
                return Err(unsupported(&format!("`{what}` {why}")));
            }
        }
        let cluster = Kubernetes::new(self.cluster.as_ref(), context)?;
        let secret = Secret {
            cluster,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            head: head_of(&self.name),
            approach: self.approach,
            create: self.create,
            ours: context.claim.clone(),
        };
        let secret = Arc::new(secret);
        let claimed = secret.ours.clone().map(|ours| Claimed { secret: Arc::clone(&secret), ours });
        Ok(Arc::new(KubernetesSecret { secret, claimed }))
    }
}

struct KubernetesSecret {
    secret: Arc<Secret>,
    claimed: Option<Claimed>,
}

#[async_trait]
impl Store for KubernetesSecret {
    fn facts(&self) -> StoreFacts {
        let is_versioned = self.secret.approach == Approach::Versioned;
        StoreFacts {
            read_back: ReadBack::Value,
            conditional: true,
            staged: is_versioned,
            revert: Revert::Restore,
            history: is_versioned,
            pickup: Pickup::Roll,
            settle_for: SETTLE_FOR,
            leaves_behind: is_versioned,
            answers_logins: false,
            longest_run: None,
        }
    }

    fn container(&self) -> String {
        let Secret { approach, namespace, name, .. } = self.secret.as_ref();
        let (namespace, name) = (namespace.clone(), name.clone());
        let cluster = self.secret.cluster.id();
        SecretRef { approach: *approach, cluster, namespace, name }.to_string()
    }

    async fn identity(&self) -> Result<Option<Pin>, CallError> {
        self.secret.cluster.identity().await.map(Some)
    }

    async fn preflight(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        self.secret.preflight(addresses).await
    }

    async fn missing(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        self.secret.missing(addresses).await
    }

    async fn others(&self, addresses: &[String]) -> Result<Vec<Writer>, CallError> {
        let present = self.secret.current().await?;
        Ok(present.map(|object| marks::others(&object, addresses)).unwrap_or_default())
    }

    async fn addresses(&self) -> Result<Option<Vec<String>>, CallError> {
        Ok(Some(self.secret.present().await?.into_keys().collect()))
    }

    async fn read(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        for address in addresses {
            self.secret.check_key(address)?;
        }
        let data = self.secret.present().await?;
        Ok(addresses.iter().map(|key| data.get(key).map(SecretValue::duplicate)).collect())
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        self.secret.check_edits(edits)?;
        match self.secret.approach {
            Approach::InPlace => self.secret.write_in_place(edits).await,
            Approach::Versioned => self.secret.write_version(edits).await,
        }
    }

    async fn clean_up(&self) -> Result<Vec<String>, CallError> {
        match self.secret.approach {
            Approach::InPlace => Ok(Vec::new()),
            Approach::Versioned => self.secret.clean_up_versions().await,
        }
    }

    fn rights(&self) -> Vec<Right> {
        self.secret.cluster.rights(&self.secret.wanted())
    }

    async fn whereabouts(&self, addresses: &[String]) -> Result<Option<Whereabouts>, CallError> {
        let asked = Asked {
            cluster: &self.secret.cluster,
            namespace: &self.secret.namespace,
            name: &self.secret.name,
            approach: self.secret.approach,
            keys: addresses,
        };
        asked.find().await.map(Some)
    }

    fn claims(&self) -> Option<&dyn Claims> {
        self.claimed.as_ref().map(|claimed| claimed as &dyn Claims)
    }
}

/// A Secret and all that is needed to reach it.
struct Secret {
    cluster: Kubernetes,
    namespace: String,
    name: String,
    /// The ConfigMap that names the current version.
    head: String,
    approach: Approach,
    create: bool,
    ours: Option<Claim>,
}

/// Reading.
impl Secret {
    fn secrets(&self) -> Place<'_> {
        Place::core("secrets").within(&self.namespace)
    }

    /// Names a Secret in a sentence.
    fn named(&self, name: &str) -> String {
        format!("Secret `{}/{name}` of {}", self.namespace, self.cluster.target())
    }

    fn refused(&self, kind: RefusalKind, why: &str) -> Refusal {
        Refusal::operator(kind, format!("{}: {why}", self.named(&self.name)))
    }

    async fn object(&self, name: &str) -> Result<Option<Object>, CallError> {
        self.cluster.find(&self.secrets().named(name)).await
    }

    /// Returns the Secret that readers have: none where it is missing and may be made.
    async fn current(&self) -> Result<Option<Object>, CallError> {
        match self.approach {
            Approach::Versioned => self.current_version(&self.head().await?).await,
            Approach::InPlace => match self.object(&self.name).await? {
                None if !self.create => Err(self.is_missing().into()),
                found => Ok(found),
            },
        }
    }

    fn is_missing(&self) -> Refusal {
        let why =
            "does not exist; make it with `kubectl create secret generic`, or set `create: true`";
        Refusal::operator(RefusalKind::NotFound, format!("{} {why}", self.named(&self.name)))
    }

    async fn present(&self) -> Result<Data, CallError> {
        Ok(self.current().await?.map(|object| object.data).unwrap_or_default())
    }
}

/// Writing.
impl Secret {
    fn check_key(&self, key: &str) -> Result<(), Refusal> {
        match not_a_key(key) {
            Some(why) => Err(self.refused(RefusalKind::Unsupported, why)),
            None => Ok(()),
        }
    }

    fn check_edits(&self, edits: &[Edit<'_>]) -> Result<(), Refusal> {
        let mut keys = BTreeSet::new();
        for edit in edits {
            self.check_key(edit.address)?;
            if !keys.insert(edit.address) {
                let why = format!("two edits name `{}`", edit.address);
                return Err(self.refused(RefusalKind::Unsupported, &why));
            }
        }
        Ok(())
    }

    /// Returns the edits that change something, or refuses all of them.
    fn due<'e, 'v>(
        &self,
        edits: &'e [Edit<'v>],
        present: Option<&Object>,
    ) -> Result<Vec<&'e Edit<'v>>, Refusal> {
        let mut due = Vec::new();
        for edit in edits {
            let held = present.and_then(|object| object.data.get(edit.address));
            if !edit.accepts(held) {
                return Err(self.conflict(edit.address, present));
            }
            if edit.changes(held) || planted!("unchanged_is_written") {
                due.push(edit);
            }
        }
        Ok(due)
    }

    /// Says that a key holds what no version explains, and who put it there.
    fn conflict(&self, key: &str, present: Option<&Object>) -> Refusal {
        let others = present.map(|object| marks::others(object, &[key.to_owned()]));
        let others: Vec<_> = others.iter().flatten().map(Writer::in_words).collect();
        let by = match others.is_empty() {
            true => String::new(),
            false => format!(", written by {}", others.join(", ")),
        };
        let why = format!("`{key}` holds something else than expected{by}");
        self.refused(RefusalKind::Conflict, &why)
    }

    fn check_size(&self, sizes: impl Iterator<Item = usize>) -> Result<(), Refusal> {
        if sizes.sum::<usize>() > LARGEST {
            let why = "its values would be larger than 1 MiB together, which no Secret holds";
            return Err(self.refused(RefusalKind::Unsupported, why));
        }
        Ok(())
    }

    async fn write_in_place(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        for _ in 0..RACES {
            let present = self.current().await?;
            self.check_owner(claim::found(present.as_ref()))?;
            let due = self.due(edits, present.as_ref())?;
            if due.is_empty() {
                return Ok(Written { changed: false });
            }
            let answer = match &present {
                Some(object) => self.patch(object, &due).await?,
                None => self.make(&due).await?,
            };
            match answer.status.as_u16() {
                409 => {}
                _ if answer.status.is_success() => {
                    self.check_kept(&answer, &due)?;
                    return Ok(Written { changed: true });
                }
                _ => return Err(self.explained(answer.error(Effect::Changes))),
            }
        }
        Err(self.is_busy().into())
    }

    fn is_busy(&self) -> Refusal {
        let why = "others change it all the time, and nothing was written";
        let message = format!("{}: {why}", self.named(&self.name));
        Refusal::retry(RefusalKind::Unavailable, None, message)
    }

    /// Changes the keys, if the Secret is as it was read.
    async fn patch(&self, object: &Object, due: &[&Edit<'_>]) -> Result<Answer, CallError> {
        if object.immutable {
            return Err(self.is_immutable().into());
        }
        let named = |key: &String| due.iter().any(|edit| edit.address == key);
        let kept = object.data.iter().filter(|(key, _)| !named(key)).map(|(_, value)| value);
        let new = due.iter().filter_map(|edit| edit.value);
        self.check_size(kept.chain(new).map(|value| value.expose().len()))?;
        let mut data: BTreeMap<_, _> =
            due.iter().map(|edit| (edit.address, edit.value.map(Encoded))).collect();
        if planted!("siblings_are_written_along") {
            let siblings = object.data.iter().filter(|(key, _)| !named(key));
            data.extend(siblings.map(|(key, value)| (key.as_str(), Some(Encoded(value)))));
        }
        let patch = self.patch_of(object, data, BTreeMap::new());
        self.cluster.change(&self.place(), &Change::Merge(&patch), false).await
    }

    fn place(&self) -> Place<'_> {
        self.secrets().named(&self.name)
    }

    fn patch_of(
        &self,
        object: &Object,
        data: BTreeMap<&str, Option<Encoded<'_>>>,
        annotations: BTreeMap<&str, Option<String>>,
    ) -> SecretValue {
        let version = Some(object.metadata.resource_version.as_str());
        let resource_version = version
            .filter(|_| !planted!("writes_unconditionally"))
            .filter(|_| !planted!("siblings_are_written_along"));
        let metadata = PatchMetadata { resource_version, annotations };
        secret_json::write(&Patch { metadata, data })
    }

    fn is_immutable(&self) -> Refusal {
        let why = "it is immutable, so no key of it can change; `approach: versioned` makes a new one for each write";
        self.refused(RefusalKind::Unsupported, why)
    }

    /// Makes the Secret, with nothing but these keys.
    async fn make(&self, due: &[&Edit<'_>]) -> Result<Answer, CallError> {
        let value = |edit: &&Edit<'_>| Some((edit.address.to_owned(), edit.value?.duplicate()));
        let data: Data = due.iter().filter_map(value).collect();
        self.check_size(data.values().map(|value| value.expose().len()))?;
        let claim = self.ours.as_ref().map(claim::text);
        let annotations = claim.iter().map(|text| (CLAIM, text.as_str()));
        let metadata = NewMetadata {
            name: &self.name,
            labels: BTreeMap::new(),
            annotations: annotations.collect(),
        };
        let body = secret_json::write(&New::of(metadata, "Opaque", false, &data));
        self.cluster.change(&self.secrets(), &Change::Create(&body), false).await
    }

    /// Looks at what the server says it has now: an admission webhook may have changed it on the way.
    fn check_kept(&self, answer: &Answer, due: &[&Edit<'_>]) -> Result<(), CallError> {
        let now: Object = answer.decode()?;
        match due.iter().find(|edit| edit.changes(now.data.get(edit.address))) {
            None => Ok(()),
            Some(edit) => {
                let why = format!(
                    "{}: the cluster kept something else in `{}` than was written; an admission webhook may change it",
                    self.named(&self.name),
                    edit.address
                );
                Err(CallError::Unknown(why))
            }
        }
    }

    /// Adds to a refusal what may be done about it.
    fn explained(&self, error: CallError) -> CallError {
        match error {
            CallError::Refused(refusal) if refusal.kind == RefusalKind::NotFound => {
                let message = format!("{refusal}: somebody deleted it in the meantime");
                Refusal { message, ..refusal }.into()
            }
            error => error,
        }
    }

    fn check_owner(&self, found: claim::Found<'_>) -> Result<(), Refusal> {
        match &self.ours {
            Some(ours) => found.owner(ours).check(&self.named(&self.name)),
            None => Ok(()),
        }
    }
}

/// Looking ahead.
impl Secret {
    async fn preflight(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        for key in addresses {
            if let Some(why) = not_a_key(key) {
                let refusal = self.refused(RefusalKind::Unsupported, why);
                return Ok(vec![Finding::blocks(refusal.message)]);
            }
        }
        let mut findings = self.cluster.examine(&self.wanted()).await?;
        if !self.cluster.is_verified().await? {
            let why = "its kubeconfig says `insecure-skip-tls-verify`, so that whoever is between could read values";
            findings.push(Finding::note(format!("{}: {why}", self.cluster.target())));
        }
        let present = match self.current().await {
            Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::NotFound => {
                findings.push(Finding::blocks(refusal.message));
                return Ok(findings);
            }
            present => present?,
        };
        let Some(object) = present else {
            let named = self.named(&self.name);
            findings.push(Finding::note(format!("{named} does not exist and will be made")));
            return Ok(findings);
        };
        findings.extend(self.object_findings(&object, addresses).await?);
        let is_allowed = findings.iter().all(|f| f.severity != Severity::Blocks);
        if is_allowed && let Some(key) = addresses.first() {
            findings.extend(self.rehearse(&object, key).await?);
        }
        Ok(findings)
    }

    async fn object_findings(
        &self,
        object: &Object,
        addresses: &[String],
    ) -> Result<Vec<Finding>, CallError> {
        let named = self.named(&self.name);
        let mut findings = Vec::new();
        findings.extend(marks::maker(object, &named));
        if object.kind == "kubernetes.io/service-account-token" {
            let why = "is the token of a service account, which the cluster itself writes";
            findings.push(Finding::blocks(format!("{named} {why}")));
        }
        if object.metadata.deletion_timestamp.is_some() {
            findings.push(Finding::blocks(format!("{named} is being deleted")));
        }
        if let Some(base) = self.base_of(object) {
            let why = format!(
                "is a version of Secret `{base}`: name that one, with `approach: versioned`"
            );
            findings.push(Finding::blocks(format!("{named} {why}")));
        }
        if let Some(ours) = &self.ours {
            let owner = match self.approach {
                Approach::InPlace => claim::found(Some(object)).owner(ours),
                Approach::Versioned => self
                    .claim_of_head()
                    .await?
                    .as_deref()
                    .map_or(Owner::Nobody, |text| claim::Found(Some(text)).owner(ours)),
            };
            findings.extend(owner.objection(&named).map(Finding::blocks));
        }
        if self.approach == Approach::InPlace {
            findings.extend(self.has_versions(object).map(Finding::blocks));
            findings.extend(marks::writers(object, &named, addresses));
            let is_version = self.base_of(object).is_some();
            if object.immutable && !is_version && !planted!("immutable_is_tried") {
                findings.push(Finding::blocks(self.is_immutable().message));
            }
        }
        Ok(findings)
    }

    /// Lists what is asked of the cluster.
    fn wanted(&self) -> Vec<Access<'_>> {
        let (secrets, secret) = (self.secrets(), self.place());
        let mut wanted = vec![self.cluster.to_identify()];
        match self.approach {
            Approach::InPlace => {
                wanted.extend([Access::needed("get", secret), Access::needed("patch", secret)]);
                wanted.extend(self.create.then(|| Access::needed("create", secrets)));
            }
            Approach::Versioned => wanted.extend(self.wanted_for_versions()),
        }
        wanted
    }

    /// Lets the cluster do everything but keep a write, so that admission has its say before anything changes.
    async fn rehearse(&self, object: &Object, key: &str) -> Result<Option<Finding>, CallError> {
        let sample = sample(object, key);
        let answer = match self.approach {
            Approach::InPlace => {
                let data = BTreeMap::from([(key, Some(Encoded(&sample)))]);
                let patch = self.patch_of(object, data, BTreeMap::new());
                self.cluster.change(&self.place(), &Change::Merge(&patch), true).await?
            }
            Approach::Versioned => {
                // A typed Secret without its other keys is none.
                let held = object.data.iter().map(|(key, held)| (key.clone(), held.duplicate()));
                let mut data: Data = held.collect();
                data.insert(key.to_owned(), sample.duplicate());
                let body = self.version_of(object, &self.rehearsal(), &data);
                self.cluster.change(&self.secrets(), &Change::Create(&body), true).await?
            }
        };
        if answer.status.as_u16() == 409 {
            return Ok(None);
        }
        if !answer.status.is_success() {
            return match answer.error(Effect::Reads) {
                CallError::Refused(refusal) if refusal.remedy == Remedy::Operator => {
                    Ok(Some(Finding::blocks(format!("a write was tried out: {refusal}"))))
                }
                error => Err(error),
            };
        }
        let kept: Object = answer.decode()?;
        let is_kept = kept.data.get(key).is_some_and(|held| held.same_as(&sample));
        Ok((!is_kept).then(|| {
            let named = self.named(&self.name);
            Finding::blocks(format!(
                "a write was tried out: something in the cluster changes `{key}` of {named} on the way, such as an admission webhook"
            ))
        }))
    }

    /// Finds keys that readers are said to use and that are not there, with the ones that were probably meant.
    async fn missing(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        if self.create || planted!("mistyped_keys_are_made") {
            return Ok(Vec::new());
        }
        let present = match self.current().await {
            // That it is missing altogether is among what `preflight` finds.
            Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::NotFound => {
                return Ok(Vec::new());
            }
            present => present?.map(|object| object.data).unwrap_or_default(),
        };
        let absent = addresses.iter().filter(|key| !present.contains_key(*key));
        let finding = |key: &String| {
            let named = self.named(&self.name);
            let near = nearest(key, present.keys());
            let meant = near.map_or(String::new(), |near| format!(" did you mean `{near}`?"));
            Finding::blocks(format!(
                "{named} has no key `{key}`;{meant} a key that is to be new is made with `create: true`"
            ))
        };
        Ok(absent.map(finding).collect())
    }
}

/// Returns a value that tells nothing, of the form that a type of Secret wants in this key.
fn sample(object: &Object, key: &str) -> SecretValue {
    let text: &[u8] = match (object.kind.as_str(), key) {
        ("kubernetes.io/dockerconfigjson", ".dockerconfigjson") => br#"{"auths":{}}"#,
        ("kubernetes.io/dockercfg", ".dockercfg") => b"{}",
        _ => b"keywheel-rehearsal",
    };
    SecretValue::new(text.to_vec())
}

/// Returns the key that is most like another one, if any is alike.
fn nearest<'a>(key: &str, keys: impl Iterator<Item = &'a String>) -> Option<&'a str> {
    let plain = |text: &str| -> String {
        let letters = text.chars().filter(char::is_ascii_alphanumeric);
        letters.map(|letter| letter.to_ascii_lowercase()).collect()
    };
    let wanted = plain(key);
    let apart = |other: &String| strsim::damerau_levenshtein(&wanted, &plain(other));
    let (apart, near) = keys.map(|other| (apart(other), other.as_str())).min()?;
    (apart <= wanted.len() / 3).then_some(near)
}

#[cfg(test)]
mod tests;
