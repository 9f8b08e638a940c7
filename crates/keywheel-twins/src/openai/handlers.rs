//! The handlers of the OpenAI twin: what each operation answers.

use std::collections::BTreeMap;

use axum::extract::{Extension, FromRef, FromRequestParts, Path, Query, State as Held};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::state::{Account, Actor, Happened, Key, Owner, Standing, State, redacted};
use super::{
    ACCOUNT, ACCOUNT_KEYS, ACCOUNTS, ADMIN_KEYS, AUDIT_LOGS, CHAT, KEY, KEYS, MODELS, PROJECT,
    PROJECTS, Shared, USAGE,
};
use crate::fault::Lag;
use crate::life::as_of;
use crate::query::{Parameters, many, one, with_request_id};
use crate::{now, random};

const MODEL: &str = "gpt-twin";

type Answer = Result<Json<Value>, Failure>;

pub(super) fn routes(shared: Shared) -> Router {
    use axum::routing::post;
    Router::new()
        .route(PROJECTS, get(list_projects))
        .route(PROJECT, get(get_project))
        .route(ACCOUNTS, get(list_accounts).post(create_account))
        .route(ACCOUNT, get(get_account).delete(delete_account))
        .route(ACCOUNT_KEYS, post(create_key))
        .route(KEYS, get(list_keys))
        .route(KEY, get(get_key).delete(delete_key))
        .route(ADMIN_KEYS, get(list_admin_keys))
        .route(USAGE, get(usage))
        .route(AUDIT_LOGS, get(list_audit_logs))
        .route(MODELS, get(list_models))
        .route(CHAT, post(chat))
        .fallback(nowhere)
        .layer(axum::middleware::map_response(add_request_id))
        .with_state(shared)
}

/// Words an error as the API does.
pub(super) fn error_body(status: StatusCode, message: &str) -> Value {
    let kind = match status.as_u16() {
        429 => "requests",
        500.. => "server_error",
        _ => "invalid_request_error",
    };
    json!({ "error": { "message": message, "type": kind, "param": null, "code": null } })
}

/// An answer that is no success.
struct Failure {
    status: StatusCode,
    message: String,
    code: Option<&'static str>,
}

impl Failure {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), code: None }
    }

    fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("no such {what}"))
    }

    fn bad(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut body = error_body(self.status, &self.message);
        body["error"]["code"] = json!(self.code);
        (self.status, Json(body)).into_response()
    }
}

async fn add_request_id(response: Response) -> Response {
    with_request_id("x-request-id", response)
}

/// A request that came with the admin key.
struct AsAdmin;

/// A request that came with a key of the project; its id.
struct AsKey(String);

impl<S> FromRequestParts<S> for AsAdmin
where
    Shared: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, held: &S) -> Result<Self, Failure> {
        let shared = Shared::from_ref(held);
        let mut state = shared.state();
        match standing(&state, parts)? {
            Standing::Admin => {
                state.admin.last_used = Some(now());
                Ok(Self)
            }
            _ => Err(missing_scope("api.management.read")),
        }
    }
}

impl<S> FromRequestParts<S> for AsKey
where
    Shared: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, held: &S) -> Result<Self, Failure> {
        let shared = Shared::from_ref(held);
        let state = shared.state();
        let wanted = if parts.method == Method::GET { "api.model.read" } else { "model.request" };
        match standing(&state, parts)? {
            Standing::Key(id) if may(&state.keys[&id], wanted) => Ok(Self(id)),
            _ => Err(missing_scope(wanted)),
        }
    }
}

fn standing(state: &State, parts: &Parts) -> Result<Standing, Failure> {
    let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let value = header
        .and_then(|header| header.strip_prefix("Bearer "))
        .ok_or_else(|| Failure::new(StatusCode::UNAUTHORIZED, "You didn't provide an API key."))?;
    match state.standing(value) {
        Standing::Nothing => Err(Failure {
            status: StatusCode::UNAUTHORIZED,
            message: format!("Incorrect API key provided: {}.", redacted(value)),
            code: Some("invalid_api_key"),
        }),
        standing => Ok(standing),
    }
}

