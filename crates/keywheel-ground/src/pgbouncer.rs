//! PgBouncer of the test's own, on a loopback port, before a PostgreSQL of the test's own.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::find;
use crate::postgres::{Postgres, command, free_port, give, own};

/// How long the pooler may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The user of the admin console.
pub const ADMIN: &str = "pooler_admin";

/// A running pooler, which checks passwords by SCRAM. Dropping it ends it.
pub struct PgBouncer {
    folder: TempDir,
    port: u16,
    pooler: Child,
}

impl PgBouncer {
    /// Starts a pooler before a server. Its list of logins is that of [`ADMIN`], with this password, and `logins`; `settings`
    /// are further lines of its configuration.
    ///
    /// # Errors
    /// What is missing here, for people.
    pub fn start(
        server: &Postgres,
        password: &str,
        logins: &str,
        settings: &str,
    ) -> Result<Self, String> {
        find("setpriv").ok_or("`setpriv` is not installed")?;
        let program = program().ok_or("PgBouncer is not installed")?;
        let failed = |what: &str| format!("PgBouncer cannot be started: {what}");
        let folder = tempfile::Builder::new().prefix("keywheel-pgbouncer-").tempdir_in("/var/tmp");
        let folder = folder.map_err(|error| failed(&error.kind().to_string()))?;
        let port = free_port().ok_or_else(|| failed("no port is free"))?;
        let at = |name: &str| folder.path().join(name);
        let configuration = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\nadmin_users = {ADMIN}\n\
             pool_mode = transaction\nserver_login_retry = 1\n{settings}\n",
            server.port(),
            at("userlist.txt").display()
        );
        let written =
            own(folder.path()).and_then(|()| give(&at("pgbouncer.ini"), &configuration)).and_then(
                |()| give(&at("userlist.txt"), &format!("\"{ADMIN}\" \"{password}\"\n{logins}")),
            );
        written.map_err(|error| failed(&error.kind().to_string()))?;
        let mut pooler = command(&program);
        pooler.arg(at("pgbouncer.ini"));
        pooler.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let pooler = pooler.spawn().map_err(|error| failed(&error.kind().to_string()))?;
        let mut started = Self { folder, port, pooler };
        started.wait_until_ready()?;
        Ok(started)
    }

    /// Returns the port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the file with its list of logins.
    pub fn auth_file(&self) -> PathBuf {
        self.folder.path().join("userlist.txt")
    }

    /// Returns its process.
    pub fn process(&self) -> u32 {
        self.pooler.id()
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return Ok(());
            }
            if let Ok(Some(_)) = self.pooler.try_wait() {
                return Err("PgBouncer ends at once".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err("PgBouncer does not come up".into())
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        kill_process(Pid::from_child(&self.pooler), Signal::TERM).ok();
        self.pooler.wait().ok();
    }
}

/// Returns the program; Debian puts it where only root looks.
fn program() -> Option<PathBuf> {
    let usual = Path::new("/usr/sbin/pgbouncer");
    find("pgbouncer").or_else(|| usual.is_file().then(|| usual.to_owned()))
}
