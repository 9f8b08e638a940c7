//! The text of a proposal, in sections that can stand in a new file or be put into an old one.
//!
//! Every text that comes from a folder is quoted unless it is a plain word.

use std::collections::BTreeMap;

use keywheel_core::plan::Role;

use super::credential::Kind;
use super::plain;
use super::propose::{
    Environment, Held, Part, Proposal, Road, Runs, Secret, Service, Store, Workload,
};

/// Lines that belong below a path of keys.
pub(crate) struct Section {
    /// The keys.
    pub(crate) path: Vec<String>,
    /// The lines, as they stand at the beginning of a line.
    pub(crate) lines: Vec<String>,
}

impl Section {
    /// Returns whether nothing but remarks stands in it.
    pub(crate) fn only_remarks(&self) -> bool {
        self.lines.iter().all(|line| line.is_empty() || line.trim_start().starts_with('#'))
    }
}

/// Writes a whole file.
pub(crate) fn whole(proposal: &Proposal) -> String {
    let mut text = format!(
        "# Proposed by `keywheel init`. Read it and change what is wrong; then ask `keywheel check`.\n\
         # It names places and holds no value.\n\
         requires: \">=0.1\"\n\
         project: {}\n\n\
         policies:\n  \
           # Holds for every secret that names no other policy.\n  \
           default: {{ cryptoperiod: 90d, soak: 24h, rollback: 7d, remind: 30d }}\n",
        scalar(&proposal.project)
    );
    let sections = sections(proposal);
    text.push('\n');
    text.push_str(&laid_out(&sections));
    text.push_str(&indented(&listed(proposal), 0));
    text
}

/// Writes what is to be added to a file; empty where nothing is.
pub(crate) fn additions(proposal: &Proposal) -> String {
    let mut text = laid_out(&sections(proposal));
    text.push_str(&indented(&listed(proposal), 0));
    text.trim_start_matches('\n').into()
}

/// Returns the sections with something in them.
pub(crate) fn sections(proposal: &Proposal) -> Vec<Section> {
    let mut sections = Vec::new();
    for (home, environment) in proposal.environments.iter().enumerate() {
        let above: Vec<String> = match proposal.single {
            true => Vec::new(),
            false => vec!["environments".into(), environment.name.clone()],
        };
        if !proposal.single && !environment.known && environment.name == "production" {
            let lines = vec!["protected: true".into()];
            sections.push(Section { path: above.clone(), lines });
        }
        if let Some((_, lines)) = proposal.cluster.as_ref().filter(|(at, _)| *at == home) {
            sections.push(Section { path: above.clone(), lines: lines.clone() });
        }
        let mut add = |key: &str, lines: Vec<String>| {
            let path = above.iter().cloned().chain([key.to_owned()]).collect();
            sections.push(Section { path, lines });
        };
        let stores = environment.stores.iter().filter(|store| !store.known);
        add("stores", stores.flat_map(store).collect());
        let workloads = environment.workloads.iter().filter(|workload| !workload.known);
        let several = environment.stores.len() > 1;
        let lines = workloads
            .flat_map(|one| workload(one, several, takes_tokens(proposal, home, &one.name)));
        add("workloads", lines.collect());
    }
    let blocks = proposal.secrets.iter().map(|one| secret(one, proposal));
    let lines = blocks.collect::<Vec<_>>().join(&String::new());
    sections.push(Section { path: vec!["secrets".into()], lines });
    sections.retain(|section| !section.lines.is_empty());
    sections
}

/// Lays sections out as one text, each key once.
fn laid_out(sections: &[Section]) -> String {
    let mut text = String::new();
    let mut open: Vec<String> = Vec::new();
    for (at, section) in sections.iter().enumerate() {
        let shared = open.iter().zip(&section.path).take_while(|(a, b)| a == b).count();
        if at > 0 && shared == 0 {
            text.push('\n');
        }
        let remark = if section.only_remarks() { "# " } else { "" };
        for (depth, key) in section.path.iter().enumerate().skip(shared) {
            let last = depth + 1 == section.path.len();
            let mark = if last { remark } else { "" };
            text.push_str(&format!("{}{mark}{}:\n", "  ".repeat(depth), scalar(key)));
        }
        text.push_str(&indented(&section.lines, section.path.len()));
        open.clone_from(&section.path);
    }
    text
}

/// Indents lines by a number of steps.
pub(crate) fn indented(lines: &[String], steps: usize) -> String {
    let line = |line: &String| match line.is_empty() {
        true => "\n".into(),
        false => format!("{}{line}\n", "  ".repeat(steps)),
    };
    lines.iter().map(line).collect()
}