fn may(key: &Key, scope: &str) -> bool {
    key.scopes.is_empty() || key.scopes.iter().any(|held| held == scope)
}

fn missing_scope(scope: &str) -> Failure {
    let message =
        format!("You have insufficient permissions for this operation. Missing scopes: {scope}.");
    Failure::new(StatusCode::UNAUTHORIZED, message)
}

async fn nowhere(method: Method, uri: Uri) -> Failure {
    Failure::new(StatusCode::NOT_FOUND, format!("Invalid URL ({method} {})", uri.path()))
}

async fn list_projects(_: AsAdmin, Held(shared): Held<Shared>, Query(query): Parameters) -> Answer {
    let state = shared.state();
    let archived_too = one(&query, "include_archived") == Some("true");
    let shown = (archived_too || state.project.archived.is_none()).then(|| project(&state));
    page(shown.into_iter().collect(), &query)
}

async fn get_project(_: AsAdmin, Held(shared): Held<Shared>, Path(id): Path<String>) -> Answer {
    let state = shared.state();
    known_project(&state, &id)?;
    Ok(Json(project(&state)))
}

async fn create_account(
    _: AsAdmin,
    Held(shared): Held<Shared>,
    Path(project): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    let mut state = shared.state();
    open_project(&state, &project)?;
    let name = body["name"].as_str().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| Failure::bad("Missing required parameter: 'name'."))?;
    if state.options.most_accounts.is_some_and(|most| state.accounts_at(i64::MAX).len() >= most) {
        return Err(Failure::bad("The project has as many service accounts as it may."));
    }
    let expires_in = expiry(&body)?;
    let account = state.add_account(name);
    let key = if body["create_service_account_only"] == true {
        Value::Null
    } else {
        let id =
            state.add_key(Owner::Account(account.clone()), "Secret Key", expires_in, Vec::new());
        shown_once(&state.keys[&id])
    };
    let mut answer = account_json(&state.accounts[&account]);
    answer["api_key"] = key;
    Ok(Json(answer))
}

async fn list_accounts(
    _: AsAdmin,
    Held(shared): Held<Shared>,
    Path(project): Path<String>,
    lag: Option<Extension<Lag>>,
    Query(query): Parameters,
) -> Answer {
    let state = shared.state();
    open_project(&state, &project)?;
    page(
        state
            .accounts_at(as_of(state.options.list_lag, lag))
            .into_iter()
            .map(account_json)
            .collect(),
        &query,
    )
}

async fn get_account(
    _: AsAdmin,
    Held(shared): Held<Shared>,
    Path((project, id)): Path<(String, String)>,
) -> Answer {
    let state = shared.state();
    known_project(&state, &project)?;
    state
        .live_account(&id)
        .map(account_json)
        .map(Json)
        .ok_or_else(|| Failure::not_found("service account"))
}

async fn delete_account(
    _: AsAdmin,
    Held(shared): Held<Shared>,
    Path((project, id)): Path<(String, String)>,
) -> Answer {
    let mut state = shared.state();
    open_project(&state, &project)?;
    state.live_account(&id).ok_or_else(|| Failure::not_found("service account"))?;
    state.end_account(&id);
    Ok(Json(
        json!({ "object": "organization.project.service_account.deleted", "id": id, "deleted": true }),
    ))
}

