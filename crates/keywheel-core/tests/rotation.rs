//! The state machine, asked step by step.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::sync::Arc;

use keywheel_core::batch::{Turn, turn};
use keywheel_core::call::{Refusal, RefusalKind};
use keywheel_core::due::{Lease, LeaseNeed, keep_alive};
use keywheel_core::event::{Because, Death, Event, Outcome, ParkReason, Report, Step};
use keywheel_core::evidence::Count;
use keywheel_core::facts::{
    Authority, IssuerFacts, LastUsedFacts, LeaseFacts, Observe, Pickup, ReadBack, Revert,
    StoreFacts, ValueOrigin, WorkloadFacts,
};
use keywheel_core::forecast::forecast;
use keywheel_core::gate::{Clocks, UsageSample, Visit};
use keywheel_core::inventory::{Inventory, Queued, Staged, Version};
use keywheel_core::plan::{
    Bound, CannotTell, FORMAT, IssuerPlan, Mode, Part, Plan, Policy, ProbePlan, Reason, Role, Slot,
    StorePlan, VersionRef, WorkloadPlan,
};
use keywheel_core::rotation::{Next, NoWayBack, Rotation, Why};
use keywheel_core::secret::Field;
use keywheel_core::strategy::{Side, Strategy};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::{IssuedId, Stage, State, VersionId};
use proptest::prelude::{prop, prop_assert, proptest};

const START: Timestamp = Timestamp::from_millis(1_000_000);
const KEYRING: Strategy =
    Strategy::Keyring { longest_token: Span::minutes(15), skew: Span::minutes(2) };

fn bound(name: &str) -> Bound {
    Bound { name: name.into(), driver: serde_json::json!({}) }
}

fn plan(strategy: Strategy) -> Plan {
    let authority = if strategy == KEYRING { Authority::Workload } else { Authority::Issuer };
    let own = strategy == KEYRING;
    Plan {
        format: FORMAT,
        installation: "test".into(),
        secret: "openai@production".parse().unwrap(),
        reason: Reason::Requested,
        because: None,
        strategy,
        mode: Mode::Normal,
        previous: Some(VersionRef {
            version: VersionId(7),
            issued: (!own).then(|| IssuedId::new("old")),
            state: State::Active,
            fingerprint: None,
        }),
        pending: VersionId(8),
        suspects: vec![],
        takes_over: None,
        inherits_until: None,
        incident: None,
        extend: false,
        batch: vec![],
        folder: "/srv".into(),
        issuer: IssuerPlan {
            bound: bound("issuer"),
            facts: IssuerFacts {
                label: !own,
                settable_old_value: own,
                destroy: !own,
                last_used: (!own).then_some(LastUsedFacts {
                    lag: Span::minutes(5),
                    granularity: Span::minutes(1),
                }),
                propagation: Span::seconds(30),
                settle_for: Span::seconds(60),
                ..IssuerFacts::new(
                    if own { ValueOrigin::Ours } else { ValueOrigin::Theirs },
                    if own { Observe::Probe } else { Observe::Label },
                    authority,
                )
            },
        },
        stores: vec![StorePlan {
            bound: bound("app"),
            facts: StoreFacts {
                read_back: ReadBack::Value,
                conditional: true,
                staged: false,
                revert: Revert::Restore,
                history: false,
                pickup: Pickup::Roll,
                settle_for: Span::seconds(5),
                answers_logins: false,
                leaves_behind: false,
                longest_run: None,
            },
            slots: vec![Slot {
                address: "KEY".into(),
                role: Role::Current,
                part: Part::Plain(Field::value()),
            }],
            pin: None,
        }],
        workloads: vec![WorkloadPlan {
            bound: bound("backend"),
            facts: WorkloadFacts {
                settle_for: Span::seconds(60),
                start_granularity: Span::millis(20),
                answers_tokens: own,
                gap: false,
            },
            reads: vec![0],
            pin: None,
        }],
        probes: vec![],
        policy: Policy::default(),
    }
}

/// A rotation in a world that answers as it is told.
struct World {
    rotation: Rotation,
    now: Timestamp,
    steps: Vec<Step>,
    last_used_at: Option<Timestamp>,
    probes: Option<bool>,
    /// How far the wall clock was set back in all.
    set_back: Span,
}

impl World {
    fn new(plan: Plan) -> Self {
        let rotation = Rotation::begin(START, &Event::Planned(Arc::new(plan))).unwrap();
        Self {
            rotation,
            now: START,
            steps: vec![],
            last_used_at: None,
            probes: None,
            set_back: Span::ZERO,
        }
    }

    fn apply(&mut self, event: Event) {
        self.rotation.apply(self.now, &event).unwrap();
    }

    /// Begins the step that is owed, waiting and recording on the way.
    fn begin(&mut self) -> Result<Step, Next> {
        for _ in 0..1_000 {
            match self.rotation.next(self.now) {
                Next::Do(step) => {
                    let until = self.now + Span::seconds(30);
                    let clocks = Some(self.clocks());
                    self.apply(Event::Intended { step, until, clocks });
                    self.steps.push(step);
                    return Ok(step);
                }
                Next::Record(event) => self.apply(event),
                Next::Wait { until, .. } => {
                    assert!(until > self.now, "a wait that is over");
                    self.now = until;
                }
                other => return Err(other),
            }
        }
        panic!("no step in 1,000 turns");
    }

    fn clocks(&self) -> Clocks {
        let boot = (self.now + self.set_back).since(START);
        Clocks { wall: self.now, boot, boot_id: 1, outside: None }
    }

    fn set_back(&mut self, by: Span) {
        self.now = Timestamp::from_millis(self.now.millis() - by.as_millis() as i64);
        self.set_back = self.set_back + by;
    }

    fn report(&self, step: Step) -> Report {
        let wall = self.now;
        match step {
            Step::Mint { .. } => Report::Minted {
                issued: Some(IssuedId::new("new")),
                fingerprint: None,
                expires_at: None,
                notes: Vec::new(),
            },
            Step::FindMint { .. } => Report::Found { issued: None, held: false, fingerprint: None },
            Step::Write { .. } => Report::Written { changed: true, changed_at: Vec::new() },
            Step::Evidence { .. } => Report::Seen(Count { holds: 3, other: 0, unknown: 0 }),
            Step::Sweep => Report::Swept { strays: vec![] },
            Step::VerifyDead(_) => Report::Dead(Death::Refused),
            Step::Visit => Report::Visited(Box::new(Visit {
                clocks: self.clocks(),
                probes: self.probes,
                stores: Some(true),
                evidence: vec![Count { holds: 3, other: 0, unknown: 0 }],
                usage: Some(UsageSample { asked_at: wall, last_used_at: self.last_used_at }),
                notes: vec![],
            })),
            _ => Report::Plain,
        }
    }

    fn finish(&mut self, step: Step) {
        let report = self.report(step);
        self.apply(Event::Done { step, report });
    }

    /// Does one step well.
    fn step(&mut self) -> Result<Step, Next> {
        let step = self.begin()?;
        self.now = self.now + Span::seconds(1);
        self.finish(step);
        Ok(step)
    }

    fn until(&mut self, wanted: impl Fn(Step) -> bool) -> Step {
        loop {
            let step =
                self.begin().unwrap_or_else(|next| panic!("{next:?} after {:?}", self.steps));
            if wanted(step) {
                return step;
            }
            self.now = self.now + Span::seconds(1);
            self.finish(step);
        }
    }

    fn run_to_rest(&mut self) -> Next {
        loop {
            if let Err(end) = self.step() {
                return end;
            }
        }
    }

    fn refuse(&mut self, step: Step, kind: RefusalKind) {
        self.apply(Event::Refused { step, refusal: Refusal::operator(kind, "no") });
    }
}

fn is_write(to: u8) -> impl Fn(Step) -> bool {
    move |step| matches!(step, Step::Write { to: written, .. } if written == to)
}

#[test]
fn an_overlap_goes_from_end_to_end() {
    let mut world = World::new(plan(Strategy::Overlap));
    assert_eq!(world.run_to_rest(), Next::Rest(Outcome::Completed));
    let steps: Vec<Step> =
        world.steps.iter().copied().filter(|step| *step != Step::Visit).collect();
    let (old, new) = (VersionId(7), VersionId(8));
    assert_eq!(
        steps,
        [
            Step::Preflight,
            Step::Capture,
            Step::Mint { attempt: 1 },
            Step::Verify(new),
            Step::Write { store: 0, to: 1 },
            Step::Roll { workload: 0, to: 1 },
            Step::Evidence { workload: 0, to: 1 },
            Step::Revoke(old),
            Step::VerifyDead(old),
            Step::Sweep,
        ]
    );
    assert!(world.now.since(START) >= Span::hours(24), "soaked for {}", world.now.since(START));
}

#[test]
fn a_store_that_was_never_written_is_not_asked_to_clean_up() {
    let cleaned = |refuses: fn(Step) -> bool| {
        let mut plan = plan(Strategy::Overlap);
        let mut second = plan.stores[0].clone();
        second.bound.name = "second".into();
        plan.stores.push(second);
        plan.stores.iter_mut().for_each(|store| store.facts.leaves_behind = true);
        let mut world = World::new(plan);
        let mut at = world.until(refuses);
        while let Step::Mint { .. } | Step::Write { .. } = at {
            world.refuse(at, RefusalKind::Permission);
            at = match world.begin() {
                Ok(step) => step,
                Err(_) => break,
            };
        }
        world.finish(at);
        world.run_to_rest();
        let steps = world.steps.into_iter();
        steps.filter(|step| matches!(step, Step::CleanUp { .. })).collect::<Vec<_>>()
    };
    let [first, second] = [0, 1].map(|store| Step::CleanUp { store });
    assert_eq!(cleaned(|step| matches!(step, Step::Sweep)), [first, second]);
    assert_eq!(cleaned(|step| matches!(step, Step::Mint { .. })), []);
    assert_eq!(cleaned(|step| step == Step::Write { store: 0, to: 1 }), [first]);
}

#[test]
fn a_keyring_waits_for_tokens_and_never_calls_an_issuer() {
    let mut world = World::new(plan(KEYRING));
    assert_eq!(world.run_to_rest(), Next::Rest(Outcome::Completed));
    let writes: Vec<Step> =
        world.steps.iter().copied().filter(|step| matches!(step, Step::Write { .. })).collect();
    assert_eq!(writes, [1, 2, 3].map(|to| Step::Write { store: 0, to }));
    assert!(!world.steps.iter().any(|step| matches!(step, Step::Revoke(_) | Step::Sweep)));
    assert!(world.now.since(START) >= Span::days(8), "soak and rollback window");
}

#[test]
fn a_forecast_is_what_the_state_machine_does() {
    let coming = forecast(&[Arc::new(plan(Strategy::Overlap))], START);
    let mut world = World::new(plan(Strategy::Overlap));
    world.run_to_rest();
    let forecast: Vec<Step> = coming
        .iter()
        .filter_map(|coming| match coming.event {
            Event::Intended { step, .. } => Some(step),
            _ => None,
        })
        .collect();
    let done: Vec<Step> = world.steps.into_iter().filter(|step| *step != Step::Visit).collect();
    assert_eq!(forecast, done);
}

