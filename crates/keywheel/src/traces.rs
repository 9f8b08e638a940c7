//! What others have on record about the suspects of an emergency: their issuers, and the lines of the application's logs that are
//! marked `AUDIT`. What cannot be read is told with the reason, and holds nothing else up.
//!
//! A line of a log is somebody else's text. Words in it that may be credentials are left out, and so is whatever a terminal
//! would act upon.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use keywheel_core::planted;
use keywheel_core::secret::SecretName;
use keywheel_core::time::Timestamp;
use keywheel_core::version::VersionId;
use keywheel_driver::Issuer;
use keywheel_driver::issuer::Entry;
use rustix::fs::OFlags;
use serde_json::{Value, json};

use crate::compile::drivers_of;
use crate::incident::{Incident, Log, Story, Suspect};
use crate::words;

/// How long one question to an issuer may hold up the answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// How much of one log is read.
const MOST_BYTES: u64 = 256 << 20;

/// How many lines of one log are told.
const MOST_LINES: usize = 200;

/// How much of one line is told.
const MOST_CHARACTERS: usize = 1_000;

/// From how many characters on a word with digits among its letters may be a credential.
const WORD: usize = 20;

/// What others have on record.
pub(crate) struct Traces {
    issuers: Vec<OfSuspect>,
    logs: Vec<OfLog>,
}

/// What an issuer has on record about one version.
struct OfSuspect {
    secret: SecretName,
    version: VersionId,
    since: Timestamp,
    entries: Vec<Entry>,
    not_read: Vec<String>,
}

/// The lines of one log that are marked.
struct OfLog {
    workload: String,
    replica: String,
    lines: Vec<String>,
    /// How many lines more are marked.
    more: usize,
    not_read: Option<String>,
}

/// Asks for all of it. Without `since`, issuers are asked from when a version was made, as far as that is known.
pub(crate) async fn look(incident: &Incident, since: Option<Timestamp>) -> Traces {
    let mut issuers = Vec::new();
    for story in &incident.stories {
        for suspect in &story.suspects {
            issuers.push(of_suspect(story, suspect, since).await);
        }
    }
    Traces { issuers, logs: incident.logs.iter().map(|log| of_log(log, since)).collect() }
}

async fn of_suspect(story: &Story, suspect: &Suspect, since: Option<Timestamp>) -> OfSuspect {
    let plan = story.rotation.plan();
    let mut of_suspect = OfSuspect {
        secret: plan.secret.clone(),
        version: suspect.version,
        since: since.or(suspect.made_at).unwrap_or_default(),
        entries: Vec::new(),
        not_read: Vec::new(),
    };
    match drivers_of(plan) {
        Ok(built) => of_suspect.ask(built.issuer.as_ref(), story).await,
        Err(failure) => of_suspect.not_read.push(failure.message),
    }
    of_suspect
}

impl OfSuspect {
    async fn ask(&mut self, issuer: &dyn Issuer, story: &Story) {
        let (audit, usage) = (issuer.audit(), issuer.usage());
        let name = &story.rotation.plan().issuer.bound.name;
        if audit.is_none() && usage.is_none() {
            return self.not_read.push(format!("issuer `{name}` tells nothing of its versions"));
        }
        let Some(issued) = story.rotation.issued(self.version) else {
            let why = format!("the id by which issuer `{name}` knows it is not known");
            return self.not_read.push(why);
        };
        match audit {
            None => self.not_read.push(format!("issuer `{name}` keeps no record that can be read")),
            Some(audit) => match in_time(audit.since(issued, self.since)).await {
                Ok(entries) => self.entries.extend(entries),
                Err(why) => self.not_read.push(format!("the record of issuer `{name}`: {why}")),
            },
        }
        match usage {
            None => self.not_read.push(format!("issuer `{name}` does not tell uses")),
            Some(usage) => match in_time(usage.last_used(issued)).await {
                Ok(used) => {
                    let detail = used.detail.map(|words| format!("; {words}")).unwrap_or_default();
                    let what = if used.at.is_some() { "last use" } else { "no use is known" };
                    self.entries.push(Entry { at: used.at, what: format!("{what}{detail}") });
                }
                Err(why) => self.not_read.push(format!("the last use at issuer `{name}`: {why}")),
            },
        }
    }

    fn text(&self) -> String {
        let since = match self.since == Timestamp::default() {
            true => "as far back as it goes".into(),
            false => format!("since {}", words::logged(self.since)),
        };
        let mut text = format!("  {} {}, {since}\n", self.secret, self.version);
        let row = |entry: &Entry| {
            vec![entry.at.map_or("time not known".into(), words::logged), entry.what.clone()]
        };
        text.push_str(&words::table(&self.entries.iter().map(row).collect::<Vec<_>>(), "    "));
        text.extend(self.not_read.iter().map(|why| format!("    not read: {why}\n")));
        text
    }

