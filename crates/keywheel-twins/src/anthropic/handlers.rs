//! The handlers of the Anthropic twin: what each operation answers.

use std::collections::BTreeMap;

use axum::extract::{Extension, FromRef, FromRequestParts, Path, Query, State as Held};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::state::{Standing, State};
use super::{KEY, KEYS, MESSAGES, MODELS, Shared, USAGE};
use crate::fault::Lag;
use crate::life::{as_of, rfc3339};
use crate::query::{Parameters, many, one, with_request_id};
use crate::{now, random};

const MODEL: &str = "claude-twin";

type Answer = Result<Json<Value>, Failure>;

pub(super) fn routes(shared: Shared) -> Router {
    Router::new()
        .route(KEYS, get(list_keys))
        .route(KEY, get(get_key).post(update_key))
        .route(USAGE, get(usage))
        .route(MODELS, get(list_models))
        .route(MESSAGES, post(create_message))
        .fallback(async || not_found())
        .method_not_allowed_fallback(async || NOT_ALLOWED)
        .layer(axum::middleware::map_response(add_request_id))
        .with_state(shared)
}

async fn add_request_id(response: Response) -> Response {
    with_request_id("request-id", response)
}

/// Words an error as the API does.
pub(super) fn error_body(status: StatusCode, message: &str) -> Value {
    let kind = match status.as_u16() {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        409 => "conflict_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    };
    json!({ "type": "error", "error": { "type": kind, "message": message }, "request_id": null })
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

const fn not_found() -> Failure {
    Failure(StatusCode::NOT_FOUND, "Not found")
}

const NOT_ALLOWED: Failure = Failure(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
const UNAUTHORIZED: Failure = Failure(StatusCode::UNAUTHORIZED, "invalid x-api-key");

/// A request that came with the admin key.
struct AsAdmin;

impl<S> FromRequestParts<S> for AsAdmin
where
    Shared: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, held: &S) -> Result<Self, Failure> {
        match standing(&Shared::from_ref(held).state(), parts)? {
            Standing::Admin => Ok(Self),
            _ => Err(UNAUTHORIZED),
        }
    }
}

/// A request that came with a key; its id.
struct AsKey(String);

impl<S> FromRequestParts<S> for AsKey
where
    Shared: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, held: &S) -> Result<Self, Failure> {
        match standing(&Shared::from_ref(held).state(), parts)? {
            Standing::Key(id) => Ok(Self(id)),
            _ => Err(UNAUTHORIZED),
        }
    }
}

fn standing(state: &State, parts: &Parts) -> Result<Standing, Failure> {
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
    header("anthropic-version").ok_or(bad("anthropic-version: header is required"))?;
    Ok(header("x-api-key").map_or(Standing::Nothing, |value| state.standing(value)))
}

async fn list_keys(
    _: AsAdmin,
    Held(shared): Held<Shared>,
    lag: Option<Extension<Lag>>,
    Query(query): Parameters,
) -> Answer {
    let state = shared.state();
    let mut shown = state.keys_at(as_of(state.options.list_lag, lag));
    shown.retain(|key| {
        one(&query, "status").is_none_or(|status| status == key.status())
            && one(&query, "workspace_id")
                .is_none_or(|workspace| Some(workspace) == key.workspace.as_deref())
    });
    let limit = one(&query, "limit").map_or(Ok(20), str::parse::<usize>);
    let limit = limit.ok().filter(|limit| (1..=1_000).contains(limit)).ok_or(bad("limit"))?;
    let start = match one(&query, "after_id") {
        None => 0,
        Some(after) => {
            let position = shown.iter().position(|key| key.id == after);
            position.ok_or(bad("after_id"))? + 1
        }
    };
    let page = &shown[start..shown.len().min(start + limit)];
    Ok(Json(json!({
        "data": page.iter().map(|key| key.shown()).collect::<Vec<_>>(),
        "first_id": page.first().map(|key| &key.id),
        "last_id": page.last().map(|key| &key.id),
        "has_more": start + page.len() < shown.len(),
    })))
}

async fn get_key(_: AsAdmin, Held(shared): Held<Shared>, Path(id): Path<String>) -> Answer {
    Ok(Json(shared.state().keys.get(&id).ok_or(not_found())?.shown()))
}

