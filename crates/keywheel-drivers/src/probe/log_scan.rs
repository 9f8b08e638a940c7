//! `log_scan`: whether a log tells of more refusals than before the rotation.
//!
//! A probe has no memory, so both counts are taken anew each time: lines of the last `span`, but not of before the rotation
//! began, and lines of as long a time just before that. What the log no longer holds counts as none, as with containers that a
//! roll replaced.
//!
//! A line may hold anything, so none is repeated: counts and a time are all that is told.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::duration::Duration;
use keywheel_driver::probe::{Asked, Health, Probe};
use keywheel_driver::{CallError, Refusal, RefusalKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::workload::compose_service::engine::Engine;
use crate::workload::compose_service::{ContainersOf, usual_socket};
use crate::{Build, Context};

/// The most of a file that is read, from its end.
const MOST: u64 = 256 << 20;

/// How far into a line its time is looked for.
const HEAD: usize = 256;

/// Counts the lines of a log that tell of refusals, and is red where there are more than before the rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the log is.
    pub log: Log,
    /// The words that count, whatever their case.
    #[serde(default = "refusals")]
    #[schemars(length(min = 1))]
    pub words: Vec<String>,
    /// The time that is looked at, and compared with as long a time before the rotation.
    #[serde(default = "default_span")]
    pub span: Duration,
    /// How many more lines than before are still green.
    #[serde(default = "default_more_than")]
    pub more_than: u64,
}

/// Where a log is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Log {
    /// A file whose lines have a time: `2026-01-31T09:14:00Z`, with a space for the `T`, without the zone for this machine's, or
    /// `31/Jan/2026:09:14:00 +0000`. A line without one belongs to the line before.
    File(PathBuf),
    /// What the containers of a Compose service write.
    Service(ContainersOf),
    /// What one container writes.
    Container(Container),
}

/// One container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// Its name or id.
    pub name: String,
    /// The socket of the container engine; by default that of `DOCKER_HOST`, else Docker's, else Podman's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

fn refusals() -> Vec<String> {
    ["401", "403", "unauthorized"].map(String::from).to_vec()
}

fn default_span() -> Duration {
    Span::minutes(5).into()
}

fn default_more_than() -> u64 {
    5
}

impl Build for Config {
    type Driver = dyn Probe;

    fn build(&self, context: &Context) -> Result<Arc<dyn Probe>, Refusal> {
        if self.words.is_empty() || self.words.iter().any(String::is_empty) {
            return Err(unsupported("`words` names none"));
        }
        if self.span.span() < Span::seconds(1) {
            return Err(unsupported("`span` must be at least `1s`"));
        }
        let engine =
            |socket: &Option<PathBuf>| Engine::at(&socket.clone().unwrap_or_else(usual_socket));
        let source = match &self.log {
            Log::File(path) => Source::File(context.root.join(path)),
            Log::Service(of) => Source::Service(of.rooted(context)),
            Log::Container(of) if of.name.is_empty() || of.name.contains(['/', '?', '#', '%']) => {
                return Err(unsupported("`name` is no name of a container"));
            }
            Log::Container(of) => {
                Source::Container { engine: engine(&of.socket), name: of.name.clone() }
            }
        };
        Ok(Arc::new(LogScan { source, config: self.clone() }))
    }
}

struct LogScan {
    source: Source,
    config: Config,
}

enum Source {
    File(PathBuf),
    Service(ContainersOf),
    Container { engine: Engine, name: String },
}

/// What is counted, and how often it was seen.
struct Tally {
    words: Vec<String>,
    /// How much time is looked at, before and after.
    length: Span,
    before: Range<Timestamp>,
    after: Range<Timestamp>,
    count_before: u64,
    count_after: u64,
    last: Option<Timestamp>,
}

impl Tally {
    fn new(config: &Config, asked: &Asked) -> Self {
        let began = asked.began_at;
        let length = config.span.span().min(asked.now.since(began));
        let now = asked.now.max(began);
        Self {
            words: config.words.iter().map(|word| word.to_lowercase()).collect(),
            length,
            before: earlier(began, length)..began,
            // A line may be written in the very moment.
            after: earlier(now, length)..now + Span::millis(1),
            count_before: 0,
            count_after: 0,
            last: None,
        }
    }

