//! Two installations on one project: two journals that know nothing of each other.

use std::process::{Child, Command, Stdio};

use super::{CONFIG, OLD, Project, Ran};

/// Two people who work on one project, each with a journal of their own.
const MINE: &str = "";
const THEIRS: &str = "their-";

fn project(config: &str) -> Project {
    let project = Project::new();
    project.write("keywheel.yaml", config);
    project.make(&["their-state", "their-keys"]);
    project
}

fn begun(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn run_as(project: &Project, whose: &str, arguments: &[&str]) -> Ran {
    Ran::of(&project.command_of(whose, arguments).output().unwrap())
}

fn values(project: &Project) -> [String; 2] {
    ["app.env", "web.env"].map(|name| {
        let text = project.read(name);
        let line = text.lines().find_map(|line| line.strip_prefix("PEPPER="));
        line.unwrap().trim_matches('\'').to_owned()
    })
}

#[test]
fn h25_h61_of_two_installations_that_race_one_wins_and_the_other_changes_nothing() {
    for round in 0..12 {
        let project = project(&CONFIG.replace("soak: 1s", "soak: 1h"));
        let rotate = ["rotate", "pepper", "--yes"];
        let racing = [MINE, THEIRS].map(|name| (name, begun(project.command_of(name, &rotate))));
        let ran = racing.map(|(name, child)| (name, Ran::of(&child.wait_with_output().unwrap())));
        let (won, lost): (Vec<_>, Vec<_>) = ran.iter().partition(|(_, ran)| ran.code == Some(0));
        let ([(winner, won)], [(loser, lost)]) = (&won[..], &lost[..]) else {
            panic!("round {round}: {ran:?}")
        };
        won.says("promoted; v2 is current");
        lost.ends(4);
        let changed_nothing = ["nothing changed", "nothing was changed"]
            .iter()
            .any(|said| lost.stdout.contains(said) || lost.stderr.contains(said));
        assert!(changed_nothing, "round {round}: {lost:?}");
        // One that looks between the two writes of the other sees two values; it comes no further either.
        let meets_a_claim = "belongs to another installation";
        let meets_a_claim =
            lost.stdout.contains(meets_a_claim) || lost.stderr.contains(meets_a_claim);
        assert!(meets_a_claim || lost.stderr.contains("K0207"), "round {round}: {lost:?}");
        let held = values(&project);
        assert!(held[0] == held[1] && held[0] != OLD, "round {round}: {ran:?}");
        run_as(&project, winner, &["doctor"]).ends(0);
        run_as(&project, loser, &["rotation", "list"]).ends(0);
        let status = run_as(&project, loser, &["status"]);
        status.ends(0).says("never adopted");
    }
}

#[test]
fn h61_an_installation_is_refused_by_name_until_it_takes_over() {
    let project = project(CONFIG);
    run_as(&project, MINE, &["rotate", "pepper", "--yes", "--soak"]).ends(0);
    let before = values(&project);
    let folder = project.path("").canonicalize().unwrap().display().to_string();
    for arguments in [&["check"][..], &["adopt", "--yes"], &["rotate", "pepper", "--yes"]] {
        let refused = run_as(&project, THEIRS, arguments);
        refused.ends(4).says("belongs to another installation").says("environment `default`");
        refused.says(&folder);
    }
    assert_eq!(values(&project), before);
    let over = ["adopt", "--take-over", "--because", "the old machine is gone", "--yes"];
    run_as(&project, THEIRS, &["adopt", "--take-over", "--yes"]).ends(1);
    run_as(&project, THEIRS, &over[..4]).ends(4).says("K0206").says("taken over: store `app`");
    run_as(&project, THEIRS, &over).ends(0).says("adopted 1");
    let told = "took its stores over from another installation: the old machine is gone";
    run_as(&project, THEIRS, &["audit", "list"]).ends(0).says(told);
    run_as(&project, THEIRS, &["audit", "verify"]).ends(0);
    assert_eq!(values(&project), before);
    run_as(&project, MINE, &["rotate", "pepper", "--yes"]).ends(4).says("K0212");
    let found = run_as(&project, MINE, &["doctor"]);
    found.ends(3).says("store `app` belongs to another installation").says("--take-over");
    run_as(&project, THEIRS, &["rotate", "pepper", "--yes", "--soak"]).ends(0).says("completed");
    run_as(&project, THEIRS, &["doctor"]).ends(0);
    run_as(&project, MINE, &over).ends(0).says("adopted 1");
    run_as(&project, THEIRS, &["check"]).ends(4);
}

#[test]
fn h61_a_rotation_whose_store_was_taken_over_writes_nothing_any_more() {
    let project = project(&CONFIG.replace("soak: 1s", "soak: 1h"));
    run_as(&project, MINE, &["rotate", "pepper", "--yes"]).ends(0).says("promoted");
    let over = ["adopt", "--take-over", "--because", "a test", "--yes"];
    run_as(&project, THEIRS, &over).ends(0);
    let before = values(&project);
    let parked = run_as(&project, MINE, &["undo", "pepper", "--yes"]);
    parked.ends(3).says("needs you").says("belongs to another installation");
    assert_eq!(values(&project), before);
    run_as(&project, MINE, &["reconcile", "pepper", "--yes"]).ends(4);
    assert_eq!(values(&project), before);
    let word = ["resolve", "pepper", "--as", "completed", "--because", "it lives there", "--yes"];
    run_as(&project, MINE, &word).ends(0);
}

#[test]
fn a_claim_on_a_store_that_no_secret_has_any_more_is_found() {
    let project = Project::new();
    project.run(&["adopt", "--yes"]).ends(0);
    project.run(&["doctor"]).ends(0);
    std::fs::copy(project.path("app.env"), project.path("new.env")).unwrap();
    project.write("keywheel.yaml", &CONFIG.replace("path: app.env", "path: new.env"));
    let found = project.run(&["doctor"]);
    found.ends(3).says("no secret has any more").says("/.app.env.keywheel-claim");
    std::fs::remove_file(project.path(".app.env.keywheel-claim")).unwrap();
    project.run(&["doctor"]).ends(0).says("world and journal agree");
}
