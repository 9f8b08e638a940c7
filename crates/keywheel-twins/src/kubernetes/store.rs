//! What is under the lock of [`Objects`](super::objects::Objects): every change of an object, step by step.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::fields::{self, Fields, Manager, Owners};
use super::kinds::Kind;
use super::objects::{Deletion, Event, EventType, Key, timestamp};
use super::patch;
use super::rules;
use super::status::{Cause, Status};

#[derive(Default)]
pub(super) struct State {
    pub(super) revision: u64,
    pub(super) objects: BTreeMap<Key, Arc<Value>>,
    pub(super) history: VecDeque<Change>,
    /// The last version of which the history no longer tells.
    pub(super) forgotten: u64,
    watchers: Vec<Watcher>,
}

pub(super) struct Change {
    pub(super) revision: u64,
    pub(super) at: Instant,
    key: Key,
    event: Event,
}

struct Watcher {
    kind: Kind,
    namespace: Option<String>,
    sender: mpsc::UnboundedSender<Event>,
}

/// How many changes the history keeps.
const HISTORY: usize = 20_000;

/// Who owns what after a write.
pub(super) enum Ownership<'a> {
    /// A manager takes what it changed.
    Take(&'a Manager),
    /// It is worked out already.
    Set(&'a Manager, Fields),
}

impl Ownership<'_> {
    fn manager(&self) -> &Manager {
        match self {
            Self::Take(manager) | Self::Set(manager, _) => manager,
        }
    }
}

impl State {
    pub(super) fn present(&self, key: &Key) -> Result<Arc<Value>, Status> {
        let found = self.objects.get(key).cloned();
        found.ok_or_else(|| Status::not_found(key.resource(), &key.name))
    }

    /// Returns the objects as they were at a version.
    pub(super) fn at(&self, revision: u64) -> BTreeMap<Key, Arc<Value>> {
        let mut objects = self.objects.clone();
        for change in self.history.iter().rev().take_while(|change| change.revision > revision) {
            match &change.event.previous {
                Some(previous) => objects.insert(change.key.clone(), Arc::clone(previous)),
                None => objects.remove(&change.key),
            };
        }
        objects
    }

