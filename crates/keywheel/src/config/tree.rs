//! The file as a tree of nodes that know their place, before any of it has a meaning.
//!
//! Everything after this module works on the tree: `by_env` is resolved in it, each environment's part is read from it into
//! types ([`typed`](super::typed)), and every later check finds the line of what it complains about in it.

use super::problem::Place;
use super::suggest::reads_like_a_name;

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
    /// Returns the same as JSON, for what tests compare it with.
    #[cfg(test)]
    pub(crate) fn json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Integer(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::Text(text) => text.as_str().into(),
            Value::List(items) => items.iter().map(Self::json).collect(),
            Value::Map(entries) => {
                entries.iter().map(|(key, node)| (key.name.clone(), node.json())).collect()
            }
        }
    }
}
