//! Whole rotations through the real engine and the real journal on disk, with drivers that answer at once.
//!
//! `--open N` rotations run at the same time, each of a secret of its own, until `--rotations M` are completed; the journal is
//! made in `--folder`. One line of JSON says how many steps and rotations there were and how long they took.
//! `cargo xtask bench engine` runs it in all sizes.

#![expect(clippy::print_stdout, reason = "the result is what it is for")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use async_trait::async_trait;
use futures_util::future::join_all;
use keywheel_core::call::{CallError, Refusal};
use keywheel_core::event::{Event, Outcome};
use keywheel_core::evidence::{Replica, Shows};
use keywheel_core::facts::{IssuerFacts, StoreFacts, WorkloadFacts};
use keywheel_core::fingerprint::Fingerprinter;
use keywheel_core::plan::{Plan, VersionRef};
use keywheel_core::rotation::Rotation;
use keywheel_core::secret::{Credential, SecretName, SecretValue};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::{IssuedId, Stage, State, VersionId};
use keywheel_driver::Finding;
use keywheel_driver::issuer::{Issuer, Live, Mint, Minted, Verdict};
use keywheel_driver::store::{Edit, Store, Written};
use keywheel_driver::workload::{Ensure, Workload};
use keywheel_engine::clock::SystemClock;
use keywheel_engine::limits::Limits;
use keywheel_engine::run::{Ran, Until};
use keywheel_engine::{Build, Drivers, Engine, Watch};
use keywheel_journal::Actor;
use keywheel_journal::sqlite::{Open, Places, SqliteJournal};

#[path = "../tests/support/plain.rs"]
mod plain;
use plain::{ISSUER, STORE, WORKLOAD, plain_plan};

fn main() {
    let wanted = Wanted::from_arguments();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("threads can be started");
    runtime.block_on(measure(wanted));
}

/// What was asked for.
struct Wanted {
    open: u64,
    rotations: u64,
    folder: PathBuf,
}

impl Wanted {
    fn from_arguments() -> Self {
        let arguments: Vec<_> = std::env::args().collect();
        let after = |name: &str| {
            let at = arguments.iter().position(|argument| argument == name);
            at.and_then(|at| arguments.get(at + 1)).cloned()
        };
        let number =
            |name: &str, usual| after(name).and_then(|given| given.parse().ok()).unwrap_or(usual);
        let folder = after("--folder")
            .map(PathBuf::from)
            .expect("`--folder` says where the journal is made");
        Self { open: number("--open", 100), rotations: number("--rotations", 1_000), folder }
    }
}

async fn measure(wanted: Wanted) {
    let places = Places {
        journal: wanted.folder.join("state/journal.db"),
        kek: wanted.folder.join("config/kek"),
        allow_work_tree: false,
    };
    let journal =
        SqliteJournal::open(&places, Open::CreateIfMissing).expect("the journal can be made");
    let holder = journal.holder("bench").expect("this process can be a holder");
    let world = Arc::new(World::default());
    let steps = Arc::new(Steps::default());
    let engine = Engine {
        journal: Arc::new(journal),
        clock: Arc::new(SystemClock::new()),
        build: Arc::clone(&world) as Arc<dyn Build>,
        random: Arc::new(|buffer| getrandom::fill(buffer).expect("the system has random bytes")),
        holder,
        actor: Actor {
            account: "bench".into(),
            origin: None,
            host: "bench".into(),
            method: "bench".into(),
            authenticated: false,
        },
        limits: Limits::new(8),
        watch: Arc::clone(&steps) as Arc<dyn Watch>,
    };
    let left = AtomicU64::new(wanted.rotations);
    let begun = Instant::now();
    // As the program does it: all rotations in one task, the journal's writer in a thread of its own.
    join_all((0..wanted.open).map(|number| rotate(&engine, &world, number, &left))).await;
    let seconds = begun.elapsed().as_secs_f64();
    let result = serde_json::json!({
        "open": wanted.open,
        "rotations": wanted.rotations,
        "steps": steps.0.load(Ordering::Relaxed),
        "seconds": seconds,
        "rotations_per_second": wanted.rotations as f64 / seconds,
        "rss_mib": peak_memory(),
    });
    println!("{result}");
}

/// Rotates one secret again and again, as long as rotations are left.
async fn rotate(engine: &Engine, world: &World, number: u64, left: &AtomicU64) {
    let secret = SecretName::new(&format!("s{number}"), "production").expect("the name is one");
    world.begin(&secret);
    let stop = AtomicBool::new(false);
    let until = Until { rest: true, patience: Span::ZERO, stop: &stop };
    while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    {
        let plan = Arc::new(next_plan(engine, &secret).await);
        let mut group = engine.begin(&[plan]).await.expect("the secret is free");
        let ran = engine.run(&mut group, &until).await.expect("the journal works");
        let outcome = group.rotations().next().and_then(Rotation::outcome);
        assert!(
            ran == Ran::Rested && outcome == Some(Outcome::Completed),
            "a rotation ended as {outcome:?}"
        );
    }
}

