//! Leases: what their issuer ends by itself, and `keywheel resume --all` extends and replaces in time, without being asked.

use keywheel_core::due::{Lease, LeaseNeed};
use keywheel_core::facts::LeaseFacts;
use keywheel_core::inventory::Inventory;
use keywheel_core::strategy::Strategy;
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::Stage;
use keywheel_drivers::{Build, Context};

use crate::config::{Config, Environment, Secret};
use crate::drive::Taken;
use crate::output::Failure;
use crate::prepare::{self, Request};
use crate::session::Session;

/// How far apart the visits are that the guide asks for.
const VISIT: Span = Span::minutes(5);

/// Begins what leases need now. One that cannot begin stops no other.
pub(crate) async fn begin(
    session: &Session,
    config: &Config,
    environment: &Environment,
) -> Result<Taken, Failure> {
    let mut taken = Taken::default();
    for secret in &environment.secrets {
        let Some(row) = session.inventory(&secret.name).await? else { continue };
        let Some(lease) = lease(config, secret, &row) else { continue };
        let begun = async {
            let request = match lease.need(secret.longest_move(), VISIT, session.now()) {
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

/// Returns how the lease of a secret stands, and until when it runs; none where it has none, or a rotation of it is open.
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

fn lease(config: &Config, secret: &Secret, row: &Inventory) -> Option<Lease> {
    if secret.strategy != Strategy::Lease || row.open.is_some() || row.queued.is_some() {
        return None;
    }
    let current = row.at(Stage::Current)?;
    let (created_at, expires_at) = (current.created_at?, current.expires_at?);
    let issuer = secret.issuer.build(&Context::at(&config.folder)).ok()?;
    let LeaseFacts { longest_life } = issuer.facts().lease?;
    // What is not known by its id cannot be extended.
    let longest_life = longest_life.filter(|_| current.issued.is_some());
    Some(Lease {
        created_at,
        extended_at: current.extended_at.unwrap_or(created_at),
        expires_at,
        longest_life: longest_life.unwrap_or(expires_at.since(created_at)),
    })
}
