//! `keywheel resume`, `undo`, `cancel` and `resolve`: what is asked of rotations that are open.

use std::sync::Arc;

use clap::{Args, ValueEnum};
use keywheel_core::event::{Event, Outcome};
use keywheel_core::planted;
use keywheel_core::secret::SecretName;
use keywheel_core::version::IssuedId;
use keywheel_engine::EngineError;
use keywheel_engine::run::Group;
use serde_json::json;

use crate::cli::Globals;
use crate::config::{Config, Environment};
use crate::drive::Taken;
use crate::exit::Exit;
use crate::output::{Failure, Format, Output};
use crate::progress::Progress;
use crate::session::{Session, engine_failure};
use crate::{code, confirm, drive, leases, notify, prepare, queue, session};

/// Which open rotations.
#[derive(Debug, Args)]
struct Open {
    /// Secrets, by name
    #[arg(value_name = "SECRET", required_unless_present = "all")]
    names: Vec<String>,
    /// Every secret with an open rotation
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// The environment
    #[arg(long, short, value_name = "ENV")]
    environment: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Let open rotations go on: after a crash, after a wait, or after you mended what one was parked for
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    open: Open,
    /// Stay until nothing is owed any more
    #[arg(long)]
    soak: bool,
    /// End the rollback window now, for this reason
    #[arg(long, value_name = "BECAUSE")]
    close_window: Option<String>,
    /// Override a closed gate, and name the use that was seen
    #[arg(long, value_name = "BECAUSE")]
    override_gates: Option<String>,
    /// Name the issuer's id of the version that is to be ended
    #[arg(long, value_name = "ID", conflicts_with = "all")]
    previous_id: Option<String>,
}

/// Turn rotations round: the previous version becomes, or stays, the current one
#[derive(Debug, Args)]
pub(crate) struct UndoArgs {
    #[command(flatten)]
    open: Open,
    /// Why, in your words
    #[arg(long, value_name = "TEXT", default_value = "an operator asked")]
    because: String,
    /// Stay until nothing is owed any more
    #[arg(long)]
    soak: bool,
}

/// Take back rotations that have changed nothing yet, or requests that wait in the queue
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    #[command(flatten)]
    open: Open,
}

