//! A look at a Secret for whoever proposes a configuration: which keys it has, and what stands in the way of writing it. Its values
//! are dropped as soon as it was read.

use std::collections::{BTreeMap, BTreeSet};

use keywheel_driver::{CallError, Finding, Severity};

use super::marks;
use super::object::Object;
use crate::kubernetes::{Kubernetes, Place, VERSION_OF};

/// What was seen.
pub(crate) struct Glance {
    /// The keys.
    pub(crate) keys: BTreeSet<String>,
    /// Whether it can be changed no more.
    pub(crate) is_immutable: bool,
    /// That an operator brings it from elsewhere, which stands in the way of writing it itself.
    pub(crate) brought: Option<String>,
    /// What else stands in the way of writing any of it.
    pub(crate) obstacles: Vec<String>,
    /// What stands in the way of writing some of its keys.
    pub(crate) of_keys: BTreeMap<String, Vec<String>>,
    /// The Secret that it is a version of.
    pub(crate) version_of: Option<String>,
}

/// Looks at one Secret; none where it is not there.
///
/// # Errors
/// [`CallError`] where there is no answer, or it may not be read.
pub(crate) async fn at(
    cluster: &Kubernetes,
    namespace: &str,
    name: &str,
) -> Result<Option<Glance>, CallError> {
    let place = Place::core("secrets").within(namespace).named(name);
    let found: Option<Object> = cluster.find(&place).await?;
    Ok(found.map(|object| glance(&object, &format!("Secret `{namespace}/{name}`"))))
}

fn glance(object: &Object, named: &str) -> Glance {
    let is_brought = marks::is_brought(object);
    let made = blocks(marks::maker(object, named));
    let (brought, mut obstacles) =
        if is_brought { (made.into_iter().next(), Vec::new()) } else { (None, made) };
    if object.kind.starts_with("kubernetes.io/") {
        obstacles.push(format!("{named} is of the type `{}`", object.kind));
    }
    let of_key = |key: &String| {
        let why = blocks(marks::writers(object, named, std::slice::from_ref(key)));
        (!why.is_empty()).then(|| (key.clone(), why))
    };
    Glance {
        keys: object.data.keys().cloned().collect(),
        is_immutable: object.immutable,
        brought,
        obstacles,
        of_keys: object.data.keys().filter_map(of_key).collect(),
        version_of: object.annotation(VERSION_OF).map(str::to_owned),
    }
}

fn blocks(findings: impl IntoIterator<Item = Finding>) -> Vec<String> {
    let blocks = findings.into_iter().filter(|finding| finding.severity == Severity::Blocks);
    blocks.map(|finding| finding.message).collect()
}
