//! A client of Vault and OpenBao: who keywheel is there, and what an answer means.
//!
//! A token is sent in its header only, and no text of an answer gets into a message: an engine repeats statements and values in
//! its errors (H115). Nothing is repeated but a call that was refused because a token had ended, which was then not made.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_driver::{CallError, Finding, Refusal, RefusalKind, SecretReference};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use schemars::JsonSchema;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use tokio::sync::Mutex;

use crate::api::{Shown, unsupported};
use crate::http::{self, Effect};
use crate::{Context, reference, secret_json};

#[cfg(test)]
pub(crate) mod ground;
mod login;
pub mod setup;

pub(crate) use login::Door;

/// Where Kubernetes puts the token of a pod's service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// How keywheel proves who it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Auth {
    /// A token, which is read each time that it is needed, and renewed when half of its life is over.
    Token(SecretReference),
    /// An AppRole.
    AppRole {
        /// The id of the role.
        role_id: String,
        /// Where its secret id is read.
        secret_id: SecretReference,
        /// Where the method is mounted.
        #[serde(default = "approle")]
        mount: String,
    },
    /// The service account of the pod in which keywheel runs.
    Kubernetes {
        /// The role at Vault.
        role: String,
        /// The file of the service account's token.
        #[serde(default = "service_account")]
        jwt: PathBuf,
        /// Where the method is mounted.
        #[serde(default = "kubernetes")]
        mount: String,
    },
    /// A token that an identity provider signed.
    Jwt {
        /// The role at Vault.
        role: String,
        /// Where the token is read.
        jwt: SecretReference,
        /// Where the method is mounted.
        #[serde(default = "jwt")]
        mount: String,
    },
}

fn approle() -> String {
    "approle".into()
}

fn service_account() -> PathBuf {
    SERVICE_ACCOUNT.into()
}

fn kubernetes() -> String {
    "kubernetes".into()
}

fn jwt() -> String {
    "jwt".into()
}

impl Auth {
    /// Makes relative paths begin at the folder of the configuration file.
    fn rooted(&self, context: &Context) -> Self {
        match self {
            Self::Token(token) => Self::Token(reference::from_root(token, context)),
            Self::AppRole { role_id, secret_id, mount } => Self::AppRole {
                role_id: role_id.clone(),
                secret_id: reference::from_root(secret_id, context),
                mount: mount.clone(),
            },
            Self::Kubernetes { role, jwt, mount } => Self::Kubernetes {
                role: role.clone(),
                jwt: context.root.join(jwt),
                mount: mount.clone(),
            },
            Self::Jwt { role, jwt, mount } => Self::Jwt {
                role: role.clone(),
                jwt: reference::from_root(jwt, context),
                mount: mount.clone(),
            },
        }
    }

    fn mount(&self) -> &str {
        match self {
            Self::Token(_) => "token",
            Self::AppRole { mount, .. }
            | Self::Kubernetes { mount, .. }
            | Self::Jwt { mount, .. } => mount,
        }
    }
}

/// Where a server is, and who keywheel is there.
pub struct Place<'a> {
    /// Its address.
    pub address: &'a str,
    /// The namespace, if it is not the root.
    pub namespace: Option<&'a str>,
    /// The file of the certificates that sign the server's.
    pub ca: Option<&'a Path>,
    /// How keywheel proves who it is.
    pub auth: &'a Auth,
}

/// A server, and the token that keywheel has there.
pub struct Vault {
    target: &'static str,
    base: Url,
    namespace: Option<HeaderValue>,
    auth: Auth,
    http: reqwest::Client,
    token: Mutex<Option<Token>>,
}

/// A token in use.
struct Token {
    header: HeaderValue,
    /// When another one is got; none where it has no end.
    until: Option<Instant>,
}

/// What a server says of the token that asks.
#[derive(Debug, Deserialize)]
pub struct OwnToken {
    /// How many seconds are left of it; 0 where it has no end.
    pub ttl: u64,
    /// How many seconds it was given.
    #[serde(default)]
    pub creation_ttl: u64,
    /// Whether it can be renewed.
    #[serde(default)]
    pub renewable: Option<bool>,
    /// For how many seconds each renewal lasts, without an end to them.
    #[serde(default)]
    pub period: Option<u64>,
}

impl OwnToken {
    /// Returns whether it can be renewed for ever.
    fn is_periodic(&self) -> bool {
        self.renewable == Some(true) && self.period.is_some_and(|period| period > 0)
    }
}

/// The envelope of most answers.
#[derive(Deserialize)]
pub(crate) struct Data<T> {
    pub(crate) data: T,
}

