//! `keywheel init` on manifests and on the stand-in of a cluster, and `where --cluster`: what they propose is a configuration that
//! works, and no value is in what they say or write.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keywheel_twins::kubernetes::run::{Pace, Run, Runtime, Settings};
use keywheel_twins::kubernetes::{ADMIN, Cluster, Key, Kind, Rule};
use serde_json::{Value, json};

const OLD: &str = "kwcanary-0123456789abcdef";

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Secret
metadata: { name: plain, namespace: shop }
stringData: { cookie-jwt-secret: kwcanary-plain }
---
apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: Deployment
  metadata: { name: backend, namespace: shop, annotations: { argocd.argoproj.io/tracking-id: "shop:apps/Deployment:shop/backend" } }
  spec:
    replicas: 2
    selector: { matchLabels: { app: backend } }
    template:
      metadata: { labels: { app: backend } }
      spec:
        containers:
        - name: backend
          image: shop/backend
          env:
          - { name: JWT_SECRET, valueFrom: { secretKeyRef: { name: app, key: jwt-secret } } }
          - { name: JWT_OLD, valueFrom: { secretKeyRef: { name: app, key: jwt-secret-previous } } }
          - { name: AI_KEY, valueFrom: { secretKeyRef: { name: app, key: openai-api-key } } }
          - { name: DATABASE_URL, valueFrom: { secretKeyRef: { name: app, key: database } } }
          - { name: STRIPE_API_KEY, value: sk_live_kwcanary0123456789 }
          - { name: LEVEL, value: info }
          envFrom: [{ secretRef: { name: plain } }, { secretRef: { name: unseen } }]
          volumeMounts: [{ name: outside, mountPath: /outside }]
        volumes: [{ name: outside, projected: { sources: [{ secret: { name: outside } }] } }]
- apiVersion: apps/v1
  kind: StatefulSet
  metadata: { name: queue, namespace: shop }
  spec:
    serviceName: queue
    selector: { matchLabels: { app: queue } }
    template:
      metadata: { labels: { app: queue } }
      spec: { containers: [{ name: queue, image: shop/queue, envFrom: [{ secretRef: { name: app } }] }] }
---
apiVersion: batch/v1
kind: CronJob
metadata: { name: report, namespace: shop }
spec:
  schedule: "0 4 * * *"
  jobTemplate: { spec: { template: { spec: { containers: [{ name: r, image: r, env: [{ name: K, valueFrom: { secretKeyRef: { name: app, key: openai-api-key } } }] }] } } } }
---
apiVersion: external-secrets.io/v1
kind: ExternalSecret
metadata: { name: from-vault, namespace: shop }
spec:
  secretStoreRef: { name: vault, kind: SecretStore }
  target: { name: outside }
  data: [{ secretKey: service-jwt-secret, remoteRef: { key: shop/app, property: jwt } }]
---
apiVersion: external-secrets.io/v1
kind: SecretStore
metadata: { name: vault, namespace: shop }
spec: { provider: { vault: { server: "https://vault.example:8200", path: kv, version: v2 } } }
"#;

/// A project, and perhaps the cluster that it is deployed to.
struct Project {
    folder: tempfile::TempDir,
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Project {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("keywheel-init-").tempdir().unwrap();
        for name in ["shop", "state", "keys", "pods"] {
            std::fs::DirBuilder::new().mode(0o700).create(folder.path().join(name)).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("shop").join(name)
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), text).unwrap();
    }

    fn config(&self) -> String {
        std::fs::read_to_string(self.path("keywheel.yaml")).unwrap()
    }

    /// Runs the program, and looks for values in all that it said and wrote.
    fn run(&self, arguments: &[&str], input: &str) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keywheel"));
        command.args(arguments).current_dir(self.path(""));
        command.arg("--journal").arg(self.folder.path().join("state/journal.sqlite"));
        command.arg("--kek").arg(self.folder.path().join("keys/kek"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // Whoever does not read it is not waited for.
        drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        let written = std::fs::read_to_string(self.path("keywheel.yaml")).unwrap_or_default();
        for said in [&stdout, &stderr, &written] {
            assert!(!said.contains("kwcanary") && !said.contains("panicked"), "{said}");
        }
        Ran { code: output.status.code().unwrap(), stdout, stderr }
    }

    #[track_caller]
    fn ends(&self, arguments: &[&str], code: i32) -> String {
        let ran = self.run(arguments, "");
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert_eq!(ran.code, code, "{arguments:?}: {said}");
        said
    }
}

#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}

