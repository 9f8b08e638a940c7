//! `openrouter`: keys of one workspace, made and ended with a management key.
//!
//! A key is named by the label. The API keeps no idempotency key, so a mint whose answer is lost is found by that name, ended,
//! and made anew under another (H04). An issued id is the hash that the API calls the key by; that it is one of the value is
//! nowhere stated, so a key that was made by hand is told by the ends of its value and never by a hash of ours.
//!
//! What is set for the key in use is set for the next one: limit, reset, expiry, creator, guardrails, and its place in the
//! allow lists of provider keys. What could not be is said (H91). Nothing is minted where that would be in another workspace.
//!
//! A key is suspended by being disabled, and ended by being deleted.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::facts::{Authority, IssuerFacts, LastUsedFacts, Observe, ValueOrigin};
use keywheel_core::plan::Label;
use keywheel_core::planted;
use keywheel_core::secret::Credential;
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{
    Audit, Entry, Identity, Issuer, LastUsed, Live, Mint, Minted, Suspend, Usage, Verdict,
};
use keywheel_driver::{CallError, Duration, Finding, Refusal, RefusalKind, SecretReference};
use reqwest::header::HeaderMap;
use reqwest::{Method, Url};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::{
    Answer, Api, MOST_PAGES, Shown, is_about, known_by_ends, moment, now, plain, shows,
    shows_secret, unsupported,
};
use crate::http::Effect;
use crate::{Build, Context, reference};

const TARGET: &str = "issuer `openrouter`";
const OFFICIAL: &str = "https://openrouter.ai/api/v1";

/// What the label of every mint of ours begins with.
const OURS: &str = "kw-";

const DAY: Span = Span::days(1);

/// A key at OpenRouter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where a management key is read.
    pub management_key: SecretReference,
    /// The id of the workspace, if it is not the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_id: Option<String>,
    /// Where the API is, if not at the official address; HTTPS, or a loopback address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// When a new key ends by itself; after as long as the key in use was given, where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<Duration>,
    /// What shows whether the former key is still in use.
    #[serde(default)]
    pub usage: Shows,
    /// How exact and how late the issuer's last-used data are.
    #[serde(default)]
    pub last_used: LastUsedConfig,
    /// How long a new key may be refused, and an ended one accepted.
    #[serde(default = "default_propagation")]
    pub propagation: Duration,
    /// How long a call without an answer can still take effect and stay out of a list.
    #[serde(default = "default_settle_for")]
    pub settle_for: Duration,
}

/// What shows whether the former key is still in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shows {
    /// What it has spent today, and the activity of the days before.
    #[default]
    Activity,
    /// Nothing: the former key ends with soak and rollback window, whether it was used or not.
    Nothing,
}

/// How exact and how late the issuer's last-used data are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LastUsedConfig {
    /// How long after a use it shows.
    #[serde(default = "default_lag")]
    pub lag: Duration,
    /// How coarse its times are; at least `1d`.
    #[serde(default = "default_granularity")]
    pub granularity: Duration,
}

impl Default for LastUsedConfig {
    fn default() -> Self {
        Self { lag: default_lag(), granularity: default_granularity() }
    }
}

// No source states the delays, so each is long on purpose: too long a value costs waiting, too short a one an outage.

fn default_propagation() -> Duration {
    Span::minutes(5).into()
}

fn default_settle_for() -> Duration {
    Span::minutes(10).into()
}

/// A day shows in the activity once it is over, and what costs nothing shows nowhere else.
fn default_lag() -> Duration {
    Span::hours(26).into()
}

fn default_granularity() -> Duration {
    DAY.into()
}

impl Build for Config {
    type Driver = dyn Issuer;

    fn build(&self, context: &Context) -> Result<Arc<dyn Issuer>, Refusal> {
        if self.workspace_id.as_deref().is_some_and(|id| !is_uuid(id)) {
            return Err(unsupported("`workspace_id` is not a UUID"));
        }
        if self.last_used.granularity.span() < DAY {
            return Err(unsupported(
                "`last_used.granularity` must be at least `1d`: the issuer counts whole days",
            ));
        }
        if self.expires_in.is_some_and(|life| life.span() < Span::minutes(1)) {
            return Err(unsupported("`expires_in` must be at least `1m`"));
        }
        let management_key = reference::from_root(&self.management_key, context);
        let api = Api::new(TARGET, self.base_url.as_deref().unwrap_or(OFFICIAL))?;
        Ok(Arc::new(OpenRouter { config: Self { management_key, ..self.clone() }, api }))
    }
}

struct OpenRouter {
    config: Config,
    api: Api,
}

#[async_trait]
impl Issuer for OpenRouter {
    fn facts(&self) -> IssuerFacts {
        IssuerFacts {
            label: true,
            suspend: true,
            destroy: true,
            expiry_settable: true,
            last_used: (self.config.usage == Shows::Activity).then_some(LastUsedFacts {
                lag: self.config.last_used.lag.span(),
                granularity: self.config.last_used.granularity.span(),
            }),
            propagation: self.config.propagation.span(),
            settle_for: self.config.settle_for.span(),
            ..IssuerFacts::new(ValueOrigin::Theirs, Observe::Label, Authority::Issuer)
        }
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        let manager = self.manager().await?;
        let this: Data<OwnKey> = match self.read(&manager, self.api.url(&["key"])).await {
            Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::Permission => {
                return Ok(vec![Finding::blocks(refusal.message)]);
            }
            this => this?,
        };
        if !this.data.manages() {
            return Ok(vec![Finding::blocks(
                "`management_key` names an ordinary key, which may not make any: make a management key in the dashboard",
            )]);
        }
        let mut findings = Vec::new();
        if let Some(ends) = this.data.expires_at.as_deref().and_then(moment) {
            let left = ends.since(now());
            findings.push(Finding::note(format!("the management key ends in {left}")));
        }
        if let Some(workspace) = &self.config.workspace_id {
            let url = self.api.url(&["workspaces", workspace]);
            if self.find::<Data<Value>>(&manager, url).await?.is_none() {
                findings.push(Finding::blocks(format!("workspace `{workspace}` is not there")));
                return Ok(findings);
            }
        }
        let keys = self.keys(&manager).await?;
        findings.push(Finding::note(format!("the workspace has {} keys", keys.len())));
        let ours = keys.iter().filter(|key| key.name.starts_with(OURS));
        let names: Vec<String> = ours.map(|key| format!("`{}`", plain(&key.name))).collect();
        if !names.is_empty() {
            let names = names.join(", ");
            findings.push(Finding::note(format!("keys of a rotation exist: {names}")));
        }
        if let (None, Some(id)) = (&self.config.workspace_id, workspace_of_all(&keys)) {
            let id = plain(id);
            findings.push(Finding::note(format!(
                "a management key of another account would not be noticed: write `workspace_id: {id}`"
            )));
        }
        Ok(findings)
    }

