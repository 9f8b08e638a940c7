//! Defaults and validation of pods and of what makes pods.

use serde_json::{Value, json};

use super::kinds::{Kind, Resource};
use super::rules::{fill, marks};
use super::status::Cause;

/// Fills in and judges a pod, or what makes pods.
pub(super) fn settle(
    resource: &Resource,
    new: &mut Value,
    old: Option<&Value>,
    causes: &mut Vec<Cause>,
) {
    match resource.kind {
        Kind::Pod => pod(new, old, causes),
        Kind::Deployment => deployment(new, old, causes),
        Kind::ReplicaSet => {
            fill(new, &[("/spec/replicas", 1.into())]);
            template(new, "/spec/template", causes);
            selector(new, old, causes);
        }
        Kind::StatefulSet => stateful_set(new, old, causes),
        Kind::DaemonSet => {
            fill(
                new,
                &[
                    ("/spec/updateStrategy/type", "RollingUpdate".into()),
                    ("/spec/revisionHistoryLimit", 10.into()),
                ],
            );
            if new["spec"]["updateStrategy"]["type"] == "RollingUpdate" {
                fill(
                    new,
                    &[
                        ("/spec/updateStrategy/rollingUpdate/maxSurge", 0.into()),
                        ("/spec/updateStrategy/rollingUpdate/maxUnavailable", 1.into()),
                    ],
                );
            }
            template(new, "/spec/template", causes);
            selector(new, old, causes);
        }
        Kind::Job => job(new, old, causes),
        Kind::CronJob => {
            fill(
                new,
                &[
                    ("/spec/concurrencyPolicy", "Allow".into()),
                    ("/spec/suspend", false.into()),
                    ("/spec/successfulJobsHistoryLimit", 3.into()),
                    ("/spec/failedJobsHistoryLimit", 1.into()),
                ],
            );
            template(new, "/spec/jobTemplate/spec/template", causes);
        }
        Kind::Service => service(new),
        _ => {}
    }
}

fn deployment(new: &mut Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    fill(
        new,
        &[
            ("/spec/replicas", 1.into()),
            ("/spec/revisionHistoryLimit", 10.into()),
            ("/spec/progressDeadlineSeconds", 600.into()),
            ("/spec/strategy/type", "RollingUpdate".into()),
        ],
    );
    if new["spec"]["strategy"]["type"] == "RollingUpdate" {
        fill(
            new,
            &[
                ("/spec/strategy/rollingUpdate/maxSurge", "25%".into()),
                ("/spec/strategy/rollingUpdate/maxUnavailable", "25%".into()),
            ],
        );
    } else if new.pointer("/spec/strategy/rollingUpdate").is_some_and(|it| !it.is_null()) {
        let why = "may not be specified when strategy `type` is 'Recreate'";
        causes.push(Cause::forbidden("spec.strategy.rollingUpdate", why));
    }
    template(new, "/spec/template", causes);
    selector(new, old, causes);
}

/// What of a StatefulSet's spec may change.
const CHANGING: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

fn stateful_set(new: &mut Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    fill(
        new,
        &[
            ("/spec/replicas", 1.into()),
            ("/spec/revisionHistoryLimit", 10.into()),
            ("/spec/podManagementPolicy", "OrderedReady".into()),
            ("/spec/updateStrategy/type", "RollingUpdate".into()),
        ],
    );
    if new["spec"]["updateStrategy"]["type"] == "RollingUpdate" {
        fill(new, &[("/spec/updateStrategy/rollingUpdate/partition", 0.into())]);
    }
    template(new, "/spec/template", causes);
    let Some(old) = old else { return selector(new, None, causes) };
    let fixed = |object: &Value| {
        let mut spec = object["spec"].clone();
        if let Some(spec) = spec.as_object_mut() {
            spec.retain(|name, _| !CHANGING.contains(&name.as_str()));
        }
        spec
    };
    if fixed(old) != fixed(new) {
        let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        causes.push(Cause::forbidden("spec", why));
    }
}

