//! One namespace of a cluster, as this workload speaks to it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keywheel_core::time::Timestamp;
use keywheel_driver::CallError;
use reqwest::header::{DATE, HeaderMap};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::pod::Skew;
use crate::http::Effect;
use crate::kubernetes::{Kubernetes, Place};

/// A namespace.
pub(super) struct Namespace {
    /// The cluster.
    pub cluster: Kubernetes,
    /// Its name.
    pub name: String,
}

#[derive(Deserialize)]
struct List<T> {
    items: Vec<T>,
}

impl Namespace {
    /// Returns where objects of a kind are.
    pub(super) fn place<'a>(&'a self, group: &'a str, resource: &'a str) -> Place<'a> {
        Place::of(group, "v1", resource).within(&self.name)
    }

    /// Returns the name under which everyone who rolls an object knows it.
    pub(super) fn resource(&self, kind: &str, name: &str) -> String {
        format!("kubernetes:{}:{}/{kind}/{name}", self.cluster.id(), self.name)
    }

    /// Lists objects of a kind, as they are now and not as a cache has them.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        group: &str,
        resource: &str,
        query: &[(&str, &str)],
    ) -> Result<Vec<T>, CallError> {
        let answer = self.cluster.ask(&self.place(group, resource), query).await?;
        if !answer.status.is_success() {
            return Err(answer.error(Effect::Reads));
        }
        answer.decode::<List<T>>().map(|list| list.items)
    }
}

/// Returns how far the cluster's clock is from this machine's, as an answer dates itself; none where it does not, or came too late
/// to tell.
pub(super) fn skew(headers: &HeaderMap, asked: Timestamp, answered: Timestamp) -> Option<Skew> {
    let text = headers.get(DATE)?.to_str().ok()?;
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Skew::of(date.as_millisecond(), asked, answered)
}

/// Writes a selector as a query takes it.
pub(super) fn query(selector: &LabelSelector) -> String {
    let labels: Option<&BTreeMap<_, _>> = selector.match_labels.as_ref();
    let mut parts: Vec<_> =
        labels.into_iter().flatten().map(|(name, value)| format!("{name}={value}")).collect();
    for rule in selector.match_expressions.iter().flatten() {
        let (key, values) = (&rule.key, rule.values.as_deref().unwrap_or_default().join(","));
        parts.push(match rule.operator.as_str() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.clone(),
        });
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_asks_for_what_it_says() {
        let selector = serde_json::json!({"matchLabels": {"app": "web"}, "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["a", "b"]},
            {"key": "old", "operator": "DoesNotExist"},
            {"key": "new", "operator": "Exists"}]});
        let selector = serde_json::from_value(selector).unwrap();
        assert_eq!(query(&selector), "app=web,tier in (a,b),!old,new");
    }
}
