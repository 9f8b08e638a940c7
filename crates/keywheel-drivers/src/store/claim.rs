//! The claim on a file of this machine: a small file beside it, which says in JSON which installation writes it (H61).
//!
//! It is made and compared under the lock of the folder that every writer takes, and appears whole or not at all. It is hidden,
//! and called after its file, so that what hides `.env*` from git and from images hides it too. It holds no value and may be
//! read by every user: who is refused is told by whom.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::AtomicBool;

use async_trait::async_trait;
use keywheel_driver::{CallError, Claim, Claims, Owner, Refusal};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::local;
use super::replace::{LocalFile, Place, lock, refused};

/// The version of a claim's form.
const FORM: u16 = 1;

/// The most of a claim that is read.
const LARGEST: u64 = 64 * 1024;

const READABLE: Mode = Mode::RUSR.union(Mode::WUSR).union(Mode::RGRP).union(Mode::ROTH);

/// A claim as it stands in its file.
#[derive(Serialize, Deserialize)]
struct Written {
    keywheel_claim: u16,
    /// For whoever wonders what the file is; it is not read.
    #[serde(default)]
    about: String,
    #[serde(flatten)]
    claim: Claim,
}

/// A file whose claim is ours, nobody's, or another's.
pub(super) struct Claimed {
    pub(super) file: LocalFile,
    pub(super) ours: Claim,
}

#[async_trait]
impl Claims for Claimed {
    fn place(&self) -> String {
        let path = self.file.place().map(|place| place.folder.join(name_beside(&place.name)));
        path.map_or_else(|refusal| refusal.message, |path| path.display().to_string())
    }

    async fn owner(&self) -> Result<Owner, CallError> {
        self.under_no_lock(owner).await
    }

    async fn take(&self) -> Result<bool, CallError> {
        self.under_lock(|beside, ours, container| {
            let owner = beside.owner(ours);
            owner.check(container)?;
            match owner {
                Owner::Us => Ok(false),
                _ => beside.make(ours).map(|()| true),
            }
        })
        .await
    }

    async fn take_over(&self) -> Result<(), CallError> {
        self.under_lock(|beside, ours, _| match beside.owner(ours) {
            Owner::Us => Ok(()),
            _ => beside.make(ours),
        })
        .await
    }

    async fn release(&self) -> Result<(), CallError> {
        self.under_lock(|beside, ours, _| match beside.owner(ours) {
            Owner::Us => beside.remove(),
            _ => Ok(()),
        })
        .await
    }
}

impl Claimed {
    async fn under_no_lock<T: Send + 'static>(
        &self,
        work: impl FnOnce(&LocalFile, &Claim) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, CallError> {
        let (file, ours) = (self.file.clone(), self.ours.clone());
        local::blocking(move |_| Ok(work(&file, &ours)?)).await
    }

    async fn under_lock<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Beside<'_>, &Claim, &str) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, CallError> {
        let (file, ours) = (self.file.clone(), self.ours.clone());
        let locked = move |abandoned: &AtomicBool| {
            let place = file.place()?;
            let folder = place.open_folder()?;
            lock(&folder, &place, abandoned)?;
            Ok(work(&Beside { folder: &folder, place: &place }, &ours, &named(&file))?)
        };
        local::blocking(locked).await
    }
}

/// Returns whose a file is, without changing anything.
pub(super) fn owner(file: &LocalFile, ours: &Claim) -> Result<Owner, Refusal> {
    let place = file.place()?;
    let folder = place.open_folder()?;
    Ok(Beside { folder: &folder, place: &place }.owner(ours))
}

/// Names a file in a sentence.
pub(super) fn named(file: &LocalFile) -> String {
    format!("file `{}`", file.path().display())
}

/// The place beside a file where its claim stands.
pub(super) struct Beside<'a> {
    pub(super) folder: &'a OwnedFd,
    pub(super) place: &'a Place,
}

