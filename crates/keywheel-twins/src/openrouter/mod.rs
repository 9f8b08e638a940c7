//! The twin of OpenRouter's API: keys by management key, their guardrails and provider keys, activity, and one completion.

mod handlers;
mod state;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;

use self::state::{Settings, Standing, State};
use crate::fault::{Faults, Operation};
use crate::life::millis;
use crate::server::Server;

/// The twin's name, as its header says it.
pub const NAME: &str = "openrouter";

/// How a twin behaves where nothing goes wrong.
#[derive(Clone, Debug, Default)]
pub struct TwinOptions {
    /// The port, or 0 for a free one.
    pub port: u16,
    /// The management key, or none for a random one.
    pub management_key: Option<String>,
    /// The most keys that the account may have.
    pub most_keys: Option<usize>,
    /// How long a new key, and one that was switched on again, is refused.
    pub propagation: Duration,
    /// How long a key that was switched off or deleted is accepted.
    pub revocation: Duration,
    /// How far behind every list is.
    pub list_lag: Duration,
    /// How long after a use counters and activity show it.
    pub usage_lag: Duration,
}

/// A running twin. It ends when it is dropped.
pub struct Twin {
    server: Server,
    shared: Shared,
    management_key: String,
    workspaces: Vec<String>,
}

/// A key that was made by hand, with its value.
pub struct HandMade {
    /// Its id.
    pub hash: String,
    /// Its value.
    pub value: String,
}

/// A key as the twin knows it, without its value.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyState {
    /// Its id.
    pub hash: String,
    /// Its name.
    pub name: String,
    /// The workspace that it belongs to.
    pub workspace: String,
    /// Whether it was not deleted.
    pub live: bool,
    /// Whether it is switched off.
    pub disabled: bool,
    /// The most that it may spend, in US dollars.
    pub limit: Option<f64>,
    /// How often that begins anew.
    pub limit_reset: Option<String>,
    /// Whether what provider keys cost counts.
    pub include_byok_in_limit: bool,
    /// Whether it ends by itself.
    pub expires: bool,
    /// Who is said to have made it.
    pub creator: Option<String>,
}

/// The settings of a key that a test makes.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// The most that it may spend, in US dollars.
    pub limit: Option<f64>,
    /// How often that begins anew.
    pub limit_reset: Option<String>,
    /// Whether what provider keys cost counts.
    pub include_byok_in_limit: bool,
    /// After how long it ends by itself.
    pub expires_in: Option<Duration>,
    /// Whether it belongs to the workspace that is not the default one.
    pub elsewhere: bool,
}

impl Twin {
    /// Starts a twin on a thread of its own.
    ///
    /// # Errors
    /// Where the port is taken.
    pub fn start(options: TwinOptions) -> io::Result<Self> {
        let port = options.port;
        let shared = Shared::new(options);
        let (management_key, workspaces) = {
            let state = shared.state();
            (state.management.clone(), state.workspaces.clone())
        };
        let server = Server::start(port, shared.router())?;
        Ok(Self { server, shared, management_key, workspaces })
    }

    /// Returns where its API begins.
    pub fn base_url(&self) -> String {
        format!("http://{}/api/v1", self.server.address())
    }

    /// Returns the value of its one management key.
    pub fn management_key(&self) -> &str {
        &self.management_key
    }

    /// Returns the id of the workspace that is meant where none is named.
    pub fn default_workspace(&self) -> &str {
        &self.workspaces[0]
    }

    /// Returns the id of its other workspace.
    pub fn other_workspace(&self) -> &str {
        &self.workspaces[1]
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
        keys.into_iter().map(key_state).collect()
    }

    /// Returns the ids of the keys with this name that were not deleted.
    pub fn live(&self, name: &str) -> Vec<String> {
        let keys = self.keys().into_iter().filter(|key| key.live && key.name == name);
        keys.map(|key| key.hash).collect()
    }

    /// Returns whether a value opens anything at this moment.
    pub fn accepts(&self, value: &str) -> bool {
        !matches!(self.shared.state().standing(value), Standing::Nothing)
    }

    /// Makes a key, as a person would in the dashboard.
    pub fn make_key(&self, name: &str) -> HandMade {
        self.make_key_with(name, &Limits::default())
    }

