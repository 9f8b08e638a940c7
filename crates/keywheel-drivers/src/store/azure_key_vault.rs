//! `azure_key_vault`: one secret of an Azure Key Vault; its one slot is `content`.
//!
//! Each put makes a version, which readers have at once: nothing is staged, no put is conditional, and on the way back the former
//! value becomes one more version. Between the look before a put and the put, somebody else may write: their version stays, below
//! ours. The type of the contents, the tags, and the times from and until which it is said to hold go from version to version.
//!
//! A put is not repeated blindly: it carries a mark, which follows from what it replaces and what it holds, as a tag; where a
//! version with that mark is there and not shown to readers yet, nothing is put. The mark is keyed with both contents, and tells
//! neither to anyone who has not both (H118). A put that was done twice leaves two versions with one mark; at the end of the
//! rotation the older one is disabled, if it holds the same: tags are copied by other programs too. The newest version never is,
//! since readers would get nothing.
//!
//! The claim stands in tags. A secret that a certificate of the vault owns is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::facts::{Pickup, ReadBack, Revert, StoreFacts};
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::Span;
use keywheel_driver::store::{Edit, Written};
use keywheel_driver::{
    CallError, Claim, Claims, Duration, Finding, Owner, Refusal, RefusalKind, Store,
};
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use reqwest::{Method, Url};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::document::CONTENT;
use super::mark;
use crate::api::{Answer, Api, JSON, MOST_PAGES, instant, now, plain, unsupported};
use crate::bearer::{Azure, Tokens};
use crate::http::Effect;
use crate::secret_json::{self, Text};
use crate::{Build, Context};

const TARGET: &str = "store `azure_key_vault`";

const API_VERSION: &str = "7.4";

/// The tag that says which write made a version.
const MARK: &str = "keywheel-write";

/// The tag that says which rotation made a version.
const ROTATION: &str = "keywheel-rotation";

/// What the tags of a claim begin with; a number follows.
const CLAIM: &str = "keywheel-claim-";

/// The longest value that a vault holds, in bytes.
const LARGEST: usize = 25_600;

/// The most tags, and the longest of them.
const TAGS: (usize, usize) = (15, 256);

/// One secret of an Azure Key Vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The address of the vault: `https://shop.vault.azure.net`. HTTPS, or a loopback address.
    pub vault_url: String,
    /// The name of the secret: letters, digits and `-`.
    pub name: String,
    /// With which credentials it is read and written.
    pub credentials: Azure,
    /// How long a write without an answer can still take effect.
    #[serde(default = "default_settle_for")]
    pub settle_for: Duration,
}

fn default_settle_for() -> Duration {
    Span::minutes(2).into()
}

impl Build for Config {
    type Driver = dyn Store;

    fn build(&self, context: &Context) -> Result<Arc<dyn Store>, Refusal> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if self.name.is_empty() || self.name.len() > 127 || !self.name.bytes().all(fits) {
            return Err(unsupported("`name` is not the name of a secret: letters, digits and `-`"));
        }
        let api = Api::named(TARGET, "vault_url", &self.vault_url)?;
        let resource = resource(&api.url(&[]));
        Ok(Arc::new(KeyVault {
            config: self.clone(),
            tokens: self.credentials.tokens(TARGET, &resource, context)?,
            api,
            claim: context.claim.clone(),
            rotation: context.rotation.clone(),
        }))
    }
}

/// Returns what a token must be for. It follows from the vault's own address: no answer of a server says what is asked for.
fn resource(vault: &Url) -> String {
    let service = vault.domain().and_then(|host| host.split_once('.')).map(|(_, service)| service);
    format!(
        "https://{}",
        service.filter(|name| name.starts_with("vault.")).unwrap_or("vault.azure.net")
    )
}

struct KeyVault {
    config: Config,
    api: Api,
    tokens: Tokens,
    claim: Option<Claim>,
    rotation: Option<String>,
}

/// A version with what it holds.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    id: String,
    value: Text,
    content_type: Option<String>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    attributes: Attributes,
    #[serde(default)]
    managed: bool,
}

/// A version without what it holds.
#[derive(Deserialize)]
struct Item {
    id: String,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    attributes: Attributes,
}

#[derive(Clone, Deserialize)]
struct Attributes {
    enabled: bool,
    nbf: Option<i64>,
    exp: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    #[serde(default)]
    value: Vec<Item>,
    next_link: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Put<'a> {
    value: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    tags: &'a BTreeMap<String, String>,
    attributes: PutAttributes,
}

#[derive(Serialize)]
struct PutAttributes {
    enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbf: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<i64>,
}

#[async_trait]
impl Store for KeyVault {
    fn facts(&self) -> StoreFacts {
        StoreFacts {
            read_back: ReadBack::Value,
            conditional: false,
            staged: false,
            revert: Revert::Append,
            history: true,
            pickup: Pickup::Roll,
            settle_for: self.config.settle_for.span(),
            leaves_behind: true,
            answers_logins: false,
            longest_run: None,
        }
    }

    fn container(&self) -> String {
        let url = self.api.url(&[]);
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
        // A vault does not tell names apart that differ in case only.
        format!("azure-key-vault:{host}{port}:{}", self.config.name.to_ascii_lowercase())
    }

