//! Programs that drivers start: no shell, an environment of a few named variables, and a hard limit after which they are
//! killed with everything that they started (H111, H112).
//!
//! [`run`] gives them nothing to read and keeps nothing of what they write. [`ask`] puts a question, which may hold values,
//! to their input, and keeps their output in memory that is overwritten. [`lines`] hands on what they write out of such memory
//! too, and keeps nothing. No message holds any of it.

use keywheel_core::planted;
use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::File;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use keywheel_core::secret::SecretValue;
use keywheel_core::time::Span;
use keywheel_driver::{Refusal, RefusalKind};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use zeroize::Zeroizing;

use crate::lines::Line;

/// The variables of keywheel's own environment that a program is given; every other one may hold a secret.
const PASSED_ON: [&str; 3] = ["PATH", "HOME", "LANG"];

/// The most of an answer that is read.
const LARGEST_ANSWER: usize = 1 << 20;

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself.
    With(ExitStatus),
    /// Killed at its limit.
    TooLate,
    /// The system does not say.
    Unseen,
}

/// What a program answered.
pub(crate) struct Answer {
    /// How it ended.
    pub(crate) ended: Ended,
    /// All that it wrote; none where that did not come whole or is longer than 1 MiB.
    pub(crate) output: Option<SecretValue>,
}

impl Ended {
    /// Returns whether the program ended with 0.
    pub(crate) fn well(self) -> bool {
        matches!(self, Self::With(status) if status.success())
    }

    /// Says how the program ended, for people.
    pub(crate) fn in_words(self) -> String {
        use std::os::unix::process::ExitStatusExt;
        match self {
            Self::With(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("ended with {code}"),
                (None, Some(signal)) => format!("was ended by signal {signal}"),
                (None, None) => "ended".into(),
            },
            Self::TooLate => "did not end in time".into(),
            Self::Unseen => "ended unseen".into(),
        }
    }
}

/// Checks what a configuration wants to have run; `key` is what it calls it.
///
/// # Errors
/// A refusal where there is no program.
pub(crate) fn check(key: &str, argv: &[String]) -> Result<(), Refusal> {
    match argv.first() {
        Some(program) if !program.is_empty() => Ok(()),
        _ => Err(Refusal::operator(RefusalKind::Unsupported, format!("`{key}` needs a program"))),
    }
}

/// Names a program for people: never its arguments.
pub(crate) fn name(argv: &[String]) -> String {
    format!("command `{}`", argv.first().map_or("", String::as_str))
}

/// Runs a program in `folder` until it ends or the limit passes. A caller that stops waiting ends it too.
///
/// # Errors
/// A refusal where the program could not be started; nothing ran.
pub(crate) async fn run(
    argv: &[String],
    folder: &Path,
    variables: &[(&str, String)],
    within: Span,
) -> Result<Ended, Refusal> {
    let started = start(argv, &mut command(argv, folder, variables))?;
    Ok(started.end_after(async {}, within).await.0)
}

/// Runs a program as [`run`] does, with an open file as its input.
///
/// # Errors
/// A refusal where the program could not be started; nothing ran.
pub(crate) async fn run_with(
    argv: &[String],
    folder: &Path,
    variables: &[(&str, String)],
    input: File,
    within: Span,
) -> Result<Ended, Refusal> {
    let started = start(argv, command(argv, folder, variables).stdin(input))?;
    Ok(started.end_after(async {}, within).await.0)
}

