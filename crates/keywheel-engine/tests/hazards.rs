//! Whole rotations through the real engine, in a world in which one call goes wrong and time passes only where somebody waits.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::collections::{BTreeMap, BTreeSet};
use std::future::{pending, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use async_trait::async_trait;
use futures_util::FutureExt;
use keywheel_core::call::{CallError, Refusal, RefusalKind};
use keywheel_core::event::{Death, Event, Outcome, ParkReason, Report, Step};
use keywheel_core::evidence::{Replica, Shows};
use keywheel_core::facts::{
    IssuerFacts, LeaseFacts, ReadBack, StoreFacts, ValueOrigin, WorkloadFacts,
};
use keywheel_core::fingerprint::Fingerprinter;
use keywheel_core::gate::Clocks;
use keywheel_core::incident::{Behind, LogReference, WorkloadLogs};
use keywheel_core::plan::{Bound, CannotTell, Label, Mode, Plan, Policy, ProbePlan, VersionRef};
use keywheel_core::rotation::Rotation;
use keywheel_core::secret::{Credential, SecretName, SecretValue};
use keywheel_core::strategy::Strategy;
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::{IssuedId, Stage, State, VersionId};
use keywheel_driver::Finding;
use keywheel_driver::issuer::{Extend, Issuer, Live, Mint, Minted, Randomness, Verdict};
use keywheel_driver::probe::{Asked, Health, Probe};
use keywheel_driver::store::{Edit, Store, Written};
use keywheel_driver::workload::{Ensure, Workload};
use keywheel_engine::clock::Clock;
use keywheel_engine::limits::Limits;
use keywheel_engine::run::{Group, Ran, Until, name};
use keywheel_engine::{Build, Drivers, Engine, Watch, recover};
use keywheel_journal::memory::MemoryJournal;
use keywheel_journal::{Actor, Holder};
use tokio::task::yield_now;
use zeroize::Zeroizing;

#[path = "support/plain.rs"]
mod plain;
use plain::{ISSUER, STORE, WORKLOAD, plain_plan};

const START: Timestamp = Timestamp::from_millis(1_000_000_000);

#[tokio::test(start_paused = true)]
async fn h06_a_value_that_is_rejected_is_not_offered_again() {
    let rejected = || Refusal::retry(RefusalKind::ValueRejected, None, "it lacks a digit");
    let setup = Setup::of_our_values(move |call| match call.name {
        "mint" => Fate::Refused(rejected()),
        _ => Fate::Well,
    });
    let mut group = setup.begin("s").await;
    assert_eq!(setup.rest(&mut group).await, Some(Outcome::Undone));
    setup.of("s", |contents| {
        let [first, second, third] = &contents.offered[..] else { panic!("three are offered") };
        assert!(!second.same_as(first) && !third.same_as(first) && !third.same_as(second));
    });
}

#[tokio::test(start_paused = true)]
async fn h18_what_a_lost_rotation_made_under_the_same_label_is_left_alone() {
    let setup = Setup::new(|_| Fate::Well);
    let label = plan("s", setup.world.origin).rotation().label(1);
    let lost = IssuedId::new("lost");
    setup.of("s", |contents| {
        contents.live.push((lost.clone(), Some(label), SecretValue::new(b"in use".to_vec())));
    });
    let mut group = setup.begin("s").await;
    assert_eq!(setup.rest(&mut group).await, Some(Outcome::Undone));
    let is_left = |contents: &mut Contents| contents.live.iter().any(|(id, ..)| *id == lost);
    assert!(setup.of("s", is_left), "readers may use it");
}

#[tokio::test(start_paused = true)]
async fn h19_a_slot_that_readers_use_and_that_is_not_there_stops_a_rotation_before_its_mint() {
    let setup = Setup::new(|_| Fate::Well);
    setup.of("s", |contents| contents.stored = None);
    let mut group = setup.begin("s").await;
    assert_eq!(setup.rest(&mut group).await, Some(Outcome::Undone));
    setup.of("s", |contents| assert!(contents.effects.is_empty(), "{:?}", contents.effects));
    let records = serde_json::to_string(&setup.records(&group).await).unwrap();
    assert!(records.contains("there is no `KEY`"), "{records}");
}

#[tokio::test(start_paused = true)]
async fn h13_a_stop_waits_for_the_step_under_way_and_keeps_its_answer() {
    for nth in 0.. {
        let setup = Setup::new(move |call| if call.nth == nth { Fate::Stops } else { Fate::Well });
        let mut group = setup.begin("s").await;
        if setup.run(&mut group).await == Ran::Rested {
            return assert!(nth > 15, "there are calls to stop at");
        }
        let rotation = group.rotations().next().unwrap().id().clone();
        let last = setup.engine.journal.records(&rotation).await.unwrap().pop().unwrap();
        assert!(matches!(last.event, Event::Done { .. }), "call {nth}: {:?}", last.event);
    }
}

#[tokio::test(start_paused = true)]
async fn h13_a_run_that_is_dropped_anywhere_leaves_nothing_that_recovery_does_not_know() {
    for polls in 1.. {
        let setup = Setup::new(|_| Fate::Well);
        let mut group = setup.begin("s").await;
        let ran = polled(polls, setup.run(&mut group)).await;
        drop(group);
        let (intended, effects) = (setup.intended().await, setup.of("s", |s| s.effects.clone()));
        assert!(intended.starts_with(&effects), "{effects:?} is done, intended is {intended:?}");
        if ran.is_some() {
            return assert!(polls > 20, "there are places to drop it at");
        }
        assert_eq!(setup.recover_and_rest().await, Some(Outcome::Completed), "{polls} polls");
        setup.of("s", |contents| {
            let [(_, _, live)] = &contents.live[..] else { panic!("only one is live") };
            assert!(live.same_as(contents.held.as_ref().unwrap()), "{polls} polls");
        });
    }
}

#[tokio::test(start_paused = true)]
async fn h04_a_mint_that_was_made_in_part_is_ended_and_made_anew() {
    for polls in 1.. {
        let setup = Setup::of_our_values(|_| Fate::Well);
        let mut group = setup.begin("s").await;
        let ran = polled(polls, setup.run(&mut group)).await;
        assert!(ran.is_none(), "there is a place to drop it at after a mint");
        drop(group);
        let is_lost = setup.of("s", |contents| {
            contents.in_part = contents.live.last().map(|(issued, ..)| issued.clone());
            contents.effects == ["mint"]
        });
        if !is_lost {
            continue;
        }
        assert_eq!(setup.recover_and_rest().await, Some(Outcome::Completed));
        return setup.of("s", |contents| {
            assert_eq!(contents.effects[..3], ["mint", "revoke", "mint"]);
            let [(issued, _, live)] = &contents.live[..] else { panic!("only one is live") };
            assert!(contents.in_part.as_ref() != Some(issued));
            assert!(live.same_as(contents.held.as_ref().unwrap()));
        });
    }
}

#[tokio::test(start_paused = true)]
async fn h14_a_program_that_is_stopped_begins_and_undoes_nothing() {
    for nth in 0.. {
        let setup = Setup::new(move |call| if call.nth == nth { Fate::Stops } else { Fate::Well });
        let mut group = setup.begin("s").await;
        if setup.run(&mut group).await == Ran::Rested {
            return;
        }
        let world = &setup.world;
        let count = |intents: &AtomicUsize| intents.load(Ordering::SeqCst);
        assert_eq!(count(&world.intents), count(&world.intents_at_stop), "call {nth}");
        assert_eq!(setup.recover_and_rest().await, Some(Outcome::Completed), "call {nth}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_lets_a_rotation_go_on_that_stopped_before_it_was_parked_has_its_step_tried_again()
{
    let revokes = AtomicUsize::new(0);
    let setup = Setup::new(move |call| match call.name {
        "revoke" if revokes.fetch_add(1, Ordering::SeqCst) == 0 => {
            Fate::StopsRefused(Refusal::operator(RefusalKind::Permission, "not yours"))
        }
        _ => Fate::Well,
    });
    let mut group = setup.begin("s").await;
    assert_eq!(setup.run(&mut group).await, Ran::Stopped);
    setup.world.stop.store(false, Ordering::SeqCst);
    setup.engine.let_go_on(&mut group).await.unwrap();
    assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed));
    let events = setup.records(&group).await;
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Parked { .. })).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn h14_a_program_that_panics_calls_nobody_on_the_way_out() {
    for nth in 0.. {
        let setup = Setup::new(move |call| if call.nth == nth { Fate::Panics } else { Fate::Well });
        let mut group = setup.begin("s").await;
        if AssertUnwindSafe(setup.run(&mut group)).catch_unwind().await.is_ok() {
            return assert!(nth > 15, "there are calls to panic at");
        }
        drop(group);
        assert_eq!(setup.of("s", |contents| contents.calls), nth + 1);
        assert_eq!(setup.recover_and_rest().await, Some(Outcome::Completed), "call {nth}");
    }
}

/// An emergency for the version that `begin` would rotate.
fn emergency(revoke_first: bool) -> Plan {
    let mut plan = plan("s", ValueOrigin::Theirs);
    plan.mode = Mode::Emergency { revoke_first, stage_for: Span::minutes(10) };
    plan.previous.as_mut().unwrap().state = State::Compromised;
    plan
}

#[tokio::test(start_paused = true)]
async fn h124_logs_are_referenced_before_anything_is_replaced_or_ended() {
    for plan in [plan("s", ValueOrigin::Theirs), emergency(false), emergency(true)] {
        let setup = Setup::new(|_| Fate::Well);
        let mut group = setup.engine.begin(&[Arc::new(plan)]).await.unwrap();
        assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed));
        let records = setup.records(&group).await;
        let captured = records.iter().find_map(|event| match event {
            Event::Done { report: Report::Captured { logs, .. }, .. } => Some(logs.clone()),
            _ => None,
        });
        let captured = captured.unwrap();
        let [WorkloadLogs { replicas, not_captured: None, .. }] = &captured[..] else {
            panic!("the logs of its one workload are not referenced: {captured:?}")
        };
        assert_eq!(replicas[0].place.as_deref(), Some("logs of the first"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_hangs_or_refuses_holds_no_emergency_up() {
    for in_the_way in ["logs", "preflight of the workload"] {
        for hangs in [true, false] {
            let setup = Setup::new(move |call| match (call.name == in_the_way, hangs) {
                (true, true) => Fate::Hangs,
                (true, false) => Fate::Refused(Refusal::operator(RefusalKind::Local, "broken")),
                (false, _) => Fate::Well,
            });
            let mut group = setup.engine.begin(&[Arc::new(emergency(true))]).await.unwrap();
            assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed));
            assert!(setup.engine.clock.now() <= START + Span::seconds(6), "{in_the_way}");
            let records = setup.records(&group).await;
            let why = if hangs { "it did not answer within 5 s" } else { "broken" };
            let said = records.iter().any(|event| match event {
                Event::Done { report: Report::Captured { logs, .. }, .. } => {
                    logs[0].not_captured.as_deref().is_some_and(|said| said.contains(why))
                }
                Event::Done { report: Report::Noted { notes }, .. } => {
                    notes[0].contains("workload of s") && notes[0].contains(why)
                }
                _ => false,
            });
            assert!(said, "{in_the_way}: {records:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn h123_a_revoke_before_delivery_names_the_replicas_that_are_out() {
    for revoke_first in [true, false] {
        let setup = Setup::new(|_| Fate::Well);
        let plan = Arc::new(emergency(revoke_first));
        let mut group = setup.engine.begin(&[plan]).await.unwrap();
        assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed));
        let records = setup.records(&group).await;
        let behind = records.iter().find_map(|event| match event {
            Event::Done { report: Report::Revoked { behind, .. }, .. } => Some(behind.clone()),
            _ => None,
        });
        let out = Behind { workload: 0, replicas: vec!["1".into()], unknown: None };
        assert_eq!(behind, revoke_first.then(|| vec![out]), "revoke first: {revoke_first}");
    }
}

#[tokio::test(start_paused = true)]
async fn h66_an_emergency_ends_the_sessions_of_a_suspect_and_no_other_rotation_does() {
    let refused_once = AtomicBool::new(false);
    let setup = Setup::new(move |call| match call.name {
        "end sessions" if !refused_once.swap(true, Ordering::SeqCst) => {
            Fate::Refused(Refusal::retry(RefusalKind::Unavailable, None, "a node is down"))
        }
        _ => Fate::Well,
    });
    let mut group = setup.engine.begin(&[Arc::new(emergency(false))]).await.unwrap();
    assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed));
    let effects = setup.of("s", |contents| contents.effects.clone());
    let ends = effects.iter().filter(|effect| matches!(**effect, "revoke" | "end sessions"));
    // The revoke was made, and is made again with what was refused after it.
    assert_eq!(ends.collect::<Vec<_>>(), [&"revoke", &"revoke", &"end sessions"]);
    let refused = setup
        .records(&group)
        .await
        .into_iter()
        .any(|event| matches!(event, Event::Refused { step: Step::Revoke(_), .. }));
    assert!(!refused, "a revoke that was made is not refused");

    let setup = Setup::new(|_| Fate::Well);
    let mut group = setup.engine.begin(&[Arc::new(plan("s", ValueOrigin::Theirs))]).await.unwrap();
    assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed));
    assert!(!setup.of("s", |contents| contents.effects.contains(&"end sessions")));
}

