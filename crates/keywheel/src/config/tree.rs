//! The file as a tree of nodes that know their place, before any of it has a meaning.
//!
//! Everything after this module works on the tree: `by_env` is resolved in it, each environment's part is read from it into
//! types ([`typed`](super::typed)), and every later check finds the line of what it complains about in it. The YAML crate's
//! own error texts are replaced by ours, because some of them repeat what stands in the file.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::granit_parser::ErrorKind;
use serde_saphyr::{DuplicateKeyPolicy, Error, ExternalMessageSource, MergeKeyPolicy, Spanned};

use super::problem::{Place, Problem};
use super::suggest::{reads_like_a_name, shown};
use crate::code::{self, Code};

/// A value and where it stands.
#[derive(Clone)]
pub(crate) struct Node {
    /// The value.
    pub(crate) value: Value,
    /// Where it begins.
    pub(crate) place: Place,
}

/// A value of YAML 1.2's core schema.
#[derive(Clone)]
pub(crate) enum Value {
    /// Nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the file; no key stands twice.
    Map(Vec<(Key, Node)>),
}

/// A key and where it stands.
#[derive(Clone)]
pub(crate) struct Key {
    /// The key.
    pub(crate) name: String,
    /// Where it begins.
    pub(crate) place: Place,
}

impl Node {
    /// Parses a document.
    ///
    /// # Errors
    /// A [`Problem`] with the place, and nothing of what stands there.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let options = serde_saphyr::options! {
            // Looked for below, in one pass, and with the place of the second key.
            duplicate_keys: DuplicateKeyPolicy::PassThrough,
            merge_keys: MergeKeyPolicy::Error,
            strict_booleans: true,
            reject_unsupported_tags: true,
            with_snippet: false,
        };
        let node: Self =
            serde_saphyr::from_str_with_options(text, options).map_err(|error| explain(&error))?;
        match node.twice() {
            Some(key) => Err(standing_twice(key)),
            None => Ok(node),
        }
    }

    /// Returns the first key that its mapping holds already.
    fn twice(&self) -> Option<&Key> {
        match &self.value {
            Value::List(items) => items.iter().find_map(Self::twice),
            Value::Map(entries) => {
                let mut names = BTreeSet::new();
                entries.iter().find_map(|(key, node)| match names.insert(key.name.as_str()) {
                    true => node.twice(),
                    false => Some(key),
                })
            }
            Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Text(_) => {
                None
            }
        }
    }

    /// Returns the node under a path of keys.
    pub(crate) fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |node, name| node.get(name))
    }

    /// Returns the node under a key.
    pub(crate) fn get(&self, name: &str) -> Option<&Self> {
        self.entries().iter().find(|(key, _)| key.name == name).map(|(_, node)| node)
    }

    /// Returns the place of the key at the end of a path, or of its nearest parent that exists.
    pub(crate) fn place_of(&self, path: &[&str]) -> Place {
        let mut place = self.place;
        let mut node = self;
        for name in path {
            match node.entries().iter().find(|(key, _)| key.name == *name) {
                Some((key, child)) => (place, node) = (key.place, child),
                None => break,
            }
        }
        place
    }

    /// Returns the entries of a mapping; none for anything else.
    pub(crate) fn entries(&self) -> &[(Key, Self)] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// Returns every text in the node, and every key that does not read like a name.
    pub(crate) fn texts(&self) -> Vec<&str> {
        match &self.value {
            Value::Text(text) => vec![text],
            Value::List(items) => items.iter().flat_map(Self::texts).collect(),
            Value::Map(entries) => {
                let keys = entries.iter().map(|(key, _)| key.name.as_str());
                let hidden = keys.filter(|key| !reads_like_a_name(key));
                hidden.chain(entries.iter().flat_map(|(_, node)| node.texts())).collect()
            }
            Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) => Vec::new(),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { value: spanned.value, place: place(&spanned.referenced) })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let key = Key { place: place(&key.referenced), name: key.value };
            entries.push((key, map.next_value()?));
        }
        Ok(Value::Map(entries))
    }
}

fn place(location: &serde_saphyr::Location) -> Place {
    Place { line: location.line(), column: location.column() }
}

fn standing_twice(key: &Key) -> Problem {
    let message = format!("key `{}` stands twice in one mapping", shown(&key.name));
    Problem::new(code::DUPLICATE_KEY, message).at(key.place)
}

/// Says what is wrong in words of ours; the parser's words are used only where they are fixed.
fn explain(error: &Error) -> Problem {
    let error = error.without_snippet();
    let (code, message, hint): (Code, String, Option<&str>) = match error {
        Error::MultipleDocuments { .. } => {
            (code::NOT_USED, "the file holds more than one document".into(), None)
        }
        Error::MergeKeyNotAllowed { .. } | Error::MergeValueNotMapOrSeqOfMaps { .. } => (
            code::NOT_USED,
            "merge keys (`<<`) are not read".into(),
            Some("write the keys out, or put them into a policy"),
        ),
        Error::UnsupportedTag { .. } => {
            (code::NOT_USED, "tags of this kind are not read".into(), None)
        }
        Error::InvalidScalar { .. } => {
            (code::WRONG_VALUE, "a value here does not fit its tag".into(), None)
        }
        Error::UnknownAnchor { .. } => {
            (code::NOT_YAML, "an alias names an anchor that is not in the file".into(), None)
        }
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            (code::NOT_USED, "the file is too deep, too large or expands too far".into(), None)
        }
        Error::NonFiniteFloat { .. } => {
            (code::WRONG_VALUE, "a number here is not finite".into(), None)
        }
        Error::NullIntoString { .. } => {
            (code::NOT_YAML, "a key is missing before `:`".into(), None)
        }
        Error::AliasError { error, .. } => return explain(error),
        Error::ExternalMessage { source, .. } => match source.as_ref() {
            ExternalMessageSource::Parser(scan) => scan_words(scan.kind()),
            _ => (code::NOT_YAML, "this is not YAML".into(), None),
        },
        _ => (
            code::NOT_YAML,
            "this is not YAML".into(),
            Some("look for an open quote or bracket, or wrong indentation"),
        ),
    };
    let problem =
        Problem::new(code, message).at(error.location().as_ref().map_or(Place::START, place));
    match hint {
        Some(hint) => problem.hint(hint),
        None => problem,
    }
}

