//! `external_secret`: keys of a Secret that the External Secrets Operator makes from somewhere else.
//!
//! A value is written where the operator reads it, by the store named as `upstream`; then the operator is made to read, and the
//! write is done once the Secret holds it and the operator says that it read since. That it calls itself ready proves nothing: it
//! stays so for as long as the next look has not come. The Secret itself is never written: the operator would put it back (H49).
//!
//! It refuses an operator that reads once only, a key that is pinned to a version (H65) or put together by a template, and an
//! upstream that holds something else than the Secret: then it is not the place that the operator reads.

pub mod export;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration as StdDuration;

use async_trait::async_trait;
use keywheel_core::facts::{Pickup, ReadBack, StoreFacts};
use keywheel_core::plan::Pin;
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::Span;
use keywheel_driver::duration::Duration;
use keywheel_driver::store::{Edit, Whereabouts, Written};
use keywheel_driver::{CallError, Claims, Finding, Refusal, RefusalKind, Right, Store};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use super::StoreConfig;
use super::kubernetes_secret::object::{Data, Object};
use super::kubernetes_secret::whereabouts::Asked;
use crate::api::{plain, unsupported};
use crate::http::Effect;
use crate::kubernetes::{Access, Approach, Change, Cluster, Kubernetes, Place, SecretRef};
use crate::{Build, Context};

/// How often the cluster is asked while the operator is waited for.
const POLL: StdDuration = StdDuration::from_millis(500);

/// The annotation whose change makes the operator read.
const FORCE: &str = "force-sync";

/// A Secret that the External Secrets Operator makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The namespace.
    pub namespace: String,
    /// The name of the ExternalSecret.
    pub name: String,
    /// The name of the Secret that it makes; without it, that of the ExternalSecret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The store in which the operator reads the values.
    pub upstream: Box<StoreConfig>,
    /// How long the operator may take to bring a value into the Secret.
    #[serde(default = "two_minutes")]
    pub synced_within: Duration,
    /// The cluster; that of the environment where it is not named here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
}

fn two_minutes() -> Duration {
    Span::minutes(2).into()
}

impl Build for Config {
    type Driver = dyn Store;

    fn build(&self, context: &Context) -> Result<Arc<dyn Store>, Refusal> {
        if matches!(*self.upstream, StoreConfig::ExternalSecret(_)) {
            return Err(unsupported("`upstream` is another `external_secret`"));
        }
        let upstream = self.upstream.build(context)?;
        if upstream.facts().read_back != ReadBack::Value {
            return Err(unsupported("`upstream` is a store whose values nobody can read back"));
        }
        Ok(Arc::new(ExternalSecret {
            cluster: Kubernetes::new(self.cluster.as_ref(), context)?,
            target: self.target.clone().unwrap_or_else(|| self.name.clone()),
            upstream,
            config: self.clone(),
        }))
    }
}

struct ExternalSecret {
    config: Config,
    cluster: Kubernetes,
    target: String,
    upstream: Arc<dyn Store>,
}

/// An ExternalSecret, as far as it matters.
#[derive(Deserialize)]
struct External {
    metadata: Metadata,
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    refresh_policy: Option<String>,
    #[serde(default)]
    refresh_interval: Option<String>,
    #[serde(default)]
    target: TargetSpec,
    #[serde(default)]
    data: Vec<One>,
    #[serde(default)]
    data_from: Vec<All>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TargetSpec {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    creation_policy: Option<String>,
    #[serde(default)]
    template: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct One {
    secret_key: String,
    #[serde(default)]
    remote_ref: RemoteRef,
}

#[derive(Default, Deserialize)]
struct RemoteRef {
    #[serde(default)]
    property: Option<String>,
    #[serde(default)]
    version: Option<String>,
}

#[derive(Deserialize)]
struct All {
    #[serde(default)]
    extract: Option<RemoteRef>,
    #[serde(default)]
    rewrite: Vec<serde::de::IgnoredAny>,
}

#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    refresh_time: Option<String>,
    #[serde(default)]
    synced_resource_version: Option<String>,
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Clone, PartialEq, Eq, Deserialize)]
struct Condition {
    r#type: String,
    status: String,
    #[serde(default)]
    reason: Option<String>,
}

