//! `sentry`: client keys of one project, delivered as a DSN.
//!
//! A DSN lets its holder send events and nothing else; it is published in browsers, so it is an identifier and no secret. It is
//! rotated against abuse. The API shows it again at any time: a mint whose answer is lost is found by its name, and its value
//! read.
//!
//! A new key is named `<label> (incomplete)` until it has every setting of the version in use, and keeps that name where one
//! could not be copied. A lost mint that is found under that name is ended and made anew: only the answer could have told what
//! it lacks (H91).
//!
//! The relay is asked whether a DSN works. Its refusal is definite. Its yes is not: it takes events before it has the
//! configuration of the project, and for a while after a key was disabled. Only the API's word beside it makes that an
//! acceptance, and where the two disagree nobody can tell.

mod record;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::facts::{Authority, IssuerFacts, Observe, ValueOrigin};
use keywheel_core::plan::Label;
use keywheel_core::planted;
use keywheel_core::secret::{Credential, SecretValue};
use keywheel_core::time::Span;
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{Audit, Identity, Issuer, Live, Mint, Minted, Suspend, Verdict};
use keywheel_driver::{CallError, Duration, Finding, Refusal, RefusalKind, SecretReference};
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Method, Url};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::{Api, MOST_PAGES, Shown, is_about, moment, unsupported};
use crate::http::{self, Effect};
use crate::{Build, Context, reference};

const TARGET: &str = "issuer `sentry`";
const OFFICIAL: &str = "https://sentry.io";

/// What the label of every mint of ours begins with.
const OURS: &str = "kw-";

/// What the name of a key ends with that has not every setting of the version before it.
const INCOMPLETE: &str = " (incomplete)";

/// The use cases that the API takes.
const USE_CASES: [&str; 4] = ["user", "profiling", "tempest", "demo"];

/// An envelope that makes no event: the report of a client that has discarded nothing.
const ENVELOPE: &str = "{}\n{\"type\":\"client_report\"}\n{\"discarded_events\":[]}\n";

/// A client key of a project at Sentry, delivered as a DSN.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The slug of the organisation.
    pub organization: String,
    /// The slug of the project.
    pub project: String,
    /// Where a token with the scopes `project:read`, `project:write` and `project:admin` is read.
    pub auth_token: SecretReference,
    /// Where Sentry is, if not at `https://sentry.io`: `https://de.sentry.io`, or the address of an own installation; HTTPS, or
    /// a loopback address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// Which address of the key is delivered.
    #[serde(default)]
    pub dsn: Form,
    /// How long the relay may refuse a new key, and take a disabled one.
    #[serde(default = "default_propagation")]
    pub propagation: Duration,
    /// How long a call without an answer can still take effect and stay out of a list.
    #[serde(default = "default_settle_for")]
    pub settle_for: Duration,
}

/// Which address of a key is delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// The DSN that every SDK takes.
    #[default]
    Public,
    /// Where browsers report violations of a content security policy.
    Security,
    /// Where crash reporters send minidumps.
    Minidump,
    /// Where browsers report failed requests.
    Nel,
    /// Where the Unreal Engine sends crashes.
    Unreal,
    /// Where monitors check in.
    Crons,
    /// Where a PlayStation sends crashes.
    Playstation,
}

impl Form {
    /// Returns its name in the API.
    fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Security => "security",
            Self::Minidump => "minidump",
            Self::Nel => "nel",
            Self::Unreal => "unreal",
            Self::Crons => "crons",
            Self::Playstation => "playstation",
        }
    }
}

/// Twice as long as a relay is known to keep the configuration of a project.
fn default_propagation() -> Duration {
    Span::minutes(10).into()
}

fn default_settle_for() -> Duration {
    Span::minutes(10).into()
}

impl Build for Config {
    type Driver = dyn Issuer;

    fn build(&self, context: &Context) -> Result<Arc<dyn Issuer>, Refusal> {
        if self.organization.is_empty() || self.project.is_empty() {
            return Err(unsupported("`organization` or `project` is empty"));
        }
        let api = Api::new(TARGET, self.base_url.as_deref().unwrap_or(OFFICIAL))?;
        let auth_token = reference::from_root(&self.auth_token, context);
        Ok(Arc::new(Sentry { config: Self { auth_token, ..self.clone() }, api }))
    }
}

struct Sentry {
    config: Config,
    api: Api,
}

