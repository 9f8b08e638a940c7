//! The named thing that is rotated, and the bytes that must never be seen.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The bytes of one field of a credential.
///
/// It has no `Debug`, `Display`, `Clone` or `Serialize`, so that no log line, error or snapshot can hold it by accident
/// (H110). The bytes are overwritten when it is dropped; that reduces exposure and does not prove erasure (H113).
pub struct SecretValue(Zeroizing<Vec<u8>>);

impl SecretValue {
    /// Takes ownership of the bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Shows the bytes: the one door, so that every use can be found with grep.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Makes a second holder of the same bytes, on purpose and by name.
    pub fn duplicate(&self) -> Self {
        Self(self.0.clone())
    }

    /// Returns whether both hold the same bytes, in a time that does not depend on where they differ.
    pub fn same_as(&self, other: &Self) -> bool {
        let (a, b) = (self.expose(), other.expose());
        a.len() == b.len() && a.iter().zip(b).fold(0_u8, |diff, (x, y)| diff | (x ^ y)) == 0
    }

    /// Returns whether both are there and hold the same bytes, or both are absent.
    pub fn same(one: Option<&Self>, other: Option<&Self>) -> bool {
        match (one, other) {
            (Some(one), Some(other)) => one.same_as(other),
            (one, other) => one.is_none() && other.is_none(),
        }
    }
}

/// A credential: an ordered map of named fields, such as `value`, or `username` and `password`.
#[derive(Default)]
pub struct Credential(BTreeMap<Field, SecretValue>);

impl Credential {
    /// Makes a credential of the one field `value`.
    pub fn of_value(value: SecretValue) -> Self {
        Self(BTreeMap::from([(Field::value(), value)]))
    }

    /// Adds or replaces a field.
    #[must_use]
    pub fn with(mut self, field: Field, value: SecretValue) -> Self {
        self.0.insert(field, value);
        self
    }

    /// Returns a field's value.
    pub fn field(&self, field: &Field) -> Option<&SecretValue> {
        self.0.get(field)
    }

    /// Returns the field `value`.
    pub fn value(&self) -> Option<&SecretValue> {
        self.field(&Field::value())
    }

    /// Returns the fields in order of their names.
    pub fn fields(&self) -> impl Iterator<Item = (&Field, &SecretValue)> {
        self.0.iter()
    }

    /// Makes a second holder of the same fields, on purpose and by name.
    pub fn duplicate(&self) -> Self {
        Self(self.0.iter().map(|(field, value)| (field.clone(), value.duplicate())).collect())
    }

    /// Returns whether both hold the same fields with the same bytes.
    pub fn same_as(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self.0.iter().zip(&other.0).all(|((f, a), (g, b))| f == g && a.same_as(b))
    }
}

/// The name of one field of a credential.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Field(Cow<'static, str>);

impl Field {
    /// Names a field.
    pub fn new(name: impl Into<String>) -> Self {
        Self(Cow::Owned(name.into()))
    }

    /// The only field of a credential that is one value.
    pub fn value() -> Self {
        Self(Cow::Borrowed("value"))
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A secret in one environment, written `openai@production`: the thing that has versions. Every record, row and sealed value
/// has a copy of it, and so its parts are shared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName {
    name: Arc<str>,
    environment: Arc<str>,
}

/// A name that cannot be used: letters, digits, `-` and `_` only, up to 64 of them.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a name: use 1 to 64 letters, digits, `-` or `_`")]
pub struct BadName(String);

impl SecretName {
    /// Names a secret of an environment.
    ///
    /// # Errors
    /// [`BadName`] where a part is empty, too long or has another character.
    pub fn new(name: &str, environment: &str) -> Result<Self, BadName> {
        check_name(name)?;
        check_name(environment)?;
        Ok(Self { name: name.into(), environment: environment.into() })
    }

    /// Returns the name as the configuration has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the environment.
    pub fn environment(&self) -> &str {
        &self.environment
    }
}

/// Checks a name of a secret, store, workload or environment: 1 to 64 letters, digits, `-` or `_`.
///
/// # Errors
/// [`BadName`] where it is anything else.
pub fn check_name(name: &str) -> Result<(), BadName> {
    let fits = (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if fits { Ok(()) } else { Err(BadName(name.into())) }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.environment)
    }
}

impl FromStr for SecretName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let (name, environment) = text.split_once('@').ok_or_else(|| BadName(text.into()))?;
        Self::new(name, environment)
    }
}

impl TryFrom<String> for SecretName {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<SecretName> for String {
    fn from(name: SecretName) -> Self {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_named_with_its_environment() {
        let name: SecretName = "openai@production".parse().unwrap();
        assert_eq!((name.name(), name.environment()), ("openai", "production"));
        assert_eq!(name.to_string(), "openai@production");
        assert!("openai".parse::<SecretName>().is_err());
        assert!("open ai@production".parse::<SecretName>().is_err());
    }

    #[test]
    fn values_are_compared_whole() {
        let value = |bytes: &[u8]| SecretValue::new(bytes.to_vec());
        assert!(value(b"abc").same_as(&value(b"abc")));
        assert!(!value(b"abc").same_as(&value(b"abd")));
        assert!(!value(b"abc").same_as(&value(b"abcd")));
    }
}
