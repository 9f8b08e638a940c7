//! What a container is given of Secrets and ConfigMaps: its environment, and the files of its volumes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::json::{each, entries, is, name, namespace, number, text, uid};
use super::pass::Pass;
use crate::kubernetes::Kind;

/// Files by their paths below a volume.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// The files of volumes by the names of the volumes.
pub(super) type Volumes = BTreeMap<String, Files>;

/// Secrets and ConfigMaps as the node knows them, which is as they were a while ago. One that it never heard of is read afresh.
pub(super) struct Cache {
    lag: Duration,
    known: BTreeMap<(Kind, String, String), States>,
}

/// What became of an object, and when; the first is the one that is known.
type States = Vec<(Instant, Option<Arc<Value>>)>;

impl Cache {
    pub(super) fn new(lag: Duration) -> Self {
        Self { lag, known: BTreeMap::new() }
    }

    /// Notes what there is now.
    pub(super) fn note(&mut self, pass: &Pass<'_>) {
        for kind in [Kind::Secret, Kind::ConfigMap] {
            let present = pass.list(kind);
            for object in &present {
                let key = (kind, namespace(object).to_owned(), name(object).to_owned());
                let states = self.known.entry(key).or_default();
                let newest = states.last().and_then(|(_, state)| state.as_ref());
                if newest.is_none_or(|newest| !Arc::ptr_eq(newest, object)) {
                    states.push((pass.now, Some(Arc::clone(object))));
                }
            }
            let gone = self.known.iter_mut().filter(|((known, namespaced, named), states)| {
                *known == kind
                    && states.last().is_some_and(|(_, state)| state.is_some())
                    && !present.iter().any(|it| namespace(it) == namespaced && name(it) == named)
            });
            gone.for_each(|(_, states)| states.push((pass.now, None)));
        }
        for states in self.known.values_mut() {
            let seen = states.iter().rposition(|(at, _)| *at + self.lag <= pass.now);
            states.drain(..seen.unwrap_or_default());
        }
    }

    fn get(&self, kind: Kind, space: &str, named: &str) -> Option<&Arc<Value>> {
        let states = self.known.get(&(kind, space.to_owned(), named.to_owned()))?;
        states.first().and_then(|(_, state)| state.as_ref())
    }

    /// Returns the decoded values of an object; what is missing is worded as the kubelet words it.
    fn data(&self, kind: Kind, space: &str, named: &str) -> Result<Files, String> {
        let object = self
            .get(kind, space, named)
            .ok_or_else(|| format!("{} \"{named}\" not found", kind.resource().singular))?;
        let is_encoded = kind == Kind::Secret;
        let mut all = Files::new();
        for (at, is_encoded) in [("/data", is_encoded), ("/binaryData", true)] {
            let entries = entries(object, at).into_iter();
            all.extend(entries.map(|(key, value)| (key.clone(), decoded(is_encoded, value))));
        }
        Ok(all)
    }
}

fn decoded(is_encoded: bool, value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap_or_default();
    match is_encoded {
        true => STANDARD.decode(text).unwrap_or_default(),
        false => text.as_bytes().to_vec(),
    }
}

/// Returns the environment of a container.
///
/// # Errors
/// What is missing and is not optional.
pub(super) fn environment(
    cache: &Cache,
    pod: &Value,
    container: &Value,
    address: &str,
) -> Result<BTreeMap<String, String>, String> {
    let mut all = BTreeMap::new();
    let space = namespace(pod);
    for source in each(container, "/envFrom") {
        let prefix = text(source, "/prefix");
        for (field, kind) in [("/secretRef", Kind::Secret), ("/configMapRef", Kind::ConfigMap)] {
            let Some(reference) = source.pointer(field) else { continue };
            let data = match cache.data(kind, space, text(reference, "/name")) {
                Err(_) if is(reference, "/optional") => continue,
                data => data?,
            };
            let named = data.iter().map(|(key, value)| (format!("{prefix}{key}"), lossy(value)));
            all.extend(named);
        }
    }
    for variable in each(container, "/env") {
        let value = match variable.get("valueFrom") {
            Some(source) => referenced(cache, pod, source, address)?,
            None => Some(expanded(text(variable, "/value"), &all)),
        };
        if let Some(value) = value {
            all.insert(text(variable, "/name").to_owned(), value);
        }
    }
    Ok(all)
}

