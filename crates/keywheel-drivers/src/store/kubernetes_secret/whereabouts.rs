//! Where in its namespace a Secret is: its versions, and everything that names one of them, what runs and what may run again.
//!
//! Secrets are read by name. What this account may not list is told as not seen.

use std::collections::BTreeSet;

use keywheel_driver::store::{Whereabout, Whereabouts};
use keywheel_driver::{CallError, RefusalKind};
use serde_json::Value;

use super::versions::{List, REFERRERS};
use crate::kubernetes::{Access, Approach, Head, Kubernetes, Place};
use crate::store::kubernetes_secret::object::Object;
use crate::workload::kubernetes::inventory::{Given, given_by};

/// A Secret and the keys that are asked about.
pub(crate) struct Asked<'a> {
    /// The cluster.
    pub(crate) cluster: &'a Kubernetes,
    /// The namespace.
    pub(crate) namespace: &'a str,
    /// The name.
    pub(crate) name: &'a str,
    /// How it is written.
    pub(crate) approach: Approach,
    /// The keys.
    pub(crate) keys: &'a [String],
}

impl Asked<'_> {
    /// Finds everything that holds or names it.
    ///
    /// # Errors
    /// [`CallError`] where there is no answer.
    pub(crate) async fn find(&self) -> Result<Whereabouts, CallError> {
        let mut told = Whereabouts::default();
        let versions = match self.approach {
            Approach::InPlace => vec![self.name.to_owned()],
            Approach::Versioned => {
                let head = Head::read(self.cluster, self.namespace, self.name).await?;
                let known: BTreeSet<String> = head.known.iter().cloned().collect();
                for name in &known {
                    self.version(name, *name == head.current, &mut told).await?;
                }
                known.into_iter().collect()
            }
        };
        if self.approach == Approach::InPlace {
            self.version(self.name, true, &mut told).await?;
        }
        for (group, resource) in REFERRERS {
            let place = Place::of(group, "v1", resource).within(self.namespace);
            match self.cluster.read::<List>(&place).await {
                Ok(list) => {
                    told.found.extend(
                        list.items
                            .iter()
                            .filter_map(|item| self.referrer(resource, item, &versions)),
                    );
                }
                Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::Permission => {
                    told.unseen.push(Access::needed("list", place).in_words());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(told)
    }

    async fn version(
        &self,
        name: &str,
        is_current: bool,
        told: &mut Whereabouts,
    ) -> Result<(), CallError> {
        let place = Place::core("secrets").within(self.namespace).named(name);
        let found: Option<Object> = self.cluster.find(&place).await?;
        let how = match (&found, is_current, self.approach) {
            (None, ..) => "is not there",
            (Some(_), _, Approach::InPlace) => "holds it",
            (Some(_), true, Approach::Versioned) => "holds it; the current version",
            (Some(_), false, Approach::Versioned) => "holds a former version, which is kept",
        };
        let missing = found
            .iter()
            .flat_map(|object| self.keys.iter().filter(|key| !object.data.contains_key(*key)));
        let missing: Vec<String> = missing.map(|key| format!("`{key}`")).collect();
        let how = match missing.is_empty() {
            true => how.to_owned(),
            false => format!("{how}, without {}", missing.join(", ")),
        };
        told.found.push(Whereabout { kind: "Secret".into(), name: name.to_owned(), how });
        Ok(())
    }

    /// Says how an object names a version; none where it does not.
    fn referrer(&self, resource: &str, item: &Value, versions: &[String]) -> Option<Whereabout> {
        let kind = kind_of(resource);
        let name = item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let mut ways = Vec::new();
        let given = given_by(kind, item);
        for version in versions {
            let given: Vec<&Given> =
                given.iter().filter(|given| given.secret == *version).collect();
            let asked = given.iter().filter(|given| self.asks_about(given));
            let hows: BTreeSet<&str> = asked.map(|given| given.how).collect();
            let named = match self.approach {
                Approach::InPlace => String::new(),
                Approach::Versioned => format!(" of `{version}`"),
            };
            if !hows.is_empty() {
                let hows: Vec<&str> = hows.into_iter().collect();
                ways.push(format!("reads it{named} by {}", hows.join(", ")));
            } else if given.is_empty() && is_named(item, version) {
                ways.push(format!("names `{version}`"));
            }
        }
        if ways.is_empty() {
            return None;
        }
        let how =
            [ways.join("; "), self.state(kind, item)].into_iter().filter(|part| !part.is_empty());
        Some(Whereabout { kind: kind.into(), name, how: how.collect::<Vec<_>>().join("; ") })
    }

    /// Says whether an object runs, or what would make it run.
    fn state(&self, kind: &str, item: &Value) -> String {
        let replicas = item["spec"]["replicas"].as_u64().unwrap_or(1);
        match kind {
            "Pod" => match item["status"]["phase"].as_str() {
                Some(phase @ ("Succeeded" | "Failed" | "Pending" | "Running")) => {
                    phase.to_lowercase()
                }
                _ => String::new(),
            },
            "Deployment" | "StatefulSet" | "ReplicationController" if replicas == 0 => {
                "scaled to zero".into()
            }
            "ReplicaSet" if replicas == 0 => "history, to which a rollout can be undone".into(),
            "ControllerRevision" => "history, to which a rollout can be undone".into(),
            "CronJob" if item["spec"]["suspend"] == true => "suspended".into(),
            "CronJob" if self.approach == Approach::Versioned => {
                "its next run reads that one".into()
            }
            "CronJob" => "its next run reads anew".into(),
            "Job" => match crate::workload::kubernetes::inventory::is_over(item) {
                true => "over".into(),
                false => "runs".into(),
            },
            _ => String::new(),
        }
    }

    fn asks_about(&self, given: &Given) -> bool {
        given.keys.as_ref().is_none_or(|given| given.iter().any(|key| self.keys.contains(key)))
    }
}

/// Whether an object names a Secret, though no container of it is given that: a volume that nothing mounts, or a service account.
fn is_named(object: &Value, secret: &str) -> bool {
    let is = |named: &Value| named == secret;
    match object {
        Value::Array(items) => items.iter().any(|item| is_named(item, secret)),
        Value::Object(fields) => fields.iter().any(|(field, held)| match field.as_str() {
            "secretName" => is(held),
            "secret" | "secretRef" | "secretKeyRef" => is(&held["name"]) || is(&held["secretName"]),
            "secrets" | "imagePullSecrets" => {
                held.as_array().is_some_and(|held| held.iter().any(|one| is(&one["name"])))
            }
            _ => is_named(held, secret),
        }),
        _ => false,
    }
}

fn kind_of(resource: &str) -> &'static str {
    match resource {
        "pods" => "Pod",
        "serviceaccounts" => "ServiceAccount",
        "deployments" => "Deployment",
        "statefulsets" => "StatefulSet",
        "daemonsets" => "DaemonSet",
        "replicasets" => "ReplicaSet",
        "controllerrevisions" => "ControllerRevision",
        "jobs" => "Job",
        "replicationcontrollers" => "ReplicationController",
        "ingresses" => "Ingress",
        _ => "CronJob",
    }
}
