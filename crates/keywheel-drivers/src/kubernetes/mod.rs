//! Clusters: one client of the Kubernetes API for all drivers.
//!
//! A cluster is a context of a kubeconfig that the configuration names, or the one that keywheel runs in. The current context is
//! never used: whoever switches it for another task must not switch what is rotated. A context can be made to point elsewhere,
//! so [`Kubernetes::identity`] says which cluster answers, and plans pin that.
//!
//! A request is sent once and has a deadline; nothing waits for its turn in the client (H64). No error holds a value, a URL or
//! the body of an answer: admission webhooks and validation repeat what they were sent (H115).

mod access;
mod answer;
pub mod audit;
mod cluster;
mod deployer;
mod head;
mod place;
mod reference;
pub mod throwaway;

pub(crate) use access::Access;
pub(crate) use answer::Answer;
use answer::NoAnswer;
pub use cluster::{Cluster, InCluster, TAKE_A_CLUSTER};
pub(crate) use deployer::{deployer, known_as};
pub(crate) use head::{Head, name_of as head_of, number_of};
pub(crate) use place::Place;
pub use place::is_name;
pub use reference::Approach;
pub(crate) use reference::SecretRef;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use keywheel_core::plan::Pin;
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::Span;
use keywheel_driver::{CallError, Refusal, RefusalKind};
use kube::client::Body;
use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::Context;
use crate::http::Effect;
use cluster::Source;

/// Who the API server says made a change.
pub(crate) const MANAGER: &str = "keywheel";

/// By what an audit log knows our requests.
const AGENT: &str = concat!("keywheel/", env!("CARGO_PKG_VERSION"));

/// The annotation that says which installation writes an object.
pub(crate) const CLAIM: &str = "keywheel.dev/claim";

/// The annotation that says which Secret a version is one of.
pub(crate) const VERSION_OF: &str = "keywheel.dev/version-of";

/// How long a change that got no answer can still take effect: the server is told to give it up before that.
pub(crate) const SETTLE_FOR: Span = Span::minutes(1);

/// How long the server may work on a request.
const SERVER_TIMEOUT: &str = "20s";

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(30);

/// How long whoever logs in for a context may take.
const LOGIN: Duration = Duration::from_secs(60);

/// How long before a login ends it is made anew.
const SPARE: Duration = Duration::from_secs(60);

/// A cluster, as drivers speak to it. It costs nothing until it is asked something.
#[derive(Clone)]
pub(crate) struct Kubernetes {
    source: Source,
    target: String,
    /// The id that it must have, where the settings say one.
    expected: Option<String>,
}

