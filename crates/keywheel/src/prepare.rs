//! From a request to plans: what is known of each secret, what is adopted on the way, and which plan follows.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use keywheel_core::call::CallError;
use keywheel_core::event::Outcome;
use keywheel_core::incident::{Incident, IncidentId};
use keywheel_core::inventory::{Inventory, Version};
use keywheel_core::plan::{Mode, Pin, Plan, PlanHash, Reason, VersionRef};
use keywheel_core::planted;
use keywheel_core::secret::{Credential, SecretName};
use keywheel_core::strategy::Strategy;
use keywheel_core::version::{Stage, State, VersionId};
use keywheel_driver::issuer::Identity;
use keywheel_driver::pin::elsewhere;
use keywheel_driver::slot;
use keywheel_engine::run::Group;
use keywheel_engine::{held, readers};

use crate::cli::Globals;
use crate::code;
use crate::compile::{Built, Inputs, compile, drivers_of};
use crate::config::file::After;
use crate::config::{Config, Secret};
use crate::drive::Taken;
use crate::exit::Exit;
use crate::exposed;
use crate::output::Failure;
use crate::session::{Session, engine_failure};
use crate::{claims, words};

/// How long a look at what runs may hold a command up.
pub(crate) const LOOK: Duration = Duration::from_secs(5);

/// What is asked of a rotation.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Why.
    pub(crate) reason: Reason,
    /// The words.
    pub(crate) because: Option<String>,
    /// At a steady pace, or an emergency.
    pub(crate) mode: Mode,
    /// The store from which an emergency's suspects leaked, where that is known.
    pub(crate) in_store: Option<String>,
    /// Whether a lease is only extended.
    pub(crate) extend: bool,
}

impl Request {
    /// What an operator asks for when nothing is wrong.
    pub(crate) fn at_a_steady_pace(because: Option<String>) -> Self {
        let mode = Mode::Normal;
        Self { reason: Reason::Requested, because, mode, in_store: None, extend: false }
    }

    /// What a lease needs before it ends.
    pub(crate) fn of_a_lease(extend: bool) -> Self {
        let because = if extend { "half of its life is over" } else { "its lease ends soon" };
        let request = Self::at_a_steady_pace(Some(because.into()));
        Self { reason: Reason::Expiring, extend, ..request }
    }

    /// Gives another reason in words.
    pub(crate) fn because(self, because: String) -> Self {
        Self { because: Some(because), ..self }
    }
}

/// One secret, ready to be rotated.
pub(crate) struct Prepared {
    /// Its plan.
    pub(crate) plan: Arc<Plan>,
    /// Its row, where it is new and must be noted first.
    pub(crate) adopted: Option<Inventory>,
    /// What is wrong with who reads it, where that was [looked at](compare_readers).
    pub(crate) readers: Vec<String>,
    /// Whether what is in use can be written again to stores that cannot be read: another store holds it, or it is sealed.
    pub(crate) has_way_back: bool,
}

/// Compiles the plans of a request. Nothing is changed: what would be adopted is only read.
pub(crate) async fn plans(
    session: &Session,
    config: &Config,
    secrets: &[&Secret],
    request: &Request,
) -> Result<Vec<Prepared>, Failure> {
    let joins = |secret: &Secret| !matches!(secret.strategy, Strategy::Cutover | Strategy::Lease);
    let is_batch = secrets.len() > 1
        && secrets.iter().all(|secret| joins(secret))
        && request.mode == Mode::Normal;
    let batch: Vec<SecretName> = if is_batch {
        secrets.iter().map(|secret| secret.name.clone()).collect()
    } else {
        Vec::new()
    };
    let mut members = Vec::new();
    for secret in secrets {
        members.push(member(session, config, secret, request, batch.clone()).await?);
    }
    if request.mode != Mode::Normal {
        note_incident(config, secrets, request.in_store.as_deref(), &mut members).await;
    }
    let mut prepared = Vec::new();
    for (Member { inputs, row, adopted }, secret) in members.into_iter().zip(secrets) {
        let mut plan = compile(config, &secret.name, inputs)?;
        // What gives no answer now is not pinned, and not touched before it is: preflight says so.
        pin(&mut plan, &row).await?;
        let has_way_back = has_way_back(session, &plan).await?;
        let plan = Arc::new(plan);
        prepared.push(Prepared { plan, adopted, readers: Vec::new(), has_way_back });
    }
    Ok(prepared)
}

