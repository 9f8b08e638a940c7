//! The drivers of keywheel: one file each, and one line in the list of its kind.
//!
//! The rest of the program knows them by [`IssuerConfig`], [`StoreConfig`], [`WorkloadConfig`], [`ProbeConfig`] and
//! [`NotifierConfig`] only: externally tagged configuration that builds the driver.

mod api;
#[cfg(feature = "cloud")]
mod aws;
mod bearer;
pub mod deny_list;
pub mod git;
mod guided;
mod http;
pub mod kubernetes;
mod lines;
mod list;
mod postgres;
mod program;
mod redis;
mod reference;
mod secret_json;
mod secured;
pub mod vault;

pub mod issuer;
pub mod notifier;
pub mod probe;
pub mod store;
pub mod workload;

pub use issuer::IssuerConfig;
pub use notifier::NotifierConfig;
pub use probe::ProbeConfig;
pub use store::StoreConfig;
pub use workload::WorkloadConfig;

use std::path::PathBuf;
use std::sync::Arc;

use keywheel_core::strategy::Strategy;
use keywheel_driver::guide::{Guide, Nobody};
use keywheel_driver::{Claim, Refusal, RefusalKind};

/// What a driver is built with beside its own configuration.
#[derive(Clone)]
pub struct Context {
    /// The folder of the configuration file; relative paths begin here.
    pub root: PathBuf,
    /// Whom a driver can ask that cannot do everything by itself.
    pub guide: Arc<dyn Guide>,
    /// The claim of the installation that acts; without one, claims are neither made nor compared.
    pub claim: Option<Claim>,
    /// The id of the rotation that acts, where one does: targets that can carry it say by it who wrote.
    pub rotation: Option<String>,
}

impl Context {
    /// Begins at a folder, with nobody to ask, and for no installation.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), guide: Arc::new(Nobody), claim: None, rotation: None }
    }
}

/// A driver that can be built from its configuration.
pub trait Build {
    /// The contract that it fulfils.
    type Driver: ?Sized;

    /// Builds the driver; does no I/O beyond reading references.
    ///
    /// # Errors
    /// A refusal that names what is wrong with the configuration.
    fn build(&self, context: &Context) -> Result<Arc<Self::Driver>, Refusal>;

    /// Names the secret of the same environment that the driver works with, where there is one.
    fn borrows(&self) -> Option<&str> {
        None
    }

    /// Notes where that secret is, so that a plan holds everything by which it is finished.
    ///
    /// # Errors
    /// A refusal that says why that secret will not do.
    fn lend(&mut self, _lent: &Lent<'_>) -> Result<(), Refusal> {
        Err(Refusal::operator(RefusalKind::Unsupported, "it works with no other secret"))
    }
}

/// A secret that another one is made with.
pub struct Lent<'a> {
    /// What mints its versions.
    pub issuer: &'a IssuerConfig,
    /// How one version gives way to the next.
    pub strategy: Strategy,
    /// A store where readers get it, and that can be read.
    pub store: &'a StoreConfig,
    /// The slot of the version that readers use, which holds nothing else.
    pub current: &'a str,
    /// The slot of a second version that they accept.
    pub also_accepted: Option<&'a str>,
}
