//! `tcp`: a port that takes connections when all is well.

use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::time::Span;
use keywheel_driver::duration::Duration;
use keywheel_driver::probe::{Asked, Health, Probe};
use keywheel_driver::{CallError, Refusal, RefusalKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use crate::{Build, Context};

/// A port that takes connections when all is well; nothing is sent. It proves nothing of a credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name or number of the host, and the port: `db.internal:5432`, `[::1]:5432`.
    pub address: String,
    /// How long a connection may take before it counts as red.
    #[serde(default = "default_within")]
    pub within: Duration,
}

fn default_within() -> Duration {
    Span::seconds(5).into()
}

impl Build for Config {
    type Driver = dyn Probe;

    fn build(&self, _context: &Context) -> Result<Arc<dyn Probe>, Refusal> {
        Ok(Arc::new(Tcp { address: Address::parse(&self.address)?, within: self.within.span() }))
    }
}

/// A host and a port.
pub(super) struct Address {
    /// Without the brackets of an IPv6 number.
    pub(super) host: String,
    port: u16,
}

impl Address {
    /// Reads `host:port`.
    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        let parsed = text.rsplit_once(':').and_then(|(host, port)| {
            let number = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            let host = match number {
                Some(number) => number.parse::<std::net::Ipv6Addr>().ok()?.to_string(),
                None => name(host)?,
            };
            Some(Self { host, port: port.parse().ok().filter(|port| *port > 0)? })
        });
        let why = "`address` must be a host and a port: `db.internal:5432`, `[::1]:5432`";
        parsed.ok_or_else(|| Refusal::operator(RefusalKind::Unsupported, why))
    }

    /// Connects; the error says for people why not.
    pub(super) async fn connect(&self, within: Span) -> Result<TcpStream, String> {
        let connected = TcpStream::connect((self.host.as_str(), self.port));
        match tokio::time::timeout(within.into(), connected).await {
            Ok(connected) => {
                connected.map_err(|error| format!("`{}`: {}", self.host, error.kind()))
            }
            Err(_) => Err(format!("`{}`: no connection within {within}", self.host)),
        }
    }
}

fn name(host: &str) -> Option<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (!host.is_empty() && host.chars().all(fits)).then(|| host.to_owned())
}

struct Tcp {
    address: Address,
    within: Span,
}

#[async_trait]
impl Probe for Tcp {
    async fn ask(&self, _asked: &Asked) -> Result<Health, CallError> {
        Ok(match self.address.connect(self.within).await {
            Ok(_) => Health::Green,
            Err(why) => Health::Red(why),
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn ask(address: String) -> Health {
        let config = Config { address, within: Span::seconds(60).into() };
        config.build(&Context::at("/")).unwrap().ask(&crate::probe::NOW).await.unwrap()
    }

    #[tokio::test]
    async fn a_connection_is_the_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(ask(format!("127.0.0.1:{port}")).await, Health::Green);
        drop(listener);
        let red = Health::Red("`127.0.0.1`: connection refused".into());
        assert_eq!(ask(format!("127.0.0.1:{port}")).await, red);
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_is_red() {
        // A listener whose queue is full answers no more connections.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = Address::parse(&listener.local_addr().unwrap().to_string()).unwrap();
        let mut held = Vec::new();
        let why = loop {
            match address.connect(Span::millis(300)).await {
                Ok(stream) => held.push(stream),
                Err(why) => break why,
            }
        };
        assert_eq!(why, "`127.0.0.1`: no connection within 300 ms");
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for (good, host) in [("db.internal:5432", "db.internal"), ("[::1]:1", "::1")] {
            assert_eq!(Address::parse(good).unwrap().host, host);
        }
        for bad in ["", "db", "db:", ":1", "db:0", "db:65536", "::1:1", "https://db:1", "u:p@db:1"]
        {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }
}
