//! The twin of AWS: secrets and their versions, access keys of users, and who a key belongs to.
//!
//! It is as strict as the real services where emulators are not: every request is signed, a token stands for one content, a
//! label moves only from where it is said to be, the current label is never taken away, and a user has two keys at most.

mod keys;
mod secrets;
mod signature;

use std::io;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State as Held};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};

use self::keys::Keys;
use self::secrets::Secrets;
use crate::fault::{Faults, Operation};
use crate::server::Server;

/// The twin's name, as its header says it.
pub const NAME: &str = "aws";

const REQUEST_ID: &str = "x-amzn-requestid";

/// The id that every request is given.
const REQUEST: &str = "00000000-0000-4000-8000-000000000000";

/// The longest request that is taken.
const LARGEST: usize = 1024 * 1024;

/// How a twin behaves where nothing goes wrong.
#[derive(Clone, Debug, Default)]
pub struct TwinOptions {
    /// The port, or 0 for a free one.
    pub port: u16,
    /// How long a new key, and one that was switched on again, is refused.
    pub propagation: Duration,
    /// How long a key that was switched off or deleted is accepted.
    pub revocation: Duration,
    /// How many keys a page of a list has, if not a hundred.
    pub page: Option<usize>,
}

/// A running twin. It ends when it is dropped.
pub struct Twin {
    server: Server,
    shared: Shared,
    administrator: Key,
}

/// An access key with its secret.
#[derive(Clone)]
pub struct Key {
    /// Its id.
    pub id: String,
    /// Its secret.
    pub secret: String,
}

/// An access key as the twin knows it, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyState {
    /// Its id.
    pub id: String,
    /// Whether it is not deleted.
    pub live: bool,
    /// Whether it is switched on.
    pub active: bool,
}

/// One version of a secret, without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionState {
    /// Its id.
    pub id: String,
    /// Its labels, sorted.
    pub stages: Vec<String>,
}

/// What is peculiar to a secret that a test makes.
#[derive(Clone, Debug, Default)]
pub struct Peculiar {
    /// Whether AWS rotates it by itself.
    pub rotates: bool,
    /// The kind of a secret that a partner rotates.
    pub kind: Option<String>,
    /// The service of AWS that owns it.
    pub owning_service: Option<String>,
    /// The region of which it is a copy.
    pub primary_region: Option<String>,
    /// Whether it is to be deleted.
    pub deleted: bool,
}

impl Twin {
    /// Starts a twin on a thread of its own.
    ///
    /// # Errors
    /// Where the port is taken.
    pub fn start(options: TwinOptions) -> io::Result<Self> {
        let port = options.port;
        let mut keys = Keys::new(options);
        let administrator = keys.make("administrator");
        let state = State { keys, secrets: Secrets::default() };
        let faults = Faults::new(NAME, OPERATIONS, secrets::error_body);
        let shared = Shared::new(state, faults);
        let server = Server::start(port, router(&shared))?;
        Ok(Self { server, shared, administrator })
    }

    /// Returns the address of every service.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Returns a key that may do everything.
    pub fn administrator(&self) -> &Key {
        &self.administrator
    }

    /// Returns its script of faults, and its recorder.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Makes a user without keys.
    pub fn make_user(&self, user: &str) {
        self.shared.state().keys.make_user(user);
    }

    /// Makes a key of a user, as a person would in the console.
    pub fn make_key(&self, user: &str) -> Key {
        self.shared.state().keys.make(user)
    }

    /// Begins a session of the user or role that an ARN names; returns its key, and the token that goes with it.
    pub fn make_session(&self, arn: &str) -> (Key, String) {
        self.shared.state().keys.begin_session(arn)
    }

    /// Returns every key that a user ever had, in order.
    pub fn keys(&self, user: &str) -> Vec<KeyState> {
        self.shared.state().keys.of(user)
    }

    /// Deletes a key, as a person would.
    pub fn end_key(&self, id: &str) {
        self.shared.state().keys.end(id);
    }

    /// Sets when a key was used last; it shows at once.
    pub fn use_key(&self, id: &str, ago: Duration) {
        self.shared.state().keys.used(id, ago);
    }

    /// Makes a secret, with a first version if there is a content.
    pub fn make_secret(&self, name: &str, content: Option<&str>, peculiar: &Peculiar) {
        self.shared.state().secrets.make(name, content, peculiar);
    }

    /// Returns the versions of a secret, in order.
    pub fn versions(&self, name: &str) -> Vec<VersionState> {
        self.shared.state().secrets.versions(name)
    }

    /// Returns the content of the version that has a label.
    pub fn content(&self, name: &str, stage: &str) -> Option<String> {
        self.shared.state().secrets.content(name, stage)
    }

    /// Puts a label on a version, as a person would.
    pub fn label(&self, name: &str, stage: &str, version: &str) {
        self.shared.state().secrets.label(name, stage, version);
    }

    /// Adds a version with a label, as a person or another program would.
    pub fn put(&self, name: &str, content: &str, stage: &str) -> String {
        self.shared.state().secrets.put_by_hand(name, content, stage)
    }

