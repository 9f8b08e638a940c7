//! Messages to people: kept until they are taken, and waited for by nothing.

use super::*;

/// Appends each message to a file, while a folder says that the world is well.
const SINK: &str = "#!/bin/sh\n[ -e up ] || exit 1\ncat >> messages\necho >> messages\n";

fn project() -> Project {
    let project = Project::new();
    let notify = "notify: { command: { argv: [sh, sink], within: 10s } }\n";
    project.write("keywheel.yaml", &format!("{CONFIG}{notify}"));
    project.write("sink", SINK);
    project
}

fn messages(project: &Project) -> Vec<Value> {
    let text = std::fs::read_to_string(project.path("messages")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn topics(messages: &[Value]) -> Vec<&str> {
    messages.iter().map(|message| message["topic"].as_str().unwrap()).collect()
}

#[test]
fn h122_a_message_that_nobody_takes_is_kept_and_the_rotation_goes_on() {
    let project = project();
    let ran = project.run(&["rotate", "pepper", "--yes", "--soak"]);
    ran.ends(0).says("completed; v2 is current").says("2 messages could not be delivered");
    project.run(&["status"]).ends(0).says("undelivered: 2 messages");
    assert_eq!(project.json(&["status"])["environments"][0]["secrets"][0]["undelivered"], 2);
    project.run(&["resume", "--all", "--quiet"]).ends(0).says("2 messages could not be delivered");
    project.write("up", "");
    project.run(&["resume", "--all", "--quiet"]).ends(0);
    let told = messages(&project);
    assert_eq!(topics(&told), ["promoted", "completed"], "{told:?}");
    assert!(told.iter().all(|message| message["secret"] == "pepper@default"), "{told:?}");
    project.run(&["resume", "--all"]).ends(0).says("nothing is owed");
    assert_eq!(messages(&project).len(), 2, "each is told once");
    assert!(!project.run(&["status"]).stdout.contains("undelivered"));
    project.run(&["audit", "verify"]).ends(0);
}

#[test]
fn people_are_told_of_emergencies_and_of_what_needs_them() {
    let project = project();
    project.write("up", "");
    project.run(&["adopt", "--all", "--yes"]).ends(0);
    let ran = project.run(&["rotate", "pepper", "--yes", "--emergency", "--because", "leaked"]);
    ran.ends(0);
    let told = messages(&project);
    assert_eq!(topics(&told), ["emergency", "promoted", "completed"], "{told:?}");
    assert!(!std::fs::read_to_string(project.path("messages")).unwrap().contains(OLD));
}
