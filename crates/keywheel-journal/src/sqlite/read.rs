//! Reading: on connections of their own, which never wait for the writer.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use keywheel_core::plan::RotationId;
use keywheel_core::secret::SecretName;
use keywheel_core::time::Timestamp;
use keywheel_core::version::VersionId;
use rusqlite::{Connection, Row, params, params_from_iter};

use super::tables::{damaged_or_sql, read_actor, sql};
use crate::audit::{SealedHash, Stored, Walk};
use crate::seal::ciphertext_digest;
use crate::{
    Actor, AuditRecord, AuditVerdict, Epoch, JournalError, Record, Resource, RotationRow, ValueKey,
};

/// Connections that only read, made as they are needed and kept for the next reader.
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    /// Names the database.
    pub(super) fn of(path: PathBuf) -> Self {
        Self { path, idle: Mutex::new(Vec::new()) }
    }

    /// Reads with a connection of its own, all of it from one moment.
    pub(super) fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = idle.map_or_else(|| super::connect_to_read(&self.path), Ok)?;
        let moment = connection.unchecked_transaction().map_err(sql)?;
        let found = read(&connection);
        moment.commit().map_err(sql)?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        found
    }
}

/// Returns the records of a rotation, each compared with its hash.
pub(super) fn records(
    connection: &Connection,
    rotation: &RotationId,
) -> Result<Vec<Record>, JournalError> {
    let mut select = connection
        .prepare_cached(
            "SELECT secret, sequence, epoch, at, event, event_hash, account, origin, host, method, authenticated
             FROM records JOIN actors USING (actor)
             WHERE rotation = ?1 AND event IS NOT NULL ORDER BY sequence",
        )
        .map_err(sql)?;
    let mut rows = select.query([&rotation.0]).map_err(sql)?;
    let mut records = Vec::new();
    while let Some(row) = rows.next().map_err(sql)? {
        records.push(read_record(row, rotation, records.len() as u64)?);
    }
    let wanted = expected_records(connection, rotation)?;
    if wanted == records.len() as u64 {
        return Ok(records);
    }
    let place = format!("record {} of rotation {rotation}", records.len());
    Err(JournalError::Corrupt {
        place,
        detail: format!("{wanted} records were written, {} are there", records.len()),
    })
}

fn expected_records(connection: &Connection, rotation: &RotationId) -> Result<u64, JournalError> {
    let mut select = connection
        .prepare_cached("SELECT coalesce(max(next), 0) FROM rotations WHERE rotation = ?1")
        .map_err(sql)?;
    select.query_row([&rotation.0], |row| row.get(0)).map_err(sql)
}

fn read_record(
    row: &Row<'_>,
    rotation: &RotationId,
    expected: u64,
) -> Result<Record, JournalError> {
    let place = || format!("record {expected} of rotation {rotation}");
    let corrupt = |detail: &str| JournalError::Corrupt { place: place(), detail: detail.into() };
    let raw = RawRecord::read(row).map_err(|error| damaged_or_sql(error, place))?;
    if raw.sequence != expected {
        return Err(corrupt("it is missing"));
    }
    if raw.hash(rotation).as_ref() != Some(&raw.event_hash) {
        return Err(corrupt("it is not what was written"));
    }
    let event = serde_json::from_str(&raw.event)
        .map_err(|error| corrupt(&format!("this version cannot read it: {error}")))?;
    Ok(Record { sequence: raw.sequence, epoch: raw.epoch, at: raw.at, actor: raw.actor, event })
}

/// A record as it is stored.
struct RawRecord {
    secret: String,
    sequence: u64,
    epoch: Epoch,
    at: Timestamp,
    event: String,
    event_hash: String,
    actor: Actor,
}

impl RawRecord {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            secret: row.get(0)?,
            sequence: row.get(1)?,
            epoch: Epoch(row.get(2)?),
            at: Timestamp::from_millis(row.get(3)?),
            event: row.get(4)?,
            event_hash: row.get(5)?,
            actor: read_actor(row, 6)?,
        })
    }

    /// Hashes what is stored; none where the secret's name is none.
    fn hash(&self, rotation: &RotationId) -> Option<String> {
        let stored = Stored {
            rotation,
            secret: &self.secret.parse().ok()?,
            sequence: self.sequence,
            epoch: self.epoch,
            at: self.at,
            actor: &self.actor,
        };
        Some(stored.event_hash(self.event.as_bytes()))
    }
}

/// Returns rotations, newest first.
pub(super) fn rotations(
    connection: &Connection,
    secret: Option<&SecretName>,
) -> Result<Vec<RotationRow>, JournalError> {
    const ALL: &str =
        "SELECT rotation, secret, began_at, last_at, open FROM rotations ORDER BY number DESC";
    const OF_ONE: &str = "SELECT rotation, secret, began_at, last_at, open FROM rotations
         WHERE secret = ?1 ORDER BY number DESC";
    let text = if secret.is_some() { OF_ONE } else { ALL };
    let mut select = connection.prepare_cached(text).map_err(sql)?;
    let named = secret.map(ToString::to_string);
    let rows = select.query_map(params_from_iter(named), |row| {
        Ok(RotationRow {
            rotation: RotationId(row.get(0)?),
            secret: secret_at(row, 1)?,
            began_at: Timestamp::from_millis(row.get(2)?),
            last_at: Timestamp::from_millis(row.get(3)?),
            open: row.get(4)?,
        })
    });
    rows.and_then(Iterator::collect)
        .map_err(|error| damaged_or_sql(error, || "the list of rotations".into()))
}