#[test]
fn a_batch_shares_its_rolls_and_a_short_walk_joins_the_last_one() {
    let mut jwt = plan(KEYRING);
    jwt.secret = "jwt@production".parse().unwrap();
    let coming = forecast(&[Arc::new(jwt), Arc::new(plan(Strategy::Overlap))], START);
    let rolls: Vec<(Vec<usize>, Step)> = coming
        .iter()
        .filter_map(|coming| match coming.event {
            Event::Intended { step: step @ Step::Roll { .. }, .. } => {
                Some((coming.members.clone(), step))
            }
            _ => None,
        })
        .collect();
    let roll = |to| Step::Roll { workload: 0, to };
    assert_eq!(rolls, [(vec![0], roll(1)), (vec![0, 1], roll(2)), (vec![0], roll(3))]);
    let first_roll = coming
        .iter()
        .position(|coming| matches!(coming.event, Event::Intended { step: Step::Roll { .. }, .. }));
    let verified = coming
        .iter()
        .position(|coming| matches!(coming.event, Event::Intended { step: Step::Verify(_), .. }));
    assert!(verified < first_roll, "every version is verified before the first roll");
}

#[test]
fn members_that_share_some_of_their_workloads_share_each_roll_of_those() {
    let reads = |secret: &str, names: &[&str]| {
        let mut plan = plan(Strategy::Overlap);
        plan.secret = format!("{secret}@production").parse().unwrap();
        let named = |name: &&str| {
            let mut workload = plan.workloads[0].clone();
            workload.bound.name = (*name).into();
            workload
        };
        plan.workloads = names.iter().map(named).collect();
        Arc::new(plan)
    };
    let plans = [
        reads("a", &["worker"]),
        reads("b", &["backend", "worker"]),
        reads("c", &["backend", "edge"]),
        reads("d", &["edge", "worker"]),
    ];
    let rolls: Vec<(Vec<usize>, String)> = forecast(&plans, START)
        .iter()
        .filter_map(|coming| match coming.event {
            Event::Intended { step: Step::Roll { workload, .. }, .. } => {
                let workloads = &plans[coming.members[0]].workloads;
                let name = workloads[usize::from(workload)].bound.name.clone();
                Some((coming.members.clone(), name))
            }
            _ => None,
        })
        .collect();
    let expected = [(vec![1, 2], "backend"), (vec![2, 3], "edge"), (vec![0, 1, 3], "worker")];
    assert_eq!(rolls, expected.map(|(members, name)| (members, name.to_owned())));
}

#[test]
fn h40_on_the_way_back_every_member_writes_before_anybody_rolls() {
    let named = |name: &str| {
        let mut plan = plan(Strategy::Overlap);
        plan.secret = format!("{name}@production").parse().unwrap();
        World::new(plan)
    };
    let mut worlds = [named("first"), named("second")];
    for world in &mut worlds {
        let step = world.until(|step| matches!(step, Step::Roll { .. }));
        world.refuse(step, RefusalKind::WorkloadFailed);
    }
    let mut taken = Vec::new();
    while taken.len() < 3 {
        let now = worlds[0].now.max(worlds[1].now);
        let members: Vec<&Rotation> = worlds.iter().map(|world| &world.rotation).collect();
        match turn(&members, now) {
            Turn::Record(member, event) => worlds[member].apply(event),
            Turn::Do(steps) => {
                for (member, step) in steps {
                    worlds[member].apply(Event::Intended { step, until: now, clocks: None });
                    worlds[member].finish(step);
                    if !matches!(step, Step::Evidence { .. }) {
                        taken.push((member, matches!(step, Step::Write { .. })));
                    }
                }
            }
            other => panic!("{other:?} after {taken:?}"),
        }
    }
    assert_eq!(taken, [(0, true), (1, true), (0, false)]);
}

/// A plan whose versions a person makes.
fn by_hand(name: &str) -> Plan {
    let mut plan = plan(Strategy::Overlap);
    plan.secret = format!("{name}@production").parse().unwrap();
    plan.issuer.facts.by_hand = Some(Span::minutes(15));
    plan.issuer.facts.settle_for = Span::ZERO;
    plan
}

#[test]
fn a_person_is_asked_before_any_other_member_of_a_batch_is_begun() {
    let plans = [Arc::new(plan(Strategy::Overlap)), Arc::new(by_hand("model"))];
    let mints: Vec<usize> = forecast(&plans, START)
        .iter()
        .filter(|coming| matches!(coming.event, Event::Intended { step: Step::Mint { .. }, .. }))
        .flat_map(|coming| coming.members.clone())
        .collect();
    assert_eq!(mints, [1, 0]);
}

#[test]
fn where_a_person_is_missing_the_rotation_waits_and_does_not_turn_round() {
    let mut world = World::new(by_hand("model"));
    let step = world.until(|step| matches!(step, Step::Mint { .. }));
    let refusal = Refusal::operator(RefusalKind::NeedsPerson, "needs a person");
    world.apply(Event::Refused { step, refusal: refusal.clone() });
    let parked = Event::Parked { reason: ParkReason::Refused { step, refusal } };
    assert_eq!(world.rotation.next(world.now), Next::Record(parked.clone()));
    world.apply(parked);
    world.apply(Event::Resumed);
    assert_eq!(world.rotation.next(world.now), Next::Do(Step::Mint { attempt: 2 }));
}

#[test]
fn what_a_person_did_not_do_is_not_on_its_way() {
    let mut world = World::new(by_hand("model"));
    let step = world.until(|step| matches!(step, Step::Mint { .. }));
    world.apply(Event::Unknown { step });
    world.now = world.now + Span::minutes(1);
    let step = Step::FindMint { attempt: 1 };
    assert_eq!(world.rotation.next(world.now), Next::Do(step));
    world.apply(Event::Intended { step, until: world.now + Span::minutes(15), clocks: None });
    let absent = Report::Found { issued: None, held: false, fingerprint: None };
    world.apply(Event::Done { step, report: absent });
    assert_eq!(world.rotation.next(world.now), Next::Do(Step::Mint { attempt: 2 }));
}

#[test]
fn what_a_person_made_is_looked_for_without_one_where_the_issuer_lists_it() {
    let mut plan = by_hand("model");
    plan.issuer.facts.only_mint_by_hand = true;
    plan.issuer.facts.settle_for = Span::minutes(1);
    let steps = [Step::Mint { attempt: 1 }, Step::FindMint { attempt: 1 }, Step::Sweep];
    let given = |plan: &Plan| steps.map(|step| plan.by_hand(step).is_some());
    assert_eq!((given(&by_hand("model")), given(&plan)), ([true; 3], [true, false, false]));

    let mut world = World::new(plan);
    let step = world.until(|step| matches!(step, Step::Mint { .. }));
    world.apply(Event::Unknown { step });
    let find = |world: &mut World| {
        let step = world.until(|step| matches!(step, Step::FindMint { .. }));
        world.apply(Event::Done {
            step,
            report: Report::Found { issued: None, held: false, fingerprint: None },
        });
        world.rotation.next(world.now)
    };
    assert!(!matches!(find(&mut world), Next::Do(Step::Mint { .. })), "the list may be behind");
    world.now = world.now + Span::minutes(1);
    assert_eq!(find(&mut world), Next::Do(Step::Mint { attempt: 2 }));
}

#[test]
fn h04_a_lost_mint_is_looked_for_and_its_stray_is_revoked_before_the_next_attempt() {
    let mut world = World::new(plan(Strategy::Overlap));
    let mint = world.until(|step| matches!(step, Step::Mint { .. }));
    world.apply(Event::Unknown { step: mint });
    let find = world.until(|step| matches!(step, Step::FindMint { .. }));
    world.apply(Event::Done {
        step: find,
        report: Report::Found {
            issued: Some(IssuedId::new("stray")),
            held: false,
            fingerprint: None,
        },
    });
    assert_eq!(world.begin(), Ok(Step::RevokeStray { attempt: 1 }));
    assert_eq!(world.rotation.stray(), Some(&IssuedId::new("stray")));
    world.finish(Step::RevokeStray { attempt: 1 });
    assert_eq!(world.begin(), Ok(Step::Mint { attempt: 2 }));
}

#[test]
fn h04_a_mint_is_given_up_whose_answer_is_always_lost() {
    let stray = Some(IssuedId::new("stray"));
    for (issued, is_refused) in [(stray.clone(), false), (stray, true), (None, false)] {
        let mut plan = plan(Strategy::Overlap);
        plan.issuer.facts.settle_for = Span::minutes(10);
        let mut world = World::new(plan);
        let mut looks = 0;
        for _ in 0..400 {
            let Ok(step) = world.begin() else { break };
            world.now = world.now + Span::seconds(1);
            match step {
                Step::Mint { .. } => world.apply(Event::Unknown { step }),
                Step::FindMint { .. } => {
                    looks += 1;
                    if is_refused && looks % 2 == 1 {
                        let busy = Refusal::retry(RefusalKind::RateLimited, None, "not now");
                        world.apply(Event::Refused { step, refusal: busy });
                        continue;
                    }
                    let issued = issued.clone();
                    let report = Report::Found { issued, held: false, fingerprint: None };
                    world.apply(Event::Done { step, report });
                }
                step => world.finish(step),
            }
        }
        let case = format!("{issued:?}, {is_refused}: {:?}", world.steps);
        assert_eq!(world.rotation.outcome(), Some(Outcome::Undone), "{case}");
        let last = |wanted: fn(&Step) -> bool| world.steps.iter().rposition(wanted);
        let mint = last(|step| matches!(step, Step::Mint { .. }));
        let ended = last(|step| matches!(step, Step::RevokeStray { .. }));
        assert!(issued.is_none() || mint < ended, "what the last try made is ended too: {case}");
    }
}

#[test]
fn a_suspend_that_is_refused_after_one_without_an_answer_is_undone_before_it_is_parked() {
    let mut world = browned_out();
    let suspend = world.until(suspends);
    world.apply(Event::Unknown { step: suspend });
    let suspend = world.until(suspends);
    world.refuse(suspend, RefusalKind::Permission);
    world.until(|step| step == Step::Resume(OLD));
    world.finish(Step::Resume(OLD));
    let parked = world.run_to_rest();
    assert!(matches!(parked, Next::Operator(ParkReason::Refused { .. })), "{parked:?}");
}

