//! The API server: who asks, whether it may, and what it gets.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Extension, Request, State};
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use axum::http::{StatusCode, request::Parts};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::disclosure;
use super::discovery;
use super::faults::{Fault, Faults};
use super::kinds::Kind;
use super::objects::{Deletion, How, Key, Objects};
use super::patch;
use super::port_forward;
use super::protobuf;
use super::rbac::{self, User};
use super::request::{Call, Route, Target};
use super::selector::Selector;
use super::status::Status;
use super::watching;
use crate::HEADER;
use crate::fault::Lag;
use crate::server::Cut;

/// The longest request that the server takes.
const LARGEST: usize = 3 * 1024 * 1024;

/// Which log is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOf {
    /// The pod.
    pub pod: Key,
    /// The container; none for the only one.
    pub container: Option<String>,
    /// Whether that of the container before the last restart is meant.
    pub previous: bool,
}

/// Hands over the log of a container; none where it has none yet.
pub(super) type Logs = Arc<dyn Fn(&LogOf) -> Option<String> + Send + Sync>;

/// What the server works on. Clones share it.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) objects: Objects,
    pub(super) faults: Faults,
    pub(super) beta: bool,
    users: Arc<Mutex<Vec<User>>>,
    logs: Arc<Mutex<Option<Logs>>>,
}

/// What a fault does to a request inside the server.
#[derive(Clone, Debug, Default)]
struct Effect(Option<Fault>);

type Answer = Result<Response, Status>;

impl Api {
    pub(super) fn new(objects: Objects, beta: bool) -> Self {
        Self {
            objects,
            faults: Faults::default(),
            beta,
            users: Arc::default(),
            logs: Arc::default(),
        }
    }

    pub(super) fn router(&self) -> Router {
        let inject = axum::middleware::from_fn_with_state(self.clone(), inject);
        Router::new().fallback(handle).with_state(self.clone()).layer(inject)
    }

    pub(super) fn users(&self) -> MutexGuard<'_, Vec<User>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_logs(&self, logs: Logs) {
        *self.logs.lock().unwrap_or_else(PoisonError::into_inner) = Some(logs);
    }

    /// Returns who asks: by its token, or by the name in the path where a client sends no token over plain HTTP.
    fn user(&self, call: &Call) -> Option<User> {
        let users = self.users();
        let found = match (&call.token, &call.named_user) {
            (Some(token), _) => users.iter().find(|user| user.token == *token),
            (None, Some(name)) => users.iter().find(|user| user.name == *name),
            (None, None) => None,
        };
        found.cloned()
    }
}

/// Reads what is asked, keeps it, and lets it go wrong where the script says so.
async fn inject(
    State(api): State<Api>,
    ConnectInfo(cut): ConnectInfo<Cut>,
    request: Request,
    next: Next,
) -> Response {
    let (mut parts, body) = request.into_parts();
    let call = Call::read(&parts);
    let Ok(bytes) = axum::body::to_bytes(body, LARGEST).await else {
        let why = format!("Request entity too large: limit is {LARGEST}");
        return refusal(&Status::new(413, "RequestEntityTooLarge", why));
    };
    let user = api.user(&call).map(|user| user.name).unwrap_or_default();
    let (index, fault) = api.faults.strike(&call, &user);
    if fault == Some(Fault::Recreated) {
        recreate(&api, &call);
    }
    let scripted = match &fault {
        Some(Fault::Http(fault)) => Some(fault.clone()),
        _ => None,
    };
    parts.extensions.insert(call);
    parts.extensions.insert(Effect(fault));
    let request = Request::from_parts(parts, Body::from(bytes));
    let mut response = match scripted {
        Some(fault) => {
            let http = &api.faults.http;
            patient(crate::fault::misbehave(http, fault, &cut, request, next).await).await
        }
        None => next.run(request).await,
    };
    api.faults.answered(index, response.status().as_u16());
    response
        .headers_mut()
        .insert(HeaderName::from_static(HEADER), HeaderValue::from_static(super::NAME));
    response
}

/// Says in the body too when to ask again: many clients read it there only.
async fn patient(response: Response) -> Response {
    let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let Some(seconds) = after.and_then(|text| text.parse::<u64>().ok()) else { return response };
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let Ok(mut status) = serde_json::from_slice::<Value>(&bytes) else {
        return Response::from_parts(parts, Body::from(bytes));
    };
    status["details"]["retryAfterSeconds"] = seconds.into();
    let mut told = ok(status);
    *told.status_mut() = parts.status;
    told.headers_mut().insert(RETRY_AFTER, seconds.into());
    told
}

fn recreate(api: &Api, call: &Call) {
    if let Route::Objects(Target { resource, namespace, name: Some(name), .. }) = &call.route {
        let key = Key { kind: resource.kind, namespace: namespace.clone(), name: name.clone() };
        api.objects.recreate(&key);
    }
}

