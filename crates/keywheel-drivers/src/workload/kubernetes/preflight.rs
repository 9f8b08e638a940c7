//! What stands in the way of a roll, and what of a pod makes it drop requests (H51), before anything changes.

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_driver::{CallError, Finding, RefusalKind};
use serde::Deserialize;
use serde_json::{Value, json};

use super::reads::{Source, reads};
use super::shadows::Shadows;
use super::stamp::PREFIX;
use super::target::{Kind, Progress, Target};
use super::{Pods, RUNNERS};
use crate::http::Effect;
use crate::kubernetes::{Access, Change, Place};

/// The stamp with which admission is tried.
const TRIAL: &str = "keywheel.dev/stamp.trial";

impl Pods {
    /// Says what stands in the way of a roll, and what people should know of it.
    pub(super) async fn examine(&self) -> Result<Vec<Finding>, CallError> {
        let mut findings = self.examine_permissions().await?;
        if !findings.is_empty() {
            return Ok(findings);
        }
        let Some(target) = self.target().await? else {
            let message = format!("there is no {}", self.what());
            return Ok(vec![Finding::blocks(message)]);
        };
        let mut blocks = |message: String| {
            findings.push(Finding::blocks(format!("{} {message}", self.what())));
        };
        let rolls = self.config.take_up.is_roll();
        if let Some(obstacle) = target.obstacle().filter(|_| rolls) {
            blocks(obstacle);
        }
        if target.is_scaled_to_zero() {
            blocks("runs no pod, and none can show which values it holds: scale it up".into());
        }
        match target.progress() {
            Progress::Done => {}
            Progress::Waits(why) => blocks(format!(
                "is not settled ({why}): let it become ready, or undo its last rollout, first"
            )),
            Progress::Failed(why) => blocks(format!("is not settled: {why}")),
        }
        if !rolls {
            return Ok(findings);
        }
        let is_foreseen = !self.config.gap && !planted!("outage_unforeseen");
        if let Some(why) = target.outage().filter(|_| is_foreseen) {
            blocks(format!(
                "would serve nobody for a while: {why}; change that, or configure `gap: true`, which takes `accept: [outage]`"
            ));
        }
        findings.extend(target.pod_spec().into_iter().flat_map(|spec| self.examine_pods(spec)));
        findings.extend(self.examine_sources(&target).await?);
        findings.extend(self.examine_pace(&target).await?);
        findings.extend(self.try_stamp().await?);
        findings.extend(routes(self.kind, &self.config.namespace, target.meta()));
        Ok(findings)
    }

    /// Asks the cluster itself whether everything that a roll needs is allowed.
    async fn examine_permissions(&self) -> Result<Vec<Finding>, CallError> {
        if planted!("permissions_unasked") {
            return Ok(Vec::new());
        }
        self.namespace.cluster.examine(&self.wanted()).await
    }

