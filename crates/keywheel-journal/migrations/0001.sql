-- The journal, format 1. `PRAGMA user_version` tells the format; a released format is read for ever.

-- The installation that the journal belongs to: one row.
CREATE TABLE installation (
    only_row           INTEGER PRIMARY KEY CHECK (only_row = 1),
    id                 TEXT    NOT NULL,
    fingerprint_key_id INTEGER NOT NULL
) STRICT;

-- The key-encryption keys that data keys are wrapped under, by generation. The keys themselves are elsewhere.
CREATE TABLE keks (
    generation INTEGER PRIMARY KEY,
    kek        TEXT NOT NULL
) STRICT;

-- Who holds the right to append for a secret. `holder` is null once it was given up; the epoch only grows.
CREATE TABLE claims (
    secret      TEXT    PRIMARY KEY,
    epoch       INTEGER NOT NULL,
    holder      TEXT,
    holder_name TEXT,
    until       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE actors (
    actor         INTEGER PRIMARY KEY,
    account       TEXT    NOT NULL,
    origin        TEXT,
    host          TEXT    NOT NULL,
    method        TEXT    NOT NULL,
    authenticated INTEGER NOT NULL
) STRICT;

CREATE TABLE rotations (
    number   INTEGER PRIMARY KEY AUTOINCREMENT,
    rotation TEXT    NOT NULL UNIQUE,
    secret   TEXT    NOT NULL,
    began_at INTEGER NOT NULL,
    last_at  INTEGER NOT NULL,
    next     INTEGER NOT NULL, -- the sequence of its next record
    open     INTEGER NOT NULL
) STRICT;
CREATE INDEX rotations_of_secret ON rotations (secret, number);
CREATE UNIQUE INDEX one_open_rotation ON rotations (secret) WHERE open = 1;

-- Each entry of each commit, with its link of the audit chain. Append only.
CREATE TABLE records (
    link          INTEGER PRIMARY KEY, -- the place in the chain, from 0
    rotation      TEXT    NOT NULL,
    secret        TEXT    NOT NULL,
    sequence      INTEGER NOT NULL,
    epoch         INTEGER NOT NULL,
    at            INTEGER NOT NULL,
    actor         INTEGER NOT NULL REFERENCES actors,
    event         TEXT,                -- null where only the inventory changed
    action        TEXT    NOT NULL,
    event_hash    TEXT    NOT NULL,
    sealed_hash   TEXT    NOT NULL,
    previous_hash TEXT    NOT NULL,
    hash          TEXT    NOT NULL
) STRICT;
CREATE UNIQUE INDEX records_of_rotation ON records (rotation, sequence) WHERE event IS NOT NULL;

-- What each link sealed and destroyed: names and digests of ciphertexts, which outlive the values.
CREATE TABLE sealings (
    link    INTEGER NOT NULL REFERENCES records,
    place   INTEGER NOT NULL,
    secret  TEXT    NOT NULL,
    version INTEGER NOT NULL,
    part    TEXT    NOT NULL,
    digest  BLOB,                      -- null where the value's key was destroyed
    PRIMARY KEY (link, place)
) STRICT, WITHOUT ROWID;

-- Values, each encrypted under a data key of its own. An empty secret: what belongs to the journal itself.
CREATE TABLE sealed_values (
    value      BLOB    PRIMARY KEY,
    secret     TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    part       TEXT    NOT NULL,
    nonce      BLOB    NOT NULL,
    ciphertext BLOB    NOT NULL,
    UNIQUE (secret, version, part)
) STRICT, WITHOUT ROWID;

-- Data keys, wrapped; a value may have several wraps. Deleting them is the deletion of the value.
CREATE TABLE wrapped_keys (
    value      BLOB    NOT NULL,
    wrapper    TEXT    NOT NULL,       -- 'kek'
    generation INTEGER NOT NULL,
    nonce      BLOB    NOT NULL,
    wrapped    BLOB    NOT NULL,
    PRIMARY KEY (value, wrapper, generation)
) STRICT, WITHOUT ROWID;

CREATE TABLE inventory (
    secret TEXT PRIMARY KEY,
    row    TEXT NOT NULL,
    digest BLOB NOT NULL               -- SHA-256 of the row
) STRICT, WITHOUT ROWID;

CREATE TABLE leases (
    resource TEXT PRIMARY KEY,
    rotation TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX leases_of_rotation ON leases (rotation);
