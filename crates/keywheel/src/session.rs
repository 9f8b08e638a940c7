//! One environment's journal and engine, as a command opens them.

use std::sync::Arc;

use keywheel_core::call::{Refusal, RefusalKind};
use keywheel_core::inventory::{Inventory, Queued};
use keywheel_core::plan::{Plan, RotationId};
use keywheel_core::rotation::Rotation;
use keywheel_core::secret::SecretName;
use keywheel_core::time::Timestamp;
use keywheel_driver::{Claim, Notifier};
use keywheel_engine::clock::{Clock, SystemClock};
use keywheel_engine::limits::Limits;
use keywheel_engine::{Build, Drivers, Engine, EngineError, Watch};

use keywheel_journal::memory::MemoryJournal;
use keywheel_journal::sqlite::{Open, Places, SqliteJournal};
use keywheel_journal::{Actor, Holder, Journal, JournalError};
use zeroize::Zeroizing;

use crate::cli::Globals;
use crate::code;
use crate::compile::drivers_of;
use crate::config::{Config, Environment};
use crate::exit::Exit;
use crate::output::Failure;
use crate::words;

/// How many calls may run at once against one issuer, store or workload.
const CALLS_AT_ONCE: usize = 4;

/// One environment's journal and engine.
pub(crate) struct Session {
    /// The journal.
    pub(crate) journal: Arc<dyn Journal>,
    /// The engine on it.
    pub(crate) engine: Engine,
    /// How people are told of what happens, where that is configured and this session acts.
    pub(crate) notifier: Option<Arc<dyn Notifier>>,
}

/// Returns where an environment's journal and key lie.
pub(crate) fn places(
    globals: &Globals,
    config: &Config,
    environment: &str,
) -> Result<Places, Failure> {
    match globals.places() {
        Some((journal, kek)) => Ok(Places { journal, kek, allow_work_tree: true }),
        None => Places::default_for(&config.project, environment).map_err(journal_failure),
    }
}

impl Session {
    /// Opens the journal of an environment to act on it; makes it where it is missing.
    pub(crate) fn act(
        globals: &Globals,
        config: &Config,
        environment: &str,
        watch: Arc<dyn Watch>,
    ) -> Result<Self, Failure> {
        let places = places(globals, config, environment)?;
        let journal =
            SqliteJournal::open(&places, Open::CreateIfMissing).map_err(journal_failure)?;
        let name = format!("pid {} on {}", std::process::id(), host());
        let holder = journal.holder(name).map_err(journal_failure)?;
        let notifier = config.notifier().map_err(|refusal| {
            Failure::new("`notify` cannot be used")
                .code(code::REFUSED)
                .exit(Exit::Refused)
                .caused_by(refusal.to_string())
                .now("nothing changed")
        })?;
        let session = Self::on(Arc::new(journal), holder, globals.method(), watch);
        Ok(Self { notifier, ..session })
    }

    /// Opens the journal of an environment to read it; none where there is none yet.
    pub(crate) fn read(
        globals: &Globals,
        config: &Config,
        environment: &str,
    ) -> Result<Option<Self>, Failure> {
        let places = places(globals, config, environment)?;
        if !SqliteJournal::is_made(&places).map_err(journal_failure)? {
            return Ok(None);
        }
        let journal = SqliteJournal::open(&places, Open::ReadOnly).map_err(journal_failure)?;
        Ok(Some(Self::on(
            Arc::new(journal),
            reader(),
            globals.method(),
            Arc::new(keywheel_engine::NoWatch),
        )))
    }

    /// Opens the journal of an environment to plan on it. Where there is none yet, an empty one is made: the hash of a plan
    /// names the installation it belongs to.
    pub(crate) fn plan(
        globals: &Globals,
        config: &Config,
        environment: &str,
    ) -> Result<Self, Failure> {
        match Self::read(globals, config, environment)? {
            Some(session) => Ok(session),
            None => Self::act(globals, config, environment, Arc::new(keywheel_engine::NoWatch)),
        }
    }

    /// Opens the journal of an environment to compare it with the world; an empty one in memory where there is none yet.
    pub(crate) fn look(
        globals: &Globals,
        config: &Config,
        environment: &str,
    ) -> Result<Self, Failure> {
        if let Some(session) = Self::read(globals, config, environment)? {
            return Ok(session);
        }
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(key.as_mut()).expect("the operating system gives random bytes");
        let journal = Arc::new(MemoryJournal::new("none", key));
        Ok(Self::on(journal, reader(), globals.method(), Arc::new(keywheel_engine::NoWatch)))
    }

