//! Secrets of a cluster, as the program rotates them.

use std::sync::Arc;
use std::time::Duration;

use keywheel_twins::kubernetes::{ADMIN, Cluster, Key, Kind};
use serde_json::{Value, json};

use super::{OLD, Project, Ran};

const CONFIG: &str = "
project: shop
policies:
  fast: { cryptoperiod: 90d, soak: 1s, rollback: 1s, watch: 1s }
cluster: { context: admin, kubeconfig: kube }
stores:
  app: { kubernetes_secret: { namespace: shop, name: api-keys } }
secrets:
  pepper:
    policy: fast
    issuer: { random: { length: 32 } }
    stores: { app: pepper }
    read_by: nobody
    because: it is read when the image is built
";

fn cluster() -> Cluster {
    let cluster = Cluster::start().unwrap();
    cluster.objects().make_namespace("shop");
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": { "name": "api-keys", "namespace": "shop", "labels": { "team": "shop" } },
        "stringData": { "pepper": OLD, "other": "theirs" },
    });
    cluster.objects().create(Kind::Secret, secret, "kubectl-create").unwrap();
    cluster
}

fn project(cluster: &Cluster, config: &str) -> Project {
    let project = Project::new();
    project.write("keywheel.yaml", config);
    cluster.write_kubeconfig(&project.path("kube")).unwrap();
    project
}

fn secret(cluster: &Cluster, name: &str) -> Arc<Value> {
    cluster.objects().get(&Key::new(Kind::Secret, "shop", name)).unwrap()
}

fn held(cluster: &Cluster, name: &str) -> String {
    secret(cluster, name)["data"]["pepper"].as_str().unwrap().to_owned()
}

fn ends(ran: &Ran, cluster: &Cluster, code: i32) {
    ran.ends(code);
    let token = cluster.token(ADMIN).unwrap();
    assert!(!ran.stdout.contains(&token) && !ran.stderr.contains(&token), "{ran:?}");
}

#[test]
fn a_key_of_a_secret_is_rotated_in_place_and_nothing_else_changes() {
    let cluster = cluster();
    let project = project(&cluster, CONFIG);
    let first = held(&cluster, "api-keys");
    ends(&project.run(&["adopt", "pepper", "--yes"]), &cluster, 0);
    let rotated = project.run(&["rotate", "pepper", "--yes", "--soak"]);
    ends(&rotated, &cluster, 0);
    rotated.says("completed; v2 is current");
    let after = secret(&cluster, "api-keys");
    assert_ne!(held(&cluster, "api-keys"), first);
    assert_eq!(after["data"]["other"], json!("dGhlaXJz"));
    assert_eq!(after["metadata"]["labels"], json!({ "team": "shop" }));
    let claim = after["metadata"]["annotations"]["keywheel.dev/claim"].as_str().unwrap();
    assert!(claim.contains("\"environment\":\"default\""), "{claim}");
    project.run(&["doctor"]).ends(0).says("world and journal agree");
    let seen = cluster.faults().seen();
    let looks = |verb| seen.iter().any(|one| one.resource == "secrets" && one.verb == verb);
    assert!(!looks("list") && !looks("watch") && !looks("update"));
}

