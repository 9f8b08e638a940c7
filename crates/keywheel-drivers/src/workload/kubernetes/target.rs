//! The object that makes the pods: a Deployment, a StatefulSet or a DaemonSet, and how far its rollout is, judged as
//! `kubectl rollout status` judges it.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    DaemonSet, Deployment, DeploymentCondition, DeploymentStatus, RollingUpdateDeployment,
    StatefulSet,
};
use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keywheel_core::planted;
use keywheel_driver::CallError;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::stamp;

/// What kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A Deployment.
    Deployment,
    /// A StatefulSet.
    StatefulSet,
    /// A DaemonSet.
    DaemonSet,
}

impl Kind {
    /// Returns its name in paths and permissions.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Deployment => "deployments",
            Self::StatefulSet => "statefulsets",
            Self::DaemonSet => "daemonsets",
        }
    }

    /// Returns its name as manifests write it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
        }
    }
}

/// How far a rollout is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Every replica is of the present template and available, and none of an older one is counted any more.
    Done,
    /// Something is awaited.
    Waits(String),
    /// It will not end by itself.
    Failed(String),
}

/// The object as it was read.
pub(super) struct Target {
    /// As it came: fields that this program does not know are kept.
    pub raw: Value,
    typed: Typed,
}

enum Typed {
    Deployment(Box<Deployment>),
    StatefulSet(Box<StatefulSet>),
    DaemonSet(Box<DaemonSet>),
}

impl Target {
    /// Reads one.
    pub(super) fn parse(kind: Kind, raw: Value) -> Result<Self, CallError> {
        let typed = match kind {
            Kind::Deployment => Typed::Deployment(Box::new(read(&raw)?)),
            Kind::StatefulSet => Typed::StatefulSet(Box::new(read(&raw)?)),
            Kind::DaemonSet => Typed::DaemonSet(Box::new(read(&raw)?)),
        };
        Ok(Self { raw, typed })
    }

    pub(super) fn meta(&self) -> &ObjectMeta {
        match &self.typed {
            Typed::Deployment(one) => &one.metadata,
            Typed::StatefulSet(one) => &one.metadata,
            Typed::DaemonSet(one) => &one.metadata,
        }
    }

    pub(super) fn uid(&self) -> &str {
        self.meta().uid.as_deref().unwrap_or_default()
    }

    pub(super) fn template(&self) -> Option<&PodTemplateSpec> {
        match &self.typed {
            Typed::Deployment(one) => one.spec.as_ref().map(|spec| &spec.template),
            Typed::StatefulSet(one) => one.spec.as_ref().map(|spec| &spec.template),
            Typed::DaemonSet(one) => one.spec.as_ref().map(|spec| &spec.template),
        }
    }

    pub(super) fn pod_spec(&self) -> Option<&PodSpec> {
        self.template().and_then(|template| template.spec.as_ref())
    }

    pub(super) fn selector(&self) -> Option<&LabelSelector> {
        match &self.typed {
            Typed::Deployment(one) => one.spec.as_ref().map(|spec| &spec.selector),
            Typed::StatefulSet(one) => one.spec.as_ref().map(|spec| &spec.selector),
            Typed::DaemonSet(one) => one.spec.as_ref().map(|spec| &spec.selector),
        }
    }

    /// Returns the annotations of the template that are ours.
    pub(super) fn ours(&self) -> BTreeMap<String, String> {
        let meta = self.template().and_then(|template| template.metadata.as_ref());
        stamp::ours(meta.and_then(|meta| meta.annotations.as_ref()))
    }

    /// Whether there is no replica that could show anything.
    pub(super) fn is_scaled_to_zero(&self) -> bool {
        self.replicas() == Some(0)
    }

    /// Returns how many pods there should be, where that is known.
    pub(super) fn replicas(&self) -> Option<i32> {
        match &self.typed {
            Typed::Deployment(one) => one.spec.as_ref().map(|spec| spec.replicas.unwrap_or(1)),
            Typed::StatefulSet(one) => one.spec.as_ref().map(|spec| spec.replicas.unwrap_or(1)),
            Typed::DaemonSet(one) => {
                one.status.as_ref().map(|status| status.desired_number_scheduled)
            }
        }
    }

