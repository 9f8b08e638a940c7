//! The codes of errors: each has a page, which `keywheel explain` prints.
//!
//! To add one: write its page in `docs/errors/`, whose first line is its title, and name it in the list below. A code, once
//! released, keeps its meaning.

use std::fmt;

/// The code of a kind of error, such as `K0104`.
#[derive(Clone, Copy)]
pub(crate) struct Code(&'static Page);

struct Page {
    code: &'static str,
    text: &'static str,
}

impl Code {
    /// Returns the code with this name, in any case.
    pub(crate) fn named(name: &str) -> Option<Self> {
        ALL.iter().find(|code| code.as_str().eq_ignore_ascii_case(name)).copied()
    }

    /// Returns every code, in order.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        ALL.iter().copied()
    }

    /// Returns the name.
    pub(crate) const fn as_str(self) -> &'static str {
        self.0.code
    }

    /// Returns the page, in Markdown.
    pub(crate) const fn page(self) -> &'static str {
        self.0.text
    }

    /// Returns the title of the page.
    pub(crate) fn title(self) -> &'static str {
        let line = self.page().lines().next().unwrap_or_default();
        line.split_once(": ").map_or(line, |(_, title)| title)
    }
}

impl PartialEq for Code {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Code {}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! codes {
    ($($code:literal $name:ident),+ $(,)?) => {
        $(
            #[doc = concat!("`", $code, "`: see its page.")]
            pub(crate) const $name: Code = Code(&Page {
                code: $code,
                text: include_str!(concat!("../../../docs/errors/", $code, ".md")),
            });
        )+

        const ALL: &[Code] = &[$($name),+];
    };
}

codes! {
    "K0001" USAGE,
    "K0101" UNREADABLE,
    "K0102" NOT_YAML,
    "K0103" DUPLICATE_KEY,
    "K0104" UNKNOWN_KEY,
    "K0105" WRONG_VALUE,
    "K0106" MISSING_KEY,
    "K0107" LITERAL_VALUE,
    "K0108" UNSUITABLE,
    "K0109" UNKNOWN_NAME,
    "K0110" SLOT_CLAIMED,
    "K0111" NO_OVERLAP,
    "K0112" CRYPTOPERIOD,
    "K0113" NOBODY_READS,
    "K0114" BY_ENV,
    "K0115" REQUIRES,
    "K0116" POLICY_REQUIRES,
    "K0117" DRIVER_REFUSED,
    "K0118" NOT_USED,
    "K0119" TWO_FORMS,
    "K0201" BUSY,
    "K0202" OPEN_ALREADY,
    "K0203" NOT_NOW,
    "K0204" REFUSED,
    "K0205" PLAN_CHANGED,
    "K0206" NOT_CONFIRMED,
    "K0207" DISAGREE,
    "K0208" STORE,
    "K0209" ISSUER,
    "K0210" LOST,
    "K0211" ORDER,
    "K0212" CLAIMED,
    "K0213" ELSEWHERE,
    "K0214" DENY_LIST,
    "K0301" PLACE,
    "K0302" SEALING,
    "K0303" CORRUPT,
    "K0304" STORAGE,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_is_listed_once_and_its_page_begins_with_it() {
        let codes: Vec<_> = Code::all().map(Code::as_str).collect();
        assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
        for code in Code::all() {
            assert!(code.page().starts_with(&format!("# {code}: ")), "{code}");
            assert!(!code.title().is_empty() && code.page().lines().count() > 4, "{code}");
        }
    }

    #[test]
    fn each_page_is_listed() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            assert!(Code::named(name).is_some(), "{name} is not in the list of codes");
        }
    }

    #[test]
    fn a_code_is_found_in_any_case() {
        assert_eq!(Code::named("k0104"), Some(UNKNOWN_KEY));
        assert_eq!(Code::named("K9999"), None);
    }
}