    /// Reads what the key in use has before anything is made, so that no mint is lost to a question.
    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        let manager = self.manager().await?;
        let mut copied = match request.previous {
            Some(previous) if !planted!("settings_not_copied") => {
                self.settings_of(&manager, &previous.id).await?
            }
            _ => Copied::default(),
        };
        let mut body = json!({ "name": request.label.0 });
        if let Some(workspace) = &self.config.workspace_id {
            body["workspace_id"] = json!(workspace);
        }
        copied.wanted.set(&mut body, self.config.expires_in.map(Duration::span));
        let made = self.create(&manager, &mut body, &mut copied.notes).await?;
        if made.data.name != request.label.0 || made.key.0.expose().is_empty() {
            return Err(CallError::Unknown(format!(
                "{TARGET} made another key than was asked for"
            )));
        }
        let (label, hash) = (&request.label.0, &made.data.hash);
        let look = || self.get(&manager, hash);
        let is_new = |key: &Key| key.name == *label && shows_secret(&key.label, &made.key.0);
        self.api.recognise(label, self.config.settle_for.span(), look, is_new).await?;
        copied.notes.extend(differences(&body, &made.data));
        self.repeat(&manager, &made.data.hash, &mut copied).await;
        Ok(Minted {
            issued: Some(IssuedId::new(made.data.hash)),
            credential: Some(Credential::of_value(made.key.0)),
            expires_at: made.data.expires_at.as_deref().and_then(moment),
            notes: copied.notes,
        })
    }

    /// Says `CannotTell` for 402, 403, 429 and 5xx: a live key gets them too, so they prove neither life nor death.
    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        let value =
            credential.value().ok_or_else(|| unsupported("the credential has no field `value`"))?;
        let key = self.api.bearer(value, "credential")?;
        let answer = self.api.send(Method::GET, self.api.url(&["key"]), &key, None).await?;
        Ok(verdict(&answer))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Live>, CallError> {
        let mut keys = self.keys(&self.manager().await?).await?;
        keys.retain(|key| key.name.starts_with(prefix));
        let live =
            |key: Key| Live { issued: IssuedId::new(key.hash), label: Some(Label(key.name)) };
        Ok(keys.into_iter().map(live).collect())
    }

    /// Deletes a key after a look at it (H92).
    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError> {
        let manager = self.manager().await?;
        if self.look(&manager, id).await?.is_none() {
            return Ok(());
        }
        let answer = self.api.send(Method::DELETE, self.key_url(&id.id), &manager, None).await?;
        match answer.status.as_u16() {
            200..=299 => match answer.decode::<Ended>()?.deleted {
                true => Ok(()),
                false => Err(answer.not_understood()),
            },
            404 | 410 if !planted!("deleted_is_no_success") => Ok(()),
            _ => Err(error(&answer, Effect::Changes)),
        }
    }

    async fn identify(&self, credential: &Credential) -> Result<Identity, CallError> {
        let value = credential.value().and_then(|value| std::str::from_utf8(value.expose()).ok());
        let Some(value) = value else { return Ok(Identity::Unknown) };
        let mut keys = self.keys(&self.manager().await?).await?;
        keys.retain(|key| shows(&key.label, value));
        let known = |key: &Key| (IssuedId::new(&key.hash), moment(&key.created_at));
        let found: Vec<_> = keys.iter().map(known).collect();
        Ok(known_by_ends(&found, "the list shows one key whose value has the same ends"))
    }

    fn suspend(&self) -> Option<&dyn Suspend> {
        Some(self)
    }

    fn usage(&self) -> Option<&dyn Usage> {
        (self.config.usage == Shows::Activity).then_some(self as &dyn Usage)
    }

    fn audit(&self) -> Option<&dyn Audit> {
        Some(self)
    }
}

#[async_trait]
impl Suspend for OpenRouter {
    async fn suspend(&self, id: &IssuedId) -> Result<(), CallError> {
        self.set_disabled(id, true).await
    }

    async fn resume(&self, id: &IssuedId) -> Result<(), CallError> {
        self.set_disabled(id, false).await
    }
}

#[async_trait]
impl Usage for OpenRouter {
    /// Takes today from what the key has spent since midnight (UTC), and the days before from the activity, which counts what
    /// cost nothing too. A day stands for its last moment, so that no use is taken for an older one.
    ///
    /// A key that is gone was used on the days that its activity still shows; where it shows none, nothing is known of the key.
    async fn last_used(&self, id: &IssuedId) -> Result<LastUsed, CallError> {
        let manager = self.manager().await?;
        let Some(key) = self.get(&manager, &id.id).await? else {
            return self.last_used_while_it_was_there(&manager, id).await;
        };
        let days = match self.activity(&manager, &id.id).await {
            Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::Permission => None,
            days => Some(days?),
        };
        if days.is_none() && !key.spends_today() {
            return Err(Refusal::operator(
                RefusalKind::Permission,
                format!("{TARGET}: the management key may not read the activity, and nothing else shows each use"),
            )
            .into());
        }
        if key.spends_today() {
            let detail = Some("it has spent something today".to_owned());
            return Ok(LastUsed { at: Some(now()), detail });
        }
        of_whole_days(&days.unwrap_or_default())
    }
}

#[async_trait]
impl Audit for OpenRouter {
    async fn since(&self, id: &IssuedId, since: Timestamp) -> Result<Vec<Entry>, CallError> {
        let manager = self.manager().await?;
        let key = self.get(&manager, &id.id).await?;
        let mut entries = key.as_ref().map(Key::entries).unwrap_or_default();
        match self.activity(&manager, &id.id).await {
            Ok(days) => {
                for row in days {
                    entries.push(row.entry()?);
                }
            }
            Err(error) => entries
                .push(Entry { at: None, what: format!("the activity could not be read: {error}") }),
        }
        entries.retain(|entry| entry.at.is_none_or(|at| at >= since));
        entries.sort_by_key(|entry| entry.at);
        let what = match key.map(|key| key.spends_today()) {
            None => {
                "the key is deleted: only its requests are told any more, those of today tomorrow"
            }
            Some(true) => "it has spent something today; its requests of today show tomorrow",
            Some(false) => "its requests of today show tomorrow",
        };
        entries.push(Entry { at: None, what: what.into() });
        Ok(entries)
    }
}

impl OpenRouter {
    /// Reads the management key, which may run a program, and makes the header of it.
    async fn manager(&self) -> Result<HeaderMap, CallError> {
        let value = reference::read(&self.config.management_key).await?;
        Ok(self.api.bearer(&value, "management key")?)
    }

    fn key_url(&self, hash: &str) -> Url {
        self.api.url(&["keys", hash])
    }

    async fn read<T: DeserializeOwned>(
        &self,
        manager: &HeaderMap,
        url: Url,
    ) -> Result<T, CallError> {
        let answer = self.api.send(Method::GET, url, manager, None).await?;
        if answer.status.is_success() {
            answer.decode()
        } else {
            Err(error(&answer, Effect::Reads))
        }
    }

    /// Reads one thing, or none where it is not there.
    async fn find<T: DeserializeOwned>(
        &self,
        manager: &HeaderMap,
        url: Url,
    ) -> Result<Option<T>, CallError> {
        match self.read(manager, url).await {
            Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::NotFound => Ok(None),
            found => found.map(Some),
        }
    }

    async fn get(&self, manager: &HeaderMap, hash: &str) -> Result<Option<Key>, CallError> {
        match self.find::<Data<Key>>(manager, self.key_url(hash)).await? {
            Some(found) if !is_about(&found.data.hash, hash) => Err(self.api.shows_another()),
            found => Ok(found.map(|found| found.data)),
        }
    }

    /// Reads every key of the workspace, disabled ones too. How many a page has is theirs to change, so the list ends with a
    /// page that brings nothing new.
    async fn keys(&self, manager: &HeaderMap) -> Result<Vec<Key>, CallError> {
        let (mut keys, mut known) = (Vec::<Key>::new(), BTreeSet::new());
        for _ in 0..MOST_PAGES {
            let mut url = self.api.url(&["keys"]);
            url.query_pairs_mut()
                .append_pair("include_disabled", "true")
                .append_pair("offset", &keys.len().to_string())
                .extend_pairs(self.config.workspace_id.iter().map(|id| ("workspace_id", id)));
            let page: Data<Vec<Key>> = self.read(manager, url).await?;
            let before = keys.len();
            keys.extend(page.data.into_iter().filter(|key| known.insert(key.hash.clone())));
            if keys.len() == before {
                return Ok(keys);
            }
        }
        Err(self.api.endless("the list of keys"))
    }

    /// Reads every page of a list that says how long it is. Without a workspace, provider keys are those of the default one.
    async fn all<T: DeserializeOwned>(
        &self,
        manager: &HeaderMap,
        path: &[&str],
        workspace: Option<&str>,
    ) -> Result<Vec<T>, CallError> {
        let mut items = Vec::new();
        for _ in 0..MOST_PAGES {
            let mut url = self.api.url(path);
            url.query_pairs_mut()
                .append_pair("limit", "100")
                .append_pair("offset", &items.len().to_string())
                .extend_pairs(workspace.map(|id| ("workspace_id", id)));
            let page: Data<Vec<T>> = self.read(manager, url).await?;
            if page.data.is_empty() {
                return Ok(items);
            }
            items.extend(page.data);
        }
        Err(self.api.endless("a list"))
    }

