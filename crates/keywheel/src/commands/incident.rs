//! `keywheel incident`: the emergencies that the journal holds, what others have on record about their suspects, and what is still
//! owed.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use keywheel_core::event::Outcome;
use keywheel_core::inventory::{Closed, Decision, Inventory};
use keywheel_core::secret::SecretName;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::duration::Duration;
use keywheel_engine::NoWatch;
use serde_json::{Value, json};

use crate::cli::Globals;
use crate::exit::Exit;
use crate::exposed::Standing;
use crate::incident::{self, End, Incident, Log, Out, Outage, Story, Suspect};
use crate::output::{Failure, Format};
use crate::session::{Session, engine_failure, environment};
use crate::traces::{self, Traces};
use crate::{code, drive, words};

/// Show emergencies: exposure, outage, records of issuers, logs, what else may be exposed, and what is still owed
#[derive(Debug, Args)]
pub(crate) struct IncidentArgs {
    #[command(subcommand)]
    command: IncidentCommand,
    /// The environment
    #[arg(long, short, global = true, value_name = "ENV")]
    environment: Option<String>,
}

#[derive(Debug, Subcommand)]
enum IncidentCommand {
    /// List emergencies, newest first
    List,
    /// Show one emergency, with what issuers and logs have on record about its suspects
    Show {
        /// Its id, the first six digits or more, or a secret of it [default: the newest]
        #[arg(value_name = "ID")]
        id: Option<String>,
        /// From when on issuers and logs are asked: a date, a time, or how long ago, as in 7d [default: since each version was made]
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// An audit log of the API server, or `-`: tells who read or changed the Secrets of the emergency
        #[arg(long, value_name = "FILE")]
        kube_audit: Option<PathBuf>,
    },
    /// Close what is still owed without doing it
    Close {
        /// Its id, the first six digits or more, or a secret of it [default: the newest]
        #[arg(value_name = "ID")]
        id: Option<String>,
        /// Only what is owed for this secret
        #[arg(long, value_name = "SECRET")]
        secret: Option<String>,
        /// Why it need not be done, in your words
        #[arg(long, value_name = "TEXT")]
        note: String,
    },
}

pub(crate) async fn run(args: &IncidentArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let chosen = environment(&config, args.environment.as_deref())?;
    let session = Session::look(globals, &config, &chosen.name)?;
    let incidents = incident::read(&session).await?;
    let output = globals.output();
    match (&args.command, output.format) {
        (IncidentCommand::List, Format::Text) => output.text(&list(&incidents))?,
        (IncidentCommand::List, Format::Json) => {
            output.json(&json!({ "incidents": incidents.iter().map(row).collect::<Vec<_>>() }))?;
        }
        (IncidentCommand::Show { id, since, kube_audit }, format) => {
            let incident = find(&incidents, id.as_deref())?;
            let since = since.as_deref().map(|since| instant(since, session.now())).transpose()?;
            let traces = traces::look(&session, incident, since, kube_audit.as_deref()).await?;
            match format {
                Format::Text => output.text(&text(incident, &traces, session.now()))?,
                Format::Json => output.json(&whole(&session, incident, &traces))?,
            }
        }
        (IncidentCommand::Close { id, secret, note }, format) => {
            let incident = find(&incidents, id.as_deref())?;
            let to_close = closable(incident, secret.as_deref())?;
            let session = Session::act(globals, &config, &chosen.name, Arc::new(NoWatch))?;
            close(&session, incident, &to_close, note).await?;
            let left = incident.owed.len() - to_close.len();
            match format {
                Format::Text => {
                    let closed =
                        to_close.iter().map(|secret| format!("closed: {secret} was not rotated\n"));
                    output.text(&format!(
                        "{}{} still owed\n",
                        closed.collect::<String>(),
                        words::counted(left, "thing")
                    ))?;
                }
                Format::Json => output
                    .json(&json!({ "incident": incident.id, "closed": to_close, "owed": left }))?,
            }
        }
    }
    Ok(Exit::Done)
}