#[test]
fn h35_a_version_that_is_found_after_a_lost_mint_is_known_by_its_fingerprint() {
    let mut world = World::new(plan(Strategy::Overlap));
    let planned = Event::Planned(Arc::clone(world.rotation.plan()));
    let mut row = Inventory::new(world.rotation.plan().secret.clone());
    row.follow(&world.rotation, &planned, world.now);
    let mint = world.until(|step| matches!(step, Step::Mint { .. }));
    world.apply(Event::Unknown { step: mint });
    let step = world.until(|step| matches!(step, Step::FindMint { .. }));
    let fingerprint = serde_json::from_str("\"3:00112233445566778899aabbccddeeff\"").unwrap();
    let report = Report::Found { issued: Some(IssuedId::new("new")), held: true, fingerprint };
    let found = Event::Done { step, report };
    world.apply(found.clone());
    row.follow(&world.rotation, &found, world.now);
    assert_eq!(row.version(VersionId(8)).unwrap().fingerprint, fingerprint);
}

#[test]
fn h04_absence_is_concluded_only_when_a_mint_can_no_longer_land() {
    let mut world = World::new(plan(Strategy::Overlap));
    let mint = world.until(|step| matches!(step, Step::Mint { .. }));
    let called_at = world.now;
    world.apply(Event::Unknown { step: mint });
    let find = world.until(|step| matches!(step, Step::FindMint { .. }));
    world.finish(find);
    assert_eq!(
        world.begin(),
        Ok(Step::FindMint { attempt: 1 }),
        "not concluded from the first look"
    );
    assert!(
        world.now >= called_at + Span::seconds(30) + Span::seconds(60),
        "deadline of the call and settle_for"
    );
    world.finish(find);
    assert_eq!(world.begin(), Ok(Step::Mint { attempt: 2 }));
}

#[test]
fn h19_a_refused_preflight_ends_undone_with_nothing_changed() {
    let mut world = World::new(plan(Strategy::Overlap));
    let step = world.begin().unwrap();
    world.refuse(step, RefusalKind::Permission);
    assert_eq!(world.run_to_rest(), Next::Rest(Outcome::Undone));
    assert!(!world.steps.iter().any(|step| step.mutates()));
}

#[test]
fn a_version_that_workloads_refuse_is_undone_and_revoked() {
    let mut world = World::new(plan(Strategy::Overlap));
    let roll = world.until(|step| matches!(step, Step::Roll { .. }));
    world.refuse(roll, RefusalKind::WorkloadFailed);
    assert_eq!(world.run_to_rest(), Next::Rest(Outcome::Undone));
    let after: Vec<Step> =
        world.steps.iter().copied().skip_while(|step| *step != roll).skip(1).collect();
    assert_eq!(
        after,
        [
            Step::Write { store: 0, to: 0 },
            Step::Roll { workload: 0, to: 0 },
            Step::Evidence { workload: 0, to: 0 },
            Step::Revoke(VersionId(8)),
            Step::VerifyDead(VersionId(8)),
            Step::Sweep,
        ]
    );
}

#[test]
fn i19_an_undo_from_s2_goes_through_s1_and_waits_for_tokens() {
    let mut world = World::new(plan(KEYRING));
    world.until(is_write(2));
    world.finish(Step::Write { store: 0, to: 2 });
    world.apply(Event::TurnedBack { because: Because::Operator { because: "test".into() } });
    world.until(is_write(1));
    world.finish(Step::Write { store: 0, to: 1 });
    world.until(|step| matches!(step, Step::Evidence { to: 1, .. }));
    let proven_at = world.now;
    world.finish(Step::Evidence { workload: 0, to: 1 });
    world.until(is_write(0));
    assert!(world.now >= proven_at + Span::minutes(17), "only {}", world.now.since(proven_at));
}

#[test]
fn h84_a_version_is_accepted_until_the_last_token_of_the_fastest_clock_expires() {
    let Strategy::Keyring { longest_token, skew } = KEYRING else { panic!("it is a keyring") };
    let mut without_soak = plan(KEYRING);
    without_soak.policy.soak = Span::ZERO;
    let mut world = World::new(without_soak);
    let evidence = world.until(|step| matches!(step, Step::Evidence { to: 2, .. }));
    let last_signed_by_clock_ahead = world.now + skew;
    world.finish(evidence);
    world.until(is_write(3));
    assert!(world.now >= last_signed_by_clock_ahead + longest_token);
}

#[test]
fn an_undo_of_a_version_that_never_signed_needs_no_token_wait() {
    let mut world = World::new(plan(KEYRING));
    let roll = world.until(|step| matches!(step, Step::Roll { to: 1, .. }));
    world.finish(roll);
    world.apply(Event::TurnedBack { because: Because::Operator { because: "test".into() } });
    let turned_at = world.now;
    world.until(is_write(0));
    assert!(world.now.since(turned_at) < Span::minutes(1));
}

#[test]
fn an_undo_during_soak_is_a_reversal_with_its_own_soak() {
    let mut world = World::new(plan(Strategy::Overlap));
    world.until(|step| step == Step::Visit);
    world.finish(Step::Visit);
    world.apply(Event::TurnedBack { because: Because::Operator { because: "test".into() } });
    let turned_at = world.now;
    assert_eq!(world.begin(), Ok(Step::Verify(VersionId(7))));
    world.finish(Step::Verify(VersionId(7)));
    assert_eq!(world.run_to_rest(), Next::Rest(Outcome::Undone));
    assert!(world.steps.contains(&Step::Revoke(VersionId(8))));
    assert!(!world.steps.contains(&Step::Revoke(VersionId(7))));
    assert!(world.now.since(turned_at) >= Span::hours(24), "the rejected version soaks too");
}

#[test]
fn i10_no_way_back_once_a_revoke_may_have_landed() {
    let mut world = World::new(plan(Strategy::Overlap));
    let revoke = world.until(|step| matches!(step, Step::Revoke(_)));
    world.apply(Event::Unknown { step: revoke });
    assert_eq!(world.rotation.way_back(), Err(NoWayBack::Revoked));
}

#[test]
fn h93_a_refused_revoke_leaves_the_way_back_open_unless_an_earlier_one_may_have_landed() {
    let refusal = || Refusal::retry(RefusalKind::Unavailable, None, "not now");
    for (is_lost, way_back) in [(false, Ok(())), (true, Err(NoWayBack::Revoked))] {
        let mut world = World::new(plan(Strategy::Overlap));
        let is_revoke = |step| matches!(step, Step::Revoke(_));
        if is_lost {
            let step = world.until(is_revoke);
            world.apply(Event::Unknown { step });
        }
        let step = world.until(is_revoke);
        assert_eq!(world.rotation.way_back(), Err(NoWayBack::Revoked));
        world.apply(Event::Refused { step, refusal: refusal() });
        assert_eq!(world.rotation.way_back(), way_back);
    }
}

#[test]
fn h93_a_version_that_is_only_suspended_has_a_way_back() {
    let mut suspends = plan(Strategy::Overlap);
    suspends.issuer.facts.suspend = true;
    let mut world = World::new(suspends);
    let suspend = world.until(|step| matches!(step, Step::Suspend(_)));
    world.finish(suspend);
    assert_eq!(world.rotation.way_back(), Ok(()));
    world.apply(Event::TurnedBack { because: Because::Operator { because: "test".into() } });
    assert_eq!(world.step(), Ok(Step::Resume(VersionId(7))));
    assert_eq!(world.run_to_rest(), Next::Rest(Outcome::Undone));
}

/// A plan with a probe, whose version is suspended for ten minutes in the middle of soak.
fn browned_out() -> World {
    let mut suspends = plan(Strategy::Overlap);
    suspends.issuer.facts.suspend = true;
    suspends.policy.brownout = Some(Span::minutes(10));
    suspends.probes = vec![ProbePlan { bound: bound("shop") }];
    World { probes: Some(true), ..World::new(suspends) }
}

const OLD: VersionId = VersionId(7);

fn suspends(step: Step) -> bool {
    step == Step::Suspend(OLD)
}

/// Does the suspend of the brown-out, and returns when it was done.
fn begin_brown_out(world: &mut World) -> Timestamp {
    let suspend = world.until(suspends);
    world.finish(suspend);
    assert!(world.rotation.is_browned_out());
    world.now
}

#[test]
fn a_brown_out_suspends_in_the_middle_of_soak_watches_and_resumes() {
    let mut world = browned_out();
    let suspended_at = begin_brown_out(&mut world);
    let soaked = world.rotation.ending().soak_counted();
    assert!(Span::hours(12) <= soaked && soaked < Span::hours(24), "after {soaked} of soak");
    let looks = world.steps.len();
    world.until(|step| step == Step::Resume(OLD));
    let lasted = world.now.since(suspended_at);
    assert!(Span::minutes(10) <= lasted && lasted < Span::minutes(15), "for {lasted}");
    let looks = &world.steps[looks..world.steps.len() - 1];
    assert!(looks.len() >= 6 && looks.iter().all(|step| *step == Step::Visit), "{looks:?}");
    world.finish(Step::Resume(OLD));
    assert!(world.rotation.ending().soaked_at().is_none(), "soak goes on");
    let suspend = world.until(|step| step.mutates());
    assert_eq!(suspend, Step::Suspend(OLD), "the version is ended as without a brown-out");
    world.finish(suspend);
    assert!(!world.rotation.is_browned_out());
    assert_eq!(world.run_to_rest(), Next::Rest(Outcome::Completed));
    assert!(!world.steps.ends_with(&[Step::Resume(OLD)]));
}

#[test]
fn a_probe_that_turns_red_in_a_brown_out_resumes_the_version_at_once_and_asks_an_operator() {
    let mut world = browned_out();
    begin_brown_out(&mut world);
    world.step().unwrap();
    world.probes = Some(false);
    assert_eq!(world.step(), Ok(Step::Visit));
    assert_eq!(world.step(), Ok(Step::Resume(OLD)));
    assert_eq!(world.run_to_rest(), Next::Operator(ParkReason::RedAfterSuspend));
    world.probes = Some(true);
    world.apply(Event::Resumed);
    assert_eq!(world.rotation.ending().soak_counted(), Span::ZERO);
    begin_brown_out(&mut world);
    assert_eq!(world.run_to_rest(), Next::Rest(Outcome::Completed));
}

#[test]
fn h56_a_use_that_is_seen_in_a_brown_out_resumes_the_version_at_once_and_begins_soak_anew() {
    let mut world = browned_out();
    begin_brown_out(&mut world);
    world.last_used_at = Some(world.now);
    assert_eq!(world.step(), Ok(Step::Visit));
    assert_eq!(world.step(), Ok(Step::Resume(OLD)));
    assert_eq!(world.rotation.ending().soak_counted(), Span::ZERO);
    assert_eq!(world.run_to_rest(), Next::Operator(ParkReason::GateClosed));
    assert_eq!(world.steps.iter().filter(|step| suspends(**step)).count(), 1);
}

#[test]
fn a_brown_out_of_which_nothing_could_be_told_is_made_again() {
    let mut waits = browned_out().rotation.plan().as_ref().clone();
    waits.policy.cannot_tell = CannotTell::Wait;
    let mut world = World { probes: Some(true), ..World::new(waits) };
    begin_brown_out(&mut world);
    world.probes = None;
    world.until(|step| step == Step::Resume(OLD));
    world.finish(Step::Resume(OLD));
    assert_eq!(world.rotation.ending().soak_counted(), Span::ZERO);
    world.probes = Some(true);
    begin_brown_out(&mut world);
}

