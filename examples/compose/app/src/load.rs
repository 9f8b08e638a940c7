//! The people who use the application: requests at a steady pace that waits for no answer, and the count of what went wrong.
//!
//! Nothing is tried twice. The connections to the edge are several and are used again; it closes none of them. A reset, a
//! timeout, any answer but a success, and a refused token each count as failed. Every token that was issued is also shown to
//! every replica, at its own address, until it expires.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::backend::Session;
use crate::replicas::Replicas;

/// How long a request may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often each token is shown to each replica.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// How much life a token must have left to be shown: the time that the request may wait for the processor.
const LIFE_LEFT: Duration = Duration::from_millis(500);

/// Over how many connections at least the requests go.
const CONNECTIONS: usize = 8;

/// How many failures are kept in words.
const KEPT: usize = 20;

/// What was counted.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    /// For how long, in milliseconds.
    pub elapsed_ms: u64,
    /// Requests that were sent.
    pub requests: u64,
    /// Requests that failed, refused tokens among them.
    pub failed: u64,
    /// Valid tokens that a replica refused, behind the edge or at its own address.
    pub tokens_refused: u64,
    /// Answers of single replicas to tokens.
    pub tokens_shown: u64,
    /// Requests that the edge gave to a second replica, since the first refused the connection.
    pub retried_by_edge: u64,
    /// Logins.
    pub login: Tally,
    /// Requests with a token.
    pub me: Tally,
    /// Requests for which the backend asked the model.
    pub ask: Tally,
    /// The first failures, in words.
    pub failures: Vec<String>,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, failed, tokens_refused, tokens_shown, .. } = self;
        write!(
            f,
            "{} s: {requests} requests, {failed} failed; {tokens_shown} tokens shown to single replicas, {tokens_refused} refused",
            self.elapsed_ms / 1_000
        )
    }
}

/// What was counted of one kind of request.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Tally {
    /// Requests that were sent.
    pub requests: u64,
    /// Requests that failed.
    pub failed: u64,
}

/// What is asked for.
#[derive(Clone)]
pub struct Target {
    /// Where the edge listens, such as `edge:8080`.
    pub edge: String,
    /// The replicas themselves.
    pub replicas: Replicas,
    /// Whether the backend can ask a model.
    pub asks: bool,
}

/// A running load; it ends when this is dropped.
pub struct Load {
    generator: Arc<Generator>,
    pace: JoinSet<()>,
}

impl Load {
    /// Starts to send requests, so many each second.
    ///
    /// # Errors
    /// Where no client can be made.
    pub fn start(target: Target, each_second: u32) -> anyhow::Result<Self> {
        let generator = Arc::new(Generator {
            target,
            clients: (0..CONNECTIONS).map(|_| crate::client(1)).collect::<anyhow::Result<_>>()?,
            direct: crate::client(16)?,
            tokens: Mutex::new(Vec::new()),
            turn: AtomicUsize::new(0),
            counters: Counters::begin(),
        });
        let mut pace = JoinSet::new();
        pace.spawn(send_all(generator.clone(), Duration::from_secs(1) / each_second));
        Ok(Self { generator, pace })
    }

    /// Returns what was counted so far; requests that have no answer yet are not in it.
    pub fn counts(&self) -> Counts {
        self.generator.counters.read()
    }