    /// Says why a change of the template would replace nothing, or not everything.
    pub(super) fn obstacle(&self) -> Option<String> {
        match &self.typed {
            Typed::Deployment(one) => {
                let is_paused = one.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
                is_paused.then(|| "is paused: `kubectl rollout resume` lets it roll".into())
            }
            Typed::StatefulSet(one) => {
                let strategy = one.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
                let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
                let partition = rolling.and_then(|rolling| rolling.partition).unwrap_or_default();
                if partition > 0 {
                    return Some(format!(
                        "has the partition {partition}: pods below it would keep the old value; set it to 0"
                    ));
                }
                replaces_by_itself(strategy.and_then(|strategy| strategy.type_.as_deref()))
            }
            Typed::DaemonSet(one) => {
                let strategy = one.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
                replaces_by_itself(strategy.and_then(|strategy| strategy.type_.as_deref()))
            }
        }
    }

    /// Says why all replicas may be gone at once, where that is so.
    pub(super) fn outage(&self) -> Option<String> {
        match &self.typed {
            Typed::Deployment(one) => {
                let strategy = one.spec.as_ref().and_then(|spec| spec.strategy.as_ref())?;
                if strategy.type_.as_deref() == Some("Recreate") {
                    return Some(
                        "its strategy `Recreate` ends every pod before the first new one starts"
                            .into(),
                    );
                }
                let replicas = one.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
                let most = most_unavailable(strategy.rolling_update.as_ref(), replicas);
                (most >= replicas && most > 0).then(|| {
                    format!("its `maxUnavailable` lets all of its {replicas} pods be gone at once")
                })
            }
            Typed::StatefulSet(one) => {
                let replicas = one.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
                let strategy = one.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
                let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
                let most = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
                let most = most.map_or(1, |most| share(most, replicas, Rounded::Up));
                if replicas == 1 {
                    return Some("it has one pod, which ends before its successor starts".into());
                }
                (most >= replicas && replicas > 0).then(|| {
                    format!("its `maxUnavailable` lets all of its {replicas} pods be gone at once")
                })
            }
            Typed::DaemonSet(one) => {
                let strategy = one.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
                let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
                let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref());
                let surges = surge.is_some_and(|surge| share(surge, 100, Rounded::Up) > 0);
                (!surges).then(|| {
                    "its pod of a node ends before the successor starts there (`maxSurge` is 0)"
                        .into()
                })
            }
        }
    }

    /// Returns how long a rollout may stand still before the cluster itself calls it failed.
    pub(super) fn progress_deadline(&self) -> Option<i32> {
        match &self.typed {
            Typed::Deployment(one) => {
                one.spec.as_ref().and_then(|spec| spec.progress_deadline_seconds)
            }
            Typed::StatefulSet(_) | Typed::DaemonSet(_) => None,
        }
    }

    /// Returns when its controller gave the rollout up, where it did. It says so of the next rollout too, until that moves.
    pub(super) fn gave_up_at(&self) -> Option<jiff::Timestamp> {
        match &self.typed {
            Typed::Deployment(one) => given_up(one.status.as_ref()?)?.last_update_time.as_ref(),
            Typed::StatefulSet(_) | Typed::DaemonSet(_) => None,
        }
        .map(|at| at.0)
    }

    /// Whether the controller has seen the object as it is now.
    pub(super) fn is_observed(&self) -> bool {
        let observed = match &self.typed {
            Typed::Deployment(one) => one.status.as_ref().and_then(|it| it.observed_generation),
            Typed::StatefulSet(one) => one.status.as_ref().and_then(|it| it.observed_generation),
            Typed::DaemonSet(one) => one.status.as_ref().and_then(|it| it.observed_generation),
        };
        observed.is_some_and(|observed| {
            observed > 0 && observed >= self.meta().generation.unwrap_or_default()
        })
    }

    /// Returns the revision that new pods of a StatefulSet get.
    pub(super) fn update_revision(&self) -> Option<&str> {
        match &self.typed {
            Typed::StatefulSet(one) => one.status.as_ref()?.update_revision.as_deref(),
            Typed::Deployment(_) | Typed::DaemonSet(_) => None,
        }
    }

    /// Judges the rollout.
    pub(super) fn progress(&self) -> Progress {
        if !self.is_observed() {
            return Progress::Waits("its controller has not seen the change yet".into());
        }
        match &self.typed {
            Typed::Deployment(one) => deployment(one),
            Typed::StatefulSet(one) => stateful_set(one),
            Typed::DaemonSet(one) => daemon_set(one),
        }
    }
}

