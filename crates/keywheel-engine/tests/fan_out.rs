//! One credential in five stores, of which any may fail at any point: it ends in all of them, or in none (H40).

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::future::{pending, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use async_trait::async_trait;
use keywheel_core::call::{CallError, Refusal, RefusalKind};
use keywheel_core::event::{Event, Outcome, Report, Step};
use keywheel_core::evidence::{Replica, Shows};
use keywheel_core::facts::{IssuerFacts, StoreFacts, WorkloadFacts};
use keywheel_core::fingerprint::Fingerprinter;
use keywheel_core::gate::Clocks;
use keywheel_core::incident::BehindStore;
use keywheel_core::plan::{Bound, Label, Mode, Part, Pin, Plan, StorePlan, UrlPart, VersionRef};
use keywheel_core::secret::{Credential, Field, SecretValue};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::{IssuedId, State, VersionId};
use keywheel_driver::issuer::{Issuer, Live, Mint, Minted, Verdict};
use keywheel_driver::slot;
use keywheel_driver::store::{Edit, Store, Written};
use keywheel_driver::workload::{Ensure, Workload};
use keywheel_driver::{Claim, Claims, Finding, Owner};
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

/// What stands in the way of one store.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// It gives no answer.
    Silent,
    /// It is down.
    Down,
    /// Its login is refused.
    Forbidden,
    /// It says itself that it must not be written.
    Blocked,
    /// A slot that readers use is not there.
    Lacks,
    /// It answers at another place than the pinned one.
    Elsewhere,
    /// Another installation owns it.
    Foreign,
}

/// The index of the store that something stands in the way of.
const ODD: usize = 1;

fn emergency(plan: &mut Plan, revoke_first: bool) {
    plan.mode = Mode::Emergency { revoke_first, stage_for: Span::minutes(10) };
    plan.previous.as_mut().unwrap().state = State::Compromised;
}

fn pin(id: &str) -> Option<Pin> {
    Some(Pin { id: id.into(), machine: String::new(), folder: String::new() })
}

#[tokio::test(start_paused = true)]
async fn h123_a_store_in_the_way_keeps_no_suspect_alive_and_holds_up_no_other_store() {
    for way in [Way::Silent, Way::Down, Way::Forbidden, Way::Blocked, Way::Lacks, Way::Elsewhere] {
        for revoke_first in [true, false] {
            let setup = Setup::new();
            setup.world().in_the_way = Some(way);
            let mut group = setup.begin_with(|plan| emergency(plan, revoke_first)).await;
            let outcome = setup.rest(&mut group).await;
            let case = format!("{way:?}, revoke first: {revoke_first}");
            assert_eq!(setup.live(), 1, "{case}: the suspect is ended");
            let records = setup.records(&group).await;
            let noted = records.iter().any(|event| match event {
                Event::Done { step: Step::Preflight, report: Report::Noted { notes } } => {
                    notes[0].starts_with("store `1`: ")
                }
                _ => false,
            });
            assert!(noted, "{case}: {records:?}");
            if matches!(way, Way::Blocked | Way::Lacks) {
                // What speaks against a write may well let it pass.
                assert_eq!(outcome, Some(Outcome::Completed), "{case}");
                setup.holds_everywhere("new 1", 1);
                continue;
            }
            assert_eq!(outcome, None, "{case}: an operator is asked for the store");
            let mut stores = [const { "new 1" }; STORES];
            stores[ODD] = "first";
            assert_eq!(setup.world().stores, stores, "{case}");
            let behind = records.iter().find_map(|event| match event {
                Event::Done { report: Report::Revoked { stores, .. }, .. } => Some(stores.clone()),
                _ => None,
            });
            let behind = behind.unwrap();
            let is_odd = |store: &BehindStore| usize::from(store.store) == ODD;
            assert!(behind.iter().any(is_odd), "{case}: {behind:?}");
            assert!(revoke_first || behind.len() == 1, "{case}: {behind:?}");
            setup.world().in_the_way = None;
            let mut group = setup.recover().await;
            setup.engine.let_go_on(&mut group).await.unwrap();
            assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed), "{case}");
            setup.holds_everywhere("new 1", 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn h61_a_store_of_another_installation_stops_an_emergency_before_its_mint() {
    let setup = Setup::new();
    setup.world().in_the_way = Some(Way::Foreign);
    let mut group = setup.begin_with(|plan| emergency(plan, true)).await;
    assert_eq!(setup.rest(&mut group).await, None);
    assert_eq!((setup.live(), setup.world().mints), (1, 0));
    setup.holds_everywhere("first", 1);
}

#[tokio::test(start_paused = true)]
async fn h123_what_is_not_ours_in_a_store_that_could_not_be_read_in_time_stays() {
    let setup = Setup::new();
    setup.world().stores[ODD] = "postgres://app:first@db/shop".into();
    setup.world().in_the_way = Some(Way::Down);
    let url = |plan: &mut Plan| {
        emergency(plan, true);
        plan.stores[ODD].slots[0].part = Part::Url(UrlPart::Password);
    };
    let mut group = setup.begin_with(url).await;
    assert_eq!(setup.rest(&mut group).await, None);
    setup.world().in_the_way = None;
    let mut group = setup.recover().await;
    setup.engine.let_go_on(&mut group).await.unwrap();
    assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed));
    assert_eq!(setup.world().stores[ODD], "postgres://app:new%201@db/shop");
}