async fn has_way_back(session: &Session, plan: &Plan) -> Result<bool, Failure> {
    let Some(previous) = &plan.previous else { return Ok(false) };
    if held::gives_every_field(&plan.stores) {
        return Ok(true);
    }
    let sealed =
        session.journal.sealed(&plan.secret).await.map_err(crate::session::journal_failure)?;
    Ok(sealed.contains(&keywheel_engine::perform::credential_key(plan, previous.version)))
}

/// Gives the plans of an emergency their common name, and what they keep for whoever looks into it.
async fn note_incident(
    config: &Config,
    secrets: &[&Secret],
    in_store: Option<&str>,
    members: &mut [Member],
) {
    let Some((environment, installation)) = secrets
        .first()
        .and_then(|first| config.environment(first.name.environment()))
        .zip(members.first().map(|first| first.inputs.installation.clone()))
    else {
        return;
    };
    let named = secrets.iter().zip(&*members);
    let named = named.map(|(secret, member)| (&secret.name, member.inputs.pending));
    let id = IncidentId::of(&installation, named);
    let listed = exposed::list(config, environment, secrets, in_store).await;
    for (member, secret) in members.iter_mut().zip(secrets) {
        let suspects = member.inputs.previous.iter().chain(&member.inputs.suspects);
        let made = suspects.filter_map(|suspect| {
            let known = member.row.version(suspect.version)?;
            Some((suspect.version, known.created_at?))
        });
        member.inputs.incident = Some(Incident {
            id: id.clone(),
            made: made.collect(),
            beside: exposed::beside(&listed, secret),
        });
    }
}

/// One secret on the way to its plan.
struct Member {
    inputs: Inputs,
    row: Inventory,
    adopted: Option<Inventory>,
}

/// Returns the hash that names these plans together.
pub(crate) fn hash(prepared: &[Prepared]) -> PlanHash {
    match prepared {
        [one] => one.plan.hash(),
        many => PlanHash::of_batch(many.iter().map(|one| one.plan.as_ref())),
    }
}

async fn member(
    session: &Session,
    config: &Config,
    secret: &Secret,
    request: &Request,
    batch: Vec<SecretName>,
) -> Result<Member, Failure> {
    let (row, adopted) = match session.inventory(&secret.name).await? {
        Some(row) => (row, None),
        None => {
            let row = match request.mode {
                Mode::Normal => adoption(session, config, secret, None).await?,
                Mode::Emergency { .. } => quick_adoption(session, config, secret).await?,
            };
            if planted!("planning_adopts") {
                session.adopt(&row).await?;
            }
            (row.clone(), Some(row))
        }
    };
    let emergency = request.mode != Mode::Normal;
    let mut inputs = Inputs {
        installation: session.journal.installation().id.clone(),
        previous: row.at(Stage::Current).map(Version::reference),
        pending: row.next,
        reason: request.reason,
        because: request.because.clone(),
        mode: request.mode,
        suspects: Vec::new(),
        takes_over: None,
        inherits_until: None,
        incident: None,
        batch,
        extend: request.extend,
    };
    if emergency {
        take_over(session, &secret.name, &row, &mut inputs).await?;
    }
    Ok(Member { inputs, row, adopted })
}

/// Looks who reads what these plans change. What cannot be told now is left to the preflight, which says why.
pub(crate) async fn compare_readers(prepared: &mut [Prepared]) -> Result<(), Failure> {
    for one in prepared {
        let built = drivers_of(&one.plan)?;
        for workload in 0..one.plan.workloads.len() {
            let compare = readers::compare(&one.plan, &built.stores, &built.workloads, workload);
            let compared = in_time(LOOK, compare).await.unwrap_or_default();
            let messages = compared.into_iter().map(|found| found.message);
            one.readers.extend(messages);
        }
        one.readers.sort();
        one.readers.dedup();
    }
    Ok(())
}

