//! `gitlab_variable`: CI/CD variables of a project, of one environment scope; a slot's address is a key.
//!
//! GitLab shows the value of some variables again and of hidden ones never, and keeps no time of their changes: nothing is read back
//! here, and what is written is attested. What is set for a variable stays: its type, its protection, masking, expansion and
//! description are read before a write, sent with it, and compared with the answer.
//!
//! A variable that is not there is not made, and none is removed: what it should be set to is nobody's but its owner's to say.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::facts::{Pickup, ReadBack, Revert, StoreFacts};
use keywheel_core::plan::Pin;
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::Span;
use keywheel_driver::duration::Duration;
use keywheel_driver::store::{Edit, Written};
use keywheel_driver::{CallError, Finding, Refusal, RefusalKind, SecretReference, Store};
use reqwest::header::{HeaderMap, HeaderName};
use reqwest::{Method, Url};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{Api, JSON, MOST_PAGES, Shown, plain, unsupported};
use crate::http::Effect;
use crate::secret_json;
use crate::{Build, Context, reference};

const TARGET: &str = "store `gitlab_variable`";
const OFFICIAL: &str = "https://gitlab.com/api/v4";

/// The scope of a variable that jobs of every environment are given.
const EVERYWHERE: &str = "*";

/// The most variables on a page of a list.
const PAGE: usize = 100;

/// The longest value that GitLab takes, in characters.
const LONGEST: usize = 10_000;

/// The shortest value that GitLab masks, in characters.
const SHORTEST_MASKED: usize = 8;

/// CI/CD variables of a project on GitLab, as its jobs are given them when they begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The project: its id, or `group/name`.
    pub project: String,
    /// The environment scope of the variables, as GitLab shows it.
    #[serde(default = "everywhere")]
    pub environment_scope: String,
    /// Where a token is read that may read and write variables of the project.
    pub token: SecretReference,
    /// Where the API is, if not at the official address, with its `/api/v4`; HTTPS, or a loopback address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// How long the longest job goes on with the value that it began with.
    #[serde(default = "hours::<6>")]
    pub longest_run: Duration,
    /// How long a write without an answer can still take effect.
    #[serde(default = "minutes::<2>")]
    pub settle_for: Duration,
}

fn everywhere() -> String {
    EVERYWHERE.into()
}

fn hours<const N: u64>() -> Duration {
    Span::hours(N).into()
}

fn minutes<const N: u64>() -> Duration {
    Span::minutes(N).into()
}

impl Build for Config {
    type Driver = dyn Store;

    fn build(&self, context: &Context) -> Result<Arc<dyn Store>, Refusal> {
        if self.project.is_empty() || self.environment_scope.is_empty() {
            return Err(unsupported("`project` or `environment_scope` is empty"));
        }
        let base = self.base_url.as_deref().unwrap_or(OFFICIAL);
        Ok(Arc::new(GitlabVariable {
            token: reference::from_root(&self.token, context),
            api: Api::new(TARGET, base)?,
            config: self.clone(),
        }))
    }
}

struct GitlabVariable {
    token: SecretReference,
    api: Api,
    config: Config,
}

