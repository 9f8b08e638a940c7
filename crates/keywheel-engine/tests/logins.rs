//! A login that gives way to another behind a pooler, which lists both and at which readers log in (H72).
//!
//! Whatever becomes of the rotation, the login that replicas hold is let in at every moment.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use keywheel_core::call::{CallError, Refusal};
use keywheel_core::event::{Event, Outcome};
use keywheel_core::evidence::{Replica, Shows};
use keywheel_core::facts::{IssuerFacts, StoreFacts, WorkloadFacts};
use keywheel_core::fingerprint::Fingerprinter;
use keywheel_core::gate::Clocks;
use keywheel_core::plan::{
    Bound, Label, Mode, Part, Plan, ProbePlan, Role, Slot, UrlPart, VersionRef,
};
use keywheel_core::rotation::Rotation;
use keywheel_core::secret::{Credential, Field, SecretName, SecretValue};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::{IssuedId, State, VersionId};
use keywheel_driver::issuer::{Issuer, Live, Mint, Minted, Verdict};
use keywheel_driver::probe::{Asked, Health, Probe};
use keywheel_driver::store::{Edit, Store, Written};
use keywheel_driver::workload::{Ensure, Workload};
use keywheel_driver::{Finding, RefusalKind, slot};
use keywheel_engine::clock::Clock;
use keywheel_engine::limits::Limits;
use keywheel_engine::run::Until;
use keywheel_engine::{Build, Drivers, Engine, Watch};
use keywheel_journal::memory::MemoryJournal;
use keywheel_journal::{Actor, Holder};
use zeroize::Zeroizing;

#[path = "support/plain.rs"]
mod plain;
use plain::{ISSUER, STORE, WORKLOAD, plain_plan};

const START: Timestamp = Timestamp::from_millis(1_000_000_000);
const URL: &str = "postgresql://app_a:first@pooler:6432/app";

#[tokio::test(start_paused = true)]
async fn h72_both_logins_are_listed_until_the_former_is_revoked() {
    let world = World::new(Faults::default());
    assert_eq!(world.rotate().await, Some(Outcome::Completed));
    assert_eq!(world.listed(), ["app_b"], "the former one is gone");
    assert!(world.held().starts_with("postgresql://app_b:"));
}

#[tokio::test(start_paused = true)]
async fn h72_no_replica_is_given_a_login_that_the_pooler_does_not_know() {
    let world = World::new(Faults { deaf_to_new: true, ..Faults::default() });
    assert_eq!(world.rotate().await, Some(Outcome::Undone));
    assert_eq!(world.held(), URL);
}

#[tokio::test(start_paused = true)]
async fn h72_the_way_back_takes_no_login_from_those_who_hold_it() {
    let world = World::new(Faults { red: true, ..Faults::default() });
    assert_eq!(world.rotate().await, Some(Outcome::Undone));
    assert_eq!((world.held().as_str(), world.rolls()), (URL, 2));
    assert_eq!(world.listed(), ["app_a"], "the rejected one is gone");
}

#[tokio::test(start_paused = true)]
async fn h72_a_version_that_the_pooler_still_lets_in_is_not_dead() {
    let world = World::new(Faults { deaf_to_end: true, ..Faults::default() });
    assert_eq!(world.rotate().await, None);
    assert_eq!(world.parked().await.as_deref(), Some("death_unproven"));
}

#[tokio::test(start_paused = true)]
async fn h72_an_emergency_lists_no_suspect_again() {
    let world = World::new(Faults { emergency: true, ..Faults::default() });
    assert_eq!(world.rotate().await, Some(Outcome::Completed));
    assert_eq!(world.listed(), ["app_b"]);
}

/// What goes wrong.
#[derive(Clone, Copy, Default)]
struct Faults {
    /// The pooler does not take up a login that is added.
    deaf_to_new: bool,
    /// The pooler does not take up that a login is gone, and answers by connections that it still has.
    deaf_to_end: bool,
    /// The probe is red.
    red: bool,
    /// The former login is suspect, and is ended before anything is delivered: a declared outage.
    emergency: bool,
}

/// Everything outside of the engine: a server, a pooler before it, a store with a URL, and a replica that reads it.
struct World {
    faults: Faults,
    contents: Mutex<Contents>,
    journal: Arc<MemoryJournal>,
}

struct Contents {
    /// What the server accepts: login, password and label.
    live: BTreeMap<String, (String, Option<Label>)>,
    /// The pooler's list, as it stands in its file and as it was last taken up.
    file: BTreeMap<String, String>,
    taken_up: BTreeMap<String, String>,
    url: String,
    held: String,
    rolls: usize,
}

impl World {
    fn new(faults: Faults) -> Arc<Self> {
        let first = || BTreeMap::from([("app_a".to_owned(), "first".to_owned())]);
        let contents = Contents {
            live: BTreeMap::from([("app_a".into(), ("first".into(), None))]),
            file: first(),
            taken_up: first(),
            url: URL.into(),
            held: URL.into(),
            rolls: 0,
        };
        let journal = Arc::new(MemoryJournal::new("test", Zeroizing::new([7; 32])));
        Arc::new(Self { faults, contents: Mutex::new(contents), journal })
    }

