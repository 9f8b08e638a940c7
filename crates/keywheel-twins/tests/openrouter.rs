//! The OpenRouter twin answers as the API does, and says that it is a twin.

#![expect(clippy::unwrap_used, reason = "a test may panic in its helpers too")]

use std::time::Duration;

use keywheel_twins::fault::{Fault, Rule};
use keywheel_twins::openrouter::{Limits, Twin, TwinOptions};
use reqwest::Method;
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

    async fn send(&self, method: Method, path: &str, key: &str, body: Value) -> (u16, Value) {
        let url = format!("{}{path}", self.twin.base_url());
        let sent = self.http.request(method, url).bearer_auth(key).json(&body).send().await;
        let response = sent.unwrap();
        assert_eq!(response.headers()[keywheel_twins::HEADER], "openrouter");
        (response.status().as_u16(), response.json().await.unwrap())
    }

    async fn manage(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        self.send(method, path, self.twin.management_key(), body).await
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.manage(Method::GET, path, Value::Null).await;
        assert_eq!(status, 200, "{path}: {body}");
        body["data"].clone()
    }

    async fn own(&self, key: &str) -> u16 {
        self.send(Method::GET, "/key", key, Value::Null).await.0
    }
}

#[tokio::test]
async fn a_key_is_made_switched_off_and_on_and_deleted() {
    let client = Client::new(TwinOptions::default());
    let (status, made) = client
        .manage(
            Method::POST,
            "/keys",
            json!({ "name": "kw-1-1", "limit": 5, "limit_reset": "monthly" }),
        )
        .await;
    assert_eq!(status, 201, "{made}");
    let (hash, value) = (made["data"]["hash"].as_str().unwrap(), made["key"].as_str().unwrap());
    assert_eq!(client.own(value).await, 200);
    let path = format!("/keys/{hash}");
    let shown = client.get(&path).await;
    assert_eq!((&shown["limit"], &shown["limit_reset"]), (&json!(5.0), &json!("monthly")));
    assert!(!shown.to_string().contains(value), "the value is shown once");
    for (disabled, status, listed) in [(true, 401, 0), (false, 200, 1)] {
        client.manage(Method::PATCH, &path, json!({ "disabled": disabled })).await;
        assert_eq!(client.own(value).await, status);
        assert_eq!(client.get("/keys").await.as_array().unwrap().len(), listed);
        assert_eq!(client.get("/keys?include_disabled=true").await.as_array().unwrap().len(), 1);
    }
    assert_eq!(client.manage(Method::DELETE, &path, Value::Null).await.0, 200);
    assert_eq!(client.manage(Method::DELETE, &path, Value::Null).await.0, 404);
    assert_eq!((client.own(value).await, client.twin.live("kw-1-1").len()), (401, 0));
}

#[tokio::test]
async fn a_list_shows_one_workspace_and_a_hundred_keys() {
    let client = Client::new(TwinOptions::default());
    for n in 0..101 {
        client.twin.make_key(&format!("key-{n}"));
    }
    client.twin.make_key_with("elsewhere", &Limits { elsewhere: true, ..Limits::default() });
    let first = client.get("/keys").await;
    assert_eq!((first.as_array().unwrap().len(), &first[0]["name"]), (100, &json!("key-100")));
    assert_eq!(client.get("/keys?offset=100").await[0]["name"], "key-0");
    let other = format!("/keys?workspace_id={}", client.twin.other_workspace());
    assert_eq!(client.get(&other).await[0]["name"], "elsewhere");
}

#[tokio::test]
async fn management_keys_and_keys_open_different_doors() {
    let client = Client::new(TwinOptions::default());
    let key = client.twin.make_key("backend");
    assert_eq!(client.send(Method::GET, "/keys", &key.value, Value::Null).await.0, 403);
    assert_eq!(client.send(Method::GET, "/keys", "sk-or-v1-wrong", Value::Null).await.0, 401);
    let body = json!({ "model": "twin/model", "messages": [] });
    let chat = "/chat/completions";
    assert_eq!(client.send(Method::POST, chat, &key.value, body.clone()).await.0, 200);
    assert_eq!(client.manage(Method::POST, chat, body).await.0, 403);
    assert_eq!(client.get("/key").await["is_management_key"], true);
}