    async fn preflight(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        let blocked = |refusal: Refusal| Ok(vec![Finding::blocks(refusal.message)]);
        let looked = async {
            for address in addresses {
                self.is_slot(address)?;
            }
            let headers = self.tokens.headers(&self.api).await?;
            let newest = self.newest(&headers).await?;
            if newest.is_none() {
                self.is_free(&headers).await?;
            }
            // The same list that a write looks through.
            if newest.is_some() {
                self.list(&headers).await?;
            }
            Ok(newest)
        };
        let newest = match looked.await {
            Err(CallError::Refused(refusal)) if refusal.is_for_good() => return blocked(refusal),
            newest => newest?,
        };
        let name = self.name();
        let note = |text: &str| Finding::note(format!("{name}: {text}"));
        let mut findings = Vec::new();
        if let Some(newest) = &newest {
            let tags = self.tags(Some(&newest.tags), &mark(None, &newest.value.0));
            let objections = [self.objection(newest).err(), tags.err()].into_iter().flatten();
            findings.extend(objections.map(|no| Finding::blocks(no.message)));
            findings.extend(self.ends(newest).map(|ends| note(&ends)));
            findings.extend(managers(&newest.tags).map(|manager| {
                note(&format!("the tag `{manager}` says that another program manages it; what that writes back is drift, and nothing is revoked until it is put right"))
            }));
        }
        findings.push(note("nothing is staged: a reader that asks for no version has a new one before it was verified; and what somebody else writes at that moment is replaced"));
        findings.push(note(
            "a reader that names a version keeps what it has, and cannot be seen from here",
        ));
        Ok(findings)
    }

    async fn addresses(&self) -> Result<Option<Vec<String>>, CallError> {
        let headers = self.tokens.headers(&self.api).await?;
        let newest = self.newest(&headers).await?;
        Ok(Some(newest.map(|_| CONTENT.to_owned()).into_iter().collect()))
    }

    async fn read(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        for address in addresses {
            self.is_slot(address)?;
        }
        let headers = self.tokens.headers(&self.api).await?;
        let held = self.newest(&headers).await?.map(|Bundle { value: Text(value), .. }| value);
        Ok(addresses.iter().map(|_| held.as_ref().map(SecretValue::duplicate)).collect())
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        let edit = match edits {
            [] => return Ok(Written { changed: false }),
            [edit] => edit,
            [_, second, ..] => {
                self.is_slot(second.address)?;
                return Err(self
                    .refused(RefusalKind::Unsupported, "two edits name its one slot")
                    .into());
            }
        };
        self.is_slot(edit.address)?;
        let headers = self.tokens.headers(&self.api).await?;
        let base = self.newest(&headers).await?;
        if let Some(base) = &base {
            self.objection(base)?;
        }
        let held = base.as_ref().map(|base| &base.value.0);
        if !edit.accepts(held) {
            let why = format!("`{CONTENT}` holds something else than expected");
            return Err(self.refused(RefusalKind::Conflict, &why).into());
        }
        let Some(new) = edit.value else {
            return match held {
                None => Ok(Written { changed: false }),
                Some(_) => {
                    let why = "a version always holds something, so that its one slot cannot be empty again";
                    Err(self.refused(RefusalKind::Unsupported, why).into())
                }
            };
        };
        if held.is_some_and(|held| held.same_as(new)) {
            return Ok(Written { changed: false });
        }
        self.put(&headers, base.as_ref(), new).await?;
        Ok(Written { changed: true })
    }

    async fn clean_up(&self) -> Result<Vec<String>, CallError> {
        let headers = self.tokens.headers(&self.api).await?;
        let Some(newest) = self.newest(&headers).await? else { return Ok(Vec::new()) };
        self.objection(&newest)?;
        let Some(mark) = newest.tags.get(MARK) else { return Ok(Vec::new()) };
        let mut left = Vec::new();
        for version in self.list(&headers).await? {
            let is_newest =
                last(&version.id) == last(&newest.id) && !planted!("newest_version_is_disabled");
            if is_newest || !version.attributes.enabled || version.tags.get(MARK) != Some(mark) {
                continue;
            }
            if let Err(error) = self.disable(&headers, last(&version.id), &newest).await {
                left.push(format!(
                    "version `{}` of {}, which one write may have put twice: {error}",
                    plain(last(&version.id)),
                    self.name()
                ));
            }
        }
        Ok(left)
    }

    fn claims(&self) -> Option<&dyn Claims> {
        self.claim.as_ref().map(|_| self as &dyn Claims)
    }
}

impl KeyVault {
    fn name(&self) -> String {
        format!("secret `{}` of vault `{}`", self.config.name, self.config.vault_url)
    }

    fn refused(&self, kind: RefusalKind, why: &str) -> Refusal {
        Refusal::operator(kind, format!("{}: {why}", self.name()))
    }

    fn is_slot(&self, address: &str) -> Result<(), Refusal> {
        let why = format!("it is one text, and its one slot is `{CONTENT}`");
        if address == CONTENT { Ok(()) } else { Err(self.refused(RefusalKind::Unsupported, &why)) }
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.api.url(path);
        url.query_pairs_mut().append_pair("api-version", API_VERSION);
        url
    }

    fn at_secret(&self) -> Url {
        self.url(&["secrets", &self.config.name])
    }

    /// Says why a secret may not be written by anyone but its owner.
    fn objection(&self, newest: &Bundle) -> Result<(), Refusal> {
        if newest.managed && !planted!("secret_of_a_certificate_written") {
            let why = "a certificate of the vault owns it; renew the certificate instead";
            return Err(self.refused(RefusalKind::Conflict, why));
        }
        match &self.claim {
            Some(ours) => owner(&newest.tags, ours).check(&self.name()),
            None => Ok(()),
        }
    }

    /// Says when a version is said to end, where that is past or near.
    fn ends(&self, newest: &Bundle) -> Option<String> {
        let ends = instant(newest.attributes.exp?);
        let left = ends.millis().saturating_sub(now().millis());
        (left < 30 * 86_400_000).then(|| {
            let when = in_words(ends.millis() / 1_000);
            format!("its version is said to end at {when}, which goes from version to version; set another time")
        })
    }

    /// Returns what readers are given; none where there is no version.
    async fn newest(&self, headers: &HeaderMap) -> Result<Option<Bundle>, CallError> {
        let answer = self.api.send(Method::GET, self.at_secret(), headers, None).await?;
        if answer.status.as_u16() == 404 && word(&answer) == Some("SecretNotFound") {
            return Ok(None);
        }
        if !answer.status.is_success() {
            return Err(self.error(&answer, Effect::Reads).await);
        }
        answer.decode().map(Some)
    }

