//! The embedded default: SQLite, one writer thread that commits groups, readers that never wait for it.
//!
//! The database is in WAL mode and every commit is synced before it is answered; both are set and read back when it is opened
//! (H10). Several processes may work in one journal: each append is compared with what is there inside the transaction that
//! writes it, so none of them can go on from a state that another one changed (H25, I05).

mod holders;
mod read;
mod tables;
mod writer;

use keywheel_core::planted;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use keywheel_core::event::Event;
use keywheel_core::fingerprint::{FingerprintKeyId, Fingerprinter};
use keywheel_core::inventory::Inventory;
use keywheel_core::plan::RotationId;
use keywheel_core::secret::{Credential, SecretName};
use keywheel_core::time::{Span, Timestamp};
use rusqlite::config::DbConfig;
use rusqlite::ffi::SQLITE_READONLY_ROLLBACK;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension as _, TransactionBehavior, params,
};
use zeroize::Zeroizing;

use self::holders::Holders;
use self::read::Readers;
use self::tables::{Prepared, Tables, sql};
use self::writer::{ClaimRequest, Command, Writer};
pub use crate::place::Places;
use crate::seal::{self, Kek, Name, Sealer};
use crate::{
    Append, AuditRecord, AuditVerdict, Epoch, Holder, Installation, Journal, JournalError, Record,
    Resource, RotationRow, ValueKey, place,
};

/// The format of the database that this version writes; it reads this one and all before it.
const FORMAT: i64 = 1;

const MIGRATIONS: [&str; FORMAT as usize] = [include_str!("../migrations/0001.sql")];

/// The wait between two tries to open a database that another process is just making.
const BUSY_STEP: Duration = Duration::from_millis(5);

/// A journal in an SQLite database.
pub struct SqliteJournal {
    installation: Installation,
    path: PathBuf,
    sealer: Arc<Sealer>,
    holders: Arc<Holders>,
    writer: Option<Writer>,
    readers: Readers,
    settings: Settings,
}

/// How a journal is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// Makes journal and key where they are missing.
    CreateIfMissing,
    /// Opens what is there.
    Existing,
    /// Opens what is there and changes nothing.
    ReadOnly,
}

/// What can be chosen about a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The free space, in bytes, below which no rotation begins unless it is an emergency (H16).
    pub free_floor: u64,
    /// How long another process may keep the database busy before a commit is refused.
    pub busy_for: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { free_floor: 64 << 20, busy_for: Duration::from_secs(10) }
    }
}

impl SqliteJournal {
    /// Opens a journal.
    ///
    /// # Errors
    /// [`JournalError::Place`] where a place is missing or not safe, or the journal is of a newer version;
    /// [`JournalError::Sealing`] where the key-encryption key is missing or another one; [`JournalError::Corrupt`] and
    /// [`JournalError::Storage`] where the database cannot be used.
    pub fn open(places: &Places, how: Open) -> Result<Self, JournalError> {
        Self::open_with(places, how, Settings::default())
    }

    /// Opens a journal with settings of its own.
    ///
    /// # Errors
    /// As [`SqliteJournal::open`].
    pub fn open_with(places: &Places, how: Open, settings: Settings) -> Result<Self, JournalError> {
        let places = places.settle(how == Open::CreateIfMissing)?;
        let holders = Arc::new(Holders::beside(&places.journal));
        let (opened, writer) = if how == Open::ReadOnly {
            check_database_file(&places.journal)?;
            let connection = connect_to_read(&places.journal)?;
            check_format(&connection)?;
            (unlock(&connection, &places)?, None)
        } else {
            let (opened, connection) = open_to_write(&places, how, &settings)?;
            (opened, Some(Writer::start(connection, &places.journal, Arc::clone(&holders))?))
        };
        Ok(Self {
            installation: opened.installation,
            path: places.journal.clone(),
            sealer: Arc::new(opened.sealer),
            holders,
            writer,
            readers: Readers::of(places.journal),
            settings,
        })
    }

    /// Returns whether there is a journal: a process that was killed while it made one leaves a file, and nothing in it yet.
    ///
    /// # Errors
    /// As [`SqliteJournal::open`], where there is a file that cannot be used.
    pub fn is_made(places: &Places) -> Result<bool, JournalError> {
        if !place::is_there(&places.journal) {
            return Ok(false);
        }
        check_database_file(&places.journal)?;
        let connection = connect_to_read(&places.journal)?;
        Ok(format_of(&connection)? > 0 && installed(&connection)?.is_some())
    }

    /// Registers this process as a holder: claims by it can be taken over at once when the process is gone, or when this
    /// journal is dropped, and not a moment earlier than their lease otherwise.
    ///
    /// # Errors
    /// [`JournalError::Place`] where its lock file cannot be made.
    pub fn holder(&self, name: impl Into<String>) -> Result<Holder, JournalError> {
        self.writer()?;
        let claimed = self.readers.read(|connection| Tables(connection).claimed())?;
        self.holders.sweep(&claimed);
        self.holders.register(name.into())
    }

