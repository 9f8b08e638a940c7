//! `anthropic`: keys that a person makes in the Console, and that the API finds, switches off and archives.
//!
//! No call of the API makes a key, so a mint says what to click and under which name, and takes the value on a hidden prompt.
//! The id of the key is the new one in the list whose hint shows the ends of that value; where it was given another name, it is
//! given the right one. A key that was made under the right name, and whose value never came, is found by it, made inactive and
//! archived (H04); one under another name is not found.
//!
//! A key is suspended by being inactive. It is ended by being archived, which nothing says can be undone: it is final here.
//!
//! Without an admin key a person does all of it, as with `manual`. An id is then the name of the key, and such an id is still
//! understood once there is an admin key.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::facts::{Authority, IssuerFacts, LastUsedFacts, Observe, ValueOrigin};
use keywheel_core::plan::Label;
use keywheel_core::planted;
use keywheel_core::secret::{Credential, SecretValue};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{
    Audit, Entry, Identity, Issuer, LastUsed, Live, Mint, Minted, Suspend, Usage, Verdict,
};
use keywheel_driver::{CallError, Duration, Finding, Refusal, RefusalKind, SecretReference};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::manual;
use crate::api::{
    Answer, Api, MOST_PAGES, is_about, known_by_ends, may_pass, moment, now, plain, shows,
    unsupported,
};
use crate::guided::{Format, Guided};
use crate::http::Effect;
use crate::{Build, Context, reference};

const TARGET: &str = "issuer `anthropic`";
const OFFICIAL: &str = "https://api.anthropic.com";

/// The version of the API that this driver was written for.
const VERSION: &str = "2023-06-01";

/// What the label of every mint of ours begins with.
const OURS: &str = "kw-";

/// How ids of keys begin; any other id is the name of a key.
const ID: &str = "apikey_";

/// How often a person is asked for the value of one key.
const TIMES: usize = 3;

/// How often the list is read before a value counts as one that it does not show.
const LOOKS: u64 = 10;

/// The longest time that a person waits for that.
const LOOKING: Span = Span::seconds(10);

const MINUTE: Span = Span::minutes(1);
const HOUR: Span = Span::hours(1);
const WEEK: Span = Span::days(7);

/// An API key at Anthropic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where an admin key is read; without one, a person finds and ends keys too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_key: Option<SecretReference>,
    /// The id of the workspace, `wrkspc_…`, if keys of no other one may be touched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_id: Option<String>,
    /// Where the API is, if not at the official address; HTTPS, or a loopback address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// When a person lets a new key end by itself; as the key in use does, where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<Duration>,
    /// How long a person is given for one step; `15m` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<Duration>,
    /// What shows whether the former key is still in use.
    #[serde(default)]
    pub usage: Shows,
    /// How exact and how late the issuer's last-used data are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used: Option<LastUsedConfig>,
    /// How long a new key may be refused, and an ended one accepted; `5m` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub propagation: Option<Duration>,
    /// How far behind the list of keys may be; `1m` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settle_for: Option<Duration>,
}

/// What shows whether the former key is still in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shows {
    /// The usage report, which counts messages.
    #[default]
    Report,
    /// Nothing: the former key ends with soak and rollback window, whether it was used or not.
    Nothing,
}

/// How exact and how late the issuer's last-used data are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LastUsedConfig {
    /// How long after a use it shows.
    pub lag: Duration,
    /// How coarse its times are; at least `1m`.
    pub granularity: Duration,
}

impl Config {
    fn within(&self) -> Span {
        self.within.map_or(Span::minutes(15), Duration::span)
    }

    fn settle_for(&self) -> Span {
        self.settle_for.map_or(MINUTE, Duration::span)
    }

    /// The report shows a use after minutes, and counts by the minute; no source promises either.
    fn last_used(&self) -> LastUsedFacts {
        let configured = |config: LastUsedConfig| LastUsedFacts {
            lag: config.lag.span(),
            granularity: config.granularity.span(),
        };
        let usual = LastUsedFacts { lag: Span::minutes(15), granularity: Span::minutes(5) };
        self.last_used.map_or(usual, configured)
    }

    /// Returns the issuer that is a person in everything.
    fn by_hand(&self) -> manual::Config {
        manual::Config {
            provider: Some(manual::Provider::Anthropic),
            base_url: self.base_url.clone(),
            within: self.within,
            propagation: self.propagation,
            ..manual::Config::default()
        }
    }
}

impl Build for Config {
    type Driver = dyn Issuer;

    fn build(&self, context: &Context) -> Result<Arc<dyn Issuer>, Refusal> {
        if self.last_used().granularity < MINUTE {
            return Err(unsupported(
                "`last_used.granularity` must be at least `1m`: the issuer counts whole minutes",
            ));
        }
        let by_hand = self.by_hand().build_as(TARGET, context)?;
        let Some(admin_key) = &self.admin_key else { return Ok(by_hand) };
        Ok(Arc::new(Anthropic {
            admin_key: reference::from_root(admin_key, context),
            config: self.clone(),
            api: Api::new(TARGET, self.base_url.as_deref().unwrap_or(OFFICIAL))?,
            guided: Guided(Arc::clone(&context.guide)),
        }))
    }
}

struct Anthropic {
    admin_key: SecretReference,
    config: Config,
    api: Api,
    guided: Guided,
}

#[async_trait]
impl Issuer for Anthropic {
    fn facts(&self) -> IssuerFacts {
        IssuerFacts {
            label: true,
            suspend: true,
            destroy: true,
            last_used: (self.config.usage == Shows::Report).then(|| self.config.last_used()),
            propagation: self.config.propagation.map_or(Span::minutes(5), Duration::span),
            settle_for: self.config.settle_for(),
            by_hand: Some(self.config.within()),
            only_mint_by_hand: true,
            ..IssuerFacts::new(ValueOrigin::Theirs, Observe::Label, Authority::Issuer)
        }
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        let admin = self.admin().await?;
        let mut findings = vec![
            self.guided.finding("you are asked to make a key; the former one is ended for you"),
        ];
        let keys = match self.keys(&admin).await {
            Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::Permission => {
                findings.push(Finding::blocks(refusal.message));
                return Ok(findings);
            }
            keys => keys?,
        };
        let live = keys.iter().filter(|key| key.is_live());
        let ours = live.filter(|key| key.name.starts_with(OURS));
        let names: Vec<String> = ours.map(|key| format!("`{}`", plain(&key.name))).collect();
        if !names.is_empty() {
            let names = names.join(", ");
            findings.push(Finding::note(format!("keys of a rotation exist: {names}")));
        }
        Ok(findings)
    }

    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        self.guided.somebody()?;
        let admin = self.admin().await?;
        let before = self.keys(&admin).await?;
        let previous = request.previous.and_then(|id| named(&before, id));
        let known: BTreeSet<&str> = before.iter().map(|key| key.id.as_str()).collect();
        let label = &request.label.0;
        let (mut steps, mut last) = (self.steps(label, previous), "");
        for _ in 0..TIMES {
            let value = self.guided.value(steps, label, &FORMAT, request.in_use).await?;
            match self.told_by(&admin, &value, label, &known).await? {
                Ok(key) => return self.minted(&admin, key, value, label, previous).await,
                Err(why) => (steps, last) = (vec![format!("that value is not taken: {why}")], why),
            }
        }
        let message =
            format!("no value that was given for `{label}`, which may exist, was taken: {last}");
        Err(CallError::Unknown(message))
    }

    /// Says `CannotTell` for 403, 429 and 5xx, and for a 401 that is about anything but the key: a live key gets them too.
    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        let value =
            credential.value().ok_or_else(|| unsupported("the credential has no field `value`"))?;
        let key = self.headers(value, "credential")?;
        let mut url = self.api.url(&["v1", "models"]);
        url.query_pairs_mut().append_pair("limit", "1");
        Ok(verdict(&self.api.send(Method::GET, url, &key, None).await?))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Live>, CallError> {
        let mut keys = self.keys(&self.admin().await?).await?;
        keys.retain(|key| key.is_live() && key.name.starts_with(prefix));
        let live = |key: Key| Live { issued: IssuedId::new(key.id), label: Some(Label(key.name)) };
        Ok(keys.into_iter().map(live).collect())
    }

    /// Makes a key inactive, and then archives it.
    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError> {
        let admin = self.admin().await?;
        match self.look(&admin, id).await? {
            None => Ok(()),
            Some(key) if !key.is_live() => Ok(()),
            Some(key) => {
                if key.status == "active" {
                    self.set(&admin, &key, "inactive").await?;
                }
                self.set(&admin, &key, "archived").await
            }
        }
    }

    async fn identify(&self, credential: &Credential) -> Result<Identity, CallError> {
        let value = credential.value().and_then(|value| std::str::from_utf8(value.expose()).ok());
        let Some(value) = value else { return Ok(Identity::Unknown) };
        let mut keys = self.keys(&self.admin().await?).await?;
        keys.retain(|key| key.is_live() && shows(&key.partial_key_hint, value));
        let known = |key: &Key| (IssuedId::new(&key.id), moment(&key.created_at));
        let found: Vec<_> = keys.iter().map(known).collect();
        Ok(known_by_ends(&found, "the list shows one key whose hint has the same ends"))
    }

    fn suspend(&self) -> Option<&dyn Suspend> {
        Some(self)
    }

    fn usage(&self) -> Option<&dyn Usage> {
        (self.config.usage == Shows::Report).then_some(self as &dyn Usage)
    }

    fn audit(&self) -> Option<&dyn Audit> {
        Some(self)
    }
}

