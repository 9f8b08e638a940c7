//! The stand-in of the Kubernetes API answers as the real server does: judged by the clients that people use.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and say that it is skipped, in its helpers too"
)]

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use futures_util::TryStreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use keywheel_twins::kubernetes::faults::{Fault, Rule as FaultRule};
use keywheel_twins::kubernetes::{ADMIN, Class, Cluster, Key, Kind, Options, Rule};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, EvictParams, GroupVersionKind, ListParams,
    LogParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent, WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Returns a client of a user of the cluster.
async fn client(cluster: &Cluster, user: &str) -> Client {
    rustls::crypto::ring::default_provider().install_default().ok();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    cluster.write_kubeconfig(&path).unwrap();
    let options = KubeConfigOptions { context: Some(user.into()), ..Default::default() };
    let kubeconfig = Kubeconfig::read_from(&path).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    // A client that tries again by itself hides what the server answers.
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

fn secret(name: &str, data: &[(&str, &[u8])]) -> Secret {
    let data = data.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.to_vec())));
    let mut secret = Secret { data: Some(data.collect()), ..Secret::default() };
    secret.metadata.name = Some(name.into());
    secret
}

fn refusal<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> (u16, String, String) {
    match result.unwrap_err() {
        kube::Error::Api(status) => (status.code, status.reason, status.message),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_secret_keeps_exact_bytes_and_refuses_a_stale_write() {
    let cluster = Cluster::start().unwrap();
    let secrets: Api<Secret> = Api::default_namespaced(client(&cluster, ADMIN).await);
    let every_byte: Vec<u8> = (0..=255).collect();
    let wanted = secret("api-keys", &[("binary", &every_byte), ("text", b"kwcanary-1\n")]);
    let made = secrets.create(&PostParams::default(), &wanted).await.unwrap();
    assert_eq!(made.data.as_ref().unwrap()["binary"].0, every_byte);
    assert_eq!(made.type_.as_deref(), Some("Opaque"));
    assert_eq!(made.metadata.generation, None);
    assert_eq!(refusal(secrets.create(&PostParams::default(), &wanted).await).0, 409);

    let version = made.metadata.resource_version.clone();
    let conditional =
        json!({ "metadata": { "resourceVersion": version }, "data": { "text": "Mg==" } });
    let manager = PatchParams::apply("keywheel");
    let patched = secrets.patch("api-keys", &manager, &Patch::Merge(&conditional)).await.unwrap();
    assert_eq!(patched.data.unwrap()["text"].0, b"2");
    let (code, reason, message) =
        refusal(secrets.patch("api-keys", &manager, &Patch::Merge(&conditional)).await);
    assert_eq!((code, reason.as_str()), (409, "Conflict"));
    assert_eq!(
        message,
        "Operation cannot be fulfilled on secrets \"api-keys\": the object has been modified; please apply your changes to the latest version and try again"
    );
    let fields = patched.metadata.managed_fields.unwrap();
    let mine = fields.iter().find(|entry| entry.manager.as_deref() == Some("keywheel")).unwrap();
    assert_eq!(mine.fields_v1.as_ref().unwrap().0, json!({ "f:data": { "f:text": {} } }));

    let missing = refusal(secrets.get("gone").await);
    assert_eq!(missing, (404, "NotFound".into(), "secrets \"gone\" not found".into()));
}

#[tokio::test]
async fn a_secret_is_refused_for_what_is_wrong_with_it() {
    let cluster = Cluster::start().unwrap();
    let secrets: Api<Secret> = Api::default_namespaced(client(&cluster, ADMIN).await);
    let (code, reason, message) =
        refusal(secrets.create(&PostParams::default(), &secret("x", &[("not a key", b"1")])).await);
    assert_eq!((code, reason.as_str()), (422, "Invalid"));
    assert!(message.starts_with("Secret \"x\" is invalid: data[not a key]: Invalid value: \"not a key\": a valid config key must consist of"), "{message}");
    let large = vec![b'a'; 1024 * 1024 + 1];
    let (code, _, message) =
        refusal(secrets.create(&PostParams::default(), &secret("x", &[("a", &large)])).await);
    assert_eq!(code, 422);
    assert!(message.contains("data: Too long: may not be more than 1048576 bytes"), "{message}");
    secrets.create(&PostParams::default(), &secret("x", &[("a", &large[1..])])).await.unwrap();

    let manager = PatchParams::default();
    let broken = json!({ "data": { "a": "no*base64" } });
    let (code, _, message) = refusal(secrets.patch("x", &manager, &Patch::Merge(&broken)).await);
    assert_eq!(code, 400);
    assert!(message.ends_with("illegal base64 data at input byte 2"), "{message}");
    let texts = json!({ "stringData": { "b": "plain" }, "data": { "a": null } });
    let patched = secrets.patch("x", &manager, &Patch::Merge(&texts)).await.unwrap();
    assert_eq!(patched.data.unwrap()["b"].0, b"plain");
    assert_eq!(patched.string_data, None);
}

#[tokio::test]
async fn an_immutable_secret_changes_in_its_metadata_only() {
    let cluster = Cluster::start().unwrap();
    let secrets: Api<Secret> = Api::default_namespaced(client(&cluster, ADMIN).await);
    let fixed = Secret { immutable: Some(true), ..secret("x", &[("a", b"1")]) };
    secrets.create(&PostParams::default(), &fixed).await.unwrap();
    let patch = async |wanted: Value| {
        secrets.patch("x", &PatchParams::default(), &Patch::Merge(&wanted)).await
    };
    let (code, _, message) = refusal(patch(json!({ "data": { "a": "Mg==" } })).await);
    assert_eq!(code, 422);
    assert_eq!(
        message,
        "Secret \"x\" is invalid: data: Forbidden: field is immutable when `immutable` is set"
    );
    assert_eq!(refusal(patch(json!({ "immutable": false })).await).0, 422);
    patch(json!({ "metadata": { "annotations": { "keywheel.dev/claim": "1" } } })).await.unwrap();
}

#[tokio::test]
async fn of_writers_at_the_same_time_each_success_counts_once() {
    let cluster = Cluster::start().unwrap();
    let client = client(&cluster, ADMIN).await;
    let secrets: Api<Secret> = Api::default_namespaced(client);
    secrets.create(&PostParams::default(), &secret("x", &[("n", b"0")])).await.unwrap();
    let write = async |writer: usize| {
        let mut written = 0;
        for _ in 0..20 {
            let mut present = secrets.get("x").await.unwrap();
            let mine = format!("writer-{writer}");
            let data = present.data.get_or_insert_default();
            let number = |value: Option<&ByteString>| -> usize {
                value.map_or(0, |it| String::from_utf8_lossy(&it.0).parse().unwrap())
            };
            let next = (number(data.get("n")) + 1).to_string();
            data.insert("n".into(), ByteString(next.into_bytes()));
            data.insert(mine, ByteString(vec![0]));
            match secrets.replace("x", &PostParams::default(), &present).await {
                Ok(_) => written += 1,
                other => assert_eq!(refusal(other).0, 409),
            }
        }
        written
    };
    let written: usize = futures_util::future::join_all((0..4).map(write)).await.into_iter().sum();
    let data = secrets.get("x").await.unwrap().data.unwrap();
    assert_eq!(data["n"].0, written.to_string().as_bytes());
    assert!(written < 80, "nobody was ever in the way of anybody");
    let seen = cluster.faults().seen();
    assert_eq!(seen.iter().filter(|seen| seen.code == Some(409)).count(), 80 - written);
    assert!(seen.iter().all(|seen| seen.user == ADMIN));
}

#[tokio::test]
async fn another_uid_is_a_conflict_for_a_replacement_and_invalid_for_a_patch() {
    let cluster = Cluster::start().unwrap();
    let secrets: Api<Secret> = Api::default_namespaced(client(&cluster, ADMIN).await);
    let made = secrets.create(&PostParams::default(), &secret("x", &[("a", b"1")])).await.unwrap();
    cluster.objects().recreate(&Key::new(Kind::Secret, "default", "x"));
    let mut wanted = made.clone();
    wanted.metadata.resource_version = None;
    assert_eq!(refusal(secrets.replace("x", &PostParams::default(), &wanted).await).0, 409);
    let patch = json!({ "metadata": { "uid": made.metadata.uid }, "data": { "a": "Mg==" } });
    let (code, _, message) =
        refusal(secrets.patch("x", &PatchParams::default(), &Patch::Merge(&patch)).await);
    assert_eq!(code, 422);
    assert!(message.contains("metadata.uid: Invalid value"), "{message}");
}

#[tokio::test]
async fn a_namespace_has_to_be_there_and_takes_everything_with_it() {
    let cluster = Cluster::start().unwrap();
    let client = client(&cluster, ADMIN).await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "shop");
    let mut wanted = secret("x", &[("a", b"1")]);
    let (code, _, message) = refusal(secrets.create(&PostParams::default(), &wanted).await);
    assert_eq!((code, message.as_str()), (404, "namespaces \"shop\" not found"));
    cluster.objects().make_namespace("shop");
    wanted.metadata.name = None;
    wanted.metadata.generate_name = Some("key-".into());
    for _ in 0..2 {
        let made = secrets.create(&PostParams::default(), &wanted).await.unwrap();
        assert!(made.metadata.name.unwrap().starts_with("key-"));
    }
    let everywhere: Api<Secret> = Api::all(client.clone());
    assert_eq!(everywhere.list(&ListParams::default()).await.unwrap().items.len(), 2);
    let namespaces: Api<Namespace> = Api::all(client);
    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    assert_eq!(everywhere.list(&ListParams::default()).await.unwrap().items.len(), 0);
}

#[tokio::test]
async fn a_custom_resource_is_patched_by_merge_only_and_counts_its_generations() {
    let cluster = Cluster::start().unwrap();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(
        "external-secrets.io",
        "v1",
        "ExternalSecret",
    ));
    let external: Api<DynamicObject> =
        Api::default_namespaced_with(client(&cluster, ADMIN).await, &resource);
    let wanted =
        DynamicObject::new("x", &resource).data(json!({ "spec": { "refreshPolicy": "Periodic" } }));
    let made = external.create(&PostParams::default(), &wanted).await.unwrap();
    assert_eq!(made.data["spec"]["refreshInterval"], "1h0m0s");
    let params = PatchParams::default();
    let sync = json!({ "metadata": { "annotations": { "force-sync": "1" } } });
    assert_eq!(refusal(external.patch("x", &params, &Patch::Strategic(&sync)).await).0, 415);
    let synced = external.patch("x", &params, &Patch::Merge(&sync)).await.unwrap();
    assert_eq!(synced.metadata.generation, Some(1));
    let blind = external.replace("x", &PostParams::default(), &wanted).await;
    assert!(refusal(blind).2.contains("metadata.resourceVersion: Invalid value"));
    let wrong = json!({ "spec": { "refreshPolicy": "Sometimes" } });
    assert_eq!(refusal(external.patch("x", &params, &Patch::Merge(&wrong)).await).0, 422);
}

