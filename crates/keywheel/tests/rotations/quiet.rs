//! Whether the former version is still used: how `plan` says that it will be known, and how `status` says that it is.

use std::time::Duration;

use super::provider::Provider;

#[test]
fn a_plan_says_how_it_is_known_that_nobody_uses_the_former_version() {
    let provider = Provider::new();
    let told = "v1 is ended once openai tells no use of it (told after up to 100 ms, to 1 s)";
    let plan = provider.run(&["plan", "model"]);
    plan.ends(0).says(told).says("without an answer it is ended all the same");
    let waits = provider.config.replace("soak: 1s", "soak: 1s, cannot_tell: wait");
    provider.project.write("keywheel.yaml", &waits);
    provider.run(&["plan", "model"]).ends(0).says(told).says("without an answer it waits");
}

#[test]
fn h56_a_version_that_is_still_used_is_named_while_its_gate_is_closed() {
    let provider = Provider::new();
    let slow = provider.config.replace("soak: 1s", "soak: 40s");
    provider.project.write("keywheel.yaml", &slow);
    let former = provider.twin.keys().remove(0);
    provider.run(&["rotate", "model", "--yes"]).ends(0).says("promoted; v2 is current");
    std::thread::sleep(Duration::from_millis(1_500));
    provider.twin.add_use(&former.id, Duration::ZERO);
    let told = closed(&provider);
    assert!(told["in_use_at"].is_string(), "{told}");
    let seen = told["seen"].as_str().unwrap();
    assert!(seen.starts_with("v1 was used ") && seen.contains("1 requests in 7 days"), "{told}");
    let status = provider.run(&["status"]);
    status.ends(0).says("v1 is being ended; v1 was used").says("under way (1)");
    assert_eq!(provider.twin.live("by-hand").len(), 1);
}

/// Goes on as cron does until the quiet gate is seen closed.
fn closed(provider: &Provider) -> serde_json::Value {
    for _ in 0..40 {
        provider.run(&["resume", "--all", "--quiet"]).ends(0);
        let status = provider.project.json(&["status"]);
        let told = &status["environments"][0]["secrets"][0]["held_up"];
        if told["quiet"] == "closed" {
            return told.clone();
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    panic!("the gate was never closed");
}
