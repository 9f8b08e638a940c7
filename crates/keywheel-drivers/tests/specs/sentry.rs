//! `sentry` and its twin.

use keywheel_twins::sentry::{ORGANIZATION, PROJECT, Twin, TwinOptions};
use serde_json::json;

use crate::checker::Spec;
use crate::{credential, issuer, mint};

#[tokio::test]
async fn sentry_is_asked_and_answers_as_its_specification_says() {
    let Some(spec) = Spec::open("sentry-project-keys.openapi.json", "") else { return };
    let twin = Twin::start(TwinOptions { page: 1, ..TwinOptions::default() }).unwrap();
    twin.faults().record();
    let folder = tempfile::tempdir().unwrap();
    let config = json!({ "sentry": {
        "organization": ORGANIZATION,
        "project": PROJECT,
        "auth_token": { "file": "admin.key" },
        "base_url": twin.base_url(),
    } });
    let issuer = issuer(&folder, twin.token(), config);
    issuer.preflight().await.unwrap();
    let by_hand = twin.make_key("by-hand");
    let settings = json!({
        "rateLimit": { "window": 60, "count": 9 },
        "useCase": "demo",
        "browserSdkVersion": "7.x",
        "dynamicSdkLoaderOptions": { "hasDebug": true },
    });
    twin.configure(&by_hand, &settings);
    issuer.identify(&credential(&twin.dsn(&by_hand))).await.unwrap();
    let previous = keywheel_core::version::IssuedId::new(&by_hand);
    let (id, key) = mint(&*issuer, "kw-1-1", Some(&previous)).await;
    issuer.list("kw-").await.unwrap();
    issuer.reread(&id).await.unwrap();
    issuer.suspend().unwrap().suspend(&id).await.unwrap();
    issuer.suspend().unwrap().resume(&id).await.unwrap();
    issuer.verify(&key).await.unwrap();
    for _ in 0..2 {
        issuer.revoke(&id).await.unwrap();
    }
    // The relay is another service, and not in the document.
    let mut exchanges = twin.faults().recorded();
    exchanges.retain(|exchange| !exchange.path.ends_with("/envelope/"));
    let met = spec.check_all(&exchanges);
    let keys = "/api/0/projects/{organization_id_or_slug}/{project_id_or_slug}/keys/";
    for operation in [
        "GET /api/0/projects/{organization_id_or_slug}/{project_id_or_slug}/".to_owned(),
        format!("GET {keys}"),
        format!("POST {keys}"),
        format!("GET {keys}{{key_id}}/"),
        format!("PUT {keys}{{key_id}}/"),
        format!("DELETE {keys}{{key_id}}/"),
    ] {
        assert!(met.contains(&operation), "{operation} in {met:?}");
    }
}
