//! Rotations on a cluster that somebody gives, in a namespace of their own: builds what they need, and hands over to it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;

use crate::{cargo, example};

/// Where.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    target: Target,
}

#[derive(clap::Subcommand)]
enum Target {
    /// On a Kubernetes cluster, in a namespace that is made for it and removed at the end
    Kubernetes(Kubernetes),
}

#[derive(clap::Args)]
struct Kubernetes {
    /// The context of the kubeconfig; the current one is never used.
    #[arg(long, required_unless_present = "stand_in")]
    context: Option<String>,
    /// The kubeconfig; without it, `KUBECONFIG`, else `~/.kube/config`.
    #[arg(long, requires = "context")]
    kubeconfig: Option<PathBuf>,
    /// Takes the stand-in of a cluster, whose pods are processes of this machine.
    #[arg(long, conflicts_with = "context")]
    stand_in: bool,
    /// The image that pods run in: any that has `sh`, `cat`, `chmod` and `sleep` [default: busybox:1.36, or one like it that a node has].
    #[arg(long)]
    image: Option<String>,
    /// Keeps the namespace, to look into it.
    #[arg(long)]
    keep: bool,
    /// Runs only this scenario; may be named several times.
    #[arg(long = "scenario")]
    scenarios: Vec<String>,
    /// Lets users reach pods at their own addresses, where this machine can, and not through the API server.
    #[arg(long)]
    direct: bool,
    /// How many requests users send each second; at less than 25, kept connections are too seldom told that a pod ends.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(25..))]
    each_second: u32,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Target::Kubernetes(args) = &args.target;
    println!("   building the program, the application and the scenarios");
    let app = shipped()?;
    let keywheel = program("keywheel")?;
    let mut scenarios = Command::new(program("keywheel-e2e")?);
    scenarios.arg("--keywheel").arg(keywheel).arg("--app").arg(app);
    scenarios.args(["--each-second", &args.each_second.to_string()]);
    for scenario in &args.scenarios {
        scenarios.args(["--scenario", scenario]);
    }
    if let Some(image) = &args.image {
        scenarios.args(["--image", image]);
    }
    if let Some(context) = &args.context {
        scenarios.args(["--context", context]);
    }
    if let Some(kubeconfig) = &args.kubeconfig {
        scenarios.arg("--kubeconfig").arg(kubeconfig);
    }
    let flags = [(args.keep, "--keep"), (args.stand_in, "--stand-in"), (args.direct, "--direct")];
    for (is_set, flag) in flags {
        if is_set {
            scenarios.arg(flag);
        }
    }
    // In the place of this process, so that Ctrl-C reaches who has to clean up, and nobody else.
    Err(scenarios.exec()).context("the scenarios cannot be started")
}

fn program(package: &str) -> anyhow::Result<PathBuf> {
    let built = cargo::build(&["build", "--quiet", "-p", package])?;
    let found = built.into_iter().map(|built| built.program).next();
    found.with_context(|| format!("cargo built no program `{package}`"))
}

/// Builds the example application, linked statically, and leaves out of it what only a debugger reads.
fn shipped() -> anyhow::Result<PathBuf> {
    let built = example::build()?;
    let shipped = built.with_extension("shipped");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&shipped).arg(&built).stdin(Stdio::null());
    let is_stripped = strip.status().is_ok_and(|status| status.success());
    if !is_stripped {
        copy(&built, &shipped)?;
    }
    Ok(shipped)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let _bytes =
        fs::copy(from, to).with_context(|| format!("`{}` cannot be copied", from.display()))?;
    Ok(())
}
