//! `pgbouncer`: the list of logins of a PgBouncer (`auth_file`); a slot is the name of a login, and holds its password.
//!
//! PgBouncer holds a copy of its own of what the server accepts (H72). It is given the password itself: from the verifier that
//! the server keeps it can check a client, and log in to the server only where that verifier is the same to the byte, which
//! nobody but the server knows. Each write ends with a reload, since PgBouncer does not look at the file by itself in time.
//!
//! Logins are asked for where readers log in, at every place that is configured, each time over a connection of its own that
//! asks the server something: a pooler lets in whom it knows, and learns only then what the server thinks (H73).
//!
//! It refuses to be a place for logins that PgBouncer looks up by itself (`auth_query`): then nothing is to be written.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::facts::{Pickup, StoreFacts};
use keywheel_core::planted;
use keywheel_core::secret::{Credential, Field, SecretValue};
use keywheel_core::time::Span;
use keywheel_driver::duration::Duration;
use keywheel_driver::issuer::Verdict;
use keywheel_driver::store::{Edit, Written};
use keywheel_driver::{CallError, Claims, Finding, Refusal, RefusalKind, SecretReference, Store};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_postgres::SimpleQueryMessage;

use super::claim::Claimed;
use super::local::{self, OwnedEdit};
use super::replace::{Change, LocalFile};
use super::userlist::{self, BadList};
use crate::postgres::{self, Failed, Reach};
use crate::{Build, Context, program, reference};

/// The longest password with which PgBouncer can log in: it prepares no longer one for SCRAM.
const LONGEST: usize = 1000;

/// The longest name of a login that PgBouncer reads.
const LONGEST_NAME: usize = 63;

/// How PgBouncer says, in words only, that a login is refused: by itself, or by the server.
const REFUSALS: [&str; 4] = [
    "SASL authentication failed",
    "password authentication failed",
    "no such user",
    "is not permitted to log in",
];

/// The logins of a PgBouncer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file that PgBouncer reads its logins from; a relative path begins at the folder of the configuration file.
    pub auth_file: PathBuf,
    /// Where readers log in, without a login: `postgresql://pooler.internal:6432/app`. Each place is asked.
    #[schemars(length(min = 1))]
    pub through: Vec<String>,
    /// Where the connection string of the admin console is read: `postgresql://admin:password@pooler.internal:6432/pgbouncer`.
    /// By it PgBouncer is reloaded, and asked how it is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<SecretReference>,
    /// The program that makes PgBouncer read its files again (`[systemctl, reload, pgbouncer]`), instead of the console.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reload: Vec<String>,
    /// A file with the certificates of those who may sign PgBouncer's, instead of whom this machine trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// How long a reload may take, and how long one login.
    #[serde(default = "default_within")]
    pub within: Duration,
}

fn default_within() -> Duration {
    Span::seconds(5).into()
}

impl Build for Config {
    type Driver = dyn Store;

    fn build(&self, context: &Context) -> Result<Arc<dyn Store>, Refusal> {
        if !self.reload.is_empty() {
            program::check("reload", &self.reload)?;
        } else if self.console.is_none() {
            return Err(unsupported("configure `console` or `reload`: PgBouncer must be reloaded"));
        }
        let through: Vec<_> =
            self.through.iter().map(|url| place(url)).collect::<Result<_, _>>()?;
        if through.is_empty() {
            return Err(unsupported("`through` names no place where readers log in"));
        }
        let file = local::local_file(context, &self.auth_file, None);
        Ok(Arc::new(PgBouncer {
            claimed: local::claimed(&file),
            file,
            through,
            console: self.console.as_ref().map(|url| reference::from_root(url, context)),
            reload: self.reload.clone(),
            folder: context.root.clone(),
            ca: self.ca.as_ref().map(|ca| context.root.join(ca)),
            within: self.within.span(),
        }))
    }
}