/// What is sent with a call.
pub(crate) enum Body<'a> {
    /// Nothing.
    Empty,
    /// A JSON object.
    Json(&'a SecretValue),
    /// A JSON object that is merged into what is there.
    Merge(&'a SecretValue),
}

impl Vault {
    /// `target` names the other side, such as ``store `vault_kv` ``.
    ///
    /// # Errors
    /// A refusal where the address is none to which a token may be sent, or a certificate cannot be read.
    pub fn new(
        target: &'static str,
        place: &Place<'_>,
        context: &Context,
    ) -> Result<Self, Refusal> {
        let base = Url::parse(place.address).map_err(|_| unsupported("`address` is not a URL"))?;
        let is_plain = base.username().is_empty()
            && base.password().is_none()
            && base.query().is_none()
            && base.fragment().is_none();
        if !http::is_private(&base) {
            let message = "`address` must begin with `https://`, or name a loopback address";
            return Err(unsupported(message));
        }
        if !is_plain {
            return Err(unsupported("`address` must have no user, query or fragment"));
        }
        let namespace = place.namespace.map(HeaderValue::from_str).transpose();
        let namespace = namespace
            .map_err(|_| unsupported("`namespace` holds a character that no header can"))?;
        let http = match place.ca {
            Some(ca) => http::trusting(&context.root.join(ca))?,
            None => http::client(),
        };
        let auth = place.auth.rooted(context);
        Ok(Self { target, base, namespace, auth, http, token: Mutex::new(None) })
    }

    /// Returns the server and the namespace, as one name.
    pub(crate) fn name(&self) -> String {
        let namespace = self.namespace.as_ref().and_then(|name| name.to_str().ok());
        let namespace = namespace.map(|name| format!("{}/", name.trim_matches('/')));
        format!("{}{}", self.base.as_str(), namespace.unwrap_or_default())
    }

    /// Calls a path below `/v1/` once, with a token that is accepted.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Body<'_>,
    ) -> Result<Answer, CallError> {
        let token = self.token().await?;
        let answer = self.send(&method, path, Some(&token), &body).await?;
        if answer.status != StatusCode::FORBIDDEN || self.is_accepted(&token).await? {
            return Ok(answer);
        }
        // It was refused for its token, so nothing was done. An agent may have put another one into the file, and a login is made anew.
        *self.token.lock().await = None;
        let next = self.token().await?;
        if next == token || planted!("replaced_token_is_not_read") {
            return Err(self.no(RefusalKind::Permission, "the token has ended, or was revoked"));
        }
        self.send(&method, path, Some(&next), &body).await
    }

    /// Reads a path; none where there is nothing.
    pub(crate) async fn find<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<Option<T>, CallError> {
        let answer = self.call(Method::GET, path, Body::Empty).await?;
        match answer.status.as_u16() {
            404 => Ok(None),
            _ => answer.read(Effect::Reads).map(Some),
        }
    }

    /// Lists the names below a path.
    pub(crate) async fn keys(&self, path: &str) -> Result<Vec<String>, CallError> {
        #[derive(Deserialize)]
        struct Keys {
            keys: Vec<String>,
        }
        let list = Method::from_bytes(b"LIST").expect("it is a token of HTTP");
        let answer = self.call(list, path, Body::Empty).await?;
        match answer.status.as_u16() {
            404 => Ok(Vec::new()),
            _ => Ok(answer.read::<Data<Keys>>(Effect::Reads)?.data.keys),
        }
    }

    /// Sends a question, and returns its answer as data.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        question: &impl Serialize,
        effect: Effect,
    ) -> Result<T, CallError> {
        let question = secret_json::write(question);
        self.call(Method::POST, path, Body::Json(&question)).await?.read(effect)
    }

    /// Changes something, and wants no answer but that it was done.
    pub(crate) async fn change(
        &self,
        path: &str,
        question: &impl Serialize,
    ) -> Result<(), CallError> {
        let question = secret_json::write(question);
        self.call(Method::POST, path, Body::Json(&question)).await?.done()
    }

    /// Returns what may be done at paths, in the words of policies; none where the token may not ask.
    pub(crate) async fn capabilities(
        &self,
        paths: &[String],
    ) -> Result<Option<Vec<Vec<String>>>, CallError> {
        #[derive(Serialize)]
        struct Paths<'a> {
            paths: &'a [String],
        }
        type Of = Data<std::collections::BTreeMap<String, Vec<String>>>;
        let asked = self.ask::<Of>("sys/capabilities-self", &Paths { paths }, Effect::Reads).await;
        match asked {
            Ok(mut of) => Ok(Some(
                paths.iter().map(|path| of.data.remove(path).unwrap_or_default()).collect(),
            )),
            Err(CallError::Refused(no)) if no.kind == RefusalKind::Permission => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns what is wrong with what the policy of the token allows: `wanted` is what a rotation does, as `(path, capability)`.
    pub(crate) async fn not_permitted(
        &self,
        wanted: &[(String, &str)],
    ) -> Result<Vec<Finding>, CallError> {
        let paths: Vec<String> = wanted.iter().map(|(path, _)| path.clone()).collect();
        let Some(allowed) = self.capabilities(&paths).await? else {
            let message = format!(
                "{}: the token may not ask what it may do (`sys/capabilities-self`)",
                self.target
            );
            return Ok(vec![Finding::note(message)]);
        };
        let lacks = |((path, needed), has): (&(String, &str), &Vec<String>)| {
            let may = has.iter().any(|one| one == needed || one == "root");
            (!may).then(|| {
                Finding::blocks(format!(
                    "{}: the token lacks `{needed}` on `{path}`; add to its policy: path \"{path}\" {{ capabilities = [\"{needed}\"] }}",
                    self.target
                ))
            })
        };
        Ok(wanted.iter().zip(&allowed).filter_map(lacks).collect())
    }

    /// Returns the cluster's own name for itself, which another cluster has not; none where it does not tell.
    pub(crate) async fn cluster(&self) -> Result<Option<String>, CallError> {
        #[derive(Deserialize)]
        struct Health {
            /// What else answers instead of the server does not say this.
            #[serde(rename = "initialized")]
            _initialized: bool,
            #[serde(default)]
            cluster_id: String,
        }
        // It is the whole server's: one that is asked for it in a namespace refuses.
        let namespace = self.namespace.as_ref().filter(|_| planted!("health_of_a_namespace"));
        let get = Method::GET;
        let answer = self.send_in(namespace, &get, "sys/health", None, &Body::Empty).await?;
        match answer.decode::<Health>() {
            Some(health) if !health.cluster_id.is_empty() => Ok(Some(health.cluster_id)),
            // A node that is no leader answers with one of these.
            Some(_) if matches!(answer.status.as_u16(), 200 | 429 | 472 | 473) => Ok(None),
            None if planted!("another_answer_is_another_place") => Ok(None),
            _ if answer.status.is_success() => {
                let message =
                    format!("{}: `sys/health` is answered by something else", self.target);
                Err(Refusal::retry(RefusalKind::Unavailable, None, message).into())
            }
            _ => Err(answer.error(Effect::Reads)),
        }
    }

    /// Returns whether leases that were asked for hang on a token without an end: it has none, or it was given to keywheel and each run
    /// renews it. A login makes a token anew, and nobody renews the one before.
    pub(crate) fn outlives_all(&self, own: &OwnToken) -> bool {
        let is_given =
            matches!(self.auth, Auth::Token(_)) || planted!("login_renews_the_former_token");
        own.ttl == 0 || (is_given && own.is_periodic())
    }

    /// Returns what the server says of the token in use; none where the token may not ask.
    pub(crate) async fn own_token(&self) -> Result<Option<OwnToken>, CallError> {
        let token = self.token().await?;
        self.look_up(&token).await
    }

    async fn look_up(&self, token: &HeaderValue) -> Result<Option<OwnToken>, CallError> {
        let path = "auth/token/lookup-self";
        let answer = self.send(&Method::GET, path, Some(token), &Body::Empty).await?;
        match answer.status.as_u16() {
            403 => Ok(None),
            _ => Ok(Some(answer.read::<Data<OwnToken>>(Effect::Reads)?.data)),
        }
    }

    /// Returns whether the server knows a token: it answers 403 to a token that it does not know, and to one whose policy lacks
    /// something. Each policy but those that leave out `default` lets a token look at itself.
    async fn is_accepted(&self, token: &HeaderValue) -> Result<bool, CallError> {
        if planted!("token_not_told_apart") {
            return Ok(true);
        }
        Ok(self.look_up(token).await?.is_some())
    }

    /// Returns a token, got anew where the last one is about to end.
    async fn token(&self) -> Result<HeaderValue, CallError> {
        let mut held = self.token.lock().await;
        let is_fresh = |token: &&Token| token.until.is_none_or(|until| Instant::now() < until);
        if let Some(token) = held.as_ref().filter(is_fresh) {
            return Ok(token.header.clone());
        }
        let token = match &self.auth {
            Auth::Token(from) => self.read_token(from).await?,
            auth => self.log_in(auth).await?,
        };
        let header = token.header.clone();
        *held = Some(token);
        Ok(header)
    }

    /// Reads a token, and renews it where half of its life is over: nobody else may.
    async fn read_token(&self, from: &SecretReference) -> Result<Token, CallError> {
        let value = reference::read(from).await?;
        let header = self.header(&value)?;
        let Ok(Some(own)) = self.look_up(&header).await else {
            // The call that needs it says what is wrong.
            return Ok(Token { header, until: None });
        };
        if own.renewable == Some(true) && own.ttl > 0 && own.ttl < own.creation_ttl / 2 {
            let path = "auth/token/renew-self";
            // Where it is not renewed it still serves as long as it lives.
            let renewed = self.send(&Method::POST, path, Some(&header), &Body::Empty).await;
            drop(renewed);
        }
        // It is read again within its life: an agent may have put another one into the file.
        Ok(Token { header, until: (own.ttl > 0).then(|| two_thirds(own.ttl)) })
    }

    async fn log_in(&self, auth: &Auth) -> Result<Token, CallError> {
        #[derive(Serialize)]
        struct Login<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            role_id: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            secret_id: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            role: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            jwt: Option<&'a str>,
        }
        #[derive(Deserialize)]
        struct LoggedIn {
            auth: Granted,
        }
        #[derive(Deserialize)]
        struct Granted {
            client_token: Shown,
            lease_duration: u64,
        }
        let proof = match auth {
            Auth::Token(from)
            | Auth::AppRole { secret_id: from, .. }
            | Auth::Jwt { jwt: from, .. } => reference::read(from).await?,
            Auth::Kubernetes { jwt, .. } => {
                reference::read(&SecretReference::File(jwt.clone())).await?
            }
        };
        let proof = secret_json::text(&proof)
            .ok_or_else(|| unsupported("the proof of who keywheel is is not text"))?;
        let login = match auth {
            Auth::AppRole { role_id, .. } => {
                Login { role_id: Some(role_id), secret_id: Some(proof), role: None, jwt: None }
            }
            Auth::Kubernetes { role, .. } | Auth::Jwt { role, .. } => {
                Login { role_id: None, secret_id: None, role: Some(role), jwt: Some(proof) }
            }
            Auth::Token(_) => return Err(unsupported("a token needs no login").into()),
        };
        let login = secret_json::write(&login);
        let path = format!("auth/{}/login", auth.mount());
        let answer = self.send(&Method::POST, &path, None, &Body::Json(&login)).await?;
        if matches!(answer.status.as_u16(), 400 | 403) {
            let why = format!("the login at `auth/{}` is refused", auth.mount());
            return Err(self.no(RefusalKind::Permission, &why));
        }
        // A login that was made and not answered leaves a token that ends by itself.
        let granted = answer.read::<LoggedIn>(Effect::Reads)?.auth;
        let header = self.header(&granted.client_token.0)?;
        let until = (granted.lease_duration > 0).then(|| two_thirds(granted.lease_duration));
        Ok(Token { header, until })
    }

    fn header(&self, token: &SecretValue) -> Result<HeaderValue, Refusal> {
        http::secret_header(token.expose())
            .map_err(|_| unsupported("the token holds a character that no header can"))
    }

    fn no(&self, kind: RefusalKind, why: &str) -> CallError {
        Refusal::operator(kind, format!("{}: {why}", self.target)).into()
    }

    async fn send(
        &self,
        method: &Method,
        path: &str,
        token: Option<&HeaderValue>,
        body: &Body<'_>,
    ) -> Result<Answer, CallError> {
        self.send_in(self.namespace.as_ref(), method, path, token, body).await
    }

    async fn send_in(
        &self,
        namespace: Option<&HeaderValue>,
        method: &Method,
        path: &str,
        token: Option<&HeaderValue>,
        body: &Body<'_>,
    ) -> Result<Answer, CallError> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .expect("`new` took HTTP and HTTPS only")
            .pop_if_empty()
            .push("v1")
            .extend(path.split('/'));
        let mut headers = HeaderMap::new();
        // An agent that passes calls on wants to see it, so that no browser can be made to call.
        headers
            .insert(HeaderName::from_static("x-vault-request"), HeaderValue::from_static("true"));
        if let Some(namespace) = namespace {
            headers.insert(HeaderName::from_static("x-vault-namespace"), namespace.clone());
        }
        if let Some(token) = token {
            headers.insert(HeaderName::from_static("x-vault-token"), token.clone());
        }
        let mut request = self.http.request(method.clone(), url).headers(headers);
        let (kind, bytes) = match body {
            Body::Empty => (None, None),
            Body::Json(bytes) => (Some("application/json"), Some(bytes)),
            Body::Merge(bytes) => (Some("application/merge-patch+json"), Some(bytes)),
        };
        if let (Some(kind), Some(bytes)) = (kind, bytes) {
            request = request.header(CONTENT_TYPE, kind).body(bytes.expose().to_vec());
        }
        let response = request.send().await.map_err(|e| http::call_error(self.target, &e))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = match http::body(self.target, response).await {
            Err(error) if status.is_success() => return Err(error),
            body => SecretValue::new(body.unwrap_or_default()),
        };
        let asked = format!("{method} {path}");
        Ok(Answer { target: self.target, asked, status, headers, body })
    }
}

