//! Several processes in one journal. A test starts this test program again, with the name of a part to play.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use super::*;

const PART: &str = "KEYWHEEL_TEST_PART";
const FOLDER: &str = "KEYWHEEL_TEST_FOLDER";
const NAME: &str = "KEYWHEEL_TEST_NAME";

/// A process that plays a part and is killed when the test is over.
struct Player(Child);

impl Player {
    fn start(here: &Here, part: &str, name: &str) -> Self {
        Self::start_with(Command::new(std::env::current_exe().unwrap()), here, part, name)
    }

    fn start_with(mut command: Command, here: &Here, part: &str, name: &str) -> Self {
        let child = command
            .args([
                "--exact",
                "sqlite::tests::processes::a_part_is_played",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(PART, part)
            .env(FOLDER, here.folder.path())
            .env(NAME, name)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Waits until the process says a word.
    fn wait_for(&mut self, word: &str) {
        let lines = BufReader::new(self.0.stdout.as_mut().unwrap()).lines();
        let said = lines.map_while(Result::ok).any(|line| line.contains(word));
        assert!(said, "the process ended without saying {word}");
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    fn finish(mut self) {
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            self.kill();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_is_played() {
    let Ok(part) = std::env::var(PART) else { return };
    let folder = PathBuf::from(std::env::var(FOLDER).unwrap());
    let name = std::env::var(NAME).unwrap();
    match part.as_str() {
        "open" => drop(SqliteJournal::open(&places_in(&folder), Open::CreateIfMissing).unwrap()),
        "open with umask 0" => open_with_umask(&folder),
        "compete" => compete(&folder, &name).await,
        "own" => write_own_secret(&folder, &name).await,
        "hold" => hold(&folder, &name).await,
        "endure" => endure(&folder).await,
        "meet a failing disk" => meet_a_failing_disk(&folder, &name).await,
        "count syncs" => count_syncs(&folder).await,
        other => panic!("no such part: {other}"),
    }
}

fn open(folder: &Path) -> SqliteJournal {
    SqliteJournal::open(&places_in(folder), Open::CreateIfMissing).unwrap()
}

fn open_with_umask(folder: &Path) {
    rustix::process::umask(rustix::fs::Mode::empty());
    let journal = open(folder);
    journal.holder("x").unwrap();
    for name in ["state", "state/holders", "config"] {
        assert_eq!(
            fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777,
            0o700,
            "{name}"
        );
    }
    let mut files = 0;
    for folder in [folder.join("state"), folder.join("state/holders"), folder.join("config")] {
        for file in fs::read_dir(folder).unwrap().map(|file| file.unwrap()) {
            let meta = file.metadata().unwrap();
            files += usize::from(meta.is_file());
            assert!(
                meta.is_dir() || meta.permissions().mode() & 0o777 == 0o600,
                "{:?}",
                file.path()
            );
        }
    }
    assert_eq!(files, 5, "database, log, index, lock and key");
}

/// Works on one secret in turns with others: claims it for a moment, reads where it stands, and goes on from there, now and
/// then so late that somebody else has it.
async fn compete(folder: &Path, name: &str) {
    let journal = open(folder);
    // No lock file of ours: a living process that is slower than its lease is what this is about.
    let holder = Holder { id: name.into(), name: name.into() };
    let plan = conformance::plan("shared@test");
    let begun = Begun { secret: plan.secret.clone(), rotation: plan.rotation(), epoch: Epoch(0) };
    let mut written = 0;
    let mut round: i64 = 0;
    while written < 40 {
        round += 1;
        // Everybody's clock runs ahead of everybody's lease, so claims are taken away all the time.
        let now = Timestamp::from_millis(round * 1_000);
        let Ok(epoch) = journal.claim(&begun.secret, &holder, now, Span::millis(1)).await else {
            continue;
        };
        let begun = Begun { epoch, ..begun.clone() };
        if round % 3 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let next = journal.records(&begun.rotation).await.unwrap().len() as u64;
        let because = format!("{name} under {}", epoch.0);
        match begun.append(&journal, next, Event::Overridden { because }).await {
            Ok(()) => written += 1,
            Err(JournalError::Stale { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
}

async fn write_own_secret(folder: &Path, name: &str) {
    let journal = open(folder);
    let begun = Begun::of(&journal, &format!("{name}@test")).await;
    for sequence in 1..60 {
        begun.append(&journal, sequence, Event::Resumed).await.unwrap();
    }
}

async fn hold(folder: &Path, name: &str) {
    let journal = open(folder);
    let holder = journal.holder(name).unwrap();
    journal
        .claim(&"a@test".parse().unwrap(), &holder, Timestamp::default(), Span::hours(1))
        .await
        .unwrap();
    println!("holding");
    std::future::pending().await
}

/// Writes without end, from several tasks, sealing and destroying as it goes.
async fn endure(folder: &Path) {
    let journal = Arc::new(open(folder));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let journal = Arc::clone(&journal);
        tasks.spawn(async move {
            let begun = Begun::of(&*journal, &format!("s{n}@test")).await;
            for sequence in 0.. {
                seal(&journal, &begun, 1 + 2 * sequence).await;
                destroy(&journal, &begun, 2 + 2 * sequence).await;
                println!("written");
            }
        });
    }
    tasks.join_next().await.expect("there are tasks").expect("a task writes without end");
}

/// Writes until the disk fails, and then says what the journal does when it is asked again.
async fn meet_a_failing_disk(folder: &Path, failure: &str) {
    let journal = open(folder);
    let begun = Begun::of(&journal, "a@test").await;
    let mut sequence = 1;
    let first = loop {
        match begun.append(&journal, sequence, Event::Resumed).await {
            Ok(()) => sequence += 1,
            Err(error) => break error,
        }
    };
    let JournalError::Storage(words) = first else { panic!("another kind of error: {first}") };
    assert!(words.starts_with("commit failed") || words.contains("full"), "{words}");
    let second = begun.append(&journal, sequence, Event::Resumed).await;
    match (failure, second) {
        ("EIO", Err(JournalError::Storage(words))) => {
            assert!(words.starts_with("the journal stopped"), "{words}")
        }
        ("ENOSPC", Ok(())) => println!("written {}", sequence + 1),
        (_, other) => panic!("after {failure}: {other:?}"),
    }
}

/// Appends from many tasks at once, one record each a thousand times over.
async fn count_syncs(folder: &Path) {
    let journal = Arc::new(open(folder));
    let tasks: Vec<_> = (0..100)
        .map(|n| {
            let journal = Arc::clone(&journal);
            tokio::spawn(async move {
                let begun = Begun::of(&*journal, &format!("s{n}@test")).await;
                for sequence in 1..10 {
                    begun.append(&*journal, sequence, Event::Resumed).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

/// Whether system calls can be watched and let fail; says so where they cannot.
fn has_strace() -> bool {
    let found = Command::new("strace").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        println!("skipped: there is no strace");
    }
    found
}

/// A program that runs this one and lets a system call fail.
fn strace(here: &Here, arguments: &[&str]) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o"]).arg(here.folder.path().join("trace")).args(arguments);
    command.arg(std::env::current_exe().unwrap());
    command
}

const SYNCS: &str = "trace=fsync,fdatasync";

#[tokio::test]
async fn h11_a_failed_sync_stops_the_journal_for_good() {
    if !has_strace() {
        return;
    }
    for failed in [12, 13, 20] {
        let here = Here::new();
        drop(here.open());
        let inject = format!("inject=fsync,fdatasync:error=EIO:when={failed}");
        let command = strace(&here, &["-e", SYNCS, "-e", &inject]);
        Player::start_with(command, &here, "meet a failing disk", "EIO").finish();
        let trace = fs::read_to_string(here.folder.path().join("trace")).unwrap();
        let after = trace.split_once("(INJECTED)").expect("the failure happened").1;
        assert!(!after.contains("sync("), "it was tried again:\n{after}");
        assert_eq!(here.open().verify_audit().await.unwrap().faults, Vec::<String>::new());
    }
}

#[tokio::test]
async fn h16_a_full_disk_refuses_a_commit_whole_and_the_next_one_goes_on() {
    if !has_strace() {
        return;
    }
    for failed in [30, 31, 32, 33] {
        let here = Here::new();
        drop(here.open());
        let inject = format!("inject=pwrite64:error=ENOSPC:when={failed}");
        let command = strace(&here, &["-e", "trace=pwrite64", "-e", &inject]);
        let mut player = Player::start_with(command, &here, "meet a failing disk", "ENOSPC");
        player.wait_for("written");
        player.finish();
        let journal = here.open();
        let verdict = journal.verify_audit().await.unwrap();
        assert_eq!(verdict.faults, Vec::<String>::new());
        let rows = journal.rotations(None).await.unwrap();
        assert_eq!(journal.records(&rows[0].rotation).await.unwrap().len() as u64, verdict.links);
    }
}

#[test]
fn h10_every_commit_is_synced_and_a_group_of_them_once() {
    if !has_strace() {
        return;
    }
    let here = Here::new();
    drop(here.open());
    let command = strace(&here, &["-e", SYNCS]);
    Player::start_with(command, &here, "count syncs", "").finish();
    let trace = fs::read_to_string(here.folder.path().join("trace")).unwrap();
    let syncs = trace.lines().filter(|line| line.contains("sync(")).count();
    // A thousand records and a hundred claims, a hundred at a time.
    assert!((11..500).contains(&syncs), "{syncs} syncs");
}

#[test]
fn h121_files_are_of_this_user_alone_whatever_the_umask_is() {
    Player::start(&Here::new(), "open with umask 0", "").finish();
}

#[tokio::test]
async fn two_processes_that_create_one_journal_agree_on_it() {
    for _ in 0..4 {
        let here = Here::new();
        let players = ["a", "b", "c"].map(|name| Player::start(&here, "open", name));
        players.into_iter().for_each(Player::finish);
        assert_eq!(here.open().verify_audit().await.unwrap().faults, Vec::<String>::new());
    }
}

#[tokio::test]
async fn h25_i05_processes_on_one_secret_never_fork_it() {
    let here = Here::new();
    let begun = {
        let journal = here.open();
        let begun = Begun::of(&journal, "shared@test").await;
        journal.give_up(&begun.secret, begun.epoch).await.unwrap();
        begun
    };
    let players = ["a", "b", "c"].map(|name| Player::start(&here, "compete", name));
    players.into_iter().for_each(Player::finish);
    let journal = here.open();
    let records = journal.records(&begun.rotation).await.unwrap();
    assert_eq!(records.len(), 1 + 3 * 40);
    assert!(
        records.windows(2).all(|pair| pair[0].epoch <= pair[1].epoch),
        "an older epoch wrote after a newer one"
    );
    for record in &records[1..] {
        let Event::Overridden { because } = &record.event else { panic!("another event") };
        assert!(because.ends_with(&format!(" under {}", record.epoch.0)));
    }
    let mut owners = std::collections::BTreeMap::new();
    for record in &records[1..] {
        let Event::Overridden { because } = &record.event else { panic!("another event") };
        let owner = owners.entry(record.epoch).or_insert_with(|| because.clone());
        assert_eq!(owner, because, "two processes wrote under one epoch");
    }
    assert!(owners.len() > 3, "the secret went from hand to hand");
    assert_eq!(journal.verify_audit().await.unwrap().faults, Vec::<String>::new());
}

#[tokio::test]
async fn i05_processes_on_different_secrets_do_not_disturb_each_other() {
    let here = Here::new();
    drop(here.open());
    let players = ["a", "b", "c"].map(|name| Player::start(&here, "own", name));
    players.into_iter().for_each(Player::finish);
    let verdict = here.open().verify_audit().await.unwrap();
    assert_eq!((verdict.links, verdict.faults), (3 * 60, Vec::new()));
}

#[tokio::test]
async fn a_killed_holder_is_taken_over_at_once_and_a_paused_one_is_not() {
    let here = Here::new();
    let journal = here.open();
    let holder = journal.holder("second").unwrap();
    let mut player = Player::start(&here, "hold", "first");
    player.wait_for("holding");
    let secret = "a@test".parse().unwrap();
    let claim = || journal.claim(&secret, &holder, Timestamp::default(), Span::hours(1));
    let pid = rustix::process::Pid::from_child(&player.0);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    match claim().await {
        Err(JournalError::Held { holder, .. }) => assert_eq!(holder, "first"),
        other => panic!("a living holder was taken over: {other:?}"),
    }
    player.kill();
    assert_eq!(claim().await.unwrap(), Epoch(2));
}

#[tokio::test]
async fn a_process_killed_in_the_middle_of_commits_leaves_a_valid_chain() {
    let here = Here::new();
    for round in 0..4 {
        let mut player = Player::start(&here, "endure", "");
        for _ in 0..20 + 13 * round {
            player.wait_for("written");
        }
        player.kill();
        let journal = here.open();
        let verdict = journal.verify_audit().await.unwrap();
        assert_eq!(verdict.faults, Vec::<String>::new());
        assert!(verdict.links >= 20, "what was answered is there");
        for row in journal.rotations(None).await.unwrap() {
            journal.records(&row.rotation).await.unwrap();
        }
        drop(journal);
        fs::remove_dir_all(here.folder.path().join("state")).unwrap();
    }
    let bytes = all_bytes(here.folder.path());
    assert!(!bytes.iter().any(|(_, bytes)| contains(bytes, CANARY.as_bytes())));
}