/// Runs a program as [`run`] does, with something to read, and keeps what it writes.
///
/// # Errors
/// A refusal where the program could not be started; nothing ran.
pub(crate) async fn ask(
    argv: &[String],
    folder: &Path,
    question: &SecretValue,
    within: Span,
) -> Result<Answer, Refusal> {
    let mut command = command(argv, folder, &[]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    if planted!("value_among_arguments") {
        command.arg(OsStr::from_bytes(question.expose()));
    }
    let mut started = start(argv, &mut command)?;
    let (input, output) = (started.child.stdin.take(), started.child.stdout.take());
    let talk = async { tokio::join!(tell(input, question), listen(output)).1 };
    let (ended, output) = started.end_after(talk, within).await;
    Ok(Answer { ended, output: output.flatten() })
}

/// Runs a program as [`run`] does, and returns what it wrote.
///
/// # Errors
/// A refusal where the program could not be started, did not end with 0 in time, or wrote without end.
pub(crate) async fn read(
    argv: &[String],
    folder: &Path,
    variables: &[(&str, String)],
    within: Span,
) -> Result<SecretValue, Refusal> {
    let mut command = command(argv, folder, variables);
    let mut started = start(argv, command.stdout(Stdio::piped()))?;
    let output = started.child.stdout.take();
    let (ended, output) = started.end_after(listen(output), within).await;
    let failed =
        |what: &str| Refusal::operator(RefusalKind::Local, format!("{} {what}", name(argv)));
    match output.flatten() {
        Some(output) if ended.well() => Ok(output),
        Some(_) | None if !ended.well() => Err(failed(&ended.in_words())),
        _ => Err(failed("wrote more than can be read")),
    }
}

/// How much of what a program wrote was handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandedOn {
    /// All of it.
    Whole,
    /// It is longer than what was to be read.
    TooLong,
    /// Some of it; the rest could not be read.
    Broken,
}

/// Runs a program as [`run`] does, and hands on what it writes, line by line and up to so many bytes. Returns how it ended, and
/// how much was handed on.
///
/// # Errors
/// A refusal where the program could not be started; nothing ran.
pub(crate) async fn lines(
    argv: &[String],
    folder: &Path,
    within: Span,
    most_bytes: u64,
    take: &mut (dyn FnMut(&str) + Send),
) -> Result<(Ended, HandedOn), Refusal> {
    let mut started = start(argv, command(argv, folder, &[]).stdout(Stdio::piped()))?;
    let output = started.child.stdout.take();
    let hand_on = async {
        match output {
            Some(output) => hand_on(output, most_bytes, take).await,
            None => HandedOn::Broken,
        }
    };
    let (ended, handed_on) = started.end_after(hand_on, within).await;
    Ok((ended, handed_on.unwrap_or(HandedOn::Broken)))
}

fn start(argv: &[String], command: &mut Command) -> Result<Started, Refusal> {
    let child = command.spawn().map_err(|error| {
        Refusal::operator(RefusalKind::Local, format!("{}: {}", name(argv), error.kind()))
    })?;
    Ok(Started { group: Group::of(&child), child })
}

/// A program that was started, with everything that it starts.
struct Started {
    group: Group,
    child: Child,
}

impl Started {
    /// Waits until `talk` is done and the program has ended, and ends it at the limit.
    async fn end_after<T>(
        mut self,
        talk: impl Future<Output = T>,
        within: Span,
    ) -> (Ended, Option<T>) {
        // One after the other: while it is not waited for, its group's number belongs to no one else.
        let both = async { (talk.await, self.child.wait().await) };
        match tokio::time::timeout(within.into(), both).await {
            Ok((said, ended)) => {
                self.group.disband();
                (ended.map_or(Ended::Unseen, Ended::With), Some(said))
            }
            Err(_) => {
                drop(self.group);
                let collected = self.child.wait().await;
                (collected.map_or(Ended::Unseen, |_| Ended::TooLate), None)
            }
        }
    }
}

/// Gives a program its question. One that does not read it to the end answers for that with what it says.
async fn tell(input: Option<ChildStdin>, question: &SecretValue) {
    if let Some(mut input) = input {
        input.write_all(question.expose()).await.ok();
    }
}

async fn listen(output: Option<ChildStdout>) -> Option<SecretValue> {
    let mut output = output?.take(LARGEST_ANSWER as u64 + 1);
    // There is room for all of it from the start: a buffer that grows leaves copies behind.
    let mut heard = Zeroizing::new(Vec::with_capacity(LARGEST_ANSWER + 64));
    while output.read_buf(&mut *heard).await.ok()? > 0 {}
    let whole = heard.len() <= LARGEST_ANSWER;
    whole.then(|| SecretValue::new(std::mem::take(&mut *heard)))
}

