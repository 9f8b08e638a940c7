//! One replica of the demo's backend, as a process that reads an `.env` file when it starts.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use keywheel_core::secret::SecretValue;
use keywheel_example::backend::{Settings, serve};
use tokio::net::TcpSocket;
use tokio::signal::unix::{SignalKind, signal};

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

/// Serves until it is asked to end.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut asked_to_end = signal(SignalKind::terminate())?;
    // Before anything else can fail: whoever watches should see that there was a start.
    super::write_whole(&args.pid_file, &std::process::id().to_string())?;
    let mut variables = read(&args.env_file)?;
    let settings = Settings::read(|name| variables.remove(name), args.openai_base)?;
    tokio::time::sleep(Duration::from_millis(args.warm_up_ms)).await;
    // Restarts find connections of the former process on the port.
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, args.port)))?;
    serve(settings, socket.listen(1024)?, async move {
        let _: Option<()> = asked_to_end.recv().await;
    })
    .await
}

fn read(path: &Path) -> anyhow::Result<BTreeMap<String, SecretValue>> {
    let text = SecretValue::new(std::fs::read(path).context("the .env file cannot be read")?);
    Ok(parse_env(std::str::from_utf8(text.expose())?))
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
