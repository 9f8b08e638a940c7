//! The handlers of the twin of Google Secret Manager: what each operation answers.

use axum::extract::{Extension, Path, Query, State as Held};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::state::{Secret, State, VersionState, crc32c};
use super::{PROJECT, SECRET, SECRETS, Shared, VERSION, VERSIONS, identity};
use crate::fault::Lag;
use crate::life::as_of;
use crate::query::{Parameters, one};

/// The longest payload.
const LARGEST: usize = 65_536;

/// The most versions on a page.
const PAGE: usize = 25_000;

type Answer = Result<Json<Value>, Failure>;

pub(super) fn routes(shared: Shared) -> Router {
    Router::new()
        .route(SECRETS, post(create_secret))
        .route(SECRET, get(get_secret).patch(update_secret).post(call_on_secret))
        .route(VERSIONS, get(list_versions))
        .route(VERSION, get(access_version).post(change_version))
        .merge(identity::routes())
        .fallback(nowhere)
        .with_state(shared)
}

/// Words an error as the API does.
pub(super) fn error_body(status: StatusCode, message: &str) -> Value {
    let word = match status.as_u16() {
        400 => "INVALID_ARGUMENT",
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        409 => "ABORTED",
        429 => "RESOURCE_EXHAUSTED",
        503 => "UNAVAILABLE",
        _ => "INTERNAL",
    };
    json!({ "error": { "code": status.as_u16(), "message": message, "status": word } })
}

/// An answer that is no success.
struct Failure(StatusCode, &'static str, Option<&'static str>);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut body = error_body(self.0, self.1);
        if let Some(word) = self.2 {
            body["error"]["status"] = word.into();
        }
        (self.0, Json(body)).into_response()
    }
}

const fn bad(message: &'static str) -> Failure {
    Failure(StatusCode::BAD_REQUEST, message, None)
}

const fn precondition(message: &'static str) -> Failure {
    Failure(StatusCode::BAD_REQUEST, message, Some("FAILED_PRECONDITION"))
}

const NO_SECRET: Failure = Failure(StatusCode::NOT_FOUND, "Secret not found.", None);
const NO_VERSION: Failure = Failure(StatusCode::NOT_FOUND, "Secret Version not found.", None);
const STALE: &str = "The etag provided in the request does not match the etag of the resource.";

async fn nowhere(_: Uri) -> Failure {
    Failure(StatusCode::NOT_FOUND, "Not Found", None)
}

fn may(state: &State, headers: &HeaderMap, permission: &str) -> Result<(), Failure> {
    let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(|header| header.strip_prefix("Bearer "));
    let is_federated = state.options.takes_federated && token == Some(&state.federated);
    if token != Some(&state.token) && !is_federated {
        let message = "Request had invalid authentication credentials.";
        return Err(Failure(StatusCode::UNAUTHORIZED, message, None));
    }
    if state.denied.contains(&format!("secretmanager.{permission}")) {
        return Err(Failure(StatusCode::FORBIDDEN, "Permission denied.", None));
    }
    Ok(())
}

fn is_current(given: Option<&str>, etag: &str, aborts: bool) -> Result<(), Failure> {
    match given {
        None | Some("") => Ok(()),
        Some(given) if given == etag => Ok(()),
        Some(_) if aborts => Err(Failure(StatusCode::CONFLICT, STALE, None)),
        Some(_) => Err(precondition(STALE)),
    }
}

/// Refuses what the API does not know.
fn only(body: &Value, known: &[&str]) -> Result<(), Failure> {
    let fields = body.as_object().ok_or(bad("Invalid JSON payload received."))?;
    match fields.keys().all(|field| known.contains(&field.as_str())) {
        true => Ok(()),
        false => Err(bad("Invalid JSON payload received. Unknown name.")),
    }
}

async fn create_secret(
    Held(shared): Held<Shared>,
    headers: HeaderMap,
    Path(project): Path<String>,
    Query(query): Parameters,
    Json(body): Json<Value>,
) -> Answer {
    let mut state = shared.state();
    may(&state, &headers, "secrets.create")?;
    let name = one(&query, "secretId").ok_or(bad("A secret id is required."))?;
    if body.get("replication").is_none() {
        return Err(bad("Secret replication is required."));
    }
    if state.find(PROJECT, name).is_some() {
        let message = "Secret already exists.";
        return Err(Failure(StatusCode::CONFLICT, message, Some("ALREADY_EXISTS")));
    }
    state.make_secret(name);
    Ok(Json(state.find(&project, name).ok_or(NO_SECRET)?.json()))
}