fn read<T: DeserializeOwned>(raw: &Value) -> Result<T, CallError> {
    T::deserialize(raw)
        .map_err(|_| CallError::Unknown("the cluster's answer is not understood".into()))
}

fn replaces_by_itself(strategy: Option<&str>) -> Option<String> {
    (strategy == Some("OnDelete")).then(|| {
        "has the strategy `OnDelete`: a roll replaces nothing; set it to `RollingUpdate`".into()
    })
}

/// Returns how many pods of a Deployment may be gone while it rolls. Where that and the surge both come to none, it is one.
fn most_unavailable(rolling: Option<&RollingUpdateDeployment>, replicas: i32) -> i32 {
    let of = |of: Option<&IntOrString>, rounded| match of {
        Some(of) => share(of, replicas, rounded),
        None => share(&IntOrString::String("25%".into()), replicas, rounded),
    };
    let surge = of(rolling.and_then(|rolling| rolling.max_surge.as_ref()), Rounded::Up);
    let most = of(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), Rounded::Down);
    if surge == 0 && most == 0 && !planted!("outage_unforeseen") { 1 } else { most }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rounded {
    Up,
    Down,
}

/// Reads a number or a percentage.
fn share(of: &IntOrString, all: i32, rounded: Rounded) -> i32 {
    match of {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent = text.trim_end_matches('%').parse::<i32>().unwrap_or(0);
            let up = if rounded == Rounded::Up { 99 } else { 0 };
            all.saturating_mul(percent).saturating_add(up) / 100
        }
    }
}

fn given_up(status: &DeploymentStatus) -> Option<&DeploymentCondition> {
    let mut conditions = status.conditions.iter().flatten();
    let progressing = conditions.find(|condition| condition.type_ == "Progressing")?;
    (progressing.reason.as_deref() == Some("ProgressDeadlineExceeded")).then_some(progressing)
}

fn deployment(one: &Deployment) -> Progress {
    let (Some(spec), Some(status)) = (&one.spec, &one.status) else {
        return Progress::Waits("it has no status yet".into());
    };
    if given_up(status).is_some() {
        return Progress::Failed("its rollout made no progress before its deadline".into());
    }
    let wanted = spec.replicas.unwrap_or(1);
    let updated = status.updated_replicas.unwrap_or(0);
    let all = status.replicas.unwrap_or(0);
    let available = status.available_replicas.unwrap_or(0);
    if updated < wanted {
        Progress::Waits(format!("{updated} of {wanted} pods are new"))
    } else if all > updated {
        Progress::Waits(format!("{} old pods are still there", all - updated))
    } else if available < updated {
        Progress::Waits(format!("{available} of {updated} new pods are available"))
    } else {
        Progress::Done
    }
}

fn stateful_set(one: &StatefulSet) -> Progress {
    let (Some(spec), Some(status)) = (&one.spec, &one.status) else {
        return Progress::Waits("it has no status yet".into());
    };
    let (wanted, ready) = (spec.replicas.unwrap_or(1), status.ready_replicas.unwrap_or(0));
    if ready < wanted {
        return Progress::Waits(format!("{ready} of {wanted} pods are ready"));
    }
    if status.update_revision != status.current_revision {
        let updated = status.updated_replicas.unwrap_or(0);
        return Progress::Waits(format!("{updated} of {wanted} pods are new"));
    }
    Progress::Done
}

