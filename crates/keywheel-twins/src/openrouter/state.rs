//! What the OpenRouter twin remembers: keys with their settings, guardrails, provider keys and uses.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::TwinOptions;
use crate::life::{Life, Switch, day, millis, rfc3339};
use crate::{now, random};

const HEX: &[u8] = b"0123456789abcdef";

/// What one request costs, in US dollars.
const COST: f64 = 0.01;

const DAY: i64 = 24 * 3_600 * 1_000;

/// Everything, behind the lock of the twin. Nothing is ever forgotten: what ended has a time at which it did.
pub(super) struct State {
    pub(super) options: TwinOptions,
    pub(super) management: String,
    /// The default one first.
    pub(super) workspaces: Vec<String>,
    pub(super) keys: BTreeMap<String, Key>,
    pub(super) guardrails: BTreeMap<String, Guardrail>,
    pub(super) provider_keys: BTreeMap<String, ProviderKey>,
    order: u64,
}

pub(super) struct Key {
    pub(super) hash: String,
    pub(super) name: String,
    pub(super) value: String,
    pub(super) workspace: String,
    pub(super) switch: Switch,
    pub(super) settings: Settings,
    pub(super) life: Life,
    pub(super) updated: Option<i64>,
    /// When it was used, in order, and whether that cost anything.
    pub(super) uses: Vec<(i64, bool)>,
}

/// What is set for each key.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) limit: Option<f64>,
    pub(super) limit_reset: Option<String>,
    pub(super) include_byok_in_limit: bool,
    pub(super) expires: Option<i64>,
    pub(super) creator: Option<String>,
}

/// Rules for the requests of some keys.
pub(super) struct Guardrail {
    pub(super) created: i64,
    pub(super) keys: Vec<String>,
}

/// A key of another provider that OpenRouter uses for some keys, or for all.
pub(super) struct ProviderKey {
    pub(super) workspace: String,
    pub(super) name: String,
    pub(super) created: i64,
    pub(super) allowed: Option<Vec<String>>,
}

/// What a presented value is good for.
pub(super) enum Standing {
    Management,
    Key(String),
    Nothing,
}

impl State {
    pub(super) fn new(options: TwinOptions) -> Self {
        let management = options.management_key.clone().unwrap_or_else(value);
        Self {
            options,
            management,
            workspaces: vec![uuid(), uuid()],
            keys: BTreeMap::new(),
            guardrails: BTreeMap::new(),
            provider_keys: BTreeMap::new(),
            order: 0,
        }
    }

    pub(super) fn add_key(&mut self, name: &str, workspace: &str, settings: Settings) -> String {
        let hash = random(HEX, 64);
        let key = Key {
            hash: hash.clone(),
            name: name.into(),
            value: value(),
            workspace: workspace.into(),
            switch: Switch::on(),
            settings,
            life: Life::begin(&mut self.order),
            updated: None,
            uses: Vec::new(),
        };
        self.keys.insert(hash.clone(), key);
        hash
    }

    /// Returns the keys that a look at this time shows, the newest first.
    pub(super) fn keys_at(&self, time: i64) -> Vec<&Key> {
        let mut shown: Vec<_> = self.keys.values().filter(|key| key.life.shows_at(time)).collect();
        shown.sort_by_key(|key| std::cmp::Reverse(key.life.order));
        shown
    }

    pub(super) fn live_key(&mut self, hash: &str) -> Option<&mut Key> {
        self.keys.get_mut(hash).filter(|key| key.life.ended.is_none())
    }

    pub(super) fn add_guardrail(&mut self, keys: &[&str]) -> String {
        let id = uuid();
        let guardrail = Guardrail {
            created: now(),
            keys: keys.iter().map(|hash| (*hash).to_owned()).collect(),
        };
        self.guardrails.insert(id.clone(), guardrail);
        id
    }

    pub(super) fn add_provider_key(
        &mut self,
        workspace: &str,
        name: &str,
        allowed: Option<&[&str]>,
    ) -> String {
        let id = uuid();
        let allowed = allowed.map(|hashes| hashes.iter().map(|hash| (*hash).to_owned()).collect());
        let workspace = workspace.to_owned();
        let key = ProviderKey { workspace, name: name.into(), created: now(), allowed };
        self.provider_keys.insert(id.clone(), key);
        id
    }

