//! Requests that become a websocket, with one stream of bytes in each of its channels. kubectl's own way (SPDY) is not here.

use axum::body::Body;
use axum::http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::status::Status;

/// The protocol that the server speaks; a client may offer newer ones beside it.
const PROTOCOL: &str = "v4.channel.k8s.io";

/// The connection of a request once it was taken over.
pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Takes over the connection of a request, and lets something be done with it from then on.
pub(super) fn answer<F>(
    mut parts: Parts,
    then: impl FnOnce(Socket) -> F + Send + 'static,
) -> Result<Response<Body>, Status>
where
    F: Future<Output = ()> + Send + 'static,
{
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    let key = text(&parts.headers, SEC_WEBSOCKET_KEY.as_str());
    let offered = text(&parts.headers, SEC_WEBSOCKET_PROTOCOL.as_str());
    let (Some(upgrade), Some(key), Some(offered)) = (upgrade, key, offered) else {
        return Err(Status::bad_request("Upgrade request required"));
    };
    if !offered.split(',').any(|protocol| protocol.trim() == PROTOCOL) {
        return Err(Status::new(403, "Forbidden", format!("only {PROTOCOL} is spoken here")));
    }
    let accept = derive_accept_key(key.as_bytes());
    tokio::spawn(async move {
        // A client that is gone needs nothing.
        if let Ok(upgraded) = upgrade.await {
            let io = TokioIo::new(upgraded);
            then(WebSocketStream::from_raw_socket(io, Role::Server, None).await).await;
        }
    });
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, accept)
        .header(SEC_WEBSOCKET_PROTOCOL, PROTOCOL)
        .body(Body::empty());
    Ok(response.expect("the headers are plain text"))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
