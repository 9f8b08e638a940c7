//! The way to the pods: ports of this machine that lead to them through the API server, so that neither a node port nor a name
//! is needed; or, where this machine can reach their addresses, straight to them.
//!
//! One port stands for all pods that are ready, and each pod has one of its own. A connection is led once, and is not led to
//! another pod when it ends; only where the API server itself does not lead there is the next pod asked, which is counted.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use keywheel_example::replicas::Replicas;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use crate::api::{Api, Kind, text};
use crate::manifest::PORT;

/// The time between two looks at the pods.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Ports that lead to pods. It ends when it is dropped.
pub(crate) struct Edge {
    address: SocketAddr,
    known: Known,
    ways: Arc<Ways>,
    _tasks: JoinSet<()>,
}

/// Pods that are ready, and the port of each.
type Known = Arc<RwLock<BTreeMap<Place, SocketAddr>>>;

/// Where a pod is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    name: String,
    address: String,
}

struct Ways {
    pods: kube::Api<k8s_openapi::api::core::v1::Pod>,
    /// Whether pods are reached at their own addresses.
    direct: bool,
    /// Connections that the API server led nowhere at first.
    led_again: AtomicU64,
}

impl Edge {
    /// Leads to the pods with a label.
    pub(crate) async fn open(api: &Api, label: String, direct: bool) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let known = Known::default();
        let ways = Arc::new(Ways { pods: api.pods(), direct, led_again: AtomicU64::new(0) });
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(api.clone(), label, known.clone(), ways.clone()));
        tasks.spawn(balance(listener, known.clone(), ways.clone()));
        Ok(Self { address, known, ways, _tasks: tasks })
    }

    /// Returns the port that stands for all.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the ports of the pods that are ready.
    pub(crate) fn each(&self) -> Vec<SocketAddr> {
        lock(&self.known).values().copied().collect()
    }

    /// Returns the pods that are ready as whoever uses them follows them.
    pub(crate) fn replicas(&self) -> Replicas {
        let known = Arc::clone(&self.known);
        Replicas::told_by(move || lock(&known).values().copied().collect())
    }

    /// Returns how many connections the API server led nowhere at first.
    pub(crate) fn led_again(&self) -> u64 {
        self.ways.led_again.load(Ordering::Relaxed)
    }
}

fn lock(known: &Known) -> std::sync::RwLockReadGuard<'_, BTreeMap<Place, SocketAddr>> {
    known.read().unwrap_or_else(PoisonError::into_inner)
}

/// Returns whether a pod is ready and not asked to end.
pub(crate) fn is_ready(pod: &Value) -> bool {
    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
}

/// Opens a port for every pod that becomes ready, and closes it when the pod is not.
async fn follow(api: Api, label: String, known: Known, ways: Arc<Ways>) {
    let mut listening = JoinSet::new();
    let mut ports: BTreeMap<String, (SocketAddr, AbortHandle)> = BTreeMap::new();
    loop {
        // Where the answer is missing for a moment, the pods are as they were.
        if let Ok(pods) = api.list(Kind::Pod, Some(&label)).await {
            let ready: Vec<_> = pods.iter().filter(|pod| is_ready(pod)).collect();
            let uid = |pod: &Value| text(pod, "/metadata/uid").to_owned();
            ports.retain(|known, (_, task)| {
                let stays = ready.iter().any(|pod| uid(pod) == *known);
                if !stays {
                    task.abort();
                }
                stays
            });
            for pod in ready {
                if ports.contains_key(&uid(pod)) {
                    continue;
                }
                let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await else {
                    continue;
                };
                let Ok(address) = listener.local_addr() else { continue };
                let of = |at: &str| text(pod, at).to_owned();
                let place = Place { name: of("/metadata/name"), address: of("/status/podIP") };
                let task = listening.spawn(lead_all(listener, place.clone(), ways.clone()));
                ports.insert(uid(pod), (address, task));
                known.write().unwrap_or_else(PoisonError::into_inner).insert(place, address);
            }
            let live: Vec<_> = ports.values().map(|(address, _)| *address).collect();
            let mut known = known.write().unwrap_or_else(PoisonError::into_inner);
            known.retain(|_, address| live.contains(address));
        }
        while listening.try_join_next().is_some() {}
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Leads what comes to the port of one pod; what it leads goes on when the port is closed.
async fn lead_all(listener: TcpListener, pod: Place, ways: Arc<Ways>) {
    while let Ok((client, _)) = listener.accept().await {
        let (pod, ways) = (pod.clone(), ways.clone());
        tokio::spawn(async move { ways.lead(client, &[pod]).await });
    }
}

async fn balance(listener: TcpListener, known: Known, ways: Arc<Ways>) {
    let turn = AtomicUsize::new(0);
    while let Ok((client, _)) = listener.accept().await {
        let mut pods: Vec<Place> = lock(&known).keys().cloned().collect();
        let first = turn.fetch_add(1, Ordering::Relaxed) % pods.len().max(1);
        pods.rotate_left(first);
        let ways = ways.clone();
        tokio::spawn(async move { ways.lead(client, &pods).await });
    }
}

impl Ways {
    async fn lead(&self, mut client: TcpStream, pods: &[Place]) {
        // Small answers would wait for each other.
        client.set_nodelay(true).ok();
        if self.direct {
            return straight(client, pods.first()).await;
        }
        for pod in pods {
            let Ok(mut forwarded) = self.pods.portforward(&pod.name, &[PORT]).await else {
                self.led_again.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let Some(mut stream) = forwarded.take_stream(PORT) else { return };
            // Either side may close it, which the other one sees.
            tokio::io::copy_bidirectional(&mut client, &mut stream).await.ok();
            drop(stream);
            forwarded.abort();
            return;
        }
    }
}

/// Leads to the address of a pod; where nothing listens there, the client sees its connection closed.
async fn straight(mut client: TcpStream, pod: Option<&Place>) {
    let Some(address) = pod.and_then(|pod| pod.address.parse::<IpAddr>().ok()) else { return };
    let Ok(mut stream) = TcpStream::connect((address, PORT)).await else { return };
    stream.set_nodelay(true).ok();
    tokio::io::copy_bidirectional(&mut client, &mut stream).await.ok();
}
