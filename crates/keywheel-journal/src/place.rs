//! Where a journal and its key-encryption key lie, and what is refused about such a place (H121).
//!
//! Both are of this user alone, in folders of this user alone, under parents that nobody else may write; never in one folder,
//! so that no copy of one takes the other along; and not in a work tree or a build context, where `git clean` would lose open
//! rotations and `git add` or an image would publish the key.
//!
//! An existing database file is only ever looked at by its name. Opening and closing it beside SQLite would drop the locks
//! that SQLite holds for the whole process.

use keywheel_core::planted;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use keywheel_core::secret::check_name;
use rustix::fs::OFlags;
use zeroize::Zeroizing;

use crate::JournalError;
use crate::seal::Kek;

/// The marks of a folder whose contents are committed, cleaned or copied into images.
const MARKS: [&str; 8] = [
    ".git",
    "Dockerfile",
    "Containerfile",
    ".dockerignore",
    "compose.yaml",
    "compose.yml",
    "docker-compose.yaml",
    "docker-compose.yml",
];

/// Where a journal and its key-encryption key lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The database file.
    pub journal: PathBuf,
    /// The key file, in another folder.
    pub kek: PathBuf,
    /// Whether they may lie in a work tree or build context, because somebody named that place.
    pub allow_work_tree: bool,
}

impl Places {
    /// Returns the usual places: below `$XDG_STATE_HOME` and `$XDG_CONFIG_HOME`, or `/var/lib` and `/etc` for root.
    ///
    /// # Errors
    /// [`JournalError::Place`] where a name cannot be one of a folder, or no home folder is known.
    pub fn default_for(project: &str, environment: &str) -> Result<Self, JournalError> {
        let root = rustix::process::geteuid().is_root();
        Self::among(project, environment, root, |name| std::env::var_os(name).map(PathBuf::from))
    }

    fn among(
        project: &str,
        environment: &str,
        root: bool,
        variable: impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<Self, JournalError> {
        for name in [project, environment] {
            check_name(name).map_err(|error| JournalError::Place(error.to_string()))?;
        }
        // The XDG specification has relative paths ignored.
        let absolute = |name: &str| variable(name).filter(|path| path.is_absolute());
        let base = |name: &str, for_root: &str, in_home: &str| {
            let usual = || {
                if root {
                    Some(for_root.into())
                } else {
                    absolute("HOME").map(|home| home.join(in_home))
                }
            };
            absolute(name)
                .or_else(usual)
                .ok_or_else(|| JournalError::Place(format!("neither `{name}` nor `HOME` is set")))
        };
        let state = base("XDG_STATE_HOME", "/var/lib", ".local/state")?;
        let config = base("XDG_CONFIG_HOME", "/etc", ".config")?;
        Ok(Self {
            journal: state.join("keywheel").join(project).join(environment).join("journal.sqlite"),
            kek: config.join("keywheel").join(project).join("kek"),
            allow_work_tree: false,
        })
    }

    /// Checks both places, makes what is missing where that is wanted, and returns them without symbolic links.
    pub(crate) fn settle(&self, create: bool) -> Result<Self, JournalError> {
        let journal = self.settle_one(&self.journal, create)?;
        let kek = self.settle_one(&self.kek, create)?;
        if journal.parent() == kek.parent() {
            let place = kek.display();
            return Err(JournalError::Place(format!(
                "the key-encryption key `{place}` lies in the journal's folder; a copy of one would take the other along"
            )));
        }
        Ok(Self { journal, kek, allow_work_tree: self.allow_work_tree })
    }

    fn settle_one(&self, file: &Path, create: bool) -> Result<PathBuf, JournalError> {
        let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else {
            return Err(JournalError::Place(format!("`{}` does not name a file", file.display())));
        };
        Ok(settle_folder(folder, create, self.allow_work_tree)?.join(name))
    }
}

/// Checks a folder and its parents, makes it where that is wanted, and returns it without symbolic links.
fn settle_folder(
    folder: &Path,
    create: bool,
    allow_work_tree: bool,
) -> Result<PathBuf, JournalError> {
    let folder = std::path::absolute(folder).map_err(|error| at(folder, &error))?;
    let existing =
        folder.ancestors().find(|path| path.symlink_metadata().is_ok()).unwrap_or(Path::new("/"));
    let missing = folder.strip_prefix(existing).expect("an ancestor is a prefix");
    if missing.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
        return Err(JournalError::Place(format!(
            "`{}` has `..` below a folder that is not there",
            folder.display()
        )));
    }
    let existing = existing.canonicalize().map_err(|error| at(existing, &error))?;
    let mark = existing.ancestors().find_map(work_tree_mark);
    if let Some(mark) = mark.as_ref().filter(|_| !allow_work_tree) {
        return Err(JournalError::Place(format!(
            "`{}` lies in a work tree or build context (`{}`): name another place, or this one in so many words",
            folder.display(),
            mark.display()
        )));
    }
    let parents =
        if missing.as_os_str().is_empty() { existing.parent() } else { Some(existing.as_path()) };
    parents.into_iter().flat_map(Path::ancestors).try_for_each(check_parent)?;
    if !missing.as_os_str().is_empty() && !create {
        return Err(JournalError::Place(format!("`{}` is not there", folder.display())));
    }
    let settled = make_folders(existing, missing)?;
    check_own_folder(&settled)?;
    if create && mark.is_some() {
        ignore_contents(&settled)?;
    }
    Ok(settled)
}