/// Reads a place without a login; no message repeats it, since a password may stand in it all the same.
fn place(url: &str) -> Result<tokio_postgres::Config, Refusal> {
    let config = tokio_postgres::Config::from_str(url);
    let config = config.map_err(|_| unsupported("`through` holds no connection string"))?;
    if config.get_user().is_some() || config.get_password().is_some() {
        return Err(unsupported("`through` must not hold a user name or password"));
    }
    let is_here = postgres::are_here(&config);
    postgres::guarded(config, is_here)
        .ok_or_else(|| unsupported("`through` names another machine, and no TLS"))
}

struct PgBouncer {
    file: LocalFile,
    claimed: Option<Claimed>,
    through: Vec<tokio_postgres::Config>,
    console: Option<SecretReference>,
    reload: Vec<String>,
    folder: PathBuf,
    ca: Option<PathBuf>,
    within: Span,
}

#[async_trait]
impl Store for PgBouncer {
    fn facts(&self) -> StoreFacts {
        let file = local::facts();
        StoreFacts {
            pickup: Pickup::Live,
            answers_logins: true,
            settle_for: file.settle_for + self.within,
            ..file
        }
    }

    fn container(&self) -> String {
        local::container(&self.file)
    }

    async fn preflight(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        let mut findings = local::findings(&self.file).await?;
        let (file, names) = (self.file.clone(), addresses.to_vec());
        let listed = local::blocking(move |_| Ok(listed(&file, &names))).await?;
        let found = match listed {
            Ok(found) => found,
            Err(refusal) => {
                findings.push(Finding::blocks(refusal.message));
                return Ok(findings);
            }
        };
        if let Some(console) = &self.console {
            match self.settings(console).await {
                Ok(settings) => findings.extend(settings.findings(&self.file, found)),
                Err(why) => findings.push(Finding::blocks(why)),
            }
        }
        Ok(findings)
    }

    async fn addresses(&self) -> Result<Option<Vec<String>>, CallError> {
        let file = self.file.clone();
        local::blocking(move |_| {
            let users = userlist::users(&text(&file)?).map_err(|bad| bad_list(&file, &bad))?;
            let users: BTreeSet<_> = users.into_iter().collect();
            Ok(Some(users.into_iter().collect()))
        })
        .await
    }

