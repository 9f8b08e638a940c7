//! The login within a connection string: where it stands, and how its characters are written there.
//!
//! Every other byte stays. A string in which a login cannot be found for certain is refused: one that names a user twice is read
//! in one way by one client and in another way by the next.

use std::ops::Range;

use keywheel_core::call::Refusal;
use keywheel_core::plan::LoginPart;
use keywheel_core::planted;
use keywheel_core::secret::{Credential, Field, SecretValue};
use percent_encoding::{percent_decode, utf8_percent_encode};

use super::{USERINFO, need, unsupported};

/// A way to write a connection string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `jdbc:postgresql://host/database?user=…&password=…`
    Jdbc,
    /// `host=… user=… password='…'`
    Libpq,
    /// `user:password`, the end of a line of a password file.
    Pgpass,
}

/// Puts fields of a credential into a connection string.
pub(super) fn compose(
    form: Form,
    part: LoginPart,
    credential: &Credential,
    present: Option<&SecretValue>,
) -> Result<SecretValue, Refusal> {
    let empty = || unsupported(&format!("the slot is empty; it must hold {}", form.in_words()));
    let text = match present {
        // A line that is not there yet has nothing else to keep.
        None if form == Form::Pgpass && part == LoginPart::Login => ":",
        present => form.text(present.ok_or_else(empty)?)?,
    };
    let mut places = form.places(text, part)?;
    places.sort_by_key(|(_, place)| place.start);
    let (mut whole, mut rest) = (Vec::with_capacity(text.len()), 0);
    for (name, place) in places {
        whole.extend_from_slice(&text.as_bytes()[rest..place.start]);
        whole.extend_from_slice(form.written(need(credential, name)?)?.expose());
        rest = place.end;
    }
    whole.extend_from_slice(&text.as_bytes()[rest..]);
    Ok(SecretValue::new(whole))
}

/// Reads fields of a credential out of a connection string.
pub(super) fn extract(
    form: Form,
    part: LoginPart,
    bytes: &SecretValue,
) -> Result<Credential, Refusal> {
    let text = form.text(bytes)?;
    let mut credential = Credential::default();
    for (name, place) in form.places(text, part)? {
        credential = credential.with(Field::new(name), form.read(&text[place]));
    }
    Ok(credential)
}

impl Form {
    fn in_words(self) -> &'static str {
        match self {
            Self::Jdbc => "a JDBC URL with `user` and `password`",
            Self::Libpq => "a connection string with `user` and `password`",
            Self::Pgpass => "`user:password`",
        }
    }

    fn text(self, bytes: &SecretValue) -> Result<&str, Refusal> {
        std::str::from_utf8(bytes.expose()).map_err(|_| self.not_one())
    }

    fn not_one(self) -> Refusal {
        unsupported(&format!("the slot does not hold {}", self.in_words()))
    }

    /// Finds what is owned: each once, or the string is refused.
    fn places(
        self,
        text: &str,
        part: LoginPart,
    ) -> Result<Vec<(&'static str, Range<usize>)>, Refusal> {
        let settings = match self {
            Self::Jdbc => properties(text),
            Self::Libpq => keywords(text),
            Self::Pgpass => fields(text),
        };
        let settings = settings.ok_or_else(|| self.not_one())?;
        let place = |field: &'static str, key: &str| {
            let mut named = settings.iter().filter(|(name, _)| *name == key);
            match (named.next(), named.next()) {
                (Some((_, place)), None) => Ok((field, place.clone())),
                (None, _) => Err(self.not_one()),
                (Some(_), Some(_)) => {
                    Err(unsupported(&format!("the slot names `{key}` more than once")))
                }
            }
        };
        let (username, password) = (|| place("username", "user"), || place("password", "password"));
        match part {
            LoginPart::Login => Ok(vec![username()?, password()?]),
            LoginPart::Username => Ok(vec![username()?]),
            LoginPart::Password => Ok(vec![password()?]),
        }
    }

    fn written(self, value: &SecretValue) -> Result<SecretValue, Refusal> {
        let text = std::str::from_utf8(value.expose()).ok().filter(|text| !text.contains('\0'));
        let text = text.ok_or_else(|| unsupported("a login must be UTF-8 and have no NUL"))?;
        if self == Self::Pgpass && text.contains(['\n', '\r']) {
            return Err(unsupported("a password file has no place for the end of a line"));
        }
        let written = match self {
            _ if planted!("login_not_encoded") => text.to_owned(),
            Self::Jdbc => utf8_percent_encode(text, USERINFO).to_string(),
            Self::Libpq => format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")),
            Self::Pgpass => text.replace('\\', "\\\\").replace(':', "\\:"),
        };
        Ok(SecretValue::new(written.into_bytes()))
    }

    fn read(self, written: &str) -> SecretValue {
        match self {
            // The driver reads values as a form's: a plus stands for a space.
            Self::Jdbc => {
                let spaced = SecretValue::new(written.replace('+', " ").into_bytes());
                SecretValue::new(percent_decode(spaced.expose()).collect())
            }
            Self::Libpq => {
                let inner = written.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
                unescaped(inner.unwrap_or(written))
            }
            Self::Pgpass => unescaped(written),
        }
    }
}