/// An archived key stays archived, and no key is set expired.
async fn update_key(
    _: AsAdmin,
    Held(shared): Held<Shared>,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    let mut state = shared.state();
    let key = state.keys.get_mut(&id).ok_or(not_found())?;
    match body["status"].as_str() {
        None => {}
        Some("archived") => key.archive(),
        Some("active" | "inactive") if key.archived => return Err(bad("the key is archived")),
        Some("active") => key.switch.set(true),
        Some("inactive") => key.switch.set(false),
        Some(_) => return Err(bad("status")),
    }
    if let Some(name) = body["name"].as_str() {
        key.name = name.into();
    }
    Ok(Json(key.shown()))
}

async fn list_models(AsKey(_): AsKey) -> Answer {
    Ok(Json(json!({
        "data": [{ "type": "model", "id": MODEL, "display_name": "Twin", "created_at": rfc3339(0) }],
        "first_id": MODEL,
        "last_id": MODEL,
        "has_more": false,
    })))
}

async fn create_message(
    AsKey(id): AsKey,
    Held(shared): Held<Shared>,
    Json(body): Json<Value>,
) -> Answer {
    let model = body["model"].as_str().ok_or(bad("model: Field required"))?;
    shared.state().keys.get_mut(&id).expect("no key is forgotten").uses.push(now());
    Ok(Json(json!({
        "id": format!("msg_{}", random(b"abcdefghijklmnopqrstuvwxyz0123456789", 24)),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{ "type": "text", "text": "Yes." }],
        "stop_reason": "end_turn",
        "stop_sequence": null,
        "usage": { "input_tokens": 3, "output_tokens": 2 },
    })))
}

async fn usage(_: AsAdmin, Held(shared): Held<Shared>, Query(query): Parameters) -> Answer {
    let state = shared.state();
    let time = |name| {
        let parsed = one(&query, name).map(str::parse::<jiff::Timestamp>).transpose();
        parsed.map(|at| at.map(jiff::Timestamp::as_millisecond)).map_err(|_| bad("time"))
    };
    let start = time("starting_at")?.ok_or(bad("starting_at: Field required"))?;
    let end = time("ending_at")?.unwrap_or_else(now);
    let (width, limit, most) = match one(&query, "bucket_width").unwrap_or("1d") {
        "1m" => (60_000, 60, 1_440),
        "1h" => (3_600_000, 24, 168),
        "1d" => (86_400_000, 7, 31),
        _ => return Err(bad("bucket_width")),
    };
    let limit = one(&query, "limit").map_or(Ok(limit), str::parse::<i64>);
    let limit = limit.ok().filter(|limit| (1..=most).contains(limit)).ok_or(bad("limit"))?;
    let first = match one(&query, "page") {
        None => start - start.rem_euclid(width),
        Some(page) => page.parse().map_err(|_| bad("page"))?,
    };
    let starts = (0..limit).map(|n| first + n * width).take_while(|start| *start < end);
    let buckets: Vec<Value> = starts.map(|start| bucket(&state, start, width, &query)).collect();
    let next = first + limit * width;
    Ok(Json(json!({
        "data": buckets,
        "has_more": next < end,
        "next_page": (next < end).then(|| next.to_string()),
    })))
}

fn bucket(state: &State, start: i64, width: i64, query: &[(String, String)]) -> Value {
    let wanted: Vec<&str> = many(query, "api_key_ids").collect();
    let by_key = many(query, "group_by").any(|field| field == "api_key_id");
    let mut counts: BTreeMap<Option<&str>, usize> = BTreeMap::new();
    for key in
        state.keys.values().filter(|key| wanted.is_empty() || wanted.contains(&key.id.as_str()))
    {
        let inside = |used: &i64| (start..start + width).contains(used);
        let used = state.shown_uses(key).filter(inside).count();
        if used > 0 {
            *counts.entry(by_key.then_some(key.id.as_str())).or_default() += used;
        }
    }
    let results: Vec<Value> =
        counts.into_iter().map(|(key, requests)| used(key, requests)).collect();
    json!({
        "starting_at": rfc3339(start),
        "ending_at": rfc3339(start + width),
        "results": results,
    })
}

fn used(key: Option<&str>, requests: usize) -> Value {
    json!({
        "api_key_id": key,
        "workspace_id": null,
        "model": null,
        "service_tier": null,
        "context_window": null,
        "uncached_input_tokens": 3 * requests,
        "cache_creation": { "ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 0 },
        "cache_read_input_tokens": 0,
        "output_tokens": 2 * requests,
        "server_tool_use": { "web_search_requests": 0 },
    })
}
