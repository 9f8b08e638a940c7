//! The suites that every driver passes, by kind of driver.

pub mod attested;
pub mod faults;
pub mod issuer;
pub mod store;

/// What every secret of a test holds, so that a search for it finds whatever a test leaked (`cargo xtask leaks`).
pub const MARKER: &str = "kwcanary";

/// Makes a secret for a test: the marker, a name for people, and digits that no other call gives.
pub fn canary(name: &str) -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    format!("{MARKER}-{name}-{:016x}", RandomState::new().build_hasher().finish())
}
