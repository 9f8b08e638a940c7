//! Lengths of time as the configuration writes them: `250ms`, `2s`, `15m`, `1h`, `7d`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use keywheel_core::time::Span;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The units and their milliseconds, smallest first.
const UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// A length of time in the configuration: a whole number and one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Duration(Span);

/// A text that is no length of time.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a length of time is a whole number and one of `ms`, `s`, `m`, `h`, `d`, as in `15m`")]
pub struct BadDuration;

impl Duration {
    /// Returns the length as the core counts it.
    pub const fn span(self) -> Span {
        self.0
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        Self(span)
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

impl FromStr for Duration {
    type Err = BadDuration;

    fn from_str(text: &str) -> Result<Self, BadDuration> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit).ok_or(BadDuration)?;
        let number: u64 = number.parse().map_err(|_| BadDuration)?;
        number.checked_mul(*millis).map(|millis| Self(Span::millis(millis))).ok_or(BadDuration)
    }
}

/// In the largest unit that leaves a whole number, so that writing what was read keeps the length.
impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let (unit, size) = match millis {
            0 => ("s", 1),
            _ => UNITS
                .into_iter()
                .rfind(|(_, size)| millis.is_multiple_of(*size))
                .expect("every number is whole in `ms`"),
        };
        write!(f, "{}{unit}", millis / size)
    }
}

impl TryFrom<String> for Duration {
    type Error = BadDuration;

    fn try_from(text: String) -> Result<Self, BadDuration> {
        text.parse()
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> Self {
        duration.to_string()
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A whole number and a unit: `250ms`, `2s`, `15m`, `1h`, `7d`.",
            "pattern": "^[0-9]+(ms|s|m|h|d)$",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_unit_is_read() {
        let millis = |text: &str| text.parse::<Duration>().map(|d| d.span().as_millis());
        assert_eq!(millis("250ms"), Ok(250));
        assert_eq!(millis("2s"), Ok(2_000));
        assert_eq!(millis("15m"), Ok(900_000));
        assert_eq!(millis("1h"), Ok(3_600_000));
        assert_eq!(millis("7d"), Ok(604_800_000));
        for wrong in [
            "",
            "7",
            "d",
            "1.5h",
            "-1s",
            "1 h",
            "1h30m",
            "1w",
            "٣s",
            "99999999999999999999d",
            "9999999999999999d",
        ] {
            assert_eq!(millis(wrong), Err(BadDuration), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_length_survives_its_text_form(millis: u64) {
            let duration = Duration::from(Span::millis(millis));
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }
    }

    #[test]
    fn a_length_is_written_in_its_largest_whole_unit() {
        let written = |span| Duration::from(span).to_string();
        assert_eq!(written(Span::ZERO), "0s");
        assert_eq!(written(Span::millis(1_500)), "1500ms");
        assert_eq!(written(Span::minutes(90)), "90m");
        assert_eq!(written(Span::days(7)), "7d");
    }
}
