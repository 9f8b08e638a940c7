//! Rotations on a Kubernetes cluster, real or stand-in, from the outside: the program itself, pods that are real, and people who
//! use them.
//!
//! Everything happens in one namespace that is made for it and removed at the end, also after a failure or Ctrl-C. Nothing else
//! of the cluster is changed, and its current context is never used.

#![expect(clippy::print_stdout, reason = "it says what it sees")]

mod api;
mod check;
mod edge;
mod ground;
mod manifest;
mod scenarios;
mod shop;
mod stand_in;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api::Api;
use crate::ground::Ground;

pub use crate::scenarios::ALL;
pub use crate::stand_in::StandIn;

/// What is tried where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The context of the kubeconfig.
    pub context: String,
    /// The kubeconfig; none for `KUBECONFIG`, else `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// The image that pods run in; none for `busybox`, or for one like it that a node has already.
    pub image: Option<String>,
    /// Whether the namespace stays.
    pub keep: bool,
    /// The names of the scenarios; none for all.
    pub scenarios: Vec<String>,
    /// The program.
    pub keywheel: PathBuf,
    /// The example application, linked statically.
    pub app: PathBuf,
    /// How many requests are sent each second.
    pub each_second: u32,
    /// Whether users reach pods at their own addresses, and not through the API server.
    pub direct: bool,
    /// How soon after the first crash a bad value must be undone; none where the machine is too busy to tell.
    pub undone_within: Option<Duration>,
}

/// How many scenarios went well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that did.
    pub passed: u64,
    /// Those that did not.
    pub failed: u64,
}

/// Checks the cluster, runs the scenarios, and removes what they made.
///
/// # Errors
/// Where the cluster cannot be used, the run was stopped, or the namespace could not be removed.
pub fn run(options: &Options) -> anyhow::Result<Counts> {
    for name in &options.scenarios {
        let known = ALL.iter().any(|(known, _)| known == name);
        ensure!(
            known,
            "there is no scenario `{name}`; there are {}",
            ALL.map(|(known, _)| known).join(", ")
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    let namespace = format!("keywheel-e2e-{}", &shop::random()[..8]);
    let mut stop = runtime.block_on(async { Stop::listen() })?;
    let context = options.context.as_str();
    println!("== kubernetes: context `{context}`");
    let api = runtime.block_on(async {
        tokio::select! {
            api = begin(options, namespace.clone()) => api,
            () = stop.asked() => bail!("it was stopped"),
        }
    })?;
    let mut ground = runtime.block_on(Ground::make(api, options))?;
    say(&format!("namespace `{namespace}`, which is removed at the end"));
    let tried = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            tokio::select! {
                counts = try_all(&mut ground, options) => counts,
                () = stop.asked() => bail!("it was stopped"),
            }
        })
    }));
    let command = format!("kubectl --context {context} delete namespace {namespace}");
    if options.keep {
        say(&format!("the namespace stays; `{command}` removes it"));
    } else {
        say("removing the namespace");
        let removed = runtime.block_on(async {
            tokio::select! {
                removed = ground.remove() => removed,
                () = stop.asked() => bail!("it was stopped"),
            }
        });
        removed.with_context(|| format!("the namespace may still be there: `{command}`"))?;
    }
    let counts = tried.unwrap_or_else(|panic| resume_unwind(panic))?;
    println!("   kubernetes: {} passed, {} failed, 0 skipped", counts.passed, counts.failed);
    Ok(counts)
}

/// How long a cluster that was just started may take to answer, and its node to be ready.
const UP_WITHIN: Duration = Duration::from_secs(90);

/// Reaches the cluster and checks it; nothing is changed.
async fn begin(options: &Options, namespace: String) -> anyhow::Result<Api> {
    let api = Api::connect(&options.context, options.kubeconfig.as_deref(), namespace).await?;
    let end = Instant::now() + UP_WITHIN;
    loop {
        match check::check(&api, ground::architecture()).await {
            Ok(all) => {
                all.iter().for_each(|told| say(told));
                return Ok(api);
            }
            Err(error) if Instant::now() >= end || !check::may_pass(&error) => return Err(error),
            Err(error) => say(&format!("waiting: {error:#}")),
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

async fn try_all(ground: &mut Ground, options: &Options) -> anyhow::Result<Counts> {
    ground.fill(&options.app).await?;
    let mut counts = Counts::default();
    for (name, about) in ALL {
        if !options.scenarios.is_empty() && !options.scenarios.iter().any(|wanted| wanted == name) {
            continue;
        }
        let begun = Instant::now();
        let seen = scenarios::run(name, ground).await;
        let took = begun.elapsed().as_secs_f64();
        match seen {
            Ok(saw) => {
                counts.passed += 1;
                say(&format!("{name}: passed ({took:.1} s): {about}: {saw}"));
            }
            Err(error) => {
                counts.failed += 1;
                say(&format!("{name}: failed ({took:.1} s): {about}: {error:#}"));
                println!("{}", ground.events().await);
            }
        }
        ground.clear().await?;
    }
    Ok(counts)
}

fn say(what: &str) {
    println!("   {what}");
}

/// Whoever wants it to stop: by Ctrl-C, or as services are ended.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("signals cannot be listened to");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
