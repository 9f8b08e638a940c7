//! The API server: who asks, whether it may, and what it gets.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Extension, Request, State};
use axum::http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use axum::http::{StatusCode, request::Parts};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::discovery;
use super::exec::{self, Inside};
use super::faults::{Fault, Faults};
use super::kinds::Kind;
use super::objects::{How, Key, Objects};
use super::port_forward;
use super::rbac::{self, User};
use super::request::{Call, Route, Target};
use super::run::Given;
use super::shapes::scale_of;
use super::status::Status;
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

/// Shows what a container was given; none where it does not run.
pub(super) type Insides = Arc<dyn Fn(&Inside) -> Option<Given> + Send + Sync>;

/// What the server works on. Clones share it.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) objects: Objects,
    pub(super) faults: Faults,
    pub(super) beta: bool,
    users: Arc<Mutex<Vec<User>>>,
    logs: Arc<Mutex<Option<Logs>>>,
    insides: Arc<Mutex<Option<Insides>>>,
}

/// What a fault does to a request inside the server.
#[derive(Clone, Debug, Default)]
pub(super) struct Effect(pub(super) Option<Fault>);

pub(super) type Answer = Result<Response, Status>;

impl Api {
    pub(super) fn new(objects: Objects, beta: bool) -> Self {
        Self {
            objects,
            faults: Faults::default(),
            beta,
            users: Arc::default(),
            logs: Arc::default(),
            insides: Arc::default(),
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

    pub(super) fn logs(&self) -> Option<Logs> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_insides(&self, insides: Insides) {
        *self.insides.lock().unwrap_or_else(PoisonError::into_inner) = Some(insides);
    }

    fn inside(&self, of: &Inside) -> Option<Given> {
        let insides = self.insides.lock().unwrap_or_else(PoisonError::into_inner).clone();
        insides.and_then(|insides| insides(of))
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
    let (number, fault) = api.faults.strike(&call, &user, is_dry(&call, &bytes));
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
    api.faults.answered(number, response.status().as_u16());
    response
        .headers_mut()
        .insert(HeaderName::from_static(HEADER), HeaderValue::from_static(super::NAME));
    response
}

/// Returns whether a request is only a try; a delete says so in its body.
fn is_dry(call: &Call, body: &Bytes) -> bool {
    let said =
        || serde_json::from_slice::<Value>(body).is_ok_and(|it| it["dryRun"] == json!(["All"]));
    call.is_dry() || (call.verb == "delete" && said())
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

pub(super) fn ok(body: Value) -> Response {
    axum::Json(body).into_response()
}

/// One request on its way through the server.
pub(super) struct Asked<'a> {
    pub(super) api: &'a Api,
    pub(super) call: &'a Call,
    pub(super) effect: &'a Effect,
    pub(super) lag: Option<Duration>,
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

    pub(super) fn authorize(&self, user: &User, target: &Target, verb: &str) -> Result<(), Status> {
        let name = self.call.name();
        let sub = target.subresource.as_str();
        // A namespace is asked for within itself, so that a role there can allow it.
        let is_namespace = target.resource.kind == Kind::Namespace;
        let own = name.as_deref().filter(|_| is_namespace);
        let namespace = target.namespace.as_deref().or(own);
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
        let resource = target.resource;
        match (self.call.verb, target.subresource.as_str()) {
            (_, "status") if !resource.status => Err(Status::no_such_path()),
            (_, "scale") if !resource.scale => Err(Status::no_such_path()),
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
            ("get", "log") if resource.kind == Kind::Pod => self.log(target),
            ("get" | "create", "portforward") if resource.kind == Kind::Pod => {
                let ports = self.call.option("ports").unwrap_or_default();
                port_forward::answer(parts, &*self.present(target)?, ports)
            }
            ("get" | "create", "exec") if resource.kind == Kind::Pod => {
                self.present(target)?;
                let container = self.call.option("container").map(str::to_owned);
                let hears_errors = self.call.is_set("stderr");
                let inside = Inside { pod: self.key(target), container, hears_errors };
                let command = self.call.options("command");
                exec::answer(parts, &inside, self.api.inside(&inside).as_ref(), &command)
            }
            ("create", "eviction") if resource.kind == Kind::Pod => self.evict(target, body),
            _ => Err(no_such_method()),
        }
    }

    pub(super) fn key(&self, target: &Target) -> Key {
        let name = target.name.clone().unwrap_or_default();
        Key { kind: target.resource.kind, namespace: target.namespace.clone(), name }
    }

    pub(super) fn how<'b>(&'b self, target: &'b Target) -> How<'b> {
        How {
            manager: self.call.manager(),
            subresource: &target.subresource,
            dry_run: self.call.is_dry(),
        }
    }

    pub(super) fn present(&self, target: &Target) -> Result<Arc<Value>, Status> {
        let key = self.key(target);
        let found = match self.lag {
            Some(lag) => self.api.objects.get_at(&key, self.api.objects.revision_before(lag)),
            None => self.api.objects.get(&key),
        };
        found.ok_or_else(|| Status::not_found(target.resource, &key.name))
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
