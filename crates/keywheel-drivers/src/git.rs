//! Which files git tracks, whose history keeps every value that was committed (H105).

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// How long git may think about one folder.
const WAIT: Duration = Duration::from_secs(5);

/// Asks git which of the files of a folder it tracks; none where it gives no answer. The repository's own configuration runs
/// nothing.
///
/// # Errors
/// Where git cannot be started.
pub async fn tracked(
    folder: &Path,
    names: &[impl AsRef<OsStr>],
) -> io::Result<Option<Vec<String>>> {
    if !folder.ancestors().any(|above| above.join(".git").symlink_metadata().is_ok()) {
        return Ok(Some(Vec::new()));
    }
    let mut git = tokio::process::Command::new("git");
    git.arg("-C").arg(folder);
    git.args(["-c", "core.fsmonitor=false", "--literal-pathspecs", "ls-files", "-z", "--"]);
    git.args(names);
    git.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    git.envs([
        ("GIT_CONFIG_NOSYSTEM", OsStr::new("1")),
        ("GIT_CONFIG_GLOBAL", OsStr::new("/dev/null")),
    ]);
    git.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let Ok(answer) = tokio::time::timeout(WAIT, git.output()).await else { return Ok(None) };
    let output = answer?;
    let names = output.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let names = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    Ok(output.status.success().then_some(names))
}