#[test]
fn a_version_that_nobody_watches_in_its_brown_out_is_resumed_before_anything_is_looked_at() {
    let mut world = browned_out();
    begin_brown_out(&mut world);
    world.step().unwrap();
    world.now = world.now + Span::hours(3);
    assert_eq!(world.step(), Ok(Step::Resume(OLD)));
    begin_brown_out(&mut world);
    world.until(|step| step == Step::Resume(OLD));
}

#[test]
fn a_suspend_that_may_land_after_the_brown_out_is_resumed_once_more() {
    let mut world = browned_out();
    let suspend = world.until(suspends);
    world.apply(Event::Unknown { step: suspend });
    world.probes = Some(false);
    let next = world.until(|step| matches!(step, Step::Visit | Step::Suspend(_)));
    assert_eq!(next, suspend, "what is not known is asked for again");
    world.finish(suspend);
    assert_eq!(world.step(), Ok(Step::Visit));
    let resumed_at = world.now;
    assert_eq!(world.step(), Ok(Step::Resume(OLD)));
    assert!(world.rotation.is_watched());
    assert_eq!(world.begin(), Ok(Step::Resume(OLD)), "before nobody looks at it any more");
    assert!(world.now.since(resumed_at) >= Span::seconds(60), "once it can no longer land");
    world.finish(Step::Resume(OLD));
    assert_eq!(world.begin(), Err(Next::Operator(ParkReason::RedAfterSuspend)));
}

#[test]
fn an_undo_in_a_brown_out_resumes_the_version_and_goes_back_to_it() {
    let mut world = browned_out();
    begin_brown_out(&mut world);
    world.apply(Event::TurnedBack { because: Because::Operator { because: "test".into() } });
    assert_eq!(world.step(), Ok(Step::Resume(OLD)));
    assert_eq!(world.step(), Ok(Step::Verify(OLD)));
    assert_eq!(world.run_to_rest(), Next::Rest(Outcome::Undone));
}

#[test]
fn h32_a_leap_of_the_wall_clock_makes_no_brown_out_shorter() {
    let mut world = browned_out();
    let suspended_at = begin_brown_out(&mut world);
    world.until(|step| step == Step::Visit);
    let leapt = Report::Visited(Box::new(Visit {
        clocks: Clocks {
            wall: world.now + Span::hours(5),
            boot: world.now.since(START),
            boot_id: 1,
            outside: None,
        },
        ..match world.report(Step::Visit) {
            Report::Visited(visit) => *visit,
            other => panic!("{other:?}"),
        }
    }));
    world.apply(Event::Done { step: Step::Visit, report: leapt });
    world.until(|step| step == Step::Resume(OLD));
    assert!(world.now.since(suspended_at) >= Span::minutes(10));
}

#[test]
fn h93_soak_is_not_over_before_its_brown_out() {
    for soak in [Span::ZERO, Span::minutes(15)] {
        let mut short = browned_out().rotation.plan().as_ref().clone();
        short.policy.soak = soak;
        short.issuer.facts.last_used = None;
        let mut world = World { probes: Some(true), ..World::new(short) };
        begin_brown_out(&mut world);
        world.until(|step| step == Step::Resume(OLD));
        assert!(world.rotation.ending().soaked_at().is_none());
        world.finish(Step::Resume(OLD));
        assert_eq!(world.run_to_rest(), Next::Rest(Outcome::Completed));
    }
}

#[test]
fn where_the_issuer_cannot_suspend_there_is_no_brown_out() {
    let mut only_ends = plan(Strategy::Overlap);
    only_ends.policy.brownout = Some(Span::minutes(10));
    let mut world = World::new(only_ends);
    assert_eq!(world.run_to_rest(), Next::Rest(Outcome::Completed));
    assert!(!world.steps.iter().any(|step| matches!(step, Step::Suspend(_) | Step::Resume(_))));
}

#[test]
fn h38_what_was_refused_for_good_is_not_asked_again() {
    for is_asked in [
        |step| matches!(step, Step::Verify(VersionId(8))),
        |step| matches!(step, Step::Roll { to: 1, .. }),
        |step| matches!(step, Step::Revoke(VersionId(7))),
    ] {
        let mut world = World::new(plan(Strategy::Overlap));
        let step = world.until(is_asked);
        world.refuse(step, RefusalKind::Permission);
        world.run_to_rest();
        let asked = world.steps.iter().filter(|step| is_asked(**step)).count();
        assert_eq!(asked, 1, "{step:?}");
    }
}

#[test]
fn h56_a_version_in_use_is_not_revoked_and_parks_at_the_gate_limit() {
    let mut world = World::new(plan(Strategy::Overlap));
    world.until(|step| step == Step::Visit);
    world.last_used_at = Some(world.now + Span::hours(1));
    world.finish(Step::Visit);
    assert_eq!(world.run_to_rest(), Next::Operator(ParkReason::GateClosed));
    assert!(!world.steps.iter().any(|step| matches!(step, Step::Revoke(_))));
}

#[test]
fn a_revoke_stands_on_a_fresh_green_visit() {
    let mut world = World::new(plan(Strategy::Overlap));
    world.until(|step| matches!(step, Step::Revoke(_)));
    let (visited_at, _) = world.rotation.ending().last_visit().unwrap();
    assert!(world.now.since(visited_at) <= Span::minutes(5));
    world.refuse(Step::Revoke(VersionId(7)), RefusalKind::Permission);
    assert!(matches!(world.begin(), Err(Next::Operator(ParkReason::Refused { .. }))));
    world.now = world.now + Span::days(1);
    world.apply(Event::Resumed);
    let next = world.until(|step| matches!(step, Step::Visit | Step::Revoke(_)));
    assert_eq!(next, Step::Visit, "a day-old visit is no ground to revoke on");
}

#[test]
fn evidence_that_is_not_complete_rolls_again() {
    let mut world = World::new(plan(Strategy::Overlap));
    let step = world.until(|step| matches!(step, Step::Evidence { .. }));
    world.apply(Event::Done { step, report: Report::Seen(Count::default()) });
    assert!(matches!(
        world.rotation.next(world.now),
        Next::Wait { why: Why::Retry(Step::Roll { .. }), .. }
    ));
    assert_eq!(
        world.begin(),
        Ok(Step::Roll { workload: 0, to: 1 }),
        "no replica at all is not green"
    );
}

/// Readers that go on with what they have cached for so many seconds after the write.
fn first_look_of_soak(caches: [u64; 3]) -> Span {
    let mut world = World::new(plan(Strategy::Overlap));
    let write = world.until(is_write(1));
    let written_at = world.now;
    world.finish(write);
    loop {
        let step = world.begin().unwrap();
        let since = world.now.since(written_at);
        match step {
            Step::Visit => return since,
            Step::Evidence { .. } => {
                let late = caches.iter().filter(|cache| since < Span::seconds(**cache)).count();
                let other = u32::try_from(late).unwrap();
                let report = Report::Seen(Count { holds: 3 - other, other, unknown: 0 });
                world.apply(Event::Done { step, report });
            }
            _ => world.finish(step),
        }
    }
}

proptest! {
    #[test]
    fn h57_soak_begins_after_the_last_reader_let_go_of_what_it_cached(
        caches in prop::array::uniform3(0_u64..500),
    ) {
        let last = Span::seconds(caches.into_iter().max().unwrap());
        let begins = first_look_of_soak(caches);
        prop_assert!(begins >= last, "{begins} after the write, caches of {caches:?}");
    }
}

#[test]
fn h57_a_refusal_while_a_new_key_spreads_is_no_answer_for_good() {
    let mut slow = plan(Strategy::Overlap);
    slow.issuer.facts.propagation = Span::minutes(50);
    let mut world = World::new(slow);
    let verify = world.until(|step| matches!(step, Step::Verify(_)));
    let (made_at, mut step) = (world.now, verify);
    while world.now.since(made_at) < Span::minutes(45) {
        let refusal = Refusal::retry(RefusalKind::Invalid, None, "not known yet");
        world.apply(Event::Refused { step, refusal });
        step = world.begin().unwrap();
        assert_eq!(step, verify, "{} after the mint", world.now.since(made_at));
    }
    world.finish(step);
    assert!(matches!(world.begin(), Ok(Step::Write { to: 1, .. })));
}

#[test]
fn an_unknown_write_is_written_back_again_once_it_can_no_longer_land() {
    let mut world = World::new(plan(Strategy::Overlap));
    let write = world.until(is_write(1));
    let deadline = world.now + Span::seconds(30);
    world.apply(Event::Unknown { step: write });
    world.apply(Event::TurnedBack { because: Because::Operator { because: "test".into() } });
    assert_eq!(world.begin(), Ok(Step::Write { store: 0, to: 0 }));
    world.finish(Step::Write { store: 0, to: 0 });
    world.until(is_write(0));
    assert!(
        world.now >= deadline + Span::seconds(5),
        "written back again after the write can no longer land"
    );
    assert_eq!(world.rotation.toward(), Side::Previous);
}

#[test]
fn an_emergency_revokes_without_soak_and_never_turns_back() {
    let mut emergency = plan(Strategy::Overlap);
    emergency.mode = Mode::Emergency { revoke_first: false, stage_for: Span::minutes(10) };
    emergency.reason = Reason::Compromised;
    let mut world = World::new(emergency);
    assert_eq!(world.rotation.way_back(), Err(NoWayBack::Compromised));
    assert_eq!(world.run_to_rest(), Next::Rest(Outcome::Completed));
    assert!(world.now.since(START) < Span::minutes(1));
}

/// Two stores with a workload each.
fn wide(mode: Mode) -> Plan {
    let mut plan = plan(Strategy::Overlap);
    plan.mode = mode;
    plan.stores.push(StorePlan { bound: bound("second"), ..plan.stores[0].clone() });
    let backend = plan.workloads[0].clone();
    plan.workloads.push(WorkloadPlan { bound: bound("worker"), reads: vec![1], ..backend });
    plan
}

const STAGED: Mode = Mode::Emergency { revoke_first: false, stage_for: Span::minutes(10) };

#[test]
fn an_emergency_writes_every_store_at_once_and_then_rolls_every_workload_at_once() {
    let mut world = World::new(wide(STAGED));
    let until = world.now + Span::minutes(1);
    let verify = world.until(|step| matches!(step, Step::Verify(_)));
    world.finish(verify);
    world.apply(Event::MoveBegun { to: 1 });
    let writes = [0, 1].map(|store| Step::Write { store, to: 1 });
    assert_eq!(world.rotation.next(world.now), Next::Do(writes[0]));
    assert_eq!(world.rotation.together(writes[0], world.now)[..], writes);
    writes
        .iter()
        .for_each(|step| world.apply(Event::Intended { step: *step, until, clocks: None }));
    assert_eq!(world.rotation.next(world.now), Next::Await(writes[0]));
    writes.into_iter().rev().for_each(|step| world.finish(step));
    let rolls = [0, 1].map(|workload| Step::Roll { workload, to: 1 });
    assert_eq!(world.rotation.next(world.now), Next::Do(rolls[0]));
    assert_eq!(world.rotation.together(rolls[0], world.now)[..], rolls);
}

