//! The head of a Secret that is kept in versions: which of them is the current one.
//!
//! It is a ConfigMap beside them that holds names and no value. Without one, the Secret of the configured name is current.

use std::collections::BTreeMap;

use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_driver::{CallError, Refusal, RefusalKind};
use serde::Deserialize;
use serde_json::json;

use super::{Change, Kubernetes, Place};
use crate::api::Shown;
use crate::http::Effect;

const CURRENT: &str = "current";
const KNOWN: &str = "known";
const LAST: &str = "last";

/// The versions of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// The name of the Secret that readers are given.
    pub(crate) current: String,
    /// The names of all Secrets that are or were current, oldest first. Some may be gone.
    pub(crate) known: Vec<String>,
    /// The highest number that a version ever had; 0 where there is none, or the head does not tell it yet.
    pub(crate) last: u64,
    /// The state of the head that this was read from; none where there is no head yet.
    pub(crate) resource_version: Option<String>,
    /// The claim on it, as it stands there.
    pub(crate) claim: Option<String>,
}

#[derive(Deserialize)]
struct ConfigMap {
    metadata: Metadata,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
    #[serde(default)]
    annotations: BTreeMap<String, Shown>,
}

/// Returns the name of the head of a Secret.
pub(crate) fn name_of(secret: &str) -> String {
    format!("{secret}.keywheel")
}

/// Returns the number of a version of a Secret, by its name.
pub(crate) fn number_of(version: &str, secret: &str) -> Option<u64> {
    let number = version.strip_prefix(secret)?.strip_prefix("-v")?;
    number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok())?
}

impl Head {
    /// Whether it tells of no version but the Secret itself, as it does where there is no head.
    pub(crate) fn tells_of_none(&self, secret: &str) -> bool {
        self.last == 0 && self.known.iter().all(|name| name == secret)
    }

    /// Reads which versions a Secret has.
    ///
    /// # Errors
    /// [`CallError`] where there is no answer, or the head is none.
    pub(crate) async fn read(
        cluster: &Kubernetes,
        namespace: &str,
        secret: &str,
    ) -> Result<Self, CallError> {
        let name = name_of(secret);
        let place = Place::core("configmaps").within(namespace).named(&name);
        let Some(found) = cluster.find::<ConfigMap>(&place).await? else {
            let (current, known) = (secret.to_owned(), vec![secret.to_owned()]);
            return Ok(Self { current, known, last: 0, resource_version: None, claim: None });
        };
        let known = found.data.get(KNOWN).map(|names| names.lines().map(str::to_owned).collect());
        let known: Vec<String> = known.unwrap_or_default();
        // A head that was made for its claim alone says nothing of versions yet.
        let current = found.data.get(CURRENT).cloned().unwrap_or_else(|| secret.to_owned());
        if current.is_empty() {
            let why = format!("{}: ConfigMap `{name}` names no current Secret", cluster.target());
            return Err(Refusal::operator(RefusalKind::Unsupported, why).into());
        }
        let claim = found.metadata.annotations.into_iter().find(|(name, _)| name == super::CLAIM);
        let claim =
            claim.map(|(_, Shown(text))| String::from_utf8_lossy(text.expose()).into_owned());
        let resource_version = Some(found.metadata.resource_version);
        let known = if known.is_empty() { vec![secret.to_owned()] } else { known };
        let last = found.data.get(LAST).and_then(|last| last.parse().ok()).unwrap_or(0);
        Ok(Self { current, known, last, resource_version, claim })
    }

    /// Writes the head, if it is as it was read. Returns false where somebody else was first.
    ///
    /// # Errors
    /// [`CallError`] where it is refused or there is no answer.
    pub(crate) async fn write(
        &self,
        cluster: &Kubernetes,
        namespace: &str,
        secret: &str,
    ) -> Result<bool, CallError> {
        let name = name_of(secret);
        let known = self.known.join("\n");
        let data = json!({ CURRENT: self.current, KNOWN: known, LAST: self.last.to_string() });
        let annotations = json!({ super::CLAIM: self.claim });
        let place = Place::core("configmaps").within(namespace);
        let answer = match &self.resource_version {
            None => {
                let annotations = self.claim.as_ref().map_or(json!({}), |_| annotations);
                let head = json!({
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": { "name": name, "annotations": annotations },
                    "data": data,
                });
                let body = SecretValue::new(head.to_string().into_bytes());
                cluster.change(&place, &Change::Create(&body), false).await?
            }
            Some(_) if planted!("head_moves_unconditionally") => {
                let patch = json!({ "metadata": { "annotations": annotations }, "data": data });
                let body = SecretValue::new(patch.to_string().into_bytes());
                cluster.change(&place.named(&name), &Change::Merge(&body), false).await?
            }
            Some(version) => {
                let metadata = json!({ "resourceVersion": version, "annotations": annotations });
                let patch = json!({ "metadata": metadata, "data": data });
                let body = SecretValue::new(patch.to_string().into_bytes());
                cluster.change(&place.named(&name), &Change::Merge(&body), false).await?
            }
        };
        match answer.status.as_u16() {
            409 => Ok(false),
            _ if answer.status.is_success() => Ok(true),
            _ => Err(answer.error(Effect::Changes)),
        }
    }
}