    fn take(&mut self, at: Timestamp, line: &str) {
        if self.before.contains(&at) && self.matches(line) {
            self.count_before += 1;
        } else if self.after.contains(&at) && self.matches(line) {
            self.count_after += 1;
            self.last = self.last.max(Some(at));
        }
    }

    fn matches(&self, line: &str) -> bool {
        let line = line.to_lowercase();
        self.words.iter().any(|word| has_word(&line, word))
    }
}

#[async_trait]
impl Probe for LogScan {
    async fn ask(&self, asked: &Asked) -> Result<Health, CallError> {
        let mut tally = Tally::new(&self.config, asked);
        match &self.source {
            Source::File(path) => tally = read_file(path.clone(), tally).await?,
            Source::Service(of) => {
                let engine = of.engine();
                for container in of.all(&engine).await? {
                    read_container(&engine, &container.id, &mut tally).await?;
                }
            }
            Source::Container { engine, name } => read_container(engine, name, &mut tally).await?,
        }
        let (before, after) = (tally.count_before, tally.count_after);
        if after <= before.saturating_add(self.config.more_than) {
            return Ok(Health::Green);
        }
        let length = tally.length;
        let last = tally.last.and_then(|at| jiff::Timestamp::from_millisecond(at.millis()).ok());
        let last = last.map(|at| format!("; the last one at {at}")).unwrap_or_default();
        Ok(Health::Red(format!(
            "{after} lines tell of refusals in {length}, and {before} in the same time before the rotation{last}"
        )))
    }
}

async fn read_container(engine: &Engine, id: &str, tally: &mut Tally) -> Result<(), CallError> {
    // The time before may lie far back: what lies between is not asked for.
    for range in [tally.before.clone(), tally.after.clone()] {
        let mut take = |line: &str| {
            let Some((at, line)) = line.split_once(' ') else { return Ok(()) };
            let Ok(at) = at.parse::<jiff::Timestamp>() else { return Ok(()) };
            let at = Timestamp::from_millis(at.as_millisecond());
            if range.contains(&at) {
                tally.take(at, line);
            }
            Ok(())
        };
        engine.logs(id, &range, &mut take).await?;
    }
    Ok(())
}

async fn read_file(path: PathBuf, tally: Tally) -> Result<Tally, CallError> {
    let read = tokio::task::spawn_blocking(move || scan(&path, tally)).await;
    Ok(read.expect("reading a file does not panic")?)
}

fn scan(path: &Path, mut tally: Tally) -> Result<Tally, Refusal> {
    let failed = |error: std::io::Error| {
        let message = format!("log `{}`: {}", path.display(), error.kind());
        Refusal::operator(RefusalKind::Local, message)
    };
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MOST))).map_err(failed)?;
    let mut lines = BufReader::with_capacity(1 << 16, file);
    let (mut line, mut at, mut any) = (Vec::new(), None, false);
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line).map_err(failed)? == 0 {
            break;
        }
        any = true;
        at = time_of(&line).or(at);
        if let Some(at) = at {
            tally.take(at, &String::from_utf8_lossy(&line));
        }
    }
    if any && at.is_none() {
        let message =
            format!("log `{}`: no line has a time that this version reads", path.display());
        return Err(unsupported(&message));
    }
    Ok(tally)
}

fn earlier(at: Timestamp, by: Span) -> Timestamp {
    let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millis(at.millis().saturating_sub(by))
}

/// Whether a word stands in a line by itself, and not within another word or number.
fn has_word(line: &str, word: &str) -> bool {
    let joins = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(joins) && !after.is_some_and(joins)
    })
}

/// Returns the first time that stands in a line.
fn time_of(line: &[u8]) -> Option<Timestamp> {
    let head = &line[..line.len().min(HEAD)];
    (0..head.len()).find_map(|at| iso(&head[at..]).or_else(|| clf(&head[at..])))
}

