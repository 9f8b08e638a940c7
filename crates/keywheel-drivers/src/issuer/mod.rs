//! Issuers. To add one: write its file beside this one, with a `Config` that implements [`Build`](crate::Build), and name it
//! in the list below. Nothing else in the program changes.

use keywheel_driver::{Issuer, SecretReference};

use crate::Context;
use crate::list::drivers;

drivers! {
    /// The configuration of an issuer: `{ openai: {…} }`.
    IssuerConfig for dyn Issuer {
        command => Command,
        jwt_secret => JwtSecret,
        manual => Manual,
        openai => Openai,
        random => Random,
    }
}

/// Makes a relative path of a reference begin at the folder of the configuration file.
pub(crate) fn from_root(reference: &SecretReference, context: &Context) -> SecretReference {
    match reference {
        SecretReference::File(path) => SecretReference::File(context.root.join(path)),
        other => other.clone(),
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
                "command" => serde_json::json!({ "mint": ["tools/keys"] }),
                _ => serde_json::json!({}),
            };
            let read: IssuerConfig =
                serde_json::from_value(serde_json::json!({ *kind: config })).unwrap();
            assert_eq!(read.kind(), *kind);
        }
    }

    #[test]
    fn a_relative_file_begins_at_the_configuration() {
        let context = Context::at("/etc/app");
        let rooted = |path: &str| from_root(&SecretReference::File(path.into()), &context);
        assert_eq!(rooted("admin.key"), SecretReference::File("/etc/app/admin.key".into()));
        assert_eq!(rooted("/run/admin.key"), SecretReference::File("/run/admin.key".into()));
    }
}
