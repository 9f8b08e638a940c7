//! `openai`: keys of service accounts of one project.
//!
//! Each version is a service account of its own, named by the label, with one key. The API keeps no idempotency key, so a
//! mint whose answer is lost is found by that name, ended, and made anew under another (H04).
//!
//! An issued id is `<owner>/<key>`: the id of the service account, or of the user for a key that was made by hand, and the
//! id of the key. Both are needed to end it, since some deployments of the API refuse to delete a key of a service account
//! and delete the account with it instead. `<owner>/` names a service account of ours that shows no key: its key may be
//! late in the list, or gone before it.
//!
//! A key cannot be switched off and on again; a revoke is final.

use keywheel_core::planted;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::facts::{Authority, IssuerFacts, LastUsedFacts, Observe, ValueOrigin};
use keywheel_core::plan::Label;
use keywheel_core::secret::Credential;
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{
    Audit, Entry, Identity, Issuer, LastUsed, Live, Mint, Minted, Usage, Verdict,
};
use keywheel_driver::{CallError, Duration, Finding, Refusal, RefusalKind, SecretReference};
use reqwest::header::{AUTHORIZATION, HeaderMap};
use reqwest::{Method, Url};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::api::{
    Answer, Api, MOST_PAGES, Shown, instant, is_about, known_by_ends, now, plain, shows,
    shows_secret, unsupported,
};
use crate::http::Effect;
use crate::{Build, Context, reference};

const TARGET: &str = "issuer `openai`";
const OFFICIAL: &str = "https://api.openai.com/v1";

/// What the label of every mint of ours begins with.
const OURS: &str = "kw-";

/// The codes that may stand in a message; any other text of an answer may hold a key (H115).
const CODES: [&str; 5] = [
    "invalid_api_key",
    "insufficient_quota",
    "credit_balance_exhausted",
    "rate_limit_exceeded",
    "slow_down",
];

const HOUR: i64 = 3_600;
const WEEK: i64 = 7 * 24 * HOUR;

/// How many days of use an incident is shown.
const MOST_DAYS: i64 = 30;

/// A key of a service account at OpenAI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The id of the project: `proj_…`.
    pub project: String,
    /// Where an admin key is read.
    pub admin_key: SecretReference,
    /// Where the API is, if not at the official address; HTTPS, or a loopback address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// What a key is tried with.
    #[serde(default)]
    pub verify: Verification,
    /// When a new key ends by itself, from `1s` to `365d`; never, where the organisation does not say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<Duration>,
    /// How exact and how late the issuer's last-used data are.
    #[serde(default)]
    pub last_used: LastUsedConfig,
    /// How long a new key may be refused, and a revoked one accepted.
    #[serde(default = "default_propagation")]
    pub propagation: Duration,
    /// How long a call without an answer can still take effect and stay out of a list.
    #[serde(default = "default_settle_for")]
    pub settle_for: Duration,
}

/// What a key is tried with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verification {
    /// The list of models, which costs nothing.
    #[default]
    Models,
    /// One chat completion of one token with this model, which is what most workloads call.
    Chat {
        /// The model.
        model: String,
    },
}

/// How exact and how late the issuer's last-used data are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LastUsedConfig {
    /// How long after a use it shows.
    #[serde(default = "default_lag")]
    pub lag: Duration,
    /// How coarse its times are; at least `1s`.
    #[serde(default = "default_granularity")]
    pub granularity: Duration,
}

impl Default for LastUsedConfig {
    fn default() -> Self {
        Self { lag: default_lag(), granularity: default_granularity() }
    }
}

// No source states any of these four, so each is long on purpose: too long a value costs waiting, too short a one an outage.

fn default_propagation() -> Duration {
    Span::minutes(5).into()
}

/// As long as the official clients wait for an answer.
fn default_settle_for() -> Duration {
    Span::minutes(10).into()
}

fn default_lag() -> Duration {
    Span::minutes(15).into()
}

/// Above the minute that is the finest bucket of the usage report.
fn default_granularity() -> Duration {
    Span::minutes(5).into()
}

impl Build for Config {
    type Driver = dyn Issuer;

    fn build(&self, context: &Context) -> Result<Arc<dyn Issuer>, Refusal> {
        if self.project.is_empty() {
            return Err(unsupported("`project` is empty"));
        }
        if self.last_used.granularity.span() < Span::seconds(1) {
            return Err(unsupported(
                "`last_used.granularity` must be at least `1s`: the issuer counts whole seconds",
            ));
        }
        let lives = Span::seconds(1)..=Span::days(365);
        if self.expires_in.is_some_and(|life| !lives.contains(&life.span())) {
            return Err(unsupported("`expires_in` must be between `1s` and `365d`"));
        }
        let config =
            Self { admin_key: reference::from_root(&self.admin_key, context), ..self.clone() };
        let api = Api::new(TARGET, self.base_url.as_deref().unwrap_or(OFFICIAL))?;
        Ok(Arc::new(OpenAi { config, api }))
    }
}

struct OpenAi {
    config: Config,
    api: Api,
}

