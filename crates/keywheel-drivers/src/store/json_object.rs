//! A JSON object whose members are slots: one member is replaced, added or removed, and every other byte stays as it is, order
//! and spaces included.
//!
//! A member that stands there twice, and one that is no text, is refused: what a reader makes of it is not known here.

use std::collections::BTreeSet;
use std::ops::Range;

use keywheel_core::secret::SecretValue;
use serde::de::IgnoredAny;

use crate::secret_json::{self, Text};

/// Why a member cannot be read or written. It names members and holds no value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    /// It is something else than an object.
    #[error("it is no JSON object")]
    NoObject,
    /// Two members have one name.
    #[error("`{0}` stands in it twice")]
    Twice(String),
    /// The member is a number, a list or the like.
    #[error("`{0}` holds something else than a text")]
    NoText(String),
    /// The value is not UTF-8.
    #[error("a value for `{0}` is not UTF-8, which JSON cannot carry")]
    NotUtf8(String),
}

/// Returns the names of all members, in order.
pub(super) fn names(object: &SecretValue) -> Result<Vec<String>, Unfit> {
    Ok(members(object.expose())?.into_iter().map(|member| member.name).collect())
}

/// Returns the value of a member; none where it is not there.
pub(super) fn read(object: &SecretValue, name: &str) -> Result<Option<SecretValue>, Unfit> {
    let text = object.expose();
    let Some(member) = members(text)?.into_iter().find(|member| member.name == name) else {
        return Ok(None);
    };
    match serde_json::from_slice::<Text>(&text[member.value]) {
        Ok(Text(value)) => Ok(Some(value)),
        Err(_) => Err(Unfit::NoText(name.into())),
    }
}

/// Replaces the value of a member, or adds it as the last one, in the style of the one before it.
pub(super) fn set(
    object: &SecretValue,
    name: &str,
    value: &SecretValue,
) -> Result<SecretValue, Unfit> {
    let text = object.expose();
    let members = members(text)?;
    let written = secret_json::text(value).ok_or_else(|| Unfit::NotUtf8(name.into()))?;
    let written = secret_json::write(&written);
    if let Some(member) = members.iter().find(|member| member.name == name) {
        return Ok(spliced(text, member.value.clone(), &[written.expose()]));
    }
    let name = secret_json::write(&name);
    let Some(last) = members.last() else {
        let at = text.iter().position(|byte| *byte == b'{').ok_or(Unfit::NoObject)? + 1;
        return Ok(spliced(text, at..at, &[name.expose(), b":", written.expose()]));
    };
    let before = text[..last.key.start].iter().rposition(|byte| b"{,".contains(byte));
    let space = &text[before.map_or(last.key.start, |at| at + 1)..last.key.start];
    let colon = &text[last.key.end..last.value.start];
    let (at, parts) = (last.value.end, [b",", space, name.expose(), colon, written.expose()]);
    Ok(spliced(text, at..at, &parts))
}

/// Takes a member away, with the comma that it needs no more.
pub(super) fn remove(object: &SecretValue, name: &str) -> Result<SecretValue, Unfit> {
    let text = object.expose();
    let members = members(text)?;
    let Some(at) = members.iter().position(|member| member.name == name) else {
        return Ok(object.duplicate());
    };
    let gone = match (at, members.get(at + 1)) {
        (0, None) => members[0].key.start..members[0].value.end,
        (0, Some(next)) => members[0].key.start..next.key.start,
        (at, _) => members[at - 1].value.end..members[at].value.end,
    };
    Ok(spliced(text, gone, &[]))
}

struct Member {
    name: String,
    key: Range<usize>,
    value: Range<usize>,
}

fn members(text: &[u8]) -> Result<Vec<Member>, Unfit> {
    serde_json::from_slice::<IgnoredAny>(text).map_err(|_| Unfit::NoObject)?;
    let mut at = skipped(text, 0);
    if text[at] != b'{' {
        return Err(Unfit::NoObject);
    }
    at += 1;
    let mut members = Vec::new();
    let mut seen = BTreeSet::new();
    loop {
        at = skipped(text, at);
        if text[at] == b'}' {
            return Ok(members);
        }
        let key = at..end(text, at);
        let start = skipped(text, key.end);
        let value = start..end(text, start);
        at = value.end;
        let name: String =
            serde_json::from_slice(&text[key.clone()]).map_err(|_| Unfit::NoObject)?;
        if !seen.insert(name.clone()) {
            return Err(Unfit::Twice(name));
        }
        members.push(Member { name, key, value });
    }
}