fn daemon_set(one: &DaemonSet) -> Progress {
    let Some(status) = &one.status else {
        return Progress::Waits("it has no status yet".into());
    };
    let wanted = status.desired_number_scheduled;
    let updated = status.updated_number_scheduled.unwrap_or(0);
    let available = status.number_available.unwrap_or(0);
    if updated < wanted {
        Progress::Waits(format!("{updated} of {wanted} pods are new"))
    } else if available < wanted {
        Progress::Waits(format!("{available} of {wanted} pods are available"))
    } else {
        Progress::Done
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(status: Value) -> Target {
        let raw = json!({
            "metadata": {"name": "app", "generation": 2},
            "spec": {"replicas": 3, "selector": {}, "template": {"spec": {"containers": []}}},
            "status": status
        });
        Target::parse(Kind::Deployment, raw).unwrap()
    }

    fn waits(target: &Target) -> bool {
        matches!(target.progress(), Progress::Waits(_))
    }

    #[test]
    fn a_deployment_is_done_when_kubectl_says_so() {
        let counts = |observed: i64, updated: i32, all: i32, available: i32| {
            deployment(
                json!({"observedGeneration": observed, "updatedReplicas": updated, "replicas": all, "availableReplicas": available}),
            )
        };
        assert!(waits(&counts(1, 3, 3, 3)), "not seen by its controller");
        assert!(waits(&counts(2, 2, 3, 3)), "not all are new");
        assert!(waits(&counts(2, 3, 4, 3)), "an old one is left");
        assert!(waits(&counts(2, 3, 3, 2)), "a new one is not available");
        assert_eq!(counts(2, 3, 3, 3).progress(), Progress::Done);
        let conditions = json!([{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]);
        let stuck = deployment(json!({"observedGeneration": 2, "conditions": conditions}));
        assert!(matches!(stuck.progress(), Progress::Failed(_)));
    }

    #[test]
    fn a_stateful_set_is_done_when_its_revisions_are_one() {
        let with = |ready: i32, current: &str, strategy: Value| {
            let raw = json!({
                "metadata": {"name": "app", "generation": 2},
                "spec": {"replicas": 2, "selector": {}, "template": {}, "updateStrategy": strategy},
                "status": {"observedGeneration": 2, "readyReplicas": ready, "currentRevision": current, "updateRevision": "new"}
            });
            Target::parse(Kind::StatefulSet, raw).unwrap()
        };
        let rolling = json!({"type": "RollingUpdate"});
        assert!(waits(&with(1, "new", rolling.clone())));
        assert!(waits(&with(2, "old", rolling.clone())));
        let done = with(2, "new", rolling);
        assert_eq!((done.progress(), done.obstacle()), (Progress::Done, None));
        assert!(with(2, "new", json!({"type": "OnDelete"})).obstacle().is_some());
        let partition = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 1}});
        assert!(with(2, "new", partition).obstacle().is_some());
    }

    #[test]
    fn a_daemon_set_is_done_when_every_node_has_a_new_pod_that_is_available() {
        let with = |updated: i32, available: i32| {
            let raw = json!({
                "metadata": {"name": "app", "generation": 1},
                "status": {"observedGeneration": 1, "desiredNumberScheduled": 2, "updatedNumberScheduled": updated, "numberAvailable": available}
            });
            Target::parse(Kind::DaemonSet, raw).unwrap()
        };
        assert!(waits(&with(1, 2)));
        assert!(waits(&with(2, 1)));
        assert_eq!(with(2, 2).progress(), Progress::Done);
    }

    #[test]
    fn an_outage_is_foreseen_where_all_pods_may_be_gone_at_once() {
        let with = |strategy: Value| {
            let raw = json!({"spec": {"replicas": 2, "selector": {}, "template": {}, "strategy": strategy}});
            Target::parse(Kind::Deployment, raw).unwrap().outage().is_some()
        };
        let unavailable = |most: Value| {
            with(json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": most}}))
        };
        assert!(with(json!({"type": "Recreate"})));
        assert!(unavailable(json!("100%")));
        assert!(unavailable(json!(2)));
        assert!(!unavailable(json!("50%")));
        assert!(!unavailable(json!(0)));
    }

    #[test]
    fn h51_an_outage_is_foreseen_where_rounding_leaves_no_other_way() {
        let deployment = |replicas: i32, surge: Value, unavailable: Value| {
            let rolling = json!({"maxSurge": surge, "maxUnavailable": unavailable});
            let strategy = json!({"type": "RollingUpdate", "rollingUpdate": rolling});
            let raw = json!({"spec": {"replicas": replicas, "selector": {}, "template": {}, "strategy": strategy}});
            Target::parse(Kind::Deployment, raw).unwrap().outage().is_some()
        };
        assert!(deployment(1, json!(0), json!("25%")), "it is one where both are none");
        assert!(!deployment(1, json!("25%"), json!("25%")), "a surge is rounded up");
        assert!(!deployment(2, json!(0), json!("25%")));
        let stateful_set = |unavailable: Value| {
            let strategy =
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable}});
            let raw = json!({"spec": {"replicas": 3, "selector": {}, "template": {}, "updateStrategy": strategy}});
            Target::parse(Kind::StatefulSet, raw).unwrap().outage().is_some()
        };
        assert!(stateful_set(json!("70%")) && stateful_set(json!(3)));
        assert!(!stateful_set(json!(1)) && !stateful_set(Value::Null));
    }
}