/// A change that is asked of the API server.
pub(crate) enum Change<'a> {
    /// Makes an object.
    Create(&'a SecretValue),
    /// A JSON merge patch (RFC 7386).
    Merge(&'a SecretValue),
    /// Removes an object; the body is a `DeleteOptions`.
    Delete(&'a SecretValue),
}

impl Kubernetes {
    /// Names the cluster that a driver's settings name. Reads nothing and asks nobody.
    ///
    /// # Errors
    /// A refusal where the settings name none.
    pub(crate) fn new(setting: Option<&Cluster>, context: &Context) -> Result<Self, Refusal> {
        let source = Source::new(setting, context)?;
        let target = format!("cluster {source}");
        let expected = setting.and_then(|setting| setting.id.clone());
        Ok(Self { source, target, expected })
    }

    /// Returns the name by which settings of the same cluster know each other.
    pub(crate) fn id(&self) -> String {
        self.source.id()
    }

    /// Returns the cluster's name in a sentence.
    pub(crate) fn target(&self) -> &str {
        &self.target
    }

    /// Returns how people call `kubectl` for a namespace of it.
    pub(crate) fn kubectl(&self, namespace: &str) -> String {
        format!("{} -n {namespace}", self.source.kubectl())
    }

    /// Returns the client, which everybody shares who speaks to the same cluster.
    ///
    /// # Errors
    /// A refusal: nothing was asked yet.
    pub(crate) async fn client(&self) -> Result<kube::Client, Refusal> {
        let runtime = tokio::runtime::Handle::current().id();
        let key = (self.source.id(), self.expected.clone(), runtime);
        let now = jiff::Timestamp::now();
        // One that logs in by a certificate for a while does not renew it by itself.
        let lasts =
            |client: &kube::Client| client.valid_until().is_none_or(|end| now + SPARE < end);
        shared().retain(|(_, client)| lasts(client));
        if let Some(client) = shared().iter().find(|(known, _)| *known == key) {
            return Ok(client.1.clone());
        }
        let client = self.source.connect(&self.target, LOGIN).await?;
        self.check_id(&client).await?;
        shared().push((key, client.clone()));
        Ok(client)
    }

    /// Forgets the client, so that the next request reads the settings again.
    fn forget(&self) {
        shared().retain(|((id, ..), _)| *id != self.source.id());
    }

    /// Returns whether it is made sure that it is the cluster itself which answers.
    ///
    /// # Errors
    /// A refusal where its settings cannot be read.
    pub(crate) async fn is_verified(&self) -> Result<bool, Refusal> {
        self.source.is_verified(&self.target).await
    }

    /// Refuses another cluster than the settings say, before anything else is asked of it.
    async fn check_id(&self, client: &kube::Client) -> Result<(), Refusal> {
        let Some(expected) = &self.expected else { return Ok(()) };
        let place = Place::core("namespaces").named("kube-system");
        let answer = self.send_by(client, &Method::GET, &place, &[], None).await;
        let answer = answer.and_then(|answer| answer.map_err(|why| why.error(&self.target)));
        let found = answer.and_then(|answer| match answer.status.is_success() {
            true => answer.decode::<Object>(),
            false => Err(answer.error(Effect::Reads)),
        });
        match found {
            Ok(found) if found.metadata.uid == *expected || planted!("cluster_id_unchecked") => {
                Ok(())
            }
            Ok(found) => {
                let message = format!(
                    "{} is another one than the configuration says: its id is `{}`, and `cluster` names `{expected}`",
                    self.target, found.metadata.uid
                );
                Err(Refusal::operator(RefusalKind::Conflict, message))
            }
            Err(CallError::Refused(refusal)) => Err(without_identity(refusal)),
            Err(CallError::Unknown(why)) => {
                Err(Refusal::retry(RefusalKind::Unavailable, None, why))
            }
        }
    }

    /// Returns the cluster as it names itself: by the namespace `kube-system`, which lives as long as the cluster.
    pub(crate) async fn identity(&self) -> Result<Pin, CallError> {
        let place = Place::core("namespaces").named("kube-system");
        let found: Object = self.read(&place).await.map_err(|error| match error {
            CallError::Refused(refusal) => without_identity(refusal).into(),
            error => error,
        })?;
        Ok(Pin { id: found.metadata.uid, machine: String::new(), folder: String::new() })
    }

    /// Reads one object, or a list.
    ///
    /// # Errors
    /// [`CallError`] where there is no answer or another one.
    pub(crate) async fn read<T: DeserializeOwned>(
        &self,
        place: &Place<'_>,
    ) -> Result<T, CallError> {
        let answer = self.ask(place, &[]).await?;
        if answer.status.is_success() { answer.decode() } else { Err(answer.error(Effect::Reads)) }
    }

    /// Reads one object, or none where the API server itself says that it is not there.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) async fn find<T: DeserializeOwned>(
        &self,
        place: &Place<'_>,
    ) -> Result<Option<T>, CallError> {
        let answer = self.ask(place, &[]).await?;
        if answer.status.is_success() {
            return answer.decode().map(Some);
        }
        if answer.is_absent() {
            return Ok(None);
        }
        Err(match answer.error(Effect::Reads) {
            CallError::Refused(refusal) if refusal.kind == RefusalKind::NotFound => {
                let message = format!(
                    "{refusal}, and not in the form of an API server: something in between may have answered, or it serves no such kind"
                );
                Refusal::retry(RefusalKind::Unavailable, None, message).into()
            }
            error => error,
        })
    }

    /// Asks for something, once.
    ///
    /// # Errors
    /// [`CallError`] where there is no whole answer.
    pub(crate) async fn ask(
        &self,
        place: &Place<'_>,
        query: &[(&str, &str)],
    ) -> Result<Answer, CallError> {
        self.send(Method::GET, place, query, None).await
    }

    /// Asks for a change, once; `dry_run` lets the server do everything but keep it.
    ///
    /// # Errors
    /// [`CallError`] where there is no whole answer. It is refused where the server certainly did not get it.
    pub(crate) async fn change(
        &self,
        place: &Place<'_>,
        change: &Change<'_>,
        dry_run: bool,
    ) -> Result<Answer, CallError> {
        let (method, kind, body) = match change {
            Change::Create(body) => (Method::POST, "application/json", body),
            Change::Merge(body) => (Method::PATCH, "application/merge-patch+json", body),
            Change::Delete(body) => (Method::DELETE, "application/json", body),
        };
        let mut query = vec![("timeout", SERVER_TIMEOUT)];
        if method != Method::DELETE {
            query.push(("fieldManager", MANAGER));
        }
        if dry_run {
            query.push(("dryRun", "All"));
        }
        self.send(method, place, &query, Some((kind, body))).await
    }

    /// Sends a request. One that certainly did nothing, since nobody knew who asks or nothing was sent, is sent once more with settings
    /// that are read again: a kubeconfig is renewed while a rotation goes on.
    async fn send(
        &self,
        method: Method,
        place: &Place<'_>,
        query: &[(&str, &str)],
        body: Option<(&str, &SecretValue)>,
    ) -> Result<Answer, CallError> {
        let mut answered = self.send_once(&method, place, query, body).await?;
        if is_outdated(&answered) {
            self.forget();
            answered = self.send_once(&method, place, query, body).await?;
        }
        if is_outdated(&answered) {
            self.forget();
        }
        answered.map_err(|why| why.error(&self.target))
    }

    async fn send_once(
        &self,
        method: &Method,
        place: &Place<'_>,
        query: &[(&str, &str)],
        body: Option<(&str, &SecretValue)>,
    ) -> Result<Result<Answer, NoAnswer>, CallError> {
        let client = self.client().await?;
        self.send_by(&client, method, place, query, body).await
    }

    async fn send_by(
        &self,
        client: &kube::Client,
        method: &Method,
        place: &Place<'_>,
        query: &[(&str, &str)],
        body: Option<(&str, &SecretValue)>,
    ) -> Result<Result<Answer, NoAnswer>, CallError> {
        let what = place.in_words(method);
        let request = http::Request::builder()
            .method(method)
            .uri(place.path(query))
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, AGENT);
        let request = match body {
            Some((kind, body)) => {
                request.header(CONTENT_TYPE, kind).body(Body::from(body.expose().to_vec()))
            }
            None => request.body(Body::empty()),
        };
        let request = request.map_err(|_| {
            let message = format!("{}: {what} cannot be asked for", self.target);
            Refusal::operator(RefusalKind::Unsupported, message)
        })?;
        let asked = async {
            let (parts, body) = client.send(request).await?.into_parts();
            let body = SecretValue::new(body.collect_bytes().await?.to_vec());
            Ok(Answer::new(&self.target, what.clone(), parts.status, parts.headers, body))
        };
        Ok(match tokio::time::timeout(WITHIN, asked).await {
            Ok(answered) => answered.map_err(|error: kube::Error| NoAnswer::of(&error)),
            Err(_) => Err(NoAnswer::Late),
        })
    }

    /// Sends an object that holds no value.
    pub(crate) async fn create<T: DeserializeOwned>(
        &self,
        place: &Place<'_>,
        object: &Value,
    ) -> Result<T, CallError> {
        let body = SecretValue::new(object.to_string().into_bytes());
        let answer = self.change(place, &Change::Create(&body), false).await?;
        if answer.status.is_success() {
            answer.decode()
        } else {
            Err(answer.error(Effect::Changes))
        }
    }
}

