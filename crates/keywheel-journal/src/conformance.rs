//! The suite that every journal passes.
//!
//! [`all`] takes a way to make an empty journal and panics where one breaks a promise of [`Journal`]. Each promise is a
//! function of its own, so that a failure names it.

use std::sync::Arc;

use keywheel_core::call::{Refusal, RefusalKind};
use keywheel_core::event::{Event, Outcome, Report, Step};
use keywheel_core::facts::{Authority, IssuerFacts, Observe, ValueOrigin};
use keywheel_core::inventory::Inventory;
use keywheel_core::plan::{Bound, IssuerPlan, Mode, Plan, Policy, Reason, RotationId};
use keywheel_core::secret::{Credential, SecretName, SecretValue};
use keywheel_core::strategy::Strategy;
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::VersionId;

use crate::audit::contradiction;
use crate::{
    Actor, Append, Entry, Epoch, Holder, Journal, JournalError, Resource, Sealed, ValueKey,
};

/// Puts one journal after another through every promise.
pub async fn all(mut make: impl FnMut() -> Box<dyn Journal>) {
    records_come_back_as_they_were_written(&*make()).await;
    an_append_continues_the_sequence_or_is_refused(&*make()).await;
    a_stale_epoch_cannot_append(&*make()).await;
    a_claim_is_exclusive_until_its_lease_ends(&*make()).await;
    a_secret_has_one_open_rotation(&*make()).await;
    an_emergency_takes_over_in_one_commit(&*make()).await;
    wave_leases_are_taken_all_or_none(&*make()).await;
    an_append_over_two_rotations_is_one_commit(&*make()).await;
    values_are_sealed_with_the_commit_and_destroyed_with_it(&*make()).await;
    the_inventory_changes_with_the_commit(&*make()).await;
    every_entry_is_a_link_of_the_audit_chain(&*make()).await;
    rotations_are_listed_newest_first(&*make()).await;
    an_append_that_contradicts_itself_is_refused(&*make()).await;
}

/// Checks that records come back whole and in order (H03).
pub async fn records_come_back_as_they_were_written(journal: &dyn Journal) {
    let begun = Begun::of(journal, "a@test").await;
    let events = vec![
        Event::Intended { step: Step::Preflight, until: at(40), clocks: None },
        Event::Refused {
            step: Step::Preflight,
            refusal: Refusal::operator(RefusalKind::Permission, "no"),
        },
        Event::Done { step: Step::Mint { attempt: 1 }, report: Report::Plain },
        Event::Unknown { step: Step::Sweep },
    ];
    for (index, event) in events.iter().enumerate() {
        begun
            .append(journal, index as u64 + 1, event.clone())
            .await
            .expect("the next record is taken");
    }
    let records = journal.records(&begun.rotation).await.expect("records can be read");
    let plan = Event::Planned(Arc::new(plan("a@test")));
    let found: Vec<&Event> = records.iter().map(|record| &record.event).collect();
    assert_eq!(found, std::iter::once(&plan).chain(&events).collect::<Vec<_>>());
    assert!(records.iter().enumerate().all(|(index, record)| record.sequence == index as u64));
    assert!(records.iter().all(|record| record.actor == actor()
        && record.epoch == begun.epoch
        && record.at == at(1)));
    assert_eq!(journal.records(&RotationId("none".into())).await.expect("reads"), Vec::new());
}

/// Checks that a record goes to its place or nowhere (I05).
pub async fn an_append_continues_the_sequence_or_is_refused(journal: &dyn Journal) {
    let begun = Begun::of(journal, "a@test").await;
    for sequence in [2, 3, 99] {
        assert_stale(begun.append(journal, sequence, Event::Resumed).await);
    }
    begun.append(journal, 1, Event::Resumed).await.expect("the next record is taken");
    assert_stale(begun.append(journal, 1, Event::StageClosed).await);
    assert_stale(begun.append(journal, 0, Event::Planned(Arc::new(plan("a@test")))).await);
    assert_eq!(journal.records(&begun.rotation).await.expect("reads").len(), 2);
    begun.append(journal, 2, Event::Ended { outcome: Outcome::Undone }).await.expect("it ends");
    assert_stale(begun.append(journal, 3, Event::Resumed).await);

    let other = Begun::of(journal, "b@test").await;
    let foreign = Entry { rotation: begun.rotation.clone(), ..other.entry(3, Event::Resumed) };
    assert_stale(append(journal, vec![foreign]).await);
}