#[tokio::test(start_paused = true)]
async fn h123_a_roll_that_hangs_does_not_put_off_the_end_of_the_suspects() {
    let hung = AtomicBool::new(false);
    let setup = Setup::new(move |call| match call.name {
        "roll" if !hung.swap(true, Ordering::SeqCst) => Fate::Hangs,
        _ => Fate::Well,
    });
    let mut plan = emergency(false);
    plan.mode = Mode::Emergency { revoke_first: false, stage_for: Span::seconds(20) };
    let mut group = setup.engine.begin(&[Arc::new(plan)]).await.unwrap();
    assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed));
    let ended_at = group.rotations().next().unwrap().ending().revoked_at(VersionId(1)).unwrap();
    assert!(ended_at <= START + Span::seconds(21), "{}", ended_at.since(START));
}

#[tokio::test(start_paused = true)]
async fn h123_an_emergency_waits_for_no_extension() {
    let hung = AtomicUsize::new(0);
    let setup = Setup::new(move |call| match call.name {
        "roll" if hung.fetch_add(1, Ordering::SeqCst) == 0 => Fate::Hangs,
        "verify" if hung.load(Ordering::SeqCst) == 2 => {
            hung.store(3, Ordering::SeqCst);
            Fate::Refused(Refusal::retry(RefusalKind::Unavailable, None, "later"))
        }
        "extend" => Fate::Hangs,
        _ => Fate::Well,
    });
    setup.of("s", |place| place.leased_until = Some(1));
    let stage_for = Span::minutes(40);
    let mut plan = Plan { strategy: Strategy::Lease, ..emergency(false) };
    plan.mode = Mode::Emergency { revoke_first: false, stage_for };
    plan.issuer.facts.lease = Some(LeaseFacts { longest_life: Some(Span::hours(24)) });
    // Half of the new lease is over when the roll that hangs is given up, and the stage with it.
    plan.policy.roll = Span::hours(2);
    let mut group = setup.engine.begin(&[Arc::new(plan)]).await.unwrap();
    assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed));
    let ended_at = group.rotations().next().unwrap().ending().revoked_at(VersionId(1)).unwrap();
    assert!(ended_at < START + stage_for + Span::seconds(9), "{}", ended_at.since(START));
    let extended = setup.intended().await.contains(&"keep_alive");
    assert!(extended, "it is extended where nothing else is owed");
}