#[test]
fn a_secret_in_versions_is_rotated_cleaned_up_and_undone() {
    let cluster = cluster();
    let config = CONFIG.replace("name: api-keys }", "name: api-keys, approach: versioned }");
    let project = project(&cluster, &config);
    let before = secret(&cluster, "api-keys");
    let head = || {
        let head = Key::new(Kind::ConfigMap, "shop", "api-keys.keywheel");
        cluster.objects().get(&head).unwrap()["data"]["current"].clone()
    };
    let secrets = || {
        let (secrets, _) = cluster.objects().list(Kind::Secret, Some("shop"));
        secrets.iter().map(|one| one["metadata"]["name"].clone()).collect::<Vec<_>>()
    };
    for _ in 0..2 {
        ends(&project.run(&["rotate", "pepper", "--yes", "--soak"]), &cluster, 0);
    }
    assert_eq!(head(), json!("api-keys-v2"));
    assert_eq!(secrets(), ["api-keys", "api-keys-v2"], "nothing names the first version any more");
    project.write("keywheel.yaml", &config.replace("soak: 1s", "soak: 1h"));
    ends(&project.run(&["rotate", "pepper", "--yes"]), &cluster, 0);
    assert_eq!(head(), json!("api-keys-v3"));
    ends(&project.run(&["undo", "pepper", "--yes", "--because", "a test"]), &cluster, 0);
    assert_eq!(head(), json!("api-keys-v2"));
    let after = secret(&cluster, "api-keys");
    assert_eq!(after["data"], before["data"], "the Secret that was there keeps what it holds");
    assert_eq!(after["metadata"]["labels"], before["metadata"]["labels"]);
    assert_eq!(after["metadata"]["annotations"].as_object().unwrap().len(), 1, "{after}");
}

#[test]
fn another_cluster_behind_the_same_context_is_not_written() {
    let (cluster, other) = (cluster(), cluster());
    let project = project(&cluster, CONFIG);
    ends(&project.run(&["adopt", "pepper", "--yes"]), &cluster, 0);
    other.write_kubeconfig(&project.path("kube")).unwrap();
    let refused = project.run(&["rotate", "pepper", "--yes"]);
    assert!(matches!(refused.code, Some(2..=4)), "{refused:?}");
    refused.says(&cluster.identity()).says(&other.identity());
    assert_eq!(other.faults().writes(), 0);
    assert_eq!(held(&cluster, "api-keys"), held(&other, "api-keys"));
}

#[test]
fn h49_whoever_writes_the_old_value_back_while_it_soaks_is_named_and_not_fought() {
    let cluster = cluster();
    let project = project(&cluster, &CONFIG.replace("soak: 1s", "soak: 12s, gate_limit: 1s"));
    let first = held(&cluster, "api-keys");
    ends(&project.run(&["rotate", "pepper", "--yes"]), &cluster, 0);
    let key = Key::new(Kind::Secret, "shop", "api-keys");
    let old = first.clone();
    let reverted = move |secret: &mut Value| secret["data"]["pepper"] = json!(old);
    let rival =
        cluster.rival("argocd-controller", key, Duration::from_millis(5), reverted).unwrap();
    // A quarter of the soak is the time between two looks.
    std::thread::sleep(Duration::from_millis(3_200));
    cluster.faults().forget();
    ends(&project.run(&["resume", "pepper", "--soak"]), &cluster, 3);
    let status = project.run(&["status"]);
    status.ends(0).says("store `app` was changed by `argocd-controller` (Argo CD, 20");
    project.run(&["doctor"]).ends(3).says("store `app` was changed by `argocd-controller`");
    let rotations = project.json(&["rotation", "list"]);
    let rotation = rotations["rotations"][0]["rotation"].as_str().unwrap();
    let shown = project.run(&["rotation", "show", rotation]);
    shown.ends(0).says("store `app` was changed by `argocd-controller` (Argo CD, 20");
    shown.says("take its key out of what Argo CD deploys");
    assert_eq!(cluster.faults().writes(), 0, "nobody fights");
    assert!(rival.writes() > 0);
    assert_eq!(held(&cluster, "api-keys"), first);
}

#[test]
fn a_mistyped_key_is_refused_before_anything_is_made() {
    let cluster = cluster();
    let project = project(&cluster, &CONFIG.replace("app: pepper", "app: peper"));
    let refused = project.run(&["rotate", "pepper", "--yes"]);
    assert!(matches!(refused.code, Some(2..=4)), "{refused:?}");
    refused.says("has no key `peper`; did you mean `pepper`?");
    assert!(secret(&cluster, "api-keys")["data"].get("peper").is_none());
}
