//! The list of logins that PgBouncer reads: `"user" "password"`, one a line.
//!
//! It is read as PgBouncer reads it: a quote is doubled within quotes, a line that begins with `;` is a comment, and what
//! follows a password on its line is nobody's concern. What PgBouncer would stop at is refused, since it would not see the rest.

use std::ops::Range;

use keywheel_core::secret::SecretValue;

/// Where PgBouncer stops reading.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadList {
    #[error("line {0} is no login, and PgBouncer would read no further")]
    Malformed(usize),
    #[error("`{0}` stands in it more than once")]
    Twice(String),
}

/// One login of a list.
struct Entry {
    user: Vec<u8>,
    /// Its line, with its end.
    line: Range<usize>,
    /// What stands between the quotes.
    password: Range<usize>,
}

/// Returns the password of a login.
pub(super) fn read(text: &SecretValue, user: &str) -> Result<Option<SecretValue>, BadList> {
    let entry = find(text.expose(), user)?;
    let bytes = text.expose();
    Ok(entry.map(|entry| SecretValue::new(unquoted(&bytes[entry.password]))))
}

/// Gives a login a password: the one that it has is replaced, or a line is added at the end.
pub(super) fn set(
    text: &SecretValue,
    user: &str,
    password: &SecretValue,
) -> Result<SecretValue, BadList> {
    let bytes = text.expose();
    let written = quoted(password.expose());
    let (before, after, line) = match find(bytes, user)? {
        Some(Entry { password, .. }) => {
            (&bytes[..password.start], &bytes[password.end..], written.to_vec())
        }
        None => {
            let newline: &[u8] =
                if bytes.is_empty() || bytes.ends_with(b"\n") { b"" } else { b"\n" };
            let user = quoted(user.as_bytes());
            let line = [newline, b"\"", &user, b"\" \"", &written, b"\"\n"].concat();
            (bytes, &b""[..], line)
        }
    };
    Ok(SecretValue::new([before, &zeroize::Zeroizing::new(line), after].concat()))
}

/// Takes a login's line out.
pub(super) fn remove(text: &SecretValue, user: &str) -> Result<SecretValue, BadList> {
    let bytes = text.expose();
    let line = find(bytes, user)?.map_or(0..0, |entry| entry.line);
    Ok(SecretValue::new([&bytes[..line.start], &bytes[line.end..]].concat()))
}

/// Lists the logins.
pub(super) fn users(text: &SecretValue) -> Result<Vec<String>, BadList> {
    let entries = entries(text.expose())?;
    Ok(entries.iter().map(|entry| String::from_utf8_lossy(&entry.user).into_owned()).collect())
}

fn find(bytes: &[u8], user: &str) -> Result<Option<Entry>, BadList> {
    let entries = entries(bytes)?;
    let mut found = entries.into_iter().filter(|entry| entry.user == user.as_bytes());
    match (found.next(), found.next()) {
        (entry, None) => Ok(entry),
        (_, Some(_)) => Err(BadList::Twice(user.into())),
    }
}

fn entries(bytes: &[u8]) -> Result<Vec<Entry>, BadList> {
    let mut entries = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let line_end = |from: usize| {
            let newline = bytes[from..].iter().position(|byte| *byte == b'\n');
            newline.map_or(bytes.len(), |n| from + n + 1)
        };
        match bytes[at] {
            byte if is_space(byte) => at += 1,
            b';' => at = line_end(at),
            _ => {
                let bad = || {
                    let lines = bytes[..at].iter().filter(|byte| **byte == b'\n').count();
                    BadList::Malformed(lines + 1)
                };
                let user = within_quotes(bytes, at).ok_or_else(bad)?;
                let space = bytes[user.end + 1..].iter().take_while(|byte| is_blank(**byte));
                let password = user.end + 1 + space.count();
                let password = within_quotes(bytes, password).ok_or_else(bad)?;
                let begin =
                    bytes[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |n| n + 1);
                let end = line_end(password.end + 1);
                let user = unquoted(&bytes[user]);
                entries.push(Entry { user, line: begin..end, password });
                at = end;
            }
        }
    }
    Ok(entries)
}

