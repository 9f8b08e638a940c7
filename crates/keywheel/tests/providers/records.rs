//! What `incident show` tells of a key that leaked, from the records of `sentry` and `posthog`.

use std::time::Duration;

use keywheel_twins::{posthog, sentry};

use super::*;

/// Ends the key in use in an emergency, and returns what is told of it afterwards, for people and for programs.
fn after_an_emergency(project: &Project) -> [Ran; 2] {
    project.run(&["adopt", "model", "--yes"]).ends(0);
    let emergency = ["rotate", "model", "--emergency", "--because", "pasted", "--yes"];
    project.run(&emergency).ends(0).says("completed");
    let show = ["incident", "show", "--since", "30d"];
    [project.run(&show), project.run(&[&show[..], &["--output", "json"]].concat())]
}

#[test]
fn an_incident_tells_who_did_what_with_a_key_of_sentry() {
    let twin = sentry::Twin::start(sentry::TwinOptions::default()).unwrap();
    let old = twin.make_key("by-hand");
    twin.add_event(&old, Duration::from_secs(24 * 3_600));
    let issuer = format!(
        "sentry: {{ organization: {}, project: {}, auth_token: {{ file: admin.key }}, base_url: \"{}\", propagation: 1s, settle_for: 500ms }}",
        sentry::ORGANIZATION,
        sentry::PROJECT,
        twin.base_url()
    );
    let project = Project::new(&issuer, twin.token(), &twin.dsn(&old));
    let [text, _] = after_an_emergency(&project);
    text.ends(0).says("the audit log of the organisation could not be read").says("`org:write`");
    text.says("the project has no such key any more");
    twin.restrict(&["project:read", "project:write", "project:admin", "org:write"]);
    let show = ["incident", "show", "--output", "json"];
    let whole = project.run(&show);
    whole.ends(0).says("it was made by `someone@example.com` from 192.0.2.7");
    whole.says("it was deleted by `ci@example.com` from 192.0.2.8").says("\"not_read\": []");
}

#[test]
fn an_incident_tells_who_did_what_with_a_secret_key_of_posthog() {
    let twin = posthog::Twin::start(posthog::TwinOptions::default()).unwrap();
    let scopes = ["project:read", "project_secret_api_key:read", "project_secret_api_key:write"];
    twin.restrict(&[&scopes[..], &["activity_log:read"]].concat());
    let old = twin.make_key("by-hand", &["feature_flag:read"]);
    let issuer = format!(
        "posthog: {{ project: {}, personal_key: {{ file: admin.key }}, base_url: \"{}\", propagation: 1s, settle_for: 500ms }}",
        posthog::PROJECT,
        twin.base_url()
    );
    let project = Project::new(&issuer, twin.personal_key(), &old.value);
    let [text, whole] = after_an_emergency(&project);
    for told in [&text, &whole] {
        told.ends(0).says("created by `someone@example.com` from 192.0.2.7");
        told.says("deleted by `ci@example.com` from 192.0.2.8");
    }
    text.says("not read: the last use at issuer `posthog`");
}
