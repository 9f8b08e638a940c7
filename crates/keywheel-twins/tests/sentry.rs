//! The Sentry twin answers as the API and the relay do, goes wrong as its script says, and says that it is a twin.

#![expect(clippy::unwrap_used, reason = "a test may panic in its helpers too")]

use std::time::Duration;

use keywheel_twins::fault::{Echo, Fault, Rule};
use keywheel_twins::sentry::{ORGANIZATION, PROJECT, Twin, TwinOptions};
use reqwest::{Method, Response, StatusCode};
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

    async fn send(&self, method: Method, path: &str, body: &Value) -> Response {
        let url = format!("{}/api/0{path}", self.twin.base_url());
        let request = self.http.request(method, url).bearer_auth(self.twin.token()).json(body);
        request.send().await.unwrap()
    }

    async fn ask(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let response = self.send(method, path, &body).await;
        (response.status(), response.json().await.unwrap_or(Value::Null))
    }

    async fn envelope(&self, public: &str) -> (StatusCode, Value) {
        let url = format!("{}/api/42/envelope/", self.twin.base_url());
        let header = format!("Sentry sentry_version=7, sentry_key={public}");
        let request = self.http.post(url).header("x-sentry-auth", header).body("{}\n");
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()[keywheel_twins::HEADER], "sentry");
        (response.status(), response.json().await.unwrap())
    }
}

fn keys(rest: &str) -> String {
    format!("/projects/{ORGANIZATION}/{PROJECT}/keys/{rest}")
}

#[tokio::test]
async fn a_key_can_be_read_again_and_switched_off_and_on_until_it_is_deleted() {
    let client = Client::new(TwinOptions::default());
    let body = json!({ "name": "kw-1-1", "rateLimit": { "window": 60, "count": 9 } });
    let (status, made) = client.ask(Method::POST, &keys(""), body).await;
    assert_eq!(status, 201, "{made}");
    let id = made["public"].as_str().unwrap();
    let (_, again) = client.ask(Method::GET, &keys(&format!("{id}/")), Value::Null).await;
    assert_eq!((&again, &again["rateLimit"]["count"]), (&made, &json!(9)));
    assert_eq!(made["dsn"]["public"], client.twin.dsn(id));
    for (active, taken) in [(true, 200), (false, 403), (true, 200)] {
        let body = json!({ "isActive": active });
        client.ask(Method::PUT, &keys(&format!("{id}/")), body).await;
        assert_eq!(client.envelope(id).await.0, taken, "{active}");
    }
    let path = keys(&format!("{id}/"));
    assert_eq!(client.ask(Method::DELETE, &path, Value::Null).await.0, 204);
    assert_eq!(client.ask(Method::DELETE, &path, Value::Null).await.0, 404);
    let why = json!({ "detail": "event submission rejected with_reason: ProjectId" });
    assert_eq!(client.envelope(id).await, (StatusCode::FORBIDDEN, why));
    assert_eq!(client.twin.keys()[0].events, 2);
}

#[tokio::test]
async fn the_relay_takes_everything_before_it_knows_and_for_a_while_after() {
    let slow = Duration::from_secs(3_600);
    let early = Client::new(TwinOptions { relay_fetch: slow, ..TwinOptions::default() });
    assert_eq!(early.envelope(&"0".repeat(32)).await.0, 200);
    let late = Client::new(TwinOptions { relay_cache: slow, ..TwinOptions::default() });
    let id = late.twin.make_key("backend");
    late.ask(Method::PUT, &keys(&format!("{id}/")), json!({ "isActive": false })).await;
    assert_eq!(late.envelope(&id).await.0, 200);
    assert_eq!(late.envelope(&"0".repeat(32)).await.0, 403);
}

#[tokio::test]
async fn a_list_is_read_by_its_link_header() {
    let client = Client::new(TwinOptions { page: 2, ..TwinOptions::default() });
    for name in ["a", "b", "c"] {
        client.twin.make_key(name);
    }
    let first = client.send(Method::GET, &keys(""), &Value::Null).await;
    let link = first.headers()["link"].to_str().unwrap().to_owned();
    assert!(link.contains("rel=\"next\"; results=\"true\"; cursor=\"0:2:0\""), "{link}");
    assert_eq!(first.json::<Value>().await.unwrap()[0]["name"], "c");
    let second = client.send(Method::GET, &keys("?cursor=0:2:0"), &Value::Null).await;
    let link = second.headers()["link"].to_str().unwrap().to_owned();
    assert!(link.contains("rel=\"next\"; results=\"false\""), "{link}");
    assert_eq!(second.json::<Value>().await.unwrap()[0]["name"], "a");
    assert_eq!(client.ask(Method::GET, &keys("?cursor=x"), Value::Null).await.0, 400);
}

