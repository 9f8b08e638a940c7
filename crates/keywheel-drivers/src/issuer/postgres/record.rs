//! What a PostgreSQL server has on record about a login: its sessions now, and who was let in or refused, from the server's log.
//!
//! The server keeps no record of logins but its log, and writes them there only where `log_connections` is on. To read the log
//! over a connection takes a right that reads every file of the server, so nobody is told to grant it; where the admin login
//! has it, the log is read. A line may hold a statement: only the names of a login's own lines are told, and no line as it is.

use std::collections::BTreeMap;
use std::convert::Infallible;

use async_trait::async_trait;
use keywheel_core::time::Timestamp;
use keywheel_core::version::IssuedId;
use keywheel_driver::CallError;
use keywheel_driver::issuer::{Audit, Entry};
use tokio_postgres::Client;

use super::{Meets, Postgres, Role, nothing_done, role_now};
use crate::api::plain;
use crate::lines::Line;
use crate::postgres;

/// How much of the log is read, from its end.
const MOST: i64 = 32 << 20;

/// How much is read at once.
const PIECE: i64 = 1 << 20;

/// How many lines of the log are told.
const MOST_LINES: usize = 200;

/// What may be missing of the log, and who can read it.
const LOOK: &str = "look at the log on the server's own machine";

#[async_trait]
impl Audit for Postgres {
    async fn since(&self, id: &IssuedId, since: Timestamp) -> Result<Vec<Entry>, CallError> {
        let admin = self.admin().await?;
        let role = role_now(&admin, &id.id).await?;
        let own = Own::of(role.as_ref(), id, since);
        let mut entries = own.entries(id);
        if role.is_none() {
            entries.push(Entry::untimed(format!(
                "the server has no login `{}` any more, and names no session that it may still have",
                id.id
            )));
        }
        match logged(&admin, &id.id, &own).await {
            Ok(found) => entries.extend(found),
            Err(error) => entries.push(Entry::untimed(format!(
                "the log of the server could not be read: {}; {LOOK}",
                postgres::in_words(&error)
            ))),
        }
        admin.keep();
        entries.extend(self.open_sessions(&id.id, &own).await);
        if !self.config.standbys.is_empty() {
            entries.push(Entry::untimed("the logs of the standbys were not read"));
        }
        entries.sort_by_key(|entry| entry.at);
        Ok(entries)
    }
}

/// The time in which a login had the password of one generation, and from when on is asked.
struct Own {
    since: Timestamp,
    /// When the generation was made, where the login still tells.
    from: Option<Timestamp>,
    /// When the next generation followed.
    until: Option<Timestamp>,
    /// What the comment of the login says of it.
    told: Vec<(Timestamp, String)>,
}

impl Own {
    fn of(role: Option<&Role>, id: &IssuedId, since: Timestamp) -> Self {
        let mut own = Self { since, from: None, until: None, told: Vec::new() };
        let Some((role, mark)) = role.and_then(|role| Some((role, role.mark.as_ref()?))) else {
            return own;
        };
        let generation = id.generation.unwrap_or(0);
        match role.meets(id) {
            Meets::Exactly if mark.label.is_some() => {
                own.from = Some(mark.since);
                own.told.push((mark.since, format!("generation {generation} was made")));
            }
            Meets::Exactly => {
                own.told.push((mark.since, format!("generation {generation} was revoked")));
            }
            Meets::Later(at) => {
                own.until = Some(at);
                let next = format!("generation {} is there since then", mark.generation);
                own.told.push((at, next));
            }
            Meets::Never => {}
        }
        own
    }

    fn entries(&self, id: &IssuedId) -> Vec<Entry> {
        let told = self.told.iter().filter(|(at, _)| *at >= self.since);
        let told = told.map(|(at, what)| Entry { at: Some(*at), what: what.clone() });
        let standing = "what the server tells is of the login, and of no password";
        let login = Entry::untimed(format!("login `{}`: {standing}", id.id));
        told.chain([login]).collect()
    }

