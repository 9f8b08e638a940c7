//! The replacement of a whole file: a reader sees all of the old file or all of the new one, whatever happens in between.
//!
//! Under an advisory lock on the file's folder (nothing is left behind, and every keywheel that writes there takes it):
//!
//! 0. the claim beside it is compared (H61);
//! 1. temporary files that an interrupted writer left are removed (H105);
//! 2. the file is read, and the caller decides from its contents what they become;
//! 3. a temporary file is made beside it, 0600 and new; it gets owner, extended attributes and mode of the original before
//!    any content (H102), then the content, and is synced;
//! 4. the original is compared with what was read, so that an edit made meanwhile is not lost (H104);
//! 5. the temporary file is renamed over it, and the folder is synced (H12).
//!
//! If the process dies before 5 the file is what it was; after it, what it was to become. Up to the rename every failure is a
//! definite no. A symbolic link is followed and kept. What a rename would silently break is refused: a file with other hard
//! links, and a file that is a mount point of its own, as a single file mounted into a container is (H101). Writing such a
//! file in place would show readers half of it (H106).

use keywheel_core::planted;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keywheel_core::secret::SecretValue;
use keywheel_driver::store::Written;
use keywheel_driver::{CallError, Claim, Owner, Refusal, RefusalKind};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::claim::{self, Beside};

/// How long a writer waits for another one.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(10);

/// The largest file that is read: far above any file of secrets, far below what would hurt.
const LARGEST: u64 = 1 << 20;
const TOO_LARGE: &str = "is, or would be, larger than 1 MiB";

/// A file on this machine that is replaced whole.
#[derive(Clone, Debug)]
pub(super) struct LocalFile {
    path: PathBuf,
    /// The mode of the file if it has to be made; none where it must be there.
    create: Option<Mode>,
    /// The claim that is compared at each write, and made with the first one.
    claim: Option<Claim>,
}

/// What becomes of a file's contents.
pub(super) enum Change {
    /// They stay.
    Nothing,
    /// They become these.
    Contents(SecretValue),
    /// The file goes.
    Removal,
}

impl LocalFile {
    /// Names a file; `path` is absolute.
    pub(super) fn new(path: PathBuf, create: Option<Mode>) -> Self {
        Self { path, create, claim: None }
    }

    /// Writes for an installation, and for no other.
    pub(super) fn claimed(self, claim: Option<Claim>) -> Self {
        Self { claim, ..self }
    }

    /// Returns the claim of the installation that it is written for.
    pub(super) fn claim(&self) -> Option<&Claim> {
        self.claim.as_ref()
    }

    /// Returns the path as it is configured.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether the file is made where it is missing.
    pub(super) fn is_made(&self) -> bool {
        self.create.is_some()
    }

    /// Returns the path that every way to the file leads to, as far as it exists.
    pub(super) fn canonical(&self) -> PathBuf {
        self.place().map_or_else(|_| self.path.clone(), |place| place.path())
    }

    /// Reads the contents; none where the file is missing and may be made.
    pub(super) fn read(&self) -> Result<Option<SecretValue>, Refusal> {
        Ok(self.open()?.map(|(_, present)| present.contents))
    }

    /// Opens the file and reads it.
    pub(super) fn open(&self) -> Result<Option<(Place, Present)>, Refusal> {
        let place = self.place()?;
        let folder = place.open_folder()?;
        match Present::open(&folder, &place)? {
            Some(present) => Ok(Some((place, present))),
            None if self.is_made() => Ok(None),
            None => Err(self.missing()),
        }
    }

    /// Reads the contents, asks what becomes of them, and makes it so; `change` runs once, under the lock.
    ///
    /// Nothing is renamed after `abandoned` is set: the caller has stopped waiting, and would take a late write for a foreign one.
    pub(super) fn rewrite(
        &self,
        abandoned: &AtomicBool,
        change: impl FnOnce(Option<&SecretValue>) -> Result<Change, Refusal>,
    ) -> Result<Written, CallError> {
        let place = self.place()?;
        let folder = place.open_folder()?;
        lock(&folder, &place, abandoned)?;
        let is_unclaimed = self.check_claim(&folder, &place)?;
        remove_leftovers(&folder, &place)?;
        let present = Present::open(&folder, &place)?;
        if present.is_none() && !self.is_made() {
            return Err(self.missing().into());
        }
        let replacement =
            Replacement { file: self, place: &place, folder: &folder, present, abandoned };
        let contents = replacement.present.as_ref().map(|p| &p.contents);
        let change = change(contents)?;
        if let (true, Some(claim)) = (is_unclaimed, &self.claim) {
            Beside { folder: &folder, place: &place }.make(claim)?;
        }
        match change {
            Change::Contents(new) if contents.is_some_and(|old| old.same_as(&new)) => {
                Ok(Written { changed: false })
            }
            Change::Nothing => Ok(Written { changed: false }),
            Change::Contents(new) => replacement.write(&new),
            Change::Removal => replacement.remove(),
        }
    }

    /// Refuses a file of another installation, and returns whether nobody claimed it (H61).
    fn check_claim(&self, folder: &OwnedFd, place: &Place) -> Result<bool, Refusal> {
        let Some(claim) = &self.claim else { return Ok(false) };
        let owner = Beside { folder, place }.owner(claim);
        owner.check(&claim::named(self))?;
        Ok(owner == Owner::Nobody)
    }

    /// Follows every link on the way to the file.
    pub(super) fn place(&self) -> Result<Place, Refusal> {
        match self.path.canonicalize() {
            Ok(found) => self.place_of(&found),
            Err(error) if error.kind() == ErrorKind::NotFound => self.place_of_missing(),
            Err(error) => Err(refused(&self.path, "reading it", &error)),
        }
    }

