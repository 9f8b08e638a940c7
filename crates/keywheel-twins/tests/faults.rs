//! Every fault that a provider is known for happens in every twin, wherever the provider has such a call at all.

#![expect(clippy::unwrap_used, reason = "a test may panic in its helpers too")]

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use keywheel_twins::fault::{Echo, Fault, Faults, Rule};
use keywheel_twins::{anthropic, openai, openrouter, posthog, sentry};
use reqwest::{Method, Response};
use serde_json::{Value, json};

/// The label of the key that a test makes, and that of the one beside it.
const LABEL: &str = "kw-1-1";
const OTHER: &str = "backend";

/// The statuses that a provider answers where it does nothing.
const STATUSES: [u16; 10] = [400, 401, 403, 404, 409, 410, 422, 429, 500, 503];

/// How long something may take that does come.
const PATIENCE: Duration = Duration::from_secs(30);

/// It keeps no connection: each test has a runtime of its own.
static HTTP: LazyLock<reqwest::Client> = LazyLock::new(|| {
    rustls::crypto::ring::default_provider().install_default().ok();
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE);
    http.pool_max_idle_per_host(0).build().unwrap()
});

/// One call of a provider's API.
#[derive(Clone)]
struct Call {
    operation: &'static str,
    method: Method,
    url: String,
    body: Value,
    /// Where the answer names what the call is about.
    ids: &'static [&'static str],
}

/// A call about one key.
type About = Box<dyn Fn(&str) -> Call>;

/// A twin, with what is told of it alike: what makes, shows, changes and ends a key, and what lists all of them.
struct Side {
    name: &'static str,
    faults: Faults,
    credential: (&'static str, String),
    /// Makes a key; none where only a person can.
    make: Option<Call>,
    list: Call,
    look: About,
    change: Option<About>,
    end: About,
    /// Makes a key by hand, and returns its id.
    by_hand: Box<dyn Fn(&str) -> String>,
    /// Counts the live keys of a label.
    live: Box<dyn Fn(&str) -> usize>,
}

fn call(
    operation: &'static str,
    method: Method,
    url: String,
    body: Value,
    ids: &'static [&'static str],
) -> Call {
    Call { operation, method, url, body, ids }
}

/// Reads, or ends, what an address names.
fn of(
    (operation, method): (&'static str, Method),
    keys: &str,
    slash: &'static str,
    body: Value,
    ids: &'static [&'static str],
) -> About {
    let keys = keys.to_owned();
    Box::new(move |id| {
        call(operation, method.clone(), format!("{keys}/{id}{slash}"), body.clone(), ids)
    })
}

fn openai() -> Side {
    openai_side(openai::Twin::start(openai::TwinOptions::default()).unwrap())
}

fn openai_side(twin: openai::Twin) -> Side {
    let twin = Arc::new(twin);
    let project = format!("{}/organization/projects/{}", twin.base_url(), twin.project());
    let (keys, accounts) = (format!("{project}/api_keys"), format!("{project}/service_accounts"));
    let (hand, seen) = (Arc::clone(&twin), Arc::clone(&twin));
    Side {
        name: openai::NAME,
        faults: twin.faults().clone(),
        credential: ("authorization", format!("Bearer {}", twin.admin_key())),
        make: Some(call(
            "create_service_account",
            Method::POST,
            accounts,
            json!({ "name": LABEL }),
            &["/id", "/api_key/id"],
        )),
        list: call("list_api_keys", Method::GET, keys.clone(), Value::Null, &[]),
        look: of(("get_api_key", Method::GET), &keys, "", Value::Null, &["/id"]),
        change: None,
        end: of(("delete_api_key", Method::DELETE), &keys, "", Value::Null, &["/id"]),
        by_hand: Box::new(move |label| hand.make_key(label).id),
        live: Box::new(move |label| seen.live(label).len()),
    }
}

fn openrouter() -> Side {
    openrouter_side(openrouter::Twin::start(openrouter::TwinOptions::default()).unwrap())
}