#[tokio::test(start_paused = true)]
async fn h123_a_workload_that_nobody_can_reach_keeps_no_suspect_alive() {
    for (revoke_first, within) in [(true, Span::seconds(1)), (false, Span::minutes(10))] {
        let setup = Setup::new(|call| match call.name {
            "preflight of the workload" | "logs" | "observe" | "roll" => {
                Fate::Refused(Refusal::retry(RefusalKind::Unavailable, None, "nobody is there"))
            }
            _ => Fate::Well,
        });
        let mut group = setup.engine.begin(&[Arc::new(emergency(revoke_first))]).await.unwrap();
        assert_eq!(setup.rest(&mut group).await, None, "an operator is asked for the replicas");
        let rotation = group.rotations().next().unwrap();
        let ended_at = rotation.ending().revoked_at(VersionId(1)).unwrap();
        assert!(ended_at <= START + within + Span::seconds(1), "{}", ended_at.since(START));
    }
}

#[tokio::test(start_paused = true)]
async fn h123_emergencies_that_share_a_workload_take_turns_at_rolling_it() {
    let mut setup = Setup::new(|_| Fate::Well);
    setup.engine.limits = Limits::new(4);
    let of = |secret| Arc::new(Plan { secret, ..emergency(true) });
    let [a, b] = ["s-a", "s-b"].map(|name| SecretName::new(name, "production").unwrap());
    let mut first = setup.engine.begin(&[of(a)]).await.unwrap();
    let mut second = setup.engine.begin(&[of(b)]).await.unwrap();
    let (first, second) = tokio::join!(setup.rest(&mut first), setup.rest(&mut second));
    assert_eq!((first, second), (Some(Outcome::Completed), Some(Outcome::Completed)));
    let [now, most] = *setup.world.rolls.lock().unwrap();
    assert_eq!((now, most), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn h61_an_emergency_that_is_resumed_gives_back_its_own_leases_and_no_others() {
    let stops = Arc::new(AtomicBool::new(true));
    let is_stopped = Arc::clone(&stops);
    let setup = Setup::new(move |call| match call.name {
        "roll" if is_stopped.load(Ordering::SeqCst) => Fate::Stops,
        _ => Fate::Well,
    });
    let [a, b] = ["s-a", "s-b"].map(|name| SecretName::new(name, "production").unwrap());
    let of = |secret: &SecretName| Plan { secret: secret.clone(), ..emergency(true) };
    for plan in [of(&a), of(&b)] {
        let mut group = setup.engine.begin(&[Arc::new(plan)]).await.unwrap();
        assert_eq!(setup.run(&mut group).await, Ran::Stopped);
        setup.engine.give_up(&group).await.unwrap();
        setup.world.stop.store(false, Ordering::SeqCst);
    }
    stops.store(false, Ordering::SeqCst);
    let holders = async || {
        let leases = setup.engine.journal.leases().await.unwrap();
        leases.into_iter().map(|(_, holder)| holder).collect::<BTreeSet<_>>()
    };
    assert_eq!(holders().await, BTreeSet::from([of(&a).rotation(), of(&b).rotation()]));
    let mut resumed = setup.engine.recover(&[b]).await.unwrap();
    assert_eq!(setup.rest(&mut resumed).await, Some(Outcome::Completed));
    assert_eq!(holders().await, BTreeSet::from([of(&a).rotation()]), "the other one still moves");
}

#[tokio::test(start_paused = true)]
async fn h125_the_leases_of_a_batch_end_with_its_last_member_that_is_taken_over() {
    let setup = Setup::new(|call| if call.name == "roll" { Fate::Stops } else { Fate::Well });
    let batch: Vec<SecretName> =
        ["a", "b"].map(|name| SecretName::new(name, "production").unwrap()).into();
    let member = |secret: &SecretName| {
        Arc::new(Plan { batch: batch.clone(), ..plan(secret.name(), ValueOrigin::Theirs) })
    };
    let plans: Vec<Arc<Plan>> = batch.iter().map(member).collect();
    let mut group = setup.engine.begin(&plans).await.unwrap();
    assert_eq!(setup.run(&mut group).await, Ran::Stopped);
    let journal = &setup.engine.journal;
    assert!(!journal.leases().await.unwrap().is_empty(), "it stopped in a move");
    for (plan, rotation) in plans.iter().zip(group.rotations()) {
        let leaked = VersionRef {
            version: plan.pending,
            issued: None,
            state: State::Compromised,
            fingerprint: None,
        };
        let emergency = Plan {
            mode: Mode::Emergency { revoke_first: true, stage_for: Span::ZERO },
            pending: plan.pending.successor(),
            suspects: vec![leaked],
            takes_over: Some(plan.rotation()),
            inherits_until: rotation.unsettled_until(),
            batch: Vec::new(),
            ..Plan::clone(plan)
        };
        setup.engine.begin(&[Arc::new(emergency)]).await.unwrap();
    }
    assert_eq!(journal.leases().await.unwrap(), []);
}

/// Each rotation ends after a mint whose answer nobody got, and the next one takes it over.
#[tokio::test(start_paused = true)]
async fn h125_what_was_minted_two_rotations_back_is_suspect() {
    for takes_turns in [false, true] {
        let setup = Setup::new(|_| Fate::Well);
        let mut plan = plan("s", ValueOrigin::Theirs);
        plan.issuer.facts.takes_turns = takes_turns;
        for lost in 1..=2 {
            setup.begin_and_lose_the_mint(&plan, lost).await;
            let left = recover::read(setup.engine.journal.as_ref(), &plan.rotation()).await;
            plan = Plan {
                takes_over: Some(plan.rotation()),
                inherits_until: left.unwrap().unsettled_until(),
                pending: plan.pending.successor(),
                ..emergency(false)
            };
            plan.issuer.facts.takes_turns = takes_turns;
        }
        let lost = setup.of("s", |contents| {
            contents.live.iter().skip(1).map(|(issued, ..)| issued.clone()).collect::<Vec<_>>()
        });
        let mut group = setup.engine.begin(&[Arc::new(plan)]).await.unwrap();
        assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed));
        setup.of("s", |contents| {
            let [(_, _, live)] = &contents.live[..] else { panic!("only one is live") };
            assert!(live.same_as(contents.held.as_ref().unwrap()));
            contents.suspects.reverse();
            assert_eq!(contents.suspects, if takes_turns { lost } else { Vec::new() });
        });
    }
}

#[tokio::test(start_paused = true)]
async fn h28_a_call_that_hangs_delays_nobody_who_calls_something_else() {
    let setup = Setup::new(|call| match (call.secret, call.name) {
        ("hung", "mint") => Fate::Hangs,
        _ => Fate::Well,
    });
    let (mut hung, mut other) = (setup.begin("hung").await, setup.begin("other").await);
    tokio::select! {
        _ = setup.rest(&mut hung) => panic!("it hangs"),
        outcome = setup.rest(&mut other) => assert_eq!(outcome, Some(Outcome::Completed)),
    }
    let deadline = Policy::default().call;
    assert!(setup.engine.clock.now() < START + deadline, "it waited for the call that hangs");
}

