//! `keywheel check`: could these secrets be rotated? Changes nothing.

use clap::Args;
use keywheel_core::call::CallError;
use keywheel_core::plan::{Plan, Role, StorePlan};
use keywheel_driver::issuer::Change;
use keywheel_driver::pin::elsewhere;
use keywheel_driver::{Finding, Severity, Store};
use keywheel_drivers::Context;
use keywheel_drivers::deny_list::DenyListConfig;
use keywheel_engine::{held, readers};
use serde_json::json;

use crate::cli::Globals;
use crate::compile::{Built, drivers_of};
use crate::config::Secret;
use crate::copies::Copies;
use crate::exit::Exit;
use crate::output::{Failure, Format};
use crate::refused::Answer;
use crate::select::Selection;
use crate::session::Session;
use crate::{prepare, refused, words};

/// Check whether secrets could be rotated: configuration, permissions, quotas, stores, workloads; changes nothing
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    selection: Selection,
}

/// What an issuer's side lacks, and the statements that bring it into shape.
struct Conversion {
    secret: String,
    changes: Vec<Change>,
}

struct Found {
    secret: String,
    place: String,
    blocks: bool,
    message: String,
}

pub(crate) async fn run(args: &CheckArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let environment = args.selection.environment(&config)?;
    let selection = Selection {
        all: args.selection.all || args.selection.is_empty(),
        ..args.selection.clone()
    };
    let secrets = selection.secrets(globals, &config).await?;
    let session = Session::look(globals, &config, &environment.name)?;
    let (mut found, mut conversions) = (Vec::new(), Vec::new());
    for secret in &secrets {
        let plan = prepare::pinned_draft(&session, &config, secret).await?;
        let built = drivers_of(&plan)?;
        let here = one(&session, secret, &plan, &built).await;
        if here.iter().any(|one| one.blocks) {
            conversions.extend(conversion(secret, &built).await);
        }
        found.extend(here);
    }
    let copies = Copies::of_all(&config).await;
    found.extend(secrets.iter().flat_map(|secret| same_values(&copies, secret)));
    let output = globals.output();
    let blocked = found.iter().any(|one| one.blocks);
    match output.format {
        Format::Text => {
            let rows: Vec<Vec<String>> = found
                .iter()
                .map(|one| {
                    let mark = if one.blocks { "blocks" } else { "note" };
                    vec![mark.into(), one.secret.clone(), one.place.clone(), one.message.clone()]
                })
                .collect();
            let verdict = if blocked { "not ready" } else { "ready" };
            output.text(&format!("{}{}: {}, {verdict}\n", words::table(&rows, "  "), environment.name, words::counted(secrets.len(), "secret")))?;
            for conversion in &conversions {
                output.text(&conversion.text())?;
            }
        }
        Format::Json => output.json(&json!({
            "environment": environment.name,
            "secrets": secrets.len(),
            "ready": !blocked,
            "findings": found.iter().map(|one| json!({
                "secret": one.secret, "place": one.place, "blocks": one.blocks, "message": one.message,
            })).collect::<Vec<_>>(),
            "conversions": conversions.iter().map(Conversion::json).collect::<Vec<_>>(),
        }))?,
    }
    Ok(if blocked { Exit::Refused } else { Exit::Done })
}

/// Asks for the statements that bring an issuer's side into shape. What keeps it from telling is among the findings already.
async fn conversion(secret: &Secret, built: &Built) -> Option<Conversion> {
    let changes = built.issuer.convert()?.changes().await.ok()?;
    let secret = secret.name.name().to_owned();
    (!changes.is_empty()).then_some(Conversion { secret, changes })
}

impl Conversion {
    fn text(&self) -> String {
        let mut text = format!(
            "\n{}: these statements bring it into shape (`keywheel adopt {} --convert --because …` runs them)\n",
            self.secret, self.secret
        );
        text.push_str(&statements(&self.changes));
        text
    }

    fn json(&self) -> serde_json::Value {
        let change = |change: &Change| json!({ "place": change.place, "statement": change.what, "undo": change.undo });
        json!({ "secret": self.secret, "changes": self.changes.iter().map(change).collect::<Vec<_>>() })
    }
}

/// Writes statements as a client of the server takes them.
pub(crate) fn statements(changes: &[Change]) -> String {
    let mut text = String::new();
    for together in changes.chunk_by(|a, b| a.place == b.place) {
        text.push_str(&format!("  -- in database {}\n", together[0].place));
        together.iter().for_each(|change| text.push_str(&format!("  {};\n", change.what)));
    }
    text
}

/// What keeps a list of refused tokens from being used. It keeps no rotation from beginning.
async fn listed(list: &DenyListConfig, plan: &Plan) -> Vec<Finding> {
    let examined = match list.build(&Context::at(&plan.folder)) {
        Ok(list) => list.examine().await,
        Err(refusal) => Err(refusal),
    };
    let examined = examined.unwrap_or_else(|refusal| vec![Finding::note(refusal.to_string())]);
    examined.into_iter().map(|finding| Finding::note(finding.message)).collect()
}