    async fn rotate(self: &Arc<Self>) -> Option<Outcome> {
        let stop = AtomicBool::new(false);
        let engine = Engine {
            journal: self.journal.clone(),
            clock: Arc::new(PausedClock(tokio::time::Instant::now())),
            build: Arc::new(FromWorld(self.clone())),
            random: Arc::new(|buffer: &mut [u8]| buffer.fill(7)),
            holder: Holder { id: "test".into(), name: "test".into() },
            actor: Actor {
                account: "test".into(),
                origin: None,
                host: "test".into(),
                method: "test".into(),
                authenticated: false,
            },
            limits: Limits::new(8),
            watch: Arc::new(Unwatched),
        };
        let mut group = engine.begin(&[Arc::new(self.plan())]).await.unwrap();
        let until = Until { rest: true, patience: Span::days(30), stop: &stop };
        engine.run(&mut group, &until).await.unwrap();
        group.rotations().next().and_then(Rotation::outcome)
    }

    fn plan(&self) -> Plan {
        let first = VersionRef {
            version: VersionId(1),
            issued: Some(IssuedId::new("app_a")),
            state: State::Active,
            fingerprint: None,
        };
        let secret = SecretName::new("database", "production").unwrap();
        let mut plan = plain_plan(&secret, first, VersionId(2));
        plan.stores[0].slots[0].part = Part::Url(UrlPart::Userinfo);
        let mut pooler = plan.stores[0].clone();
        pooler.bound.name = "pooler".into();
        pooler.facts.answers_logins = true;
        pooler.slots = ["app_a", "app_b"]
            .map(|login| Slot {
                address: login.into(),
                role: Role::Current,
                part: Part::PasswordOf(login.into()),
            })
            .into();
        plan.stores.push(pooler);
        let bound = Bound { name: "probe".into(), driver: serde_json::json!({}) };
        plan.probes = vec![ProbePlan { bound }];
        if self.faults.emergency {
            plan.mode = Mode::Emergency { revoke_first: true, stage_for: Span::minutes(10) };
            plan.previous.as_mut().unwrap().state = State::Compromised;
        }
        plan
    }

    fn with<T>(&self, act: impl FnOnce(&mut Contents) -> T) -> T {
        let mut contents = self.contents.lock().unwrap();
        let done = act(&mut contents);
        let held = login_of(&contents.held);
        let is_let_in = contents.lets_in(&held) || self.faults.emergency;
        assert!(is_let_in, "a replica holds a login that is refused");
        done
    }

    fn listed(&self) -> Vec<String> {
        self.with(|contents| contents.taken_up.keys().cloned().collect())
    }

    fn held(&self) -> String {
        self.with(|contents| contents.held.clone())
    }

    fn rolls(&self) -> usize {
        self.with(|contents| contents.rolls)
    }

    async fn parked(&self) -> Option<String> {
        use keywheel_journal::Journal;
        let rotation = self.journal.rotations(None).await.unwrap().remove(0).rotation;
        let records = self.journal.records(&rotation).await.unwrap();
        records.into_iter().rev().find_map(|record| match record.event {
            Event::Parked { reason, .. } => {
                Some(serde_json::to_value(reason).unwrap().as_str()?.to_owned())
            }
            _ => None,
        })
    }
}

impl Contents {
    fn accepts(&self, login: &Credential) -> bool {
        let (username, password) = pair(login);
        self.live.get(&username).is_some_and(|(live, _)| *live == password)
    }

    fn lets_in(&self, login: &Credential) -> bool {
        let (username, password) = pair(login);
        self.taken_up.get(&username) == Some(&password) && self.accepts(login)
    }
}

fn pair(login: &Credential) -> (String, String) {
    let field = |name| login.field(&Field::new(name)).unwrap().expose().to_vec();
    let text = |name| String::from_utf8(field(name)).unwrap();
    (text("username"), text("password"))
}

fn login(username: &str, password: &str) -> Credential {
    Credential::default()
        .with(Field::new("username"), SecretValue::new(username.into()))
        .with(Field::new("password"), SecretValue::new(password.into()))
}

fn login_of(url: &str) -> Credential {
    slot::extract(&Part::Url(UrlPart::Userinfo), &SecretValue::new(url.into())).ok().unwrap()
}

fn text(value: &SecretValue) -> String {
    String::from_utf8(value.expose().to_vec()).unwrap()
}

struct FromWorld(Arc<World>);

impl Build for FromWorld {
    fn build(&self, _plan: &Plan) -> Result<Drivers, Refusal> {
        Ok(Drivers {
            issuer: self.0.clone(),
            stores: vec![Arc::new(App(self.0.clone())), Arc::new(Pooler(self.0.clone()))],
            workloads: vec![self.0.clone()],
            probes: vec![self.0.clone()],
        })
    }
}