    async fn activity(&self, manager: &HeaderMap, hash: &str) -> Result<Vec<Row>, CallError> {
        let mut url = self.api.url(&["activity"]);
        url.query_pairs_mut().append_pair("api_key_hash", hash);
        Ok(self.read::<Data<Vec<Row>>>(manager, url).await?.data)
    }

    async fn last_used_while_it_was_there(
        &self,
        manager: &HeaderMap,
        id: &IssuedId,
    ) -> Result<LastUsed, CallError> {
        let used = of_whole_days(&self.activity(manager, &id.id).await?)?;
        match used.at {
            Some(_) => Ok(used),
            None => Err(no_key(id).into()),
        }
    }

    /// Looks at a key before it is changed: it must be the one that was named, and of this workspace (H92). None where it is
    /// not there, provided that the management key is accepted and the workspace exists: a wrong account must not pass for a
    /// dead key (H96).
    async fn look(&self, manager: &HeaderMap, id: &IssuedId) -> Result<Option<Key>, CallError> {
        if !is_hash(&id.id) {
            return Err(unsupported("the issued id is not a hash of 64 digits").into());
        }
        let Some(key) = self.get(manager, &id.id).await? else {
            if !planted!("wrong_account_is_death") {
                self.keys(manager).await?;
            }
            return Ok(None);
        };
        let ours = self.config.workspace_id.as_ref().is_none_or(|id| *id == key.workspace_id);
        if !(ours || planted!("workspace_not_checked")) {
            let theirs = plain(&key.workspace_id);
            let message = format!("key `{}` belongs to workspace `{theirs}`", key.hash);
            return Err(unsupported(&message).into());
        }
        Ok(Some(key))
    }

    async fn set_disabled(&self, id: &IssuedId, disabled: bool) -> Result<(), CallError> {
        let manager = self.manager().await?;
        let Some(key) = self.look(&manager, id).await? else {
            return Err(no_key(id).into());
        };
        if key.disabled == disabled {
            return Ok(());
        }
        let body = json!({ "disabled": disabled });
        let url = self.key_url(&id.id);
        let answer = self.api.send(Method::PATCH, url, &manager, Some(&body)).await?;
        if !answer.status.is_success() {
            return Err(error(&answer, Effect::Changes));
        }
        let changed = answer.decode::<Data<Key>>()?.data;
        if !is_about(&changed.hash, &id.id) {
            return Err(self.api.changed_another());
        }
        if changed.disabled == disabled { Ok(()) } else { Err(answer.not_understood()) }
    }

    /// Reads everything that is set for the key in use, and refuses where the next one would be made in another workspace.
    async fn settings_of(&self, manager: &HeaderMap, hash: &str) -> Result<Copied, CallError> {
        let Some(key) = self.get(manager, hash).await? else {
            let note = "the issuer does not know the key in use any more, so no setting was copied";
            return Ok(Copied { notes: vec![note.into()], ..Copied::default() });
        };
        let here = match &self.config.workspace_id {
            Some(workspace) => *workspace == key.workspace_id,
            None => self.keys(manager).await?.iter().any(|listed| listed.hash == key.hash),
        };
        if !here {
            let message = format!(
                "the key in use belongs to workspace `{id}`: say `workspace_id: {id}`",
                id = plain(&key.workspace_id)
            );
            return Err(unsupported(&message).into());
        }
        let mut notes = Vec::new();
        if let Some(limit) = &key.limit {
            notes.push(format!(
                "what the new key spends begins at zero: beside what the key in use has spent it may spend its limit of {limit} USD again"
            ));
        }
        let guardrails = self
            .all::<Assignment>(manager, &["guardrails", "assignments", "keys"], None)
            .await
            .map(|all| all.into_iter().filter(|one| one.key_hash == hash).collect());
        let workspace = self.config.workspace_id.as_deref();
        let workspace = workspace.filter(|_| !planted!("provider_keys_of_default_workspace"));
        let provider_keys =
            self.all::<ProviderKey>(manager, &["byok"], workspace).await.map(|all| {
                all.into_iter().filter(|one| one.allowed().any(|allowed| allowed == hash)).collect()
            });
        Ok(Copied {
            guardrails: or_note(guardrails, "whether it has guardrails", &mut notes),
            provider_keys: or_note(provider_keys, "which provider keys it may use", &mut notes),
            wanted: Wanted::of(&key),
            notes,
        })
    }

    /// Makes a key. Who is said to have made the one in use may have left: what was refused for it is asked for without.
    async fn create(
        &self,
        manager: &HeaderMap,
        body: &mut Value,
        notes: &mut Vec<String>,
    ) -> Result<Made, CallError> {
        let ask = async |body: &Value| {
            self.api.send(Method::POST, self.api.url(&["keys"]), manager, Some(body)).await
        };
        let mut answer = ask(body).await?;
        let creator = body.as_object_mut().and_then(|body| {
            (answer.status.as_u16() == 400).then(|| body.remove("creator_user_id")).flatten()
        });
        if creator.is_some() {
            answer = ask(body).await?;
            notes.push("the issuer names another creator of the new key".into());
        }
        if !answer.status.is_success() {
            return Err(error(&answer, Effect::Changes));
        }
        answer.decode()
    }

    /// Gives the new key the guardrails and the provider keys of the one in use. The key is made: whatever fails is a note.
    async fn repeat(&self, manager: &HeaderMap, hash: &str, copied: &mut Copied) {
        for guardrail in &copied.guardrails {
            let id = &guardrail.guardrail_id;
            let url = self.api.url(&["guardrails", id, "assignments", "keys"]);
            let body = json!({ "key_hashes": [hash] });
            if let Err(error) = self.change(manager, Method::POST, url, &body).await {
                let id = plain(id);
                let note = format!("guardrail `{id}` does not cover the new key: {error}");
                copied.notes.push(note);
            }
        }
        for key in &copied.provider_keys {
            if let Err(error) = self.allow(manager, key, hash).await {
                let id = plain(&key.id);
                let note = format!("provider key `{id}` does not allow the new key: {error}");
                copied.notes.push(note);
            }
        }
    }

    /// Adds a key to an allow list. The API refuses a list that names a key which is gone, so those are left out.
    async fn allow(
        &self,
        manager: &HeaderMap,
        key: &ProviderKey,
        hash: &str,
    ) -> Result<(), CallError> {
        let mut hashes = vec![hash];
        for allowed in key.allowed() {
            if self.get(manager, allowed).await?.is_some() {
                hashes.push(allowed);
            }
        }
        let body = json!({ "allowed_api_key_hashes": hashes });
        self.change(manager, Method::PATCH, self.api.url(&["byok", &key.id]), &body).await
    }

    async fn change(
        &self,
        manager: &HeaderMap,
        method: Method,
        url: Url,
        body: &Value,
    ) -> Result<(), CallError> {
        let answer = self.api.send(method, url, manager, Some(body)).await?;
        if answer.status.is_success() {
            answer.decode::<Value>().map(drop)
        } else {
            Err(error(&answer, Effect::Changes))
        }
    }
}

/// What the next key takes over from the one in use.
#[derive(Default)]
struct Copied {
    wanted: Wanted,
    guardrails: Vec<Assignment>,
    provider_keys: Vec<ProviderKey>,
    notes: Vec<String>,
}

/// What a key is made with.
#[derive(Default)]
struct Wanted {
    limit: Option<serde_json::Number>,
    limit_reset: Option<String>,
    include_byok_in_limit: Option<bool>,
    creator: Option<String>,
    /// How long it was to live.
    life: Option<Span>,
}

impl Wanted {
    fn of(key: &Key) -> Self {
        let ends = key.expires_at.as_deref().and_then(moment);
        Self {
            limit: key.limit.clone(),
            limit_reset: key.limit_reset.clone(),
            include_byok_in_limit: key.include_byok_in_limit,
            creator: key.creator_user_id.clone(),
            life: ends.zip(moment(&key.created_at)).map(|(ends, made)| ends.since(made)),
        }
    }

