//! The clients of AWS: its official SDK, over the one HTTP client of all drivers.
//!
//! So the SDK too follows no redirect, asks no proxy and repeats nothing (H04, H117), and what it says of a failure keeps status
//! and code and loses the rest (H115). The addresses of the services come from the configuration only. Where the SDK itself looks
//! for credentials (a role, a sign-in), it heeds the variables and profiles of AWS's own tools, `AWS_ENDPOINT_URL` among them: what
//! they name must be HTTPS, this machine, or where AWS tells a machine who it is, and nothing is sent elsewhere. The SDK believes
//! any success of a call that answers nothing, so that the page of a proxy would end a key; here it is none.

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use aws_config::SdkConfig;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::{ConnectorError, SdkError};
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::{CallError, Refusal, RefusalKind, Remedy, SecretReference};
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{now, unsupported};
use crate::http::{self, Effect};
use crate::{Context, reference};

/// With which credentials keywheel itself calls AWS. Where nothing is said it looks where AWS's own tools do: the environment,
/// the default profile, the role of the machine or container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// The name of a profile of `~/.aws/config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Where the id of an access key is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<SecretReference>,
    /// Where the secret of that access key is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<SecretReference>,
    /// Where the session token is read, if the access key is a temporary one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_token: Option<SecretReference>,
}

/// One account and region of AWS.
pub(crate) struct Aws {
    target: &'static str,
    region: String,
    endpoint: Option<String>,
    http: SharedHttpClient,
    keys: SharedCredentialsProvider,
    /// The access keys that signed what was asked to be given credentials.
    asked_with: Ids,
    own: SdkConfig,
}

/// Ids of access keys.
type Ids = Arc<Mutex<BTreeSet<String>>>;

impl Aws {
    /// `target` names the other side, such as ``issuer `aws_access_key` ``.
    ///
    /// # Errors
    /// A refusal that names what is wrong with the configuration.
    pub(crate) fn new(
        target: &'static str,
        region: &str,
        endpoint: Option<&str>,
        access: &Access,
        context: &Context,
    ) -> Result<Self, Refusal> {
        if region.is_empty() || !region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(unsupported("`region` is not the name of a region, such as `eu-west-1`"));
        }
        if let Some(endpoint) = endpoint {
            let url = reqwest::Url::parse(endpoint)
                .map_err(|_| unsupported("`endpoint` is not a URL"))?;
            if !http::is_private(&url) {
                return Err(unsupported(
                    "`endpoint` must begin with `https://`, or name a loopback address",
                ));
            }
        }
        let asked_with = Ids::default();
        let http = client(target, &Ids::default());
        let source = Source::of(access, context)?;
        let own = Own { source, region: region.into(), http: client(target, &asked_with) };
        // A reference is read each time. What the SDK finds, it keeps for as long as it is good.
        let is_read_each_time = matches!(own.source, Source::Key { .. });
        let keys = SharedCredentialsProvider::new(own);
        let (region, endpoint) = (region.to_owned(), endpoint.map(str::to_owned));
        let own = settings(&region, endpoint.as_deref(), &http, keys.clone(), is_read_each_time);
        Ok(Self { target, region, endpoint, http, keys, asked_with, own })
    }

    /// Returns the settings of a client that calls with keywheel's own credentials.
    pub(crate) fn own(&self) -> &SdkConfig {
        &self.own
    }

    /// Returns the settings of a client that calls with an access key and nothing else.
    ///
    /// # Errors
    /// A refusal where a part of the key is no text.
    pub(crate) fn with_key(
        &self,
        id: &SecretValue,
        secret: &SecretValue,
    ) -> Result<SdkConfig, Refusal> {
        let key = key(id, secret, None)
            .ok_or_else(|| unsupported("the credential is no access key: it is not UTF-8"))?;
        let key = SharedCredentialsProvider::new(key);
        Ok(settings(&self.region, self.endpoint.as_deref(), &self.http, key, true))
    }

    /// Returns the ids of the access keys that keywheel itself calls with: the one that signs its calls, and those by which that
    /// one was had, such as the key that assumes a role.
    pub(crate) async fn own_key_ids(&self) -> Result<BTreeSet<String>, CallError> {
        let asked_with = || self.asked_with.lock().unwrap_or_else(PoisonError::into_inner);
        asked_with().clear();
        let own = self.keys.provide_credentials().await;
        let own = own.map_err(|error| no_credentials(self.target, &error))?;
        let mut ids = asked_with().clone();
        ids.insert(own.access_key_id().to_owned());
        Ok(ids)
    }

    /// Says what came of a call that did not succeed.
    pub(crate) fn failed<E>(&self, effect: Effect, error: &SdkError<E, HttpResponse>) -> Failed
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let metadata = error.as_service_error().map(ProvideErrorMetadata::meta);
        let code = metadata.and_then(|metadata| metadata.code()).map(str::to_owned);
        let message = metadata.and_then(|metadata| metadata.message()).unwrap_or_default();
        let is_late =
            message.contains("Signature expired") || message.contains("Signature not yet current");
        let is_answered = error.raw_response().is_some() || cause::<Foreign>(error).is_some();
        let error = match error.raw_response() {
            Some(answer) => self.answered(effect, code.as_deref(), answer),
            None => no_answer(self.target, effect, error),
        };
        Failed { code, is_late, is_answered, error }
    }

    fn answered(&self, effect: Effect, code: Option<&str>, answer: &HttpResponse) -> CallError {
        let status =
            StatusCode::from_u16(answer.status().as_u16()).unwrap_or(StatusCode::IM_A_TEAPOT);
        let mut headers = HeaderMap::new();
        for name in ["date", "retry-after", "x-amzn-requestid"] {
            if let Some(value) = answer.headers().get(name).and_then(|value| value.parse().ok()) {
                headers.insert(name, value);
            }
        }
        let by_status = http::answer_error(self.target, effect, status, &headers);
        let Some(meaning) = code.and_then(meaning) else { return by_status };
        let id = http::request_id(&headers);
        let code = code.unwrap_or_default();
        let message = format!("{} answered {} {code}{id}", self.target, status.as_u16());
        let after = match by_status {
            CallError::Refused(Refusal { remedy: Remedy::Retry { after }, .. }) => after,
            _ => None,
        };
        match meaning {
            Meaning::No(kind) => Refusal::operator(kind, message).into(),
            Meaning::Later(kind) => Refusal::retry(kind, after, message).into(),
            Meaning::Broken if effect == Effect::Reads => {
                Refusal::retry(RefusalKind::Unavailable, after, message).into()
            }
            Meaning::Broken => CallError::Unknown(message),
        }
    }
}