#[async_trait]
impl Store for GitlabVariable {
    fn facts(&self) -> StoreFacts {
        StoreFacts {
            read_back: ReadBack::None,
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
        let Config { project, environment_scope, base_url, .. } = &self.config;
        let base = base_url.as_deref().unwrap_or(OFFICIAL).trim_end_matches('/');
        // Scopes that differ in case only are two, unlike projects.
        format!("{} {environment_scope}", format!("gitlab:{base}/{project}").to_lowercase())
    }

    /// A project that was made anew under an old name is another one.
    async fn identity(&self) -> Result<Option<Pin>, CallError> {
        let caller = self.caller().await?;
        let found: Option<Project> = self.api.find(&caller, &self.url(&[])).await?;
        let project = found.ok_or_else(|| self.not_there())?;
        let id = format!("project {}", project.id);
        Ok(Some(Pin { id, machine: String::new(), folder: String::new() }))
    }

    async fn preflight(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        let caller = self.caller().await?;
        let listed = match self.listed(&caller).await {
            Ok(Some(listed)) => listed,
            Ok(None) => return Ok(vec![Finding::blocks(self.not_there().message)]),
            Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::Permission => {
                let message = format!("{}: the token may not see variables", refusal.message);
                return Ok(vec![Finding::blocks(message)]);
            }
            Err(error) => return Err(error),
        };
        let mut findings = Vec::new();
        let project: Option<Project> = self.api.find(&caller, &self.url(&[])).await?;
        let timeout = project.and_then(|project| project.build_timeout).map(Span::seconds);
        let longest_run = self.config.longest_run.span();
        if let Some(timeout) = timeout.filter(|timeout| *timeout > longest_run) {
            findings.push(Finding::blocks(format!(
                "jobs of project `{}` may go on for {timeout} (its timeout), and `longest_run` is {longest_run}: let one of both be as the other",
                self.config.project
            )));
        }
        for key in addresses {
            match self.variable(&caller, key).await? {
                None => findings.push(Finding::blocks(self.no_variable(key))),
                Some(found) if found.protected => findings.push(Finding::note(format!(
                    "`{}` is protected: jobs of protected branches and tags alone are given it",
                    plain(key)
                ))),
                Some(_) => {}
            }
            let scope = &self.config.environment_scope;
            let others =
                listed.iter().filter(|one| one.key == *key && one.environment_scope != *scope);
            findings.extend(others.map(|other| Finding::note(format!(
                "there is a variable `{}` of scope `{}` too: its jobs are given that one, which this does not change",
                plain(key),
                plain(&other.environment_scope)
            ))));
        }
        Ok(findings)
    }

    async fn read(&self, _: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        Err(unsupported("variables are not read back").into())
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        let caller = self.caller().await?;
        let mut keys = BTreeSet::new();
        let mut due = Vec::new();
        for edit in edits {
            let Some(value) = edit.value else {
                return Err(
                    unsupported(&format!("`{}` is not removed", plain(edit.address))).into()
                );
            };
            if !keys.insert(edit.address) {
                return Err(
                    unsupported(&format!("two edits name `{}`", plain(edit.address))).into()
                );
            }
            let found = self.variable(&caller, edit.address).await?;
            let found = found.ok_or_else(|| {
                Refusal::operator(RefusalKind::NotFound, self.no_variable(edit.address))
            })?;
            due.push((edit.address, check(edit.address, value, &found)?, value, found));
        }
        for (number, (key, text, value, settings)) in due.iter().enumerate() {
            let made = self.change(&caller, key, text, value, settings).await;
            // What was written before it stays written.
            made.map_err(|error| match error {
                CallError::Refused(refusal) if number > 0 => CallError::Unknown(format!(
                    "{number} of {} variables were written: {}",
                    edits.len(),
                    refusal.message
                )),
                error => error,
            })?;
        }
        Ok(Written { changed: !edits.is_empty() })
    }
}

impl GitlabVariable {
    async fn caller(&self) -> Result<HeaderMap, CallError> {
        let token = reference::read(&self.token).await?;
        let name = HeaderName::from_static("private-token");
        Ok(self.api.header(name, &token, "token")?)
    }

    fn url(&self, path: &[&str]) -> Url {
        self.api.url(&[&["projects", &self.config.project], path].concat())
    }

    fn url_of(&self, key: &str) -> Url {
        let mut url = self.url(&["variables", key]);
        let scope = &self.config.environment_scope;
        url.query_pairs_mut().append_pair("filter[environment_scope]", scope);
        url
    }

    /// Lists every variable of the project, of whatever scope; none where the project is not there.
    async fn listed(&self, caller: &HeaderMap) -> Result<Option<Vec<Listed>>, CallError> {
        let mut listed = Vec::new();
        for number in 1..=MOST_PAGES {
            let mut url = self.url(&["variables"]);
            let (number, size) = (number.to_string(), PAGE.to_string());
            url.query_pairs_mut().append_pair("per_page", &size).append_pair("page", &number);
            let page: Option<Vec<Listed>> = self.api.find(caller, &url).await?;
            let Some(page) = page else { return Ok(None) };
            let is_last = page.len() < PAGE;
            listed.extend(page);
            if is_last {
                return Ok(Some(listed));
            }
        }
        Err(self.api.endless("the list of variables"))
    }