    /// Returns the tags of a secret.
    pub fn tags(&self, name: &str) -> Vec<(String, String)> {
        self.shared.state().secrets.tags(name)
    }

    /// Sets a tag of a secret, as a person or another program would.
    pub fn tag(&self, name: &str, key: &str, value: &str) {
        self.shared.state().secrets.tag(name, key, value);
    }
}

struct State {
    keys: Keys,
    secrets: Secrets,
}

type Shared = crate::shared::Shared<State>;

/// An answer that is no success.
struct Failure {
    status: StatusCode,
    code: &'static str,
    message: String,
}

fn failure(status: u16, code: &'static str, message: impl Into<String>) -> Failure {
    let status = StatusCode::from_u16(status).expect("a status has three digits");
    Failure { status, code, message: message.into() }
}

/// The operations that a script can name. Every real one is a POST to `/`; the twin tells them apart by a path of their own.
pub const OPERATIONS: &[Operation] = &[
    operation("describe_secret", "/secretsmanager/DescribeSecret"),
    operation("get_secret_value", "/secretsmanager/GetSecretValue"),
    operation("put_secret_value", "/secretsmanager/PutSecretValue"),
    operation("update_secret_version_stage", "/secretsmanager/UpdateSecretVersionStage"),
    operation("tag_resource", "/secretsmanager/TagResource"),
    operation("untag_resource", "/secretsmanager/UntagResource"),
    operation("create_access_key", "/query/CreateAccessKey"),
    operation("list_access_keys", "/query/ListAccessKeys"),
    operation("update_access_key", "/query/UpdateAccessKey"),
    operation("delete_access_key", "/query/DeleteAccessKey"),
    operation("get_access_key_last_used", "/query/GetAccessKeyLastUsed"),
    operation("get_caller_identity", "/query/GetCallerIdentity"),
    operation("assume_role", "/query/AssumeRole"),
];

const fn operation(name: &'static str, path: &'static str) -> Operation {
    Operation { name, method: "POST", path }
}

fn router(shared: &Shared) -> Router {
    let routes = OPERATIONS.iter().fold(Router::new(), |router, operation| {
        let path = operation.path;
        let handler = move |Held(shared): Held<Shared>, headers: HeaderMap, body: Bytes| async move {
            answer(&shared, path, &headers, &body)
        };
        router.route(path, post(handler))
    });
    let routes = shared.faults.clone().wrap(routes.with_state(shared.clone()));
    Router::new().fallback_service(routes).layer(from_fn(to_its_path))
}

/// Gives a request the path of its operation.
async fn to_its_path(request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, LARGEST).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let target = parts.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
    let path = match target.and_then(|target| target.split_once('.')) {
        Some((service, operation)) => format!("/{service}/{operation}"),
        None => {
            let action = parameter(&body, "Action").unwrap_or_default();
            format!("/query/{action}")
        }
    };
    if let Ok(uri) = path.parse() {
        parts.uri = uri;
    }
    next.run(Request::from_parts(parts, body.into())).await
}

fn answer(shared: &Shared, path: &str, headers: &HeaderMap, body: &Bytes) -> Response {
    let mut state = shared.state();
    let caller = signature::caller(&state.keys, headers, body);
    match path.strip_prefix("/secretsmanager/") {
        Some(operation) => {
            let body = serde_json::from_slice(body).unwrap_or(Value::Null);
            let done = caller.and_then(|_| state.secrets.answer(operation, &body));
            in_json(done)
        }
        None => {
            let operation = path.trim_start_matches("/query/");
            let done = caller.and_then(|caller| state.keys.answer(operation, &caller, body));
            in_xml(operation, done)
        }
    }
}

fn in_json(done: Result<Value, Failure>) -> Response {
    let (status, body) = match done {
        Ok(body) => (StatusCode::OK, body),
        Err(failure) => {
            let body = json!({ "__type": failure.code, "message": failure.message });
            (failure.status, body)
        }
    };
    let headers = [("content-type", "application/x-amz-json-1.1"), (REQUEST_ID, REQUEST)];
    (status, headers, body.to_string()).into_response()
}

fn in_xml(operation: &str, done: Result<String, Failure>) -> Response {
    let id = format!("<RequestId>{REQUEST}</RequestId>");
    let (status, body) = match done {
        Ok(result) => (
            StatusCode::OK,
            format!(
                "<{operation}Response><{operation}Result>{result}</{operation}Result><ResponseMetadata>{id}</ResponseMetadata></{operation}Response>"
            ),
        ),
        Err(Failure { status, code, message }) => (
            status,
            format!(
                "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>{id}</ErrorResponse>"
            ),
        ),
    };
    (status, [("content-type", "text/xml"), (REQUEST_ID, REQUEST)], body).into_response()
}

/// Returns a parameter of a form.
fn parameter(body: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| decoded(value)).next()
}

fn decoded(value: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                let digits = std::str::from_utf8(&digits).unwrap_or_default();
                bytes.extend(u8::from_str_radix(digits, 16));
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