/// Checks that only the present epoch of a secret can write (H25, I05).
pub async fn a_stale_epoch_cannot_append(journal: &dyn Journal) {
    let begun = Begun::of(journal, "a@test").await;
    let unclaimed = Entry {
        secret: name("b@test"),
        ..begun.entry(0, Event::Planned(Arc::new(plan("b@test"))))
    };
    assert_stale(append(journal, vec![unclaimed]).await);

    let later =
        journal.claim(&name("a@test"), &holder("second"), at(11_000), Span::seconds(10)).await;
    let later = later.expect("the lease is over");
    assert!(later > begun.epoch);
    assert_stale(begun.append(journal, 1, Event::Resumed).await);
    let taken_over = Begun { epoch: later, ..begun };
    taken_over.append(journal, 1, Event::Resumed).await.expect("the new epoch writes");
    journal
        .give_up(&name("a@test"), Epoch(later.0 - 1))
        .await
        .expect("a stale epoch gives nothing up");
    taken_over.append(journal, 2, Event::Resumed).await.expect("the new epoch still writes");
    journal.give_up(&name("a@test"), later).await.expect("it is given up");
    assert_stale(taken_over.append(journal, 3, Event::Resumed).await);
}

/// Checks that one holder at a time has a secret, and that epochs only grow.
pub async fn a_claim_is_exclusive_until_its_lease_ends(journal: &dyn Journal) {
    let secret = name("a@test");
    let claim = |who: &'static str, now: i64| {
        let secret = secret.clone();
        async move { journal.claim(&secret, &holder(who), at(now), Span::seconds(10)).await }
    };
    let first = claim("first", 0).await.expect("nobody holds it");
    assert_eq!(claim("first", 5_000).await.expect("it is its own"), first);
    match claim("second", 14_999).await {
        Err(JournalError::Held { secret: held, until, .. }) => {
            assert_eq!((held, until), (secret.clone(), at(15_000)))
        }
        other => panic!("the extended lease was not respected: {other:?}"),
    }
    let second = claim("second", 15_000).await.expect("the lease is over");
    assert_eq!(second, Epoch(first.0 + 1));
    assert!(matches!(claim("first", 15_001).await, Err(JournalError::Held { .. })));
    journal.give_up(&secret, second).await.expect("it is given up");
    assert_eq!(claim("first", 15_002).await.expect("it was given up"), Epoch(second.0 + 1));
    let other = journal.claim(&name("b@test"), &holder("second"), at(0), Span::seconds(10)).await;
    other.expect("another secret is held by itself");
}

/// Checks that a second rotation of a secret waits for the first one's end (I05).
pub async fn a_secret_has_one_open_rotation(journal: &dyn Journal) {
    let begun = Begun::of(journal, "a@test").await;
    let again = Plan { because: Some("again".into()), ..plan("a@test") };
    let second = Begun { rotation: again.rotation(), ..begun.clone() };
    let planned = || Event::Planned(Arc::new(again.clone()));
    match second.append(journal, 0, planned()).await {
        Err(JournalError::OpenAlready { rotation, .. }) => assert_eq!(rotation, begun.rotation),
        other => panic!("two rotations are open: {other:?}"),
    }
    let resolved = Event::Resolved { outcome: Outcome::Undone, because: "done by hand".into() };
    begun.append(journal, 1, resolved).await.expect("it is closed");
    second.append(journal, 0, planned()).await.expect("the first one is closed");
    Begun::of(journal, "b@test").await;
}

