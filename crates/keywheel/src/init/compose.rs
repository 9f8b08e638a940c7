//! Compose files: which services there are, and from where each takes its variables and files.
//!
//! What is read is what says who reads a credential. `extends` and `include` are not followed, and said so. Whether Compose
//! would take the file at all is Compose's affair.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use keywheel_core::secret::SecretValue;

use super::interpolation::{Taken, taken};
use super::walk::{Files, Place, place, read};
use super::{Warning, walk};
use crate::config::suggest::shown;
use crate::config::tree::{Node, Value};
use crate::config::yaml::Dialect;

/// One Compose project: the file of a folder, with what its override adds.
pub(crate) struct Project {
    /// The file.
    pub(crate) file: String,
    /// The files that Compose merges into it.
    pub(crate) overs: Vec<String>,
    /// Its folder, empty for the folder that is looked at.
    pub(crate) folder: String,
    /// Its name, where the file says it.
    pub(crate) name: Option<String>,
    /// The name under which its containers run, where Compose was given another one than it would find by itself.
    pub(crate) runs_as: Option<String>,
    /// The services.
    pub(crate) services: Vec<Service>,
    /// The top-level `secrets`.
    pub(crate) secrets: Vec<Mounted>,
}

/// A service.
#[derive(Default)]
pub(crate) struct Service {
    /// Its name.
    pub(crate) name: String,
    /// How many containers it has, where the file or the containers say a number.
    pub(crate) replicas: Option<i64>,
    /// What `env_file` lists, in its order.
    pub(crate) env_files: Vec<EnvFile>,
    /// What `environment` sets.
    pub(crate) environment: Vec<Entry>,
    /// The variables that are interpolated anywhere else in it.
    pub(crate) elsewhere: BTreeSet<String>,
    /// The names of the `secrets` that it mounts.
    pub(crate) secrets: BTreeSet<String>,
}

/// A file that `env_file` lists.
pub(crate) struct EnvFile {
    /// The file.
    pub(crate) path: String,
    /// Whether it is read without quotes and expansion.
    pub(crate) raw: bool,
}

/// One variable of `environment`.
pub(crate) struct Entry {
    /// Its name.
    pub(crate) name: String,
    /// The file that sets it.
    pub(crate) file: String,
    /// The line.
    pub(crate) line: u64,
    /// What it is set to.
    pub(crate) setting: Setting,
}

/// What a variable is set to.
pub(crate) enum Setting {
    /// Nothing: it is taken from Compose's own environment.
    Inherited,
    /// A text that takes no variable.
    Literal(SecretValue),
    /// A text that takes some.
    Taken(Taken),
}

/// A top-level secret.
pub(crate) struct Mounted {
    /// Its name.
    pub(crate) name: String,
    /// Where it comes from.
    pub(crate) source: Source,
}

/// Where a top-level secret comes from.
pub(crate) enum Source {
    /// A file.
    File(String),
    /// A variable of the project.
    Variable(String),
}

/// Reads every project.
pub(crate) fn projects(files: &Files, warnings: &mut Vec<Warning>) -> Vec<Project> {
    files.compose.iter().filter_map(|(file, over)| project(files, file, over, warnings)).collect()
}

fn project(
    files: &Files,
    file: &str,
    over: &Option<String>,
    warnings: &mut Vec<Warning>,
) -> Option<Project> {
    let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut reading = Reading { root: &files.root, folder, file, warnings };
    let mut project = reading.whole()?;
    if let Some(over) = over {
        reading.file = over;
        if let Some(more) = reading.whole() {
            merge(&mut project, more);
            project.overs = vec![over.clone()];
        }
    }
    Some(project)
}

/// Lays what an override says over the project.
fn merge(project: &mut Project, more: Project) {
    project.name = more.name.or(project.name.take());
    for secret in more.secrets {
        project.secrets.retain(|one| one.name != secret.name);
        project.secrets.push(secret);
    }
    for service in more.services {
        match project.services.iter_mut().find(|one| one.name == service.name) {
            None => project.services.push(service),
            Some(present) => lay_over(present, service),
        }
    }
}

fn lay_over(present: &mut Service, service: Service) {
    present.replicas = service.replicas.or(present.replicas);
    present.env_files.extend(service.env_files);
    present.elsewhere.extend(service.elsewhere);
    present.secrets.extend(service.secrets);
    for entry in service.environment {
        present.environment.retain(|one| one.name != entry.name);
        present.environment.push(entry);
    }
}

struct Reading<'a> {
    root: &'a Path,
    folder: &'a str,
    file: &'a str,
    warnings: &'a mut Vec<Warning>,
}

