//! `versioned`: a new, immutable Secret for each write, and a head that names the current one.
//!
//! The head moves by compare-and-set, after the Secret is there. So a write that is cut off leaves at most a Secret that nobody
//! names, which the next write finds by its number and uses, if it holds what is to be written.

use std::collections::BTreeMap;

use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_driver::store::{Edit, Written};
use keywheel_driver::{CallError, RefusalKind};
use serde::Deserialize;
use serde_json::{Value, json};

use super::object::{Data, New, NewMetadata, Object, same};
use super::{RACES, Secret, claim, marks};
use crate::http::Effect;
use crate::kubernetes::{Access, Change, Head, Place};
use crate::secret_json;

/// The annotation that says which Secret a version is one of.
const VERSION_OF: &str = "keywheel.dev/version-of";

/// How many names are tried for a new version, where others have taken some.
const NAMES: u64 = 16;

/// How many former versions are looked at on the way back.
const LOOKED_BACK: usize = 8;

/// Where something may name a Secret: what runs, what may run again, and the histories to which one goes back.
pub(super) const REFERRERS: [(&str, &str); 9] = [
    ("", "pods"),
    ("", "serviceaccounts"),
    ("apps", "deployments"),
    ("apps", "statefulsets"),
    ("apps", "daemonsets"),
    ("apps", "replicasets"),
    ("apps", "controllerrevisions"),
    ("batch", "jobs"),
    ("batch", "cronjobs"),
];

#[derive(Deserialize)]
pub(super) struct List {
    pub(super) items: Vec<Value>,
}

impl Secret {
    /// Reads which versions there are.
    pub(super) async fn head(&self) -> Result<Head, CallError> {
        Head::read(&self.cluster, &self.namespace, &self.name).await
    }

    pub(super) async fn claim_of_head(&self) -> Result<Option<String>, CallError> {
        Ok(self.head().await?.claim)
    }

    pub(super) async fn write_version(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        for _ in 0..RACES {
            let mut head = self.head().await?;
            self.check_owner(claim::Found(head.claim.as_deref()))?;
            let present = self.object(&head.current).await?;
            if present.is_none() && !(self.create && head.current == self.name) {
                return Err(self.is_missing(&head.current).into());
            }
            let due = self.due(edits, present.as_ref())?;
            if due.is_empty() {
                return Ok(Written { changed: false });
            }
            let wanted = with(present.as_ref(), &due);
            self.check_size(wanted.values().map(|value| value.expose().len()))?;
            let name = match self.holding(&head, &wanted).await? {
                Some(name) => name,
                None => self.make_version(&mut head, present.as_ref(), &wanted).await?,
            };
            if !head.known.contains(&name) {
                head.known.push(name.clone());
            }
            head.current = name;
            if head.write(&self.cluster, &self.namespace, &self.name).await? {
                return Ok(Written { changed: true });
            }
        }
        Err(self.is_busy().into())
    }

    /// Returns a known version that holds exactly this: the way back makes no new one.
    async fn holding(&self, head: &Head, wanted: &Data) -> Result<Option<String>, CallError> {
        let others = head.known.iter().rev().filter(|name| **name != head.current);
        for name in others.take(LOOKED_BACK) {
            let Some(object) = self.object(name).await? else { continue };
            let stays = object.immutable || *name == self.name;
            if stays && object.metadata.deletion_timestamp.is_none() && same(&object.data, wanted) {
                return Ok(Some(name.clone()));
            }
        }
        Ok(None)
    }

    /// Makes the next version, or finds it made by a write whose answer was lost. Names that others took join the known ones, so
    /// that they are cleaned up one day.
    async fn make_version(
        &self,
        head: &mut Head,
        present: Option<&Object>,
        wanted: &Data,
    ) -> Result<String, CallError> {
        let first = head.known.iter().filter_map(|name| self.number(name)).max().unwrap_or(0) + 1;
        for number in first..first + NAMES {
            let name = self.version_name(number);
            let body = match present {
                Some(object) => self.version_of(object, &name, wanted),
                None => self.first_version(&name, wanted),
            };
            let answer =
                self.cluster.change(&self.secrets(), &Change::Create(&body), false).await?;
            match answer.status.as_u16() {
                _ if answer.status.is_success() => return Ok(name),
                409 => {}
                _ => return Err(answer.error(Effect::Changes)),
            }
            let Some(taken) = self.object(&name).await? else { continue };
            if self.is_ours(&taken) {
                if same(&taken.data, wanted) {
                    return Ok(name);
                }
                head.known.push(name);
            }
        }
        let why = format!("others took all of the next {NAMES} names for a version");
        Err(self.refused(RefusalKind::Conflict, &why).into())
    }

    fn version_name(&self, number: u64) -> String {
        format!("{}-v{number}", self.name)
    }

    /// Returns the name under which a new version is tried out.
    pub(super) fn rehearsal(&self) -> String {
        format!("{}-rehearsal", self.name)
    }

    fn number(&self, version: &str) -> Option<u64> {
        version.strip_prefix(&self.name)?.strip_prefix("-v")?.parse().ok()
    }

