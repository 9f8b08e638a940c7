//! What a request is about: its path, verb and options, as the real server reads them.

use axum::extract::Query;
use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};

use super::kinds::{self, Resource};
use super::selector::Selector;
use crate::query::one;

/// A request without its body.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) verb: &'static str,
    pub(super) route: Route,
    pub(super) path: String,
    pub(super) query: Vec<(String, String)>,
    pub(super) token: Option<String>,
    /// The user that the path names: `/as/NAME/api/…`.
    pub(super) named_user: Option<String>,
    pub(super) content_type: String,
    pub(super) accept: String,
    /// The first word of the client's name, by which it owns fields where it names no manager.
    agent: String,
}

/// Where a path leads.
#[derive(Clone, Debug)]
pub(super) enum Route {
    /// What the server is and has.
    Discovery,
    /// A question about the asker's own rights.
    Review,
    /// Objects.
    Objects(Target),
    /// Nowhere.
    Nowhere,
}

/// Objects, one or all.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) resource: &'static Resource,
    pub(super) version: String,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) subresource: String,
}

impl Call {
    pub(super) fn read(parts: &Parts) -> Self {
        let query = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
        let query = query.map(|Query(query)| query).unwrap_or_default();
        let (named_user, path) = named(parts.uri.path().trim_end_matches('/'));
        let route = Route::read(&path);
        let text = |name| header(&parts.headers, name).to_owned();
        let agent = text(USER_AGENT);
        let token =
            header(&parts.headers, AUTHORIZATION).strip_prefix("Bearer ").map(str::to_owned);
        Self {
            verb: verb(&parts.method, &route, &query),
            route,
            path,
            query,
            token,
            named_user,
            content_type: text(CONTENT_TYPE),
            accept: text(ACCEPT),
            agent: agent.split('/').next().unwrap_or_default().to_owned(),
        }
    }

    pub(super) fn option<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        one(&self.query, name).filter(|value| !value.is_empty())
    }

    /// Returns every value of an option that may be given more than once, in order.
    pub(super) fn options<'a>(&'a self, name: &str) -> Vec<&'a str> {
        let given = self.query.iter().filter(|(it, _)| it == name);
        given.map(|(_, value)| value.as_str()).collect()
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.option(name).and_then(|text| text.parse().ok())
    }

    pub(super) fn is_set(&self, name: &str) -> bool {
        matches!(self.option(name), Some("1" | "true"))
    }

    pub(super) fn manager(&self) -> &str {
        self.option("fieldManager").unwrap_or(&self.agent)
    }

    pub(super) fn is_dry(&self) -> bool {
        self.option("dryRun") == Some("All")
    }

    /// Returns the one name that it is about, also where a list or a watch names it.
    pub(super) fn name(&self) -> Option<String> {
        let Route::Objects(target) = &self.route else { return None };
        target.name.clone().or_else(|| {
            let listed = matches!(self.verb, "list" | "watch" | "deletecollection");
            let selector = Selector::read(None, self.option("fieldSelector")).ok()?;
            selector.name().filter(|_| listed).map(str::to_owned)
        })
    }

    /// Returns the resource that it is about, with its sub-resource.
    pub(super) fn resource(&self) -> String {
        match &self.route {
            Route::Objects(target) if target.subresource.is_empty() => {
                target.resource.plural.into()
            }
            Route::Objects(target) => format!("{}/{}", target.resource.plural, target.subresource),
            Route::Review => "selfsubjectaccessreviews".into(),
            Route::Discovery => "discovery".into(),
            Route::Nowhere => String::new(),
        }
    }
}

fn named(path: &str) -> (Option<String>, String) {
    let rest = path.strip_prefix("/as/");
    match rest.and_then(|rest| rest.split_once('/')) {
        Some((name, rest)) => (Some(name.into()), format!("/{rest}")),
        None => (None, path.into()),
    }
}

fn header(headers: &HeaderMap, name: axum::http::HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn verb(method: &Method, route: &Route, query: &[(String, String)]) -> &'static str {
    let named = matches!(route, Route::Objects(Target { name: Some(_), .. }));
    let watches = matches!(one(query, "watch"), Some("1" | "true"));
    match *method {
        Method::GET if watches => "watch",
        Method::GET if named || !matches!(route, Route::Objects(_)) => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ => "",
    }
}

impl Route {
    fn read(path: &str) -> Self {
        let steps: Vec<&str> = path.split('/').skip(1).collect();
        match steps.as_slice() {
            ["version" | "api" | "apis" | "healthz" | "livez" | "readyz"]
            | ["api", "v1"]
            | ["apis", _]
            | ["apis", _, _]
            | ["openapi", ..] => Self::Discovery,
            ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"] => Self::Review,
            ["api", "v1", rest @ ..] => Self::objects("", "v1", rest),
            ["apis", group, version, rest @ ..] => Self::objects(group, version, rest),
            _ => Self::Nowhere,
        }
    }

    fn objects(group: &str, version: &str, steps: &[&str]) -> Self {
        let (namespace, steps) = match steps {
            ["namespaces", namespace, rest @ ..]
                if !matches!(rest, [] | ["status" | "finalize"]) =>
            {
                (Some((*namespace).to_owned()), rest)
            }
            steps => (None, steps),
        };
        let (plural, name, subresource) = match steps {
            [plural] => (plural, None, ""),
            [plural, name] => (plural, Some((*name).to_owned()), ""),
            [plural, name, subresource] => (plural, Some((*name).to_owned()), *subresource),
            _ => return Self::Nowhere,
        };
        match kinds::find(group, plural) {
            Some(resource) => Self::Objects(Target {
                resource,
                version: version.into(),
                namespace,
                name,
                subresource: subresource.into(),
            }),
            None => Self::Nowhere,
        }
    }
}
