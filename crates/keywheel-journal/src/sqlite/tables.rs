//! The tables: every statement that changes them, and what they show to the rules.

use std::collections::{BTreeSet, HashMap};

use keywheel_core::event::Event;
use keywheel_core::inventory::Inventory;
use keywheel_core::plan::RotationId;
use keywheel_core::secret::SecretName;
use keywheel_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use sha2::{Digest, Sha256};

use crate::audit::{self, Head, SealedHash, Stored};
use crate::rules::{self, Claim, Known, Place};
use crate::seal::{Envelope, Name, Sealer, Wrapped};
use crate::{Actor, Append, Entry, Epoch, Holder, JournalError, Resource, ValueKey};

/// An append with all that could be made ready outside the writer: no value is left in it.
pub(super) struct Prepared {
    append: Append,
    parts: Vec<Parts>,
}

struct Parts {
    /// The event as it is stored.
    event: Option<String>,
    event_hash: String,
    /// The inventory row as it is stored, and its digest.
    row: Option<(String, [u8; 32])>,
    envelopes: Vec<(ValueKey, Envelope)>,
    sealed_hash: String,
}

impl Prepared {
    /// Seals, serializes and hashes.
    pub(super) fn new(mut append: Append, sealer: &Sealer) -> Result<Self, JournalError> {
        let actor = &append.actor;
        let parts = append
            .entries
            .iter()
            .map(|entry| Parts::of(entry, actor, sealer))
            .collect::<Result<_, _>>()?;
        append.entries.iter_mut().for_each(|entry| entry.seal.clear());
        Ok(Self { append, parts })
    }

    /// Returns whether a value's key is destroyed, so that the write-ahead log has to be emptied of it.
    pub(super) fn destroys(&self) -> bool {
        self.append.entries.iter().any(|entry| !rules::destroys(entry).is_empty())
    }
}

impl Parts {
    fn of(entry: &Entry, actor: &Actor, sealer: &Sealer) -> Result<Self, JournalError> {
        let stored = Stored::of(entry, actor);
        let event = entry.event.as_ref().map(json);
        let row = entry.inventory.as_ref().map(json);
        let event_hash = match (&event, &row) {
            (Some(event), _) => stored.event_hash(event.as_bytes()),
            (None, row) => stored.inventory_hash(row.as_deref().unwrap_or_default().as_bytes()),
        };
        let seal = |sealed: &crate::Sealed| {
            Ok((sealed.key.clone(), sealer.seal(&sealed.key, &sealed.value)?))
        };
        let envelopes: Vec<_> =
            rules::seals(entry).iter().map(seal).collect::<Result<_, JournalError>>()?;
        let mut sealed = SealedHash::new();
        envelopes.iter().for_each(|(key, envelope)| sealed.seal(key, &envelope.digest()));
        rules::destroys(entry).iter().for_each(|key| sealed.destroy(key));
        let row =
            row.map(|row| (Sha256::digest(&row).into(), row)).map(|(digest, row)| (row, digest));
        Ok(Self { event, event_hash, row, envelopes, sealed_hash: sealed.end() })
    }
}

/// The tables of one connection; what is written belongs to the transaction that is open on it.
pub(super) struct Tables<'c>(pub(super) &'c Connection);

