//! Golden journals: a later version carries on what an older one began (H15).
//!
//! `fixtures/journal-v1.sql` is a journal as the version with format 1 wrote it, commit by commit, and beside each commit
//! what the world held then. For each cut after a commit, the present version is given a database of the commits up to it
//! and a world, a day later and on another machine, and brings every open rotation to its end. After an intent without an
//! outcome nobody knows whether its call was made, so such a cut is resumed in both worlds: that of the intent, in which
//! nothing was done yet, and that of the next commit, in which it was.
//!
//! The test is here and not with the program because a plan names the folder of its configuration, and so does a journal
//! whose plan was compiled from a file. The engine takes drivers from a factory; the one of this test builds the program's
//! own drivers from the plan, in a folder of the test's choosing ([`world`]). So no path of any machine is in a fixture.
//!
//! # A new format
//! A fixture is never edited once its format is released: that older journals can be read is all that it is for. When the
//! format changes, add its number to [`FORMATS`] and run this test once with `KEYWHEEL_WRITE_GOLDEN=1`. It lets [`history`]
//! happen and writes the fixture of the new format, and does not write over one that is there.
//!
//! `fixtures/journal-v1.kek` is the key that the values of the fixture are sealed under. It and they are of tests only.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]

mod fixture;
mod history;
mod world;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use async_trait::async_trait;
use keywheel_core::event::{Event, Outcome};
use keywheel_core::fingerprint::Compared;
use keywheel_core::gate::Clocks;
use keywheel_core::plan::RotationId;
use keywheel_core::secret::SecretName;
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::{Stage, VersionId};
use keywheel_engine::clock::Clock;
use keywheel_engine::limits::Limits;
use keywheel_engine::run::{Group, Until};
use keywheel_engine::{Engine, NoWatch, recover};
use keywheel_journal::sqlite::{Open, Places, SqliteJournal};
use keywheel_journal::{Actor, Holder, Journal};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::fixture::Fixture;
use crate::world::{Contents, Driven, World, private_file};

/// The formats that were ever written; the last one is the present one.
const FORMATS: [i64; 1] = [1];

/// Asks for the fixture of the present format to be written.
const WRITE: &str = "KEYWHEEL_WRITE_GOLDEN";

/// How many cuts are resumed at once: they mostly wait for the disk.
const AT_ONCE: usize = 16;

#[test]
fn h15_a_journal_of_each_format_is_resumed_from_every_cut() {
    if std::env::var_os(WRITE).is_some() {
        let (format, fixture) = block_on(history::happen());
        fixture.write(format);
    }
    for format in FORMATS {
        let cuts = cuts(&Fixture::of_format(format));
        let failed: Vec<String> = cuts.chunks(AT_ONCE).flat_map(failed).collect();
        assert_eq!(failed, Vec::<String>::new(), "of {} cuts of format {format}", cuts.len());
    }
}

#[test]
fn h15_the_present_format_has_a_fixture() {
    let here = Here::new();
    drop(SqliteJournal::open(&here.places(), Open::CreateIfMissing).unwrap());
    let database = Connection::open(here.places().journal).unwrap();
    let present: i64 = database.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(Some(&present), FORMATS.last(), "write it with `{WRITE}=1`");
}

/// A journal that ends after a commit, in a world that it can then be found in.
struct Cut {
    name: String,
    at: Timestamp,
    database: Arc<Vec<u8>>,
    kek: String,
    world: Contents,
}

fn cuts(fixture: &Fixture) -> Vec<Cut> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("growing.sqlite");
    let growing = Connection::open(&path).unwrap();
    let mut cuts = Vec::new();
    for (number, commit) in fixture.commits.iter().enumerate() {
        growing.execute_batch(&format!("BEGIN; {} COMMIT;", commit.sql)).unwrap();
        let database = Arc::new(fs::read(&path).unwrap());
        let next = fixture.commits.get(number + 1).unwrap_or(commit);
        let mut worlds = vec![("its own", &commit.world), ("the next", &next.world)];
        worlds.dedup_by_key(|(_, world)| *world);
        cuts.extend(worlds.into_iter().map(|(whose, world)| Cut {
            name: format!("after commit {number}, in {whose} world"),
            at: commit.at,
            database: Arc::clone(&database),
            kek: fixture.kek.clone(),
            world: world.clone(),
        }));
    }
    cuts
}

