//! Label and field selectors: which objects a list or a watch is about.

use serde_json::Value;

use super::status::Status;

/// What an object has to have.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector(Vec<Requirement>);

#[derive(Clone, Debug)]
struct Requirement {
    /// Where the value stands, step by step.
    at: Vec<String>,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Missing,
}

impl Selector {
    /// Reads the parameters `labelSelector` and `fieldSelector`.
    pub(super) fn read(labels: Option<&str>, fields: Option<&str>) -> Result<Self, Status> {
        let mut requirements = Vec::new();
        for part in split(labels.unwrap_or_default()) {
            requirements.push(label(part)?);
        }
        for part in split(fields.unwrap_or_default()) {
            requirements.push(field(part)?);
        }
        Ok(Self(requirements))
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|requirement| requirement.holds(object))
    }

    /// Returns the one name that it leaves.
    pub(super) fn name(&self) -> Option<&str> {
        self.0.iter().find_map(|requirement| match &requirement.test {
            Test::In(values) if requirement.at == ["metadata", "name"] => {
                values.first().map(String::as_str)
            }
            _ => None,
        })
    }
}

impl Requirement {
    fn holds(&self, object: &Value) -> bool {
        let found = self.at.iter().try_fold(object, |value, step| value.get(step));
        let text = found.map(|value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        match &self.test {
            Test::In(values) => values.contains(&text.unwrap_or_default()),
            Test::NotIn(values) => !values.contains(&text.unwrap_or_default()),
            Test::Exists => text.is_some(),
            Test::Missing => text.is_none(),
        }
    }
}

/// Splits at commas, but not inside parentheses.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    let parts = text.split(move |letter| {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        letter == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty())
}

fn label(part: &str) -> Result<Requirement, Status> {
    let at = |key: &str| vec!["metadata".to_owned(), "labels".to_owned(), key.trim().to_owned()];
    if let Some((head, values)) = part.strip_suffix(')').and_then(|part| part.split_once('(')) {
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        return match head.trim().rsplit_once(' ') {
            Some((key, "in")) => Ok(Requirement { at: at(key), test: Test::In(values) }),
            Some((key, "notin")) => Ok(Requirement { at: at(key), test: Test::NotIn(values) }),
            _ => Err(unreadable(part)),
        };
    }
    if let Some((key, test)) = comparison(part) {
        return Ok(Requirement { at: at(key), test });
    }
    match part.strip_prefix('!') {
        Some(key) => Ok(Requirement { at: at(key), test: Test::Missing }),
        None => Ok(Requirement { at: at(part), test: Test::Exists }),
    }
}

fn field(part: &str) -> Result<Requirement, Status> {
    let (key, test) = comparison(part).ok_or_else(|| unreadable(part))?;
    Ok(Requirement { at: key.split('.').map(str::to_owned).collect(), test })
}

fn comparison(part: &str) -> Option<(&str, Test)> {
    let value = |text: &str| vec![text.trim().to_owned()];
    if let Some((key, text)) = part.split_once("!=") {
        return Some((key, Test::NotIn(value(text))));
    }
    let (key, text) = part.split_once("==").or_else(|| part.split_once('='))?;
    Some((key, Test::In(value(text))))
}

fn unreadable(part: &str) -> Status {
    Status::bad_request(format!("unable to parse requirement: {part}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_are_read_as_kubectl_writes_them() {
        let pod = json!({ "metadata": { "name": "a", "labels": { "app": "x", "tier": "web" } } });
        let matches = |labels: &str, fields: &str| {
            Selector::read(Some(labels), Some(fields)).unwrap().matches(&pod)
        };
        assert!(matches("app=x,tier in (web,db),!gone", "metadata.name=a"));
        assert!(matches("app", "metadata.name!=b"));
        assert!(!matches("app!=x", ""));
        assert!(!matches("tier notin (web)", ""));
        assert!(!matches("app==y", ""));
        assert!(Selector::read(Some("app like (x)"), None).is_err());
    }
}
