//! Who read, changed or went beside the Secrets of an emergency, as an audit log of the API server tells it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use keywheel_core::time::Timestamp;
use keywheel_drivers::kubernetes::audit::{self, Act, Exposed, Found, Times};
use serde_json::{Value, json};

use crate::code;
use crate::compile::drivers_of;
use crate::incident::{Incident, Suspect};
use crate::output::Failure;
use crate::words;

/// What a log says about an emergency.
pub(super) struct OfAudit {
    file: PathBuf,
    from: Timestamp,
    until: Timestamp,
    found: Found,
}

/// Reads a log, or the standard input for `-`, from when the oldest suspect was made until the last one was of no more use.
///
/// # Errors
/// A [`Failure`] where the log cannot be read, or no store of the emergency is a Secret.
pub(super) fn look(
    incident: &Incident,
    since: Option<Timestamp>,
    now: Timestamp,
    file: &Path,
) -> Result<OfAudit, Failure> {
    let from = since.or_else(|| super::first_made(incident)).unwrap_or_default();
    let suspects = incident.stories.iter().flat_map(|story| &story.suspects);
    let ends: Option<Vec<Timestamp>> = suspects.map(Suspect::ended_at).collect();
    let until = ends.and_then(|ends| ends.into_iter().max()).unwrap_or(now);
    let containers = containers(incident)?;
    let exposed = Exposed::of(containers.iter().map(String::as_str), from, until);
    let Some(exposed) = exposed else {
        let failure = Failure::new("no store of this emergency is a Secret of a cluster");
        let hint = "`--kube-audit` reads what an API server says about Secrets; leave it out";
        return Err(failure.code(code::USAGE).hint(hint));
    };
    let found = open(file).and_then(|mut log| audit::read(log.as_mut(), &exposed));
    let found = found.map_err(|error| {
        let failure = Failure::new(format!("audit log `{}` cannot be read", file.display()));
        failure.code(code::USAGE).caused_by(error.to_string()).now("nothing changed")
    })?;
    Ok(OfAudit { file: file.into(), from, until, found })
}

fn containers(incident: &Incident) -> Result<Vec<String>, Failure> {
    let mut containers = Vec::new();
    for story in &incident.stories {
        let built = drivers_of(story.rotation.plan())?;
        containers.extend(built.stores.iter().flat_map(|store| store.containers()));
    }
    Ok(containers)
}

fn open(file: &Path) -> std::io::Result<Box<dyn BufRead>> {
    if file.as_os_str() == "-" {
        return Ok(Box::new(std::io::stdin().lock()));
    }
    Ok(Box::new(BufReader::new(File::open(file)?)))
}

impl OfAudit {
    pub(super) fn text(&self) -> String {
        let Self { file, from, until, found } = self;
        let since = match *from == Timestamp::default() {
            true => "as far back as it goes".into(),
            false => format!("since {}", words::logged(*from)),
        };
        let until = words::logged(*until);
        let mut text = format!("audit log `{}`, {since} until {until}\n", file.display());
        let rows: Vec<_> = found.acts.iter().map(row).collect();
        text.push_str(&words::table(&rows, "  "));
        for note in self.notes() {
            text.push_str(&format!("  {note}\n"));
        }
        text
    }

    /// What keeps the log from being the whole story.
    fn notes(&self) -> Vec<String> {
        let Found { acts, more, events, no_event, begins, ends, tells_secrets, holds_bodies } =
            &self.found;
        let mut notes = Vec::new();
        if acts.is_empty() && *tells_secrets {
            notes.push("nobody is on record".into());
        }
        if !tells_secrets {
            notes.push(
                "not one of its events is about a Secret: its policy may leave them out".into(),
            );
        }
        if *more > 0 {
            notes.push(format!("{} more not told apart", words::counted(count(*more), "event")));
        }
        if *no_event > 0 {
            notes.push(format!("{} no whole event", words::counted(count(*no_event), "line")));
        }
        match begins.zip(*ends) {
            None => notes.push("it holds no event".into()),
            Some((begins, ends)) => {
                if begins > self.from {
                    notes.push(format!(
                        "what was before it begins, {}, is not known",
                        words::logged(begins)
                    ));
                }
                if ends < self.until {
                    notes.push(format!(
                        "what was after it ends, {}, is not known",
                        words::logged(ends)
                    ));
                }
                notes.push(format!("{} read", words::counted(count(*events), "event")));
            }
        }
        if *holds_bodies {
            notes.push(
                "it repeats the bodies of Secrets: whoever can read it has had their values too"
                    .into(),
            );
        }
        notes
    }

    pub(super) fn json(&self) -> Value {
        let Self { file, from, until, found } = self;
        let acts = found.acts.iter().map(|(act, times)| {
            json!({
                "what": act.what, "user": act.user, "from": act.from, "client": act.client,
                "refused": act.refused, "count": times.count,
                "first": words::rfc3339(times.first), "last": words::rfc3339(times.last),
            })
        });
        json!({
            "file": file, "from": words::rfc3339(*from), "until": words::rfc3339(*until),
            "acts": acts.collect::<Vec<_>>(), "more": found.more,
            "events": found.events, "no_event": found.no_event,
            "begins": found.begins.map(words::rfc3339), "ends": found.ends.map(words::rfc3339),
            "tells_secrets": found.tells_secrets, "holds_bodies": found.holds_bodies,
        })
    }
}

fn row((act, times): (&Act, &Times)) -> Vec<String> {
    let when = match times.first == times.last {
        true => words::logged(times.first),
        false => format!("{} to {}", words::logged(times.first), words::logged(times.last)),
    };
    let refused = if act.refused { ", refused" } else { "" };
    let client = if act.client.is_empty() { "no name" } else { &act.client };
    vec![
        format!("{}{refused}", act.what),
        format!("by {} from {} with {client}", act.user, act.from),
        words::counted(count(times.count), "time"),
        when,
    ]
}

fn count(number: u64) -> usize {
    number.try_into().unwrap_or(usize::MAX)
}
