//! The person at this terminal, or whatever answers on standard input in their place.
//!
//! Questions go to standard error, one at a time. A line is read byte by byte, so that nothing of it stays in a buffer and the
//! next line is left to the next question. The terminal shows again what is typed whenever a question is over, answered or not.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keywheel_core::call::{Refusal, RefusalKind};
use keywheel_core::planted;
use keywheel_core::secret::{SecretName, SecretValue};
use keywheel_driver::guide::{Guide, Question};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

use crate::drive::STOP;

/// The longest line that is read.
const LONGEST: usize = 64 * 1024;

/// How often it is looked whether anybody still waits for a line.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// One question at a time, whatever else runs.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Asks for one secret.
pub(crate) struct Terminal {
    secret: SecretName,
}

impl Terminal {
    pub(crate) fn for_secret(secret: &SecretName) -> Arc<Self> {
        Arc::new(Self { secret: secret.clone() })
    }
}

#[async_trait::async_trait]
impl Guide for Terminal {
    fn absence(&self) -> Option<Refusal> {
        let message =
            || format!("needs a person: run `keywheel resume {}` at a terminal", self.secret);
        (!somebody_may_answer()).then(|| Refusal::operator(RefusalKind::NeedsPerson, message()))
    }

    async fn ask(&self, question: &Question<'_>) -> Option<SecretValue> {
        let _turn = TURN.lock().await;
        let mut left = [SignalKind::interrupt(), SignalKind::terminate()]
            .map(|kind| signal(kind).expect("the runtime listens to signals"));
        let hidden = question.hidden && !planted!("value_shown_while_typed");
        let quiet = if hidden { Quiet::begin() } else { None };
        let shown = if quiet.is_some() { " (not shown)" } else { "" };
        tell(&format!("{}{}{shown}: ", self.words(question), question.prompt));
        let awaited = Awaited::default();
        let (give, take) = tokio::sync::oneshot::channel();
        let gone = Arc::clone(&awaited.over);
        // A thread of its own: the runtime would wait at its end for one that it lent.
        std::thread::spawn(move || give.send(line(&gone)).ok());
        let [interrupted, terminated] = &mut left;
        // Whoever is asked to stop takes no further step, whichever of the two that listen hears it first.
        let stopped = || STOP.store(true, Ordering::SeqCst);
        let answer = tokio::select! {
            line = take => line.ok().flatten(),
            _ = interrupted.recv() => { stopped(); None }
            _ = terminated.recv() => { stopped(); None }
        };
        if quiet.is_some() || answer.is_none() {
            tell("\n");
        }
        answer
    }
}

impl Terminal {
    fn words(&self, question: &Question<'_>) -> String {
        let mut text = format!("  {:<10} {} needs you:\n", "guided", self.secret);
        for step in question.steps {
            writeln!(text, "             - {step}").expect("a text takes any text");
        }
        text + "             "
    }
}

/// Says it, where anybody listens.
fn tell(text: &str) {
    let mut stderr = std::io::stderr().lock();
    stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush()).ok();
}

/// Whether a line may still come: from a terminal, a file, or a pipe that somebody holds open. A job of cron has none of them.
fn somebody_may_answer() -> bool {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return true;
    }
    let kind = fstat(&stdin).map(|status| FileType::from_raw_mode(status.st_mode));
    match kind {
        Ok(FileType::CharacterDevice) | Err(_) => false,
        Ok(_) => {
            let mut asked = [PollFd::new(&stdin, PollFlags::IN)];
            let known = poll(&mut asked, Some(&Timespec::default())).is_ok();
            let seen = asked[0].revents();
            known
                && (seen.contains(PollFlags::IN)
                    || !seen.intersects(PollFlags::HUP | PollFlags::ERR))
        }
    }
}

/// A terminal that does not show what is typed, until this is dropped.
struct Quiet(Termios);

impl Quiet {
    /// Returns none where standard input is no terminal.
    fn begin() -> Option<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).ok()?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Flush, &quiet).ok()?;
        Some(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0).ok();
    }
}

/// Tells the thread that reads when nobody waits for its line any more, so that it takes none that is meant for the next one.
#[derive(Default)]
struct Awaited {
    over: Arc<AtomicBool>,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

/// Reads a line without its end; none where the input ended, or nobody waits for it any more.
fn line(over: &AtomicBool) -> Option<SecretValue> {
    let stdin = std::io::stdin();
    // There is room for all of it from the start: a buffer that grows leaves copies behind.
    let mut line = Zeroizing::new(Vec::with_capacity(LONGEST));
    while line.len() < LONGEST {
        let mut ready = [PollFd::new(&stdin, PollFlags::IN)];
        let ready = poll(&mut ready, Some(&LOOK)).ok()?;
        if over.load(Ordering::SeqCst) {
            return None;
        }
        if ready == 0 {
            continue;
        }
        let mut byte = Zeroizing::new([0_u8]);
        match rustix::io::read(stdin.as_fd(), &mut byte[..]).ok()? {
            0 if line.is_empty() => return None,
            0 => break,
            _ if byte[0] == b'\n' => break,
            _ => line.push(byte[0]),
        }
    }
    Some(SecretValue::new(std::mem::take(&mut *line)))
}
