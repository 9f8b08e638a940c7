//! `keywheel status`: what the journal says, attention first. No network.

use std::collections::BTreeSet;

use clap::{Args, ValueEnum};
use keywheel_core::due;
use keywheel_core::event::{Event, ParkReason, Report};
use keywheel_core::gate::{Gate, Gates, Light};
use keywheel_core::inventory::Inventory;
use keywheel_core::plan::{Reason, RotationId};
use keywheel_core::planted;
use keywheel_core::rotation::Rotation;
use keywheel_core::secret::SecretName;
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::{Stage, VersionId};
use keywheel_drivers::{Build, Context};
use keywheel_engine::recover::replay;
use keywheel_journal::Record;
use serde::Serialize;
use serde_json::Value;

use crate::cli::Globals;
use crate::config::{Config, Environment, Secret};
use crate::exit::Exit;
use crate::leases::{self, Stands};
use crate::outlook::Outlook;
use crate::output::{Failure, Format};
use crate::queue::Staging;
use crate::session::{Session, journal_failure, now};
use crate::{queue, refused, session, words};

/// Show what the journal knows: what needs you, what is under way, what is due
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// One environment only
    #[arg(long, short, value_name = "ENV")]
    environment: Option<String>,
    /// Healthy secrets too
    #[arg(long)]
    all: bool,
    /// End with 6 where any of these is found
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    fail_on: Vec<FailOn>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FailOn {
    /// A rotation waits for an operator, or an issuer refuses what readers use
    NeedsOperator,
    /// A secret is past its cryptoperiod
    Due,
    /// A retirement is owed and late
    Late,
    /// A secret was never adopted
    Unmanaged,
}

/// Where one secret stands, in the order in which people want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Standing {
    #[serde(rename = "needs_operator")]
    NeedsYou,
    Late,
    UnderWay,
    Due,
    DueSoon,
    Unmanaged,
    #[serde(rename = "ok")]
    Fine,
}

struct Row {
    standing: Standing,
    name: String,
    state: String,
    detail: String,
    next: String,
    /// Whether its lease is late, whatever else its row says.
    lease_is_late: bool,
    told: Told,
}

/// The answer for programs.
#[derive(Serialize)]
struct Answer<'a> {
    environments: Vec<Page<'a>>,
}

#[derive(Serialize)]
struct Page<'a> {
    environment: &'a str,
    secrets: Vec<Told>,
}

/// One secret, as programs are told of it.
#[derive(Serialize)]
struct Told {
    secret: SecretName,
    standing: Standing,
    #[serde(flatten)]
    known: Option<Facts>,
}

/// What the journal holds of it.
#[derive(Serialize)]
struct Facts {
    current: Option<VersionId>,
    previous: Option<VersionId>,
    pending: Option<VersionId>,
    rotation: Option<RotationId>,
    phase: Option<String>,
    parked: Option<String>,
    parked_at: Option<String>,
    held_up: Option<HeldUp>,
    dates: Option<Value>,
    owed_at: Option<String>,
    rotated_at: Option<String>,
    due_at: Option<String>,
    held_because: Option<String>,
    /// Since when its issuer is known to refuse what readers use.
    refused_at: Option<String>,
    queued_at: Option<String>,
    undelivered: usize,
}

/// A retirement that has been owed for this long is forgotten by whoever should resume it.
const LATE: Span = Span::hours(6);

pub(crate) async fn run(args: &StatusArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let chosen: Vec<&Environment> = match &args.environment {
        Some(_) => vec![session::environment(&config, args.environment.as_deref())?],
        None => config.environments.iter().collect(),
    };
    let mut pages = Vec::new();
    for environment in chosen {
        pages.push((environment, rows(globals, &config, environment).await?));
    }
    let mut found: Vec<Standing> = Vec::new();
    for row in pages.iter().flat_map(|(_, rows)| rows) {
        found.push(row.standing);
        found.extend(row.lease_is_late.then_some(Standing::Late));
    }
    let output = globals.output();
    match output.format {
        Format::Text => {
            let told = pages.iter().map(|(environment, rows)| page(environment, rows, args.all));
            output.text(&told.collect::<String>())?;
        }
        Format::Json => {
            let told = pages.into_iter().map(|(environment, rows)| Page {
                environment: &environment.name,
                secrets: rows.into_iter().map(|row| row.told).collect(),
            });
            output.json(&Answer { environments: told.collect() })?;
        }
    }
    Ok(if args.fail_on.iter().any(|what| found.contains(&standing_of(*what))) {
        Exit::FailOn
    } else {
        Exit::Done
    })
}