impl Status {
    /// Returns why the operator says that it is not ready, in its own one word.
    fn trouble(&self) -> Option<String> {
        let failed = |one: &&Condition| one.r#type == "Ready" && one.status == "False";
        let reason = self.conditions.iter().find(failed)?.reason.as_deref();
        Some(plain(reason.unwrap_or("no reason")))
    }

    /// Whether the operator read since it was as `before`.
    fn moved_since(&self, before: &Self) -> bool {
        self.refresh_time.is_some() && self.refresh_time != before.refresh_time
    }
}

impl Spec {
    /// Returns the address in the upstream store from which a key of the Secret is made.
    fn upstream_of(&self, key: &str) -> Result<String, String> {
        if let Some(one) = self.data.iter().find(|one| one.secret_key == key) {
            if one.remote_ref.version.is_some() && !planted!("pinned_key_is_followed") {
                return Err(format!("`{key}` is pinned to one version of what it is made from"));
            }
            return Ok(one.remote_ref.property.clone().unwrap_or_else(|| "content".into()));
        }
        let is_whole = |all: &&All| all.extract.is_some();
        match self.data_from.iter().find(is_whole) {
            Some(all) if !all.rewrite.is_empty() => {
                Err(format!("`{key}` may be made from a key of another name (`rewrite`)"))
            }
            Some(all) if all.extract.as_ref().is_some_and(|one| one.version.is_some()) => {
                Err(format!("`{key}` is pinned to one version of what it is made from"))
            }
            Some(_) => Ok(key.to_owned()),
            None => Err(format!("it makes no key `{key}`")),
        }
    }

    /// Says why the operator would not read again when it is asked to.
    fn reads_once(&self) -> Option<&'static str> {
        let is_zero = |interval: &str| {
            let digits = interval.trim_matches(|c: char| !c.is_ascii_digit());
            !interval.is_empty() && digits.chars().all(|c| c == '0')
        };
        match self.refresh_policy.as_deref() {
            _ if planted!("reads_once_is_waited_for") => None,
            Some("CreatedOnce") => Some("`refreshPolicy: CreatedOnce`"),
            Some("OnChange") => None,
            _ if self.refresh_interval.as_deref().is_some_and(is_zero) => {
                Some("`refreshInterval: 0`")
            }
            _ => None,
        }
    }
}

#[async_trait]
impl Store for ExternalSecret {
    fn facts(&self) -> StoreFacts {
        let upstream = self.upstream.facts();
        let settle_for = upstream.settle_for + self.config.synced_within.span();
        StoreFacts {
            read_back: ReadBack::Value,
            staged: false,
            pickup: Pickup::Roll,
            settle_for,
            answers_logins: false,
            longest_run: None,
            ..upstream
        }
    }

    fn container(&self) -> String {
        let (namespace, name) = (self.config.namespace.clone(), self.target.clone());
        let cluster = self.cluster.id();
        SecretRef { approach: Approach::InPlace, cluster, namespace, name }.to_string()
    }

    fn containers(&self) -> Vec<String> {
        let upstream = match planted!("upstream_holds_nothing") {
            true => Vec::new(),
            false => self.upstream.containers(),
        };
        [self.container()].into_iter().chain(upstream).collect()
    }

    async fn identity(&self) -> Result<Option<Pin>, CallError> {
        let cluster = self.cluster.identity().await?;
        Ok(Some(match self.upstream.identity().await? {
            Some(upstream) => cluster.with(&upstream),
            None => cluster,
        }))
    }

    async fn preflight(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        let mut findings = self.cluster.examine(&self.wanted()).await?;
        let external = match self.external().await {
            Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::NotFound => {
                findings.push(Finding::blocks(refusal.message));
                return Ok(findings);
            }
            external => external?,
        };
        findings.extend(self.objections(&external, addresses));
        let mapped: Result<Vec<String>, String> =
            addresses.iter().map(|key| external.spec.upstream_of(key)).collect();
        match mapped {
            Err(why) => findings.push(Finding::blocks(format!("{}: {why}", self.named()))),
            Ok(mapped) => {
                findings.extend(self.upstream.preflight(&mapped).await?);
                findings.extend(self.apart(addresses, &mapped).await?);
            }
        }
        Ok(findings)
    }