    /// Lists what is asked of the cluster.
    pub(super) fn wanted(&self) -> Vec<Access<'_>> {
        let (target, pods) = (self.place(), self.namespace.place("", "pods"));
        let mut wanted = vec![self.namespace.cluster.to_identify(), Access::needed("get", target)];
        if self.config.take_up.is_roll() {
            wanted.push(Access::needed("patch", target));
        } else {
            wanted.push(Access::needed("patch", pods));
            wanted.push(Access::needed("create", pods.sub("exec")));
            wanted.push(Access::needed("get", pods.sub("exec")));
        }
        // Every pod and every reader is found by these.
        wanted.extend(RUNNERS.map(|(group, resource, _)| {
            Access::needed("list", self.namespace.place(group, resource))
        }));
        match self.kind {
            Kind::Deployment => {}
            Kind::StatefulSet if !self.config.take_up.is_roll() => {}
            Kind::StatefulSet => wanted.push(Access::needed("delete", pods)),
            Kind::DaemonSet => {
                let revisions = self.namespace.place("apps", "controllerrevisions");
                wanted.push(Access::needed("list", revisions));
            }
        }
        if self.config.token.is_some() {
            wanted.push(Access::needed("create", pods.sub("portforward")));
            wanted.push(Access::needed("get", pods.sub("portforward")));
        }
        wanted
    }

    /// Lists what is looked at for people only, and done without.
    pub(super) fn wanted_for_people(&self) -> Vec<Access<'_>> {
        const UNSEEN: &str = "it is not told";
        let place = |group, version, resource| {
            Place::of(group, version, resource).within(&self.config.namespace)
        };
        vec![
            Access::wanted("get", self.namespace.place("", "pods").sub("log"), UNSEEN),
            Access::wanted("list", place("policy", "v1", "poddisruptionbudgets"), UNSEEN),
            Access::wanted("list", place("autoscaling", "v2", "horizontalpodautoscalers"), UNSEEN),
        ]
    }

    /// Says what of the pods makes a roll drop requests.
    fn examine_pods(&self, spec: &PodSpec) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut note = |message: String| findings.push(Finding::note(message));
        let serves = |container: &&Container| {
            self.config.container.as_ref().is_none_or(|name| *name == container.name)
        };
        for container in spec.containers.iter().filter(serves) {
            let name = &container.name;
            if container.readiness_probe.is_none() {
                note(format!(
                    "container `{name}` has no readiness probe: a new pod counts as available as soon as it runs, and gets requests before it can answer them"
                ));
            }
            let stops = container.lifecycle.as_ref().and_then(|cycle| cycle.pre_stop.as_ref());
            if stops.is_none() {
                note(format!(
                    "container `{name}` has no `preStop`: requests that are still sent to it while it ends fail, unless the program itself goes on serving for some seconds after SIGTERM; `preStop: {{ sleep: {{ seconds: 5 }} }}` needs nothing in its image"
                ));
            }
        }
        let grace = spec.termination_grace_period_seconds.unwrap_or(30);
        if grace < 5 {
            note(format!("a pod is killed {grace} s after it is told to end, with what it serves"));
        }
        findings
    }

    /// Says what may stand in front of keys, and cannot be seen.
    async fn examine_sources(&self, target: &Target) -> Result<Vec<Finding>, CallError> {
        let given = target.pod_spec().map(reads).unwrap_or_default();
        let shadows = Shadows::behind(&self.namespace, &given).await?;
        let note = |source: &Source| {
            let source = source.words();
            Finding::note(format!(
                "{} is given {source} by `envFrom` after a Secret, and this account may not `get` it: where it has a key of the same name, that is the one which is read",
                self.what()
            ))
        };
        Ok(shadows.unseen().map(note).collect())
    }

    /// Says what else has a hand in how many pods there are, and how long a rollout may stand still.
    async fn examine_pace(&self, target: &Target) -> Result<Vec<Finding>, CallError> {
        let mut findings = Vec::new();
        if let Some(seconds) = target.progress_deadline() {
            let within = self.config.ready_within.span();
            if u64::try_from(seconds).unwrap_or(0) * 1_000 < within.as_millis() {
                findings.push(Finding::note(format!(
                    "{} gives a rollout up after {seconds} s without progress, before `ready_within` ({within})",
                    self.what()
                )));
            }
        }
        let labels = target.template().and_then(|template| template.metadata.as_ref());
        let labels = labels.and_then(|meta| meta.labels.clone()).unwrap_or_default();
        let covers = |budget: &Object| {
            let wanted = &budget.spec["selector"]["matchLabels"];
            wanted.as_object().is_some_and(|wanted| {
                !wanted.is_empty()
                    && wanted
                        .iter()
                        .all(|(name, value)| labels.get(name).map(String::as_str) == value.as_str())
            })
        };
        let budgets = self.asked("policy", "v1", "poddisruptionbudgets").await?;
        for budget in budgets.iter().flatten().filter(|budget| covers(budget)) {
            let name = &budget.metadata.name;
            findings.push(Finding::note(format!(
                "PodDisruptionBudget `{name}` covers its pods: it holds up drains of nodes while the roll goes on, and not the roll"
            )));
        }
        let scalers = self.asked("autoscaling", "v2", "horizontalpodautoscalers").await?;
        let is_scaled = |scaler: &&Object| {
            let of = &scaler.spec["scaleTargetRef"];
            of["kind"] == self.kind.name() && of["name"] == self.name.as_str()
        };
        for scaler in scalers.iter().flatten().filter(is_scaled) {
            let name = &scaler.metadata.name;
            findings.push(Finding::note(format!(
                "HorizontalPodAutoscaler `{name}` changes how many pods there are, also while a roll goes on"
            )));
        }
        Ok(findings)
    }

    /// Lists objects that are only told about; none where the account may not see them or the cluster knows no such kind.
    async fn asked(
        &self,
        group: &str,
        version: &str,
        resource: &str,
    ) -> Result<Option<Vec<Object>>, CallError> {
        let place = Place::of(group, version, resource).within(&self.config.namespace);
        match self.namespace.cluster.read::<Objects>(&place).await {
            Ok(list) => Ok(Some(list.items)),
            Err(CallError::Refused(refusal))
                if matches!(refusal.kind, RefusalKind::Permission | RefusalKind::NotFound) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Lets the cluster do everything with a stamp but keep it: whoever admits changes may refuse it or take it away (H48).
    async fn try_stamp(&self) -> Result<Option<Finding>, CallError> {
        // It is kept nowhere, so that it need not name the state that it changes.
        let patch = json!({"spec": {"template": {"metadata": {"annotations": {TRIAL: "trial"}}}}});
        let patch = SecretValue::new(patch.to_string().into_bytes());
        let answer =
            self.namespace.cluster.change(&self.place(), &Change::Merge(&patch), true).await?;
        if !answer.status.is_success() {
            return match answer.error(Effect::Reads) {
                CallError::Refused(refusal) if answer.status.as_u16() != 409 => {
                    let message = format!("a stamp on {} would be refused: {refusal}", self.what());
                    Ok(Some(Finding::blocks(message)))
                }
                error => Err(error),
            };
        }
        let kept: Value = answer.decode()?;
        let kept = &kept["spec"]["template"]["metadata"]["annotations"][TRIAL];
        Ok((kept != "trial" && !planted!("lost_stamp_unseen")).then(|| {
            Finding::blocks(format!(
                "whoever admits changes to {} takes the stamp away again: let annotations of its template that begin with `{PREFIX}` pass",
                self.what()
            ))
        }))
    }
}

#[derive(Deserialize)]
struct Objects {
    items: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    metadata: Named,
    #[serde(default)]
    spec: Value,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// Says who else brings the object to its cluster, and what keeps them from taking the stamps of a roll away.
pub(super) fn routes(kind: Kind, namespace: &str, meta: &ObjectMeta) -> Vec<Finding> {
    let has_label = |name: &str| meta.labels.iter().flatten().any(|(label, _)| label == name);
    let has_annotation = |name: &str| meta.annotations.iter().flatten().any(|(it, _)| it == name);
    let manages = |name: &str| {
        let entries = meta.managed_fields.iter().flatten();
        entries.into_iter().any(|entry| entry.manager.as_deref() == Some(name))
    };
    let (kind, name) = (kind.name(), meta.name.as_deref().unwrap_or_default());
    let mut findings = Vec::new();
    if has_annotation("argocd.argoproj.io/tracking-id")
        || has_label("argocd.argoproj.io/instance")
        || manages("argocd-controller")
    {
        findings.push(Finding::note(format!(
            "Argo CD brings {kind} `{name}`; so that it leaves the stamps of a roll alone, give its Application: `spec.syncPolicy.syncOptions: [RespectIgnoreDifferences=true]` and `spec.ignoreDifferences: [{{group: apps, kind: {kind}, name: {name}, namespace: {namespace}, managedFieldsManagers: [keywheel]}}]`"
        )));
    }
    if has_label("kustomize.toolkit.fluxcd.io/name") || manages("kustomize-controller") {
        findings.push(Finding::note(format!(
            "Flux brings {kind} `{name}`; so that it leaves the stamps of a roll alone, annotate it in Git: `kustomize.toolkit.fluxcd.io/ssa: Merge`"
        )));
    }
    if has_label("helm.toolkit.fluxcd.io/name") {
        findings.push(Finding::note(format!(
            "Flux brings {kind} `{name}` by Helm; where it looks for drift, give its HelmRelease: `spec.driftDetection.ignore: [{{paths: [/spec/template/metadata/annotations], target: {{kind: {kind}, name: {name}}}}}]`"
        )));
    } else if has_annotation("meta.helm.sh/release-name") {
        findings.push(Finding::note(format!(
            "Helm brings {kind} `{name}`: an upgrade leaves the stamps alone unless its chart sets the same annotations"
        )));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_brings_an_object_is_told_what_leaves_the_stamps_alone() {
        let told = |meta: Value| {
            let meta = serde_json::from_value(meta).unwrap();
            let findings = routes(Kind::Deployment, "shop", &meta);
            findings.into_iter().map(|finding| finding.message).collect::<Vec<_>>().join("\n")
        };
        let argo =
            told(json!({"name": "app", "annotations": {"argocd.argoproj.io/tracking-id": "x"}}));
        assert!(
            argo.contains("ignoreDifferences")
                && argo.contains("managedFieldsManagers: [keywheel]")
        );
        let flux =
            told(json!({"name": "app", "labels": {"kustomize.toolkit.fluxcd.io/name": "x"}}));
        assert!(flux.contains("kustomize.toolkit.fluxcd.io/ssa: Merge"));
        let managed =
            told(json!({"name": "app", "managedFields": [{"manager": "argocd-controller"}]}));
        assert_eq!(managed, argo);
        assert!(told(json!({"name": "app"})).is_empty());
    }
}
