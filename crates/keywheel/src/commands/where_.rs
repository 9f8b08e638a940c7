//! `keywheel where`: which secret is where, and who reads it.

use std::path::{Path, PathBuf};

use clap::Args;
use keywheel_core::call::CallError;
use keywheel_core::evidence::{Expected, Proof, judge};
use keywheel_core::fingerprint::Compared;
use keywheel_core::plan::{Pin, Plan, WorkloadPlan};
use keywheel_core::planted;
use keywheel_core::rotation::Rotation;
use keywheel_core::secret::Credential;
use keywheel_core::time::Timestamp;
use keywheel_core::version::Stage;
use keywheel_driver::pin::elsewhere;
use serde_json::json;

use crate::cli::Globals;
use crate::compile::{Built, drivers_of};
use crate::config::{Config, Environment, Secret};
use crate::exit::Exit;
use crate::output::{Failure, Format};
use crate::session::{Session, environment, journal_failure};
use crate::{code, prepare, words};

/// A file larger than this is not searched, and said so.
const LARGEST: u64 = 16 << 20;

/// How many rotations are looked at for the last one that wrote anything.
const LOOKED_BACK: usize = 8;

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
    /// Ask the cluster what holds, reads or names it now: workloads, pods and what each proves, kept versions, CronJobs, Jobs, history
    #[arg(long)]
    cluster: bool,
}

/// Something of a cluster that holds, reads or names a secret.
struct Live {
    secret: String,
    /// The store or workload by which it was found.
    via: String,
    kind: String,
    name: String,
    how: String,
}

