//! Notifiers: how people are told of what happened to a rotation while nobody watched.

use async_trait::async_trait;
use keywheel_core::call::CallError;

/// A way to reach people. It is never waited for by a rotation, and what it does not take is offered again later.
#[async_trait]
pub trait Notifier: Send + Sync {
    /// Delivers one message, a JSON text without values, and returns once it is taken. One that is taken and whose answer is
    /// lost is delivered again: its `id` stays the same.
    async fn deliver(&self, message: &str) -> Result<(), CallError>;
}