/// Whether it may be otherwise with settings that are read again.
fn is_outdated(answered: &Result<Answer, NoAnswer>) -> bool {
    match answered {
        Ok(answer) => answer.status.as_u16() == 401,
        Err(why) => why.may_be_outdated(),
    }
}

/// Says what a refusal to tell the id of a cluster keeps from being known.
fn without_identity(refusal: Refusal) -> Refusal {
    if refusal.kind != RefusalKind::Permission {
        return refusal;
    }
    let message = format!(
        "{refusal}; by it a cluster is told from another one, so allow `get` of that one namespace"
    );
    Refusal { message, ..refusal }
}

type Shared = Vec<((String, Option<String>, tokio::runtime::Id), kube::Client)>;

/// The clients of this process; one belongs to the runtime that made it.
fn shared() -> std::sync::MutexGuard<'static, Shared> {
    static CLIENTS: Mutex<Shared> = Mutex::new(Vec::new());
    CLIENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Deserialize)]
struct Object {
    metadata: Identified,
}

#[derive(Deserialize)]
struct Identified {
    uid: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cluster_of_another_id_is_refused_before_anything_else_is_asked() {
        let twin = keywheel_twins::kubernetes::Cluster::start().unwrap();
        let folder = tempfile::TempDir::new().unwrap();
        twin.write_kubeconfig(&folder.path().join("kube")).unwrap();
        let with = |id: String| {
            let (context, kubeconfig) = (Some("admin".into()), Some("kube".into()));
            let setting = Cluster { context, kubeconfig, in_cluster: None, id: Some(id) };
            Kubernetes::new(Some(&setting), &Context::at(folder.path())).unwrap()
        };
        let asked = |cluster: Kubernetes| async move {
            cluster.find::<Value>(&Place::core("secrets").within("shop").named("app")).await
        };
        let refused = asked(with("another".into())).await.unwrap_err().to_string();
        assert!(refused.contains(&twin.identity()) && refused.contains("`another`"), "{refused}");
        assert!(twin.faults().seen().iter().all(|seen| seen.resource == "namespaces"));
        assert!(asked(with(twin.identity())).await.unwrap().is_none());
    }
}