#[tokio::test(start_paused = true)]
async fn h28_a_call_that_hangs_ends_at_its_deadline() {
    for nth in 0.. {
        let setup = Setup::new(move |call| if call.nth == nth { Fate::Hangs } else { Fate::Well });
        let mut group = setup.begin("s").await;
        let rested = tokio::time::timeout(Span::days(1).into(), setup.rest(&mut group)).await;
        assert_eq!(rested.unwrap_or_default(), Some(Outcome::Completed), "call {nth}");
        if setup.of("s", |contents| contents.calls) <= nth {
            return assert!(nth > 15, "there are calls to hang in");
        }
    }
}

/// The plan of a rotation whose one store tells nothing but when it was changed.
fn attested(setup: &Setup, previous: u32) -> Plan {
    setup.of("s", |contents| contents.unreadable = true);
    let mut plan = plan("s", ValueOrigin::Theirs);
    plan.stores[0].facts.read_back = ReadBack::Timestamp;
    if previous > 1 {
        let issued = setup.of("s", |contents| contents.live[0].0.clone());
        plan.previous = Some(VersionRef {
            version: VersionId(previous),
            issued: Some(issued),
            state: State::Active,
            fingerprint: None,
        });
        plan.pending = VersionId(previous + 1);
    }
    plan
}

/// A world in which a roll is refused once it is told to.
fn with_bad_rolls() -> (Setup, Arc<AtomicBool>) {
    let bad = Arc::new(AtomicBool::new(false));
    let is_bad = Arc::clone(&bad);
    let setup = Setup::new(move |call| match call.name {
        "roll" if is_bad.load(Ordering::SeqCst) => {
            Fate::Refused(Refusal::operator(RefusalKind::WorkloadFailed, "it does not come up"))
        }
        _ => Fate::Well,
    });
    (setup, bad)
}

#[tokio::test(start_paused = true)]
async fn h40_a_store_that_cannot_be_read_is_led_back_to_the_sealed_version() {
    let (setup, bad) = with_bad_rolls();
    let mut group = setup.engine.begin(&[Arc::new(attested(&setup, 1))]).await.unwrap();
    assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed));
    drop(group);
    let second = setup.of("s", |contents| contents.stored.as_ref().unwrap().duplicate());
    bad.store(true, Ordering::SeqCst);
    let mut group = setup.engine.begin(&[Arc::new(attested(&setup, 2))]).await.unwrap();
    setup.run(&mut group).await;
    bad.store(false, Ordering::SeqCst);
    setup.of("s", |contents| {
        assert!(contents.stored.as_ref().unwrap().same_as(&second), "it was led back");
        assert_eq!(contents.effects.iter().filter(|one| **one == "write").count(), 3);
    });
}

#[tokio::test(start_paused = true)]
async fn h40_where_nothing_says_what_a_store_held_it_is_not_emptied_on_the_way_back() {
    let (setup, bad) = with_bad_rolls();
    bad.store(true, Ordering::SeqCst);
    let mut group = setup.engine.begin(&[Arc::new(attested(&setup, 1))]).await.unwrap();
    assert_eq!(setup.rest(&mut group).await, None);
    let parked = group.rotations().next().unwrap().parked().cloned();
    let Some(ParkReason::Refused { refusal, .. }) = parked else { panic!("{parked:?}") };
    assert!(refusal.message.contains("has no way back"), "{refusal}");
    setup.of("s", |contents| {
        let (_, _, made) = contents.live.last().unwrap();
        assert!(contents.stored.as_ref().unwrap().same_as(made), "its readers keep what works");
    });
}

#[tokio::test(start_paused = true)]
async fn h126_what_somebody_wrote_into_a_store_that_cannot_be_read_is_not_undone() {
    let (setup, bad) = with_bad_rolls();
    let mut group = setup.engine.begin(&[Arc::new(attested(&setup, 1))]).await.unwrap();
    assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed));
    drop(group);
    bad.store(true, Ordering::SeqCst);
    let mut group = setup.engine.begin(&[Arc::new(attested(&setup, 2))]).await.unwrap();
    let writes =
        |contents: &Contents| contents.effects.iter().filter(|one| **one == "write").count();
    {
        let mut run = pin!(setup.run(&mut group));
        while setup.of("s", |contents| writes(contents)) < 2 {
            assert!(polled(1, run.as_mut()).await.is_none(), "it goes on until it writes");
        }
        let calls = |contents: &mut Contents| contents.calls;
        let written = setup.of("s", calls);
        // Its time is asked for once more, and then the write is recorded.
        while setup.of("s", calls) < written + 2 {
            assert!(polled(1, run.as_mut()).await.is_none(), "it goes on until it rolls");
        }
        setup.of("s", |contents| contents.changed_at += 1);
        run.await;
    }
    assert_eq!(setup.of("s", |contents| writes(contents)), 2, "the change stays");
    let parked = group.rotations().next().unwrap().parked().cloned();
    let Some(ParkReason::Refused { refusal, .. }) = parked else { panic!("{parked:?}") };
    assert_eq!(refusal.kind, RefusalKind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn h126_what_somebody_wrote_between_the_capture_and_the_first_write_is_not_overwritten() {
    let setup = Setup::new(|_| Fate::Well);
    let mut group = setup.engine.begin(&[Arc::new(attested(&setup, 1))]).await.unwrap();
    {
        let mut run = pin!(setup.run(&mut group));
        while setup.of("s", |contents| contents.effects.is_empty()) {
            assert!(polled(1, run.as_mut()).await.is_none(), "it goes on until it mints");
        }
        setup.of("s", |contents| contents.changed_at += 1);
        run.await;
    }
    assert_eq!(group.rotations().next().unwrap().outcome(), Some(Outcome::Undone));
    setup.of("s", |contents| assert!(!contents.effects.contains(&"write"), "the change stays"));
}

#[tokio::test(start_paused = true)]
async fn h35_a_store_that_cannot_be_read_and_was_changed_by_somebody_else_holds_up_the_end() {
    for meddles in [false, true] {
        let setup = Setup::new(|_| Fate::Well);
        let mut plan = attested(&setup, 1);
        plan.policy = Policy { soak: Span::hours(1), gate_limit: Span::hours(2), ..plan.policy };
        setup.of("s", |contents| contents.meddles = meddles);
        let mut group = setup.engine.begin(&[Arc::new(plan)]).await.unwrap();
        let ended = setup.rest(&mut group).await;
        assert_eq!(ended, (!meddles).then_some(Outcome::Completed), "{meddles}");
        let is_live =
            |contents: &mut Contents| contents.live.iter().any(|(id, ..)| id.id == "first");
        assert_eq!(setup.of("s", is_live), meddles);
    }
}

#[tokio::test(start_paused = true)]
async fn h40_a_write_that_does_not_show_is_not_taken_for_made() {
    let setup = Setup::new(|_| Fate::Well);
    let plan = attested(&setup, 1);
    setup.of("s", |contents| contents.time_stands_still = true);
    let mut group = setup.engine.begin(&[Arc::new(plan)]).await.unwrap();
    assert_ne!(setup.rest(&mut group).await, Some(Outcome::Completed));
    let is_live = |contents: &mut Contents| contents.live.iter().any(|(id, ..)| id.id == "first");
    assert!(setup.of("s", is_live));
}

#[tokio::test(start_paused = true)]
async fn h56_a_version_that_a_run_may_have_begun_with_is_ended_after_the_longest_run() {
    let bad = AtomicBool::new(true);
    let setup = Setup::new(move |call| match call.name {
        "roll" if bad.swap(false, Ordering::SeqCst) => {
            Fate::Refused(Refusal::operator(RefusalKind::WorkloadFailed, "it does not come up"))
        }
        _ => Fate::Well,
    });
    let mut plan = plan("s", ValueOrigin::Theirs);
    plan.stores[0].facts.longest_run = Some(Span::hours(6));
    let began = tokio::time::Instant::now();
    let mut group = setup.engine.begin(&[Arc::new(plan)]).await.unwrap();
    assert_eq!(setup.rest(&mut group).await, Some(Outcome::Undone));
    assert!(began.elapsed() >= Span::hours(6).into(), "{:?}", began.elapsed());
}

/// How many wrong attempts lock an account.
const LOCKS_AT: usize = 5;

/// A directory knows at once what it accepts, and counts what it does not.
#[tokio::test(start_paused = true)]
async fn h77_a_value_that_a_directory_refuses_is_tried_once() {
    for takes_the_new_one in [true, false] {
        let setup = Setup::new(|_| Fate::Well);
        if !takes_the_new_one {
            setup.of("s", |contents| contents.verdicts = vec![false; 4 * LOCKS_AT]);
        }
        let mut group = setup.begin("s").await;
        let ended = if takes_the_new_one { Outcome::Completed } else { Outcome::Undone };
        assert_eq!(setup.rest(&mut group).await, Some(ended));
        setup.of("s", |contents| {
            let wrong = contents.refused.len();
            assert!(wrong < LOCKS_AT, "{wrong} wrong attempts lock the account");
            assert_eq!(wrong, 1, "one candidate was refused: {takes_the_new_one}");
        });
    }
}

#[tokio::test(start_paused = true)]
async fn h87_nothing_is_written_before_the_new_version_is_accepted_several_times_in_a_row() {
    let setup = Setup::new(|_| Fate::Well);
    let mut plan = plan("s", ValueOrigin::Theirs);
    plan.issuer.facts.propagation = Span::minutes(1);
    let mut group = setup.engine.begin(&[Arc::new(plan)]).await.unwrap();
    // Some nodes of the issuer know the version before others do.
    setup.of("s", |contents| contents.verdicts = vec![false, true, true, false, true]);
    assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed));
    let answers = setup.of("s", |contents| contents.said_before_write.clone());
    let needed = usize::from(Policy::default().refusals);
    assert!(answers.ends_with(&vec![true; needed]), "{answers:?}");
}

