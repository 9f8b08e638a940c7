//! What the server answers when it refuses: a `Status` object, worded as the real one words it.

use serde_json::{Value, json};

use super::kinds::Resource;

/// A refusal.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The HTTP status.
    pub code: u16,
    /// The reason, a word that clients match on.
    pub reason: String,
    /// The sentence.
    pub message: String,
    /// More about it.
    pub details: Option<Value>,
}

/// One thing wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The path of the field.
    pub field: String,
    /// The kind of fault, such as `FieldValueInvalid`.
    pub reason: &'static str,
    /// What is said of it.
    pub message: String,
}

impl Cause {
    /// A value that is not one of those allowed; it is repeated as JSON, as the real server repeats it.
    pub fn invalid(field: impl Into<String>, value: &Value, why: &str) -> Self {
        let message = format!("Invalid value: {value}: {why}");
        Self { field: field.into(), reason: "FieldValueInvalid", message }
    }

    /// A field that may not be there, or may not change.
    pub fn forbidden(field: impl Into<String>, why: &str) -> Self {
        let message = format!("Forbidden: {why}");
        Self { field: field.into(), reason: "FieldValueForbidden", message }
    }

    /// A field that is missing.
    pub fn required(field: impl Into<String>, why: &str) -> Self {
        let message = match why {
            "" => "Required value".to_owned(),
            why => format!("Required value: {why}"),
        };
        Self { field: field.into(), reason: "FieldValueRequired", message }
    }

    /// Something that is too large.
    pub fn too_long(field: impl Into<String>, most: usize) -> Self {
        let message = format!("Too long: may not be more than {most} bytes");
        Self { field: field.into(), reason: "FieldValueTooLong", message }
    }
}

impl Status {
    /// A refusal without details.
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), message: message.into(), details: None }
    }

    fn about(mut self, resource: &Resource, name: &str) -> Self {
        let mut details = json!({ "name": name, "kind": resource.plural });
        if !resource.group.is_empty() {
            details["group"] = resource.group.into();
        }
        self.details = Some(details);
        self
    }

    /// There is no such object.
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", resource.qualified());
        Self::new(404, "NotFound", message).about(resource, name)
    }

    /// There is no such path.
    pub fn no_such_path() -> Self {
        let mut status =
            Self::new(404, "NotFound", "the server could not find the requested resource");
        status.details = Some(json!({}));
        status
    }

    /// There is such an object already.
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", resource.qualified());
        Self::new(409, "AlreadyExists", message).about(resource, name)
    }

    /// Somebody else was faster.
    pub fn conflict(resource: &Resource, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict_because(resource, name, why)
    }

    /// A condition of the request does not hold.
    pub fn conflict_because(resource: &Resource, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.qualified());
        Self::new(409, "Conflict", message).about(resource, name)
    }

    /// Others own fields that were applied: each manager with the fields.
    pub fn apply_conflict(conflicts: &[(String, String)]) -> Self {
        let count = match conflicts.len() {
            1 => "1 conflict".to_owned(),
            several => format!("{several} conflicts"),
        };
        let said = match conflicts {
            [(manager, field)] => format!("conflict with {manager}: {field}"),
            several => listed(several),
        };
        let message = format!("Apply failed with {count}: {said}");
        let causes: Vec<_> = conflicts
            .iter()
            .map(|(manager, field)| {
                let message = format!("conflict with {manager}");
                json!({ "reason": "FieldManagerConflict", "message": message, "field": field })
            })
            .collect();
        let mut status = Self::new(409, "Conflict", message);
        status.details = Some(json!({ "causes": causes }));
        status
    }

    /// The object is not right.
    pub fn invalid(resource: &Resource, name: &str, causes: &[Cause]) -> Self {
        let said: Vec<_> =
            causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let said = match said.as_slice() {
            [one] => one.clone(),
            several => format!("[{}]", several.join(", ")),
        };
        let kind = match resource.group {
            "" => resource.name.to_owned(),
            group => format!("{}.{group}", resource.name),
        };
        let mut status = Self::new(422, "Invalid", format!("{kind} \"{name}\" is invalid: {said}"));
        let causes: Vec<_> = causes
            .iter()
            .map(|cause| json!({ "reason": cause.reason, "message": cause.message, "field": cause.field }))
            .collect();
        let mut details = json!({ "name": name, "kind": resource.name, "causes": causes });
        if !resource.group.is_empty() {
            details["group"] = resource.group.into();
        }
        status.details = Some(details);
        status
    }

    /// The request cannot be read.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// The version that was asked for is forgotten.
    pub fn expired(since: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {since} ({oldest})"))
    }

    /// Returns it as the body of an answer.
    pub fn body(&self) -> Value {
        let mut body = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if let Some(details) = &self.details {
            body["details"] = details.clone();
        }
        body
    }
}

/// Lists fields under the managers that own them.
fn listed(conflicts: &[(String, String)]) -> String {
    let mut lines = Vec::new();
    let mut last = "";
    for (manager, field) in conflicts {
        if manager != last {
            lines.push(format!("conflicts with {manager}:"));
            last = manager;
        }
        lines.push(format!("- {field}"));
    }
    lines.join("\n")
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}
