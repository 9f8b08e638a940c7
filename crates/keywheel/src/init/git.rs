//! Which of the files that were found git tracks.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;

/// What git says.
#[derive(Default)]
pub(crate) struct Tracked {
    /// The files that it tracks.
    pub(crate) files: BTreeSet<String>,
    /// Folders about which it says nothing, though they lie in a repository.
    pub(crate) silent: BTreeSet<String>,
}

/// Asks git about files, folder by folder.
pub(crate) async fn tracked(root: &Path, files: &BTreeSet<String>) -> Tracked {
    let mut folders: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for file in files {
        let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
        folders.entry(folder).or_default().push(name);
    }
    let mut tracked = Tracked::default();
    for (folder, names) in folders {
        match keywheel_drivers::git::tracked(&root.join(folder), &names).await {
            Ok(Some(found)) => {
                let found = found.iter().map(|name| super::walk::joined(folder, name));
                tracked.files.extend(found);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Ok(None) | Err(_) => drop(tracked.silent.insert(folder.into())),
        }
    }
    tracked
}