fn settings(
    region: &str,
    endpoint: Option<&str>,
    http: &SharedHttpClient,
    keys: SharedCredentialsProvider,
    is_read_each_time: bool,
) -> SdkConfig {
    let mut settings = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(region.to_owned()))
        .credentials_provider(keys)
        .http_client(http.clone())
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    settings.set_endpoint_url(endpoint.map(str::to_owned));
    if is_read_each_time {
        settings.set_identity_cache(Some(aws_config::identity::IdentityCache::no_cache()));
    }
    settings.build()
}

/// Says how long ago something was, in its largest unit alone.
pub(crate) fn ago(at: Timestamp) -> String {
    let millis = now().since(at).as_millis();
    let units = [Span::days(1), Span::hours(1), Span::minutes(1), Span::seconds(1)];
    let unit = units.into_iter().find(|unit| millis >= unit.as_millis());
    let unit = unit.unwrap_or(Span::seconds(1)).as_millis();
    format!("{} ago", Span::millis(millis / unit * unit))
}

/// A call of AWS that did not succeed.
pub(crate) struct Failed {
    /// AWS's own name for what is wrong, where it gave one. It is compared and never shown.
    pub(crate) code: Option<String>,
    /// Whether the request was refused for its time: the clocks differ, and that says nothing of the key.
    pub(crate) is_late: bool,
    /// Whether there was an answer, of AWS or of somebody before it.
    pub(crate) is_answered: bool,
    /// What it comes to.
    pub(crate) error: CallError,
}

impl Failed {
    /// Returns whether AWS gave one of these codes.
    pub(crate) fn is(&self, codes: &[&str]) -> bool {
        self.code.as_deref().is_some_and(|code| codes.contains(&code))
    }
}

