//! Where in its namespace a Secret is: its versions, and everything that names one of them, what runs and what may run again.
//!
//! Secrets are read by name. What this account may not list is told as not seen.

use std::collections::BTreeSet;

use keywheel_driver::store::{Whereabout, Whereabouts};
use keywheel_driver::{CallError, RefusalKind};
use serde_json::Value;

use super::versions::{List, VERSIONS, referrers, words};
use crate::kubernetes::{Access, Approach, Head, Kubernetes, Place, head_of, number_of};
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
        let objects = self.objects(&mut told).await?;
        let versions = self.versions(&objects, &mut told).await?;
        let referrers = objects.iter().filter_map(|(kind, it)| self.referrer(kind, it, &versions));
        told.found.extend(referrers);
        Ok(told)
    }

    /// Lists everything that may name a Secret, with its kind.
    async fn objects(
        &self,
        told: &mut Whereabouts,
    ) -> Result<Vec<(&'static str, Value)>, CallError> {
        let mut objects = Vec::new();
        for (group, resource, kind) in referrers() {
            let place = Place::of(group, "v1", resource).within(self.namespace);
            match self.cluster.read::<List>(&place).await {
                Ok(list) => objects.extend(list.items.into_iter().map(|item| (kind, item))),
                Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::Permission => {
                    told.unseen.push(Access::needed("list", place).in_words());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(objects)
    }

    /// Looks at each Secret that holds it, and returns their names.
    async fn versions(
        &self,
        objects: &[(&str, Value)],
        told: &mut Whereabouts,
    ) -> Result<Vec<String>, CallError> {
        if self.approach == Approach::InPlace {
            let found = self.secret(self.name).await?;
            told.found.push(self.version(self.name, found.as_ref(), "holds it"));
            return Ok(vec![self.name.to_owned()]);
        }
        let head = Head::read(self.cluster, self.namespace, self.name).await?;
        let is_lost = head.tells_of_none(self.name) && self.was_versioned().await?;
        let mut known: BTreeSet<String> = head.known.iter().cloned().collect();
        if is_lost {
            let how =
                "is gone, and named the current version: `keywheel check` says how it is restored";
            let (kind, name) = ("ConfigMap".into(), head_of(self.name));
            told.found.push(Whereabout { kind, name, how: how.into() });
            known.extend(self.named_by(objects));
        }
        for name in &known {
            let found = self.secret(name).await?;
            let how = match *name == head.current {
                _ if is_lost => "holds a version, and it is not known which one is current",
                true => "holds it; the current version",
                false => "holds a former version, which is kept",
            };
            told.found.push(self.version(name, found.as_ref(), how));
        }
        Ok(known.into_iter().collect())
    }

    async fn secret(&self, name: &str) -> Result<Option<Object>, CallError> {
        self.cluster.find(&Place::core("secrets").within(self.namespace).named(name)).await
    }

    async fn was_versioned(&self) -> Result<bool, CallError> {
        let first = self.secret(self.name).await?;
        Ok(first.is_some_and(|first| first.annotation(VERSIONS).is_some()))
    }

    /// Returns the versions that objects name.
    fn named_by(&self, objects: &[(&str, Value)]) -> BTreeSet<String> {
        let texts: Vec<String> = objects.iter().map(|(_, object)| object.to_string()).collect();
        let named = texts.iter().flat_map(|text| words(text));
        named.filter(|word| number_of(word, self.name).is_some()).map(str::to_owned).collect()
    }

    fn version(&self, name: &str, found: Option<&Object>, how: &str) -> Whereabout {
        let missing = found
            .iter()
            .flat_map(|object| self.keys.iter().filter(|key| !object.data.contains_key(*key)));
        let missing: Vec<String> = missing.map(|key| format!("`{key}`")).collect();
        let how = match (found, missing.is_empty()) {
            (None, _) => "is not there".to_owned(),
            (_, true) => how.to_owned(),
            (_, false) => format!("{how}, without {}", missing.join(", ")),
        };
        Whereabout { kind: "Secret".into(), name: name.to_owned(), how }
    }

    /// Says how an object names a version; none where it does not.
    fn referrer(&self, kind: &str, item: &Value, versions: &[String]) -> Option<Whereabout> {
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
