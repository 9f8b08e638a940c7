//! `keywheel token`: tokens that are refused before they end.
//!
//! A revoke is journaled before it is made, and again with what came of it.

use std::sync::Arc;

use clap::{Args, Subcommand};
use keywheel_core::call::CallError;
use keywheel_core::inventory::Decision;
use keywheel_core::secret::SecretName;
use keywheel_core::strategy::Strategy;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::{Refusal, Severity};
use keywheel_drivers::Context;
use keywheel_drivers::deny_list::{DenyList, Listed, Mark, Marked, Of};
use keywheel_engine::NoWatch;
use serde_json::{Value, json};

use crate::cli::Globals;
use crate::compile::unknown_secret;
use crate::config::{Config, Environment, Secret};
use crate::exit::Exit;
use crate::output::{Failure, Format, Output};
use crate::session::{Session, engine_failure, environment};
use crate::{code, confirm, session, words};

/// Refuse tokens before they end, by a list that applications ask
#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
    /// The environment
    #[arg(long, short, global = true, value_name = "ENV")]
    environment: Option<String>,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Refuse one token, those of a subject, or all that were issued before a time
    Revoke(RevokeArgs),
    /// List what is refused, and until when
    List {
        /// The secret that signs the tokens [default: the only one with a deny list]
        #[arg(value_name = "SECRET")]
        secret: Option<String>,
        /// How many to list at most
        #[arg(long, value_name = "N", default_value_t = 100)]
        most: usize,
    },
    /// Count what is refused
    Count {
        /// The secret that signs the tokens [default: the only one with a deny list]
        #[arg(value_name = "SECRET")]
        secret: Option<String>,
    },
}

#[derive(Debug, Args)]
struct RevokeArgs {
    /// The secret that signs the tokens [default: the only one with a deny list]
    #[arg(value_name = "SECRET")]
    secret: Option<String>,
    /// The id of a token (`jti`); may be given several times
    #[arg(long, value_name = "ID", required_unless_present_any = ["subject", "before"], conflicts_with_all = ["subject", "before"])]
    jti: Vec<String>,
    /// When these tokens end (`exp`), where that is known: 2026-01-31T09:00:00Z
    #[arg(long, value_name = "TIME", requires = "jti")]
    expires: Option<String>,
    /// Whose tokens (`sub`)
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,
    /// Those that were issued before this time: 2026-01-31T09:00:00Z, or now; without a subject, everybody's
    #[arg(long, value_name = "TIME")]
    before: Option<String>,
    /// Why, in your words
    #[arg(long, value_name = "TEXT")]
    because: String,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(args: &TokenArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let chosen = environment(&config, args.environment.as_deref())?;
    match &args.command {
        TokenCommand::Revoke(revoke) => {
            let signer = Signer::of(&config, chosen, revoke.secret.as_deref())?;
            signer.revoke(revoke, globals, &config, chosen).await
        }
        TokenCommand::List { secret, most } => {
            let signer = Signer::of(&config, chosen, secret.as_deref())?;
            let listed = signer.list.list(*most).await;
            let listed = listed.map_err(|refusal| signer.unanswered(&refusal))?;
            let output = globals.output();
            match output.format {
                Format::Text => output.text(&in_rows(&listed))?,
                Format::Json => output.json(&json!({
                    "secret": signer.secret.name,
                    "marks": listed.marks.iter().map(of_mark).collect::<Vec<_>>(),
                    "total": total(&listed),
                    "complete": listed.complete,
                }))?,
            }
            Ok(Exit::Done)
        }
        TokenCommand::Count { secret } => {
            let signer = Signer::of(&config, chosen, secret.as_deref())?;
            let listed = signer.list.list(0).await;
            let listed = listed.map_err(|refusal| signer.unanswered(&refusal))?;
            let output = globals.output();
            match output.format {
                Format::Text => output.text(&counted(&listed))?,
                Format::Json => output.json(&json!({
                    "secret": signer.secret.name, "tokens": listed.tokens, "subjects": listed.subjects,
                    "all": listed.all, "total": total(&listed), "complete": listed.complete,
                }))?,
            }
            Ok(Exit::Done)
        }
    }
}

/// A secret that signs tokens, and the list of those that are refused.
struct Signer<'a> {
    secret: &'a Secret,
    list: DenyList,
    prefix: &'a str,
    longest_token: Span,
    skew: Span,
}

