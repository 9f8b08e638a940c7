//! The configuration of a database engine: a connection to PostgreSQL, and a role whose logins really end.
//!
//! Each login is a member of one owner role and works as that role, so that nothing belongs to a login and another one can go
//! on with what it made. Passwords reach the server as verifiers (SCRAM), so its log holds none. Ending a login switches it
//! off, ends its sessions, and drops it: the engine's own statements do neither of the first two, and fail to drop a login
//! that was granted anything.

use std::collections::BTreeSet;

use keywheel_core::secret::SecretValue;
use keywheel_core::time::Span;
use keywheel_driver::{CallError, Refusal, RefusalKind, SecretReference};
use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::{Body, Data, Place, Vault, check_path};
use crate::api::unsupported;
use crate::http::Effect;
use crate::issuer::vault_dynamic::Config;
use crate::{Context, reference, secret_json};

const TARGET: &str = "the database engine";

/// The characters of names that need no second look in statements, templates and connection strings.
const PLAIN: &[u8] = b"_-.";

/// The database, and who makes logins in it.
pub struct Database {
    /// The name of the connection at the engine.
    pub connection: String,
    /// `host:port`, as the engine reaches it.
    pub server: String,
    /// The database in which the logins work.
    pub database: String,
    /// How the connection is secured, in PostgreSQL's words.
    pub sslmode: String,
    /// The login that makes and ends others.
    pub admin: String,
    /// Where its password is read.
    pub password: SecretReference,
    /// The role without a login that owns everything.
    pub owner: String,
    /// How long a login lives that is not extended.
    pub default_ttl: Span,
    /// How long one lives at most.
    pub max_ttl: Span,
}

/// What is to be written.
pub struct Setup {
    vault: Vault,
    mount: String,
    role: String,
    database: Database,
    context: Context,
}

/// One thing to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The engine itself.
    Mount,
    /// The connection; whether one of its name is there.
    Connection {
        /// It is replaced.
        replaces: bool,
    },
    /// The role; whether one of its name is there.
    Role {
        /// It is replaced.
        replaces: bool,
    },
}

impl Setup {
    /// Prepares what the logins of a `vault_dynamic` issuer need, whose path is `MOUNT/creds/ROLE`.
    ///
    /// # Errors
    /// A refusal that names what is wrong with it.
    pub fn of(config: &Config, database: Database, context: &Context) -> Result<Self, Refusal> {
        check_path("path", &config.path)?;
        let (mount, role) = config.path.split_once("/creds/").ok_or_else(|| {
            unsupported("`path` is not that of a database role: `MOUNT/creds/ROLE`")
        })?;
        let Database { connection, database: name, admin, owner, server, sslmode, .. } = &database;
        for (what, text) in
            [("connection", connection), ("database", name), ("admin", admin), ("owner", owner)]
        {
            check_name(what, text)?;
        }
        let is_server = |b: u8| b.is_ascii_alphanumeric() || b"_-.:[]".contains(&b);
        if server.is_empty() || !server.bytes().all(is_server) {
            return Err(unsupported("the server is not `host:port`"));
        }
        check_name("sslmode", sslmode)?;
        if database.default_ttl > database.max_ttl || database.default_ttl.is_zero() {
            return Err(unsupported("a login cannot live longer than the longest life of one"));
        }
        let place = Place {
            address: &config.address,
            namespace: config.namespace.as_deref(),
            ca: config.ca.as_deref(),
            auth: &config.auth,
        };
        let vault = Vault::new(TARGET, &place, context)?;
        let (mount, role, context) = (mount.to_owned(), role.to_owned(), context.clone());
        Ok(Self { vault, mount, role, database, context })
    }

