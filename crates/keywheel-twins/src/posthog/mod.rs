//! The twin of PostHog: the keys and tokens of one project, `/flags`, capture, and as much of the query API as a probe needs.
//!
//! As the real one does, it refuses to a personal key whatever resets, rotates or rolls, and takes every event that is sent.

mod handlers;
mod state;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;

use self::state::{By, Standing, State, masked};
use crate::fault::{Faults, Operation};
use crate::life::millis;
use crate::server::Server;

/// The twin's name, as its header says it.
pub const NAME: &str = "posthog";

/// The id of its one project.
pub const PROJECT: &str = "7";

/// How a twin behaves where nothing goes wrong.
#[derive(Clone, Debug)]
pub struct TwinOptions {
    /// The port, or 0 for a free one.
    pub port: u16,
    /// The personal key, or none for a random one.
    pub personal_key: Option<String>,
    /// How many keys one page of a list holds.
    pub page: usize,
    /// The most project secret keys that the project may have.
    pub most_keys: usize,
    /// How long a new key is refused.
    pub propagation: Duration,
    /// How long a revoked key is accepted.
    pub revocation: Duration,
    /// How far behind every list is, and the tokens of the project.
    pub list_lag: Duration,
    /// Whether the plan of the organisation has no activity log.
    pub no_activity_log: bool,
}

impl Default for TwinOptions {
    fn default() -> Self {
        Self {
            port: 0,
            personal_key: None,
            page: 100,
            most_keys: 10,
            propagation: Duration::ZERO,
            revocation: Duration::ZERO,
            list_lag: Duration::ZERO,
            no_activity_log: false,
        }
    }
}

/// A running twin. It ends when it is dropped.
pub struct Twin {
    server: Server,
    shared: Shared,
    personal_key: String,
}

/// A project secret key as the twin knows it, without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyState {
    /// Its id.
    pub id: String,
    /// Its label.
    pub label: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Whether it was not deleted.
    pub live: bool,
}

/// A key that was made by hand, with its value.
pub struct HandMade {
    /// Its id.
    pub id: String,
    /// Its value.
    pub value: String,
}

impl Twin {
    /// Starts a twin on a thread of its own.
    ///
    /// # Errors
    /// Where the port is taken.
    pub fn start(options: TwinOptions) -> io::Result<Self> {
        let port = options.port;
        let shared = Shared::new(options);
        let personal_key = shared.state().personal.clone();
        Ok(Self { server: Server::start(port, shared.router())?, shared, personal_key })
    }

    /// Returns where it listens, for the API and for ingestion.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Returns its one personal key.
    pub fn personal_key(&self) -> &str {
        &self.personal_key
    }

    /// Returns its script of faults, and its recorder.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Returns every project secret key that there ever was, in order.
    pub fn keys(&self) -> Vec<KeyState> {
        let state = self.shared.state();
        let mut keys: Vec<_> = state.keys.values().collect();
        keys.sort_by_key(|key| key.life.order);
        keys.into_iter()
            .map(|key| KeyState {
                id: key.id.clone(),
                label: key.label.clone(),
                scopes: key.scopes.clone(),
                live: key.life.ended.is_none(),
            })
            .collect()
    }

    /// Returns the ids of the live keys with this label.
    pub fn live(&self, label: &str) -> Vec<String> {
        let keys = self.keys().into_iter().filter(|key| key.live && key.label == label);
        keys.map(|key| key.id).collect()
    }

    /// Returns whether a value opens anything at this moment.
    pub fn accepts(&self, value: &str) -> bool {
        let state = self.shared.state();
        state.is_project_token(value) || !matches!(state.standing(value), Standing::Nothing)
    }

    /// Makes a project secret key, as a person would in the settings of the project.
    pub fn make_key(&self, label: &str, scopes: &[&str]) -> HandMade {
        let mut state = self.shared.state();
        let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        let id = state.add(label, scopes, By::Person);
        HandMade { value: state.keys[&id].value.clone(), id }
    }

    /// Returns the project token that is in use.
    pub fn project_token(&self) -> String {
        self.shared.state().project_tokens.last().map(|token| token.value.clone()).expect("one is")
    }

