//! Emergencies in a cluster: a key that leaked, in each order and kept in each way, beside a pod that does not come up, a pod that
//! nobody controls, and in the middle of a rotation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use keywheel_twins::kubernetes::Objects;
use keywheel_twins::openai::{Twin, TwinOptions};

use super::*;

const CONFIG: &str = r#"
project: shop
cluster: { context: admin, kubeconfig: kubeconfig }
policies:
  fast: { soak: 1h, rollback: 1h, watch: 1s }
stores:
  app: STORE
workloads:
  backend:
    kubernetes: { namespace: shop, deployment: backend, settle_for: 1s }
secrets:
  key:
    policy: fast
    issuer:
      openai: { project: PROJECT, admin_key: { file: admin-key }, base_url: "BASE", propagation: 0s, settle_for: 500ms }
    stores: { app: key }
    read_by: [backend]
"#;

/// A shop whose key is one of the twin's.
struct Leaked {
    shop: Shop,
    twin: Twin,
    /// The key that leaked, as the twin names it.
    id: String,
    /// Its value.
    old: String,
}

impl Leaked {
    fn begin(approach: &'static str) -> Self {
        let store = format!("namespace: shop, name: app, approach: {approach}");
        Self::begin_with(approach, &format!("{{ kubernetes_secret: {{ {store} }} }}"))
    }

    fn begin_with(approach: &'static str, store: &str) -> Self {
        let options = TwinOptions {
            admin_key: Some("kwcanary-admin-of-the-shop".into()),
            ..TwinOptions::default()
        };
        let twin = Twin::start(options).unwrap();
        let by_hand = twin.make_key("by-hand");
        let shop = Shop::open_with(approach, &by_hand.value, |_| true);
        let write = |name: &str, text: &str| {
            std::fs::write(shop.project().join(name), text).unwrap();
        };
        write("admin-key", "kwcanary-admin-of-the-shop");
        write("run.canaries", &by_hand.value);
        let config = CONFIG.replace("STORE", store).replace("PROJECT", twin.project());
        write("keywheel.yaml", &config.replace("BASE", &twin.base_url()));
        Self { shop, twin, id: by_hand.id, old: by_hand.value }
    }

    /// Runs the program, which prints no key.
    #[track_caller]
    fn run(&self, arguments: &[&str], ends: i32) -> String {
        let said = self.shop.run(arguments, ends);
        let held = self.shop.held().into_iter().chain([self.old.clone()]);
        held.for_each(|value| assert!(!said.contains(&value), "a value was printed: {said}"));
        said
    }

    fn incident(&self, arguments: &[&str]) -> Value {
        let show = [&["incident", "show", "--output", "json"], arguments].concat();
        serde_json::from_str(&self.run(&show, 0)).unwrap()
    }

    fn live(&self) -> Vec<String> {
        let keys = self.twin.keys().into_iter().filter(|key| key.live);
        keys.map(|key| key.id).collect()
    }

    /// Returns the key that is live, as pods hold it.
    fn live_value(&self) -> String {
        let new = self.shop.held().into_iter().next().unwrap();
        assert_ne!(new, self.old);
        new
    }