    fn place_of_missing(&self) -> Result<Place, Refusal> {
        if self.path.symlink_metadata().is_ok() {
            return Err(unsupported(&self.path, "is a symbolic link that leads nowhere"));
        }
        if !self.is_made() {
            return Err(self.missing());
        }
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let folder =
            folder.canonicalize().map_err(|error| refused(folder, "looking for it", &error))?;
        self.place_of(&folder.join(self.path.file_name().unwrap_or_default()))
    }

    fn place_of(&self, path: &Path) -> Result<Place, Refusal> {
        match (path.parent(), path.file_name()) {
            (Some(folder), Some(name)) => Ok(Place { folder: folder.into(), name: name.into() }),
            _ => Err(unsupported(&self.path, "is not a file")),
        }
    }

    fn missing(&self) -> Refusal {
        let message = format!(
            "file `{}` does not exist; make it, or configure `create: true`",
            self.path.display()
        );
        Refusal::operator(RefusalKind::NotFound, message)
    }
}

/// Where a file really is, after every link.
#[derive(PartialEq, Eq)]
pub(super) struct Place {
    pub(super) folder: PathBuf,
    pub(super) name: OsString,
}

impl Place {
    pub(super) fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    pub(super) fn open_folder(&self) -> Result<OwnedFd, Refusal> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.folder, flags, Mode::empty())
            .map_err(|e| refused(&self.folder, "opening it", &e.into()))
    }

    /// Lists the temporary files that interrupted writers of this file left.
    pub(super) fn leftovers(&self, folder: &OwnedFd) -> Result<Vec<OsString>, Refusal> {
        use std::os::unix::ffi::OsStrExt;
        let list = || -> io::Result<Vec<OsString>> {
            let mut names = Vec::new();
            for entry in rustix::fs::Dir::read_from(folder)? {
                let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
                names.extend(self.is_temporary(&name).then_some(name));
            }
            Ok(names)
        };
        list().map_err(|error| refused(&self.folder, "listing it", &error))
    }

    /// Returns whether a name is one of ours for this file: `.<name>.keywheel-<16 hex digits>.tmp`.
    fn is_temporary(&self, candidate: &OsStr) -> bool {
        use std::os::unix::ffi::OsStrExt;
        let middle = || {
            let rest =
                candidate.as_bytes().strip_prefix(b".")?.strip_prefix(self.name.as_bytes())?;
            rest.strip_prefix(b".keywheel-")?.strip_suffix(b".tmp")
        };
        middle()
            .is_some_and(|random| random.len() == 16 && random.iter().all(u8::is_ascii_hexdigit))
    }

    pub(super) fn temporary_name(&self) -> OsString {
        let mut name = OsString::from(".");
        name.push(&self.name);
        name.push(format!(".keywheel-{:016x}.tmp", RandomState::new().build_hasher().finish()));
        name
    }
}

/// A file as it was read.
pub(super) struct Present {
    pub(super) file: File,
    pub(super) stat: Stat,
    pub(super) contents: SecretValue,
}

impl Present {
    fn open(folder: &OwnedFd, place: &Place) -> Result<Option<Self>, Refusal> {
        let path = place.path();
        // Without NONBLOCK, a FIFO in the file's place would hold us up for ever.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(folder, &place.name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(refused(&path, "opening it", &error.into())),
        };
        let stat = rustix::fs::fstat(&file).map_err(|e| refused(&path, "reading it", &e.into()))?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
            return Err(unsupported(&path, "is not a regular file"));
        }
        if u64::try_from(stat.st_size).is_ok_and(|size| size > LARGEST) {
            return Err(unsupported(&path, TOO_LARGE));
        }
        let contents =
            contents(&file, &stat).map_err(|error| refused(&path, "reading it", &error))?;
        Ok(Some(Self { file, stat, contents }))
    }

    /// Returns whether this is the file, unchanged, that `other` was read from.
    fn is_still(&self, other: &Self) -> bool {
        let key = |s: &Stat| {
            let file = (s.st_dev, s.st_ino, s.st_mode, s.st_uid, s.st_gid, s.st_size);
            (file, s.st_mtime, s.st_mtime_nsec, s.st_ctime, s.st_ctime_nsec)
        };
        key(&self.stat) == key(&other.stat) && self.contents.same_as(&other.contents)
    }
}

fn contents(file: &File, stat: &Stat) -> io::Result<SecretValue> {
    // One byte more than needed, so that the buffer does not move while it is filled and leave a copy behind.
    let mut bytes = Vec::with_capacity(usize::try_from(stat.st_size).unwrap_or_default() + 1);
    file.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(SecretValue::new(bytes))
}

/// Waits for the lock of the folder; it goes with the descriptor, also when the process dies.
pub(super) fn lock(folder: &OwnedFd, place: &Place, abandoned: &AtomicBool) -> Result<(), Refusal> {
    let deadline = Instant::now() + LOCK_WAIT;
    if planted!("writers_take_no_turns") {
        return Ok(());
    }
    loop {
        match rustix::fs::flock(folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR)
                if Instant::now() < deadline && !abandoned.load(Ordering::SeqCst) =>
            {
                std::thread::sleep(LOCK_POLL);
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => {
                let message =
                    format!("another writer holds the lock of folder `{}`", place.folder.display());
                return Err(Refusal::retry(RefusalKind::Unavailable, None, message));
            }
            Err(error) => return Err(refused(&place.folder, "locking it", &error.into())),
        }
    }
}

