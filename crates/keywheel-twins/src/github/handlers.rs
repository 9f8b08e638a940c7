//! The handlers of the GitHub twin: what each operation answers.

use axum::extract::{FromRef, FromRequestParts, Path, Query, State as Held};
use axum::http::header::{ACCEPT, AUTHORIZATION, USER_AGENT};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{
    ENVIRONMENT, ENVIRONMENT_KEY, ENVIRONMENT_SECRET, ENVIRONMENTS, KEY, Level, OF_ORGANISATION,
    REPO, REPOSITORY, SECRET, Shared, State,
};
use crate::life::rfc3339;
use crate::query::{Parameters, one};

/// The longest value, in bytes.
const LONGEST: usize = 48 * 1024;

type Answer = Result<Response, Failure>;

pub(super) fn routes(shared: Shared) -> Router {
    Router::new()
        .route(REPO, get(repository))
        .route(KEY, get(public_key))
        .route(SECRET, get(show).put(put).delete(delete))
        .route(OF_ORGANISATION, get(of_organisation))
        .route(ENVIRONMENTS, get(environments))
        .route(ENVIRONMENT_KEY, get(environment_key))
        .route(
            ENVIRONMENT_SECRET,
            get(environment_show).put(environment_put).delete(environment_delete),
        )
        .fallback(nowhere)
        .with_state(shared)
}

/// Words an error as the API does.
pub(super) fn error_body(_: StatusCode, message: &str) -> Value {
    json!({ "message": message, "documentation_url": "https://docs.github.com/rest" })
}

/// An answer that is no success.
struct Failure(StatusCode, &'static str);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(error_body(self.0, self.1))).into_response()
    }
}

const NOT_FOUND: Failure = Failure(StatusCode::NOT_FOUND, "Not Found");
const FORBIDDEN: Failure =
    Failure(StatusCode::FORBIDDEN, "Resource not accessible by personal access token");

const fn invalid(message: &'static str) -> Failure {
    Failure(StatusCode::UNPROCESSABLE_ENTITY, message)
}

/// A request as the API wants every one: from somebody who says who they are, with a token that may do it.
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
        if header(USER_AGENT.as_str()).is_none_or(str::is_empty) {
            return Err(Failure(
                StatusCode::FORBIDDEN,
                "Request forbidden by administrative rules. Please make sure your request has a User-Agent header",
            ));
        }
        let token = header(AUTHORIZATION.as_str()).and_then(|value| value.strip_prefix("Bearer "));
        if token != Some(&state.token) {
            return Err(Failure(StatusCode::UNAUTHORIZED, "Bad credentials"));
        }
        let accepts = header(ACCEPT.as_str()) == Some("application/vnd.github+json");
        if !accepts || header("x-github-api-version") != Some("2022-11-28") {
            return Err(Failure(StatusCode::BAD_REQUEST, "Unsupported version or media type"));
        }
        if state.options.read_only && parts.method != Method::GET {
            return Err(FORBIDDEN);
        }
        Ok(Self)
    }
}

fn is_there(owner: &str, name: &str) -> Result<(), Failure> {
    if format!("{owner}/{name}").eq_ignore_ascii_case(REPOSITORY) { Ok(()) } else { Err(NOT_FOUND) }
}

fn has_environment(environment: &str) -> Result<(), Failure> {
    if environment == ENVIRONMENT { Ok(()) } else { Err(NOT_FOUND) }
}

async fn nowhere(_: Uri) -> Failure {
    NOT_FOUND
}

async fn repository(_: Caller, Path((owner, name)): Path<(String, String)>) -> Answer {
    is_there(&owner, &name)?;
    Ok(Json(json!({ "id": 4711, "full_name": REPOSITORY, "private": true })).into_response())
}

/// How many of a list are on its first page.
fn page(query: &[(String, String)]) -> usize {
    one(query, "per_page").and_then(|size| size.parse().ok()).unwrap_or(30).clamp(1, 100)
}

async fn environments(_: Caller, Path((owner, name)): Path<(String, String)>) -> Answer {
    is_there(&owner, &name)?;
    let all = [json!({ "id": 1, "name": ENVIRONMENT })];
    Ok(Json(json!({ "total_count": all.len(), "environments": all })).into_response())
}

async fn of_organisation(
    _: Caller,
    Held(shared): Held<Shared>,
    Path((owner, name)): Path<(String, String)>,
    Query(query): Parameters,
) -> Answer {
    is_there(&owner, &name)?;
    let at = rfc3339(0);
    let state = shared.state();
    let secret = |name: &String| json!({ "name": name, "created_at": at, "updated_at": at });
    let shown: Vec<Value> = state.shared.iter().take(page(&query)).map(secret).collect();
    Ok(Json(json!({ "total_count": state.shared.len(), "secrets": shown })).into_response())
}

