//! Connections to PostgreSQL, as its probe and its issuer have them.
//!
//! A server that is not on this machine is spoken to over TLS only, with a certificate that is accepted. What the server writes
//! may repeat a statement or a value, so an error is told by its code alone.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context as Polled, Poll};

use keywheel_driver::{CallError, Refusal, RefusalKind, SecretReference};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, NoTls, Socket};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::workload::compose_service::ContainersOf;
use crate::{Context, reference};

/// How a server is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// At the host and the port that the connection string names.
    #[default]
    Direct,
    /// In the container of a Compose service that publishes no port, at the container's own address on this machine. The
    /// connection string names the port inside.
    ComposeService(ContainersOf),
}

impl Reach {
    /// Whether it is left out of what is kept.
    pub(crate) fn is_direct(&self) -> bool {
        *self == Self::Direct
    }

    /// Makes relative paths begin at the folder of the configuration file.
    pub(crate) fn rooted(&self, context: &Context) -> Self {
        match self {
            Self::Direct => Self::Direct,
            Self::ComposeService(of) => Self::ComposeService(of.rooted(context)),
        }
    }
}

/// Returns where the one container of a service is.
async fn address(of: &ContainersOf) -> Result<IpAddr, CallError> {
    let found = of.all(&of.engine()).await?;
    let running: Vec<_> = found.iter().filter(|container| container.serves()).collect();
    let [only] = running.as_slice() else {
        let count = running.len();
        let message =
            format!("service `{}` has {count} running containers, and not one", of.service);
        return Err(Refusal::retry(RefusalKind::Unavailable, None, message).into());
    };
    only.address.ok_or_else(|| {
        let message =
            format!("the container of service `{}` has no address of its own", of.service);
        Refusal::operator(RefusalKind::Unsupported, message).into()
    })
}

/// Reads a connection string, finds the server, and decides whether it is spoken to over TLS.
///
/// # Errors
/// A refusal where it is none, where the server is not found, or where it is on another machine and without TLS.
pub(crate) async fn place(
    url: &SecretReference,
    reach: &Reach,
) -> Result<tokio_postgres::Config, CallError> {
    let value = reference::read(url).await?;
    let text = std::str::from_utf8(value.expose()).ok().map(str::trim);
    let place = text.and_then(|text| tokio_postgres::Config::from_str(text).ok());
    let no_place =
        || Refusal::operator(RefusalKind::Local, format!("{url} is no connection string"));
    let mut place = place.ok_or_else(no_place)?;
    if let Reach::ComposeService(of) = reach {
        let hosts = place.get_hosts().len();
        let address = address(of).await?;
        for _ in 0..hosts {
            place.hostaddr(address);
        }
    }
    let is_here = !reach.is_direct()
        || (!place.get_hosts().is_empty() && place.get_hosts().iter().all(is_here));
    match (is_here, place.get_ssl_mode()) {
        (true, SslMode::Prefer) => drop(place.ssl_mode(SslMode::Disable)),
        (false, SslMode::Prefer) => drop(place.ssl_mode(SslMode::Require)),
        (false, SslMode::Disable) => {
            let message = format!("{url} names another machine, and no TLS");
            return Err(Refusal::operator(RefusalKind::Unsupported, message).into());
        }
        _ => {}
    }
    Ok(place)
}

/// Decides whether a further host of a server is spoken to over TLS: another machine always is.
pub(crate) fn secured(host: &str, mode: SslMode) -> SslMode {
    match is_here(&Host::Tcp(host.to_owned())) {
        true => mode,
        false => SslMode::Require,
    }
}

/// Why there is no connection.
pub(crate) enum Failed {
    /// What is wrong on this side.
    Here(Refusal),
    /// What the server or the network said.
    There(tokio_postgres::Error),
}

impl Failed {
    pub(crate) fn in_words(&self) -> String {
        match self {
            Self::Here(refusal) => refusal.message.clone(),
            Self::There(error) => in_words(error),
        }
    }
}

