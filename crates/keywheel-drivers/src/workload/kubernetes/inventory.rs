//! What is given Secrets, and the objects that bring those: of manifests, or of a cluster that runs. For whoever proposes a
//! configuration.
//!
//! No value of a Secret is kept, only the names of its keys; and Secrets are never listed: one is read by its name, if something names
//! it and the account may, and its values are dropped unseen.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_driver::{CallError, Refusal, RefusalKind};
use serde::Deserialize;
use serde_json::Value;

use super::RUNNERS;
use super::preflight::routes;
use super::reads::{How, reads};
use super::target::{Kind, Target};
use crate::Context;
use crate::kubernetes::{Access, Cluster, Kubernetes, Place, VERSION_OF};
use crate::store::kubernetes_secret::glance;

/// How deep lists may stand within lists.
const DEPTH: usize = 4;

/// What was found.
#[derive(Default)]
pub struct Inventory {
    /// What makes pods, and pods that nothing made.
    pub runners: Vec<Runner>,
    /// Secrets that were seen themselves.
    pub secrets: Vec<Secret>,
    /// ExternalSecrets.
    pub externals: Vec<External>,
    /// Where those read.
    pub providers: Vec<Provider>,
}

/// Something that makes pods.
pub struct Runner {
    /// Its kind.
    pub kind: String,
    /// Its namespace, where it names one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// The key by which a workload's settings name it; none where its kind cannot be rolled.
    pub setting: Option<&'static str>,
    /// Whether it runs by itself again and again, and reads anew each time.
    pub comes_round: bool,
    /// What its pods are given of Secrets.
    pub given: Vec<Given>,
    /// Variables that stand in it with their values.
    pub literals: Vec<(String, SecretValue)>,
    /// Why it would serve nobody during a roll, where that is so.
    pub outage: Option<String>,
    /// Why it cannot be rolled as it is.
    pub obstacle: Option<String>,
    /// Who brings it to its cluster, and what to tell them.
    pub notes: Vec<String>,
}

impl Runner {
    /// Returns what people call it.
    pub fn words(&self) -> String {
        format!("{} `{}`", self.kind, self.name)
    }
}

/// A Secret that pods are given.
pub struct Given {
    /// The Secret.
    pub secret: String,
    /// The keys; none where it is all of them.
    pub keys: Option<Vec<String>>,
    /// The variable, where one key is given in one.
    pub variable: Option<String>,
    /// How, in the words of the manifests.
    pub how: &'static str,
}

/// A Secret that was seen itself.
pub struct Secret {
    /// Its namespace, where it names one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Its keys.
    pub keys: BTreeSet<String>,
    /// Whether it can be changed no more.
    pub is_immutable: bool,
    /// Whether it stands in a manifest with values.
    pub stands_in_manifest: bool,
    /// That an operator brings it from elsewhere, so that it is nothing to write itself.
    pub brought: Option<String>,
    /// Why nothing of it should be rotated as it is, wherever it is brought from.
    pub obstacles: Vec<String>,
    /// Why some of its keys should not.
    pub of_keys: BTreeMap<String, Vec<String>>,
    /// The Secret that it is a version of, where keywheel made it.
    pub version_of: Option<String>,
}

/// An ExternalSecret.
pub struct External {
    /// Its namespace, where it names one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// The Secret that it makes.
    pub target: String,
    /// The keys that it makes by name.
    pub keys: BTreeSet<String>,
    /// The secrets that it reads elsewhere.
    pub remotes: BTreeSet<String>,
    /// Kind and name of the object that says where.
    pub provider: (String, String),
}

/// Where ExternalSecrets read: a SecretStore or a ClusterSecretStore.
pub struct Provider {
    /// Its kind.
    pub kind: String,
    /// Its namespace, where it names one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// The address of a server of Vault or OpenBao, where it is one with a KV engine of version 2.
    pub vault: Option<String>,
    /// The mount of that engine.
    pub mount: Option<String>,
}