/// A token is got anew well before it ends, and not in the middle of a call.
fn two_thirds(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds) * 2 / 3
}

/// An answer. Its body may hold a value and is shown to no one.
pub(crate) struct Answer {
    target: &'static str,
    asked: String,
    /// Its status.
    pub(crate) status: StatusCode,
    headers: HeaderMap,
    body: SecretValue,
}

impl Answer {
    /// Reads a success.
    pub(crate) fn read<T: DeserializeOwned>(&self, effect: Effect) -> Result<T, CallError> {
        if !self.status.is_success() {
            return Err(self.error(effect));
        }
        self.decode().ok_or_else(|| {
            CallError::Unknown(format!(
                "{} answered `{}` with something else than expected",
                self.target, self.asked
            ))
        })
    }

    /// Returns that a change was made, or what else.
    pub(crate) fn done(&self) -> Result<(), CallError> {
        if self.status.is_success() { Ok(()) } else { Err(self.error(Effect::Changes)) }
    }

    /// Reads the body, whatever the status is.
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(self.body.expose()).ok()
    }

    /// Returns whether an error of the answer is one that holds these words. The words are ours: what was said is not passed on.
    pub(crate) fn says(&self, words: &str) -> bool {
        #[derive(Deserialize)]
        struct Said {
            errors: Vec<String>,
        }
        let said: Option<Said> = self.decode();
        said.is_some_and(|said| said.errors.iter().any(|error| error.contains(words)))
    }

    /// What an answer is that is no success.
    pub(crate) fn error(&self, effect: Effect) -> CallError {
        let Self { target, asked, .. } = self;
        let later = |why: &str| {
            let message = format!("{target}: {why}");
            CallError::from(Refusal::retry(RefusalKind::Unavailable, None, message))
        };
        match self.status.as_u16() {
            403 => {
                let message = format!("{target}: the token may not `{asked}`");
                Refusal::operator(RefusalKind::Permission, message).into()
            }
            // What is sealed takes no request at all.
            503 if self.says("sealed") => later("the server is sealed"),
            400 if self.says("Upgrading from non-versioned") => later("the engine is being set up"),
            412 => later("this node has not caught up with the last write"),
            472 | 473 => later("this node is a standby that answers no requests"),
            _ => match http::answer_error(target, effect, self.status, &self.headers) {
                CallError::Refused(refusal) if planted!("vault_body_repeated") => {
                    let said = String::from_utf8_lossy(self.body.expose()).into_owned();
                    Refusal { message: format!("{}{said}", refusal.message), ..refusal }.into()
                }
                CallError::Refused(refusal) => {
                    let message = format!("{} to `{asked}`", refusal.message);
                    Refusal { message, ..refusal }.into()
                }
                error => error,
            },
        }
    }
}

