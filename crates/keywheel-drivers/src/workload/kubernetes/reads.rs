//! What a pod's specification reads of a Secret, and how: each way takes a value up at another time.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    EnvFromSource, EnvVar, KeyToPath, PodSpec, SecretVolumeSource, Volume, VolumeMount,
};
use keywheel_core::planted;

/// How a container is given a key of a Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum How {
    /// A variable, fixed when the container starts (H42).
    Env,
    /// A variable for every key.
    EnvFrom,
    /// A file that the kubelet brings up to date some time after a write (H44).
    Volume,
    /// A file of a projected volume, brought up to date likewise.
    Projected,
    /// A file that stays as it was when the container started (H43).
    SubPath,
    /// What the kubelet pulls images with.
    Pull,
    /// What the driver of a volume logs in with.
    Driver,
}

impl How {
    /// Returns what people call it.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Env => "env",
            Self::EnvFrom => "envFrom",
            Self::Volume => "volume",
            Self::Projected => "projected volume",
            Self::SubPath => "subPath",
            Self::Pull => "imagePullSecrets",
            Self::Driver => "the driver of a volume",
        }
    }

    /// Whether it may be read, or read again, at any time while the pod runs.
    pub(super) fn is_live(self) -> bool {
        matches!(self, Self::Volume | Self::Projected | Self::Driver)
    }
}

/// One way in which a pod is given keys of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Read {
    /// The Secret.
    pub secret: String,
    /// The container; none where the kubelet reads it for the whole pod.
    pub container: Option<String>,
    /// How.
    pub how: How,
    /// The keys; all of them where it does not name any.
    pub keys: Option<Vec<String>>,
    /// Keys of these that something else of the same name stands in front of.
    pub hidden: Vec<String>,
    /// The variable, where it gives one key in one.
    pub variable: Option<String>,
    /// Where its files are found, where the kubelet brings them up to date.
    pub mount: Option<Mount>,
    /// What comes after it, and may give variables of the same names.
    pub later: Vec<Later>,
}

/// Where a volume is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    folder: String,
    /// Keys with their files in the folder; each in a file of its name where none are listed.
    files: Option<Vec<(String, String)>>,
}

/// What gives variables by `envFrom`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// A ConfigMap.
    ConfigMap(String),
    /// A Secret.
    Secret(String),
}

impl Source {
    fn of(source: &EnvFromSource) -> Option<Self> {
        let map = source.config_map_ref.as_ref().map(|map| Self::ConfigMap(map.name.clone()));
        map.or_else(|| Some(Self::Secret(source.secret_ref.as_ref()?.name.clone())))
    }

    /// Returns what people call it.
    pub(super) fn words(&self) -> String {
        match self {
            Self::ConfigMap(name) => format!("ConfigMap `{name}`"),
            Self::Secret(name) => format!("Secret `{name}`"),
        }
    }
}

/// A source that comes after a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Later {
    /// The source.
    pub source: Source,
    /// What it puts before its keys.
    prefix: String,
    /// What the Secret's keys have before them.
    before: String,
}

impl Later {
    /// Whether a key of the Secret is hidden by one of these keys of the source.
    pub(super) fn hides(&self, key: &str, keys: &BTreeSet<String>) -> bool {
        let variable = format!("{}{key}", self.before);
        variable.strip_prefix(&self.prefix).is_some_and(|own| keys.contains(own))
    }
}

impl Read {
    /// Whether it gives a key.
    pub(super) fn gives(&self, key: &str) -> bool {
        let is_given = self.keys.as_ref().is_none_or(|keys| keys.iter().any(|it| it == key));
        is_given && !self.hidden.iter().any(|hidden| hidden == key)
    }

    /// Lists the files that hold a key; none where it is given otherwise, or by a file that does not change.
    pub(super) fn files(&self, key: &str) -> Vec<String> {
        let Some(Mount { folder, files }) = &self.mount else { return Vec::new() };
        let within = |file: &str| format!("{folder}/{file}");
        match files {
            None => vec![within(key)],
            Some(files) => {
                let own = files.iter().filter(|(it, _)| it == key);
                own.map(|(_, file)| within(file)).collect()
            }
        }
    }
}