/// Remarks on what cannot be a secret of the configuration.
pub(crate) fn listed(proposal: &Proposal) -> Vec<String> {
    let mut lines = Vec::new();
    for one in &proposal.listed {
        let then = match one.kind {
            Kind::Public(_) => "nothing to rotate".to_owned(),
            Kind::Configured(_, issuer) => format!("the issuer `{issuer}` rotates it"),
            Kind::Unnamed => "only you know".to_owned(),
            _ => "no issuer for it yet".to_owned(),
        };
        let place = one.home.map(|home| place(proposal, home)).unwrap_or_default();
        lines.push(format!("# {}{place}: {}; {then}", one.spot.words(), one.kind.words()));
    }
    if !lines.is_empty() {
        lines.insert(0, String::new());
        lines.insert(1, "# Found, and left to you:".into());
    }
    lines
}

fn store(store: &Store) -> Vec<String> {
    let name = scalar(&store.name);
    let path = scalar(&store.file);
    match &store.held {
        Held::Variables => vec![format!("{name}: {{ env_file: {{ path: {path} }} }}")],
        Held::Whole => vec![format!("{name}: {{ file: {{ path: {path} }} }}")],
        Held::Secret { settings, remarks, is_open } => {
            let mark = if *is_open { "# " } else { "" };
            remarks
                .iter()
                .map(|text| remark(text))
                .chain([format!("{mark}{name}: {settings}")])
                .collect()
        }
    }
}

fn remark(text: &str) -> String {
    format!("# {}", plain_text(text))
}

/// Returns whether a workload reads a signing secret.
fn takes_tokens(proposal: &Proposal, home: usize, name: &str) -> bool {
    let mut signing = proposal.secrets.iter().filter(|secret| secret.kind == Kind::Jwt);
    signing.any(|secret| secret.parts.get(&home).is_some_and(|part| part.readers.contains(name)))
}

fn workload(workload: &Workload, several: bool, takes_tokens: bool) -> Vec<String> {
    let mut lines = vec![format!("{}:", scalar(&workload.name))];
    match &workload.runs {
        Runs::Service(service) => lines.extend(compose_service(service, takes_tokens)),
        Runs::Pods(pods) => {
            lines.extend(pods.remarks.iter().map(|text| format!("  {}", remark(text))));
            lines.extend(tokens(takes_tokens, "pod"));
            lines.push(format!("  {}", pods.settings));
        }
        Runs::Known => {}
    }
    if several && !workload.reads.is_empty() {
        lines.push(format!("  reads: {}", list(workload.reads.iter())));
    }
    lines
}

fn compose_service(service: &Service, takes_tokens: bool) -> Vec<String> {
    let mut keys = vec![
        format!("file: {}", scalar(&service.file)),
        format!("service: {}", scalar(&service.service)),
    ];
    if !service.overs.is_empty() {
        keys.push(format!("overrides: {}", list(service.overs.iter())));
    }
    keys.extend(service.project.iter().map(|name| format!("project: {}", scalar(name))));
    keys.extend(service.replicas.map(|count| format!("replicas: {count}")));
    if !service.variables.is_empty() {
        let pairs = service.variables.iter().map(|(a, b)| format!("{}: {}", scalar(a), scalar(b)));
        keys.push(format!("variables: {{ {} }}", pairs.collect::<Vec<_>>().join(", ")));
    }
    let mut lines = Vec::new();
    if service.replicas.is_none_or(|count| count == 1) {
        lines.extend([
            "  # One container: nothing serves while its successor starts. Where two at once do no harm, add".into(),
            "  #   start_first: true".into(),
        ]);
    }
    lines.extend(tokens(takes_tokens, "container"));
    lines.push(format!("  compose_service: {{ {} }}", keys.join(", ")));
    lines
}

/// Says how a former signing secret is proven dead.
fn tokens(takes_tokens: bool, replica: &str) -> Vec<String> {
    if !takes_tokens {
        return Vec::new();
    }
    vec![
        format!(
            "  # A former signing secret is proven dead where each {replica} answers 200 to a token that it accepts,"
        ),
        "  # and 401 to any other. If there is such a place, add it:".into(),
        "  #   token: { port: 8080, path: /me }".into(),
    ]
}

