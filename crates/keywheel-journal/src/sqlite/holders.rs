//! Processes that hold secrets: a locked file each, so that a dead one is known to be dead at once.
//!
//! The lock belongs to the open file and ends with its process, however that ends. A file that can be locked is therefore of
//! a process that is gone; one that cannot be looked at proves nothing, and its lease is waited out.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, flock};

use crate::{Holder, JournalError, place, seal};

const SUFFIX: &str = ".lock";

/// The folder of lock files, and the locks that this journal holds.
pub(super) struct Holders {
    folder: PathBuf,
    held: Mutex<Vec<File>>,
}

impl Holders {
    /// Names the folder beside a database.
    pub(super) fn beside(journal: &Path) -> Self {
        Self { folder: journal.with_file_name("holders"), held: Mutex::new(Vec::new()) }
    }

    /// Registers a holder that lives as long as this journal is open.
    pub(super) fn register(&self, name: String) -> Result<Holder, JournalError> {
        place::make_own_folder(&self.folder)?;
        loop {
            let mut random = [0; 8];
            seal::random(&mut random)?;
            let id = hex::encode(random);
            if let Some(file) = self.lock_new(&id)? {
                self.held.lock().unwrap_or_else(PoisonError::into_inner).push(file);
                return Ok(Holder { id, name });
            }
        }
    }

    /// Returns whether a holder's process is proven to be gone.
    pub(super) fn is_dead(&self, holder: &Holder) -> bool {
        // An id comes from the database and becomes a file's name: only what was made here is looked for.
        is_id(&holder.id) && lock_existing(&self.path(&holder.id)).is_some()
    }

    /// Removes the files of holders that are gone and hold nothing.
    pub(super) fn sweep(&self, claimed: &BTreeSet<String>) {
        let Ok(files) = fs::read_dir(&self.folder) else { return };
        for path in files.flatten().map(|file| file.path()) {
            let id = path.file_name().and_then(|name| name.to_str()?.strip_suffix(SUFFIX));
            let unclaimed = id.is_some_and(|id| is_id(id) && !claimed.contains(id));
            // The file stays locked while it is removed: whoever is just making it notices, and makes another.
            if unclaimed && let Some(_locked) = lock_existing(&path) {
                let removed = fs::remove_file(&path);
                tracing::debug!(?removed, "swept the lock file of a process that is gone");
            }
        }
    }

    fn lock_new(&self, id: &str) -> Result<Option<File>, JournalError> {
        let path = self.path(id);
        let Some(file) = place::create_file(&path)? else { return Ok(None) };
        let locked = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        let still_there = match (file.metadata(), path.symlink_metadata()) {
            (Ok(ours), Ok(there)) => ours.ino() == there.ino() && ours.dev() == there.dev(),
            _ => false,
        };
        Ok((locked && still_there).then_some(file))
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}{SUFFIX}"))
    }
}

fn is_id(id: &str) -> bool {
    id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn lock_existing(path: &Path) -> Option<File> {
    place::check_own_file(path).ok()?;
    let file = File::open(path).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(file)
}