    pub(super) fn create(
        &mut self,
        kind: Kind,
        mut object: Value,
        owner: &Manager,
        applied: Option<Fields>,
    ) -> Result<Arc<Value>, Status> {
        let resource = kind.resource();
        let metadata = metadata_of(&mut object)?;
        if metadata.get("resourceVersion").is_some_and(|version| *version != "") {
            let why = "resourceVersion should not be set on objects to be created";
            return Err(Status::new(500, "InternalError", why));
        }
        name_it(metadata);
        for (name, value) in
            [("uid", uid().into()), ("creationTimestamp", timestamp(jiff::Timestamp::now()).into())]
        {
            metadata.insert(name.into(), value);
        }
        for name in
            ["managedFields", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"]
        {
            metadata.remove(name);
        }
        if resource.generation {
            metadata.insert("generation".into(), 1.into());
        }
        if !resource.namespaced {
            metadata.remove("namespace");
        }
        let key = Key::of(kind, &object);
        if self.objects.contains_key(&key) {
            return Err(Status::already_exists(resource, &key.name));
        }
        if let Some(namespace) = &key.namespace {
            self.present(&Key::of_cluster(Kind::Namespace, namespace))?;
        }
        if resource.status && resource.kind != Kind::Pod && owner.subresource.is_empty() {
            object.as_object_mut().map(|object| object.remove("status"));
        }
        object["apiVersion"] = resource.api_version().into();
        object["kind"] = resource.name.into();
        rules::settle(resource, &mut object, None)?;
        let mut owners = Owners::default();
        let written = fields::leaves(&object, resource.is_custom());
        let owned = applied.unwrap_or_else(|| written.clone());
        owners.take(owner, owned, &timestamp(jiff::Timestamp::now()));
        owners.keep(&written);
        object["metadata"]["managedFields"] = owners.entries(&resource.api_version());
        Ok(self.commit(key, EventType::Added, object, None))
    }

    pub(super) fn replace(
        &mut self,
        key: &Key,
        old: &Arc<Value>,
        new: Value,
        ownership: Ownership,
    ) -> Result<Arc<Value>, Status> {
        let resource = key.resource();
        let manager = ownership.manager().clone();
        let mut new = kept(key, old, new, &manager)?;
        rules::settle(resource, &mut new, Some(old))?;
        let before = old.pointer("/metadata/generation").and_then(Value::as_u64);
        if let Some(before) = before {
            let moved = u64::from(rules::is_new_generation(resource, old, &new));
            new["metadata"]["generation"] = (before + moved).into();
        }
        let now = timestamp(jiff::Timestamp::now());
        let mut owners = Owners::of(old);
        owners.take(&manager, fields::changed(old, &new, resource.is_custom()), &now);
        if let Ownership::Set(manager, fields) = ownership {
            owners.set(manager, fields, &now);
        }
        owners.keep(&fields::leaves(&new, resource.is_custom()));
        if owners != Owners::of(old) {
            new["metadata"]["managedFields"] = owners.entries(&resource.api_version());
        }
        if new == **old {
            return Ok(Arc::clone(old));
        }
        Ok(self.commit(key.clone(), EventType::Modified, new, Some(Arc::clone(old))))
    }

    pub(super) fn apply(
        &mut self,
        key: &Key,
        config: &Value,
        owner: &Manager,
        force: bool,
        admit: impl FnOnce(&mut Value),
    ) -> Result<(Arc<Value>, bool), Status> {
        let custom = key.resource().is_custom();
        let applied = fields::leaves(config, custom);
        let Some(old) = self.objects.get(key).cloned() else {
            if !owner.subresource.is_empty() {
                return Err(Status::not_found(key.resource(), &key.name));
            }
            let mut object = config.clone();
            admit(&mut object);
            return Ok((self.create(key.kind, object, owner, Some(applied))?, true));
        };
        let owners = Owners::of(&old);
        if !force {
            let conflicts = conflicts(&owners, owner, &old, config, &applied);
            if !conflicts.is_empty() {
                return Err(Status::apply_conflict(&conflicts));
            }
        }
        let mut new = (*old).clone();
        for path in owners.fields(owner).difference(&applied) {
            let kept = match path.split_last() {
                Some((last, item)) if last == "." => owners.has_other_below(owner, item),
                _ => owners.has_other(owner, path),
            };
            if !kept {
                fields::remove(&mut new, path);
            }
        }
        patch::apply(&mut new, config, custom);
        admit(&mut new);
        let done = self.replace(key, &old, new, Ownership::Set(owner, applied))?;
        Ok((done, false))
    }

    pub(super) fn delete(&mut self, key: &Key, deletion: &Deletion) -> Result<Arc<Value>, Status> {
        let old = self.present(key)?;
        precondition(key, &old, "UID", "uid", deletion.uid.as_deref())?;
        let version = deletion.resource_version.as_deref();
        precondition(key, &old, "ResourceVersion", "resourceVersion", version)?;
        if key.kind == Kind::Pod {
            let grace = deletion.grace_seconds.unwrap_or_else(|| {
                old.pointer("/spec/terminationGracePeriodSeconds")
                    .and_then(Value::as_u64)
                    .unwrap_or(30)
            });
            if grace > 0 && runs(&old) {
                return Ok(self.begin_to_end(key, &old, grace));
            }
        }
        self.objects.remove(key);
        let mut last = (*old).clone();
        last["metadata"]["resourceVersion"] = (self.revision + 1).to_string().into();
        let last =
            self.tell(key.clone(), EventType::Deleted, Arc::new(last), Some(Arc::clone(&old)));
        if key.kind == Kind::Namespace {
            self.delete_all_in(&key.name);
        }
        self.collect(key, &old, deletion.orphan);
        Ok(last)
    }

    fn begin_to_end(&mut self, key: &Key, old: &Arc<Value>, grace: u64) -> Arc<Value> {
        let before = old.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_u64);
        if before.is_some_and(|before| before <= grace) {
            return Arc::clone(old);
        }
        let until = jiff::Timestamp::now()
            + jiff::SignedDuration::from_secs(i64::try_from(grace).unwrap_or(i64::MAX));
        let mut new = (**old).clone();
        new["metadata"]["deletionTimestamp"] = timestamp(until).into();
        new["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        self.commit(key.clone(), EventType::Modified, new, Some(Arc::clone(old)))
    }

    fn delete_all_in(&mut self, namespace: &str) {
        let inside = |key: &&Key| key.namespace.as_deref() == Some(namespace);
        let keys: Vec<_> = self.objects.keys().filter(inside).cloned().collect();
        for key in keys {
            // What was owned by one before it is gone already.
            self.delete(&key, &Deletion::now()).ok();
        }
    }

    /// Deletes what an object owned, or lets it stand alone.
    fn collect(&mut self, owner: &Key, gone: &Value, orphan: bool) {
        let owned = |object: &Value| {
            let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
            let owners = owners.map(Vec::as_slice).unwrap_or_default();
            let is_gone = |owner: &Value| owner["uid"] == gone["metadata"]["uid"];
            owners.iter().any(is_gone).then(|| owners.iter().all(is_gone))
        };
        let near = |key: &Key| owner.namespace.is_none() || key.namespace == owner.namespace;
        let found: Vec<_> = self
            .objects
            .iter()
            .filter(|(key, _)| near(key))
            .filter_map(|(key, object)| Some((key.clone(), owned(object)?)))
            .collect();
        for (key, only_owner) in found {
            if only_owner && !orphan {
                // What was owned by one before it is gone already.
                self.delete(&key, &Deletion::default()).ok();
            } else if let Some(old) = self.objects.get(&key).cloned() {
                let mut new = (*old).clone();
                if let Some(Value::Array(owners)) = new.pointer_mut("/metadata/ownerReferences") {
                    owners.retain(|owner| owner["uid"] != gone["metadata"]["uid"]);
                }
                self.commit(key, EventType::Modified, new, Some(old));
            }
        }
    }

    fn commit(
        &mut self,
        key: Key,
        what: EventType,
        mut object: Value,
        previous: Option<Arc<Value>>,
    ) -> Arc<Value> {
        object["metadata"]["resourceVersion"] = (self.revision + 1).to_string().into();
        let object = Arc::new(object);
        self.objects.insert(key.clone(), Arc::clone(&object));
        self.tell(key, what, object, previous)
    }

    fn tell(
        &mut self,
        key: Key,
        what: EventType,
        object: Arc<Value>,
        previous: Option<Arc<Value>>,
    ) -> Arc<Value> {
        self.revision += 1;
        let event = Event { what, object: Arc::clone(&object), previous };
        self.watchers.retain(|watcher| {
            let meant = key.is_in(watcher.kind, watcher.namespace.as_deref());
            if meant {
                watcher.sender.send(event.clone()).is_ok()
            } else {
                !watcher.sender.is_closed()
            }
        });
        let change = Change { revision: self.revision, at: Instant::now(), key, event };
        self.history.push_back(change);
        while self.history.len() > HISTORY {
            self.forgotten = self.history.pop_front().map_or(0, |change| change.revision);
        }
        object
    }

    pub(super) fn watch(
        &mut self,
        kind: Kind,
        namespace: Option<&str>,
        since: u64,
    ) -> Result<mpsc::UnboundedReceiver<Event>, Status> {
        let (sender, receiver) = mpsc::unbounded_channel();
        // The receiver is at hand, so that nothing sent here is lost.
        let send = |event| drop(sender.send(event));
        if since == 0 {
            let present = self.objects.iter().filter(|(key, _)| key.is_in(kind, namespace));
            present.for_each(|(_, object)| {
                let object = Arc::clone(object);
                send(Event { what: EventType::Added, object, previous: None });
            });
        } else if since < self.forgotten {
            return Err(Status::expired(since, self.forgotten));
        } else {
            let later = self.history.iter().filter(|change| change.revision > since);
            later
                .filter(|change| change.key.is_in(kind, namespace))
                .for_each(|change| send(change.event.clone()));
        }
        self.watchers.push(Watcher { kind, namespace: namespace.map(str::to_owned), sender });
        Ok(receiver)
    }

    /// Returns a copy to try a write on: without a history, and nobody watches it.
    pub(super) fn tried(&self) -> Self {
        Self { revision: self.revision, objects: self.objects.clone(), ..Self::default() }
    }

    pub(super) fn forget(&mut self) {
        self.revision += 1;
        self.forgotten = self.revision;
        self.history.clear();
    }

    pub(super) fn drop_watches(&mut self) {
        self.watchers.clear();
    }
}

/// Returns the metadata of an object that somebody sent.
fn metadata_of(object: &mut Value) -> Result<&mut Map<String, Value>, Status> {
    let object = object.as_object_mut();
    let metadata = object.map(|object| object.entry("metadata").or_insert_with(|| json!({})));
    let metadata = metadata.and_then(Value::as_object_mut);
    metadata.ok_or_else(|| Status::bad_request("the object provided is unrecognized"))
}

/// Gives an object the name that it leaves to the server.
fn name_it(metadata: &mut Map<String, Value>) {
    let named = metadata.get("name").and_then(Value::as_str).is_some_and(|name| !name.is_empty());
    if let (false, Some(prefix)) = (named, metadata.get("generateName").and_then(Value::as_str)) {
        let name = format!("{prefix}{}", crate::random(b"bcdfghjklmnpqrstvwxz2456789", 5));
        metadata.insert("name".into(), name.into());
    }
}

/// Returns what a write makes of an object: what is not its to change stays.
fn kept(key: &Key, old: &Value, mut new: Value, manager: &Manager) -> Result<Value, Status> {
    let resource = key.resource();
    let metadata = metadata_of(&mut new)?;
    let given =
        |name: &str| metadata.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    if given("resourceVersion").is_some_and(|version| old["metadata"]["resourceVersion"] != version)
    {
        return Err(Status::conflict(resource, &key.name));
    }
    // A patch that names another uid is not right, where a replacement would be in conflict.
    for field in ["name", "uid"] {
        if given(field).is_some_and(|value| old["metadata"][field] != value) {
            let cause =
                Cause::invalid(format!("metadata.{field}"), &metadata[field], "field is immutable");
            return Err(Status::invalid(resource, &key.name, &[cause]));
        }
    }
    if manager.subresource == "status" {
        let mut whole = old.clone();
        whole["status"] = new["status"].take();
        return Ok(whole);
    }
    for name in UNCHANGED {
        match old["metadata"].get(name) {
            Some(value) => metadata.insert((*name).into(), value.clone()),
            None => metadata.remove(*name),
        };
    }
    new["apiVersion"] = resource.api_version().into();
    new["kind"] = resource.name.into();
    if resource.status {
        let object = new.as_object_mut().expect("an object with metadata is a map");
        match old.get("status") {
            Some(status) => object.insert("status".into(), status.clone()),
            None => object.remove("status"),
        };
    }
    Ok(new)
}

/// What of the metadata no write changes.
const UNCHANGED: &[&str] = &[
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generateName",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
];

pub(super) fn precondition(
    key: &Key,
    old: &Value,
    what: &str,
    field: &str,
    wanted: Option<&str>,
) -> Result<(), Status> {
    let present = old["metadata"][field].as_str().unwrap_or_default();
    match wanted {
        Some(wanted) if wanted != present => {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {present}"
            );
            Err(Status::conflict_because(key.resource(), &key.name, &why))
        }
        _ => Ok(()),
    }
}

