//! The kubelet of the one node, and its scheduler: pods are placed, started, watched and ended, and say so in their status.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::container::{Container, Scene};
use super::events::{Tone, tell};
use super::json::{each, is_ending, second, text, uid};
use super::mounts::{self, Cache, Volumes};
use super::pass::Pass;
use super::pods::{is_active, is_finished};
use super::runtime::{Given, Runtime};
use super::{Settings, Switches};
use crate::kubernetes::Kind;

/// The name of the one node.
pub const NODE: &str = "twin-node";

/// The kubelet.
pub(super) struct Kubelet {
    settings: Settings,
    cache: Cache,
    pods: BTreeMap<String, Running>,
    /// The address of the node; those of the pods come after it.
    network: [u8; 3],
    taken: u8,
}

/// A pod of the node.
struct Running {
    address: Ipv4Addr,
    started_at: String,
    /// Init containers run one after the other before the others.
    before: Vec<Container>,
    containers: Vec<Container>,
    volumes: Option<Volumes>,
    annotations: Value,
    next_sync: Instant,
}

/// A container and what it holds now. It has no `Debug`: what it holds is secret.
pub struct Held {
    /// What it was given; files are as they are now.
    pub given: Given,
    /// Whether its pod is asked to end.
    pub is_ending: bool,
}

impl Kubelet {
    pub(super) fn new(settings: &Settings) -> Self {
        let network = match settings.runtime {
            // Two twins on one machine are to have other addresses.
            Runtime::Processes { .. } => {
                let mut random = [0; 2];
                getrandom::fill(&mut random).expect("the operating system gives random bytes");
                [127, 16 + random[0] % 200, random[1]]
            }
            Runtime::Simulated(_) => [10, 244, 0],
        };
        let cache = Cache::new(settings.pace.of(settings.cache_lag));
        Self { settings: settings.clone(), cache, pods: BTreeMap::new(), network, taken: 1 }
    }

    /// Takes every pod of the node one step on.
    pub(super) fn reconcile(&mut self, pass: &Pass<'_>, switches: &Switches) {
        self.cache.note(pass);
        place(pass, switches);
        let present = pass.list(Kind::Pod);
        let is_present = |uid: &str| present.iter().any(|pod| self::uid(pod) == uid);
        let gone: Vec<_> = self.pods.keys().filter(|uid| !is_present(uid)).cloned().collect();
        gone.iter().for_each(|uid| self.forget(uid));
        for pod in present {
            let is_ours = text(&pod, "/spec/nodeName") == NODE;
            if is_ours && (!is_finished(&pod) || is_ending(&pod)) {
                self.run(pass, switches, &pod);
            }
        }
    }

    fn run(&mut self, pass: &Pass<'_>, switches: &Switches, pod: &Arc<Value>) {
        if !self.pods.contains_key(uid(pod)) {
            let running = self.admit(pass, switches, pod);
            self.pods.insert(uid(pod).to_owned(), running);
        }
        let Some(running) = self.pods.get_mut(uid(pod)) else { return };
        running.sync(pass, &self.settings, &self.cache, pod);
        let volumes = running.volumes.take();
        let scene = Scene {
            pass,
            cache: &self.cache,
            runtime: &self.settings.runtime,
            pod,
            address: running.address,
            volumes: volumes.as_ref(),
            stops_after: (!switches.ignores_term).then_some(self.settings.stops_after),
        };
        let is_over = is_ending(pod) && running.stop(&scene);
        if !is_ending(pod) {
            running.step(&scene);
        }
        running.volumes = volumes;
        pass.set_status(Kind::Pod, pod, running.status(pod));
        if is_over {
            self.forget(uid(pod));
            pass.remove(Kind::Pod, pod);
        }
    }

    fn admit(&mut self, pass: &Pass<'_>, switches: &Switches, pod: &Value) -> Running {
        self.taken = self.taken.checked_add(1).unwrap_or(2);
        let [a, b, c] = self.network;
        let slow = switches.slow.filter(|(nth, _)| usize::from(self.taken) % nth.max(&1) == 0);
        let extra = slow.map_or(Duration::ZERO, |(_, extra)| extra);
        let at = pass.now + pass.pace.of(self.settings.creation + extra);
        let made = |at_path: &str| {
            each(pod, at_path).iter().map(|spec| Container::new(spec, at)).collect::<Vec<_>>()
        };
        Running {
            address: Ipv4Addr::new(a, b, c, self.taken),
            started_at: second(),
            before: made("/spec/initContainers"),
            containers: made("/spec/containers"),
            volumes: None,
            annotations: pod["metadata"]["annotations"].clone(),
            next_sync: pass.now,
        }
    }

