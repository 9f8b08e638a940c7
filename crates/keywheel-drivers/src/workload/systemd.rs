//! `systemd`: a service of systemd, whose main process is its one replica.
//!
//! `systemctl restart` that ends well proves nothing: only the main process does, by the environment that it was given or by
//! its start. A service reads its `EnvironmentFile=` at each start; its own files and drop-ins only when systemd is reloaded,
//! which keywheel does not do.
//!
//! What a unit writes is read from the journal. An account that may not read the journal is shown an empty one, so no line at
//! all never passes for a log that was read. Of a unit that writes elsewhere the journal has what systemd says about it, which
//! passes for its log neither.

use keywheel_core::planted;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration as StdDuration;

use async_trait::async_trait;
use keywheel_core::evidence::{Proof, Replica, Shows};
use keywheel_core::facts::WorkloadFacts;
use keywheel_core::fingerprint::Fingerprinter;
use keywheel_core::incident::LogReference;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::duration::Duration;
use keywheel_driver::workload::{Ensure, ReadLog, Reading, Workload};
use keywheel_driver::{CallError, Finding, Refusal, RefusalKind};
use rustix::process::Pid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::clock::{now, pass};
use super::process::running::{GRANULARITY, Process, WallClock};
use super::process::{environment, read_later};
use crate::api::unsupported;
use crate::program::{Ended, HandedOn};
use crate::{Build, Context, program};

/// How long is waited between two looks.
const POLL: StdDuration = StdDuration::from_millis(200);

/// How long `systemctl show` may take.
const SHOW: Span = Span::seconds(10);

/// How much longer than `ready_for` a main process may show the environment that it had before its program began.
const SLACK: Span = Span::seconds(1);

/// What is asked of a unit; none of it holds a value.
const PROPERTIES: [&str; 9] = [
    "LoadState",
    "ActiveState",
    "MainPID",
    "Result",
    "NRestarts",
    "NeedDaemonReload",
    "EnvironmentFiles",
    "DropInPaths",
    "StandardOutput",
];

/// A service of systemd that is restarted. While it restarts, no replica serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The service: `shop.service`, or `shop`.
    #[schemars(length(min = 1))]
    pub unit: String,
    /// What proves which values the main process holds.
    pub shows: Showing,
    /// The program that speaks with systemd, and what it needs before its own arguments.
    #[serde(default = "systemctl")]
    pub systemctl: Vec<String>,
    /// The program that shows the journal, and what it needs before its own arguments; by default `journalctl`, with `--user` where
    /// `systemctl` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journalctl: Option<Vec<String>>,
    /// How long a restart may take: at least as long as the unit may take to stop and to start.
    #[serde(default = "seconds::<180>")]
    pub within: Duration,
    /// How long after the restart the main process may take to prove the values.
    #[serde(default = "seconds::<60>")]
    pub ready_within: Duration,
    /// How long the unit must have been active before it counts as ready.
    #[serde(default = "seconds::<1>")]
    pub ready_for: Duration,
    /// How long a restart that was broken off can still end or start it.
    #[serde(default = "seconds::<180>")]
    pub settle_for: Duration,
}

/// What proves which values a main process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Showing {
    /// Its environment, which is fixed when its program begins; for a service that reads its values nowhere else.
    Environ,
    /// Its start; for a service that reads a file once, after it was started.
    Start,
}

fn systemctl() -> Vec<String> {
    vec!["systemctl".into()]
}

fn seconds<const N: u64>() -> Duration {
    Span::seconds(N).into()
}

impl Build for Config {
    type Driver = dyn Workload;

    fn build(&self, context: &Context) -> Result<Arc<dyn Workload>, Refusal> {
        program::check("systemctl", &self.systemctl)?;
        self.journalctl.as_deref().map_or(Ok(()), |argv| program::check("journalctl", argv))?;
        if self.ready_for >= self.ready_within {
            return Err(unsupported("`ready_for` must be shorter than `ready_within`"));
        }
        Ok(Arc::new(Service {
            unit: unit(&self.unit)?,
            config: self.clone(),
            folder: context.root.clone(),
            clock: WallClock::default(),
        }))
    }
}

