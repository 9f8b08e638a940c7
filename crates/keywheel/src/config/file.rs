//! The types of `keywheel.yaml`, as one environment sees it: `by_env` is already resolved.
//!
//! Unknown keys are refused everywhere. What has a short form beside a long one is read in [`forms`](super::forms).

use keywheel_core::plan;
use keywheel_core::strategy::Strategy;
use keywheel_core::time::Span;
use keywheel_driver::duration::Duration;
use keywheel_drivers::deny_list::DenyListConfig;
use keywheel_drivers::kubernetes::Cluster;
use keywheel_drivers::{IssuerConfig, NotifierConfig, ProbeConfig, StoreConfig, WorkloadConfig};
use schemars::JsonSchema;

/// The whole file.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "keywheel.yaml")]
pub(crate) struct File {
    /// The versions of keywheel that may read this file, such as `>=0.1`.
    #[expect(dead_code, reason = "it is checked in the tree, before this type is read")]
    pub(crate) requires: Option<String>,
    /// The name of the project; journals are kept apart by it.
    pub(crate) project: Name,
    /// How people are told of what happens to rotations while nobody watches.
    pub(crate) notify: Option<NotifierConfig>,
    /// Limits and rules, by name; the one called `default` holds where a secret names none.
    #[serde(default)]
    pub(crate) policies: Named<PolicyEntry>,
    /// The environments, by name. A file with one environment may leave this out and declare `stores` and `workloads` itself;
    /// the environment is then called `default`.
    pub(crate) environments: Option<Named<EnvironmentEntry>>,
    /// The Kubernetes cluster of the one environment.
    pub(crate) cluster: Option<Cluster>,
    /// The stores of the one environment.
    pub(crate) stores: Option<Named<StoreConfig>>,
    /// The workloads of the one environment.
    pub(crate) workloads: Option<Named<WorkloadEntry>>,
    /// The secrets, by name.
    #[serde(default)]
    pub(crate) secrets: Named<SecretEntry>,
}

/// A policy; what it leaves out is taken from the built-in one.
#[derive(Clone, Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PolicyEntry {
    /// How long a version may stay current.
    pub(crate) cryptoperiod: Option<Duration>,
    /// From promotion until the previous version is suspended.
    pub(crate) soak: Option<SoakEntry>,
    /// From suspension until the previous version is revoked.
    pub(crate) rollback: Option<Duration>,
    /// How long before the end of the cryptoperiod a secret counts as due soon.
    pub(crate) remind: Option<Duration>,
    /// What each secret (`owner`) and each rotation (`reason`) under this policy must name.
    #[serde(default)]
    pub(crate) require: Vec<Requirement>,
    /// When an issuer that can only destroy ends the previous version.
    pub(crate) keep: Option<Keep>,
    /// What a gate does that has no way to know.
    pub(crate) cannot_tell: Option<CannotTell>,
    /// How long after a suspension red probes resume the version.
    pub(crate) watch: Option<Duration>,
    /// How long a gate may stay closed before the rotation parks.
    pub(crate) gate_limit: Option<Duration>,
    /// How old a green visit may be when something is ended on its word.
    pub(crate) fresh_for: Option<Duration>,
    /// What a rotation does that becomes due during the rollback window of the last one; without it, it waits.
    pub(crate) next: Option<Next>,
    /// The hard deadline of one call.
    pub(crate) call: Option<Duration>,
    /// The hard deadline of one roll.
    pub(crate) roll: Option<Duration>,
    /// How long a step that is refused for now is tried again.
    pub(crate) patience: Option<Duration>,
    /// The first wait between two tries.
    pub(crate) retry: Option<Duration>,
    /// How many refusals in a row prove a version dead.
    #[schemars(range(min = 1))]
    pub(crate) refusals: Option<u8>,
}

/// How long soak lasts: a length of time, or a mapping that asks for a brown-out too.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SoakEntry {
    pub(crate) lasts: Option<Duration>,
    /// For how long the version to be ended is suspended in the middle of it.
    pub(crate) brownout: Option<Duration>,
}

/// What a policy wants to be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Requirement {
    /// The secret names its owner.
    Owner,
    /// Whoever rotates says why.
    Reason,
}

/// What follows when the next rotation comes during a rollback window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Next {
    /// The window is ended early, and the record says so.
    CloseWindow,
}

/// When an issuer that can only destroy ends the previous version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Keep {
    /// At the end of soak: the least exposure.
    Exposure,
    /// At the end of the rollback window: the longest way back.
    Rollback,
}

impl From<Keep> for plan::Keep {
    fn from(keep: Keep) -> Self {
        match keep {
            Keep::Exposure => Self::Exposure,
            Keep::Rollback => Self::Rollback,
        }
    }
}

/// What a gate does that has no way to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CannotTell {
    /// It holds the rotation up.
    Wait,
    /// It lets the rotation pass, and the record says so.
    Allow,
}

impl From<CannotTell> for plan::CannotTell {
    fn from(answer: CannotTell) -> Self {
        match answer {
            CannotTell::Wait => Self::Wait,
            CannotTell::Allow => Self::Allow,
        }
    }
}

