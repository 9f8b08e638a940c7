//! `github_actions`: secrets of a repository, or of one of its environments, for workflows; a slot's address is a name.
//!
//! GitHub gives no value back, only the time of the last write, in whole seconds: what is written is attested, and never said to be
//! held. So a write waits until that time can move, and is only done once it has. A value is sealed for the key that GitHub names,
//! as libsodium seals a box, and leaves this process in no other form.
//!
//! Several slots are written one after the other: whatever stops it after the first one is an unknown outcome, and no refusal.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crypto_box::PublicKey;
use crypto_box::aead::OsRng;
use keywheel_core::facts::{Pickup, ReadBack, Revert, StoreFacts};
use keywheel_core::plan::Pin;
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::duration::Duration;
use keywheel_driver::store::{Edit, Written};
use keywheel_driver::{CallError, Finding, Refusal, RefusalKind, SecretReference, Store};
use reqwest::header::{ACCEPT, DATE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use reqwest::{Method, StatusCode, Url};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::{Answer, Api, instant, moment, plain, unsupported};
use crate::http::{self, Effect};
use crate::{Build, Context, reference};

const TARGET: &str = "store `github_actions`";
const OFFICIAL: &str = "https://api.github.com";

/// The longest value that GitHub takes, in bytes.
const LONGEST: usize = 48 * 1024;

/// How often the time of a write is looked for before it counts as one that does not show.
const LOOKS: u32 = 10;

/// The pause between two looks.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(300);

/// The most environments whose own secrets are looked at.
const MOST_ENVIRONMENTS: usize = 30;

/// Secrets of a repository on GitHub, as its workflows are given them when they begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The repository: `owner/name`.
    pub repository: String,
    /// The environment whose secrets they are; the repository's own, where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Where a token is read that may read and write these secrets.
    pub token: SecretReference,
    /// Where the API is, if not at the official address; HTTPS, or a loopback address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// How long the longest run of a workflow goes on, from when it is queued and with every wait for an approval: for so long it has
    /// the value that it was given. GitHub lets one go on for 35 days.
    pub longest_run: Duration,
    /// Whether a secret that is not there is made. Without it, one that is missing is taken for a mistyped name.
    #[serde(default)]
    pub create: bool,
    /// How long a write without an answer can still take effect.
    #[serde(default = "minutes::<2>")]
    pub settle_for: Duration,
}

fn minutes<const N: u64>() -> Duration {
    Span::minutes(N).into()
}

impl Build for Config {
    type Driver = dyn Store;

    fn build(&self, context: &Context) -> Result<Arc<dyn Store>, Refusal> {
        let parts: Vec<&str> = self.repository.split('/').collect();
        let [owner, name] = parts[..] else {
            return Err(unsupported("`repository` is not `owner/name`"));
        };
        if owner.is_empty() || name.is_empty() {
            return Err(unsupported("`repository` is not `owner/name`"));
        }
        if self.environment.as_deref().is_some_and(str::is_empty) {
            return Err(unsupported("`environment` is empty"));
        }
        let base = self.base_url.as_deref().unwrap_or(OFFICIAL);
        Ok(Arc::new(GithubActions {
            repository: [owner.to_owned(), name.to_owned()],
            token: reference::from_root(&self.token, context),
            api: Api::new(TARGET, base)?,
            config: self.clone(),
        }))
    }
}

struct GithubActions {
    repository: [String; 2],
    token: SecretReference,
    api: Api,
    config: Config,
}

#[async_trait]
impl Store for GithubActions {
    fn facts(&self) -> StoreFacts {
        StoreFacts {
            read_back: ReadBack::Timestamp,
            conditional: false,
            staged: false,
            revert: Revert::Restore,
            history: false,
            pickup: Pickup::NextRun,
            settle_for: self.config.settle_for.span(),
            leaves_behind: false,
            answers_logins: false,
            longest_run: Some(self.config.longest_run.span()),
        }
    }

