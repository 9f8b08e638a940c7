//! What the kernel says of a process: which one it is, when it started, and the environment that it was given.
//!
//! A number alone names no process, since numbers are used again; a number and a start do.

use keywheel_core::planted;
use std::fs;
use std::io;
use std::sync::{Mutex, PoisonError};

use keywheel_core::secret::SecretValue;
use keywheel_core::time::{Span, Timestamp};
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal, test_kill_process,
};
use rustix::time::{ClockId, clock_gettime};

/// How exact [`Process::started_at`] is: one tick of the kernel's count of starts, and the reading of two clocks.
pub(in crate::workload) const GRANULARITY: Span = Span::millis(20);

/// How far the wall clock may leave the boot clock without having been set; both are slewed alike.
const STEP: u64 = 5_000_000;

/// One process that ran when it was looked up, and no other one that is given its number later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::workload) struct Process {
    pid: Pid,
    /// In ticks since boot.
    start: u64,
}

impl Process {
    /// Looks up what runs under a number; none where nothing does, or only a remainder that its parent has not collected.
    pub(in crate::workload) fn at(pid: Pid) -> io::Result<Option<Self>> {
        let stat = match fs::read(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let (state, start) = parse_stat(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok((!matches!(state, 'Z' | 'X' | 'x')).then_some(Self { pid, start }))
    }

    /// Returns the number.
    pub(in crate::workload) fn pid(self) -> Pid {
        self.pid
    }

    /// Returns whether it still runs. An error counts as life: nothing is concluded from it.
    pub(in crate::workload) fn runs(self) -> bool {
        !matches!(Self::at(self.pid), Ok(found) if found != Some(self))
    }

    /// Returns when it started, by the wall clock; none where the clocks do not tell.
    pub(in crate::workload) fn started_at(self, clock: &WallClock) -> Option<Timestamp> {
        clock.of(self.start, Reading::now()?)
    }

    /// Returns the real user that it runs as.
    pub(in crate::workload) fn user(self) -> io::Result<u32> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        let user = line.and_then(|users| users.split_whitespace().next()?.parse().ok());
        user.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Returns the environment that it was given when its program began; none where it is gone.
    pub(in crate::workload) fn environment(self) -> io::Result<Option<SecretValue>> {
        let environment = match fs::read(format!("/proc/{}/environ", self.pid)) {
            Ok(bytes) => SecretValue::new(bytes),
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        // The number may have passed to another process between the two look-ups.
        Ok(self.runs().then_some(environment))
    }

    /// Returns whether it may be sent signals.
    pub(in crate::workload) fn may_signal(self) -> bool {
        test_kill_process(self.pid).is_ok()
    }

    /// Sends a signal to this very process; one that is gone is left alone.
    pub(in crate::workload) fn signal(self, signal: Signal) -> io::Result<()> {
        let sent = match pidfd_open(self.pid, PidfdFlags::empty()) {
            // The descriptor holds on to one process, so it is asked who that is before the signal goes there.
            Ok(holder) if self.runs() => pidfd_send_signal(holder, signal),
            Err(rustix::io::Errno::NOSYS) if self.runs() => kill_process(self.pid, signal),
            Ok(_) | Err(rustix::io::Errno::SRCH | rustix::io::Errno::NOSYS) => return Ok(()),
            Err(error) => Err(error),
        };
        match sent {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            sent => Ok(sent?),
        }
    }
}

/// Returns the value of a variable in an environment, as `getenv` would.
pub(in crate::workload) fn variable<'a>(
    environment: &'a SecretValue,
    name: &str,
) -> Option<&'a [u8]> {
    let named = |entry: &'a [u8]| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=");
    environment.expose().split(|byte| *byte == 0).find_map(named)
}

/// The wall clock, as far as it tells when a process started: starts are counted from boot.
///
/// When the wall clock is set, earlier starts and the times of earlier writes no longer compare. What started before that is
/// unknown from then on (H32). This is noticed within the life of one `WallClock` only.
#[derive(Default)]
pub(in crate::workload) struct WallClock(Mutex<Memory>);

#[derive(Default)]
struct Memory {
    /// Wall clock less boot clock.
    offset: Option<i64>,
    /// On the boot clock.
    set_at: i64,
}

/// One reading of both clocks, in nanoseconds.
#[derive(Clone, Copy)]
struct Reading {
    boot: i64,
    wall: i64,
}

impl WallClock {
    /// Returns since when the wall clock was not set, as far as this one knows; none where the machine is too busy to tell.
    pub(in crate::workload) fn steady_since(&self) -> Option<Timestamp> {
        Reading::now().map(|reading| self.steady_at(reading))
    }

    fn steady_at(&self, reading: Reading) -> Timestamp {
        let set_at = self.set_at(reading);
        Timestamp::from_millis((set_at + reading.offset()).div_euclid(1_000_000))
    }

    /// Returns when the wall clock was last set, on the boot clock.
    fn set_at(&self, reading: Reading) -> i64 {
        // A panic leaves no half-made memory: each change is one assignment.
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let offset = reading.offset();
        let is_set = memory.offset.is_some_and(|before| before.abs_diff(offset) > STEP);
        if is_set && !planted!("set_clock_unnoticed") {
            *memory = Memory { offset: Some(offset), set_at: reading.boot };
        }
        memory.offset.get_or_insert(offset);
        memory.set_at
    }

