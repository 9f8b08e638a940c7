//! Service accounts: every namespace has one that is called `default`, a moment after it was made.

use serde_json::json;

use super::json::{is_ending, name, namespace};
use super::pass::Pass;
use crate::kubernetes::Kind;

/// Makes the service account of every namespace that has none.
pub(super) fn reconcile(pass: &Pass<'_>) {
    let accounts = pass.list(Kind::ServiceAccount);
    for space in pass.list(Kind::Namespace).iter().filter(|space| !is_ending(space)) {
        let is_there =
            accounts.iter().any(|it| namespace(it) == name(space) && name(it) == "default");
        if !is_there {
            let metadata = json!({ "name": "default", "namespace": name(space) });
            pass.create(Kind::ServiceAccount, &json!({ "metadata": metadata }));
        }
    }
}
