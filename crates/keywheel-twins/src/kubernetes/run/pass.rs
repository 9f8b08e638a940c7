//! One pass of the controllers over the objects, and when the next one is due.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use super::pace::Pace;
use super::pods::Readiness;
use crate::kubernetes::{Deletion, Key, Kind, Objects};

/// One pass. What another writer was faster with is left to the next pass, which comes at once, since something changed.
pub(super) struct Pass<'a> {
    pub(super) objects: &'a Objects,
    pub(super) readiness: &'a Readiness,
    pub(super) pace: Pace,
    pub(super) now: Instant,
    /// The name under which it writes.
    pub(super) manager: &'static str,
    next: Cell<Option<Instant>>,
}

impl<'a> Pass<'a> {
    pub(super) fn new(objects: &'a Objects, readiness: &'a Readiness, pace: Pace) -> Self {
        let manager = "kube-controller-manager";
        Self { objects, readiness, pace, now: Instant::now(), manager, next: Cell::new(None) }
    }

    /// Does as another part of the cluster.
    pub(super) fn by(self, manager: &'static str) -> Self {
        Self { manager, ..self }
    }

    /// Asks for another pass at a moment, even where nothing changes until then.
    pub(super) fn wake_at(&self, at: Instant) {
        let next = self.next.get();
        self.next.set(Some(next.map_or(at, |next| next.min(at))));
    }

    /// Returns when the next pass is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next.get()
    }

    pub(super) fn list(&self, kind: Kind) -> Vec<Arc<Value>> {
        self.objects.list(kind, None).0
    }

    /// Returns an object as it is now.
    pub(super) fn fresh(&self, kind: Kind, object: &Value) -> Option<Arc<Value>> {
        self.objects.get(&Key::of(kind, object))
    }

    pub(super) fn create(&self, kind: Kind, object: &Value) {
        self.objects.create(kind, object.clone(), self.manager).ok();
    }

    pub(super) fn change(&self, kind: Kind, object: &Value, edit: impl FnOnce(&mut Value)) {
        self.objects.change(&Key::of(kind, object), self.manager, edit).ok();
    }

    pub(super) fn set_status(&self, kind: Kind, object: &Value, status: Value) {
        let write = |object: &mut Value| object["status"] = status;
        self.objects.change_status(&Key::of(kind, object), self.manager, write).ok();
    }

    pub(super) fn delete(&self, kind: Kind, object: &Value) {
        let uid = Some(super::json::uid(object).to_owned());
        self.objects.delete(&Key::of(kind, object), &Deletion { uid, ..Deletion::default() }).ok();
    }

    /// Deletes what has ended at last.
    pub(super) fn remove(&self, kind: Kind, object: &Value) {
        let uid = Some(super::json::uid(object).to_owned());
        self.objects.delete(&Key::of(kind, object), &Deletion { uid, ..Deletion::now() }).ok();
    }

    /// Returns whether a pod was ready for so many seconds; asks for another pass when it will be.
    pub(super) fn is_available(&self, pod: &Value, least: i64) -> bool {
        let Some(at) = self.readiness.available_at(pod, least, self.pace) else { return false };
        if at > self.now {
            self.wake_at(at);
        }
        at <= self.now
    }
}
