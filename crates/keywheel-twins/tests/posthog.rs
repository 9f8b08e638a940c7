//! The PostHog twin answers as the API does, goes wrong as its script says, and says that it is a twin.

#![expect(clippy::unwrap_used, reason = "a test may panic in its helpers too")]

use std::time::Duration;

use keywheel_twins::fault::{Fault, Rule};
use keywheel_twins::posthog::{PROJECT, Twin, TwinOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

struct Client {
    http: reqwest::Client,
    twin: Twin,
}

impl Client {
    fn new(options: TwinOptions) -> Self {
        rustls::crypto::ring::default_provider().install_default().ok();
        let http =
            reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap();
        Self { http, twin: Twin::start(options).unwrap() }
    }

    async fn ask_as(
        &self,
        key: &str,
        method: Method,
        path: &str,
        body: Value,
    ) -> (StatusCode, Value) {
        let url = format!("{}{path}", self.twin.base_url());
        let request = self.http.request(method, url).bearer_auth(key).json(&body);
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()[keywheel_twins::HEADER], "posthog");
        (response.status(), response.json().await.unwrap_or(Value::Null))
    }

    async fn ask(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        self.ask_as(self.twin.personal_key(), method, path, body).await
    }

    async fn create(&self, label: &str) -> (StatusCode, Value) {
        let body = json!({ "label": label, "scopes": ["feature_flag:read"] });
        self.ask(Method::POST, &keys(""), body).await
    }

    async fn evaluate(&self, key: &str) -> StatusCode {
        let path = format!("/api/projects/{PROJECT}/feature_flags/local_evaluation/");
        self.ask_as(key, Method::GET, &path, Value::Null).await.0
    }

    async fn flags(&self, token: &str) -> StatusCode {
        let body = json!({ "token": token, "distinct_id": "someone" });
        self.ask_as("", Method::POST, "/flags?v=2", body).await.0
    }
}

fn keys(rest: &str) -> String {
    format!("/api/projects/{PROJECT}/project_secret_api_keys/{rest}")
}

#[tokio::test]
async fn a_key_is_shown_once_and_lives_until_it_is_deleted() {
    let client = Client::new(TwinOptions::default());
    let (status, made) = client.create("kw-1-1").await;
    assert_eq!(status, 201, "{made}");
    let (id, value) = (made["id"].as_str().unwrap(), made["value"].as_str().unwrap());
    assert_eq!(client.evaluate(value).await, 200);
    let (_, list) = client.ask(Method::GET, &keys(""), Value::Null).await;
    assert!(!list.to_string().contains(value), "the value is shown once");
    assert_eq!((&list["count"], list["results"][0]["last_used_at"].is_string()), (&json!(1), true));
    let path = keys(&format!("{id}/"));
    assert_eq!(client.ask(Method::DELETE, &path, Value::Null).await.0, 204);
    assert_eq!(client.ask(Method::DELETE, &path, Value::Null).await.0, 404);
    assert_eq!(client.evaluate(value).await, 401);
}

#[tokio::test]
async fn a_label_is_unique_and_a_project_has_ten_keys_at_most() {
    let client = Client::new(TwinOptions { page: 4, ..TwinOptions::default() });
    for number in 0..10 {
        assert_eq!(client.create(&format!("key-{number}")).await.0, 201);
    }
    for label in ["key-1", "key-10"] {
        assert_eq!(client.create(label).await.0, 400, "{label}");
    }
    let (_, page) = client.ask(Method::GET, &keys("?offset=8"), Value::Null).await;
    assert_eq!((page["results"].as_array().unwrap().len(), &page["next"]), (2, &Value::Null));
}

#[tokio::test]
async fn nothing_is_reset_rotated_or_rolled_by_a_personal_key() {
    let client = Client::new(TwinOptions::default());
    let (token, secret) = (client.twin.project_token(), client.twin.secret_token());
    let team = format!("/api/environments/{PROJECT}/");
    for action in ["reset_token/", "rotate_secret_token/", "delete_secret_token_backup/"] {
        let (status, _) = client.ask(Method::PATCH, &format!("{team}{action}"), Value::Null).await;
        assert_eq!(status, 403, "{action}");
    }
    let key = client.twin.make_key("backend", &["feature_flag:read"]);
    let roll = client.ask(Method::POST, &keys(&format!("{}/roll/", key.id)), Value::Null).await;
    assert_eq!(
        (roll.0, client.evaluate(&key.value).await),
        (StatusCode::FORBIDDEN, StatusCode::OK)
    );
    let (_, shown) = client.ask(Method::GET, &team, Value::Null).await;
    assert_eq!((&shown["api_token"], &shown["secret_api_token"]), (&json!(token), &json!(secret)));
}

