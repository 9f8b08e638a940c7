mod damage;
mod processes;

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use keywheel_core::plan::{Mode, Plan};
use keywheel_core::secret::SecretValue;
use keywheel_core::version::VersionId;
use tempfile::TempDir;

use super::*;
use crate::conformance::{self, Begun};
use crate::{Entry, Sealed};

const CANARY: &str = "kwcanary-4b1d9e77-value";

struct Here {
    folder: TempDir,
}

impl Here {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn places(&self) -> Places {
        places_in(self.folder.path())
    }

    fn open(&self) -> SqliteJournal {
        SqliteJournal::open(&self.places(), Open::CreateIfMissing).unwrap()
    }

    fn open_error(&self, how: Open) -> JournalError {
        SqliteJournal::open(&self.places(), how).err().expect("it is refused")
    }

    /// Works on the closed database as somebody with an editor would.
    fn edit(&self, statements: &str) {
        Connection::open(self.places().journal).unwrap().execute_batch(statements).unwrap();
    }
}

fn places_in(folder: &Path) -> Places {
    let (journal, kek) = (folder.join("state/journal.sqlite"), folder.join("config/kek"));
    Places { journal, kek, allow_work_tree: false }
}

fn credential() -> Credential {
    Credential::of_value(SecretValue::new(CANARY.as_bytes().to_vec()))
}

fn key(begun: &Begun, part: &str) -> ValueKey {
    ValueKey { secret: begun.secret.clone(), version: VersionId(1), part: part.into() }
}

async fn seal(journal: &SqliteJournal, begun: &Begun, sequence: u64) {
    let seal = vec![Sealed { key: key(begun, "credential"), value: credential() }];
    let entry = Entry { seal, ..begun.entry(sequence, Event::Resumed) };
    conformance::append(journal, vec![entry]).await.unwrap();
}

async fn destroy(journal: &SqliteJournal, begun: &Begun, sequence: u64) {
    let entry =
        Entry { destroy: vec![key(begun, "credential")], ..begun.entry(sequence, Event::Resumed) };
    conformance::append(journal, vec![entry]).await.unwrap();
}

