//! The drivers of the simulated world: they carry the engine's calls to the [`World`](crate::world::World) and back.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use async_trait::async_trait;
use keywheel_core::evidence::{Replica, Shows};
use keywheel_core::facts::{IssuerFacts, ReadBack, StoreFacts, ValueOrigin, WorkloadFacts};
use keywheel_core::fingerprint::{Fingerprint, Fingerprinter};
use keywheel_core::plan::{Label, Plan};
use keywheel_core::secret::{Credential, SecretValue};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{
    Extend, LastUsed, Live, Mint, Minted, Randomness, Suspend, Tokens, Usage, Verdict,
};
use keywheel_driver::probe::{Asked, Health};
use keywheel_driver::store::{Accept, Edit, Written};
use keywheel_driver::workload::{Answer as Token, Ensure};
use keywheel_driver::{CallError, Finding, Issuer, Probe, Refusal, Store, Workload, slot};
use keywheel_engine::{Build, Drivers};
use smallvec::SmallVec;

use crate::world::{
    Answer, EPOCH, Expected, Held, Millis, Request, Shared, State, bytes_of, held_of,
};

/// Builds the drivers of a plan for one process.
pub(crate) struct SimBuild {
    pub(crate) world: Shared,
    pub(crate) process: usize,
}

impl Build for SimBuild {
    fn build(&self, plan: &Plan) -> Result<Drivers, Refusal> {
        let secret = index(plan.secret.name());
        let line = Line { world: self.world.clone(), process: self.process, secret };
        let slots = |store: &keywheel_core::plan::StorePlan| {
            store.slots.first().map_or(0, |slot| index(&slot.address))
        };
        Ok(Drivers {
            issuer: Arc::new(SimIssuer { line: line.clone(), facts: plan.issuer.facts.clone() }),
            stores: plan
                .stores
                .iter()
                .map(|store| -> Arc<dyn Store> {
                    Arc::new(SimStore {
                        line: line.clone(),
                        facts: store.facts.clone(),
                        slot: slots(store),
                    })
                })
                .collect(),
            workloads: plan
                .workloads
                .iter()
                .map(|planned| -> Arc<dyn Workload> {
                    Arc::new(SimWorkload {
                        line: line.clone(),
                        facts: planned.facts,
                        workload: index(&planned.bound.name),
                    })
                })
                .collect(),
            probes: plan
                .probes
                .iter()
                .map(|_| -> Arc<dyn Probe> {
                    let workloads =
                        plan.workloads.iter().map(|planned| index(&planned.bound.name)).collect();
                    Arc::new(SimProbe { line: line.clone(), workloads })
                })
                .collect(),
        })
    }
}

/// The number at the end of a name.
pub(crate) fn index(name: &str) -> usize {
    let digits = name.trim_start_matches(|letter: char| !letter.is_ascii_digit());
    digits.parse().expect("names of the simulated world end in a number")
}

fn index_of_slot(name: &str) -> usize {
    index(slot::parts(name).1)
}

/// The way of one process's calls for one secret.
#[derive(Clone)]
struct Line {
    world: Shared,
    process: usize,
    secret: usize,
}

impl Line {
    async fn call(&self, request: Request) -> Result<Answer, CallError> {
        let number = self.world.lock().begin(self.process, self.secret, request);
        poll_fn(|_| match self.world.lock().poll(number) {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        })
        .await
    }
}

struct SimIssuer {
    line: Line,
    facts: IssuerFacts,
}

impl SimIssuer {
    async fn end(&self, id: &IssuedId, to: State) -> Result<(), CallError> {
        let request = Request::End {
            secret: self.line.secret,
            name: id.id.clone(),
            generation: id.generation,
            to,
        };
        self.line.call(request).await.map(drop)
    }
}

#[async_trait]
impl Issuer for SimIssuer {
    fn facts(&self) -> IssuerFacts {
        self.facts.clone()
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        self.line.call(Request::Check).await.map(|_| Vec::new())
    }

