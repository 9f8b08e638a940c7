//! Limits on calls at once, for each issuer, store and workload, so that one hung driver delays nobody else (H28).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use keywheel_core::planted;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many calls may run at once against one thing.
pub struct Limits {
    each: usize,
    gates: Mutex<BTreeMap<String, Arc<Semaphore>>>,
}

impl Limits {
    /// Allows `each` calls at once for each name.
    pub fn new(each: usize) -> Self {
        Self { each, gates: Mutex::default() }
    }

    /// Waits until nobody else works on one name: two rolls of one workload would take each other's replicas down.
    pub async fn enter_alone(&self, name: &str) -> OwnedSemaphorePermit {
        self.enter_as(&format!("{name}, alone"), 1).await
    }

    /// Waits for a place at one name. Only rotations that call the same thing ever wait for each other.
    pub async fn enter(&self, name: &str) -> OwnedSemaphorePermit {
        self.enter_as(name, self.each).await
    }

    async fn enter_as(&self, name: &str, places: usize) -> OwnedSemaphorePermit {
        let name = if planted!("one_gate_for_all") { "" } else { name };
        let gate = {
            let mut gates = self.gates.lock().expect("no holder of the lock panics");
            match gates.get(name) {
                Some(gate) => Arc::clone(gate),
                None => {
                    let gate = Arc::new(Semaphore::new(places));
                    gates.insert(name.to_owned(), Arc::clone(&gate));
                    gate
                }
            }
        };
        gate.acquire_owned().await.expect("gates are never closed")
    }
}