fn referenced(
    cache: &Cache,
    pod: &Value,
    source: &Value,
    address: &str,
) -> Result<Option<String>, String> {
    let space = namespace(pod);
    for (field, kind) in [("/secretKeyRef", Kind::Secret), ("/configMapKeyRef", Kind::ConfigMap)] {
        let Some(reference) = source.pointer(field) else { continue };
        let (named, key) = (text(reference, "/name"), text(reference, "/key"));
        let found = cache.data(kind, space, named).and_then(|data| {
            let of = kind.resource().name;
            let missing = || format!("couldn't find key {key} in {of} {space}/{named}");
            data.get(key).map(|value| lossy(value)).ok_or_else(missing)
        });
        return match found {
            Err(_) if is(reference, "/optional") => Ok(None),
            found => found.map(Some),
        };
    }
    let field = text(source, "/fieldRef/fieldPath");
    let within = |part: &str| {
        let key = field.split('\'').nth(1).unwrap_or_default();
        pod["metadata"][part][key].as_str().unwrap_or_default().to_owned()
    };
    Ok(Some(match field {
        "metadata.name" => name(pod).to_owned(),
        "metadata.namespace" => space.to_owned(),
        "metadata.uid" => uid(pod).to_owned(),
        "status.podIP" => address.to_owned(),
        "spec.nodeName" => text(pod, "/spec/nodeName").to_owned(),
        other if other.starts_with("metadata.annotations") => within("annotations"),
        other if other.starts_with("metadata.labels") => within("labels"),
        _ => String::new(),
    }))
}

fn lossy(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// Puts variables in the place of `$(NAME)`; what is not known stays as it is, and no value is looked into.
pub(super) fn expanded(written: &str, all: &BTreeMap<String, String>) -> String {
    let mut parts = written.split("$(");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let known = part.split_once(')').and_then(|(name, rest)| Some((all.get(name)?, rest)));
        match known {
            Some((value, rest)) => text.extend([value.as_str(), rest]),
            None => text.extend(["$(", part]),
        }
    }
    text
}

/// Returns the files of the volumes of a pod by the names of the volumes.
///
/// # Errors
/// What is missing and is not optional.
pub(super) fn volumes(cache: &Cache, pod: &Value) -> Result<Volumes, String> {
    let mut all = Volumes::new();
    for volume in each(pod, "/spec/volumes") {
        let files = match volume {
            _ if volume.get("secret").is_some() => {
                let source = &volume["secret"];
                picked(cache, pod, Kind::Secret, source, text(source, "/secretName"))?
            }
            _ if volume.get("configMap").is_some() => {
                let source = &volume["configMap"];
                picked(cache, pod, Kind::ConfigMap, source, text(source, "/name"))?
            }
            _ if volume.get("projected").is_some() => projected(cache, pod, &volume["projected"])?,
            _ => Files::new(),
        };
        all.insert(text(volume, "/name").to_owned(), files);
    }
    Ok(all)
}

fn projected(cache: &Cache, pod: &Value, volume: &Value) -> Result<Files, String> {
    let mut all = Files::new();
    for source in each(volume, "/sources") {
        for (field, kind) in [("secret", Kind::Secret), ("configMap", Kind::ConfigMap)] {
            if let Some(source) = source.get(field) {
                all.extend(picked(cache, pod, kind, source, text(source, "/name"))?);
            }
        }
    }
    Ok(all)
}