fn secret(secret: &Secret, proposal: &Proposal) -> Vec<String> {
    let mut lines: Vec<String> = remarks(secret, proposal);
    let body = body(secret, proposal);
    if secret.stands() {
        lines.extend(body);
        return lines;
    }
    lines.extend(
        secret.obstacles.iter().map(|why| format!("# Not as it stands: {}.", plain_text(why))),
    );
    if secret.is_there {
        lines.push(format!(
            "# Its lines stand in this file already, commented out as `{}`: they are for every environment.",
            scalar(&secret.name)
        ));
        return lines;
    }
    lines.push(
        match secret.kind {
            Kind::Unknown => {
                "# Whether it is ours to make, only you know. If nobody else issues it, take the first `# ` off these lines:"
            }
            _ => "# When that is settled, take the first `# ` off these lines:",
        }
        .into(),
    );
    lines.extend(body.into_iter().map(|line| format!("# {line}")));
    lines
}

/// Says where a secret stands and who reads it.
fn remarks(secret: &Secret, proposal: &Proposal) -> Vec<String> {
    let mut lines = Vec::new();
    for (home, part) in &secret.parts {
        let place = place(proposal, *home);
        let readers = match part.readers.is_empty() {
            true => String::new(),
            false => {
                let names: Vec<&str> = part.readers.iter().map(String::as_str).collect();
                format!("; read by {}", names.join(", "))
            }
        };
        let spots = part.spots.iter();
        lines
            .extend(spots.map(|spot| {
                format!("# {}{place}: {}{readers}", spot.words(), secret.kind.words())
            }));
    }
    lines.extend(secret.notes.iter().map(|note| remark(note)));
    lines
}

/// Says of which environment something is, where there are several: a later run knows it by that.
fn place(proposal: &Proposal, home: usize) -> String {
    match proposal.single {
        true => String::new(),
        false => format!(" ({})", proposal.environments[home].name),
    }
}

fn body(secret: &Secret, proposal: &Proposal) -> Vec<String> {
    let (name, stores) = name_and_stores(secret, proposal);
    let mut lines = vec![name];
    if secret.parts.len() < proposal.environments.len() {
        let names = secret.parts.keys().map(|home| &proposal.environments[*home].name);
        lines.push(format!("  environments: {}", list(names)));
    }
    lines.extend(issuer(secret));
    lines.extend(strategy(secret));
    lines.push(stores);
    lines.push(format!("  read_by: {}", by_environment(secret, proposal, readers)));
    lines
}

/// Returns the line with the name of a secret, and that with its slots.
pub(crate) fn name_and_stores(secret: &Secret, proposal: &Proposal) -> (String, String) {
    let stores = by_environment(secret, proposal, stores);
    (format!("{}:", scalar(&secret.name)), format!("  stores: {stores}"))
}

fn issuer(secret: &Secret) -> Vec<String> {
    let lines: &[&str] = match secret.kind {
        Kind::Guided(_, provider) => {
            return vec![
                "  # Only a person can make these: a rotation says what to click, and takes the value.".into(),
                format!("  issuer: {{ manual: {{ provider: {provider} }} }}"),
            ];
        }
        Kind::Jwt => &["  issuer: { jwt_secret: { bytes: 32 } }"],
        Kind::OpenAi => &[
            "  issuer:",
            "    openai:",
            "      # The id of the project that the key belongs to, from the settings of your organisation at OpenAI.",
            "      # Where environments have projects of their own: { by_env: { staging: proj_…, production: proj_… } }",
            "      project: proj_REPLACE_ME",
            "      # An admin key, which keywheel reads from its own environment.",
            "      admin_key: { env: OPENAI_ADMIN_KEY }",
        ],
        Kind::OpenRouter => &[
            "  # A management key, which keywheel reads from its own environment. A key of another workspace than the default",
            "  # one needs `workspace_id` beside it.",
            "  issuer: { openrouter: { management_key: { env: OPENROUTER_MANAGEMENT_KEY } } }",
        ],
        Kind::Anthropic => &[
            "  # Only a person can make these: a rotation says what to click, and takes the value. With an admin key, which",
            "  # keywheel reads from its own environment, it finds and ends them itself: { admin_key: { env: ANTHROPIC_ADMIN_KEY } }",
            "  issuer: { anthropic: {} }",
        ],
        _ => &["  issuer: { random: {} }"],
    };
    lines.iter().map(|line| (*line).to_owned()).collect()
}

fn strategy(secret: &Secret) -> Vec<String> {
    let address = secret.parts.values().flat_map(|part| &part.spots).next();
    match secret.road {
        Road::Overlap => Vec::new(),
        Road::Keyring => vec![
            "  # How long the longest token that the application signs is good for.".into(),
            "  strategy: { keyring: { longest_token: 24h } }".into(),
        ],
        Road::Cutover => {
            let name = address.map_or("content", |spot| spot.address());
            vec![
                "  # There are two roads. This one ends every session that the former secret signed, at each rotation:".into(),
                "  # `accept` says that you know. The other one ends none: let the application accept tokens of a second".into(),
                format!("  # secret too, from a variable `{name}_ALSO_ACCEPTED` beside the first, and write"),
                "  #   strategy: { keyring: { longest_token: 24h } }".into(),
                format!("  #   stores: {{ …: {{ {name}: current, {name}_ALSO_ACCEPTED: also_accepted }} }}"),
                "  strategy: cutover".into(),
                "  accept: [sessions_end]".into(),
            ]
        }
    }
}

