//! The checker: is this request, and this answer, one that an OpenAPI document knows?
//!
//! Documents are read from the folder that `KEYWHEEL_SPECS` names. Without it, or without the file, there is nothing to check
//! and the test says so. It is strict in what we send: a parameter or a property that the document does not name is a problem.

use std::path::Path;

use jsonschema::Validator;
use keywheel_twins::record::Exchange;
use serde_json::{Value, json};

/// One OpenAPI document.
pub(crate) struct Spec {
    document: Value,
    /// What every path begins with.
    base: String,
    /// What the document is older than: names of properties that we send all the same.
    newer: Vec<&'static str>,
    /// The schema of an error whose status the document does not list.
    error: &'static str,
}

impl Spec {
    /// Reads a document; none, with a word, where it is not at hand. Few documents list every status: `error` names the schema
    /// that any other error has.
    pub(crate) fn open(file: &str, error: &'static str) -> Option<Self> {
        let path = std::env::var_os("KEYWHEEL_SPECS").map(|folder| Path::new(&folder).join(file));
        let Some(bytes) = path.and_then(|path| std::fs::read(path).ok()) else {
            eprintln!("skipped: KEYWHEEL_SPECS names no folder with {file}");
            return None;
        };
        Some(Self::of(serde_json::from_slice(&bytes).unwrap(), error))
    }

    fn of(mut document: Value, error: &'static str) -> Self {
        if document["openapi"].as_str().unwrap().starts_with("3.0") {
            say_null(&mut document);
        }
        let server = document["servers"][0]["url"].as_str().unwrap_or_default();
        let after_host = server.split_once("://").map_or(server, |(_, rest)| rest);
        let base = after_host.split_once('/').map_or("", |(_, path)| path);
        let base = format!("/{base}").trim_end_matches('/').to_owned();
        Self { document, base, newer: Vec::new(), error }
    }

    /// Allows a property that the provider took up after the document was written.
    pub(crate) fn newer(mut self, property: &'static str) -> Self {
        self.newer.push(property);
        self
    }

    /// Checks everything that was kept, and returns the operations that were met: `POST /keys`.
    #[track_caller]
    pub(crate) fn check_all(&self, exchanges: &[Exchange]) -> Vec<String> {
        let mut met: Vec<String> = Vec::new();
        let mut problems = Vec::new();
        for exchange in exchanges {
            let (name, found) = self.check(exchange);
            problems.extend(found.into_iter().map(|problem| format!("{name}: {problem}")));
            met.push(name);
        }
        met.sort();
        met.dedup();
        problems.sort();
        problems.dedup();
        assert!(problems.is_empty(), "{}", problems.join("\n"));
        met
    }

    /// Checks one exchange, and returns its name and what is wrong with it.
    pub(crate) fn check(&self, exchange: &Exchange) -> (String, Vec<String>) {
        let Exchange { method, path, .. } = exchange;
        let Some((template, name)) = self.template(path, method) else {
            return (format!("{method} {path}"), vec!["no such operation".into()]);
        };
        let pointer = format!("/paths/{}/{}", escaped(template), method.to_lowercase());
        let mut problems = self.query(&pointer, template, &exchange.query);
        problems.extend(self.body(&pointer, exchange.body.as_ref()));
        problems.extend(self.answer(&pointer, exchange));
        (name, problems)
    }

    /// Returns the path of the document that a path of a request fits: the one with the fewest parameters.
    fn template(&self, path: &str, method: &str) -> Option<(&str, String)> {
        let path = path.strip_prefix(&self.base)?;
        let fits = |template: &&String| {
            let (ours, theirs): (Vec<_>, Vec<_>) =
                (path.split('/').collect(), template.split('/').collect());
            ours.len() == theirs.len()
                && ours
                    .iter()
                    .zip(&theirs)
                    .all(|(our, their)| their.starts_with('{') || our == their)
        };
        let paths = self.document["paths"].as_object().unwrap();
        let known = |template: &&String| paths[*template].get(method.to_lowercase()).is_some();
        let template =
            paths.keys().filter(fits).filter(known).min_by_key(|path| path.matches('{').count())?;
        Some((template, format!("{method} {template}")))
    }