    /// Makes sure that the name is not the one of a deleted secret, as far as that may be asked.
    async fn is_free(&self, headers: &HeaderMap) -> Result<(), CallError> {
        let url = self.url(&["deletedsecrets", &self.config.name]);
        let answer = self.api.send(Method::GET, url, headers, None).await?;
        if answer.status.is_success() { Err(self.deleted().into()) } else { Ok(()) }
    }

    fn deleted(&self) -> Refusal {
        let why = "it is deleted and its name stays taken; recover it (`az keyvault secret recover`) or purge it";
        self.refused(RefusalKind::NotFound, why)
    }

    /// Returns every version, in no order.
    async fn list(&self, headers: &HeaderMap) -> Result<Vec<Item>, CallError> {
        let mut url = self.url(&["secrets", &self.config.name, "versions"]);
        url.query_pairs_mut().append_pair("maxresults", "25");
        let mut versions = Vec::new();
        for _ in 0..MOST_PAGES {
            let answer = self.api.send(Method::GET, url, headers, None).await?;
            if !answer.status.is_success() {
                return Err(self.error(&answer, Effect::Reads).await);
            }
            let page: Page = answer.decode()?;
            versions.extend(page.value);
            let Some(next) = page.next_link.filter(|next| !next.is_empty()) else {
                return Ok(versions);
            };
            let why = || self.refused(RefusalKind::Unsupported, "a list goes on at another host");
            url = self.api.page(&next).ok_or_else(why)?;
        }
        Err(self.api.endless("the list of versions"))
    }

    /// Puts a version, unless it was put before, and makes sure that it is what readers have.
    async fn put(
        &self,
        headers: &HeaderMap,
        base: Option<&Bundle>,
        new: &SecretValue,
    ) -> Result<(), CallError> {
        let value = secret_json::text(new).filter(|text| (1..=LARGEST).contains(&text.len()));
        let Some(value) = value else {
            let why = format!("a value must be UTF-8 of 1 to {LARGEST} bytes");
            return Err(self.refused(RefusalKind::Unsupported, &why).into());
        };
        let mark = mark(base.map(|base| (last(&base.id), &base.value.0)), new);
        if base.is_some() && !planted!("version_put_again") {
            let is_ours = |version: &Item| version.tags.get(MARK) == Some(&mark);
            if self.list(headers).await?.iter().any(is_ours) {
                let why =
                    format!("{}: the version was put before and is not shown yet", self.name());
                return Err(Refusal::retry(RefusalKind::Unavailable, None, why).into());
            }
        }
        let tags = self.tags(base.map(|base| &base.tags), &mark)?;
        let attributes = base.map(|base| base.attributes.clone());
        let body = secret_json::write(&Put {
            value,
            content_type: base.and_then(|base| base.content_type.as_deref()),
            tags: &tags,
            attributes: PutAttributes {
                enabled: true,
                nbf: attributes.as_ref().and_then(|attributes| attributes.nbf),
                exp: attributes.as_ref().and_then(|attributes| attributes.exp),
            },
        });
        let sent =
            self.api.send_secret(Method::PUT, self.at_secret(), headers, (JSON, &body)).await?;
        if !sent.status.is_success() {
            return Err(self.error(&sent, Effect::Changes).await);
        }
        let made: Bundle = sent.decode()?;
        // From here on readers have it: whatever fails now, it was not refused.
        let unknown = |why: String| CallError::Unknown(format!("{}: {why}", self.name()));
        match self.newest(headers).await {
            Ok(Some(shown)) if last(&shown.id) == last(&made.id) && shown.value.0.same_as(new) => {
                Ok(())
            }
            Ok(_) if planted!("put_is_not_read_back") => Ok(()),
            Ok(_) => Err(unknown("a version was put, and readers are shown another one".into())),
            Err(error) => Err(unknown(error.to_string())),
        }
    }

    /// Returns the tags of a new version: those of the one before it, the mark, and the claim.
    fn tags(
        &self,
        before: Option<&BTreeMap<String, String>>,
        mark: &str,
    ) -> Result<BTreeMap<String, String>, Refusal> {
        let before = before.filter(|_| !planted!("tags_are_dropped"));
        let mut tags = before.cloned().unwrap_or_default();
        tags.insert(MARK.into(), mark.into());
        tags.remove(ROTATION);
        if let Some(rotation) = &self.rotation {
            tags.insert(ROTATION.into(), rotation.clone());
        }
        if let Some(ours) = &self.claim {
            tags = self.with_claim(&tags, Some(ours))?;
        }
        self.fit(&tags)?;
        Ok(tags)
    }

    fn fit(&self, tags: &BTreeMap<String, String>) -> Result<(), Refusal> {
        if tags.len() <= TAGS.0 {
            return Ok(());
        }
        let why =
            format!("it would have {} tags, and {} can be: take some off", tags.len(), TAGS.0);
        Err(self.refused(RefusalKind::Unsupported, &why))
    }

    fn with_claim(
        &self,
        tags: &BTreeMap<String, String>,
        claim: Option<&Claim>,
    ) -> Result<BTreeMap<String, String>, Refusal> {
        let mut tags = tags.clone();
        tags.retain(|key, _| !key.starts_with(CLAIM));
        let Some(claim) = claim else { return Ok(tags) };
        let text = serde_json::to_string(claim).expect("a claim is plain data");
        let characters: Vec<char> = text.chars().collect();
        for (number, part) in characters.chunks(TAGS.1).enumerate() {
            tags.insert(format!("{CLAIM}{number}"), part.iter().collect());
        }
        self.fit(&tags)?;
        Ok(tags)
    }

    async fn update(
        &self,
        headers: &HeaderMap,
        version: &str,
        change: &serde_json::Value,
    ) -> Result<(), CallError> {
        let url = self.url(&["secrets", &self.config.name, version]);
        let answer = self.api.send(Method::PATCH, url, headers, Some(change)).await?;
        if answer.status.is_success() {
            Ok(())
        } else {
            Err(self.error(&answer, Effect::Changes).await)
        }
    }

