//! Who gives tokens for a vault: the sign-in of applications, and the addresses at which a machine and an app are given one.

use axum::body::Bytes;
use axum::extract::{Path, Query, State as Held};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;

use super::handlers::host;
use super::{APP, CLIENT, INSTANCE, SIGN_IN, SIGN_IN_FACTS, Shared, TENANT};
use crate::now;
use crate::query::{Parameters, fields, one};

const RESOURCE: &str = "https://vault.azure.net";

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route(SIGN_IN, post(sign_in))
        .route(SIGN_IN_FACTS, get(sign_in_facts))
        .route(INSTANCE, get(of_machine))
        .route(APP, get(of_app))
}

fn no(status: StatusCode, error: &'static str) -> Response {
    (status, Json(json!({ "error": error, "error_description": "AADSTS7000215" }))).into_response()
}

async fn sign_in(Held(shared): Held<Shared>, Path(tenant): Path<String>, body: Bytes) -> Response {
    let mut state = shared.state();
    let fields = fields(&body);
    let field = |name: &'static str| one(&fields, name);
    let by_secret = field("client_secret") == Some(&state.client_secret);
    let by_assertion = field("client_assertion") == Some(&state.federated)
        && field("client_assertion_type")
            == Some("urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
    let fits = tenant == TENANT
        && field("grant_type") == Some("client_credentials")
        && field("client_id") == Some(CLIENT)
        && field("scope") == Some("https://vault.azure.net/.default")
        && by_secret != by_assertion;
    if !fits {
        return no(StatusCode::UNAUTHORIZED, "invalid_client");
    }
    state.sign_ins += 1;
    Json(json!({
        "token_type": "Bearer", "expires_in": state.lasts, "access_token": state.token,
    }))
    .into_response()
}

/// Microsoft's own clients ask where they sign in, before they do.
async fn sign_in_facts(headers: HeaderMap, Path(tenant): Path<String>) -> Response {
    if tenant != TENANT {
        return no(StatusCode::BAD_REQUEST, "invalid_tenant");
    }
    let at = format!("https://{}/{tenant}", host(&headers));
    Json(json!({
        "issuer": format!("{at}/v2.0"),
        "authorization_endpoint": format!("{at}/oauth2/v2.0/authorize"),
        "token_endpoint": format!("{at}/oauth2/v2.0/token"),
    }))
    .into_response()
}

/// A machine says that it means this address, and nothing else of itself.
async fn of_machine(
    Held(shared): Held<Shared>,
    headers: HeaderMap,
    Query(query): Parameters,
) -> Response {
    let mut state = shared.state();
    let is_meant = headers.get("metadata").is_some_and(|meant| meant == "true")
        && !headers.contains_key("x-forwarded-for");
    if !is_meant || !is_asked(&query, "2018-02-01") {
        return no(StatusCode::BAD_REQUEST, "invalid_request");
    }
    state.sign_ins += 1;
    // As texts, and with more than is needed.
    let ends = now() / 1_000 + i64::try_from(state.lasts).unwrap_or(0);
    Json(json!({
        "access_token": state.token,
        "client_id": CLIENT,
        "expires_in": state.lasts.to_string(),
        "expires_on": ends.to_string(),
        "resource": RESOURCE,
        "token_type": "Bearer",
    }))
    .into_response()
}

/// An app is known by a secret of its own, and is told only when the token ends.
async fn of_app(
    Held(shared): Held<Shared>,
    headers: HeaderMap,
    Query(query): Parameters,
) -> Response {
    let mut state = shared.state();
    let known = headers.get("x-identity-header").and_then(|known| known.to_str().ok());
    if known != Some(&state.app_secret) {
        return no(StatusCode::UNAUTHORIZED, "unauthorized");
    }
    if !is_asked(&query, "2019-08-01") {
        return no(StatusCode::BAD_REQUEST, "invalid_request");
    }
    state.sign_ins += 1;
    let ends = now() / 1_000 + i64::try_from(state.lasts).unwrap_or(0);
    Json(json!({
        "access_token": state.token,
        "expires_on": ends.to_string(),
        "resource": RESOURCE,
        "token_type": "Bearer",
    }))
    .into_response()
}

fn is_asked(query: &[(String, String)], version: &str) -> bool {
    one(query, "api-version") == Some(version)
        && one(query, "resource") == Some(RESOURCE)
        && one(query, "client_id").is_none_or(|id| id == CLIENT)
}
