//! The files below a folder that matter: Compose files, and files of variables.
//!
//! Symlinks to folders are not followed, those to files only within the folder. Depth and number of entries are bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirEntry, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use keywheel_core::secret::SecretValue;
use rustix::fs::OFlags;

use super::Warning;

/// How deep folders may stand within each other.
const DEPTH: usize = 6;

/// How many entries are looked at.
const ENTRIES: usize = 50_000;

/// The longest file that is read.
pub(crate) const LONGEST: u64 = 4 << 20;

/// Names of Compose files, the one that Compose prefers first.
const COMPOSE: [&str; 4] =
    ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];

/// Names of the files that Compose merges into those.
const OVERRIDES: [&str; 4] = [
    "compose.override.yaml",
    "compose.override.yml",
    "docker-compose.override.yaml",
    "docker-compose.override.yml",
];

/// Folders in which nothing of the project itself lies.
pub(crate) const SKIPPED: [&str; 22] = [
    ".git",
    ".hg",
    ".svn",
    ".jj",
    ".cache",
    ".venv",
    ".tox",
    ".next",
    ".nuxt",
    ".gradle",
    ".idea",
    ".terraform",
    ".direnv",
    "__pycache__",
    "bower_components",
    "build",
    "dist",
    "node_modules",
    "site-packages",
    "target",
    "vendor",
    "venv",
];

const EXAMPLES: [&str; 8] =
    ["example", "examples", "sample", "template", "tmpl", "dist", "defaults", "schema"];

const COPIES: [&str; 7] = ["bak", "backup", "old", "orig", "save", "swp", "copy"];

/// The end of the name of a claim, which keywheel itself puts beside a file.
const CLAIM: &str = ".keywheel-claim";

/// What a folder holds, by paths as seen from it.
pub(crate) struct Files {
    /// The folder, without symlinks.
    pub(crate) root: PathBuf,
    /// For each folder with Compose files, the one that counts, and the override beside it.
    pub(crate) compose: Vec<(String, Option<String>)>,
    /// Files of variables.
    pub(crate) env: BTreeSet<String>,
    /// Files of variables that are there to be copied, and should hold no secret.
    pub(crate) examples: BTreeSet<String>,
    /// What was left out, and why.
    pub(crate) warnings: Vec<Warning>,
}

enum Sort {
    Compose,
    Override,
    Env,
    Example,
    Copy,
}

/// Where a path leads.
pub(crate) enum Place {
    /// To a file of the folder; the path is the file's own, without symlinks.
    Inside(String),
    /// Out of the folder.
    Outside,
    /// Nowhere.
    Missing,
    /// To a file whose path cannot stand in a configuration.
    NotText,
}

/// Looks for files.
///
/// # Errors
/// Where the folder itself cannot be read.
pub(crate) fn files(folder: &Path) -> std::io::Result<Files> {
    let root = std::fs::canonicalize(folder)?;
    let mut walk = Walk {
        left: ENTRIES,
        composes: BTreeMap::new(),
        files: Files {
            root: root.clone(),
            compose: Vec::new(),
            env: BTreeSet::new(),
            examples: BTreeSet::new(),
            warnings: Vec::new(),
        },
    };
    let top = std::fs::read_dir(&root)?.flatten().collect();
    walk.folder("", top, 0);
    Ok(walk.finish())
}

struct Walk {
    left: usize,
    /// The names of Compose files and overrides, by folder.
    composes: BTreeMap<String, BTreeSet<String>>,
    files: Files,
}

impl Walk {
    fn folder(&mut self, path: &str, mut entries: Vec<DirEntry>, depth: usize) {
        entries.sort_by_key(DirEntry::file_name);
        for entry in entries {
            if self.left == 0 {
                return;
            }
            self.left -= 1;
            self.entry(path, &entry, depth);
        }
    }

    fn entry(&mut self, folder: &str, entry: &DirEntry, depth: usize) {
        let (Ok(kind), name) = (entry.file_type(), entry.file_name()) else { return };
        let Some(name) = name.to_str() else {
            if sort_of(&name.to_string_lossy()).is_some() {
                let message = "a file here has a name that is no text, and is left out";
                self.warn(Warning::of(if folder.is_empty() { "." } else { folder }, message));
            }
            return;
        };
        let path = joined(folder, name);
        if kind.is_dir() {
            self.below(&path, name, entry, depth);
        } else if let Some(sort) = sort_of(name) {
            self.file(folder, name, &path, sort);
        }
    }

    fn below(&mut self, path: &str, name: &str, entry: &DirEntry, depth: usize) {
        if SKIPPED.contains(&name) || depth + 1 >= DEPTH {
            return;
        }
        match std::fs::read_dir(entry.path()) {
            Ok(entries) => self.folder(path, entries.flatten().collect(), depth + 1),
            Err(error) => self.warn(Warning::of(path, format!("cannot be read: {}", error.kind()))),
        }
    }

