//! `keywheel where`: which secret is where, and who reads it.

use std::path::{Path, PathBuf};

use clap::Args;
use keywheel_core::planted;
use keywheel_core::secret::Credential;
use serde_json::json;

use crate::cli::Globals;
use crate::compile::drivers_of;
use crate::config::{Config, Environment, Secret};
use crate::exit::Exit;
use crate::output::{Failure, Format};
use crate::session::{Session, environment};
use crate::{code, prepare, words};

/// A file larger than this is not searched, and said so.
const LARGEST: u64 = 16 << 20;

/// Show where a secret is held and who reads it, or what a store or workload has
#[derive(Debug, Args)]
pub(crate) struct WhereArgs {
    /// A secret, store or workload
    name: String,
    /// The environment
    #[arg(long, short, value_name = "ENV")]
    environment: Option<String>,
    /// Search files below this path for the live value; it is compared in memory, and only places are printed
    #[arg(long, value_name = "PATH")]
    scan: Option<PathBuf>,
}

struct Place {
    secret: String,
    store: String,
    slot: String,
    readers: String,
}

pub(crate) async fn run(args: &WhereArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let (name, named) = match args.name.split_once('@') {
        Some((name, environment)) => (name, Some(environment)),
        None => (args.name.as_str(), None),
    };
    let chosen = environment(&config, args.environment.as_deref().or(named))?;
    let places = places(chosen, name);
    if places.is_empty() {
        let failure = Failure::new(format!(
            "no secret, store or workload of `{}` is called `{name}`",
            chosen.name
        ));
        return Err(failure.code(code::UNKNOWN_NAME).hint("`keywheel config show` lists them"));
    }
    let hits = match &args.scan {
        Some(path) => scan(globals, &config, chosen, name, path).await?,
        None => Vec::new(),
    };
    let output = globals.output();
    match output.format {
        Format::Text => {
            let mut rows = vec![["secret", "store", "slot", "read by"].map(str::to_owned).to_vec()];
            rows.extend(places.into_iter().map(|place| vec![place.secret, place.store, place.slot, place.readers]));
            let found: String = hits.iter().map(|hit| format!("found in {hit}\n")).collect();
            output.text(&format!("{}{found}", words::table(&rows, "")))?;
        }
        Format::Json => output.json(&json!({
            "places": places.iter().map(|place| json!({
                "secret": place.secret, "store": place.store, "slot": place.slot, "read_by": place.readers,
            })).collect::<Vec<_>>(),
            "found": hits,
        }))?,
    }
    Ok(Exit::Done)
}

fn places(environment: &Environment, name: &str) -> Vec<Place> {
    let mut places = Vec::new();
    for secret in &environment.secrets {
        for delivery in &secret.deliveries {
            let about = secret.name.name() == name
                || delivery.store == name
                || secret.readers.iter().any(|one| one == name);
            let slots = delivery.slots.iter().filter(|_| about);
            places.extend(slots.map(|slot| Place {
                secret: secret.name.name().into(),
                store: delivery.store.clone(),
                slot: slot.address.clone(),
                readers: if secret.readers.is_empty() {
                    "nobody".into()
                } else {
                    secret.readers.join(", ")
                },
            }));
        }
    }
    places
}

/// Searches files for the live value of a secret, or of every secret of a store or workload.
async fn scan(
    globals: &Globals,
    config: &Config,
    environment: &Environment,
    name: &str,
    path: &Path,
) -> Result<Vec<String>, Failure> {
    let session = Session::look(globals, config, &environment.name)?;
    let about = |secret: &&Secret| {
        let in_store = secret.deliveries.iter().any(|one| one.store == name);
        secret.name.name() == name || in_store || secret.readers.iter().any(|one| one == name)
    };
    let mut hits = Vec::new();
    for secret in environment.secrets.iter().filter(about) {
        let plan = prepare::draft(&session, config, secret)?;
        if let Some(held) = prepare::agreed(&plan, &drivers_of(&plan)?).await? {
            search(path, secret.name.name(), &held, &mut hits);
        }
    }
    hits.sort();
    Ok(hits)
}

fn search(path: &Path, secret: &str, held: &Credential, hits: &mut Vec<String>) {
    let Ok(kind) = std::fs::symlink_metadata(path) else { return };
    if kind.is_dir() {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.for_each(|entry| search(&entry.path(), secret, held, hits));
    } else if kind.is_file() && kind.len() > LARGEST {
        hits.push(format!("{} (not searched: larger than 16 MiB)", path.display()));
    } else if kind.is_file() {
        let Ok(bytes) = std::fs::read(path) else { return };
        let holds = |value: &[u8]| {
            value.len() >= 8 && bytes.windows(value.len()).any(|window| window == value)
        };
        if held.fields().any(|(_, value)| holds(value.expose())) {
            hits.push(format!("{} ({secret})", path.display()));
            if planted!("scan_shows_what_it_found") {
                hits.push(String::from_utf8_lossy(&bytes).into_owned());
            }
        }
    }
}
