//! The namespace in which everything happens: made, filled with the program that pods run, and removed with all that is in it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::api::{Api, Kind, text, until};
use crate::check;
use crate::edge::is_ready;
use crate::manifest::{self, LABEL, Program, Reads, SHOP};
use crate::{Options, say};

/// How long pods may take to become ready for the first time: an image may have to be pulled over a slow line.
const PULLED_WITHIN: Duration = Duration::from_secs(600);

/// How long pods may take to become ready once the image is there.
const READY_WITHIN: Duration = Duration::from_secs(180);

/// How long an image that cannot be had is tried for.
const REFUSED_WITHIN: Duration = Duration::from_secs(90);

/// How long the namespace may take to go.
const GONE_WITHIN: Duration = Duration::from_secs(300);

/// The namespace, and what a scenario needs to know.
pub(crate) struct Ground {
    pub(crate) api: Api,
    pub(crate) program: Program,
    pub(crate) context: String,
    pub(crate) kubeconfig: Option<PathBuf>,
    pub(crate) keywheel: PathBuf,
    pub(crate) each_second: u32,
    pub(crate) direct: bool,
    pub(crate) undone_within: Option<Duration>,
    uid: String,
}

impl Ground {
    /// Makes the namespace.
    pub(crate) async fn make(api: Api, options: &Options) -> anyhow::Result<Self> {
        let uid = api
            .make_namespace(json!({
                "app.kubernetes.io/managed-by": "keywheel-e2e",
                "pod-security.kubernetes.io/enforce": "restricted",
            }))
            .await
            .context("the namespace cannot be made")?;
        let image = match &options.image {
            Some(image) => image.clone(),
            None => check::image(&api.nodes().await?),
        };
        let program = Program { image, architecture: architecture(), parts: 0 };
        Ok(Self {
            api,
            program,
            context: options.context.clone(),
            kubeconfig: options.kubeconfig.clone(),
            keywheel: options.keywheel.clone(),
            each_second: options.each_second,
            direct: options.direct,
            undone_within: options.undone_within,
            uid,
        })
    }

    /// Ships the program, and lets one pod run it, so that the image is there before anything is measured.
    pub(crate) async fn fill(&mut self, app: &std::path::Path) -> anyhow::Result<()> {
        let program =
            std::fs::read(app).with_context(|| format!("`{}` cannot be read", app.display()))?;
        let parts = manifest::parts(&program);
        self.program.parts = parts.len();
        for part in &parts {
            let made = self.api.create(Kind::ConfigMap, part).await;
            let _made = made.context("the program cannot be shipped")?;
        }
        say(&format!(
            "shipped the program: {} MiB in {} ConfigMaps",
            program.len() >> 20,
            parts.len()
        ));
        // Pods are refused until somebody has made it.
        let account = until("service account `default`", Duration::from_secs(60), async || {
            self.api.find(Kind::ServiceAccount, "default").await
        });
        let _account = account.await?;
        say(&format!(
            "image {}: a first pod may take up to {} min",
            self.program.image,
            PULLED_WITHIN.as_secs() / 60
        ));
        let secret = manifest::secret(
            "first",
            &[("jwt", &"x".repeat(32)), ("jwt-also", ""), ("pepper", "x")],
        );
        let _made = self.api.create(Kind::Secret, &secret).await?;
        self.roll_out(Kind::Deployment, "first", 1, Reads::Once, PULLED_WITHIN).await?;
        self.clear().await
    }

    /// Makes a workload, and waits until its pods are ready.
    pub(crate) async fn start(
        &self,
        kind: Kind,
        name: &str,
        replicas: u32,
        reads: Reads,
    ) -> anyhow::Result<()> {
        self.roll_out(kind, name, replicas, reads, READY_WITHIN).await
    }

    async fn roll_out(
        &self,
        kind: Kind,
        name: &str,
        replicas: u32,
        reads: Reads,
        within: Duration,
    ) -> anyhow::Result<()> {
        let workload = manifest::workload(kind, name, replicas, &self.program, reads);
        let _made = self.api.create(kind, &workload).await?;
        let begun = Instant::now();
        let ready = until("its pods are not ready", within, async || {
            let pods = self.pods(name).await?;
            if begun.elapsed() > REFUSED_WITHIN && pods.iter().any(lacks_image) {
                bail!(
                    "image `{}` cannot be had: name another one with `--image`",
                    self.program.image
                );
            }
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            let found = self.api.read(kind, name).await?;
            let wanted = match kind {
                Kind::DaemonSet => found["status"]["desiredNumberScheduled"].as_u64(),
                _ => Some(replicas.into()),
            };
            let all = wanted.is_some_and(|wanted| wanted > 0 && ready as u64 >= wanted);
            Ok(all.then_some(()))
        });
        match ready.await {
            Ok(()) => Ok(()),
            Err(error) => bail!("{error}\n{}", self.events().await),
        }
    }

