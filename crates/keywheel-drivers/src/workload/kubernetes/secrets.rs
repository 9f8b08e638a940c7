//! The Secrets that hold the slots of a workload: under which names they are read, and what those hold that cannot change.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keywheel_core::fingerprint::{Fingerprint, Fingerprinter};
use keywheel_core::secret::SecretValue;
use keywheel_driver::{CallError, slot};
use serde::Deserialize;

use super::namespace::Namespace;
use super::{OnePod, reads};
use crate::kubernetes::{Approach, Head, SecretRef};
use crate::secret_json::Text;

/// The Secrets that hold the slots asked about.
#[derive(Default)]
pub(super) struct Known {
    /// By the name of the container of slots.
    pub secrets: BTreeMap<String, Names>,
}

/// The names under which one Secret is read.
pub(super) struct Names {
    /// Whether each version has a name of its own.
    pub is_versioned: bool,
    /// The one that is current.
    pub current: String,
    /// Every one that there was.
    pub all: BTreeMap<String, Content>,
}

/// What a Secret of one name holds.
pub(super) enum Content {
    /// Nobody looked.
    Unread,
    /// This, for as long as it is there.
    Fixed(BTreeMap<String, Fingerprint>),
    /// It may hold something else than when a pod read it, or is gone.
    CanChange,
}

impl Names {
    /// A Secret that is written in place.
    pub(super) fn in_place(name: &str) -> Self {
        let all = BTreeMap::from([(name.to_owned(), Content::CanChange)]);
        Self { is_versioned: false, current: name.to_owned(), all }
    }
}

#[derive(Deserialize)]
struct Secret {
    #[serde(default)]
    immutable: bool,
    #[serde(default)]
    data: BTreeMap<String, Text>,
}

impl Known {
    /// Finds the Secrets of this namespace that hold slots. What they hold is not read.
    pub(super) async fn find(namespace: &Namespace, slots: &[String]) -> Result<Self, CallError> {
        let mut known = Self::default();
        let cluster = namespace.cluster.id();
        for slot in slots {
            let (container, _) = slot::parts(slot);
            let secret = SecretRef::parse(container);
            let is_here = |it: &SecretRef| it.cluster == cluster && it.namespace == namespace.name;
            let Some(secret) = secret.filter(is_here) else { continue };
            if known.secrets.contains_key(container) {
                continue;
            }
            let names = match secret.approach {
                Approach::InPlace => Names::in_place(&secret.name),
                Approach::Versioned => {
                    let (cluster, space) = (&namespace.cluster, &namespace.name);
                    let head = Head::read(cluster, space, &secret.name).await?;
                    let all = [secret.name].into_iter().chain([head.current.clone()]);
                    let all = all.chain(head.known).map(|name| (name, Content::Unread)).collect();
                    Names { is_versioned: true, current: head.current, all }
                }
            };
            known.secrets.insert(container.to_owned(), names);
        }
        Ok(known)
    }

    /// Whether a pod is given one of these Secrets thereby.
    pub(super) fn holds(&self, read: &reads::Read) -> bool {
        self.secrets.values().any(|names| names.all.contains_key(&read.secret))
    }

    /// Reads what the versions hold that pods name.
    pub(super) async fn read(
        &mut self,
        namespace: &Namespace,
        pods: &[OnePod],
        fingerprinter: &Fingerprinter,
    ) -> Result<(), CallError> {
        let reads = pods.iter().filter_map(|one| one.pod.spec.as_ref()).flat_map(reads::reads);
        let named: BTreeSet<_> = reads.map(|read| read.secret).collect();
        for names in self.secrets.values_mut().filter(|names| names.is_versioned) {
            for (name, content) in &mut names.all {
                if named.contains(name) && matches!(content, Content::Unread) {
                    *content = content_of(namespace, name, fingerprinter).await?;
                }
            }
        }
        Ok(())
    }

    /// Returns the name that takes the place of another one in a template, where a version is no longer the current one.
    pub(super) fn successor(&self, name: &str) -> Option<String> {
        let of = self.secrets.values().find(|names| names.all.contains_key(name))?;
        (of.current != name).then(|| of.current.clone())
    }

    /// Whether each version of a slot's Secret has a name of its own.
    pub(super) fn is_versioned(&self, slot: &str) -> bool {
        let (container, _) = slot::parts(slot);
        self.secrets.get(container).is_some_and(|names| names.is_versioned)
    }
}

async fn content_of(
    namespace: &Namespace,
    name: &str,
    fingerprinter: &Fingerprinter,
) -> Result<Content, CallError> {
    let place = namespace.place("", "secrets").named(name);
    let found = namespace.cluster.find::<Secret>(&place).await?;
    let Some(secret) = found.filter(|secret| secret.immutable) else {
        return Ok(Content::CanChange);
    };
    let mut held = BTreeMap::new();
    for (key, Text(encoded)) in secret.data {
        let decoded = STANDARD.decode(encoded.expose());
        let why = || format!("{}: Secret `{name}` is not understood", namespace.cluster.target());
        let value = SecretValue::new(decoded.map_err(|_| CallError::Unknown(why()))?);
        held.insert(key, fingerprinter.of(value.expose()));
    }
    Ok(Content::Fixed(held))
}