impl Tables<'_> {
    /// Judges an append and writes all of it.
    pub(super) fn append(
        &self,
        prepared: &Prepared,
        head: &mut Head,
        actors: &mut Actors,
    ) -> Result<(), JournalError> {
        rules::check(self, &prepared.append)?;
        let actor = &prepared.append.actor;
        let number = actors.number(self, actor)?;
        for (entry, parts) in prepared.append.entries.iter().zip(&prepared.parts) {
            self.write_record(entry, parts, actor, number, head)?;
            self.write_values(entry, parts)?;
            self.write_leases(entry)?;
            self.write_rotation(entry)?;
            self.write_row(&entry.secret, parts)?;
        }
        Ok(())
    }

    /// Returns the end of the audit chain.
    pub(super) fn head(&self) -> Result<Head, JournalError> {
        let mut last = self
            .0
            .prepare_cached("SELECT link, hash FROM records ORDER BY link DESC LIMIT 1")
            .map_err(sql)?;
        let head = last
            .query_row([], |row| Ok(Head { links: row.get::<_, u64>(0)? + 1, hash: row.get(1)? }));
        Ok(head.optional().map_err(sql)?.unwrap_or_default())
    }

    /// Returns who holds a secret.
    pub(super) fn claim(&self, secret: &SecretName) -> Result<Option<Claim>, JournalError> {
        let mut found = self
            .0
            .prepare_cached(
                "SELECT epoch, holder, holder_name, until FROM claims WHERE secret = ?1",
            )
            .map_err(sql)?;
        let claim = found.query_row([secret.to_string()], |row| {
            let holder = match (row.get(1)?, row.get(2)?) {
                (Some(id), Some(name)) => Some(Holder { id, name }),
                _ => None,
            };
            Ok(Claim {
                epoch: Epoch(row.get(0)?),
                holder,
                until: Timestamp::from_millis(row.get(3)?),
            })
        });
        claim.optional().map_err(sql)
    }

    /// Writes who holds a secret.
    pub(super) fn put_claim(&self, secret: &SecretName, claim: &Claim) -> Result<(), JournalError> {
        let (id, name) = claim.holder.as_ref().map(|holder| (&holder.id, &holder.name)).unzip();
        self.run(
            "INSERT INTO claims (secret, epoch, holder, holder_name, until) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (secret) DO UPDATE SET epoch = ?2, holder = ?3, holder_name = ?4, until = ?5",
            params![secret.to_string(), claim.epoch.0, id, name, claim.until.millis()],
        )
    }

    /// Returns the ids of all holders that hold something.
    pub(super) fn claimed(&self) -> Result<BTreeSet<String>, JournalError> {
        let mut held = self
            .0
            .prepare_cached("SELECT holder FROM claims WHERE holder IS NOT NULL")
            .map_err(sql)?;
        held.query_map([], |row| row.get(0)).and_then(Iterator::collect).map_err(sql)
    }

    /// Writes a sealed value in place of the one of that name, if there is one.
    pub(super) fn put_value(&self, name: &Name, envelope: &Envelope) -> Result<(), JournalError> {
        self.destroy_value(name)?;
        self.run(
            "INSERT INTO sealed_values (value, secret, version, part, nonce, ciphertext) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                envelope.value,
                name.secret,
                name.version,
                name.part,
                envelope.nonce,
                envelope.ciphertext
            ],
        )?;
        let Wrapped { generation, nonce, key } = &envelope.wrapped;
        self.run(
            "INSERT INTO wrapped_keys (value, wrapper, generation, nonce, wrapped) VALUES (?1, 'kek', ?2, ?3, ?4)",
            params![envelope.value, generation, nonce, key],
        )
    }

    /// Returns a sealed value.
    pub(super) fn value(&self, name: &Name) -> Result<Option<Envelope>, JournalError> {
        let mut found = self
            .0
            .prepare_cached(
                "SELECT value, v.nonce, ciphertext, generation, k.nonce, wrapped
                 FROM sealed_values v JOIN wrapped_keys k USING (value)
                 WHERE secret = ?1 AND version = ?2 AND part = ?3 AND wrapper = 'kek' ORDER BY generation DESC LIMIT 1",
            )
            .map_err(sql)?;
        let envelope = found.query_row(params![name.secret, name.version, name.part], |row| {
            let wrapped = Wrapped { generation: row.get(3)?, nonce: row.get(4)?, key: row.get(5)? };
            Ok(Envelope {
                value: row.get(0)?,
                nonce: row.get(1)?,
                ciphertext: row.get(2)?,
                wrapped,
            })
        });
        envelope
            .optional()
            .map_err(|error| damaged_or_sql(error, || format!("sealed value of `{}`", name.secret)))
    }

    fn write_record(
        &self,
        entry: &Entry,
        parts: &Parts,
        actor: &Actor,
        number: i64,
        head: &mut Head,
    ) -> Result<(), JournalError> {
        let row_before = || self.inventory(&entry.secret).unwrap_or_default();
        let action = audit::action(entry, row_before);
        let link =
            head.append(entry, actor, action, parts.event_hash.clone(), parts.sealed_hash.clone());
        self.run(
            "INSERT INTO records (link, rotation, secret, sequence, epoch, at, actor, event, action,
                                  event_hash, sealed_hash, previous_hash, hash)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            params![
                link.sequence,
                link.rotation.0,
                link.secret.to_string(),
                link.record,
                entry.epoch.0,
                link.at.millis(),
                number,
                parts.event,
                link.action,
                link.event_hash,
                link.sealed_hash,
                link.previous_hash,
                link.hash
            ],
        )?;
        let sealed = parts.envelopes.iter().map(|(key, envelope)| (key, Some(envelope.digest())));
        let destroyed = rules::destroys(entry).iter().map(|key| (key, None));
        for (place, (key, digest)) in sealed.chain(destroyed).enumerate() {
            self.run(
                "INSERT INTO sealings (link, place, secret, version, part, digest) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![link.sequence, place, key.secret.to_string(), key.version.0, key.part, digest],
            )?;
        }
        Ok(())
    }

    fn write_values(&self, entry: &Entry, parts: &Parts) -> Result<(), JournalError> {
        for (key, envelope) in &parts.envelopes {
            self.put_value(&Name::of(key), envelope)?;
        }
        rules::destroys(entry).iter().try_for_each(|key| self.destroy_value(&Name::of(key)))
    }

    fn destroy_value(&self, name: &Name) -> Result<(), JournalError> {
        let Name { secret, version, part } = name;
        self.run(
            "DELETE FROM wrapped_keys WHERE value IN
             (SELECT value FROM sealed_values WHERE secret = ?1 AND version = ?2 AND part = ?3)",
            params![secret, version, part],
        )?;
        self.run(
            "DELETE FROM sealed_values WHERE secret = ?1 AND version = ?2 AND part = ?3",
            params![secret, version, part],
        )
    }

    fn write_leases(&self, entry: &Entry) -> Result<(), JournalError> {
        if rules::gives_back(entry) {
            self.run("DELETE FROM leases WHERE rotation = ?1", params![entry.group.0])?;
        }
        for resource in &entry.take {
            self.run(
                "INSERT INTO leases (resource, rotation) VALUES (?1, ?2)
                 ON CONFLICT (resource) DO UPDATE SET rotation = ?2",
                params![resource.0, entry.group.0],
            )?;
        }
        Ok(())
    }

    fn write_rotation(&self, entry: &Entry) -> Result<(), JournalError> {
        let Some(event) = &entry.event else { return Ok(()) };
        let (rotation, at, next) = (&entry.rotation.0, entry.at.millis(), entry.sequence + 1);
        if matches!(event, Event::Planned(_)) {
            return self.run(
                "INSERT INTO rotations (rotation, secret, began_at, last_at, next, open) VALUES (?1, ?2, ?3, ?3, ?4, 1)",
                params![rotation, entry.secret.to_string(), at, next],
            );
        }
        self.run(
            "UPDATE rotations SET last_at = max(last_at, ?2), next = ?3, open = open AND NOT ?4 WHERE rotation = ?1",
            params![rotation, at, next, rules::closes(event)],
        )
    }

    fn write_row(&self, secret: &SecretName, parts: &Parts) -> Result<(), JournalError> {
        let Some((row, digest)) = &parts.row else { return Ok(()) };
        self.run(
            "INSERT INTO inventory (secret, row, digest) VALUES (?1, ?2, ?3)
             ON CONFLICT (secret) DO UPDATE SET row = ?2, digest = ?3",
            params![secret.to_string(), row, digest],
        )
    }

    /// Returns one row of the inventory.
    pub(super) fn inventory(&self, secret: &SecretName) -> Result<Option<Inventory>, JournalError> {
        let mut found = self
            .0
            .prepare_cached("SELECT row, digest FROM inventory WHERE secret = ?1")
            .map_err(sql)?;
        let place = || format!("the inventory row of `{secret}`");
        let row = found
            .query_row([secret.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()
            .map_err(|error| damaged_or_sql(error, place))?;
        row.map(|(row, digest)| read_row(row, digest, place)).transpose()
    }

    /// Returns the whole inventory, in order of names.
    pub(super) fn inventories(&self) -> Result<Vec<Inventory>, JournalError> {
        let mut all = self
            .0
            .prepare_cached("SELECT secret, row, digest FROM inventory ORDER BY secret")
            .map_err(sql)?;
        let mut rows = all.query([]).map_err(sql)?;
        let mut inventories: Vec<Inventory> = Vec::new();
        while let Some(row) = rows.next().map_err(sql)? {
            let secret = row.get_ref(0).map_err(sql)?.as_str().unwrap_or("?").to_owned();
            let place = || format!("the inventory row of `{secret}`");
            let fields = (|| Ok((row.get(1)?, row.get(2)?)))()
                .map_err(|error| damaged_or_sql(error, place))?;
            inventories.push(read_row(fields.0, fields.1, place)?);
        }
        inventories.sort_by(|a, b| a.secret.cmp(&b.secret));
        Ok(inventories)
    }

    /// Runs one statement, prepared once for each connection.
    fn run(&self, text: &str, params: impl rusqlite::Params) -> Result<(), JournalError> {
        self.0
            .prepare_cached(text)
            .and_then(|mut statement| statement.execute(params))
            .map(drop)
            .map_err(sql)
    }
}

impl Known for Tables<'_> {
    fn epoch(&self, secret: &SecretName) -> Result<Option<Epoch>, JournalError> {
        let mut found = self
            .0
            .prepare_cached("SELECT epoch FROM claims WHERE secret = ?1 AND holder IS NOT NULL")
            .map_err(sql)?;
        found.query_row([secret.to_string()], |row| row.get(0).map(Epoch)).optional().map_err(sql)
    }

    fn place(
        &self,
        rotation: &RotationId,
        secret: &SecretName,
    ) -> Result<Option<Place>, JournalError> {
        let mut found = self
            .0
            .prepare_cached("SELECT secret = ?2, next, open FROM rotations WHERE rotation = ?1")
            .map_err(sql)?;
        let place = found.query_row(params![rotation.0, secret.to_string()], |row| {
            Ok(Place { of_secret: row.get(0)?, next: row.get(1)?, open: row.get(2)? })
        });
        place.optional().map_err(sql)
    }

    fn open(&self, secret: &SecretName) -> Result<Option<RotationId>, JournalError> {
        let mut found = self
            .0
            .prepare_cached("SELECT rotation FROM rotations WHERE secret = ?1 AND open = 1")
            .map_err(sql)?;
        found
            .query_row([secret.to_string()], |row| row.get(0).map(RotationId))
            .optional()
            .map_err(sql)
    }

    fn lease(&self, resource: &Resource) -> Result<Option<RotationId>, JournalError> {
        let mut found = self
            .0
            .prepare_cached("SELECT rotation FROM leases WHERE resource = ?1")
            .map_err(sql)?;
        found.query_row([&resource.0], |row| row.get(0).map(RotationId)).optional().map_err(sql)
    }
}

