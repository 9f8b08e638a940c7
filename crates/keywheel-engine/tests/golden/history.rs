//! The history that a fixture holds, and how it is written down.
//!
//! It happens in the real engine and the real journal; a [`Recorder`] between the two notes what each commit changed and
//! what the world held then. Cuts of a history are resumed by later versions, so it holds whatever can stand open in one.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use keywheel_core::event::Event;
use keywheel_core::inventory::{Inventory, Queued, Version};
use keywheel_core::plan::{
    Bound, FORMAT, IssuerPlan, Keep, Mode, Part, Plan, Policy, ProbePlan, Reason, Role, RotationId,
    Slot, StorePlan, VersionRef, WorkloadPlan,
};
use keywheel_core::secret::{Credential, Field, SecretName};
use keywheel_core::strategy::Strategy;
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::{Stage, State, VersionId};
use keywheel_engine::Engine;
use keywheel_engine::clock::Clock as _;
use keywheel_engine::run::Group;
use keywheel_journal::sqlite::{Open, SqliteJournal};
use keywheel_journal::{
    Append, AuditRecord, AuditVerdict, Epoch, Holder, Installation, Journal, JournalError, Record,
    Resource, RotationRow, ValueKey,
};
use rusqlite::{Connection, OpenFlags};
use serde_json::json;

use crate::fixture::{Commit, Dump, Fixture};
use crate::world::{Contents, REPLICA, SLOT, STORES, Trouble, WORKLOAD, World, env_file};
use crate::{FOREVER, Here, TestClock, engine, run, secret};

/// When the history begins: 2026-01-01.
const BEGIN: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// The value that somebody chose by hand.
pub(crate) const FIRST: &str = "kwcanary-0123456789abcdefghijkl";

/// What the world's files hold at first.
pub(crate) fn first_contents() -> Contents {
    let app = format!("# app\n{SLOT}={FIRST}\nOTHER=1\n");
    let web = format!("{SLOT}='{FIRST}'\r\n");
    let texts = [(STORES[0], app.clone()), (STORES[1], web), (REPLICA, app)];
    texts.map(|(name, text)| (name.to_owned(), text)).into()
}

/// Lets the history happen, and returns it with the format of the journal that this version writes.
pub(crate) async fn happen() -> (i64, Fixture) {
    let here = Here::new();
    let world = World::of(&first_contents());
    let clock = Arc::new(TestClock::beginning_at(BEGIN));
    let journal = SqliteJournal::open(&here.places(), Open::CreateIfMissing).unwrap();
    let holder = journal.holder("the version that wrote this").unwrap();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let tape = Tape {
        connection: Connection::open_with_flags(journal.path(), flags).unwrap(),
        last: Dump::default(),
        commits: Vec::new(),
    };
    let recorder = Arc::new(Recorder {
        journal,
        clock: Arc::clone(&clock),
        world: Arc::clone(&world),
        tape: Mutex::new(tape),
    });
    recorder.note().await;
    let past = Past { engine: engine(recorder.clone(), holder, clock, &world), world };
    past.happen().await;
    let mut tape = recorder.tape.lock().unwrap();
    let kek = std::fs::read_to_string(here.places().kek).unwrap();
    assert_eq!(missing(&tape.commits), Vec::<&str>::new());
    (tape.last.format(), Fixture { kek, commits: std::mem::take(&mut tape.commits) })
}

/// The events that a history has to hold.
const EVENTS: [&str; 16] = [
    "planned",
    "intended",
    "done",
    "refused",
    "unknown",
    "move_begun",
    "arrived",
    "promoted",
    "turned_back",
    "parked",
    "resumed",
    "window_closed",
    "superseded",
    "stage_closed",
    "purged",
    "ended",
];

fn missing(commits: &[Commit]) -> Vec<&'static str> {
    let holds = |event: &str| {
        let forms = [format!("'{{\"{event}\":"), format!("'\"{event}\"'")];
        commits.iter().any(|commit| forms.iter().any(|form| commit.sql.contains(form)))
    };
    EVENTS.into_iter().filter(|event| !holds(event)).collect()
}

struct Past {
    engine: Engine,
    world: Arc<World>,
}