    /// That a variable is missing counts only where the project is seen to be there.
    async fn variable(&self, caller: &HeaderMap, key: &str) -> Result<Option<Settings>, CallError> {
        let found = self.api.find(caller, &self.url_of(key)).await?;
        if found.is_none() {
            let project: Option<Project> = self.api.find(caller, &self.url(&[])).await?;
            project.ok_or_else(|| self.not_there())?;
        }
        Ok(found)
    }

    async fn change(
        &self,
        caller: &HeaderMap,
        key: &str,
        text: &str,
        value: &SecretValue,
        settings: &Settings,
    ) -> Result<(), CallError> {
        let settings_sent = match planted!("settings_of_a_variable_are_lost") {
            true => &Settings::default(),
            false => settings,
        };
        let body = secret_json::write(&Change { value: text, settings: settings_sent });
        let answer =
            self.api.send_secret(Method::PUT, self.url_of(key), caller, (JSON, &body)).await?;
        if !answer.status.is_success() {
            return Err(answer.error(Effect::Changes));
        }
        let told: Told = answer.decode()?;
        if told.value.is_some_and(|told| !told.0.same_as(value)) {
            return Err(CallError::Unknown(format!(
                "{TARGET} shows another value than was written"
            )));
        }
        if told.settings != *settings && !planted!("settings_of_a_variable_are_lost") {
            let message = format!("{TARGET}: `{}` is set otherwise than before", plain(key));
            return Err(CallError::Unknown(message));
        }
        Ok(())
    }

    fn no_variable(&self, key: &str) -> String {
        format!(
            "project `{}` has no variable `{}` of scope `{}`: correct the key or the scope, or make it once by hand",
            self.config.project,
            plain(key),
            self.config.environment_scope
        )
    }

    fn not_there(&self) -> Refusal {
        let project = &self.config.project;
        let message =
            format!("{TARGET}: project `{project}` is not there, or the token is not shown it");
        Refusal::operator(RefusalKind::NotFound, message)
    }
}

/// Refuses what jobs would be given otherwise, or what GitLab would not mask.
fn check<'v>(key: &str, value: &'v SecretValue, found: &Settings) -> Result<&'v str, Refusal> {
    let no = |why: &str| unsupported(&format!("`{}` {why}", plain(key)));
    let text = secret_json::text(value).ok_or_else(|| no("takes no value that is not UTF-8"))?;
    if text.is_empty() {
        return Err(no("takes no empty value"));
    }
    let length = text.chars().count();
    if length > LONGEST {
        return Err(no("takes no value of more than 10000 characters"));
    }
    if found.masked && (length < SHORTEST_MASKED || text.contains(char::is_whitespace)) {
        return Err(no("is masked: its value has 8 characters or more, and no space or line end"));
    }
    if !found.raw && text.contains('$') && !planted!("dollar_is_expanded") {
        return Err(no(
            "is expanded, so that `$` in its value means something else: switch `Expand variable reference` off",
        ));
    }
    let is_maskable = |c: char| c.is_ascii_alphanumeric() || "_+=/@:.~-".contains(c);
    if found.masked && !found.raw && !text.chars().all(is_maskable) {
        return Err(no(
            "is masked and expanded: its value has letters, digits and `_+=/@:.~-` only; switch `Expand variable reference` off",
        ));
    }
    Ok(text)
}

/// What is set for a variable, without its value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Settings {
    variable_type: String,
    #[serde(default)]
    protected: bool,
    #[serde(default)]
    masked: bool,
    #[serde(default)]
    raw: bool,
    #[serde(default)]
    description: Option<String>,
}

#[derive(Serialize)]
struct Change<'a> {
    value: &'a str,
    #[serde(flatten)]
    settings: &'a Settings,
}

#[derive(Deserialize)]
struct Told {
    #[serde(default)]
    value: Option<Shown>,
    #[serde(flatten)]
    settings: Settings,
}

#[derive(Deserialize)]
struct Project {
    id: u64,
    /// For how many seconds a job may go on, where the token is shown it.
    #[serde(default)]
    build_timeout: Option<u64>,
}

#[derive(Deserialize)]
struct Listed {
    key: String,
    environment_scope: String,
}

