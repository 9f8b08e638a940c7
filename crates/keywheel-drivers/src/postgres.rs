//! Connections to PostgreSQL, as its probe and its issuer have them.
//!
//! A server that is not on this machine is spoken to over TLS only, with a certificate that is accepted. What the server writes
//! may repeat a statement or a value, so an error is told by its code alone.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Mutex;
use std::task::{Context as Polled, Poll};
use std::time::{Duration, Instant};

use keywheel_driver::{CallError, Refusal, RefusalKind, SecretReference};
use rustls::pki_types::ServerName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, Socket};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::workload::compose_service::ContainersOf;
use crate::{Context, reference, secured};

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
    let is_here = !reach.is_direct() || are_here(&place);
    guarded(place, is_here).ok_or_else(|| {
        let message = format!("{url} names another machine, and no TLS");
        Refusal::operator(RefusalKind::Unsupported, message).into()
    })
}

/// Whether what goes to a place stays on this machine.
pub(crate) fn are_here(place: &tokio_postgres::Config) -> bool {
    !place.get_hosts().is_empty() && place.get_hosts().iter().all(is_here)
}

/// Decides whether a place is spoken to over TLS; none where it is on another machine, and TLS is switched off.
pub(crate) fn guarded(
    mut place: tokio_postgres::Config,
    is_here: bool,
) -> Option<tokio_postgres::Config> {
    match (is_here, place.get_ssl_mode()) {
        (true, SslMode::Prefer) => drop(place.ssl_mode(SslMode::Disable)),
        (false, SslMode::Prefer) => drop(place.ssl_mode(SslMode::Require)),
        (false, SslMode::Disable) => return None,
        _ => {}
    }
    Some(place)
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
    served_by(place, ca, |connection| drop(tokio::spawn(connection))).await
}

/// Connections over which nothing is under way, for the next who needs one like it: a login takes the server longer than most of
/// what is asked over it.
static WAITING: Mutex<Vec<Waiting>> = Mutex::new(Vec::new());

/// How many wait at most.
const MOST: usize = 8;

/// After how long one is not used any more: what lies between here and the server forgets a connection over which nothing goes.
/// It ends when the next one is kept or asked for.
const MAY_WAIT: Duration = Duration::from_secs(30);

/// After how long one is asked first whether it still answers.
const FRESH: Duration = Duration::from_secs(1);

/// How long that answer may take.
const ANSWERS: Duration = Duration::from_secs(2);

struct Waiting {
    place: tokio_postgres::Config,
    ca: Option<PathBuf>,
    client: Client,
    since: Instant,
}

impl Waiting {
    fn is_of_use(&self) -> bool {
        !self.client.is_closed() && self.since.elapsed() < MAY_WAIT
    }

    fn is_like(&self, place: &tokio_postgres::Config, ca: Option<&Path>) -> bool {
        self.place == *place && self.ca.as_deref() == ca
    }

    async fn answers(&self) -> bool {
        let asked = tokio::time::timeout(ANSWERS, self.client.check_connection());
        self.since.elapsed() < FRESH || matches!(asked.await, Ok(Ok(())))
    }
}

/// Keeps a connection for the next who needs one like it. Nothing may be under way over it, and no setting of its session
/// changed.
pub(crate) fn keep(place: tokio_postgres::Config, ca: Option<&Path>, client: Client) {
    let Ok(mut waiting) = WAITING.lock() else { return };
    waiting.retain(Waiting::is_of_use);
    if waiting.len() == MOST {
        waiting.remove(0);
    }
    let ca = ca.map(Path::to_owned);
    waiting.push(Waiting { place, ca, client, since: Instant::now() });
}

/// Takes a connection that waits and answers, or logs in. A connection is of use to those only who would log in with the very
/// same words.
pub(crate) async fn connect_or_take(
    place: &tokio_postgres::Config,
    ca: Option<&Path>,
) -> Result<Client, Failed> {
    if let Some(waiting) = take(place, ca) {
        if waiting.answers().await {
            return Ok(waiting.client);
        }
        // What ended the one has ended its like.
        while take(place, ca).is_some() {}
    }
    connect(place, ca).await
}

fn take(place: &tokio_postgres::Config, ca: Option<&Path>) -> Option<Waiting> {
    let mut waiting = WAITING.lock().ok()?;
    waiting.retain(Waiting::is_of_use);
    let last = waiting.iter().rposition(|one| one.is_like(place, ca))?;
    Some(waiting.remove(last))
}

/// Logs in and asks one question. The connection ends with the call, also where the answer never comes.
pub(crate) async fn ask(
    place: &tokio_postgres::Config,
    ca: Option<&Path>,
    question: &str,
) -> Result<Vec<SimpleQueryMessage>, Failed> {
    let mut connections = JoinSet::new();
    let client = served_by(place, ca, |connection| drop(connections.spawn(connection))).await?;
    client.simple_query(question).await.map_err(Failed::There)
}

/// What serves a connection as long as it lives.
type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

async fn served_by(
    place: &tokio_postgres::Config,
    ca: Option<&Path>,
    serve: impl FnOnce(Serving),
) -> Result<Client, Failed> {
    if place.get_ssl_mode() == SslMode::Disable {
        let (client, connection) = place.connect(NoTls).await.map_err(Failed::There)?;
        serve(Box::pin(async { connection.await.unwrap_or_default() }));
        return Ok(client);
    }
    let tls = tls(ca).map_err(Failed::Here)?;
    let (client, connection) = place.connect(tls).await.map_err(Failed::There)?;
    serve(Box::pin(async { connection.await.unwrap_or_default() }));
    Ok(client)
}

fn tls(ca: Option<&Path>) -> Result<MakeTls, Refusal> {
    secured::connector(ca).map(MakeTls)
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
