//! What of a line of a log may be told.

use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::{Span, Timestamp};
use keywheel_engine::held;

use crate::compile::drivers_of;
use crate::incident::Incident;
use crate::session::Session;

/// How long the stores of one secret may hold up the answer.
const PATIENCE: Span = Span::seconds(10);

/// How much of one line is told.
const MOST_CHARACTERS: usize = 1_000;

/// From how many characters on a word with digits among its letters may be a credential.
const WORD: usize = 20;

/// From how many bytes on a value is left out wherever it stands: a shorter one is a part of other words.
const SHORTEST: usize = 6;

/// Values that must not be told.
pub(super) struct Known(Vec<SecretValue>);

impl Known {
    /// Finds the values of an emergency's secrets: those that are sealed still, and those that stores hold now. What cannot be
    /// read is not known, and told by its looks alone.
    pub(super) async fn of(session: &Session, incident: &Incident) -> Self {
        let mut credentials = Vec::new();
        for story in &incident.stories {
            let plan = story.rotation.plan();
            for key in session.journal.sealed(&plan.secret).await.unwrap_or_default() {
                credentials.extend(session.journal.unseal(&key).await.ok().flatten());
            }
            let Ok(built) = drivers_of(plan) else { continue };
            let read = held::by_each(&built.stores, plan);
            let read = tokio::time::timeout(PATIENCE.into(), read).await.unwrap_or_default();
            credentials.extend(read.into_iter().filter_map(|held| held.ok().flatten()));
        }
        let fields = credentials.iter().flat_map(|credential| credential.fields());
        let values = fields.filter(|(field, _)| field.as_str() != "username");
        Self::new(values.map(|(_, value)| value.duplicate()).collect())
    }

    /// The longest first: a shorter one may be a part of it.
    fn new(mut values: Vec<SecretValue>) -> Self {
        values.sort_by_key(|value| std::cmp::Reverse(value.expose().len()));
        Self(values)
    }

    /// A line as it may be told.
    pub(super) fn told(&self, line: &str) -> String {
        // What a terminal would act upon goes first: it may stand in the middle of a value.
        let mut line: String = line.chars().filter(|c| !c.is_control()).collect();
        if !planted!("known_value_told") {
            let values = self.0.iter().filter_map(|value| std::str::from_utf8(value.expose()).ok());
            // A value of several lines stands in none of them whole.
            let pieces = values.flat_map(str::lines);
            for value in pieces.filter(|piece| piece.len() >= SHORTEST) {
                line = line.replace(value, "…");
            }
        }
        masked(&line)
    }
}

/// Whether a line begins with a time before this one.
pub(super) fn is_before(line: &str, since: Option<Timestamp>) -> bool {
    let at = line.split(' ').next().and_then(|word| word.parse::<jiff::Timestamp>().ok());
    at.zip(since).is_some_and(|(at, since)| at.as_millisecond() < since.millis())
}

/// Whether `AUDIT` stands in a line as a word of its own.
pub(super) fn is_marked(line: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric()).any(|word| word == "AUDIT")
}

/// A line without what may be a credential, and without whatever a terminal would act upon.
fn masked(line: &str) -> String {
    let line: String = line.chars().filter(|c| !c.is_control()).take(MOST_CHARACTERS).collect();
    if planted!("log_lines_as_they_are") {
        return line;
    }
    let mut told = String::new();
    let mut at = 0;
    while let Some(begin) = line[at..].find(in_word).map(|begin| at + begin) {
        let end = line[begin..].find(|c| !in_word(c)).map_or(line.len(), |end| begin + end);
        let (before, word, after) = (&line[..begin], &line[begin..end], &line[end..]);
        let is_left_out = may_be_secret(word)
            || is_named_a_secret(before)
            || is_before_a_host(before, word, after);
        told.push_str(&line[at..begin]);
        told.push_str(if is_left_out { "…" } else { word });
        at = end;
    }
    told + &line[at..]
}