fn remove_leftovers(folder: &OwnedFd, place: &Place) -> Result<(), Refusal> {
    if planted!("leftovers_stay") {
        return Ok(());
    }
    for name in place.leftovers(folder)? {
        at(Step::RemoveLeftover, || Ok(rustix::fs::unlinkat(folder, &name, AtFlags::empty())?))
            .map_err(|error| {
                refused(
                    &place.folder.join(&name),
                    "removing what an interrupted writer left",
                    &error,
                )
            })?;
    }
    Ok(())
}

/// The replacement of one file that is locked and read.
struct Replacement<'a> {
    file: &'a LocalFile,
    place: &'a Place,
    folder: &'a OwnedFd,
    present: Option<Present>,
    abandoned: &'a AtomicBool,
}

impl Replacement<'_> {
    fn write(&self, new: &SecretValue) -> Result<Written, CallError> {
        self.check_replaceable()?;
        if u64::try_from(new.expose().len()).is_ok_and(|size| size > LARGEST) {
            return Err(unsupported(self.file.path(), TOO_LARGE).into());
        }
        let name = self.place.temporary_name();
        if let Err(error) = self.put_in_place(&name, new) {
            return Err(self.given_up(&name, error));
        }
        self.sync_folder()
    }

    fn remove(&self) -> Result<Written, CallError> {
        if self.present.is_none() {
            return Ok(Written { changed: false });
        }
        self.check_replaceable()?;
        at(Step::Compare, || Ok(self.compare()))
            .map_err(|error| refused(self.file.path(), "comparing it", &error))??;
        at(Step::RemoveFile, || {
            Ok(rustix::fs::unlinkat(self.folder, &self.place.name, AtFlags::empty())?)
        })
        .map_err(|error| refused(self.file.path(), "removing it", &error))?;
        self.sync_folder()
    }

    /// Refuses what a rename would break without a word.
    fn check_replaceable(&self) -> Result<(), Refusal> {
        match self.present.as_ref().and_then(|present| obstacle(self.place, &present.stat)) {
            Some(obstacle) => Err(unsupported(self.file.path(), obstacle)),
            None => Ok(()),
        }
    }

    fn put_in_place(&self, name: &OsStr, new: &SecretValue) -> Result<(), CallError> {
        let doing =
            |what: &'static str| move |error: io::Error| refused(self.file.path(), what, &error);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let private = Mode::RUSR | Mode::WUSR;
        let create = || Ok(File::from(rustix::fs::openat(self.folder, name, flags, private)?));
        let mut file =
            at(Step::CreateTemporary, create).map_err(doing("making a file beside it"))?;
        let keep = || if planted!("metadata_is_lost") { Ok(()) } else { self.keep_metadata(&file) };
        at(Step::KeepMetadata, keep).map_err(doing("keeping its owner, attributes and mode"))?;
        at(Step::WriteContents, || file.write_all(new.expose()))
            .map_err(doing("writing a file beside it"))?;
        at(Step::SyncFile, || file.sync_all()).map_err(doing("syncing a file beside it"))?;
        at(Step::Compare, || Ok(self.compare())).map_err(doing("comparing it"))??;
        at(Step::Rename, || self.rename(name)).or_else(|error| self.is_renamed(&file, error))
    }

    fn keep_metadata(&self, new: &File) -> io::Result<()> {
        let Some(present) = &self.present else {
            return Ok(rustix::fs::fchmod(
                new,
                self.file.create.unwrap_or(Mode::RUSR | Mode::WUSR),
            )?);
        };
        let made = rustix::fs::fstat(new)?;
        let owner = (made.st_uid != present.stat.st_uid)
            .then(|| rustix::fs::Uid::from_raw(present.stat.st_uid));
        let group = (made.st_gid != present.stat.st_gid)
            .then(|| rustix::fs::Gid::from_raw(present.stat.st_gid));
        if owner.is_some() || group.is_some() {
            rustix::fs::fchown(new, owner, group)?;
        }
        attributes::copy(&present.file, new)?;
        Ok(rustix::fs::fchmod(new, Mode::from_raw_mode(present.stat.st_mode))?)
    }

    /// Refuses if the file, or the way to it, is not what it was when it was read; or if the caller has gone.
    fn compare(&self) -> Result<(), Refusal> {
        let now = Present::open(self.folder, self.place)?;
        let same_file = match (&now, &self.present) {
            (Some(now), Some(then)) => now.is_still(then),
            (None, None) => true,
            _ => false,
        };
        if planted!("edit_overwritten") {
            return Ok(());
        }
        if !same_file || self.file.place()? != *self.place || !self.is_same_folder() {
            let message = format!(
                "file `{}` was changed by someone else meanwhile",
                self.file.path().display()
            );
            return Err(Refusal::retry(RefusalKind::Conflict, None, message));
        }
        if self.abandoned.load(Ordering::SeqCst) {
            return Err(Refusal::retry(
                RefusalKind::Unavailable,
                None,
                "the caller stopped waiting",
            ));
        }
        Ok(())
    }

    fn is_same_folder(&self) -> bool {
        let key = |stat: Stat| (stat.st_dev, stat.st_ino);
        let (held, named) = (rustix::fs::fstat(self.folder), rustix::fs::stat(&self.place.folder));
        held.is_ok_and(|held| named.is_ok_and(|named| key(held) == key(named)))
    }

    fn rename(&self, from: &OsStr) -> io::Result<()> {
        let to = self.place.name.as_os_str();
        if planted!("written_in_place") {
            return std::fs::copy(self.place.folder.join(from), self.place.path()).map(drop);
        }
        if self.present.is_none() {
            match rustix::fs::renameat_with(
                self.folder,
                from,
                self.folder,
                to,
                RenameFlags::NOREPLACE,
            ) {
                // This file system cannot promise it; the comparison just before has to do.
                Err(Errno::INVAL | Errno::NOSYS) => {}
                answer => return Ok(answer?),
            }
        }
        Ok(rustix::fs::renameat(self.folder, from, self.folder, to)?)
    }

    /// Asks the file system whether a rename happened whose answer was an error, as over a network.
    fn is_renamed(&self, new: &File, error: io::Error) -> Result<(), CallError> {
        let key = |stat: Stat| (stat.st_dev, stat.st_ino);
        let named = rustix::fs::statat(self.folder, &self.place.name, AtFlags::SYMLINK_NOFOLLOW);
        match (rustix::fs::fstat(new), named) {
            (Ok(new), Ok(named)) if key(new) == key(named) => Ok(()),
            (Ok(_), Ok(_) | Err(Errno::NOENT)) if error.kind() == ErrorKind::ResourceBusy => {
                Err(unsupported(self.file.path(), MOUNT_POINT).into())
            }
            (Ok(_), Ok(_) | Err(Errno::NOENT)) => {
                Err(refused(self.file.path(), "renaming the new file over it", &error).into())
            }
            _ => Err(CallError::Unknown(format!(
                "renaming the new file over `{}`",
                self.file.path().display()
            ))),
        }
    }

    /// Removes the temporary file after a failure.
    fn given_up(&self, name: &OsStr, error: CallError) -> CallError {
        let removed = at(Step::RemoveTemporary, || {
            Ok(rustix::fs::unlinkat(self.folder, name, AtFlags::empty())?)
        });
        match (removed, error) {
            (Err(left), CallError::Refused(mut refusal)) if left.kind() != ErrorKind::NotFound => {
                refusal.message += "; the unfinished file beside it could not be removed, and the next write tries again";
                CallError::Refused(refusal)
            }
            (_, error) => error,
        }
    }

    fn sync_folder(&self) -> Result<Written, CallError> {
        if planted!("folder_not_synced") {
            return Ok(Written { changed: true });
        }
        let synced = at(Step::SyncFolder, || Ok(rustix::fs::fsync(self.folder)?));
        match synced {
            Ok(()) => Ok(Written { changed: true }),
            Err(error) => Err(CallError::Unknown(format!(
                "file `{}` is replaced, and syncing its folder failed: {}",
                self.file.path().display(),
                error.kind()
            ))),
        }
    }
}

