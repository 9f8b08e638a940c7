//! The fault script: which call of which operation goes wrong, and how.
//!
//! ```json
//! [
//!     { "on": "create_service_account", "nth": 1, "fault": "cut" },
//!     { "on": "POST service_accounts", "nth": 2, "fault": { "late_landing": { "after_ms": 200 } } },
//!     { "on": "list_models", "nth": "every", "fault": { "status": { "code": 429, "retry_after": "3600" } } }
//! ]
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::HEADER;
use crate::record::Exchange;
use crate::server::Cut;

/// The rules, the first that applies to a request winning.
pub type Script = Vec<Rule>;

/// One fault and when it happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// An operation by its name (`create_service_account`) or by its method and the last fixed part of its path
    /// (`POST service_accounts`), or `*` for all.
    pub on: String,
    /// Which of the requests that it applies to, counted from the moment the script is set.
    #[serde(default)]
    pub nth: Nth,
    /// What goes wrong.
    pub fault: Fault,
}

impl Rule {
    /// Makes a rule for the first request of an operation.
    pub fn first(on: &str, fault: Fault) -> Self {
        Self { on: on.into(), nth: Nth::default(), fault }
    }

    /// Makes a rule for every request of an operation.
    pub fn every(on: &str, fault: Fault) -> Self {
        Self { on: on.into(), nth: Nth::Every(Every::Every), fault }
    }
}

/// A number counted from 1, or `every`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Nth {
    /// This one only.
    Number(u32),
    /// All of them.
    Every(Every),
}

/// The word `every`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Every {
    /// All of them.
    Every,
}

impl Default for Nth {
    fn default() -> Self {
        Self::Number(1)
    }
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Nothing is done and nothing is answered.
    TimeoutBefore,
    /// It is done and nothing is answered.
    TimeoutAfter,
    /// The connection is cut at once, and it is done later.
    LateLanding {
        /// How much later.
        after_ms: u64,
    },
    /// Another status is answered.
    Status {
        /// The status.
        code: u16,
        /// The text of the header `retry-after`.
        #[serde(default)]
        retry_after: Option<String>,
        /// What the body is.
        #[serde(default)]
        body: Echo,
        /// Whether it is done all the same.
        #[serde(default)]
        applied: bool,
    },
    /// It is done, and the connection is cut before a byte of the answer.
    Cut,
    /// It is done, and the answer stops after its headers.
    Hang,
    /// It is done a second time at once, as where a proxy or a library sends a request again by itself; that answer is given.
    Twice,
    /// It is done, and its answer names another object.
    AnotherId {
        /// Where in the answer an id stands, as a JSON pointer (`/data/id`), or as the element of XML that holds it (`<Id>`).
        at: String,
        /// What stands there instead.
        id: String,
    },
    /// A list is answered as it was a while ago.
    DelayedList {
        /// How long ago.
        for_ms: u64,
    },
}

impl Fault {
    /// Answers a status without anything done.
    pub fn status(code: u16) -> Self {
        Self::Status { code, retry_after: None, body: Echo::Json, applied: false }
    }

    /// Answers that it is asked too often, and wants to be asked again in an hour (H97).
    pub fn busy() -> Self {
        let retry_after = Some("3600".into());
        Self::Status { code: 429, retry_after, body: Echo::Json, applied: false }
    }
}

/// What the body of a scripted status is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Echo {
    /// An error in the twin's own shape.
    #[default]
    Json,
    /// The page of a proxy.
    Html,
    /// An error in the twin's own shape that repeats the credential of the request.
    EchoKey,
}

/// One operation of a twin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its name in scripts and logs.
    pub name: &'static str,
    /// Its method.
    pub method: &'static str,
    /// Its path as the router has it.
    pub path: &'static str,
}

impl Operation {
    fn is(&self, on: &str) -> bool {
        let mut parts = self.path.trim_end_matches('/').rsplit('/');
        let last_fixed = parts.find(|part| !part.starts_with('{')).unwrap_or_default();
        on == "*" || on == self.name || on.split_once(' ') == Some((self.method, last_fixed))
    }
}

/// One request that a twin got, without query, headers and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The operation; none for a path that the twin does not have.
    pub operation: Option<&'static str>,
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// What went wrong with it.
    pub fault: Option<Fault>,
}