impl Past {
    async fn happen(&self) {
        self.adopt().await;
        self.completes().await;
        self.is_reversed_after_its_promotion().await;
        self.turns_back_by_itself().await;
        self.is_taken_over_by_an_emergency().await;
    }

    async fn adopt(&self) {
        let fingerprint = self.engine.fingerprint(&[], &self.world.held(STORES[0]).await);
        let mut row = Inventory::new(secret());
        row.versions.push(Version::adopted(VersionId(1), None, None, Some(fingerprint)));
        row.next = VersionId(2);
        self.engine.note(&secret(), "adopted", |_| Some(row)).await.unwrap();
    }

    /// One write is refused for now and one answer is lost; the next rotation is asked for early, and the rollback window is
    /// closed for it.
    async fn completes(&self) {
        self.world.next_write(STORES[0], Trouble::Busy);
        let mut group = self.begin(self.plan(None).await).await;
        run(&self.engine, &mut group, Span::ZERO).await;
        let queued =
            Queued { at: self.engine.clock.now(), because: Some("audit".into()), after: None };
        let queue = |row: Option<Inventory>| Some(Inventory { queued: Some(queued), ..row? });
        self.engine.note(&secret(), "queued", queue).await.unwrap();
        let mut group = self.engine.recover(&[secret()]).await.unwrap();
        run(&self.engine, &mut group, Span::days(1)).await;
        let because = "the next rotation was asked for".to_owned();
        self.engine.say(&mut group, &Event::WindowClosed { because }).await.unwrap();
        run(&self.engine, &mut group, FOREVER).await;
    }

    /// On its way back somebody else's edit is in the way, until an operator has looked.
    async fn is_reversed_after_its_promotion(&self) {
        self.world.next_write(STORES[1], Trouble::AnswerLost);
        let mut group = self.begin(self.plan(None).await).await;
        run(&self.engine, &mut group, Span::ZERO).await;
        self.world.next_write(STORES[0], Trouble::Conflict);
        self.engine.undo(&mut group, "it was too short").await.unwrap();
        run(&self.engine, &mut group, FOREVER).await;
        let mut group = self.engine.recover(&[secret()]).await.unwrap();
        self.engine.let_go_on(&mut group).await.unwrap();
        run(&self.engine, &mut group, FOREVER).await;
    }

    async fn turns_back_by_itself(&self) {
        self.world.next_write(STORES[1], Trouble::Conflict);
        let mut group = self.begin(self.plan(None).await).await;
        run(&self.engine, &mut group, FOREVER).await;
    }

    /// Delivery takes longer than the emergency waits for it.
    async fn is_taken_over_by_an_emergency(&self) {
        let mut group = self.begin(self.plan(None).await).await;
        run(&self.engine, &mut group, Span::ZERO).await;
        let open = group.rotations().next().unwrap().id().clone();
        self.world.next_write(STORES[0], Trouble::Busy);
        let mut group = self.begin(self.plan(Some(open)).await).await;
        run(&self.engine, &mut group, FOREVER).await;
    }

    async fn begin(&self, plan: Plan) -> Group {
        self.engine.begin(&[Arc::new(plan)]).await.unwrap()
    }

    async fn row(&self) -> Option<Inventory> {
        self.engine.journal.inventory(&secret()).await.unwrap()
    }

    /// Plans the next rotation; an emergency where it takes one over.
    async fn plan(&self, takes_over: Option<RotationId>) -> Plan {
        let row = self.row().await.unwrap_or_else(|| Inventory::new(secret()));
        let current = row.at(Stage::Current).map(Version::reference);
        let compromised = |known: VersionRef| VersionRef { state: State::Compromised, ..known };
        let (mode, previous, suspects) = if takes_over.is_some() {
            let others = row.versions.iter().filter(|known| known.stage != Some(Stage::Current));
            let suspects = others.map(|known| compromised(known.reference())).collect();
            let stage_for = Span::millis(500);
            let mode = Mode::Emergency { revoke_first: false, stage_for };
            (mode, current.map(compromised), suspects)
        } else {
            (Mode::Normal, current, Vec::new())
        };
        let issuer = Bound { name: "random".into(), driver: json!({ "random": { "length": 43 } }) };
        let workload = Bound { name: "reader".into(), driver: json!({ "reader": {} }) };
        let probe = Bound { name: "reader.asks.1".into(), driver: json!({ "asks": {} }) };
        Plan {
            format: FORMAT,
            installation: self.engine.journal.installation().id.clone(),
            secret: secret(),
            reason: if takes_over.is_some() { Reason::Compromised } else { Reason::Requested },
            because: Some("a golden journal".into()),
            strategy: Strategy::Overlap,
            mode,
            previous,
            pending: row.next,
            suspects,
            takes_over,
            inherits_until: None,
            incident: None,
            extend: false,
            batch: Vec::new(),
            folder: "/srv/shop".into(),
            issuer: IssuerPlan {
                facts: self.world.issuer(&issuer).unwrap().facts(),
                bound: issuer,
            },
            stores: STORES.map(|name| self.store(name)).into(),
            workloads: vec![WorkloadPlan {
                bound: workload,
                facts: WORKLOAD,
                reads: vec![0],
                pin: None,
            }],
            probes: vec![ProbePlan { bound: probe }],
            policy: Policy { keep: Keep::Rollback, ..Policy::default() },
        }
    }