    /// Moves the write-ahead log into the database and cuts it to nothing, so that no destroyed key can be read in it;
    /// false while a reader still needs the log. It happens by itself soon after each destruction.
    ///
    /// # Errors
    /// [`JournalError::Storage`] where the storage failed.
    pub async fn erase_destroyed(&self) -> Result<bool, JournalError> {
        self.writer()?.ask(Command::Erase).await
    }

    /// Returns where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn writer(&self) -> Result<&Writer, JournalError> {
        self.writer
            .as_ref()
            .ok_or_else(|| JournalError::Storage("the journal was opened to be read only".into()))
    }

    /// Refuses to begin a rotation on a disk that may be full before it ends (H16). An emergency may.
    fn check_space(&self, append: &Append) -> Result<(), JournalError> {
        let begins = append.entries.iter().any(|entry| match &entry.event {
            Some(Event::Planned(plan)) => !plan.is_emergency(),
            _ => false,
        });
        if !begins {
            return Ok(());
        }
        let folder = self.path.parent().expect("a settled place has a folder");
        let space = rustix::fs::statvfs(folder)
            .map_err(|error| JournalError::Storage(format!("free space: {error}")))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let floor = self.settings.free_floor;
        if free < floor && !planted!("full_disk_ignored") {
            Err(JournalError::LowSpace { free, floor })
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl Journal for SqliteJournal {
    fn installation(&self) -> &Installation {
        &self.installation
    }

    async fn claim(
        &self,
        secret: &SecretName,
        holder: &Holder,
        now: Timestamp,
        lease: Span,
    ) -> Result<Epoch, JournalError> {
        let request = ClaimRequest { secret: secret.clone(), holder: holder.clone(), now, lease };
        self.writer()?.ask(|answer| Command::Claim(request, answer)).await
    }

    async fn give_up(&self, secret: &SecretName, epoch: Epoch) -> Result<(), JournalError> {
        self.writer()?.ask(|answer| Command::GiveUp(secret.clone(), epoch, answer)).await
    }

    async fn append(&self, append: Append) -> Result<(), JournalError> {
        let writer = self.writer()?;
        self.check_space(&append)?;
        let prepared = Box::new(Prepared::new(append, &self.sealer)?);
        writer.ask(|answer| Command::Append(prepared, answer)).await
    }

    async fn records(&self, rotation: &RotationId) -> Result<Vec<Record>, JournalError> {
        self.readers.read(|connection| read::records(connection, rotation))
    }

    async fn rotations(
        &self,
        secret: Option<&SecretName>,
    ) -> Result<Vec<RotationRow>, JournalError> {
        self.readers.read(|connection| read::rotations(connection, secret))
    }

    async fn inventory(&self, secret: &SecretName) -> Result<Option<Inventory>, JournalError> {
        self.readers.read(|connection| Tables(connection).inventory(secret))
    }

    async fn inventories(&self) -> Result<Vec<Inventory>, JournalError> {
        self.readers.read(|connection| Tables(connection).inventories())
    }

    async fn unseal(&self, key: &ValueKey) -> Result<Option<Credential>, JournalError> {
        let envelope = self.readers.read(|connection| Tables(connection).value(&Name::of(key)))?;
        envelope.map(|envelope| self.sealer.open(key, envelope)).transpose()
    }

    async fn sealed(&self, secret: &SecretName) -> Result<Vec<ValueKey>, JournalError> {
        self.readers.read(|connection| read::sealed(connection, secret))
    }

    async fn leases(&self) -> Result<Vec<(Resource, RotationId)>, JournalError> {
        self.readers.read(read::leases)
    }

    async fn audit(&self, from: u64) -> Result<Vec<AuditRecord>, JournalError> {
        self.readers.read(|connection| read::audit(connection, from))
    }

    async fn verify_audit(&self) -> Result<AuditVerdict, JournalError> {
        self.readers.read(|connection| {
            let mut verdict = read::verify_audit(connection)?;
            verdict.faults.extend(
                read::integrity(connection)?.into_iter().map(|fault| format!("database: {fault}")),
            );
            Ok(verdict)
        })
    }
}

/// What opening brings.
struct Opened {
    installation: Installation,
    sealer: Sealer,
}

fn open_to_write(
    places: &Places,
    how: Open,
    settings: &Settings,
) -> Result<(Opened, Connection), JournalError> {
    if how == Open::CreateIfMissing && place::create_file(&places.journal)?.is_some() {
        place::sync_folder(places.journal.parent().expect("a settled place has a folder"))?;
    }
    check_database_file(&places.journal)?;
    let mut connection = connect_to_write(&places.journal, settings)?;
    migrate(&mut connection)?;
    // What a former process wrote and could not sync is written once more, into the database itself (H11).
    checkpoint(&connection).map_err(sql)?;
    if how == Open::CreateIfMissing {
        install(&mut connection, places)?;
    }
    Ok((unlock(&connection, places)?, connection))
}

fn check_database_file(path: &Path) -> Result<(), JournalError> {
    if !place::is_there(path) {
        return Err(JournalError::Place(format!("there is no journal at `{}`", path.display())));
    }
    place::check_own_file(path)
}

fn connect_to_write(path: &Path, settings: &Settings) -> Result<Connection, JournalError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE, settings.busy_for)?;
    // Automatic checkpoints are off: they do not report a failed sync. The writer makes them. The cache (KiB where negative)
    // holds what a group of a thousand records touches, which would else be written to the log before its commit.
    let wanted = [
        ("journal_mode", "wal"),
        ("synchronous", if planted!("commit_not_synced") { "0" } else { "2" }),
        ("secure_delete", "1"),
        ("cache_size", "-16384"),
        ("wal_autocheckpoint", "0"),
    ];
    for (pragma, value) in wanted {
        set_patiently(&connection, pragma, value, settings.busy_for).map_err(sql)?;
        let held = connection
            .pragma_query_value(None, pragma, |row| row.get_ref(0).map(text_of))
            .map_err(sql)?;
        if held != value {
            return Err(JournalError::Storage(format!(
                "`{pragma}` is `{held}` here and has to be `{value}`"
            )));
        }
    }
    Ok(connection)
}