/// How far back a list looks, as an extension of the request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lag(pub Duration);

/// How a twin words an error: status and message in, body out.
pub type ErrorBody = fn(StatusCode, &str) -> serde_json::Value;

/// The script of one twin, what came of it, and what was asked. Clones share it.
#[derive(Clone)]
pub struct Faults {
    twin: &'static str,
    operations: &'static [Operation],
    error: ErrorBody,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    rules: Vec<Armed>,
    seen: Vec<Seen>,
    /// How many requests are still to be done later.
    late: usize,
    /// What was asked and answered, where somebody wants it.
    record: Option<Vec<Exchange>>,
}

struct Armed {
    rule: Rule,
    matched: u32,
    fired: bool,
}

/// A rule that names an operation that the twin does not have.
#[derive(Debug, PartialEq, Eq)]
pub struct NoSuchOperation(pub String);

impl std::fmt::Display for NoSuchOperation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the twin has no operation `{}`", self.0)
    }
}

impl std::error::Error for NoSuchOperation {}

impl Faults {
    /// Makes the empty script of a twin.
    pub fn new(twin: &'static str, operations: &'static [Operation], error: ErrorBody) -> Self {
        Self { twin, operations, error, inner: Arc::default() }
    }

    /// Replaces the script; counting begins anew.
    ///
    /// # Errors
    /// Where a rule could never apply.
    pub fn set(&self, script: Script) -> Result<(), NoSuchOperation> {
        for rule in &script {
            if !self.operations.iter().any(|operation| operation.is(&rule.on)) {
                return Err(NoSuchOperation(rule.on.clone()));
            }
        }
        self.lock().rules =
            script.into_iter().map(|rule| Armed { rule, matched: 0, fired: false }).collect();
        Ok(())
    }

    /// Returns the rules that have not happened yet: a test whose fault never fired has proven nothing.
    pub fn unfired(&self) -> Script {
        self.lock()
            .rules
            .iter()
            .filter(|armed| !armed.fired)
            .map(|armed| armed.rule.clone())
            .collect()
    }

    /// Returns whether every request is done that was to be done later.
    pub fn has_landed(&self) -> bool {
        self.lock().late == 0
    }

    /// Returns every request since the start.
    pub fn seen(&self) -> Vec<Seen> {
        self.lock().seen.clone()
    }

    /// Keeps every request and answer from now on.
    pub fn record(&self) {
        self.lock().record = Some(Vec::new());
    }

    /// Returns what was kept, in order.
    pub fn recorded(&self) -> Vec<Exchange> {
        self.lock().record.clone().unwrap_or_default()
    }

    /// Wraps the routes of the twin.
    pub fn wrap(self, router: axum::Router) -> axum::Router {
        router.layer(axum::middleware::from_fn_with_state(self, inject))
    }

    fn strike(&self, method: &str, matched: Option<&str>, path: &str) -> Option<Fault> {
        let operation =
            self.operations.iter().find(|o| o.method == method && Some(o.path) == matched);
        let mut inner = self.lock();
        let fault = operation.and_then(|operation| inner.next(operation));
        inner.seen.push(Seen {
            operation: operation.map(|o| o.name),
            method: method.into(),
            path: path.into(),
            fault: fault.clone(),
        });
        fault
    }

