//! `sentry_issues`: no issue that Sentry saw first after the rotation began.
//!
//! Sentry is asked for issues that match a search and whose first event came since. Their titles may hold anything and are not
//! told; their short ids are.

use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::duration::Duration;
use keywheel_driver::probe::{Asked, Health, Probe};
use keywheel_driver::{CallError, Refusal, SecretReference};
use reqwest::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{in_seconds, within};
use crate::api::{Api, unsupported};
use crate::http::Effect;
use crate::{Build, Context, reference};

const TARGET: &str = "Sentry";
const OFFICIAL: &str = "https://sentry.io";

/// How many issues one answer holds.
const PAGE: u64 = 100;

/// How many issues are named.
const NAMED: usize = 5;

/// New issues at Sentry: those that match a search and were first seen after the rotation began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The slug of the organisation.
    pub organization: String,
    /// The slug of the project; every project that the token may read, where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The search, in Sentry's own words, without `firstSeen`.
    #[serde(default = "unresolved")]
    pub query: String,
    /// The most new issues that are green.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max: u64,
    /// Where a token with the scope `event:read` is read.
    pub auth_token: SecretReference,
    /// Where Sentry is, if not at `https://sentry.io`: `https://de.sentry.io`, or the address of an own installation; HTTPS, or
    /// a loopback address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// How long an answer may take.
    #[serde(default = "default_within")]
    pub within: Duration,
}

fn unresolved() -> String {
    "is:unresolved".into()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(max: &u64) -> bool {
    *max == 0
}

fn default_within() -> Duration {
    Span::seconds(10).into()
}

impl Build for Config {
    type Driver = dyn Probe;

    fn build(&self, context: &Context) -> Result<Arc<dyn Probe>, Refusal> {
        if self.organization.is_empty() {
            return Err(unsupported("`organization` is empty"));
        }
        if self.query.contains("firstSeen") {
            return Err(unsupported("`query` names `firstSeen`, which the probe adds by itself"));
        }
        if self.max >= PAGE {
            return Err(unsupported("`max` must be below 100: more issues are not counted"));
        }
        let api = Api::new(TARGET, self.base_url.as_deref().unwrap_or(OFFICIAL))?;
        let auth_token = reference::from_root(&self.auth_token, context);
        Ok(Arc::new(SentryIssues { config: Self { auth_token, ..self.clone() }, api }))
    }
}

struct SentryIssues {
    config: Config,
    api: Api,
}

#[async_trait]
impl Probe for SentryIssues {
    async fn ask(&self, asked: &Asked) -> Result<Health, CallError> {
        let found = within(TARGET, self.config.within, self.issues(asked.began_at)).await?;
        let new: Vec<&Issue> =
            found.iter().filter(|issue| issue.is_since(asked.began_at)).collect();
        let count = u64::try_from(new.len()).unwrap_or(u64::MAX);
        if count <= self.config.max {
            return Ok(Health::Green);
        }
        let names = new.iter().filter_map(|issue| issue.name()).take(NAMED).collect::<Vec<_>>();
        let names =
            if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) };
        Ok(Health::Red(format!("{count} new issues since the rotation began{names}")))
    }
}

