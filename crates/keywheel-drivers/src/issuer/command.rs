//! `command`: whatever the user's own programs mint, verify, list and end.
//!
//! A program is given one JSON object on its input and answers with one on its output. A value is never among its arguments
//! or in its environment (H111, H112), so it must be UTF-8; any other is refused before anything runs.
//!
//! What the programs can do is said by the configuration, and is little where it says nothing: without `verify` there is no
//! one who can say that a version is dead, without `observe` a mint whose answer is lost needs an operator, and without
//! `revoke` no version is ended.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::facts::{Authority, IssuerFacts, Observe, ValueOrigin};
use keywheel_core::plan::Label;
use keywheel_core::planted;
use keywheel_core::secret::{Credential, Field, SecretValue};
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::IssuedId;
use keywheel_driver::duration::Duration;
use keywheel_driver::issuer::{Identity, Issuer, Live, Mint, Minted, Randomness, Suspend, Verdict};
use keywheel_driver::{CallError, Finding, Refusal, RefusalKind};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::random;
use crate::secret_json::{self, Text};
use crate::{Build, Context, program};

/// The version of what is said to a program.
const SCHEMA: u32 = 1;

/// How many random characters a value of ours has, of 6 bits each.
const LENGTH: u16 = 43;

/// The longest id that is kept.
const LONGEST_ID: usize = 200;

/// Programs that mint, verify and end versions, run without a shell and without keywheel's environment. Values go through
/// their input and output only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The program that is given `{"schema": 1, "action": "mint", "label": "kw-…", "credential": null, "previous": "its id"}` and
    /// answers `{"outcome": "done", "issued": "the id", "credential": {"value": "…"}}`. With `value: ours`, the credential to be
    /// set stands in the question, and none in the answer. A relative path begins at the folder of the configuration file.
    pub mint: Vec<String>,
    /// The program that is given `{"schema": 1, "action": "verify", "credential": {"value": "…"}}`, tries it, and answers
    /// `{"verdict": "accepted"}`, `"refused"` where that is certain, or `"cannot_tell"`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verify: Vec<String>,
    /// The program that is given `{"schema": 1, "action": "list", "prefix": "kw-…"}` and answers
    /// `{"live": [{"issued": "the id", "label": "kw-…"}]}`: all whose label begins so; everything, where no label is kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub list: Vec<String>,
    /// The program that is given `{"schema": 1, "action": "revoke", "issued": "the id"}`, ends that version for good, and answers
    /// `{"outcome": "done"}`, also where it was gone before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoke: Vec<String>,
    /// The program that is asked as `revoke` is, and makes a version refused until it is resumed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspend: Vec<String>,
    /// The program that is asked as `revoke` is, and makes a suspended version accepted again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resume: Vec<String>,
    /// The program that is asked as `verify` is, and answers `{"issued": "the id"}` of a credential that was made by hand, or `null`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identify: Vec<String>,
    /// Who makes the value.
    #[serde(default)]
    pub value: Value,
    /// How a mint whose answer never came is found.
    #[serde(default)]
    pub observe: Observed,
    /// The most live versions there can be at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_live: Option<u16>,
    /// How long a program may run before it is killed.
    #[serde(default = "seconds::<30>")]
    pub within: Duration,
    /// How long a new version may be refused, and a revoked one accepted.
    #[serde(default = "seconds::<300>")]
    pub propagation: Duration,
    /// How long a call without an answer can still take effect and stay out of `list`.
    #[serde(default = "seconds::<600>")]
    pub settle_for: Duration,
}

/// Who makes the value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// The program answers with it, once.
    #[default]
    Theirs,
    /// keywheel: 43 random letters, digits, `-` and `_`, sealed before the program is asked to set them.
    Ours,
}

/// How a mint whose answer never came is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Observed {
    /// `list` shows the labels.
    Label,
    /// `list` shows no labels; an id that was not there before needs an operator.
    IdSetDifference,
    /// `verify` is asked whether the value, which is ours, is accepted.
    Probe,
    /// Not at all: an operator is asked.
    #[default]
    None,
}

fn seconds<const N: u64>() -> Duration {
    Span::seconds(N).into()
}

