//! Leases: what their issuer ends by itself, and `keywheel resume --all` extends and replaces in time, without being asked.

use std::time::Duration;

use futures_util::future::join_all;
use keywheel_core::due::{Lease, LeaseNeed};
use keywheel_core::inventory::{Inventory, Version};
use keywheel_core::strategy::Strategy;
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::Stage;
use keywheel_driver::CallError;
use keywheel_drivers::{Build, Context};

use crate::code;
use crate::config::{Config, Environment, Secret};
use crate::drive::Taken;
use crate::exit::Exit;
use crate::output::Failure;
use crate::prepare::{self, Request};
use crate::session::Session;

/// How far apart the visits are that the guide asks for.
const VISIT: Span = Span::minutes(5);

/// How long a look at what leases hang on may hold a visit up.
const LOOK: Duration = Duration::from_secs(10);

/// Begins what leases need now. One that cannot begin stops no other. Where a rotation is open already, its run extends the lease in
/// use, also while it is parked.
pub(crate) async fn begin(
    session: &Session,
    config: &Config,
    environment: &Environment,
) -> Result<Taken, Failure> {
    let leased = leased(session, environment).await?;
    let secrets: Vec<&Secret> = leased.iter().map(|(secret, _)| *secret).collect();
    let failures = kept_alive(config, &secrets).await;
    let mut taken = begin_due(session, config, environment).await?;
    taken.failures.splice(0..0, failures);
    Ok(taken)
}

/// Begins what leases need now, and leaves alone what they hang on.
pub(crate) async fn begin_due(
    session: &Session,
    config: &Config,
    environment: &Environment,
) -> Result<Taken, Failure> {
    let mut taken = Taken::default();
    for (secret, row) in leased(session, environment).await? {
        let Some(lease) = lease(config, secret, &row).filter(|_| row.open.is_none()) else {
            continue;
        };
        // What was asked for replaces it, as soon as that can begin.
        let is_queued = row.queued.as_ref().is_some_and(|queued| queued.after.is_none());
        let begun = async {
            let need = match is_queued {
                true => lease.need_until_replaced(session.now()),
                false => lease.need(secret.longest_move(), VISIT, session.now()),
            };
            let request = match need {
                LeaseNeed::Extend => Request::of_a_lease(true),
                LeaseNeed::Replace => Request::of_a_lease(false),
                LeaseNeed::Nothing(_) => match outdated(config, secret, &row).await? {
                    Some(because) => Request::of_a_lease(false).because(because),
                    None => return Ok(Taken::default()),
                },
            };
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

/// The secrets that are leased, with what is known of them.
async fn leased<'e>(
    session: &Session,
    environment: &'e Environment,
) -> Result<Vec<(&'e Secret, Inventory)>, Failure> {
    let mut leased = Vec::new();
    for secret in environment.secrets.iter().filter(|one| one.strategy == Strategy::Lease) {
        leased.extend(session.inventory(&secret.name).await?.map(|row| (secret, row)));
    }
    Ok(leased)
}

/// Keeps alive what leases hang on, whether any of them needs something now or not. Returns what failed.
async fn kept_alive(config: &Config, secrets: &[&Secret]) -> Vec<Failure> {
    let kept = secrets.iter().map(async |secret| {
        let kept = async {
            let issuer = secret.issuer.build(&Context::at(&config.folder))?;
            issuer.keep_alive().await
        };
        let kept = tokio::time::timeout(LOOK, kept).await;
        let error = match kept {
            Ok(Ok(())) => return None,
            Ok(Err(error)) => error,
            Err(_) => CallError::Unknown("it does not answer".into()),
        };
        Some(dies(secret, &error))
    });
    join_all(kept).await.into_iter().flatten().collect()
}

fn dies(secret: &Secret, error: &CallError) -> Failure {
    let message = format!("what the lease of `{}` hangs on cannot be kept alive", secret.name);
    let failure = Failure::new(message).code(code::ISSUER).exit(Exit::Refused);
    failure
        .caused_by(error.to_string())
        .now("nothing changed; the lease may end with it, before its own time")
        .hint("mend it, and run `keywheel resume --all` again")
}

/// Asks the issuer whether what it made the version in use with is no longer in use.
async fn outdated(
    config: &Config,
    secret: &Secret,
    row: &Inventory,
) -> Result<Option<String>, Failure> {
    let Some(issued) = row.at(Stage::Current).and_then(|current| current.issued.as_ref()) else {
        return Ok(None);
    };
    let Ok(issuer) = secret.issuer.build(&Context::at(&config.folder)) else { return Ok(None) };
    let outdated = issuer.outdated(issued).await;
    outdated.map_err(|error| prepare::unreachable(secret, &error))
}

/// How a lease stands, for people.
pub(crate) enum Stands {
    /// It is served in time.
    InTime,
    /// Nobody gave it what it needs.
    Late,
    /// It has ended.
    Ended,
}

/// Returns how the lease of a secret in use stands, and until when it runs; none where it has none.
pub(crate) fn stands(
    config: &Config,
    secret: &Secret,
    row: &Inventory,
    now: Timestamp,
) -> Option<(Stands, Timestamp)> {
    let lease = lease(config, secret, row)?;
    let stands = if now >= lease.expires_at {
        Stands::Ended
    } else if now >= lease.late_at(secret.longest_move(), VISIT) {
        Stands::Late
    } else {
        Stands::InTime
    };
    Some((stands, lease.expires_at))
}

/// Returns whether what readers use was leased by hand: nobody knows when it ends.
pub(crate) fn is_unknown(secret: &Secret, row: &Inventory) -> bool {
    let by_hand = |current: &Version| current.label.is_none() && current.expires_at.is_none();
    secret.strategy == Strategy::Lease && row.at(Stage::Current).is_some_and(by_hand)
}

fn lease(config: &Config, secret: &Secret, row: &Inventory) -> Option<Lease> {
    if secret.strategy != Strategy::Lease {
        return None;
    }
    let current = row.at(Stage::Current)?;
    let issuer = secret.issuer.build(&Context::at(&config.folder)).ok()?;
    Lease::of(current, issuer.facts().lease?)
}
