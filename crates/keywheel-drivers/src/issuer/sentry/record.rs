//! What Sentry has on record about a client key: what was done to it, from the audit log of the organisation, and what came with it,
//! from the statistics of the key. Neither holds up the other.
//!
//! The log says what a key was changed to, its secret part included. Of all that only the public key is read.

use std::collections::BTreeSet;

use async_trait::async_trait;
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{Audit, Entry};
use keywheel_driver::{CallError, Refusal, RefusalKind};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde::Deserialize;

use super::{Key, Sentry, next_cursor, public_key};
use crate::api::{MOST_PAGES, instant, moment, now, plain};
use crate::http::{self, Effect};

/// What the log calls what can be done to a key. Versions of Sentry differ; one that does not know a name has nothing under it.
const EVENTS: [&str; 6] = [
    "projectkey.create",
    "projectkey.edit",
    "projectkey.change",
    "projectkey.enable",
    "projectkey.disable",
    "projectkey.remove",
];

/// How far back events are counted: as far as Sentry's own pages ask.
const COUNTED: Span = Span::days(30);

const DAY: i64 = 24 * 60 * 60;

#[async_trait]
impl Audit for Sentry {
    async fn since(&self, id: &IssuedId, since: Timestamp) -> Result<Vec<Entry>, CallError> {
        let (public, headers) = (public_key(id)?, self.headers().await?);
        let key = self.find(&headers, public).await?;
        let mut entries = match self.logged(&headers, public, since).await {
            Ok(rows) if rows.is_empty() => vec![Entry::untimed(
                "the audit log of the organisation has nothing of the key in this time; how long it is kept is up to the plan",
            )],
            Ok(rows) => rows.iter().map(Row::entry).collect(),
            Err(error) => vec![
                made(key.as_ref(), since),
                Entry::untimed(format!(
                    "the audit log of the organisation could not be read: {error}"
                )),
            ],
        };
        if key.is_some() {
            entries.extend(self.counted(&headers, public, since).await);
        }
        if key.is_some() && now() - COUNTED > since {
            entries.push(Entry::untimed("events are counted for 30 days at most"));
        }
        let standing = match key {
            Some(Key { is_active: true, .. }) => "the key is enabled now",
            Some(_) => "the key is disabled now",
            None => "the project has no such key any more, and no count of its events",
        };
        entries.push(Entry::untimed(standing));
        entries.sort_by_key(|entry| entry.at);
        Ok(entries)
    }
}

impl Sentry {
    /// Reads what was done to a key, the newest first, until it is older than is asked for.
    async fn logged(
        &self,
        headers: &HeaderMap,
        public: &str,
        since: Timestamp,
    ) -> Result<Vec<Row>, CallError> {
        let (mut rows, mut seen) = (Vec::new(), BTreeSet::new());
        for event in EVENTS {
            rows.extend(self.logged_as(headers, event, since).await?);
        }
        let is_meant = |row: &Row| row.is_of(public) && row.at().is_none_or(|at| at >= since);
        rows.retain(|row| is_meant(row) && seen.insert(row.id.clone()));
        Ok(rows)
    }

    async fn logged_as(
        &self,
        headers: &HeaderMap,
        event: &str,
        since: Timestamp,
    ) -> Result<Vec<Row>, CallError> {
        let (mut rows, mut cursor): (Vec<Row>, Option<String>) = (Vec::new(), None);
        for _ in 0..MOST_PAGES {
            let organization = &self.config.organization;
            let mut url =
                self.api.url(&["api", "0", "organizations", organization, "audit-logs", ""]);
            url.query_pairs_mut()
                .append_pair("event", event)
                .extend_pairs(cursor.iter().map(|cursor| ("cursor", cursor)));
            let answer = self.api.send(Method::GET, url, headers, None).await?;
            if !answer.status.is_success() {
                return Err(self.hint_of_log(answer.error(Effect::Reads)));
            }
            rows.extend(answer.decode::<Log>()?.rows);
            let is_older = rows.last().and_then(Row::at).is_some_and(|at| at < since);
            let next = next_cursor(&answer.headers);
            if is_older || next.is_none() {
                return Ok(rows);
            }
            if next == cursor {
                break;
            }
            cursor = next;
        }
        Err(self.api.endless("the audit log"))
    }

    /// Says what to look at where the token, the organisation or its plan may be wrong.
    fn hint_of_log(&self, error: CallError) -> CallError {
        match error {
            CallError::Refused(refusal) if refusal.kind == RefusalKind::NotFound => {
                let organization = &self.config.organization;
                let message = format!(
                    "{}: is there an organisation `{organization}`, and has it an audit log?",
                    refusal.message
                );
                Refusal { message, ..refusal }.into()
            }
            error => self.hint(error, "org:write"),
        }
    }

