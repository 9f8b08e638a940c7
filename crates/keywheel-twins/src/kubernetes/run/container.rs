//! One container of a pod: how it is started, watched, started again and ended, and what is said of it meanwhile.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::events::{Tone, tell};
use super::json::{each, name, namespace, number, second, text, uid};
use super::mounts::{self, Cache, Files, Volumes};
use super::pass::Pass;
use super::probe::{Answer, Probe, ask, known};
use super::runtime::{Given, Launch, Process, Runtime, guarded};

/// What a container needs to know of where it runs.
pub(super) struct Scene<'a> {
    pub(super) pass: &'a Pass<'a>,
    pub(super) cache: &'a Cache,
    pub(super) runtime: &'a Runtime,
    pub(super) pod: &'a Value,
    pub(super) address: Ipv4Addr,
    /// The files of the volumes, once all of them could be mounted.
    pub(super) volumes: Option<&'a Volumes>,
    /// How long a simulated container takes to end when it is asked to; none where it does not listen.
    pub(super) stops_after: Option<Duration>,
}

enum State {
    Waiting { reason: &'static str, message: String, until: Instant },
    Running { since: Instant, started_at: String },
    Ended { what: Value, at: Instant },
}

/// A container on its way to its end.
struct Stopping {
    kill_at: Instant,
    /// What runs before it is asked to end.
    before: Option<Before>,
    asked: bool,
}

enum Before {
    Until(Instant),
    Command(Child),
}

/// A container.
pub(super) struct Container {
    pub(super) name: String,
    state: State,
    /// How many times it was started.
    runs: u32,
    /// How many times in a row it ended soon.
    crashes: u32,
    pulls: u32,
    last: Option<Value>,
    process: Option<Process>,
    given: Option<Given>,
    frozen: Files,
    stopping: Option<Stopping>,
    startup: Probe,
    liveness: Probe,
    readiness: Probe,
    started: bool,
    ready: bool,
}

impl Container {
    /// Makes a container that is created at a moment.
    pub(super) fn new(spec: &Value, at: Instant) -> Self {
        Self {
            name: text(spec, "/name").to_owned(),
            state: State::Waiting {
                reason: "ContainerCreating",
                message: String::new(),
                until: at,
            },
            runs: 0,
            crashes: 0,
            pulls: 0,
            last: None,
            process: None,
            given: None,
            frozen: Files::new(),
            stopping: None,
            startup: Probe::default(),
            liveness: Probe::default(),
            readiness: Probe::default(),
            started: false,
            ready: false,
        }
    }

    /// Takes it one step on.
    pub(super) fn step(&mut self, scene: &Scene<'_>, spec: &Value) {
        let pass = scene.pass;
        if self.process.is_some() {
            return self.watch(scene, spec);
        }
        let due = match &self.state {
            State::Waiting { until, .. } => *until,
            State::Ended { what, at } if restarts(scene.pod, what) => *at + pass.pace.seconds(1),
            State::Ended { .. } | State::Running { .. } => return,
        };
        if pass.now < due {
            return pass.wake_at(due);
        }
        if let State::Ended { what, at } = &self.state {
            let until = *at + pass.pace.of(back_off(self.crashes));
            self.last = Some(what.clone());
            if pass.now < until {
                let message = format!(
                    "back-off {}s restarting failed container={} pod={}_{}({})",
                    back_off(self.crashes).as_secs(),
                    self.name,
                    name(scene.pod),
                    namespace(scene.pod),
                    uid(scene.pod),
                );
                return self.wait(scene, "CrashLoopBackOff", message, until);
            }
        }
        if let Some(volumes) = scene.volumes {
            self.start(scene, spec, volumes);
        }
    }

    /// Lets it wait for a reason, which is told.
    fn wait(&mut self, scene: &Scene<'_>, reason: &'static str, message: String, until: Instant) {
        let pass = scene.pass;
        let event = match reason {
            "CrashLoopBackOff" | "ImagePullBackOff" => "BackOff",
            _ => "Failed",
        };
        tell(pass, scene.pod, Tone::Warning, event, &message);
        self.state = State::Waiting { reason, message, until };
        pass.wake_at(until);
    }

