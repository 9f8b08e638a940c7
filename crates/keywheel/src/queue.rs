//! Rotations that are asked for while the one before still retires a version: they wait, several requests as one, until
//! `keywheel resume` finds them free. Where policy says `next: close_window`, the rollback window is ended for them instead.

use keywheel_core::inventory::{Inventory, OpenRotation, Queued};
use keywheel_core::phase::Phase;
use keywheel_core::plan::RotationId;
use keywheel_core::secret::SecretName;
use keywheel_engine::run::Group;
use serde_json::{Value, json};

use crate::code;
use crate::config::{Config, Environment, Secret};
use crate::drive::Taken;
use crate::exit::Exit;
use crate::output::Failure;
use crate::prepare::{self, Request};
use crate::session::{Session, engine_failure, journal_failure};

/// What is asked for, by when it can begin.
pub(crate) struct Asked<'a> {
    /// Nothing stands before these.
    pub(crate) now: Vec<&'a Secret>,
    /// These can begin once a rollback window is closed.
    pub(crate) windows: Vec<&'a Secret>,
    /// These wait for a retirement.
    pub(crate) later: Vec<Waiting>,
}

/// A request that waits for a retirement.
pub(crate) struct Waiting {
    row: Inventory,
    after: RotationId,
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
            let is_asked = |name: &SecretName| secrets.iter().any(|asked| asked.name == *name);
            let closes =
                secret.rules.close_window && open.phase == Phase::RollbackWindow.to_string();
            if closes && group.is_some_and(|group| group.iter().all(is_asked)) {
                asked.windows.push(secret);
            } else {
                asked.later.push(Waiting { row, after: open.rotation });
            }
        }
        Ok(asked)
    }
}

fn still_moving(secret: &SecretName, open: &OpenRotation, no_way_back: bool) -> Failure {
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
    /// Puts the request into the queue; one that is there already stays as it is.
    pub(crate) async fn note(
        &self,
        session: &Session,
        because: Option<&str>,
    ) -> Result<(), Failure> {
        if self.row.queued.is_some() {
            return Ok(());
        }
        let queued = Queued { at: session.now(), because: because.map(str::to_owned) };
        let row = Inventory { queued: Some(queued), ..self.row.clone() };
        session.engine.note(row, "queued").await.map_err(engine_failure)
    }

    pub(crate) fn text(&self) -> String {
        let (secret, after) = (&self.row.secret, &self.after);
        format!(
            "{secret}: queued; it begins with the first `keywheel resume --all` after rotation {after} has ended\n  \
             not after all: keywheel cancel {secret}\n"
        )
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "secret": self.row.secret, "outcome": "queued", "after": self.after })
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
        let request = Request::at_a_steady_pace(queued.because.clone());
        let begun = async {
            let prepared = prepare::plans(session, config, &[secret], &request).await?;
            prepare::begin(session, &prepared).await
        };
        match begun.await {
            Ok(begun) => taken.extend(begun),
            Err(failure) => taken.failures.push(failure),
        }
    }
    Ok(taken)
}

/// Takes a request out of the queue; false where none was there.
pub(crate) async fn forget(session: &Session, secret: &SecretName) -> Result<bool, Failure> {
    let row = session.inventory(secret).await?.filter(|row| row.queued.is_some());
    let Some(row) = row else { return Ok(false) };
    let row = Inventory { queued: None, ..row };
    session.engine.note(row, "unqueued").await.map_err(engine_failure)?;
    Ok(true)
}