/// What a cluster told.
#[derive(Default)]
struct Told {
    live: Vec<Live>,
    unseen: Vec<String>,
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
    let told = match args.cluster {
        true => Some(ask(globals, &config, chosen, name).await?),
        false => None,
    };
    let output = globals.output();
    for what in told.iter().flat_map(|told| &told.unseen) {
        output.note(&format!("not seen: {what}"));
    }
    match output.format {
        Format::Text => {
            let mut rows = vec![["secret", "store", "slot", "read by"].map(str::to_owned).to_vec()];
            rows.extend(places.into_iter().map(|place| vec![place.secret, place.store, place.slot, place.readers]));
            let found: String = hits.iter().map(|hit| format!("found in {hit}\n")).collect();
            let live = told.iter().map(|told| told.text()).collect::<String>();
            output.text(&format!("{}{found}{live}", words::table(&rows, "")))?;
        }
        Format::Json => output.json(&json!({
            "places": places.iter().map(|place| json!({
                "secret": place.secret, "store": place.store, "slot": place.slot, "read_by": place.readers,
            })).collect::<Vec<_>>(),
            "found": hits,
            "cluster": told.as_ref().map(Told::json),
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

impl Told {
    fn text(&self) -> String {
        let row = |one: &Live| vec![one.kind.clone(), one.name.clone(), one.how.clone()];
        let mut rows = vec![["in the cluster", "name", "how"].map(str::to_owned).to_vec()];
        rows.extend(self.live.iter().map(row));
        format!("\n{}", words::table(&rows, ""))
    }

    fn json(&self) -> serde_json::Value {
        let one = |one: &Live| json!({ "secret": one.secret, "via": one.via, "kind": one.kind, "name": one.name, "how": one.how });
        json!({ "found": self.live.iter().map(one).collect::<Vec<_>>(), "unseen": self.unseen })
    }
}

/// Asks the places of stores and workloads what holds, reads or names a secret now.
async fn ask(
    globals: &Globals,
    config: &Config,
    environment: &Environment,
    name: &str,
) -> Result<Told, Failure> {
    let session = Session::look(globals, config, &environment.name)?;
    let mut told = Told::default();
    let mut is_told = false;
    for secret in environment.secrets.iter().filter(|secret| is_about(secret, name)) {
        let open = session.open_rotation(&secret.name).await?;
        let plan = match &open {
            Some(rotation) => rotation.plan().as_ref().clone(),
            None => prepare::pinned_draft(&session, config, secret).await?,
        };
        let built = drivers_of(&plan)?;
        is_told |= stores(secret, &plan, &built, &mut told).await?;
        let brought = brought(&session, secret, &plan, &built).await?;
        replicas(&session, secret, brought.as_ref(), (&plan, &built), &mut told).await?;
    }
    told.unseen.sort();
    told.unseen.dedup();
    match is_told {
        true => Ok(told),
        false => {
            let failure = Failure::new(format!("no store of `{name}` is in a cluster"));
            Err(failure.code(code::WRONG_VALUE).hint("leave out `--cluster`"))
        }
    }
}

/// Asks the stores; returns whether any of them is in a cluster.
async fn stores(
    secret: &Secret,
    plan: &Plan,
    built: &Built,
    told: &mut Told,
) -> Result<bool, Failure> {
    let mut is_told = false;
    for (store, planned) in built.stores.iter().zip(&plan.stores) {
        let via = &planned.bound.name;
        let slots: Vec<String> = planned.slots.iter().map(|slot| slot.address.clone()).collect();
        refuse_elsewhere(store.identity(), planned.pin.as_ref(), via).await?;
        let found = store.whereabouts(&slots).await.map_err(|error| not_asked(via, &error))?;
        let Some(found) = found else { continue };
        is_told = true;
        told.unseen.extend(found.unseen);
        told.live.extend(found.found.into_iter().map(|one| Live {
            secret: secret.name.name().into(),
            via: via.clone(),
            kind: one.kind,
            name: one.name,
            how: one.how,
        }));
    }
    Ok(is_told)
}

/// Returns the rotation that brought what the stores hold; none where they hold something else than it brought.
async fn brought(
    session: &Session,
    secret: &Secret,
    plan: &Plan,
    built: &Built,
) -> Result<Option<Rotation>, Failure> {
    let row = session.inventory(&secret.name).await?;
    let current = row.as_ref().and_then(|row| row.at(Stage::Current)?.fingerprint);
    // Stores that disagree, or one that cannot be read, prove nothing, and are told all the same.
    let held = prepare::agreed(plan, built).await.ok().flatten();
    let held = held.map(|held| session.engine.fingerprint(&plan.stores, &held));
    let is_ours = current.zip(held).is_some_and(|(a, b)| a.compare(&b) == Compared::Same);
    if !is_ours {
        return Ok(None);
    }
    let rows = session.journal.rotations(Some(&secret.name)).await.map_err(journal_failure)?;
    for row in rows.iter().take(LOOKED_BACK) {
        let rotation = session.replay(&row.rotation).await?;
        if rotation.walk().is_touched() {
            return Ok(Some(rotation));
        }
    }
    Ok(None)
}

/// Returns since when all that a workload reads certainly holds what a rotation brought.
fn held_since(rotation: &Rotation, planned: &WorkloadPlan) -> Option<Timestamp> {
    let plan = rotation.plan();
    let then = plan.workloads.iter().find(|one| one.bound.name == planned.bound.name)?;
    let since = rotation.walk().held_since(then, rotation.walk().should_hold());
    since.filter(|since| *since >= rotation.began_at())
}

/// Asks the workloads which replica proves which value, and says it of those that the stores named.
async fn replicas(
    session: &Session,
    secret: &Secret,
    brought: Option<&Rotation>,
    (plan, built): (&Plan, &Built),
    told: &mut Told,
) -> Result<(), Failure> {
    let fingerprinter = &session.journal.installation().fingerprinter;
    for (workload, planned) in built.workloads.iter().zip(&plan.workloads) {
        let via = &planned.bound.name;
        refuse_elsewhere(workload.identity(), planned.pin.as_ref(), via).await?;
        let slots = match prepare::slots_now(plan, built, planned, fingerprinter).await {
            Ok(slots) => slots,
            // Whoever asks where a secret is asks most of all when a store is broken.
            Err(failure) => {
                let why = [vec![failure.message], failure.causes].concat().join(": ");
                told.unseen.push(format!("what the replicas of `{via}` hold: {why}"));
                continue;
            }
        };
        let names: Vec<String> = slots.iter().map(|(name, _)| name.clone()).collect();
        let expected = Expected {
            slots: &slots,
            held_since: brought.and_then(|rotation| held_since(rotation, planned)),
            untouched_before: None,
            granularity: planned.facts.start_granularity,
        };
        let seen = workload.observe(&names, fingerprinter).await;
        for replica in seen.map_err(|error| not_asked(via, &error))? {
            let proof = match judge(&replica, &expected) {
                Proof::Holds => "proves that it holds the current values",
                Proof::Other => "holds other values",
                Proof::Unknown => "proves nothing of what it holds",
            };
            told.live.push(Live {
                secret: secret.name.name().into(),
                via: via.clone(),
                kind: "replica".into(),
                name: replica.id,
                how: format!("of `{via}`: {proof}"),
            });
        }
    }
    Ok(())
}

async fn refuse_elsewhere(
    identity: impl Future<Output = Result<Option<Pin>, CallError>>,
    pin: Option<&Pin>,
    via: &str,
) -> Result<(), Failure> {
    match elsewhere(identity, pin).await.map_err(|error| not_asked(via, &error))? {
        None => Ok(()),
        Some(objection) => {
            let failure = Failure::new(format!("`{via}`: {objection}")).code(code::ELSEWHERE);
            Err(failure.now("nothing changed").exit(Exit::Refused))
        }
    }
}

fn not_asked(via: &str, error: &CallError) -> Failure {
    let failure = Failure::new(format!("`{via}` could not be asked"));
    let failure = failure.code(code::STORE).caused_by(error.to_string());
    failure.now("nothing changed").exit(Exit::Refused)
}

/// Whether a name is that of a secret, of a store that holds it, or of a workload that reads it.
fn is_about(secret: &Secret, name: &str) -> bool {
    let in_store = secret.deliveries.iter().any(|one| one.store == name);
    secret.name.name() == name || in_store || secret.readers.iter().any(|one| one == name)
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
    let about = |secret: &&Secret| is_about(secret, name);
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
