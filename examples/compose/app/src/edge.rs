//! What stands before the backends: a reverse proxy that gives each request to the next replica that is healthy.
//!
//! It does what an ordinary one does and no more. It sends a request to another replica only where the first refused the
//! connection, before a byte was sent, and counts that. `/stats` shows the counts.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, Uri, header::AUTHORIZATION, header::CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::backend::{DRAINING, FORWARDED};
use crate::replicas::Replicas;

/// The time between two health checks of a replica.
const CHECK_EVERY: Duration = Duration::from_millis(50);

/// How many health checks without an answer make a replica unhealthy.
const SILENCES: u32 = 3;

/// How many unused connections to a replica are kept. A replica that drains closes each with its last answer.
const IDLE: usize = 16;

/// The longest body that is passed on.
const LONGEST_BODY: usize = 1 << 20;

/// A running edge; it ends when this is dropped.
pub struct Edge {
    state: Arc<Balancer>,
    address: SocketAddr,
    tasks: JoinSet<()>,
}

struct Balancer {
    upstreams: RwLock<Vec<Arc<Upstream>>>,
    turn: AtomicUsize,
    passed: AtomicU64,
    retried: AtomicU64,
    client: reqwest::Client,
}

struct Upstream {
    address: SocketAddr,
    healthy: AtomicBool,
}

impl Edge {
    /// Starts an edge before replicas.
    ///
    /// # Errors
    /// Where it cannot listen.
    pub fn start(listener: TcpListener, replicas: Replicas) -> anyhow::Result<Self> {
        let state = Arc::new(Balancer {
            upstreams: RwLock::new(Vec::new()),
            turn: AtomicUsize::new(0),
            passed: AtomicU64::new(0),
            retried: AtomicU64::new(0),
            client: crate::client(IDLE)?,
        });
        let address = listener.local_addr()?;
        let router = Router::new().route("/stats", get(stats)).fallback(pass);
        let router = router.with_state(state.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            axum::serve(listener, router).await.expect("the edge serves until it is dropped");
        });
        tasks.spawn(follow(state.clone(), replicas));
        Ok(Self { state, address, tasks })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns how many replicas are healthy.
    pub fn healthy(&self) -> usize {
        let is_healthy = |one: &&Arc<Upstream>| one.healthy.load(Ordering::Relaxed);
        self.state.upstreams().iter().filter(is_healthy).count()
    }

    /// Returns how many requests went to a second replica because the first refused the connection.
    pub fn retried(&self) -> u64 {
        self.state.retried.load(Ordering::Relaxed)
    }

    /// Serves until the future is dropped.
    ///
    /// # Errors
    /// Where it can serve no more.
    pub async fn ended(mut self) -> anyhow::Result<()> {
        match self.tasks.join_next().await {
            Some(ended) => Ok(ended?),
            None => Ok(()),
        }
    }
}

/// Keeps up with the replicas that there are. A new one is unhealthy until it says otherwise.
async fn follow(balancer: Arc<Balancer>, replicas: Replicas) {
    let mut checks = JoinSet::new();
    loop {
        let before = balancer.upstreams();
        let after = replicas.now().into_iter().map(|address| {
            before.iter().find(|one| one.address == address).cloned().unwrap_or_else(|| {
                let new = Arc::new(Upstream { address, healthy: AtomicBool::new(false) });
                checks.spawn(check(balancer.client.clone(), Arc::downgrade(&new)));
                new
            })
        });
        let after = after.collect();
        drop(before);
        *balancer.upstreams.write().unwrap_or_else(PoisonError::into_inner) = after;
        while checks.try_join_next().is_some() {}
        tokio::time::sleep(CHECK_EVERY).await;
    }
}

/// Checks one replica again and again until it is forgotten. A definite no counts at once; silence only when it lasts, since
/// a busy machine is silent as well.
async fn check(client: reqwest::Client, replica: Weak<Upstream>) {
    let mut silences = 0;
    while let Some(replica) = replica.upgrade() {
        let url = format!("http://{}/health", replica.address);
        let asked = client.get(&url).timeout(Duration::from_secs(1)).send().await;
        silences =
            if asked.as_ref().is_err_and(reqwest::Error::is_timeout) { silences + 1 } else { 0 };
        if !(1..SILENCES).contains(&silences) {
            let healthy = asked.is_ok_and(|answer| answer.status() == StatusCode::OK);
            replica.healthy.store(healthy, Ordering::Relaxed);
        }
        drop(replica);
        tokio::time::sleep(CHECK_EVERY).await;
    }
}

async fn stats(State(balancer): State<Arc<Balancer>>) -> Json<Value> {
    let upstreams = balancer.upstreams();
    let replica = |one: &Arc<Upstream>| json!({ "address": one.address, "healthy": one.healthy.load(Ordering::Relaxed) });
    Json(json!({
        "passed": balancer.passed.load(Ordering::Relaxed),
        "retried": balancer.retried.load(Ordering::Relaxed),
        "replicas": upstreams.iter().map(replica).collect::<Vec<_>>(),
    }))
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
    balancer.passed.fetch_add(1, Ordering::Relaxed);
    balancer.pass(&asked).await
}

struct Asked {
    method: Method,
    uri: Uri,
    authorization: Option<axum::http::HeaderValue>,
    body: Bytes,
}

impl Balancer {
    fn upstreams(&self) -> Vec<Arc<Upstream>> {
        self.upstreams.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn pass(&self, asked: &Asked) -> Response {
        let upstreams = self.upstreams();
        for attempt in 0..upstreams.len() {
            let Some(replica) = self.next(&upstreams) else { break };
            match self.send(replica, asked).await {
                Ok(answer) => return self.answer(replica, answer).await,
                Err(error) if error.is_connect() => replica.healthy.store(false, Ordering::Relaxed),
                Err(_) => return StatusCode::BAD_GATEWAY.into_response(),
            }
            if attempt + 1 < upstreams.len() {
                self.retried.fetch_add(1, Ordering::Relaxed);
            }
        }
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    }

    fn next<'a>(&self, upstreams: &'a [Arc<Upstream>]) -> Option<&'a Upstream> {
        let count = upstreams.len();
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut turns = (0..count).map(|step| &*upstreams[first.wrapping_add(step) % count]);
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
