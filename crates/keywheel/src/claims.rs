//! The claims that keep two installations off one target (H61): taken before a rotation begins, so that of two that race for a
//! target one is refused before it has made anything.

use keywheel_core::call::{CallError, RefusalKind};
use keywheel_core::plan::Plan;
use keywheel_core::secret::SecretName;
use keywheel_driver::{Claims, Owner};
use keywheel_drivers::{Build, Context, StoreConfig};

use crate::compile::{Built, drivers_of};
use crate::config::{Config, Environment};
use crate::exit::Exit;
use crate::output::Failure;
use crate::session::{Session, journal_failure};
use crate::{code, session};

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
    for target in targets(&built) {
        match target.claims.take().await {
            Ok(true) => taken.push(target.claims),
            Ok(false) => {}
            // Where none can be made, the preflight of that secret says why nothing can be written there.
            Err(error) if cannot_be_made(&error) => {}
            Err(error) => {
                for claims in taken {
                    // One that stays is ours without a rotation, and holds up nobody but another installation.
                    claims.release().await.unwrap_or_default();
                }
                return Err(target.refused(&error));
            }
        }
    }
    Ok(())
}

fn cannot_be_made(error: &CallError) -> bool {
    let kinds = [RefusalKind::Local, RefusalKind::NotFound];
    matches!(error, CallError::Refused(refusal) if kinds.contains(&refusal.kind))
}

fn is_anothers(error: &CallError) -> bool {
    matches!(error, CallError::Refused(refusal) if refusal.kind == RefusalKind::Permission)
}

/// Makes the stores of a plan ours, whoever owned them.
pub(crate) async fn take_over(plan: &Plan) -> Result<(), Failure> {
    let built = [(plan, drivers_of(plan)?)];
    for target in targets(&built) {
        target.claims.take_over().await.map_err(|error| target.refused(&error))?;
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
    claims: &'a dyn Claims,
    plan: &'a Plan,
    store: &'a str,
}

impl Target<'_> {
    fn refused(&self, error: &CallError) -> Failure {
        match error {
            CallError::Refused(refusal) if is_anothers(error) => {
                not_ours(&self.plan.secret, &refusal.message)
            }
            _ => {
                let failure = Failure::new(format!("store `{}` cannot be claimed", self.store));
                failure
                    .code(code::STORE)
                    .exit(Exit::Refused)
                    .caused_by(error.to_string())
                    .now("nothing changed")
            }
        }
    }
}

/// Says that a store of a secret is another installation's.
pub(crate) fn not_ours(secret: &SecretName, objection: &str) -> Failure {
    let failure = Failure::new(format!("`{secret}` is not ours to rotate"));
    failure.code(code::CLAIMED).exit(Exit::Refused).caused_by(objection).now("nothing changed").hint(format!(
        "rotate it there; if that installation is gone for good, `keywheel adopt {secret} --take-over --because …` moves it here"
    ))
}

/// Returns the targets in the order of their names, each once: two that race for several meet at the first one.
fn targets<'a>(built: &'a [(&'a Plan, Built)]) -> Vec<Target<'a>> {
    let mut all: Vec<Target<'_>> = Vec::new();
    for (plan, built) in built {
        for (store, planned) in built.stores.iter().zip(&plan.stores) {
            let Some(claims) = store.claims() else { continue };
            let store =
                Target { container: store.container(), claims, plan, store: &planned.bound.name };
            all.push(store);
        }
    }
    all.sort_by(|a, b| a.container.cmp(&b.container));
    all.dedup_by(|a, b| a.container == b.container);
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
