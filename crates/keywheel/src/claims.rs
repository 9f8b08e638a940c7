//! The claims that keep two installations off one target (H61): taken before a rotation begins, so that of two that race for a
//! target one is refused before it has made anything.

use keywheel_core::call::{CallError, RefusalKind};
use keywheel_core::plan::{Pinned, Plan, StorePlan};
use keywheel_core::planted;
use keywheel_core::secret::SecretName;
use keywheel_driver::{Claims, Owner, Severity, Store};
use keywheel_drivers::{Build, Context, StoreConfig};

use crate::compile::{Built, drivers_of};
use crate::config::{Config, Environment};
use crate::exit::Exit;
use crate::output::Failure;
use crate::session::{Session, journal_failure};
use crate::{code, prepare, session};

/// Makes the stores of these plans ours, all of them or none.
///
/// # Errors
/// A [`Failure`] that names the owner of a store that is another's.
pub(crate) async fn take<'p>(plans: impl IntoIterator<Item = &'p Plan>) -> Result<(), Failure> {
    let mut built = Vec::new();
    for plan in plans {
        built.push((plan, drivers_of(plan)?));
    }
    let mut taken: Vec<&dyn Claims> = Vec::new();
    let mut ours: Vec<&str> = Vec::new();
    let targets = targets(&built);
    for target in &targets {
        if ours.contains(&target.container.as_str()) {
            continue;
        }
        match target.take().await {
            Ok(Claimed::Taken) => taken.push(target.claims),
            Ok(Claimed::OursAlready) => {}
            Ok(Claimed::LeftAlone) => continue,
            Err(failure) => {
                for claims in taken {
                    // One that stays is ours without a rotation, and holds up nobody but another installation.
                    claims.release().await.unwrap_or_default();
                }
                return Err(failure);
            }
        }
        ours.push(&target.container);
    }
    Ok(())
}

/// What became of a claim.
enum Claimed {
    Taken,
    OursAlready,
    /// Nothing can be written there for now, and the preflight of that secret says why.
    LeftAlone,
}

fn cannot_be_made(error: &CallError) -> bool {
    let kinds = [RefusalKind::Local, RefusalKind::NotFound];
    matches!(error, CallError::Refused(refusal) if kinds.contains(&refusal.kind))
}

/// Makes the stores of a plan ours, whoever owned them.
pub(crate) async fn take_over(plan: &Plan) -> Result<(), Failure> {
    let built = [(plan, drivers_of(plan)?)];
    for target in targets(&built) {
        target.claims.take_over().await.map_err(|error| target.unclaimed(&error.to_string()))?;
    }
    Ok(())
}

/// Returns what stands against writing the stores of a plan: each store with the owner that is not us, in words.
pub(crate) async fn objections(
    plan: &Plan,
    built: &Built,
) -> Result<Vec<(String, String)>, Failure> {
    let mut found = Vec::new();
    for (store, planned) in built.stores.iter().zip(&plan.stores) {
        let Some(claims) = store.claims() else { continue };
        let name = &planned.bound.name;
        let owner = claims.owner().await.map_err(|error| {
            let failure = Failure::new(format!("the claim on store `{name}` cannot be read"));
            failure.code(code::STORE).exit(Exit::Refused).caused_by(error.to_string())
        })?;
        let objection = owner.objection(&format!("store `{name}`"));
        found.extend(objection.map(|objection| (name.clone(), objection)));
    }
    Ok(found)
}

/// A store that carries a claim, and what it is for.
struct Target<'a> {
    container: String,
    driver: &'a dyn Store,
    claims: &'a dyn Claims,
    plan: &'a Plan,
    store: &'a StorePlan,
}

