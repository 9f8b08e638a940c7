//! The twin of GitLab's API for CI/CD variables: those of one project.

use std::io;

use axum::extract::{FromRef, FromRequestParts, Path, Query, State as Held};
use axum::http::header::{AUTHORIZATION, HOST, LINK};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::fault::{Faults, Operation};
use crate::query::{Parameters, one};
use crate::random;
use crate::server::Server;

/// The twin's name, as its header says it.
pub const NAME: &str = "gitlab";

/// The one project that the twin has.
pub const PROJECT: &str = "acme/shop";

/// The longest value, in characters.
const LONGEST: usize = 10_000;

/// How a twin behaves where nothing goes wrong.
#[derive(Clone, Debug, Default)]
pub struct TwinOptions {
    /// The port, or 0 for a free one.
    pub port: u16,
    /// Whether the token is one of a developer, who is shown no variable.
    pub developer: bool,
    /// For how many seconds a job may go on, if not for an hour.
    pub build_timeout: Option<u64>,
}

/// A variable as the twin keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// The environments whose jobs are given it.
    pub environment_scope: String,
    /// `env_var` or `file`.
    pub variable_type: String,
    /// Whether jobs of protected branches and tags alone are given it.
    pub protected: bool,
    /// Whether it is masked in logs.
    pub masked: bool,
    /// Whether its value is shown to nobody again.
    pub hidden: bool,
    /// Whether `$` in it is left as it is.
    pub raw: bool,
    /// What people say of it.
    pub description: Option<String>,
}

impl Variable {
    /// Makes a variable for every environment, as GitLab does where nothing else is said.
    pub fn new(key: &str, value: &str) -> Self {
        Self {
            key: key.into(),
            value: value.into(),
            environment_scope: "*".into(),
            variable_type: "env_var".into(),
            protected: false,
            masked: false,
            hidden: false,
            raw: true,
            description: None,
        }
    }

    /// Changes what a body says, and nothing else.
    fn with(self, body: &Value) -> Self {
        let text = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
        let flag = |name: &str| body.get(name).and_then(Value::as_bool);
        Self {
            value: text("value").unwrap_or(self.value),
            environment_scope: text("environment_scope").unwrap_or(self.environment_scope),
            variable_type: text("variable_type").unwrap_or(self.variable_type),
            protected: flag("protected").unwrap_or(self.protected),
            masked: flag("masked").unwrap_or(self.masked),
            raw: flag("raw").unwrap_or(self.raw),
            description: match body.get("description") {
                None => self.description,
                Some(said) => said.as_str().map(str::to_owned),
            },
            ..self
        }
    }

    fn check(&self) -> Result<(), Failure> {
        let no = |field, why: &str| Err(Failure::Field(field, why.to_owned()));
        let is_of_key = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if self.key.is_empty() || self.key.len() > 255 || !self.key.chars().all(is_of_key) {
            return no("key", "can contain only letters, digits and '_'.");
        }
        if !["env_var", "file"].contains(&&*self.variable_type) {
            return no("variable_type", "does not have a valid value");
        }
        if self.value.chars().count() > LONGEST {
            return no("value", "is too long (maximum is 10000 characters)");
        }
        if self.masked && !self.can_be_masked() {
            return no("value", "is invalid");
        }
        if self.hidden && !self.masked {
            return no("masked_and_hidden", "cannot be changed");
        }
        Ok(())
    }

    /// Where it is expanded, most signs might be something else than they seem.
    fn can_be_masked(&self) -> bool {
        let fits = |c: char| match self.raw {
            true => !c.is_whitespace(),
            false => c.is_ascii_alphanumeric() || "_+=/@:.~-".contains(c),
        };
        self.value.chars().count() >= 8 && self.value.chars().all(fits)
    }

    fn shown(&self) -> Value {
        json!({
            "key": self.key,
            "value": if self.hidden { Value::Null } else { json!(self.value) },
            "environment_scope": self.environment_scope,
            "variable_type": self.variable_type,
            "protected": self.protected,
            "masked": self.masked,
            "hidden": self.hidden,
            "raw": self.raw,
            "description": self.description,
        })
    }
}

/// A running twin. It ends when it is dropped.
pub struct Twin {
    server: Server,
    shared: Shared,
    token: String,
}

