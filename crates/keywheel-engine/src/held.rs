//! What the stores of a secret hold together: each may hold some fields of its credential only.
//!
//! It guesses nothing: a field that two stores hold must be the same in both, or there is no one credential.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use futures_util::future::join_all;
use keywheel_core::call::{CallError, Refusal, RefusalKind};
use keywheel_core::plan::{Part, Plan, StorePlan};
use keywheel_core::planted;
use keywheel_core::secret::{Credential, Field, SecretValue};
use keywheel_driver::Store;

use crate::perform;

/// Two stores that hold different values of one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    /// The store that was read first.
    pub first: String,
    /// The other one.
    pub other: String,
    /// The field.
    pub field: Field,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, other, field } = self;
        write!(f, "stores `{first}` and `{other}` hold different values")?;
        if *field == Field::value() { Ok(()) } else { write!(f, " in `{}`", field.as_str()) }
    }
}

impl From<Disagreement> for Refusal {
    fn from(disagreement: Disagreement) -> Self {
        Self::operator(RefusalKind::Disagree, disagreement.to_string())
    }
}

/// Reads the credential that the current slots of one store hold; none where they are absent, or where the store cannot be read.
///
/// # Errors
/// [`CallError`] where the store cannot be read or its slots do not fit each other.
async fn by(store: &dyn Store, planned: &StorePlan) -> Result<Option<Credential>, CallError> {
    if !planned.facts.is_readable() {
        return Ok(None);
    }
    let addresses: Vec<String> = planned.slots.iter().map(|slot| slot.address.clone()).collect();
    let held = store.read(&addresses).await?;
    Ok(perform::credential_of(&planned.slots, &held)?)
}

/// Reads each of these stores, and returns what they hold in their order. One that is slow holds up no other.
pub async fn by_each(
    stores: &[Arc<dyn Store>],
    plan: &Plan,
) -> Vec<Result<Option<Credential>, CallError>> {
    let reads = stores.iter().zip(&plan.stores).map(|(store, planned)| by(store.as_ref(), planned));
    join_all(reads).await
}

/// Joins what the stores hold, by their names, into one credential; none where none holds anything.
///
/// # Errors
/// [`Disagreement`] where two of them hold different values of one field.
pub fn together(found: &[(&str, Credential)]) -> Result<Option<Credential>, Disagreement> {
    let mut whole: Option<Credential> = None;
    for (other, held) in found {
        let sum = whole.unwrap_or_default();
        if let Some(field) = contradicted(&sum, held) {
            let holds = |(_, one): &&(&str, Credential)| one.field(field).is_some();
            let (first, _) = found.iter().find(holds).expect("the field came from one of them");
            let [first, other] = [first, other].map(|name| (*name).to_owned());
            return Err(Disagreement { first, other, field: field.clone() });
        }
        whole = Some(with(sum, held));
    }
    Ok(whole)
}

/// Adds to what one store holds the fields that it lacks, from each store that agrees with what is known by then: the whole
/// credential, as this store would have it.
pub fn completed<'c>(
    held: &Credential,
    all: impl IntoIterator<Item = &'c Credential>,
) -> Credential {
    all.into_iter().fold(held.duplicate(), |whole, other| match contradicted(&whole, other) {
        None => with(whole, other),
        Some(_) => whole,
    })
}

/// Returns whether a credential has every field that these stores are given.
pub fn is_whole(stores: &[StorePlan], credential: &Credential) -> bool {
    let fields = stores.iter().flat_map(|store| given(store).1);
    fields.into_iter().all(|field| credential.field(&field).is_some())
}

/// Returns whether the stores that can be read hold every field that any of these stores is given: then what is written to the others
/// can be told from them.
pub fn gives_every_field(stores: &[StorePlan]) -> bool {
    let readable = stores.iter().filter(|store| store.facts.is_readable());
    let parts = readable.flat_map(|store| &store.slots).map(|slot| &slot.part);
    let read: BTreeSet<Field> = parts.flat_map(Part::fields).collect();
    let any_is_enough = planted!("any_readable_store_is_a_way_back") && !read.is_empty();
    any_is_enough || stores.iter().all(|store| given(store).1.is_subset(&read))
}

/// Returns those of a plan's stores that no field links to the first one, on whatever way: nothing tells whether what they hold
/// belongs to the same version.
pub fn apart(stores: &[StorePlan]) -> Vec<&str> {
    let mut apart: Vec<(&str, BTreeSet<Field>)> = stores.iter().map(given).collect();
    let mut linked = match apart.is_empty() {
        true => BTreeSet::new(),
        false => apart.remove(0).1,
    };
    while let Some(next) = apart.iter().position(|(_, fields)| !fields.is_disjoint(&linked)) {
        linked.extend(apart.remove(next).1);
    }
    apart.into_iter().map(|(name, _)| name).collect()
}

