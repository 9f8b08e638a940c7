//! What `keywheel export` prints is what a cluster needs, and no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keywheel_twins::kubernetes::{Cluster, Deletion, Key, Kind, Objects};
use serde_json::{Value, json};

use super::{NAMESPACE, OLD, Shop};

/// The account that the roles are for, as the cluster names it; its context has the same name.
const ACCOUNT: &str = "system:serviceaccount:shop:keywheel";

/// Gives the program nothing but what it prints that it needs.
fn narrow(approach: &'static str) -> Shop {
    let shop = Shop::open(approach);
    shop.cluster.add_user(ACCOUNT, Vec::new());
    shop.reach();
    shop.configure_as(ACCOUNT, 32);
    for role in exported(&shop, &["kubernetes-rbac"]) {
        let kind = if role["kind"] == "Role" { Kind::Role } else { Kind::RoleBinding };
        shop.cluster.objects().create(kind, role, "kubectl").unwrap();
    }
    shop.cluster.faults().forget();
    shop
}

fn exported(shop: &Shop, what: &[&str]) -> Vec<Value> {
    let arguments = [&["export"], what, &["--output", "json", "--quiet"]].concat();
    let said: Value = serde_json::from_str(&shop.run(&arguments, 0)).unwrap();
    said["manifests"].as_array().unwrap().clone()
}

/// Returns what was refused for want of a right.
fn refused(shop: &Shop) -> Vec<String> {
    let seen = shop.cluster.faults().seen().into_iter();
    let refused = seen.filter(|one| one.code == Some(403));
    refused.map(|one| format!("{} {}", one.verb, one.path)).collect()
}

#[test]
fn the_roles_that_are_printed_are_enough_and_each_rule_that_is_missing_is_named() {
    let shop = narrow("in_place");
    let roles = [
        Key::new(Kind::Role, NAMESPACE, "keywheel-shop-default"),
        Key::new(Kind::Role, "kube-system", "keywheel-shop-default"),
    ];
    for key in &roles {
        let whole = shop.cluster.objects().get(key).unwrap()["rules"].clone();
        for (number, rule) in whole.as_array().unwrap().iter().enumerate() {
            let without =
                |role: &mut Value| drop(role["rules"].as_array_mut().unwrap().remove(number));
            shop.cluster.objects().change(key, "kubectl", without).unwrap();
            // What is only told to people is done without.
            let resource = rule["resources"][0].as_str().unwrap();
            let is_told = ["pods/log", "poddisruptionbudgets", "horizontalpodautoscalers"];
            if !is_told.contains(&resource) {
                let said = shop.run(&["check"], 4);
                assert!(said.contains(resource), "{rule}: {said}");
            }
            shop.cluster
                .objects()
                .change(key, "kubectl", |role| role["rules"] = whole.clone())
                .unwrap();
        }
    }
    shop.cluster.faults().forget();
    let said = shop.run(&["check"], 0);
    assert!(said.contains("ready"), "{said}");
    shop.run(&["rotate", "key", "--yes", "--soak"], 0);
    assert_eq!(shop.held(), vec![shop.stored("app"); 3]);
    assert_ne!(shop.stored("app"), OLD);
    assert_eq!(refused(&shop), [""; 0]);
    let secrets = shop.cluster.faults().seen().into_iter().filter(|one| one.resource == "secrets");
    assert!(secrets.into_iter().all(|one| one.name.as_deref() == Some("app")));
}

#[test]
fn the_roles_that_are_printed_are_enough_for_versions() {
    let shop = narrow("versioned");
    let said = shop.run(&["check"], 0);
    assert!(!said.contains("does not allow"), "{said}");
    shop.run(&["rotate", "key", "--yes", "--soak"], 0);
    let held = shop.held();
    assert!(held.len() == 3 && held.iter().all(|key| key != OLD && *key == held[0]));
    assert_eq!(refused(&shop), [""; 0]);
    // Where its versions are is told although nothing says any more which one is current.
    let head = Key::new(Kind::ConfigMap, NAMESPACE, "app.keywheel");
    shop.cluster.objects().delete(&head, &Deletion::default()).unwrap();
    let said = shop.run(&["where", "key", "--cluster"], 0);
    for part in ["is gone, and named the current version", "app-v1", "reads it of `app-v1` by env"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(said.contains("not seen: what the replicas of `backend` hold"), "{said}");
}

#[test]
fn roles_are_printed_for_one_cluster_and_for_whom_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let config = "project: shop\nstores:\n  eu: { kubernetes_secret: { namespace: shop, name: keys, cluster: { context: eu } } }\n  us: { kubernetes_secret: { namespace: shop, name: keys, cluster: { context: us } } }\n  a: { kubernetes_secret: { namespace: shop, name: keys, cluster: { context: ap, kubeconfig: /kube/a } } }\n  b: { kubernetes_secret: { namespace: shop, name: keys, cluster: { context: ap, kubeconfig: /kube/b } } }\n  here: { kubernetes_secret: { namespace: shop, name: keys, cluster: { in_cluster: {} } } }\nsecrets:\n  key: { issuer: random, stores: { eu: key, us: key }, read_by: nobody, because: a test }\n";
    let file = folder.path().join("keywheel.yaml");
    std::fs::write(&file, config).unwrap();
    let run = |arguments: &[&str], ends: i32| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_keywheel"));
        let output = command.args(arguments).arg("--config").arg(&file).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(ends), "{said}");
        said
    };
    let said = run(&["export", "kubernetes-rbac"], 1);
    let names =
        "name one by `--context`: 'ap of /kube/a', 'ap of /kube/b', 'eu', 'in-cluster', 'us'";
    assert!(said.contains(names), "{said}");
    let said = run(&["export", "kubernetes-rbac", "--context", "nowhere"], 1);
    assert!(said.contains("nothing of `default` is in a cluster `nowhere`"), "{said}");
    assert!(said.contains(names), "{said}");
    let said = run(&["export", "kubernetes-rbac", "--context", "ap"], 1);
    assert!(said.contains("'ap of /kube/a', 'ap of /kube/b'") && !said.contains("'us'"), "{said}");
    for cluster in ["ap of /kube/b", "in-cluster"] {
        run(&["export", "kubernetes-rbac", "--context", cluster], 0);
    }
    let said = run(&["export", "kubernetes-rbac", "--context", "us", "--user", "dana"], 0);
    let role = "kind: Role\nmetadata:\n  name: keywheel-shop-default\n  namespace: shop\nrules:\n- apiGroups: [\"\"]\n  resourceNames: [keys]\n  resources: [secrets]\n  verbs: [get, patch]\n";
    assert!(said.contains(role), "{said}");
    assert!(said.contains("  kind: User\n  name: dana\n"), "{said}");
    assert!(!said.contains("ServiceAccount"), "{said}");
    let said = run(
        &[
            "export",
            "kubernetes-rbac",
            "--context",
            "eu",
            "--with-account",
            "--account",
            "ops/rotor",
        ],
        0,
    );
    assert!(said.starts_with("apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: rotor\n  namespace: ops\n---\n"), "{said}");
    assert!(said.contains("- kind: ServiceAccount\n  name: rotor\n  namespace: ops\n"), "{said}");
}

