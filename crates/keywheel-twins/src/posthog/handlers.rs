//! The handlers of the PostHog twin: what each operation answers.

use axum::extract::{Extension, FromRef, FromRequestParts, Path, Query, State as Held};
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::state::{Activity, By, Key, Standing, masked};
use super::{
    ACTIVITY, CAPTURE, CURRENT, DELETE_BACKUP, EVALUATION, FLAGS, KEY, KEYS, PROJECT, PROJECT_PATH,
    QUERY, RESET, ROLL, ROTATE, Shared, TEAM,
};
use crate::fault::Lag;
use crate::life::{as_of, rfc3339};
use crate::now;
use crate::query::{Parameters, one};

type Answer = Result<Json<Value>, Failure>;

pub(super) fn routes(shared: Shared) -> Router {
    Router::new()
        .route(PROJECT_PATH, get(get_team))
        .route(TEAM, get(get_team))
        .route(RESET, patch(custom_action))
        .route(ROTATE, patch(custom_action))
        .route(DELETE_BACKUP, patch(custom_action))
        .route(KEYS, get(list_keys).post(create_key))
        .route(KEY, get(get_key).delete(delete_key))
        .route(ROLL, post(custom_action))
        .route(ACTIVITY, get(list_activity))
        .route(CURRENT, get(current))
        .route(EVALUATION, get(local_evaluation))
        .route(QUERY, post(query))
        .route(FLAGS, post(flags))
        .route(CAPTURE, post(capture))
        .fallback(nowhere)
        .with_state(shared)
}

/// Words an error as the API does.
pub(super) fn error_body(status: StatusCode, message: &str) -> Value {
    let (kind, code) = match status.as_u16() {
        401 => ("authentication_error", "authentication_failed"),
        403 => ("authentication_error", "permission_denied"),
        404 => ("invalid_request", "not_found"),
        400..=499 => ("validation_error", "invalid_input"),
        _ => ("server_error", "error"),
    };
    json!({ "type": kind, "code": code, "detail": message, "attr": null })
}

/// An answer that is no success.
struct Failure {
    status: StatusCode,
    message: String,
    attr: Option<&'static str>,
}

impl Failure {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), attr: None }
    }

    fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "Not found.")
    }

    fn bad(attr: &'static str, message: &str) -> Self {
        Self { attr: Some(attr), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "Personal API key found in request Authorization header is invalid.",
        )
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut body = error_body(self.status, &self.message);
        body["attr"] = json!(self.attr);
        (self.status, Json(body)).into_response()
    }
}

/// A request that came with some credential; its value.
struct Bearer(String);

impl<S: Send + Sync> FromRequestParts<S> for Bearer {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let value = header.and_then(|header| header.strip_prefix("Bearer "));
        value.map(|value| Self(value.into())).ok_or_else(Failure::unauthorized)
    }
}

/// A request that came with the personal key; what it may do.
struct Scopes(Vec<String>);

impl<S> FromRequestParts<S> for Scopes
where
    Shared: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, held: &S) -> Result<Self, Failure> {
        let Bearer(value) = Bearer::from_request_parts(parts, held).await?;
        let shared = Shared::from_ref(held);
        let state = shared.state();
        match state.standing(&value) {
            Standing::Personal => Ok(Self(state.scopes.clone())),
            _ => Err(Failure::unauthorized()),
        }
    }
}

impl Scopes {
    fn need(&self, scope: &str) -> Result<(), Failure> {
        if self.0.iter().any(|held| held == scope) { Ok(()) } else { Err(missing(scope)) }
    }
}

fn missing(scope: &str) -> Failure {
    Failure::new(StatusCode::FORBIDDEN, format!("API key missing required scope '{scope}'"))
}

async fn nowhere() -> Failure {
    Failure::not_found()
}

/// Whatever resets, rotates or rolls wants a person who is logged in.
async fn custom_action(_: Scopes) -> Failure {
    let why = "This action does not support Personal API Key access";
    Failure::new(StatusCode::FORBIDDEN, why)
}

async fn get_team(
    scopes: Scopes,
    Held(shared): Held<Shared>,
    Path(project): Path<String>,
    lag: Option<Extension<Lag>>,
) -> Answer {
    known(&project)?;
    scopes.need("project:read")?;
    let state = shared.state();
    let shown = state.tokens_at(as_of(state.options.list_lag, lag));
    Ok(Json(json!({
        "id": PROJECT.parse::<u64>().expect("it is a number"),
        "name": "shop",
        "api_token": shown.project,
        "secret_api_token": shown.primary,
        "secret_api_token_backup": shown.backup,
        "timezone": "UTC",
    })))
}

