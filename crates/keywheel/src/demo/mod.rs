//! The demonstration's world, on loopback only: backends as real processes under a supervisor, something that balances
//! requests between them, and a load that counts what goes wrong.
//!
//! Its processes are hidden subcommands of this binary.

mod backend;
mod rehearsal;
mod scenario;
mod supervisor;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use keywheel_core::secret::SecretValue;
use keywheel_example::backend::LONGEST_PEPPER;
use keywheel_example::edge::Edge;
pub(crate) use keywheel_example::load::Counts;
use keywheel_example::load::{Load, Target};
use keywheel_example::replicas::Replicas;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

pub(crate) use self::scenario::{DemoArgs, run};
pub(crate) use self::supervisor::Exit;

/// How long the world may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(30);

/// The processes of the demonstration.
#[derive(clap::Subcommand)]
pub(crate) enum Process {
    /// One replica of the backend.
    #[command(name = "demo-backend", hide = true)]
    Backend(backend::Args),
    /// What keeps the backends running.
    #[command(name = "demo-supervisor", hide = true)]
    Supervisor(supervisor::Args),
    /// The world by itself: restarts the backends under load and prints what was counted.
    #[command(name = "demo-world", hide = true)]
    World(rehearsal::Args),
}

impl Process {
    /// Runs one process until it ends.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let one_thread = || tokio::runtime::Builder::new_current_thread().enable_all().build();
        match self {
            Self::Backend(args) => one_thread()?.block_on(async {
                tokio::select! {
                    served = backend::run(args) => served,
                    // A backend without its supervisor would outlive the demonstration.
                    () = parent_gone() => Ok(()),
                }
            }),
            Self::Supervisor(args) => one_thread()?.block_on(supervisor::run(args)),
            Self::World(args) => tokio::runtime::Runtime::new()?.block_on(rehearsal::run(args)),
        }
    }
}

/// How a world is set up.
pub(crate) struct Setup<'a> {
    /// The program whose hidden subcommands are run: this one.
    pub(crate) program: &'a Path,
    /// An empty folder that belongs to the world.
    pub(crate) folder: &'a Path,
    /// How many backends.
    pub(crate) replicas: usize,
    /// Where the OpenAI-shaped server is; without one, the load asks for nothing that needs it.
    pub(crate) openai_base: Option<&'a str>,
    /// What the `.env` file holds at first: letters, digits, `-`, `_` and `.` only.
    pub(crate) variables: &'a [(&'a str, SecretValue)],
    /// How long a backend takes to come up: the longer, the surer a roll that does not wait is noticed.
    pub(crate) warm_up: Duration,
    /// How many requests each second.
    pub(crate) each_second: u32,
}

/// A running world. It ends when this is dropped; [`stop`](Self::stop) ends it gently.
pub(crate) struct World {
    folder: PathBuf,
    replicas: Vec<SocketAddr>,
    supervisor: Child,
    edge: Edge,
    load: Load,
}

impl World {
    /// Starts everything, and returns once every backend serves and the load runs.
    pub(crate) async fn start(setup: &Setup<'_>) -> anyhow::Result<Self> {
        let folder =
            setup.folder.canonicalize().context("the folder of the demonstration is missing")?;
        write_env(&folder.join(".env"), setup.variables)?;
        let supervisor = spawn_supervisor(setup, &folder)?;
        let up = async {
            let replicas = addresses(&folder, setup.replicas).await;
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let edge = Edge::start(listener, Replicas::at(&replicas))?;
            while edge.healthy() < replicas.len() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            anyhow::Ok((replicas, edge))
        };
        let (replicas, edge) =
            tokio::time::timeout(UP_WITHIN, up).await.context("the backends did not come up")??;
        let target = Target {
            edge: edge.address().to_string(),
            replicas: Replicas::at(&replicas),
            asks: setup.openai_base.is_some(),
        };
        let load = Load::start(target, setup.each_second)?;
        Ok(Self { folder, replicas, supervisor, edge, load })
    }

    /// Names the file that the backends read when they start.
    pub(crate) fn env_file(&self) -> PathBuf {
        self.folder.join(".env")
    }