    /// Resets the project token, as a person would, and returns the new one.
    pub fn reset_token(&self) -> String {
        let mut state = self.shared.state();
        state.reset_token();
        state.note_of_token("api_token", "", "");
        drop(state);
        self.project_token()
    }

    /// Returns the primary secret token of the team.
    pub fn secret_token(&self) -> String {
        self.shared.state().primary.value.clone()
    }

    /// Returns the backup of the secret token, where there is one.
    pub fn backup_token(&self) -> Option<String> {
        self.shared.state().backup.as_ref().map(|token| token.value.clone())
    }

    /// Rotates the secret token of the team, as a person would, and returns the new one.
    pub fn rotate_secret_token(&self) -> String {
        let mut state = self.shared.state();
        let before = masked(&state.primary.value);
        state.rotate_secret_token();
        let after = masked(&state.primary.value);
        state.note_of_token("secret_api_token", &before, &after);
        drop(state);
        self.secret_token()
    }

    /// Deletes the backup of the secret token, as a person would.
    pub fn delete_backup(&self) {
        let mut state = self.shared.state();
        state.delete_backup();
        state.note_of_token("secret_api_token_backup", "", "");
    }

    /// Leaves the personal key only these scopes.
    pub fn restrict(&self, scopes: &[&str]) {
        self.shared.state().scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
    }

    /// Adds an event at a time in the past.
    pub fn add_event(&self, event: &str, ago: Duration) {
        let at = crate::now() - millis(ago);
        self.shared.state().events.push((event.into(), at));
    }

    /// Ends a key as the provider does by itself, where it finds one in public.
    pub fn end_by_itself(&self, id: &str) {
        if let Some(key) = self.shared.state().live(id) {
            key.life.end();
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

const PROJECT_PATH: &str = "/api/projects/{project}/";
const TEAM: &str = "/api/environments/{project}/";
const RESET: &str = "/api/environments/{project}/reset_token/";
const ROTATE: &str = "/api/environments/{project}/rotate_secret_token/";
const DELETE_BACKUP: &str = "/api/environments/{project}/delete_secret_token_backup/";
const KEYS: &str = "/api/projects/{project}/project_secret_api_keys/";
const KEY: &str = "/api/projects/{project}/project_secret_api_keys/{key}/";
const ROLL: &str = "/api/projects/{project}/project_secret_api_keys/{key}/roll/";
const ACTIVITY: &str = "/api/projects/{project}/activity_log/";
const CURRENT: &str = "/api/personal_api_keys/@current/";
const EVALUATION: &str = "/api/projects/{project}/feature_flags/local_evaluation/";
const QUERY: &str = "/api/projects/{project}/query/";
const FLAGS: &str = "/flags";
const CAPTURE: &str = "/i/v0/e/";

/// The operations that a script can name.
pub const OPERATIONS: &[Operation] = &[
    Operation { name: "get_project", method: "GET", path: PROJECT_PATH },
    Operation { name: "get_team", method: "GET", path: TEAM },
    Operation { name: "reset_token", method: "PATCH", path: RESET },
    Operation { name: "rotate_secret_token", method: "PATCH", path: ROTATE },
    Operation { name: "delete_secret_token_backup", method: "PATCH", path: DELETE_BACKUP },
    Operation { name: "list_keys", method: "GET", path: KEYS },
    Operation { name: "create_key", method: "POST", path: KEYS },
    Operation { name: "get_key", method: "GET", path: KEY },
    Operation { name: "delete_key", method: "DELETE", path: KEY },
    Operation { name: "roll_key", method: "POST", path: ROLL },
    Operation { name: "list_activity", method: "GET", path: ACTIVITY },
    Operation { name: "get_current", method: "GET", path: CURRENT },
    Operation { name: "local_evaluation", method: "GET", path: EVALUATION },
    Operation { name: "query", method: "POST", path: QUERY },
    Operation { name: "flags", method: "POST", path: FLAGS },
    Operation { name: "capture", method: "POST", path: CAPTURE },
];