#[test]
fn a_rotation_at_a_steady_pace_takes_one_step_at_a_time() {
    let mut world = World::new(wide(Mode::Normal));
    let first = world.until(is_write(1));
    let step = Step::Write { store: 1, to: 1 };
    let second = Event::Intended { step, until: world.now, clocks: None };
    assert!(world.rotation.apply(world.now, &second).is_err());
    assert_eq!(world.rotation.together(first, world.now)[..], [first]);
}

#[test]
fn h123_a_store_that_refuses_holds_up_neither_other_readers_nor_the_end_of_the_suspect() {
    let mut world = World::new(wide(STAGED));
    let mut last = Ok(Step::Preflight);
    while let Ok(step) = last {
        world.now = world.now + Span::seconds(1);
        match step {
            Step::Preflight if world.steps.is_empty() => {}
            Step::Write { store: 0, .. } => world.refuse(step, RefusalKind::Permission),
            _ => world.finish(step),
        }
        last = world.begin();
    }
    assert!(
        matches!(
            last,
            Err(Next::Operator(ParkReason::Refused { step: Step::Write { store: 0, .. }, .. }))
        ),
        "{last:?}"
    );
    assert!(world.steps.contains(&Step::Evidence { workload: 1, to: 1 }));
    assert!(!world.steps.contains(&Step::Roll { workload: 0, to: 1 }));
    assert_eq!(world.steps.last(), Some(&Step::Revoke(VersionId(7))));
    assert!(world.now.since(START) >= Span::minutes(10));
}

#[test]
fn h123_whoever_mends_what_refused_in_an_emergency_has_it_tried_again_before_the_stage_is_over() {
    let mut world = World::new(wide(STAGED));
    let refused = world.until(|step| matches!(step, Step::Write { store: 0, .. }));
    world.refuse(refused, RefusalKind::Permission);
    let is_waited_for = |world: &World| {
        matches!(world.rotation.next(world.now), Next::Wait { why: Why::Stage, .. })
    };
    while !is_waited_for(&world) {
        let open = world.rotation.open_step();
        let step = open.unwrap_or_else(|| world.begin().unwrap());
        world.now = world.now + Span::seconds(1);
        world.finish(step);
    }
    assert!(world.rotation.has_given_up());
    world.apply(Event::Resumed);
    let again = world.until(|step| matches!(step, Step::Write { store: 0, .. } | Step::Revoke(_)));
    assert_eq!(again, refused);
    assert!(world.now.since(START) < Span::minutes(10), "the suspect is not ended yet");
}

#[test]
fn h123_an_emergency_ends_nothing_before_every_reader_has_the_new_version() {
    let mut world = World::new(wide(STAGED));
    world.until(|step| matches!(step, Step::Revoke(_)));
    for workload in [0, 1] {
        assert!(world.steps.contains(&Step::Evidence { workload, to: 1 }), "{:?}", world.steps);
    }
}

#[test]
fn h123_revoke_first_revokes_before_anything_is_delivered() {
    let mut emergency = plan(Strategy::Overlap);
    emergency.mode = Mode::Emergency { revoke_first: true, stage_for: Span::minutes(10) };
    let mut world = World::new(emergency);
    world.run_to_rest();
    let revoke = world.steps.iter().position(|step| matches!(step, Step::Revoke(_)));
    let write = world.steps.iter().position(|step| matches!(step, Step::Write { .. }));
    assert!(revoke < write);
}

#[test]
fn a_stuck_emergency_revokes_when_its_stage_is_over() {
    let mut emergency = plan(Strategy::Overlap);
    emergency.mode = Mode::Emergency { revoke_first: false, stage_for: Span::minutes(5) };
    let mut world = World::new(emergency);
    let began_at = world.now;
    loop {
        let step = world.begin().unwrap();
        match step {
            Step::Evidence { .. } => {
                let report = Report::Seen(Count { holds: 2, other: 1, unknown: 0 });
                world.apply(Event::Done { step, report });
            }
            Step::Revoke(_) => break,
            _ => world.finish(step),
        }
    }
    assert!(
        world.now.since(began_at) >= Span::minutes(5)
            && world.now.since(began_at) < Span::minutes(9)
    );
}

#[test]
fn a_record_out_of_order_is_refused() {
    let mut world = World::new(plan(Strategy::Overlap));
    let stray = Event::Done { step: Step::Preflight, report: Report::Plain };
    assert!(world.rotation.apply(START, &stray).is_err());
    let resumed = world.rotation.apply(START, &Event::Resumed).unwrap_err();
    assert_eq!(resumed.to_string(), "record out of order: Resumed while planned");
}

#[test]
fn an_extension_writes_nothing_and_ends_nothing() {
    let mut extension = plan(Strategy::Lease);
    extension.extend = true;
    let mut world = World::new(extension);
    let step = world.begin().unwrap();
    assert_eq!(step, Step::Extend);
    world.apply(Event::Done { step, report: Report::Extended { expires_at: START } });
    assert_eq!(world.run_to_rest(), Next::Rest(Outcome::Completed));
    assert_eq!(world.steps, [Step::Extend]);
}

/// A lease of an hour that is extended, of an issuer that grants a day.
fn lease() -> Plan {
    let mut lease = plan(Strategy::Lease);
    lease.issuer.facts.lease = Some(LeaseFacts { longest_life: Some(Span::hours(24)) });
    lease
}

/// The row of its secret: version 7 was leased `ago`.
fn leased(ago: Span) -> Inventory {
    let mut row = Inventory::new("openai@production".parse().unwrap());
    let issued = Some(IssuedId::new("old"));
    let created_at = START - ago;
    let mut version = Version::adopted(VersionId(7), issued, Some(created_at), None);
    version.expires_at = Some(created_at + Span::hours(1));
    row.versions.push(version);
    row
}

impl World {
    /// Begins a rotation, and the row of its secret.
    fn of_a_lease(plan: Plan, ago: Span) -> (Self, Inventory) {
        let (world, mut row) = (Self::new(plan), leased(ago));
        row.follow(&world.rotation, &Event::Planned(Arc::clone(world.rotation.plan())), START);
        (world, row)
    }

    fn follow(&mut self, row: &mut Inventory, event: Event) {
        self.apply(event.clone());
        row.follow(&self.rotation, &event, self.now);
    }

    fn intend(&mut self, row: &mut Inventory, step: Step) {
        self.follow(
            row,
            Event::Intended { step, until: self.now + Span::seconds(30), clocks: None },
        );
    }

    /// Leads the rotation to the end of this step, and its row with it.
    fn lead_to(&mut self, row: &mut Inventory, wanted: Step) {
        loop {
            match self.rotation.next(self.now) {
                Next::Do(step) => {
                    self.intend(row, step);
                    let report = match step {
                        Step::Mint { .. } => minted("new", self.now + Span::hours(1)),
                        step => self.report(step),
                    };
                    self.follow(row, Event::Done { step, report });
                    if step == wanted {
                        return;
                    }
                }
                Next::Record(event) => self.follow(row, event),
                other => panic!("{other:?} before {wanted}"),
            }
        }
    }
}

fn minted(id: &str, expires_at: Timestamp) -> Report {
    let (issued, expires_at) = (Some(IssuedId::new(id)), Some(expires_at));
    Report::Minted { issued, fingerprint: None, expires_at, notes: Vec::new() }
}

#[test]
fn h95_a_lease_is_extended_while_a_rotation_of_its_secret_is_open_or_parked() {
    let (mut world, mut row) = World::of_a_lease(lease(), Span::minutes(10));
    let (old, new) = (VersionId(7), VersionId(8));
    // What is left is less than a move may take: the rotation begins with all that there is.
    assert_eq!(keep_alive(&world.rotation, &row), Some((old, START)));
    let step = Step::KeepAlive(old);
    world.intend(&mut row, step);
    let expires_at = START + Span::hours(1);
    world.follow(&mut row, Event::Done { step, report: Report::Extended { expires_at } });
    assert_eq!(keep_alive(&world.rotation, &row), Some((old, START + Span::minutes(30))));
    world.lead_to(&mut row, Step::Evidence { workload: 0, to: 1 });
    while let Next::Record(event) = world.rotation.next(world.now) {
        world.follow(&mut row, event);
    }
    assert_eq!(row.at(Stage::Current).map(|current| current.version), Some(new));
    let half = world.now + Span::minutes(30);
    assert_eq!(keep_alive(&world.rotation, &row), Some((new, half)), "the former one may end");
    let step = Step::Revoke(old);
    world.intend(&mut row, step);
    let refusal = Refusal::operator(RefusalKind::Permission, "no");
    world.follow(&mut row, Event::Refused { step, refusal });
    let Next::Record(parked) = world.rotation.next(world.now) else { panic!("it is not parked") };
    world.follow(&mut row, parked);
    world.now = half;
    let step = Step::KeepAlive(new);
    assert_eq!(keep_alive(&world.rotation, &row), Some((new, half)));
    world.intend(&mut row, step);
    world.follow(&mut row, Event::Unknown { step });
    assert!(keep_alive(&world.rotation, &row).is_some_and(|(_, at)| at > half), "at once again");
    world.intend(&mut row, step);
    let expires_at = half + Span::hours(1);
    world.follow(&mut row, Event::Done { step, report: Report::Extended { expires_at } });
    assert_eq!(row.version(new).and_then(|new| new.expires_at), Some(expires_at));
    assert!(world.rotation.parked().is_some());
    assert!(matches!(world.rotation.next(world.now), Next::Operator(_)));
}

#[test]
fn a_suspect_lease_is_given_no_time() {
    let mut row = leased(Span::minutes(40));
    row.versions[0].state = State::Compromised;
    assert_eq!(keep_alive(&World::new(lease()).rotation, &row), None);
}

#[test]
fn h95_a_lease_that_ran_out_before_anybody_was_given_it_is_made_anew() {
    let (mut world, mut row) = World::of_a_lease(lease(), Span::ZERO);
    world.lead_to(&mut row, Step::Verify(VersionId(8)));
    world.now = world.now + Span::minutes(31);
    let again = Step::Mint { attempt: 2 };
    assert_eq!(world.rotation.next(world.now), Next::Do(again));
    world.intend(&mut row, again);
    let report = minted("newer", world.now + Span::hours(1));
    world.follow(&mut row, Event::Done { step: again, report });
    assert_eq!(world.step(), Ok(Step::Verify(VersionId(8))));
    assert_eq!(world.rotation.issued(VersionId(8)), Some(&IssuedId::new("newer")));
    assert_eq!(world.run_to_rest(), Next::Rest(Outcome::Completed));
    let ended = world.steps.iter().filter(|step| matches!(step, Step::RevokeStray { .. }));
    assert_eq!(ended.count(), 1, "the one that nobody was given");
}

