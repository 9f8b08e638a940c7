//! `kubernetes`: the pods of a Deployment, a StatefulSet or a DaemonSet.
//!
//! What a pod took up is fixed: variables when a container starts (H42), `subPath` files likewise (H43), and files of volumes
//! change at some time that nobody tells (H44). So a value is taken up by a new pod only. A roll stamps the template of the pods
//! with a digest of what they should hold, in one patch for all secrets that are rolled together, and waits as
//! `kubectl rollout status` does, and for every pod to prove the values.
//!
//! - A pod proves a value by having been made after the write, on the clock of the cluster, and by being of the present template.
//!   One that names an immutable Secret proves what that Secret holds, whenever it was made.
//! - Every pod counts that is not finally gone: those of older templates, those whose template is forgotten, those that are being
//!   deleted, and those that are not ready (H50).
//! - On the way back the template becomes what it was for the pods that were there before, so that the cluster finds those
//!   again and replaces none of them.
//! - Pods whose program reads its mounted files again by itself need no roll (`take_up: sync`): their files are brought up to date
//!   and looked into, and prove the value by what is in them.
//! - It is one patch that names the state that it changes; one that somebody takes away is named, and not fought over (H48).

mod ask;
mod files;
pub mod inventory;
mod logs;
mod namespace;
mod pod;
mod preflight;
mod readers;
mod reads;
mod revert;
mod roll;
mod secrets;
mod shadows;
mod stamp;
mod sync;
mod target;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::{ControllerRevision, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keywheel_core::evidence::Replica;
use keywheel_core::facts::WorkloadFacts;
use keywheel_core::fingerprint::Fingerprinter;
use keywheel_core::incident::LogReference;
use keywheel_core::plan::Pin;
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::duration::Duration;
use keywheel_driver::workload::{Answer, Ensure, ReadLog, Reader, Reading, Stamp, Workload};
use keywheel_driver::{CallError, Finding, Refusal, RefusalKind, Right, Writer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::ask::TokenPlace;
use self::files::Files;
use self::namespace::{Namespace, query, skew};
pub(crate) use self::pod::trouble;
use self::pod::{GRANULARITY, Look, Skew, is_gone};
pub(crate) use self::roll::passes;
use self::secrets::Known;
use self::target::{Kind, Target};
use super::clock;
use super::process::running::WallClock;
use crate::http::Effect;
use crate::kubernetes::{Cluster, Kubernetes, Place, is_name};
use crate::{Build, Context, http};

/// What makes pods, and pods themselves: the group, the name in paths, and the kind.
pub(crate) const RUNNERS: [(&str, &str, &str); 7] = [
    ("apps", "deployments", "Deployment"),
    ("apps", "statefulsets", "StatefulSet"),
    ("apps", "daemonsets", "DaemonSet"),
    ("apps", "replicasets", "ReplicaSet"),
    ("batch", "cronjobs", "CronJob"),
    ("batch", "jobs", "Job"),
    ("", "pods", "Pod"),
];

/// The pods of a Deployment, a StatefulSet or a DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The namespace.
    pub namespace: String,
    /// The Deployment; or a `stateful_set`, or a `daemon_set`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<String>,
    /// The StatefulSet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stateful_set: Option<String>,
    /// The DaemonSet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daemon_set: Option<String>,
    /// The cluster; without it, that of the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
    /// The only container of a pod that counts as a reader; without it, every one that is given a value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// A place of each pod that answers 200 to a bearer token that it accepts, and 401 or 403 to any other; asked of each pod
    /// through the API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenPlace>,
    /// How pods take up a value.
    #[serde(default, skip_serializing_if = "TakeUp::is_roll")]
    pub take_up: TakeUp,
    /// Whether a roll may leave a time in which no pod serves, where strategy and number of pods make it so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gap: bool,
    /// How long a roll may go on without one more pod that is new, ready or gone.
    #[serde(default = "minutes::<5>")]
    pub ready_within: Duration,
    /// How long a change that got no answer can still take effect.
    #[serde(default = "minutes::<1>")]
    pub settle_for: Duration,
}

/// How pods take up a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TakeUp {
    /// New pods take the place of those that there are.
    #[default]
    Roll,
    /// They read their mounted files again by themselves: these are brought up to date at once, and no pod ends.
    Sync(Rereads),
}

/// How pods read their mounted files again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rereads {
    /// How long after a mounted file changed the program certainly goes on with what it holds now.
    pub rereads_within: Duration,
}

impl TakeUp {
    fn is_roll(&self) -> bool {
        *self == Self::Roll
    }
}