    fn json(&self) -> Value {
        let entry =
            |entry: &Entry| json!({ "at": entry.at.map(words::rfc3339), "what": entry.what });
        json!({
            "secret": self.secret, "version": self.version, "since": words::rfc3339(self.since),
            "entries": self.entries.iter().map(entry).collect::<Vec<_>>(),
            "not_read": self.not_read,
        })
    }
}

async fn in_time<T>(
    question: impl Future<Output = Result<T, keywheel_core::call::CallError>>,
) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, question).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

fn of_log(Log { workload, reference }: &Log, since: Option<Timestamp>) -> OfLog {
    let mut of_log = OfLog {
        workload: workload.clone(),
        replica: reference.replica.clone(),
        lines: Vec::new(),
        more: 0,
        not_read: None,
    };
    let files: Vec<&str> =
        [&reference.kept_in, &reference.file].into_iter().flatten().map(String::as_str).collect();
    let mut why = None;
    for file in &files {
        match marked(Path::new(file), since) {
            Ok((lines, more)) => return OfLog { lines, more, ..of_log },
            Err(error) => why = why.or(Some(format!("`{file}`: {}", error.kind()))),
        }
    }
    let place = reference.place.as_ref().map(|place| format!("; while it is there: {place}"));
    let why = why.unwrap_or_else(|| "no file that holds it is known".into());
    of_log.not_read = Some(format!("{why}{}", place.unwrap_or_default()));
    of_log
}

/// Returns the marked lines of a file, and how many more there are; without those that say that they are from before `since`.
fn marked(file: &Path, since: Option<Timestamp>) -> std::io::Result<(Vec<String>, usize)> {
    let mut options = File::options();
    options.read(true).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    let opened = options.open(file)?;
    if !opened.metadata()?.is_file() {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    let (mut lines, mut more) = (Vec::new(), 0);
    for line in BufReader::new(opened.take(MOST_BYTES)).split(b'\n') {
        let line = line?;
        let text = String::from_utf8_lossy(&line);
        match is_marked(&text) && !is_before(&text, since) {
            true if lines.len() < MOST_LINES => lines.push(told(&text)),
            true => more += 1,
            false => {}
        }
    }
    Ok((lines, more))
}

/// Whether a line begins with a time before this one.
fn is_before(line: &str, since: Option<Timestamp>) -> bool {
    let at = line.split(' ').next().and_then(|word| word.parse::<jiff::Timestamp>().ok());
    at.zip(since).is_some_and(|(at, since)| at.as_millisecond() < since.millis())
}

/// Whether `AUDIT` stands in a line as a word of its own.
fn is_marked(line: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric()).any(|word| word == "AUDIT")
}

/// A line as it may be told.
fn told(line: &str) -> String {
    let line: String = line.chars().filter(|c| !c.is_control()).take(MOST_CHARACTERS).collect();
    if planted!("log_lines_as_they_are") {
        return line;
    }
    let mut told = String::new();
    let mut at = 0;
    while let Some(begin) = line[at..].find(in_word).map(|begin| at + begin) {
        let end = line[begin..].find(|c| !in_word(c)).map_or(line.len(), |end| begin + end);
        let (before, word, after) = (&line[..begin], &line[begin..end], &line[end..]);
        let is_left_out = may_be_secret(word)
            || is_named_a_secret(before)
            || is_before_a_host(before, word, after);
        told.push_str(&line[at..begin]);
        told.push_str(if is_left_out { "…" } else { word });
        at = end;
    }
    told + &line[at..]
}

fn in_word(c: char) -> bool {
    c.is_alphanumeric() || "_-+./~%".contains(c)
}

/// Ids of requests in the form of a UUID are of use, and few credentials have it.
fn may_be_secret(word: &str) -> bool {
    let whole = (!word.starts_with('/')).then_some(word);
    word.split('/').chain(whole).any(|part| {
        part.len() >= WORD
            && part.bytes().any(|byte| byte.is_ascii_digit())
            && part.bytes().any(|byte| byte.is_ascii_alphabetic())
            && !is_uuid(part)
    })
}