    fn on(journal: Arc<dyn Journal>, holder: Holder, method: &str, watch: Arc<dyn Watch>) -> Self {
        let engine = Engine {
            journal: Arc::clone(&journal),
            clock: Arc::new(SystemClock::new()),
            build: Arc::new(FromPlan),
            random: Arc::new(|buffer| {
                getrandom::fill(buffer).expect("the operating system gives random bytes")
            }),
            holder,
            actor: actor(method),
            limits: Limits::new(CALLS_AT_ONCE),
            watch,
        };
        Self { journal, engine, notifier: None }
    }

    /// Reads the wall clock.
    pub(crate) fn now(&self) -> Timestamp {
        self.engine.clock.now()
    }

    /// Returns the inventory row of a secret.
    pub(crate) async fn inventory(
        &self,
        secret: &SecretName,
    ) -> Result<Option<Inventory>, Failure> {
        self.journal.inventory(secret).await.map_err(journal_failure)
    }

    /// Notes what was read of a secret that is new. One that somebody adopted or rotated meanwhile stays as it is.
    pub(crate) async fn adopt(&self, row: &Inventory) -> Result<(), Failure> {
        let new = |known: Option<Inventory>| known.is_none().then(|| row.clone());
        self.engine.note(&row.secret, "adopted", new).await.map_err(engine_failure)
    }

    /// Puts a request into the queue; one that waits there already stays as it is.
    pub(crate) async fn queue(&self, secret: &SecretName, queued: Queued) -> Result<(), Failure> {
        let add = |row: Option<Inventory>| {
            let row = row.filter(|row| row.queued.is_none())?;
            Some(Inventory { queued: Some(queued), ..row })
        };
        self.engine.note(secret, "queued", add).await.map_err(engine_failure)
    }

    /// Replays the open rotation of a secret without taking it over.
    pub(crate) async fn open_rotation(
        &self,
        secret: &SecretName,
    ) -> Result<Option<Rotation>, Failure> {
        let row = self.inventory(secret).await?;
        match row.and_then(|row| row.open) {
            Some(open) => Ok(Some(self.replay(&open.rotation).await?)),
            None => Ok(None),
        }
    }

    /// Returns why secrets that are rotated together cannot turn round; none where every one of them can.
    pub(crate) async fn no_way_back(
        &self,
        group: &[SecretName],
    ) -> Result<Option<Refusal>, Failure> {
        for secret in group {
            let Some(rotation) = self.open_rotation(secret).await? else { continue };
            if let Err(refusal) = keywheel_engine::request::can_undo(&rotation) {
                return Ok(Some(refusal));
            }
        }
        Ok(None)
    }

    /// Replays a rotation without taking it over.
    pub(crate) async fn replay(&self, rotation: &RotationId) -> Result<Rotation, Failure> {
        let rotation = keywheel_engine::recover::read(self.journal.as_ref(), rotation).await;
        rotation.map_err(engine_failure)
    }
}

fn reader() -> Holder {
    Holder { id: "reader".into(), name: "reader".into() }
}

/// Reads the wall clock where no journal is open.
pub(crate) fn now() -> Timestamp {
    SystemClock::new().now()
}

/// Builds drivers from plans.
struct FromPlan;

impl Build for FromPlan {
    fn build(&self, plan: &Plan) -> Result<Drivers, Refusal> {
        let built = drivers_of(plan).map_err(|failure| {
            let causes =
                failure.causes.iter().map(|cause| format!(": {cause}")).collect::<String>();
            Refusal::operator(RefusalKind::Unsupported, format!("{}{causes}", failure.message))
        })?;
        Ok(Drivers {
            issuer: built.issuer,
            stores: built.stores,
            workloads: built.workloads,
            probes: built.probes,
        })
    }
}

/// Says who acts, as far as this process can tell: asserted by the operating system, not authenticated.
fn actor(method: &str) -> Actor {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let user = || format!("uid {}", rustix::process::geteuid().as_raw());
    Actor {
        account: variable("USER").or_else(|| variable("LOGNAME")).unwrap_or_else(user),
        origin: variable("SUDO_USER"),
        host: host(),
        method: method.into(),
        authenticated: false,
    }
}

