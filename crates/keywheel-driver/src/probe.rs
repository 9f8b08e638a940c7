//! Probes: a question put to the running system.

use async_trait::async_trait;
use keywheel_core::call::CallError;
use keywheel_core::time::Timestamp;

/// A question with two answers. No answer at all is a [`CallError`].
///
/// A probe has no memory: the process that asks it now need not be the one that asked before. What it compares with, it must
/// be able to find out at any time.
#[async_trait]
pub trait Probe: Send + Sync {
    /// Asks once.
    async fn ask(&self, asked: &Asked) -> Result<Health, CallError>;
}

/// When a probe is asked, by this machine's wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// When the rotation began: nothing of it reached any reader before. The journal keeps it.
    pub began_at: Timestamp,
    /// Now.
    pub now: Timestamp,
}

/// What a probe saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// As it should be.
    Green,
    /// Not as it should be; the words hold no value and no body.
    Red(String),
}
