//! Twins: small servers that speak a provider's wire format and misbehave as it does, for tests and the demo.
//!
//! A twin listens on the loopback address only, keeps its state in memory, and says in every answer, by the header
//! [`HEADER`], that it is one. How it misbehaves is a script: see [`fault`]. To add a twin, write its handlers and name its
//! operations; [`fault`] and [`server`] do the rest. What was asked and answered can be kept for a comparison with the provider's
//! specification: see [`record`].

pub mod anthropic;
pub mod aws;
pub mod azure;
pub mod fault;
pub mod gcp;
pub mod github;
pub mod gitlab;
pub mod kubernetes;
mod life;
pub mod openai;
pub mod openrouter;
pub mod posthog;
mod query;
pub mod record;
pub mod sentry;
pub mod server;
mod shared;

/// The header that every answer of a twin carries; its value is the name of the twin.
pub const HEADER: &str = "x-keywheel-twin";

/// Returns the milliseconds since the Unix epoch.
fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.expect("the clock is past 1970").as_millis())
        .expect("the year is before 292,000,000")
}

/// Returns so many random characters of an alphabet that has no more than 256.
fn random(alphabet: &[u8], length: usize) -> String {
    let mut bytes = vec![0; length];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes.iter().map(|byte| char::from(alphabet[usize::from(*byte) % alphabet.len()])).collect()
}