impl Target<'_> {
    /// Takes the claim, unless nothing can be written there: a question leaves none behind. What gives no answer holds no emergency
    /// up; whose it is, its write asks again.
    async fn take(&self) -> Result<Claimed, Failure> {
        let passes = self.plan.is_emergency();
        let claimed = match passes {
            true => prepare::in_time(prepare::LOOK, self.try_to_take()).await,
            false => self.try_to_take().await.map_err(|error| error.to_string()),
        };
        match claimed {
            Ok(Ok(claimed)) => Ok(claimed),
            Ok(Err(objection)) => Err(not_ours(&self.plan.secret, &objection)),
            Err(_) if passes => Ok(Claimed::LeftAlone),
            Err(why) => Err(self.unclaimed(&why)),
        }
    }

    /// Takes the claim, or says whose it is.
    async fn try_to_take(&self) -> Result<Result<Claimed, String>, CallError> {
        let what = self.store.what();
        match self.claims.owner().await {
            Ok(Owner::Us) => return Ok(Ok(Claimed::OursAlready)),
            Ok(Owner::Nobody) => {}
            Ok(other) => return Ok(other.objection(&what).map_or(Ok(Claimed::LeftAlone), Err)),
            Err(error) if cannot_be_made(&error) => return Ok(Ok(Claimed::LeftAlone)),
            Err(error) => return Err(error),
        }
        let addresses: Vec<String> =
            self.store.slots.iter().map(|slot| slot.address.clone()).collect();
        let is_blocked = match self.driver.preflight(&addresses).await {
            Ok(findings) => findings.iter().any(|finding| finding.severity == Severity::Blocks),
            Err(CallError::Refused(refusal)) if refusal.is_for_good() => true,
            Err(error) => return Err(error),
        };
        if is_blocked {
            // Another installation may have claimed it while we looked: it is what blocks then, and the next target may not be taken.
            let owner = match planted!("claimed_while_we_look") {
                true => Owner::Nobody,
                false => self.claims.owner().await?,
            };
            return Ok(owner.objection(&what).map_or(Ok(Claimed::LeftAlone), Err));
        }
        match self.claims.take().await {
            Ok(true) => Ok(Ok(Claimed::Taken)),
            Ok(false) => Ok(Ok(Claimed::OursAlready)),
            Err(error) if cannot_be_made(&error) => Ok(Ok(Claimed::LeftAlone)),
            // Another installation may have been quicker; a login that may not write it is not another installation.
            Err(error) => match self.claims.owner().await?.objection(&what) {
                Some(objection) => Ok(Err(objection)),
                None => Err(error),
            },
        }
    }

    fn unclaimed(&self, why: &str) -> Failure {
        let failure = Failure::new(format!("{} cannot be claimed", self.store.what()));
        failure.code(code::STORE).exit(Exit::Refused).caused_by(why).now("nothing changed")
    }
}

/// Says that a store of a secret is another installation's.
pub(crate) fn not_ours(secret: &SecretName, objection: &str) -> Failure {
    let failure = Failure::new(format!("`{secret}` is not ours to rotate"));
    failure.code(code::CLAIMED).exit(Exit::Refused).caused_by(objection).now("nothing changed").hint(format!(
        "rotate it there; if that installation is gone for good, `keywheel adopt {secret} --take-over --because …` moves it here"
    ))
}

