//! The JSON Schema of `keywheel.yaml`, for editors and for tests.

use serde_json::{Map, Value, json};

use super::by_env;
use super::file::File;

/// Makes the schema. `by_env` may stand for any value within a secret.
pub(crate) fn schema() -> Value {
    let generator = schemars::generate::SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<File>().to_value();
    let mut pending = vec!["SecretEntry".to_owned()];
    let mut done: Vec<String> = Vec::new();
    while let Some(name) = pending.pop() {
        if done.contains(&name) {
            continue;
        }
        if let Some(definition) = schema.pointer_mut(&format!("/$defs/{name}")) {
            let mut found = Vec::new();
            children(definition, &mut |child| {
                names(child, &mut found);
                *child = or_by_env(child.take());
            });
            pending.append(&mut found);
        }
        done.push(name);
    }
    let choice = json!({
        "type": "object",
        "description": "One value for each environment.",
        "properties": { by_env::KEY: { "type": "object" } },
        "required": [by_env::KEY],
        "additionalProperties": false,
    });
    if let Some(definitions) = schema.get_mut("$defs").and_then(Value::as_object_mut) {
        definitions.insert("ByEnv".into(), choice);
    }
    schema
}

fn or_by_env(mut child: Value) -> Value {
    let mut outer = Map::new();
    // What describes the key stays where editors look for it.
    for word in ["description", "default", "title"] {
        if let Some(value) = child.as_object_mut().and_then(|child| child.remove(word)) {
            outer.insert(word.into(), value);
        }
    }
    outer.insert("anyOf".into(), json!([child, { "$ref": "#/$defs/ByEnv" }]));
    Value::Object(outer)
}

/// Visits the schema of each key, entry and item within a definition, from the inside out. A driver's tag is not a value, so
/// the alternatives of a tagged enum keep their one key.
fn children(definition: &mut Value, visit: &mut impl FnMut(&mut Value)) {
    let Some(definition) = definition.as_object_mut() else { return };
    for (word, inner) in definition.iter_mut() {
        match (word.as_str(), inner) {
            ("properties", Value::Object(properties)) => {
                properties.values_mut().for_each(|child| {
                    children(child, visit);
                    visit(child);
                })
            }
            ("additionalProperties" | "items", child @ Value::Object(_)) => {
                children(child, visit);
                visit(child);
            }
            ("oneOf" | "anyOf" | "allOf", Value::Array(variants)) => {
                variants.iter_mut().for_each(|variant| children(variant, visit));
            }
            _ => {}
        }
    }
}

/// Collects the definitions that a schema refers to.
fn names(schema: &Value, found: &mut Vec<String>) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get("$ref") {
                found.extend(reference.strip_prefix("#/$defs/").map(str::to_owned));
            }
            fields.values().for_each(|inner| names(inner, found));
        }
        Value::Array(items) => items.iter().for_each(|inner| names(inner, found)),
        _ => {}
    }
}
