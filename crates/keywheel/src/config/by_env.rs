//! `by_env`: one place of a secret that differs between environments.
//!
//! It is resolved in the tree, before types are read, so that it may stand anywhere in a secret and no driver needs to know
//! of it. Each node keeps its place, so errors still name the line of the environment's own value.

use super::problem::Problem;
use super::suggest::{nearest, shown};
use super::tree::{Key, Node, Value};
use crate::code;

/// The key.
pub(crate) const KEY: &str = "by_env";

/// Returns the tree as one environment sees it: its own values, and only the secrets that it has.
///
/// # Errors
/// A [`Problem`] where a `by_env` does not name the environment, or names one that is not declared.
pub(crate) fn resolve(tree: &Node, environment: &str, declared: &[&str]) -> Result<Node, Problem> {
    let Value::Map(entries) = &tree.value else { return Ok(tree.clone()) };
    let scope = Scope { environment, declared };
    let entries = entries.iter().map(|(key, node)| match key.name.as_str() {
        "secrets" => Ok((key.clone(), scope.secrets(node)?)),
        _ => Ok((key.clone(), node.clone())),
    });
    Ok(Node { value: Value::Map(entries.collect::<Result<_, _>>()?), place: tree.place })
}

#[derive(Clone, Copy)]
struct Scope<'a> {
    environment: &'a str,
    declared: &'a [&'a str],
}

impl Scope<'_> {
    fn secrets(self, node: &Node) -> Result<Node, Problem> {
        let Value::Map(secrets) = &node.value else { return Ok(node.clone()) };
        let here = secrets.iter().filter(|(_, secret)| self.has(secret));
        let here = here.map(|(key, secret)| Ok((key.clone(), self.node(secret, &[&key.name])?)));
        Ok(Node { value: Value::Map(here.collect::<Result<_, _>>()?), place: node.place })
    }

    /// A list of environments that is no proper list is left for the types to refuse.
    fn has(self, secret: &Node) -> bool {
        match secret.get("environments").map(|node| &node.value) {
            Some(Value::List(names)) if !names.is_empty() => {
                let is = |node: &Node, name: &str| matches!(&node.value, Value::Text(text) if text == name);
                let known =
                    names.iter().all(|node| self.declared.iter().any(|name| is(node, name)));
                !known || names.iter().any(|node| is(node, self.environment))
            }
            _ => true,
        }
    }

    fn node(self, node: &Node, path: &[&str]) -> Result<Node, Problem> {
        let value = match &node.value {
            Value::Map(entries) => match entries.iter().find(|(key, _)| key.name == KEY) {
                Some((key, choices)) => return self.choose(key, entries.len(), choices, path),
                None => {
                    let entries = entries.iter().map(|(key, child)| {
                        let path: Vec<&str> =
                            path.iter().copied().chain([key.name.as_str()]).collect();
                        Ok((key.clone(), self.node(child, &path)?))
                    });
                    Value::Map(entries.collect::<Result<_, _>>()?)
                }
            },
            Value::List(items) => Value::List(
                items.iter().map(|item| self.node(item, path)).collect::<Result<_, _>>()?,
            ),
            other => other.clone(),
        };
        Ok(Node { value, place: node.place })
    }

    fn choose(
        self,
        key: &Key,
        keys: usize,
        choices: &Node,
        path: &[&str],
    ) -> Result<Node, Problem> {
        let path_text = path.iter().map(|name| shown(name)).collect::<Vec<_>>().join(".");
        let problem = |message: String| Problem::new(code::BY_ENV, message).at(key.place);
        let Value::Map(entries) = &choices.value else {
            return Err(problem(format!(
                "`{KEY}` in `secrets.{path_text}` must be a mapping of environments to values"
            )));
        };
        if keys > 1 {
            return Err(problem(format!(
                "`{KEY}` in `secrets.{path_text}` must be the only key of its mapping"
            )));
        }
        if let Some((stray, _)) =
            entries.iter().find(|(key, _)| !self.declared.contains(&key.name.as_str()))
        {
            let problem = Problem::new(
                code::BY_ENV,
                format!(
                    "`{KEY}` in `secrets.{path_text}` names environment `{}`, which is not declared",
                    shown(&stray.name)
                ),
            );
            let problem = problem.at(stray.place);
            return Err(match nearest(&stray.name, self.declared.iter().copied()) {
                Some(name) => problem.hint(format!("did you mean `{name}`?")),
                None => problem,
            });
        }
        match choices.get(self.environment) {
            Some(chosen) => self.node(chosen, path),
            None => Err(problem(format!(
                "`{KEY}` in `secrets.{path_text}` has no value for environment `{}`",
                shown(self.environment)
            ))
            .hint(format!(
                "add `{}:`, or list the secret's `environments`",
                shown(self.environment)
            ))),
        }
    }
}
