//! `keywheel reconcile`: writes the current version where it is missing, and rolls stale workloads. It never mints, never
//! revokes, and never writes what is revoked.

use std::sync::Arc;

use clap::Args;
use keywheel_core::facts::Authority;
use keywheel_core::fingerprint::Compared;
use keywheel_core::inventory::{Inventory, Version};
use keywheel_core::plan::{Plan, Role, StorePlan};
use keywheel_core::planted;
use keywheel_core::secret::{Credential, SecretName, SecretValue};
use keywheel_core::version::Stage;
use keywheel_driver::issuer::{Identity, Verdict};
use keywheel_driver::slot;
use keywheel_driver::store::{Accept, Edit, Store};
use keywheel_driver::workload::{Ensure, Stamp};
use keywheel_engine::perform::PutRight;
use keywheel_engine::{NoWatch, held};
use serde_json::json;

use crate::cli::Globals;
use crate::compile::{Built, drivers_of};
use crate::config::{Config, Secret};
use crate::exit::Exit;
use crate::output::{Failure, Format};
use crate::select::Selection;
use crate::session::{Session, engine_failure};
use crate::{code, confirm, prepare};

/// Write the current version where it is missing, and roll workloads that hold another one
#[derive(Debug, Args)]
pub(crate) struct ReconcileArgs {
    #[command(flatten)]
    selection: Selection,
    /// Accept what the stores hold now as a version that was made by hand
    #[arg(long)]
    keep: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(args: &ReconcileArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let environment = args.selection.environment(&config)?;
    let secrets = args.selection.secrets(globals, &config).await?;
    let session = Session::act(globals, &config, &environment.name, Arc::new(NoWatch))?;
    let question = "Make stores and workloads agree with the journal?";
    confirm::go_on(environment, question, confirm::SAY_YES, args.yes)?;
    let mut done = Vec::new();
    let groups = session.engine.open_groups().await.map_err(engine_failure)?;
    let (open, rest): (Vec<&Secret>, Vec<&Secret>) = secrets
        .into_iter()
        .partition(|secret| !args.keep && groups.iter().any(|group| group.contains(&secret.name)));
    for group in &groups {
        if open.iter().any(|secret| group.contains(&secret.name)) {
            done.extend(put_right(&session, group).await?);
        }
    }
    for secret in rest {
        let work = Work::of(&session, &config, secret).await?;
        done.extend(if args.keep { work.keep().await? } else { work.restore().await? });
    }
    let output = globals.output();
    match output.format {
        Format::Json => output.json(&json!({ "done": done }))?,
        Format::Text if done.is_empty() => output.text("nothing to do\n")?,
        Format::Text => {
            output.text(&done.iter().map(|line| format!("{line}\n")).collect::<String>())?
        }
    }
    Ok(Exit::Done)
}

/// During a retirement, and while a rotation waits for an operator, its own plan says what the stores should hold.
async fn put_right(session: &Session, group: &[SecretName]) -> Result<Vec<String>, Failure> {
    let written = session.engine.put_right(group).await.map_err(|error| {
        let secret = &group[0];
        engine_failure(error)
            .now("what was written before stays; it can be run again")
            .hint(format!("`keywheel resume {secret}` lets a rotation that is on its way go on"))
    })?;
    let told = |(secret, done): (SecretName, PutRight)| {
        let wrote = done.stores.iter().map(|store| format!("{secret}: wrote store `{store}`"));
        let holds = |name: &String| format!("{secret}: every replica of `{name}` holds it");
        wrote.chain(done.workloads.iter().map(holds)).collect::<Vec<_>>()
    };
    Ok(written.into_iter().flat_map(told).collect())
}

struct Work<'a> {
    session: &'a Session,
    row: Inventory,
    plan: Plan,
    built: Built,
}

