//! The handlers of the twin of a Key Vault: what each operation answers.

use std::collections::BTreeMap;

use axum::extract::{Extension, FromRef, FromRequestParts, Path, Query, State as Held};
use axum::http::header::{AUTHORIZATION, HOST, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::state::{State, Version};
use super::{DELETED, NEWEST, RECOVER, SECRET, Shared, TENANT, VERSION, VERSIONS, identity};
use crate::fault::Lag;
use crate::life::as_of;
use crate::query::{Parameters, one};

/// The most versions on a page.
const PAGE: usize = 25;

/// The longest value.
const LARGEST: usize = 25_600;

/// The most tags of a version, and the longest of them.
const TAGS: (usize, usize) = (15, 256);

type Answer = Result<Json<Value>, Failure>;

pub(super) fn routes(shared: Shared) -> Router {
    Router::new()
        .route(SECRET, get(get_secret).put(set_secret).delete(delete))
        .route(NEWEST, get(get_secret))
        .route(VERSIONS, get(list_versions))
        .route(VERSION, get(get_version).patch(update_version))
        .route(DELETED, get(get_deleted).delete(purge))
        .route(RECOVER, post(recover))
        .merge(identity::routes())
        .fallback(nowhere)
        .with_state(shared)
}

/// Words an error as the API does.
pub(super) fn error_body(status: StatusCode, message: &str) -> Value {
    let code = match status.as_u16() {
        400 => "BadParameter",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "SecretNotFound",
        409 => "Conflict",
        429 => "Throttled",
        _ => "InternalServerError",
    };
    json!({ "error": { "code": code, "message": message } })
}

/// An answer that is no success, and the code within its code.
struct Failure(StatusCode, &'static str, Option<&'static str>);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut body = error_body(self.0, self.1);
        if let Some(inner) = self.2 {
            body["error"]["innererror"] = json!({ "code": inner });
        }
        let mut response = (self.0, Json(body)).into_response();
        if self.0 == StatusCode::UNAUTHORIZED {
            let challenge = format!(
                "Bearer authorization=\"https://login.microsoftonline.com/{TENANT}\", resource=\"https://vault.azure.net\""
            );
            let challenge = HeaderValue::from_str(&challenge).expect("a challenge is plain text");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

const fn bad(message: &'static str) -> Failure {
    Failure(StatusCode::BAD_REQUEST, message, None)
}

const NO_SECRET: Failure =
    Failure(StatusCode::NOT_FOUND, "A secret with this name was not found in this vault.", None);

async fn nowhere(_: Uri) -> Failure {
    Failure(StatusCode::NOT_FOUND, "Not Found", None)
}

/// A request of somebody who may make it.
struct Caller {
    /// The vault as they call it.
    host: String,
}

impl<S> FromRequestParts<S> for Caller
where
    Shared: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, held: &S) -> Result<Self, Failure> {
        let shared = Shared::from_ref(held);
        let state = shared.state();
        let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        if header.and_then(|header| header.strip_prefix("Bearer ")) != Some(&state.token) {
            let message = "AKV10000: Request is missing a Bearer or PoP token.";
            return Err(Failure(StatusCode::UNAUTHORIZED, message, None));
        }
        let query = Parameters::try_from_uri(&parts.uri);
        let is_dated = |query: &Parameters| {
            one(query, "api-version").is_some_and(|version| version.len() >= 3)
        };
        if !query.as_ref().is_ok_and(is_dated) {
            return Err(bad("The api-version is missing."));
        }
        if state.denied.contains(parts.method.as_str()) {
            let message = "The caller is not authorized to perform this action.";
            return Err(Failure(StatusCode::FORBIDDEN, message, Some("ForbiddenByRbac")));
        }
        Ok(Self { host: host(&parts.headers).to_owned() })
    }
}

pub(super) fn host(headers: &HeaderMap) -> &str {
    headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("vault")
}

