//! Whether an issuer still accepts what readers use: a leak scanner or an expiry may have ended it by itself (H95).
//!
//! The value is read from its stores and tried once. A refusal is told and not asked again, since an account may count wrong
//! attempts (H77); an answer that proves nothing says nothing.

use keywheel_core::facts::Authority;
use keywheel_core::fingerprint::Compared;
use keywheel_core::inventory::{Inventory, Version};
use keywheel_core::plan::Plan;
use keywheel_core::planted;
use keywheel_core::rotation::Rotation;
use keywheel_core::secret::Credential;
use keywheel_core::version::Stage;
use keywheel_driver::issuer::Verdict;
use keywheel_engine::held;

use crate::compile::Built;
use crate::session::Session;

/// Says that the issuer of a secret definitely refuses what readers use, and which version that is.
pub(crate) async fn in_use(
    session: &Session,
    plan: &Plan,
    built: &Built,
    row: Option<&Inventory>,
) -> Option<String> {
    if built.issuer.facts().authority != Authority::Issuer || planted!("dead_key_unnoticed") {
        return None;
    }
    let current = row.and_then(|row| row.at(Stage::Current));
    let held = held(session, plan, built, current).await?;
    let refused = matches!(built.issuer.verify(&held).await, Ok(Verdict::Refused));
    let what = current.map_or("the value".into(), |current| current.version.to_string());
    let issuer = &plan.issuer.bound.name;
    refused.then(|| format!("issuer `{issuer}` refuses {what} that readers use"))
}

/// An emergency ends what readers use, and is on its way to replace it: a refusal is what it is for.
pub(crate) fn is_being_replaced(open: &Rotation) -> bool {
    open.plan().is_emergency() && !open.rests() && !planted!("emergency_under_way_is_advised")
}

/// Returns the command that replaces what is refused.
pub(crate) fn then(plan: &Plan) -> String {
    format!("keywheel rotate {} --emergency --because …", plan.secret)
}

/// What the first store holds that holds the version in use; what somebody else wrote there is nobody's to try.
async fn held(
    session: &Session,
    plan: &Plan,
    built: &Built,
    current: Option<&Version>,
) -> Option<Credential> {
    let known = current.and_then(|current| current.fingerprint);
    let read = held::by_each(&built.stores, plan).await;
    let all: Vec<Credential> = read.into_iter().filter_map(|held| held.ok().flatten()).collect();
    all.iter().map(|held| held::completed(held, &all)).find(|held| {
        let seen = session.engine.fingerprint(&plan.stores, held);
        known.is_none_or(|known| known.compare(&seen) != Compared::Different)
    })
}
