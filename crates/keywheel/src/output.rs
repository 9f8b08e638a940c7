//! What the program says: data on stdout, everything else on stderr, and one form for every error.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};

use crate::code::Code;
use crate::exit::Exit;

/// The version of every JSON answer.
pub(crate) const SCHEMA: u32 = 1;

/// The form of data on stdout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs; every answer carries `schema: 1`.
    Json,
}

/// Where and how the program speaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// The form of data.
    pub(crate) format: Format,
    /// Leaves out everything but data and errors.
    pub(crate) quiet: bool,
}

/// An answer for programs, with the version of its form before its fields.
#[derive(Serialize)]
struct Whole<'a, T: Serialize> {
    schema: u32,
    #[serde(flatten)]
    data: &'a T,
}

impl Output {
    /// Writes data for people.
    ///
    /// # Errors
    /// [`Failure`] where stdout cannot be written to.
    pub(crate) fn text(&self, text: &str) -> Result<(), Failure> {
        write_data(text)
    }

    /// Writes data for programs: the fields of a struct or an object, with the version of their form.
    ///
    /// # Errors
    /// [`Failure`] where stdout cannot be written to.
    pub(crate) fn json(&self, data: &impl Serialize) -> Result<(), Failure> {
        let whole = Whole { schema: SCHEMA, data };
        let text = serde_json::to_string_pretty(&whole).expect("what is printed is plain data");
        write_data(&format!("{text}\n"))
    }

    /// Writes a line beside the data, unless quiet.
    pub(crate) fn note(&self, line: &str) {
        if !self.quiet {
            write_beside(&format!("{line}\n"));
        }
    }

    /// Writes a failure.
    pub(crate) fn failure(&self, failure: &Failure) {
        write_beside(&match self.format {
            Format::Text => failure.text(colored()),
            Format::Json => failure.json(),
        });
    }
}

/// Why a command did not do what was asked, in the one form that every error has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What failed: a lower-case fragment with names in backticks.
    pub(crate) message: String,
    /// Why, from near to far.
    pub(crate) causes: Vec<String>,
    /// What is true now: which version works, what was changed.
    pub(crate) now: Option<Box<str>>,
    /// What to do.
    pub(crate) hint: Option<Box<str>>,
    /// The code whose page says more.
    pub(crate) code: Option<Code>,
    /// How the program ends.
    pub(crate) exit: Exit,
    /// More of the same kind, found in the same pass.
    pub(crate) more: Vec<Self>,
}

impl Failure {
    /// Makes a failure of usage or configuration.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            causes: Vec::new(),
            now: None,
            hint: None,
            code: None,
            exit: Exit::Usage,
            more: Vec::new(),
        }
    }

    /// Gives it a code.
    #[must_use]
    pub(crate) fn code(self, code: Code) -> Self {
        Self { code: Some(code), ..self }
    }

    /// Says how the program ends.
    #[must_use]
    pub(crate) fn exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }

    /// Says what is true now.
    #[must_use]
    pub(crate) fn now(self, now: impl Into<Box<str>>) -> Self {
        Self { now: Some(now.into()), ..self }
    }

    /// Says what to do.
    #[must_use]
    pub(crate) fn hint(self, hint: impl Into<Box<str>>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Says why.
    #[must_use]
    pub(crate) fn caused_by(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// Makes one failure of several, which are told in order.
    pub(crate) fn of_all(failures: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut failures = failures.into_iter();
        let mut first = failures.next()?;
        first.more.extend(failures);
        Some(first)
    }

    /// Returns the form for people.
    pub(crate) fn text(&self, colored: bool) -> String {
        let (on, off) = if colored { ("\u{1b}[1;31m", "\u{1b}[0m") } else { ("", "") };
        let mut text = format!("{on}error:{off} {}\n", self.message);
        let code = self.code.map(|code| format!("{code} (`keywheel explain {code}`)"));
        let lines = self.causes.iter().map(|cause| ("caused by", cause.as_str()));
        let lines = lines.chain(self.now.iter().map(|now| ("now", &**now)));
        let lines = lines.chain(self.hint.iter().map(|hint| ("hint", &**hint)));
        let lines = lines.chain(code.iter().map(|code| ("code", code.as_str())));
        lines.for_each(|(name, line)| text.push_str(&format!("  {name}: {line}\n")));
        self.more.iter().for_each(|other| text.push_str(&other.text(colored)));
        text
    }

    /// Returns the form for programs.
    pub(crate) fn json(&self) -> String {
        let errors: Vec<_> = std::iter::once(self).chain(&self.more).map(Self::fields).collect();
        let whole = json!({ "schema": SCHEMA, "exit": self.exit.number(), "errors": errors });
        format!("{whole:#}\n")
    }

    fn fields(&self) -> Value {
        json!({
            "message": self.message,
            "caused_by": self.causes,
            "now": self.now,
            "hint": self.hint,
            "code": self.code.map(Code::as_str),
        })
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(failure) => failure,
            Err(error) => {
                let mut chain = error.chain().map(ToString::to_string);
                let message = chain.next().unwrap_or_default();
                Self { causes: chain.collect(), ..Self::new(message) }
            }
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// A reader that has had enough (`| head`) is no failure.
fn write_data(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new("stdout cannot be written to").caused_by(error.kind().to_string()))
        }
        _ => Ok(()),
    }
}

/// What is said beside the data is lost where stderr is closed; there is nowhere left to say so.
fn write_beside(text: &str) {
    io::stderr().lock().write_all(text.as_bytes()).unwrap_or_default();
}

/// Color only on a terminal, and never where `NO_COLOR` is set to anything.
fn colored() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !refused && io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code;

    fn failure() -> Failure {
        Failure::new("the pending version of `openai@production` failed verification")
            .caused_by("issuer `openai` answered 403")
            .now("version 7 is current and untouched")
            .hint("let keys of this project list models")
            .code(code::UNKNOWN_KEY)
            .exit(Exit::Undone)
    }

    #[test]
    fn an_error_says_what_failed_what_is_true_and_what_to_do() {
        insta::assert_snapshot!(failure().text(false), @r"
        error: the pending version of `openai@production` failed verification
          caused by: issuer `openai` answered 403
          now: version 7 is current and untouched
          hint: let keys of this project list models
          code: K0104 (`keywheel explain K0104`)
        ");
    }

    #[test]
    fn an_error_has_a_form_for_programs() {
        let several = Failure::of_all([failure(), Failure::new("another")]).unwrap();
        insta::assert_snapshot!(several.json(), @r#"
        {
          "schema": 1,
          "exit": 2,
          "errors": [
            {
              "message": "the pending version of `openai@production` failed verification",
              "caused_by": [
                "issuer `openai` answered 403"
              ],
              "now": "version 7 is current and untouched",
              "hint": "let keys of this project list models",
              "code": "K0104"
            },
            {
              "message": "another",
              "caused_by": [],
              "now": null,
              "hint": null,
              "code": null
            }
          ]
        }
        "#);
    }

    #[test]
    fn an_error_of_a_library_keeps_its_chain() {
        let error = anyhow::anyhow!("disk full").context("the journal cannot be opened");
        let failure = Failure::from(error);
        assert_eq!(failure.message, "the journal cannot be opened");
        assert_eq!(failure.causes, ["disk full"]);
        assert_eq!(Failure::from(anyhow::Error::new(self::failure())), self::failure());
    }
}
