//! The fault script of the cluster, and what was asked of it.
//!
//! What can go wrong with any request is [`crate::fault::Fault`]; the rest is what only a Kubernetes server does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use serde_json::Value;

use super::request::Call;
use super::status::Status;
use crate::fault;

/// Which requests something happens to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// The verb, or `*`.
    pub verb: String,
    /// The resource with its sub-resource, such as `secrets` or `deployments/scale`, or `*`.
    pub resource: String,
    /// The name; none for any.
    pub name: Option<String>,
}

impl Class {
    /// Means every request of a verb to a resource.
    pub fn new(verb: &str, resource: &str) -> Self {
        Self { verb: verb.into(), resource: resource.into(), name: None }
    }

    /// Means those to one object only.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    fn is(&self, call: &Call) -> bool {
        (self.verb == "*" || self.verb == call.verb)
            && (self.resource == "*" || self.resource == call.resource())
            && (self.name.is_none() || self.name == call.name())
    }
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// What can go wrong with any request. A delayed list is a stale read too.
    Http(fault::Fault),
    /// Admission refuses it, with a webhook's words.
    Refused {
        /// The status: 403 or 422.
        code: u16,
        /// What the webhook says.
        message: String,
    },
    /// Admission takes an annotation away from what is written, and from the template of its pods.
    DropsAnnotation(String),
    /// The object was deleted and made again a moment before, with the same content and another uid.
    Recreated,
    /// A watch breaks off after so many events.
    WatchDropped {
        /// How many it still tells.
        after: usize,
    },
    /// A watch begins, and says that its version is too old.
    WatchExpired,
}

impl Fault {
    /// Answers a status without anything done.
    pub fn status(code: u16) -> Self {
        Self::Http(fault::Fault::status(code))
    }
}

/// One fault, and for which of the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which requests.
    pub on: Class,
    /// How many of them are spared first.
    pub skip: usize,
    /// How many it happens to.
    pub times: usize,
    /// What goes wrong.
    pub fault: Fault,
}

impl Rule {
    /// Makes a rule for the first request.
    pub fn first(on: Class, fault: Fault) -> Self {
        Self { on, skip: 0, times: 1, fault }
    }

    /// Makes a rule for so many requests: a storm.
    pub fn times(on: Class, times: usize, fault: Fault) -> Self {
        Self { on, skip: 0, times, fault }
    }

    /// Makes a rule for every request.
    pub fn every(on: Class, fault: Fault) -> Self {
        Self::times(on, usize::MAX, fault)
    }

    /// Spares some requests first.
    #[must_use]
    pub fn after(mut self, skip: usize) -> Self {
        self.skip = skip;
        self
    }
}

/// One request that the server got, without query, headers and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The verb.
    pub verb: &'static str,
    /// The resource with its sub-resource.
    pub resource: String,
    /// The name of the object.
    pub name: Option<String>,
    /// The path.
    pub path: String,
    /// Who owns what it wrote.
    pub manager: String,
    /// Who asked; empty for somebody unknown.
    pub user: String,
    /// Whether it was only a try.
    pub dry_run: bool,
    /// The status that was answered; none while there is no answer.
    pub code: Option<u16>,
    /// What went wrong with it.
    pub fault: Option<Fault>,
}

/// A place outside a Secret to which a client wrote what a Secret holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disclosure {
    /// The path of the object that was written.
    pub path: String,
    /// The annotation or label.
    pub name: String,
    /// The Secret whose value stands there, and its key.
    pub secret: (String, String),
}

/// The script of a cluster and what came of it. Clones share it.
#[derive(Clone)]
pub struct Faults {
    inner: Arc<Mutex<Inner>>,
    pub(super) http: fault::Faults,
}

#[derive(Default)]
struct Inner {
    rules: Vec<Armed>,
    seen: Vec<Seen>,
    /// How many requests were forgotten.
    forgotten: usize,
    disclosed: Vec<Disclosure>,
}

struct Armed {
    rule: Rule,
    matched: usize,
    fired: bool,
}

impl Default for Faults {
    fn default() -> Self {
        let http = fault::Faults::new(super::NAME, &[], scripted);
        Self { inner: Arc::default(), http }
    }
}

