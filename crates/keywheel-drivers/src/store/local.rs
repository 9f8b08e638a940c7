//! What the stores that are files on this machine have in common: facts, findings, and work that may block.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keywheel_core::facts::{Pickup, ReadBack, Revert, StoreFacts};
use keywheel_core::secret::SecretValue;
use keywheel_core::time::Span;
use keywheel_driver::store::{Accept, Edit};
use keywheel_driver::{CallError, Finding};
use rustix::fs::{Access, IFlags, Mode};

use super::claim::{self, Claimed};
use super::replace::{LocalFile, Place, Present, obstacle};
use crate::{Context, git};

/// The mode of a file that is made, if nothing else is configured.
pub(super) const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Names a configured file.
pub(super) fn local_file(context: &Context, path: &Path, create: Option<Mode>) -> LocalFile {
    let path = context.root.join(path);
    LocalFile::new(std::path::absolute(&path).unwrap_or(path), create)
        .claimed(context.claim.clone())
}

/// Returns how a file says which installation owns it; none where it is written for no installation.
pub(super) fn claimed(file: &LocalFile) -> Option<Claimed> {
    Some(Claimed { file: file.clone(), ours: file.claim()?.clone() })
}

/// What every file can do: it is read back and replaced on condition, and readers see it when they are rolled.
pub(super) fn facts() -> StoreFacts {
    StoreFacts {
        read_back: ReadBack::Value,
        conditional: true,
        staged: false,
        revert: Revert::Restore,
        history: false,
        pickup: Pickup::Roll,
        // An abandoned writer does not rename; this covers the rename that had just begun.
        settle_for: Span::seconds(1),
        answers_logins: false,
        leaves_behind: false,
        longest_run: None,
    }
}

/// Returns the name under which everyone who writes to a file knows it.
pub(super) fn container(file: &LocalFile) -> String {
    format!("file:{}", file.canonical().display())
}

/// Does work that may block, on a thread that may. The flag is set when nobody waits for the answer any more.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&AtomicBool) -> Result<T, CallError> + Send + 'static,
) -> Result<T, CallError> {
    let waiting = Waiting(Arc::default());
    let abandoned = Arc::clone(&waiting.0);
    let answer = tokio::task::spawn_blocking(move || work(&abandoned)).await;
    drop(waiting);
    answer.unwrap_or_else(|_| {
        Err(CallError::Unknown("the work on a file stopped in the middle".into()))
    })
}

/// Someone who waits for an answer; dropped with the call.
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// An edit that owns its values, so that it can go to another thread.
pub(super) struct OwnedEdit {
    pub(super) address: String,
    accept: Option<Vec<Option<SecretValue>>>,
    pub(super) value: Option<SecretValue>,
}

impl OwnedEdit {
    pub(super) fn of(edit: &Edit<'_>) -> Self {
        let accept = match &edit.accept {
            Accept::Anything => None,
            Accept::OneOf(values) => {
                Some(values.iter().map(|v| v.map(SecretValue::duplicate)).collect())
            }
        };
        Self { address: edit.address.into(), accept, value: edit.value.map(SecretValue::duplicate) }
    }

    pub(super) fn accepts(&self, present: Option<&SecretValue>) -> bool {
        let accept = match &self.accept {
            None => Accept::Anything,
            Some(values) => Accept::OneOf(values.iter().map(Option::as_ref).collect()),
        };
        Edit { address: &self.address, accept, value: self.value.as_ref() }.accepts(present)
    }
}

/// Finds what speaks against writing a file, and what people should know of it; changes nothing.
pub(super) async fn findings(file: &LocalFile) -> Result<Vec<Finding>, CallError> {
    let inspected = file.clone();
    let (mut findings, place) = blocking(move |_| Ok(inspect(&inspected))).await?;
    if let Some(place) = place {
        findings.extend(tracked_by_git(&place).await);
    }
    Ok(findings)
}