/// Pins the stores and workloads of a plan to the places that the row knows, as exactly as these say now, and others to where they are
/// reached now. Returns what gives no answer, and why.
async fn pin(plan: &mut Plan, row: &Inventory) -> Result<Vec<(String, String)>, Failure> {
    let built = drivers_of(plan)?;
    let looks = join_all(built.identities().map(|identity| in_time(LOOK, identity))).await;
    let mut silent = Vec::new();
    for (found, planned) in looks.into_iter().zip(plan.pinned_mut()) {
        let pin = pin_of(row.pin_of(planned).cloned(), found);
        planned.set_pin(pin.unwrap_or_else(|why| {
            silent.push((planned.what(), why));
            None
        }));
    }
    Ok(silent)
}

/// Returns the pin that a plan is given: the known one, as exactly as its place says now, or where there is none, what was found.
fn pin_of(known: Option<Pin>, found: Result<Option<Pin>, String>) -> Result<Option<Pin>, String> {
    match (known, found) {
        (Some(known), Ok(Some(found))) if known.admits(&found) => Ok(Some(found)),
        (Some(known), _) => Ok(Some(known)),
        (None, found) => found,
    }
}

/// Looks at something for a while only; else says why nothing was seen.
pub(crate) async fn in_time<T, E: Display>(
    within: Duration,
    look: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match tokio::time::timeout(within, look).await {
        Ok(seen) => seen.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", within.as_secs())),
    }
}

/// Refuses to touch the stores and workloads of a plan where they are reached at another place than the one they are pinned to: by the
/// row, which an operator may have changed since, else by the plan. An emergency ends its suspects wherever they run, and
/// refuses only to roll there.
pub(crate) async fn check_pins(plan: &Plan, row: Option<&Inventory>) -> Result<(), Failure> {
    if plan.is_emergency() {
        return Ok(());
    }
    let built = drivers_of(plan)?;
    let moved = |what: String, objection: String| {
        let failure = Failure::new(format!(
            "{what} of `{}` is reached at another place than before",
            plan.secret
        ));
        let hint = format!(
            "run it with the `DOCKER_HOST` or the cluster's context of before; if it moved for good, `keywheel adopt {} --pin-anew --because …`",
            plan.secret
        );
        let failure = failure.code(code::ELSEWHERE).exit(Exit::Refused);
        failure.caused_by(objection).now("nothing changed").hint(hint)
    };
    let looks = built.identities().zip(plan.pinned()).map(async |(identity, planned)| {
        let pin = row.map_or(planned.pin(), |row| row.pin_of(planned));
        // Where there is no answer, the step that needs one says so.
        let objection = in_time(LOOK, elsewhere(identity, pin)).await.ok().flatten()?;
        Some(moved(planned.what(), objection))
    });
    Failure::of_all(join_all(looks).await.into_iter().flatten()).map_or(Ok(()), Err)
}

/// Refuses, before anything is ended for the sake of a rotation, one that would be refused for where its stores and workloads are.
pub(crate) async fn check_ours(
    session: &Session,
    config: &Config,
    secret: &Secret,
) -> Result<(), Failure> {
    let plan = pinned_draft(session, config, secret).await?;
    if let Some((_, objection)) = claims::objections(&plan, &drivers_of(&plan)?).await?.first() {
        return Err(claims::not_ours(&secret.name, objection));
    }
    check_pins(&plan, None).await
}