#[tokio::test]
async fn a_project_token_has_no_overlap_and_a_secret_token_has_one() {
    let client = Client::new(TwinOptions::default());
    let old = client.twin.project_token();
    let new = client.twin.reset_token();
    assert_eq!(
        (client.flags(&old).await, client.flags(&new).await),
        (StatusCode::UNAUTHORIZED, StatusCode::OK)
    );
    let old = client.twin.secret_token();
    let new = client.twin.rotate_secret_token();
    assert_eq!(
        (client.evaluate(&old).await, client.evaluate(&new).await),
        (StatusCode::OK, StatusCode::OK)
    );
    client.twin.delete_backup();
    assert_eq!(
        (client.evaluate(&old).await, client.twin.backup_token()),
        (StatusCode::UNAUTHORIZED, None)
    );
}

#[tokio::test]
async fn capture_takes_everything_and_keeps_what_is_right() {
    let client = Client::new(TwinOptions::default());
    let token = client.twin.project_token();
    for token in [token.as_str(), "phc_wrong"] {
        let body = json!({ "api_key": token, "event": "signed_up", "distinct_id": "someone" });
        let answer = client.ask_as("", Method::POST, "/i/v0/e/", body).await;
        assert_eq!(answer, (StatusCode::OK, json!({ "status": 1 })));
    }
    client.twin.add_event("signed_up", Duration::from_secs(3_600));
    let since = jiff::Timestamp::now() - Duration::from_secs(60);
    let values = json!({ "event": "signed_up", "since": since.to_string() });
    let body = json!({ "query": { "kind": "HogQLQuery", "query": "select 1", "values": values } });
    let path = format!("/api/projects/{PROJECT}/query/");
    let (status, counted) = client.ask(Method::POST, &path, body).await;
    assert_eq!((status, &counted["results"]), (StatusCode::OK, &json!([[1]])));
}

#[tokio::test]
async fn a_key_without_the_scope_is_alive_and_refused() {
    let client = Client::new(TwinOptions::default());
    let key = client.twin.make_key("backend", &["endpoint:read"]);
    assert_eq!(client.evaluate(&key.value).await, 403);
    client.twin.restrict(&[]);
    assert_eq!(client.ask(Method::GET, &keys(""), Value::Null).await.0, 403);
    assert_eq!(client.ask_as("phx_wrong", Method::GET, &keys(""), Value::Null).await.0, 401);
    let current = client.ask(Method::GET, "/api/personal_api_keys/@current/", Value::Null).await;
    assert_eq!((current.0, &current.1["scopes"]), (StatusCode::OK, &json!([])));
}

#[tokio::test]
async fn a_script_is_followed() {
    let client = Client::new(TwinOptions::default());
    let rules = vec![Rule::first("POST project_secret_api_keys", Fault::status(503))];
    client.twin.faults().set(rules).unwrap();
    assert_eq!(client.create("kw-1-1").await.0, 503);
    assert_eq!((client.twin.live("kw-1-1").len(), client.twin.faults().unfired()), (0, vec![]));
}

#[tokio::test]
async fn the_activity_log_tells_who_did_what_page_by_page() {
    let client = Client::new(TwinOptions { page: 1, ..TwinOptions::default() });
    let log = |query: &str| format!("/api/projects/{PROJECT}/activity_log/?{query}");
    let (status, refused) = client.ask(Method::GET, &log(""), Value::Null).await;
    assert_eq!(status, 403);
    assert!(refused["detail"].as_str().unwrap().contains("'activity_log:read'"), "{refused}");
    client.twin.restrict(&["activity_log:read", "project_secret_api_key:write"]);
    let key = client.twin.make_key("by-hand", &["endpoint:read"]);
    client.ask(Method::DELETE, &keys(&format!("{}/", key.id)), Value::Null).await;
    client.twin.rotate_secret_token();
    let of_key = format!("scope=ProjectSecretAPIKey&item_id={}", key.id);
    for (page, activity, address) in [(1, "deleted", "192.0.2.8"), (2, "created", "192.0.2.7")] {
        let path = log(&format!("{of_key}&page={page}"));
        let (_, shown) = client.ask(Method::GET, &path, Value::Null).await;
        let row = &shown["results"][0];
        assert_eq!((&row["activity"], &row["ip_address"]), (&json!(activity), &json!(address)));
        assert_eq!((shown["next"].is_null(), &shown["count"]), (page == 2, &json!(2)));
    }
    assert_eq!(client.ask(Method::GET, &log("page=9"), Value::Null).await.0, 404);
    let (_, of_team) = client.ask(Method::GET, &log("scope=Team"), Value::Null).await;
    let change = &of_team["results"][0]["detail"]["changes"][0];
    assert_eq!(change["field"], "secret_api_token");
    assert_ne!(change["after"], client.twin.secret_token().as_str(), "no whole value is shown");
    let free = TwinOptions { no_activity_log: true, ..TwinOptions::default() };
    let free = Client::new(free);
    free.twin.restrict(&["activity_log:read"]);
    assert_eq!(free.ask(Method::GET, &log(""), Value::Null).await.0, 402);
}
