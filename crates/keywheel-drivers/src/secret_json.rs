//! JSON that holds values, spoken with the user's own programs: it is written into memory that never moves, and the values in
//! an answer are kept in memory that is overwritten. A text with escapes passes through a buffer of the parser, which is not
//! (H113).
//!
//! What an error of a parser says may repeat what it stumbled over, so it is never passed on (H115).

use std::fmt;
use std::io::{self, Write};

use keywheel_core::secret::SecretValue;
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Writes a question.
pub(crate) fn write(question: &impl Serialize) -> SecretValue {
    let mut length = Length(0);
    let counted = serde_json::to_writer(&mut length, question);
    let mut bytes = Vec::with_capacity(length.0);
    let written = counted.and_then(|()| serde_json::to_writer(&mut bytes, question));
    written.expect("a question is made of texts, numbers, lists and maps of texts");
    SecretValue::new(bytes)
}

/// Reads an answer; none where it is anything else.
pub(crate) fn read<T: DeserializeOwned>(answer: &SecretValue) -> Option<T> {
    serde_json::from_slice(answer.expose()).ok()
}

/// Returns a value as the text that JSON can carry; none where it is not UTF-8.
pub(crate) fn text(value: &SecretValue) -> Option<&str> {
    std::str::from_utf8(value.expose()).ok()
}

/// A value within an answer.
pub(crate) struct Text(pub(crate) SecretValue);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<Text, E> {
        Ok(Text(SecretValue::new(text.into())))
    }
}

struct Length(usize);

impl Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_survives_its_json() {
        let value = "it's \"quoted\"\n\u{0}\u{1f511}";
        let written = write(&[value]);
        let [Text(read)] = read(&written).unwrap();
        assert_eq!(read.expose(), value.as_bytes());
        assert!(super::read::<[Text; 1]>(&SecretValue::new(b"[7]".to_vec())).is_none());
    }
}
