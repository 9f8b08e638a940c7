//! Where the replicas of a service are: at addresses that stay, or wherever its name leads at the moment.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::ensure;
use tokio::net::lookup_host;
use tokio::task::JoinSet;

/// The time between two looks at a name.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The replicas of a service. Clones see the same ones.
#[derive(Clone)]
pub struct Replicas {
    known: Arc<RwLock<Vec<SocketAddr>>>,
    /// Looks at the name until the last clone is gone.
    _look: Arc<JoinSet<()>>,
}

impl Replicas {
    /// Returns replicas that stay where they are.
    pub fn at(addresses: &[SocketAddr]) -> Self {
        let known = Arc::new(RwLock::new(addresses.to_owned()));
        Self { known, _look: Arc::new(JoinSet::new()) }
    }

    /// Follows the addresses of a name, such as `backend:8080`.
    ///
    /// # Errors
    /// Where the name is none.
    pub fn behind(name: &str) -> anyhow::Result<Self> {
        ensure!(name.contains(':'), "`{name}` names no port");
        let known = Arc::new(RwLock::new(Vec::new()));
        let mut look = JoinSet::new();
        look.spawn(follow(name.to_owned(), Arc::clone(&known)));
        Ok(Self { known, _look: Arc::new(look) })
    }

    /// Follows whoever knows the addresses.
    pub fn told_by(look: impl Fn() -> Vec<SocketAddr> + Send + 'static) -> Self {
        let known = Arc::new(RwLock::new(look()));
        let mut looks = JoinSet::new();
        let told = Arc::clone(&known);
        looks.spawn(async move {
            loop {
                *told.write().unwrap_or_else(PoisonError::into_inner) = look();
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        Self { known, _look: Arc::new(looks) }
    }

    /// Returns where they are now.
    pub fn now(&self) -> Vec<SocketAddr> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn follow(name: String, known: Arc<RwLock<Vec<SocketAddr>>>) {
    loop {
        // A name that is not answered for a moment leads where it led before.
        if let Ok(found) = lookup_host(&name).await {
            let mut found: Vec<_> = found.collect();
            found.sort_unstable();
            found.dedup();
            *known.write().unwrap_or_else(PoisonError::into_inner) = found;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
