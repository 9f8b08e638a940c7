//! What PostHog has on record about a credential: who made, changed and deleted it, from the activity log of the project.
//!
//! The log shows ends of values before and after a change. Of a change only the name of the field is read.

use async_trait::async_trait;
use keywheel_core::time::Timestamp;
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{Audit, Entry};
use keywheel_driver::{CallError, Refusal, RefusalKind};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde::Deserialize;

use super::flags_token::FlagsToken;
use super::project_token::ProjectToken;
use super::secret_key::{Key, SecretKeys};
use super::{Project, TARGET};
use crate::api::{MOST_PAGES, moment, plain};
use crate::http::Effect;

const READ: &str = "read the activity log (`activity_log:read`)";

#[async_trait]
impl Audit for SecretKeys {
    async fn since(&self, id: &IssuedId, since: Timestamp) -> Result<Vec<Entry>, CallError> {
        let headers = self.0.headers().await?;
        let key = self.find(&headers, id).await?;
        let mut entries =
            match self.0.activities(&headers, "ProjectSecretAPIKey", &id.id, since).await {
                Ok(rows) => on_record(&rows),
                Err(error) => {
                    let mut entries =
                        key.as_ref().map(|key| told_by(key, since)).unwrap_or_default();
                    entries.push(unread(&error));
                    entries
                }
            };
        let standing = match key {
            Some(_) => "the key is there; of its uses PostHog tells the last one only",
            None => "the project has no such key any more, and its last use is not told",
        };
        entries.push(Entry::untimed(standing));
        entries.sort_by_key(|entry| entry.at);
        Ok(entries)
    }
}

#[async_trait]
impl Audit for ProjectToken {
    async fn since(&self, _id: &IssuedId, since: Timestamp) -> Result<Vec<Entry>, CallError> {
        self.0.changes_of_tokens(since).await
    }
}

#[async_trait]
impl Audit for FlagsToken {
    async fn since(&self, _id: &IssuedId, since: Timestamp) -> Result<Vec<Entry>, CallError> {
        self.0.changes_of_tokens(since).await
    }
}

impl Project {
    /// Tells what was done with the tokens of the project. PostHog names none of them, so that a change may be of another version.
    async fn changes_of_tokens(&self, since: Timestamp) -> Result<Vec<Entry>, CallError> {
        let (headers, project) = (self.headers().await?, self.config.project.to_string());
        let mut entries = match self.activities(&headers, "Team", &project, since).await {
            Ok(mut rows) => {
                rows.retain(|row| row.fields().any(|field| field.contains("api_token")));
                on_record(&rows)
            }
            Err(error) => vec![unread(&error)],
        };
        entries.push(Entry::untimed(
            "PostHog tells neither which token a change was of nor by which one an event or a request came",
        ));
        entries.sort_by_key(|entry| entry.at);
        Ok(entries)
    }

    /// Reads what was done with one thing, the newest first, until it is older than is asked for.
    async fn activities(
        &self,
        headers: &HeaderMap,
        scope: &str,
        item: &str,
        since: Timestamp,
    ) -> Result<Vec<Activity>, CallError> {
        let mut rows: Vec<Activity> = Vec::new();
        for page in 1..=MOST_PAGES {
            let mut url = self.url(&["activity_log"]);
            url.query_pairs_mut()
                .append_pair("scope", scope)
                .append_pair("item_id", item)
                .append_pair("page_size", "100")
                .append_pair("page", &page.to_string());
            let answer = self.api.send(Method::GET, url, headers, None).await?;
            match answer.status.as_u16() {
                200..=299 => {}
                402 => return Err(no_plan().into()),
                _ => return Err(self.hint(answer.error(Effect::Reads), READ)),
            }
            let found: Page = answer.decode()?;
            let is_last = found.next.is_none() || found.results.is_empty();
            rows.extend(found.results);
            let is_older = rows.last().and_then(Activity::at).is_some_and(|at| at < since);
            if is_last || is_older {
                let is_meant = |row: &Activity| {
                    row.scope == scope
                        && row.item_id.as_deref() == Some(item)
                        && row.at().is_none_or(|at| at >= since)
                };
                rows.retain(is_meant);
                return Ok(rows);
            }
        }
        Err(self.api.endless("the activity log"))
    }
}

fn no_plan() -> Refusal {
    let message =
        format!("{TARGET} answered 402: the plan of the organisation has no activity log");
    Refusal::operator(RefusalKind::Unsupported, message)
}

fn unread(error: &CallError) -> Entry {
    Entry::untimed(format!("the activity log could not be read: {error}"))
}

/// An empty log is told too: how far back it goes is up to the plan, and to when PostHog began to keep it.
fn on_record(rows: &[Activity]) -> Vec<Entry> {
    if rows.is_empty() {
        let none = "the activity log has nothing of it in this time; how far back it goes is up to the plan";
        return vec![Entry::untimed(none)];
    }
    rows.iter().map(Activity::entry).collect()
}

/// What a key says of itself.
fn told_by(key: &Key, since: Timestamp) -> Vec<Entry> {
    let at = |text: &Option<String>| text.as_deref().and_then(moment);
    let told =
        [("it was made", at(&key.created_at)), ("its value was replaced", at(&key.last_rolled_at))];
    let told =
        told.into_iter().filter_map(|(what, at)| Some(Entry { at: Some(at?), what: what.into() }));
    told.filter(|entry| entry.at >= Some(since)).collect()
}

#[derive(Deserialize)]
struct Page {
    results: Vec<Activity>,
    next: Option<serde::de::IgnoredAny>,
}

/// One row of the activity log.
#[derive(Deserialize)]
struct Activity {
    activity: String,
    scope: String,
    item_id: Option<String>,
    created_at: String,
    user: Option<User>,
    #[serde(default)]
    was_impersonated: Option<bool>,
    #[serde(default)]
    is_system: Option<bool>,
    #[serde(default)]
    ip_address: Option<String>,
    detail: Option<Detail>,
}

#[derive(Deserialize)]
struct User {
    email: Option<String>,
}

#[derive(Deserialize)]
struct Detail {
    #[serde(default)]
    changes: Option<Vec<Change>>,
}

#[derive(Deserialize)]
struct Change {
    field: Option<String>,
}

impl Activity {
    fn at(&self) -> Option<Timestamp> {
        moment(&self.created_at)
    }

    fn fields(&self) -> impl Iterator<Item = &str> {
        let changes = self.detail.iter().flat_map(|detail| &detail.changes).flatten();
        changes.filter_map(|change| change.field.as_deref())
    }

    fn entry(&self) -> Entry {
        let fields: Vec<String> =
            self.fields().map(|field| format!("`{}`", plain(field))).collect();
        let of =
            if fields.is_empty() { String::new() } else { format!(" ({})", fields.join(", ")) };
        let email = self.user.as_ref().and_then(|user| user.email.as_deref());
        let by = match (email, self.is_system) {
            (Some(email), _) => format!("`{}`", plain(email)),
            (None, Some(true)) => "PostHog itself".into(),
            (None, _) => "nobody that is named".into(),
        };
        let staff = if self.was_impersonated == Some(true) { ", as whom staff acted" } else { "" };
        let from = self.ip_address.as_deref().map(|from| format!(" from {}", plain(from)));
        let (activity, from) = (plain(&self.activity), from.unwrap_or_default());
        Entry { at: self.at(), what: format!("{activity}{of} by {by}{staff}{from}") }
    }
}
