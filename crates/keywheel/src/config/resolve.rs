//! From the file to what it means: one environment after another, every name looked up, every rule checked.
//!
//! What is checked needs the file alone. [`scope`](super::scope) looks names up and builds drivers, [`rules`](super::rules)
//! checks each secret.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keywheel_core::plan::{Policy, Slot};
use keywheel_core::secret::SecretName;
use keywheel_core::strategy::{Side, Strategy};
use keywheel_core::time::Span;
use keywheel_driver::{Notifier, Refusal};
use keywheel_drivers::deny_list::DenyListConfig;
use keywheel_drivers::{
    Build, Context, IssuerConfig, NotifierConfig, ProbeConfig, StoreConfig, WorkloadConfig,
};

use super::file::{After, File};
use super::problem::Problem;
use super::rules::claims;
use super::scope::{Found, Scope};
use super::tree::Node;
use super::typed::read;
use super::{by_env, cluster, version};

/// The name of the only environment of a file without `environments`.
pub(crate) const DEFAULT_ENVIRONMENT: &str = "default";

/// The name of the policy that holds where a secret names none.
pub(crate) const DEFAULT_POLICY: &str = "default";

/// What a configuration file means.
pub(crate) struct Config {
    /// The file.
    pub(crate) file: PathBuf,
    /// Its folder, absolute; relative paths in it begin here.
    pub(crate) folder: PathBuf,
    /// The name of the project.
    pub(crate) project: String,
    /// How people are told of what happens.
    notify: Option<NotifierConfig>,
    /// The environments, in the order of the file.
    pub(crate) environments: Vec<Environment>,
}

/// One environment.
pub(crate) struct Environment {
    /// Its name.
    pub(crate) name: String,
    /// Whether its name is asked for before anything is changed in it.
    pub(crate) protected: bool,
    /// The environment that goes first.
    pub(crate) after: Option<After>,
    /// The stores, in the order of the file.
    pub(crate) stores: Vec<Store>,
    /// The workloads, in the order of the file.
    pub(crate) workloads: Vec<Workload>,
    /// The secrets, in the order of the file.
    pub(crate) secrets: Vec<Secret>,
    /// The file as this environment sees it, with the place of everything.
    pub(crate) tree: Node,
}

/// A declared store.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    /// Its name.
    pub(crate) name: String,
    /// Its driver.
    pub(crate) config: StoreConfig,
}

/// A declared workload.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    /// Its name.
    pub(crate) name: String,
    /// Its driver.
    pub(crate) config: WorkloadConfig,
    /// Questions put to the running system after each roll of it.
    pub(crate) probes: Vec<ProbeConfig>,
    /// The stores that it reads; none where it reads all of its environment.
    pub(crate) reads: Option<Vec<String>>,
}

impl Workload {
    /// Returns whether it reads a store.
    pub(crate) fn reads(&self, store: &str) -> bool {
        self.reads.as_ref().is_none_or(|names| names.iter().any(|name| name == store))
    }
}

/// A secret in one environment.
#[derive(Clone, Debug)]
pub(crate) struct Secret {
    /// Its name.
    pub(crate) name: SecretName,
    /// Who answers for it.
    pub(crate) owner: Option<String>,
    /// The name of its policy; none where the built-in one holds.
    pub(crate) policy_name: Option<String>,
    /// The limits.
    pub(crate) policy: Policy,
    /// The rules that are no limits of one rotation.
    pub(crate) rules: Rules,
    /// What mints and ends its versions.
    pub(crate) issuer: IssuerConfig,
    /// How one version gives way to the next.
    pub(crate) strategy: Strategy,
    /// The slots that it owns, by store, in the order of the file.
    pub(crate) deliveries: Vec<Delivery>,
    /// The workloads that read it; empty where nobody does.
    pub(crate) readers: Vec<String>,
    /// Why nobody reads it.
    pub(crate) because: Option<String>,
    /// The environment in which the same rotation must have completed first.
    pub(crate) after: Option<After>,
    /// Where applications look whether a token that it signed is refused.
    pub(crate) deny_list: Option<DenyListConfig>,
}

