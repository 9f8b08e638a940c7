//! An emergency as the journal tells of it: what was suspected, how long it was exposed, what it cost, where the logs are,
//! and what is still owed. Nobody is asked anything here; what the journal does not know is said to be not known, and what others
//! have on record is read by [`crate::traces`].

use std::collections::BTreeSet;

use keywheel_core::event::{Death, Event, Outcome, Report, Step};
use keywheel_core::incident::{BehindStore, IncidentId, LogReference};
use keywheel_core::inventory::Closed;
use keywheel_core::plan::{Mode, Plan, RotationId};
use keywheel_core::rotation::Rotation;
use keywheel_core::secret::SecretName;
use keywheel_core::strategy::Side;
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::VersionId;
use keywheel_engine::recover::replay;
use keywheel_journal::{Actor, Record};

use crate::exposed::{self, Exposed, Standing};
use crate::output::Failure;
use crate::session::{Session, journal_failure};
use crate::words;

/// One emergency.
pub(crate) struct Incident {
    pub(crate) id: IncidentId,
    pub(crate) began_at: Timestamp,
    pub(crate) by: Actor,
    pub(crate) because: Option<String>,
    pub(crate) revoke_first: bool,
    pub(crate) stage_for: Span,
    pub(crate) stories: Vec<Story>,
    pub(crate) exposed: Vec<Exposed>,
    /// Stores of which nobody knows what else they hold, and why.
    pub(crate) not_listed: Vec<(String, String)>,
    pub(crate) logs: Vec<Log>,
    /// Workloads whose logs were not captured, and why.
    pub(crate) not_captured: Vec<(String, String)>,
    pub(crate) owed: Vec<Owed>,
    /// What was owed, and was closed with a note.
    pub(crate) closed: Vec<Closed>,
}

/// What became of one secret.
pub(crate) struct Story {
    pub(crate) rotation: Rotation,
    pub(crate) suspects: Vec<Suspect>,
    /// When every reader had the new version.
    pub(crate) delivered_at: Option<Timestamp>,
    pub(crate) outage: Option<Outage>,
    /// What the emergency passed over to be quick.
    pub(crate) notes: Vec<String>,
}

/// A version that may be in other hands.
pub(crate) struct Suspect {
    pub(crate) version: VersionId,
    pub(crate) made_at: Option<Timestamp>,
    pub(crate) revoked_at: Option<Timestamp>,
    pub(crate) end: End,
}

/// Whether a suspect is of use to anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was proven dead then.
    Proven(Timestamp),
    /// It was ended then, and there is no one to ask whether it is dead.
    NobodyToAsk(Timestamp),
    /// It ends then by itself, and nobody can end it before.
    ByItself(Timestamp),
    /// An operator closed the rotation then, on their word.
    Word(Timestamp),
    /// Another emergency took it over then.
    TakenOver(Timestamp),
    /// It may still be.
    Open,
}

/// A time in which replicas were declared out: the suspect was ended before they had the new version.
pub(crate) struct Outage {
    pub(crate) from: Timestamp,
    /// When every replica had the new version; none while one has not.
    pub(crate) until: Option<Timestamp>,
    pub(crate) behind: Vec<Out>,
    /// The stores that may still have held the suspect when it was ended, and why, where that is known.
    pub(crate) stores: Vec<(String, Option<String>)>,
}

/// Replicas of one workload that were out.
pub(crate) struct Out {
    pub(crate) workload: String,
    pub(crate) replicas: Vec<String>,
    /// Why they could not be named, where that is so.
    pub(crate) unknown: Option<String>,
    /// What became of the last roll before the suspect was ended, where it failed.
    pub(crate) trouble: Option<String>,
}

/// Where the log of one replica is.
pub(crate) struct Log {
    pub(crate) workload: String,
    pub(crate) reference: LogReference,
}

/// Something that is still to be done, and the command that does it.
pub(crate) struct Owed {
    pub(crate) what: String,
    pub(crate) command: String,
    /// The secret that is to be rotated, where a note can close it; what is under way ends by itself.
    pub(crate) can_close: Option<SecretName>,
}

