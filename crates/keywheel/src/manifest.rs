//! Manifests as people keep them: YAML, written in blocks.
//!
//! It writes what this program made itself, and reads nothing.

use serde_json::Value;

/// Writes objects as documents of one file, each below its comments.
pub(crate) fn documents(documents: &[(Vec<String>, &Value)]) -> String {
    let one = |(comments, object): &(Vec<String>, &Value)| {
        let comments: String = comments.iter().map(|line| format!("# {line}\n")).collect();
        let mut text = String::new();
        block(object, 0, &mut text);
        format!("{comments}{}\n", text.trim_start_matches('\n'))
    };
    documents.iter().map(one).collect::<Vec<_>>().join("---\n")
}

/// Writes a value after its key or dash: on the same line where it is short, else below.
fn block(value: &Value, depth: usize, text: &mut String) {
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            for (key, value) in entries {
                begin_line(depth, text);
                text.push_str(&format!("{}:", word(key)));
                block(value, depth + 1, text);
            }
        }
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            for item in items {
                begin_line(depth.saturating_sub(1), text);
                let mut inner = String::new();
                block(item, depth, &mut inner);
                text.push_str(&format!("- {}", inner.trim_start()));
            }
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(scalar).collect();
            text.push_str(&format!(" [{}]", items.join(", ")));
        }
        scalar_value => text.push_str(&format!(" {}", scalar(scalar_value))),
    }
}

fn begin_line(depth: usize, text: &mut String) {
    text.push('\n');
    text.push_str(&"  ".repeat(depth));
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => word(text),
        other => other.to_string(),
    }
}

/// Writes a text bare where YAML reads it as that text, else in quotes, in which JSON and YAML agree.
fn word(text: &str) -> String {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_./".contains(&b);
    let begins = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
    let means_else = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let is_plain = begins
        && text.bytes().all(fits)
        && !means_else.contains(&text.to_ascii_lowercase().as_str());
    if is_plain { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_manifest_reads_as_one_that_people_write() {
        let object = json!({
            "kind": "Role",
            "metadata": { "name": "keywheel", "namespace": "no" },
            "rules": [
                { "apiGroups": [""], "resources": ["pods/log"], "verbs": ["get", "list"] },
                { "apiGroups": ["apps"], "verbs": [] },
            ],
            "spec": { "provider": { "vault": { "server": "https://vault:8200" } } },
        });
        let text = documents(&[(vec!["for people".into()], &object), (vec![], &json!({ "a": 1 }))]);
        let expected = "# for people\nkind: Role\nmetadata:\n  name: keywheel\n  namespace: \"no\"\nrules:\n- apiGroups: [\"\"]\n  resources: [pods/log]\n  verbs: [get, list]\n- apiGroups: [apps]\n  verbs: []\nspec:\n  provider:\n    vault:\n      server: \"https://vault:8200\"\n---\na: 1\n";
        assert_eq!(text, expected);
    }
}