#[async_trait]
impl Issuer for OpenAi {
    fn facts(&self) -> IssuerFacts {
        IssuerFacts {
            label: true,
            destroy: true,
            expiry_settable: self.config.expires_in.is_some(),
            last_used: Some(LastUsedFacts {
                lag: self.config.last_used.lag.span(),
                granularity: self.config.last_used.granularity.span(),
            }),
            propagation: self.config.propagation.span(),
            settle_for: self.config.settle_for.span(),
            ..IssuerFacts::new(ValueOrigin::Theirs, Observe::Label, Authority::Issuer)
        }
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        let admin = self.admin().await?;
        let mut findings = match self.admin_key_expiry(&admin).await {
            Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::Permission => {
                return Ok(vec![Finding::blocks(format!(
                    "the admin key is not accepted: {refusal}"
                ))]);
            }
            expiry => Vec::from_iter(expiry?),
        };
        let Some(project) = self.api.find::<Project>(&admin, &self.project(&[])).await? else {
            findings
                .push(Finding::blocks(format!("project `{}` is not there", self.config.project)));
            return Ok(findings);
        };
        if project.archived_at.is_some() || project.status.as_deref() == Some("archived") {
            findings
                .push(Finding::blocks(format!("project `{}` is archived", self.config.project)));
            return Ok(findings);
        }
        let accounts: Vec<Account> = self.all(&admin, &self.project(&["service_accounts"])).await?;
        findings
            .push(Finding::note(format!("the project has {} service accounts", accounts.len())));
        let ours: Vec<_> =
            accounts.iter().filter(|account| account.name.starts_with(OURS)).collect();
        if !ours.is_empty() {
            let names = ours
                .iter()
                .map(|account| format!("`{}`", account.name))
                .collect::<Vec<_>>()
                .join(", ");
            findings.push(Finding::note(format!("service accounts of a rotation exist: {names}")));
        }
        Ok(findings)
    }

    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        let admin = self.admin().await?;
        let mut body = json!({ "name": request.label.0 });
        if let Some(life) = self.config.expires_in {
            body["expires_in_seconds"] = json!(life.span().as_millis().div_ceil(1_000));
        }
        let answer = self
            .api
            .send(Method::POST, self.project(&["service_accounts"]), &admin, Some(&body))
            .await?;
        if !answer.status.is_success() {
            if planted!("room_is_made_for_a_mint") {
                for live in self.list(OURS).await? {
                    self.revoke(&live.issued).await?;
                }
            }
            return Err(error(&answer, Effect::Changes));
        }
        let made: Made = answer.decode()?;
        let key = made
            .api_key
            .filter(|key| made.name == request.label.0 && !key.value.0.expose().is_empty());
        let key = key.ok_or_else(|| answer.not_understood())?;
        let label = &request.label.0;
        let look = || self.made(&admin, &made.id, &key.id);
        let is_new = |(account, shown): &(Account, ApiKey)| {
            account.name == *label
                && shown.owner.id() == Some(&account.id)
                && shows_secret(&shown.redacted_value, &key.value.0)
        };
        self.api.recognise(label, self.config.settle_for.span(), look, is_new).await?;
        let chosen_end = self.config.expires_in.map(|life| instant(key.created_at) + life.span());
        Ok(Minted {
            issued: Some(issued(&made.id, &key.id)),
            credential: Some(Credential::of_value(key.value.0)),
            expires_at: key.expires_at.map(instant).or(chosen_end),
            notes: differences(request.previous.is_some(), made.role.as_deref()),
        })
    }

    /// Says `CannotTell` for 429 and 5xx: a live key gets them too, so they prove neither life nor death.
    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        let value =
            credential.value().ok_or_else(|| unsupported("the credential has no field `value`"))?;
        let key = self.api.bearer(value, "credential")?;
        let answer = match &self.config.verify {
            Verification::Chat { .. } if planted!("tried_with_anything") => {
                self.api.send(Method::GET, self.api.url(&["models"]), &key, None).await?
            }
            Verification::Models => {
                self.api.send(Method::GET, self.api.url(&["models"]), &key, None).await?
            }
            Verification::Chat { model } => {
                let message = json!({ "role": "user", "content": "." });
                let body =
                    json!({ "model": model, "messages": [message], "max_completion_tokens": 1 });
                self.api
                    .send(Method::POST, self.api.url(&["chat", "completions"]), &key, Some(&body))
                    .await?
            }
        };
        Ok(verdict(&answer))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Live>, CallError> {
        let admin = self.admin().await?;
        let mut accounts: Vec<Account> =
            self.all(&admin, &self.project(&["service_accounts"])).await?;
        accounts.retain(|account| account.name.starts_with(prefix));
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        let keys = self.keys(&admin).await?;
        Ok(accounts.iter().flat_map(|account| live(account, &keys)).collect())
    }

    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError> {
        let (owner, key) = parts(id)?;
        let admin = self.admin().await?;
        if key.is_empty() {
            return self.end_account(&admin, owner, Which::OursWithAtMostOneKey).await.map(drop);
        }
        match self.end_key(&admin, owner, key).await? {
            Deleted::Gone => {
                self.end_account(&admin, owner, Which::OursEmptyBut(key)).await.map(drop)
            }
            Deleted::Refused(error) => {
                match self.end_account(&admin, owner, Which::AnyEmptyBut(key)).await? {
                    Found::Yes => Ok(()),
                    Found::No => Err(error),
                }
            }
        }
    }

    async fn identify(&self, credential: &Credential) -> Result<Identity, CallError> {
        let Some(value) =
            credential.value().and_then(|value| std::str::from_utf8(value.expose()).ok())
        else {
            return Ok(Identity::Unknown);
        };
        let mut keys = self.keys(&self.admin().await?).await?;
        keys.retain(|key| shows(&key.redacted_value, value));
        let known =
            |key: &ApiKey| Some((issued(key.owner.id()?, &key.id), Some(instant(key.created_at))));
        let found: Vec<_> = keys.iter().filter_map(known).collect();
        Ok(known_by_ends(&found, "the list shows one key with the same redacted value"))
    }

    fn usage(&self) -> Option<&dyn Usage> {
        Some(self)
    }

    fn audit(&self) -> Option<&dyn Audit> {
        Some(self)
    }
}