    fn start(&mut self, scene: &Scene<'_>, spec: &Value, volumes: &Volumes) {
        let (pass, image) = (scene.pass, text(spec, "/image"));
        if is_missing(image) {
            return self.pull_in_vain(scene, image);
        }
        let address = scene.address.to_string();
        let env = match mounts::environment(scene.cache, scene.pod, spec, &address) {
            Ok(env) => env,
            Err(missing) => {
                let until = pass.now + pass.pace.seconds(10);
                return self.wait(scene, "CreateContainerConfigError", missing, until);
            }
        };
        self.frozen = mounts::frozen(spec, volumes);
        let given = Given {
            namespace: namespace(scene.pod).to_owned(),
            pod: name(scene.pod).to_owned(),
            uid: uid(scene.pod).to_owned(),
            container: self.name.clone(),
            image: image.to_owned(),
            env,
            files: mounts::mounted(spec, volumes, &self.frozen),
            restarts: self.runs,
        };
        let command = self.command(scene, spec, &given);
        let root = root(scene.runtime, scene.pod, &self.name);
        let laid_out = self.lay_out(scene, spec, volumes);
        let log = log_file(scene.runtime, scene.pod, &self.name, self.runs);
        let launch = Launch { command: &command, address: scene.address, root, log };
        let process =
            laid_out.and_then(|()| Process::start(scene.runtime, &given, &launch, pass.now));
        self.given = Some(given);
        match process {
            Ok(process) => self.process = Some(process),
            Err(error) => {
                let until = pass.now + pass.pace.seconds(10);
                return self.wait(scene, "RunContainerError", error.to_string(), until);
            }
        }
        self.runs += 1;
        let said = format!("Started container {}", self.name);
        tell(pass, scene.pod, Tone::Normal, "Started", &said);
        self.state = State::Running { since: pass.now, started_at: second() };
        (self.startup, self.liveness, self.readiness) = Default::default();
        (self.started, self.ready) = (false, false);
        self.watch(scene, spec);
    }

    fn pull_in_vain(&mut self, scene: &Scene<'_>, image: &str) {
        let pass = scene.pass;
        self.pulls += 1;
        let failed = matches!(&self.state, State::Waiting { reason: "ErrImagePull", .. });
        if failed {
            let until = pass.now + pass.pace.of(back_off(self.pulls));
            let message = format!("Back-off pulling image \"{image}\"");
            return self.wait(scene, "ImagePullBackOff", message, until);
        }
        let message = format!("failed to resolve reference \"{image}\": not found");
        self.wait(scene, "ErrImagePull", message, pass.now + pass.pace.seconds(1));
    }

    /// Writes the files of the volumes where a real process finds them.
    pub(super) fn lay_out(
        &self,
        scene: &Scene<'_>,
        spec: &Value,
        volumes: &Volumes,
    ) -> std::io::Result<()> {
        let Runtime::Processes { .. } = scene.runtime else { return Ok(()) };
        let root = root(scene.runtime, scene.pod, &self.name);
        std::fs::create_dir_all(&root)?;
        mounts::lay_out_frozen(&root, &self.frozen)?;
        mounts::lay_out(&root, scene.pod, spec, volumes)
    }

    fn command(&self, scene: &Scene<'_>, spec: &Value, given: &Given) -> Vec<String> {
        let mut known = given.env.clone();
        let root = root(scene.runtime, scene.pod, &self.name);
        known.insert("VOLUME_ROOT".into(), root.display().to_string());
        known.insert("POD_IP".into(), scene.address.to_string());
        let words = each(spec, "/command").iter().chain(each(spec, "/args"));
        let words = words.filter_map(Value::as_str);
        words.map(|word| mounts::expanded(word, &known)).collect()
    }

    /// Looks after a process.
    fn watch(&mut self, scene: &Scene<'_>, spec: &Value) {
        let pass = scene.pass;
        let Some(process) = &mut self.process else { return };
        if let Some(code) = process.ended(pass.now, pass.pace) {
            return self.end(pass, code);
        }
        if let Some(next) = process.next(pass.now, pass.pace) {
            pass.wake_at(next);
        }
        if self.stopping.is_some() {
            self.go_on_stopping(scene);
            return;
        }
        let State::Running { since, .. } = self.state else { return };
        if !self.started {
            let verdict = self.probe(scene, spec, "startupProbe", since);
            self.started = verdict.unwrap_or(true)
                && (verdict.is_some() || spec.get("startupProbe").is_none());
            if verdict == Some(false) {
                return self.stop(scene, spec);
            }
        }
        if !self.started {
            return;
        }
        let ready = self.probe(scene, spec, "readinessProbe", since);
        self.ready = ready.unwrap_or(spec.get("readinessProbe").is_none());
        if self.probe(scene, spec, "livenessProbe", since) == Some(false) {
            self.stop(scene, spec);
        }
    }