#[async_trait]
impl Suspend for Anthropic {
    async fn suspend(&self, id: &IssuedId) -> Result<(), CallError> {
        self.switch(id, "inactive").await
    }

    async fn resume(&self, id: &IssuedId) -> Result<(), CallError> {
        self.switch(id, "active").await
    }
}

#[async_trait]
impl Usage for Anthropic {
    /// Reads the usage report by the hour for a week, then the last of those hours by the minute. A minute stands for its last
    /// moment, so that no use is taken for an older one.
    async fn last_used(&self, id: &IssuedId) -> Result<LastUsed, CallError> {
        let admin = self.admin().await?;
        let key = self.known(&admin, id).await?;
        let now = now();
        let hours = self.buckets(&admin, &key.id, Width::Hour, less(now, WEEK), now).await?;
        let tokens: u64 = hours.iter().map(|bucket| bucket.tokens_of(&key.id)).sum();
        let Some(hour) = hours.iter().rfind(|bucket| bucket.tokens_of(&key.id) > 0) else {
            return Ok(LastUsed { at: None, detail: None });
        };
        let start = moment(&hour.starting_at).unwrap_or(less(now, HOUR));
        let minutes = self.buckets(&admin, &key.id, Width::Minute, start, start + HOUR).await?;
        let latest = minutes.iter().rfind(|bucket| bucket.tokens_of(&key.id) > 0).unwrap_or(hour);
        let at = moment(&latest.ending_at).unwrap_or(now).min(now);
        Ok(LastUsed { at: Some(at), detail: Some(format!("{tokens} tokens in 7 days")) })
    }
}

#[async_trait]
impl Audit for Anthropic {
    async fn since(&self, id: &IssuedId, since: Timestamp) -> Result<Vec<Entry>, CallError> {
        let admin = self.admin().await?;
        let key = self.known(&admin, id).await?;
        let by = key.created_by.as_ref().map(|by| format!(" by `{}`", plain(&by.id)));
        let (by, name) = (by.unwrap_or_default(), plain(&key.name));
        let mut entries = vec![Entry {
            at: moment(&key.created_at),
            what: format!("it was made{by}, with the name `{name}`"),
        }];
        match self.buckets(&admin, &key.id, Width::Day, since, now()).await {
            Ok(days) => entries.extend(days.iter().filter_map(|day| day.entry(&key.id))),
            Err(error) => entries.push(Entry {
                at: None,
                what: format!("the usage report could not be read: {error}"),
            }),
        }
        entries.retain(|entry| entry.at.is_none_or(|at| at >= since));
        entries.sort_by_key(|entry| entry.at);
        let what = format!(
            "it is {} now; the issuer does not tell who changed that, or when",
            plain(&key.status)
        );
        entries.push(Entry { at: None, what });
        Ok(entries)
    }
}

impl Anthropic {
    /// Reads the admin key, which may run a program, and makes the headers of it.
    async fn admin(&self) -> Result<HeaderMap, CallError> {
        let value = reference::read(&self.admin_key).await?;
        Ok(self.headers(&value, "admin key")?)
    }

    fn headers(&self, value: &SecretValue, what: &str) -> Result<HeaderMap, Refusal> {
        let mut headers = self.api.header(HeaderName::from_static("x-api-key"), value, what)?;
        let version = HeaderName::from_static("anthropic-version");
        headers.insert(version, HeaderValue::from_static(VERSION));
        Ok(headers)
    }

    fn keys_url(&self) -> Url {
        self.api.url(&["v1", "organizations", "api_keys"])
    }

    fn key_url(&self, id: &str) -> Url {
        self.api.url(&["v1", "organizations", "api_keys", id])
    }

    async fn read<T: DeserializeOwned>(&self, admin: &HeaderMap, url: Url) -> Result<T, CallError> {
        let answer = self.api.send(Method::GET, url, admin, None).await?;
        if answer.status.is_success() {
            answer.decode()
        } else {
            Err(error(&answer, Effect::Reads))
        }
    }

    /// Reads every key of the organisation, whatever its status is.
    async fn keys(&self, admin: &HeaderMap) -> Result<Vec<Key>, CallError> {
        let (mut keys, mut after) = (Vec::new(), None);
        for _ in 0..MOST_PAGES {
            let mut url = self.keys_url();
            url.query_pairs_mut()
                .append_pair("limit", "1000")
                .extend_pairs(after.iter().map(|id| ("after_id", id)));
            let page: Page = self.read(admin, url).await?;
            keys.extend(page.data);
            if !page.has_more {
                return Ok(keys);
            }
            if page.last_id.is_none() || page.last_id == after {
                break;
            }
            after = page.last_id;
        }
        Err(self.api.endless("the list of keys"))
    }