fn openrouter_side(twin: openrouter::Twin) -> Side {
    let twin = Arc::new(twin);
    let keys = format!("{}/keys", twin.base_url());
    let (hand, seen) = (Arc::clone(&twin), Arc::clone(&twin));
    let (hash, off): (&[&str], _) = (&["/data/hash"], json!({ "disabled": true }));
    Side {
        name: openrouter::NAME,
        faults: twin.faults().clone(),
        credential: ("authorization", format!("Bearer {}", twin.management_key())),
        make: Some(call(
            "create_key",
            Method::POST,
            keys.clone(),
            json!({ "name": LABEL }),
            &["/data/hash"],
        )),
        list: call("list_keys", Method::GET, keys.clone(), Value::Null, &[]),
        look: of(("get_key", Method::GET), &keys, "", Value::Null, hash),
        change: Some(of(("update_key", Method::PATCH), &keys, "", off, hash)),
        end: of(("delete_key", Method::DELETE), &keys, "", Value::Null, &[]),
        by_hand: Box::new(move |label| hand.make_key(label).hash),
        live: Box::new(move |label| seen.live(label).len()),
    }
}

fn anthropic() -> Side {
    let twin = Arc::new(anthropic::Twin::start(anthropic::TwinOptions::default()).unwrap());
    let keys = format!("{}/v1/organizations/api_keys", twin.base_url());
    let (hand, seen) = (Arc::clone(&twin), Arc::clone(&twin));
    let update = |to: &str| {
        of(("update_api_key", Method::POST), &keys, "", json!({ "status": to }), &["/id"])
    };
    Side {
        name: anthropic::NAME,
        faults: twin.faults().clone(),
        credential: ("x-api-key", twin.admin_key().to_owned()),
        make: None,
        list: call("list_api_keys", Method::GET, keys.clone(), Value::Null, &[]),
        look: of(("get_api_key", Method::GET), &keys, "", Value::Null, &["/id"]),
        change: Some(update("inactive")),
        end: update("archived"),
        by_hand: Box::new(move |label| hand.make_key(label).id),
        live: Box::new(move |label| seen.live(label).len()),
    }
}

fn sentry() -> Side {
    let twin = Arc::new(sentry::Twin::start(sentry::TwinOptions::default()).unwrap());
    let (organization, project) = (sentry::ORGANIZATION, sentry::PROJECT);
    let keys = format!("{}/api/0/projects/{organization}/{project}/keys", twin.base_url());
    let (hand, seen) = (Arc::clone(&twin), Arc::clone(&twin));
    let off = json!({ "isActive": false });
    Side {
        name: sentry::NAME,
        faults: twin.faults().clone(),
        credential: ("authorization", format!("Bearer {}", twin.token())),
        make: Some(call(
            "create_key",
            Method::POST,
            format!("{keys}/"),
            json!({ "name": LABEL }),
            &["/id"],
        )),
        list: call("list_keys", Method::GET, format!("{keys}/"), Value::Null, &[]),
        look: of(("get_key", Method::GET), &keys, "/", Value::Null, &["/id"]),
        change: Some(of(("update_key", Method::PUT), &keys, "/", off, &["/id"])),
        end: of(("delete_key", Method::DELETE), &keys, "/", Value::Null, &[]),
        by_hand: Box::new(move |label| hand.make_key(label)),
        live: Box::new(move |label| seen.live(label).len()),
    }
}

fn posthog() -> Side {
    posthog_side(posthog::Twin::start(posthog::TwinOptions::default()).unwrap())
}

fn posthog_side(twin: posthog::Twin) -> Side {
    let twin = Arc::new(twin);
    let project = posthog::PROJECT;
    let keys = format!("{}/api/projects/{project}/project_secret_api_keys", twin.base_url());
    let (hand, seen) = (Arc::clone(&twin), Arc::clone(&twin));
    let scopes = ["feature_flag:read"];
    Side {
        name: posthog::NAME,
        faults: twin.faults().clone(),
        credential: ("authorization", format!("Bearer {}", twin.personal_key())),
        make: Some(call(
            "create_key",
            Method::POST,
            format!("{keys}/"),
            json!({ "label": LABEL, "scopes": scopes }),
            &["/id"],
        )),
        list: call("list_keys", Method::GET, format!("{keys}/"), Value::Null, &[]),
        look: of(("get_key", Method::GET), &keys, "/", Value::Null, &["/id"]),
        change: None,
        end: of(("delete_key", Method::DELETE), &keys, "/", Value::Null, &[]),
        by_hand: Box::new(move |label| hand.make_key(label, &scopes).id),
        live: Box::new(move |label| seen.live(label).len()),
    }
}

