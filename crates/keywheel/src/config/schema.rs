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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;
    use crate::config::tree::Node;

    const GUIDE: &str = include_str!("../../../../docs/guide/configuration.md");
    const PAGE: &str = include_str!("../../../../docs/errors/K0101.md");

    /// Returns the whole files in a document: its blocks of YAML that name a project.
    fn samples(document: &str) -> Vec<&str> {
        let blocks =
            document.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
        blocks.filter(|block| block.contains("project:") && block.contains("secrets:")).collect()
    }

    fn valid(text: &str) -> Result<(), String> {
        let validator = jsonschema::validator_for(&schema()).unwrap();
        let instance = Node::parse(text).unwrap_or_else(|problem| panic!("{problem}")).json();
        validator.validate(&instance).map_err(|error| error.to_string())
    }

    #[test]
    fn the_samples_in_the_documents_are_read_and_fit_the_schema() {
        for (document, count) in [(GUIDE, 1), (PAGE, 1)] {
            let samples = samples(document);
            assert_eq!(samples.len(), count);
            for sample in samples {
                if let Err(problems) =
                    Config::parse(sample, Path::new("sample"), Path::new("/srv/shop"))
                {
                    panic!("{problems:?}");
                }
                assert_eq!(valid(sample), Ok(()));
            }
        }
    }

    #[test]
    fn the_guide_names_every_driver() {
        let kinds = [
            keywheel_drivers::IssuerConfig::KINDS,
            keywheel_drivers::StoreConfig::KINDS,
            keywheel_drivers::WorkloadConfig::KINDS,
            keywheel_drivers::ProbeConfig::KINDS,
            keywheel_drivers::NotifierConfig::KINDS,
        ];
        for kind in kinds.into_iter().flatten() {
            assert!(GUIDE.contains(&format!("`{kind}")), "the guide says nothing of `{kind}`");
        }
    }

    #[test]
    fn the_schema_refuses_what_the_program_refuses() {
        let sample = samples(GUIDE)[0];
        for (part, with) in [
            ("cryptoperiod: 180d", "cryptoperiodd: 180d"),
            ("cryptoperiod: 180d", "cryptoperiod: 180 days"),
            ("[backend]\n    after", "everyone\n    after"),
            ("env_file: { path: staging/.env }", "envfile: { path: staging/.env }"),
            ("shows: environ\n        probes", "shows: environ\n        prbes"),
            ("{ env: OPENAI_ADMIN_KEY }", "sk-value"),
        ] {
            let changed = sample.replacen(part, with, 1);
            assert_ne!(changed, sample, "{part}");
            assert!(valid(&changed).is_err(), "{with}");
            assert!(
                Config::parse(&changed, Path::new("sample"), Path::new("/srv/shop")).is_err(),
                "{with}"
            );
        }
    }

    #[test]
    fn by_env_fits_wherever_a_secret_has_a_value() {
        let sample = samples(GUIDE)[0];
        for (part, with) in [
            ("bytes: 32", "bytes: { by_env: { staging: 32, production: 64 } }"),
            ("app: OPENAI_API_KEY", "app: { by_env: { staging: A, production: { B: current } } }"),
            ("owner: platform@example.com", "owner: { by_env: { staging: a, production: b } }"),
            ("longest_token: 15m", "longest_token: { by_env: { staging: 1m, production: 15m } }"),
            (
                "admin_key: { env: OPENAI_ADMIN_KEY }",
                "admin_key: { by_env: { staging: { env: A }, production: { env: B } } }",
            ),
        ] {
            let changed = sample.replacen(part, with, 1);
            assert_ne!(changed, sample, "{part}");
            assert_eq!(valid(&changed), Ok(()), "{with}");
            assert!(
                Config::parse(&changed, Path::new("sample"), Path::new("/srv/shop")).is_ok(),
                "{with}"
            );
        }
    }
}