#[tokio::test]
async fn a_json_patch_is_done_whole_or_not_at_all() {
    let cluster = Cluster::start().unwrap();
    let secrets: Api<Secret> = Api::default_namespaced(client(&cluster, ADMIN).await);
    secrets.create(&PostParams::default(), &secret("x", &[("a", b"1")])).await.unwrap();
    let url = format!("{}/api/v1/namespaces/default/secrets/x", cluster.url());
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let patch = async |wanted: Value| {
        let request = http.patch(&url).bearer_auth(cluster.token(ADMIN).unwrap());
        let request = request.header("content-type", "application/json-patch+json");
        let answer = request.body(wanted.to_string()).send().await.unwrap();
        assert_eq!(answer.headers()["x-keywheel-twin"], "kubernetes");
        answer.json::<Value>().await.unwrap()
    };
    let guarded = |value: &str| {
        json!([{ "op": "add", "path": "/data/b", "value": "Mg==" },
            { "op": "test", "path": "/data/a", "value": value }])
    };
    let refused = patch(guarded("Mg==")).await;
    assert_eq!((&refused["code"], &refused["reason"]), (&json!(422), &json!("Invalid")));
    assert_eq!(secrets.get("x").await.unwrap().data.unwrap().len(), 1);
    assert_eq!(patch(guarded("MQ==")).await["data"], json!({ "a": "MQ==", "b": "Mg==" }));
}