    /// Whether a login at this time may have been by the password of this generation; the second of a change is of both.
    fn holds(&self, at: Timestamp) -> bool {
        let from = self.from.map(|from| from.millis() - 1_000);
        let until = self.until.map(|until| until.millis() + 1_000);
        from.is_none_or(|from| from <= at.millis()) && until.is_none_or(|until| at.millis() < until)
    }

    /// Whether a time of the log, which is of whole seconds, is asked for.
    fn is_asked_for(&self, at: Timestamp) -> bool {
        at.millis() >= self.since.millis().saturating_sub(1_000)
    }
}

impl Postgres {
    /// Tells of the sessions that are open, at the server and at each standby.
    async fn open_sessions(&self, login: &str, own: &Own) -> Vec<Entry> {
        let places = match self.places().await {
            Ok(places) => places,
            Err(error) => return vec![not_seen("", &error.to_string())],
        };
        let mut entries = Vec::new();
        for (index, place) in places.iter().enumerate() {
            let standby = index.checked_sub(1).map(|index| &self.config.standbys[index]);
            let at = standby.map(|standby| format!(" at standby `{standby}`")).unwrap_or_default();
            let seen = match self.connected(place).await {
                Ok(client) => {
                    let seen = sessions(&client, login, &at, own).await;
                    client.keep();
                    seen
                }
                Err(error) => Err(error),
            };
            entries.extend(seen.unwrap_or_else(|error| vec![not_seen(&at, &error.to_string())]));
        }
        entries
    }
}

fn not_seen(at: &str, why: &str) -> Entry {
    Entry::untimed(format!("the open sessions{at} could not be seen: {why}"))
}

/// Tells of the open sessions of a login at one server, whenever they began: they are in use now. Where the admin login may not
/// see more, it is told that they are there.
async fn sessions(
    admin: &Client,
    login: &str,
    at: &str,
    own: &Own,
) -> Result<Vec<Entry>, CallError> {
    let rows = admin
        .query(
            "SELECT (extract(epoch FROM backend_start) * 1000)::bigint, coalesce(application_name, ''), \
             coalesce(host(client_addr), 'this machine'), coalesce(datname, ''), \
             (extract(epoch FROM greatest(query_start, state_change)) * 1000)::bigint FROM pg_stat_activity \
             WHERE usename = $1 AND pid <> pg_backend_pid() ORDER BY backend_start",
            &[&login],
        )
        .await
        .map_err(|error| nothing_done(&error))?;
    let (mut entries, mut hidden) = (Vec::new(), 0);
    for row in &rows {
        let Some(began) = row.get::<_, Option<i64>>(0).map(Timestamp::from_millis) else {
            hidden += 1;
            continue;
        };
        if !own.holds(began) {
            continue;
        }
        let used = row.get::<_, Option<i64>>(4).map(Timestamp::from_millis);
        let used = used.map(|used| format!(", last active {}", text(used))).unwrap_or_default();
        let what =
            format!("session{at}, still open: {}{used}", whose(row.get(1), row.get(3), row.get(2)));
        entries.push(Entry { at: Some(began), what });
    }
    if hidden > 0 {
        entries.push(Entry::untimed(format!(
            "open sessions{at} of which the admin login may not see from where they came: {hidden}; that takes `pg_read_all_stats`"
        )));
    }
    Ok(entries)
}

/// Names an application, a database and an address, of which a client chooses the first.
fn whose(application: &str, database: &str, address: &str) -> String {
    let application = if application.is_empty() { "?".into() } else { plain(application) };
    format!("`{application}` in database `{}` from {}", plain(database), plain(address))
}

fn text(at: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.millis()).map(|at| at.to_string()).unwrap_or_default()
}

/// A part of the log: a file, from a place on to where it ended when it was listed.
struct LogFile {
    name: String,
    from: i64,
    to: i64,
}

