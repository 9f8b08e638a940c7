//! One replica of the backend.
//!
//! It signs sessions with `JWT_SECRET`, accepts a second secret in `JWT_SECRET_ALSO_ACCEPTED`, and answers questions with the
//! help of an OpenAI-shaped server. With `REDIS_URL`, it looks for each token whether that is refused before its end. It will not start with values that it cannot use. When it is asked to end, it says so to
//! whoever checks its health, serves on until that was noticed, finishes what it is doing, and ends.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use keywheel_core::secret::SecretValue;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::deny_list::DenyList;
use crate::token::{sign, unix_seconds, verify};

/// The header by which a replica that is about to end says so with each answer.
pub(crate) const DRAINING: &str = "x-draining";

/// The header that the edge adds to what it passes on.
pub(crate) const FORWARDED: &str = "x-forwarded-for";

/// How long a replica serves on at least after it was asked to end, unless `DRAIN_SECONDS` says so: many health checks of the demo's edge.
const DRAIN_FOR: Duration = Duration::from_millis(500);

/// How long nothing must have come through the edge before a replica closes its port; a busy edge notices late.
const QUIET_FOR: Duration = Duration::from_millis(200);

/// How long a replica waits for that.
const QUIET_WITHIN: Duration = Duration::from_secs(10);

/// How long requests that have begun may take after that.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// The longest `SESSION_PEPPER` that the backend starts with: a value that a workload refuses is had by making it longer.
pub const LONGEST_PEPPER: usize = 64;

/// How many characters a signing secret may have. Programs with such a limit of their own are not rare.
const SIGNING_SECRET: std::ops::RangeInclusive<usize> = 32..=64;

/// What a login answers.
#[derive(Serialize, Deserialize)]
pub(crate) struct Session {
    /// The token.
    pub(crate) token: String,
    /// When it ends, in seconds since 1970.
    pub(crate) expires_at: u64,
}

/// Serves until it is asked to end, and then until nobody comes any more.
///
/// # Errors
/// Where requests that had begun did not finish.
pub async fn serve(
    settings: Settings,
    listener: TcpListener,
    asked_to_end: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let backend = Arc::new(Backend {
        settings,
        draining: AtomicBool::new(false),
        asked_at: Mutex::new(Instant::now()),
    });
    let (finish, finishing) = tokio::sync::oneshot::channel::<()>();
    let serving = axum::serve(listener, router(backend.clone())).with_graceful_shutdown(async {
        // A sender that is gone says the same.
        finishing.await.ok();
    });
    let serving = tokio::spawn(async move { serving.await });
    asked_to_end.await;
    backend.draining.store(true, Ordering::Relaxed);
    tokio::time::sleep(backend.settings.drain_for).await;
    // Past that limit the edge does not check health, and nothing helps.
    tokio::time::timeout(QUIET_WITHIN, backend.quiet()).await.ok();
    drop(finish);
    tokio::time::timeout(FINISH_WITHIN, serving).await.context("requests did not finish")???;
    Ok(())
}

struct Backend {
    settings: Settings,
    draining: AtomicBool,
    /// When the last request came through the edge.
    asked_at: Mutex<Instant>,
}

fn router(backend: Arc<Backend>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/login", post(login))
        .route("/me", get(me))
        .route("/ask", get(ask))
        .layer(middleware::from_fn_with_state(backend.clone(), keep_watch))
        .with_state(backend)
}

