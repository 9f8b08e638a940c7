//! `keywheel adopt`: takes over live credentials without changing them.

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::Args;
use keywheel_core::call::CallError;
use keywheel_core::due;
use keywheel_core::inventory::{Decision, Inventory};
use keywheel_core::plan::{Pin, Plan};
use keywheel_core::time::Timestamp;
use keywheel_core::version::Stage;
use keywheel_driver::issuer::Change;
use keywheel_engine::NoWatch;
use serde_json::{Value, json};

use crate::cli::Globals;
use crate::commands::check::statements;
use crate::compile::{Built, drivers_of};
use crate::config::{Config, Environment, Secret};
use crate::copies::Copies;
use crate::exit::Exit;
use crate::output::{Failure, Format, Output};
use crate::select::Selection;
use crate::session::{Session, engine_failure};
use crate::{claims, code, confirm, prepare, words};

/// Take over the values that are in use now, as version 1 of each secret; changes no value
#[derive(Debug, Args)]
pub(crate) struct AdoptArgs {
    #[command(flatten)]
    selection: Selection,
    /// When they were made, where the issuer does not say: 2026-01-31, or NAME=2026-01-31 for one of them
    #[arg(long, value_name = "[NAME=]DATE")]
    last_rotated: Vec<String>,
    /// Take the stores over, too, that another installation of keywheel owns
    #[arg(long, requires = "because")]
    take_over: bool,
    /// Pin workloads to the container engine that answers now
    #[arg(long, requires = "because")]
    pin_anew: bool,
    /// Then bring the issuers' side into shape, by the statements that `check` prints
    #[arg(long, requires = "because")]
    convert: bool,
    /// Why, in your words
    #[arg(long, value_name = "TEXT")]
    because: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(args: &AdoptArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let environment = args.selection.environment(&config)?;
    let selection = Selection {
        all: args.selection.all || args.selection.is_empty(),
        ..args.selection.clone()
    };
    let secrets = selection.secrets(globals, &config).await?;
    let ages = Ages::of(&args.last_rotated, &secrets)?;
    let session = Session::act(globals, &config, &environment.name, Arc::new(NoWatch))?;
    if let Some(future) = ages.latest().filter(|latest| *latest > session.now()) {
        let failure = Failure::new(format!("{} has not come yet", words::when(future)));
        return Err(failure.code(code::USAGE).hint("name the day on which they were made"));
    }
    let work = Work { session: &session, config: &config, args };
    let (mut taken, mut failures) = (Vec::new(), Vec::new());
    for &secret in &secrets {
        // One that cannot be adopted stops no other (H20).
        match work.examine(secret, ages.for_secret(secret)).await {
            Ok(found) => taken.extend(found),
            Err(failure) => failures.push(failure),
        }
    }
    let output = globals.output();
    tell(&config, &taken, output).await;
    if !taken.is_empty() {
        confirm::go_on(environment, "Adopt these?", confirm::SAY_YES, args.yes)?;
    }
    let mut adopted = Vec::new();
    for one in &taken {
        match work.take(one).await {
            Ok(()) => adopted.push(one),
            Err(failure) => failures.push(failure),
        }
    }
    for &secret in secrets.iter().filter(|_| args.convert) {
        if let Err(failure) = work.convert(secret, environment, output).await {
            failures.push(failure);
        }
    }
    match output.format {
        Format::Text => output.text(&format!("adopted {}\n", adopted.len()))?,
        Format::Json => {
            let told: Vec<Value> = adopted.iter().map(|one| one.json()).collect();
            output.json(&json!({ "adopted": told }))?;
        }
    }
    Failure::of_all(failures).map_or(Ok(Exit::Done), Err)
}

/// Returns where the stores and workloads of a plan are reached now.
async fn pins(plan: &Plan, built: &Built) -> Result<BTreeMap<String, Pin>, Failure> {
    let mut pins = BTreeMap::new();
    for (identity, planned) in built.identities().zip(plan.pinned()) {
        let pin = identity.await;
        let pin = pin.map_err(|error| prepare::unplaced(&planned.what(), &error.to_string()))?;
        pins.extend(pin.map(|pin| (planned.key(), pin)));
    }
    Ok(pins)
}

/// One secret that is to be taken over, or whose stores or pins are.
struct Taken<'a> {
    secret: &'a Secret,
    plan: Plan,
    row: Inventory,
    /// Whether nothing is known of it yet.
    is_new: bool,
    /// What else happens to it, for people.
    notes: Vec<String>,
}

struct Work<'a> {
    session: &'a Session,
    config: &'a Config,
    args: &'a AdoptArgs,
}