/// Returns the keys of an object that a volume takes, under the paths that it gives them.
fn picked(
    cache: &Cache,
    pod: &Value,
    kind: Kind,
    source: &Value,
    named: &str,
) -> Result<Files, String> {
    let space = namespace(pod);
    let optional = is(source, "/optional");
    let data = match cache.data(kind, space, named) {
        Err(_) if optional => return Ok(Files::new()),
        data => data?,
    };
    let items = each(source, "/items");
    if items.is_empty() {
        return Ok(data);
    }
    let mut all = Files::new();
    for item in items {
        let key = text(item, "/key");
        match data.get(key) {
            Some(value) => drop(all.insert(text(item, "/path").to_owned(), value.clone())),
            None if optional => {}
            None => {
                return Err(format!(
                    "references non-existent {} key: {key}",
                    kind.resource().singular
                ));
            }
        }
    }
    Ok(all)
}

/// Returns the files that a container finds, by their paths; those of a `subPath` are what they were when it started.
pub(super) fn mounted(container: &Value, volumes: &Volumes, frozen: &Files) -> Files {
    let mut all = frozen.clone();
    for mount in each(container, "/volumeMounts").iter().filter(|mount| sub_path(mount).is_empty())
    {
        let folder = text(mount, "/mountPath").trim_end_matches('/');
        let files = volumes.get(text(mount, "/name")).into_iter().flatten();
        all.extend(files.map(|(path, content)| (format!("{folder}/{path}"), content.clone())));
    }
    all
}

/// Returns the files that `subPath` mounts freeze at the start of a container.
pub(super) fn frozen(container: &Value, volumes: &Volumes) -> Files {
    let mut all = Files::new();
    for mount in each(container, "/volumeMounts").iter() {
        let (inside, at) = (sub_path(mount), text(mount, "/mountPath").trim_end_matches('/'));
        if inside.is_empty() {
            continue;
        }
        for (path, content) in volumes.get(text(mount, "/name")).into_iter().flatten() {
            if path == inside {
                all.insert(at.to_owned(), content.clone());
            } else if let Some(below) =
                path.strip_prefix(inside).and_then(|it| it.strip_prefix('/'))
            {
                all.insert(format!("{at}/{below}"), content.clone());
            }
        }
    }
    all
}

fn sub_path(mount: &Value) -> &str {
    text(mount, "/subPath").trim_matches('/')
}

/// Lays out what a container of real processes finds below its root. A volume is changed as the kubelet changes it: a new folder
/// is filled, and one link is moved to it, so that a reader finds all of the old files or all of the new ones.
pub(super) fn lay_out(
    root: &Path,
    pod: &Value,
    container: &Value,
    volumes: &Volumes,
) -> io::Result<()> {
    for mount in each(container, "/volumeMounts").iter().filter(|mount| sub_path(mount).is_empty())
    {
        let volume = text(mount, "/name");
        let Some(files) = volumes.get(volume) else { continue };
        let folder = root.join(text(mount, "/mountPath").trim_matches('/'));
        if is_empty_dir(pod, volume) {
            share(root, &folder, volume)?;
            continue;
        }
        fs::create_dir_all(&folder)?;
        fill(&folder, files, mode(pod, volume))?;
    }
    Ok(())
}

fn is_empty_dir(pod: &Value, volume: &str) -> bool {
    let volumes = each(pod, "/spec/volumes");
    volumes.iter().any(|it| text(it, "/name") == volume && it.get("emptyDir").is_some())
}