/// A fresh twin of each provider.
const SIDES: [fn() -> Side; 5] = [openai, openrouter, anthropic, sentry, posthog];

impl Side {
    async fn send(&self, call: &Call) -> reqwest::Result<Response> {
        let (header, credential) = &self.credential;
        let request = HTTP.request(call.method.clone(), &call.url).header(*header, credential);
        request.header("anthropic-version", "2023-06-01").json(&call.body).send().await
    }

    /// Sends a call that comes to a fault. None where no whole answer comes.
    async fn strike(&self, call: &Call, fault: Fault) -> Option<(u16, String)> {
        let answered = async {
            let response = self.send(call).await.ok()?;
            let status = response.status().as_u16();
            Some((status, response.text().await.ok()?))
        };
        let is_silent = matches!(fault, Fault::TimeoutBefore | Fault::TimeoutAfter | Fault::Hang);
        self.faults.set(vec![Rule::first(call.operation, fault)]).unwrap();
        let silence = async {
            while !is_silent || !self.faults.unfired().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let answer = tokio::select! {
            answer = answered => answer,
            () = silence => None,
        };
        assert_eq!(self.faults.unfired(), [], "{} {}", self.name, call.operation);
        answer
    }

    /// Waits until so many keys of the label live.
    async fn settles(&self, keys: usize) {
        let begun = Instant::now();
        while (self.live)(LABEL) != keys {
            assert!(begun.elapsed() < PATIENCE, "{}: {} keys", self.name, (self.live)(LABEL));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Every call that changes something, each with a fresh key where it is about one; and how many keys live before and after.
    fn changes(&self) -> Vec<(Call, usize, usize)> {
        let ended = || (self.end)(&(self.by_hand)(LABEL));
        let make = self.make.iter().map(|make| (make.clone(), 0, 1));
        make.chain([(ended(), 1, 0)]).collect()
    }
}

/// Each of the five, with its calls that change something, one at a time in a twin of its own.
async fn each_change(test: impl AsyncFn(&Side, &Call, usize, usize)) {
    for side in SIDES {
        for nth in 0..2 {
            let side = side();
            let mut changes = side.changes();
            if nth >= changes.len() {
                continue;
            }
            let (call, before, after) = changes.swap_remove(nth);
            // What the other change would be about is none of this one's.
            if before == 0 {
                let other = changes.swap_remove(0).0;
                assert!(side.send(&other).await.unwrap().status().is_success());
            }
            side.settles(before).await;
            test(&side, &call, before, after).await;
        }
    }
}

#[tokio::test]
async fn no_answer_comes_before_or_after_it_is_done() {
    each_change(async |side, call, before, after| {
        assert_eq!(side.strike(call, Fault::TimeoutBefore).await, None);
        assert_eq!((side.live)(LABEL), before, "{}", side.name);
        assert_eq!(side.strike(call, Fault::LateLanding { after_ms: 50 }).await, None);
        side.settles(after).await;
    })
    .await;
    for fault in [Fault::TimeoutAfter, Fault::Cut, Fault::Hang] {
        each_change(async |side, call, _, after| {
            let answer = side.strike(call, fault.clone()).await;
            // Headers alone are a whole answer where nothing comes after them.
            let is_whole = fault == Fault::Hang && answer == Some((204, String::new()));
            assert!(answer.is_none() || is_whole, "{}: {fault:?} {answer:?}", side.name);
            side.settles(after).await;
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_still_to_be_done_is_told() {
    let side = openai();
    let make = side.make.as_ref().unwrap();
    assert!(side.faults.has_landed());
    let in_an_hour = Fault::LateLanding { after_ms: 60 * 60 * 1_000 };
    assert_eq!(side.strike(make, in_an_hour).await, None);
    assert!(!side.faults.has_landed() && (side.live)(LABEL) == 0);
}

#[tokio::test]
async fn a_request_is_delivered_twice() {
    each_change(async |side, call, before, _| {
        let (status, _) = side.strike(call, Fault::Twice).await.unwrap();
        let (keys, wanted) = match (before, call.method == Method::DELETE) {
            // A label is unique there.
            (0, _) if side.name == posthog::NAME => (1, [400, 400]),
            (0, _) => (2, [200, 201]),
            (_, true) => (0, [404, 404]),
            (_, false) => (0, [200, 400]),
        };
        assert!(wanted.contains(&status), "{}: {status}", side.name);
        side.settles(keys).await;
    })
    .await;
}

#[tokio::test]
async fn every_status_is_answered_with_nothing_done() {
    each_change(async |side, call, before, _| {
        for code in STATUSES {
            let (status, body) = side.strike(call, Fault::status(code)).await.unwrap();
            assert!(status == code && !body.is_empty(), "{}", side.name);
            for (echo, words) in [(Echo::Html, "<html>"), (Echo::EchoKey, &*side.credential.1)] {
                let fault = Fault::Status {
                    code,
                    retry_after: Some("3600".into()),
                    body: echo,
                    applied: false,
                };
                let (_, body) = side.strike(call, fault).await.unwrap();
                let words = words.strip_prefix("Bearer ").unwrap_or(words);
                assert!(body.contains(words), "{} {code}", side.name);
            }
            assert_eq!((side.live)(LABEL), before, "{} {code}", side.name);
        }
    })
    .await;
}

#[tokio::test]
async fn a_wait_is_asked_for() {
    for side in SIDES {
        let side = side();
        side.faults.set(vec![Rule::first(side.list.operation, Fault::busy())]).unwrap();
        let response = side.send(&side.list).await.unwrap();
        assert_eq!(response.headers()["retry-after"], "3600", "{}", side.name);
    }
}

#[tokio::test]
async fn an_answer_names_another_object() {
    for side in SIDES {
        let side = side();
        let (id, other) = ((side.by_hand)("kw-2-1"), (side.by_hand)(OTHER));
        let change = side.change.as_ref().map(|change| change(&id));
        let calls = [side.make.clone(), Some((side.look)(&id)), change, Some((side.end)(&id))];
        let calls: Vec<Call> = calls.into_iter().flatten().collect();
        assert!(calls[..2].iter().all(|call| !call.ids.is_empty()), "{}", side.name);
        for call in calls {
            for at in call.ids {
                let fault = Fault::AnotherId { at: (*at).into(), id: other.clone() };
                let (status, body) = side.strike(&call, fault).await.unwrap();
                assert!((200..300).contains(&status), "{} {}", side.name, call.operation);
                let body: Value = serde_json::from_str(&body).unwrap();
                assert_eq!(body.pointer(at), Some(&json!(other)), "{} {at}", side.name);
                assert_eq!((side.live)(OTHER), 1, "only the answer is wrong");
            }
        }
    }
}

#[tokio::test]
async fn a_place_where_no_id_stands_is_no_fault_that_happened() {
    let side = openrouter();
    let fault = Fault::AnotherId { at: "/data/id".into(), id: "other".into() };
    let rule = Rule::first("create_key", fault);
    side.faults.set(vec![rule.clone()]).unwrap();
    assert!(side.send(side.make.as_ref().unwrap()).await.unwrap().status().is_success());
    assert_eq!(side.faults.unfired(), [rule]);
}

#[tokio::test]
async fn a_list_is_behind() {
    for side in SIDES {
        let side = side();
        let id = (side.by_hand)(LABEL);
        let shows = async |call: &Call| {
            let body = side.send(call).await.unwrap().text().await.unwrap();
            body.contains(&id)
        };
        assert!(shows(&side.list).await, "{}", side.name);
        let delayed = Fault::DelayedList { for_ms: 60_000 };
        side.faults.set(vec![Rule::first(side.list.operation, delayed)]).unwrap();
        assert!(!shows(&side.list).await, "{}", side.name);
        assert_eq!(side.faults.unfired(), []);
    }
}

#[tokio::test]
async fn a_value_is_shown_once_where_it_is_a_secret() {
    for side in SIDES {
        let side = side();
        let Some(make) = &side.make else { continue };
        let made: Value = side.send(make).await.unwrap().json().await.unwrap();
        let id = made.pointer(make.ids[make.ids.len() - 1]).unwrap().as_str().unwrap();
        let values = ["/api_key/value", "/key", "/value", "/dsn/public"];
        let value = values.iter().find_map(|at| made.pointer(at)).unwrap().as_str().unwrap();
        let shown = side.send(&(side.look)(id)).await.unwrap().text().await.unwrap();
        assert!(shown.contains(id), "{}", side.name);
        assert_eq!(shown.contains(value), side.name == sentry::NAME, "{}", side.name);
    }
}

/// How a twin with these delays stands to a new key, and to one that the provider ended by itself.
fn known(propagation: Duration, revocation: Duration) -> [(&'static str, bool, bool); 4] {
    let openai = openai::Twin::start(openai::TwinOptions {
        propagation,
        revocation,
        ..openai::TwinOptions::default()
    });
    let openrouter = openrouter::Twin::start(openrouter::TwinOptions {
        propagation,
        revocation,
        ..openrouter::TwinOptions::default()
    });
    let anthropic = anthropic::Twin::start(anthropic::TwinOptions {
        propagation,
        revocation,
        ..anthropic::TwinOptions::default()
    });
    let posthog = posthog::Twin::start(posthog::TwinOptions {
        propagation,
        revocation,
        ..posthog::TwinOptions::default()
    });
    let (openai, openrouter) = (openai.unwrap(), openrouter.unwrap());
    let (anthropic, posthog) = (anthropic.unwrap(), posthog.unwrap());
    let (one, two, three) =
        (openai.make_key(LABEL), openrouter.make_key(LABEL), anthropic.make_key(LABEL));
    let four = posthog.make_key(LABEL, &["feature_flag:read"]);
    let accepted = || {
        [
            openai.accepts(&one.value),
            openrouter.accepts(&two.value),
            anthropic.accepts(&three.value),
            posthog.accepts(&four.value),
        ]
    };
    let new = accepted();
    openai.end_by_itself(&one.id);
    openrouter.end_by_itself(&two.hash);
    anthropic.end_by_itself(&three.id);
    posthog.end_by_itself(&four.id);
    let ended = accepted();
    let names = [openai::NAME, openrouter::NAME, anthropic::NAME, posthog::NAME];
    std::array::from_fn(|nth| (names[nth], new[nth], ended[nth]))
}

/// The relay of Sentry goes by what it knew, which `sentry.rs` has.
#[test]
fn a_key_is_known_late_and_one_that_the_provider_ended_is_refused_late() {
    let hour = Duration::from_secs(3_600);
    let all = |new, ended| {
        [openai::NAME, openrouter::NAME, anthropic::NAME, posthog::NAME]
            .map(|name| (name, new, ended))
    };
    assert_eq!(known(Duration::ZERO, Duration::ZERO), all(true, false));
    assert_eq!(known(hour, Duration::ZERO), all(false, false));
    assert_eq!(known(Duration::ZERO, hour), all(true, true));
}

/// A person makes keys of Anthropic, and Sentry sets no limit.
#[tokio::test]
async fn a_project_is_full() {
    let openai = openai::Twin::start(openai::TwinOptions {
        most_accounts: Some(1),
        ..openai::TwinOptions::default()
    });
    let openrouter = openrouter::Twin::start(openrouter::TwinOptions {
        most_keys: Some(1),
        ..openrouter::TwinOptions::default()
    });
    let posthog = posthog::Twin::start(posthog::TwinOptions {
        most_keys: 1,
        ..posthog::TwinOptions::default()
    });
    let sides = [
        openai_side(openai.unwrap()),
        openrouter_side(openrouter.unwrap()),
        posthog_side(posthog.unwrap()),
    ];
    for side in sides {
        (side.by_hand)(OTHER);
        let status = side.send(side.make.as_ref().unwrap()).await.unwrap().status().as_u16();
        assert!((400..500).contains(&status), "{}: {status}", side.name);
        assert_eq!(((side.live)(LABEL), (side.live)(OTHER)), (0, 1), "{}", side.name);
    }
}
