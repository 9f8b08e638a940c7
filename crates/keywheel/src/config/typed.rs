//! Reads types out of the tree: serde's side of the configuration, with our errors.
//!
//! serde's own errors repeat values (`invalid type: string "sk-…"`), so none of its texts is used. What a type expected is
//! kept, since that is written in code; what stood there is not, since that is written in the file. A message of a driver's
//! own is kept only where it shares nothing with the texts that were being read.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::problem::{Place, Problem};
use super::suggest::{nearest, shown};
use super::tree::{Key, Node, Value};
use crate::code::{self, Code};

/// Reads a type out of a node. `path` names the node in errors; relative paths in it begin at `root`.
///
/// # Errors
/// A [`Problem`] that names the place, the key, and what was expected.
pub(crate) fn read<T: DeserializeOwned>(
    node: &Node,
    path: &[&str],
    root: &Path,
) -> Result<T, Problem> {
    let reader = Reader { node, root };
    T::deserialize(reader).map_err(|error| {
        let error = path.iter().rev().fold(error, |error, name| error.within(name));
        error.problem(node.place)
    })
}

/// What went wrong, in terms that hold no value.
#[derive(Debug)]
pub(crate) struct ReadError {
    kind: Kind,
    place: Option<Place>,
    path: Vec<String>,
}

#[derive(Debug)]
enum Kind {
    UnknownKey {
        key: String,
        expected: &'static [&'static str],
    },
    MissingKey(&'static str),
    UnknownChoice {
        nearest: Option<&'static str>,
        expected: &'static [&'static str],
    },
    Expected(String),
    /// A value where only a reference may stand.
    Literal,
    /// The words of a type's own check, not yet judged.
    Words(String),
    /// The same, found to repeat nothing.
    Checked(String),
}

impl ReadError {
    fn new(kind: Kind) -> Self {
        Self { kind, place: None, path: Vec::new() }
    }

    /// Gives the error the place of the node that was being read, unless a deeper one has it.
    fn about(mut self, node: &Node) -> Self {
        if let Kind::Words(words) = self.kind {
            self.kind = match without_values(words, node) {
                Some(words) => Kind::Checked(words),
                None => Kind::Expected("another value".into()),
            };
        }
        match self.kind {
            // A missing key has no place of its own; the key above the mapping is the better one.
            Kind::MissingKey(_) => self,
            _ => Self { place: self.place.or(Some(node.place)), ..self },
        }
    }

    fn at_key(self, key: &Key) -> Self {
        Self { place: self.place.or(Some(key.place)), ..self }.within(&key.name)
    }

    fn within(mut self, name: &str) -> Self {
        self.path.insert(0, shown(name).to_owned());
        self
    }

