//! Real servers that tests start for themselves, each in a folder of its own, and end by their process.
//!
//! `cargo xtask test` installs what they need. Where something is missing, the start says what, and the test says `skipped: `
//! with that reason.

pub mod docker;
pub mod lossy;
pub mod ministack;
pub mod openbao;
pub mod pgbouncer;
pub mod podman;
pub mod postgres;
pub mod redis;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use docker::Docker;
use podman::Podman;

/// A container engine of either kind, which several may use.
#[derive(Clone)]
pub enum Engine {
    /// Docker's.
    Docker(Arc<Docker>),
    /// Podman.
    Podman(Arc<Podman>),
}

impl Engine {
    /// Runs the engine's own program against it, and returns what it printed.
    ///
    /// # Panics
    /// Where the program fails.
    pub fn run(&self, arguments: &[&str]) -> String {
        match self {
            Self::Docker(docker) => docker.docker(arguments),
            Self::Podman(podman) => podman.podman(arguments),
        }
    }

    /// Prepares a program that talks to the engine.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        match self {
            Self::Docker(docker) => docker.command(program.as_ref()),
            Self::Podman(podman) => podman.command(program.as_ref()),
        }
    }

    /// Returns the engine's socket.
    pub fn socket(&self) -> PathBuf {
        match self {
            Self::Docker(docker) => docker.socket(),
            Self::Podman(podman) => podman.socket(),
        }
    }
}

/// Returns where a program is found.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}
