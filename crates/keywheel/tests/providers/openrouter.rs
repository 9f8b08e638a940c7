//! `openrouter`: everything by the API.

use keywheel_twins::fault::{Fault, Rule};
use keywheel_twins::openrouter::{HandMade, Limits, Twin, TwinOptions};

use super::*;

/// A project whose key is one of the twin's.
struct Shop {
    project: Project,
    twin: Twin,
    old: HandMade,
}

impl Shop {
    /// Gives the issuer further settings.
    fn with(settings: &str) -> Self {
        let twin = Twin::start(TwinOptions::default()).unwrap();
        let limits =
            Limits { limit: Some(5.0), limit_reset: Some("monthly".into()), ..Limits::default() };
        let old = twin.make_key_with("by-hand", &limits);
        let issuer = format!(
            "openrouter: {{ management_key: {{ file: admin.key }}, base_url: \"{}\", propagation: 1s, settle_for: 500ms, {settings} }}",
            twin.base_url()
        );
        let project = Project::new(&issuer, twin.management_key(), &old.value);
        Self { project, twin, old }
    }

    fn new() -> Self {
        Self::with("usage: nothing")
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.project.run(arguments)
    }

    /// The application's key is the only one that is of use.
    #[track_caller]
    fn assert_one_key_is_live(&self) {
        assert!(self.twin.accepts(&self.project.key()));
        let live: Vec<_> = self.twin.keys().into_iter().filter(|key| key.live).collect();
        assert_eq!(live.len(), 1, "{live:?}");
        self.run(&["doctor"]).ends(0);
        self.run(&["audit", "verify"]).ends(0);
    }
}

#[test]
fn a_key_of_openrouter_is_rotated_from_adoption_to_the_proof_of_death() {
    let shop = Shop::new();
    shop.run(&["check"]).ends(0).says("the workspace has 1 keys");
    shop.run(&["adopt", "model", "--yes"]).ends(0).says(&shop.old.hash);
    shop.run(&["plan", "model"]).ends(0).says("suspend").says("revoke");
    let ran = shop.run(&["rotate", "model", "--yes", "--soak"]);
    ran.ends(0).says("completed; v2 is current, v1 is refused everywhere");
    ran.says("beside what the key in use has spent it may spend its limit of 5.0 USD again");
    assert!(!shop.twin.accepts(&shop.old.value));
    shop.assert_one_key_is_live();
    let keys = shop.twin.keys();
    let new = keys.iter().find(|key| key.live).unwrap();
    assert!(new.name.starts_with("kw-"), "{new:?}");
    assert_eq!((new.limit, new.limit_reset.as_deref()), (Some(5.0), Some("monthly")));
    let seen = shop.twin.faults().seen();
    let at = |operation| seen.iter().position(|seen| seen.operation == Some(operation));
    assert!(at("update_key").unwrap() < at("delete_key").unwrap(), "suspended, then deleted");
    shop.twin.make_key(&format!("{}9", new.name));
    shop.run(&["doctor"]).ends(3).says(&format!("{}9", new.name));
}

#[test]
fn a_key_of_openrouter_is_suspended_in_the_middle_of_soak_and_resumed() {
    let shop = Shop::new();
    shop.project.soaks("{ for: 9s, brownout: 1s }");
    shop.run(&["adopt", "model", "--yes"]).ends(0);
    let plan = shop.run(&["plan", "model"]);
    plan.ends(0).says("v1 is suspended for 1 s, and no probe sees who misses it, and resumed");
    // Whoever is there when it begins stays to its end.
    shop.run(&["rotate", "model", "--yes"]).ends(0).says("promoted; v2 is current");
    let mut ran = shop.run(&["resume", "model"]);
    for _ in 0..150 {
        if ran.said.contains("resume     model v1") {
            break;
        }
        assert!(!ran.said.contains("suspend    model v1"), "left suspended: {}", ran.said);
        std::thread::sleep(std::time::Duration::from_millis(200));
        ran = shop.run(&["resume", "model"]);
    }
    // On a slow machine nothing is left to wait for by then.
    if !ran.said.contains("completed; v2 is current") {
        shop.run(&["resume", "model", "--soak"]).ends(0).says("completed; v2 is current");
    }
    let seen = shop.twin.faults().seen();
    let switched = seen.iter().filter(|seen| seen.operation == Some("update_key")).count();
    assert_eq!(switched, 3, "suspended, resumed, suspended for good");
    shop.assert_one_key_is_live();
}

#[test]
fn h93_a_key_of_openrouter_that_a_killed_brown_out_left_suspended_is_accepted_again_after_an_undo()
{
    let shop = Shop::new();
    shop.project.soaks("{ for: 4s, brownout: 4s }");
    let mut child = shop.project.command(&["rotate", "model", "--yes", "--soak"]).spawn().unwrap();
    let is_told = || shop.run(&["status"]).said.contains("; suspended for a brown-out");
    while shop.twin.accepts(&shop.old.value) || !is_told() {
        assert!(child.try_wait().unwrap().is_none(), "it ended without a brown-out");
    }
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    shop.run(&["status"]).ends(0).says("; suspended for a brown-out");
    let undo = ["undo", "model", "--yes", "--because", "a test"];
    shop.run(&undo).ends(2).says("undone; v1 is current, v2 is ended");
    assert_eq!(shop.project.key(), shop.old.value);
    assert!(shop.twin.accepts(&shop.old.value));
}