    fn container(&self) -> String {
        let base = self.config.base_url.as_deref().unwrap_or(OFFICIAL).trim_end_matches('/');
        let environment = self.config.environment.as_deref();
        let environment = environment.map(|name| format!("/{name}")).unwrap_or_default();
        format!("github:{base}/{}{environment}", self.config.repository).to_lowercase()
    }

    /// A repository that was made anew under an old name is another one.
    async fn identity(&self) -> Result<Option<Pin>, CallError> {
        let caller = self.caller().await?;
        let found: Option<Repository> = self.find(&caller, &[]).await?;
        let repository = found.ok_or_else(|| self.not_there())?;
        let id = format!("repository {}", repository.id);
        Ok(Some(Pin { id, machine: String::new(), folder: String::new() }))
    }

    async fn preflight(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        let mut findings: Vec<Finding> = addresses
            .iter()
            .filter_map(|name| check_name(name).err())
            .map(Finding::blocks)
            .collect();
        let caller = self.caller().await?;
        match self.public_key(&caller).await {
            Ok(_) => {}
            Err(CallError::Refused(refusal)) if is_a_no(&refusal) => {
                findings.push(Finding::blocks(refusal.message));
                return Ok(findings);
            }
            Err(error) => return Err(error),
        }
        for name in addresses {
            if self.secret(&caller, name).await?.is_none() && !self.config.create {
                findings.push(Finding::blocks(self.no_secret(name)));
            }
        }
        findings.extend(self.shadows(&caller, addresses).await?.into_iter().map(Finding::note));
        Ok(findings)
    }

    async fn read(&self, _: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        Err(unsupported("GitHub gives no value of a secret back").into())
    }

    /// That a secret is missing counts only where the place is seen to be there: a token that lost its rights is told the same.
    async fn changed_at(&self, addresses: &[String]) -> Result<Vec<Option<Timestamp>>, CallError> {
        let caller = self.caller().await?;
        let mut changed_at = Vec::new();
        for name in addresses {
            changed_at.push(self.secret(&caller, name).await?.map(|seen| seen.updated_at));
        }
        if changed_at.contains(&None) && !planted!("missing_secret_is_believed") {
            self.public_key(&caller).await?;
        }
        Ok(changed_at)
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        let mut names = BTreeSet::new();
        for edit in edits {
            check_name(edit.address).map_err(|why| unsupported(&why))?;
            edit.value.map_or(Ok(()), check_value)?;
            if !names.insert(edit.address) {
                return Err(unsupported(&format!("two edits name `{}`", edit.address)).into());
            }
        }
        let caller = self.caller().await?;
        let key = self.public_key(&caller).await?;
        for edit in edits.iter().filter(|edit| edit.value.is_some() && !self.config.create) {
            let is_missing = self.secret(&caller, edit.address).await?.is_none();
            if is_missing && !planted!("missing_secret_is_made") {
                let why = self.no_secret(edit.address);
                return Err(Refusal::operator(RefusalKind::NotFound, why).into());
            }
        }
        for (number, edit) in edits.iter().enumerate() {
            let made = self.change(&caller, &key, edit).await;
            // What was written before it stays written.
            made.map_err(|error| match error {
                CallError::Refused(refusal) if number > 0 => CallError::Unknown(format!(
                    "{number} of {} secrets were written: {}",
                    edits.len(),
                    refusal.message
                )),
                error => error,
            })?;
        }
        Ok(Written { changed: !edits.is_empty() })
    }
}

impl GithubActions {
    async fn caller(&self) -> Result<HeaderMap, CallError> {
        let token = reference::read(&self.token).await?;
        let mut headers = self.api.bearer(&token, "token")?;
        headers.insert(ACCEPT, HeaderValue::from_static("application/vnd.github+json"));
        headers.insert(USER_AGENT, HeaderValue::from_static("keywheel"));
        let version = HeaderName::from_static("x-github-api-version");
        headers.insert(version, HeaderValue::from_static("2022-11-28"));
        Ok(headers)
    }

    /// Asks once, at a path below the repository.
    async fn send(
        &self,
        caller: &HeaderMap,
        method: Method,
        path: &[&str],
        body: Option<&Value>,
    ) -> Result<Answer, CallError> {
        self.api.send(method, self.url(path), caller, body).await
    }