/// Returns the keys of the values that can be opened.
pub(super) fn sealed(
    connection: &Connection,
    secret: &SecretName,
) -> Result<Vec<ValueKey>, JournalError> {
    let mut select = connection
        .prepare_cached(
            "SELECT secret, version, part FROM sealed_values
             WHERE secret = ?1 AND EXISTS (SELECT 1 FROM wrapped_keys k WHERE k.value = sealed_values.value)
             ORDER BY version, part",
        )
        .map_err(sql)?;
    let rows = select.query_map([secret.to_string()], key_at_start);
    rows.and_then(Iterator::collect)
        .map_err(|error| damaged_or_sql(error, || format!("sealed values of `{secret}`")))
}

/// Returns which rotation holds which lease.
pub(super) fn leases(connection: &Connection) -> Result<Vec<(Resource, RotationId)>, JournalError> {
    let mut select = connection
        .prepare_cached("SELECT resource, rotation FROM leases ORDER BY resource")
        .map_err(sql)?;
    let rows = select.query_map([], |row| Ok((Resource(row.get(0)?), RotationId(row.get(1)?))));
    rows.and_then(Iterator::collect)
        .map_err(|error| damaged_or_sql(error, || "the wave leases".into()))
}

const LINKS: &str = "SELECT link, at, account, origin, host, method, authenticated, secret, rotation, sequence, action,
                            event_hash, sealed_hash, previous_hash, hash, epoch, event
                     FROM records LEFT JOIN actors USING (actor) WHERE link >= ?1 ORDER BY link";

/// Returns links of the audit chain.
pub(super) fn audit(connection: &Connection, from: u64) -> Result<Vec<AuditRecord>, JournalError> {
    let mut select = connection.prepare_cached(LINKS).map_err(sql)?;
    let mut rows = select.query([from]).map_err(sql)?;
    let mut links = Vec::new();
    while let Some(row) = rows.next().map_err(sql)? {
        let place = || format!("audit link {}", row.get::<_, i64>(0).unwrap_or(-1));
        links.push(read_link(row).map_err(|error| damaged_or_sql(error, place))?);
    }
    Ok(links)
}

fn read_link(row: &Row<'_>) -> rusqlite::Result<AuditRecord> {
    Ok(AuditRecord {
        sequence: row.get(0)?,
        at: Timestamp::from_millis(row.get(1)?),
        actor: read_actor(row, 2)?,
        secret: secret_at(row, 7)?,
        rotation: RotationId(row.get(8)?),
        record: row.get(9)?,
        action: row.get(10)?,
        event_hash: row.get(11)?,
        sealed_hash: row.get(12)?,
        previous_hash: row.get(13)?,
        hash: row.get(14)?,
    })
}

/// Checks the chain link by link, and then what it says against the other tables.
pub(super) fn verify_audit(connection: &Connection) -> Result<AuditVerdict, JournalError> {
    let mut walk = Walk::default();
    let mut select = connection.prepare_cached(LINKS).map_err(sql)?;
    let mut rows = select.query([0]).map_err(sql)?;
    while let Some(row) = rows.next().map_err(sql)? {
        if let Err(damage) = walk_on(connection, row, &mut walk) {
            walk.fault(damage.to_string());
        }
    }
    for (query, words) in CONTRADICTIONS {
        let mut select = connection.prepare_cached(query).map_err(sql)?;
        let found = select
            .query_map([], |row| row.get::<_, String>(0))
            .and_then(Iterator::collect::<Result<Vec<_>, _>>);
        found
            .map_err(sql)?
            .into_iter()
            .for_each(|subject| walk.fault(format!("{subject} {words}")));
    }
    changed_ciphertexts(connection)?.into_iter().for_each(|fault| walk.fault(fault));
    Ok(walk.end())
}

fn walk_on(connection: &Connection, row: &Row<'_>, walk: &mut Walk) -> Result<(), JournalError> {
    let place = || format!("audit link {}", row.get::<_, i64>(0).unwrap_or(-1));
    let damaged = |error| damaged_or_sql(error, place);
    let link = read_link(row).map_err(damaged)?;
    let stored = stored_hash(row, &link).map_err(damaged)?;
    walk.link(&link, stored.as_deref(), &sealed_hash(connection, link.sequence)?);
    Ok(())
}

fn stored_hash(row: &Row<'_>, link: &AuditRecord) -> rusqlite::Result<Option<String>> {
    let event: Option<String> = row.get(16)?;
    let stored = Stored {
        rotation: &link.rotation,
        secret: &link.secret,
        sequence: link.record,
        epoch: Epoch(row.get(15)?),
        at: link.at,
        actor: &link.actor,
    };
    Ok(event.map(|event| stored.event_hash(event.as_bytes())))
}

