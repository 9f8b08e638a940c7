//! The OpenAI twin answers as the API does, goes wrong as its script says, and says that it is a twin.

#![expect(clippy::unwrap_used, reason = "a test may panic in its helpers too")]

use std::time::Duration;

use keywheel_twins::fault::{Echo, Fault, Nth, Rule};
use keywheel_twins::openai::{Twin, TwinOptions};
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

    async fn send(
        &self,
        method: Method,
        path: &str,
        key: &str,
        body: Value,
    ) -> reqwest::Result<reqwest::Response> {
        let url = format!("{}{path}", self.twin.base_url());
        self.http.request(method, url).bearer_auth(key).json(&body).send().await
    }

    async fn admin(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let response = self.send(method, path, self.twin.admin_key(), body).await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.admin(Method::GET, path, Value::Null).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    async fn create(&self, name: &str) -> Value {
        let (status, body) = self
            .admin(Method::POST, &self.project("/service_accounts"), json!({ "name": name }))
            .await;
        assert_eq!(status, 200, "{body}");
        body
    }

    async fn models(&self, key: &str) -> (StatusCode, Value) {
        let response = self.send(Method::GET, "/models", key, Value::Null).await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    async fn chat(&self, key: &str) -> (StatusCode, Value) {
        let body = json!({ "model": "gpt-twin", "messages": [{ "role": "user", "content": "?" }] });
        let response = self.send(Method::POST, "/chat/completions", key, body).await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    async fn until_landed(&self) {
        while self.twin.live("kw-1-1").is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(self.twin.live("kw-1-1").len(), 1);
    }

    fn project(&self, rest: &str) -> String {
        format!("/organization/projects/{}{rest}", self.twin.project())
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("`{name}` of {value}"))
}

#[tokio::test]
async fn a_key_lives_from_its_creation_to_its_deletion() {
    let client = Client::new(TwinOptions::default());
    let account = client.create("kw-1-1").await;
    let (key, value) = (text(&account["api_key"], "id"), text(&account["api_key"], "value"));
    assert_eq!(client.models(value).await.0, 200);
    assert_eq!(client.twin.live("kw-1-1"), [key]);

    let listed = client.get(&client.project("/api_keys?owner_project_access=any")).await;
    assert!(!listed.to_string().contains(value), "the value is shown once");
    assert_eq!(listed["data"][0]["owner"]["service_account"]["name"], "kw-1-1");

    let path = client.project(&format!("/api_keys/{key}"));
    assert_eq!(client.admin(Method::DELETE, &path, Value::Null).await.0, 200);
    assert_eq!(client.admin(Method::DELETE, &path, Value::Null).await.0, 404);
    let (status, body) = client.models(value).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (StatusCode::UNAUTHORIZED, &json!("invalid_api_key"))
    );
    assert!(!body.to_string().contains(value));
    assert_eq!(client.twin.live("kw-1-1"), [""; 0]);
}

#[tokio::test]
async fn deleting_an_account_ends_its_keys() {
    let client =
        Client::new(TwinOptions { keeps_keys_of_accounts: true, ..TwinOptions::default() });
    let account = client.create("kw-1-1").await;
    let (id, key) = (text(&account, "id"), text(&account["api_key"], "id"));
    let (status, _) = client
        .admin(Method::DELETE, &client.project(&format!("/api_keys/{key}")), Value::Null)
        .await;
    assert_eq!(status, 400);
    let (status, _) = client
        .admin(Method::DELETE, &client.project(&format!("/service_accounts/{id}")), Value::Null)
        .await;
    assert_eq!(status, 200);
    assert!(!client.twin.accepts(text(&account["api_key"], "value")));
}

#[tokio::test]
async fn lists_are_paged() {
    let client = Client::new(TwinOptions::default());
    for name in ["a", "b", "c"] {
        client.create(name).await;
    }
    let first = client.get(&client.project("/service_accounts?limit=2")).await;
    assert_eq!((first["data"].as_array().unwrap().len(), &first["has_more"]), (2, &json!(true)));
    let after = text(&first, "last_id");
    let second =
        client.get(&client.project(&format!("/service_accounts?limit=2&after={after}"))).await;
    assert_eq!((&second["data"][0]["name"], &second["has_more"]), (&json!("c"), &json!(false)));
}

#[tokio::test]
async fn a_restricted_key_is_alive_and_refused() {
    let client = Client::new(TwinOptions::default());
    let key = client.twin.make_key("backend");
    client.twin.restrict(&key.id, &["model.request"]);
    let (status, body) = client.models(&key.value).await;
    assert_eq!((status, &body["error"]["code"]), (StatusCode::UNAUTHORIZED, &Value::Null));
    assert_eq!(client.chat(&key.value).await.0, 200);
}

#[tokio::test]
async fn admin_keys_and_project_keys_open_different_doors() {
    let client = Client::new(TwinOptions::default());
    let key = client.twin.make_user_key("mine");
    assert_eq!(client.models(client.twin.admin_key()).await.0, 401);
    let refused =
        client.send(Method::GET, "/organization/projects", &key.value, Value::Null).await.unwrap();
    assert_eq!(refused.status(), 401);
}

#[tokio::test]
async fn a_list_hides_the_keys_of_who_lost_access() {
    let client = Client::new(TwinOptions::default());
    let (mine, _) = (client.twin.make_user_key("mine"), client.twin.make_key("backend"));
    client.twin.remove_person();
    assert!(client.twin.accepts(&mine.value));
    for (access, shown) in
        [("", 1), ("?owner_project_access=inactive", 1), ("?owner_project_access=any", 2)]
    {
        let listed = client.get(&client.project(&format!("/api_keys{access}"))).await;
        assert_eq!(listed["data"].as_array().unwrap().len(), shown, "{access}");
    }
}

#[tokio::test]
async fn a_long_lived_twin_takes_the_admin_key_that_it_is_given() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/organization/projects", listener.local_addr().unwrap());
    let options =
        TwinOptions { admin_key: Some("sk-admin-given".into()), ..TwinOptions::default() };
    tokio::spawn(keywheel_twins::openai::run(options, listener));
    let client = Client::new(TwinOptions::default());
    let projects = client.http.get(url).bearer_auth("sk-admin-given").send().await.unwrap();
    assert_eq!(projects.status(), 200);
}

