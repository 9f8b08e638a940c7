//! What is made in the namespace. Pods keep to the strictest of the pod security standards, and ask for little.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::api::Kind;
use crate::check::TOLERATED;

/// Where the backend listens.
pub(crate) const PORT: u16 = 8080;

/// How long its tokens live, in seconds.
pub(crate) const TOKEN_LIFE: u32 = 8;

/// The label that pods of one workload have.
pub(crate) const LABEL: &str = "app";

/// The label of every Secret of a shop.
pub(crate) const SHOP: &str = "team=shop";

/// The most bytes of the program in one ConfigMap; an object may have a mebibyte.
const PART: usize = 700 * 1024;

/// How pods are given the program.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// The image that they run in. It needs `sh`, `cat`, `chmod` and `sleep`.
    pub(crate) image: String,
    /// The architecture that the program was built for, as nodes name it.
    pub(crate) architecture: &'static str,
    /// In how many parts it is shipped.
    pub(crate) parts: usize,
}

/// Returns the ConfigMaps that hold a program in parts.
pub(crate) fn parts(program: &[u8]) -> Vec<Value> {
    let chunks = program.chunks(PART).enumerate();
    let object = |(number, chunk): (usize, &[u8])| {
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": part(number) },
            "immutable": true,
            "binaryData": { "part": STANDARD.encode(chunk) },
        })
    };
    chunks.map(object).collect()
}

fn part(number: usize) -> String {
    format!("program-{number:02}")
}

/// Returns the Secret of a shop.
pub(crate) fn secret(name: &str, values: &[(&str, &str)]) -> Value {
    let data: serde_json::Map<_, _> = values
        .iter()
        .map(|(key, value)| ((*key).to_owned(), STANDARD.encode(value).into()))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": name, "labels": { "team": "shop" } },
        "data": data,
    })
}

/// What pods do with the Secret of a shop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// They serve people with what it held when they started.
    Once,
    /// They read the file of the pepper, again and again.
    Again,
}

/// Returns the workload of a shop, which reads its Secret.
pub(crate) fn workload(
    kind: Kind,
    name: &str,
    replicas: u32,
    program: &Program,
    reads: Reads,
) -> Value {
    let rolling = json!({ "maxSurge": 1, "maxUnavailable": 0 });
    let strategy = json!({ "type": "RollingUpdate", "rollingUpdate": rolling });
    let mut spec = json!({
        "selector": { "matchLabels": { LABEL: name } },
        "template": match reads {
            Reads::Once => template(name, program),
            Reads::Again => rereading(name, program),
        },
    });
    match kind {
        Kind::DaemonSet => spec["updateStrategy"] = strategy,
        Kind::StatefulSet => {
            spec["replicas"] = replicas.into();
            spec["serviceName"] = name.into();
        }
        _ => {
            spec["replicas"] = replicas.into();
            spec["strategy"] = strategy;
        }
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": format!("{kind:?}"),
        "metadata": { "name": name },
        "spec": spec,
    })
}

/// Puts the program together. A stand-in that runs processes without isolation says where its volumes are.
const UNPACK: &str = r#"cat "$VOLUME_ROOT"/parts/*/part > "$VOLUME_ROOT/program/shop" && chmod 755 "$VOLUME_ROOT/program/shop""#;

const SERVE: &str = r#"exec "$VOLUME_ROOT/program/shop" backend"#;

fn template(name: &str, program: &Program) -> Value {
    let numbers = || 0..program.parts;
    let mut mounts: Vec<_> = numbers()
        .map(|number| {
            let path = format!("/parts/{number:02}");
            json!({ "name": part(number), "mountPath": path, "readOnly": true })
        })
        .collect();
    let mut volumes: Vec<_> = numbers()
        .map(|number| json!({ "name": part(number), "configMap": { "name": part(number) } }))
        .collect();
    mounts.push(json!({ "name": "program", "mountPath": "/program" }));
    volumes.push(json!({ "name": "program", "emptyDir": {} }));
    let from = |variable: &str, key: &str| {
        let reference = json!({ "name": name, "key": key });
        json!({ "name": variable, "valueFrom": { "secretKeyRef": reference } })
    };
    let mut unpack = container("unpack", UNPACK, program);
    unpack["volumeMounts"] = mounts.into();
    let mut backend = container("backend", SERVE, program);
    backend["volumeMounts"] =
        json!([{ "name": "program", "mountPath": "/program", "readOnly": true }]);
    backend["env"] = json!([
        { "name": "JWT_LIFE_SECONDS", "value": TOKEN_LIFE.to_string() },
        // Long enough that every connection that users keep is told to close.
        { "name": "DRAIN_SECONDS", "value": "5" },
        from("JWT_SECRET", "jwt"),
        from("JWT_SECRET_ALSO_ACCEPTED", "jwt-also"),
        from("SESSION_PEPPER", "pepper"),
    ]);
    backend["ports"] = json!([{ "containerPort": PORT }]);
    backend["readinessProbe"] = json!({
        "httpGet": { "path": "/health", "port": PORT },
        "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 5,
    });
    backend["lifecycle"] = json!({ "preStop": { "sleep": { "seconds": 2 } } });
    let mut template = pod(name, program, backend, volumes.into());
    template["spec"]["initContainers"] = json!([unpack]);
    template
}

/// The file that pods read again and again.
pub(crate) const PEPPER: &str = "/values/pepper";

/// Reads it each second.
const REREAD: &str = r#"trap 'exit 0' TERM
while true; do cat "$VOLUME_ROOT/values/pepper" > /dev/null; sleep 1; done"#;

/// Returns the template of pods whose program reads a file of the Secret again, and that nobody asks for anything.
fn rereading(name: &str, program: &Program) -> Value {
    let mut reader = container("backend", REREAD, program);
    reader["volumeMounts"] =
        json!([{ "name": "values", "mountPath": "/values", "readOnly": true }]);
    let items = json!([{ "key": "pepper", "path": "pepper" }]);
    let secret = json!({ "secretName": name, "items": items });
    pod(name, program, reader, json!([{ "name": "values", "secret": secret }]))
}

fn pod(name: &str, program: &Program, container: Value, volumes: Value) -> Value {
    json!({
        "metadata": { "labels": { LABEL: name } },
        "spec": {
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 20,
            "nodeSelector": { "kubernetes.io/arch": program.architecture, "kubernetes.io/os": "linux" },
            "tolerations": TOLERATED.map(|key| json!({ "key": key, "operator": "Exists" })),
            // No pod looks a name up, and no cluster needs to serve any.
            "dnsPolicy": "None",
            "dnsConfig": { "nameservers": ["127.0.0.1"] },
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 65_534,
                "runAsGroup": 65_534,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [container],
            "volumes": volumes,
        },
    })
}

fn container(name: &str, script: &str, program: &Program) -> Value {
    json!({
        "name": name,
        "image": program.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
        "resources": { "requests": { "cpu": "10m", "memory": "16Mi" } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_shipped_whole_and_in_order_in_objects_that_a_server_takes() {
        let program: Vec<u8> = (0..PART * 2 + 5).map(|at| (at % 251) as u8).collect();
        let parts = parts(&program);
        let names: Vec<_> =
            parts.iter().map(|it| it["metadata"]["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["program-00", "program-01", "program-02"]);
        let decoded = parts.iter().flat_map(|part| {
            assert!(part.to_string().len() < 1024 * 1024);
            STANDARD.decode(part["binaryData"]["part"].as_str().unwrap()).unwrap()
        });
        assert!(decoded.eq(program.iter().copied()));
    }
}