/// The numbers of actors, kept between commits; forgotten when one is rolled back.
#[derive(Default)]
pub(super) struct Actors(HashMap<String, i64>);

impl Actors {
    /// Forgets all numbers.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    fn number(&mut self, tables: &Tables<'_>, actor: &Actor) -> Result<i64, JournalError> {
        let key = json(actor);
        if let Some(number) = self.0.get(&key) {
            return Ok(*number);
        }
        let number = find_or_insert_actor(tables.0, actor).map_err(sql)?;
        self.0.insert(key, number);
        Ok(number)
    }
}

fn find_or_insert_actor(connection: &Connection, actor: &Actor) -> rusqlite::Result<i64> {
    let Actor { account, origin, host, method, authenticated } = actor;
    let fields = params![account, origin, host, method, authenticated];
    let found = connection.query_row(
        "SELECT actor FROM actors
         WHERE account = ?1 AND origin IS ?2 AND host = ?3 AND method = ?4 AND authenticated = ?5",
        fields,
        |row| row.get(0),
    );
    match found.optional()? {
        Some(number) => Ok(number),
        None => connection.query_row(
            "INSERT INTO actors (account, origin, host, method, authenticated)
             VALUES (?1, ?2, ?3, ?4, ?5) RETURNING actor",
            fields,
            |row| row.get(0),
        ),
    }
}