/// Lets a container find the folder that all containers of its pod have together.
fn share(root: &Path, folder: &Path, volume: &str) -> io::Result<()> {
    let Some(pod) = root.parent() else { return Ok(()) };
    // No container is called so.
    let shared = pod.join("empty.dirs").join(volume);
    fs::create_dir_all(&shared)?;
    if let Some(above) = folder.parent() {
        fs::create_dir_all(above)?;
    }
    match symlink(shared, folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Writes the files that do not change while the container runs.
pub(super) fn lay_out_frozen(root: &Path, frozen: &Files) -> io::Result<()> {
    frozen
        .iter()
        .try_for_each(|(path, content)| write(&root.join(path.trim_matches('/')), content, 0o644))
}

fn mode(pod: &Value, volume: &str) -> u32 {
    let volumes = each(pod, "/spec/volumes");
    let found = volumes.iter().find(|it| text(it, "/name") == volume);
    let sources = ["/secret/defaultMode", "/projected/defaultMode", "/configMap/defaultMode"];
    let mode = found.and_then(|found| sources.iter().find_map(|at| number(found, at)));
    mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o644)
}

fn fill(folder: &Path, files: &Files, mode: u32) -> io::Result<()> {
    let data = folder.join("..data");
    let before = fs::read_link(&data).ok();
    let fresh = format!("..{}", crate::random(b"0123456789", 10));
    fs::create_dir_all(folder.join(&fresh))?;
    for (path, content) in files {
        write(&folder.join(&fresh).join(path), content, mode)?;
    }
    symlink(&fresh, folder.join("..data_tmp"))?;
    fs::rename(folder.join("..data_tmp"), &data)?;
    for first in files.keys().filter_map(|path| path.split('/').next()) {
        // It fails only where the link is there already.
        symlink(Path::new("..data").join(first), folder.join(first)).ok();
    }
    let Some(before) = before else { return Ok(()) };
    for entry in fs::read_dir(folder.join(&before))? {
        let gone = folder.join(entry?.file_name());
        if !gone.exists() {
            fs::remove_file(gone)?;
        }
    }
    fs::remove_dir_all(folder.join(before))
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_put_in_and_what_is_unknown_stays() {
        let all = BTreeMap::from([("A".into(), "$(B)".into()), ("B".into(), "b".into())]);
        assert_eq!(expanded("x $(B) $(A) $(C) $( $(B", &all), "x b $(B) $(C) $( $(B");
    }

    #[test]
    fn an_empty_folder_is_the_same_one_for_every_container_of_a_pod() {
        let pod = std::env::temp_dir().join(format!("volume-{}", crate::random(b"0123456789", 12)));
        for (root, at) in [("first", "a/b"), ("second", "c"), ("second", "c")] {
            share(&pod.join(root), &pod.join(root).join(at), "work").unwrap();
        }
        fs::write(pod.join("first/a/b/x"), "1").unwrap();
        assert_eq!(fs::read_to_string(pod.join("second/c/x")).unwrap(), "1");
        fs::remove_dir_all(pod).unwrap();
    }

    #[test]
    fn a_volume_on_disk_shows_all_of_the_new_files_and_none_of_the_old_ones() {
        let folder =
            std::env::temp_dir().join(format!("volume-{}", crate::random(b"0123456789", 12)));
        let files = |all: &[(&str, &str)]| -> Files {
            all.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect()
        };
        let shown = || {
            let entries = fs::read_dir(&folder).unwrap().map(|it| it.unwrap().file_name());
            let mut names: Vec<_> = entries.map(|it| it.into_string().unwrap()).collect();
            names.retain(|name| !name.starts_with(".."));
            names.sort();
            names
        };
        fs::create_dir_all(&folder).unwrap();
        fill(&folder, &files(&[("a", "1"), ("b", "1")]), 0o400).unwrap();
        fill(&folder, &files(&[("a", "2"), ("c/d", "2")]), 0o400).unwrap();
        assert_eq!(shown(), ["a", "c"]);
        assert_eq!(fs::read_to_string(folder.join("a")).unwrap(), "2");
        assert_eq!(fs::read_to_string(folder.join("c/d")).unwrap(), "2");
        assert_eq!(fs::metadata(folder.join("a")).unwrap().permissions().mode() & 0o777, 0o400);
        fs::remove_dir_all(folder).unwrap();
    }
}
