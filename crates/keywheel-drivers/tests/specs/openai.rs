//! `openai` and its twin.

use std::time::Duration;

use keywheel_core::time::Timestamp;
use keywheel_twins::openai::{Twin, TwinOptions};
use serde_json::json;

use crate::checker::Spec;
use crate::{credential, issuer, mint};

#[tokio::test]
async fn openai_is_asked_and_answers_as_its_specification_says() {
    // The reference of November 2026 names it; the document of August does not.
    let Some(spec) = Spec::open("openai-admin.openapi.json", "ErrorResponse") else { return };
    let spec = spec.newer("expires_in_seconds");
    for keeps_keys_of_accounts in [false, true] {
        let options = TwinOptions { keeps_keys_of_accounts, ..TwinOptions::default() };
        let twin = Twin::start(options).unwrap();
        twin.faults().record();
        let folder = tempfile::tempdir().unwrap();
        let config = json!({ "openai": {
            "project": twin.project(),
            "admin_key": { "file": "admin.key" },
            "base_url": twin.base_url(),
            "expires_in": "30d",
        } });
        let issuer = issuer(&folder, twin.admin_key(), config);
        issuer.preflight().await.unwrap();
        let by_hand = twin.make_user_key("by-hand");
        issuer.identify(&credential(&by_hand.value)).await.unwrap();
        let (id, key) = mint(&*issuer, "kw-1-1", None).await;
        issuer.verify(&key).await.unwrap();
        issuer.verify(&credential("sk-svcacct-wrong")).await.unwrap();
        issuer.list("kw-").await.unwrap();
        twin.add_use(id.id.split_once('/').unwrap().1, Duration::from_secs(60));
        issuer.usage().unwrap().last_used(&id).await.unwrap();
        issuer.audit().unwrap().since(&id, Timestamp::default()).await.unwrap();
        for _ in 0..2 {
            issuer.revoke(&id).await.unwrap();
        }
        let met = spec.check_all(&twin.faults().recorded());
        let project = "/organization/projects/{project_id}";
        for operation in [
            "GET /models".to_owned(),
            "GET /organization/admin_api_keys".to_owned(),
            "GET /organization/audit_logs".to_owned(),
            "GET /organization/usage/completions".to_owned(),
            format!("GET {project}"),
            format!("GET {project}/api_keys"),
            format!("DELETE {project}/api_keys/{{api_key_id}}"),
            format!("POST {project}/service_accounts"),
            format!("DELETE {project}/service_accounts/{{service_account_id}}"),
        ] {
            assert!(met.contains(&operation), "{operation} in {met:?}");
        }
    }
}
