//! The YAML that Compose 1 writes, whose `config` speaks no JSON. Every scalar but null is read as text: nothing here is
//! reckoned with.

use std::collections::BTreeMap;

use granit_parser::{Event, Parser, ScalarStyle, StrInput};
use serde_json::{Map, Value};

/// How deep nodes may stand within each other.
const DEPTH: usize = 100;

/// Reads a document; none where it is not such YAML.
pub(super) fn read(text: &str) -> Option<Value> {
    let mut reader = Reader { events: Parser::new_from_str(text), anchored: BTreeMap::new() };
    loop {
        match reader.next()? {
            Event::StreamStart | Event::DocumentStart(..) => {}
            event => return reader.node(event, 0),
        }
    }
}

struct Reader<'t> {
    events: Parser<'t, StrInput<'t>>,
    anchored: BTreeMap<usize, Value>,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Option<Event<'t>> {
        loop {
            match self.events.next_event()?.ok()? {
                (Event::Comment(..), _) => {}
                (event, _) => return Some(event),
            }
        }
    }

    fn node(&mut self, event: Event<'t>, depth: usize) -> Option<Value> {
        if depth > DEPTH {
            return None;
        }
        let (value, anchor) = match event {
            Event::Alias(anchor) => return self.anchored.get(&anchor).cloned(),
            Event::Scalar(text, style, anchor, _) => (scalar(&text, style), anchor),
            Event::SequenceStart(_, anchor, _) => (self.list(depth)?, anchor),
            Event::MappingStart(_, anchor, _) => (self.map(depth)?, anchor),
            _ => return None,
        };
        if anchor != 0 {
            self.anchored.insert(anchor, value.clone());
        }
        Some(value)
    }

    fn list(&mut self, depth: usize) -> Option<Value> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                Event::SequenceEnd => return Some(Value::Array(items)),
                event => items.push(self.node(event, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Option<Value> {
        let mut entries = Map::new();
        loop {
            let key = match self.next()? {
                Event::MappingEnd => return Some(Value::Object(entries)),
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return None,
            };
            let event = self.next()?;
            entries.insert(key, self.node(event, depth + 1)?);
        }
    }
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    match (style, text) {
        (ScalarStyle::Plain, "" | "~" | "null") => Value::Null,
        _ => Value::String(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_compose_writes_is_read() {
        let text = "services:\n  a:\n    environment: &id001\n      KEY: a$$b\n      NUMBER: '1'\n      PASSED:\n    command:\n    - sh\n    - 'it''s'\n    ports: []\n  b:\n    environment: *id001\nversion: '3.8'\n";
        let environment = json!({ "KEY": "a$$b", "NUMBER": "1", "PASSED": null });
        let expected = json!({
            "services": {
                "a": { "environment": environment, "command": ["sh", "it's"], "ports": [] },
                "b": { "environment": environment },
            },
            "version": "3.8",
        });
        assert_eq!(read(text), Some(expected));
        for wrong in ["", "a: [", "a: *b", "- a\nb: c", &"[".repeat(1_000)] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
