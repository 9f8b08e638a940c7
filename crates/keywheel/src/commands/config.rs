//! `keywheel config show`: what the file means, with the place of each value.

use clap::{Args, Subcommand};
use keywheel_core::time::Span;
use serde::Serialize;
use serde_json::json;

use crate::cli::Globals;
use crate::code;
use crate::config::suggest::{nearest, shown};
use crate::config::tree::{Node, Value};
use crate::config::{Config, Environment, Secret};
use crate::exit::Exit;
use crate::output::{Failure, Format};

/// Show what the configuration means
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print each value with the line that it comes from
    Show {
        /// One environment only
        #[arg(long, short, value_name = "NAME")]
        environment: Option<String>,
    },
}

pub(crate) fn run(args: &ConfigArgs, globals: &Globals) -> Result<Exit, Failure> {
    let ConfigCommand::Show { environment } = &args.command;
    let config = globals.load()?;
    let output = globals.output();
    let shown = chosen(&config, environment.as_deref())?;
    match output.format {
        Format::Text => output.text(&table(&config, &shown))?,
        Format::Json => {
            let environments: Vec<_> = shown
                .iter()
                .map(|environment| json!({ "name": environment.name, "values": lines(&config, environment) }))
                .collect();
            output.json(&json!({
                "project": config.project,
                "file": config.file,
                "environments": environments,
            }))?;
        }
    }
    Ok(Exit::Done)
}

fn chosen<'a>(config: &'a Config, name: Option<&str>) -> Result<Vec<&'a Environment>, Failure> {
    let Some(name) = name else { return Ok(config.environments.iter().collect()) };
    config.environment(name).map(|environment| vec![environment]).ok_or_else(|| {
        let names: Vec<&str> =
            config.environments.iter().map(|environment| environment.name.as_str()).collect();
        let failure = Failure::new(format!("environment `{}` is not declared", shown(name)))
            .code(code::UNKNOWN_NAME);
        match nearest(name, names.iter().copied()) {
            Some(near) => failure.hint(format!("did you mean `{near}`?")),
            None => failure.hint(format!("declared: `{}`", names.join("`, `"))),
        }
    })
}

/// One value and where it comes from.
#[derive(Debug, Serialize)]
struct Line {
    path: String,
    value: serde_json::Value,
    file: Option<String>,
    line: Option<u64>,
    column: Option<u64>,
}

fn lines(config: &Config, environment: &Environment) -> Vec<Line> {
    let mut lines = Vec::new();
    let file = config.file.display().to_string();
    let mut nodes = Vec::new();
    for (key, node) in environment.tree.entries() {
        match key.name.as_str() {
            "environments" => {
                if let Some(own) = node.get(&environment.name) {
                    flatten(own, String::new(), &mut nodes);
                }
            }
            name => flatten(node, name.to_owned(), &mut nodes),
        }
    }
    for (path, node) in nodes {
        lines.push(Line {
            value: value(node),
            path,
            file: Some(file.clone()),
            line: Some(node.place.line),
            column: Some(node.place.column),
        });
    }
    environment.secrets.iter().for_each(|secret| lines.extend(effective(secret)));
    lines
}

fn flatten<'a>(node: &'a Node, path: String, into: &mut Vec<(String, &'a Node)>) {
    let below =
        |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match &node.value {
        Value::Map(entries) if !entries.is_empty() => {
            entries
                .iter()
                .for_each(|(key, child)| flatten(child, below(printable(&key.name)), into));
        }
        Value::List(items) if !items.is_empty() => {
            (1..)
                .zip(items)
                .for_each(|(index, item)| flatten(item, below(&index.to_string()), into));
        }
        _ => into.push((path, node)),
    }
}

/// What holds for a secret without standing in its own lines: the limits of its policy, and the strategy.
fn effective(secret: &Secret) -> Vec<Line> {
    let policy = &secret.policy;
    let path = |name: &str| format!("secrets.{}.(in force).{name}", secret.name.name());
    let spans = [
        ("cryptoperiod", policy.cryptoperiod),
        ("soak", policy.soak),
        ("rollback", policy.rollback),
        ("remind", secret.rules.remind),
        ("watch", policy.watch),
        ("gate_limit", policy.gate_limit),
        ("longest_move", secret.longest_move()),
    ];
    let in_words = |name: &str, span: Span| match name {
        "cryptoperiod" if policy.unscheduled => json!("none"),
        _ => json!(span.to_string()),
    };
    let brownout = policy.brownout.map(|length| ("brownout", length));
    let spans = spans.into_iter().chain(brownout);
    let spans = spans.map(|(name, span)| (name, in_words(name, span)));
    let named = secret.policy_name.clone().unwrap_or_else(|| "built in".into());
    let strategy = serde_json::to_value(secret.strategy).expect("a strategy is plain data");
    let strategy = match &strategy {
        serde_json::Value::Object(fields) => {
            fields.keys().next().map_or(json!(null), |name| json!(name))
        }
        other => other.clone(),
    };
    let first = [("policy", json!(named)), ("strategy", strategy)];
    let lines = first.into_iter().chain(spans);
    lines
        .map(|(name, value)| Line { path: path(name), value, file: None, line: None, column: None })
        .collect()
}

/// A value as it may be printed. References are shown; what looks like a credential that was pasted is not.
fn value(node: &Node) -> serde_json::Value {
    match &node.value {
        Value::Null => json!(null),
        Value::Bool(value) => json!(value),
        Value::Integer(value) => json!(value),
        Value::Float(value) => json!(value),
        Value::Text(text) => json!(printable(text)),
        Value::List(_) => json!([]),
        Value::Map(_) => json!({}),
    }
}

fn printable(text: &str) -> &str {
    if looks_pasted(text) { "(hidden: looks like a credential)" } else { text }
}

/// Returns whether any word of a text is long, and mixes letters and digits as names, paths and numbers do not.
fn looks_pasted(text: &str) -> bool {
    let url_login = text.split_once("://").is_some_and(|(_, rest)| {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        authority.contains('@')
    });
    let token = |word: &str| {
        let changes = word
            .as_bytes()
            .windows(2)
            .filter(|pair| pair[0].is_ascii_digit() != pair[1].is_ascii_digit())
            .count();
        word.len() >= 16 && changes >= 3
    };
    url_login || text.split(|c: char| !c.is_ascii_alphanumeric()).any(token)
}

fn table(config: &Config, environments: &[&Environment]) -> String {
    let mut text = format!("project {}\n", config.project);
    for environment in environments {
        let lines = lines(config, environment);
        let protected = if environment.protected { " · protected" } else { "" };
        text.push_str(&format!("\nenvironment {}{protected}\n", environment.name));
        let width = lines.iter().map(|line| line.path.chars().count()).max().unwrap_or(0);
        for line in &lines {
            let value = match &line.value {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let value = format!("{value:24}");
            let place = match (&line.file, line.line, line.column) {
                (Some(file), Some(line), Some(column)) => format!("  {file}:{line}:{column}"),
                _ => String::new(),
            };
            text.push_str(format!("  {:width$}  {value}{place}", line.path).trim_end());
            text.push('\n');
        }
    }
    text
}
