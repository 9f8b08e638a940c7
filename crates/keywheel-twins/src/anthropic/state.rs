//! What the Anthropic twin remembers: keys that people made in its console, their standing and their uses.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::TwinOptions;
use crate::life::{Life, Switch, millis, rfc3339};
use crate::{now, random};

const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const KEY: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Everything, behind the lock of the twin. No key is ever forgotten, and none can be deleted.
pub(super) struct State {
    pub(super) options: TwinOptions,
    pub(super) admin: String,
    pub(super) keys: BTreeMap<String, Key>,
    order: u64,
}

pub(super) struct Key {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) value: String,
    /// None for the default workspace.
    pub(super) workspace: Option<String>,
    pub(super) switch: Switch,
    pub(super) archived: bool,
    pub(super) expires: Option<i64>,
    pub(super) life: Life,
    /// When it was used, in order.
    pub(super) uses: Vec<i64>,
}

/// What a presented value is good for.
pub(super) enum Standing {
    Admin,
    Key(String),
    Nothing,
}

impl State {
    pub(super) fn new(options: TwinOptions) -> Self {
        let admin = options.admin_key.clone().unwrap_or_else(|| value("admin01"));
        Self { options, admin, keys: BTreeMap::new(), order: 0 }
    }

    pub(super) fn add_key(
        &mut self,
        name: &str,
        workspace: Option<&str>,
        expires: Option<i64>,
    ) -> String {
        let id = format!("apikey_01{}", random(LETTERS, 22));
        let key = Key {
            id: id.clone(),
            name: name.into(),
            value: value("api03"),
            workspace: workspace.map(str::to_owned),
            switch: Switch::on(),
            archived: false,
            expires,
            life: Life::begin(&mut self.order),
            uses: Vec::new(),
        };
        self.keys.insert(id.clone(), key);
        id
    }

    /// Returns the keys that a look at this time shows, the newest first.
    pub(super) fn keys_at(&self, time: i64) -> Vec<&Key> {
        let mut shown: Vec<_> = self.keys.values().filter(|key| key.life.shows_at(time)).collect();
        shown.sort_by_key(|key| std::cmp::Reverse(key.life.order));
        shown
    }

    /// Returns what a value is good for at this moment, with every change taking its time to be known.
    pub(super) fn standing(&self, value: &str) -> Standing {
        if value == self.admin {
            return Standing::Admin;
        }
        let TwinOptions { propagation, revocation, .. } = self.options;
        let known = |key: &&Key| {
            key.value == value
                && key.switch.is_known_on(propagation, revocation)
                && key.expires.is_none_or(|ends| now() < ends)
        };
        self.keys
            .values()
            .find(known)
            .map_or(Standing::Nothing, |key| Standing::Key(key.id.clone()))
    }

    /// Returns the uses of a key that are shown by now.
    pub(super) fn shown_uses<'a>(&self, key: &'a Key) -> impl Iterator<Item = i64> + use<'a> {
        let until = now() - millis(self.options.usage_lag);
        key.uses.iter().copied().filter(move |used| *used <= until)
    }
}

impl Key {
    pub(super) fn archive(&mut self) {
        self.archived = true;
        self.switch.set(false);
    }

    pub(super) fn status(&self) -> &'static str {
        match (self.archived, self.switch.is_on()) {
            (true, _) => "archived",
            _ if self.expires.is_some_and(|ends| ends <= now()) => "expired",
            (_, true) => "active",
            (_, false) => "inactive",
        }
    }

    /// Shows it as every answer about it does, without its value.
    pub(super) fn shown(&self) -> Value {
        let scope = if self.workspace.is_some() { "workspace" } else { "organization" };
        json!({
            "type": "api_key",
            "id": self.id,
            "name": self.name,
            "created_at": rfc3339(self.life.created),
            "created_by": { "id": "user_twin", "type": "user" },
            "expires_at": self.expires.map(rfc3339),
            "partial_key_hint": hint(&self.value),
            "status": self.status(),
            "workspace_id": self.workspace,
            "principal": null,
            "scope": { "type": scope },
        })
    }
}

/// Shows the ends of a value, as the lists do.
pub(super) fn hint(value: &str) -> String {
    let start = value.get(..16).unwrap_or(value);
    let end = value.len().checked_sub(4).filter(|end| *end >= 16);
    format!("{start}...{}", end.map_or("", |end| &value[end..]))
}

fn value(kind: &str) -> String {
    format!("sk-ant-{kind}-{}AA", random(KEY, 93))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_shows_the_ends_only() {
        let value = value("api03");
        let shown = hint(&value);
        assert!(shown.starts_with(&value[..16]) && shown.ends_with(&value[value.len() - 4..]));
        assert_eq!(shown.len(), 16 + 3 + 4);
        assert_eq!(hint("short"), "short...");
    }
}