    fn problem(self, otherwise: Place) -> Problem {
        let path = if self.path.is_empty() {
            "the file".into()
        } else {
            format!("`{}`", self.path.join("."))
        };
        let (code, message, hint) = self.kind.explain(&path);
        let problem = Problem::new(code, message).at(self.place.unwrap_or(otherwise));
        match hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}

impl Kind {
    fn explain(self, path: &str) -> (Code, String, Option<String>) {
        match self {
            Self::UnknownKey { key, expected } => (
                code::UNKNOWN_KEY,
                format!("key `{}` is not known in {path}", shown(&key)),
                Some(did_you_mean(nearest(&key, expected.iter().copied()), expected)),
            ),
            Self::MissingKey(key) => (code::MISSING_KEY, format!("key `{key}` is missing in {path}"), None),
            Self::UnknownChoice { nearest, expected } => (
                code::WRONG_VALUE,
                format!("{path} is none of the known choices"),
                Some(did_you_mean(nearest, expected)),
            ),
            Self::Expected(what) => (code::WRONG_VALUE, format!("{path} must be {what}"), None),
            Self::Literal => (
                code::LITERAL_VALUE,
                format!("{path} holds a value where a reference to one must stand"),
                Some(
                    "put the value elsewhere, replace it if others can read this file, and write `{ env: NAME }`, \
                     `{ file: PATH }` or `{ command: [PROGRAM] }`"
                        .into(),
                ),
            ),
            Self::Words(words) | Self::Checked(words) => (code::WRONG_VALUE, format!("{path}: {words}"), None),
        }
    }
}

/// Names the nearest choice, else all of them.
fn did_you_mean(nearest: Option<&str>, expected: &[&str]) -> String {
    match nearest {
        Some(name) => format!("did you mean `{name}`?"),
        None if expected.is_empty() => "nothing may stand here".into(),
        None => format!("known here: `{}`", expected.join("`, `")),
    }
}

/// Returns words that a type or driver chose, unless they repeat a part of what stands in the node.
pub(crate) fn without_values(words: String, node: &Node) -> Option<String> {
    let repeated = |text: &&str| {
        let chars: Vec<char> = text.chars().collect();
        let size = chars.len().min(8);
        size >= 4 && chars.windows(size).any(|run| words.contains(&run.iter().collect::<String>()))
    };
    if node.texts().iter().any(repeated) { None } else { Some(words) }
}

impl serde::de::Error for ReadError {
    fn custom<T: fmt::Display>(words: T) -> Self {
        Self::new(Kind::Words(words.to_string()))
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Kind::Expected(in_words(&expected.to_string())))
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn invalid_length(_: usize, expected: &dyn Expected) -> Self {
        Self::new(Kind::Expected(in_words(&expected.to_string())))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownChoice {
            nearest: nearest(variant, expected.iter().copied()),
            expected,
        })
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownKey { key: field.into(), expected })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Kind::MissingKey(field))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new(Kind::Checked(format!("key `{field}` stands twice")))
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is not as expected")
    }
}

impl std::error::Error for ReadError {}

/// Turns serde's names of types into words for people.
fn in_words(expected: &str) -> String {
    let words = match expected {
        "a string" | "a borrowed string" | "string" => "text (put it in quotes)",
        "path string" => "a path",
        "a boolean" => "`true` or `false`",
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" | "u64" | "usize" => "a whole number from 0",
        "i8" | "i16" | "i32" | "i64" => "a whole number",
        "a sequence" => "a list",
        "a map" => "a mapping",
        other if other.starts_with("struct ") || other.starts_with("internally") => "a mapping",
        other => other,
    };
    words.into()
}

/// The deserializer over one node.
#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    root: &'a Path,
}

impl<'a> Reader<'a> {
    fn over(self, node: &'a Node) -> Self {
        Self { node, ..self }
    }