fn connect_to_read(path: &Path) -> Result<Connection, JournalError> {
    let busy_for = Settings::default().busy_for;
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY, busy_for)?;
    if is_left_half_made(&connection) {
        drop(connection);
        let writing = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE, busy_for)?;
        format_of(&writing)?;
        return connect_to_read(path);
    }
    connection.pragma_update(None, "query_only", true).map_err(sql)?;
    Ok(connection)
}

/// Whether a process was killed while it made the journal, before the write-ahead log was on. SQLite then has to take back what
/// was half written before anything can be read, and a connection that only reads may not.
fn is_left_half_made(connection: &Connection) -> bool {
    let format = connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
    matches!(format, Err(rusqlite::Error::SqliteFailure(error, _)) if error.extended_code == SQLITE_READONLY_ROLLBACK)
}

fn connect(path: &Path, flags: OpenFlags, busy_for: Duration) -> Result<Connection, JournalError> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NOFOLLOW | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(sql)?;
    connection.busy_timeout(busy_for).map_err(sql)?;
    connection.set_prepared_statement_cache_capacity(64);
    // A statement is planned once and not anew for each value that is bound to it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(sql)?;
    // No temporary file ever holds a row; a damaged page is noticed when it is read.
    for (pragma, value) in [("temp_store", "2"), ("cell_size_check", "1"), ("trusted_schema", "0")]
    {
        connection.pragma_update(None, pragma, value).map_err(sql)?;
    }
    Ok(connection)
}

