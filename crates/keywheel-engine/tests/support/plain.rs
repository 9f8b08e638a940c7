//! The plainest plan there is: one issuer, one store, one workload, and every fact at its simplest.

use keywheel_core::facts::{
    Authority, IssuerFacts, Observe, Pickup, ReadBack, Revert, StoreFacts, ValueOrigin,
    WorkloadFacts,
};
use keywheel_core::plan::{
    Bound, FORMAT, IssuerPlan, Mode, Part, Plan, Policy, Reason, Role, Slot, StorePlan, VersionRef,
    WorkloadPlan,
};
use keywheel_core::secret::{Field, SecretName};
use keywheel_core::strategy::Strategy;
use keywheel_core::time::Span;
use keywheel_core::version::VersionId;

pub(crate) const ISSUER: IssuerFacts = IssuerFacts {
    label: true,
    destroy: true,
    propagation: Span::ZERO,
    settle_for: Span::ZERO,
    ..IssuerFacts::new(ValueOrigin::Theirs, Observe::Label, Authority::Issuer)
};

pub(crate) const STORE: StoreFacts = StoreFacts {
    read_back: ReadBack::Value,
    conditional: true,
    staged: false,
    revert: Revert::Restore,
    history: false,
    pickup: Pickup::Roll,
    settle_for: Span::ZERO,
    answers_logins: false,
    leaves_behind: false,
    longest_run: None,
};

pub(crate) const WORKLOAD: WorkloadFacts = WorkloadFacts {
    settle_for: Span::ZERO,
    start_granularity: Span::ZERO,
    answers_tokens: false,
    gap: false,
};

/// Returns the plan of a rotation by overlap, with neither soak nor rollback window.
pub(crate) fn plain_plan(secret: &SecretName, previous: VersionRef, pending: VersionId) -> Plan {
    let bound = |what: &str| Bound {
        name: format!("{what} of {}", secret.name()),
        driver: serde_json::json!({}),
    };
    Plan {
        format: FORMAT,
        installation: "test".into(),
        secret: secret.clone(),
        reason: Reason::Requested,
        because: None,
        strategy: Strategy::Overlap,
        mode: Mode::Normal,
        previous: Some(previous),
        pending,
        suspects: Vec::new(),
        takes_over: None,
        inherits_until: None,
        incident: None,
        extend: false,
        batch: Vec::new(),
        folder: "/".into(),
        issuer: IssuerPlan { bound: bound("issuer"), facts: ISSUER },
        stores: vec![StorePlan {
            bound: bound("store"),
            facts: STORE,
            slots: vec![Slot {
                address: "KEY".into(),
                role: Role::Current,
                part: Part::Plain(Field::value()),
            }],
            pin: None,
        }],
        workloads: vec![WorkloadPlan {
            bound: bound("workload"),
            facts: WORKLOAD,
            reads: vec![0],
            pin: None,
        }],
        probes: Vec::new(),
        policy: Policy { soak: Span::ZERO, rollback: Span::ZERO, ..Policy::default() },
    }
}
