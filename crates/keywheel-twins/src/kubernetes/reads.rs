//! The requests that change nothing: get, list, watch and logs.

use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::api::{Answer, Asked, LogOf, ok};
use super::faults::Fault;
use super::request::Target;
use super::selector::Selector;
use super::shapes::{api_version, at_version, listed, metadata_only, shown};
use super::status::Status;
use super::watching;

impl Asked<'_> {
    pub(super) fn get(&self, target: &Target) -> Answer {
        let object = self.present(target)?;
        if self.call.accept.contains("as=PartialObjectMetadata") {
            return Ok(ok(metadata_only(&object)));
        }
        Ok(ok(shown(&object, target)))
    }

    pub(super) fn list(&self, target: &Target) -> Answer {
        let (kind, namespace) = (target.resource.kind, target.namespace.as_deref());
        let selector = self.selector()?;
        let objects = &self.api.objects;
        let resumed = self.call.option("continue").map(resume_at).transpose()?;
        let (found, revision, from) = match (resumed, self.lag) {
            (Some((revision, from)), _) => {
                (objects.list_at(kind, namespace, revision)?, revision, from)
            }
            (None, Some(lag)) => {
                let revision = objects.revision_before(lag);
                (objects.list_at(kind, namespace, revision)?, revision, 0)
            }
            (None, None) => {
                let (found, revision) = objects.list(kind, namespace);
                (found, revision, 0)
            }
        };
        let found: Vec<_> = found.iter().filter(|object| selector.matches(object)).collect();
        let most = self.call.number("limit").and_then(|limit| usize::try_from(limit).ok());
        let until = most.map_or(found.len(), |most| (from + most).min(found.len()));
        let mut metadata = json!({ "resourceVersion": revision.to_string() });
        if until < found.len() {
            metadata["continue"] = format!("{revision}.{until}").into();
            metadata["remainingItemCount"] = (found.len() - until).into();
        }
        let page = found.get(from..until).unwrap_or_default();
        if self.call.accept.contains("as=PartialObjectMetadataList") {
            let items: Vec<_> = page.iter().map(|object| metadata_only(object)).collect();
            return Ok(ok(json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items,
            })));
        }
        let items: Vec<_> = page.iter().map(|object| listed(object, target)).collect();
        Ok(ok(json!({
            "kind": format!("{}List", target.resource.name),
            "apiVersion": api_version(target),
            "metadata": metadata,
            "items": items,
        })))
    }

    pub(super) fn selector(&self) -> Result<Selector, Status> {
        Selector::read(self.call.option("labelSelector"), self.call.option("fieldSelector"))
    }

    pub(super) fn watch(&self, target: &Target) -> Answer {
        let selector = self.selector()?;
        let wanted = watching::Wanted {
            since: self.call.number("resourceVersion").unwrap_or(0),
            initial: self.call.is_set("sendInitialEvents"),
            bookmarks: self.call.is_set("allowWatchBookmarks"),
            timeout: Duration::from_secs(self.call.number("timeoutSeconds").unwrap_or(1800)),
            breaks_after: match self.effect.0 {
                Some(Fault::WatchDropped { after }) => Some(after),
                _ => None,
            },
            expired: self.effect.0 == Some(Fault::WatchExpired),
        };
        let version = api_version(target);
        let show = move |object: &Value| at_version(object, &version);
        let (kind, namespace) = (target.resource.kind, target.namespace.as_deref());
        let body = watching::body(&self.api.objects, kind, namespace, selector, wanted, show);
        Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
    }

    pub(super) fn log(&self, target: &Target) -> Answer {
        let pod = self.present(target)?;
        let container = self.call.option("container").map(str::to_owned);
        let named = container.clone().or_else(|| {
            pod.pointer("/spec/containers/0/name").and_then(Value::as_str).map(str::to_owned)
        });
        let previous = self.call.is_set("previous");
        let of = LogOf { pod: self.key(target), container, previous };
        let Some(text) = self.api.logs().and_then(|logs| logs(&of)) else {
            let (name, pod) = (named.unwrap_or_default(), of.pod.name);
            let why = match previous {
                true => {
                    format!("previous terminated container \"{name}\" in pod \"{pod}\" not found")
                }
                false => format!(
                    "container \"{name}\" in pod \"{pod}\" is waiting to start: ContainerCreating"
                ),
            };
            return Err(Status::bad_request(why));
        };
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let most = self.call.number("tailLines").and_then(|most| usize::try_from(most).ok());
        let tail = lines.len().saturating_sub(most.unwrap_or(usize::MAX));
        Ok(([(CONTENT_TYPE, "text/plain")], lines[tail..].concat()).into_response())
    }
}

/// Reads where a list goes on: the version that it is of, and how many objects were shown.
fn resume_at(text: &str) -> Result<(u64, usize), Status> {
    let parts = text.split_once('.');
    let parts =
        parts.and_then(|(revision, from)| Some((revision.parse().ok()?, from.parse().ok()?)));
    parts.ok_or_else(|| Status::bad_request("continue key is not valid"))
}
