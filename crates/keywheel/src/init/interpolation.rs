//! Compose's interpolation, as far as it tells which variables a text takes: `$X`, `${X}`, `${X:-default}` and its kin, and
//! `$$` for a dollar sign.

use std::collections::BTreeSet;

/// What a text takes from the project's variables.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// The variable whose value is the whole text.
    pub(crate) whole: Option<String>,
    /// Every variable that stands somewhere in it.
    pub(crate) names: BTreeSet<String>,
}

/// Reads a text.
pub(crate) fn taken(text: &str) -> Taken {
    let mut taken = Taken::default();
    let mut at = 0;
    while let Some(found) = text[at..].find('$') {
        let start = at + found;
        let (name, replaces, end) = reference(text, start, &mut taken.names);
        if let Some(name) = name {
            if replaces && start == 0 && end == text.len() {
                taken.whole = Some(name.clone());
            }
            taken.names.insert(name);
        }
        at = end;
    }
    taken
}

/// Reads what a dollar sign begins: the variable, whether its value is what remains, and where the text goes on.
fn reference(
    text: &str,
    start: usize,
    names: &mut BTreeSet<String>,
) -> (Option<String>, bool, usize) {
    let after = &text[start + 1..];
    if after.starts_with('$') {
        return (None, false, start + 2);
    }
    let Some(inner) = after.strip_prefix('{') else {
        let name = name(after);
        return ((!name.is_empty()).then(|| name.to_owned()), true, start + 1 + name.len());
    };
    let Some(length) = closing(inner) else { return (None, false, text.len()) };
    let inner = &inner[..length];
    let name = name(inner);
    let rest = &inner[name.len()..];
    names.extend(taken(rest).names);
    let replaces = ["", ":-", "-", ":?", "?"].iter().any(|sign| match *sign {
        "" => rest.is_empty(),
        sign => rest.starts_with(sign),
    });
    ((!name.is_empty()).then(|| name.to_owned()), replaces, start + 2 + length + 1)
}

/// Returns where the brace stands that closes the one before the text.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn name(text: &str) -> &str {
    let digit_first = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    if digit_first { "" } else { &text[..end] }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_taken_is_named_and_an_escaped_dollar_takes_nothing() {
        for (text, whole, names) in [
            ("$X", Some("X"), "X"),
            ("${X}", Some("X"), "X"),
            ("${X:-d}", Some("X"), "X"),
            ("${X-${Y}}", Some("X"), "X Y"),
            ("${X:?say $WHY}", Some("X"), "WHY X"),
            ("${X:+${Y}}", None, "X Y"),
            ("a$X", None, "X"),
            ("${X}b$Y", None, "X Y"),
            ("$$X", None, ""),
            ("$${X}", None, ""),
            ("$$$X", None, "X"),
            ("$1", None, ""),
            ("${X", None, ""),
            ("plain", None, ""),
            ("ä$ö", None, ""),
        ] {
            let taken = taken(text);
            assert_eq!(taken.whole.as_deref(), whole, "{text}");
            assert_eq!(taken.names.into_iter().collect::<Vec<_>>().join(" "), names, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[$\\{\\}:?+a-cäλ1-]{0,40}") {
            taken(&text);
        }
    }
}