    fn visit<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let visited = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => match u64::try_from(*value) {
                Ok(value) => visitor.visit_u64(value),
                Err(_) => visitor.visit_i64(*value),
            },
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_str(text),
            Value::List(items) => {
                visitor.visit_seq(Items { reader: self, items: items.iter(), index: 0 })
            }
            Value::Map(entries) => {
                visitor.visit_map(Entries { reader: self, entries: entries.iter(), value: None })
            }
        };
        visited.map_err(|error| error.about(self.node))
    }

    /// Paths are made absolute while they are read, so that a plan can finish from another folder. serde has one visitor for
    /// paths, and it is told apart by what it expects; a test holds it to that.
    fn path_text<'de, V: Visitor<'de>>(&self, visitor: &V) -> Option<PathBuf> {
        match &self.node.value {
            Value::Text(text) if (visitor as &dyn Expected).to_string() == "path string" => {
                Some(self.root.join(text))
            }
            _ => None,
        }
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.visit(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.path_text(&visitor) {
            Some(path) => {
                let text = path.into_os_string().into_string().map_err(|_| {
                    ReadError::new(Kind::Expected("in a folder whose name is UTF-8".into()))
                        .about(self.node)
                })?;
                visitor.visit_string(text)
            }
            None => self.visit(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let refuse = |kind| Err(ReadError::new(kind).about(self.node));
        let one_of = || format!("a mapping with one key of `{}`", variants.join("`, `"));
        match &self.node.value {
            Value::Text(_) | Value::Integer(_) | Value::Float(_) if name == "SecretReference" => {
                refuse(Kind::Literal)
            }
            Value::Text(variant) => visitor.visit_enum(Variant {
                reader: self,
                name: variant,
                key: None,
                content: None,
            }),
            Value::Map(entries) => match entries.as_slice() {
                [(key, content)] => visitor.visit_enum(Variant {
                    reader: self,
                    name: &key.name,
                    key: Some(key),
                    content: Some(content),
                }),
                [] => refuse(Kind::Expected(one_of())),
                [first, second, ..] => {
                    let known = |key: &Key| variants.contains(&key.name.as_str());
                    let surplus = if known(&first.0) { &second.0 } else { &first.0 };
                    let kind = if known(surplus) {
                        Kind::Expected(one_of())
                    } else {
                        Kind::UnknownKey { key: surplus.name.clone(), expected: variants }
                    };
                    Err(ReadError { kind, place: Some(surplus.place), path: Vec::new() })
                }
            },
            _ => refuse(Kind::Expected(one_of())),
        }
        .map_err(|error| error.about(self.node))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier
    }
}

struct Items<'a> {
    reader: Reader<'a>,
    items: std::slice::Iter<'a, Node>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = ReadError;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, ReadError> {
        let Some(item) = self.items.next() else { return Ok(None) };
        self.index += 1;
        let read = seed.deserialize(self.reader.over(item));
        read.map(Some).map_err(|error| error.about(item).within(&self.index.to_string()))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Entries<'a> {
    reader: Reader<'a>,
    entries: std::slice::Iter<'a, (Key, Node)>,
    value: Option<(&'a Key, &'a Node)>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = ReadError;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, ReadError> {
        let Some((key, node)) = self.entries.next() else { return Ok(None) };
        self.value = Some((key, node));
        let read = seed.deserialize(StrDeserializer::<ReadError>::new(&key.name));
        read.map(Some)
            .map_err(|error| ReadError { place: error.place.or(Some(key.place)), ..error })
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ReadError> {
        let (key, node) = self.value.take().expect("serde asks for a key first");
        seed.deserialize(self.reader.over(node)).map_err(|error| error.at_key(key))
    }
}

struct Variant<'a> {
    reader: Reader<'a>,
    name: &'a str,
    key: Option<&'a Key>,
    content: Option<&'a Node>,
}

impl<'a> Variant<'a> {
    fn located(key: Option<&Key>, error: ReadError) -> ReadError {
        match key {
            Some(key) => error.at_key(key),
            None => error,
        }
    }
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = ReadError;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), ReadError> {
        let read = seed.deserialize(StrDeserializer::<ReadError>::new(self.name));
        match (read, self.key) {
            (Ok(variant), _) => Ok((variant, self)),
            (Err(error), Some(key)) => Err(unknown_key(error, key)),
            (Err(error), None) => Err(error),
        }
    }
}

