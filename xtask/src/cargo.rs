//! Cargo, as the chores call it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

/// Returns the root of the workspace.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().expect("xtask is a folder of the workspace").to_owned()
}

/// Returns how many tests run side by side: they wait for servers and clocks more than they compute.
pub(crate) fn side_by_side() -> usize {
    3 * std::thread::available_parallelism().map_or(1, usize::from)
}

/// Returns a call of cargo in the workspace, with nothing of the outer call's own settings.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_PKG_")
            || name.starts_with("CARGO_MANIFEST_")
            || name.starts_with("CARGO_BIN_")
        {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Returns the features that tests are built with: every crate's switches, fail points and drivers, so that one build serves all tests.
pub(crate) fn test_features() -> anyhow::Result<String> {
    let mut features = Vec::new();
    for manifest in tracked("toml")?.iter().filter(|manifest| manifest.ends_with("Cargo.toml")) {
        let Some(package) = manifest.split('/').rev().nth(1) else { continue };
        let text = std::fs::read_to_string(root().join(manifest))?;
        let named = ["planted-bugs", "fail-points", "cloud"].into_iter().filter(|feature| {
            text.lines().any(|line| line.starts_with(feature) && line.contains('='))
        });
        features.extend(named.map(|feature| format!("{package}/{feature}")));
    }
    Ok(features.join(","))
}

/// Runs a command to its end and returns what it wrote to its standard output; an error tells the end of what it wrote.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("`{}` cannot be run", told(command)))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}\n{}", told(command), output.status, tail(&errors, 60));
    }
    Ok(output.stdout)
}

/// Returns a command as it would be typed.
pub(crate) fn told(command: &Command) -> String {
    let mut words = vec![
        Path::new(command.get_program())
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
    ];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Returns the last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Returns the files that git tracks and that end in `extension`, relative to the root.
pub(crate) fn tracked(extension: &str) -> anyhow::Result<Vec<String>> {
    let mut git = Command::new("git");
    git.current_dir(root())
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .arg(format!("*.{extension}"));
    let listed = String::from_utf8(output(&mut git)?)?;
    let files: Vec<_> =
        listed.split('\0').filter(|file| root().join(file).is_file()).map(str::to_owned).collect();
    ensure!(!files.is_empty(), "git lists no *.{extension} file");
    Ok(files)
}

/// Something that cargo built and that can be run.
#[derive(Debug)]
pub(crate) struct Built {
    /// The package it belongs to.
    pub(crate) package: String,
    /// The folder of that package, in which its tests run.
    pub(crate) folder: PathBuf,
    /// Whether it is the test of something.
    pub(crate) test: bool,
    /// The program.
    pub(crate) program: PathBuf,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    manifest_path: PathBuf,
    #[serde(default)]
    executable: Option<PathBuf>,
    #[serde(default)]
    profile: Option<Profile>,
    #[serde(default)]
    message: Option<Diagnostic>,
}

#[derive(Deserialize)]
struct Diagnostic {
    level: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Builds every test of the workspace with the switches and fail points in it, and the programs that tests start.
pub(crate) fn build_tests() -> anyhow::Result<Vec<Built>> {
    build(&["test", "--workspace", "--no-run", "--features", &test_features()?])
}

/// Builds, and returns every program that was built.
pub(crate) fn build(arguments: &[&str]) -> anyhow::Result<Vec<Built>> {
    build_warned(arguments).map(|(built, _)| built)
}

/// Builds, and returns every program that was built and how many warnings the compiler had for the workspace.
pub(crate) fn build_warned(arguments: &[&str]) -> anyhow::Result<(Vec<Built>, u64)> {
    let mut cargo = cargo(arguments);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    let messages = String::from_utf8(output(&mut cargo)?)?;
    let (mut built, mut warnings) = (Vec::new(), 0);
    for line in messages.lines() {
        let message: Message =
            serde_json::from_str(line).context("cargo said something else than JSON")?;
        warnings += u64::from(message.message.is_some_and(|told| told.level == "warning"));
        let (Some(program), Some(profile)) = (message.executable, message.profile) else {
            continue;
        };
        let folder = message.manifest_path.parent().unwrap_or(Path::new("")).to_owned();
        let package = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        built.push(Built { package, folder, test: profile.test, program });
    }
    Ok((built, warnings))
}