async fn create_key(
    _: AsAdmin,
    Held(shared): Held<Shared>,
    Path((project, account)): Path<(String, String)>,
    Json(body): Json<Value>,
) -> Answer {
    let mut state = shared.state();
    open_project(&state, &project)?;
    state.live_account(&account).ok_or_else(|| Failure::not_found("service account"))?;
    let scopes = body["scopes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned);
    let name = body["name"].as_str().unwrap_or("Secret Key");
    let id = state.add_key(Owner::Account(account), name, expiry(&body)?, scopes.collect());
    Ok(Json(shown_once(&state.keys[&id])))
}

async fn list_keys(
    _: AsAdmin,
    Held(shared): Held<Shared>,
    Path(project): Path<String>,
    lag: Option<Extension<Lag>>,
    Query(query): Parameters,
) -> Answer {
    let state = shared.state();
    known_project(&state, &project)?;
    // Left out, it hides keys whose owner has lost access, although they still work.
    let wanted: &[bool] = match one(&query, "owner_project_access") {
        None | Some("active") => &[true],
        Some("inactive") => &[false],
        Some("any") => &[true, false],
        Some(_) => return Err(Failure::bad("Invalid value for 'owner_project_access'.")),
    };
    let mut shown = state.keys_at(as_of(state.options.list_lag, lag));
    shown.retain(|key| wanted.contains(&state.owner_has_access(key)));
    page(shown.into_iter().map(|key| key_json(&state, key)).collect(), &query)
}

async fn get_key(
    _: AsAdmin,
    Held(shared): Held<Shared>,
    Path((project, id)): Path<(String, String)>,
) -> Answer {
    let state = shared.state();
    known_project(&state, &project)?;
    let key = state.live_key(&id).ok_or_else(|| Failure::not_found("API key"))?;
    Ok(Json(key_json(&state, key)))
}

async fn delete_key(
    _: AsAdmin,
    Held(shared): Held<Shared>,
    Path((project, id)): Path<(String, String)>,
) -> Answer {
    let mut state = shared.state();
    known_project(&state, &project)?;
    let key = state.live_key(&id).ok_or_else(|| Failure::not_found("API key"))?;
    if state.options.keeps_keys_of_accounts && matches!(key.owner, Owner::Account(_)) {
        return Err(Failure::bad("The key belongs to a service account."));
    }
    state.end_key(&id);
    Ok(Json(json!({ "object": "organization.project.api_key.deleted", "id": id, "deleted": true })))
}

async fn list_admin_keys(
    _: AsAdmin,
    Held(shared): Held<Shared>,
    Query(query): Parameters,
) -> Answer {
    let admin = &shared.state().admin;
    let key = json!({
        "object": "organization.admin_api_key",
        "id": admin.id,
        "name": "twin",
        "redacted_value": redacted(&admin.value),
        "created_at": seconds(admin.created),
        "expires_at": null,
        "last_used_at": admin.last_used.map(seconds),
        "owner": {
            "type": "user", "object": "organization.user", "id": "user-1",
            "name": "twin", "created_at": seconds(admin.created), "role": "owner",
        },
    });
    page(vec![key], &query)
}

async fn list_audit_logs(
    _: AsAdmin,
    Held(shared): Held<Shared>,
    Query(query): Parameters,
) -> Answer {
    let state = shared.state();
    let since = one(&query, "effective_at[gte]").map(str::parse::<i64>).transpose();
    let since = since.map_err(|_| Failure::bad("Invalid value for 'effective_at'."))?.unwrap_or(0);
    let is_one_of = |name: &str, value: &str| {
        let mut wanted = many(&query, name).peekable();
        wanted.peek().is_none() || wanted.any(|wanted| wanted == value)
    };
    let fits = |event: &&Happened| {
        seconds(event.at) >= since
            && is_one_of("resource_ids", &event.of)
            && is_one_of("event_types", event.kind)
            && is_one_of("actor_ids", actor_id(&state, event.actor))
    };
    let kept = state.events.iter().rev().filter(|_| !state.options.audit_log_is_off);
    page(kept.filter(fits).map(|event| event_json(&state, event)).collect(), &query)
}

fn actor_id(state: &State, actor: Actor) -> &str {
    match actor {
        Actor::AdminKey => &state.admin.id,
        Actor::Person => "user-1",
        Actor::Nobody => "",
    }
}

fn event_json(state: &State, event: &Happened) -> Value {
    let user = json!({ "id": "user-1", "email": "someone@example.com" });
    let actor = match event.actor {
        Actor::AdminKey => json!({
            "type": "api_key", "api_key": { "id": state.admin.id, "type": "user", "user": user },
        }),
        Actor::Person => json!({
            "type": "session", "session": { "user": user, "ip_address": "192.0.2.7" },
        }),
        Actor::Nobody => Value::Null,
    };
    let mut answer = json!({
        "id": event.id, "type": event.kind, "effective_at": seconds(event.at), "actor": actor,
        "project": { "id": state.project.id, "name": "twin" },
    });
    answer[event.kind] = json!({ "id": event.of });
    answer
}

async fn list_models(AsKey(_): AsKey) -> Answer {
    Ok(Json(json!({
        "object": "list",
        "data": [{ "id": MODEL, "object": "model", "created": 1_700_000_000, "owned_by": "twin" }],
    })))
}

async fn chat(AsKey(id): AsKey, Held(shared): Held<Shared>, Json(body): Json<Value>) -> Answer {
    let model =
        body["model"].as_str().ok_or_else(|| Failure::bad("you must provide a model parameter"))?;
    if !body["messages"].is_array() {
        return Err(Failure::bad("Missing required parameter: 'messages'."));
    }
    let mut state = shared.state();
    let used = now();
    state.keys.get_mut(&id).expect("nothing is ever forgotten").uses.push(used);
    Ok(Json(json!({
        "id": format!("chatcmpl-{}", random(b"abcdefghijklmnopqrstuvwxyz0123456789", 24)),
        "object": "chat.completion",
        "created": seconds(used),
        "model": model,
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": "Yes.", "refusal": null },
            "logprobs": null,
            "finish_reason": "stop",
        }],
        "usage": { "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5 },
    })))
}

