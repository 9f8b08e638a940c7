//! A look at a Secret for whoever proposes a configuration: which keys it has, and what stands in the way of writing it. Its values
//! are dropped as soon as it was read.

use std::collections::BTreeSet;

use keywheel_driver::{CallError, Severity};

use super::marks;
use super::object::Object;
use crate::kubernetes::{Kubernetes, Place};

/// What was seen.
pub(crate) struct Glance {
    /// The keys.
    pub(crate) keys: BTreeSet<String>,
    /// Whether it can be changed no more.
    pub(crate) is_immutable: bool,
    /// That an operator brings it from elsewhere, which stands in the way of writing it itself.
    pub(crate) brought: Option<String>,
    /// What else stands in the way of writing it.
    pub(crate) obstacles: Vec<String>,
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
    let keys: Vec<String> = object.data.keys().cloned().collect();
    let is_brought = marks::is_brought(object);
    let (brought, made) = match marks::maker(object, named) {
        Some(maker) if is_brought => (Some(maker.message), None),
        maker => (None, maker),
    };
    let findings = made.into_iter().chain(marks::writers(object, named, &keys));
    let mut obstacles: Vec<String> = findings
        .filter(|finding| finding.severity == Severity::Blocks)
        .map(|finding| finding.message)
        .collect();
    if object.kind.starts_with("kubernetes.io/") {
        obstacles.push(format!("{named} is of the type `{}`", object.kind));
    }
    let keys = keys.into_iter().collect();
    Glance { keys, is_immutable: object.immutable, brought, obstacles }
}
