//! Issuers. To add one: write its file beside this one, with a `Config` that implements [`Build`](crate::Build), and name it
//! in the list below. Nothing else in the program changes.

use keywheel_driver::Issuer;

use crate::list::drivers;

#[cfg(test)]
mod bench;

drivers! {
    /// The configuration of an issuer: `{ openai: {…} }`.
    IssuerConfig for dyn Issuer {
        anthropic => Anthropic,
        #[cfg(feature = "cloud")]
        aws_access_key => AwsAccessKey,
        command => Command,
        jwt_secret => JwtSecret,
        manual => Manual,
        openai => Openai,
        openrouter => Openrouter,
        posthog => Posthog,
        postgres => Postgres,
        random => Random,
        redis_acl => RedisAcl,
        sentry => Sentry,
        service_token => ServiceToken,
        vault_dynamic => VaultDynamic,
        vault_static => VaultStatic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_read_by_its_name() {
        for kind in IssuerConfig::KINDS {
            let config = match *kind {
                "openai" => {
                    serde_json::json!({ "project": "proj_1", "admin_key": { "env": "ADMIN_KEY" } })
                }
                "openrouter" => {
                    serde_json::json!({ "management_key": { "env": "MANAGEMENT_KEY" } })
                }
                "sentry" => serde_json::json!({
                    "organization": "shop", "project": "backend", "auth_token": { "env": "TOKEN" },
                }),
                "posthog" => serde_json::json!({
                    "project": 7, "base_url": "https://eu.posthog.com", "personal_key": { "env": "KEY" },
                }),
                "postgres" => {
                    serde_json::json!({ "admin_url": { "env": "ADMIN_URL" }, "owner": "app", "logins": ["app_a", "app_b"] })
                }
                "redis_acl" => serde_json::json!({
                    "nodes": ["127.0.0.1:6379"], "user": "app", "admin": { "password": { "env": "REDIS_ADMIN" } },
                }),
                "command" => serde_json::json!({ "mint": ["tools/keys"] }),
                "vault_dynamic" => serde_json::json!({
                    "address": "https://vault", "auth": { "token": { "env": "TOKEN" } }, "path": "database/creds/app",
                }),
                "vault_static" => serde_json::json!({
                    "address": "https://vault", "auth": { "token": { "env": "TOKEN" } }, "role": "app",
                }),
                "service_token" => serde_json::json!({ "signed_by": "jwt", "subject": "worker" }),
                "aws_access_key" => serde_json::json!({ "user": "backend" }),
                _ => serde_json::json!({}),
            };
            let read: IssuerConfig =
                serde_json::from_value(serde_json::json!({ *kind: config })).unwrap();
            assert_eq!(read.kind(), *kind);
        }
    }
}