/// What a code means, whatever the status beside it.
enum Meaning {
    No(RefusalKind),
    Later(RefusalKind),
    /// The other side failed: a change may have been made.
    Broken,
}

fn meaning(code: &str) -> Option<Meaning> {
    use Meaning::{Broken, Later, No};
    Some(match code {
        "AccessDenied"
        | "AccessDeniedException"
        | "DecryptionFailure"
        | "EncryptionFailure"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "UnrecognizedClientException" => No(RefusalKind::Permission),
        "LimitExceeded" | "LimitExceededException" => No(RefusalKind::Quota),
        "NoSuchEntity" | "ResourceNotFoundException" => No(RefusalKind::NotFound),
        "InvalidInput"
        | "InvalidParameterException"
        | "InvalidRequestException"
        | "ResourceExistsException"
        | "ValidationError"
        | "ValidationException" => No(RefusalKind::Unsupported),
        "ConcurrentModification" | "EntityTemporarilyUnmodifiable" => {
            Later(RefusalKind::Unavailable)
        }
        "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequestsException" => Later(RefusalKind::RateLimited),
        "InternalFailure" | "InternalServiceError" | "ServiceFailure" | "ServiceUnavailable" => {
            Broken
        }
        _ => return None,
    })
}

/// Says what came of a call that no answer came to: what the HTTP client or a reference says, wherever the SDK has wrapped it.
fn no_answer(target: &str, effect: Effect, error: &(dyn Error + 'static)) -> CallError {
    if let Some(error) = cause::<CallError>(error) {
        return error.clone();
    }
    if let Some(foreign) = cause::<Foreign>(error) {
        return CallError::Unknown(format!("{target}: {foreign}"));
    }
    if cause::<Refusal>(error).is_some() || cause::<CredentialsError>(error).is_some() {
        return no_credentials(target, error);
    }
    let message = format!("{target}: the call could not be made");
    match effect {
        Effect::Reads => Refusal::retry(RefusalKind::Unavailable, None, message).into(),
        Effect::Changes => CallError::Unknown(message),
    }
}

fn no_credentials(target: &str, error: &(dyn Error + 'static)) -> CallError {
    if let Some(refusal) = cause::<Refusal>(error) {
        return refusal.clone().into();
    }
    let message = format!("{target}: no credentials of AWS could be had here");
    Refusal::operator(RefusalKind::Permission, message).into()
}

/// Returns the error of a kind among an error and what caused it.
fn cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut here = Some(error);
    while let Some(error) = here {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        here = error.source();
    }
    None
}

/// Where keywheel's own credentials come from.
#[derive(Debug)]
enum Source {
    Chain,
    Profile(String),
    Key { id: SecretReference, secret: SecretReference, token: Option<SecretReference> },
}

impl Source {
    fn of(access: &Access, context: &Context) -> Result<Self, Refusal> {
        let rooted = |given: &SecretReference| reference::from_root(given, context);
        let Access { profile, access_key_id, secret_access_key, session_token } = access;
        match (profile, access_key_id, secret_access_key) {
            (None, None, None) if session_token.is_none() => Ok(Self::Chain),
            (Some(profile), None, None) if session_token.is_none() => {
                Ok(Self::Profile(profile.clone()))
            }
            (None, Some(id), Some(secret)) => Ok(Self::Key {
                id: rooted(id),
                secret: rooted(secret),
                token: session_token.as_ref().map(rooted),
            }),
            _ => Err(unsupported(
                "`credentials` names a `profile`, or both `access_key_id` and `secret_access_key`, or nothing",
            )),
        }
    }
}

/// keywheel's own credentials.
#[derive(Debug)]
struct Own {
    source: Source,
    region: String,
    http: SharedHttpClient,
}

impl ProvideCredentials for Own {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.provide())
    }
}

impl Own {
    async fn provide(&self) -> Result<Credentials, CredentialsError> {
        // A file that was read is kept by who has read it, so each time somebody new looks. The SDK keeps what is good for a while.
        match &self.source {
            Source::Key { id, secret, token } => {
                read(id, secret, token.as_ref()).await.map_err(CredentialsError::provider_error)
            }
            Source::Profile(name) => {
                let provider = ProfileFileCredentialsProvider::builder();
                let provider = provider.profile_name(name).configure(&self.settings()).build();
                provider.provide_credentials().await
            }
            Source::Chain => {
                let chain = DefaultCredentialsChain::builder().configure(self.settings());
                chain.build().await.provide_credentials().await
            }
        }
    }