impl<'a> Work<'a> {
    async fn of(session: &'a Session, config: &Config, secret: &Secret) -> Result<Self, Failure> {
        let plan = prepare::pinned_draft(session, config, secret).await?;
        let built = drivers_of(&plan)?;
        let Some(row) = session.inventory(&secret.name).await? else {
            let failure =
                Failure::new(format!("`{}` was never adopted", secret.name)).code(code::NOT_NOW);
            return Err(failure
                .exit(Exit::Refused)
                .hint(format!("keywheel adopt {}", secret.name)));
        };
        if row.open.is_some() {
            let failure = Failure::new(format!("`{}` has an open rotation", secret.name))
                .code(code::OPEN_ALREADY);
            let failure = failure.exit(Exit::Refused).now("nothing changed");
            return Err(failure.hint(format!(
                "`keywheel reconcile {}` without `--keep` puts back what its plan says",
                secret.name
            )));
        }
        Ok(Self { session, row, plan, built })
    }

    /// What stands in the stores becomes the next version, made by hand.
    async fn keep(&self) -> Result<Vec<String>, Failure> {
        let Some(held) = prepare::agreed(&self.plan, &self.built).await? else {
            return Ok(Vec::new());
        };
        let seen = self.session.engine.fingerprint(&self.plan.stores, &held);
        if !self.is_known(&held) {
            let issued = match self.built.issuer.identify(&held).await {
                Ok(Identity::Known { issued, .. }) => Some(issued),
                _ => None,
            };
            let mut version = self.row.next;
            let keep = |row: Option<Inventory>| {
                let mut row = row?;
                // Where an issuer can end versions, the former one stays listed: nobody has ended it, and `doctor` says so.
                let is_listed = self.plan.issuer.facts.destroy;
                row.versions.retain(|one| one.stage != Some(Stage::Current) || is_listed);
                // A login whose password somebody else set is the same one, and not a second one to be ended.
                row.versions.retain(|one| issued.is_none() || one.issued != issued);
                row.versions.iter_mut().for_each(|one| one.stage = None);
                row.versions.push(Version::adopted(row.next, issued.clone(), None, Some(seen)));
                version = row.next;
                row.next = version.successor();
                Some(row)
            };
            let action = "adopted a hand-made version";
            let noted = self.session.engine.note(&self.plan.secret, action, keep).await;
            noted.map_err(engine_failure)?;
            return Ok(vec![format!(
                "{}: what the stores hold is {version} now",
                self.plan.secret
            )]);
        }
        Ok(Vec::new())
    }

    fn is_known(&self, held: &Credential) -> bool {
        let known = self.row.at(Stage::Current).and_then(|current| current.fingerprint);
        known.is_some_and(|known| {
            known.compare(&self.session.engine.fingerprint(&self.plan.stores, held))
                == Compared::Same
        })
    }

    async fn restore(&self) -> Result<Vec<String>, Failure> {
        prepare::check_pins(&self.plan, Some(&self.row)).await?;
        let mut done = Vec::new();
        let mut missing = Vec::new();
        let mut good = None;
        let mut read = Vec::new();
        let each = held::by_each(&self.built.stores, &self.plan).await;
        for (planned, held) in self.plan.stores.iter().zip(each) {
            read.push(held.map_err(|error| self.unreadable(planned, &error.to_string()))?);
        }
        let stores = self.built.stores.iter().zip(&self.plan.stores).zip(&read);
        // Whether anything is missing from a store that cannot be read, nobody can tell.
        let stores = stores.filter(|((_, planned), _)| planned.facts.is_readable());
        for ((store, planned), held) in stores {
            let whole = held.as_ref().map(|held| held::completed(held, read.iter().flatten()));
            match whole {
                Some(whole) if self.is_known(&whole) => good = Some(whole),
                _ => missing.push((store, planned)),
            }
        }
        if !missing.is_empty() {
            let good = match good {
                Some(good) => good,
                None => self.sealed().await?,
            };
            self.check_accepted(&good).await?;
            for (store, planned) in missing {
                self.write(store.as_ref(), planned, &good).await?;
                done.push(format!("{}: wrote store `{}`", self.plan.secret, planned.bound.name));
            }
        }
        done.extend(self.roll().await?);
        Ok(done)
    }

