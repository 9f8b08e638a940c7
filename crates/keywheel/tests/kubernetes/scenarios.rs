//! The scenarios that `cargo xtask e2e kubernetes` runs on a cluster, on its stand-in: pods are real processes, under the load of
//! people who use them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use keywheel_e2e::{Counts, Options, StandIn};

/// Writes a program that starts this one as a pod, and is as long as one that is shipped in several parts.
pub(crate) fn program(folder: &Path) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let start = format!(
        "#!/bin/sh\nKEYWHEEL_TEST_POD=1 exec '{}' --exact pod::pod --nocapture\n",
        this.display()
    );
    let path = folder.join("program");
    std::fs::write(&path, format!("{start}{}\n", "#".repeat(800 * 1024))).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn the_scenarios_of_a_cluster_pass_on_its_stand_in_and_leave_nothing() {
    let folder = tempfile::Builder::new().prefix("keywheel-program-").tempdir().unwrap();
    let stand_in = StandIn::start().unwrap();
    let options = Options {
        context: stand_in.context().into(),
        kubeconfig: Some(stand_in.kubeconfig()),
        image: Some("shop/backend".into()),
        keep: false,
        scenarios: ["refused", "sync", "killed"].map(str::to_owned).into(),
        keywheel: env!("CARGO_BIN_EXE_keywheel").into(),
        app: program(folder.path()),
        each_second: 40,
        direct: false,
        undone_within: None,
    };
    let counts = keywheel_e2e::run(&options).unwrap();
    assert_eq!(counts, Counts { passed: 3, failed: 0 });
    assert_eq!(stand_in.namespaces(), Vec::<String>::new());
}
