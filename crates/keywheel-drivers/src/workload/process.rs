//! `process`: replicas that are plain processes of this machine, each named by its pid file and kept alive by a supervisor of
//! its own.
//!
//! keywheel starts nothing here. It asks a replica to end, or to read its values again, and its supervisor brings it back.
//!
//! - A supervisor that keeps the values in its own environment gives a new replica the old ones; the roll notices and says so.
//! - The pid file is best written before the values are read, since a crash before that shows as silence only, which
//!   takes `ready_within` to tell from a slow start.
//! - `shows: start` is right only for a process that reads its values itself, after its own start; a worker forked from a
//!   parent that had read them is younger than its values. Nobody tells when it reads them, so that one that was there before a
//!   rotation is not taken for untouched.

pub(super) mod running;

use keywheel_core::planted;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration as StdDuration;

use async_trait::async_trait;
use keywheel_core::evidence::{Proof, Replica, Shows};
use keywheel_core::facts::WorkloadFacts;
use keywheel_core::fingerprint::Fingerprinter;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::duration::Duration;
use keywheel_driver::workload::{Answer, Ensure, Workload};
use keywheel_driver::{CallError, Finding, Refusal, RefusalKind, slot};
use reqwest::header::{AUTHORIZATION, HeaderValue};
use rustix::process::Pid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use url::Url;

use self::running::{GRANULARITY, Process, WallClock, variable};
use super::clock::{now, pass, timestamp};
use crate::probe::http::plain_url;
use crate::{Build, Context, http, program};

/// How often a replica is looked at while something is waited for.
const POLL: StdDuration = StdDuration::from_millis(20);

/// How long one question to a replica may take.
const ANSWER: StdDuration = StdDuration::from_secs(3);

/// How much younger than its pid file's last write a process may be and still be the one that the file names.
const PID_FILE_LAG: Span = Span::seconds(1);

/// Replicas that are plain processes, each named by its pid file and kept alive by a supervisor of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Every replica that reads the values.
    #[schemars(length(min = 1))]
    pub replicas: Vec<ReplicaConfig>,
    /// How a replica takes up a value.
    #[serde(default)]
    pub take_up: TakeUp,
    /// What proves which values a replica holds.
    pub shows: Showing,
    /// How long a replica may take to come back and be ready.
    #[serde(default = "seconds::<60>")]
    pub ready_within: Duration,
    /// How long a replica must have been ready before the next one is taken down: at least as long as whatever balances
    /// requests takes to notice.
    #[serde(default = "seconds::<1>")]
    pub ready_for: Duration,
    /// How long a roll that was broken off can still end or start replicas.
    #[serde(default = "seconds::<60>")]
    pub settle_for: Duration,
}

/// One replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplicaConfig {
    /// The file that holds its process number, written anew at each start.
    pub pid_file: PathBuf,
    /// A URL of this replica alone that answers 200 when it is ready; without one, a replica that lives is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_url: Option<String>,
    /// A URL of this replica alone that answers 200 to a bearer token that it accepts, and 401 or 403 to any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_url: Option<String>,
    /// A URL of this replica alone that answers `{"loaded_at": 1767225600000}`: when it last began to read its values, in
    /// milliseconds since 1970 by this machine's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info_url: Option<String>,
}

/// How a replica takes up a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TakeUp {
    /// It is asked to end, and its supervisor starts it anew.
    Restart(Restart),
    /// It is told to read its values again while it runs; `shows: info` proves that it did.
    Signal(Reload),
    /// A program makes it take them up; it is given `KEYWHEEL_PID` and `KEYWHEEL_PID_FILE`, and no value.
    Command(Run),
}

/// How a replica is asked to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    /// The signal that asks it to finish what it is doing and end.
    #[serde(default = "term")]
    pub signal: SignalName,
    /// How long that may take. It is never killed: that would drop requests.
    #[serde(default = "seconds::<30>")]
    pub stop_within: Duration,
}

/// How a replica is told to read its values again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reload {
    /// The signal.
    pub name: SignalName,
}

/// A program that makes a replica take up a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The program and its arguments, run without a shell; a relative path begins at the folder of the configuration file.
    pub argv: Vec<String>,
    /// How long it may run.
    #[serde(default = "seconds::<30>")]
    pub within: Duration,
}

/// What proves which values a replica holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Showing {
    /// Its environment, which is fixed when its program begins; for a process that reads its values nowhere else.
    Environ,
    /// Its start; for a process that reads a file once, after it was started.
    Start,
    /// What `info_url` says.
    Info,
}

/// The signals that ask a process for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum SignalName {
    /// `SIGTERM`
    Term,
    /// `SIGINT`
    Int,
    /// `SIGQUIT`
    Quit,
    /// `SIGHUP`
    Hup,
    /// `SIGUSR1`
    Usr1,
    /// `SIGUSR2`
    Usr2,
}

impl Default for TakeUp {
    fn default() -> Self {
        Self::Restart(Restart { signal: term(), stop_within: seconds::<30>() })
    }
}

impl From<SignalName> for rustix::process::Signal {
    fn from(name: SignalName) -> Self {
        match name {
            SignalName::Term => Self::TERM,
            SignalName::Int => Self::INT,
            SignalName::Quit => Self::QUIT,
            SignalName::Hup => Self::HUP,
            SignalName::Usr1 => Self::USR1,
            SignalName::Usr2 => Self::USR2,
        }
    }
}

fn term() -> SignalName {
    SignalName::Term
}

fn seconds<const N: u64>() -> Duration {
    Span::seconds(N).into()
}

impl Build for Config {
    type Driver = dyn Workload;

    fn build(&self, context: &Context) -> Result<Arc<dyn Workload>, Refusal> {
        self.check()?;
        let replicas = self.replicas.iter().map(|replica| One::new(replica, context));
        Ok(Arc::new(Processes {
            replicas: replicas.collect::<Result<_, _>>()?,
            config: self.clone(),
            folder: context.root.clone(),
            clock: WallClock::default(),
        }))
    }
}