    /// Finds a key by its id, or by its name where it was made while there was no admin key.
    async fn find(&self, admin: &HeaderMap, id: &IssuedId) -> Result<Option<Key>, CallError> {
        if !id.id.starts_with(ID) {
            let keys = self.keys(admin).await?;
            let named = keys.iter().filter(|key| key.name == id.id && key.is_live());
            return match named.collect::<Vec<_>>().as_slice() {
                [] => self.gone(id, &keys),
                [key] => Ok(Some((*key).clone())),
                several => {
                    let message = format!("{} keys are named `{}`", several.len(), id.id);
                    Err(unsupported(&message).into())
                }
            };
        }
        match self.read::<Key>(admin, self.key_url(&id.id)).await {
            Ok(key) if is_about(&key.id, &id.id) => Ok(Some(key)),
            Ok(_) => Err(self.api.shows_another()),
            Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::NotFound => {
                match planted!("wrong_organisation_is_death") {
                    true => Ok(None),
                    false => self.gone(id, &self.keys(admin).await?),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Says that a key is gone, provided that the list is one in which it could be: an admin key of another organisation is
    /// accepted too, and a live key must not pass for a dead one there (H96).
    fn gone(&self, id: &IssuedId, keys: &[Key]) -> Result<Option<Key>, CallError> {
        let shows_ours = |key: &Key| match self.config.workspace_id {
            Some(_) => self.is_inside(key),
            None => key.name.starts_with(OURS) || key.name == id.id,
        };
        if keys.iter().any(shows_ours) || planted!("any_organisation_is_ours") {
            return Ok(None);
        }
        let message = format!(
            "{TARGET} has no key `{id}`, and nothing in its list is ours: is the admin key of another organisation?"
        );
        Err(Refusal::operator(RefusalKind::NotFound, message).into())
    }

    async fn known(&self, admin: &HeaderMap, id: &IssuedId) -> Result<Key, CallError> {
        let none =
            || Refusal::operator(RefusalKind::NotFound, format!("{TARGET} has no key `{id}`"));
        Ok(self.find(admin, id).await?.ok_or_else(none)?)
    }

    /// Looks at a key before it is changed: it must be of the workspace that was configured (H92). One with a label of ours was
    /// made in the wrong place by a person who was asked for it, and can be ended there.
    async fn look(&self, admin: &HeaderMap, id: &IssuedId) -> Result<Option<Key>, CallError> {
        let key = self.find(admin, id).await?;
        match &key {
            Some(key) if !(self.is_inside(key) || key.name.starts_with(OURS)) => {
                if planted!("workspace_not_looked_at") {
                    return Ok(Some(key.clone()));
                }
                let message = format!("key `{}` belongs to {}", key.id, key.workspace());
                Err(unsupported(&message).into())
            }
            _ => Ok(key),
        }
    }

    /// Returns whether a key is of the configured workspace, or of any where none is configured.
    fn is_inside(&self, key: &Key) -> bool {
        let wanted = self.config.workspace_id.as_ref();
        wanted.is_none_or(|wanted| key.workspace_id.as_ref() == Some(wanted))
    }

    async fn switch(&self, id: &IssuedId, status: &str) -> Result<(), CallError> {
        let admin = self.admin().await?;
        let Some(key) = self.look(&admin, id).await? else {
            let message = format!("{TARGET} has no key `{id}`");
            return Err(Refusal::operator(RefusalKind::NotFound, message).into());
        };
        if key.status == status {
            return Ok(());
        }
        if !key.is_live() {
            let message = format!("key `{}` is {}, and stays so", key.id, plain(&key.status));
            return Err(unsupported(&message).into());
        }
        self.set(&admin, &key, status).await
    }

    async fn set(&self, admin: &HeaderMap, key: &Key, status: &str) -> Result<(), CallError> {
        let changed = self.update(admin, &key.id, "status", status).await?;
        match changed.status == status {
            true => Ok(()),
            false => Err(CallError::Unknown(format!("{TARGET} left key `{}` as it was", key.id))),
        }
    }

    async fn update(
        &self,
        admin: &HeaderMap,
        id: &str,
        field: &str,
        to: &str,
    ) -> Result<Key, CallError> {
        let body = json!({ field: to });
        let answer = self.api.send(Method::POST, self.key_url(id), admin, Some(&body)).await?;
        if !answer.status.is_success() {
            return Err(error(&answer, Effect::Changes));
        }
        let changed: Key = answer.decode()?;
        if is_about(&changed.id, id) { Ok(changed) } else { Err(self.api.changed_another()) }
    }

    /// Says what to click, so that the new key can do what the one in use can.
    fn steps(&self, label: &str, previous: Option<&Key>) -> Vec<String> {
        let like = previous.map(|key| {
            format!(
                "make a key in {}, of the same type and for the same account as the key named `{}`",
                key.workspace(),
                plain(&key.name)
            )
        });
        let workspace = self.config.workspace_id.as_ref();
        let like = like.unwrap_or_else(|| match workspace {
            Some(id) => format!("make a key in the workspace `{id}`"),
            None => "make a key in the workspace of the key in use, of the same type and for the same account".into(),
        });
        let expiry = match (self.config.expires_in, previous) {
            (Some(life), _) => format!("let it expire after {}", life.span()),
            (None, Some(Key { expires_at: Some(_), .. })) => {
                "let it expire after as long as the key in use was given".into()
            }
            (None, Some(_)) => "let it never expire".into(),
            (None, None) => "let it expire as the key in use does".into(),
        };
        vec![
            "open the Console of Anthropic as an administrator of the organisation: settings, API keys".into(),
            like,
            expiry,
            format!("name it exactly `{label}`, and leave the key in use as it is"),
        ]
    }

    /// Finds the new key that a value belongs to. The list may be behind, or not be answered, so it is read several times.
    ///
    /// # Errors
    /// Unknown where it could not be read to the end: the key exists, and its value is not kept.
    async fn told_by(
        &self,
        admin: &HeaderMap,
        value: &SecretValue,
        label: &str,
        known: &BTreeSet<&str>,
    ) -> Result<Result<Key, &'static str>, CallError> {
        if value.expose().starts_with(b"sk-ant-admin") {
            return Ok(Err("it is the value of an admin key"));
        }
        let value = std::str::from_utf8(value.expose()).unwrap_or_default();
        let mut failed = None;
        for look in 0..LOOKS {
            if look > 0 {
                tokio::time::sleep(self.config.settle_for().min(LOOKING).part(1, LOOKS).into())
                    .await;
            }
            let mut keys = match self.keys(admin).await {
                Ok(keys) => keys,
                Err(error) if planted!("list_after_value_is_asked_once") => return Err(error),
                Err(error) => {
                    let again = may_pass(&error);
                    failed = Some(error);
                    if again { continue } else { break }
                }
            };
            failed = None;
            keys.retain(|key| shows(&key.partial_key_hint, value));
            let (old, mut new): (Vec<_>, Vec<_>) =
                keys.into_iter().partition(|key| known.contains(key.id.as_str()));
            if new.len() > 1 {
                new.retain(|key| key.name == label);
            }
            match (new.pop(), old.first()) {
                (Some(key), _) if !(self.is_inside(&key) || planted!("any_workspace_is_taken")) => {
                    return Ok(Err(ELSEWHERE));
                }
                (Some(key), _) => return Ok(Ok(key)),
                (None, Some(_)) => return Ok(Err("the list shows a key with it that is older")),
                (None, None) => {}
            }
        }
        match failed {
            None => Ok(Err("the list of the organisation shows no key with it")),
            Some(error) => Err(CallError::Unknown(format!(
                "the key whose value was given for `{label}` was not found, and exists all the same: {error}"
            ))),
        }
    }

    /// Takes a key for the new version, under the right name, and says how it differs from the one in use (H91).
    async fn minted(
        &self,
        admin: &HeaderMap,
        key: Key,
        value: SecretValue,
        label: &str,
        previous: Option<&Key>,
    ) -> Result<Minted, CallError> {
        let mut notes = Vec::new();
        if key.name != label {
            let renamed = self.update(admin, &key.id, "name", label).await;
            notes.push(match renamed {
                Ok(_) => format!("it was named `{}` and is now named `{label}`", plain(&key.name)),
                Err(error) => {
                    format!("it is named `{}`, and keeps that name: {error}", plain(&key.name))
                }
            });
        }
        if key.status != "active" {
            notes.push(format!("it is {}", plain(&key.status)));
        }
        if !planted!("differences_not_told") {
            notes.extend(self.differences(&key, previous));
        }
        Ok(Minted {
            issued: Some(IssuedId::new(&key.id)),
            credential: Some(Credential::of_value(value)),
            expires_at: key.expires_at.as_deref().and_then(moment),
            notes,
        })
    }

    fn differences(&self, key: &Key, previous: Option<&Key>) -> Vec<String> {
        let mut notes = Vec::new();
        let wanted = self.config.expires_in.is_some()
            || previous.is_some_and(|previous| previous.expires_at.is_some());
        match (key.expires_at.is_some(), wanted, previous.is_some()) {
            (false, true, _) => notes.push("it never expires, and it should".into()),
            (true, false, true) => {
                notes.push("it expires by itself, and the key in use does not".into());
            }
            _ => {}
        }
        let Some(previous) = previous else { return notes };
        if key.workspace_id != previous.workspace_id {
            let (this, that) = (key.workspace(), previous.workspace());
            notes.push(format!("it is in {this}, and the key in use in {that}"));
        }
        if key.scope != previous.scope || key.principal != previous.principal {
            notes.push("it is of another type or for another account than the key in use".into());
        }
        notes
    }

    async fn buckets(
        &self,
        admin: &HeaderMap,
        key: &str,
        width: Width,
        start: Timestamp,
        end: Timestamp,
    ) -> Result<Vec<Bucket>, CallError> {
        let (name, limit, millis) = width.of_a_page();
        // Only buckets that begin at the start or later are answered.
        let start = Timestamp::from_millis(start.millis() - start.millis().rem_euclid(millis));
        let (mut buckets, mut page) = (Vec::new(), None);
        for _ in 0..MOST_PAGES {
            let mut url = self.api.url(&["v1", "organizations", "usage_report", "messages"]);
            url.query_pairs_mut()
                .append_pair("starting_at", &text(start))
                .append_pair("ending_at", &text(end + Span::seconds(1)))
                .append_pair("bucket_width", name)
                .append_pair("limit", limit)
                .append_pair("group_by[]", "api_key_id")
                .append_pair("api_key_ids[]", key)
                .extend_pairs(page.iter().map(|page| ("page", page)));
            let report: Report = self.read(admin, url).await?;
            buckets.extend(report.data);
            if !report.has_more {
                buckets.sort_by_key(|bucket: &Bucket| moment(&bucket.starting_at));
                return Ok(buckets);
            }
            if report.next_page.is_none() || report.next_page == page {
                break;
            }
            page = report.next_page;
        }
        Err(self.api.endless("the usage report"))
    }
}

/// How values of keys look; admin keys look so too, and are told apart.
const FORMAT: Format<'static> = Format { prefix: "sk-ant-", min_length: 40, max_length: 512 };

/// What a person is told who made a key in another workspace than the configured one.
const ELSEWHERE: &str = "the key is in another workspace: archive it, and make one under the same name in the workspace that was named";

/// How wide the buckets of a report are.
#[derive(Clone, Copy)]
enum Width {
    Minute,
    Hour,
    Day,
}

impl Width {
    /// Returns its name, the most buckets of a page, and how many milliseconds it has.
    const fn of_a_page(self) -> (&'static str, &'static str, i64) {
        match self {
            Self::Minute => ("1m", "1440", 60_000),
            Self::Hour => ("1h", "168", 3_600_000),
            Self::Day => ("1d", "31", 86_400_000),
        }
    }
}

/// Returns the key that an id names, or that is so named.
fn named<'a>(keys: &'a [Key], id: &IssuedId) -> Option<&'a Key> {
    keys.iter().find(|key| key.id == id.id || (key.name == id.id && key.is_live()))
}

/// What an answer is that is no success, and what to do about it.
fn error(answer: &Answer, effect: Effect) -> CallError {
    let why = match answer.status.as_u16() {
        401 => "the admin key is not accepted",
        402 => "the organisation has a billing problem",
        403 => "the admin key may not do this",
        _ => return answer.error(effect),
    };
    match answer.error(effect) {
        CallError::Refused(mut refusal) => {
            refusal.message.push_str(&format!(": {why}"));
            refusal.into()
        }
        unknown @ CallError::Unknown(_) => unknown,
    }
}

fn verdict(answer: &Answer) -> Verdict {
    let problem = || answer.decode::<ErrorBody>().ok().map(|body| body.error);
    match answer.status.as_u16() {
        // A page of a proxy is no answer of the issuer.
        200 if answer.decode::<Models>().is_ok() => Verdict::Accepted,
        401 | 403 if planted!("a_no_about_anything_is_death") => Verdict::Refused,
        401 if problem().is_some_and(|problem| problem.is_about_the_key()) => Verdict::Refused,
        _ => Verdict::CannotTell(answer.in_words()),
    }
}

fn less(at: Timestamp, span: Span) -> Timestamp {
    Timestamp::from_millis(at.millis().saturating_sub_unsigned(span.as_millis()))
}

fn text(at: Timestamp) -> String {
    jiff::Timestamp::from_second(at.millis().div_euclid(1_000))
        .unwrap_or(jiff::Timestamp::MAX)
        .to_string()
}

#[derive(Deserialize)]
struct Page {
    data: Vec<Key>,
    #[serde(default)]
    has_more: bool,
    last_id: Option<String>,
}

#[derive(Clone, Deserialize)]
struct Key {
    id: String,
    name: String,
    status: String,
    partial_key_hint: String,
    created_at: String,
    created_by: Option<Actor>,
    expires_at: Option<String>,
    workspace_id: Option<String>,
    principal: Option<serde_json::Value>,
    scope: Option<serde_json::Value>,
}

impl Key {
    /// Returns whether it can be used, at once or once it is active again.
    fn is_live(&self) -> bool {
        !["archived", "expired"].contains(&self.status.as_str())
    }