fn work_tree_mark(folder: &Path) -> Option<PathBuf> {
    MARKS.iter().map(|mark| folder.join(mark)).find(|mark| mark.symlink_metadata().is_ok())
}

/// Refuses a parent that somebody else owns or may write; `/tmp` and its like keep others from moving what is ours.
fn check_parent(folder: &Path) -> Result<(), JournalError> {
    let meta = folder.symlink_metadata().map_err(|error| at(folder, &error))?;
    let (owner, mode) = (meta.uid(), meta.mode());
    let trusted = owner == 0 || owner == rustix::process::geteuid().as_raw();
    let sticky = mode & 0o1000 != 0;
    if !trusted {
        return Err(JournalError::Place(format!("`{}` belongs to user {owner}", folder.display())));
    }
    if mode & 0o022 != 0 && !sticky && !planted!("open_parents_accepted") {
        return Err(JournalError::Place(format!(
            "others may write `{}` (mode {:o})",
            folder.display(),
            mode & 0o7777
        )));
    }
    Ok(())
}

/// Makes folders one by one, each 0700 whatever the umask is.
fn make_folders(existing: PathBuf, missing: &Path) -> Result<PathBuf, JournalError> {
    let mut folder = existing;
    for part in missing {
        let parent = folder.clone();
        folder.push(part);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => {
                let mode = Permissions::from_mode(0o700);
                fs::set_permissions(&folder, mode).map_err(|error| at(&folder, &error))?;
                sync_folder(&parent)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(at(&folder, &error)),
        }
    }
    Ok(folder)
}

/// Refuses a folder or file that is not of this user alone, or is not what it should be.
fn check_own(
    path: &Path,
    is_right_kind: impl Fn(&fs::Metadata) -> bool,
) -> Result<(), JournalError> {
    let meta = path.symlink_metadata().map_err(|error| at(path, &error))?;
    let (name, mode) = (path.display(), meta.mode() & 0o7777);
    if !is_right_kind(&meta) {
        return Err(JournalError::Place(format!(
            "`{name}` is not what it should be: a link, or something else"
        )));
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(JournalError::Place(format!("`{name}` belongs to user {}", meta.uid())));
    }
    if mode & 0o077 != 0 && !planted!("loose_modes_accepted") {
        return Err(JournalError::Place(format!(
            "others may use `{name}` (mode {mode:o}): take that from them (`chmod go=`)"
        )));
    }
    Ok(())
}

