//! The usual client of GitLab before the twin.

mod client;

use keywheel_twins::gitlab::{Twin, TwinOptions};

#[test]
fn the_client_of_gitlab_finds_every_rule_of_variables_kept() {
    let Some(python) = client::python().unwrap() else { return };
    let twin = Twin::start(TwinOptions::default()).unwrap();
    let options = TwinOptions { developer: true, ..TwinOptions::default() };
    let of_developer = Twin::start(options).unwrap();
    let endpoint = |twin: &Twin| twin.base_url().replace("/api/v4", "");
    let told = [&endpoint(&twin), twin.token(), &endpoint(&of_developer), of_developer.token()];
    client::run(&python, "gitlab.py", &told).unwrap();
    let variables = twin.variables();
    let hidden = variables.iter().find(|variable| variable.key == "HIDDEN").unwrap();
    assert_eq!(hidden.value, "kwcanary-more");
}
