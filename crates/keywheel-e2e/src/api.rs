//! The API server, as the scenarios ask it. Objects are only ever reached in the one namespace that was made for them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use http::header::CONTENT_TYPE;
use http::{Method, Request};
use k8s_openapi::api::core::v1::Pod;
use kube::api::AttachParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a request is sent that gets no answer, or one that asks to come again.
const TRIES: u32 = 5;

/// A kind of object that the scenarios make or look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    ConfigMap,
    DaemonSet,
    Deployment,
    Event,
    Pod,
    Secret,
    ServiceAccount,
    StatefulSet,
}

impl Kind {
    fn place(self) -> (&'static str, &'static str) {
        match self {
            Self::ConfigMap => ("/api/v1", "configmaps"),
            Self::DaemonSet => ("/apis/apps/v1", "daemonsets"),
            Self::Deployment => ("/apis/apps/v1", "deployments"),
            Self::Event => ("/api/v1", "events"),
            Self::Pod => ("/api/v1", "pods"),
            Self::Secret => ("/api/v1", "secrets"),
            Self::ServiceAccount => ("/api/v1", "serviceaccounts"),
            Self::StatefulSet => ("/apis/apps/v1", "statefulsets"),
        }
    }

    /// Returns the key by which a workload of `keywheel.yaml` names it.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::DaemonSet => "daemon_set",
            Self::StatefulSet => "stateful_set",
            _ => "deployment",
        }
    }
}

/// The API server, and the one namespace.
#[derive(Clone)]
pub(crate) struct Api {
    client: kube::Client,
    namespace: String,
}