/// Writes what may differ between environments: once where it does not.
fn by_environment(
    secret: &Secret,
    proposal: &Proposal,
    written: impl Fn(&Part) -> String,
) -> String {
    let forms: BTreeMap<&str, String> = secret
        .parts
        .iter()
        .map(|(home, part)| (environment(proposal, *home).name.as_str(), written(part)))
        .collect();
    let mut values = forms.values();
    let first = values.next().cloned().unwrap_or_default();
    if values.all(|other| *other == first) {
        return first;
    }
    let pairs = forms.iter().map(|(name, value)| format!("{}: {value}", scalar(name)));
    format!("{{ by_env: {{ {} }} }}", pairs.collect::<Vec<_>>().join(", "))
}

fn environment(proposal: &Proposal, home: usize) -> &Environment {
    &proposal.environments[home]
}

fn stores(part: &Part) -> String {
    let store = |(name, slots): &(String, Vec<(String, Role)>)| match &slots[..] {
        [(address, Role::Current)] => format!("{}: {}", scalar(name), scalar(address)),
        slots => {
            let slot = |(address, role): &(String, Role)| {
                let role = match role {
                    Role::Current => "current",
                    Role::AlsoAccepted => "also_accepted",
                };
                format!("{}: {role}", scalar(address))
            };
            let slots: Vec<String> = slots.iter().map(slot).collect();
            format!("{}: {{ {} }}", scalar(name), slots.join(", "))
        }
    };
    let stores: Vec<String> = part.stores.iter().map(store).collect();
    format!("{{ {} }}", stores.join(", "))
}

fn readers(part: &Part) -> String {
    match part.readers.is_empty() {
        true => "[NAME_OF_A_WORKLOAD]".into(),
        false => list(part.readers.iter()),
    }
}

fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    format!("[{}]", names.map(|name| scalar(name)).collect::<Vec<_>>().join(", "))
}

fn plain_text(text: &str) -> String {
    let escaped = |c: char| if c == '`' { c.to_string() } else { plain(&c.to_string()) };
    text.chars().map(escaped).collect()
}

/// Writes a text as a YAML scalar: plain where it is a word that means nothing else, else in double quotes.
pub(crate) fn scalar(text: &str) -> String {
    let word = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '.')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./".contains(&b));
    let lower = text.to_ascii_lowercase();
    let meaning = ["true", "false", "null", "yes", "no", "on", "off", "y", "n", "nobody"];
    let number = text.starts_with('.') && !text.bytes().any(|b| b.is_ascii_alphabetic());
    let special = [".inf", ".nan"].contains(&lower.as_str()) || text == "...";
    if word && !meaning.contains(&lower.as_str()) && !number && !special {
        return text.into();
    }
    let escaped: String = text.chars().map(escaped).collect();
    format!("\"{escaped}\"")
}

fn escaped(c: char) -> String {
    match c {
        '"' => "\\\"".into(),
        '\\' => "\\\\".into(),
        _ if plain(&c.to_string()).len() == c.len_utf8() || c == '`' => c.to_string(),
        _ => format!("\\U{:08X}", u32::from(c)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::tree::{Node, Value};

    proptest! {
        #[test]
        fn every_text_is_read_back_as_it_was(text in any::<String>()) {
            let written = format!("list: [{0}]\nmap: {{ {0}: b }}\n", scalar(&text));
            let read = Node::parse(&written);
            let read = read.map_err(|problem| TestCaseError::fail(problem.to_string()))?;
            let Some(Value::List(items)) = read.get("list").map(|node| &node.value) else {
                return Err(TestCaseError::fail("no list"));
            };
            prop_assert!(matches!(&items[0].value, Value::Text(found) if *found == text));
        }
    }

    #[test]
    fn words_that_mean_something_are_quoted() {
        for text in ["true", "NO", "null", "~", "", "1", ".5", ".inf", "...", "a b", "a#", "-", "é"]
        {
            assert!(scalar(text).starts_with('"'), "{text}");
        }
        for text in ["compose.yaml", ".env", "a/b-c_d", "Backend"] {
            assert_eq!(scalar(text), text);
        }
    }
}