/// Checks that a rotation can be superseded and its successor begun in one commit (H125).
pub async fn an_emergency_takes_over_in_one_commit(journal: &dyn Journal) {
    let begun = Begun::of(journal, "a@test").await;
    let file = Resource("file".into());
    append(journal, vec![begun.taking(1, &[&file])]).await.expect("it is free");
    let mode = Mode::Emergency { revoke_first: false, stage_for: Span::minutes(5) };
    let emergency = Plan { mode, takes_over: Some(begun.rotation.clone()), ..plan("a@test") };
    let successor = Begun { rotation: emergency.rotation(), ..begun.clone() };
    let superseded = begun.entry(2, Event::Superseded { by: successor.rotation.clone() });
    let planned = successor.entry(0, Event::Planned(Arc::new(emergency)));
    let takes_its_wave = successor.taking(1, &[&file]);
    append(journal, vec![superseded, planned, takes_its_wave]).await.expect("it takes over");
    let rows = journal.rotations(Some(&name("a@test"))).await.expect("reads");
    let open: Vec<_> = rows.iter().map(|row| (row.rotation.clone(), row.open)).collect();
    assert_eq!(open, [(successor.rotation.clone(), true), (begun.rotation, false)]);
    assert_eq!(journal.leases().await.expect("reads"), [(file, successor.rotation)]);
}

/// Checks that a wave gets all of its resources or none, and gives them back.
pub async fn wave_leases_are_taken_all_or_none(journal: &dyn Journal) {
    let (one, two) = (Begun::of(journal, "a@test").await, Begun::of(journal, "b@test").await);
    let [x, y, z] = ["x", "y", "z"].map(|name| Resource(name.into()));
    append(journal, vec![one.taking(1, &[&x, &y])]).await.expect("both are free");
    match append(journal, vec![two.taking(1, &[&z, &y])]).await {
        Err(JournalError::Busy { resource, rotation }) => {
            assert_eq!((&resource, &rotation), (&y, &one.rotation))
        }
        other => panic!("a busy resource was taken: {other:?}"),
    }
    let held = |rotation: &RotationId, resources: &[&Resource]| {
        resources.iter().map(|resource| ((*resource).clone(), rotation.clone())).collect::<Vec<_>>()
    };
    assert_eq!(journal.leases().await.expect("reads"), held(&one.rotation, &[&x, &y]));
    append(journal, vec![one.taking(2, &[&x])]).await.expect("what it holds it may take again");
    let back = Entry { give_back: true, ..one.entry(3, Event::Arrived { at: 1 }) };
    append(journal, vec![back, two.taking(1, &[&z, &y])])
        .await
        .expect("given back in the same commit");
    assert_eq!(journal.leases().await.expect("reads"), held(&two.rotation, &[&y, &z]));
    two.append(journal, 2, Event::Ended { outcome: Outcome::Undone }).await.expect("it ends");
    assert_eq!(journal.leases().await.expect("reads"), Vec::new());

    let clash = vec![one.taking(4, &[&x]), two_again(journal).await.taking(1, &[&x])];
    assert!(matches!(append(journal, clash).await, Err(JournalError::Busy { .. })));
    assert_eq!(journal.leases().await.expect("reads"), Vec::new());
}

/// Checks that entries of several rotations stand or fall together (I03).
pub async fn an_append_over_two_rotations_is_one_commit(journal: &dyn Journal) {
    let (one, two) = (Begun::of(journal, "a@test").await, Begun::of(journal, "b@test").await);
    let refused = vec![one.entry(1, Event::Resumed), two.entry(7, Event::Resumed)];
    assert_stale(append(journal, refused).await);
    assert_eq!(journal.records(&one.rotation).await.expect("reads").len(), 1);
    let continued = vec![
        one.entry(1, Event::Resumed),
        two.entry(1, Event::Resumed),
        one.entry(2, Event::StageClosed),
    ];
    append(journal, continued).await.expect("each continues its own sequence");
    assert_eq!(journal.records(&one.rotation).await.expect("reads").len(), 3);
    assert_eq!(journal.records(&two.rotation).await.expect("reads").len(), 2);
}