    /// Sends no more, waits for what is under way, and returns what was counted.
    pub async fn stop(mut self) -> Counts {
        let stopped = Instant::now();
        self.pace.shutdown().await;
        // Each request holds on to the generator until it was counted.
        while Arc::strong_count(&self.generator) > 1 && stopped.elapsed() < PATIENCE + SHOW_EVERY {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.counts()
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Login,
    Me,
    Ask,
}

struct Generator {
    target: Target,
    /// Clients share no connections.
    clients: Vec<reqwest::Client>,
    direct: reqwest::Client,
    tokens: Mutex<Vec<Arc<Session>>>,
    turn: AtomicUsize,
    counters: Counters,
}

/// Sends by the clock: a request that is due is sent, whatever became of the ones before it.
async fn send_all(generator: Arc<Generator>, every: Duration) {
    let mut showing = JoinSet::new();
    let mut due = interval(every);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 0_u64.. {
        due.tick().await;
        let generator = generator.clone();
        let kind = generator.kind(number);
        // A login is followed by showing its token for as long as it lives; that ends with the load.
        if let Kind::Login = kind {
            showing.spawn(async move {
                if let Some(session) = generator.login(number).await {
                    generator.show(session).await;
                }
            });
        } else {
            tokio::spawn(async move { generator.send(kind, number).await });
        }
        while showing.try_join_next().is_some() {}
    }
}

impl Generator {
    /// One request in 50 is a login, one in five asks the model, the others show a token.
    fn kind(&self, number: u64) -> Kind {
        match number % 50 {
            0 => Kind::Login,
            n if n % 5 == 1 && self.target.asks => Kind::Ask,
            _ => Kind::Me,
        }
    }

    async fn login(&self, number: u64) -> Option<Arc<Session>> {
        let url = format!("http://{}/login", self.target.edge);
        let answer = async {
            self.client(number)
                .post(url)
                .timeout(PATIENCE)
                .send()
                .await?
                .error_for_status()?
                .json::<Session>()
                .await
        };
        match answer.await {
            Ok(session) => {
                self.counters.sent(Kind::Login, None);
                let session = Arc::new(session);
                self.tokens().push(session.clone());
                Some(session)
            }
            Err(error) => {
                self.counters.sent(Kind::Login, Some(&in_words(&error)));
                None
            }
        }
    }

    async fn send(&self, kind: Kind, number: u64) {
        let path = if let Kind::Ask = kind { "ask" } else { "me" };
        let mut request = self
            .client(number)
            .get(format!("http://{}/{path}", self.target.edge))
            .timeout(PATIENCE);
        let mut session = None;
        if let Kind::Me = kind {
            // Before the first login there is nothing to show.
            let Some(found) = self.token() else { return };
            request = request.bearer_auth(&found.token);
            session = Some(found);
        }
        match request.send().await {
            Ok(answer) if answer.status().is_success() => self.counters.sent(kind, None),
            Ok(answer) => self.refused(kind, answer.status().as_u16(), session.as_deref()),
            Err(error) => self.counters.sent(kind, Some(&in_words(&error))),
        }
    }

    fn refused(&self, kind: Kind, status: u16, session: Option<&Session>) {
        match (status, session) {
            // It expired under way.
            (401, Some(session)) if !has_life_left(session, Duration::ZERO) => {
                self.counters.sent(kind, None)
            }
            (401, Some(_)) => {
                self.counters.tokens_refused.fetch_add(1, Ordering::Relaxed);
                self.counters.sent(kind, Some("a valid token was refused"));
            }
            _ => self.counters.sent(kind, Some(&status.to_string())),
        }
    }

    /// Shows a token to every replica until it expires. A replica that is away is not asked; the edge knows it too.
    async fn show(&self, session: Arc<Session>) {
        while has_life_left(&session, LIFE_LEFT) {
            for replica in self.target.replicas.now() {
                self.show_to(replica, &session).await;
            }
            tokio::time::sleep(SHOW_EVERY).await;
        }
    }

    async fn show_to(&self, replica: SocketAddr, session: &Session) {
        let request = self.direct.get(format!("http://{replica}/me")).bearer_auth(&session.token);
        let Ok(answer) = request.timeout(PATIENCE).send().await else { return };
        self.counters.tokens_shown.fetch_add(1, Ordering::Relaxed);
        if answer.status().as_u16() == 401 && has_life_left(session, Duration::ZERO) {
            self.counters.tokens_refused.fetch_add(1, Ordering::Relaxed);
            self.counters.fail("a replica refused a valid token at its own address");
        }
    }

    fn client(&self, number: u64) -> &reqwest::Client {
        let turn = number % self.clients.len() as u64;
        &self.clients[turn as usize]
    }

    fn token(&self) -> Option<Arc<Session>> {
        let mut tokens = self.tokens();
        tokens.retain(|session| has_life_left(session, LIFE_LEFT));
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        (!tokens.is_empty()).then(|| tokens[turn % tokens.len()].clone())
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Session>>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Counters {
    began: Instant,
    kinds: [[AtomicU64; 2]; 3],
    failed: AtomicU64,
    tokens_refused: AtomicU64,
    tokens_shown: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Counters {
    fn begin() -> Self {
        Self {
            began: Instant::now(),
            kinds: Default::default(),
            failed: AtomicU64::new(0),
            tokens_refused: AtomicU64::new(0),
            tokens_shown: AtomicU64::new(0),
            failures: Mutex::new(Vec::new()),
        }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn sent(&self, kind: Kind, failure: Option<&str>) {
        let [requests, failed] = &self.kinds[kind as usize];
        requests.fetch_add(1, Ordering::Relaxed);
        if let Some(failure) = failure {
            failed.fetch_add(1, Ordering::Relaxed);
            self.fail(&format!("{kind:?}: {failure}"));
        }
    }

    fn fail(&self, failure: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() < KEPT {
            failures.push(format!("after {} ms: {failure}", self.elapsed_ms()));
        }
    }

    fn read(&self) -> Counts {
        let tally = |kind: Kind| {
            let [requests, failed] = &self.kinds[kind as usize];
            Tally {
                requests: requests.load(Ordering::Relaxed),
                failed: failed.load(Ordering::Relaxed),
            }
        };
        let (login, me, ask) = (tally(Kind::Login), tally(Kind::Me), tally(Kind::Ask));
        Counts {
            elapsed_ms: self.elapsed_ms(),
            requests: login.requests + me.requests + ask.requests,
            failed: self.failed.load(Ordering::Relaxed),
            tokens_refused: self.tokens_refused.load(Ordering::Relaxed),
            tokens_shown: self.tokens_shown.load(Ordering::Relaxed),
            retried_by_edge: 0,
            login,
            me,
            ask,
            failures: self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

fn has_life_left(session: &Session, left: Duration) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now + left < Duration::from_secs(session.expires_at)
}

fn in_words(error: &reqwest::Error) -> String {
    if error.is_connect() {
        "the connection was refused".into()
    } else if error.is_timeout() {
        "no answer in time".into()
    } else if let Some(status) = error.status() {
        status.as_u16().to_string()
    } else {
        "the connection ended".into()
    }
}
