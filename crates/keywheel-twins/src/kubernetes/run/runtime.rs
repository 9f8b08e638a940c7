//! What runs in a container: nothing but a judgement, or a real process of this machine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::pace::Pace;

/// What a container was given. It has no `Debug`: what it holds is secret.
#[derive(Clone)]
pub struct Given {
    /// The namespace of its pod.
    pub namespace: String,
    /// The name of its pod.
    pub pod: String,
    /// The identity of its pod.
    pub uid: String,
    /// Its own name.
    pub container: String,
    /// Its image.
    pub image: String,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Its mounted files by their paths.
    pub files: BTreeMap<String, Vec<u8>>,
    /// How many times it ran before.
    pub restarts: u32,
}

/// How a simulated container fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It answers probes after this while.
    ComesUp(Duration),
    /// It ends after this while with an exit code.
    Crashes(Duration, i32),
    /// It runs and never answers a probe.
    StaysUnready,
}

/// Judges what a container was given.
pub type Judge = Arc<dyn Fn(&Given) -> Fate + Send + Sync>;

/// What runs in containers.
#[derive(Clone)]
pub enum Runtime {
    /// Nothing runs: a judgement says how each container fares.
    Simulated(Judge),
    /// Commands run as processes of this machine, without isolation. Each pod has a loopback address of its own, told as `POD_IP`;
    /// what is mounted at `/etc/x` is found at `$VOLUME_ROOT/etc/x`. Their output is the log of the pod.
    Processes {
        /// The folder that holds volumes and logs.
        folder: PathBuf,
    },
}

impl Runtime {
    /// Makes containers that come up after a while, whatever they are given.
    pub fn simulated(after: Duration) -> Self {
        Self::Simulated(Arc::new(move |_| Fate::ComesUp(after)))
    }

    /// Makes containers that fare as a judgement says.
    pub fn judged(judge: impl Fn(&Given) -> Fate + Send + Sync + 'static) -> Self {
        Self::Simulated(Arc::new(judge))
    }
}

/// What a process needs beside what its container was given.
pub(super) struct Launch<'a> {
    pub(super) command: &'a [String],
    pub(super) address: Ipv4Addr,
    pub(super) root: PathBuf,
    pub(super) log: PathBuf,
}

/// A container that runs.
pub(super) enum Process {
    Simulated { since: Instant, fate: Fate, stops: Option<Instant>, killed: bool },
    Real(Child),
}

impl Process {
    /// Starts what a container runs.
    pub(super) fn start(
        runtime: &Runtime,
        given: &Given,
        launch: &Launch<'_>,
        now: Instant,
    ) -> io::Result<Self> {
        match runtime {
            Runtime::Simulated(judge) => {
                Ok(Self::Simulated { since: now, fate: judge(given), stops: None, killed: false })
            }
            Runtime::Processes { .. } => spawn(given, launch).map(Self::Real),
        }
    }

    /// Returns the exit code once it has ended.
    pub(super) fn ended(&mut self, now: Instant, pace: Pace) -> Option<i32> {
        match self {
            Self::Simulated { killed: true, .. } => Some(137),
            Self::Simulated { stops: Some(stops), .. } if now >= *stops => Some(0),
            Self::Simulated { since, fate: Fate::Crashes(after, code), .. } => {
                (now >= *since + pace.of(*after)).then_some(*code)
            }
            Self::Simulated { .. } => None,
            Self::Real(child) => {
                let status = child.try_wait().ok().flatten()?;
                // What it started ends with it, as in a container; it fails where nothing is left.
                kill_process_group(pid(child)?, Signal::KILL).ok();
                status.code().or_else(|| status.signal().map(|signal| 128 + signal))
            }
        }
    }

    /// Returns when it is worth looking at it again.
    pub(super) fn next(&self, now: Instant, pace: Pace) -> Option<Instant> {
        match self {
            Self::Simulated { stops: Some(stops), .. } => Some(*stops),
            Self::Simulated {
                since, fate: Fate::Crashes(after, _) | Fate::ComesUp(after), ..
            } => Some(*since + pace.of(*after)).filter(|at| *at > now),
            Self::Simulated { .. } => None,
            Self::Real(_) => Some(now + Duration::from_millis(10)),
        }
    }

    /// Returns whether a simulated container answers its probes.
    pub(super) fn is_up(&self, now: Instant, pace: Pace) -> bool {
        match self {
            Self::Simulated { since, fate: Fate::ComesUp(after), .. } => {
                now >= *since + pace.of(*after)
            }
            Self::Simulated { .. } | Self::Real(_) => false,
        }
    }

    /// Asks it to end.
    pub(super) fn terminate(&mut self, now: Instant, after: Option<Duration>) {
        match self {
            Self::Simulated { stops, .. } => *stops = after.map(|after| now + after),
            Self::Real(child) => {
                if let Some(pid) = pid(child) {
                    // It fails only where the process is gone already.
                    kill_process(pid, Signal::TERM).ok();
                }
            }
        }
    }

    /// Ends it.
    pub(super) fn kill(&mut self) {
        match self {
            Self::Simulated { killed, .. } => *killed = true,
            Self::Real(child) => {
                let Some(pid) = pid(child) else { return };
                if let Ok(None) = child.try_wait() {
                    // What it started is in its group; each call fails only where nothing is left.
                    kill_process_group(pid, Signal::KILL).ok();
                    child.wait().ok();
                }
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn pid(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// Starts a process that ends with this thread, should nobody end it before.
fn spawn(given: &Given, launch: &Launch<'_>) -> io::Result<Child> {
    let output = File::options().create(true).append(true).open(&launch.log)?;
    let mut command = guarded(launch.command);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("POD_IP", launch.address.to_string())
        .env("VOLUME_ROOT", &launch.root)
        .envs(&given.env)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    command.spawn()
}

/// Makes a command that is killed when the thread that starts it ends.
pub(super) fn guarded(command: &[String]) -> Command {
    let mut guarded = Command::new("setpriv");
    guarded.args(["--pdeathsig", "KILL", "--"]).args(command);
    guarded
}
