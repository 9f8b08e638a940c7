//! Access tokens of clouds: short-lived, had from where the configuration says. One that was signed in for is kept until
//! shortly before its end, in memory only.
//!
//! What a machine, a pod or a job is known by goes to the one place that signs it in, and to no other; no address of an answer is
//! followed. What refuses a sign-in is told by its status alone.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use keywheel_core::secret::SecretValue;
use keywheel_driver::{CallError, Refusal, RefusalKind, SecretReference};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde::{Deserialize, Deserializer};
use tokio::sync::Mutex;

use crate::api::{Answer, Api};
use crate::http::Effect;
use crate::secret_json::Text;
use crate::{Context, reference};

mod azure;
mod google;

pub(crate) use self::azure::Azure;
pub(crate) use self::google::Google;

/// How long before its end a token is used no more.
const MARGIN: Duration = Duration::from_secs(300);

/// For how many seconds a token is used at most, whatever is said of it.
const LONGEST: u64 = 86_400;

/// What a form is called.
const FORM: &str = "application/x-www-form-urlencoded";

/// Where tokens come from.
pub(crate) struct Tokens(Source);

enum Source {
    Read(SecretReference),
    SignIn { by: Box<dyn SignIn>, kept: Mutex<Option<Kept>> },
}

/// A way to be given a token.
#[async_trait]
trait SignIn: Send + Sync {
    /// Asks for a token once.
    async fn sign_in(&self) -> Result<Token, CallError>;
}

/// A token, and for how many seconds it is good.
struct Token {
    token: SecretValue,
    lasts: u64,
}

struct Kept {
    token: SecretValue,
    until: Instant,
    /// Whether it was given out again after the call that it was had for.
    is_reused: bool,
}

impl Tokens {
    fn read(token: &SecretReference, context: &Context) -> Self {
        Self(Source::Read(reference::from_root(token, context)))
    }

    fn sign_in(by: impl SignIn + 'static) -> Self {
        Self(Source::SignIn { by: Box::new(by), kept: Mutex::new(None) })
    }

    /// Returns the headers of a request to `api`.
    pub(crate) async fn headers(&self, api: &Api) -> Result<HeaderMap, CallError> {
        let token = match &self.0 {
            Source::Read(token) => reference::read(token).await?,
            Source::SignIn { by, kept } => given(&**by, &mut *kept.lock().await).await?,
        };
        Ok(api.bearer(&token, "access token")?)
    }

    /// Forgets what was kept, since it was refused. Returns whether it was accepted before, so that a new one may be.
    pub(crate) async fn forget(&self) -> bool {
        match &self.0 {
            Source::Read(_) => false,
            Source::SignIn { kept, .. } => {
                kept.lock().await.take().is_some_and(|kept| kept.is_reused)
            }
        }
    }
}

async fn given(by: &dyn SignIn, kept: &mut Option<Kept>) -> Result<SecretValue, CallError> {
    if let Some(kept) = kept.as_mut().filter(|kept| Instant::now() < kept.until) {
        kept.is_reused = true;
        return Ok(kept.token.duplicate());
    }
    let Token { token, lasts } = by.sign_in().await?;
    let lasts = Duration::from_secs(lasts.min(LONGEST)).saturating_sub(MARGIN);
    let until = Instant::now() + lasts;
    *kept = Some(Kept { token: token.duplicate(), until, is_reused: false });
    Ok(token)
}

/// An answer that gives a token, as OAuth words it.
#[derive(Deserialize)]
struct Granted {
    access_token: Text,
    expires_in: Seconds,
}

impl Granted {
    fn token(self) -> Token {
        let Text(token) = self.access_token;
        Token { token, lasts: self.expires_in.0 }
    }
}

/// A number that some write as a text.
struct Seconds(u64);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) => Ok(Self(number)),
            Either::Text(text) => text.parse().map(Self).map_err(serde::de::Error::custom),
        }
    }
}

/// Who is asked to sign somebody in, and what is said where that one says no.
struct Desk<'a> {
    api: &'a Api,
    who: &'a str,
}

impl Desk<'_> {
    /// Asks once. Nothing is changed by it, so an answer that was lost leaves nothing behind.
    async fn get(&self, url: Url, headers: &HeaderMap) -> Result<Answer, CallError> {
        self.answered(self.api.send(Method::GET, url, headers, None).await)
    }

    /// The same, with a body that holds what somebody is known by.
    async fn post(
        &self,
        url: Url,
        headers: &HeaderMap,
        body: (&'static str, &SecretValue),
    ) -> Result<Answer, CallError> {
        self.answered(self.api.send_secret(Method::POST, url, headers, body).await)
    }

    fn answered(&self, sent: Result<Answer, CallError>) -> Result<Answer, CallError> {
        let answer = sent.map_err(may_pass)?;
        if matches!(answer.status.as_u16(), 400 | 401 | 403) {
            let why = format!("{} cannot sign in: {}", self.who, answer.in_words());
            return Err(Refusal::operator(RefusalKind::Permission, why).into());
        }
        if answer.status.is_success() { Ok(answer) } else { Err(answer.error(Effect::Reads)) }
    }
}

/// What is unknown of a question alone may be asked again.
fn may_pass(error: CallError) -> CallError {
    match error {
        CallError::Unknown(why) => Refusal::retry(RefusalKind::Unavailable, None, why).into(),
        refused @ CallError::Refused(_) => refused,
    }
}

/// Reads an answer that gives something; one that is not understood may be another one the next time.
fn decoded<T: serde::de::DeserializeOwned>(answer: &Answer) -> Result<T, CallError> {
    answer.decode().map_err(may_pass)
}

fn header(name: &'static str, value: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))])
}

/// Writes a form, in memory that never moves.
fn form(fields: &[(&str, &[u8])]) -> SecretValue {
    let mut length = 0;
    let write = |out: &mut dyn FnMut(&str)| {
        for (number, (name, value)) in fields.iter().enumerate() {
            out(if number == 0 { "" } else { "&" });
            out(name);
            out("=");
            url::form_urlencoded::byte_serialize(value).for_each(&mut *out);
        }
    };
    write(&mut |part| length += part.len());
    let mut bytes = Vec::with_capacity(length);
    write(&mut |part| bytes.extend_from_slice(part.as_bytes()));
    SecretValue::new(bytes)
}