/// Returns the whole name of a service.
fn unit(name: &str) -> Result<String, Refusal> {
    let fits = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    if name.is_empty() || name.starts_with('-') || !name.chars().all(fits) {
        return Err(unsupported("`unit` is no name of a unit"));
    }
    match name.rsplit_once('.') {
        Some((_, "service")) => Ok(name.into()),
        Some((_, "socket" | "timer" | "target" | "slice" | "mount" | "path" | "scope")) => {
            Err(unsupported("`unit` is no service"))
        }
        _ => Ok(format!("{name}.service")),
    }
}

struct Service {
    unit: String,
    config: Config,
    folder: PathBuf,
    clock: WallClock,
}

/// What systemd says of the unit.
struct Unit {
    properties: BTreeMap<String, String>,
    files: Vec<String>,
    main: Option<Process>,
}

#[async_trait]
impl Workload for Service {
    fn facts(&self) -> WorkloadFacts {
        WorkloadFacts {
            settle_for: self.config.settle_for.span(),
            start_granularity: GRANULARITY,
            answers_tokens: false,
            gap: true,
        }
    }

    fn resource(&self) -> String {
        format!("systemd:{}", self.unit)
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        let unit = match self.unit().await {
            Ok(unit) => unit,
            Err(refusal) => return Ok(vec![Finding::blocks(refusal.message)]),
        };
        let mut findings = Vec::new();
        let mut blocks =
            |why: &str| findings.push(Finding::blocks(format!("unit `{}` {why}", self.unit)));
        match unit.main {
            _ if !unit.is("ActiveState", "active") => blocks("is not active"),
            None => blocks("has no main process"),
            Some(main) if main.started_at(&self.clock).is_none() => {
                blocks("has a start that the clocks do not tell");
            }
            Some(main) if self.config.shows == Showing::Environ && main.environment().is_err() => {
                blocks("does not let its environment be read: run as its user");
            }
            Some(_) => {}
        }
        if unit.is("NeedDaemonReload", "yes") {
            blocks("was changed since systemd read it: run `systemctl daemon-reload`");
        }
        findings.extend(unit.told_of_files(&self.unit).map(Finding::note));
        findings.push(Finding::note("requests fail while the unit restarts"));
        Ok(findings)
    }

    async fn observe(
        &self,
        slots: &[String],
        fingerprinter: &Fingerprinter,
    ) -> Result<Vec<Replica>, CallError> {
        let unit = self.unit().await?;
        Ok(vec![self.look(unit.main, slots, fingerprinter)])
    }

    async fn logs(&self) -> Result<Option<Vec<LogReference>>, CallError> {
        let unit = self.unit().await?;
        let is_journal = unit.writes_to_the_journal();
        let output = unit.properties.get("StandardOutput").cloned();
        Ok(Some(vec![LogReference {
            replica: self.unit.clone(),
            id: None,
            driver: if is_journal { Some("journald".into()) } else { output },
            place: is_journal.then(|| self.journal(None).join(" ")),
            file: None,
            since: None,
            until: now(),
            outlives: is_journal.then_some(true),
            kept_in: None,
        }]))
    }

    async fn read_logs(
        &self,
        reading: &mut Reading<'_>,
    ) -> Result<Option<Vec<ReadLog>>, CallError> {
        let mut not_read = self.read_journal(reading).await?;
        if not_read.is_none() {
            not_read = self.written_elsewhere().await;
        }
        Ok(Some(vec![ReadLog { replica: self.unit.clone(), id: None, not_read }]))
    }

    async fn roll(&self, ensure: &Ensure<'_>) -> Result<(), CallError> {
        pass(ensure.held_since, GRANULARITY).await?;
        let before = self.unit().await?;
        if !self.proves(before.main, ensure) {
            self.restart().await?;
            if planted!("restart_is_believed") {
                return Ok(());
            }
        }
        self.wait(before.main, ensure).await
    }
}