fn minutes<const N: u64>() -> Duration {
    Span::minutes(N).into()
}

impl Build for Config {
    type Driver = dyn Workload;

    fn build(&self, context: &Context) -> Result<Arc<dyn Workload>, Refusal> {
        let (kind, name) = self.object()?;
        if self.token.as_ref().is_some_and(|token| !is_path(&token.path)) {
            return Err(unsupported("`token.path` begins with a slash and has no spaces"));
        }
        if self.gap && !self.take_up.is_roll() {
            return Err(unsupported("`gap` is for a roll, and `take_up: sync` ends no pod"));
        }
        let cluster = Kubernetes::new(self.cluster.as_ref(), context)?;
        Ok(Arc::new(Pods {
            namespace: Namespace { cluster, name: self.namespace.clone() },
            kind,
            name,
            config: self.clone(),
            clock: WallClock::default(),
        }))
    }
}

impl Config {
    /// Returns the setting by which the object is named, and its name.
    pub fn named(&self) -> Option<(&'static str, &str)> {
        let named = [
            ("deployment", &self.deployment),
            ("stateful_set", &self.stateful_set),
            ("daemon_set", &self.daemon_set),
        ];
        named.into_iter().find_map(|(setting, name)| Some((setting, name.as_deref()?)))
    }

    fn object(&self) -> Result<(Kind, String), Refusal> {
        let named = [
            self.deployment.as_ref().map(|name| (Kind::Deployment, name)),
            self.stateful_set.as_ref().map(|name| (Kind::StatefulSet, name)),
            self.daemon_set.as_ref().map(|name| (Kind::DaemonSet, name)),
        ];
        let mut named = named.into_iter().flatten();
        match (named.next(), named.next()) {
            (Some((kind, name)), None) if is_name(name) && is_name(&self.namespace) => {
                Ok((kind, name.clone()))
            }
            (Some(_), None) => {
                Err(unsupported("`namespace` or the object has a name that is none"))
            }
            _ => Err(unsupported("name one of `deployment`, `stateful_set` and `daemon_set`")),
        }
    }
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic())
}

struct Pods {
    config: Config,
    namespace: Namespace,
    kind: Kind,
    name: String,
    clock: WallClock,
}

/// The object and its pods, as they were at one time.
struct Seen {
    target: Target,
    pods: Vec<OnePod>,
    skew: Skew,
}

/// A pod that is not finally gone.
struct OnePod {
    pod: Pod,
    /// Whether it is of the present template.
    is_current: bool,
}

impl OnePod {
    fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }
}

#[async_trait]
impl Workload for Pods {
    fn facts(&self) -> WorkloadFacts {
        WorkloadFacts {
            settle_for: self.config.settle_for.span(),
            start_granularity: GRANULARITY,
            answers_tokens: self.config.token.is_some(),
            gap: self.config.gap,
        }
    }

    fn resource(&self) -> String {
        self.namespace.resource(self.kind.name(), &self.name)
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        self.examine().await
    }

    async fn readers(&self, slots: &[String]) -> Result<Option<Vec<Reader>>, CallError> {
        let known = Known::find(&self.namespace, slots).await?;
        let mut readers = readers::find(&self.namespace, &known, slots, &self.resource()).await?;
        // One that is listed and is given nothing is told as such.
        if !readers.iter().any(|reader| reader.resource == self.resource()) {
            readers.push(Reader {
                name: self.what(),
                resource: self.resource(),
                slots: Vec::new(),
                runs: true,
            });
        }
        Ok(Some(readers))
    }

    async fn takes_up(&self, slots: &[String]) -> Result<Vec<Finding>, CallError> {
        match self.config.take_up {
            TakeUp::Roll => Ok(Vec::new()),
            TakeUp::Sync(_) => self.examine_sync(slots).await,
        }
    }

    async fn identity(&self) -> Result<Option<Pin>, CallError> {
        self.namespace.cluster.identity().await.map(Some)
    }

    async fn observe(
        &self,
        slots: &[String],
        fingerprinter: &Fingerprinter,
    ) -> Result<Vec<Replica>, CallError> {
        let seen = self.seen().await?;
        let mut known = Known::find(&self.namespace, slots).await?;
        known.read(&self.namespace, &seen.pods, fingerprinter).await?;
        let files = self.files(&seen.pods, slots, &known, fingerprinter).await;
        let look = self.look(slots, &known, seen.skew, &files);
        Ok(seen.pods.iter().map(|one| look.at(&one.pod, one.is_current)).collect())
    }

