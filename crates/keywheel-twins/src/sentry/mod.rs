//! The twin of Sentry: the client keys of one project, its issues, the audit log, and the relay that takes events.
//!
//! The relay answers at the same address. As the real one does, it takes whatever comes for a key before it has the
//! configuration of the project, and goes on taking events for a key that was disabled a moment ago.

mod handlers;
mod state;

use std::io;
use std::time::Duration;

use axum::Router;
use serde_json::Value;

use self::state::{By, Issue, Settings, State};
use crate::fault::{Faults, Operation};
use crate::life::millis;
use crate::server::Server;

/// The twin's name, as its header says it.
pub const NAME: &str = "sentry";

/// The slug of its one organisation.
pub const ORGANIZATION: &str = "shop";

/// The slug of its one project.
pub const PROJECT: &str = "backend";

/// The id of its one project.
pub const PROJECT_ID: u64 = 42;

/// How a twin behaves where nothing goes wrong.
#[derive(Clone, Debug)]
pub struct TwinOptions {
    /// The port, or 0 for a free one.
    pub port: u16,
    /// The token of the API, or none for a random one.
    pub token: Option<String>,
    /// How many keys or issues one page of a list holds.
    pub page: usize,
    /// How far behind every list is.
    pub list_lag: Duration,
    /// How long after it first hears of a key the relay takes everything.
    pub relay_fetch: Duration,
    /// How long the relay goes by what it knew.
    pub relay_cache: Duration,
    /// Whether the plan of the organisation has no rate limits for keys; they are dropped without a word.
    pub no_rate_limits: bool,
}

impl Default for TwinOptions {
    fn default() -> Self {
        Self {
            port: 0,
            token: None,
            page: 100,
            list_lag: Duration::ZERO,
            relay_fetch: Duration::ZERO,
            relay_cache: Duration::ZERO,
            no_rate_limits: false,
        }
    }
}

/// A running twin. It ends when it is dropped.
pub struct Twin {
    server: Server,
    shared: Shared,
    token: String,
}

/// A client key as the twin knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyState {
    /// Its public key, which is its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whether it was not deleted.
    pub live: bool,
    /// Whether it is not disabled.
    pub active: bool,
    /// How many envelopes the relay took for it.
    pub events: usize,
    /// What the API shows of it.
    pub shown: Value,
}

impl Twin {
    /// Starts a twin on a thread of its own.
    ///
    /// # Errors
    /// Where the port is taken.
    pub fn start(options: TwinOptions) -> io::Result<Self> {
        let port = options.port;
        let shared = Shared::of(options);
        let token = shared.state().token.clone();
        Ok(Self { server: Server::start(port, shared.router())?, shared, token })
    }

    /// Returns where it listens: the API lies under `/api/0`, and the relay beside it.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Returns the one token of the API.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Returns its script of faults, and its recorder.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Returns every key that there ever was, in order.
    pub fn keys(&self) -> Vec<KeyState> {
        let state = self.shared.state();
        let mut keys: Vec<_> = state.keys.values().collect();
        keys.sort_by_key(|key| key.life.order);
        keys.into_iter()
            .map(|key| KeyState {
                id: key.id.clone(),
                name: key.settings.name.clone(),
                live: key.life.ended.is_none(),
                active: key.switch.is_on(),
                events: key.taken.len(),
                shown: handlers::key_json(key, &self.authority()),
            })
            .collect()
    }

    /// Returns the ids of the live keys of this name.
    pub fn live(&self, name: &str) -> Vec<String> {
        let keys = self.keys().into_iter().filter(|key| key.live && key.name == name);
        keys.map(|key| key.id).collect()
    }

    /// Returns the public DSN of a key.
    pub fn dsn(&self, id: &str) -> String {
        format!("http://{id}@{}/{PROJECT_ID}", self.authority())
    }

    /// Makes a key, as a person would in the settings of the project, and returns its id.
    pub fn make_key(&self, name: &str) -> String {
        self.shared.state().add(Settings::named(name), By::Person)
    }

    /// Changes what can be chosen about a key: `rateLimit`, `useCase`, `browserSdkVersion`, `dynamicSdkLoaderOptions`.
    pub fn configure(&self, id: &str, changes: &Value) {
        if let Some(key) = self.shared.state().live(id) {
            handlers::change(&mut key.settings, changes);
        }
    }

    /// Deletes a key.
    pub fn delete_key(&self, id: &str) {
        self.shared.state().end(id, By::Person);
    }

    /// Leaves the token only these scopes.
    pub fn restrict(&self, scopes: &[&str]) {
        self.shared.state().scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
    }

    /// Lets the relay have taken an event for a key so long ago.
    pub fn add_event(&self, id: &str, ago: Duration) {
        if let Some(key) = self.shared.state().keys.get_mut(id) {
            key.taken.push(crate::now() - millis(ago));
        }
    }

    /// Adds an issue that was first seen so long ago.
    pub fn add_issue(&self, title: &str, ago: Duration) {
        let mut state = self.shared.state();
        let id = state.issues.len() as u64 + 1;
        let first_seen = crate::now() - millis(ago);
        state.issues.push(Issue { id, title: title.into(), first_seen });
    }

    /// Ends the twin and every connection to it.
    pub fn shutdown(self) {
        drop(self);
    }

    fn authority(&self) -> String {
        self.server.address().to_string()
    }
}

type Shared = crate::shared::Shared<State>;

impl Shared {
    fn of(options: TwinOptions) -> Self {
        Self::new(State::new(options), Faults::new(NAME, OPERATIONS, handlers::error_body))
    }

    fn router(&self) -> Router {
        self.faults.clone().wrap(handlers::routes(self.clone()))
    }
}

const PROJECT_PATH: &str = "/api/0/projects/{organization}/{project}/";
const KEYS: &str = "/api/0/projects/{organization}/{project}/keys/";
const KEY: &str = "/api/0/projects/{organization}/{project}/keys/{key}/";
const STATS: &str = "/api/0/projects/{organization}/{project}/keys/{key}/stats/";
const AUDIT_LOGS: &str = "/api/0/organizations/{organization}/audit-logs/";
const ISSUES: &str = "/api/0/organizations/{organization}/issues/";
const ENVELOPE: &str = "/api/{project}/envelope/";

/// The operations that a script can name.
pub const OPERATIONS: &[Operation] = &[
    Operation { name: "get_project", method: "GET", path: PROJECT_PATH },
    Operation { name: "list_keys", method: "GET", path: KEYS },
    Operation { name: "create_key", method: "POST", path: KEYS },
    Operation { name: "get_key", method: "GET", path: KEY },
    Operation { name: "update_key", method: "PUT", path: KEY },
    Operation { name: "delete_key", method: "DELETE", path: KEY },
    Operation { name: "key_stats", method: "GET", path: STATS },
    Operation { name: "list_audit_logs", method: "GET", path: AUDIT_LOGS },
    Operation { name: "list_issues", method: "GET", path: ISSUES },
    Operation { name: "envelope", method: "POST", path: ENVELOPE },
];