/// A secret that follows another environment waits until the same rotation has completed there.
pub(crate) async fn check_order(
    globals: &Globals,
    config: &Config,
    secret: &Secret,
) -> Result<(), Failure> {
    let Some(after) = goes_after(config, secret) else { return Ok(()) };
    let refused = |cause: String| {
        let failure = Failure::new(format!(
            "`{}` goes after environment `{}`",
            secret.name, after.environment
        ));
        let hint = format!(
            "rotate it there first: `keywheel rotate {} -e {}`",
            secret.name.name(),
            after.environment
        );
        failure
            .code(code::ORDER)
            .exit(Exit::Refused)
            .caused_by(cause)
            .now("nothing changed")
            .hint(hint)
    };
    let never = || refused("it was never rotated there".into());
    let session = Session::read(globals, config, &after.environment)?.ok_or_else(never)?;
    let first = SecretName::new(secret.name.name(), &after.environment).map_err(|_| never())?;
    let row = session.inventory(&first).await?.ok_or_else(never)?;
    if row.last_outcome != Some(Outcome::Completed) || row.open.is_some() {
        return Err(refused("its rotation there has not completed".into()));
    }
    let rotated_at = row.rotated_at.ok_or_else(never)?;
    match after.within {
        Some(within) if rotated_at + within.span() < session.now() => Err(refused(format!(
            "it completed there {}",
            words::distance(rotated_at, session.now())
        ))),
        _ => Ok(()),
    }
}

/// Returns the environment that goes before a secret's own: the one that it names itself, else the one that its environment
/// names, where it has that secret too.
fn goes_after<'c>(config: &'c Config, secret: &'c Secret) -> Option<&'c After> {
    let own = secret.name.environment();
    let of_environment = || {
        let after = config.environment(own)?.after.as_ref()?;
        let first = SecretName::new(secret.name.name(), &after.environment).ok()?;
        config.secret(&first).map(|_| after)
    };
    secret.after.as_ref().filter(|after| after.environment != own).or_else(of_environment)
}

/// Every live version is suspect, and a running rotation is taken over with what it owes (H125).
async fn take_over(
    session: &Session,
    secret: &SecretName,
    row: &Inventory,
    inputs: &mut Inputs,
) -> Result<(), Failure> {
    let compromised =
        |version: &Version| VersionRef { state: State::Compromised, ..version.reference() };
    let is_live = |version: &&Version| {
        matches!(version.state, State::Active | State::Suspended | State::Compromised)
    };
    let current = inputs.previous.as_ref().map(|previous| previous.version);
    inputs.previous = row.at(Stage::Current).map(compromised);
    inputs.suspects = row
        .versions
        .iter()
        .filter(is_live)
        .filter(|version| Some(version.version) != current)
        .map(compromised)
        .collect();
    if let Some(rotation) = session.open_rotation(secret).await? {
        inputs.takes_over = Some(rotation.id().clone());
        inputs.inherits_until = rotation.unsettled_until();
    }
    Ok(())
}

/// Returns the row that `adopt` would note: the value that every store holds now becomes version 1.
pub(crate) async fn adoption(
    session: &Session,
    config: &Config,
    secret: &Secret,
    last_rotated: Option<keywheel_core::time::Timestamp>,
) -> Result<Inventory, Failure> {
    let mut row = Inventory::new(secret.name.clone());
    let mut plan = draft(session, config, secret)?;
    if let Some((what, why)) = pin(&mut plan, &row).await?.first() {
        return Err(unplaced(what, why));
    }
    let built = drivers_of(&plan)?;
    noted(session, &mut row, &plan);
    let held = agreed(&plan, &built).await?;
    identified(session, secret, row, (&plan, &built), held, last_rotated).await
}

/// Returns the same row without what an emergency does not wait for: stores that cannot be read, and places that give no answer.
async fn quick_adoption(
    session: &Session,
    config: &Config,
    secret: &Secret,
) -> Result<Inventory, Failure> {
    let mut row = Inventory::new(secret.name.clone());
    let mut plan = draft(session, config, secret)?;
    pin(&mut plan, &row).await?;
    let built = drivers_of(&plan)?;
    noted(session, &mut row, &plan);
    let mut found = Vec::new();
    for (planned, read) in plan.stores.iter().zip(held::by_each(&built.stores, &plan).await) {
        found.extend(read.ok().flatten().map(|held| (planned.bound.name.as_str(), held)));
    }
    // Without any value nobody knows what is to be ended: what keeps the stores from being read is said.
    let held = match found.is_empty() {
        true => agreed(&plan, &built).await?,
        false => together(&plan, &found)?,
    };
    identified(session, secret, row, (&plan, &built), held, None).await
}

