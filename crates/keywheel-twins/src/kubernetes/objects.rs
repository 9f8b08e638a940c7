//! The objects of the cluster: one store with one counter of versions, its history, and who watches it.
//!
//! Everything here is done under one lock and waits for nothing. The server writes what clients send through it, and controllers
//! write through it as if they were clients.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, watch};

use super::fields::{self, Fields, Manager, Owners};
use super::kinds::{Kind, Resource};
use super::patch;
use super::rules;
use super::status::{Cause, Status};

/// The name of one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; none for an object of the cluster.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl Key {
    /// Names an object in a namespace.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: Some(namespace.into()), name: name.into() }
    }

    /// Names an object of the cluster.
    pub fn of_cluster(kind: Kind, name: &str) -> Self {
        Self { kind, namespace: None, name: name.into() }
    }

    /// Returns the name of an object that is at hand.
    pub fn of(kind: Kind, object: &Value) -> Self {
        let text = |at| object.pointer(at).and_then(Value::as_str).map(str::to_owned);
        let namespace = text("/metadata/namespace").filter(|_| kind.resource().namespaced);
        Self { kind, namespace, name: text("/metadata/name").unwrap_or_default() }
    }

    fn resource(&self) -> &'static Resource {
        self.kind.resource()
    }

    fn is_in(&self, kind: Kind, namespace: Option<&str>) -> bool {
        self.kind == kind && namespace.is_none_or(|name| self.namespace.as_deref() == Some(name))
    }
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// It is new, or a watch sees it for the first time.
    Added,
    /// It changed.
    Modified,
    /// It is gone.
    Deleted,
}

/// What a watch tells.
#[derive(Clone, Debug)]
pub struct Event {
    /// What happened.
    pub what: EventType,
    /// The object as it is now, or as it was at the last.
    pub object: Arc<Value>,
    /// The object as it was before.
    pub previous: Option<Arc<Value>>,
}

/// How a client writes.
#[derive(Clone, Copy, Debug, Default)]
pub struct How<'a> {
    /// The name under which it owns fields.
    pub manager: &'a str,
    /// The sub-resource: `status`, `scale`, or empty for the object itself.
    pub subresource: &'a str,
    /// Whether nothing is kept of it.
    pub dry_run: bool,
}

/// How an object is to be deleted.
#[derive(Clone, Debug, Default)]
pub struct Deletion {
    /// The uid that it must have.
    pub uid: Option<String>,
    /// The version that it must have.
    pub resource_version: Option<String>,
    /// How long a pod may take to end; none for what its spec says, 0 for at once.
    pub grace_seconds: Option<u64>,
    /// Whether what it owns stays.
    pub orphan: bool,
    /// Whether nothing is kept of it.
    pub dry_run: bool,
}

impl Deletion {
    /// Deletes at once, whatever a pod still does.
    pub fn now() -> Self {
        Self { grace_seconds: Some(0), ..Self::default() }
    }
}

/// The objects of one cluster. Clones share them.
#[derive(Clone)]
pub struct Objects(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    history: VecDeque<Change>,
    /// The last version of which the history no longer tells.
    forgotten: u64,
    watchers: Vec<Watcher>,
}

struct Change {
    revision: u64,
    at: Instant,
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

impl Default for Objects {
    fn default() -> Self {
        Self::new()
    }
}

impl Objects {
    /// Makes the objects of a fresh cluster: its namespaces.
    pub fn new() -> Self {
        let (changed, _) = watch::channel(0);
        let objects = Self(Arc::new(Inner { state: Mutex::default(), changed }));
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            objects.make_namespace(name);
        }
        objects
    }

    /// Makes a namespace, unless it is there.
    pub fn make_namespace(&self, name: &str) {
        // It fails only where the namespace is there already.
        self.create(Kind::Namespace, json!({ "metadata": { "name": name } }), "kube-apiserver")
            .ok();
    }

    /// Returns an object.
    pub fn get(&self, key: &Key) -> Option<Arc<Value>> {
        self.lock().objects.get(key).cloned()
    }