    fn is_ours(&self, object: &Object) -> bool {
        object.immutable
            && object.metadata.deletion_timestamp.is_none()
            && object.annotation(VERSION_OF) == Some(&self.name)
    }

    /// Copies a Secret under another name and with other values, without the marks of who made or deploys it: a deployer would
    /// delete what it does not know.
    pub(super) fn version_of(&self, object: &Object, name: &str, data: &Data) -> SecretValue {
        let labels = object.metadata.labels.iter();
        let labels = labels.filter(|(name, _)| !marks::is_mark(name));
        let labels = labels.map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let names = object.metadata.annotations.keys().map(String::as_str);
        let copied = names.filter(|name| !marks::is_mark(name) || planted!("annotations_copied"));
        let mut annotations: BTreeMap<_, _> =
            copied.filter_map(|name| Some((name, object.annotation(name)?))).collect();
        annotations.insert(VERSION_OF, &self.name);
        let metadata = NewMetadata { name, labels, annotations };
        secret_json::write(&New::of(metadata, &object.kind, true, data))
    }

    fn first_version(&self, name: &str, data: &Data) -> SecretValue {
        let annotations = BTreeMap::from([(VERSION_OF, self.name.as_str())]);
        let metadata = NewMetadata { name, labels: BTreeMap::new(), annotations };
        secret_json::write(&New::of(metadata, "Opaque", true, data))
    }

    /// What an account needs to clean up.
    pub(super) fn to_clean_up(&self) -> Vec<Access<'_>> {
        let lists = REFERRERS.map(|(group, resource)| Access {
            verb: "list",
            place: Place::of(group, "v1", resource).within(&self.namespace),
        });
        lists.into_iter().chain([Access { verb: "delete", place: self.secrets() }]).collect()
    }

    /// Deletes versions that nothing names any more, and says of the others who does.
    pub(super) async fn clean_up_versions(&self) -> Result<Vec<String>, CallError> {
        let mut head = self.head().await?;
        self.check_owner(claim::Found(head.claim.as_deref()))?;
        let old = head.known.iter().filter(|name| **name != head.current && **name != self.name);
        let old: Vec<String> = old.cloned().collect();
        if old.is_empty() {
            return Ok(Vec::new());
        }
        let mut notes = Vec::new();
        let mut unnamed = Vec::new();
        let referrers = self.referrers().await?;
        for name in old {
            match referrers.iter().find(|(_, text)| names(text, &name)) {
                Some((who, _)) if !planted!("referrers_unseen") => {
                    let named = self.named(&name);
                    notes.push(format!("{named} stays, since {who} names it"));
                }
                _ => unnamed.push(name),
            }
        }
        // Nobody goes back to what the head does not know; only then it is deleted.
        head.known.retain(|name| !unnamed.contains(name));
        if unnamed.is_empty() || !head.write(&self.cluster, &self.namespace, &self.name).await? {
            return Ok(notes);
        }
        for name in unnamed {
            self.delete(&name).await?;
        }
        Ok(notes)
    }

    /// Returns everything in the namespace that may name a Secret: who it is, and its text.
    async fn referrers(&self) -> Result<Vec<(String, String)>, CallError> {
        let mut found = Vec::new();
        for (group, resource) in REFERRERS {
            let place = Place::of(group, "v1", resource).within(&self.namespace);
            let list: List = self.cluster.read(&place).await?;
            for mut item in list.items {
                let name = item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                if let Some(metadata) = item["metadata"].as_object_mut() {
                    metadata.remove("managedFields");
                }
                found.push((format!("`{resource}/{name}`"), item.to_string()));
            }
        }
        Ok(found)
    }

    async fn delete(&self, name: &str) -> Result<(), CallError> {
        let Some(object) = self.object(name).await? else { return Ok(()) };
        if !self.is_ours(&object) {
            return Ok(());
        }
        let options = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": { "uid": object.metadata.uid },
        });
        let body = SecretValue::new(options.to_string().into_bytes());
        let place = self.secrets().named(name);
        let answer = self.cluster.change(&place, &Change::Delete(&body), false).await?;
        match answer.status.as_u16() {
            404 | 409 => Ok(()),
            _ if answer.status.is_success() => Ok(()),
            _ => Err(answer.error(Effect::Changes)),
        }
    }
}

/// Returns what a Secret holds after these edits.
fn with(present: Option<&Object>, due: &[&Edit<'_>]) -> Data {
    let held = present.into_iter().flat_map(|object| &object.data);
    let mut data: Data = held.map(|(key, value)| (key.clone(), value.duplicate())).collect();
    for edit in due {
        match edit.value {
            Some(value) => data.insert(edit.address.to_owned(), value.duplicate()),
            None => data.remove(edit.address),
        };
    }
    data
}

/// Whether a text names a Secret: as a whole word, wherever it stands. One that is kept for nothing does less harm than one that
/// is missed.
fn names(text: &str, secret: &str) -> bool {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    text.split(|c| !is_part(c)).any(|word| word == secret)
}