#[async_trait]
impl Issuer for Sentry {
    fn facts(&self) -> IssuerFacts {
        IssuerFacts {
            label: true,
            suspend: true,
            destroy: true,
            publishable: true,
            propagation: self.config.propagation.span(),
            settle_for: self.config.settle_for.span(),
            ..IssuerFacts::new(ValueOrigin::TheirsRereadable, Observe::Label, Authority::Issuer)
        }
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        let headers = self.headers().await?;
        let project = match self.api.read::<Project>(&headers, self.project_url()).await {
            Err(CallError::Refused(refusal))
                if matches!(refusal.kind, RefusalKind::Permission | RefusalKind::NotFound) =>
            {
                let why = self.hint(refusal.into(), "project:read");
                return Ok(vec![Finding::blocks(why.to_string())]);
            }
            project => project?,
        };
        let mut findings = Vec::new();
        if project.status != "active" {
            let why = format!("project `{}` is not active", self.config.project);
            findings.push(Finding::blocks(why));
        }
        let may = |scope: &str| project.access.iter().any(|held| held == scope);
        if !may("project:write") && !may("project:admin") {
            findings.push(Finding::blocks("the token may not make keys: it lacks `project:write`"));
        }
        if !may("project:admin") {
            let why = "the token may not delete keys: it lacks `project:admin`";
            findings.push(Finding::blocks(why));
        }
        let keys = self.keys(&headers).await?;
        findings.push(Finding::note(format!("the project has {} client keys", keys.len())));
        let ours = keys.iter().filter(|key| key.name.starts_with(OURS));
        let names = ours.map(|key| format!("`{}`", key.name)).collect::<Vec<_>>().join(", ");
        if !names.is_empty() {
            findings.push(Finding::note(format!("keys of a rotation exist: {names}")));
        }
        Ok(findings)
    }

    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        let headers = self.headers().await?;
        let wanted = match request.previous {
            Some(id) => self.find(&headers, public_key(id)?).await?.map(|key| key.settings),
            None => None,
        };
        let made = self.create(&headers, &request.label.0, wanted.as_ref()).await?;
        let (made, mut notes) = match &wanted {
            Some(wanted) => self.complete(&headers, made, &request.label.0, wanted).await?,
            None => (made, Vec::new()),
        };
        if request.previous.is_some() && wanted.is_none() {
            notes.push("the key in use is gone, and its settings could not be copied".into());
        }
        Ok(Minted {
            issued: Some(IssuedId::new(&made.id)),
            credential: Some(self.credential(made)?),
            notes,
            ..Minted::default()
        })
    }

    /// Asks the relay, and where it says yes the API as well.
    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        let value =
            credential.value().ok_or_else(|| unsupported("the credential has no field `value`"))?;
        let dsn = Dsn::of(value).ok_or_else(|| unsupported("the credential is no DSN"))?;
        match relay(&dsn).await? {
            Relay::Refuses => return Ok(Verdict::Refused),
            Relay::CannotTell(why) => return Ok(Verdict::CannotTell(why)),
            Relay::Takes if planted!("relay_is_believed") => return Ok(Verdict::Accepted),
            Relay::Takes => {}
        }
        let known = self.find(&self.headers().await?, &dsn.public).await?;
        Ok(match known {
            Some(key) if key.is_active => Verdict::Accepted,
            Some(_) => Verdict::CannotTell(
                "the relay still takes events, and the API says that the key is disabled".into(),
            ),
            None => Verdict::CannotTell(
                "the relay takes events, and the project has no such key".into(),
            ),
        })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Live>, CallError> {
        let mut keys = self.keys(&self.headers().await?).await?;
        keys.retain(|key| key.name.starts_with(prefix));
        let live = |key: Key| {
            let label = key.name.strip_suffix(INCOMPLETE).unwrap_or(&key.name);
            Live { issued: IssuedId::new(&key.id), label: Some(Label(label.into())) }
        };
        Ok(keys.into_iter().map(live).collect())
    }

    async fn reread(&self, id: &IssuedId) -> Result<Option<Credential>, CallError> {
        let key = self.find(&self.headers().await?, public_key(id)?).await?;
        let whole =
            |key: &Key| !key.name.ends_with(INCOMPLETE) || planted!("incomplete_key_is_taken");
        key.filter(whole).map(|key| self.credential(key)).transpose()
    }

    /// Deletes a key, after a look at it. One that is not there is done, provided that the project is: a wrong project must not
    /// pass for a dead key (H96).
    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError> {
        let (public, headers) = (public_key(id)?, self.headers().await?);
        if self.find(&headers, public).await?.is_none() {
            if planted!("wrong_project_is_death") {
                return Ok(());
            }
            let there = self.api.read::<Project>(&headers, self.project_url()).await;
            return there.map(drop).map_err(|error| self.hint(error, "project:read"));
        }
        let answer = self.api.send(Method::DELETE, self.key_url(public), &headers, None).await?;
        match answer.status.as_u16() {
            204 => Ok(()),
            404 | 410 if !planted!("gone_is_no_success") => Ok(()),
            _ => Err(self.hint(answer.error(Effect::Changes), "project:admin")),
        }
    }

    async fn identify(&self, credential: &Credential) -> Result<Identity, CallError> {
        let Some(dsn) = credential.value().and_then(Dsn::of) else { return Ok(Identity::Unknown) };
        let key = self.find(&self.headers().await?, &dsn.public).await?;
        Ok(key.map_or(Identity::Unknown, |key| Identity::Known {
            issued: IssuedId::new(&key.id),
            how: "the DSN holds its public key".into(),
            created_at: key.date_created.as_deref().and_then(moment),
        }))
    }

    fn suspend(&self) -> Option<&dyn Suspend> {
        Some(self)
    }

    fn audit(&self) -> Option<&dyn Audit> {
        Some(self)
    }
}

#[async_trait]
impl Suspend for Sentry {
    async fn suspend(&self, id: &IssuedId) -> Result<(), CallError> {
        self.switch(id, false).await
    }

    async fn resume(&self, id: &IssuedId) -> Result<(), CallError> {
        self.switch(id, true).await
    }
}

impl Sentry {
    /// Reads the token, which may run a program, and makes the header of it.
    async fn headers(&self) -> Result<HeaderMap, CallError> {
        let token = reference::read(&self.config.auth_token).await?;
        Ok(self.api.bearer(&token, "token")?)
    }

    /// Every address of the API ends with a slash.
    fn url(&self, path: &[&str]) -> Url {
        let Config { organization, project, .. } = &self.config;
        let project = ["api", "0", "projects", organization, project];
        self.api.url(&[project.as_slice(), path, &[""]].concat())
    }

    fn project_url(&self) -> Url {
        self.url(&[])
    }

    fn key_url(&self, public: &str) -> Url {
        self.url(&["keys", public])
    }

    /// Says what to look at where the token or the project may be wrong.
    fn hint(&self, error: CallError, scope: &str) -> CallError {
        match error {
            CallError::Refused(mut refusal) => {
                let hint = match refusal.kind {
                    RefusalKind::Permission => {
                        format!(": is the token valid, and has it the scope `{scope}`?")
                    }
                    RefusalKind::NotFound => {
                        let Config { organization, project, .. } = &self.config;
                        format!(": is there a project `{project}` in `{organization}`?")
                    }
                    _ => String::new(),
                };
                refusal.message.push_str(&hint);
                refusal.into()
            }
            unknown @ CallError::Unknown(_) => unknown,
        }
    }

    /// Reads every page of the list of keys. The cursor of the next page stands in a header, and nothing else of it is used.
    async fn keys(&self, headers: &HeaderMap) -> Result<Vec<Key>, CallError> {
        let (mut keys, mut cursor) = (Vec::new(), None::<String>);
        for _ in 0..MOST_PAGES {
            let mut url = self.url(&["keys"]);
            if let Some(cursor) = &cursor {
                url.query_pairs_mut().append_pair("cursor", cursor);
            }
            let answer = self.api.send(Method::GET, url, headers, None).await?;
            if !answer.status.is_success() {
                return Err(self.hint(answer.error(Effect::Reads), "project:read"));
            }
            keys.extend(answer.decode::<Vec<Key>>()?);
            let next = next_cursor(&answer.headers);
            if next.is_none() {
                return Ok(keys);
            }
            if next == cursor {
                break;
            }
            cursor = next;
        }
        Err(self.api.endless("the list of keys"))
    }

