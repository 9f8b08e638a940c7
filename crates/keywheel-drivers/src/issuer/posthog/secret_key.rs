//! Project secret keys: made and deleted by API under a unique label, shown once, at most ten in a project.

use async_trait::async_trait;
use keywheel_core::facts::{Authority, IssuerFacts, LastUsedFacts, Observe, ValueOrigin};
use keywheel_core::plan::Label;
use keywheel_core::planted;
use keywheel_core::secret::Credential;
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{
    Audit, Identity, Issuer, LastUsed, Live, Mint, Minted, Usage, Verdict,
};
use keywheel_driver::{CallError, Finding, Refusal, RefusalKind};
use reqwest::header::HeaderMap;
use reqwest::{Method, Url};
use serde::Deserialize;
use serde_json::json;

use super::{Effect, Project, TARGET};
use crate::api::{
    MOST_PAGES, Shown, is_about, known_by_ends, moment, shows, shows_secret, unsupported,
};

/// The most keys that a project may have.
const MOST_KEYS: usize = 10;

/// What the personal key must be allowed.
const READ: &str = "read project secret API keys";
const WRITE: &str = "write project secret API keys";

pub(super) struct SecretKeys(pub(super) Project);

#[async_trait]
impl Issuer for SecretKeys {
    fn facts(&self) -> IssuerFacts {
        let config = &self.0.config;
        IssuerFacts {
            label: true,
            destroy: true,
            last_used: Some(LastUsedFacts {
                lag: config.last_used.lag.span(),
                granularity: config.last_used.granularity.span(),
            }),
            propagation: config.propagation.span(),
            settle_for: config.settle_for.span(),
            ..IssuerFacts::new(ValueOrigin::Theirs, Observe::Label, Authority::Issuer)
        }
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        let keys = match self.keys(&self.0.headers().await?).await {
            Err(CallError::Refused(refusal))
                if matches!(refusal.kind, RefusalKind::Permission | RefusalKind::NotFound) =>
            {
                return Ok(vec![Finding::blocks(refusal.to_string())]);
            }
            keys => keys?,
        };
        if keys.len() >= MOST_KEYS && !planted!("full_project_is_no_finding") {
            return Ok(vec![Finding::blocks(full(&keys))]);
        }
        let count = keys.len();
        Ok(vec![Finding::note(format!(
            "the project has {count} of at most {MOST_KEYS} secret keys"
        ))])
    }

    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        let headers = self.0.headers().await?;
        let previous = match request.previous {
            Some(id) => self.find(&headers, id).await?,
            None => None,
        };
        let own = || self.0.config.scopes.clone();
        let wanted = match &previous {
            Some(_) if planted!("settings_not_copied") => own(),
            Some(previous) => previous.scopes.clone(),
            None => own(),
        };
        if wanted.is_empty() {
            return Err(unsupported("`scopes` must say what the first key may do").into());
        }
        let body = json!({ "label": request.label.0, "scopes": wanted });
        let answer = self.0.api.send(Method::POST, self.url(&[]), &headers, Some(&body)).await?;
        if !answer.status.is_success() {
            let error = self.0.hint(answer.error(Effect::Changes), WRITE);
            return Err(self.full_or(&headers, &request.label.0, error).await);
        }
        let mut made: Key = answer.decode()?;
        let value = made.value.take().filter(|_| made.label == request.label.0);
        let value = value.ok_or_else(|| answer.not_understood())?;
        let (label, id) = (&request.label.0, IssuedId::new(&made.id));
        let look = || self.find(&headers, &id);
        let is_new = |key: &Key| key.label == *label && shows_secret(&key.mask_value, &value.0);
        self.0.api.recognise(label, self.0.config.settle_for.span(), look, is_new).await?;
        let mut notes = Vec::new();
        if request.previous.is_some() && previous.is_none() {
            notes.push("the key in use is gone, and its scopes could not be copied".into());
        }
        if !same(&made.scopes, &wanted) {
            notes.push("the scopes could not be copied".into());
        }
        Ok(Minted {
            issued: Some(id),
            credential: Some(Credential::of_value(value.0)),
            notes,
            ..Minted::default()
        })
    }

    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        self.0.evaluate(credential).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Live>, CallError> {
        let mut keys = self.keys(&self.0.headers().await?).await?;
        keys.retain(|key| key.label.starts_with(prefix));
        let live = |key: Key| Live { issued: IssuedId::new(key.id), label: Some(Label(key.label)) };
        Ok(keys.into_iter().map(live).collect())
    }

    /// Deletes a key. One that is not there is done, provided that the project is: a wrong project must not pass for a dead key
    /// (H96).
    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError> {
        let (url, headers) = (self.key_url(id)?, self.0.headers().await?);
        if self.find(&headers, id).await?.is_none() {
            if planted!("wrong_project_is_death") {
                return Ok(());
            }
            return self.keys(&headers).await.map(drop);
        }
        let answer = self.0.api.send(Method::DELETE, url, &headers, None).await?;
        match answer.status.as_u16() {
            204 => Ok(()),
            404 | 410 if !planted!("gone_is_no_success") => Ok(()),
            _ => Err(self.0.hint(answer.error(Effect::Changes), WRITE)),
        }
    }

    async fn identify(&self, credential: &Credential) -> Result<Identity, CallError> {
        let value = credential.value().and_then(|value| std::str::from_utf8(value.expose()).ok());
        let Some(value) = value else { return Ok(Identity::Unknown) };
        let mut keys = self.keys(&self.0.headers().await?).await?;
        keys.retain(|key| shows(&key.mask_value, value));
        let known =
            |key: &Key| (IssuedId::new(&key.id), key.created_at.as_deref().and_then(moment));
        let found: Vec<_> = keys.iter().map(known).collect();
        Ok(known_by_ends(&found, "the list shows one key with the same masked value"))
    }

    fn usage(&self) -> Option<&dyn Usage> {
        Some(self)
    }

    fn audit(&self) -> Option<&dyn Audit> {
        Some(self)
    }
}