impl<'a> Signer<'a> {
    fn of(
        config: &'a Config,
        environment: &'a Environment,
        named: Option<&str>,
    ) -> Result<Self, Failure> {
        let secret = chosen(config, environment, named)?;
        let name = &secret.name;
        let (Some(deny_list), Strategy::Keyring { longest_token, skew }) =
            (&secret.deny_list, secret.strategy)
        else {
            let failure = Failure::new(format!("`{name}` has no deny list")).code(code::NOT_NOW);
            return Err(failure
                .exit(Exit::Refused)
                .now("nothing changed")
                .hint(format!("add `deny_list: {{ redis: … }}` to `secrets.{}`", name.name())));
        };
        let list = deny_list.build(&Context::at(&config.folder)).map_err(|refusal| {
            let failure = Failure::new(format!("the deny list of `{name}` cannot be used"));
            failure.code(code::REFUSED).exit(Exit::Refused).caused_by(refusal.to_string())
        })?;
        Ok(Self { secret, list, prefix: deny_list.prefix(), longest_token, skew })
    }

    fn unanswered(&self, refusal: &Refusal) -> Failure {
        let name = &self.secret.name;
        let failure = Failure::new(format!("the deny list of `{name}` cannot be asked"));
        let failure = failure.code(code::DENY_LIST).exit(Exit::Refused);
        failure.caused_by(refusal.to_string()).now("nothing changed")
    }

    async fn revoke(
        &self,
        args: &RevokeArgs,
        globals: &Globals,
        config: &Config,
        environment: &Environment,
    ) -> Result<Exit, Failure> {
        let output = globals.output();
        let now = session::now();
        let (marks, over) = self.marks(args, now)?;
        let name = &self.secret.name;
        let session = Session::act(globals, config, &environment.name, Arc::new(NoWatch))?;
        if session.inventory(name).await?.is_none() {
            let failure = Failure::new(format!("nothing is known of `{name}` yet"));
            let hint = format!("take it over first: `keywheel adopt {}`", name.name());
            return Err(failure
                .code(code::NOT_NOW)
                .exit(Exit::Refused)
                .now("nothing changed")
                .hint(hint));
        }
        self.examine(output).await?;
        output.note(&self.plan(&marks, &over).join("\n"));
        if marks.is_empty() {
            return self.tell(output, &[], &over);
        }
        confirm::go_on(environment, "Revoke these?", confirm::SAY_YES, args.yes)?;
        let what: Vec<String> = marks.iter().map(|mark| words_of(&mark.of, mark.before)).collect();
        let because = &args.because;
        note(&session, name, &format!("set out to revoke {}", what.join(", ")), because).await?;
        let mut made = Vec::new();
        for (mark, what) in marks.iter().zip(&what) {
            match self.list.mark(mark).await {
                Ok(marked) => {
                    note(&session, name, &format!("revoked {what}"), because).await?;
                    made.push((mark, marked));
                }
                Err(error) => {
                    let said = match &error {
                        CallError::Refused(_) => format!("did not revoke {what}"),
                        CallError::Unknown(_) => format!("may have revoked {what}"),
                    };
                    note(&session, name, &said, because).await?;
                    return Err(stopped(what, made.len(), &marks, &error));
                }
            }
        }
        self.tell(output, &made, &over)
    }

    /// A server that may forget marks is not given any.
    async fn examine(&self, output: Output) -> Result<(), Failure> {
        let findings = self.list.examine().await.map_err(|refusal| self.unanswered(&refusal))?;
        for finding in findings {
            if finding.severity == Severity::Note {
                output.note(&format!("  note: {}", finding.message));
                continue;
            }
            let name = &self.secret.name;
            let failure =
                Failure::new(format!("the deny list of `{name}` cannot hold what is revoked"));
            let failure = failure.code(code::DENY_LIST).exit(Exit::Refused);
            let hint =
                "set `maxmemory-policy noeviction` there, or give the list a Redis of its own";
            return Err(failure.caused_by(finding.message).now("nothing changed").hint(hint));
        }
        Ok(())
    }