#[tokio::test(start_paused = true)]
async fn h88_what_ends_by_itself_is_not_called_refused_before_it_does() {
    for (left, is_live) in [(Span::hours(1), true), (Span::ZERO, false)] {
        let setup = Setup::new(|_| Fate::Well);
        let ends_at = setup.engine.clock.now() + left;
        setup.of("s", |contents| {
            contents.ends_at = Some(ends_at);
            contents.live.retain(|_| is_live);
        });
        let mut plan = plan("s", ValueOrigin::Theirs);
        plan.strategy = Strategy::Lease;
        plan.issuer.facts.destroy = false;
        plan.issuer.facts.lease = Some(LeaseFacts { longest_life: None });
        let previous = plan.previous.as_ref().unwrap().version;
        let mut group = setup.engine.begin(&[Arc::new(plan)]).await.unwrap();
        assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed));
        let death = group.rotations().next().unwrap().ending().death(previous);
        let told = if is_live { Death::EndsAt { at: ends_at } } else { Death::Refused };
        assert_eq!(death, Some(told));
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_version_is_tried_once_where_nothing_has_to_spread() {
    let setup = Setup::new(|_| Fate::Well);
    let mut group = setup.begin("s").await;
    assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed));
    assert_eq!(setup.of("s", |contents| contents.said_before_write.clone()), [true]);
}

