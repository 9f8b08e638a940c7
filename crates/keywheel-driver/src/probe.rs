//! Probes: a question put to the running system.

use async_trait::async_trait;
use keywheel_core::call::CallError;

/// A question with two answers. No answer at all is a [`CallError`].
#[async_trait]
pub trait Probe: Send + Sync {
    /// Asks once.
    async fn ask(&self) -> Result<Health, CallError>;
}

/// What a probe saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// As it should be.
    Green,
    /// Not as it should be; the words hold no value and no body.
    Red(String),
}
