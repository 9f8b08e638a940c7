//! Whether a cluster can be used at all, asked before anything is made in it.

use anyhow::{bail, ensure};
use serde_json::{Value, json};

use crate::api::{Api, text};

/// The oldest minor version that the scenarios were written for.
const OLDEST: u32 = 33;

/// What the scenarios and keywheel itself do: verbs, group and resource.
const NEEDED: &[(&[&str], &str, &str)] = &[
    (&["create", "delete", "get", "list", "patch"], "", "secrets"),
    (&["create", "delete", "get", "list", "patch"], "", "configmaps"),
    (&["delete", "get", "list", "patch"], "", "pods"),
    (&["create", "get"], "", "pods/exec"),
    (&["create", "get"], "", "pods/portforward"),
    (&["get"], "", "pods/log"),
    (&["get", "list"], "", "serviceaccounts"),
    (&["list"], "", "events"),
    (&["create", "delete", "get", "list", "patch"], "apps", "deployments"),
    (&["create", "delete", "get", "list", "patch"], "apps", "statefulsets"),
    (&["create", "delete", "get", "list", "patch"], "apps", "daemonsets"),
    (&["list"], "apps", "replicasets"),
    (&["list"], "apps", "controllerrevisions"),
    (&["list"], "batch", "jobs"),
    (&["list"], "batch", "cronjobs"),
];

/// Checks version, rights and nodes, and returns what is worth knowing.
pub(crate) async fn check(api: &Api, architecture: &str) -> anyhow::Result<Vec<String>> {
    let mut told = vec![version(&api.version().await?)?];
    let lacking = lacking(api).await?;
    ensure!(lacking.is_empty(), "this account may not {}", lacking.join(", "));
    told.push(format!("this account may do all that is needed in `{}`", api.namespace()));
    told.push(node(&api.nodes().await?, architecture)?);
    Ok(told)
}

fn version(said: &Value) -> anyhow::Result<String> {
    let number = |at: &str| {
        let digits: String = text(said, at).chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().unwrap_or_default()
    };
    let (major, minor) = (number("/major"), number("/minor"));
    let full = text(said, "/gitVersion");
    match (major, minor) {
        (1, OLDEST..) => Ok(format!("server {full}")),
        (1, 29..) => {
            Ok(format!("server {full}; these scenarios were written for 1.{OLDEST} and later"))
        }
        _ => bail!("server {full} is too old: 1.{OLDEST} or later is needed"),
    }
}

/// Returns what this account may not do.
async fn lacking(api: &Api) -> anyhow::Result<Vec<String>> {
    let mut lacking = Vec::new();
    let in_cluster = [
        ("create", "namespaces", ""),
        ("delete", "namespaces", api.namespace()),
        ("get", "namespaces", api.namespace()),
        ("get", "namespaces", "kube-system"),
        ("list", "nodes", ""),
    ];
    for (verb, resource, name) in in_cluster {
        if !api.may(json!({ "verb": verb, "resource": resource, "name": name })).await? {
            lacking.push(format!("{verb} {resource}"));
        }
    }
    for (verbs, group, resource) in NEEDED {
        let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
        for verb in *verbs {
            let asked = json!({
                "namespace": api.namespace(), "verb": verb, "group": group, "resource": resource, "subresource": sub,
            });
            if !api.may(asked).await? {
                let of = if sub.is_empty() { String::new() } else { format!("/{sub}") };
                lacking.push(format!("{verb} {resource}{of}"));
            }
        }
    }
    Ok(lacking)
}

/// A cluster that cannot be used yet, and perhaps soon.
#[derive(Debug)]
struct NotYet(String);

impl std::fmt::Display for NotYet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotYet {}

/// Whether an error may be gone after a while.
pub(crate) fn may_pass(error: &anyhow::Error) -> bool {
    error.is::<NotYet>()
}

/// The taints of a node that the pods of the scenarios tolerate: those of the only node of a small cluster.
pub(crate) const TOLERATED: [&str; 3] = [
    "node-role.kubernetes.io/control-plane",
    "node-role.kubernetes.io/master",
    "CriticalAddonsOnly",
];

/// The image where none is named.
const IMAGE: &str = "docker.io/library/busybox:1.36";

