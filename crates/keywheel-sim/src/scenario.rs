//! What a life begins with: issuers, stores and workloads of a random shape, and the plans that rotate them.

use std::sync::Arc;

use keywheel_core::facts::{
    Authority, IssuerFacts, LastUsedFacts, LeaseFacts, Observe, Pickup, ReadBack, Revert,
    StoreFacts, ValueOrigin, WorkloadFacts,
};
use keywheel_core::fingerprint::Fingerprinter;
use keywheel_core::plan::{
    Bound, CannotTell, FORMAT, IssuerPlan, Keep, Mode, Part, Plan, Policy, ProbePlan, Reason, Role,
    Slot, StorePlan, VersionRef, WorkloadPlan,
};
use keywheel_core::secret::{Field, SecretName};
use keywheel_core::strategy::Strategy;
use keywheel_core::time::Span;
use keywheel_core::version::{IssuedId, State, VersionId};
use smallvec::SmallVec;

use crate::faults::{Fault, StepKind};
use crate::random::Random;
use crate::world::{
    self, Book, BrownOut, Credential, Held, Kind, Millis, Replica, STORE_SETTLES, Secret, Up,
    Workload, World,
};

/// How long any replica may take a token after it was signed: the plan's longest life and skew, less what a leap of the wall
/// clock takes from a wait.
const TOKENS_LIVE: Millis = 17 * 60_000 - 5_000;

/// What is rotated, by the shape of its issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Keys with labels, shown once.
    Keys,
    /// Keys with labels that can be read again.
    Rereadable,
    /// Keys whose value is ours.
    OurKeys,
    /// Keys without labels.
    Unlabelled,
    /// Keys whose issuer cannot be asked.
    Blind,
    /// A signing secret.
    Keyring,
    /// Two logins.
    Logins,
    /// One value at a time.
    Reset,
    /// A lease that is replaced.
    Lease,
    /// A lease that is extended.
    Extension,
    /// An encryption key.
    Append,
    /// A value that nobody checks.
    Unchecked,
}

impl Shape {
    pub(crate) const ALL: [Self; 12] = [
        Self::Keys,
        Self::Rereadable,
        Self::OurKeys,
        Self::Unlabelled,
        Self::Blind,
        Self::Keyring,
        Self::Logins,
        Self::Reset,
        Self::Lease,
        Self::Extension,
        Self::Append,
        Self::Unchecked,
    ];

    /// A shape, the common ones more often; where a step must happen, one in which it can.
    pub(crate) fn draw(random: &mut Random, focus: Option<(StepKind, Fault)>) -> Self {
        if let Some((step, fault)) = focus {
            match step {
                // A mint that takes the place of what the lost one made.
                StepKind::Evidence if fault == Fault::JournalBehind => return Self::Reset,
                StepKind::Suspend | StepKind::Resume => {
                    return random.pick(&[Self::Keys, Self::Logins]);
                }
                StepKind::RevokeStray => return Self::Keys,
                StepKind::FindMint => {
                    return random.pick(&[
                        Self::Keys,
                        Self::Rereadable,
                        Self::OurKeys,
                        Self::Lease,
                    ]);
                }
                StepKind::Sweep | StepKind::Revoke => {
                    return random.pick(&[Self::Keys, Self::Rereadable, Self::Lease]);
                }
                StepKind::Extend => return Self::Extension,
                StepKind::KeepAlive => return Self::Lease,
                StepKind::VerifyDead => {
                    return random.pick(&[Self::Keys, Self::Keyring, Self::Logins]);
                }
                _ => {}
            }
        }
        match random.below(100) {
            0..34 => Self::Keys,
            34..40 => Self::Rereadable,
            40..47 => Self::OurKeys,
            47..51 => Self::Unlabelled,
            51..53 => Self::Blind,
            53..75 => Self::Keyring,
            75..83 => Self::Logins,
            83..88 => Self::Reset,
            88..93 => Self::Lease,
            93..95 => Self::Extension,
            95..97 => Self::Append,
            _ => Self::Unchecked,
        }
    }

    pub(crate) fn strategy(self) -> Strategy {
        match self {
            Self::Keys
            | Self::Rereadable
            | Self::OurKeys
            | Self::Unlabelled
            | Self::Blind
            | Self::Unchecked => Strategy::Overlap,
            Self::Keyring => {
                Strategy::Keyring { longest_token: Span::minutes(15), skew: Span::minutes(2) }
            }
            Self::Logins => Strategy::Alternate,
            Self::Reset => Strategy::Cutover,
            Self::Lease | Self::Extension => Strategy::Lease,
            Self::Append => Strategy::Append,
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Keyring | Self::Append | Self::Unchecked => Kind::Nothing,
            Self::Logins => Kind::Logins,
            Self::Reset => Kind::Reset,
            _ => Kind::Keys,
        }
    }