impl Config {
    fn check(&self) -> Result<(), Refusal> {
        let files: BTreeSet<_> = self.replicas.iter().map(|replica| &replica.pid_file).collect();
        if self.replicas.is_empty() {
            return Err(unsupported("`replicas` names none"));
        }
        if files.len() < self.replicas.len() {
            return Err(unsupported("two of `replicas` have the same `pid_file`"));
        }
        if self.shows == Showing::Info
            && self.replicas.iter().any(|replica| replica.info_url.is_none())
        {
            return Err(unsupported("`shows: info` needs an `info_url` for each replica"));
        }
        if self.ready_for >= self.ready_within {
            return Err(unsupported("`ready_for` must be shorter than `ready_within`"));
        }
        match &self.take_up {
            // What was fixed at the start stays as it was (H42).
            TakeUp::Signal(_) if self.shows != Showing::Info && !planted!("signal_proves") => {
                Err(unsupported(
                    "a replica that keeps running proves a new value by `shows: info` only",
                ))
            }
            TakeUp::Command(run) => program::check("argv", &run.argv),
            _ => Ok(()),
        }
    }
}

struct Processes {
    config: Config,
    replicas: Vec<One>,
    folder: PathBuf,
    clock: WallClock,
}

/// One replica, with its places resolved.
struct One {
    pid_file: PathBuf,
    name: String,
    ready: Option<Url>,
    token: Option<Url>,
    info: Option<Url>,
}

/// What a pid file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// A process that runs.
    Runs(Process),
    /// One that is gone; its supervisor may be about to start another.
    Gone(Pid),
    /// No file, or one that names nothing that can be believed.
    Nothing(&'static str),
}

impl Seen {
    fn process(self) -> Option<Process> {
        match self {
            Self::Runs(process) => Some(process),
            Self::Gone(_) | Self::Nothing(_) => None,
        }
    }

    fn pid(self) -> Option<Pid> {
        match self {
            Self::Runs(process) => Some(process.pid()),
            Self::Gone(pid) => Some(pid),
            Self::Nothing(_) => None,
        }
    }
}

#[async_trait]
impl Workload for Processes {
    fn facts(&self) -> WorkloadFacts {
        WorkloadFacts {
            settle_for: self.config.settle_for.span(),
            start_granularity: GRANULARITY,
            answers_tokens: self.replicas.iter().all(|replica| replica.token.is_some()),
            gap: self.restarts_the_only_replica(),
        }
    }

    fn resource(&self) -> String {
        let files: BTreeSet<_> =
            self.replicas.iter().map(|replica| canonical(&replica.pid_file)).collect();
        let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        format!("process:{}", files.join(","))
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        let mut findings = Vec::new();
        if planted!("preflight_is_blind") {
            return Ok(findings);
        }
        for replica in &self.replicas {
            match replica.seen(&self.clock) {
                Seen::Runs(process) => findings.extend(self.examine(replica, process).await),
                Seen::Gone(_) => {
                    findings.push(Finding::blocks(format!("{} does not run", replica.name)))
                }
                Seen::Nothing(why) => {
                    findings.push(Finding::blocks(format!("{}: {why}", replica.name)))
                }
            }
        }
        if self.restarts_the_only_replica() {
            findings.push(Finding::note("there is one replica: requests fail while it restarts"));
        }
        Ok(findings)
    }

    async fn observe(
        &self,
        slots: &[String],
        fingerprinter: &Fingerprinter,
    ) -> Result<Vec<Replica>, CallError> {
        let mut replicas = Vec::new();
        for replica in &self.replicas {
            let seen = replica.seen(&self.clock);
            replicas.push(self.look(replica, seen, slots, fingerprinter).await);
            if planted!("one_replica_stands_for_all") {
                break;
            }
        }
        Ok(replicas)
    }

    async fn roll(&self, ensure: &Ensure<'_>) -> Result<(), CallError> {
        pass(ensure.held_since, GRANULARITY).await?;
        for replica in self.unready_first().await {
            self.bring(replica, ensure).await?;
        }
        Ok(())
    }

    async fn present(&self, token: &SecretValue) -> Result<Vec<Answer>, CallError> {
        let bearer =
            http::bearer(token).map_err(|_| unsupported("the token does not fit into a header"))?;
        let mut answers = Vec::new();
        for replica in &self.replicas {
            let status = match &replica.token {
                Some(url) => status(url, Some(&bearer)).await,
                None => None,
            };
            let accepted = match status {
                Some(200) => Some(true),
                Some(401 | 403) => Some(false),
                _ => None,
            };
            answers.push(Answer { replica: replica.label(replica.seen(&self.clock)), accepted });
        }
        Ok(answers)
    }
}

/// Looking.
impl Processes {
    fn restarts_the_only_replica(&self) -> bool {
        self.replicas.len() == 1 && matches!(self.config.take_up, TakeUp::Restart(_))
    }

    async fn look(
        &self,
        replica: &One,
        seen: Seen,
        slots: &[String],
        fingerprinter: &Fingerprinter,
    ) -> Replica {
        let id = replica.label(seen);
        let Some(process) = seen.process() else {
            return Replica { id, started_at: None, shows: Shows::Nothing };
        };
        let started_at = process.started_at(&self.clock);
        match self.config.shows {
            Showing::Environ => {
                Replica { id, started_at, shows: environment(process, slots, fingerprinter) }
            }
            Showing::Start => Replica { id, started_at, shows: read_later(slots) },
            // What was loaded at that time is as fixed as what was loaded at the start.
            Showing::Info => match replica.loaded_at().await {
                Some(at)
                    if started_at.is_some_and(|started| started <= at && at <= now())
                        && process.runs() =>
                {
                    Replica { id, started_at: Some(at), shows: Shows::FixedAtStart }
                }
                _ => Replica { id, started_at, shows: Shows::Nothing },
            },
        }
    }

    async fn proves(&self, replica: &One, seen: Seen, ensure: &Ensure<'_>) -> bool {
        let slots: Vec<_> = ensure.slots.iter().map(|(slot, _)| slot.clone()).collect();
        let looked = self.look(replica, seen, &slots, ensure.fingerprinter).await;
        ensure.judge(&looked, self.facts()) == Proof::Holds
    }

