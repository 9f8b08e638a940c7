//! Slots: how a credential becomes the bytes of a slot, and back.

use keywheel_core::call::{Refusal, RefusalKind};
use keywheel_core::plan::{Part, UrlPart};
use keywheel_core::planted;
use keywheel_core::secret::{Credential, Field, SecretValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};

/// Everything but RFC 3986's unreserved characters is encoded.
const USERINFO: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Names a slot among all that a workload reads: two stores may have a slot of the same address.
pub fn name(container: &str, address: &str) -> String {
    format!("{container}\n{address}")
}

/// Returns the container of a slot's [`name`], and the address in it.
pub fn parts(name: &str) -> (&str, &str) {
    name.rsplit_once('\n').unwrap_or(("", name))
}

/// Makes the bytes of a slot from a credential; `present` is what the slot holds now, whose other parts stay.
///
/// # Errors
/// A [`Refusal`] where the credential lacks a field, or the slot holds no URL to put a part into.
pub fn compose(
    part: &Part,
    credential: &Credential,
    present: Option<&SecretValue>,
) -> Result<SecretValue, Refusal> {
    match part {
        Part::Plain(field) => Ok(need(credential, field.as_str())?.duplicate()),
        Part::Url(url_part) => {
            let present =
                present.ok_or_else(|| unsupported("the slot is empty; it must hold a URL"))?;
            let url = split(present.expose())?;
            let part = |name: &str| {
                let value = need(credential, name)?;
                let text = std::str::from_utf8(value.expose())
                    .map_err(|_| unsupported("a URL part must be UTF-8"))?;
                let encoded = utf8_percent_encode(text, USERINFO).to_string();
                Ok::<_, Refusal>(if planted!("url_not_encoded") {
                    text.to_owned()
                } else {
                    encoded
                })
            };
            let (username, password) = match url_part {
                UrlPart::Userinfo => (part("username")?, Some(part("password")?)),
                UrlPart::Username => (part("username")?, url.password.map(str::to_owned)),
                UrlPart::Password => (url.username.to_owned(), Some(part("password")?)),
            };
            let password = password.map(|p| format!(":{p}")).unwrap_or_default();
            let whole = format!("{}://{username}{password}@{}", url.scheme, url.rest);
            Ok(SecretValue::new(whole.into_bytes()))
        }
    }
}

/// Reads a credential's fields out of the bytes of a slot.
///
/// # Errors
/// A [`Refusal`] where the slot should hold a URL and does not.
pub fn extract(part: &Part, bytes: &SecretValue) -> Result<Credential, Refusal> {
    let decoded = |text: &str| SecretValue::new(percent_decode(text.as_bytes()).collect());
    match part {
        Part::Plain(field) => Ok(Credential::default().with(field.clone(), bytes.duplicate())),
        Part::Url(url_part) => {
            let url = split(bytes.expose())?;
            let mut credential = Credential::default();
            if matches!(url_part, UrlPart::Userinfo | UrlPart::Username) {
                credential = credential.with(Field::new("username"), decoded(url.username));
            }
            if matches!(url_part, UrlPart::Userinfo | UrlPart::Password) {
                let password = url
                    .password
                    .ok_or_else(|| unsupported("the URL in the slot holds no password"))?;
                credential = credential.with(Field::new("password"), decoded(password));
            }
            Ok(credential)
        }
    }
}

struct Split<'a> {
    scheme: &'a str,
    username: &'a str,
    password: Option<&'a str>,
    rest: &'a str,
}

/// Splits a URL at its userinfo and leaves every other byte as it is.
fn split(bytes: &[u8]) -> Result<Split<'_>, Refusal> {
    let not_a_url = || unsupported("the slot holds no URL with a user and a password");
    let text = std::str::from_utf8(bytes).map_err(|_| not_a_url())?;
    let (scheme, after) = text.split_once("://").ok_or_else(not_a_url)?;
    let authority_end = after.find(['/', '?', '#']).unwrap_or(after.len());
    let at = after[..authority_end].rfind('@').ok_or_else(not_a_url)?;
    let (userinfo, rest) = (&after[..at], &after[at + 1..]);
    let (username, password) = match userinfo.split_once(':') {
        Some((username, password)) => (username, Some(password)),
        None => (userinfo, None),
    };
    Ok(Split { scheme, username, password, rest })
}

fn need<'a>(credential: &'a Credential, field: &str) -> Result<&'a SecretValue, Refusal> {
    credential
        .field(&Field::new(field))
        .ok_or_else(|| unsupported(&format!("the credential has no field `{field}`")))
}

fn unsupported(message: &str) -> Refusal {
    Refusal::operator(RefusalKind::Unsupported, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn login(username: &str, password: &str) -> Credential {
        Credential::default()
            .with(Field::new("username"), SecretValue::new(username.into()))
            .with(Field::new("password"), SecretValue::new(password.into()))
    }

    proptest! {
        #[test]
        fn h75_any_login_survives_its_url(username in ".{1,20}", password in ".{1,40}") {
            let url = SecretValue::new(b"postgres://old:pass@db:5432/app?sslmode=require".to_vec());
            let part = Part::Url(UrlPart::Userinfo);
            let made = compose(&part, &login(&username, &password), Some(&url)).unwrap_or_else(|e| panic!("{e}"));
            let text = String::from_utf8(made.expose().to_vec()).unwrap();
            prop_assert!(text.ends_with("@db:5432/app?sslmode=require"));
            let back = extract(&part, &made).unwrap_or_else(|e| panic!("{e}"));
            prop_assert!(back.same_as(&login(&username, &password)));
        }
    }

    #[test]
    fn only_the_owned_part_changes() {
        let url = SecretValue::new(b"redis://app:p%40ss@cache/0#x@y".to_vec());
        let made = compose(&Part::Url(UrlPart::Password), &login("ignored", "n/w"), Some(&url))
            .ok()
            .unwrap();
        assert_eq!(made.expose(), b"redis://app:n%2Fw@cache/0#x@y");
    }
}