    /// Deletes what a scenario made, and waits until its pods are gone, so that the next one has room.
    pub(crate) async fn clear(&self) -> anyhow::Result<()> {
        for kind in [Kind::Deployment, Kind::StatefulSet, Kind::DaemonSet] {
            self.api.delete_all(kind, None).await?;
        }
        let gone = until("pods of the scenario are not gone", READY_WITHIN, async || {
            Ok(self.api.list(Kind::Pod, None).await?.is_empty().then_some(()))
        });
        gone.await?;
        self.api.delete_all(Kind::Secret, Some(SHOP)).await
    }

    /// Returns the pods of a workload.
    pub(crate) async fn pods(&self, name: &str) -> anyhow::Result<Vec<Value>> {
        self.api.list(Kind::Pod, Some(&format!("{LABEL}={name}"))).await
    }

    /// Returns how every pod stands, and what the cluster said last, in lines.
    pub(crate) async fn events(&self) -> String {
        let mut lines = Vec::new();
        for pod in self.api.list(Kind::Pod, None).await.unwrap_or_default() {
            let statuses = ["initContainerStatuses", "containerStatuses"]
                .into_iter()
                .flat_map(|at| pod["status"][at].as_array().into_iter().flatten());
            let states: Vec<_> =
                statuses.map(|it| format!("{} {}", text(it, "/name"), it["state"])).collect();
            let (name, phase) = (text(&pod, "/metadata/name"), text(&pod, "/status/phase"));
            lines.push(format!("   pod {name}: {phase}; {}", states.join("; ")));
        }
        let mut events = self.api.list(Kind::Event, None).await.unwrap_or_default();
        let at = |event: &Value| {
            let ats = ["/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"];
            ats.map(|at| text(event, at))
                .into_iter()
                .find(|at| !at.is_empty())
                .unwrap_or_default()
                .to_owned()
        };
        events.sort_by_key(at);
        for event in events.iter().rev().take(20) {
            lines.push(format!(
                "   event {} {}: {}: {}",
                text(event, "/involvedObject/kind"),
                text(event, "/involvedObject/name"),
                text(event, "/reason"),
                text(event, "/message"),
            ));
        }
        lines.join("\n")
    }

    /// Removes the namespace with everything in it, and waits until it is gone. One that is empty, and stays only because the cluster
    /// cannot ask one of its own extensions what it holds, is as good as gone.
    pub(crate) async fn remove(&self) -> anyhow::Result<()> {
        self.api.delete_namespace(&self.uid).await?;
        let gone = until("the namespace is not gone", GONE_WITHIN, async || {
            let found = self.api.find_namespace().await?;
            let Some(found) = found.filter(|found| text(found, "/metadata/uid") == self.uid) else {
                return Ok(Some(()));
            };
            if !is_held_up(&found) {
                return Ok(None);
            }
            for kind in [Kind::Pod, Kind::Secret, Kind::ConfigMap] {
                if !self.api.list(kind, None).await?.is_empty() {
                    return Ok(None);
                }
            }
            say("the namespace is empty, and goes once all extensions of the cluster answer");
            Ok(Some(()))
        });
        gone.await
    }
}

/// Whether the image of a pod is not to be had.
fn lacks_image(pod: &Value) -> bool {
    let statuses = ["initContainerStatuses", "containerStatuses"]
        .into_iter()
        .flat_map(|at| pod["status"][at].as_array().into_iter().flatten());
    let mut reasons = statuses.map(|it| text(it, "/state/waiting/reason"));
    reasons.any(|why| ["ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"].contains(&why))
}

/// Whether a namespace that is being removed waits for an extension of the API alone.
fn is_held_up(namespace: &Value) -> bool {
    let is = |kind: &str, status: &str| {
        let mut conditions = namespace["status"]["conditions"].as_array().into_iter().flatten();
        conditions.any(|it| it["type"] == kind && it["status"] == status)
    };
    is("NamespaceDeletionDiscoveryFailure", "True") && !is("NamespaceContentRemaining", "True")
}

/// Returns the architecture of this machine as nodes name it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