async fn keep_watch(State(backend): State<Arc<Backend>>, request: Request, next: Next) -> Response {
    if request.headers().contains_key(FORWARDED) {
        *backend.asked_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
    let mut response = next.run(request).await;
    if backend.draining.load(Ordering::Relaxed) {
        response.headers_mut().insert(DRAINING, HeaderValue::from_static("1"));
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn health(State(backend): State<Arc<Backend>>) -> StatusCode {
    if backend.draining.load(Ordering::Relaxed) {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    }
}

async fn login(State(backend): State<Arc<Backend>>) -> Json<Session> {
    let now = unix_seconds();
    let expires_at = now + backend.settings.token_life.as_secs();
    let claims = json!({ "jti": fresh_id(), "sub": "demo", "iat": now, "exp": expires_at });
    Json(Session { token: sign(&claims, &backend.settings.signs), expires_at })
}

async fn me(State(backend): State<Arc<Backend>>, headers: HeaderMap) -> StatusCode {
    let token =
        headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let claims = token.and_then(|token| backend.settings.claims(token, unix_seconds()));
    let Some(claims) = claims else { return StatusCode::UNAUTHORIZED };
    let Some(list) = &backend.settings.deny_list else { return StatusCode::OK };
    match list.refuses(&claims).await {
        Ok(false) => StatusCode::OK,
        Ok(true) => StatusCode::UNAUTHORIZED,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// An id that no other token has.
fn fresh_id() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    hex::encode(bytes)
}

async fn ask(State(backend): State<Arc<Backend>>) -> StatusCode {
    match &backend.settings.model {
        Some(model) if model.answers().await => StatusCode::OK,
        _ => StatusCode::BAD_GATEWAY,
    }
}

impl Backend {
    async fn quiet(&self) {
        loop {
            let since = self.asked_at.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            if since >= QUIET_FOR {
                return;
            }
            tokio::time::sleep(QUIET_FOR - since).await;
        }
    }
}

/// What the backend needs to know.
pub struct Settings {
    signs: SecretValue,
    also_accepts: Option<SecretValue>,
    model: Option<Model>,
    token_life: Duration,
    drain_for: Duration,
    deny_list: Option<DenyList>,
}

impl Settings {
    /// Reads variables by name, and checks them.
    ///
    /// # Errors
    /// The name of a variable that cannot be used; never its value.
    pub fn read(
        mut variable: impl FnMut(&str) -> Option<SecretValue>,
        openai_base: Option<String>,
    ) -> anyhow::Result<Self> {
        let mut take = |name| variable(name).filter(|value| !value.expose().is_empty());
        let signs = take("JWT_SECRET").context("JWT_SECRET is missing")?;
        let also_accepts = take("JWT_SECRET_ALSO_ACCEPTED");
        let (shortest, longest) = (SIGNING_SECRET.start(), SIGNING_SECRET.end());
        for secret in std::iter::once(&signs).chain(&also_accepts) {
            ensure!(
                SIGNING_SECRET.contains(&secret.expose().len()),
                "a signing secret has not {shortest} to {longest} characters"
            );
        }
        ensure!(
            take("SESSION_PEPPER").is_none_or(|pepper| pepper.expose().len() <= LONGEST_PEPPER),
            "SESSION_PEPPER is longer than {LONGEST_PEPPER} characters"
        );
        let mut seconds = |name| {
            let number = |text: SecretValue| std::str::from_utf8(text.expose()).ok()?.parse().ok();
            let found = take(name).map(|text| number(text).map(Duration::from_secs));
            found.map(|it| it.with_context(|| format!("{name} is not a number"))).transpose()
        };
        let token_life = seconds("JWT_LIFE_SECONDS")?.context("JWT_LIFE_SECONDS is missing")?;
        let drain_for = seconds("DRAIN_SECONDS")?.unwrap_or(DRAIN_FOR);
        let key = take("OPENAI_API_KEY");
        let model = openai_base.zip(key).map(|(base, key)| Model::new(base, key)).transpose()?;
        let deny_list = take("REDIS_URL").map(|url| DenyList::new(&url)).transpose()?;
        Ok(Self { signs, also_accepts, model, token_life, drain_for, deny_list })
    }

    /// Returns the claims of a token that either secret signed.
    fn claims(&self, token: &str, now: u64) -> Option<Value> {
        let mut secrets = std::iter::once(&self.signs).chain(&self.also_accepts);
        secrets.find_map(|secret| verify(token, secret, now))
    }
}

/// A model behind an OpenAI-shaped interface, and the key to it.
pub struct Model {
    base: String,
    key: SecretValue,
    client: reqwest::Client,
}

impl Model {
    /// Returns the model at a base URL.
    ///
    /// # Errors
    /// Where no client can be made.
    pub fn new(base: String, key: SecretValue) -> anyhow::Result<Self> {
        Ok(Self { base, key, client: crate::client(0)? })
    }

    /// Asks something, and returns whether there was an answer.
    pub async fn answers(&self) -> bool {
        let Ok(key) = std::str::from_utf8(self.key.expose()) else { return false };
        let message = json!({ "role": "user", "content": "Are you there?" });
        let question = json!({ "model": "demo", "messages": [message] });
        let url = format!("{}/chat/completions", self.base);
        let answer = self.client.post(url).bearer_auth(key).json(&question).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(letter: u8) -> SecretValue {
        SecretValue::new(vec![letter; 32])
    }

    #[test]
    fn a_token_is_accepted_under_either_secret_until_it_expires() {
        let token = |letter| sign(&json!({ "exp": 1_000 }), &secret(letter));
        let settings = Settings {
            signs: secret(b'a'),
            also_accepts: Some(secret(b'b')),
            model: None,
            token_life: Duration::ZERO,
            drain_for: Duration::ZERO,
            deny_list: None,
        };
        let accepts = |token: &str, now| settings.claims(token, now).is_some();
        assert!(accepts(&token(b'a'), 999));
        assert!(accepts(&token(b'b'), 999));
        assert!(!accepts(&token(b'c'), 999));
        assert!(!accepts(&token(b'a'), 1_000));
        assert!(!accepts(&token(b'a').replace('.', ""), 999));
        assert!(!accepts(&sign(&json!({ "exp": 1_000, "nbf": 999 }), &secret(b'a')), 998));
        assert!(!accepts(&sign(&json!({}), &secret(b'a')), 1));
    }

    #[test]
    fn values_that_the_backend_cannot_use_are_named_and_not_shown() {
        let long = "canary".repeat(11);
        let good = &long[..60];
        let read = |variables: &[(&str, &str)]| {
            let value = |name: &str| {
                let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
                Some(SecretValue::new(value.as_bytes().to_vec()))
            };
            Settings::read(value, None)
        };
        let life = ("JWT_LIFE_SECONDS", "5");
        for refused in [
            &[][..],
            &[("JWT_SECRET", "canary"), life],
            &[("JWT_SECRET", long.as_str()), life],
            &[("JWT_SECRET", good), ("JWT_SECRET_ALSO_ACCEPTED", long.as_str()), life],
            &[("JWT_SECRET", good), ("JWT_LIFE_SECONDS", "canary")],
            &[("JWT_SECRET", good), life, ("SESSION_PEPPER", long.as_str())],
        ] {
            let error = read(refused).err().expect("the values are refused");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
        assert!(read(&[("JWT_SECRET", good), life, ("SESSION_PEPPER", "short")]).is_ok());
        assert!(read(&[("JWT_SECRET", good), life, ("JWT_SECRET_ALSO_ACCEPTED", "")]).is_ok());
    }
}
