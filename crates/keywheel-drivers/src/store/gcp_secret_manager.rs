//! `gcp_secret_manager`: one secret of Google Secret Manager; a slot is `content`, or a member of its JSON object.
//!
//! With an `alias`, which readers ask for, a new version is added, read back and compared, and then the alias is moved to it from
//! the version that was read before and from no other (H126). The way back moves the alias back. Without one, readers ask for
//! `latest`, which is the new version from the moment in which it is added: nothing is staged, nothing is conditional, and the
//! former value becomes one more version on the way back. A JSON object is written with an alias only, since without a condition
//! what somebody else writes to another member would be lost (I12).
//!
//! A version is added once: after an answer that was lost, and on the way back, the newest versions are compared first. What was
//! added twice all the same is disabled at the end of the rotation, which can be taken back; the version that readers have, the
//! newest one, and one that any alias names are never touched.
//!
//! Every payload goes and comes with its checksum. The claim is an annotation of the secret.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keywheel_core::facts::{Pickup, ReadBack, Revert, StoreFacts};
use keywheel_core::plan::Pin;
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::Span;
use keywheel_driver::store::{Edit, Written};
use keywheel_driver::{
    CallError, Claim, Claims, Duration, Finding, Owner, Refusal, RefusalKind, Remedy, Store,
};
use reqwest::header::HeaderMap;
use reqwest::{Method, Url};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::document::{Bad, Document, Format};
use crate::api::{Answer, Api, JSON, moment, plain, unsupported};
use crate::bearer::{Google, Tokens};
use crate::http::Effect;
use crate::secret_json::{self, Text};
use crate::{Build, Context};

const TARGET: &str = "store `gcp_secret_manager`";

const OFFICIAL: &str = "https://secretmanager.googleapis.com";

/// The annotation that says whose the secret is.
const CLAIM: &str = "keywheel-claim";

/// How many of the newest versions are compared before one is added.
const COMPARED: usize = 5;

/// How many versions are listed.
const LISTED: usize = 50;

/// How often an alias is moved again, where something else about the secret was changed meanwhile.
const MOVES: usize = 4;

/// One secret of Google Secret Manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The id of its project.
    pub project: String,
    /// Its name.
    pub secret: String,
    /// The alias of the version that readers ask for. Without it they ask for `latest`, and have a new version before it was
    /// verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// What it holds; a JSON object needs an `alias`.
    #[serde(default = "default_format")]
    pub format: Format,
    /// Where the API is, if not at the official address; HTTPS, or a loopback address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// With which credentials it is read and written.
    pub credentials: Google,
    /// Other aliases that stay on the version that they are on: their readers are not given the new one.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub leave_aliases: BTreeSet<String>,
    /// How long a write without an answer can still take effect.
    #[serde(default = "default_settle_for")]
    pub settle_for: Duration,
}

const fn default_format() -> Format {
    Format::Text
}

fn default_settle_for() -> Duration {
    Span::minutes(2).into()
}

impl Build for Config {
    type Driver = dyn Store;

    fn build(&self, context: &Context) -> Result<Arc<dyn Store>, Refusal> {
        let fits = |text: &str, extra: &[u8]| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b) || extra.contains(&b))
        };
        if !fits(&self.project, b":.") {
            return Err(unsupported("`project` is not the id of a project"));
        }
        if !fits(&self.secret, b"") || self.secret.len() > 255 {
            return Err(unsupported(
                "`secret` is not the name of a secret: letters, digits, `-` and `_`",
            ));
        }
        if let Some(alias) = &self.alias {
            let begins = alias.starts_with(|c: char| c.is_ascii_alphabetic());
            if !fits(alias, b"") || !begins || alias.len() > 63 || alias == "latest" {
                return Err(unsupported(
                    "`alias` is not the alias of a version; `latest` is none: leave `alias` out for it",
                ));
            }
        } else if self.format == Format::Json {
            let why = "`format: json` needs an `alias`: without one, what somebody else writes to another member at the same time is lost";
            return Err(unsupported(why));
        }
        let api = Api::named(TARGET, "endpoint", self.endpoint.as_deref().unwrap_or(OFFICIAL))?;
        Ok(Arc::new(SecretManager {
            config: self.clone(),
            api,
            tokens: self.credentials.tokens(TARGET, context)?,
            claim: context.claim.clone(),
        }))
    }
}

struct SecretManager {
    config: Config,
    api: Api,
    tokens: Tokens,
    claim: Option<Claim>,
}

/// The secret itself, without what it holds.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Secret {
    name: String,
    etag: String,
    create_time: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    version_aliases: BTreeMap<String, String>,
    expire_time: Option<String>,
    rotation: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    #[serde(default)]
    versions: Vec<Version>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    name: String,
    state: String,
    create_time: String,
    etag: String,
}

impl Version {
    fn number(&self) -> &str {
        last(&self.name)
    }
}

#[derive(Deserialize)]
struct Accessed {
    name: String,
    payload: Payload,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    data: Option<Text>,
    data_crc32c: Option<String>,
}

#[derive(Serialize)]
struct Addition<'a> {
    payload: Added<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Added<'a> {
    data: &'a str,
    data_crc32c: String,
}

/// A version and what it holds.
struct Held {
    number: String,
    content: SecretValue,
}

#[async_trait]
impl Store for SecretManager {
    fn facts(&self) -> StoreFacts {
        let staged = self.config.alias.is_some();
        StoreFacts {
            read_back: ReadBack::Value,
            conditional: staged,
            staged,
            revert: if staged { Revert::Restore } else { Revert::Append },
            history: true,
            pickup: Pickup::Roll,
            settle_for: self.config.settle_for.span(),
            leaves_behind: true,
            answers_logins: false,
            longest_run: None,
        }
    }

    fn container(&self) -> String {
        format!("gcp-secret-manager:{}:{}", self.config.project, self.config.secret)
    }

    /// Google names the project by its number, and says when the secret was made: one that was deleted and made anew is another.
    async fn identity(&self) -> Result<Option<Pin>, CallError> {
        let headers = self.tokens.headers(&self.api).await?;
        let Secret { name, create_time, .. } = self.secret(&headers).await?;
        let id = format!("{}, made {}", plain(&name), plain(&create_time));
        Ok(Some(Pin { id, machine: String::new(), folder: String::new() }))
    }