/// Checks that values appear and disappear with their commit (H01, H130).
pub async fn values_are_sealed_with_the_commit_and_destroyed_with_it(journal: &dyn Journal) {
    let begun = Begun::of(journal, "a@test").await;
    let (pending, captured) =
        (value_key("a@test", 2, "credential"), value_key("a@test", 1, "slot:env/A"));
    let seal = |key: &ValueKey, value: &str| Sealed { key: key.clone(), value: credential(value) };
    let refused = Entry { seal: vec![seal(&pending, "never")], ..begun.entry(9, Event::Resumed) };
    assert_stale(append(journal, vec![refused]).await);
    assert!(journal.unseal(&pending).await.expect("reads").is_none());

    let both = vec![seal(&pending, "new"), seal(&captured, "old")];
    append(journal, vec![Entry { seal: both, ..begun.entry(1, Event::Resumed) }])
        .await
        .expect("it is sealed");
    assert_eq!(
        journal.sealed(&name("a@test")).await.expect("reads"),
        [captured.clone(), pending.clone()]
    );
    assert_eq!(journal.sealed(&name("b@test")).await.expect("reads"), []);
    assert_opens(journal, &pending, "new").await;
    assert_opens(journal, &captured, "old").await;

    let again = Entry { seal: vec![seal(&pending, "newer")], ..begun.entry(2, Event::Resumed) };
    append(journal, vec![again]).await.expect("it replaces the one of that name");
    assert_opens(journal, &pending, "newer").await;

    let destroy = Entry { destroy: vec![pending.clone()], ..begun.entry(3, Event::Resumed) };
    append(journal, vec![destroy]).await.expect("it is destroyed");
    assert!(journal.unseal(&pending).await.expect("reads").is_none());
    assert_eq!(journal.sealed(&name("a@test")).await.expect("reads"), [captured]);
    let gone = Entry { destroy: vec![pending], ..begun.entry(4, Event::Resumed) };
    append(journal, vec![gone]).await.expect("already gone is destroyed");
}

/// Checks that the row of a secret is of the same commit as its event, and can change without one.
pub async fn the_inventory_changes_with_the_commit(journal: &dyn Journal) {
    let begun = Begun::of(journal, "b@test").await;
    let row = |next: u32| Inventory { next: VersionId(next), ..Inventory::new(name("b@test")) };
    let refused = Entry { inventory: Some(row(9)), ..begun.entry(9, Event::Resumed) };
    assert_stale(append(journal, vec![refused]).await);
    assert_eq!(journal.inventory(&name("b@test")).await.expect("reads"), None);
    let taken = Entry { inventory: Some(row(2)), ..begun.entry(1, Event::Resumed) };
    append(journal, vec![taken]).await.expect("it is taken");
    assert_eq!(journal.inventory(&name("b@test")).await.expect("reads"), Some(row(2)));

    let secret = name("a@test");
    let epoch = journal
        .claim(&secret, &holder("first"), at(0), Span::seconds(10))
        .await
        .expect("it is free");
    let adopted = |epoch| Entry {
        rotation: RotationId("adopt".into()),
        secret: secret.clone(),
        epoch,
        event: None,
        inventory: Some(Inventory::new(secret.clone())),
        ..begun.entry(0, Event::Resumed)
    };
    assert_stale(append(journal, vec![adopted(Epoch(epoch.0 + 1))]).await);
    append(journal, vec![adopted(epoch)]).await.expect("no sequence is asked for");
    append(journal, vec![adopted(epoch)]).await.expect("and may be adopted again");
    assert_eq!(
        journal.inventories().await.expect("reads"),
        [Inventory::new(secret.clone()), row(2)]
    );
    assert_eq!(journal.rotations(Some(&secret)).await.expect("reads"), Vec::new());
    let links = journal.audit(0).await.expect("reads");
    let actions: Vec<_> = links.iter().rev().take(2).map(|link| link.action.as_str()).collect();
    assert_eq!(actions, ["changed the inventory", "adopted"]);
}

