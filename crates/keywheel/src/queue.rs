//! Rotations that are asked for while the one before still retires a version, or before another environment has gone first: they
//! wait, several requests as one, until `keywheel resume` finds them free. Where policy says `next: close_window`, the rollback
//! window is ended for them instead.

use keywheel_core::event::Outcome;
use keywheel_core::inventory::{Inventory, OpenRotation, Queued, Staged};
use keywheel_core::phase::Phase;
use keywheel_core::plan::RotationId;
use keywheel_core::planted;
use keywheel_core::secret::SecretName;
use keywheel_engine::run::Group;
use serde_json::{Value, json};

use crate::cli::Globals;
use crate::code;
use crate::config::{Config, Environment, Secret};
use crate::drive::Taken;
use crate::exit::Exit;
use crate::output::Failure;
use crate::prepare::{self, Prepared, Request};
use crate::session::{Session, engine_failure, journal_failure};
use crate::words;

/// What is asked for, by when it can begin.
pub(crate) struct Asked<'a> {
    /// Nothing stands before these.
    pub(crate) now: Vec<&'a Secret>,
    /// These can begin once a rollback window is closed.
    pub(crate) windows: Vec<&'a Secret>,
    /// These wait for a retirement.
    pub(crate) later: Vec<Waiting>,
}

/// A request that waits for a rotation: for the retirement before it, or for another environment.
pub(crate) struct Waiting {
    row: Inventory,
    after: RotationId,
    /// Why it waits in vain, where it does.
    in_vain: Option<String>,
}

impl<'a> Asked<'a> {
    /// Sorts the secrets of a request.
    ///
    /// # Errors
    /// [`Failure`] where one is still being moved to its next version: that must be let go on or turned round first.
    pub(crate) async fn of(session: &Session, secrets: &[&'a Secret]) -> Result<Self, Failure> {
        let groups = session.engine.open_groups().await.map_err(engine_failure)?;
        let mut asked = Self { now: Vec::new(), windows: Vec::new(), later: Vec::new() };
        for secret in secrets {
            let row = session.inventory(&secret.name).await?;
            let Some((row, open)) = row.and_then(|row| row.open.clone().map(|open| (row, open)))
            else {
                asked.now.push(secret);
                continue;
            };
            let group = groups.iter().find(|group| group.contains(&secret.name));
            if !open.retirement || open.parked.is_some() {
                let group = group.map(Vec::as_slice).unwrap_or_default();
                let no_way_back = session.no_way_back(group).await?.is_some();
                return Err(still_moving(&secret.name, &open, no_way_back));
            }
            // A window is closed for a whole group, so each member must have been asked for and let its window be closed.
            let may_close = |name: &SecretName| {
                secrets.iter().any(|asked| asked.name == *name && asked.rules.close_window)
            };
            let is_in_window = open.phase == Phase::RollbackWindow.to_string();
            if is_in_window && group.is_some_and(|group| group.iter().all(may_close)) {
                asked.windows.push(secret);
            } else {
                asked.later.push(Waiting::new(row, open.rotation));
            }
        }
        Ok(asked)
    }
}

pub(crate) fn still_moving(secret: &SecretName, open: &OpenRotation, no_way_back: bool) -> Failure {
    let on = format!("`keywheel resume {secret}` lets it go on");
    let hint = match no_way_back {
        true => on,
        false => format!("{on}, `keywheel undo {secret}` turns it round"),
    };
    let failure = Failure::new(format!("`{secret}` has an open rotation, {}", open.rotation));
    let failure = failure
        .code(code::OPEN_ALREADY)
        .exit(Exit::Refused)
        .now(format!("nothing changed; the open rotation is in phase {}", open.phase));
    failure.hint(hint)
}

impl Waiting {
    pub(crate) fn new(row: Inventory, after: RotationId) -> Self {
        Self { row, after, in_vain: None }
    }

    /// Says that what it waits for has come to nothing.
    pub(crate) fn in_vain(self, why: String) -> Self {
        Self { in_vain: Some(why), ..self }
    }

    pub(crate) fn secret(&self) -> &SecretName {
        &self.row.secret
    }

    fn staged(&self) -> Option<&Staged> {
        self.row.queued.as_ref()?.after.as_ref()
    }

    /// Puts the request into the queue; one that is there already stays as it is.
    pub(crate) async fn note(
        &self,
        session: &Session,
        because: Option<&str>,
    ) -> Result<(), Failure> {
        let because = because.map(str::to_owned);
        let queued = Queued { at: session.now(), because, after: None };
        session.queue(self.secret(), queued).await
    }

    pub(crate) fn text(&self) -> String {
        let (secret, after) = (&self.row.secret, &self.after);
        let begins = match (&self.in_vain, self.staged()) {
            (Some(why), _) => format!("still waits, and does not begin by itself: {why}"),
            (None, Some(staged)) => format!(
                "queued; it begins once `{}` has completed, rotation {after}\n  for cron: keywheel resume --all --quiet -e {}",
                staged.secret,
                secret.environment()
            ),
            (None, None) => format!(
                "queued; it begins with the first `keywheel resume --all` after rotation {after} has ended"
            ),
        };
        format!("{secret}: {begins}\n  not after all: keywheel cancel {secret}\n")
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "secret": self.row.secret,
            "outcome": "queued",
            "after": self.after,
            "after_secret": self.staged().map(|staged| &staged.secret),
            "in_vain": self.in_vain,
        })
    }
}