    async fn find(&self, headers: &HeaderMap, public: &str) -> Result<Option<Key>, CallError> {
        let key: Option<Key> = self
            .api
            .find(headers, &self.key_url(public))
            .await
            .map_err(|error| self.hint(error, "project:read"))?;
        match key {
            Some(key) if !is_about(&key.id, public) => Err(self.api.shows_another()),
            key => Ok(key),
        }
    }

    /// Makes a key with the settings that the call takes; `wanted` are those of the version in use.
    async fn create(
        &self,
        headers: &HeaderMap,
        label: &str,
        wanted: Option<&Settings>,
    ) -> Result<Key, CallError> {
        let mut body = json!({ "name": label });
        if let Some(wanted) = wanted {
            body["name"] = json!(format!("{label}{INCOMPLETE}"));
            if let Some(limit) = &wanted.rate_limit {
                body["rateLimit"] = json!(limit);
            }
            if let Some(case) = wanted.use_case.as_deref().filter(|case| USE_CASES.contains(case)) {
                body["useCase"] = json!(case);
            }
        }
        let url = self.url(&["keys"]);
        let answer = self.api.send(Method::POST, url, headers, Some(&body)).await?;
        if !answer.status.is_success() {
            return Err(self.hint(answer.error(Effect::Changes), "project:write"));
        }
        let made: Key = answer.decode()?;
        if json!(made.name) != body["name"] {
            return Err(answer.not_understood());
        }
        // Before its settings are completed: those of another key would be changed.
        let form = Form::Public.name();
        let of =
            |key: &Key| key.dsn.get(form).and_then(|dsn| Dsn::of(&dsn.0)).map(|dsn| dsn.public);
        let is_new = |key: &Key| key.name == made.name && of(key) == of(&made);
        let look = || self.find(headers, &made.id);
        self.api.recognise(label, self.config.settle_for.span(), look, is_new).await?;
        Ok(made)
    }

    /// Gives a new key what else the version in use has, and its final name once nothing is missing. Returns what is.
    async fn complete(
        &self,
        headers: &HeaderMap,
        mut made: Key,
        label: &str,
        wanted: &Settings,
    ) -> Result<(Key, Vec<String>), CallError> {
        if planted!("settings_not_copied") {
            return Ok((made, Vec::new()));
        }
        // One at a time: what the API does not take stays as it is, and is told.
        for change in wanted.changes_to(&made.settings) {
            match self.update(headers, &made.id, &change).await {
                Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::Unsupported => {}
                updated => made = updated.map_err(half_made)?,
            }
        }
        let notes = wanted.missing_in(&made.settings);
        if !notes.is_empty() {
            return Ok((made, notes));
        }
        let name = json!({ "name": label });
        let made = self.update(headers, &made.id, &name).await.map_err(half_made)?;
        Ok((made, notes))
    }

    async fn update(
        &self,
        headers: &HeaderMap,
        public: &str,
        body: &Value,
    ) -> Result<Key, CallError> {
        let url = self.key_url(public);
        let answer = self.api.send(Method::PUT, url, headers, Some(body)).await?;
        if !answer.status.is_success() {
            return Err(self.hint(answer.error(Effect::Changes), "project:write"));
        }
        let key: Key = answer.decode()?;
        if is_about(&key.id, public) { Ok(key) } else { Err(self.api.changed_another()) }
    }

    /// Disables or enables a key, after a look at it; one that is so already is left alone.
    async fn switch(&self, id: &IssuedId, active: bool) -> Result<(), CallError> {
        let (public, headers) = (public_key(id)?, self.headers().await?);
        let key = self.find(&headers, public).await?.ok_or_else(|| {
            let missing =
                Refusal::operator(RefusalKind::NotFound, format!("{TARGET} has no key `{public}`"));
            self.hint(missing.into(), "project:read")
        })?;
        if key.is_active == active {
            return Ok(());
        }
        let changed = self.update(&headers, public, &json!({ "isActive": active })).await?;
        if changed.is_active == active {
            Ok(())
        } else {
            Err(CallError::Unknown(format!("{TARGET} left key `{public}` as it was")))
        }
    }

    fn credential(&self, mut key: Key) -> Result<Credential, CallError> {
        let form = self.config.dsn.name();
        let value = key.dsn.remove(form).ok_or_else(|| {
            unsupported(&format!("{TARGET} shows no `{form}` address of key `{}`", key.id))
        })?;
        Ok(Credential::of_value(value.0))
    }
}

/// What is left of a mint whose key exists and is not what it should be: its name tells it from a whole one.
fn half_made(error: CallError) -> CallError {
    CallError::Unknown(format!("a key was made, and its settings could not be copied: {error}"))
}

/// What the relay says of a DSN.
enum Relay {
    Takes,
    Refuses,
    CannotTell(String),
}

/// Sends the relay an envelope that makes no event.
async fn relay(dsn: &Dsn) -> Result<Relay, CallError> {
    let named =
        format!("Sentry sentry_version=7, sentry_client=keywheel, sentry_key={}", dsn.public);
    let named = http::secret_header(named.as_bytes())
        .map_err(|_| unsupported("the DSN holds a character that no header can"))?;
    let request = http::client()
        .post(dsn.envelope.clone())
        .header("x-sentry-auth", named)
        .header(CONTENT_TYPE, "application/x-sentry-envelope")
        .body(ENVELOPE);
    let target = "the relay of Sentry";
    let response = request.send().await.map_err(|error| http::call_error(target, &error))?;
    let (status, headers) = (response.status(), response.headers().clone());
    let body = SecretValue::new(http::body(target, response).await.unwrap_or_default());
    let told: Option<Detail> = serde_json::from_slice(body.expose()).ok();
    Ok(match (status.as_u16(), told) {
        (200, Some(_)) => Relay::Takes,
        (403, _) if planted!("any_no_is_death") => Relay::Refuses,
        (403, Some(Detail { detail: Some(detail) }))
            if detail.contains("with_reason: ProjectId") =>
        {
            Relay::Refuses
        }
        (status, _) => {
            let request = http::request_id(&headers);
            Relay::CannotTell(format!("{target} answered {status}{request}"))
        }
    })
}

/// A DSN, or another address that holds a client key.
struct Dsn {
    public: String,
    envelope: Url,
}

