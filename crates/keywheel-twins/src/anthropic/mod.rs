//! The twin of Anthropic's API: keys that only its console makes, their standing, the usage report, models and messages.

mod handlers;
mod state;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;

use self::state::{Standing, State};
use crate::fault::{Faults, Operation};
use crate::life::millis;
use crate::server::Server;

/// The twin's name, as its header says it.
pub const NAME: &str = "anthropic";

/// How a twin behaves where nothing goes wrong.
#[derive(Clone, Debug, Default)]
pub struct TwinOptions {
    /// The port, or 0 for a free one.
    pub port: u16,
    /// The admin key, or none for a random one.
    pub admin_key: Option<String>,
    /// How long a new key, and one that was made active again, is refused.
    pub propagation: Duration,
    /// How long a key that is no longer active is accepted.
    pub revocation: Duration,
    /// How far behind every list is.
    pub list_lag: Duration,
    /// How long after a use the usage report shows it.
    pub usage_lag: Duration,
}

/// A running twin. It ends when it is dropped.
pub struct Twin {
    server: Server,
    shared: Shared,
    admin_key: String,
}

/// A key as a person makes it in the console.
#[derive(Clone, Debug, Default)]
pub struct ConsoleKey {
    /// Its name.
    pub name: String,
    /// Its workspace; none for the default one.
    pub workspace: Option<String>,
    /// After how long it ends by itself.
    pub expires_in: Option<Duration>,
}

/// A key that was made by hand, with its value.
pub struct HandMade {
    /// Its id.
    pub id: String,
    /// Its value.
    pub value: String,
}

/// A key as the twin knows it, without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyState {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `active`, `inactive`, `archived` or `expired`.
    pub status: &'static str,
}

impl Twin {
    /// Starts a twin on a thread of its own.
    ///
    /// # Errors
    /// Where the port is taken.
    pub fn start(options: TwinOptions) -> io::Result<Self> {
        let port = options.port;
        let shared = Shared::new(options);
        let admin_key = shared.state().admin.clone();
        Ok(Self { server: Server::start(port, shared.router())?, shared, admin_key })
    }

    /// Returns where its API begins.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Returns the value of its one admin key.
    pub fn admin_key(&self) -> &str {
        &self.admin_key
    }

    /// Returns its script of faults, and its recorder.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Makes a key in the console, which shows its value once; no call of the API does.
    pub fn console(&self, key: &ConsoleKey) -> HandMade {
        let mut state = self.shared.state();
        let expires = key.expires_in.map(|life| crate::now() + millis(life));
        let id = state.add_key(&key.name, key.workspace.as_deref(), expires);
        HandMade { value: state.keys[&id].value.clone(), id }
    }

    /// Makes a key in the default workspace.
    pub fn make_key(&self, name: &str) -> HandMade {
        self.console(&ConsoleKey { name: name.into(), ..ConsoleKey::default() })
    }

    /// Gives a key another name in the console.
    pub fn rename(&self, id: &str, name: &str) {
        if let Some(key) = self.shared.state().keys.get_mut(id) {
            key.name = name.into();
        }
    }

    /// Archives a key in the console.
    pub fn archive(&self, id: &str) {
        if let Some(key) = self.shared.state().keys.get_mut(id) {
            key.archive();
        }
    }

    /// Ends a key as the provider does by itself, where it finds one in public.
    pub fn end_by_itself(&self, id: &str) {
        self.archive(id);
    }

    /// Returns every key that there ever was, in order.
    pub fn keys(&self) -> Vec<KeyState> {
        let state = self.shared.state();
        let mut keys: Vec<_> = state.keys.values().collect();
        keys.sort_by_key(|key| key.life.order);
        let shown = |key: &state::Key| KeyState {
            id: key.id.clone(),
            name: key.name.clone(),
            status: key.status(),
        };
        keys.into_iter().map(shown).collect()
    }

    /// Returns the ids of the keys with this name that can still be used, at once or once they are active again.
    pub fn live(&self, name: &str) -> Vec<String> {
        let live =
            |key: &KeyState| key.name == name && ["active", "inactive"].contains(&key.status);
        self.keys().into_iter().filter(live).map(|key| key.id).collect()
    }

    /// Returns whether a value opens anything at this moment.
    pub fn accepts(&self, value: &str) -> bool {
        !matches!(self.shared.state().standing(value), Standing::Nothing)
    }

    /// Adds a use of a key at a time in the past.
    pub fn add_use(&self, id: &str, ago: Duration) {
        if let Some(key) = self.shared.state().keys.get_mut(id) {
            key.uses.push(crate::now() - millis(ago));
            key.uses.sort_unstable();
        }
    }

    /// Ends the twin and every connection to it.
    pub fn shutdown(self) {
        drop(self);
    }
}

/// What handlers share.
#[derive(Clone)]
struct Shared {
    state: Arc<Mutex<State>>,
    faults: Faults,
}

impl Shared {
    fn new(options: TwinOptions) -> Self {
        let faults = Faults::new(NAME, OPERATIONS, handlers::error_body);
        Self { state: Arc::new(Mutex::new(State::new(options))), faults }
    }

    fn router(&self) -> Router {
        self.faults.clone().wrap(handlers::routes(self.clone()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const KEYS: &str = "/v1/organizations/api_keys";
const KEY: &str = "/v1/organizations/api_keys/{key}";
const USAGE: &str = "/v1/organizations/usage_report/messages";
const MODELS: &str = "/v1/models";
const MESSAGES: &str = "/v1/messages";

/// The operations that a script can name.
pub const OPERATIONS: &[Operation] = &[
    Operation { name: "list_api_keys", method: "GET", path: KEYS },
    Operation { name: "get_api_key", method: "GET", path: KEY },
    Operation { name: "update_api_key", method: "POST", path: KEY },
    Operation { name: "usage_messages", method: "GET", path: USAGE },
    Operation { name: "list_models", method: "GET", path: MODELS },
    Operation { name: "create_message", method: "POST", path: MESSAGES },
];