    /// Returns what is to be written, in order. Changes nothing.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn steps(&self) -> Result<Vec<Step>, CallError> {
        let Self { mount, role, .. } = self;
        #[derive(Deserialize)]
        struct Mount {
            #[serde(rename = "type")]
            kind: String,
        }
        let path = format!("sys/mounts/{mount}");
        let answer = self.vault.call(Method::GET, &path, Body::Empty).await?;
        let mounted = match answer.status.as_u16() {
            400 | 404 => None,
            _ => Some(answer.read::<Data<Mount>>(Effect::Reads)?.data),
        };
        match mounted {
            Some(mounted) if mounted.kind != "database" => {
                let message = format!("`{mount}` is an engine of another kind");
                return Err(Refusal::operator(RefusalKind::Conflict, message).into());
            }
            Some(_) => {}
            None => {
                return Ok(vec![
                    Step::Mount,
                    Step::Connection { replaces: false },
                    Step::Role { replaces: false },
                ]);
            }
        }
        let role = format!("{mount}/roles/{role}");
        let has_role = self.vault.find::<serde::de::IgnoredAny>(&role).await?.is_some();
        let has_connection = self.allowed().await?.is_some();
        Ok(vec![Step::Connection { replaces: has_connection }, Step::Role { replaces: has_role }])
    }

    /// Says what a step writes, for people who may want to do it themselves.
    pub fn in_words(&self, step: Step) -> String {
        let Self { mount, role, database, .. } = self;
        let said = |replaces| if replaces { " (in place of the present one)" } else { "" };
        match step {
            Step::Mount => format!("enable a database engine at `{mount}`"),
            Step::Connection { replaces } => format!(
                "write {mount}/config/{}{}\n  connection_url = {}\n  username = {}, password as read from {}\n  password_authentication = scram-sha-256",
                database.connection,
                said(replaces),
                self.url(),
                database.admin,
                database.password,
            ),
            Step::Role { replaces } => {
                let statements = |name: &str, statements: &[String]| {
                    let lines =
                        statements.iter().map(|one| format!("    {}", one.replace('\n', "\n    ")));
                    format!("\n  {name}:\n{}", lines.collect::<Vec<_>>().join("\n"))
                };
                format!(
                    "write {mount}/roles/{role}{}\n  default_ttl = {}, max_ttl = {}{}{}{}",
                    said(replaces),
                    database.default_ttl,
                    database.max_ttl,
                    statements("creation_statements", &self.creation()),
                    statements("renew_statements", &self.renewal()),
                    statements("revocation_statements", &self.revocation()),
                )
            }
        }
    }

    /// Writes one step. The engine logs in as the admin before it keeps a connection.
    ///
    /// # Errors
    /// Those of the server. A repeated step changes nothing more.
    pub async fn make(&self, step: Step) -> Result<(), CallError> {
        let Self { mount, role, database, .. } = self;
        match step {
            Step::Mount => {
                #[derive(Serialize)]
                struct Kind {
                    #[serde(rename = "type")]
                    kind: &'static str,
                }
                self.vault.change(&format!("sys/mounts/{mount}"), &Kind { kind: "database" }).await
            }
            Step::Connection { .. } => {
                let mut allowed_roles: BTreeSet<String> = self.allowed().await?.unwrap_or_default();
                allowed_roles.insert(role.clone());
                let password = self.password().await?;
                let connection = Connection {
                    plugin_name: "postgresql-database-plugin",
                    allowed_roles,
                    connection_url: self.url(),
                    username: &database.admin,
                    password: secret_json::text(&password)
                        .ok_or_else(|| unsupported("the password of the admin is not text"))?,
                    password_authentication: "scram-sha-256",
                    verify_connection: true,
                };
                let path = format!("{mount}/config/{}", database.connection);
                let connection = secret_json::write(&connection);
                let answer = self.vault.call(Method::POST, &path, Body::Json(&connection)).await?;
                if answer.status.as_u16() == 400 {
                    let message = "the engine cannot log in at the database as the admin, or the server does not take the connection string";
                    return Err(Refusal::operator(RefusalKind::Invalid, message).into());
                }
                answer.done()
            }
            Step::Role { .. } => {
                let seconds = |span: Span| format!("{}s", span.as_millis() / 1_000);
                let written = Role {
                    db_name: &database.connection,
                    creation_statements: self.creation(),
                    renew_statements: self.renewal(),
                    revocation_statements: self.revocation(),
                    default_ttl: seconds(database.default_ttl),
                    max_ttl: seconds(database.max_ttl),
                };
                self.vault.change(&format!("{mount}/roles/{role}"), &written).await
            }
        }
    }

    /// Gives the admin a password that nobody but the engine ever knows.
    ///
    /// # Errors
    /// Those of the server. One without an answer may have been done: the present password may not be the admin's any more.
    pub async fn rotate_root(&self) -> Result<(), CallError> {
        let path = format!("{}/rotate-root/{}", self.mount, self.database.connection);
        self.vault.call(Method::POST, &path, Body::Empty).await?.done()
    }

    /// Returns the roles for which a connection of this name serves; none where there is none.
    async fn allowed(&self) -> Result<Option<BTreeSet<String>>, CallError> {
        #[derive(Deserialize)]
        struct Present {
            #[serde(default)]
            allowed_roles: Vec<String>,
        }
        let path = format!("{}/config/{}", self.mount, self.database.connection);
        let present = self.vault.find::<Data<Present>>(&path).await?;
        Ok(present.map(|present| present.data.allowed_roles.into_iter().collect()))
    }

    async fn password(&self) -> Result<SecretValue, Refusal> {
        reference::read(&reference::from_root(&self.database.password, &self.context)).await
    }

    fn url(&self) -> String {
        let Database { server, database, sslmode, .. } = &self.database;
        format!(
            "postgresql://{{{{username}}}}:{{{{password}}}}@{server}/{database}?sslmode={sslmode}"
        )
    }

    fn creation(&self) -> Vec<String> {
        let Database { owner, database, .. } = &self.database;
        vec![
            format!(
                "CREATE ROLE \"{{{{name}}}}\" LOGIN PASSWORD '{{{{password}}}}' VALID UNTIL '{{{{expiration}}}}' IN ROLE \"{owner}\""
            ),
            format!(
                "ALTER ROLE \"{{{{name}}}}\" IN DATABASE \"{database}\" SET role TO \"{owner}\""
            ),
        ]
    }

    /// Without it the login ends at its first time, though its lease was extended.
    fn renewal(&self) -> Vec<String> {
        vec!["ALTER ROLE \"{{name}}\" VALID UNTIL '{{expiration}}'".into()]
    }

    /// One block, which a second try finds done. Whatever the login owns, having given up the owner's role, goes to the owner.
    fn revocation(&self) -> Vec<String> {
        let owner = &self.database.owner;
        vec![format!(
            "DO $$ BEGIN\n  IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{{{{name}}}}') THEN\n    \
             ALTER ROLE \"{{{{name}}}}\" NOLOGIN;\n    \
             PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{{{{name}}}}';\n    \
             GRANT \"{{{{name}}}}\" TO CURRENT_USER;\n    \
             REASSIGN OWNED BY \"{{{{name}}}}\" TO \"{owner}\";\n    \
             DROP OWNED BY \"{{{{name}}}}\";\n    \
             DROP ROLE \"{{{{name}}}}\";\n  END IF;\nEND $$"
        )]
    }
}

#[derive(Serialize)]
struct Connection<'a> {
    plugin_name: &'static str,
    allowed_roles: BTreeSet<String>,
    connection_url: String,
    username: &'a str,
    password: &'a str,
    password_authentication: &'static str,
    verify_connection: bool,
}

#[derive(Serialize)]
struct Role<'a> {
    db_name: &'a str,
    creation_statements: Vec<String>,
    renew_statements: Vec<String>,
    revocation_statements: Vec<String>,
    default_ttl: String,
    max_ttl: String,
}

/// Names stand in statements, templates and connection strings, so they hold nothing that one of these would read.
fn check_name(what: &str, name: &str) -> Result<(), Refusal> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || PLAIN.contains(&b);
    if !name.is_empty() && name.bytes().all(fits) {
        return Ok(());
    }
    Err(unsupported(&format!(
        "the name of the {what} must be of letters, digits, `_`, `-` and `.` to stand in statements"
    )))
}