    async fn preflight(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        let blocked = |refusal: Refusal| Ok(vec![Finding::blocks(refusal.message)]);
        let headers = match self.tokens.headers(&self.api).await {
            Err(CallError::Refused(refusal)) if refusal.is_for_good() => return blocked(refusal),
            headers => headers?,
        };
        let secret = match self.secret(&headers).await {
            Err(CallError::Refused(refusal)) if refusal.is_for_good() => return blocked(refusal),
            secret => secret?,
        };
        let mut findings = self.lacking(&headers).await?;
        if let Some(ours) = &self.claim {
            findings.extend(owner(&secret, ours).objection(&self.name()).map(Finding::blocks));
        }
        match self.read(addresses).await {
            Err(CallError::Refused(refusal)) if refusal.is_for_good() => {
                findings.push(Finding::blocks(refusal.message));
            }
            read => drop(read?),
        }
        findings.extend(self.other_readers(&secret));
        findings.extend(self.other_writers(&secret));
        Ok(findings)
    }

    async fn addresses(&self) -> Result<Option<Vec<String>>, CallError> {
        let Some(held) = self.given().await? else { return Ok(Some(Vec::new())) };
        Ok(Some(self.document().addresses(&held.content).map_err(|bad| self.unfit(bad))?))
    }

    async fn read(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        let held = self.given().await?.map(|held| held.content);
        let slots = addresses.iter().map(|address| self.document().slot(held.as_ref(), address));
        Ok(slots.collect::<Result<_, _>>().map_err(|bad| self.unfit(bad))?)
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        let headers = self.tokens.headers(&self.api).await?;
        let secret = self.secret(&headers).await?;
        if let Some(ours) = &self.claim {
            owner(&secret, ours).check(&self.name())?;
        }
        let base = self.in_use(&headers, &secret).await?;
        let edited = self.document().edited(base.as_ref().map(|base| &base.content), edits);
        let Some(new) = edited.map_err(|bad| self.unfit(bad))? else {
            return Ok(Written { changed: false });
        };
        let base = base.map(|base| base.number);
        match &self.config.alias {
            Some(alias) => {
                let version = self.made(&headers, base.as_deref(), &new).await?;
                self.moved(&headers, alias, base.as_deref(), &version).await?;
            }
            None => {
                let version = self.add(&headers, &new).await?;
                self.is_latest(&headers, &version).await?;
            }
        }
        Ok(Written { changed: true })
    }

    async fn clean_up(&self) -> Result<Vec<String>, CallError> {
        let headers = self.tokens.headers(&self.api).await?;
        let secret = self.secret(&headers).await?;
        if let Some(ours) = &self.claim {
            owner(&secret, ours).check(&self.name())?;
        }
        let Some(held) = self.in_use(&headers, &secret).await? else { return Ok(Vec::new()) };
        let mut left = Vec::new();
        for double in self.doubles(&headers, &secret, &held).await? {
            if let Err(error) = self.disable(&headers, &double).await {
                left.push(format!(
                    "version {} of {}, which holds the same as version {}: {error}",
                    double.number(),
                    self.name(),
                    held.number
                ));
            }
        }
        Ok(left)
    }

    fn claims(&self) -> Option<&dyn Claims> {
        self.claim.as_ref().map(|_| self as &dyn Claims)
    }
}

impl SecretManager {
    fn name(&self) -> String {
        format!("secret `{}` of project `{}`", self.config.secret, self.config.project)
    }

    fn refused(&self, kind: RefusalKind, why: &str) -> Refusal {
        Refusal::operator(kind, format!("{}: {why}", self.name()))
    }

    fn later(&self, why: &str) -> Refusal {
        Refusal::retry(RefusalKind::Unavailable, None, format!("{}: {why}", self.name()))
    }

    fn document(&self) -> Document {
        Document { format: self.config.format, only_utf8: false, kept: "version" }
    }

    fn unfit(&self, (kind, why): Bad) -> Refusal {
        self.refused(kind, &why)
    }

    /// Returns the address of the secret, or of something that is called on it: `:addVersion`.
    fn at_secret(&self, call: &str) -> Url {
        let Config { project, secret, .. } = &self.config;
        self.api.url(&["v1", "projects", project, "secrets", &format!("{secret}{call}")])
    }

    fn at_version(&self, version: &str, call: &str) -> Url {
        let Config { project, secret, .. } = &self.config;
        let called = format!("{version}{call}");
        self.api.url(&["v1", "projects", project, "secrets", secret, "versions", &called])
    }

    async fn secret(&self, headers: &HeaderMap) -> Result<Secret, CallError> {
        let answer = self.api.send(Method::GET, self.at_secret(""), headers, None).await?;
        self.decoded(&answer, Effect::Reads).await
    }

    async fn decoded<T: serde::de::DeserializeOwned>(
        &self,
        answer: &Answer,
        effect: Effect,
    ) -> Result<T, CallError> {
        if answer.status.is_success() {
            answer.decode()
        } else {
            Err(self.error(answer, effect).await)
        }
    }

    /// What an answer is that is no success, with the word that says why.
    async fn error(&self, answer: &Answer, effect: Effect) -> CallError {
        // A token that was kept may have been ended meanwhile: the next call signs in anew.
        let was_kept = answer.status.as_u16() == 401 && self.tokens.forget().await;
        let named = |refusal: &mut Refusal| {
            let word = word(answer).map(|word| format!(" {word}")).unwrap_or_default();
            refusal.message = format!("{}: {}{word}", self.name(), answer.in_words());
            if was_kept {
                refusal.remedy = Remedy::Retry { after: None };
            }
        };
        match answer.error(effect) {
            CallError::Refused(mut refusal) if !planted!("body_repeated") => {
                named(&mut refusal);
                refusal.into()
            }
            error => error,
        }
    }

    /// Returns what readers are given; none where there is no version for them yet.
    async fn given(&self) -> Result<Option<Held>, CallError> {
        let headers = self.tokens.headers(&self.api).await?;
        let asked = self.config.alias.as_deref().unwrap_or("latest");
        let held = self.content(&headers, asked).await?;
        if held.is_none() {
            // It is the version that is not there, and not the secret.
            self.secret(&headers).await?;
        }
        Ok(held)
    }

