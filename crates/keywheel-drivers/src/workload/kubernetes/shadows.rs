//! Keys that a later source of `envFrom` stands in front of: of two variables with one name the container has that of the last source,
//! and what is written to the first one never reaches it.
//!
//! Which keys a source has is asked of it by its name. Where this account may not read it, that is told, and nothing is taken for
//! hidden.

use std::collections::{BTreeMap, BTreeSet};

use keywheel_core::planted;
use keywheel_driver::{CallError, RefusalKind};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::namespace::Namespace;
use super::reads::{Later, Read, Source};

/// The keys of sources that come after Secrets.
#[derive(Default)]
pub(super) struct Shadows {
    /// None where this account may not read a source.
    keys: BTreeMap<Source, Option<BTreeSet<String>>>,
}

#[derive(Default, Deserialize)]
struct Keys {
    #[serde(default)]
    data: BTreeMap<String, IgnoredAny>,
}

impl Shadows {
    /// Asks every source that comes after one of these.
    pub(super) async fn behind(
        namespace: &Namespace,
        reads: impl IntoIterator<Item = &Read>,
    ) -> Result<Self, CallError> {
        let later = reads.into_iter().flat_map(|read| &read.later);
        let sources: BTreeSet<&Source> = later.map(|later| &later.source).collect();
        let mut shadows = Self::default();
        for source in sources {
            let place = match source {
                Source::ConfigMap(name) => namespace.place("", "configmaps").named(name),
                Source::Secret(name) => namespace.place("", "secrets").named(name),
            };
            let keys = match namespace.cluster.find::<Keys>(&place).await {
                Ok(found) => Some(found.unwrap_or_default().data.into_keys().collect()),
                Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::Permission => None,
                Err(error) => return Err(error),
            };
            shadows.keys.insert(source.clone(), keys);
        }
        Ok(shadows)
    }

    /// Returns what stands in front of a key that is given.
    pub(super) fn before<'r>(&self, read: &'r Read, key: &str) -> Option<&'r Later> {
        let hides = |later: &&Later| {
            let keys = self.keys.get(&later.source).and_then(Option::as_ref);
            keys.is_some_and(|keys| later.hides(key, keys)) && !planted!("later_source_unseen")
        };
        read.later.iter().find(hides)
    }

    /// Returns the sources that this account may not read.
    pub(super) fn unseen(&self) -> impl Iterator<Item = &Source> {
        self.keys.iter().filter(|(_, keys)| keys.is_none()).map(|(source, _)| source)
    }
}
