//! The program of the example for Docker Compose, linked statically, and the image that holds nothing else; and, where somebody
//! asks for it, the image of its database.

mod database;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, ensure};

use crate::cargo;

/// What the image, its program and their folder are called.
const NAME: &str = "keywheel-example";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Builds the image of the database instead, from the PostgreSQL that is installed here.
    #[arg(long)]
    database: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.database {
        return database::run();
    }
    let program = build()?;
    let context = cargo::root().join("target").join(NAME);
    fs::create_dir_all(&context)?;
    // Written beside and renamed, since two builds of the image may run at once.
    for (from, name) in [(program, NAME), (cargo::root().join(DOCKERFILE), "Dockerfile")] {
        let staged = context.join(format!("{name}.{}", std::process::id()));
        fs::copy(from, &staged)?;
        fs::rename(staged, context.join(name))?;
    }
    image(NAME, &context)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds an image from a folder with its `Dockerfile`.
fn image(name: &str, context: &Path) -> anyhow::Result<()> {
    let mut docker = Command::new("docker");
    docker.args(["build", "--quiet", "--tag", name]).arg(context);
    let status = docker.stdin(Stdio::null()).stdout(Stdio::null()).status();
    ensure!(status.context("`docker` cannot be run")?.success(), "the image cannot be built");
    println!("image {name}");
    Ok(())
}

const DOCKERFILE: &str = "examples/compose/Dockerfile";

/// Builds the program for this machine's own target by name, so that build scripts and macros stay as they are.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    let target = target()?;
    let mut cargo = cargo::cargo(&["build", "--quiet", "-p", NAME, "--target", &target]);
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    // Fast enough for many users on a small machine, and built in half the time of a release.
    cargo.env("CARGO_PROFILE_DEV_OPT_LEVEL", "1").env("CARGO_PROFILE_DEV_DEBUG", "0");
    let _built = cargo::output(&mut cargo)?;
    Ok(cargo::root().join("target").join(target).join("debug").join(NAME))
}

fn target() -> anyhow::Result<String> {
    let told = cargo::output(Command::new("rustc").arg("-vV").stdin(Stdio::null()))?;
    let told = String::from_utf8(told)?;
    let host = told.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say what it builds for")?.to_owned())
}
