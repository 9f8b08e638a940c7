//! Services: connections are shared among the pods that are ready, as far as the node knows, which is a little late.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

use super::json::{each, is_ending, selects, text};
use super::pods::is_ready;
use super::probe::port;
use crate::kubernetes::{Key, Kind, Objects};

/// A Service that can be reached at a port of the loopback address. It ends when it is dropped.
pub struct Balancer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Balancer {
    /// Serves the first port of a Service on a free port, so far behind its pods.
    ///
    /// # Errors
    /// Where no port or no thread can be had.
    pub(super) fn start(objects: &Objects, service: Key, lag: Duration) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let objects = objects.clone();
        let thread = std::thread::Builder::new().name("service".into()).spawn(move || {
            runtime.block_on(async {
                let (told, known) = watch::channel(endpoints(&objects, &service));
                tokio::select! {
                    () = follow(&objects, &service, lag, told) => {}
                    () = serve(listener, known) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // Each fails only where the thread has ended already.
        if let Some(stop) = self.stop.take() {
            stop.send(()).ok();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Tells who is ready, a while after it is so.
async fn follow(
    objects: &Objects,
    service: &Key,
    lag: Duration,
    told: watch::Sender<Vec<SocketAddr>>,
) {
    let mut changed = objects.changed();
    let mut coming: VecDeque<(Instant, Vec<SocketAddr>)> = VecDeque::new();
    loop {
        changed.borrow_and_update();
        let now = endpoints(objects, service);
        let newest =
            coming.back().map_or_else(|| told.borrow().clone(), |(_, newest)| newest.clone());
        if now != newest {
            coming.push_back((Instant::now() + lag, now));
        }
        let due = coming.front().map_or(Instant::now() + LONGEST, |(due, _)| *due);
        tokio::select! {
            _ = changed.changed() => {}
            () = tokio::time::sleep_until(due.into()) => {}
        }
        while coming.front().is_some_and(|(due, _)| *due <= Instant::now()) {
            coming.pop_front().into_iter().for_each(|(_, ready)| drop(told.send_replace(ready)));
        }
    }
}

const LONGEST: Duration = Duration::from_secs(1);

/// Returns the addresses of the pods that are ready and not asked to end.
fn endpoints(objects: &Objects, service: &Key) -> Vec<SocketAddr> {
    let Some(found) = objects.get(service) else { return Vec::new() };
    let selector = json!({ "matchLabels": found["spec"]["selector"] });
    let wanted = &found["spec"]["ports"][0];
    let target = wanted.get("targetPort").unwrap_or(&wanted["port"]);
    let pods = objects.list(Kind::Pod, service.namespace.as_deref()).0;
    let ready = pods.iter().filter(|pod| {
        is_ready(pod) && !is_ending(pod) && selects(&selector, &pod["metadata"]["labels"])
    });
    ready.filter_map(|pod| endpoint(pod, target)).collect()
}

fn endpoint(pod: &Value, target: &Value) -> Option<SocketAddr> {
    let address: Ipv4Addr = text(pod, "/status/podIP").parse().ok()?;
    let port =
        each(pod, "/spec/containers").iter().find_map(|container| port(target, container))?;
    Some((address, port).into())
}

async fn serve(listener: std::net::TcpListener, known: watch::Receiver<Vec<SocketAddr>>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    let turn = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let (known, turn) = (known.clone(), Arc::clone(&turn));
        tokio::spawn(async move {
            let ready = known.borrow().clone();
            if ready.is_empty() {
                return;
            }
            let chosen = ready[turn.fetch_add(1, Ordering::Relaxed) % ready.len()];
            // Where the pod is gone, the client finds its connection closed.
            forward(client, chosen).await.ok();
        });
    }
}

async fn forward(mut client: TcpStream, to: SocketAddr) -> io::Result<()> {
    let mut pod = TcpStream::connect(to).await?;
    tokio::io::copy_bidirectional(&mut client, &mut pod).await?;
    Ok(())
}