    async fn roll(&self, ensure: &Ensure<'_>) -> Result<(), CallError> {
        self.ensure(ensure).await
    }

    async fn others(
        &self,
        slots: &[String],
        stamps: &[Stamp],
        since: Timestamp,
    ) -> Result<Vec<Writer>, CallError> {
        self.reverted_by(slots, stamps, since).await
    }

    async fn logs(&self) -> Result<Option<Vec<LogReference>>, CallError> {
        let pods: Vec<_> = self.pods().await?.into_iter().map(|one| one.pod).collect();
        Ok(Some(logs::references(&self.namespace, &pods)))
    }

    async fn read_logs(
        &self,
        reading: &mut Reading<'_>,
    ) -> Result<Option<Vec<ReadLog>>, CallError> {
        let pods: Vec<_> = self.pods().await?.into_iter().map(|one| one.pod).collect();
        Ok(Some(logs::read(&self.namespace, &pods, reading).await))
    }

    fn rights(&self) -> Vec<Right> {
        let mut wanted = self.wanted();
        wanted.extend(self.wanted_for_people());
        self.namespace.cluster.rights(&wanted)
    }

    async fn present(&self, token: &SecretValue) -> Result<Vec<Answer>, CallError> {
        let Some(place) = &self.config.token else { return Ok(Vec::new()) };
        http::bearer(token).map_err(|_| unsupported("the token does not fit into a header"))?;
        let mut answers = Vec::new();
        for one in self.pods().await? {
            let accepted = ask::accepts(&self.namespace, one.name(), place, token).await;
            answers.push(Answer { replica: one.name().to_owned(), accepted });
        }
        Ok(answers)
    }
}

/// Looking.
impl Pods {
    /// Returns what people call it.
    fn what(&self) -> String {
        format!("{} `{}`", self.kind.name(), self.name)
    }

    fn place(&self) -> Place<'_> {
        self.namespace.place("apps", self.kind.plural()).named(&self.name)
    }

    async fn target(&self) -> Result<Option<Target>, CallError> {
        let found = self.namespace.cluster.find(&self.place()).await?;
        found.map(|raw| Target::parse(self.kind, raw)).transpose()
    }

    fn is_missing(&self) -> CallError {
        let message = format!("there is no {} any more", self.what());
        Refusal::operator(RefusalKind::NotFound, message).into()
    }

    /// Reads the object, and how far the cluster's clock is from this machine's.
    async fn object(&self) -> Result<(Target, Skew), CallError> {
        for _ in 0..ANSWERS {
            let since = self.clock.steady_since();
            let asked = clock::now();
            let answer = self.namespace.cluster.ask(&self.place(), &[]).await?;
            let skew = skew(&answer.headers, asked, clock::now());
            if answer.status.as_u16() == 404 {
                return Err(self.is_missing());
            }
            if !answer.status.is_success() {
                return Err(answer.error(Effect::Reads));
            }
            if let Some((skew, since)) = skew.zip(since) {
                return Ok((Target::parse(self.kind, answer.decode()?)?, skew.since(since)));
            }
        }
        let cluster = self.namespace.cluster.target();
        let why = "its answers take too long, or bear no date, so that its clock is unknown";
        Err(CallError::Unknown(format!("{cluster}: {why}")))
    }

    /// Reads the object and its pods.
    async fn seen(&self) -> Result<Seen, CallError> {
        let (target, skew) = self.object().await?;
        let pods = self.pods_of(&target).await?;
        Ok(Seen { target, pods, skew })
    }

    /// Reads the pods, whatever the time is.
    async fn pods(&self) -> Result<Vec<OnePod>, CallError> {
        let target = self.target().await?.ok_or_else(|| self.is_missing())?;
        self.pods_of(&target).await
    }

    /// Reads the pods of the object as it was read. What changes meanwhile makes a pod one of another template, and never the other
    /// way.
    async fn pods_of(&self, target: &Target) -> Result<Vec<OnePod>, CallError> {
        let selected = target.selector().map(query).unwrap_or_default();
        let selected = [("labelSelector", selected.as_str())];
        let revisions = self.revisions(target, &selected).await?;
        let mut pods = Vec::new();
        for pod in self.namespace.list::<Pod>("", "pods", &selected).await? {
            if self.makes(&revisions, &pod) && !is_gone(&pod) {
                pods.push(OnePod { is_current: revisions.is_current(&pod), pod });
            }
        }
        if planted!("one_pod_stands_for_all") {
            pods.truncate(1);
        }
        Ok(pods)
    }

    async fn revisions(
        &self,
        target: &Target,
        selected: &[(&str, &str)],
    ) -> Result<Revisions, CallError> {
        Ok(match self.kind {
            Kind::Deployment => {
                let sets =
                    self.namespace.list::<ReplicaSet>("apps", "replicasets", selected).await?;
                let mut own = sets.iter().filter(|set| owns(target, &set.metadata));
                let current = own.find(|set| is_template_of(set, target));
                let uid = |set: &ReplicaSet| set.metadata.uid.clone().unwrap_or_default();
                let is_own =
                    |set: &ReplicaSet| owner(&set.metadata).is_none_or(|it| self.is_owner(it));
                let makers = sets.iter().map(|set| (uid(set), is_own(set))).collect();
                let current = current.map(|set| Current::Owner(uid(set)));
                Revisions { makers: Makers::Sets(makers), current }
            }
            Kind::StatefulSet => {
                let current = target.update_revision().filter(|_| target.is_observed());
                let current = current.map(|hash| Current::Hash(vec![hash.to_owned()]));
                Revisions { makers: Makers::Itself, current }
            }
            Kind::DaemonSet => {
                let all = self
                    .namespace
                    .list::<ControllerRevision>("apps", "controllerrevisions", selected)
                    .await?;
                let all = all.iter().filter(|one| owns(target, &one.metadata));
                let last = all.max_by_key(|one| one.revision).filter(|_| target.is_observed());
                // Pods are labelled with the hash of their revision, or with its whole name.
                let current = last.map(|one| {
                    let hash = label(&one.metadata, HASH).map(str::to_owned);
                    Current::Hash(hash.into_iter().chain(one.metadata.name.clone()).collect())
                });
                Revisions { makers: Makers::Itself, current }
            }
        })
    }

    /// Whether a pod counts. What made it may be gone before it is: the controller deletes what it keeps of former templates, and
    /// somebody may have made the object anew.
    fn makes(&self, revisions: &Revisions, pod: &Pod) -> bool {
        owner(&pod.metadata).is_some_and(|owner| match &revisions.makers {
            Makers::Sets(are_own) => {
                let is_gone = || !planted!("pods_of_gone_sets_unseen");
                owner.kind == "ReplicaSet"
                    && are_own.get(&owner.uid).copied().unwrap_or_else(is_gone)
            }
            Makers::Itself => self.is_owner(owner),
        })
    }

    fn is_owner(&self, owner: &OwnerReference) -> bool {
        owner.kind == self.kind.name() && owner.name == self.name
    }

    fn look<'a>(
        &'a self,
        slots: &'a [String],
        known: &'a Known,
        skew: Skew,
        files: &'a Files,
    ) -> Look<'a> {
        Look { slots, known, container: self.config.container.as_deref(), skew, files }
    }
}