/// Looking.
impl Service {
    async fn unit(&self) -> Result<Unit, Refusal> {
        let named = PROPERTIES.iter().flat_map(|property| ["-p", property]);
        let argv = self.argv(["show"].into_iter().chain(named));
        let nothing = SecretValue::new(Vec::new());
        let answer = program::ask(&argv, &self.folder, &nothing, SHOW).await?;
        let told = |why: &str| format!("{}: {why}", program::name(&argv));
        if !answer.ended.well() {
            let why = told(&answer.ended.in_words());
            return Err(Refusal::retry(RefusalKind::Unavailable, None, why));
        }
        let unit = answer.output.as_ref().and_then(Unit::parse);
        let unit = unit.ok_or_else(|| unsupported(&told("answered something else than a unit")))?;
        match unit.is("LoadState", "loaded") {
            true => Ok(unit),
            false => Err(Refusal::operator(
                RefusalKind::NotFound,
                format!("systemd has not loaded unit `{}`", self.unit),
            )),
        }
    }

    fn argv<'a>(&'a self, words: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let words = words.into_iter().chain(["--", &self.unit]).map(str::to_owned);
        self.config.systemctl.iter().cloned().chain(words).collect()
    }

    /// The program that shows what the unit wrote, and its arguments.
    fn journal(&self, since: Option<Timestamp>) -> Vec<String> {
        let is_of_user = self.config.systemctl.iter().any(|word| word == "--user");
        let usual = || ["journalctl", "--user"][..1 + usize::from(is_of_user)].to_vec();
        let own = self.config.journalctl.clone();
        let mut argv = own.unwrap_or_else(|| usual().into_iter().map(str::to_owned).collect());
        argv.push(format!("--unit={}", self.unit));
        argv.extend(since.map(|since| format!("--since=@{}", since.millis() / 1_000)));
        argv
    }

    /// Reads what the unit wrote, and says why it was not read or not to its end.
    async fn read_journal(&self, reading: &mut Reading<'_>) -> Result<Option<String>, Refusal> {
        let since = Some(reading.since).filter(|since| since.millis() > 0);
        let mut argv = self.journal(since);
        let format = ["--output=short-iso-precise", "--utc", "--all", "--no-pager", "--quiet"];
        argv.extend(format.map(str::to_owned));
        let Reading { within, most_bytes, .. } = *reading;
        let mut count = 0_u64;
        let mut take = |line: &str| {
            count += 1;
            (reading.take)(&self.unit, line);
        };
        let shown = program::lines(&argv, &self.folder, within, most_bytes, &mut take).await?;
        let named = program::name(&argv);
        Ok(match shown {
            (Ended::TooLate, _) => Some(format!(
                "it was not read to its end within {within}, and later lines are missing: ask for a later time"
            )),
            (_, HandedOn::TooLong) => Some(format!(
                "it is longer than {} MiB, and later lines were not read: ask for a later time",
                most_bytes >> 20
            )),
            (_, HandedOn::Broken) => Some(format!(
                "what {named} wrote could not be read to its end, and later lines are missing"
            )),
            (ended, HandedOn::Whole) if !ended.well() => {
                Some(format!("{named} {}", ended.in_words()))
            }
            (_, HandedOn::Whole) if count == 0 && !planted!("empty_journal_is_believed") => {
                Some(format!(
                    "{named} shows no line of unit `{}`: it wrote none, or not to the journal, or this account may not read it (group `systemd-journal`)",
                    self.unit
                ))
            }
            (_, HandedOn::Whole) => None,
        })
    }

    /// Says why what the journal has of the unit may not be what the unit wrote.
    async fn written_elsewhere(&self) -> Option<String> {
        let unit = match self.unit().await {
            Ok(unit) => unit,
            Err(refusal) => {
                return Some(format!(
                    "{}: whether it wrote to the journal cannot be told, and only what reached the journal was read",
                    refusal.message
                ));
            }
        };
        let output = unit.properties.get("StandardOutput").map_or("?", String::as_str);
        (!unit.writes_to_the_journal()).then(|| {
            format!("its output goes to `{output}`, and only what reached the journal was read")
        })
    }

    /// A unit that does not run is a replica too, which proves nothing.
    fn look(
        &self,
        main: Option<Process>,
        slots: &[String],
        fingerprinter: &Fingerprinter,
    ) -> Replica {
        let Some(process) = main else {
            return Replica { id: self.unit.clone(), started_at: None, shows: Shows::Nothing };
        };
        let shows = match self.config.shows {
            Showing::Environ => environment(process, slots, fingerprinter),
            Showing::Start => read_later(slots),
        };
        let id = format!("{} (pid {})", self.unit, process.pid());
        Replica { id, started_at: process.started_at(&self.clock), shows }
    }

    fn proves(&self, main: Option<Process>, ensure: &Ensure<'_>) -> bool {
        let slots: Vec<_> = ensure.slots.iter().map(|(slot, _)| slot.clone()).collect();
        let looked = self.look(main, &slots, ensure.fingerprinter);
        ensure.judge(&looked, self.facts()) == Proof::Holds
    }
}

