//! AWS's own client (botocore, which the emulator of `cargo xtask test` brings) before the twin of AWS.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use keywheel_twins::aws::{Peculiar, Twin, TwinOptions};

#[test]
fn the_client_of_aws_finds_every_rule_kept() {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/ministack");
    let python = tools.join("bin/python");
    if !python.is_file() {
        return writeln!(std::io::stdout(), "skipped: botocore (not installed)").unwrap();
    }
    let twin = Twin::start(TwinOptions { page: Some(1), ..TwinOptions::default() }).unwrap();
    twin.make_user("backend");
    twin.make_secret("shop/app", Some("old"), &Peculiar::default());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/aws.py");
    let mut client = Command::new(python);
    client.arg("-B").arg(script).env("AWS_EC2_METADATA_DISABLED", "true");
    client.env("TWIN", twin.endpoint()).env("TWIN_ID", &twin.administrator().id);
    let ended = client.env("TWIN_SECRET", &twin.administrator().secret).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}");
}