impl Config {
    /// # Errors
    /// A refusal that names the program that is missing.
    fn check(&self) -> Result<(), Refusal> {
        let unsupported = |message: &str| Err(Refusal::operator(RefusalKind::Unsupported, message));
        program::check("mint", &self.mint)?;
        let lists = matches!(self.observe, Observed::Label | Observed::IdSetDifference);
        if lists && self.list.is_empty() {
            return unsupported("what `observe` says needs the program `list`");
        }
        if self.observe == Observed::Probe && (self.verify.is_empty() || self.value != Value::Ours)
        {
            return unsupported("`observe: probe` needs the program `verify` and `value: ours`");
        }
        if self.suspend.is_empty() != self.resume.is_empty() {
            return unsupported("`suspend` and `resume` are given together or not at all");
        }
        Ok(())
    }
}

impl Build for Config {
    type Driver = dyn Issuer;

    fn build(&self, context: &Context) -> Result<Arc<dyn Issuer>, Refusal> {
        self.check()?;
        Ok(Arc::new(Command { config: self.clone(), folder: context.root.clone() }))
    }
}

struct Command {
    config: Config,
    folder: PathBuf,
}

#[async_trait]
impl Issuer for Command {
    fn facts(&self) -> IssuerFacts {
        let Config { verify, revoke, suspend, value, observe, .. } = &self.config;
        let ours = *value == Value::Ours;
        IssuerFacts {
            max_live: self.config.max_live,
            label: *observe == Observed::Label,
            suspend: !suspend.is_empty(),
            destroy: !revoke.is_empty(),
            propagation: self.config.propagation.span(),
            settle_for: self.config.settle_for.span(),
            ..IssuerFacts::new(
                if ours { ValueOrigin::Ours } else { ValueOrigin::Theirs },
                match observe {
                    Observed::Label => Observe::Label,
                    Observed::IdSetDifference => Observe::IdSetDifference,
                    Observed::Probe => Observe::Probe,
                    Observed::None => Observe::None,
                },
                if verify.is_empty() { Authority::None } else { Authority::Issuer },
            )
        }
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        let Config { list, mint, verify, revoke, .. } = &self.config;
        let mut findings = Vec::new();
        if !list.is_empty()
            && let Err(error) = self.list("kw-").await
        {
            findings.push(Finding::blocks(error.to_string()));
        }
        let name = program::name(mint);
        if verify.is_empty() {
            findings.push(Finding::note(format!(
                "{name}: no one can be asked whether a version works"
            )));
        }
        if revoke.is_empty() {
            findings.push(Finding::note(format!("{name}: former versions are not ended")));
        }
        Ok(findings)
    }

    fn generate(&self, random: Randomness<'_>, _previous: Option<&IssuedId>) -> Option<Credential> {
        let ours = self.config.value == Value::Ours;
        ours.then(|| Credential::of_value(random::characters(LENGTH, random)))
    }

    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        let program = &self.config.mint;
        let question = MintQuestion {
            schema: SCHEMA,
            action: "mint",
            label: &request.label.0,
            credential: request.value.map(|value| wire(program, value)).transpose()?,
            previous: request.previous.map(|previous| previous.id.as_str()),
        };
        let answer: MintAnswer = self.change(program, &secret_json::write(&question)).await?;
        judge(program, answer.outcome, answer.kind)?;
        let unknown = |why: &str| CallError::Unknown(format!("{} {why}", program::name(program)));
        let credential = answer.credential.map(credential);
        let ours = request.value.is_some();
        if ours == credential.is_some() {
            return Err(unknown(if ours {
                "answered with a value of its own"
            } else {
                "answered without a value"
            }));
        }
        let value = credential.as_ref().or(request.value);
        if let (Some(id), Some(value)) = (&answer.issued, value)
            && !is_id(id, value)
        {
            return Err(unknown("answered with an id that is too long, or holds the value"));
        }
        Ok(Minted {
            issued: answer.issued.map(IssuedId::new),
            credential,
            expires_at: answer.expires_at.map(Timestamp::from_millis),
            notes: Vec::new(),
        })
    }

    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        if self.config.verify.is_empty() {
            return Ok(Verdict::CannotTell("no program is named that could tell".into()));
        }
        verify(&self.config.verify, &self.folder, self.config.within.span(), credential).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Live>, CallError> {
        let program = &self.config.list;
        if program.is_empty() {
            return Ok(Vec::new());
        }
        let question = secret_json::write(&ListQuestion { schema: SCHEMA, action: "list", prefix });
        let ListAnswer { live } = self.look(program, &question).await?;
        let begins = |one: &LiveAnswer| {
            self.config.observe != Observed::Label
                || one.label.as_ref().is_some_and(|label| label.starts_with(prefix))
                || prefix.is_empty()
        };
        let live = live.into_iter().filter(begins);
        Ok(live
            .map(|one| Live { issued: IssuedId::new(one.issued), label: one.label.map(Label) })
            .collect())
    }

    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError> {
        self.act(&self.config.revoke, "revoke", id).await
    }

    async fn identify(&self, credential: &Credential) -> Result<Identity, CallError> {
        let program = &self.config.identify;
        if program.is_empty() {
            return Ok(Identity::Unknown);
        }
        let question = about(program, "identify", credential)?;
        let IdentifyAnswer { issued } = self.look(program, &question).await?;
        Ok(match issued.filter(|id| is_id(id, credential)) {
            Some(id) => Identity::Known {
                issued: IssuedId::new(id),
                how: format!("{} says so", program::name(program)),
                created_at: None,
            },
            None => Identity::Unknown,
        })
    }

    fn suspend(&self) -> Option<&dyn Suspend> {
        if self.config.suspend.is_empty() { None } else { Some(self) }
    }
}

