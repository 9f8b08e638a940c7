//! `cluster`: the one that an environment names is that of every driver in it which takes one and names none.
//!
//! It is put in its place in the tree, before types are read: so a plan carries the cluster with each driver, and an error or
//! `config show` names the line of the environment.

use keywheel_drivers::kubernetes::TAKE_A_CLUSTER;

use super::tree::{Key, Node, Value};

/// The key.
const KEY: &str = "cluster";

/// The key of a store that stands behind another one.
const UPSTREAM: &str = "upstream";

/// Returns the tree with the cluster of each environment in its drivers.
pub(crate) fn inherit(mut tree: Node) -> Node {
    let Value::Map(entries) = &mut tree.value else { return tree };
    match entries.iter_mut().find(|(key, _)| key.name == "environments") {
        Some((_, environments)) => {
            children(environments).for_each(|(_, environment)| hand_down(environment));
        }
        None => hand_down(&mut tree),
    }
    tree
}

fn hand_down(environment: &mut Node) {
    let own = environment.entries().iter().find(|(key, _)| key.name == KEY).cloned();
    let Some(own) = own else { return };
    let declared = children(environment)
        .filter(|(key, _)| matches!(key.name.as_str(), "stores" | "workloads"))
        .flat_map(|(_, declared)| children(declared));
    declared.for_each(|(_, driver)| give(driver, &own));
}

/// Gives it to a driver that takes one and names none, and to the store behind it.
fn give(driver: &mut Node, own: &(Key, Node)) {
    for (kind, settings) in children(driver) {
        if let Some((_, upstream)) = children(settings).find(|(key, _)| key.name == UPSTREAM) {
            give(upstream, own);
        }
        let names_one = settings.get(KEY).is_some();
        if let Value::Map(settings) = &mut settings.value
            && TAKE_A_CLUSTER.contains(&kind.name.as_str())
            && !names_one
        {
            settings.push(own.clone());
        }
    }
}

fn children(node: &mut Node) -> impl Iterator<Item = (&Key, &mut Node)> {
    let entries = match &mut node.value {
        Value::Map(entries) => entries.as_mut_slice(),
        _ => &mut [],
    };
    entries.iter_mut().map(|(key, child)| (&*key, child))
}
