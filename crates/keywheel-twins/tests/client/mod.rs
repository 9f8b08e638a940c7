//! Clients of vendors before the twins: where `cargo xtask test` puts them, and how a script runs with them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Returns the Python that has the clients which come as wheels. Without it, the test says that it is skipped.
pub(crate) fn python() -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/clients/bin");
    // It comes last, with the clients.
    let is_there = tools.join("gitlab").is_file();
    if !is_there {
        writeln!(std::io::stdout(), "skipped: the client is not installed").unwrap();
    }
    is_there.then(|| tools.join("python3"))
}

/// Runs a script of this folder, in a folder of its own, with the words that it is told, and returns what it found wrong.
pub(crate) fn run(python: &Path, script: &str, told: &[&str]) -> Result<(), String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script);
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(python);
    command.args(["-I", "-B"]).arg(script).env_clear().current_dir(&folder);
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(told.join("\n").as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    if ended.status.success() { Ok(()) } else { Err(said) }
}