    fn set(&self, body: &mut Value, expires_in: Option<Span>) {
        let ends = expires_in.or(self.life).map(|life| text(now() + life));
        let settings = [
            ("limit", self.limit.as_ref().map(|limit| json!(limit))),
            ("limit_reset", self.limit_reset.as_ref().map(|reset| json!(reset))),
            ("include_byok_in_limit", self.include_byok_in_limit.map(|include| json!(include))),
            ("creator_user_id", self.creator.as_ref().map(|creator| json!(creator))),
            ("expires_at", ends.map(|ends| json!(ends))),
        ];
        for (name, value) in settings {
            if let Some(value) = value {
                body[name] = value;
            }
        }
    }
}

/// Says which settings of the new key are other than was asked for.
fn differences(asked: &Value, made: &Key) -> Vec<String> {
    let number = |value: &Value| value.as_f64();
    let as_asked = [
        ("limit", number(&asked["limit"]) == made.limit.as_ref().and_then(|limit| limit.as_f64())),
        ("limit_reset", asked["limit_reset"].as_str() == made.limit_reset.as_deref()),
        (
            "include_byok_in_limit",
            asked["include_byok_in_limit"].is_null()
                || asked["include_byok_in_limit"].as_bool() == made.include_byok_in_limit,
        ),
        (
            "creator_user_id",
            asked["creator_user_id"].is_null()
                || asked["creator_user_id"].as_str() == made.creator_user_id.as_deref(),
        ),
        ("expires_at", asked["expires_at"].is_string() == made.expires_at.is_some()),
    ];
    let other = as_asked.into_iter().filter(|(_, agrees)| !agrees);
    other.map(|(name, _)| format!("`{name}` of the new key is not as it was asked for")).collect()
}

/// Takes what was read, or notes that it was not.
fn or_note<T>(read: Result<Vec<T>, CallError>, what: &str, notes: &mut Vec<String>) -> Vec<T> {
    read.unwrap_or_else(|error| {
        notes.push(format!("{what} could not be read, so the new key has none: {error}"));
        Vec::new()
    })
}

/// What an answer is that is no success, and what to do about it.
fn error(answer: &Answer, effect: Effect) -> CallError {
    let why = match answer.status.as_u16() {
        401 => "the management key is not accepted",
        402 => "the account has no credits left",
        403 => "the management key may not do this; an ordinary key may not either",
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

fn no_key(id: &IssuedId) -> Refusal {
    Refusal::operator(RefusalKind::NotFound, format!("{TARGET} has no key `{}`", id.id))
}

fn verdict(answer: &Answer) -> Verdict {
    let problem = || answer.decode::<ErrorBody>().ok().map(|body| body.error.code);
    match answer.status.as_u16() {
        // A page of a proxy is no answer of the issuer.
        200 => match answer.decode::<Data<OwnKey>>() {
            Ok(own) if own.data.manages() => {
                Verdict::CannotTell("it is a management key, which makes no completions".into())
            }
            Ok(_) => Verdict::Accepted,
            Err(_) => Verdict::CannotTell(answer.in_words()),
        },
        401 | 403 if planted!("every_no_is_death") => Verdict::Refused,
        401 if problem() == Some(401) => Verdict::Refused,
        _ => Verdict::CannotTell(answer.in_words()),
    }
}

/// The workspace of the keys, where they have the same.
fn workspace_of_all(keys: &[Key]) -> Option<&str> {
    let id = keys.first().map(|key| key.workspace_id.as_str()).filter(|id| !id.is_empty())?;
    keys.iter().all(|key| key.workspace_id == id).then_some(id)
}

fn is_hash(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|digit| digit.is_ascii_hexdigit())
}

fn is_uuid(id: &str) -> bool {
    let lengths = id.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && id.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

fn text(at: Timestamp) -> String {
    jiff::Timestamp::from_second(at.millis() / 1_000).unwrap_or(jiff::Timestamp::MAX).to_string()
}

fn of_whole_days(days: &[Row]) -> Result<LastUsed, CallError> {
    let requests: u64 = days.iter().map(|row| row.requests).sum();
    let latest = days.iter().filter(|row| row.requests > 0).map(|row| row.date.as_str()).max();
    let at = latest.map(end_of).transpose()?.map(|at| at.min(now()));
    let detail = at.map(|_| format!("{requests} requests in the last 30 whole days"));
    Ok(LastUsed { at, detail })
}

/// Returns the last moment of a day in UTC; a time behind the day is left aside.
fn end_of(day: &str) -> Result<Timestamp, CallError> {
    let date: Option<jiff::civil::Date> = day.get(..10).and_then(|date| date.parse().ok());
    let start = date.and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC).ok());
    let start = start.ok_or_else(|| {
        CallError::Unknown(format!("{TARGET}: the activity names a day that is none"))
    })?;
    Ok(Timestamp::from_millis(start.timestamp().as_millisecond()) + DAY)
}

#[derive(Deserialize)]
struct Data<T> {
    data: T,
}

#[derive(Deserialize)]
struct Made {
    data: Key,
    key: Shown,
}

#[derive(Deserialize)]
struct Key {
    hash: String,
    name: String,
    label: String,
    disabled: bool,
    limit: Option<serde_json::Number>,
    limit_reset: Option<String>,
    include_byok_in_limit: Option<bool>,
    #[serde(default)]
    usage_daily: f64,
    #[serde(default)]
    byok_usage_daily: f64,
    created_at: String,
    updated_at: Option<String>,
    expires_at: Option<String>,
    creator_user_id: Option<String>,
    #[serde(default)]
    workspace_id: String,
}

impl Key {
    /// Returns whether it was used since midnight (UTC), as far as that cost anything.
    fn spends_today(&self) -> bool {
        self.usage_daily > 0.0 || self.byok_usage_daily > 0.0
    }

    /// Says when it was made and last changed.
    fn entries(&self) -> Vec<Entry> {
        let by = self.creator_user_id.as_ref().map(|creator| format!(" by `{}`", plain(creator)));
        let (by, name) = (by.unwrap_or_default(), plain(&self.name));
        let what = format!("it was made{by}, with the name `{name}`");
        let made = Entry { at: moment(&self.created_at), what };
        let changed = self.updated_at.as_deref().and_then(moment).map(|at| Entry {
            at: Some(at),
            what: format!("it was last changed; disabled: {}", self.disabled),
        });
        [Some(made), changed].into_iter().flatten().collect()
    }
}

#[derive(Deserialize)]
struct OwnKey {
    is_management_key: Option<bool>,
    /// The old name of the same.
    is_provisioning_key: Option<bool>,
    expires_at: Option<String>,
}

impl OwnKey {
    fn manages(&self) -> bool {
        self.is_management_key.or(self.is_provisioning_key) == Some(true)
    }
}

#[derive(Deserialize)]
struct Assignment {
    guardrail_id: String,
    key_hash: String,
}

#[derive(Deserialize)]
struct ProviderKey {
    id: String,
    allowed_api_key_hashes: Option<Vec<String>>,
}

impl ProviderKey {
    fn allowed(&self) -> impl Iterator<Item = &str> {
        self.allowed_api_key_hashes.iter().flatten().map(String::as_str)
    }
}

#[derive(Deserialize)]
struct Row {
    date: String,
    model: String,
    requests: u64,
}

impl Row {
    fn entry(&self) -> Result<Entry, CallError> {
        let (model, date) = (plain(&self.model), plain(&self.date));
        let what = format!("{} requests to model `{model}` on {date}", self.requests);
        Ok(Entry { at: Some(end_of(&self.date)?.min(now())), what })
    }
}

#[derive(Deserialize)]
struct Ended {
    deleted: bool,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: Problem,
}

#[derive(Deserialize)]
struct Problem {
    code: u16,
}

#[cfg(test)]
mod tests {
    use std::time::Duration as Time;