    async fn missing(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        let external = self.external().await?;
        let mapped: Result<Vec<String>, String> =
            addresses.iter().map(|key| external.spec.upstream_of(key)).collect();
        match mapped {
            Ok(mapped) => self.upstream.missing(&mapped).await,
            // `preflight` says so.
            Err(_) => Ok(Vec::new()),
        }
    }

    async fn read(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        let data = self.held().await?;
        Ok(addresses.iter().map(|key| data.get(key).map(SecretValue::duplicate)).collect())
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        let before = self.external().await?;
        let refused = |why: String| {
            Refusal::operator(RefusalKind::Unsupported, format!("{}: {why}", self.named()))
        };
        let mut addresses = Vec::new();
        for edit in edits {
            addresses.push(before.spec.upstream_of(edit.address).map_err(refused)?);
        }
        let mapped = edits.iter().zip(&addresses).map(|(edit, address)| Edit {
            address,
            accept: edit.accept.clone(),
            value: edit.value,
        });
        let written = self.upstream.write(&mapped.collect::<Vec<_>>()).await?;
        // From here on something may have been written: no answer is a refusal any more.
        let synced = self.sync(&before, edits).await;
        synced.map_err(|error| CallError::Unknown(error.to_string()))?;
        Ok(written)
    }

    async fn clean_up(&self) -> Result<Vec<String>, CallError> {
        self.upstream.clean_up().await
    }

    fn rights(&self) -> Vec<Right> {
        let own = self.cluster.rights(&self.wanted());
        own.into_iter().chain(self.upstream.rights()).collect()
    }

    async fn whereabouts(&self, addresses: &[String]) -> Result<Option<Whereabouts>, CallError> {
        let asked = Asked {
            cluster: &self.cluster,
            namespace: &self.config.namespace,
            name: &self.target,
            approach: Approach::InPlace,
            keys: addresses,
        };
        let mut all = asked.find().await?;
        match self.upstream_whereabouts(addresses).await {
            Ok(upstream) => {
                let upstream = upstream.unwrap_or_default();
                all.found.extend(upstream.found);
                all.unseen.extend(upstream.unseen);
            }
            Err(why) => all.unseen.push(format!("what {} is brought from: {why}", self.named())),
        }
        Ok(Some(all))
    }

    fn claims(&self) -> Option<&dyn Claims> {
        self.upstream.claims()
    }
}