    fn query(&self, pointer: &str, template: &str, query: &str) -> Vec<String> {
        let shared = format!("/paths/{}", escaped(template));
        let lists = [pointer, &shared].map(|at| self.at(&format!("{at}/parameters")));
        let declared: Vec<&Value> = lists
            .into_iter()
            .flat_map(|list| list.as_array().into_iter().flatten())
            .map(|parameter| self.resolved(parameter))
            .filter(|parameter| parameter["in"] == "query")
            .collect();
        let plain = |name: &str| name.strip_suffix("[]").unwrap_or(name).to_owned();
        let given: Vec<(String, String)> =
            url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let mut problems = Vec::new();
        for (name, text) in &given {
            let (whole, property) = member(name);
            let known = declared
                .iter()
                .find(|known| plain(known["name"].as_str().unwrap()) == plain(whole));
            let has_property = |known: &&&Value| {
                property.is_none_or(|property| !known["schema"]["properties"][property].is_null())
            };
            let Some(parameter) = known.filter(has_property) else {
                problems.push(format!("parameter `{name}` is not known"));
                continue;
            };
            let within = |value: Value| match property {
                Some(property) => json!({ property: value }),
                None => value,
            };
            let fits = readings(text).any(|value| self.fits_parameter(parameter, &within(value)));
            if !fits {
                problems.push(format!("parameter `{name}` does not fit"));
            }
        }
        let missing = declared.iter().filter(|known| known["required"] == true).filter(|known| {
            !given.iter().any(|(name, _)| plain(name) == plain(known["name"].as_str().unwrap()))
        });
        problems.extend(missing.map(|known| format!("parameter {} is missing", known["name"])));
        problems
    }

    fn fits_parameter(&self, parameter: &Value, value: &Value) -> bool {
        let root = self.root(json!({ "allOf": [parameter["schema"]] }));
        let validator = validator(&root);
        validator.is_valid(value) || validator.is_valid(&json!([value]))
    }

    fn body(&self, pointer: &str, body: Option<&Value>) -> Vec<String> {
        let wanted = self.resolved(self.at(&format!("{pointer}/requestBody")));
        let schema = &wanted["content"]["application/json"]["schema"];
        match (body, schema) {
            (None | Some(Value::Null), _) if wanted["required"] == true => {
                vec!["the body is missing".into()]
            }
            (None | Some(Value::Null), _) => Vec::new(),
            (Some(_), Value::Null) => vec!["a body is not known".into()],
            (Some(body), schema) => {
                let known = self.properties(schema);
                let sent = body.as_object().into_iter().flat_map(|body| body.keys());
                let unknown = sent
                    .filter(|sent| !known.contains(sent) && !self.newer.contains(&sent.as_str()));
                let mut problems: Vec<String> =
                    unknown.map(|name| format!("property `{name}` is not known")).collect();
                problems.extend(self.misfits("the body", schema, body));
                problems
            }
        }
    }

    fn answer(&self, pointer: &str, exchange: &Exchange) -> Vec<String> {
        let responses = self.at(&format!("{pointer}/responses"));
        let status = exchange.status.to_string();
        let error = json!({ "$ref": format!("#/components/schemas/{}", self.error) });
        let found = responses.get(&status).or_else(|| responses.get("default"));
        let schema = match found {
            Some(response) => &self.resolved(response)["content"]["application/json"]["schema"],
            None if exchange.status >= 400 => &error,
            None => return vec![format!("status {status} is not known")],
        };
        match (schema, &exchange.answer) {
            (Value::Null, _) => Vec::new(),
            (_, None) => vec![format!("the answer {status} is no JSON")],
            (schema, Some(answer)) => self.misfits(&format!("the answer {status}"), schema, answer),
        }
    }

