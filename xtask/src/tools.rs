//! Programs that the checks call and that a machine may lack.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A program, the Debian package that brings it, and what is not checked without it.
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
    pub(crate) without: &'static str,
}

/// Everything that some check calls.
const TOOLS: [Tool; 4] = [
    Tool { name: "git", package: "git", without: "which files are tracked" },
    Tool { name: "strace", package: "strace", without: "arguments of every process, and fsyncs" },
    Tool { name: "setfattr", package: "attr", without: "extended attributes of replaced files" },
    Tool {
        name: "unshare",
        package: "util-linux",
        without: "files that are mounted by themselves",
    },
];

/// Returns where a program is found.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// Brings what is missing, where that is possible, and returns what is not there, with the reason.
pub(crate) fn bring() -> Vec<(&'static Tool, &'static str)> {
    let missing: Vec<_> = TOOLS.iter().filter(|tool| find(tool.name).is_none()).collect();
    if missing.is_empty() {
        return Vec::new();
    }
    if !rustix::process::geteuid().is_root() || find("apt-get").is_none() {
        return missing
            .into_iter()
            .map(|tool| (tool, "not installed, and only root on Debian can install it"))
            .collect();
    }
    println!(
        "   installing {}",
        missing.iter().map(|tool| tool.package).collect::<Vec<_>>().join(" ")
    );
    let installs = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        apt.status().is_ok_and(|status| status.success())
    };
    if installs(&["update", "-qq"]) {
        for tool in &missing {
            installs(&["install", "-qq", "-y", "--no-install-recommends", tool.package]);
        }
    }
    missing
        .into_iter()
        .filter(|tool| find(tool.name).is_none())
        .map(|tool| (tool, "could not be installed"))
        .collect()
}