#[async_trait]
impl Usage for OpenAi {
    /// Takes the later of the key's own time and the usage report of the last 7 days.
    async fn last_used(&self, id: &IssuedId) -> Result<LastUsed, CallError> {
        let (_, key_id) = parts(id)?;
        let admin = self.admin().await?;
        let key = if key_id.is_empty() { None } else { self.key(&admin, key_id).await? };
        let key = key.ok_or_else(|| {
            Refusal::operator(RefusalKind::NotFound, format!("{TARGET} has no key `{key_id}`"))
        })?;
        let now = seconds_now();
        match self.report(&admin, key_id, now).await {
            Ok(report) => {
                Ok(LastUsed { at: latest(key.last_used_at, &report, now), detail: report.detail() })
            }
            Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::Permission => {
                Ok(LastUsed {
                    at: latest(key.last_used_at, &Report::default(), now),
                    detail: Some(
                        "by the key's own time only: the admin key may not read the usage report"
                            .into(),
                    ),
                })
            }
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl Audit for OpenAi {
    /// Reads the audit log of the organisation for what was done to the key and its account and what was done with them, and
    /// the usage report by the day. Neither holds up the other.
    async fn since(&self, id: &IssuedId, since: Timestamp) -> Result<Vec<Entry>, CallError> {
        let (owner, key) = parts(id)?;
        let admin = self.admin().await?;
        let ids: Vec<&str> = [owner, key].into_iter().filter(|id| is_issued_here(id)).collect();
        let log = match self.logged(&admin, &ids, since).await {
            Ok(events) if events.is_empty() => {
                let why = "the audit log has nothing of it; it is kept only where the settings of the organisation say so";
                vec![untimed(why)]
            }
            Ok(events) => events.iter().map(Logged::entry).collect(),
            Err(error) => vec![untimed(&format!("the audit log could not be read: {error}"))],
        };
        let uses = match self.days(&admin, key, since).await {
            Ok(uses) => uses,
            Err(error) => vec![untimed(&format!("the usage report could not be read: {error}"))],
        };
        let mut entries: Vec<Entry> = log.into_iter().chain(uses).collect();
        entries.sort_by_key(|entry| entry.at);
        Ok(entries)
    }
}

impl OpenAi {
    /// Returns the events whose target or whose actor is one of these, the earliest first.
    async fn logged(
        &self,
        admin: &HeaderMap,
        ids: &[&str],
        since: Timestamp,
    ) -> Result<Vec<Logged>, CallError> {
        let mut events: Vec<Logged> = Vec::new();
        if ids.is_empty() {
            return Ok(events);
        }
        for role in ["resource_ids[]", "actor_ids[]"] {
            let mut url = self.api.url(&["organization", "audit_logs"]);
            url.query_pairs_mut()
                .append_pair("effective_at[gte]", &since.millis().div_euclid(1_000).to_string())
                .extend_pairs(ids.iter().map(|id| (role, id)));
            events.extend(self.all::<Logged>(admin, &url).await?);
        }
        events.sort_by(|a, b| (a.effective_at, &a.id).cmp(&(b.effective_at, &b.id)));
        events.dedup_by(|a, b| a.id == b.id);
        Ok(events)
    }

    /// Counts the requests of a key by the day, for 30 days at most.
    async fn days(
        &self,
        admin: &HeaderMap,
        key: &str,
        since: Timestamp,
    ) -> Result<Vec<Entry>, CallError> {
        let now = seconds_now();
        let start = since.millis().div_euclid(1_000).max(now - MOST_DAYS * 24 * HOUR);
        let days = self.buckets(admin, key, "1d", start, now + 1).await?;
        let used = days.iter().filter(|day| day.requests_of(key) > 0);
        let entry = |day: &Bucket| Entry {
            at: Some(instant(day.start_time)),
            what: match day.requests_of(key) {
                1 => "1 request in the 24 h from then on".into(),
                count => format!("{count} requests in the 24 h from then on"),
            },
        };
        Ok(used.map(entry).collect())
    }
}

impl OpenAi {
    /// Reads the admin key, which may run a program, and makes the header of it.
    async fn admin(&self) -> Result<HeaderMap, CallError> {
        let value = reference::read(&self.config.admin_key).await?;
        Ok(self.api.bearer(&value, "admin key")?)
    }

    fn project(&self, path: &[&str]) -> Url {
        self.api
            .url(&[["organization", "projects", &self.config.project].as_slice(), path].concat())
    }

    async fn account(&self, admin: &HeaderMap, id: &str) -> Result<Option<Account>, CallError> {
        let account: Option<Account> =
            self.api.find(admin, &self.project(&["service_accounts", id])).await?;
        match account {
            Some(account) if !is_about(&account.id, id) => Err(self.api.shows_another()),
            account => Ok(account),
        }
    }

    async fn key(&self, admin: &HeaderMap, id: &str) -> Result<Option<ApiKey>, CallError> {
        let key: Option<ApiKey> = self.api.find(admin, &self.project(&["api_keys", id])).await?;
        match key {
            Some(key) if !is_about(&key.id, id) => Err(self.api.shows_another()),
            key => Ok(key),
        }
    }

    /// Reads what a mint is said to have made; none where either is not there.
    async fn made(
        &self,
        admin: &HeaderMap,
        account: &str,
        key: &str,
    ) -> Result<Option<(Account, ApiKey)>, CallError> {
        let account = self.account(admin, account).await?;
        Ok(account.zip(self.key(admin, key).await?))
    }

    /// Reads every page of a list.
    async fn all<T: DeserializeOwned>(
        &self,
        admin: &HeaderMap,
        url: &Url,
    ) -> Result<Vec<T>, CallError> {
        let (mut items, mut after) = (Vec::new(), None);
        for _ in 0..MOST_PAGES {
            let mut url = url.clone();
            url.query_pairs_mut()
                .append_pair("limit", "100")
                .extend_pairs(after.iter().map(|id| ("after", id)));
            let page: Page<T> = self.api.read(admin, url).await?;
            items.extend(page.data);
            if !page.has_more {
                return Ok(items);
            }
            if page.last_id.is_none() || page.last_id == after {
                break;
            }
            after = page.last_id;
        }
        Err(self.api.endless("a list"))
    }

    /// Reads every key of the project; left out, `owner_project_access` would hide some that still work.
    async fn keys(&self, admin: &HeaderMap) -> Result<Vec<ApiKey>, CallError> {
        let mut url = self.project(&["api_keys"]);
        url.query_pairs_mut().append_pair("owner_project_access", "any");
        self.all(admin, &url).await
    }

    /// Deletes a key or an account.
    async fn delete(&self, admin: &HeaderMap, url: Url, id: &str) -> Result<Deleted, CallError> {
        let answer = self.api.send(Method::DELETE, url, admin, None).await?;
        match answer.status.as_u16() {
            200..=299 => {
                let ended: Ended = answer.decode()?;
                if ended.id.is_some_and(|ended| !is_about(&ended, id)) {
                    return Err(self.api.changed_another());
                }
                if ended.deleted { Ok(Deleted::Gone) } else { Err(answer.not_understood()) }
            }
            404 | 410 if !planted!("gone_is_no_success") => Ok(Deleted::Gone),
            400 => Ok(Deleted::Refused(error(&answer, Effect::Changes))),
            _ => Err(error(&answer, Effect::Changes)),
        }
    }

    /// Ends a key, after a look at whose it is (H92). Not listed by its id is no proof that it is gone: a new key may show late.
    async fn end_key(
        &self,
        admin: &HeaderMap,
        owner: &str,
        key: &str,
    ) -> Result<Deleted, CallError> {
        if let Some(found) = self.key(admin, key).await?
            && found.owner.id() != Some(owner)
            && !planted!("owner_not_checked")
        {
            return Err(unsupported(&format!("key `{key}` does not belong to `{owner}`")).into());
        }
        self.delete(admin, self.project(&["api_keys", key]), key).await
    }

    /// Ends a service account, where it has no key that anyone else could need. One that is not there is done, provided that
    /// the project is: a wrong project must not pass for a dead key (H96).
    async fn end_account(
        &self,
        admin: &HeaderMap,
        id: &str,
        which: Which<'_>,
    ) -> Result<Found, CallError> {
        let Some(account) = self.account(admin, id).await? else {
            if planted!("wrong_project_is_death") {
                return Ok(Found::No);
            }
            return self.api.read::<Project>(admin, self.project(&[])).await.map(|_| Found::No);
        };
        let keys = self.keys(admin).await?;
        let owned = keys.iter().filter(|key| key.owner.id() == Some(id));
        let (others, ours) = match which {
            Which::OursWithAtMostOneKey => {
                (owned.count().saturating_sub(1), account.name.starts_with(OURS))
            }
            Which::OursEmptyBut(key) => {
                (owned.filter(|other| other.id != key).count(), account.name.starts_with(OURS))
            }
            Which::AnyEmptyBut(key) => (owned.filter(|other| other.id != key).count(), true),
        };
        match (which, ours, others) {
            // The key has ended; what is left of the account is not ours to end.
            (Which::OursEmptyBut(_), false, _) | (Which::OursEmptyBut(_), _, 1..) => {
                return Ok(Found::Yes);
            }
            (_, false, _) => {
                return Err(
                    unsupported(&format!("service account `{id}` is not of a rotation")).into()
                );
            }
            (_, _, 1..) if planted!("other_keys_ended_too") => {}
            (_, _, 1..) => {
                let message = format!(
                    "service account `{id}` owns {others} other keys, and the issuer ends them all or none"
                );
                return Err(unsupported(&message).into());
            }
            _ => {}
        }
        match self.delete(admin, self.project(&["service_accounts", id]), id).await? {
            Deleted::Gone => Ok(Found::Yes),
            Deleted::Refused(error) => Err(error),
        }
    }

    /// Checks that the admin key is accepted, and notes when it ends, where it is found in the list.
    async fn admin_key_expiry(&self, admin: &HeaderMap) -> Result<Option<Finding>, CallError> {
        let keys: Vec<AdminKey> =
            self.all(admin, &self.api.url(&["organization", "admin_api_keys"])).await?;
        let value = admin
            .get(AUTHORIZATION)
            .and_then(|header| header.to_str().ok())
            .and_then(|header| header.strip_prefix("Bearer "))
            .unwrap_or_default();
        let mut ours = keys.iter().filter(|key| shows(&key.redacted_value, value));
        let end = match (ours.next(), ours.next()) {
            (Some(only), None) => only.expires_at,
            _ => None,
        };
        Ok(end.map(|end| {
            let left = instant(end).since(instant(seconds_now()));
            Finding::note(format!("the admin key ends in {left}"))
        }))
    }

    /// Reads how often a key was used: by the hour for a week, then the last of those hours by the minute.
    async fn report(&self, admin: &HeaderMap, key: &str, now: i64) -> Result<Report, CallError> {
        let hours = self.buckets(admin, key, "1h", now - WEEK, now + 1).await?;
        let requests = hours.iter().map(|bucket| bucket.requests_of(key)).sum();
        let Some(hour) = hours.iter().rfind(|bucket| bucket.requests_of(key) > 0) else {
            return Ok(Report::default());
        };
        let minutes =
            self.buckets(admin, key, "1m", hour.start_time, hour.start_time + HOUR).await?;
        let minute = minutes.iter().rfind(|bucket| bucket.requests_of(key) > 0).unwrap_or(hour);
        Ok(Report { requests, latest: Some((minute.start_time, minute.end_time)) })
    }

    async fn buckets(
        &self,
        admin: &HeaderMap,
        key: &str,
        width: &str,
        start: i64,
        end: i64,
    ) -> Result<Vec<Bucket>, CallError> {
        let (mut buckets, mut page) = (Vec::new(), None);
        for _ in 0..MOST_PAGES {
            let mut url = self.api.url(&["organization", "usage", "completions"]);
            url.query_pairs_mut()
                .append_pair("start_time", &start.to_string())
                .append_pair("end_time", &end.to_string())
                .append_pair("bucket_width", width)
                .append_pair("group_by[]", "api_key_id")
                .append_pair("api_key_ids[]", key)
                .extend_pairs(page.iter().map(|page| ("page", page)));
            let report: UsagePage = self.api.read(admin, url).await?;
            buckets.extend(report.data);
            if !report.has_more {
                buckets.sort_by_key(|bucket: &Bucket| bucket.start_time);
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

/// Which service account may be ended.
#[derive(Clone, Copy)]
enum Which<'a> {
    /// One of ours, whose key is unknown.
    OursWithAtMostOneKey,
    /// One of ours that has no key but this one, which has ended; any other is left alone.
    OursEmptyBut(&'a str),
    /// Any that has no key but this one, which ends with it.
    AnyEmptyBut(&'a str),
}

/// Whether a service account was there.
enum Found {
    Yes,
    No,
}

/// What came of a delete.
enum Deleted {
    Gone,
    Refused(CallError),
}

/// What a new key may lack: no call tells the scopes of a key, or gives them to one (H91).
fn differences(has_previous: bool, role: Option<&str>) -> Vec<String> {
    if planted!("differences_not_told") {
        return Vec::new();
    }
    let scopes = "scopes of the key in use cannot be read; the new key has those of a new account";
    let role = role.filter(|role| *role == "none");
    let role = role.map(|role| format!("the role of the new account in the project is `{role}`"));
    has_previous.then(|| scopes.into()).into_iter().chain(role).collect()
}

/// What an answer is that is no success, with the provider's code for it.
fn error(answer: &Answer, effect: Effect) -> CallError {
    let code = known_code(answer);
    match (answer.error(effect), code) {
        (CallError::Refused(mut refusal), Some(code)) => {
            refusal.message.push_str(&format!(", code `{code}`"));
            match code {
                "insufficient_quota" | "credit_balance_exhausted" => {
                    Refusal::operator(RefusalKind::Quota, refusal.message).into()
                }
                _ => refusal.into(),
            }
        }
        (error, _) => error,
    }
}

fn problem(answer: &Answer) -> Option<Problem> {
    answer.decode::<ErrorBody>().ok().map(|body| body.error)
}

fn known_code(answer: &Answer) -> Option<&'static str> {
    let problem = problem(answer)?;
    CODES.into_iter().find(|known| Some(*known) == problem.code.as_deref())
}

fn verdict(answer: &Answer) -> Verdict {
    let cannot_tell = || {
        let code = known_code(answer).map(|code| format!(", code `{code}`")).unwrap_or_default();
        Verdict::CannotTell(format!("{}{code}", answer.in_words()))
    };
    match answer.status.as_u16() {
        // A page of a proxy is no answer of the issuer.
        200 if answer.decode::<Named>().is_ok() => Verdict::Accepted,
        401 | 403 if planted!("any_no_is_death") => Verdict::Refused,
        401 => match problem(answer) {
            Some(Problem { code: Some(code), .. }) if code == "invalid_api_key" => Verdict::Refused,
            // The API has no code for this; only its words tell it from a refused network or membership.
            Some(Problem { code: None, message }) if message.contains("Missing scopes") => {
                Verdict::Accepted
            }
            _ => cannot_tell(),
        },
        _ => cannot_tell(),
    }
}

/// Returns the live versions of an account: its keys, or the account itself where it is ours and shows none.
fn live(account: &Account, keys: &[ApiKey]) -> Vec<Live> {
    let version = |key: &str| Live {
        issued: issued(&account.id, key),
        label: Some(Label(account.name.clone())),
    };
    let owned: Vec<_> = keys.iter().filter(|key| key.owner.id() == Some(&account.id)).collect();
    if owned.is_empty() && account.name.starts_with(OURS) {
        return vec![version("")];
    }
    owned.into_iter().map(|key| version(&key.id)).collect()
}

/// Takes the key's own time, unless the report knows a later use; each at its latest, so that no use is taken for an older one.
fn latest(last_used_at: Option<i64>, report: &Report, now: i64) -> Option<Timestamp> {
    let own = last_used_at.map(|second| second + 1);
    let reported = report
        .latest
        .filter(|(start, _)| last_used_at.is_none_or(|used| used < *start))
        .map(|(_, end)| end);
    own.max(reported).map(|second| instant(second.min(now + 1)))
}

fn issued(owner: &str, key: &str) -> IssuedId {
    IssuedId::new(format!("{owner}/{key}"))
}

fn parts(id: &IssuedId) -> Result<(&str, &str), Refusal> {
    let parts =
        id.id.split_once('/').filter(|(owner, key)| !owner.is_empty() && !key.contains('/'));
    parts.ok_or_else(|| unsupported("the issued id is not `<owner>/<key>`"))
}

/// A person has many keys, and what they do is nobody's business here.
fn is_issued_here(id: &str) -> bool {
    !id.is_empty() && !id.starts_with("user-")
}

fn untimed(what: &str) -> Entry {
    Entry { at: None, what: what.into() }
}

fn seconds_now() -> i64 {
    now().millis().div_euclid(1_000)
}

#[derive(Deserialize)]
struct Page<T> {
    data: Vec<T>,
    #[serde(default)]
    has_more: bool,
    last_id: Option<String>,
}

#[derive(Deserialize)]
struct Project {
    archived_at: Option<i64>,
    status: Option<String>,
}

#[derive(Deserialize)]
struct Account {
    id: String,
    name: String,
}

#[derive(Deserialize)]
struct Made {
    id: String,
    name: String,
    role: Option<String>,
    api_key: Option<MadeKey>,
}

#[derive(Deserialize)]
struct MadeKey {
    id: String,
    value: Shown,
    created_at: i64,
    expires_at: Option<i64>,
}

#[derive(Deserialize)]
struct ApiKey {
    id: String,
    redacted_value: String,
    created_at: i64,
    last_used_at: Option<i64>,
    owner: Owner,
}

#[derive(Deserialize)]
struct Owner {
    service_account: Option<OwnerId>,
    user: Option<OwnerId>,
}

impl Owner {
    fn id(&self) -> Option<&str> {
        self.service_account.as_ref().or(self.user.as_ref()).map(|owner| owner.id.as_str())
    }
}

#[derive(Deserialize)]
struct OwnerId {
    id: String,
}

#[derive(Deserialize)]
struct AdminKey {
    redacted_value: String,
    expires_at: Option<i64>,
}

#[derive(Deserialize)]
struct Ended {
    id: Option<String>,
    deleted: bool,
}

#[derive(Deserialize)]
struct Named {
    #[serde(rename = "object")]
    _object: String,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: Problem,
}

#[derive(Deserialize)]
struct Problem {
    code: Option<String>,
    #[serde(default)]
    message: String,
}

/// One event of the audit log.
#[derive(Deserialize)]
struct Logged {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    effective_at: i64,
    actor: Option<LoggedActor>,
}

#[derive(Deserialize)]
struct LoggedActor {
    session: Option<LoggedSession>,
    api_key: Option<LoggedKey>,
}

#[derive(Deserialize)]
struct LoggedSession {
    user: Option<LoggedUser>,
    ip_address: Option<String>,
}

#[derive(Deserialize)]
struct LoggedKey {
    id: Option<String>,
    user: Option<LoggedUser>,
    service_account: Option<LoggedUser>,
}

#[derive(Deserialize)]
struct LoggedUser {
    id: Option<String>,
    email: Option<String>,
}

impl Logged {
    fn entry(&self) -> Entry {
        let by = self.actor.as_ref().and_then(LoggedActor::words);
        let by = by.unwrap_or_else(|| "by nobody that is named".into());
        Entry { at: Some(instant(self.effective_at)), what: format!("{} {by}", plain(&self.kind)) }
    }
}

impl LoggedActor {
    fn words(&self) -> Option<String> {
        match (&self.session, &self.api_key) {
            (Some(session), _) => {
                let user = session.user.as_ref().and_then(LoggedUser::name)?;
                let from = session.ip_address.as_ref().map(|from| format!(" from {}", plain(from)));
                Some(format!("by {user} in the dashboard{}", from.unwrap_or_default()))
            }
            (None, Some(key)) => {
                let owner = key.user.as_ref().or(key.service_account.as_ref());
                let owner = owner.and_then(LoggedUser::name).map(|name| format!(" of {name}"));
                let id = key.id.as_deref().map(plain).unwrap_or_else(|| "of unknown id".into());
                Some(format!("by key {id}{}", owner.unwrap_or_default()))
            }
            (None, None) => None,
        }
    }
}

impl LoggedUser {
    fn name(&self) -> Option<String> {
        self.email.as_deref().or(self.id.as_deref()).map(plain)
    }
}

#[derive(Deserialize)]
struct UsagePage {
    data: Vec<Bucket>,
    #[serde(default)]
    has_more: bool,
    next_page: Option<String>,
}

#[derive(Deserialize)]
struct Bucket {
    start_time: i64,
    end_time: i64,
    results: Vec<Used>,
}

impl Bucket {
    fn requests_of(&self, key: &str) -> u64 {
        let its = self.results.iter().filter(|used| used.api_key_id.as_deref() == Some(key));
        its.map(|used| used.num_model_requests).sum()
    }
}

#[derive(Deserialize)]
struct Used {
    api_key_id: Option<String>,
    num_model_requests: u64,
}

/// What the usage report says of a key.
#[derive(Default)]
struct Report {
    requests: u64,
    /// From when to when the latest use lies.
    latest: Option<(i64, i64)>,
}

impl Report {
    fn detail(&self) -> Option<String> {
        (self.requests > 0).then(|| format!("{} requests in 7 days", self.requests))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration as Time;

    use keywheel_driver::Remedy;
    use keywheel_driver::conformance::faults::Call;
    use keywheel_driver::conformance::issuer::{Subject, run};
    use keywheel_twins::fault::{Echo, Fault, Rule};
    use keywheel_twins::openai::{HandMade, Twin, TwinOptions};
    use serde_json::Value;

    use super::super::bench::{
        Script, credential, is_unknown, refusal, status, taken_over, unclear_answers_prove_nothing,
        written,
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
            let folder = written(twin.admin_key());
            let config = json!({
                "project": twin.project(),
                "admin_key": { "file": "admin.key" },
                "base_url": twin.base_url(),
            });
            let config: Config = serde_json::from_value(taken_over(config, changes)).unwrap();
            let issuer =
                config.build(&Context::at(folder.path())).unwrap_or_else(|e| panic!("{e}"));
            Self { twin, issuer, _folder: folder }
        }

        fn script(&self, rules: Vec<Rule>) {
            self.twin.set_script(rules).unwrap();
        }

        async fn mint(&self, label: &str) -> Result<Minted, CallError> {
            let label = Label(label.into());
            self.issuer.mint(&Mint::new(&label)).await
        }

        async fn minted(&self, label: &str) -> (IssuedId, Credential) {
            let minted = self.mint(label).await.unwrap_or_else(|e| panic!("{e}"));
            (minted.issued.unwrap(), minted.credential.unwrap())
        }

        async fn listed(&self, prefix: &str) -> Vec<String> {
            let live = self.issuer.list(prefix).await.unwrap_or_else(|e| panic!("{e}"));
            live.into_iter().map(|live| live.issued.id).collect()
        }

        async fn verify(&self, credential: &Credential) -> Verdict {
            self.issuer.verify(credential).await.unwrap_or_else(|e| panic!("{e}"))
        }
    }

    fn id_of(key: &HandMade) -> IssuedId {
        issued(&key.owner, &key.id)
    }

    #[tokio::test]
    async fn the_issuer_keeps_its_contract() {
        for keeps_keys_of_accounts in [false, true] {
            let bench = Bench::with(
                TwinOptions { keeps_keys_of_accounts, ..TwinOptions::default() },
                json!({}),
            );
            let lose = || bench.script(vec![Rule::first("create_service_account", Fault::Cut)]);
            let garbage = credential("sk-svcacct-garbage");

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
                broken.iter().map(|broken| credential(broken.twin.admin_key())).collect();
            canaries.push(credential("sk-svcacct-kwcanary-5e1f-kwcanary-5e1f"));

            run(&Subject {
                issuer: &*bench.issuer,
                prefix: "kw-suite-",
                garbage: &garbage,
                lose_next_answer: Some(&lose),
                broken: &broken_issuers,
                canaries: &canaries.iter().collect::<Vec<_>>(),
            })
            .await;
            assert_eq!(bench.twin.accounts(), [""; 0]);
            assert!(broken.iter().all(|broken| broken.twin.unfired().is_empty()));
        }
    }

    /// The answer to a mint names the account first; all else is about keys.
    fn part(operation: &str, at: &str, version: &IssuedId) -> String {
        let (account, key) = parts(version).unwrap();
        let is_account = operation == "create_service_account" && at == "/id";
        if is_account { account.into() } else { key.into() }
    }

    #[tokio::test]
    async fn h92_no_fault_of_the_provider_does_harm() {
        let bench = Bench::with(TwinOptions::default(), json!({ "settle_for": "100ms" }));
        let operations = [
            (Call::Make, "create_service_account", &["/id", "/api_key/id"][..]),
            (Call::Look, "get_api_key", &["/id"][..]),
            (Call::List, "list_api_keys", &[][..]),
            (Call::End, "delete_api_key", &["/id"][..]),
        ];
        let side = Script {
            faults: bench.twin.faults(),
            operations: &operations,
            names: &part,
            live: &|label| bench.twin.live(label).len(),
        };
        assert_eq!(side.does_no_harm(&*bench.issuer, true).await, 88);
    }

    #[tokio::test]
    async fn h04_a_mint_without_a_whole_answer_is_unknown_and_found_by_its_label() {
        for fault in [
            Fault::Cut,
            Fault::TimeoutAfter,
            Fault::Hang,
            Fault::LateLanding { after_ms: 50 },
            Fault::Status { code: 500, retry_after: None, body: Echo::Json, applied: true },
            Fault::Status { code: 408, retry_after: None, body: Echo::Json, applied: true },
            Fault::Status { code: 200, retry_after: None, body: Echo::Html, applied: true },
            Fault::Status { code: 200, retry_after: None, body: Echo::Json, applied: true },
        ] {
            let bench = Bench::new();
            bench.script(vec![Rule::first("create_service_account", fault.clone())]);
            // The engine drops a call at its deadline, which is an unknown too.
            let silent = matches!(fault, Fault::TimeoutAfter | Fault::Hang);
            let deadline = Time::from_secs(if silent { 3 } else { 600 });
            match tokio::time::timeout(deadline, bench.mint("kw-1-1")).await {
                Ok(outcome) => assert!(!silent && is_unknown(&outcome), "{fault:?}"),
                Err(_) => assert!(silent, "{fault:?}"),
            }
            assert_eq!(bench.twin.unfired(), []);
            let mut orphans = bench.listed("kw-1-").await;
            while orphans.is_empty() {
                tokio::time::sleep(Time::from_millis(10)).await;
                orphans = bench.listed("kw-1-").await;
            }
            assert_eq!(orphans.len(), 1, "{fault:?}");
            bench
                .issuer
                .revoke(&IssuedId::new(orphans.remove(0)))
                .await
                .unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(bench.twin.live("kw-1-1"), [""; 0]);
            assert_eq!(bench.twin.accounts(), [""; 0]);
        }
    }

    #[tokio::test]
    async fn h91_what_cannot_be_read_of_the_key_in_use_is_named() {
        let bench = Bench::new();
        assert_eq!(bench.mint("kw-1-1").await.unwrap().notes, [""; 0], "there was no key before");
        let in_use = bench.twin.make_key("by hand");
        bench.twin.restrict(&in_use.id, &["api.model.read"]);
        let (label, previous) = (Label("kw-2-1".into()), id_of(&in_use));
        let request = Mint { previous: Some(&previous), ..Mint::new(&label) };
        let minted = bench.issuer.mint(&request).await.unwrap_or_else(|e| panic!("{e}"));
        let [scopes] = minted.notes.as_slice() else { panic!("{:?}", minted.notes) };
        assert!(scopes.starts_with("scopes of the key in use cannot be read"), "{scopes}");
    }

    #[test]
    fn h91_an_account_without_a_role_is_named() {
        for (role, notes) in [(None, 0), (Some("member"), 0), (Some("none"), 1)] {
            assert_eq!(differences(false, role).len(), notes, "{role:?}");
            assert_eq!(differences(true, role).len(), notes + 1, "{role:?}");
        }
    }

    #[tokio::test]
    async fn a_mint_that_was_definitely_not_done_is_refused() {
        for (code, kind) in [
            (400, RefusalKind::Unsupported),
            (401, RefusalKind::Permission),
            (403, RefusalKind::Permission),
            (404, RefusalKind::NotFound),
            (409, RefusalKind::Unavailable),
            (429, RefusalKind::RateLimited),
        ] {
            let bench = Bench::new();
            bench.script(vec![Rule::first("create_service_account", Fault::status(code))]);
            assert_eq!(refusal(bench.mint("kw-1-1").await).kind, kind, "{code}");
            assert_eq!(bench.twin.accounts(), [""; 0]);
        }
    }

    #[tokio::test]
    async fn a_mint_at_a_server_that_is_down_is_refused() {
        let Bench { twin, issuer, _folder } = Bench::new();
        twin.shutdown();
        let label = Label("kw-1-1".into());
        let refusal = refusal(issuer.mint(&Mint::new(&label)).await);
        assert_eq!(
            (refusal.kind, refusal.remedy),
            (RefusalKind::Unavailable, Remedy::Retry { after: None })
        );
    }

    #[tokio::test]
    async fn h97_the_wait_that_the_issuer_asks_for_is_kept_at_every_call() {
        let bench = Bench::new();
        let id = id_of(&bench.twin.make_key("backend"));
        bench.script(vec![Rule::every("*", Fault::busy())]);
        let refusals = [
            refusal(bench.mint("kw-1-1").await),
            refusal(bench.issuer.list("kw-").await),
            refusal(bench.issuer.revoke(&id).await),
            refusal(bench.issuer.preflight().await),
            refusal(bench.issuer.usage().unwrap().last_used(&id).await),
        ];
        for refusal in refusals {
            assert_eq!(refusal.remedy, Remedy::Retry { after: Some(Span::hours(1)) });
            assert!(refusal.message.starts_with("issuer `openai` answered 429"), "{refusal}");
        }
    }

    #[tokio::test]
    async fn h96_every_answer_to_a_revoke_has_one_meaning() {
        for (operation, code, done) in [
            ("delete_api_key", 404, true),
            ("delete_service_account", 404, true),
            ("get_api_key", 404, true),
            ("delete_api_key", 401, false),
            ("delete_api_key", 403, false),
            ("delete_api_key", 409, false),
            ("delete_api_key", 429, false),
            ("delete_service_account", 403, false),
            ("get_api_key", 403, false),
            ("list_api_keys", 500, false),
        ] {
            let bench = Bench::new();
            let (id, _) = bench.minted("kw-1-1").await;
            bench.script(vec![Rule::first(operation, Fault::status(code))]);
            let outcome = bench.issuer.revoke(&id).await;
            assert_eq!(bench.twin.unfired(), [], "{operation} {code}");
            assert_eq!(outcome.is_ok(), done, "{operation} {code}: {outcome:?}");
            assert!(!is_unknown(&outcome), "{operation} {code}: {outcome:?}");
            bench.issuer.revoke(&id).await.unwrap_or_else(|e| panic!("{operation} {code}: {e}"));
        }
        for (operation, fault) in [
            ("delete_api_key", Fault::status(500)),
            ("delete_api_key", Fault::Cut),
            ("delete_api_key", status(200, Echo::Html)),
            ("delete_service_account", Fault::status(503)),
        ] {
            let bench = Bench::new();
            let (id, _) = bench.minted("kw-1-1").await;
            bench.script(vec![Rule::first(operation, fault.clone())]);
            assert!(is_unknown(&bench.issuer.revoke(&id).await), "{operation} {fault:?}");
            bench.issuer.revoke(&id).await.unwrap_or_else(|e| panic!("{operation} {fault:?}: {e}"));
            assert_eq!(bench.twin.live("kw-1-1"), [""; 0]);
        }
    }

    #[tokio::test]
    async fn h96_a_wrong_project_does_not_pass_for_a_dead_key() {
        let bench = Bench::with(TwinOptions::default(), json!({ "project": "proj_typo" }));
        let id = id_of(&bench.twin.make_key("backend"));
        assert_eq!(refusal(bench.issuer.revoke(&id).await).kind, RefusalKind::NotFound);
        assert_eq!(bench.twin.live("backend").len(), 1);
    }

    #[tokio::test]
    async fn h07_a_revoke_that_failed_is_done_when_it_is_asked_again() {
        let bench = Bench::new();
        let (id, credential) = bench.minted("kw-1-1").await;
        let fail = |nth| Rule {
            nth: keywheel_twins::fault::Nth::Number(nth),
            ..Rule::first("delete_api_key", Fault::status(500))
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
    async fn h92_a_key_of_another_owner_is_left_alone() {
        for keeps_keys_of_accounts in [false, true] {
            let bench = Bench::with(
                TwinOptions { keeps_keys_of_accounts, ..TwinOptions::default() },
                json!({}),
            );
            let (ours, theirs) = (bench.minted("kw-1-1").await.0, bench.twin.make_key("backend"));
            let (account, _) = parts(&ours).unwrap();
            let mixed = issued(account, &theirs.id);
            assert_eq!(refusal(bench.issuer.revoke(&mixed).await).kind, RefusalKind::Unsupported);
            assert_eq!((bench.twin.live("backend").len(), bench.twin.live("kw-1-1").len()), (1, 1));
            for malformed in ["", "/", "/key", "account", "a/b/c"] {
                assert_eq!(
                    refusal(bench.issuer.revoke(&IssuedId::new(malformed)).await).kind,
                    RefusalKind::Unsupported
                );
            }
        }
    }

    #[tokio::test]
    async fn h92_an_account_with_another_key_is_left_alone() {
        let bench = Bench::with(
            TwinOptions { keeps_keys_of_accounts: true, ..TwinOptions::default() },
            json!({}),
        );
        let one = bench.twin.make_key("backend");
        let other = bench.twin.make_key_for(&one.owner);
        let refusal = refusal(bench.issuer.revoke(&id_of(&one)).await);
        assert!(
            refusal.message.ends_with("owns 1 other keys, and the issuer ends them all or none"),
            "{refusal}"
        );
        assert!(bench.twin.accepts(&one.value) && bench.twin.accepts(&other.value));
        let whole = issued(&one.owner, "");
        assert!(bench.issuer.revoke(&whole).await.is_err());
        assert!(bench.twin.accepts(&one.value) && bench.twin.accepts(&other.value));
    }

    #[tokio::test]
    async fn h92_an_account_that_is_not_of_a_rotation_does_not_end_without_its_key_being_named() {
        let bench = Bench::new();
        let key = bench.twin.make_key("backend");
        let refusal = refusal(bench.issuer.revoke(&issued(&key.owner, "")).await);
        assert!(refusal.message.ends_with("is not of a rotation"), "{refusal}");
        assert!(bench.twin.accepts(&key.value));
    }

    #[tokio::test]
    async fn an_adopted_account_outlives_its_key() {
        let bench = Bench::new();
        let key = bench.twin.make_key("backend");
        bench.issuer.revoke(&id_of(&key)).await.unwrap_or_else(|e| panic!("{e}"));
        assert!(!bench.twin.accepts(&key.value));
        assert_eq!(bench.twin.accounts(), ["backend"]);
    }

    #[tokio::test]
    async fn a_key_that_a_person_owns_is_revoked_alone() {
        let bench = Bench::new();
        let key = bench.twin.make_user_key("mine");
        bench.script(vec![Rule::first("delete_api_key", Fault::status(400))]);
        assert_eq!(refusal(bench.issuer.revoke(&id_of(&key)).await).kind, RefusalKind::Unsupported);
        bench.issuer.revoke(&id_of(&key)).await.unwrap_or_else(|e| panic!("{e}"));
        assert!(!bench.twin.accepts(&key.value));
    }

    #[tokio::test]
    async fn an_account_that_lost_its_key_is_still_swept_up() {
        let bench = Bench::new();
        let (id, _) = bench.minted("kw-1-1").await;
        bench.script(vec![Rule::first("delete_service_account", Fault::status(500))]);
        assert!(is_unknown(&bench.issuer.revoke(&id).await));
        let left = bench.listed("kw-").await;
        assert_eq!(left, [format!("{}/", parts(&id).unwrap().0)]);
        bench.issuer.revoke(&IssuedId::new(&left[0])).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(bench.twin.accounts(), [""; 0]);
    }

    #[tokio::test]
    async fn a_key_that_shows_late_ends_with_its_account() {
        let bench = Bench::new();
        let (id, credential) = bench.minted("kw-1-1").await;
        bench.script(vec![Rule::first("list_api_keys", Fault::DelayedList { for_ms: 60_000 })]);
        let found = bench.listed("kw-1-").await;
        assert_eq!(found, [format!("{}/", parts(&id).unwrap().0)]);
        bench.issuer.revoke(&IssuedId::new(&found[0])).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(bench.verify(&credential).await, Verdict::Refused);
    }

    #[tokio::test]
    async fn h88_and_h87_only_the_definite_answers_prove_anything() {
        let bench = Bench::new();
        let key = bench.twin.make_key("backend");
        let live = credential(&key.value);
        let (issuer, faults) = (&*bench.issuer, bench.twin.faults());
        unclear_answers_prove_nothing(issuer, faults, "list_models", &live).await;
        bench.script(vec![Rule::first("list_models", Fault::status(401))]);
        assert!(matches!(bench.verify(&live).await, Verdict::CannotTell(_)));
        bench.script(vec![Rule::first("list_models", Fault::LateLanding { after_ms: 0 })]);
        assert!(is_unknown(&bench.issuer.verify(&live).await));
        bench.twin.restrict(&key.id, &["model.request"]);
        assert_eq!(
            bench.verify(&live).await,
            Verdict::Accepted,
            "a key without the scope is alive"
        );
        assert_eq!(bench.verify(&credential("sk-wrong")).await, Verdict::Refused);
    }

    #[tokio::test]
    async fn h87_a_new_key_is_refused_until_it_is_known() {
        let options = TwinOptions { propagation: Time::from_secs(2), ..TwinOptions::default() };
        let bench = Bench::with(options, json!({}));
        let (_, credential) = bench.minted("kw-1-1").await;
        let mut verdicts = vec![bench.verify(&credential).await];
        while verdicts.last() != Some(&Verdict::Accepted) {
            tokio::time::sleep(Time::from_millis(10)).await;
            verdicts.push(bench.verify(&credential).await);
        }
        assert_eq!(verdicts[0], Verdict::Refused);
    }

    #[tokio::test]
    async fn h88_a_revoked_key_is_accepted_until_it_is_known() {
        let options = TwinOptions { revocation: Time::from_secs(2), ..TwinOptions::default() };
        let bench = Bench::with(options, json!({}));
        let (id, credential) = bench.minted("kw-1-1").await;
        bench.issuer.revoke(&id).await.unwrap_or_else(|e| panic!("{e}"));
        let mut verdicts = vec![bench.verify(&credential).await];
        while verdicts.last() != Some(&Verdict::Refused) {
            tokio::time::sleep(Time::from_millis(10)).await;
            verdicts.push(bench.verify(&credential).await);
        }
        assert_eq!(verdicts[0], Verdict::Accepted);
    }

    #[tokio::test]
    async fn h89_a_key_is_tried_with_what_the_workload_calls() {
        let bench = Bench::with(
            TwinOptions::default(),
            json!({ "verify": { "chat": { "model": "gpt-twin" } } }),
        );
        let key = bench.twin.make_key("backend");
        assert_eq!(bench.verify(&credential(&key.value)).await, Verdict::Accepted);
        assert_eq!(bench.twin.uses(&key.id), 1);
        assert_eq!(bench.verify(&credential("sk-wrong")).await, Verdict::Refused);
    }

    #[tokio::test]
    async fn h90_a_full_project_is_refused_and_nothing_is_deleted_for_it() {
        let bench = Bench::with(
            TwinOptions { most_accounts: Some(2), ..TwinOptions::default() },
            json!({}),
        );
        let keys = [bench.twin.make_key("backend"), bench.twin.make_key("kw-0-1")];
        assert_eq!(refusal(bench.mint("kw-1-1").await).remedy, Remedy::Operator);
        assert!(keys.iter().all(|key| bench.twin.accepts(&key.value)));
        let found = bench.issuer.preflight().await.unwrap();
        let messages: Vec<_> = found.iter().map(|finding| finding.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "the project has 2 service accounts",
                "service accounts of a rotation exist: `kw-0-1`"
            ]
        );
    }

    #[tokio::test]
    async fn h94_a_value_that_was_lost_is_never_shown_again() {
        let bench = Bench::new();
        let (lost, _) = bench.minted("kw-1-1").await;
        assert!(bench.issuer.reread(&lost).await.is_ok_and(|again| again.is_none()));
        bench.issuer.revoke(&lost).await.unwrap_or_else(|e| panic!("{e}"));
        let (next, credential) = bench.minted("kw-1-2").await;
        assert_ne!(lost, next);
        assert_eq!(bench.verify(&credential).await, Verdict::Accepted);
        assert_eq!(bench.listed("kw-1-").await, [next.id]);
    }

    #[tokio::test]
    async fn h115_a_code_that_is_not_known_is_not_repeated() {
        let bench = Bench::new();
        let missing = refusal(
            Bench::with(TwinOptions::default(), json!({ "project": "proj_typo" }))
                .mint("kw-1-1")
                .await,
        );
        assert!(
            missing.message.starts_with("issuer `openai` answered 404 (request req_"),
            "{missing}"
        );
        bench.script(vec![Rule::first("create_service_account", status(403, Echo::EchoKey))]);
        let echoed = refusal(bench.mint("kw-1-1").await);
        assert_eq!(echoed.message, "issuer `openai` answered 403");
    }

    #[tokio::test]
    async fn a_long_list_is_read_to_its_end() {
        let bench = Bench::new();
        for n in 0..205 {
            bench.twin.make_key(&format!("kw-{n}-1"));
        }
        bench.twin.make_key("backend");
        assert_eq!(bench.listed("kw-").await.len(), 205);
        assert_eq!(bench.listed("kw-7").await.len(), 11);
        assert_eq!(bench.listed("").await.len(), 206);
    }

    #[tokio::test]
    async fn the_end_that_was_chosen_is_read_back() {
        let bench = Bench::with(TwinOptions::default(), json!({ "expires_in": "30d" }));
        let minted = bench.mint("kw-1-1").await.unwrap_or_else(|e| panic!("{e}"));
        let left = minted.expires_at.unwrap().since(instant(seconds_now()));
        assert!(Span::days(29) < left && left <= Span::days(30), "{left}");
        assert!(bench.issuer.facts().expiry_settable);
    }

    fn told(entries: &[Entry]) -> String {
        entries.iter().map(|entry| format!("{}\n", entry.what)).collect()
    }

    #[tokio::test]
    async fn an_incident_is_shown_what_was_done_to_a_key_and_with_it() {
        let bench = Bench::new();
        let (id, _) = bench.minted("kw-1-1").await;
        let (other, _) = bench.minted("kw-2-1").await;
        let (_, key) = parts(&id).unwrap();
        bench.twin.add_use(key, Time::from_secs(2 * 24 * 3_600));
        bench.twin.end_by_itself(key);
        let audit = bench.issuer.audit().unwrap();
        let entries = audit.since(&id, Timestamp::default()).await.unwrap();
        let told_of = told(&entries);
        assert_eq!(entries.len(), 4, "{told_of}");
        assert!(told_of.starts_with("1 request in the 24 h from then on\n"), "{told_of}");
        assert!(told_of.contains("service_account.created by key key_"), "{told_of}");
        assert!(told_of.contains(" of someone@example.com\n"), "{told_of}");
        assert!(told_of.contains("api_key.deleted by nobody that is named\n"), "{told_of}");
        assert!(entries.is_sorted_by_key(|entry| entry.at));
        assert_eq!(audit.since(&other, Timestamp::default()).await.unwrap().len(), 2);
        let late = instant(seconds_now()) + Span::hours(1);
        assert!(told(&audit.since(&id, late).await.unwrap()).contains("has nothing of it"));
    }

    #[tokio::test]
    async fn an_incident_is_told_what_could_not_be_read() {
        let bench = Bench::new();
        let by_hand = bench.twin.make_key("by-hand");
        let audit = bench.issuer.audit().unwrap();
        let from_dashboard = audit.since(&id_of(&by_hand), Timestamp::default()).await.unwrap();
        let told_of = told(&from_dashboard);
        assert!(told_of.contains("by someone@example.com in the dashboard from 192.0.2.7"));
        bench.script(vec![Rule::every("list_audit_logs", status(403, Echo::EchoKey))]);
        let entries = audit.since(&id_of(&by_hand), Timestamp::default()).await.unwrap();
        let told_of = told(&entries);
        assert!(told_of.contains("the audit log could not be read"), "{told_of}");
        assert!(!told_of.contains(bench.twin.admin_key()), "{told_of}");
        assert_eq!(entries[0].at, None);
    }

    #[tokio::test]
    async fn the_latest_use_is_found_wherever_it_shows() {
        let bench = Bench::new();
        let (key, other) = (bench.twin.make_key("backend"), bench.twin.make_key("other"));
        let last_used =
            async || bench.issuer.usage().unwrap().last_used(&id_of(&key)).await.unwrap();
        bench.twin.add_use(&other.id, Time::ZERO);
        assert_eq!(last_used().await, LastUsed { at: None, detail: None });

        bench.twin.add_use(&key.id, Time::from_secs(50 * 3_600));
        bench.twin.add_use(&key.id, Time::from_secs(90 * 60));
        let used = last_used().await;
        let ago = instant(seconds_now()).since(used.at.unwrap());
        assert!(Span::minutes(89) <= ago && ago <= Span::minutes(91), "{ago}");
        assert_eq!(used.detail.as_deref(), Some("2 requests in 7 days"));

        bench.script(vec![Rule::every("usage_completions", Fault::status(403))]);
        let alone = last_used().await;
        assert_eq!(alone.at, used.at);
        assert!(alone.detail.unwrap().contains("may not read"));
        bench.script(vec![Rule::first("usage_completions", Fault::status(500))]);
        assert_eq!(
            refusal(bench.issuer.usage().unwrap().last_used(&id_of(&key)).await).kind,
            RefusalKind::Unavailable
        );
    }

    #[test]
    fn a_use_is_never_taken_for_an_older_one() {
        let report = |start| Report { requests: 1, latest: Some((start, start + 60)) };
        let latest = |own, report: &Report| latest(own, report, 1_000).map(Timestamp::millis);
        assert_eq!(latest(None, &Report::default()), None);
        assert_eq!(latest(Some(500), &Report::default()), Some(501_000));
        assert_eq!(latest(None, &report(480)), Some(540_000));
        assert_eq!(
            latest(Some(500), &report(480)),
            Some(501_000),
            "the key's own time explains the bucket"
        );
        assert_eq!(latest(Some(500), &report(540)), Some(600_000));
        assert_eq!(latest(Some(500), &report(960)), Some(1_001_000), "no use lies ahead");
    }

    #[tokio::test]
    async fn a_key_that_was_made_by_hand_is_identified_by_what_the_list_shows() {
        let bench = Bench::new();
        let keys = [
            bench.twin.make_key("backend"),
            bench.twin.make_user_key("mine"),
            bench.twin.make_key("other"),
        ];
        for key in &keys {
            match bench.issuer.identify(&credential(&key.value)).await.unwrap() {
                Identity::Known { issued, created_at, .. } => {
                    assert_eq!(issued, id_of(key));
                    assert!(created_at.is_some());
                }
                // Two random keys that end alike; both are named.
                Identity::Candidates(several) => assert!(several.contains(&id_of(key))),
                Identity::Unknown => panic!("{} is not found", key.id),
            }
        }
        bench.twin.remove_person();
        assert_ne!(
            bench.issuer.identify(&credential(&keys[1].value)).await.unwrap(),
            Identity::Unknown
        );
        assert_eq!(
            bench.issuer.identify(&credential("sk-elsewhere")).await.unwrap(),
            Identity::Unknown
        );
    }

    #[test]
    fn a_redacted_value_tells_only_by_both_ends() {
        assert!(shows("sk-svcac********wxyz", "sk-svcacct-abcdefwxyz"));
        assert!(shows("sk-abc...xyz", "sk-abcdefxyz"));
        assert!(!shows("sk-svcac********wxyz", "sk-svcacct-abcdefwxyy"));
        assert!(!shows("sk-svcac********", "sk-svcacct-abcdefwxyz"));
        assert!(!shows("********", "sk-svcacct-abcdefwxyz"));
        assert!(!shows("", "sk-svcacct-abcdefwxyz"));
        assert!(!shows("sk-abc*abc", "sk-abc"));
    }

    #[tokio::test]
    async fn preflight_names_what_stands_in_the_way() {
        let bench = Bench::new();
        let blocks = async |bench: &Bench| {
            let found = bench.issuer.preflight().await.unwrap();
            found
                .into_iter()
                .filter(|f| f.severity == keywheel_driver::Severity::Blocks)
                .map(|f| f.message)
                .collect::<Vec<_>>()
        };
        assert_eq!(blocks(&bench).await, [""; 0]);
        let before = bench.twin.accounts();
        bench.script(vec![Rule::first("list_admin_api_keys", Fault::status(401))]);
        assert_eq!(
            blocks(&bench).await,
            ["the admin key is not accepted: issuer `openai` answered 401"]
        );
        bench.twin.archive_project();
        assert_eq!(
            blocks(&bench).await,
            [format!("project `{}` is archived", bench.twin.project())]
        );
        let elsewhere = Bench::with(TwinOptions::default(), json!({ "project": "proj_typo" }));
        assert_eq!(blocks(&elsewhere).await, ["project `proj_typo` is not there"]);
        assert_eq!(bench.twin.accounts(), before);
    }

    #[tokio::test]
    async fn preflight_changes_nothing() {
        let bench = Bench::new();
        bench.twin.make_key("kw-0-1");
        bench.issuer.preflight().await.unwrap();
        assert!(bench.twin.requests().iter().all(|request| request.method == "GET"));
    }

    #[test]
    fn an_admin_key_never_travels_in_the_open() {
        let refused = |url| Api::new(TARGET, url).err().map(|refusal| refusal.kind);
        for open in [
            "http://api.openai.com/v1",
            "http://10.0.0.1",
            "ftp://127.0.0.1",
            "127.0.0.1",
            "file:///v1",
        ] {
            assert_eq!(refused(open), Some(RefusalKind::Unsupported), "{open}");
        }
        for odd in ["https://user@host/v1", "https://host/v1?key=1", "https://host/#x"] {
            assert_eq!(refused(odd), Some(RefusalKind::Unsupported), "{odd}");
        }
        for safe in [
            "https://proxy.example.com/openai/v1/",
            "http://127.0.0.1:8080/v1",
            "http://localhost",
            "http://[::1]/v1",
        ] {
            assert_eq!(refused(safe), None, "{safe}");
        }
        assert_eq!(Api::new(TARGET, OFFICIAL).unwrap().url(&[]).as_str(), OFFICIAL);
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused() {
        let build = |changes: Value| {
            let mut config = json!({ "project": "proj_1", "admin_key": { "env": "ADMIN_KEY" } });
            config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let config: Config = serde_json::from_value(config).unwrap();
            config.build(&Context::at("/")).err().map(|refusal| refusal.kind)
        };
        assert_eq!(build(json!({})), None);
        for wrong in [
            json!({ "project": "" }),
            json!({ "last_used": { "granularity": "250ms" } }),
            json!({ "expires_in": "366d" }),
            json!({ "expires_in": "0s" }),
            json!({ "base_url": "http://twin:8080/v1" }),
        ] {
            assert_eq!(build(wrong.clone()), Some(RefusalKind::Unsupported), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_value_that_no_header_can_hold_is_not_sent() {
        let bench = Bench::new();
        let refusal = refusal(bench.issuer.verify(&credential("line\nbreak-kwcanary")).await);
        assert_eq!(refusal.message, "the credential holds a character that no header can");
        assert_eq!(bench.twin.requests(), []);
    }
}
