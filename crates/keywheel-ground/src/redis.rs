//! Redis of the test's own, on a loopback port, with its users in a file of their own or in its configuration.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::find;

/// How long the server may take to answer, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the server keeps its users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Users {
    /// In a file of their own, which `ACL SAVE` writes.
    #[default]
    File,
    /// In its configuration, which `CONFIG REWRITE` writes.
    Configuration,
    /// In its memory only.
    Nowhere,
}

/// How a server is to be.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Where it keeps its users.
    pub users: Users,
    /// The users that it begins with, each a line as of an ACL file: `user app on >… ~* +@all`. A superuser `default` without a
    /// password is there where no line names it.
    pub lines: Vec<String>,
    /// More lines of its configuration.
    pub configuration: Vec<String>,
    /// The port of the server on this machine that it is a replica of.
    pub replica_of: Option<u16>,
    /// A certificate and its key in PEM; the port then speaks TLS only.
    pub certificate: Option<(String, String)>,
    /// Whether it is a node of a cluster, alone at first.
    pub cluster: bool,
}

/// A running server. Dropping it ends it.
pub struct Redis {
    folder: TempDir,
    port: u16,
    bus: Option<u16>,
    configured: bool,
    tls: bool,
    server: Option<Child>,
}

impl Redis {
    /// Starts a server.
    ///
    /// # Errors
    /// What is missing here, for people.
    pub fn start(settings: &Settings) -> Result<Self, String> {
        find("redis-server").ok_or("Redis is not installed")?;
        find("setpriv").ok_or("`setpriv` is not installed")?;
        let failed = |what: &str| format!("Redis cannot be started: {what}");
        let folder = tempfile::Builder::new().prefix("keywheel-redis-").tempdir();
        let folder = folder.map_err(|error| failed(&error.kind().to_string()))?;
        let port = free_port().ok_or_else(|| failed("no port is free"))?;
        let bus = match settings.cluster {
            true => Some(free_port().ok_or_else(|| failed("no port is free"))?),
            false => None,
        };
        let mut redis = Self {
            folder,
            port,
            bus,
            configured: settings.users != Users::Nowhere,
            tls: settings.certificate.is_some(),
            server: None,
        };
        redis.configure(settings).map_err(|error| failed(&error.kind().to_string()))?;
        redis.begin()?;
        Ok(redis)
    }

    /// Returns the port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the port on which the nodes of its cluster speak to each other.
    pub fn bus(&self) -> Option<u16> {
        self.bus
    }

    /// Returns the file that holds the users, where there is one.
    pub fn users(&self) -> PathBuf {
        self.folder.path().join("users.acl")
    }

    /// Ends the server as a crash does, and keeps what it wrote.
    pub fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    /// Starts a server that was ended, where it was and from what it wrote.
    ///
    /// # Errors
    /// Why it does not start.
    pub fn begin(&mut self) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("Redis cannot be started: {}", error.kind());
        let mut server = Command::new("setpriv");
        server.args(["--pdeathsig", "KILL", "redis-server"]);
        match self.configured {
            true => drop(server.arg("redis.conf")),
            false => drop(server.args(self.arguments().map_err(failed)?)),
        }
        let server = server
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.server = Some(server.map_err(failed)?);
        self.wait_until_ready()
    }

    /// Stops the server without ending it: it takes connections and answers none.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a server go on that was stopped.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn configure(&self, settings: &Settings) -> std::io::Result<()> {
        let mut lines = vec![
            "bind 127.0.0.1".to_owned(),
            "dir .".to_owned(),
            "save \"\"".to_owned(),
            "logfile redis.log".to_owned(),
        ];
        match &settings.certificate {
            None => lines.push(format!("port {}", self.port)),
            Some((certificate, key)) => {
                fs::write(self.folder.path().join("server.crt"), certificate)?;
                fs::write(self.folder.path().join("server.key"), key)?;
                lines.push("port 0".into());
                lines.push(format!("tls-port {}", self.port));
                lines.push("tls-cert-file server.crt".into());
                lines.push("tls-key-file server.key".into());
                lines.push("tls-ca-cert-file server.crt".into());
                lines.push("tls-auth-clients no".into());
            }
        }
        lines.extend(settings.replica_of.map(|port| format!("replicaof 127.0.0.1 {port}")));
        if let Some(bus) = self.bus {
            lines.push("cluster-enabled yes".into());
            lines.push(format!("cluster-port {bus}"));
            lines.push("cluster-config-file nodes.conf".into());
        }
        lines.extend(settings.configuration.iter().cloned());
        match settings.users {
            Users::File => {
                fs::write(self.users(), settings.lines.join("\n") + "\n")?;
                lines.push("aclfile users.acl".into());
            }
            Users::Configuration => lines.extend(settings.lines.iter().cloned()),
            Users::Nowhere => {}
        }
        fs::write(self.folder.path().join("redis.conf"), lines.join("\n") + "\n")
    }

    /// The configuration as arguments: a server that has no file of it.
    fn arguments(&self) -> std::io::Result<Vec<String>> {
        let text = fs::read_to_string(self.folder.path().join("redis.conf"))?;
        let arguments = text.lines().flat_map(|line| {
            let (name, value) = line.split_once(' ').unwrap_or((line, ""));
            [format!("--{name}"), value.trim_matches('"').to_owned()]
        });
        Ok(arguments.collect())
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            if self.answers() {
                return Ok(());
            }
            let server = self.server.as_mut().expect("a server was started");
            if let Ok(Some(_)) = server.try_wait() {
                return Err("Redis ends at once".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err("Redis does not come up".into())
    }

    /// Any answer will do, also one that asks for a password; a port that speaks TLS only has to be there.
    fn answers(&self) -> bool {
        let ask = || {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).ok()?;
            if self.tls {
                return Some(());
            }
            stream.write_all(b"PING\r\n").ok()?;
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).ok()?;
            (answer.starts_with('+') || answer.starts_with("-NOAUTH")).then_some(())
        };
        ask().is_some()
    }

    fn signal(&self, signal: Signal) {
        if let Some(server) = &self.server {
            kill_process(Pid::from_child(server), signal).ok();
        }
    }

    fn end(&mut self, signal: Signal) {
        if let Some(mut server) = self.server.take() {
            kill_process(Pid::from_child(&server), signal).ok();
            server.wait().ok();
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.end(Signal::KILL);
    }
}

fn free_port() -> Option<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").ok()?;
    Some(listener.local_addr().ok()?.port())
}