/// Labels the pods of a Job with its uid, and keeps its template as it was.
fn job(new: &mut Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let uid = new["metadata"]["uid"].clone();
    let name = new["metadata"]["name"].clone();
    fill(
        new,
        &[
            ("/spec/parallelism", 1.into()),
            ("/spec/completions", 1.into()),
            ("/spec/backoffLimit", 6.into()),
            ("/spec/suspend", false.into()),
            ("/spec/completionMode", "NonIndexed".into()),
        ],
    );
    for label in ["batch.kubernetes.io/controller-uid", "controller-uid"] {
        if new["spec"]["template"]["metadata"]["labels"].get(label).is_none() {
            new["spec"]["template"]["metadata"]["labels"][label] = uid.clone();
        }
    }
    for label in ["batch.kubernetes.io/job-name", "job-name"] {
        if new["spec"]["template"]["metadata"]["labels"].get(label).is_none() {
            new["spec"]["template"]["metadata"]["labels"][label] = name.clone();
        }
    }
    if new["spec"]["selector"].is_null() {
        new["spec"]["selector"] =
            json!({ "matchLabels": { "batch.kubernetes.io/controller-uid": uid } });
    }
    let policy = new["spec"]["template"]["spec"]["restartPolicy"].as_str();
    if !matches!(policy, Some("Never" | "OnFailure")) {
        let why = "valid values: \"OnFailure\", \"Never\"";
        causes.push(Cause::required("spec.template.spec.restartPolicy", why));
    }
    template(new, "/spec/template", causes);
    if old.is_some_and(|old| old["spec"]["template"] != new["spec"]["template"]) {
        causes.push(Cause::invalid("spec.template", &json!("..."), "field is immutable"));
    }
}

fn service(new: &mut Value) {
    fill(new, &[("/spec/type", "ClusterIP".into()), ("/spec/sessionAffinity", "None".into())]);
    for port in items_mut(&mut new["spec"], "ports") {
        let number = port["port"].clone();
        fill(port, &[("/protocol", "TCP".into()), ("/targetPort", number)]);
    }
}

/// Refuses a selector that does not fit the template, or that changes.
fn selector(new: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let spec = &new["spec"];
    let Some(labels) = spec["selector"]["matchLabels"].as_object() else {
        if !spec["selector"]["matchExpressions"].is_array() {
            causes.push(Cause::required("spec.selector", ""));
        }
        return;
    };
    let given = &spec["template"]["metadata"]["labels"];
    if labels.iter().any(|(name, value)| given.get(name) != Some(value)) {
        let why = "`selector` does not match template `labels`";
        causes.push(Cause::invalid("spec.template.metadata.labels", given, why));
    }
    if old.is_some_and(|old| old["spec"]["selector"] != spec["selector"]) {
        causes.push(Cause::invalid("spec.selector", &spec["selector"], "field is immutable"));
    }
}

fn template(new: &mut Value, at: &str, causes: &mut Vec<Cause>) {
    let path = at.trim_start_matches('/').replace('/', ".");
    fill(new, &[(at, json!({ "spec": {} }))]);
    let Some(template) = new.pointer_mut(at) else { return };
    marks(&template["metadata"], &format!("{path}.metadata"), causes);
    pod_spec(&mut template["spec"], &format!("{path}.spec"), causes);
}