#[tokio::test]
async fn a_use_shows_in_the_key_and_in_the_report() {
    let client = Client::new(TwinOptions::default());
    let key = client.twin.make_key("backend");
    assert_eq!(client.chat(&key.value).await.0, 200);
    client.twin.add_use(&key.id, Duration::from_secs(600));
    let shown = client.get(&client.project(&format!("/api_keys/{}", key.id))).await;
    assert!(shown["last_used_at"].is_u64());
    let start = shown["last_used_at"].as_u64().unwrap() - 1_200;
    let path = format!(
        "/organization/usage/completions?start_time={start}&bucket_width=1m&limit=5&group_by[]=api_key_id&api_key_ids[]={}",
        key.id
    );
    let (mut found, mut page) = (0, String::new());
    loop {
        let report = client.get(&format!("{path}{page}")).await;
        let results = report["data"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|b| b["results"].as_array().unwrap());
        found += results.filter(|r| r["api_key_id"] == key.id).count();
        match report["next_page"].as_str() {
            Some(next) => page = format!("&page={next}"),
            None => break,
        }
    }
    assert_eq!((found, client.twin.uses(&key.id)), (2, 2));
}

#[tokio::test]
async fn what_is_new_and_what_is_gone_take_their_time() {
    let slow = Duration::from_secs(3_600);
    let late =
        Client::new(TwinOptions { propagation: slow, list_lag: slow, ..TwinOptions::default() });
    let account = late.create("kw-1-1").await;
    assert!(!late.twin.accepts(text(&account["api_key"], "value")));
    assert_eq!(late.get(&late.project("/service_accounts")).await["data"], json!([]));

    let lingering = Client::new(TwinOptions { revocation: slow, ..TwinOptions::default() });
    let key = lingering.twin.make_key("backend");
    lingering
        .admin(Method::DELETE, &lingering.project(&format!("/api_keys/{}", key.id)), Value::Null)
        .await;
    assert!(lingering.twin.accepts(&key.value));
    assert_eq!(lingering.twin.live("backend"), [""; 0]);
}