/// Ends the rollback windows before these secrets, and returns the rotations that do so.
pub(crate) async fn close_windows(
    session: &Session,
    secrets: &[&Secret],
) -> Result<Vec<Group>, Failure> {
    let mut closing = Vec::new();
    for group in session.engine.open_groups().await.map_err(engine_failure)? {
        if !secrets.iter().any(|secret| group.contains(&secret.name)) {
            continue;
        }
        let mut group = session.engine.recover(&group).await.map_err(engine_failure)?;
        let because = "the next rotation was asked for (`next: close_window`)".to_owned();
        let closed = keywheel_core::event::Event::WindowClosed { because };
        session.engine.say(&mut group, &closed).await.map_err(engine_failure)?;
        closing.push(group);
    }
    Ok(closing)
}

/// Begins what waited in the queue and is free now. One that cannot begin stays in the queue, and stops no other.
pub(crate) async fn begin(
    globals: &Globals,
    session: &Session,
    config: &Config,
    environment: &Environment,
    chosen: impl Fn(&SecretName) -> bool,
) -> Result<Taken, Failure> {
    let mut taken = Taken::default();
    for row in session.journal.inventories().await.map_err(journal_failure)? {
        let Some(queued) = row.queued.as_ref().filter(|_| row.open.is_none()) else { continue };
        let secret = environment.secrets.iter().find(|secret| secret.name == row.secret);
        let Some(secret) = secret.filter(|secret| chosen(&secret.name)) else { continue };
        let begun = async {
            if let Some(staged) = &queued.after {
                match staging(globals, config, staged).await? {
                    Staging::Completed => prepare::check_order(globals, config, secret).await?,
                    Staging::UnderWay(_) | Staging::Failed(_) => return Ok(Taken::default()),
                }
            }
            let request = Request::at_a_steady_pace(queued.because.clone());
            let prepared = prepare::plans(session, config, &[secret], &request).await?;
            check_approved(&prepared, queued)?;
            prepare::begin(session, &prepared).await
        };
        match begun.await {
            Ok(begun) => taken.extend(begun),
            Err(failure) => taken.failures.push(failure),
        }
    }
    Ok(taken)
}

/// A plan that was approved before its time is the one that is run, or none is (H127).
fn check_approved(prepared: &[Prepared], queued: &Queued) -> Result<(), Failure> {
    let Some(staged) = &queued.after else { return Ok(()) };
    let (approved, hash) = (&staged.approved, prepare::hash(prepared));
    if staged.approves(&prepared[0].plan) || planted!("unapproved_plan_follows") {
        return Ok(());
    }
    let secret = &prepared[0].plan.secret;
    let failure = Failure::new(format!(
        "the plan for `{secret}` is {} now, and {} was approved",
        hash.short(),
        approved.short()
    ));
    let failure = failure.code(code::PLAN_CHANGED).exit(Exit::Refused);
    Err(failure.now("nothing changed; the request still waits").hint(format!(
        "the configuration or the journal changed since: read the new plan, then run `keywheel rotate {secret}`, or take the request back with `keywheel cancel {secret}`"
    )))
}

/// How far the rotation is that a request for the next environment waits for.
pub(crate) enum Staging {
    /// It has completed.
    Completed,
    /// It goes on; the words say where it is.
    UnderWay(String),
    /// It came to nothing, or needs somebody; the words say why.
    Failed(String),
}

/// Looks up how far the rotation is that a request for the next environment waits for.
pub(crate) async fn staging(
    globals: &Globals,
    config: &Config,
    staged: &Staged,
) -> Result<Staging, Failure> {
    let Staged { secret, rotation, .. } = staged;
    let never =
        || Staging::Failed(format!("rotation {rotation} of `{secret}` is not in its journal"));
    let Some(session) = Session::read(globals, config, secret.environment())? else {
        return Ok(never());
    };
    if session.journal.records(rotation).await.map_err(journal_failure)?.is_empty() {
        return Ok(never());
    }
    let rotation = session.replay(rotation).await?;
    Ok(match (rotation.outcome(), rotation.parked()) {
        (Some(Outcome::Completed), _) => Staging::Completed,
        (Some(outcome), _) => Staging::Failed(format!("`{secret}` was {outcome}")),
        (None, Some(reason)) => {
            let why = words::parked(rotation.plan(), reason);
            Staging::Failed(format!("`{secret}` needs an operator: {why}"))
        }
        (None, None) => Staging::UnderWay(format!("`{secret}` is in phase {}", rotation.phase())),
    })
}

/// Takes a request out of the queue; false where none was there.
pub(crate) async fn forget(session: &Session, secret: &SecretName) -> Result<bool, Failure> {
    let mut was_there = false;
    let unqueue = |row: Option<Inventory>| {
        let row = row.filter(|row| row.queued.is_some())?;
        was_there = true;
        Some(Inventory { queued: None, ..row })
    };
    session.engine.note(secret, "unqueued", unqueue).await.map_err(engine_failure)?;
    Ok(was_there)
}
