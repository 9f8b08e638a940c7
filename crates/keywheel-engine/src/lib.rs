//! The shell around the core.
//!
//! [`run`] is the one loop: ask what is owed, journal the intent, run the driver, journal the outcome. [`recover`] replays a
//! journal into the same loop. [`perform`] says what each step means in calls to drivers. The binary and the simulator link
//! this same code; they differ in the clock, the journal and the drivers that they hand in.

pub mod clock;
pub mod held;
pub mod limits;
pub mod orphans;
pub mod perform;
pub mod readers;
pub mod recover;
pub mod request;
pub mod run;

use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::event::{Event, OutOfOrder, Step};
use keywheel_core::plan::{Plan, RotationId};
use keywheel_core::rotation::Rotation;
use keywheel_core::time::Timestamp;
use keywheel_driver::{Issuer, Probe, Refusal, Store, Workload};
use keywheel_journal::{Actor, Holder, Journal, JournalError, Resource};

use crate::clock::Clock;
use crate::limits::Limits;

/// What rotations run on.
pub struct Engine {
    /// The journal.
    pub journal: Arc<dyn Journal>,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// Builds the drivers that a plan names.
    pub build: Arc<dyn Build>,
    /// Fills buffers with random bytes.
    pub random: Arc<Random>,
    /// This process, as owner of secrets.
    pub holder: Holder,
    /// On whose behalf it acts.
    pub actor: Actor,
    /// How many calls may run at once.
    pub limits: Limits,
    /// Is told of each record after it is durable.
    pub watch: Arc<dyn Watch>,
}

/// Fills a buffer with random bytes.
pub type Random = dyn Fn(&mut [u8]) + Send + Sync;

/// The drivers of one plan.
#[derive(Clone)]
pub struct Drivers {
    /// What mints and ends versions.
    pub issuer: Arc<dyn Issuer>,
    /// The stores, in the plan's order.
    pub stores: Vec<Arc<dyn Store>>,
    /// The workloads, in the plan's order.
    pub workloads: Vec<Arc<dyn Workload>>,
    /// The probes, in the plan's order.
    pub probes: Vec<Arc<dyn Probe>>,
}

/// Builds the drivers that a plan names, from the plan alone.
pub trait Build: Send + Sync {
    /// Builds them; does no I/O beyond reading references.
    ///
    /// # Errors
    /// A refusal that names what is wrong.
    fn build(&self, plan: &Plan) -> Result<Drivers, Refusal>;
}

/// Is told what happens.
#[async_trait]
pub trait Watch: Send + Sync {
    /// A record is durable, and was applied.
    fn recorded(&self, _rotation: &Rotation, _event: &Event, _at: Timestamp) {}

    /// Nobody knows what became of a step, and why; the record of that follows.
    fn unanswered(&self, _rotation: &Rotation, _step: Step, _reason: &str) {}

    /// The rotation waits.
    fn waiting(&self, _until: Timestamp, _why: keywheel_core::rotation::Why) {}

    /// The rotation waits for another one, which is moving the same store or workload.
    fn busy(&self, _resource: &Resource, _other: &RotationId) {}
}

/// A watch that looks away.
pub struct NoWatch;

impl Watch for NoWatch {}

/// Why the engine stopped.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The journal refused or failed; what is durable is known only by reading it again.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A record does not fit the rotation: the journal is damaged, or was written by a newer version.
    #[error(transparent)]
    OutOfOrder(#[from] OutOfOrder),
    /// A driver cannot be built, or a request cannot be granted.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is no such rotation.
    #[error("there is no open rotation of `{0}`")]
    NotOpen(String),
}
