//! The examples: that for Docker Compose in real containers, and that for OpenBao beside real servers. Their walk-throughs run as
//! printed, and the users of the first one come while everything is rotated.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]
#![expect(clippy::print_stdout, reason = "a test says why it is skipped")]

mod database;
mod readme;
mod shop;
mod users;
mod vault;
mod walkthrough;
