//! Probes: what is asked of a container, how often, and what follows from the answers.

use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::json::{each, number, text};
use super::pass::Pass;

/// One probe of one running container.
#[derive(Default)]
pub(super) struct Probe {
    next: Option<Instant>,
    passed: i64,
    failed: i64,
    asked: Option<Answer>,
    verdict: Option<bool>,
}

/// An answer that is still awaited.
pub(super) type Answer = Arc<Mutex<Option<bool>>>;

impl Probe {
    /// Returns what enough answers in a row have shown, or nothing yet.
    pub(super) fn verdict(
        &mut self,
        pass: &Pass<'_>,
        spec: &Value,
        since: Instant,
        ask: impl FnOnce(Duration) -> Answer,
    ) -> Option<bool> {
        let seconds = |at, default| pass.pace.seconds(number(spec, at).unwrap_or(default));
        let next = self.next.unwrap_or(since + seconds("/initialDelaySeconds", 0));
        if self.asked.is_none() && pass.now >= next {
            self.asked = Some(ask(seconds("/timeoutSeconds", 1)));
            self.next = Some(pass.now + seconds("/periodSeconds", 10));
        }
        match self
            .asked
            .as_ref()
            .map(|answer| *answer.lock().unwrap_or_else(PoisonError::into_inner))
        {
            Some(Some(answer)) => self.count(answer, spec),
            Some(None) => pass.wake_at(pass.now + Duration::from_millis(5)),
            None => {}
        }
        pass.wake_at(self.next.unwrap_or(next));
        self.verdict
    }

    fn count(&mut self, answer: bool, spec: &Value) {
        self.asked = None;
        (self.passed, self.failed) = match answer {
            true => (self.passed + 1, 0),
            false => (0, self.failed + 1),
        };
        if self.passed >= number(spec, "/successThreshold").unwrap_or(1) {
            self.verdict = Some(true);
        } else if self.failed >= number(spec, "/failureThreshold").unwrap_or(3) {
            self.verdict = Some(false);
        }
    }
}

/// Makes an answer that is known already.
pub(super) fn known(answer: bool) -> Answer {
    Arc::new(Mutex::new(Some(answer)))
}

/// Asks a container over the network, or by a command that is ready to run.
pub(super) fn ask(
    spec: &Value,
    container: &Value,
    address: Ipv4Addr,
    command: Option<std::process::Command>,
    within: Duration,
) -> Answer {
    let port = |action: &str| port(&spec[action]["port"], container);
    let path = text(spec, "/httpGet/path").to_owned();
    let (http, tcp) = (port("httpGet"), port("tcpSocket"));
    let answer = Answer::default();
    let answered = Arc::clone(&answer);
    tokio::spawn(async move {
        let asked = async {
            match (http, tcp, command) {
                (Some(port), ..) => http_get(address, port, &path).await.unwrap_or(false),
                (_, Some(port), _) => TcpStream::connect((address, port)).await.is_ok(),
                (.., Some(command)) => {
                    let mut command = tokio::process::Command::from(command);
                    command.kill_on_drop(true).status().await.is_ok_and(|status| status.success())
                }
                _ => false,
            }
        };
        let said = tokio::time::timeout(within, asked).await.unwrap_or(false);
        *answered.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
    });
    answer
}

/// Returns a port by its number or its name.
pub(super) fn port(written: &Value, container: &Value) -> Option<u16> {
    let named = |name| {
        let ports = each(container, "/ports").iter();
        ports
            .filter(|port| text(port, "/name") == name)
            .find_map(|port| number(port, "/containerPort"))
    };
    written
        .as_i64()
        .or_else(|| written.as_str().and_then(named))
        .and_then(|port| port.try_into().ok())
}

async fn http_get(address: Ipv4Addr, port: u16, path: &str) -> io::Result<bool> {
    let mut stream = TcpStream::connect((address, port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    Ok(matches!(answer[9], b'2' | b'3'))
}