    fn value(self) -> ValueOrigin {
        match self {
            Self::Keys | Self::Unlabelled | Self::Blind | Self::Lease | Self::Extension => {
                ValueOrigin::Theirs
            }
            Self::Rereadable => ValueOrigin::TheirsRereadable,
            _ => ValueOrigin::Ours,
        }
    }

    fn observe(self) -> Observe {
        match self {
            Self::Keys | Self::Rereadable | Self::Logins | Self::Lease | Self::Extension => {
                Observe::Label
            }
            Self::Unlabelled => Observe::IdSetDifference,
            Self::Blind => Observe::None,
            _ => Observe::Probe,
        }
    }

    fn authority(self) -> Authority {
        match self {
            Self::Keyring => Authority::Workload,
            Self::Append | Self::Unchecked => Authority::None,
            _ => Authority::Issuer,
        }
    }
}

/// Everything that a life begins with.
pub(crate) struct Scenario {
    pub(crate) world: World,
    pub(crate) groups: Vec<Vec<Arc<Plan>>>,
    pub(crate) shapes: SmallVec<[Shape; 3]>,
    pub(crate) bad: bool,
    pub(crate) unidentified: bool,
}

/// Draws a scenario.
pub(crate) fn draw(
    seed: u64,
    fingerprinter: Arc<Fingerprinter>,
    focus: Option<(StepKind, Fault)>,
    shape: Option<Shape>,
) -> Scenario {
    let mut world = World::new(seed, fingerprinter);
    let mut random = world.random.clone();
    world.outside_clock = random.chance(30);
    let fixed = focus.is_some_and(|(step, fault)| {
        let is_reset = step == StepKind::Evidence && fault == Fault::JournalBehind;
        is_reset
            || matches!(
                step,
                StepKind::Extend
                    | StepKind::KeepAlive
                    | StepKind::FindMint
                    | StepKind::Sweep
                    | StepKind::Revoke
            )
    });
    let alone = shape.is_some() || fixed || random.chance(85);
    let secrets = if alone { 1 } else { 2 + random.below(2) as usize };
    let shapes: SmallVec<[Shape; 3]> = (0..secrets)
        .map(|_| {
            shape.unwrap_or_else(|| {
                loop {
                    let shape = Shape::draw(&mut random, focus);
                    // Members of a batch move together; what goes forward only never joins one.
                    if alone
                        || matches!(
                            shape.strategy(),
                            Strategy::Overlap | Strategy::Keyring { .. } | Strategy::Alternate
                        )
                    {
                        break shape;
                    }
                }
            })
        })
        .collect();
    let wants = focus.map(|(step, _)| step);
    let bad = matches!(wants, Some(StepKind::Resume)) || random.chance(4);
    let bad = bad && wants != Some(StepKind::Resume);
    let unidentified = wants.is_none() && random.chance(3);
    let policy = policy(&mut random, wants);
    let workloads = 1 + usize::from(random.chance(25));
    for _ in 0..workloads {
        let shows_slots = random.chance(40);
        world.workloads.push(Workload {
            slots: SmallVec::new(),
            shows_slots,
            is_live: !shows_slots && random.chance(30),
            granularity: random.pick(&[1, 10, 1_000]),
            restart_for: random.between(100, 6_000),
            settle_for: 60_000,
            replicas: SmallVec::new(),
            rolls: SmallVec::new(),
        });
    }
    let mut plans = Vec::new();
    for secret in 0..secrets {
        plans.push(add_secret(
            &mut world,
            &mut random,
            secret,
            shapes[secret],
            &policy,
            bad,
            unidentified,
        ));
    }
    let replicas = 1 + random.below(3) as usize;
    for workload in 0..world.workloads.len() {
        for _ in 0..replicas {
            let held = world.workloads[workload]
                .slots
                .iter()
                .map(|slot| world.slots[*slot].held)
                .collect();
            let started_wall = world::EPOCH - 86_400_000;
            world.workloads[workload].replicas.push(Replica {
                up: Up::Serving,
                started_wall,
                held,
                generation: 0,
            });
        }
    }
    let batched = random.chance(60);
    let groups = if batched || secrets == 1 {
        let names: Vec<SecretName> = plans.iter().map(|plan| plan.secret.clone()).collect();
        if secrets > 1 {
            plans.iter_mut().for_each(|plan| plan.batch.clone_from(&names));
        }
        vec![plans.into_iter().map(Arc::new).collect()]
    } else {
        plans.into_iter().map(|plan| vec![Arc::new(plan)]).collect()
    };
    world.random = random;
    Scenario { world, groups, shapes, bad, unidentified }
}