fn standing_of(what: FailOn) -> Standing {
    match what {
        FailOn::NeedsOperator => Standing::NeedsYou,
        FailOn::Due => Standing::Due,
        FailOn::Late => Standing::Late,
        FailOn::Unmanaged => Standing::Unmanaged,
    }
}

async fn rows(
    globals: &Globals,
    config: &Config,
    environment: &Environment,
) -> Result<Vec<Row>, Failure> {
    let known = match Session::read(globals, config, &environment.name)? {
        Some(session) => known(globals, config, &session).await?,
        None => Vec::new(),
    };
    let now = now();
    let mut rows: Vec<Row> = environment
        .secrets
        .iter()
        .map(|secret| match known.binary_search_by(|known| known.row.secret.cmp(&secret.name)) {
            Ok(index) => row(config, secret, &known[index], now),
            Err(_) => unmanaged(secret),
        })
        .collect();
    let declared: BTreeSet<&SecretName> =
        environment.secrets.iter().map(|secret| &secret.name).collect();
    let gone = known
        .iter()
        .filter(|known| known.row.open.is_some() && !declared.contains(&known.row.secret));
    rows.extend(gone.map(|known| retired(known, now)));
    rows.sort_by_key(|row| row.standing);
    Ok(rows)
}

/// What the journal holds of one secret.
struct Known {
    row: Inventory,
    outlook: Option<Outlook>,
    /// Why a step is being tried again.
    trouble: Option<String>,
    /// Why its open rotation is parked, in words, and since when.
    parked: Option<(String, Timestamp)>,
    /// What keeps its retirement from counting, or parked it for that, where the last look saw something.
    held_up: Option<HeldUp>,
    /// Whether a person ends the former version.
    by_hand: bool,
    /// Since when its issuer is known to refuse what readers use, where no emergency is about to replace it.
    refused: Option<Timestamp>,
    /// How far the other environment is that its next rotation waits for.
    stage: Option<Staging>,
}

async fn known(
    globals: &Globals,
    config: &Config,
    session: &Session,
) -> Result<Vec<Known>, Failure> {
    let mut known = Vec::new();
    for row in session.journal.inventories().await.map_err(journal_failure)? {
        let (mut outlook, mut parked, mut held_up, mut by_hand) = (None, None, None, false);
        let mut trouble = None;
        let mut refused = row.refused_in_use();
        let stage = match row.queued.as_ref().and_then(|queued| queued.after.as_ref()) {
            Some(staged) => {
                let stage = queue::staging(globals, config, staged).await;
                Some(stage.unwrap_or_else(|failure| Staging::Failed(failure.message)))
            }
            None => None,
        };
        if let Some(open) = &row.open {
            let records = session.journal.records(&open.rotation).await.map_err(journal_failure)?;
            let rotation = replay(&records).map_err(journal_failure)?;
            by_hand = rotation.plan().issuer.facts.is_kept_by_hand();
            refused = refused.filter(|_| !refused::is_being_replaced(&rotation));
            match &open.parked {
                Some(reason) => {
                    let is_it = |record: &&Record| matches!(record.event, Event::Parked { .. });
                    let since = records.iter().rfind(is_it).map(|record| record.at);
                    let why = words::parked(rotation.plan(), reason);
                    parked = Some((why, since.unwrap_or_default()));
                    let is_of_gates =
                        matches!(reason, ParkReason::GateClosed | ParkReason::RedAfterSuspend);
                    held_up = HeldUp::of(&rotation, &records).filter(|_| is_of_gates);
                }
                None => {
                    outlook = Some(Outlook::of(&rotation, now()));
                    held_up = HeldUp::of(&rotation, &records);
                    let refused = rotation.trouble().and_then(|(_, refused)| refused);
                    trouble = refused.map(ToString::to_string);
                }
            }
        }
        known.push(Known { row, outlook, trouble, parked, held_up, by_hand, refused, stage });
    }
    Ok(known)
}

/// A gate that was not open at the last look at it.
#[derive(Clone, Serialize)]
struct HeldUp {
    quiet: Gate,
    probes: Gate,
    drift: Gate,
    evidence: Gate,
    /// When the version that is to be ended was last used, where that closes the gate.
    in_use_at: Option<String>,
    /// What was seen, in words.
    seen: String,
}