    fn generate(
        &self,
        _random: Randomness<'_>,
        _previous: Option<&IssuedId>,
    ) -> Option<Credential> {
        let ours = self.facts.value == ValueOrigin::Ours;
        ours.then(|| credential(self.line.world.lock().make(self.line.secret)))
    }

    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        let request = Request::Mint {
            secret: self.line.secret,
            label: request.label.0.clone(),
            value: request.value.and_then(value_of),
            previous: request.previous.map(|id| (id.id.clone(), id.generation)),
        };
        match self.line.call(request).await? {
            Answer::Minted { name, value, expires_at } => Ok(Minted {
                issued: name.map(|(id, generation)| IssuedId { id, generation }),
                credential: value.map(credential),
                expires_at: expires_at.map(|at| Timestamp::from_millis(EPOCH + at)),
                notes: Vec::new(),
            }),
            _ => Err(nonsense()),
        }
    }

    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        let Some(value) = value_of(credential) else { return Ok(Verdict::Refused) };
        match self.line.call(Request::Verify { secret: self.line.secret, value }).await? {
            Answer::Verdict(true) => Ok(Verdict::Accepted),
            Answer::Verdict(false) => Ok(Verdict::Refused),
            _ => Err(nonsense()),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Live>, CallError> {
        match self
            .line
            .call(Request::List { secret: self.line.secret, prefix: prefix.to_owned() })
            .await?
        {
            Answer::Listed(listed) => Ok(listed
                .into_iter()
                .map(|(id, generation, label)| Live {
                    issued: IssuedId { id, generation },
                    label: label.map(Label),
                })
                .collect()),
            _ => Err(nonsense()),
        }
    }

    async fn reread(&self, id: &IssuedId) -> Result<Option<Credential>, CallError> {
        if self.facts.value != ValueOrigin::TheirsRereadable {
            return Ok(None);
        }
        match self
            .line
            .call(Request::Reread { secret: self.line.secret, name: id.id.clone() })
            .await?
        {
            Answer::Value(value) => Ok(value.map(credential)),
            _ => Err(nonsense()),
        }
    }

    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError> {
        self.end(id, State::Revoked).await
    }

    fn suspend(&self) -> Option<&dyn Suspend> {
        if self.facts.suspend { Some(self) } else { None }
    }

    fn usage(&self) -> Option<&dyn Usage> {
        if self.facts.last_used.is_some() { Some(self) } else { None }
    }

    fn extend(&self) -> Option<&dyn Extend> {
        Some(self)
    }

    fn tokens(&self) -> Option<&dyn Tokens> {
        Some(self)
    }
}

#[async_trait]
impl Suspend for SimIssuer {
    async fn suspend(&self, id: &IssuedId) -> Result<(), CallError> {
        self.end(id, State::Suspended).await
    }

    async fn resume(&self, id: &IssuedId) -> Result<(), CallError> {
        self.end(id, State::Live).await
    }
}

#[async_trait]
impl Usage for SimIssuer {
    async fn last_used(&self, id: &IssuedId) -> Result<LastUsed, CallError> {
        let request = Request::LastUsed {
            secret: self.line.secret,
            name: id.id.clone(),
            generation: id.generation,
        };
        match self.line.call(request).await? {
            Answer::Used(at) => {
                Ok(LastUsed { at: at.map(|at| Timestamp::from_millis(EPOCH + at)), detail: None })
            }
            _ => Err(nonsense()),
        }
    }
}

#[async_trait]
impl Extend for SimIssuer {
    async fn extend(&self, id: &IssuedId) -> Result<Timestamp, CallError> {
        match self
            .line
            .call(Request::Extend { secret: self.line.secret, name: id.id.clone() })
            .await?
        {
            Answer::Until(at) => Ok(Timestamp::from_millis(EPOCH + at)),
            _ => Err(nonsense()),
        }
    }
}

impl Tokens for SimIssuer {
    fn harmless(&self, credential: &Credential, _now: Timestamp) -> Option<SecretValue> {
        credential.value().map(SecretValue::duplicate)
    }
}