async fn handle(
    State(api): State<Api>,
    Extension(call): Extension<Call>,
    Extension(effect): Extension<Effect>,
    lag: Option<Extension<Lag>>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    // It is taken in already.
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let lag = lag.map(|Extension(Lag(lag))| lag);
    let asked = Asked { api: &api, call: &call, effect: &effect, lag };
    asked.answer(parts, &body).unwrap_or_else(|status| refusal(&status))
}

fn refusal(status: &Status) -> Response {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, axum::Json(status.body())).into_response()
}

fn ok(body: Value) -> Response {
    axum::Json(body).into_response()
}

/// One request on its way through the server.
struct Asked<'a> {
    api: &'a Api,
    call: &'a Call,
    effect: &'a Effect,
    lag: Option<Duration>,
}

impl Asked<'_> {
    fn answer(&self, parts: Parts, body: &Bytes) -> Answer {
        let user = self.api.user(self.call);
        let user = user.ok_or_else(|| Status::new(401, "Unauthorized", "Unauthorized"))?;
        match &self.call.route {
            Route::Discovery => match discovery::answer(&self.call.path, self.api.beta) {
                Some(Value::String(text)) => Ok(text.into_response()),
                Some(found) => Ok(ok(found)),
                None => Err(Status::no_such_path()),
            },
            Route::Review => self.review(&user, body),
            Route::Nowhere => Err(Status::no_such_path()),
            Route::Objects(target) => {
                if !discovery::is_served(target.resource, &target.version, self.api.beta) {
                    return Err(Status::no_such_path());
                }
                self.authorize(&user, target, self.call.verb)?;
                if let Some(Fault::Refused { code, message }) = &self.effect.0 {
                    return Err(refused_by_webhook(*code, message));
                }
                self.objects(&user, target, parts, body)
            }
        }
    }

    fn authorize(&self, user: &User, target: &Target, verb: &str) -> Result<(), Status> {
        let name = self.call.name();
        let (namespace, sub) = (target.namespace.as_deref(), target.subresource.as_str());
        let asked = rbac::attributes(verb, target.resource, sub, namespace, name.as_deref());
        match user.may(&asked, &self.api.objects) {
            true => Ok(()),
            false => Err(asked.forbidden(&user.name)),
        }
    }

    fn review(&self, user: &User, body: &Bytes) -> Answer {
        let mut review = self.sent(body)?;
        let asked = &review["spec"]["resourceAttributes"];
        let text =
            |name: &str| asked[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let resource = text("resource").unwrap_or_default();
        let asked = rbac::Attributes {
            verb: text("verb").unwrap_or_default(),
            group: text("group").unwrap_or_default(),
            resource: match text("subresource") {
                Some(sub) => format!("{resource}/{sub}"),
                None => resource,
            },
            namespace: text("namespace"),
            name: text("name"),
        };
        let allowed = user.may(&asked, &self.api.objects);
        review["status"] = json!({ "allowed": allowed });
        review["kind"] = "SelfSubjectAccessReview".into();
        review["apiVersion"] = "authorization.k8s.io/v1".into();
        Ok((StatusCode::CREATED, ok(review)).into_response())
    }

    fn objects(&self, user: &User, target: &Target, parts: Parts, body: &Bytes) -> Answer {
        match (self.call.verb, target.subresource.as_str()) {
            ("get", "" | "status") => self.get(target),
            ("list", "") => self.list(target),
            ("watch", "") => self.watch(target),
            ("create", "") => self.create(target, body),
            ("update", "" | "status") => self.update(target, body),
            ("patch", "" | "status") => self.patch(user, target, body),
            ("delete", "") => self.delete(target, body),
            ("deletecollection", "") => self.delete_all(target, body),
            ("get", "scale") => Ok(ok(scale_of(&*self.present(target)?))),
            ("update" | "patch", "scale") => self.scale(target, body),
            ("get", "log") if target.resource.kind == Kind::Pod => self.log(target),
            ("get" | "create", "portforward") if target.resource.kind == Kind::Pod => {
                let ports = self.call.option("ports").unwrap_or_default();
                port_forward::answer(parts, &*self.present(target)?, ports)
            }
            ("create", "eviction") if target.resource.kind == Kind::Pod => self.evict(target, body),
            _ => Err(no_such_method()),
        }
    }

    fn key(&self, target: &Target) -> Key {
        let name = target.name.clone().unwrap_or_default();
        Key { kind: target.resource.kind, namespace: target.namespace.clone(), name }
    }

    fn how<'b>(&'b self, target: &'b Target) -> How<'b> {
        How {
            manager: self.call.manager(),
            subresource: &target.subresource,
            dry_run: self.call.is_dry(),
        }
    }

    fn present(&self, target: &Target) -> Result<Arc<Value>, Status> {
        let key = self.key(target);
        let found = match self.lag {
            Some(lag) => self.api.objects.get_at(&key, self.api.objects.revision_before(lag)),
            None => self.api.objects.get(&key),
        };
        found.ok_or_else(|| Status::not_found(target.resource, &key.name))
    }

    fn get(&self, target: &Target) -> Answer {
        let object = self.present(target)?;
        if self.call.accept.contains("as=PartialObjectMetadata") {
            return Ok(ok(metadata_only(&object)));
        }
        Ok(ok(shown(&object, target)))
    }

    fn list(&self, target: &Target) -> Answer {
        let (kind, namespace) = (target.resource.kind, target.namespace.as_deref());
        let selector = self.selector()?;
        let objects = &self.api.objects;
        let resumed = self.call.option("continue").map(resume_at).transpose()?;
        let (found, revision, from) = match (resumed, self.lag) {
            (Some((revision, from)), _) => {
                (objects.list_at(kind, namespace, revision)?, revision, from)
            }
            (None, Some(lag)) => {
                let revision = objects.revision_before(lag);
                (objects.list_at(kind, namespace, revision)?, revision, 0)
            }
            (None, None) => {
                let (found, revision) = objects.list(kind, namespace);
                (found, revision, 0)
            }
        };
        let found: Vec<_> = found.iter().filter(|object| selector.matches(object)).collect();
        let most = self.call.number("limit").and_then(|limit| usize::try_from(limit).ok());
        let until = most.map_or(found.len(), |most| (from + most).min(found.len()));
        let mut metadata = json!({ "resourceVersion": revision.to_string() });
        if until < found.len() {
            metadata["continue"] = format!("{revision}.{until}").into();
            metadata["remainingItemCount"] = (found.len() - until).into();
        }
        let page = found.get(from..until).unwrap_or_default();
        if self.call.accept.contains("as=PartialObjectMetadataList") {
            let items: Vec<_> = page.iter().map(|object| metadata_only(object)).collect();
            return Ok(ok(json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items,
            })));
        }
        let items: Vec<_> = page.iter().map(|object| listed(object, target)).collect();
        Ok(ok(json!({
            "kind": format!("{}List", target.resource.name),
            "apiVersion": api_version(target),
            "metadata": metadata,
            "items": items,
        })))
    }

    fn selector(&self) -> Result<Selector, Status> {
        Selector::read(self.call.option("labelSelector"), self.call.option("fieldSelector"))
    }

    fn watch(&self, target: &Target) -> Answer {
        let selector = self.selector()?;
        let wanted = watching::Wanted {
            since: self.call.number("resourceVersion").unwrap_or(0),
            initial: self.call.is_set("sendInitialEvents"),
            bookmarks: self.call.is_set("allowWatchBookmarks"),
            timeout: Duration::from_secs(self.call.number("timeoutSeconds").unwrap_or(1800)),
            breaks_after: match self.effect.0 {
                Some(Fault::WatchDropped { after }) => Some(after),
                _ => None,
            },
            expired: self.effect.0 == Some(Fault::WatchExpired),
        };
        let version = api_version(target);
        let show = move |object: &Value| at_version(object, &version);
        let (kind, namespace) = (target.resource.kind, target.namespace.as_deref());
        let body = watching::body(&self.api.objects, kind, namespace, selector, wanted, show);
        Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
    }

    fn create(&self, target: &Target, body: &Bytes) -> Answer {
        let mut object = self.sent(body)?;
        self.check(target, &mut object)?;
        self.admit(&mut object);
        self.note(target, &object);
        let made = self.api.objects.create_as(target.resource.kind, object, self.how(target))?;
        Ok((StatusCode::CREATED, ok(shown(&made, target))).into_response())
    }

    fn update(&self, target: &Target, body: &Bytes) -> Answer {
        let mut object = self.sent(body)?;
        self.check(target, &mut object)?;
        self.admit(&mut object);
        let done = self.api.objects.put(&self.key(target), self.how(target), object)?;
        self.note(target, &done);
        Ok(ok(shown(&done, target)))
    }

    fn patch(&self, user: &User, target: &Target, body: &Bytes) -> Answer {
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

    fn apply(&self, user: &User, target: &Target, mut config: Value) -> Answer {
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
    fn sent(&self, body: &Bytes) -> Result<Value, Status> {
        if !self.call.content_type.starts_with("application/vnd.kubernetes.protobuf") {
            return parsed(body);
        }
        let why = "the body of the request was in an unknown format - accepted media types include: application/json";
        protobuf::read(body).ok_or_else(|| Status::new(415, "UnsupportedMediaType", why))
    }

    /// Refuses an object that is not the one of the path, and fills in what the path says.
    fn check(&self, target: &Target, object: &mut Value) -> Result<(), Status> {
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
    fn admit(&self, object: &mut Value) {
        if let Some(Fault::DropsAnnotation(name)) = &self.effect.0 {
            for place in ["/metadata/annotations", "/spec/template/metadata/annotations"] {
                if let Some(Value::Object(annotations)) = object.pointer_mut(place) {
                    annotations.remove(name);
                }
            }
        }
    }

    /// Keeps where something that a Secret holds was written to a place that anybody reads.
    fn note(&self, target: &Target, object: &Value) {
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

    fn deletion(&self, body: &Bytes) -> Result<Deletion, Status> {
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

    fn delete(&self, target: &Target, body: &Bytes) -> Answer {
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

    fn delete_all(&self, target: &Target, body: &Bytes) -> Answer {
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

    fn scale(&self, target: &Target, body: &Bytes) -> Answer {
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

    fn log(&self, target: &Target) -> Answer {
        let pod = self.present(target)?;
        let container = self.call.option("container").map(str::to_owned);
        let named = container.clone().or_else(|| {
            pod.pointer("/spec/containers/0/name").and_then(Value::as_str).map(str::to_owned)
        });
        let previous = self.call.is_set("previous");
        let of = LogOf { pod: self.key(target), container, previous };
        let logs = self.api.logs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(text) = logs.and_then(|logs| logs(&of)) else {
            let (name, pod) = (named.unwrap_or_default(), of.pod.name);
            let why = match previous {
                true => {
                    format!("previous terminated container \"{name}\" in pod \"{pod}\" not found")
                }
                false => format!(
                    "container \"{name}\" in pod \"{pod}\" is waiting to start: ContainerCreating"
                ),
            };
            return Err(Status::bad_request(why));
        };
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let most = self.call.number("tailLines").and_then(|most| usize::try_from(most).ok());
        let tail = lines.len().saturating_sub(most.unwrap_or(usize::MAX));
        Ok(([(CONTENT_TYPE, "text/plain")], lines[tail..].concat()).into_response())
    }

    /// Deletes a pod unless a budget forbids it.
    fn evict(&self, target: &Target, body: &Bytes) -> Answer {
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

fn no_such_method() -> Status {
    Status::new(
        405,
        "MethodNotAllowed",
        "the server does not allow this method on the requested resource",
    )
}

fn refused_by_webhook(code: u16, message: &str) -> Status {
    let message = format!("admission webhook \"policy.example.com\" denied the request: {message}");
    let reason = if code == 422 { "Invalid" } else { "Forbidden" };
    Status::new(code, reason, message)
}

fn parsed(body: &Bytes) -> Result<Value, Status> {
    let found: Result<Value, _> = serde_json::from_slice(body);
    match found {
        Ok(found) if found.is_object() || found.is_array() => Ok(found),
        _ => Err(Status::bad_request("the object provided is unrecognized (must be of type JSON)")),
    }
}

type Patch = fn(&mut Value, &Value) -> Result<(), Status>;

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

/// Reads where a list goes on: the version that it is of, and how many objects were shown.
fn resume_at(text: &str) -> Result<(u64, usize), Status> {
    let parts = text.split_once('.');
    let parts =
        parts.and_then(|(revision, from)| Some((revision.parse().ok()?, from.parse().ok()?)));
    parts.ok_or_else(|| Status::bad_request("continue key is not valid"))
}

fn api_version(target: &Target) -> String {
    match target.resource.group {
        "" => target.version.clone(),
        group => format!("{group}/{}", target.version),
    }
}

fn at_version(object: &Value, version: &str) -> Value {
    let mut object = object.clone();
    object["apiVersion"] = version.into();
    object
}

fn shown(object: &Value, target: &Target) -> Value {
    at_version(object, &api_version(target))
}

/// Returns an object as lists have it: without its kind, but for custom resources.
fn listed(object: &Value, target: &Target) -> Value {
    let mut object = shown(object, target);
    if let Some(object) = object.as_object_mut().filter(|_| !target.resource.is_custom()) {
        object.remove("kind");
        object.remove("apiVersion");
    }
    object
}

fn metadata_only(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"],
    })
}

fn scale_of(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let labels = object.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
    let selector: Vec<_> = labels
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()))
        .collect();
    let mut kept = json!({});
    for name in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        kept[name] = metadata[name].clone();
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": kept,
        "spec": { "replicas": object["spec"]["replicas"] },
        "status": {
            "replicas": object["status"]["replicas"].as_u64().unwrap_or(0),
            "selector": selector.join(","),
        },
    })
}