    /// Ends what still runs of a pod, and removes what it left.
    fn forget(&mut self, uid: &str) {
        self.pods.remove(uid);
        super::container::forget(&self.settings.runtime, uid);
    }

    /// Ends everything at once.
    pub(super) fn end(&mut self) {
        self.pods.clear();
    }

    /// Returns what every container that runs holds now.
    pub(super) fn held(&self, pods: &[Arc<Value>]) -> Vec<Held> {
        let nothing = Volumes::new();
        let mut all = Vec::new();
        for pod in pods {
            let Some(running) = self.pods.get(uid(pod)) else { continue };
            let specs = each(pod, "/spec/containers");
            let volumes = running.volumes.as_ref().unwrap_or(&nothing);
            for (container, spec) in running.containers.iter().zip(specs) {
                let held = container.held(spec, volumes);
                all.extend(held.map(|given| Held { given, is_ending: is_ending(pod) }));
            }
        }
        all
    }

    /// Returns what a container has written, in its present or its former run. A simulated one writes nothing.
    pub(super) fn log(
        &self,
        pod: &Value,
        container: Option<&str>,
        previous: bool,
    ) -> Option<String> {
        let running = self.pods.get(uid(pod))?;
        let mut all = running.containers.iter().chain(&running.before);
        let meant = all.find(|it| container.is_none_or(|name| it.name == name))?;
        let Runtime::Processes { .. } = self.settings.runtime else {
            return meant.has_run().then(String::new);
        };
        std::fs::read_to_string(meant.log(&self.settings.runtime, pod, previous)?).ok()
    }
}

/// Returns the object of the node.
pub(super) fn node() -> Value {
    json!({
        "metadata": { "name": NODE, "labels": {
            "kubernetes.io/arch": architecture(),
            "kubernetes.io/hostname": NODE,
            "kubernetes.io/os": "linux",
        } },
    })
}

/// Returns how the node is.
pub(super) fn node_status() -> Value {
    json!({
        "conditions": [condition(&[], "Ready", true, "KubeletReady")],
        "nodeInfo": { "architecture": architecture(), "operatingSystem": "linux" },
    })
}

/// Returns the architecture of this machine as nodes name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Gives every new pod to the node, as long as it has room.
fn place(pass: &Pass<'_>, switches: &Switches) {
    let pods = pass.list(Kind::Pod);
    let placed = |pod: &Arc<Value>| !text(pod, "/spec/nodeName").is_empty();
    let mut taken = pods.iter().filter(|pod| placed(pod) && !is_finished(pod)).count();
    for pod in pods.iter().filter(|pod| !placed(pod) && is_active(pod)) {
        if switches.capacity.is_none_or(|capacity| taken < capacity) {
            taken += 1;
            pass.change(Kind::Pod, pod, |pod| pod["spec"]["nodeName"] = NODE.into());
            continue;
        }
        let mut status = pod["status"].clone();
        status["phase"] = "Pending".into();
        let former = each(pod, "/status/conditions");
        let mut unplaced = condition(former, "PodScheduled", false, "Unschedulable");
        let said = "0/1 nodes are available: 1 Too many pods.";
        unplaced["message"] = said.into();
        if former.is_empty() {
            tell(pass, pod, Tone::Warning, "FailedScheduling", said);
        }
        status["conditions"] = json!([unplaced]);
        pass.set_status(Kind::Pod, pod, status);
    }
}

impl Running {
    /// Brings the volumes up to date where it is time: after a while, and soon after the annotations of the pod changed.
    fn sync(&mut self, pass: &Pass<'_>, settings: &Settings, cache: &Cache, pod: &Value) {
        if self.annotations != pod["metadata"]["annotations"] {
            self.annotations = pod["metadata"]["annotations"].clone();
            self.next_sync = self.next_sync.min(pass.now + pass.pace.of(ANNOTATED));
        }
        if pass.now < self.next_sync {
            return pass.wake_at(self.next_sync);
        }
        let mut wait = settings.sync_period;
        match mounts::volumes(cache, pod) {
            Ok(volumes) if self.volumes.as_ref() != Some(&volumes) => {
                self.volumes = Some(volumes);
                self.lay_out(pass, settings, cache, pod);
            }
            Ok(_) => {}
            Err(_) if self.volumes.is_some() => {}
            Err(missing) => {
                let said = format!("MountVolume.SetUp failed: {missing}");
                tell(pass, pod, Tone::Warning, "FailedMount", &said);
                wait = Duration::from_secs(1);
            }
        }
        self.next_sync = pass.now + pass.pace.of(wait);
        pass.wake_at(self.next_sync);
    }