    /// Returns what a value is good for at this moment, with every change taking its time to be known.
    pub(super) fn standing(&self, value: &str) -> Standing {
        if value == self.management {
            return Standing::Management;
        }
        let TwinOptions { propagation, revocation, .. } = self.options;
        let known = |key: &&Key| {
            key.value == value
                && key.switch.is_known_on(propagation, revocation)
                && key.settings.expires.is_none_or(|ends| now() < ends)
        };
        self.keys
            .values()
            .find(known)
            .map_or(Standing::Nothing, |key| Standing::Key(key.hash.clone()))
    }

    /// Counts the uses of a key by completed day, as far as they are shown by now.
    pub(super) fn activity(&self, key: &Key) -> BTreeMap<String, usize> {
        let (today, oldest) = (day(now()), day(now() - 30 * DAY));
        let mut days = BTreeMap::new();
        for (used, _) in self.shown_uses(key) {
            let day = day(used);
            if oldest <= day && day < today {
                *days.entry(day).or_default() += 1;
            }
        }
        days
    }

    /// Returns what a key has spent since a time.
    fn spent_since(&self, key: &Key, since: i64) -> f64 {
        let paid = self.shown_uses(key).filter(|(used, costs)| *costs && *used >= since).count();
        COST * u32::try_from(paid).map_or(0.0, f64::from)
    }

    fn shown_uses<'a>(&self, key: &'a Key) -> impl Iterator<Item = (i64, bool)> + use<'a> {
        let until = now() - millis(self.options.usage_lag);
        key.uses.iter().copied().filter(move |(used, _)| *used <= until)
    }

    /// Shows a key as every answer about it does, without its value.
    pub(super) fn shown(&self, key: &Key) -> Value {
        let Settings { limit, limit_reset, include_byok_in_limit, expires, creator } =
            &key.settings;
        let (used, today) = (self.spent_since(key, 0), now() - now().rem_euclid(DAY));
        json!({
            "hash": key.hash,
            "name": key.name,
            "label": redacted(&key.value),
            "disabled": !key.switch.is_on(),
            "limit": limit,
            "limit_remaining": limit.map(|limit| limit - used),
            "limit_reset": limit_reset,
            "include_byok_in_limit": include_byok_in_limit,
            "usage": used,
            "usage_daily": self.spent_since(key, today),
            "usage_weekly": self.spent_since(key, today - 6 * DAY),
            "usage_monthly": self.spent_since(key, today - 30 * DAY),
            "byok_usage": 0.0,
            "byok_usage_daily": 0.0,
            "byok_usage_weekly": 0.0,
            "byok_usage_monthly": 0.0,
            "created_at": rfc3339(key.life.created),
            "updated_at": key.updated.map(rfc3339),
            "expires_at": expires.map(rfc3339),
            "creator_user_id": creator,
            "workspace_id": key.workspace,
        })
    }
}

impl Key {
    pub(super) fn end(&mut self) {
        self.life.end();
        self.switch.set(false);
    }
}

impl Settings {
    pub(super) fn plain() -> Self {
        Self {
            limit: None,
            limit_reset: None,
            include_byok_in_limit: false,
            expires: None,
            creator: Some("user_twin".into()),
        }
    }
}

/// Shows the ends of a value, as the lists do.
pub(super) fn redacted(value: &str) -> String {
    let start = value.get(..12).unwrap_or(value);
    let end = value.len().checked_sub(3).filter(|end| *end >= 12);
    format!("{start}...{}", end.map_or("", |end| &value[end..]))
}

fn value() -> String {
    format!("sk-or-v1-{}", random(HEX, 64))
}

fn uuid() -> String {
    let part = |length| random(HEX, length);
    format!("{}-{}-4{}-8{}-{}", part(8), part(4), part(3), part(3), part(12))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redacted_value_shows_its_ends_only() {
        let value = value();
        let shown = redacted(&value);
        assert!(shown.starts_with(&value[..12]) && shown.ends_with(&value[value.len() - 3..]));
        assert_eq!(shown.len(), 12 + 3 + 3);
        assert_eq!(redacted("short"), "short...");
    }
}