/// Resumes cuts side by side, and names those that did not end as they should.
fn failed(cuts: &[Cut]) -> Vec<String> {
    thread::scope(|scope| {
        let resumed = cuts.iter().map(|cut| (cut, scope.spawn(|| block_on(cut.resume()))));
        let resumed: Vec<_> = resumed.collect();
        let failed =
            resumed.into_iter().filter_map(|(cut, thread)| thread.join().err().map(|_| cut));
        failed.map(|cut| cut.name.clone()).collect()
    })
}

impl Cut {
    async fn resume(&self) {
        let here = Here::new();
        private_file(&here.places().journal, &self.database);
        private_file(&here.places().kek, self.kek.as_bytes());
        let resumed = Resumed::begin(&here, World::of(&self.world), self.at + Span::days(1));
        let expected = resumed.outcomes_to_come().await;
        resumed.audit_holds().await;
        resumed.run_to_the_end().await;
        resumed.audit_holds().await;
        assert_eq!(resumed.outcomes().await, expected);
        resumed.nothing_is_left_over().await;
        resumed.stores_hold_the_current_version().await;
    }
}

/// The present version at work on an older one's journal.
struct Resumed {
    engine: Engine,
    world: Arc<World>,
}

impl Resumed {
    fn begin(here: &Here, world: Arc<World>, now: Timestamp) -> Self {
        let journal = SqliteJournal::open(&here.places(), Open::Existing).unwrap();
        let holder = journal.holder("the version that resumes").unwrap();
        let clock = Arc::new(TestClock::beginning_at(now));
        Self { engine: engine(Arc::new(journal), holder, clock, &world), world }
    }

    /// Does what `resume --all --soak` does; where a rotation is parked, the operator has looked.
    async fn run_to_the_end(&self) {
        for secrets in self.engine.open_groups().await.unwrap() {
            let mut group = self.engine.recover(&secrets).await.unwrap();
            self.engine.let_go_on(&mut group).await.unwrap();
            run(&self.engine, &mut group, FOREVER).await;
        }
    }

    /// How each rotation has to end: as the uncut one did, but for what nobody had asked for or run into yet.
    async fn outcomes_to_come(&self) -> BTreeMap<RotationId, Option<Outcome>> {
        let mut outcomes = BTreeMap::new();
        for row in self.journal().rotations(None).await.unwrap() {
            let records = self.journal().records(&row.rotation).await.unwrap();
            let holds = |is: fn(&Event) -> bool| records.iter().any(|record| is(&record.event));
            let outcome = if holds(|event| matches!(event, Event::Superseded { .. })) {
                Outcome::Superseded
            } else if holds(|event| matches!(event, Event::TurnedBack { .. })) {
                Outcome::Undone
            } else {
                Outcome::Completed
            };
            outcomes.insert(row.rotation, Some(outcome));
        }
        outcomes
    }

    async fn outcomes(&self) -> BTreeMap<RotationId, Option<Outcome>> {
        let mut outcomes = BTreeMap::new();
        for row in self.journal().rotations(None).await.unwrap() {
            let rotation = recover::read(self.journal(), &row.rotation).await.unwrap();
            outcomes.insert(row.rotation, rotation.outcome());
        }
        outcomes
    }

    async fn audit_holds(&self) {
        assert_eq!(self.journal().verify_audit().await.unwrap().faults, Vec::<String>::new());
    }

    async fn nothing_is_left_over(&self) {
        let rotations = self.journal().rotations(None).await.unwrap();
        assert!(rotations.iter().all(|rotation| !rotation.open));
        assert_eq!(self.journal().sealed(&secret()).await.unwrap(), Vec::new());
        assert_eq!(self.journal().leases().await.unwrap(), Vec::new());
    }