impl SentryIssues {
    async fn issues(&self, since: Timestamp) -> Result<Vec<Issue>, CallError> {
        let token = reference::read(&self.config.auth_token).await?;
        let headers = self.api.bearer(&token, "token")?;
        let Config { organization, project, query, .. } = &self.config;
        let project = project.iter().map(|project| format!("project:{project} "));
        let query =
            format!("{}{query} firstSeen:>={}", project.collect::<String>(), in_seconds(since));
        let mut url = self.api.url(&["api", "0", "organizations", organization, "issues", ""]);
        // Without `project=-1` only the projects that the owner of the token is a member of are searched.
        url.query_pairs_mut()
            .append_pair("query", &query)
            .append_pair("project", "-1")
            .append_pair("sort", "new")
            .append_pair("limit", &PAGE.to_string());
        let answer = self.api.send(Method::GET, url, &headers, None).await?;
        if !answer.status.is_success() {
            return Err(answer.error(Effect::Reads));
        }
        let read = answer.decode();
        read.map_err(|_| unsupported("Sentry answered what this version cannot read").into())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Issue {
    #[serde(default)]
    short_id: String,
    first_seen: Option<String>,
}

impl Issue {
    /// One whose time cannot be read is taken for a new one: that is what was asked for.
    fn is_since(&self, since: Timestamp) -> bool {
        let first: Option<jiff::Timestamp> =
            self.first_seen.as_deref().and_then(|text| text.parse().ok());
        first.is_none_or(|first| first.as_second() >= since.millis().div_euclid(1_000))
    }

    /// Its short id, where that is one.
    fn name(&self) -> Option<&str> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let name = self.short_id.as_str();
        ((1..=64).contains(&name.len()) && name.bytes().all(plain)).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration as Time;

    use keywheel_driver::Remedy;
    use keywheel_twins::fault::{Echo, Fault, Rule};
    use keywheel_twins::sentry::{ORGANIZATION, PROJECT, Twin, TwinOptions};
    use serde_json::json;

    use super::*;

    struct Bench {
        twin: Twin,
        folder: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let twin = Twin::start(TwinOptions::default()).unwrap();
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("token"), twin.token()).unwrap();
            Self { twin, folder }
        }

        async fn ask(&self, changes: serde_json::Value) -> Result<Health, CallError> {
            let mut config = json!({
                "organization": ORGANIZATION,
                "auth_token": { "file": "token" },
                "base_url": self.twin.base_url(),
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
    async fn only_issues_that_are_new_since_the_rotation_began_are_red() {
        let bench = Bench::new();
        bench.twin.add_issue("login fails", Time::from_secs(3_600));
        assert_eq!(bench.ask(json!({})).await, Ok(Health::Green));
        bench.twin.add_issue("login fails for kwcanary-5e1f", Time::from_secs(60));
        bench.twin.add_issue("slow", Time::from_secs(60));
        let red = |why: &str| Ok(Health::Red(why.into()));
        assert_eq!(
            bench.ask(json!({ "project": PROJECT })).await,
            red("2 new issues since the rotation began: SHOP-2, SHOP-3")
        );
        assert_eq!(
            bench.ask(json!({ "query": "login" })).await,
            red("1 new issues since the rotation began: SHOP-2")
        );
        assert_eq!(bench.ask(json!({ "max": 2 })).await, Ok(Health::Green));
        assert_eq!(bench.ask(json!({ "query": "elsewhere" })).await, Ok(Health::Green));
    }

    #[tokio::test]
    async fn every_other_answer_is_told_without_its_text() {
        let bench = Bench::new();
        for (code, body, retried, told) in [
            (401, Echo::EchoKey, false, "Sentry answered 401"),
            (403, Echo::EchoKey, false, "Sentry answered 403"),
            (404, Echo::Json, false, "Sentry answered 404"),
            (429, Echo::Json, true, "Sentry answered 429"),
            (503, Echo::Html, true, "Sentry answered 503"),
            (200, Echo::Html, false, "Sentry answered what this version cannot read"),
        ] {
            let fault = Fault::Status { code, retry_after: None, body, applied: false };
            bench.twin.faults().set(vec![Rule::first("list_issues", fault)]).unwrap();
            let Err(CallError::Refused(refusal)) = bench.ask(json!({})).await else {
                panic!("{code}")
            };
            assert_eq!(refusal.message, told);
            assert_eq!(matches!(refusal.remedy, Remedy::Retry { .. }), retried, "{code}");
        }
        for silent in [Fault::Cut, Fault::Hang] {
            bench.twin.faults().set(vec![Rule::first("list_issues", silent)]).unwrap();
            let Err(CallError::Refused(refusal)) = bench.ask(json!({ "within": "200ms" })).await
            else {
                panic!("it was answered")
            };
            assert!(matches!(refusal.remedy, Remedy::Retry { .. }), "{refusal}");
        }
    }

    #[test]
    fn settings_that_prove_nothing_are_refused() {
        for changes in [
            json!({ "organization": "" }),
            json!({ "query": "firstSeen:-1h" }),
            json!({ "max": 100 }),
            json!({ "base_url": "http://sentry.example.com" }),
        ] {
            let mut config = json!({ "organization": "shop", "auth_token": { "env": "TOKEN" } });
            config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let config: Config = serde_json::from_value(config).unwrap();
            assert!(config.build(&Context::at("/")).is_err(), "{changes}");
        }
    }
}