#[async_trait]
impl Issuer for World {
    fn facts(&self) -> IssuerFacts {
        ISSUER
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        let password = format!("kwcanary of {}", request.label.0);
        let entry = (password.clone(), Some(request.label.clone()));
        self.with(|contents| contents.live.insert("app_b".into(), entry));
        let credential = Some(login("app_b", &password));
        Ok(Minted { issued: Some(IssuedId::new("app_b")), credential, ..Minted::default() })
    }

    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        let accepted = self.with(|contents| contents.accepts(credential));
        Ok(if accepted { Verdict::Accepted } else { Verdict::Refused })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Live>, CallError> {
        Ok(self.with(|contents| {
            let listed = contents.live.iter().map(|(login, (_, label))| Live {
                issued: IssuedId::new(login.clone()),
                label: label.clone(),
            });
            let begins = |live: &Live| match &live.label {
                Some(label) => label.0.starts_with(prefix),
                None => prefix.is_empty(),
            };
            listed.filter(begins).collect()
        }))
    }

    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError> {
        self.with(|contents| contents.live.remove(&id.id));
        Ok(())
    }
}

struct App(Arc<World>);

#[async_trait]
impl Store for App {
    fn facts(&self) -> StoreFacts {
        STORE
    }

    fn container(&self) -> String {
        "file:/srv/.env".into()
    }

    async fn preflight(&self, _addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    async fn read(&self, _addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        Ok(vec![Some(SecretValue::new(self.0.with(|contents| contents.url.clone()).into()))])
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        let url = text(edits[0].value.unwrap());
        self.0.with(|contents| contents.url = url);
        Ok(Written { changed: true })
    }
}

struct Pooler(Arc<World>);

#[async_trait]
impl Store for Pooler {
    fn facts(&self) -> StoreFacts {
        StoreFacts { answers_logins: true, ..STORE }
    }

    fn container(&self) -> String {
        "file:/etc/pgbouncer/userlist.txt".into()
    }

    async fn preflight(&self, _addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    async fn read(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        let file = self.0.with(|contents| contents.file.clone());
        let held = |login| file.get(login).map(|held| SecretValue::new(held.clone().into()));
        Ok(addresses.iter().map(held).collect())
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        let conflict = || Refusal::operator(RefusalKind::Conflict, "it holds something else");
        self.0.with(|contents| {
            for edit in edits {
                let held = contents.file.get(edit.address);
                let held = held.map(|held| SecretValue::new(held.clone().into()));
                if !edit.accepts(held.as_ref()) {
                    return Err(conflict().into());
                }
                match edit.value {
                    Some(value) => drop(contents.file.insert(edit.address.into(), text(value))),
                    None => drop(contents.file.remove(edit.address)),
                }
            }
            let (file, faults) = (contents.file.clone(), self.0.faults);
            let (old, new) = (&mut contents.taken_up, file);
            old.retain(|login, _| faults.deaf_to_end || new.contains_key(login));
            let knows = |login: &String, old: &BTreeMap<_, _>| old.contains_key(login);
            for (login, password) in new {
                if !faults.deaf_to_new || knows(&login, old) {
                    old.insert(login, password);
                }
            }
            Ok(Written { changed: true })
        })
    }

    async fn lets_in(&self, credential: &Credential) -> Result<Verdict, CallError> {
        let (username, password) = pair(credential);
        let let_in = self.0.with(|contents| match self.0.faults.deaf_to_end {
            true => contents.taken_up.get(&username) == Some(&password),
            false => contents.lets_in(credential),
        });
        Ok(if let_in { Verdict::Accepted } else { Verdict::Refused })
    }
}

#[async_trait]
impl Workload for World {
    fn facts(&self) -> WorkloadFacts {
        WORKLOAD
    }

    fn resource(&self) -> String {
        "backend".into()
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    async fn observe(
        &self,
        slots: &[String],
        fingerprinter: &Fingerprinter,
    ) -> Result<Vec<Replica>, CallError> {
        let held = fingerprinter.of(self.held().as_bytes());
        let shown = slots.iter().map(|slot| (slot.clone(), held)).collect();
        Ok(vec![Replica { id: "1".into(), started_at: None, shows: Shows::Slots(shown) }])
    }

    async fn roll(&self, _ensure: &Ensure<'_>) -> Result<(), CallError> {
        self.with(|contents| {
            contents.rolls += 1;
            contents.held = contents.url.clone();
        });
        Ok(())
    }
}

#[async_trait]
impl Probe for World {
    async fn ask(&self, _asked: &Asked) -> Result<Health, CallError> {
        let is_new = !self.held().starts_with("postgresql://app_a:");
        Ok(if self.faults.red && is_new { Health::Red("it is red".into()) } else { Health::Green })
    }
}

struct Unwatched;

impl Watch for Unwatched {
    fn recorded(&self, _rotation: &Rotation, _event: &Event, _at: Timestamp) {}
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