/// Lists everything that a pod is given of Secrets.
pub(super) fn reads(spec: &PodSpec) -> Vec<Read> {
    let volumes = volumes(spec);
    let mut reads = Vec::new();
    for container in containers(spec) {
        let read = |secret: &str, how, keys| {
            let container = Some(container.name.to_owned());
            Read { container, ..of_the_pod(secret, how, keys) }
        };
        for (at, variable) in container.env.iter().enumerate() {
            // Of two with one name the later one counts.
            if container.env[at + 1..].iter().any(|later| later.name == variable.name) {
                continue;
            }
            let from = variable.value_from.as_ref().and_then(|from| from.secret_key_ref.as_ref());
            if let Some(from) = from {
                let variable = Some(variable.name.clone());
                let read = read(&from.name, How::Env, Some(vec![from.key.clone()]));
                reads.push(Read { variable, ..read });
            }
        }
        for (at, source) in container.env_from.iter().enumerate() {
            if let Some(from) = &source.secret_ref {
                let hidden = hidden_by(container.env, source);
                let later = later(source, &container.env_from[at + 1..]);
                reads.push(Read { hidden, later, ..read(&from.name, How::EnvFrom, None) });
            }
        }
        for mount in container.mounts {
            for mounted in volumes.get(mount.name.as_str()).into_iter().flatten() {
                if let Some((how, keys)) = mounted.through(mount) {
                    let mount = (how != How::SubPath).then(|| mounted.at(mount));
                    reads.push(Read { mount, ..read(mounted.secret, how, keys) });
                }
            }
        }
    }
    for pull in spec.image_pull_secrets.iter().flatten() {
        let keys = Some(vec![".dockerconfigjson".to_owned(), ".dockercfg".to_owned()]);
        reads.push(of_the_pod(&pull.name, How::Pull, keys));
    }
    for volume in spec.volumes.iter().flatten() {
        reads.extend(by_driver(volume).map(|secret| of_the_pod(&secret, How::Driver, None)));
    }
    if planted!("only_variables_are_read") {
        reads.retain(|read| matches!(read.how, How::Env | How::EnvFrom));
    }
    reads
}

fn of_the_pod(secret: &str, how: How, keys: Option<Vec<String>>) -> Read {
    Read {
        secret: secret.to_owned(),
        container: None,
        how,
        keys,
        hidden: Vec::new(),
        variable: None,
        mount: None,
        later: Vec::new(),
    }
}

/// Lists the sources that come after one.
fn later(source: &EnvFromSource, others: &[EnvFromSource]) -> Vec<Later> {
    let prefix = |source: &EnvFromSource| source.prefix.clone().unwrap_or_default();
    let later = others.iter().filter_map(|other| {
        let (prefix, before) = (prefix(other), prefix(source));
        Some(Later { source: Source::of(other)?, prefix, before })
    });
    later.collect()
}

/// Lists the keys that would become variables which stand in `env` by themselves: those win.
fn hidden_by(env: &[EnvVar], source: &EnvFromSource) -> Vec<String> {
    if planted!("hidden_key_is_given") {
        return Vec::new();
    }
    let prefix = source.prefix.as_deref().unwrap_or_default();
    env.iter().filter_map(|it| it.name.strip_prefix(prefix).map(str::to_owned)).collect()
}

/// Where a volume names the Secret with which its driver logs in.
pub(super) const DRIVERS: [&[&str]; 9] = [
    &["azureFile", "secretName"],
    &["cephfs", "secretRef", "name"],
    &["cinder", "secretRef", "name"],
    &["csi", "nodePublishSecretRef", "name"],
    &["flexVolume", "secretRef", "name"],
    &["iscsi", "secretRef", "name"],
    &["rbd", "secretRef", "name"],
    &["scaleIO", "secretRef", "name"],
    &["storageos", "secretRef", "name"],
];

fn by_driver(volume: &Volume) -> impl Iterator<Item = String> {
    let volume = serde_json::to_value(volume).unwrap_or_default();
    DRIVERS.into_iter().filter_map(move |path| {
        let at = path.iter().try_fold(&volume, |value, step| value.get(step))?;
        at.as_str().map(str::to_owned)
    })
}