#[cfg(test)]
mod tests {
    use keywheel_driver::Severity;
    use keywheel_driver::conformance::canary;
    use keywheel_driver::store::Accept;
    use keywheel_twins::fault::{Fault, Rule};
    use keywheel_twins::gitlab::{Twin, TwinOptions, Variable};
    use tempfile::TempDir;

    use super::*;

    const KEY: &str = "PROVIDER_KEY";
    const OLD: &str = "kwcanary-old-value";

    struct World {
        twin: Twin,
        folder: TempDir,
    }

    impl World {
        fn with(options: TwinOptions, variables: Vec<Variable>) -> Self {
            let world =
                Self { twin: Twin::start(options).unwrap(), folder: tempfile::tempdir().unwrap() };
            std::fs::write(world.folder.path().join("token"), world.twin.token()).unwrap();
            variables.into_iter().for_each(|variable| world.twin.make(variable));
            world
        }

        fn new() -> Self {
            Self::with(TwinOptions::default(), vec![Variable::new(KEY, OLD)])
        }

        fn store(&self) -> Arc<dyn Store> {
            self.configured("")
        }

        fn configured(&self, more: &str) -> Arc<dyn Store> {
            let base = self.twin.base_url();
            let config = format!(
                r#"{{ "project": "acme/shop", "token": {{ "file": "token" }}, "base_url": "{base}"{more} }}"#
            );
            let config: Config = serde_json::from_str(&config).unwrap();
            config.build(&Context::at(self.folder.path())).unwrap_or_else(|no| panic!("{no}"))
        }
    }

    async fn put(store: &dyn Store, text: &str) -> Result<Written, CallError> {
        let value = SecretValue::new(text.into());
        let accept = Accept::Anything;
        store.write(&[Edit { address: KEY, accept, value: Some(&value) }]).await
    }