    /// Makes a key with settings of its own.
    pub fn make_key_with(&self, name: &str, limits: &Limits) -> HandMade {
        let settings = Settings {
            limit: limits.limit,
            limit_reset: limits.limit_reset.clone(),
            include_byok_in_limit: limits.include_byok_in_limit,
            expires: limits.expires_in.map(|life| crate::now() + millis(life)),
            ..Settings::plain()
        };
        let workspace = &self.workspaces[usize::from(limits.elsewhere)];
        let mut state = self.shared.state();
        let hash = state.add_key(name, workspace, settings);
        HandMade { value: state.keys[&hash].value.clone(), hash }
    }

    /// Makes a guardrail for some keys, and returns its id.
    pub fn make_guardrail(&self, keys: &[&str]) -> String {
        self.shared.state().add_guardrail(keys)
    }

    /// Returns the keys of a guardrail.
    pub fn keys_of_guardrail(&self, id: &str) -> Vec<String> {
        self.shared.state().guardrails[id].keys.clone()
    }

    /// Stores a key of another provider that some keys of the default workspace may use, or all; returns its id.
    pub fn make_provider_key(&self, name: &str, allowed: Option<&[&str]>) -> String {
        self.make_provider_key_in(self.default_workspace(), name, allowed)
    }

    /// Stores a key of another provider in a workspace.
    pub fn make_provider_key_in(
        &self,
        workspace: &str,
        name: &str,
        allowed: Option<&[&str]>,
    ) -> String {
        self.shared.state().add_provider_key(workspace, name, allowed)
    }

    /// Returns the keys that may use a provider's key; none where all may.
    pub fn keys_of_provider_key(&self, id: &str) -> Option<Vec<String>> {
        self.shared.state().provider_keys[id].allowed.clone()
    }

    /// Adds a use of a key at a time in the past.
    pub fn add_use(&self, hash: &str, ago: Duration, costs: bool) {
        if let Some(key) = self.shared.state().keys.get_mut(hash) {
            key.uses.push((crate::now() - millis(ago), costs));
            key.uses.sort_unstable();
        }
    }

    /// Ends a key as the provider does by itself, where it finds one in public.
    pub fn end_by_itself(&self, hash: &str) {
        if let Some(key) = self.shared.state().live_key(hash) {
            key.end();
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

fn key_state(key: &state::Key) -> KeyState {
    KeyState {
        hash: key.hash.clone(),
        name: key.name.clone(),
        workspace: key.workspace.clone(),
        live: key.life.ended.is_none(),
        disabled: !key.switch.is_on(),
        limit: key.settings.limit,
        limit_reset: key.settings.limit_reset.clone(),
        include_byok_in_limit: key.settings.include_byok_in_limit,
        expires: key.settings.expires.is_some(),
        creator: key.settings.creator.clone(),
    }
}

const KEYS: &str = "/api/v1/keys";
const KEY: &str = "/api/v1/keys/{hash}";
const SELF: &str = "/api/v1/key";
const WORKSPACE: &str = "/api/v1/workspaces/{workspace}";
const ACTIVITY: &str = "/api/v1/activity";
const ASSIGNMENTS: &str = "/api/v1/guardrails/assignments/keys";
const GUARDRAIL_KEYS: &str = "/api/v1/guardrails/{guardrail}/assignments/keys";
const PROVIDER_KEYS: &str = "/api/v1/byok";
const PROVIDER_KEY: &str = "/api/v1/byok/{id}";
const CHAT: &str = "/api/v1/chat/completions";

/// The operations that a script can name.
pub const OPERATIONS: &[Operation] = &[
    Operation { name: "create_key", method: "POST", path: KEYS },
    Operation { name: "list_keys", method: "GET", path: KEYS },
    Operation { name: "get_key", method: "GET", path: KEY },
    Operation { name: "update_key", method: "PATCH", path: KEY },
    Operation { name: "delete_key", method: "DELETE", path: KEY },
    Operation { name: "get_self", method: "GET", path: SELF },
    Operation { name: "get_workspace", method: "GET", path: WORKSPACE },
    Operation { name: "get_activity", method: "GET", path: ACTIVITY },
    Operation { name: "list_key_assignments", method: "GET", path: ASSIGNMENTS },
    Operation { name: "assign_keys", method: "POST", path: GUARDRAIL_KEYS },
    Operation { name: "list_provider_keys", method: "GET", path: PROVIDER_KEYS },
    Operation { name: "update_provider_key", method: "PATCH", path: PROVIDER_KEY },
    Operation { name: "create_chat_completion", method: "POST", path: CHAT },
];