/// Checks that each entry has its link, and that the chain holds and only grows (I13, I14).
pub async fn every_entry_is_a_link_of_the_audit_chain(journal: &dyn Journal) {
    let empty = journal.verify_audit().await.expect("reads");
    assert_eq!((empty.links, empty.faults.len()), (0, 0));
    let begun = Begun::of(journal, "a@test").await;
    let exported = journal.verify_audit().await.expect("reads");
    let sealed =
        vec![Sealed { key: value_key("a@test", 2, "credential"), value: credential("new") }];
    let two = vec![
        Entry { seal: sealed, ..begun.entry(1, Event::Resumed) },
        begun.entry(2, Event::StageClosed),
    ];
    append(journal, two).await.expect("it is taken");
    assert_stale(begun.append(journal, 2, Event::Resumed).await);

    let links = journal.audit(0).await.expect("reads");
    let seen: Vec<_> =
        links.iter().map(|link| (link.sequence, link.record, link.action.as_str())).collect();
    assert_eq!(seen, [(0, 0, "planned"), (1, 1, "resumed"), (2, 2, "closed the stage")]);
    assert!(links.windows(2).all(|pair| pair[1].previous_hash == pair[0].hash));
    assert!(
        links.iter().all(|link| link.rotation == begun.rotation && link.secret == name("a@test"))
    );
    assert!(links.iter().all(|link| link.actor == actor()));
    assert_eq!(journal.audit(2).await.expect("reads"), links[2..]);
    let verdict = journal.verify_audit().await.expect("reads");
    assert_eq!((verdict.links, &verdict.head, &verdict.faults), (3, &links[2].hash, &Vec::new()));
    for earlier in [empty, exported, verdict.clone()] {
        assert_eq!(contradiction(journal, &earlier).await.expect("reads"), None);
    }
    let longer = crate::AuditVerdict { links: 4, ..verdict.clone() };
    let other = crate::AuditVerdict { head: "another".into(), ..verdict };
    for contradicted in [longer, other] {
        assert!(contradiction(journal, &contradicted).await.expect("reads").is_some());
    }
}

/// Checks the list of rotations.
pub async fn rotations_are_listed_newest_first(journal: &dyn Journal) {
    let (one, two) = (Begun::of(journal, "b@test").await, Begun::of(journal, "a@test").await);
    let later = Entry { at: at(500), ..one.entry(1, Event::Resumed) };
    let set_back = Entry { at: at(2), ..one.entry(2, Event::Ended { outcome: Outcome::Undone }) };
    append(journal, vec![later]).await.expect("it goes on");
    append(journal, vec![set_back]).await.expect("it ends");
    let rows = journal.rotations(None).await.expect("reads");
    let found: Vec<_> =
        rows.iter().map(|row| (&row.rotation, row.began_at, row.last_at, row.open)).collect();
    assert_eq!(
        found,
        [(&two.rotation, at(1), at(1), true), (&one.rotation, at(1), at(500), false)]
    );
    let of_one = journal.rotations(Some(&name("b@test"))).await.expect("reads");
    assert_eq!(of_one, rows[1..]);
}

/// Checks that nonsense is told apart from a lost race.
pub async fn an_append_that_contradicts_itself_is_refused(journal: &dyn Journal) {
    let begun = Begun::of(journal, "a@test").await;
    let other_row = Some(Inventory::new(name("b@test")));
    let nonsense = [
        vec![],
        vec![begun.entry(1, Event::Planned(Arc::new(plan("a@test"))))],
        vec![begun.entry(0, Event::Resumed)],
        vec![Entry {
            rotation: RotationId("x".into()),
            ..begun.entry(0, Event::Planned(Arc::new(plan("b@test"))))
        }],
        vec![Entry { inventory: other_row, ..begun.entry(1, Event::Resumed) }],
        vec![Entry { event: None, ..begun.entry(1, Event::Resumed) }],
    ];
    for entries in nonsense {
        assert!(matches!(append(journal, entries).await, Err(JournalError::Malformed(_))));
    }
    assert_eq!(journal.audit(0).await.expect("reads").len(), 1);
}

/// A rotation that was begun, for tests that go on from there.
#[derive(Clone)]
pub struct Begun {
    /// Its secret.
    pub secret: SecretName,
    /// Its id.
    pub rotation: RotationId,
    /// The epoch under which the secret is held.
    pub epoch: Epoch,
}