#[tokio::test]
async fn each_call_needs_its_scope_and_its_place() {
    let client = Client::new(TwinOptions::default());
    let id = client.twin.make_key("backend");
    client.twin.restrict(&["project:write"]);
    let path = keys(&format!("{id}/"));
    assert_eq!(client.ask(Method::GET, &path, Value::Null).await.0, 200);
    assert_eq!(client.ask(Method::DELETE, &path, Value::Null).await.0, 403);
    assert_eq!(client.ask(Method::GET, "/projects/shop/other/keys/", Value::Null).await.0, 404);
    let issues = client.ask(Method::GET, "/organizations/shop/issues/", Value::Null).await;
    assert_eq!(issues.0, 403);
    for body in [json!({ "name": "x".repeat(65) }), json!({ "useCase": "other" })] {
        assert_eq!(client.ask(Method::POST, &keys(""), body).await.0, 400);
    }
}

#[tokio::test]
async fn issues_are_found_by_their_words_and_first_appearance() {
    let client = Client::new(TwinOptions::default());
    client.twin.add_issue("login fails", Duration::from_secs(7_200));
    client.twin.add_issue("login fails again", Duration::from_secs(60));
    client.twin.add_issue("slow", Duration::from_secs(60));
    let hour_ago = jiff::Timestamp::now() - Duration::from_secs(3_600);
    let path = format!("/organizations/shop/issues/?query=login+firstSeen:>={hour_ago}");
    let (status, found) = client.ask(Method::GET, &path, Value::Null).await;
    assert_eq!((status, found.as_array().unwrap().len()), (StatusCode::OK, 1), "{found}");
    assert_eq!(found[0]["shortId"], "SHOP-2");
}

#[tokio::test]
async fn a_script_is_followed() {
    let client = Client::new(TwinOptions::default());
    let page = Fault::Status { code: 502, retry_after: None, body: Echo::Html, applied: true };
    client.twin.faults().set(vec![Rule::first("POST keys", page)]).unwrap();
    let lost = client.ask(Method::POST, &keys(""), json!({ "name": "kw-1-1" })).await;
    assert_eq!(lost.0, 502);
    assert_eq!((client.twin.live("kw-1-1").len(), client.twin.faults().unfired()), (1, vec![]));
}

#[tokio::test]
async fn the_audit_log_tells_who_did_what_to_a_key_page_by_page() {
    let client = Client::new(TwinOptions { page: 1, ..TwinOptions::default() });
    let logs = format!("/organizations/{ORGANIZATION}/audit-logs/");
    assert_eq!(client.ask(Method::GET, &logs, Value::Null).await.0, 403, "it takes org:write");
    client.twin.restrict(&["project:write", "project:admin", "org:write"]);
    let by_hand = client.twin.make_key("by-hand");
    let body = json!({ "isActive": false });
    client.ask(Method::PUT, &keys(&format!("{by_hand}/")), body).await;
    client.ask(Method::DELETE, &keys(&format!("{by_hand}/")), Value::Null).await;
    for (event, address) in [
        ("projectkey.create", "192.0.2.7"),
        ("projectkey.edit", "192.0.2.8"),
        ("projectkey.remove", "192.0.2.8"),
    ] {
        let path = format!("{logs}?event={event}");
        let (_, shown) = client.ask(Method::GET, &path, Value::Null).await;
        let row = &shown["rows"][0];
        assert_eq!((&row["event"], &row["ipAddress"]), (&json!(event), &json!(address)), "{row}");
        assert_eq!(row["data"]["public_key"], by_hand.as_str());
    }
    let response = client.send(Method::GET, &logs, &Value::Null).await;
    assert!(response.headers()["link"].to_str().unwrap().contains("results=\"true\""));
    let (_, none) = client.ask(Method::GET, &format!("{logs}?event=x"), Value::Null).await;
    assert_eq!(none["rows"], json!([]));
    let rules = vec![Rule::first("list_audit_logs", Fault::DelayedList { for_ms: 3_600_000 })];
    client.twin.faults().set(rules).unwrap();
    let (_, behind) = client.ask(Method::GET, &logs, Value::Null).await;
    assert_eq!(behind["rows"], json!([]));
}

#[tokio::test]
async fn what_came_for_a_key_is_counted_by_the_day() {
    let client = Client::new(TwinOptions::default());
    let id = client.twin.make_key("backend");
    client.envelope(&id).await;
    client.twin.add_event(&id, Duration::from_secs(2 * 24 * 3_600));
    let now = jiff::Timestamp::now().as_second();
    let since = now - 3 * 24 * 3_600;
    let path = keys(&format!("{id}/stats/?since={since}&until={now}&resolution=1d"));
    let (status, days) = client.ask(Method::GET, &path, Value::Null).await;
    let counts: Vec<_> = days.as_array().unwrap().iter().map(|day| &day["total"]).collect();
    assert_eq!((status.as_u16(), counts), (200, vec![&json!(0), &json!(1), &json!(0), &json!(1)]));
    for (query, status) in [("", 400), ("?since=0&until=9&resolution=2d", 400)] {
        let path = keys(&format!("{id}/stats/{query}"));
        assert_eq!(client.ask(Method::GET, &path, Value::Null).await.0, status, "{query}");
    }
    client.twin.delete_key(&id);
    assert_eq!(client.ask(Method::GET, &path, Value::Null).await.0, 404);
}