#[tokio::test]
async fn an_apply_names_who_else_owns_a_field_and_gives_up_what_it_no_longer_says() {
    let cluster = Cluster::start().unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&cluster, ADMIN).await);
    let config = |data: Value| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "x" }, "data": data });
    let apply = async |manager: &str, force: bool, data: Value| {
        let params = PatchParams { force, ..PatchParams::apply(manager) };
        maps.patch("x", &params, &Patch::Apply(&config(data))).await
    };
    apply("argocd-controller", false, json!({ "a": "1", "b": "1" })).await.unwrap();
    let same = apply("keywheel", false, json!({ "a": "1", "c": "1" })).await.unwrap();
    let (code, reason, message) = refusal(apply("keywheel", false, json!({ "b": "2" })).await);
    assert_eq!((code, reason.as_str()), (409, "Conflict"));
    assert_eq!(
        message,
        "Apply failed with 1 conflict: conflict with \"argocd-controller\": .data.b"
    );
    let again = apply("keywheel", false, json!({ "a": "1", "c": "1" })).await.unwrap();
    assert_eq!(again.metadata.resource_version, same.metadata.resource_version);
    let forced = apply("keywheel", true, json!({ "b": "2" })).await.unwrap();
    let left: BTreeMap<_, _> = forced.data.unwrap();
    assert_eq!(serde_json::to_value(left).unwrap(), json!({ "a": "1", "b": "2" }));
}

#[tokio::test]
async fn a_list_is_of_one_version_over_all_its_pages() {
    let cluster = Cluster::start().unwrap();
    let secrets: Api<Secret> = Api::default_namespaced(client(&cluster, ADMIN).await);
    for name in ["a", "b", "c", "d", "e"] {
        let mut wanted = secret(name, &[("k", b"1")]);
        wanted.metadata.labels = Some([("letter".to_owned(), name.to_owned())].into());
        secrets.create(&PostParams::default(), &wanted).await.unwrap();
    }
    let names = |list: &kube::api::ObjectList<Secret>| {
        list.iter().map(|it| it.metadata.name.clone().unwrap()).collect::<String>()
    };
    let page = ListParams::default().limit(2);
    let first = secrets.list(&page).await.unwrap();
    secrets.delete("c", &DeleteParams::default()).await.unwrap();
    let token = first.metadata.continue_.clone().unwrap();
    let second = secrets.list(&page.clone().continue_token(&token)).await.unwrap();
    assert_eq!((names(&first), names(&second)), ("ab".into(), "cd".into()));
    let labelled = ListParams::default().labels("letter in (a,e),letter!=a");
    assert_eq!(names(&secrets.list(&labelled).await.unwrap()), "e");
    let named = ListParams::default().fields("metadata.name=b");
    assert_eq!(names(&secrets.list(&named).await.unwrap()), "b");
    let token = second.metadata.continue_.clone().unwrap();
    cluster.objects().forget();
    assert_eq!(refusal(secrets.list(&page.continue_token(&token)).await).0, 410);
    let metadata = secrets.list_metadata(&ListParams::default()).await.unwrap();
    assert_eq!(metadata.items.len(), 4);
}

#[tokio::test]
async fn a_watch_tells_each_change_and_breaks_off_or_is_too_old_as_scripted() {
    let cluster = Cluster::start().unwrap();
    let secrets: Api<Secret> = Api::default_namespaced(client(&cluster, ADMIN).await);
    let version =
        secrets.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    secrets.create(&PostParams::default(), &secret("x", &[("a", b"1")])).await.unwrap();
    secrets.delete("x", &DeleteParams::default()).await.unwrap();
    let params = WatchParams::default().timeout(1);
    let told = async |version: &str| {
        let events: Result<Vec<_>, _> =
            secrets.watch(&params, version).await.unwrap().try_collect().await;
        events.map(|events| events.iter().map(kind_of).collect::<Vec<_>>())
    };
    assert_eq!(told(&version).await.unwrap(), ["ADDED", "DELETED", "BOOKMARK"]);
    let on = || Class::new("watch", "secrets");
    cluster.faults().set(vec![
        FaultRule::first(on(), Fault::WatchDropped { after: 1 }),
        FaultRule::first(on(), Fault::WatchExpired).after(1),
    ]);
    assert_eq!(told(&version).await.unwrap(), ["ADDED"]);
    assert_eq!(told(&version).await.unwrap(), ["ERROR 410"]);
    assert_eq!(cluster.faults().unfired(), []);
    cluster.objects().forget();
    assert_eq!(told(&version).await.unwrap(), ["ERROR 410"]);
}

