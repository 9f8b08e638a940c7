//! What others have on record about the suspects of an emergency: their issuers, and the lines of the application's logs that are
//! marked `AUDIT`. What cannot be read is told with the reason, and holds nothing else up.

mod kube_audit;
mod logs;

use std::path::Path;
use std::time::Duration;

use keywheel_core::secret::SecretName;
use keywheel_core::time::Timestamp;
use keywheel_core::version::VersionId;
use keywheel_driver::Issuer;
use keywheel_driver::issuer::Entry;
use serde_json::{Value, json};

use crate::compile::drivers_of;
use crate::incident::{Incident, Story, Suspect};
use crate::output::Failure;
use crate::prepare::in_time;
use crate::session::Session;
use crate::words;

use self::kube_audit::OfAudit;
use self::logs::OfLog;

/// How long one question to an issuer may hold up the answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What others have on record.
pub(crate) struct Traces {
    issuers: Vec<OfSuspect>,
    logs: Vec<OfLog>,
    kube_audit: Option<OfAudit>,
}

/// What an issuer has on record about one version.
struct OfSuspect {
    secret: SecretName,
    version: VersionId,
    since: Timestamp,
    entries: Vec<Entry>,
    not_read: Vec<String>,
}

/// Asks for all of it. Without `since`, issuers and workloads are asked from when a version was made, as far as that is known.
///
/// # Errors
/// A [`Failure`] where the journal cannot be read, or the audit log of an API server that was named.
pub(crate) async fn look(
    session: &Session,
    incident: &Incident,
    since: Option<Timestamp>,
    kube_audit: Option<&Path>,
) -> Result<Traces, Failure> {
    let of_log = |file| kube_audit::look(incident, since, session.now(), file);
    let kube_audit = kube_audit.map(of_log).transpose()?;
    let mut issuers = Vec::new();
    for story in &incident.stories {
        for suspect in &story.suspects {
            issuers.push(of_suspect(story, suspect, since).await);
        }
    }
    Ok(Traces { issuers, logs: logs::look(session, incident, since).await?, kube_audit })
}

async fn of_suspect(story: &Story, suspect: &Suspect, since: Option<Timestamp>) -> OfSuspect {
    let plan = story.rotation.plan();
    let mut of_suspect = OfSuspect {
        secret: plan.secret.clone(),
        version: suspect.version,
        since: since.or(suspect.made_at).unwrap_or_default(),
        entries: Vec::new(),
        not_read: Vec::new(),
    };
    match drivers_of(plan) {
        Ok(built) => of_suspect.ask(built.issuer.as_ref(), story).await,
        Err(failure) => of_suspect.not_read.push(failure.message),
    }
    of_suspect
}

impl OfSuspect {
    async fn ask(&mut self, issuer: &dyn Issuer, story: &Story) {
        let (audit, usage) = (issuer.audit(), issuer.usage());
        let name = &story.rotation.plan().issuer.bound.name;
        if audit.is_none() && usage.is_none() {
            return self.not_read.push(format!("issuer `{name}` tells nothing of its versions"));
        }
        let Some(issued) = story.rotation.issued(self.version) else {
            let why = format!("the id by which issuer `{name}` knows it is not known");
            return self.not_read.push(why);
        };
        match audit {
            None => self.not_read.push(format!("issuer `{name}` keeps no record that can be read")),
            Some(audit) => match in_time(PATIENCE, audit.since(issued, self.since)).await {
                Ok(entries) => self.entries.extend(entries),
                Err(why) => self.not_read.push(format!("the record of issuer `{name}`: {why}")),
            },
        }
        match usage {
            // A record says by itself what it cannot tell of uses.
            None if audit.is_some() => {}
            None => self.not_read.push(format!("issuer `{name}` does not tell uses")),
            Some(usage) => match in_time(PATIENCE, usage.last_used(issued)).await {
                Ok(used) => {
                    let detail = used.detail.map(|words| format!("; {words}")).unwrap_or_default();
                    let what = if used.at.is_some() { "last use" } else { "no use is known" };
                    self.entries.push(Entry { at: used.at, what: format!("{what}{detail}") });
                }
                Err(why) => self.not_read.push(format!("the last use at issuer `{name}`: {why}")),
            },
        }
    }

    fn text(&self) -> String {
        let since = match self.since == Timestamp::default() {
            true => "as far back as it goes".into(),
            false => format!("since {}", words::logged(self.since)),
        };
        let mut text = format!("  {} {}, {since}\n", self.secret, self.version);
        let row = |entry: &Entry| {
            vec![entry.at.map_or("time not known".into(), words::logged), entry.what.clone()]
        };
        text.push_str(&words::table(&self.entries.iter().map(row).collect::<Vec<_>>(), "    "));
        text.extend(self.not_read.iter().map(|why| format!("    not read: {why}\n")));
        text
    }

    fn json(&self) -> Value {
        let entry =
            |entry: &Entry| json!({ "at": entry.at.map(words::rfc3339), "what": entry.what });
        json!({
            "secret": self.secret, "version": self.version, "since": words::rfc3339(self.since),
            "entries": self.entries.iter().map(entry).collect::<Vec<_>>(),
            "not_read": self.not_read,
        })
    }
}

impl Traces {
    /// Puts them into words.
    pub(crate) fn text(&self) -> String {
        let mut text = String::from("on record at the issuers\n");
        text.extend(self.issuers.iter().map(OfSuspect::text));
        text.push_str("application logs: lines marked AUDIT\n");
        if self.logs.is_empty() {
            text.push_str("  not read: no log is known\n");
        }
        text.extend(self.logs.iter().map(OfLog::text));
        text.extend(self.kube_audit.as_ref().map(OfAudit::text));
        text
    }

    /// Puts what the issuers have into the form for programs.
    pub(crate) fn issuers(&self) -> Vec<Value> {
        self.issuers.iter().map(OfSuspect::json).collect()
    }

    /// Puts what the logs have into the form for programs.
    pub(crate) fn logs(&self) -> Vec<Value> {
        self.logs.iter().map(OfLog::json).collect()
    }

    /// Puts what an audit log says into the form for programs.
    pub(crate) fn kube_audit(&self) -> Option<Value> {
        self.kube_audit.as_ref().map(OfAudit::json)
    }
}

/// When the oldest suspect was made; none where that is not known of each.
fn first_made(incident: &Incident) -> Option<Timestamp> {
    let suspects = incident.stories.iter().flat_map(|story| &story.suspects);
    let made: Option<Vec<Timestamp>> = suspects.map(|suspect| suspect.made_at).collect();
    made?.into_iter().min()
}
