//! The handlers of the OpenRouter twin: what each operation answers.

use axum::extract::{Extension, FromRef, FromRequestParts, Path, Query, State as Held};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::state::{Guardrail, Settings, Standing, State, redacted};
use super::{
    ACTIVITY, ASSIGNMENTS, CHAT, GUARDRAIL_KEYS, KEY, KEYS, PROVIDER_KEY, PROVIDER_KEYS, SELF,
    Shared, WORKSPACE,
};
use crate::fault::Lag;
use crate::life::{as_of, rfc3339};
use crate::query::{Parameters, one};
use crate::{now, random};

/// How many keys a page has.
const PAGE: usize = 100;

type Answer = Result<Json<Value>, Failure>;

pub(super) fn routes(shared: Shared) -> Router {
    Router::new()
        .route(KEYS, get(list_keys).post(create_key))
        .route(KEY, get(get_key).patch(update_key).delete(delete_key))
        .route(SELF, get(get_self))
        .route(WORKSPACE, get(get_workspace))
        .route(ACTIVITY, get(activity))
        .route(ASSIGNMENTS, get(list_assignments))
        .route(GUARDRAIL_KEYS, post(assign_keys))
        .route(PROVIDER_KEYS, get(list_provider_keys))
        .route(PROVIDER_KEY, patch(update_provider_key))
        .route(CHAT, post(chat))
        .fallback(nowhere)
        .with_state(shared)
}

/// Words an error as the API does.
pub(super) fn error_body(status: StatusCode, message: &str) -> Value {
    json!({ "error": { "code": status.as_u16(), "message": message } })
}

/// An answer that is no success.
struct Failure(StatusCode, &'static str);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(error_body(self.0, self.1))).into_response()
    }
}

const fn bad(message: &'static str) -> Failure {
    Failure(StatusCode::BAD_REQUEST, message)
}

const fn not_found(message: &'static str) -> Failure {
    Failure(StatusCode::NOT_FOUND, message)
}

const UNKNOWN_USER: Failure = Failure(StatusCode::UNAUTHORIZED, "User not found.");
const NO_MANAGEMENT: Failure =
    Failure(StatusCode::FORBIDDEN, "Only management keys can perform this operation.");

/// A request that came with the management key.
struct AsManager;

impl<S> FromRequestParts<S> for AsManager
where
    Shared: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, held: &S) -> Result<Self, Failure> {
        match standing(&Shared::from_ref(held).state(), parts) {
            Standing::Management => Ok(Self),
            Standing::Key(_) => Err(NO_MANAGEMENT),
            Standing::Nothing => Err(UNKNOWN_USER),
        }
    }
}

/// A request that came with a key of the account; its id, or none for the management key.
struct AsAny(Option<String>);

impl<S> FromRequestParts<S> for AsAny
where
    Shared: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, held: &S) -> Result<Self, Failure> {
        match standing(&Shared::from_ref(held).state(), parts) {
            Standing::Management => Ok(Self(None)),
            Standing::Key(hash) => Ok(Self(Some(hash))),
            Standing::Nothing => Err(UNKNOWN_USER),
        }
    }
}

fn standing(state: &State, parts: &Parts) -> Standing {
    let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let value = header.and_then(|header| header.strip_prefix("Bearer "));
    value.map_or(Standing::Nothing, |value| state.standing(value))
}

async fn nowhere(_: Uri) -> Failure {
    not_found("Not Found")
}