    fn url(&self, path: &[&str]) -> Url {
        let [owner, name] = &self.repository;
        self.api.url(&[&["repos", owner, name], path].concat())
    }

    /// Reads the longest page of a list; nothing where it is not there, or not shown to this token.
    async fn list<T: DeserializeOwned>(&self, caller: &HeaderMap, path: &[&str]) -> Option<T> {
        let mut url = self.url(path);
        url.query_pairs_mut().append_pair("per_page", "100");
        self.api.read(caller, url).await.ok()
    }

    /// Reads one thing, or none where it is not there, or not shown to this token.
    async fn find<T: DeserializeOwned>(
        &self,
        caller: &HeaderMap,
        path: &[&str],
    ) -> Result<Option<T>, CallError> {
        let answer = self.send(caller, Method::GET, path, None).await?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => answer.decode().map(Some),
            _ => Err(refused(&answer, Effect::Reads)),
        }
    }

    fn secrets(&self) -> Vec<&str> {
        match &self.config.environment {
            Some(environment) => vec!["environments", environment, "secrets"],
            None => vec!["actions", "secrets"],
        }
    }

    async fn public_key(&self, caller: &HeaderMap) -> Result<Key, CallError> {
        let path = [self.secrets(), vec!["public-key"]].concat();
        let shown: ShownKey = self.find(caller, &path).await?.ok_or_else(|| self.not_there())?;
        let bytes = STANDARD.decode(&shown.key).ok();
        let bytes: Option<[u8; 32]> = bytes.and_then(|bytes| bytes.try_into().ok());
        let key = bytes.map(PublicKey::from);
        let key =
            key.ok_or_else(|| CallError::Unknown(format!("{TARGET}: the public key is none")))?;
        Ok(Key { id: shown.key_id, key })
    }

    async fn secret(&self, caller: &HeaderMap, name: &str) -> Result<Option<Seen>, CallError> {
        let path = [self.secrets(), vec![name]].concat();
        let answer = self.send(caller, Method::GET, &path, None).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !answer.status.is_success() {
            return Err(refused(&answer, Effect::Reads));
        }
        let shown: Shown = answer.decode()?;
        let updated_at = moment(&shown.updated_at).ok_or_else(|| answer.not_understood())?;
        Ok(Some(Seen { updated_at, told_at: told_at(&answer) }))
    }

    /// Writes or removes one secret, and sees that it shows.
    async fn change(
        &self,
        caller: &HeaderMap,
        key: &Key,
        edit: &Edit<'_>,
    ) -> Result<(), CallError> {
        let path = [self.secrets(), vec![edit.address]].concat();
        let Some(value) = edit.value else {
            let answer = self.send(caller, Method::DELETE, &path, None).await?;
            return match answer.status {
                StatusCode::NO_CONTENT | StatusCode::NOT_FOUND => Ok(()),
                _ => Err(refused(&answer, Effect::Changes)),
            };
        };
        let before = self.once_time_can_move(caller, edit.address).await?;
        let sealed = key.key.seal(&mut OsRng, value.expose());
        let sealed = sealed.map_err(|_| unsupported("the value could not be sealed"))?;
        let body = json!({ "encrypted_value": STANDARD.encode(sealed), "key_id": key.id });
        let answer = self.send(caller, Method::PUT, &path, Some(&body)).await?;
        match answer.status {
            StatusCode::CREATED | StatusCode::NO_CONTENT => {}
            StatusCode::NOT_FOUND => return Err(self.not_there().into()),
            StatusCode::UNPROCESSABLE_ENTITY => {
                let why = "GitHub does not take the value: its public key may just have changed";
                return Err(Refusal::retry(RefusalKind::Unavailable, None, why).into());
            }
            _ => return Err(refused(&answer, Effect::Changes)),
        }
        self.shows(caller, edit.address, before).await
    }

    /// Waits until a write can be told from the one before by its second; returns the time of that one.
    async fn once_time_can_move(
        &self,
        caller: &HeaderMap,
        name: &str,
    ) -> Result<Option<Timestamp>, CallError> {
        let mut before = None;
        for _ in 0..LOOKS {
            let Some(seen) = self.secret(caller, name).await? else { return Ok(None) };
            before = Some(seen.updated_at);
            let is_past = seen.told_at.is_none_or(|told_at| seen.updated_at < told_at);
            if is_past || planted!("second_of_a_write_is_shared") {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(before)
    }

    /// The write was made: whatever becomes of looking at it, it was not refused.
    async fn shows(
        &self,
        caller: &HeaderMap,
        name: &str,
        before: Option<Timestamp>,
    ) -> Result<(), CallError> {
        let mut why = format!("GitHub does not show that `{name}` was changed");
        for look in 0..LOOKS {
            if look > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            match self.secret(caller, name).await {
                Ok(Some(seen)) if before.is_none_or(|before| seen.updated_at > before) => {
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) => why = error.to_string(),
            }
        }
        Err(CallError::Unknown(why))
    }

    /// What else goes by these names, so that some runs are given another value.
    async fn shadows(
        &self,
        caller: &HeaderMap,
        addresses: &[String],
    ) -> Result<Vec<String>, CallError> {
        let mut told = Vec::new();
        if let Some(environment) = &self.config.environment {
            for name in addresses {
                let found: Option<Value> = self.find(caller, &["actions", "secrets", name]).await?;
                if found.is_some() {
                    told.push(format!("the repository has a secret `{name}` too: jobs outside environment `{environment}` are given that one"));
                }
            }
            return Ok(told);
        }
        // What the token is not shown is not known, and holds nothing up.
        let shared = self.list::<Secrets>(caller, &["actions", "organization-secrets"]).await;
        for shared in shared.into_iter().flat_map(|list| list.secrets) {
            if addresses.contains(&shared.name) {
                let name = plain(&shared.name);
                told.push(format!(
                    "the organisation has a secret `{name}` too: the repository's goes before it"
                ));
            }
        }
        let environments = self.list::<Environments>(caller, &["environments"]).await;
        let environments = environments.into_iter().flat_map(|list| list.environments);
        for environment in environments.take(MOST_ENVIRONMENTS) {
            for name in addresses {
                let path = ["environments", &environment.name, "secrets", name];
                if let Ok(Some(_)) = self.find::<Value>(caller, &path).await {
                    let environment = plain(&environment.name);
                    told.push(format!("environment `{environment}` has a secret `{name}` of its own: its jobs are given that one, which this does not change"));
                }
            }
        }
        Ok(told)
    }

    fn place(&self) -> String {
        let repository = format!("repository `{}`", self.config.repository);
        match &self.config.environment {
            Some(environment) => format!("environment `{environment}` of {repository}"),
            None => repository,
        }
    }

    fn no_secret(&self, name: &str) -> String {
        format!(
            "{} has no secret `{name}`: correct the name, make it once by hand, or say `create: true`",
            self.place()
        )
    }

    /// GitHub says that it has no such thing of what it has and does not show, too.
    fn not_there(&self) -> Refusal {
        let message = format!(
            "{TARGET}: {} is not there, or the token is not shown its secrets",
            self.place()
        );
        Refusal::operator(RefusalKind::NotFound, message)
    }
}

/// What an answer is that is no success. GitHub asks to be asked less often by 403 as well as by 429.
fn refused(answer: &Answer, effect: Effect) -> CallError {
    let is_last = answer.headers.get("x-ratelimit-remaining").is_some_and(|left| left == "0");
    let after = http::retry_after(&answer.headers).or_else(|| until_reset(answer, is_last));
    let is_busy = match answer.status {
        StatusCode::FORBIDDEN => after.is_some() || is_last,
        status => status == StatusCode::TOO_MANY_REQUESTS,
    };
    if is_busy && !planted!("busy_is_no_permission") {
        let message = format!("{TARGET} is asked too often: {}", answer.in_words());
        return Refusal::retry(RefusalKind::RateLimited, after, message).into();
    }
    if answer.status.is_redirection() {
        let message = format!(
            "{TARGET}: the repository was renamed or moved, and is asked for by its former name: write the one that it has now ({})",
            answer.in_words()
        );
        return Refusal::operator(RefusalKind::NotFound, message).into();
    }
    answer.error(effect)
}

/// How long it is, by GitHub's own clock, until requests are granted anew, where none is left.
fn until_reset(answer: &Answer, is_last: bool) -> Option<Span> {
    let at = answer.headers.get("x-ratelimit-reset").filter(|_| is_last)?;
    let at = instant(at.to_str().ok()?.parse().ok()?);
    let left = at.millis().saturating_sub(told_at(answer)?.millis());
    Some(Span::seconds(u64::try_from(left).unwrap_or(0).div_ceil(1_000)))
}

fn is_a_no(refusal: &Refusal) -> bool {
    matches!(refusal.kind, RefusalKind::NotFound | RefusalKind::Permission)
}

/// The time by GitHub's own clock, in whole seconds.
fn told_at(answer: &Answer) -> Option<Timestamp> {
    let date = answer.headers.get(DATE)?.to_str().ok()?;
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).ok()?;
    Some(Timestamp::from_millis(at.as_millisecond()))
}

fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    if name.is_empty() || !name.chars().all(fits) || name.starts_with(|c: char| c.is_ascii_digit())
    {
        return Err(format!(
            "`{}` is no name of a secret: capital letters, digits and `_`, no digit first",
            plain(name)
        ));
    }
    if name.starts_with("GITHUB_") {
        return Err(format!("`{name}`: names that begin with `GITHUB_` are GitHub's own"));
    }
    Ok(())
}

fn check_value(value: &SecretValue) -> Result<(), Refusal> {
    let bytes = value.expose();
    if bytes.is_empty() {
        return Err(unsupported("GitHub takes no empty secret"));
    }
    if bytes.len() > LONGEST {
        return Err(unsupported("GitHub takes no secret of more than 48 KiB"));
    }
    std::str::from_utf8(bytes)
        .map(drop)
        .map_err(|_| unsupported("a secret that is not UTF-8 would reach no run as it is"))
}

struct Key {
    id: String,
    key: PublicKey,
}

/// When a secret was changed last, and GitHub's time when it said so.
struct Seen {
    updated_at: Timestamp,
    told_at: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Repository {
    id: u64,
}

#[derive(Deserialize)]
struct ShownKey {
    key_id: String,
    key: String,
}

#[derive(Deserialize)]
struct Shown {
    updated_at: String,
}

#[derive(Deserialize)]
struct Secrets {
    secrets: Vec<Named>,
}

#[derive(Deserialize)]
struct Environments {
    environments: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[cfg(test)]
mod tests {
    use std::time::Duration as Wait;