    fn file(&mut self, folder: &str, name: &str, path: &str, sort: Sort) {
        let own = match place(&self.files.root, path) {
            Place::Inside(own) => own,
            Place::Outside => {
                let message = "is a symlink that leads out of this folder, and is not read";
                return self.warn(Warning::of(path, message));
            }
            Place::Missing => {
                return self.warn(Warning::of(path, "cannot be reached, and is left out"));
            }
            Place::NotText => {
                return self
                    .warn(Warning::of(path, "leads to a name that is no text, and is left out"));
            }
        };
        match sort {
            Sort::Compose | Sort::Override => {
                let _: bool = self.composes.entry(folder.into()).or_default().insert(name.into());
            }
            Sort::Env => drop(self.files.env.insert(own)),
            Sort::Example => drop(self.files.examples.insert(own)),
            Sort::Copy => self.warn(Warning::of(
                path,
                "looks like a copy of a file of variables, and may hold former values; remove it",
            )),
        }
    }

    fn warn(&mut self, warning: Warning) {
        self.files.warnings.push(warning);
    }

    fn finish(mut self) -> Files {
        for (folder, names) in std::mem::take(&mut self.composes) {
            let mut present = COMPOSE.iter().filter(|name| names.contains(**name));
            let Some(first) = present.next() else { continue };
            for other in present {
                let message = format!("is not read: Compose prefers `{first}` beside it");
                self.warn(Warning::of(&joined(&folder, other), message));
            }
            let over = OVERRIDES.iter().find(|name| names.contains(**name));
            let over = over.map(|name| joined(&folder, name));
            self.files.compose.push((joined(&folder, first), over));
        }
        if self.left == 0 {
            self.warn(Warning {
                file: None,
                line: None,
                message: format!("only the first {ENTRIES} entries of this folder were looked at"),
            });
        }
        self.files
    }
}

fn sort_of(name: &str) -> Option<Sort> {
    if COMPOSE.contains(&name) {
        return Some(Sort::Compose);
    }
    if OVERRIDES.contains(&name) {
        return Some(Sort::Override);
    }
    let parts: Vec<&str> = name.trim_end_matches('~').split('.').collect();
    if !parts.iter().skip(1).any(|part| *part == "env") {
        return None;
    }
    let has = |words: &[&str]| parts.iter().any(|part| words.contains(part));
    Some(match name {
        _ if name.ends_with(CLAIM) => return None,
        _ if name.ends_with('~') || has(&COPIES) => Sort::Copy,
        _ if has(&EXAMPLES) => Sort::Example,
        _ if name.starts_with(".env") || parts.last() == Some(&"env") => Sort::Env,
        _ => return None,
    })
}

/// Puts a name behind a folder.
pub(crate) fn joined(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.into() } else { format!("{folder}/{name}") }
}

/// Finds where a path leads.
pub(crate) fn place(root: &Path, path: &str) -> Place {
    let Ok(own) = std::fs::canonicalize(root.join(path)) else { return Place::Missing };
    match own.strip_prefix(root).map(|path| path.to_str()) {
        Ok(Some(path)) => Place::Inside(path.into()),
        Ok(None) => Place::NotText,
        Err(_) => Place::Outside,
    }
}

/// A file that was read.
pub(crate) struct Contents {
    /// Its bytes.
    pub(crate) text: SecretValue,
    /// Whether every user of the machine may read it.
    pub(crate) open: bool,
}

/// Reads a file of the folder.
///
/// # Errors
/// Why it cannot be, in words that hold nothing of it.
pub(crate) fn read(root: &Path, path: &str) -> Result<Contents, String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {}", error.kind());
    let mut options = File::options();
    // A pipe without a writer would be waited for.
    options.read(true).custom_flags(i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default());
    let file = options.open(root.join(path)).map_err(cannot)?;
    let meta = file.metadata().map_err(cannot)?;
    if !meta.is_file() {
        return Err("is no file".into());
    }
    if meta.len() > LONGEST {
        return Err("is longer than anything that is read here".into());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or_default() + 1);
    let read = file.take(LONGEST).read_to_end(&mut bytes);
    let text = SecretValue::new(bytes);
    read.map_err(cannot)?;
    Ok(Contents { text, open: meta.mode() & 0o004 != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_sorted_by_their_names() {
        let sort = |name: &str| match sort_of(name) {
            None => "none",
            Some(Sort::Compose) => "compose",
            Some(Sort::Override) => "override",
            Some(Sort::Env) => "env",
            Some(Sort::Example) => "example",
            Some(Sort::Copy) => "copy",
        };
        for (name, expected) in [
            ("compose.yaml", "compose"),
            ("docker-compose.override.yml", "override"),
            (".env", "env"),
            (".env.production", "env"),
            ("backend.env", "env"),
            (".env.example", "example"),
            ("example.env", "example"),
            (".env.bak", "copy"),
            (".env~", "copy"),
            ("env", "none"),
            ("app.env.ts", "none"),
            (".env.keywheel-claim", "none"),
            (".envrc", "none"),
            ("environment.yaml", "none"),
        ] {
            assert_eq!(sort(name), expected, "{name}");
        }
    }
}