/// Reads a date, a time, or how long ago something was.
fn instant(text: &str, now: Timestamp) -> Result<Timestamp, Failure> {
    if let Ok(ago) = text.parse::<Duration>() {
        return Ok(now - ago.span());
    }
    let time = || text.parse::<jiff::Timestamp>().ok();
    let date =
        || text.parse::<jiff::civil::Date>().ok()?.to_zoned(jiff::tz::TimeZone::system()).ok();
    let at = time().or_else(|| Some(date()?.timestamp()));
    let wrong = || Failure::new(format!("`{text}` is neither a time nor how long ago one was"));
    let hint = "write it as 2026-01-31, 2026-01-31T09:00:00Z, or 7d";
    let at = at.ok_or_else(|| wrong().code(code::USAGE).hint(hint))?;
    Ok(Timestamp::from_millis(at.as_millisecond()))
}

/// Returns the secrets whose rotation is owed and that a note can close.
fn closable(incident: &Incident, only: Option<&str>) -> Result<Vec<SecretName>, Failure> {
    let names = |secret: &SecretName| {
        only.is_none_or(|only| secret.name() == only || secret.to_string() == only)
    };
    let owed = incident.owed.iter().filter_map(|owed| owed.can_close.clone());
    let mut secrets: Vec<SecretName> = owed.filter(names).collect();
    secrets.dedup();
    if !secrets.is_empty() {
        return Ok(secrets);
    }
    let failure = Failure::new(format!("incident {} owes nothing that a note closes", incident.id));
    let hint = match incident.is_open() {
        true => {
            "a rotation that is under way ends with `keywheel resume`, or on your word with `keywheel resolve`"
        }
        false => "`keywheel incident show` says what is owed",
    };
    Err(failure.code(code::NOT_NOW).exit(Exit::Refused).now("nothing changed").hint(hint))
}

/// Notes it in the row of a secret of the emergency, and in the audit chain.
async fn close(
    session: &Session,
    incident: &Incident,
    secrets: &[SecretName],
    note: &str,
) -> Result<(), Failure> {
    let at = session.now();
    let closed = secrets.iter().map(|secret| Closed {
        incident: incident.id.clone(),
        secret: secret.clone(),
        at,
        note: note.into(),
    });
    let names: Vec<String> = secrets.iter().map(ToString::to_string).collect();
    let what = format!("closed what incident {} owed for {}", incident.id, names.join(", "));
    let change = |row: Option<Inventory>| {
        let mut row = row?;
        row.closed.extend(closed);
        row.decided = Some(Decision { at, what, because: note.into() });
        Some(row)
    };
    let member = &incident.stories[0].rotation.plan().secret;
    session.engine.note(member, "closed", change).await.map_err(engine_failure)
}

fn find<'a>(incidents: &'a [Incident], id: Option<&str>) -> Result<&'a Incident, Failure> {
    let Some(id) = id else {
        let none = || Failure::new("there was no emergency").code(code::UNKNOWN_NAME);
        let hint = "`keywheel rotation list` lists what was rotated at a steady pace";
        return incidents.first().ok_or_else(|| none().hint(hint));
    };
    let is_of = |story: &Story| {
        let secret = &story.rotation.plan().secret;
        secret.name() == id || secret.to_string() == id
    };
    if let Some(newest) = incidents.iter().find(|incident| incident.stories.iter().any(is_of)) {
        return Ok(newest);
    }
    let mut matching = incidents.iter().filter(|incident| incident.id.0.starts_with(id));
    match (matching.next(), matching.next()) {
        (Some(incident), None) if id.len() >= 6 => Ok(incident),
        _ => Err(Failure::new(format!("no emergency is called `{id}`"))
            .code(code::UNKNOWN_NAME)
            .hint("`keywheel incident list` lists them")),
    }
}