    fn workspace(&self) -> String {
        match &self.workspace_id {
            Some(id) => format!("the workspace `{}`", plain(id)),
            None => "the default workspace".into(),
        }
    }
}

#[derive(Clone, Deserialize)]
struct Actor {
    id: String,
}

#[derive(Deserialize)]
struct Models {
    #[serde(rename = "data")]
    _data: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: Problem,
}

#[derive(Deserialize)]
struct Problem {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    message: String,
}

impl Problem {
    /// A request from a browser is refused with the same type; that says nothing about the key.
    fn is_about_the_key(&self) -> bool {
        self.kind == "authentication_error" && !self.message.contains("CORS")
    }
}

#[derive(Deserialize)]
struct Report {
    data: Vec<Bucket>,
    #[serde(default)]
    has_more: bool,
    next_page: Option<String>,
}

#[derive(Deserialize)]
struct Bucket {
    starting_at: String,
    ending_at: String,
    results: Vec<Used>,
}

impl Bucket {
    fn tokens_of(&self, key: &str) -> u64 {
        let its = self.results.iter().filter(|used| used.api_key_id.as_deref() == Some(key));
        // A row without a token is a use all the same.
        its.map(|used| used.tokens().max(1)).sum()
    }

    fn entry(&self, key: &str) -> Option<Entry> {
        let (tokens, at) = (self.tokens_of(key), moment(&self.ending_at));
        let start = plain(&self.starting_at);
        let what = format!("{tokens} tokens in the day that began at {start}");
        (tokens > 0).then(|| Entry { at: at.map(|at| at.min(now())), what })
    }
}

#[derive(Deserialize)]
struct Used {
    api_key_id: Option<String>,
    #[serde(default)]
    uncached_input_tokens: u64,
    #[serde(default)]
    cache_read_input_tokens: u64,
    #[serde(default)]
    output_tokens: u64,
}

impl Used {
    fn tokens(&self) -> u64 {
        self.uncached_input_tokens + self.cache_read_input_tokens + self.output_tokens
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration as Time;

    use keywheel_driver::conformance::faults::Call;
    use keywheel_driver::conformance::issuer::{Subject, run};
    use keywheel_driver::guide::{Guide, Question};
    use keywheel_driver::{Remedy, Severity};
    use keywheel_twins::anthropic::{ConsoleKey, HandMade, Twin, TwinOptions};
    use keywheel_twins::fault::{Echo, Fault, Nth, Rule};
    use serde_json::Value;

    use super::*;
    use crate::issuer::bench::{
        Script, changes_are_known_later, credential, is_unknown, mint, one_id, refusal, status,
        suspend_is_made_again, taken_over, unclear_answers_prove_nothing, written,
    };

    /// Somebody in the console, who clicks as they are told unless a test says otherwise.
    struct Person {
        twin: Arc<Twin>,
        told: Mutex<Vec<String>>,
        /// What to make instead of what they are told.
        makes: Mutex<Option<ConsoleKey>>,
        /// The next answers instead of the value of what they made.
        answers: Mutex<Vec<String>>,
        /// Leaves without an answer once, after the key is made.
        leaves: Mutex<bool>,
        away: bool,
    }

    #[async_trait]
    impl Guide for Person {
        fn absence(&self) -> Option<Refusal> {
            self.away.then(|| Refusal::operator(RefusalKind::NeedsPerson, "needs a person"))
        }

        async fn ask(&self, question: &Question<'_>) -> Option<SecretValue> {
            assert!(question.hidden);
            self.told.lock().unwrap().extend(question.steps.iter().cloned());
            if let Some(answer) = self.answers.lock().unwrap().pop() {
                return Some(SecretValue::new(answer.into_bytes()));
            }
            let steps = self.told.lock().unwrap().join("\n");
            let name = steps.rsplit("name it exactly `").next().unwrap();
            let name = name.split('`').next().unwrap().to_owned();
            let key = self.makes.lock().unwrap().take();
            let key = key.unwrap_or(ConsoleKey { name, ..ConsoleKey::default() });
            let made = self.twin.console(&key);
            let leaves = std::mem::take(&mut *self.leaves.lock().unwrap());
            (!leaves).then(|| SecretValue::new(format!(" {} ", made.value).into_bytes()))
        }
    }

    /// A twin, a person, and the issuer that is configured for both.
    struct Bench {
        twin: Arc<Twin>,
        person: Arc<Person>,
        issuer: Arc<dyn Issuer>,
        _folder: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            Self::with(TwinOptions::default(), json!({}))
        }

        fn with(options: TwinOptions, changes: Value) -> Self {
            Self::before(options, changes, false)
        }

        fn before(options: TwinOptions, changes: Value, away: bool) -> Self {
            let twin = Arc::new(Twin::start(options).unwrap());
            let person = Arc::new(Person {
                twin: Arc::clone(&twin),
                told: Mutex::default(),
                makes: Mutex::default(),
                answers: Mutex::default(),
                leaves: Mutex::default(),
                away,
            });
            let folder = written(twin.admin_key());
            let config = json!({
                "admin_key": { "file": "admin.key" },
                "base_url": twin.base_url(),
            });
            let config: Config = serde_json::from_value(taken_over(config, changes)).unwrap();
            let guide: Arc<dyn Guide> = Arc::<Person>::clone(&person);
            let context = Context { guide, ..Context::at(folder.path()) };
            let issuer = config.build(&context).unwrap_or_else(|e| panic!("{e}"));
            Self { twin, person, issuer, _folder: folder }
        }

        fn script(&self, rules: Vec<Rule>) {
            self.twin.faults().set(rules).unwrap();
        }

        fn makes(&self, key: ConsoleKey) {
            *self.person.makes.lock().unwrap() = Some(key);
        }

        fn told(&self) -> String {
            self.person.told.lock().unwrap().join("\n")
        }

        async fn mint(&self, label: &str) -> Result<Minted, CallError> {
            mint(&*self.issuer, label, None, None).await
        }

        async fn minted(&self, label: &str) -> (IssuedId, Credential) {
            let minted = self.mint(label).await.unwrap_or_else(|e| panic!("{e}"));
            (minted.issued.unwrap(), minted.credential.unwrap())
        }

        async fn succeed(&self, previous: &HandMade) -> Minted {
            let (id, in_use) = (id_of(previous), credential(&previous.value));
            let minted = mint(&*self.issuer, "kw-1-1", Some(&id), Some(&in_use)).await;
            minted.unwrap_or_else(|e| panic!("{e}"))
        }

        async fn listed(&self, prefix: &str) -> Vec<String> {
            let live = self.issuer.list(prefix).await.unwrap_or_else(|e| panic!("{e}"));
            live.into_iter().map(|live| live.issued.id).collect()
        }

        async fn verify(&self, credential: &Credential) -> Verdict {
            self.issuer.verify(credential).await.unwrap_or_else(|e| panic!("{e}"))
        }

        fn status(&self, id: &IssuedId) -> &'static str {
            let keys = self.twin.keys();
            keys.iter().find(|key| key.id == id.id).map(|key| key.status).unwrap()
        }
    }