const HARD_LINKS: &str =
    "has other hard links, which would keep the old contents; leave one of them";
const MOUNT_POINT: &str =
    "is a mount point of its own, so that it cannot be replaced whole; mount its folder instead";

/// Returns what stands against replacing a file.
pub(super) fn obstacle(place: &Place, stat: &Stat) -> Option<&'static str> {
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if stat.st_nlink > 1 {
        Some(HARD_LINKS)
    } else if is_mount_point(&mounts(), &place.path()) && !planted!("mount_point_ignored") {
        Some(MOUNT_POINT)
    } else {
        None
    }
}

/// Returns whether a path is a mount point in the words of `/proc/self/mountinfo`: its fifth field, with octal escapes.
fn is_mount_point(mounts: &str, path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let path = path.as_os_str().as_bytes();
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|field| unescaped(field.as_bytes()) == path)
}

fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        path.push(code.unwrap_or(byte));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    path
}

pub(super) fn refused(path: &Path, doing: &str, error: &io::Error) -> Refusal {
    let kind = if error.kind() == ErrorKind::NotFound {
        RefusalKind::NotFound
    } else {
        RefusalKind::Local
    };
    Refusal::operator(kind, format!("`{}`: {} while {doing}", path.display(), error.kind()))
}

pub(super) fn unsupported(path: &Path, why: &str) -> Refusal {
    Refusal::operator(RefusalKind::Unsupported, format!("file `{}` {why}", path.display()))
}

/// Extended attributes: access control lists, security labels, and what people put there (H102).
mod attributes {
    use std::ffi::{CStr, CString};
    use std::fs::File;
    use std::io;

    use rustix::fs::XattrFlags;
    use rustix::io::Errno;

    /// Gives the new file the attributes of the old one, and takes away those that the old one does not have.
    pub(super) fn copy(old: &File, new: &File) -> io::Result<()> {
        let (wanted, inherited) = (names(old)?, names(new)?);
        for name in inherited.iter().filter(|name| !wanted.contains(name) && !is_security(name)) {
            rustix::fs::fremovexattr(new, name.as_c_str())?;
        }
        for name in wanted.iter().filter(|name| !belongs_to_contents(name)) {
            let value = value(old, name)?;
            if !inherited.contains(name) || self::value(new, name)? != value {
                rustix::fs::fsetxattr(new, name.as_c_str(), &value, XattrFlags::empty())?;
            }
        }
        Ok(())
    }

    /// What the kernel keeps about the contents themselves cannot go with other contents.
    fn belongs_to_contents(name: &CStr) -> bool {
        [c"security.ima", c"security.evm"].contains(&name)
    }

    fn is_security(name: &CStr) -> bool {
        name.to_bytes().starts_with(b"security.")
    }

    fn names(file: &File) -> io::Result<Vec<CString>> {
        let list = match with_room(
            |buffer| rustix::fs::flistxattr(file, buffer),
            || rustix::fs::flistxattr_query(file),
        ) {
            Err(Errno::OPNOTSUPP) => Vec::new(),
            list => list?,
        };
        let names = list.split(|b| *b == 0).filter(|name| !name.is_empty());
        Ok(names.map(|name| CString::new(name).expect("the list was split at NUL")).collect())
    }