/// What a key of an answer holds.
pub(crate) enum Held {
    /// A text.
    Text(SecretValue),
    /// A number, a list, an object: nothing that is read here.
    Other,
}

impl<'de> Deserialize<'de> for Held {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(HeldVisitor)
    }
}

struct HeldVisitor;

impl<'de> Visitor<'de> for HeldVisitor {
    type Value = Held;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E>(self, text: &str) -> Result<Held, E> {
        Ok(Held::Text(SecretValue::new(text.into())))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Held, E> {
        Ok(Held::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Held, E> {
        Ok(Held::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Held, E> {
        Ok(Held::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Held, E> {
        Ok(Held::Other)
    }

    fn visit_unit<E>(self) -> Result<Held, E> {
        Ok(Held::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Held, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Held::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Held, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Held::Other)
    }
}

/// Checks that a text is a path at a server: names between single slashes.
pub(crate) fn check_path(key: &str, path: &str) -> Result<(), Refusal> {
    let fits = |name: &str| {
        !name.is_empty()
            && name != "."
            && name != ".."
            && name.bytes().all(|b| b.is_ascii_graphic() && !b"?#%*+".contains(&b))
    };
    if path.split('/').all(fits) {
        return Ok(());
    }
    Err(unsupported(&format!("`{key}` is not a path: names between single slashes")))
}