fn is_uuid(word: &str) -> bool {
    let lengths = word.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && word.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

/// Whether a name such as `password` or `api_key` stands before a value.
fn is_named_a_secret(before: &str) -> bool {
    let named = before.trim_end_matches(['=', ':', '"', '\'', ' ']);
    let name = named.rsplit(|c: char| !c.is_alphanumeric() && c != '_' && c != '-').next();
    let name = name.unwrap_or_default().to_ascii_uppercase();
    let names: &[&str] = match before[named.len()..].contains(['=', ':']) {
        true => &["PASSWORD", "SECRET", "TOKEN", "KEY", "AUTHORIZATION", "COOKIE"],
        false => &["BEARER", "BASIC"],
    };
    names.iter().any(|word| name.ends_with(word))
}

/// Whether a word is the user or the password of a URL.
fn is_before_a_host(before: &str, word: &str, after: &str) -> bool {
    let whole = after.split_whitespace().next().unwrap_or_default();
    let is_user = word.starts_with("//") && whole.contains('@');
    before.ends_with(':') && (is_user || after.starts_with('@'))
}

impl Traces {
    /// Puts them into words.
    pub(crate) fn text(&self) -> String {
        let mut text = String::from("on record at the issuers\n");
        text.extend(self.issuers.iter().map(OfSuspect::text));
        text.push_str("application logs: lines marked AUDIT\n");
        if self.logs.is_empty() {
            text.push_str("  not read: no log is known\n");
        }
        for log in &self.logs {
            let OfLog { workload, replica, lines, more, not_read } = log;
            let told = match not_read {
                Some(why) => format!("not read: {why}"),
                None => words::counted(lines.len() + more, "line"),
            };
            text.push_str(&format!("  {workload} {replica}: {told}\n"));
            text.extend(lines.iter().map(|line| format!("    {line}\n")));
            if *more > 0 {
                text.push_str(&format!("    and {more} more\n"));
            }
        }
        text
    }

    /// Puts what the issuers have into the form for programs.
    pub(crate) fn issuers(&self) -> Vec<Value> {
        self.issuers.iter().map(OfSuspect::json).collect()
    }

    /// Puts what the logs have into the form for programs.
    pub(crate) fn logs(&self) -> Vec<Value> {
        let log = |log: &OfLog| {
            json!({
                "workload": log.workload, "replica": log.replica, "lines": log.lines,
                "more": log.more, "not_read": log.not_read,
            })
        };
        self.logs.iter().map(log).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h119_a_line_of_a_log_is_told_without_what_may_be_a_credential() {
        let kept = [
            "2026-11-26T17:03:06Z AUDIT user 7 changed order 12 from 192.0.2.7",
            "AUDIT GET /api/v1/orders/2026/17/of/somebody request 0e984725-c51c-4bf4-9960-e1c80e27aba0",
            "AUDIT tokens issued: 3",
        ];
        for line in kept {
            assert_eq!(told(line), line);
        }
        let masked = [
            ("AUDIT key sk-proj-kwcanary0123456789abcdef used", "AUDIT key … used"),
            ("AUDIT login password=hunter2 ok", "AUDIT login password=… ok"),
            ("AUDIT {\"password\": \"hunter2\"}", "AUDIT {\"password\": \"…\"}"),
            ("AUDIT Authorization: Bearer abc.def", "AUDIT Authorization: … …"),
            ("AUDIT postgres://app:hunter2@db/shop", "AUDIT postgres:…:…@db/shop"),
            ("AUDIT \u{1b}[31mred\u{7}", "AUDIT [31mred"),
        ];
        for (line, shown) in masked {
            assert_eq!(told(line), shown);
        }
    }

    #[test]
    fn a_log_is_read_from_a_time_on_and_never_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (log, link) = (folder.path().join("log"), folder.path().join("link"));
        let text = "2026-01-01T00:00:00Z AUDIT early\nAUDIT whenever\nnoise\n2026-01-03T00:00:00.5Z AUDIT late\n";
        std::fs::write(&log, text).unwrap();
        std::os::unix::fs::symlink(&log, &link).unwrap();
        let since = Timestamp::from_millis(1_767_312_000_000);
        let (all, from_then_on) = (marked(&log, None).unwrap(), marked(&log, Some(since)).unwrap());
        assert_eq!((all.0.len(), all.1), (3, 0));
        assert_eq!(from_then_on.0, ["AUDIT whenever", "2026-01-03T00:00:00.5Z AUDIT late"]);
        assert!(marked(&link, None).is_err() && marked(folder.path(), None).is_err());
        std::fs::write(&log, "AUDIT one\n".repeat(MOST_LINES + 7)).unwrap();
        assert_eq!(marked(&log, None).map(|(lines, more)| (lines.len(), more)).unwrap(), (200, 7));
    }

    #[test]
    fn a_mark_is_a_word_of_its_own() {
        assert!(is_marked("[AUDIT] login") && is_marked("{\"log\":\"AUDIT: login\"}"));
        assert!(!is_marked("AUDITOR") && !is_marked("audit") && !is_marked("PREAUDIT_1"));
    }
}