async fn usage(_: AsAdmin, Held(shared): Held<Shared>, Query(query): Parameters) -> Answer {
    let state = shared.state();
    let number = |name| one(&query, name).map(str::parse::<i64>).transpose();
    let bad = |_| Failure::bad("Invalid time.");
    let start =
        number("start_time").map_err(bad)?.ok_or_else(|| Failure::bad("Missing 'start_time'."))?;
    let end = number("end_time").map_err(bad)?.unwrap_or_else(|| seconds(now()) + 1);
    let (width, limit, most) = match one(&query, "bucket_width").unwrap_or("1d") {
        "1m" => (60, 60, 1440),
        "1h" => (3_600, 24, 168),
        "1d" => (86_400, 7, 31),
        _ => return Err(Failure::bad("Invalid value for 'bucket_width'.")),
    };
    let limit = number("limit").map_err(bad)?.unwrap_or(limit);
    if !(1..=most).contains(&limit) {
        return Err(Failure::bad("Invalid value for 'limit'."));
    }
    let first = number("page").map_err(bad)?.unwrap_or(start - start.rem_euclid(width));
    let starts: Vec<i64> =
        (0..limit).map(|n| first + n * width).take_while(|start| *start < end).collect();
    let next = first + limit * width;
    let more = next < end;
    let buckets: Vec<Value> =
        starts.into_iter().map(|start| bucket(&state, start, width, &query)).collect();
    Ok(Json(json!({
        "object": "page",
        "data": buckets,
        "has_more": more,
        "next_page": more.then(|| next.to_string()),
    })))
}

fn bucket(state: &State, start: i64, width: i64, query: &[(String, String)]) -> Value {
    let wanted: Vec<&str> = many(query, "api_key_ids").collect();
    let by_key = many(query, "group_by").any(|field| field == "api_key_id");
    let mut counts: BTreeMap<Option<&str>, usize> = BTreeMap::new();
    for key in
        state.keys.values().filter(|key| wanted.is_empty() || wanted.contains(&key.id.as_str()))
    {
        let inside = |used: &i64| (start * 1_000..(start + width) * 1_000).contains(used);
        let used = state.shown_uses(key).filter(inside).count();
        if used > 0 {
            *counts.entry(by_key.then_some(key.id.as_str())).or_default() += used;
        }
    }
    let results: Vec<Value> =
        counts.into_iter().map(|(key, requests)| used(key, requests)).collect();
    json!({ "object": "bucket", "start_time": start, "end_time": start + width, "results": results })
}

