//! Leases: what their issuer ends by itself, and `keywheel resume --all` extends and replaces in time, without being asked.

use keywheel_core::due::{self, LeaseNeed};
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
        let extend = match need(config, secret, &row, session.now()) {
            None | Some(LeaseNeed::Nothing(_)) => continue,
            Some(LeaseNeed::Extend) => true,
            Some(LeaseNeed::Replace) => false,
        };
        let begun = async {
            let request = Request::of_a_lease(extend);
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

/// Returns what the lease of a secret needs; none where it has none, or a rotation of it is open.
pub(crate) fn need(
    config: &Config,
    secret: &Secret,
    row: &Inventory,
    now: Timestamp,
) -> Option<LeaseNeed> {
    if secret.strategy != Strategy::Lease || row.open.is_some() || row.queued.is_some() {
        return None;
    }
    let current = row.at(Stage::Current)?;
    let (created_at, expires_at) = (current.created_at?, current.expires_at?);
    let issuer = secret.issuer.build(&Context::at(&config.folder)).ok()?;
    let LeaseFacts { longest_life } = issuer.facts().lease?;
    let known = expires_at.since(created_at);
    // What is not known by its id cannot be extended.
    let longest = longest_life.filter(|_| current.issued.is_some()).unwrap_or(known);
    let move_ = secret.longest_move();
    Some(due::lease(created_at, expires_at, longest, move_, VISIT, now))
}