fn sealed_hash(connection: &Connection, link: u64) -> Result<String, JournalError> {
    let mut select = connection
        .prepare_cached(
            "SELECT secret, version, part, digest FROM sealings WHERE link = ?1 ORDER BY place",
        )
        .map_err(sql)?;
    let mut rows = select.query([link]).map_err(sql)?;
    let mut hash = SealedHash::new();
    let place = || format!("what was sealed with audit link {link}");
    while let Some(row) = rows.next().map_err(sql)? {
        let fields = key_at_start(row).and_then(|key| Ok((key, row.get::<_, Option<Vec<u8>>>(3)?)));
        match fields.map_err(|error| damaged_or_sql(error, place))? {
            (key, Some(digest)) => hash.seal(&key, &digest),
            (key, None) => hash.destroy(&key),
        }
    }
    Ok(hash.end())
}

/// What the chain and the other tables must not say of each other.
const CONTRADICTIONS: [(&str, &str); 5] = [
    (
        "SELECT 'rotation ' || rotation FROM rotations r
         WHERE open = EXISTS (SELECT 1 FROM records e WHERE e.rotation = r.rotation AND
             (event LIKE '{\"ended\":%' OR event LIKE '{\"resolved\":%' OR event LIKE '{\"superseded\":%'))",
        "is listed as open and has ended, or the other way round",
    ),
    (
        "SELECT 'rotation ' || rotation FROM rotations r
         WHERE next <> (SELECT count(*) FROM records e WHERE e.rotation = r.rotation AND e.event IS NOT NULL)",
        "has another number of records than were written",
    ),
    (
        "SELECT 'rotation ' || rotation FROM records e
         WHERE event IS NOT NULL AND sequence = 0 AND NOT EXISTS (SELECT 1 FROM rotations r WHERE r.rotation = e.rotation)",
        "is not in the list of rotations",
    ),
    (
        "SELECT 'audit link ' || link FROM sealings s WHERE NOT EXISTS (SELECT 1 FROM records e WHERE e.link = s.link)",
        "sealed or destroyed a value and is gone",
    ),
    (
        "SELECT 'sealed value `' || part || '` of `' || secret || '` v' || version FROM sealed_values v
         WHERE secret <> '' AND NOT EXISTS (SELECT 1 FROM sealings s WHERE s.secret = v.secret
             AND s.version = v.version AND s.part = v.part AND s.digest IS NOT NULL)",
        "was sealed by no commit",
    ),
];

/// Compares each sealed value with the digest of the commit that sealed it last.
fn changed_ciphertexts(connection: &Connection) -> Result<Vec<String>, JournalError> {
    let mut select = connection
        .prepare_cached(
            "SELECT secret, version, part, nonce, ciphertext,
                    (SELECT digest FROM sealings s WHERE s.secret = v.secret AND s.version = v.version AND s.part = v.part
                     ORDER BY link DESC, place DESC LIMIT 1)
             FROM sealed_values v WHERE secret <> ''",
        )
        .map_err(sql)?;
    let mut rows = select.query([]).map_err(sql)?;
    let mut faults = Vec::new();
    while let Some(row) = rows.next().map_err(sql)? {
        let key = key_at_start(row)
            .map_err(|error| damaged_or_sql(error, || "a sealed value's name".into()))?;
        if !is_as_sealed(row).unwrap_or(false) {
            faults.push(format!(
                "sealed value `{}` of `{}` {} is not what was sealed last",
                key.part, key.secret, key.version
            ));
        }
    }
    Ok(faults)
}

fn is_as_sealed(row: &Row<'_>) -> rusqlite::Result<bool> {
    let (nonce, ciphertext): (Vec<u8>, Vec<u8>) = (row.get(3)?, row.get(4)?);
    let digest: Option<Vec<u8>> = row.get(5)?;
    Ok(digest.is_some_and(|digest| digest == ciphertext_digest(&nonce, &ciphertext)))
}

fn key_at_start(row: &Row<'_>) -> rusqlite::Result<ValueKey> {
    Ok(ValueKey { secret: secret_at(row, 0)?, version: VersionId(row.get(1)?), part: row.get(2)? })
}

fn secret_at(row: &Row<'_>, column: usize) -> rusqlite::Result<SecretName> {
    let name: String = row.get(column)?;
    name.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(
            column,
            rusqlite::types::Type::Text,
            Box::new(error),
        )
    })
}

/// Checks the structure of the database file itself.
pub(super) fn integrity(connection: &Connection) -> Result<Vec<String>, JournalError> {
    let mut check = connection.prepare("PRAGMA integrity_check(20)").map_err(sql)?;
    let lines: Vec<String> =
        check.query_map(params![], |row| row.get(0)).and_then(Iterator::collect).map_err(sql)?;
    Ok(lines.into_iter().filter(|line| line != "ok").collect())
}