    fn value(file: &File, name: &CStr) -> io::Result<Vec<u8>> {
        Ok(with_room(
            |buffer| rustix::fs::fgetxattr(file, name, buffer),
            || rustix::fs::fgetxattr_query(file, name),
        )?)
    }

    /// Asks for the size, then for the bytes, until both agree.
    fn with_room(
        read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
        size: impl Fn() -> rustix::io::Result<usize>,
    ) -> rustix::io::Result<Vec<u8>> {
        loop {
            let mut buffer = vec![0; size()?];
            if buffer.is_empty() {
                return Ok(buffer);
            }
            match read(&mut buffer) {
                Err(Errno::RANGE) => {}
                answer => {
                    buffer.truncate(answer?);
                    return Ok(buffer);
                }
            }
        }
    }
}

/// The steps of a replacement that touch the disk; tests stop it, or make it fail, at each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    RemoveLeftover,
    CreateTemporary,
    KeepMetadata,
    WriteContents,
    SyncFile,
    Compare,
    Rename,
    RemoveFile,
    RemoveTemporary,
    SyncFolder,
}

#[cfg(not(test))]
fn at<T>(_step: Step, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    call()
}

#[cfg(test)]
use faults::at;

/// Faults at the steps of a replacement, for the tests: on the thread that writes, once.
#[cfg(test)]
mod faults {
    use std::cell::RefCell;
    use std::io;

    use rustix::io::Errno;

    use super::Step;

    pub(super) enum Fault {
        /// The process dies before the step; nothing is cleaned up.
        DiesBefore,
        /// The process dies after the step.
        DiesAfter,
        /// The step fails and does nothing.
        Fails(Errno),
        /// The step is done and says that it failed.
        LiesAboutFailing(Errno),
        /// Something else happens just before the step.
        Meanwhile(Box<dyn FnOnce()>),
    }

    thread_local! {
        static PLAN: RefCell<Vec<(Step, Fault)>> = const { RefCell::new(Vec::new()) };
        static DONE: RefCell<Vec<Step>> = const { RefCell::new(Vec::new()) };
    }

    /// Runs some work with faults, and returns what it returned (none if it died) and the steps that were done.
    pub(super) fn with<T>(
        plan: Vec<(Step, Fault)>,
        work: impl FnOnce() -> T,
    ) -> (Option<T>, Vec<Step>) {
        PLAN.replace(plan);
        DONE.take();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        assert!(PLAN.take().is_empty(), "a planned fault did not happen");
        let outcome = outcome.map_err(|panic| match panic.is::<Death>() {
            true => Death,
            false => std::panic::resume_unwind(panic),
        });
        (outcome.ok(), DONE.take())
    }

    struct Death;

    fn die() -> ! {
        std::panic::resume_unwind(Box::new(Death))
    }

    pub(super) fn at<T>(step: Step, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match planned(step) {
            None => {}
            Some(Fault::DiesBefore) => die(),
            Some(Fault::DiesAfter) => {
                let _done = call();
                die()
            }
            Some(Fault::Fails(error)) => return Err(error.into()),
            Some(Fault::LiesAboutFailing(error)) => return call().and(Err(error.into())),
            Some(Fault::Meanwhile(other)) => other(),
        }
        let answer = call()?;
        DONE.with_borrow_mut(|done| done.push(step));
        Ok(answer)
    }