fn list(incidents: &[Incident]) -> String {
    if incidents.is_empty() {
        return "no emergency yet\n".into();
    }
    let head = ["incident", "began", "state", "suspected"].map(str::to_owned).to_vec();
    let cells = incidents.iter().map(|incident| {
        vec![
            incident.id.to_string(),
            words::when(incident.began_at),
            state(incident).into(),
            names(incident).join(", "),
        ]
    });
    words::table(&std::iter::once(head).chain(cells).collect::<Vec<_>>(), "")
}

fn row(incident: &Incident) -> Value {
    json!({
        "incident": incident.id, "began_at": words::rfc3339(incident.began_at),
        "open": incident.is_open(), "because": incident.because, "secrets": names(incident),
    })
}

fn names(incident: &Incident) -> Vec<String> {
    incident.stories.iter().map(|story| story.rotation.plan().secret.to_string()).collect()
}

fn state(incident: &Incident) -> &'static str {
    match (incident.is_open(), incident.owed.is_empty()) {
        (true, _) => "open",
        (false, false) => "more is owed",
        (false, true) => "closed",
    }
}

/// Puts an emergency into words.
fn text(incident: &Incident, traces: &Traces, now: Timestamp) -> String {
    let order = if incident.revoke_first {
        "revoked first".into()
    } else {
        format!("staged first, for {} at most", incident.stage_for)
    };
    let because = incident.because.as_deref().unwrap_or("no reason was given");
    let mut text = format!(
        "incident {} · {} · {order}\n  began {} by {} on {} ({}): {because}\n",
        incident.id,
        state(incident),
        words::logged(incident.began_at),
        incident.by.account,
        incident.by.host,
        incident.by.method,
    );
    for story in &incident.stories {
        text.push_str(&told(story, incident.began_at, now));
    }
    text.push_str(&told_exposed(incident));
    text.push_str(&traces.text());
    text.push_str(&told_logs(incident));
    for Closed { secret, at, note, .. } in &incident.closed {
        text.push_str(&format!(
            "closed {}: {secret} was not rotated: {note}\n",
            words::logged(*at)
        ));
    }
    if incident.owed.is_empty() {
        text.push_str("nothing is owed\n");
    } else {
        text.push_str("still owed\n");
    }
    for owed in &incident.owed {
        text.push_str(&format!("  {}\n    then: {}\n", owed.what, owed.command));
    }
    text
}

fn told(story: &Story, began_at: Timestamp, now: Timestamp) -> String {
    let plan = story.rotation.plan();
    let row = |what: &str, how: String| vec![what.to_owned(), how];
    let mut rows = Vec::new();
    for suspect in &story.suspects {
        let version = suspect.version;
        rows.push(row(&format!("{version} revoked"), revoked(suspect, plan.issuer.facts.destroy)));
        rows.push(row(&format!("{version} dead"), dead(suspect)));
        rows.push(row(&format!("{version} exposed"), exposure(suspect, began_at, now)));
    }
    let delivered = story.delivered_at.map_or("not yet, or not everywhere".into(), words::logged);
    rows.push(row(&format!("{} everywhere", plan.pending), delivered));
    rows.push(row("outage", story.outage.as_ref().map_or("none".into(), |out| outage(out, now))));
    rows.extend(story.notes.iter().map(|note| row("passed over", note.clone())));
    let phase = story.rotation.phase();
    let head = format!("{} · rotation {} · {phase}\n", plan.secret, story.rotation.id());
    head + &words::table(&rows, "  ")
}

fn revoked(suspect: &Suspect, by_call: bool) -> String {
    match suspect.revoked_at {
        Some(at) => words::logged(at),
        None if by_call => "not yet".into(),
        None => "its issuer has nothing to revoke: it ends where no reader accepts it".into(),
    }
}

fn dead(suspect: &Suspect) -> String {
    match suspect.end {
        End::Proven(at) => format!("proven {}", words::logged(at)),
        End::NobodyToAsk(_) => "not proven: there is no one to ask".into(),
        End::ByItself(at) => {
            format!("ends by itself {}, and nobody can end it before", words::logged(at))
        }
        End::Word(at) => format!("not proven; closed on an operator's word {}", words::logged(at)),
        End::TakenOver(at) => format!("not proven; taken over {}", words::logged(at)),
        End::Open => "not proven".into(),
    }
}