/// Polls a future this often at most, then drops it.
async fn polled<T>(times: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = times;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

/// An engine on a journal in memory, in a world of its own.
struct Setup {
    engine: Engine,
    world: Arc<World>,
}

impl Setup {
    fn new(fate: impl Fn(Call<'_>) -> Fate + Send + Sync + 'static) -> Self {
        Self::on(World::new(ValueOrigin::Theirs, fate))
    }

    fn of_our_values(fate: impl Fn(Call<'_>) -> Fate + Send + Sync + 'static) -> Self {
        Self::on(World::new(ValueOrigin::Ours, fate))
    }

    fn on(world: World) -> Self {
        let world = Arc::new(world);
        let random = AtomicUsize::new(0);
        let engine = Engine {
            journal: Arc::new(MemoryJournal::new("test", Zeroizing::new([7; 32]))),
            clock: Arc::new(PausedClock(tokio::time::Instant::now())),
            build: Arc::new(FromWorld(Arc::clone(&world))),
            random: Arc::new(move |buffer| {
                buffer.fill(random.fetch_add(1, Ordering::SeqCst) as u8);
            }),
            holder: Holder { id: "test".into(), name: "test".into() },
            actor: Actor {
                account: "test".into(),
                origin: None,
                host: "test".into(),
                method: "test".into(),
                authenticated: false,
            },
            limits: Limits::new(1),
            watch: Arc::clone(&world) as Arc<dyn Watch>,
        };
        Self { engine, world }
    }

    async fn begin(&self, secret: &str) -> Group {
        let plan = plan(secret, self.world.origin);
        self.engine.begin(&[Arc::new(plan)]).await.unwrap()
    }

    /// Begins a rotation and drops it as soon as the world holds this many mints.
    async fn begin_and_lose_the_mint(&self, plan: &Plan, mints: usize) {
        let mut group = self.engine.begin(&[Arc::new(plan.clone())]).await.unwrap();
        let mut run = pin!(self.run(&mut group));
        while self.of("s", |contents| contents.live.len() <= mints) {
            assert!(polled(1, run.as_mut()).await.is_none(), "it goes on until it mints");
        }
    }

    async fn run(&self, group: &mut Group) -> Ran {
        let until = Until { rest: true, patience: Span::ZERO, stop: &self.world.stop };
        self.engine.run(group, &until).await.unwrap()
    }

    async fn rest(&self, group: &mut Group) -> Option<Outcome> {
        assert_eq!(self.run(group).await, Ran::Rested);
        group.rotations().next().unwrap().outcome()
    }

    /// Goes on as the next start of the program does, with nothing that goes wrong.
    async fn recover_and_rest(&self) -> Option<Outcome> {
        self.world.stop.store(false, Ordering::SeqCst);
        let groups = self.engine.open_groups().await.unwrap();
        let mut group = self.engine.recover(&groups[0]).await.unwrap();
        self.rest(&mut group).await
    }

    /// Returns the steps that change something and that the journal names, in order.
    async fn intended(&self) -> Vec<&'static str> {
        let mut intended = Vec::new();
        for row in self.engine.journal.rotations(None).await.unwrap() {
            for record in self.engine.journal.records(&row.rotation).await.unwrap() {
                if let Event::Intended { step, .. } = record.event {
                    intended.extend(step.mutates().then(|| name(step)));
                }
            }
        }
        intended
    }

    /// Returns what the journal has of the one rotation of a group.
    async fn records(&self, group: &Group) -> Vec<Event> {
        let rotation = group.rotations().next().unwrap().id().clone();
        let records = self.engine.journal.records(&rotation).await.unwrap();
        records.into_iter().map(|record| record.event).collect()
    }

    /// Looks at what is outside of the engine for one secret.
    fn of<T>(&self, secret: &str, look: impl FnOnce(&mut Contents) -> T) -> T {
        look(&mut locked(&self.world.place(secret)))
    }
}

/// What is asked of the world: which call, and how many of this secret were made before it.
struct Call<'a> {
    secret: &'a str,
    name: &'static str,
    nth: usize,
}

/// What becomes of a call.
enum Fate {
    Well,
    Refused(Refusal),
    /// It has no answer, ever.
    Hangs,
    Panics,
    /// The program is asked to stop while it is under way.
    Stops,
    /// The same, and it is refused.
    StopsRefused(Refusal),
}

/// A rotation with three probes whose soak waits for those that give no answer.
async fn with_probes(fate: impl Fn(Call<'_>) -> Fate + Send + Sync + 'static) -> (Setup, Group) {
    let setup = Setup::new(fate);
    let mut plan = plan("s", ValueOrigin::Theirs);
    let probe = |name: &&str| {
        let bound = Bound { name: (*name).into(), driver: serde_json::json!({}) };
        ProbePlan { bound }
    };
    plan.probes = PROBES.iter().map(probe).collect();
    plan.policy.cannot_tell = CannotTell::Wait;
    plan.policy.soak = Span::hours(1);
    plan.policy.gate_limit = Span::hours(6);
    let group = setup.engine.begin(&[Arc::new(plan)]).await.unwrap();
    (setup, group)
}

#[tokio::test(start_paused = true)]
async fn h95_a_lease_in_use_lives_on_while_the_former_one_cannot_be_ended() {
    let setup = Setup::new(|call| match call.name {
        "revoke" => Fate::Refused(Refusal::operator(RefusalKind::Permission, "no")),
        _ => Fate::Well,
    });
    setup.of("s", |contents| contents.leased_until = Some(1));
    let mut leased = plan("s", ValueOrigin::Theirs);
    leased.strategy = Strategy::Lease;
    leased.issuer.facts.lease = Some(LeaseFacts { longest_life: Some(Span::hours(24)) });
    let secret = leased.secret.clone();
    let mut group = setup.engine.begin(&[Arc::new(leased)]).await.unwrap();
    assert_eq!(setup.rest(&mut group).await, None);
    assert!(group.rotations().next().unwrap().parked().is_some());
    let extended =
        || setup.of("s", |place| place.effects.iter().filter(|one| **one == "extend").count());
    assert_eq!(extended(), 0);
    for visit in 1..=5_usize {
        tokio::time::sleep(std::time::Duration::from_secs(31 * 60)).await;
        let mut group = setup.engine.recover(std::slice::from_ref(&secret)).await.unwrap();
        setup.run(&mut group).await;
        assert!(group.rotations().next().unwrap().parked().is_some());
        assert!(extended() >= visit.div_ceil(2), "{} at visit {visit}", extended());
        let row = setup.engine.journal.inventory(&secret).await.unwrap().unwrap();
        let ends = row.at(Stage::Current).unwrap().expires_at.unwrap();
        let now = START + Span::minutes(31 * visit as u64);
        assert!(ends > now, "it ran out at visit {visit}");
    }
}

fn leased(secret: &str) -> Plan {
    let mut leased = plan(secret, ValueOrigin::Theirs);
    leased.strategy = Strategy::Lease;
    leased.issuer.facts.lease = Some(LeaseFacts { longest_life: None });
    leased
}

/// What the issuer no longer accepts: everything that was made in the rotation.
fn drop_what_was_made(setup: &Setup, secret: &str) {
    setup.of(secret, |place| place.live.retain(|(issued, ..)| issued.id == "first"));
}

fn holds_what_is_accepted(place: &mut Contents) -> bool {
    let stored = place.stored.as_ref().unwrap();
    place.live.iter().any(|(_, _, live)| live.same_as(stored))
}

#[tokio::test(start_paused = true)]
async fn h80_what_was_accepted_before_a_restart_is_asked_for_again_before_it_is_written() {
    let stops = AtomicBool::new(true);
    let setup = Setup::new(move |call| match call.name {
        "verify" if stops.swap(false, Ordering::SeqCst) => Fate::Stops,
        _ => Fate::Well,
    });
    let mut group = setup.engine.begin(&[Arc::new(leased("s"))]).await.unwrap();
    assert_eq!(setup.run(&mut group).await, Ran::Stopped);
    drop_what_was_made(&setup, "s");
    assert_eq!(setup.recover_and_rest().await, Some(Outcome::Completed));
    assert!(setup.of("s", holds_what_is_accepted));
}

#[tokio::test(start_paused = true)]
async fn h80_what_was_accepted_before_a_wait_for_another_rotation_is_asked_for_again() {
    let stops = AtomicBool::new(true);
    let setup = Setup::new(move |call| match (call.secret, call.name) {
        ("a-key", "roll") if stops.swap(false, Ordering::SeqCst) => Fate::Stops,
        _ => Fate::Well,
    });
    let mut key = setup.begin("a-key").await;
    assert_eq!(setup.run(&mut key).await, Ran::Stopped);
    setup.world.stop.store(false, Ordering::SeqCst);
    let mut token = setup.engine.begin(&[Arc::new(leased("a-token"))]).await.unwrap();
    let mut run = pin!(setup.run(&mut token));
    while setup.of("a-token", |place| place.said.is_empty()) {
        assert!(polled(1, run.as_mut()).await.is_none(), "it waits for the move of the key");
    }
    assert!(polled(9, run.as_mut()).await.is_none(), "it waits for the move of the key");
    drop_what_was_made(&setup, "a-token");
    let (waited, moved) = tokio::join!(run, setup.run(&mut key));
    assert_eq!((waited, moved), (Ran::Rested, Ran::Rested));
    assert!(setup.of("a-token", holds_what_is_accepted));
}

#[tokio::test(start_paused = true)]
async fn h95_a_lease_is_extended_before_anything_else_of_its_rotation_is_asked() {
    let setup = Setup::new(|call| match call.name {
        "revoke" => Fate::Refused(Refusal::operator(RefusalKind::Permission, "no")),
        _ => Fate::Well,
    });
    setup.of("s", |contents| contents.leased_until = Some(1));
    let mut plan = leased("s");
    plan.issuer.facts.lease = Some(LeaseFacts { longest_life: Some(Span::hours(24)) });
    let secrets = [plan.secret.clone()];
    let mut group = setup.engine.begin(&[Arc::new(plan)]).await.unwrap();
    assert_eq!(setup.rest(&mut group).await, None);
    let before = setup.of("s", |place| place.calls);
    for (later, calls) in [(29, 0), (2, 1)] {
        tokio::time::sleep(std::time::Duration::from_secs(later * 60)).await;
        let mut group = setup.engine.recover(&secrets).await.unwrap();
        setup.engine.extend_lease(&mut group).await.unwrap();
        setup.engine.give_up(&group).await.unwrap();
        assert_eq!(setup.of("s", |place| place.calls), before + calls);
    }
    let row = setup.engine.journal.inventory(&secrets[0]).await.unwrap().unwrap();
    let ends = row.at(Stage::Current).unwrap().expires_at;
    assert_eq!(ends, Some(START + Span::hours(2)), "it is durable");
}

#[tokio::test(start_paused = true)]
async fn h80_a_lease_whose_key_gave_way_to_another_is_given_to_nobody() {
    let setup = Setup::new(|_| Fate::Well);
    setup.of("s", |place| place.give_way = 1);
    let mut group = setup.engine.begin(&[Arc::new(leased("s"))]).await.unwrap();
    assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed));
    let mints = setup.of("s", |place| place.effects.iter().filter(|one| **one == "mint").count());
    assert_eq!(mints, 2, "the first one was made with what is no longer in use");
}

