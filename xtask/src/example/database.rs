//! The image of the example's database, from the PostgreSQL that Debian installed here: its programs, what they link, and a
//! shell. For where no image can be pulled; it takes nothing from the network.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;
use rustix::fs::Mode;
use rustix::process::umask;

use crate::{cargo, tools};

/// What the image is called.
const NAME: &str = "keywheel-example-db";

/// Where Debian puts the programs of each version.
const VERSIONS: &str = "/usr/lib/postgresql";

/// The programs that the image needs.
const PROGRAMS: [&str; 4] = ["initdb", "pg_isready", "postgres", "psql"];

/// The only user besides root, of the number that the Dockerfile names.
const USERS: &str = "root:x:0:0::/:/bin/sh\npostgres:x:999:999::/var/lib/postgresql:/bin/sh\n";

pub(super) fn run() -> anyhow::Result<ExitCode> {
    let version = version().context("PostgreSQL is not installed (Debian: `postgresql`)")?;
    let busybox =
        tools::find("busybox").context("`busybox` is not installed (Debian: `busybox-static`)")?;
    // The image keeps the modes of these folders, and its user is not their owner.
    let _former = umask(Mode::WGRP | Mode::WOTH);
    // A folder of its own, since two builds of the image may run at once.
    let context = tempfile::tempdir_in(cargo::root().join("target"))?;
    let root = context.path().join("root");
    let files = [programs(&version), modules(&version)?].concat();
    for file in files.iter().chain(&libraries(&files)?) {
        copy(file, &root)?;
    }
    for folder in [Path::new("/usr/share/postgresql").join(&version), "/usr/share/zoneinfo".into()]
    {
        copy_all(&folder, &root)?;
    }
    fs::create_dir_all(root.join("usr/bin"))?;
    for program in PROGRAMS {
        let place = Path::new(VERSIONS).join(&version).join("bin").join(program);
        symlink(place, root.join("usr/bin").join(program))?;
    }
    fs::create_dir_all(root.join("etc"))?;
    fs::write(root.join("etc/passwd"), USERS)?;
    fs::create_dir_all(root.join("bin"))?;
    fs::copy(busybox, root.join("bin/sh"))?;
    let source = cargo::root().join("examples/compose/database");
    fs::copy(source.join("entrypoint"), root.join("bin/entrypoint"))?;
    fs::copy(source.join("Dockerfile"), context.path().join("Dockerfile"))?;
    fs::create_dir(context.path().join("empty"))?;
    super::image(NAME, context.path())?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the newest version that is installed with its server.
fn version() -> Option<String> {
    let versions = fs::read_dir(VERSIONS).ok()?.flatten();
    let whole = versions.filter(|version| {
        PROGRAMS.iter().all(|program| version.path().join("bin").join(program).is_file())
    });
    let names = whole.filter_map(|version| version.file_name().into_string().ok());
    names.max_by_key(|name| name.parse::<u32>().unwrap_or_default())
}

fn programs(version: &str) -> Vec<PathBuf> {
    let folder = Path::new(VERSIONS).join(version).join("bin");
    PROGRAMS.iter().map(|program| folder.join(program)).collect()
}

/// Returns what the server loads while it runs. Without its compiler of queries, which is larger than all the rest, it interprets.
fn modules(version: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut modules = Vec::new();
    for entry in fs::read_dir(Path::new(VERSIONS).join(version).join("lib"))? {
        let path = entry?.path();
        let is_module = path.extension().is_some_and(|extension| extension == "so");
        if is_module && !path.ends_with("llvmjit.so") {
            modules.push(path);
        }
    }
    Ok(modules)
}

/// Returns the libraries that programs and modules are linked with, and their loader.
fn libraries(files: &[PathBuf]) -> anyhow::Result<BTreeSet<PathBuf>> {
    let told = cargo::output(Command::new("ldd").args(files).stdin(Stdio::null()))?;
    let told = String::from_utf8(told)?;
    let lines = told.lines().filter(|line| line.starts_with(char::is_whitespace));
    let paths = lines.filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

/// Copies a file to the same place below another root; a link becomes what it leads to.
fn copy(file: &Path, root: &Path) -> anyhow::Result<()> {
    let to = root.join(file.strip_prefix("/")?);
    fs::create_dir_all(to.parent().unwrap_or(root))?;
    fs::copy(file, &to).with_context(|| format!("`{}` cannot be copied", file.display()))?;
    Ok(())
}

/// Copies a folder as [`copy`] does, without links that lead nowhere.
fn copy_all(folder: &Path, root: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(folder);
    for entry in entries.with_context(|| format!("`{}` cannot be read", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            copy_all(&path, root)?;
        } else if path.is_file() {
            copy(&path, root)?;
        }
    }
    Ok(())
}