/// Rolling.
impl Service {
    /// Restarts the unit. Whatever becomes of `systemctl`, systemd goes on with what it was asked.
    async fn restart(&self) -> Result<(), CallError> {
        let argv = self.argv(["restart", "--no-ask-password"]);
        let ended = program::run(&argv, &self.folder, &[], self.config.within.span()).await?;
        if ended.well() {
            return Ok(());
        }
        match self.unit().await {
            Ok(unit) if unit.is("ActiveState", "failed") => Err(self.failed(&unit.why_it_failed())),
            _ => {
                let message = format!("{} {}", program::name(&argv), ended.in_words());
                Err(match planted!("broken_roll_is_a_refusal") {
                    true => Refusal::operator(RefusalKind::Unavailable, message).into(),
                    false => CallError::Unknown(message),
                })
            }
        }
    }

    /// Waits until a main process proves the values and stays active with them for a while.
    async fn wait(&self, before: Option<Process>, ensure: &Ensure<'_>) -> Result<(), CallError> {
        let deadline = Instant::now() + self.config.ready_within.span().into();
        loop {
            let unit = self.unit().await.map_err(|refusal| CallError::Unknown(refusal.message))?;
            if unit.is("ActiveState", "failed") {
                return Err(self.failed(&unit.why_it_failed()));
            }
            let proves = self.proves(unit.main, ensure);
            let had_its_time = unit.main.is_some_and(|main| self.is_older(main, SLACK));
            let is_new = unit.main != before;
            if is_new && proves && !unit.is("NRestarts", "0") {
                return Err(self.failed("ended before it was ready, and systemd started it again"));
            }
            if proves
                && unit.is("ActiveState", "active")
                && unit.main.is_some_and(|main| self.is_older(main, Span::ZERO))
            {
                return Ok(());
            }
            if !proves && !is_new && unit.main.is_some() {
                return Err(self.failed("was restarted, and its former process still runs"));
            }
            if !proves && had_its_time {
                return Err(self.failed(&unit.why_it_proves_nothing(&self.unit)));
            }
            if Instant::now() > deadline {
                let within = self.config.ready_within.span();
                return Err(self.failed(&format!("was not ready within {within}")));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Returns whether a process has run for `ready_for` and some more.
    fn is_older(&self, process: Process, more: Span) -> bool {
        let least = self.config.ready_for.span() + more;
        process.started_at(&self.clock).is_some_and(|started| now().since(started) >= least)
    }

    fn failed(&self, what: &str) -> CallError {
        let message = format!("unit `{}` {what}", self.unit);
        Refusal::operator(RefusalKind::WorkloadFailed, message).into()
    }
}

impl Unit {
    /// Reads the lines of `systemctl show`; none where a property is missing.
    fn parse(shown: &SecretValue) -> Option<Self> {
        let text = std::str::from_utf8(shown.expose()).ok()?;
        let mut files = Vec::new();
        let mut properties = BTreeMap::new();
        for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
            match name {
                // One line for each file: `/etc/shop.env (ignore_errors=no)`.
                "EnvironmentFiles" => {
                    let file = value.rsplit_once(" (").map_or(value, |(file, _)| file);
                    files.extend((!file.is_empty()).then(|| file.to_owned()));
                }
                "DropInPaths" => files.extend(value.split_whitespace().map(str::to_owned)),
                _ => drop(properties.insert(name.to_owned(), value.to_owned())),
            }
        }
        let number: i32 = properties.get("MainPID")?.parse().ok()?;
        let is_whole =
            ["LoadState", "ActiveState"].iter().all(|name| properties.contains_key(*name));
        let main = Pid::from_raw(number).and_then(|pid| Process::at(pid).ok().flatten());
        is_whole.then_some(Self { properties, files, main })
    }

    fn is(&self, property: &str, value: &str) -> bool {
        self.properties.get(property).is_some_and(|is| is == value)
    }

    fn writes_to_the_journal(&self) -> bool {
        let output = self.properties.get("StandardOutput").map_or("", String::as_str);
        ["journal", "kmsg", "syslog"].iter().any(|kind| output.starts_with(kind))
    }

    fn why_it_failed(&self) -> String {
        // A fixed word of systemd's own, such as `exit-code`.
        let result = self.properties.get("Result").map_or("", String::as_str);
        format!("failed ({result})")
    }

    fn why_it_proves_nothing(&self, unit: &str) -> String {
        let told = self.told_of_files(unit).map_or(String::new(), |told| format!("; {told}"));
        format!("came back and does not prove the new values{told}")
    }

    fn told_of_files(&self, unit: &str) -> Option<String> {
        let files = self.files.join("`, `");
        (!self.files.is_empty()).then(|| format!("unit `{unit}` also reads `{files}`"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use keywheel_core::fingerprint::{Fingerprint, FingerprintKeyId};
    use keywheel_driver::{Severity, slot};
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;

    /// What `systemctl` does to one unit, whose environment file is `unit.env`; `mode` makes it misbehave.
    const SYSTEMCTL: &str = r#"#!/bin/sh
mode=$(cat mode 2>/dev/null)
pid=$(cat pid 2>/dev/null || echo 0)
case "$1" in
show)
    active=$(cat active 2>/dev/null || echo inactive)
    if [ "$pid" != 0 ] && ! kill -0 "$pid" 2>/dev/null; then pid=0; active=failed; fi
    [ "$mode" = garbage ] && { echo "no such verb"; exit 0; }
    [ "$mode" = unreachable ] && exit 1
    case "$*" in *" -- shop.service") load=loaded ;; *) load=not-found ;; esac
    result=success; [ "$active" = failed ] && result=exit-code
    printf 'LoadState=%s\nActiveState=%s\nMainPID=%s\nResult=%s\n' "$load" "$active" "$pid" "$result"
    printf 'NRestarts=%s\nNeedDaemonReload=%s\n' "$(cat restarts 2>/dev/null || echo 0)" "$(cat reload 2>/dev/null || echo no)"
    printf 'StandardOutput=%s\n' "$(cat output 2>/dev/null || echo journal)"
    printf 'EnvironmentFiles=/etc/shop.env (ignore_errors=no)\nDropInPaths=/etc/systemd/shop.conf\n'
    ;;
restart)
    case "$mode" in
    idle) exit 0 ;;
    denied) exit 4 ;;
    hangs) sleep 600 ;;
    esac
    [ "$pid" = 0 ] || kill -9 "$pid"
    echo 0 > pid
    if [ "$mode" = fails ]; then echo failed > active; exit 1; fi
    [ "$mode" = loops ] && echo 3 > restarts
    [ "$mode" = frozen ] || cp unit.env started.env
    env -i $(cat started.env) sleep 600 > /dev/null 2>&1 &
    echo $! > pid
    echo active > active
    ;;