async fn create_key(
    _: AsManager,
    Held(shared): Held<Shared>,
    Json(body): Json<Value>,
) -> Result<(StatusCode, Json<Value>), Failure> {
    let mut state = shared.state();
    let name = body["name"].as_str().filter(|name| !name.is_empty());
    let name = name.ok_or(bad("Invalid input: `name`"))?;
    if state.options.most_keys.is_some_and(|most| state.keys_at(i64::MAX).len() >= most) {
        return Err(bad("The account has as many keys as it may."));
    }
    let workspace = match body["workspace_id"].as_str() {
        None => state.workspaces[0].clone(),
        Some(given) => known_workspace(&state, given)?.to_owned(),
    };
    let mut settings = Settings::plain();
    change(&mut settings, &body)?;
    if let Some(ends) = body["expires_at"].as_str() {
        let ends: jiff::Timestamp = ends.parse().map_err(|_| bad("Invalid `expires_at`"))?;
        settings.expires = Some(ends.as_millisecond());
    }
    if let Some(creator) = body["creator_user_id"].as_str() {
        settings.creator = Some(creator.into());
    }
    let hash = state.add_key(name, &workspace, settings);
    let key = &state.keys[&hash];
    let answer = json!({ "data": state.shown(key), "key": key.value });
    Ok((StatusCode::CREATED, Json(answer)))
}

/// Takes over the settings that can be changed later too.
fn change(settings: &mut Settings, body: &Value) -> Result<(), Failure> {
    match &body["limit"] {
        Value::Null => {}
        limit => settings.limit = Some(limit.as_f64().ok_or(bad("Invalid `limit`"))?),
    }
    match body["limit_reset"].as_str() {
        None => {}
        Some(every @ ("daily" | "weekly" | "monthly")) => settings.limit_reset = Some(every.into()),
        Some(_) => return Err(bad("Invalid `limit_reset`")),
    }
    if let Some(include) = body["include_byok_in_limit"].as_bool() {
        settings.include_byok_in_limit = include;
    }
    Ok(())
}

async fn list_keys(
    _: AsManager,
    Held(shared): Held<Shared>,
    lag: Option<Extension<Lag>>,
    Query(query): Parameters,
) -> Answer {
    let state = shared.state();
    let workspace = wanted_workspace(&state, &query)?;
    let disabled_too = one(&query, "include_disabled") == Some("true");
    let mut shown = state.keys_at(as_of(state.options.list_lag, lag));
    shown.retain(|key| key.workspace == *workspace && (disabled_too || key.switch.is_on()));
    let page = shown.into_iter().skip(number(&query, "offset")?.unwrap_or(0)).take(PAGE);
    Ok(Json(json!({ "data": page.map(|key| state.shown(key)).collect::<Vec<_>>() })))
}

async fn get_key(_: AsManager, Held(shared): Held<Shared>, Path(hash): Path<String>) -> Answer {
    let mut state = shared.state();
    state.live_key(&hash).ok_or(not_found("API key not found"))?;
    Ok(Json(json!({ "data": state.shown(&state.keys[&hash]) })))
}

async fn update_key(
    _: AsManager,
    Held(shared): Held<Shared>,
    Path(hash): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    let mut state = shared.state();
    let key = state.live_key(&hash).ok_or(not_found("API key not found"))?;
    change(&mut key.settings, &body)?;
    if let Some(name) = body["name"].as_str() {
        key.name = name.into();
    }
    if let Some(disabled) = body["disabled"].as_bool() {
        key.switch.set(!disabled);
    }
    key.updated = Some(now());
    Ok(Json(json!({ "data": state.shown(&state.keys[&hash]) })))
}

async fn delete_key(_: AsManager, Held(shared): Held<Shared>, Path(hash): Path<String>) -> Answer {
    let mut state = shared.state();
    state.live_key(&hash).ok_or(not_found("API key not found"))?.end();
    Ok(Json(json!({ "deleted": true })))
}

/// Says of the management key too that it is one; it has no place among the keys.
async fn get_self(AsAny(hash): AsAny, Held(shared): Held<Shared>) -> Answer {
    let state = shared.state();
    let manages = hash.is_none();
    let mut shown = match &hash {
        Some(hash) => state.shown(&state.keys[hash]),
        None => json!({
            "label": redacted(&state.management),
            "limit": null, "limit_remaining": null, "limit_reset": null,
            "include_byok_in_limit": false, "creator_user_id": "user_twin", "expires_at": null,
            "usage": 0.0, "usage_daily": 0.0, "usage_weekly": 0.0, "usage_monthly": 0.0,
            "byok_usage": 0.0, "byok_usage_daily": 0.0, "byok_usage_weekly": 0.0, "byok_usage_monthly": 0.0,
        }),
    };
    if let Some(shown) = shown.as_object_mut() {
        for hidden in ["hash", "name", "disabled", "created_at", "updated_at", "workspace_id"] {
            shown.remove(hidden);
        }
    }
    shown["is_free_tier"] = json!(false);
    shown["is_management_key"] = json!(manages);
    shown["is_provisioning_key"] = json!(manages);
    shown["rate_limit"] = json!({ "requests": -1, "interval": "10s", "note": "twin" });
    Ok(Json(json!({ "data": shown })))
}