    fn id_of(key: &HandMade) -> IssuedId {
        IssuedId::new(&key.id)
    }

    #[tokio::test]
    async fn the_issuer_keeps_its_contract() {
        let bench = Bench::new();
        let leave = || *bench.person.leaves.lock().unwrap() = true;
        let garbage = credential("sk-ant-api03-garbage");
        let faults = [200, 302, 400, 401, 402, 403, 404, 409, 413, 422, 429, 500, 529]
            .map(|code| status(code, Echo::EchoKey));
        let broken: Vec<Bench> = faults
            .into_iter()
            .chain([status(200, Echo::Html), status(401, Echo::Html), Fault::Cut])
            .map(|fault| {
                let broken = Bench::new();
                broken.script(vec![Rule::every("*", fault)]);
                broken
            })
            .collect();
        let mut canaries: Vec<Credential> =
            broken.iter().map(|broken| credential(broken.twin.admin_key())).collect();
        canaries.push(credential("sk-ant-api03-kwcanary-5e1f-kwcanary-5e1f"));
        run(&Subject {
            issuer: &*bench.issuer,
            prefix: "kw-suite-",
            garbage: &garbage,
            lose_next_answer: Some(&leave),
            broken: &broken.iter().map(|broken| &*broken.issuer).collect::<Vec<_>>(),
            canaries: &canaries.iter().collect::<Vec<_>>(),
        })
        .await;
        assert!(bench.twin.keys().iter().all(|key| key.status == "archived"));
        assert!(broken.iter().all(|broken| broken.twin.faults().unfired().is_empty()));
    }

    #[tokio::test]
    async fn a_person_is_told_what_the_key_in_use_is_like() {
        let bench = Bench::new();
        let previous = bench.twin.console(&ConsoleKey {
            name: "backend".into(),
            workspace: Some("wrkspc_1".into()),
            expires_in: None,
        });
        bench.succeed(&previous).await;
        let told = bench.told();
        for words in [
            "make a key in the workspace `wrkspc_1`, of the same type and for the same account as the key named `backend`",
            "let it never expire",
            "name it exactly `kw-1-1`, and leave the key in use as it is",
        ] {
            assert!(told.contains(words), "{told}");
        }
        let other = Bench::with(
            TwinOptions::default(),
            json!({ "workspace_id": "wrkspc_2", "expires_in": "90d" }),
        );
        let workspace = Some("wrkspc_2".into());
        other.makes(ConsoleKey { name: "kw-1-1".into(), workspace, expires_in: None });
        other.minted("kw-1-1").await;
        let told = other.told();
        assert!(told.contains("in the workspace `wrkspc_2`"), "{told}");
        assert!(told.contains("let it expire after 90 d"), "{told}");
    }