#[test]
fn h95_a_token_that_nobody_can_end_and_nobody_was_given_is_made_anew_and_left_to_end() {
    let mut token = lease();
    token.issuer.facts.destroy = false;
    let (mut world, mut row) = World::of_a_lease(token, Span::ZERO);
    world.lead_to(&mut row, Step::Verify(VersionId(8)));
    world.now = world.now + Span::minutes(31);
    let again = Step::Mint { attempt: 2 };
    world.intend(&mut row, again);
    let report = minted("newer", world.now + Span::hours(1));
    world.follow(&mut row, Event::Done { step: again, report });
    assert_eq!(world.run_to_rest(), Next::Rest(Outcome::Completed));
    assert!(!world.steps.iter().any(|step| matches!(step, Step::RevokeStray { .. })));
    assert_eq!(keep_alive(&world.rotation, &row), None, "it has ended");
}

#[test]
fn h95_mints_that_are_refused_take_no_chance_from_a_lease_that_ran_out() {
    let mut world = World::new(lease());
    for attempt in 1..=6 {
        assert_eq!(world.until(|step| step == Step::Mint { attempt }), Step::Mint { attempt });
        if attempt < 6 {
            let refusal = Refusal::retry(RefusalKind::RateLimited, None, "later");
            world.apply(Event::Refused { step: Step::Mint { attempt }, refusal });
        }
    }
    let report = minted("new", world.now + Span::hours(1));
    world.apply(Event::Done { step: Step::Mint { attempt: 6 }, report });
    assert_eq!(world.step(), Ok(Step::Verify(VersionId(8))));
    let later = world.now + Span::minutes(31);
    assert_eq!(world.rotation.next(later), Next::Do(Step::Mint { attempt: 7 }));
}

/// Mints a version that ends in an hour, has it accepted, and lets the hour pass.
fn mint_and_let_end(world: &mut World) {
    let step = world.until(|step| matches!(step, Step::Mint { .. }));
    let report = minted("new", world.now + Span::hours(1));
    world.apply(Event::Done { step, report });
    assert_eq!(world.step(), Ok(Step::Verify(VersionId(8))));
    world.now = world.now + Span::hours(1);
}

#[test]
fn h95_a_version_that_ended_is_given_to_nobody() {
    let mut token = lease();
    token.issuer.facts.destroy = false;
    let mut world = World::new(token);
    (0..6).for_each(|_| mint_and_let_end(&mut world));
    let end = world.run_to_rest();
    let Next::Operator(ParkReason::Refused { refusal, .. }) = end else { panic!("{end:?}") };
    assert!(refusal.message.contains("v8 ended before any store was given it"), "{refusal}");
    world.apply(Event::Resumed);
    assert_eq!(world.rotation.next(world.now), Next::Do(Step::Mint { attempt: 7 }));

    let mut world = World::new(plan(Strategy::Overlap));
    mint_and_let_end(&mut world);
    assert_eq!(world.run_to_rest(), Next::Rest(Outcome::Undone));
    assert!(!world.steps.iter().any(|step| is_write(1)(*step)), "{:?}", world.steps);
}

#[test]
fn h80_whoever_waited_asks_again_before_the_first_write_and_no_later() {
    let mut world = World::new(lease());
    let verify = Step::Verify(VersionId(8));
    assert_eq!(world.until(|step| step == verify), verify);
    world.finish(verify);
    world.rotation.ask_again();
    assert_eq!(world.begin(), Ok(verify));
    world.refuse(verify, RefusalKind::Invalid);
    assert_eq!(world.begin(), Ok(Step::Mint { attempt: 2 }), "the value that is refused is left");
    world.finish(Step::Mint { attempt: 2 });
    assert_eq!(world.step(), Ok(verify));
    assert_eq!(world.step(), Ok(Step::Write { store: 0, to: 1 }));
    world.rotation.ask_again();
    assert_eq!(world.step(), Ok(Step::Roll { workload: 0, to: 1 }));
}

#[test]
fn h80_what_is_let_go_on_is_asked_for_again_before_it_is_written() {
    let mut world = World::new(plan(Strategy::Cutover));
    let write = world.until(is_write(1));
    world.refuse(write, RefusalKind::Permission);
    assert!(matches!(world.begin(), Err(Next::Operator(_))));
    world.apply(Event::Resumed);
    assert_eq!(world.step(), Ok(Step::Verify(VersionId(8))));
    assert_eq!(world.step(), Ok(write));
}

#[test]
fn h95_a_lease_that_ends_while_its_store_refuses_is_made_anew_and_the_patience_goes_on() {
    let mut world = World::new(lease());
    let step = world.until(|step| matches!(step, Step::Mint { .. }));
    world.apply(Event::Done { step, report: minted("new", world.now + Span::minutes(8)) });
    let refusal = || Refusal::retry(RefusalKind::Unavailable, None, "down");
    let mut mints = 1;
    let end = loop {
        match world.begin() {
            Ok(step @ Step::Write { .. }) => {
                world.apply(Event::Refused { step, refusal: refusal() });
            }
            Ok(step @ Step::Mint { .. }) => {
                mints += 1;
                let report = minted("newer", world.now + Span::minutes(8));
                world.apply(Event::Done { step, report });
            }
            Ok(step) => world.finish(step),
            Err(end) => break end,
        }
    };
    let reason = ParkReason::OutOfPatience { step: Step::Write { store: 0, to: 1 } };
    assert_eq!(end, Next::Operator(reason));
    assert!(mints > 1 && world.now < START + Span::minutes(20), "{mints} until {:?}", world.now);
}

#[test]
fn h95_a_lease_that_is_gone_before_anybody_was_given_it_is_made_anew() {
    let (mut world, mut row) = World::of_a_lease(lease(), Span::ZERO);
    world.lead_to(&mut row, Step::Verify(VersionId(8)));
    let step = Step::KeepAlive(VersionId(8));
    world.intend(&mut row, step);
    let refusal = Refusal::operator(RefusalKind::NotFound, "no such lease");
    world.follow(&mut row, Event::Refused { step, refusal });
    assert_eq!(world.rotation.next(world.now), Next::Do(Step::Mint { attempt: 2 }));
}

#[test]
fn h95_an_extension_that_is_refused_ends_and_makes_way_for_a_replacement() {
    let (kind, not_found) = (RefusalKind::Permission, RefusalKind::NotFound);
    for (kind, ends_in) in [(kind, Span::minutes(30)), (not_found, Span::ZERO)] {
        let mut extension = lease();
        extension.extend = true;
        let (mut world, mut row) = World::of_a_lease(extension, Span::minutes(30));
        row.last_outcome = Some(Outcome::Completed);
        world.intend(&mut row, Step::Extend);
        let refusal = Refusal::operator(kind, "no");
        world.follow(&mut row, Event::Refused { step: Step::Extend, refusal });
        while let Next::Record(event) = world.rotation.next(world.now) {
            world.follow(&mut row, event);
        }
        assert_eq!(world.rotation.outcome(), Some(Outcome::Undone));
        assert_eq!((row.last_outcome, row.versions.len()), (Some(Outcome::Completed), 1));
        let current = row.at(Stage::Current).unwrap();
        assert_eq!(current.dies_at, Some(world.now + ends_in));
        let lease = Lease::of(current, LeaseFacts { longest_life: Some(Span::hours(24)) }).unwrap();
        let later = world.now + Span::minutes(11);
        assert_eq!(lease.need(Span::minutes(1), Span::ZERO, later), LeaseNeed::Replace);
    }
}

#[test]
fn h95_a_lease_whose_extension_gives_less_is_replaced_before_it_ends() {
    let mut extension = lease();
    extension.extend = true;
    let (mut world, mut row) = World::of_a_lease(extension, Span::minutes(30));
    world.intend(&mut row, Step::Extend);
    let report = Report::Extended { expires_at: world.now + Span::minutes(40) };
    world.follow(&mut row, Event::Done { step: Step::Extend, report });
    let current = row.at(Stage::Current).unwrap();
    let lease = Lease::of(current, LeaseFacts { longest_life: Some(Span::days(30)) }).unwrap();
    let due_at = world.now + Span::minutes(20);
    assert_eq!(lease.need(Span::minutes(5), Span::minutes(5), due_at), LeaseNeed::Replace);
}

#[test]
fn h95_an_extension_that_gave_less_is_tried_again_while_a_rotation_is_open() {
    let (mut world, mut row) = World::of_a_lease(lease(), Span::minutes(10));
    let step = Step::KeepAlive(VersionId(7));
    let extend = |world: &mut World, row: &mut Inventory, given: Span| {
        world.intend(row, step);
        let report = Report::Extended { expires_at: world.now + given };
        world.follow(row, Event::Done { step, report });
    };
    extend(&mut world, &mut row, Span::minutes(20));
    assert_eq!(row.versions[0].dies_at, Some(START + Span::minutes(20)));
    let half = START + Span::minutes(10);
    assert_eq!(keep_alive(&world.rotation, &row), Some((VersionId(7), half)));
    world.now = START + Span::minutes(1);
    extend(&mut world, &mut row, Span::minutes(19));
    assert!(row.versions[0].dies_at.is_some(), "it ends no later than before");
    world.now = half;
    extend(&mut world, &mut row, Span::hours(1));
    assert_eq!(row.versions[0].dies_at, None);
    let half = half + Span::minutes(30);
    assert_eq!(keep_alive(&world.rotation, &row), Some((VersionId(7), half)));
}

#[test]
fn h127_what_a_lease_needs_leaves_what_somebody_asked_for_and_a_rotation_does_it() {
    let extension = Plan { extend: true, reason: Reason::Expiring, ..lease() };
    let replacement = Plan { reason: Reason::Expiring, ..lease() };
    for (plan, stays) in [(extension, true), (replacement, true), (lease(), false)] {
        let asked = Queued { at: START, because: None, after: None };
        let mut row = leased(Span::minutes(30));
        row.queued = Some(asked.clone());
        let event = Event::Planned(Arc::new(plan));
        row.follow(&Rotation::begin(START, &event).unwrap(), &event, START);
        assert_eq!(row.queued, stays.then_some(asked));
    }
}

/// Waits for staging with a plan that was approved.
fn staged(approved: &Plan) -> Staged {
    Staged {
        secret: "openai@staging".parse().unwrap(),
        rotation: approved.rotation(),
        approved: approved.hash(),
        pending: Some(approved.pending),
        previous: approved.previous.clone(),
        in_its_place: None,
    }
}

#[test]
fn h127_an_approved_plan_is_the_same_after_an_extension_took_its_number() {
    let approved = lease();
    let staged = staged(&approved);
    let later = Plan { pending: approved.pending.successor(), ..lease() };
    assert!(staged.approves(&approved) && staged.approves(&later));
    assert!(!staged.approves(&Plan { folder: "/tmp".into(), ..later.clone() }));
    let of_before = Staged { pending: None, ..staged };
    assert!(of_before.approves(&approved) && !of_before.approves(&later));
}