impl Reading<'_> {
    fn warn(&mut self, node: &Node, message: impl Into<String>) {
        self.warnings.push(Warning::of(self.file, message).line(node.place.line));
    }

    fn whole(&mut self) -> Option<Project> {
        let tree = self.tree()?;
        if let Some(include) = tree.get("include") {
            self.warn(
                include,
                "`include` is not followed; services of the included files are missing",
            );
        }
        let services = tree.get("services").map(Node::entries).unwrap_or_default();
        let secrets = tree.get("secrets").map(Node::entries).unwrap_or_default();
        Some(Project {
            file: self.file.into(),
            overs: Vec::new(),
            folder: self.folder.into(),
            name: tree
                .get("name")
                .and_then(text)
                .filter(|name| !name.contains('$'))
                .map(Into::into),
            runs_as: None,
            services: services
                .iter()
                .filter_map(|(key, node)| self.service(&key.name, node))
                .collect(),
            secrets: secrets
                .iter()
                .filter_map(|(key, node)| self.mounted(&key.name, node))
                .collect(),
        })
    }

    fn tree(&mut self) -> Option<Node> {
        let contents = read(self.root, self.file);
        let contents =
            contents.map_err(|why| self.warnings.push(Warning::of(self.file, why))).ok()?;
        let Ok(text) = std::str::from_utf8(contents.text.expose()) else {
            self.warnings.push(Warning::of(self.file, "is not UTF-8, and is left out"));
            return None;
        };
        match Node::parse_as(text, Dialect::Compose) {
            Ok(tree) => Some(tree),
            Err(problem) => {
                let message = format!("{}; the file is left out", problem.message);
                let warning = Warning::of(self.file, message).line(problem.place.line);
                self.warnings.push(warning);
                None
            }
        }
    }

    fn service(&mut self, name: &str, node: &Node) -> Option<Service> {
        if !is_service_name(name) {
            self.warn(node, "a service here has a name that Compose does not take");
            return None;
        }
        if let Some(extends) = node.get("extends") {
            let message = format!(
                "service `{}` extends another one, which is not followed; what it takes from there is missing",
                shown(name)
            );
            self.warn(extends, message);
        }
        let replicas = node.at(&["deploy", "replicas"]).or_else(|| node.get("scale"));
        Some(Service {
            name: name.into(),
            replicas: replicas.and_then(|node| match node.value {
                Value::Integer(count) if count > 1 => Some(count),
                _ => None,
            }),
            env_files: node.get("env_file").map(|node| self.env_files(node)).unwrap_or_default(),
            environment: node
                .get("environment")
                .map(|node| self.environment(node))
                .unwrap_or_default(),
            elsewhere: elsewhere(node),
            secrets: node.get("secrets").map(mounts).unwrap_or_default(),
        })
    }

    fn env_files(&mut self, node: &Node) -> Vec<EnvFile> {
        match &node.value {
            Value::List(items) => items.iter().filter_map(|item| self.env_file(item)).collect(),
            _ => self.env_file(node).into_iter().collect(),
        }
    }

    fn env_file(&mut self, node: &Node) -> Option<EnvFile> {
        let required = !matches!(node.get("required").map(|n| &n.value), Some(Value::Bool(false)));
        let raw = node.get("format").and_then(text) == Some("raw");
        let path = text(node.get("path").unwrap_or(node))?;
        let path = self.path(node, path, "an `env_file`", required)?;
        Some(EnvFile { path, raw })
    }

    /// Returns the file of the folder that a path of the Compose file means.
    fn path(&mut self, node: &Node, path: &str, what: &str, required: bool) -> Option<String> {
        if !taken(path).names.is_empty() {
            self.warn(
                node,
                format!("{what} has a name that hangs on variables, and is not followed"),
            );
            return None;
        }
        match place(self.root, &from_folder(self.folder, &path.replace("$$", "$"))) {
            Place::Inside(path) => Some(path),
            Place::Missing if !required => None,
            Place::Missing => {
                self.warn(node, format!("{what} is named here and does not exist"));
                None
            }
            Place::Outside | Place::NotText => {
                self.warn(node, format!("{what} lies outside of this folder, and is not read"));
                None
            }
        }
    }

    fn environment(&mut self, node: &Node) -> Vec<Entry> {
        let entry = |name: &str, node: &Node, setting| Entry {
            name: name.into(),
            file: self.file.into(),
            line: node.place.line,
            setting,
        };
        match &node.value {
            Value::Map(entries) => {
                entries.iter().map(|(key, node)| entry(&key.name, node, setting(node))).collect()
            }
            Value::List(items) => items
                .iter()
                .filter_map(|item| {
                    let text = text(item)?;
                    Some(match text.split_once('=') {
                        Some((name, value)) => entry(name, item, set_to(value)),
                        None => entry(text, item, Setting::Inherited),
                    })
                })
                .collect(),
            _ => Vec::new(),
        }
    }

    fn mounted(&mut self, name: &str, node: &Node) -> Option<Mounted> {
        let variable = node.get("environment").and_then(text);
        let source = match node.get("file") {
            Some(file) => {
                let path = text(file)?;
                Source::File(self.path(file, path, "the file of a secret", true)?)
            }
            None => Source::Variable(variable?.into()),
        };
        Some(Mounted { name: name.into(), source })
    }
}

