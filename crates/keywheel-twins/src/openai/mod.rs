//! The twin of OpenAI's API: service accounts, project keys, usage, and the two endpoints that a small backend calls.

mod handlers;
mod state;

use std::io;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;

use self::state::{Actor, Owner, Standing, State};
use crate::fault::{Faults, NoSuchOperation, Operation, Script, Seen};
use crate::life::millis;
use crate::server::{Server, serve};

/// The twin's name, as its header says it.
pub const NAME: &str = "openai";

/// How a twin behaves where nothing goes wrong.
#[derive(Clone, Debug, Default)]
pub struct TwinOptions {
    /// The port, or 0 for a free one.
    pub port: u16,
    /// The admin key, or none for a random one.
    pub admin_key: Option<String>,
    /// The id of its one project, or none for a random one.
    pub project: Option<String>,
    /// Whether a key of a service account cannot be deleted alone (400), as the specification of August 2026 says.
    pub keeps_keys_of_accounts: bool,
    /// The most service accounts that the project may have.
    pub most_accounts: Option<usize>,
    /// Whether the organisation keeps no audit log.
    pub audit_log_is_off: bool,
    /// How long a new key is refused.
    pub propagation: Duration,
    /// How long a revoked key is accepted.
    pub revocation: Duration,
    /// How far behind every list is.
    pub list_lag: Duration,
    /// How long after a use `last_used_at` and the usage report show it.
    pub usage_lag: Duration,
}

/// A running twin. It ends when it is dropped.
pub struct Twin {
    server: Server,
    shared: Shared,
    admin_key: String,
    project: String,
}

/// A key as the twin knows it, without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyState {
    /// Its id.
    pub id: String,
    /// The id of the service account or user that owns it.
    pub owner: String,
    /// The name of the service account that owns it; the key's own name where a user does.
    pub label: String,
    /// Whether it was neither deleted nor ended by itself.
    pub live: bool,
    /// How often it was used.
    pub uses: usize,
}

/// A key that was made by hand, with its value.
pub struct HandMade {
    /// Its id.
    pub id: String,
    /// The id of its owner.
    pub owner: String,
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
        let shared = Shared::of(options);
        let (admin_key, project) = {
            let state = shared.state();
            (state.admin.value.clone(), state.project.id.clone())
        };
        Ok(Self { server: Server::start(port, shared.router())?, shared, admin_key, project })
    }

    /// Returns where its API begins.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.server.address())
    }

    /// Returns the value of its one admin key.
    pub fn admin_key(&self) -> &str {
        &self.admin_key
    }

    /// Returns the id of its one project.
    pub fn project(&self) -> &str {
        &self.project
    }

    /// Returns its script of faults, and its recorder.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Replaces the script of faults.
    ///
    /// # Errors
    /// Where a rule names an operation that the twin does not have.
    pub fn set_script(&self, script: Script) -> Result<(), NoSuchOperation> {
        self.shared.faults.set(script)
    }

    /// Returns the faults of the script that have not happened yet.
    pub fn unfired(&self) -> Script {
        self.shared.faults.unfired()
    }

    /// Returns every request since the start, without anything that could hold a value.
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.faults.seen()
    }

    /// Returns every key that there ever was, in order.
    pub fn keys(&self) -> Vec<KeyState> {
        let state = self.shared.state();
        let mut keys: Vec<_> = state.keys.values().collect();
        keys.sort_by_key(|key| key.life.order);
        keys.into_iter().map(|key| key_state(&state, key)).collect()
    }

    /// Returns the ids of the live keys whose account, or whose own name, is this label.
    pub fn live(&self, label: &str) -> Vec<String> {
        self.keys()
            .into_iter()
            .filter(|key| key.live && key.label == label)
            .map(|key| key.id)
            .collect()
    }

    /// Returns the names of the service accounts that exist.
    pub fn accounts(&self) -> Vec<String> {
        self.shared
            .state()
            .accounts_at(i64::MAX)
            .into_iter()
            .map(|account| account.name.clone())
            .collect()
    }

    /// Returns how often a key was used.
    pub fn uses(&self, id: &str) -> usize {
        self.shared.state().keys.get(id).map_or(0, |key| key.uses.len())
    }

    /// Returns whether a value opens anything at this moment.
    pub fn accepts(&self, value: &str) -> bool {
        !matches!(self.shared.state().standing(value), Standing::Nothing)
    }

    /// Makes a service account and a key, as a person would in the dashboard.
    pub fn make_key(&self, account: &str) -> HandMade {
        let owner = self.shared.as_actor(Actor::Person, |state| state.add_account(account));
        self.make_key_for(&owner)
    }

    /// Makes one more key for a service account.
    pub fn make_key_for(&self, account: &str) -> HandMade {
        self.make(Owner::Account(account.into()), account, "by hand")
    }

    /// Makes a key that a person owns.
    pub fn make_user_key(&self, name: &str) -> HandMade {
        self.make(Owner::User("user-1".into()), "user-1", name)
    }

    /// Takes access to the project away from the person who owns keys; the keys go on working.
    pub fn remove_person(&self) {
        self.shared.state().person_has_access = false;
    }

    /// Ends a key as the provider does by itself, where it finds one in public.
    pub fn end_by_itself(&self, id: &str) {
        self.shared.as_actor(Actor::Nobody, |state| state.end_key(id));
    }

    /// Gives a service account another name, as a person would in the dashboard.
    pub fn rename_account(&self, id: &str, name: &str) {
        if let Some(account) = self.shared.state().accounts.get_mut(id) {
            account.name = name.into();
        }
    }

    /// Leaves a key only these scopes.
    pub fn restrict(&self, id: &str, scopes: &[&str]) {
        if let Some(key) = self.shared.state().keys.get_mut(id) {
            key.scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        }
    }

    /// Adds a use of a key at a time in the past.
    pub fn add_use(&self, id: &str, ago: Duration) {
        if let Some(key) = self.shared.state().keys.get_mut(id) {
            key.uses.push(crate::now() - millis(ago));
            key.uses.sort_unstable();
        }
    }

    /// Archives the project, which ends its service accounts.
    pub fn archive_project(&self) {
        let mut state = self.shared.state();
        state.project.archived = Some(crate::now());
        let accounts: Vec<_> = state.accounts.keys().cloned().collect();
        accounts.iter().for_each(|id| state.end_account(id));
    }

    /// Ends the twin and every connection to it.
    pub fn shutdown(self) {
        drop(self);
    }

    fn make(&self, owner: Owner, owner_id: &str, name: &str) -> HandMade {
        self.shared.as_actor(Actor::Person, |state| {
            let id = state.add_key(owner, name, None, Vec::new());
            HandMade { owner: owner_id.into(), value: state.keys[&id].value.clone(), id }
        })
    }
}