fn used(key: Option<&str>, requests: usize) -> Value {
    json!({
        "object": "organization.usage.completions.result",
        "input_tokens": 3 * requests,
        "output_tokens": 2 * requests,
        "input_cached_tokens": 0,
        "num_model_requests": requests,
        "project_id": null,
        "user_id": null,
        "api_key_id": key,
        "model": null,
        "batch": null,
    })
}

fn known_project(state: &State, id: &str) -> Result<(), Failure> {
    if state.project.id == id { Ok(()) } else { Err(Failure::not_found("project")) }
}

fn open_project(state: &State, id: &str) -> Result<(), Failure> {
    known_project(state, id)?;
    if state.project.archived.is_some() {
        Err(Failure::bad("The project is archived."))
    } else {
        Ok(())
    }
}

fn project(state: &State) -> Value {
    json!({
        "id": state.project.id,
        "object": "organization.project",
        "name": "twin",
        "created_at": seconds(state.project.created),
        "archived_at": state.project.archived.map(seconds),
        "status": if state.project.archived.is_some() { "archived" } else { "active" },
    })
}

fn account_json(account: &Account) -> Value {
    json!({
        "object": "organization.project.service_account",
        "id": account.id,
        "name": account.name,
        "role": "member",
        "created_at": seconds(account.life.created),
    })
}

/// The only answer that holds the value.
fn shown_once(key: &Key) -> Value {
    let mut answer = json!({
        "object": "organization.project.service_account.api_key",
        "value": key.value,
        "name": key.name,
        "created_at": seconds(key.life.created),
        "id": key.id,
    });
    if let Some(expires) = key.expires {
        answer["expires_at"] = json!(seconds(expires));
    }
    answer
}

fn key_json(state: &State, key: &Key) -> Value {
    let owner = match &key.owner {
        Owner::Account(id) => {
            let account = &state.accounts[id];
            json!({ "type": "service_account", "service_account": {
                "id": id, "name": account.name, "created_at": seconds(account.life.created), "role": "member",
            }})
        }
        Owner::User(id) => json!({ "type": "user", "user": {
            "id": id, "email": "someone@example.com", "name": "someone", "created_at": seconds(key.life.created),
            "role": "member",
        }}),
    };
    json!({
        "object": "organization.project.api_key",
        "redacted_value": redacted(&key.value),
        "name": key.name,
        "created_at": seconds(key.life.created),
        "last_used_at": state.shown_uses(key).max().map(seconds),
        "id": key.id,
        "owner_project_access": if state.owner_has_access(key) { "active" } else { "inactive" },
        "owner": owner,
    })
}

fn expiry(body: &Value) -> Result<Option<i64>, Failure> {
    match &body["expires_in_seconds"] {
        Value::Null => Ok(None),
        given => match given.as_i64() {
            Some(seconds @ 1..=31_536_000) => Ok(Some(seconds)),
            _ => Err(Failure::bad("Invalid value for 'expires_in_seconds'.")),
        },
    }
}

/// Cuts one page out of a list: `limit` items after the id `after`.
fn page(items: Vec<Value>, query: &[(String, String)]) -> Answer {
    let limit = one(query, "limit")
        .map_or(Ok(20), str::parse::<usize>)
        .ok()
        .filter(|limit| (1..=100).contains(limit));
    let limit = limit.ok_or_else(|| Failure::bad("Invalid value for 'limit'."))?;
    let start = match one(query, "after") {
        None => 0,
        Some(after) => match items.iter().position(|item| item["id"] == after) {
            Some(position) => position + 1,
            None => return Err(Failure::bad("Invalid value for 'after'.")),
        },
    };
    let shown = &items[start..items.len().min(start + limit)];
    let id = |item: Option<&Value>| item.map_or(Value::Null, |item| item["id"].clone());
    Ok(Json(json!({
        "object": "list",
        "data": shown,
        "first_id": id(shown.first()),
        "last_id": id(shown.last()),
        "has_more": start + shown.len() < items.len(),
    })))
}

fn seconds(millis: i64) -> i64 {
    millis.div_euclid(1_000)
}