    /// The same, by number, so that a change can name what it replaces.
    async fn in_use(
        &self,
        headers: &HeaderMap,
        secret: &Secret,
    ) -> Result<Option<Held>, CallError> {
        let Some(alias) = &self.config.alias else { return self.content(headers, "latest").await };
        let Some(number) = secret.version_aliases.get(alias) else { return Ok(None) };
        let held = self.content(headers, number).await?;
        let why = || {
            self.refused(
                RefusalKind::NotFound,
                &format!("the version that `{alias}` names is gone"),
            )
        };
        Ok(Some(held.ok_or_else(why)?))
    }

    /// Returns what a version holds, by its number or alias; none where it is not there.
    async fn content(&self, headers: &HeaderMap, version: &str) -> Result<Option<Held>, CallError> {
        let url = self.at_version(version, ":access");
        let answer = self.api.send(Method::GET, url, headers, None).await?;
        if answer.status.as_u16() == 404 {
            return Ok(None);
        }
        if answer.status.as_u16() == 400 && word(&answer) == Some("FAILED_PRECONDITION") {
            let why = format!(
                "version `{version}` is disabled or destroyed, so that readers get nothing"
            );
            return Err(self.refused(RefusalKind::Unsupported, &why).into());
        }
        let Accessed { name, payload } = self.decoded(&answer, Effect::Reads).await?;
        let data = payload.data.map_or_else(|| SecretValue::new(Vec::new()), |Text(data)| data);
        let content = STANDARD.decode(data.expose()).map_err(|_| answer.not_understood())?;
        let content = SecretValue::new(content);
        let sum = payload.data_crc32c.and_then(|sum| sum.parse::<u32>().ok());
        if sum.is_some_and(|sum| sum != crc32c(content.expose())) && !planted!("checksum_unread") {
            return Err(self.later("what was read does not have its checksum").into());
        }
        Ok(Some(Held { number: last(&name).to_owned(), content }))
    }

    /// Finds the version that holds what is to be written, or adds it; either way it was read.
    async fn made(
        &self,
        headers: &HeaderMap,
        base: Option<&str>,
        new: &SecretValue,
    ) -> Result<String, CallError> {
        let newest = self.list(headers).await?;
        let others = newest.iter().filter(|version| Some(version.number()) != base);
        for version in others.filter(|version| version.state == "ENABLED").take(COMPARED) {
            let held = self.content(headers, version.number()).await?;
            if held.is_some_and(|held| held.content.same_as(new))
                && !planted!("version_added_again")
            {
                return Ok(version.number().to_owned());
            }
        }
        let version = self.add(headers, new).await?;
        match self.content(headers, &version).await? {
            Some(held) if held.content.same_as(new) => Ok(version),
            _ if planted!("staged_version_is_not_read") => Ok(version),
            _ => Err(self.later("the new version cannot be read back yet").into()),
        }
    }

    /// Returns the newest versions, the newest first.
    async fn list(&self, headers: &HeaderMap) -> Result<Vec<Version>, CallError> {
        let Config { project, secret, .. } = &self.config;
        let mut url = self.api.url(&["v1", "projects", project, "secrets", secret, "versions"]);
        url.query_pairs_mut().append_pair("pageSize", &LISTED.to_string());
        let answer = self.api.send(Method::GET, url, headers, None).await?;
        Ok(self.decoded::<Versions>(&answer, Effect::Reads).await?.versions)
    }

    /// Adds a version and returns its number.
    async fn add(&self, headers: &HeaderMap, new: &SecretValue) -> Result<String, CallError> {
        let data = SecretValue::new(STANDARD.encode(new.expose()).into_bytes());
        let text = secret_json::text(&data).unwrap_or_default();
        let data_crc32c = crc32c(new.expose()).to_string();
        let body = secret_json::write(&Addition { payload: Added { data: text, data_crc32c } });
        let url = self.at_secret(":addVersion");
        let answer = self.api.send_secret(Method::POST, url, headers, (JSON, &body)).await?;
        let made: Version = self.decoded(&answer, Effect::Changes).await?;
        Ok(made.number().to_owned())
    }

    /// Makes sure that `latest` is the version that was added, and not one that somebody else added meanwhile.
    async fn is_latest(&self, headers: &HeaderMap, version: &str) -> Result<(), CallError> {
        match self.content(headers, "latest").await {
            Ok(Some(held)) if held.number == version => Ok(()),
            Ok(_) => {
                let why = "a version was added, and `latest` is another one";
                Err(CallError::Unknown(format!("{}: {why}", self.name())))
            }
            // Readers have it: whatever fails now, it was not refused.
            Err(error) => Err(CallError::Unknown(error.to_string())),
        }
    }

    /// Moves the alias, if it is still where it was.
    async fn moved(
        &self,
        headers: &HeaderMap,
        alias: &str,
        base: Option<&str>,
        version: &str,
    ) -> Result<(), CallError> {
        for attempt in 0..MOVES {
            let secret = match self.secret(headers).await {
                // A move may have been delivered before that was answered with a no.
                Err(error) if attempt > 0 => return Err(CallError::Unknown(error.to_string())),
                secret => secret?,
            };
            let named = secret.version_aliases.get(alias).map(String::as_str);
            if named == Some(version) {
                return Ok(());
            }
            if named != base {
                return Err(self
                    .later(&format!("`{alias}` was moved by somebody else meanwhile"))
                    .into());
            }
            let mut aliases = secret.version_aliases.clone();
            aliases.insert(alias.to_owned(), version.to_owned());
            let change = json!({ "versionAliases": aliases });
            if let Some(changed) = self.updated(headers, &secret, "versionAliases", change).await? {
                return match changed.version_aliases.get(alias) {
                    Some(named) if named == version => Ok(()),
                    _ => {
                        let why =
                            format!("the answer to the move of `{alias}` names another version");
                        Err(CallError::Unknown(format!("{}: {why}", self.name())))
                    }
                };
            }
        }
        Err(self.later("it is changed too often by somebody else").into())
    }

    /// Changes one field, if nothing about the secret was changed since it was read; none where something was.
    async fn updated(
        &self,
        headers: &HeaderMap,
        read: &Secret,
        field: &str,
        mut change: Value,
    ) -> Result<Option<Secret>, CallError> {
        if !planted!("changed_without_etag") {
            change["etag"] = read.etag.as_str().into();
        }
        let mut url = self.at_secret("");
        url.query_pairs_mut().append_pair("updateMask", field);
        let answer = self.api.send(Method::PATCH, url, headers, Some(&change)).await?;
        if is_stale(&answer) {
            return Ok(None);
        }
        self.decoded(&answer, Effect::Changes).await.map(Some)
    }