    #[tokio::test]
    async fn h92_no_fault_of_the_provider_does_harm() {
        let bench = Bench::with(TwinOptions::default(), json!({ "settle_for": "100ms" }));
        let operations = [
            (Call::Look, "get_api_key", &["/id"][..]),
            (Call::List, "list_api_keys", &[][..]),
            (Call::Switch, "update_api_key", &["/id"][..]),
            (Call::End, "update_api_key", &["/id"][..]),
        ];
        let side = Script {
            faults: bench.twin.faults(),
            operations: &operations,
            names: &one_id,
            live: &|label| bench.twin.live(label).len(),
        };
        assert_eq!(side.does_no_harm(&*bench.issuer, false).await, 87);
    }

    #[tokio::test]
    async fn h04_a_key_whose_value_never_came_is_found_by_its_name_and_archived() {
        let bench = Bench::new();
        *bench.person.leaves.lock().unwrap() = true;
        assert!(is_unknown(&bench.mint("kw-1-1").await));
        let [orphan] = &bench.listed("kw-1-").await[..] else { panic!() };
        let orphan = IssuedId::new(orphan);
        bench.issuer.revoke(&orphan).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(bench.status(&orphan), "archived");
        assert_eq!(bench.listed("kw-1-").await, [""; 0]);
        let updates = bench.twin.faults().seen();
        let updates = updates.iter().filter(|seen| seen.operation == Some("update_api_key"));
        assert_eq!(updates.count(), 2, "it is inactive before it is archived");
    }

    #[tokio::test]
    async fn h04_a_key_with_another_name_is_told_by_its_value_and_gets_the_right_one() {
        let bench = Bench::new();
        bench.makes(ConsoleKey { name: "kw-1-l".into(), ..ConsoleKey::default() });
        let minted = bench.mint("kw-1-1").await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(minted.notes, ["it was named `kw-1-l` and is now named `kw-1-1`"]);
        assert_eq!(bench.listed("kw-1-1").await, [minted.issued.unwrap().id]);
        bench.makes(ConsoleKey { name: "other".into(), ..ConsoleKey::default() });
        bench.script(vec![Rule::first("update_api_key", Fault::status(403))]);
        let minted = bench.mint("kw-1-2").await.unwrap_or_else(|e| panic!("{e}"));
        assert!(minted.notes[0].starts_with("it is named `other`, and keeps that name: "));
    }

    #[tokio::test]
    async fn a_value_of_another_key_is_asked_for_again() {
        let bench = Bench::new();
        let old = bench.twin.make_key("backend");
        let admin = bench.twin.admin_key().to_owned();
        *bench.person.answers.lock().unwrap() = vec![admin, old.value];
        let (id, credential) = bench.minted("kw-1-1").await;
        assert_eq!(
            (bench.verify(&credential).await, bench.status(&id)),
            (Verdict::Accepted, "active")
        );
        let told = bench.told();
        assert!(
            told.contains("that value is not taken: the list shows a key with it that is older")
        );
        assert!(told.contains("that value is not taken: it is the value of an admin key"));
    }

    #[tokio::test]
    async fn a_list_that_is_behind_is_read_again() {
        let options = TwinOptions { list_lag: Time::from_secs(1), ..TwinOptions::default() };
        let bench = Bench::with(options, json!({}));
        let (id, _) = bench.minted("kw-1-1").await;
        assert_eq!(bench.status(&id), "active");
    }

    #[tokio::test]
    async fn a_value_that_no_list_shows_may_be_a_key() {
        let bench = Bench::with(TwinOptions::default(), json!({ "settle_for": "100ms" }));
        let wrong = format!("sk-ant-api03-{}AA", "x".repeat(93));
        *bench.person.answers.lock().unwrap() = vec![wrong; TIMES];
        let error = bench.mint("kw-1-1").await.map(drop);
        let message = "no value that was given for `kw-1-1`, which may exist, was taken: the list of the organisation shows no key with it";
        assert_eq!(error, Err(CallError::Unknown(message.into())));
    }

    #[tokio::test]
    async fn h91_what_the_new_key_has_and_the_one_in_use_has_not_is_named() {
        let life = Some(Time::from_secs(3_600));
        let key = |workspace: Option<&str>, expires_in| ConsoleKey {
            name: "kw-1-1".into(),
            workspace: workspace.map(str::to_owned),
            expires_in,
        };
        for (previous, new, notes) in [
            (key(None, None), key(None, None), vec![]),
            (key(None, life), key(None, life), vec![]),
            (key(None, life), key(None, None), vec!["it never expires, and it should"]),
            (
                key(None, None),
                key(None, life),
                vec!["it expires by itself, and the key in use does not"],
            ),
            (
                key(Some("wrkspc_1"), None),
                key(None, None),
                vec![
                    "it is in the default workspace, and the key in use in the workspace `wrkspc_1`",
                    "it is of another type or for another account than the key in use",
                ],
            ),
        ] {
            let bench = Bench::new();
            let previous = bench.twin.console(&ConsoleKey { name: "backend".into(), ..previous });
            bench.makes(new);
            assert_eq!(bench.succeed(&previous).await.notes, notes);
        }
    }

    #[tokio::test]
    async fn h92_a_new_key_of_another_workspace_is_not_taken_and_can_be_ended() {
        let bench = Bench::with(TwinOptions::default(), json!({ "workspace_id": "wrkspc_1" }));
        let strays = bench.mint("kw-1-1").await;
        let message = format!(
            "no value that was given for `kw-1-1`, which may exist, was taken: {ELSEWHERE}"
        );
        assert_eq!(strays.map(drop), Err(CallError::Unknown(message)));
        let strays = bench.listed("kw-1-").await;
        assert_eq!(strays.len(), TIMES);
        for stray in strays {
            bench.issuer.revoke(&IssuedId::new(stray)).await.unwrap_or_else(|e| panic!("{e}"));
        }
        assert_eq!(bench.listed("kw-1-").await, [""; 0]);
        assert!(bench.told().contains("that value is not taken: the key is in another workspace"));
    }

    #[tokio::test]
    async fn h04_a_list_that_is_not_answered_after_the_value_came_is_read_again() {
        let second =
            |fault: Fault| Rule { nth: Nth::Number(2), ..Rule::first("list_api_keys", fault) };
        for fault in [Fault::status(429), Fault::status(529), Fault::Cut] {
            let bench = Bench::with(TwinOptions::default(), json!({ "settle_for": "1s" }));
            bench.script(vec![second(fault.clone())]);
            let (id, _) = bench.minted("kw-1-1").await;
            assert_eq!(bench.twin.faults().unfired(), [], "{fault:?}");
            assert_eq!(bench.listed("kw-1-").await, [id.id], "{fault:?}");
        }
        for fault in [Fault::status(401), Fault::busy()] {
            let bench = Bench::new();
            bench.script(vec![second(fault.clone())]);
            assert!(is_unknown(&bench.mint("kw-1-1").await), "{fault:?}");
            assert_eq!(bench.twin.live("kw-1-1").len(), 1);
            let asked = bench.twin.faults().seen().len();
            assert_eq!(asked, 2, "it is not asked again before its time: {fault:?}");
        }
    }

    #[tokio::test]
    async fn where_nobody_is_there_nobody_is_told_anything() {
        let bench = Bench::before(TwinOptions::default(), json!({}), true);
        assert_eq!(refusal(bench.mint("kw-1-1").await).kind, RefusalKind::NeedsPerson);
        assert_eq!((bench.told(), bench.twin.keys()), (String::new(), Vec::new()));
        let key = bench.twin.make_key("kw-0-1");
        bench.issuer.revoke(&id_of(&key)).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(bench.status(&id_of(&key)), "archived", "only a mint takes a person");
    }