impl HeldUp {
    fn of(rotation: &Rotation, records: &[Record]) -> Option<Self> {
        let visit = records.iter().rev().find_map(|record| match &record.event {
            Event::Done { report: Report::Visited(visit), .. } => Some(visit),
            _ => None,
        })?;
        if !rotation.retires() || rotation.ending().last_visit()?.1 == Light::Green {
            return None;
        }
        let Gates { quiet, probes, drift, evidence } = rotation.gates(visit);
        // A sample that is too early is the rule after a promotion, and only time helps.
        let speaks = |gate: &Gate| matches!(gate, Gate::Closed | Gate::CannotTell);
        if ![quiet, probes, drift, evidence].iter().any(speaks) {
            return None;
        }
        let used_at = visit.usage.and_then(|usage| usage.last_used_at);
        let used_at = used_at.filter(|_| quiet == Gate::Closed);
        let version = rotation.retiring().first().copied()?;
        let used = used_at.map(|at| format!("{version} was used {}", words::when(at)));
        let seen: Vec<String> = used.into_iter().chain(visit.notes.iter().cloned()).collect();
        let in_use_at = used_at.map(words::rfc3339);
        Some(Self { quiet, probes, drift, evidence, in_use_at, seen: seen.join("; ") })
    }
}

fn unmanaged(secret: &Secret) -> Row {
    let name = secret.name.name().to_owned();
    Row {
        standing: Standing::Unmanaged,
        state: "unmanaged".into(),
        detail: "never adopted".into(),
        next: format!("keywheel adopt {name}"),
        lease_is_late: false,
        told: Told { secret: secret.name.clone(), standing: Standing::Unmanaged, known: None },
        name,
    }
}

/// An open rotation of a secret that is no longer in the file still has to end.
fn retired(known: &Known, now: Timestamp) -> Row {
    let (standing, state, detail, next) =
        open(known, now).unwrap_or((Standing::Fine, "ok".into(), String::new(), String::new()));
    Row {
        standing,
        name: known.row.secret.name().to_owned(),
        state,
        detail,
        next,
        lease_is_late: false,
        told: told(known, standing, None),
    }
}

fn row(config: &Config, secret: &Secret, known: &Known, now: Timestamp) -> Row {
    let name = secret.name.name().to_owned();
    let upcoming = due::next(&known.row, &secret.policy);
    let is_scheduled = known.row.open.is_none() && known.stage.is_none();
    let (late, lease_is_late) = late_lease(config, secret, &known.row, now);
    let (standing, state, mut detail, next) = open(known, now)
        .map(|(standing, state, detail, next)| match &late {
            Some(late) => (standing.min(Standing::Late), state, format!("{detail}; {late}"), next),
            None => (standing, state, detail, next),
        })
        .or_else(|| staged(known))
        .or_else(|| leased(config, secret, &known.row, upcoming.as_ref(), now))
        .unwrap_or_else(|| scheduled(secret, &known.row, upcoming.as_ref(), now));
    if is_scheduled && standing != Standing::Fine && takes_a_person(config, secret) {
        detail.push_str("; guided: needs you at a terminal");
    }
    let row = Row {
        standing,
        name,
        state,
        detail,
        next,
        lease_is_late,
        told: told(known, standing, upcoming.as_ref()),
    };
    refused_in_use(known, row)
}

/// What is to be said of a lease that nobody serves in time while a rotation of its secret is open.
fn late_lease(
    config: &Config,
    secret: &Secret,
    row: &Inventory,
    now: Timestamp,
) -> (Option<String>, bool) {
    let stands = leases::stands(config, secret, row, now);
    let late = stands.and_then(|(stands, until)| match stands {
        Stands::InTime => None,
        Stands::Late => Some(format!("its lease in use ends {}", words::when(until))),
        Stands::Ended => {
            Some(format!("its lease ended {}, and its readers are refused", words::when(until)))
        }
    });
    let is_late = late.is_some();
    (late.filter(|_| row.open.is_some()), is_late)
}

/// What its issuer ended by itself needs a person, whatever else it waits for.
fn refused_in_use(known: &Known, row: Row) -> Row {
    let (Some(since), Some(current)) = (known.refused, known.row.at(Stage::Current)) else {
        return row;
    };
    let what = format!(
        "its issuer refuses {} that readers use, seen {}",
        current.version,
        words::when(since)
    );
    if row.standing == Standing::NeedsYou {
        return Row { detail: format!("{}; {what}", row.detail), ..row };
    }
    let secret = &known.row.secret;
    let (detail, next) = match &known.outlook {
        // The former version may still be accepted.
        Some(outlook) if outlook.can_undo() => {
            (format!("{}; {what}", row.detail), format!("keywheel undo {secret}"))
        }
        _ => (what, refused::then(secret)),
    };
    Row {
        standing: Standing::NeedsYou,
        state: "refused".into(),
        detail,
        next,
        told: Told { standing: Standing::NeedsYou, ..row.told },
        ..row
    }
}