fn item(version: &Version, name: &str, host: &str) -> Value {
    let at = version.life.created / 1_000;
    let mut item = json!({
        "id": format!("https://{host}/secrets/{name}/{}", version.id),
        "attributes": {
            "enabled": version.enabled,
            "created": at,
            "updated": at,
            "recoveryLevel": "Recoverable+Purgeable",
            "recoverableDays": 90,
        },
        "tags": version.tags,
    });
    let attributes = [("nbf", version.not_before), ("exp", version.expires)];
    for (field, at) in attributes.into_iter().filter_map(|(field, at)| Some((field, at?))) {
        item["attributes"][field] = at.into();
    }
    if let Some(kind) = &version.content_type {
        item["contentType"] = kind.as_str().into();
    }
    if version.managed {
        item["managed"] = true.into();
    }
    item
}

fn readable(version: &Version, name: &str, host: &str) -> Answer {
    if !version.enabled {
        let message = "Operation get is not allowed on a disabled secret.";
        return Err(Failure(StatusCode::FORBIDDEN, message, Some("SecretDisabled")));
    }
    Ok(bundle(version, name, host))
}

fn bundle(version: &Version, name: &str, host: &str) -> Json<Value> {
    let mut bundle = item(version, name, host);
    bundle["value"] = version.value.as_str().into();
    Json(bundle)
}

async fn get_secret(
    Caller { host }: Caller,
    Held(shared): Held<Shared>,
    Path(name): Path<String>,
    lag: Option<Extension<Lag>>,
) -> Answer {
    let state = shared.state();
    let as_of = as_of(std::time::Duration::ZERO, lag);
    let versions = state.secrets.get(&name).ok_or(NO_SECRET)?;
    let newest = versions.iter().rfind(|version| version.life.shows_at(as_of)).ok_or(NO_SECRET)?;
    readable(newest, &name, &host)
}

async fn get_version(
    Caller { host }: Caller,
    Held(shared): Held<Shared>,
    Path((name, id)): Path<(String, String)>,
) -> Answer {
    let mut state = shared.state();
    readable(state.version_mut(&name, &id).ok_or(NO_SECRET)?, &name, &host)
}

async fn set_secret(
    Caller { host }: Caller,
    Held(shared): Held<Shared>,
    Path(name): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    let mut state = shared.state();
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(bad("The name must match ^[0-9a-zA-Z-]+$."));
    }
    if state.is_deleted(&name) {
        let message = "Secret is currently in a deleted but recoverable state, and its name cannot be reused.";
        return Err(Failure(StatusCode::CONFLICT, message, Some("ObjectIsDeletedButRecoverable")));
    }
    let value = body["value"].as_str().ok_or(bad("Property value is required."))?;
    if value.is_empty() || value.len() > LARGEST {
        return Err(bad("Property value has an invalid length."));
    }
    let tags = tags(&body)?.unwrap_or_default();
    state.put(&name, value, tags);
    let newest = state.newest_mut(&name).ok_or(NO_SECRET)?;
    changed(newest, &body);
    Ok(bundle(newest, &name, &host))
}

fn tags(body: &Value) -> Result<Option<BTreeMap<String, String>>, Failure> {
    let Some(given) = body.get("tags") else { return Ok(None) };
    let tags: BTreeMap<String, String> =
        serde_json::from_value(given.clone()).map_err(|_| bad("Property tags is invalid."))?;
    let fits = |text: &String| text.chars().count() <= TAGS.1;
    if tags.len() > TAGS.0 || !tags.iter().all(|(key, value)| fits(key) && fits(value)) {
        return Err(bad("Property tags has too many or too long tags."));
    }
    Ok(Some(tags))
}

