//! The handlers of the GitHub twin: what each operation answers.

use std::collections::BTreeMap;

use axum::extract::{FromRef, FromRequestParts, Path, Query, State as Held};
use axum::http::header::{ACCEPT, AUTHORIZATION, LINK, USER_AGENT};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{
    ENVIRONMENT, ENVIRONMENT_KEY, ENVIRONMENT_SECRET, ENVIRONMENT_SECRETS, ENVIRONMENTS, ID, KEY,
    Level, OF_ORGANISATION, ORGANISATION_KEY, ORGANISATION_SECRET, ORGANISATION_SECRETS, REPO,
    REPOSITORY, SECRET, SECRETS, Secret, Shared, State, Visibility,
};
use crate::life::rfc3339;
use crate::now;
use crate::query::{Parameters, one};

/// The longest value, in bytes.
const LONGEST: usize = 48 * 1024;

type Answer = Result<Response, Failure>;

pub(super) fn routes(shared: Shared) -> Router {
    Router::new()
        .route(REPO, get(repository))
        .route(ENVIRONMENTS, get(environments))
        .route(OF_ORGANISATION, get(of_organisation))
        .route(KEY, get(public_key))
        .route(ENVIRONMENT_KEY, get(public_key))
        .route(ORGANISATION_KEY, get(public_key))
        .route(SECRETS, get(list))
        .route(ENVIRONMENT_SECRETS, get(list))
        .route(ORGANISATION_SECRETS, get(list))
        .route(SECRET, get(show).put(put).delete(delete))
        .route(ENVIRONMENT_SECRET, get(show).put(put).delete(delete))
        .route(ORGANISATION_SECRET, get(show).put(put).delete(delete))
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
        let mut answer = (self.0, Json(error_body(self.0, self.1))).into_response();
        if self.1 == USED_UP {
            let headers = answer.headers_mut();
            headers.insert("x-ratelimit-remaining", 0.into());
            headers.insert("x-ratelimit-reset", (now() / 1_000 + 1_800).into());
        }
        answer
    }
}

const USED_UP: &str = "API rate limit exceeded";

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
        let token = header(AUTHORIZATION.as_str()).and_then(|value| value.split_once(' '));
        let is_known = token.is_some_and(|(scheme, token)| {
            token == state.token && ["bearer", "token"].contains(&&*scheme.to_ascii_lowercase())
        });
        if !is_known {
            return Err(Failure(StatusCode::UNAUTHORIZED, "Bad credentials"));
        }
        if state.options.used_up {
            return Err(Failure(StatusCode::FORBIDDEN, USED_UP));
        }
        if header(ACCEPT.as_str()).is_some_and(|accepts| !is_accepted(accepts)) {
            return Err(Failure(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "Unsupported 'Accept' header. Must accept 'application/json'.",
            ));
        }
        if header("x-github-api-version").is_some_and(|version| version != "2022-11-28") {
            return Err(Failure(StatusCode::BAD_REQUEST, "It is not a supported version."));
        }
        if state.options.read_only && parts.method != Method::GET {
            return Err(FORBIDDEN);
        }
        Ok(Self)
    }
}

fn is_accepted(accepts: &str) -> bool {
    let is_ours = |kind: &str| {
        ["", "*/*", "application/json"].contains(&kind)
            || kind.starts_with("application/vnd.github")
    };
    accepts.split(',').any(|kind| is_ours(kind.split(';').next().unwrap_or_default().trim()))
}

/// Where secrets are, as a path names it, and which of them; what is not there is the same as what is not shown.
struct Place {
    level: Level,
    secret: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Place {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, held: &S) -> Result<Self, Failure> {
        let Path(named): Path<BTreeMap<String, String>> =
            Path::from_request_parts(parts, held).await.map_err(|_| NOT_FOUND)?;
        let (organisation, repository) = REPOSITORY.split_once('/').ok_or(NOT_FOUND)?;
        let is = |key: &str, one: &str| {
            named.get(key).is_none_or(|named| named.eq_ignore_ascii_case(one))
        };
        let is_there = is("owner", organisation) && is("name", repository);
        if !is_there || named.get("environment").is_some_and(|name| name != ENVIRONMENT) {
            return Err(NOT_FOUND);
        }
        let level = match (named.contains_key("name"), named.contains_key("environment")) {
            (true, true) => Level::Environment,
            (true, false) => Level::Repository,
            (false, _) => Level::Organisation,
        };
        let secret = named.get("secret").map(|name| name.to_uppercase()).unwrap_or_default();
        Ok(Self { level, secret })
    }
}

async fn nowhere(_: Uri) -> Failure {
    NOT_FOUND
}

async fn repository(_: Caller, _: Place) -> Json<Value> {
    Json(json!({ "id": ID, "full_name": REPOSITORY, "private": true }))
}