    fn probe(
        &mut self,
        scene: &Scene<'_>,
        spec: &Value,
        which: &str,
        since: Instant,
    ) -> Option<bool> {
        let what = spec.get(which)?;
        let simulated = match self.process.as_ref()? {
            Process::Real(_) => None,
            // A simulated container that is never ready does not hang, so that it lives on.
            process => {
                Some(which == "livenessProbe" || process.is_up(scene.pass.now, scene.pass.pace))
            }
        };
        let command = self.run_inside(scene, what);
        let asked = |within: Duration| -> Answer {
            match simulated {
                Some(answer) => known(answer),
                None => ask(what, spec, scene.address, command, within),
            }
        };
        let probe = match which {
            "startupProbe" => &mut self.startup,
            "livenessProbe" => &mut self.liveness,
            _ => &mut self.readiness,
        };
        probe.verdict(scene.pass, what, since, asked)
    }

    /// Makes the command of a probe or a hook, with what the container was given.
    fn run_inside(&self, scene: &Scene<'_>, action: &Value) -> Option<std::process::Command> {
        let words: Vec<String> = each(action, "/exec/command")
            .iter()
            .filter_map(|it| it.as_str().map(str::to_owned))
            .collect();
        if words.is_empty() {
            return None;
        }
        let mut command = guarded(&words);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("POD_IP", scene.address.to_string())
            .env("VOLUME_ROOT", root(scene.runtime, scene.pod, &self.name))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.envs(self.given.iter().flat_map(|given| &given.env));
        Some(command)
    }

    fn end(&mut self, pass: &Pass<'_>, code: i32) {
        let State::Running { since, started_at } = &self.state else { return };
        if pass.now.duration_since(*since) >= pass.pace.seconds(600) {
            self.crashes = 0;
        }
        let mut what = json!({
            "exitCode": code,
            "reason": if code == 0 { "Completed" } else { "Error" },
            "startedAt": started_at,
            "finishedAt": second(),
        });
        if let Some(given) = &self.given {
            what["containerID"] = container_id(given, self.runs).into();
        }
        self.crashes += 1;
        self.process = None;
        self.stopping = None;
        (self.started, self.ready) = (false, false);
        self.state = State::Ended { what, at: pass.now };
        pass.wake_at(pass.now);
    }

    /// Begins to end it: what has to run before, then the signal, and the other signal when its time is over.
    pub(super) fn stop(&mut self, scene: &Scene<'_>, spec: &Value) {
        if self.process.is_none() || self.stopping.is_some() {
            return;
        }
        let pass = scene.pass;
        let own = number(scene.pod, "/spec/terminationGracePeriodSeconds").unwrap_or(30);
        let grace = number(scene.pod, "/metadata/deletionGracePeriodSeconds").unwrap_or(own);
        let before = self.before(scene, &spec["lifecycle"]["preStop"]);
        let kill_at = pass.now + pass.pace.seconds(grace);
        let said = format!("Stopping container {}", self.name);
        tell(pass, scene.pod, Tone::Normal, "Killing", &said);
        self.stopping = Some(Stopping { kill_at, before, asked: false });
        self.go_on_stopping(scene);
    }

    fn before(&self, scene: &Scene<'_>, hook: &Value) -> Option<Before> {
        let pass = scene.pass;
        if let Some(seconds) = number(hook, "/sleep/seconds") {
            return Some(Before::Until(pass.now + pass.pace.seconds(seconds)));
        }
        match scene.runtime {
            Runtime::Processes { .. } => {
                let mut command = self.run_inside(scene, hook)?;
                command.spawn().ok().map(Before::Command)
            }
            Runtime::Simulated(_) => {
                let words = each(hook, "/exec/command").iter().filter_map(Value::as_str);
                let seconds =
                    words.flat_map(str::split_whitespace).find_map(|word| word.parse().ok())?;
                Some(Before::Until(pass.now + pass.pace.seconds(seconds)))
            }
        }
    }

    fn go_on_stopping(&mut self, scene: &Scene<'_>) {
        let pass = scene.pass;
        let (Some(stopping), Some(process)) = (&mut self.stopping, &mut self.process) else {
            return;
        };
        if !stopping.asked {
            let is_over = match &mut stopping.before {
                None => true,
                Some(Before::Until(end)) => pass.now >= *end,
                Some(Before::Command(child)) => !matches!(child.try_wait(), Ok(None)),
            };
            if is_over || pass.now >= stopping.kill_at {
                end_hook(stopping.before.take());
                process.terminate(pass.now, scene.stops_after.map(|after| pass.pace.of(after)));
                stopping.asked = true;
                stopping.kill_at = stopping.kill_at.max(pass.now + pass.pace.seconds(2));
            }
        } else if pass.now >= stopping.kill_at {
            process.kill();
        }
        if let Some(Before::Until(end)) = stopping.before {
            pass.wake_at(end);
        }
        pass.wake_at(stopping.kill_at.max(pass.now + Duration::from_millis(2)));
        if let Some(next) = process.next(pass.now, pass.pace) {
            pass.wake_at(next);
        }
    }