fn changed(version: &mut Version, body: &Value) {
    if let Some(kind) = body["contentType"].as_str() {
        version.content_type = Some(kind.into());
    }
    let attributes = &body["attributes"];
    if let Some(enabled) = attributes["enabled"].as_bool() {
        version.enabled = enabled;
    }
    version.not_before = attributes["nbf"].as_i64().or(version.not_before);
    version.expires = attributes["exp"].as_i64().or(version.expires);
}

async fn update_version(
    Caller { host }: Caller,
    Held(shared): Held<Shared>,
    Path((name, id)): Path<(String, String)>,
    Json(body): Json<Value>,
) -> Answer {
    let mut state = shared.state();
    if body.get("value").is_some() {
        return Err(bad("Property value cannot be updated."));
    }
    let tags = tags(&body)?;
    let version = state.version_mut(&name, &id).ok_or(NO_SECRET)?;
    changed(version, &body);
    if let Some(tags) = tags {
        version.tags = tags;
    }
    Ok(Json(item(version, &name, &host)))
}

async fn list_versions(
    Caller { host }: Caller,
    Held(shared): Held<Shared>,
    Path(name): Path<String>,
    Query(query): Parameters,
    lag: Option<Extension<Lag>>,
) -> Answer {
    let state = shared.state();
    let as_of = as_of(std::time::Duration::ZERO, lag);
    let versions = state.secrets.get(&name).ok_or(NO_SECRET)?;
    let mut shown: Vec<_> = versions.iter().filter(|v| v.life.shows_at(as_of)).collect();
    shown.sort_by_key(|version| &version.id);
    let size = one(&query, "maxresults").and_then(|size| size.parse().ok()).unwrap_or(PAGE);
    if !(1..=PAGE).contains(&size) {
        return Err(bad("Property maxresults must be between 1 and 25."));
    }
    let from: usize = one(&query, "$skiptoken").and_then(|at| at.parse().ok()).unwrap_or(0);
    let page: Vec<_> = shown.iter().skip(from).take(size).map(|v| item(v, &name, &host)).collect();
    let next = from + page.len();
    let scheme = if host.starts_with("127.") { "http" } else { "https" };
    let link = format!(
        "{scheme}://{host}/secrets/{name}/versions?api-version=7.4&$skiptoken={next}&maxresults={size}"
    );
    let link = (next < shown.len()).then_some(link);
    Ok(Json(json!({ "value": page, "nextLink": link })))
}

async fn get_deleted(
    Caller { host }: Caller,
    Held(shared): Held<Shared>,
    Path(name): Path<String>,
) -> Answer {
    let state = shared.state();
    deleted(&state, &name, &host)
}

async fn delete(
    Caller { host }: Caller,
    Held(shared): Held<Shared>,
    Path(name): Path<String>,
) -> Answer {
    let mut state = shared.state();
    state.secrets.get(&name).ok_or(NO_SECRET)?;
    state.delete(&name);
    deleted(&state, &name, &host)
}

/// Shows the newest version of a deleted secret, without its value, and where it can be recovered.
fn deleted(state: &State, name: &str, host: &str) -> Answer {
    let newest = state.deleted.get(name).and_then(|versions| versions.last()).ok_or(NO_SECRET)?;
    let mut shown = item(newest, name, host);
    shown["recoveryId"] = format!("https://{host}/deletedsecrets/{name}").into();
    Ok(Json(shown))
}

async fn recover(
    Caller { host }: Caller,
    Held(shared): Held<Shared>,
    Path(name): Path<String>,
) -> Answer {
    let mut state = shared.state();
    let versions = state.deleted.remove(&name).ok_or(NO_SECRET)?;
    let newest = versions.last().map(|newest| item(newest, &name, &host));
    state.secrets.insert(name, versions);
    newest.map(Json).ok_or(NO_SECRET)
}

async fn purge(
    _: Caller,
    Held(shared): Held<Shared>,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    let mut state = shared.state();
    state.deleted.remove(&name).map(|_| StatusCode::NO_CONTENT).ok_or(NO_SECRET)
}