impl Work<'_> {
    /// Looks at one secret, and changes nothing; none where there is nothing to be done.
    async fn examine<'s>(
        &self,
        secret: &'s Secret,
        last_rotated: Option<Timestamp>,
    ) -> Result<Option<Taken<'s>>, Failure> {
        let known = self.session.inventory(&secret.name).await?;
        let is_asked_for = self.args.take_over || self.args.pin_anew;
        if known.is_some() && !is_asked_for {
            return Ok(None);
        }
        let plan = prepare::draft(self.session, self.config, secret)?;
        let built = drivers_of(&plan)?;
        let objections = claims::objections(&plan, &built).await?;
        if let Some((_, objection)) = objections.first().filter(|_| !self.args.take_over) {
            return Err(claims::not_ours(&secret.name, objection));
        }
        let mut notes: Vec<String> = objections
            .into_iter()
            .map(|(_, objection)| format!("taken over: {objection}"))
            .collect();
        let is_new = known.is_none();
        let mut row = match known {
            Some(row) => row,
            None => prepare::adoption(self.session, self.config, secret, last_rotated).await?,
        };
        row.claim(&plan.stores);
        let mut decided: Vec<&str> = Vec::new();
        if !notes.is_empty() {
            decided.push("took its stores over from another installation");
        }
        if self.args.pin_anew && !is_new {
            let pins = pins(&plan, &built).await?;
            if row.pins != pins {
                decided.push("pinned its stores and workloads anew");
                row.pins = pins;
            }
        }
        notes.extend(row.pins.iter().map(|(key, pin)| match key.split_once(' ') {
            Some((kind, name)) => format!("{kind} `{name}` is at {pin}"),
            None => format!("workload `{key}` runs at {pin}"),
        }));
        if decided.is_empty() && !is_new {
            return Ok(None);
        }
        row.decided = self.args.because.clone().filter(|_| !decided.is_empty()).map(|because| {
            Decision { at: self.session.now(), what: decided.join(", and "), because }
        });
        Ok(Some(Taken { secret, plan, row, is_new, notes }))
    }

    /// Shows what has to be changed at a secret's issuer and how it is undone, asks, and changes it. What fails half-way is
    /// finished by the same command.
    async fn convert(
        &self,
        secret: &Secret,
        environment: &Environment,
        output: Output,
    ) -> Result<(), Failure> {
        let known = self.session.inventory(&secret.name).await?;
        let Some(known) = known else { return Ok(()) };
        if known.open.is_some() {
            let failure = Failure::new(format!("a rotation of `{}` is under way", secret.name));
            return Err(failure.code(code::UNSUITABLE).exit(Exit::Refused).now("nothing changed"));
        }
        let plan = prepare::draft(self.session, self.config, secret)?;
        let built = drivers_of(&plan)?;
        let Some(convert) = built.issuer.convert() else { return Ok(()) };
        let told = |error: CallError| {
            let failure = Failure::new(format!("issuer of `{}` is not in shape", secret.name));
            failure
                .code(code::UNSUITABLE)
                .exit(Exit::Refused)
                .caused_by(error.to_string())
                .now("what was changed before stays; nothing is dropped")
                .hint("put it right, and run the same command again")
        };
        let changes = convert.changes().await.map_err(told)?;
        if changes.is_empty() {
            output.note(&format!("  {}: its issuer is in shape", secret.name.name()));
            return Ok(());
        }
        let undo: Vec<Change> = changes
            .iter()
            .rev()
            .map(|change| Change {
                what: change
                    .undo
                    .clone()
                    .unwrap_or_else(|| format!("-- no way back from: {}", change.what)),
                ..change.clone()
            })
            .collect();
        output.note(&format!("{}: to be run\n{}", secret.name.name(), statements(&changes)));
        output.note(&format!("{}: what undoes it\n{}", secret.name.name(), statements(&undo)));
        let question = "Run these statements? The application keeps its rights meanwhile.";
        confirm::go_on(environment, question, confirm::SAY_YES, self.args.yes)?;
        self.decide(secret, &words::counted(changes.len(), "statement")).await?;
        convert.run(&changes).await.map_err(told)?;
        output.note(&format!(
            "  {}: {}",
            secret.name.name(),
            words::counted(changes.len(), "statement")
        ));
        Ok(())
    }

    /// What is about to be changed at an issuer, and why, is on record before it is.
    async fn decide(&self, secret: &Secret, how_much: &str) -> Result<(), Failure> {
        let decision = Decision {
            at: self.session.now(),
            what: format!("brings its issuer's side into shape: {how_much}"),
            because: self.args.because.clone().unwrap_or_default(),
        };
        let decide = |row: Option<Inventory>| {
            let mut row = row?;
            row.decided = Some(decision);
            Some(row)
        };
        self.session.engine.note(&secret.name, "adopted", decide).await.map_err(engine_failure)
    }

    async fn take(&self, taken: &Taken<'_>) -> Result<(), Failure> {
        let Taken { row, plan, is_new, .. } = taken;
        if *is_new && !self.args.take_over {
            claims::take([plan]).await?;
            return self.session.adopt(row).await;
        }
        // The reason is on record before a claim is moved: whoever repeats it finds the rest still to be moved.
        let decide = |known: Option<Inventory>| {
            let Some(mut known) = known else { return Some(row.clone()) };
            known.claim(&plan.stores);
            known.pins.clone_from(&row.pins);
            known.decided.clone_from(&row.decided);
            Some(known)
        };
        self.session.engine.note(&row.secret, "adopted", decide).await.map_err(engine_failure)?;
        if self.args.take_over { claims::take_over(plan).await } else { Ok(()) }
    }
}