const BROUGHT: &str = r#"
project: shop
cluster: { context: admin, kubeconfig: kubeconfig }
policies:
  fast: { soak: 1s, rollback: 1s, watch: 1s }
stores:
  app:
    external_secret:
      namespace: shop
      name: app
      synced_within: 30s
      upstream: { kubernetes_secret: { namespace: source, name: values } }
secrets:
  key:
    policy: fast
    issuer: { random: { length: 32 } }
    stores: { app: key }
    read_by: nobody
    because: the test reads it
"#;

/// Does what the operator does by the manifests of one ExternalSecret: reads where they say, and notes that it read.
fn bring(objects: &Objects, at: &Key) -> Option<()> {
    let external = objects.get(at)?;
    let store = external["spec"]["secretStoreRef"]["name"].as_str()?;
    let store = objects.get(&Key::new(Kind::SecretStore, NAMESPACE, store))?;
    let remote = store["spec"]["provider"]["kubernetes"]["remoteNamespace"].as_str()?;
    let mut data = serde_json::Map::new();
    for one in external["spec"]["data"].as_array()? {
        let reference = &one["remoteRef"];
        let from = objects.get(&Key::new(Kind::Secret, remote, reference["key"].as_str()?))?;
        let value = from["data"][reference["property"].as_str()?].clone();
        data.insert(one["secretKey"].as_str()?.into(), value);
    }
    let target = external["spec"]["target"]["name"].as_str()?;
    let key = Key::new(Kind::Secret, NAMESPACE, target);
    let manager = "externalsecrets.external-secrets.io/app";
    if objects.get(&key).is_none() {
        let secret = json!({ "metadata": { "name": target, "namespace": NAMESPACE } });
        objects.create(Kind::Secret, secret, manager).ok()?;
    }
    objects.change(&key, manager, |secret| secret["data"] = data.clone().into()).ok()?;
    let condition = json!([{ "type": "Ready", "status": "True", "reason": "SecretSynced" }]);
    let read = jiff::Timestamp::now().to_string();
    let status = json!({ "refreshTime": read, "conditions": condition });
    objects.change_status(at, "external-secrets", |it| it["status"] = status.clone()).ok()?;
    Some(())
}

#[test]
fn what_is_printed_for_the_external_secrets_operator_is_what_a_rotation_then_accepts() {
    let shop = Shop::begin(Cluster::start().unwrap(), "in_place");
    std::fs::write(shop.project().join("keywheel.yaml"), BROUGHT).unwrap();
    let objects = shop.cluster.objects().clone();
    objects.make_namespace(NAMESPACE);
    objects.make_namespace("source");
    let values = json!({ "metadata": { "name": "values", "namespace": "source" }, "data": super::secret(OLD)["data"] });
    objects.create(Kind::Secret, values, "test").unwrap();
    let said = shop.run(&["check"], 4);
    assert!(said.contains("is not served"), "{said}");
    for object in exported(&shop, &["external-secrets"]) {
        let kind =
            if object["kind"] == "SecretStore" { Kind::SecretStore } else { Kind::ExternalSecret };
        assert_eq!(object["apiVersion"], "external-secrets.io/v1");
        objects.create(kind, object, "kubectl").unwrap();
    }
    let at = Key::new(Kind::ExternalSecret, NAMESPACE, "app");
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, brought, mut seen) = (Arc::clone(&stop), objects.clone(), None);
    let operator = std::thread::spawn(move || {
        while !stopped.load(Ordering::SeqCst) {
            let mark =
                brought.get(&at).map(|it| it["metadata"]["annotations"]["force-sync"].clone());
            if mark != seen {
                bring(&brought, &at).expect("the manifests say where everything is");
                seen = mark;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    while objects.get(&Key::new(Kind::Secret, NAMESPACE, "app")).is_none()
        && !operator.is_finished()
    {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(shop.stored("app"), OLD);
    let said = shop.run(&["check"], 0);
    assert!(said.contains("ready"), "{said}");
    shop.run(&["rotate", "key", "--yes", "--soak"], 0);
    stop.store(true, Ordering::SeqCst);
    operator.join().unwrap();
    assert_ne!(shop.stored("app"), OLD);
}
