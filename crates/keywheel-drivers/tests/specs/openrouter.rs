//! `openrouter` and its twin.

use std::time::Duration;

use keywheel_core::time::Timestamp;
use keywheel_twins::openrouter::{Limits, Twin, TwinOptions};
use serde_json::json;

use crate::checker::Spec;
use crate::{credential, issuer, mint};

#[tokio::test]
async fn openrouter_is_asked_and_answers_as_its_specification_says() {
    let name = "openrouter-management.openapi.json";
    let Some(spec) = Spec::open(name, "UnauthorizedResponse") else { return };
    let twin = Twin::start(TwinOptions::default()).unwrap();
    twin.faults().record();
    let folder = tempfile::tempdir().unwrap();
    let config = json!({ "openrouter": {
        "management_key": { "file": "admin.key" },
        "workspace_id": twin.default_workspace(),
        "base_url": twin.base_url(),
        "expires_in": "30d",
    } });
    let issuer = issuer(&folder, twin.management_key(), config);
    issuer.preflight().await.unwrap();
    let limits = Limits {
        limit: Some(5.0),
        limit_reset: Some("weekly".into()),
        include_byok_in_limit: true,
        ..Limits::default()
    };
    let by_hand = twin.make_key_with("by-hand", &limits);
    twin.make_guardrail(&[&by_hand.hash]);
    twin.make_provider_key("upstream", Some(&[&by_hand.hash]));
    twin.add_use(&by_hand.hash, Duration::from_secs(50 * 3_600), true);
    issuer.identify(&credential(&by_hand.value)).await.unwrap();
    let previous = keywheel_core::version::IssuedId::new(&by_hand.hash);
    let (id, key) = mint(&*issuer, "kw-1-1", Some(&previous)).await;
    issuer.verify(&key).await.unwrap();
    issuer.verify(&credential("sk-or-v1-wrong")).await.unwrap();
    issuer.list("kw-").await.unwrap();
    issuer.usage().unwrap().last_used(&previous).await.unwrap();
    issuer.audit().unwrap().since(&previous, Timestamp::from_millis(0)).await.unwrap();
    let suspend = issuer.suspend().unwrap();
    suspend.suspend(&id).await.unwrap();
    suspend.resume(&id).await.unwrap();
    for _ in 0..2 {
        issuer.revoke(&id).await.unwrap();
    }
    let met = spec.check_all(&twin.faults().recorded());
    for operation in [
        "GET /key",
        "GET /keys",
        "POST /keys",
        "GET /keys/{hash}",
        "PATCH /keys/{hash}",
        "DELETE /keys/{hash}",
        "GET /workspaces/{id}",
        "GET /activity",
        "GET /guardrails/assignments/keys",
        "POST /guardrails/{id}/assignments/keys",
        "GET /byok",
        "PATCH /byok/{id}",
    ] {
        assert!(met.contains(&operation.to_owned()), "{operation} in {met:?}");
    }
}
