//! The history of templates that StatefulSets and DaemonSets keep: a ControllerRevision for each.

use std::sync::Arc;

use serde_json::{Value, json};

use super::json::{entries, label, name, namespace, number, owner, same, uid};
use super::pass::Pass;
use super::template::{hash, managed_by};
use crate::kubernetes::Kind;

/// The label that names the revision of a pod.
pub(super) const LABEL: &str = "controller-revision-hash";

/// The templates of one object, the oldest first.
pub(super) struct History(Vec<Arc<Value>>);

impl History {
    /// Returns the history, to which the present template was added as the newest.
    pub(super) fn of(pass: &Pass<'_>, kind: Kind, object: &Value) -> Self {
        let history = Self::read(pass, object);
        let template = &object["spec"]["template"];
        let newest = history.0.last().map_or(0, |newest| revision(newest));
        match history.0.iter().find(|kept| same(&self::template(kept), template)) {
            Some(known) if revision(known) == newest => return history,
            Some(known) => pass.change(Kind::ControllerRevision, known, |known| {
                known["revision"] = (newest + 1).into();
            }),
            None => {
                let made = made(kind, object, newest + 1);
                pass.create(Kind::ControllerRevision, &made);
            }
        }
        Self::read(pass, object)
    }

    fn read(pass: &Pass<'_>, object: &Value) -> Self {
        let mut kept = pass.list(Kind::ControllerRevision);
        kept.retain(|kept| owner(kept) == Some(uid(object)));
        kept.sort_by_key(|kept| revision(kept));
        Self(kept)
    }

    /// Returns the present template's revision.
    pub(super) fn newest(&self) -> &str {
        self.0.last().map_or("", |newest| name(newest))
    }

    /// Returns the template of a revision.
    pub(super) fn template(&self, revision: &str) -> Option<Value> {
        self.0.iter().find(|kept| name(kept) == revision).map(|kept| template(kept))
    }

    /// Deletes the oldest that no pod is made of.
    pub(super) fn forget(&self, pass: &Pass<'_>, object: &Value, used: &[&str]) {
        let limit = number(object, "/spec/revisionHistoryLimit").unwrap_or(10);
        let unused =
            self.0.iter().filter(|kept| name(kept) != self.newest() && !used.contains(&name(kept)));
        let unused: Vec<_> = unused.collect();
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        for kept in unused.iter().take(unused.len().saturating_sub(limit)) {
            pass.delete(Kind::ControllerRevision, kept);
        }
    }
}

/// Returns the revision that a pod was made of.
pub(super) fn of_pod(pod: &Value) -> &str {
    label(pod, LABEL)
}

fn revision(kept: &Value) -> i64 {
    number(kept, "/revision").unwrap_or_default()
}

fn template(kept: &Value) -> Value {
    let all = entries(kept, "/data/spec/template").into_iter();
    let all = all.filter(|(name, _)| *name != DIRECTIVE);
    all.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// What a revision is kept as is a patch that replaces the template.
const DIRECTIVE: &str = "$patch";

fn made(kind: Kind, object: &Value, revision: i64) -> Value {
    let mut template = object["spec"]["template"].clone();
    let hash = hash(&template);
    template[DIRECTIVE] = "replace".into();
    json!({
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": format!("{}-{hash}", name(object)),
            "namespace": namespace(object),
            "labels": template["metadata"]["labels"],
            "ownerReferences": managed_by(kind.resource().name, "apps/v1", object),
        },
        "data": { "spec": { "template": template } },
        "revision": revision,
    })
}