/// Tells what the log says of a login, and what of the log could not be read.
async fn logged(
    admin: &Client,
    login: &str,
    own: &Own,
) -> Result<Vec<Entry>, tokio_postgres::Error> {
    let row = admin
        .query_one(
            "SELECT current_setting('log_connections'), current_setting('lc_messages'), \
             has_function_privilege('pg_current_logfile(text)', 'execute') \
             AND has_function_privilege('pg_ls_logdir()', 'execute') \
             AND has_function_privilege('pg_read_binary_file(text, bigint, bigint)', 'execute')",
            &[],
        )
        .await?;
    let (connections, language): (String, String) = (row.get(0), row.get(1));
    let mut entries = Vec::new();
    // Newer servers take a list of what is logged.
    if matches!(connections.as_str(), "off" | "") {
        entries.push(Entry::untimed(
            "`log_connections` is off: the log tells of refused logins, and of nobody who was let in",
        ));
    }
    let may_read: bool = row.get(2);
    if !may_read {
        entries.push(Entry::untimed(format!(
            "the log of the server was not read, since the admin login may not read files of the server; {LOOK}"
        )));
        return Ok(entries);
    }
    let row = admin.query_one("SELECT pg_current_logfile('stderr')", &[]).await?;
    let Some(current) = row.get::<_, Option<String>>(0) else {
        entries.push(Entry::untimed(format!(
            "the log of the server was not read: the server writes no log file in plain text (`logging_collector`, `log_destination`); {LOOK}"
        )));
        return Ok(entries);
    };
    if !is_english(&language) {
        let language = match language.as_str() {
            "" => "empty, so that the server's environment decides".into(),
            language => format!("`{}`", plain(language)),
        };
        entries.push(Entry::untimed(format!(
            "the log may be in another language (`lc_messages` is {language}), of which nothing is found"
        )));
    }
    let (files, is_whole) = files(admin, &current, own.since).await?;
    if !is_whole {
        entries.push(Entry::untimed(format!(
            "only the last {} MiB of the log were read; {LOOK}",
            MOST >> 20
        )));
    }
    let mut found = Found { login: login.to_owned(), ..Found::default() };
    for file in &files {
        found.read(admin, file).await?;
    }
    entries.extend(found.entries(admin, own).await?);
    Ok(entries)
}

fn is_english(language: &str) -> bool {
    matches!(language, "C" | "POSIX") || language.starts_with("C.") || language.starts_with("en")
}

/// Lists the files of the log that were written to since a time, the oldest first, as far as they are read at all.
async fn files(
    admin: &Client,
    current: &str,
    since: Timestamp,
) -> Result<(Vec<LogFile>, bool), tokio_postgres::Error> {
    let (folder, name) = current.rsplit_once('/').unwrap_or((".", current));
    let suffix = name.rsplit_once('.').map_or("", |(_, suffix)| suffix);
    let rows = admin
        .query(
            "SELECT name, size FROM pg_ls_logdir() \
             WHERE (extract(epoch FROM modification) * 1000)::bigint >= $1 ORDER BY modification DESC",
            // The time of a file is of whole seconds too.
            &[&since.millis().saturating_sub(1_000)],
        )
        .await?;
    let (mut files, mut left) = (Vec::new(), MOST);
    for row in &rows {
        let (name, size): (String, i64) = (row.get(0), row.get(1));
        if name.rsplit_once('.').map_or("", |(_, suffix)| suffix) != suffix {
            continue;
        }
        left -= size;
        files.push(LogFile { name: format!("{folder}/{name}"), from: 0, to: size });
        if left <= 0 {
            break;
        }
    }
    files.reverse();
    if let (Some(oldest), true) = (files.first_mut(), left < 0) {
        // Of the oldest one only the end is read.
        oldest.from = -left;
    }
    Ok((files, left >= 0))
}

