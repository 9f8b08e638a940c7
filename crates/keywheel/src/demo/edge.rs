//! What stands before the demo's backends: a reverse proxy that gives each request to the next replica that is healthy.
//!
//! It does what an ordinary one does and no more. It sends a request to another replica only where the first refused the
//! connection, before a byte was sent, and counts that.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, Uri, header::AUTHORIZATION, header::CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::backend::{DRAINING, FORWARDED};

/// The time between two health checks of a replica.
const CHECK_EVERY: Duration = Duration::from_millis(50);

/// How many health checks without an answer make a replica unhealthy.
const SILENCES: u32 = 3;

/// How many unused connections to a replica are kept. A replica that drains closes each with its last answer.
const IDLE: usize = 16;

/// The longest body that is passed on.
const LONGEST_BODY: usize = 1 << 20;

/// A running edge; it ends when this is dropped.
pub(crate) struct Edge {
    state: Arc<Balancer>,
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

struct Balancer {
    replicas: Vec<Upstream>,
    turn: AtomicUsize,
    retried: AtomicU64,
    client: reqwest::Client,
}

struct Upstream {
    address: SocketAddr,
    healthy: AtomicBool,
}

impl Edge {
    /// Starts an edge before replicas, on a port of its own.
    pub(crate) async fn start(replicas: &[SocketAddr]) -> anyhow::Result<Self> {
        let upstream =
            |address: &SocketAddr| Upstream { address: *address, healthy: AtomicBool::new(false) };
        let state = Arc::new(Balancer {
            replicas: replicas.iter().map(upstream).collect(),
            turn: AtomicUsize::new(0),
            retried: AtomicU64::new(0),
            client: super::client(IDLE)?,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let router = Router::new().fallback(pass).with_state(state.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            axum::serve(listener, router).await.expect("the edge serves until it is dropped");
        });
        for replica in 0..replicas.len() {
            tasks.spawn(check(state.clone(), replica));
        }
        Ok(Self { state, address, _tasks: tasks })
    }

    /// Returns where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns how many replicas are healthy.
    pub(crate) fn healthy(&self) -> usize {
        self.state.replicas.iter().filter(|replica| replica.healthy.load(Ordering::Relaxed)).count()
    }

    /// Returns how many requests went to a second replica because the first refused the connection.
    pub(crate) fn retried(&self) -> u64 {
        self.state.retried.load(Ordering::Relaxed)
    }
}

/// Checks one replica again and again. A definite no counts at once; silence only when it lasts, since a busy machine is
/// silent as well.
async fn check(balancer: Arc<Balancer>, replica: usize) {
    let replica = &balancer.replicas[replica];
    let url = format!("http://{}/health", replica.address);
    let mut silences = 0;
    loop {
        let asked = balancer.client.get(&url).timeout(Duration::from_secs(1)).send().await;
        silences =
            if asked.as_ref().is_err_and(reqwest::Error::is_timeout) { silences + 1 } else { 0 };
        if !(1..SILENCES).contains(&silences) {
            let healthy = asked.is_ok_and(|answer| answer.status() == StatusCode::OK);
            replica.healthy.store(healthy, Ordering::Relaxed);
        }
        tokio::time::sleep(CHECK_EVERY).await;
    }
}

async fn pass(State(balancer): State<Arc<Balancer>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, LONGEST_BODY).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let asked = Asked {
        authorization: parts.headers.get(AUTHORIZATION).cloned(),
        method: parts.method,
        uri: parts.uri,
        body,
    };
    balancer.pass(&asked).await
}

struct Asked {
    method: Method,
    uri: Uri,
    authorization: Option<axum::http::HeaderValue>,
    body: Bytes,
}

impl Balancer {
    async fn pass(&self, asked: &Asked) -> Response {
        for attempt in 0..self.replicas.len() {
            let Some(replica) = self.next() else { break };
            match self.send(replica, asked).await {
                Ok(answer) => return self.answer(replica, answer).await,
                Err(error) if error.is_connect() => replica.healthy.store(false, Ordering::Relaxed),
                Err(_) => return StatusCode::BAD_GATEWAY.into_response(),
            }
            if attempt + 1 < self.replicas.len() {
                self.retried.fetch_add(1, Ordering::Relaxed);
            }
        }
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    }

    fn next(&self) -> Option<&Upstream> {
        let count = self.replicas.len();
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut turns = (0..count).map(|step| &self.replicas[first.wrapping_add(step) % count]);
        turns.find(|replica| replica.healthy.load(Ordering::Relaxed))
    }

    async fn send(&self, replica: &Upstream, asked: &Asked) -> reqwest::Result<reqwest::Response> {
        let url = format!("http://{}{}", replica.address, asked.uri);
        let mut request = self.client.request(asked.method.clone(), url).body(asked.body.clone());
        request = request.header(FORWARDED, "127.0.0.1");
        if let Some(authorization) = &asked.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.send().await
    }

    async fn answer(&self, replica: &Upstream, answer: reqwest::Response) -> Response {
        // It is known earlier this way than by the next health check.
        if answer.headers().contains_key(DRAINING) {
            replica.healthy.store(false, Ordering::Relaxed);
        }
        let mut response = Response::builder().status(answer.status());
        if let Some(kind) = answer.headers().get(CONTENT_TYPE) {
            response = response.header(CONTENT_TYPE, kind);
        }
        match answer.bytes().await {
            Ok(body) => {
                response.body(Body::from(body)).expect("status and header come from an answer")
            }
            Err(_) => StatusCode::BAD_GATEWAY.into_response(),
        }
    }
}
