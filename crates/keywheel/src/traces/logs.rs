//! The lines of the application's logs that are marked `AUDIT`: those of the replicas that there are now, which their workloads
//! read out, and those of replicas that are gone, from the copies and files that the emergency noted.
//!
//! A line of a log is somebody else's text. Values that keywheel knows are left out of it, words that may be credentials, and
//! whatever a terminal would act upon.

mod line;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use keywheel_core::incident::LogReference;
use keywheel_core::plan::Pin;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::Workload;
use keywheel_driver::pin::elsewhere;
use keywheel_driver::workload::{ReadLog, Reading};
use rustix::fs::OFlags;
use serde_json::{Value, json};

use crate::compile::drivers_of;
use crate::incident::{Incident, Log};
use crate::output::Failure;
use crate::prepare::in_time;
use crate::session::{Session, journal_failure};
use crate::words;

use self::line::{Known, is_before, is_marked};

/// How long the logs of one workload may hold up the answer.
const PATIENCE: Span = Span::seconds(20);

/// How much longer than that a workload may take to say what it has read.
const SLACK: Span = Span::seconds(5);

/// How much of one log is read.
const MOST_BYTES: u64 = 256 << 20;

/// How many lines of one log are told.
const MOST_LINES: usize = 200;

/// The marked lines of one log; without a replica, of a workload whose replicas are not known.
pub(super) struct OfLog {
    workload: String,
    replica: Option<String>,
    marked: Marked,
    /// Why it was not read, or not to its end.
    not_read: Option<String>,
}

/// Lines that are marked, as they are until all are found.
#[derive(Default)]
struct Marked {
    lines: Vec<String>,
    /// How many lines more are marked.
    more: usize,
}

/// What a workload says of the logs of the replicas that there are.
struct OfWorkload {
    name: String,
    read: Vec<(ReadLog, Marked)>,
    /// Why there is no more of them.
    trouble: Option<String>,
}

/// Reads what can be read.
pub(super) async fn look(
    session: &Session,
    incident: &Incident,
    since: Option<Timestamp>,
) -> Result<Vec<OfLog>, Failure> {
    let inventories = session.journal.inventories().await.map_err(journal_failure)?;
    let from = since.or_else(|| super::first_made(incident)).unwrap_or_default();
    let mut asked: Vec<OfWorkload> = Vec::new();
    let mut seen = BTreeSet::new();
    for story in &incident.stories {
        let plan = story.rotation.plan();
        let of_secret = inventories.iter().find(|one| one.secret == plan.secret);
        let built = drivers_of(plan).map_err(|failure| failure.message);
        for (index, planned) in plan.workloads.iter().enumerate() {
            let name = planned.bound.name.clone();
            if seen.insert(name.clone()) {
                let pin = of_secret.map_or(planned.pin.as_ref(), |row| row.pin_of(planned));
                let driver = built.as_ref().map(|built| built.workloads[index].as_ref());
                asked.push(OfWorkload::ask(name, driver, pin, from, since).await);
            }
        }
    }
    let mut logs: Vec<OfLog> =
        incident.logs.iter().map(|log| of_reference(log, &mut asked, since)).collect();
    for workload in asked {
        let is_told = logs.iter().any(|log| log.workload == workload.name);
        logs.extend(workload.left(is_told));
    }
    let mut lines = logs.iter_mut().flat_map(|log| &mut log.marked.lines).peekable();
    // No value is read where there is nothing to leave it out of.
    if lines.peek().is_some() {
        let known = Known::of(session, incident).await;
        lines.for_each(|line| *line = known.told(line));
    }
    Ok(logs)
}

impl OfWorkload {
    async fn ask(
        name: String,
        driver: Result<&dyn Workload, &String>,
        pin: Option<&Pin>,
        from: Timestamp,
        since: Option<Timestamp>,
    ) -> Self {
        let mut marked: BTreeMap<String, Marked> = BTreeMap::new();
        let mut take = |replica: &str, line: &str| {
            marked.entry(replica.to_owned()).or_default().take(line, since);
        };
        let mut reading =
            Reading { since: from, most_bytes: MOST_BYTES, within: PATIENCE, take: &mut take };
        let answer = match driver {
            Ok(driver) => in_time((PATIENCE + SLACK).into(), read(driver, pin, &mut reading)).await,
            Err(why) => Err(why.clone()),
        };
        let (logs, trouble) = match answer {
            Ok(Some(logs)) => (logs, None),
            Ok(None) => (Vec::new(), Some("its kind has no log that can be read".into())),
            Err(why) => (Vec::new(), Some(why)),
        };
        let mut read: Vec<_> = logs
            .into_iter()
            .map(|log| {
                let marked = marked.remove(&log.replica).unwrap_or_default();
                (log, marked)
            })
            .collect();
        // What was read before the trouble.
        read.extend(marked.into_iter().map(|(replica, marked)| {
            (ReadLog { replica, id: None, not_read: trouble.clone() }, marked)
        }));
        Self { name, read, trouble }
    }

    /// Takes out what was read of the replica that an emergency noted.
    fn remove(&mut self, reference: &LogReference) -> Option<(ReadLog, Marked)> {
        let is_it = |log: &ReadLog| match (&log.id, &reference.id) {
            (Some(one), Some(other)) => one == other,
            _ => log.replica == reference.replica,
        };
        let at = self.read.iter().position(|(log, _)| is_it(log))?;
        Some(self.read.remove(at))
    }