/// The lines about a login.
#[derive(Default)]
struct Found {
    login: String,
    /// From where a process of the server was asked last.
    hosts: BTreeMap<String, String>,
    lines: Vec<Logged>,
    /// Whether the next line lacks its beginning.
    is_cut: bool,
}

/// One line about a login.
struct Logged {
    /// The time as the server wrote it, of whole seconds and without its zone.
    time: String,
    what: String,
    /// Whether it was let in.
    is_let_in: bool,
}

impl Found {
    async fn read(&mut self, admin: &Client, file: &LogFile) -> Result<(), tokio_postgres::Error> {
        self.is_cut = file.from > 0;
        let mut line = Line::default();
        let mut take = |text: &str| {
            self.take(text);
            Ok::<_, Infallible>(())
        };
        let mut at = file.from;
        while at < file.to {
            let length = PIECE.min(file.to - at);
            let ask = "SELECT pg_read_binary_file($1, $2, $3)";
            let row = admin.query_one(ask, &[&file.name, &at, &length]).await?;
            line.add(row.get::<_, &[u8]>(0), &mut take).ok();
            at += length;
        }
        line.end(&mut take).ok();
        Ok(())
    }

    /// Takes a line that is about the login. The message begins after the severity; what stands later in it a client may have
    /// written, and so it may what stands in the next lines, which the server begins with a tab.
    fn take(&mut self, line: &str) {
        if std::mem::take(&mut self.is_cut) || line.starts_with('\t') {
            return;
        }
        let Some((head, message)) = line.split_once(":  ") else { return };
        let process = process(head);
        if let Some(from) = message.strip_prefix("connection received: host=") {
            let host = from.split(' ').next().unwrap_or_default();
            self.hosts.insert(process.to_owned(), host.to_owned());
            return;
        }
        let Some((what, is_let_in)) = self.told(message) else { return };
        let host = self.hosts.get(process).map(|host| format!(" from {}", plain(host)));
        let what = format!("{what}{}", host.unwrap_or_default());
        let time = head.get(..19).unwrap_or_default().to_owned();
        self.lines.push(Logged { time, what, is_let_in });
    }

    fn told(&self, message: &str) -> Option<(String, bool)> {
        let login = &self.login;
        if let Some(rest) = message.strip_prefix("connection authorized: user=") {
            let rest = rest.strip_prefix(login.as_str())?.strip_prefix(" database=")?;
            let database = rest.split(' ').next().unwrap_or_default();
            let application = rest.split_once(" application_name=").map_or("", |(_, name)| name);
            let application = application.split(" SSL enabled").next().unwrap_or_default();
            let application = if application.is_empty() { "?".into() } else { plain(application) };
            let what = format!("let in: `{application}` in database `{}`", plain(database));
            return Some((what, true));
        }
        let refused = [
            (
                format!("password authentication failed for user \"{login}\""),
                "refused: wrong password",
            ),
            (format!("role \"{login}\" is not permitted to log in"), "refused: switched off"),
        ];
        let refused = refused.into_iter().find(|(start, _)| message.starts_with(start.as_str()));
        refused.map(|(_, what)| (what.into(), false))
    }

