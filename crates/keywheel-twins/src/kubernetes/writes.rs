//! The requests that change objects, and what is checked of them before the store judges them.

use std::sync::Arc;

use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::api::{Answer, Asked, ok};
use super::disclosure;
use super::faults::Fault;
use super::kinds::Kind;
use super::objects::{Deletion, How, Key};
use super::patch;
use super::protobuf;
use super::rbac::User;
use super::request::Target;
use super::shapes::{api_version, at_version, listed, scale_of, shown};
use super::status::{Cause, Status};

impl Asked<'_> {
    pub(super) fn create(&self, target: &Target, body: &Bytes) -> Answer {
        let mut object = self.sent(body)?;
        self.check(target, &mut object)?;
        self.admit(&mut object);
        self.note(target, &object);
        let made = self.api.objects.create_as(target.resource.kind, object, self.how(target))?;
        Ok((StatusCode::CREATED, ok(shown(&made, target))).into_response())
    }

    pub(super) fn update(&self, target: &Target, body: &Bytes) -> Answer {
        let mut object = self.sent(body)?;
        self.check(target, &mut object)?;
        if target.resource.is_custom() && object["metadata"]["resourceVersion"].as_str().is_none() {
            let why = "must be specified for an update";
            let cause = Cause::invalid("metadata.resourceVersion", &json!("0x0"), why);
            let name = target.name.as_deref().unwrap_or_default();
            return Err(Status::invalid(target.resource, name, &[cause]));
        }
        self.admit(&mut object);
        let done = self.api.objects.put(&self.key(target), self.how(target), object)?;
        self.note(target, &done);
        Ok(ok(shown(&done, target)))
    }

    pub(super) fn patch(&self, user: &User, target: &Target, body: &Bytes) -> Answer {
        let key = self.key(target);
        let wanted = parsed(body)?;
        if self.call.content_type.starts_with("application/apply-patch+yaml") {
            return self.apply(user, target, wanted);
        }
        let patch = patch_of(&self.call.content_type, target)?;
        let done = self.api.objects.modify(&key, self.how(target), |present| {
            let mut object = at_version(present, &api_version(target));
            patch(&mut object, &wanted)?;
            self.admit(&mut object);
            Ok(object)
        })?;
        self.note(target, &done);
        Ok(ok(shown(&done, target)))
    }

    pub(super) fn apply(&self, user: &User, target: &Target, mut config: Value) -> Answer {
        if self.call.option("fieldManager").is_none() {
            let why = "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
            return Err(Status::new(422, "Invalid", why));
        }
        if config.pointer("/metadata/managedFields").is_some_and(|fields| !fields.is_null()) {
            return Err(Status::bad_request("metadata.managedFields must be nil"));
        }
        self.check(target, &mut config)?;
        let key = self.key(target);
        if self.api.objects.get(&key).is_none() {
            self.authorize(user, target, "create")?;
        }
        let (how, force) = (self.how(target), self.call.is_set("force"));
        let admit = |object: &mut Value| self.admit(object);
        let (done, is_new) = self.api.objects.apply(&key, &config, how, force, admit)?;
        self.note(target, &done);
        let code = if is_new { StatusCode::CREATED } else { StatusCode::OK };
        Ok((code, ok(shown(&done, target))).into_response())
    }

    /// Reads an object in either of the forms in which clients send one.
    pub(super) fn sent(&self, body: &Bytes) -> Result<Value, Status> {
        if !self.call.content_type.starts_with("application/vnd.kubernetes.protobuf") {
            return parsed(body);
        }
        let why = "the body of the request was in an unknown format - accepted media types include: application/json";
        protobuf::read(body).ok_or_else(|| Status::new(415, "UnsupportedMediaType", why))
    }

    /// Refuses an object that is not the one of the path, and fills in what the path says.
    pub(super) fn check(&self, target: &Target, object: &mut Value) -> Result<(), Status> {
        let wanted = api_version(target);
        if let Some(version) = object["apiVersion"].as_str().filter(|version| *version != wanted) {
            let why = format!(
                "the API version in the data ({version}) does not match the expected API version ({wanted})"
            );
            return Err(Status::bad_request(why));
        }
        if object["kind"].as_str().is_some_and(|kind| kind != target.resource.name) {
            let why = "the kind of the provided object does not match the kind of the path";
            return Err(Status::bad_request(why));
        }
        object["apiVersion"] = wanted.into();
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        let metadata = &mut object["metadata"];
        if let Some(namespace) = &target.namespace {
            if metadata["namespace"].as_str().is_some_and(|given| given != namespace) {
                let why = "the namespace of the provided object does not match the namespace sent on the request";
                return Err(Status::bad_request(why));
            }
            metadata["namespace"] = namespace.as_str().into();
        }
        let Some(name) = &target.name else { return Ok(()) };
        match metadata["name"].as_str().map(str::to_owned) {
            Some(given) if given != *name => Err(Status::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            ))),
            _ => {
                metadata["name"] = name.as_str().into();
                Ok(())
            }
        }
    }

    /// Lets admission have its way with what is about to be written.
    pub(super) fn admit(&self, object: &mut Value) {
        if let Some(Fault::DropsAnnotation(name)) = &self.effect.0 {
            for place in ["/metadata/annotations", "/spec/template/metadata/annotations"] {
                if let Some(Value::Object(annotations)) = object.pointer_mut(place) {
                    annotations.remove(name);
                }
            }
        }
    }

    /// Keeps where something that a Secret holds was written to a place that anybody reads.
    pub(super) fn note(&self, target: &Target, object: &Value) {
        let path = match &target.name {
            Some(_) => self.call.path.clone(),
            None => format!(
                "{}/{}",
                self.call.path,
                object["metadata"]["name"].as_str().unwrap_or_default()
            ),
        };
        self.api.faults.disclose(disclosure::find(&path, object, &self.api.objects));
    }

    pub(super) fn deletion(&self, body: &Bytes) -> Result<Deletion, Status> {
        let options = if body.is_empty() { json!({}) } else { parsed(body)? };
        let text = |at: &str| options.pointer(at).and_then(Value::as_str).map(str::to_owned);
        let policy = text("/propagationPolicy");
        let policy = policy.as_deref().or(self.call.option("propagationPolicy"));
        let grace = options["gracePeriodSeconds"].as_u64();
        Ok(Deletion {
            uid: text("/preconditions/uid"),
            resource_version: text("/preconditions/resourceVersion"),
            grace_seconds: grace.or_else(|| self.call.number("gracePeriodSeconds")),
            orphan: policy == Some("Orphan"),
            dry_run: self.call.is_dry() || options["dryRun"] == json!(["All"]),
        })
    }

    pub(super) fn delete(&self, target: &Target, body: &Bytes) -> Answer {
        let key = self.key(target);
        let deletion = self.deletion(body)?;
        let last = self.api.objects.delete(&key, &deletion)?;
        if last.pointer("/metadata/deletionTimestamp").is_some()
            && self.api.objects.get(&key).is_some()
        {
            return Ok(ok(shown(&last, target)));
        }
        let mut details = json!({ "name": key.name, "kind": target.resource.plural, "uid": last["metadata"]["uid"] });
        if !target.resource.group.is_empty() {
            details["group"] = target.resource.group.into();
        }
        Ok(ok(json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
        })))
    }

    pub(super) fn delete_all(&self, target: &Target, body: &Bytes) -> Answer {
        let deletion = self.deletion(body)?;
        let selector = self.selector()?;
        let kind = target.resource.kind;
        let (found, revision) = self.api.objects.list(kind, target.namespace.as_deref());
        let mut gone = Vec::new();
        for object in found.iter().filter(|object| selector.matches(object)) {
            self.api.objects.delete(&Key::of(kind, object), &deletion)?;
            gone.push(listed(object, target));
        }
        Ok(ok(json!({
            "kind": format!("{}List", target.resource.name),
            "apiVersion": api_version(target),
            "metadata": { "resourceVersion": revision.to_string() },
            "items": gone,
        })))
    }

    pub(super) fn scale(&self, target: &Target, body: &Bytes) -> Answer {
        let wanted = self.sent(body)?;
        let key = self.key(target);
        let how = How { subresource: "scale", ..self.how(target) };
        let done = self.api.objects.modify(&key, how, |present| {
            let mut scale = scale_of(present);
            match self.call.verb {
                "patch" => patch_of(&self.call.content_type, target)?(&mut scale, &wanted)?,
                _ => scale = wanted.clone(),
            }
            let mut object = present.clone();
            object["spec"]["replicas"] = scale["spec"]["replicas"].as_u64().unwrap_or(0).into();
            if let Some(version) = scale["metadata"].get("resourceVersion") {
                object["metadata"]["resourceVersion"] = version.clone();
            }
            Ok(object)
        })?;
        Ok(ok(scale_of(&done)))
    }

    /// Deletes a pod unless a budget forbids it.
    pub(super) fn evict(&self, target: &Target, body: &Bytes) -> Answer {
        let pod = self.present(target)?;
        let (budgets, _) =
            self.api.objects.list(Kind::PodDisruptionBudget, target.namespace.as_deref());
        let guards = |budget: &&Arc<Value>| {
            let labels = budget.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
            labels.is_some_and(|labels| {
                labels
                    .iter()
                    .all(|(name, value)| pod["metadata"]["labels"].get(name) == Some(value))
            })
        };
        let spent =
            |budget: &Arc<Value>| budget["status"]["disruptionsAllowed"].as_u64().unwrap_or(0) == 0;
        if budgets.iter().filter(guards).any(spent) {
            let why = "Cannot evict pod as it would violate the pod's disruption budget.";
            return Err(Status::new(429, "TooManyRequests", why));
        }
        let options = parsed(body)?["deleteOptions"].take();
        let options = if options.is_null() { json!({}) } else { options };
        self.api.objects.delete(&self.key(target), &self.deletion(&options.to_string().into())?)?;
        Ok((StatusCode::CREATED, ok(json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" }))).into_response())
    }
}

type Patch = fn(&mut Value, &Value) -> Result<(), Status>;

fn parsed(body: &Bytes) -> Result<Value, Status> {
    let found: Result<Value, _> = serde_json::from_slice(body);
    match found {
        Ok(found) if found.is_object() || found.is_array() => Ok(found),
        _ => Err(Status::bad_request("the object provided is unrecognized (must be of type JSON)")),
    }
}

/// Returns how a patch of a content type is done.
fn patch_of(content_type: &str, target: &Target) -> Result<Patch, Status> {
    match content_type.split(';').next().unwrap_or_default() {
        "application/json-patch+json" => Ok(patch::json_patch),
        "application/merge-patch+json" => Ok(|object, wanted| {
            patch::merge(object, wanted);
            Ok(())
        }),
        "application/strategic-merge-patch+json" if !target.resource.is_custom() => {
            Ok(patch::strategic)
        }
        _ => {
            let mut accepted = vec!["application/json-patch+json", "application/merge-patch+json"];
            if !target.resource.is_custom() {
                accepted.push("application/strategic-merge-patch+json");
            }
            accepted.push("application/apply-patch+yaml");
            let why = format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            );
            Err(Status::new(415, "UnsupportedMediaType", why))
        }
    }
}