#[tokio::test]
async fn a_use_shows_in_the_counters_today_and_in_the_activity_tomorrow() {
    let client = Client::new(TwinOptions::default());
    let key = client.twin.make_key("backend");
    client.twin.add_use(&key.hash, Duration::ZERO, true);
    client.twin.add_use(&key.hash, Duration::from_secs(26 * 3_600), false);
    let shown = client.get(&format!("/keys/{}", key.hash)).await;
    assert_eq!((&shown["usage"], &shown["usage_daily"]), (&json!(0.01), &json!(0.01)));
    let days = client.get(&format!("/activity?api_key_hash={}", key.hash)).await;
    assert_eq!((days.as_array().unwrap().len(), &days[0]["requests"]), (1, &json!(1)));
}

#[tokio::test]
async fn guardrails_and_provider_keys_name_keys_that_exist() {
    let client = Client::new(TwinOptions::default());
    let (one, other) = (client.twin.make_key("one"), client.twin.make_key("other"));
    let guardrail = client.twin.make_guardrail(&[&one.hash]);
    let provider = client.twin.make_provider_key("upstream", Some(&[&one.hash]));
    assert_eq!(client.get("/guardrails/assignments/keys").await[0]["key_hash"], one.hash);
    let assign = format!("/guardrails/{guardrail}/assignments/keys");
    let body = json!({ "key_hashes": [other.hash] });
    assert_eq!(client.manage(Method::POST, &assign, body).await.1["assigned_count"], 1);
    let unknown = json!({ "allowed_api_key_hashes": ["0".repeat(64)] });
    let path = format!("/byok/{provider}");
    assert_eq!(client.manage(Method::PATCH, &path, unknown).await.0, 400);
    let both = json!({ "allowed_api_key_hashes": [one.hash, other.hash] });
    assert_eq!(client.manage(Method::PATCH, &path, both).await.0, 200);
    assert_eq!(client.twin.keys_of_guardrail(&guardrail), [one.hash.clone(), other.hash.clone()]);
    assert_eq!(client.twin.keys_of_provider_key(&provider), Some(vec![one.hash, other.hash]));
}

#[tokio::test]
async fn a_list_of_provider_keys_shows_one_workspace() {
    let client = Client::new(TwinOptions::default());
    let here = client.twin.make_provider_key("here", None);
    let workspace = client.twin.other_workspace();
    let elsewhere = client.twin.make_provider_key_in(workspace, "elsewhere", None);
    for (path, id) in
        [("/byok".to_owned(), here), (format!("/byok?workspace_id={workspace}"), elsewhere)]
    {
        let shown = client.get(&path).await;
        assert_eq!((shown.as_array().unwrap().len(), &shown[0]["id"]), (1, &json!(id)), "{path}");
    }
}

#[tokio::test]
async fn what_is_switched_off_takes_its_time_and_a_fault_strikes() {
    let slow = Duration::from_secs(3_600);
    let client = Client::new(TwinOptions { revocation: slow, ..TwinOptions::default() });
    let key = client.twin.make_key("backend");
    client.manage(Method::DELETE, &format!("/keys/{}", key.hash), Value::Null).await;
    assert!(client.twin.accepts(&key.value));
    client.twin.faults().set(vec![Rule::first("create_key", Fault::status(429))]).unwrap();
    assert_eq!(client.manage(Method::POST, "/keys", json!({ "name": "a" })).await.0, 429);
    assert_eq!(client.twin.faults().unfired(), []);
}

#[tokio::test]
async fn what_is_asked_and_answered_is_kept_where_somebody_wants_it() {
    let client = Client::new(TwinOptions::default());
    client.get("/keys").await;
    assert!(client.twin.faults().recorded().is_empty());
    client.twin.faults().record();
    client.manage(Method::POST, "/keys?a=b", json!({ "name": "kw-1-1" })).await;
    let [kept] = &client.twin.faults().recorded()[..] else { panic!() };
    assert_eq!(
        (kept.method.as_str(), kept.path.as_str(), kept.query.as_str(), kept.status),
        ("POST", "/api/v1/keys", "a=b", 201)
    );
    assert_eq!(kept.body, Some(json!({ "name": "kw-1-1" })));
    assert_eq!(kept.answer.as_ref().unwrap()["data"]["name"], "kw-1-1");
}