struct SimStore {
    line: Line,
    facts: StoreFacts,
    slot: usize,
}

#[async_trait]
impl Store for SimStore {
    fn facts(&self) -> StoreFacts {
        self.facts.clone()
    }

    fn container(&self) -> String {
        format!("container {}", self.line.world.lock().slots[self.slot].container)
    }

    async fn preflight(&self, _addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        self.line.call(Request::Examine { slot: self.slot }).await.map(|_| Vec::new())
    }

    async fn read(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        assert!(self.facts.is_readable(), "a store that cannot be read is read");
        let slots = addresses.iter().map(|address| index(address)).collect();
        match self.line.call(Request::Read { slots, stale: false }).await? {
            Answer::Slots(held) => Ok(held.into_iter().map(bytes).collect()),
            _ => Err(nonsense()),
        }
    }

    async fn changed_at(&self, addresses: &[String]) -> Result<Vec<Option<Timestamp>>, CallError> {
        assert_eq!(self.facts.read_back, ReadBack::Timestamp, "a store that has no times is asked");
        let slots = addresses.iter().map(|address| index(address)).collect();
        let Answer::Times(times) = self.line.call(Request::Changed { slots }).await? else {
            return Err(nonsense());
        };
        let at = |time: Millis| Timestamp::from_millis(EPOCH + time);
        Ok(times.into_iter().map(|time| time.map(at)).collect())
    }

    async fn clean_up(&self) -> Result<Vec<String>, CallError> {
        self.line.call(Request::CleanUp).await.map(|_| Vec::new())
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        let held = |value: Option<&SecretValue>| {
            value.map_or(Held::Absent, |value| held_of(value.expose()))
        };
        let owned = edits.iter().map(|edit| crate::world::Edit {
            slot: index(edit.address),
            accept: match &edit.accept {
                Accept::Anything => None,
                Accept::OneOf(accepted) => {
                    Some(accepted.iter().map(|accepted| held(*accepted)).collect())
                }
            },
            value: held(edit.value),
        });
        let request = Request::Write { secret: self.line.secret, edits: owned.collect() };
        match self.line.call(request).await? {
            Answer::Written(changed) => Ok(Written { changed }),
            _ => Err(nonsense()),
        }
    }
}

struct SimWorkload {
    line: Line,
    facts: WorkloadFacts,
    workload: usize,
}

#[async_trait]
impl Workload for SimWorkload {
    fn facts(&self) -> WorkloadFacts {
        self.facts
    }

    fn resource(&self) -> String {
        format!("workload {}", self.workload)
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        self.line.call(Request::Check).await.map(|_| Vec::new())
    }

    async fn observe(
        &self,
        slots: &[String],
        _: &Fingerprinter,
    ) -> Result<Vec<Replica>, CallError> {
        let indices = slots.iter().map(|slot| index_of_slot(slot)).collect();
        let request = Request::Observe { workload: self.workload, slots: indices, hidden: false };
        let Answer::Replicas(replicas) = self.line.call(request).await? else {
            return Err(nonsense());
        };
        let mut world = self.line.world.lock();
        let known = &world.workloads[self.workload];
        let (shows_slots, is_live) = (known.shows_slots, known.is_live);
        let shown =
            replicas.into_iter().enumerate().map(|(number, (started_wall, held))| Replica {
                id: number.to_string(),
                started_at: Some(Timestamp::from_millis(started_wall)),
                shows: if shows_slots {
                    let held = slots.iter().zip(held).filter_map(|(slot, held)| {
                        world.fingerprint_of(held).map(|fingerprint| (slot.clone(), fingerprint))
                    });
                    Shows::Slots(held.collect())
                } else if is_live {
                    Shows::Live { shown: Vec::new(), unseen: slots.to_vec() }
                } else {
                    Shows::FixedAtStart
                },
            });
        Ok(shown.collect())
    }