/// Returns an image with a shell: the usual one, or else one like it that a node has already, which need not be pulled.
pub(crate) fn image(nodes: &[Value]) -> String {
    let images =
        nodes.iter().flat_map(|node| node["status"]["images"].as_array().into_iter().flatten());
    let names = images.flat_map(|image| image["names"].as_array().into_iter().flatten());
    let names: Vec<&str> =
        names.filter_map(Value::as_str).filter(|name| !name.contains('@')).collect();
    if names.contains(&IMAGE) {
        return IMAGE.into();
    }
    let like =
        ["busybox", "alpine"].iter().find_map(|like| names.iter().find(|name| name.contains(like)));
    like.map_or(IMAGE, |name| *name).to_owned()
}

/// Finds a node that can run the program.
fn node(nodes: &[Value], architecture: &str) -> anyhow::Result<String> {
    let mut unfit = Vec::new();
    for node in nodes {
        let name = text(node, "/metadata/name");
        let labels = &node["metadata"]["labels"];
        let has = labels["kubernetes.io/arch"].as_str().unwrap_or("no known architecture");
        let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        let mut taints = node["spec"]["taints"].as_array().into_iter().flatten();
        let kept_out = taints.find(|taint| {
            let is_tolerated = TOLERATED.iter().any(|key| taint["key"] == *key);
            taint["effect"] != "PreferNoSchedule" && !is_tolerated
        });
        let why = if has != architecture || labels["kubernetes.io/os"] != "linux" {
            format!("it is {has}, and the program is built for {architecture}")
        } else if !conditions.any(|it| it["type"] == "Ready" && it["status"] == "True") {
            "it is not ready".into()
        } else if node["spec"]["unschedulable"] == true {
            "it is cordoned".into()
        } else if let Some(taint) = kept_out {
            format!("it has the taint `{}`", text(taint, "/key"))
        } else {
            return Ok(format!("node `{name}` is ready, {architecture}"));
        };
        unfit.push(format!("`{name}`: {why}"));
    }
    let unfit = if unfit.is_empty() { "there is none".into() } else { unfit.join("; ") };
    Err(NotYet(format!("no node can run the pods: {unfit}")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(change: impl FnOnce(&mut Value)) -> Vec<Value> {
        let mut node = json!({
            "metadata": { "name": "n", "labels": { "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux" } },
            "spec": { "taints": [{ "key": TOLERATED[0], "effect": "NoSchedule" }] },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        });
        change(&mut node);
        vec![node]
    }

    #[test]
    fn a_node_that_cannot_run_the_pods_is_said_with_the_reason() {
        assert!(node(&one(|_| {}), "amd64").is_ok());
        let why =
            |nodes: &[Value], architecture| node(nodes, architecture).unwrap_err().to_string();
        assert!(why(&one(|_| {}), "arm64").contains("it is amd64"));
        let unready = one(|node| node["status"]["conditions"][0]["status"] = "False".into());
        assert!(why(&unready, "amd64").contains("not ready"));
        let cordoned = one(|node| node["spec"]["unschedulable"] = true.into());
        assert!(why(&cordoned, "amd64").contains("cordoned"));
        let taint = json!({ "key": "gpu", "effect": "NoSchedule" });
        let tainted = one(|node| node["spec"]["taints"] = json!([taint]));
        assert!(why(&tainted, "amd64").contains("`gpu`"));
        assert!(why(&[], "amd64").contains("there is none"));
    }

    #[test]
    fn an_image_that_a_node_has_is_taken_where_the_usual_one_may_not_be_had() {
        let with = |names: &[&str]| {
            let names = names.to_vec();
            one(|node| node["status"]["images"] = json!([{ "names": names }]))
        };
        assert_eq!(image(&with(&[])), IMAGE);
        assert_eq!(image(&with(&["registry.k8s.io/pause:3.10"])), IMAGE);
        let mirrored = "docker.io/rancher/mirrored-library-busybox:1.37.0";
        assert_eq!(
            image(&with(&["docker.io/rancher/mirrored-library-busybox@sha256:0", mirrored])),
            mirrored
        );
        assert_eq!(image(&with(&[mirrored, IMAGE])), IMAGE);
    }

    #[test]
    fn versions_are_read_as_vendors_write_them() {
        let said = |minor: &str| json!({ "major": "1", "minor": minor, "gitVersion": "v" });
        assert!(version(&said("33+")).is_ok() && version(&said("35")).is_ok());
        assert!(version(&said("31")).unwrap().contains("1.33"));
        assert!(version(&said("19")).is_err());
    }
}
