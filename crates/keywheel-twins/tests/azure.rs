//! Microsoft's own client of a Key Vault before the twin.

mod client;

use keywheel_twins::azure::{CLIENT, TENANT, Twin, TwinOptions};
use keywheel_twins::fault::{Fault, Rule};

#[test]
fn the_client_of_microsoft_finds_every_rule_kept() {
    let Some(python) = client::python().unwrap() else { return };
    let twin = Twin::start(TwinOptions::default()).unwrap();
    twin.faults().set(vec![Rule::first("list_versions", Fault::busy())]).unwrap();
    let closed = Twin::start(TwinOptions::default()).unwrap();
    closed.deny("GET");
    let (app, of_app) = twin.app();
    let (secret, of_closed) = (twin.client_secret(), closed.client_secret());
    let told = [&twin.url(), &closed.url(), TENANT, CLIENT, &secret, &of_closed];
    let identities = [&*twin.federated(), &app, &of_app, &twin.token()];
    client::run(&python, "azure.py", &[&told[..], &identities].concat()).unwrap();
}
