//! The objects of the cluster: one store with one counter of versions, its history, and who watches it.
//!
//! Everything here is done under one lock and waits for nothing. The server writes what clients send through it, and controllers
//! write through it as if they were clients.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::fields::Manager;
use super::kinds::{Kind, Resource};
use super::status::Status;
use super::store::{Ownership, State, precondition};

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

    pub(super) fn resource(&self) -> &'static Resource {
        self.kind.resource()
    }

    pub(super) fn is_in(&self, kind: Kind, namespace: Option<&str>) -> bool {
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
        self.lock().forget();
    }

    /// Ends every watch.
    pub fn drop_watches(&self) {
        self.lock().drop_watches();
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
            return write(&mut state.tried());
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