    /// Returns where the edge listens.
    pub(crate) fn edge(&self) -> SocketAddr {
        self.edge.address()
    }

    /// Returns the configuration of the backends as a workload of keywheel.
    pub(crate) fn workload(&self) -> serde_json::Value {
        let replica = |(at, address): (usize, &SocketAddr)| {
            json!({
                "pid_file": supervisor::pid_file(&self.folder, at + 1),
                "ready_url": format!("http://{address}/health"),
                "token_url": format!("http://{address}/me"),
            })
        };
        let replicas: Vec<_> = self.replicas.iter().enumerate().map(replica).collect();
        json!({ "process": {
            "replicas": replicas,
            "shows": "start",
            "ready_within": "30s",
            "ready_for": "200ms",
            "settle_for": "1s",
        }})
    }

    /// Returns what was counted so far.
    pub(crate) fn counts(&self) -> Counts {
        Counts { retried_by_edge: self.edge.retried(), ..self.load.counts() }
    }

    /// Returns every end of a backend so far, asked for or not.
    pub(crate) fn exits(&self) -> anyhow::Result<Vec<Exit>> {
        supervisor::exits(&self.folder)
    }

    /// Asks every backend to end in the same instant: what a rotation must never do.
    pub(crate) fn restart_all_at_once(&self) -> anyhow::Result<()> {
        for replica in 1..=self.replicas.len() {
            let pid = std::fs::read_to_string(supervisor::pid_file(&self.folder, replica))?;
            let pid =
                Pid::from_raw(pid.trim().parse()?).context("a pid file holds a process number")?;
            kill_process(pid, Signal::TERM)?;
        }
        Ok(())
    }

    /// Ends the load, then the backends, and returns what was counted.
    pub(crate) async fn stop(self) -> anyhow::Result<Counts> {
        let counts = self.load.stop().await;
        let retried_by_edge = self.edge.retried();
        supervisor::end(self.supervisor).await?;
        Ok(Counts { retried_by_edge, ..counts })
    }
}

fn spawn_supervisor(setup: &Setup<'_>, folder: &Path) -> anyhow::Result<Child> {
    let mut command = Command::new(setup.program);
    command.arg("demo-supervisor").arg("--folder").arg(folder);
    command.arg("--env-file").arg(folder.join(".env"));
    command.arg("--replicas").arg(setup.replicas.to_string());
    command.arg("--warm-up-ms").arg(setup.warm_up.as_millis().to_string());
    if let Some(base) = setup.openai_base {
        command.arg("--openai-base").arg(base);
    }
    // The pipe is never written to; it closes when this process is gone.
    command.env_clear().stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.kill_on_drop(true).spawn().context("the supervisor could not be started")
}

async fn addresses(folder: &Path, replicas: usize) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for replica in 1..=replicas {
        let file = supervisor::port_file(folder, replica);
        let port = loop {
            match std::fs::read_to_string(&file).map(|text| text.parse()) {
                Ok(Ok(port)) => break port,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    addresses
}

fn write_env(path: &Path, variables: &[(&str, SecretValue)]) -> anyhow::Result<()> {
    let mut text = Vec::new();
    for (name, value) in variables {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        ensure!(value.expose().iter().all(plain), "the first value of {name} needs quotes");
        text.extend_from_slice(&[name.as_bytes(), b"=", value.expose(), b"\n"].concat());
    }
    let text = SecretValue::new(text);
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.expose())?)
}

/// Writes a small file so that no reader ever sees half of it.
fn write_whole(path: &Path, text: &str) -> anyhow::Result<()> {
    let staged = path.with_extension(format!("{}.new", std::process::id()));
    std::fs::write(&staged, text)?;
    Ok(std::fs::rename(staged, path)?)
}

/// Returns when the other end of standard input is closed, which nobody but the end of a process does.
async fn parent_gone() {
    let (gone, seen) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // Nothing is ever written there, and an error says as much as the end.
        std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()).ok();
        drop(gone);
    });
    let _: Result<(), _> = seen.await;
}
