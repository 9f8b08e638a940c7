//! The twin of Google Secret Manager's REST API, version 1: secrets, their versions, aliases, annotations and permissions.
//!
//! It is as strict as the service: etags and checksums are compared, a destroyed version stays destroyed, the names in its answers
//! have the number of the project, and `latest` is the version that was made last, whatever its state.
//!
//! It is also who gives tokens for that: the metadata server of a machine, and the exchange of a token of somebody else for one of a
//! federated identity and then of a service account.

mod handlers;
mod identity;
mod state;

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use self::state::State;
pub use self::state::VersionState;
use crate::fault::{Faults, Operation};
use crate::server::Server;

/// The twin's name, as its header says it.
pub const NAME: &str = "google-secret-manager";

/// The project that it has.
pub const PROJECT: &str = "shop-production";

/// The service account that may do everything.
pub const ACCOUNT: &str = "keywheel@shop-production.iam.gserviceaccount.com";

/// The provider of a pool whose tokens are exchanged.
pub const AUDIENCE: &str = "//iam.googleapis.com/projects/481516234200/locations/global/workloadIdentityPools/ci/providers/cluster";

/// How a twin behaves where nothing goes wrong.
#[derive(Clone, Debug, Default)]
pub struct TwinOptions {
    /// The port, or 0 for a free one.
    pub port: u16,
    /// How far behind every list is.
    pub list_lag: Duration,
    /// Whether an etag that does not match is answered with 409 `ABORTED`, and not with 400 `FAILED_PRECONDITION`.
    pub aborts: bool,
    /// For how many seconds a token is said to be good, if not for an hour.
    pub lasts: Option<u64>,
    /// Whether the metadata server does not say what it is.
    pub has_no_flavor: bool,
    /// Whether a federated identity may do everything too, and not only become a service account.
    pub takes_federated: bool,
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
        let port = options.port;
        let faults = Faults::new(NAME, OPERATIONS, handlers::error_body);
        let shared = Shared::new(State::new(options), faults);
        let router = shared.faults.clone().wrap(handlers::routes(shared.clone()));
        Ok(Self { server: Server::start(port, router)?, shared })
    }

    /// Returns where its API begins.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Returns the access token that it takes.
    pub fn token(&self) -> String {
        self.shared.state().token.clone()
    }

    /// Returns the token of somebody else that it exchanges.
    pub fn subject(&self) -> String {
        self.shared.state().subject.clone()
    }

    /// Returns how often a token was given.
    pub fn sign_ins(&self) -> usize {
        self.shared.state().sign_ins
    }

    /// Returns its script of faults, and its recorder.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Makes a secret without a version.
    pub fn make_secret(&self, name: &str) {
        self.shared.state().make_secret(name);
    }

    /// Adds a version, as somebody else would, and returns its number.
    pub fn add_version(&self, name: &str, data: &[u8]) -> u64 {
        self.shared.state().secret_mut(name).add(data.to_vec())
    }

    /// Lets an alias name a version.
    pub fn set_alias(&self, name: &str, alias: &str, version: u64) {
        let mut state = self.shared.state();
        let secret = state.secret_mut(name);
        secret.aliases.insert(alias.into(), version);
        secret.touch();
    }

    /// Returns what the aliases name.
    pub fn aliases(&self, name: &str) -> BTreeMap<String, u64> {
        self.shared.state().secret_mut(name).aliases.clone()
    }

    /// Sets labels, as other programs do.
    pub fn set_label(&self, name: &str, key: &str, value: &str) {
        self.shared.state().secret_mut(name).labels.insert(key.into(), value.into());
    }

    /// Sets an annotation.
    pub fn annotate(&self, name: &str, key: &str, value: &str) {
        self.shared.state().secret_mut(name).annotations.insert(key.into(), value.into());
    }

    /// Returns the annotations.
    pub fn annotations(&self, name: &str) -> BTreeMap<String, String> {
        self.shared.state().secret_mut(name).annotations.clone()
    }

    /// Sets the state of a version.
    pub fn set_state(&self, name: &str, version: u64, state: VersionState) {
        self.shared.state().secret_mut(name).set_state(version, state);
    }

    /// Lets a version be as old as this.
    pub fn age(&self, name: &str, version: u64, by: Duration) {
        let mut state = self.shared.state();
        state.secret_mut(name).version_mut(version).life.created -= crate::life::millis(by);
    }

    /// Lets what a version holds come back damaged, with the checksum of what it held.
    pub fn damage(&self, name: &str, version: u64) {
        self.shared.state().secret_mut(name).version_mut(version).data.push(b'!');
    }

    /// Returns the number, state and contents of each version, in the order in which they were made.
    pub fn versions(&self, name: &str) -> Vec<(u64, VersionState, Vec<u8>)> {
        let mut state = self.shared.state();
        let versions = &state.secret_mut(name).versions;
        versions.iter().map(|(number, v)| (*number, v.state, v.data.clone())).collect()
    }

    /// Returns what readers of `latest`, of an alias or of a number are given.
    pub fn content(&self, name: &str, version: &str) -> Option<Vec<u8>> {
        let mut state = self.shared.state();
        let secret = state.secret_mut(name);
        let version = &secret.versions[&secret.number(version)?];
        (version.state == VersionState::Enabled).then(|| version.data.clone())
    }

    /// Takes a permission away: `secretmanager.versions.add`.
    pub fn deny(&self, permission: &str) {
        self.shared.state().denied.insert(permission.into());
    }
}

type Shared = crate::shared::Shared<State>;

const SECRETS: &str = "/v1/projects/{project}/secrets";
const SECRET: &str = "/v1/projects/{project}/secrets/{secret}";
const VERSIONS: &str = "/v1/projects/{project}/secrets/{secret}/versions";
const VERSION: &str = "/v1/projects/{project}/secrets/{secret}/versions/{version}";

const MACHINE: &str = "/computeMetadata/v1/instance/service-accounts/{account}/token";
const SUBJECT: &str = "/subject";
const EXCHANGE: &str = "/v1/token";
const IMPERSONATE: &str = "/v1/projects/-/serviceAccounts/{account}";

/// The operations that a script can name. What is called by a word after a colon shares an operation with its neighbours.
pub const OPERATIONS: &[Operation] = &[
    Operation { name: "create_secret", method: "POST", path: SECRETS },
    Operation { name: "get_secret", method: "GET", path: SECRET },
    Operation { name: "update_secret", method: "PATCH", path: SECRET },
    Operation { name: "add_version", method: "POST", path: SECRET },
    Operation { name: "list_versions", method: "GET", path: VERSIONS },
    Operation { name: "access_version", method: "GET", path: VERSION },
    Operation { name: "change_version", method: "POST", path: VERSION },
    Operation { name: "get_token_of_machine", method: "GET", path: MACHINE },
    Operation { name: "get_subject_token", method: "GET", path: SUBJECT },
    Operation { name: "exchange_token", method: "POST", path: EXCHANGE },
    Operation { name: "generate_access_token", method: "POST", path: IMPERSONATE },
];
