//! What the Sentry twin remembers: client keys with their past, issues, and when the relay first heard of a key.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::TwinOptions;
use crate::{now, random};

const HEX: &[u8] = b"0123456789abcdef";

/// Everything, behind the lock of the twin. Nothing is ever forgotten: what ended has a time at which it did.
pub(super) struct State {
    pub(super) options: TwinOptions,
    pub(super) token: String,
    pub(super) scopes: Vec<String>,
    pub(super) keys: BTreeMap<String, Key>,
    pub(super) issues: Vec<Issue>,
    /// When the relay was first asked about each public key.
    heard: BTreeMap<String, i64>,
    order: u64,
}

pub(super) struct Key {
    /// The public key, which is the id too.
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) settings: Settings,
    pub(super) order: u64,
    pub(super) created: i64,
    ended: Option<i64>,
    /// Whether it was active, from when on.
    active: Vec<(i64, bool)>,
    pub(super) events: usize,
}

/// What can be chosen about a key.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) rate_limit: Value,
    pub(super) use_case: String,
    pub(super) browser_sdk_version: String,
    pub(super) loader: Value,
}

impl Settings {
    pub(super) fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            rate_limit: Value::Null,
            use_case: "user".into(),
            browser_sdk_version: "latest".into(),
            loader: json!({
                "hasReplay": true,
                "hasPerformance": true,
                "hasDebug": false,
                "hasFeedback": false,
                "hasLogsAndMetrics": false,
            }),
        }
    }
}

pub(super) struct Issue {
    pub(super) id: u64,
    pub(super) title: String,
    pub(super) first_seen: i64,
}

impl Key {
    fn shows_at(&self, time: i64) -> bool {
        self.created <= time && self.ended.is_none_or(|ended| time < ended)
    }

    pub(super) fn is_active(&self) -> bool {
        self.was_active_at(i64::MAX)
    }

    fn was_active_at(&self, time: i64) -> bool {
        self.active.iter().rfind(|(from, _)| *from <= time).is_some_and(|(_, active)| *active)
    }
}

impl State {
    pub(super) fn new(options: TwinOptions) -> Self {
        let token = options.token.clone().unwrap_or_else(|| format!("sntryu_{}", random(HEX, 64)));
        let scopes = ["org:read", "event:read", "project:read", "project:write", "project:admin"];
        Self {
            options,
            token,
            scopes: scopes.map(str::to_owned).to_vec(),
            keys: BTreeMap::new(),
            issues: Vec::new(),
            heard: BTreeMap::new(),
            order: 0,
        }
    }

    pub(super) fn add(&mut self, settings: Settings) -> String {
        let (id, created) = (random(HEX, 32), now());
        self.order += 1;
        let key = Key {
            id: id.clone(),
            secret: random(HEX, 32),
            settings,
            order: self.order,
            created,
            ended: None,
            active: vec![(created, true)],
            events: 0,
        };
        self.keys.insert(id.clone(), key);
        id
    }

    /// Returns the keys that a look at this time shows, the newest first, as the API lists them.
    pub(super) fn keys_at(&self, time: i64) -> Vec<&Key> {
        let mut shown: Vec<_> = self.keys.values().filter(|key| key.shows_at(time)).collect();
        shown.sort_by_key(|key| std::cmp::Reverse(key.order));
        shown
    }

    pub(super) fn live(&mut self, id: &str) -> Option<&mut Key> {
        self.keys.get_mut(id).filter(|key| key.ended.is_none())
    }

    pub(super) fn switch(&mut self, id: &str, active: bool) {
        if let Some(key) = self.live(id) {
            key.active.push((now(), active));
        }
    }

    pub(super) fn end(&mut self, id: &str) {
        if let Some(key) = self.live(id) {
            key.ended = Some(now());
        }
    }

    /// Returns what the relay says of a public key: yes to whatever it has no configuration for yet, and then what was true a
    /// while ago.
    pub(super) fn relay_accepts(&mut self, public: &str) -> bool {
        let now = now();
        let heard = *self.heard.entry(public.into()).or_insert(now);
        if now < heard + millis(self.options.relay_fetch) {
            return true;
        }
        let at = now - millis(self.options.relay_cache);
        // What the relay never cached it asks for.
        let at = self.keys.get(public).map_or(at, |key| at.max(key.created));
        self.keys.get(public).is_some_and(|key| key.shows_at(at) && key.was_active_at(at))
    }
}

pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_was_what_it_was() {
        let mut state = State::new(TwinOptions::default());
        let id = state.add(Settings::named("backend"));
        let created = state.keys[&id].created;
        let key = state.live(&id).unwrap();
        key.active.extend([(created + 10, false), (created + 20, true)]);
        key.ended = Some(created + 30);
        let key = &state.keys[&id];
        let active = [0, 10, 20].map(|after| key.was_active_at(created + after));
        assert_eq!(active, [true, false, true]);
        let shown = [-1, 0, 29, 30].map(|after| key.shows_at(created + after));
        assert_eq!(shown, [false, true, true, false]);
    }
}
