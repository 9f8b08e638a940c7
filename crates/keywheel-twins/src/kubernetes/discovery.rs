//! Discovery: which version the server is, and which kinds it has.

use serde_json::{Value, json};

use super::kinds::{EXTERNAL_SECRETS, Kind, RESOURCES, Resource};

/// The group of the one kind that is asked and never kept.
const AUTHORIZATION: &str = "authorization.k8s.io";

/// Returns what stands at a path of discovery; none where nothing does.
pub(super) fn answer(path: &str, beta: bool) -> Option<Value> {
    let steps: Vec<&str> = path.split('/').skip(1).collect();
    match steps.as_slice() {
        ["version"] => Some(json!({
            "major": "1", "minor": "33", "gitVersion": "v1.33.4", "gitCommit": "0000000", "gitTreeState": "clean",
            "buildDate": "2025-08-13T14:24:39Z", "goVersion": "go1.24.5", "compiler": "gc", "platform": "linux/amd64",
        })),
        ["healthz" | "livez" | "readyz"] => Some("ok".into()),
        ["api"] => Some(
            json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] }),
        ),
        ["api", "v1"] => resources("", "v1"),
        ["apis"] => {
            let groups: Vec<_> = groups().into_iter().map(|name| group(name, beta)).collect();
            Some(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
        }
        ["apis", name] => groups().contains(name).then(|| {
            let mut group = group(name, beta);
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            group
        }),
        ["apis", group, version] if versions(group, beta).contains(version) => {
            resources(group, version)
        }
        ["openapi", "v3"] => Some(openapi(beta)),
        ["openapi", "v3", "api", "v1"] => Some(paths("", "v1")),
        ["openapi", "v3", "apis", group, version] if versions(group, beta).contains(version) => {
            Some(paths(group, version))
        }
        _ => None,
    }
}

/// Returns whether a version of a kind is served.
pub(super) fn is_served(resource: &Resource, version: &str, beta: bool) -> bool {
    match resource.group {
        "" => version == resource.version,
        group => versions(group, beta).contains(&version),
    }
}

fn groups() -> Vec<&'static str> {
    let mut groups = vec![AUTHORIZATION];
    for resource in RESOURCES.iter().filter(|resource| !resource.group.is_empty()) {
        if !groups.contains(&resource.group) {
            groups.push(resource.group);
        }
    }
    groups
}

fn versions(group: &str, beta: bool) -> Vec<&'static str> {
    if group == EXTERNAL_SECRETS && beta {
        return vec!["v1", "v1beta1"];
    }
    match RESOURCES.iter().find(|resource| resource.group == group) {
        Some(resource) => vec![resource.version],
        None if group == AUTHORIZATION => vec!["v1"],
        None => Vec::new(),
    }
}

fn group(name: &str, beta: bool) -> Value {
    let versions: Vec<_> = versions(name, beta)
        .into_iter()
        .map(|version| json!({ "groupVersion": format!("{name}/{version}"), "version": version }))
        .collect();
    json!({ "name": name, "versions": versions, "preferredVersion": versions[0] })
}

const VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

fn resources(group: &str, version: &str) -> Option<Value> {
    let mut listed = Vec::new();
    if group == AUTHORIZATION {
        listed.push(json!({
            "name": "selfsubjectaccessreviews", "singularName": "selfsubjectaccessreview", "namespaced": false,
            "kind": "SelfSubjectAccessReview", "verbs": ["create"],
        }));
    }
    for resource in RESOURCES.iter().filter(|resource| resource.group == group) {
        let mut entry = json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.name, "verbs": VERBS, "shortNames": resource.short,
        });
        if runs_something(resource) {
            entry["categories"] = json!(["all"]);
        }
        listed.push(entry);
        listed.extend(subresources(resource));
    }
    let group_version =
        if group.is_empty() { version.into() } else { format!("{group}/{version}") };
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": listed,
    }))
}

/// Returns whether `kubectl get all` shows it.
fn runs_something(resource: &Resource) -> bool {
    let workload = matches!(resource.group, "apps" | "batch" | "autoscaling");
    (workload && resource.kind != Kind::ControllerRevision)
        || matches!(resource.kind, Kind::Pod | Kind::Service)
}

fn subresources(resource: &Resource) -> Vec<Value> {
    let entry = |name: &str, kind: &str, verbs: &[&str]| {
        json!({
            "name": format!("{}/{name}", resource.plural), "singularName": "", "namespaced": resource.namespaced,
            "kind": kind, "verbs": verbs,
        })
    };
    let mut listed = Vec::new();
    if resource.status {
        listed.push(entry("status", resource.name, &["get", "patch", "update"]));
    }
    if resource.scale {
        let mut scale = entry("scale", "Scale", &["get", "patch", "update"]);
        scale["group"] = "autoscaling".into();
        scale["version"] = "v1".into();
        listed.push(scale);
    }
    if resource.kind == Kind::Pod {
        listed.push(entry("log", "Pod", &["get"]));
        listed.push(entry("exec", "PodExecOptions", &["create", "get"]));
        listed.push(entry("portforward", "PodPortForwardOptions", &["create", "get"]));
        let mut eviction = entry("eviction", "Eviction", &["create"]);
        eviction["group"] = "policy".into();
        eviction["version"] = "v1".into();
        listed.push(eviction);
    }
    listed
}

/// Says where the paths of each group are described.
fn openapi(beta: bool) -> Value {
    let mut found = json!({ "api/v1": { "serverRelativeURL": "/openapi/v3/api/v1" } });
    for group in groups() {
        for version in versions(group, beta) {
            let path = format!("apis/{group}/{version}");
            found[&path] = json!({ "serverRelativeURL": format!("/openapi/v3/{path}") });
        }
    }
    json!({ "paths": found })
}

/// Says of each kind what kubectl looks for: that the server validates fields by itself.
fn paths(group: &str, version: &str) -> Value {
    let root = if group.is_empty() { "/api/v1".into() } else { format!("/apis/{group}/{version}") };
    let mut found = json!({});
    for resource in RESOURCES.iter().filter(|resource| resource.group == group) {
        let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
        let path = format!("{root}{scope}/{}/{{name}}", resource.plural);
        let parameters: Vec<_> = ["dryRun", "fieldManager", "fieldValidation", "force"]
            .into_iter()
            .map(|name| json!({ "name": name, "in": "query", "schema": { "type": "string" } }))
            .collect();
        found[&path] = json!({ "patch": {
            "parameters": parameters,
            "responses": {},
            "x-kubernetes-action": "patch",
            "x-kubernetes-group-version-kind": { "group": group, "version": version, "kind": resource.name },
        } });
    }
    json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": "v1.33.4" },
        "paths": found,
        "components": { "schemas": {} },
    })
}
