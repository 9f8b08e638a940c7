//! Secrets as containers of slots: the name by which stores and workloads know the same one.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a Secret is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Approach {
    /// The keys of the Secret change, and it keeps its name.
    #[default]
    InPlace,
    /// Each write makes a new, immutable Secret, and the roll of a workload switches its references to that one.
    Versioned,
}

/// A Secret, as the name of a container holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SecretRef {
    /// How it is written.
    pub(crate) approach: Approach,
    /// The cluster, as [`Kubernetes::id`](super::Kubernetes::id) names it.
    pub(crate) cluster: String,
    /// The namespace.
    pub(crate) namespace: String,
    /// The name in the configuration; versions of it have names of their own.
    pub(crate) name: String,
}

const IN_PLACE: &str = "kubernetes-secret:";
const VERSIONED: &str = "kubernetes-secret-versions:";

impl SecretRef {
    /// Reads the name of a container; none where it is no Secret.
    pub(crate) fn parse(container: &str) -> Option<Self> {
        let (approach, rest) = match container.strip_prefix(IN_PLACE) {
            Some(rest) => (Approach::InPlace, rest),
            None => (Approach::Versioned, container.strip_prefix(VERSIONED)?),
        };
        let mut parts = rest.rsplitn(3, '/');
        let (name, namespace, cluster) = (parts.next()?, parts.next()?, parts.next()?);
        let [cluster, namespace, name] = [cluster, namespace, name].map(str::to_owned);
        Some(Self { approach, cluster, namespace, name })
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.approach {
            Approach::InPlace => IN_PLACE,
            Approach::Versioned => VERSIONED,
        };
        write!(f, "{kind}{}/{}/{}", self.cluster, self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_names_cluster_namespace_and_secret() {
        for approach in [Approach::InPlace, Approach::Versioned] {
            let secret = SecretRef {
                approach,
                cluster: "arn:aws:eks:eu-west-1:1:cluster/prod of /etc/kube/config".into(),
                namespace: "shop".into(),
                name: "api-keys".into(),
            };
            assert_eq!(SecretRef::parse(&secret.to_string()), Some(secret));
        }
        for other in ["file:/srv/shop/.env", "kubernetes-secret:shop/api-keys", ""] {
            assert_eq!(SecretRef::parse(other), None);
        }
    }
}
