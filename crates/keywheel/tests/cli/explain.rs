use crate::keywheel;

#[test]
fn a_page_is_printed() {
    let ran = keywheel("/".as_ref(), &["explain", "k0103"]);
    insta::assert_snapshot!(ran.whole(), @r"
    exit 0
    --- stdout
    # K0103: a key stands twice

    A mapping holds the same key twice. YAML forbids it, and readers that allow it disagree about which one counts, so keywheel
    refuses the file.

    What to do: remove one of the two, after checking which one was meant.
    --- stderr
    ");
}

#[test]
fn every_code_is_listed_with_its_title() {
    let ran = keywheel("/".as_ref(), &["explain"]);
    assert!(ran.stdout.lines().any(|line| line == "K0103  a key stands twice"));
    let json = keywheel("/".as_ref(), &["explain", "--output", "json"]).json();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["codes"].as_array().unwrap().len(), ran.stdout.lines().count());
}

#[test]
fn an_unknown_code_is_an_error_of_usage() {
    let ran = keywheel("/".as_ref(), &["explain", "K9999"]);
    insta::assert_snapshot!(ran.whole(), @r"
    exit 1
    --- stdout
    --- stderr
    error: there is no code of this name
      hint: `keywheel explain` lists all of them
      code: K0001 (`keywheel explain K0001`)
    ");
}