#[async_trait]
impl Suspend for Command {
    async fn suspend(&self, id: &IssuedId) -> Result<(), CallError> {
        self.act(&self.config.suspend, "suspend", id).await
    }

    async fn resume(&self, id: &IssuedId) -> Result<(), CallError> {
        self.act(&self.config.resume, "resume", id).await
    }
}

impl Command {
    async fn act(&self, program: &[String], action: &str, id: &IssuedId) -> Result<(), CallError> {
        if program.is_empty() {
            let message = format!("no program is named that could {action}");
            return Err(Refusal::operator(RefusalKind::Unsupported, message).into());
        }
        let question = ActQuestion { schema: SCHEMA, action, issued: &id.id };
        let answer: ActAnswer = self.change(program, &secret_json::write(&question)).await?;
        Ok(judge(program, answer.outcome, answer.kind)?)
    }

    /// Runs a program that changes something. From its start on, only its own word says what came of it.
    async fn change<T: DeserializeOwned>(
        &self,
        program: &[String],
        question: &SecretValue,
    ) -> Result<T, CallError> {
        let within = self.config.within.span();
        let answer = program::ask(program, &self.folder, question, within).await?;
        let unknown = |why: &str| match planted!("failed_program_is_a_refusal") {
            true => Refusal::operator(RefusalKind::Unavailable, why).into(),
            false => CallError::Unknown(format!("{} {why}", program::name(program))),
        };
        if !answer.ended.well() {
            return Err(unknown(&answer.ended.in_words()));
        }
        let read = answer.output.as_ref().and_then(secret_json::read);
        read.ok_or_else(|| unknown("answered something else than an outcome"))
    }

    /// Runs a program that only reads.
    async fn look<T: DeserializeOwned>(
        &self,
        program: &[String],
        question: &SecretValue,
    ) -> Result<T, CallError> {
        look(program, &self.folder, self.config.within.span(), question).await
    }
}

/// Asks a program whether a credential is accepted: what `verify` of this issuer does, and of others.
///
/// # Errors
/// A refusal where the program could not be run, or answered something else.
pub(super) async fn verify(
    program: &[String],
    folder: &std::path::Path,
    within: Span,
    credential: &Credential,
) -> Result<Verdict, CallError> {
    let question = about(program, "verify", credential)?;
    let VerifyAnswer { verdict } = look(program, folder, within, &question).await?;
    Ok(match verdict {
        WireVerdict::Accepted => Verdict::Accepted,
        WireVerdict::Refused => Verdict::Refused,
        WireVerdict::CannotTell => {
            Verdict::CannotTell(format!("{} cannot tell", program::name(program)))
        }
    })
}

async fn look<T: DeserializeOwned>(
    program: &[String],
    folder: &std::path::Path,
    within: Span,
    question: &SecretValue,
) -> Result<T, CallError> {
    let answer = program::ask(program, folder, question, within).await?;
    let told = |why: &str| format!("{} {why}", program::name(program));
    if !answer.ended.well() {
        let why = told(&answer.ended.in_words());
        return Err(Refusal::retry(RefusalKind::Unavailable, None, why).into());
    }
    let read = answer.output.as_ref().and_then(secret_json::read);
    let other = || told("answered something else than was asked");
    Ok(read.ok_or_else(|| Refusal::operator(RefusalKind::Unsupported, other()))?)
}

/// A question about a credential.
fn about(program: &[String], action: &str, held: &Credential) -> Result<SecretValue, Refusal> {
    let credential = wire(program, held)?;
    Ok(secret_json::write(&AboutQuestion { schema: SCHEMA, action, credential }))
}

