//! Asking before a change.

use std::io::{BufRead, IsTerminal, Write};

use crate::code;
use crate::config::Environment;
use crate::exit::Exit;
use crate::output::Failure;

/// How to say yes without a terminal, where there is nothing to read before it.
pub(crate) const SAY_YES: &str = "say `--yes`";

/// How to say yes without a terminal, where a plan was shown.
pub(crate) const READ_THE_PLAN: &str =
    "read the plan above, then say `--yes`, or `--plan` with its hash to run exactly this one";

/// How to say yes without a terminal, where plans of two environments were shown.
pub(crate) const READ_BOTH: &str =
    "read the plans above, then say `--yes`, which answers for both environments";

/// Asks whether to go on. `--yes` answers for scripts; without a terminal and without it the answer is no, and `hint` says how
/// to say yes.
pub(crate) fn go_on(
    environment: &Environment,
    question: &str,
    hint: &str,
    yes: bool,
) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let declined = |message: &str| {
        Failure::new(message).code(code::NOT_CONFIRMED).exit(Exit::Refused).now("nothing changed")
    };
    if !std::io::stdin().is_terminal() {
        return Err(declined("there is no terminal to ask on").hint(hint));
    }
    let (prompt, wanted) = if environment.protected {
        (
            format!("{question} Type the name of the environment to go on: "),
            environment.name.as_str(),
        )
    } else {
        (format!("{question} [y/N] "), "y")
    };
    let mut stderr = std::io::stderr();
    let asked = stderr.write_all(prompt.as_bytes()).and_then(|()| stderr.flush());
    let mut answer = String::new();
    let heard = asked.and_then(|()| std::io::stdin().lock().read_line(&mut answer));
    let answer = answer.trim();
    let is_yes = answer == wanted || (!environment.protected && answer.eq_ignore_ascii_case("yes"));
    if heard.is_ok() && is_yes { Ok(()) } else { Err(declined("not confirmed")) }
}