/// Sets a pragma, again and again for as long as another process is in the way: the switch to WAL does not wait by itself.
fn set_patiently(
    connection: &Connection,
    pragma: &str,
    value: &str,
    busy_for: Duration,
) -> rusqlite::Result<()> {
    let begun = Instant::now();
    loop {
        match connection.pragma_update(None, pragma, value).or_else(ignore_result_row) {
            Err(error) if is_busy(&error) && begun.elapsed() < busy_for => {
                std::thread::sleep(BUSY_STEP)
            }
            other => return other,
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Some pragmas answer with what they hold now, which is read by a query of its own.
fn ignore_result_row(error: rusqlite::Error) -> rusqlite::Result<()> {
    if matches!(error, rusqlite::Error::ExecuteReturnedResults) { Ok(()) } else { Err(error) }
}

fn text_of(value: rusqlite::types::ValueRef<'_>) -> String {
    match value {
        rusqlite::types::ValueRef::Integer(number) => number.to_string(),
        other => other.as_str().unwrap_or_default().to_owned(),
    }
}

/// Moves the write-ahead log into the database and cuts it to nothing; false while a reader still needs it.
fn checkpoint(connection: &Connection) -> rusqlite::Result<bool> {
    let busy_for: u32 = connection.pragma_query_value(None, "busy_timeout", |row| row.get(0))?;
    connection.busy_timeout(Duration::ZERO)?;
    let busy =
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
    connection.busy_timeout(Duration::from_millis(busy_for.into()))?;
    match busy {
        Err(error) if is_busy(&error) => Ok(false),
        other => other.map(|busy| !busy),
    }
}

fn format_of(connection: &Connection) -> Result<i64, JournalError> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sql)
}

fn check_format(connection: &Connection) -> Result<(), JournalError> {
    match format_of(connection)? {
        FORMAT => Ok(()),
        _ if planted!("newer_format_is_read") => Ok(()),
        newer if newer > FORMAT => Err(JournalError::Place(format!(
            "the journal is of a newer keywheel (format {newer}, this one reads up to {FORMAT})"
        ))),
        older => Err(JournalError::Place(format!(
            "the journal is of an older format ({older}) and has to be opened once to be written"
        ))),
    }
}

/// Brings an older database up to this format; refuses a newer one (H15).
fn migrate(connection: &mut Connection) -> Result<(), JournalError> {
    let change =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
    let format = format_of(&change)?;
    let missing =
        usize::try_from(format).ok().and_then(|done| MIGRATIONS.get(done..)).unwrap_or_default();
    for migration in missing {
        change.execute_batch(migration).map_err(sql)?;
    }
    if !missing.is_empty() {
        change.pragma_update(None, "user_version", FORMAT).map_err(sql)?;
    }
    change.commit().map_err(sql)?;
    check_format(connection)
}

/// Makes the installation's id and fingerprint key, and the key-encryption key, where there are none yet.
fn install(connection: &mut Connection, places: &Places) -> Result<(), JournalError> {
    let change =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
    if installed(&change)?.is_some() {
        return Ok(());
    }
    let kek = match place::read_kek(&places.kek)? {
        Some(kek) => kek,
        None => place::create_kek(&places.kek)?,
    };
    let mut id = [0; 8];
    seal::random(&mut id)?;
    let id = hex::encode(id);
    let mut fingerprint_key = Zeroizing::new(vec![0; 32]);
    seal::random(&mut fingerprint_key)?;
    change
        .execute(
            "INSERT INTO installation (only_row, id, fingerprint_key_id) VALUES (1, ?1, 1)",
            params![id],
        )
        .and_then(|_| {
            change.execute("INSERT INTO keks (generation, kek) VALUES (1, ?1)", params![kek.id()])
        })
        .map_err(sql)?;
    let envelope = Sealer::new(id, kek, 1).seal_bytes(&fingerprint_key_name(1), fingerprint_key)?;
    Tables(&change).put_value(&fingerprint_key_name(1), &envelope)?;
    change.commit().map_err(sql)
}

/// Returns the installation's id and the number of its fingerprint key.
fn installed(connection: &Connection) -> Result<Option<(String, u32)>, JournalError> {
    let found =
        connection.query_row("SELECT id, fingerprint_key_id FROM installation", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        });
    found.optional().map_err(sql)
}

/// Reads the key-encryption key, and with it the installation's fingerprint key.
fn unlock(connection: &Connection, places: &Places) -> Result<Opened, JournalError> {
    let missing = |what: &str| JournalError::Corrupt {
        place: "the installation".into(),
        detail: format!("{what} is missing"),
    };
    let (id, fingerprint_key_id) = installed(connection)?.ok_or_else(|| missing("its id"))?;
    let (generation, expected): (u32, String) = connection
        .query_row("SELECT generation, kek FROM keks ORDER BY generation DESC LIMIT 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()
        .map_err(sql)?
        .ok_or_else(|| missing("its key-encryption key's id"))?;
    let sealer = Sealer::new(id.clone(), right_kek(places, &expected)?, generation);
    let name = fingerprint_key_name(fingerprint_key_id);
    let envelope =
        Tables(connection).value(&name)?.ok_or_else(|| missing("its fingerprint key"))?;
    let opened = sealer.open_bytes(&name, envelope)?;
    let mut key = Zeroizing::new([0; 32]);
    if opened.len() != key.len() {
        return Err(missing("half of its fingerprint key"));
    }
    key.copy_from_slice(&opened);
    let fingerprinter = Arc::new(Fingerprinter::new(FingerprintKeyId(fingerprint_key_id), key));
    Ok(Opened { installation: Installation { id, fingerprinter }, sealer })
}

fn right_kek(places: &Places, expected: &str) -> Result<Kek, JournalError> {
    let path = places.kek.display();
    match place::read_kek(&places.kek)? {
        Some(kek) if kek.id() == expected => Ok(kek),
        Some(kek) => Err(JournalError::Sealing(format!(
            "this journal is sealed under key-encryption key {expected}, and `{path}` is key {}: put the right one there",
            kek.id()
        ))),
        None => Err(JournalError::Sealing(format!(
            "this journal is sealed under key-encryption key {expected}, and `{path}` is not there: put it back from where it is kept; without it no sealed value can be opened"
        ))),
    }
}

fn fingerprint_key_name(id: u32) -> Name {
    Name { secret: String::new(), version: id, part: "fingerprint key".into() }
}

#[cfg(test)]
mod tests;