/// Returns which fields others own that a configuration has otherwise: the manager and the field.
fn conflicts(
    owners: &Owners,
    owner: &Manager,
    old: &Value,
    config: &Value,
    applied: &Fields,
) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for path in applied.iter().filter(|path| fields::at(old, path) != fields::at(config, path)) {
        if path.last().is_some_and(|step| step == ".") {
            continue;
        }
        for other in owners.others(owner, path) {
            let who = match other.applies {
                true => format!("\"{}\"", other.name),
                false => format!("\"{}\" using {}", other.name, api_version(config)),
            };
            found.push((who, fields::shown(path)));
        }
    }
    found.sort();
    found
}

fn api_version(config: &Value) -> &str {
    config["apiVersion"].as_str().unwrap_or("v1")
}

/// Returns whether a pod has to be ended before it can go.
fn runs(pod: &Value) -> bool {
    let phase = pod.pointer("/status/phase").and_then(Value::as_str);
    let bound = pod.pointer("/spec/nodeName").and_then(Value::as_str);
    bound.is_some_and(|node| !node.is_empty()) && !matches!(phase, Some("Succeeded" | "Failed"))
}

fn uid() -> String {
    let hex = crate::random(b"0123456789abcdef", 30);
    format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[12..15], &hex[15..18], &hex[18..30])
}
