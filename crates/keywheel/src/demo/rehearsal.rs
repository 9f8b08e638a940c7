//! The world by itself: proves that the load would notice, before a rotation relies on it.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use keywheel_core::fingerprint::{FingerprintKeyId, Fingerprinter};
use keywheel_core::secret::SecretValue;
use keywheel_core::time::Timestamp;
use keywheel_driver::workload::Ensure;
use keywheel_driver::{CallError, RefusalKind};
use keywheel_drivers::{Build, Context, WorkloadConfig};
use serde_json::json;

use super::{LONGEST_PEPPER, Setup, World};

/// The arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// An empty folder.
    #[arg(long)]
    folder: PathBuf,
    /// Where the OpenAI-shaped server is.
    #[arg(long)]
    openai_base: Option<String>,
    /// How long tokens live.
    #[arg(long, default_value_t = 4)]
    token_life: u64,
    /// How many requests each second.
    #[arg(long, default_value_t = 250)]
    each_second: u32,
    /// What happens to the backends.
    #[arg(long)]
    scenario: Scenario,
}

/// What happens to the backends under load.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Scenario {
    /// Each is restarted in its turn.
    OneByOne,
    /// All are restarted at once, which must cost requests.
    AllAtOnce,
    /// They are given a value that they do not start with, and then the former one again.
    RefusedValue,
}

/// Runs a scenario under load, and prints what was counted.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let variables = [
        ("JWT_SECRET", random()?),
        ("OPENAI_API_KEY", random()?),
        ("JWT_LIFE_SECONDS", SecretValue::new(args.token_life.to_string().into_bytes())),
    ];
    let setup = Setup {
        program: &std::env::current_exe()?,
        folder: &args.folder,
        replicas: 3,
        openai_base: args.openai_base.as_deref(),
        variables: &variables,
        warm_up: Duration::from_secs(1),
        each_second: args.each_second,
    };
    let world = World::start(&setup).await?;
    // One whole life of a token before and after.
    let life = Duration::from_secs(args.token_life);
    tokio::time::sleep(life).await;
    let failed_before = world.counts().failed;
    match args.scenario {
        Scenario::OneByOne => roll(&world).await??,
        Scenario::AllAtOnce => world.restart_all_at_once()?,
        Scenario::RefusedValue => refused_value(&world).await?,
    }
    tokio::time::sleep(life).await;
    let (edge, exits) = (world.edge(), world.exits()?);
    let counts = world.stop().await?;
    let report =
        json!({ "edge": edge, "exits": exits, "failed_before": failed_before, "counts": counts });
    Ok(writeln!(std::io::stdout(), "{report}")?)
}

/// Gives the backends a value that they do not start with, and takes it back as an undo would.
async fn refused_value(world: &World) -> anyhow::Result<()> {
    let file = world.env_file();
    let former = SecretValue::new(std::fs::read(&file)?);
    let mut refused = std::fs::OpenOptions::new().append(true).open(&file)?;
    writeln!(refused, "SESSION_PEPPER={}", "x".repeat(LONGEST_PEPPER + 1))?;
    match roll(world).await? {
        Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::WorkloadFailed => {}
        other => bail!("the roll should have failed: {other:?}"),
    }
    std::fs::write(&file, former.expose())?;
    Ok(roll(world).await??)
}

/// Rolls the backends as a rotation does.
async fn roll(world: &World) -> anyhow::Result<Result<(), CallError>> {
    let config: WorkloadConfig = serde_json::from_value(world.workload())?;
    let root = world.env_file().parent().context("the .env file is in a folder")?.to_owned();
    let workload = config.build(&Context::at(root)).map_err(CallError::from)?;
    let fingerprinter = Fingerprinter::new(FingerprintKeyId(1), [0; 32].into());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
    let held_since = Timestamp::from_millis(i64::try_from(now)?);
    let ensure = Ensure::new(&[], held_since, &fingerprinter);
    Ok(workload.roll(&ensure).await)
}

fn random() -> anyhow::Result<SecretValue> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(SecretValue::new(hex::encode(bytes).into_bytes()))
}