async fn list_keys(
    scopes: Scopes,
    Held(shared): Held<Shared>,
    Path(project): Path<String>,
    lag: Option<Extension<Lag>>,
    Query(query): Parameters,
) -> Answer {
    known(&project)?;
    scopes.need("project_secret_api_key:read")?;
    let state = shared.state();
    let shown = state.keys_at(as_of(state.options.list_lag, lag));
    let start: usize = one(&query, "offset")
        .map_or(Ok(0), str::parse)
        .map_err(|_| Failure::new(StatusCode::BAD_REQUEST, "Invalid offset."))?;
    let end = shown.len().min(start + state.options.page);
    let at = |offset: usize| format!("https://posthog.example.com/?offset={offset}");
    let page: Vec<Value> =
        shown.get(start..end).unwrap_or_default().iter().map(|key| key_json(key)).collect();
    Ok(Json(json!({
        "count": shown.len(),
        "next": (end < shown.len()).then(|| at(end)),
        "previous": (start > 0).then(|| at(start.saturating_sub(state.options.page))),
        "results": page,
    })))
}

async fn create_key(
    scopes: Scopes,
    Held(shared): Held<Shared>,
    Path(project): Path<String>,
    Json(body): Json<Value>,
) -> Result<(StatusCode, Json<Value>), Failure> {
    known(&project)?;
    scopes.need("project_secret_api_key:write")?;
    let mut state = shared.state();
    let label = body["label"].as_str().filter(|label| (1..=40).contains(&label.len()));
    let label = label.ok_or_else(|| Failure::bad("label", "This field is required."))?;
    let wanted = body["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let wanted: Vec<String> = wanted.map(str::to_owned).collect();
    if wanted.is_empty() {
        return Err(Failure::bad("scopes", "This list may not be empty."));
    }
    if !wanted.iter().all(|scope| ["endpoint:read", "feature_flag:read"].contains(&scope.as_str()))
    {
        return Err(Failure::bad("scopes", "Invalid scope."));
    }
    let live = state.keys_at(i64::MAX);
    let (count, taken) = (live.len(), live.iter().any(|key| key.label == label));
    if taken {
        return Err(Failure::bad("label", "A key with this label already exists."));
    }
    if count >= state.options.most_keys {
        return Err(Failure::new(
            StatusCode::BAD_REQUEST,
            "The project has as many keys as it may.",
        ));
    }
    let id = state.add(label, wanted, By::Key);
    let mut answer = key_json(&state.keys[&id]);
    answer["value"] = json!(state.keys[&id].value);
    Ok((StatusCode::CREATED, Json(answer)))
}

async fn get_key(
    scopes: Scopes,
    Held(shared): Held<Shared>,
    Path((project, id)): Path<(String, String)>,
) -> Answer {
    known(&project)?;
    scopes.need("project_secret_api_key:read")?;
    let mut state = shared.state();
    Ok(Json(key_json(state.live(&id).ok_or_else(Failure::not_found)?)))
}

async fn delete_key(
    scopes: Scopes,
    Held(shared): Held<Shared>,
    Path((project, id)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    known(&project)?;
    scopes.need("project_secret_api_key:write")?;
    shared.state().delete(&id, By::Key).ok_or_else(Failure::not_found)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists what was done in the project, the newest first.
async fn list_activity(
    scopes: Scopes,
    Held(shared): Held<Shared>,
    Path(project): Path<String>,
    lag: Option<Extension<Lag>>,
    Query(query): Parameters,
) -> Answer {
    known(&project)?;
    scopes.need("activity_log:read")?;
    let state = shared.state();
    if state.options.no_activity_log {
        let why = "Audit logs is part of the premium PostHog offering.";
        return Err(Failure::new(StatusCode::PAYMENT_REQUIRED, why));
    }
    let until = as_of(state.options.list_lag, lag);
    let is = |name: &str, value: &str| one(&query, name).is_none_or(|wanted| wanted == value);
    let shows =
        |row: &&Activity| row.at <= until && is("scope", row.scope) && is("item_id", &row.item);
    let shown: Vec<Value> = state.log.iter().rev().filter(shows).map(activity_json).collect();
    let page: usize = one(&query, "page").and_then(|page| page.parse().ok()).unwrap_or(1);
    let start = page.saturating_sub(1) * state.options.page;
    let end = shown.len().min(start + state.options.page);
    let rows = shown
        .get(start..end)
        .ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, "Invalid page."))?;
    let at = |page: usize| format!("https://posthog.example.com/?page={page}");
    Ok(Json(json!({
        "count": shown.len(),
        "next": (end < shown.len()).then(|| at(page + 1)),
        "previous": (page > 1).then(|| at(page - 1)),
        "results": rows,
    })))
}

async fn current(scopes: Scopes, Held(shared): Held<Shared>) -> Answer {
    let state = shared.state();
    Ok(Json(json!({
        "id": "current",
        "label": "by hand",
        "mask_value": masked(&state.personal),
        "scopes": scopes.0,
        "created_at": rfc3339(0),
        "last_used_at": rfc3339(now()),
    })))
}

/// Gives the definitions of flags to whoever evaluates them: a secret key of the project with the scope, or of the team.
async fn local_evaluation(
    Bearer(value): Bearer,
    Held(shared): Held<Shared>,
    Path(project): Path<String>,
) -> Answer {
    let mut state = shared.state();
    match state.standing(&value) {
        Standing::Nothing => return Err(Failure::unauthorized()),
        Standing::Key(id) => {
            let key =
                state.live(&id).filter(|key| key.scopes.iter().any(|s| s == "feature_flag:read"));
            key.ok_or_else(|| missing("feature_flag:read"))?.last_used = Some(now());
        }
        Standing::Personal | Standing::Team => {}
    }
    known(&project)?;
    Ok(Json(json!({ "flags": [], "group_type_mapping": {}, "cohorts": {} })))
}

/// Counts events of a name since a time, which is all of the query language that a probe needs.
async fn query(
    scopes: Scopes,
    Held(shared): Held<Shared>,
    Path(project): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    known(&project)?;
    scopes.need("query:read")?;
    let values = &body["query"]["values"];
    let since = values["since"].as_str().and_then(|time| time.parse::<jiff::Timestamp>().ok());
    let (Some(event), Some(since)) = (values["event"].as_str(), since) else {
        return Err(Failure::bad("query", "Unresolved placeholder."));
    };
    let state = shared.state();
    let matches = |(name, at): &&(String, i64)| name == event && *at >= since.as_millisecond();
    let count = state.events.iter().filter(matches).count();
    Ok(Json(json!({ "results": [[count]], "columns": ["count()"], "error": null })))
}

/// Evaluates flags for whoever names the project by its token.
async fn flags(Held(shared): Held<Shared>, Json(body): Json<Value>) -> Response {
    let token = body["token"].as_str().or_else(|| body["api_key"].as_str()).unwrap_or_default();
    if !shared.state().is_project_token(token) {
        let why = "The provided API key is invalid or has expired. Please check your API key.";
        return (StatusCode::UNAUTHORIZED, why).into_response();
    }
    Json(json!({ "flags": {}, "errorsWhileComputingFlags": false, "requestId": "twin" }))
        .into_response()
}

/// Takes whatever is well-formed; what carries a wrong token is dropped later, and nobody is told.
async fn capture(Held(shared): Held<Shared>, Json(body): Json<Value>) -> Answer {
    let token = body["api_key"].as_str().or_else(|| body["token"].as_str()).unwrap_or_default();
    let mut state = shared.state();
    if let (Some(event), true) = (body["event"].as_str(), state.is_project_token(token)) {
        state.events.push((event.into(), now()));
    }
    Ok(Json(json!({ "status": 1 })))
}

fn known(project: &str) -> Result<(), Failure> {
    if project == PROJECT { Ok(()) } else { Err(Failure::not_found()) }
}

fn activity_json(row: &Activity) -> Value {
    let (email, address) = match row.by {
        By::Key => ("ci@example.com", "192.0.2.8"),
        By::Person => ("someone@example.com", "192.0.2.7"),
    };
    let changes = row.changes.iter().map(|(field, before, after)| {
        json!({ "type": row.scope, "action": "changed", "field": field, "before": before, "after": after })
    });
    json!({
        "id": format!("{}-{}", row.at, row.item),
        "user": { "id": 1, "uuid": "1", "first_name": "Some", "last_name": "One", "email": email },
        "unread": false,
        "team_id": PROJECT.parse::<u64>().expect("it is a number"),
        "organization_id": "1",
        "was_impersonated": false,
        "is_system": false,
        "client": null,
        "ip_address": address,
        "activity": row.activity,
        "scope": row.scope,
        "item_id": row.item,
        "detail": {
            "name": row.name,
            "short_id": null,
            "type": null,
            "changes": changes.collect::<Vec<_>>(),
            "trigger": null,
            "context": null,
        },
        "created_at": rfc3339(row.at),
    })
}

fn key_json(key: &Key) -> Value {
    json!({
        "id": key.id,
        "label": key.label,
        "value": null,
        "mask_value": masked(&key.value),
        "scopes": key.scopes,
        "created_at": rfc3339(key.life.created),
        "created_by": null,
        "last_used_at": key.last_used.map(rfc3339),
        "last_rolled_at": null,
    })
}
