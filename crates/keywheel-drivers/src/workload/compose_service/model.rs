//! The project as Compose reads it, before values stand in it: which services there are, from where each takes what it gets,
//! and what it depends on.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::store::file::CONTENT;

/// The file whose variables Compose interpolates.
const PROJECT_FILE: &str = ".env";

/// The services of a project.
pub(super) struct Model {
    /// What Compose wrote.
    pub(super) document: Value,
    /// The folder of the project.
    pub(super) folder: PathBuf,
    /// Whether Compose put what `env_file` holds among `environment`, and left out where it came from: then what a file does
    /// not hold yet is not seen.
    pub(super) is_merged: bool,
}

/// Another service that must be there before one begins.
pub(super) struct Need {
    /// Its name.
    pub(super) service: String,
    /// Whether it does its work and ends.
    pub(super) ends: bool,
}

impl Model {
    /// Returns the names of the services.
    pub(super) fn services(&self) -> impl Iterator<Item = &str> {
        self.document["services"]
            .as_object()
            .into_iter()
            .flat_map(|all| all.keys())
            .map(String::as_str)
    }

    /// Whether a service is given what stands at an address of a file.
    pub(super) fn takes(&self, service: &str, file: &Path, address: &str) -> bool {
        let service = &self.document["services"][service];
        let mounted = self.mounted(service).any(|path| is(path, file));
        if address == CONTENT {
            return mounted;
        }
        mounted
            || each(&service["env_file"]).any(|one| path_of(one).is_some_and(|path| is(path, file)))
            || self.inherits(&service["environment"], file, address)
            || self.interpolates(service, file, address)
    }

    /// Whether a service is given a folder that holds a file. A program that looks after the whole machine has that too.
    pub(super) fn sees(&self, service: &str, file: &Path) -> bool {
        self.mounted(&self.document["services"][service]).any(|path| holds(path, file))
    }

    /// The files and folders of this machine that stand in the containers of a service.
    fn mounted<'m>(&'m self, service: &'m Value) -> impl Iterator<Item = &'m str> {
        let of = |kind: &'static str| {
            each(&service[kind]).filter_map(move |one| {
                let name = one["source"].as_str().or(one.as_str())?;
                self.document[kind][name]["file"].as_str()
            })
        };
        let volumes = each(&service["volumes"]).filter_map(|one| match one {
            Value::String(short) => short.split(':').next(),
            long => long["source"].as_str(),
        });
        of("secrets").chain(of("configs")).chain(volumes.filter(|path| path.starts_with('/')))
    }

    /// A variable that is named and not set is taken from the project's own.
    fn inherits(&self, environment: &Value, file: &Path, variable: &str) -> bool {
        let is_named = match environment {
            Value::Object(variables) => {
                variables.get(variable).is_some_and(|value| value.is_null() || self.is_merged)
            }
            other => each(other).filter_map(Value::as_str).any(|item| {
                let (name, value) =
                    item.split_once('=').map_or((item, None), |(a, b)| (a, Some(b)));
                name == variable && (value.is_none() || self.is_merged)
            }),
        };
        is_named && (self.is_merged || self.is_project_file(file))
    }

    fn interpolates(&self, service: &Value, file: &Path, variable: &str) -> bool {
        let from_secret = |one: &Value| {
            let name = one["source"].as_str().or(one.as_str()).unwrap_or_default();
            self.document["secrets"][name]["environment"].as_str() == Some(variable)
        };
        self.is_project_file(file)
            && (mentions_anywhere(service, variable) || each(&service["secrets"]).any(from_secret))
    }

    fn is_project_file(&self, file: &Path) -> bool {
        is(self.folder.join(PROJECT_FILE), file)
    }

    /// Returns what a service depends on.
    pub(super) fn needs(&self, service: &str) -> Vec<Need> {
        let needs = &self.document["services"][service]["depends_on"];
        let Value::Object(needs) = needs else {
            let names = each(needs).filter_map(Value::as_str);
            return names.map(|name| Need { service: name.into(), ends: false }).collect();
        };
        let is_required = |how: &Value| !matches!(&how["required"], Value::Bool(false));
        let required = needs.iter().filter(|(_, how)| is_required(how));
        let ends = |how: &Value| how["condition"] == "service_completed_successfully";
        required.map(|(name, how)| Need { service: name.clone(), ends: ends(how) }).collect()
    }
}

/// Compose takes one thing for a list of one.
fn each(value: &Value) -> impl Iterator<Item = &Value> {
    match value {
        Value::Array(items) => items.as_slice(),
        Value::Null => &[],
        one => std::slice::from_ref(one),
    }
    .iter()
}

fn path_of(env_file: &Value) -> Option<&str> {
    env_file["path"].as_str().or(env_file.as_str())
}

/// A store names its file with links resolved.
fn is(path: impl AsRef<Path>, file: &Path) -> bool {
    let path = path.as_ref();
    path == file || path.canonicalize().is_ok_and(|path| path == file)
}

