//! `posthog`: the credentials of one project.
//!
//! A *project secret key* is made and deleted by API. Whatever resets or rotates a token is refused to every key, so a person
//! clicks, and the tokens are read before and after: nobody pastes a value, and a click whose answer was lost is seen, not
//! repeated.
//!
//! Capture takes every token and proves nothing. A project token is tried at `/flags`, a secret one with the definitions of
//! flags.

mod flags_token;
mod project_token;
mod record;
mod secret_key;

use std::sync::Arc;

use keywheel_core::plan::Label;
use keywheel_core::planted;
use keywheel_core::secret::{Credential, SecretValue};
use keywheel_core::time::Span;
use keywheel_driver::guide::Question;
use keywheel_driver::issuer::{Issuer, Verdict};
use keywheel_driver::{CallError, Duration, Refusal, RefusalKind, SecretReference};
use reqwest::header::HeaderMap;
use reqwest::{Method, Url};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::api::{Answer, Api, Shown, unsupported};
use crate::guided::Guided;
use crate::http::Effect;
use crate::{Build, Context, reference};

const TARGET: &str = "issuer `posthog`";

/// How often a person is asked the same.
const TIMES: usize = 3;

/// How often the tokens are read after an answer before the person is asked again.
const LOOKS: u64 = 20;

/// A credential of a project at PostHog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which credential.
    #[serde(default)]
    pub kind: Kind,
    /// The id of the project, a number.
    pub project: u64,
    /// Where the account is: `https://us.posthog.com`, `https://eu.posthog.com` or the address of an own installation; HTTPS, or
    /// a loopback address.
    pub base_url: String,
    /// Where events and flags are asked for, if not where the account says: `https://us.i.posthog.com` for
    /// `https://us.posthog.com`, and the same address for an own installation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingestion_url: Option<String>,
    /// Where a personal API key of an administrator of the project is read.
    pub personal_key: SecretReference,
    /// What the first project secret key may do, such as `feature_flag:read`; each further one may do what the one before it did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// How exact and how late the last-used data of project secret keys are.
    #[serde(default)]
    pub last_used: LastUsedConfig,
    /// How long a person is given for one step.
    #[serde(default = "default_within")]
    pub within: Duration,
    /// How long a new credential may be refused, and an ended one accepted.
    #[serde(default = "default_propagation")]
    pub propagation: Duration,
    /// How long a call without an answer can still take effect and stay out of a list.
    #[serde(default = "default_settle_for")]
    pub settle_for: Duration,
}

/// A credential of a project.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A project secret API key (`phs_…`), made and deleted by API.
    #[default]
    ProjectSecretKey,
    /// The project token (`phc_…`), an identifier that is published in browsers. A person resets it, and the one before it is
    /// refused from then on: it is cut over.
    ProjectToken,
    /// The feature flags secure token of the project (`phs_…`). A person rotates it, and the one before it works until the backup
    /// is deleted.
    FeatureFlagsToken,
}

/// How exact and how late last-used data are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LastUsedConfig {
    /// How long after a use it shows.
    #[serde(default = "hour")]
    pub lag: Duration,
    /// How coarse its times are.
    #[serde(default = "hour")]
    pub granularity: Duration,
}

impl Default for LastUsedConfig {
    fn default() -> Self {
        Self { lag: hour(), granularity: hour() }
    }
}

// No source states any of these, so each is long on purpose: too long a value costs waiting, too short a one an outage.

fn hour() -> Duration {
    Span::hours(1).into()
}

fn default_within() -> Duration {
    Span::minutes(15).into()
}

fn default_propagation() -> Duration {
    Span::minutes(5).into()
}

fn default_settle_for() -> Duration {
    Span::minutes(10).into()
}

impl Build for Config {
    type Driver = dyn Issuer;

    fn build(&self, context: &Context) -> Result<Arc<dyn Issuer>, Refusal> {
        if self.within.span() < Span::minutes(1) {
            return Err(unsupported("`within` must be at least `1m`: a person needs time"));
        }
        if self.kind != Kind::ProjectSecretKey && !self.scopes.is_empty() {
            return Err(unsupported("`scopes` belongs to `kind: project_secret_key`"));
        }
        let personal_key = reference::from_root(&self.personal_key, context);
        let project = Project {
            api: Api::new(TARGET, &self.base_url)?,
            ingestion: Api::new(TARGET, &self.ingestion_url())?,
            guided: Guided(Arc::clone(&context.guide)),
            config: Self { personal_key, ..self.clone() },
        };
        Ok(match self.kind {
            Kind::ProjectSecretKey => Arc::new(secret_key::SecretKeys(project)),
            Kind::ProjectToken => Arc::new(project_token::ProjectToken(project)),
            Kind::FeatureFlagsToken => Arc::new(flags_token::FlagsToken(project)),
        })
    }
}

impl Config {
    fn ingestion_url(&self) -> String {
        let derived = || match self.base_url.trim_end_matches('/') {
            "https://us.posthog.com" => "https://us.i.posthog.com".into(),
            "https://eu.posthog.com" => "https://eu.i.posthog.com".into(),
            own => own.to_owned(),
        };
        self.ingestion_url.clone().unwrap_or_else(derived)
    }
}

/// One project, and who can be asked about it.
struct Project {
    config: Config,
    api: Api,
    ingestion: Api,
    guided: Guided,
}

/// The tokens of a project.
#[derive(Deserialize)]
struct Tokens {
    api_token: Shown,
    #[serde(default)]
    secret_api_token: Option<Shown>,
    #[serde(default)]
    secret_api_token_backup: Option<Shown>,
}

impl Project {
    /// Reads the personal key, which may run a program, and makes the header of it.
    async fn headers(&self) -> Result<HeaderMap, CallError> {
        let key = reference::read(&self.config.personal_key).await?;
        Ok(self.api.bearer(&key, "personal key")?)
    }

    /// Every address of the API ends with a slash.
    fn url(&self, path: &[&str]) -> Url {
        let id = self.config.project.to_string();
        self.api.url(&[["api", "projects", &id].as_slice(), path, &[""]].concat())
    }

    /// Reads the tokens as they are now.
    async fn tokens(&self) -> Result<Tokens, CallError> {
        let id = self.config.project.to_string();
        let url = self.api.url(&["api", "environments", &id, ""]);
        let read = self.api.read(&self.headers().await?, url).await;
        read.map_err(|error| self.hint(error, "read the project"))
    }

