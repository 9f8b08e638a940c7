//! Tokens that are refused before they end: marks in Redis, which somebody else makes.
//!
//! Whoever cannot ask refuses nothing and accepts nothing: the backend answers that it is not available, so that a revoked
//! token opens nothing while Redis is away, and nobody is logged out by it.

use std::time::Duration;

use anyhow::{Context, bail};
use keywheel_core::secret::SecretValue;
use redis::aio::MultiplexedConnection;
use serde_json::Value;
use tokio::sync::Mutex;

/// What every key begins with, here and in `keywheel.yaml`.
const PREFIX: &str = "shop:deny:";

/// How long Redis may take.
const WITHIN: Duration = Duration::from_secs(1);

/// The marks.
pub struct DenyList {
    client: redis::Client,
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl DenyList {
    /// Takes the URL of the server; connects later.
    ///
    /// # Errors
    /// Where it is no such URL.
    pub fn new(url: &SecretValue) -> anyhow::Result<Self> {
        let text = std::str::from_utf8(url.expose()).context("REDIS_URL is not UTF-8")?;
        let Ok(client) = redis::Client::open(text) else { bail!("REDIS_URL is no URL of Redis") };
        Ok(Self { client, connection: Mutex::new(None) })
    }

    /// Returns whether a token with these claims is refused.
    ///
    /// # Errors
    /// Where the server gave no answer.
    pub async fn refuses(&self, claims: &Value) -> anyhow::Result<bool> {
        let text = |name: &str| claims[name].as_str();
        let (Some(id), Some(subject)) = (text("jti"), text("sub")) else { return Ok(true) };
        let keys =
            [format!("{PREFIX}jti:{id}"), format!("{PREFIX}sub:{subject}"), format!("{PREFIX}all")];
        let [token, of_subject, all] = self.marks(&keys).await?;
        let issued_at = claims["iat"].as_i64();
        let is_older = |mark: Option<String>| {
            let Some(before) = mark else { return false };
            let before = before.parse::<i64>().ok();
            before.zip(issued_at).is_none_or(|(before, issued_at)| issued_at < before)
        };
        Ok(token.is_some() || is_older(of_subject) || is_older(all))
    }

    /// Asks over the connection that there is; one that was closed meanwhile is made anew, once.
    async fn marks(&self, keys: &[String; 3]) -> anyhow::Result<[Option<String>; 3]> {
        let present = self.connection.lock().await.clone();
        if let Some(connection) = present
            && let Ok(marks) = ask(connection, keys).await
        {
            return Ok(marks);
        }
        let made = self.client.get_multiplexed_async_connection();
        let made = tokio::time::timeout(WITHIN, made).await??;
        *self.connection.lock().await = Some(made.clone());
        ask(made, keys).await
    }
}

async fn ask(
    mut connection: MultiplexedConnection,
    keys: &[String; 3],
) -> anyhow::Result<[Option<String>; 3]> {
    let mut question = redis::cmd("MGET");
    question.arg(keys);
    let asked = question.query_async(&mut connection);
    Ok(tokio::time::timeout(WITHIN, asked).await??)
}