async fn get_secret(
    Held(shared): Held<Shared>,
    headers: HeaderMap,
    Path((project, name)): Path<(String, String)>,
) -> Answer {
    let mut state = shared.state();
    may(&state, &headers, "secrets.get")?;
    Ok(Json(state.find(&project, &name).ok_or(NO_SECRET)?.json()))
}

async fn update_secret(
    Held(shared): Held<Shared>,
    headers: HeaderMap,
    Path((project, name)): Path<(String, String)>,
    Query(query): Parameters,
    Json(body): Json<Value>,
) -> Answer {
    let mut state = shared.state();
    may(&state, &headers, "secrets.update")?;
    only(&body, &["name", "etag", "labels", "annotations", "versionAliases"])?;
    let aborts = state.options.aborts;
    let secret = state.find(&project, &name).ok_or(NO_SECRET)?;
    is_current(body["etag"].as_str(), &secret.etag(), aborts)?;
    let mask = one(&query, "updateMask").ok_or(bad("An update mask is required."))?;
    for field in mask.split(',') {
        let given = body.get(snake_to_camel(field)).cloned().unwrap_or(json!({}));
        change(secret, field, &given)?;
    }
    secret.touch();
    Ok(Json(secret.json()))
}

fn snake_to_camel(field: &str) -> &str {
    if field == "version_aliases" { "versionAliases" } else { field }
}

fn change(secret: &mut Secret, field: &str, given: &Value) -> Result<(), Failure> {
    let invalid = || bad("Invalid value.");
    match field {
        "annotations" => {
            secret.annotations = serde_json::from_value(given.clone()).map_err(|_| invalid())?;
        }
        "labels" => {
            secret.labels = serde_json::from_value(given.clone()).map_err(|_| invalid())?;
        }
        "version_aliases" | "versionAliases" => {
            let mut aliases = std::collections::BTreeMap::new();
            for (alias, number) in given.as_object().ok_or_else(invalid)? {
                let number = number.as_str().and_then(|n| n.parse().ok()).or(number.as_u64());
                let number = number.ok_or_else(invalid)?;
                let fits =
                    alias.len() <= 63 && alias.starts_with(|c: char| c.is_ascii_alphabetic());
                if !fits || alias == "latest" {
                    return Err(bad("Invalid alias."));
                }
                if !secret.versions.contains_key(&number) {
                    return Err(bad("An alias names a version that does not exist."));
                }
                aliases.insert(alias.clone(), number);
            }
            if aliases.len() > 50 {
                return Err(bad("Too many aliases."));
            }
            secret.aliases = aliases;
        }
        _ => return Err(bad("Invalid field in the update mask.")),
    }
    Ok(())
}

async fn call_on_secret(
    Held(shared): Held<Shared>,
    headers: HeaderMap,
    Path((project, called)): Path<(String, String)>,
    Json(body): Json<Value>,
) -> Answer {
    let mut state = shared.state();
    match called.rsplit_once(':') {
        Some((name, "addVersion")) => {
            may(&state, &headers, "versions.add")?;
            let secret = state.find(&project, name).ok_or(NO_SECRET)?;
            let number = secret.add(payload(&body)?);
            Ok(Json(secret.version_json(number)))
        }
        Some((name, "testIamPermissions")) => {
            may(&state, &headers, "none")?;
            only(&body, &["permissions"])?;
            let asked = body["permissions"].as_array().cloned().unwrap_or_default();
            let is_there = state.find(&project, name).is_some();
            let granted = |permission: &&Value| {
                is_there && permission.as_str().is_some_and(|p| !state.denied.contains(p))
            };
            let granted: Vec<_> = asked.iter().filter(granted).collect();
            Ok(Json(json!({ "permissions": granted })))
        }
        _ => Err(Failure(StatusCode::NOT_FOUND, "Not Found", None)),
    }
}

