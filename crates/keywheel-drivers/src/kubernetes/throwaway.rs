//! A Secret and a Deployment that reads it, under one name that nothing else has, for a rehearsal: made, and taken away again.
//!
//! Nothing else is read, changed or removed. Both carry a label with the rehearsal's id, and only what carries it is removed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition};
use k8s_openapi::api::core::v1::Pod;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::{CallError, Refusal, RefusalKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{Access, Change, Cluster, Kubernetes, Place};
use crate::http::Effect;
use crate::workload::kubernetes::{RUNNERS, passes, trouble};
use crate::{Context, secret_json};

/// Nobody waits until what keeps a pod of a drill from coming up passes: it is made anew as easily.
const AT_ONCE: Timestamp = Timestamp::from_millis(i64::MAX);

/// The label that says which rehearsal an object belongs to.
const LABEL: &str = "keywheel.dev/drill";

/// The user that the pods run as: nobody, as far as their images know.
const NOBODY: u32 = 65_534;

/// How long pods may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(120);

/// Both objects.
pub struct Throwaway {
    cluster: Kubernetes,
    namespace: String,
    name: String,
    id: String,
}

/// What the pods are.
pub struct Pods<'a> {
    /// How many there are.
    pub replicas: u32,
    /// The image; it has a shell.
    pub image: &'a str,
    /// The script that runs in it.
    pub script: &'a str,
    /// The variable that it reads, which is the key of the Secret too.
    pub variable: &'a str,
    /// What the variable holds at first.
    pub first: &'a SecretValue,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Secret<'a> {
    api_version: &'a str,
    kind: &'a str,
    metadata: Value,
    data: BTreeMap<&'a str, &'a str>,
}

#[derive(Deserialize)]
struct Found {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    uid: String,
    #[serde(default)]
    labels: Map<String, Value>,
}

#[derive(Deserialize)]
struct Listed {
    items: Vec<Pod>,
}

impl Throwaway {
    /// Names both in a namespace of a cluster, after the id of the rehearsal. Asks nobody.
    ///
    /// # Errors
    /// A refusal where the settings name no cluster.
    pub fn new(
        cluster: &Cluster,
        context: &Context,
        namespace: &str,
        id: &str,
    ) -> Result<Self, Refusal> {
        let cluster = Kubernetes::new(Some(cluster), context)?;
        let (namespace, id) = (namespace.to_owned(), id.to_owned());
        Ok(Self { cluster, namespace, name: name(&id), id })
    }

    fn secret(&self) -> Place<'_> {
        Place::core("secrets").within(&self.namespace)
    }

    fn deployment(&self) -> Place<'_> {
        Place::of("apps", "v1", "deployments").within(&self.namespace)
    }

    fn labelled(&self) -> String {
        format!("{LABEL}={}", self.id)
    }

    /// Returns the id of the cluster, by which it is told from another one later.
    ///
    /// # Errors
    /// [`CallError`] where there is no answer, or the account may not ask.
    pub async fn cluster_id(&self) -> Result<String, CallError> {
        Ok(self.cluster.identity().await?.id)
    }

    /// Says what the account may not do that is needed to make both, to rotate the one and roll the other, and to take them away.
    ///
    /// # Errors
    /// [`CallError`] where there is no answer.
    pub async fn lacks(&self) -> Result<Vec<String>, CallError> {
        let makes = [self.secret(), self.deployment()];
        let makes = makes.map(|place| Access::needed("create", place));
        let changes = [self.secret().named(&self.name), self.deployment().named(&self.name)];
        let changes = changes
            .into_iter()
            .flat_map(|place| ["get", "patch", "delete"].map(|verb| Access::needed(verb, place)));
        let lists = RUNNERS.map(|(group, resource, _)| {
            Access::needed("list", Place::of(group, "v1", resource).within(&self.namespace))
        });
        let wanted: Vec<_> = makes.into_iter().chain(changes).chain(lists).collect();
        let denied = self.cluster.denied(&wanted).await?;
        Ok(denied.into_iter().map(Access::in_words).collect())
    }

    /// Makes the Secret, then the Deployment. What is there under the name already is left as it is.
    ///
    /// # Errors
    /// [`CallError`] where one of them could not be made; the other one may have been.
    pub async fn make(&self, pods: &Pods<'_>) -> Result<(), CallError> {
        self.create(&self.secret(), &self.secret_of(pods)).await?;
        let deployment = self.deployment_of(pods).to_string();
        self.create(&self.deployment(), &SecretValue::new(deployment.into_bytes())).await
    }

    /// Waits until every pod serves.
    ///
    /// # Errors
    /// [`CallError`] where one of them cannot come up, or does not in time.
    pub async fn come_up(&self, within: Duration) -> Result<(), CallError> {
        let until = Instant::now() + within;
        loop {
            let waits = match self.why_not_up().await {
                Ok(None) => return Ok(()),
                Ok(Some(why)) => CallError::Unknown(self.says(&why)),
                Err(error) if passes(&error) => error,
                Err(error) => return Err(error),
            };
            if Instant::now() > until {
                return Err(waits);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Says what is awaited; none where every pod serves.
    async fn why_not_up(&self) -> Result<Option<String>, CallError> {
        for pod in self.pods().await? {
            if let Some(why) = trouble(&pod, None, AT_ONCE) {
                let pod = pod.metadata.name.unwrap_or_default();
                return Err(self.fails(&format!("pod `{pod}`: {why}")));
            }
        }
        let place = self.deployment().named(&self.name);
        let made: Deployment = self.cluster.read(&place).await?;
        let (wanted, status) = (made.spec.and_then(|spec| spec.replicas), made.status);
        let status = status.unwrap_or_default();
        if let Some(reason) = status.conditions.iter().flatten().find_map(fails_for) {
            let (kubectl, name) = (self.cluster.kubectl(&self.namespace), &self.name);
            let why = format!(
                "it cannot make its pods ({reason}); with `--keep`, `{kubectl} describe deployment {name}` says more"
            );
            return Err(self.fails(&why));
        }
        let (wanted, up) = (wanted.unwrap_or(1), status.available_replicas.unwrap_or(0));
        Ok((up < wanted).then(|| format!("{up} of {wanted} pods serve")))
    }

    async fn pods(&self) -> Result<Vec<Pod>, CallError> {
        let place = Place::core("pods").within(&self.namespace);
        let answer = self.cluster.ask(&place, &[("labelSelector", &self.labelled())]).await?;
        match answer.status.is_success() {
            true => Ok(answer.decode::<Listed>()?.items),
            false => Err(answer.error(Effect::Reads)),
        }
    }

    fn says(&self, what: &str) -> String {
        format!("{}: Deployment `{}`: {what}", self.cluster.target(), self.name)
    }

    fn fails(&self, why: &str) -> CallError {
        Refusal::operator(RefusalKind::WorkloadFailed, self.says(why)).into()
    }

    async fn create(&self, place: &Place<'_>, object: &SecretValue) -> Result<(), CallError> {
        let answer = self.cluster.change(place, &Change::Create(object), false).await?;
        match answer.status.is_success() {
            true => Ok(()),
            false => Err(answer.error(Effect::Changes)),
        }
    }

    fn metadata(&self) -> Value {
        json!({ "name": self.name, "namespace": self.namespace, "labels": { LABEL: self.id } })
    }

    fn secret_of(&self, pods: &Pods<'_>) -> SecretValue {
        let first = Zeroizing::new(STANDARD.encode(pods.first.expose()));
        secret_json::write(&Secret {
            api_version: "v1",
            kind: "Secret",
            metadata: self.metadata(),
            data: BTreeMap::from([(pods.variable, first.as_str())]),
        })
    }

    fn deployment_of(&self, pods: &Pods<'_>) -> Value {
        let labels = json!({ LABEL: self.id });
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": self.metadata(),
            "spec": {
                "replicas": pods.replicas,
                "minReadySeconds": 2,
                "progressDeadlineSeconds": 120,
                "selector": { "matchLabels": labels },
                "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": {
                        "automountServiceAccountToken": false,
                        "enableServiceLinks": false,
                        "terminationGracePeriodSeconds": 5,
                        "securityContext": {
                            "runAsNonRoot": true, "runAsUser": NOBODY, "runAsGroup": NOBODY,
                            "seccompProfile": { "type": "RuntimeDefault" },
                        },
                        "containers": [{
                            "name": "drill",
                            "image": pods.image,
                            "imagePullPolicy": "IfNotPresent",
                            "command": ["sh", "-c", pods.script],
                            "env": [{
                                "name": pods.variable,
                                "valueFrom": { "secretKeyRef": { "name": self.name, "key": pods.variable } },
                            }],
                            "resources": { "requests": { "cpu": "5m", "memory": "8Mi" } },
                            "securityContext": {
                                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                                "capabilities": { "drop": ["ALL"] },
                            },
                        }],
                    },
                },
            },
        })
    }

    /// Takes both away, and waits until the pods are gone. What does not carry the label stays.
    ///
    /// # Errors
    /// [`CallError`] where something is there still.
    pub async fn take_away(&self) -> Result<(), CallError> {
        self.delete(&self.deployment()).await?;
        self.delete(&self.secret()).await?;
        let until = Instant::now() + GONE_WITHIN;
        loop {
            let left = self.pods().await?.len();
            if left == 0 {
                return Ok(());
            }
            if Instant::now() > until {
                let why = self.says(&format!("{left} of its pods are there still"));
                let after = Some(Span::seconds(10));
                return Err(Refusal::retry(RefusalKind::Unavailable, after, why).into());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn delete(&self, place: &Place<'_>) -> Result<(), CallError> {
        let place = place.named(&self.name);
        let Some(Found { metadata }) = self.cluster.find(&place).await? else { return Ok(()) };
        if metadata.labels.get(LABEL).and_then(Value::as_str) != Some(&self.id) {
            return Ok(());
        }
        let options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background",
            "preconditions": { "uid": metadata.uid },
        });
        let body = SecretValue::new(options.to_string().into_bytes());
        let answer = self.cluster.change(&place, &Change::Delete(&body), false).await?;
        match answer.status.as_u16() {
            404 => Ok(()),
            _ if answer.status.is_success() => Ok(()),
            _ => Err(answer.error(Effect::Changes)),
        }
    }
}

/// Returns the reason for which a Deployment gives up making its pods.
fn fails_for(condition: &DeploymentCondition) -> Option<&str> {
    let is_failure = match condition.type_.as_str() {
        "ReplicaFailure" => condition.status == "True",
        "Progressing" => condition.status == "False",
        _ => false,
    };
    is_failure.then(|| condition.reason.as_deref().unwrap_or("no reason given"))
}

/// Returns the name of both objects of a rehearsal.
pub fn name(id: &str) -> String {
    format!("keywheel-drill-{id}")
}