/// A loss that the owner of a secret accepts beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Accept {
    /// Requests may fail while one value gives way to another.
    Outage,
    /// Sessions signed by the previous version end.
    SessionsEnd,
}

impl From<Accept> for plan::Accept {
    fn from(accept: Accept) -> Self {
        match accept {
            Accept::Outage => Self::Outage,
            Accept::SessionsEnd => Self::SessionsEnd,
        }
    }
}

/// One environment.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EnvironmentEntry {
    /// Asks for the environment's name before anything is changed in it.
    #[serde(default)]
    pub(crate) protected: bool,
    /// The environment in which the same rotation must have completed first.
    pub(crate) after: Option<After>,
    /// The Kubernetes cluster of its stores and workloads that name none themselves.
    #[expect(dead_code, reason = "it is handed down in the tree, before this type is read")]
    pub(crate) cluster: Option<Cluster>,
    /// Where readers get values, by name.
    #[serde(default)]
    pub(crate) stores: Named<StoreConfig>,
    /// What runs and reads stores, by name.
    #[serde(default)]
    pub(crate) workloads: Named<WorkloadEntry>,
}

/// Another environment that goes first.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct After {
    /// Its name.
    pub(crate) environment: String,
    /// How long ago its rotation may have completed.
    pub(crate) within: Option<Duration>,
}

/// A workload: one key names its driver, the others are these.
#[derive(Debug)]
pub(crate) struct WorkloadEntry {
    /// The driver.
    pub(crate) driver: WorkloadConfig,
    /// Questions put to the running system after each roll.
    pub(crate) probes: Vec<ProbeConfig>,
    /// The stores that it reads; all of its environment where it does not say.
    pub(crate) reads: Option<Vec<String>>,
}

/// A secret, in each environment or in those it names.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SecretEntry {
    /// The policy's name.
    pub(crate) policy: Option<String>,
    /// Who answers for it.
    pub(crate) owner: Option<String>,
    /// The environments that have it; all of them where it does not say.
    pub(crate) environments: Option<Vec<String>>,
    /// What mints and ends its versions.
    pub(crate) issuer: IssuerConfig,
    /// How one version gives way to the next: `alternate` where the issuer has two logins that take turns, else `overlap`.
    #[serde(default)]
    pub(crate) strategy: Option<StrategyEntry>,
    /// The slots that it owns, by store.
    pub(crate) stores: Named<SlotsEntry>,
    /// The workloads that read it, or `nobody`.
    pub(crate) read_by: ReadBy,
    /// Why nobody reads it.
    pub(crate) because: Option<String>,
    /// The environment in which the same rotation must have completed first.
    pub(crate) after: Option<After>,
    /// Where applications look whether a token that it signed is refused before its end.
    pub(crate) deny_list: Option<DenyListConfig>,
    /// Losses that its owner accepts beforehand.
    #[serde(default)]
    pub(crate) accept: Vec<Accept>,
}

/// How one version gives way to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum StrategyEntry {
    /// The issuer holds two live credentials.
    Overlap,
    /// A symmetric signing secret: readers accept two values, and sign with one.
    Keyring {
        /// The longest life of a token that a reader signs.
        longest_token: Duration,
        /// How far the clocks of readers may differ.
        #[serde(default = "two_minutes")]
        skew: Duration,
    },
    /// Two logins that take turns.
    Alternate,
    /// One live value at a time; needs `accept`.
    Cutover,
    /// A short-lived credential: forward only.
    Lease,
    /// An encryption key: added, and removed only with proof that nothing needs it.
    Append,
}

fn two_minutes() -> Duration {
    Span::minutes(2).into()
}

impl From<StrategyEntry> for Strategy {
    fn from(entry: StrategyEntry) -> Self {
        match entry {
            StrategyEntry::Overlap => Self::Overlap,
            StrategyEntry::Keyring { longest_token, skew } => {
                Self::Keyring { longest_token: longest_token.span(), skew: skew.span() }
            }
            StrategyEntry::Alternate => Self::Alternate,
            StrategyEntry::Cutover => Self::Cutover,
            StrategyEntry::Lease => Self::Lease,
            StrategyEntry::Append => Self::Append,
        }
    }
}

/// The slots of one store: an address alone, or a mapping of addresses to what each holds.
#[derive(Debug)]
pub(crate) struct SlotsEntry(pub(crate) Vec<plan::Slot>);

/// Who reads a secret.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ReadBy {
    /// These workloads.
    Workloads(Vec<String>),
    /// No workload; the secret says why.
    Nobody,
}

/// A name of a project, secret, store, workload, policy or environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name(pub(crate) String);

/// Entries by name, in the order of the file.
#[derive(Debug)]
pub(crate) struct Named<T>(pub(crate) Vec<(String, T)>);

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Named<T> {
    /// Returns the entry with a name.
    pub(crate) fn get(&self, name: &str) -> Option<&T> {
        self.0.iter().find(|(candidate, _)| candidate == name).map(|(_, entry)| entry)
    }

    /// Returns the names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.0.iter().map(|(name, _)| name.as_str())
    }
}