esac
"#;

    struct World {
        folder: TempDir,
        fingerprinter: Fingerprinter,
    }

    impl World {
        /// The unit runs with a value.
        async fn start(value: &str) -> Self {
            let world = Self {
                folder: TempDir::new().unwrap(),
                fingerprinter: Fingerprinter::new(FingerprintKeyId(1), [7; 32].into()),
            };
            // Written by a program: a file that this process has open for writing cannot be run by a fork of it.
            world.write("systemctl.new", SYSTEMCTL);
            let path = world.folder.path();
            std::fs::set_permissions(
                path.join("systemctl.new"),
                std::fs::Permissions::from_mode(0o700),
            )
            .unwrap();
            let copied = std::process::Command::new("cp")
                .args(["systemctl.new", "systemctl"])
                .current_dir(path)
                .status();
            assert!(copied.unwrap().success());
            world.roll_to(&*world.build(json!({})), value).await.unwrap();
            world
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.folder.path().join(name), text).unwrap();
        }

        fn pid(&self) -> i32 {
            let text = std::fs::read_to_string(self.folder.path().join("pid"));
            text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
        }

        fn build(&self, extra: Value) -> Arc<dyn Workload> {
            let mut config = json!({
                "unit": "shop", "shows": "environ", "systemctl": ["./systemctl"], "ready_for": "100ms",
            });
            config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let config: Config = serde_json::from_value(config).unwrap();
            config.build(&Context::at(self.folder.path())).unwrap()
        }

        async fn roll_to(&self, workload: &dyn Workload, value: &str) -> Result<(), CallError> {
            self.write("unit.env", &format!("KEY={value}"));
            let slots: [(String, Option<Fingerprint>); 1] =
                [(key_slot(), Some(self.fingerprinter.of(value.as_bytes())))];
            workload.roll(&Ensure::new(&slots, now(), &self.fingerprinter)).await
        }

        async fn shown(&self, workload: &dyn Workload) -> Shows {
            let replicas = workload.observe(&[key_slot()], &self.fingerprinter).await.unwrap();
            let [replica] = <[Replica; 1]>::try_from(replicas).unwrap();
            replica.shows
        }

        fn slots(&self, value: &str) -> Shows {
            Shows::Slots(vec![(key_slot(), self.fingerprinter.of(value.as_bytes()))])
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            if let Some(pid) = Pid::from_raw(self.pid()) {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
        }
    }

    /// As the engine names it.
    fn key_slot() -> String {
        slot::name("file:/etc/shop.env", "KEY")
    }

    /// What `journalctl` shows of one unit, which is what stands in `journal`; it notes how it was asked.
    const JOURNALCTL: &str = r#"echo "$@" > asked; cat journal; case "$(cat mode 2>/dev/null)" in slow) sleep 600 ;; denied) exit 1 ;; esac"#;

    /// Reads the log of the one replica.
    async fn read(
        workload: &dyn Workload,
        since: Timestamp,
        most_bytes: u64,
    ) -> (Vec<String>, ReadLog) {
        let mut lines = Vec::new();
        let mut take = |replica: &str, line: &str| {
            assert_eq!(replica, "shop.service");
            lines.push(line.to_owned());
        };
        let within = Span::seconds(2);
        let mut reading = Reading { since, most_bytes, within, take: &mut take };
        let mut read = workload.read_logs(&mut reading).await.unwrap().unwrap();
        (lines, read.remove(0))
    }

    #[tokio::test]
    async fn what_a_unit_wrote_is_read_from_the_journal_within_bounds() {
        let world = World::start("v1").await;
        let workload = world.build(json!({ "journalctl": ["sh", "-c", JOURNALCTL, "-"] }));
        let at = |time: &str, text: &str| format!("{time} host shop[7]: {text}\n");
        let journal = at("2026-01-01T00:00:00.000001+0000", "begins")
            + &at("2026-01-02T00:00:00.000001+0000", "AUDIT user 7");
        world.write("journal", &journal);
        let (lines, log) = read(&*workload, Timestamp::default(), 1 << 20).await;
        assert_eq!((lines.len(), &log.not_read), (2, &None), "{lines:?}");
        assert!(lines[1].ends_with("shop[7]: AUDIT user 7"));
        let asked = || std::fs::read_to_string(world.folder.path().join("asked")).unwrap();
        assert!(asked().starts_with("--unit=shop.service --output="), "{}", asked());
        read(&*workload, Timestamp::from_millis(1_767_312_000_900), 1 << 20).await;
        assert!(asked().starts_with("--unit=shop.service --since=@1767312000 "), "{}", asked());

        let (lines, log) = read(&*workload, Timestamp::default(), 20).await;
        assert!(log.not_read.unwrap().contains("longer") && lines.len() == 2);
        world.write("mode", "slow");
        let (lines, log) = read(&*workload, Timestamp::default(), 1 << 20).await;
        assert!(log.not_read.unwrap().contains("later lines are missing") && lines.len() == 2);
        world.write("mode", "denied");
        let (_, log) = read(&*workload, Timestamp::default(), 1 << 20).await;
        assert_eq!(log.not_read.unwrap(), "command `sh` ended with 1");
    }

    #[tokio::test]
    async fn h124_an_empty_journal_does_not_pass_for_a_log_that_was_read() {
        let world = World::start("v1").await;
        let workload = world.build(json!({ "journalctl": ["sh", "-c", JOURNALCTL, "-"] }));
        world.write("journal", "");
        let (lines, log) = read(&*workload, Timestamp::default(), 1 << 20).await;
        let why = log.not_read.unwrap_or_default();
        assert!(lines.is_empty() && why.contains("group `systemd-journal`"), "{why}");
    }

    #[tokio::test]
    async fn what_systemd_says_about_a_unit_does_not_pass_for_what_the_unit_wrote() {
        let world = World::start("v1").await;
        let workload = world.build(json!({ "journalctl": ["sh", "-c", JOURNALCTL, "-"] }));
        world.write("journal", "2026-01-01T00:00:00.000001+0000 host systemd[1]: Started shop.\n");
        for output in ["append:/var/log/shop.log", "null"] {
            world.write("output", output);
            let (lines, log) = read(&*workload, Timestamp::default(), 1 << 20).await;
            let why = log.not_read.unwrap_or_default();
            assert_eq!(lines.len(), 1);
            assert!(why.starts_with(&format!("its output goes to `{output}`, and only")), "{why}");
        }
        world.write("mode", "unreachable");
        let (_, log) = read(&*workload, Timestamp::default(), 1 << 20).await;
        assert!(log.not_read.unwrap_or_default().contains("cannot be told"));
    }

    #[tokio::test]
    async fn where_the_log_of_a_unit_is_hangs_on_its_output() {
        let world = World::start("v1").await;
        let log = async |extra| world.build(extra).logs().await.unwrap().unwrap().remove(0);
        let journal = log(json!({})).await;
        assert_eq!(journal.place.as_deref(), Some("journalctl --unit=shop.service"));
        assert_eq!((journal.driver.as_deref(), journal.outlives), (Some("journald"), Some(true)));
        let script = ["sh", "-c", "exec ./systemctl \"$1\" \"$@\"", "--user"];
        assert_eq!(
            log(json!({ "systemctl": script })).await.place.as_deref(),
            Some("journalctl --user --unit=shop.service")
        );
        world.write("output", "append");
        let file = log(json!({})).await;
        assert_eq!(
            (file.place, file.driver.as_deref(), file.outlives),
            (None, Some("append"), None)
        );
    }

    fn failure(outcome: Result<(), CallError>) -> String {
        match outcome {
            Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::WorkloadFailed => {
                refusal.message
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_roll_ends_when_the_environment_shows_the_value() {
        let world = World::start("old").await;
        let workload = world.build(json!({}));
        assert!(workload.facts().gap);
        assert_eq!(world.shown(&*workload).await, world.slots("old"));
        let before = world.pid();
        world.roll_to(&*workload, "new").await.unwrap();
        assert_eq!(world.shown(&*workload).await, world.slots("new"));
        let after = world.pid();
        assert_ne!(before, after);
        world.roll_to(&*workload, "new").await.unwrap();
        assert_eq!(world.pid(), after, "a unit that proves the values is left alone");
    }

    #[tokio::test]
    async fn a_start_after_the_write_proves_what_was_read_at_it() {
        let world = World::start("old").await;
        let workload = world.build(json!({ "shows": "start" }));
        let unseen = vec![key_slot()];
        assert_eq!(world.shown(&*workload).await, Shows::Live { shown: Vec::new(), unseen });
        let before = world.pid();
        world.roll_to(&*workload, "new").await.unwrap();
        assert_ne!(world.pid(), before);
    }

    #[tokio::test]
    async fn h50_a_unit_that_does_not_run_is_listed_and_proves_nothing() {
        let world = World::start("old").await;
        let workload = world.build(json!({}));
        rustix::process::kill_process(
            Pid::from_raw(world.pid()).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        world.write("pid", "0");
        world.write("active", "failed");
        assert_eq!(world.shown(&*workload).await, Shows::Nothing);
        world.roll_to(&*workload, "new").await.unwrap();
        assert_eq!(world.shown(&*workload).await, world.slots("new"));
    }

    #[tokio::test]
    async fn h53_a_restart_that_brings_no_new_value_fails() {
        let world = World::start("old").await;
        let workload = world.build(json!({}));
        world.write("mode", "idle");
        let idle = failure(world.roll_to(&*workload, "new").await);
        assert_eq!(idle, "unit `shop.service` was restarted, and its former process still runs");
        world.write("mode", "frozen");
        let frozen = failure(world.roll_to(&*workload, "new").await);
        let why = "unit `shop.service` came back and does not prove the new values; unit `shop.service` also reads `/etc/shop.env`, `/etc/systemd/shop.conf`";
        assert_eq!(frozen, why);
        world.write("mode", "loops");
        let loops = failure(world.roll_to(&*workload, "new").await);
        let why = "unit `shop.service` ended before it was ready, and systemd started it again";
        assert_eq!(loops, why);
        world.write("restarts", "0");
        world.write("mode", "fails");
        let fails = failure(world.roll_to(&*workload, "newer").await);
        assert_eq!(fails, "unit `shop.service` failed (exit-code)");
    }

    #[tokio::test]
    async fn h52_a_restart_that_was_broken_off_is_unknown() {
        let world = World::start("old").await;
        let before = world.pid();
        let workload = world.build(json!({ "within": "1s" }));
        for (mode, why) in [("hangs", "did not end in time"), ("denied", "ended with 4")] {
            world.write("mode", mode);
            let expected = CallError::Unknown(format!("command `./systemctl` {why}"));
            assert_eq!(world.roll_to(&*workload, "new").await, Err(expected));
        }
        assert_eq!(world.pid(), before);
    }

    #[tokio::test]
    async fn preflight_finds_what_a_restart_would_stumble_over() {
        let world = World::start("old").await;
        let blocks = async |extra| {
            let findings = world.build(extra).preflight().await.unwrap();
            let blocks = findings.into_iter().filter(|f| f.severity == Severity::Blocks);
            blocks.map(|finding| finding.message).collect::<Vec<_>>()
        };
        let nothing: [&str; 0] = [];
        assert_eq!(blocks(json!({})).await, nothing);
        let missing = ["systemd has not loaded unit `other.service`"];
        assert_eq!(blocks(json!({ "unit": "other" })).await, missing);
        world.write("reload", "yes");
        let stale = [
            "unit `shop.service` was changed since systemd read it: run `systemctl daemon-reload`",
        ];
        assert_eq!(blocks(json!({})).await, stale);
        world.write("reload", "no");
        world.write("active", "activating");
        assert_eq!(blocks(json!({})).await, ["unit `shop.service` is not active"]);
        world.write("mode", "garbage");
        let garbage = ["command `./systemctl`: answered something else than a unit"];
        assert_eq!(blocks(json!({})).await, garbage);
        world.write("mode", "unreachable");
        assert_eq!(blocks(json!({})).await, ["command `./systemctl`: ended with 1"]);
    }

    #[test]
    fn a_unit_is_a_service() {
        for (name, whole) in
            [("shop", "shop.service"), ("a@b.service", "a@b.service"), ("v1.2", "v1.2.service")]
        {
            assert_eq!(unit(name).unwrap(), whole);
        }
        for bad in ["", "-H", "a b", "a/b", "shop.timer", "*"] {
            assert!(unit(bad).is_err(), "{bad}");
        }
    }
}