    /// Returns versions that hold the same as the one in use and were added at nearly the same time: one write, done twice.
    async fn doubles(
        &self,
        headers: &HeaderMap,
        secret: &Secret,
        held: &Held,
    ) -> Result<Vec<Version>, CallError> {
        let versions = self.list(headers).await?;
        let of = |version: &Version| moment(&version.create_time).map(|at| at.millis());
        let in_use = versions.iter().find(|version| version.number() == held.number);
        let Some(made) = in_use.and_then(of) else { return Ok(Vec::new()) };
        let newest =
            versions.iter().filter_map(|version| version.number().parse::<u64>().ok()).max();
        let is_named = |number: &str| secret.version_aliases.values().any(|named| named == number);
        let is_at_once = |version: &Version| {
            let settle_for = self.config.settle_for.span().as_millis();
            of(version).is_some_and(|at| at.abs_diff(made) <= 2 * settle_for)
        };
        let mut doubles = Vec::new();
        for version in versions {
            let number = version.number();
            let is_needed = number == held.number
                || (is_named(number) || number.parse().ok() == newest)
                    && !planted!("needed_double_disabled");
            if is_needed || version.state != "ENABLED" || !is_at_once(&version) {
                continue;
            }
            let other = self.content(headers, number).await?;
            if other.is_some_and(|other| other.content.same_as(&held.content)) {
                doubles.push(version);
            }
        }
        Ok(doubles)
    }

    async fn disable(&self, headers: &HeaderMap, version: &Version) -> Result<(), CallError> {
        let url = self.at_version(version.number(), ":disable");
        let condition = json!({ "etag": version.etag });
        let answer = self.api.send(Method::POST, url, headers, Some(&condition)).await?;
        if answer.status.is_success() {
            Ok(())
        } else {
            Err(self.error(&answer, Effect::Changes).await)
        }
    }

    /// Names the permissions that a rotation needs and these credentials lack.
    async fn lacking(&self, headers: &HeaderMap) -> Result<Vec<Finding>, CallError> {
        #[derive(Default, Deserialize)]
        struct Granted {
            #[serde(default)]
            permissions: BTreeSet<String>,
        }
        let mut needed = vec!["secrets.get", "versions.access", "versions.add", "versions.list"];
        // An alias is moved, and a claim written, by a change of the secret itself.
        if self.config.alias.is_some() || self.claim.is_some() {
            needed.push("secrets.update");
        }
        let disable = "secretmanager.versions.disable";
        let needed: Vec<_> = needed.iter().map(|name| format!("secretmanager.{name}")).collect();
        let mut asked = needed.clone();
        asked.push(disable.into());
        let url = self.at_secret(":testIamPermissions");
        let body = json!({ "permissions": asked });
        let answer = self.api.send(Method::POST, url, headers, Some(&body)).await?;
        let granted: Granted = self.decoded(&answer, Effect::Reads).await?;
        let lacking: Vec<_> =
            needed.iter().filter(|name| !granted.permissions.contains(*name)).collect();
        let mut findings = Vec::new();
        for name in lacking {
            findings
                .push(Finding::blocks(format!("{}: the credentials lack `{name}`", self.name())));
        }
        if !granted.permissions.contains(disable) {
            findings.push(Finding::note(format!(
                "{}: without `{disable}`, a version that was added twice stays",
                self.name()
            )));
        }
        Ok(findings)
    }

    /// Names the readers that a write does not reach, or reaches too early, as far as they can be seen (H65).
    fn other_readers(&self, secret: &Secret) -> Vec<Finding> {
        let name = self.name();
        let note = |text: String| Finding::note(format!("{name}: {text}"));
        let mut findings = Vec::new();
        match &self.config.alias {
            Some(alias) => findings.push(note(format!(
                "readers must ask for `{alias}`: one that asks for `latest` has a new version before it was verified, and does not go back"
            ))),
            None => findings.push(note(
                "nothing is staged: a reader of `latest` has a new version before it was verified; an `alias` that readers ask for prevents that".into(),
            )),
        }
        for alias in secret.version_aliases.keys() {
            let is_known = Some(alias) == self.config.alias.as_ref()
                || self.config.leave_aliases.contains(alias);
            if !is_known && !planted!("pinned_alias_unseen") {
                findings.push(Finding::blocks(format!(
                    "{name}: readers that ask for the alias `{alias}` keep what they have; let them ask for another one, or write `leave_aliases: [{alias}]`"
                )));
            }
        }
        findings.push(note(
            "a reader that names the number of a version keeps what it has, and cannot be seen from here".into(),
        ));
        findings
    }

    /// Names those who may write or end the secret too (H49).
    fn other_writers(&self, secret: &Secret) -> Vec<Finding> {
        let name = self.name();
        let mut findings = Vec::new();
        for (label, value) in &secret.labels {
            let marks = ["managed-by", "managed_by", "managedby", "goog-terraform-provisioned"];
            if marks.contains(&label.as_str()) && !planted!("manager_unseen") {
                let manager = plain(value);
                findings.push(Finding::note(format!(
                    "{name}: the label `{label}: {manager}` says that another program manages it; what that writes back is drift, and nothing is revoked until it is put right"
                )));
            }
        }
        if secret.expire_time.is_some() {
            findings
                .push(Finding::note(format!("{name}: it has a time at which Google deletes it")));
        }
        if secret.rotation.is_some() {
            findings.push(Finding::note(format!(
                "{name}: it has a rotation schedule, by which another program may be told to write it too"
            )));
        }
        findings
    }

    /// Replaces the annotation that says whose the secret is.
    async fn claimed(&self, claim: Option<&Claim>) -> Result<(), CallError> {
        let headers = self.tokens.headers(&self.api).await?;
        for _ in 0..MOVES {
            let secret = self.secret(&headers).await?;
            let mut annotations = secret.annotations.clone();
            match claim {
                Some(claim) => {
                    let text = serde_json::to_string(claim).expect("a claim is plain data");
                    annotations.insert(CLAIM.into(), text);
                }
                None => drop(annotations.remove(CLAIM)),
            }
            let change = json!({ "annotations": annotations });
            if self.updated(&headers, &secret, "annotations", change).await?.is_some() {
                return Ok(());
            }
        }
        Err(self.later("it is changed too often by somebody else").into())
    }
}