    async fn roll(&self, ensure: &Ensure<'_>) -> Result<(), CallError> {
        let slots: SmallVec<[(usize, Option<Fingerprint>); 4]> = ensure
            .slots
            .iter()
            .map(|(slot, fingerprint)| (index_of_slot(slot), *fingerprint))
            .collect();
        let expected = Expected {
            slots,
            held_since: ensure.held_since.millis() as Millis,
            untouched_before: ensure.untouched_before.map(|before| before.millis() as Millis),
        };
        self.line
            .call(Request::Roll { workload: self.workload, expected, skips: false })
            .await
            .map(drop)
    }

    async fn present(&self, token: &SecretValue) -> Result<Vec<Token>, CallError> {
        let Held::Value(value) = held_of(token.expose()) else { return Ok(Vec::new()) };
        let request = Request::Present { workload: self.workload, value, secret: self.line.secret };
        let Answer::Answers(answers) = self.line.call(request).await? else {
            return Err(nonsense());
        };
        let answer = |(number, accepted): (usize, bool)| Token {
            replica: number.to_string(),
            accepted: Some(accepted),
        };
        Ok(answers.into_iter().enumerate().map(answer).collect())
    }
}

struct SimProbe {
    line: Line,
    workloads: SmallVec<[usize; 2]>,
}

#[async_trait]
impl Probe for SimProbe {
    async fn ask(&self, _asked: &Asked) -> Result<Health, CallError> {
        match self.line.call(Request::Ask { workloads: self.workloads.clone() }).await? {
            Answer::Health(true) => Ok(Health::Green),
            Answer::Health(false) => Ok(Health::Red("it does not answer".into())),
            _ => Err(nonsense()),
        }
    }
}

/// The credential of a value.
pub(crate) fn credential(value: u16) -> Credential {
    Credential::of_value(SecretValue::new(bytes_of(value).to_vec()))
}

/// The value of a credential.
pub(crate) fn value_of(credential: &Credential) -> Option<u16> {
    match held_of(credential.value()?.expose()) {
        Held::Value(value) => Some(value),
        Held::Absent | Held::Empty => None,
    }
}

fn bytes(held: Held) -> Option<SecretValue> {
    match held {
        Held::Absent => None,
        Held::Empty => Some(SecretValue::new(Vec::new())),
        Held::Value(value) => Some(SecretValue::new(bytes_of(value).to_vec())),
    }
}

fn nonsense() -> CallError {
    CallError::Unknown("an answer to another question".into())
}

/// The clocks of the simulated world.
pub(crate) struct SimClock(pub(crate) Shared);

/// What an engine is stopped with that reads the clock again and again without ever waiting: such a loop never comes back to
/// the executor, which could not end it otherwise.
pub(crate) struct Endless;

/// More readings of the clock than any turn of a life takes.
const CLOCK_READS: u32 = 10_000;

#[async_trait]
impl keywheel_engine::clock::Clock for SimClock {
    fn now(&self) -> Timestamp {
        let mut world = self.0.lock();
        world.clock_reads += 1;
        if world.clock_reads > CLOCK_READS {
            drop(world);
            std::panic::resume_unwind(Box::new(Endless));
        }
        world.wall()
    }

    fn clocks(&self) -> keywheel_core::gate::Clocks {
        let world = self.0.lock();
        keywheel_core::gate::Clocks {
            wall: world.wall(),
            boot: Span::millis((world.now - world.boot_from).max(0) as u64),
            boot_id: world.boot_id,
            outside: world.outside_clock.then(|| Timestamp::from_millis(EPOCH + world.now)),
        }
    }

    async fn sleep_until(&self, until: Timestamp) {
        poll_fn(|_| {
            let mut world = self.0.lock();
            if world.wall() >= until {
                return Poll::Ready(());
            }
            let wake = world.true_time(until);
            world.wake_at(wake);
            Poll::Pending
        })
        .await;
    }

    fn hears_within(&self) -> Span {
        Span::days(3_650)
    }
}
