//! The twin of GitHub's API for Actions: the secrets of one repository, of its environments and of its organisation, sealed boxes
//! opened.

mod handlers;

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use axum::Router;
use crypto_box::SecretKey;
use crypto_box::aead::OsRng;

use crate::fault::{Faults, Operation};
use crate::life::millis;
use crate::server::Server;
use crate::{now, random};

/// The twin's name, as its header says it.
pub const NAME: &str = "github";

/// The one repository that the twin has.
pub const REPOSITORY: &str = "acme/shop";

/// The id of that repository.
const ID: u64 = 4711;

/// The one environment that it has.
pub const ENVIRONMENT: &str = "production";

/// How a twin behaves where nothing goes wrong.
#[derive(Clone, Debug, Default)]
pub struct TwinOptions {
    /// The port, or 0 for a free one.
    pub port: u16,
    /// How long after a write its time shows.
    pub shows_after: Duration,
    /// Whether the token may only read.
    pub read_only: bool,
    /// Whether the token has no request left for half an hour.
    pub used_up: bool,
}

/// A running twin. It ends when it is dropped.
pub struct Twin {
    server: Server,
    shared: Shared,
    token: String,
}

impl Twin {
    /// Starts a twin on a thread of its own.
    ///
    /// # Errors
    /// Where the port is taken.
    pub fn start(options: TwinOptions) -> io::Result<Self> {
        let port = options.port;
        let state = State::new(options);
        let token = state.token.clone();
        let shared = Shared::new(state, Faults::new(NAME, OPERATIONS, handlers::error_body));
        let router: Router = shared.faults.clone().wrap(handlers::routes(shared.clone()));
        Ok(Self { server: Server::start(port, router)?, shared, token })
    }

    /// Returns where its API begins.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Returns the one token that it takes.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Returns its script of faults, and its recorder.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Returns what the next run would be given under a name of the repository.
    pub fn value(&self, name: &str) -> Option<Vec<u8>> {
        self.value_in(&Level::Repository, name)
    }

    /// Returns what the next run in the environment would be given under a name of its own.
    pub fn value_in_environment(&self, name: &str) -> Option<Vec<u8>> {
        self.value_in(&Level::Environment, name)
    }

    /// Returns what the organisation keeps under a name.
    pub fn value_of_organisation(&self, name: &str) -> Option<Vec<u8>> {
        self.value_in(&Level::Organisation, name)
    }

    fn value_in(&self, level: &Level, name: &str) -> Option<Vec<u8>> {
        let state = self.shared.state();
        state.secrets.get(&(*level, name.to_owned())).map(|secret| secret.value.clone())
    }

    /// Returns how often a name of the repository was written.
    pub fn writes(&self, name: &str) -> u32 {
        let state = self.shared.state();
        state.secrets.get(&(Level::Repository, name.to_owned())).map_or(0, |secret| secret.writes)
    }

    /// Writes a secret of the repository, as somebody would in the settings.
    pub fn set_by_hand(&self, name: &str, value: &[u8]) {
        self.shared.state().put(Level::Repository, name, value.to_vec(), None);
    }

    /// Writes a secret of the environment, as somebody would in the settings.
    pub fn set_by_hand_in_environment(&self, name: &str, value: &[u8]) {
        self.shared.state().put(Level::Environment, name, value.to_vec(), None);
    }

    /// Shares a secret of the organisation with the repository.
    pub fn share_of_organisation(&self, name: &str) {
        self.shared.state().put(Level::Organisation, name, b"its".to_vec(), Some(Visibility::All));
    }

    /// Makes a new key pair: boxes for the former one are refused from now on.
    pub fn change_key(&self) {
        let mut state = self.shared.state();
        (state.key, state.key_id) = (SecretKey::generate(&mut OsRng), key_id());
    }
}

/// Where a secret belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Repository,
    Environment,
    Organisation,
}

/// Which repositories see a secret of their organisation.
#[derive(Clone, Copy)]
enum Visibility {
    All,
    Private,
}

impl Visibility {
    fn word(&self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Private => "private",
        }
    }
}

/// Everything, behind the lock of the twin.
struct State {
    options: TwinOptions,
    token: String,
    key: SecretKey,
    key_id: String,
    secrets: BTreeMap<(Level, String), Secret>,
}

struct Secret {
    value: Vec<u8>,
    visibility: Option<Visibility>,
    created: i64,
    /// When it was written, in order.
    updated: Vec<i64>,
    writes: u32,
}

impl State {
    fn new(options: TwinOptions) -> Self {
        Self {
            options,
            token: format!("github_pat_{}", random(b"0123456789abcdefghijklmnopqrstuv", 40)),
            key: SecretKey::generate(&mut OsRng),
            key_id: key_id(),
            secrets: BTreeMap::new(),
        }
    }

