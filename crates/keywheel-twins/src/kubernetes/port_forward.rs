//! `pods/portforward`: two channels for each port, one for bytes and one for what went wrong.
//!
//! It goes to the address of the pod.

use axum::body::{Body, Bytes};
use axum::http::Response;
use axum::http::request::Parts;
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::status::Status;
use super::upgrade::{self, Socket};

/// Takes over the connection of a request, and forwards to the pod from then on.
pub(super) fn answer(parts: Parts, pod: &Value, ports: &str) -> Result<Response<Body>, Status> {
    let ports: Result<Vec<u16>, _> = ports.split(',').map(str::parse).collect();
    let ports =
        ports.map_err(|_| Status::bad_request("query parameter \"ports\" cannot be parsed"))?;
    let address = pod.pointer("/status/podIP").and_then(Value::as_str);
    let phase = pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or("Pending");
    let Some(address) = address.filter(|_| phase == "Running").map(str::to_owned) else {
        let why =
            format!("unable to forward port because pod is not running. Current status={phase}");
        return Err(Status::bad_request(why));
    };
    upgrade::answer(parts, move |socket| async move { forward(socket, &address, &ports).await })
}

async fn forward(socket: Socket, address: &str, ports: &[u16]) {
    let (mut sink, mut stream) = socket.split();
    let (frames, mut outgoing) = mpsc::channel::<Bytes>(16);
    let mut writers = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        writers.push(open(address, *port, index, &frames).await);
    }
    drop(frames);
    let sending = async {
        while let Some(frame) = outgoing.recv().await {
            if sink.send(Message::Binary(frame)).await.is_err() {
                return;
            }
        }
        // Every port has ended; a client that is gone need not hear it.
        sink.send(Message::Close(None)).await.ok();
    };
    let receiving = async {
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(frame) => receive(&mut writers, &frame).await,
                Message::Close(_) => return,
                _ => {}
            }
        }
    };
    tokio::select! {
        () = sending => {}
        () = receiving => {}
    }
}

/// Connects to a port of the pod, and sends on what comes from there; none where nothing listens.
async fn open(
    address: &str,
    port: u16,
    index: usize,
    frames: &mpsc::Sender<Bytes>,
) -> Option<OwnedWriteHalf> {
    let channel = u8::try_from(2 * index).unwrap_or(u8::MAX - 1);
    for channel in [channel, channel + 1] {
        let [low, high] = port.to_le_bytes();
        frames.send(vec![channel, low, high].into()).await.ok()?;
    }
    match TcpStream::connect((address, port)).await {
        Ok(stream) => {
            let (reader, writer) = stream.into_split();
            tokio::spawn(send_on(reader, channel, frames.clone()));
            Some(writer)
        }
        Err(why) => {
            let said = format!("an error occurred forwarding {port} -> {port}: {why}");
            let frame: Vec<u8> = [channel + 1].into_iter().chain(said.into_bytes()).collect();
            frames.send(frame.into()).await.ok()?;
            None
        }
    }
}

async fn send_on(mut reader: OwnedReadHalf, channel: u8, frames: mpsc::Sender<Bytes>) {
    let mut buffer = vec![0; 16 * 1024];
    buffer[0] = channel;
    while let Ok(read @ 1..) = reader.read(&mut buffer[1..]).await {
        if frames.send(Bytes::copy_from_slice(&buffer[..=read])).await.is_err() {
            return;
        }
    }
}

async fn receive(writers: &mut [Option<OwnedWriteHalf>], frame: &[u8]) {
    let Some((channel, bytes)) = frame.split_first() else { return };
    let writer = writers.get_mut(usize::from(channel / 2)).and_then(Option::as_mut);
    if let Some(writer) = writer.filter(|_| channel % 2 == 0) {
        // The reader of this port notices that the pod is gone.
        writer.write_all(bytes).await.ok();
    }
}