    /// Returns the marks that are asked for, and what is over already.
    fn marks(
        &self,
        args: &RevokeArgs,
        now: Timestamp,
    ) -> Result<(Vec<Mark>, Vec<String>), Failure> {
        let wanted: Vec<Mark> = match (&args.subject, &args.before) {
            (None, None) => {
                let end = args.expires.as_deref().map(|text| time(text, now)).transpose()?;
                let until = end.unwrap_or(now + self.longest_token) + self.skew;
                let ids = args.jti.iter().map(|id| one_token(id, until));
                ids.collect::<Result<_, _>>()?
            }
            (subject, before) => {
                let before = before.as_deref().map_or(Ok(now), |text| time(text, now))?;
                if before > now {
                    return Err(Failure::new("`--before` names a time that has not come yet")
                        .code(code::USAGE)
                        .hint("nobody could log in until then; `--before now` refuses all that there are"));
                }
                let of = subject.clone().map_or(Of::All, Of::Subject);
                // Times of issue are whole seconds: those of this very second are refused too.
                let second = before.millis().div_euclid(1_000) + 1;
                let until = Timestamp::from_millis(second * 1_000) + self.longest_token + self.skew;
                vec![Mark { of, before: Some(second), until }]
            }
        };
        let (left, over): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|mark| mark.until > now);
        Ok((left, over.iter().map(|mark| words_of(&mark.of, mark.before)).collect()))
    }

    fn plan(&self, marks: &[Mark], over: &[String]) -> Vec<String> {
        let mut lines = vec![format!("revoke · {} · keys `{}…`", self.secret.name, self.prefix)];
        for mark in marks {
            let what = words_of(&mark.of, mark.before);
            lines.push(format!("  {what}: refused until {}", words::logged(mark.until)));
            if mark.of == Of::All {
                lines.push("  everybody has to log in again".into());
            }
        }
        lines.extend(
            over.iter().map(|what| format!("  {what}: ended by itself; nothing to refuse")),
        );
        lines
    }

    fn tell(
        &self,
        output: Output,
        made: &[(&Mark, Marked)],
        over: &[String],
    ) -> Result<Exit, Failure> {
        match output.format {
            Format::Text => {
                let before = made.iter().filter(|(_, marked)| *marked == Marked::Before).count();
                let again =
                    if before > 0 { format!(" ({before} of them before)") } else { String::new() };
                output.text(&format!("revoked {}{again}\n", made.len()))?;
            }
            Format::Json => {
                let marks = made.iter().map(|(mark, marked)| {
                    let mut told = of_mark(mark);
                    told["was_there"] = json!(*marked == Marked::Before);
                    told
                });
                output.json(&json!({
                    "secret": self.secret.name,
                    "revoked": marks.collect::<Vec<_>>(),
                    "ended_before": over,
                }))?;
            }
        }
        Ok(Exit::Done)
    }
}

fn chosen<'a>(
    config: &'a Config,
    environment: &'a Environment,
    named: Option<&str>,
) -> Result<&'a Secret, Failure> {
    if let Some(name) = named {
        let name = name.split_once('@').map_or(name, |(name, _)| name);
        let full = SecretName::new(name, &environment.name)
            .map_err(|error| Failure::new(error.to_string()).code(code::USAGE))?;
        let secret = environment.secrets.iter().find(|secret| secret.name == full);
        return secret.ok_or_else(|| unknown_secret(config, &full));
    }
    let listed: Vec<&Secret> =
        environment.secrets.iter().filter(|secret| secret.deny_list.is_some()).collect();
    match listed.as_slice() {
        [only] => Ok(only),
        [] => Err(Failure::new("no secret has a deny list")
            .code(code::NOT_NOW)
            .exit(Exit::Refused)
            .now("nothing changed")
            .hint("add `deny_list: { redis: … }` to the secret that signs the tokens")),
        several => {
            let names: Vec<&str> = several.iter().map(|secret| secret.name.name()).collect();
            let failure = Failure::new("which secret?").code(code::USAGE);
            Err(failure.hint(format!("name one: `{}`", names.join("`, `"))))
        }
    }
}