/// One rotation with its records.
struct Told {
    records: Vec<Record>,
    rotation: Rotation,
}

/// Reads every emergency of a journal, newest first.
pub(crate) async fn read(session: &Session) -> Result<Vec<Incident>, Failure> {
    let rows = session.journal.rotations(None).await.map_err(journal_failure)?;
    let mut told = Vec::new();
    for row in rows.iter().rev() {
        told.push(read_one(session, &row.rotation).await?);
    }
    let mut ids: Vec<IncidentId> = Vec::new();
    let inventories = session.journal.inventories().await.map_err(journal_failure)?;
    let closed: Vec<Closed> = inventories.into_iter().flat_map(|row| row.closed).collect();
    for id in told.iter().filter_map(|one| id_of(one.rotation.plan())) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    let mut incidents: Vec<_> =
        ids.into_iter().map(|id| Incident::of(id, &told, &closed)).collect();
    incidents.sort_by_key(|incident| std::cmp::Reverse(incident.began_at));
    Ok(incidents)
}

async fn read_one(session: &Session, rotation: &RotationId) -> Result<Told, Failure> {
    let records = session.journal.records(rotation).await.map_err(journal_failure)?;
    let rotation = replay(&records).map_err(journal_failure)?;
    Ok(Told { records, rotation })
}

/// Names the emergency of a plan. One that was planned before emergencies had names is named by its rotation.
pub(crate) fn id_of(plan: &Plan) -> Option<IncidentId> {
    let unnamed = || plan.is_emergency().then(|| IncidentId(plan.rotation().0));
    plan.incident.as_ref().map(|incident| incident.id.clone()).or_else(unnamed)
}

impl Incident {
    fn of(id: IncidentId, all: &[Told], closed: &[Closed]) -> Self {
        let is_of = |one: &&Told| id_of(one.rotation.plan()).as_ref() == Some(&id);
        let members: Vec<&Told> = all.iter().filter(is_of).collect();
        let plans: Vec<&Plan> = members.iter().map(|one| one.rotation.plan().as_ref()).collect();
        let first = members[0];
        let began_at = members.iter().map(|one| one.rotation.began_at()).min();
        let began_at = began_at.unwrap_or_default();
        let (revoke_first, stage_for) = match first.rotation.plan().mode {
            Mode::Emergency { revoke_first, stage_for } => (revoke_first, stage_for),
            Mode::Normal => (false, Span::ZERO),
        };
        let (exposed, not_listed) = exposed::merged(&plans);
        let (logs, not_captured) = logs(&members, all);
        let of_incident = closed.iter().filter(|closed| closed.incident == id).cloned();
        let mut incident = Self {
            closed: of_incident.collect(),
            id,
            began_at,
            by: first.records[0].actor.clone(),
            because: first.rotation.plan().because.clone(),
            revoke_first,
            stage_for,
            stories: members.iter().map(|one| Story::of(one)).collect(),
            exposed,
            not_listed: not_listed.into_iter().collect(),
            logs,
            not_captured,
            owed: Vec::new(),
        };
        incident.owed = incident.owes(all);
        incident
    }

    /// Returns whether any of its rotations is still open.
    pub(crate) fn is_open(&self) -> bool {
        self.stories.iter().any(|story| story.rotation.outcome().is_none())
    }

    /// What keywheel can do. What it does not manage is told among what may be exposed.
    fn owes(&self, all: &[Told]) -> Vec<Owed> {
        let left = self.exposed.iter().filter_map(|exposed| match &exposed.standing {
            Standing::Managed(owner)
                if !self.was_rotated_since(owner, all) && !self.is_closed(owner) =>
            {
                Some(Owed {
                    what: format!(
                        "{owner} was not rotated: `{}` in store `{}` may be exposed",
                        exposed.address, exposed.store
                    ),
                    command: format!("keywheel rotate {owner} --emergency"),
                    can_close: Some(owner.clone()),
                })
            }
            _ => None,
        });
        let mut owed: Vec<Owed> = self.stories.iter().filter_map(Story::owes).chain(left).collect();
        let mut seen = BTreeSet::new();
        owed.retain(|owed| seen.insert(owed.command.clone()));
        owed
    }