    /// Writes a secret; returns whether it is new.
    fn put(
        &mut self,
        level: Level,
        name: &str,
        value: Vec<u8>,
        visibility: Option<Visibility>,
    ) -> bool {
        let is_new = !self.secrets.contains_key(&(level, name.to_owned()));
        let secret = self.secrets.entry((level, name.to_owned())).or_insert_with(|| Secret {
            value: Vec::new(),
            visibility: None,
            created: now(),
            updated: Vec::new(),
            writes: 0,
        });
        (secret.value, secret.visibility) = (value, visibility);
        secret.updated.push(now());
        secret.writes += 1;
        is_new
    }

    /// The secrets of a place, by name.
    fn secrets_of(&self, level: Level) -> impl Iterator<Item = (&String, &Secret)> {
        let secrets = self.secrets.iter().filter(move |((of, _), _)| *of == level);
        secrets.map(|((_, name), secret)| (name, secret))
    }

    /// When a secret was written last, as far as that shows by now, in whole seconds.
    fn updated(&self, secret: &Secret) -> i64 {
        let shown = now() - millis(self.options.shows_after);
        let updated = secret.updated.iter().rfind(|at| **at <= shown).unwrap_or(&secret.created);
        updated - updated.rem_euclid(1_000)
    }
}

type Shared = crate::shared::Shared<State>;

fn key_id() -> String {
    random(b"0123456789", 18)
}

const REPO: &str = "/repos/{owner}/{name}";
const KEY: &str = "/repos/{owner}/{name}/actions/secrets/public-key";
const SECRETS: &str = "/repos/{owner}/{name}/actions/secrets";
const SECRET: &str = "/repos/{owner}/{name}/actions/secrets/{secret}";
const OF_ORGANISATION: &str = "/repos/{owner}/{name}/actions/organization-secrets";
const ENVIRONMENTS: &str = "/repos/{owner}/{name}/environments";
const ENVIRONMENT_KEY: &str = "/repos/{owner}/{name}/environments/{environment}/secrets/public-key";
const ENVIRONMENT_SECRETS: &str = "/repos/{owner}/{name}/environments/{environment}/secrets";
const ENVIRONMENT_SECRET: &str =
    "/repos/{owner}/{name}/environments/{environment}/secrets/{secret}";
const ORGANISATION_KEY: &str = "/orgs/{owner}/actions/secrets/public-key";
const ORGANISATION_SECRETS: &str = "/orgs/{owner}/actions/secrets";
const ORGANISATION_SECRET: &str = "/orgs/{owner}/actions/secrets/{secret}";

/// The operations that a script can name.
pub const OPERATIONS: &[Operation] = &[
    Operation { name: "get_repository", method: "GET", path: REPO },
    Operation { name: "get_public_key", method: "GET", path: KEY },
    Operation { name: "list_secrets", method: "GET", path: SECRETS },
    Operation { name: "get_secret", method: "GET", path: SECRET },
    Operation { name: "put_secret", method: "PUT", path: SECRET },
    Operation { name: "delete_secret", method: "DELETE", path: SECRET },
    Operation { name: "list_organization_secrets", method: "GET", path: OF_ORGANISATION },
    Operation { name: "list_environments", method: "GET", path: ENVIRONMENTS },
    Operation { name: "get_environment_key", method: "GET", path: ENVIRONMENT_KEY },
    Operation { name: "list_environment_secrets", method: "GET", path: ENVIRONMENT_SECRETS },
    Operation { name: "get_environment_secret", method: "GET", path: ENVIRONMENT_SECRET },
    Operation { name: "put_environment_secret", method: "PUT", path: ENVIRONMENT_SECRET },
    Operation { name: "delete_environment_secret", method: "DELETE", path: ENVIRONMENT_SECRET },
    Operation { name: "get_key_of_organization", method: "GET", path: ORGANISATION_KEY },
    Operation { name: "list_secrets_of_organization", method: "GET", path: ORGANISATION_SECRETS },
    Operation { name: "get_secret_of_organization", method: "GET", path: ORGANISATION_SECRET },
    Operation { name: "put_secret_of_organization", method: "PUT", path: ORGANISATION_SECRET },
    Operation {
        name: "delete_secret_of_organization",
        method: "DELETE",
        path: ORGANISATION_SECRET,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    const KEY_OF_LIBSODIUM: &str =
        "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20";
    const BOX_OF_LIBSODIUM: &str = "07f7d5ef46664d471da3b931888f282c42c64bf40f3c987b57e204c7f63eff0c0386d2\
        25bcf1da680751196b9ba70aafd51114f5a4810f36285183ca68ee208d7dc643e2c73e\
        c0d9a72660b279";

    /// What libsodium made, by PyNaCl: a key pair, a text, and its sealed box.
    #[test]
    fn a_box_that_libsodium_sealed_is_opened() {
        let bytes = |hex: &str| -> Vec<u8> {
            let digits = hex.as_bytes().chunks(2);
            let byte =
                |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
            digits.map(byte).collect()
        };
        let key: [u8; 32] = bytes(KEY_OF_LIBSODIUM).try_into().unwrap();
        let opened = SecretKey::from(key).unseal(&bytes(BOX_OF_LIBSODIUM)).unwrap();
        assert_eq!(opened, b"a value that libsodium sealed");
    }
}