/// A variant that is written as a key is a key to people.
fn unknown_key(error: ReadError, key: &Key) -> ReadError {
    let kind = match error.kind {
        Kind::UnknownChoice { expected, .. } => {
            Kind::UnknownKey { key: key.name.clone(), expected }
        }
        other => other,
    };
    ReadError { kind, place: Some(key.place), path: error.path }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = ReadError;

    fn unit_variant(self) -> Result<(), ReadError> {
        match self.content.map(|content| &content.value) {
            None | Some(Value::Null) => Ok(()),
            Some(_) => Err(Self::located(self.key, ReadError::new(Kind::Expected("empty".into())))),
        }
    }

    /// A driver that is named without a mapping (`issuer: random`) has all its defaults.
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, ReadError> {
        let empty = Node { value: Value::Map(Vec::new()), place: self.reader.node.place };
        let node = self.content.unwrap_or(&empty);
        seed.deserialize(self.reader.over(node))
            .map_err(|error| Self::located(self.key, error.about(node)))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, ReadError> {
        self.struct_variant(&[], visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let empty = Node { value: Value::Map(Vec::new()), place: self.reader.node.place };
        let node = self.content.unwrap_or(&empty);
        self.reader
            .over(node)
            .visit(visitor)
            .map_err(|error| Self::located(self.key, error.about(node)))
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    fn told<T: DeserializeOwned>(text: &str) -> String {
        let node = Node::parse(text).unwrap_or_else(|problem| panic!("{problem}"));
        match read::<T>(&node, &[], Path::new("/srv")) {
            Ok(_) => panic!("it was read"),
            Err(problem) => problem.to_string(),
        }
    }

    /// A type whose own check repeats what it was given, as a driver might.
    #[derive(Debug)]
    struct Loose;

    impl<'de> Deserialize<'de> for Loose {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let text = String::deserialize(deserializer)?;
            Err(serde::de::Error::custom(format!(
                "`{}…` is not wanted",
                text.get(..9).unwrap_or_default()
            )))
        }
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Holder {
        #[expect(dead_code, reason = "it is never read whole")]
        key: Loose,
    }

    #[test]
    fn h114_the_words_of_a_types_own_check_are_dropped_where_they_repeat_the_value() {
        insta::assert_snapshot!(told::<Holder>("key: CANARYCANARY\n"), @"K0105 1:1: `key` must be another value");
        insta::assert_snapshot!(told::<Holder>("key: short\n"), @"K0105 1:1: `key`: `…` is not wanted");
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Paths {
        path: PathBuf,
        maybe: Option<PathBuf>,
        reference: keywheel_driver::SecretReference,
        text: String,
    }

    /// serde's visitor for paths is known by its words; this fails if they change.
    #[test]
    fn relative_paths_are_made_absolute_and_nothing_else_is() {
        let text = "path: a/b\nmaybe: /c\nreference: { file: d }\ntext: e/f\n";
        let node = Node::parse(text).unwrap_or_else(|problem| panic!("{problem}"));
        let paths: Paths =
            read(&node, &[], Path::new("/srv")).unwrap_or_else(|problem| panic!("{problem}"));
        assert_eq!(paths.path, Path::new("/srv/a/b"));
        assert_eq!(paths.maybe.as_deref(), Some(Path::new("/c")));
        assert_eq!(paths.reference, keywheel_driver::SecretReference::File("/srv/d".into()));
        assert_eq!(paths.text, "e/f");
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "snake_case", deny_unknown_fields)]
    enum Choice {
        Plain,
        Struct { number: u8 },
        Inner(Inner),
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[serde(default)]
        number: u8,
    }

    #[test]
    fn a_choice_is_a_word_or_a_mapping_with_one_key() {
        let chosen = |text: &str| {
            let node = Node::parse(text).unwrap_or_else(|problem| panic!("{problem}"));
            read::<Choice>(&node, &[], Path::new("/")).unwrap_or_else(|problem| panic!("{problem}"))
        };
        assert_eq!(chosen("plain"), Choice::Plain);
        assert_eq!(chosen("plain:"), Choice::Plain);
        assert_eq!(chosen("{ struct: { number: 3 } }"), Choice::Struct { number: 3 });
        assert_eq!(chosen("inner"), Choice::Inner(Inner { number: 0 }));
        assert_eq!(chosen("{ inner: { number: 4 } }"), Choice::Inner(Inner { number: 4 }));
        insta::assert_snapshot!(told::<Choice>("strct: { number: 3 }"), @"K0104 1:1: key `strct` is not known in the file (did you mean `struct`?)");
        insta::assert_snapshot!(told::<Choice>("struct: { numbr: 3 }"), @"K0104 1:11: key `numbr` is not known in `struct` (did you mean `number`?)");
        insta::assert_snapshot!(told::<Choice>("{ inner: {}, plain: }"), @"K0105 1:14: the file must be a mapping with one key of `plain`, `struct`, `inner`");
        insta::assert_snapshot!(told::<Choice>("{ inner: {}, other: 1 }"), @"K0104 1:14: key `other` is not known in the file (known here: `plain`, `struct`, `inner`)");
        insta::assert_snapshot!(told::<Choice>("plain: 3"), @"K0105 1:1: `plain` must be empty");
        insta::assert_snapshot!(told::<Choice>("3"), @"K0105 1:1: the file must be a mapping with one key of `plain`, `struct`, `inner`");
        insta::assert_snapshot!(told::<Choice>("{}"), @"K0105 1:1: the file must be a mapping with one key of `plain`, `struct`, `inner`");
        insta::assert_snapshot!(told::<Choice>("struct"), @"K0106 1:1: key `number` is missing in the file");
    }
}
