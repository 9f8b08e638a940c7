//! Secrets that others are made with: each of these is told where that one is, so that its plans hold all of it.

use keywheel_core::plan::{Part, Role};
use keywheel_core::secret::Field;
use keywheel_drivers::{Build, Context, Lent};

use super::problem::Problem;
use super::resolve::{Environment, Secret};
use super::scope::{Found, Scope};
use super::suggest::shown;
use crate::code;

/// Tells each issuer that works with another secret of the environment where that one is.
pub(super) fn lend(scope: &Scope<'_>, environment: &mut Environment, found: &mut Found) {
    for index in 0..environment.secrets.len() {
        let secret = &environment.secrets[index];
        let Some(borrows) = secret.issuer.borrows().map(str::to_owned) else { continue };
        let name = secret.name.name().to_owned();
        let path = ["secrets", &name, "issuer", secret.issuer.kind()];
        let names = environment.secrets.iter().map(|secret| secret.name.name());
        if found.keep(scope.known("secret", &borrows, names, &path)).is_none() {
            continue;
        }
        let mut issuer = secret.issuer.clone();
        let lender = environment.secrets.iter().find(|secret| secret.name.name() == borrows);
        let lent = lender.and_then(|lender| lent(environment, lender, scope.context));
        let lent = lent.ok_or_else(|| {
            let message = format!(
                "`secrets.{}.issuer` works with a secret that no readable store holds as a whole",
                shown(&name)
            );
            Problem::new(code::UNSUITABLE, message).at(scope.tree.place_of(&path))
        });
        let Some(lent) = found.keep(lent) else { continue };
        let taken = issuer.lend(&lent).map_err(|refusal| scope.refused(refusal, &path));
        if found.keep(taken).is_some() {
            environment.secrets[index].issuer = issuer;
        }
    }
}

/// Finds a store that can be read and has a slot for the whole value of a secret.
fn lent<'e>(
    environment: &'e Environment,
    secret: &'e Secret,
    context: &Context,
) -> Option<Lent<'e>> {
    secret.deliveries.iter().find_map(|delivery| {
        let store = &environment.store(&delivery.store)?.config;
        let is_readable = store.build(context).ok()?.facts().is_readable();
        let slot = |role| {
            let mut slots = delivery.slots.iter().filter(|slot| slot.role == role);
            let whole = slots.find(|slot| slot.part == Part::Plain(Field::value()))?;
            Some(whole.address.as_str())
        };
        let current = slot(Role::Current).filter(|_| is_readable)?;
        Some(Lent {
            issuer: &secret.issuer,
            strategy: secret.strategy,
            store,
            current,
            also_accepted: slot(Role::AlsoAccepted),
        })
    })
}