struct Reading<'s> {
    name: &'s str,
    env: &'s [EnvVar],
    env_from: &'s [EnvFromSource],
    mounts: &'s [VolumeMount],
}

/// Lists containers of every kind: those that prepare a pod may hand on what they read, and those that debug one hold it.
fn containers(spec: &PodSpec) -> impl Iterator<Item = Reading<'_>> {
    let usual = spec.init_containers.iter().flatten().chain(&spec.containers);
    let usual = usual.map(|one| Reading {
        name: &one.name,
        env: one.env.as_deref().unwrap_or_default(),
        env_from: one.env_from.as_deref().unwrap_or_default(),
        mounts: one.volume_mounts.as_deref().unwrap_or_default(),
    });
    let debugging = spec.ephemeral_containers.iter().flatten().map(|one| Reading {
        name: &one.name,
        env: one.env.as_deref().unwrap_or_default(),
        env_from: one.env_from.as_deref().unwrap_or_default(),
        mounts: one.volume_mounts.as_deref().unwrap_or_default(),
    });
    usual.chain(debugging)
}

/// A Secret in a volume: all keys, each in a file of its name, or those that are listed.
struct Mounted<'s> {
    secret: &'s str,
    items: Option<&'s [KeyToPath]>,
    how: How,
}

impl Mounted<'_> {
    /// Returns how a mount of the volume gives keys, and which; none where it shows another file of the volume.
    fn through(&self, mount: &VolumeMount) -> Option<(How, Option<Vec<String>>)> {
        let keys = |items: &[KeyToPath]| items.iter().map(|item| item.key.clone()).collect();
        let Some(path) = mount.sub_path.as_deref().filter(|path| !path.is_empty()) else {
            let is_expanded = mount.sub_path_expr.as_deref().is_some_and(|path| !path.is_empty());
            let how = if is_expanded { How::SubPath } else { self.how };
            return Some((how, self.items.map(keys)));
        };
        let below = |file: &str| file == path || file.starts_with(&format!("{path}/"));
        let given = match self.items {
            None => vec![path.to_owned()],
            Some(items) => {
                items.iter().filter(|item| below(&item.path)).map(|item| item.key.clone()).collect()
            }
        };
        (!given.is_empty()).then_some((How::SubPath, Some(given)))
    }

    /// Returns where its files are, where a mount shows all of the volume.
    fn at(&self, mount: &VolumeMount) -> Mount {
        let folder = mount.mount_path.trim_end_matches('/').to_owned();
        let files = self
            .items
            .map(|items| items.iter().map(|item| (item.key.clone(), item.path.clone())).collect());
        Mount { folder, files }
    }
}

fn volumes(spec: &PodSpec) -> BTreeMap<&str, Vec<Mounted<'_>>> {
    let all = spec.volumes.iter().flatten();
    all.map(|volume| (volume.name.as_str(), mounted(volume))).collect()
}