    /// Disables a version that holds the same as the newest one: a mark alone may have been copied with other tags.
    async fn disable(
        &self,
        headers: &HeaderMap,
        version: &str,
        newest: &Bundle,
    ) -> Result<(), CallError> {
        let url = self.url(&["secrets", &self.config.name, version]);
        let answer = self.api.send(Method::GET, url, headers, None).await?;
        if !answer.status.is_success() {
            return Err(self.error(&answer, Effect::Reads).await);
        }
        let held: Bundle = answer.decode()?;
        let is_same = last(&held.id) == version && held.value.0.same_as(&newest.value.0);
        if !is_same && !planted!("mark_is_believed") {
            return Ok(());
        }
        let change = json!({ "attributes": { "enabled": false } });
        self.update(headers, version, &change).await
    }

    /// Replaces the claim on the newest version.
    async fn claimed(&self, claim: Option<&Claim>) -> Result<(), CallError> {
        let headers = self.tokens.headers(&self.api).await?;
        // Where there is no version yet, the first one that is put carries it.
        let Some(newest) = self.newest(&headers).await? else { return Ok(()) };
        let tags = self.with_claim(&newest.tags, claim)?;
        self.update(&headers, last(&newest.id), &json!({ "tags": tags })).await
    }

    /// What an answer is that is no success, with the word that says why.
    async fn error(&self, answer: &Answer, effect: Effect) -> CallError {
        let word = word(answer);
        let told = format!(
            "{}: {}{}",
            self.name(),
            answer.in_words(),
            word.map(|word| format!(" {word}")).unwrap_or_default()
        );
        let no = |kind, why: &str| Refusal::operator(kind, format!("{told}{why}")).into();
        match (answer.status.as_u16(), word) {
            // A token that was kept may have been ended meanwhile: the next call signs in anew.
            (401, _) if self.tokens.forget().await => {
                Refusal::retry(RefusalKind::Permission, None, told).into()
            }
            (401, _) => no(RefusalKind::Permission, &challenge(&answer.headers)),
            (403, Some("SecretDisabled")) => no(
                RefusalKind::Unsupported,
                ": its newest version is disabled, so that readers get nothing; enable it",
            ),
            (409, Some("ObjectIsDeletedButRecoverable" | "ObjectIsBeingDeleted")) => {
                self.deleted().into()
            }
            _ => match answer.error(effect) {
                CallError::Refused(mut refusal) if !planted!("body_repeated") => {
                    refusal.message = told;
                    refusal.into()
                }
                error => error,
            },
        }
    }
}

#[async_trait]
impl Claims for KeyVault {
    fn place(&self) -> String {
        format!("the tags `{CLAIM}…` of {}", self.name())
    }

    async fn owner(&self) -> Result<Owner, CallError> {
        let Some(ours) = &self.claim else { return Ok(Owner::Nobody) };
        let headers = self.tokens.headers(&self.api).await?;
        let newest = self.newest(&headers).await?;
        Ok(newest.map_or(Owner::Nobody, |newest| owner(&newest.tags, ours)))
    }

    async fn take(&self) -> Result<bool, CallError> {
        let found = self.owner().await?;
        found.check(&self.name())?;
        if found == Owner::Us {
            return Ok(false);
        }
        self.claimed(self.claim.as_ref()).await?;
        // Two may have taken it at once: the later one has it.
        self.owner().await?.check(&self.name())?;
        Ok(true)
    }

    async fn take_over(&self) -> Result<(), CallError> {
        self.claimed(self.claim.as_ref()).await
    }

    async fn release(&self) -> Result<(), CallError> {
        match self.owner().await? {
            Owner::Us => self.claimed(None).await,
            _ => Ok(()),
        }
    }
}

fn owner(tags: &BTreeMap<String, String>, ours: &Claim) -> Owner {
    let parts = (0..TAGS.0).map_while(|number| tags.get(&format!("{CLAIM}{number}")));
    let text: String = parts.map(String::as_str).collect();
    if !tags.keys().any(|key| key.starts_with(CLAIM)) {
        return Owner::Nobody;
    }
    match serde_json::from_str(&text) {
        Ok(found) => Owner::of(Some(found), ours),
        Err(_) => Owner::Unreadable(format!(
            "the tags `{CLAIM}…` are no claim of this version of keywheel"
        )),
    }
}

/// Returns the tags that say that another program manages the secret (H49).
fn managers(tags: &BTreeMap<String, String>) -> impl Iterator<Item = &str> {
    let marks = ["managed-by", "managedby", "managed_by", "terraform", "hidden-link:terraform"];
    let is_mark = move |key: &&str| marks.contains(&key.to_ascii_lowercase().as_str());
    tags.keys().map(String::as_str).filter(is_mark).filter(|_| !planted!("manager_unseen"))
}

/// Says to which tenant a vault belongs, as its challenge has it.
fn challenge(headers: &HeaderMap) -> String {
    let challenge = headers.get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
    let authority =
        challenge.and_then(|text| text.split("authorization=\"").nth(1)?.split('"').next());
    let tenant = authority.map(last).filter(|tenant| {
        tenant.len() == 36 && tenant.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
    });
    tenant.map(|tenant| format!(": the vault belongs to tenant `{tenant}`")).unwrap_or_default()
}

/// Returns the innermost word of an error, of those that are known: no other text of an answer is repeated (H115).
fn word(answer: &Answer) -> Option<&'static str> {
    #[derive(Deserialize)]
    struct Wrapped {
        error: Error,
    }
    #[derive(Deserialize)]
    struct Error {
        code: String,
        innererror: Option<Box<Error>>,
    }
    const WORDS: [&str; 12] = [
        "BadParameter",
        "Unauthorized",
        "Forbidden",
        "ForbiddenByRbac",
        "ForbiddenByPolicy",
        "ForbiddenByFirewall",
        "SecretDisabled",
        "SecretNotFound",
        "Conflict",
        "ObjectIsDeletedButRecoverable",
        "ObjectIsBeingDeleted",
        "Throttled",
    ];
    let Wrapped { error } = serde_json::from_slice(answer.body.expose()).ok()?;
    let known = |code: &str| WORDS.into_iter().find(|word| *word == code);
    error.innererror.and_then(|inner| known(&inner.code)).or_else(|| known(&error.code))
}