    fn store(&self, name: &str) -> StorePlan {
        let bound = env_file(name);
        let part = Part::Plain(Field::value());
        let slots = vec![Slot { address: SLOT.into(), role: Role::Current, part }];
        StorePlan { facts: self.world.store(&bound).unwrap().facts(), bound, slots, pin: None }
    }
}

/// A journal that notes each of its commits.
struct Recorder {
    journal: SqliteJournal,
    clock: Arc<TestClock>,
    world: Arc<World>,
    tape: Mutex<Tape>,
}

struct Tape {
    connection: Connection,
    last: Dump,
    commits: Vec<Commit>,
}

impl Recorder {
    /// Notes what the commit that was just made changed, and lets some time pass.
    async fn note(&self) {
        {
            let mut tape = self.tape.lock().unwrap();
            let dump = Dump::of(&tape.connection);
            let sql = dump.since(&tape.last);
            if !sql.is_empty() {
                let (at, world) = (self.clock.now(), self.world.contents());
                tape.commits.push(Commit { at, sql, world });
            }
            tape.last = dump;
        }
        tokio::time::advance(std::time::Duration::from_millis(20)).await;
    }
}

#[async_trait]
impl Journal for Recorder {
    fn installation(&self) -> &Installation {
        self.journal.installation()
    }

    async fn claim(
        &self,
        secret: &SecretName,
        holder: &Holder,
        now: Timestamp,
        lease: Span,
    ) -> Result<Epoch, JournalError> {
        let epoch = self.journal.claim(secret, holder, now, lease).await?;
        self.note().await;
        Ok(epoch)
    }

    async fn give_up(&self, secret: &SecretName, epoch: Epoch) -> Result<(), JournalError> {
        self.journal.give_up(secret, epoch).await?;
        self.note().await;
        Ok(())
    }

    async fn append(&self, append: Append) -> Result<(), JournalError> {
        self.journal.append(append).await?;
        self.note().await;
        Ok(())
    }

    async fn records(&self, rotation: &RotationId) -> Result<Vec<Record>, JournalError> {
        self.journal.records(rotation).await
    }

    async fn rotations(
        &self,
        secret: Option<&SecretName>,
    ) -> Result<Vec<RotationRow>, JournalError> {
        self.journal.rotations(secret).await
    }

    async fn inventory(&self, secret: &SecretName) -> Result<Option<Inventory>, JournalError> {
        self.journal.inventory(secret).await
    }

    async fn inventories(&self) -> Result<Vec<Inventory>, JournalError> {
        self.journal.inventories().await
    }

    async fn unseal(&self, key: &ValueKey) -> Result<Option<Credential>, JournalError> {
        self.journal.unseal(key).await
    }

    async fn sealed(&self, secret: &SecretName) -> Result<Vec<ValueKey>, JournalError> {
        self.journal.sealed(secret).await
    }

    async fn leases(&self) -> Result<Vec<(Resource, RotationId)>, JournalError> {
        self.journal.leases().await
    }

    async fn audit(&self, from: u64) -> Result<Vec<AuditRecord>, JournalError> {
        self.journal.audit(from).await
    }

    async fn verify_audit(&self) -> Result<AuditVerdict, JournalError> {
        self.journal.verify_audit().await
    }
}
