//! One folder for everything that the tests leave behind, so that one look at it finds what leaked.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

/// A folder that is `TMPDIR`, `HOME` and every XDG folder of the processes that run in it.
pub(crate) struct RunFolder(PathBuf);

impl RunFolder {
    /// Makes one, outside of every work tree: what tests make inside one would be refused there.
    pub(crate) fn make() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("keywheel-run-")
            .tempdir()
            .context("no folder for the run")?
            .keep();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700))?;
        for below in ["tmp", "home", "output"] {
            std::fs::create_dir(folder.join(below))?;
        }
        Ok(Self(folder))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the file that keeps what a stage printed.
    pub(crate) fn output(&self, stage: &str) -> PathBuf {
        self.0.join("output").join(stage)
    }

    /// Sends a process into the folder. Rust's own tools keep their places.
    pub(crate) fn enter(&self, command: &mut Command) {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        for (name, below) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
            command
                .env(name, std::env::var_os(name).map_or_else(|| home.join(below), PathBuf::from));
        }
        command.env("TMPDIR", self.0.join("tmp")).env("HOME", self.0.join("home"));
        for (name, below) in [
            ("XDG_STATE_HOME", ".local/state"),
            ("XDG_DATA_HOME", ".local/share"),
            ("XDG_CONFIG_HOME", ".config"),
            ("XDG_CACHE_HOME", ".cache"),
        ] {
            command.env(name, self.0.join("home").join(below));
        }
        command.env_remove("XDG_RUNTIME_DIR");
    }

    /// Removes the folder.
    pub(crate) fn remove(self) -> anyhow::Result<()> {
        std::fs::remove_dir_all(&self.0).context("the run folder cannot be removed")
    }
}
