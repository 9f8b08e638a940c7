//! What the handlers of a twin share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fault::Faults;

/// The state of a twin behind one lock, and its faults.
pub(crate) struct Shared<S> {
    state: Arc<Mutex<S>>,
    pub(crate) faults: Faults,
}

impl<S> Clone for Shared<S> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state), faults: self.faults.clone() }
    }
}

impl<S> Shared<S> {
    pub(crate) fn new(state: S, faults: Faults) -> Self {
        Self { state: Arc::new(Mutex::new(state)), faults }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, S> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
