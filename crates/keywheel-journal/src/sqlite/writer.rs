//! The writer: one thread that owns the connection which writes, and commits groups.
//!
//! It takes whatever waits, writes all of it in one transaction, and answers after one sync. A refused append has written
//! nothing, so it does not stand in the way of the others. A commit or checkpoint that fails in any way but a full disk stops
//! the writer for good: after a failed sync the kernel may have dropped the page, and a second sync would lie (H11).

use keywheel_core::planted;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use keywheel_core::secret::SecretName;
use keywheel_core::time::{Span, Timestamp};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};
use tokio::sync::oneshot;

use super::holders::Holders;
use super::tables::{Actors, Prepared, Tables, sql};
use crate::rules::{self, Claim};
use crate::{Epoch, Holder, JournalError};

/// The most commands in one commit.
const GROUP: usize = 1_024;
/// The length of the write-ahead log from which it is moved into the database.
const LOG_LIMIT: u64 = 8 << 20;
/// How long the writer is idle before it empties the log of destroyed keys, and the longest it is put off.
const ERASE_IDLE: Duration = Duration::from_millis(50);
const ERASE_LATEST: Duration = Duration::from_secs(2);

/// One request to the writer, and where its answer goes.
pub(super) enum Command {
    /// Commits an append.
    Append(Box<Prepared>, oneshot::Sender<Result<(), JournalError>>),
    /// Takes or keeps a secret.
    Claim(ClaimRequest, oneshot::Sender<Result<Epoch, JournalError>>),
    /// Gives a secret back.
    GiveUp(SecretName, Epoch, oneshot::Sender<Result<(), JournalError>>),
    /// Empties the write-ahead log; answers whether it is empty now.
    Erase(oneshot::Sender<Result<bool, JournalError>>),
}

/// The arguments of a claim.
pub(super) struct ClaimRequest {
    /// The secret.
    pub(super) secret: SecretName,
    /// Who wants it.
    pub(super) holder: Holder,
    /// The time.
    pub(super) now: Timestamp,
    /// For how long.
    pub(super) lease: Span,
}

/// The thread, and the way to it.
pub(super) struct Writer {
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(
        connection: Connection,
        path: &Path,
        holders: Arc<Holders>,
    ) -> Result<Self, JournalError> {
        let (commands, waiting) = channel();
        let state = State {
            connection,
            log: path.with_file_name(log_name(path)),
            holders,
            actors: Actors::default(),
            stopped: None,
            checkpoint_from: LOG_LIMIT,
            erase_since: None,
        };
        let thread = std::thread::Builder::new()
            .name("journal-writer".into())
            .spawn(move || state.run(&waiting))
            .map_err(|error| {
                JournalError::Storage(format!("the writer could not start: {error}"))
            })?;
        Ok(Self { commands: Some(commands), thread: Some(thread) })
    }

    /// Sends a command and waits for its answer, on any runtime or none.
    pub(super) async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, JournalError>>) -> Command,
    ) -> Result<T, JournalError> {
        let gone = || JournalError::Storage("the writer is gone".into());
        let (answer, answered) = oneshot::channel();
        let commands = self.commands.as_ref().ok_or_else(gone)?;
        commands.send(command(answer)).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the journal's writer had panicked");
        }
    }
}

/// An answer that is not sent before the transaction is over.
enum Answer {
    Done(oneshot::Sender<Result<(), JournalError>>, Result<(), JournalError>),
    Epoch(oneshot::Sender<Result<Epoch, JournalError>>, Result<Epoch, JournalError>),
}

struct State {
    connection: Connection,
    log: PathBuf,
    holders: Arc<Holders>,
    actors: Actors,
    /// Why nothing is written any more.
    stopped: Option<String>,
    checkpoint_from: u64,
    /// Since when a destroyed key may still be read in the write-ahead log.
    erase_since: Option<Instant>,
}

