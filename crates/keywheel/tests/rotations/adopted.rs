//! Taking over everything in one go.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Project, Ran};

/// A project of six secrets of unknown age.
fn project_of_six() -> Project {
    let project = Project::new();
    let names = ["a", "b", "c", "d", "e", "f"];
    let secret = |name: &&str| {
        let slot = name.to_uppercase();
        format!(
            "  {name}: {{ issuer: random, stores: {{ app: {{ {slot}: current }}, web: {{ {slot}: current }} }}, read_by: nobody, because: a test }}\n"
        )
    };
    let stores =
        "stores:\n  app: { env_file: { path: app.env } }\n  web: { env_file: { path: web.env } }\n";
    let secrets: String = names.iter().map(secret).collect();
    project.write("keywheel.yaml", &format!("project: shop\n{stores}secrets:\n{secrets}"));
    let values: String = names
        .iter()
        .map(|name| format!("{}=kwcanary-of-{name}-0123456789abcdef\n", name.to_uppercase()))
        .collect();
    project.write("app.env", &values);
    project.write("web.env", &values);
    project
}

fn dates(answer: &Value) -> BTreeSet<String> {
    let adopted = answer["adopted"].as_array().unwrap();
    adopted.iter().map(|one| one["due_at"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn everything_is_adopted_at_once_and_the_first_dates_are_spread() {
    let project = project_of_six();
    let asked = project.run(&["adopt"]);
    asked.ends(4).says("K0206").says("age unknown").says("due ");
    project.run(&["status"]).ends(0).says("unmanaged (6)");
    let answer = project.json(&["adopt", "--yes"]);
    let dates = dates(&answer);
    assert_eq!(dates.len(), 6, "{answer}");
    let days: BTreeSet<&str> = dates.iter().map(|at| &at[..10]).collect();
    assert!(days.len() >= 4, "{days:?}");
    let status = project.json(&["status"]);
    let told = status["environments"][0]["secrets"].as_array().unwrap();
    let told: BTreeSet<String> =
        told.iter().map(|one| one["due_at"].as_str().unwrap().to_owned()).collect();
    assert_eq!(told, dates, "`status` follows the dates that were shown");
    project.run(&["rotate", "--due", "--yes"]).ends(0).says("nothing is due");
    let within = project.json(&["plan", "--due=90d"]);
    assert_eq!(within["rotations"].as_array().unwrap().len(), 6);
    assert_eq!(project.json(&["adopt", "--yes"])["adopted"].as_array().unwrap().len(), 0);
}

#[test]
fn an_operator_says_how_old_values_are() {
    let project = project_of_six();
    let ages = ["--last-rotated", "2020-01-31", "--last-rotated", "c=2021-06-30"];
    let wrong = [&["adopt", "--yes"][..], &["--last-rotated", "2999-01-01"]].concat();
    project.run(&wrong).ends(1).says("has not come yet");
    let wrong = [&["adopt", "--yes"][..], &["--last-rotated", "g=2020-01-31"]].concat();
    project.run(&wrong).ends(1).says("not among the selected");
    let answer = project.json(&[&["adopt", "--yes"][..], &ages].concat());
    let made = |at: usize| answer["adopted"][at]["rotated_at"].as_str().unwrap();
    assert_eq!((made(0), made(2)), ("2020-01-31T00:00:00Z", "2021-06-30T00:00:00Z"));
    assert_eq!(dates(&answer).len(), 2, "what is known is due when it is due");
    assert_eq!(project.json(&["plan", "--due"])["rotations"].as_array().unwrap().len(), 6);
}

#[test]
fn h20_a_secret_that_cannot_be_adopted_stops_no_other() {
    let project = project_of_six();
    let other = project.read("web.env").replace("of-d-", "of-another-");
    project.write("web.env", &other);
    let ran: Ran = project.run(&["adopt", "--all", "--yes"]);
    ran.ends(4).says("adopted 5").says("hold different values of `d@default`");
    project.run(&["status"]).ends(0).says("unmanaged (1)");
}
