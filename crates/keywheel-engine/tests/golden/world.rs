//! What lies outside the journal: two `.env` files, and a replica that holds what it read of one of them when it was rolled.
//!
//! Everything that the world remembers is text in files of one folder, so a fixture can say what it was at any moment. Issuer
//! and stores are the program's own drivers, built from the configuration that the plan carries; names of containers and
//! relative paths hold nothing of the folder, so a journal that was written in one folder is resumed in another.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use keywheel_core::call::{CallError, Refusal, RefusalKind};
use keywheel_core::evidence::{Replica, Shows};
use keywheel_core::facts::{StoreFacts, WorkloadFacts};
use keywheel_core::fingerprint::Fingerprinter;
use keywheel_core::plan::{Bound, Plan};
use keywheel_core::secret::{Credential, SecretValue};
use keywheel_core::time::Span;
use keywheel_driver::probe::{Asked, Health};
use keywheel_driver::store::{Edit, Written};
use keywheel_driver::workload::Ensure;
use keywheel_driver::{Finding, Issuer, Probe, Store, Workload, slot};
use keywheel_drivers::{Build as _, Context, IssuerConfig, StoreConfig};
use keywheel_engine::{Build, Drivers};
use serde_json::json;
use tempfile::TempDir;

/// The stores, in the plan's order.
pub(crate) const STORES: [&str; 2] = ["app.env", "web.env"];

/// What the replica holds.
pub(crate) const REPLICA: &str = "replica.env";

/// All files of a world.
pub(crate) const FILES: [&str; 3] = [STORES[0], STORES[1], REPLICA];

/// The variable that is rotated.
pub(crate) const SLOT: &str = "PEPPER";

pub(crate) const WORKLOAD: WorkloadFacts = WorkloadFacts {
    settle_for: Span::ZERO,
    start_granularity: Span::ZERO,
    answers_tokens: false,
    gap: false,
};

/// The contents of the world's files, by their names.
pub(crate) type Contents = BTreeMap<String, String>;

/// A world in a folder of its own.
pub(crate) struct World {
    folder: TempDir,
    trouble: Mutex<Option<(&'static str, Trouble)>>,
}

/// How the next write to a store goes wrong.
pub(crate) enum Trouble {
    /// It is done, and its answer is lost.
    AnswerLost,
    /// It is refused, and an operator has to look.
    Conflict,
    /// It is refused for now.
    Busy,
}

impl World {
    /// Makes a world of these contents.
    pub(crate) fn of(contents: &Contents) -> Arc<Self> {
        let world = Self { folder: tempfile::tempdir().unwrap(), trouble: Mutex::default() };
        for (name, text) in contents {
            private_file(&world.folder.path().join(name), text.as_bytes());
        }
        Arc::new(world)
    }

    /// Reads all files.
    pub(crate) fn contents(&self) -> Contents {
        FILES.map(|name| (name.to_owned(), self.read(name))).into()
    }

    /// Lets the next write to a store go wrong.
    pub(crate) fn next_write(&self, store: &'static str, trouble: Trouble) {
        *self.trouble.lock().unwrap() = Some((store, trouble));
    }

    /// Reads a file.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap()
    }

    /// Reads the credential that a file holds.
    pub(crate) async fn held(self: &Arc<Self>, name: &str) -> Credential {
        let store = self.store(&env_file(name)).unwrap();
        let mut held = store.read(&[SLOT.into()]).await.unwrap();
        Credential::of_value(held.remove(0).unwrap())
    }

    fn take_trouble(&self, store: &str) -> Option<Trouble> {
        self.trouble.lock().unwrap().take_if(|(name, _)| *name == store).map(|(_, trouble)| trouble)
    }

    /// Builds the store that a plan names.
    pub(crate) fn store(self: &Arc<Self>, bound: &Bound) -> Result<Arc<dyn Store>, Refusal> {
        let config: StoreConfig = serde_json::from_value(bound.driver.clone()).unwrap();
        let file = config.build(&self.context())?;
        Ok(Arc::new(EnvFile { file, name: bound.name.clone(), world: Arc::clone(self) }))
    }