fn policy(random: &mut Random, wants: Option<StepKind>) -> Policy {
    let retirement = matches!(
        wants,
        Some(StepKind::Visit | StepKind::Suspend | StepKind::Resume | StepKind::Revoke)
    );
    let soak = random.pick(&[
        Span::ZERO,
        Span::seconds(30),
        Span::minutes(10),
        Span::hours(24),
        Span::hours(24),
    ]);
    Policy {
        soak: if retirement { Span::hours(4) } else { soak },
        brownout: if random.chance(30) { Some(Span::minutes(10)) } else { None },
        rollback: random.pick(&[Span::ZERO, Span::minutes(30), Span::days(2)]),
        keep: random.pick(&[Keep::Exposure, Keep::Rollback]),
        cannot_tell: random.pick(&[CannotTell::Wait, CannotTell::Allow]),
        refusals: random.pick(&[1, 2, 3]),
        ..Policy::default()
    }
}

fn add_secret(
    world: &mut World,
    random: &mut Random,
    secret: usize,
    shape: Shape,
    policy: &Policy,
    bad: bool,
    unidentified: bool,
) -> Plan {
    let lag = random.pick(&[0, 0, 5_000, 20_000]);
    let facts = facts(random, shape, lag);
    let value = world.new_value(Some(secret));
    let keyring = matches!(shape, Shape::Keyring | Shape::Append);
    let stores = 1 + random.below(3) as usize;
    let token_life = if shape == Shape::Keyring { TOKENS_LIVE } else { 0 };
    let lifetime = matches!(shape, Shape::Lease | Shape::Extension).then_some(40 * 86_400_000);
    let mut known = Secret {
        kind: shape.kind(),
        facts: facts.clone(),
        lag,
        end_lag: facts.propagation.as_millis() as Millis * i64::from(random.chance(50)),
        lifetime,
        credentials: Vec::new(),
        signed: SmallVec::new(),
        token_life,
        rogue_until: 0,
        next_is_bad: bad,
        outage_declared: false,
        emergency: false,
        slots: SmallVec::new(),
        workloads: SmallVec::new(),
        call_for: policy.call.as_millis() as Millis,
        tampered: false,
        duplicated: false,
    };
    let issued = match shape.kind() {
        Kind::Nothing => None,
        Kind::Logins => Some(IssuedId { id: "login_a".into(), generation: Some(1) }),
        Kind::Keys | Kind::Reset => Some(IssuedId::new("k0")),
    };
    if let Some(issued) = &issued {
        known.credentials.push(credential(issued, value, lifetime, false));
        if shape.kind() == Kind::Keys && random.chance(50) {
            let foreign = world.new_value(None);
            known.credentials.push(credential(&IssuedId::new("k1"), foreign, None, true));
        }
    }
    let mut store_plans = Vec::new();
    for store in 0..stores {
        // What is in use is read somewhere: the first store of a secret, and every one of a keyring, which has slots to be free.
        let read_back = match random.below(20) {
            _ if keyring || store == 0 => ReadBack::Value,
            0 => ReadBack::None,
            1 | 2 => ReadBack::Timestamp,
            _ => ReadBack::Value,
        };
        let container = if random.chance(50) { store } else { 10 * (secret + 1) + store };
        let mut slots = Vec::new();
        let first = world.slots.len();
        for (role, held) in [(Role::Current, Held::Value(value)), (Role::AlsoAccepted, Held::Empty)]
        {
            if role == Role::AlsoAccepted && !keyring {
                continue;
            }
            let index = world.slots.len();
            let is_current = role == Role::Current;
            world.slots.push(world::Slot {
                secret,
                store_of: first,
                container,
                is_current,
                held,
                before: held,
                before_write: held,
                written: held,
                changed_at: 0,
                was_told: false,
                edit_was_told: false,
                tells_time_only: read_back == ReadBack::Timestamp,
                is_readable: read_back == ReadBack::Value,
            });
            known.slots.push(index);
            slots.push(Slot {
                address: format!("SLOT{index}"),
                role,
                part: Part::Plain(Field::value()),
            });
        }
        let facts = StoreFacts {
            read_back,
            conditional: true,
            staged: false,
            revert: Revert::Restore,
            history: false,
            pickup: Pickup::Roll,
            settle_for: Span::millis(STORE_SETTLES as u64),
            answers_logins: false,
            leaves_behind: store > 0,
            longest_run: None,
        };
        store_plans.push(StorePlan {
            bound: bound(format!("store{store}")),
            facts,
            slots,
            pin: None,
        });
    }
    let mut workload_plans = Vec::new();
    for workload in 0..world.workloads.len() {
        // Every workload reads every store of the first secret, so that each has something to hold.
        let reads: Vec<u8> =
            (0..stores as u8).filter(|store| *store == 0 || random.chance(70)).collect();
        for store in &reads {
            for slot in &store_plans[usize::from(*store)].slots {
                world.workloads[workload].slots.push(crate::drivers::index(&slot.address));
            }
        }
        known.workloads.push(workload);
        let facts = WorkloadFacts {
            settle_for: Span::seconds(60),
            start_granularity: Span::millis(world.workloads[workload].granularity as u64),
            answers_tokens: shape == Shape::Keyring,
            gap: false,
        };
        workload_plans.push(WorkloadPlan {
            bound: bound(format!("workload{workload}")),
            facts,
            reads,
            pin: None,
        });
    }
    let held = world.fingerprint(value);
    let fingerprint = world.fingerprinter.digest([("value", Some(&held))]);
    world.secrets.push(known);
    world.book.push(Book {
        epoch: 0,
        holder: None,
        claimed_until: 0,
        rotation: None,
        next: 0,
        intent: None,
        running: SmallVec::new(),
        taken: Vec::new(),
        outcome: None,
        planned: 0,
        promoted_at: 0,
        sampled_at: None,
        refused: None,
        brown_out: BrownOut::default(),
        touched: Vec::new(),
    });
    Plan {
        format: FORMAT,
        installation: "simulation".into(),
        secret: SecretName::new(&format!("secret{secret}"), "sim").expect("a plain name"),
        reason: Reason::Requested,
        because: None,
        strategy: shape.strategy(),
        mode: Mode::Normal,
        previous: Some(VersionRef {
            version: VersionId(7),
            issued: issued
                .filter(|_| !unidentified || matches!(shape, Shape::Extension | Shape::Logins)),
            state: State::Active,
            fingerprint: Some(fingerprint),
        }),
        pending: VersionId(8),
        suspects: Vec::new(),
        takes_over: None,
        inherits_until: None,
        incident: None,
        extend: shape == Shape::Extension,
        batch: Vec::new(),
        folder: "/srv".into(),
        issuer: IssuerPlan { bound: bound("issuer0".into()), facts },
        stores: store_plans,
        workloads: workload_plans,
        probes: if random.chance(50) {
            vec![ProbePlan { bound: bound("probe0".into()) }]
        } else {
            Vec::new()
        },
        policy: policy.clone(),
    }
}

