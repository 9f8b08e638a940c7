//! What the OpenAI twin remembers: accounts, keys and their uses, with the times at which others come to see them.

use std::collections::BTreeMap;

use super::TwinOptions;
use crate::life::{Life, millis};
use crate::{now, random};

const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const KEY: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Everything, behind the lock of the twin. Nothing is ever forgotten: what ended has a time at which it did.
pub(super) struct State {
    pub(super) options: TwinOptions,
    pub(super) admin: Admin,
    pub(super) project: Project,
    pub(super) accounts: BTreeMap<String, Account>,
    pub(super) keys: BTreeMap<String, Key>,
    /// Whether the person who owns keys may still use the project.
    pub(super) person_has_access: bool,
    /// Who acts now, for the audit log.
    pub(super) actor: Actor,
    /// What happened, in order.
    pub(super) events: Vec<Happened>,
    order: u64,
}

/// Who did something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Actor {
    /// Whoever holds the admin key.
    AdminKey,
    /// A person in the dashboard.
    Person,
    /// The provider.
    Nobody,
}

/// One event of the audit log.
pub(super) struct Happened {
    pub(super) id: String,
    pub(super) kind: &'static str,
    pub(super) of: String,
    pub(super) at: i64,
    pub(super) actor: Actor,
}

pub(super) struct Admin {
    pub(super) id: String,
    pub(super) value: String,
    pub(super) created: i64,
    pub(super) last_used: Option<i64>,
}

pub(super) struct Project {
    pub(super) id: String,
    pub(super) created: i64,
    pub(super) archived: Option<i64>,
}

pub(super) struct Account {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) life: Life,
}

pub(super) struct Key {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) value: String,
    pub(super) owner: Owner,
    pub(super) life: Life,
    /// When it ends by itself.
    pub(super) expires: Option<i64>,
    /// What it may do; everything where there are none.
    pub(super) scopes: Vec<String>,
    /// When it was used, in order.
    pub(super) uses: Vec<i64>,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) enum Owner {
    Account(String),
    User(String),
}

/// What a presented value is good for.
pub(super) enum Standing {
    Admin,
    Key(String),
    Nothing,
}

impl State {
    pub(super) fn new(options: TwinOptions) -> Self {
        let value = options.admin_key.clone().unwrap_or_else(|| value("admin", 58));
        let project =
            options.project.clone().unwrap_or_else(|| format!("proj_{}", random(LETTERS, 24)));
        Self {
            options,
            admin: Admin {
                id: format!("key_{}", random(LETTERS, 16)),
                value,
                created: now(),
                last_used: None,
            },
            project: Project { id: project, created: now(), archived: None },
            accounts: BTreeMap::new(),
            keys: BTreeMap::new(),
            person_has_access: true,
            actor: Actor::AdminKey,
            events: Vec::new(),
            order: 0,
        }
    }

    pub(super) fn add_account(&mut self, name: &str) -> String {
        let id = format!("svc_acct_{}", random(LETTERS, 24));
        let account = Account { id: id.clone(), name: name.into(), life: self.born() };
        self.accounts.insert(id.clone(), account);
        self.happened("service_account.created", &id);
        id
    }

    pub(super) fn add_key(
        &mut self,
        owner: Owner,
        name: &str,
        expires_in: Option<i64>,
        scopes: Vec<String>,
    ) -> String {
        let id = format!("key_{}", random(LETTERS, 16));
        let kind = if matches!(owner, Owner::Account(_)) { "svcacct" } else { "proj" };
        let life = self.born();
        let key = Key {
            id: id.clone(),
            name: name.into(),
            value: value(kind, 74),
            owner,
            life,
            expires: expires_in.map(|seconds| life.created + seconds * 1_000),
            scopes,
            uses: Vec::new(),
        };
        self.keys.insert(id.clone(), key);
        self.happened("api_key.created", &id);
        id
    }

    /// Returns the accounts that a look at this time shows, in order.
    pub(super) fn accounts_at(&self, time: i64) -> Vec<&Account> {
        let mut shown: Vec<_> =
            self.accounts.values().filter(|account| account.life.shows_at(time)).collect();
        shown.sort_by_key(|account| account.life.order);
        shown
    }

    /// Returns the keys that a look at this time shows, in order.
    pub(super) fn keys_at(&self, time: i64) -> Vec<&Key> {
        let mut shown: Vec<_> = self.keys.values().filter(|key| key.life.shows_at(time)).collect();
        shown.sort_by_key(|key| key.life.order);
        shown
    }

    pub(super) fn live_account(&self, id: &str) -> Option<&Account> {
        self.accounts.get(id).filter(|account| account.life.ended.is_none())
    }

    pub(super) fn live_key(&self, id: &str) -> Option<&Key> {
        self.keys.get(id).filter(|key| key.life.ended.is_none())
    }

    /// Returns whether the owner of a key has access to the project.
    pub(super) fn owner_has_access(&self, key: &Key) -> bool {
        self.person_has_access || matches!(key.owner, Owner::Account(_))
    }

    pub(super) fn end_key(&mut self, id: &str) {
        if let Some(key) = self.keys.get_mut(id).filter(|key| key.life.ended.is_none()) {
            key.life.end();
            self.happened("api_key.deleted", id);
        }
    }

    /// Ends an account and every key that it owns.
    pub(super) fn end_account(&mut self, id: &str) {
        if let Some(account) = self.accounts.get_mut(id) {
            account.life.end();
            self.happened("service_account.deleted", id);
        }
        let owner = Owner::Account(id.into());
        self.keys.values_mut().filter(|key| key.owner == owner).for_each(|key| key.life.end());
    }

    /// Returns what a value is good for at this moment, with new and revoked keys taking their time to be known.
    pub(super) fn standing(&self, value: &str) -> Standing {
        let now = now();
        if value == self.admin.value {
            return Standing::Admin;
        }
        let known = |key: &&Key| {
            let from = key.life.created + millis(self.options.propagation);
            let until = key.life.ended.map(|ended| ended + millis(self.options.revocation));
            let until = until.into_iter().chain(key.expires).min();
            key.value == value && from <= now && until.is_none_or(|until| now < until)
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

    fn happened(&mut self, kind: &'static str, of: &str) {
        self.events.push(Happened {
            id: format!("audit_log-{}", random(LETTERS, 24)),
            kind,
            of: of.into(),
            at: now(),
            actor: self.actor,
        });
    }

    fn born(&mut self) -> Life {
        Life::begin(&mut self.order)
    }
}

/// Shows the ends of a value, as the lists do.
pub(super) fn redacted(value: &str) -> String {
    let (start, end) = (value.len().min(8), value.len().saturating_sub(4).max(8));
    format!("{}{}{}", &value[..start], "*".repeat(24), value.get(end..).unwrap_or_default())
}

/// Makes a value in the shape of the real ones.
fn value(kind: &str, half: usize) -> String {
    format!("sk-{kind}-{}T3BlbkFJ{}", random(KEY, half), random(KEY, half))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redacted_value_shows_its_ends_only() {
        let value = value("svcacct", 74);
        assert_eq!(value.len(), 11 + 74 + 8 + 74);
        let shown = redacted(&value);
        assert!(shown.starts_with("sk-svcac*") && shown.ends_with(&value[value.len() - 4..]));
        assert_eq!(shown.len(), 8 + 24 + 4);
        assert_eq!(redacted("short"), format!("short{}", "*".repeat(24)));
    }
}