    fn settings(&self) -> ProviderConfig {
        ProviderConfig::without_region()
            .with_region(Some(Region::new(self.region.clone())))
            .with_http_client(self.http.clone())
    }
}

async fn read(
    id: &SecretReference,
    secret: &SecretReference,
    token: Option<&SecretReference>,
) -> Result<Credentials, Refusal> {
    let (id, secret) = (reference::read(id).await?, reference::read(secret).await?);
    let token = match token {
        Some(token) => Some(reference::read(token).await?),
        None => None,
    };
    key(&id, &secret, token.as_ref())
        .ok_or_else(|| unsupported("an access key that is referred to is not UTF-8"))
}

/// Makes an access key of its parts; none where one is not UTF-8.
fn key(id: &SecretValue, secret: &SecretValue, token: Option<&SecretValue>) -> Option<Credentials> {
    let text = |value: &SecretValue| std::str::from_utf8(value.expose()).ok().map(str::to_owned);
    let token = match token {
        Some(token) => Some(text(token)?),
        None => None,
    };
    Some(Credentials::new(text(id)?, text(secret)?, token, None::<SystemTime>, "keywheel"))
}

fn client(target: &'static str, signed_with: &Ids) -> SharedHttpClient {
    let signed_with = Arc::clone(signed_with);
    http_client_fn(move |_, _| {
        SharedHttpConnector::new(Connector { target, signed_with: Arc::clone(&signed_with) })
    })
}

/// The one HTTP client of all drivers, as the SDK calls it.
#[derive(Debug)]
struct Connector {
    target: &'static str,
    signed_with: Ids,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = self.target;
        if let Some(id) = request.headers().get("authorization").and_then(signer) {
            self.signed_with.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
        }
        HttpConnectorFuture::new(async move {
            let sent = send(target, request).await;
            sent.map_err(|error| ConnectorError::other(error, None))
        })
    }
}

/// Returns the id of the key that a header was signed with.
fn signer(header: &str) -> Option<&str> {
    let (_, credential) = header.split_once("Credential=")?;
    credential.split('/').next()
}

/// A success that does not come from AWS: the page of a proxy.
#[derive(Debug, thiserror::Error)]
#[error("somebody else than AWS answered")]
struct Foreign;

async fn send(target: &str, request: HttpRequest) -> Result<HttpResponse, BoxError> {
    let odd = || unsupported(&format!("{target}: the request could not be built"));
    let (mut parts, body) = request.try_into_http1x().map_err(|_| odd())?.into_parts();
    for name in ["authorization", "x-amz-security-token"] {
        if let Some(value) = parts.headers.get_mut(name) {
            value.set_sensitive(true);
        }
    }
    let is_signed = parts.headers.contains_key("authorization");
    let body = body.bytes().ok_or_else(odd)?.to_vec();
    let request = reqwest::Request::try_from(::http::Request::from_parts(parts, body));
    let request = request.map_err(|_| odd())?;
    let is_safe = http::is_private(request.url()) || http::is_of_machine(request.url());
    if !is_safe && !planted!("keys_in_the_open") {
        let why = "a variable or profile of AWS's tools (`AWS_ENDPOINT_URL…`, `endpoint_url`) names an address that is neither HTTPS nor this machine's, to which no credential goes";
        return Err(unsupported(&format!("{target}: {why}")).into());
    }
    let answer = http::client().execute(request).await;
    let answer = answer.map_err(|error| http::call_error(target, &error))?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    let is_of_aws = headers.contains_key("x-amzn-requestid") || planted!("any_success_is_of_aws");
    if is_signed && status.is_success() && !is_of_aws {
        return Err(Foreign.into());
    }
    let mut whole = ::http::Response::new(SdkBody::from(http::body(target, answer).await?));
    *whole.status_mut() = status;
    *whole.headers_mut() = headers;
    let odd = |_| CallError::Unknown(format!("{target}: the answer could not be read"));
    Ok(HttpResponse::try_from(whole).map_err(odd)?)
}