    async fn read(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        let (file, addresses) = (self.file.clone(), addresses.to_vec());
        local::blocking(move |_| {
            let text = text(&file)?;
            let slots = addresses.iter().map(|user| password(&file, &text, user));
            Ok(slots.collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        if edits.is_empty() {
            return Ok(Written { changed: false });
        }
        let (file, edits): (_, Vec<_>) =
            (self.file.clone(), edits.iter().map(OwnedEdit::of).collect());
        let written = local::blocking(move |abandoned| {
            file.rewrite(abandoned, |text| rewritten(&file, text, &edits))
        })
        .await?;
        // Also where nothing changed: whoever wrote it may have died before the reload.
        if !planted!("pooler_not_reloaded") {
            let reloaded = self.make_it_reload().await;
            reloaded.map_err(|why| {
                let file = self.file.path().display();
                CallError::Unknown(format!("file `{file}` is written, and {why}"))
            })?;
        }
        Ok(written)
    }

    async fn lets_in(&self, credential: &Credential) -> Result<Verdict, CallError> {
        let field = |name| credential.field(&Field::new(name)).map(SecretValue::expose);
        let (Some(username), Some(password)) = (field("username"), field("password")) else {
            return Err(unsupported("the credential has no `username` and `password`").into());
        };
        let username = std::str::from_utf8(username);
        let username = username.map_err(|_| unsupported("the user name is not UTF-8"))?;
        let (mut accepted, mut refused) = (0, 0);
        for (number, place) in self.through.iter().enumerate() {
            let mut config = place.clone();
            config.user(username).password(password);
            match self.ask(&config, "SELECT 1").await? {
                Ok(_) => accepted += 1,
                Err(Silence::Refused) => refused += 1,
                Err(Silence::Other(why)) => {
                    let why = format!("place {} of `through`: {why}", number + 1);
                    return Ok(Verdict::CannotTell(why));
                }
            }
            if planted!("one_endpoint_asked") {
                break;
            }
        }
        Ok(match (accepted, refused) {
            (_, 0) => Verdict::Accepted,
            (0, _) => Verdict::Refused,
            _ => Verdict::CannotTell(format!(
                "{accepted} of {} places let it in, and {refused} refuse it",
                accepted + refused
            )),
        })
    }

    fn claims(&self) -> Option<&dyn Claims> {
        self.claimed.as_ref().map(|claimed| claimed as &dyn Claims)
    }
}

/// Why a question got no answer.
enum Silence {
    /// The login is definitely refused.
    Refused,
    /// Anything else, in words without values.
    Other(String),
}

impl PgBouncer {
    async fn ask(
        &self,
        config: &tokio_postgres::Config,
        question: &str,
    ) -> Result<Result<Vec<SimpleQueryMessage>, Silence>, Refusal> {
        let asked = postgres::ask(config, self.ca.as_deref(), question);
        Ok(match tokio::time::timeout(self.within.into(), asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Failed::Here(refusal))) => return Err(refusal),
            Ok(Err(Failed::There(error))) if is_refusal(&error) => Err(Silence::Refused),
            Ok(Err(failed)) => Err(Silence::Other(failed.in_words())),
            Err(_) => Err(Silence::Other(format!("no answer within {}", self.within))),
        })
    }

    async fn make_it_reload(&self) -> Result<(), String> {
        let Some(console) = self.console.as_ref().filter(|_| self.reload.is_empty()) else {
            let ended = program::run(&self.reload, &self.folder, &[], self.within).await;
            return match ended.map_err(|refusal| refusal.message)? {
                ended if ended.well() => Ok(()),
                ended => Err(format!("{} {}", program::name(&self.reload), ended.in_words())),
            };
        };
        self.command(console, "RELOAD").await.map(drop)
    }

    async fn command(
        &self,
        console: &SecretReference,
        command: &str,
    ) -> Result<Vec<SimpleQueryMessage>, String> {
        let config = postgres::place(console, &Reach::Direct).await;
        let config = config.map_err(|error| error.to_string())?;
        match self.ask(&config, command).await.map_err(|refusal| refusal.message)? {
            Ok(answer) => Ok(answer),
            Err(Silence::Refused) => Err("PgBouncer's console refuses the login".into()),
            Err(Silence::Other(why)) => Err(format!("PgBouncer's console: {why}")),
        }
    }

    async fn settings(&self, console: &SecretReference) -> Result<Settings, String> {
        let rows = self.command(console, "SHOW CONFIG").await?;
        let value = |key: &str| {
            let row = rows.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) if row.try_get(0).ok().flatten() == Some(key) => {
                    Some(row)
                }
                _ => None,
            });
            row.and_then(|row| row.try_get(1).ok().flatten()).unwrap_or_default().to_owned()
        };
        Ok(Settings {
            auth_type: value("auth_type"),
            auth_file: value("auth_file"),
            auth_user: value("auth_user"),
        })
    }
}

/// How a PgBouncer checks logins.
struct Settings {
    auth_type: String,
    auth_file: String,
    auth_user: String,
}

impl Settings {
    /// Finds what speaks against writing the list; `found` of the logins stand in it.
    fn findings(&self, file: &LocalFile, found: usize) -> Vec<Finding> {
        let Self { auth_type, auth_file, auth_user } = self;
        let path = file.path().display();
        let mut findings = Vec::new();
        let read = PathBuf::from(auth_file);
        if auth_file.is_empty() {
            findings.push(Finding::blocks("PgBouncer reads no list of logins (`auth_file`)"));
        } else if read.canonicalize().is_ok_and(|read| read != file.canonical()) {
            let message =
                format!("PgBouncer reads its logins from `{auth_file}`, and not from `{path}`");
            findings.push(Finding::blocks(message));
        }
        if !auth_user.is_empty() && found == 0 && !planted!("auth_query_overlooked") {
            let message = format!(
                "PgBouncer asks the server for passwords (`auth_query`, as `{auth_user}`), and none of these logins stands in \
                 `{path}`: nothing is to be written here; take the store out of the secret"
            );
            findings.push(Finding::blocks(message));
        }
        match auth_type.as_str() {
            "pam" => {
                findings.push(Finding::blocks("PgBouncer asks PAM, and not its list of logins"))
            }
            "any" | "trust" | "cert" => {
                let message = format!(
                    "PgBouncer checks no passwords (`auth_type = {auth_type}`): it lets in whoever is listed"
                );
                findings.push(Finding::note(message));
            }
            _ => {}
        }
        findings
    }
}