/// Replaces the lease in use from end to end, and returns the plan that would come next.
fn replaced(row: &mut Inventory, reason: Reason) -> Plan {
    let next = |row: &Inventory| Plan {
        previous: row.at(Stage::Current).map(Version::reference),
        pending: row.next,
        ..lease()
    };
    let mut world = World::new(Plan { reason, ..next(row) });
    row.follow(&world.rotation, &Event::Planned(Arc::clone(world.rotation.plan())), START);
    world.lead_to(row, Step::Evidence { workload: 0, to: 1 });
    while let Next::Record(event) = world.rotation.next(world.now) {
        world.follow(row, event);
    }
    row.open = None;
    next(row)
}

#[test]
fn h127_an_approved_plan_is_the_same_after_leases_took_the_place_of_the_one_in_use() {
    let mut row = leased(Span::minutes(40));
    let approved = lease();
    row.next = approved.pending;
    let staged = staged(&approved);
    row.queued = Some(Queued { at: START, because: None, after: Some(staged) });
    let still_approves = |row: &Inventory, plan: &Plan| {
        row.queued.as_ref().unwrap().after.as_ref().unwrap().approves(plan)
    };
    for _ in 0..2 {
        let later = replaced(&mut row, Reason::Expiring);
        assert_ne!(later.previous, approved.previous);
        assert!(still_approves(&row, &later));
        assert!(!still_approves(&row, &Plan { folder: "/tmp".into(), ..later.clone() }));
        let of_another = Plan { previous: None, ..later };
        assert!(!still_approves(&row, &of_another), "nobody was shown a first version");
    }
    replaced(&mut row, Reason::Requested);
    assert_eq!(row.queued, None, "somebody asked for this one");
}

#[test]
fn h05_a_lost_reset_is_repeated_when_it_can_no_longer_land() {
    let mut reset = plan(Strategy::Cutover);
    reset.issuer.facts.observe = Observe::None;
    reset.issuer.facts.reset_repeatable = true;
    let mut world = World::new(reset);
    let step = world.until(|step| matches!(step, Step::Mint { .. }));
    let lands_until = world.now + Span::seconds(30) + Span::seconds(60);
    world.apply(Event::Unknown { step });
    let repeated = Step::Mint { attempt: 2 };
    assert_eq!(
        world.rotation.next(world.now),
        Next::Wait { until: lands_until, why: Why::Retry(repeated) }
    );
    assert_eq!(world.begin(), Ok(repeated));
    assert!(world.now >= lands_until);
}

#[test]
fn l03_a_gate_that_stays_closed_is_looked_at_more_and_more_seldom() {
    let mut short = plan(Strategy::Overlap);
    short.policy.soak = Span::ZERO;
    let mut world = World::new(short);
    world.until(|step| step == Step::Visit);
    world.last_used_at = Some(world.now + Span::hours(1));
    world.finish(Step::Visit);
    assert_eq!(world.run_to_rest(), Next::Operator(ParkReason::GateClosed));
    let visits = world.steps.iter().filter(|step| **step == Step::Visit).count();
    assert!(visits < 300, "{visits} visits in a week");
}

#[test]
fn l01_a_gate_that_closes_after_soak_and_window_parks_as_well() {
    let mut short = plan(Strategy::Overlap);
    short.policy.soak = Span::ZERO;
    short.policy.fresh_for = Span::ZERO;
    let mut world = World::new(short);
    world.until(|step| step == Step::Visit);
    world.now = world.now + Span::minutes(10);
    world.finish(Step::Visit);
    assert!(world.rotation.ending().soaked_at().is_some());
    assert_eq!(world.step(), Ok(Step::Visit));
    world.last_used_at = Some(world.now + Span::hours(1));
    assert_eq!(world.run_to_rest(), Next::Operator(ParkReason::GateClosed));
    let visits = world.steps.iter().filter(|step| **step == Step::Visit).count();
    assert!(visits < 300, "{visits} visits in a week");
}

#[test]
fn i23_an_id_without_a_label_is_never_ended_as_a_stray() {
    let mut unlabelled = plan(Strategy::Overlap);
    unlabelled.issuer.facts.observe = Observe::IdSetDifference;
    unlabelled.issuer.facts.label = false;
    let mut world = World::new(unlabelled);
    let mint = world.until(|step| matches!(step, Step::Mint { .. }));
    world.apply(Event::Unknown { step: mint });
    let find = world.until(|step| matches!(step, Step::FindMint { .. }));
    let found =
        Report::Found { issued: Some(IssuedId::new("somebody's")), held: false, fingerprint: None };
    world.apply(Event::Done { step: find, report: found });
    assert_eq!(world.begin(), Err(Next::Operator(ParkReason::MintUnobservable)));
}

#[test]
fn patience_does_not_run_out_while_nobody_runs() {
    let mut world = World::new(plan(Strategy::Overlap));
    let verify = world.until(|step| matches!(step, Step::Verify(_)));
    for _ in 0..2 {
        world.apply(Event::Unknown { step: verify });
        assert_eq!(world.begin(), Ok(verify));
    }
    world.now = world.now + Span::hours(1);
    world.apply(Event::Unknown { step: verify });
    assert_eq!(world.begin(), Ok(verify), "tried again before it is given up");
}

#[test]
fn a_step_is_tried_again_before_it_is_given_up() {
    let mut world = World::new(plan(Strategy::Overlap));
    let verify = world.until(|step| matches!(step, Step::Verify(_)));
    for _ in 0..3 {
        let refusal = Refusal::retry(RefusalKind::Invalid, None, "not yet");
        world.apply(Event::Refused { step: verify, refusal });
        world.now = world.now + Span::seconds(20);
        if world.rotation.open_step().is_none() {
            world.now = world.now + Span::hours(1);
            assert_eq!(world.begin(), Ok(verify), "an hour without a try is no hour of patience");
        }
    }
}

#[test]
fn h32_a_store_is_not_held_since_a_time_before_an_earlier_record() {
    let mut world = World::new(plan(Strategy::Overlap));
    let write = world.until(is_write(1));
    let intended_at = world.now;
    world.now = world.now - Span::minutes(2);
    world.finish(write);
    let since = world.rotation.walk().held_since(&world.rotation.plan().workloads[0], 1);
    assert_eq!(since, Some(intended_at));
}

#[test]
fn an_unknown_id_is_asked_for_before_soak_where_soak_needs_it() {
    let mut adopted = plan(Strategy::Overlap);
    adopted.previous.as_mut().unwrap().issued = None;
    adopted.policy.cannot_tell = keywheel_core::plan::CannotTell::Wait;
    let mut world = World::new(adopted);
    assert_eq!(
        world.run_to_rest(),
        Next::Operator(ParkReason::IdUnknown { version: VersionId(7) })
    );
    assert!(!world.steps.contains(&Step::Visit));
}

#[test]
fn h45_a_store_written_anew_has_its_readers_looked_at_anew() {
    let mut world = World::new(plan(Strategy::Overlap));
    let write = world.until(is_write(1));
    world.finish(write);
    world.until(|step| matches!(step, Step::Probe { .. } | Step::Evidence { .. }));
    world.finish(Step::Evidence { workload: 0, to: 1 });
    let since =
        |world: &World| world.rotation.walk().held_since(&world.rotation.plan().workloads[0], 1);
    let held_since = since(&world);
    world.until(|step| step == Step::Visit);
    world.apply(Event::Refused {
        step: Step::Visit,
        refusal: Refusal::operator(RefusalKind::Local, "no"),
    });
    assert!(matches!(world.begin(), Err(Next::Operator(_))));
    world.apply(Event::Resumed);
    for _ in 0..2 {
        let write = world.until(is_write(1));
        world.apply(Event::Unknown { step: write });
    }
    let write = world.until(is_write(1));
    world.apply(Event::Done {
        step: write,
        report: Report::Written { changed: false, changed_at: Vec::new() },
    });
    assert_ne!(since(&world), held_since, "nobody knows what the store held in between");
    assert_eq!(world.begin(), Ok(Step::Roll { workload: 0, to: 1 }));
}

#[test]
fn a_write_that_landed_late_is_written_over_before_replicas_are_rolled_again() {
    let mut world = World::new(plan(Strategy::Overlap));
    let write = world.until(is_write(1));
    world.apply(Event::Unknown { step: write });
    world.apply(Event::TurnedBack { because: Because::Operator { because: "test".into() } });
    let settles_at = world.rotation.unsettled_until().unwrap();
    let evidence = world.until(|step| matches!(step, Step::Evidence { to: 0, .. }));
    world.now = settles_at;
    let other = Report::Seen(Count { holds: 0, other: 3, unknown: 0 });
    world.apply(Event::Done { step: evidence, report: other });
    assert_eq!(world.begin(), Ok(Step::Write { store: 0, to: 0 }));
}

#[test]
fn h06_lost_attempts_do_not_count_as_rejected_values() {
    let mut world = World::new(plan(Strategy::Overlap));
    for _ in 0..2 {
        let mint = world.until(|step| matches!(step, Step::Mint { .. }));
        world.apply(Event::Unknown { step: mint });
    }
    let reject = || Refusal::retry(RefusalKind::ValueRejected, None, "not taken");
    for _ in 0..3 {
        assert_eq!(world.rotation.toward(), Side::Pending);
        let mint = world.until(|step| matches!(step, Step::Mint { .. }));
        world.apply(Event::Refused { step: mint, refusal: reject() });
    }
    assert!(
        matches!(world.rotation.next(world.now), Next::Record(Event::TurnedBack { .. })),
        "three values were rejected"
    );
}

#[test]
fn h125_an_emergency_waits_for_a_lost_mint_that_would_take_the_place_of_its_own() {
    let mut emergency = plan(Strategy::Alternate);
    emergency.mode = Mode::Emergency { revoke_first: false, stage_for: Span::minutes(10) };
    emergency.inherits_until = Some(START + Span::seconds(90));
    let mut world = World::new(emergency);
    world.until(|step| matches!(step, Step::Mint { .. }));
    assert!(world.now >= START + Span::seconds(90));
}

#[test]
fn h45_a_lost_rewrite_after_a_late_write_proves_nothing_of_before() {
    let mut world = World::new(plan(Strategy::Overlap));
    let write = world.until(is_write(1));
    world.apply(Event::Unknown { step: write });
    world.apply(Event::TurnedBack { because: Because::Operator { because: "test".into() } });
    let settles_at = world.rotation.unsettled_until().unwrap();
    world.until(|step| matches!(step, Step::Evidence { to: 0, .. }));
    world.finish(Step::Evidence { workload: 0, to: 0 });
    let rewrite = world.until(is_write(0));
    assert!(world.now >= settles_at);
    world.apply(Event::Unknown { step: rewrite });
    let again = world.until(is_write(0));
    world.apply(Event::Done {
        step: again,
        report: Report::Written { changed: false, changed_at: Vec::new() },
    });
    assert_eq!(world.begin(), Ok(Step::Roll { workload: 0, to: 0 }));
}

