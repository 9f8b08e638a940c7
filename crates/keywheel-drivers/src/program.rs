//! Programs that drivers start: no shell, an environment of a few named variables, nothing to read, nothing kept of what
//! they write, and a hard limit after which they are killed with everything that they started (H111, H112).

use keywheel_core::planted;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use keywheel_core::secret::SecretValue;
use keywheel_core::time::Span;
use keywheel_driver::{Refusal, RefusalKind};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// The variables of keywheel's own environment that a program is given; every other one may hold a secret.
const PASSED_ON: [&str; 3] = ["PATH", "HOME", "LANG"];

/// The most of a program's output that is read.
const LARGEST_OUTPUT: u64 = 8 * 1024 * 1024;

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself.
    With(ExitStatus),
    /// Killed at its limit.
    TooLate,
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
        }
    }
}

/// Checks what a configuration wants to have run.
///
/// # Errors
/// A refusal where there is no program.
pub(crate) fn check(argv: &[String]) -> Result<(), Refusal> {
    match argv.first() {
        Some(program) if !program.is_empty() => Ok(()),
        _ => Err(Refusal::operator(RefusalKind::Unsupported, "`argv` needs a program")),
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
    check(argv)?;
    let refused = |kind: std::io::ErrorKind| {
        Refusal::operator(RefusalKind::Local, format!("{}: {kind}", name(argv)))
    };
    let mut child = command(argv, folder, variables).spawn().map_err(|e| refused(e.kind()))?;
    let group = Group::of(&child);
    match tokio::time::timeout(within.into(), child.wait()).await {
        Ok(ended) => {
            group.disband();
            ended.map(Ended::With).map_err(|e| refused(e.kind()))
        }
        Err(_) => {
            drop(group);
            child.wait().await.map_err(|e| refused(e.kind()))?;
            Ok(Ended::TooLate)
        }
    }
}

/// Runs a program as [`run`] does and returns what it wrote to its standard output, as far as that is ever long.
///
/// # Errors
/// A refusal where the program could not be started, did not end with 0 in time, or wrote without end.
pub(crate) async fn read(
    argv: &[String],
    folder: &Path,
    variables: &[(&str, String)],
    within: Span,
) -> Result<SecretValue, Refusal> {
    check(argv)?;
    let failed =
        |what: &str| Refusal::operator(RefusalKind::Local, format!("{} {what}", name(argv)));
    let mut command = command(argv, folder, variables);
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|e| {
        Refusal::operator(RefusalKind::Local, format!("{}: {}", name(argv), e.kind()))
    })?;
    let group = Group::of(&child);
    let stdout = child.stdout.take().expect("it is piped");
    let whole = async {
        let mut said = Vec::new();
        let read = stdout.take(LARGEST_OUTPUT + 1).read_to_end(&mut said).await;
        (SecretValue::new(said), read.is_ok(), child.wait().await)
    };
    let Ok((said, is_read, ended)) = tokio::time::timeout(within.into(), whole).await else {
        return Err(failed("did not end in time"));
    };
    let ended = ended.map_err(|_| failed("could not be waited for"))?;
    group.disband();
    match ended.success() {
        true if is_read && said.expose().len() as u64 <= LARGEST_OUTPUT => Ok(said),
        true => Err(failed("wrote more than can be read")),
        false => Err(failed(&Ended::With(ended).in_words())),
    }
}

fn command(argv: &[String], folder: &Path, variables: &[(&str, String)]) -> Command {
    // A name without a slash is looked up in `PATH`; any other begins at the configuration's folder.
    let program = if argv[0].contains('/') { folder.join(&argv[0]) } else { (&argv[0]).into() };
    let mut command = Command::new(program);
    if planted!("through_a_shell") {
        command = Command::new("sh");
        command.args(["-c", &argv.join(" ")]);
    } else {
        command.args(&argv[1..]);
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