#[tokio::test]
async fn an_archived_project_makes_no_accounts() {
    let client = Client::new(TwinOptions::default());
    client.twin.archive_project();
    assert_eq!(client.get(&client.project("")).await["status"], "archived");
    let (status, _) = client
        .admin(Method::POST, &client.project("/service_accounts"), json!({ "name": "a" }))
        .await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn a_full_project_makes_no_accounts() {
    let client = Client::new(TwinOptions { most_accounts: Some(1), ..TwinOptions::default() });
    client.create("a").await;
    let (status, _) = client
        .admin(Method::POST, &client.project("/service_accounts"), json!({ "name": "b" }))
        .await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn every_answer_says_that_it_comes_from_a_twin() {
    let client = Client::new(TwinOptions::default());
    let scripted = Fault::Status { code: 502, retry_after: None, body: Echo::Html, applied: false };
    client.twin.set_script(vec![Rule::first("list_models", scripted)]).unwrap();
    for path in ["/models", "/models", "/nowhere", "/organization/projects"] {
        let response =
            client.send(Method::GET, path, client.twin.admin_key(), Value::Null).await.unwrap();
        assert_eq!(response.headers()[keywheel_twins::HEADER], "openai", "{path}");
    }
}

#[tokio::test]
async fn each_fault_leaves_behind_what_it_should() {
    for (fault, applied) in [
        (Fault::TimeoutBefore, false),
        (Fault::TimeoutAfter, true),
        (Fault::Cut, true),
        (Fault::Hang, true),
        (Fault::LateLanding { after_ms: 2_000 }, false),
        (Fault::status(500), false),
        (Fault::Status { code: 500, retry_after: None, body: Echo::Json, applied: true }, true),
    ] {
        let client = Client::new(TwinOptions::default());
        client.twin.set_script(vec![Rule::first("POST service_accounts", fault.clone())]).unwrap();
        let body = json!({ "name": "kw-1-1" });
        let path = client.project("/service_accounts");
        let answered = async {
            let response = client.send(Method::POST, &path, client.twin.admin_key(), body).await?;
            let status = response.status();
            response.bytes().await.map(|_| status)
        };
        match (&fault, tokio::time::timeout(Duration::from_millis(500), answered).await) {
            (Fault::Status { .. }, answer) => assert_eq!(answer.unwrap().unwrap(), 500),
            (Fault::Cut | Fault::LateLanding { .. }, answer) => {
                assert!(answer.unwrap().is_err(), "{fault:?}")
            }
            (fault, answer) => assert!(answer.is_err(), "{fault:?} was answered"),
        }
        assert_eq!(client.twin.unfired(), []);
        match fault {
            Fault::LateLanding { .. } => {
                assert_eq!(client.twin.live("kw-1-1").len(), 0);
                client.until_landed().await;
            }
            _ if applied => client.until_landed().await,
            fault => assert_eq!(client.twin.live("kw-1-1").len(), 0, "{fault:?}"),
        }
    }
}

#[tokio::test]
async fn a_scripted_status_carries_what_the_script_says() {
    let client = Client::new(TwinOptions::default());
    let fault = Fault::Status {
        code: 429,
        retry_after: Some("3600".into()),
        body: Echo::EchoKey,
        applied: false,
    };
    client
        .twin
        .set_script(vec![Rule { on: "list_models".into(), nth: Nth::Number(2), fault }])
        .unwrap();
    let key = client.twin.make_key("backend");
    assert_eq!(client.models(&key.value).await.0, 200);
    let response = client.send(Method::GET, "/models", &key.value, Value::Null).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["retry-after"]),
        (429, &"3600".parse().unwrap())
    );
    assert!(response.text().await.unwrap().contains(&key.value));
    let seen = format!("{:?}", client.twin.requests());
    assert!(!seen.contains(&key.value) && seen.contains("list_models"));
}

#[tokio::test]
async fn a_delayed_list_does_not_show_what_is_new() {
    let client = Client::new(TwinOptions::default());
    client.create("kw-1-1").await;
    let delayed = Fault::DelayedList { for_ms: 60_000 };
    client.twin.set_script(vec![Rule::first("list_service_accounts", delayed)]).unwrap();
    let list = async || {
        client.get(&client.project("/service_accounts")).await["data"].as_array().unwrap().len()
    };
    assert_eq!((list().await, list().await), (0, 1));
}