    async fn examine(&self, replica: &One, process: Process) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut blocks =
            |message: &str| findings.push(Finding::blocks(format!("{} {message}", replica.name)));
        if process.started_at(&self.clock).is_none() {
            blocks("has a start that the clocks do not tell");
        }
        if !matches!(self.config.take_up, TakeUp::Command(_)) && !process.may_signal() {
            blocks("runs as another user, who is sent no signals");
        }
        if self.config.shows == Showing::Environ && process.environment().is_err() {
            blocks("does not let its environment be read: run as its user");
        }
        if self.config.shows == Showing::Info && replica.loaded_at().await.is_none() {
            blocks("does not say at `info_url` when it loaded its values");
        }
        if !replica.is_ready(process).await {
            blocks("does not answer 200 at `ready_url`");
        }
        if let Some(url) = &replica.token
            && !matches!(status(url, None).await, Some(401 | 403))
        {
            blocks(
                "does not answer 401 or 403 at `token_url` without a token, so its answers prove nothing",
            );
        }
        if replica.ready.is_none() {
            findings.push(Finding::note(format!(
                "{} has no `ready_url`: it counts as ready while it lives",
                replica.name
            )));
        }
        findings
    }

    /// Orders the replicas so that one that serves is taken down only when every other one serves.
    async fn unready_first(&self) -> Vec<&One> {
        let (mut unready, mut ready) = (Vec::new(), Vec::new());
        for replica in &self.replicas {
            let is_ready = match replica.seen(&self.clock).process() {
                Some(process) => replica.is_ready(process).await,
                None => false,
            };
            if is_ready { ready.push(replica) } else { unready.push(replica) }
        }
        unready.append(&mut ready);
        unready
    }
}