fn holds(folder: &str, file: &Path) -> bool {
    let folder = Path::new(folder);
    file.starts_with(folder) || folder.canonicalize().is_ok_and(|folder| file.starts_with(folder))
}

fn mentions_anywhere(value: &Value, variable: &str) -> bool {
    match value {
        Value::String(text) => mentions(text, variable),
        Value::Array(items) => items.iter().any(|item| mentions_anywhere(item, variable)),
        Value::Object(entries) => entries.values().any(|item| mentions_anywhere(item, variable)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Whether a text takes a variable: `$X`, `${X}`, `${X:-…}` and their kin, within each other too. `$$` is a dollar sign.
fn mentions(text: &str, variable: &str) -> bool {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('$') {
        if let Some(after) = after.strip_prefix('$') {
            rest = after;
            continue;
        }
        let inner = after.strip_prefix('{').unwrap_or(after);
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = inner.find(|c: char| !is_part(c)).unwrap_or(inner.len());
        if &inner[..end] == variable {
            return true;
        }
        rest = &inner[end..];
    }
    false
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn model(is_merged: bool, service: Value) -> Model {
        let document = json!({
            "services": { "web": service },
            "secrets": { "key": { "file": "/srv/key.txt" }, "given": { "environment": "KEY" } },
        });
        Model { document, folder: "/srv".into(), is_merged }
    }

    fn takes(service: Value, file: &str, address: &str) -> bool {
        model(false, service).takes("web", Path::new(file), address)
    }

    #[test]
    fn h56_every_way_to_take_a_variable_counts() {
        for service in [
            json!({ "env_file": "/srv/.env" }),
            json!({ "env_file": ["/srv/other.env", { "path": "/srv/.env", "required": true }] }),
            json!({ "environment": { "KEY": null } }),
            json!({ "environment": ["A=1", "KEY"] }),
            json!({ "environment": { "OTHER": "${KEY}" } }),
            json!({ "environment": ["URL=https://${USER:-$KEY}@host"] }),
            json!({ "command": ["serve", "--key", "$KEY"] }),
            json!({ "volumes": [{ "type": "bind", "source": "/srv/.env", "target": "/app/.env" }] }),
            json!({ "secrets": [{ "source": "given" }] }),
        ] {
            assert!(takes(service.clone(), "/srv/.env", "KEY"), "{service}");
        }
    }

    #[test]
    fn what_only_looks_like_it_does_not_count() {
        for service in [
            json!({}),
            json!({ "env_file": "/srv/other.env" }),
            json!({ "environment": { "KEY": "literal", "KEYS": null, "A": "KEY" } }),
            json!({ "environment": ["KEY=literal"] }),
            json!({ "environment": { "A": "$$KEY ${KEYS} $KEY_2 $$$$KEY" } }),
            json!({ "volumes": ["data:/app", "/:/host"], "secrets": ["key"] }),
        ] {
            assert!(!takes(service.clone(), "/srv/.env", "KEY"), "{service}");
        }
        let interpolated = json!({ "environment": { "A": "${KEY}", "KEY": null } });
        assert!(!takes(interpolated, "/srv/other.env", "KEY"), "only the project's file counts");
    }

    #[test]
    fn a_mounted_file_is_told_apart_from_a_variable() {
        for service in [json!({ "secrets": ["key"] }), json!({ "secrets": [{ "source": "key" }] })]
        {
            assert!(takes(service.clone(), "/srv/key.txt", CONTENT), "{service}");
        }
        assert!(!takes(json!({ "env_file": "/srv/key.txt" }), "/srv/key.txt", CONTENT));
        assert!(!takes(json!({ "secrets": ["given"] }), "/srv/key.txt", CONTENT));
        let folder = model(false, json!({ "volumes": ["/srv:/run/keys:ro"] }));
        assert!(folder.sees("web", Path::new("/srv/key.txt")));
        assert!(!folder.takes("web", Path::new("/srv/key.txt"), CONTENT));
    }

    #[test]
    fn where_compose_merged_the_files_a_name_is_enough() {
        let service = json!({ "environment": { "KEY": "a value" } });
        assert!(model(true, service.clone()).takes("web", Path::new("/srv/app.env"), "KEY"));
        assert!(!model(true, service).takes("web", Path::new("/srv/app.env"), "OTHER"));
    }

    #[test]
    fn what_a_service_needs_is_named() {
        let long = json!({ "depends_on": {
            "db": { "condition": "service_healthy", "required": true },
            "migrate": { "condition": "service_completed_successfully" },
            "cache": { "condition": "service_started", "required": false },
        } });
        for (service, needs) in [
            (long, vec![("db", false), ("migrate", true)]),
            (json!({ "depends_on": ["db"] }), vec![("db", false)]),
            (json!({}), vec![]),
        ] {
            let found = model(false, service).needs("web");
            let found: Vec<_> = found.iter().map(|one| (one.service.as_str(), one.ends)).collect();
            assert_eq!(found, needs);
        }
    }
}