/// Checks what will be written, and returns how many of the logins stand in the list.
fn listed(file: &LocalFile, users: &[String]) -> Result<usize, Refusal> {
    let text = text(file)?;
    let mut found = 0;
    for user in users {
        found += usize::from(password(file, &text, user)?.is_some());
    }
    Ok(found)
}

fn text(file: &LocalFile) -> Result<SecretValue, Refusal> {
    Ok(file.read()?.unwrap_or_else(|| SecretValue::new(Vec::new())))
}

/// Reads a password; what PgBouncer checks a password by is none.
fn password(
    file: &LocalFile,
    text: &SecretValue,
    user: &str,
) -> Result<Option<SecretValue>, Refusal> {
    check_name(file, user)?;
    let held = userlist::read(text, user).map_err(|bad| bad_list(file, &bad))?;
    if held.as_ref().is_some_and(is_hash) {
        let why = format!(
            "`{user}` stands in it as a hash, with which PgBouncer is told no password; put the password there once"
        );
        return Err(refused(file, RefusalKind::Unsupported, &why));
    }
    Ok(held)
}

/// Applies all edits to a list, or none.
fn rewritten(
    file: &LocalFile,
    present: Option<&SecretValue>,
    edits: &[OwnedEdit],
) -> Result<Change, Refusal> {
    let mut new = present.map_or_else(|| SecretValue::new(Vec::new()), SecretValue::duplicate);
    let mut names = BTreeSet::new();
    for edit in edits {
        let user = edit.address.as_str();
        let held = password(file, &new, user)?;
        if !names.insert(user) {
            let why = format!("two edits name `{user}`");
            return Err(refused(file, RefusalKind::Unsupported, &why));
        }
        if !edit.accepts(held.as_ref()) {
            let why = format!("`{user}` has another password than expected");
            return Err(refused(file, RefusalKind::Conflict, &why));
        }
        new = match (&edit.value, held) {
            (Some(value), Some(held)) if value.same_as(&held) => new,
            (Some(value), _) => {
                check_value(file, user, value)?;
                userlist::set(&new, user, value).map_err(|bad| bad_list(file, &bad))?
            }
            (None, _) => userlist::remove(&new, user).map_err(|bad| bad_list(file, &bad))?,
        };
    }
    Ok(Change::Contents(new))
}

fn check_name(file: &LocalFile, user: &str) -> Result<(), Refusal> {
    if (1..=LONGEST_NAME).contains(&user.len()) && !user.contains('\0') {
        return Ok(());
    }
    let why = format!("a login has a name of 1 to {LONGEST_NAME} bytes");
    Err(refused(file, RefusalKind::Unsupported, &why))
}

fn check_value(file: &LocalFile, user: &str, value: &SecretValue) -> Result<(), Refusal> {
    let bytes = value.expose();
    let why = if bytes.is_empty() {
        "PgBouncer takes an empty password for none"
    } else if bytes.len() > LONGEST {
        "PgBouncer cannot log in with a password of more than 1000 bytes"
    } else if bytes.contains(&0) {
        "PgBouncer would read a password up to its NUL only"
    } else if is_hash(value) {
        "PgBouncer would take this password for a hash"
    } else {
        return Ok(());
    };
    Err(refused(file, RefusalKind::Unsupported, &format!("`{user}`: {why}")))
}

/// Returns whether PgBouncer takes a password for a hash of one.
fn is_hash(value: &SecretValue) -> bool {
    let bytes = value.expose();
    let is_md5 = bytes.len() == 35 && bytes.starts_with(b"md5");
    is_md5 || bytes.starts_with(b"SCRAM-SHA-256$")
}

/// Whether an error says that a login is refused. PgBouncer gives one code to all that it says, so that its words must tell.
fn is_refusal(error: &tokio_postgres::Error) -> bool {
    let Some(said) = error.as_db_error() else { return false };
    matches!(said.code().code(), "28P01" | "28000")
        || REFUSALS.iter().any(|words| said.message().contains(words))
}