impl Dsn {
    /// Reads an address; none where it is another kind of value.
    fn of(value: &SecretValue) -> Option<Self> {
        let url = Url::parse(std::str::from_utf8(value.expose()).ok()?).ok()?;
        let path: Vec<&str> = url.path_segments()?.filter(|part| !part.is_empty()).collect();
        // A DSN names the key as its user and ends with the id of the project, which stands after `api` elsewhere.
        let is_dsn = !url.username().is_empty();
        let (before, project) = if is_dsn {
            let (project, before) = path.split_last()?;
            (before, project)
        } else {
            let api = path.iter().position(|part| *part == "api")?;
            (&path[..api], path.get(api + 1)?)
        };
        let in_query = || url.query_pairs().find(|(name, _)| name == "sentry_key");
        let in_path = || path.iter().rev().find(|part| is_public_key(part));
        let public = if is_dsn {
            url.username().to_owned()
        } else {
            let named = in_query().map(|(_, key)| key.into_owned());
            named.or_else(|| in_path().map(|key| (*key).to_owned()))?
        };
        let mut envelope = url.clone();
        envelope.set_username("").ok()?;
        envelope.set_password(None).ok()?;
        envelope.set_query(None);
        envelope.set_fragment(None);
        let parts = [before, &["api", project, "envelope", ""]].concat();
        envelope.path_segments_mut().ok()?.clear().extend(parts);
        is_public_key(&public).then_some(Self { public, envelope })
    }
}

