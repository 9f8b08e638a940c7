//! The demonstration's world under load, as real processes: what the count of failed requests is worth.
#![cfg(feature = "demo")]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests as well")]

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, header::AUTHORIZATION};
use axum::routing::post;
use serde_json::Value;
use tokio::process::{Child, Command};

/// Two worlds at once would take the processor from each other.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Serves chat completions to whoever shows a key.
async fn model() -> String {
    let answer = |headers: HeaderMap| async move {
        let key = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        if key.is_some_and(|key| key.len() == 64) {
            StatusCode::OK
        } else {
            StatusCode::UNAUTHORIZED
        }
    };
    let router = axum::Router::new().route("/v1/chat/completions", post(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    base
}

async fn world(folder: &Path, scenario: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keywheel"));
    command
        .args(["demo-world", "--openai-base", &model().await, "--scenario", scenario, "--folder"])
        .arg(folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
}

async fn report(scenario: &str) -> Value {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let output = world(folder.path(), scenario).await.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    assert_eq!(running(folder.path()), Vec::<String>::new(), "the world leaves no process behind");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Lists the processes of a world: each has its folder among its arguments.
fn running(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let entry = entry.ok()?;
        let arguments = std::fs::read(entry.path().join("cmdline")).ok()?;
        String::from_utf8_lossy(&arguments)
            .contains(folder)
            .then(|| entry.file_name().into_string().unwrap())
    });
    processes.collect()
}

fn number(report: &Value, of: &str) -> u64 {
    report["counts"][of].as_u64().unwrap()
}

fn assert_nothing_failed(report: &Value) {
    assert_eq!(report["counts"]["failures"], serde_json::json!([]), "{report}");
    assert_eq!((number(report, "failed"), number(report, "tokens_refused")), (0, 0), "{report}");
    assert!(number(report, "requests") * 1_000 >= number(report, "elapsed_ms") * 200, "{report}");
    for kind in ["login", "me", "ask"] {
        assert!(report["counts"][kind]["requests"].as_u64() > Some(0), "{report}");
    }
    assert!(number(report, "tokens_shown") > 0, "{report}");
}

#[tokio::test]
async fn h51_no_request_fails_while_replicas_are_restarted_one_by_one() {
    let report = report("one-by-one").await;
    assert_nothing_failed(&report);
    assert_eq!(report["exits"].as_array().unwrap().len(), 3, "{report}");
}

#[tokio::test]
async fn the_load_notices_when_all_replicas_are_restarted_at_once() {
    let report = report("all-at-once").await;
    assert_eq!(report["failed_before"], 0, "{report}");
    assert!(number(&report, "failed") > 0, "{report}");
}

#[tokio::test]
async fn no_request_fails_while_a_value_is_refused_and_taken_back() {
    let report = report("refused-value").await;
    assert_nothing_failed(&report);
    let exits = report["exits"].as_array().unwrap();
    assert!(exits.iter().any(|exit| exit["code"] == 1), "a backend refused the value: {report}");
    let replica = |exit: &Value| exit["replica"].as_u64().unwrap();
    assert!(
        exits.iter().filter(|exit| replica(exit) != 1).all(|exit| exit["code"] == 0),
        "{report}"
    );
}

#[tokio::test]
async fn a_world_that_is_killed_takes_its_processes_along() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let mut world = world(folder.path(), "one-by-one").await;
    while !(1..=3).all(|replica| folder.path().join(format!("backend-{replica}.pid")).exists()) {
        assert!(world.try_wait().unwrap().is_none());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(running(folder.path()).len() >= 4);
    world.kill().await.unwrap();
    while !running(folder.path()).is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