fn inspect(file: &LocalFile) -> (Vec<Finding>, Option<Place>) {
    let place = match file.place() {
        Ok(place) => place,
        Err(refusal) => return (vec![Finding::blocks(refusal.message)], None),
    };
    let mut findings = folder_findings(&place);
    findings.extend(claim_finding(file));
    match file.open() {
        Ok(Some((_, present))) => findings.extend(file_findings(&place, &present)),
        Ok(None) => findings.push(Finding::note(format!(
            "file `{}` does not exist and will be made",
            file.path().display()
        ))),
        Err(refusal) => findings.push(Finding::blocks(refusal.message)),
    }
    (findings, Some(place))
}

fn folder_findings(place: &Place) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(error) = rustix::fs::access(&place.folder, Access::WRITE_OK | Access::EXEC_OK) {
        let why = std::io::Error::from(error).kind();
        findings.push(Finding::blocks(format!(
            "folder `{}` cannot be written: {why}",
            place.folder.display()
        )));
    }
    let leftovers =
        place.open_folder().and_then(|folder| place.leftovers(&folder)).unwrap_or_default();
    if !leftovers.is_empty() {
        let message = "an interrupted writer left an unfinished file beside it, which may hold a value; the next write removes it";
        findings.push(Finding::note(format!("file `{}`: {message}", place.path().display())));
    }
    findings.extend(
        copies(place).map(|(path, what)| Finding::note(format!("`{}` {what}", path.display()))),
    );
    findings
}

fn claim_finding(file: &LocalFile) -> Option<Finding> {
    let objection = match claim::owner(file, file.claim()?) {
        Ok(owner) => owner.objection(&claim::named(file))?,
        Err(refusal) => refusal.message,
    };
    Some(Finding::blocks(objection))
}

/// Finds what editors and people leave beside a file (H105).
fn copies(place: &Place) -> impl Iterator<Item = (PathBuf, &'static str)> {
    const COPY: &str = "looks like a copy of the file and may hold former values";
    const OPEN: &str =
        "says that an editor has the file open, whose next save would bring back what it loaded";
    let beside = |before: &str, after: &str| {
        let mut name = OsString::from(before);
        name.push(&place.name);
        name.push(after);
        place.folder.join(name)
    };
    let places = [
        ("", ".bak", COPY),
        ("", ".old", COPY),
        ("", ".orig", COPY),
        ("", "~", COPY),
        (".", ".swp", OPEN),
    ];
    let found = places.map(|(before, after, what)| (beside(before, after), what));
    found.into_iter().filter(|(path, _)| path.symlink_metadata().is_ok())
}

fn file_findings(place: &Place, present: &Present) -> Vec<Finding> {
    let blocks = |what: &str| Finding::blocks(format!("file `{}` {what}", place.path().display()));
    let note = |what: &str| Finding::note(format!("file `{}` {what}", place.path().display()));
    let mut findings: Vec<_> = obstacle(place, &present.stat).map(blocks).into_iter().collect();
    if is_frozen(present) {
        findings.push(blocks("is marked immutable or append-only (`lsattr`)"));
    }
    if !can_own(present.stat.st_uid) {
        findings.push(blocks("belongs to another user, who could not be kept as its owner"));
    }
    let mode = Mode::from_raw_mode(present.stat.st_mode);
    match (mode.intersects(Mode::ROTH | Mode::WOTH), mode.intersects(Mode::RGRP | Mode::WGRP)) {
        (true, _) => findings.push(note("is open to every user of this machine")),
        (false, true) => findings.push(note("is open to its group")),
        (false, false) => {}
    }
    findings
}

fn is_frozen(present: &Present) -> bool {
    rustix::fs::ioctl_getflags(&present.file)
        .is_ok_and(|flags| flags.intersects(IFlags::IMMUTABLE | IFlags::APPEND))
}

fn can_own(user: u32) -> bool {
    let us = rustix::process::geteuid();
    us.is_root() || us.as_raw() == user
}

/// Notes a file that git tracks, whose values its history keeps (H105).
async fn tracked_by_git(place: &Place) -> Option<Finding> {
    let file = place.path();
    let file = file.display();
    match git::tracked(&place.folder, &[&place.name]).await {
        Ok(Some(names)) => (!names.is_empty()).then(|| {
            Finding::note(format!(
                "file `{file}` is tracked by git, whose history keeps every value that is committed"
            ))
        }),
        Ok(None) => {
            Some(Finding::note(format!("git does not say whether it tracks file `{file}`")))
        }
        Err(_) => None,
    }
}
