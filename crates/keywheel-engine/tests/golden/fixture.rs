//! The form of a fixture: SQL that a database can be fed with, cut into commits.
//!
//! ```sql
//! -- commit 7 at 1767225600140
//! -- world app.env "# app\nPEPPER=kwcanary-…\n"
//! INSERT INTO records VALUES (…);
//! ```
//!
//! A commit begins with its number and the time on the clock. A file of the world is named where it holds something else
//! than at the commit before.

use std::fs;
use std::path::{Path, PathBuf};

use keywheel_core::time::Timestamp;
use rusqlite::Connection;

use crate::world::Contents;

const COMMIT: &str = "-- commit ";
const WORLD: &str = "-- world ";

/// A journal that a released version wrote, and the key that it is sealed under.
pub(crate) struct Fixture {
    pub(crate) kek: String,
    pub(crate) commits: Vec<Commit>,
}

/// One commit.
pub(crate) struct Commit {
    /// The clock after it.
    pub(crate) at: Timestamp,
    /// What it changed, as statements.
    pub(crate) sql: String,
    /// What the world held after it, before anything else was done.
    pub(crate) world: Contents,
}

impl Fixture {
    /// Reads the fixture of one format.
    pub(crate) fn of_format(format: i64) -> Self {
        let [journal, kek] = paths(format).map(|path| {
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        });
        Self { kek, commits: commits(&journal) }
    }

    /// Writes a fixture; one that is there is never written over.
    pub(crate) fn write(&self, format: i64) {
        let mut text = String::from(HEADER);
        let mut before = Contents::new();
        for (number, commit) in self.commits.iter().enumerate() {
            text += &format!("{COMMIT}{number} at {}\n", commit.at.millis());
            for (name, contents) in &commit.world {
                if before.get(name) != Some(contents) {
                    text += &format!("{WORLD}{name} {}\n", serde_json::json!(contents));
                }
            }
            text += &commit.sql;
            before.clone_from(&commit.world);
        }
        for (path, text) in paths(format).iter().zip([&text, &self.kek]) {
            let mut file = fs::File::create_new(path).unwrap();
            std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        }
    }
}

const HEADER: &str = "\
-- A journal as a version of keywheel wrote it, commit by commit, and what the world held then. Written and read by
-- `tests/golden`. Every value in it is a test's own, and so is the key beside it. It is never edited.
";

fn paths(format: i64) -> [PathBuf; 2] {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    ["sql", "kek"].map(|ending| folder.join(format!("journal-v{format}.{ending}")))
}

fn commits(text: &str) -> Vec<Commit> {
    let mut world = Contents::new();
    let mark = format!("\n{COMMIT}");
    text.split(&mark)
        .skip(1)
        .map(|part| {
            let (head, rest) = part.split_once('\n').unwrap();
            let (_, at) = head.split_once(" at ").unwrap();
            let mut sql = String::new();
            for line in rest.lines() {
                match line.strip_prefix(WORLD).and_then(|file| file.split_once(' ')) {
                    Some((name, text)) => {
                        world.insert(name.into(), serde_json::from_str(text).unwrap());
                    }
                    None => sql += &format!("{line}\n"),
                }
            }
            let at = Timestamp::from_millis(at.parse().unwrap());
            Commit { at, sql, world: world.clone() }
        })
        .collect()
}

/// Everything that a database holds, as statements that make it.
#[derive(Default)]
pub(crate) struct Dump {
    format: i64,
    schema: Vec<String>,
    tables: Vec<Table>,
}

/// The rows of one table as SQL literals.
#[derive(Default)]
struct Table {
    name: String,
    columns: Vec<(String, bool)>,
    rows: Vec<Vec<String>>,
}

impl Dump {
    pub(crate) fn of(connection: &Connection) -> Self {
        let format = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        let schema = "FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'";
        let names = strings(connection, &format!("SELECT name {schema} AND type = 'table'"));
        let tables = names.into_iter().map(|name| Table::of(connection, name)).collect();
        Self { format, schema: strings(connection, &format!("SELECT sql {schema}")), tables }
    }

    /// Returns the format of the database.
    pub(crate) fn format(&self) -> i64 {
        self.format
    }

    /// Returns the statements that make this database of the one before.
    pub(crate) fn since(&self, before: &Self) -> String {
        let mut sql = String::new();
        for statement in self.schema.iter().filter(|made| !before.schema.contains(made)) {
            sql += &format!("{statement};\n");
        }
        if self.format != before.format {
            sql += &format!("PRAGMA user_version = {};\n", self.format);
        }
        for table in &self.tables {
            let rows = before.tables.iter().find(|earlier| earlier.name == table.name);
            sql += &table.since(rows.unwrap_or(&Table::default()));
        }
        sql
    }
}

impl Table {
    fn of(connection: &Connection, name: String) -> Self {
        let mut columns = connection.prepare("SELECT name, pk FROM pragma_table_info(?1)").unwrap();
        let columns: Vec<(String, bool)> = columns
            .query_map([&name], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        let quoted: Vec<_> =
            columns.iter().map(|(column, _)| format!("quote(\"{column}\")")).collect();
        let mut rows =
            connection.prepare(&format!("SELECT {} FROM {name}", quoted.join(", "))).unwrap();
        let rows = rows
            .query_map([], |row| (0..columns.len()).map(|column| row.get(column)).collect())
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        Self { name, columns, rows }
    }

    /// A row that is gone is deleted by its key, and one that is new or changed is put there.
    fn since(&self, before: &Self) -> String {
        let name = &self.name;
        let keys: Vec<_> = self.rows.iter().map(|row| self.key(row)).collect();
        let gone = before.rows.iter().map(|row| self.key(row)).filter(|key| !keys.contains(key));
        let deleted = gone.map(|key| format!("DELETE FROM {name} WHERE {key};\n"));
        let new = self.rows.iter().filter(|row| !before.rows.contains(row));
        let put = new.map(|row| format!("REPLACE INTO {name} VALUES ({});\n", row.join(", ")));
        deleted.chain(put).collect()
    }

    fn key(&self, row: &[String]) -> String {
        let columns = self.columns.iter().zip(row).filter(|((_, is_key), _)| *is_key);
        let same: Vec<_> = columns.map(|((name, _), value)| format!("{name} = {value}")).collect();
        same.join(" AND ")
    }
}

fn strings(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}