impl Api {
    /// Reaches the cluster of a context. The current context is never used.
    pub(crate) async fn connect(
        context: &str,
        kubeconfig: Option<&Path>,
        namespace: String,
    ) -> anyhow::Result<Self> {
        // An error says that a provider is installed already.
        rustls::crypto::ring::default_provider().install_default().ok();
        let read = match kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let options = KubeConfigOptions { context: Some(context.to_owned()), ..Default::default() };
        let read = read.context("the kubeconfig cannot be read")?;
        let mut config = kube::Config::from_custom_kubeconfig(read, &options)
            .await
            .with_context(|| format!("context `{context}` cannot be used"))?;
        config.proxy_url = None;
        config.connect_timeout = Some(Duration::from_secs(10));
        let client = kube::Client::try_from(config)
            .with_context(|| format!("context `{context}` cannot be used"))?;
        Ok(Self { client, namespace })
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns the pods of the namespace, as what forwards to them and what runs in them asks.
    pub(crate) fn pods(&self) -> kube::Api<Pod> {
        kube::Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Runs a program in the first container of a pod, and returns what it wrote.
    pub(crate) async fn output(&self, pod: &str, command: &[&str]) -> anyhow::Result<String> {
        let run = async {
            let how = AttachParams::default().stdin(false).stderr(false);
            let mut running = self.pods().exec(pod, command.iter().copied(), &how).await?;
            let mut out = running.stdout().context("it has no output")?;
            let mut text = String::new();
            let _length = out.read_to_string(&mut text).await?;
            Ok(text)
        };
        let ran = tokio::time::timeout(PATIENCE, run).await;
        let ran = ran.unwrap_or_else(|_| bail!("no answer within {} s", PATIENCE.as_secs()));
        ran.with_context(|| format!("`{}` in pod `{pod}`", command.join(" ")))
    }

    fn path(&self, kind: Kind, name: &str) -> String {
        let (prefix, plural) = kind.place();
        let path = format!("{prefix}/namespaces/{}/{plural}", self.namespace);
        if name.is_empty() { path } else { format!("{path}/{name}") }
    }

    /// Returns an object; none where there is none.
    pub(crate) async fn find(&self, kind: Kind, name: &str) -> anyhow::Result<Option<Value>> {
        self.get(&self.path(kind, name)).await
    }

    /// Returns an object that must be there.
    pub(crate) async fn read(&self, kind: Kind, name: &str) -> anyhow::Result<Value> {
        let found = self.find(kind, name).await?;
        found.with_context(|| format!("{kind:?} `{name}` is gone"))
    }

    /// Returns the objects of a kind, all or those with a label.
    pub(crate) async fn list(&self, kind: Kind, label: Option<&str>) -> anyhow::Result<Vec<Value>> {
        let mut path = self.path(kind, "");
        if let Some(label) = label {
            path = format!("{path}?labelSelector={}", label.replace('=', "%3D"));
        }
        let mut list = self.get(&path).await?.context("a list is missing")?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => Ok(Vec::new()),
        }
    }

    pub(crate) async fn create(&self, kind: Kind, object: &Value) -> anyhow::Result<Value> {
        self.make(&self.path(kind, ""), object).await
    }

    /// Changes an object by a merge patch.
    pub(crate) async fn patch(&self, kind: Kind, name: &str, patch: &Value) -> anyhow::Result<()> {
        let path = self.path(kind, name);
        let content = "application/merge-patch+json";
        let _changed = self.patiently(&Method::PATCH, &path, content, Some(patch)).await?;
        Ok(())
    }

    /// Deletes an object; one that is gone is no error.
    pub(crate) async fn delete(&self, kind: Kind, name: &str) -> anyhow::Result<()> {
        self.remove(&self.path(kind, name), &json!({ "propagationPolicy": "Background" })).await
    }

    /// Deletes the objects of a kind, all or those with a label.
    pub(crate) async fn delete_all(&self, kind: Kind, label: Option<&str>) -> anyhow::Result<()> {
        for object in self.list(kind, label).await? {
            self.delete(kind, text(&object, "/metadata/name")).await?;
        }
        Ok(())
    }

    /// Makes the namespace, and returns its identity.
    pub(crate) async fn make_namespace(&self, labels: Value) -> anyhow::Result<String> {
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": self.namespace, "labels": labels },
        });
        let made = self.make("/api/v1/namespaces", &namespace).await?;
        Ok(text(&made, "/metadata/uid").to_owned())
    }

    /// Begins to delete the namespace, as long as it is the one that was made.
    pub(crate) async fn delete_namespace(&self, uid: &str) -> anyhow::Result<()> {
        let path = format!("/api/v1/namespaces/{}", self.namespace);
        self.remove(&path, &json!({ "preconditions": { "uid": uid } })).await
    }

    /// Returns the namespace; none where there is none.
    pub(crate) async fn find_namespace(&self) -> anyhow::Result<Option<Value>> {
        self.get(&format!("/api/v1/namespaces/{}", self.namespace)).await
    }

    /// Returns what the server says of its version.
    pub(crate) async fn version(&self) -> anyhow::Result<Value> {
        self.get("/version").await?.context("the server does not tell its version")
    }

    /// Returns the nodes of the cluster.
    pub(crate) async fn nodes(&self) -> anyhow::Result<Vec<Value>> {
        let mut list = self.get("/api/v1/nodes").await?.context("nodes are not served")?;
        Ok(list["items"].take().as_array().cloned().unwrap_or_default())
    }

    /// Returns whether this account may do something.
    pub(crate) async fn may(&self, attributes: Value) -> anyhow::Result<bool> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": { "resourceAttributes": attributes },
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let answer = self.patiently(&Method::POST, path, JSON, Some(&review)).await?;
        Ok(answer["status"]["allowed"] == true)
    }

    async fn get(&self, path: &str) -> anyhow::Result<Option<Value>> {
        match self.patiently(&Method::GET, path, JSON, None).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if code(&error) == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes an object; one that a lost answer has made is it.
    async fn make(&self, path: &str, object: &Value) -> anyhow::Result<Value> {
        match self.patiently(&Method::POST, path, JSON, Some(object)).await {
            Err(error) if code(&error) == Some(409) => {
                let name = text(object, "/metadata/name");
                self.get(&format!("{path}/{name}")).await?.ok_or(error)
            }
            made => made,
        }
    }

    async fn remove(&self, path: &str, options: &Value) -> anyhow::Result<()> {
        match self.patiently(&Method::DELETE, path, JSON, Some(options)).await {
            Err(error) if code(&error) != Some(404) => Err(error),
            _ => Ok(()),
        }
    }

    /// Sends a request again where there was no answer, or one that asks for it.
    async fn patiently(
        &self,
        method: &Method,
        path: &str,
        content: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let mut tries = 0;
        loop {
            let told = format!("{method} {}", path.split('?').next().unwrap_or_default());
            let asked = self.send(method, path, content, body);
            let error = match tokio::time::timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => anyhow::Error::new(error).context(told),
                Err(_) => {
                    anyhow::anyhow!("no answer within {} s", PATIENCE.as_secs()).context(told)
                }
            };
            tries += 1;
            let asks_again = code(&error).is_none_or(|code| [429, 500, 503, 504].contains(&code));
            if tries == TRIES || !asks_again {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn send(
        &self,
        method: &Method,
        path: &str,
        content: &str,
        body: Option<&Value>,
    ) -> Result<Value, kube::Error> {
        let mut request = Request::builder().method(method).uri(path);
        if body.is_some() {
            request = request.header(CONTENT_TYPE, content);
        }
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = request.body(body).map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }
}

const JSON: &str = "application/json";

/// Returns the code of an answer that is an error.
fn code(error: &anyhow::Error) -> Option<u16> {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

/// Returns a text within an object; empty where there is none.
pub(crate) fn text<'a>(object: &'a Value, at: &str) -> &'a str {
    object.pointer(at).and_then(Value::as_str).unwrap_or_default()
}

/// Waits until something is so; `what` says what it would be.
pub(crate) async fn until<T>(
    what: &str,
    within: Duration,
    look: impl AsyncFn() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let end = tokio::time::Instant::now() + within;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if tokio::time::Instant::now() >= end {
            bail!("{what}: not within {} s", within.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