    /// Returns the objects of a kind, of one namespace or of all, and the version of the list.
    pub fn list(&self, kind: Kind, namespace: Option<&str>) -> (Vec<Arc<Value>>, u64) {
        let state = self.lock();
        let found = state.objects.iter().filter(|(key, _)| key.is_in(kind, namespace));
        (found.map(|(_, object)| Arc::clone(object)).collect(), state.revision)
    }

    /// Returns an object as it was at a version.
    pub fn get_at(&self, key: &Key, revision: u64) -> Option<Arc<Value>> {
        self.lock().at(revision).get(key).cloned()
    }

    /// Returns the objects of a kind as they were at a version.
    ///
    /// # Errors
    /// Where the history no longer tells.
    pub fn list_at(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        revision: u64,
    ) -> Result<Vec<Arc<Value>>, Status> {
        let state = self.lock();
        if revision < state.forgotten {
            return Err(Status::expired(revision, state.forgotten));
        }
        let objects = state.at(revision);
        let found = objects.iter().filter(|(key, _)| key.is_in(kind, namespace));
        Ok(found.map(|(_, object)| Arc::clone(object)).collect())
    }

    /// Returns the version that the cluster had a while ago, as far as the history tells.
    pub fn revision_before(&self, ago: Duration) -> u64 {
        let state = self.lock();
        let later = state.history.iter().find(|change| change.at.elapsed() < ago);
        later.map_or(state.revision, |change| change.revision - 1)
    }

    /// Returns the present version of the cluster.
    pub fn revision(&self) -> u64 {
        self.lock().revision
    }

    /// Makes an object.
    ///
    /// # Errors
    /// Where it is there already, its namespace is not, or it is not right.
    pub fn create(&self, kind: Kind, object: Value, manager: &str) -> Result<Arc<Value>, Status> {
        self.create_as(kind, object, How { manager, ..How::default() })
    }

    /// Makes an object, as a client says.
    ///
    /// # Errors
    /// As for [`Objects::create`].
    pub fn create_as(&self, kind: Kind, object: Value, how: How) -> Result<Arc<Value>, Status> {
        let owner = Manager::updating(how);
        self.write(how.dry_run, |state| state.create(kind, object, &owner, None))
    }

    /// Replaces an object, but not its status.
    ///
    /// # Errors
    /// Where it is gone, its `resourceVersion` is given and is not the present one, or it is not right.
    pub fn update(&self, kind: Kind, object: Value, manager: &str) -> Result<Arc<Value>, Status> {
        self.put(&Key::of(kind, &object), How { manager, ..How::default() }, object)
    }

    /// Replaces the status of an object.
    ///
    /// # Errors
    /// As for [`Objects::update`].
    pub fn update_status(
        &self,
        kind: Kind,
        object: Value,
        manager: &str,
    ) -> Result<Arc<Value>, Status> {
        let how = How { manager, subresource: "status", dry_run: false };
        self.put(&Key::of(kind, &object), how, object)
    }

    /// Changes an object, but not its status, from what it is now.
    ///
    /// # Errors
    /// Where it is gone or would not be right.
    pub fn change(
        &self,
        key: &Key,
        manager: &str,
        edit: impl FnOnce(&mut Value),
    ) -> Result<Arc<Value>, Status> {
        self.modify(key, How { manager, ..How::default() }, |present| Ok(edited(present, edit)))
    }

    /// Changes the status of an object from what it is now; the edit is given the whole object.
    ///
    /// # Errors
    /// As for [`Objects::change`].
    pub fn change_status(
        &self,
        key: &Key,
        manager: &str,
        edit: impl FnOnce(&mut Value),
    ) -> Result<Arc<Value>, Status> {
        let how = How { manager, subresource: "status", dry_run: false };
        self.modify(key, how, |present| Ok(edited(present, edit)))
    }