#[tokio::test(start_paused = true)]
async fn every_probe_is_asked_at_each_visit() {
    let (setup, mut group) = with_probes(|_| Fate::Well).await;
    assert_eq!(setup.rest(&mut group).await, Some(Outcome::Completed));
    let asked: Vec<usize> = PROBES
        .iter()
        .map(|name| {
            setup.of("s", |place| place.effects.iter().filter(|effect| *effect == name).count())
        })
        .collect();
    assert!(asked[0] > 3 && asked.iter().all(|times| *times == asked[0]), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_gives_no_answer_holds_up_the_soak_beside_green_ones() {
    let asked = AtomicUsize::new(0);
    let silent = move |call: Call<'_>| match call.name {
        // It answers after the roll, and never again.
        "second probe" if asked.fetch_add(1, Ordering::SeqCst) > 0 => {
            Fate::Refused(Refusal::retry(RefusalKind::Unavailable, None, "nobody is there"))
        }
        _ => Fate::Well,
    };
    let (setup, mut group) = with_probes(silent).await;
    assert_eq!(setup.rest(&mut group).await, None);
    let parked = group.rotations().next().unwrap().parked().cloned();
    assert_eq!(parked, Some(ParkReason::GateClosed));
}

/// Everything outside of the engine.
struct World {
    origin: ValueOrigin,
    fate: Box<dyn Fn(Call<'_>) -> Fate + Send + Sync>,
    places: Mutex<BTreeMap<String, Arc<Mutex<Contents>>>>,
    stop: AtomicBool,
    intents: AtomicUsize,
    intents_at_stop: AtomicUsize,
    /// How many rolls are under way, and how many were at once at the most.
    rolls: Mutex<[usize; 2]>,
}

impl World {
    fn stop(&self) {
        self.intents_at_stop.store(self.intents.load(Ordering::SeqCst), Ordering::SeqCst);
        self.stop.store(true, Ordering::SeqCst);
    }

    fn new(origin: ValueOrigin, fate: impl Fn(Call<'_>) -> Fate + Send + Sync + 'static) -> Self {
        Self {
            origin,
            fate: Box::new(fate),
            places: Mutex::default(),
            stop: AtomicBool::new(false),
            intents: AtomicUsize::new(0),
            intents_at_stop: AtomicUsize::new(0),
            rolls: Mutex::default(),
        }
    }

    fn place(&self, secret: &str) -> Arc<Mutex<Contents>> {
        let mut places = locked(&self.places);
        Arc::clone(places.entry(secret.into()).or_insert_with(|| Arc::new(Contents::first())))
    }
}

impl Watch for World {
    fn recorded(&self, _rotation: &Rotation, event: &Event, _at: Timestamp) {
        if matches!(event, Event::Intended { .. }) {
            self.intents.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an issuer, a store and a workload of one replica hold for one secret.
#[derive(Default)]
struct Contents {
    live: Vec<(IssuedId, Option<Label>, SecretValue)>,
    /// What is live and not whole.
    in_part: Option<IssuedId>,
    stored: Option<SecretValue>,
    held: Option<SecretValue>,
    calls: usize,
    /// What was changed, in the names of steps.
    effects: Vec<&'static str>,
    /// What the issuer was last told that an emergency ends beside the version in use.
    suspects: Vec<IssuedId>,
    /// The values that the issuer was asked to take.
    offered: Vec<SecretValue>,
    /// What the issuer says of the next versions that it is asked about, whatever it holds; the last one comes first.
    verdicts: Vec<bool>,
    /// The values that it refused, as often as it was asked.
    refused: Vec<SecretValue>,
    /// What it said since the last write.
    said: Vec<bool>,
    said_before_write: Vec<bool>,
    /// When the issuer says that every version ends by itself.
    ends_at: Option<Timestamp>,
    /// When the store was written last, in seconds.
    changed_at: i64,
    /// Whether the store keeps its time to itself when it is written.
    time_stands_still: bool,
    /// Whether somebody else writes the store whenever replicas are looked at.
    meddles: bool,
    /// Whether the store tells nothing of what it holds.
    unreadable: bool,
    /// Until when what the issuer makes lives, in hours, where it ends.
    leased_until: Option<u64>,
    /// How many mints are made with what then gives way to something else.
    give_way: usize,
}

impl Contents {
    fn first() -> Mutex<Self> {
        let value = || SecretValue::new(b"first".to_vec());
        Mutex::new(Self {
            live: vec![(IssuedId::new("first"), None, value())],
            stored: Some(value()),
            held: Some(value()),
            ..Self::default()
        })
    }
}

/// One secret's issuer, store and workload.
struct Place {
    world: Arc<World>,
    secret: String,
    contents: Arc<Mutex<Contents>>,
}

impl Place {
    async fn call(&self, name: &'static str) -> Result<(), CallError> {
        let nth = self.with(|place| {
            place.calls += 1;
            place.calls - 1
        });
        yield_now().await;
        match (self.world.fate)(Call { secret: &self.secret, name, nth }) {
            Fate::Well => Ok(()),
            Fate::Refused(refusal) => Err(refusal.into()),
            Fate::Hangs => pending().await,
            Fate::Panics => panic!("a driver panics in {name}"),
            Fate::Stops => {
                self.world.stop();
                Ok(())
            }
            Fate::StopsRefused(refusal) => {
                self.world.stop();
                Err(refusal.into())
            }
        }
    }

    /// Changes the world; the answer is on its way for a while.
    async fn change<T>(&self, name: &'static str, change: impl FnOnce(&mut Contents) -> T) -> T {
        let changed = self.with(|place| {
            place.effects.push(name);
            change(place)
        });
        yield_now().await;
        changed
    }

    fn with<T>(&self, act: impl FnOnce(&mut Contents) -> T) -> T {
        act(&mut locked(&self.contents))
    }
}

#[async_trait]
impl Issuer for Place {
    fn facts(&self) -> IssuerFacts {
        IssuerFacts { value: self.world.origin, ..ISSUER }
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        self.call("preflight").await?;
        Ok(Vec::new())
    }

    fn generate(&self, random: Randomness<'_>, _previous: Option<&IssuedId>) -> Option<Credential> {
        let mut value = vec![0; 16];
        random(&mut value);
        (self.world.origin == ValueOrigin::Ours)
            .then(|| Credential::of_value(SecretValue::new(value)))
    }

    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        let ours = request.value.map(|value| value.value().unwrap().duplicate());
        self.with(|place| {
            let suspects = request.suspects.iter();
            place.suspects = suspects.filter_map(|suspect| suspect.issued.clone()).collect();
            place.offered.extend(ours.as_ref().map(SecretValue::duplicate));
        });
        self.call("mint").await?;
        let made = |place: &Contents| SecretValue::new(vec![place.calls as u8; 16]);
        let theirs = self.world.origin == ValueOrigin::Theirs;
        self.change("mint", |place| {
            let value = ours.unwrap_or_else(|| made(place));
            let issued = IssuedId::new(format!("made by call {}", place.calls));
            place.live.push((issued.clone(), Some(request.label.clone()), value.duplicate()));
            let credential = theirs.then(|| Credential::of_value(value));
            let expires_at = place.leased_until.map(|hours| START + Span::hours(hours));
            Ok(Minted { issued: Some(issued), credential, expires_at, ..Minted::default() })
        })
        .await
    }

    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        self.call("verify").await?;
        let value = credential.value().unwrap();
        Ok(self.with(|place| {
            let is_live = place.live.iter().any(|(_, _, live)| live.same_as(value));
            let accepted = place.verdicts.pop().unwrap_or(is_live);
            place.said.push(accepted);
            place.refused.extend((!accepted).then(|| value.duplicate()));
            if accepted { Verdict::Accepted } else { Verdict::Refused }
        }))
    }

    async fn outdated(&self, _id: &IssuedId) -> Result<Option<String>, CallError> {
        self.call("outdated").await?;
        Ok(self.with(|place| {
            let mints = place.effects.iter().filter(|one| **one == "mint").count();
            (mints <= place.give_way).then(|| "it is signed with a former key".into())
        }))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Live>, CallError> {
        self.call("list").await?;
        let begins = |label: &Option<Label>| {
            label.as_ref().map_or(prefix.is_empty(), |label| label.0.starts_with(prefix))
        };
        Ok(self.with(|place| {
            let listed = place.live.iter().filter(|(_, label, _)| begins(label));
            listed
                .map(|(issued, label, _)| Live { issued: issued.clone(), label: label.clone() })
                .collect()
        }))
    }

    async fn confirm(&self, id: &IssuedId) -> Result<bool, CallError> {
        self.call("confirm").await?;
        Ok(self.with(|place| place.in_part.as_ref() != Some(id)))
    }

    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError> {
        self.call("revoke").await?;
        self.change("revoke", |place| place.live.retain(|(issued, ..)| issued != id)).await;
        Ok(())
    }

    async fn ends_at(&self, _credential: &Credential) -> Result<Option<Timestamp>, CallError> {
        Ok(self.with(|place| place.ends_at))
    }

    async fn end_sessions(&self, _id: &IssuedId) -> Result<(), CallError> {
        self.call("end sessions").await?;
        self.change("end sessions", |_| ()).await;
        Ok(())
    }

    fn extend(&self) -> Option<&dyn Extend> {
        Some(self)
    }
}

#[async_trait]
impl Extend for Place {
    async fn extend(&self, id: &IssuedId) -> Result<Timestamp, CallError> {
        self.call("extend").await?;
        let is_live = self.with(|place| place.live.iter().any(|(issued, ..)| issued == id));
        assert!(is_live, "{id} is not live");
        self.change("extend", |place| {
            let hours = place.leased_until.map_or(1, |hours| hours + 1);
            place.leased_until = Some(hours);
            Ok(START + Span::hours(hours))
        })
        .await
    }
}

#[async_trait]
impl Store for Place {
    fn facts(&self) -> StoreFacts {
        STORE
    }

    fn container(&self) -> String {
        format!("store of {}", self.secret)
    }

    async fn preflight(&self, _addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        self.call("preflight of the store").await?;
        Ok(Vec::new())
    }

    async fn missing(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        let is_there = self.with(|place| place.stored.is_some());
        let absent = addresses.iter().filter(|_| !is_there);
        Ok(absent.map(|key| Finding::blocks(format!("there is no `{key}`"))).collect())
    }

    async fn read(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        self.call("read").await?;
        assert!(!self.with(|place| place.unreadable), "a store that cannot be read is read");
        let stored = || self.with(|place| place.stored.as_ref().map(SecretValue::duplicate));
        Ok(addresses.iter().map(|_| stored()).collect())
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        self.call("write").await?;
        let value = edits[0].value.map(SecretValue::duplicate);
        self.change("write", |place| {
            place.said_before_write.append(&mut place.said);
            place.stored = value;
            place.changed_at += i64::from(!place.time_stands_still);
        })
        .await;
        Ok(Written { changed: true })
    }

    async fn changed_at(&self, addresses: &[String]) -> Result<Vec<Option<Timestamp>>, CallError> {
        self.call("changed at").await?;
        let at = self.with(|place| {
            place.stored.as_ref().map(|_| Timestamp::from_millis(place.changed_at * 1_000))
        });
        Ok(vec![at; addresses.len()])
    }
}

#[async_trait]
impl Workload for Place {
    fn facts(&self) -> WorkloadFacts {
        WORKLOAD
    }

    fn resource(&self) -> String {
        let shared = self.secret.split('-').next().unwrap_or_default();
        format!("workload of {shared}")
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        self.call("preflight of the workload").await?;
        Ok(Vec::new())
    }

    async fn observe(
        &self,
        addresses: &[String],
        fingerprinter: &Fingerprinter,
    ) -> Result<Vec<Replica>, CallError> {
        self.call("observe").await?;
        self.with(|place| place.changed_at += i64::from(place.meddles));
        let held = self.with(|place| fingerprinter.of(place.held.as_ref().unwrap().expose()));
        let shown = addresses.iter().map(|address| (address.clone(), held));
        Ok(vec![Replica { id: "1".into(), started_at: None, shows: Shows::Slots(shown.collect()) }])
    }

    async fn logs(&self) -> Result<Option<Vec<LogReference>>, CallError> {
        self.call("logs").await?;
        let number = self.with(|place| place.effects.iter().filter(|one| **one == "roll").count());
        Ok(Some(vec![LogReference {
            replica: "1".into(),
            id: None,
            driver: None,
            place: Some(if number == 0 { "logs of the first" } else { "logs of another" }.into()),
            file: None,
            since: None,
            until: START,
            outlives: Some(false),
            kept_in: None,
        }]))
    }

    async fn roll(&self, _ensure: &Ensure<'_>) -> Result<(), CallError> {
        let count = |up: bool| {
            let [now, most] = &mut *locked(&self.world.rolls);
            *now = if up { *now + 1 } else { *now - 1 };
            *most = (*most).max(*now);
        };
        count(true);
        let called = self.call("roll").await;
        if called.is_ok() {
            self.change("roll", |place| {
                place.held = place.stored.as_ref().map(SecretValue::duplicate);
            })
            .await;
        }
        count(false);
        called
    }
}

const PROBES: [&str; 3] = ["first probe", "second probe", "third probe"];

struct Question {
    place: Arc<Place>,
    name: &'static str,
}

#[async_trait]
impl Probe for Question {
    async fn ask(&self, asked: &Asked) -> Result<Health, CallError> {
        assert_eq!(
            asked.began_at, START,
            "whenever it is asked, it is told when the rotation began"
        );
        self.place.call(self.name).await?;
        self.place.with(|place| place.effects.push(self.name));
        Ok(Health::Green)
    }
}

/// Builds drivers that call the world.
struct FromWorld(Arc<World>);

impl Build for FromWorld {
    fn build(&self, plan: &Plan) -> Result<Drivers, Refusal> {
        let secret = plan.secret.name().to_owned();
        let contents = self.0.place(&secret);
        let place = Arc::new(Place { world: Arc::clone(&self.0), secret, contents });
        Ok(Drivers {
            issuer: place.clone(),
            stores: vec![place.clone()],
            workloads: vec![place.clone()],
            probes: (0..plan.probes.len())
                .map(|index| {
                    Arc::new(Question { place: place.clone(), name: PROBES[index] })
                        as Arc<dyn Probe>
                })
                .collect(),
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

fn plan(secret: &str, origin: ValueOrigin) -> Plan {
    let first = VersionRef {
        version: VersionId(1),
        issued: Some(IssuedId::new("first")),
        state: State::Active,
        fingerprint: None,
    };
    let mut plan = plain_plan(&SecretName::new(secret, "production").unwrap(), first, VersionId(2));
    plan.issuer.facts.value = origin;
    plan
}