/// Standing, state, detail and what to do next.
type Words = (Standing, String, String, String);

fn open(known: &Known, now: Timestamp) -> Option<Words> {
    let row = &known.row;
    let open = row.open.as_ref()?;
    let secret = &row.secret;
    let held_up = known.held_up.as_ref().filter(|held_up| !held_up.seen.is_empty());
    if let Some((reason, since)) = &known.parked
        && !planted!("parked_is_under_way")
    {
        return Some((
            Standing::NeedsYou,
            "parked".into(),
            match held_up {
                Some(HeldUp { seen, .. }) => {
                    format!("{reason}: {seen}; since {}", words::when(*since))
                }
                None => format!("{reason}; since {}", words::when(*since)),
            },
            format!("keywheel resume {secret}"),
        ));
    }
    let owed_at = open.owed_at.unwrap_or(now);
    let waits = if row.queued.is_some() { "; the next rotation waits" } else { "" };
    let outlook = known.outlook.unwrap_or_default();
    let held_up = held_up.map(|held_up| format!("; {}", held_up.seen));
    let guided = if known.by_hand && outlook.revokes() { " (guided: needs you)" } else { "" };
    let detail = format!(
        "{}{}{}; next look {}{}{guided}{waits}",
        versions(row),
        known.trouble.as_ref().map(|trouble| format!("; {trouble}")).unwrap_or_default(),
        held_up.unwrap_or_default(),
        words::distance(owed_at, now),
        outlook.text()
    );
    let late = owed_at + LATE < now;
    let standing = if late { Standing::Late } else { Standing::UnderWay };
    let in_use = known.held_up.as_ref().is_some_and(|held_up| held_up.in_use_at.is_some());
    let next = match owed_at <= now || outlook.is_browned_out() {
        true => format!("keywheel resume {secret}"),
        false if in_use => format!("keywheel where {secret} --scan ."),
        false if outlook.can_undo() => format!("keywheel undo {secret}"),
        false => String::new(),
    };
    Some((standing, open.phase.clone(), detail, next))
}

/// A rotation that waits for another environment.
fn staged(known: &Known) -> Option<Words> {
    let secret = &known.row.secret;
    let state = "queued".to_owned();
    let now = versions(&known.row);
    let cancel = format!("keywheel cancel {secret}");
    Some(match known.stage.as_ref()? {
        Staging::UnderWay(at) => {
            (Standing::UnderWay, state, format!("{now}; the next rotation waits: {at}"), cancel)
        }
        Staging::Failed(why) => {
            (Standing::NeedsYou, state, format!("{now}; the next rotation waits: {why}"), cancel)
        }
        Staging::Completed => {
            let detail = format!("{now}; the environment before it has completed");
            (Standing::Due, state, detail, format!("keywheel resume {secret}"))
        }
    })
}

fn scheduled(
    secret: &Secret,
    row: &Inventory,
    upcoming: Option<&due::Due>,
    now: Timestamp,
) -> Words {
    let name = secret.name.name();
    if let Some(held) = &row.held_because {
        return (Standing::Due, "held".into(), held.clone(), format!("keywheel rotate {name}"));
    }
    match upcoming {
        Some(due) if due.since <= now => (
            Standing::Due,
            "due".into(),
            format!("{}; {}", versions(row), due.because),
            match row.queued {
                Some(_) => format!("keywheel resume {name}"),
                None => format!("keywheel rotate {name}"),
            },
        ),
        Some(due) if due.since.since(now) <= secret.rules.remind => (
            Standing::DueSoon,
            words::distance(due.since, now),
            format!("{}; {}", versions(row), due.because),
            format!("keywheel rotate {name}"),
        ),
        Some(due) => (
            Standing::Fine,
            "ok".into(),
            format!("{}; due {}", versions(row), words::when(due.since)),
            String::new(),
        ),
        None => {
            let why = match secret.policy.unscheduled {
                true => words::publishable(&secret.policy),
                false => "age unknown",
            };
            (Standing::Fine, "ok".into(), format!("{}; {why}", versions(row)), String::new())
        }
    }
}

