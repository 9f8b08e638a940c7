//! The text of the file, read into a tree: of YAML 1.2, what a configuration needs, and a refusal of the rest.
//!
//! The YAML crate turns the text into events; this module gives them the meaning of the core schema. Merge keys, tags and
//! more than one document are refused, so that what a reviewer sees is what holds. The crate's own error texts are replaced
//! by ours, because some of them repeat what stands in the file.
//!
//! Files of other programs are read by the same code in another [`Dialect`], which takes what theirs may hold.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, ScanError, StrInput, Tag};

use super::problem::{Place, Problem};
use super::suggest::shown;
use super::tree::{Key, Node, Value};
use crate::code;

/// How many nodes a file may hold, those that its aliases repeat included.
const NODES: usize = 250_000;

/// How deep nodes may stand within each other, within aliases too.
const DEPTH: usize = 100;

/// Whose file it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Ours: what a reviewer sees is what holds.
    Strict,
    /// Compose's: merge keys are merged, tags are taken for what Compose means by them.
    Compose,
}

impl Node {
    /// Parses a document of ours.
    ///
    /// # Errors
    /// A [`Problem`] with the place, and nothing of what stands there.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        Self::parse_as(text, Dialect::Strict)
    }

    /// Parses every document of a text; one that is empty is left out.
    ///
    /// # Errors
    /// A [`Problem`] with the place, and nothing of what stands there.
    pub(crate) fn documents(text: &str, dialect: Dialect) -> Result<Vec<Self>, Problem> {
        let events = Parser::new_from_str(text);
        Reader { events, dialect, anchored: BTreeMap::new(), nodes: 0 }.documents()
    }

    /// Parses a document.
    ///
    /// # Errors
    /// A [`Problem`] with the place, and nothing of what stands there.
    pub(crate) fn parse_as(text: &str, dialect: Dialect) -> Result<Self, Problem> {
        let events = Parser::new_from_str(text);
        Reader { events, dialect, anchored: BTreeMap::new(), nodes: 0 }.document()
    }
}

/// Reads the events of one text.
struct Reader<'t> {
    events: Parser<'t, StrInput<'t>>,
    dialect: Dialect,
    /// The finished nodes that an alias may name.
    anchored: BTreeMap<usize, Rc<Node>>,
    /// How many nodes were read.
    nodes: usize,
}

impl<'t> Reader<'t> {
    fn document(mut self) -> Result<Node, Problem> {
        while let Some((event, place)) = self.next()? {
            match event {
                Event::StreamStart => {}
                Event::DocumentStart(..) => return self.only_document(),
                _ => return Err(Problem::new(code::NOT_YAML, "this is not YAML").at(place)),
            }
        }
        Ok(Node { value: Value::Null, place: Place::START })
    }

    fn documents(mut self) -> Result<Vec<Node>, Problem> {
        let mut documents = Vec::new();
        while let Some((event, _)) = self.next()? {
            if matches!(event, Event::DocumentStart(..)) {
                let (event, place) = self.expect()?;
                documents.push(self.node(event, place, 0)?);
            }
        }
        documents.retain(|document| !matches!(document.value, Value::Null));
        Ok(documents)
    }

    fn only_document(mut self) -> Result<Node, Problem> {
        let (event, place) = self.expect()?;
        let node = self.node(event, place, 0)?;
        while let Some((event, place)) = self.next()? {
            if matches!(event, Event::DocumentStart(..)) {
                let message = "the file holds more than one document";
                return Err(Problem::new(code::NOT_USED, message).at(place));
            }
        }
        Ok(node)
    }

    /// Returns the next event and where it begins; none after the last. A comment means nothing.
    fn next(&mut self) -> Result<Option<(Event<'t>, Place)>, Problem> {
        loop {
            return match self.events.next_event() {
                None | Some(Ok((Event::StreamEnd, _))) => Ok(None),
                Some(Ok((Event::Comment(..), _))) => continue,
                Some(Ok((event, span))) => {
                    Ok(Some((event, place(&span.tag_start().unwrap_or(span.start)))))
                }
                Some(Err(error)) => Err(explain(&error)),
            };
        }
    }

    fn expect(&mut self) -> Result<(Event<'t>, Place), Problem> {
        let unfinished = || Problem::new(code::NOT_YAML, "the file ends in the middle");
        self.next()?.ok_or_else(unfinished)
    }