    fn is_closed(&self, secret: &SecretName) -> bool {
        self.closed.iter().any(|closed| closed.secret == *secret)
    }

    fn was_rotated_since(&self, secret: &SecretName, all: &[Told]) -> bool {
        all.iter().any(|one| {
            one.rotation.plan().secret == *secret
                && one.rotation.began_at() >= self.began_at
                && one.rotation.outcome() == Some(Outcome::Completed)
        })
    }
}

impl Story {
    fn of(told: &Told) -> Self {
        let Told { records, rotation } = told;
        let delivered_at =
            at(records, |event| matches!(event, Event::Promoted { side: Side::Pending }));
        let plan = rotation.plan();
        let suspects = plan.previous.iter().chain(&plan.suspects).map(|known| known.version);
        let suspects = suspects.map(|version| Suspect::of(version, told, delivered_at));
        let notes = records.iter().filter_map(|record| match &record.event {
            Event::Done { report: Report::Noted { notes }, .. } => Some(notes.clone()),
            Event::Done { report: Report::Captured { passed_over, .. }, .. } => {
                Some(passed_over.clone())
            }
            _ => None,
        });
        Self {
            suspects: suspects.collect(),
            outage: outage(told, delivered_at),
            notes: notes.flatten().collect(),
            rotation: rotation.clone(),
            delivered_at,
        }
    }

    fn owes(&self) -> Option<Owed> {
        let rotation = &self.rotation;
        if rotation.outcome().is_some() {
            return None;
        }
        let secret = &rotation.plan().secret;
        let what = match rotation.parked() {
            Some(reason) => {
                format!("{secret} needs you: {}", words::parked(rotation.plan(), reason))
            }
            None => format!("{secret} is under way, in phase {}", rotation.phase()),
        };
        Some(Owed { what, command: format!("keywheel resume {secret}"), can_close: None })
    }
}

impl Suspect {
    fn of(version: VersionId, told: &Told, delivered_at: Option<Timestamp>) -> Self {
        let Told { records, rotation } = told;
        let incident = rotation.plan().incident.as_ref();
        let made = incident.iter().flat_map(|incident| &incident.made);
        let made_at = made.filter(|(made, _)| *made == version).map(|(_, at)| *at).next();
        let revoked_at = rotation.ending().revoked_at(version);
        let last_at = records.last().map(|record| record.at).unwrap_or_default();
        let dead_at = |death: Death| {
            let is_it = |event: &Event| match event {
                Event::Done { step: Step::VerifyDead(of), report: Report::Dead(seen) } => {
                    *of == version && *seen == death
                }
                _ => false,
            };
            at(records, is_it)
        };
        let ended_at = || revoked_at.max(delivered_at).unwrap_or(last_at);
        let was_closed =
            records.iter().any(|record| matches!(record.event, Event::Resolved { .. }));
        let ends_at = records.iter().find_map(|record| match &record.event {
            Event::Done {
                step: Step::VerifyDead(of),
                report: Report::Dead(Death::EndsAt { at }),
            } if *of == version => Some(*at),
            _ => None,
        });
        let end = match (dead_at(Death::Refused), ends_at, rotation.outcome()) {
            (Some(at), ..) => End::Proven(at),
            (None, Some(at), _) => End::ByItself(at),
            (None, None, _) if dead_at(Death::NoOneToAsk).is_some() => End::NobodyToAsk(ended_at()),
            (None, None, Some(Outcome::Superseded)) => End::TakenOver(last_at),
            // The former version is current again on somebody's word, and as suspect as before.
            (None, None, Some(Outcome::Undone)) => End::Open,
            (None, None, Some(_)) if was_closed => End::Word(last_at),
            (None, None, Some(_)) => End::NobodyToAsk(ended_at()),
            (None, None, None) => End::Open,
        };
        Self { version, made_at, revoked_at, end }
    }