/// Notes where a secret lives.
fn noted(session: &Session, row: &mut Inventory, plan: &Plan) {
    row.claim(&plan.stores);
    row.pin(plan);
    row.adopted_at = Some(session.now());
}

/// Notes what is in use, as its issuer knows it.
async fn identified(
    session: &Session,
    secret: &Secret,
    mut row: Inventory,
    (plan, built): (&Plan, &Built),
    held: Option<Credential>,
    last_rotated: Option<keywheel_core::time::Timestamp>,
) -> Result<Inventory, Failure> {
    let Some(held) = held else { return Ok(row) };
    let identity =
        built.issuer.identify(&held).await.map_err(|error| unreachable(secret, &error))?;
    let (issued, created_at) = match identity {
        Identity::Known { issued, created_at, .. } => (Some(issued), created_at),
        Identity::Candidates(_) | Identity::Unknown => (None, None),
    };
    let fingerprint = session.engine.fingerprint(&plan.stores, &held);
    row.versions.push(Version::adopted(VersionId(1), issued, created_at, Some(fingerprint)));
    row.next = VersionId(2);
    row.rotated_at = created_at.or(last_rotated);
    Ok(row)
}

/// A plan that is only read, with the places that are known of its workloads.
pub(crate) async fn pinned_draft(
    session: &Session,
    config: &Config,
    secret: &Secret,
) -> Result<Plan, Failure> {
    let mut plan = draft(session, config, secret)?;
    if let Some(row) = session.inventory(&secret.name).await? {
        for planned in plan.pinned_mut() {
            planned.set_pin(row.pin_of(planned).cloned());
        }
    }
    Ok(plan)
}

/// A plan that is only read: which drivers and slots a secret has.
pub(crate) fn draft(session: &Session, config: &Config, secret: &Secret) -> Result<Plan, Failure> {
    draft_for(&session.journal.installation().id, config, secret)
}

/// A plan that is only read, by an installation.
pub(crate) fn draft_for(
    installation: &str,
    config: &Config,
    secret: &Secret,
) -> Result<Plan, Failure> {
    let inputs = Inputs {
        installation: installation.into(),
        previous: None,
        pending: VersionId(1),
        reason: Reason::Requested,
        because: Some("draft".into()),
        mode: Mode::Normal,
        suspects: Vec::new(),
        takes_over: None,
        inherits_until: None,
        incident: None,
        batch: Vec::new(),
        extend: false,
    };
    compile(config, &secret.name, inputs)
}

/// Returns the credential that the stores of a plan hold together; none where none holds one.
pub(crate) async fn agreed(plan: &Plan, built: &Built) -> Result<Option<Credential>, Failure> {
    let mut found = Vec::new();
    for (planned, held) in plan.stores.iter().zip(held::by_each(&built.stores, plan).await) {
        let name = planned.bound.name.as_str();
        let held = held.map_err(|error| {
            let failure = Failure::new(format!("store `{name}` cannot be read"));
            failure
                .code(code::STORE)
                .exit(Exit::Refused)
                .caused_by(error.to_string())
                .now("nothing changed")
        })?;
        found.extend(held.map(|held| (name, held)));
    }
    together(plan, &found)
}

fn together(plan: &Plan, found: &[(&str, Credential)]) -> Result<Option<Credential>, Failure> {
    held::together(found).map_err(|disagreement| {
        let failure = Failure::new(format!("{disagreement} of `{}`", plan.secret));
        let failure = failure.code(code::DISAGREE).exit(Exit::Refused);
        failure.now("nothing changed; both values are as they were").hint(
            "find out which one is in use, and write it to the other store; keywheel does not guess",
        )
    })
}

/// Says that a store or a workload gives no answer to where it is.
pub(crate) fn unplaced(what: &str, why: &str) -> Failure {
    let failure = Failure::new(format!("{what} cannot be asked where it is"));
    let failure = failure.code(code::ELSEWHERE).exit(Exit::Refused);
    failure.caused_by(why).now("nothing changed")
}