#[async_trait]
impl Claims for SecretManager {
    fn place(&self) -> String {
        format!("the annotation `{CLAIM}` of {}", self.name())
    }

    async fn owner(&self) -> Result<Owner, CallError> {
        let Some(ours) = &self.claim else { return Ok(Owner::Nobody) };
        let headers = self.tokens.headers(&self.api).await?;
        Ok(owner(&self.secret(&headers).await?, ours))
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

fn owner(secret: &Secret, ours: &Claim) -> Owner {
    let Some(text) = secret.annotations.get(CLAIM) else { return Owner::Nobody };
    match serde_json::from_str(text) {
        Ok(found) => Owner::of(Some(found), ours),
        Err(_) => Owner::Unreadable(format!(
            "the annotation `{CLAIM}` is no claim of this version of keywheel"
        )),
    }
}

/// Returns whether a change was refused because the secret is not as it was read.
fn is_stale(answer: &Answer) -> bool {
    let word = word(answer);
    match answer.status.as_u16() {
        400 => word == Some("FAILED_PRECONDITION"),
        409 => word == Some("ABORTED"),
        412 => true,
        _ => false,
    }
}

/// Returns the word of an error, of those that the API has: no other text of an answer is repeated (H115).
fn word(answer: &Answer) -> Option<&'static str> {
    #[derive(Deserialize)]
    struct Wrapped {
        error: Error,
    }
    #[derive(Deserialize)]
    struct Error {
        status: String,
    }
    const WORDS: [&str; 10] = [
        "INVALID_ARGUMENT",
        "FAILED_PRECONDITION",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "ABORTED",
        "RESOURCE_EXHAUSTED",
        "INTERNAL",
        "UNAVAILABLE",
    ];
    let Wrapped { error } = serde_json::from_slice(answer.body.expose()).ok()?;
    WORDS.into_iter().find(|word| *word == error.status)
}

fn last(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// Returns the checksum that goes with a payload: CRC-32C.
fn crc32c(bytes: &[u8]) -> u32 {
    let shifted = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    let step = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), shifted);
    !bytes.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration as Time;

    use keywheel_driver::Severity;
    use keywheel_driver::conformance::canary;
    use keywheel_driver::conformance::store::{self as conformance, Subject};
    use keywheel_driver::store::Accept;
    use keywheel_twins::fault::{Echo, Fault, Faults, Nth, Rule};
    use keywheel_twins::gcp::{PROJECT, Twin, TwinOptions, VersionState};
    use tempfile::TempDir;

    use super::super::document::{CONTENT, LARGEST};
    use super::*;

    const NAME: &str = "api-key";

    /// A secret at a twin, and the store that writes it.
    struct Bench {
        twin: Twin,
        store: Arc<dyn Store>,
        folder: TempDir,
    }

    impl Bench {
        /// A secret whose first version holds this, and that the alias `live` names.
        fn staged(content: &str) -> Self {
            let bench = Self::with(TwinOptions::default(), json!({ "alias": "live" }));
            bench.twin.add_version(NAME, content.as_bytes());
            bench.twin.set_alias(NAME, "live", 1);
            bench
        }

        fn with(options: TwinOptions, changes: Value) -> Self {
            let twin = Twin::start(options).unwrap();
            twin.make_secret(NAME);
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("token"), twin.token()).unwrap();
            let store = store(&twin, folder.path(), changes, None);
            Self { twin, store, folder }
        }