    #[tokio::test]
    async fn h91_everything_that_is_set_for_a_variable_stays_but_its_value() {
        let set = Variable {
            environment_scope: "production".into(),
            variable_type: "file".into(),
            protected: true,
            masked: true,
            hidden: true,
            description: Some("for the provider".into()),
            ..Variable::new(KEY, OLD)
        };
        let other = Variable::new(KEY, "another scope's");
        let world = World::with(TwinOptions::default(), vec![other.clone(), set.clone()]);
        let store = world.configured(r#", "environment_scope": "production""#);
        put(&*store, "kwcanary-new-value").await.unwrap();
        let expected = Variable { value: "kwcanary-new-value".into(), ..set };
        assert!(world.twin.variables() == [other, expected]);
        assert!(!store.facts().is_readable() && store.read(&[KEY.into()]).await.is_err());
    }

    #[tokio::test]
    async fn h99_a_value_that_jobs_would_be_given_otherwise_is_refused() {
        let expanded = Variable { raw: false, ..Variable::new(KEY, OLD) };
        let masked = Variable { masked: true, ..Variable::new(KEY, OLD) };
        let both = Variable { masked: true, ..expanded.clone() };
        let long = "x".repeat(10_001);
        for (variable, text) in [
            (expanded.clone(), "kwcanary-$HOME"),
            (expanded, ""),
            (masked.clone(), "short"),
            (masked.clone(), "éééé"),
            (masked, "with a space in it"),
            (both, "kwcanary-!"),
            (Variable::new(KEY, OLD), &long),
        ] {
            let world = World::with(TwinOptions::default(), vec![variable.clone()]);
            let refused = put(&*world.store(), text).await;
            assert!(matches!(refused, Err(CallError::Refused(_))), "{text}: {refused:?}");
            assert!(world.twin.variables() == [variable]);
        }
        let world = World::new();
        put(&*world.store(), "raw $HOME and 'quotes'\n").await.unwrap();
        assert_eq!(world.twin.variables()[0].value, "raw $HOME and 'quotes'\n");
    }

    #[test]
    fn scopes_that_differ_in_case_only_are_two_and_projects_are_one() {
        let world = World::new();
        let container = |scope: &str| {
            world.configured(&format!(r#", "environment_scope": "{scope}""#)).container()
        };
        assert_ne!(container("Production"), container("production"));
        let base = world.twin.base_url();
        let other = format!(
            r#"{{ "project": "Acme/Shop", "token": {{ "file": "token" }}, "base_url": "{base}/" }}"#
        );
        let other: Config = serde_json::from_str(&other).unwrap();
        let other = other.build(&Context::at(world.folder.path())).ok().unwrap();
        assert_eq!(other.container(), container("*"));
    }

    #[tokio::test]
    async fn h40_a_lost_answer_is_unknown_and_the_same_write_again_is_right() {
        for fault in [Fault::Cut, Fault::LateLanding { after_ms: 200 }, Fault::status(502)] {
            let world = World::new();
            world.twin.faults().set(vec![Rule::first("update_variable", fault.clone())]).unwrap();
            let lost = put(&*world.store(), "kwcanary-new").await;
            assert!(matches!(lost, Err(CallError::Unknown(_))), "{fault:?}: {lost:?}");
            assert!(world.twin.faults().unfired().is_empty());
            put(&*world.store(), "kwcanary-new").await.unwrap();
            assert_eq!(world.twin.variables()[0].value, "kwcanary-new");
        }
    }

    #[tokio::test]
    async fn what_is_missing_or_not_shown_is_told_before_anything_is_changed() {
        let blocks = async |store: &dyn Store, key: &str| {
            let findings = store.preflight(&[key.to_owned()]).await.unwrap();
            let blocks = findings.into_iter().filter(|one| one.severity == Severity::Blocks);
            blocks.map(|one| one.message).collect::<Vec<_>>().join("; ")
        };
        let world = World::new();
        assert_eq!(blocks(&*world.store(), KEY).await, "");
        assert!(blocks(&*world.store(), "PROVIDER_KYE").await.contains("has no variable"));
        let scoped = world.configured(r#", "environment_scope": "staging""#);
        assert!(blocks(&*scoped, KEY).await.contains("of scope `staging`"));
        let developer = TwinOptions { developer: true, ..TwinOptions::default() };
        let world = World::with(developer, vec![Variable::new(KEY, OLD)]);
        assert!(blocks(&*world.store(), KEY).await.contains("may not see variables"));
    }

    #[tokio::test]
    async fn a_variable_of_another_scope_is_found_on_whatever_page_of_the_list() {
        let others = (0..230).map(|number| Variable::new(&format!("OTHER_{number}"), OLD));
        let mut variables: Vec<_> = others.chain([Variable::new(KEY, OLD)]).collect();
        variables.push(Variable { environment_scope: "staging".into(), ..Variable::new(KEY, OLD) });
        let world = World::with(TwinOptions::default(), variables);
        let findings = world.store().preflight(&[KEY.to_owned()]).await.unwrap();
        let told: Vec<_> = findings.iter().map(|finding| &finding.message).collect();
        assert!(told.iter().any(|one| one.contains("of scope `staging` too")), "{told:?}");
    }

    #[tokio::test]
    async fn h56_a_job_that_may_go_on_for_longer_than_is_said_stops_the_rotation() {
        let options = TwinOptions { build_timeout: Some(24 * 3_600), ..TwinOptions::default() };
        let world = World::with(options, vec![Variable::new(KEY, OLD)]);
        let blocks = async |store: &dyn Store| {
            let findings = store.preflight(&[KEY.to_owned()]).await.unwrap();
            findings.into_iter().filter(|one| one.severity == Severity::Blocks).collect::<Vec<_>>()
        };
        let found = blocks(&*world.store()).await;
        assert!(found.len() == 1 && found[0].message.contains("`longest_run` is"), "{found:?}");
        let said = world.configured(r#", "longest_run": "24h""#);
        assert!(blocks(&*said).await.is_empty());
    }

    #[tokio::test]
    async fn h115_no_error_shows_a_value() {
        let world = World::new();
        let canary = canary("gitlab");
        let echo = Fault::Status {
            code: 500,
            retry_after: None,
            body: keywheel_twins::fault::Echo::EchoKey,
            applied: false,
        };
        world.twin.faults().set(vec![Rule::first("update_variable", echo)]).unwrap();
        let error = put(&*world.store(), &canary).await.unwrap_err();
        let said = format!("{error} {error:?}");
        assert!(!said.contains(&canary) && !said.contains("glpat-"), "{said}");
    }
}