fn exposure(suspect: &Suspect, began_at: Timestamp, now: Timestamp) -> String {
    let (until, more) = match suspect.ended_at() {
        Some(until) => (until, ""),
        None => (now, ", ongoing"),
    };
    let at_most = match suspect.made_at {
        Some(made_at) => format!("{} at the most, since it was made", until.since(made_at)),
        None => "when it was made is not known".into(),
    };
    format!("{} since the emergency began; {at_most}{more}", until.since(began_at))
}

fn outage(outage: &Outage, now: Timestamp) -> String {
    let until = outage.until.unwrap_or(now);
    let more = if outage.until.is_none() { ", ongoing" } else { "" };
    let stores = outage.stores.iter().map(|(store, why)| {
        let why = why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        format!("store `{store}` not written{why}")
    });
    let each: Vec<String> = outage.behind.iter().map(out).chain(stores).collect();
    format!(
        "{} from {}{more}: {}",
        until.since(outage.from),
        words::logged(outage.from),
        each.join("; ")
    )
}

fn out(out: &Out) -> String {
    let replicas = match &out.unknown {
        Some(why) => format!("replicas not known ({why})"),
        None => out.replicas.join(", "),
    };
    let trouble = out.trouble.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    format!("`{}`: {replicas}{trouble}", out.workload)
}

fn told_exposed(incident: &Incident) -> String {
    let mut text = String::new();
    if !incident.exposed.is_empty() {
        text.push_str("may be exposed too, since it stood in the same store\n");
    }
    let cells = incident.exposed.iter().map(|exposed| {
        let standing = match &exposed.standing {
            Standing::Rotated => "rotated in this emergency".into(),
            Standing::Managed(owner) => format!("managed by `{owner}`"),
            Standing::Unmanaged => exposed.advice(),
        };
        vec![exposed.store.clone(), exposed.address.clone(), standing]
    });
    text.push_str(&words::table(&cells.collect::<Vec<_>>(), "  "));
    for (store, why) in &incident.not_listed {
        text.push_str(&format!("  what else store `{store}` held is not known: {why}\n"));
    }
    text
}

fn told_logs(incident: &Incident) -> String {
    let mut text = String::from("logs, as they were before anything was replaced\n");
    let cells = incident.logs.iter().map(|Log { workload, reference }| {
        let place = reference.place.clone().or_else(|| reference.driver.clone());
        let kept = match (&reference.kept_in, reference.outlives) {
            (Some(file), _) => format!("copied to {file} on its removal"),
            (None, Some(true)) => "outlives the replica".into(),
            (None, Some(false)) => "goes with the replica".into(),
            (None, None) => "whether it outlives the replica is not known".into(),
        };
        let since = reference.since.map_or("its start".into(), words::logged);
        let span = format!("{since} to {}", words::logged(reference.until));
        let place = place.unwrap_or_else(|| "not known".into());
        vec![workload.clone(), reference.replica.clone(), span, place, kept]
    });
    text.push_str(&words::table(&cells.collect::<Vec<_>>(), "  "));
    for (workload, why) in &incident.not_captured {
        text.push_str(&format!("  `{workload}`: not captured, because {why}\n"));
    }
    if incident.logs.is_empty() && incident.not_captured.is_empty() {
        text.push_str("  not captured: no workload was looked at\n");
    }
    text
}

