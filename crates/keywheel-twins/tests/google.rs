//! Google's own client of Secret Manager before the twin: what it reads, writes and refuses is what the service's would be.

mod client;

use keywheel_twins::gcp::{ACCOUNT, AUDIENCE, Twin, TwinOptions, VersionState};

#[test]
fn googles_client_signs_in_by_what_it_is_known_by() {
    let Some(python) = client::python().unwrap() else { return };
    let twin = Twin::start(TwinOptions::default()).unwrap();
    let told = [&*twin.endpoint(), &*twin.subject(), ACCOUNT, AUDIENCE];
    client::run(&python, "google_identity.py", &told).unwrap();
}

#[test]
fn googles_client_finds_what_it_expects() {
    let Some(python) = client::python().unwrap() else { return };
    let twin = Twin::start(TwinOptions::default()).unwrap();
    client::run(&python, "google.py", &[&twin.endpoint(), &twin.token()]).unwrap();
    let states: Vec<_> = twin.versions("api-key").into_iter().map(|(_, state, _)| state).collect();
    assert_eq!(states, [VersionState::Enabled, VersionState::Destroyed, VersionState::Disabled]);
}
