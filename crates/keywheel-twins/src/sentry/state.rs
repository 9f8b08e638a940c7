//! What the Sentry twin remembers: client keys with their past, issues, and when the relay first heard of a key.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::TwinOptions;
use crate::life::{Life, Switch, millis};
use crate::{now, random};

const HEX: &[u8] = b"0123456789abcdef";

/// Everything, behind the lock of the twin. Nothing is ever forgotten: what ended has a time at which it did.
pub(super) struct State {
    pub(super) options: TwinOptions,
    pub(super) token: String,
    pub(super) scopes: Vec<String>,
    pub(super) keys: BTreeMap<String, Key>,
    pub(super) issues: Vec<Issue>,
    /// What was done to keys, by whomever.
    pub(super) log: Vec<Logged>,
    /// When the relay was first asked about each public key.
    heard: BTreeMap<String, i64>,
    order: u64,
}

pub(super) struct Key {
    /// The public key, which is the id too.
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) settings: Settings,
    pub(super) life: Life,
    pub(super) switch: Switch,
    /// When the relay took an envelope for it.
    pub(super) taken: Vec<i64>,
}

/// One row of the organisation's audit log.
pub(super) struct Logged {
    pub(super) event: &'static str,
    pub(super) key: String,
    pub(super) secret: String,
    pub(super) name: String,
    pub(super) by: By,
    pub(super) at: i64,
}

/// Who did something.
#[derive(Clone, Copy)]
pub(super) enum By {
    /// The holder of the token.
    Token,
    /// A person in the settings of the project.
    Person,
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
            log: Vec::new(),
            heard: BTreeMap::new(),
            order: 0,
        }
    }

    pub(super) fn add(&mut self, settings: Settings, by: By) -> String {
        let id = random(HEX, 32);
        let key = Key {
            id: id.clone(),
            secret: random(HEX, 32),
            settings,
            life: Life::begin(&mut self.order),
            switch: Switch::on(),
            taken: Vec::new(),
        };
        self.keys.insert(id.clone(), key);
        self.note("projectkey.create", &id, by);
        id
    }

    /// Notes in the audit log what was done to a key.
    pub(super) fn note(&mut self, event: &'static str, id: &str, by: By) {
        let key = &self.keys[id];
        let (secret, name) = (key.secret.clone(), key.settings.name.clone());
        self.log.push(Logged { event, key: id.into(), secret, name, by, at: now() });
    }

    /// Ends a key; none where it is not there.
    pub(super) fn end(&mut self, id: &str, by: By) -> Option<()> {
        self.live(id)?.life.end();
        self.note("projectkey.remove", id, by);
        Some(())
    }

    /// Returns the keys that a look at this time shows, the newest first, as the API lists them.
    pub(super) fn keys_at(&self, time: i64) -> Vec<&Key> {
        let mut shown: Vec<_> = self.keys.values().filter(|key| key.life.shows_at(time)).collect();
        shown.sort_by_key(|key| std::cmp::Reverse(key.life.order));
        shown
    }

    pub(super) fn live(&mut self, id: &str) -> Option<&mut Key> {
        self.keys.get_mut(id).filter(|key| key.life.ended.is_none())
    }

    /// Returns what the relay says of a public key: yes to whatever it has no configuration for yet, and for a while to what
    /// was disabled.
    pub(super) fn relay_accepts(&mut self, public: &str) -> bool {
        let now = now();
        let heard = *self.heard.entry(public.into()).or_insert(now);
        if now < heard + millis(self.options.relay_fetch) {
            return true;
        }
        let cache = self.options.relay_cache;
        let is_there = |life: &Life| life.ended.is_none_or(|ended| now < ended + millis(cache));
        let known =
            |key: &Key| is_there(&key.life) && key.switch.is_known_on(Duration::ZERO, cache);
        self.keys.get(public).is_some_and(known)
    }
}