fn kind_of(event: &WatchEvent<Secret>) -> String {
    match event {
        WatchEvent::Added(_) => "ADDED".into(),
        WatchEvent::Modified(_) => "MODIFIED".into(),
        WatchEvent::Deleted(_) => "DELETED".into(),
        WatchEvent::Bookmark(_) => "BOOKMARK".into(),
        WatchEvent::Error(status) => format!("ERROR {}", status.code),
    }
}

#[tokio::test]
async fn a_delete_names_the_object_that_it_means() {
    let cluster = Cluster::start().unwrap();
    let secrets: Api<Secret> = Api::default_namespaced(client(&cluster, ADMIN).await);
    let made = secrets.create(&PostParams::default(), &secret("x", &[("a", b"1")])).await.unwrap();
    let uid = made.metadata.uid.clone();
    cluster.objects().recreate(&Key::new(Kind::Secret, "default", "x"));
    let preconditions = Some(Preconditions { uid, resource_version: None });
    let params = DeleteParams { preconditions, ..DeleteParams::default() };
    let (code, reason, message) = refusal(secrets.delete("x", &params).await);
    assert_eq!((code, reason.as_str()), (409, "Conflict"));
    assert!(message.contains("Precondition failed: UID in precondition"), "{message}");
    assert_ne!(secrets.get("x").await.unwrap().metadata.uid, made.metadata.uid);
    let dry = DeleteParams { dry_run: true, ..DeleteParams::default() };
    cluster.faults().forget();
    secrets.delete("x", &dry).await.unwrap();
    assert_eq!(cluster.faults().writes(), 0);
    secrets.delete("x", &DeleteParams::default()).await.unwrap();
    assert_eq!(secrets.get_opt("x").await.unwrap(), None);
}

#[tokio::test]
async fn rights_are_judged_at_each_request_and_refused_in_the_servers_words() {
    let cluster = Cluster::start().unwrap();
    let rights =
        vec![Rule::new(&["get", "patch"], "", &["secrets"]).named(&["x"]).in_namespace("default")];
    cluster.add_user("narrow", rights);
    let admin: Api<Secret> = Api::default_namespaced(client(&cluster, ADMIN).await);
    admin.create(&PostParams::default(), &secret("x", &[("a", b"1")])).await.unwrap();
    let secrets: Api<Secret> = Api::default_namespaced(client(&cluster, "narrow").await);
    secrets.get("x").await.unwrap();
    let (code, reason, message) = refusal(secrets.get("y").await);
    assert_eq!((code, reason.as_str()), (403, "Forbidden"));
    assert_eq!(
        message,
        "secrets \"y\" is forbidden: User \"narrow\" cannot get resource \"secrets\" in API group \"\" in the namespace \"default\""
    );
    assert_eq!(refusal(secrets.list(&ListParams::default()).await).0, 403);
    cluster.set_rules("narrow", vec![]);
    assert_eq!(refusal(secrets.get("x").await).0, 403);
    cluster.remove_user("narrow");
    assert_eq!(refusal(secrets.get("x").await).0, 401);
}

#[tokio::test]
async fn a_dry_run_is_judged_and_not_kept() {
    let cluster = Cluster::start().unwrap();
    let pods: Api<Pod> = Api::default_namespaced(client(&cluster, ADMIN).await);
    let pod = json!({ "metadata": { "name": "x" }, "spec": { "containers": [{ "name": "app", "image": "a" }] } });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    assert_eq!(pods.create(&dry, &pod).await.unwrap().status.unwrap().phase.unwrap(), "Pending");
    assert_eq!(pods.get_opt("x").await.unwrap(), None);
    let unnamed = Pod::default();
    assert_eq!(refusal(pods.create(&dry, &unnamed).await).0, 422);
}