/// Looking.
impl ExternalSecret {
    fn place(&self) -> Place<'_> {
        let external = Place::of("external-secrets.io", "v1", "externalsecrets");
        external.within(&self.config.namespace).named(&self.config.name)
    }

    fn secret(&self) -> Place<'_> {
        Place::core("secrets").within(&self.config.namespace).named(&self.target)
    }

    fn named(&self) -> String {
        let Config { namespace, name, .. } = &self.config;
        format!("ExternalSecret `{namespace}/{name}` of {}", self.cluster.target())
    }

    /// Asks the place of the upstream store for what holds or names the slots there.
    async fn upstream_whereabouts(
        &self,
        addresses: &[String],
    ) -> Result<Option<Whereabouts>, CallError> {
        let external = self.external().await?;
        // What is not brought from one key by name is looked for at preflight.
        let mapped = addresses.iter().filter_map(|key| external.spec.upstream_of(key).ok());
        self.upstream.whereabouts(&mapped.collect::<Vec<_>>()).await
    }

    async fn external(&self) -> Result<External, CallError> {
        match self.cluster.read::<External>(&self.place()).await {
            Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::NotFound => {
                let message = format!(
                    "{} is not served as `external-secrets.io/v1`: it does not exist, or the operator is older than that version",
                    self.named()
                );
                Err(Refusal::operator(RefusalKind::NotFound, message).into())
            }
            read => read,
        }
    }

    /// Returns what the Secret holds that readers have.
    async fn held(&self) -> Result<Data, CallError> {
        let found = self.cluster.find::<Object>(&self.secret()).await?;
        Ok(found.map(|secret| secret.data).unwrap_or_default())
    }

    fn wanted(&self) -> [Access<'_>; 4] {
        [
            self.cluster.to_identify(),
            Access::needed("get", self.place()),
            Access::needed("patch", self.place()),
            Access::needed("get", self.secret()),
        ]
    }

    fn objections(&self, external: &External, addresses: &[String]) -> Vec<Finding> {
        let Spec { target, .. } = &external.spec;
        let named = self.named();
        let mut findings = Vec::new();
        if let Some(once) = external.spec.reads_once() {
            let why =
                format!("{named} is read once only ({once}), so that no new value would come");
            findings.push(Finding::blocks(why));
        }
        let makes = target.name.as_deref().unwrap_or(&self.config.name);
        if makes != self.target {
            let why = format!("{named} makes the Secret `{}`; name it as `target`", plain(makes));
            findings.push(Finding::blocks(why));
        }
        if target.creation_policy.as_deref() == Some("None") {
            findings
                .push(Finding::blocks(format!("{named} makes no Secret (`creationPolicy: None`)")));
        }
        if target.template.is_some() {
            let keys = addresses.join("`, `");
            let why =
                format!("{named} has a template, so that nobody knows what becomes of `{keys}`");
            findings.push(Finding::blocks(why));
        }
        if let Some(reason) = external.status.trouble() {
            findings.push(Finding::blocks(format!("{named} is not ready: {reason}")));
        }
        findings
    }

    /// Finds keys of which the Secret holds something else than the upstream: what is written there would not come here.
    async fn apart(&self, keys: &[String], mapped: &[String]) -> Result<Vec<Finding>, CallError> {
        let (held, upstream) = (self.held().await?, self.upstream.read(mapped).await?);
        let differs = |(key, there): (&String, &Option<SecretValue>)| {
            let is_same = SecretValue::same(held.get(key), there.as_ref());
            let why = "what its `upstream` holds is something else: it is not the place that the operator reads, or was not read since it changed";
            (!is_same && !planted!("other_upstream_is_written"))
                .then(|| Finding::blocks(format!("{}: `{key}` differs; {why}", self.named())))
        };
        Ok(keys.iter().zip(&upstream).filter_map(differs).collect())
    }
}

/// Waiting for the operator.
impl ExternalSecret {
    /// Makes the operator read, and waits until it did and the Secret holds what was written.
    async fn sync(&self, before: &External, edits: &[Edit<'_>]) -> Result<(), CallError> {
        if self.holds(edits).await? && !planted!("forced_without_need") {
            return Ok(());
        }
        let within = StdDuration::from(self.config.synced_within.span());
        let until = Instant::now() + within;
        self.force(before).await?;
        loop {
            let now = self.external().await?;
            let has_read =
                now.status.moved_since(&before.status) || planted!("stale_ready_is_synced");
            if has_read && (self.holds(edits).await? || planted!("stale_ready_is_synced")) {
                return Ok(());
            }
            if Instant::now() > until {
                let why = match now.status.trouble() {
                    Some(reason) => format!("the operator says `{reason}`"),
                    None if has_read => {
                        "the operator read, and the Secret holds something else".into()
                    }
                    None => "the operator did not read".into(),
                };
                let within = self.config.synced_within.span();
                return Err(CallError::Unknown(format!(
                    "{}: {why}, {within} after the value was written upstream",
                    self.named()
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn holds(&self, edits: &[Edit<'_>]) -> Result<bool, CallError> {
        let held = self.held().await?;
        Ok(edits.iter().all(|edit| !edit.changes(held.get(edit.address))))
    }

    /// Changes the annotation that makes the operator read; the number of the state that was read is new each time.
    async fn force(&self, before: &External) -> Result<(), CallError> {
        let mark = format!(
            "{}-{}",
            jiff::Timestamp::now().as_millisecond(),
            before.metadata.resource_version
        );
        let annotations = BTreeMap::from([(FORCE, mark)]);
        let patch = json!({ "metadata": { "annotations": annotations } });
        let patch = SecretValue::new(patch.to_string().into_bytes());
        let answer = self.cluster.change(&self.place(), &Change::Merge(&patch), false).await?;
        if answer.status.is_success() { Ok(()) } else { Err(answer.error(Effect::Changes)) }
    }
}

#[cfg(test)]
mod tests;
