//! Where an object is: the path of a request, and its name in a sentence.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;

/// Everything but RFC 3986's unreserved characters is encoded.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Whether a text can be the name of an object or a namespace: lower-case letters, digits, `-` and `.`, at most 253.
pub fn is_name(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
    (1..=253).contains(&text.len()) && text.bytes().all(fits)
}

/// Objects of one kind, or one of them.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The API group; empty for the core one.
    pub(crate) group: &'a str,
    /// The version of the group.
    pub(crate) version: &'a str,
    /// The kind, in the plural.
    pub(crate) resource: &'a str,
    /// The namespace; none for objects of the whole cluster.
    pub(crate) namespace: Option<&'a str>,
    /// The object; none for all of them.
    pub(crate) name: Option<&'a str>,
    /// A part of the object.
    pub(crate) sub: Option<&'a str>,
}

impl<'a> Place<'a> {
    /// Objects of a kind of the core group.
    pub(crate) fn core(resource: &'a str) -> Self {
        Self::of("", "v1", resource)
    }

    /// Objects of a kind of a group.
    pub(crate) fn of(group: &'a str, version: &'a str, resource: &'a str) -> Self {
        Self { group, version, resource, namespace: None, name: None, sub: None }
    }

    /// Those in a namespace.
    pub(crate) fn within(self, namespace: &'a str) -> Self {
        Self { namespace: Some(namespace), ..self }
    }

    /// The one with a name.
    pub(crate) fn named(self, name: &'a str) -> Self {
        Self { name: Some(name), ..self }
    }

    /// A part of it, such as `log`.
    pub(crate) fn sub(self, sub: &'a str) -> Self {
        Self { sub: Some(sub), ..self }
    }

    /// Returns the namespace in which a role can allow it: a namespace is asked for within itself.
    pub(crate) fn scope(&self) -> Option<&'a str> {
        self.namespace.or(self.name.filter(|_| self.resource == "namespaces"))
    }

    /// Returns the path of a request.
    pub(crate) fn path(&self, query: &[(&str, &str)]) -> String {
        let encoded = |part: &str| utf8_percent_encode(part, PART).to_string();
        let mut path = match self.group {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        if let Some(namespace) = self.namespace {
            path.push_str(&format!("/namespaces/{}", encoded(namespace)));
        }
        path.push_str(&format!("/{}", self.resource));
        for part in [self.name, self.sub].into_iter().flatten() {
            path.push_str(&format!("/{}", encoded(part)));
        }
        for (number, (name, value)) in query.iter().enumerate() {
            let joint = if number == 0 { '?' } else { '&' };
            path.push_str(&format!("{joint}{name}={}", encoded(value)));
        }
        path
    }

    /// Says what a request asks for: ``patch of `secrets/api-keys` in namespace `shop` ``.
    pub(crate) fn in_words(&self, method: &Method) -> String {
        let verb = match *method {
            Method::GET if self.name.is_some() => "get",
            Method::GET => "list",
            Method::POST => "create",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "update",
        };
        let parts = [Some(self.resource), self.name, self.sub];
        let object = parts.into_iter().flatten().collect::<Vec<_>>().join("/");
        match self.namespace {
            Some(namespace) => format!("{verb} of `{object}` in namespace `{namespace}`"),
            None => format!("{verb} of `{object}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_one_object_whatever_its_name() {
        let place = Place::core("secrets").within("shop").named("api-keys");
        assert_eq!(place.path(&[]), "/api/v1/namespaces/shop/secrets/api-keys");
        let hostile = Place::core("secrets").within("shop").named("../a?b=c#d");
        assert_eq!(hostile.path(&[]), "/api/v1/namespaces/shop/secrets/..%2Fa%3Fb%3Dc%23d");
        let place = Place::of("apps", "v1", "deployments").within("shop");
        let query = [("labelSelector", "app=web"), ("limit", "1")];
        let wanted = "/apis/apps/v1/namespaces/shop/deployments?labelSelector=app%3Dweb&limit=1";
        assert_eq!(place.path(&query), wanted);
        assert_eq!(place.in_words(&Method::GET), "list of `deployments` in namespace `shop`");
        let log = Place::core("pods").named("web-1").sub("log");
        assert_eq!(log.in_words(&Method::GET), "get of `pods/web-1/log`");
    }
}