/// Checks that a place can be spoken to as it wants.
///
/// # Errors
/// A refusal where nobody is known who may sign the server's certificate.
pub(crate) fn can_secure(place: &tokio_postgres::Config, ca: Option<&Path>) -> Result<(), Refusal> {
    if place.get_ssl_mode() == SslMode::Disable { Ok(()) } else { tls(ca).map(drop) }
}

/// Logs in. The connection ends when the client is dropped.
pub(crate) async fn connect(
    place: &tokio_postgres::Config,
    ca: Option<&Path>,
) -> Result<Client, Failed> {
    if place.get_ssl_mode() == SslMode::Disable {
        let (client, connection) = place.connect(NoTls).await.map_err(Failed::There)?;
        tokio::spawn(connection);
        return Ok(client);
    }
    let tls = tls(ca).map_err(Failed::Here)?;
    let (client, connection) = place.connect(tls).await.map_err(Failed::There)?;
    tokio::spawn(connection);
    Ok(client)
}

fn tls(ca: Option<&Path>) -> Result<MakeTls, Refusal> {
    let unread = |what: &str| Refusal::operator(RefusalKind::Local, what);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider knows the protocols");
    let config = match ca {
        Some(ca) => config.with_root_certificates(roots(ca).ok_or_else(|| {
            unread(&format!("`ca`: file `{}` holds no certificates", ca.display()))
        })?),
        None => config
            .with_platform_verifier()
            .map_err(|_| unread("this machine has no list of whom it trusts"))?,
    };
    Ok(MakeTls(TlsConnector::from(Arc::new(config.with_no_client_auth()))))
}

fn roots(file: &std::path::Path) -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).ok()? {
        roots.add(certificate.ok()?).ok()?;
    }
    (!roots.is_empty()).then_some(roots)
}

/// Whether what goes to a host stays on this machine.
pub(crate) fn is_here(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) if name == "localhost" => true,
        Host::Tcp(name) => {
            name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    }
}

/// Names an error by its code, and says what the frequent ones mean.
pub(crate) fn coded(code: &str) -> String {
    let meaning = match code {
        "25006" => "nothing may be written here",
        "28000" => "the login is not let in",
        "28P01" => "wrong user or password",
        "3D000" => "no such database",
        "42501" => "not permitted",
        "53300" => "no connection is free",
        "55P03" => "something else held a lock for too long",
        "57P03" => "it is starting or ending",
        _ => return format!("the error {code}"),
    };
    format!("the error {code}: {meaning}")
}

/// Tells an error by the code of the server, or by what became of the connection.
pub(crate) fn in_words(error: &tokio_postgres::Error) -> String {
    use std::error::Error as _;
    let cause = error.source();
    let tls = cause.and_then(|cause| cause.downcast_ref::<io::Error>());
    let tls = tls.and_then(io::Error::get_ref).is_some_and(|inner| inner.is::<rustls::Error>());
    match error.code() {
        Some(code) => format!("the server answered with {}", coded(code.code())),
        None if tls => "no secure connection: the certificate or protocol was not accepted".into(),
        None if error.is_closed() => "the connection ended before the answer".into(),
        None => "no connection".into(),
    }
}

/// Makes connections that are secured by rustls, for any host.
struct MakeTls(TlsConnector);

impl MakeTlsConnect<Socket> for MakeTls {
    type Stream = Secured;
    type TlsConnect = Connect;
    type Error = io::Error;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Connect, io::Error> {
        let name = ServerName::try_from(domain.to_owned()).map_err(io::Error::other)?;
        Ok(Connect { connector: self.0.clone(), name })
    }
}

struct Connect {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl TlsConnect<Socket> for Connect {
    type Stream = Secured;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Secured>> + Send>>;

    fn connect(self, stream: Socket) -> Self::Future {
        Box::pin(async move { Ok(Secured(self.connector.connect(self.name, stream).await?)) })
    }
}

/// A secured connection. It is not bound to the login: the certificate says who the server is.
struct Secured(TlsStream<Socket>);

impl tokio_postgres::tls::TlsStream for Secured {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        polled: &mut Polled<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(polled, buffer)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        polled: &mut Polled<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(polled, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, polled: &mut Polled<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, polled: &mut Polled<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(polled)
    }
}
