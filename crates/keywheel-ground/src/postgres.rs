//! PostgreSQL of the test's own, on a loopback port, with passwords by SCRAM.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use crate::find;

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where Debian puts the programs of each version.
const VERSIONS: &str = "/usr/lib/postgresql";

/// A running server. Dropping it ends it.
pub struct Postgres {
    folder: TempDir,
    port: u16,
    server: Child,
}

impl Postgres {
    /// Starts a server whose superuser `postgres` has this password; with TLS, where a certificate and its key are given.
    ///
    /// # Errors
    /// What is missing here, for people.
    pub fn start(password: &str, certificate: Option<(&str, &str)>) -> Result<Self, String> {
        Self::start_with(password, certificate, &["fsync=off"])
    }

    /// Starts a server as [`start`](Self::start) does, with these settings.
    ///
    /// # Errors
    /// What is missing here, for people.
    pub fn start_with(
        password: &str,
        certificate: Option<(&str, &str)>,
        settings: &[&str],
    ) -> Result<Self, String> {
        let programs = programs().ok_or("PostgreSQL is not installed")?;
        find("setpriv").ok_or("`setpriv` is not installed")?;
        let failed = |what: &str| format!("PostgreSQL cannot be started: {what}");
        let folder = tempfile::Builder::new().prefix("keywheel-postgres-").tempdir_in("/var/tmp");
        let folder = folder.map_err(|error| failed(&error.kind().to_string()))?;
        let put = |name: &str, text: &str| give(&folder.path().join(name), text);
        let written = own(folder.path()).and_then(|()| put("password", password));
        written.map_err(|error| failed(&error.kind().to_string()))?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let password = format!("--pwfile={}", at("password"));
        let initialised = command(&programs.join("initdb"))
            .args(["-D", &at("data"), "-U", "postgres", "-A", "scram-sha-256", "-E", "UTF8"])
            .args(["--no-sync", &password])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        fs::remove_file(folder.path().join("password")).ok();
        if !initialised.is_ok_and(|status| status.success()) {
            return Err(failed("`initdb` fails"));
        }
        Self::serve(folder, &programs, certificate, settings)
    }

    /// Starts the server of a folder that is initialised.
    fn serve(
        folder: TempDir,
        programs: &Path,
        certificate: Option<(&str, &str)>,
        settings: &[&str],
    ) -> Result<Self, String> {
        let failed = |what: &str| format!("PostgreSQL cannot be started: {what}");
        let put = |name: &str, text: &str| give(&folder.path().join(name), text);
        let at = |name: &str| folder.path().join(name).display().to_string();
        let port = free_port().ok_or_else(|| failed("no port is free"))?;
        let mut server = command(&programs.join("postgres"));
        server.args(["-D", &at("data"), "-p", &port.to_string(), "-k", &at("")]);
        server.args(["-c", "listen_addresses=127.0.0.1", "-c", "logging_collector=off"]);
        server.args(settings.iter().flat_map(|setting| ["-c", *setting]));
        if let Some((certificate, key)) = certificate {
            let written = put("server.crt", certificate).and_then(|()| put("server.key", key));
            written.map_err(|error| failed(&error.kind().to_string()))?;
            server.args(["-c", "ssl=on"]);
            server.arg("-c").arg(format!("ssl_cert_file={}", at("server.crt")));
            server.arg("-c").arg(format!("ssl_key_file={}", at("server.key")));
        }
        let log = fs::File::create(folder.path().join("log"));
        let log = log.map_err(|error| failed(&error.kind().to_string()))?;
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let server = server.spawn().map_err(|error| failed(&error.kind().to_string()))?;
        let mut postgres = Self { folder, port, server };
        postgres.wait_until_ready(programs)?;
        Ok(postgres)
    }

    /// Starts a standby that follows this server, with these settings; `password` is that of the superuser.
    ///
    /// # Errors
    /// What is missing here, for people.
    pub fn standby(&self, password: &str, settings: &[&str]) -> Result<Self, String> {
        let programs = programs().ok_or("PostgreSQL is not installed")?;
        let failed = |what: &str| format!("a standby cannot be started: {what}");
        let folder = tempfile::Builder::new().prefix("keywheel-postgres-").tempdir_in("/var/tmp");
        let folder = folder.map_err(|error| failed(&error.kind().to_string()))?;
        own(folder.path()).map_err(|error| failed(&error.kind().to_string()))?;
        let copied = command(&programs.join("pg_basebackup"))
            .args(["-D", &folder.path().join("data").display().to_string(), "-R", "-c", "fast"])
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres"])
            .env("PGPASSWORD", password)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !copied.is_ok_and(|status| status.success()) {
            return Err(failed("`pg_basebackup` fails"));
        }
        Self::serve(folder, &programs, None, settings)
    }

    /// Returns the port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the folder of its socket.
    pub fn socket(&self) -> &Path {
        self.folder.path()
    }

    /// Returns what the server wrote into its log.
    pub fn log(&self) -> String {
        let log = fs::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Makes the server read its files anew.
    pub fn reload(&self) {
        kill_process(Pid::from_child(&self.server), Signal::HUP).ok();
    }

    fn wait_until_ready(&mut self, programs: &Path) -> Result<(), String> {
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            let mut ready = Command::new(programs.join("pg_isready"));
            ready.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
            if ready.status().is_ok_and(|status| status.success()) {
                return Ok(());
            }
            if let Ok(Some(_)) = self.server.try_wait() {
                return Err("PostgreSQL ends at once".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err("PostgreSQL does not come up".into())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        kill_process(Pid::from_child(&self.server), Signal::INT).ok();
        self.server.wait().ok();
    }
}

/// Returns the folder of the newest version's programs.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir(VERSIONS).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = versions.filter(|path| path.join("bin/initdb").is_file()).max_by_key(number)?;
    Some(newest.join("bin"))
}

/// A program that runs as the user `postgres`, since PostgreSQL refuses to run as root, and that ends with the test.
fn command(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "INT"]);
    if geteuid().is_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    command.arg(program).current_dir("/");
    command
}

/// Gives a file or folder to the user `postgres`, for whom it is made, with the rights that it has.
fn own(path: &Path) -> std::io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let ids = users.lines().find_map(|line| {
        let mut fields = line.strip_prefix("postgres:")?.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    let (user, group): (u32, u32) = ids.ok_or(std::io::ErrorKind::NotFound)?;
    chown(path, Some(user), Some(group))
}

fn give(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    own(path)
}

fn free_port() -> Option<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").ok()?;
    Some(listener.local_addr().ok()?.port())
}
