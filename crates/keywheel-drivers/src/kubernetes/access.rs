//! What may be done in a cluster, as the cluster itself says.

use keywheel_driver::CallError;
use serde::Deserialize;
use serde_json::json;

use super::{Kubernetes, Place};

/// One thing that is to be done.
pub(crate) struct Access<'a> {
    /// The verb, such as `patch`.
    pub(crate) verb: &'a str,
    /// What it is done to.
    pub(crate) place: Place<'a>,
}

impl Access<'_> {
    /// Says it in words.
    pub(crate) fn in_words(&self) -> String {
        let parts = [Some(self.place.resource), self.place.name, self.place.sub];
        let object = parts.into_iter().flatten().collect::<Vec<_>>().join("/");
        let within = self.place.namespace.map(|namespace| format!(" in namespace `{namespace}`"));
        format!("`{}` of `{object}`{}", self.verb, within.unwrap_or_default())
    }
}

#[derive(Deserialize)]
struct Review {
    status: Status,
}

#[derive(Deserialize)]
struct Status {
    allowed: bool,
}

impl Kubernetes {
    /// Returns those that this account may not do. Every account may ask this.
    ///
    /// # Errors
    /// [`CallError`] where there is no answer.
    pub(crate) async fn denied<'a>(
        &self,
        wanted: &'a [Access<'a>],
    ) -> Result<Vec<&'a Access<'a>>, CallError> {
        let reviews = Place::of("authorization.k8s.io", "v1", "selfsubjectaccessreviews");
        let mut denied = Vec::new();
        for access in wanted {
            let place = &access.place;
            let question = json!({
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": { "resourceAttributes": {
                    "verb": access.verb,
                    "group": place.group,
                    "resource": place.resource,
                    "subresource": place.sub.unwrap_or_default(),
                    "namespace": place.namespace.unwrap_or_default(),
                    "name": place.name.unwrap_or_default(),
                } },
            });
            let review: Review = self.create(&reviews, &question).await?;
            if !review.status.allowed {
                denied.push(access);
            }
        }
        Ok(denied)
    }
}