/// Reads an actor from five columns in a row, from `first` on.
pub(super) fn read_actor(row: &Row<'_>, first: usize) -> rusqlite::Result<Actor> {
    Ok(Actor {
        account: row.get(first)?,
        origin: row.get(first + 1)?,
        host: row.get(first + 2)?,
        method: row.get(first + 3)?,
        authenticated: row.get(first + 4)?,
    })
}

fn read_row(
    row: String,
    digest: [u8; 32],
    place: impl Fn() -> String,
) -> Result<Inventory, JournalError> {
    let corrupt = |detail: &str| JournalError::Corrupt { place: place(), detail: detail.into() };
    if Sha256::digest(&row)[..] != digest {
        return Err(corrupt("it is not what was written"));
    }
    serde_json::from_str(&row).map_err(|_| corrupt("it cannot be read by this version"))
}

/// Says what a failed statement means.
pub(super) fn sql(error: rusqlite::Error) -> JournalError {
    use rusqlite::ErrorCode::{
        DatabaseBusy, DatabaseCorrupt, DatabaseLocked, DiskFull, NotADatabase, SystemIoFailure,
    };
    let words = match error.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => {
            return JournalError::Corrupt {
                place: "the database file".into(),
                detail: error.to_string(),
            };
        }
        Some(DiskFull) => "the disk is full".into(),
        Some(DatabaseBusy | DatabaseLocked) => "another process keeps the database busy".into(),
        Some(SystemIoFailure) => format!("input or output failed ({error})"),
        _ => error.to_string(),
    };
    JournalError::Storage(words)
}

/// As [`sql`], where a column that does not hold what it should is damage to a named place.
pub(super) fn damaged_or_sql(error: rusqlite::Error, place: impl Fn() -> String) -> JournalError {
    use rusqlite::Error::{
        FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error,
    };
    match error {
        FromSqlConversionFailure(..)
        | IntegralValueOutOfRange(..)
        | InvalidColumnType(..)
        | Utf8Error(..) => JournalError::Corrupt {
            place: place(),
            detail: "a column does not hold what it should".into(),
        },
        other => sql(other),
    }
}

fn json(data: &impl serde::Serialize) -> String {
    serde_json::to_string(data).expect("events, rows and actors are plain data")
}