    /// Reads the tokens before anybody is told anything: where that has no answer, nothing was done.
    async fn tokens_before(&self) -> Result<Tokens, CallError> {
        self.tokens().await.map_err(|error| match error {
            CallError::Unknown(why) => Refusal::retry(RefusalKind::Unavailable, None, why).into(),
            refused @ CallError::Refused(_) => refused,
        })
    }

    /// Says what to look at where the personal key or the project may be wrong.
    fn hint(&self, error: CallError, what: &str) -> CallError {
        match error {
            CallError::Refused(mut refusal) => {
                let hint = match refusal.kind {
                    RefusalKind::Permission => {
                        format!(": is the personal key valid, and may it {what}?")
                    }
                    RefusalKind::NotFound => {
                        format!(": is there a project {} at `base_url`?", self.config.project)
                    }
                    _ => String::new(),
                };
                refusal.message.push_str(&hint);
                refusal.into()
            }
            unknown @ CallError::Unknown(_) => unknown,
        }
    }

    fn settings(&self) -> String {
        let base = self.config.base_url.trim_end_matches('/');
        format!("open {base}/project/{}/settings/project", self.config.project)
    }

    /// Tells a person what to click until the tokens show that it was done; what they answer is not believed. Returns none where
    /// it was not.
    ///
    /// # Errors
    /// Unknown where a person was told and the tokens cannot be read since.
    async fn until(
        &self,
        steps: &[String],
        is_done: impl Fn(&Tokens) -> bool + Send + Sync,
    ) -> Result<Option<Tokens>, CallError> {
        self.guided.somebody()?;
        let prompt = "`done` once it is, anything else if it is not";
        let not_yet = "PostHog does not show it yet: if you clicked, do not click again, and wait until the page shows it; if you did not:";
        let again = [[not_yet.to_owned()].as_slice(), steps].concat();
        for time in 0..TIMES {
            let is_first = time == 0 || planted!("clicked_or_not_is_asked_alike");
            let steps = if is_first { steps } else { &again };
            let question = Question { steps, prompt, hidden: false };
            let is_there = self.guided.0.ask(&question).await.is_some();
            let shown = self.shown(&is_done).await;
            // A click may have been made, so that this is no refusal.
            let shown = shown.map_err(|error| CallError::Unknown(error.to_string()))?;
            if shown.is_some() || !is_there {
                return Ok(shown);
            }
        }
        Ok(None)
    }

    /// Looks for a while whether the tokens show what was clicked: a single look may be behind, and whoever is asked again may
    /// click again (H05).
    async fn shown(
        &self,
        is_done: &(impl Fn(&Tokens) -> bool + Send + Sync),
    ) -> Result<Option<Tokens>, CallError> {
        let looks = if planted!("one_look_is_believed") { 1 } else { LOOKS };
        let mut seen = Ok(None);
        for look in 0..looks {
            if look > 0 {
                tokio::time::sleep(self.looking().part(1, LOOKS).into()).await;
            }
            seen = match self.tokens().await {
                Ok(tokens) if is_done(&tokens) => return Ok(Some(tokens)),
                Ok(_) => Ok(None),
                Err(error) => Err(error),
            };
        }
        seen
    }

    /// How long is looked after each answer, so that half of the step's time is left to the person.
    fn looking(&self) -> Span {
        let share = self.config.within.span().part(1, 2 * TIMES as u64);
        self.config.settle_for.span().min(share)
    }

    /// Asks for the definitions of flags, which every secret key may that has the scope.
    async fn evaluate(&self, credential: &Credential) -> Result<Verdict, CallError> {
        let headers = self.api.bearer(value_of(credential)?, "credential")?;
        let url = self.url(&["feature_flags", "local_evaluation"]);
        let answer = self.api.send(Method::GET, url, &headers, None).await?;
        let problem: Option<Problem> = answer.decode().ok();
        Ok(match (answer.status.as_u16(), problem) {
            (200, _) if answer.decode::<Definitions>().is_ok() => Verdict::Accepted,
            (401 | 403, _) if planted!("any_no_is_death") => Verdict::Refused,
            (401, Some(problem)) if problem.kind == "authentication_error" => Verdict::Refused,
            // Only the words tell a key without the scope from one that may not be used at all.
            (403, Some(problem)) if problem.detail.contains("missing required scope") => {
                Verdict::Accepted
            }
            _ => Verdict::CannotTell(answer.in_words()),
        })
    }

    /// Evaluates the flags of nobody with a project token.
    async fn flags(&self, credential: &Credential) -> Result<Verdict, CallError> {
        let Ok(token) = std::str::from_utf8(value_of(credential)?.expose()) else {
            return Ok(Verdict::Refused);
        };
        let mut url = self.ingestion.url(&["flags"]);
        url.query_pairs_mut().append_pair("v", "2");
        let body = json!({ "token": token, "distinct_id": "keywheel" });
        let answer = self.ingestion.send(Method::POST, url, &HeaderMap::new(), Some(&body)).await?;
        Ok(match answer.status.as_u16() {
            200 if answer.decode::<Flags>().is_ok() => Verdict::Accepted,
            401 if says_invalid(&answer) || planted!("any_no_is_death") => Verdict::Refused,
            _ => Verdict::CannotTell(answer.in_words()),
        })
    }
}

/// Returns whether a refusal is about the token, and not of something between; the endpoint answers in plain words.
fn says_invalid(answer: &Answer) -> bool {
    let words = String::from_utf8_lossy(answer.body.expose()).to_lowercase();
    !words.contains("<html") && words.contains("api key") && words.contains("invalid")
}

fn value_of(credential: &Credential) -> Result<&SecretValue, Refusal> {
    credential.value().ok_or_else(|| unsupported("the credential has no field `value`"))
}

/// Returns whether this is the first try of a rotation: what was done at PostHog before it is none of its doing.
fn is_first(label: &Label) -> bool {
    label.0.ends_with("-1")
}

fn nobody_did(what: &str) -> CallError {
    let message = format!(
        "{what}, or PostHog does not show it: if it was clicked, go on only once the settings of the project show it"
    );
    Refusal::operator(RefusalKind::NeedsPerson, message).into()
}

/// Returns whether a token is the value of a credential.
fn is(token: Option<&Shown>, credential: Option<&Credential>) -> bool {
    let value = credential.and_then(Credential::value);
    token.zip(value).is_some_and(|(token, value)| token.0.same_as(value))
}

#[derive(Deserialize)]
struct Problem {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    detail: String,
}