/// What its issuer ends by itself is served by each visit, so that nothing is due of it until nobody comes.
fn leased(
    config: &Config,
    secret: &Secret,
    row: &Inventory,
    upcoming: Option<&due::Due>,
    now: Timestamp,
) -> Option<Words> {
    if upcoming.is_some_and(|due| due.reason != Reason::Expiring) || row.held_because.is_some() {
        return None;
    }
    if leases::is_unknown(secret, row) {
        let detail =
            format!("{}; its lease is not known, and nobody extends or replaces it", versions(row));
        let next = format!("keywheel rotate {}", secret.name.name());
        return Some((Standing::Due, "due".into(), detail, next));
    }
    let (stands, until) = leases::stands(config, secret, row, now)?;
    let (version, until) = (versions(row), words::when(until));
    let late =
        |detail| Some((Standing::Late, "late".into(), detail, "keywheel resume --all".into()));
    match stands {
        Stands::InTime => {
            let detail = format!("{version}; leased until {until}");
            Some((Standing::Fine, "ok".into(), detail, String::new()))
        }
        Stands::Late => late(format!(
            "{version}; leased until {until}, and nobody extends or replaces it: does cron run `keywheel resume --all`?"
        )),
        Stands::Ended => {
            late(format!("{version}; its lease ended {until}, and its readers are refused"))
        }
    }
}

/// Asks the driver, and nobody else.
fn takes_a_person(config: &Config, secret: &Secret) -> bool {
    let issuer = secret.issuer.build(&Context::at(&config.folder));
    issuer.is_ok_and(|issuer| issuer.facts().by_hand.is_some())
}

fn versions(row: &Inventory) -> String {
    let at = |stage| row.at(stage).map(|version| version.version.to_string());
    match (at(Stage::Current), at(Stage::Previous), at(Stage::Pending)) {
        (Some(current), Some(previous), Some(pending)) => {
            format!("{current}; {previous} is being ended, {pending} is on its way")
        }
        (Some(current), Some(previous), None) => format!("{current}; {previous} is being ended"),
        (Some(current), None, Some(pending)) => format!("{current}; {pending} is on its way"),
        (Some(current), None, None) => current,
        (None, _, _) => "no version yet".into(),
    }
}

fn told(known: &Known, standing: Standing, upcoming: Option<&due::Due>) -> Told {
    let row = &known.row;
    let open = row.open.as_ref();
    let at = |stage| row.at(stage).map(|version| version.version);
    let facts = Facts {
        current: at(Stage::Current),
        previous: at(Stage::Previous),
        pending: at(Stage::Pending),
        rotation: open.map(|open| open.rotation.clone()),
        phase: open.map(|open| open.phase.clone()),
        parked: known.parked.as_ref().map(|(reason, _)| reason.clone()),
        parked_at: known.parked.as_ref().map(|(_, since)| words::rfc3339(*since)),
        held_up: known.held_up.clone(),
        dates: known.outlook.map(|outlook| outlook.json()),
        owed_at: open.and_then(|open| open.owed_at).map(words::rfc3339),
        rotated_at: row.rotated_at.map(words::rfc3339),
        due_at: upcoming.map(|due| words::rfc3339(due.since)),
        held_because: row.held_because.clone(),
        refused_at: known.refused.map(words::rfc3339),
        queued_at: row.queued.as_ref().map(|queued| words::rfc3339(queued.at)),
        undelivered: row.untold.len(),
    };
    Told { secret: row.secret.clone(), standing, known: Some(facts) }
}

fn page(environment: &Environment, rows: &[Row], all: bool) -> String {
    let mut text = format!("{} · {}\n", environment.name, words::counted(rows.len(), "secret"));
    let sections: [(&str, &[Standing]); 4] = [
        ("needs you", &[Standing::NeedsYou, Standing::Late]),
        ("under way", &[Standing::UnderWay]),
        ("due", &[Standing::Due, Standing::DueSoon]),
        ("unmanaged", &[Standing::Unmanaged]),
    ];
    for (title, standings) in sections {
        let cells: Vec<Vec<String>> =
            rows.iter().filter(|row| standings.contains(&row.standing)).map(cells).collect();
        if !cells.is_empty() {
            text.push_str(&format!("{title} ({})\n", cells.len()));
            text.push_str(&words::table(&cells, "  "));
        }
    }
    let fine: Vec<Vec<String>> =
        rows.iter().filter(|row| row.standing == Standing::Fine).map(cells).collect();
    let undelivered: usize =
        rows.iter().filter_map(|row| row.told.known.as_ref()).map(|facts| facts.undelivered).sum();
    if undelivered > 0 {
        let messages = words::counted(undelivered, "message");
        let then = "the next `keywheel resume --all` tries again";
        text.push_str(&format!("undelivered: {messages}; {then}\n"));
    }
    if all {
        text.push_str(&format!("ok ({})\n{}", fine.len(), words::table(&fine, "  ")));
    } else if !fine.is_empty() {
        text.push_str(&format!("ok ({})  keywheel status --all\n", fine.len()));
    }
    text
}

fn cells(row: &Row) -> Vec<String> {
    vec![row.name.clone(), row.state.clone(), row.detail.clone(), row.next.clone()]
}
