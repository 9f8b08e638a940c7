//! What an existing configuration says already, so that a later run proposes additions only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use keywheel_drivers::{StoreConfig, WorkloadConfig};

use super::propose::{self, Held, Pods, Runs, Service};
use super::survey::{Home, Spot};
use crate::config::{Config, Environment};

/// An existing configuration.
pub(crate) struct Known {
    /// Its text.
    pub(crate) text: String,
    /// Whether it does without `environments`.
    pub(crate) single: bool,
    /// Its environments.
    environments: Vec<KnownEnvironment>,
    /// The names of its secrets, by environment and the slots that they own there.
    claimed: BTreeMap<(String, Spot), String>,
    /// The names of its secrets.
    pub(crate) secrets: Vec<String>,
    /// Those of them that say of which environments they are.
    limited: BTreeSet<String>,
}

/// An environment of it.
struct KnownEnvironment {
    name: String,
    /// The context of its cluster.
    cluster: Option<String>,
    /// Names of the stores, with what they hold and where that is.
    stores: Vec<(String, Home, String)>,
    /// Names of the workloads, with what runs.
    workloads: Vec<(String, KnownRuns)>,
}

/// What a workload is.
enum KnownRuns {
    /// A service of a Compose file.
    Service(String, String),
    /// Pods.
    Pods(String),
    /// Something else.
    Other,
}

impl Known {
    /// Takes what matters from a configuration.
    pub(crate) fn of(config: &Config, text: String, root: &Path) -> Self {
        let mut claimed = BTreeMap::new();
        for environment in &config.environments {
            for (spot, secret) in slots(config, environment, root) {
                drop(claimed.insert((environment.name.clone(), spot), secret));
            }
        }
        let single = config.environments.iter().all(|one| one.tree.get("environments").is_none());
        let secrets = config.environments.iter().flat_map(|one| &one.secrets);
        let secrets: Vec<_> = secrets.map(|secret| secret.name.name().to_owned()).collect();
        let names_some = |secret: &&String| {
            let at = ["secrets", secret, "environments"];
            config.environments.iter().any(|one| one.tree.at(&at).is_some())
        };
        Self {
            text,
            single,
            limited: secrets.iter().filter(names_some).cloned().collect(),
            secrets,
            environments: config.environments.iter().map(|one| known(config, one, root)).collect(),
            claimed,
        }
    }

    /// Returns the secret that owns a slot.
    pub(crate) fn owner(&self, spot: &Spot) -> Option<&str> {
        self.claimed.iter().find(|((_, own), _)| own == spot).map(|(_, secret)| secret.as_str())
    }

    /// Returns whether the file speaks of a slot, if only in a remark.
    pub(crate) fn mentions(&self, spot: &Spot) -> bool {
        self.owner(spot).is_some() || self.remarks_on(&spot.words())
    }

    /// Returns whether the file speaks of a slot of one environment: clusters may have Secrets of one name.
    pub(crate) fn mentions_in(&self, environment: &str, spot: &Spot) -> bool {
        let words = spot.words();
        self.claimed.contains_key(&(environment.to_owned(), spot.clone()))
            || match self.single {
                true => self.remarks_on(&words),
                false => self.remarks_on(&format!("{words} ({environment})")),
            }
    }

    /// Returns whether a secret of every environment has this key in a Secret of this name: it goes for a new environment too.
    pub(crate) fn covers(&self, environment: &str, spot: &Spot) -> bool {
        let name = |file: &str| file.rsplit('/').next().unwrap_or_default().to_owned();
        let is_alike = |other: &Spot| {
            other.home == spot.home
                && other.variable == spot.variable
                && name(&other.file) == name(&spot.file)
        };
        !self.names().contains(&environment)
            && self
                .claimed
                .iter()
                .any(|((_, other), secret)| is_alike(other) && !self.limited.contains(secret))
    }

    fn remarks_on(&self, words: &str) -> bool {
        let mut remarks = self.text.lines().filter(|line| line.trim_start().starts_with('#'));
        remarks.any(|line| line.contains(words))
    }

    /// Returns whether the file has a secret commented out that begins with this line, has these slots, and is one of every environment.
    pub(crate) fn comments_out(&self, name: &str, stores: &str) -> bool {
        let lines = self.text.lines().map(|line| line.trim_start().strip_prefix("# "));
        let lines: Vec<&str> = lines.map(Option::unwrap_or_default).collect();
        let mut found = (0..lines.len()).filter(|at| lines[*at] == name);
        found.any(|at| {
            let own = lines[at + 1..].iter().take_while(|line| line.starts_with("  "));
            let (mut slots, mut all) = (own.clone(), own);
            slots.any(|line| *line == stores)
                && !all.any(|line| line.starts_with("  environments:"))
        })
    }

