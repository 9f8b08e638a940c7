//! One value in two places: two secrets that hold the same value open each other, and what ends one of them ends both.
//!
//! Values are compared in memory, and only names are told. A store that cannot be read now is passed over.

use keywheel_core::secret::{Credential, Field, SecretName};
use keywheel_engine::held;

use crate::compile::drivers_of;
use crate::config::{Config, Secret};
use crate::output::Output;
use crate::prepare;

/// The values that stores hold now, by the secret that they are of.
pub(crate) struct Copies {
    held: Vec<(SecretName, Credential)>,
    unread: Vec<SecretName>,
}

impl Copies {
    /// Reads the values of every secret of every environment.
    pub(crate) async fn of_all(config: &Config) -> Self {
        Self::read(config, |_| true).await
    }

    /// Reads the values of the secrets with these names, in every environment.
    pub(crate) async fn of_same_name<'s>(
        config: &Config,
        secrets: impl IntoIterator<Item = &'s Secret>,
    ) -> Self {
        let names: Vec<&str> = secrets.into_iter().map(|secret| secret.name.name()).collect();
        Self::read(config, |secret| names.contains(&secret.name.name())).await
    }

    async fn read(config: &Config, is_wanted: impl Fn(&Secret) -> bool) -> Self {
        let mut copies = Self { held: Vec::new(), unread: Vec::new() };
        let secrets = config.environments.iter().flat_map(|environment| &environment.secrets);
        for secret in secrets.filter(|secret| is_wanted(secret)) {
            match held(config, secret).await {
                Some(held) => {
                    copies.held.extend(held.into_iter().map(|held| (secret.name.clone(), held)))
                }
                None => copies.unread.push(secret.name.clone()),
            }
        }
        copies
    }

    /// Returns the other secrets that hold a value of this one, in order.
    pub(crate) fn of(&self, secret: &SecretName) -> Vec<&SecretName> {
        let own: Vec<&Credential> =
            self.held.iter().filter(|(name, _)| name == secret).map(|(_, held)| held).collect();
        let is_copy = |(name, held): &&(SecretName, Credential)| {
            name != secret && own.iter().any(|own| share(own, held))
        };
        let mut copies: Vec<&SecretName> =
            self.held.iter().filter(is_copy).map(|(name, _)| name).collect();
        copies.dedup();
        copies
    }

    /// Says which other secrets hold the value of this one.
    pub(crate) fn notes(&self, secret: &SecretName) -> Vec<String> {
        let told = |copy: &SecretName| {
            format!(
                "`{copy}` holds the same value and keeps it: where its issuer ends it, it ends there too; `keywheel rotate {copy}` gives it one of its own"
            )
        };
        self.of(secret).into_iter().map(told).collect()
    }

    /// Tells beside the data which other secrets hold the values of these.
    pub(crate) fn tell<'s>(&self, secrets: impl IntoIterator<Item = &'s Secret>, output: Output) {
        for secret in secrets {
            for note in self.notes(&secret.name) {
                output.note(&format!("  {}: {note}", secret.name.name()));
            }
        }
    }

    /// Returns the secrets whose stores could not be read.
    pub(crate) fn unread(&self) -> &[SecretName] {
        &self.unread
    }
}

/// Reads what the stores of a secret hold; none where one of them cannot be read.
async fn held(config: &Config, secret: &Secret) -> Option<Vec<Credential>> {
    let plan = prepare::draft_for("", config, secret).ok()?;
    let built = drivers_of(&plan).ok()?;
    let mut all: Vec<Credential> = Vec::new();
    for held in held::by_each(&built.stores, &plan).await {
        let held = held.ok()?;
        all.extend(held.filter(|held| !all.iter().any(|known| known.same_as(held))));
    }
    Some(all)
}

/// Whether two credentials have a value in common. A user name is none.
fn share(one: &Credential, other: &Credential) -> bool {
    let mut pairs = one.fields().flat_map(|one| other.fields().map(move |other| (one, other)));
    let is_login = |field: &Field| field.as_str() == "username";
    pairs.any(|((field, value), (other_field, other_value))| {
        let is_value = !is_login(field) && !is_login(other_field) && !value.expose().is_empty();
        is_value && value.same_as(other_value)
    })
}
