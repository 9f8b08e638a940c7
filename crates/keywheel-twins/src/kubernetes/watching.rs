//! The body of a watch: one event a line, for as long as it is wanted.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::kinds::Kind;
use super::objects::{Event, EventType, Objects};
use super::selector::Selector;
use super::status::Status;

/// What a watch is to be like.
pub(super) struct Wanted {
    /// The version after which it begins, or 0 for what there is now.
    pub(super) since: u64,
    /// Whether it begins with what there is, and says where that ends.
    pub(super) initial: bool,
    /// Whether it may say from time to time which version it has come to.
    pub(super) bookmarks: bool,
    /// How long it may take.
    pub(super) timeout: Duration,
    /// After how many events it breaks off.
    pub(super) breaks_after: Option<usize>,
    /// Whether its version is said to be too old.
    pub(super) expired: bool,
}

struct Watching<S> {
    receiver: UnboundedReceiver<Event>,
    waiting: VecDeque<Bytes>,
    selector: Selector,
    show: S,
    until: Instant,
    bookmark: Option<Kind>,
    last: u64,
    breaks_after: Option<usize>,
    ended: bool,
}

/// Returns the body of a watch.
pub(super) fn body<S>(
    objects: &Objects,
    kind: Kind,
    namespace: Option<&str>,
    selector: Selector,
    wanted: Wanted,
    show: S,
) -> Body
where
    S: Fn(&Value) -> Value + Send + 'static,
{
    let since = if wanted.initial { 0 } else { wanted.since };
    let revision = objects.revision();
    let receiver = match objects.watch(kind, namespace, since) {
        Ok(receiver) if !wanted.expired => receiver,
        Ok(_) => return refused(&Status::expired(wanted.since, revision)),
        Err(status) => return refused(&status),
    };
    let mut watching = Watching {
        receiver,
        waiting: VecDeque::new(),
        selector,
        show,
        until: Instant::now() + wanted.timeout,
        bookmark: wanted.bookmarks.then_some(kind),
        last: since.max(revision),
        breaks_after: wanted.breaks_after,
        ended: false,
    };
    if wanted.initial {
        while let Ok(event) = watching.receiver.try_recv() {
            watching.tell(&event);
        }
        let mut end = bookmark(kind, watching.last);
        end["object"]["metadata"]["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        watching.waiting.push_back(line(&end));
    }
    Body::from_stream(futures_util::stream::unfold(watching, |mut watching| async move {
        let next = watching.next().await?;
        Some((next, watching))
    }))
}

impl<S: Fn(&Value) -> Value> Watching<S> {
    async fn next(&mut self) -> Option<Result<Bytes, io::Error>> {
        loop {
            if self.breaks_after == Some(0) {
                self.ended = true;
                self.breaks_after = None;
                // What was told before has to be on its way.
                tokio::time::sleep(Duration::from_millis(20)).await;
                return Some(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if let Some(line) = self.waiting.pop_front() {
                self.breaks_after = self.breaks_after.map(|left| left - 1);
                return Some(Ok(line));
            }
            if self.ended {
                return None;
            }
            match tokio::time::timeout_at(self.until, self.receiver.recv()).await {
                Ok(Some(event)) => self.tell(&event),
                Ok(None) => self.ended = true,
                Err(_) => self.end_in_time(),
            }
        }
    }

    fn end_in_time(&mut self) {
        self.ended = true;
        if let Some(kind) = self.bookmark {
            self.waiting.push_back(line(&bookmark(kind, self.last)));
        }
    }

    /// Tells an event as it looks through the selector.
    fn tell(&mut self, event: &Event) {
        let version = event.object.pointer("/metadata/resourceVersion").and_then(Value::as_str);
        let version = version.and_then(|version| version.parse().ok());
        self.last = version.map_or(self.last, |version: u64| version.max(self.last));
        let is = self.selector.matches(&event.object);
        let was = event.previous.as_ref().is_some_and(|object| self.selector.matches(object));
        let what = match (event.what, was, is) {
            (EventType::Deleted, false, _) | (_, false, false) => return,
            (EventType::Deleted, true, _) | (_, true, false) => "DELETED",
            (_, false, true) => "ADDED",
            (_, true, true) => "MODIFIED",
        };
        let object = (self.show)(&event.object);
        self.waiting.push_back(line(&json!({ "type": what, "object": object })));
    }
}

fn bookmark(kind: Kind, version: u64) -> Value {
    let resource = kind.resource();
    json!({ "type": "BOOKMARK", "object": {
        "kind": resource.name,
        "apiVersion": resource.api_version(),
        "metadata": { "resourceVersion": version.to_string(), "creationTimestamp": null },
    } })
}

fn refused(status: &Status) -> Body {
    Body::from(line(&json!({ "type": "ERROR", "object": status.body() })))
}

fn line(value: &Value) -> Bytes {
    format!("{value}\n").into()
}