    use keywheel_driver::conformance::attested::{self as conformance, Subject};
    use keywheel_driver::conformance::canary;
    use keywheel_driver::store::Accept;
    use keywheel_driver::{Remedy, Severity};
    use keywheel_twins::fault::{Fault, Rule};
    use keywheel_twins::github::{Twin, TwinOptions};
    use tempfile::TempDir;

    use super::*;

    const NAME: &str = "PROVIDER_KEY";

    struct World {
        twin: Twin,
        folder: TempDir,
    }

    impl World {
        fn new() -> Self {
            Self::with(TwinOptions::default())
        }

        fn with(options: TwinOptions) -> Self {
            let world =
                Self { twin: Twin::start(options).unwrap(), folder: tempfile::tempdir().unwrap() };
            std::fs::write(world.folder.path().join("token"), world.twin.token()).unwrap();
            world
        }

        fn store(&self) -> Arc<dyn Store> {
            self.configured("")
        }

        fn configured(&self, more: &str) -> Arc<dyn Store> {
            let base = self.twin.base_url();
            let config = format!(
                r#"{{ "repository": "acme/shop", "token": {{ "file": "token" }}, "longest_run": "6h", "base_url": "{base}"{more} }}"#
            );
            let config: Config = serde_json::from_str(&config).unwrap();
            config.build(&Context::at(self.folder.path())).unwrap_or_else(|no| panic!("{no}"))
        }

