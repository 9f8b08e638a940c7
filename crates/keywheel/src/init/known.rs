//! What an existing configuration says already, so that a later run proposes additions only.

use std::collections::BTreeMap;
use std::path::Path;

use keywheel_drivers::{StoreConfig, WorkloadConfig};

use super::survey::Spot;
use crate::config::{Config, Environment};

/// An existing configuration.
pub(crate) struct Known {
    /// Its text.
    pub(crate) text: String,
    /// Whether it does without `environments`.
    pub(crate) single: bool,
    /// Its environments.
    pub(crate) environments: Vec<KnownEnvironment>,
    /// The names of its secrets, by the slots that they own.
    claimed: BTreeMap<Spot, String>,
    /// The names of its secrets.
    pub(crate) secrets: Vec<String>,
}

/// An environment of it.
pub(crate) struct KnownEnvironment {
    /// Its name.
    pub(crate) name: String,
    /// Names and files of the stores that are files.
    pub(crate) stores: Vec<(String, String)>,
    /// Names of the workloads, with Compose file and service of those that are services.
    pub(crate) workloads: Vec<(String, Option<(String, String)>)>,
}

impl Known {
    /// Takes what matters from a configuration.
    pub(crate) fn of(config: &Config, text: String, root: &Path) -> Self {
        let mut claimed = BTreeMap::new();
        for environment in &config.environments {
            for (spot, secret) in slots(config, environment, root) {
                drop(claimed.insert(spot, secret));
            }
        }
        let single = config.environments.iter().all(|one| one.tree.get("environments").is_none());
        let secrets = config.environments.iter().flat_map(|one| &one.secrets);
        Self {
            text,
            single,
            secrets: secrets.map(|secret| secret.name.name().to_owned()).collect(),
            environments: config.environments.iter().map(|one| known(config, one, root)).collect(),
            claimed,
        }
    }

    /// Returns the secret that owns a slot.
    pub(crate) fn owner(&self, spot: &Spot) -> Option<&str> {
        self.claimed.get(spot).map(String::as_str)
    }

    /// Returns whether the file speaks of a slot, if only in a remark.
    pub(crate) fn mentions(&self, spot: &Spot) -> bool {
        let words = spot.words();
        self.owner(spot).is_some()
            || self
                .text
                .lines()
                .any(|line| line.trim_start().starts_with('#') && line.contains(&words))
    }
}

fn known(config: &Config, environment: &Environment, root: &Path) -> KnownEnvironment {
    let store = |store: &crate::config::resolve::Store| {
        Some((store.name.clone(), file_of(config, &store.config, root).unwrap_or_default()))
    };
    KnownEnvironment {
        name: environment.name.clone(),
        stores: environment.stores.iter().filter_map(store).collect(),
        workloads: environment
            .workloads
            .iter()
            .map(|one| {
                let service = match &one.config {
                    WorkloadConfig::ComposeService(service) => within(config, &service.file, root)
                        .map(|file| (file, service.service.clone())),
                    _ => None,
                };
                (one.name.clone(), service)
            })
            .collect(),
    }
}

fn slots(config: &Config, environment: &Environment, root: &Path) -> Vec<(Spot, String)> {
    let mut slots = Vec::new();
    for secret in &environment.secrets {
        for delivery in &secret.deliveries {
            let Some(store) = environment.store(&delivery.store) else { continue };
            let Some(file) = file_of(config, &store.config, root) else { continue };
            let whole = matches!(store.config, StoreConfig::File(_));
            let spot = |address: &str| Spot {
                file: file.clone(),
                variable: (!whole).then(|| address.to_owned()),
            };
            let named = delivery.slots.iter().map(|slot| spot(&slot.address));
            slots.extend(named.map(|spot| (spot, secret.name.name().to_owned())));
        }
    }
    slots
}

fn file_of(config: &Config, store: &StoreConfig, root: &Path) -> Option<String> {
    match store {
        StoreConfig::EnvFile(one) => within(config, &one.path, root),
        StoreConfig::File(one) => within(config, &one.path, root),
        _ => None,
    }
}

fn within(config: &Config, path: &Path, root: &Path) -> Option<String> {
    let own = std::fs::canonicalize(config.folder.join(path)).ok()?;
    own.strip_prefix(root).ok()?.to_str().map(Into::into)
}