    #[tokio::test]
    async fn a_key_is_made_inactive_and_active_again_until_it_is_archived() {
        let bench = Bench::new();
        let (id, credential) = bench.minted("kw-1-1").await;
        let suspend = bench.issuer.suspend().unwrap();
        for _ in 0..2 {
            suspend.suspend(&id).await.unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(bench.verify(&credential).await, Verdict::Refused);
        }
        assert_eq!(bench.listed("kw-1-").await, [id.id.as_str()]);
        for _ in 0..2 {
            suspend.resume(&id).await.unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(bench.verify(&credential).await, Verdict::Accepted);
        }
        for _ in 0..2 {
            bench.issuer.revoke(&id).await.unwrap_or_else(|e| panic!("{e}"));
        }
        let refusal = refusal(suspend.resume(&id).await);
        assert!(refusal.message.ends_with("is archived, and stays so"), "{refusal}");
    }

    #[tokio::test]
    async fn a_switch_without_an_answer_is_unknown_and_set_when_it_is_asked_again() {
        for fault in [Fault::Cut, Fault::status(529), status(200, Echo::Html), Fault::status(200)] {
            let bench = Bench::new();
            let minted = bench.minted("kw-1-1").await;
            let (issuer, faults) = (&*bench.issuer, bench.twin.faults());
            suspend_is_made_again(issuer, faults, &minted, ("update_api_key", fault)).await;
        }
    }

    #[tokio::test]
    async fn h96_each_answer_to_an_archive_has_one_meaning() {
        for (operation, code, done) in [
            ("get_api_key", 404, true),
            ("get_api_key", 401, false),
            ("get_api_key", 403, false),
            ("get_api_key", 500, false),
            ("update_api_key", 400, false),
            ("update_api_key", 401, false),
            ("update_api_key", 403, false),
            ("update_api_key", 409, false),
            ("update_api_key", 429, false),
        ] {
            let bench = Bench::new();
            let (id, _) = bench.minted("kw-1-1").await;
            bench.script(vec![Rule::first(operation, Fault::status(code))]);
            let outcome = bench.issuer.revoke(&id).await;
            assert_eq!(bench.twin.faults().unfired(), [], "{operation} {code}");
            assert_eq!(outcome.is_ok(), done, "{operation} {code}: {outcome:?}");
            assert!(!is_unknown(&outcome), "{operation} {code}: {outcome:?}");
            bench.issuer.revoke(&id).await.unwrap_or_else(|e| panic!("{operation} {code}: {e}"));
            assert_eq!(bench.status(&id), "archived");
        }
        for (nth, fault) in [
            (1, Fault::status(500)),
            (2, Fault::status(529)),
            (2, Fault::Cut),
            (2, status(200, Echo::Html)),
        ] {
            let bench = Bench::new();
            let (id, _) = bench.minted("kw-1-1").await;
            let rule = Rule::first("update_api_key", fault.clone());
            bench.script(vec![Rule { nth: Nth::Number(nth), ..rule }]);
            assert!(is_unknown(&bench.issuer.revoke(&id).await), "{nth} {fault:?}");
            bench.issuer.revoke(&id).await.unwrap_or_else(|e| panic!("{nth} {fault:?}: {e}"));
            assert_eq!(bench.status(&id), "archived");
        }
    }

    #[tokio::test]
    async fn h96_a_key_of_another_organisation_does_not_pass_for_a_dead_one() {
        let bench = Bench::new();
        let (id, credential) = bench.minted("kw-1-1").await;
        bench.script(vec![
            Rule::first("get_api_key", Fault::status(404)),
            Rule::first("list_api_keys", Fault::status(401)),
        ]);
        assert_eq!(refusal(bench.issuer.revoke(&id).await).kind, RefusalKind::Permission);
        assert_eq!(bench.verify(&credential).await, Verdict::Accepted);
    }

    #[tokio::test]
    async fn h96_an_admin_key_that_another_organisation_accepts_shows_no_key_as_dead() {
        for workspace in [json!({}), json!({ "workspace_id": "wrkspc_1" })] {
            let elsewhere = Bench::with(TwinOptions::default(), workspace);
            elsewhere.twin.make_key("backend");
            let bench = Bench::new();
            let (stray, credential) = bench.minted("kw-1-1").await;
            for id in [stray, IssuedId::new("kw-1-1")] {
                let refusal = refusal(elsewhere.issuer.revoke(&id).await);
                let why = "is the admin key of another organisation?";
                assert!(refusal.message.ends_with(why), "{refusal}");
            }
            assert_eq!(bench.verify(&credential).await, Verdict::Accepted);
        }
    }

    #[tokio::test]
    async fn h07_an_archive_that_failed_is_done_when_it_is_asked_again() {
        let bench = Bench::new();
        let (id, credential) = bench.minted("kw-1-1").await;
        let fail = |nth| Rule {
            nth: Nth::Number(nth),
            ..Rule::first("update_api_key", Fault::status(500))
        };
        bench.script(vec![fail(1), fail(2), fail(3)]);
        for _ in 0..3 {
            assert!(is_unknown(&bench.issuer.revoke(&id).await));
            assert_eq!(bench.verify(&credential).await, Verdict::Accepted);
        }
        bench.issuer.revoke(&id).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(bench.verify(&credential).await, Verdict::Refused);
    }

    #[tokio::test]
    async fn h92_a_key_of_a_workspace_that_was_not_named_is_left_alone() {
        let bench = Bench::with(TwinOptions::default(), json!({ "workspace_id": "wrkspc_1" }));
        let theirs = bench.twin.make_key("backend");
        let suspend = bench.issuer.suspend().unwrap();
        let id = id_of(&theirs);
        for outcome in [bench.issuer.revoke(&id).await, suspend.suspend(&id).await] {
            let refusal = refusal(outcome);
            assert!(refusal.message.ends_with("belongs to the default workspace"), "{refusal}");
        }
        assert!(bench.twin.accepts(&theirs.value));
    }

    #[tokio::test]
    async fn h92_a_name_that_several_keys_have_ends_none_of_them() {
        let bench = Bench::new();
        let keys = [bench.twin.make_key("backend"), bench.twin.make_key("backend")];
        let by_name = IssuedId::new("backend");
        let refusal = refusal(bench.issuer.revoke(&by_name).await);
        assert_eq!(refusal.message, "2 keys are named `backend`");
        assert!(keys.iter().all(|key| bench.twin.accepts(&key.value)));
        bench.twin.rename(&keys[0].id, "other");
        for _ in 0..2 {
            bench.issuer.revoke(&by_name).await.unwrap_or_else(|e| panic!("{e}"));
        }
        assert_eq!(keys.map(|key| bench.twin.accepts(&key.value)), [true, false]);
    }

    #[tokio::test]
    async fn h88_only_a_no_about_the_key_itself_proves_death() {
        let bench = Bench::new();
        let key = bench.twin.make_key("backend");
        let live = credential(&key.value);
        let (issuer, faults) = (&*bench.issuer, bench.twin.faults());
        unclear_answers_prove_nothing(issuer, faults, "list_models", &live).await;
        bench.script(vec![Rule::first("list_models", Fault::status(200))]);
        assert!(matches!(bench.verify(&live).await, Verdict::CannotTell(_)));
        assert_eq!(bench.verify(&credential("sk-ant-api03-wrong")).await, Verdict::Refused);
        let problem =
            |kind: &str, message: &str| Problem { kind: kind.into(), message: message.into() };
        assert!(problem("authentication_error", "invalid x-api-key").is_about_the_key());
        assert!(
            !problem("authentication_error", "CORS requests must set a header").is_about_the_key()
        );
        assert!(!problem("permission_error", "").is_about_the_key());
    }

