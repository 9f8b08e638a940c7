//! Manifests of Kubernetes: files, folders of them, or what a program writes that puts them together.
//!
//! Templates are not filled in: what `helm template` or `kustomize build` prints is read instead. Of a Secret nothing is handed on but
//! the names of its keys.

use std::io::Read;
use std::path::{Path, PathBuf};

use keywheel_drivers::workload::kubernetes::inventory::Inventory;

use super::Warning;
use super::walk::{LONGEST, SKIPPED};
use crate::config::tree::{Node, Value};
use crate::config::yaml::Dialect;

/// What stands for the standard input.
const STDIN: &str = "-";

/// How deep folders may stand within each other.
const DEPTH: usize = 12;

/// How many files are read.
const FILES: usize = 5_000;

/// Reads manifests.
pub(crate) fn read(paths: &[PathBuf], warnings: &mut Vec<Warning>) -> Inventory {
    let mut reading = Reading { inventory: Inventory::default(), left: FILES, warnings };
    for path in paths {
        match path.to_str() {
            Some(STDIN) => reading.stream("standard input", std::io::stdin().lock()),
            _ if path.is_dir() => reading.folder(path, 0),
            _ => reading.file(path),
        }
    }
    reading.inventory
}

struct Reading<'w> {
    inventory: Inventory,
    left: usize,
    warnings: &'w mut Vec<Warning>,
}

impl Reading<'_> {
    fn warn(&mut self, name: &str, message: impl Into<String>) {
        self.warnings.push(Warning::of(name, message));
    }

    fn folder(&mut self, folder: &Path, depth: usize) {
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => {
                let why = format!("cannot be read: {}", error.kind());
                return self.warn(&folder.display().to_string(), why);
            }
        };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let (name, path) = (entry.file_name(), entry.path());
            let name = name.to_string_lossy();
            // A symlink is none of both, and is followed nowhere.
            let kind = entry.file_type();
            if kind.as_ref().is_ok_and(std::fs::FileType::is_dir) {
                let is_left_out = name.starts_with('.') || SKIPPED.contains(&name.as_ref());
                if !is_left_out && depth < DEPTH {
                    self.folder(&path, depth + 1);
                }
            } else if kind.is_ok_and(|kind| kind.is_file()) && is_manifest(&path) {
                self.file(&path);
            }
        }
    }

    fn file(&mut self, path: &Path) {
        let name = path.display().to_string();
        if self.left == 0 {
            return self.warn(&name, format!("is left out: {FILES} files were read before it"));
        }
        self.left -= 1;
        match std::fs::File::open(path) {
            Ok(file) => self.stream(&name, file),
            Err(error) => self.warn(&name, format!("cannot be read: {}", error.kind())),
        }
    }

    fn stream(&mut self, name: &str, stream: impl Read) {
        let mut text = String::new();
        match stream.take(LONGEST + 1).read_to_string(&mut text) {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                self.warn(name, "is not UTF-8, and is left out");
            }
            Err(error) => self.warn(name, format!("cannot be read: {}", error.kind())),
            Ok(read) if read as u64 > LONGEST => {
                self.warn(name, "is longer than 4 MiB, and is left out");
            }
            Ok(_) => self.documents(name, &text),
        }
    }

    fn documents(&mut self, name: &str, text: &str) {
        let documents = match Node::documents(text, Dialect::Compose) {
            Ok(documents) => documents,
            Err(_) if text.contains("{{") => {
                let message = "is a template, and is left out; give what `helm template` prints, as `--manifests -`";
                return self.warn(name, message);
            }
            Err(problem) => {
                let message = format!("{}; the file is left out", problem.message);
                return self.warnings.push(Warning::of(name, message).line(problem.place.line));
            }
        };
        for document in &documents {
            self.document(name, document);
        }
    }

    fn document(&mut self, name: &str, document: &Node) {
        let is_object = document.get("kind").is_some() && document.get("apiVersion").is_some();
        if is_kustomization(name, document) {
            let message = "kustomize puts manifests together here, and changes them: give what `kustomize build` prints, as `--manifests -`";
            self.warn(name, message);
        } else if is_object && let Err(why) = self.inventory.take(&json(document)) {
            self.warn(name, format!("{why}, and is left out"));
        }
    }
}

fn is_manifest(path: &Path) -> bool {
    let ends = ["yaml", "yml", "json"];
    path.extension().and_then(|end| end.to_str()).is_some_and(|end| ends.contains(&end))
}

fn is_kustomization(name: &str, document: &Node) -> bool {
    let kind = document.get("kind").map(|kind| &kind.value);
    let named = Path::new(name).file_stem().is_some_and(|stem| stem == "kustomization");
    named && document.get("resources").is_some()
        || matches!(kind, Some(Value::Text(kind)) if kind == "Kustomization")
            && document.get("spec").is_none()
}

/// Returns a node as JSON, and of Secrets no value.
fn json(node: &Node) -> serde_json::Value {
    let is_secret = matches!(node.get("kind").map(|kind| &kind.value), Some(Value::Text(kind)) if kind == "Secret");
    match &node.value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Integer(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::Text(text) => text.as_str().into(),
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(entries) => {
            let holds = |key: &str| is_secret && matches!(key, "data" | "stringData");
            let entry = |(key, node): &(crate::config::tree::Key, Node)| {
                let held = if holds(&key.name) { without_values(node) } else { json(node) };
                (key.name.clone(), held)
            };
            entries.iter().map(entry).collect()
        }
    }
}

fn without_values(node: &Node) -> serde_json::Value {
    let keys = node.entries().iter();
    keys.map(|(key, _)| (key.name.clone(), serde_json::Value::Null)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_are_read_and_no_value_of_a_secret_is_handed_on() {
        let text = "apiVersion: v1\nkind: Secret\nmetadata: { name: a }\nstringData: { k: kwcanary }\n---\n---\n\
                    apiVersion: v1\nkind: List\nitems:\n- { apiVersion: v1, kind: Secret, metadata: { name: b }, data: { x: a3djYW5hcnk= } }\n";
        let documents = Node::documents(text, Dialect::Compose).unwrap();
        let told: String = documents.iter().map(|one| json(one).to_string()).collect();
        assert!(!told.contains("kwcanary") && !told.contains("a3dj"), "{told}");
        let mut warnings = Vec::new();
        let mut reading =
            Reading { inventory: Inventory::default(), left: 1, warnings: &mut warnings };
        reading.documents("x.yaml", text);
        let names: Vec<_> = reading.inventory.secrets.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
    }
}
