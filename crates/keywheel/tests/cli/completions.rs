use crate::keywheel;

#[test]
fn each_shell_gets_its_script() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = keywheel("/".as_ref(), &["completions", shell]);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
        assert!(ran.stdout.contains("explain"), "{shell}");
    }
}

#[test]
fn each_command_has_its_page_in_the_manual() {
    for arguments in [&["man"][..], &["man", "config"]] {
        let ran = keywheel("/".as_ref(), arguments);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
        assert!(ran.stdout.contains(".TH keywheel"), "{arguments:?}");
    }
    assert_eq!(keywheel("/".as_ref(), &["man", "nothing"]).code, Some(1));
}
