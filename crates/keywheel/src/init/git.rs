//! Which files git tracks, whose history keeps every value that was committed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// How long git may think about one folder.
const WAIT: Duration = Duration::from_secs(5);

/// What git says.
#[derive(Default)]
pub(crate) struct Tracked {
    /// The files that it tracks.
    pub(crate) files: BTreeSet<String>,
    /// Folders about which it says nothing, though they lie in a repository.
    pub(crate) silent: BTreeSet<String>,
}

/// Asks git about files. The repository's own configuration runs nothing.
pub(crate) async fn tracked(root: &Path, files: &BTreeSet<String>) -> Tracked {
    let mut folders: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for file in files {
        let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
        folders.entry(folder).or_default().push(name);
    }
    let mut tracked = Tracked::default();
    for (folder, names) in folders {
        let path = root.join(folder);
        if !path.ancestors().any(|above| above.join(".git").symlink_metadata().is_ok()) {
            continue;
        }
        match listed(&path, &names).await {
            Answer::Names(found) => {
                let found = found.iter().map(|name| super::walk::joined(folder, name));
                tracked.files.extend(found);
            }
            Answer::NoGit => {}
            Answer::Silence => drop(tracked.silent.insert(folder.into())),
        }
    }
    tracked
}

enum Answer {
    Names(Vec<String>),
    NoGit,
    Silence,
}

async fn listed(folder: &Path, names: &[&str]) -> Answer {
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
    match tokio::time::timeout(WAIT, git.output()).await {
        Ok(Ok(output)) if output.status.success() => {
            let names = output.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty());
            Answer::Names(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
        }
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => Answer::NoGit,
        _ => Answer::Silence,
    }
}