/// Takes a backslash away from what follows it.
fn unescaped(written: &str) -> SecretValue {
    let mut read = Vec::with_capacity(written.len());
    let mut bytes = written.bytes();
    while let Some(byte) = bytes.next() {
        read.push(if byte == b'\\' { bytes.next().unwrap_or(byte) } else { byte });
    }
    SecretValue::new(read)
}

/// A setting's name, and where its value stands.
type Setting<'a> = (&'a str, Range<usize>);

/// Lists the properties of a JDBC URL.
fn properties(text: &str) -> Option<Vec<Setting<'_>>> {
    text.strip_prefix("jdbc:")?;
    let mut at = text.find('?')? + 1;
    let mut settings = Vec::new();
    for token in text[at..].split('&') {
        let end = at + token.len();
        let name = token.split('=').next().unwrap_or(token);
        settings.push((name, (at + name.len() + 1).min(end)..end));
        at = end + 1;
    }
    Some(settings)
}

/// Lists the keywords of a libpq connection string, as libpq reads it; a value is quoted, or ends at a space.
fn keywords(text: &str) -> Option<Vec<Setting<'_>>> {
    let bytes = text.as_bytes();
    let skip = |from: usize, wanted: &dyn Fn(u8) -> bool| {
        bytes[from..].iter().position(|byte| !wanted(*byte)).map_or(bytes.len(), |n| from + n)
    };
    let is_space = |byte: u8| byte.is_ascii_whitespace() || byte == b'\x0b';
    let (mut settings, mut at) = (Vec::new(), skip(0, &is_space));
    while at < bytes.len() {
        let end = skip(at, &|byte| byte != b'=' && !is_space(byte));
        let equals = skip(end, &is_space);
        if end == at || bytes.get(equals) != Some(&b'=') {
            return None;
        }
        let value = skip(equals + 1, &is_space);
        let value_end = value_end(bytes, value)?;
        settings.push((&text[at..end], value..value_end));
        at = skip(value_end, &is_space);
    }
    (!settings.is_empty()).then_some(settings)
}

/// Finds the end of the value that begins at `from`; none where its quote is never closed.
fn value_end(bytes: &[u8], from: usize) -> Option<usize> {
    let quoted = bytes.get(from) == Some(&b'\'');
    let mut at = from + usize::from(quoted);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 2,
            b'\'' if quoted => return Some(at + 1),
            byte if !quoted && (byte.is_ascii_whitespace() || *byte == b'\x0b') => return Some(at),
            _ => at += 1,
        }
    }
    (!quoted).then_some(bytes.len())
}

/// Finds user and password at the end of a line of a password file; what follows a further colon is nobody's concern.
fn fields(text: &str) -> Option<Vec<Setting<'static>>> {
    let colon = |from: usize| {
        let mut at = from;
        while at < text.len() && text.as_bytes()[at] != b':' {
            at += if text.as_bytes()[at] == b'\\' { 2 } else { 1 };
        }
        at.min(text.len())
    };
    let user = colon(0);
    (user < text.len()).then(|| vec![("user", 0..user), ("password", user + 1..colon(user + 1))])
}