/// Rolling.
impl Processes {
    /// Brings one replica to the arrangement and waits until it is ready; does nothing to one that proves it.
    async fn bring(&self, replica: &One, ensure: &Ensure<'_>) -> Result<(), CallError> {
        let mut starts = Starts::default();
        let mut asked = None;
        let mut deadline = self.deadline();
        loop {
            let seen = replica.seen(&self.clock);
            starts.note(seen);
            if starts.are_hopeless() {
                return Err(failed(replica, "ended before it was ready"));
            }
            if let Seen::Runs(process) = seen {
                if self.proves(replica, seen, ensure).await {
                    return self.wait_until_ready(replica, process).await;
                }
                if asked.is_none() {
                    self.take_up(replica, process).await?;
                    starts = Starts::after(process);
                    asked = Some(process);
                    deadline = self.deadline();
                } else if asked != Some(process) && self.came_back(replica, process).await {
                    return self.ready_without_proof(replica, process, ensure).await;
                }
            }
            if Instant::now() > deadline {
                return Err(failed(replica, &self.silence(asked, seen)));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.config.ready_within.span().into()
    }

    fn silence(&self, asked: Option<Process>, seen: Seen) -> String {
        let within = self.config.ready_within.span();
        match seen {
            Seen::Runs(process) if asked == Some(process) => {
                format!("did not take up the values within {within}")
            }
            Seen::Runs(_) => format!("did not prove the values within {within}"),
            Seen::Gone(_) => format!("did not come back within {within}"),
            Seen::Nothing(why) => format!("did not come back within {within}: {why}"),
        }
    }

    fn age(&self, process: Process) -> Option<Span> {
        process.started_at(&self.clock).map(|started| now().since(started))
    }

    /// Returns whether a replica that proves nothing yet had its time to.
    async fn came_back(&self, replica: &One, process: Process) -> bool {
        match (&replica.ready, self.config.shows) {
            (Some(_), _) => replica.is_ready(process).await,
            (None, Showing::Info) => false,
            (None, Showing::Environ | Showing::Start) => {
                let ready_for = self.config.ready_for.span();
                self.age(process).is_some_and(|age| age > ready_for + Span::seconds(1))
            }
        }
    }

    /// A replica may become ready between two looks; only one that still proves nothing when it is ready holds other values.
    async fn ready_without_proof(
        &self,
        replica: &One,
        process: Process,
        ensure: &Ensure<'_>,
    ) -> Result<(), CallError> {
        let is_enough = planted!("ready_is_enough");
        if is_enough || self.proves(replica, Seen::Runs(process), ensure).await {
            return self.wait_until_ready(replica, process).await;
        }
        let why = match self.config.shows {
            Showing::Environ => "came back with other values: look where its supervisor keeps them",
            Showing::Start | Showing::Info => "came back and does not prove the new values",
        };
        Err(failed(replica, why))
    }

    async fn take_up(&self, replica: &One, process: Process) -> Result<(), CallError> {
        match &self.config.take_up {
            TakeUp::Restart(restart) => {
                send(replica, process, restart.signal)?;
                self.wait_until_gone(replica, process, restart.stop_within.span()).await
            }
            TakeUp::Signal(reload) => send(replica, process, reload.name),
            TakeUp::Command(run) => {
                let pid = process.pid().to_string();
                let file = replica.pid_file.display().to_string();
                let variables = [("KEYWHEEL_PID", pid), ("KEYWHEEL_PID_FILE", file)];
                let ended =
                    program::run(&run.argv, &self.folder, &variables, run.within.span()).await?;
                match ended.well() {
                    true => Ok(()),
                    false => Err(CallError::Unknown(format!(
                        "{} {}",
                        program::name(&run.argv),
                        ended.in_words()
                    ))),
                }
            }
        }
    }

    async fn wait_until_gone(
        &self,
        replica: &One,
        process: Process,
        within: Span,
    ) -> Result<(), CallError> {
        let deadline = Instant::now() + within.into();
        while process.runs() {
            if Instant::now() > deadline && planted!("stuck_replica_is_gone") {
                break;
            }
            if Instant::now() > deadline {
                // It has the signal and may end at any time (H52).
                return Err(CallError::Unknown(format!(
                    "{} did not end within {within}",
                    replica.name
                )));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits until a replica that holds the arrangement is ready. One that started just now, or was not ready, must stay so
    /// for a while.
    async fn wait_until_ready(&self, replica: &One, process: Process) -> Result<(), CallError> {
        let deadline = self.deadline();
        if planted!("readiness_ignored") {
            return Ok(());
        }
        let mut ready_since = None;
        let ready_for = self.config.ready_for.span();
        let is_old = self.age(process).is_some_and(|age| age > ready_for);
        let mut steady = if is_old { StdDuration::ZERO } else { ready_for.into() };
        loop {
            if !process.runs() {
                return Err(failed(replica, "ended before it was ready"));
            }
            if replica.is_ready(process).await {
                let since = *ready_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= steady && process.runs() {
                    return Ok(());
                }
            } else {
                ready_since = None;
                steady = ready_for.into();
            }
            if Instant::now() > deadline {
                return Err(failed(
                    replica,
                    &format!("was not ready within {}", self.config.ready_within.span()),
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// The starts of one replica, as far as looking now and then shows them.
#[derive(Default)]
struct Starts {
    /// Numbers whose end is counted already.
    past: Vec<Pid>,
    last: Option<Pid>,
    crashes: u32,
    /// Whether what starts now certainly has the new values.
    asked: bool,
}

impl Starts {
    /// Begins to count when a process was asked to end; its end is no crash.
    fn after(process: Process) -> Self {
        Self { past: vec![process.pid()], last: Some(process.pid()), crashes: 0, asked: true }
    }

    /// A crash after we asked is a crash with the new values; one before may still have been with the former ones.
    fn are_hopeless(&self) -> bool {
        self.crashes > u32::from(!self.asked)
    }

    fn note(&mut self, seen: Seen) {
        let first = self.last.is_none();
        if let Some(pid) = seen.pid() {
            let before = self.last.replace(pid);
            if let Some(before) = before.filter(|before| *before != pid) {
                self.ended(before);
            }
        }
        match seen {
            // What was gone already at the first look was not our doing.
            Seen::Gone(pid) if first => self.past.push(pid),
            Seen::Gone(pid) => self.ended(pid),
            Seen::Runs(_) | Seen::Nothing(_) => {}
        }
    }

    fn ended(&mut self, pid: Pid) {
        if !self.past.contains(&pid) {
            self.past.push(pid);
            self.crashes += 1;
        }
    }
}

impl One {
    fn new(config: &ReplicaConfig, context: &Context) -> Result<Self, Refusal> {
        let url = |key, text: &Option<String>| {
            text.as_deref().map(|text| plain_url(key, text)).transpose()
        };
        Ok(Self {
            pid_file: context.root.join(&config.pid_file),
            name: format!("replica `{}`", config.pid_file.display()),
            ready: url("ready_url", &config.ready_url)?,
            token: url("token_url", &config.token_url)?,
            info: url("info_url", &config.info_url)?,
        })
    }

    fn label(&self, seen: Seen) -> String {
        let file = self.pid_file.file_name().unwrap_or_default().to_string_lossy();
        match seen.process() {
            Some(process) => format!("{file} (pid {})", process.pid()),
            None => file.into_owned(),
        }
    }

    /// Finds the process that the pid file names. A file is believed only if the process was there when it was written
    /// and runs as its owner: anything else is a number that passed to someone else, and is never sent a signal.
    fn seen(&self, clock: &WallClock) -> Seen {
        let Ok((text, written_at, owner)) = read_with_owner(&self.pid_file) else {
            return Seen::Nothing("its pid file cannot be read");
        };
        let number = text.trim().parse().ok().filter(|number| *number > 1);
        let Some(pid) = number.and_then(Pid::from_raw) else {
            return Seen::Nothing("its pid file does not hold a process number");
        };
        let process = match Process::at(pid) {
            Ok(Some(process)) => process,
            Ok(None) => return Seen::Gone(pid),
            Err(_) => return Seen::Nothing("its process cannot be looked up"),
        };
        let is_younger =
            process.started_at(clock).is_some_and(|started| started > written_at + PID_FILE_LAG);
        if pid == rustix::process::getpid() || is_younger {
            return Seen::Nothing("its pid file is older than the process that has its number");
        }
        match process.user() {
            Ok(user) if owner == 0 || owner == user => Seen::Runs(process),
            Ok(_) => {
                Seen::Nothing("its process runs as another user than the owner of its pid file")
            }
            Err(_) => Seen::Gone(pid),
        }
    }

    async fn is_ready(&self, process: Process) -> bool {
        match &self.ready {
            Some(url) => status(url, None).await == Some(200),
            None => process.runs(),
        }
    }

    async fn loaded_at(&self) -> Option<Timestamp> {
        #[derive(Deserialize)]
        struct Info {
            loaded_at: i64,
        }
        let response = http::client().get(self.info.clone()?).timeout(ANSWER).send().await.ok()?;
        let body = http::body(&self.name, response.error_for_status().ok()?).await.ok()?;
        serde_json::from_slice::<Info>(&body)
            .ok()
            .map(|info| Timestamp::from_millis(info.loaded_at))
    }
}

fn read_with_owner(path: &Path) -> std::io::Result<(String, Timestamp, u32)> {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::File::open(path)?;
    let metadata = file.metadata()?;
    let mut text = String::new();
    file.take(64).read_to_string(&mut text)?;
    Ok((text, timestamp(metadata.modified()?), metadata.uid()))
}

/// Fingerprints what a process was given of `slots` when its program began.
pub(super) fn environment(
    process: Process,
    slots: &[String],
    fingerprinter: &Fingerprinter,
) -> Shows {
    let Ok(Some(environment)) = process.environment() else {
        return Shows::Nothing;
    };
    let held = |slot: &String| {
        let value = variable(&environment, slot::parts(slot).1)?;
        Some((slot.clone(), fingerprinter.of(value)))
    };
    Shows::Slots(slots.iter().filter_map(held).collect())
}

/// A file that a process reads after it was started, it may read at any time.
pub(super) fn read_later(slots: &[String]) -> Shows {
    Shows::Live { shown: Vec::new(), unseen: slots.to_vec() }
}

fn send(replica: &One, process: Process, signal: SignalName) -> Result<(), CallError> {
    process.signal(signal.into()).map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::PermissionDenied => RefusalKind::Permission,
            _ => RefusalKind::Local,
        };
        Refusal::operator(
            kind,
            format!("{} could not be sent a signal: {}", replica.name, error.kind()),
        )
        .into()
    })
}

async fn status(url: &Url, authorization: Option<&HeaderValue>) -> Option<u16> {
    let mut request = http::client().get(url.clone()).timeout(ANSWER);
    if let Some(value) = authorization {
        request = request.header(AUTHORIZATION, value);
    }
    Some(request.send().await.ok()?.status().as_u16())
}

/// Resolves the folder, which is there even while a supervisor has removed the file.
fn canonical(file: &Path) -> PathBuf {
    let folder = file.parent().and_then(|folder| folder.canonicalize().ok());
    match (folder, file.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => file.to_owned(),
    }
}

fn unsupported(message: &str) -> Refusal {
    Refusal::operator(RefusalKind::Unsupported, message)
}

fn failed(replica: &One, what: &str) -> CallError {
    Refusal::operator(RefusalKind::WorkloadFailed, format!("{} {what}", replica.name)).into()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::time::SystemTime;

    use keywheel_core::evidence::{Expected, judge};
    use keywheel_core::fingerprint::{Fingerprint, FingerprintKeyId};
    use keywheel_driver::{Remedy, Severity};
    use serde_json::{Value, json};
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Starts replica `$0` again whenever it ends. The value decides what becomes of it.
    const SUPERVISOR: &str = r#"
        frozen="$(cat "$0.frozen" 2>/dev/null)"
        while kill -0 "$PPID"; do
            VALUE="${frozen:-$(cat value)}" sh -c '
                echo $$ > "$0.new" && mv "$0.new" "$0.pid"
                case "$VALUE" in
                    crash) exit 1 ;;
                    brief) sleep 0.3; exit 1 ;;
                    deaf) trap "" TERM; echo > "$0.deaf"; while kill -0 $PPID; do sleep 0.02; done ;;
                    reloads) trap "date +{\\\"loaded_at\\\":%s%3N} > $0.info.new; mv $0.info.new $0.info" HUP; kill -HUP $$; while kill -0 $PPID; do sleep 0.02; done ;;
                esac
                exec sleep 600' "$0"
            sleep 0.05
        done"#;

    /// Replicas `a`, `b` and `c`, each with its supervisor.
    struct Fleet {
        folder: TempDir,
        supervisors: Vec<Child>,
        fingerprinter: Fingerprinter,
    }

    impl Fleet {
        async fn start(value: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("value"), value).unwrap();
            let key = [7; 32].into();
            let mut fleet = Self {
                folder,
                supervisors: Vec::new(),
                fingerprinter: Fingerprinter::new(FingerprintKeyId(1), key),
            };
            for name in ["a", "b", "c"] {
                fleet.supervise(name).await;
            }
            fleet
        }

        async fn supervise(&mut self, name: &str) {
            use std::os::unix::process::CommandExt;
            let mut command = Command::new("sh");
            command.args(["-c", SUPERVISOR, name]).current_dir(&self.folder).process_group(0);
            // The shell reports how each replica ended.
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            self.supervisors.push(command.spawn().unwrap());
            while !self.file(&format!("{name}.pid")).exists() {
                tokio::time::sleep(POLL).await;
            }
        }

        fn file(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.file("staged"), text).unwrap();
            std::fs::rename(self.file("staged"), self.file(name)).unwrap();
        }

        fn pid(&self, name: &str) -> Pid {
            let text = std::fs::read_to_string(self.file(&format!("{name}.pid"))).unwrap();
            Pid::from_raw(text.trim().parse().unwrap()).unwrap()
        }

        fn pids(&self) -> [Pid; 3] {
            ["a", "b", "c"].map(|name| self.pid(name))
        }

        fn config(&self, extra: Value) -> Config {
            let replicas = ["a", "b", "c"].map(|name| json!({ "pid_file": format!("{name}.pid") }));
            let mut config =
                json!({ "replicas": replicas, "ready_for": "50ms", "ready_within": "60s" });
            let extra = extra.as_object().unwrap().clone();
            config.as_object_mut().unwrap().extend(extra);
            serde_json::from_value(config).unwrap()
        }

        fn build(&self, extra: Value) -> Arc<dyn Workload> {
            self.config(extra).build(&Context::at(self.folder.path())).unwrap()
        }

        /// Writes a value and rolls to it at once.
        async fn roll_to(&self, workload: &dyn Workload, value: &str) -> Result<(), CallError> {
            self.write("value", value);
            self.roll(workload, value, now()).await
        }

        async fn roll(
            &self,
            workload: &dyn Workload,
            value: &str,
            held_since: Timestamp,
        ) -> Result<(), CallError> {
            let slots = self.slots(value);
            workload.roll(&Ensure::new(&slots, held_since, &self.fingerprinter)).await
        }

        fn slots(&self, value: &str) -> [(String, Option<Fingerprint>); 1] {
            [(value_slot(), Some(self.fingerprinter.of(value.as_bytes())))]
        }

        async fn proofs(
            &self,
            workload: &dyn Workload,
            value: &str,
            held_since: Timestamp,
        ) -> Vec<Proof> {
            let replicas = workload.observe(&[value_slot()], &self.fingerprinter).await.unwrap();
            let granularity = workload.facts().start_granularity;
            let slots = self.slots(value);
            let expected = Expected {
                slots: &slots,
                held_since: Some(held_since),
                untouched_before: None,
                granularity,
            };
            replicas.iter().map(|replica| judge(replica, &expected)).collect()
        }
    }

    impl Drop for Fleet {
        fn drop(&mut self) {
            for supervisor in &mut self.supervisors {
                let group = Pid::from_child(supervisor);
                rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
                supervisor.wait().ok();
            }
        }
    }

    /// As the engine names it.
    fn value_slot() -> String {
        slot::name("file:/shop/value", "VALUE")
    }

    fn refusal(outcome: Result<(), CallError>) -> Refusal {
        match outcome {
            Err(CallError::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    }

    fn end(pid: Pid) {
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }

    /// Serves the files of a folder; `/token` answers the status that the bearer names.
    async fn serve(folder: &Path) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let folder = folder.to_owned();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let length = stream.read(&mut request).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let path = request.split([' ', '/']).nth(2).unwrap_or_default();
                let bearer = request
                    .lines()
                    .find_map(|line| line.strip_prefix("authorization: Bearer says-"));
                let (status, body) = match (path, std::fs::read(folder.join(path))) {
                    ("token", _) => (bearer.unwrap_or("401").to_owned(), Vec::new()),
                    (_, Ok(body)) => ("200".to_owned(), body),
                    (_, Err(_)) => ("503".to_owned(), Vec::new()),
                };
                let head = format!(
                    "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                stream.write_all(&[head.as_bytes(), &body].concat()).await.ok();
            }
        });
        base
    }

    #[tokio::test]
    async fn h42_a_roll_ends_when_every_environment_shows_the_value() {
        let fleet = Fleet::start("old").await;
        let workload = fleet.build(json!({ "shows": "environ" }));
        assert_eq!(fleet.proofs(&*workload, "old", now()).await, [Proof::Holds; 3]);
        fleet.write("value", "new");
        assert_eq!(fleet.proofs(&*workload, "new", now()).await, [Proof::Other; 3]);

        let before = fleet.pids();
        fleet.roll(&*workload, "new", now()).await.unwrap();
        assert_eq!(fleet.proofs(&*workload, "new", now()).await, [Proof::Holds; 3]);
        let after = fleet.pids();
        assert!(before.iter().zip(&after).all(|(before, after)| before != after));

        fleet.roll(&*workload, "new", now()).await.unwrap();
        assert_eq!(fleet.pids(), after, "a replica that proves the arrangement is left alone");
    }

    #[tokio::test]
    async fn h42_a_signal_is_no_way_to_change_what_was_fixed_at_the_start() {
        let fleet = Fleet::start("old").await;
        for shows in ["environ", "start"] {
            let config =
                fleet.config(json!({ "shows": shows, "take_up": { "signal": { "name": "HUP" } } }));
            let refusal = config.build(&Context::at("/")).err().unwrap();
            assert_eq!(refusal.kind, RefusalKind::Unsupported);
        }
    }

    #[tokio::test]
    async fn h45_a_replica_counts_only_when_it_started_after_the_write_was_certain() {
        let fleet = Fleet::start("old").await;
        let workload = fleet.build(json!({ "shows": "start" }));
        // The roll begins before that: what it starts must be provably later.
        let written = now() + Span::millis(500);
        assert_eq!(fleet.proofs(&*workload, "new", written).await, [Proof::Unknown; 3]);
        fleet.roll(&*workload, "new", written).await.unwrap();
        assert_eq!(fleet.proofs(&*workload, "new", written).await, [Proof::Holds; 3]);
    }

    #[tokio::test]
    async fn h45_a_write_ahead_of_the_clock_is_waited_for() {
        let fleet = Fleet::start("old").await;
        let workload = fleet.build(json!({ "shows": "start" }));
        let before = fleet.pids();
        let refusal = refusal(fleet.roll(&*workload, "old", now() + Span::hours(1)).await);
        assert!(matches!(refusal.remedy, Remedy::Retry { after: Some(_) }));
        assert_eq!(fleet.pids(), before);
    }

    #[tokio::test]
    async fn h50_every_replica_that_is_not_finally_gone_is_listed_and_rolled() {
        let mut fleet = Fleet::start("old").await;
        let workload = fleet.build(json!({ "shows": "environ" }));
        // `b` has the new value already; `c` is down, and its supervisor is late.
        fleet.write("value", "new");
        let old = fleet.pids();
        end(old[1]);
        while fleet.pid("b") == old[1] {
            tokio::time::sleep(POLL).await;
        }
        let group = Pid::from_child(&fleet.supervisors[2]);
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
        fleet.supervisors[2].wait().unwrap();
        while Process::at(old[2]).unwrap().is_some() {
            tokio::time::sleep(POLL).await;
        }
        let proofs = fleet.proofs(&*workload, "new", now()).await;
        assert_eq!(proofs, [Proof::Other, Proof::Holds, Proof::Unknown]);

        let b = fleet.pid("b");
        let roll = async { fleet.roll(&*workload, "new", now()).await };
        let pending = tokio::time::timeout(StdDuration::from_millis(300), roll).await;
        assert!(pending.is_err(), "a roll does not end while a replica is missing");
        assert_eq!(
            fleet.pid("a"),
            old[0],
            "one that serves is not taken down while another is missing"
        );

        std::fs::remove_file(fleet.file("c.pid")).unwrap();
        fleet.supervise("c").await;
        fleet.roll(&*workload, "new", now()).await.unwrap();
        assert_eq!(fleet.proofs(&*workload, "new", now()).await, [Proof::Holds; 3]);
        assert_eq!(fleet.pid("b"), b);
    }

    #[tokio::test]
    async fn h51_a_replica_that_serves_is_not_taken_down_while_another_is_not_ready() {
        let fleet = Fleet::start("old").await;
        let base = serve(fleet.folder.path()).await;
        let replica = |name| json!({ "pid_file": format!("{name}.pid"), "ready_url": format!("{base}/{name}.ready") });
        let replicas = ["a", "b", "c"].map(replica);
        let workload = fleet
            .build(json!({ "shows": "environ", "replicas": replicas, "ready_within": "300ms" }));
        fleet.write("a.ready", "");
        fleet.write("b.ready", "");
        let before = fleet.pids();
        let refusal = refusal(fleet.roll_to(&*workload, "new").await);
        assert_eq!((refusal.kind, refusal.remedy), (RefusalKind::WorkloadFailed, Remedy::Operator));
        assert_eq!(refusal.message, "replica `c.pid` was not ready within 300 ms");
        assert_eq!(fleet.pids()[..2], before[..2]);

        fleet.write("c.ready", "");
        fleet.roll(&*workload, "new", now()).await.unwrap();
        assert_eq!(fleet.proofs(&*workload, "new", now()).await, [Proof::Holds; 3]);
    }

    #[tokio::test]
    async fn h52_a_replica_that_does_not_end_leaves_the_roll_unknown_and_the_others_alone() {
        let fleet = Fleet::start("deaf").await;
        let take_up = json!({ "restart": { "stop_within": "200ms" } });
        let config = json!({ "shows": "environ", "take_up": take_up, "ready_within": "5s" });
        let workload = fleet.build(config);
        while ["a", "b", "c"].iter().any(|name| !fleet.file(&format!("{name}.deaf")).exists()) {
            tokio::time::sleep(POLL).await;
        }
        let before = fleet.pids();
        let outcome = fleet.roll_to(&*workload, "new").await;
        let expected = "replica `a.pid` did not end within 200 ms";
        assert_eq!(outcome, Err(CallError::Unknown(expected.into())));
        assert_eq!(fleet.pids(), before);
        assert_eq!(fleet.proofs(&*workload, "new", now()).await, [Proof::Other; 3]);
    }

    #[tokio::test]
    async fn h53_a_replica_that_is_ready_with_other_values_fails_the_roll() {
        let mut fleet = Fleet::start("old").await;
        let workload = fleet.build(json!({ "shows": "environ" }));
        let mut supervisor = fleet.supervisors.remove(0);
        rustix::process::kill_process_group(
            Pid::from_child(&supervisor),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        supervisor.wait().unwrap();
        std::fs::remove_file(fleet.file("a.pid")).unwrap();
        fleet.write("a.frozen", "old");
        fleet.supervise("a").await;

        let before = fleet.pids();
        let refusal = refusal(fleet.roll_to(&*workload, "new").await);
        assert_eq!(refusal.kind, RefusalKind::WorkloadFailed);
        let expected =
            "replica `a.pid` came back with other values: look where its supervisor keeps them";
        assert_eq!(refusal.message, expected);
        assert_eq!(fleet.pids()[1..], before[1..]);
    }

    #[tokio::test]
    async fn a_value_that_a_replica_does_not_survive_ends_the_roll_at_the_first_crash() {
        let fleet = Fleet::start("old").await;
        for shows in ["environ", "start"] {
            let workload =
                fleet.build(json!({ "shows": shows, "ready_within": "10m", "ready_for": "9m" }));
            let before = fleet.pids();
            let refusal = refusal(fleet.roll_to(&*workload, "crash").await);
            assert_eq!(
                (refusal.kind, refusal.remedy),
                (RefusalKind::WorkloadFailed, Remedy::Operator)
            );
            assert_eq!(refusal.message, "replica `a.pid` ended before it was ready");
            assert_eq!(fleet.pids()[1..], before[1..]);

            // The way back needs no more than the former value.
            let workload = fleet.build(json!({ "shows": shows }));
            fleet.roll_to(&*workload, "old").await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_replica_that_lives_for_a_moment_only_is_not_taken_for_ready() {
        let fleet = Fleet::start("old").await;
        for shows in ["environ", "start"] {
            let config = json!({ "shows": shows, "ready_within": "10m", "ready_for": "9m" });
            let refusal = refusal(fleet.roll_to(&*fleet.build(config), "brief").await);
            assert!(refusal.message.ends_with("ended before it was ready"), "{refusal}");
        }
    }

    #[tokio::test]
    async fn a_replica_that_crashed_all_along_ends_the_roll_too() {
        let fleet = Fleet::start("crash").await;
        let workload =
            fleet.build(json!({ "shows": "start", "ready_within": "10m", "ready_for": "9m" }));
        let refusal = refusal(fleet.roll_to(&*workload, "crash").await);
        assert!(refusal.message.ends_with("ended before it was ready"), "{refusal}");
    }

    #[test]
    fn starts_are_counted_once_each() {
        let pid = |number| Pid::from_raw(number).unwrap();
        let gone = |number| Seen::Gone(pid(number));
        let mut starts = Starts::default();
        for (seen, crashes) in [
            (gone(10), 0),
            (gone(10), 0),
            (Seen::Nothing(""), 0),
            (gone(11), 1),
            (gone(11), 1),
            (gone(13), 2),
            (gone(10), 2),
        ] {
            starts.note(seen);
            assert_eq!((starts.crashes, starts.are_hopeless()), (crashes, crashes > 1), "{seen:?}");
        }

        let asked = Process::at(rustix::process::getpid()).unwrap().unwrap();
        let mut starts = Starts::after(asked);
        starts.note(Seen::Gone(asked.pid()));
        assert!(!starts.are_hopeless(), "it was asked to end");
        starts.note(gone(14));
        assert!(starts.are_hopeless(), "the first crash with the new values is enough");
    }

    #[tokio::test]
    async fn a_number_that_passed_to_another_process_is_never_sent_a_signal() {
        let fleet = Fleet::start("old").await;
        let workload = fleet.build(json!({ "shows": "environ", "ready_within": "100ms" }));
        let mut stranger = Command::new("sleep").arg("600").spawn().unwrap();
        fleet.write("a.pid", &stranger.id().to_string());
        let pid_file = std::fs::File::options().write(true).open(fleet.file("a.pid")).unwrap();
        pid_file.set_modified(SystemTime::now() - StdDuration::from_secs(3_600)).unwrap();

        let refusal = refusal(fleet.roll_to(&*workload, "new").await);
        let why = "its pid file is older than the process that has its number";
        assert_eq!(
            refusal.message,
            format!("replica `a.pid` did not come back within 100 ms: {why}")
        );
        let findings = workload.preflight().await.unwrap();
        assert!(findings.contains(&Finding::blocks(format!("replica `a.pid`: {why}"))));
        tokio::time::sleep(StdDuration::from_millis(50)).await;
        assert!(stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        stranger.wait().unwrap();

        for text in
            [std::process::id().to_string(), "1".into(), "-1".into(), "0".into(), "x".into()]
        {
            fleet.write("a.pid", &text);
            assert!(!workload.preflight().await.unwrap().is_empty(), "{text}");
            let replicas = workload.observe(&[], &fleet.fingerprinter).await.unwrap();
            assert_eq!((replicas.len(), &replicas[0].shows), (3, &Shows::Nothing));
        }
    }

    #[tokio::test]
    async fn a_replica_that_reloads_proves_it_by_the_time_it_loaded() {
        let fleet = Fleet::start("reloads").await;
        let base = serve(fleet.folder.path()).await;
        let replica = |name| json!({ "pid_file": format!("{name}.pid"), "info_url": format!("{base}/{name}.info") });
        let replicas = ["a", "b", "c"].map(replica);
        let extra = json!({ "shows": "info", "replicas": replicas, "take_up": { "signal": { "name": "HUP" } } });
        let workload = fleet.build(extra);
        while ["a", "b", "c"]
            .iter()
            .any(|name| std::fs::read(fleet.file(&format!("{name}.info"))).is_err())
        {
            tokio::time::sleep(POLL).await;
        }
        let before = fleet.pids();
        assert_eq!(fleet.proofs(&*workload, "new", now()).await, [Proof::Unknown; 3]);
        let written = now();
        fleet.roll(&*workload, "new", written).await.unwrap();
        assert_eq!(fleet.proofs(&*workload, "new", written).await, [Proof::Holds; 3]);
        assert_eq!(fleet.pids(), before);

        let ever = Timestamp::from_millis(-1_000);
        let tomorrow = (now() + Span::days(1)).millis();
        for nonsense in
            ["1767225600000", r#"{"loaded_at": 5}"#, &format!(r#"{{"loaded_at": {tomorrow}}}"#)]
        {
            fleet.write("a.info", nonsense);
            assert_eq!(
                fleet.proofs(&*workload, "new", ever).await[0],
                Proof::Unknown,
                "{nonsense}"
            );
        }
    }

    #[tokio::test]
    async fn every_replica_answers_tokens_at_its_own_address() {
        let fleet = Fleet::start("old").await;
        let base = serve(fleet.folder.path()).await;
        let replica = |name| json!({ "pid_file": format!("{name}.pid"), "token_url": format!("{base}/token") });
        let mut replicas = ["a", "b", "c"].map(replica);
        let workload = fleet.build(json!({ "shows": "environ", "replicas": replicas }));
        assert!(workload.facts().answers_tokens);
        for (status, accepted) in [
            (200, Some(true)),
            (401, Some(false)),
            (403, Some(false)),
            (500, None),
            (302, None),
            (204, None),
        ] {
            let token = SecretValue::new(format!("says-{status}").into_bytes());
            let answers = workload.present(&token).await.unwrap();
            let answers: Vec<_> = answers.iter().map(|answer| answer.accepted).collect();
            assert_eq!(answers, [accepted; 3], "{status}");
        }
        let broken =
            workload.present(&SecretValue::new(b"canary\n".to_vec())).await.expect_err("two lines");
        assert!(!broken.to_string().contains("canary"));

        replicas[1].as_object_mut().unwrap().remove("token_url");
        assert!(
            !fleet
                .build(json!({ "shows": "environ", "replicas": replicas }))
                .facts()
                .answers_tokens
        );
    }

    #[tokio::test]
    async fn h19_preflight_finds_what_a_roll_would_stumble_over() {
        let fleet = Fleet::start("old").await;
        let base = serve(fleet.folder.path()).await;
        let good = fleet.build(json!({ "shows": "environ" })).preflight().await.unwrap();
        assert!(good.iter().all(|finding| finding.severity == Severity::Note), "{good:?}");

        let page = |name| format!("{base}/{name}");
        let replicas = json!([
            { "pid_file": "a.pid", "ready_url": page("missing") },
            // A page that answers everyone alike.
            { "pid_file": "b.pid", "ready_url": page("value"), "token_url": page("value") },
            { "pid_file": "none.pid" },
        ]);
        let findings = fleet
            .build(json!({ "shows": "environ", "replicas": replicas }))
            .preflight()
            .await
            .unwrap();
        let blocks: Vec<_> = findings
            .iter()
            .filter(|f| f.severity == Severity::Blocks)
            .map(|f| &*f.message)
            .collect();
        assert_eq!(
            blocks,
            [
                "replica `a.pid` does not answer 200 at `ready_url`",
                "replica `b.pid` does not answer 401 or 403 at `token_url` without a token, so its answers prove nothing",
                "replica `none.pid`: its pid file cannot be read",
            ]
        );
    }

    #[tokio::test]
    async fn a_command_can_take_the_place_of_a_signal() {
        let fleet = Fleet::start("old").await;
        let argv = ["sh", "-c", "kill $KEYWHEEL_PID && echo $KEYWHEEL_PID_FILE >> rolled"];
        let take_up = json!({ "command": { "argv": argv } });
        let workload = fleet.build(json!({ "shows": "environ", "take_up": take_up }));
        fleet.roll_to(&*workload, "new").await.unwrap();
        assert_eq!(fleet.proofs(&*workload, "new", now()).await, [Proof::Holds; 3]);
        assert_eq!(std::fs::read_to_string(fleet.file("rolled")).unwrap().lines().count(), 3);

        let take_up = json!({ "command": { "argv": ["false"] } });
        let workload = fleet.build(json!({ "shows": "environ", "take_up": take_up }));
        let outcome = fleet.roll_to(&*workload, "newer").await;
        assert_eq!(outcome, Err(CallError::Unknown("command `false` ended with 1".into())));
    }

    #[tokio::test]
    async fn one_workload_has_one_name() {
        let fleet = Fleet::start("old").await;
        let resource =
            |replicas| fleet.build(json!({ "shows": "start", "replicas": replicas })).resource();
        let (a, b) = (json!({ "pid_file": "a.pid" }), json!({ "pid_file": "b.pid" }));
        let roundabout = json!({ "pid_file": "../".to_owned() + fleet.folder.path().file_name().unwrap().to_str().unwrap() + "/a.pid" });
        assert_eq!(resource(json!([a, b])), resource(json!([b, roundabout])));
        let twice = fleet.config(json!({ "shows": "start", "replicas": [a, a] }));
        assert!(twice.build(&Context::at("/")).is_err());
    }
}