/// What a cluster that runs told.
pub struct Live {
    /// What was found.
    pub inventory: Inventory,
    /// The id of the cluster.
    pub id: String,
    /// What this account may not see, in words, and what is missing for it.
    pub unseen: Vec<String>,
    /// What was passed over, and why.
    pub odd: Vec<String>,
}

#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: ObjectMeta,
}

impl Inventory {
    /// Takes an object in, or a list of them. Kinds that have nothing to do with Secrets are passed over.
    ///
    /// # Errors
    /// What is not understood, in words without any value.
    pub fn take(&mut self, object: &Value) -> Result<(), String> {
        self.take_at(object, 0)
    }

    fn take_at(&mut self, object: &Value, depth: usize) -> Result<(), String> {
        let kind = object["kind"].as_str().unwrap_or_default();
        if let Some(items) = object["items"].as_array().filter(|_| kind.ends_with("List")) {
            if depth == DEPTH {
                return Err("lists stand too deep within lists".into());
            }
            let odd = items.iter().filter_map(|item| self.take_at(item, depth + 1).err());
            let odd: Vec<String> = odd.collect();
            return if odd.is_empty() { Ok(()) } else { Err(odd.join(", ")) };
        }
        let head: Head = serde_json::from_value(without_annotated_values(object))
            .map_err(|_| "an object has no metadata that can be read".to_owned())?;
        let Some(name) = head.metadata.name.clone() else { return Ok(()) };
        if !has_names(&head) {
            return Err("an object has a kind, namespace or name that none can have".into());
        }
        let understood = match head.kind.as_str() {
            "Secret" => {
                self.secrets.push(secret(&head.metadata, name, object));
                Some(())
            }
            "SealedSecret" => {
                self.secrets.push(sealed(&head.metadata, name, object));
                Some(())
            }
            "ExternalSecret" => {
                external(&head.metadata, name, object).map(|one| self.externals.push(one))
            }
            "SecretStore" | "ClusterSecretStore" => {
                self.providers.push(provider(&head, name, object));
                Some(())
            }
            _ => self.runner(&head, name, object),
        };
        let name = head.metadata.name.as_deref().unwrap_or_default();
        understood.ok_or_else(|| format!("{} `{name}` is not understood", head.kind))
    }

    fn runner(&mut self, head: &Head, name: String, object: &Value) -> Option<()> {
        if super::owner(&head.metadata).is_some() {
            return Some(());
        }
        let rolled = match head.kind.as_str() {
            "Deployment" => Some((Kind::Deployment, "deployment")),
            "StatefulSet" => Some((Kind::StatefulSet, "stateful_set")),
            "DaemonSet" => Some((Kind::DaemonSet, "daemon_set")),
            _ => None,
        };
        let spec = pod_spec(&head.kind, object);
        if !spec["containers"].is_array() {
            return rolled.is_none().then_some(());
        }
        let spec: PodSpec = serde_json::from_value(spec.clone()).ok()?;
        let target = match rolled {
            Some((kind, _)) => Some(Target::parse(kind, object.clone()).ok()?),
            None => None,
        };
        let namespace = head.metadata.namespace.clone();
        let told = rolled.map(|(kind, _)| {
            routes(kind, namespace.as_deref().unwrap_or("default"), &head.metadata)
        });
        self.runners.push(Runner {
            kind: head.kind.clone(),
            name,
            setting: rolled.map(|(_, setting)| setting),
            comes_round: head.kind == "CronJob",
            given: given(&spec),
            literals: literals(&spec),
            outage: target.as_ref().and_then(Target::outage),
            obstacle: target.as_ref().and_then(obstacle),
            notes: told.into_iter().flatten().map(|finding| finding.message).collect(),
            namespace,
        });
        Some(())
    }
}

