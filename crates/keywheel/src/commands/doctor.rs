//! `keywheel doctor`: does the world agree with the journal? Changes nothing.

use clap::Args;
use keywheel_core::evidence::{Expected, Proof, judge};
use keywheel_core::fingerprint::{Compared, Fingerprint};
use keywheel_core::inventory::{Inventory, Version};
use keywheel_core::plan::{Plan, RotationId};
use keywheel_core::planted;
use keywheel_core::rotation::Rotation;
use keywheel_core::strategy::Side;
use keywheel_core::version::{IssuedId, Stage};
use keywheel_driver::workload::elsewhere;
use keywheel_engine::request::{can_be_put_right, held_by};
use serde_json::json;

use crate::cli::Globals;
use crate::compile::{Built, drivers_of};
use crate::config::{Config, Secret};
use crate::exit::Exit;
use crate::output::{Failure, Format};
use crate::select::Selection;
use crate::session::{Session, journal_failure};
use crate::{claims, prepare, words};

/// Compare journal and world: drift in stores, stale replicas, live credentials that nobody owns; changes nothing
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    selection: Selection,
}

struct Finding {
    secret: String,
    what: String,
    then: String,
}

pub(crate) async fn run(args: &DoctorArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let environment = args.selection.environment(&config)?;
    let selection = Selection {
        all: args.selection.all || args.selection.is_empty(),
        ..args.selection.clone()
    };
    let secrets = selection.secrets(globals, &config).await?;
    let session = Session::look(globals, &config, &environment.name)?;
    let mut found = Vec::new();
    for secret in &secrets {
        if let Some(row) = session.inventory(&secret.name).await? {
            found.extend(Check { session: &session, config: &config, secret, row }.all().await?);
        }
    }
    for (secret, place) in claims::left_behind(&session, &config, environment).await? {
        found.push(Finding {
            secret: secret.name().into(),
            what: format!(
                "our claim still stands on a store that no secret has any more: `{place}`"
            ),
            then: format!("rm {place}"),
        });
    }
    let verdict = session.journal.verify_audit().await.map_err(journal_failure)?;
    found.extend(verdict.faults.into_iter().map(|fault| Finding {
        secret: "-".into(),
        what: format!("audit chain: {fault}"),
        then: "keywheel audit verify".into(),
    }));
    let output = globals.output();
    match output.format {
        Format::Text => {
            let rows: Vec<Vec<String>> =
                found.iter().map(|one| vec![one.secret.clone(), one.what.clone(), one.then.clone()]).collect();
            let verdict = if found.is_empty() { "world and journal agree".into() } else { words::counted(found.len(), "finding") };
            output.text(&format!("{}{}: {}, {verdict}\n", words::table(&rows, "  "), environment.name, words::counted(secrets.len(), "secret")))?;
        }
        Format::Json => output.json(&json!({
            "environment": environment.name,
            "findings": found.iter().map(|one| json!({ "secret": one.secret, "what": one.what, "then": one.then })).collect::<Vec<_>>(),
        }))?,
    }
    Ok(if found.is_empty() { Exit::Done } else { Exit::NeedsOperator })
}

/// Before a secret's first version is promoted, and after it was taken back, its stores may hold nothing.
fn may_hold_nothing(rotation: &Rotation) -> bool {
    rotation.plan().previous.is_none() && rotation.promoted_side() == Side::Previous
}

struct Check<'a> {
    session: &'a Session,
    config: &'a Config,
    secret: &'a Secret,
    row: Inventory,
}