async fn environments(_: Caller, _: Place) -> Json<Value> {
    let all = [json!({ "id": 1, "name": ENVIRONMENT })];
    Json(json!({ "total_count": all.len(), "environments": all }))
}

async fn of_organisation(
    _: Caller,
    _: Place,
    Held(shared): Held<Shared>,
    uri: Uri,
    Query(query): Parameters,
) -> Response {
    let state = shared.state();
    // Its one repository is private, and sees them all.
    let secrets = state.secrets_of(Level::Organisation);
    let all: Vec<Value> = secrets.map(|(name, secret)| shown(&state, name, secret)).collect();
    page(&all, &uri, &query)
}

async fn list(
    _: Caller,
    place: Place,
    Held(shared): Held<Shared>,
    uri: Uri,
    Query(query): Parameters,
) -> Response {
    let state = shared.state();
    let secrets = state.secrets_of(place.level);
    let all: Vec<Value> = secrets
        .map(|(name, secret)| {
            let mut shown = shown(&state, name, secret);
            if let Some(visibility) = secret.visibility {
                shown["visibility"] = visibility.word().into();
            }
            shown
        })
        .collect();
    page(&all, &uri, &query)
}

/// One page of a list, and where the next one is.
fn page(all: &[Value], uri: &Uri, query: &[(String, String)]) -> Response {
    let number = |name| one(query, name).and_then(|number| number.parse().ok());
    let size: usize = number("per_page").unwrap_or(30).clamp(1, 100);
    let page = number("page").unwrap_or(1);
    let from = page.saturating_sub(1) * size;
    let shown: Vec<_> = all.iter().skip(from).take(size).collect();
    let mut answer = Json(json!({ "total_count": all.len(), "secrets": shown })).into_response();
    if from + size < all.len() {
        let next = page + 1;
        let next = format!(
            "<https://api.github.com{}?per_page={size}&page={next}>; rel=\"next\"",
            uri.path()
        );
        let next = HeaderValue::from_str(&next).expect("a path is plain text");
        answer.headers_mut().insert(LINK, next);
    }
    answer
}

async fn public_key(_: Caller, _: Place, Held(shared): Held<Shared>) -> Json<Value> {
    let state = shared.state();
    let key = STANDARD.encode(state.key.public_key().as_bytes());
    Json(json!({ "key_id": state.key_id, "key": key }))
}

async fn show(_: Caller, place: Place, Held(shared): Held<Shared>) -> Answer {
    let state = shared.state();
    let secret = state.secrets.get(&(place.level, place.secret.clone())).ok_or(NOT_FOUND)?;
    Ok(Json(shown(&state, &place.secret, secret)).into_response())
}

fn shown(state: &State, name: &str, secret: &Secret) -> Value {
    json!({
        "name": name,
        "created_at": rfc3339(secret.created - secret.created.rem_euclid(1_000)),
        "updated_at": rfc3339(state.updated(secret)),
    })
}

async fn put(
    _: Caller,
    Place { level, secret: name }: Place,
    Held(shared): Held<Shared>,
    Json(body): Json<Value>,
) -> Answer {
    let mut state = shared.state();
    let visibility = visibility(level, &body)?;
    let text = |name: &str| body.get(name).and_then(Value::as_str);
    let (Some(sealed), Some(key_id)) = (text("encrypted_value"), text("key_id")) else {
        return Err(invalid("Invalid request."));
    };
    if !is_name(&name) {
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
    let is_new = state.put(level, &name, value, visibility);
    let status = if is_new { StatusCode::CREATED } else { StatusCode::NO_CONTENT };
    Ok(if is_new { (status, Json(json!({}))).into_response() } else { status.into_response() })
}

/// Which repositories see what is written; it cannot be said of single ones here. A body has nothing else than it needs.
fn visibility(level: Level, body: &Value) -> Result<Option<Visibility>, Failure> {
    let fields = body.as_object().map_or(0, serde_json::Map::len);
    let given = body.get("visibility").and_then(Value::as_str);
    Ok(match (level, given, fields) {
        (Level::Repository | Level::Environment, None, 2) => None,
        (Level::Organisation, Some("all"), 3) => Some(Visibility::All),
        (Level::Organisation, Some("private"), 3) => Some(Visibility::Private),
        _ => return Err(invalid("Invalid request.")),
    })
}

fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    name.chars().all(fits)
        && name.starts_with(|c: char| !c.is_ascii_digit())
        && !name.starts_with("GITHUB_")
}

async fn delete(
    _: Caller,
    Place { level, secret: name }: Place,
    Held(shared): Held<Shared>,
) -> Answer {
    let removed = shared.state().secrets.remove(&(level, name));
    removed.map(|_| StatusCode::NO_CONTENT.into_response()).ok_or(NOT_FOUND)
}