/// Asking a cluster.
impl Inventory {
    /// Finds what a cluster that runs has in some namespaces; without any, in the one that its context names.
    ///
    /// # Errors
    /// [`CallError`] where it gives no answer, or this account may not list what runs: then with all that is missing.
    pub async fn of_cluster(
        setting: &Cluster,
        context: &Context,
        namespaces: &[String],
    ) -> Result<Live, CallError> {
        let cluster = Kubernetes::new(Some(setting), context)?;
        let own = vec![cluster.client().await?.default_namespace().to_owned()];
        let namespaces = if namespaces.is_empty() { &own } else { namespaces };
        check_permissions(&cluster, namespaces).await?;
        let id = cluster.identity().await?.id;
        let mut live = Live { inventory: Self::default(), id, unseen: Vec::new(), odd: Vec::new() };
        for namespace in namespaces {
            live.listed(&cluster, namespace).await?;
            live.operated(&cluster, namespace).await?;
            live.named(&cluster, namespace).await?;
        }
        Ok(live)
    }
}

async fn check_permissions(cluster: &Kubernetes, namespaces: &[String]) -> Result<(), CallError> {
    let system = cluster.to_identify();
    let lists = namespaces.iter().flat_map(|namespace| {
        RUNNERS.iter().map(move |(group, resource, _)| {
            Access::needed("list", Place::of(group, "v1", resource).within(namespace))
        })
    });
    let wanted: Vec<_> = [system].into_iter().chain(lists).collect();
    let denied = cluster.denied(&wanted).await?;
    if denied.is_empty() {
        return Ok(());
    }
    let missing: Vec<_> = denied.iter().map(|access| access.in_words()).collect();
    let message = format!("{} does not allow {}", cluster.target(), missing.join(", "));
    Err(Refusal::operator(RefusalKind::Permission, message).into())
}

#[derive(Deserialize)]
struct List {
    items: Vec<Value>,
}

impl Live {
    /// Lists what makes pods.
    async fn listed(&mut self, cluster: &Kubernetes, namespace: &str) -> Result<(), CallError> {
        for (group, resource, kind) in RUNNERS {
            let place = Place::of(group, "v1", resource).within(namespace);
            let list: List = cluster.read(&place).await?;
            self.take_all(kind, list.items);
        }
        Ok(())
    }

