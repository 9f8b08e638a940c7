//! What an emergency must take for exposed beside its suspects: whatever else stands in the stores from which they may have
//! leaked. Names only; nothing here looks at a value.

use std::collections::BTreeMap;
use std::time::Duration;

use keywheel_core::incident::{Beside, BesideSlot};
use keywheel_core::plan::Plan;
use keywheel_core::secret::SecretName;
use keywheel_drivers::{Build, Context};

use crate::config::resolve::{Delivery, Store};
use crate::config::{Config, Environment, Secret};

/// How long the list of one store may hold up an emergency.
const LOOK: Duration = Duration::from_secs(5);

/// Lists what stands in the stores of secrets, or in one of them, by the name of the store.
pub(crate) async fn list(
    config: &Config,
    environment: &Environment,
    secrets: &[&Secret],
    in_store: Option<&str>,
) -> BTreeMap<String, Beside> {
    let context = Context::at(&config.folder);
    let mut listed = BTreeMap::new();
    let stores = secrets.iter().flat_map(|secret| &secret.deliveries).map(|one| &one.store);
    for name in stores.filter(|name| in_store.is_none_or(|only| only == *name)) {
        if let Some(store) = environment.store(name).filter(|_| !listed.contains_key(name)) {
            listed.insert(name.clone(), look(&context, environment, store).await);
        }
    }
    listed
}

/// Returns what is left of a list for a secret that owns some of it.
pub(crate) fn beside(listed: &BTreeMap<String, Beside>, secret: &Secret) -> Vec<Beside> {
    let of_delivery = |delivery: &Delivery| {
        let mut beside = listed.get(&delivery.store)?.clone();
        beside.slots.retain(|slot| slot.owner.as_ref() != Some(&secret.name));
        Some(beside)
    };
    secret.deliveries.iter().filter_map(of_delivery).collect()
}

async fn look(context: &Context, environment: &Environment, store: &Store) -> Beside {
    let not_listed = |why: String| Beside {
        store: store.name.clone(),
        slots: Vec::new(),
        not_listed: Some(why),
    };
    let driver = match store.config.build(context) {
        Ok(driver) => driver,
        Err(refusal) => return not_listed(refusal.message),
    };
    let addresses = match tokio::time::timeout(LOOK, driver.addresses()).await {
        Ok(Ok(Some(addresses))) => addresses,
        Ok(Ok(None)) => return not_listed("its kind does not tell what else it holds".into()),
        Ok(Err(error)) => return not_listed(error.to_string()),
        Err(_) => return not_listed("it did not answer in time".into()),
    };
    let owners = Owners::of(context, environment, &driver.container());
    let slots = addresses
        .into_iter()
        .map(|address| BesideSlot { owner: owners.of_slot(&address), address });
    Beside { store: store.name.clone(), slots: slots.collect(), not_listed: None }
}

/// Who owns the slots of one container, under whichever name it is declared.
struct Owners<'a> {
    environment: &'a Environment,
    stores: Vec<&'a str>,
}

impl<'a> Owners<'a> {
    fn of(context: &Context, environment: &'a Environment, container: &str) -> Self {
        let is_it = |store: &&Store| {
            store.config.build(context).is_ok_and(|driver| driver.container() == container)
        };
        let stores = environment.stores.iter().filter(is_it).map(|store| store.name.as_str());
        Self { environment, stores: stores.collect() }
    }

    fn of_slot(&self, address: &str) -> Option<SecretName> {
        let owns = |secret: &&Secret| {
            secret.deliveries.iter().any(|delivery| {
                self.stores.contains(&delivery.store.as_str())
                    && delivery.slots.iter().any(|slot| slot.address == address)
            })
        };
        self.environment.secrets.iter().find(owns).map(|secret| secret.name.clone())
    }
}

/// What is to be done about a slot beside a suspect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It belongs to a secret of the same emergency.
    Rotated,
    /// It belongs to another secret.
    Managed(SecretName),
    /// keywheel does not manage it.
    Unmanaged,
}

/// A slot beside a suspect, and what is to be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exposed {
    pub(crate) store: String,
    pub(crate) address: String,
    pub(crate) standing: Standing,
}

/// What the plans of one emergency say of the stores of their suspects: each slot once, and which store could not be listed.
pub(crate) fn merged(plans: &[&Plan]) -> (Vec<Exposed>, BTreeMap<String, String>) {
    let mut exposed = BTreeMap::new();
    let mut not_listed = BTreeMap::new();
    let incidents = plans.iter().filter_map(|plan| plan.incident.as_ref());
    for beside in incidents.flat_map(|incident| &incident.beside) {
        not_listed.extend(beside.not_listed.clone().map(|why| (beside.store.clone(), why)));
        for slot in &beside.slots {
            let standing = match &slot.owner {
                None => Standing::Unmanaged,
                Some(owner) if plans.iter().any(|plan| plan.secret == *owner) => Standing::Rotated,
                Some(owner) => Standing::Managed(owner.clone()),
            };
            exposed.insert((beside.store.clone(), slot.address.clone()), standing);
        }
    }
    let exposed = exposed.into_iter().map(|((store, address), standing)| Exposed {
        store,
        address,
        standing,
    });
    (exposed.collect(), not_listed)
}

impl Exposed {
    /// Says what is to be done.
    pub(crate) fn advice(&self) -> String {
        match &self.standing {
            Standing::Rotated => "rotated in this emergency".into(),
            Standing::Managed(owner) => {
                format!(
                    "managed by `{owner}`, not in this emergency: keywheel rotate {owner} --emergency"
                )
            }
            Standing::Unmanaged => {
                "not managed by keywheel: if it is a secret, rotate it by hand".into()
            }
        }
    }
}
