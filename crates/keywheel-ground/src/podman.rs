//! Podman of the test's own, which serves Docker's API.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::docker::{IMAGE, image, run};
use crate::find;

/// How long the service may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What lets containers start within a container too, where limits may not be raised and the groups of version 1 are mounted.
const CONTAINERS: &str = r#"
[containers]
default_ulimits = ["nofile=8192:8192", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"#;

/// A running Podman service. Dropping it removes its containers and ends it.
pub struct Podman {
    folder: TempDir,
    service: Child,
}

impl Podman {
    /// Starts a service and gives it the image.
    ///
    /// # Errors
    /// What is missing here, for people.
    pub fn start() -> Result<Self, String> {
        for program in ["podman", "runc", "busybox", "tar", "setpriv"] {
            find(program).ok_or_else(|| format!("`{program}` is not installed"))?;
        }
        if !rustix::process::geteuid().is_root() {
            return Err("only root can start Podman here".into());
        }
        let folder = tempfile::Builder::new()
            .prefix("keywheel-podman-")
            .tempdir_in("/var/tmp")
            .map_err(|error| format!("no folder for Podman: {}", error.kind()))?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
            at("data"),
            at("run")
        );
        let written = fs::write(at("containers.conf"), CONTAINERS)
            .and_then(|()| fs::write(at("storage.conf"), storage));
        written.map_err(|error| format!("Podman cannot be configured: {}", error.kind()))?;
        let archive = image(folder.path())?;
        let import = ["import", &archive.display().to_string(), IMAGE];
        let _id = run(podman(&folder, "podman").args(import));
        let socket = format!("unix://{}", at("podman.sock"));
        let service = podman(&folder, "setpriv")
            .args(["--pdeathsig", "TERM", "podman", "system", "service", "--time=0", &socket])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("Podman cannot be started: {}", error.kind()))?;
        let podman = Self { folder, service };
        let since = Instant::now();
        while !podman.socket().exists() {
            if since.elapsed() > PATIENCE {
                return Err("Podman does not come up".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(podman)
    }

    /// Returns the service's socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("podman.sock")
    }

    /// Runs `podman` and returns what it printed.
    ///
    /// # Panics
    /// Where `podman` fails.
    pub fn podman(&self, arguments: &[&str]) -> String {
        run(podman(&self.folder, "podman").args(arguments))
    }

    /// Prepares a program that talks to the service as to Docker's.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("DOCKER_HOST", format!("unix://{}", self.socket().display()));
        command
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let mut remove = podman(&self.folder, "podman");
        remove.args(["rm", "-f", "-t", "0", "-a"]);
        remove.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().ok();
        kill_process(Pid::from_child(&self.service), Signal::TERM).ok();
        self.service.wait().ok();
        let mut unmount = Command::new("umount");
        unmount.arg(self.folder.path().join("data/overlay"));
        unmount.stdout(Stdio::null()).stderr(Stdio::null()).status().ok();
    }
}

fn podman(folder: &TempDir, program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("CONTAINERS_CONF", folder.path().join("containers.conf"));
    command.env("CONTAINERS_STORAGE_CONF", folder.path().join("storage.conf"));
    command
}
