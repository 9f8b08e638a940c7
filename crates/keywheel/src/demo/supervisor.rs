//! The supervisor of the demo's backends: starts each one, and starts it again whenever it ends.
//!
//! It is a process of its own, so that a rotation can be killed without taking the backends along. It ends, and they with it,
//! when whoever started it is gone: its standard input is a pipe that nobody writes to.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::net::TcpSocket;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How long a backend stays down between two starts.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a backend may take to end before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(8);

/// The arguments: places, never values.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where pid files, port files and the list of exits go.
    #[arg(long)]
    pub(super) folder: PathBuf,
    #[arg(long)]
    pub(super) env_file: PathBuf,
    #[arg(long)]
    pub(super) replicas: usize,
    #[arg(long)]
    pub(super) openai_base: Option<String>,
    #[arg(long)]
    pub(super) warm_up_ms: u64,
}

/// One end of a backend, a line of `exits.jsonl`.
#[derive(Serialize, Deserialize)]
pub(crate) struct Exit {
    /// Which replica, from 1.
    pub(crate) replica: usize,
    /// The exit code; none where a signal ended it.
    pub(crate) code: Option<i32>,
    /// When, in milliseconds since 1970.
    pub(crate) at: u64,
}

/// Names the pid file of a replica.
pub(super) fn pid_file(folder: &Path, replica: usize) -> PathBuf {
    folder.join(format!("backend-{replica}.pid"))
}

/// Names the port file of a replica.
pub(super) fn port_file(folder: &Path, replica: usize) -> PathBuf {
    folder.join(format!("backend-{replica}.port"))
}

/// Reads how often and when backends ended so far.
pub(crate) fn exits(folder: &Path) -> anyhow::Result<Vec<Exit>> {
    match std::fs::read_to_string(folder.join("exits.jsonl")) {
        Ok(text) => text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Keeps the backends running until it is told to end or its parent is gone.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut asked_to_end = signal(SignalKind::terminate())?;
    let (stop, stopping) = watch::channel(false);
    let mut backends = tokio::task::JoinSet::new();
    let mut reserved = Vec::new();
    for replica in 1..=args.replicas {
        let (socket, port) = reserve()?;
        reserved.push(socket);
        super::write_whole(&port_file(&args.folder, replica), &port.to_string())?;
        let command =
            Start { program: std::env::current_exe()?, args: &args, replica, port }.command();
        backends.spawn(keep_running(command, replica, args.folder.clone(), stopping.clone()));
    }
    tokio::select! {
        _ = asked_to_end.recv() => {}
        () = super::parent_gone() => {}
        Some(ended) = backends.join_next() => return ended?.context("a backend could not be kept running"),
    }
    stop.send_replace(true);
    while let Some(ended) = backends.join_next().await {
        ended??;
    }
    Ok(())
}

/// Keeps a port for a backend by a socket that is bound and never listens: no connection of anyone is given the port while the
/// backend is down, and connections to it are refused as they should be.
fn reserve() -> anyhow::Result<(TcpSocket, u16)> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let port = socket.local_addr()?.port();
    Ok((socket, port))
}

struct Start<'a> {
    program: PathBuf,
    args: &'a Args,
    replica: usize,
    port: u16,
}

impl Start<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("demo-backend");
        command.arg("--env-file").arg(&self.args.env_file);
        command.arg("--port").arg(self.port.to_string());
        command.arg("--pid-file").arg(pid_file(&self.args.folder, self.replica));
        command.arg("--warm-up-ms").arg(self.args.warm_up_ms.to_string());
        if let Some(base) = &self.args.openai_base {
            command.arg("--openai-base").arg(base);
        }
        // The pipe is never written to; it closes when the supervisor is gone.
        command.env_clear().stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.kill_on_drop(true);
        command
    }
}

async fn keep_running(
    mut command: Command,
    replica: usize,
    folder: PathBuf,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    loop {
        let mut child = command.spawn()?;
        // Waiting would close it.
        let _lifeline = child.stdin.take();
        tokio::select! {
            status = child.wait() => note(&folder, replica, status?)?,
            () = told_to_stop(&mut stopping) => return end(child).await,
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = told_to_stop(&mut stopping) => return Ok(()),
        }
    }
}

async fn told_to_stop(stopping: &mut watch::Receiver<bool>) {
    // An error says that the sender is gone, which is an end as well.
    stopping.wait_for(|stop| *stop).await.map(drop).ok();
}

fn note(folder: &Path, replica: usize, status: ExitStatus) -> anyhow::Result<()> {
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
    let exit = Exit { replica, code: status.code(), at: u64::try_from(at)? };
    let mut file = OpenOptions::new().create(true).append(true).open(folder.join("exits.jsonl"))?;
    // One write for the line, so that no reader sees half of it.
    Ok(file.write_all(format!("{}\n", serde_json::to_string(&exit)?).as_bytes())?)
}

/// Asks a backend to end, and kills it where it does not.
pub(super) async fn end(mut child: Child) -> anyhow::Result<()> {
    // A child that was not waited for keeps its number.
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
        kill_process(pid, Signal::TERM)?;
    }
    if tokio::time::timeout(STOP_WITHIN, child.wait()).await.is_err() {
        child.kill().await?;
    }
    Ok(())
}
