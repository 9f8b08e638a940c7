//! What makes the objects of the cluster come true: controllers, a scheduler, the kubelet of one node, and what runs in containers.
//!
//! All of it is one loop on a thread of its own, which looks at the objects whenever one changed or a wait is over. Waits are those
//! of a real cluster, divided by one [`Pace`].

mod accounts;
mod container;
mod daemon_set;
mod deployment;
mod disruption;
mod events;
mod jobs;
mod json;
mod kubelet;
mod mounts;
mod pace;
mod pass;
mod pods;
mod probe;
mod replica_set;
mod revision;
mod rolling;
mod runtime;
mod service;
mod stateful_set;
mod template;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use self::kubelet::Kubelet;
use self::pass::Pass;
use self::pods::Readiness;
use super::api::{Insides, LogOf, Logs};
use super::exec::Inside;
use super::{Key, Kind, Objects};

pub use self::kubelet::{Held, NODE};
pub use self::pace::Pace;
pub use self::runtime::{Fate, Given, Judge, Runtime};
pub use self::service::Balancer;

/// How the cluster runs where nothing goes wrong.
#[derive(Clone)]
pub struct Settings {
    /// How fast time runs.
    pub pace: Pace,
    /// What runs in containers.
    pub runtime: Runtime,
    /// How far what the kubelet knows of a Secret is behind.
    pub cache_lag: Duration,
    /// How often the kubelet brings volumes up to date.
    pub sync_period: Duration,
    /// How long it takes to make a container.
    pub creation: Duration,
    /// How long a simulated container takes to end once it is asked to.
    pub stops_after: Duration,
    /// How far a Service is behind the pods that it stands for.
    pub endpoint_lag: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pace: Pace::REAL,
            runtime: Runtime::simulated(Duration::from_secs(2)),
            cache_lag: Duration::from_millis(100),
            sync_period: Duration::from_secs(60),
            creation: Duration::from_millis(800),
            stops_after: Duration::from_millis(200),
            endpoint_lag: Duration::from_millis(200),
        }
    }
}

/// What goes wrong in the cluster, until it is switched back.
#[derive(Clone, Debug, Default)]
pub struct Switches {
    /// How many pods the node takes; the others stay pending.
    pub capacity: Option<usize>,
    /// Nothing is done about Deployments and their like: what is observed stays as it is.
    pub controllers_are_stopped: bool,
    /// Simulated containers do not heed the signal to end.
    pub ignores_term: bool,
    /// Every so many pods take so much longer to start.
    pub slow: Option<(usize, Duration)>,
}

/// A cluster that runs. It ends when it is dropped, with every process that it started.
pub struct Run {
    objects: Objects,
    settings: Settings,
    shared: Arc<Mutex<Shared>>,
    poke: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    kubelet: Kubelet,
    switches: Switches,
}

impl Run {
    /// Starts to make objects come true.
    ///
    /// # Errors
    /// Where no thread can be had.
    pub fn start(objects: &Objects, settings: Settings) -> io::Result<Self> {
        let (node, status) = (kubelet::node(), kubelet::node_status());
        // It fails only where there is one already.
        objects.create(Kind::Node, node, "kubelet").ok();
        let key = Key::of_cluster(Kind::Node, NODE);
        objects.change_status(&key, "kubelet", |node| node["status"] = status).ok();
        let shared = Shared { kubelet: Kubelet::new(&settings), switches: Switches::default() };
        let shared = Arc::new(Mutex::new(shared));
        let (poke, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let work = Loop {
            objects: objects.clone(),
            shared: Arc::clone(&shared),
            pace: settings.pace,
            readiness: Readiness::default(),
            progress: deployment::Progress::default(),
        };
        let thread = std::thread::Builder::new()
            .name("cluster".into())
            .spawn(move || runtime.block_on(work.run(stopped)))?;
        Ok(Self { objects: objects.clone(), settings, shared, poke, thread: Some(thread) })
    }

    /// Returns what every container that runs holds now.
    pub fn held(&self) -> Vec<Held> {
        let pods = self.objects.list(Kind::Pod, None).0;
        lock(&self.shared).kubelet.held(&pods)
    }

    /// Returns what hands over the log of a container.
    pub(super) fn logs(&self) -> Logs {
        let (objects, shared) = (self.objects.clone(), Arc::clone(&self.shared));
        Arc::new(move |of: &LogOf| {
            let pod = objects.get(&of.pod)?;
            lock(&shared).kubelet.log(&pod, of.container.as_deref(), of.previous)
        })
    }

    /// Returns what shows what a container was given.
    pub(super) fn insides(&self) -> Insides {
        let (objects, shared) = (self.objects.clone(), Arc::clone(&self.shared));
        Arc::new(move |of: &Inside| {
            let pod = objects.get(&of.pod)?;
            let held = lock(&shared).kubelet.held(&[pod]).into_iter().map(|held| held.given);
            let is_meant = |given: &Given| {
                of.container.as_ref().is_none_or(|container| *container == given.container)
            };
            held.into_iter().find(is_meant)
        })
    }

    /// Changes what goes wrong.
    pub fn switch(&self, change: impl FnOnce(&mut Switches)) {
        change(&mut lock(&self.shared).switches);
        self.poke.send_replace(false);
    }

    /// Serves the first port of a Service on a free port of the loopback address.
    ///
    /// # Errors
    /// Where no port or no thread can be had.
    pub fn serve(&self, namespace: &str, service: &str) -> io::Result<Balancer> {
        let service = Key::new(Kind::Service, namespace, service);
        let lag = self.settings.pace.of(self.settings.endpoint_lag);
        Balancer::start(&self.objects, service, lag)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.poke.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // It fails only where the thread panicked, which its own message has told.
            thread.join().ok();
        }
    }
}

/// The loop.
struct Loop {
    objects: Objects,
    shared: Arc<Mutex<Shared>>,
    pace: Pace,
    readiness: Readiness,
    progress: deployment::Progress,
}

impl Loop {
    async fn run(mut self, mut poked: watch::Receiver<bool>) {
        let mut changed = self.objects.changed();
        while !*poked.borrow_and_update() {
            changed.borrow_and_update();
            let next = self.pass();
            let wait = next.map_or(LONGEST, |next| next.saturating_duration_since(Instant::now()));
            tokio::select! {
                // It fails only where the objects are gone, which are kept here.
                _ = changed.changed() => {}
                _ = poked.changed() => {}
                () = tokio::time::sleep(wait.min(LONGEST)) => {}
            }
        }
        lock(&self.shared).kubelet.end();
    }

    /// Looks at everything once; returns when it is to be looked at again although nothing changed.
    fn pass(&mut self) -> Option<Instant> {
        let mut shared = lock(&self.shared);
        let Shared { kubelet, switches } = &mut *shared;
        self.readiness.note(&self.objects.list(Kind::Pod, None).0, Instant::now());
        let pass = Pass::new(&self.objects, &self.readiness, self.pace);
        if !switches.controllers_are_stopped {
            accounts::reconcile(&pass);
            deployment::reconcile(&pass, &mut self.progress);
            replica_set::reconcile(&pass);
            stateful_set::reconcile(&pass);
            daemon_set::reconcile(&pass);
            jobs::reconcile(&pass);
            disruption::reconcile(&pass);
        }
        let pass = pass.by("kubelet");
        kubelet.reconcile(&pass, switches);
        pass.next()
    }
}

/// How long nothing is looked at, at the most.
const LONGEST: Duration = Duration::from_secs(1);

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
