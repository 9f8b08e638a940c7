//! A key that its issuer ended by itself.

use keywheel_twins::fault::{Fault, Rule};

use super::provider::Provider;

const LOOK: &str = "list_models";

/// How often a value was tried.
fn tries(provider: &Provider) -> usize {
    provider.twin.requests().iter().filter(|seen| seen.operation == Some(LOOK)).count()
}

#[test]
fn h95_a_key_that_died_by_itself_is_found_with_one_try_and_replaced_by_an_emergency() {
    let provider = Provider::rotated();
    provider.run(&["doctor"]).ends(0).says("world and journal agree");
    let before = tries(&provider);
    provider.twin.end_by_itself(&provider.current().id);
    let doctor = provider.run(&["doctor"]);
    doctor.ends(3).says("issuer `openai` refuses v2 that readers use");
    doctor.says("keywheel rotate model@default --emergency --because");
    assert_eq!(tries(&provider), before + 1, "a refusal is not asked again");
    let check = provider.run(&["check"]);
    check.ends(0).says("issuer `openai` refuses v2 that readers use");
    assert_eq!(tries(&provider), before + 2);
    provider.run(&["doctor"]).ends(3);
    let status = provider.run(&["status", "--fail-on", "needs-operator"]);
    status.ends(6).says("its issuer refuses v2 that readers use, seen").says("--emergency");
    let told = provider.project.json(&["status"])["environments"][0]["secrets"][0].clone();
    assert_eq!(told["standing"], "needs_operator");
    assert!(told["refused_at"].is_string());
    assert_eq!(tries(&provider), before + 3, "`status` asks nobody");
    let because = ["--because", "the provider ended it"];
    let emergency = ["rotate", "model@default", "--emergency", "--yes"];
    provider.run(&[&emergency[..], &because[..]].concat()).ends(0).says("v3 is current");
    assert!(!provider.run(&["status"]).stdout.contains("refuses"));
    provider.run(&["doctor"]).ends(0).says("world and journal agree");
}

#[test]
fn h95_an_emergency_that_is_under_way_is_not_advised_again() {
    let provider = Provider::rotated();
    let impatient = provider.config.replace("watch: 1s", "watch: 1s, patience: 1s");
    provider.project.write("keywheel.yaml", &impatient);
    provider.twin.end_by_itself(&provider.current().id);
    provider.run(&["check"]).ends(0).says("--emergency");
    let busy = vec![Rule::every("create_service_account", Fault::status(503))];
    provider.twin.set_script(busy).unwrap();
    let emergency = ["rotate", "model", "--emergency", "--yes", "--because", "it was ended"];
    provider.run(&emergency).ends(3);
    for command in ["check", "doctor"] {
        let said = provider.run(&[command]).stdout;
        assert!(!said.contains("--emergency"), "{command}: {said}");
    }
}

#[test]
fn an_issuer_that_cannot_tell_and_a_value_of_somebody_else_are_no_finding() {
    let provider = Provider::rotated();
    let hangs =
        r#"[{ "on": "list_models", "nth": "every", "fault": { "status": { "code": 503 } } }]"#;
    provider.twin.set_script(serde_json::from_str(hangs).unwrap()).unwrap();
    provider.run(&["doctor"]).ends(0).says("world and journal agree");
    provider.twin.set_script(Vec::new()).unwrap();
    let (before, known) = (tries(&provider), provider.project.read("app.env"));
    provider.project.write("app.env", "MODEL_KEY=sk-of-somebody-else\n");
    provider.run(&["doctor"]).ends(3).says("store `app` was changed by somebody else");
    assert_eq!(tries(&provider), before, "what somebody else wrote is nobody's to try");
    provider.project.write("app.env", &known);
}
