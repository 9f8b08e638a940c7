//! What the API server answers, and what it means that it does not.

use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_driver::{CallError, Refusal, RefusalKind, Remedy};
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::WITHIN;
use super::cluster::NO_LOGIN;
use crate::http::{self, Effect};

/// An answer, whole. The body may hold values and is shown to no one.
pub(crate) struct Answer {
    target: String,
    what: String,
    /// Its status.
    pub(crate) status: StatusCode,
    /// Its headers.
    pub(crate) headers: HeaderMap,
    /// Its body.
    pub(crate) body: SecretValue,
}

/// The part of a `Status` that holds no free text. Validation and webhooks repeat values in their messages.
#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    details: Option<Details>,
}

#[derive(Default, Deserialize)]
struct Details {
    #[serde(default)]
    causes: Vec<Cause>,
}

#[derive(Deserialize)]
struct Cause {
    #[serde(default)]
    field: String,
}

impl Answer {
    pub(super) fn new(
        target: &str,
        what: String,
        status: StatusCode,
        headers: HeaderMap,
        body: SecretValue,
    ) -> Self {
        Self { target: target.to_owned(), what, status, headers, body }
    }

    /// Reads the body.
    ///
    /// # Errors
    /// Unknown where it is something else.
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Result<T, CallError> {
        serde_json::from_slice(self.body.expose()).map_err(|_| {
            let status = self.status.as_u16();
            let what = &self.what;
            let why = format!("answered {status} to {what} and something else than expected");
            CallError::Unknown(format!("{} {why}", self.target))
        })
    }

    /// Returns the reason that the server gives in one word, such as `AlreadyExists`; empty where it gives none.
    pub(crate) fn reason(&self) -> String {
        let reason = self.read_status().reason;
        if reason.len() <= 40 && reason.bytes().all(|b| b.is_ascii_alphabetic()) {
            reason
        } else {
            String::new()
        }
    }

    /// Whether the API server itself says that there is no such object; anything in between may answer 404.
    pub(crate) fn is_absent(&self) -> bool {
        self.status == StatusCode::NOT_FOUND && self.reason() == "NotFound"
    }

    /// What an answer is that is no success.
    pub(crate) fn error(&self, effect: Effect) -> CallError {
        let target = format!("{}: {}", self.target, self.what);
        let error = match self.status.as_u16() {
            // A list or watch from a state that is forgotten by now; the next one begins anew.
            410 => {
                let message = format!("{target} answered 410");
                Refusal::retry(RefusalKind::Unavailable, None, message).into()
            }
            _ => http::answer_error(&target, effect, self.status, &self.headers),
        };
        match error {
            CallError::Refused(refusal) => {
                let message = format!("{}{}", refusal.message, self.explained());
                Refusal { message, ..refusal }.into()
            }
            CallError::Unknown(message) => {
                CallError::Unknown(format!("{message}{}", self.explained()))
            }
        }
    }

    /// Says why, as far as that can be said without the words of the answer.
    fn explained(&self) -> String {
        let status = self.read_status();
        if planted!("message_of_the_server_repeated") {
            return format!(": {}", status.message);
        }
        if let Some(webhook) = webhook(&status.message) {
            return format!(": admission webhook `{webhook}` does not let it pass");
        }
        let fields = status.details.unwrap_or_default().causes.into_iter().map(|cause| cause.field);
        let fields: Vec<_> = fields.filter(|field| is_path(field)).collect();
        match (fields.is_empty(), self.reason()) {
            (false, _) => format!(": it objects to `{}`", fields.join("`, `")),
            (true, reason) if reason.is_empty() => String::new(),
            (true, reason) => format!(" {reason}"),
        }
    }

    fn read_status(&self) -> Status {
        serde_json::from_slice(self.body.expose()).unwrap_or_default()
    }
}

/// Returns the name of the webhook that refused a request, which its administrators chose.
fn webhook(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("admission webhook \"")?;
    let (name, _) = rest.split_once('"')?;
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-.".contains(&b);
    (name.len() <= 100 && name.bytes().all(fits)).then_some(name)
}

/// Whether a text is the path of a field, and no value that was put in its place.
fn is_path(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphabetic() || b".[]".contains(&b);
    (1..=100).contains(&text.len()) && text.bytes().all(fits)
}

/// Why a request got no whole answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// Nobody logged in, so that nothing was sent.
    NoLogin,
    /// The server showed a certificate that is not trusted, so that nothing was sent.
    NotTrusted,
    /// No connection came about, so that nothing was sent.
    NoConnection,
    /// It was sent, as a whole or in part.
    Cut,
    /// It did not come in time.
    Late,
}

impl NoAnswer {
    pub(super) fn of(error: &kube::Error) -> Self {
        // One that is renewed while a request is on its way out comes wrapped.
        if cause::<kube::client::AuthError>(error).is_some() {
            return Self::NoLogin;
        }
        let refused = cause::<hyper_util::client::legacy::Error>(error);
        match refused.is_some_and(hyper_util::client::legacy::Error::is_connect) {
            true if http::is_tls(error) => Self::NotTrusted,
            true => Self::NoConnection,
            false => Self::Cut,
        }
    }

    /// Whether the settings may have been renewed since they were read: login and certificates come from there.
    pub(super) const fn may_be_outdated(self) -> bool {
        matches!(self, Self::NoLogin | Self::NotTrusted)
    }

    /// Says what it is to the caller. Where nothing was sent, it is refused.
    pub(super) fn error(self, target: &str) -> CallError {
        if planted!("lost_answer_is_a_refusal") {
            return unavailable(target, "no answer").into();
        }
        let why = match self {
            Self::NoLogin => NO_LOGIN,
            Self::NotTrusted => {
                "no secure connection: the certificate or protocol was not accepted"
            }
            Self::NoConnection => "no connection",
            Self::Cut => {
                let why = "the connection ended before the answer was whole";
                return CallError::Unknown(format!("{target}: {why}"));
            }
            Self::Late => {
                let why = format!("{target}: no answer within {} s", WITHIN.as_secs());
                return CallError::Unknown(why);
            }
        };
        unavailable(target, why).into()
    }
}

fn cause<T: std::error::Error + 'static>(error: &kube::Error) -> Option<&T> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(here) = cause {
        if let Some(found) = here.downcast_ref() {
            return Some(found);
        }
        cause = here.source();
    }
    None
}

fn unavailable(target: &str, why: &str) -> Refusal {
    let remedy = Remedy::Retry { after: None };
    Refusal { kind: RefusalKind::Unavailable, remedy, message: format!("{target}: {why}") }
}