async fn get_workspace(_: AsManager, Held(shared): Held<Shared>, Path(id): Path<String>) -> Answer {
    let state = shared.state();
    let position = state.workspaces.iter().position(|known| *known == id);
    let position = position.ok_or(not_found("Workspace not found"))?;
    Ok(Json(json!({ "data": {
        "id": id,
        "default_guardrail_id": id,
        "name": format!("workspace {position}"),
        "slug": format!("workspace-{position}"),
        "description": null,
        "created_at": rfc3339(0),
        "created_by": "user_twin",
        "updated_at": null,
        "default_image_model": null,
        "default_provider_sort": null,
        "default_text_model": null,
        "io_logging_api_key_ids": null,
        "io_logging_sampling_rate": 1.0,
        "is_data_discount_logging_enabled": false,
        "is_observability_broadcast_enabled": false,
        "is_observability_io_logging_enabled": false,
    } })))
}

async fn activity(_: AsManager, Held(shared): Held<Shared>, Query(query): Parameters) -> Answer {
    let state = shared.state();
    let wanted = one(&query, "api_key_hash");
    if wanted.is_some_and(|hash| !state.keys.contains_key(hash)) {
        return Err(not_found("API key not found"));
    }
    let day = one(&query, "date");
    let mut items = Vec::new();
    for key in state.keys.values().filter(|key| wanted.is_none_or(|hash| hash == key.hash)) {
        let days =
            state.activity(key).into_iter().filter(|(date, _)| day.is_none_or(|day| day == date));
        items.extend(days.map(|(date, requests)| row(&date, requests)));
    }
    Ok(Json(json!({ "data": items })))
}

fn row(date: &str, requests: usize) -> Value {
    json!({
        "date": date,
        "model": "twin/model",
        "model_permaslug": "twin/model-1",
        "endpoint_id": "twin",
        "provider_name": "twin",
        "usage": 0.0,
        "byok_usage_inference": 0.0,
        "requests": requests,
        "prompt_tokens": 3 * requests,
        "completion_tokens": 2 * requests,
        "reasoning_tokens": 0,
    })
}

async fn list_assignments(
    _: AsManager,
    Held(shared): Held<Shared>,
    Query(query): Parameters,
) -> Answer {
    let state = shared.state();
    let all =
        state.guardrails.iter().flat_map(|(id, guardrail)| assignments(&state, id, guardrail));
    page(all.collect(), &query)
}

fn assignments(state: &State, id: &str, guardrail: &Guardrail) -> Vec<Value> {
    let live = guardrail.keys.iter().map(|hash| &state.keys[hash]);
    let live = live.filter(|key| key.life.ended.is_none());
    live.map(|key| {
        json!({
            "id": id,
            "guardrail_id": id,
            "key_hash": key.hash,
            "key_name": key.name,
            "key_label": redacted(&key.value),
            "assigned_by": null,
            "created_at": rfc3339(guardrail.created),
        })
    })
    .collect()
}

async fn assign_keys(
    _: AsManager,
    Held(shared): Held<Shared>,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    let mut state = shared.state();
    let hashes = known_hashes(&mut state, &body["key_hashes"])?;
    let guardrail = state.guardrails.get_mut(&id).ok_or(not_found("Guardrail not found"))?;
    let new: Vec<String> =
        hashes.into_iter().filter(|hash| !guardrail.keys.contains(hash)).collect();
    let assigned = new.len();
    guardrail.keys.extend(new);
    Ok(Json(json!({ "assigned_count": assigned })))
}