fn facts(random: &mut Random, shape: Shape, lag: Millis) -> IssuerFacts {
    let issuer = shape.authority() == Authority::Issuer;
    let last_used = LastUsedFacts {
        lag: random.pick(&[Span::seconds(30), Span::minutes(5)]),
        granularity: random.pick(&[Span::seconds(1), Span::minutes(1)]),
    };
    IssuerFacts {
        label: shape.observe() == Observe::Label,
        suspend: shape == Shape::Logins || (shape == Shape::Keys && random.chance(60)),
        destroy: issuer && shape != Shape::Reset,
        reset_repeatable: shape == Shape::Reset,
        last_used: (issuer && shape != Shape::Reset && random.chance(50)).then_some(last_used),
        propagation: if issuer {
            random.pick(&[Span::ZERO, Span::seconds(30)])
        } else {
            Span::ZERO
        },
        settle_for: Span::millis(60_000 + lag as u64),
        takes_turns: shape == Shape::Logins,
        lease: (shape == Shape::Lease)
            .then_some(LeaseFacts { longest_life: Some(Span::days(400)) }),
        ..IssuerFacts::new(shape.value(), shape.observe(), shape.authority())
    }
}

fn credential(
    issued: &IssuedId,
    value: u16,
    lifetime: Option<Millis>,
    bystander: bool,
) -> Credential {
    Credential {
        name: issued.id.clone(),
        generation: issued.generation,
        label: None,
        value,
        state: world::State::Live,
        accepted_from: -1,
        listed_from: -1,
        ended_at: Millis::MAX,
        expires_at: lifetime,
        used_at: None,
        bystander,
    }
}

fn bound(name: String) -> Bound {
    Bound { name, driver: serde_json::Value::Null }
}