impl Beside<'_> {
    /// Returns whose the file is.
    pub(super) fn owner(&self, ours: &Claim) -> Owner {
        match self.read() {
            Ok(found) => Owner::of(found, ours),
            Err(why) => Owner::Unreadable(format!("`{}` {why}", self.path())),
        }
    }

    fn read(&self) -> Result<Option<Claim>, String> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(self.folder, self.name(), flags, Mode::empty()) {
            Ok(file) => std::fs::File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(std::io::Error::from(error).kind().to_string()),
        };
        let mut text = Vec::new();
        let read = file.take(LARGEST).read_to_end(&mut text);
        read.map_err(|error| error.kind().to_string())?;
        let no_claim = |_| "is no claim of this version of keywheel".to_owned();
        let written: Written = serde_json::from_slice(&text).map_err(no_claim)?;
        match written.keywheel_claim {
            FORM => Ok(Some(written.claim)),
            _ => Err("is a claim of another version of keywheel".into()),
        }
    }

    /// Makes the claim, in place of whatever stands there. What an interrupted maker leaves is removed by the next write.
    pub(super) fn make(&self, ours: &Claim) -> Result<(), Refusal> {
        let temporary = self.place.temporary_name();
        let made = self.write(&temporary, ours).and_then(|()| {
            let renamed = rustix::fs::renameat(self.folder, &temporary, self.folder, self.name());
            renamed.and_then(|()| rustix::fs::fsync(self.folder)).map_err(Into::into)
        });
        made.map_err(|error| {
            // Where it cannot be removed either, the next write tries again.
            rustix::fs::unlinkat(self.folder, &temporary, AtFlags::empty()).unwrap_or_default();
            refused(&self.place.folder.join(self.name()), "claiming the file beside it", &error)
        })
    }

    fn write(&self, temporary: &OsStr, ours: &Claim) -> std::io::Result<()> {
        let about = format!(
            "made by keywheel: which installation rotates what stands in `{}`; `keywheel adopt --take-over` moves it",
            self.place.name.display()
        );
        let written = Written { keywheel_claim: FORM, about, claim: ours.clone() };
        let text = serde_json::to_string_pretty(&written).expect("a claim is plain data");
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.folder, temporary, flags, READABLE)?;
        rustix::fs::fchmod(&file, READABLE)?;
        let mut file = std::fs::File::from(file);
        file.write_all(format!("{text}\n").as_bytes())?;
        file.sync_all()
    }

    fn remove(&self) -> Result<(), Refusal> {
        let removed = rustix::fs::unlinkat(self.folder, self.name(), AtFlags::empty());
        let synced = removed.and_then(|()| rustix::fs::fsync(self.folder));
        let path = self.place.folder.join(self.name());
        synced.map_err(|error| refused(&path, "removing it", &error.into()))
    }

    fn name(&self) -> OsString {
        name_beside(&self.place.name)
    }

    fn path(&self) -> String {
        self.place.folder.join(self.name()).display().to_string()
    }
}