    /// Takes back that a rule has happened: the answer names nothing at this place.
    fn missed(&self, fault: &Fault) {
        let mut inner = self.lock();
        inner
            .rules
            .iter_mut()
            .filter(|armed| armed.rule.fault == *fault)
            .for_each(|armed| armed.fired = false);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Counts the request for every rule that applies to it, and returns the fault of the first whose turn it is.
    fn next(&mut self, operation: &Operation) -> Option<Fault> {
        let mut struck = None;
        for armed in self.rules.iter_mut().filter(|armed| operation.is(&armed.rule.on)) {
            armed.matched += 1;
            let its_turn = match armed.rule.nth {
                Nth::Number(nth) => nth == armed.matched,
                Nth::Every(_) => true,
            };
            if its_turn && struck.is_none() {
                armed.fired = true;
                struck = Some(armed.rule.fault.clone());
            }
        }
        struck
    }
}

/// The longest request that a twin takes.
const LARGEST: usize = 1024 * 1024;

async fn inject(
    State(faults): State<Faults>,
    ConnectInfo(cut): ConnectInfo<Cut>,
    matched: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let matched = matched.as_ref().map(MatchedPath::as_str);
    let fault = faults.strike(request.method().as_str(), matched, request.uri().path());
    let Ok(request) = buffered(request).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let mut response = match fault {
        None => recorded(&faults, request, next).await,
        Some(fault) => misbehave(&faults, fault, &cut, request, next).await,
    };
    response
        .headers_mut()
        .insert(HeaderName::from_static(HEADER), HeaderValue::from_static(faults.twin));
    response
}

/// Answers, and keeps what was asked and answered. What a script makes of an answer is no answer of the provider.
async fn recorded(faults: &Faults, request: Request, next: Next) -> Response {
    if faults.lock().record.is_none() {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let asked = axum::body::to_bytes(body, LARGEST).await.unwrap_or_default();
    let (method, uri) = (parts.method.to_string(), parts.uri.clone());
    let request = Request::from_parts(parts, Body::from(asked.clone()));
    let (parts, body) = next.run(request).await.into_parts();
    let answered = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let exchange = Exchange {
        method,
        path: uri.path().into(),
        query: uri.query().unwrap_or_default().into(),
        body: serde_json::from_slice(&asked).ok(),
        status: parts.status.as_u16(),
        answer: serde_json::from_slice(&answered).ok(),
    };
    faults.lock().record.get_or_insert_default().push(exchange);
    Response::from_parts(parts, Body::from(answered))
}

/// Lets a request go wrong.
pub(crate) async fn misbehave(
    faults: &Faults,
    fault: Fault,
    cut: &Cut,
    mut request: Request,
    next: Next,
) -> Response {
    match fault {
        Fault::TimeoutBefore => std::future::pending().await,
        Fault::TimeoutAfter => {
            next.run(request).await;
            std::future::pending().await
        }
        Fault::LateLanding { after_ms } => {
            faults.lock().late += 1;
            let faults = faults.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(after_ms)).await;
                next.run(request).await;
                faults.lock().late -= 1;
            });
            cut.now();
            StatusCode::OK.into_response()
        }
        Fault::Status { code, retry_after, body, applied } => {
            let key = key_of(request.headers());
            if applied {
                next.run(request).await;
            }
            scripted(faults.error, code, retry_after, body, &key)
        }
        Fault::Cut => {
            let response = next.run(request).await;
            cut.now();
            response
        }
        Fault::Hang => {
            let (parts, _) = next.run(request).await.into_parts();
            let silence =
                futures_util::stream::pending::<Result<Bytes, std::convert::Infallible>>();
            Response::from_parts(parts, Body::from_stream(silence))
        }
        Fault::Twice => {
            let (first, second) = doubled(request).await;
            next.clone().run(first).await;
            next.run(second).await
        }
        Fault::AnotherId { ref at, ref id } => {
            let (mut parts, body) = next.run(request).await.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
            let Some(renamed) = renamed(&body, at, id) else {
                faults.missed(&fault);
                return Response::from_parts(parts, Body::from(body));
            };
            parts.headers.remove(CONTENT_LENGTH);
            Response::from_parts(parts, Body::from(renamed))
        }
        Fault::DelayedList { for_ms } => {
            request.extensions_mut().insert(Lag(Duration::from_millis(for_ms)));
            next.run(request).await
        }
    }
}

/// Makes two requests of one that is taken in already.
async fn doubled(request: Request) -> (Request, Request) {
    let (parts, body) = request.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let again = Request::from_parts(parts.clone(), Body::from(bytes.clone()));
    (Request::from_parts(parts, Body::from(bytes)), again)
}

/// Puts another id into an answer; none where no id stands there.
fn renamed(body: &[u8], at: &str, id: &str) -> Option<Vec<u8>> {
    if at.starts_with('<') {
        let (before, rest) = std::str::from_utf8(body).ok()?.split_once(at)?;
        let (_, after) = rest.split_once('<')?;
        return Some(format!("{before}{at}{id}<{after}").into_bytes());
    }
    let mut answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    let named = answer.pointer_mut(at).filter(|named| named.is_string())?;
    *named = id.into();
    serde_json::to_vec(&answer).ok()
}

