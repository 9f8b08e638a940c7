//! The domain of keywheel: what a rotation is, and what it owes next.
//!
//! Start with [`rotation`]: the state machine. This crate does no I/O, reads no clock, draws no random numbers and never
//! awaits. Engine, simulator, `plan`, `status` and `doctor` run this same code.

pub mod batch;
mod brownout;
pub mod call;
pub mod due;
pub mod ending;
pub mod event;
pub mod evidence;
pub mod facts;
pub mod fingerprint;
pub mod forecast;
pub mod gate;
pub mod incident;
pub mod inventory;
pub mod phase;
pub mod plan;
pub mod planted;
pub mod rotation;
pub mod secret;
pub mod strategy;
pub mod time;
pub mod version;
pub mod walk;