    /// Returns whether nothing of it runs.
    pub(super) fn is_down(&self) -> bool {
        self.process.is_none()
    }

    /// Returns whether it ended and is not started again: its exit code.
    pub(super) fn outcome(&self, pod: &Value) -> Option<i64> {
        match &self.state {
            State::Ended { what, .. } if !restarts(pod, what) => number(what, "/exitCode"),
            _ => None,
        }
    }

    /// Returns whether it did what it had to do.
    pub(super) fn has_succeeded(&self) -> bool {
        matches!(&self.state, State::Ended { what, .. } if number(what, "/exitCode") == Some(0))
    }

    /// Returns whether it is ready.
    pub(super) fn is_ready(&self) -> bool {
        self.ready && self.process.is_some()
    }

    /// Returns whether it was started at least once.
    pub(super) fn has_run(&self) -> bool {
        self.runs > 0
    }

    /// Returns what it holds now: a volume shows what it is now, everything else what it was at the start.
    pub(super) fn held(&self, spec: &Value, volumes: &Volumes) -> Option<Given> {
        let given = self.given.as_ref().filter(|_| self.process.is_some())?;
        let files = mounts::mounted(spec, volumes, &self.frozen);
        Some(Given { files, ..given.clone() })
    }

    /// Returns its part of the status.
    pub(super) fn status(&self, spec: &Value) -> Value {
        let image = text(spec, "/image");
        let state = match &self.state {
            State::Waiting { reason, message, .. } if message.is_empty() => {
                json!({ "waiting": { "reason": reason } })
            }
            State::Waiting { reason, message, .. } => {
                json!({ "waiting": { "reason": reason, "message": message } })
            }
            State::Running { started_at, .. } => json!({ "running": { "startedAt": started_at } }),
            State::Ended { what, .. } => json!({ "terminated": what }),
        };
        let last =
            self.last.as_ref().map_or_else(|| json!({}), |last| json!({ "terminated": last }));
        let mut status = json!({
            "name": self.name,
            "image": image,
            "imageID": if self.runs > 0 { format!("docker.io/{image}") } else { String::new() },
            "ready": self.is_ready(),
            "started": self.started && self.process.is_some(),
            "restartCount": self.runs.saturating_sub(1),
            "state": state,
            "lastState": last,
        });
        if let Some(given) = self.given.as_ref().filter(|_| self.runs > 0) {
            status["containerID"] = container_id(given, self.runs).into();
        }
        status
    }

    /// Returns where the output of this or the former run is kept.
    pub(super) fn log(&self, runtime: &Runtime, pod: &Value, previous: bool) -> Option<PathBuf> {
        let run = self.runs.checked_sub(if previous { 2 } else { 1 })?;
        Some(log_file(runtime, pod, &self.name, run))
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        end_hook(self.before.take());
    }
}

fn end_hook(hook: Option<Before>) {
    if let Some(Before::Command(mut child)) = hook {
        // Each fails only where it has ended.
        child.kill().ok();
        child.wait().ok();
    }
}

/// How long a container that ended so many times in a row waits for its next start.
fn back_off(crashes: u32) -> Duration {
    match crashes {
        0 | 1 => Duration::ZERO,
        more => Duration::from_secs(10 << (more - 2).min(5)).min(Duration::from_secs(300)),
    }
}

/// Returns whether a container that ended so is started again.
fn restarts(pod: &Value, ended: &Value) -> bool {
    match text(pod, "/spec/restartPolicy") {
        "Never" => false,
        "OnFailure" => number(ended, "/exitCode") != Some(0),
        _ => true,
    }
}

/// Returns whether an image is one that no registry has: its name begins so.
fn is_missing(image: &str) -> bool {
    image.rsplit('/').next().is_some_and(|last| last.starts_with("missing"))
}

fn container_id(given: &Given, run: u32) -> String {
    format!("containerd://{}-{}-{run}", given.uid, given.container)
}

/// Removes what the containers of a pod left on disk, as it is removed with the pod on a node.
pub(super) fn forget(runtime: &Runtime, uid: &str) {
    if let Runtime::Processes { folder } = runtime {
        // A pod that never ran left nothing.
        std::fs::remove_dir_all(folder.join(uid)).ok();
    }
}

fn folder(runtime: &Runtime, pod: &Value) -> PathBuf {
    match runtime {
        Runtime::Processes { folder } => folder.join(uid(pod)),
        Runtime::Simulated(_) => PathBuf::new(),
    }
}

fn root(runtime: &Runtime, pod: &Value, container: &str) -> PathBuf {
    folder(runtime, pod).join(container)
}

fn log_file(runtime: &Runtime, pod: &Value, container: &str, run: u32) -> PathBuf {
    folder(runtime, pod).join(format!("{container}.{run}.log"))
}