impl Taken<'_> {
    fn due_at(&self) -> Option<Timestamp> {
        due::next(&self.row, &self.secret.policy).map(|due| due.since)
    }

    fn cells(&self) -> Vec<String> {
        let name = self.secret.name.name().to_owned();
        let Some(current) = self.row.at(Stage::Current) else {
            let first = "no store holds a value yet; its first rotation makes one";
            return vec![name, "-".into(), first.into()];
        };
        let age = match self.row.rotated_at {
            Some(at) => format!("made {}", words::when(at)),
            None => "age unknown".into(),
        };
        let due = self.due_at().map_or("never due".into(), |at| format!("due {}", words::when(at)));
        // An id matters only to an issuer that ends versions by it.
        let facts = &self.plan.issuer.facts;
        let id = match &current.issued {
            Some(issued) => format!("its issuer calls it {issued}"),
            None if facts.destroy || facts.suspend => {
                "its id at the issuer is not known: name it before it is to be ended".into()
            }
            None => String::new(),
        };
        vec![name, current.version.to_string(), age, due, id]
    }

    fn json(&self) -> Value {
        let current = self.row.at(Stage::Current);
        json!({
            "secret": self.secret.name,
            "version": current.map(|current| current.version),
            "issued": current.and_then(|current| current.issued.as_ref()),
            "rotated_at": self.row.rotated_at.map(words::rfc3339),
            "due_at": self.due_at().map(words::rfc3339),
        })
    }
}

/// Shows what is about to be adopted: how old each one is, when it is due first, and where else its value stands.
async fn tell(config: &Config, taken: &[Taken<'_>], output: Output) {
    let cells: Vec<Vec<String>> = taken.iter().map(Taken::cells).collect();
    if !cells.is_empty() {
        output.note(words::table(&cells, "  ").trim_end());
    }
    let copies = Copies::of_same_name(config, taken.iter().map(|one| one.secret)).await;
    for one in taken {
        let name = &one.secret.name;
        one.notes.iter().for_each(|note| output.note(&format!("  {}: {note}", name.name())));
    }
    copies.tell(taken.iter().map(|one| one.secret), output);
}

/// When values were made, on the word of an operator.
struct Ages {
    of_all: Option<Timestamp>,
    of_one: Vec<(String, Timestamp)>,
}

impl Ages {
    fn of(words: &[String], secrets: &[&Secret]) -> Result<Self, Failure> {
        let mut ages = Self { of_all: None, of_one: Vec::new() };
        for words in words {
            let Some((name, day)) = words.split_once('=') else {
                ages.of_all = Some(date(words)?);
                continue;
            };
            if !secrets.iter().any(|secret| secret.name.name() == name) {
                let failure = Failure::new(format!("`{name}` is not among the selected secrets"));
                return Err(failure.code(code::UNKNOWN_NAME));
            }
            ages.of_one.push((name.into(), date(day)?));
        }
        Ok(ages)
    }

    fn for_secret(&self, secret: &Secret) -> Option<Timestamp> {
        let own = self.of_one.iter().rev().find(|(name, _)| name == secret.name.name());
        own.map(|(_, at)| *at).or(self.of_all)
    }

    fn latest(&self) -> Option<Timestamp> {
        self.of_one.iter().map(|(_, at)| *at).chain(self.of_all).max()
    }
}

fn date(text: &str) -> Result<Timestamp, Failure> {
    let parsed = text
        .parse::<jiff::civil::Date>()
        .ok()
        .and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC).ok());
    let parsed = parsed.map(|zoned| Timestamp::from_millis(zoned.timestamp().as_millisecond()));
    parsed.ok_or_else(|| {
        Failure::new(format!("`{text}` is not a date"))
            .code(code::USAGE)
            .hint("write it as 2026-01-31")
    })
}