impl Twin {
    /// Starts a twin on a thread of its own.
    ///
    /// # Errors
    /// Where the port is taken.
    pub fn start(options: TwinOptions) -> io::Result<Self> {
        let port = options.port;
        let token = format!("glpat-{}", random(b"0123456789abcdefghijklmnopqrstuv", 20));
        let state = State { options, token: token.clone(), variables: Vec::new() };
        let shared = Shared::new(state, Faults::new(NAME, OPERATIONS, error_body));
        let router = shared.faults.clone().wrap(routes(shared.clone()));
        Ok(Self { server: Server::start(port, router)?, shared, token })
    }

    /// Returns where its API begins.
    pub fn base_url(&self) -> String {
        format!("http://{}/api/v4", self.server.address())
    }

    /// Returns the one token that it takes.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Returns its script of faults, and its recorder.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Makes a variable, as somebody would in the settings.
    pub fn make(&self, variable: Variable) {
        self.shared.state().variables.push(variable);
    }

    /// Returns every variable, in order.
    pub fn variables(&self) -> Vec<Variable> {
        self.shared.state().variables.clone()
    }
}

/// Everything, behind the lock of the twin.
struct State {
    options: TwinOptions,
    token: String,
    variables: Vec<Variable>,
}

type Shared = crate::shared::Shared<State>;

const PROJECT_PATH: &str = "/api/v4/projects/{project}";
const VARIABLES: &str = "/api/v4/projects/{project}/variables";
const VARIABLE: &str = "/api/v4/projects/{project}/variables/{key}";

/// The operations that a script can name.
pub const OPERATIONS: &[Operation] = &[
    Operation { name: "get_project", method: "GET", path: PROJECT_PATH },
    Operation { name: "list_variables", method: "GET", path: VARIABLES },
    Operation { name: "create_variable", method: "POST", path: VARIABLES },
    Operation { name: "get_variable", method: "GET", path: VARIABLE },
    Operation { name: "update_variable", method: "PUT", path: VARIABLE },
    Operation { name: "delete_variable", method: "DELETE", path: VARIABLE },
];

type Answer = Result<Json<Value>, Failure>;

fn routes(shared: Shared) -> Router {
    Router::new()
        .route(PROJECT_PATH, get(project))
        .route(VARIABLES, get(list).post(create))
        .route(VARIABLE, get(show).put(update).delete(delete))
        .fallback(nowhere)
        .with_state(shared)
}

fn error_body(status: StatusCode, message: &str) -> Value {
    json!({ "message": format!("{} {message}", status.as_u16()) })
}

/// An answer that is no success: in words, or by the field that does not fit.
enum Failure {
    Said(StatusCode, &'static str),
    Field(&'static str, String),
    Conflict,
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, body) = match self {
            Self::Said(status, message) => (status, error_body(status, message)),
            Self::Field(field, why) => {
                (StatusCode::BAD_REQUEST, json!({ "message": { field: [why] } }))
            }
            Self::Conflict => (
                StatusCode::CONFLICT,
                json!({ "message": "There are multiple variables with provided parameters. Please use 'filter[environment_scope]'" }),
            ),
        };
        (status, Json(body)).into_response()
    }
}

const NO_PROJECT: Failure = Failure::Said(StatusCode::NOT_FOUND, "Project Not Found");
const NO_VARIABLE: Failure = Failure::Said(StatusCode::NOT_FOUND, "Variable Not Found");

/// A request with the token, of somebody who may do it.
struct Caller;

impl<S> FromRequestParts<S> for Caller
where
    Shared: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, held: &S) -> Result<Self, Failure> {
        let shared = Shared::from_ref(held);
        let state = shared.state();
        let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = || header(AUTHORIZATION.as_str())?.strip_prefix("Bearer ");
        if header("private-token").or_else(bearer) != Some(&state.token) {
            return Err(Failure::Said(StatusCode::UNAUTHORIZED, "Unauthorized"));
        }
        let is_of_variables = parts.uri.path().contains("/variables");
        if state.options.developer && (is_of_variables || parts.method != Method::GET) {
            return Err(Failure::Said(StatusCode::FORBIDDEN, "Forbidden"));
        }
        Ok(Self)
    }
}

#[derive(Deserialize)]
struct Filter {
    #[serde(rename = "filter[environment_scope]")]
    environment_scope: Option<String>,
}

fn is_there(project: &str) -> Result<(), Failure> {
    if project == PROJECT || project == "42" { Ok(()) } else { Err(NO_PROJECT) }
}