fn check_own_folder(folder: &Path) -> Result<(), JournalError> {
    check_own(folder, fs::Metadata::is_dir)
}

/// Refuses a file that is not a file of this user alone.
pub(crate) fn check_own_file(file: &Path) -> Result<(), JournalError> {
    check_own(file, fs::Metadata::is_file)
}

/// Returns whether something of that name is there, a dangling link included.
pub(crate) fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Makes an empty file of this user alone; none where the name is taken.
pub(crate) fn create_file(path: &Path) -> Result<Option<File>, JournalError> {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let opened =
        OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(flags).open(path);
    match opened {
        Ok(file) => {
            // The mode at creation is cut by the umask, never widened; this makes it exact.
            file.set_permissions(Permissions::from_mode(0o600))
                .map_err(|error| at(path, &error))?;
            Ok(Some(file))
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(at(path, &error)),
    }
}

/// Makes a folder of this user alone where there is none.
pub(crate) fn make_own_folder(folder: &Path) -> Result<(), JournalError> {
    let parent = folder.parent().expect("the folder lies in the journal's folder");
    let name = folder.file_name().expect("the folder has a name");
    make_folders(parent.to_owned(), Path::new(name))?;
    check_own_folder(folder)
}

/// Makes what was written to a folder's list of names durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), JournalError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| at(folder, &error))
}

/// Reads the key-encryption key; none where there is no such file.
pub(crate) fn read_kek(path: &Path) -> Result<Option<Kek>, JournalError> {
    if !is_there(path) {
        return Ok(None);
    }
    check_own_file(path)?;
    let bytes = Zeroizing::new(fs::read(path).map_err(|error| at(path, &error))?);
    Kek::from_text(&bytes).map(Some)
}

/// Makes a key-encryption key, or reads the one that another process made first.
pub(crate) fn create_kek(path: &Path) -> Result<Kek, JournalError> {
    let kek = Kek::generate()?;
    let folder = path.parent().expect("a settled place has a folder");
    let draft = folder.join(format!(".kek-{}", kek.id()));
    let mut file = create_file(&draft)?
        .ok_or_else(|| JournalError::Place(format!("`{}` is in the way", draft.display())))?;
    let written = file.write_all(kek.to_text().as_bytes()).and_then(|()| file.sync_all());
    // A link appears whole or not at all, and never replaces a key that is there.
    let linked = written.and_then(|()| fs::hard_link(&draft, path));
    fs::remove_file(&draft).map_err(|error| at(&draft, &error))?;
    sync_folder(folder)?;
    match linked {
        Ok(()) => Ok(kek),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            read_kek(path)?.ok_or_else(|| at(path, &error))
        }
        Err(error) => Err(at(path, &error)),
    }
}

fn ignore_contents(folder: &Path) -> Result<(), JournalError> {
    let path = folder.join(".gitignore");
    let Some(mut file) = create_file(&path)? else { return Ok(()) };
    file.write_all(b"*\n").and_then(|()| file.sync_all()).map_err(|error| at(&path, &error))
}