    use keywheel_driver::conformance::faults::Call;
    use keywheel_driver::conformance::issuer::{Subject, run};
    use keywheel_driver::{Remedy, Severity};
    use keywheel_twins::fault::{Echo, Fault, Nth, Rule};
    use keywheel_twins::openrouter::{HandMade, KeyState, Limits, Twin, TwinOptions};

    use super::*;
    use crate::issuer::bench::{
        Script, changes_are_known_later, credential, is_unknown, mint, one_id, refusal, status,
        suspend_is_made_again, taken_over, unclear_answers_prove_nothing, written,
    };

    /// A twin, and the issuer that is configured for it.
    struct Bench {
        twin: Twin,
        issuer: Arc<dyn Issuer>,
        _folder: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            Self::with(TwinOptions::default(), |_| json!({}))
        }

        fn with(options: TwinOptions, changes: impl Fn(&Twin) -> Value) -> Self {
            let twin = Twin::start(options).unwrap();
            let folder = written(twin.management_key());
            let config = json!({
                "management_key": { "file": "admin.key" },
                "base_url": twin.base_url(),
            });
            let config: Config =
                serde_json::from_value(taken_over(config, changes(&twin))).unwrap();
            let issuer =
                config.build(&Context::at(folder.path())).unwrap_or_else(|e| panic!("{e}"));
            Self { twin, issuer, _folder: folder }
        }

        fn script(&self, rules: Vec<Rule>) {
            self.twin.faults().set(rules).unwrap();
        }

        async fn mint(&self, label: &str) -> Result<Minted, CallError> {
            mint(&*self.issuer, label, None, None).await
        }

        async fn minted(&self, label: &str) -> (IssuedId, Credential) {
            let minted = self.mint(label).await.unwrap_or_else(|e| panic!("{e}"));
            (minted.issued.unwrap(), minted.credential.unwrap())
        }

        /// Mints the successor of a key, and returns it with what is said of it.
        async fn succeed(&self, previous: &HandMade) -> (KeyState, Vec<String>) {
            let previous = IssuedId::new(&previous.hash);
            let minted = mint(&*self.issuer, "kw-1-1", Some(&previous), None).await;
            let minted = minted.unwrap_or_else(|e| panic!("{e}"));
            let hash = minted.issued.unwrap().id;
            (self.twin.keys().into_iter().find(|key| key.hash == hash).unwrap(), minted.notes)
        }

        async fn listed(&self, prefix: &str) -> Vec<String> {
            let live = self.issuer.list(prefix).await.unwrap_or_else(|e| panic!("{e}"));
            live.into_iter().map(|live| live.issued.id).collect()
        }

        async fn verify(&self, credential: &Credential) -> Verdict {
            self.issuer.verify(credential).await.unwrap_or_else(|e| panic!("{e}"))
        }