/// Writes a time that is told in seconds since 1970.
fn in_words(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map(|at| at.to_string()).unwrap_or_default()
}

fn last(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or(id)
}

/// Names the write that replaces `base`: the same replacement has the same name, and who has not both contents learns nothing of
/// either from it.
fn mark(base: Option<(&str, &SecretValue)>, new: &SecretValue) -> String {
    let (id, held) = base.unzip();
    hex::encode(&mark::of(id.unwrap_or_default(), held, new)[..16])
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration as Time;

    use keywheel_driver::conformance::canary;
    use keywheel_driver::conformance::store::{self as conformance, Subject};
    use keywheel_driver::store::Accept;
    use keywheel_driver::{Remedy, Severity};
    use keywheel_twins::azure::{CLIENT, TENANT, Twin, TwinOptions, VersionState};
    use keywheel_twins::fault::{Echo, Fault, Faults, Nth, Rule};
    use serde_json::Value;
    use tempfile::TempDir;

    use super::*;

    const NAME: &str = "api-key";

    /// A vault of a twin, and the store that writes one secret of it.
    struct Bench {
        twin: Twin,
        store: Arc<dyn Store>,
        folder: TempDir,
    }

    impl Bench {
        fn new(value: Option<&str>) -> Self {
            let twin = Twin::start(TwinOptions::default()).unwrap();
            if let Some(value) = value {
                twin.put(NAME, value, &[]);
            }
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("token"), twin.token()).unwrap();
            let store = store(&twin, folder.path(), json!({}), None);
            Self { twin, store, folder }
        }

        fn claimed(&self, installation: &str) -> Arc<dyn Store> {
            let text = |text: &str| text.to_owned();
            let claim = Claim {
                installation: text(installation),
                folder: format!("/srv/{}", "shop".repeat(60)),
                environment: text("default"),
                host: text("here"),
                account: text("dana"),
                since: text("2026-01-31T00:00:00Z"),
            };
            store(&self.twin, self.folder.path(), json!({}), Some(claim))
        }

        fn script(&self, operation: &str, fault: Fault) {
            self.twin.faults().set(vec![Rule::first(operation, fault)]).unwrap();
        }

        async fn until(&self, it_is_so: impl Fn(&Faults) -> bool) {
            while !it_is_so(self.twin.faults()) {
                tokio::time::sleep(Time::from_millis(2)).await;
            }
        }

        async fn set(&self, value: &str) -> Result<Written, CallError> {
            set(&*self.store, value).await
        }

        fn values(&self) -> Vec<String> {
            self.twin.versions(NAME).into_iter().map(|version| version.value).collect()
        }

        async fn messages(&self, severity: Severity) -> Vec<String> {
            let found = self.store.preflight(&[CONTENT.into()]).await.unwrap();
            found
                .into_iter()
                .filter(|one| one.severity == severity)
                .map(|one| one.message)
                .collect()
        }
    }

    fn config(twin: &Twin, changes: &Value) -> Config {
        let mut config = json!({
            "vault_url": twin.url(),
            "name": NAME,
            "credentials": { "token": { "file": "token" } },
        });
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        serde_json::from_value(config).unwrap()
    }

    fn store(twin: &Twin, folder: &Path, changes: Value, claim: Option<Claim>) -> Arc<dyn Store> {
        let context = Context { claim, ..Context::at(folder) };
        let built = config(twin, &changes).build(&context);
        built.unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    async fn set(store: &dyn Store, value: &str) -> Result<Written, CallError> {
        write(store, Accept::Anything, value).await
    }

    async fn write(
        store: &dyn Store,
        accept: Accept<'_>,
        value: &str,
    ) -> Result<Written, CallError> {
        let value = SecretValue::new(value.into());
        store.write(&[Edit { address: CONTENT, accept, value: Some(&value) }]).await
    }

    fn refusal<T>(outcome: Result<T, CallError>) -> Refusal {
        match outcome {
            Err(CallError::Refused(refusal)) => refusal,
            Err(CallError::Unknown(message)) => panic!("unknown: {message}"),
            Ok(_) => panic!("it was done"),
        }
    }

    fn subject() -> Subject {
        let bench = Bench::new(None);
        Subject {
            store: Arc::clone(&bench.store),
            other: store(&bench.twin, bench.folder.path(), json!({}), None),
            addresses: vec![CONTENT.into()],
            uncarriable: vec![
                Vec::new(),
                b"latin\xe91".to_vec(),
                vec![0xff],
                vec![b'x'; LARGEST + 1],
            ],
            guard: Box::new(bench),
        }
    }

    #[tokio::test]
    async fn it_conforms_but_for_a_slot_that_is_empty_again() {
        conformance::bytes_come_back_as_they_were_written(subject()).await;
        conformance::a_repeated_write_changes_nothing(subject()).await;
        conformance::the_new_value_itself_is_always_accepted(subject()).await;
        conformance::an_uncarriable_value_is_refused_with_nothing_written(subject()).await;
        conformance::h106_readers_see_only_whole_values(subject()).await;
        conformance::errors_hold_no_value(subject()).await;
        conformance::preflight_changes_nothing(subject()).await;
        conformance::a_list_has_each_slot_that_holds_something(subject()).await;
        let Subject { store, guard, .. } = subject();
        for hostile in conformance::hostile_values().into_iter().filter(|value| !value.is_empty()) {
            let value = SecretValue::new(hostile);
            let edit = Edit { address: CONTENT, accept: Accept::Anything, value: Some(&value) };
            store.write(&[edit]).await.unwrap_or_else(|error| panic!("{error}"));
            let read =
                store.read(&[CONTENT.into()]).await.unwrap_or_else(|error| panic!("{error}"));
            assert!(read[0].as_ref().unwrap().same_as(&value));
        }
        let empty = Edit { address: CONTENT, accept: Accept::Anything, value: None };
        assert_eq!(refusal(store.write(&[empty]).await).kind, RefusalKind::Unsupported);
        drop(guard);
    }

    #[tokio::test]
    async fn a_value_that_nobody_expects_is_not_replaced() {
        let bench = Bench::new(Some("theirs"));
        let old = SecretValue::new(b"old".to_vec());
        let answer = write(&*bench.store, Accept::OneOf(vec![Some(&old), None]), "new").await;
        assert_eq!(refusal(answer).kind, RefusalKind::Conflict);
        assert_eq!(bench.values(), ["theirs"]);
    }

    #[tokio::test]
    async fn h63_what_is_said_of_a_version_goes_to_the_next_and_nothing_is_disabled() {
        let bench = Bench::new(None);
        bench.twin.put(NAME, "old", &[("team", "shop")]);
        bench.twin.describe(NAME, "text/plain", 1_900_000_000);
        for value in ["new", "old"] {
            assert_eq!(bench.set(value).await, Ok(Written { changed: true }));
        }
        assert_eq!(bench.store.clean_up().await, Ok(vec![]));
        let versions = bench.twin.versions(NAME);
        assert_eq!(bench.values(), ["old", "new", "old"]);
        for VersionState { enabled, tags, content_type, expires, .. } in &versions {
            assert_eq!(
                (enabled, tags["team"].as_str(), expires),
                (&true, "shop", &Some(1_900_000_000))
            );
            assert_eq!(content_type.as_deref(), Some("text/plain"));
        }
        assert_ne!(versions[1].tags[MARK], versions[2].tags[MARK]);
        let facts = bench.store.facts();
        assert!(!facts.staged && !facts.conditional && facts.revert == Revert::Append);
    }

    /// Every fault at every call of a write, and then the same write again.
    #[tokio::test]
    async fn h40_whatever_fails_the_next_write_ends_it_and_readers_have_one_value() {
        let faults = [
            Fault::TimeoutAfter,
            Fault::TimeoutBefore,
            Fault::Cut,
            Fault::Hang,
            Fault::Twice,
            Fault::LateLanding { after_ms: 20 },
            Fault::status(400),
            Fault::status(403),
            Fault::status(409),
            Fault::status(412),
            Fault::status(500),
            Fault::busy(),
            Fault::Status { code: 500, retry_after: None, body: Echo::EchoKey, applied: true },
            Fault::Status { code: 200, retry_after: None, body: Echo::Html, applied: false },
        ];
        let calls = [("get_secret", 1), ("list_versions", 1), ("set_secret", 1), ("get_secret", 2)];
        for fault in faults {
            for (operation, nth) in calls {
                let case = format!("{operation} {nth} {fault:?}");
                let bench = Bench::new(Some("old"));
                let rule = Rule { nth: Nth::Number(nth), ..Rule::first(operation, fault.clone()) };
                bench.twin.faults().set(vec![rule]).unwrap();
                let old = SecretValue::new(b"old".to_vec());
                let accept = || Accept::OneOf(vec![Some(&old)]);
                let first = tokio::select! {
                    biased;
                    done = write(&*bench.store, accept(), "new") => Some(done),
                    () = silence(&bench, &fault) => None,
                };
                bench.until(|faults| faults.unfired().is_empty()).await;
                bench.until(Faults::has_landed).await;
                bench.twin.faults().set(Vec::new()).unwrap();
                let given = bench.twin.content(NAME).unwrap();
                match first {
                    Some(Ok(_)) => assert_eq!(given, "new", "{case}"),
                    Some(Err(CallError::Refused(_))) => assert_eq!(given, "old", "{case}"),
                    Some(Err(CallError::Unknown(_))) | None => {}
                }
                write(&*bench.store, accept(), "new")
                    .await
                    .unwrap_or_else(|e| panic!("{case}: {e}"));
                assert_eq!(bench.store.clean_up().await, Ok(vec![]), "{case}");
                let enabled: Vec<_> =
                    bench.twin.versions(NAME).into_iter().filter(|v| v.enabled).collect();
                let enabled: Vec<_> =
                    enabled.iter().map(|version| version.value.as_str()).collect();
                assert_eq!(enabled, ["old", "new"], "{case}");
            }
        }
    }

    async fn silence(bench: &Bench, fault: &Fault) {
        let is_silent = matches!(fault, Fault::TimeoutAfter | Fault::TimeoutBefore | Fault::Hang);
        bench.until(|faults| is_silent && faults.unfired().is_empty()).await;
        tokio::time::sleep(Time::from_millis(30)).await;
    }

    #[tokio::test]
    async fn h04_a_version_that_was_put_and_is_not_shown_yet_is_not_put_again() {
        let bench = Bench::new(Some("old"));
        bench.twin.age(NAME, Time::from_secs(3_600));
        bench.script("set_secret", Fault::Cut);
        assert!(matches!(bench.set("new").await, Err(CallError::Unknown(_))));
        // The look is behind, and the list is not.
        bench.script("get_secret", Fault::DelayedList { for_ms: 60_000 });
        let refused = refusal(bench.set("new").await);
        assert!(matches!(refused.remedy, Remedy::Retry { .. }), "{refused}");
        assert!(refused.message.contains("was put before"), "{refused}");
        assert_eq!(bench.set("new").await, Ok(Written { changed: false }));
        assert_eq!(bench.values(), ["old", "new"]);
    }

    #[tokio::test]
    async fn h09_a_version_that_was_put_twice_is_disabled_and_the_newest_never() {
        let bench = Bench::new(Some("old"));
        bench.script("set_secret", Fault::Twice);
        assert_eq!(bench.set("new").await, Ok(Written { changed: true }));
        bench.twin.deny("PATCH");
        let left = bench.store.clean_up().await.unwrap();
        assert!(left.len() == 1 && left[0].contains("403 ForbiddenByRbac"), "{left:?}");
        let bench = Bench::new(Some("old"));
        bench.script("set_secret", Fault::Twice);
        assert_eq!(bench.set("new").await, Ok(Written { changed: true }));
        for _ in 0..2 {
            assert_eq!(bench.store.clean_up().await, Ok(vec![]));
            let enabled: Vec<_> = bench.twin.versions(NAME).iter().map(|v| v.enabled).collect();
            assert_eq!(enabled, [true, false, true]);
        }
        assert_eq!(bench.twin.content(NAME).as_deref(), Some("new"));
    }

    #[tokio::test]
    async fn h09_a_version_that_holds_something_else_stays_whatever_its_tags_say() {
        let bench = Bench::new(Some("old"));
        assert_eq!(bench.set("new").await, Ok(Written { changed: true }));
        let mark = bench.twin.versions(NAME)[1].tags[MARK].clone();
        bench.twin.put(NAME, "by a program that copies tags", &[(MARK, &mark)]);
        assert_eq!(bench.store.clean_up().await, Ok(vec![]));
        assert!(bench.twin.versions(NAME).iter().all(|version| version.enabled));
    }

    #[tokio::test]
    async fn a_version_says_which_rotation_made_it() {
        let bench = Bench::new(Some("old"));
        let of = |rotation: &str| {
            let config = config(&bench.twin, &json!({}));
            let rotation = Some(rotation.to_owned());
            let context = Context { rotation, ..Context::at(bench.folder.path()) };
            config.build(&context).unwrap_or_else(|refusal| panic!("{refusal}"))
        };
        for (rotation, value) in [("773afe11d4d1", "new"), ("0123456789ab", "newer")] {
            assert_eq!(set(&*of(rotation), value).await, Ok(Written { changed: true }));
            assert_eq!(bench.twin.versions(NAME).last().unwrap().tags[ROTATION], rotation);
        }
    }

    #[tokio::test]
    async fn h126_a_put_that_readers_are_not_shown_is_unknown() {
        let bench = Bench::new(Some("old"));
        bench.twin.age(NAME, Time::from_secs(3_600));
        let behind = Fault::DelayedList { for_ms: 60_000 };
        let rule = Rule { nth: Nth::Number(2), ..Rule::first("get_secret", behind) };
        bench.twin.faults().set(vec![rule]).unwrap();
        assert!(matches!(bench.set("new").await, Err(CallError::Unknown(_))));
    }

    #[tokio::test]
    async fn h117_a_list_of_many_versions_is_read_to_its_end_and_at_no_other_host() {
        let bench = Bench::new(Some("old"));
        for number in 0..60 {
            bench.twin.put(NAME, &format!("value {number}"), &[]);
        }
        bench.script("set_secret", Fault::Twice);
        assert_eq!(bench.set("new").await, Ok(Written { changed: true }));
        assert_eq!(bench.store.clean_up().await, Ok(vec![]));
        assert_eq!(bench.twin.versions(NAME).iter().filter(|version| !version.enabled).count(), 1);
        let elsewhere = "http://127.0.0.1:1/secrets/api-key/versions".to_owned();
        bench.script("list_versions", Fault::AnotherId { at: "/nextLink".into(), id: elsewhere });
        let refused = refusal(bench.set("newer").await);
        assert!(refused.message.contains("goes on at another host"), "{refused}");
    }

    #[tokio::test]
    async fn preflight_names_what_a_write_to_a_vault_would_stumble_over() {
        let bench = Bench::new(Some("old"));
        assert_eq!(bench.messages(Severity::Blocks).await, [""; 0]);
        let notes = bench.messages(Severity::Note).await;
        assert!(notes.iter().any(|note| note.contains("nothing is staged")), "{notes:?}");
        let id = bench.twin.put(NAME, "newer", &[("ManagedBy", "Terraform")]);
        bench.twin.describe(NAME, "text/plain", 1_700_000_000);
        let notes = bench.messages(Severity::Note).await;
        for told in ["`ManagedBy`", "said to end at 2023-11-14T22:13:20Z"] {
            assert!(notes.iter().any(|note| note.contains(told)), "{notes:?}");
        }
        bench.twin.enable(NAME, &id, false);
        let blocks = bench.messages(Severity::Blocks).await;
        assert!(
            blocks.len() == 1 && blocks[0].contains("newest version is disabled"),
            "{blocks:?}"
        );
        assert!(refusal(bench.set("new").await).message.contains("SecretDisabled"));
        bench.twin.enable(NAME, &id, true);
        bench.twin.manage(NAME);
        assert!(bench.messages(Severity::Blocks).await[0].contains("a certificate of the vault"));
        assert_eq!(refusal(bench.set("new").await).kind, RefusalKind::Conflict);
        bench.twin.delete(NAME);
        assert!(bench.messages(Severity::Blocks).await[0].contains("its name stays taken"));
        let refused = refusal(bench.set("new").await);
        assert_eq!((refused.kind, refused.remedy), (RefusalKind::NotFound, Remedy::Operator));
        std::fs::write(bench.folder.path().join("token"), "kwcanary-wrong").unwrap();
        let blocks = bench.messages(Severity::Blocks).await;
        assert!(
            blocks[0].ends_with(&format!("the vault belongs to tenant `{TENANT}`")),
            "{blocks:?}"
        );
    }

    #[tokio::test]
    async fn h61_of_two_installations_the_second_is_told_whose_the_secret_is() {
        let bench = Bench::new(Some("old"));
        let (ours, theirs) = (bench.claimed("one"), bench.claimed("two"));
        let claim = ours.claims().unwrap();
        assert_eq!(claim.owner().await, Ok(Owner::Nobody));
        assert_eq!((claim.take().await, claim.take().await), (Ok(true), Ok(false)));
        let other = theirs.claims().unwrap();
        assert!(refusal(other.take().await).message.contains("journal one"));
        assert!(refusal(set(&*theirs, "new").await).message.contains("journal one"));
        assert!(refusal(theirs.clean_up().await).message.contains("journal one"));
        // It goes from version to version.
        assert_eq!(set(&*ours, "new").await, Ok(Written { changed: true }));
        assert_eq!(claim.owner().await, Ok(Owner::Us));
        other.take_over().await.unwrap();
        assert!(set(&*ours, "newer").await.is_err());
        claim.release().await.unwrap();
        assert_eq!(other.owner().await, Ok(Owner::Us), "another's claim is not released");
        other.release().await.unwrap();
        assert_eq!(other.owner().await, Ok(Owner::Nobody));
        bench.twin.put(NAME, "by hand", &[("keywheel-claim-1", "half of one")]);
        assert!(matches!(other.owner().await, Ok(Owner::Unreadable(_))));
        assert!(set(&*theirs, "new").await.is_err());
        let tags: Vec<String> = (0..14).map(|number| format!("tag-{number}")).collect();
        let tags: Vec<_> = tags.iter().map(|tag| (tag.as_str(), "x")).collect();
        bench.twin.put(NAME, "with tags", &tags);
        assert!(refusal(set(&*theirs, "new").await).message.contains("15 can be"));
        let found = theirs.preflight(&[CONTENT.into()]).await.unwrap();
        let blocks = found.iter().filter(|one| one.severity == Severity::Blocks);
        assert!(blocks.map(|one| &one.message).all(|why| why.contains("15 can be")), "{found:?}");
        assert!(found.iter().any(|one| one.message.contains("15 can be")), "{found:?}");
    }

    #[tokio::test]
    async fn an_application_signs_in_once_and_again_after_its_token_was_refused() {
        let bench = Bench::new(Some("old"));
        let secret = bench.folder.path().join("client");
        std::fs::write(&secret, bench.twin.client_secret()).unwrap();
        let application = |tenant: &str| {
            json!({ "credentials": { "client": {
                "tenant": tenant,
                "client_id": CLIENT,
                "client_secret": { "file": "client" },
                "authority": bench.twin.url(),
            }}})
        };
        let store = |tenant| store(&bench.twin, bench.folder.path(), application(tenant), None);
        let signing = store(TENANT);
        for value in ["new", "newer"] {
            assert_eq!(set(&*signing, value).await, Ok(Written { changed: true }));
        }
        assert_eq!(bench.twin.sign_ins(), 1);
        // One that was kept may have been ended; a new one that is refused stays refused.
        for remedy in [Remedy::Retry { after: None }, Remedy::Operator] {
            bench.script("get_secret", Fault::status(401));
            let refused = refusal(set(&*signing, "newest").await);
            assert_eq!((refused.kind, refused.remedy), (RefusalKind::Permission, remedy));
        }
        assert_eq!(set(&*signing, "newest").await, Ok(Written { changed: true }));
        assert_eq!(bench.twin.sign_ins(), 3);
        let refused = refusal(set(&*store("elsewhere.example"), "x").await);
        assert!(refused.message.contains("cannot sign in: it answered 401"), "{refused}");
        let wrong = canary("client");
        std::fs::write(&secret, &wrong).unwrap();
        let refused = refusal(set(&*store(TENANT), "x").await);
        assert!(refused.kind == RefusalKind::Permission && !refused.message.contains(&wrong));
    }

    #[tokio::test]
    async fn h115_no_error_repeats_an_answer() {
        let bench = Bench::new(Some("old"));
        let token = bench.twin.token();
        for operation in ["get_secret", "list_versions", "set_secret"] {
            for code in [401, 403, 404, 409, 500] {
                let echo =
                    Fault::Status { code, retry_after: None, body: Echo::EchoKey, applied: false };
                bench.script(operation, echo);
                if let Err(error) = bench.set(&format!("{operation} {code}")).await {
                    assert!(!format!("{error} {error:?}").contains(&token), "{error}");
                }
                assert_eq!(bench.twin.faults().unfired(), []);
            }
        }
    }

    #[test]
    fn h118_a_mark_tells_nothing_without_both_contents() {
        let value = |text: &str| SecretValue::new(text.into());
        let (old, new) = (value("old"), value("new"));
        let one = mark(Some(("base", &old)), &new);
        assert_eq!(one, mark(Some(("base", &old)), &new));
        let others = [
            mark(Some(("base", &value("older"))), &new),
            mark(Some(("base", &old)), &value("newer")),
            mark(Some(("other", &old)), &new),
            mark(None, &new),
            mark(Some(("base", &value("oldn"))), &value("ew")),
        ];
        assert!(!others.contains(&one));
    }

    #[test]
    fn a_token_is_for_the_cloud_of_the_vault() {
        for (vault, expected) in [
            ("https://shop.vault.azure.net", "https://vault.azure.net"),
            ("https://shop.vault.azure.cn/", "https://vault.azure.cn"),
            ("https://shop.vault.usgovcloudapi.net", "https://vault.usgovcloudapi.net"),
            ("http://127.0.0.1:8443", "https://vault.azure.net"),
            ("https://shop.example.com", "https://vault.azure.net"),
        ] {
            assert_eq!(resource(&Url::parse(vault).unwrap()), expected);
        }
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused() {
        let build = |changes: Value| {
            let token = json!({ "token": { "env": "TOKEN" } });
            let mut config = json!({ "vault_url": "https://Shop.vault.azure.net", "name": "API-key", "credentials": token });
            config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let config: Config = serde_json::from_value(config).unwrap();
            config.build(&Context::at("/")).map(|store| store.container())
        };
        assert_eq!(build(json!({})).as_deref(), Ok("azure-key-vault:shop.vault.azure.net:api-key"));
        let client = |tenant: &str, authority: &str| {
            json!({ "credentials": { "client": {
                "tenant": tenant,
                "client_id": CLIENT,
                "client_secret": { "env": "SECRET" },
                "authority": authority,
            }}})
        };
        for wrong in [
            json!({ "name": "API_KEY" }),
            json!({ "name": "" }),
            json!({ "vault_url": "http://shop.vault.azure.net" }),
            client("a/b", "https://login.microsoftonline.com"),
            client(TENANT, "http://login.microsoftonline.com"),
        ] {
            let refused = build(wrong.clone()).err().map(|refusal| refusal.kind);
            assert_eq!(refused, Some(RefusalKind::Unsupported), "{wrong}");
        }
    }
}