/// Finds what stands within the quotes that open at `at`.
fn within_quotes(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    (bytes.get(at) == Some(&b'"')).then_some(())?;
    let mut end = at + 1;
    loop {
        match (bytes.get(end)?, bytes.get(end + 1)) {
            (0, _) => return None,
            (b'"', Some(b'"')) => end += 2,
            (b'"', _) => return Some(at + 1..end),
            _ => end += 1,
        }
    }
}

fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == b'\x0b'
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

fn quoted(bytes: &[u8]) -> zeroize::Zeroizing<Vec<u8>> {
    let mut quoted = zeroize::Zeroizing::new(Vec::with_capacity(2 * bytes.len()));
    for byte in bytes {
        quoted.push(*byte);
        quoted.extend((*byte == b'"').then_some(b'"'));
    }
    quoted
}

fn unquoted(bytes: &[u8]) -> Vec<u8> {
    let mut unquoted = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter();
    while let Some(byte) = rest.next() {
        unquoted.push(*byte);
        if *byte == b'"' {
            rest.next();
        }
    }
    unquoted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIST: &str = "; made by hand\n\"admin\" \"x\" \"\"\n\n  \"app_a\" \"it\"\"s\" ; rest \"of\" it\n\"last\" \"y\"";

    fn text(text: &str) -> SecretValue {
        SecretValue::new(text.into())
    }

    fn shown(text: SecretValue) -> String {
        String::from_utf8(text.expose().to_vec()).unwrap()
    }

    #[test]
    fn one_line_changes_and_every_other_byte_stays() {
        let list = text(LIST);
        let held = |user| read(&list, user).unwrap().map(shown);
        assert_eq!(held("app_a").as_deref(), Some("it\"s"));
        assert_eq!(held("last").as_deref(), Some("y"));
        assert_eq!(held("app"), None);
        assert_eq!(users(&list).unwrap(), ["admin", "app_a", "last"]);
        let new = set(&list, "app_a", &text("n\"w")).unwrap();
        assert_eq!(shown(new), LIST.replace("it\"\"s", "n\"\"w"));
        let added = set(&list, "app\"b", &text("new")).unwrap();
        assert_eq!(shown(added), format!("{LIST}\n\"app\"\"b\" \"new\"\n"));
        let gone = remove(&list, "app_a").unwrap();
        assert_eq!(shown(gone), LIST.replace("  \"app_a\" \"it\"\"s\" ; rest \"of\" it\n", ""));
        assert_eq!(shown(remove(&list, "nobody").unwrap()), LIST);
        assert_eq!(shown(set(&text(""), "a", &text("b")).unwrap()), "\"a\" \"b\"\n");
    }

    #[test]
    fn what_the_pooler_would_stop_at_is_refused() {
        for (list, bad) in [
            ("\"a\" \"b\"\nc d\n", BadList::Malformed(2)),
            ("\"a\" \"b\"\n\"c\"\n\"d\" \"e\"", BadList::Malformed(2)),
            ("\"a\" \"b", BadList::Malformed(1)),
            ("# no comment\n", BadList::Malformed(1)),
            ("\"a\" \"b\"\n\"a\" \"c\"", BadList::Twice("a".into())),
        ] {
            assert_eq!(read(&text(list), "a").err(), Some(bad), "{list}");
        }
    }

    proptest! {
        #[test]
        fn any_login_survives(user in "[^\0]{1,20}", password in "[^\0]{0,40}") {
            let added = set(&text(LIST), &user, &text(&password)).unwrap();
            let held = read(&added, &user).unwrap().map(shown);
            prop_assert_eq!(held, Some(password));
            if !["admin", "app_a", "last"].contains(&user.as_str()) {
                let gone = shown(remove(&added, &user).unwrap());
                prop_assert_eq!(gone.trim_end_matches('\n'), LIST);
            }
        }
    }
}