#[test]
fn an_undo_deletes_the_new_key_of_openrouter_and_keeps_the_former_one() {
    let shop = Shop::new();
    shop.project.soaks("1h");
    shop.run(&["rotate", "model", "--yes"]).ends(0).says("promoted; v2 is current");
    assert_ne!(shop.project.key(), shop.old.value);
    let undo = ["undo", "model", "--yes", "--because", "a test"];
    shop.run(&undo).ends(0).says("v1 is current again");
    shop.project.soaks("1s");
    assert_eq!(shop.project.key(), shop.old.value);
    assert!(shop.twin.accepts(&shop.old.value));
}

#[test]
fn h04_a_key_of_openrouter_whose_making_was_not_answered_leaves_no_orphan() {
    for fault in [Fault::Cut, Fault::LateLanding { after_ms: 300 }, Fault::Twice] {
        let shop = Shop::new();
        shop.twin.faults().set(vec![Rule::first("create_key", fault)]).unwrap();
        shop.run(&["rotate", "model", "--yes", "--soak"]).ends(0).says("completed");
        assert_eq!(shop.twin.faults().unfired(), []);
        shop.assert_one_key_is_live();
    }
}

#[test]
fn h92_a_key_that_an_answer_names_by_mistake_is_left_alone() {
    for operation in ["create_key", "get_key", "update_key"] {
        let shop = Shop::new();
        let other = shop.twin.make_key("of a colleague");
        let fault = Fault::AnotherId { at: "/data/hash".into(), id: other.hash.clone() };
        shop.twin.faults().set(vec![Rule::first(operation, fault)]).unwrap();
        shop.run(&["rotate", "model", "--yes", "--soak"]).ends(0).says("completed");
        assert_eq!(shop.twin.faults().unfired(), [], "{operation}");
        assert!(shop.twin.accepts(&other.value), "{operation}: another key was ended");
        let live: Vec<_> = shop.twin.keys().into_iter().filter(|key| key.live).collect();
        assert_eq!(live.len(), 2, "{operation}: {live:?}");
        assert!(shop.twin.accepts(&shop.project.key()), "{operation}");
    }
}

#[test]
fn h92_where_every_answer_names_another_key_nothing_is_left_and_a_person_is_told() {
    let shop = Shop::new();
    shop.project.soaks("1s, patience: 2s");
    let fault = Fault::AnotherId { at: "/data/hash".into(), id: shop.old.hash.clone() };
    shop.twin.faults().set(vec![Rule::every("create_key", fault)]).unwrap();
    let ran = shop.run(&["rotate", "model", "--yes", "--soak"]);
    ran.ends(2).says("the id that it answered could not be confirmed").says("v1 is current");
    assert_eq!(shop.project.key(), shop.old.value);
    shop.assert_one_key_is_live();
    shop.twin.faults().set(Vec::new()).unwrap();
    shop.run(&["rotate", "model", "--yes", "--soak"]).ends(0).says("completed");
    shop.assert_one_key_is_live();
}

#[test]
fn a_key_of_openrouter_that_leaked_is_ended_in_both_orders() {
    for order in [&[][..], &["--revoke-first"]] {
        let shop = Shop::new();
        shop.run(&["adopt", "model", "--yes"]).ends(0);
        let emergency = ["rotate", "model", "--emergency", "--because", "pasted", "--yes"];
        shop.run(&[&emergency, order].concat()).ends(0).says("completed");
        assert!(!shop.twin.accepts(&shop.old.value));
        shop.assert_one_key_is_live();
        shop.run(&["incident", "show"]).ends(0).says("v1");
    }
}

#[test]
fn h56_a_key_of_openrouter_is_kept_until_its_activity_must_show_that_it_is_quiet() {
    let shop = Shop::with("");
    shop.run(&["adopt", "model", "--yes"]).ends(0);
    shop.project.soaks("20s");
    shop.run(&["rotate", "model", "--yes"]).ends(0).says("promoted; v2 is current");
    let status = shop.run(&["status", "--output", "json"]).said;
    let until = status.split("\"soak_until\": \"").nth(1).unwrap();
    let until: jiff::Timestamp = until.split('"').next().unwrap().parse().unwrap();
    let hours = until.duration_since(jiff::Timestamp::now()).as_hours();
    assert!(hours >= 49, "a day shows once it is over: {hours}");
    assert!(shop.twin.accepts(&shop.old.value));
}

#[test]
fn a_management_key_that_is_refused_is_named_before_anything_is_changed() {
    let shop = Shop::new();
    shop.twin.faults().set(vec![Rule::every("*", Fault::status(401))]).unwrap();
    let ran = shop.run(&["rotate", "model", "--yes"]);
    ran.ends(4).says("the management key is not accepted");
    assert_eq!(shop.project.key(), shop.old.value);
}