impl Check<'_> {
    async fn all(&self) -> Result<Vec<Finding>, Failure> {
        let open = match &self.row.open {
            Some(_) => self.session.open_rotation(&self.secret.name).await?,
            None => None,
        };
        let open = open.as_ref();
        let plan = match open {
            Some(rotation) => rotation.plan().as_ref().clone(),
            None => prepare::pinned_draft(self.session, self.config, self.secret).await?,
        };
        let built = drivers_of(&plan)?;
        let mut found = Vec::new();
        for (_, objection) in claims::objections(&plan, &built).await? {
            found.push(self.finding(objection, "adopt --take-over --because …"));
        }
        self.stores(&plan, &built, open, &mut found).await;
        if open.is_none_or(Rotation::rests) {
            self.replicas(&plan, &built, &mut found).await;
        }
        let parked = open.and_then(Rotation::parked).map(|reason| words::parked(&plan, reason));
        found.extend(parked.map(|reason| self.finding(format!("parked: {reason}"), "resume")));
        self.unended(&mut found);
        self.orphans(&built, &mut found).await?;
        Ok(found)
    }

    fn finding(&self, what: String, command: &str) -> Finding {
        Finding {
            secret: self.secret.name.name().into(),
            what,
            then: format!("keywheel {command} {}", self.secret.name),
        }
    }

    /// Returns what a store may hold: the current version, and any of them while a rotation is on its way.
    fn known(&self, open: Option<&Rotation>) -> Vec<Fingerprint> {
        let is_moving = open.is_some_and(|rotation| !rotation.rests());
        let is_expected = |version: &&Version| is_moving || version.stage == Some(Stage::Current);
        let expected = self.row.versions.iter().filter(is_expected);
        expected.filter_map(|version| version.fingerprint).collect()
    }

    async fn stores(
        &self,
        plan: &Plan,
        built: &Built,
        open: Option<&Rotation>,
        found: &mut Vec<Finding>,
    ) {
        let known = self.known(open);
        let is_on_its_way = open.is_some_and(|rotation| can_be_put_right(rotation).is_err());
        let mend = if is_on_its_way { "resume" } else { "reconcile" };
        let may_be_empty = known.is_empty() || open.is_some_and(may_hold_nothing);
        for (store, planned) in built.stores.iter().zip(&plan.stores) {
            let name = &planned.bound.name;
            match held_by(store.as_ref(), planned).await {
                Err(error) => found
                    .push(self.finding(format!("store `{name}` cannot be read: {error}"), "check")),
                Ok(None) if may_be_empty => {}
                Ok(None) => {
                    found.push(self.finding(format!("store `{name}` holds no value"), mend))
                }
                Ok(Some(held)) => {
                    let seen = self.session.engine.fingerprint(&held);
                    let is_other =
                        |known: &Fingerprint| known.compare(&seen) == Compared::Different;
                    if !known.is_empty() && known.iter().all(is_other) {
                        found.push(
                            self.finding(
                                format!("store `{name}` was changed by somebody else"),
                                mend,
                            ),
                        );
                    }
                }
            }
        }
    }

    /// A replica that holds another value than its stores do is stale.
    async fn replicas(&self, plan: &Plan, built: &Built, found: &mut Vec<Finding>) {
        let fingerprinter = &self.session.journal.installation().fingerprinter;
        for (workload, planned) in built.workloads.iter().zip(&plan.workloads) {
            let name = &planned.bound.name;
            if let Ok(Some(objection)) = elsewhere(workload.as_ref(), planned.pin.as_ref()).await {
                found.push(self.finding(format!("workload `{name}`: {objection}"), "check"));
                continue;
            }
            let Ok(slots) = prepare::slots_now(plan, built, planned, fingerprinter).await else {
                continue;
            };
            let names: Vec<String> = slots.iter().map(|(name, _)| name.clone()).collect();
            let granularity = planned.facts.start_granularity;
            let expected = Expected { slots: &slots, held_since: self.row.rotated_at, granularity };
            let name = &planned.bound.name;
            match workload.observe(&names, fingerprinter).await {
                Err(error) => found.push(
                    self.finding(format!("workload `{name}` cannot be observed: {error}"), "check"),
                ),
                Ok(replicas) if replicas.is_empty() && !planted!("no_replica_is_fine") => {
                    found.push(self.finding(format!("workload `{name}` has no replica"), "check"))
                }
                Ok(replicas) => {
                    let stale = replicas
                        .iter()
                        .filter(|replica| judge(replica, &expected) == Proof::Other)
                        .count();
                    if stale > 0 {
                        let all = replicas.len();
                        found.push(self.finding(
                            format!("{stale} of {all} replicas of `{name}` hold another value"),
                            "reconcile",
                        ));
                    }
                }
            }
        }
    }

    /// Versions that readers no longer have, and that nobody ended: an edit by hand took their place.
    fn unended(&self, found: &mut Vec<Finding>) {
        for version in self.row.versions.iter().filter(|version| version.stage.is_none()) {
            let id = version
                .issued
                .as_ref()
                .map_or("of unknown id".into(), |issued| format!("called {issued} by its issuer"));
            found.push(self.finding(
                format!("{}, {id}, was replaced by hand and never ended", version.version),
                "rotate",
            ));
        }
    }

    /// Live credentials that carry our label, and that no version and no open rotation of this journal owns (L04).
    async fn orphans(&self, built: &Built, found: &mut Vec<Finding>) -> Result<(), Failure> {
        if built.issuer.facts().is_kept_by_hand() {
            // Nobody is asked to look for what is not known to be missing.
            return Ok(());
        }
        let live = match built.issuer.list("kw-").await {
            Ok(live) => live,
            Err(error) => {
                found.push(self.finding(format!("its issuer cannot be asked: {error}"), "check"));
                return Ok(());
            }
        };
        let rotations = self
            .session
            .journal
            .rotations(Some(&self.secret.name))
            .await
            .map_err(journal_failure)?;
        let is_ours = |label: &str| {
            rotations.iter().any(|row| label.starts_with(&row.rotation.label_prefix()))
        };
        let open: Option<&RotationId> = self.row.open.as_ref().map(|open| &open.rotation);
        for one in live {
            let label = one.label.map(|label| label.0).unwrap_or_default();
            // An id that a person gave is the name of the key, whatever the issuer calls it since.
            let is_this = |issued: &&IssuedId| **issued == one.issued || issued.id == label;
            let mut ids = self.row.versions.iter().filter_map(|version| version.issued.as_ref());
            let owned = ids.any(|issued| is_this(&issued));
            let in_work = open.is_some_and(|open| label.starts_with(&open.label_prefix()));
            if is_ours(&label) && !owned && !in_work {
                found.push(self.finding(
                    format!("a live credential that nobody owns carries our label `{label}`"),
                    "where",
                ));
            }
        }
        Ok(())
    }
}