/// Hands on lines until there are no more, or too many. A program that goes on writing then finds nobody who reads it.
async fn hand_on(
    mut output: impl AsyncRead + Unpin,
    most_bytes: u64,
    take: &mut (dyn FnMut(&str) + Send),
) -> HandedOn {
    let mut take = |text: &str| {
        take(text);
        Ok::<_, Infallible>(())
    };
    let (mut line, mut left) = (Line::default(), most_bytes);
    let mut piece = Zeroizing::new([0; 8 * 1024]);
    loop {
        let Ok(length) = output.read(&mut *piece).await else {
            line.end(&mut take).ok();
            return HandedOn::Broken;
        };
        if length == 0 {
            line.end(&mut take).ok();
            return HandedOn::Whole;
        }
        line.add(&piece[..length], &mut take).ok();
        left = match left.checked_sub(length as u64) {
            Some(left) => left,
            None => return HandedOn::TooLong,
        };
    }
}

fn command(argv: &[String], folder: &Path, variables: &[(&str, String)]) -> Command {
    // A name without a slash is looked up in `PATH`; any other begins at the configuration's folder.
    let program = argv.first().map_or("", String::as_str);
    let program = if program.contains('/') { folder.join(program) } else { program.into() };
    let mut command = Command::new(program);
    if planted!("through_a_shell") {
        command = Command::new("sh");
        command.args(["-c", &argv.join(" ")]);
    } else {
        command.args(argv.iter().skip(1));
    }
    command.current_dir(folder);
    if !planted!("environment_inherited") {
        command.env_clear();
    }
    command.envs(PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.process_group(0).kill_on_drop(true);
    command
}

/// The process group of a program that was not waited for yet, so that its number belongs to no one else.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &tokio::process::Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }

    fn disband(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // An error says that nobody is left in it.
            kill_process_group(group, Signal::KILL).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Not;
    use std::pin::Pin;
    use std::task::{self, Poll};

    use tokio::io::ReadBuf;

    use super::*;

    fn sh(script: &str) -> Vec<String> {
        ["/bin/sh", "-c", script].map(String::from).to_vec()
    }

    async fn ended(argv: &[String], folder: &Path, within: Span) -> Ended {
        run(argv, folder, &[("GIVEN", "1".into())], within).await.unwrap()
    }

    #[tokio::test]
    async fn h112_a_program_is_given_the_named_variables_only() {
        let folder = tempfile::tempdir().unwrap();
        let argv = sh("env > seen");
        assert!(ended(&argv, folder.path(), Span::seconds(30)).await.well());
        let seen = std::fs::read_to_string(folder.path().join("seen")).unwrap();
        let of_the_shell = ["PWD", "OLDPWD", "SHLVL", "_"];
        for line in seen.lines() {
            let name = line.split('=').next().unwrap();
            let expected =
                name == "GIVEN" || PASSED_ON.contains(&name) || of_the_shell.contains(&name);
            assert!(expected, "`{name}` was passed on");
        }
        assert!(seen.contains("GIVEN=1"));
        assert!(
            std::env::var_os("CARGO_MANIFEST_DIR").is_some(),
            "there is something to leave out"
        );
    }

    #[tokio::test]
    async fn h111_no_shell_reads_the_arguments() {
        let folder = tempfile::tempdir().unwrap();
        let argv = ["touch", "$(touch spoiled); touch spoiled"].map(String::from);
        assert!(ended(&argv, folder.path(), Span::seconds(30)).await.well());
        let names =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["$(touch spoiled); touch spoiled"]);
    }

    async fn asked(script: &str, question: &str, within: Span) -> (Ended, Option<String>) {
        let question = SecretValue::new(question.into());
        let answer = ask(&sh(script), Path::new("/"), &question, within).await.unwrap();
        let text = |output: SecretValue| String::from_utf8(output.expose().to_vec()).unwrap();
        (answer.ended, answer.output.map(text))
    }

    #[tokio::test]
    async fn h111_a_question_is_given_to_the_input_only() {
        let canary = keywheel_driver::conformance::canary("program");
        let script = "tr '\\0' '\\n' < /proc/$$/cmdline; env; echo answer; cat";
        let (ended, output) = asked(script, &canary, Span::seconds(30)).await;
        let output = output.unwrap();
        let (around, input) = output.split_once("answer\n").unwrap();
        assert!(ended.well() && input == canary && !around.contains(&canary));
    }

    #[tokio::test]
    async fn a_question_may_be_longer_than_a_pipe_and_left_unread() {
        let long = "x".repeat(LARGEST_ANSWER);
        let (ended, output) = asked("cat", &long, Span::seconds(30)).await;
        assert!(ended.well() && output.unwrap() == long);
        let (ended, output) = asked("echo enough", &long, Span::seconds(30)).await;
        assert!(ended.well() && output.unwrap() == "enough\n");
    }

    #[tokio::test]
    async fn an_answer_has_a_largest_size_and_a_limit() {
        let endless =
            "while echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; do :; done";
        let (ended, output) = asked(endless, "", Span::seconds(60)).await;
        assert!(matches!(ended, Ended::With(_)) && output.is_none());
        let (ended, output) = asked("echo half; sleep 600", "", Span::millis(300)).await;
        assert_eq!((ended, output), (Ended::TooLate, None));
    }

    async fn told(script: &str, within: Span, most_bytes: u64) -> (Ended, HandedOn, Vec<String>) {
        let mut told = Vec::new();
        let mut take = |line: &str| told.push(line.to_owned());
        let root = Path::new("/");
        let (ended, much) = lines(&sh(script), root, within, most_bytes, &mut take).await.unwrap();
        (ended, much, told)
    }

    #[tokio::test]
    async fn lines_are_handed_on_until_there_are_too_many_or_the_time_is_over() {
        let (ended, much, lines) = told("printf 'a\\nb\\nc'", Span::seconds(30), 1 << 20).await;
        assert!(ended.well() && much == HandedOn::Whole, "{ended:?} {much:?}");
        assert_eq!(lines, ["a", "b", "c"]);
        let endless =
            "while echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; do :; done";
        let (ended, much, lines) = told(endless, Span::seconds(60), 1 << 16).await;
        assert!(matches!(ended, Ended::With(_)) && lines.len() > 1_000, "{ended:?}");
        assert_eq!(much, HandedOn::TooLong);
        let (ended, much, lines) = told("echo first; sleep 600", Span::millis(500), 1 << 20).await;
        assert_eq!((ended, much), (Ended::TooLate, HandedOn::Broken));
        assert_eq!(lines, ["first"]);
    }

    /// What cannot be read.
    struct Unreadable;

    impl AsyncRead for Unreadable {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut task::Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            Poll::Ready(Err(std::io::ErrorKind::Other.into()))
        }
    }

    #[tokio::test]
    async fn an_output_that_cannot_be_read_on_is_not_told_as_too_long() {
        let mut told = Vec::new();
        let mut take = |line: &str| told.push(line.to_owned());
        let output = b"first\nsec".chain(Unreadable);
        assert_eq!(hand_on(output, 1 << 20, &mut take).await, HandedOn::Broken);
        assert_eq!(told, ["first", "sec"]);
    }

    #[tokio::test]
    async fn the_limit_ends_everything_that_the_program_started() {
        let folder = tempfile::tempdir().unwrap();
        let argv = sh("sleep 600 & echo $! > grandchild; wait");
        assert_eq!(ended(&argv, folder.path(), Span::seconds(2)).await, Ended::TooLate);
        until_gone(folder.path()).await;
    }

    #[tokio::test]
    async fn a_caller_that_stops_waiting_ends_the_program() {
        let folder = tempfile::tempdir().unwrap();
        let argv = sh("sleep 600 & echo $! > grandchild; wait");
        let file = folder.path().join("grandchild");
        let started = async {
            while std::fs::read_to_string(&file).is_ok_and(|pid| pid.ends_with('\n')).not() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            _ = run(&argv, folder.path(), &[], Span::minutes(10)) => panic!("it has ten minutes"),
            () = started => {}
        }
        until_gone(folder.path()).await;
    }

    async fn until_gone(folder: &Path) {
        let pid = std::fs::read_to_string(folder.join("grandchild")).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z")) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn how_a_program_ended_is_told() {
        let root = Path::new("/");
        assert_eq!(ended(&sh("exit 3"), root, Span::seconds(30)).await.in_words(), "ended with 3");
        let killed = ended(&sh("kill -9 $$"), root, Span::seconds(30)).await;
        assert_eq!(killed.in_words(), "was ended by signal 9");
        let missing = run(&["keywheel-no-such-program".into()], root, &[], Span::seconds(30)).await;
        let refusal = missing.expect_err("there is no such program");
        assert_eq!(refusal.message, "command `keywheel-no-such-program`: entity not found");
    }
}