        fn fault(&self, on: &str, fault: Fault) {
            self.twin.faults().set(vec![Rule::first(on, fault)]).unwrap();
        }

        fn holds(&self) -> Option<String> {
            self.twin.value(NAME).map(|value| String::from_utf8(value).unwrap())
        }
    }

    async fn put(store: &dyn Store, text: &str) -> Result<Written, CallError> {
        let value = SecretValue::new(text.into());
        let accept = Accept::Anything;
        store.write(&[Edit { address: NAME, accept, value: Some(&value) }]).await
    }

    fn kind(answer: Result<Written, CallError>) -> RefusalKind {
        match answer {
            Err(CallError::Refused(refusal)) => refusal.kind,
            other => panic!("{other:?}"),
        }
    }

    async fn blocked(store: &dyn Store, names: &[&str]) -> Vec<String> {
        let names: Vec<String> = names.iter().map(|name| (*name).into()).collect();
        let findings = store.preflight(&names).await.unwrap();
        let blocks = findings.into_iter().filter(|one| one.severity == Severity::Blocks);
        blocks.map(|one| one.message).collect()
    }

    #[tokio::test]
    async fn it_conforms() {
        conformance::every_case(async || {
            let world = World::new();
            let store = world.configured(r#", "create": true"#);
            let names = vec![NAME.to_owned(), "OTHER_KEY".to_owned()];
            let world = Arc::new(world);
            let held = {
                let world = Arc::clone(&world);
                Box::new(move |name: &str| world.twin.value(name))
            };
            let by_hand = {
                let world = Arc::clone(&world);
                Box::new(move |name: &str, value: &[u8]| world.twin.set_by_hand(name, value))
            };
            let uncarriable = vec![vec![0xff, 0xfe], Vec::new(), vec![b'x'; LONGEST + 1]];
            Subject { store, addresses: names, held, by_hand, uncarriable }
        })
        .await;
    }

    #[tokio::test]
    async fn h40_two_writes_in_one_second_show_as_two() {
        let world = World::new();
        let store = world.configured(r#", "create": true"#);
        let names = [NAME.to_owned()];
        let mut times = Vec::new();
        for text in ["one", "two"] {
            put(&*store, text).await.unwrap();
            times.push(store.changed_at(&names).await.unwrap()[0].unwrap());
        }
        assert!(times[0] < times[1], "{times:?}");
        assert_eq!((world.holds().as_deref(), world.twin.writes(NAME)), (Some("two"), 2));
    }

    #[tokio::test]
    async fn a_time_that_shows_late_is_waited_for_and_one_that_never_does_is_unknown() {
        let late = TwinOptions { shows_after: Wait::from_millis(700), ..TwinOptions::default() };
        let world = World::with(late);
        world.twin.set_by_hand(NAME, b"old");
        put(&*world.store(), "one").await.unwrap();
        let never = TwinOptions { shows_after: Wait::from_secs(3_600), ..TwinOptions::default() };
        let world = World::with(never);
        world.twin.set_by_hand(NAME, b"old");
        let unknown = put(&*world.store(), "one").await;
        assert!(matches!(unknown, Err(CallError::Unknown(_))), "{unknown:?}");
    }

    #[tokio::test]
    async fn h40_a_lost_answer_is_unknown_and_the_same_write_again_is_right() {
        for fault in [Fault::Cut, Fault::LateLanding { after_ms: 200 }, Fault::status(502)] {
            let world = World::new();
            world.twin.set_by_hand(NAME, b"old");
            let store = world.store();
            world.fault("put_secret", fault.clone());
            let lost = put(&*store, "new").await;
            assert!(matches!(lost, Err(CallError::Unknown(_))), "{fault:?}: {lost:?}");
            assert!(world.twin.faults().unfired().is_empty());
            put(&*store, "new").await.unwrap();
            assert_eq!(world.holds().as_deref(), Some("new"));
        }
    }

    #[tokio::test]
    async fn h97_being_asked_too_often_is_told_from_a_lack_of_rights() {
        let world = World::new();
        world.twin.set_by_hand(NAME, b"old");
        let store = world.store();
        for code in [403, 429] {
            let busy = Fault::Status {
                code,
                retry_after: Some("3600".into()),
                body: Default::default(),
                applied: false,
            };
            world.fault("put_secret", busy);
            let Err(CallError::Refused(refusal)) = put(&*store, "new").await else { panic!() };
            let after = Remedy::Retry { after: Some(Span::hours(1)) };
            assert_eq!((refusal.kind, refusal.remedy), (RefusalKind::RateLimited, after));
        }
        world.fault("put_secret", Fault::status(403));
        assert_eq!(kind(put(&*store, "new").await), RefusalKind::Permission);
        assert_eq!(world.holds().as_deref(), Some("old"));
    }

    #[tokio::test]
    async fn h97_where_no_request_is_left_the_next_one_waits_for_the_hour_to_end() {
        let world = World::with(TwinOptions { used_up: true, ..TwinOptions::default() });
        let Err(CallError::Refused(refusal)) = put(&*world.store(), "new").await else { panic!() };
        let Remedy::Retry { after: Some(after) } = refusal.remedy else { panic!("{refusal}") };
        assert!(after > Span::minutes(25) && after <= Span::minutes(30), "{after}");
        assert_eq!(refusal.kind, RefusalKind::RateLimited);
    }

    #[tokio::test]
    async fn a_repository_that_was_renamed_is_asked_for_by_its_new_name() {
        let world = World::new();
        world.fault("get_public_key", Fault::status(301));
        let findings = world.store().preflight(&[NAME.to_owned()]).await.unwrap();
        let told: Vec<_> = findings.iter().map(|finding| &finding.message).collect();
        assert!(told.len() == 1 && told[0].contains("was renamed or moved"), "{told:?}");
    }

    #[tokio::test]
    async fn a_token_that_may_only_read_changes_nothing() {
        let world = World::with(TwinOptions { read_only: true, ..TwinOptions::default() });
        world.twin.set_by_hand(NAME, b"old");
        assert_eq!(kind(put(&*world.store(), "new").await), RefusalKind::Permission);
        assert_eq!(world.holds().as_deref(), Some("old"));
    }

    #[tokio::test]
    async fn h40_what_a_token_is_not_shown_is_not_taken_for_missing() {
        let world = World::new();
        world.twin.set_by_hand(NAME, b"old");
        let store = world.store();
        let gone = Fault::status(404);
        let rules = ["get_secret", "get_public_key"].map(|on| Rule::every(on, gone.clone()));
        world.twin.faults().set(rules.into()).unwrap();
        let told = store.changed_at(&[NAME.to_owned()]).await;
        assert!(matches!(told, Err(CallError::Refused(_))), "{told:?}");
        let blocks = blocked(&*store, &[NAME]).await.join("; ");
        assert!(blocks.contains("is not there, or the token is not shown"), "{blocks}");
    }

    #[tokio::test]
    async fn a_mistyped_name_is_told_before_anything_is_made() {
        let world = World::new();
        world.twin.set_by_hand(NAME, b"old");
        let (store, makes) = (world.store(), world.configured(r#", "create": true"#));
        assert!(blocked(&*store, &[NAME]).await.is_empty());
        let told = blocked(&*store, &["PROVIDER_KYE"]).await.join("; ");
        assert!(told.contains("has no secret `PROVIDER_KYE`"), "{told}");
        assert!(blocked(&*makes, &["PROVIDER_KYE"]).await.is_empty());
        for name in ["provider_key", "1KEY", "GITHUB_KEY", "A-B", ""] {
            assert_eq!(blocked(&*makes, &[name]).await.len(), 1, "{name}");
        }
    }

    #[tokio::test]
    async fn h107_a_secret_that_is_gone_meanwhile_is_not_made_unless_that_is_wanted() {
        let world = World::new();
        world.twin.set_by_hand("OTHER_KEY", b"old");
        let value = SecretValue::new(b"new".to_vec());
        let edit = |address| Edit { address, accept: Accept::Anything, value: Some(&value) };
        let answer = world.store().write(&[edit("OTHER_KEY"), edit(NAME)]).await;
        assert_eq!(kind(answer), RefusalKind::NotFound);
        assert_eq!((world.holds(), world.twin.writes("OTHER_KEY")), (None, 1));
        put(&*world.configured(r#", "create": true"#), "new").await.unwrap();
        assert_eq!(world.holds().as_deref(), Some("new"));
    }

    #[test]
    fn h56_how_long_a_run_goes_on_is_not_guessed() {
        let config = json!({ "repository": "acme/shop", "token": { "file": "token" } });
        let error = serde_json::from_value::<Config>(config).unwrap_err().to_string();
        assert!(error.contains("longest_run"), "{error}");
    }

    #[tokio::test]
    async fn a_secret_that_goes_before_another_of_its_name_is_told() {
        let world = World::new();
        world.twin.set_by_hand(NAME, b"old");
        world.twin.set_by_hand_in_environment(NAME, b"its own");
        // As many as come first in a list are on a page of their own, where nobody says how long it may be.
        (0..40).for_each(|number| world.twin.share_of_organisation(&format!("SHARED_{number}")));
        world.twin.share_of_organisation(NAME);
        let told = async |store: &dyn Store| {
            let findings = store.preflight(&[NAME.to_owned()]).await.unwrap();
            assert!(findings.iter().all(|one| one.severity == Severity::Note));
            findings.into_iter().map(|one| one.message).collect::<Vec<_>>().join("; ")
        };
        let repository = told(&*world.store()).await;
        assert!(repository.contains("organisation has") && repository.contains("`production`"));
        let store = world.configured(r#", "environment": "production""#);
        assert!(told(&*store).await.contains("jobs outside environment"));
        put(&*store, "new").await.unwrap();
        let held = world.twin.value_in_environment(NAME);
        assert_eq!((held, world.holds()), (Some(b"new".to_vec()), Some("old".into())));
    }

    #[tokio::test]
    async fn a_key_that_changed_meanwhile_is_asked_for_again() {
        let world = World::new();
        world.twin.set_by_hand(NAME, b"old");
        let store = world.store();
        world.fault("put_secret", Fault::status(422));
        assert_eq!(kind(put(&*store, "new").await), RefusalKind::Unavailable);
        world.twin.change_key();
        put(&*store, "new").await.unwrap();
        assert_eq!(world.holds().as_deref(), Some("new"));
    }

    #[tokio::test]
    async fn h40_a_refusal_after_the_first_of_two_secrets_is_unknown() {
        let world = World::new();
        for name in [NAME, "OTHER_KEY"] {
            world.twin.set_by_hand(name, b"old");
        }
        let second = Rule {
            nth: keywheel_twins::fault::Nth::Number(2),
            ..Rule::first("put_secret", Fault::status(403))
        };
        world.twin.faults().set(vec![second]).unwrap();
        let value = SecretValue::new(b"new".to_vec());
        let edit = |address| Edit { address, accept: Accept::Anything, value: Some(&value) };
        let half = world.store().write(&[edit(NAME), edit("OTHER_KEY")]).await;
        assert!(matches!(half, Err(CallError::Unknown(_))), "{half:?}");
    }

    #[tokio::test]
    async fn h115_no_error_and_no_request_shows_a_value() {
        let world = World::new();
        world.twin.set_by_hand(NAME, b"old");
        let store = world.store();
        let canary = canary("github");
        world.twin.faults().record();
        let echo = Fault::Status {
            code: 500,
            retry_after: None,
            body: keywheel_twins::fault::Echo::EchoKey,
            applied: false,
        };
        world.fault("put_secret", echo);
        let error = put(&*store, &canary).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("github_pat_"));
        put(&*store, &canary).await.unwrap();
        let bodies = world.twin.faults().recorded().into_iter().filter_map(|one| one.body);
        let asked: String = bodies.map(|body| body.to_string()).collect();
        assert!(!asked.contains(&canary) && asked.contains("encrypted_value"));
        assert_eq!(world.holds().as_deref(), Some(&*canary));
    }
}
