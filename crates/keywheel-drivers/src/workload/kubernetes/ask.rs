//! Showing tokens to each pod: through the API server, so that a pod is reached from wherever keywheel runs, and no
//! balancer chooses another one.

use std::time::Duration as StdDuration;

use k8s_openapi::api::core::v1::Pod;
use keywheel_core::secret::SecretValue;
use kube::Api;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zeroize::Zeroizing;

use super::namespace::Namespace;

/// How long one question to a pod may take, from its connection on.
const ANSWER: StdDuration = StdDuration::from_secs(5);

/// The most of an answer that is read: its first line is all that counts.
const LINE: usize = 256;

/// Where a pod answers tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenPlace {
    /// The port of the container, spoken to without TLS.
    pub port: u16,
    /// The path, from its slash on.
    pub path: String,
}

/// Asks one pod whether it takes a token; none where its answer proves neither.
pub(super) async fn accepts(
    namespace: &Namespace,
    pod: &str,
    place: &TokenPlace,
    token: &SecretValue,
) -> Option<bool> {
    let status =
        tokio::time::timeout(ANSWER, status(namespace, pod, place, token)).await.ok()??;
    match status {
        200 => Some(true),
        401 | 403 => Some(false),
        _ => None,
    }
}

async fn status(
    namespace: &Namespace,
    pod: &str,
    place: &TokenPlace,
    token: &SecretValue,
) -> Option<u16> {
    let client = namespace.cluster.client().await.ok()?;
    let pods: Api<Pod> = Api::namespaced(client, &namespace.name);
    let mut forwarded = pods.portforward(pod, &[place.port]).await.ok()?;
    let mut stream = forwarded.take_stream(place.port)?;
    let mut request = Zeroizing::new(Vec::new());
    request.extend_from_slice(format!("GET {} HTTP/1.1\r\n", place.path).as_bytes());
    request.extend_from_slice(b"host: localhost\r\nconnection: close\r\nauthorization: Bearer ");
    request.extend_from_slice(token.expose());
    request.extend_from_slice(b"\r\n\r\n");
    stream.write_all(&request).await.ok()?;
    stream.flush().await.ok()?;
    let status = first_line(&mut stream).await;
    drop(stream);
    forwarded.abort();
    status
}

async fn first_line(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<u16> {
    let mut line = Vec::new();
    while line.len() < LINE && !line.contains(&b'\n') {
        let mut chunk = [0; LINE];
        let read = stream.read(&mut chunk).await.ok()?;
        if read == 0 {
            break;
        }
        line.extend_from_slice(&chunk[..read]);
    }
    let line = String::from_utf8_lossy(&line);
    let mut words = line.split_ascii_whitespace();
    words.next().filter(|protocol| protocol.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_status_of_an_answer_is_read() {
        let status = async |answer: &str| first_line(&mut answer.as_bytes()).await;
        assert_eq!(status("HTTP/1.1 200 OK\r\n\r\nbody").await, Some(200));
        assert_eq!(status("HTTP/1.0 401\r\n").await, Some(401));
        assert_eq!(status("SSH-2.0-OpenSSH").await, None);
        assert_eq!(status("").await, None);
        assert_eq!(status(&"x".repeat(10_000)).await, None);
    }
}