/// Returns where the next token of a valid text begins that is a value, a name or a bracket.
fn skipped(text: &[u8], from: usize) -> usize {
    let is_between = |byte: &&u8| b" \t\r\n,:".contains(byte);
    from + text[from..].iter().take_while(is_between).count()
}

/// Returns where the value of a valid text ends that begins here.
fn end(text: &[u8], from: usize) -> usize {
    let mut at = from;
    let mut depth = 0_usize;
    loop {
        match text[at] {
            b'"' => at = end_of_text(text, at),
            b'{' | b'[' => (depth, at) = (depth + 1, at + 1),
            b'}' | b']' => (depth, at) = (depth - 1, at + 1),
            _ if depth > 0 => at += 1,
            _ => {
                let is_inside = |byte: &&u8| !b" \t\r\n,:]}".contains(byte);
                return at + text[at..].iter().take_while(is_inside).count();
            }
        }
        if depth == 0 {
            return at;
        }
    }
}

fn end_of_text(text: &[u8], from: usize) -> usize {
    let mut at = from + 1;
    while text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// Puts other bytes in the place of some, in memory that never moves.
fn spliced(text: &[u8], gone: Range<usize>, parts: &[&[u8]]) -> SecretValue {
    let added: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = Vec::with_capacity(text.len() - gone.len() + added);
    bytes.extend_from_slice(&text[..gone.start]);
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes.extend_from_slice(&text[gone.end..]);
    SecretValue::new(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str) -> SecretValue {
        SecretValue::new(text.into())
    }

    fn text(value: SecretValue) -> String {
        String::from_utf8(value.expose().to_vec()).unwrap()
    }

    fn with(object: &str, name: &str, value: &str) -> String {
        text(set(&of(object), name, &of(value)).unwrap())
    }

    fn without(object: &str, name: &str) -> String {
        text(remove(&of(object), name).unwrap())
    }

    #[test]
    fn h103_only_the_member_changes_and_the_way_back_ends_where_it_began() {
        for object in [
            "{}",
            " { } ",
            r#"{"z":{"a":[1,"}"]},"b": null ,"c":"\"}" }"#,
            "{\n  \"user\": \"app\",\n  \"port\": 5432\n}\n",
        ] {
            let added = with(object, "new\"name", "it's\n\"new\"");
            assert_eq!(without(&added, "new\"name"), object);
            let changed = with(&added, "new\"name", "another");
            assert_eq!(with(&changed, "new\"name", "it's\n\"new\""), added);
        }
        let pretty = "{\n  \"user\": \"app\",\n  \"port\": 5432\n}\n";
        assert_eq!(
            with(pretty, "password", "new"),
            "{\n  \"user\": \"app\",\n  \"port\": 5432,\n  \"password\": \"new\"\n}\n"
        );
        assert_eq!(without(pretty, "user"), "{\n  \"port\": 5432\n}\n");
        assert_eq!(without(pretty, "port"), "{\n  \"user\": \"app\"\n}\n");
    }

    #[test]
    fn what_a_reader_makes_of_it_is_not_guessed() {
        let unfit = |object: &str| read(&of(object), "a").err();
        for object in ["", "[]", "\"a\"", "{", "{\"a\":}", "{'a':1}", "\u{feff}{}"] {
            assert_eq!(unfit(object), Some(Unfit::NoObject), "{object}");
        }
        assert_eq!(unfit(r#"{"a":"1","\u0061":"2"}"#), Some(Unfit::Twice("a".into())));
        for value in ["1", "null", "{}", "true"] {
            let object = format!("{{\"a\":{value}}}");
            assert_eq!(unfit(&object), Some(Unfit::NoText("a".into())));
        }
        let no_text = set(&of("{}"), "a", &SecretValue::new(vec![0xff])).err();
        assert_eq!(no_text, Some(Unfit::NotUtf8("a".into())));
    }

    proptest! {
        #[test]
        fn any_value_survives_beside_any_sibling(name in ".{0,8}", sibling in ".{0,8}", value in ".{0,40}") {
            prop_assume!(name != sibling);
            let object = with("{}", &sibling, "kept");
            let object = of(&with(&object, &name, &value));
            prop_assert_eq!(text(read(&object, &name).unwrap().unwrap()), value);
            prop_assert_eq!(text(read(&object, &sibling).unwrap().unwrap()), "kept");
            prop_assert_eq!(names(&object).unwrap(), vec![sibling, name]);
        }
    }
}