    /// Replaces an object, as a client says.
    ///
    /// # Errors
    /// As for [`Objects::update`]; also where its `uid` is given and is not the present one.
    pub fn put(&self, key: &Key, how: How, object: Value) -> Result<Arc<Value>, Status> {
        self.modify(key, how, |present| {
            let uid = object["metadata"]["uid"].as_str().filter(|uid| !uid.is_empty());
            precondition(key, present, "UID", "uid", uid)?;
            Ok(object)
        })
    }

    /// Replaces an object by what is made of the present one.
    ///
    /// # Errors
    /// What the maker refuses, and as for [`Objects::update`].
    pub fn modify(
        &self,
        key: &Key,
        how: How,
        make: impl FnOnce(&Value) -> Result<Value, Status>,
    ) -> Result<Arc<Value>, Status> {
        let owner = Manager::updating(how);
        self.write(how.dry_run, |state| {
            let old = state.present(key)?;
            let new = make(&old)?;
            state.replace(key, &old, new, Ownership::Take(&owner))
        })
    }

    /// Applies a configuration as a server-side apply does; tells whether the object is new.
    ///
    /// # Errors
    /// Where others own fields that it changes, unless it is forced, and as for [`Objects::update`].
    pub fn apply(
        &self,
        key: &Key,
        config: &Value,
        how: How,
        force: bool,
        admit: impl FnOnce(&mut Value),
    ) -> Result<(Arc<Value>, bool), Status> {
        let owner = Manager { applies: true, ..Manager::updating(how) };
        self.write(how.dry_run, |state| state.apply(key, config, &owner, force, admit))
    }

    /// Deletes an object and what it owns. A pod that runs only begins to end: the kubelet deletes it at last.
    ///
    /// # Errors
    /// Where it is gone or is not the one that is meant.
    pub fn delete(&self, key: &Key, deletion: &Deletion) -> Result<Arc<Value>, Status> {
        self.write(deletion.dry_run, |state| state.delete(key, deletion))
    }

    /// Deletes an object and makes it again with the same content, as somebody does behind one's back: it has another uid.
    pub fn recreate(&self, key: &Key) {
        let Some(mut object) = self.get(key).map(|object| (*object).clone()) else { return };
        // Nobody else deletes it in between but with the same outcome.
        self.delete(key, &Deletion::now()).ok();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.retain(|name, _| !matches!(name.as_str(), "uid" | "resourceVersion"));
        }
        self.create(key.kind, object, "kubectl-create").ok();
    }

    /// Tells everything that happens to a kind from a version on; from 0, first what there is.
    ///
    /// # Errors
    /// Where the history no longer tells.
    pub fn watch(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        since: u64,
    ) -> Result<mpsc::UnboundedReceiver<Event>, Status> {
        self.lock().watch(kind, namespace, since)
    }

    /// Tells whenever anything changed: the version of the cluster.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Forgets the history, so that a watch or a list from an older version is refused (410).
    pub fn forget(&self) {
        let mut state = self.lock();
        state.revision += 1;
        state.forgotten = state.revision;
        state.history.clear();
    }

    /// Ends every watch.
    pub fn drop_watches(&self) {
        self.lock().watchers.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write<T>(
        &self,
        dry_run: bool,
        write: impl FnOnce(&mut State) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let mut state = self.lock();
        if dry_run {
            let mut copy = State {
                revision: state.revision,
                objects: state.objects.clone(),
                ..State::default()
            };
            return write(&mut copy);
        }
        let before = state.revision;
        let done = write(&mut state);
        let after = state.revision;
        drop(state);
        if after != before {
            self.0.changed.send_replace(after);
        }
        done
    }
}

impl Manager {
    fn updating(how: How) -> Self {
        let subresource = how.subresource.into();
        Self { name: how.manager.into(), applies: false, subresource }
    }
}

