use crate::keywheel;

fn code(arguments: &[&str]) -> Option<i32> {
    keywheel("/".as_ref(), arguments).code
}

#[test]
fn a_wrong_command_line_ends_with_1_and_never_with_2() {
    assert_eq!(code(&[]), Some(1));
    assert_eq!(code(&["rotaet"]), Some(1));
    assert_eq!(code(&["--no-such-flag"]), Some(1));
    assert_eq!(code(&["explain", "K9999"]), Some(1));
    assert_eq!(code(&["config", "show", "--output", "xml"]), Some(1));
    assert_eq!(code(&["init", "--dry-run", "--write"]), Some(1));
}

#[test]
fn help_and_version_are_data() {
    for flag in ["--help", "--version"] {
        let ran = keywheel("/".as_ref(), &[flag]);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
        assert!(ran.stdout.contains("keywheel"));
    }
}