fn wire<'a>(
    program: &[String],
    credential: &'a Credential,
) -> Result<BTreeMap<&'a str, &'a str>, Refusal> {
    let refused = || {
        let why = "the credential is not UTF-8, which JSON cannot carry";
        let message = format!("{}: {why}", program::name(program));
        Refusal::operator(RefusalKind::Unsupported, message)
    };
    let field = |(field, value): (&'a Field, &'a SecretValue)| {
        Ok((field.as_str(), secret_json::text(value).ok_or_else(refused)?))
    };
    credential.fields().map(field).collect()
}

fn credential(fields: BTreeMap<String, Text>) -> Credential {
    let add = |whole: Credential, (field, Text(value))| whole.with(Field::new(field), value);
    fields.into_iter().fold(Credential::default(), add)
}

/// Whether a text can be kept as an id, which is shown and journaled: it must not be the value itself.
fn is_id(id: &str, credential: &Credential) -> bool {
    let holds = |value: &SecretValue| {
        let value = value.expose();
        !value.is_empty() && id.as_bytes().windows(value.len()).any(|part| part == value)
    };
    (1..=LONGEST_ID).contains(&id.len())
        && !id.chars().any(char::is_control)
        && (planted!("id_may_be_the_value") || !credential.fields().any(|(_, value)| holds(value)))
}

fn judge(program: &[String], outcome: Outcome, kind: Option<Kind>) -> Result<(), Refusal> {
    if outcome == Outcome::Done {
        return Ok(());
    }
    let (kind, words, passes) = match kind.unwrap_or(Kind::Unsupported) {
        Kind::Permission => (RefusalKind::Permission, "has no permission", false),
        Kind::Quota => (RefusalKind::Quota, "has reached a cap", false),
        Kind::ValueRejected => (RefusalKind::ValueRejected, "does not take this value", true),
        Kind::RateLimited => (RefusalKind::RateLimited, "made too many calls", true),
        Kind::Unavailable => (RefusalKind::Unavailable, "does not reach the other side", true),
        Kind::NotFound => (RefusalKind::NotFound, "does not find it", false),
        Kind::Unsupported => (RefusalKind::Unsupported, "refuses", false),
    };
    let message = format!("{} {words}", program::name(program));
    Err(if passes { Refusal::retry(kind, None, message) } else { Refusal::operator(kind, message) })
}

#[derive(Serialize)]
struct MintQuestion<'a> {
    schema: u32,
    action: &'a str,
    label: &'a str,
    credential: Option<BTreeMap<&'a str, &'a str>>,
    previous: Option<&'a str>,
}

#[derive(Serialize)]
struct AboutQuestion<'a> {
    schema: u32,
    action: &'a str,
    credential: BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
struct ListQuestion<'a> {
    schema: u32,
    action: &'a str,
    prefix: &'a str,
}

