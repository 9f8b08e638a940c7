//! The stand-in of a Kubernetes cluster: its API server.

pub mod fields;
pub mod kinds;
pub mod objects;
mod patch;
mod rules;
pub mod status;

pub use kinds::Kind;
pub use objects::{Deletion, Event, EventType, How, Key, Objects};
pub use status::Status;
