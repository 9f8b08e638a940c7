//! `posthog_events`: how often an event came since the rotation began, within bounds.
//!
//! PostHog takes events in a few seconds at best, so a lower bound stays red for a while after a roll.

use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::duration::Duration;
use keywheel_driver::probe::{Asked, Health, Probe};
use keywheel_driver::{CallError, Refusal, SecretReference};
use reqwest::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{in_seconds, within};
use crate::api::{Api, unsupported};
use crate::http::Effect;
use crate::{Build, Context, reference};

const TARGET: &str = "PostHog";

/// The name of the event and the time stand beside the query, so that nothing in them is read as a part of it.
const QUERY: &str =
    "SELECT count() FROM events WHERE event = {event} AND timestamp >= toDateTime({since})";

/// How often an event came to a project at PostHog since the rotation began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The id of the project, a number.
    pub project: u64,
    /// Where the account is: `https://us.posthog.com`, `https://eu.posthog.com` or the address of an own installation; HTTPS, or
    /// a loopback address.
    pub base_url: String,
    /// Where a personal API key with the scope `query:read` is read.
    pub personal_key: SecretReference,
    /// The name of the event, as in `$exception` or `order_placed`.
    pub event: String,
    /// The most that is green.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// The least that is green.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u64>,
    /// How long an answer may take.
    #[serde(default = "default_within")]
    pub within: Duration,
}

fn default_within() -> Duration {
    Span::seconds(10).into()
}

impl Build for Config {
    type Driver = dyn Probe;

    fn build(&self, context: &Context) -> Result<Arc<dyn Probe>, Refusal> {
        if self.event.is_empty() {
            return Err(unsupported("`event` is empty"));
        }
        if self.max.is_none() && self.min.is_none() {
            return Err(unsupported("`max` or `min` must say how often is green"));
        }
        if self.max.zip(self.min).is_some_and(|(max, min)| max < min) {
            return Err(unsupported("`max` is below `min`, so nothing is green"));
        }
        let api = Api::new(TARGET, &self.base_url)?;
        let personal_key = reference::from_root(&self.personal_key, context);
        Ok(Arc::new(PosthogEvents { config: Self { personal_key, ..self.clone() }, api }))
    }
}

struct PosthogEvents {
    config: Config,
    api: Api,
}

#[async_trait]
impl Probe for PosthogEvents {
    async fn ask(&self, asked: &Asked) -> Result<Health, CallError> {
        let count = within(TARGET, self.config.within, self.count(asked.began_at)).await?;
        let above = self.config.max.filter(|max| count > *max).map(|max| ("above", max));
        let below = self.config.min.filter(|min| count < *min).map(|min| ("below", min));
        Ok(match above.or(below) {
            None => Health::Green,
            Some((where_, bound)) => Health::Red(format!(
                "event `{}` came {count} times since the rotation began, which is {where_} {bound}",
                self.config.event
            )),
        })
    }
}

impl PosthogEvents {
    async fn count(&self, since: Timestamp) -> Result<u64, CallError> {
        let key = reference::read(&self.config.personal_key).await?;
        let headers = self.api.bearer(&key, "personal key")?;
        let url = self.api.url(&["api", "projects", &self.config.project.to_string(), "query", ""]);
        let values = json!({ "event": self.config.event, "since": in_seconds(since) });
        let query = json!({ "kind": "HogQLQuery", "query": QUERY, "values": values });
        let body = json!({ "query": query });
        let answer = self.api.send(Method::POST, url, &headers, Some(&body)).await?;
        if !answer.status.is_success() {
            return Err(answer.error(Effect::Reads));
        }
        let counted: Option<Counted> = answer.decode().ok();
        let [[count]] = counted
            .map(|counted| counted.results)
            .ok_or_else(|| unsupported("PostHog answered what this version cannot read"))?;
        Ok(count)
    }
}

#[derive(Deserialize)]
struct Counted {
    results: [[u64; 1]; 1],
}

#[cfg(test)]
mod tests {
    use std::time::Duration as Time;

    use keywheel_driver::Remedy;
    use keywheel_twins::fault::{Echo, Fault, Rule};
    use keywheel_twins::posthog::{PROJECT, Twin, TwinOptions};