/// Serves a twin on a listener until the future is dropped: the long-lived form.
pub async fn run(options: TwinOptions, listener: TcpListener) {
    serve(listener, Shared::of(options).router()).await;
}

type Shared = crate::shared::Shared<State>;

impl Shared {
    fn of(options: TwinOptions) -> Self {
        Self::new(State::new(options), Faults::new(NAME, OPERATIONS, handlers::error_body))
    }

    fn router(&self) -> Router {
        self.faults.clone().wrap(handlers::routes(self.clone()))
    }

    /// Changes something in somebody's name.
    fn as_actor<T>(&self, actor: Actor, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        state.actor = actor;
        let changed = change(&mut state);
        state.actor = Actor::AdminKey;
        changed
    }
}

fn key_state(state: &State, key: &state::Key) -> KeyState {
    let (owner, label) = match &key.owner {
        Owner::Account(id) => (id, state.accounts.get(id).map(|account| account.name.clone())),
        Owner::User(id) => (id, None),
    };
    KeyState {
        id: key.id.clone(),
        owner: owner.clone(),
        label: label.unwrap_or_else(|| key.name.clone()),
        live: key.life.ended.is_none() && key.expires.is_none_or(|ends| crate::now() < ends),
        uses: key.uses.len(),
    }
}

const PROJECTS: &str = "/v1/organization/projects";
const PROJECT: &str = "/v1/organization/projects/{project}";
const ACCOUNTS: &str = "/v1/organization/projects/{project}/service_accounts";
const ACCOUNT: &str = "/v1/organization/projects/{project}/service_accounts/{account}";
const ACCOUNT_KEYS: &str =
    "/v1/organization/projects/{project}/service_accounts/{account}/api_keys";
const KEYS: &str = "/v1/organization/projects/{project}/api_keys";
const KEY: &str = "/v1/organization/projects/{project}/api_keys/{key}";
const ADMIN_KEYS: &str = "/v1/organization/admin_api_keys";
const USAGE: &str = "/v1/organization/usage/completions";
const AUDIT_LOGS: &str = "/v1/organization/audit_logs";
const MODELS: &str = "/v1/models";
const CHAT: &str = "/v1/chat/completions";

/// The operations that a script can name.
pub const OPERATIONS: &[Operation] = &[
    Operation { name: "list_projects", method: "GET", path: PROJECTS },
    Operation { name: "get_project", method: "GET", path: PROJECT },
    Operation { name: "create_service_account", method: "POST", path: ACCOUNTS },
    Operation { name: "list_service_accounts", method: "GET", path: ACCOUNTS },
    Operation { name: "get_service_account", method: "GET", path: ACCOUNT },
    Operation { name: "delete_service_account", method: "DELETE", path: ACCOUNT },
    Operation { name: "create_api_key", method: "POST", path: ACCOUNT_KEYS },
    Operation { name: "list_api_keys", method: "GET", path: KEYS },
    Operation { name: "get_api_key", method: "GET", path: KEY },
    Operation { name: "delete_api_key", method: "DELETE", path: KEY },
    Operation { name: "list_admin_api_keys", method: "GET", path: ADMIN_KEYS },
    Operation { name: "usage_completions", method: "GET", path: USAGE },
    Operation { name: "list_audit_logs", method: "GET", path: AUDIT_LOGS },
    Operation { name: "list_models", method: "GET", path: MODELS },
    Operation { name: "create_chat_completion", method: "POST", path: CHAT },
];
