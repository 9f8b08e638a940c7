//! The example for Docker Compose, in real containers: its walk-through as printed, and its users while everything is rotated.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]
#![expect(clippy::print_stdout, reason = "a test says why it is skipped")]

mod database;
mod readme;
mod shop;
mod users;
mod walkthrough;