#[tokio::test]
async fn a_fault_strikes_the_requests_that_it_is_about() {
    let cluster = Cluster::start().unwrap();
    let secrets: Api<Secret> = Api::default_namespaced(client(&cluster, ADMIN).await);
    secrets.create(&PostParams::default(), &secret("x", &[("a", b"1")])).await.unwrap();
    let on = |verb: &str| Class::new(verb, "secrets").named("x");
    let busy = keywheel_twins::fault::Fault::busy();
    let lost = keywheel_twins::fault::Fault::LateLanding { after_ms: 1000 };
    let stale = keywheel_twins::fault::Fault::DelayedList { for_ms: 60_000 };
    let refused = Fault::Refused { code: 403, message: "no secrets from Git".into() };
    cluster.faults().set(vec![
        FaultRule::times(on("patch"), 2, Fault::status(409)),
        FaultRule::first(on("patch"), Fault::Http(busy)).after(2),
        FaultRule::first(on("patch"), refused).after(3),
        FaultRule::first(on("patch"), Fault::DropsAnnotation("keywheel.dev/claim".into())).after(4),
        FaultRule::first(on("patch"), Fault::Recreated).after(5),
        FaultRule::first(on("patch"), Fault::Http(lost)).after(6),
        FaultRule::first(on("get"), Fault::Http(stale)).after(1),
    ]);
    let patch = async |value: &str| {
        let wanted = json!({ "metadata": { "annotations": { "keywheel.dev/claim": value } } });
        secrets.patch("x", &PatchParams::default(), &Patch::Merge(&wanted)).await
    };
    assert_eq!([refusal(patch("1").await).0, refusal(patch("1").await).0], [409, 409]);
    let Err(kube::Error::Api(busy)) = patch("1").await else { panic!("it is not busy") };
    assert_eq!((busy.code, busy.details.unwrap().retry_after_seconds), (429, 3600));
    let (code, _, message) = refusal(patch("1").await);
    assert_eq!(code, 403);
    assert!(message.ends_with("denied the request: no secrets from Git"), "{message}");
    let dropped = patch("1").await.unwrap();
    assert_eq!(dropped.metadata.annotations.unwrap_or_default().len(), 0);
    assert_ne!(patch("1").await.unwrap().metadata.uid, dropped.metadata.uid);
    assert!(matches!(
        patch("late").await,
        Err(kube::Error::HyperError(_) | kube::Error::Service(_))
    ));
    let claim = |secret: Secret| {
        secret.metadata.annotations.unwrap_or_default().remove("keywheel.dev/claim")
    };
    assert_eq!(claim(secrets.get("x").await.unwrap()).as_deref(), Some("1"));
    while !cluster.faults().has_landed() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(refusal(secrets.get("x").await).0, 404);
    assert_eq!(claim(secrets.get("x").await.unwrap()).as_deref(), Some("late"));
    assert_eq!(cluster.faults().unfired(), []);
    let seen = cluster.faults().seen();
    let patches: Vec<_> =
        seen.iter().filter(|seen| seen.verb == "patch").map(|seen| seen.code).collect();
    let codes = [409, 409, 429, 403, 200, 200, 200].map(Some);
    assert_eq!(patches, codes);
    assert!(seen.iter().all(|seen| seen.user == ADMIN));
    assert_eq!(cluster.faults().writes(), 8);
}

#[tokio::test]
async fn a_pods_port_is_forwarded_and_its_log_handed_over() {
    let cluster = Cluster::start().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = [0; 4];
        stream.read_exact(&mut asked).await.unwrap();
        stream.write_all(b"pong").await.unwrap();
    });
    let pods: Api<Pod> = Api::default_namespaced(client(&cluster, ADMIN).await);
    let pod = json!({ "metadata": { "name": "x" }, "spec": { "containers": [{ "name": "app", "image": "a" }] } });
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    assert!(pods.portforward("x", &[port]).await.is_err());
    let key = Key::new(Kind::Pod, "default", "x");
    let running = |pod: &mut Value| {
        pod["status"]["phase"] = "Running".into();
        pod["status"]["podIP"] = "127.0.0.1".into();
    };
    cluster.objects().change_status(&key, "kubelet", running).unwrap();
    let mut forwarder = pods.portforward("x", &[port, 1]).await.unwrap();
    let mut stream = forwarder.take_stream(port).unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut answered = [0; 4];
    stream.read_exact(&mut answered).await.unwrap();
    assert_eq!(&answered, b"pong");
    let refused = forwarder.take_error(1).unwrap().await.unwrap();
    assert!(refused.contains("Connection refused"), "{refused}");

    let waits = refusal(pods.logs("x", &LogParams::default()).await);
    assert_eq!(waits.0, 400);
    cluster.serve_logs(|of| (!of.previous).then(|| "one\ntwo\n".into()));
    let tail = LogParams { tail_lines: Some(1), ..LogParams::default() };
    assert_eq!(pods.logs("x", &tail).await.unwrap(), "two\n");
    let previous = LogParams { previous: true, ..LogParams::default() };
    assert_eq!(refusal(pods.logs("x", &previous).await).0, 400);
}

#[tokio::test]
async fn an_eviction_heeds_the_budget_and_a_scale_is_written_apart() {
    let cluster = Cluster::start().unwrap();
    let client = client(&cluster, ADMIN).await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let labels = json!({ "app": "x" });
    let pod = json!({ "metadata": { "name": "x", "labels": labels }, "spec": { "containers": [{ "name": "app", "image": "a" }] } });
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let budget = json!({ "metadata": { "name": "x", "namespace": "default" }, "spec": { "minAvailable": 1, "selector": { "matchLabels": labels } } });
    cluster.objects().create(Kind::PodDisruptionBudget, budget, "test").unwrap();
    assert_eq!(refusal(pods.evict("x", &EvictParams::default()).await).0, 429);
    let key = Key::new(Kind::PodDisruptionBudget, "default", "x");
    cluster
        .objects()
        .change_status(&key, "controller", |it| it["status"]["disruptionsAllowed"] = 1.into())
        .unwrap();
    pods.evict("x", &EvictParams::default()).await.unwrap();
    assert_eq!(pods.get_opt("x").await.unwrap(), None);

    cluster.objects().create(Kind::Deployment, deployment(), "test").unwrap();
    let deployments: Api<Deployment> = Api::default_namespaced(client);
    let wanted = json!({ "spec": { "replicas": 3 } });
    let scale = deployments
        .patch_scale("app", &PatchParams::default(), &Patch::Merge(&wanted))
        .await
        .unwrap();
    assert_eq!(scale.spec.unwrap().replicas, Some(3));
    let metadata = deployments.get("app").await.unwrap().metadata;
    assert_eq!(metadata.generation, Some(2));
    let entries = metadata.managed_fields.unwrap();
    assert!(entries.iter().any(|entry| entry.subresource.as_deref() == Some("scale")));
}