async fn public_key(
    _: Caller,
    Held(shared): Held<Shared>,
    Path((owner, name)): Path<(String, String)>,
) -> Answer {
    is_there(&owner, &name)?;
    Ok(shown_key(&shared.state()))
}

async fn environment_key(
    _: Caller,
    Held(shared): Held<Shared>,
    Path((owner, name, environment)): Path<(String, String, String)>,
) -> Answer {
    is_there(&owner, &name)?;
    has_environment(&environment)?;
    Ok(shown_key(&shared.state()))
}

fn shown_key(state: &State) -> Response {
    let key = STANDARD.encode(state.key.public_key().as_bytes());
    Json(json!({ "key_id": state.key_id, "key": key })).into_response()
}

async fn show(
    _: Caller,
    Held(shared): Held<Shared>,
    Path((owner, name, secret)): Path<(String, String, String)>,
) -> Answer {
    is_there(&owner, &name)?;
    shown(&shared.state(), Level::Repository, &secret)
}

async fn environment_show(
    _: Caller,
    Held(shared): Held<Shared>,
    Path((owner, name, environment, secret)): Path<(String, String, String, String)>,
) -> Answer {
    is_there(&owner, &name)?;
    has_environment(&environment)?;
    shown(&shared.state(), Level::Environment, &secret)
}

fn shown(state: &State, level: Level, name: &str) -> Answer {
    let secret = state.secrets.get(&(level, name.to_uppercase())).ok_or(NOT_FOUND)?;
    let body = json!({
        "name": name.to_uppercase(),
        "created_at": rfc3339(secret.created - secret.created.rem_euclid(1_000)),
        "updated_at": rfc3339(state.updated(secret)),
    });
    Ok(Json(body).into_response())
}

async fn put(
    _: Caller,
    Held(shared): Held<Shared>,
    Path((owner, name, secret)): Path<(String, String, String)>,
    Json(body): Json<Value>,
) -> Answer {
    is_there(&owner, &name)?;
    written(&mut shared.state(), Level::Repository, &secret, &body)
}

async fn environment_put(
    _: Caller,
    Held(shared): Held<Shared>,
    Path((owner, name, environment, secret)): Path<(String, String, String, String)>,
    Json(body): Json<Value>,
) -> Answer {
    is_there(&owner, &name)?;
    has_environment(&environment)?;
    written(&mut shared.state(), Level::Environment, &secret, &body)
}

fn written(state: &mut State, level: Level, name: &str, body: &Value) -> Answer {
    let Some(fields) = body.as_object().filter(|fields| fields.len() == 2) else {
        return Err(invalid("Invalid request."));
    };
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    let (Some(sealed), Some(key_id)) = (text("encrypted_value"), text("key_id")) else {
        return Err(invalid("Invalid request."));
    };
    if !is_name(name) {
        return Err(invalid(
            "Secret names can only contain alphanumeric characters ([a-z], [A-Z], [0-9]) or underscores (_).",
        ));
    }
    if key_id != state.key_id {
        return Err(invalid("Bad request - the key is not the current one"));
    }
    let sealed = STANDARD.decode(sealed).map_err(|_| invalid("encrypted_value is not base64"))?;
    let value =
        state.key.unseal(&sealed).map_err(|_| invalid("encrypted_value cannot be opened"))?;
    if value.is_empty() || value.len() > LONGEST {
        return Err(invalid("The value is empty or too long"));
    }
    let is_new = state.put(level, &name.to_uppercase(), value);
    let status = if is_new { StatusCode::CREATED } else { StatusCode::NO_CONTENT };
    Ok(if is_new { (status, Json(json!({}))).into_response() } else { status.into_response() })
}

fn is_name(name: &str) -> bool {
    let upper = name.to_uppercase();
    let fits = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    upper.chars().all(fits)
        && upper.starts_with(|c: char| !c.is_ascii_digit())
        && !upper.starts_with("GITHUB_")
}

async fn delete(
    _: Caller,
    Held(shared): Held<Shared>,
    Path((owner, name, secret)): Path<(String, String, String)>,
) -> Answer {
    is_there(&owner, &name)?;
    removed(&mut shared.state(), Level::Repository, &secret)
}

async fn environment_delete(
    _: Caller,
    Held(shared): Held<Shared>,
    Path((owner, name, environment, secret)): Path<(String, String, String, String)>,
) -> Answer {
    is_there(&owner, &name)?;
    has_environment(&environment)?;
    removed(&mut shared.state(), Level::Environment, &secret)
}

fn removed(state: &mut State, level: Level, name: &str) -> Answer {
    let removed = state.secrets.remove(&(level, name.to_uppercase()));
    removed.map(|_| StatusCode::NO_CONTENT.into_response()).ok_or(NOT_FOUND)
}
