//! Connections to Redis: one node, one login, one question at a time, each with an end.
//!
//! What the server writes may repeat what it was sent, so an error is told by its code alone, and only by a code that is known
//! (H115). A server that is not on this machine is spoken to over TLS, unless the configuration says that nobody listens.

use std::path::{Path, PathBuf};
use std::time::Duration;

use keywheel_core::secret::SecretValue;
use keywheel_core::time::Span;
use keywheel_driver::{CallError, Refusal, RefusalKind};
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisConnectionInfo,
    RedisError, ServerErrorKind,
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::secured;

/// The codes that may stand in a message; any other text of an answer may hold a value.
const CODES: [&str; 14] = [
    "WRONGPASS",
    "NOAUTH",
    "NOPERM",
    "LOADING",
    "READONLY",
    "MISCONF",
    "OOM",
    "BUSY",
    "NOREPLICAS",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "MOVED",
    "EXECABORT",
    "ERR",
];

/// Where a server is, and how it is spoken to.
#[derive(Clone)]
pub(crate) struct Node {
    address: String,
    host: String,
    tls: bool,
    ca: Option<PathBuf>,
    within: Duration,
}

/// Who logs in.
pub(crate) struct Login<'a> {
    /// The user; the one that is called `default` where none is named.
    pub(crate) user: Option<&'a str>,
    /// The password.
    pub(crate) password: &'a SecretValue,
}

