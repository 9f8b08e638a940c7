//! The rehearsal of a rotation: a throwaway secret, read by a throwaway workload, is rotated by this very program, started as
//! anybody would start it.
//!
//! It makes its own folder, configuration, journal and key, and reads no configuration of anybody. What it made it takes away
//! again, whatever came of it. The report, and the journal with its audit chain, stay as evidence.

pub(crate) mod compose;
mod report;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use async_trait::async_trait;
use keywheel_core::secret::SecretValue;
use keywheel_driver::Severity;
use keywheel_drivers::{Build, Context, StoreConfig, WorkloadConfig};
use keywheel_journal::sqlite::Places;
use serde_json::{Value, json};
use tokio::process::Command;

use self::report::{Check, Report};
use crate::cli::Globals;
use crate::exit::Exit;
use crate::output::{Failure, Format};

/// The slot of the throwaway secret.
pub(crate) const SLOT: &str = "KEYWHEEL_DRILL";
/// The values that the workload takes have this length; with any other it ends at once.
pub(crate) const LENGTH: usize = 43;
/// A length that it refuses.
const REFUSED_LENGTH: usize = 30;
/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(600);

/// Where a drill takes place.
#[async_trait]
pub(crate) trait Ground: Send + Sync {
    /// Says where, in a few words.
    fn place(&self) -> String;

    /// Returns the store of the throwaway secret and the workload that reads it, as the configuration writes them.
    fn drivers(&self) -> (Value, Value);

    /// Makes both, below a folder that belongs to the drill; the workload reads `first`.
    async fn make(&self, folder: &Path, first: &SecretValue) -> anyhow::Result<()>;

    /// Takes both away again, as far as they were made.
    async fn take_away(&self, folder: &Path) -> anyhow::Result<()>;
}

/// Runs a drill, and prints its report.
pub(crate) async fn run(
    ground: &dyn Ground,
    keep: bool,
    globals: &Globals,
) -> Result<Exit, Failure> {
    let output = globals.output();
    let folder = evidence().map_err(|error| failed(&error))?;
    output.note(&format!(
        "a drill {}; its evidence is kept in {}",
        ground.place(),
        folder.display()
    ));
    let drill = Drill { ground, folder: &folder, started: Instant::now() };
    let mut report = Report::new(&ground.place());
    let went = drill.rehearse(&mut report, &|words| output.note(&format!("  {words}"))).await;
    if let Err(error) = &went {
        report.broke_off(&format!("{error:#}"));
    }
    if keep {
        output.note("the throwaway workload stays, as `--keep` says");
    } else if let Err(error) = ground.take_away(&drill.world()).await {
        report.broke_off(&format!("it could not be taken away: {error:#}"));
    } else {
        std::fs::remove_dir_all(drill.world()).ok();
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

fn failed(error: &anyhow::Error) -> Failure {
    let failure = Failure::new("the drill could not be run").exit(Exit::NeedsOperator);
    error.chain().fold(failure, |failure, cause| failure.caused_by(cause.to_string()))
}

/// Makes the folder of one drill's evidence, readable by its owner only.
fn evidence() -> anyhow::Result<PathBuf> {
    let now = jiff::Zoned::now().strftime("%Y%m%dT%H%M%S");
    let places = Places::default_for("drill", &format!("{now}-{}", std::process::id()))?;
    let folder = places.journal.parent().context("the journal's file is in a folder")?.to_owned();
    let mut private = std::fs::DirBuilder::new();
    private.mode(0o700).recursive(true);
    for part in ["world", "journal", "kek"] {
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
        self.folder.join("world")
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
            Err(error) => Some(error.to_string()),
        };
        match blocks {
            None => return Ok(()),
            Some(why) if Instant::now() > until => bail!("the workload is not ready: {why}"),
            Some(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}
