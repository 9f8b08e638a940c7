//! What the twin of a Key Vault holds.

use std::collections::{BTreeMap, BTreeSet};

use crate::life::Life;
use crate::random;

pub(super) struct State {
    pub(super) token: String,
    pub(super) client_secret: String,
    pub(super) federated: String,
    pub(super) app_secret: String,
    pub(super) lasts: u64,
    pub(super) sign_ins: usize,
    pub(super) denied: BTreeSet<String>,
    /// The versions of each secret, the newest last.
    pub(super) secrets: BTreeMap<String, Vec<Version>>,
    pub(super) deleted: BTreeMap<String, Vec<Version>>,
    order: u64,
}

pub(super) struct Version {
    pub(super) id: String,
    pub(super) life: Life,
    pub(super) value: String,
    pub(super) enabled: bool,
    pub(super) managed: bool,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) content_type: Option<String>,
    pub(super) not_before: Option<i64>,
    pub(super) expires: Option<i64>,
}

impl State {
    pub(super) fn new(lasts: Option<u64>) -> Self {
        let letters = b"abcdefghijkmnpqrstuvwxyz0123456789";
        Self {
            token: format!("eyJ0eXAi.{}", random(letters, 40)),
            client_secret: random(letters, 40),
            federated: format!("eyJhbGci.{}", random(letters, 40)),
            app_secret: random(letters, 32),
            lasts: lasts.unwrap_or(3_599),
            sign_ins: 0,
            denied: BTreeSet::new(),
            secrets: BTreeMap::new(),
            deleted: BTreeMap::new(),
            order: 0,
        }
    }

    pub(super) fn put(
        &mut self,
        name: &str,
        value: &str,
        tags: BTreeMap<String, String>,
    ) -> String {
        let id = random(b"0123456789abcdef", 32);
        let version = Version {
            id: id.clone(),
            life: Life::begin(&mut self.order),
            value: value.into(),
            enabled: true,
            managed: false,
            tags,
            content_type: None,
            not_before: None,
            expires: None,
        };
        self.secrets.entry(name.into()).or_default().push(version);
        id
    }

    pub(super) fn newest_mut(&mut self, name: &str) -> Option<&mut Version> {
        self.secrets.get_mut(name)?.last_mut()
    }

    pub(super) fn version_mut(&mut self, name: &str, id: &str) -> Option<&mut Version> {
        self.secrets.get_mut(name)?.iter_mut().find(|version| version.id == id)
    }

    pub(super) fn delete(&mut self, name: &str) {
        if let Some(versions) = self.secrets.remove(name) {
            self.deleted.insert(name.into(), versions);
        }
    }

    pub(super) fn is_deleted(&self, name: &str) -> bool {
        self.deleted.contains_key(name)
    }
}
