//! `pgpass`: lines of a password file of libpq (`~/.pgpass`); a slot is `host:port:database`, and holds what stands behind it:
//! `user:password`.
//!
//! Where several lines are for one database the slot names the users among which its line is: `host:port:database:app_a|app_b`.
//! The first line that fits a connection is the one that libpq uses, so a line behind another that fits as well is refused. libpq
//! ignores a file that others than its owner may read.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::facts::StoreFacts;
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_driver::store::{Edit, Written};
use keywheel_driver::{CallError, Claims, Finding, Refusal, RefusalKind, Store};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::claim::Claimed;
use super::local::{self, OwnedEdit, PRIVATE};
use super::replace::{Change, LocalFile};
use crate::{Build, Context};

/// A password file of libpq.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file; a relative path begins at the folder of the configuration file.
    pub path: PathBuf,
    /// Whether the file is made, readable by its owner only, where it is missing.
    #[serde(default)]
    pub create: bool,
}

impl Build for Config {
    type Driver = dyn Store;

    fn build(&self, context: &Context) -> Result<Arc<dyn Store>, Refusal> {
        let file = local::local_file(context, &self.path, self.create.then_some(PRIVATE));
        Ok(Arc::new(Pgpass { claimed: local::claimed(&file), file }))
    }
}

struct Pgpass {
    file: LocalFile,
    claimed: Option<Claimed>,
}

#[async_trait]
impl Store for Pgpass {
    fn facts(&self) -> StoreFacts {
        local::facts()
    }

    fn container(&self) -> String {
        local::container(&self.file)
    }

    async fn preflight(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        let mut findings = local::findings(&self.file).await?;
        let (file, addresses) = (self.file.clone(), addresses.to_vec());
        findings.extend(local::blocking(move |_| Ok(line_findings(&file, &addresses))).await?);
        Ok(findings)
    }

    async fn addresses(&self) -> Result<Option<Vec<String>>, CallError> {
        let file = self.file.clone();
        local::blocking(move |_| {
            let text = text_or_empty(file.read()?);
            let lines = lines(text.expose());
            let written = |line: &Line| {
                let place = &text.expose()[line.start..line.tail.start - 1];
                String::from_utf8_lossy(place).into_owned()
            };
            let addresses: BTreeSet<_> = lines.iter().map(written).collect();
            Ok(Some(addresses.into_iter().collect()))
        })
        .await
    }