fn in_word(c: char) -> bool {
    c.is_alphanumeric() || "_-+./~%".contains(c)
}

/// Ids of requests in the form of a UUID are of use, and few credentials have it.
fn may_be_secret(word: &str) -> bool {
    let whole = (!word.starts_with('/')).then_some(word);
    word.split('/').chain(whole).any(|part| {
        part.len() >= WORD
            && part.bytes().any(|byte| byte.is_ascii_digit())
            && part.bytes().any(|byte| byte.is_ascii_alphabetic())
            && !is_uuid(part)
    })
}

fn is_uuid(word: &str) -> bool {
    let lengths = word.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && word.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

/// Whether a name such as `password` or `api_key` stands before a value.
fn is_named_a_secret(before: &str) -> bool {
    let named = before.trim_end_matches(['=', ':', '"', '\'', ' ']);
    let name = named.rsplit(|c: char| !c.is_alphanumeric() && c != '_' && c != '-').next();
    let name = name.unwrap_or_default().to_ascii_uppercase();
    let names: &[&str] = match before[named.len()..].contains(['=', ':']) {
        true => &["PASSWORD", "SECRET", "TOKEN", "KEY", "AUTHORIZATION", "COOKIE"],
        false => &["BEARER", "BASIC"],
    };
    names.iter().any(|word| name.ends_with(word))
}

/// Whether a word is the user or the password of a URL.
fn is_before_a_host(before: &str, word: &str, after: &str) -> bool {
    let whole = after.split_whitespace().next().unwrap_or_default();
    let is_user = word.starts_with("//") && whole.contains('@');
    before.ends_with(':') && (is_user || after.starts_with('@'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h119_a_line_of_a_log_is_told_without_what_may_be_a_credential() {
        let kept = [
            "2026-11-26T17:03:06Z AUDIT user 7 changed order 12 from 192.0.2.7",
            "AUDIT GET /api/v1/orders/2026/17/of/somebody request 0e984725-c51c-4bf4-9960-e1c80e27aba0",
            "AUDIT tokens issued: 3",
        ];
        for line in kept {
            assert_eq!(masked(line), line);
        }
        let left_out = [
            ("AUDIT key sk-proj-kwcanary0123456789abcdef used", "AUDIT key … used"),
            ("AUDIT login password=hunter2 ok", "AUDIT login password=… ok"),
            ("AUDIT {\"password\": \"hunter2\"}", "AUDIT {\"password\": \"…\"}"),
            ("AUDIT Authorization: Bearer abc.def", "AUDIT Authorization: … …"),
            ("AUDIT postgres://app:hunter2@db/shop", "AUDIT postgres:…:…@db/shop"),
            ("AUDIT \u{1b}[31mred\u{7}", "AUDIT [31mred"),
        ];
        for (line, shown) in left_out {
            assert_eq!(masked(line), shown);
        }
    }

    #[test]
    fn h119_a_value_that_is_known_is_told_in_no_line_whatever_it_looks_like() {
        let values = ["sesame", "open sesame please", "correct horse battery", "web"];
        let values = values.map(|value| SecretValue::new(value.into()));
        let known = Known::new(values.into());
        let line =
            "AUDIT web said correct horse battery, then ses\u{7}ame, then open sesame please";
        assert_eq!(known.told(line), "AUDIT web said …, then …, then …");
        let known = Known::new(vec![SecretValue::new("first line\nlast-line\n".into())]);
        assert_eq!(known.told("AUDIT last-line"), "AUDIT …");
    }

    #[test]
    fn a_mark_is_a_word_of_its_own() {
        assert!(is_marked("[AUDIT] login") && is_marked("{\"log\":\"AUDIT: login\"}"));
        assert!(!is_marked("AUDITOR") && !is_marked("audit") && !is_marked("PREAUDIT_1"));
    }
}
