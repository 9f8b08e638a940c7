//! `anthropic`: a person makes the key, and the API does the rest.

use keywheel_twins::anthropic::{ConsoleKey, HandMade, Twin, TwinOptions};

use super::*;

/// A project whose key is one of the twin's.
struct Shop {
    project: Project,
    twin: Twin,
    old: HandMade,
}

impl Shop {
    fn new() -> Self {
        let twin = Twin::start(TwinOptions::default()).unwrap();
        let old = twin.make_key("by-hand");
        let issuer = format!(
            "anthropic: {{ admin_key: {{ file: admin.key }}, base_url: \"{}\", usage: nothing, propagation: 1s, settle_for: 500ms }}",
            twin.base_url()
        );
        let project = Project::new(&issuer, twin.admin_key(), &old.value);
        Self { project, twin, old }
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.project.run(arguments)
    }

    /// Runs with somebody who clicks in the console as they are told.
    fn guide(&self, arguments: &[&str]) -> Ran {
        self.project.guide(arguments, |question| self.does(question))
    }

    fn does(&self, question: &str) -> String {
        let name = name_in(question);
        if question.ends_with("its value: ") {
            let key = ConsoleKey { name: name.into(), ..ConsoleKey::default() };
            return self.twin.console(&key).value;
        }
        let keys = self.twin.keys().into_iter().filter(|key| key.status == "active");
        if question.contains("name begins with") {
            let names = keys.map(|key| key.name).filter(|known| known.starts_with(name));
            return names.collect::<Vec<_>>().join(" ");
        }
        keys.filter(|key| key.name == name || key.id == name)
            .for_each(|key| self.twin.archive(&key.id));
        "ended".into()
    }

    fn statuses(&self) -> Vec<&'static str> {
        self.twin.keys().iter().map(|key| key.status).collect()
    }
}

#[test]
fn a_person_makes_a_key_of_anthropic_and_nobody_is_asked_to_end_the_former_one() {
    let shop = Shop::new();
    shop.run(&["adopt", "model", "--yes"]).ends(0).says(&shop.old.id);
    shop.run(&["plan", "model"]).ends(0).says("(guided: needs you)");
    let ran = shop.guide(&["rotate", "model", "--yes", "--soak"]);
    ran.says("for the same account as the key named `by-hand`");
    ran.ends(0).says("completed; v2 is current, v1 is refused everywhere");
    assert_eq!(ran.said.matches("needs you:").count(), 1, "{}", ran.said);
    assert!(shop.twin.accepts(&shop.project.key()));
    assert_eq!(shop.statuses(), ["archived", "active"]);
    shop.run(&["doctor"]).ends(0);
    shop.run(&["audit", "verify"]).ends(0);
}

#[test]
fn an_admin_key_that_comes_later_ends_what_a_person_named() {
    let mut shop = Shop::new();
    shop.run(&["adopt", "model", "--yes"]).ends(0);
    let issuer = shop.project.issuer.clone();
    shop.project.issuer = issuer.replace("admin_key: { file: admin.key }, ", "");
    shop.project.soaks("1s");
    let ran = shop.guide(&["rotate", "model", "--yes", "--soak"]);
    ran.says("for good, and no other").ends(0).says("completed; v2 is current");
    let former = shop.project.key();

    shop.project.issuer = issuer;
    shop.project.soaks("1s");
    shop.run(&["doctor"]).ends(0);
    let ran = shop.guide(&["rotate", "model", "--yes", "--soak"]);
    ran.ends(0).says("completed; v3 is current, v2 is refused everywhere");
    assert_eq!(ran.said.matches("needs you:").count(), 1, "{}", ran.said);
    assert!(!shop.twin.accepts(&former));
}

#[test]
fn h04_a_key_of_anthropic_whose_value_was_lost_is_archived_without_a_person() {
    let shop = Shop::new();
    shop.project.soaks("1h");
    let mut command = shop.project.command(&["rotate", "model", "--yes"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let question = next_question(&mut child, &mut String::new()).unwrap();
    let lost = shop.does(&question);
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    shop.guide(&["resume", "model"]).ends(0).says("promoted; v2 is current");
    assert_eq!(shop.statuses(), ["active", "archived", "active"]);
    assert!(!shop.twin.accepts(&lost) && shop.twin.accepts(&shop.project.key()));
}

#[test]
fn an_undo_archives_the_new_key_of_anthropic_and_keeps_the_former_one() {
    let shop = Shop::new();
    shop.project.soaks("1h");
    shop.guide(&["rotate", "model", "--yes"]).ends(0).says("promoted; v2 is current");
    let undo = ["undo", "model", "--yes", "--because", "a test"];
    shop.run(&undo).ends(0).says("v1 is current again");
    assert_eq!(shop.project.key(), shop.old.value);
    assert!(shop.twin.accepts(&shop.old.value));
}

#[test]
fn a_key_of_anthropic_that_leaked_is_ended_in_both_orders() {
    for order in [&[][..], &["--revoke-first"]] {
        let shop = Shop::new();
        shop.run(&["adopt", "model", "--yes"]).ends(0);
        let emergency = ["rotate", "model", "--emergency", "--because", "pasted", "--yes"];
        shop.guide(&[&emergency, order].concat()).ends(0).says("completed");
        assert_eq!(shop.statuses(), ["archived", "active"]);
        shop.run(&["incident", "show"]).ends(0).says("v1");
    }
}

#[test]
fn where_nobody_is_there_a_key_of_anthropic_waits_for_a_person() {
    let shop = Shop::new();
    let ran = shop.run(&["rotate", "model", "--yes"]);
    ran.ends(3).says("needs a person: run `keywheel resume model@default` at a terminal");
    assert_eq!((shop.project.key(), shop.statuses()), (shop.old.value.clone(), vec!["active"]));
}