fn is_public_key(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn public_key(id: &IssuedId) -> Result<&str, Refusal> {
    let public = Some(id.id.as_str()).filter(|id| is_public_key(id));
    public.ok_or_else(|| unsupported("the issued id is not the public key of a client key"))
}

/// Reads where the next page begins, where there is one.
fn next_cursor(headers: &HeaderMap) -> Option<String> {
    let links = headers.get(reqwest::header::LINK)?.to_str().ok()?;
    let mut links =
        links.split(", <").map(|link| link.split(';').map(str::trim).collect::<Vec<_>>());
    let next =
        links.find(|link| link.contains(&"rel=\"next\"") && link.contains(&"results=\"true\""))?;
    let cursor = next.iter().find_map(|part| part.strip_prefix("cursor=\""))?;
    cursor.strip_suffix('"').map(str::to_owned)
}

#[derive(Deserialize)]
struct Project {
    status: String,
    #[serde(default)]
    access: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Key {
    id: String,
    name: String,
    is_active: bool,
    dsn: BTreeMap<String, Shown>,
    date_created: Option<String>,
    #[serde(flatten)]
    settings: Settings,
}

/// What can be chosen about a key.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    rate_limit: Option<RateLimit>,
    use_case: Option<String>,
    #[serde(default)]
    browser_sdk_version: Option<String>,
    #[serde(default)]
    dynamic_sdk_loader_options: BTreeMap<String, bool>,
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct RateLimit {
    window: u64,
    count: u64,
}

impl Settings {
    /// Returns the changes that give a key what it lacks, as far as a change can.
    fn changes_to(&self, made: &Self) -> Vec<Value> {
        let (version, options) = (&self.browser_sdk_version, &self.dynamic_sdk_loader_options);
        let mut changes = Vec::new();
        if self.rate_limit != made.rate_limit {
            let none = json!({ "window": null, "count": null });
            let limit = self.rate_limit.as_ref().map_or(none, |limit| json!(limit));
            changes.push(json!({ "rateLimit": limit }));
        }
        if *version != made.browser_sdk_version {
            changes.push(json!({ "browserSdkVersion": version }));
        }
        if *options != made.dynamic_sdk_loader_options {
            changes.push(json!({ "dynamicSdkLoaderOptions": options }));
        }
        changes
    }

    /// Says what a key lacks.
    fn missing_in(&self, made: &Self) -> Vec<String> {
        let differs = [
            ("the rate limit", self.rate_limit != made.rate_limit),
            ("the use case", self.use_case != made.use_case),
            (
                "the version of the browser SDK",
                self.browser_sdk_version != made.browser_sdk_version,
            ),
            (
                "the options of the loader script",
                self.dynamic_sdk_loader_options != made.dynamic_sdk_loader_options,
            ),
        ];
        let differs = differs.into_iter().filter(|(_, differs)| *differs);
        differs.map(|(what, _)| format!("{what} could not be copied")).collect()
    }
}

#[derive(Deserialize)]
struct Detail {
    detail: Option<String>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration as Time;

    use keywheel_core::time::Timestamp;
    use keywheel_driver::Remedy;
    use keywheel_driver::conformance::canary;
    use keywheel_driver::conformance::faults::Call;
    use keywheel_driver::conformance::issuer::{Subject, run};
    use keywheel_twins::fault::{Echo, Fault, Rule};
    use keywheel_twins::sentry::{KeyState, ORGANIZATION, PROJECT, Twin, TwinOptions};

    use super::super::bench::{
        Script, credential, is_unknown, one_id, refusal, revoke_means, status, taken_over, written,
    };
    use super::*;

    /// A twin, and the issuer that is configured for it.
    struct Bench {
        twin: Twin,
        issuer: Arc<dyn Issuer>,
        _folder: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            Self::with(TwinOptions::default(), json!({}))
        }

        fn with(options: TwinOptions, changes: Value) -> Self {
            let twin = Twin::start(options).unwrap();
            let folder = written(twin.token());
            let config = json!({
                "organization": ORGANIZATION,
                "project": PROJECT,
                "auth_token": { "file": "admin.key" },
                "base_url": twin.base_url(),
            });
            let config: Config = serde_json::from_value(taken_over(config, changes)).unwrap();
            let issuer =
                config.build(&Context::at(folder.path())).unwrap_or_else(|e| panic!("{e}"));
            Self { twin, issuer, _folder: folder }
        }

        fn script(&self, rules: Vec<Rule>) {
            self.twin.faults().set(rules).unwrap();
        }

        async fn mint(
            &self,
            label: &str,
            previous: Option<&IssuedId>,
        ) -> Result<Minted, CallError> {
            let label = Label(label.into());
            self.issuer.mint(&Mint { previous, ..Mint::new(&label) }).await
        }

        async fn minted(&self, label: &str) -> (IssuedId, Credential) {
            let minted = self.mint(label, None).await.unwrap_or_else(|e| panic!("{e}"));
            (minted.issued.unwrap(), minted.credential.unwrap())
        }

        async fn listed(&self, prefix: &str) -> Vec<Live> {
            self.issuer.list(prefix).await.unwrap_or_else(|e| panic!("{e}"))
        }

        async fn verify(&self, credential: &Credential) -> Verdict {
            self.issuer.verify(credential).await.unwrap_or_else(|e| panic!("{e}"))
        }

        /// A key with settings of its own.
        fn configured(&self) -> IssuedId {
            let id = self.twin.make_key("backend");
            self.twin.configure(
                &id,
                &json!({
                    "rateLimit": { "window": 3600, "count": 500 },
                    "useCase": "profiling",
                    "browserSdkVersion": "7.x",
                    "dynamicSdkLoaderOptions": { "hasReplay": false, "hasFeedback": true },
                }),
            );
            IssuedId::new(id)
        }

        fn key(&self, id: &IssuedId) -> KeyState {
            self.twin.keys().into_iter().find(|key| key.id == id.id).unwrap()
        }
    }

    /// What is on record about a key since a time, one line for each entry.
    async fn told(bench: &Bench, id: &IssuedId, since: Timestamp) -> String {
        let entries = bench.issuer.audit().unwrap().since(id, since).await.unwrap();
        assert!(entries.is_sorted_by_key(|entry| entry.at));
        entries.iter().map(|entry| format!("{}\n", entry.what)).collect()
    }

    const MAY_READ_THE_LOG: [&str; 4] =
        ["project:read", "project:write", "project:admin", "org:write"];

    #[tokio::test]
    async fn the_record_of_a_key_says_who_did_what_with_it() {
        let bench = Bench::with(TwinOptions { page: 1, ..TwinOptions::default() }, json!({}));
        bench.twin.restrict(&MAY_READ_THE_LOG);
        let by_hand = IssuedId::new(bench.twin.make_key("by-hand"));
        let (id, _) = bench.minted("kw-1-1").await;
        bench.twin.add_event(&id.id, Time::ZERO);
        bench.twin.add_event(&id.id, Time::from_secs(3 * 24 * 3_600));
        bench.twin.add_event(&id.id, Time::from_secs(40 * 24 * 3_600));
        bench.issuer.suspend().unwrap().suspend(&id).await.unwrap();
        let of_key = told(&bench, &id, Timestamp::default()).await;
        for line in [
            "it was made by `ci@example.com` from 192.0.2.8\n",
            "it was changed by `ci@example.com` from 192.0.2.8\n",
            "events are counted for 30 days at most\n",
            "the key is disabled now\n",
        ] {
            assert!(of_key.contains(line), "{line} in {of_key}");
        }
        let days = of_key.matches("events in the day before: 1, of which accepted: 1").count();
        assert_eq!((days, of_key.lines().count()), (2, 6), "{of_key}");
        let by_person = told(&bench, &by_hand, Timestamp::default()).await;
        assert!(by_person.contains("by `someone@example.com` from 192.0.2.7"), "{by_person}");
        for key in bench.twin.keys() {
            let secret = key.shown["secret"].as_str().unwrap();
            assert!(!of_key.contains(secret) && !of_key.contains(bench.twin.token()));
        }

        bench.issuer.revoke(&id).await.unwrap();
        let gone = told(&bench, &id, Timestamp::default()).await;
        assert!(gone.contains("it was deleted by") && gone.contains("no such key"), "{gone}");
        let later = told(&bench, &by_hand, crate::api::now() + Span::hours(1)).await;
        assert!(later.contains("has nothing of the key") && !later.contains("made"), "{later}");
    }

    #[tokio::test]
    async fn a_record_that_is_behind_is_told_as_far_as_it_goes() {
        let behind = TwinOptions { list_lag: Time::from_secs(3_600), ..TwinOptions::default() };
        let bench = Bench::with(behind, json!({}));
        bench.twin.restrict(&MAY_READ_THE_LOG);
        let id = IssuedId::new(bench.twin.make_key("by-hand"));
        bench.twin.add_event(&id.id, Time::ZERO);
        bench.twin.add_event(&id.id, Time::from_secs(2 * 24 * 3_600));
        let of_key = told(&bench, &id, Timestamp::default()).await;
        assert!(of_key.contains("has nothing of the key in this time"), "{of_key}");
        assert_eq!(of_key.matches("events in the day before: 1").count(), 1, "{of_key}");
    }

    #[tokio::test]
    async fn what_of_a_record_could_not_be_read_is_told_beside_the_rest() {
        let bench = Bench::new();
        let id = IssuedId::new(bench.twin.make_key("by-hand"));
        bench.twin.add_event(&id.id, Time::ZERO);
        let without_scope = told(&bench, &id, Timestamp::default()).await;
        assert!(without_scope.contains("has it the scope `org:write`?"), "{without_scope}");
        assert!(without_scope.contains("it was made\n"), "{without_scope}");
        assert!(without_scope.contains("of which accepted: 1"), "{without_scope}");
        bench.twin.restrict(&MAY_READ_THE_LOG);
        let faults = [401, 403, 404, 429, 500, 503].map(|code| status(code, Echo::EchoKey));
        for fault in faults.into_iter().chain([status(200, Echo::Html), Fault::Cut]) {
            bench.script(vec![Rule::every("list_audit_logs", fault.clone())]);
            let no_log = told(&bench, &id, Timestamp::default()).await;
            assert!(no_log.contains("could not be read: "), "{fault:?}: {no_log}");
            assert!(no_log.contains("of which accepted: 1"), "{fault:?}: {no_log}");
            bench.script(vec![Rule::every("key_stats", fault.clone())]);
            let no_count = told(&bench, &id, Timestamp::default()).await;
            assert!(no_count.contains("could not be counted: "), "{fault:?}: {no_count}");
            assert!(no_count.contains("it was made by `someone@"), "{fault:?}: {no_count}");
            for told in [no_log, no_count] {
                assert!(!told.contains(bench.twin.token()), "{fault:?}: {told}");
            }
        }
    }

    fn text(credential: &Credential) -> &str {
        std::str::from_utf8(credential.value().unwrap().expose()).unwrap()
    }

    #[tokio::test]
    async fn the_issuer_keeps_its_contract() {
        let bench = Bench::with(TwinOptions { page: 1, ..TwinOptions::default() }, json!({}));
        let lose = || bench.script(vec![Rule::first("create_key", Fault::Cut)]);
        let garbage = credential(&bench.twin.dsn(&"0".repeat(32)));
        let faults = [200, 302, 400, 401, 403, 404, 409, 429, 500, 503]
            .map(|code| status(code, Echo::EchoKey));
        let broken: Vec<Bench> = faults
            .into_iter()
            .chain([status(200, Echo::Html), Fault::Cut])
            .map(|fault| {
                let broken = Bench::new();
                broken.script(vec![Rule::every("*", fault)]);
                broken
            })
            .collect();
        let broken_issuers: Vec<&dyn Issuer> =
            broken.iter().map(|broken| &*broken.issuer).collect();
        let mut canaries: Vec<Credential> =
            broken.iter().map(|broken| credential(broken.twin.token())).collect();
        canaries.push(credential(&canary("sentry")));
        run(&Subject {
            issuer: &*bench.issuer,
            prefix: "kw-suite-",
            garbage: &garbage,
            lose_next_answer: Some(&lose),
            broken: &broken_issuers,
            canaries: &canaries.iter().collect::<Vec<_>>(),
        })
        .await;
        assert!(bench.twin.keys().iter().all(|key| !key.live));
        assert!(broken.iter().all(|broken| broken.twin.faults().unfired().is_empty()));
    }

    #[tokio::test]
    async fn h92_no_fault_of_the_provider_does_harm() {
        let bench = Bench::with(TwinOptions::default(), json!({ "settle_for": "100ms" }));
        let operations = [
            (Call::Make, "create_key", &["/id"][..]),
            (Call::Look, "get_key", &["/id"][..]),
            (Call::List, "list_keys", &[][..]),
            (Call::Switch, "update_key", &["/id"][..]),
            (Call::End, "delete_key", &[][..]),
        ];
        let side = Script {
            faults: bench.twin.faults(),
            operations: &operations,
            names: &one_id,
            live: &|label| bench.twin.live(label).len(),
        };
        assert_eq!(side.does_no_harm(&*bench.issuer, true).await, 108);
    }

    #[tokio::test]
    async fn h04_a_mint_without_a_whole_answer_is_found_by_its_label_and_read_again() {
        for fault in [
            Fault::Cut,
            Fault::TimeoutAfter,
            Fault::Hang,
            Fault::LateLanding { after_ms: 50 },
            Fault::Status { code: 500, retry_after: None, body: Echo::Json, applied: true },
            Fault::Status { code: 201, retry_after: None, body: Echo::Html, applied: true },
        ] {
            let bench = Bench::new();
            bench.script(vec![Rule::first("create_key", fault.clone())]);
            let silent = matches!(fault, Fault::TimeoutAfter | Fault::Hang);
            let deadline = Time::from_secs(if silent { 1 } else { 600 });
            match tokio::time::timeout(deadline, bench.mint("kw-1-1", None)).await {
                Ok(outcome) => assert!(!silent && is_unknown(&outcome), "{fault:?}"),
                Err(_) => assert!(silent, "{fault:?}"),
            }
            let mut found = bench.listed("kw-1-").await;
            while found.is_empty() {
                tokio::time::sleep(Time::from_millis(10)).await;
                found = bench.listed("kw-1-").await;
            }
            assert_eq!((found.len(), bench.twin.faults().unfired()), (1, vec![]), "{fault:?}");
            let again = bench.issuer.reread(&found[0].issued).await.unwrap().unwrap();
            assert_eq!(bench.verify(&again).await, Verdict::Accepted);
        }
    }

    #[tokio::test]
    async fn a_mint_that_was_definitely_not_done_says_what_to_look_at() {
        let look_at_the_token = ": is the token valid, and has it the scope `project:write`?";
        let look_at_the_project = ": is there a project `backend` in `shop`?";
        for (code, kind, then) in [
            (400, RefusalKind::Unsupported, ""),
            (401, RefusalKind::Permission, look_at_the_token),
            (403, RefusalKind::Permission, look_at_the_token),
            (404, RefusalKind::NotFound, look_at_the_project),
            (409, RefusalKind::Unavailable, ""),
            (429, RefusalKind::RateLimited, ""),
        ] {
            let bench = Bench::new();
            bench.script(vec![Rule::first("create_key", Fault::status(code))]);
            let refusal = refusal(bench.mint("kw-1-1", None).await);
            assert_eq!(refusal.message, format!("issuer `sentry` answered {code}{then}"));
            assert_eq!((refusal.kind, bench.twin.keys().len()), (kind, 0), "{code}");
        }
    }

    #[tokio::test]
    async fn h91_a_new_key_has_every_setting_of_the_one_before_it() {
        let bench = Bench::new();
        let previous = bench.configured();
        let minted = bench.mint("kw-1-1", Some(&previous)).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(minted.notes, [""; 0]);
        let (old, new) = (bench.key(&previous).shown, bench.key(&minted.issued.unwrap()).shown);
        for setting in ["rateLimit", "useCase", "browserSdkVersion", "dynamicSdkLoaderOptions"] {
            assert_eq!(new[setting], old[setting], "{setting}");
        }
        assert_eq!(new["name"], "kw-1-1");
    }

    #[tokio::test]
    async fn h91_what_could_not_be_copied_is_told() {
        let limited = TwinOptions { no_rate_limits: true, ..TwinOptions::default() };
        let (bench, refusing) = (Bench::new(), Bench::with(limited, json!({})));
        let previous = bench.configured();
        let strange = json!({ "browserSdkVersion": "9.x", "useCase": "escalation" });
        bench.twin.configure(&previous.id, &strange);
        let told = |minted: Result<Minted, CallError>| {
            minted.unwrap_or_else(|e| panic!("{e}")).notes.join("; ")
        };
        assert_eq!(
            told(bench.mint("kw-1-1", Some(&previous)).await),
            "the use case could not be copied; the version of the browser SDK could not be copied"
        );
        let previous = refusing.twin.make_key("backend");
        refusing.twin.configure(&previous, &json!({ "rateLimit": { "window": 60, "count": 5 } }));
        let previous = IssuedId::new(previous);
        assert_eq!(
            told(refusing.mint("kw-1-1", Some(&previous)).await),
            "the rate limit could not be copied"
        );
        refusing.twin.delete_key(&previous.id);
        assert_eq!(
            told(refusing.mint("kw-1-2", Some(&previous)).await),
            "the key in use is gone, and its settings could not be copied"
        );
    }

    #[tokio::test]
    async fn h91_a_key_that_may_lack_settings_is_not_taken_but_made_anew() {
        for (operation, fault) in [
            ("update_key", Fault::status(500)),
            ("update_key", Fault::status(429)),
            ("update_key", Fault::Cut),
            ("create_key", Fault::Cut),
        ] {
            let bench = Bench::new();
            let previous = bench.configured();
            bench.script(vec![Rule::first(operation, fault.clone())]);
            let outcome = bench.mint("kw-1-1", Some(&previous)).await;
            assert!(is_unknown(&outcome), "{operation} {fault:?}");
            let found = bench.listed("kw-1-1").await;
            assert_eq!(found.len(), 1, "{operation} {fault:?}");
            assert_eq!(found[0].label, Some(Label("kw-1-1".into())));
            assert!(bench.issuer.reread(&found[0].issued).await.is_ok_and(|found| found.is_none()));
            bench.issuer.revoke(&found[0].issued).await.unwrap_or_else(|e| panic!("{e}"));
            let next =
                bench.mint("kw-1-2", Some(&previous)).await.unwrap_or_else(|e| panic!("{e}"));
            let again = bench.issuer.reread(&next.issued.unwrap()).await.unwrap().unwrap();
            assert!(again.same_as(&next.credential.unwrap()));
            let live = bench.twin.keys().into_iter().filter(|key| key.live);
            assert_eq!(live.map(|key| key.name).collect::<Vec<_>>(), ["backend", "kw-1-2"]);
        }
    }

    #[tokio::test]
    async fn h88_an_early_or_late_yes_of_the_relay_is_not_believed() {
        let slow = Time::from_secs(3_600);
        let early =
            Bench::with(TwinOptions { relay_fetch: slow, ..TwinOptions::default() }, json!({}));
        let never_issued = credential(&early.twin.dsn(&"0".repeat(32)));
        let cannot_tell = |verdict: Verdict, why: &str| {
            assert!(
                matches!(&verdict, Verdict::CannotTell(said) if said.contains(why)),
                "{verdict:?}"
            );
        };
        cannot_tell(early.verify(&never_issued).await, "the project has no such key");
        let late =
            Bench::with(TwinOptions { relay_cache: slow, ..TwinOptions::default() }, json!({}));
        let (id, minted) = late.minted("kw-1-1").await;
        assert_eq!(late.verify(&minted).await, Verdict::Accepted);
        late.issuer.suspend().unwrap().suspend(&id).await.unwrap();
        cannot_tell(late.verify(&minted).await, "the API says that the key is disabled");
        late.issuer.revoke(&id).await.unwrap();
        cannot_tell(late.verify(&minted).await, "the project has no such key");
    }

    #[tokio::test]
    async fn h88_only_the_definite_answers_prove_anything() {
        let bench = Bench::new();
        let (id, minted) = bench.minted("kw-1-1").await;
        for unclear in [
            Fault::status(403),
            status(403, Echo::Html),
            status(200, Echo::Html),
            Fault::status(400),
            Fault::status(401),
            Fault::status(404),
            Fault::status(429),
            Fault::status(503),
        ] {
            bench.script(vec![Rule::first("envelope", unclear.clone())]);
            let verdict = bench.verify(&minted).await;
            assert!(matches!(verdict, Verdict::CannotTell(_)), "{unclear:?}: {verdict:?}");
        }
        bench.script(vec![Rule::first("envelope", Fault::Cut)]);
        assert!(is_unknown(&bench.issuer.verify(&minted).await));
        bench.script(vec![Rule::first("get_key", Fault::status(401))]);
        assert_eq!(refusal(bench.issuer.verify(&minted).await).kind, RefusalKind::Permission);
        bench.issuer.suspend().unwrap().suspend(&id).await.unwrap();
        assert_eq!(bench.verify(&minted).await, Verdict::Refused);
        assert!(bench.issuer.verify(&credential("not a DSN")).await.is_err());
    }

    #[tokio::test]
    async fn a_key_is_switched_off_and_on_again() {
        let bench = Bench::new();
        let (id, minted) = bench.minted("kw-1-1").await;
        let switch = bench.issuer.suspend().unwrap();
        for _ in 0..2 {
            switch.suspend(&id).await.unwrap();
            assert_eq!(bench.verify(&minted).await, Verdict::Refused);
        }
        for _ in 0..2 {
            switch.resume(&id).await.unwrap();
            assert_eq!(bench.verify(&minted).await, Verdict::Accepted);
        }
        let updates = bench.twin.faults().seen();
        assert_eq!(updates.iter().filter(|seen| seen.operation == Some("update_key")).count(), 2);
        bench.twin.delete_key(&id.id);
        assert_eq!(refusal(switch.resume(&id).await).kind, RefusalKind::NotFound);
    }

    #[tokio::test]
    async fn h96_every_answer_to_a_revoke_has_one_meaning() {
        for answer in [
            ("delete_key", Fault::status(404), Some(true)),
            ("get_key", Fault::status(404), Some(true)),
            ("delete_key", Fault::status(401), Some(false)),
            ("delete_key", Fault::status(403), Some(false)),
            ("delete_key", Fault::status(409), Some(false)),
            ("delete_key", Fault::status(429), Some(false)),
            ("get_key", Fault::status(403), Some(false)),
            ("get_key", Fault::status(500), Some(false)),
            ("delete_key", Fault::status(500), None),
            ("delete_key", Fault::Cut, None),
            ("delete_key", status(200, Echo::Html), None),
        ] {
            let bench = Bench::new();
            let (id, _) = bench.minted("kw-1-1").await;
            revoke_means(&*bench.issuer, bench.twin.faults(), &id, answer).await;
        }
    }

    #[tokio::test]
    async fn h96_a_wrong_project_does_not_pass_for_a_dead_key() {
        let bench = Bench::with(TwinOptions::default(), json!({ "project": "other" }));
        let id = IssuedId::new(bench.twin.make_key("backend"));
        let refusal = refusal(bench.issuer.revoke(&id).await);
        assert_eq!(
            refusal.message,
            "issuer `sentry` answered 404: is there a project `other` in `shop`?"
        );
        assert_eq!(bench.twin.live("backend").len(), 1);
    }

    #[tokio::test]
    async fn h92_only_what_is_a_public_key_is_ended() {
        let bench = Bench::new();
        let upper = "A".repeat(32);
        for malformed in ["", "/", "..", "backend", "../../keys", upper.as_str()] {
            let id = IssuedId::new(malformed);
            assert_eq!(refusal(bench.issuer.revoke(&id).await).kind, RefusalKind::Unsupported);
            let switched = bench.issuer.suspend().unwrap().suspend(&id).await;
            assert_eq!(refusal(switched).kind, RefusalKind::Unsupported);
        }
        assert_eq!(bench.twin.faults().seen(), []);
    }

    #[tokio::test]
    async fn h97_the_wait_that_the_issuer_asks_for_is_kept_at_every_call() {
        let bench = Bench::new();
        let id = IssuedId::new(bench.twin.make_key("backend"));
        bench.script(vec![Rule::every("*", Fault::busy())]);
        for refusal in [
            refusal(bench.mint("kw-1-1", None).await),
            refusal(bench.mint("kw-1-1", Some(&id)).await),
            refusal(bench.issuer.list("kw-").await),
            refusal(bench.issuer.revoke(&id).await),
            refusal(bench.issuer.suspend().unwrap().suspend(&id).await),
            refusal(bench.issuer.reread(&id).await),
            refusal(bench.issuer.preflight().await),
        ] {
            assert_eq!(refusal.remedy, Remedy::Retry { after: Some(Span::hours(1)) });
            assert_eq!(refusal.message, "issuer `sentry` answered 429");
        }
    }

    #[tokio::test]
    async fn a_dsn_that_was_made_by_hand_is_identified_by_its_public_key() {
        let bench = Bench::new();
        let id = bench.twin.make_key("backend");
        let found = bench.issuer.identify(&credential(&bench.twin.dsn(&id))).await.unwrap();
        let Identity::Known { issued, created_at, .. } = found else { panic!("{found:?}") };
        assert_eq!((issued.id, created_at.is_some()), (id, true));
        for unknown in [bench.twin.dsn(&"0".repeat(32)), "not a DSN".into()] {
            let found = bench.issuer.identify(&credential(&unknown)).await.unwrap();
            assert_eq!(found, Identity::Unknown);
        }
    }

    #[tokio::test]
    async fn each_address_of_a_key_is_delivered_and_tried() {
        for form in ["public", "security", "minidump", "nel", "unreal", "crons", "playstation"] {
            let bench = Bench::with(TwinOptions::default(), json!({ "dsn": form }));
            let (id, minted) = bench.minted("kw-1-1").await;
            assert_eq!(bench.key(&id).shown["dsn"][form], text(&minted));
            assert_eq!(bench.verify(&minted).await, Verdict::Accepted, "{form}");
            assert_eq!(bench.key(&id).events, 1, "{form}");
        }
    }

    #[test]
    fn an_address_tells_key_and_relay() {
        let public = "0123456789abcdef0123456789abcdef";
        for (address, envelope) in [
            (
                format!("https://{public}@o1.ingest.de.sentry.io/42"),
                "https://o1.ingest.de.sentry.io/api/42/envelope/",
            ),
            (
                format!("https://{public}:secret@example.com:9000/errors/42?x=1#y"),
                "https://example.com:9000/errors/api/42/envelope/",
            ),
            (
                format!("https://example.com/errors/api/42/minidump/?sentry_key={public}"),
                "https://example.com/errors/api/42/envelope/",
            ),
            (
                format!("https://o1.ingest.sentry.io/api/42/cron/___MONITOR_SLUG___/{public}/"),
                "https://o1.ingest.sentry.io/api/42/envelope/",
            ),
        ] {
            let dsn = Dsn::of(&SecretValue::new(address.clone().into())).expect(&address);
            assert_eq!((dsn.public.as_str(), dsn.envelope.as_str()), (public, envelope));
        }
        for other in ["", "https://example.com/42", "https://short@example.com/42", "mailto:a@b"] {
            assert!(Dsn::of(&SecretValue::new(other.into())).is_none(), "{other}");
        }
    }

    #[tokio::test]
    async fn preflight_names_what_stands_in_the_way_and_changes_nothing() {
        let bench = Bench::new();
        bench.twin.make_key("kw-0-1");
        let said = async |bench: &Bench| {
            let found = bench.issuer.preflight().await.unwrap();
            found.into_iter().map(|finding| finding.message).collect::<Vec<_>>()
        };
        let notes = ["the project has 1 client keys", "keys of a rotation exist: `kw-0-1`"];
        assert_eq!(said(&bench).await, notes);
        bench.twin.restrict(&["project:read"]);
        let lacks = [
            "the token may not make keys: it lacks `project:write`",
            "the token may not delete keys: it lacks `project:admin`",
        ];
        assert_eq!(said(&bench).await, [lacks, notes].concat());
        bench.twin.restrict(&["org:read"]);
        assert_eq!(
            said(&bench).await,
            [
                "issuer `sentry` answered 403: is the token valid, and has it the scope `project:read`?"
            ]
        );
        assert!(bench.twin.faults().seen().iter().all(|request| request.method == "GET"));
        let elsewhere = Bench::with(TwinOptions::default(), json!({ "project": "other" }));
        assert_eq!(
            said(&elsewhere).await,
            ["issuer `sentry` answered 404: is there a project `other` in `shop`?"]
        );
    }

    #[tokio::test]
    async fn h115_no_text_of_an_answer_is_repeated() {
        let bench = Bench::new();
        bench.script(vec![Rule::every("*", status(400, Echo::EchoKey))]);
        let id = IssuedId::new("0".repeat(32));
        for refusal in [
            refusal(bench.mint("kw-1-1", None).await),
            refusal(bench.issuer.list("").await),
            refusal(bench.issuer.revoke(&id).await),
        ] {
            assert_eq!(refusal.message, "issuer `sentry` answered 400");
        }
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused() {
        let build = |changes: Value| {
            let config = json!({
                "organization": "shop", "project": "backend", "auth_token": { "env": "TOKEN" },
            });
            let config: Config = serde_json::from_value(taken_over(config, changes)).unwrap();
            config.build(&Context::at("/")).err().map(|refusal| refusal.kind)
        };
        assert_eq!(build(json!({ "base_url": "https://de.sentry.io" })), None);
        for wrong in [
            json!({ "project": "" }),
            json!({ "organization": "" }),
            json!({ "base_url": "http://sentry.example.com" }),
        ] {
            assert_eq!(build(wrong.clone()), Some(RefusalKind::Unsupported), "{wrong}");
        }
    }
}
