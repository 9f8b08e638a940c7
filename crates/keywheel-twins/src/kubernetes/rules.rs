//! What the server fills in and refuses: defaults and validation.

use serde_json::Value;

use super::kinds::{Kind, Resource};
use super::status::Status;

/// Fills in what an object leaves open, and refuses what is wrong with it.
///
/// # Errors
/// Where the object is not right, or changes what may not change.
pub(super) fn settle(
    resource: &Resource,
    new: &mut Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    if resource.kind == Kind::Pod && old.is_none() && new.get("status").is_none() {
        new["status"] = serde_json::json!({ "phase": "Pending" });
    }
    Ok(())
}

/// Returns whether a change is one of what is wanted, not only of what is said about it.
pub(super) fn is_new_generation(resource: &Resource, old: &Value, new: &Value) -> bool {
    let differs = |name: &str| old.get(name) != new.get(name);
    let annotated = || old["metadata"].get("annotations") != new["metadata"].get("annotations");
    differs("spec") || (resource.kind == Kind::Deployment && annotated())
}
