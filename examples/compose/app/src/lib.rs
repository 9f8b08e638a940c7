//! A small web application as many teams have one: a backend in several replicas, an edge before them, a worker, and the
//! people who use it. It reads credentials as such programs do, and knows nothing of keywheel.
//!
//! The example for Docker Compose runs it in containers, and `keywheel demo` as plain processes. What depends on either is
//! left to them: where values come from, and where replicas are found.

pub mod backend;
pub mod deny_list;
pub mod edge;
pub mod load;
pub mod provider;
pub mod replicas;
pub mod token;
pub mod worker;

use std::time::Duration;

/// Makes a client that tries nothing twice and keeps at most so many unused connections to each server.
///
/// # Errors
/// Where the client cannot be made.
pub fn client(idle: usize) -> anyhow::Result<reqwest::Client> {
    // An error says that a provider is installed already.
    rustls::crypto::ring::default_provider().install_default().ok();
    let client = reqwest::Client::builder()
        .pool_max_idle_per_host(idle)
        .retry(reqwest::retry::never())
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .tls_certs_only([])
        .connect_timeout(Duration::from_secs(5))
        .timeout(Duration::from_secs(30));
    Ok(client.build()?)
}
