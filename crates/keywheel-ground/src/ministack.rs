//! An emulator of AWS that checks who calls, on a loopback port.

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::find;
use crate::postgres::free_port;

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The id of the key that may do everything.
pub const ADMIN_ID: &str = "AKIAKEYWHEELTESTROOT";

/// A running server, which keeps nothing. Dropping it ends it.
pub struct Ministack {
    _folder: TempDir,
    port: u16,
    server: Child,
}

impl Ministack {
    /// Starts a server that knows one key: [`ADMIN_ID`] with this secret.
    ///
    /// # Errors
    /// What is missing here, for people.
    pub fn start(admin_secret: &str) -> Result<Self, String> {
        let program = program().ok_or("ministack is not installed")?;
        find("setpriv").ok_or("`setpriv` is not installed")?;
        let failed = |what: &str| format!("ministack cannot be started: {what}");
        let folder = tempfile::Builder::new().prefix("keywheel-ministack-").tempdir();
        let folder = folder.map_err(|error| failed(&error.kind().to_string()))?;
        let port = free_port().ok_or_else(|| failed("no port is free"))?;
        let mut server = Command::new("setpriv");
        server.args(["--pdeathsig", "KILL"]).arg(&program).current_dir(folder.path()).env_clear();
        server.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", folder.path());
        server.env("TMPDIR", folder.path()).env("SERVICES", "iam,secretsmanager,sts");
        server.env("AUTH", "true").env("BIND_HOST", Ipv4Addr::LOCALHOST.to_string());
        server.env("GATEWAY_PORT", port.to_string());
        server.env("AWS_ACCESS_KEY_ID", ADMIN_ID).env("AWS_SECRET_ACCESS_KEY", admin_secret);
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = server.spawn().map_err(|error| failed(&error.kind().to_string()))?;
        let mut ministack = Self { _folder: folder, port, server };
        ministack.wait_until_it_listens()?;
        Ok(ministack)
    }

    /// Returns the address of every service.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn wait_until_it_listens(&mut self) -> Result<(), String> {
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                return Ok(());
            }
            if let Ok(Some(_)) = self.server.try_wait() {
                return Err("ministack ends at once".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err("ministack does not come up".into())
    }
}

impl Drop for Ministack {
    fn drop(&mut self) {
        kill_process(Pid::from_child(&self.server), Signal::KILL).ok();
        self.server.wait().ok();
    }
}

/// Returns where `cargo xtask test` puts the program.
fn program() -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/ministack");
    Some(tools.join("bin/ministack")).filter(|program| program.is_file())
}