fn payload(body: &Value) -> Result<Vec<u8>, Failure> {
    only(body, &["payload"])?;
    only(&body["payload"], &["data", "dataCrc32c"])?;
    let data = body["payload"]["data"].as_str().ok_or(bad("A payload is required."))?;
    let data = STANDARD.decode(data).map_err(|_| bad("Base64 decoding failed."))?;
    if data.is_empty() {
        return Err(bad("The payload must not be empty."));
    }
    if data.len() > LARGEST {
        return Err(bad("The payload is larger than 65536 bytes."));
    }
    let sum = &body["payload"]["dataCrc32c"];
    let sum = sum.as_str().and_then(|sum| sum.parse().ok()).or(sum.as_u64());
    match sum {
        Some(sum) if sum != u64::from(crc32c(&data)) => {
            Err(bad("The checksum of the payload does not match."))
        }
        _ => Ok(data),
    }
}

async fn list_versions(
    Held(shared): Held<Shared>,
    headers: HeaderMap,
    Path((project, name)): Path<(String, String)>,
    Query(query): Parameters,
    lag: Option<Extension<Lag>>,
) -> Answer {
    let mut state = shared.state();
    may(&state, &headers, "versions.list")?;
    let as_of = as_of(state.options.list_lag, lag);
    let secret = state.find(&project, &name).ok_or(NO_SECRET)?;
    let size = one(&query, "pageSize").and_then(|size| size.parse().ok()).unwrap_or(100);
    let from: usize = match one(&query, "pageToken") {
        None | Some("") => 0,
        Some(token) => token.parse().map_err(|_| bad("Invalid page token."))?,
    };
    let shown = |number: &&u64| secret.versions[number].life.shows_at(as_of);
    let numbers: Vec<u64> = secret.versions.keys().rev().filter(shown).copied().collect();
    let page = numbers.iter().skip(from).take(size.clamp(1, PAGE));
    let page: Vec<_> = page.map(|number| secret.version_json(*number)).collect();
    let mut answer = json!({ "versions": page, "totalSize": numbers.len() });
    if from + page.len() < numbers.len() {
        answer["nextPageToken"] = (from + page.len()).to_string().into();
    }
    Ok(Json(answer))
}

async fn access_version(
    Held(shared): Held<Shared>,
    headers: HeaderMap,
    Path((project, name, called)): Path<(String, String, String)>,
) -> Answer {
    let mut state = shared.state();
    let (meant, is_access) = match called.strip_suffix(":access") {
        Some(meant) => (meant, true),
        None => (called.as_str(), false),
    };
    may(&state, &headers, if is_access { "versions.access" } else { "versions.get" })?;
    let secret = state.find(&project, &name).ok_or(NO_SECRET)?;
    let number = secret.number(meant).ok_or(NO_VERSION)?;
    if !is_access {
        return Ok(Json(secret.version_json(number)));
    }
    let version = &secret.versions[&number];
    if version.state != VersionState::Enabled {
        return Err(precondition("Secret Version is in DISABLED or DESTROYED state."));
    }
    Ok(Json(json!({
        "name": format!("{}/versions/{number}", secret.full_name()),
        "payload": { "data": STANDARD.encode(&version.data), "dataCrc32c": version.checksum.to_string() },
    })))
}

async fn change_version(
    Held(shared): Held<Shared>,
    headers: HeaderMap,
    Path((project, name, called)): Path<(String, String, String)>,
    Json(body): Json<Value>,
) -> Answer {
    let mut state = shared.state();
    let (meant, verb) = called.rsplit_once(':').ok_or(NO_VERSION)?;
    let (permission, wanted) = match verb {
        "enable" => ("versions.enable", VersionState::Enabled),
        "disable" => ("versions.disable", VersionState::Disabled),
        "destroy" => ("versions.destroy", VersionState::Destroyed),
        _ => return Err(NO_VERSION),
    };
    may(&state, &headers, permission)?;
    only(&body, &["etag"])?;
    let aborts = state.options.aborts;
    let secret = state.find(&project, &name).ok_or(NO_SECRET)?;
    let number = secret.number(meant).ok_or(NO_VERSION)?;
    is_current(body["etag"].as_str(), &secret.versions[&number].etag(), aborts)?;
    if secret.versions[&number].state == VersionState::Destroyed
        && wanted != VersionState::Destroyed
    {
        return Err(precondition("Secret Version is destroyed."));
    }
    secret.set_state(number, wanted);
    Ok(Json(secret.version_json(number)))
}