    /// Returns the Secrets that hold what leaked.
    fn holders(&self) -> Vec<String> {
        let old = STANDARD.encode(&self.old);
        let secrets = self.shop.secrets().into_iter();
        let holders = secrets.filter(|secret| secret["data"]["key"] == old.as_str());
        holders.map(|secret| secret["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn h124_a_leaked_key_is_ended_in_both_orders_however_it_is_kept() {
    std::thread::scope(|scope| {
        for approach in ["in_place", "versioned"] {
            for order in [&[][..], &["--revoke-first"]] {
                scope.spawn(move || is_ended(&Leaked::begin(approach), order));
            }
        }
        scope.spawn(is_told_of_both_secrets);
    });
}

/// A key that an operator brings from another Secret, which held it too.
fn is_told_of_both_secrets() {
    let store = "{ external_secret: { namespace: shop, name: app, upstream: { kubernetes_secret: { namespace: shop, name: source } } } }";
    let leaked = Leaked::begin_with("in_place", store);
    let _operator = Operator::start(leaked.shop.cluster.objects(), &leaked.old);
    leaked.run(&["rotate", "key", "--emergency", "--yes"], 0);
    assert_eq!((leaked.live().len(), leaked.holders()), (1, Vec::new()));
    assert_eq!(leaked.shop.held(), [leaked.live_value().as_str(); 3]);
    let file = leaked.shop.project().join("audit.log");
    std::fs::write(&file, audit_log(&["source", "app", "other"])).unwrap();
    let incident = leaked.incident(&["--kube-audit", file.to_str().unwrap()]);
    let acts = incident["kube_audit"]["acts"].as_array().unwrap();
    let told: Vec<_> = acts.iter().map(|act| act["what"].as_str().unwrap()).collect();
    assert_eq!(told, ["get of Secret `shop/app`", "get of Secret `shop/source`"]);
}

/// Does what the External Secrets Operator does, as often as it is made to read. It ends when it is dropped.
struct Operator {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Operator {
    /// Lets it bring Secret `app` from Secret `source`.
    fn start(objects: &Objects, value: &str) -> Self {
        let source = json!({
            "metadata": { "name": "source", "namespace": NAMESPACE },
            "data": { "key": STANDARD.encode(value) },
        });
        objects.create(Kind::Secret, source, "test").unwrap();
        let external = json!({
            "apiVersion": "external-secrets.io/v1",
            "metadata": { "name": "app", "namespace": NAMESPACE },
            "spec": {
                "refreshInterval": "1h",
                "target": { "name": "app" },
                "data": [{ "secretKey": "key", "remoteRef": { "key": "source", "property": "key" } }],
            },
        });
        objects.create(Kind::ExternalSecret, external, "test").unwrap();
        bring(objects);
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, objects) = (Arc::clone(&stop), objects.clone());
        let external = Key::new(Kind::ExternalSecret, NAMESPACE, "app");
        let work = move || {
            let mut seen = Value::Null;
            while !stopped.load(Ordering::SeqCst) {
                let mark = objects.get(&external).unwrap()["metadata"]["annotations"]["force-sync"]
                    .clone();
                if mark != seen {
                    seen = mark;
                    bring(&objects);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        };
        Self { stop, thread: Some(std::thread::spawn(work)) }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().map(JoinHandle::join);
    }
}

/// Copies the value, and notes that it was read.
fn bring(objects: &Objects) {
    let [source, target] = ["source", "app"].map(|name| Key::new(Kind::Secret, NAMESPACE, name));
    let value = objects.get(&source).unwrap()["data"]["key"].clone();
    objects.change(&target, "operator", |it| it["data"]["key"] = value).unwrap();
    let status = json!({
        "refreshTime": jiff::Timestamp::now().to_string(),
        "conditions": [{ "type": "Ready", "status": "True", "reason": "SecretSynced" }],
    });
    let external = Key::new(Kind::ExternalSecret, NAMESPACE, "app");
    objects.change_status(&external, "operator", |it| it["status"] = status).unwrap();
}

fn is_ended(leaked: &Leaked, order: &[&str]) {
    let before = leaked.shop.pods();
    let emergency =
        [&["rotate", "key", "--emergency", "--because", "it was pasted", "--yes"], order];
    leaked.run(&emergency.concat(), 0);
    assert_eq!(leaked.live().len(), 1);
    assert!(!leaked.live().contains(&leaked.id));
    let new = leaked.live_value();
    assert_eq!(leaked.shop.held(), [new.as_str(); 3]);
    let kept: &[&str] = match leaked.shop.approach {
        "versioned" => &["app"],
        _ => &[],
    };
    assert_eq!(leaked.holders(), kept, "the Secret that was there first is not keywheel's");
    let file = leaked.shop.project().join("audit.log");
    std::fs::write(&file, audit_log(&["app"])).unwrap();
    let file = file.to_str().unwrap();
    let said = leaked.run(&["incident", "show", "--kube-audit", "/nowhere/audit.log"], 1);
    assert!(said.contains("audit log `/nowhere/audit.log` cannot be read"), "{said}");
    let incident = leaked.incident(&["--kube-audit", file]);
    assert_eq!(incident["open"], false);
    let secret = &incident["secrets"][0];
    assert_eq!((&secret["suspects"][0]["dead"], &incident["owed"]), (&json!("proven"), &json!([])));
    match order.is_empty() {
        true => assert!(secret["outage"].is_null(), "{secret}"),
        false => assert_eq!(pods_behind(&incident), before, "{secret}"),
    }
    assert_eq!(
        replicas(&incident["logs"]),
        before.iter().map(|pod| format!("{pod}/backend")).collect()
    );
    let place = incident["logs"][0]["place"].as_str().unwrap();
    let kubeconfig = leaked.shop.project().join("kubeconfig").display().to_string();
    let events = format!("kubectl --kubeconfig {kubeconfig} --context admin -n shop get events");
    assert!(place.contains(&events), "{place}");
    let acts = incident["kube_audit"]["acts"].as_array().unwrap();
    assert_eq!(
        (acts.len(), &acts[0]["user"], &acts[0]["count"]),
        (1, &json!("mallory"), &json!(1))
    );
    let text = leaked.run(&["incident", "show", "--kube-audit", file], 0);
    assert!(text.contains("get of Secret `shop/app`") && text.contains("192.0.2.7"), "{text}");
    assert!(text.contains("1 line no whole event"), "{text}");
    leaked.run(&["doctor"], 0);
    leaked.run(&["audit", "verify"], 0);
}

/// A read of each Secret just now, and a line that is none.
fn audit_log(secrets: &[&str]) -> String {
    let now = jiff::Timestamp::now();
    let event = |name: &&str| {
        let event = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": name, "stage": "ResponseComplete",
            "requestURI": format!("/api/v1/namespaces/shop/secrets/{name}"), "verb": "get", "user": { "username": "mallory" },
            "sourceIPs": ["192.0.2.7"], "userAgent": "kubectl/v1.33.1 (linux/amd64)",
            "objectRef": { "resource": "secrets", "namespace": "shop", "name": name, "apiVersion": "v1" },
            "responseStatus": { "code": 200 },
            "requestReceivedTimestamp": (now - Duration::from_secs(3)).to_string(),
        });
        format!("{event}\n")
    };
    format!("{}no event\n", secrets.iter().map(event).collect::<String>())
}

/// Returns the pods that were out when the suspect was ended.
fn pods_behind(incident: &Value) -> BTreeSet<String> {
    let behind = &incident["secrets"][0]["outage"]["behind"][0]["replicas"];
    let behind = behind.as_array().into_iter().flatten();
    behind.map(|pod| pod.as_str().unwrap().to_owned()).collect()
}

fn replicas(logs: &Value) -> BTreeSet<String> {
    let logs = logs.as_array().unwrap().iter();
    logs.map(|log| log["replica"].as_str().unwrap().to_owned()).collect()
}

/// The pods that still hold the suspect are named, and the suspect is ended when the stage is over.
#[test]
fn h124_pods_that_hold_a_suspect_are_named_and_it_is_ended_all_the_same() {
    let leaked = Leaked::begin("in_place");
    let before = leaked.shop.pods();
    let backend = Key::new(Kind::Deployment, NAMESPACE, "backend");
    let patience = |it: &mut Value| it["spec"]["progressDeadlineSeconds"] = 60.into();
    leaked.shop.cluster.objects().change(&backend, "test", patience).unwrap();
    let by_hand = json!({
        "metadata": { "name": "by-hand", "namespace": NAMESPACE },
        "spec": { "containers": [{
            "name": "shell", "image": "shop/shell",
            "env": [{ "name": "KEY", "valueFrom": { "secretKeyRef": { "name": "app", "key": "key" } } }],
        }] },
    });
    leaked.shop.cluster.objects().create(Kind::Pod, by_hand, "test").unwrap();
    leaked
        .shop
        .run
        .as_ref()
        .unwrap()
        .switch(|switches| switches.slow = Some((1, Duration::from_secs(36_000))));
    let emergency = ["rotate", "key", "--emergency", "--stage-for", "3s", "--yes"];
    let said = leaked.run(&emergency, 3);
    assert!(said.contains("keywheel resume key@default"), "{said}");
    assert!(said.contains("by-hand"), "{said}");
    assert!(!leaked.live().contains(&leaked.id) && leaked.live().len() == 1);
    let incident = leaked.incident(&[]);
    assert_eq!(pods_behind(&incident), before, "{incident:#}");
    leaked.shop.run.as_ref().unwrap().switch(|switches| switches.slow = None);
    leaked.shop.delete("by-hand");
    leaked.shop.pods().difference(&before).for_each(|stuck| leaked.shop.delete(stuck));
    leaked.shop.until("the new pods are up", |shop| {
        shop.held().iter().all(|key| *key != leaked.old) && shop.held().len() == 3
    });
    leaked.run(&["resume", "key", "--yes"], 0);
    assert_eq!(leaked.shop.held(), [leaked.live_value().as_str(); 3]);
    let incident = leaked.incident(&[]);
    assert_eq!(incident["secrets"][0]["suspects"][0]["dead"], "proven");
    assert!(incident["secrets"][0]["outage"]["until"].is_string());
}

#[cfg(feature = "fail-points")]
#[test]
fn h125_an_emergency_takes_over_a_rotation_that_was_killed_in_its_roll() {
    use std::os::unix::process::ExitStatusExt;

    let leaked = Leaked::begin("versioned");
    let mut rotate = leaked.shop.command("", &["rotate", "key", "--yes"]);
    rotate.env("KEYWHEEL_FAIL_POINT", "template_patched:backend");
    let output = rotate.output().unwrap();
    assert_eq!(output.status.signal(), Some(9), "{output:?}");
    let middle = leaked.live();
    assert_eq!(middle.len(), 2);
    leaked.run(&["rotate", "key", "--emergency", "--yes"], 0);
    let live = leaked.live();
    assert!(live.len() == 1 && !middle.contains(&live[0]), "{live:?} of {middle:?}");
    assert_eq!(leaked.shop.held(), [leaked.live_value().as_str(); 3]);
    let incident = leaked.incident(&[]);
    let suspects = incident["secrets"][0]["suspects"].as_array().unwrap();
    assert!(
        suspects.len() == 2 && suspects.iter().all(|one| one["dead"] == "proven"),
        "{incident:#}"
    );
    leaked.run(&["doctor"], 0);
}