    /// Says what does not fit and where, without a value.
    fn misfits(&self, what: &str, schema: &Value, value: &Value) -> Vec<String> {
        let root = self.root(json!({ "allOf": [schema] }));
        let validator = validator(&root);
        let misfit = |error: jsonschema::ValidationError<'_>| {
            format!("{what} at `{}`: {}", error.instance_path(), error.masked())
        };
        validator.iter_errors(value).map(misfit).collect()
    }

    /// Returns the names of the properties that a schema knows, whichever of its parts does.
    fn properties<'a>(&'a self, schema: &'a Value) -> Vec<&'a String> {
        let schema = self.resolved(schema);
        let own = schema["properties"].as_object().into_iter().flat_map(|own| own.keys());
        let parts = ["allOf", "anyOf", "oneOf"].into_iter().flat_map(|key| {
            schema[key].as_array().into_iter().flatten().flat_map(|part| self.properties(part))
        });
        own.chain(parts).collect()
    }

    fn resolved<'a>(&'a self, part: &'a Value) -> &'a Value {
        match part.get("$ref").and_then(Value::as_str) {
            Some(reference) => self.at(reference.trim_start_matches('#')),
            None => part,
        }
    }

    fn at(&self, pointer: &str) -> &Value {
        self.document.pointer(pointer).unwrap_or(&Value::Null)
    }

    /// Makes a schema that can refer to the document's own.
    fn root(&self, mut schema: Value) -> Value {
        schema["components"] = self.document["components"].clone();
        schema
    }
}

fn validator(root: &Value) -> Validator {
    jsonschema::options().should_validate_formats(true).build(root).unwrap()
}

/// Tells a parameter that is an object from the property of it that `parameter[property]` gives.
fn member(name: &str) -> (&str, Option<&str>) {
    let parts = name.strip_suffix(']').and_then(|name| name.split_once('['));
    match parts.filter(|(_, property)| !property.is_empty()) {
        Some((whole, property)) => (whole, Some(property)),
        None => (name, None),
    }
}

/// Returns what a text in a URL may mean.
fn readings(text: &str) -> impl Iterator<Item = Value> {
    let other = serde_json::from_str(text).ok().filter(|value: &Value| !value.is_object());
    std::iter::once(Value::from(text)).chain(other)
}

/// Says of what may be null, in the words of OpenAPI 3.0, that it may.
fn say_null(part: &mut Value) {
    match part {
        Value::Object(map) => {
            map.values_mut().for_each(say_null);
            if map.remove("nullable") == Some(Value::Bool(true)) {
                let schema = Value::Object(std::mem::take(map));
                map.insert("anyOf".into(), json!([schema, { "type": "null" }]));
            }
        }
        Value::Array(list) => list.iter_mut().for_each(say_null),
        _ => {}
    }
}

fn escaped(path: &str) -> String {
    path.replace('~', "~0").replace('/', "~1")
}

#[test]
fn what_a_document_does_not_know_is_a_problem() {
    let name = json!({ "type": "object", "properties": { "name": { "type": "string", "nullable": true } }, "required": ["name"] });
    let content = json!({ "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Thing" } } } });
    let spec = Spec::of(
        json!({
            "openapi": "3.0.1",
            "servers": [{ "url": "https://api.example.com/v1" }],
            "components": { "schemas": { "Thing": name } },
            "paths": { "/things/{id}": { "post": {
                "parameters": [
                    { "in": "query", "name": "limit", "schema": { "type": "integer" } },
                    { "in": "query", "name": "from", "required": true, "schema": { "type": "string" } },
                ],
                "requestBody": content,
                "responses": { "200": content },
            } } },
        }),
        "Thing",
    );
    let right = Exchange {
        method: "POST".into(),
        path: "/v1/things/1".into(),
        query: "limit=5&from=a".into(),
        body: Some(json!({ "name": null })),
        status: 200,
        answer: Some(json!({ "name": "b" })),
    };
    assert_eq!(spec.check(&right), ("POST /things/{id}".into(), Vec::new()));
    let other = |change: &dyn Fn(&mut Exchange)| {
        let mut wrong = right.clone();
        change(&mut wrong);
        spec.check(&wrong).1
    };
    for problems in [
        other(&|it| it.path = "/v1/thing/1".into()),
        other(&|it| it.query = "limit=five&from=a".into()),
        other(&|it| it.query = "limit=5".into()),
        other(&|it| it.query = "page=5&from=a".into()),
        other(&|it| it.body = Some(json!({ "name": "a", "size": 1 }))),
        other(&|it| it.body = Some(json!({ "name": 1 }))),
        other(&|it| it.status = 201),
        other(&|it| it.answer = Some(json!({}))),
        other(&|it| it.answer = None),
        other(&|it| (it.status, it.answer) = (404, Some(json!({})))),
    ] {
        assert_eq!(problems.len(), 1, "{problems:?}");
    }
}
