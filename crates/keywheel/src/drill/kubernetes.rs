//! A drill in a namespace of a Kubernetes cluster: one Secret, and one Deployment of an image with a shell.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{anyhow, ensure};
use async_trait::async_trait;
use clap::Args;
use keywheel_core::secret::SecretValue;
use keywheel_drivers::Context;
use keywheel_drivers::kubernetes::Cluster;
use keywheel_drivers::kubernetes::throwaway::{Pods, Throwaway, name};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{LENGTH, SLOT};

/// How long the pods may take to come up, the pull of their image included.
const UP: Duration = Duration::from_secs(300);

/// How many pods read the secret.
const REPLICAS: u32 = 2;

/// What a drill in a cluster is run with.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
pub(crate) struct Options {
    /// The context of the kubeconfig; the current one is never taken
    #[arg(long, value_name = "NAME")]
    context: String,
    /// The kubeconfig [default: KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// A namespace that is there; the objects in it get names of their own
    #[arg(long, short, value_name = "NAME")]
    namespace: String,
    /// An image with `sh` and `sleep`
    #[arg(long, default_value = "busybox:1.36")]
    image: String,
}

/// Both objects, under a name of their own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ground {
    options: Options,
    id: String,
    /// The id of the cluster; another one that answers later is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
}

impl Ground {
    /// Names the objects after the id of the drill.
    pub(crate) fn new(mut options: Options, id: &str) -> Self {
        // It is read from another folder later.
        options.kubeconfig =
            options.kubeconfig.map(|path| std::path::absolute(&path).unwrap_or(path));
        Self { options, id: id.into(), cluster: None }
    }

    fn cluster(&self) -> Cluster {
        let Options { context, kubeconfig, .. } = &self.options;
        Cluster {
            context: Some(context.clone()),
            kubeconfig: kubeconfig.clone(),
            in_cluster: None,
            id: self.cluster.clone(),
        }
    }

    fn objects(&self, folder: &Path) -> anyhow::Result<Throwaway> {
        let context = Context::at(folder);
        let objects = Throwaway::new(&self.cluster(), &context, &self.options.namespace, &self.id);
        objects.map_err(|refusal| anyhow!(refusal.message))
    }
}

#[async_trait]
impl super::Ground for Ground {
    fn place(&self) -> String {
        format!("in namespace `{}` of context `{}`", self.options.namespace, self.options.context)
    }

    fn drivers(&self) -> (Value, Value) {
        let (cluster, namespace, name) =
            (json!(self.cluster()), &self.options.namespace, name(&self.id));
        let store = json!({ "kubernetes_secret": { "cluster": cluster, "namespace": namespace, "name": name } });
        let workload = json!({ "kubernetes": {
            "cluster": cluster, "namespace": namespace, "deployment": name, "settle_for": "1s",
        }});
        (store, workload)
    }

    async fn look(&mut self, folder: &Path) -> anyhow::Result<()> {
        let objects = self.objects(folder)?;
        self.cluster = Some(objects.cluster_id().await.map_err(|error| anyhow!("{error}"))?);
        let lacks = objects.lacks().await.map_err(|error| anyhow!("{error}"))?;
        ensure!(lacks.is_empty(), "this account may not {}", lacks.join(", nor "));
        Ok(())
    }

    async fn make(&self, folder: &Path, first: &SecretValue) -> anyhow::Result<()> {
        let objects = self.objects(folder)?;
        let script = format!(
            "trap 'exit 0' TERM; [ ${{#{SLOT}}} -eq {LENGTH} ] || exit 7; while :; do sleep 0.2; done"
        );
        let image = &self.options.image;
        let pods = Pods { replicas: REPLICAS, image, script: &script, variable: SLOT, first };
        objects.make(&pods).await.map_err(|error| anyhow!("{error}"))?;
        objects.come_up(UP).await.map_err(|error| anyhow!("{error}"))
    }

    async fn take_away(&self, folder: &Path) -> anyhow::Result<()> {
        self.objects(folder)?.take_away().await.map_err(|error| anyhow!("{error}"))
    }
}