impl State {
    fn run(mut self, waiting: &Receiver<Command>) {
        loop {
            match self.next(waiting) {
                Ok(first) => {
                    let group =
                        std::iter::once(first).chain(waiting.try_iter()).take(GROUP).collect();
                    self.work(group);
                }
                Err(RecvTimeoutError::Timeout) => drop(self.erase()),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.erase_since.is_some_and(|since| since.elapsed() > ERASE_LATEST) {
                drop(self.erase());
            }
        }
        if self.erase_since.is_some() {
            drop(self.erase());
        }
    }

    fn next(&self, waiting: &Receiver<Command>) -> Result<Command, RecvTimeoutError> {
        match self.erase_since {
            Some(_) => waiting.recv_timeout(ERASE_IDLE),
            None => waiting.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    fn work(&mut self, group: Vec<Command>) {
        let (erase, group): (Vec<_>, Vec<_>) =
            group.into_iter().partition(|command| matches!(command, Command::Erase(_)));
        if !group.is_empty() {
            self.commit(group);
            self.checkpoint_if_long();
        }
        for command in erase {
            if let Command::Erase(answer) = command {
                let erased = self.erase();
                send(answer, erased);
            }
        }
    }

    /// Writes a group in one transaction. Where something in it cannot be written, each is tried alone.
    fn commit(&mut self, group: Vec<Command>) {
        if let Some(why) = &self.stopped {
            let why = format!("the journal stopped: {why}");
            return group
                .into_iter()
                .for_each(|command| refuse(command, JournalError::Storage(why.clone())));
        }
        let before = self.connection.total_changes();
        let begun = self.connection.execute_batch("BEGIN IMMEDIATE");
        let written = begun.map_err(sql).and_then(|()| self.write(&group));
        match written {
            Ok(answers) if self.connection.total_changes() == before => {
                self.roll_back();
                zip(group, answers).for_each(Answer::send);
            }
            Ok(answers) => match self.connection.execute_batch("COMMIT") {
                Ok(()) => {
                    let destroys = group.iter().any(|command| matches!(command, Command::Append(append, _) if append.destroys()));
                    if destroys && !planted!("log_keeps_destroyed_keys") {
                        self.erase_since.get_or_insert_with(Instant::now);
                    }
                    zip(group, answers).for_each(Answer::send);
                }
                Err(error) => self.fail(group, &error),
            },
            Err(_) if group.len() > 1 => {
                self.roll_back();
                group.into_iter().for_each(|command| self.commit(vec![command]));
            }
            Err(error) => {
                self.roll_back();
                if let Some(command) = group.into_iter().next() {
                    refuse(command, error);
                }
            }
        }
    }

    /// Writes each command; the answers of all, or the first error that is of the storage and not of the command.
    fn write(&mut self, group: &[Command]) -> Result<Vec<Written>, JournalError> {
        let tables = Tables(&self.connection);
        let mut head = tables.head()?;
        let mut answers = Vec::with_capacity(group.len());
        for command in group {
            let written = match command {
                Command::Append(append, _) => {
                    tables.append(append, &mut head, &mut self.actors).map(|()| Epoch(0))
                }
                Command::Claim(request, _) => claim(&tables, request, &self.holders),
                Command::GiveUp(secret, epoch, _) => {
                    give_up(&tables, secret, *epoch).map(|()| Epoch(0))
                }
                Command::Erase(_) => Ok(Epoch(0)),
            };
            match written {
                Err(error @ (JournalError::Storage(_) | JournalError::Corrupt { .. })) => {
                    return Err(error);
                }
                judged => answers.push(judged),
            }
        }
        Ok(answers)
    }

    fn roll_back(&mut self) {
        self.actors.forget();
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            self.stop(&error);
        }
    }

    /// Answers a failed commit. A full disk can be emptied; anything else ends the writer (H11).
    fn fail(&mut self, group: Vec<Command>, error: &rusqlite::Error) {
        let recoverable = error.sqlite_error_code() == Some(ErrorCode::DiskFull);
        if !recoverable {
            self.stop(error);
        }
        self.roll_back();
        let words = format!("commit failed: {error}");
        group.into_iter().for_each(|command| refuse(command, JournalError::Storage(words.clone())));
    }

    fn stop(&mut self, error: &rusqlite::Error) {
        if planted!("failed_sync_believed") {
            return;
        }
        tracing::error!(%error, "the journal's storage failed; nothing more is written");
        // Closing the database would sync once more and believe the answer.
        let left = self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        tracing::debug!(?left, "the write-ahead log is left to the next process");
        self.stopped.get_or_insert_with(|| error.to_string());
    }

    fn checkpoint_if_long(&mut self) {
        let length = std::fs::metadata(&self.log).map_or(0, |meta| meta.len());
        if self.stopped.is_none() && length >= self.checkpoint_from {
            let emptied = matches!(self.checkpoint(), Ok(true));
            self.checkpoint_from = if emptied { LOG_LIMIT } else { length + LOG_LIMIT };
        }
    }

    fn erase(&mut self) -> Result<bool, JournalError> {
        let emptied = self.checkpoint()?;
        if emptied {
            self.erase_since = None;
        }
        Ok(emptied)
    }

    /// Moves the write-ahead log into the database and cuts it to nothing; false while a reader still needs it.
    ///
    /// SQLite's own checkpoints are off, since they swallow a failed sync.
    fn checkpoint(&mut self) -> Result<bool, JournalError> {
        if let Some(why) = &self.stopped {
            return Err(JournalError::Storage(format!("the journal stopped: {why}")));
        }
        match super::checkpoint(&self.connection) {
            Ok(emptied) => Ok(emptied),
            Err(error) => {
                if !matches!(error.sqlite_error_code(), Some(ErrorCode::DiskFull)) {
                    self.stop(&error);
                }
                Err(sql(error))
            }
        }
    }
}

/// What became of a command; the epoch is of a claim, and means nothing elsewhere.
type Written = Result<Epoch, JournalError>;

fn claim(
    tables: &Tables<'_>,
    request: &ClaimRequest,
    holders: &Holders,
) -> Result<Epoch, JournalError> {
    let ClaimRequest { secret, holder, now, lease } = request;
    let present = tables.claim(secret)?;
    let claim = rules::claim(present.as_ref(), secret, holder, *now, *lease, |former| {
        holders.is_dead(former)
    })?;
    tables.put_claim(secret, &claim)?;
    Ok(claim.epoch)
}

fn give_up(tables: &Tables<'_>, secret: &SecretName, epoch: Epoch) -> Result<(), JournalError> {
    match tables.claim(secret)? {
        Some(claim) if claim.epoch == epoch => {
            tables.put_claim(secret, &Claim { holder: None, ..claim })
        }
        _ => Ok(()),
    }
}

fn zip(group: Vec<Command>, answers: Vec<Written>) -> impl Iterator<Item = Answer> {
    group.into_iter().zip(answers).filter_map(|(command, written)| match command {
        Command::Append(_, answer) | Command::GiveUp(_, _, answer) => {
            Some(Answer::Done(answer, written.map(drop)))
        }
        Command::Claim(_, answer) => Some(Answer::Epoch(answer, written)),
        Command::Erase(_) => None,
    })
}

impl Answer {
    fn send(self) {
        match self {
            Self::Done(answer, result) => send(answer, result),
            Self::Epoch(answer, result) => send(answer, result),
        }
    }
}

fn refuse(command: Command, error: JournalError) {
    match command {
        Command::Append(_, answer) | Command::GiveUp(_, _, answer) => send(answer, Err(error)),
        Command::Claim(_, answer) => send(answer, Err(error)),
        Command::Erase(answer) => send(answer, Err(error)),
    }
}

/// Answers; whoever asked may have gone away, which changes nothing about what is written.
fn send<T>(answer: oneshot::Sender<T>, result: T) {
    drop(answer.send(result));
}

fn log_name(path: &Path) -> std::ffi::OsString {
    let mut name = path.file_name().expect("a settled place names a file").to_owned();
    name.push("-wal");
    name
}
