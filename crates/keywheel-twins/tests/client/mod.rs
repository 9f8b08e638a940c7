//! Clients of vendors before the twins: where `cargo xtask test` puts them, and how a script runs with them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Returns the Python that has the clients which come as wheels. Without it, the test says that it is skipped.
pub(crate) fn python() -> std::io::Result<Option<PathBuf>> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/clients/bin");
    // It comes with the last of them.
    if tools.join("gitlab").is_file() {
        return Ok(Some(tools.join("python3")));
    }
    let mut out = std::io::stdout();
    writeln!(out, "skipped: the clients of vendors (not installed)")?;
    Ok(None)
}

/// Runs a script of this folder, in a folder of its own, with the words that it is told. It says what it finds wrong.
pub(crate) fn run(python: &Path, script: &str, told: &[&str]) -> std::io::Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script);
    let folder = tempfile::tempdir()?;
    let mut command = Command::new(python);
    command.args(["-I", "-B"]).arg(script).env_clear().current_dir(&folder);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(told.join("\n").as_bytes())?;
    }
    let ended = child.wait_with_output()?;
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    Ok(())
}