fn at(path: &Path, error: &std::io::Error) -> JournalError {
    JournalError::Place(format!("`{}`: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn refusal(path: &Path, allow_work_tree: bool) -> String {
        settle_folder(path, true, allow_work_tree).unwrap_err().to_string()
    }

    #[test]
    fn the_usual_places_are_apart_and_out_of_the_work_tree() {
        let variable = |name: &str| (name == "HOME").then(|| PathBuf::from("/home/dana"));
        let user = Places::among("shop", "production", false, variable).unwrap();
        assert_eq!(
            user.journal,
            Path::new("/home/dana/.local/state/keywheel/shop/production/journal.sqlite")
        );
        assert_eq!(user.kek, Path::new("/home/dana/.config/keywheel/shop/kek"));
        let root = Places::among("shop", "production", true, variable).unwrap();
        assert_eq!(root.journal, Path::new("/var/lib/keywheel/shop/production/journal.sqlite"));
        assert_eq!(root.kek, Path::new("/etc/keywheel/shop/kek"));
        let named =
            |name: &str| Some(PathBuf::from(if name == "XDG_STATE_HOME" { "/s" } else { "/c" }));
        let named = Places::among("shop", "production", true, named).unwrap();
        assert_eq!(named.journal, Path::new("/s/keywheel/shop/production/journal.sqlite"));
        assert_eq!(named.kek, Path::new("/c/keywheel/shop/kek"));
        let relative =
            |name: &str| Some(PathBuf::from(if name == "HOME" { "/home/dana" } else { "x" }));
        assert_eq!(Places::among("shop", "production", false, relative).unwrap(), user);
        assert!(Places::among("../shop", "production", false, variable).is_err());
        assert!(Places::among("shop", "production", false, |_| None).is_err());
    }

    #[test]
    fn a_work_tree_or_build_context_is_refused_unless_it_was_named() {
        for mark in [".git", "Dockerfile", "compose.yaml", "docker-compose.yml"] {
            let here = folder();
            fs::write(here.path().join(mark), "").unwrap();
            let wanted = here.path().join("deep/er");
            assert!(refusal(&wanted, false).contains(mark));
            assert!(!here.path().join("deep").exists());
            let settled = settle_folder(&wanted, true, true).unwrap();
            assert_eq!(fs::read(settled.join(".gitignore")).unwrap(), b"*\n");
        }
    }

    #[test]
    fn h121_a_parent_that_others_may_write_is_refused() {
        let here = folder();
        let open = here.path().join("open");
        fs::create_dir(&open).unwrap();
        for mode in [0o770, 0o707, 0o777] {
            fs::set_permissions(&open, Permissions::from_mode(mode)).unwrap();
            assert!(refusal(&open.join("state"), false).contains("others may write"));
        }
        fs::set_permissions(&open, Permissions::from_mode(0o1777)).unwrap();
        settle_folder(&open.join("state"), true, false).unwrap();
        assert!(refusal(&open, false).contains("others may use"));
    }

    #[test]
    fn h121_a_parent_of_another_user_is_refused() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let here = folder();
        let foreign = here.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        std::os::unix::fs::chown(&foreign, Some(4711), None).unwrap();
        assert!(refusal(&foreign.join("state"), false).contains("user 4711"));
        assert!(refusal(&foreign, false).contains("user 4711"));
    }

    #[test]
    fn a_link_on_the_way_is_followed_before_anything_is_judged() {
        let (here, tree) = (folder(), folder());
        fs::write(tree.path().join("Dockerfile"), "").unwrap();
        fs::create_dir(tree.path().join("inside")).unwrap();
        std::os::unix::fs::symlink(tree.path().join("inside"), here.path().join("link")).unwrap();
        assert!(refusal(&here.path().join("link/state"), false).contains("Dockerfile"));
    }

    #[test]
    fn a_key_beside_its_journal_is_refused() {
        let here = folder();
        let path = |name: &str| here.path().join("state").join(name);
        let places =
            Places { journal: path("journal.sqlite"), kek: path("kek"), allow_work_tree: false };
        assert!(places.settle(true).unwrap_err().to_string().contains("take the other along"));
    }

    #[test]
    fn a_key_that_is_there_is_kept() {
        let here = folder();
        let path = here.path().join("kek");
        let first = create_kek(&path).unwrap();
        assert_eq!(create_kek(&path).unwrap().id(), first.id());
        assert_eq!(read_kek(&path).unwrap().unwrap().id(), first.id());
        assert_eq!(fs::read_dir(here.path()).unwrap().count(), 1);
    }
}
