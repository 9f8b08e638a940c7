//! One replica of the demo's backend: an ordinary program that reads an `.env` file when it starts, and knows nothing of keywheel.
//!
//! It signs sessions with `JWT_SECRET`, accepts a second secret in `JWT_SECRET_ALSO_ACCEPTED`, and answers questions with the
//! help of an OpenAI-shaped server. It will not start with values that it cannot use. When it is asked to end, it says so to
//! whoever checks its health, serves on until that was noticed, finishes what it is doing, and ends.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use keywheel_core::secret::SecretValue;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::Sha256;
use tokio::net::TcpSocket;
use tokio::signal::unix::{SignalKind, signal};

/// The header by which a replica that is about to end says so with each answer.
pub(super) const DRAINING: &str = "x-draining";

/// The header that the edge adds to what it passes on.
pub(super) const FORWARDED: &str = "x-forwarded-for";

/// How long a replica serves on at least after it was asked to end: many health checks of the demo's edge.
const DRAIN_FOR: Duration = Duration::from_millis(500);

/// How long nothing must have come through the edge before a replica closes its port; a busy edge notices late.
const QUIET_FOR: Duration = Duration::from_millis(200);

/// How long a replica waits for that.
const QUIET_WITHIN: Duration = Duration::from_secs(10);

/// How long requests that have begun may take after that.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// The longest `SESSION_PEPPER` that the backend starts with: the demo's way to a value that a workload refuses.
pub(super) const LONGEST_PEPPER: usize = 64;

/// The arguments: places, never values.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    env_file: PathBuf,
    #[arg(long)]
    port: u16,
    #[arg(long)]
    pid_file: PathBuf,
    #[arg(long)]
    openai_base: Option<String>,
    /// How long it takes to come up, as ordinary programs do.
    #[arg(long)]
    warm_up_ms: u64,
}

/// What a login answers.
#[derive(Serialize, Deserialize)]
pub(super) struct Session {
    /// The token.
    pub(super) token: String,
    /// When it ends, in seconds since 1970.
    pub(super) expires_at: u64,
}

/// Serves until it is asked to end.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut asked_to_end = signal(SignalKind::terminate())?;
    // Before anything else can fail: whoever watches should see that there was a start.
    super::write_whole(&args.pid_file, &std::process::id().to_string())?;
    let settings = Settings::read(&args.env_file)?;
    let backend = Arc::new(Backend {
        settings,
        openai_base: args.openai_base,
        client: super::client(0)?,
        draining: AtomicBool::new(false),
        asked_at: Mutex::new(Instant::now()),
    });
    tokio::time::sleep(Duration::from_millis(args.warm_up_ms)).await;
    // Restarts find connections of the former process on the port.
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, args.port)))?;
    let listener = socket.listen(1024)?;

    let (finish, finishing) = tokio::sync::oneshot::channel::<()>();
    let serving = axum::serve(listener, router(backend.clone())).with_graceful_shutdown(async {
        // A sender that is gone says the same.
        finishing.await.ok();
    });
    let serving = tokio::spawn(async move { serving.await });
    asked_to_end.recv().await;
    backend.draining.store(true, Ordering::Relaxed);
    tokio::time::sleep(DRAIN_FOR).await;
    // Past that limit the edge does not check health, and nothing helps.
    tokio::time::timeout(QUIET_WITHIN, backend.quiet()).await.ok();
    drop(finish);
    tokio::time::timeout(FINISH_WITHIN, serving).await.context("requests did not finish")???;
    Ok(())
}

struct Backend {
    settings: Settings,
    openai_base: Option<String>,
    client: reqwest::Client,
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
    let claims = json!({ "sub": "demo", "iat": now, "exp": expires_at });
    Json(Session { token: sign(&claims, &backend.settings.signs), expires_at })
}

async fn me(State(backend): State<Arc<Backend>>, headers: HeaderMap) -> StatusCode {
    let token =
        headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let accepted = token.is_some_and(|token| backend.settings.accepts(token, unix_seconds()));
    if accepted { StatusCode::OK } else { StatusCode::UNAUTHORIZED }
}

async fn ask(State(backend): State<Arc<Backend>>) -> StatusCode {
    match backend.answer().await {
        Some(status) if status.is_success() => StatusCode::OK,
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

    async fn answer(&self) -> Option<StatusCode> {
        let url = format!("{}/chat/completions", self.openai_base.as_ref()?);
        let key = std::str::from_utf8(self.settings.openai.as_ref()?.expose()).ok()?;
        let question = json!({ "model": "demo", "messages": [{ "role": "user", "content": "Are you there?" }] });
        let answer = self.client.post(url).bearer_auth(key).json(&question).send().await.ok()?;
        Some(answer.status())
    }
}

/// What the backend needs of its `.env` file.
struct Settings {
    signs: SecretValue,
    also_accepts: Option<SecretValue>,
    openai: Option<SecretValue>,
    token_life: Duration,
}

impl Settings {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = SecretValue::new(std::fs::read(path).context("the .env file cannot be read")?);
        Self::from_variables(parse_env(std::str::from_utf8(text.expose())?))
    }

    /// Checks the values; an error names the variable and never the value.
    fn from_variables(mut variables: BTreeMap<String, SecretValue>) -> anyhow::Result<Self> {
        let mut take = |name| variables.remove(name).filter(|value| !value.expose().is_empty());
        let signs = take("JWT_SECRET").context("JWT_SECRET is missing")?;
        ensure!(signs.expose().len() >= 32, "JWT_SECRET is shorter than 32 characters");
        if take("SESSION_PEPPER").is_some_and(|pepper| pepper.expose().len() > LONGEST_PEPPER) {
            bail!("SESSION_PEPPER is longer than {LONGEST_PEPPER} characters");
        }
        let life = take("JWT_LIFE_SECONDS").context("JWT_LIFE_SECONDS is missing")?;
        let life = std::str::from_utf8(life.expose())?
            .parse()
            .context("JWT_LIFE_SECONDS is not a number")?;
        Ok(Self {
            signs,
            also_accepts: take("JWT_SECRET_ALSO_ACCEPTED"),
            openai: take("OPENAI_API_KEY"),
            token_life: Duration::from_secs(life),
        })
    }

    fn accepts(&self, token: &str, now: u64) -> bool {
        let mut secrets = std::iter::once(&self.signs).chain(&self.also_accepts);
        secrets.any(|secret| verify(token, secret, now))
    }
}