/// The rules of a policy that are no limits of one rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// How long before the end of the cryptoperiod a secret counts as due soon.
    pub(crate) remind: Span,
    /// Whether each rotation names a reason.
    pub(crate) needs_reason: bool,
    /// Whether a rotation may end the rollback window of the last one early.
    pub(crate) close_window: bool,
}

/// The slots of one store that a secret owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// The store.
    pub(crate) store: String,
    /// The slots, in order of their addresses.
    pub(crate) slots: Vec<Slot>,
}

impl Config {
    /// Reads and checks a file's text.
    ///
    /// # Errors
    /// Every [`Problem`] that was found, in the order of the file.
    pub(crate) fn parse(text: &str, file: &Path, folder: &Path) -> Result<Self, Vec<Problem>> {
        let tree = Node::parse(text).map_err(|problem| vec![problem])?;
        version::check(&tree).map_err(|problem| vec![problem])?;
        let declared = declared_environments(&tree);
        let context = Context::at(folder);
        let mut found = Found::default();
        let mut project = String::new();
        let mut notify = None;
        let mut environments = Vec::new();
        for name in &declared {
            let seen = by_env::resolve(&tree, name, &declared).and_then(|tree| {
                let tree = cluster::inherit(tree);
                let file: File = read(&tree, &[], folder)?;
                Ok((tree, file))
            });
            let Some((tree, file)) = found.keep(seen) else { continue };
            project.clone_from(&file.project.0);
            notify.clone_from(&file.notify);
            let scope = Scope { tree, name, declared: &declared, context: &context };
            environments.extend(scope.environment(file, &mut found));
        }
        claims(&environments, &context, &mut found);
        found.into_result(Self {
            file: file.to_owned(),
            folder: folder.to_owned(),
            project,
            notify,
            environments,
        })
    }

    /// Returns how people are told of what happens, where that is configured.
    ///
    /// # Errors
    /// A [`Refusal`] that names what is wrong with it.
    pub(crate) fn notifier(&self) -> Result<Option<Arc<dyn Notifier>>, Refusal> {
        let context = Context::at(&self.folder);
        self.notify.as_ref().map(|config| config.build(&context)).transpose()
    }

    /// Returns whether people are told of what happens.
    pub(crate) fn notifies(&self) -> bool {
        self.notify.is_some()
    }

    /// Returns an environment.
    pub(crate) fn environment(&self, name: &str) -> Option<&Environment> {
        self.environments.iter().find(|environment| environment.name == name)
    }

    /// Returns a secret of an environment.
    pub(crate) fn secret(&self, name: &SecretName) -> Option<(&Environment, &Secret)> {
        let environment = self.environment(name.environment())?;
        environment
            .secrets
            .iter()
            .find(|secret| secret.name == *name)
            .map(|secret| (environment, secret))
    }
}

impl Environment {
    /// Returns a store.
    pub(crate) fn store(&self, name: &str) -> Option<&Store> {
        self.stores.iter().find(|store| store.name == name)
    }

    /// Returns a workload.
    pub(crate) fn workload(&self, name: &str) -> Option<&Workload> {
        self.workloads.iter().find(|workload| workload.name == name)
    }
}

impl Secret {
    /// Returns how long a rotation may be moving, from the mint to the promotion and through a keyring's last move, when
    /// each step needs all the patience that it is given.
    pub(crate) fn longest_move(&self) -> Span {
        let times =
            |span: Span, count: usize| Span::millis(span.as_millis().saturating_mul(count as u64));
        let (call, roll) =
            (self.policy.call + self.policy.patience, self.policy.roll + self.policy.patience);
        let moves = usize::from(self.strategy.line(false).end(Side::Pending));
        let one = times(call, self.deliveries.len())
            + times(roll, self.readers.len())
            + self.strategy.token_wait();
        times(call, 2) + times(one, moves)
    }
}

fn declared_environments(tree: &Node) -> Vec<&str> {
    let names: Vec<&str> = tree
        .get("environments")
        .map(|node| node.entries().iter().map(|(key, _)| key.name.as_str()).collect())
        .unwrap_or_default();
    if names.is_empty() { vec![DEFAULT_ENVIRONMENT] } else { names }
}