#[tokio::test(start_paused = true)]
async fn i23_a_store_is_cleaned_up_where_it_was_written_and_nowhere_else() {
    for moves in [false, true] {
        let setup = Setup::new();
        let mut group = setup.begin_with(|plan| plan.stores[ODD].facts.leaves_behind = true).await;
        setup.world().moves_after_the_end = moves;
        assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed));
        assert_eq!(setup.world().cleaned, usize::from(!moves));
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
        self.begin_with(|plan| plan.policy.soak = soak).await
    }

    async fn begin_with(&self, change: impl FnOnce(&mut Plan)) -> Group {
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
        plan.stores[ODD].pin = pin("here");
        plan.policy.soak = Span::ZERO;
        plan.policy.gate_limit = Span::hours(1);
        change(&mut plan);
        self.engine.begin(&[Arc::new(plan)]).await.unwrap()
    }

    async fn records(&self, group: &Group) -> Vec<Event> {
        let id = group.rotations().next().unwrap().id().clone();
        let records = self.engine.journal.records(&id).await.unwrap();
        records.into_iter().map(|record| record.event).collect()
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
    /// What stands in the way of the odd store.
    in_the_way: Option<Way>,
    /// Whether the odd store is reached at another place once the former version is ended.
    moves_after_the_end: bool,
    cleaned: usize,
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
            in_the_way: None,
            moves_after_the_end: false,
            cleaned: 0,
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
        let value = SecretValue::new(value.into_bytes());
        let password = value.duplicate();
        let credential = Credential::of_value(value).with(Field::new("password"), password);
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
        if let Some((_, value, _)) = dead.filter(|_| world.in_the_way.is_none()) {
            assert!(!world.held.contains(&value), "a replica holds what is revoked");
            assert!(!world.stores.contains(&value), "a store holds what is revoked");
        }
        world.live.retain(|(issued, ..)| issued != id);
        if world.moves_after_the_end {
            world.in_the_way = Some(Way::Elsewhere);
        }
        Ok(())
    }
}

struct Slots {
    outside: Arc<Outside>,
    store: usize,
}

impl Slots {
    fn in_the_way(&self) -> Option<Way> {
        self.outside.world().in_the_way.filter(|_| self.store == ODD)
    }

    async fn passes(&self) -> Result<(), CallError> {
        match self.in_the_way() {
            Some(Way::Silent) => pending().await,
            Some(Way::Down) => {
                Err(Refusal::retry(RefusalKind::Unavailable, None, "nobody is there").into())
            }
            Some(Way::Forbidden) => {
                Err(Refusal::operator(RefusalKind::Permission, "the login is refused").into())
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Claims for Slots {
    fn place(&self) -> String {
        "beside the store".into()
    }

    async fn owner(&self) -> Result<Owner, CallError> {
        let text = |text: &str| text.to_owned();
        Ok(Owner::Other(Box::new(Claim {
            installation: text("another"),
            folder: text("/srv/another"),
            environment: text("production"),
            host: text("there"),
            account: text("dana"),
            since: text("2026-01-31T00:00:00Z"),
        })))
    }

    async fn take(&self) -> Result<bool, CallError> {
        Err(Refusal::operator(RefusalKind::Permission, "it is another's").into())
    }

    async fn take_over(&self) -> Result<(), CallError> {
        Ok(())
    }

    async fn release(&self) -> Result<(), CallError> {
        Ok(())
    }
}

#[async_trait]
impl Store for Slots {
    fn facts(&self) -> StoreFacts {
        StoreFacts { settle_for: SETTLES, ..STORE }
    }

    fn container(&self) -> String {
        self.store.to_string()
    }

    async fn identity(&self) -> Result<Option<Pin>, CallError> {
        Ok(match self.in_the_way() {
            _ if self.store != ODD => None,
            Some(Way::Elsewhere) => pin("there"),
            _ => pin("here"),
        })
    }

    async fn preflight(&self, _addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        self.passes().await?;
        let blocks = self.in_the_way() == Some(Way::Blocked);
        Ok(blocks.then(|| Finding::blocks("it is written by somebody else")).into_iter().collect())
    }

    async fn missing(&self, _addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        let lacks = self.in_the_way() == Some(Way::Lacks);
        Ok(lacks.then(|| Finding::blocks("there is no `KEY`")).into_iter().collect())
    }

    async fn clean_up(&self) -> Result<Vec<String>, CallError> {
        self.outside.world().cleaned += 1;
        Ok(Vec::new())
    }

    fn claims(&self) -> Option<&dyn Claims> {
        if self.in_the_way() == Some(Way::Foreign) { Some(self) } else { None }
    }

    async fn read(&self, _addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        self.passes().await?;
        let world = self.outside.called().await;
        Ok(vec![Some(SecretValue::new(world.stores[self.store].clone().into_bytes()))])
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        self.passes().await?;
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