    fn lay_out(&self, pass: &Pass<'_>, settings: &Settings, cache: &Cache, pod: &Value) {
        let Some(volumes) = &self.volumes else { return };
        let scene = Scene {
            pass,
            cache,
            runtime: &settings.runtime,
            pod,
            address: self.address,
            volumes: None,
            stops_after: None,
        };
        for (container, spec) in self.containers.iter().zip(each(pod, "/spec/containers")) {
            if container.has_run() {
                // A folder that cannot be written keeps its files, as it does on a node.
                container.lay_out(&scene, spec, volumes).ok();
            }
        }
    }

    fn step(&mut self, scene: &Scene<'_>) {
        let specs = each(scene.pod, "/spec/initContainers");
        for (container, spec) in self.before.iter_mut().zip(specs) {
            if container.outcome(scene.pod) != Some(0) && !container.has_succeeded() {
                return container.step(scene, spec);
            }
        }
        let specs = each(scene.pod, "/spec/containers");
        for (container, spec) in self.containers.iter_mut().zip(specs) {
            container.step(scene, spec);
        }
    }

    /// Ends the containers; tells whether none runs any more.
    fn stop(&mut self, scene: &Scene<'_>) -> bool {
        let mut is_over = true;
        for (at, containers) in
            [("/spec/initContainers", &mut self.before), ("/spec/containers", &mut self.containers)]
        {
            for (container, spec) in containers.iter_mut().zip(each(scene.pod, at)) {
                container.stop(scene, spec);
                if !container.is_down() {
                    container.step(scene, spec);
                }
                is_over &= container.is_down();
            }
        }
        is_over
    }

    fn status(&self, pod: &Value) -> Value {
        let former = each(pod, "/status/conditions");
        let is_ready = self.containers.iter().all(Container::is_ready);
        let is_initialized = self.before.iter().all(Container::has_succeeded);
        let lacking = |holds: bool, why| if holds { "" } else { why };
        let unready = lacking(is_ready, "ContainersNotReady");
        let statuses = |containers: &[Container], at| {
            let specs = containers.iter().zip(each(pod, at));
            specs.map(|(container, spec)| container.status(spec)).collect::<Vec<_>>()
        };
        let mut status = json!({
            "phase": self.phase(pod),
            "conditions": [
                condition(former, "PodScheduled", true, ""),
                condition(former, "Initialized", is_initialized, lacking(is_initialized, "ContainersNotInitialized")),
                condition(former, "ContainersReady", is_ready, unready),
                condition(former, "Ready", is_ready, unready),
            ],
            "containerStatuses": statuses(&self.containers, "/spec/containers"),
            "hostIP": "127.0.0.1",
            "startTime": self.started_at,
            "qosClass": "BestEffort",
        });
        if !self.before.is_empty() {
            status["initContainerStatuses"] = statuses(&self.before, "/spec/initContainers").into();
        }
        if self.before.iter().chain(&self.containers).any(Container::has_run) {
            let address = self.address.to_string();
            status["podIPs"] = json!([{ "ip": address }]);
            status["podIP"] = address.into();
        }
        status
    }

    fn phase(&self, pod: &Value) -> &'static str {
        let outcomes: Vec<_> = self.containers.iter().map(|it| it.outcome(pod)).collect();
        let init_failed =
            self.before.iter().any(|it| it.outcome(pod).is_some_and(|code| code != 0));
        if init_failed {
            "Failed"
        } else if outcomes.iter().all(|outcome| *outcome == Some(0)) {
            "Succeeded"
        } else if outcomes.iter().all(Option::is_some) {
            "Failed"
        } else if self
            .containers
            .iter()
            .all(|container| container.has_run() || container.outcome(pod).is_some())
        {
            "Running"
        } else {
            "Pending"
        }
    }
}

/// How long the kubelet takes to bring the volumes of a pod up to date whose annotations changed.
const ANNOTATED: Duration = Duration::from_millis(500);

/// Returns a condition; the moment of its transition stays where its status does.
fn condition(former: &[Value], kind: &str, holds: bool, reason: &str) -> Value {
    let state = if holds { "True" } else { "False" };
    let stands = former.iter().find(|it| text(it, "/type") == kind && text(it, "/status") == state);
    let since = stands.map_or_else(second, |it| text(it, "/lastTransitionTime").to_owned());
    let mut condition = json!({
        "type": kind,
        "status": state,
        "lastProbeTime": null,
        "lastTransitionTime": since,
    });
    if !reason.is_empty() {
        condition["reason"] = reason.into();
    }
    condition
}