fn bad_list(file: &LocalFile, bad: &BadList) -> Refusal {
    refused(file, RefusalKind::Unsupported, &bad.to_string())
}

fn refused(file: &LocalFile, kind: RefusalKind, why: &str) -> Refusal {
    Refusal::operator(kind, format!("file `{}`: {why}", file.path().display()))
}

fn unsupported(why: &str) -> Refusal {
    Refusal::operator(RefusalKind::Unsupported, why)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use keywheel_driver::Severity;
    use keywheel_driver::conformance::canary;
    use keywheel_driver::conformance::store::{self as conformance, Subject, hostile_values};
    use keywheel_driver::store::Accept;
    use keywheel_ground::pgbouncer::{self as ground, ADMIN};
    use keywheel_ground::postgres::Postgres;
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;

    /// A server, poolers before it, and what keywheel is told of the first of them.
    struct World {
        password: String,
        poolers: Vec<ground::PgBouncer>,
        postgres: Arc<Postgres>,
        folder: TempDir,
    }

    impl World {
        /// Returns none, and says why, where one of them cannot be had.
        fn start(password: &str, settings: &[&str]) -> Option<Self> {
            let postgres = Postgres::start(password, None).map(Arc::new);
            postgres.and_then(|postgres| Self::before(postgres, password, settings)).map_or_else(
                |why| {
                    writeln!(std::io::stdout(), "skipped: PgBouncer ({why})").unwrap();
                    None
                },
                Some,
            )
        }

        fn before(
            postgres: Arc<Postgres>,
            password: &str,
            settings: &[&str],
        ) -> Result<Self, String> {
            let start = |settings: &&str| {
                ground::PgBouncer::start(&postgres, password, "; ours\n", settings)
            };
            let poolers = settings.iter().map(start).collect::<Result<Vec<_>, _>>()?;
            let folder = TempDir::new().unwrap();
            let console = format!(
                "postgresql://{ADMIN}:{password}@127.0.0.1:{}/pgbouncer",
                poolers[0].port()
            );
            std::fs::write(folder.path().join("console"), console).unwrap();
            Ok(Self { password: password.into(), poolers, postgres, folder })
        }

        fn config(&self, changes: Value) -> Config {
            let through = self.poolers.iter();
            let through =
                through.map(|one| format!("postgresql://127.0.0.1:{}/postgres", one.port()));
            let mut config = json!({
                "auth_file": self.poolers[0].auth_file(),
                "through": through.collect::<Vec<_>>(),
                "console": { "file": "console" },
                "within": "20s",
            });
            config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            serde_json::from_value(config).unwrap()
        }

        fn store(&self, changes: Value) -> Arc<dyn Store> {
            self.config(changes).build(&Context::at(self.folder.path())).unwrap()
        }

        /// Asks the server itself, as its superuser.
        async fn run(&self, sql: &str) {
            let port = self.postgres.port();
            let mut place: tokio_postgres::Config =
                format!("host=127.0.0.1 port={port} user=postgres").parse().unwrap();
            place.password(&self.password);
            assert!(
                postgres::ask(&place, None, sql).await.is_ok(),
                "the server runs what it is given"
            );
        }

        fn list(&self) -> String {
            std::fs::read_to_string(self.poolers[0].auth_file()).unwrap()
        }
    }

    fn login(username: &str, password: &str) -> Credential {
        Credential::default()
            .with(Field::new("username"), SecretValue::new(username.into()))
            .with(Field::new("password"), SecretValue::new(password.into()))
    }

    async fn set(store: &dyn Store, user: &str, value: Option<&str>) -> Result<Written, CallError> {
        let value = value.map(|value| SecretValue::new(value.into()));
        let edit = Edit { address: user, accept: Accept::Anything, value: value.as_ref() };
        store.write(&[edit]).await
    }

    #[tokio::test]
    async fn it_conforms() {
        let password = canary("pgbouncer");
        let Some(World { postgres, .. }) = World::start(&password, &[""]) else { return };
        let fresh = async || {
            let world = World::before(Arc::clone(&postgres), &password, &[""]).unwrap();
            let hash = format!("md5{}", "0".repeat(32)).into_bytes();
            let verifier = b"SCRAM-SHA-256$4096:AAAA$AAAA:AAAA".to_vec();
            let own = [b"nul\0inside".to_vec(), vec![b'x'; LONGEST + 1], hash, verifier];
            let hostile = hostile_values().into_iter();
            let hostile = hostile.filter(|value| value.is_empty() || value.len() > LONGEST);
            Subject {
                store: world.store(json!({})),
                other: world.store(json!({})),
                addresses: ["app_a", "app_b", "App \"c\"", "ü"].map(Into::into).into(),
                uncarriable: own.into_iter().chain(hostile).collect(),
                guard: Box::new(world),
            }
        };
        conformance::every_case(fresh).await;
    }

    #[tokio::test]
    async fn h72_both_logins_are_let_in_until_the_former_is_revoked() {
        let password = canary("pgbouncer");
        let Some(world) = World::start(&password, &[""]) else { return };
        let store = world.store(json!({}));
        let (a, b) = (canary("pgbouncer-a"), format!("{} it's \"b\"\\", canary("pgbouncer-b")));
        let quoted = b.replace('\'', "''");
        world.run(&format!("CREATE ROLE app_a LOGIN PASSWORD '{a}'")).await;
        world.run(&format!("CREATE ROLE app_b LOGIN PASSWORD '{quoted}'")).await;
        let [a, b] = [login("app_a", &a), login("app_b", &b)];
        let password_of = |login: &Credential| {
            let password = login.field(&Field::new("password")).unwrap();
            String::from_utf8(password.expose().to_vec()).unwrap()
        };
        assert_eq!(store.lets_in(&a).await, Ok(Verdict::Refused), "it is not listed");
        set(&*store, "app_a", Some(&password_of(&a))).await.unwrap();
        assert_eq!(store.lets_in(&a).await, Ok(Verdict::Accepted));
        set(&*store, "app_b", Some(&password_of(&b))).await.unwrap();
        assert_eq!(store.lets_in(&a).await, Ok(Verdict::Accepted));
        assert_eq!(store.lets_in(&b).await, Ok(Verdict::Accepted));
        assert_eq!(store.lets_in(&login("app_b", "wrong")).await, Ok(Verdict::Refused));

        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app_a'";
        world.run("ALTER ROLE app_a NOLOGIN PASSWORD NULL").await;
        world.run(end).await;
        // Listed still, it is let in by the pooler, whose question to the server is never answered.
        let hasty = world.store(json!({ "within": "1s" }));
        assert_ne!(hasty.lets_in(&a).await, Ok(Verdict::Accepted));
        set(&*store, "app_a", None).await.unwrap();
        assert_eq!(store.lets_in(&a).await, Ok(Verdict::Refused));
        assert_eq!(store.lets_in(&b).await, Ok(Verdict::Accepted));
        assert!(world.list().contains("; ours\n") && !world.list().contains("app_a"));
    }

    #[tokio::test]
    async fn h73_a_login_counts_only_when_every_place_lets_it_in() {
        let password = canary("pgbouncer");
        let Some(world) = World::start(&password, &["", ""]) else { return };
        let value = canary("pgbouncer-a");
        world.run(&format!("CREATE ROLE app_a LOGIN PASSWORD '{value}'")).await;
        let (store, a) = (world.store(json!({})), login("app_a", &value));
        set(&*store, "app_a", Some(&value)).await.unwrap();
        let answer = store.lets_in(&a).await.unwrap();
        let behind = Verdict::CannotTell("1 of 2 places let it in, and 1 refuse it".into());
        assert_eq!(answer, behind, "the second pooler has not heard of it");

        let console = format!(
            "postgresql://{ADMIN}:{password}@127.0.0.1:{}/pgbouncer",
            world.poolers[1].port()
        );
        std::fs::write(world.folder.path().join("second"), console).unwrap();
        let second =
            json!({ "auth_file": world.poolers[1].auth_file(), "console": { "file": "second" } });
        set(&*world.store(second), "app_a", Some(&value)).await.unwrap();
        assert_eq!(store.lets_in(&a).await, Ok(Verdict::Accepted));
    }

    #[tokio::test]
    async fn a_program_can_make_it_reload() {
        let password = canary("pgbouncer");
        let Some(world) = World::start(&password, &[""]) else { return };
        let value = canary("pgbouncer-a");
        world.run(&format!("CREATE ROLE app_a LOGIN PASSWORD '{value}'")).await;
        let reload = |argv: [&str; 3]| world.store(json!({ "reload": argv, "console": null }));
        let process = world.poolers[0].process().to_string();
        let store = reload(["kill", "-HUP", &process]);
        set(&*store, "app_a", Some(&value)).await.unwrap();
        let a = login("app_a", &value);
        // A signal is heard a little later.
        for _ in 0..200 {
            if store.lets_in(&a).await == Ok(Verdict::Accepted) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(store.lets_in(&a).await, Ok(Verdict::Accepted));
        let answer = set(&*reload(["false", "", ""]), "app_a", Some(&value)).await;
        let Err(CallError::Unknown(why)) = answer else { panic!("{answer:?}") };
        assert!(why.contains("is written, and command `false` ended with 1"), "{why}");
    }

    #[tokio::test]
    async fn h72_preflight_says_where_nothing_is_to_be_written() {
        let password = canary("pgbouncer");
        let auth_user = format!("auth_user = {ADMIN}");
        let Some(world) = World::start(&password, &[&auth_user]) else { return };
        let store = world.store(json!({}));
        let blocks = async |store: &dyn Store, users: &[&str]| {
            let users: Vec<_> = users.iter().map(|user| (*user).to_owned()).collect();
            let findings = store.preflight(&users).await.unwrap();
            let blocks = findings.into_iter().filter(|one| one.severity == Severity::Blocks);
            let told = blocks.map(|one| one.message).collect::<Vec<_>>().join("\n");
            assert!(!told.contains(&password), "{told}");
            told
        };
        let told = blocks(&*store, &["app_a", "app_b"]).await;
        assert!(told.contains("`auth_query`, as `pooler_admin`"), "{told}");
        assert_eq!(blocks(&*store, &[ADMIN]).await, "", "its own login is listed");

        let verifier = "\"app_a\" \"SCRAM-SHA-256$4096:AAAA$AAAA:AAAA\"\n";
        std::fs::write(world.poolers[0].auth_file(), world.list() + verifier).unwrap();
        assert!(blocks(&*store, &["app_a"]).await.contains("stands in it as a hash"));
        std::fs::write(world.folder.path().join("other"), "").unwrap();
        let other = world.store(json!({ "auth_file": "other" }));
        assert!(blocks(&*other, &[ADMIN]).await.contains("reads its logins from"));
        std::fs::write(world.folder.path().join("console"), "postgresql://x:y@127.0.0.1:1/x")
            .unwrap();
        let dead = blocks(&*store, &[ADMIN]).await;
        assert_eq!(dead, "PgBouncer's console: no connection");
    }

    #[test]
    fn a_place_has_no_login_and_a_pooler_is_reloaded() {
        let build = |changes: Value| {
            let mut config = json!({
                "auth_file": "users.txt",
                "through": ["postgresql://127.0.0.1/app"],
                "reload": ["true"],
            });
            config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let config: Config = serde_json::from_value(config).unwrap();
            config.build(&Context::at("/")).map(drop).map_err(|refusal| refusal.message)
        };
        assert_eq!(build(json!({})), Ok(()));
        for changes in [
            json!({ "reload": [] }),
            json!({ "reload": [""] }),
            json!({ "through": [] }),
            json!({ "through": ["postgresql://kwcanary-pgbouncer@127.0.0.1/app"] }),
            json!({ "through": ["postgresql://a:kwcanary-pgbouncer@127.0.0.1/app"] }),
            json!({ "through": ["kwcanary-pgbouncer"] }),
            json!({ "through": ["postgresql://db.internal/app?sslmode=disable"] }),
        ] {
            let why = build(changes.clone()).unwrap_err();
            assert!(!why.contains("kwcanary"), "{why}");
        }
    }
}