        async fn blocks(&self) -> Vec<String> {
            let found = self.issuer.preflight().await.unwrap_or_else(|e| panic!("{e}"));
            let blocks = found.into_iter().filter(|found| found.severity == Severity::Blocks);
            blocks.map(|found| found.message).collect()
        }
    }

    fn id_of(key: &HandMade) -> IssuedId {
        IssuedId::new(&key.hash)
    }

    #[tokio::test]
    async fn the_issuer_keeps_its_contract() {
        let bench = Bench::new();
        let lose = || bench.script(vec![Rule::first("create_key", Fault::Cut)]);
        let garbage = credential("sk-or-v1-garbage");
        let faults = [200, 302, 400, 401, 402, 403, 404, 409, 422, 429, 500, 503]
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
            broken.iter().map(|broken| credential(broken.twin.management_key())).collect();
        canaries.push(credential("sk-or-v1-kwcanary-5e1f-kwcanary-5e1f"));
        run(&Subject {
            issuer: &*bench.issuer,
            prefix: "kw-suite-",
            garbage: &garbage,
            lose_next_answer: Some(&lose),
            broken: &broken.iter().map(|broken| &*broken.issuer).collect::<Vec<_>>(),
            canaries: &canaries.iter().collect::<Vec<_>>(),
        })
        .await;
        assert!(bench.twin.keys().iter().all(|key| !key.live));
        assert!(broken.iter().all(|broken| broken.twin.faults().unfired().is_empty()));
    }

    #[tokio::test]
    async fn h92_no_fault_of_the_provider_does_harm() {
        let bench = Bench::with(TwinOptions::default(), |_| json!({ "settle_for": "100ms" }));
        let operations = [
            (Call::Make, "create_key", &["/data/hash"][..]),
            (Call::Look, "get_key", &["/data/hash"][..]),
            (Call::List, "list_keys", &[][..]),
            (Call::Switch, "update_key", &["/data/hash"][..]),
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
    async fn h04_a_key_whose_making_was_not_answered_is_found_by_its_name_and_ended() {
        for fault in [
            Fault::Cut,
            Fault::TimeoutAfter,
            Fault::Hang,
            Fault::LateLanding { after_ms: 50 },
            Fault::Status { code: 500, retry_after: None, body: Echo::Json, applied: true },
            Fault::Status { code: 408, retry_after: None, body: Echo::Json, applied: true },
            Fault::Status { code: 201, retry_after: None, body: Echo::Html, applied: true },
            Fault::Status { code: 201, retry_after: None, body: Echo::Json, applied: true },
        ] {
            let bench = Bench::new();
            bench.script(vec![Rule::first("create_key", fault.clone())]);
            // The engine drops a call at its deadline, which is an unknown too.
            let silent = matches!(fault, Fault::TimeoutAfter | Fault::Hang);
            let deadline = Time::from_secs(if silent { 1 } else { 600 });
            match tokio::time::timeout(deadline, bench.mint("kw-1-1")).await {
                Ok(outcome) => assert!(!silent && is_unknown(&outcome), "{fault:?}"),
                Err(_) => assert!(silent, "{fault:?}"),
            }
            assert_eq!(bench.twin.faults().unfired(), []);
            let mut orphans = bench.listed("kw-1-").await;
            while orphans.is_empty() {
                tokio::time::sleep(Time::from_millis(10)).await;
                orphans = bench.listed("kw-1-").await;
            }
            assert_eq!(orphans.len(), 1, "{fault:?}");
            let orphan = IssuedId::new(orphans.remove(0));
            bench.issuer.revoke(&orphan).await.unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(bench.twin.live("kw-1-1"), [""; 0]);
        }
    }

    #[tokio::test]
    async fn a_mint_that_was_definitely_not_done_is_refused_with_a_way_out() {
        for (code, kind, why) in [
            (400, RefusalKind::Unsupported, "answered 400"),
            (401, RefusalKind::Permission, "the management key is not accepted"),
            (402, RefusalKind::Unsupported, "the account has no credits left"),
            (403, RefusalKind::Permission, "the management key may not do this"),
            (404, RefusalKind::NotFound, "answered 404"),
            (409, RefusalKind::Unavailable, "answered 409"),
            (422, RefusalKind::Unsupported, "answered 422"),
            (429, RefusalKind::RateLimited, "answered 429"),
        ] {
            let bench = Bench::new();
            bench.script(vec![Rule::first("create_key", Fault::status(code))]);
            let refusal = refusal(bench.mint("kw-1-1").await);
            assert_eq!(refusal.kind, kind, "{code}");
            assert!(refusal.message.contains(why), "{refusal}");
            assert_eq!(bench.twin.keys(), []);
        }
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
            refusal(suspend.resume(&id).await),
            refusal(bench.issuer.revoke(&id).await),
            refusal(bench.issuer.preflight().await),
            refusal(bench.issuer.usage().unwrap().last_used(&id).await),
        ];
        for refusal in refusals {
            assert_eq!(refusal.remedy, Remedy::Retry { after: Some(Span::hours(1)) });
        }
    }

    #[tokio::test]
    async fn h96_each_answer_to_a_delete_has_one_meaning() {
        for (operation, code, done) in [
            ("delete_key", 404, true),
            ("get_key", 404, true),
            ("delete_key", 401, false),
            ("delete_key", 403, false),
            ("delete_key", 409, false),
            ("delete_key", 429, false),
            ("get_key", 401, false),
            ("get_key", 403, false),
            ("get_key", 500, false),
        ] {
            let bench = Bench::new();
            let (id, _) = bench.minted("kw-1-1").await;
            bench.script(vec![Rule::first(operation, Fault::status(code))]);
            let outcome = bench.issuer.revoke(&id).await;
            assert_eq!(bench.twin.faults().unfired(), [], "{operation} {code}");
            assert_eq!(outcome.is_ok(), done, "{operation} {code}: {outcome:?}");
            assert!(!is_unknown(&outcome), "{operation} {code}: {outcome:?}");
            bench.issuer.revoke(&id).await.unwrap_or_else(|e| panic!("{operation} {code}: {e}"));
        }
        for fault in [Fault::status(500), Fault::Cut, status(200, Echo::Html)] {
            let bench = Bench::new();
            let (id, _) = bench.minted("kw-1-1").await;
            bench.script(vec![Rule::first("delete_key", fault.clone())]);
            assert!(is_unknown(&bench.issuer.revoke(&id).await), "{fault:?}");
            bench.issuer.revoke(&id).await.unwrap_or_else(|e| panic!("{fault:?}: {e}"));
            assert_eq!(bench.twin.live("kw-1-1"), [""; 0]);
        }
    }

    #[tokio::test]
    async fn h96_a_key_is_gone_only_where_the_workspace_and_the_manager_are_known() {
        let bench = Bench::new();
        let key = bench.twin.make_key("backend");
        bench.script(vec![
            Rule::first("get_key", Fault::status(404)),
            Rule::first("list_keys", Fault::status(401)),
        ]);
        assert_eq!(refusal(bench.issuer.revoke(&id_of(&key)).await).kind, RefusalKind::Permission);
        assert!(bench.twin.accepts(&key.value));
    }

    #[tokio::test]
    async fn h07_a_delete_that_failed_is_done_when_it_is_asked_again() {
        let bench = Bench::new();
        let (id, credential) = bench.minted("kw-1-1").await;
        let fail =
            |nth| Rule { nth: Nth::Number(nth), ..Rule::first("delete_key", Fault::status(500)) };
        bench.script(vec![fail(1), fail(2), fail(3)]);
        for _ in 0..3 {
            assert!(is_unknown(&bench.issuer.revoke(&id).await));
            assert_eq!(bench.verify(&credential).await, Verdict::Accepted);
        }
        bench.issuer.revoke(&id).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(bench.verify(&credential).await, Verdict::Refused);
    }

    #[tokio::test]
    async fn h92_a_key_of_another_workspace_is_left_alone() {
        let bench = Bench::with(
            TwinOptions::default(),
            |twin| json!({ "workspace_id": twin.default_workspace() }),
        );
        let elsewhere = Limits { elsewhere: true, ..Limits::default() };
        let theirs = bench.twin.make_key_with("backend", &elsewhere);
        let id = id_of(&theirs);
        let suspend = bench.issuer.suspend().unwrap();
        for outcome in [bench.issuer.revoke(&id).await, suspend.suspend(&id).await] {
            assert_eq!(refusal(outcome).kind, RefusalKind::Unsupported);
        }
        assert!(bench.twin.accepts(&theirs.value));
        for malformed in ["", "kw-1-1", "../keys", &"g".repeat(64)] {
            let outcome = bench.issuer.revoke(&IssuedId::new(malformed)).await;
            assert_eq!(refusal(outcome).kind, RefusalKind::Unsupported, "{malformed}");
        }
    }

    #[tokio::test]
    async fn a_key_is_disabled_and_enabled_again() {
        let bench = Bench::new();
        let (id, credential) = bench.minted("kw-1-1").await;
        let suspend = bench.issuer.suspend().unwrap();
        for _ in 0..2 {
            suspend.suspend(&id).await.unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(bench.verify(&credential).await, Verdict::Refused);
        }
        assert_eq!(bench.listed("kw-1-").await, [id.id.as_str()], "a disabled key is still listed");
        for _ in 0..2 {
            suspend.resume(&id).await.unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(bench.verify(&credential).await, Verdict::Accepted);
        }
        bench.issuer.revoke(&id).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(refusal(suspend.resume(&id).await).kind, RefusalKind::NotFound);
    }

    #[tokio::test]
    async fn a_switch_without_an_answer_is_unknown_and_set_when_it_is_asked_again() {
        for fault in [Fault::Cut, Fault::status(503), status(200, Echo::Html), Fault::status(200)] {
            let bench = Bench::new();
            let minted = bench.minted("kw-1-1").await;
            let (issuer, faults) = (&*bench.issuer, bench.twin.faults());
            suspend_is_made_again(issuer, faults, &minted, ("update_key", fault)).await;
        }
    }

    #[tokio::test]
    async fn h88_only_a_definite_no_of_the_issuer_proves_death() {
        let bench = Bench::new();
        let key = bench.twin.make_key("backend");
        let live = credential(&key.value);
        let (issuer, faults) = (&*bench.issuer, bench.twin.faults());
        unclear_answers_prove_nothing(issuer, faults, "get_self", &live).await;
        bench.script(vec![Rule::first("get_self", Fault::status(200))]);
        assert!(matches!(bench.verify(&live).await, Verdict::CannotTell(_)));
        assert_eq!(bench.verify(&credential("sk-or-v1-wrong")).await, Verdict::Refused);
        let manager = credential(bench.twin.management_key());
        assert!(matches!(bench.verify(&manager).await, Verdict::CannotTell(_)));
    }

    #[tokio::test]
    async fn h87_and_h88_what_changes_is_known_later() {
        let slow = Time::from_secs(2);
        let options = TwinOptions { propagation: slow, revocation: slow, ..TwinOptions::default() };
        let bench = Bench::with(options, |_| json!({}));
        let (id, credential) = bench.minted("kw-1-1").await;
        changes_are_known_later(&*bench.issuer, &id, &credential).await;
    }

    #[tokio::test]
    async fn h90_an_account_that_is_full_keeps_what_it_has() {
        let options = TwinOptions { most_keys: Some(2), ..TwinOptions::default() };
        let bench =
            Bench::with(options, |twin| json!({ "workspace_id": twin.default_workspace() }));
        let keys = [bench.twin.make_key("backend"), bench.twin.make_key("kw-0-1")];
        assert_eq!(refusal(bench.mint("kw-1-1").await).remedy, Remedy::Operator);
        assert!(keys.iter().all(|key| bench.twin.accepts(&key.value)));
        let found = bench.issuer.preflight().await.unwrap();
        let messages: Vec<_> = found.iter().map(|finding| finding.message.as_str()).collect();
        assert_eq!(messages, ["the workspace has 2 keys", "keys of a rotation exist: `kw-0-1`"]);
    }

    #[tokio::test]
    async fn h91_what_is_set_for_a_key_is_set_for_its_successor() {
        let bench = Bench::new();
        let previous = bench.twin.make_key_with(
            "backend",
            &Limits {
                limit: Some(25.5),
                limit_reset: Some("monthly".into()),
                include_byok_in_limit: true,
                expires_in: Some(Time::from_secs(90 * 24 * 3_600)),
                elsewhere: false,
            },
        );
        let gone = bench.twin.make_key("gone");
        let guardrail = bench.twin.make_guardrail(&[&previous.hash]);
        let other = bench.twin.make_guardrail(&[]);
        let allowed = [previous.hash.as_str(), gone.hash.as_str()];
        let provider = bench.twin.make_provider_key("upstream", Some(&allowed));
        let open = bench.twin.make_provider_key("open", None);
        bench.issuer.revoke(&id_of(&gone)).await.unwrap_or_else(|e| panic!("{e}"));

        let (new, notes) = bench.succeed(&previous).await;
        assert_eq!(
            (new.limit, new.limit_reset.as_deref(), new.include_byok_in_limit, new.expires),
            (Some(25.5), Some("monthly"), true, true)
        );
        assert_eq!(new.creator.as_deref(), Some("user_twin"));
        let both = [previous.hash.clone(), new.hash.clone()];
        assert_eq!(bench.twin.keys_of_guardrail(&guardrail), both);
        assert_eq!(bench.twin.keys_of_guardrail(&other), [""; 0]);
        let mut allowed = bench.twin.keys_of_provider_key(&provider).unwrap();
        allowed.sort();
        let mut both = both.to_vec();
        both.sort();
        assert_eq!(allowed, both, "a key that is gone would make the list invalid");
        assert_eq!(bench.twin.keys_of_provider_key(&open), None);
        let [spend] = &notes[..] else { panic!("{notes:?}") };
        assert!(spend.contains("its limit of 25.5 USD again"), "{spend}");
    }

    #[tokio::test]
    async fn h91_a_provider_key_of_the_configured_workspace_allows_the_new_key() {
        let bench = Bench::with(
            TwinOptions::default(),
            |twin| json!({ "workspace_id": twin.other_workspace() }),
        );
        let elsewhere = Limits { elsewhere: true, ..Limits::default() };
        let previous = bench.twin.make_key_with("backend", &elsewhere);
        let (workspace, allowed) = (bench.twin.other_workspace(), [previous.hash.as_str()]);
        let provider = bench.twin.make_provider_key_in(workspace, "upstream", Some(&allowed));
        let (new, notes) = bench.succeed(&previous).await;
        let mut allowed = bench.twin.keys_of_provider_key(&provider).unwrap();
        allowed.sort();
        let mut both = vec![previous.hash, new.hash];
        both.sort();
        assert_eq!((allowed, notes), (both, Vec::new()));
    }

    #[tokio::test]
    async fn h91_a_setting_that_could_not_be_copied_is_named() {
        for (operation, code, words) in [
            ("list_key_assignments", 403, "whether it has guardrails could not be read"),
            ("list_provider_keys", 500, "which provider keys it may use could not be read"),
            ("assign_keys", 403, "does not cover the new key: issuer `openrouter` answered 403"),
            ("update_provider_key", 400, "does not allow the new key: issuer `openrouter`"),
            ("get_key", 404, "does not know the key in use any more, so no setting was copied"),
        ] {
            let bench = Bench::new();
            let previous = bench.twin.make_key("backend");
            bench.twin.make_guardrail(&[&previous.hash]);
            bench.twin.make_provider_key("upstream", Some(&[&previous.hash]));
            bench.script(vec![Rule::first(operation, Fault::status(code))]);
            let (_, notes) = bench.succeed(&previous).await;
            assert_eq!(bench.twin.faults().unfired(), []);
            assert!(notes.iter().any(|note| note.contains(words)), "{operation}: {notes:?}");
        }
        let asked = json!({ "name": "kw-1-1", "limit": 5 });
        let bench = Bench::new();
        let key = bench.twin.make_key("other");
        let url = format!("{}/keys/{}", bench.twin.base_url(), key.hash);
        let shown = crate::http::client().get(url).bearer_auth(bench.twin.management_key());
        let shown = shown.send().await.unwrap().bytes().await.unwrap();
        let made: Data<Key> = serde_json::from_slice(&shown).unwrap();
        assert_eq!(
            differences(&asked, &made.data),
            ["`limit` of the new key is not as it was asked for"]
        );
    }

    #[tokio::test]
    async fn h91_who_made_a_key_is_left_out_where_that_is_refused() {
        let bench = Bench::new();
        let previous = bench.twin.make_key("backend");
        bench.script(vec![Rule::first("create_key", Fault::status(400))]);
        let (_, notes) = bench.succeed(&previous).await;
        assert_eq!(notes, ["the issuer names another creator of the new key"]);
        assert_eq!(bench.twin.live("kw-1-1").len(), 1);
    }

    #[tokio::test]
    async fn h91_no_key_is_made_in_another_workspace_than_the_one_in_use() {
        let elsewhere = Limits { elsewhere: true, ..Limits::default() };
        let (unsaid, wrong) = (
            Bench::new(),
            Bench::with(
                TwinOptions::default(),
                |twin| json!({ "workspace_id": twin.default_workspace() }),
            ),
        );
        for bench in [unsaid, wrong] {
            let previous = bench.twin.make_key_with("backend", &elsewhere);
            let outcome = mint(&*bench.issuer, "kw-1-1", Some(&id_of(&previous)), None).await;
            let message = refusal(outcome).message;
            let hint = format!("say `workspace_id: {}`", bench.twin.other_workspace());
            assert!(message.contains(&hint), "{message}");
            assert_eq!(bench.twin.live("kw-1-1"), [""; 0]);
        }
        let right = Bench::with(
            TwinOptions::default(),
            |twin| json!({ "workspace_id": twin.other_workspace() }),
        );
        let previous = right.twin.make_key_with("backend", &elsewhere);
        let (new, _) = right.succeed(&previous).await;
        assert_eq!(new.workspace, right.twin.other_workspace());
        assert_eq!(right.listed("kw-1-").await, [new.hash]);
    }

    #[tokio::test]
    async fn h94_a_value_that_is_lost_is_not_shown_again() {
        let bench = Bench::new();
        let (lost, _) = bench.minted("kw-1-1").await;
        assert!(bench.issuer.reread(&lost).await.is_ok_and(|again| again.is_none()));
        bench.issuer.revoke(&lost).await.unwrap_or_else(|e| panic!("{e}"));
        let (next, credential) = bench.minted("kw-1-2").await;
        assert_eq!(bench.verify(&credential).await, Verdict::Accepted);
        assert_eq!(bench.listed("kw-1-").await, [next.id]);
    }

    #[tokio::test]
    async fn h115_no_text_of_an_answer_is_repeated() {
        let bench = Bench::new();
        bench.script(vec![Rule::first("create_key", status(403, Echo::EchoKey))]);
        let echoed = refusal(bench.mint("kw-1-1").await);
        assert_eq!(
            echoed.message,
            "issuer `openrouter` answered 403: the management key may not do this; an ordinary key may not either"
        );
    }

    #[tokio::test]
    async fn a_list_is_read_to_its_end_whatever_its_pages_are() {
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
    async fn a_new_key_ends_as_configured_or_after_as_long_as_the_one_in_use() {
        let left = async |changes: Value| {
            let bench = Bench::with(TwinOptions::default(), |_| changes.clone());
            let expires_in = Some(Time::from_secs(40 * 24 * 3_600));
            let previous =
                bench.twin.make_key_with("backend", &Limits { expires_in, ..Limits::default() });
            let minted = mint(&*bench.issuer, "kw-1-1", Some(&id_of(&previous)), None).await;
            minted.unwrap_or_else(|e| panic!("{e}")).expires_at.unwrap().since(now())
        };
        let fits = |left: Span, days: u64| Span::days(days - 1) < left && left <= Span::days(days);
        assert!(fits(left(json!({})).await, 40));
        assert!(fits(left(json!({ "expires_in": "30d" })).await, 30));
    }

    #[tokio::test]
    async fn the_latest_use_is_today_s_spend_or_a_whole_day_of_the_activity() {
        let bench = Bench::new();
        let key = bench.twin.make_key("backend");
        let used = async || bench.issuer.usage().unwrap().last_used(&id_of(&key)).await.unwrap();
        assert_eq!(used().await, LastUsed { at: None, detail: None });
        bench.twin.add_use(&key.hash, Time::from_secs(50 * 3_600), false);
        let (before, shown) = (now(), used().await);
        let ago = before.since(shown.at.unwrap());
        assert!(Span::hours(25) <= ago && ago <= Span::hours(50), "{ago}");
        assert_eq!(shown.detail.as_deref(), Some("1 requests in the last 30 whole days"));
        bench.script(vec![Rule::first("get_activity", Fault::status(403))]);
        let error = bench.issuer.usage().unwrap().last_used(&id_of(&key)).await;
        assert_eq!(refusal(error).kind, RefusalKind::Permission);
        bench.twin.add_use(&key.hash, Time::ZERO, true);
        let before = now();
        assert!(used().await.at.unwrap() >= before);
        let unknown = IssuedId::new("0".repeat(64));
        let error = bench.issuer.usage().unwrap().last_used(&unknown).await;
        assert_eq!(refusal(error).kind, RefusalKind::NotFound);
        bench.issuer.revoke(&id_of(&key)).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(used().await.at, shown.at, "of a key that is gone the activity is left");
        let unused = bench.twin.make_key("unused");
        bench.issuer.revoke(&id_of(&unused)).await.unwrap_or_else(|e| panic!("{e}"));
        let error = bench.issuer.usage().unwrap().last_used(&id_of(&unused)).await;
        assert_eq!(refusal(error).kind, RefusalKind::NotFound, "it is not told as unused");
    }

    #[tokio::test]
    async fn where_nothing_shows_a_use_nobody_is_asked_for_one() {
        let bench = Bench::with(TwinOptions::default(), |_| json!({ "usage": "nothing" }));
        assert!(bench.issuer.usage().is_none() && bench.issuer.facts().last_used.is_none());
    }

    #[tokio::test]
    async fn the_record_of_a_key_says_who_made_it_and_what_it_was_used_for() {
        let bench = Bench::new();
        let key = bench.twin.make_key("backend");
        bench.twin.add_use(&key.hash, Time::from_secs(50 * 3_600), true);
        let audit = bench.issuer.audit().unwrap();
        let entries = audit.since(&id_of(&key), now() + Span::days(1)).await.unwrap();
        assert_eq!(entries.len(), 1, "{entries:?}");
        let entries = audit.since(&id_of(&key), Timestamp::from_millis(0)).await.unwrap();
        let words: Vec<&str> = entries.iter().map(|entry| entry.what.as_str()).collect();
        assert!(words[0].starts_with("1 requests to model `twin/model` on "), "{words:?}");
        assert_eq!(words[1], "it was made by `user_twin`, with the name `backend`");
        assert!(words[2].contains("its requests of today show tomorrow"), "{words:?}");
        bench.script(vec![Rule::first("get_activity", Fault::status(403))]);
        let entries = audit.since(&id_of(&key), Timestamp::from_millis(0)).await.unwrap();
        assert!(entries.iter().any(|entry| entry.what.contains("could not be read")));
    }

    #[tokio::test]
    async fn the_record_of_a_deleted_key_still_says_what_it_was_used_for() {
        let bench = Bench::new();
        let key = bench.twin.make_key("backend");
        bench.twin.add_use(&key.hash, Time::from_secs(50 * 3_600), true);
        bench.issuer.revoke(&id_of(&key)).await.unwrap_or_else(|e| panic!("{e}"));
        let audit = bench.issuer.audit().unwrap();
        let entries = audit.since(&id_of(&key), Timestamp::from_millis(0)).await.unwrap();
        let words: Vec<&str> = entries.iter().map(|entry| entry.what.as_str()).collect();
        assert!(words[0].starts_with("1 requests to model `twin/model` on "), "{words:?}");
        assert!(words[1].starts_with("the key is deleted"), "{words:?}");
        bench.script(vec![Rule::first("get_activity", Fault::status(404))]);
        let entries = audit.since(&id_of(&key), Timestamp::from_millis(0)).await.unwrap();
        assert!(entries[0].what.starts_with("the activity could not be read"), "{entries:?}");
        assert!(entries[1].what.starts_with("the key is deleted"), "{entries:?}");
    }

    #[tokio::test]
    async fn h115_a_name_in_the_list_that_may_be_a_key_is_not_repeated() {
        let bench = Bench::new();
        let leaked = format!("kw- sk-or-v1-{}", "0f".repeat(32));
        let key = bench.twin.make_key(&leaked);
        let found = bench.issuer.preflight().await.unwrap();
        assert_eq!(found[1].message, "keys of a rotation exist: `kw- …`");
        let audit = bench.issuer.audit().unwrap();
        let entries = audit.since(&id_of(&key), Timestamp::from_millis(0)).await.unwrap();
        assert_eq!(entries[0].what, "it was made by `user_twin`, with the name `kw- …`");
    }

    #[tokio::test]
    async fn a_key_that_was_made_by_hand_is_told_by_the_ends_of_its_value() {
        let bench = Bench::new();
        let keys = [bench.twin.make_key("backend"), bench.twin.make_key("other")];
        for key in &keys {
            match bench.issuer.identify(&credential(&key.value)).await.unwrap() {
                Identity::Known { issued, created_at, .. } => {
                    assert_eq!(issued, id_of(key));
                    assert!(created_at.is_some());
                }
                // Two random keys that look alike; both are named.
                Identity::Candidates(several) => assert!(several.contains(&id_of(key))),
                Identity::Unknown => panic!("{} is not found", key.hash),
            }
        }
        let elsewhere = bench.issuer.identify(&credential("sk-or-v1-elsewhere")).await.unwrap();
        assert_eq!(elsewhere, Identity::Unknown);
    }

    #[tokio::test]
    async fn preflight_names_what_stands_in_the_way_and_changes_nothing() {
        let bench = Bench::new();
        assert_eq!(bench.blocks().await, [""; 0]);
        bench.script(vec![Rule::first("get_self", Fault::status(401))]);
        assert_eq!(
            bench.blocks().await,
            ["issuer `openrouter` answered 401: the management key is not accepted"]
        );
        let nowhere = "00000000-0000-4000-8000-000000000000";
        let elsewhere = Bench::with(TwinOptions::default(), |_| json!({ "workspace_id": nowhere }));
        assert_eq!(elsewhere.blocks().await, [format!("workspace `{nowhere}` is not there")]);
        let ordinary = bench.twin.make_key("backend");
        let hint = format!("write `workspace_id: {}`", bench.twin.default_workspace());
        let hints = async |bench: &Bench| {
            let found = bench.issuer.preflight().await.unwrap();
            found.iter().filter(|one| one.message.contains("workspace_id")).count()
        };
        assert!(
            bench.issuer.preflight().await.unwrap().iter().any(|one| one.message.contains(&hint))
        );
        let named = Bench::with(
            TwinOptions::default(),
            |twin| json!({ "workspace_id": twin.default_workspace() }),
        );
        named.twin.make_key("backend");
        assert_eq!((hints(&bench).await, hints(&named).await), (1, 0));
        std::fs::write(bench._folder.path().join("admin.key"), ordinary.value).unwrap();
        assert!(bench.blocks().await[0].starts_with("`management_key` names an ordinary key"));
        assert!(bench.twin.faults().seen().iter().all(|request| request.method == "GET"));
    }

    #[test]
    fn a_workspace_is_named_only_where_all_keys_have_it() {
        let workspace = |ids: &[&str]| {
            let key = |id: &&str| {
                let (hash, at) = ("0".repeat(64), "2026-11-02T08:00:00Z");
                let key = json!({
                    "hash": hash, "name": "backend", "label": "sk-or-v1-0e6...1c9",
                    "disabled": false, "created_at": at, "workspace_id": id,
                });
                serde_json::from_value::<Key>(key).unwrap()
            };
            workspace_of_all(&ids.iter().map(key).collect::<Vec<_>>()).map(str::to_owned)
        };
        assert_eq!(workspace(&["one", "one"]), Some("one".into()));
        for ids in [&[][..], &["one", "two"], &[""]] {
            assert_eq!(workspace(ids), None, "{ids:?}");
        }
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused() {
        let build = |changes: Value| {
            let config = json!({ "management_key": { "env": "MANAGEMENT_KEY" } });
            let config: Config = serde_json::from_value(taken_over(config, changes)).unwrap();
            config.build(&Context::at("/")).err().map(|refusal| refusal.kind)
        };
        assert_eq!(build(json!({})), None);
        for wrong in [
            json!({ "workspace_id": "default" }),
            json!({ "last_used": { "granularity": "1h" } }),
            json!({ "expires_in": "1s" }),
            json!({ "base_url": "http://twin:8080/api/v1" }),
        ] {
            assert_eq!(build(wrong.clone()), Some(RefusalKind::Unsupported), "{wrong}");
        }
    }
}
