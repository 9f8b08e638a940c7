//! The worker: one process that asks the model regularly, and says whether it could when its health is checked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::backend::Model;

/// The time between two questions.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Asks until the future is dropped.
///
/// # Errors
/// Where nothing can be served.
pub async fn run(model: Model, listener: TcpListener) -> anyhow::Result<()> {
    let answered = Arc::new(AtomicBool::new(false));
    let router = Router::new().route("/health", get(health)).with_state(Arc::clone(&answered));
    let asking = async {
        loop {
            answered.store(model.answers().await, Ordering::Relaxed);
            tokio::time::sleep(ASK_EVERY).await;
        }
    };
    tokio::select! {
        served = axum::serve(listener, router).into_future() => Ok(served?),
        () = asking => Ok(()),
    }
}

async fn health(State(answered): State<Arc<AtomicBool>>) -> StatusCode {
    match answered.load(Ordering::Relaxed) {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
}