    /// Returns when it was of no more use, as far as anybody knows.
    pub(crate) fn ended_at(&self) -> Option<Timestamp> {
        match self.end {
            End::Proven(at)
            | End::ByItself(at)
            | End::NobodyToAsk(at)
            | End::Word(at)
            | End::TakenOver(at) => Some(at),
            End::Open => None,
        }
    }
}

/// When a record first said something.
fn at(records: &[Record], says: impl Fn(&Event) -> bool) -> Option<Timestamp> {
    records.iter().find(|record| says(&record.event)).map(|record| record.at)
}

/// The outage begins with the first revoke that may have been made, and ends with the evidence that readers no longer need
/// what was revoked.
fn outage(told: &Told, delivered_at: Option<Timestamp>) -> Option<Outage> {
    let Told { records, rotation } = told;
    let plan = rotation.plan();
    let revoked = records.iter().position(|record| match &record.event {
        Event::Done { step: Step::Revoke(_), report } => matches!(report, Report::Revoked { .. }),
        Event::Unknown { step: Step::Revoke(_) } => delivered_at.is_none_or(|at| record.at < at),
        _ => false,
    })?;
    let told = records[revoked..].iter().find_map(|record| match &record.event {
        Event::Done { report: Report::Revoked { behind, stores }, .. } => {
            Some((behind.as_slice(), stores.as_slice()))
        }
        _ => None,
    });
    let (behind, stores) = told.unwrap_or_default();
    let named = |store: &BehindStore| {
        (plan.stores[usize::from(store.store)].bound.name.clone(), store.why.clone())
    };
    let stores: Vec<_> = stores.iter().map(named).collect();
    let out = behind.iter().map(|behind| Out {
        workload: plan.workloads[usize::from(behind.workload)].bound.name.clone(),
        replicas: behind.replicas.clone(),
        unknown: behind.unknown.clone(),
        trouble: trouble(&records[..revoked], behind.workload),
    });
    let behind: Vec<Out> = out.collect();
    let from = records[revoked].at;
    let is_any = !behind.is_empty() || !stores.is_empty();
    is_any.then_some(Outage { from, until: delivered_at, behind, stores })
}

fn trouble(records: &[Record], of: u8) -> Option<String> {
    records.iter().rev().find_map(|record| match &record.event {
        Event::Done { step: Step::Roll { workload, .. }, .. } if *workload == of => Some(None),
        Event::Refused { step: Step::Roll { workload, .. }, refusal } if *workload == of => {
            Some(Some(refusal.to_string()))
        }
        Event::Unknown { step: Step::Roll { workload, .. } } if *workload == of => {
            Some(Some("the roll was not done in time".into()))
        }
        _ => None,
    })?
}

/// The references of all members, and of the rotations that they took over: what those replaced is gone as well.
fn logs(members: &[&Told], all: &[Told]) -> (Vec<Log>, Vec<(String, String)>) {
    let (mut logs, mut not_captured): (Vec<Log>, Vec<(String, String)>) = Default::default();
    let mut open: Vec<&Told> = members.iter().rev().copied().collect();
    while let Some(one) = open.pop() {
        let plan = one.rotation.plan();
        let former = plan.takes_over.as_ref();
        open.extend(former.and_then(|id| all.iter().find(|other| other.rotation.id() == id)));
        let captured = one.records.iter().filter_map(|record| match &record.event {
            Event::Done { report: Report::Captured { logs, .. }, .. } => Some(logs),
            _ => None,
        });
        for of_workload in captured.flatten() {
            let workload = &plan.workloads[usize::from(of_workload.workload)].bound.name;
            let why = of_workload.not_captured.clone().map(|why| (workload.clone(), why));
            not_captured.extend(why.filter(|why| !not_captured.contains(why)));
            for reference in &of_workload.replicas {
                let known = |log: &Log| {
                    log.workload == *workload
                        && log.reference.replica == reference.replica
                        && log.reference.id == reference.id
                };
                if !logs.iter().any(known) {
                    let (workload, reference) = (workload.clone(), reference.clone());
                    logs.push(Log { workload, reference });
                }
            }
        }
    }
    (logs, not_captured)
}