#[tokio::test]
async fn a_generation_counts_what_is_wanted_and_a_status_is_written_apart() {
    let cluster = Cluster::start().unwrap();
    cluster.objects().create(Kind::Deployment, deployment(), "test").unwrap();
    let deployments: Api<Deployment> = Api::default_namespaced(client(&cluster, ADMIN).await);
    let patch = async |wanted: Value| {
        let done =
            deployments.patch("app", &PatchParams::default(), &Patch::Strategic(&wanted)).await;
        done.unwrap()
    };
    let stamp =
        json!({ "spec": { "template": { "metadata": { "annotations": { "stamp": "1" } } } } });
    let stamped = patch(stamp.clone()).await;
    assert_eq!(stamped.metadata.generation, Some(2));
    assert_eq!(patch(stamp).await.metadata.resource_version, stamped.metadata.resource_version);
    let labelled =
        patch(json!({ "metadata": { "labels": { "a": "b" } }, "status": { "replicas": 7 } })).await;
    assert_eq!((labelled.metadata.generation, labelled.status), (Some(2), None));
    let wanted = json!({ "spec": { "replicas": 9 }, "status": { "replicas": 7 } });
    let params = PatchParams::default();
    let done = deployments.patch_status("app", &params, &Patch::Merge(&wanted)).await.unwrap();
    assert_eq!(done.metadata.generation, Some(2));
    assert_eq!((done.spec.unwrap().replicas, done.status.unwrap().replicas), (Some(2), Some(7)));
    let (code, _, message) = refusal(
        deployments
            .patch(
                "app",
                &params,
                &Patch::Merge(
                    &json!({ "spec": { "selector": { "matchLabels": { "app": "other" } } } }),
                ),
            )
            .await,
    );
    assert_eq!(code, 422);
    assert!(
        message.starts_with("Deployment.apps \"app\" is invalid: [spec.template.metadata.labels: "),
        "{message}"
    );
}

#[tokio::test]
async fn a_stamp_that_is_applied_and_given_up_leaves_the_template_as_it_was() {
    let cluster = Cluster::start().unwrap();
    cluster.objects().create(Kind::Deployment, deployment(), "test").unwrap();
    let deployments: Api<Deployment> = Api::default_namespaced(client(&cluster, ADMIN).await);
    let before = deployments.get("app").await.unwrap();
    let apply = async |manager: &str, template: Value| {
        let config = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "app" },
            "spec": { "template": template } });
        deployments
            .patch("app", &PatchParams::apply(manager), &Patch::Apply(&config))
            .await
            .unwrap()
    };
    let variable = json!([{ "name": "app", "env": [{ "name": "STAMP", "value": "1" }] }]);
    let stamp = json!({ "metadata": { "annotations": { "keywheel.dev/stamp": "1" } }, "spec": { "containers": variable } });
    let stamped = apply("keywheel", stamp.clone()).await;
    let names = |deployment: &Deployment| -> Vec<String> {
        let spec = deployment.spec.clone().unwrap().template.spec.unwrap();
        spec.containers[0].env.clone().unwrap().into_iter().map(|it| it.name).collect()
    };
    assert_eq!(names(&stamped), ["TOKEN", "STAMP"]);
    let forced = PatchParams::apply("argocd-controller").force();
    deployments.patch("app", &forced, &Patch::Apply(&deployment())).await.unwrap();
    let again = apply("keywheel", stamp).await;
    assert_eq!((names(&again).len(), again.metadata.generation), (2, Some(2)));
    let after = apply("keywheel", json!({})).await;
    assert_eq!(after.spec, before.spec);
    assert_eq!(after.metadata.generation, Some(3));
}

