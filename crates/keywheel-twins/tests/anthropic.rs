//! The Anthropic twin answers as the API does, and says that it is a twin.

#![expect(clippy::unwrap_used, reason = "a test may panic in its helpers too")]

use std::time::Duration;

use keywheel_twins::anthropic::{ConsoleKey, Twin, TwinOptions};
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
        let request = self.http.request(method, url).header("x-api-key", key);
        let request = request.header("anthropic-version", "2023-06-01").json(&body);
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()[keywheel_twins::HEADER], "anthropic");
        assert!(response.headers().contains_key("request-id"));
        (response.status().as_u16(), response.json().await.unwrap())
    }

    async fn admin(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        self.send(method, path, self.twin.admin_key(), body).await
    }

    async fn list(&self, query: &str) -> Value {
        let path = format!("/v1/organizations/api_keys{query}");
        let (status, body) = self.admin(Method::GET, &path, Value::Null).await;
        assert_eq!(status, 200, "{query}: {body}");
        body
    }

    async fn models(&self, key: &str) -> u16 {
        self.send(Method::GET, "/v1/models?limit=1", key, Value::Null).await.0
    }
}

#[tokio::test]
async fn a_key_of_the_console_is_made_inactive_and_active_and_archived_for_good() {
    let client = Client::new(TwinOptions::default());
    let key = client.twin.make_key("kw-1-1");
    let path = format!("/v1/organizations/api_keys/{}", key.id);
    for (wanted, answer, models) in [
        ("inactive", 200, 401),
        ("active", 200, 200),
        ("expired", 400, 200),
        ("archived", 200, 401),
        ("active", 400, 401),
    ] {
        let (status, _) = client.admin(Method::POST, &path, json!({ "status": wanted })).await;
        assert_eq!((status, client.models(&key.value).await), (answer, models), "{wanted}");
    }
    let shown = client.admin(Method::GET, &path, Value::Null).await.1;
    assert_eq!(shown["status"], "archived");
    assert!(!shown.to_string().contains(&key.value), "the console shows the value once");
    let hint = shown["partial_key_hint"].as_str().unwrap();
    assert!(key.value.starts_with(hint.split("...").next().unwrap()));
    assert_eq!(client.twin.live("kw-1-1"), [""; 0]);
}

#[tokio::test]
async fn no_call_makes_a_key() {
    let client = Client::new(TwinOptions::default());
    let body = json!({ "name": "kw-1-1" });
    assert_eq!(client.admin(Method::POST, "/v1/organizations/api_keys", body).await.0, 405);
}

#[tokio::test]
async fn a_list_is_paged_and_filtered() {
    let client = Client::new(TwinOptions::default());
    for name in ["a", "b"] {
        client.twin.make_key(name);
    }
    let elsewhere = ConsoleKey {
        workspace: Some("wrkspc_1".into()),
        name: "c".into(),
        ..ConsoleKey::default()
    };
    client.twin.console(&elsewhere);
    let first = client.list("?limit=2").await;
    assert_eq!((&first["data"][0]["name"], &first["has_more"]), (&json!("c"), &json!(true)));
    let next = format!("?limit=2&after_id={}", first["last_id"].as_str().unwrap());
    let second = client.list(&next).await;
    assert_eq!((&second["data"][0]["name"], &second["has_more"]), (&json!("a"), &json!(false)));
    let filtered = client.list("?workspace_id=wrkspc_1&status=active").await;
    assert_eq!(filtered["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn admin_keys_and_keys_open_different_doors() {
    let client = Client::new(TwinOptions::default());
    let key = client.twin.make_key("backend");
    assert_eq!(client.models(client.twin.admin_key()).await, 401);
    let list = "/v1/organizations/api_keys";
    let (status, body) = client.send(Method::GET, list, &key.value, Value::Null).await;
    assert_eq!((status, &body["error"]["type"]), (401, &json!("authentication_error")));
}

#[tokio::test]
async fn a_use_shows_in_the_report() {
    let client = Client::new(TwinOptions::default());
    let (key, other) = (client.twin.make_key("backend"), client.twin.make_key("other"));
    let message = json!({ "model": "claude-twin", "max_tokens": 1, "messages": [] });
    assert_eq!(client.send(Method::POST, "/v1/messages", &key.value, message).await.0, 200);
    client.twin.add_use(&other.id, Duration::from_secs(60));
    let path = format!(
        "/v1/organizations/usage_report/messages?starting_at=2020-01-01T00:00:00Z&bucket_width=1d&limit=31&group_by[]=api_key_id&api_key_ids[]={}",
        key.id
    );
    let (status, first) = client.admin(Method::GET, &path, Value::Null).await;
    assert_eq!((status, &first["has_more"]), (200, &json!(true)));
    let today = jiff::Timestamp::now().to_string();
    let path = path.replace("2020-01-01T00:00:00Z", &format!("{}T00:00:00Z", &today[..10]));
    let report = client.admin(Method::GET, &path, Value::Null).await.1;
    let results = report["data"][0]["results"].as_array().unwrap();
    assert_eq!((results.len(), &results[0]["api_key_id"]), (1, &json!(key.id)));
}