/// Takes in the body before anything else happens, so that a late landing has it after the connection is gone.
async fn buffered(request: Request) -> Result<Request, axum::Error> {
    let (parts, body) = request.into_parts();
    let bytes = axum::body::to_bytes(body, LARGEST).await?;
    Ok(Request::from_parts(parts, Body::from(bytes)))
}

/// Returns the credential of a request, wherever the provider has it.
fn key_of(headers: &HeaderMap) -> String {
    let header = headers.get(AUTHORIZATION).or_else(|| headers.get("x-api-key"));
    let value = header.and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.strip_prefix("Bearer ").unwrap_or(value).to_owned()
}

fn scripted(
    error: ErrorBody,
    code: u16,
    retry_after: Option<String>,
    body: Echo,
    key: &str,
) -> Response {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = match body {
        Echo::Json => axum::Json(error(status, "scripted")).into_response(),
        Echo::EchoKey => axum::Json(error(status, &format!("scripted for {key}"))).into_response(),
        Echo::Html => {
            ([(CONTENT_TYPE, "text/html")], "<html><body>bad gateway</body></html>").into_response()
        }
    };
    *response.status_mut() = status;
    if let Some(wait) = retry_after.and_then(|wait| HeaderValue::from_str(&wait).ok()) {
        response.headers_mut().insert(axum::http::header::RETRY_AFTER, wait);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPERATIONS: &[Operation] = &[
        Operation { name: "create_thing", method: "POST", path: "/v1/boxes/{box}/things" },
        Operation { name: "end_thing", method: "DELETE", path: "/v1/boxes/{box}/things/{thing}" },
    ];

    fn faults() -> Faults {
        Faults::new("test", OPERATIONS, |_, message| message.into())
    }

    #[test]
    fn the_script_of_the_documentation_is_read() {
        let of_it = include_str!("fault.rs").lines().map_while(|line| line.strip_prefix("//!"));
        let json = of_it.filter(|line| !line.contains("```")).skip(2).collect::<String>();
        let script: Script = serde_json::from_str(&json).unwrap();
        assert_eq!(script.len(), 3);
    }

    #[test]
    fn a_rule_strikes_when_its_turn_comes() {
        let faults = faults();
        let rule = |nth, fault| Rule { on: "POST things".into(), nth, fault };
        let every = Nth::Every(Every::Every);
        faults.set(vec![rule(Nth::Number(2), Fault::Cut), rule(every, Fault::Hang)]).unwrap();
        let post = || faults.strike("POST", Some(OPERATIONS[0].path), "/v1/boxes/1/things");
        assert_eq!(
            [post(), post(), post()],
            [Some(Fault::Hang), Some(Fault::Cut), Some(Fault::Hang)]
        );
        assert_eq!(faults.strike("DELETE", Some(OPERATIONS[1].path), "/v1/boxes/1/things/2"), None);
        assert_eq!(faults.unfired(), []);
        assert_eq!(faults.seen().len(), 4);
    }

    #[test]
    fn a_rule_that_can_never_strike_is_refused() {
        let typo = vec![Rule::first("POST thing", Fault::Cut)];
        assert_eq!(faults().set(typo), Err(NoSuchOperation("POST thing".into())));
        let unfired = vec![Rule::first("*", Fault::Cut)];
        let faults = faults();
        faults.set(unfired.clone()).unwrap();
        assert_eq!(faults.unfired(), unfired);
    }

    #[test]
    fn the_script_is_read_as_it_is_written() {
        let text = r#"[{"on":"end_thing","nth":"every","fault":{"status":{"code":500,"body":"echo_key"}}},
            {"on":"*","fault":{"late_landing":{"after_ms":5}}}, {"on":"*","fault":"twice"},
            {"on":"*","fault":{"another_id":{"at":"/data/id","id":"key_2"}}}]"#;
        let echo =
            Fault::Status { code: 500, retry_after: None, body: Echo::EchoKey, applied: false };
        let expected = vec![
            Rule::every("end_thing", echo),
            Rule::first("*", Fault::LateLanding { after_ms: 5 }),
            Rule::first("*", Fault::Twice),
            Rule::first("*", Fault::AnotherId { at: "/data/id".into(), id: "key_2".into() }),
        ];
        assert_eq!(serde_json::from_str::<Script>(text).unwrap(), expected);
        let back = serde_json::to_string(&expected).unwrap();
        assert_eq!(serde_json::from_str::<Script>(&back).unwrap(), expected);
    }
}