#[test]
fn manifests_become_a_configuration_and_no_value_is_in_it() {
    let project = Project::new();
    project.put("deploy/all.yaml", MANIFESTS);
    project.put("deploy/chart/templates/web.yaml", "kind: {{ .Values.kind }}\n");
    let said = project.ends(&["init", "--manifests", "deploy", "--context", "prod-eu"], 0);
    has(
        &said,
        &[
            "sets `STRIPE_API_KEY` to a value",
            "Secret `plain` stands in the manifests with its values",
            "Secret `shop/unseen` was not seen",
            "is a template, and is left out",
        ],
    );
    let text = project.config();
    has(
        &text,
        &[
            "cluster: { context: prod-eu }",
            "app: { kubernetes_secret: { namespace: shop, name: app } }",
            "outside: { external_secret: { namespace: shop, name: from-vault, target: outside, upstream: { vault_kv: { address: \"https://vault.example:8200\", auth: { token: { env: VAULT_TOKEN } }, mount: kv, path: shop/app } } } }",
            "kubernetes: { namespace: shop, deployment: backend }",
            "kubernetes: { namespace: shop, stateful_set: queue }",
            "# Nothing serves for a while when it is rolled",
            "# Argo CD brings Deployment `backend`",
            "# CronJob `report` reads it anew at its next run.",
            "# `openai-api-key` in Secret `shop/app`: an OpenAI key; read by backend, queue",
            "# `database` in Secret `shop/app`: a key whose name does not say what it holds",
            "# Not as it stands: Secret `plain` stands in the manifests",
            "  service-jwt-secret:\n",
            "stores: { app: { jwt-secret: current, jwt-secret-previous: also_accepted } }",
            "strategy: { keyring: { longest_token: 24h } }",
        ],
    );
    assert!(
        !text.contains("\n  cookie-jwt-secret:\n"),
        "a Secret in Git is not proposed as it stands:\n{text}"
    );
    assert!(project.run(&["config", "show"], "").code == 0, "{text}");
    let before = project.config();
    let said = project.ends(&["init", "--manifests", "deploy", "--write"], 0);
    has(&said, &["lacks nothing that was found"]);
    assert_eq!(project.config(), before);
}

#[test]
fn a_secret_that_an_operator_brings_and_git_holds_too_is_not_proposed_as_it_stands() {
    let project = Project::new();
    project.put("deploy/all.yaml", MANIFESTS);
    project.put(
        "deploy/outside.yaml",
        "apiVersion: v1\nkind: Secret\nmetadata: { name: outside, namespace: shop }\nstringData: { service-jwt-secret: kwcanary-in-git }\n",
    );
    let said = project.ends(&["init", "--manifests", "deploy", "--context", "prod-eu"], 0);
    has(&said, &["Secret `outside` stands in the manifests with its values"]);
    let text = project.config();
    has(&text, &["# Not as it stands: Secret `outside` stands in the manifests"]);
    assert!(!text.contains("\n  service-jwt-secret:\n"), "{text}");
}

#[test]
fn manifests_are_taken_from_a_pipe_and_their_namespace_from_the_command_line() {
    let project = Project::new();
    let manifest = r#"{ "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": "agent" }, "spec": { "selector": {}, "template": { "spec":
        { "containers": [{ "name": "a", "env": [{ "name": "JWT_SECRET", "valueFrom": { "secretKeyRef": { "name": "agent", "key": "key" } } }] }] } } } }"#;
    let arguments = ["init", "--manifests", "-", "--namespace", "ops", "--environment", "staging"];
    let ran = project.run(&arguments, manifest);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    has(
        &project.config(),
        &[
            "environments:\n  staging:\n",
            "    cluster: { context: REPLACE_ME }",
            "kubernetes: { namespace: ops, daemon_set: agent }",
            "  jwt-secret:\n",
            "stores: { agent: key }",
        ],
    );
    let ran = project.run(
        &[
            "init",
            "--manifests",
            "-",
            "--environment",
            "production",
            "--context",
            "prod",
            "--namespace",
            "ops",
            "--write",
        ],
        manifest,
    );
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    has(&project.config(), &["  production:\n", "    cluster: { context: prod }"]);
    let ran = project.run(&["init", "--manifests", "-"], manifest);
    assert_eq!(ran.code, 1);
    has(&ran.stderr, &["several environments", "staging"]);
    let ran = project
        .run(&["init", "--manifests", "-", "--environment", "staging", "--context", "other"], "");
    has(&ran.stderr, &["in the cluster of another context"]);
}

