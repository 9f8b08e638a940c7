//! What an incident is told by the issuer of a suspect, and how what it owes is closed.

use std::time::Duration;

use keywheel_twins::fault::{Fault, Rule};

use super::OLD;
use super::provider::Provider;

const EMERGENCY: [&str; 5] = ["rotate", "model", "--emergency", "--yes", "--because"];

fn leaked(provider: &Provider) {
    provider.run(&[&EMERGENCY[..], &["it was pasted"]].concat()).ends(0).says("completed");
}

#[test]
fn an_incident_shows_what_the_issuer_has_on_record_about_a_suspect() {
    let provider = Provider::rotated();
    provider.twin.add_use(&provider.current().id, Duration::from_secs(2 * 3_600));
    leaked(&provider);
    let shown = provider.run(&["incident", "show", "model"]);
    shown.ends(0).says("model@default v2, since 20").says("api_key.created by key");
    shown.says("api_key.deleted by key").says("not read: the last use at issuer `openai`");
    shown.says("no log is known");
    let shown = provider.project.json(&["incident", "show", "--since", "3h"]);
    let record = &shown["records"][0];
    let told = record["entries"].as_array().unwrap().iter().map(|entry| entry["what"].to_string());
    let told: String = told.collect();
    assert!(told.contains("1 request in the 24 h"), "{record}");
    assert_eq!(record["not_read"].as_array().unwrap().len(), 1, "{record}");
    let later = provider.run(&["incident", "show", "--since", "2999-01-01"]);
    later.ends(0).says("the audit log has nothing of it");
    provider.run(&["incident", "show", "--since", "yesterday"]).ends(1).says("neither a time");
}

#[test]
fn an_issuer_that_cannot_be_read_keeps_nobody_from_the_rest() {
    let provider = Provider::rotated();
    leaked(&provider);
    provider.twin.set_script(vec![Rule::every("*", Fault::status(403))]).unwrap();
    let shown = provider.run(&["incident", "show"]);
    shown.ends(0).says("the audit log could not be read").says("nothing is owed").says("proven");
}

#[test]
fn what_an_incident_owes_is_closed_with_a_note_and_nothing_else_is() {
    let provider = Provider::new();
    let pepper = "  pepper:
    policy: fast
    issuer: { random: { length: 32 } }
    stores: { app: PEPPER }
    read_by: nobody
    because: it is read when the image is built
";
    provider.project.write("keywheel.yaml", &format!("{}{pepper}", provider.config));
    let env = provider.project.read("app.env");
    provider.project.write("app.env", &format!("{env}PEPPER={OLD}\n"));
    provider.run(&["rotate", "model", "--yes", "--soak"]).ends(0);
    leaked(&provider);
    provider.run(&["incident", "show"]).ends(0).says("pepper@default was not rotated");
    provider.run(&["incident", "list"]).ends(0).says("more is owed");
    provider.run(&["incident", "close", "model"]).ends(1).says("--note");
    let close = ["incident", "close", "model", "--note", "nobody can read it from there"];
    provider.run(&close).ends(0).says("closed: pepper@default was not rotated");
    let shown = provider.run(&["incident", "show"]);
    shown.ends(0).says("nothing is owed").says("nobody can read it from there");
    provider.run(&["incident", "list"]).ends(0).says("closed");
    provider.run(&["audit", "list"]).ends(0).says("owed for pepper@default");
    provider.run(&["audit", "verify"]).ends(0);
    provider.run(&close).ends(4).says("K0203").says("owes nothing that a note closes");
    leaked(&provider);
    provider.run(&["incident", "show"]).ends(0).says("pepper@default was not rotated: `PEPPER`");
}
