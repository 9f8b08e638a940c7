//! Who gives tokens: the metadata server, the exchange of tokens, and the account that another one becomes.

use axum::body::Bytes;
use axum::extract::{Path, State as Held};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::{ACCOUNT, AUDIENCE, EXCHANGE, IMPERSONATE, MACHINE, SUBJECT, Shared};
use crate::life::rfc3339;
use crate::now;
use crate::query::{fields, one};

const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// What Google's own client asks for where it becomes a service account next.
const ONLY_TO_BECOME: &str = "https://www.googleapis.com/auth/iam";

/// For how many seconds a token is good.
const AN_HOUR: u64 = 3_600;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route(MACHINE, get(of_machine))
        .route(SUBJECT, get(subject))
        .route(EXCHANGE, post(exchange))
        .route(IMPERSONATE, post(impersonate))
}

fn no(status: u16, error: &'static str) -> Response {
    let status = StatusCode::from_u16(status).expect("a status has three digits");
    (status, Json(json!({ "error": error, "error_description": "refused" }))).into_response()
}

/// A program that was led here by mistake sends no flavor, and is refused.
async fn of_machine(
    Held(shared): Held<Shared>,
    headers: HeaderMap,
    Path(account): Path<String>,
) -> Response {
    let mut state = shared.state();
    if headers.get("metadata-flavor").is_none_or(|flavor| flavor != "Google") {
        return no(403, "Missing Metadata-Flavor:Google header.");
    }
    if account != "default" && account != ACCOUNT {
        return no(404, "not found");
    }
    state.sign_ins += 1;
    let lasts = state.options.lasts.unwrap_or(AN_HOUR - 1);
    let token = Json(json!({
        "access_token": state.token, "expires_in": lasts, "token_type": "Bearer",
    }));
    match state.options.has_no_flavor {
        true => token.into_response(),
        false => ([("metadata-flavor", "Google")], token).into_response(),
    }
}

/// What a job is given by its own side: the address is known to it alone, by a header.
async fn subject(Held(shared): Held<Shared>, headers: HeaderMap) -> Response {
    if headers.get("x-job").is_none_or(|job| job != "7") {
        return no(401, "unauthorized");
    }
    Json(json!({ "value": shared.state().subject, "count": 1 })).into_response()
}

async fn exchange(Held(shared): Held<Shared>, body: Bytes) -> Response {
    let mut state = shared.state();
    let fields = fields(&body);
    let wanted = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("audience", AUDIENCE),
        ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
    ];
    let has_scope = [SCOPE, ONLY_TO_BECOME].map(Some).contains(&one(&fields, "scope"));
    if !has_scope || wanted.iter().any(|(name, value)| one(&fields, name) != Some(value)) {
        return no(400, "invalid_request");
    }
    if one(&fields, "subject_token") != Some(&state.subject) {
        return no(400, "invalid_grant");
    }
    state.sign_ins += 1;
    let lasts = state.options.lasts.unwrap_or(AN_HOUR);
    Json(json!({
        "access_token": state.federated,
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "token_type": "Bearer",
        "expires_in": lasts,
    }))
    .into_response()
}

async fn impersonate(
    Held(shared): Held<Shared>,
    headers: HeaderMap,
    Path(called): Path<String>,
    Json(body): Json<Value>,
) -> Response {
    let mut state = shared.state();
    let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    if header.and_then(|header| header.strip_prefix("Bearer ")) != Some(&state.federated) {
        return no(401, "unauthenticated");
    }
    if called.strip_suffix(":generateAccessToken") != Some(ACCOUNT) {
        return no(403, "permission denied");
    }
    let lifetime = body["lifetime"].as_str().and_then(|text| text.strip_suffix('s'));
    let lifetime: Option<u64> = lifetime.and_then(|text| text.parse().ok());
    let is_whole = body["scope"].as_array().is_some_and(|scopes| scopes.iter().any(|s| s == SCOPE));
    let Some(lifetime) = lifetime.filter(|lifetime| is_whole && *lifetime <= AN_HOUR) else {
        return no(400, "invalid argument");
    };
    state.sign_ins += 1;
    // In whole seconds, as Google's own client insists.
    let ends = (now() / 1_000 + i64::try_from(lifetime).unwrap_or(0)) * 1_000;
    Json(json!({ "accessToken": state.token, "expireTime": rfc3339(ends) })).into_response()
}