/// Returns the targets in the order of their containers: two that race for several meet at the first one.
fn targets<'a>(built: &'a [(&'a Plan, Built)]) -> Vec<Target<'a>> {
    let mut all: Vec<Target<'_>> = Vec::new();
    for (plan, built) in built {
        for (store, planned) in built.stores.iter().zip(&plan.stores) {
            let Some(claims) = store.claims() else { continue };
            let (container, driver) = (store.container(), store.as_ref());
            all.push(Target { container, driver, claims, plan, store: planned });
        }
    }
    all.sort_by(|a, b| a.container.cmp(&b.container));
    all
}

/// Returns where claims of ours still stand on stores that no secret of the environment has any more, each with a secret that it
/// was for. What an open rotation writes is none of them.
pub(crate) async fn left_behind(
    session: &Session,
    config: &Config,
    environment: &Environment,
) -> Result<Vec<(SecretName, String)>, Failure> {
    let folder = config.folder.display().to_string();
    let claim = session::claim(&session.journal.installation().id, &folder, &environment.name);
    let context = Context { claim: Some(claim), ..Context::at(&config.folder) };
    let deliveries = environment.secrets.iter().flat_map(|secret| &secret.deliveries);
    let stores = deliveries.filter_map(|delivery| environment.store(&delivery.store));
    let known = stores.map(|store| store.config.build(&context).map(|store| store.container()));
    // Where one store cannot be told, no claim can be said to belong to none.
    let Ok(known) = known.collect::<Result<Vec<String>, _>>() else { return Ok(Vec::new()) };
    let mut found: Vec<(SecretName, String)> = Vec::new();
    for row in session.journal.inventories().await.map_err(journal_failure)? {
        let is_asked = row.open.is_none() && row.secret.environment() == environment.name;
        for bound in row.claimed.iter().filter(|_| is_asked) {
            let config: Option<StoreConfig> = serde_json::from_value(bound.driver.clone()).ok();
            let store = config.and_then(|config| config.build(&context).ok());
            let Some(store) = store.filter(|store| !known.contains(&store.container())) else {
                continue;
            };
            let Some(claims) = store.claims() else { continue };
            let place = claims.place();
            let is_ours = claims.owner().await == Ok(Owner::Us);
            if is_ours && !found.iter().any(|(_, known)| *known == place) {
                found.push((row.secret.clone(), place));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use async_trait::async_trait;
    use keywheel_core::facts::StoreFacts;
    use keywheel_core::secret::SecretValue;
    use keywheel_driver::Finding;
    use keywheel_driver::store::{Edit, Written};

    use super::*;

    const FILE: &str = "
project: shop
stores:
  app: { env_file: { path: app.env } }
secrets:
  pepper: { issuer: random, stores: { app: PEPPER }, read_by: nobody, because: a test }
";

    /// A store that another installation claims in the moment in which we look at it.
    struct Raced {
        store: Arc<dyn Store>,
        rival: Arc<dyn Store>,
    }

    #[async_trait]
    impl Store for Raced {
        fn facts(&self) -> StoreFacts {
            self.store.facts()
        }

        fn container(&self) -> String {
            self.store.container()
        }

        async fn preflight(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
            self.rival.claims().unwrap().take().await?;
            self.store.preflight(addresses).await
        }

        async fn read(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
            self.store.read(addresses).await
        }

        async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
            self.store.write(edits).await
        }

        fn claims(&self) -> Option<&dyn Claims> {
            self.store.claims()
        }
    }

    fn plan(folder: &Path) -> Plan {
        let config = Config::parse(FILE, Path::new("keywheel.yaml"), folder)
            .unwrap_or_else(|problems| panic!("{problems:?}"));
        let (_, secret) = config.secret(&SecretName::new("pepper", "default").unwrap()).unwrap();
        prepare::draft_for("ours", &config, secret)
            .unwrap_or_else(|failure| panic!("{}", failure.text(false)))
    }

    #[tokio::test]
    async fn h61_a_claim_that_comes_while_we_look_is_a_refusal() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("app.env"), "PEPPER=old\n").unwrap();
        let plan = plan(folder.path());
        let built =
            |plan: &Plan| drivers_of(plan).unwrap_or_else(|it| panic!("{}", it.text(false)));
        let rival = built(&Plan { installation: "theirs".into(), ..plan.clone() }).stores.remove(0);
        let raced = Raced { store: built(&plan).stores.remove(0), rival };
        let target = Target {
            container: raced.container(),
            driver: &raced,
            claims: raced.claims().unwrap(),
            plan: &plan,
            store: &plan.stores[0],
        };
        let refused = target.take().await.err().expect("the store is another's").text(false);
        assert!(refused.contains("belongs to another installation"), "{refused}");
    }
}