    async fn sealed(&self) -> Result<Credential, Failure> {
        let current =
            self.row.at(Stage::Current).map_or(self.plan.pending, |current| current.version);
        let key = keywheel_engine::perform::credential_key(&self.plan, current);
        let sealed =
            self.session.journal.unseal(&key).await.map_err(crate::session::journal_failure)?;
        sealed.ok_or_else(|| {
            let failure = Failure::new(format!("the stores do not hold all of {current} of `{}` any more, and it is not sealed", self.plan.secret));
            failure.code(code::LOST).exit(Exit::Refused).now("nothing changed; what the stores hold now stays").hint(
                "`keywheel reconcile --keep` accepts what they hold as a version made by hand; `keywheel rotate` then replaces it",
            )
        })
    }

    /// A journal may be older than the world: what its issuer refuses is given to no reader.
    async fn check_accepted(&self, good: &Credential) -> Result<(), Failure> {
        let is_asked = self.plan.issuer.facts.authority == Authority::Issuer;
        if !is_asked || planted!("refused_value_is_put_back") {
            return Ok(());
        }
        let Ok(Verdict::Refused) = self.built.issuer.verify(good).await else { return Ok(()) };
        let current = self.row.at(Stage::Current).map(|current| current.version.to_string());
        let (what, secret) = (current.unwrap_or("the value".into()), &self.plan.secret);
        let issuer = &self.plan.issuer.bound.name;
        let failure = Failure::new(format!(
            "issuer `{issuer}` refuses {what} of `{secret}`, which would be written back"
        ));
        let failure = failure.code(code::REFUSED).exit(Exit::Refused);
        Err(failure.now("nothing changed; what the stores hold now stays").hint(
            "`keywheel reconcile --keep` accepts what they hold as a version made by hand; `keywheel rotate` then replaces it",
        ))
    }

    fn unreadable(&self, planned: &StorePlan, cause: &str) -> Failure {
        let failure =
            Failure::new(format!("store `{}` failed", planned.bound.name)).code(code::STORE);
        failure
            .exit(Exit::Refused)
            .caused_by(cause)
            .now("what was written before stays; it can be run again")
    }

    async fn write(
        &self,
        store: &dyn Store,
        planned: &StorePlan,
        good: &Credential,
    ) -> Result<(), Failure> {
        let addresses: Vec<String> =
            planned.slots.iter().map(|slot| slot.address.clone()).collect();
        let failed = |error: String| self.unreadable(planned, &error);
        let present = store.read(&addresses).await.map_err(|error| failed(error.to_string()))?;
        let mut wanted: Vec<Option<SecretValue>> = Vec::new();
        for (slot, present) in planned.slots.iter().zip(&present) {
            wanted.push(match slot.role {
                Role::Current => slot::compose(&slot.part, good, present.as_ref())
                    .map_err(|error| failed(error.to_string()))?,
                Role::AlsoAccepted => present.as_ref().map(|_| SecretValue::new(Vec::new())),
            });
        }
        let edits: Vec<Edit<'_>> = planned
            .slots
            .iter()
            .zip(&wanted)
            .zip(&present)
            .map(|((slot, wanted), present)| Edit {
                address: &slot.address,
                accept: Accept::OneOf(vec![present.as_ref()]),
                value: wanted.as_ref(),
            })
            .collect();
        store.write(&edits).await.map_err(|error| failed(error.to_string()))?;
        Ok(())
    }

    async fn roll(&self) -> Result<Vec<String>, Failure> {
        let fingerprinter = &self.session.journal.installation().fingerprinter;
        let mut done = Vec::new();
        for (workload, planned) in self.built.workloads.iter().zip(&self.plan.workloads) {
            let name = &planned.bound.name;
            let failed = |error: String| {
                let failure = Failure::new(format!("workload `{name}` could not be rolled"))
                    .code(code::STORE);
                failure
                    .exit(Exit::Refused)
                    .caused_by(error)
                    .now("stores agree; it can be run again")
            };
            let slots = prepare::slots_now(&self.plan, &self.built, planned, fingerprinter).await?;
            let held_since = self.row.rotated_at.unwrap_or(self.session.now());
            let ensure = Ensure {
                stamps: vec![Stamp::new(&self.plan.secret, &slots, fingerprinter)],
                ..Ensure::new(&slots, held_since, fingerprinter)
            };
            workload.roll(&ensure).await.map_err(|error| failed(error.to_string()))?;
            done.push(format!("{}: every replica of `{name}` holds it", self.plan.secret));
        }
        Ok(done)
    }
}