fn whole(session: &Session, incident: &Incident, traces: &Traces) -> Value {
    let exposed = incident.exposed.iter().map(|one| {
        let (standing, owner) = match &one.standing {
            Standing::Rotated => ("rotated", None),
            Standing::Managed(owner) => ("managed", Some(owner)),
            Standing::Unmanaged => ("unmanaged", None),
        };
        json!({ "store": one.store, "slot": one.address, "standing": standing, "owner": owner })
    });
    json!({
        "incident": incident.id,
        "open": incident.is_open(),
        "began_at": words::rfc3339(incident.began_at),
        "by": incident.by,
        "because": incident.because,
        "revoke_first": incident.revoke_first,
        "stage_for_ms": incident.stage_for.as_millis(),
        "secrets": incident.stories.iter().map(|story| of_secret(session, story, incident.began_at)).collect::<Vec<_>>(),
        "exposed": exposed.collect::<Vec<_>>(),
        "not_listed": incident.not_listed.iter().map(|(store, why)| json!({ "store": store, "because": why })).collect::<Vec<_>>(),
        "logs": incident.logs.iter().map(of_log).collect::<Vec<_>>(),
        "not_captured": incident.not_captured.iter().map(|(workload, why)| json!({ "workload": workload, "because": why })).collect::<Vec<_>>(),
        "records": traces.issuers(),
        "audit_lines": traces.logs(),
        "kube_audit": traces.kube_audit(),
        "closed": incident.closed.iter().map(|closed| json!({
            "secret": closed.secret, "at": words::rfc3339(closed.at), "note": closed.note,
        })).collect::<Vec<_>>(),
        "owed": incident.owed.iter().map(|owed| json!({ "what": owed.what, "command": owed.command })).collect::<Vec<_>>(),
    })
}

fn of_secret(session: &Session, story: &Story, began_at: Timestamp) -> Value {
    let millis = |until: Option<Timestamp>, from: Option<Timestamp>| {
        until.zip(from).map(|(until, from)| until.since(from)).map(Span::as_millis)
    };
    let suspects = story.suspects.iter().map(|suspect| {
        let ended_at = suspect.ended_at();
        json!({
            "version": suspect.version,
            "made_at": suspect.made_at.map(words::rfc3339),
            "revoked_at": suspect.revoked_at.map(words::rfc3339),
            "dead_at": match suspect.end { End::Proven(at) => Some(words::rfc3339(at)), _ => None },
            "dead": end(suspect),
            "exposed_ms": millis(ended_at, Some(began_at)),
            "exposed_at_most_ms": millis(ended_at, suspect.made_at),
        })
    });
    let outage = story.outage.as_ref().map(|outage| {
        let behind = outage.behind.iter().map(|out| json!({
            "workload": out.workload, "replicas": out.replicas, "unknown": out.unknown, "trouble": out.trouble,
        }));
        let stores = outage.stores.iter().map(|(store, why)| json!({ "store": store, "why": why }));
        json!({
            "from": words::rfc3339(outage.from),
            "until": outage.until.map(words::rfc3339),
            "lasted_ms": millis(outage.until, Some(outage.from)),
            "behind": behind.collect::<Vec<_>>(),
            "stores": stores.collect::<Vec<_>>(),
        })
    });
    json!({
        "rotation": drive::summary(session, &story.rotation),
        "delivered_at": story.delivered_at.map(words::rfc3339),
        "suspects": suspects.collect::<Vec<_>>(),
        "outage": outage,
        "passed_over": story.notes,
        "completed": story.rotation.outcome() == Some(Outcome::Completed),
    })
}

fn end(suspect: &Suspect) -> &'static str {
    match suspect.end {
        End::Proven(_) => "proven",
        End::NobodyToAsk(_) => "no_one_to_ask",
        End::ByItself(_) => "ends_by_itself",
        End::Word(_) => "operators_word",
        End::TakenOver(_) => "taken_over",
        End::Open => "ongoing",
    }
}

fn of_log(Log { workload, reference }: &Log) -> Value {
    json!({
        "workload": workload,
        "replica": reference.replica,
        "id": reference.id,
        "driver": reference.driver,
        "place": reference.place,
        "file": reference.file,
        "since": reference.since.map(words::rfc3339),
        "until": words::rfc3339(reference.until),
        "outlives": reference.outlives,
        "kept_in": reference.kept_in,
    })
}
