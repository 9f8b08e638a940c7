//! The stand-in for the provider: the twin of OpenAI's API, and what a person would do in the provider's dashboard.
//!
//! It keeps everything in memory, and the admin key in a file of its container, for those who may enter there.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use keywheel_core::secret::SecretValue;
use keywheel_twins::openai::TwinOptions;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// How long the provider may take to start.
const STARTS_WITHIN: Duration = Duration::from_secs(10);

/// The time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The id of the one project.
const PROJECT: &str = "proj_shop";

/// Serves until the future is dropped, and leaves the admin key in a file.
///
/// # Errors
/// Where the file cannot be written.
pub async fn run(listener: TcpListener, admin_key: &Path) -> anyhow::Result<()> {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    let value = format!("sk-admin-{}", hex::encode(bytes));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(admin_key)?;
    file.write_all(value.as_bytes())?;
    let options = TwinOptions {
        admin_key: Some(value),
        project: Some(PROJECT.to_owned()),
        ..TwinOptions::default()
    };
    keywheel_twins::openai::run(options, listener).await;
    Ok(())
}

/// Reads the admin key, and waits for the provider to start where it is about to.
///
/// # Errors
/// Where it does not start.
pub async fn admin_key(file: &Path) -> anyhow::Result<SecretValue> {
    for _ in 0..STARTS_WITHIN.as_millis() / LOOK_EVERY.as_millis() {
        match std::fs::read(file) {
            Ok(value) if !value.is_empty() => return Ok(SecretValue::new(value)),
            _ => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
    bail!("the provider does not start")
}

/// Makes a key as a person would, and returns its value, which is shown once.
///
/// # Errors
/// Where the provider makes none.
pub async fn new_key(
    admin_key: &SecretValue,
    base: &str,
    name: &str,
) -> anyhow::Result<SecretValue> {
    let url = format!("{base}/organization/projects/{PROJECT}/service_accounts");
    let admin = std::str::from_utf8(admin_key.expose())?;
    let request = crate::client(0)?.post(url).bearer_auth(admin).json(&json!({ "name": name }));
    let made: Value = request.send().await?.error_for_status()?.json().await?;
    let value = made["api_key"]["value"].as_str().context("the provider made no key")?;
    Ok(SecretValue::new(value.as_bytes().to_vec()))
}
