//! The rehearsal of a rotation: a throwaway secret, read by a throwaway workload, is rotated by this very program, started as
//! anybody would start it.
//!
//! It makes its own folder, configuration, journal and key, and reads no configuration of anybody. What it made it takes away
//! again, whatever came of it. The report, and the journal with its audit chain, stay as evidence.

pub(crate) mod compose;
pub(crate) mod kubernetes;
mod report;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use async_trait::async_trait;
use keywheel_core::secret::SecretValue;
use keywheel_driver::{CallError, Remedy, Severity};
use keywheel_drivers::{Build, Context, StoreConfig, WorkloadConfig};
use keywheel_journal::sqlite::Places;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use self::report::{Check, Report};
use crate::cli::Globals;
use crate::exit::Exit;
use crate::output::{Failure, Format, Output};

/// The slot of the throwaway secret.
pub(crate) const SLOT: &str = "KEYWHEEL_DRILL";
/// The values that the workload takes have this length; with any other it ends at once.
pub(crate) const LENGTH: usize = 43;
/// A length that it refuses.
const REFUSED_LENGTH: usize = 30;
/// The folder of what a drill makes, which is gone once that is.
const WORLD: &str = "world";
/// Where it is noted what a drill made.
const MADE: &str = "made.json";
/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(600);

/// Where a drill takes place.
#[async_trait]
pub(crate) trait Ground: Send + Sync {
    /// Says where, in a few words.
    fn place(&self) -> String;

    /// Returns the store of the throwaway secret and the workload that reads it, as the configuration writes them.
    fn drivers(&self) -> (Value, Value);

    /// Asks whether both can be made, before anything is; remembers what finds them again.
    async fn look(&mut self, folder: &Path) -> anyhow::Result<()>;

    /// Makes both, below a folder that belongs to the drill; the workload reads `first`.
    async fn make(&self, folder: &Path, first: &SecretValue) -> anyhow::Result<()>;

    /// Takes both away again, as far as they were made.
    async fn take_away(&self, folder: &Path) -> anyhow::Result<()>;
}

/// What a drill makes, and how it is found again.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Made {
    /// A service of Docker Compose.
    Compose(compose::Ground),
    /// A Secret and a Deployment.
    Kubernetes(kubernetes::Ground),
}

impl Made {
    fn ground(&self) -> &dyn Ground {
        match self {
            Self::Compose(ground) => ground,
            Self::Kubernetes(ground) => ground,
        }
    }

    fn ground_mut(&mut self) -> &mut dyn Ground {
        match self {
            Self::Compose(ground) => ground,
            Self::Kubernetes(ground) => ground,
        }
    }
}