impl Begun {
    /// Claims a secret for ten seconds from 0 on, and begins its rotation.
    pub async fn of(journal: &dyn Journal, secret: &str) -> Self {
        let plan = plan(secret);
        let secret = name(secret);
        let epoch = journal.claim(&secret, &holder("first"), at(0), Span::seconds(10)).await;
        let begun =
            Self { rotation: plan.rotation(), secret, epoch: epoch.expect("nobody else holds it") };
        begun
            .append(journal, 0, Event::Planned(Arc::new(plan)))
            .await
            .expect("no rotation is open");
        begun
    }

    /// Makes an entry with nothing but an event.
    pub fn entry(&self, sequence: u64, event: Event) -> Entry {
        Entry {
            group: self.rotation.clone(),
            rotation: self.rotation.clone(),
            secret: self.secret.clone(),
            epoch: self.epoch,
            sequence,
            at: at(1),
            event: Some(event),
            inventory: None,
            seal: Vec::new(),
            destroy: Vec::new(),
            take: Vec::new(),
            give_back: false,
        }
    }

    /// Appends one event.
    ///
    /// # Errors
    /// Whatever the journal answers.
    pub async fn append(
        &self,
        journal: &dyn Journal,
        sequence: u64,
        event: Event,
    ) -> Result<(), JournalError> {
        append(journal, vec![self.entry(sequence, event)]).await
    }

    fn taking(&self, sequence: u64, resources: &[&Resource]) -> Entry {
        let take = resources.iter().map(|resource| (*resource).clone()).collect();
        Entry { take, ..self.entry(sequence, Event::MoveBegun { to: 1 }) }
    }
}

/// Appends entries.
///
/// # Errors
/// Whatever the journal answers.
pub async fn append(journal: &dyn Journal, entries: Vec<Entry>) -> Result<(), JournalError> {
    journal.append(Append { actor: actor(), entries }).await
}

/// Makes a small plan for a secret.
pub fn plan(secret: &str) -> Plan {
    Plan {
        format: keywheel_core::plan::FORMAT,
        installation: "here".into(),
        secret: name(secret),
        reason: Reason::Requested,
        because: None,
        strategy: Strategy::Overlap,
        mode: Mode::Normal,
        previous: None,
        pending: VersionId(1),
        suspects: Vec::new(),
        takes_over: None,
        inherits_until: None,
        incident: None,
        extend: false,
        batch: Vec::new(),
        folder: "/srv".into(),
        issuer: IssuerPlan {
            bound: Bound {
                name: "random".into(),
                driver: serde_json::json!({"random": {"length": 32}}),
            },
            facts: issuer_facts(),
        },
        stores: Vec::new(),
        workloads: Vec::new(),
        probes: Vec::new(),
        policy: Policy::default(),
    }
}

fn issuer_facts() -> IssuerFacts {
    IssuerFacts {
        settable_old_value: true,
        propagation: Span::ZERO,
        settle_for: Span::ZERO,
        ..IssuerFacts::new(ValueOrigin::Ours, Observe::Probe, Authority::None)
    }
}

async fn two_again(journal: &dyn Journal) -> Begun {
    Begun::of(journal, "c@test").await
}

async fn assert_opens(journal: &dyn Journal, key: &ValueKey, value: &str) {
    let opened = journal.unseal(key).await.expect("reads").expect("it can be opened");
    assert!(opened.same_as(&credential(value)), "another value came out");
}

fn assert_stale(answer: Result<(), JournalError>) {
    assert!(
        matches!(answer, Err(JournalError::Stale { .. })),
        "expected a stale append: {answer:?}"
    );
}

fn name(secret: &str) -> SecretName {
    secret.parse().expect("the suite's names are names")
}

fn holder(id: &str) -> Holder {
    Holder { id: id.into(), name: format!("process {id}") }
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn actor() -> Actor {
    let (account, host, method) = ("dana".into(), "web-1".into(), "test".into());
    Actor { account, origin: Some("root".into()), host, method, authenticated: true }
}

fn credential(value: &str) -> Credential {
    Credential::of_value(SecretValue::new(value.as_bytes().to_vec()))
}

fn value_key(secret: &str, version: u32, part: &str) -> ValueKey {
    ValueKey { secret: name(secret), version: VersionId(version), part: part.into() }
}