#[derive(Deserialize)]
struct Definitions {
    #[serde(rename = "flags")]
    _flags: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Flags {
    #[serde(rename = "flags", alias = "featureFlags")]
    _flags: serde_json::Map<String, serde_json::Value>,
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration as Time;

    use async_trait::async_trait;
    use keywheel_core::time::Timestamp;
    use keywheel_core::version::IssuedId;
    use keywheel_driver::conformance::faults::Call;
    use keywheel_driver::conformance::issuer::{
        Subject, facts_and_abilities_agree, garbage_is_never_accepted, no_message_holds_a_value,
        run,
    };
    use keywheel_driver::guide::Guide;
    use keywheel_driver::issuer::{Identity, LastUsed, Mint, Minted, Suspect};
    use keywheel_driver::{Remedy, Severity};
    use keywheel_twins::fault::{Echo, Fault, Rule};
    use keywheel_twins::posthog::{PROJECT, Twin, TwinOptions};
    use serde_json::Value;

    use super::super::bench::{
        Script, credential, is_unknown, one_id, refusal, revoke_means, status, taken_over, written,
    };
    use super::*;

    fn suspect(value: Option<&str>) -> Suspect {
        Suspect { issued: Some(IssuedId::new("kw-0-1")), value: value.map(credential) }
    }

    /// Somebody who is logged in and clicks as they are told.
    struct Person {
        twin: Arc<Twin>,
        told: Mutex<Vec<String>>,
        clicks: AtomicUsize,
        does: Does,
    }

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Does {
        AsTold,
        /// Clicks, and does not say so.
        AndIsSilent,
        /// Says that it is done.
        Nothing,
        IsAway,
    }

    #[async_trait]
    impl Guide for Person {
        fn absence(&self) -> Option<Refusal> {
            let away = self.does == Does::IsAway;
            away.then(|| Refusal::operator(RefusalKind::NeedsPerson, "needs a person"))
        }

        async fn ask(&self, question: &Question<'_>) -> Option<SecretValue> {
            let text = question.steps.join("\n");
            self.told.lock().unwrap().push(text.clone());
            let is_done = self.clicks.load(Ordering::Relaxed) > 0;
            let heeds = is_done && text.contains("if you clicked, do not click again");
            if self.does != Does::Nothing && !heeds {
                self.clicks.fetch_add(1, Ordering::Relaxed);
                match text {
                    text if text.contains("click to reset it") => drop(self.twin.reset_token()),
                    text if text.contains("click to rotate it") => {
                        drop(self.twin.rotate_secret_token());
                    }
                    text if text.contains("delete its backup") => self.twin.delete_backup(),
                    text => panic!("nobody knows how to do this: {text}"),
                }
            }
            (self.does != Does::AndIsSilent).then(|| SecretValue::new(b"done".to_vec()))
        }
    }

    /// A twin, the issuer that is configured for it, and somebody who clicks.
    struct Bench {
        twin: Arc<Twin>,
        issuer: Arc<dyn Issuer>,
        person: Arc<Person>,
        _folder: tempfile::TempDir,
    }

    impl Bench {
        fn of(kind: &str) -> Self {
            Self::with(TwinOptions::default(), Does::AsTold, json!({ "kind": kind }))
        }

        fn keys() -> Self {
            Self::keys_with(TwinOptions::default())
        }

        fn keys_with(options: TwinOptions) -> Self {
            Self::with(options, Does::IsAway, json!({ "scopes": ["feature_flag:read"] }))
        }

        fn with(options: TwinOptions, does: Does, changes: Value) -> Self {
            let twin = Arc::new(Twin::start(options).unwrap());
            let folder = written(twin.personal_key());
            let config = json!({
                "project": PROJECT.parse::<u64>().unwrap(),
                "personal_key": { "file": "admin.key" },
                "base_url": twin.base_url(),
                "settle_for": "100ms",
            });
            let config: Config = serde_json::from_value(taken_over(config, changes)).unwrap();
            let person = Arc::new(Person {
                twin: Arc::clone(&twin),
                told: Mutex::default(),
                clicks: AtomicUsize::new(0),
                does,
            });
            let guide: Arc<dyn Guide> = Arc::<Person>::clone(&person);
            let context = Context { guide, ..Context::at(folder.path()) };
            let issuer = config.build(&context).unwrap_or_else(|e| panic!("{e}"));
            Self { twin, issuer, person, _folder: folder }
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

        async fn replace(&self, label: &str, in_use: &str) -> Result<Minted, CallError> {
            let (label, in_use) = (Label(label.into()), credential(in_use));
            let request = Mint { in_use: Some(&in_use), ..Mint::new(&label) };
            self.issuer.mint(&request).await
        }

        async fn minted(&self, label: &str) -> (IssuedId, Credential) {
            let minted = self.mint(label, None).await.unwrap_or_else(|e| panic!("{e}"));
            (minted.issued.unwrap(), minted.credential.unwrap())
        }

        async fn listed(&self, prefix: &str) -> Vec<String> {
            let live = self.issuer.list(prefix).await.unwrap_or_else(|e| panic!("{e}"));
            live.into_iter().map(|live| live.issued.id).collect()
        }

        async fn verify(&self, credential: &Credential) -> Verdict {
            self.issuer.verify(credential).await.unwrap_or_else(|e| panic!("{e}"))
        }

        fn told(&self) -> usize {
            self.person.told.lock().unwrap().len()
        }

        async fn blocks(&self) -> Vec<String> {
            let found = self.issuer.preflight().await.unwrap();
            let blocks = found.into_iter().filter(|found| found.severity == Severity::Blocks);
            blocks.map(|found| found.message).collect()
        }
    }

    fn is_value(minted: Minted, value: &str) -> bool {
        minted.credential.unwrap().same_as(&credential(value))
    }

    /// One bench for each way in which everything fails.
    fn broken(kind: &str) -> Vec<Bench> {
        let faults = [200, 302, 400, 401, 403, 404, 409, 429, 500, 503]
            .map(|code| status(code, Echo::EchoKey));
        faults
            .into_iter()
            .chain([status(200, Echo::Html), status(401, Echo::Html), Fault::Cut])
            .map(|fault| {
                let broken = Bench::of(kind);
                broken.script(vec![Rule::every("*", fault)]);
                broken
            })
            .collect()
    }

    #[tokio::test]
    async fn the_issuer_keeps_its_contract() {
        for kind in ["project_secret_key", "project_token", "feature_flags_token"] {
            let bench = match kind {
                "project_secret_key" => {
                    Bench::keys_with(TwinOptions { page: 1, ..TwinOptions::default() })
                }
                kind => Bench::of(kind),
            };
            let lose = || bench.script(vec![Rule::first("create_key", Fault::Cut)]);
            let garbage = credential("phs_garbage-kwcanary-5e1f");
            let broken = broken(kind);
            let broken_issuers: Vec<&dyn Issuer> =
                broken.iter().map(|broken| &*broken.issuer).collect();
            let mut canaries = Vec::new();
            for broken in &broken {
                let twin = &broken.twin;
                let held =
                    [twin.personal_key().to_owned(), twin.project_token(), twin.secret_token()];
                canaries.extend(held.iter().map(|value| credential(value)));
            }
            let subject = Subject {
                issuer: &*bench.issuer,
                prefix: "kw-suite-",
                garbage: &garbage,
                lose_next_answer: (kind == "project_secret_key").then_some(&lose),
                broken: &broken_issuers,
                canaries: &canaries.iter().collect::<Vec<_>>(),
            };
            if kind == "feature_flags_token" {
                // Its versions hang on each other: one mint makes the other version the backup.
                facts_and_abilities_agree(subject.issuer);
                garbage_is_never_accepted(&subject).await;
                no_message_holds_a_value(&subject).await;
            } else {
                run(&subject).await;
            }
            assert!(bench.twin.keys().iter().all(|key| !key.live));
            assert!(broken.iter().all(|broken| broken.twin.faults().unfired().is_empty()));
        }
    }

    #[tokio::test]
    async fn h92_no_fault_of_the_provider_does_harm() {
        let bench = Bench::keys();
        let operations = [
            (Call::Make, "create_key", &["/id"][..]),
            (Call::Look, "get_key", &["/id"][..]),
            (Call::List, "list_keys", &[][..]),
            (Call::End, "delete_key", &[][..]),
        ];
        let side = Script {
            faults: bench.twin.faults(),
            operations: &operations,
            names: &one_id,
            live: &|label| bench.twin.live(label).len(),
        };
        assert_eq!(side.does_no_harm(&*bench.issuer, true).await, 86);
    }

    #[tokio::test]
    async fn h04_a_mint_without_a_whole_answer_is_found_by_its_label_and_deleted() {
        for fault in [
            Fault::Cut,
            Fault::TimeoutAfter,
            Fault::Hang,
            Fault::LateLanding { after_ms: 50 },
            Fault::Status { code: 500, retry_after: None, body: Echo::Json, applied: true },
            Fault::Status { code: 201, retry_after: None, body: Echo::Html, applied: true },
            Fault::Status { code: 201, retry_after: None, body: Echo::Json, applied: true },
        ] {
            let bench = Bench::keys();
            bench.script(vec![Rule::first("create_key", fault.clone())]);
            let silent = matches!(fault, Fault::TimeoutAfter | Fault::Hang);
            let deadline = Time::from_secs(if silent { 1 } else { 600 });
            match tokio::time::timeout(deadline, bench.mint("kw-1-1", None)).await {
                Ok(outcome) => assert!(!silent && is_unknown(&outcome), "{fault:?}"),
                Err(_) => assert!(silent, "{fault:?}"),
            }
            let mut orphans = bench.listed("kw-1-").await;
            while orphans.is_empty() {
                tokio::time::sleep(Time::from_millis(10)).await;
                orphans = bench.listed("kw-1-").await;
            }
            assert_eq!((orphans.len(), bench.twin.faults().unfired()), (1, vec![]), "{fault:?}");
            let orphan = IssuedId::new(orphans.remove(0));
            assert!(bench.issuer.reread(&orphan).await.is_ok_and(|again| again.is_none()));
            bench.issuer.revoke(&orphan).await.unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(bench.twin.live("kw-1-1"), [""; 0]);
        }
    }

    #[tokio::test]
    async fn a_mint_that_was_definitely_not_done_says_what_to_look_at() {
        let look_at_the_key =
            ": is the personal key valid, and may it write project secret API keys?";
        for (code, kind, then) in [
            (400, RefusalKind::Unsupported, ""),
            (401, RefusalKind::Permission, look_at_the_key),
            (403, RefusalKind::Permission, look_at_the_key),
            (404, RefusalKind::NotFound, ": is there a project 7 at `base_url`?"),
            (409, RefusalKind::Unavailable, ""),
            (429, RefusalKind::RateLimited, ""),
        ] {
            let bench = Bench::keys();
            bench.script(vec![Rule::first("create_key", Fault::status(code))]);
            let refusal = refusal(bench.mint("kw-1-1", None).await);
            assert_eq!(refusal.message, format!("issuer `posthog` answered {code}{then}"));
            assert_eq!((refusal.kind, bench.twin.keys().len()), (kind, 0), "{code}");
        }
    }

    #[tokio::test]
    async fn h90_a_full_project_is_named_and_nothing_is_deleted_for_it() {
        let bench = Bench::keys_with(TwinOptions { page: 3, ..TwinOptions::default() });
        let keys: Vec<_> = (0..9)
            .map(|number| bench.twin.make_key(&format!("key-{number}"), &["endpoint:read"]))
            .collect();
        assert_eq!(bench.blocks().await, [""; 0]);
        let last = bench.twin.make_key("key-9", &["endpoint:read"]);
        let blocks = bench.blocks().await;
        assert!(blocks.len() == 1 && blocks[0].contains("`key-0`, `key-1`"), "{blocks:?}");
        let refusal = refusal(bench.mint("kw-1-1", None).await);
        assert_eq!((refusal.kind, refusal.message), (RefusalKind::Quota, blocks[0].clone()));
        let odd = Bench::keys();
        for number in 0..10 {
            let pasted = "phs_".to_owned() + &"kwcanary7".repeat(4);
            odd.twin.make_key(&format!("of\u{1b}[2J `{number}` {pasted}"), &["endpoint:read"]);
        }
        let blocks = odd.blocks().await;
        assert!(blocks[0].contains("`of[2J 0 …`, `of[2J 1 …`"), "{blocks:?}");
        assert!(keys.iter().chain([&last]).all(|key| bench.twin.accepts(&key.value)));
    }

    #[tokio::test]
    async fn h91_a_new_key_may_do_what_the_one_before_it_may() {
        let bench = Bench::keys();
        let previous = bench.twin.make_key("backend", &["endpoint:read"]);
        let previous = IssuedId::new(previous.id);
        let minted = bench.mint("kw-1-1", Some(&previous)).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(minted.notes, [""; 0]);
        assert_eq!(bench.twin.keys()[1].scopes, ["endpoint:read"]);
        let verdict = bench.verify(&minted.credential.unwrap()).await;
        assert_eq!(verdict, Verdict::Accepted, "a key without the scope is alive");
        bench.issuer.revoke(&previous).await.unwrap_or_else(|e| panic!("{e}"));
        let minted = bench.mint("kw-1-2", Some(&previous)).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(minted.notes, ["the key in use is gone, and its scopes could not be copied"]);
        let none = Bench::of("project_secret_key");
        let refusal = refusal(none.mint("kw-1-1", None).await);
        assert_eq!(refusal.message, "`scopes` must say what the first key may do");
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
            ("get_key", Fault::status(500), Some(false)),
            ("delete_key", Fault::status(500), None),
            ("delete_key", Fault::Cut, None),
            ("delete_key", status(200, Echo::Html), None),
        ] {
            let bench = Bench::keys();
            let (id, _) = bench.minted("kw-1-1").await;
            revoke_means(&*bench.issuer, bench.twin.faults(), &id, answer).await;
        }
    }

    #[tokio::test]
    async fn h96_a_wrong_project_does_not_pass_for_a_dead_key() {
        let bench = Bench::with(TwinOptions::default(), Does::IsAway, json!({ "project": 8 }));
        let key = bench.twin.make_key("backend", &["endpoint:read"]);
        let refusal = refusal(bench.issuer.revoke(&IssuedId::new(key.id)).await);
        assert_eq!(
            refusal.message,
            "issuer `posthog` answered 404: is there a project 8 at `base_url`?"
        );
        assert!(bench.twin.accepts(&key.value));
    }

    #[tokio::test]
    async fn h92_only_what_is_an_id_is_ended() {
        let bench = Bench::keys();
        for malformed in ["", "/", "..", "a/b", "../../7"] {
            let outcome = bench.issuer.revoke(&IssuedId::new(malformed)).await;
            assert_eq!(refusal(outcome).kind, RefusalKind::Unsupported);
        }
        assert_eq!(bench.twin.faults().seen(), []);
    }

    #[tokio::test]
    async fn h97_the_wait_that_the_issuer_asks_for_is_kept_at_every_call() {
        let bench = Bench::keys();
        let id = IssuedId::new(bench.twin.make_key("backend", &["endpoint:read"]).id);
        bench.script(vec![Rule::every("*", Fault::busy())]);
        let mut refusals = vec![
            refusal(bench.mint("kw-1-1", None).await),
            refusal(bench.mint("kw-1-1", Some(&id)).await),
            refusal(bench.issuer.list("kw-").await),
            refusal(bench.issuer.revoke(&id).await),
            refusal(bench.issuer.preflight().await),
            refusal(bench.issuer.usage().unwrap().last_used(&id).await),
        ];
        for kind in ["project_token", "feature_flags_token"] {
            let bench = Bench::of(kind);
            let in_use = bench.twin.secret_token();
            bench.script(vec![Rule::every("*", Fault::busy())]);
            refusals.push(refusal(bench.replace("kw-1-1", &in_use).await));
            refusals.push(refusal(bench.issuer.preflight().await));
            assert_eq!(bench.told(), 0);
        }
        for refusal in refusals {
            assert_eq!(refusal.remedy, Remedy::Retry { after: Some(Span::hours(1)) });
            assert_eq!(refusal.message, "issuer `posthog` answered 429");
        }
    }

    #[tokio::test]
    async fn h88_only_the_definite_answers_prove_anything() {
        for (kind, operation) in [
            ("project_secret_key", "local_evaluation"),
            ("feature_flags_token", "local_evaluation"),
            ("project_token", "flags"),
        ] {
            let bench = Bench::of(kind);
            let value = match kind {
                "project_secret_key" => {
                    bench.twin.make_key("backend", &["feature_flag:read"]).value
                }
                "feature_flags_token" => bench.twin.secret_token(),
                _ => bench.twin.project_token(),
            };
            let live = credential(&value);
            assert_eq!(bench.verify(&live).await, Verdict::Accepted, "{kind}");
            for unclear in [
                status(200, Echo::Html),
                status(401, Echo::Html),
                Fault::status(403),
                Fault::status(400),
                Fault::status(404),
                Fault::status(429),
                Fault::status(503),
            ] {
                bench.script(vec![Rule::first(operation, unclear.clone())]);
                let verdict = bench.verify(&live).await;
                assert!(
                    matches!(verdict, Verdict::CannotTell(_)),
                    "{kind} {unclear:?}: {verdict:?}"
                );
            }
            bench.script(vec![Rule::first(operation, Fault::Cut)]);
            assert!(is_unknown(&bench.issuer.verify(&live).await));
            assert_eq!(bench.verify(&credential("phs_wrong")).await, Verdict::Refused, "{kind}");
            assert!(bench.issuer.verify(&Credential::default()).await.is_err());
        }
    }

    #[tokio::test]
    async fn the_last_use_of_a_key_is_told() {
        let bench = Bench::keys();
        let (id, minted) = bench.minted("kw-1-1").await;
        let usage = bench.issuer.usage().unwrap();
        assert_eq!(usage.last_used(&id).await, Ok(LastUsed { at: None, detail: None }));
        bench.verify(&minted).await;
        assert!(usage.last_used(&id).await.unwrap().at.is_some());
        bench.issuer.revoke(&id).await.unwrap();
        assert_eq!(refusal(usage.last_used(&id).await).kind, RefusalKind::NotFound);
    }

    #[tokio::test]
    async fn what_was_made_by_hand_is_identified_by_what_is_shown() {
        let bench = Bench::keys();
        let key = bench.twin.make_key("backend", &["endpoint:read"]);
        match bench.issuer.identify(&credential(&key.value)).await.unwrap() {
            Identity::Known { issued, created_at, .. } => {
                assert_eq!((issued.id, created_at.is_some()), (key.id, true));
            }
            found => panic!("{found:?}"),
        }
        for kind in ["project_secret_key", "project_token", "feature_flags_token"] {
            let bench = Bench::of(kind);
            let found = bench.issuer.identify(&credential("phs_elsewhere")).await.unwrap();
            assert_eq!(found, Identity::Unknown);
        }
        let (token, secret) = (Bench::of("project_token"), Bench::of("feature_flags_token"));
        let found = token.issuer.identify(&credential(&token.twin.project_token())).await.unwrap();
        assert!(matches!(found, Identity::Known { issued, .. } if issued.id == "api_token"));
        let backup = secret.twin.secret_token();
        secret.twin.rotate_secret_token();
        for (value, name) in
            [(secret.twin.secret_token(), "secret_api_token"), (backup, "secret_api_token_backup")]
        {
            let found = secret.issuer.identify(&credential(&value)).await.unwrap();
            assert!(matches!(found, Identity::Known { issued, .. } if issued.id == name), "{name}");
        }
    }

    #[tokio::test]
    async fn a_project_token_is_reset_by_a_person_and_read_again() {
        for does in [Does::AsTold, Does::AndIsSilent] {
            let bench =
                Bench::with(TwinOptions::default(), does, json!({ "kind": "project_token" }));
            let old = bench.twin.project_token();
            let minted = bench.replace("kw-1-1", &old).await.unwrap_or_else(|e| panic!("{e}"));
            let new = bench.twin.project_token();
            assert!(is_value(minted, &new) && new != old);
            assert_eq!(bench.verify(&credential(&old)).await, Verdict::Refused);
            assert_eq!(bench.verify(&credential(&new)).await, Verdict::Accepted);
            let told = bench.person.told.lock().unwrap().join("\n");
            let page = format!("open {}/project/{PROJECT}/settings/project", bench.twin.base_url());
            assert!(told.starts_with(&page) && told.contains("click to reset it"), "{told}");
        }
    }

    #[tokio::test]
    async fn h05_a_project_token_that_was_reset_is_not_reset_again() {
        let bench = Bench::of("project_token");
        let old = bench.twin.project_token();
        let reset = bench.twin.reset_token();
        let minted = bench.replace("kw-1-2", &old).await.unwrap_or_else(|e| panic!("{e}"));
        assert!(is_value(minted, &reset));
        assert_eq!((bench.told(), bench.twin.project_token()), (0, reset.clone()));
        // A token that is another than the one in use from the beginning is none of this rotation's.
        let minted = bench.replace("kw-2-1", &old).await.unwrap_or_else(|e| panic!("{e}"));
        assert!(!is_value(minted, &reset));
    }

    #[tokio::test]
    async fn h05_a_secret_token_that_was_rotated_is_not_rotated_again() {
        let bench = Bench::of("feature_flags_token");
        let in_use = bench.twin.secret_token();
        // The click was made, and no look since then was answered.
        let looks = 2..2 + u32::try_from(LOOKS).unwrap();
        let lost = looks.map(|look| Rule {
            nth: keywheel_twins::fault::Nth::Number(look),
            ..Rule::first("get_team", Fault::status(429))
        });
        bench.script(lost.collect());
        assert!(is_unknown(&bench.replace("kw-1-1", &in_use).await));
        let rotated = bench.twin.secret_token();
        assert_eq!(bench.told(), 1);
        let minted = bench.replace("kw-1-2", &in_use).await.unwrap_or_else(|e| panic!("{e}"));
        assert!(bench.twin.accepts(&in_use), "the token in use was pushed out");
        assert!(is_value(minted, &rotated));
        assert_eq!(bench.told(), 1);
    }

    #[tokio::test]
    async fn h05_nobody_is_asked_again_before_a_look_that_is_behind_has_caught_up() {
        for kind in ["project_token", "feature_flags_token"] {
            let late = TwinOptions { list_lag: Time::from_millis(300), ..TwinOptions::default() };
            let bench =
                Bench::with(late, Does::AsTold, json!({ "kind": kind, "settle_for": "3s" }));
            let minted = match kind {
                "project_token" => bench.replace("kw-1-1", &bench.twin.project_token()).await,
                _ => bench.replace("kw-1-1", &bench.twin.secret_token()).await,
            };
            let minted = minted.unwrap_or_else(|e| panic!("{kind}: {e}"));
            let new = match kind {
                "project_token" => bench.twin.project_token(),
                _ => bench.twin.secret_token(),
            };
            assert_eq!(bench.told(), 1, "{kind}");
            assert!(is_value(minted, &new), "{kind}");
        }
    }

    #[tokio::test]
    async fn h05_whoever_clicked_is_told_not_to_click_again() {
        let late = TwinOptions { list_lag: Time::from_secs(3_600), ..TwinOptions::default() };
        let bench = Bench::with(late, Does::AsTold, json!({ "kind": "feature_flags_token" }));
        let in_use = bench.twin.secret_token();
        let refusal = refusal(bench.replace("kw-1-1", &in_use).await);
        assert!(refusal.message.contains("go on only once the settings"), "{refusal}");
        assert_eq!((refusal.kind, bench.told()), (RefusalKind::NeedsPerson, TIMES));
        assert!(bench.twin.accepts(&in_use), "the token in use was pushed out");
    }

    #[tokio::test]
    async fn where_nothing_can_be_read_beforehand_nobody_is_told_and_the_same_try_goes_on() {
        for kind in ["project_token", "feature_flags_token"] {
            let bench = Bench::of(kind);
            bench.script(vec![Rule::first("get_team", Fault::Cut)]);
            let refusal = refusal(bench.replace("kw-1-1", "phs_any").await);
            assert_eq!(refusal.remedy, Remedy::Retry { after: None });
            assert_eq!(bench.told(), 0);
        }
    }

    #[tokio::test]
    async fn a_backup_that_is_there_beforehand_is_not_ended_by_a_rotation() {
        let bench = Bench::of("feature_flags_token");
        let backup = bench.twin.secret_token();
        let primary = bench.twin.rotate_secret_token();
        let blocks = bench.blocks().await;
        assert!(blocks.len() == 1 && blocks[0].contains("do not delete the backup"), "{blocks:?}");
        for in_use in [&primary, &backup] {
            let refusal = refusal(bench.replace("kw-1-1", in_use).await);
            let (delete, keep) = (
                refusal.message.contains("delete it once nothing uses it"),
                refusal.message.contains("do not delete the backup"),
            );
            assert_eq!((delete, keep), (in_use == &primary, in_use == &backup), "{refusal}");
        }
        let (label, in_use) = (Label("kw-1-2".into()), credential(&backup));
        let suspects = [suspect(None)];
        let emergency = Mint { in_use: Some(&in_use), suspects: &suspects, ..Mint::new(&label) };
        assert!(bench.issuer.mint(&emergency).await.is_err(), "a suspect was taken for a new one");
        let other = refusal(bench.replace("kw-1-1", "phs_elsewhere").await);
        assert!(other.message.contains("neither the primary nor the backup"), "{other}");
        assert_eq!(bench.told(), 0);
        assert!(bench.twin.accepts(&primary) && bench.twin.accepts(&backup));
    }

    #[tokio::test]
    async fn an_emergency_pushes_out_a_backup_that_is_suspect_too() {
        for in_use_is_backup in [false, true] {
            let bench = Bench::of("feature_flags_token");
            let backup = bench.twin.secret_token();
            let primary = bench.twin.rotate_secret_token();
            let found = bench.issuer.preflight_emergency().await.unwrap();
            assert!(found.iter().all(|found| found.severity == Severity::Note), "{found:?}");
            let (in_use, other) =
                if in_use_is_backup { (&backup, &primary) } else { (&primary, &backup) };
            let (in_use, suspects) = (credential(in_use), [suspect(Some(other))]);
            let mint = async |label: &str| {
                let label = Label(label.into());
                let request =
                    Mint { in_use: Some(&in_use), suspects: &suspects, ..Mint::new(&label) };
                bench.issuer.mint(&request).await.unwrap_or_else(|e| panic!("{e}"))
            };
            let minted = mint("kw-1-1").await;
            let new = bench.twin.secret_token();
            assert!(new != primary && is_value(minted, &new));
            assert!(!bench.twin.accepts(&backup));
            assert!(is_value(mint("kw-1-2").await, &new), "what was rotated is not rotated again");
            let told = bench.person.told.lock().unwrap().join("\n");
            assert_eq!(told.contains("ends the token in use at once"), in_use_is_backup, "{told}");
            assert_eq!(bench.told(), 1);
            let held = credential(&primary);
            bench.issuer.revoke_held(&IssuedId::new("kw-0-1"), Some(&held)).await.unwrap();
            assert!(!bench.twin.accepts(&primary) && bench.twin.accepts(&new));
        }
    }

    #[tokio::test]
    async fn a_project_token_that_an_emergency_reset_is_not_reset_again() {
        let bench = Bench::of("project_token");
        let in_use = credential(&bench.twin.project_token());
        let reset = bench.twin.reset_token();
        for (value, told) in [("phc_elsewhere", 0), (reset.as_str(), 1)] {
            let (label, suspects) = (Label("kw-1-2".into()), [suspect(Some(value))]);
            let request = Mint { in_use: Some(&in_use), suspects: &suspects, ..Mint::new(&label) };
            let minted = bench.issuer.mint(&request).await.unwrap_or_else(|e| panic!("{e}"));
            assert!(is_value(minted, &bench.twin.project_token()));
            assert_eq!(bench.told(), told);
        }
    }

    #[tokio::test]
    async fn a_secret_token_overlaps_until_its_backup_is_deleted() {
        let bench = Bench::of("feature_flags_token");
        let old = bench.twin.secret_token();
        let minted = bench.replace("kw-1-1", &old).await.unwrap_or_else(|e| panic!("{e}"));
        let (id, new) = (minted.issued.unwrap(), minted.credential.unwrap());
        let old = credential(&old);
        assert_eq!(bench.verify(&old).await, Verdict::Accepted);
        assert_eq!(bench.verify(&new).await, Verdict::Accepted);
        for _ in 0..2 {
            bench.issuer.revoke_held(&id, Some(&old)).await.unwrap_or_else(|e| panic!("{e}"));
        }
        assert_eq!(bench.told(), 2);
        assert_eq!(bench.verify(&old).await, Verdict::Refused);
        assert_eq!(bench.verify(&new).await, Verdict::Accepted);
    }

    #[tokio::test]
    async fn h92_a_backup_that_is_another_version_is_left_alone() {
        let bench = Bench::of("feature_flags_token");
        let in_use = bench.twin.secret_token();
        let given_up = bench.twin.rotate_secret_token();
        let id = IssuedId::new("kw-1-1");
        let refusal = refusal(bench.issuer.revoke_held(&id, Some(&credential(&given_up))).await);
        assert!(refusal.message.contains("is the primary token"), "{refusal}");
        bench.issuer.revoke_held(&id, Some(&credential("phs_gone"))).await.unwrap();
        assert!(bench.issuer.revoke(&id).await.is_err());
        assert!(bench.twin.accepts(&in_use) && bench.twin.accepts(&given_up));
        assert_eq!(bench.told(), 0);
    }

    #[tokio::test]
    async fn what_nobody_did_is_not_believed() {
        for kind in ["project_token", "feature_flags_token"] {
            for (does, told) in [(Does::Nothing, TIMES), (Does::IsAway, 0)] {
                let bench = Bench::with(TwinOptions::default(), does, json!({ "kind": kind }));
                let in_use = match kind {
                    "project_token" => bench.twin.project_token(),
                    _ => bench.twin.secret_token(),
                };
                let refusal = refusal(bench.replace("kw-1-1", &in_use).await);
                assert_eq!(
                    (refusal.kind, bench.told()),
                    (RefusalKind::NeedsPerson, told),
                    "{kind}"
                );
                assert!(bench.twin.accepts(&in_use));
            }
        }
        let bench = Bench::with(
            TwinOptions::default(),
            Does::Nothing,
            json!({ "kind": "feature_flags_token" }),
        );
        let old = credential(&bench.twin.secret_token());
        bench.twin.rotate_secret_token();
        let outcome = bench.issuer.revoke_held(&IssuedId::new("kw-1-1"), Some(&old)).await;
        assert_eq!(refusal(outcome).kind, RefusalKind::NeedsPerson);
    }

    #[tokio::test]
    async fn where_no_store_holds_a_token_the_one_that_there_is_is_taken() {
        for kind in ["project_token", "feature_flags_token"] {
            let bench = Bench::of(kind);
            let (token, secret) = (bench.twin.project_token(), bench.twin.secret_token());
            let minted = bench.mint("kw-1-1", None).await.unwrap_or_else(|e| panic!("{e}"));
            assert!(is_value(minted, if kind == "project_token" { &token } else { &secret }));
            assert_eq!((bench.told(), bench.twin.backup_token()), (0, None));
        }
    }

    #[tokio::test]
    async fn preflight_names_what_stands_in_the_way_and_changes_nothing() {
        for (kind, may) in [
            ("project_secret_key", "read project secret API keys"),
            ("project_token", "read the project"),
            ("feature_flags_token", "read the project"),
        ] {
            let bench = Bench::of(kind);
            assert_eq!(bench.blocks().await, [""; 0]);
            bench.twin.restrict(&[]);
            assert_eq!(
                bench.blocks().await,
                [format!(
                    "issuer `posthog` answered 403: is the personal key valid, and may it {may}?"
                )]
            );
            assert!(bench.twin.faults().seen().iter().all(|request| request.method == "GET"));
            assert_eq!(bench.told(), 0);
        }
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused() {
        let build = |changes: Value| {
            let config = json!({
                "project": 7, "base_url": "https://eu.posthog.com", "personal_key": { "env": "KEY" },
            });
            let config: Config = serde_json::from_value(taken_over(config, changes)).unwrap();
            config.build(&Context::at("/")).err().map(|refusal| refusal.kind)
        };
        assert_eq!(build(json!({})), None);
        for wrong in [
            json!({ "base_url": "http://posthog.example.com" }),
            json!({ "ingestion_url": "http://posthog.example.com" }),
            json!({ "within": "59s" }),
            json!({ "kind": "project_token", "scopes": ["feature_flag:read"] }),
        ] {
            assert_eq!(build(wrong.clone()), Some(RefusalKind::Unsupported), "{wrong}");
        }
        let config = |base: &str| -> Config {
            serde_json::from_value(
                json!({ "project": 7, "base_url": base, "personal_key": { "env": "KEY" } }),
            )
            .unwrap()
        };
        for (base, ingestion) in [
            ("https://us.posthog.com/", "https://us.i.posthog.com"),
            ("https://eu.posthog.com", "https://eu.i.posthog.com"),
            ("https://posthog.example.com", "https://posthog.example.com"),
        ] {
            assert_eq!(config(base).ingestion_url(), ingestion);
        }
    }

    const MAY_READ_THE_LOG: [&str; 4] = [
        "project:read",
        "project_secret_api_key:read",
        "project_secret_api_key:write",
        "activity_log:read",
    ];

    /// What is on record about a version, one line for each entry.
    async fn told(bench: &Bench, id: &IssuedId, since: Timestamp) -> String {
        let entries = bench.issuer.audit().unwrap().since(id, since).await.unwrap();
        assert!(entries.is_sorted_by_key(|entry| entry.at));
        let told: String = entries.iter().map(|entry| format!("{}\n", entry.what)).collect();
        assert!(!told.contains(bench.twin.personal_key()), "{told}");
        told
    }

    #[tokio::test]
    async fn the_record_of_a_secret_key_says_who_made_and_deleted_it() {
        let bench = Bench::keys_with(TwinOptions { page: 1, ..TwinOptions::default() });
        bench.twin.restrict(&MAY_READ_THE_LOG);
        let by_hand = IssuedId::new(bench.twin.make_key("by-hand", &["endpoint:read"]).id);
        let (id, _) = bench.minted("kw-1-1").await;
        let of_key = told(&bench, &id, Timestamp::default()).await;
        assert!(of_key.contains("created by `ci@example.com` from 192.0.2.8\n"), "{of_key}");
        assert!(of_key.contains("tells the last one only") && of_key.lines().count() == 2);
        bench.issuer.revoke(&id).await.unwrap();
        let gone = told(&bench, &id, Timestamp::default()).await;
        assert!(gone.contains("created by") && gone.contains("deleted by"), "{gone}");
        assert!(gone.contains("no such key any more"), "{gone}");
        let by_person = told(&bench, &by_hand, Timestamp::default()).await;
        assert!(by_person.contains("by `someone@example.com` from 192.0.2.7"), "{by_person}");
        let later = told(&bench, &by_hand, crate::api::now() + Span::hours(1)).await;
        assert!(later.contains("has nothing of it") && !later.contains("created"), "{later}");
    }

    #[tokio::test]
    async fn the_record_of_a_token_says_who_changed_one_and_no_part_of_it() {
        for kind in ["project_token", "feature_flags_token"] {
            let bench = Bench::of(kind);
            bench.twin.restrict(&MAY_READ_THE_LOG);
            let ends = bench.twin.secret_token();
            bench.twin.make_key("by-hand", &["endpoint:read"]);
            bench.twin.reset_token();
            bench.twin.rotate_secret_token();
            bench.twin.delete_backup();
            let of_tokens = told(&bench, &IssuedId::new("kw-1-1"), Timestamp::default()).await;
            for field in ["(`api_token`)", "(`secret_api_token`)", "(`secret_api_token_backup`)"] {
                let line = format!("updated {field} by `someone@example.com` from 192.0.2.7\n");
                assert!(of_tokens.contains(&line), "{line} in {of_tokens}");
            }
            assert_eq!(of_tokens.lines().count(), 4, "{of_tokens}");
            assert!(!of_tokens.contains(&ends[ends.len() - 4..]), "{of_tokens}");
        }
    }

    #[tokio::test]
    async fn what_of_a_record_could_not_be_read_is_told() {
        let bench = Bench::keys();
        let (id, _) = bench.minted("kw-1-1").await;
        let without_scope = told(&bench, &id, Timestamp::default()).await;
        assert!(without_scope.contains("(`activity_log:read`)?"), "{without_scope}");
        assert!(without_scope.contains("it was made\n"), "{without_scope}");
        bench.twin.restrict(&MAY_READ_THE_LOG);
        let faults = [401, 403, 404, 429, 500, 503].map(|code| status(code, Echo::EchoKey));
        for fault in faults.into_iter().chain([status(200, Echo::Html), Fault::Cut]) {
            bench.script(vec![Rule::every("list_activity", fault.clone())]);
            let no_log = told(&bench, &id, Timestamp::default()).await;
            assert!(no_log.contains("could not be read: "), "{fault:?}: {no_log}");
        }
        let free =
            Bench::keys_with(TwinOptions { no_activity_log: true, ..TwinOptions::default() });
        free.twin.restrict(&MAY_READ_THE_LOG);
        let (id, _) = free.minted("kw-1-1").await;
        let no_plan = told(&free, &id, Timestamp::default()).await;
        assert!(no_plan.contains("402: the plan of the organisation"), "{no_plan}");
        let behind = TwinOptions { list_lag: Time::from_secs(3_600), ..TwinOptions::default() };
        let late = Bench::keys_with(behind);
        late.twin.restrict(&MAY_READ_THE_LOG);
        let (id, _) = late.minted("kw-1-1").await;
        let behind = told(&late, &id, Timestamp::default()).await;
        assert!(behind.contains("has nothing of it in this time"), "{behind}");
    }
}