/// `2026-01-31T09:14:00.123Z`, with a space, a comma, another offset, or none for this machine's zone.
fn iso(text: &[u8]) -> Option<Timestamp> {
    let (whole, rest) = text.split_at_checked(19)?;
    let shape = b"0000-00-00T00:00:00";
    let fits = |(is, like): (&u8, &u8)| match like {
        b'0' => is.is_ascii_digit(),
        b'T' => matches!(is, b'T' | b' '),
        other => is == other,
    };
    if !whole.iter().zip(shape).all(fits) {
        return None;
    }
    let at: DateTime = std::str::from_utf8(whole).ok()?.parse().ok()?;
    let (millis, rest) = fraction(rest);
    let zone = offset(rest).map_or_else(TimeZone::system, Offset::to_time_zone);
    let at = zone.to_ambiguous_zoned(at).compatible().ok()?;
    Some(Timestamp::from_millis(at.timestamp().as_millisecond() + millis))
}

/// `31/Jan/2026:09:14:00 +0000`, as web servers write it.
fn clf(text: &[u8]) -> Option<Timestamp> {
    let text = text.get(..26)?;
    if text[2] != b'/' || text[6] != b'/' {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    let at = jiff::fmt::strtime::parse("%d/%b/%Y:%H:%M:%S %z", text).ok()?;
    Some(Timestamp::from_millis(at.to_timestamp().ok()?.as_millisecond()))
}

fn fraction(text: &[u8]) -> (i64, &[u8]) {
    let Some((b'.' | b',', digits)) = text.split_first() else { return (0, text) };
    let length = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let first = digits[..length].iter().chain(b"000").take(3);
    (first.fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0')), &digits[length..])
}

/// `Z`, `+01:00`, `+0100`, or one of them after a space.
fn offset(text: &[u8]) -> Option<Offset> {
    let text = text.strip_prefix(b" ").unwrap_or(text);
    if text.first() == Some(&b'Z') {
        return Some(Offset::UTC);
    }
    let sign = match text.first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let two = |text: &[u8]| match text {
        [a, b, ..] if a.is_ascii_digit() && b.is_ascii_digit() => {
            Some(i32::from((a - b'0') * 10 + (b - b'0')))
        }
        _ => None,
    };
    let hours = two(&text[1..])?;
    let rest = &text[3..];
    let minutes = two(rest.strip_prefix(b":").unwrap_or(rest))?;
    Offset::from_seconds(sign * (hours * 3_600 + minutes * 60)).ok()
}

fn unsupported(message: &str) -> Refusal {
    Refusal::operator(RefusalKind::Unsupported, message)
}

#[cfg(test)]
mod tests {
    use keywheel_driver::conformance::canary;
    use serde_json::json;

    use super::*;

    /// 2026-01-31 09:00:00 UTC.
    const BEGAN: Timestamp = Timestamp::from_millis(1_769_850_000_000);

    fn at(minutes: i64, seconds: i64) -> Timestamp {
        Timestamp::from_millis(BEGAN.millis() + (minutes * 60 + seconds) * 1_000)
    }

    fn stamp(at: Timestamp) -> String {
        jiff::Timestamp::from_millisecond(at.millis()).unwrap().to_string()
    }

    /// Asks ten minutes after the rotation began.
    async fn ask(lines: &[String], changes: serde_json::Value) -> Result<Health, CallError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("app.log"), lines.join("\n")).unwrap();
        let mut config = json!({ "log": { "file": "app.log" }, "more_than": 0 });
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let config: Config = serde_json::from_value(config).unwrap();
        let asked = Asked { began_at: BEGAN, now: at(10, 0) };
        config.build(&Context::at(folder.path())).unwrap().ask(&asked).await
    }

    fn refusals(times: impl IntoIterator<Item = Timestamp>) -> Vec<String> {
        times.into_iter().map(|at| format!("{} GET /v1/models 401 12ms", stamp(at))).collect()
    }

    #[tokio::test]
    async fn more_refusals_than_before_the_rotation_are_red() {
        let mut lines = refusals([at(-4, 0), at(-1, 0), at(6, 0), at(7, 0)]);
        assert_eq!(ask(&lines, json!({})).await, Ok(Health::Green));
        lines.extend(refusals([at(8, 0)]));
        let red = "3 lines tell of refusals in 5 min, and 2 in the same time before the rotation; the last one at 2026-01-31T09:08:00Z";
        assert_eq!(ask(&lines, json!({})).await, Ok(Health::Red(red.into())));
        assert_eq!(ask(&lines, json!({ "more_than": 1 })).await, Ok(Health::Green));
    }

    #[tokio::test]
    async fn only_the_two_times_count() {
        let outside = refusals([at(-7, 0), at(1, 0), at(4, 59), at(11, 0)]);
        assert_eq!(ask(&outside, json!({})).await, Ok(Health::Green));
        assert!(matches!(ask(&outside, json!({ "span": "6m" })).await, Ok(Health::Red(_))));
        assert_eq!(ask(&[], json!({})).await, Ok(Health::Green));
    }

    #[tokio::test]
    async fn soon_after_the_beginning_as_short_a_time_before_is_compared() {
        let folder = tempfile::tempdir().unwrap();
        let lines = refusals([at(-2, 0), at(0, 30)]);
        std::fs::write(folder.path().join("app.log"), lines.join("\n")).unwrap();
        let config = json!({ "log": { "file": "app.log" }, "more_than": 0 });
        let config: Config = serde_json::from_value(config).unwrap();
        let probe = config.build(&Context::at(folder.path())).unwrap();
        let ask = async |now| probe.ask(&Asked { began_at: BEGAN, now }).await;
        assert!(matches!(ask(at(1, 0)).await, Ok(Health::Red(_))));
        assert_eq!(ask(at(3, 0)).await, Ok(Health::Green));
        assert_eq!(ask(BEGAN).await, Ok(Health::Green));
    }

    #[tokio::test]
    async fn h115_no_part_of_a_line_is_told() {
        let canary = canary("log-scan");
        let line = format!("{} 401 Unauthorized: key={canary}", stamp(at(9, 0)));
        let said = format!("{:?}", ask(&[line], json!({})).await);
        assert!(said.contains("1 lines") && !said.contains(&canary), "{said}");
    }

    #[tokio::test]
    async fn a_line_without_a_time_belongs_to_the_line_before() {
        let lines = [stamp(at(9, 0)), "caused by: HTTP 403".into()];
        assert!(matches!(ask(&lines, json!({})).await, Ok(Health::Red(_))));
        let timeless = ask(&["401".into()], json!({})).await;
        assert!(matches!(timeless, Err(CallError::Refused(_))), "{timeless:?}");
    }

    #[test]
    fn words_stand_by_themselves_whatever_their_case() {
        let asked = Asked { began_at: BEGAN, now: BEGAN };
        let log = Log::File("/".into());
        let words = super::refusals();
        let config = Config { log, words, span: default_span(), more_than: 0 };
        let tally = Tally::new(&config, &asked);
        for line in ["401", "status=403,", "\"UNAUTHORIZED\"", "é401é 401"] {
            assert!(tally.matches(line), "{line}");
        }
        for line in ["4010", "x401", "401_a", "unauthorized2", "404", "é401"] {
            assert!(!tally.matches(line), "{line}");
        }
    }

    #[test]
    fn times_are_read_as_programs_write_them() {
        for text in [
            "2026-01-31T09:14:00Z x",
            "{\"level\":30,\"time\":\"2026-01-31T10:14:00.000+01:00\"}",
            "[2026-01-31 09:14:00,000 +0000] x",
            "127.0.0.1 - - [31/Jan/2026:04:14:00 -0500] \"GET / HTTP/1.1\" 401 0",
        ] {
            assert_eq!(time_of(text.as_bytes()), Some(at(14, 0)), "{text}");
        }
        assert_eq!(time_of(b"2026-01-31T09:14:00.25Z").unwrap().millis(), at(14, 0).millis() + 250);
        let local = time_of(b"2026-01-31 09:14:00 x").unwrap();
        let day = i64::try_from(Span::days(1).as_millis()).unwrap();
        assert!((local.millis() - at(14, 0).millis()).abs() <= day);
        for text in
            ["", "2026-01-31", "2026-13-31T09:14:00Z", "31/Foo/2026:09:14:00 +0000", "12345"]
        {
            assert_eq!(time_of(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn settings_that_count_nothing_are_refused() {
        let file = json!({ "file": "app.log" });
        for config in [
            json!({ "log": file, "words": [] }),
            json!({ "log": file, "words": [""] }),
            json!({ "log": file, "span": "0s" }),
            json!({ "log": { "container": { "name": "a/b" } } }),
        ] {
            let read: Config = serde_json::from_value(config.clone()).unwrap();
            assert!(read.build(&Context::at("/")).is_err(), "{config}");
        }
    }
}