    /// Every file holds the version that the last rotation left current, and is otherwise as it was before the first one.
    async fn stores_hold_the_current_version(&self) {
        let row = self.journal().inventory(&secret()).await.unwrap();
        let Some(current) = row.as_ref().and_then(|row| row.at(Stage::Current)) else {
            return assert_eq!(self.world.contents(), history::first_contents());
        };
        assert_eq!(current.version, self.version_to_stay().await);
        let known = current.fingerprint.unwrap();
        for name in world::FILES {
            let held = self.world.held(name).await;
            let fingerprint = self.engine.fingerprint(&[], &held);
            assert_eq!(known.compare(&fingerprint), Compared::Same, "{name}");
            let value = str::from_utf8(held.value().unwrap().expose()).unwrap();
            let with_first = self.world.read(name).replace(value, history::FIRST);
            assert_eq!(with_first, history::first_contents()[name]);
        }
    }

    async fn version_to_stay(&self) -> VersionId {
        let rotations = self.journal().rotations(Some(&secret())).await.unwrap();
        let Some(last) = rotations.first() else { return VersionId(1) };
        let last = recover::read(self.journal(), &last.rotation).await.unwrap();
        match last.outcome() {
            Some(Outcome::Completed) => last.plan().pending,
            _ => last.plan().previous.as_ref().unwrap().version,
        }
    }

    fn journal(&self) -> &dyn Journal {
        self.engine.journal.as_ref()
    }
}

/// The secret that is rotated.
fn secret() -> SecretName {
    "pepper@default".parse().unwrap()
}

/// Folders for a journal and its key.
struct Here {
    folder: TempDir,
}

impl Here {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["state", "keys"] {
            DirBuilder::new().mode(0o700).create(folder.path().join(name)).unwrap();
        }
        Self { folder }
    }

    fn places(&self) -> Places {
        let at = |name: &str| -> PathBuf { self.folder.path().join(name) };
        Places { journal: at("state/journal.sqlite"), kek: at("keys/kek"), allow_work_tree: false }
    }
}

fn engine(
    journal: Arc<dyn Journal>,
    holder: Holder,
    clock: Arc<dyn Clock>,
    world: &Arc<World>,
) -> Engine {
    Engine {
        journal,
        clock,
        build: Arc::new(Driven(Arc::clone(world))),
        random: Arc::new(marked),
        holder,
        actor: Actor {
            account: "golden".into(),
            origin: None,
            host: "golden".into(),
            method: "test".into(),
            authenticated: false,
        },
        limits: Limits::new(1),
        watch: Arc::new(NoWatch),
    }
}

/// Random bytes of which the `random` issuer makes a value that begins with the marker of test values.
fn marked(buffer: &mut [u8]) {
    getrandom::fill(buffer).unwrap();
    let marker = b"kwcanary".map(|letter| letter - b'a' + 26);
    buffer[..marker.len()].copy_from_slice(&marker);
}

/// Longer than anything that a rotation waits for.
const FOREVER: Span = Span::days(1_000);

/// Runs a group up to a wait that is longer than `patience`.
async fn run(engine: &Engine, group: &mut Group, patience: Span) {
    let stop = AtomicBool::new(false);
    engine.run(group, &Until { rest: false, patience, stop: &stop }).await.unwrap();
}

/// Runs on a clock that stands still while anything is done, and leaps over every wait.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().unwrap().block_on(work)
}

/// The clocks of one boot.
struct TestClock {
    begin: Timestamp,
    begun: Instant,
}

impl TestClock {
    fn beginning_at(begin: Timestamp) -> Self {
        Self { begin, begun: Instant::now() }
    }

    fn passed(&self) -> Span {
        Span::millis(u64::try_from(self.begun.elapsed().as_millis()).unwrap())
    }
}

#[async_trait]
impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        self.begin + self.passed()
    }

    fn clocks(&self) -> Clocks {
        let boot_id = self.begin.millis().unsigned_abs();
        Clocks { wall: self.now(), boot: self.passed(), boot_id, outside: None }
    }

    async fn sleep_until(&self, until: Timestamp) {
        tokio::time::sleep(until.since(self.now()).into()).await;
    }

    fn hears_within(&self) -> Span {
        FOREVER
    }
}