    /// Lists what the External Secrets Operator works on, where it is installed and may be seen.
    async fn operated(&mut self, cluster: &Kubernetes, namespace: &str) -> Result<(), CallError> {
        let group = "external-secrets.io";
        let externals = Place::of(group, "v1", "externalsecrets").within(namespace);
        let providers = Place::of(group, "v1", "secretstores").within(namespace);
        let wide = Place::of(group, "v1", "clustersecretstores");
        for (place, kind) in [
            (externals, "ExternalSecret"),
            (providers, "SecretStore"),
            (wide, "ClusterSecretStore"),
        ] {
            match cluster.read::<List>(&place).await {
                Ok(list) => self.take_all(kind, list.items),
                Err(CallError::Refused(refusal)) => match refusal.kind {
                    RefusalKind::NotFound => {}
                    RefusalKind::Permission => self.hide(&Access::needed("list", place)),
                    _ => return Err(refusal.into()),
                },
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads the Secrets that something names, where this account may, and keeps the names of their keys.
    async fn named(&mut self, cluster: &Kubernetes, namespace: &str) -> Result<(), CallError> {
        let here = |runner: &&Runner| runner.namespace.as_deref() == Some(namespace);
        let runners = self.inventory.runners.iter().filter(here);
        let named = runners.flat_map(|runner| &runner.given).map(|given| given.secret.clone());
        for name in named.collect::<BTreeSet<_>>() {
            match glance::at(cluster, namespace, &name).await {
                Ok(Some(glance)) => self.inventory.secrets.push(Secret {
                    namespace: Some(namespace.to_owned()),
                    name,
                    keys: glance.keys,
                    is_immutable: glance.is_immutable,
                    stands_in_manifest: false,
                    brought: glance.brought,
                    obstacles: glance.obstacles,
                    of_keys: glance.of_keys,
                    version_of: glance.version_of,
                }),
                Ok(None) => {}
                Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::Permission => {
                    let place = Place::core("secrets").within(namespace).named(&name);
                    self.hide(&Access::needed("get", place));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn hide(&mut self, access: &Access<'_>) {
        self.unseen.push(access.in_words());
    }

    fn take_all(&mut self, kind: &str, items: Vec<Value>) {
        for mut item in items {
            // Items of a list do not name their kind.
            item["kind"] = kind.into();
            let ended = kind == "Job" && is_over(&item) || kind == "Pod" && is_done(&item);
            if !ended {
                self.odd.extend(self.inventory.take(&item).err());
            }
        }
    }
}

/// Whether a Job has ended.
pub(crate) fn is_over(job: &Value) -> bool {
    let conditions = job["status"]["conditions"].as_array().into_iter().flatten();
    let ends =
        |it: &Value| (it["type"] == "Complete" || it["type"] == "Failed") && it["status"] == "True";
    conditions.into_iter().any(ends)
}

fn is_done(pod: &Value) -> bool {
    pod["status"]["phase"] == "Succeeded" || pod["status"]["phase"] == "Failed"
}

/// Whether kind, namespace and name are such that they can be repeated anywhere.
fn has_names(head: &Head) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-.:".contains(&b);
    let fits = |text: &String| (1..=253).contains(&text.len()) && text.bytes().all(is_plain);
    let names = [&head.metadata.name, &head.metadata.namespace];
    names.into_iter().flatten().chain([&head.kind]).all(fits)
}

/// Returns kind and metadata, without the annotation that may hold a copy of values.
fn without_annotated_values(object: &Value) -> Value {
    let mut head = serde_json::json!({ "kind": object["kind"], "metadata": object["metadata"] });
    if let Some(annotations) = head["metadata"]["annotations"].as_object_mut() {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    head
}

/// Returns the specification of the pods of an object.
pub(super) fn pod_spec<'o>(kind: &str, object: &'o Value) -> &'o Value {
    match kind {
        "Pod" => &object["spec"],
        "CronJob" => &object["spec"]["jobTemplate"]["spec"]["template"]["spec"],
        "ControllerRevision" => &object["data"]["spec"]["template"]["spec"],
        _ => &object["spec"]["template"]["spec"],
    }
}

/// Lists what the pods of an object are given of Secrets, as far as it is understood.
pub(crate) fn given_by(kind: &str, object: &Value) -> Vec<Given> {
    let spec = serde_json::from_value::<PodSpec>(pod_spec(kind, object).clone());
    spec.map(|spec| given(&spec)).unwrap_or_default()
}

fn given(spec: &PodSpec) -> Vec<Given> {
    let reads = reads(spec).into_iter().filter(|read| read.how != How::Pull);
    let given = reads.map(|read| Given {
        secret: read.secret,
        keys: read.keys,
        variable: read.variable,
        how: read.how.words(),
    });
    given.collect()
}

fn literals(spec: &PodSpec) -> Vec<(String, SecretValue)> {
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let variables = containers.flat_map(|container| container.env.iter().flatten());
    let literal = |one: &k8s_openapi::api::core::v1::EnvVar| {
        let value = one.value.as_ref()?;
        Some((one.name.clone(), SecretValue::new(value.clone().into_bytes())))
    };
    variables.filter_map(literal).collect()
}

fn obstacle(target: &Target) -> Option<String> {
    let zero = target.is_scaled_to_zero();
    target.obstacle().or_else(|| zero.then(|| "runs no pod that could show what it holds".into()))
}

fn secret(meta: &ObjectMeta, name: String, object: &Value) -> Secret {
    let held = ["data", "stringData"].map(|part| object[part].as_object());
    let keys: BTreeSet<String> =
        held.into_iter().flatten().flat_map(|part| part.keys().cloned()).collect();
    Secret {
        namespace: meta.namespace.clone(),
        name,
        stands_in_manifest: !keys.is_empty() && !planted!("secret_in_git_proposed"),
        keys,
        is_immutable: object["immutable"] == true,
        brought: None,
        obstacles: Vec::new(),
        of_keys: BTreeMap::new(),
        version_of: meta.annotations.as_ref().and_then(|all| all.get(VERSION_OF).cloned()),
    }
}

fn sealed(meta: &ObjectMeta, name: String, object: &Value) -> Secret {
    let template = &object["spec"]["template"]["metadata"];
    let keys = object["spec"]["encryptedData"].as_object().into_iter().flatten();
    let why = format!(
        "SealedSecret `{name}` makes it and would bring the old value back; seal each new value and commit it, or let another Secret hold this key"
    );
    Secret {
        namespace: meta.namespace.clone(),
        name: template["name"].as_str().map_or(name, Into::into),
        keys: keys.map(|(key, _)| key.clone()).collect(),
        is_immutable: false,
        stands_in_manifest: false,
        brought: None,
        obstacles: vec![why],
        of_keys: BTreeMap::new(),
        version_of: None,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExternalSpec {
    #[serde(default)]
    secret_store_ref: NamedRef,
    #[serde(default)]
    target: NamedRef,
    #[serde(default)]
    data: Vec<One>,
    #[serde(default)]
    data_from: Vec<All>,
}

#[derive(Default, Deserialize)]
struct NamedRef {
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct One {
    secret_key: String,
    #[serde(default)]
    remote_ref: Remote,
}

#[derive(Default, Deserialize)]
struct All {
    #[serde(default)]
    extract: Option<Remote>,
}

#[derive(Default, Deserialize)]
struct Remote {
    #[serde(default)]
    key: String,
}

fn external(meta: &ObjectMeta, name: String, object: &Value) -> Option<External> {
    let spec: ExternalSpec = serde_json::from_value(object["spec"].clone()).ok()?;
    let extracted = spec.data_from.into_iter().filter_map(|all| all.extract);
    let remotes = spec.data.iter().map(|one| one.remote_ref.key.clone());
    let kind = spec.secret_store_ref.kind.unwrap_or_else(|| "SecretStore".into());
    Some(External {
        namespace: meta.namespace.clone(),
        target: spec.target.name.unwrap_or_else(|| name.clone()),
        name,
        remotes: remotes.chain(extracted.map(|remote| remote.key)).collect(),
        keys: spec.data.into_iter().map(|one| one.secret_key).collect(),
        provider: (kind, spec.secret_store_ref.name.unwrap_or_default()),
    })
}

fn provider(head: &Head, name: String, object: &Value) -> Provider {
    let vault = &object["spec"]["provider"]["vault"];
    let is_kv = vault["version"].is_null() || vault["version"] == "v2";
    let server = vault["server"].as_str().filter(|_| is_kv);
    Provider {
        kind: head.kind.clone(),
        namespace: head.metadata.namespace.clone(),
        name,
        vault: server.map(Into::into),
        mount: vault["path"].as_str().map(Into::into),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn taken(object: &Value) -> Inventory {
        let mut inventory = Inventory::default();
        inventory.take(object).unwrap();
        inventory
    }

    #[test]
    fn every_kind_that_makes_pods_is_found_with_what_its_pods_are_given() {
        let pod = json!({ "containers": [{ "name": "app", "env": [
            { "name": "A", "valueFrom": { "secretKeyRef": { "name": "keys", "key": "a" } } },
            { "name": "B", "value": "kwcanary-plain" },
        ] }], "imagePullSecrets": [{ "name": "registry" }] });
        let with = |kind: &str, spec: Value| json!({ "kind": kind, "metadata": { "name": "x" }, "spec": spec });
        let template = json!({ "selector": {}, "serviceName": "x", "template": { "spec": pod } });
        let round = json!({ "schedule": "* * * * *", "jobTemplate": { "spec": { "template": { "spec": pod } } } });
        let list = json!({ "kind": "List", "items": [
            with("Deployment", template.clone()),
            with("StatefulSet", template.clone()),
            with("DaemonSet", template.clone()),
            with("CronJob", round),
            with("Job", template.clone()),
            with("Rollout", template),
            with("Pod", pod.clone()),
            with("ConfigMap", Value::Null),
        ] });
        let inventory = taken(&list);
        let told = inventory.runners.iter().map(|one| (one.kind.as_str(), one.setting.is_some()));
        assert_eq!(
            told.collect::<Vec<_>>(),
            [
                ("Deployment", true),
                ("StatefulSet", true),
                ("DaemonSet", true),
                ("CronJob", false),
                ("Job", false),
                ("Rollout", false),
                ("Pod", false)
            ]
        );
        for runner in &inventory.runners {
            let [given] = &runner.given[..] else { panic!("{}", runner.words()) };
            assert_eq!((given.secret.as_str(), given.variable.as_deref()), ("keys", Some("A")));
            assert_eq!(runner.literals[0].0, "B");
        }
        assert!(inventory.runners[1].outage.is_some());
    }

    #[test]
    fn what_belongs_to_another_object_is_not_counted_twice() {
        let owned = json!({ "kind": "Pod", "metadata": { "name": "x", "ownerReferences": [
            { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "y", "uid": "1", "controller": true }] },
            "spec": { "containers": [] } });
        assert!(taken(&owned).runners.is_empty());
    }

    #[test]
    fn h49_a_secret_that_stands_in_a_manifest_is_told_and_only_the_names_of_its_keys_are_kept() {
        let secret = json!({ "kind": "Secret", "metadata": { "name": "keys" }, "data": { "a": "a3djYW5hcnk=" }, "stringData": { "b": "kwcanary" } });
        let inventory = taken(&secret);
        let [secret] = &inventory.secrets[..] else { panic!("one Secret") };
        assert!(secret.keys.iter().eq(["a", "b"]) && secret.stands_in_manifest);
    }

    #[test]
    fn an_external_secret_says_what_it_makes_and_where_it_reads() {
        let mut inventory = Inventory::default();
        let external = json!({ "kind": "ExternalSecret", "metadata": { "name": "keys" }, "spec": {
            "secretStoreRef": { "kind": "ClusterSecretStore", "name": "vault" },
            "target": { "name": "api-keys" },
            "data": [{ "secretKey": "a", "remoteRef": { "key": "shop/app", "property": "a" } }],
            "dataFrom": [{ "extract": { "key": "shop/more" } }, { "find": { "name": { "regexp": ".*" } } }],
        } });
        inventory.take(&external).unwrap();
        let store = json!({ "kind": "ClusterSecretStore", "metadata": { "name": "vault" }, "spec": { "provider": { "vault": {
            "server": "https://vault.example:8200", "path": "kv", "version": "v2" } } } });
        inventory.take(&store).unwrap();
        let one = &inventory.externals[0];
        assert_eq!((one.target.as_str(), one.remotes.len(), one.keys.len()), ("api-keys", 2, 1));
        assert_eq!(one.provider, ("ClusterSecretStore".to_owned(), "vault".to_owned()));
        assert_eq!(inventory.providers[0].mount.as_deref(), Some("kv"));
    }

    #[test]
    fn what_is_not_understood_ends_nothing_else() {
        let with = |name: &str, containers: Value| json!({ "kind": "Pod", "metadata": { "name": name }, "spec": { "containers": containers } });
        let odd = with("odd", json!([{ "env": "kwcanary" }]));
        let items = vec![odd, with("good", json!([{ "name": "x" }]))];
        let list = json!({ "kind": "List", "items": items });
        let mut inventory = Inventory::default();
        assert_eq!(inventory.take(&list).unwrap_err(), "Pod `odd` is not understood");
        assert_eq!(inventory.runners.len(), 1);
        let mut live = Live {
            inventory: Inventory::default(),
            id: String::new(),
            unseen: Vec::new(),
            odd: Vec::new(),
        };
        live.take_all("Pod", items);
        assert_eq!((live.odd.len(), live.inventory.runners.len()), (1, 1));
    }

    #[test]
    fn what_is_not_understood_is_named_without_what_stands_there() {
        let broken = json!({ "kind": "Deployment", "metadata": { "name": "x" }, "spec": { "template": { "spec": { "containers": [{ "env": "kwcanary" }] } } } });
        let why = Inventory::default().take(&broken).unwrap_err();
        assert_eq!(why, "Deployment `x` is not understood");
    }
}