    fn node(&mut self, event: Event<'t>, place: Place, depth: usize) -> Result<Node, Problem> {
        let meaning = self.meaning(event.tag(), place)?;
        if let Event::Alias(anchor) = event {
            return self.repeat(anchor, place, depth);
        }
        self.count(place, depth)?;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, _) => (self.scalar(&text, style, place)?, anchor),
            Event::SequenceStart(_, anchor, _) => (self.list(depth)?, anchor),
            Event::MappingStart(_, anchor, _) => (self.map(depth)?, anchor),
            _ => return Err(Problem::new(code::NOT_YAML, "this is not YAML").at(place)),
        };
        let value = if meaning == Meaning::Reset { Value::Null } else { value };
        let node = Node { value, place };
        if anchor != 0 {
            self.anchored.insert(anchor, Rc::new(node.clone()));
        }
        Ok(node)
    }

    fn meaning(&self, tag: Option<&Tag>, place: Place) -> Result<Meaning, Problem> {
        match (tag, self.dialect) {
            (None, _) => Ok(Meaning::AsItStands),
            (Some(_), Dialect::Strict) => {
                Err(Problem::new(code::NOT_USED, "tags (`!`) are not read").at(place))
            }
            (Some(tag), Dialect::Compose) if tag.suffix() == "reset" => Ok(Meaning::Reset),
            (Some(_), Dialect::Compose) => Ok(Meaning::AsItStands),
        }
    }

    fn scalar(&self, text: &str, style: ScalarStyle, place: Place) -> Result<Value, Problem> {
        match (scalar(text, style, place), self.dialect) {
            (Err(_), Dialect::Compose) => Ok(Value::Text(text.into())),
            (read, _) => read,
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, Problem> {
        let mut items = Vec::new();
        loop {
            match self.expect()? {
                (Event::SequenceEnd, _) => return Ok(Value::List(items)),
                (event, place) => items.push(self.node(event, place, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, Problem> {
        let mut entries = Vec::new();
        let mut merged = Vec::new();
        loop {
            let (event, place) = match self.expect()? {
                (Event::MappingEnd, _) => break,
                other => other,
            };
            let merges = self.dialect == Dialect::Compose && is_merge_key(&event);
            let key = if merges { None } else { Some(key(&event, place)?) };
            let (event, place) = self.expect()?;
            let node = self.node(event, place, depth + 1)?;
            match key {
                Some(key) => entries.push((key, node)),
                None => merged.push(node),
            }
        }
        match twice(&entries) {
            None => Ok(Value::Map(with_merged(entries, merged))),
            Some(key) => {
                let message = format!("key `{}` stands twice in one mapping", shown(&key.name));
                Err(Problem::new(code::DUPLICATE_KEY, message).at(key.place))
            }
        }
    }

    /// Returns the node of an anchor, standing where the alias stands; what is within it keeps its place.
    fn repeat(&mut self, anchor: usize, place: Place, depth: usize) -> Result<Node, Problem> {
        let Some(node) = self.anchored.get(&anchor).cloned() else {
            let message = "an alias stands within the node that it names";
            return Err(Problem::new(code::NOT_YAML, message).at(place));
        };
        self.count_all(&node, place, depth)?;
        Ok(Node { value: node.value.clone(), place })
    }

    fn count_all(&mut self, node: &Node, place: Place, depth: usize) -> Result<(), Problem> {
        self.count(place, depth)?;
        match &node.value {
            Value::List(items) => {
                items.iter().try_for_each(|item| self.count_all(item, place, depth + 1))
            }
            Value::Map(entries) => {
                entries.iter().try_for_each(|(_, item)| self.count_all(item, place, depth + 1))
            }
            Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Text(_) => {
                Ok(())
            }
        }
    }

    fn count(&mut self, place: Place, depth: usize) -> Result<(), Problem> {
        self.nodes += 1;
        if self.nodes > NODES || depth > DEPTH { Err(too_much(place)) } else { Ok(()) }
    }
}

/// What a tag makes of a node.
#[derive(PartialEq, Eq)]
enum Meaning {
    AsItStands,
    /// Nothing: Compose takes it away.
    Reset,
}

fn is_merge_key(event: &Event<'_>) -> bool {
    matches!(event, Event::Scalar(text, ScalarStyle::Plain, ..) if text.as_ref() == "<<")
}

/// Adds what merge keys name: a mapping or a list of them, of which the first that has a key counts.
fn with_merged(mut entries: Vec<(Key, Node)>, merged: Vec<Node>) -> Vec<(Key, Node)> {
    let mut names: BTreeSet<String> = entries.iter().map(|(key, _)| key.name.clone()).collect();
    let sources = merged.into_iter().flat_map(|node| match node.value {
        Value::List(items) => items,
        value => vec![Node { value, place: node.place }],
    });
    for source in sources {
        if let Value::Map(source) = source.value {
            entries.extend(source.into_iter().filter(|(key, _)| names.insert(key.name.clone())));
        }
    }
    entries
}

fn key(event: &Event<'_>, place: Place) -> Result<Key, Problem> {
    let problem = |code, message| Problem::new(code, message).at(place);
    let Event::Scalar(text, style, 0, None) = event else {
        return Err(problem(code::NOT_USED, "a key is read only where it is plain text"));
    };
    match (style, text.as_ref()) {
        (ScalarStyle::Plain, "<<") => {
            Err(problem(code::NOT_USED, "merge keys (`<<`) are not read")
                .hint("write the keys out, or put them into a policy"))
        }
        // The parser gives `~` where nothing stands.
        (ScalarStyle::Plain, "~") => Err(problem(code::NOT_YAML, "a key is missing before `:`")),
        (_, name) => Ok(Key { name: name.into(), place }),
    }
}

/// Returns the first key that stands in the mapping already.
fn twice(entries: &[(Key, Node)]) -> Option<&Key> {
    let mut names = BTreeSet::new();
    entries.iter().map(|(key, _)| key).find(|key| !names.insert(key.name.as_str()))
}

/// Reads a scalar as the core schema does (YAML 1.2.2, 10.3.2): only plain ones can be anything but text.
fn scalar(text: &str, style: ScalarStyle, place: Place) -> Result<Value, Problem> {
    if style != ScalarStyle::Plain {
        return Ok(Value::Text(text.into()));
    }
    Ok(match text {
        "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => match number(text) {
            Some(Value::Float(number)) if !number.is_finite() => {
                return Err(
                    Problem::new(code::WRONG_VALUE, "a number here is not finite").at(place)
                );
            }
            Some(number) => number,
            None => Value::Text(text.into()),
        },
    })
}

fn number(text: &str) -> Option<Value> {
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return None;
    }
    let of_base = |digits: &str, base: u32| {
        let whole = digits.chars().all(|c| c.is_digit(base));
        whole.then(|| i64::from_str_radix(digits, base).ok()).flatten().map(Value::Integer)
    };
    if let Some(digits) = text.strip_prefix("0x") {
        return of_base(digits, 16);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return of_base(digits, 8);
    }
    if let Ok(number) = text.parse() {
        return Some(Value::Integer(number));
    }
    match text.trim_start_matches(['+', '-']) {
        ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN" => Some(Value::Float(f64::NAN)),
        _ if text.contains(|c: char| !matches!(c, '0'..='9' | '.' | 'e' | 'E' | '+' | '-')) => None,
        _ => text.parse().ok().map(Value::Float),
    }
}

fn place(marker: &Marker) -> Place {
    Place { line: marker.line() as u64, column: marker.col() as u64 + 1 }
}

fn too_much(place: Place) -> Problem {
    let message = "the file is too deep, too large or expands too far";
    Problem::new(code::NOT_USED, message).at(place)
}

/// Says what is wrong in words of ours; the parser's words are used only where they are fixed.
fn explain(error: &ScanError) -> Problem {
    use ErrorKind as K;
    let place = place(error.marker());
    let problem = |message: &str| Problem::new(code::NOT_YAML, message).at(place);
    match error.kind() {
        K::TabNotAllowed
        | K::TabInBlockIndentation
        | K::TabInIndentation
        | K::TabAtBlockScalarStart
        | K::TabInPlainScalar => {
            problem("a tab stands where YAML wants spaces").hint("indent with spaces")
        }
        K::UnknownAnchor => problem("an alias names an anchor that is not in the file"),
        K::RecursionLimitExceeded => too_much(place),
        // These carry text of the file or of elsewhere.
        K::UnexpectedCharacter { .. } => {
            problem("a character here begins nothing in YAML").hint("put the text in quotes")
        }
        K::Custom(_) | K::InputDecoding { .. } | K::InputIo { .. } => problem("this is not YAML"),
        fixed => problem(&format!("this is not YAML: {fixed}")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(text: &str) -> String {
        Node::parse(text).err().unwrap_or_else(|| panic!("parsed")).to_string()
    }

    fn parsed(text: &str) -> Node {
        Node::parse(text).unwrap_or_else(|problem| panic!("{problem}"))
    }

    #[test]
    fn every_node_and_key_knows_its_place() {
        let tree = parsed("a: 1\nb:\n  c: [x, { d: true }]\n");
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
    fn columns_are_counted_in_characters_after_a_byte_order_mark_too() {
        let tree = parsed("\u{feff}ä: {é: 1, b: 2}\r\nc: 3\r\n");
        assert_eq!(tree.place_of(&["ä", "b"]), Place { line: 1, column: 11 });
        assert_eq!(tree.place_of(&["c"]), Place { line: 2, column: 1 });
    }

    #[test]
    fn scalars_are_those_of_the_core_schema() {
        let shown = |text: &str| match &parsed(&format!("a: {text}\n")).get("a").unwrap().value {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Integer(value) => format!("integer {value}"),
            Value::Float(value) => format!("float {value}"),
            Value::Text(text) => format!("text {text}"),
            Value::List(_) | Value::Map(_) => panic!("no scalar"),
        };
        for text in ["", "~", "null", "Null", "NULL"] {
            assert_eq!(shown(text), "null");
        }
        for text in ["true", "True", "TRUE"] {
            assert_eq!(shown(text), "true");
        }
        for (text, number) in [("12", 12), ("-7", -7), ("+7", 7), ("007", 7)] {
            assert_eq!(shown(text), format!("integer {number}"));
        }
        assert_eq!([shown("0x1F"), shown("0o17")], ["integer 31", "integer 15"]);
        assert_eq!(shown("9223372036854775808"), "float 9223372036854776000");
        for (text, number) in [("1.5", 1.5), (".5", 0.5), ("5.", 5.0), ("-1e3", -1_000.0)] {
            assert_eq!(shown(text), format!("float {number}"));
        }
        let texts =
            "no yes on y 1_000 0b1 0x 0x-1 0xG 0o8 1.2.3 5m -x + . ... inf nan e5 --5 nULL tRUE";
        for text in texts.split(' ').filter(|text| *text != "...") {
            assert_eq!(shown(text), format!("text {text}"));
        }
        for text in ["\"12\"", "'true'", "\"\"", "\"~\""] {
            assert_eq!(shown(text), format!("text {}", &text[1..text.len() - 1]));
        }
        assert_eq!(shown("|\n  12\n"), "text 12\n");
    }

    #[test]
    fn an_empty_file_is_nothing() {
        for text in ["", "\n", "# only a remark\n", "---\n", "--- ~\n...\n"] {
            assert!(matches!(parsed(text).value, Value::Null));
        }
    }

    #[test]
    fn an_alias_stands_for_the_node_of_its_anchor() {
        let tree = parsed("a: &x { b: [1] }\nc: *x\nd: &y 2\ne: [*y]\n");
        assert_eq!(tree.at(&["c"]).unwrap().place, Place { line: 2, column: 4 });
        assert_eq!(tree.at(&["c", "b"]).unwrap().place, Place { line: 1, column: 12 });
        let Value::List(items) = &tree.at(&["e"]).unwrap().value else { panic!("no list") };
        assert!(matches!(items[0].value, Value::Integer(2)));
    }

    #[test]
    fn what_expands_too_far_is_refused() {
        let doubled = |n: usize| format!("a{n}: &a{n} [*a{}, *a{}]\n", n - 1, n - 1);
        let laughs: String = (1..40).map(doubled).collect();
        insta::assert_snapshot!(refused(&format!("a0: &a0 x\n{laughs}")), @"K0118 17:18: the file is too deep, too large or expands too far");
        let nested = |n: usize| format!("a{n}: &a{n} [*a{}]\n", n - 1);
        let chain: String = (1..200).map(nested).collect();
        insta::assert_snapshot!(refused(&format!("a0: &a0 x\n{chain}")), @"K0118 101:14: the file is too deep, too large or expands too far");
        insta::assert_snapshot!(refused(&format!("{}x", "- ".repeat(200))), @"K0118 1:203: the file is too deep, too large or expands too far");
        insta::assert_snapshot!(refused("a: &x [*x]\n"), @"K0102 1:8: an alias stands within the node that it names");
    }

    #[test]
    fn what_is_not_yaml_is_said_without_showing_it() {
        insta::assert_snapshot!(refused("a: 1\nb:\n\tc: CANARY\n"), @"K0102 3:2: a tab stands where YAML wants spaces (indent with spaces)");
        insta::assert_snapshot!(refused("a: \"CANARY\nb: 1\n"), @"K0102 1:4: this is not YAML: unclosed quote");
        insta::assert_snapshot!(refused("a: [CANARY\n"), @"K0102 1:4: this is not YAML: unclosed bracket '['");
        insta::assert_snapshot!(refused("a: *CANARY\n"), @"K0102 1:4: an alias names an anchor that is not in the file");
        insta::assert_snapshot!(refused("a: @CANARY\n"), @"K0102 1:4: a character here begins nothing in YAML (put the text in quotes)");
        insta::assert_snapshot!(refused("a: CANARY\n b: 2\n"), @"K0102 2:3: this is not YAML: mapping values are not allowed in this context");
        insta::assert_snapshot!(refused(": CANARY\n"), @"K0102 1:1: a key is missing before `:`");
        insta::assert_snapshot!(refused("a: \"\\qCANARY\"\n"), @"K0102 1:4: this is not YAML: while parsing a quoted scalar, found unknown escape character");
    }

    #[test]
    fn what_of_yaml_is_not_read_is_refused() {
        insta::assert_snapshot!(refused("a: !CANARY x\n"), @"K0118 1:4: tags (`!`) are not read");
        insta::assert_snapshot!(refused("a: !!str CANARY\n"), @"K0118 1:4: tags (`!`) are not read");
        insta::assert_snapshot!(refused("a: ! [CANARY]\n"), @"K0118 1:4: tags (`!`) are not read");
        insta::assert_snapshot!(refused("&x a: CANARY\n"), @"K0118 1:4: a key is read only where it is plain text");
        insta::assert_snapshot!(refused("!x a: CANARY\n"), @"K0118 1:1: a key is read only where it is plain text");
        insta::assert_snapshot!(refused("a: &x {b: 1}\nc:\n  <<: *x\n"), @"K0118 3:3: merge keys (`<<`) are not read (write the keys out, or put them into a policy)");
        insta::assert_snapshot!(refused("a: 1\n---\nb: 1\n"), @"K0118 2:1: the file holds more than one document");
        insta::assert_snapshot!(refused("? {CANARY: 1}\n: 2\n"), @"K0118 1:3: a key is read only where it is plain text");
        insta::assert_snapshot!(refused("a: .inf\n"), @"K0105 1:4: a number here is not finite");
        insta::assert_snapshot!(refused("a: 1e999\n"), @"K0105 1:4: a number here is not finite");
        assert!(matches!(parsed("\"<<\": 1\n").value, Value::Map(_)));
    }

    #[test]
    fn the_dialect_of_compose_merges_and_takes_tags() {
        let read = |text: &str| {
            Node::parse_as(text, Dialect::Compose)
                .map(|node| node.json())
                .map_err(|p| p.to_string())
        };
        let merged =
            read("x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\nz:\n  <<: [*x, *y]\n  a: 5\n").unwrap();
        assert_eq!(merged["z"], serde_json::json!({ "a": 5, "b": 2, "c": 4 }));
        let one = read("x: &x {a: 1}\nz: {<<: *x}\n").unwrap();
        assert_eq!(one["z"], serde_json::json!({ "a": 1 }));
        let tagged = read("a: !reset [1]\nb: !override {c: 1}\nd: .inf\n").unwrap();
        assert_eq!(tagged, serde_json::json!({ "a": null, "b": { "c": 1 }, "d": ".inf" }));
        insta::assert_snapshot!(read("a: 1\na: CANARY\n").unwrap_err(), @"K0103 2:1: key `a` stands twice in one mapping");
    }

    #[test]
    fn a_key_that_stands_twice_is_named_only_where_it_reads_like_a_name() {
        insta::assert_snapshot!(refused("a: 1\nb: 2\na: CANARY\n"), @"K0103 3:1: key `a` stands twice in one mapping");
        insta::assert_snapshot!(refused("sk-CANARY-7f3a9c51: 1\nsk-CANARY-7f3a9c51: 2\n"), @"K0103 2:1: key `…` stands twice in one mapping");
    }
    /// Any JSON, which is YAML too.
    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let text = "[ -~äλ\n\t]{0,12}";
        let scalar = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            (-1e9..1e9).prop_map(|number: f64| (number + 0.5).into()),
            text.prop_map(Into::into),
        ];
        scalar.prop_recursive(5, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::btree_map(text, inner, 0..6)
                    .prop_map(|entries| entries.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

        #[test]
        fn json_is_read_as_what_it_says(value in any_json(), pretty in any::<bool>()) {
            let text = match pretty {
                true => serde_json::to_string_pretty(&value).unwrap(),
                false => value.to_string(),
            };
            prop_assert_eq!(parsed(&text).json(), value);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "[-a:,?!&*<#|>'\"%@~.0x \n\t{}\\[\\]]{0,60}") {
            let read = Node::parse(&text);
            prop_assert!(read.map_or_else(|problem| problem.place.line > 0, |_| true));
        }
    }
}
