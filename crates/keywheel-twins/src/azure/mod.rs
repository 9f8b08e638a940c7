//! The twin of the secrets of an Azure Key Vault, of the sign-in that gives tokens for it, and of the address at which a machine or an
//! app of Azure is given one.
//!
//! It is as strict as the service: a request without a token is answered with a challenge, each put makes a version, the newest
//! version is what readers get, disabled or not, a list is in no order of time, and the name of a deleted secret stays taken.

mod handlers;
mod identity;
mod state;

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use self::state::State;
use crate::fault::{Faults, Operation};
use crate::server::Server;

/// The twin's name, as its header says it.
pub const NAME: &str = "azure-key-vault";

/// The tenant that the vault belongs to.
pub const TENANT: &str = "7d6a2c1e-5b0f-4b53-9c55-0f1e2d3c4b5a";

/// The application that may sign in.
pub const CLIENT: &str = "c0ffee00-1111-4222-8333-444455556666";

/// How a twin behaves where nothing goes wrong.
#[derive(Clone, Debug, Default)]
pub struct TwinOptions {
    /// The port, or 0 for a free one.
    pub port: u16,
    /// For how many seconds a token is said to be good, if not for an hour.
    pub lasts: Option<u64>,
}

/// A version as the twin knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionState {
    /// Its id.
    pub id: String,
    /// What it holds.
    pub value: String,
    /// Whether it can be read.
    pub enabled: bool,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// What kind of contents it is said to have.
    pub content_type: Option<String>,
    /// When it is said to end.
    pub expires: Option<i64>,
}

/// A running twin. It ends when it is dropped.
pub struct Twin {
    server: Server,
    shared: Shared,
}

impl Twin {
    /// Starts a twin on a thread of its own.
    ///
    /// # Errors
    /// Where the port is taken.
    pub fn start(options: TwinOptions) -> io::Result<Self> {
        let faults = Faults::new(NAME, OPERATIONS, handlers::error_body);
        let shared = Shared::new(State::new(options.lasts), faults);
        let router = shared.faults.clone().wrap(handlers::routes(shared.clone()));
        Ok(Self { server: Server::start(options.port, router)?, shared })
    }

    /// Returns the address of the vault, and of the sign-in.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Returns an access token that it takes.
    pub fn token(&self) -> String {
        self.shared.state().token.clone()
    }

    /// Returns the secret of the application.
    pub fn client_secret(&self) -> String {
        self.shared.state().client_secret.clone()
    }

    /// Returns the token of a cluster that the application trusts.
    pub fn federated(&self) -> String {
        self.shared.state().federated.clone()
    }

    /// Returns where a machine is given a token.
    pub fn instance(&self) -> String {
        format!("{}{INSTANCE}", self.url())
    }

    /// Returns where an app is given a token, and the secret by which it is known there.
    pub fn app(&self) -> (String, String) {
        (format!("{}{APP}", self.url()), self.shared.state().app_secret.clone())
    }

    /// Returns how often somebody has signed in.
    pub fn sign_ins(&self) -> usize {
        self.shared.state().sign_ins
    }

    /// Returns its script of faults, and its recorder.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Puts a version, as somebody else would, and returns its id.
    pub fn put(&self, name: &str, value: &str, tags: &[(&str, &str)]) -> String {
        let tags = tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        self.shared.state().put(name, value, tags.collect())
    }

    /// Says of the newest version what kind of contents it has, and when it ends.
    pub fn describe(&self, name: &str, content_type: &str, expires: i64) {
        let mut state = self.shared.state();
        let version = state.newest_mut(name).expect("a version was put");
        (version.content_type, version.expires) = (Some(content_type.into()), Some(expires));
    }

    /// Switches a version on or off.
    pub fn enable(&self, name: &str, id: &str, enabled: bool) {
        let mut state = self.shared.state();
        state.version_mut(name, id).expect("the version was put").enabled = enabled;
    }

    /// Says that a certificate of the vault owns the secret.
    pub fn manage(&self, name: &str) {
        self.shared.state().newest_mut(name).expect("a version was put").managed = true;
    }

    /// Deletes a secret, so that it can be recovered and its name stays taken.
    pub fn delete(&self, name: &str) {
        self.shared.state().delete(name);
    }

    /// Deletes a secret for good, so that its name is free.
    pub fn purge(&self, name: &str) {
        self.shared.state().secrets.remove(name);
    }

    /// Lets every request be refused that has this method.
    pub fn deny(&self, method: &str) {
        self.shared.state().denied.insert(method.into());
    }

    /// Returns every version in the order in which they were put.
    pub fn versions(&self, name: &str) -> Vec<VersionState> {
        let state = self.shared.state();
        let versions = state.secrets.get(name).map(Vec::as_slice).unwrap_or_default().iter();
        let shown = |version: &state::Version| VersionState {
            id: version.id.clone(),
            value: version.value.clone(),
            enabled: version.enabled,
            tags: version.tags.clone(),
            content_type: version.content_type.clone(),
            expires: version.expires,
        };
        versions.map(shown).collect()
    }

    /// Returns what readers are given.
    pub fn content(&self, name: &str) -> Option<String> {
        let mut state = self.shared.state();
        state.newest_mut(name).filter(|version| version.enabled).map(|v| v.value.clone())
    }

    /// Lets every version be as old as this.
    pub fn age(&self, name: &str, by: Duration) {
        let mut state = self.shared.state();
        let versions = state.secrets.get_mut(name).into_iter().flatten();
        versions.for_each(|version| version.life.created -= crate::life::millis(by));
    }
}

type Shared = crate::shared::Shared<State>;

const SECRET: &str = "/secrets/{name}";
const NEWEST: &str = "/secrets/{name}/";
const VERSIONS: &str = "/secrets/{name}/versions";
const VERSION: &str = "/secrets/{name}/{version}";
const DELETED: &str = "/deletedsecrets/{name}";
const RECOVER: &str = "/deletedsecrets/{name}/recover";
const SIGN_IN_FACTS: &str = "/{tenant}/v2.0/.well-known/openid-configuration";
const SIGN_IN: &str = "/{tenant}/oauth2/v2.0/token";
const INSTANCE: &str = "/metadata/identity/oauth2/token";
const APP: &str = "/msi/token";

/// The operations that a script can name.
pub const OPERATIONS: &[Operation] = &[
    Operation { name: "set_secret", method: "PUT", path: SECRET },
    Operation { name: "get_secret", method: "GET", path: SECRET },
    Operation { name: "list_versions", method: "GET", path: VERSIONS },
    Operation { name: "get_version", method: "GET", path: VERSION },
    Operation { name: "update_version", method: "PATCH", path: VERSION },
    Operation { name: "delete_secret", method: "DELETE", path: SECRET },
    Operation { name: "get_deleted_secret", method: "GET", path: DELETED },
    Operation { name: "recover_deleted_secret", method: "POST", path: RECOVER },
    Operation { name: "purge_deleted_secret", method: "DELETE", path: DELETED },
    Operation { name: "get_sign_in_facts", method: "GET", path: SIGN_IN_FACTS },
    Operation { name: "sign_in", method: "POST", path: SIGN_IN },
    Operation { name: "get_token_of_machine", method: "GET", path: INSTANCE },
    Operation { name: "get_token_of_app", method: "GET", path: APP },
];