/// Why there is no answer, or which one there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The server was not reached, and nothing was asked of it.
    NotReached(&'static str),
    /// The question may have reached the server, and may still be answered.
    NoAnswer(&'static str),
    /// The server said no, with this code.
    Said(&'static str),
}

impl Trouble {
    /// Whether the server does not take the login.
    pub(crate) fn is_wrong_password(&self) -> bool {
        *self == Self::Said("WRONGPASS")
    }

    /// Puts the trouble with a node into words.
    pub(crate) fn in_words(&self, node: &Node) -> String {
        let address = node.address();
        match self {
            Self::NotReached(why) => format!("node `{address}` cannot be reached: {why}"),
            Self::NoAnswer(why) => format!("node `{address}` did not say what became of it: {why}"),
            Self::Said(code) => format!("node `{address}` answered {code}"),
        }
    }

    /// What it means that nothing was done because of it.
    pub(crate) fn refusal(&self, target: &str, node: &Node) -> Refusal {
        let message = format!("{target}: {}", self.in_words(node));
        match self {
            Self::Said("WRONGPASS" | "NOAUTH" | "NOPERM") => {
                Refusal::operator(RefusalKind::Permission, message)
            }
            Self::Said("READONLY" | "ERR") => Refusal::operator(RefusalKind::Unsupported, message),
            _ => Refusal::retry(RefusalKind::Unavailable, None, message),
        }
    }

    /// What it means for a call that changes something.
    pub(crate) fn of_change(&self, target: &str, node: &Node) -> CallError {
        match self {
            Self::NoAnswer(_) => CallError::Unknown(format!("{target}: {}", self.in_words(node))),
            _ => self.refusal(target, node).into(),
        }
    }
}

impl Node {
    /// Names a server by `host:port`. Without a word about TLS, it is spoken where the server is another machine.
    ///
    /// # Errors
    /// A refusal where the address is none.
    pub(crate) fn new(
        address: &str,
        tls: Option<bool>,
        ca: Option<&Path>,
        within: Span,
    ) -> Result<Self, Refusal> {
        let host = address.rsplit_once(':').and_then(|(host, port)| {
            port.parse::<u16>().ok().filter(|port| *port != 0)?;
            Some(host.trim_start_matches('[').trim_end_matches(']')).filter(|host| !host.is_empty())
        });
        let host = host.ok_or_else(|| unsupported("a node is written `host:port`"))?;
        let tls = tls.unwrap_or(ca.is_some() || !is_here(host));
        let (address, host, ca) = (address.into(), host.into(), ca.map(Path::to_owned));
        Ok(Self { address, host, tls, ca, within: within.into() })
    }

    /// Returns the address, for people.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Whether it is spoken to over TLS.
    #[cfg(test)]
    pub(crate) fn is_secured(&self) -> bool {
        self.tls
    }

    /// Connects and logs in.
    ///
    /// # Errors
    /// Never [`Trouble::NoAnswer`]: whatever goes wrong here, nothing was changed.
    pub(crate) async fn log_in(&self, login: Option<&Login<'_>>) -> Result<Link, Trouble> {
        let connect = async {
            let mut link = self.connect().await?;
            let Some(login) = login else { return Ok(link) };
            let mut auth = redis::cmd("AUTH");
            if let Some(user) = login.user {
                auth.arg(user);
            }
            link.ask::<()>(auth.arg(login.password.expose())).await?;
            Ok(link)
        };
        match tokio::time::timeout(self.within, connect).await {
            Ok(Err(Trouble::NoAnswer(why))) => Err(Trouble::NotReached(why)),
            Ok(answered) => answered,
            Err(_) => Err(Trouble::NotReached("no answer in time")),
        }
    }

    async fn connect(&self) -> Result<Link, Trouble> {
        let stream = TcpStream::connect(&self.address).await;
        let stream = stream.map_err(|_| Trouble::NotReached("no connection"))?;
        stream.set_nodelay(true).ok();
        if !self.tls {
            return self.speak(stream).await;
        }
        // Read for each connection, since most commands build a driver and ask nobody.
        let tls = secured::connector(self.ca.as_deref());
        let tls =
            tls.map_err(|_| Trouble::NotReached("nobody is known who may sign its certificate"))?;
        let name = ServerName::try_from(self.host.clone())
            .map_err(|_| Trouble::NotReached("no certificate can be for its name"))?;
        let secured = tls.connect(name, stream).await;
        let insecure = "no secure connection: the certificate or protocol was not accepted";
        self.speak(secured.map_err(|_| Trouble::NotReached(insecure))?).await
    }

    async fn speak(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Link, Trouble> {
        // The login is a question like any other, and so is the limit of each.
        let info = RedisConnectionInfo::default().set_skip_set_lib_name();
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let made = MultiplexedConnection::new_with_config(&info, stream, config).await;
        let (connection, serving) = made.map_err(trouble)?;
        tokio::spawn(serving);
        Ok(Link { connection, within: self.within })
    }
}

/// An open connection.
pub(crate) struct Link {
    connection: MultiplexedConnection,
    within: Duration,
}

impl Link {
    /// Asks one question.
    ///
    /// # Errors
    /// [`Trouble::Said`] where the server said no, [`Trouble::NoAnswer`] for all else.
    pub(crate) async fn ask<T: FromRedisValue>(&mut self, question: &Cmd) -> Result<T, Trouble> {
        let asked = question.query_async(&mut self.connection);
        settled(tokio::time::timeout(self.within, asked).await)
    }

    /// Asks several questions, one after another.
    ///
    /// # Errors
    /// As [`ask`](Self::ask), for the first that was answered with a no.
    pub(crate) async fn ask_each<T: FromRedisValue>(
        &mut self,
        questions: &Pipeline,
    ) -> Result<T, Trouble> {
        let asked = questions.query_async(&mut self.connection);
        settled(tokio::time::timeout(self.within, asked).await)
    }

    /// Makes several changes, with nothing of anybody else between them.
    ///
    /// # Errors
    /// [`Trouble::Said`] where none of them was made.
    pub(crate) async fn together<T: FromRedisValue>(
        &mut self,
        changes: &mut Pipeline,
    ) -> Result<T, Trouble> {
        let asked = changes.atomic().query_async(&mut self.connection);
        match tokio::time::timeout(self.within, asked).await {
            // One that failed in its turn does not take the others back.
            Ok(Err(error)) if is_of_server(&error) && !is_abort(&error) => {
                Err(Trouble::NoAnswer("only a part of a change was made"))
            }
            answered => settled(answered),
        }
    }
}

fn settled<T>(
    answered: Result<Result<T, RedisError>, tokio::time::error::Elapsed>,
) -> Result<T, Trouble> {
    match answered {
        Ok(answered) => answered.map_err(trouble),
        Err(_) => Err(Trouble::NoAnswer("no answer in time")),
    }
}

fn is_of_server(error: &RedisError) -> bool {
    error.clone().into_server_errors().is_some()
}

fn is_abort(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::ExecAbort)
}

fn trouble(error: RedisError) -> Trouble {
    let is_unreadable = matches!(error.kind(), ErrorKind::Parse | ErrorKind::UnexpectedReturnType);
    let errors = error.into_server_errors();
    let first = errors.as_ref().and_then(|errors| errors.first());
    match first {
        Some((_, error)) => {
            let known = CODES.into_iter().find(|known| *known == error.code());
            Trouble::Said(known.unwrap_or("an error that is not known"))
        }
        None if is_unreadable => Trouble::NoAnswer("something else than expected"),
        None => Trouble::NoAnswer("the connection ended"),
    }
}

/// Whether what goes to a host stays on this machine.
fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn unsupported(message: &str) -> Refusal {
    Refusal::operator(RefusalKind::Unsupported, message)
}

/// Reads one field of what `INFO` answers.
pub(crate) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':');
    info.lines().find_map(value).map(str::trim_end)
}