const HASH: &str = "controller-revision-hash";

/// How often a cluster is asked for an answer by which its clock can be told.
const ANSWERS: usize = 3;

/// What makes the pods of the object, and which of them are of its present template.
struct Revisions {
    makers: Makers,
    current: Option<Current>,
}

enum Makers {
    /// Sets of replicas: those that are there, and whether each is its own. One that is gone was.
    Sets(BTreeMap<String, bool>),
    /// The object itself.
    Itself,
}

enum Current {
    /// Those of this set.
    Owner(String),
    /// Those with one of these hashes.
    Hash(Vec<String>),
}

impl Revisions {
    fn is_current(&self, pod: &Pod) -> bool {
        match &self.current {
            None => false,
            Some(Current::Owner(uid)) => owner(&pod.metadata).is_some_and(|it| it.uid == *uid),
            Some(Current::Hash(hashes)) => {
                label(&pod.metadata, HASH).is_some_and(|own| hashes.iter().any(|it| it == own))
            }
        }
    }
}

fn owner(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|it| it.controller == Some(true))
}

fn owns(target: &Target, meta: &ObjectMeta) -> bool {
    owner(meta).is_some_and(|owner| owner.uid == target.uid())
}

fn label<'m>(meta: &'m ObjectMeta, name: &str) -> Option<&'m str> {
    meta.labels.as_ref()?.get(name).map(String::as_str)
}

/// Whether a set makes pods of the present template, as its controller tells it: by everything but the label that it adds.
fn is_template_of(set: &ReplicaSet, target: &Target) -> bool {
    let own = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    own.map(without_hash).as_ref() == target.template().map(without_hash).as_ref()
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
        labels.remove("pod-template-hash");
    }
    template
}

fn unsupported(message: &str) -> Refusal {
    Refusal::operator(RefusalKind::Unsupported, message)
}

#[cfg(test)]
mod tests;
