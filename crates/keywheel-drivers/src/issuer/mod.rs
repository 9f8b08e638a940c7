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
        command => Command,
        jwt_secret => JwtSecret,
        manual => Manual,
        openai => Openai,
        openrouter => Openrouter,
        postgres => Postgres,
        random => Random,
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
                "postgres" => {
                    serde_json::json!({ "admin_url": { "env": "ADMIN_URL" }, "owner": "app", "logins": ["app_a", "app_b"] })
                }
                "command" => serde_json::json!({ "mint": ["tools/keys"] }),
                _ => serde_json::json!({}),
            };
            let read: IssuerConfig =
                serde_json::from_value(serde_json::json!({ *kind: config })).unwrap();
            assert_eq!(read.kind(), *kind);
        }
    }
}
