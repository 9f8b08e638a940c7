//! The suites that every driver passes, by kind of driver.

pub mod issuer;
pub mod store;