/// Takes the id of a token, and not the token itself: that must not stand in a record.
fn one_token(id: &str, until: Timestamp) -> Result<Mark, Failure> {
    if id.starts_with("ey") && id.matches('.').count() == 2 {
        return Err(Failure::new("`--jti` is given a whole token")
            .code(code::USAGE)
            .hint("give the id that stands in it as `jti`"));
    }
    Ok(Mark { of: Of::Token(id.into()), before: None, until })
}

/// Reads an instant, or `now`.
fn time(text: &str, now: Timestamp) -> Result<Timestamp, Failure> {
    if text == "now" {
        return Ok(now);
    }
    let parsed = text.parse::<jiff::Timestamp>();
    parsed.map(|at| Timestamp::from_millis(at.as_millisecond())).map_err(|_| {
        Failure::new(format!("`{text}` is not a time"))
            .code(code::USAGE)
            .hint("write it as 2026-01-31T09:00:00Z, or `now`")
    })
}

async fn note(
    session: &Session,
    secret: &SecretName,
    what: &str,
    because: &str,
) -> Result<(), Failure> {
    let decided =
        Decision { at: session.now(), what: what.to_owned(), because: because.to_owned() };
    let noted = session.engine.note(secret, "token", |row| {
        row.map(|row| keywheel_core::inventory::Inventory { decided: Some(decided), ..row })
    });
    noted.await.map_err(engine_failure)
}

fn stopped(what: &str, made: usize, marks: &[Mark], error: &CallError) -> Failure {
    let (exit, now) = match error {
        CallError::Refused(_) => (Exit::Refused, "it is not refused"),
        CallError::Unknown(_) => (Exit::NeedsOperator, "whether it is refused is not known"),
    };
    let failure = Failure::new(format!("{what} was not revoked"));
    let failure = failure.code(code::DENY_LIST).exit(exit).caused_by(error.to_string());
    let now = format!("{now}; {made} of {} were revoked before", marks.len());
    failure.now(now).hint("say it again: what was revoked stays so")
}

fn words_of(of: &Of, before: Option<i64>) -> String {
    let before = before.map(|second| words::logged(Timestamp::from_millis(second * 1_000)));
    let before = before.unwrap_or_default();
    match of {
        Of::Token(id) => format!("token `{id}`"),
        Of::Subject(subject) => format!("tokens of `{subject}` issued before {before}"),
        Of::All => format!("all tokens issued before {before}"),
    }
}

fn of_mark(mark: &Mark) -> Value {
    let (kind, name) = match &mark.of {
        Of::Token(id) => ("jti", Some(id)),
        Of::Subject(subject) => ("subject", Some(subject)),
        Of::All => ("all", None),
    };
    json!({
        "kind": kind,
        "name": name,
        "before": mark.before.map(|second| words::rfc3339(Timestamp::from_millis(second * 1_000))),
        "until": words::rfc3339(mark.until),
    })
}

fn total(listed: &Listed) -> usize {
    listed.tokens + listed.subjects + listed.all
}

fn in_rows(listed: &Listed) -> String {
    let cells = listed.marks.iter().map(|mark| {
        vec![words_of(&mark.of, mark.before), format!("until {}", words::logged(mark.until))]
    });
    let rows = words::table(&cells.collect::<Vec<_>>(), "");
    match total(listed).saturating_sub(listed.marks.len()) {
        0 if total(listed) == 0 => "nothing is revoked\n".into(),
        0 => rows,
        more => format!("{rows}and {more} more; `--most` shows them\n"),
    }
}

fn counted(listed: &Listed) -> String {
    let least = if listed.complete { "" } else { "at least " };
    let before = if listed.all > 0 { ", and all that were issued before a time" } else { "" };
    format!(
        "{least}{}, {}{before}\n",
        words::counted(listed.tokens, "token"),
        words::counted(listed.subjects, "subject")
    )
}
