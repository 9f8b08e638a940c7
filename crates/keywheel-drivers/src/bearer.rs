//! Access tokens of clouds: short-lived, had from where the configuration says. One that was signed in for is kept until
//! shortly before its end, in memory only.

use std::time::{Duration, Instant};

use keywheel_core::secret::SecretValue;
use keywheel_driver::{CallError, Refusal, RefusalKind, SecretReference};
use reqwest::Method;
use reqwest::header::HeaderMap;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use tokio::sync::Mutex;

use crate::api::{Api, unsupported};
use crate::http::Effect;
use crate::secret_json::Text;
use crate::{Context, reference};

const MICROSOFT: &str = "https://login.microsoftonline.com";

/// How long before its end a token is used no more.
const MARGIN: Duration = Duration::from_secs(300);

/// For how many seconds a token is used at most, whatever is said of it.
const LONGEST: u64 = 86_400;

/// How keywheel shows Google who it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Google {
    /// An access token, read each time it is needed: `{ command: [gcloud, auth, print-access-token] }`.
    Token(SecretReference),
}

/// How keywheel shows Azure who it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Azure {
    /// An access token for the vault, read each time it is needed: `{ command: [az, account, get-access-token, …] }`.
    Token(SecretReference),
    /// An application that signs in with its secret.
    Client(Application),
}

/// An application of Entra ID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Application {
    /// The id of its tenant, or one of the tenant's domains.
    pub tenant: String,
    /// The id of the application.
    pub client_id: String,
    /// Where its secret is read.
    pub client_secret: SecretReference,
    /// Where it signs in, if not at the official address; HTTPS, or a loopback address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
}

impl Google {
    /// Says where tokens come from.
    pub(crate) fn tokens(&self, context: &Context) -> Tokens {
        let Self::Token(token) = self;
        Tokens::read(token, context)
    }
}

impl Azure {
    /// Says where tokens for a resource come from, such as `https://vault.azure.net`.
    pub(crate) fn tokens(
        &self,
        target: &'static str,
        resource: &str,
        context: &Context,
    ) -> Result<Tokens, Refusal> {
        let application = match self {
            Self::Token(token) => return Ok(Tokens::read(token, context)),
            Self::Client(application) => application,
        };
        let is_name = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
        };
        if !is_name(&application.tenant) || !is_name(&application.client_id) {
            return Err(unsupported(
                "`tenant` or `client_id` is not the id of a tenant or an application",
            ));
        }
        let authority = application.authority.as_deref().unwrap_or(MICROSOFT);
        let secret = reference::from_root(&application.client_secret, context);
        Ok(Tokens(Source::SignIn(Box::new(SignIn {
            api: Api::named(target, "authority", authority)?,
            application: Application { client_secret: secret, ..application.clone() },
            scope: format!("{resource}/.default"),
            kept: Mutex::new(None),
        }))))
    }
}

/// Where tokens come from.
pub(crate) struct Tokens(Source);

enum Source {
    Read(SecretReference),
    SignIn(Box<SignIn>),
}

struct SignIn {
    api: Api,
    application: Application,
    scope: String,
    kept: Mutex<Option<Kept>>,
}

struct Kept {
    token: SecretValue,
    until: Instant,
}

#[derive(Deserialize)]
struct SignedIn {
    access_token: Text,
    #[serde(deserialize_with = "seconds")]
    expires_in: u64,
}

/// Reads a number that some write as a text.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    match Either::deserialize(deserializer)? {
        Either::Number(number) => Ok(number),
        Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

impl Tokens {
    fn read(token: &SecretReference, context: &Context) -> Self {
        Self(Source::Read(reference::from_root(token, context)))
    }

    /// Returns the headers of a request to `api`.
    pub(crate) async fn headers(&self, api: &Api) -> Result<HeaderMap, CallError> {
        let token = match &self.0 {
            Source::Read(token) => reference::read(token).await?,
            Source::SignIn(sign_in) => sign_in.token().await?,
        };
        Ok(api.bearer(&token, "access token")?)
    }

    /// Forgets what was kept: it was refused.
    pub(crate) async fn forget(&self) {
        if let Source::SignIn(sign_in) = &self.0 {
            *sign_in.kept.lock().await = None;
        }
    }
}

impl SignIn {
    async fn token(&self) -> Result<SecretValue, CallError> {
        let mut kept = self.kept.lock().await;
        if let Some(kept) = kept.as_ref().filter(|kept| Instant::now() < kept.until) {
            return Ok(kept.token.duplicate());
        }
        let Application { tenant, client_id, client_secret, .. } = &self.application;
        let secret = reference::read(client_secret).await?;
        let body = form(&[
            ("grant_type", b"client_credentials"),
            ("client_id", client_id.as_bytes()),
            ("scope", self.scope.as_bytes()),
            ("client_secret", secret.expose()),
        ]);
        let url = self.api.url(&[tenant, "oauth2", "v2.0", "token"]);
        let kind = ("application/x-www-form-urlencoded", &body);
        // Nothing is changed by it, so an answer that was lost leaves nothing behind.
        let sent = self.api.send_secret(Method::POST, url, &HeaderMap::new(), kind).await;
        let answer = sent.map_err(|error| match error {
            CallError::Unknown(why) => Refusal::retry(RefusalKind::Unavailable, None, why).into(),
            refused => refused,
        })?;
        if matches!(answer.status.as_u16(), 400 | 401) {
            let why = format!(
                "application `{client_id}` of tenant `{tenant}` cannot sign in: {}",
                answer.in_words()
            );
            return Err(Refusal::operator(RefusalKind::Permission, why).into());
        }
        if !answer.status.is_success() {
            return Err(answer.error(Effect::Reads));
        }
        let SignedIn { access_token: Text(token), expires_in } = answer.decode()?;
        let lasts = Duration::from_secs(expires_in.min(LONGEST)).saturating_sub(MARGIN);
        let until = Instant::now() + lasts;
        *kept = Some(Kept { token: token.duplicate(), until });
        Ok(token)
    }
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
