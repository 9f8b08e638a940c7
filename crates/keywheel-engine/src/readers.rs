//! Who reads what a rotation changes, as the workloads tell it: a reader that nobody listed would keep the old version, and
//! one that is listed and reads nothing proves nothing (H56).

use std::sync::Arc;

use keywheel_core::call::CallError;
use keywheel_core::plan::Plan;
use keywheel_core::planted;
use keywheel_driver::workload::Reader;
use keywheel_driver::{Finding, Severity, Store, Workload, slot};

/// Asks a workload whether it can be rolled, and who reads its stores beside it.
///
/// # Errors
/// [`CallError`] where it cannot be asked, and nothing else is found.
pub async fn preflight(
    plan: &Plan,
    stores: &[Arc<dyn Store>],
    workloads: &[Arc<dyn Workload>],
    workload: usize,
) -> Result<Vec<Finding>, CallError> {
    let mut findings = workloads[workload].preflight().await?;
    match compare(plan, stores, workloads, workload).await {
        Ok(compared) => findings.extend(compared),
        // What stands in the way of the roll is probably the reason, and says more.
        Err(_) if findings.iter().any(|finding| finding.severity == Severity::Blocks) => {}
        Err(error) => return Err(error),
    }
    Ok(findings)
}

/// Compares who takes up the slots of a workload's stores with who is listed, and asks the workload whether it takes them up.
///
/// # Errors
/// [`CallError`] where the workload cannot be asked.
pub async fn compare(
    plan: &Plan,
    stores: &[Arc<dyn Store>],
    workloads: &[Arc<dyn Workload>],
    workload: usize,
) -> Result<Vec<Finding>, CallError> {
    let read = plan.workloads[workload].reads.iter().map(|store| usize::from(*store));
    let names = read.flat_map(|store| {
        let container = stores[store].container();
        plan.stores[store].slots.iter().map(move |slot| slot::name(&container, &slot.address))
    });
    let names: Vec<String> = names.collect();
    let asked = &workloads[workload];
    let mut findings = asked.takes_up(&names).await?;
    let Some(readers) = asked.readers(&names).await? else { return Ok(findings) };
    if planted!("unlisted_readers_unseen") {
        return Ok(findings);
    }
    let own = asked.resource();
    let listed: Vec<String> = workloads.iter().map(|one| one.resource()).collect();
    for reader in &readers {
        if reader.resource == own {
            findings.extend(not_given(reader, &names));
        } else if !listed.contains(&reader.resource) {
            findings.push(not_listed(plan, reader));
        }
    }
    Ok(findings)
}

fn not_given(reader: &Reader, names: &[String]) -> Option<Finding> {
    let missing: Vec<&String> = names.iter().filter(|name| !reader.slots.contains(name)).collect();
    (!missing.is_empty()).then(|| {
        let message = format!(
            "{} is not given {}: correct what it reads, or take it out of `read_by`",
            reader.name,
            addresses(missing)
        );
        Finding::blocks(message)
    })
}

fn not_listed(plan: &Plan, reader: &Reader) -> Finding {
    let (name, slots, secret) = (&reader.name, addresses(&reader.slots), plan.secret.name());
    if reader.runs {
        Finding::blocks(format!(
            "{name} is given {slots} too and would keep the old version: list it in `read_by` of `{secret}`, or no longer give it to it"
        ))
    } else {
        Finding::note(format!(
            "{name} was given {slots} too: it does not run, and would keep the old version if it were started again as it is"
        ))
    }
}

fn addresses<'n>(names: impl IntoIterator<Item = &'n String>) -> String {
    let quoted = names.into_iter().map(|name| format!("`{}`", slot::parts(name).1));
    quoted.collect::<Vec<_>>().join(", ")
}
