//! Real servers that tests start for themselves, each in a folder of its own, and end by their process.
//!
//! `cargo xtask test` installs what they need. Where something is missing, the start says what, and the test says `skipped: `
//! with that reason.

pub mod docker;
pub mod podman;
pub mod postgres;

use std::path::PathBuf;

/// Returns where a program is found.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}
