//! A Docker Engine of the test's own, that touches neither firewall nor bridge.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::find;

/// The image that [`Docker::start`] makes: one static program, `/bin/busybox`, and `/bin/sh`.
pub const IMAGE: &str = "local/busybox:1";

/// How long the engine may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running Docker Engine. Dropping it removes its containers and ends it.
pub struct Docker {
    folder: TempDir,
    daemon: Child,
}

impl Docker {
    /// Starts an engine and gives it its image.
    ///
    /// # Errors
    /// What is missing here, for people.
    pub fn start() -> Result<Self, String> {
        for program in ["dockerd", "docker", "busybox", "tar", "setpriv"] {
            find(program).ok_or_else(|| format!("`{program}` is not installed"))?;
        }
        if !rustix::process::geteuid().is_root() {
            return Err("only root can start a Docker Engine here".into());
        }
        // Not in TMPDIR: what an engine knows of its containers holds their values, rightly.
        let folder = tempfile::Builder::new()
            .prefix("keywheel-docker-")
            .tempdir_in("/var/tmp")
            .map_err(|error| format!("no folder for a Docker Engine: {}", error.kind()))?;
        let log = fs::File::create(folder.path().join("log")).map_err(|e| e.kind().to_string())?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let daemon = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "dockerd"])
            .args(["--data-root", &at("data"), "--exec-root", &at("exec")])
            .args(["--pidfile", &at("pid"), "-H", &format!("unix://{}", at("docker.sock"))])
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--ip-forward=false"])
            .args(["--default-address-pool", &pool()])
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|e| e.kind().to_string())?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("dockerd cannot be started: {}", error.kind()))?;
        let engine = Self { folder, daemon };
        engine.wait()?;
        engine.import()?;
        Ok(engine)
    }

    /// Returns the engine's socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    /// Runs `docker` against the engine and returns what it printed.
    ///
    /// # Panics
    /// Where `docker` fails.
    pub fn docker(&self, arguments: &[&str]) -> String {
        run(self.command("docker").args(arguments))
    }

    /// Prepares a program that talks to the engine.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("DOCKER_HOST", format!("unix://{}", self.socket().display()));
        command
    }

    fn wait(&self) -> Result<(), String> {
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            let asked = self
                .command("docker")
                .arg("version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            if asked.is_ok_and(|status| status.success()) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let last = log.lines().next_back().unwrap_or("it says nothing");
        Err(format!("dockerd does not come up: {last}"))
    }

    fn import(&self) -> Result<(), String> {
        let archive = image(self.folder.path())?;
        let _id = self.docker(&["import", &archive.display().to_string(), IMAGE]);
        Ok(())
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let all = self.command("docker").args(["ps", "-aq"]).output();
        let all = all
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default();
        let quietly = |arguments: &[&str]| {
            let mut docker = self.command("docker");
            docker.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status().ok();
        };
        if !all.trim().is_empty() {
            quietly(&[&["rm", "-f"][..], &all.split_whitespace().collect::<Vec<_>>()].concat());
            // Their bridges would stay behind on this machine.
            quietly(&["network", "prune", "-f"]);
        }
        kill_process(Pid::from_child(&self.daemon), Signal::TERM).ok();
        self.daemon.wait().ok();
    }
}

/// Returns the addresses of an engine's networks: a part, of this process only, of those that RFC 2544 keeps for tests. Two
/// engines that begin a network at once would choose the same addresses by themselves.
fn pool() -> String {
    let process = std::process::id();
    format!("base=198.{}.{}.0/24,size=26", 18 + process / 256 % 2, process % 256)
}

/// The generations of Compose that are installed here, as program and version.
pub fn composes() -> Vec<PathBuf> {
    let second =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/compose/bin/docker-compose");
    let first = Path::new("/usr/bin/docker-compose");
    [second.as_path(), first]
        .into_iter()
        .filter(|path| path.is_file())
        .map(Path::to_owned)
        .collect()
}

/// Makes the archive of an image that holds one static program.
pub(crate) fn image(folder: &Path) -> Result<PathBuf, String> {
    let (image, archive) = (folder.join("image"), folder.join("image.tar"));
    let bin = image.join("bin");
    let copied = fs::create_dir_all(&bin).and_then(|()| {
        let busybox = find("busybox").unwrap_or_default();
        fs::copy(busybox, bin.join("busybox"))?;
        std::os::unix::fs::symlink("busybox", bin.join("sh"))
    });
    copied.map_err(|error| format!("no image can be made: {}", error.kind()))?;
    run(Command::new("tar").arg("-C").arg(image).arg("-cf").arg(&archive).arg("bin"));
    Ok(archive)
}

pub(crate) fn run(command: &mut Command) -> String {
    let output =
        command.stdin(Stdio::null()).output().expect("a program that was found can be run");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    said
}