/// Returns the claim that an installation puts on what it writes.
pub(crate) fn claim(installation: &str, folder: &str, environment: &str) -> Claim {
    let Actor { account, host, .. } = actor("");
    Claim {
        installation: installation.into(),
        folder: folder.into(),
        environment: environment.into(),
        host,
        account,
        since: words::rfc3339(now()),
    }
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".into() } else { name.into() }
}

/// Chooses the environment: the one named, or the only one there is.
pub(crate) fn environment<'a>(
    config: &'a Config,
    named: Option<&str>,
) -> Result<&'a Environment, Failure> {
    let names =
        || config.environments.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join("`, `");
    match (named, config.environments.as_slice()) {
        (Some(name), _) => config.environment(name).ok_or_else(|| {
            let failure = Failure::new(format!("environment `{name}` is not declared"))
                .code(code::UNKNOWN_NAME);
            failure.hint(format!("declared: `{}`", names()))
        }),
        (None, [only]) => Ok(only),
        (None, _) => {
            let failure = Failure::new("which environment?").code(code::USAGE);
            Err(failure.hint(format!("name one with `-e`: `{}`", names())))
        }
    }
}

/// Puts a journal's error into the form that every error has.
pub(crate) fn journal_failure(error: JournalError) -> Failure {
    let message = match &error {
        JournalError::Held { secret, holder, until } => {
            format!(
                "`{secret}` is being worked on by {holder}; its lease is over {}",
                words::when(*until)
            )
        }
        _ => error.to_string(),
    };
    let failure = Failure::new(message);
    match error {
        JournalError::Held { .. } => failure
            .code(code::BUSY)
            .exit(Exit::Refused)
            .now("nothing changed; the other process goes on")
            .hint("wait until it is done, or end it: a process that is gone gives its secrets free at once"),
        JournalError::OpenAlready { secret, .. } => failure
            .code(code::OPEN_ALREADY)
            .exit(Exit::Refused)
            .now("nothing changed; `keywheel status` says what the open rotation owes")
            .hint(format!("`keywheel resume {secret}` lets it go on")),
        JournalError::Busy { .. } => failure
            .code(code::BUSY)
            .exit(Exit::Refused)
            .now("nothing changed; the other rotation goes on")
            .hint("`keywheel status` says how far it is; try again once it has arrived"),
        JournalError::Stale { .. } => failure
            .code(code::BUSY)
            .exit(Exit::Refused)
            .now("this process changed nothing after the other took over")
            .hint("`keywheel status` says what is owed"),
        JournalError::Place(_) => failure
            .code(code::PLACE)
            .exit(Exit::Journal)
            .now("nothing changed")
            .hint("name another place with `--journal` and `--kek`, or mend the permissions"),
        JournalError::Sealing(_) => failure
            .code(code::SEALING)
            .exit(Exit::Journal)
            .now("nothing changed; no sealed value was opened")
            .hint("put back the key file that belongs to this journal"),
        JournalError::Corrupt { .. } => failure
            .code(code::CORRUPT)
            .exit(Exit::Journal)
            .now("nothing changed; this journal is not acted upon")
            .hint("keep the file as it is, restore the last good copy beside it, and run `keywheel doctor` before anything else"),
        JournalError::LowSpace { .. } => failure
            .code(code::STORAGE)
            .exit(Exit::Journal)
            .now("no rotation was begun")
            .hint("make space where the journal is; an emergency begins all the same"),
        _ => failure
            .code(code::STORAGE)
            .exit(Exit::Journal)
            .now("what is durable is safe to resume from")
            .hint("mend the storage (space, permissions), then run `keywheel resume`"),
    }
}

/// Puts an engine's error into the form that every error has.
pub(crate) fn engine_failure(error: EngineError) -> Failure {
    match error {
        EngineError::Journal(error) => journal_failure(error),
        EngineError::OutOfOrder(error) => {
            let message = format!("that cannot be asked of a rotation while it is {}", error.phase);
            let failure = Failure::new(message).code(code::NOT_NOW).exit(Exit::Refused);
            failure.now("nothing changed").hint("`keywheel status` says what is owed")
        }
        EngineError::Refused(refusal) => {
            let failure = Failure::new(refusal.message).code(code::REFUSED).exit(Exit::Refused);
            failure.now("nothing changed").hint("`keywheel status` says what is owed")
        }
        EngineError::NotOpen(secret) => {
            let failure =
                Failure::new(format!("`{secret}` has no open rotation")).code(code::NOT_NOW);
            failure
                .exit(Exit::Refused)
                .now("nothing changed")
                .hint("`keywheel rotation list` shows earlier ones")
        }
    }
}
