//! The claim on a Secret: an annotation on it, or on the head of its versions (H61).

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_driver::{CallError, Claim, Claims, Owner, RefusalKind};
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};

use super::object::Object;
use super::{RACES, Secret};
use crate::http::Effect;
use crate::kubernetes::{Approach, CLAIM, Change, head_of};

/// The version of a claim's form.
const FORM: u16 = 1;

#[derive(Serialize, Deserialize)]
struct Written {
    keywheel_claim: u16,
    #[serde(flatten)]
    claim: Claim,
}

/// A claim as it stands on an object.
pub(super) struct Found<'a>(pub(super) Option<&'a str>);

/// Returns the claim on a Secret.
pub(super) fn found(object: Option<&Object>) -> Found<'_> {
    Found(object.and_then(|object| object.annotation(CLAIM)))
}

/// Writes a claim.
pub(super) fn text(claim: &Claim) -> String {
    let written = Written { keywheel_claim: FORM, claim: claim.clone() };
    serde_json::to_string(&written).expect("a claim is plain data")
}

impl Found<'_> {
    /// Compares it with ours.
    pub(super) fn owner(&self, ours: &Claim) -> Owner {
        let Some(text) = self.0 else { return Owner::Nobody };
        match serde_json::from_str::<Written>(text) {
            Ok(Written { keywheel_claim: FORM, claim }) => Owner::of(Some(claim), ours),
            Ok(_) => Owner::Unreadable("it is a claim of another version of keywheel".into()),
            Err(_) => Owner::Unreadable("it is no claim of this version of keywheel".into()),
        }
    }
}

/// A Secret whose claim is ours, nobody's, or another's.
pub(super) struct Claimed {
    pub(super) secret: Arc<Secret>,
    pub(super) ours: Claim,
}

#[async_trait]
impl Claims for Claimed {
    fn place(&self) -> String {
        let secret = &self.secret;
        match secret.approach {
            Approach::InPlace => {
                format!("annotation `{CLAIM}` of {}", secret.named(&secret.name))
            }
            Approach::Versioned => format!(
                "annotation `{CLAIM}` of ConfigMap `{}/{}` of {}",
                secret.namespace,
                head_of(&secret.name),
                secret.cluster.target()
            ),
        }
    }

    async fn owner(&self) -> Result<Owner, CallError> {
        match self.secret.approach {
            Approach::InPlace => Ok(found(self.secret.current().await?.as_ref()).owner(&self.ours)),
            Approach::Versioned => {
                Ok(Found(self.secret.claim_of_head().await?.as_deref()).owner(&self.ours))
            }
        }
    }

    async fn take(&self) -> Result<bool, CallError> {
        self.put(Some(text(&self.ours)), |owner, named| {
            owner.check(named)?;
            Ok(*owner != Owner::Us)
        })
        .await
    }

    async fn take_over(&self) -> Result<(), CallError> {
        self.put(Some(text(&self.ours)), |owner, _| Ok(*owner != Owner::Us)).await.map(drop)
    }

    async fn release(&self) -> Result<(), CallError> {
        self.put(None, |owner, _| Ok(*owner == Owner::Us)).await.map(drop)
    }
}

impl Claimed {
    /// Writes the claim where `is_due` says so, if it is as it was read. Returns whether it was written.
    async fn put(
        &self,
        claim: Option<String>,
        is_due: impl Fn(&Owner, &str) -> Result<bool, CallError> + Send + Sync,
    ) -> Result<bool, CallError> {
        let secret = &self.secret;
        let named = secret.named(&secret.name);
        for _ in 0..RACES {
            let put = match secret.approach {
                Approach::InPlace => {
                    let present = secret.current().await?;
                    if !is_due(&found(present.as_ref()).owner(&self.ours), &named)? {
                        return Ok(false);
                    }
                    self.annotate(present.as_ref(), claim.clone()).await?
                }
                Approach::Versioned => {
                    let mut head = secret.head().await?;
                    if !is_due(&Found(head.claim.as_deref()).owner(&self.ours), &named)? {
                        return Ok(false);
                    }
                    head.claim.clone_from(&claim);
                    head.write(&secret.cluster, &secret.namespace, &secret.name).await?
                }
            };
            if put {
                return Ok(true);
            }
        }
        Err(secret.is_busy().into())
    }

    async fn annotate(
        &self,
        present: Option<&Object>,
        claim: Option<String>,
    ) -> Result<bool, CallError> {
        let secret = &self.secret;
        let answer = match present {
            // It is made with the claim on it.
            None => secret.make(&[]).await?,
            Some(object) => {
                let annotations = BTreeMap::from([(CLAIM, claim.clone())]);
                let patch = secret.patch_of(object, BTreeMap::new(), annotations);
                secret.cluster.change(&secret.place(), &Change::Merge(&patch), false).await?
            }
        };
        match answer.status {
            StatusCode::CONFLICT => Ok(false),
            status if status.is_success() => {
                let now: Object = answer.decode()?;
                if now.annotation(CLAIM) == claim.as_deref() {
                    return Ok(true);
                }
                let why = "the cluster did not keep the claim on it; an admission webhook may take annotations away";
                Err(secret.refused(RefusalKind::Unsupported, why).into())
            }
            _ => Err(answer.error(Effect::Changes)),
        }
    }
}