    fn of(&self, start: u64, reading: Reading) -> Option<Timestamp> {
        let set_at = self.set_at(reading);
        let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second();
        let started = i64::try_from(start.checked_mul(tick)?).ok()?;
        let plausible = set_at <= started && started <= reading.boot;
        let at = || Timestamp::from_millis((started + reading.offset()).div_euclid(1_000_000));
        plausible.then(at)
    }
}

impl Reading {
    /// Wall clock less boot clock.
    fn offset(self) -> i64 {
        self.wall - self.boot
    }

    /// Reads both clocks close enough together; none where the machine is too busy for that.
    fn now() -> Option<Self> {
        (0..5).find_map(|_| {
            let (before, wall, boot) =
                (nanos(ClockId::Boottime), nanos(ClockId::Realtime), nanos(ClockId::Boottime));
            (boot - before < 1_000_000).then_some(Self { boot, wall })
        })
    }
}

fn nanos(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Returns state and start; the name before them may hold anything, brackets and spaces too.
fn parse_stat(stat: &[u8]) -> Option<(char, u64)> {
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = std::str::from_utf8(&stat[after_name..]).ok()?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // Fields 3 and 22 of proc_pid_stat(5).
    Some((state, fields.nth(18)?.parse().ok()?))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::{Duration, SystemTime};

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").env_clear().env("A", "1").env("B", "x=y").spawn().unwrap()
    }

    fn process(child: &Child) -> Process {
        Process::at(Pid::from_child(child)).unwrap().unwrap()
    }

    fn wall() -> Timestamp {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        Timestamp::from_millis(i64::try_from(now.as_millis()).unwrap())
    }

    #[test]
    fn a_start_lies_between_the_clock_readings_around_it() {
        let before = wall();
        let mut child = sleeper();
        let after = wall();
        let started = process(&child).started_at(&WallClock::default()).unwrap();
        assert!(before < started + GRANULARITY && started < after + GRANULARITY);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn h32_what_started_before_the_clock_was_set_is_unknown() {
        let second = 1_000_000_000_i64;
        let ticks = |seconds| seconds * rustix::param::clock_ticks_per_second();
        let reading = |boot: i64, offset: i64| Reading {
            boot: boot * second,
            wall: (boot + offset) * second,
        };
        for step in [3_600, -3_600] {
            let clock = WallClock::default();
            let at = |seconds: i64| Some(Timestamp::from_millis(seconds * 1_000));
            assert_eq!(clock.of(ticks(40), reading(50, 1_000_000)), at(1_000_040));
            assert_eq!(clock.of(ticks(40), reading(60, 1_000_000 + step)), None);
            assert_eq!(clock.of(ticks(61), reading(62, 1_000_000 + step)), at(1_000_061 + step));
            assert_eq!(clock.of(ticks(40), reading(63, 1_000_000 + step)), None);
            let since = clock.steady_at(reading(64, 1_000_000 + step));
            assert_eq!(Some(since), at(1_000_060 + step));
        }
        assert_eq!(WallClock::default().of(ticks(70), reading(60, 0)), None);
        assert_eq!(WallClock::default().of(u64::MAX, reading(60, 0)), None);
    }

    #[test]
    fn the_same_number_with_another_start_is_another_process() {
        let mut child = sleeper();
        let real = process(&child);
        let former = Process { start: real.start - 1, ..real };
        assert!(real.runs() && !former.runs());
        former.signal(Signal::KILL).unwrap();
        assert!(former.environment().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(50));
        assert!(
            child.try_wait().unwrap().is_none(),
            "the signal went to a process that has only the number"
        );

        real.signal(Signal::KILL).unwrap();
        // The parent has not collected it yet.
        while real.runs() {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(Process::at(real.pid).unwrap(), None);
        child.wait().unwrap();
        real.signal(Signal::KILL).unwrap();
    }

    #[test]
    fn an_environment_is_read_as_the_program_reads_it() {
        let mut child = sleeper();
        // The environment is that of the parent until the program begins.
        let environment = loop {
            let environment = process(&child).environment().unwrap().unwrap();
            if variable(&environment, "PATH").is_none() && variable(&environment, "A").is_some() {
                break environment;
            }
        };
        assert_eq!(variable(&environment, "A"), Some(&b"1"[..]));
        assert_eq!(variable(&environment, "B"), Some(&b"x=y"[..]));
        assert_eq!(variable(&environment, "x"), None);
        let twice = SecretValue::new(b"AB=0\0A=1\0A=2\0".to_vec());
        assert_eq!(variable(&twice, "A"), Some(&b"1"[..]));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_name_may_look_like_fields() {
        let numbers = (4..=21).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let stat = format!("7 (a) Z 1 (b) S {numbers} 4711 23 24\n");
        assert_eq!(parse_stat(stat.as_bytes()), Some(('S', 4_711)));
        assert_eq!(parse_stat(b"7 (a) S 1 2"), None);
    }
}
