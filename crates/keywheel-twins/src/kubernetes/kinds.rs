//! The kinds of objects that the stand-in serves, as discovery describes them.

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1`
    Namespace,
    /// `v1`
    Node,
    /// `v1`
    Pod,
    /// `v1`
    Secret,
    /// `v1`
    ConfigMap,
    /// `v1`
    Service,
    /// `v1`
    ServiceAccount,
    /// `v1`
    Event,
    /// `v1`
    ReplicationController,
    /// `apps/v1`
    Deployment,
    /// `apps/v1`
    ReplicaSet,
    /// `apps/v1`
    StatefulSet,
    /// `apps/v1`
    DaemonSet,
    /// `apps/v1`
    ControllerRevision,
    /// `batch/v1`
    Job,
    /// `batch/v1`
    CronJob,
    /// `networking.k8s.io/v1`
    Ingress,
    /// `policy/v1`
    PodDisruptionBudget,
    /// `autoscaling/v2`
    HorizontalPodAutoscaler,
    /// `rbac.authorization.k8s.io/v1`
    Role,
    /// `rbac.authorization.k8s.io/v1`
    RoleBinding,
    /// `external-secrets.io/v1`
    ExternalSecret,
    /// `external-secrets.io/v1`
    SecretStore,
    /// `external-secrets.io/v1`
    ClusterSecretStore,
}

/// What the server says about a kind.
#[derive(Debug)]
pub struct Resource {
    /// The kind.
    pub kind: Kind,
    /// The group; empty for the core one.
    pub group: &'static str,
    /// The version that objects are kept in.
    pub version: &'static str,
    /// The kind as objects name it.
    pub name: &'static str,
    /// The name in paths.
    pub plural: &'static str,
    /// The name of one.
    pub singular: &'static str,
    /// What kubectl also calls it.
    pub short: &'static [&'static str],
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Whether its status is written apart.
    pub status: bool,
    /// Whether it has the sub-resource `scale`.
    pub scale: bool,
    /// Whether it counts its generations.
    pub generation: bool,
}

impl Resource {
    /// Returns group and version as objects name them.
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.into(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// Returns the plural with its group, as messages name it.
    pub fn qualified(&self) -> String {
        match self.group {
            "" => self.plural.into(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// Returns whether it is a custom resource, whose lists have no keys.
    pub fn is_custom(&self) -> bool {
        self.group == EXTERNAL_SECRETS
    }
}

/// The group of External Secrets Operator.
pub const EXTERNAL_SECRETS: &str = "external-secrets.io";

impl Kind {
    /// Returns what the server says about it.
    pub fn resource(self) -> &'static Resource {
        RESOURCES.iter().find(|resource| resource.kind == self).expect("every kind is in the table")
    }
}

/// Finds a kind by its group and its name in paths.
pub fn find(group: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|resource| resource.group == group && resource.plural == plural)
}

const PLAIN: Resource = Resource {
    kind: Kind::ConfigMap,
    group: "",
    version: "v1",
    name: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short: &["cm"],
    namespaced: true,
    status: false,
    scale: false,
    generation: false,
};

/// Every kind.
pub const RESOURCES: &[Resource] = &[
    PLAIN,
    Resource {
        kind: Kind::Namespace,
        name: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short: &["ns"],
        namespaced: false,
        status: true,
        ..PLAIN
    },
    Resource {
        kind: Kind::Node,
        name: "Node",
        plural: "nodes",
        singular: "node",
        short: &["no"],
        namespaced: false,
        status: true,
        ..PLAIN
    },
    Resource {
        kind: Kind::Pod,
        name: "Pod",
        plural: "pods",
        singular: "pod",
        short: &["po"],
        status: true,
        ..PLAIN
    },
    Resource {
        kind: Kind::Secret,
        name: "Secret",
        plural: "secrets",
        singular: "secret",
        short: &[],
        ..PLAIN
    },
    Resource {
        kind: Kind::Service,
        name: "Service",
        plural: "services",
        singular: "service",
        short: &["svc"],
        status: true,
        ..PLAIN
    },
    Resource {
        kind: Kind::ServiceAccount,
        name: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short: &["sa"],
        ..PLAIN
    },
    Resource {
        kind: Kind::Event,
        name: "Event",
        plural: "events",
        singular: "event",
        short: &["ev"],
        ..PLAIN
    },
    Resource {
        kind: Kind::ReplicationController,
        group: "",
        name: "ReplicationController",
        plural: "replicationcontrollers",
        singular: "replicationcontroller",
        short: &["rc"],
        ..SCALED
    },
    Resource {
        kind: Kind::Deployment,
        name: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short: &["deploy"],
        ..SCALED
    },
    Resource {
        kind: Kind::ReplicaSet,
        name: "ReplicaSet",
        plural: "replicasets",
        singular: "replicaset",
        short: &["rs"],
        ..SCALED
    },
    Resource {
        kind: Kind::StatefulSet,
        name: "StatefulSet",
        plural: "statefulsets",
        singular: "statefulset",
        short: &["sts"],
        ..SCALED
    },
    Resource {
        kind: Kind::DaemonSet,
        name: "DaemonSet",
        plural: "daemonsets",
        singular: "daemonset",
        short: &["ds"],
        scale: false,
        ..SCALED
    },
    Resource {
        kind: Kind::ControllerRevision,
        group: "apps",
        name: "ControllerRevision",
        plural: "controllerrevisions",
        singular: "controllerrevision",
        short: &[],
        ..PLAIN
    },
    Resource {
        kind: Kind::Job,
        group: "batch",
        name: "Job",
        plural: "jobs",
        singular: "job",
        short: &[],
        scale: false,
        ..SCALED
    },
    Resource {
        kind: Kind::CronJob,
        group: "batch",
        name: "CronJob",
        plural: "cronjobs",
        singular: "cronjob",
        short: &["cj"],
        scale: false,
        ..SCALED
    },
    Resource {
        kind: Kind::Ingress,
        group: "networking.k8s.io",
        name: "Ingress",
        plural: "ingresses",
        singular: "ingress",
        short: &["ing"],
        status: true,
        ..PLAIN
    },
    Resource {
        kind: Kind::PodDisruptionBudget,
        group: "policy",
        name: "PodDisruptionBudget",
        plural: "poddisruptionbudgets",
        singular: "poddisruptionbudget",
        short: &["pdb"],
        scale: false,
        ..SCALED
    },
    Resource {
        kind: Kind::HorizontalPodAutoscaler,
        group: "autoscaling",
        version: "v2",
        name: "HorizontalPodAutoscaler",
        plural: "horizontalpodautoscalers",
        singular: "horizontalpodautoscaler",
        short: &["hpa"],
        status: true,
        ..PLAIN
    },
    Resource {
        kind: Kind::Role,
        group: "rbac.authorization.k8s.io",
        name: "Role",
        plural: "roles",
        singular: "role",
        short: &[],
        ..PLAIN
    },
    Resource {
        kind: Kind::RoleBinding,
        group: "rbac.authorization.k8s.io",
        name: "RoleBinding",
        plural: "rolebindings",
        singular: "rolebinding",
        short: &[],
        ..PLAIN
    },
    Resource {
        kind: Kind::ExternalSecret,
        name: "ExternalSecret",
        plural: "externalsecrets",
        singular: "externalsecret",
        short: &["es"],
        ..CUSTOM
    },
    Resource {
        kind: Kind::SecretStore,
        name: "SecretStore",
        plural: "secretstores",
        singular: "secretstore",
        short: &["ss"],
        ..CUSTOM
    },
    Resource {
        kind: Kind::ClusterSecretStore,
        name: "ClusterSecretStore",
        plural: "clustersecretstores",
        singular: "clustersecretstore",
        short: &["css"],
        namespaced: false,
        ..CUSTOM
    },
];

const SCALED: Resource =
    Resource { group: "apps", status: true, scale: true, generation: true, ..PLAIN };

const CUSTOM: Resource =
    Resource { group: EXTERNAL_SECRETS, status: true, generation: true, ..PLAIN };