impl Faults {
    /// Replaces the script; counting begins anew.
    pub fn set(&self, rules: Vec<Rule>) {
        let armed = |rule| Armed { rule, matched: 0, fired: false };
        self.lock().rules = rules.into_iter().map(armed).collect();
    }

    /// Returns the rules that have not happened yet: a test whose fault never fired has proven nothing.
    pub fn unfired(&self) -> Vec<Rule> {
        let inner = self.lock();
        inner.rules.iter().filter(|armed| !armed.fired).map(|armed| armed.rule.clone()).collect()
    }

    /// Returns whether every request is done that was to be done later.
    pub fn has_landed(&self) -> bool {
        self.http.has_landed()
    }

    /// Returns every request since the start, or since it was asked to forget.
    pub fn seen(&self) -> Vec<Seen> {
        self.lock().seen.clone()
    }

    /// Counts the requests that wanted to change something: neither reads nor tries.
    pub fn writes(&self) -> usize {
        let reads = ["get", "list", "watch"];
        let inner = self.lock();
        let changes = |seen: &&Seen| !reads.contains(&seen.verb) && !seen.dry_run;
        let reviews = |seen: &&Seen| seen.resource != "selfsubjectaccessreviews";
        inner.seen.iter().filter(changes).filter(reviews).count()
    }

    /// Forgets what was asked.
    pub fn forget(&self) {
        let mut inner = self.lock();
        inner.forgotten += inner.seen.len();
        inner.seen.clear();
    }

    /// Returns what clients wrote of Secrets to where anybody reads it.
    pub fn disclosed(&self) -> Vec<Disclosure> {
        self.lock().disclosed.clone()
    }

    pub(super) fn disclose(&self, found: Vec<Disclosure>) {
        self.lock().disclosed.extend(found);
    }

    /// Counts a request for every rule that is about it, keeps it, and returns its number and the first fault whose turn it is.
    pub(super) fn strike(&self, call: &Call, user: &str, dry_run: bool) -> (usize, Option<Fault>) {
        let mut inner = self.lock();
        let mut struck = None;
        for armed in inner.rules.iter_mut().filter(|armed| armed.rule.on.is(call)) {
            armed.matched += 1;
            let turn = armed.matched.saturating_sub(armed.rule.skip);
            if (1..=armed.rule.times).contains(&turn) && struck.is_none() {
                armed.fired = true;
                struck = Some(armed.rule.fault.clone());
            }
        }
        inner.seen.push(Seen {
            verb: call.verb,
            resource: call.resource(),
            name: call.name(),
            path: call.path.clone(),
            manager: call.manager().into(),
            user: user.into(),
            dry_run,
            code: None,
            fault: struck.clone(),
        });
        (inner.forgotten + inner.seen.len() - 1, struck)
    }

    /// Keeps what was answered to the request of a number.
    pub(super) fn answered(&self, number: usize, code: u16) {
        let mut inner = self.lock();
        let index = number.checked_sub(inner.forgotten);
        if let Some(seen) = index.and_then(|index| inner.seen.get_mut(index)) {
            seen.code = Some(code);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Words a scripted refusal as the server words such a status.
fn scripted(code: StatusCode, _: &str) -> Value {
    let (reason, message) = match code.as_u16() {
        401 => ("Unauthorized", "Unauthorized"),
        403 => ("Forbidden", "forbidden: not yet ready to handle request"),
        404 => ("NotFound", "the server could not find the requested resource"),
        409 => (
            "Conflict",
            "Operation cannot be fulfilled: the object has been modified; please apply your changes to the latest version and try again",
        ),
        410 => ("Expired", "The resourceVersion for the provided list is too old."),
        422 => ("Invalid", "the server rejected our request due to an error in our request"),
        429 => ("TooManyRequests", "Too many requests, please try again later."),
        503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
        504 => ("Timeout", "Timeout: request did not complete within the allotted timeout"),
        _ => ("InternalError", "Internal error occurred: etcdserver: request timed out"),
    };
    Status::new(code.as_u16(), reason, message).body()
}