/// Returns a name that no other drill has.
pub(crate) fn id() -> Result<String, Failure> {
    let mut bytes = [0; 5];
    getrandom::fill(&mut bytes).map_err(|_| failed(&anyhow::anyhow!("there is no randomness")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Runs a drill, and prints its report.
pub(crate) async fn run(
    mut made: Made,
    id: &str,
    keep: bool,
    globals: &Globals,
) -> Result<Exit, Failure> {
    let output = globals.output();
    let folder = evidence(id).map_err(|error| failed(&error))?;
    let (place, world) = (made.ground().place(), folder.join(WORLD));
    output.note(&format!("a drill {place}; its evidence is kept in {}", folder.display()));
    let mut report = Report::new(&place);
    match unless_stopped(made.ground_mut().look(&world)).await {
        Ok(()) => {
            let _held = hold(&world, &made).map_err(|error| failed(&error))?;
            let drill = Drill { ground: made.ground(), folder: &folder, started: Instant::now() };
            drill.run(&mut report, keep, output).await;
        }
        Err(error) => {
            report.broke_off(&format!("nothing was made: {error:#}"));
            drop(std::fs::remove_dir_all(&world));
        }
    }
    report.write(&folder).map_err(|error| failed(&error))?;
    match output.format {
        Format::Json => output.json(&report.json(&folder))?,
        Format::Text => output.text(&report.text())?,
    }
    if report.passed() {
        return Ok(Exit::Done);
    }
    let failure = Failure::new("the drill failed").exit(Exit::NeedsOperator);
    let failure = report.failures().fold(failure, Failure::caused_by);
    Err(failure
        .now("no secret of yours was touched")
        .hint(format!("the evidence is in {}", folder.display())))
}

/// Takes away what drills left that run no more.
pub(crate) async fn clean(globals: &Globals) -> Result<Exit, Failure> {
    let output = globals.output();
    let (mut cleaned, mut running, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for folder in left().map_err(|error| failed(&error))? {
        let world = folder.join(WORLD);
        let name = folder.display().to_string();
        match clean_one(&world).await {
            Ok(true) => cleaned.push(name),
            Ok(false) => running.push(name),
            Err(error) => failures.push(format!("{name}: {error:#}")),
        }
    }
    match output.format {
        Format::Json => {
            output.json(&json!({ "cleaned": cleaned, "running": running, "failures": failures }))?
        }
        Format::Text => {
            let running = running.iter().map(|name| format!("runs still: {name}\n"));
            let count = crate::words::counted(cleaned.len(), "drill");
            output.text(&format!("{}{count} cleaned up\n", running.collect::<String>()))?;
        }
    }
    if failures.is_empty() {
        return Ok(Exit::Done);
    }
    let failure = Failure::new("something of a drill is there still").exit(Exit::NeedsOperator);
    let failure = failures.into_iter().fold(failure, Failure::caused_by);
    Err(failure.now("no secret of yours was touched").hint(format!(
        "where its cluster or engine is no more, remove `{WORLD}` from its folder: nothing else of it is left"
    )))
}

/// Returns whether it was taken away; it is not while its drill runs.
async fn clean_one(world: &Path) -> anyhow::Result<bool> {
    let made = std::fs::File::open(world.join(MADE))?;
    if flock(&made, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(false);
    }
    let made: Made = serde_json::from_reader(&made).context("what it made is not known")?;
    take_away(made.ground(), world).await?;
    Ok(true)
}

async fn take_away(ground: &dyn Ground, world: &Path) -> anyhow::Result<()> {
    ground.take_away(world).await?;
    std::fs::remove_dir_all(world).context("its folder is there still")
}

/// Returns the folders of drills whose throwaway workload may be there still.
fn left() -> anyhow::Result<Vec<PathBuf>> {
    let places = Places::default_for("drill", "any")?;
    let all = places.journal.ancestors().nth(2).context("the journal's file is in a folder")?;
    let Ok(entries) = std::fs::read_dir(all) else { return Ok(Vec::new()) };
    let folders = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut left: Vec<_> =
        folders.filter(|folder| folder.join(WORLD).join(MADE).is_file()).collect();
    left.sort();
    Ok(left)
}

/// Notes what is made before it is, and holds the note as long as the drill runs.
fn hold(world: &Path, made: &Made) -> anyhow::Result<std::fs::File> {
    let file = std::fs::File::create_new(world.join(MADE))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    serde_json::to_writer(&file, made)?;
    file.sync_all()?;
    Ok(file)
}

async fn unless_stopped<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        () = asked_to_stop() => Err(anyhow::anyhow!("it was asked to stop")),
    }
}

async fn asked_to_stop() {
    let heard = |kind| signal(kind).ok();
    match (heard(SignalKind::interrupt()), heard(SignalKind::terminate())) {
        (Some(mut interrupt), Some(mut terminate)) => tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        },
        _ => std::future::pending().await,
    }
}

fn failed(error: &anyhow::Error) -> Failure {
    let failure = Failure::new("the drill could not be run").exit(Exit::NeedsOperator);
    error.chain().fold(failure, |failure, cause| failure.caused_by(cause.to_string()))
}

/// Makes the folder of one drill's evidence, readable by its owner only.
fn evidence(id: &str) -> anyhow::Result<PathBuf> {
    let now = jiff::Zoned::now().strftime("%Y%m%dT%H%M%S");
    let places = Places::default_for("drill", &format!("{now}-{id}"))?;
    let folder = places.journal.parent().context("the journal's file is in a folder")?.to_owned();
    let mut private = std::fs::DirBuilder::new();
    private.mode(0o700).recursive(true);
    for part in [WORLD, "journal", "kek"] {
        private.create(folder.join(part)).context("the folder of the drill cannot be made")?;
    }
    Ok(folder)
}

/// One drill.
struct Drill<'a> {
    ground: &'a dyn Ground,
    folder: &'a Path,
    started: Instant,
}