/// Close parked rotations on your word
#[derive(Debug, Args)]
pub(crate) struct ResolveArgs {
    #[command(flatten)]
    open: Open,
    /// Record it as
    #[arg(long = "as", value_enum)]
    outcome: Resolved,
    /// What you did, and how you know
    #[arg(long, value_name = "TEXT")]
    because: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Resolved {
    /// The new version is current and the former one is ended
    Completed,
    /// The former version is current and the new one is ended
    Undone,
}

pub(crate) async fn resume(args: &ResumeArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let environment = args.open.chosen(&config)?;
    let output = globals.output();
    if args.open.all && Session::read(globals, &config, &environment.name)?.is_none() {
        return nothing(output);
    }
    let session =
        Session::act(globals, &config, &environment.name, Arc::new(Progress::new(output)))?;
    let go_on = async |group: &mut Group| {
        session.engine.extend_lease(group).await.map_err(engine_failure)?;
        is_reached(&session, group).await?;
        if !args.open.all {
            session.engine.let_go_on(group).await.map_err(engine_failure)?;
        }
        args.say(&session, group).await
    };
    let mut taken = args.open.take_up(&session, environment, go_on).await?;
    let chosen = |secret: &SecretName| args.open.takes(secret);
    taken.extend(queue::begin(globals, &session, &config, environment, chosen).await?);
    if args.open.all {
        taken.extend(leases::begin(&session, &config, environment).await?);
    }
    if taken.is_empty() {
        notify::deliver(&session, output).await;
        return nothing(output);
    }
    if !taken.has_emergency() || planted!("tokens_of_a_suspect_are_left") {
        return drive::run(&session, taken, &[], args.soak, output).await;
    }
    // What the suspect signed ends with it, and its readers wait for what its successor signs.
    let follow = async || leases::begin_due(&session, &config, environment).await;
    drive::run_followed(&session, taken, follow, args.soak, output).await
}

impl ResumeArgs {
    async fn say(&self, session: &Session, group: &mut Group) -> Result<(), Failure> {
        let mut events = Vec::new();
        if let Some(because) = &self.close_window {
            events.push(Event::WindowClosed { because: because.clone() });
        }
        if let Some(because) = &self.override_gates {
            events.push(Event::Overridden { because: because.clone() });
        }
        if let Some(id) = &self.previous_id {
            let version =
                group.rotations().find_map(|rotation| rotation.retiring().first().copied());
            if let Some(version) = version {
                events.push(Event::Identified { version, issued: IssuedId::new(id) });
            }
        }
        for event in events {
            session.engine.say(group, &event).await.map_err(engine_failure)?;
        }
        Ok(())
    }
}

/// Refuses, before a step is tried and refused, to go on with rotations whose workloads are reached at another place.
async fn is_reached(session: &Session, group: &Group) -> Result<(), Failure> {
    for rotation in group.rotations() {
        let row = session.inventory(&rotation.plan().secret).await?;
        prepare::check_pins(rotation.plan(), row.as_ref()).await?;
    }
    Ok(())
}

fn nothing(output: Output) -> Result<Exit, Failure> {
    match output.format {
        Format::Json => output.json(&json!({ "rotations": [] }))?,
        Format::Text if !output.quiet => output.text("nothing is owed\n")?,
        Format::Text => {}
    }
    Ok(Exit::Done)
}

pub(crate) async fn undo(args: &UndoArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let environment = args.open.chosen(&config)?;
    if let Some(session) = Session::read(globals, &config, &environment.name)? {
        args.open.can_undo(&session, environment).await?;
    }
    confirm::go_on(environment, "Turn these rotations round?", confirm::SAY_YES, args.open.yes)?;
    let output = globals.output();
    let session =
        Session::act(globals, &config, &environment.name, Arc::new(Progress::new(output)))?;
    let undo = async |group: &mut Group| {
        is_reached(&session, group).await?;
        session.engine.undo(group, &args.because).await.map_err(engine_failure)
    };
    let taken = args.open.take_up(&session, environment, undo).await?;
    drive::run(&session, taken, &[], args.soak, output).await
}

pub(crate) async fn cancel(args: &CancelArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let environment = args.open.chosen(&config)?;
    let output = globals.output();
    let session =
        Session::act(globals, &config, &environment.name, Arc::new(Progress::new(output)))?;
    let unqueued = args.open.unqueue(&session, environment).await?;
    if !unqueued.is_empty() {
        return tell_unqueued(&unqueued, output);
    }
    let cancel = async |group: &mut Group| {
        if let Some(begun) = group.rotations().find(|rotation| rotation.mint_attempts() > 0) {
            let secret = &begun.plan().secret;
            let failure =
                Failure::new(format!("`{secret}` cannot be cancelled: its mint was begun"));
            let failure = failure
                .code(code::NOT_NOW)
                .exit(Exit::Refused)
                .now("nothing changed by this command");
            return Err(match begun.way_back() {
                Ok(()) => failure.hint(format!("`keywheel undo {secret}` turns it round")),
                Err(_) => failure.hint(format!("`keywheel resume {secret}` lets it go on")),
            });
        }
        let because = "cancelled before anything was changed";
        session.engine.undo(group, because).await.map_err(engine_failure)
    };
    let taken = args.open.take_up(&session, environment, cancel).await?;
    match drive::run(&session, taken, &[], false, output).await? {
        Exit::Undone | Exit::Refused => Ok(Exit::Done),
        other => Ok(other),
    }
}

fn tell_unqueued(secrets: &[SecretName], output: Output) -> Result<Exit, Failure> {
    let told =
        |secret: &SecretName| format!("{secret}: no longer queued; nothing else was changed\n");
    match output.format {
        Format::Json => output.json(&json!({ "unqueued": secrets }))?,
        Format::Text => output.text(&secrets.iter().map(told).collect::<String>())?,
    }
    Ok(Exit::Done)
}

pub(crate) async fn resolve(args: &ResolveArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let environment = args.open.chosen(&config)?;
    confirm::go_on(
        environment,
        "Close these rotations on your word?",
        confirm::SAY_YES,
        args.open.yes,
    )?;
    let output = globals.output();
    let session =
        Session::act(globals, &config, &environment.name, Arc::new(Progress::new(output)))?;
    let outcome = match args.outcome {
        Resolved::Completed => Outcome::Completed,
        Resolved::Undone => Outcome::Undone,
    };
    let resolve = async |group: &mut Group| {
        session.engine.resolve(group, outcome, &args.because).await.map_err(engine_failure)
    };
    let taken = args.open.take_up(&session, environment, resolve).await?;
    match drive::run(&session, taken, &[], false, output).await? {
        Exit::Undone | Exit::Refused => Ok(Exit::Done),
        other => Ok(other),
    }
}

impl Open {
    fn chosen<'a>(&self, config: &'a Config) -> Result<&'a Environment, Failure> {
        let named = self
            .names
            .iter()
            .find_map(|name| name.split_once('@'))
            .map(|(_, environment)| environment);
        session::environment(config, self.environment.as_deref().or(named))
    }

    /// Whether a secret of this environment is meant.
    fn takes(&self, secret: &SecretName) -> bool {
        let is_it = |name: &String| name.split('@').next() == Some(secret.name());
        self.all || self.names.iter().any(is_it)
    }

    /// Takes the requests for these secrets out of the queue, and returns those that were there.
    async fn unqueue(
        &self,
        session: &Session,
        environment: &Environment,
    ) -> Result<Vec<SecretName>, Failure> {
        let mut unqueued = Vec::new();
        for secret in environment.secrets.iter().filter(|secret| self.takes(&secret.name)) {
            if queue::forget(session, &secret.name).await? {
                unqueued.push(secret.name.clone());
            }
        }
        Ok(unqueued)
    }

    /// Says, before anybody is asked, that none of the groups can turn round.
    async fn can_undo(&self, session: &Session, environment: &Environment) -> Result<(), Failure> {
        let mut refused = None;
        for group in self.groups(session, environment).await? {
            match session.no_way_back(&group).await? {
                None => return Ok(()),
                first => refused = refused.or(first),
            }
        }
        refused.map_or(Ok(()), |refusal| Err(engine_failure(EngineError::Refused(refusal))))
    }

    /// Takes over what is meant, and asks the same of each group.
    async fn take_up(
        &self,
        session: &Session,
        environment: &Environment,
        ask: impl AsyncFn(&mut Group) -> Result<(), Failure>,
    ) -> Result<Taken, Failure> {
        let mut taken = Taken::default();
        for secrets in self.groups(session, environment).await? {
            let asked = async {
                let mut group = session.engine.recover(&secrets).await.map_err(engine_failure)?;
                match ask(&mut group).await {
                    Ok(()) => Ok(group),
                    Err(failure) => {
                        session.engine.give_up(&group).await.map_err(engine_failure)?;
                        Err(failure)
                    }
                }
            };
            taken.add(asked.await)?;
        }
        Ok(taken)
    }

    /// Returns the groups that the named secrets are open in, as the journal has them, whether they are still declared or
    /// not (H21); members of a batch stay together.
    async fn groups(
        &self,
        session: &Session,
        environment: &Environment,
    ) -> Result<Vec<Vec<SecretName>>, Failure> {
        let mut open = session.engine.open_groups().await.map_err(engine_failure)?;
        if planted!("undeclared_is_skipped") {
            let declared: Vec<_> = environment.secrets.iter().map(|secret| &secret.name).collect();
            open.retain(|group| group.iter().all(|secret| declared.contains(&secret)));
        }
        if self.all {
            return Ok(open);
        }
        let mut chosen: Vec<Vec<SecretName>> = Vec::new();
        for name in &self.names {
            let name = name.split_once('@').map_or(name.as_str(), |(name, _)| name);
            let secret = SecretName::new(name, &environment.name)
                .map_err(|error| Failure::new(error.to_string()).code(code::USAGE))?;
            let Some(group) = open.iter().find(|group| group.contains(&secret)) else {
                let row = session.inventory(&secret).await?;
                if row.is_some_and(|row| row.queued.is_some()) {
                    continue;
                }
                return Err(engine_failure(keywheel_engine::EngineError::NotOpen(
                    secret.to_string(),
                )));
            };
            if !chosen.contains(group) {
                chosen.push(group.clone());
            }
        }
        Ok(chosen)
    }
}