/// What of a pod's spec may change; its images may too.
const FREE: &[&str] =
    &["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "nodeName"];

fn pod(new: &mut Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    fill(
        new,
        &[
            ("/spec/serviceAccountName", "default".into()),
            ("/spec/enableServiceLinks", true.into()),
            ("/status/phase", "Pending".into()),
            ("/status/qosClass", "BestEffort".into()),
        ],
    );
    pod_spec(&mut new["spec"], "spec", causes);
    let Some(old) = old else { return };
    let bound = old["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    let moved = bound && old["spec"]["nodeName"] != new["spec"]["nodeName"];
    if moved || fixed(&old["spec"]) != fixed(&new["spec"]) {
        let why = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
        causes.push(Cause::forbidden("spec", why));
    }
}

fn fixed(spec: &Value) -> Value {
    let mut spec = spec.clone();
    for list in ["containers", "initContainers"] {
        for container in items_mut(&mut spec, list) {
            container["image"] = Value::Null;
        }
    }
    if let Some(spec) = spec.as_object_mut() {
        spec.retain(|name, _| !FREE.contains(&name.as_str()));
    }
    spec
}

fn pod_spec(spec: &mut Value, at: &str, causes: &mut Vec<Cause>) {
    fill(
        spec,
        &[
            ("/restartPolicy", "Always".into()),
            ("/dnsPolicy", "ClusterFirst".into()),
            ("/schedulerName", "default-scheduler".into()),
            ("/securityContext", json!({})),
            ("/terminationGracePeriodSeconds", 30.into()),
        ],
    );
    for volume in items_mut(spec, "volumes") {
        for source in ["secret", "configMap", "projected"] {
            if volume.get(source).is_some_and(Value::is_object) {
                fill(volume, &[(&format!("/{source}/defaultMode"), 420.into())]);
            }
        }
    }
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec, list) {
            fill_container(container);
        }
    }
    if spec["containers"].as_array().is_none_or(Vec::is_empty) {
        causes.push(Cause::required(format!("{at}.containers"), ""));
    }
    for list in ["containers", "initContainers"] {
        let containers = spec.get(list).and_then(Value::as_array).into_iter().flatten();
        for (index, container) in containers.enumerate() {
            judge_container(container, &spec["volumes"], &format!("{at}.{list}[{index}]"), causes);
        }
    }
}

/// Returns the items of a list, which need not be there.
fn items_mut<'a>(object: &'a mut Value, list: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten()
}

fn fill_container(container: &mut Value) {
    let image = container["image"].as_str().unwrap_or_default();
    let tag = image.rsplit('/').next().unwrap_or_default().split_once(':').map(|(_, tag)| tag);
    let policy = if matches!(tag, None | Some("latest")) { "Always" } else { "IfNotPresent" };
    fill(
        container,
        &[
            ("/imagePullPolicy", policy.into()),
            ("/resources", json!({})),
            ("/terminationMessagePath", "/dev/termination-log".into()),
            ("/terminationMessagePolicy", "File".into()),
        ],
    );
    for port in items_mut(container, "ports") {
        fill(port, &[("/protocol", "TCP".into())]);
    }
    for probe in ["readinessProbe", "livenessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(probe).filter(|probe| probe.is_object()) else {
            continue;
        };
        fill(
            probe,
            &[
                ("/timeoutSeconds", 1.into()),
                ("/periodSeconds", 10.into()),
                ("/successThreshold", 1.into()),
                ("/failureThreshold", 3.into()),
            ],
        );
        if probe.get("httpGet").is_some_and(Value::is_object) {
            fill(probe, &[("/httpGet/path", "/".into()), ("/httpGet/scheme", "HTTP".into())]);
        }
    }
}

fn judge_container(container: &Value, volumes: &Value, at: &str, causes: &mut Vec<Cause>) {
    for field in ["name", "image"] {
        if container[field].as_str().is_none_or(str::is_empty) {
            causes.push(Cause::required(format!("{at}.{field}"), ""));
        }
    }
    for (index, variable) in container["env"].as_array().into_iter().flatten().enumerate() {
        if variable["name"].as_str().is_none_or(str::is_empty) {
            causes.push(Cause::required(format!("{at}.env[{index}].name"), ""));
        }
        let from = variable.get("valueFrom").is_some_and(|from| !from.is_null());
        if from && variable["value"].as_str().is_some_and(|value| !value.is_empty()) {
            let why = "may not be specified when `value` is not empty";
            causes.push(Cause::invalid(format!("{at}.env[{index}].valueFrom"), &json!(""), why));
        }
    }
    for (index, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate() {
        let mut named = volumes.as_array().into_iter().flatten();
        if !named.any(|volume| volume["name"] == mount["name"]) {
            let message = format!("Not found: {}", mount["name"]);
            let field = format!("{at}.volumeMounts[{index}].name");
            causes.push(Cause { field, reason: "FieldValueNotFound", message });
        }
    }
}
