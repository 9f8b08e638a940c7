//! `sql`: a query that PostgreSQL answers, over a connection of its own.
//!
//! Each question logs in anew, so it proves the login too (H53). The connection string is read by reference, since a password
//! stands in it. A server that is not on this machine is spoken to over TLS only, with a certificate that is accepted. The query
//! runs in a transaction that may only read and is never committed.
//!
//! What the server writes may repeat the query or a value, so an error is told by its code alone.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::time::Span;
use keywheel_driver::duration::Duration;
use keywheel_driver::probe::{Asked, Health, Probe};
use keywheel_driver::{CallError, Refusal, RefusalKind, SecretReference};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_postgres::SimpleQueryMessage;

use crate::postgres::Reach;
use crate::{Build, Context, postgres, reference};

/// A query that PostgreSQL answers when all is well, over a connection of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the connection string is read: `postgresql://user:password@host:5432/database`.
    pub url: SecretReference,
    /// The query; it may only read.
    #[serde(default = "default_query")]
    pub query: String,
    /// What the first cell of the first row must be, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<String>,
    /// A file with the certificates of those who may sign the server's, instead of whom this machine trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// How the server is reached.
    #[serde(default, skip_serializing_if = "Reach::is_direct")]
    pub reach: Reach,
    /// How long connection and answer may take together before they count as red.
    #[serde(default = "default_within")]
    pub within: Duration,
}

fn default_query() -> String {
    "SELECT 1".into()
}

fn default_within() -> Duration {
    Span::seconds(10).into()
}

impl Build for Config {
    type Driver = dyn Probe;

    fn build(&self, context: &Context) -> Result<Arc<dyn Probe>, Refusal> {
        if self.query.trim().is_empty() {
            return Err(refused(RefusalKind::Unsupported, "`query` is empty"));
        }
        let url = reference::from_root(&self.url, context);
        let ca = self.ca.as_ref().map(|ca| context.root.join(ca));
        let reach = self.reach.rooted(context);
        Ok(Arc::new(Sql { config: Self { url, ca, reach, ..self.clone() } }))
    }
}

struct Sql {
    config: Config,
}

#[async_trait]
impl Probe for Sql {
    async fn ask(&self, _asked: &Asked) -> Result<Health, CallError> {
        let place = postgres::place(&self.config.url, &self.config.reach).await?;
        postgres::can_secure(&place, self.config.ca.as_deref())?;
        let within = self.config.within.span();
        let seen = tokio::time::timeout(within.into(), self.seen(&place)).await;
        Ok(match seen {
            Ok(Ok(())) => Health::Green,
            Ok(Err(why)) => Health::Red(why),
            Err(_) => Health::Red(format!("no answer within {within}")),
        })
    }
}

impl Sql {
    async fn seen(&self, place: &tokio_postgres::Config) -> Result<(), String> {
        let connected = postgres::connect(place, self.config.ca.as_deref()).await;
        let mut client = connected.map_err(|failed| failed.in_words())?;
        self.answer(&mut client).await
    }

    async fn answer(&self, client: &mut tokio_postgres::Client) -> Result<(), String> {
        let reading = client.build_transaction().read_only(true).start().await;
        let reading = reading.map_err(|error| postgres::in_words(&error))?;
        let answer = reading.simple_query(&self.config.query).await;
        let answer = answer.map_err(|error| postgres::in_words(&error))?;
        let Some(expected) = &self.config.expect else { return Ok(()) };
        let row = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let row = row.ok_or("the query gives no row")?;
        match row.try_get(0).ok().flatten() {
            Some(cell) if cell == expected => Ok(()),
            _ => Err("the first cell is not what is expected".into()),
        }
    }
}

fn refused(kind: RefusalKind, message: &str) -> Refusal {
    Refusal::operator(kind, message)
}

#[cfg(test)]
mod tests {
    use std::io;

    use keywheel_driver::conformance::canary;
    use keywheel_ground::postgres::Postgres;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use serde_json::json;
    use tempfile::TempDir;
    use tokio_postgres::config::SslMode;

    use super::*;
    use crate::probe::NOW;

    fn probe(folder: &TempDir, url: &str, changes: serde_json::Value) -> Arc<dyn Probe> {
        std::fs::write(folder.path().join("url"), url).unwrap();
        let mut config = json!({ "url": { "file": "url" }, "within": "60s" });
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let config: Config = serde_json::from_value(config).unwrap();
        config.build(&Context::at(folder.path())).unwrap()
    }

    fn pem(kind: &str, der: &[u8]) -> String {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
    }

    fn red(why: &str) -> Result<Health, CallError> {
        Ok(Health::Red(why.into()))
    }

    /// Returns none, and says why, where PostgreSQL cannot be had.
    fn server(password: &str, certificate: Option<(&str, &str)>) -> Option<Postgres> {
        match Postgres::start(password, certificate) {
            Ok(postgres) => Some(postgres),
            Err(why) => {
                use std::io::Write;
                writeln!(io::stdout(), "skipped: PostgreSQL ({why})").unwrap();
                None
            }
        }
    }