    fn planned(step: Step) -> Option<Fault> {
        PLAN.with_borrow_mut(|plan| {
            let at = plan.iter().position(|(planned, _)| *planned == step)?;
            Some(plan.remove(at).1)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use tempfile::TempDir;

    use super::faults::Fault;
    use super::*;

    const OLD: &[u8] = b"old-kwcanary-7f3a";
    const NEW: &[u8] = b"new-kwcanary-91cc";

    /// The steps that replacing a file takes, in order.
    const STEPS: [Step; 7] = [
        Step::CreateTemporary,
        Step::KeepMetadata,
        Step::WriteContents,
        Step::SyncFile,
        Step::Compare,
        Step::Rename,
        Step::SyncFolder,
    ];

    /// What someone else does to a file, in words and in deed.
    type TheirEdit = (&'static str, fn(&Path));

    struct Folder(TempDir);

    impl Folder {
        fn with_file() -> Self {
            let folder = Self(TempDir::new().unwrap());
            fs::write(folder.path(), OLD).unwrap();
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o600)).unwrap();
            folder
        }

        fn path(&self) -> PathBuf {
            self.0.path().join(".env")
        }

        fn file(&self) -> LocalFile {
            LocalFile::new(self.path(), None)
        }

        fn contents(&self) -> Vec<u8> {
            fs::read(self.path()).unwrap()
        }

        fn others(&self) -> Vec<PathBuf> {
            let entries = fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().path());
            entries.filter(|path| *path != self.path()).collect()
        }
    }

    fn write(file: &LocalFile, new: &[u8]) -> Result<Written, CallError> {
        file.rewrite(&AtomicBool::new(false), |_| {
            Ok(Change::Contents(SecretValue::new(new.to_vec())))
        })
    }

    fn refusal(answer: Result<Written, CallError>) -> Refusal {
        match answer {
            Err(CallError::Refused(refusal)) => refusal,
            other => panic!("expected a refusal, and got {other:?}"),
        }
    }

    #[test]
    fn h12_contents_and_folder_are_synced_before_a_write_is_done() {
        let folder = Folder::with_file();
        let (answer, done) = faults::with(vec![], || write(&folder.file(), NEW));
        assert_eq!((answer, done), (Some(Ok(Written { changed: true })), STEPS.to_vec()));
    }

    #[test]
    fn h12_a_removal_is_synced_too() {
        let folder = Folder::with_file();
        let file = LocalFile::new(folder.path(), Some(Mode::RUSR));
        let remove = || file.rewrite(&AtomicBool::new(false), |_| Ok(Change::Removal));
        let (answer, done) = faults::with(vec![], remove);
        assert_eq!(answer, Some(Ok(Written { changed: true })));
        assert_eq!(done, [Step::Compare, Step::RemoveFile, Step::SyncFolder]);
        assert!(!folder.path().exists());
        assert_eq!(remove(), Ok(Written { changed: false }));
    }

    #[test]
    fn h105_a_death_at_any_step_leaves_a_whole_file_and_the_next_write_leaves_nothing_beside_it() {
        for step in STEPS {
            for (when, fault) in [("before", Fault::DiesBefore), ("after", Fault::DiesAfter)] {
                let folder = Folder::with_file();
                let (answer, _) = faults::with(vec![(step, fault)], || write(&folder.file(), NEW));
                assert!(answer.is_none());
                let renamed = step == Step::SyncFolder || (step == Step::Rename && when == "after");
                let expected = if renamed { NEW } else { OLD };
                assert_eq!(folder.contents(), expected, "died {when} {step:?}");
                for left in folder.others() {
                    let mode = fs::metadata(&left).unwrap().mode() & 0o777;
                    assert_eq!(
                        mode,
                        0o600,
                        "died {when} {step:?}: {} is open to others",
                        left.display()
                    );
                }
                assert!(write(&folder.file(), b"third").is_ok(), "died {when} {step:?}");
                assert_eq!(folder.contents(), b"third");
                assert!(folder.others().is_empty(), "died {when} {step:?}");
            }
        }
    }

    #[test]
    fn h105_a_leftover_goes_even_if_nothing_is_to_be_written() {
        let folder = Folder::with_file();
        let (answer, _) =
            faults::with(vec![(Step::Rename, Fault::DiesBefore)], || write(&folder.file(), NEW));
        assert!(answer.is_none() && folder.others().len() == 1);
        assert_eq!(write(&folder.file(), OLD), Ok(Written { changed: false }));
        assert!(folder.others().is_empty());
    }

    #[test]
    fn h105_only_our_own_leftovers_are_removed() {
        let folder = Folder::with_file();
        let foreign = [
            ".env.bak",
            ".env.tmp",
            ".other.keywheel-0123456789abcdef.tmp",
            ".env.keywheel-mine.tmp",
            "env.keywheel-0123456789abcdef.tmp",
        ];
        let foreign = foreign.map(|name| folder.0.path().join(name));
        foreign.iter().for_each(|path| fs::write(path, b"theirs").unwrap());
        fs::write(folder.0.path().join("..env.keywheel-0123456789abcdef.tmp"), b"ours").unwrap();
        assert!(write(&folder.file(), NEW).is_ok());
        let mut left = folder.others();
        left.sort();
        let mut expected = foreign.to_vec();
        expected.sort();
        assert_eq!(left, expected);
    }

    #[test]
    fn a_failure_before_the_rename_is_a_definite_no_and_leaves_nothing() {
        let errors = [Errno::NOSPC, Errno::IO, Errno::ACCESS, Errno::DQUOT, Errno::ROFS];
        for step in &STEPS[..6] {
            for error in errors {
                let folder = Folder::with_file();
                let failing = vec![(*step, Fault::Fails(error))];
                let (answer, _) = faults::with(failing, || write(&folder.file(), NEW));
                let refusal = refusal(answer.unwrap());
                assert_eq!(refusal.kind, RefusalKind::Local, "{step:?} {error}");
                assert_eq!(
                    (folder.contents(), folder.others()),
                    (OLD.to_vec(), vec![]),
                    "{step:?} {error}"
                );
            }
        }
    }

    #[test]
    fn a_failure_after_the_rename_is_unknown() {
        let folder = Folder::with_file();
        let (answer, _) = faults::with(vec![(Step::SyncFolder, Fault::Fails(Errno::IO))], || {
            write(&folder.file(), NEW)
        });
        assert!(matches!(answer, Some(Err(CallError::Unknown(_)))));
        assert_eq!(folder.contents(), NEW);
    }

    #[test]
    fn a_rename_that_is_done_and_says_otherwise_is_done() {
        let folder = Folder::with_file();
        let lying = vec![(Step::Rename, Fault::LiesAboutFailing(Errno::NOENT))];
        let (answer, done) = faults::with(lying, || write(&folder.file(), NEW));
        assert_eq!(answer, Some(Ok(Written { changed: true })));
        assert_eq!((folder.contents(), done.last()), (NEW.to_vec(), Some(&Step::SyncFolder)));
    }

    #[test]
    fn an_unfinished_file_that_stays_is_named() {
        let folder = Folder::with_file();
        let failing = vec![
            (Step::SyncFile, Fault::Fails(Errno::IO)),
            (Step::RemoveTemporary, Fault::Fails(Errno::IO)),
        ];
        let (answer, _) = faults::with(failing, || write(&folder.file(), NEW));
        assert!(
            refusal(answer.unwrap())
                .message
                .contains("unfinished file beside it could not be removed")
        );
    }

    #[test]
    fn h104_an_edit_between_read_and_rename_is_not_lost() {
        let edits: [TheirEdit; 5] = [
            ("written in place", |path| fs::write(path, b"theirs").unwrap()),
            ("same size", |path| fs::write(path, b"OLD-KWCANARY-7F3A").unwrap()),
            ("replaced", |path| {
                fs::write(path.with_extension("new"), OLD).unwrap();
                fs::rename(path.with_extension("new"), path).unwrap();
            }),
            ("mode changed", |path| {
                fs::set_permissions(path, fs::Permissions::from_mode(0o640)).unwrap()
            }),
            ("removed", |path| fs::remove_file(path).unwrap()),
        ];
        for (what, edit) in edits {
            for step in &STEPS[..5] {
                let folder = Folder::with_file();
                let path = folder.path();
                let theirs = Fault::Meanwhile(Box::new(move || edit(&path)));
                let (answer, done) =
                    faults::with(vec![(*step, theirs)], || write(&folder.file(), NEW));
                let refusal = refusal(answer.unwrap());
                assert_eq!(refusal.kind, RefusalKind::Conflict, "{what}");
                assert!(matches!(refusal.remedy, keywheel_driver::Remedy::Retry { .. }), "{what}");
                assert!(!done.contains(&Step::Rename), "{what}");
                assert!(fs::read(folder.path()).map_or(true, |now| now != NEW), "{what}");
            }
        }
    }

    #[test]
    fn h104_an_edit_that_keeps_size_and_times_is_seen_in_the_bytes() {
        let folder = Folder::with_file();
        let read = || folder.file().open().unwrap_or_else(|refusal| panic!("{refusal}")).unwrap().1;
        let (then, mut now) = (read(), read());
        assert!(now.is_still(&then));
        now.contents = SecretValue::new(OLD.to_ascii_uppercase());
        assert!(!now.is_still(&then));
    }

    #[test]
    fn h104_a_file_that_appears_meanwhile_is_not_overwritten() {
        for step in [Step::Compare, Step::Rename] {
            let folder = Folder(TempDir::new().unwrap());
            let (path, file) = (folder.path(), LocalFile::new(folder.path(), Some(Mode::RUSR)));
            let theirs = Fault::Meanwhile(Box::new(move || fs::write(path, b"theirs").unwrap()));
            let (answer, _) = faults::with(vec![(step, theirs)], || write(&file, NEW));
            assert!(answer.unwrap().is_err());
            assert_eq!((folder.contents(), folder.others()), (b"theirs".to_vec(), vec![]));
        }
    }

    #[test]
    fn h104_a_link_that_is_turned_elsewhere_is_seen() {
        let folder = Folder::with_file();
        let link = folder.0.path().join("link");
        let elsewhere = folder.0.path().join("elsewhere");
        fs::write(&elsewhere, b"elsewhere").unwrap();
        symlink(folder.path(), &link).unwrap();
        let turned = link.clone();
        let theirs = Fault::Meanwhile(Box::new(move || {
            fs::remove_file(&turned).unwrap();
            symlink(elsewhere, &turned).unwrap();
        }));
        let (answer, _) =
            faults::with(vec![(Step::Compare, theirs)], || write(&LocalFile::new(link, None), NEW));
        assert_eq!(refusal(answer.unwrap()).kind, RefusalKind::Conflict);
        assert_eq!(folder.contents(), OLD);
    }

    #[test]
    fn h102_a_link_stays_and_its_target_is_replaced() {
        let folder = Folder::with_file();
        let beside = TempDir::new().unwrap();
        let link = beside.path().join("app.env");
        symlink(folder.path(), &link).unwrap();
        let file = LocalFile::new(link.clone(), None);
        assert!(write(&file, NEW).is_ok());
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(
            (folder.contents(), file.canonical()),
            (NEW.to_vec(), folder.path().canonicalize().unwrap())
        );
    }

    #[test]
    fn h102_owner_mode_and_attributes_stay() {
        let folder = Folder::with_file();
        let path = folder.path();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let attribute = |path: &Path| {
            let mut value = [0; 16];
            rustix::fs::getxattr(path, "user.keywheel_test", &mut value[..])
                .map(|length| value[..length].to_vec())
        };
        // Where the test may not give files away, or the file system has no attributes, the rest still counts.
        let _given = std::os::unix::fs::chown(&path, Some(12_345), Some(54_321));
        let _set = rustix::fs::setxattr(
            &path,
            "user.keywheel_test",
            b"kept",
            rustix::fs::XattrFlags::empty(),
        );
        let facts = |path: &Path| {
            let stat = fs::metadata(path).unwrap();
            (stat.mode(), stat.uid(), stat.gid(), attribute(path))
        };
        let before = facts(&path);
        assert!(write(&folder.file(), NEW).is_ok());
        assert_eq!(folder.contents(), NEW);
        assert_eq!(facts(&path), before);
    }

    #[test]
    fn h102_no_content_is_written_before_owner_and_mode_are_set() {
        let folder = Folder::with_file();
        let (_, done) = faults::with(vec![], || write(&folder.file(), NEW));
        let place = |step| done.iter().position(|d| *d == step).unwrap();
        assert!(place(Step::KeepMetadata) < place(Step::WriteContents));
        let (_, done) = faults::with(vec![(Step::KeepMetadata, Fault::Fails(Errno::PERM))], || {
            write(&folder.file(), OLD)
        });
        assert!(!done.contains(&Step::WriteContents));
    }

    #[test]
    fn h102_a_file_with_another_name_is_refused() {
        let folder = Folder::with_file();
        fs::hard_link(folder.path(), folder.0.path().join("other")).unwrap();
        let refusal = refusal(write(&folder.file(), NEW));
        assert_eq!(refusal.kind, RefusalKind::Unsupported);
        assert!(refusal.message.contains("hard links"));
        assert_eq!(folder.contents(), OLD);
    }

    #[test]
    fn h101_a_mounted_file_is_told_from_a_mounted_folder() {
        let mounts = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
                      40 22 254:0 /srv/app/.env /app/.env rw,relatime - ext4 /dev/vda rw\n\
                      41 22 254:0 /srv/se\\040cret /run/my\\040secret\\134s rw - ext4 /dev/vda rw\n\
                      42 22 254:0 /srv/folder /folder rw shared:1 - ext4 /dev/vda rw\n";
        assert!(is_mount_point(mounts, Path::new("/app/.env")));
        assert!(is_mount_point(mounts, Path::new("/run/my secret\\s")));
        assert!(!is_mount_point(mounts, Path::new("/app/.env2")));
        assert!(!is_mount_point(mounts, Path::new("/srv/app/.env")));
        assert!(!is_mount_point(mounts, Path::new("/folder/.env")));
    }

    /// Runs this very test again where it may mount: in a user and mount namespace of its own.
    #[test]
    fn h101_a_file_that_is_mounted_is_refused_before_anything_is_made() {
        const MOUNTED: &str = "KEYWHEEL_TEST_MOUNTED";
        if let Some(folder) = std::env::var_os(MOUNTED) {
            let file = LocalFile::new(Path::new(&folder).join(".env"), None);
            let (answer, done) = faults::with(vec![], || write(&file, NEW));
            assert!(refusal(answer.unwrap()).message.contains("mount its folder instead"));
            assert_eq!(done, []);
            return;
        }
        let folder = Folder::with_file();
        let mut again = std::process::Command::new("unshare");
        again.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
        again.arg("mount --bind \"$0/.env\" \"$0/.env\" || exit 77; exec \"$1\" --exact \"$2\"");
        again.arg(folder.0.path()).arg(std::env::current_exe().unwrap());
        let module = module_path!().split_once("::").unwrap().1;
        let name =
            format!("{module}::h101_a_file_that_is_mounted_is_refused_before_anything_is_made");
        again.arg(name).env(MOUNTED, folder.0.path());
        match again.output() {
            Ok(output) if output.status.success() => {
                assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
                assert_eq!(folder.contents(), OLD);
            }
            Ok(output) if output.status.code() == Some(101) => {
                panic!("{}", String::from_utf8_lossy(&output.stdout))
            }
            _ => eprintln!("skipped: a file cannot be mounted here"),
        }
    }

    #[test]
    fn h101_a_rename_that_a_mount_forbids_says_so() {
        let folder = Folder::with_file();
        let (answer, _) = faults::with(vec![(Step::Rename, Fault::Fails(Errno::BUSY))], || {
            write(&folder.file(), NEW)
        });
        let refusal = refusal(answer.unwrap());
        assert_eq!(refusal.kind, RefusalKind::Unsupported);
        assert!(refusal.message.contains("mount its folder instead"));
    }

    #[test]
    fn h106_a_reader_sees_only_whole_contents() {
        let folder = Folder::with_file();
        let path = folder.path();
        let large = |byte: u8| vec![byte; 200_000];
        fs::write(&path, large(b'a')).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..40 {
                    assert!(
                        write(&folder.file(), &large(if round % 2 == 0 { b'b' } else { b'a' }))
                            .is_ok()
                    );
                }
                done.store(true, Ordering::SeqCst);
            });
            while !done.load(Ordering::SeqCst) {
                let seen = fs::read(&path).unwrap();
                assert_eq!(seen.len(), 200_000);
                assert!(seen.iter().all(|byte| *byte == seen[0]));
            }
        });
    }

    #[test]
    fn h63_writers_of_one_file_take_turns() {
        let folder = Folder::with_file();
        fs::write(folder.path(), b"").unwrap();
        let add = |byte: u8| {
            let longer = |text: Option<&SecretValue>| {
                Change::Contents(SecretValue::new([text.unwrap().expose(), &[byte]].concat()))
            };
            folder.file().rewrite(&AtomicBool::new(false), |text| Ok(longer(text)))
        };
        std::thread::scope(|scope| {
            (0..8).for_each(|byte| {
                scope.spawn(move || assert_eq!(add(byte), Ok(Written { changed: true })));
            });
        });
        let mut all = folder.contents();
        all.sort_unstable();
        assert_eq!(all, (0..8).collect::<Vec<u8>>());
    }

    #[test]
    fn an_abandoned_write_does_not_land() {
        let folder = Folder::with_file();
        let abandoned = AtomicBool::new(false);
        let change = |_: Option<&SecretValue>| {
            abandoned.store(true, Ordering::SeqCst);
            Ok(Change::Contents(SecretValue::new(NEW.to_vec())))
        };
        assert!(folder.file().rewrite(&abandoned, change).is_err());
        assert_eq!((folder.contents(), folder.others()), (OLD.to_vec(), vec![]));
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let folder = Folder::with_file();
        let fifo = folder.0.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        let dangling = folder.0.path().join("dangling");
        symlink(folder.0.path().join("nowhere"), &dangling).unwrap();
        let large = folder.0.path().join("large");
        File::create(&large).unwrap().set_len(LARGEST + 1).unwrap();
        for path in [fifo, dangling, large, folder.0.path().to_path_buf()] {
            let file = LocalFile::new(path, Some(Mode::RUSR));
            assert_eq!(file.read().err().unwrap().kind, RefusalKind::Unsupported);
            assert_eq!(refusal(write(&file, NEW)).kind, RefusalKind::Unsupported);
        }
        let missing = LocalFile::new(folder.0.path().join("missing"), None);
        assert_eq!(refusal(write(&missing, NEW)).kind, RefusalKind::NotFound);
    }

    #[test]
    fn a_file_that_is_made_has_the_mode_that_was_asked_for() {
        let folder = Folder(TempDir::new().unwrap());
        let file = LocalFile::new(folder.path(), Some(Mode::from_raw_mode(0o660)));
        assert!(write(&file, NEW).is_ok());
        assert_eq!(fs::metadata(folder.path()).unwrap().mode() & 0o777, 0o660);
    }
}
