//! `versioned`: a new, immutable Secret for each write, and a head that names the current one.
//!
//! The head moves by compare-and-set, after the Secret is there. So a write that is cut off leaves at most a Secret that nobody
//! names, which the next write finds by its number and uses, if it holds what is to be written.

use std::collections::BTreeMap;

use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_driver::store::{Edit, Written};
use keywheel_driver::{CallError, Refusal, RefusalKind};
use serde::Deserialize;
use serde_json::{Value, json};

use super::object::{Data, New, NewMetadata, Object, same};
use super::{RACES, Secret, claim, marks};
use crate::http::Effect;
use crate::kubernetes::{Access, Answer, Change, Head, Place, VERSION_OF, number_of};
use crate::secret_json;
use crate::workload::kubernetes::RUNNERS;

/// The annotation on the Secret that was there first, which says that another one is current: without it, a head that somebody
/// deletes would be made anew from values that are long gone.
pub(super) const VERSIONS: &str = "keywheel.dev/versions";

/// How many names are tried for a new version, where others have taken some.
const NAMES: u64 = 16;

/// How many former versions are looked at on the way back.
const LOOKED_BACK: usize = 8;

/// What names Secrets beside what makes pods: accounts, older makers, and the histories to which one goes back.
const NAMES_SECRETS: [(&str, &str, &str); 4] = [
    ("", "serviceaccounts", "ServiceAccount"),
    ("", "replicationcontrollers", "ReplicationController"),
    ("apps", "controllerrevisions", "ControllerRevision"),
    ("networking.k8s.io", "ingresses", "Ingress"),
];

/// Lists where something may name a Secret: the group, the name in paths, and the kind.
pub(super) fn referrers() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    RUNNERS.into_iter().chain(NAMES_SECRETS)
}

#[derive(Deserialize)]
pub(super) struct List {
    pub(super) items: Vec<Value>,
}

impl Secret {
    /// Reads which versions there are.
    pub(super) async fn head(&self) -> Result<Head, CallError> {
        let head = Head::read(&self.cluster, &self.namespace, &self.name).await?;
        if head.tells_of_none(&self.name) && !planted!("lost_head_is_made_anew") {
            self.check_never_versioned().await?;
        }
        Ok(head)
    }

    async fn check_never_versioned(&self) -> Result<(), CallError> {
        let first = self.object(&self.name).await?;
        if first.is_none_or(|first| first.annotation(VERSIONS).is_none()) {
            return Ok(());
        }
        let (head, name) = (&self.head, &self.name);
        let why = format!(
            "it has versions, and ConfigMap `{head}`, which names the current one, is gone: restore that, with `data: {{current: {name}-vN, last: \"M\"}}`, where `{name}-vN`, or `{name}` itself, is what readers name, and M the highest number that a version ever had, since a number is given once"
        );
        Err(self.refused(RefusalKind::NotFound, &why).into())
    }

    /// Returns the Secret that a head names as the current one: none where there is none yet, and the first may be made.
    pub(super) async fn current_version(&self, head: &Head) -> Result<Option<Object>, CallError> {
        let name = &head.current;
        match self.object(name).await? {
            None if *name != self.name => Err(self.is_deleted(head).await?.into()),
            None if !self.create => Err(self.is_missing().into()),
            Some(object) if *name != self.name && !self.is_version(&object) => {
                let why = format!(
                    "ConfigMap `{}` names Secret `{name}` as its current version, and that is none: correct `data.current` there",
                    self.head
                );
                Err(self.refused(RefusalKind::Conflict, &why).into())
            }
            found => Ok(found),
        }
    }

    /// Says that the current version is gone, and which way leads out.
    async fn is_deleted(&self, head: &Head) -> Result<Refusal, CallError> {
        let mut there = Vec::new();
        for name in head.known.iter().rev().take(LOOKED_BACK) {
            if self.object(name).await?.is_some() {
                there.push(name.as_str());
            }
        }
        let (gone, map) = (self.named(&head.current), &self.head);
        let way = match there.first() {
            Some(last) => format!(
                "`{}` is there: make one current with {}, and let `keywheel doctor` compare what it holds",
                there.join("`, `"),
                self.makes_current(last)
            ),
            None => format!(
                "no other version is there: make Secret `{}` with its values, and then current with {}",
                self.name,
                self.makes_current(&self.name)
            ),
        };
        let why = format!(
            "{gone} does not exist, and ConfigMap `{map}` names it as the current version; somebody deleted it; {way}"
        );
        Ok(Refusal::operator(RefusalKind::NotFound, why))
    }

    /// Returns what makes a Secret the current one. The ConfigMap stays: it says which numbers were given already.
    fn makes_current(&self, name: &str) -> String {
        let (kubectl, map) = (self.cluster.kubectl(&self.namespace), &self.head);
        format!(
            "`{kubectl} patch configmap {map} --type merge --patch '{{\"data\":{{\"current\":\"{name}\"}}}}'`"
        )
    }