    /// Puts the lines into entries, the newest where they are too many. Each time is read by the server that wrote it.
    async fn entries(
        mut self,
        admin: &Client,
        own: &Own,
    ) -> Result<Vec<Entry>, tokio_postgres::Error> {
        let all = self.lines.len();
        self.lines.retain(|line| is_time(&line.time));
        let without_time = all - self.lines.len();
        let times: Vec<&str> = self.lines.iter().map(|line| line.time.as_str()).collect();
        // The server writes times of `log_timezone`. The abbreviation beside them is not read: the server may take it for
        // that of another zone, as `CST`. What stays open is the hour that comes twice in autumn, which is read as the later
        // one, and lines from before the setting was changed.
        let ask = "SELECT (extract(epoch FROM t::timestamp AT TIME ZONE current_setting('log_timezone')) * 1000)::bigint \
                   FROM unnest($1::text[]) WITH ORDINALITY AS u(t, n) ORDER BY n";
        let rows = admin.query(ask, &[&times]).await?;
        let mut entries = Vec::new();
        for (line, row) in self.lines.iter().zip(&rows) {
            let at = Timestamp::from_millis(row.get(0));
            // Nobody can tell which password was refused.
            if own.is_asked_for(at) && (own.holds(at) || !line.is_let_in) {
                entries.push(Entry { at: Some(at), what: line.what.clone() });
            }
        }
        let more = entries.len().saturating_sub(MOST_LINES);
        entries.drain(..more);
        if more > 0 {
            entries.push(Entry::untimed(format!("and {more} earlier lines of the log")));
        }
        if without_time > 0 {
            entries.push(Entry::untimed(format!(
                "lines of the log about the login whose time could not be read: {without_time} (`log_line_prefix` begins with neither `%m` nor `%t`)"
            )));
        }
        Ok(entries)
    }
}

/// The number of the process in the head of a line: `2026-11-26 10:00:00.123 UTC [1234] LOG`.
fn process(head: &str) -> &str {
    let inside = head.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or("", |(process, _)| process)
}

/// Whether a text has the form of a time, so that nothing else is put to the server.
fn is_time(text: &str) -> bool {
    let shape = b"0000-00-00 00:00:00";
    let fits =
        |(is, like): (u8, &u8)| if *like == b'0' { is.is_ascii_digit() } else { is == *like };
    text.len() == shape.len() && text.bytes().zip(shape).all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_server_wrote_of_the_login_is_told() {
        let mut found = Found { login: "app_a".into(), ..Found::default() };
        let head =
            |pid: u32, severity: &str| format!("2026-01-31 09:00:00.123 UTC [{pid}] {severity}");
        let forged = "2026-01-31 09:00:00.123 UTC [6] LOG:  connection authorized: user=app_a database=forged";
        found.is_cut = true;
        found.take(forged);
        found.take(&format!("\t{forged}"));
        for (pid, severity, message) in [
            (7, "LOG", "connection received: host=192.0.2.7 port=5000"),
            (8, "LOG", "connection received: host=192.0.2.8 port=5001"),
            (
                7,
                "LOG",
                "connection authorized: user=app_a database=shop application_name=web SSL enabled (protocol=TLSv1.3)",
            ),
            (8, "FATAL", "password authentication failed for user \"app_a\""),
            (9, "FATAL", "role \"app_a\" is not permitted to log in"),
            (7, "LOG", "connection authorized: user=app_ab database=shop"),
            (
                7,
                "LOG",
                "connection authorized: user=eve database=x application_name=LOG:  connection authorized: user=app_a database=shop",
            ),
            (7, "LOG", "statement: SELECT 'password authentication failed for user \"app_a\"'"),
        ] {
            found.take(&format!("{}:  {message}", head(pid, severity)));
        }
        let told: Vec<&str> = found.lines.iter().map(|line| line.what.as_str()).collect();
        assert_eq!(
            told,
            [
                "let in: `web` in database `shop` from 192.0.2.7",
                "refused: wrong password from 192.0.2.8",
                "refused: switched off",
            ]
        );
        assert!(found.lines.iter().all(|line| line.time == "2026-01-31 09:00:00"));
    }

    #[test]
    fn a_log_is_in_english_only_where_the_server_says_so() {
        assert!(["C", "POSIX", "C.UTF-8", "en_GB.UTF-8"].into_iter().all(is_english));
        // Empty, it is what the environment of the server says.
        assert!(!["", "de_DE.UTF-8"].into_iter().any(is_english));
    }

    #[test]
    fn a_time_is_put_to_the_server_in_one_form_only() {
        assert!(is_time("2026-01-31 09:00:00"));
        for time in ["", "2026-01-31 09:00", "2026-01-31T09:00:00", "2026-01-31 09:00:00 UTC"] {
            assert!(!is_time(time), "{time}");
        }
    }
}