#[tokio::test]
async fn a_lost_answer_is_lost_after_it_was_done_and_a_proxys_page_is_no_status() {
    use keywheel_twins::fault::{Echo, Fault as Http};
    let cluster = Cluster::start().unwrap();
    let secrets: Api<Secret> = Api::default_namespaced(client(&cluster, ADMIN).await);
    secrets.create(&PostParams::default(), &secret("x", &[("a", b"1")])).await.unwrap();
    let on = || Class::new("patch", "secrets");
    let page = Http::Status { code: 502, retry_after: None, body: Echo::Html, applied: false };
    let faults = [Http::Cut, Http::TimeoutBefore, Http::TimeoutAfter, page];
    let rule = |(skip, fault)| FaultRule::first(on(), Fault::Http(fault)).after(skip);
    cluster.faults().set(faults.into_iter().enumerate().map(rule).collect());
    let patch = async |value: &str| {
        let wanted = json!({ "stringData": { "a": value } });
        let params = PatchParams::default();
        let asked = secrets.patch("x", &params, &Patch::Merge(&wanted)).await;
        asked.map(drop)
    };
    let value = async || secrets.get("x").await.unwrap().data.unwrap().remove("a").unwrap().0;
    patch("cut").await.unwrap_err();
    assert_eq!(value().await, b"cut");
    // A request that is never answered is over once it has struck.
    let struck = async |left: usize| {
        while cluster.faults().unfired().len() > left {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        answered = patch("before") => panic!("{answered:?}"),
        () = struck(2) => {}
    }
    assert_eq!(value().await, b"cut");
    let done = async || {
        struck(1).await;
        while value().await != b"after" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        answered = patch("after") => panic!("{answered:?}"),
        () = done() => {}
    }
    let (code, reason, _) = refusal(patch("page").await);
    assert_eq!((code, reason.as_str()), (502, "Failed to parse error data"));
    assert_eq!(cluster.faults().unfired(), []);
}

#[tokio::test]
async fn a_list_may_be_behind() {
    let cluster = Cluster::start().unwrap();
    let secrets: Api<Secret> = Api::default_namespaced(client(&cluster, ADMIN).await);
    secrets.create(&PostParams::default(), &secret("old", &[])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    secrets.create(&PostParams::default(), &secret("new", &[])).await.unwrap();
    let stale = keywheel_twins::fault::Fault::DelayedList { for_ms: 1200 };
    cluster.faults().set(vec![FaultRule::first(Class::new("list", "secrets"), Fault::Http(stale))]);
    let count = async || secrets.list(&ListParams::default()).await.unwrap().items.len();
    assert_eq!([count().await, count().await], [1, 2]);
}

#[tokio::test]
async fn the_own_rights_can_be_asked_and_come_from_role_bindings_too() {
    let cluster = Cluster::start().unwrap();
    cluster.add_user("bound", vec![]);
    let client = client(&cluster, "bound").await;
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client);
    let allowed = async |verb: &str, name: &str| {
        let asked = json!({ "spec": { "resourceAttributes": {
            "namespace": "default", "verb": verb, "resource": "secrets", "name": name } } });
        let asked = serde_json::from_value(asked).unwrap();
        let review = reviews.create(&PostParams::default(), &asked).await.unwrap();
        review.status.unwrap().allowed
    };
    assert!(!allowed("get", "x").await);
    let metadata = json!({ "name": "keywheel", "namespace": "default" });
    let role = json!({ "metadata": metadata, "rules": [
        { "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["x"], "verbs": ["get", "patch"] }] });
    let binding = json!({ "metadata": metadata, "subjects": [{ "kind": "User", "name": "bound" }],
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "keywheel" } });
    cluster.objects().create(Kind::Role, role, "test").unwrap();
    cluster.objects().create(Kind::RoleBinding, binding, "test").unwrap();
    assert!(allowed("get", "x").await);
    assert!(!allowed("get", "y").await);
    assert!(!allowed("delete", "x").await);
}

#[test]
fn a_rival_writes_its_field_back_under_its_own_name() {
    let cluster = Cluster::start().unwrap();
    let key = Key::new(Kind::Deployment, "default", "app");
    cluster.objects().create(Kind::Deployment, deployment(), "argocd-controller").unwrap();
    let reverts = |it: &mut Value| it["spec"]["template"]["metadata"]["annotations"] = json!({});
    let rival =
        cluster.rival("argocd-controller", key.clone(), Duration::from_millis(5), reverts).unwrap();
    let stamp =
        |it: &mut Value| it["spec"]["template"]["metadata"]["annotations"]["stamp"] = "1".into();
    cluster.objects().change(&key, "keywheel", stamp).unwrap();
    let at = "/spec/template/metadata/annotations/stamp";
    let stands = || cluster.objects().get(&key).unwrap().pointer(at).is_some();
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while stands() || rival.writes() == 0 {
        assert!(std::time::Instant::now() < deadline, "nobody wrote the stamp away");
        std::thread::sleep(Duration::from_millis(5));
    }
    let object = cluster.objects().get(&key).unwrap();
    let managers = object["metadata"]["managedFields"].as_array().unwrap();
    assert!(managers.iter().all(|entry| entry["manager"] == "argocd-controller"));
    assert_eq!(rival.writes(), 1);
}

#[test]
fn two_clusters_are_two_identities_and_v1beta1_is_served_only_where_wanted() {
    let old = Options { serves_v1beta1: true, ..Options::default() };
    let (first, second) = (Cluster::start().unwrap(), Cluster::start_with(&old).unwrap());
    assert_ne!(first.identity(), second.identity());
    let Some(versions) = kubectl(&first, &["api-versions"], "") else { return };
    assert!(!done(&versions).contains("external-secrets.io/v1beta1"));
    let versions = done(&kubectl(&second, &["api-versions"], "").unwrap());
    assert!(versions.contains("external-secrets.io/v1\n"));
    assert!(versions.contains("external-secrets.io/v1beta1\n"));
}

fn deployment() -> Value {
    let labels = json!({ "app": "app" });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "app", "namespace": "default" },
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": { "containers": [{ "name": "app", "image": "app:1", "env": [
                    { "name": "TOKEN", "valueFrom": { "secretKeyRef": { "name": "api-keys", "key": "token" } } }] }] },
            },
        },
    })
}

/// Runs kubectl as the administrator, or says why not.
fn kubectl(cluster: &Cluster, arguments: &[&str], input: &str) -> Option<Output> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    cluster.write_kubeconfig(&path).unwrap();
    let mut command = Command::new("kubectl");
    command.args(["--context", "admin-kubectl", "--kubeconfig"]).arg(&path).args(arguments);
    command.env("HOME", folder.path()).env("NO_PROXY", "127.0.0.1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(why) => {
            println!("skipped: kubectl ({why})");
            return None;
        }
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    Some(child.wait_with_output().unwrap())
}

fn done(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned() + "\n"
}