        fn claimed(&self, installation: &str) -> Arc<dyn Store> {
            let text = |text: &str| text.to_owned();
            let claim = Claim {
                installation: text(installation),
                folder: text("/srv/shop"),
                environment: text("default"),
                host: text("here"),
                account: text("dana"),
                since: text("2026-01-31T00:00:00Z"),
            };
            store(&self.twin, self.folder.path(), json!({ "alias": "live" }), Some(claim))
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

        /// What readers of the alias have.
        fn live(&self) -> String {
            String::from_utf8(self.twin.content(NAME, "live").unwrap()).unwrap()
        }

        fn states(&self) -> Vec<VersionState> {
            self.twin.versions(NAME).into_iter().map(|(_, state, _)| state).collect()
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

    fn store(twin: &Twin, folder: &Path, changes: Value, claim: Option<Claim>) -> Arc<dyn Store> {
        let mut config = json!({
            "project": PROJECT,
            "secret": NAME,
            "endpoint": twin.endpoint(),
            "credentials": { "token": { "file": "token" } },
        });
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let config: Config = serde_json::from_value(config).unwrap();
        let context = Context { claim, ..Context::at(folder) };
        config.build(&context).unwrap_or_else(|refusal| panic!("{refusal}"))
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

    fn subject(changes: &Value, content: Option<&[u8]>, addresses: &[&str]) -> Subject {
        let bench = Bench::with(TwinOptions::default(), changes.clone());
        if let Some(content) = content {
            bench.twin.add_version(NAME, content);
            bench.twin.set_alias(NAME, "live", 1);
        }
        let mut uncarriable = vec![vec![b'x'; LARGEST + 1]];
        match changes["format"] == "json" {
            true => uncarriable.extend([b"latin\xe91".to_vec(), vec![0xff]]),
            false => uncarriable.push(Vec::new()),
        }
        Subject {
            store: Arc::clone(&bench.store),
            other: store(&bench.twin, bench.folder.path(), changes.clone(), None),
            addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
            uncarriable,
            guard: Box::new(bench),
        }
    }

    #[tokio::test]
    async fn it_conforms_over_a_json_object_with_an_alias() {
        let addresses = ["API_KEY", "a \"quoted\" name", "API_KEY_2", ""];
        let changes = json!({ "alias": "live", "format": "json" });
        conformance::every_case(async || subject(&changes, Some(b"{}"), &addresses)).await;
    }

    #[tokio::test]
    async fn it_conforms_over_one_text_but_for_a_slot_that_is_empty_again() {
        for changes in [json!({ "alias": "live" }), json!({})] {
            let fresh = || subject(&changes, None, &[CONTENT]);
            conformance::bytes_come_back_as_they_were_written(fresh()).await;
            conformance::a_repeated_write_changes_nothing(fresh()).await;
            conformance::the_new_value_itself_is_always_accepted(fresh()).await;
            conformance::an_unexpected_value_is_refused_with_nothing_written(fresh()).await;
            conformance::an_uncarriable_value_is_refused_with_nothing_written(fresh()).await;
            conformance::h126_of_two_conditional_writers_one_is_refused(fresh()).await;
            conformance::h106_readers_see_only_whole_values(fresh()).await;
            conformance::errors_hold_no_value(fresh()).await;
            conformance::preflight_changes_nothing(fresh()).await;
            conformance::a_list_has_each_slot_that_holds_something(fresh()).await;
            let Subject { store, guard, .. } = fresh();
            let binary = SecretValue::new(vec![0, 0xff, b'\n']);
            let edit = |value| Edit { address: CONTENT, accept: Accept::Anything, value };
            store.write(&[edit(Some(&binary))]).await.unwrap_or_else(|e| panic!("{e}"));
            let read = store.read(&[CONTENT.into()]).await.unwrap_or_else(|e| panic!("{e}"));
            assert!(read[0].as_ref().unwrap().same_as(&binary));
            assert_eq!(refusal(store.write(&[edit(None)]).await).kind, RefusalKind::Unsupported);
            drop(guard);
        }
    }

    #[tokio::test]
    async fn readers_of_the_alias_have_a_version_only_after_it_was_read_back() {
        let bench = Bench::staged("old");
        let rule =
            Rule { nth: Nth::Number(2), ..Rule::first("access_version", Fault::status(403)) };
        bench.twin.faults().set(vec![rule]).unwrap();
        assert!(bench.set("new").await.is_err());
        assert_eq!(bench.twin.faults().unfired(), []);
        assert_eq!((bench.live().as_str(), bench.twin.versions(NAME).len()), ("old", 2));
        // It is found, and not added again.
        assert_eq!(bench.set("new").await, Ok(Written { changed: true }));
        assert_eq!((bench.live().as_str(), bench.twin.versions(NAME).len()), ("new", 2));
    }

    #[tokio::test]
    async fn h19_a_new_version_that_is_damaged_is_given_to_nobody() {
        let bench = Bench::staged("old");
        bench.script("update_secret", Fault::status(403));
        assert!(bench.set("new").await.is_err());
        bench.twin.faults().set(Vec::new()).unwrap();
        bench.twin.damage(NAME, 2);
        let refused = refusal(bench.set("new").await);
        assert!(refused.message.contains("does not have its checksum"), "{refused}");
        bench.twin.damage(NAME, 1);
        let read = bench.store.read(&[CONTENT.into()]).await;
        assert!(read.is_err_and(|error| error.to_string().contains("checksum")));
        assert_eq!(bench.twin.aliases(NAME)["live"], 1);
    }

    #[tokio::test]
    async fn the_way_back_moves_the_alias_back_and_adds_nothing() {
        let bench = Bench::staged("old");
        for (value, versions, live) in
            [("new", 2, 2), ("old", 2, 1), ("new", 2, 2), ("third", 3, 3)]
        {
            assert_eq!(bench.set(value).await, Ok(Written { changed: true }), "{value}");
            assert_eq!(bench.live(), value);
            assert_eq!(bench.twin.versions(NAME).len(), versions, "{value}");
            assert_eq!(bench.twin.aliases(NAME)["live"], live, "{value}");
        }
        assert!(bench.states().iter().all(|state| *state == VersionState::Enabled));
    }

    #[tokio::test]
    async fn without_an_alias_the_former_value_becomes_one_more_version_and_none_is_disabled() {
        let bench = Bench::with(TwinOptions::default(), json!({}));
        let facts = bench.store.facts();
        assert!(!facts.staged && !facts.conditional && facts.revert == Revert::Append);
        for value in ["old", "new", "old"] {
            assert_eq!(bench.set(value).await, Ok(Written { changed: true }));
        }
        let contents: Vec<_> =
            bench.twin.versions(NAME).into_iter().map(|(_, _, data)| data).collect();
        assert_eq!(contents, [b"old", b"new", b"old"]);
        assert!(bench.states().iter().all(|state| *state == VersionState::Enabled));
        let notes = bench.messages(Severity::Note).await;
        assert!(notes.iter().any(|note| note.contains("nothing is staged")), "{notes:?}");
    }

    /// Every fault at every call of a write, and then the same write again.
    #[tokio::test]
    async fn h09_whatever_fails_the_next_write_ends_it_and_readers_have_one_value() {
        let faults = [
            Fault::TimeoutAfter,
            Fault::TimeoutBefore,
            Fault::Cut,
            Fault::Hang,
            Fault::Twice,
            Fault::LateLanding { after_ms: 20 },
            Fault::status(400),
            Fault::status(409),
            Fault::status(412),
            Fault::status(500),
            Fault::busy(),
            Fault::DelayedList { for_ms: 60_000 },
            Fault::Status { code: 500, retry_after: None, body: Echo::EchoKey, applied: true },
            Fault::Status { code: 200, retry_after: None, body: Echo::Html, applied: false },
        ];
        let calls = [
            ("get_secret", 1),
            ("access_version", 1),
            ("list_versions", 1),
            ("add_version", 1),
            ("access_version", 2),
            ("get_secret", 2),
            ("update_secret", 1),
        ];
        for fault in faults {
            for (operation, nth) in calls {
                let case = format!("{operation} {nth} {fault:?}");
                let bench = Bench::staged("old");
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
                match first {
                    Some(Ok(_)) => assert_eq!(bench.live(), "new", "{case}"),
                    Some(Err(CallError::Refused(_))) => assert_eq!(bench.live(), "old", "{case}"),
                    Some(Err(CallError::Unknown(_))) | None => {}
                }
                write(&*bench.store, accept(), "new")
                    .await
                    .unwrap_or_else(|e| panic!("{case}: {e}"));
                assert_eq!(bench.live(), "new", "{case}");
                assert_eq!(bench.store.clean_up().await, Ok(vec![]), "{case}");
                let versions = bench.twin.versions(NAME);
                let live = |wanted: &[u8]| {
                    let enabled = |state: &VersionState| *state == VersionState::Enabled;
                    versions
                        .iter()
                        .filter(|(_, state, data)| enabled(state) && data == wanted)
                        .count()
                };
                assert_eq!(live(b"old"), 1, "{case}");
                // The newest is never disabled, also where it is the double.
                assert!((1..=2).contains(&live(b"new")), "{case}");
                assert_eq!(bench.live(), "new", "{case}");
            }
        }
    }

    async fn silence(bench: &Bench, fault: &Fault) {
        let is_silent = matches!(fault, Fault::TimeoutAfter | Fault::TimeoutBefore | Fault::Hang);
        bench.until(|faults| is_silent && faults.unfired().is_empty()).await;
        tokio::time::sleep(Time::from_millis(30)).await;
    }

    #[tokio::test]
    async fn h04_a_version_whose_answer_was_lost_is_found_and_not_added_again() {
        let bench = Bench::staged("old");
        bench.script("add_version", Fault::Cut);
        assert!(matches!(bench.set("new").await, Err(CallError::Unknown(_))));
        assert_eq!((bench.live().as_str(), bench.twin.versions(NAME).len()), ("old", 2));
        assert_eq!(bench.set("new").await, Ok(Written { changed: true }));
        assert_eq!((bench.live().as_str(), bench.twin.versions(NAME).len()), ("new", 2));
    }

    #[tokio::test]
    async fn h09_a_version_that_was_added_twice_is_disabled_unless_somebody_may_need_it() {
        use VersionState::{Disabled, Enabled};
        let bench = Bench::staged("old");
        bench.script("add_version", Fault::Twice);
        assert_eq!(bench.set("new").await, Ok(Written { changed: true }));
        assert_eq!(bench.twin.aliases(NAME)["live"], 3);
        for _ in 0..2 {
            assert_eq!(bench.store.clean_up().await, Ok(vec![]));
            assert_eq!(bench.states(), [Enabled, Disabled, Enabled]);
        }
        // The newest, the one that another alias names, and what was made by somebody long ago.
        for version in 4..=6 {
            assert_eq!(bench.twin.add_version(NAME, b"new"), version);
        }
        bench.twin.set_alias(NAME, "blue", 4);
        bench.twin.age(NAME, 5, Time::from_secs(3_600));
        assert_eq!(bench.store.clean_up().await, Ok(vec![]));
        assert_eq!(bench.states(), [Enabled, Disabled, Enabled, Enabled, Enabled, Enabled]);
        bench.twin.add_version(NAME, b"other");
        bench.twin.deny("secretmanager.versions.disable");
        let left = bench.store.clean_up().await.unwrap();
        assert!(left.len() == 1 && left[0].starts_with("version 6 of secret"), "{left:?}");
        assert!(left[0].contains("403 PERMISSION_DENIED"), "{left:?}");
        assert_eq!(bench.live(), "new");
    }

    #[tokio::test]
    async fn a_secret_that_was_deleted_and_made_anew_is_another_one() {
        let bench = Bench::staged("old");
        let pinned = bench.store.identity().await.unwrap().unwrap();
        assert!(pinned.id.contains("projects/481516234200/secrets/api-key"), "{pinned}");
        bench.twin.add_version(NAME, b"new");
        bench.twin.set_alias(NAME, "live", 2);
        assert_eq!(bench.store.identity().await, Ok(Some(pinned.clone())));
        bench.twin.make_secret(NAME);
        assert_ne!(bench.store.identity().await, Ok(Some(pinned)));
    }

    #[tokio::test]
    async fn a_claim_is_written_only_by_who_may_change_the_secret() {
        let bench = Bench::with(TwinOptions::default(), json!({}));
        bench.twin.add_version(NAME, b"old");
        bench.twin.deny("secretmanager.secrets.update");
        assert_eq!(bench.messages(Severity::Blocks).await, [""; 0]);
        let blocks = bench.claimed("one").preflight(&[CONTENT.into()]).await.unwrap();
        let lacks = |one: &Finding| one.message.contains("lack `secretmanager.secrets.update`");
        assert!(blocks.iter().any(|one| one.severity == Severity::Blocks && lacks(one)));
    }

    #[tokio::test]
    async fn h92_a_version_that_only_an_answer_names_is_given_to_nobody() {
        let bench = Bench::staged("old");
        bench.twin.add_version(NAME, b"of somebody else");
        let id = "projects/481516234200/secrets/api-key/versions/2".to_owned();
        bench.script("add_version", Fault::AnotherId { at: "/name".into(), id });
        assert!(refusal(bench.set("new").await).message.contains("cannot be read back yet"));
        assert_eq!(bench.live(), "old");
        assert_eq!(bench.set("new").await, Ok(Written { changed: true }));
        assert_eq!((bench.live().as_str(), bench.twin.versions(NAME).len()), ("new", 3));
    }

    #[tokio::test]
    async fn h126_an_alias_that_was_moved_meanwhile_stays_where_it_is() {
        for aborts in [false, true] {
            let options = TwinOptions { aborts, ..TwinOptions::default() };
            let bench = Bench::with(options, json!({ "alias": "live" }));
            bench.twin.add_version(NAME, b"old");
            bench.twin.set_alias(NAME, "live", 1);
            // The move lands after somebody else's.
            bench.script("update_secret", Fault::LateLanding { after_ms: 40 });
            assert!(matches!(bench.set("ours").await, Err(CallError::Unknown(_))));
            let theirs = bench.twin.add_version(NAME, b"theirs");
            bench.twin.set_alias(NAME, "live", theirs);
            bench.until(Faults::has_landed).await;
            assert_eq!(bench.live(), "theirs");
            let old = SecretValue::new(b"old".to_vec());
            let again = write(&*bench.store, Accept::OneOf(vec![Some(&old)]), "ours").await;
            assert_eq!(refusal(again).kind, RefusalKind::Conflict);
        }
    }

    #[tokio::test]
    async fn h63_what_others_keep_with_the_secret_stays() {
        let bench = Bench::staged("old");
        bench.twin.annotate(NAME, "team", "shop");
        bench.twin.set_label(NAME, "cost", "42");
        bench.twin.add_version(NAME, b"blue");
        bench.twin.set_alias(NAME, "blue", 2);
        let store = bench.claimed("one");
        assert_eq!(store.claims().unwrap().take().await, Ok(true));
        assert_eq!(set(&*store, "new").await, Ok(Written { changed: true }));
        assert_eq!(bench.twin.aliases(NAME), [("blue".into(), 2), ("live".into(), 3)].into());
        assert_eq!(bench.twin.annotations(NAME)["team"], "shop");
        store.claims().unwrap().release().await.unwrap();
        assert_eq!(bench.twin.annotations(NAME), [("team".into(), "shop".into())].into());
    }

    #[tokio::test]
    async fn h65_an_alias_of_other_readers_is_named_and_stops_the_rotation() {
        let bench = Bench::staged("old");
        assert_eq!(bench.messages(Severity::Blocks).await, [""; 0]);
        let notes = bench.messages(Severity::Note).await;
        assert!(notes.iter().any(|note| note.contains("the number of a version")), "{notes:?}");
        bench.twin.set_alias(NAME, "blue", 1);
        let blocks = bench.messages(Severity::Blocks).await;
        assert!(blocks.len() == 1 && blocks[0].contains("alias `blue` keep"), "{blocks:?}");
        let leaves = json!({ "alias": "live", "leave_aliases": ["blue"] });
        let leaving = store(&bench.twin, bench.folder.path(), leaves, None);
        let found = leaving.preflight(&[CONTENT.into()]).await.unwrap();
        assert!(found.iter().all(|one| one.severity == Severity::Note), "{found:?}");
    }

    #[tokio::test]
    async fn h49_preflight_names_the_label_of_what_else_manages_the_secret() {
        let bench = Bench::staged("old");
        bench.twin.set_label(NAME, "goog-terraform-provisioned", "true");
        bench.twin.set_label(NAME, "team", "terraform");
        let notes = bench.messages(Severity::Note).await;
        let named: Vec<_> = notes.iter().filter(|note| note.contains("manages it")).collect();
        assert!(named.len() == 1 && named[0].contains("goog-terraform-provisioned"), "{notes:?}");
    }

    #[tokio::test]
    async fn preflight_names_what_a_write_would_stumble_over() {
        let bench = Bench::staged("old");
        bench.twin.deny("secretmanager.versions.add");
        bench.twin.deny("secretmanager.versions.disable");
        let blocks = bench.messages(Severity::Blocks).await;
        assert!(
            blocks.len() == 1 && blocks[0].contains("`secretmanager.versions.add`"),
            "{blocks:?}"
        );
        let notes = bench.messages(Severity::Note).await;
        assert!(notes[0].contains("a version that was added twice stays"), "{notes:?}");
        assert_eq!(refusal(bench.set("new").await).kind, RefusalKind::Permission);
        bench.twin.set_state(NAME, 1, VersionState::Disabled);
        let blocks = bench.messages(Severity::Blocks).await;
        assert!(blocks.iter().any(|one| one.contains("disabled or destroyed")), "{blocks:?}");
        let elsewhere = store(&bench.twin, bench.folder.path(), json!({ "secret": "none" }), None);
        let found = elsewhere.preflight(&[CONTENT.into()]).await.unwrap();
        assert!(found[0].message.contains("it answered 404 NOT_FOUND"), "{found:?}");
        std::fs::write(bench.folder.path().join("token"), "kwcanary-wrong").unwrap();
        let blocks = bench.messages(Severity::Blocks).await;
        assert!(blocks.len() == 1 && blocks[0].contains("401 UNAUTHENTICATED"), "{blocks:?}");
        std::fs::remove_file(bench.folder.path().join("token")).unwrap();
        assert!(bench.messages(Severity::Blocks).await[0].contains("token"));
    }

    #[tokio::test]
    async fn h61_of_two_installations_the_second_is_told_whose_the_secret_is() {
        let bench = Bench::staged("old");
        let (ours, theirs) = (bench.claimed("one"), bench.claimed("two"));
        assert!(bench.store.claims().is_none());
        let claim = ours.claims().unwrap();
        assert_eq!(claim.owner().await, Ok(Owner::Nobody));
        assert_eq!((claim.take().await, claim.take().await), (Ok(true), Ok(false)));
        let other = theirs.claims().unwrap();
        let refused = refusal(other.take().await).message;
        assert!(refused.contains("`/srv/shop`, environment `default`, journal one"), "{refused}");
        assert!(refusal(set(&*theirs, "new").await).message.contains("journal one"));
        assert!(refusal(theirs.clean_up().await).message.contains("journal one"));
        let found = theirs.preflight(&[CONTENT.into()]).await.unwrap();
        assert!(
            found
                .iter()
                .any(|one| one.severity == Severity::Blocks && one.message.contains("journal one"))
        );
        assert_eq!(bench.twin.versions(NAME).len(), 1);
        other.take_over().await.unwrap();
        assert!(set(&*ours, "new").await.is_err());
        claim.release().await.unwrap();
        assert_eq!(other.owner().await, Ok(Owner::Us), "another's claim is not released");
        bench.twin.annotate(NAME, CLAIM, "{}");
        assert!(matches!(other.owner().await, Ok(Owner::Unreadable(_))));
        assert!(set(&*theirs, "new").await.is_err());
    }

    #[tokio::test]
    async fn h115_no_error_repeats_an_answer() {
        let bench = Bench::staged("old");
        let token = canary("token");
        std::fs::write(bench.folder.path().join("token"), &token).unwrap();
        for operation in ["get_secret", "access_version", "add_version", "update_secret"] {
            let echo =
                Fault::Status { code: 403, retry_after: None, body: Echo::EchoKey, applied: false };
            bench.script(operation, echo);
            let Err(error) = bench.set("new").await else { panic!("{operation}") };
            assert!(!format!("{error} {error:?}").contains(&token), "{error}");
        }
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused() {
        let build = |changes: Value| {
            let token = json!({ "token": { "env": "TOKEN" } });
            let mut config = json!({ "project": PROJECT, "secret": NAME, "credentials": token });
            config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let config: Config = serde_json::from_value(config).unwrap();
            config.build(&Context::at("/")).map(|store| store.container())
        };
        for right in [json!({}), json!({ "alias": "live", "format": "json" })] {
            assert_eq!(build(right).as_deref(), Ok("gcp-secret-manager:shop-production:api-key"));
        }
        for wrong in [
            json!({ "project": "" }),
            json!({ "secret": "a/b" }),
            json!({ "alias": "latest" }),
            json!({ "alias": "7" }),
            json!({ "format": "json" }),
            json!({ "endpoint": "http://twin:80" }),
        ] {
            let refused = build(wrong.clone()).err().map(|refusal| refusal.kind);
            assert_eq!(refused, Some(RefusalKind::Unsupported), "{wrong}");
        }
    }

    #[test]
    fn the_checksum_is_the_one_that_the_standard_shows() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