    /// Returns the names of its environments.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.environments.iter().map(|one| one.name.as_str()).collect()
    }

    /// Returns the context of an environment's cluster.
    pub(crate) fn cluster(&self, environment: &str) -> Option<&str> {
        let one = self.environments.iter().find(|one| one.name == environment)?;
        one.cluster.as_deref()
    }

    /// Returns its environments, as a proposal goes on from them.
    pub(crate) fn environments(&self) -> Vec<propose::Environment> {
        self.environments.iter().map(KnownEnvironment::as_proposed).collect()
    }
}

impl KnownEnvironment {
    fn as_proposed(&self) -> propose::Environment {
        let store = |(name, home, file): &(String, Home, String)| {
            let (settings, remarks) = (String::new(), Vec::new());
            let held = match home {
                Home::File => Held::Variables,
                Home::Secret => Held::Secret { settings, remarks, is_open: false },
            };
            propose::Store { name: name.clone(), known: true, file: file.clone(), held }
        };
        let workload = |(name, runs): &(String, KnownRuns)| propose::Workload {
            name: name.clone(),
            known: true,
            runs: runs.as_proposed(),
            reads: Default::default(),
        };
        propose::Environment {
            name: self.name.clone(),
            known: true,
            stores: self.stores.iter().map(store).collect(),
            workloads: self.workloads.iter().map(workload).collect(),
        }
    }
}

impl KnownRuns {
    fn as_proposed(&self) -> Runs {
        match self {
            Self::Service(file, service) => Runs::Service(Service {
                file: file.clone(),
                overs: Vec::new(),
                project: None,
                service: service.clone(),
                replicas: None,
                variables: BTreeMap::new(),
            }),
            Self::Pods(id) => {
                let (settings, remarks) = (String::new(), Vec::new());
                Runs::Pods(Pods { id: id.clone(), settings, remarks })
            }
            Self::Other => Runs::Known,
        }
    }
}

fn known(config: &Config, environment: &Environment, root: &Path) -> KnownEnvironment {
    let store = |store: &crate::config::resolve::Store| {
        let (home, file) =
            place_of(config, &store.config, root).unwrap_or((Home::File, String::new()));
        (store.name.clone(), home, file)
    };
    let runs = |one: &WorkloadConfig| match one {
        WorkloadConfig::ComposeService(service) => within(config, &service.file, root)
            .map(|file| KnownRuns::Service(file, service.service.clone())),
        WorkloadConfig::Kubernetes(pods) => pods
            .named()
            .map(|(setting, name)| KnownRuns::Pods(format!("{}/{setting}/{name}", pods.namespace))),
        _ => None,
    };
    let workloads = environment.workloads.iter();
    let own = environment.tree.at(&["environments", &environment.name, "cluster", "context"]);
    let context = own.or_else(|| environment.tree.at(&["cluster", "context"]));
    KnownEnvironment {
        name: environment.name.clone(),
        cluster: context.and_then(|context| context.texts().first().map(|text| (*text).to_owned())),
        stores: environment.stores.iter().map(store).collect(),
        workloads: workloads
            .map(|one| (one.name.clone(), runs(&one.config).unwrap_or(KnownRuns::Other)))
            .collect(),
    }
}

fn slots(config: &Config, environment: &Environment, root: &Path) -> Vec<(Spot, String)> {
    let mut slots = Vec::new();
    for secret in &environment.secrets {
        for delivery in &secret.deliveries {
            let Some(store) = environment.store(&delivery.store) else { continue };
            let Some((home, file)) = place_of(config, &store.config, root) else { continue };
            let whole = matches!(store.config, StoreConfig::File(_));
            let spot = |address: &str| {
                let variable = (!whole).then(|| address.to_owned());
                Spot { home, file: file.clone(), variable }
            };
            let named = delivery.slots.iter().map(|slot| spot(&slot.address));
            slots.extend(named.map(|spot| (spot, secret.name.name().to_owned())));
        }
    }
    slots
}

/// Returns the file or Secret of a store; none where it is neither.
fn place_of(config: &Config, store: &StoreConfig, root: &Path) -> Option<(Home, String)> {
    let file = |path: &Path| within(config, path, root).map(|file| (Home::File, file));
    let secret = |namespace: &str, name: &str| Some((Home::Secret, format!("{namespace}/{name}")));
    match store {
        StoreConfig::EnvFile(one) => file(&one.path),
        StoreConfig::File(one) => file(&one.path),
        StoreConfig::KubernetesSecret(one) => secret(&one.namespace, &one.name),
        StoreConfig::ExternalSecret(one) => {
            secret(&one.namespace, one.target.as_deref().unwrap_or(&one.name))
        }
        _ => None,
    }
}

fn within(config: &Config, path: &Path, root: &Path) -> Option<String> {
    let own = std::fs::canonicalize(config.folder.join(path)).ok()?;
    own.strip_prefix(root).ok()?.to_str().map(Into::into)
}