impl Drill<'_> {
    fn world(&self) -> PathBuf {
        self.folder.join(WORLD)
    }

    /// Rehearses, and takes away what it made, whatever came of it.
    async fn run(&self, report: &mut Report, keep: bool, output: Output) {
        let told = |words: &str| output.note(&format!("  {words}"));
        if let Err(error) = unless_stopped(self.rehearse(report, &told)).await {
            report.broke_off(&format!("{error:#}"));
        }
        if keep {
            output.note(
                "the throwaway workload stays, as `--keep` says; `keywheel drill clean` takes it away",
            );
        } else if let Err(error) = take_away(self.ground, &self.world()).await {
            report.broke_off(&format!(
                "it could not be taken away: {error:#}; `keywheel drill clean` tries again"
            ));
        }
    }

    async fn rehearse(
        &self,
        report: &mut Report,
        told: &(dyn Fn(&str) + Sync),
    ) -> anyhow::Result<()> {
        let first = random()?;
        let made = self.ground.make(&self.world(), &first).await;
        report.add(self.done("made", &made));
        made?;
        told("made; the workload runs");

        self.configure(LENGTH, "1s")?;
        self.keywheel(&["adopt", "drill", "--yes"], Exit::Done).await?;
        self.keywheel(&["rotate", "drill", "--yes", "--soak"], Exit::Done).await?;
        let second = self.held().await?;
        let rotated = !second.same_as(&first) && self.all_hold().await;
        report.add(self.check("rotated, and the former version ended", rotated));
        told("rotated: every replica holds the new value, and the former version is ended");

        self.configure(REFUSED_LENGTH, "1s")?;
        self.keywheel(&["rotate", "drill", "--yes"], Exit::Undone).await?;
        let kept = self.held().await?.same_as(&second) && self.all_hold().await;
        report.add(self.check("a value that the workload refuses was taken back", kept));
        told("a value that the workload refuses was taken back");

        self.configure(LENGTH, "1h")?;
        self.keywheel(&["rotate", "drill", "--yes"], Exit::Done).await?;
        let rotated = !self.held().await?.same_as(&second) && self.all_hold().await;
        report.add(self.check("rotated again", rotated));
        self.keywheel(&["undo", "drill", "--yes", "--because", "a drill"], Exit::Done).await?;
        let back = self.held().await?.same_as(&second) && self.all_hold().await;
        report.add(self.check("undone after it was in use", back));
        told("rotated again, and undone: every replica holds the former value");

        self.keywheel(&["audit", "verify"], Exit::Done).await?;
        report.add(self.check("audit chain verified", true));
        told("the audit chain is whole");
        Ok(())
    }

    fn check(&self, name: &'static str, passed: bool) -> Check {
        Check { name, passed, after: self.started.elapsed() }
    }

    fn done<T>(&self, name: &'static str, result: &anyhow::Result<T>) -> Check {
        self.check(name, result.is_ok())
    }

    /// Writes the configuration: new values have this length, and the former one is kept that long.
    fn configure(&self, length: usize, soak: &str) -> anyhow::Result<()> {
        let (store, workload) = self.ground.drivers();
        let config = json!({
            "project": "keywheel-drill",
            "policies": { "default": { "soak": soak, "rollback": "1s", "watch": "1s" } },
            "stores": { "place": store },
            "workloads": { "workload": workload },
            "secrets": { "drill": {
                "issuer": { "random": { "length": length } },
                "stores": { "place": SLOT },
                "read_by": ["workload"],
            }},
        });
        // YAML 1.2 takes any JSON.
        Ok(std::fs::write(self.config(), serde_json::to_string_pretty(&config)?)?)
    }

    fn config(&self) -> PathBuf {
        self.world().join("keywheel.yaml")
    }

    /// Runs this program.
    async fn keywheel(&self, arguments: &[&str], ends: Exit) -> anyhow::Result<()> {
        let mut keywheel = Command::new(std::env::current_exe()?);
        keywheel.args(arguments).arg("--config").arg(self.config());
        keywheel.arg("--journal").arg(self.folder.join("journal/journal.sqlite"));
        keywheel.arg("--kek").arg(self.folder.join("kek/kek"));
        keywheel.stdin(Stdio::null()).kill_on_drop(true);
        without_settings(&mut keywheel);
        let ran = tokio::time::timeout(COMMAND, keywheel.output()).await;
        let ran =
            ran.with_context(|| format!("`keywheel {}` did not end", arguments.join(" ")))??;
        if ran.status.code() != Some(i32::from(ends.number())) {
            let said = String::from_utf8_lossy(&ran.stderr);
            bail!("`keywheel {}` {}: {}", arguments.join(" "), ran.status, said.trim());
        }
        Ok(())
    }

    /// Reads the value that the store holds.
    async fn held(&self) -> anyhow::Result<SecretValue> {
        let config: StoreConfig = serde_json::from_value(self.ground.drivers().0)?;
        let store =
            config.build(&Context::at(self.world())).map_err(|no| anyhow::anyhow!(no.message))?;
        let held =
            store.read(&[SLOT.to_owned()]).await.map_err(|error| anyhow::anyhow!("{error}"))?;
        held.into_iter().flatten().next().context("the store holds no value")
    }

    /// Returns whether the journal and every replica agree.
    async fn all_hold(&self) -> bool {
        self.keywheel(&["doctor"], Exit::Done).await.is_ok()
    }
}