/// Without a scope, a key that several variables have names none of them.
fn find<'v>(
    variables: &'v mut [Variable],
    key: &str,
    filter: &Filter,
) -> Result<&'v mut Variable, Failure> {
    let scope = filter.environment_scope.as_deref();
    let fits =
        |one: &Variable| one.key == key && scope.is_none_or(|scope| scope == one.environment_scope);
    if variables.iter().filter(|one| fits(one)).count() > 1 {
        return Err(Failure::Conflict);
    }
    variables.iter_mut().find(|one| fits(one)).ok_or(NO_VARIABLE)
}

async fn nowhere(_: Uri) -> Failure {
    Failure::Said(StatusCode::NOT_FOUND, "Not Found")
}

async fn project(_: Caller, Held(shared): Held<Shared>, Path(project): Path<String>) -> Answer {
    is_there(&project)?;
    let timeout = shared.state().options.build_timeout.unwrap_or(3_600);
    Ok(Json(json!({ "id": 42, "path_with_namespace": PROJECT, "build_timeout": timeout })))
}

/// One page of the variables: 20, if not another number is asked for, and 100 at most.
async fn list(
    _: Caller,
    Held(shared): Held<Shared>,
    headers: HeaderMap,
    uri: Uri,
    Path(project): Path<String>,
    Query(query): Parameters,
) -> Result<Response, Failure> {
    is_there(&project)?;
    let number = |name| one(&query, name).and_then(|number| number.parse().ok());
    let size: usize = number("per_page").unwrap_or(20).clamp(1, 100);
    let page = number("page").unwrap_or(1).max(1);
    let state = shared.state();
    let from = state.variables.iter().skip((page - 1) * size);
    let shown: Vec<Value> = from.take(size).map(Variable::shown).collect();
    let is_last = page * size >= state.variables.len();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("gitlab");
    let next = page + 1;
    let link = format!("<http://{host}{}?page={next}&per_page={size}>; rel=\"next\"", uri.path());
    Ok(match is_last {
        true => Json(shown).into_response(),
        false => ([(LINK, link)], Json(shown)).into_response(),
    })
}

async fn create(
    _: Caller,
    Held(shared): Held<Shared>,
    Path(project): Path<String>,
    Json(body): Json<Value>,
) -> Result<(StatusCode, Json<Value>), Failure> {
    is_there(&project)?;
    let text = |name: &str| body.get(name).and_then(Value::as_str);
    let missing = |name| Failure::Said(StatusCode::BAD_REQUEST, name);
    let key = text("key").ok_or(missing("key is missing"))?;
    let value = text("value").ok_or(missing("value is missing"))?;
    let is_hidden = body.get("masked_and_hidden").and_then(Value::as_bool).unwrap_or_default();
    let new = Variable { raw: false, ..Variable::new(key, value) }.with(&body);
    let new = Variable { hidden: is_hidden, masked: new.masked || is_hidden, ..new };
    new.check()?;
    let mut state = shared.state();
    let is_same =
        |one: &Variable| one.key == new.key && one.environment_scope == new.environment_scope;
    if state.variables.iter().any(is_same) {
        return Err(Failure::Field("key", format!("({key}) has already been taken")));
    }
    let shown = new.shown();
    state.variables.push(new);
    Ok((StatusCode::CREATED, Json(shown)))
}

async fn show(
    _: Caller,
    Held(shared): Held<Shared>,
    Path((project, key)): Path<(String, String)>,
    Query(filter): Query<Filter>,
) -> Answer {
    is_there(&project)?;
    find(&mut shared.state().variables, &key, &filter).map(|found| Json(found.shown()))
}

async fn update(
    _: Caller,
    Held(shared): Held<Shared>,
    Path((project, key)): Path<(String, String)>,
    Query(filter): Query<Filter>,
    Json(body): Json<Value>,
) -> Answer {
    is_there(&project)?;
    let mut state = shared.state();
    let found = find(&mut state.variables, &key, &filter)?;
    let new = found.clone().with(&body);
    new.check()?;
    *found = new;
    Ok(Json(found.shown()))
}

async fn delete(
    _: Caller,
    Held(shared): Held<Shared>,
    Path((project, key)): Path<(String, String)>,
    Query(filter): Query<Filter>,
) -> Result<StatusCode, Failure> {
    is_there(&project)?;
    let mut state = shared.state();
    let found = find(&mut state.variables, &key, &filter)?.clone();
    state.variables.retain(|one| *one != found);
    Ok(StatusCode::NO_CONTENT)
}