fn mounted(volume: &Volume) -> Vec<Mounted<'_>> {
    let plain = volume.secret.iter().filter_map(|source: &SecretVolumeSource| {
        let secret = source.secret_name.as_deref()?;
        Some(Mounted { secret, items: source.items.as_deref(), how: How::Volume })
    });
    let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    let projected = sources.filter_map(|source| source.secret.as_ref()).map(|source| Mounted {
        secret: &source.name,
        items: source.items.as_deref(),
        how: How::Projected,
    });
    plain.chain(projected).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> PodSpec {
        serde_json::from_str(text).unwrap()
    }

    fn told(spec: &PodSpec) -> Vec<(String, How, Option<Vec<String>>)> {
        let told = reads(spec).into_iter();
        told.map(|read| (read.container.unwrap_or_default(), read.how, read.keys)).collect()
    }

    fn keys(keys: &[&str]) -> Option<Vec<String>> {
        Some(keys.iter().map(|&key| key.to_owned()).collect())
    }

    #[test]
    fn h43_each_way_of_reading_a_secret_is_told_apart() {
        let spec = spec(
            r#"{
                "initContainers": [{"name": "init", "envFrom": [{"prefix": "P_", "secretRef": {"name": "keys"}}]}],
                "containers": [
                    {"name": "app",
                     "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "a", "optional": true}}},
                             {"name": "B", "value": "plain"}],
                     "volumeMounts": [{"name": "whole", "mountPath": "/whole"},
                                      {"name": "some", "mountPath": "/b", "subPath": "dir/b"},
                                      {"name": "both", "mountPath": "/both"}]},
                    {"name": "other", "volumeMounts": [{"name": "whole", "mountPath": "/c", "subPath": "c"},
                                                       {"name": "some", "mountPath": "/d", "subPath": "elsewhere"}]}],
                "volumes": [{"name": "whole", "secret": {"secretName": "keys"}},
                            {"name": "some", "secret": {"secretName": "keys", "items": [{"key": "b", "path": "dir/b"}]}},
                            {"name": "both", "projected": {"sources": [{"secret": {"name": "keys", "items": [{"key": "e", "path": "e"}]}}, {"configMap": {"name": "keys"}}]}},
                            {"name": "unused", "secret": {"secretName": "keys"}},
                            {"name": "share", "csi": {"driver": "smb.csi.k8s.io", "nodePublishSecretRef": {"name": "keys"}}},
                            {"name": "disk", "azureFile": {"shareName": "s", "secretName": "keys"}}],
                "imagePullSecrets": [{"name": "registry"}]
            }"#,
        );
        assert_eq!(
            told(&spec),
            [
                ("init".into(), How::EnvFrom, None),
                ("app".into(), How::Env, keys(&["a"])),
                ("app".into(), How::Volume, None),
                ("app".into(), How::SubPath, keys(&["b"])),
                ("app".into(), How::Projected, keys(&["e"])),
                ("other".into(), How::SubPath, keys(&["c"])),
                (String::new(), How::Pull, keys(&[".dockerconfigjson", ".dockercfg"])),
                (String::new(), How::Driver, None),
                (String::new(), How::Driver, None),
            ]
        );
    }

    #[test]
    fn a_key_is_found_in_the_files_that_the_kubelet_brings_up_to_date_and_no_others() {
        let spec = spec(
            r#"{"containers": [{"name": "app", "volumeMounts": [
                    {"name": "whole", "mountPath": "/whole/"},
                    {"name": "some", "mountPath": "/some"},
                    {"name": "whole", "mountPath": "/a", "subPath": "a"}]}],
                "volumes": [{"name": "whole", "secret": {"secretName": "keys"}},
                            {"name": "some", "secret": {"secretName": "keys", "items": [{"key": "a", "path": "dir/b"}, {"key": "a", "path": "c"}]}}]}"#,
        );
        let files = |key: &str| reads(&spec).iter().flat_map(|read| read.files(key)).collect();
        let found: Vec<String> = files("a");
        assert_eq!(found, ["/whole/a", "/some/dir/b", "/some/c"]);
        let found: Vec<String> = files("b");
        assert_eq!(found, ["/whole/b"]);
    }

    #[test]
    fn h42_a_key_behind_a_variable_of_the_same_name_is_not_given() {
        let spec = spec(
            r#"{"containers": [{"name": "app",
                "env": [{"name": "P_a", "value": "plain"},
                        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "b"}}},
                        {"name": "B", "value": "later"}],
                "envFrom": [{"prefix": "P_", "secretRef": {"name": "keys"}}]}]}"#,
        );
        let reads = reads(&spec);
        let given: Vec<_> = ["a", "b", "c"]
            .into_iter()
            .filter(|key| reads.iter().any(|it| it.gives(key)))
            .collect();
        assert_eq!(given, ["b", "c"], "`P_b` is there, and `P_a` is another value");
        assert!(reads.iter().all(|read| read.how == How::EnvFrom));
    }

    #[test]
    fn a_container_that_debugs_a_pod_reads_too() {
        let spec = spec(
            r#"{"containers": [{"name": "app"}],
                "ephemeralContainers": [{"name": "debug", "envFrom": [{"secretRef": {"name": "keys"}}]}]}"#,
        );
        assert_eq!(told(&spec), [("debug".into(), How::EnvFrom, None)]);
    }
}