#[derive(Serialize)]
struct ActQuestion<'a> {
    schema: u32,
    action: &'a str,
    issued: &'a str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MintAnswer {
    outcome: Outcome,
    kind: Option<Kind>,
    issued: Option<String>,
    credential: Option<BTreeMap<String, Text>>,
    expires_at: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ActAnswer {
    outcome: Outcome,
    kind: Option<Kind>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Done,
    Refused,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Permission,
    Quota,
    ValueRejected,
    RateLimited,
    Unavailable,
    NotFound,
    Unsupported,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VerifyAnswer {
    verdict: WireVerdict,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum WireVerdict {
    Accepted,
    Refused,
    CannotTell,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListAnswer {
    live: Vec<LiveAnswer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LiveAnswer {
    issued: String,
    label: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentifyAnswer {
    issued: Option<String>,
}

#[cfg(test)]
mod tests {
    use keywheel_driver::conformance::canary;
    use keywheel_driver::conformance::issuer::{Subject, run};
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    /// Keeps keys in a file of its own. The file `lose` makes it do one mint and answer nothing.
    const KEEPER: &str = r#"
import json, os, secrets, sys
question = json.load(sys.stdin)
assert question["schema"] == 1
keys = json.load(open("keys.json")) if os.path.exists("keys.json") else {}
action = question["action"]
value = (question.get("credential") or {}).get("value")
found = [id for id, key in keys.items() if key["value"] == value]
if action == "mint":
    ours = value is not None
    value = value or "kwcanary-" + secrets.token_hex(16)
    id = "k-%d" % len(keys)
    keys[id] = {"label": question["label"], "value": value, "state": "on"}
    answer = {"outcome": "done", "issued": id, "credential": None if ours else {"value": value}}
elif action == "verify":
    answer = {"verdict": "accepted" if [id for id in found if keys[id]["state"] == "on"] else "refused"}
elif action == "identify":
    answer = {"issued": found[0] if found else None}
elif action == "list":
    prefix = question["prefix"]
    live = [(id, key["label"]) for id, key in keys.items() if key["state"] != "gone"]
    answer = {"live": [{"issued": id, "label": label} for id, label in live if label.startswith(prefix)]}
else:
    keys[question["issued"]]["state"] = {"revoke": "gone", "suspend": "off", "resume": "on"}[action]
    answer = {"outcome": "done"}
json.dump(keys, open("keys.json", "w"))
if action == "mint" and os.path.exists("lose"):
    os.remove("lose")
    sys.exit(1)
print(json.dumps(answer))
"#;

    fn keeper() -> serde_json::Value {
        json!(["python3", "-I", "-S", "-c", KEEPER])
    }

    fn sh(script: &str) -> serde_json::Value {
        json!(["/bin/sh", "-c", script])
    }

    fn whole() -> serde_json::Value {
        let programs = ["mint", "verify", "list", "revoke", "suspend", "resume", "identify"];
        let mut config: serde_json::Map<_, _> =
            programs.iter().map(|name| ((*name).to_owned(), keeper())).collect();
        config.insert("observe".into(), json!("label"));
        config.into()
    }

    fn issuer(folder: &TempDir, changes: serde_json::Value) -> Arc<dyn Issuer> {
        let mut config = whole();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let config: Config = serde_json::from_value(config).unwrap();
        config.build(&Context::at(folder.path())).unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    fn of(value: &str) -> Credential {
        Credential::of_value(SecretValue::new(value.into()))
    }

    async fn attempt(issuer: &dyn Issuer) -> Result<Minted, CallError> {
        let label = Label("kw-test-1".into());
        let value = issuer.generate(&mut |bytes: &mut [u8]| bytes.fill(7), None);
        let request = Mint { value: value.as_ref(), ..Mint::new(&label) };
        issuer.mint(&request).await
    }

    async fn error(issuer: &dyn Issuer) -> CallError {
        attempt(issuer).await.err().expect("there is no mint")
    }

    #[tokio::test]
    async fn the_issuer_keeps_its_contract_whoever_makes_the_value() {
        for origin in ["theirs", "ours"] {
            let folder = TempDir::new().unwrap();
            let subject = issuer(&folder, json!({ "value": origin }));
            let canary = canary("issuer-command");
            let echo = sh("cat; cat >&2; exit 1");
            let ends_well = sh("cat");
            let broken = |program: &serde_json::Value| {
                let names = ["mint", "verify", "list", "revoke", "suspend", "resume", "identify"];
                let all: serde_json::Map<_, _> =
                    names.iter().map(|name| ((*name).to_owned(), program.clone())).collect();
                issuer(&folder, all.into())
            };
            let lose = || std::fs::write(folder.path().join("lose"), "").unwrap();
            run(&Subject {
                issuer: &*subject,
                prefix: "kw-suite-",
                garbage: &of("garbage"),
                lose_next_answer: Some(&lose),
                broken: &[&*broken(&echo), &*broken(&ends_well)],
                canaries: &[&of(&canary)],
            })
            .await;
        }
    }

    #[tokio::test]
    async fn what_is_not_configured_is_not_promised() {
        let folder = TempDir::new().unwrap();
        let config: Config = serde_json::from_value(json!({ "mint": keeper() })).unwrap();
        let bare = config.build(&Context::at(folder.path())).unwrap();
        let facts = bare.facts();
        assert_eq!((facts.observe, facts.authority), (Observe::None, Authority::None));
        assert!(!facts.label && !facts.suspend && !facts.destroy);
        assert!(matches!(bare.verify(&of("any")).await, Ok(Verdict::CannotTell(_))));
        assert!(matches!(bare.revoke(&IssuedId::new("k")).await, Err(CallError::Refused(_))));
        assert_eq!(bare.preflight().await.unwrap().len(), 2);
        let minted = attempt(&*bare).await.unwrap_or_else(|error| panic!("{error}"));
        assert!(minted.credential.is_some());
    }

    #[tokio::test]
    async fn a_version_is_suspended_resumed_and_identified() {
        let folder = TempDir::new().unwrap();
        let issuer = issuer(&folder, json!({}));
        let minted = attempt(&*issuer).await.unwrap_or_else(|error| panic!("{error}"));
        let (id, value) = (minted.issued.unwrap(), minted.credential.unwrap());
        let switch = issuer.suspend().unwrap();
        switch.suspend(&id).await.unwrap();
        assert_eq!(issuer.verify(&value).await, Ok(Verdict::Refused));
        switch.resume(&id).await.unwrap();
        assert_eq!(issuer.verify(&value).await, Ok(Verdict::Accepted));
        let known = issuer.identify(&value).await.unwrap();
        assert!(matches!(known, Identity::Known { issued, .. } if issued == id));
        assert_eq!(issuer.identify(&of("other")).await, Ok(Identity::Unknown));
    }

    #[tokio::test]
    async fn h04_a_mint_that_began_and_has_no_answer_is_unknown() {
        let folder = TempDir::new().unwrap();
        let done = "{\"outcome\": \"done\", \"issued\": \"k\", \"credential\": {\"value\": \"v\"}}";
        for script in [
            "exit 3".into(),
            format!("echo '{done}'; exit 1"),
            "sleep 600".into(),
            "echo '{\"outcome\": \"refused\"}'; exit 1".into(),
            "echo '{\"outcome\": \"done\"}'".into(),
            format!("echo '{done} more'"),
        ] {
            let issuer = issuer(&folder, json!({ "mint": sh(&script), "within": "2s" }));
            let error = error(&*issuer).await;
            assert!(matches!(error, CallError::Unknown(_)), "{script}: {error}");
        }
    }

    #[tokio::test]
    async fn a_definite_no_says_whether_it_may_pass() {
        use keywheel_driver::Remedy;
        let folder = TempDir::new().unwrap();
        let retry = Remedy::Retry { after: None };
        for (kind, expected, remedy) in [
            ("\"quota\"", RefusalKind::Quota, Remedy::Operator),
            ("\"value_rejected\"", RefusalKind::ValueRejected, retry),
            ("\"unavailable\"", RefusalKind::Unavailable, retry),
            ("null", RefusalKind::Unsupported, Remedy::Operator),
        ] {
            let no = format!("echo '{{\"outcome\": \"refused\", \"kind\": {kind}}}'");
            let issuer = issuer(&folder, json!({ "mint": sh(&no) }));
            let CallError::Refused(refusal) = error(&*issuer).await else { panic!("{kind}") };
            assert_eq!((refusal.kind, refusal.remedy), (expected, remedy));
        }
    }

    #[tokio::test]
    async fn h115_an_id_that_holds_the_value_is_not_kept() {
        let folder = TempDir::new().unwrap();
        let canary = canary("issuer-command");
        let answer = json!({ "outcome": "done", "issued": format!("key {canary}"), "credential": { "value": canary } });
        let issuer = issuer(&folder, json!({ "mint": sh(&format!("echo '{answer}'")) }));
        let error = error(&*issuer).await;
        assert!(matches!(&error, CallError::Unknown(why) if !why.contains(&canary)), "{error}");
    }

    #[tokio::test]
    async fn h111_a_value_of_ours_is_neither_argument_nor_variable() {
        let folder = TempDir::new().unwrap();
        let spy = sh("cat /proc/$$/cmdline > arguments; env > variables; cat > input; exit 1");
        let issuer = issuer(&folder, json!({ "mint": spy, "value": "ours" }));
        assert!(attempt(&*issuer).await.is_err());
        let file = |name| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let value = "H".repeat(usize::from(LENGTH));
        assert!(file("input").contains(&value));
        for name in ["arguments", "variables"] {
            assert!(!file(name).contains(&value), "{name}");
        }
    }

    #[test]
    fn programs_that_need_each_other_come_together() {
        let context = Context::at("/");
        for (without, changes) in [
            ("list", json!({})),
            ("list", json!({ "observe": "id_set_difference" })),
            ("verify", json!({ "observe": "probe", "value": "ours" })),
            ("", json!({ "observe": "probe" })),
            ("suspend", json!({})),
            ("resume", json!({})),
            ("", json!({ "mint": [] })),
        ] {
            let mut config = whole();
            config.as_object_mut().unwrap().remove(without);
            config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let config: Config = serde_json::from_value(config).unwrap();
            assert!(config.build(&context).is_err(), "{without} {changes}");
        }
    }
}