#[test]
fn h45_late_writes_that_cancel_each_other_out_prove_nothing_of_before() {
    let mut world = World::new(plan(Strategy::Overlap));
    let unchanged =
        |step| Event::Done { step, report: Report::Written { changed: false, changed_at: vec![] } };
    let write = world.until(is_write(1));
    world.apply(Event::Unknown { step: write });
    world.apply(Event::TurnedBack { because: Because::Operator { because: "test".into() } });
    let back = world.until(is_write(0));
    world.apply(Event::Unknown { step: back });
    let settles_at = world.rotation.unsettled_until().unwrap();
    let again = world.until(is_write(0));
    world.apply(unchanged(again));
    world.until(|step| matches!(step, Step::Evidence { to: 0, .. }));
    world.finish(Step::Evidence { workload: 0, to: 0 });
    let rewrite = world.until(is_write(0));
    assert!(world.now >= settles_at);
    world.apply(unchanged(rewrite));
    assert_eq!(world.begin(), Ok(Step::Roll { workload: 0, to: 0 }), "both may have landed");
}

#[test]
fn h32_a_clock_that_was_set_back_between_two_records_is_noticed() {
    for before_the_write in [true, false] {
        let mut world = World::new(plan(Strategy::Overlap));
        let step = world.until(|step| match before_the_write {
            true => matches!(step, Step::Verify(_)),
            false => is_write(1)(step),
        });
        world.now = world.now + Span::seconds(60);
        let shown = world.now;
        world.set_back(Span::seconds(50));
        world.finish(step);
        world.until(|step| matches!(step, Step::Roll { .. }));
        let walk = world.rotation.walk();
        let held_since = walk.held_since(&world.rotation.plan().workloads[0], 1).unwrap();
        assert!(held_since >= shown, "a replica that started before it seems to have read it");
    }
}

#[test]
fn h49_an_undo_leaves_a_version_with_which_replicas_no_longer_come_up() {
    let mut world = World::new(plan(Strategy::Overlap));
    world.until(|step| step == Step::Visit);
    world.finish(Step::Visit);
    world.apply(Event::Parked { reason: ParkReason::GateClosed });
    world.apply(Event::Resumed);
    let roll = world.until(|step| matches!(step, Step::Roll { to: 1, .. }));
    world.refuse(roll, RefusalKind::WorkloadFailed);
    assert!(matches!(world.begin(), Err(Next::Operator(ParkReason::Refused { .. }))));
    world.apply(Event::TurnedBack { because: Because::Operator { because: "test".into() } });
    assert_eq!(world.step(), Ok(Step::Verify(VersionId(7))));
    assert_eq!(world.step(), Ok(Step::Write { store: 0, to: 0 }));
    assert_eq!(world.run_to_rest(), Next::Rest(Outcome::Undone));
}

/// As [`browned_out`], with something changed.
fn browned_out_with(change: impl FnOnce(&mut Plan)) -> World {
    let mut plan = browned_out().rotation.plan().as_ref().clone();
    change(&mut plan);
    World { probes: Some(true), ..World::new(plan) }
}

fn count(world: &World, of: Step) -> usize {
    world.steps.iter().filter(|step| **step == of).count()
}

#[test]
fn looks_that_take_longer_than_a_brown_out_end_it() {
    let mut world = browned_out_with(|plan| plan.policy.brownout = Some(Span::seconds(10)));
    begin_brown_out(&mut world);
    while let Ok(step) = world.begin() {
        let takes = if step == Step::Visit { Span::seconds(25) } else { Span::seconds(1) };
        world.now = world.now + takes;
        world.finish(step);
        assert!(world.steps.len() < 1_000, "it is made again and again");
    }
    assert_eq!(count(&world, Step::Suspend(OLD)), 2);
    assert_eq!(world.rotation.outcome(), Some(Outcome::Completed));
}

#[test]
fn a_look_without_an_answer_resumes_the_version_at_once_and_is_not_made_for_ever() {
    let mut world = browned_out_with(|plan| plan.policy.brownout = Some(Span::minutes(10)));
    let began = begin_brown_out(&mut world);
    let mut suspended = Some(world.now);
    let mut in_all = Span::ZERO;
    let end = loop {
        let step = match world.begin() {
            Ok(step) => step,
            Err(end) => break end,
        };
        assert!(world.now.since(began) < Span::days(10), "suspended for {in_all}");
        let hangs = step == Step::Visit && suspended.is_some();
        world.now = world.now + if hangs { Span::seconds(30) } else { Span::seconds(1) };
        if hangs {
            world.apply(Event::Unknown { step });
            continue;
        }
        world.finish(step);
        match step {
            Step::Suspend(_) => suspended = Some(world.now),
            Step::Resume(_) => {
                in_all = in_all + suspended.take().map_or(Span::ZERO, |at| world.now.since(at))
            }
            _ => {}
        }
    };
    assert_eq!(end, Next::Operator(ParkReason::GateClosed));
    assert!(in_all < Span::minutes(10), "suspended for {in_all}");
}

#[test]
fn brown_outs_that_prove_nothing_end_with_an_operator() {
    let mut world = browned_out_with(|plan| plan.policy.cannot_tell = CannotTell::Wait);
    let began = begin_brown_out(&mut world);
    let end = loop {
        let is_suspended = world.rotation.ending().suspended_at(OLD).is_some();
        world.probes = (!is_suspended).then_some(true);
        if let Err(end) = world.step() {
            break end;
        }
        assert!(world.now.since(began) < Span::days(30), "for ever");
    };
    assert_eq!(end, Next::Operator(ParkReason::GateClosed));
}

#[test]
fn a_brown_out_in_which_no_probe_answered_proves_nothing_whatever_policy_says_of_soak() {
    let mut world = browned_out();
    begin_brown_out(&mut world);
    world.probes = None;
    world.until(|step| step == Step::Resume(OLD));
    world.finish(Step::Resume(OLD));
    assert_eq!(world.rotation.ending().soak_counted(), Span::ZERO);
}

#[test]
fn a_version_that_may_be_suspended_for_a_brown_out_waits_for_no_gate() {
    let mut world = browned_out_with(|plan| plan.policy.cannot_tell = CannotTell::Wait);
    let suspend = world.until(suspends);
    world.now = world.now + Span::hours(1);
    world.apply(Event::Unknown { step: suspend });
    let from = world.now;
    world.probes = None;
    world.until(|step| step == Step::Resume(OLD));
    assert!(world.now.since(from) < Span::minutes(5), "after {}", world.now.since(from));
}

#[test]
fn h93_probes_that_turn_red_after_a_suspend_without_an_answer_resume_the_version() {
    for brownout in [None, Some(Span::minutes(10))] {
        let mut world = browned_out_with(|plan| plan.policy.brownout = brownout);
        if brownout.is_some() {
            begin_brown_out(&mut world);
        }
        let suspend = world.until(suspends);
        assert!(world.rotation.ending().soaked_at().is_some());
        world.now = world.now + Span::hours(1);
        world.apply(Event::Unknown { step: suspend });
        world.probes = Some(false);
        let resumed = count(&world, Step::Resume(OLD));
        assert_eq!(world.run_to_rest(), Next::Operator(ParkReason::RedAfterSuspend));
        assert_eq!(count(&world, Step::Resume(OLD)), resumed + 1);
    }
}

#[test]
fn h32_a_wall_clock_that_is_set_back_makes_no_brown_out_longer() {
    let mut world = browned_out();
    begin_brown_out(&mut world);
    world.step().unwrap();
    world.set_back(Span::hours(5));
    let from = world.now;
    world.until(|step| step == Step::Resume(OLD));
    assert!(world.now.since(from) < Span::minutes(15), "for {}", world.now.since(from));
}

#[test]
fn nobody_stays_for_a_brown_out_that_is_parked_or_over() {
    let mut world = browned_out();
    begin_brown_out(&mut world);
    world.now = world.now + Span::hours(3);
    let resume = world.until(|step| step == Step::Resume(OLD));
    assert!(world.rotation.is_browned_out() && world.rotation.is_watched());
    world.refuse(resume, RefusalKind::Permission);
    assert!(matches!(world.begin(), Err(Next::Operator(_))));
    assert!(world.rotation.is_browned_out() && !world.rotation.is_watched());
    world.apply(Event::Resolved { outcome: Outcome::Completed, because: "a test".into() });
    assert!(!world.rotation.is_browned_out() && !world.rotation.is_watched());
}

#[test]
fn a_version_is_browned_out_until_it_is_resumed() {
    let mut world = browned_out();
    begin_brown_out(&mut world);
    world.until(|step| step == Step::Resume(OLD));
    assert!(world.rotation.is_browned_out());
    world.finish(Step::Resume(OLD));
    assert!(!world.rotation.is_browned_out() && !world.rotation.is_watched());
}

#[test]
fn whoever_began_a_brown_out_stays_until_its_suspend_can_no_longer_land() {
    let mut world = browned_out_with(|plan| {
        plan.policy.brownout = Some(Span::seconds(20));
        plan.issuer.facts.settle_for = Span::minutes(2);
    });
    let suspend = world.until(suspends);
    world.apply(Event::Unknown { step: suspend });
    begin_brown_out(&mut world);
    world.until(|step| step == Step::Resume(OLD));
    world.finish(Step::Resume(OLD));
    assert!(matches!(world.rotation.next(world.now), Next::Wait { why: Why::Settle, .. }));
    assert!(world.rotation.is_watched());
    world.until(|step| step == Step::Resume(OLD));
    world.finish(Step::Resume(OLD));
    assert!(!world.rotation.is_watched());
}

#[test]
fn a_version_is_not_suspended_while_a_resume_may_still_land() {
    let mut world = browned_out_with(|plan| plan.issuer.facts.last_used = None);
    begin_brown_out(&mut world);
    world.now = world.now + Span::hours(3);
    let resume = world.until(|step| step == Step::Resume(OLD));
    world.apply(Event::Unknown { step: resume });
    let unanswered_at = world.now;
    world.until(suspends);
    assert!(world.now.since(unanswered_at) >= Span::seconds(60));
}

#[test]
fn nobody_else_s_move_is_waited_for_while_a_version_is_suspended_for_a_look() {
    let mut watched = browned_out();
    begin_brown_out(&mut watched);
    watched.step().unwrap();
    watched.probes = Some(false);
    watched.step().unwrap();
    let moving = World::new(plan(Strategy::Overlap));
    let next = turn(&[&watched.rotation, &moving.rotation], watched.now);
    assert_eq!(next, Turn::Do([(0, Step::Resume(OLD))].into_iter().collect()));
}

#[test]
fn a_brown_out_that_nobody_watched_between_two_looks_is_made_again() {
    let mut world = browned_out();
    begin_brown_out(&mut world);
    world.step().unwrap();
    world.now = world.now + Span::minutes(19);
    world.until(|step| step == Step::Resume(OLD));
    world.finish(Step::Resume(OLD));
    begin_brown_out(&mut world);
}