    /// Tells of the replicas that nobody noted; of a workload that has none to tell of, why not.
    fn left(self, is_told: bool) -> Vec<OfLog> {
        let Self { name, read, trouble } = self;
        let of_log = |(log, marked): (ReadLog, Marked)| OfLog {
            workload: name.clone(),
            replica: Some(log.replica),
            marked,
            not_read: log.not_read,
        };
        let mut logs: Vec<OfLog> = read.into_iter().map(of_log).collect();
        if logs.is_empty() && !is_told {
            let not_read = Some(trouble.unwrap_or_else(|| "there is no replica".into()));
            logs.push(OfLog { workload: name, replica: None, marked: Marked::default(), not_read });
        }
        logs
    }
}

async fn read(
    driver: &dyn Workload,
    pin: Option<&Pin>,
    reading: &mut Reading<'_>,
) -> Result<Option<Vec<ReadLog>>, String> {
    let in_words = |error: keywheel_core::call::CallError| error.to_string();
    match elsewhere(driver.identity(), pin).await.map_err(in_words)? {
        Some(objection) => Err(objection),
        None => driver.read_logs(reading).await.map_err(in_words),
    }
}

/// Tells of a replica that an emergency noted: from the replica where it is still there, else from its copy, else from its file.
fn of_reference(log: &Log, asked: &mut [OfWorkload], since: Option<Timestamp>) -> OfLog {
    let Log { workload, reference } = log;
    let of_workload = asked.iter_mut().find(|one| one.name == *workload);
    let trouble = match &of_workload {
        Some(one) => one.trouble.clone(),
        None => Some("its workload reads no secret of the emergency any more".into()),
    };
    let live = of_workload.and_then(|one| one.remove(reference));
    let of_log = |marked, not_read| OfLog {
        workload: workload.clone(),
        replica: Some(reference.replica.clone()),
        marked,
        not_read,
    };
    let live = match live {
        Some((ReadLog { not_read: None, .. }, marked)) => return of_log(marked, None),
        live => live,
    };
    let mut unread = None;
    for file in [&reference.kept_in, &reference.file].into_iter().flatten() {
        match of_file(Path::new(file), since) {
            Ok(marked) => return of_log(marked, cut(Path::new(file))),
            Err(error) => unread = unread.or(Some(format!("`{file}`: {}", error.kind()))),
        }
    }
    if let Some((read, marked)) = live {
        return of_log(marked, read.not_read);
    }
    let why = trouble.unwrap_or_else(|| "the replica is gone".into());
    let place = reference.place.as_ref().map(|place| format!("while its log is there: {place}"));
    let why: Vec<String> = [Some(why), unread, place].into_iter().flatten().collect();
    of_log(Marked::default(), Some(why.join("; ")))
}

/// Says what of a file was not read.
fn cut(file: &Path) -> Option<String> {
    let is_longer = file.metadata().is_ok_and(|metadata| metadata.len() > MOST_BYTES);
    is_longer.then(|| format!("it is longer than {} MiB: later lines", MOST_BYTES >> 20))
}

/// Returns the marked lines of a file.
fn of_file(file: &Path, since: Option<Timestamp>) -> std::io::Result<Marked> {
    let mut options = File::options();
    options.read(true).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    let opened = options.open(file)?;
    if !opened.metadata()?.is_file() {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    let mut marked = Marked::default();
    for line in BufReader::new(opened.take(MOST_BYTES)).split(b'\n') {
        marked.take(&String::from_utf8_lossy(&line?), since);
    }
    Ok(marked)
}

impl Marked {
    fn take(&mut self, line: &str, since: Option<Timestamp>) {
        match is_marked(line) && !is_before(line, since) {
            true if self.lines.len() < MOST_LINES => self.lines.push(line.to_owned()),
            true => self.more += 1,
            false => {}
        }
    }
}

impl OfLog {
    /// Puts it into words.
    pub(super) fn text(&self) -> String {
        let Self { workload, replica, marked: Marked { lines, more }, not_read } = self;
        let replica = replica.as_ref().map(|replica| format!(" {replica}")).unwrap_or_default();
        let told = match not_read {
            Some(why) if lines.is_empty() => format!("not read: {why}"),
            _ => words::counted(lines.len() + more, "line"),
        };
        let mut text = format!("  {workload}{replica}: {told}\n");
        text.extend(lines.iter().map(|line| format!("    {line}\n")));
        if *more > 0 {
            text.push_str(&format!("    and {more} more\n"));
        }
        if let Some(why) = not_read.as_ref().filter(|_| !lines.is_empty()) {
            text.push_str(&format!("    not read: {why}\n"));
        }
        text
    }

    /// Puts it into the form for programs.
    pub(super) fn json(&self) -> Value {
        let Self { workload, replica, marked: Marked { lines, more }, not_read } = self;
        json!({
            "workload": workload, "replica": replica, "lines": lines, "more": more,
            "not_read": not_read,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_from_a_time_on_and_never_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (log, link) = (folder.path().join("log"), folder.path().join("link"));
        let text = "2026-01-01T00:00:00Z AUDIT early\nAUDIT whenever\nnoise\n2026-01-03T00:00:00.5Z AUDIT late\n";
        std::fs::write(&log, text).unwrap();
        std::os::unix::fs::symlink(&log, &link).unwrap();
        let since = Timestamp::from_millis(1_767_312_000_000);
        let (all, from_then_on) =
            (of_file(&log, None).unwrap(), of_file(&log, Some(since)).unwrap());
        assert_eq!((all.lines.len(), all.more), (3, 0));
        assert_eq!(from_then_on.lines, ["AUDIT whenever", "2026-01-03T00:00:00.5Z AUDIT late"]);
        assert!(of_file(&link, None).is_err() && of_file(folder.path(), None).is_err());
        std::fs::write(&log, "AUDIT one\n".repeat(MOST_LINES + 7)).unwrap();
        let many = of_file(&log, None).unwrap();
        assert_eq!((many.lines.len(), many.more), (200, 7));
    }
}