#[test]
fn a_run_that_is_repeated_adds_nothing() {
    let project = Project::new();
    project.put("all.yaml", MANIFESTS);
    let write = |environment: &str| {
        let arguments = ["init", "--manifests", "all.yaml", "--environment", environment];
        project.ends(&[&arguments[..], &["--context", environment, "--write"]].concat(), 0)
    };
    write("staging");
    write("production");
    let before = project.config();
    let count = |line: &str| before.lines().filter(|other| other.trim() == line).count();
    assert_eq!(count("# cookie-jwt-secret:"), 1, "{before}");
    has(
        &before,
        &[
            "# `cookie-jwt-secret` in Secret `shop/plain` (production): a signing secret; read by backend\n",
            "# Its lines stand in this file already, commented out as `cookie-jwt-secret`",
        ],
    );
    for environment in ["production", "staging"] {
        has(&write(environment), &["lacks nothing that was found"]);
        assert_eq!(project.config(), before);
    }
}

#[test]
fn a_secret_of_one_environment_is_proposed_for_another_one_too() {
    let project = Project::new();
    let agent = r#"---
apiVersion: apps/v1
kind: DaemonSet
metadata: { name: agent, namespace: shop }
spec: { selector: {}, template: { spec: { containers: [{ name: a, env: [{ name: A, valueFrom: { secretKeyRef: { name: agent, key: agent-jwt-secret } } }] }] } } }
"#;
    let with_agent = format!("{MANIFESTS}{agent}");
    for (environment, manifests) in
        [("staging", MANIFESTS), ("production", &with_agent), ("qa", &with_agent)]
    {
        let of = ["--environment", environment, "--context", environment, "--write"];
        let ran = project.run(&[&["init", "--manifests", "-"], &of[..]].concat(), manifests);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    let config = project.config();
    has(&config, &["    environments: [production]\n", "    environments: [qa]\n"]);
    assert_eq!(project.run(&["config", "show"], "").code, 0, "{config}");
}

#[test]
fn nothing_to_find_in_manifests_is_said() {
    let project = Project::new();
    let ran = project.run(
        &["init", "--manifests", "-"],
        "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: x }\n",
    );
    assert_eq!(ran.code, 1);
    has(&ran.stderr, &["nothing was found that reads a Secret"]);
    assert!(!project.path("keywheel.yaml").exists());
    assert_eq!(project.run(&["init", "--context", "x"], "").code, 1);
}

/// A shop in a cluster, whose pods are real processes.
struct Shop {
    cluster: Cluster,
    run: Run,
    project: Project,
}

impl Shop {
    fn open() -> Self {
        let project = Project::new();
        let cluster = Cluster::start().unwrap();
        let runtime = Runtime::Processes { folder: project.folder.path().join("pods") };
        let settings = Settings { pace: Pace::times(10.0), runtime, ..Settings::default() };
        let run = cluster.run(settings).unwrap();
        let objects = cluster.objects();
        objects.make_namespace("shop");
        let encoded = |text: &str| STANDARD.encode(text);
        let secret = json!({
            "metadata": { "name": "app", "namespace": "shop" },
            "data": { "jwt-secret": encoded(OLD), "other": encoded("kwcanary-other") },
        });
        objects.create(Kind::Secret, secret, "test").unwrap();
        objects.create(Kind::Deployment, deployment(), "test").unwrap();
        objects.create(Kind::CronJob, cron_job(), "test").unwrap();
        let key = Key::new(Kind::Deployment, "shop", "backend");
        let is_up = || objects.get(&key).is_some_and(|one| one["status"]["availableReplicas"] == 2);
        for _ in 0..1_200 {
            if is_up() {
                let shop = Self { cluster, run, project };
                shop.reach();
                return shop;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the pods do not come up")
    }

    fn reach(&self) {
        self.cluster.write_kubeconfig(&self.project.path("kubeconfig")).unwrap();
    }

    fn init(&self, user: &str) -> Vec<String> {
        let arguments = [
            "init",
            "--cluster",
            "--kubeconfig",
            "kubeconfig",
            "--namespace",
            "shop",
            "--context",
            user,
        ];
        arguments.map(Into::into).to_vec()
    }

    fn held(&self) -> Vec<String> {
        let held = self.run.held().into_iter();
        held.filter_map(|held| held.given.env.get("JWT_SECRET").cloned()).collect()
    }

    fn stored(&self) -> String {
        let secret = self.cluster.objects().get(&Key::new(Kind::Secret, "shop", "app")).unwrap();
        String::from_utf8(STANDARD.decode(secret["data"]["jwt-secret"].as_str().unwrap()).unwrap())
            .unwrap()
    }
}

fn from_secret() -> Value {
    json!([{ "name": "JWT_SECRET", "valueFrom": { "secretKeyRef": { "name": "app", "key": "jwt-secret" } } }])
}

fn deployment() -> Value {
    json!({
        "metadata": { "name": "backend", "namespace": "shop" },
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": { "app": "backend" } },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
            "template": {
                "metadata": { "labels": { "app": "backend" } },
                "spec": { "containers": [{
                    "name": "backend", "image": "shop/backend", "command": ["sleep", "600"], "env": from_secret(),
                }] },
            },
        },
    })
}

fn cron_job() -> Value {
    json!({
        "metadata": { "name": "report", "namespace": "shop" },
        "spec": { "schedule": "0 4 * * *", "suspend": true, "jobTemplate": { "spec": { "template": { "spec": {
            "restartPolicy": "Never",
            "containers": [{ "name": "report", "image": "shop/report", "command": ["true"], "env": from_secret() }],
        } } } } },
    })
}

#[test]
fn versions_are_one_secret_and_a_key_that_is_deployed_leaves_the_others_to_be_proposed() {
    let project = Project::new();
    let cluster = Cluster::start().unwrap();
    let objects = cluster.objects();
    objects.make_namespace("shop");
    let encoded = STANDARD.encode("kwcanary-version");
    let secret = |name: &str, key: &str, annotations: Value| {
        let metadata = json!({ "name": name, "namespace": "shop", "annotations": annotations });
        json!({ "metadata": metadata, "data": { key: encoded } })
    };
    let first = secret("keys", "jwt-secret", json!({ "keywheel.dev/versions": "keys.keywheel" }));
    objects.create(Kind::Secret, first, "test").unwrap();
    for name in ["keys-v2", "keys-v3"] {
        let mut one = secret(name, "jwt-secret", json!({ "keywheel.dev/version-of": "keys" }));
        one["immutable"] = json!(true);
        objects.create(Kind::Secret, one, "keywheel").unwrap();
    }
    let site = secret("site", "cookie-jwt-secret", json!({}));
    objects.create(Kind::Secret, site, "argocd-controller").unwrap();
    let edit = |secret: &mut Value| secret["data"]["mail-jwt-secret"] = json!(encoded);
    objects.change(&Key::new(Kind::Secret, "shop", "site"), "kubectl-edit", edit).unwrap();
    let from = |(variable, secret, key): (&str, &str, &str)| json!({ "name": variable, "valueFrom": { "secretKeyRef": { "name": secret, "key": key } } });
    let sites =
        [("COOKIE", "site", "cookie-jwt-secret"), ("MAIL", "site", "mail-jwt-secret")].map(from);
    for (name, version) in [("backend", "keys-v3"), ("worker", "keys-v2")] {
        let mut one = deployment();
        one["metadata"]["name"] = json!(name);
        let version = from(("JWT_SECRET", version, "jwt-secret"));
        let env: Vec<Value> = sites.iter().cloned().chain([version]).collect();
        one["spec"]["template"]["spec"]["containers"][0]["env"] = json!(env);
        objects.create(Kind::Deployment, one, "test").unwrap();
    }
    cluster.write_kubeconfig(&project.path("kubeconfig")).unwrap();
    let asked = ["init", "--cluster", "--kubeconfig", "kubeconfig", "--context", ADMIN];
    project.ends(&[&asked[..], &["--namespace", "shop"]].concat(), 0);
    let text = project.config();
    has(
        &text,
        &[
            "keys: { kubernetes_secret: { namespace: shop, name: keys, approach: versioned } }",
            "stores: { keys: jwt-secret }",
            "read_by: [backend, worker]",
            "\n  mail-jwt-secret:\n",
            "# Not as it stands: `cookie-jwt-secret` of Secret `shop/site` is set by Argo CD",
            "# cookie-jwt-secret:",
        ],
    );
    assert!(!text.contains("keys-v"), "{text}");
}

#[test]
fn from_nothing_to_a_rotation_in_a_cluster_whose_pods_are_real_processes() {
    let shop = Shop::open();
    let (project, objects) = (&shop.project, shop.cluster.objects());
    let asked: Vec<String> = shop.init(ADMIN);
    let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
    project.ends(&asked, 0);
    let text = project.config();
    has(
        &text,
        &[
            &shop.cluster.identity(),
            "kubeconfig: kubeconfig",
            "# CronJob `report` reads it anew at its next run.",
        ],
    );
    assert_eq!(shop.cluster.faults().writes(), 0, "looking changes nothing");
    let said = project.ends(&["check"], 0);
    has(&said, &["ready"]);
    project.ends(&["adopt", "--all", "--yes"], 0);
    project.ends(&["rotate", "jwt-secret", "--yes"], 0);
    let new = shop.stored();
    assert!(new != OLD && shop.held() == [new.as_str(); 2], "the pods hold the new value");
    // What ran before stays as a set of replicas without pods.
    let (sets, _) = objects.list(Kind::ReplicaSet, Some("shop"));
    assert_eq!(sets.len(), 2);
    let said = project.ends(&["where", "--cluster", "jwt-secret"], 0);
    has(
        &said,
        &[
            "Secret",
            "holds it",
            "Deployment",
            "CronJob",
            "suspended",
            "history, to which a rollout can be undone",
            "proves that it holds the current values",
        ],
    );
    let ran = project.run(&["where", "--cluster", "jwt-secret", "--output", "json"], "");
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    let found = told["cluster"]["found"].as_array().unwrap();
    let of = |kind: &str| found.iter().filter(|one| one["kind"] == kind).count();
    let kinds = ["Secret", "Deployment", "CronJob", "ReplicaSet", "replica"];
    assert_eq!(kinds.map(of), [1, 1, 1, 2, 2], "{found:?}");
    assert!(of("Pod") >= 2, "{found:?}");
    assert_eq!(told["cluster"]["unseen"], json!([]));
    // Whoever writes it by hand takes the proof away.
    let key = Key::new(Kind::Secret, "shop", "app");
    let by_hand = STANDARD.encode("kwcanary-by-hand");
    let edit = |secret: &mut Value| secret["data"]["jwt-secret"] = json!(by_hand);
    objects.change(&key, "kubectl-edit", edit).unwrap();
    let said = project.ends(&["where", "--cluster", "jwt-secret"], 0);
    assert!(said.contains("proves nothing") && !said.contains("proves that"), "{said}");
    // The same words lead to another cluster now.
    let other = Cluster::start().unwrap();
    other.write_kubeconfig(&project.path("kubeconfig")).unwrap();
    let said = project.ends(&["check"], 4);
    has(&said, &["is another one than the configuration says"]);
    let said = project.ends(&["where", "--cluster", "jwt-secret"], 4);
    has(&said, &["K0208", "is another one than the configuration says"]);
    assert!(
        other.faults().seen().iter().all(|seen| seen.name.as_deref() == Some("kube-system")),
        "nothing else was asked"
    );
}

#[test]
fn a_cluster_is_asked_with_few_permissions_and_what_is_missing_is_said() {
    let shop = Shop::open();
    let system = Rule::new(&["get"], "", &["namespaces"]).named(&["kube-system"]);
    let apps = ["deployments", "statefulsets", "daemonsets", "replicasets"];
    let lists = [
        Rule::new(&["list"], "apps", &apps).in_namespace("shop"),
        Rule::new(&["list"], "batch", &["cronjobs", "jobs"]).in_namespace("shop"),
        Rule::new(&["list"], "", &["pods"]).in_namespace("shop"),
    ];
    let reviews = Rule::new(&["create"], "authorization.k8s.io", &["selfsubjectaccessreviews"]);
    shop.cluster.add_user("few", vec![system.clone(), reviews.clone(), lists[0].clone()]);
    shop.reach();
    let asked = shop.init("few");
    let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
    let said = shop.project.ends(&asked, 4);
    has(
        &said,
        &[
            "`list` of `cronjobs` in namespace `shop`",
            "`list` of `jobs` in namespace `shop`",
            "`list` of `pods` in namespace `shop`",
        ],
    );
    assert!(
        !said.contains("deployments") && !shop.project.path("keywheel.yaml").exists(),
        "{said}"
    );
    let [one, two, three] = lists;
    shop.cluster.set_rules("few", vec![system, reviews, one, two, three]);
    let said = shop.project.ends(&asked, 0);
    has(
        &said,
        &[
            "not allowed: `get` of `secrets/app` in namespace `shop`",
            "not allowed: `list` of `externalsecrets`",
        ],
    );
    has(&shop.project.config(), &["stores: { app: jwt-secret }"]);
    let secrets: Vec<_> = shop
        .cluster
        .faults()
        .seen()
        .into_iter()
        .filter(|seen| seen.resource == "secrets")
        .collect();
    assert!(
        !secrets.is_empty() && secrets.iter().all(|seen| seen.verb == "get"),
        "Secrets are read by name"
    );
}
