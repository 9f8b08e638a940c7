//! What may be done in a cluster, as the cluster itself says.

use keywheel_driver::{CallError, Finding, Right};
use serde::Deserialize;
use serde_json::json;

use super::{Kubernetes, Place};

/// One thing that is to be done.
pub(crate) struct Access<'a> {
    /// The verb, such as `patch`.
    pub(crate) verb: &'a str,
    /// What it is done to.
    pub(crate) place: Place<'a>,
    /// What comes of it where it is not allowed; none where nothing can be done without.
    pub(crate) without: Option<&'a str>,
}

impl<'a> Access<'a> {
    /// Something without which nothing can be done.
    pub(crate) fn needed(verb: &'a str, place: Place<'a>) -> Self {
        Self { verb, place, without: None }
    }

    /// Something that can be done without, and what comes of that.
    pub(crate) fn wanted(verb: &'a str, place: Place<'a>, without: &'a str) -> Self {
        Self { verb, place, without: Some(without) }
    }

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
    /// Returns what of the cluster tells it from another one, which everybody reads who speaks to it.
    pub(crate) fn to_identify(&self) -> Access<'static> {
        Access::needed("get", Place::core("namespaces").named("kube-system"))
    }

    /// Finds what this account may not do, as the cluster itself says.
    ///
    /// # Errors
    /// [`CallError`] where there is no answer.
    pub(crate) async fn examine(&self, wanted: &[Access<'_>]) -> Result<Vec<Finding>, CallError> {
        let denied = self.denied(wanted).await?;
        let finding = |access: &&Access<'_>| {
            let message = format!("{} does not allow {}", self.target(), access.in_words());
            match access.without {
                None => Finding::blocks(message),
                Some(without) => Finding::note(format!("{message}, so that {without}")),
            }
        };
        Ok(denied.iter().map(finding).collect())
    }

    /// Returns the rights that an account needs to do all of this.
    pub(crate) fn rights(&self, wanted: &[Access<'_>]) -> Vec<Right> {
        wanted.iter().map(|access| self.right(access)).collect()
    }

    fn right(&self, Access { verb, place, .. }: &Access<'_>) -> Right {
        let resource = [Some(place.resource), place.sub].into_iter().flatten();
        Right {
            cluster: self.id(),
            namespace: place.scope().unwrap_or_default().to_owned(),
            group: place.group.to_owned(),
            resource: resource.collect::<Vec<_>>().join("/"),
            name: place.name.map(str::to_owned),
            verb: (*verb).to_owned(),
        }
    }

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
                    "namespace": place.scope().unwrap_or_default(),
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