#[async_trait]
impl Usage for SecretKeys {
    async fn last_used(&self, id: &IssuedId) -> Result<LastUsed, CallError> {
        let key = self.find(&self.0.headers().await?, id).await?;
        let key = key.ok_or_else(|| {
            Refusal::operator(RefusalKind::NotFound, format!("{TARGET} has no key `{}`", id.id))
        })?;
        // A time that cannot be read must not pass for no use.
        let at = match key.last_used_at.as_deref() {
            None => None,
            Some(text) => Some(moment(text).ok_or_else(|| {
                CallError::Unknown(format!("{TARGET}: a time of last use is no time"))
            })?),
        };
        Ok(LastUsed { at, detail: None })
    }
}

impl SecretKeys {
    fn url(&self, path: &[&str]) -> Url {
        self.0.url(&[["project_secret_api_keys"].as_slice(), path].concat())
    }

    fn key_url(&self, id: &IssuedId) -> Result<Url, Refusal> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if id.id.is_empty() || !id.id.bytes().all(plain) {
            return Err(unsupported("the issued id is not that of a project secret key"));
        }
        Ok(self.url(&[&id.id]))
    }

    pub(super) async fn find(
        &self,
        headers: &HeaderMap,
        id: &IssuedId,
    ) -> Result<Option<Key>, CallError> {
        let key: Option<Key> = self
            .0
            .api
            .find(headers, &self.key_url(id)?)
            .await
            .map_err(|error| self.0.hint(error, READ))?;
        match key {
            Some(key) if !is_about(&key.id, &id.id) => Err(self.0.api.shows_another()),
            key => Ok(key),
        }
    }

    /// Reads every page of the list. Of the address of the next page only that there is one is used.
    async fn keys(&self, headers: &HeaderMap) -> Result<Vec<Key>, CallError> {
        let mut keys = Vec::new();
        for _ in 0..MOST_PAGES {
            let mut url = self.url(&[]);
            if !keys.is_empty() {
                url.query_pairs_mut().append_pair("offset", &keys.len().to_string());
            }
            let page: Page =
                self.0.api.read(headers, url).await.map_err(|error| self.0.hint(error, READ))?;
            let is_last = page.next.is_none();
            if !is_last && page.results.is_empty() {
                break;
            }
            keys.extend(page.results);
            if is_last {
                return Ok(keys);
            }
        }
        Err(self.0.api.endless("the list of keys"))
    }

    /// Says of a mint that was refused that the project is full, where it is: the answer says so in words only. Where a key has
    /// the label, which is used once, the request came twice, and the answer to the one that made it was another.
    async fn full_or(&self, headers: &HeaderMap, label: &str, error: CallError) -> CallError {
        match &error {
            CallError::Refused(refusal) if refusal.kind == RefusalKind::Unsupported => {}
            _ => return error,
        }
        match self.keys(headers).await {
            Ok(keys)
                if keys.iter().any(|key| key.label == label)
                    && !planted!("second_answer_is_the_only_one") =>
            {
                CallError::Unknown(format!(
                    "{TARGET} refused to make a key `{label}`, and has one: the request was delivered twice"
                ))
            }
            Ok(keys) if keys.len() >= MOST_KEYS => {
                Refusal::operator(RefusalKind::Quota, full(&keys)).into()
            }
            _ => error,
        }
    }
}

/// Names what fills a project; nothing of it is deleted to make room (H90).
fn full(keys: &[Key]) -> String {
    let labels: Vec<String> = keys.iter().map(|key| format!("`{}`", shown(&key.label))).collect();
    let labels = labels.join(", ");
    format!(
        "the project has {} secret keys, and at most {MOST_KEYS}: delete one that nobody needs of {labels}",
        keys.len()
    )
}

/// Leaves of a label what names are made of; a word that may be a key is left out (H115).
fn shown(label: &str) -> String {
    let fits = |c: &char| c.is_ascii_alphanumeric() || "@._-:+ ".contains(*c);
    let label: String = label.chars().filter(fits).take(100).collect();
    let masked = |word: &str| if word.len() < 32 { word.to_owned() } else { "…".to_owned() };
    label.split(' ').map(masked).collect::<Vec<_>>().join(" ")
}

fn same(one: &[String], other: &[String]) -> bool {
    one.len() == other.len() && one.iter().all(|scope| other.contains(scope))
}

#[derive(Deserialize)]
struct Page {
    results: Vec<Key>,
    next: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
pub(super) struct Key {
    id: String,
    label: String,
    #[serde(default)]
    scopes: Vec<String>,
    #[serde(default)]
    mask_value: String,
    value: Option<Shown>,
    pub(super) created_at: Option<String>,
    pub(super) last_rolled_at: Option<String>,
    last_used_at: Option<String>,
}