async fn next_plan(engine: &Engine, secret: &SecretName) -> Plan {
    let inventory = engine.journal.inventory(secret).await.expect("the journal can be read");
    let current =
        inventory.as_ref().and_then(|row| row.at(Stage::Current)).map(|version| VersionRef {
            version: version.version,
            issued: version.issued.clone(),
            state: State::Active,
            fingerprint: version.fingerprint,
        });
    let first = VersionRef {
        version: VersionId(1),
        issued: Some(IssuedId::new("first")),
        state: State::Active,
        fingerprint: None,
    };
    let pending = inventory.map_or(VersionId(2), |row| row.next);
    let mut plan = plain_plan(secret, current.unwrap_or(first), pending);
    plan.policy.retry = Span::millis(1);
    plan
}

/// Counts steps by their intents.
#[derive(Default)]
struct Steps(AtomicU64);

impl Watch for Steps {
    fn recorded(&self, _rotation: &Rotation, event: &Event, _at: Timestamp) {
        if matches!(event, Event::Intended { .. }) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Everything outside of the engine: for each secret an issuer, a store and a workload of one replica.
#[derive(Default)]
struct World(Mutex<BTreeMap<SecretName, Arc<Place>>>);

#[derive(Default)]
struct Place(Mutex<Contents>);

#[derive(Default)]
struct Contents {
    name: String,
    /// What the issuer accepts: id, label and value.
    live: Vec<(IssuedId, Option<keywheel_core::plan::Label>, SecretValue)>,
    stored: Option<SecretValue>,
    /// What the replica holds since it was rolled.
    held: Option<SecretValue>,
}

impl World {
    fn begin(&self, secret: &SecretName) {
        let value = || SecretValue::new(b"first".to_vec());
        let contents = Contents {
            name: secret.name().to_owned(),
            live: vec![(IssuedId::new("first"), None, value())],
            stored: Some(value()),
            held: Some(value()),
        };
        self.0
            .lock()
            .expect("no holder panics")
            .insert(secret.clone(), Arc::new(Place(Mutex::new(contents))));
    }
}

impl Build for World {
    fn build(&self, plan: &Plan) -> Result<Drivers, Refusal> {
        let place = Arc::clone(&self.0.lock().expect("no holder panics")[&plan.secret]);
        Ok(Drivers {
            issuer: place.clone(),
            stores: vec![place.clone()],
            workloads: vec![place],
            probes: Vec::new(),
        })
    }
}

impl Place {
    fn with<T>(&self, act: impl FnOnce(&mut Contents) -> T) -> T {
        act(&mut self.0.lock().expect("no holder panics"))
    }
}

#[async_trait]
impl Issuer for Place {
    fn facts(&self) -> IssuerFacts {
        ISSUER
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        let mut value = vec![0; 32];
        getrandom::fill(&mut value).expect("the system has random bytes");
        let issued = IssuedId::new(request.label.0.clone());
        let (label, kept) = (Some(request.label.clone()), SecretValue::new(value.clone()));
        self.with(|place| place.live.push((issued.clone(), label, kept)));
        let credential = Some(Credential::of_value(SecretValue::new(value)));
        Ok(Minted { issued: Some(issued), credential, ..Minted::default() })
    }

    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        let value = credential.value().expect("the bench mints values");
        let accepted = self.with(|place| place.live.iter().any(|(_, _, live)| live.same_as(value)));
        Ok(if accepted { Verdict::Accepted } else { Verdict::Refused })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Live>, CallError> {
        Ok(self.with(|place| {
            let ours = place.live.iter().filter(|(_, label, _)| {
                label.as_ref().is_some_and(|label| label.0.starts_with(prefix))
            });
            ours.map(|(issued, label, _)| Live { issued: issued.clone(), label: label.clone() })
                .collect()
        }))
    }

    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError> {
        self.with(|place| place.live.retain(|(issued, _, _)| issued != id));
        Ok(())
    }
}

#[async_trait]
impl Store for Place {
    fn facts(&self) -> StoreFacts {
        STORE
    }

    fn container(&self) -> String {
        self.with(|place| format!("store of {}", place.name))
    }

    async fn preflight(&self, _addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    async fn read(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        let stored = || self.with(|place| place.stored.as_ref().map(SecretValue::duplicate));
        Ok(addresses.iter().map(|_| stored()).collect())
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        for edit in edits {
            self.with(|place| {
                assert!(
                    edit.accepts(place.stored.as_ref()),
                    "somebody else wrote the store of the bench"
                );
                place.stored = edit.value.map(SecretValue::duplicate);
            });
        }
        Ok(Written { changed: true })
    }
}

#[async_trait]
impl Workload for Place {
    fn facts(&self) -> WorkloadFacts {
        WORKLOAD
    }

    fn resource(&self) -> String {
        self.with(|place| format!("workload of {}", place.name))
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    async fn observe(
        &self,
        addresses: &[String],
        fingerprinter: &Fingerprinter,
    ) -> Result<Vec<Replica>, CallError> {
        let held = self.with(|place| place.held.as_ref().map(SecretValue::duplicate));
        let shown = addresses
            .iter()
            .zip(held)
            .map(|(address, value)| (address.clone(), fingerprinter.of(value.expose())));
        Ok(vec![Replica { id: "1".into(), started_at: None, shows: Shows::Slots(shown.collect()) }])
    }

    async fn roll(&self, _ensure: &Ensure<'_>) -> Result<(), CallError> {
        self.with(|place| place.held = place.stored.as_ref().map(SecretValue::duplicate));
        Ok(())
    }
}

/// Returns the most memory that the process ever held, in MiB.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? / 1024)
}