#[test]
fn kubectl_makes_patches_and_deletes_a_secret() {
    let cluster = Cluster::start().unwrap();
    let make = ["create", "secret", "generic", "api-keys", "--from-literal=a=kwcanary-one"];
    let Some(made) = kubectl(&cluster, &make, "") else { return };
    assert_eq!(done(&made), "secret/api-keys created\n");
    let run = |arguments: &[&str]| done(&kubectl(&cluster, arguments, "").unwrap());
    assert_eq!(
        run(&["get", "secret", "api-keys", "-o", "jsonpath={.data.a}"]),
        "a3djYW5hcnktb25l\n"
    );
    run(&["patch", "secret", "api-keys", "-p", r#"{"data":{"mistyped":"Mg=="}}"#]);
    assert_eq!(run(&["get", "secret", "api-keys", "-o", "jsonpath={.data.mistyped}"]), "Mg==\n");
    assert_eq!(cluster.faults().disclosed(), []);
    run(&["annotate", "secret", "api-keys", "note=kwcanary-one"]);
    assert_eq!(cluster.faults().disclosed().len(), 1);
    assert_eq!(run(&["delete", "secret", "api-keys"]), "secret \"api-keys\" deleted\n");
    assert!(run(&["version"]).contains("Server Version: v1.33"));
    let create = ["create", "configmap", "x", "--from-literal=a=1"];
    assert_eq!(run(&create), "configmap/x created\n");
}

#[test]
fn kubectl_applies_a_secret_and_leaves_it_in_an_annotation() {
    let cluster = Cluster::start().unwrap();
    let manifest = r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"x"},"data":{"a":"a3djYW5hcnktdHdv"}}"#;
    let Some(applied) = kubectl(&cluster, &["apply", "-f", "-"], manifest) else { return };
    assert_eq!(done(&applied), "secret/x created\n");
    let again = kubectl(&cluster, &["apply", "-f", "-"], manifest).unwrap();
    assert_eq!(done(&again), "secret/x unchanged\n");
    let found = cluster.faults().disclosed();
    assert_eq!(found[0].name, "kubectl.kubernetes.io/last-applied-configuration");
    let by_server = ["apply", "--server-side", "--field-manager=keywheel", "-f", "-"];
    let refused = kubectl(&cluster, &by_server, &manifest.replace("dHdv", "dHdvMg==")).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        said.contains("conflict with \"kubectl-client-side-apply\" using v1: .data.a"),
        "{said}"
    );
}

#[test]
fn kubectl_judges_restarts_and_undoes_a_rollout() {
    let cluster = Cluster::start().unwrap();
    let manifest = deployment().to_string();
    let Some(applied) = kubectl(&cluster, &["apply", "-f", "-"], &manifest) else { return };
    assert_eq!(done(&applied), "deployment.apps/app created\n");
    let run = |arguments: &[&str]| done(&kubectl(&cluster, arguments, "").unwrap());
    let objects = cluster.objects();
    let key = Key::new(Kind::Deployment, "default", "app");
    let roll = |revision: &str| {
        let made = objects.get(&key).unwrap();
        let labels = json!({ "app": "app", "pod-template-hash": revision });
        let mut template = made["spec"]["template"].clone();
        template["metadata"]["labels"] = labels.clone();
        let set = json!({
            "metadata": {
                "name": format!("app-{revision}"), "namespace": "default", "labels": labels,
                "annotations": { "deployment.kubernetes.io/revision": revision },
                "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "Deployment", "name": "app",
                    "uid": made["metadata"]["uid"], "controller": true }],
            },
            "spec": { "replicas": 2, "selector": { "matchLabels": labels }, "template": template },
        });
        objects.create(Kind::ReplicaSet, set, "kube-controller-manager").unwrap();
        let mark = |it: &mut Value| {
            it["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = revision.into()
        };
        objects.change(&key, "kube-controller-manager", mark).unwrap();
        let finish = |it: &mut Value| {
            let generation = it["metadata"]["generation"].clone();
            it["status"] = json!({ "observedGeneration": generation, "replicas": 2, "updatedReplicas": 2,
                "readyReplicas": 2, "availableReplicas": 2 });
        };
        objects.change_status(&key, "kube-controller-manager", finish).unwrap();
    };
    roll("1");
    let judge = ["rollout", "status", "deployment/app", "--timeout=10s"];
    assert_eq!(run(&judge), "deployment \"app\" successfully rolled out\n");
    assert_eq!(run(&["rollout", "restart", "deployment/app"]), "deployment.apps/app restarted\n");
    roll("2");
    let stamp = "/spec/template/metadata/annotations/kubectl.kubernetes.io~1restartedAt";
    assert!(objects.get(&key).unwrap().pointer(stamp).is_some());
    assert!(run(&["rollout", "history", "deployment/app"]).contains("\n2 "));
    assert_eq!(run(&["rollout", "undo", "deployment/app"]), "deployment.apps/app rolled back\n");
    assert!(objects.get(&key).unwrap().pointer(stamp).is_none());
    assert_eq!(run(&["scale", "deployment/app", "--replicas=0"]), "deployment.apps/app scaled\n");
    assert_eq!(run(&["set", "env", "deployment/app", "A=1"]), "deployment.apps/app env updated\n");
    let env = &objects.get(&key).unwrap()["spec"]["template"]["spec"]["containers"][0]["env"];
    assert_eq!((env[0]["name"].as_str(), env[1]["name"].as_str()), (Some("TOKEN"), Some("A")));
    assert_eq!(run(&["auth", "can-i", "delete", "secrets"]), "yes\n");
    assert_eq!(run(&["delete", "deployment", "app"]), "deployment.apps \"app\" deleted\n");
    assert_eq!(objects.list(Kind::ReplicaSet, None).0.len(), 0);
}
