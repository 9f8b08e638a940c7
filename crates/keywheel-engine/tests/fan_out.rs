//! One credential in five stores, of which any may fail at any point: it ends in all of them, or in none (H40).

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use async_trait::async_trait;
use keywheel_core::call::{CallError, Refusal, RefusalKind};
use keywheel_core::event::Outcome;
use keywheel_core::evidence::{Replica, Shows};
use keywheel_core::facts::{IssuerFacts, StoreFacts, WorkloadFacts};
use keywheel_core::fingerprint::Fingerprinter;
use keywheel_core::gate::Clocks;
use keywheel_core::plan::{Bound, Label, Plan, StorePlan, VersionRef};
use keywheel_core::secret::{Credential, SecretValue};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::{IssuedId, State, VersionId};
use keywheel_driver::Finding;
use keywheel_driver::issuer::{Issuer, Live, Mint, Minted, Verdict};
use keywheel_driver::slot;
use keywheel_driver::store::{Edit, Store, Written};
use keywheel_driver::workload::{Ensure, Workload};
use keywheel_engine::clock::Clock;
use keywheel_engine::limits::Limits;
use keywheel_engine::run::{Group, Ran, Until};
use keywheel_engine::{Build, Drivers, Engine, Watch};
use keywheel_journal::memory::MemoryJournal;
use keywheel_journal::{Actor, Holder};
use tokio::task::yield_now;
use zeroize::Zeroizing;

#[path = "support/plain.rs"]
mod plain;
use plain::{ISSUER, STORE, WORKLOAD, plain_plan};

const START: Timestamp = Timestamp::from_millis(1_000_000_000);
const STORES: usize = 5;
const SETTLES: Span = Span::seconds(5);

/// How the writes of a failing store go wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trouble {
    RefusedForNow,
    RefusedForGood,
    /// No answer; nothing was written.
    Lost,
    /// No answer; it was written.
    AnswerLost,
    /// No answer; it is written as late as it can be.
    Late,
}

const PASSING: [Trouble; 4] =
    [Trouble::RefusedForNow, Trouble::Lost, Trouble::AnswerLost, Trouble::Late];