    /// Counts what came with a key, by the day.
    async fn counted(&self, headers: &HeaderMap, public: &str, since: Timestamp) -> Vec<Entry> {
        match self.days(headers, public, since).await {
            Ok(days) => told(&days),
            Err(error) => vec![Entry::untimed(format!(
                "the events that came with the key could not be counted: {error}"
            ))],
        }
    }

    /// Asks as Sentry's own pages do; the call is described nowhere, and a version of Sentry may not have it.
    async fn days(
        &self,
        headers: &HeaderMap,
        public: &str,
        since: Timestamp,
    ) -> Result<Vec<Day>, CallError> {
        let until = now();
        let mut url = self.url(&["keys", public, "stats"]);
        url.query_pairs_mut()
            .append_pair("since", &http::unix_seconds(since.max(until - COUNTED)))
            .append_pair("until", &http::unix_seconds(until))
            .append_pair("resolution", "1d");
        let days = self.api.read(headers, url).await;
        days.map_err(|error| match error {
            CallError::Refused(refusal) if refusal.kind == RefusalKind::NotFound => refusal.into(),
            error => self.hint(error, "project:read"),
        })
    }
}

/// When the key was made, by its own word.
fn made(key: Option<&Key>, since: Timestamp) -> Entry {
    let at = key.and_then(|key| key.date_created.as_deref()).and_then(moment);
    match at {
        Some(at) if at >= since => Entry { at: Some(at), what: "it was made".into() },
        Some(_) => Entry::untimed("it was made before"),
        None => Entry::untimed("when it was made is not known"),
    }
}

#[derive(Deserialize)]
struct Log {
    rows: Vec<Row>,
}

/// One row of the audit log.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    id: String,
    event: String,
    date_created: String,
    actor: Option<Actor>,
    ip_address: Option<String>,
    data: Option<Target>,
}

#[derive(Deserialize)]
struct Actor {
    name: Option<String>,
    email: Option<String>,
}

#[derive(Deserialize)]
struct Target {
    public_key: Option<String>,
}

impl Row {
    fn is_of(&self, public: &str) -> bool {
        self.data.as_ref().and_then(|data| data.public_key.as_deref()) == Some(public)
    }

    fn at(&self) -> Option<Timestamp> {
        moment(&self.date_created)
    }

    fn entry(&self) -> Entry {
        let done = match self.event.as_str() {
            "projectkey.create" => "it was made".into(),
            "projectkey.edit" | "projectkey.change" => "it was changed".into(),
            "projectkey.enable" => "it was enabled".into(),
            "projectkey.disable" => "it was disabled".into(),
            "projectkey.remove" => "it was deleted".into(),
            other => format!("`{}`", plain(other)),
        };
        let actor = self.actor.as_ref();
        let name = actor.and_then(|actor| actor.email.as_deref().or(actor.name.as_deref()));
        let by = name.map_or("nobody that is named".into(), |name| format!("`{}`", plain(name)));
        let from = self.ip_address.as_deref().map(|from| format!(" from {}", plain(from)));
        Entry { at: self.at(), what: format!("{done} by {by}{}", from.unwrap_or_default()) }
    }
}

/// Tells of each day with events, or that there is none: nothing that came is something else than nothing that was counted.
fn told(days: &[Day]) -> Vec<Entry> {
    let with_events: Vec<Entry> = days.iter().filter_map(Day::entry).collect();
    let none = match (days, with_events.as_slice()) {
        ([], _) => Some("Sentry counted no day"),
        (_, []) => Some("no event came with the key in the days that are counted"),
        _ => None,
    };
    with_events.into_iter().chain(none.map(Entry::untimed)).collect()
}

/// What came with a key on one day, in UTC.
#[derive(Deserialize)]
struct Day {
    ts: i64,
    #[serde(default)]
    total: u64,
    #[serde(default)]
    accepted: u64,
}

impl Day {
    /// A day stands for its last moment, so that nothing is taken for older than it is.
    fn entry(&self) -> Option<Entry> {
        let Self { total, accepted, .. } = self;
        let what = format!("events in the day before: {total}, of which accepted: {accepted}");
        let end = instant(self.ts.saturating_add(DAY)).min(now());
        (self.total > 0).then_some(Entry { at: Some(end), what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_event_is_told_from_no_count() {
        let told = |totals: &[u64]| {
            let days = totals.iter().map(|total| Day { ts: 0, total: *total, accepted: 0 });
            let told = told(&days.collect::<Vec<_>>());
            told.into_iter().map(|entry| entry.what).collect::<Vec<_>>()
        };
        assert_eq!(told(&[]), ["Sentry counted no day"]);
        assert_eq!(told(&[0, 0]), ["no event came with the key in the days that are counted"]);
        assert_eq!(told(&[0, 2]), ["events in the day before: 2, of which accepted: 0"]);
    }
}
