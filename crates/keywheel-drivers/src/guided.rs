//! The guided lane: what a driver asks a person for, and how an answer is checked before it is believed.
//!
//! Where there is nobody to be asked, nothing is told. A person who does not answer was told all the same, and may have done it.

use std::sync::Arc;

use keywheel_core::plan::Label;
use keywheel_core::secret::{Credential, SecretValue};
use keywheel_core::version::IssuedId;
use keywheel_driver::guide::{Guide, Question};
use keywheel_driver::issuer::Live;
use keywheel_driver::{CallError, Finding, Refusal, RefusalKind};

/// How often a person is asked the same.
const TIMES: usize = 3;

/// A person at the console of a provider.
pub(crate) struct Guided(pub(crate) Arc<dyn Guide>);

/// How a value looks.
pub(crate) struct Format<'a> {
    /// How it begins.
    pub(crate) prefix: &'a str,
    /// How many characters it has at least.
    pub(crate) min_length: usize,
    /// How many it has at most.
    pub(crate) max_length: usize,
}

impl Guided {
    /// # Errors
    /// A refusal where there is no one to ask; nobody was told anything then.
    pub(crate) fn somebody(&self) -> Result<(), Refusal> {
        self.0.absence().map_or(Ok(()), Err)
    }

    /// Says beforehand that a person will be asked, and whether there is one.
    pub(crate) fn finding(&self, what: &str) -> Finding {
        match self.0.absence() {
            None => Finding::note(format!("guided: {what}")),
            Some(_) => Finding::note("guided: needs a person at a terminal".to_owned()),
        }
    }

    /// Tells the steps and takes the value of a new key on a hidden prompt, until one looks right.
    ///
    /// # Errors
    /// Unknown where no such value came: the key called `name` may exist.
    pub(crate) async fn value(
        &self,
        mut steps: Vec<String>,
        name: &str,
        format: &Format<'_>,
        in_use: Option<&Credential>,
    ) -> Result<SecretValue, CallError> {
        self.somebody()?;
        for _ in 0..TIMES {
            let question = Question { steps: &steps, prompt: "its value", hidden: true };
            let Some(answer) = self.0.ask(&question).await else { break };
            let value = trimmed(&answer);
            match format.check(&value, in_use) {
                Ok(()) => return Ok(value),
                Err(why) => steps = vec![format!("that is not the value of a new key: {why}")],
            }
        }
        Err(CallError::Unknown(format!("nobody gave the value of `{name}`, which may exist")))
    }

    /// Tells the steps and takes the names of all keys that begin so, each of which is an id as well.
    ///
    /// # Errors
    /// A refusal where nobody said them.
    pub(crate) async fn names(
        &self,
        mut steps: Vec<String>,
        prefix: &str,
    ) -> Result<Vec<Live>, CallError> {
        self.somebody()?;
        steps.push(format!("find every key whose name begins with `{prefix}`"));
        let prompt = "their names, with spaces between; `none` if there is none";
        for _ in 0..TIMES {
            let question = Question { steps: &steps, prompt, hidden: false };
            let Some(answer) = self.0.ask(&question).await else { break };
            match names(&answer, prefix) {
                Some(names) => {
                    let live = |name: String| Live {
                        issued: IssuedId::new(&name),
                        label: Some(Label(name)),
                    };
                    return Ok(names.into_iter().map(live).collect());
                }
                None => steps = vec![format!("each name must begin with `{prefix}`")],
            }
        }
        let message = format!("nobody said whether a key whose name begins with `{prefix}` exists");
        Err(Refusal::operator(RefusalKind::NeedsPerson, message).into())
    }

    /// Tells the steps that end a key and asks whether it is done; what `verify` says of the value proves it afterwards.
    ///
    /// # Errors
    /// A refusal where a person says that it is not, unknown where nobody says anything.
    pub(crate) async fn ended(&self, mut steps: Vec<String>, name: &str) -> Result<(), CallError> {
        self.somebody()?;
        steps.push(format!("end the key named `{name}` for good, and no other"));
        let prompt = "`ended` once it is gone, anything else if it is not";
        let question = Question { steps: &steps, prompt, hidden: false };
        match self.0.ask(&question).await {
            Some(answer) if trimmed(&answer).expose().eq_ignore_ascii_case(b"ended") => Ok(()),
            Some(_) => {
                let message = format!("nobody confirmed that key `{name}` is ended");
                Err(Refusal::operator(RefusalKind::NeedsPerson, message).into())
            }
            None => Err(CallError::Unknown(format!("nobody said whether key `{name}` is ended"))),
        }
    }
}

impl Format<'_> {
    /// Says what is wrong with a value, without a part of it.
    pub(crate) fn check(
        &self,
        value: &SecretValue,
        in_use: Option<&Credential>,
    ) -> Result<(), String> {
        let bytes = value.expose();
        if bytes.is_empty() {
            Err("it is empty".into())
        } else if !bytes.iter().all(u8::is_ascii_graphic) {
            Err("it holds a space, or another character that no key has".into())
        } else if !bytes.starts_with(self.prefix.as_bytes()) {
            Err(format!("it does not begin with `{}`", self.prefix))
        } else if !(self.min_length..=self.max_length).contains(&bytes.len()) {
            Err("it is too short or too long".into())
        } else if in_use.and_then(Credential::value).is_some_and(|used| used.same_as(value)) {
            Err("it is the one that is in use now".into())
        } else {
            Ok(())
        }
    }
}

fn trimmed(answer: &SecretValue) -> SecretValue {
    SecretValue::new(answer.expose().trim_ascii().to_vec())
}

/// Returns the names in an answer; none where one of them is another than was asked for.
fn names(answer: &SecretValue, prefix: &str) -> Option<Vec<String>> {
    let text = std::str::from_utf8(answer.expose()).ok()?.trim();
    if ["none", "no", "n"].contains(&text) {
        return Some(Vec::new());
    }
    let words = text.split([' ', ',']).filter(|word| !word.is_empty());
    let names: Vec<String> = words.map(str::to_owned).collect();
    let fits = |name: &String| name.starts_with(prefix);
    (!names.is_empty() && names.iter().all(fits)).then_some(names)
}
