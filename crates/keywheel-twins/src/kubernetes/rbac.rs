//! Who may do what: tokens with a user each, their rules, and the roles that the cluster's own objects bind to them.

use serde_json::Value;

use super::kinds::{Kind, Resource};
use super::objects::Objects;
use super::status::Status;

/// A user and the token by which it is known.
#[derive(Clone, Debug)]
pub struct User {
    /// The name.
    pub name: String,
    /// The token.
    pub token: String,
    /// What it may do, beside what role bindings say.
    pub rules: Vec<Rule>,
}

/// What is allowed. `*` stands for everything.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// The verbs.
    pub verbs: Vec<String>,
    /// The groups.
    pub groups: Vec<String>,
    /// The resources, sub-resources as `pods/log`.
    pub resources: Vec<String>,
    /// The only names; empty for all.
    pub names: Vec<String>,
    /// The only namespaces; empty for all and for the cluster.
    pub namespaces: Vec<String>,
}

impl Rule {
    /// Allows everything.
    pub fn everything() -> Self {
        Self::new(&["*"], "*", &["*"])
    }

    /// Allows verbs on resources of a group, everywhere.
    pub fn new(verbs: &[&str], group: &str, resources: &[&str]) -> Self {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            verbs: owned(verbs),
            groups: owned(&[group]),
            resources: owned(resources),
            ..Self::default()
        }
    }

    /// Allows it for some names only.
    #[must_use]
    pub fn named(mut self, names: &[&str]) -> Self {
        self.names = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// Allows it in one namespace only.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &str) -> Self {
        self.namespaces = vec![namespace.into()];
        self
    }

    fn of_role(rule: &Value, namespace: &str) -> Self {
        let texts = |name: &str| {
            let found = rule[name].as_array().into_iter().flatten();
            found.filter_map(|text| text.as_str().map(str::to_owned)).collect()
        };
        Self {
            verbs: texts("verbs"),
            groups: texts("apiGroups"),
            resources: texts("resources"),
            names: texts("resourceNames"),
            namespaces: vec![namespace.into()],
        }
    }

    fn allows(&self, asked: &Attributes) -> bool {
        let has = |list: &[String], one: &str| list.iter().any(|it| it == "*" || it == one);
        let name = asked.name.as_ref().is_some_and(|name| self.names.contains(name));
        let namespace =
            asked.namespace.as_ref().is_some_and(|namespace| self.namespaces.contains(namespace));
        has(&self.verbs, &asked.verb)
            && has(&self.groups, &asked.group)
            && has(&self.resources, &asked.resource)
            && (self.names.is_empty() || name)
            && (self.namespaces.is_empty() || namespace)
    }
}

/// What somebody wants to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The verb.
    pub verb: String,
    /// The group.
    pub group: String,
    /// The resource, with its sub-resource.
    pub resource: String,
    /// The namespace.
    pub namespace: Option<String>,
    /// The name.
    pub name: Option<String>,
}

impl Attributes {
    /// Refuses it in the words of the server.
    pub(super) fn forbidden(&self, user: &str) -> Status {
        let name = self.name.as_deref().map(|name| format!(" \"{name}\"")).unwrap_or_default();
        let plural = self.resource.split('/').next().unwrap_or_default();
        let qualified = match self.group.as_str() {
            "" => plural.to_owned(),
            group => format!("{plural}.{group}"),
        };
        let scope = match &self.namespace {
            Some(namespace) => format!("in the namespace \"{namespace}\""),
            None => "at the cluster scope".to_owned(),
        };
        let message = format!(
            "{qualified}{name} is forbidden: User \"{user}\" cannot {} resource \"{}\" in API group \"{}\" {scope}",
            self.verb, self.resource, self.group
        );
        let mut status = Status::new(403, "Forbidden", message);
        let mut details = serde_json::json!({ "kind": plural });
        if let Some(name) = &self.name {
            details["name"] = name.as_str().into();
        }
        if !self.group.is_empty() {
            details["group"] = self.group.as_str().into();
        }
        status.details = Some(details);
        status
    }
}

impl User {
    /// Returns whether it may do this.
    pub(super) fn may(&self, asked: &Attributes, objects: &Objects) -> bool {
        self.rules.iter().any(|rule| rule.allows(asked))
            || asked.namespace.as_deref().is_some_and(|namespace| {
                self.bound(objects, namespace).iter().any(|rule| rule.allows(asked))
            })
    }

    /// Returns the rules of the roles that are bound to it in a namespace.
    fn bound(&self, objects: &Objects, namespace: &str) -> Vec<Rule> {
        let (roles, _) = objects.list(Kind::Role, Some(namespace));
        let (bindings, _) = objects.list(Kind::RoleBinding, Some(namespace));
        let mine = bindings.iter().filter(|binding| {
            let subjects = binding["subjects"].as_array().into_iter().flatten();
            subjects.into_iter().any(|subject| account(subject, namespace) == self.name)
        });
        let bound = |role: &&std::sync::Arc<Value>, binding: &Value| {
            binding["roleRef"]["name"] == role["metadata"]["name"]
        };
        mine.flat_map(|binding| roles.iter().filter(move |role| bound(role, binding)))
            .flat_map(|role| role["rules"].as_array().cloned().unwrap_or_default())
            .map(|rule| Rule::of_role(&rule, namespace))
            .collect()
    }
}

/// Returns the user that a subject of a binding is.
fn account(subject: &Value, namespace: &str) -> String {
    let name = subject["name"].as_str().unwrap_or_default();
    match subject["kind"].as_str() {
        Some("ServiceAccount") => {
            let home = subject["namespace"].as_str().unwrap_or(namespace);
            format!("system:serviceaccount:{home}:{name}")
        }
        _ => name.to_owned(),
    }
}

/// Returns what it takes to do something to a resource.
pub(super) fn attributes(
    verb: &str,
    resource: &Resource,
    subresource: &str,
    namespace: Option<&str>,
    name: Option<&str>,
) -> Attributes {
    let resource_name = match subresource {
        "" => resource.plural.to_owned(),
        sub => format!("{}/{sub}", resource.plural),
    };
    Attributes {
        verb: verb.into(),
        group: resource.group.into(),
        resource: resource_name,
        namespace: namespace.map(str::to_owned),
        name: name.map(str::to_owned),
    }
}