fn given(store: &StorePlan) -> (&str, BTreeSet<Field>) {
    let fields = store.slots.iter().flat_map(|slot| match &slot.part {
        Part::PasswordOf(_) => vec![Field::new("username"), Field::new("password")],
        part => part.fields(),
    });
    (&store.bound.name, fields.collect())
}

/// The first field of which two credentials hold different values.
fn contradicted<'c>(one: &Credential, other: &'c Credential) -> Option<&'c Field> {
    let differs = |(field, value): &(&Field, &SecretValue)| {
        one.field(field).is_some_and(|known| !known.same_as(value))
    };
    other.fields().find(differs).map(|(field, _)| field)
}

fn with(whole: Credential, other: &Credential) -> Credential {
    other.fields().fold(whole, |whole, (field, value)| whole.with(field.clone(), value.duplicate()))
}

#[cfg(test)]
mod tests {
    use keywheel_core::facts::{Pickup, ReadBack, Revert, StoreFacts};
    use keywheel_core::plan::{Bound, Role, Slot};
    use keywheel_core::time::Span;

    use super::*;

    const STORE: StoreFacts = StoreFacts {
        read_back: ReadBack::Value,
        conditional: true,
        staged: false,
        revert: Revert::Restore,
        history: false,
        pickup: Pickup::Roll,
        settle_for: Span::ZERO,
        answers_logins: false,
        leaves_behind: false,
        longest_run: None,
    };

    fn credential(fields: &[(&str, &str)]) -> Credential {
        let value = |text: &str| SecretValue::new(text.as_bytes().to_vec());
        fields.iter().fold(Credential::default(), |whole, (field, text)| {
            whole.with(Field::new(*field), value(text))
        })
    }

    const WHOLE: &[(&str, &str)] = &[("username", "app"), ("password", "one")];

    #[test]
    fn stores_that_hold_different_fields_hold_one_credential_together() {
        let (whole, password) = (credential(WHOLE), credential(&WHOLE[1..]));
        let found = [("files", password.duplicate()), ("app", whole.duplicate())];
        assert!(together(&found).unwrap().unwrap().same_as(&whole));
        assert!(completed(&password, [&password, &whole]).same_as(&whole));
        assert!(together(&[]).unwrap().is_none());
    }

    #[test]
    fn stores_that_share_no_field_cannot_be_compared() {
        let store = |name: &str, fields: &[&str]| {
            let slot = |field: &&str| Slot {
                address: (*field).into(),
                role: Role::Current,
                part: Part::Plain(Field::new(*field)),
            };
            StorePlan {
                bound: Bound { name: name.into(), driver: serde_json::json!({}) },
                facts: STORE,
                slots: fields.iter().map(slot).collect(),
                pin: None,
            }
        };
        let mut stores = vec![store("app", &["id", "key"]), store("files", &["key"])];
        assert!(apart(&stores).is_empty());
        stores.push(store("other", &["url"]));
        assert_eq!(apart(&stores), ["other"]);
        stores.push(store("too", &["url"]));
        assert_eq!(apart(&stores), ["other", "too"], "a pair of their own");
        stores.pop();
        assert!(apart(&stores[2..]).is_empty(), "one alone has nothing to be compared with");
    }

    #[test]
    fn h40_stores_that_are_read_are_a_way_back_where_they_hold_every_field() {
        let store = |fields: &[&str], read_back| {
            let slot = |field: &&str| Slot {
                address: (*field).into(),
                role: Role::Current,
                part: Part::Plain(Field::new(*field)),
            };
            StorePlan {
                bound: Bound { name: "app".into(), driver: serde_json::json!({}) },
                facts: StoreFacts { read_back, ..STORE },
                slots: fields.iter().map(slot).collect(),
                pin: None,
            }
        };
        let ci = || store(&["id", "key"], ReadBack::Timestamp);
        assert!(gives_every_field(&[ci(), store(&["id", "key"], ReadBack::Value)]));
        let (id, key) = (store(&["id"], ReadBack::Value), store(&["key"], ReadBack::Value));
        assert!(!gives_every_field(&[ci(), id.clone()]));
        assert!(gives_every_field(&[ci(), id, key]));
        assert!(!gives_every_field(&[ci()]));
    }

    #[test]
    fn a_field_of_which_two_stores_hold_different_values_is_named() {
        let other = credential(&[("password", "two")]);
        let user = ("users", credential(&WHOLE[..1]));
        let found = [user, ("app", credential(WHOLE)), ("files", other.duplicate())];
        let said = together(&found).err().unwrap().to_string();
        assert_eq!(said, "stores `app` and `files` hold different values in `password`");
        assert!(
            completed(&other, [&credential(WHOLE)]).same_as(&other),
            "nothing is taken from a store that contradicts it"
        );
    }
}