/// Keeps settings of the shell's own Compose project out.
fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"COMPOSE_") {
            command.env_remove(name);
        }
    }
}

/// Makes a value that the workload takes.
fn random() -> anyhow::Result<SecretValue> {
    let mut bytes = [0; LENGTH];
    getrandom::fill(&mut bytes).map_err(|_| anyhow::anyhow!("there is no randomness"))?;
    let letters = b"abcdefghijklmnopqrstuvwxyzABCDEF";
    Ok(SecretValue::new(bytes.iter().map(|byte| letters[usize::from(byte % 32)]).collect()))
}

/// Runs a program of the ground.
async fn call(mut command: Command, within: Duration, what: &str) -> anyhow::Result<()> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let ran = tokio::time::timeout(within, command.output()).await;
    let ran = ran
        .with_context(|| format!("{what} did not end"))?
        .with_context(|| format!("{what} cannot be started"))?;
    ensure!(
        ran.status.success(),
        "{what} {}: {}",
        ran.status,
        String::from_utf8_lossy(&ran.stderr).trim()
    );
    Ok(())
}

/// Waits until a workload has a replica that its engine calls ready.
async fn ready(driver: Value, root: &Path, within: Duration) -> anyhow::Result<()> {
    let config: WorkloadConfig = serde_json::from_value(driver)?;
    let workload = config.build(&Context::at(root)).map_err(|no| anyhow::anyhow!(no.message))?;
    let until = Instant::now() + within;
    loop {
        let blocks = match workload.preflight().await {
            Ok(found) => found
                .into_iter()
                .find(|one| one.severity == Severity::Blocks)
                .map(|one| one.message),
            Err(CallError::Refused(refusal)) if refusal.remedy == Remedy::Operator => {
                bail!("the workload cannot become ready: {refusal}")
            }
            Err(error) => Some(error.to_string()),
        };
        match blocks {
            None => return Ok(()),
            Some(why) if Instant::now() > until => bail!("the workload is not ready: {why}"),
            Some(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}