fn scan_words(kind: &ErrorKind) -> (Code, String, Option<&'static str>) {
    use ErrorKind as K;
    match kind {
        K::TabNotAllowed
        | K::TabInBlockIndentation
        | K::TabInIndentation
        | K::TabAtBlockScalarStart
        | K::TabInPlainScalar => (
            code::NOT_YAML,
            "a tab stands where YAML wants spaces".into(),
            Some("indent with spaces"),
        ),
        K::UnknownAnchor => {
            (code::NOT_YAML, "an alias names an anchor that is not in the file".into(), None)
        }
        // These three carry text of the file or of elsewhere.
        K::UnexpectedCharacter { .. } => (
            code::NOT_YAML,
            "a character here begins nothing in YAML".into(),
            Some("put the text in quotes"),
        ),
        K::Custom(_) | K::InputDecoding { .. } | K::InputIo { .. } => {
            (code::NOT_YAML, "this is not YAML".into(), None)
        }
        fixed => (code::NOT_YAML, format!("this is not YAML: {fixed}"), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Node::parse(text).err().unwrap_or_else(|| panic!("parsed")).to_string()
    }

    #[test]
    fn every_node_and_key_knows_its_place() {
        let tree =
            Node::parse("a: 1\nb:\n  c: [x, { d: true }]\n").unwrap_or_else(|e| panic!("{e}"));
        let places = |path: &[&str]| {
            let node = tree.at(path).map(|n| (n.place.line, n.place.column));
            let key = tree.place_of(path);
            (node.unwrap(), (key.line, key.column))
        };
        assert_eq!(places(&["a"]), ((1, 4), (1, 1)));
        assert_eq!(places(&["b", "c"]), ((3, 6), (3, 3)));
        assert_eq!(tree.place_of(&["b", "missing"]), Place { line: 2, column: 1 });
        let Value::List(items) = &tree.at(&["b", "c"]).unwrap().value else { panic!("no list") };
        assert_eq!((items[1].place.line, items[1].place.column), (3, 10));
    }

    #[test]
    fn scalars_are_those_of_yaml_1_2() {
        let tree = Node::parse("a: no\nb: true\nc: \"true\"\nd: 12\ne: ~\nf: 1.5\ng:\n")
            .unwrap_or_else(|e| panic!("{e}"));
        let value = |key| &tree.get(key).unwrap().value;
        assert!(matches!(value("a"), Value::Text(t) if t == "no"));
        assert!(matches!(value("b"), Value::Bool(true)));
        assert!(matches!(value("c"), Value::Text(_)));
        assert!(matches!(value("d"), Value::Integer(12)));
        assert!(matches!(value("e"), Value::Null));
        assert!(matches!(value("f"), Value::Float(_)));
        assert!(matches!(value("g"), Value::Null));
    }

    #[test]
    fn what_is_not_yaml_is_said_without_showing_it() {
        insta::assert_snapshot!(refused("a: 1\nb:\n\tc: CANARY\n"), @"K0102 3:2: a tab stands where YAML wants spaces (indent with spaces)");
        insta::assert_snapshot!(refused("a: \"CANARY\nb: 1\n"), @"K0102 1:4: this is not YAML: unclosed quote");
        insta::assert_snapshot!(refused("a: [CANARY\n"), @"K0102 1:4: this is not YAML: unclosed bracket '['");
        insta::assert_snapshot!(refused("a: *CANARY\n"), @"K0102 1:4: an alias names an anchor that is not in the file");
        insta::assert_snapshot!(refused("a: @CANARY\n"), @"K0102 1:4: a character here begins nothing in YAML (put the text in quotes)");
        insta::assert_snapshot!(refused("a: !CANARY x\n"), @"K0118 1:12: tags of this kind are not read");
        insta::assert_snapshot!(refused("a: &x {b: 1}\nc:\n  <<: *x\n"), @"K0118 3:3: merge keys (`<<`) are not read (write the keys out, or put them into a policy)");
        insta::assert_snapshot!(refused("a: 1\n---\nb: 1\n"), @"K0118 3:1: the file holds more than one document");
        insta::assert_snapshot!(refused("a: 1\nb: 2\na: CANARY\n"), @"K0103 3:1: key `a` stands twice in one mapping");
        insta::assert_snapshot!(refused("sk-CANARY-7f3a9c51: 1\nsk-CANARY-7f3a9c51: 2\n"), @"K0103 2:1: key `…` stands twice in one mapping");
        insta::assert_snapshot!(refused("? {CANARY: 1}\n: 2\n"), @"K0102 1:3: this is not YAML (look for an open quote or bracket, or wrong indentation)");
        insta::assert_snapshot!(refused("a: .inf\n"), @"K0105 1:4: a number here is not finite");
        insta::assert_snapshot!(refused("a: CANARY\n b: 2\n"), @"K0102 2:3: this is not YAML: mapping values are not allowed in this context");
        insta::assert_snapshot!(refused(": CANARY\n"), @"K0102 1:1: a key is missing before `:`");
        insta::assert_snapshot!(refused("a: !!int CANARY\n"), @"K0105 1:10: a value here does not fit its tag");
    }
}