/// Reads the lines of an `.env` file: `NAME=value`, with an optional `export`, quotes and comments.
fn parse_env(text: &str) -> BTreeMap<String, SecretValue> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let pairs =
        lines.filter_map(|line| line.strip_prefix("export ").unwrap_or(line).split_once('='));
    pairs
        .map(|(name, value)| (name.trim().to_owned(), SecretValue::new(unquote(value.trim()))))
        .collect()
}

fn unquote(value: &str) -> Vec<u8> {
    let quoted =
        |quote: char| value.strip_prefix(quote)?.rsplit_once(quote).map(|(inner, _)| inner);
    if let Some(inner) = quoted('\'') {
        return inner.into();
    }
    match quoted('"') {
        Some(inner) => {
            inner.replace("\\n", "\n").replace("\\\"", "\"").replace("\\\\", "\\").into()
        }
        None => value.split(" #").next().unwrap_or_default().trim_end().into(),
    }
}

/// Signs claims as a compact JWT (RFC 7519) with HS256.
fn sign(claims: &serde_json::Value, secret: &SecretValue) -> String {
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({ "alg": "HS256", "typ": "JWT" })), part(claims));
    let signature = mac(&signed, secret).finalize().into_bytes();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// Returns whether a token is signed with a secret, valid already and not expired.
fn verify(token: &str, secret: &SecretValue, now: u64) -> bool {
    let check = || {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        mac(signed, secret).verify_slice(&URL_SAFE_NO_PAD.decode(signature).ok()?).ok()?;
        let part = |text| {
            serde_json::from_slice::<serde_json::Value>(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
        };
        let (header, claims) = (part(header)?, part(claims)?);
        let begins = claims.get("nbf").map_or(Some(0), serde_json::Value::as_u64)?;
        Some(header["alg"] == "HS256" && begins <= now && now < claims["exp"].as_u64()?)
    };
    check().unwrap_or(false)
}

fn mac(text: &str, secret: &SecretValue) -> Hmac<Sha256> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.expose()).expect("HMAC takes a key of any length");
    mac.update(text.as_bytes());
    mac
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
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
            openai: None,
            token_life: Duration::ZERO,
        };
        assert!(settings.accepts(&token(b'a'), 999));
        assert!(settings.accepts(&token(b'b'), 999));
        assert!(!settings.accepts(&token(b'c'), 999));
        assert!(!settings.accepts(&token(b'a'), 1_000));
        assert!(!settings.accepts(&token(b'a').replace('.', ""), 999));
        assert!(!settings.accepts(&sign(&json!({ "exp": 1_000, "nbf": 999 }), &secret(b'a')), 998));
        assert!(!settings.accepts(&sign(&json!({}), &secret(b'a')), 1));
    }

    #[test]
    fn an_env_file_is_read_as_people_write_it() {
        let text = "# comment\nA=1\nexport B = two # more\nC='x # \"y'\nD=\"a\\\\b\\\"\"\n\nE=\nnot a line\nA=2\n";
        let variables = parse_env(text);
        let value = |name: &str| {
            variables.get(name).map(|v| String::from_utf8(v.expose().to_vec()).unwrap())
        };
        let expected = [("A", "2"), ("B", "two"), ("C", "x # \"y"), ("D", "a\\b\""), ("E", "")];
        for (name, expected) in expected {
            assert_eq!(value(name).as_deref(), Some(expected), "{name}");
        }
        assert_eq!(variables.len(), expected.len());
    }

    #[test]
    fn values_that_the_backend_cannot_use_are_named_and_not_shown() {
        let long = "canary".repeat(11);
        for text in [
            String::new(),
            "JWT_SECRET=canary\nJWT_LIFE_SECONDS=5".into(),
            format!("JWT_SECRET={long}\nJWT_LIFE_SECONDS=canary"),
            format!("JWT_SECRET={long}\nJWT_LIFE_SECONDS=5\nSESSION_PEPPER={long}"),
        ] {
            let error =
                Settings::from_variables(parse_env(&text)).err().expect("the value is refused");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
        let text = format!("JWT_SECRET={long}\nJWT_LIFE_SECONDS=5\nSESSION_PEPPER=short");
        assert!(Settings::from_variables(parse_env(&text)).is_ok());
    }
}