/// Every variable outside of `environment` and `env_file`: in `command`, labels, build arguments and so on.
fn elsewhere(service: &Node) -> BTreeSet<String> {
    let others = service
        .entries()
        .iter()
        .filter(|(key, _)| key.name != "environment" && key.name != "env_file");
    others.flat_map(|(_, node)| node.texts()).flat_map(|text| taken(text).names).collect()
}

fn mounts(node: &Node) -> BTreeSet<String> {
    let Value::List(items) = &node.value else { return BTreeSet::new() };
    let source =
        |item: &Node| text(item).or_else(|| item.get("source").and_then(text)).map(Into::into);
    items.iter().filter_map(source).collect()
}

fn setting(node: &Node) -> Setting {
    match &node.value {
        Value::Null => Setting::Inherited,
        Value::Text(text) => set_to(text),
        Value::Integer(number) => set_to(&number.to_string()),
        Value::Float(number) => set_to(&number.to_string()),
        Value::Bool(_) | Value::List(_) | Value::Map(_) => set_to(""),
    }
}

fn set_to(text: &str) -> Setting {
    let taken = taken(text);
    if taken.names.is_empty() {
        Setting::Literal(SecretValue::new(text.replace("$$", "$").into_bytes()))
    } else {
        Setting::Taken(taken)
    }
}

fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

/// Compose's own rule.
fn is_service_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    !name.is_empty() && name.bytes().all(fits) && !name.starts_with(['-', '.'])
}

/// Returns a path as seen from the folder that is looked at. An absolute one stays, and `..` beyond the folder leads out.
fn from_folder(folder: &str, path: &str) -> String {
    let path = Path::new(path);
    if path.is_absolute() {
        return path.display().to_string();
    }
    let parts: Vec<String> = path
        .components()
        .filter(|part| !matches!(part, Component::CurDir))
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .collect();
    walk::joined(folder, &parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_in(folder: &Path, text: &str) -> (Option<Project>, Vec<String>) {
        std::fs::write(folder.join("compose.yaml"), text).unwrap();
        let files = walk::files(folder).unwrap();
        let mut warnings = Vec::new();
        let project = projects(&files, &mut warnings).pop();
        (project, warnings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_form_is_read() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.env", "b.env", "key.txt"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let (project, warnings) = read_in(
            folder.path(),
            "name: shop\n\
             x-all: &all { env_file: a.env, environment: [A=1, B] }\n\
             services:\n  \
               one: { <<: *all, scale: 3, command: 'x ${C} $$D' }\n  \
               two:\n    env_file: [./a.env, { path: b.env, format: raw }, { path: none.env, required: false }]\n    \
                 environment: { A: '${A:-1}', B: null, C: 3 }\n    secrets: [key, { source: other }]\n\
             secrets: { key: { file: ./key.txt }, other: { environment: OTHER }, ext: { external: true } }\n",
        );
        let project = project.unwrap();
        assert_eq!((warnings, project.name.as_deref()), (Vec::new(), Some("shop")));
        let [one, two] = &project.services[..] else { panic!("two services") };
        assert_eq!((one.replicas, one.env_files[0].path.as_str()), (Some(3), "a.env"));
        assert!(matches!(one.environment[1].setting, Setting::Inherited));
        assert!(one.elsewhere.iter().eq(["C"]));
        let files: Vec<_> = two.env_files.iter().map(|f| (f.path.as_str(), f.raw)).collect();
        assert_eq!(files, [("a.env", false), ("b.env", true)]);
        assert!(
            matches!(&two.environment[0].setting, Setting::Taken(t) if t.whole.as_deref() == Some("A"))
        );
        assert!(matches!(two.environment[2].setting, Setting::Literal(_)));
        assert!(two.secrets.iter().eq(["key", "other"]));
        assert_eq!(project.secrets.len(), 2);
    }

    #[test]
    fn what_is_not_followed_is_said_with_its_line_and_not_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let (project, warnings) = read_in(
            folder.path(),
            "include: [CANARY.yaml]\nservices:\n  a:\n    extends: { service: CANARY }\n    env_file:\n      - ${CANARY}.env\n      - CANARY.env\n      - ../../../../etc/passwd\n  \"b\\nCANARY\": {}\n",
        );
        assert_eq!(project.unwrap().services.len(), 1);
        insta::assert_snapshot!(warnings.join("\n"), @r"
        compose.yaml:1: `include` is not followed; services of the included files are missing
        compose.yaml:4: service `a` extends another one, which is not followed; what it takes from there is missing
        compose.yaml:6: an `env_file` has a name that hangs on variables, and is not followed
        compose.yaml:7: an `env_file` is named here and does not exist
        compose.yaml:8: an `env_file` lies outside of this folder, and is not read
        compose.yaml:9: a service here has a name that Compose does not take
        ");
        assert!(!warnings.join("").contains("CANARY"));
        let (project, warnings) = read_in(folder.path(), "services:\n  a: [CANARY\n");
        assert!(project.is_none());
        insta::assert_snapshot!(warnings.join("\n"), @"compose.yaml:2: this is not YAML: unclosed bracket '['; the file is left out");
    }
}