pub(crate) fn unreachable(secret: &Secret, error: &CallError) -> Failure {
    let failure = Failure::new(format!("the issuer of `{}` cannot be asked", secret.name));
    failure
        .code(code::ISSUER)
        .exit(Exit::Refused)
        .caused_by(error.to_string())
        .now("nothing changed")
}

/// Begins the rotations of these plans: a batch as one group, others by themselves.
pub(crate) async fn begin(session: &Session, prepared: &[Prepared]) -> Result<Taken, Failure> {
    let is_batch = prepared.iter().all(|one| one.plan.batch.len() > 1);
    let mut taken = Taken::default();
    for together in prepared.chunks(if is_batch { prepared.len().max(1) } else { 1 }) {
        taken.add(begin_together(session, together).await)?;
    }
    Ok(taken)
}

/// Checks where the workloads of these plans are reached, claims their stores, notes what was adopted on the way to them, and begins
/// their rotations. The extension of a lease touches neither stores nor workloads, and waits for none of them.
async fn begin_together(session: &Session, prepared: &[Prepared]) -> Result<Group, Failure> {
    let touches = |plan: &&Plan| !plan.extend || planted!("extension_waits_for_readers");
    let touching = || prepared.iter().map(|one| one.plan.as_ref()).filter(touches);
    for plan in touching() {
        check_pins(plan, None).await?;
    }
    claims::take(touching()).await?;
    for row in prepared.iter().filter_map(|one| one.adopted.as_ref()) {
        session.adopt(row).await?;
    }
    let plans: Vec<Arc<Plan>> = prepared.iter().map(|one| Arc::clone(&one.plan)).collect();
    session.engine.begin(&plans).await.map_err(engine_failure)
}

/// Returns what a workload reads now: the slots of its stores with their fingerprints.
pub(crate) async fn slots_now(
    plan: &Plan,
    built: &Built,
    workload: &keywheel_core::plan::WorkloadPlan,
    fingerprinter: &keywheel_core::fingerprint::Fingerprinter,
) -> Result<Vec<(String, Option<keywheel_core::fingerprint::Fingerprint>)>, Failure> {
    let mut slots = Vec::new();
    for store in &workload.reads {
        let (store, planned) =
            (&built.stores[usize::from(*store)], &plan.stores[usize::from(*store)]);
        if !planned.facts.is_readable() {
            continue;
        }
        let addresses: Vec<String> =
            planned.slots.iter().map(|slot| slot.address.clone()).collect();
        let held = store.read(&addresses).await.map_err(|error| {
            let failure = Failure::new(format!("store `{}` cannot be read", planned.bound.name));
            failure
                .code(code::STORE)
                .exit(Exit::Refused)
                .caused_by(error.to_string())
                .now("nothing changed")
        })?;
        let held =
            held.iter().map(|held| held.as_ref().map(|bytes| fingerprinter.of(bytes.expose())));
        let container = store.container();
        let names = addresses.iter().map(|address| slot::name(&container, address));
        slots.extend(names.zip(held));
    }
    Ok(slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(id: &str) -> Pin {
        Pin { id: id.into(), machine: String::new(), folder: String::new() }
    }

    #[test]
    fn a_plan_is_pinned_as_exactly_as_its_place_names_itself_now() {
        let (cluster, exact) = (place("cluster"), place("cluster").with(&place("vault")));
        let pinned = |known: Option<&Pin>, found: Option<&Pin>| {
            pin_of(known.cloned(), Ok(found.cloned())).unwrap()
        };
        assert_eq!(pinned(None, Some(&cluster)), Some(cluster.clone()));
        assert_eq!(pinned(Some(&cluster), Some(&exact)), Some(exact.clone()));
        // Another place, or one that says less than it did, is refused by what is kept.
        assert_eq!(pinned(Some(&exact), Some(&cluster)), Some(exact.clone()));
        assert_eq!(pinned(Some(&cluster), Some(&place("other"))), Some(cluster.clone()));
        assert_eq!(pinned(Some(&exact), None), Some(exact.clone()));
        let silent = || Err("no answer".to_owned());
        assert_eq!(pin_of(Some(exact.clone()), silent()), Ok(Some(exact)));
        assert_eq!(pin_of(None, silent()), silent());
    }
}