/// Names the claim of a file: `.env.keywheel-claim` for `.env`, `.key.keywheel-claim` for `key`.
fn name_beside(file: &OsStr) -> OsString {
    let is_hidden = file.as_bytes().starts_with(b".");
    let mut name = OsString::from(if is_hidden { "" } else { "." });
    name.push(file);
    name.push(".keywheel-claim");
    name
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::sync::Arc;

    use keywheel_core::secret::SecretValue;
    use keywheel_driver::store::{Accept, Edit};
    use keywheel_driver::{RefusalKind, Severity, Store};

    use super::*;
    use crate::{Build, Context, StoreConfig};

    fn claim_of(installation: &str) -> Claim {
        Claim {
            installation: installation.into(),
            folder: format!("/home/{installation}/shop"),
            environment: "production".into(),
            host: "web-1".into(),
            account: installation.into(),
            since: "2026-01-31T09:14:00Z".into(),
        }
    }

    fn store(folder: &Path, driver: serde_json::Value, installation: &str) -> Arc<dyn Store> {
        let config: StoreConfig = serde_json::from_value(driver).unwrap();
        let context = Context { claim: Some(claim_of(installation)), ..Context::at(folder) };
        config.build(&context).unwrap()
    }

    fn env_file(folder: &Path, installation: &str) -> Arc<dyn Store> {
        let driver = serde_json::json!({ "env_file": { "path": ".env", "create": true } });
        store(folder, driver, installation)
    }

    async fn set(store: &dyn Store, value: &str) -> Result<bool, CallError> {
        let value = SecretValue::new(value.into());
        let edit = Edit { address: "KEY", accept: Accept::Anything, value: Some(&value) };
        store.write(&[edit]).await.map(|written| written.changed)
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn h61_a_write_to_the_file_of_another_installation_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (dana, alex) = (env_file(folder.path(), "dana"), env_file(folder.path(), "alex"));
        assert_eq!(set(&*dana, "one").await, Ok(true));
        assert_eq!(names(folder.path()), [".env", ".env.keywheel-claim"]);
        let Err(CallError::Refused(refusal)) = set(&*alex, "two").await else {
            panic!("it was written")
        };
        assert_eq!(refusal.kind, RefusalKind::Permission);
        for told in ["/home/dana/shop", "production", "dana on web-1", "2026-01-31T09:14:00Z"] {
            assert!(refusal.message.contains(told), "{}", refusal.message);
        }
        let text = std::fs::read_to_string(folder.path().join(".env")).unwrap();
        assert_eq!(text, "KEY='one'\n");
        let findings = alex.preflight(&["KEY".into()]).await.unwrap();
        assert!(findings.iter().any(|finding| finding.severity == Severity::Blocks));
        assert_eq!(set(&*dana, "three").await, Ok(true));
    }

    #[tokio::test]
    async fn a_claim_is_taken_over_and_given_back_on_purpose_only() {
        let folder = tempfile::tempdir().unwrap();
        let (dana, alex) = (env_file(folder.path(), "dana"), env_file(folder.path(), "alex"));
        let (dana, alex) = (dana.claims().unwrap(), alex.claims().unwrap());
        assert_eq!(dana.owner().await, Ok(Owner::Nobody));
        assert_eq!((dana.take().await, dana.take().await), (Ok(true), Ok(false)));
        assert!(alex.take().await.is_err());
        assert_eq!(alex.release().await, Ok(()));
        assert_eq!(alex.owner().await, Ok(Owner::Other(Box::new(claim_of("dana")))));
        assert_eq!(alex.take_over().await, Ok(()));
        assert!(dana.take().await.is_err());
        let path = folder.path().join(".env.keywheel-claim");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!((alex.release().await, path.exists()), (Ok(()), false));
        assert_eq!(dana.take().await, Ok(true));
    }

    #[tokio::test]
    async fn a_claim_that_cannot_be_read_blocks() {
        for text in ["", "{}", "not JSON", r#"{"keywheel_claim": 2}"#] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(".env.keywheel-claim"), text).unwrap();
            let store = env_file(folder.path(), "dana");
            assert!(set(&*store, "one").await.is_err(), "{text}");
            let findings = store.preflight(&["KEY".into()]).await.unwrap();
            let blocks = findings.iter().find(|finding| finding.severity == Severity::Blocks);
            assert!(blocks.unwrap().message.contains("cannot be read"), "{text}");
            assert_eq!(names(folder.path()), [".env.keywheel-claim"]);
            assert_eq!(store.claims().unwrap().take_over().await, Ok(()));
            assert_eq!(set(&*store, "one").await, Ok(true));
        }
    }

    #[tokio::test]
    async fn a_look_makes_no_claim() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), "kwcanary").unwrap();
        let driver = serde_json::json!({ "file": { "path": "key" } });
        let store = store(folder.path(), driver, "dana");
        store.preflight(&["content".into()]).await.unwrap();
        store.read(&["content".into()]).await.unwrap();
        assert_eq!(store.claims().unwrap().owner().await, Ok(Owner::Nobody));
        assert_eq!(names(folder.path()), ["key"]);
        assert!(store.claims().unwrap().place().ends_with("/.key.keywheel-claim"));
    }
}