/// Who owns what after a write.
enum Ownership<'a> {
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
    fn present(&self, key: &Key) -> Result<Arc<Value>, Status> {
        let found = self.objects.get(key).cloned();
        found.ok_or_else(|| Status::not_found(key.resource(), &key.name))
    }

    /// Returns the objects as they were at a version.
    fn at(&self, revision: u64) -> BTreeMap<Key, Arc<Value>> {
        let mut objects = self.objects.clone();
        for change in self.history.iter().rev().take_while(|change| change.revision > revision) {
            match &change.event.previous {
                Some(previous) => objects.insert(change.key.clone(), Arc::clone(previous)),
                None => objects.remove(&change.key),
            };
        }
        objects
    }

    fn create(
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

    fn replace(
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

    fn apply(
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

    fn delete(&mut self, key: &Key, deletion: &Deletion) -> Result<Arc<Value>, Status> {
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

    fn watch(
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

fn precondition(
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

fn edited(present: &Value, edit: impl FnOnce(&mut Value)) -> Value {
    let mut object = present.clone();
    edit(&mut object);
    object
}

/// Returns an instant as the server writes it, in whole seconds.
pub fn timestamp(at: jiff::Timestamp) -> String {
    let second = jiff::Timestamp::from_second(at.as_second()).unwrap_or(at);
    second.to_string()
}

fn uid() -> String {
    let hex = crate::random(b"0123456789abcdef", 30);
    format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[12..15], &hex[15..18], &hex[18..30])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str) -> Value {
        json!({ "metadata": { "name": name, "namespace": "default" }, "data": { "a": "MQ==" } })
    }

    fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> u16 {
        result.unwrap_err().code
    }

    #[test]
    fn a_write_that_changes_nothing_keeps_the_version() {
        let objects = Objects::new();
        let made = objects.create(Kind::Secret, secret("x"), "me").unwrap();
        assert_eq!(objects.update(Kind::Secret, (*made).clone(), "you").unwrap(), made);
        let key = Key::new(Kind::Secret, "default", "x");
        let changed = objects.change(&key, "you", |o| o["data"]["a"] = "Mg==".into()).unwrap();
        assert_ne!(changed["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
        assert_eq!(code(objects.update(Kind::Secret, (*made).clone(), "you")), 409);
        assert_eq!(code(objects.create(Kind::Secret, secret("x"), "me")), 409);
    }

    #[test]
    fn a_watch_tells_what_happened_since_and_refuses_what_is_forgotten() {
        let objects = Objects::new();
        let (_, since) = objects.list(Kind::Secret, None);
        objects.create(Kind::Secret, secret("x"), "me").unwrap();
        let mut watch = objects.watch(Kind::Secret, Some("default"), since).unwrap();
        let key = Key::new(Kind::Secret, "default", "x");
        objects.delete(&key, &Deletion::default()).unwrap();
        let told = [watch.try_recv().unwrap().what, watch.try_recv().unwrap().what];
        assert_eq!(told, [EventType::Added, EventType::Deleted]);
        objects.forget();
        assert_eq!(code(objects.watch(Kind::Secret, None, since).map(drop)), 410);
    }

    #[test]
    fn what_an_object_owned_goes_with_it_and_a_running_pod_takes_its_time() {
        let objects = Objects::new();
        let owner = objects.create(Kind::ConfigMap, secret("owner"), "me").unwrap();
        let mut pod = secret("pod");
        pod["metadata"]["ownerReferences"] = json!([{ "uid": owner["metadata"]["uid"], "name": "owner", "kind": "ConfigMap", "apiVersion": "v1" }]);
        pod["spec"] =
            json!({ "nodeName": "node", "containers": [{ "name": "app", "image": "x" }] });
        objects.create(Kind::Pod, pod, "me").unwrap();
        objects.delete(&Key::of(Kind::ConfigMap, &owner), &Deletion::default()).unwrap();
        let key = Key::new(Kind::Pod, "default", "pod");
        assert_eq!(objects.get(&key).unwrap()["metadata"]["deletionGracePeriodSeconds"], 30);
        objects.delete(&key, &Deletion::now()).unwrap();
        assert_eq!(objects.get(&key), None);
    }
}