async fn list_provider_keys(
    _: AsManager,
    Held(shared): Held<Shared>,
    Query(query): Parameters,
) -> Answer {
    let state = shared.state();
    let workspace = wanted_workspace(&state, &query)?;
    let inside = state.provider_keys.iter().filter(|(_, key)| key.workspace == *workspace);
    page(inside.map(|(id, _)| provider_key_json(&state, id)).collect(), &query)
}

async fn update_provider_key(
    _: AsManager,
    Held(shared): Held<Shared>,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    let mut state = shared.state();
    state.provider_keys.get(&id).ok_or(not_found("BYOK key not found"))?;
    if !body["allowed_api_key_hashes"].is_null() {
        let hashes = known_hashes(&mut state, &body["allowed_api_key_hashes"])?;
        state.provider_keys.get_mut(&id).expect("it was there").allowed = Some(hashes);
    }
    Ok(Json(json!({ "data": provider_key_json(&state, &id) })))
}

fn provider_key_json(state: &State, id: &str) -> Value {
    let key = &state.provider_keys[id];
    json!({
        "id": id,
        "provider": "openai",
        "workspace_id": key.workspace,
        "name": key.name,
        "label": "sk-t...win",
        "disabled": false,
        "is_fallback": false,
        "allowed_models": null,
        "allowed_api_key_hashes": key.allowed,
        "allowed_user_ids": null,
        "sort_order": 0,
        "created_at": rfc3339(key.created),
    })
}

async fn chat(AsAny(hash): AsAny, Held(shared): Held<Shared>, Json(body): Json<Value>) -> Answer {
    let hash =
        hash.ok_or(Failure(StatusCode::FORBIDDEN, "Management keys make no completions."))?;
    let model = body["model"].as_str().ok_or(bad("Invalid `model`"))?;
    let mut state = shared.state();
    let costs = !model.ends_with(":free");
    state.keys.get_mut(&hash).expect("nothing is ever forgotten").uses.push((now(), costs));
    Ok(Json(json!({
        "id": format!("gen-{}", random(b"abcdefghijklmnopqrstuvwxyz0123456789", 24)),
        "object": "chat.completion",
        "created": now() / 1_000,
        "model": model,
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": "Yes.", "refusal": null },
            "finish_reason": "stop",
        }],
        "usage": { "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5 },
    })))
}

/// Reads ids of keys that must exist.
fn known_hashes(state: &mut State, given: &Value) -> Result<Vec<String>, Failure> {
    let given = given.as_array().filter(|given| (1..=100).contains(&given.len()));
    let mut hashes = Vec::new();
    for hash in given.ok_or(bad("Invalid key hashes"))? {
        let hash = hash.as_str().ok_or(bad("Invalid key hash"))?;
        state.live_key(hash).ok_or(bad("Unknown key hash"))?;
        hashes.push(hash.to_owned());
    }
    Ok(hashes)
}

fn known_workspace<'a>(state: &'a State, id: &str) -> Result<&'a String, Failure> {
    let known = state.workspaces.iter().find(|known| *known == id);
    known.ok_or(bad("Unknown workspace"))
}

/// Returns the workspace that a query names; without one, the default one is meant.
fn wanted_workspace<'a>(
    state: &'a State,
    query: &[(String, String)],
) -> Result<&'a String, Failure> {
    one(query, "workspace_id")
        .map_or(Ok(&state.workspaces[0]), |given| known_workspace(state, given))
}

/// Cuts one page out of a list: `limit` items after the first `offset`.
fn page(items: Vec<Value>, query: &[(String, String)]) -> Answer {
    let (total, limit) = (items.len(), number(query, "limit")?.unwrap_or(50).min(100));
    let offset = number(query, "offset")?.unwrap_or(0);
    let page: Vec<Value> = items.into_iter().skip(offset).take(limit).collect();
    Ok(Json(json!({ "data": page, "total_count": total })))
}

fn number(query: &[(String, String)], name: &'static str) -> Result<Option<usize>, Failure> {
    one(query, name).map(str::parse).transpose().map_err(|_| bad("Invalid number"))
}