    use super::*;

    struct Bench {
        twin: Twin,
        folder: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let twin = Twin::start(TwinOptions::default()).unwrap();
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("key"), twin.personal_key()).unwrap();
            Self { twin, folder }
        }

        async fn ask(&self, changes: serde_json::Value) -> Result<Health, CallError> {
            let mut config = json!({
                "project": PROJECT.parse::<u64>().unwrap(),
                "personal_key": { "file": "key" },
                "base_url": self.twin.base_url(),
                "event": "order_placed",
            });
            config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let config: Config = serde_json::from_value(config).unwrap();
            let probe = config.build(&Context::at(self.folder.path())).unwrap();
            let now = jiff::Timestamp::now().as_millisecond();
            let (began_at, now) =
                (Timestamp::from_millis(now - 600_000), Timestamp::from_millis(now));
            probe.ask(&Asked { began_at, now }).await
        }
    }

    #[tokio::test]
    async fn events_since_the_rotation_began_are_counted() {
        let bench = Bench::new();
        for (event, ago) in
            [("order_placed", 3_600), ("order_placed", 60), ("order_placed", 1), ("other", 1)]
        {
            bench.twin.add_event(event, Time::from_secs(ago));
        }
        let red = |why: &str| Ok(Health::Red(why.into()));
        for (bounds, health) in [
            (json!({ "min": 2 }), Ok(Health::Green)),
            (json!({ "max": 2 }), Ok(Health::Green)),
            (json!({ "min": 2, "max": 2 }), Ok(Health::Green)),
            (
                json!({ "min": 3 }),
                red("event `order_placed` came 2 times since the rotation began, which is below 3"),
            ),
            (
                json!({ "max": 1 }),
                red("event `order_placed` came 2 times since the rotation began, which is above 1"),
            ),
            (json!({ "max": 0, "event": "nothing" }), Ok(Health::Green)),
        ] {
            assert_eq!(bench.ask(bounds.clone()).await, health, "{bounds}");
        }
    }

    #[tokio::test]
    async fn every_other_answer_is_told_without_its_text() {
        let bench = Bench::new();
        for (code, body, retried, told) in [
            (401, Echo::EchoKey, false, "PostHog answered 401"),
            (403, Echo::EchoKey, false, "PostHog answered 403"),
            (404, Echo::Json, false, "PostHog answered 404"),
            (429, Echo::Json, true, "PostHog answered 429"),
            (503, Echo::Html, true, "PostHog answered 503"),
            (200, Echo::Html, false, "PostHog answered what this version cannot read"),
            (200, Echo::Json, false, "PostHog answered what this version cannot read"),
        ] {
            let fault = Fault::Status { code, retry_after: None, body, applied: false };
            bench.twin.faults().set(vec![Rule::first("query", fault)]).unwrap();
            let Err(CallError::Refused(refusal)) = bench.ask(json!({ "max": 0 })).await else {
                panic!("{code}")
            };
            assert_eq!(refusal.message, told);
            assert_eq!(matches!(refusal.remedy, Remedy::Retry { .. }), retried, "{code}");
        }
        for silent in [Fault::Cut, Fault::Hang] {
            bench.twin.faults().set(vec![Rule::first("query", silent)]).unwrap();
            let answer = bench.ask(json!({ "max": 0, "within": "200ms" })).await;
            let Err(CallError::Refused(refusal)) = answer else { panic!("it was answered") };
            assert!(matches!(refusal.remedy, Remedy::Retry { .. }), "{refusal}");
        }
    }

    #[test]
    fn settings_that_prove_nothing_are_refused() {
        for changes in [
            json!({}),
            json!({ "max": 1, "event": "" }),
            json!({ "max": 1, "min": 2 }),
            json!({ "max": 1, "base_url": "http://posthog.example.com" }),
        ] {
            let mut config = json!({
                "project": 7, "base_url": "https://eu.posthog.com", "personal_key": { "env": "KEY" }, "event": "e",
            });
            config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let config: Config = serde_json::from_value(config).unwrap();
            assert!(config.build(&Context::at("/")).is_err(), "{changes}");
        }
    }
}