#[tokio::test(start_paused = true)]
async fn h40_whichever_stores_fail_for_a_while_all_of_them_get_the_one_new_version() {
    for failing in 0..1 << STORES {
        for trouble in PASSING {
            let setup = Setup::new();
            setup.fails(failing, trouble, 2);
            let mut group = setup.begin(Span::ZERO).await;
            let outcome = setup.rest(&mut group).await;
            assert_eq!(outcome, Some(Outcome::Completed), "{failing:05b} {trouble:?}");
            setup.holds_everywhere("new 1", 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn h40_whichever_stores_refuse_for_good_none_of_them_keeps_the_new_version() {
    for failing in 1..1 << STORES {
        let setup = Setup::new();
        setup.fails(failing, Trouble::RefusedForGood, 1);
        let mut group = setup.begin(Span::ZERO).await;
        let outcome = setup.rest(&mut group).await;
        assert_eq!(outcome, Some(Outcome::Undone), "{failing:05b}");
        setup.holds_everywhere("first", 1);
    }
}

#[tokio::test(start_paused = true)]
async fn h64_whichever_write_lands_after_the_way_back_began_it_loses() {
    for late in 0..STORES - 1 {
        for refusing in late + 1..STORES {
            let setup = Setup::new();
            setup.world().trouble[late] = (Trouble::Late, 1);
            setup.world().trouble[refusing] = (Trouble::RefusedForGood, 1);
            let mut group = setup.begin(Span::ZERO).await;
            let outcome = setup.rest(&mut group).await;
            assert_eq!(outcome, Some(Outcome::Undone), "late {late}, refusing {refusing}");
            setup.holds_everywhere("first", 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn h40_whichever_stores_fail_on_the_way_back_all_of_them_get_the_former_version() {
    for failing in 0..1 << STORES {
        for trouble in PASSING {
            let setup = Setup::new();
            let mut group = setup.begin(Span::minutes(10)).await;
            assert!(matches!(setup.run(&mut group, false).await, Ran::Owes { .. }));
            setup.holds_everywhere("new 1", 2);
            setup.fails(failing, trouble, 2);
            setup.engine.undo(&mut group, "it is wrong").await.unwrap();
            let outcome = setup.rest(&mut group).await;
            assert_eq!(outcome, Some(Outcome::Undone), "{failing:05b} {trouble:?}");
            setup.holds_everywhere("first", 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn h40_stores_on_two_sides_end_nothing_until_they_agree_again() {
    for failing in 1..1 << STORES {
        let setup = Setup::new();
        let mut group = setup.begin(Span::minutes(10)).await;
        assert!(matches!(setup.run(&mut group, false).await, Ran::Owes { .. }));
        setup.fails(failing, Trouble::RefusedForGood, usize::MAX);
        setup.engine.undo(&mut group, "it is wrong").await.unwrap();
        assert_eq!(setup.rest(&mut group).await, None, "{failing:05b}");
        assert!(group.rotations().next().unwrap().parked().is_some());
        assert_eq!(setup.live(), 2, "{failing:05b}: what some store holds stays alive");
        setup.fails(0, Trouble::Lost, 0);
        let mut group = setup.recover().await;
        setup.engine.let_go_on(&mut group).await.unwrap();
        assert_eq!(setup.rest(&mut group).await, Some(Outcome::Undone), "{failing:05b}");
        setup.holds_everywhere("first", 1);
    }
}

#[tokio::test(start_paused = true)]
async fn h40_a_run_that_is_dropped_anywhere_between_the_stores_is_completed_by_the_next_one() {
    for polls in 1.. {
        let setup = Setup::new();
        setup.fails(0b01010, Trouble::AnswerLost, 1);
        let mut group = setup.begin(Span::ZERO).await;
        let ended = {
            let mut run = pin!(setup.run(&mut group, true));
            let mut left = polls;
            poll_fn(|context| {
                left -= 1;
                match run.as_mut().poll(context) {
                    Poll::Ready(ran) => Poll::Ready(Some(ran)),
                    Poll::Pending if left == 0 => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                }
            })
            .await
        };
        drop(group);
        if ended.is_some() {
            return assert!(polls > 40, "there are places to drop it at");
        }
        let mut group = setup.recover().await;
        assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed), "{polls} polls");
        setup.holds_everywhere(&setup.newest(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn h49_a_store_that_somebody_writes_back_keeps_the_former_version_alive() {
    for store in 0..STORES {
        let setup = Setup::new();
        let mut group = setup.begin(Span::minutes(10)).await;
        assert!(matches!(setup.run(&mut group, false).await, Ran::Owes { .. }));
        setup.world().stores[store] = "first".into();
        assert_eq!(setup.rest(&mut group).await, None, "store {store}");
        assert_eq!(setup.live(), 2, "nothing was ended");
        let mut group = setup.recover().await;
        setup.engine.let_go_on(&mut group).await.unwrap();
        assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed), "store {store}");
        setup.holds_everywhere("new 1", 1);
    }
}

/// The engine, and everything outside of it.
struct Setup {
    engine: Engine,
    outside: Arc<Outside>,
}

impl Setup {
    fn new() -> Self {
        let outside = Arc::new(Outside::default());
        let engine = Engine {
            journal: Arc::new(MemoryJournal::new("test", Zeroizing::new([7; 32]))),
            clock: Arc::new(PausedClock(tokio::time::Instant::now())),
            build: Arc::new(FromOutside(Arc::clone(&outside))),
            random: Arc::new(|buffer| buffer.fill(1)),
            holder: Holder { id: "test".into(), name: "test".into() },
            actor: Actor {
                account: "test".into(),
                origin: None,
                host: "test".into(),
                method: "test".into(),
                authenticated: false,
            },
            limits: Limits::new(1),
            watch: Arc::new(Nobody),
        };
        Self { engine, outside }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.outside.world()
    }

    /// Makes the next writes of some stores go wrong.
    fn fails(&self, failing: usize, trouble: Trouble, times: usize) {
        let mut world = self.world();
        for store in 0..STORES {
            let times = if failing >> store & 1 == 1 { times } else { 0 };
            world.trouble[store] = (trouble, times);
        }
    }

    async fn begin(&self, soak: Span) -> Group {
        let first = VersionRef {
            version: VersionId(1),
            issued: Some(IssuedId::new("first")),
            state: State::Active,
            fingerprint: None,
        };
        let mut plan = plain_plan(&"s@production".parse().unwrap(), first, VersionId(2));
        let store = |index: usize| StorePlan {
            bound: Bound { name: index.to_string(), driver: serde_json::json!({}) },
            facts: StoreFacts { settle_for: SETTLES, ..STORE },
            ..plan.stores[0].clone()
        };
        plan.stores = (0..STORES).map(store).collect();
        plan.workloads[0].reads = (0..STORES as u8).collect();
        plan.policy.soak = soak;
        plan.policy.gate_limit = Span::hours(1);
        self.engine.begin(&[Arc::new(plan)]).await.unwrap()
    }

    async fn run(&self, group: &mut Group, rest: bool) -> Ran {
        let stop = AtomicBool::new(false);
        let until = Until { rest, patience: Span::minutes(2), stop: &stop };
        self.engine.run(group, &until).await.unwrap()
    }

    /// Takes the one open rotation up, as the next start of the program does.
    async fn recover(&self) -> Group {
        let groups = self.engine.open_groups().await.unwrap();
        self.engine.recover(&groups[0]).await.unwrap()
    }

    async fn rest(&self, group: &mut Group) -> Option<Outcome> {
        assert_eq!(self.run(group, true).await, Ran::Rested);
        group.rotations().next().unwrap().outcome()
    }

    fn live(&self) -> usize {
        self.world().live.len()
    }

    fn newest(&self) -> String {
        self.world().live.last().unwrap().1.clone()
    }

    /// Checks that every store and the replica hold one version, which is live, and how many are.
    #[track_caller]
    fn holds_everywhere(&self, value: &str, live: usize) {
        let mut world = self.world();
        world.land(Timestamp::from_millis(i64::MAX));
        assert_eq!(world.stores, [value; STORES], "whatever landed late lost");
        assert_eq!(world.held, [value; STORES]);
        assert!(world.live.iter().any(|(_, held, _)| held == value));
        assert_eq!(world.live.len(), live);
    }
}

struct Nobody;

impl Watch for Nobody {}

struct World {
    stores: [String; STORES],
    held: [String; STORES],
    live: Vec<(IssuedId, String, Option<Label>)>,
    mints: usize,
    /// How the writes of each store go wrong, and how many more of them.
    trouble: [(Trouble, usize); STORES],
    /// Writes on their way: the store, the value, and when they land.
    late: Vec<(usize, String, Timestamp)>,
}

impl World {
    fn land(&mut self, now: Timestamp) {
        let (landed, late) = self.late.drain(..).partition(|(_, _, at)| *at <= now);
        self.late = late;
        let landed: Vec<(usize, String, Timestamp)> = landed;
        for (store, value, _) in landed {
            self.stores[store] = value;
        }
    }
}

struct Outside {
    world: Mutex<World>,
    began: tokio::time::Instant,
    calls: AtomicUsize,
}

impl Default for Outside {
    fn default() -> Self {
        let first = || std::array::from_fn(|_| "first".to_owned());
        let world = World {
            stores: first(),
            held: first(),
            live: vec![(IssuedId::new("first"), "first".into(), None)],
            mints: 0,
            trouble: [(Trouble::Lost, 0); STORES],
            late: Vec::new(),
        };
        Self {
            world: Mutex::new(world),
            began: tokio::time::Instant::now(),
            calls: AtomicUsize::new(0),
        }
    }
}

impl Outside {
    /// The world as it is by now.
    fn world(&self) -> MutexGuard<'_, World> {
        let mut world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        world.land(START + Span::millis(self.began.elapsed().as_millis() as u64));
        world
    }

    async fn called(&self) -> MutexGuard<'_, World> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        yield_now().await;
        self.world()
    }
}

struct Keys(Arc<Outside>);

#[async_trait]
impl Issuer for Keys {
    fn facts(&self) -> IssuerFacts {
        ISSUER
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        let mut world = self.0.called().await;
        world.mints += 1;
        let value = format!("new {}", world.mints);
        let issued = IssuedId::new(&value);
        world.live.push((issued.clone(), value.clone(), Some(request.label.clone())));
        let credential = Credential::of_value(SecretValue::new(value.into_bytes()));
        Ok(Minted { issued: Some(issued), credential: Some(credential), ..Minted::default() })
    }

    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        let value = credential.value().unwrap().expose().to_vec();
        let world = self.0.called().await;
        let is_live = world.live.iter().any(|(_, live, _)| live.as_bytes() == value);
        Ok(if is_live { Verdict::Accepted } else { Verdict::Refused })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Live>, CallError> {
        let begins = |label: &Option<Label>| {
            label.as_ref().map_or(prefix.is_empty(), |label| label.0.starts_with(prefix))
        };
        let world = self.0.called().await;
        let listed = world.live.iter().filter(|(_, _, label)| begins(label));
        Ok(listed
            .map(|(issued, _, label)| Live { issued: issued.clone(), label: label.clone() })
            .collect())
    }

    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError> {
        let mut world = self.0.called().await;
        let dead = world.live.iter().find(|(issued, ..)| issued == id).cloned();
        if let Some((_, value, _)) = dead {
            assert!(!world.held.contains(&value), "a replica holds what is revoked");
            assert!(!world.stores.contains(&value), "a store holds what is revoked");
        }
        world.live.retain(|(issued, ..)| issued != id);
        Ok(())
    }
}

struct Slots {
    outside: Arc<Outside>,
    store: usize,
}

#[async_trait]
impl Store for Slots {
    fn facts(&self) -> StoreFacts {
        StoreFacts { settle_for: SETTLES, ..STORE }
    }

    fn container(&self) -> String {
        self.store.to_string()
    }

    async fn preflight(&self, _addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    async fn read(&self, _addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        let world = self.outside.called().await;
        Ok(vec![Some(SecretValue::new(world.stores[self.store].clone().into_bytes()))])
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        let value = String::from_utf8(edits[0].value.unwrap().expose().to_vec()).unwrap();
        let mut world = self.outside.called().await;
        let present = SecretValue::new(world.stores[self.store].clone().into_bytes());
        if !edits[0].accepts(Some(&present)) {
            return Err(Refusal::operator(RefusalKind::Conflict, "it holds something else").into());
        }
        let no_answer = || Err(CallError::Unknown("no answer".into()));
        let (trouble, left) = &mut world.trouble[self.store];
        if *left > 0 {
            *left -= 1;
            match trouble {
                Trouble::RefusedForNow => {
                    return Err(Refusal::retry(RefusalKind::Unavailable, None, "not now").into());
                }
                Trouble::RefusedForGood => {
                    return Err(Refusal::operator(RefusalKind::Permission, "never").into());
                }
                Trouble::Lost => return no_answer(),
                Trouble::AnswerLost => {
                    world.stores[self.store] = value;
                    return no_answer();
                }
                Trouble::Late => {
                    let deadline = Span::seconds(30);
                    let lasted = Span::millis(self.outside.began.elapsed().as_millis() as u64);
                    let lands = START + lasted + deadline;
                    world.late.push((self.store, value, lands));
                    return no_answer();
                }
            }
        }
        let changed = world.stores[self.store] != value;
        world.stores[self.store] = value;
        Ok(Written { changed })
    }
}

struct Reader(Arc<Outside>);

#[async_trait]
impl Workload for Reader {
    fn facts(&self) -> WorkloadFacts {
        WORKLOAD
    }

    fn resource(&self) -> String {
        "reader".into()
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    async fn observe(
        &self,
        slots: &[String],
        fingerprinter: &Fingerprinter,
    ) -> Result<Vec<Replica>, CallError> {
        let world = self.0.called().await;
        let held = |name: &String| {
            let store: usize = slot::parts(name).0.parse().unwrap();
            (name.clone(), fingerprinter.of(world.held[store].as_bytes()))
        };
        let shows = Shows::Slots(slots.iter().map(held).collect());
        Ok(vec![Replica { id: "1".into(), started_at: None, shows }])
    }

    async fn roll(&self, _ensure: &Ensure<'_>) -> Result<(), CallError> {
        let mut world = self.0.called().await;
        world.held = world.stores.clone();
        Ok(())
    }
}

struct FromOutside(Arc<Outside>);

impl Build for FromOutside {
    fn build(&self, plan: &Plan) -> Result<Drivers, Refusal> {
        let outside = || Arc::clone(&self.0);
        let store = |store: usize| Arc::new(Slots { outside: outside(), store }) as Arc<dyn Store>;
        Ok(Drivers {
            issuer: Arc::new(Keys(outside())),
            stores: (0..plan.stores.len()).map(store).collect(),
            workloads: vec![Arc::new(Reader(outside()))],
            probes: Vec::new(),
        })
    }
}

/// Time that passes only while everybody waits.
struct PausedClock(tokio::time::Instant);

#[async_trait]
impl Clock for PausedClock {
    fn now(&self) -> Timestamp {
        self.clocks().wall
    }

    fn clocks(&self) -> Clocks {
        let boot = Span::millis(self.0.elapsed().as_millis() as u64);
        Clocks { wall: START + boot, boot, boot_id: 1, outside: None }
    }

    async fn sleep_until(&self, until: Timestamp) {
        tokio::time::sleep(until.since(self.now()).into()).await;
    }
}