#[tokio::test]
async fn the_audit_log_says_what_was_done_by_whom_and_is_kept_only_where_it_is_on() {
    let events = async |options: TwinOptions, query: &str| {
        let client = Client::new(options);
        let by_hand = client.twin.make_key("by-hand");
        let account = client.create("kw-1-1").await;
        client.twin.end_by_itself(&by_hand.id);
        let query = query.replace("ACCOUNT", text(&account, "id")).replace("KEY", &by_hand.id);
        let answer = client.get(&format!("/organization/audit_logs?{query}")).await;
        let events = answer["data"].as_array().unwrap().clone();
        events.iter().map(|event| text(event, "type").to_owned()).collect::<Vec<_>>()
    };
    let on = TwinOptions::default;
    let all = events(on(), "limit=100").await;
    assert_eq!((all.len(), all[0].as_str()), (5, "api_key.deleted"), "{all:?}");
    let of_key = events(on(), "resource_ids[]=KEY").await;
    assert_eq!(of_key, ["api_key.deleted", "api_key.created"]);
    let made = events(on(), "resource_ids[]=ACCOUNT&event_types[]=service_account.created").await;
    assert_eq!(made, ["service_account.created"]);
    assert_eq!(events(on(), "actor_ids[]=user-1").await.len(), 2);
    assert!(events(on(), "effective_at[gte]=9999999999").await.is_empty());
    assert!(events(TwinOptions { audit_log_is_off: true, ..on() }, "limit=100").await.is_empty());
}

/// Validates every kind of answer against the official schema, where a copy of it is at hand.
#[tokio::test]
async fn the_answers_fit_the_official_schema() {
    let Some(specs) = std::env::var_os("KEYWHEEL_SPECS") else {
        eprintln!("skipped: KEYWHEEL_SPECS names no folder with openai-admin.openapi.json");
        return;
    };
    let file = std::path::Path::new(&specs).join("openai-admin.openapi.json");
    let spec: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let fits = |schema: &str, answer: &Value| {
        let root = json!({
            "$ref": format!("#/components/schemas/{schema}"),
            "components": spec["components"],
        });
        let validator = jsonschema::validator_for(&root).unwrap();
        let problems: Vec<_> = validator
            .iter_errors(answer)
            .map(|e| format!("{} at {}", e, e.instance_path()))
            .collect();
        assert!(problems.is_empty(), "{schema}: {problems:?} in {answer}");
    };

    let client = Client::new(TwinOptions::default());
    client.twin.make_user_key("mine");
    let account = client.create("kw-1-1").await;
    fits("ProjectServiceAccountCreateResponse", &account);
    let (id, key) = (text(&account, "id"), text(&account["api_key"], "id"));
    let only = json!({ "name": "empty", "create_service_account_only": true });
    let (_, empty) = client.admin(Method::POST, &client.project("/service_accounts"), only).await;
    fits("ProjectServiceAccountCreateResponse", &empty);
    let more = client
        .admin(
            Method::POST,
            &client.project(&format!("/service_accounts/{id}/api_keys")),
            json!({}),
        )
        .await
        .1;
    fits("ServiceAccountApiKeyBody", &more);
    client.chat(text(&account["api_key"], "value")).await;

    fits("ProjectListResponse", &client.get("/organization/projects").await);
    fits("Project", &client.get(&client.project("")).await);
    fits(
        "ProjectServiceAccountListResponse",
        &client.get(&client.project("/service_accounts")).await,
    );
    fits(
        "ProjectServiceAccount",
        &client.get(&client.project(&format!("/service_accounts/{id}"))).await,
    );
    fits("ProjectApiKeyListResponse", &client.get(&client.project("/api_keys")).await);
    fits("ProjectApiKey", &client.get(&client.project(&format!("/api_keys/{key}"))).await);
    fits("ApiKeyList", &client.get("/organization/admin_api_keys?limit=1").await);
    fits("ListAuditLogsResponse", &client.get("/organization/audit_logs").await);
    let start = account["created_at"].as_i64().unwrap() - 60;
    let report = format!(
        "/organization/usage/completions?start_time={start}&bucket_width=1m&group_by=api_key_id"
    );
    let report = client.get(&report).await;
    assert!(report.to_string().contains(key));
    fits("UsageResponse", &report);
    fits("ListModelsResponse", &client.models(text(&account["api_key"], "value")).await.1);
    fits("ErrorResponse", &client.models("sk-wrong").await.1);
    fits("ErrorResponse", &client.admin(Method::GET, "/nowhere", Value::Null).await.1);

    let path = client.project(&format!("/api_keys/{key}"));
    fits("ProjectApiKeyDeleteResponse", &client.admin(Method::DELETE, &path, Value::Null).await.1);
    let path = client.project(&format!("/service_accounts/{id}"));
    fits(
        "ProjectServiceAccountDeleteResponse",
        &client.admin(Method::DELETE, &path, Value::Null).await.1,
    );
}