async fn one(session: &Session, secret: &Secret, plan: &Plan, built: &Built) -> Vec<Found> {
    let mut found = Vec::new();
    let mut add = |place: String, findings: Result<Vec<Finding>, CallError>| {
        let findings = findings.unwrap_or_else(|error| vec![Finding::blocks(error.to_string())]);
        found.extend(findings.into_iter().map(|finding| Found {
            secret: secret.name.name().into(),
            place: place.clone(),
            blocks: finding.severity == Severity::Blocks,
            message: finding.message,
        }));
    };
    let issuer = format!("issuer {}", plan.issuer.bound.name);
    if plan.issuer.facts.publishable {
        add(issuer.clone(), Ok(vec![Finding::note(words::publishable(&secret.policy))]));
    }
    add(issuer, built.issuer.preflight().await);
    if let Some(list) = &secret.deny_list {
        add("deny list".into(), Ok(listed(list, plan).await));
    }
    for (store, planned) in built.stores.iter().zip(&plan.stores) {
        let addresses: Vec<String> =
            planned.slots.iter().map(|slot| slot.address.clone()).collect();
        let place = format!("store {}", planned.bound.name);
        match elsewhere(store.identity(), planned.pin.as_ref()).await {
            Ok(Some(objection)) => add(place, Ok(vec![Finding::blocks(objection)])),
            _ => {
                add(place.clone(), store.preflight(&addresses).await);
                add(place.clone(), missing(store.as_ref(), planned).await);
                add(place, Ok(unclaimed(store.as_ref(), planned).into_iter().collect()));
            }
        }
    }
    for (index, planned) in plan.workloads.iter().enumerate() {
        let place = format!("workload {}", planned.bound.name);
        // What another engine tells is of no use.
        match elsewhere(built.workloads[index].identity(), planned.pin.as_ref()).await {
            Ok(Some(objection)) => add(place, Ok(vec![Finding::blocks(objection)])),
            _ => {
                let found = readers::preflight(plan, &built.stores, &built.workloads, index).await;
                add(place, found)
            }
        }
    }
    add("stores".into(), held(plan, built).await);
    add(format!("issuer {}", plan.issuer.bound.name), accepted(session, plan, built).await);
    found
}

/// The slots that readers use and that are not there. What keeps the store from telling stands among the other findings.
async fn missing(store: &dyn Store, planned: &StorePlan) -> Result<Vec<Finding>, CallError> {
    let used = planned.slots.iter().filter(|slot| slot.role == Role::Current);
    let used: Vec<String> = used.map(|slot| slot.address.clone()).collect();
    Ok(store.missing(&used).await.unwrap_or_default())
}

/// A store that carries no claim and cannot be compared is where two installations would take turns unseen.
fn unclaimed(store: &dyn Store, planned: &StorePlan) -> Option<Finding> {
    let is_told = store.claims().is_none() && !planned.facts.is_readable();
    is_told.then(|| {
        Finding::note(
            "it carries no claim: see to it that no other installation of keywheel writes it",
        )
    })
}

/// A refusal of what readers use holds no rotation up: one puts it right, unless one is about to.
async fn accepted(
    session: &Session,
    plan: &Plan,
    built: &Built,
) -> Result<Vec<Finding>, CallError> {
    let row = session.journal.inventory(&plan.secret).await.ok().flatten();
    let open = session.open_rotation(&plan.secret).await.ok().flatten();
    if open.as_ref().is_some_and(refused::is_being_replaced) {
        return Ok(Vec::new());
    }
    Ok(match refused::in_use(session, plan, built, row.as_ref()).await {
        Some(Answer::Refuses(what)) => {
            vec![Finding::note(format!("{what}: `{}`", refused::then(&plan.secret)))]
        }
        Some(Answer::Accepts) | None => Vec::new(),
    })
}

/// One value in two places is told, and holds nothing up: only a rotation puts it right.
fn same_values(copies: &Copies, secret: &Secret) -> Vec<Found> {
    let told = |message| Found {
        secret: secret.name.name().into(),
        place: "value".into(),
        blocks: false,
        message,
    };
    let mut found: Vec<Found> = copies.notes(&secret.name).into_iter().map(told).collect();
    let unread = copies.unread().iter().filter(|other| {
        other.name() == secret.name.name() && other.environment() != secret.name.environment()
    });
    found.extend(unread.map(|other| {
        told(format!(
            "whether `{other}` holds the same value is not known: its stores cannot be read now"
        ))
    }));
    found
}

async fn held(plan: &Plan, built: &Built) -> Result<Vec<Finding>, CallError> {
    match prepare::agreed(plan, built).await {
        Ok(Some(_)) => Ok(apart(plan).into_iter().collect()),
        Ok(None) => {
            Ok(vec![Finding::note("no store holds a value yet; the first rotation makes one")])
        }
        Err(failure) => Ok(vec![Finding::blocks(failure.message)]),
    }
}

/// What has no field in common cannot be compared.
fn apart(plan: &Plan) -> Option<Finding> {
    let apart = held::apart(&plan.stores);
    (!apart.is_empty()).then(|| {
        Finding::note(format!(
            "no other store holds a field that `{}` holds: whether they hold the same version cannot be compared",
            apart.join("`, `")
        ))
    })
}