    /// Builds the issuer that a plan names.
    pub(crate) fn issuer(&self, bound: &Bound) -> Result<Arc<dyn Issuer>, Refusal> {
        let config: IssuerConfig = serde_json::from_value(bound.driver.clone()).unwrap();
        config.build(&self.context())
    }

    fn context(&self) -> Context {
        Context::at(self.folder.path())
    }
}

/// How a plan names the store that is this file.
pub(crate) fn env_file(name: &str) -> Bound {
    Bound { name: name.into(), driver: json!({ "env_file": { "create": false, "path": name } }) }
}

/// Makes a file that only its owner may read.
pub(crate) fn private_file(path: &Path, contents: &[u8]) {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).unwrap();
    file.write_all(contents).unwrap();
}

/// The world as the engine is given it.
pub(crate) struct Driven(pub(crate) Arc<World>);

impl Build for Driven {
    fn build(&self, plan: &Plan) -> Result<Drivers, Refusal> {
        let stores = plan.stores.iter().map(|store| self.0.store(&store.bound));
        Ok(Drivers {
            issuer: self.0.issuer(&plan.issuer.bound)?,
            stores: stores.collect::<Result<_, _>>()?,
            workloads: vec![Arc::new(Reader(Arc::clone(&self.0)))],
            probes: vec![Arc::new(Reader(Arc::clone(&self.0)))],
        })
    }
}

/// The program's own store, under a name that holds no folder.
struct EnvFile {
    file: Arc<dyn Store>,
    name: String,
    world: Arc<World>,
}

#[async_trait]
impl Store for EnvFile {
    fn facts(&self) -> StoreFacts {
        self.file.facts()
    }

    fn container(&self) -> String {
        format!("env_file:{}", self.name)
    }

    /// Asks nothing: the driver would have `git` look at the folder, which has nothing to do with the journal.
    async fn preflight(&self, _addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    async fn read(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        self.file.read(addresses).await
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        match self.world.take_trouble(&self.name) {
            None => self.file.write(edits).await,
            Some(Trouble::AnswerLost) => {
                self.file.write(edits).await?;
                Err(CallError::Unknown("the answer is lost".into()))
            }
            Some(Trouble::Conflict) => {
                Err(Refusal::operator(RefusalKind::Conflict, "somebody else wrote it").into())
            }
            Some(Trouble::Busy) => {
                Err(Refusal::retry(RefusalKind::Unavailable, None, "not now").into())
            }
        }
    }
}

/// One replica that reads the first store when it is rolled, and the probe that asks it.
struct Reader(Arc<World>);

#[async_trait]
impl Workload for Reader {
    fn facts(&self) -> WorkloadFacts {
        WORKLOAD
    }

    fn resource(&self) -> String {
        "workload:reader".into()
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    async fn observe(
        &self,
        slots: &[String],
        fingerprinter: &Fingerprinter,
    ) -> Result<Vec<Replica>, CallError> {
        let addresses: Vec<_> = slots.iter().map(|slot| slot::parts(slot).1.to_owned()).collect();
        let held = self.0.store(&env_file(REPLICA))?.read(&addresses).await?;
        let shown = slots
            .iter()
            .zip(held)
            .filter_map(|(slot, value)| Some((slot.clone(), fingerprinter.of(value?.expose()))));
        let shows = Shows::Slots(shown.collect());
        Ok(vec![Replica { id: "1".into(), started_at: None, shows }])
    }

    async fn roll(&self, _ensure: &Ensure<'_>) -> Result<(), CallError> {
        fs::write(self.0.folder.path().join(REPLICA), self.0.read(STORES[0])).unwrap();
        Ok(())
    }
}

#[async_trait]
impl Probe for Reader {
    async fn ask(&self, _asked: &Asked) -> Result<Health, CallError> {
        let answers = self.0.read(REPLICA).contains(SLOT);
        Ok(if answers { Health::Green } else { Health::Red("it does not answer".into()) })
    }
}