    #[tokio::test]
    async fn h87_and_h88_what_changes_is_known_later() {
        let slow = Time::from_secs(2);
        let options = TwinOptions { propagation: slow, revocation: slow, ..TwinOptions::default() };
        let bench = Bench::with(options, json!({}));
        let (id, credential) = bench.minted("kw-1-1").await;
        changes_are_known_later(&*bench.issuer, &id, &credential).await;
    }

    #[tokio::test]
    async fn h97_each_call_keeps_the_wait_that_it_is_asked_for() {
        let bench = Bench::new();
        let id = id_of(&bench.twin.make_key("backend"));
        bench.script(vec![Rule::every("*", Fault::busy())]);
        let suspend = bench.issuer.suspend().unwrap();
        let refusals = [
            refusal(bench.mint("kw-1-1").await),
            refusal(bench.issuer.list("kw-").await),
            refusal(suspend.suspend(&id).await),
            refusal(bench.issuer.revoke(&id).await),
            refusal(bench.issuer.preflight().await),
            refusal(bench.issuer.usage().unwrap().last_used(&id).await),
        ];
        for refusal in refusals {
            assert_eq!(refusal.remedy, Remedy::Retry { after: Some(Span::hours(1)) });
        }
        assert_eq!(bench.told(), "", "a person is not troubled for an issuer that is busy");
    }

    #[tokio::test]
    async fn h115_no_text_of_an_answer_is_repeated() {
        let bench = Bench::new();
        bench.script(vec![Rule::first("list_api_keys", status(401, Echo::EchoKey))]);
        let echoed = refusal(bench.issuer.list("kw-").await);
        assert_eq!(
            echoed.message,
            "issuer `anthropic` answered 401: the admin key is not accepted"
        );
    }

    #[tokio::test]
    async fn the_latest_use_is_found_in_the_report() {
        let bench = Bench::new();
        let (key, other) = (bench.twin.make_key("backend"), bench.twin.make_key("other"));
        let used = async || bench.issuer.usage().unwrap().last_used(&id_of(&key)).await.unwrap();
        bench.twin.add_use(&other.id, Time::ZERO);
        assert_eq!(used().await, LastUsed { at: None, detail: None });
        bench.twin.add_use(&key.id, Time::from_secs(50 * 3_600));
        bench.twin.add_use(&key.id, Time::from_secs(90 * 60));
        let (before, shown) = (now(), used().await);
        let ago = before.since(shown.at.unwrap());
        assert!(Span::minutes(88) <= ago && ago <= Span::minutes(90), "{ago}");
        assert_eq!(shown.detail.as_deref(), Some("10 tokens in 7 days"));
        bench.script(vec![Rule::first("usage_messages", Fault::status(403))]);
        let error = bench.issuer.usage().unwrap().last_used(&id_of(&key)).await;
        assert_eq!(refusal(error).kind, RefusalKind::Permission);
    }

    #[tokio::test]
    async fn where_nothing_shows_a_use_nobody_is_asked_for_one() {
        let bench = Bench::with(TwinOptions::default(), json!({ "usage": "nothing" }));
        assert!(bench.issuer.usage().is_none() && bench.issuer.facts().last_used.is_none());
    }

    #[tokio::test]
    async fn the_record_of_a_key_says_who_made_it_and_what_it_was_used_for() {
        let bench = Bench::new();
        let key = bench.twin.make_key("backend");
        bench.twin.add_use(&key.id, Time::from_secs(50 * 3_600));
        let audit = bench.issuer.audit().unwrap();
        let entries = audit.since(&id_of(&key), less(now(), WEEK)).await.unwrap();
        let words: Vec<&str> = entries.iter().map(|entry| entry.what.as_str()).collect();
        assert!(words[0].starts_with("5 tokens in the day that began at "), "{words:?}");
        assert_eq!(words[1], "it was made by `user_twin`, with the name `backend`");
        assert!(words[2].starts_with("it is active now; the issuer does not tell"), "{words:?}");
        bench.script(vec![Rule::first("usage_messages", Fault::status(500))]);
        let entries = audit.since(&id_of(&key), less(now(), WEEK)).await.unwrap();
        assert!(entries.iter().any(|entry| entry.what.contains("could not be read")));
    }

    #[tokio::test]
    async fn a_key_in_use_is_told_by_the_ends_of_its_value() {
        let bench = Bench::new();
        let key = bench.twin.make_key("backend");
        bench.twin.make_key("other");
        let found = bench.issuer.identify(&credential(&key.value)).await.unwrap();
        assert!(matches!(found, Identity::Known { issued, .. } if issued == id_of(&key)));
        let elsewhere = bench.issuer.identify(&credential("sk-ant-api03-elsewhere")).await.unwrap();
        assert_eq!(elsewhere, Identity::Unknown);
    }

    #[tokio::test]
    async fn preflight_names_what_stands_in_the_way_and_changes_nothing() {
        let bench = Bench::new();
        bench.twin.make_key("kw-0-1");
        let found = bench.issuer.preflight().await.unwrap();
        let messages: Vec<_> = found.iter().map(|finding| finding.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "guided: you are asked to make a key; the former one is ended for you",
                "keys of a rotation exist: `kw-0-1`"
            ]
        );
        bench.script(vec![Rule::first("list_api_keys", Fault::status(401))]);
        let found = bench.issuer.preflight().await.unwrap();
        let blocks = found.iter().find(|found| found.severity == Severity::Blocks).unwrap();
        assert_eq!(
            blocks.message,
            "issuer `anthropic` answered 401: the admin key is not accepted"
        );
        assert!(bench.twin.faults().seen().iter().all(|request| request.method == "GET"));
    }

    #[tokio::test]
    async fn without_an_admin_key_a_person_does_all_of_it() {
        let bench = Bench::new();
        let config = json!({ "base_url": bench.twin.base_url(), "within": "20m" });
        let config: Config = serde_json::from_value(config).unwrap();
        let guide: Arc<dyn Guide> = Arc::<Person>::clone(&bench.person);
        let issuer =
            config.build(&Context { guide, ..Context::at("/") }).unwrap_or_else(|e| panic!("{e}"));
        let facts = issuer.facts();
        assert!(facts.is_kept_by_hand() && !facts.suspend);
        assert_eq!(facts.by_hand, Some(Span::minutes(20)));
        let minted = mint(&*issuer, "kw-1-1", None, None).await.unwrap_or_else(|e| panic!("{e}"));
        let (id, credential) = (minted.issued.unwrap(), minted.credential.unwrap());
        assert_eq!(id, IssuedId::new("kw-1-1"));
        assert_eq!(issuer.verify(&credential).await, Ok(Verdict::Accepted));
        bench.script(vec![Rule::first("list_models", Fault::status(500))]);
        let said = issuer.verify(&credential).await;
        assert!(
            matches!(&said, Ok(Verdict::CannotTell(why)) if why.starts_with("issuer `anthropic`")),
            "{said:?}"
        );
        // Once there is an admin key, the same version is ended by it.
        bench.issuer.revoke(&id).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(issuer.verify(&credential).await, Ok(Verdict::Refused));
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused() {
        let build = |config: Value| {
            let config: Config = serde_json::from_value(config).unwrap();
            config.build(&Context::at("/")).err().map(|refusal| refusal.kind)
        };
        assert_eq!(build(json!({})), None);
        assert_eq!(build(json!({ "admin_key": { "env": "ADMIN_KEY" } })), None);
        for wrong in [
            json!({ "within": "59s" }),
            json!({ "last_used": { "lag": "1m", "granularity": "1s" } }),
            json!({ "admin_key": { "env": "ADMIN_KEY" }, "base_url": "http://twin:8080" }),
        ] {
            assert_eq!(build(wrong.clone()), Some(RefusalKind::Unsupported), "{wrong}");
        }
    }
}
