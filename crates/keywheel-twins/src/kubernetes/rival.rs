//! A rival: another controller that writes an object again and again, as GitOps tools do.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use super::objects::{Key, Objects};

/// Somebody else who writes an object, until it is dropped.
pub struct Rival {
    stop: Arc<AtomicBool>,
    writes: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Rival {
    pub(super) fn start(
        objects: Objects,
        manager: String,
        key: Key,
        every: Duration,
        mut edit: impl FnMut(&mut Value) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let writes = Arc::new(AtomicUsize::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&writes));
        let thread = std::thread::Builder::new().name("rival".into()).spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let mut before = Value::Null;
                let written = objects.change(&key, &manager, |object| {
                    before = object["metadata"]["resourceVersion"].clone();
                    edit(object);
                });
                // Where the object is gone there is nothing to write.
                if written.is_ok_and(|object| object["metadata"]["resourceVersion"] != before) {
                    counted.fetch_add(1, Ordering::SeqCst);
                }
                std::thread::park_timeout(every);
            }
        })?;
        Ok(Self { stop, writes, thread: Some(thread) })
    }

    /// Returns how often it changed something.
    pub fn writes(&self) -> usize {
        self.writes.load(Ordering::SeqCst)
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It fails only where the thread panicked.
            thread.join().ok();
        }
    }
}
