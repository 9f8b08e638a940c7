//! Rights: what an account must be allowed to do in a cluster, as the rules of a role name it.
//!
//! They are the same that a preflight asks for, so that whoever is given exactly these is not refused later.

/// One thing that is done in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// The cluster, as the drivers of the same one name it.
    pub cluster: String,
    /// The namespace.
    pub namespace: String,
    /// The API group; empty for the core one.
    pub group: String,
    /// The kind in the plural, with its sub-resource: `pods/log`.
    pub resource: String,
    /// The only object; none where its name is not known beforehand, or all are listed.
    pub name: Option<String>,
    /// The verb.
    pub verb: String,
}