    async fn read(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        let (file, addresses) = (self.file.clone(), addresses.to_vec());
        local::blocking(move |_| {
            let text = text_or_empty(file.read()?);
            let slots = addresses.iter().map(|address| read(&file, &text, address));
            Ok(slots.collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        let (file, edits): (_, Vec<_>) =
            (self.file.clone(), edits.iter().map(OwnedEdit::of).collect());
        local::blocking(move |abandoned| {
            file.rewrite(abandoned, |text| rewritten(&file, text, &edits))
        })
        .await
    }

    fn claims(&self) -> Option<&dyn Claims> {
        self.claimed.as_ref().map(|claimed| claimed as &dyn Claims)
    }
}

/// A line that is no comment.
struct Line {
    start: usize,
    /// Host, port and database, without their escapes.
    place: [Vec<u8>; 3],
    /// The user, without its escapes.
    user: Vec<u8>,
    /// What stands behind the database.
    tail: Range<usize>,
    /// The line with its end.
    whole: Range<usize>,
}

/// Which line a slot is.
struct Address {
    place: [Vec<u8>; 3],
    /// The users among which it is; none where any is meant.
    users: Option<Vec<Vec<u8>>>,
}

impl Address {
    fn read(file: &LocalFile, text: &str) -> Result<Self, Refusal> {
        let fields = fields(text.as_bytes(), 4);
        let plain: Vec<_> =
            fields.iter().map(|field| unescaped(&text.as_bytes()[field.clone()])).collect();
        let is_comment = text.starts_with('#') || text.contains(['\n', '\r', '\0']);
        let (place, users) = match &plain[..] {
            [host, port, database] => ([host, port, database], None),
            [host, port, database, users] => ([host, port, database], Some(users)),
            _ => {
                return Err(unsupported(
                    file,
                    "a slot is `host:port:database` or `host:port:database:users`",
                ));
            }
        };
        if is_comment || place.iter().any(|field| field.is_empty()) {
            return Err(unsupported(
                file,
                "a slot is `host:port:database`, and no part of it is empty",
            ));
        }
        let users =
            users.map(|users| users.split(|byte| *byte == b'|').map(<[u8]>::to_vec).collect());
        Ok(Self { place: place.map(Clone::clone), users })
    }

    fn is(&self, line: &Line) -> bool {
        let is_its = |users: &Vec<Vec<u8>>| users.contains(&line.user);
        self.place == line.place && self.users.as_ref().is_none_or(is_its)
    }

    /// Whether libpq uses a line for what this one is for.
    fn is_fitted_by(&self, user: &[u8], line: &Line) -> bool {
        let fits = |has: &[u8], wanted: &[u8]| has == b"*" || has == wanted;
        let mut places = line.place.iter().zip(&self.place);
        places.all(|(has, wanted)| fits(has, wanted)) && fits(&line.user, user)
    }
}

/// Returns the places of the first fields, which colons part; the last one goes up to the end.
fn fields(text: &[u8], most: usize) -> Vec<Range<usize>> {
    let (mut fields, mut start, mut at) = (Vec::new(), 0, 0);
    while at < text.len() {
        match text[at] {
            b'\\' => at += 1,
            b':' if fields.len() + 1 < most => {
                fields.push(start..at);
                start = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    fields.push(start..text.len());
    fields
}

fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(byte) = bytes.next() {
        plain.push(if *byte == b'\\' { *bytes.next().unwrap_or(byte) } else { *byte });
    }
    plain
}

/// Lists the lines; what is too short for one is nothing to libpq, and neither to us.
fn lines(text: &[u8]) -> Vec<Line> {
    let (mut lines, mut at) = (Vec::new(), 0);
    while at < text.len() {
        let end = text[at..].iter().position(|byte| *byte == b'\n').map_or(text.len(), |n| at + n);
        let whole = at..(end + 1).min(text.len());
        let ended =
            text[at..end].iter().rposition(|byte| *byte != b'\r').map_or(at, |n| at + n + 1);
        let line = &text[at..ended];
        if let ([host, port, database, tail], false) =
            (&fields(line, 4)[..], line.starts_with(b"#"))
        {
            let place = [host, port, database].map(|field| unescaped(&line[field.clone()]));
            let user = fields(&line[tail.clone()], 2).swap_remove(0);
            let user = unescaped(&line[tail.clone()][user]);
            lines.push(Line {
                start: at,
                place,
                user,
                tail: at + tail.start..at + tail.end,
                whole,
            });
        }
        at = end + 1;
    }
    lines
}

/// Finds the one line that is meant, and how many stand before it.
fn find<'l>(
    file: &LocalFile,
    lines: &'l [Line],
    address: &Address,
    shown: &str,
) -> Result<Option<(usize, &'l Line)>, Refusal> {
    let mut found = lines.iter().enumerate().filter(|(_, line)| address.is(line));
    match (found.next(), found.next()) {
        (line, None) => Ok(line),
        (_, Some(_)) => {
            let why = format!(
                "several lines are for `{shown}`; name the users: `host:port:database:app_a|app_b`"
            );
            Err(unsupported(file, &why))
        }
    }
}

fn read(
    file: &LocalFile,
    text: &SecretValue,
    address: &str,
) -> Result<Option<SecretValue>, Refusal> {
    let wanted = Address::read(file, address)?;
    let lines = lines(text.expose());
    let found = find(file, &lines, &wanted, address)?;
    Ok(found.map(|(_, line)| SecretValue::new(text.expose()[line.tail.clone()].to_vec())))
}

/// Applies all edits to a text, or none.
fn rewritten(
    file: &LocalFile,
    text: Option<&SecretValue>,
    edits: &[OwnedEdit],
) -> Result<Change, Refusal> {
    let mut new = text_or_empty(text.map(SecretValue::duplicate));
    let mut names = BTreeSet::new();
    for edit in edits {
        let present = read(file, &new, &edit.address)?;
        if !names.insert(&edit.address) {
            return Err(unsupported(file, &format!("two edits name `{}`", edit.address)));
        }
        if !edit.accepts(present.as_ref()) {
            let why = format!("`{}` holds something else than expected", edit.address);
            return Err(refused(file, RefusalKind::Conflict, &why));
        }
        new = set(file, &new, &edit.address, edit.value.as_ref())?;
    }
    Ok(Change::Contents(new))
}

fn set(
    file: &LocalFile,
    text: &SecretValue,
    address: &str,
    value: Option<&SecretValue>,
) -> Result<SecretValue, Refusal> {
    let (wanted, bytes) = (Address::read(file, address)?, text.expose());
    let lines = lines(bytes);
    let found = find(file, &lines, &wanted, address)?;
    let Some(value) = value else {
        let gone = found.map_or(0..0, |(_, line)| line.whole.clone());
        return Ok(SecretValue::new([&bytes[..gone.start], &bytes[gone.end..]].concat()));
    };
    let value = value.expose();
    if value.iter().any(|byte| [b'\n', b'\r', 0].contains(byte)) {
        return Err(unsupported(file, "a line has no place for the end of a line, or for NUL"));
    }
    let user = unescaped(&value[fields(value, 2).swap_remove(0)]);
    if wanted.users.as_ref().is_some_and(|users| !users.contains(&user)) {
        return Err(unsupported(
            file,
            &format!("`{address}` does not name the user that it is given"),
        ));
    }
    let before =
        |index: usize| lines[..index].iter().position(|line| wanted.is_fitted_by(&user, line));
    match found {
        Some((index, _)) if before(index).is_some() => {
            Err(hidden(file, address, &lines, before(index), bytes))
        }
        Some((_, line)) => Ok(SecretValue::new(
            [&bytes[..line.tail.start], value, &bytes[line.tail.end..]].concat(),
        )),
        None => {
            // In front of the line that libpq would use instead, else at the end.
            let hides = before(lines.len()).filter(|_| !planted!("password_line_hidden"));
            let at = hides.map_or(bytes.len(), |index| lines[index].start);
            let newline: &[u8] = if at == 0 || bytes[at - 1] == b'\n' { b"" } else { b"\n" };
            let line = [newline, address_of(address).as_bytes(), b":", value, b"\n"];
            let line = zeroize::Zeroizing::new(line.concat());
            Ok(SecretValue::new([&bytes[..at], &line, &bytes[at..]].concat()))
        }
    }
}

/// The part of a slot's name that stands on its line.
fn address_of(address: &str) -> &str {
    let fields = fields(address.as_bytes(), 4);
    fields.get(2).map_or(address, |database| &address[..database.end])
}

fn line_findings(file: &LocalFile, addresses: &[String]) -> Vec<Finding> {
    // A file that cannot be read is among the findings about the file itself.
    let Ok(Some((_, present))) = file.open() else { return Vec::new() };
    let mut findings = Vec::new();
    if present.stat.st_mode & 0o077 != 0 {
        let message = format!(
            "file `{}` is open to others than its owner, so that libpq ignores it",
            file.path().display()
        );
        findings.push(Finding::blocks(message));
    }
    let lines = lines(present.contents.expose());
    for address in addresses {
        let found = Address::read(file, address).and_then(|wanted| {
            let Some((index, line)) = find(file, &lines, &wanted, address)? else { return Ok(()) };
            let fits = |before: &Line| wanted.is_fitted_by(&line.user, before);
            match lines[..index].iter().position(fits) {
                Some(first) => {
                    Err(hidden(file, address, &lines, Some(first), present.contents.expose()))
                }
                None => Ok(()),
            }
        });
        findings.extend(found.err().map(|refusal| Finding::blocks(refusal.message)));
    }
    findings
}

fn hidden(
    file: &LocalFile,
    address: &str,
    lines: &[Line],
    first: Option<usize>,
    bytes: &[u8],
) -> Refusal {
    let start = first.map_or(0, |index| lines[index].start);
    let number = bytes[..start].iter().filter(|byte| **byte == b'\n').count() + 1;
    unsupported(
        file,
        &format!("libpq uses line {number} for `{address}`, which stands before its own"),
    )
}

fn text_or_empty(text: Option<SecretValue>) -> SecretValue {
    text.unwrap_or_else(|| SecretValue::new(Vec::new()))
}

fn unsupported(file: &LocalFile, why: &str) -> Refusal {
    refused(file, RefusalKind::Unsupported, why)
}

fn refused(file: &LocalFile, kind: RefusalKind, why: &str) -> Refusal {
    Refusal::operator(kind, format!("file `{}`: {why}", file.path().display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use keywheel_driver::Severity;
    use keywheel_driver::conformance::canary;
    use keywheel_driver::conformance::store::{self as conformance, Subject, hostile_values};
    use keywheel_driver::store::Accept;
    use keywheel_ground::postgres::Postgres;
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    const FILE: &str = "# passwords\nother:5432:app:app_a:kept\r\n\nlocal\\:host:5432:app:app_a:old\nshort:line\n*:*:*:root:kept";

    fn folder_with(text: &str) -> (TempDir, Arc<dyn Store>) {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("pgpass"), text).unwrap();
        fs::set_permissions(folder.path().join("pgpass"), fs::Permissions::from_mode(0o600))
            .unwrap();
        let config = Config { path: "pgpass".into(), create: false };
        let store = config.build(&Context::at(folder.path())).unwrap();
        (folder, store)
    }

    fn text_of(folder: &TempDir) -> String {
        fs::read_to_string(folder.path().join("pgpass")).unwrap()
    }

    async fn set(
        store: &dyn Store,
        address: &str,
        value: Option<&str>,
    ) -> Result<Written, CallError> {
        let value = value.map(|value| SecretValue::new(value.into()));
        store.write(&[Edit { address, accept: Accept::Anything, value: value.as_ref() }]).await
    }

    async fn held(store: &dyn Store, address: &str) -> Result<Option<String>, CallError> {
        let slots = store.read(&[address.into()]).await?;
        Ok(slots[0].as_ref().map(|held| String::from_utf8(held.expose().to_vec()).unwrap()))
    }

    async fn blocks(store: &dyn Store, address: &str) -> String {
        let findings = store.preflight(&[address.into()]).await.unwrap();
        let blocks = findings.into_iter().filter(|one| one.severity == Severity::Blocks);
        blocks.map(|one| one.message).collect::<Vec<_>>().join("\n")
    }

    #[tokio::test]
    async fn it_conforms() {
        let fresh = async || {
            let (folder, store) = folder_with(FILE);
            let config = Config { path: "pgpass".into(), create: true };
            let ends = |value: &Vec<u8>| value.iter().any(|byte| [b'\n', b'\r'].contains(byte));
            let hostile = hostile_values().into_iter().filter(ends);
            Subject {
                store,
                other: config.build(&Context::at(folder.path())).unwrap(),
                addresses: ["db:5432:app", "db:5433:app", "*:5432:app", "a\\:b:*:ü"]
                    .map(Into::into)
                    .into(),
                uncarriable: hostile.chain([vec![0], b"nul\0inside".to_vec()]).collect(),
                guard: Box::new(folder),
            }
        };
        conformance::every_case(fresh).await;
    }

    #[tokio::test]
    async fn one_line_changes_and_every_other_byte_stays() {
        let (folder, store) = folder_with(FILE);
        let address = "local\\:host:5432:app";
        assert_eq!(held(&*store, address).await, Ok(Some("app_a:old".into())));
        set(&*store, address, Some("app_b:n\\:w")).await.unwrap();
        assert_eq!(text_of(&folder), FILE.replace("app_a:old", "app_b:n\\:w"));
        set(&*store, "other:5432:app", Some("app_b:new")).await.unwrap();
        let both =
            FILE.replace("app_a:old", "app_b:n\\:w").replace("app:app_a:kept\r", "app:app_b:new\r");
        assert_eq!(text_of(&folder), both);
        set(&*store, address, None).await.unwrap();
        assert_eq!(text_of(&folder), both.replace("local\\:host:5432:app:app_b:n\\:w\n", ""));
        assert_eq!(held(&*store, address).await, Ok(None));
        let mode = fs::metadata(folder.path().join("pgpass")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn h100_a_line_that_libpq_would_not_use_is_refused() {
        let (folder, store) = folder_with("*:*:app:app_a:first\ndb:5432:app:app_a:second\n");
        assert!(blocks(&*store, "db:5432:app").await.contains("uses line 1"));
        assert!(set(&*store, "db:5432:app", Some("app_a:new")).await.is_err());
        assert_eq!(
            set(&*store, "db:5432:app", Some("app_b:new")).await.map(|w| w.changed),
            Ok(true)
        );
        set(&*store, "db:5432:app", None).await.unwrap();
        set(&*store, "db:5432:app", Some("app_a:new")).await.unwrap();
        assert_eq!(text_of(&folder), "db:5432:app:app_a:new\n*:*:app:app_a:first\n");
        fs::set_permissions(folder.path().join("pgpass"), fs::Permissions::from_mode(0o640))
            .unwrap();
        assert!(blocks(&*store, "db:5432:app").await.contains("libpq ignores it"));
    }

    #[tokio::test]
    async fn one_of_several_users_is_named() {
        let (folder, store) = folder_with("db:1:app:app_a:one\ndb:1:app:owner:two\n");
        assert!(blocks(&*store, "db:1:app").await.contains("several lines are for"));
        assert!(set(&*store, "db:1:app", Some("app_b:new")).await.is_err());
        let address = "db:1:app:app_a|app_b";
        assert_eq!(held(&*store, address).await, Ok(Some("app_a:one".into())));
        set(&*store, address, Some("app_b:new")).await.unwrap();
        assert_eq!(text_of(&folder), "db:1:app:app_b:new\ndb:1:app:owner:two\n");
        assert_eq!(held(&*store, address).await, Ok(Some("app_b:new".into())));
        assert!(set(&*store, address, Some("owner:new")).await.is_err());
        for bad in ["", "db", "db:1", "#db:1:app", "db::app", "db:1:a\npp"] {
            assert!(held(&*store, bad).await.is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_value_survives(value in "[^\0\r\n]{0,40}", address in "[a-z*]{1,3}:[0-9*]{1,2}:[a-z*]{1,3}") {
            prop_assume!(address != "*:*:*", "that line is there already");
            let file = LocalFile::new("/pgpass".into(), None);
            let (text, value) = (SecretValue::new(FILE.into()), SecretValue::new(value.into()));
            let new = super::set(&file, &text, &address, Some(&value)).unwrap_or_else(|e| panic!("{e}"));
            let back = super::read(&file, &new, &address).unwrap_or_else(|e| panic!("{e}"));
            prop_assert!(back.is_some_and(|back| back.same_as(&value)));
            let gone = super::set(&file, &new, &address, None).unwrap_or_else(|e| panic!("{e}"));
            let gone = String::from_utf8(gone.expose().to_vec()).unwrap();
            prop_assert_eq!(gone.trim_end_matches('\n'), FILE);
        }
    }

    #[tokio::test]
    async fn psql_logs_in_by_the_line_that_is_written() {
        let password = canary("pgpass");
        let postgres = match Postgres::start(&password, None) {
            Ok(postgres) => postgres,
            Err(why) => return writeln!(std::io::stdout(), "skipped: PostgreSQL ({why})").unwrap(),
        };
        let port = postgres.port();
        let (folder, store) = folder_with("*:*:*:postgres:wrong\nshort:line\n");
        let psql = |sql: &str| {
            let mut psql = Command::new("psql");
            psql.args([
                "-X",
                "-A",
                "-t",
                "-w",
                "-h",
                "127.0.0.1",
                "-U",
                "postgres",
                "-c",
                sql,
                "-p",
            ]);
            psql.arg(port.to_string()).env("PGPASSFILE", folder.path().join("pgpass"));
            let said = psql.env_remove("PGPASSWORD").output().unwrap();
            said.status.success().then(|| String::from_utf8(said.stdout).unwrap().trim().to_owned())
        };
        assert_eq!(psql("SELECT 1"), None, "the line of everybody has a wrong password");
        let address = format!("127.0.0.1:{port}:postgres");
        let line = format!("postgres:{}", password.replace('\\', "\\\\").replace(':', "\\:"));
        set(&*store, &address, Some(&line)).await.unwrap();
        assert_eq!(psql("SELECT current_user").as_deref(), Some("postgres"));
    }
}