/// Every byte of every file below a folder. The journal has to be closed: opening its files beside SQLite drops its locks.
fn all_bytes(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for path in fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()) {
        if path.is_dir() {
            files.extend(all_bytes(&path));
        } else {
            files.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    files
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_passes_the_suite_of_every_journal() {
    let folders = RefCell::new(Vec::new());
    let make = || -> Box<dyn Journal> {
        let here = Here::new();
        let journal = here.open();
        folders.borrow_mut().push(here);
        Box::new(journal)
    };
    conformance::all(make).await;
}

#[tokio::test]
async fn what_was_written_is_there_after_it_is_opened_again() {
    let here = Here::new();
    let journal = here.open();
    let begun = Begun::of(&journal, "a@test").await;
    seal(&journal, &begun, 1).await;
    let (id, fingerprint) =
        (journal.installation.id.clone(), journal.installation.fingerprinter.of(b"x"));
    drop(journal);
    for how in [Open::Existing, Open::ReadOnly, Open::CreateIfMissing] {
        let journal = SqliteJournal::open(&here.places(), how).unwrap();
        assert_eq!(journal.installation.id, id);
        assert_eq!(journal.installation.fingerprinter.of(b"x"), fingerprint);
        assert_eq!(journal.records(&begun.rotation).await.unwrap().len(), 2);
        let opened = journal.unseal(&key(&begun, "credential")).await.unwrap().unwrap();
        assert!(opened.same_as(&credential()));
    }
}

#[test]
fn h10_a_commit_is_durable_before_it_is_answered() {
    let here = Here::new();
    drop(here.open());
    let connection = connect_to_write(&here.places().journal, &Settings::default()).unwrap();
    let pragma = |name| {
        connection.pragma_query_value(None, name, |row| row.get_ref(0).map(text_of)).unwrap()
    };
    assert_eq!((pragma("journal_mode"), pragma("synchronous")), ("wal".into(), "2".into()));
    assert_eq!((pragma("secure_delete"), pragma("wal_autocheckpoint")), ("1".into(), "0".into()));
}

#[tokio::test]
async fn h02_an_answered_append_is_seen_on_another_connection_at_once() {
    let here = Here::new();
    let (journal, other) = (here.open(), here.open());
    let begun = Begun::of(&journal, "a@test").await;
    for sequence in 1..20 {
        begun.append(&journal, sequence, Event::Resumed).await.unwrap();
        assert_eq!(other.records(&begun.rotation).await.unwrap().len() as u64, sequence + 1);
    }
}

#[tokio::test]
async fn it_needs_no_runtime() {
    let here = Here::new();
    let journal = here.open();
    let begun = std::thread::spawn(move || {
        let begun = futures_block_on(Begun::of(&journal, "a@test"));
        futures_block_on(journal.records(&begun.rotation)).unwrap().len()
    });
    assert_eq!(begun.join().unwrap(), 1);
}

/// Polls a future to its end on this thread, with nothing around it.
fn futures_block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
            std::task::Poll::Ready(done) => return done,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

#[tokio::test]
async fn h16_no_rotation_begins_on_a_disk_that_is_nearly_full_but_an_emergency_does() {
    let here = Here::new();
    let settings = Settings { free_floor: u64::MAX, ..Settings::default() };
    let journal =
        SqliteJournal::open_with(&here.places(), Open::CreateIfMissing, settings).unwrap();
    let plan = conformance::plan("a@test");
    let holder = journal.holder("test").unwrap();
    let epoch = journal
        .claim(&plan.secret, &holder, Timestamp::default(), Span::seconds(10))
        .await
        .unwrap();
    let begin = |plan: Plan| {
        let begun = Begun { secret: plan.secret.clone(), rotation: plan.rotation(), epoch };
        let journal = &journal;
        async move { begun.append(journal, 0, Event::Planned(Arc::new(plan))).await }
    };
    assert!(matches!(
        begin(plan.clone()).await,
        Err(JournalError::LowSpace { floor: u64::MAX, .. })
    ));
    assert_eq!(journal.rotations(None).await.unwrap(), Vec::new());
    let mode = Mode::Emergency { revoke_first: true, stage_for: Span::ZERO };
    begin(Plan { mode, ..plan }).await.unwrap();
}

#[tokio::test]
async fn a_reader_does_not_wait_for_a_writer_and_a_writer_is_refused_after_a_while() {
    let here = Here::new();
    let settings = Settings { busy_for: Duration::from_millis(20), ..Settings::default() };
    let journal =
        SqliteJournal::open_with(&here.places(), Open::CreateIfMissing, settings).unwrap();
    let begun = Begun::of(&journal, "a@test").await;
    let other = Connection::open(journal.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(journal.records(&begun.rotation).await.unwrap().len(), 1);
    assert!(matches!(
        begun.append(&journal, 1, Event::Resumed).await,
        Err(JournalError::Storage(_))
    ));
    other.execute_batch("ROLLBACK").unwrap();
    begun.append(&journal, 1, Event::Resumed).await.unwrap();
}

#[tokio::test]
async fn what_is_opened_to_be_read_cannot_be_written() {
    let here = Here::new();
    let begun = Begun::of(&here.open(), "a@test").await;
    let journal = SqliteJournal::open(&here.places(), Open::ReadOnly).unwrap();
    assert!(matches!(
        begun.append(&journal, 1, Event::Resumed).await,
        Err(JournalError::Storage(_))
    ));
    assert!(journal.holder("reader").is_err());
    assert_eq!(journal.verify_audit().await.unwrap().faults, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_appends_at_once_are_committed_in_groups_and_one_refusal_sinks_no_other() {
    let here = Here::new();
    let journal = Arc::new(here.open());
    let tasks = (0..64).map(|n| {
        let journal = Arc::clone(&journal);
        tokio::spawn(async move {
            let begun = Begun::of(&*journal, &format!("s{n}@test")).await;
            for sequence in 1..20 {
                let refused = begun.append(&*journal, sequence + 7, Event::Resumed).await;
                assert!(matches!(refused, Err(JournalError::Stale { .. })));
                begun.append(&*journal, sequence, Event::Resumed).await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let verdict = journal.verify_audit().await.unwrap();
    assert_eq!((verdict.links, verdict.faults), (64 * 20, Vec::new()));
}

#[tokio::test]
async fn a_holder_whose_journal_is_gone_is_taken_over_at_once_and_a_living_one_is_not() {
    let here = Here::new();
    let (one, two) = (here.open(), here.open());
    let secret = "a@test".parse().unwrap();
    let (first, second) = (one.holder("first").unwrap(), two.holder("second").unwrap());
    assert_ne!(first.id, second.id);
    let hour = Span::hours(1);
    let epoch = one.claim(&secret, &first, Timestamp::default(), hour).await.unwrap();
    match two.claim(&secret, &second, Timestamp::default(), hour).await {
        Err(JournalError::Held { holder, .. }) => assert_eq!(holder, "first"),
        other => panic!("a living holder was taken over: {other:?}"),
    }
    drop(one);
    let next = two.claim(&secret, &second, Timestamp::default(), hour).await.unwrap();
    assert_eq!(next, Epoch(epoch.0 + 1));
    let elsewhere = Holder { id: "../../etc/passwd".into(), name: "elsewhere".into() };
    two.give_up(&secret, next).await.unwrap();
    two.claim(&secret, &elsewhere, Timestamp::default(), hour).await.unwrap();
    assert!(matches!(
        two.claim(&secret, &second, Timestamp::default(), hour).await,
        Err(JournalError::Held { .. })
    ));
}

#[test]
fn lock_files_of_holders_that_hold_nothing_are_swept() {
    let here = Here::new();
    for _ in 0..3 {
        here.open().holder("short").unwrap();
    }
    let journal = here.open();
    journal.holder("last").unwrap();
    let folder = here.places().journal.with_file_name("holders");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
}

#[test]
fn c1_a_wrong_key_is_named_and_so_is_the_right_one() {
    let (here, elsewhere) = (Here::new(), Here::new());
    drop((here.open(), elsewhere.open()));
    let ids = [&here, &elsewhere]
        .map(|here| place::read_kek(&here.places().kek).unwrap().unwrap().id().to_owned());
    fs::copy(elsewhere.places().kek, here.places().kek).unwrap();
    for how in [Open::CreateIfMissing, Open::Existing, Open::ReadOnly] {
        let JournalError::Sealing(words) = here.open_error(how) else { panic!("another kind") };
        assert!(ids.iter().all(|id| words.contains(id)), "{words}");
    }
    fs::remove_file(here.places().kek).unwrap();
    for how in [Open::CreateIfMissing, Open::Existing, Open::ReadOnly] {
        let JournalError::Sealing(words) = here.open_error(how) else { panic!("another kind") };
        assert!(words.contains(&ids[0]) && words.contains("put it back"), "{words}");
    }
    assert!(!here.places().kek.exists(), "no new key is made for an old journal");
}

#[test]
fn two_environments_share_a_key_and_nothing_else() {
    let here = Here::new();
    let other =
        Places { journal: here.folder.path().join("other/journal.sqlite"), ..here.places() };
    let (one, two) = (here.open(), SqliteJournal::open(&other, Open::CreateIfMissing).unwrap());
    assert_ne!(one.installation.id, two.installation.id);
    assert_ne!(one.installation.fingerprinter.of(b"x"), two.installation.fingerprinter.of(b"x"));
}

#[test]
fn h15_a_journal_of_a_newer_version_is_refused() {
    let here = Here::new();
    drop(here.open());
    here.edit("PRAGMA user_version = 2");
    for how in [Open::CreateIfMissing, Open::Existing, Open::ReadOnly] {
        let words = here.open_error(how).to_string();
        assert!(words.contains("newer keywheel (format 2"), "{words}");
    }
}

/// A copy of a database and its rollback journal in the middle of a transaction is what a killed process leaves.
#[test]
fn h15_a_journal_that_was_left_half_made_is_none_yet_and_is_made() {
    let here = Here::new();
    let there = tempfile::tempdir().unwrap();
    let half_made = there.path().join("journal.sqlite");
    let connection = Connection::open(&half_made).unwrap();
    connection.execute_batch("PRAGMA cache_size = 1; CREATE TABLE t (x); BEGIN").unwrap();
    connection.execute_batch("INSERT INTO t VALUES (randomblob(1000000))").unwrap();
    here.open();
    let places = here.places();
    fs::remove_file(&places.journal).unwrap();
    for suffix in ["", "-journal"] {
        let from = half_made.with_file_name(format!("journal.sqlite{suffix}"));
        let to = places.journal.with_file_name(format!("journal.sqlite{suffix}"));
        fs::copy(&from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
    }
    assert!(!SqliteJournal::is_made(&places).unwrap());
    here.open();
    assert!(SqliteJournal::is_made(&places).unwrap());
}

#[test]
fn a_missing_journal_is_made_only_where_that_is_wanted() {
    let here = Here::new();
    for how in [Open::Existing, Open::ReadOnly] {
        assert!(matches!(here.open_error(how), JournalError::Place(_)));
        assert_eq!(fs::read_dir(here.folder.path()).unwrap().count(), 0);
    }
    drop(here.open());
    SqliteJournal::open(&here.places(), Open::Existing).unwrap();
}

#[tokio::test]
async fn i09_h130_no_file_holds_a_value_and_none_a_destroyed_key() {
    let here = Here::new();
    let journal = here.open();
    let begun = Begun::of(&journal, "a@test").await;
    seal(&journal, &begun, 1).await;
    let envelope = journal
        .readers
        .read(|connection| Tables(connection).value(&Name::of(&key(&begun, "credential"))))
        .unwrap()
        .unwrap();
    assert!(journal.erase_destroyed().await.unwrap());
    drop(journal);
    let sealed = all_bytes(here.folder.path());
    assert!(
        sealed.iter().any(|(_, bytes)| contains(bytes, &envelope.wrapped.key)),
        "the scan finds what is there"
    );
    assert!(!sealed.iter().any(|(_, bytes)| contains(bytes, CANARY.as_bytes())));

    let journal = here.open();
    destroy(&journal, &begun, 2).await;
    assert!(journal.erase_destroyed().await.unwrap());
    // A killed process gets no chance to tidy up as it closes.
    std::mem::forget(journal);
    for (path, bytes) in copy_of_all_bytes(&here) {
        for needle in [&envelope.wrapped.key[..], &envelope.ciphertext[..], CANARY.as_bytes()] {
            assert!(!contains(&bytes, needle), "{}", path.display());
        }
    }
}

/// As [`all_bytes`], of a journal that is still open: another process copies it first.
fn copy_of_all_bytes(here: &Here) -> Vec<(PathBuf, Vec<u8>)> {
    let copy = tempfile::tempdir().unwrap();
    let done = std::process::Command::new("cp")
        .arg("-r")
        .arg(here.folder.path())
        .arg(copy.path())
        .status()
        .unwrap();
    assert!(done.success());
    all_bytes(copy.path())
}

#[tokio::test]
async fn h130_a_destroyed_key_leaves_the_log_by_itself() {
    let here = Here::new();
    let journal = here.open();
    let begun = Begun::of(&journal, "a@test").await;
    seal(&journal, &begun, 1).await;
    destroy(&journal, &begun, 2).await;
    let log = journal.path().with_file_name("journal.sqlite-wal");
    let emptied = async {
        while fs::metadata(&log).unwrap().len() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), emptied)
        .await
        .expect("the log is emptied by itself");
}

#[test]
fn h121_looser_modes_are_refused() {
    let here = Here::new();
    drop(here.open());
    let (journal, kek) = (here.places().journal, here.places().kek);
    let holders = journal.with_file_name("holders");
    let (state, config) = (journal.parent().unwrap().to_owned(), kek.parent().unwrap().to_owned());
    for path in [journal, kek, state, config] {
        let right = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(right.mode() | 0o040)).unwrap();
        for how in [Open::CreateIfMissing, Open::Existing, Open::ReadOnly] {
            let words = here.open_error(how).to_string();
            assert!(words.contains("others may use"), "{words}");
        }
        fs::set_permissions(&path, right).unwrap();
    }
    drop(here.open().holder("x").unwrap());
    assert_eq!(fs::metadata(holders).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn h121_a_link_in_place_of_a_file_is_refused() {
    let here = Here::new();
    drop(here.open());
    let journal = here.places().journal;
    let aside = here.folder.path().join("aside");
    fs::rename(&journal, &aside).unwrap();
    std::os::unix::fs::symlink(&aside, &journal).unwrap();
    for how in [Open::CreateIfMissing, Open::Existing, Open::ReadOnly] {
        assert!(matches!(here.open_error(how), JournalError::Place(_)));
    }
}