    #[tokio::test]
    async fn a_query_proves_the_login_and_what_it_finds() {
        let password = canary("sql");
        let Some(postgres) = server(&password, None) else { return };
        let folder = TempDir::new().unwrap();
        let url =
            format!("postgresql://postgres:{password}@127.0.0.1:{}/postgres", postgres.port());
        let ask = async |changes| probe(&folder, &url, changes).ask(&NOW).await;
        assert_eq!(ask(json!({})).await, Ok(Health::Green));
        assert_eq!(
            ask(json!({ "query": "SELECT 40 + 2", "expect": "42" })).await,
            Ok(Health::Green)
        );
        let other = red("the first cell is not what is expected");
        assert_eq!(ask(json!({ "query": "SELECT 1", "expect": "2" })).await, other);
        assert_eq!(ask(json!({ "query": "SELECT NULL", "expect": "" })).await, other);
        let none = json!({ "query": "SELECT 1 WHERE false", "expect": "1" });
        assert_eq!(ask(none).await, red("the query gives no row"));
        let late = json!({ "query": "SELECT pg_sleep(600)", "within": "200ms" });
        assert_eq!(ask(late).await, red("no answer within 200 ms"));
        let write = json!({ "query": "CREATE TABLE written (x int)" });
        assert_eq!(
            ask(write).await,
            red("the server answered with the error 25006: nothing may be written here")
        );

        let socket = postgres.socket().display().to_string().replace('/', "%2F");
        let url = format!("postgresql://postgres:{password}@{socket}:{}/postgres", postgres.port());
        assert_eq!(probe(&folder, &url, json!({})).ask(&NOW).await, Ok(Health::Green));
    }

    #[tokio::test]
    async fn h115_an_error_is_told_by_its_code_only() {
        let password = canary("sql");
        let Some(postgres) = server(&password, None) else { return };
        let folder = TempDir::new().unwrap();
        let wrong = canary("sql-wrong");
        let at = format!("127.0.0.1:{}", postgres.port());
        let ask = async |url: &str, query: String| {
            let answer = probe(&folder, url, json!({ "query": query })).ask(&NOW).await;
            let said = format!("{answer:?}");
            assert!(!said.contains(&password) && !said.contains(&wrong), "{said}");
            answer
        };
        let other = format!("postgresql://postgres:{wrong}@{at}/postgres");
        let login = ask(&other, "SELECT 1".into());
        assert_eq!(
            login.await,
            red("the server answered with the error 28P01: wrong user or password")
        );
        let right = format!("postgresql://postgres:{password}@{at}/postgres");
        let query = ask(&right, format!("SELECT '{wrong}'::int"));
        assert_eq!(query.await, red("the server answered with the error 22P02"));
        drop(postgres);
        assert_eq!(ask(&right, "SELECT 1".into()).await, red("no connection"));
    }

    #[tokio::test]
    async fn a_server_is_known_by_its_certificate() {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        let password = canary("sql");
        let both =
            (pem("CERTIFICATE", certificate.der()), pem("PRIVATE KEY", &key.serialize_der()));
        let Some(postgres) = server(&password, Some((&both.0, &both.1))) else { return };
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("ca.pem"), pem("CERTIFICATE", authority.der())).unwrap();
        std::fs::write(folder.path().join("empty.pem"), "").unwrap();
        let port = postgres.port();
        let at = |host: &str| {
            format!("postgresql://postgres:{password}@{host}:{port}/postgres?sslmode=require")
        };
        let ask = async |host, changes| probe(&folder, &at(host), changes).ask(&NOW).await;
        let query = "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let secure = json!({ "ca": "ca.pem", "query": query, "expect": "true" });
        assert_eq!(ask("localhost", secure.clone()).await, Ok(Health::Green));
        let insecure = red("no secure connection: the certificate or protocol was not accepted");
        assert_eq!(ask("127.0.0.1", secure).await, insecure, "the certificate is for another name");
        let unread = ask("localhost", json!({ "ca": "empty.pem" })).await;
        assert!(matches!(unread, Err(CallError::Refused(_))), "{unread:?}");
        let stranger = ask("localhost", json!({})).await;
        assert!(!matches!(stranger, Ok(Health::Green)), "{stranger:?}");
    }

    #[tokio::test]
    async fn another_machine_is_asked_over_tls_only() {
        let folder = TempDir::new().unwrap();
        let word = canary("sql");
        for (host, mode, wanted) in [
            ("127.0.0.1", "", Some(SslMode::Disable)),
            ("localhost", "?sslmode=require", Some(SslMode::Require)),
            ("%2Frun%2Fpostgresql", "", Some(SslMode::Disable)),
            ("db.internal", "", Some(SslMode::Require)),
            ("db.internal", "?sslmode=disable", None),
            ("localhost,db.internal", "?sslmode=disable", None),
        ] {
            let url = format!("postgresql://app:{word}@{host}/app{mode}");
            std::fs::write(folder.path().join("url"), url).unwrap();
            let config: Config =
                serde_json::from_value(json!({ "url": { "file": "url" } })).unwrap();
            let url = reference::from_root(&config.url, &Context::at(folder.path()));
            let place = postgres::place(&url, &Reach::Direct).await;
            assert_eq!(place.ok().map(|place| place.get_ssl_mode()), wanted, "{host} {mode}");
        }
        let refused =
            probe(&folder, &format!("postgresql://{word}@:x/"), json!({})).ask(&NOW).await;
        let said = format!("{refused:?}");
        assert!(said.contains("is no connection string") && !said.contains(&word), "{said}");
    }
}