    /// Says that the keys of a Secret are read from its versions, and not from itself.
    pub(super) fn has_versions(&self, object: &Object) -> Option<String> {
        object.annotation(VERSIONS)?;
        let why = format!(
            "it is kept in versions, of which ConfigMap `{}` names the current one: set `approach: versioned`; if its readers name `{}` itself again, remove the annotation `{VERSIONS}` from it, and say so with {}",
            self.head,
            self.name,
            self.makes_current(&self.name)
        );
        Some(self.refused(RefusalKind::Conflict, &why).message)
    }

    /// Marks the Secret that was there first. What comes of it changes nothing for the write that was done.
    async fn mark_first(&self) {
        let Ok(Some(first)) = self.object(&self.name).await else { return };
        if first.annotation(VERSIONS).is_some() {
            return;
        }
        let annotations = BTreeMap::from([(VERSIONS, Some(self.head.clone()))]);
        let patch = self.patch_of(&first, BTreeMap::new(), annotations);
        let place = self.secrets().named(&self.name);
        drop(self.cluster.change(&place, &Change::Merge(&patch), false).await);
    }

    pub(super) async fn claim_of_head(&self) -> Result<Option<String>, CallError> {
        Ok(self.head().await?.claim)
    }

    pub(super) async fn write_version(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        for _ in 0..RACES {
            let mut head = self.head().await?;
            self.check_owner(claim::Found(head.claim.as_deref()))?;
            let present = self.current_version(&head).await?;
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
                self.mark_first().await;
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
            let stays = self.is_version(&object) || *name == self.name;
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
        let known = head.known.iter().filter_map(|name| number_of(name, &self.name));
        let known = known.max().unwrap_or(0);
        // A number is given once: nodes keep what an immutable Secret of a name held.
        let last = if planted!("numbers_are_given_again") { known } else { known.max(head.last) };
        for number in last + 1..=last + NAMES {
            let name = self.version_name(number);
            head.last = number;
            let body = match present {
                Some(object) => self.version_of(object, &name, wanted),
                None => self.first_version(&name, wanted),
            };
            let answer =
                self.cluster.change(&self.secrets(), &Change::Create(&body), false).await?;
            match answer.status.as_u16() {
                _ if answer.status.is_success() => {
                    self.check_made(&answer, &name, wanted).await?;
                    return Ok(name);
                }
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

    /// Looks at what the server says it made: an admission webhook may have changed it on the way. Nobody reads it yet, so it is
    /// taken away again.
    async fn check_made(
        &self,
        answer: &Answer,
        name: &str,
        wanted: &Data,
    ) -> Result<(), CallError> {
        let made: Object = answer.decode()?;
        if same(&made.data, wanted) && self.is_version(&made) {
            return Ok(());
        }
        drop(self.remove(name, &made).await);
        let why = "the cluster made something else of a new version than was asked for; an admission webhook may change it";
        Err(self.refused(RefusalKind::Unsupported, why).into())
    }

    fn version_name(&self, number: u64) -> String {
        format!("{}-v{number}", self.name)
    }

    /// Returns the name under which a new version is tried out.
    pub(super) fn rehearsal(&self) -> String {
        format!("{}-rehearsal", self.name)
    }

    fn is_ours(&self, object: &Object) -> bool {
        object.metadata.deletion_timestamp.is_none() && self.is_version(object)
    }

    fn is_version(&self, object: &Object) -> bool {
        object.immutable && object.annotation(VERSION_OF) == Some(&self.name)
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

    /// Lists what is asked of the cluster.
    pub(super) fn wanted_for_versions(&self) -> Vec<Access<'_>> {
        const STAY: &str = "old versions stay";
        let (secrets, maps) = (self.secrets(), Place::core("configmaps").within(&self.namespace));
        let (first, head) = (secrets.named(&self.name), maps.named(&self.head));
        let needed = [
            ("get", secrets),
            ("create", secrets),
            ("get", head),
            ("create", maps),
            ("patch", head),
        ];
        let needed = needed.map(|(verb, place)| Access::needed(verb, place));
        let lists = referrers().map(|(group, resource, _)| {
            Access::wanted("list", Place::of(group, "v1", resource).within(&self.namespace), STAY)
        });
        let unmarked = "it would not be missed if somebody deleted that ConfigMap";
        let others =
            [Access::wanted("delete", secrets, STAY), Access::wanted("patch", first, unmarked)];
        needed.into_iter().chain(lists).chain(others).collect()
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
        let numbers = head.known.iter().filter_map(|name| number_of(name, &self.name));
        head.last = numbers.max().unwrap_or(0).max(head.last);
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
        for (group, resource, _) in referrers() {
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
        match self.object(name).await? {
            Some(object) if self.is_ours(&object) => self.remove(name, &object).await,
            _ => Ok(()),
        }
    }

    /// Deletes this one Secret, and not another one that got its name meanwhile.
    async fn remove(&self, name: &str, object: &Object) -> Result<(), CallError> {
        let options = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": { "uid": object.metadata.uid },
        });
        let body = SecretValue::new(options.to_string().into_bytes());
        let place = self.secrets().named(name);
        let answer = self.cluster.change(&place, &Change::Delete(&body), false).await?;
        match answer.status.as_u16() {
            409 => Ok(()),
            _ if answer.status.is_success() || answer.is_absent() => Ok(()),
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
    words(text).any(|word| word == secret)
}

/// Lists what of a text may be the name of an object.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    text.split(move |c| !is_part(c))
}
