//! Measures how many entries a journal takes a second: in memory one after another, in SQLite with many waiting.
//!
//! `cargo run --release -p keywheel-journal --features conformance --example throughput [tasks] [entries of each]`

#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

use std::sync::Arc;
use std::time::Instant;

use keywheel_core::event::{Event, Step};
use keywheel_core::inventory::Inventory;
use keywheel_core::time::Timestamp;
use keywheel_journal::conformance::{self, Begun};
use keywheel_journal::memory::MemoryJournal;
use keywheel_journal::sqlite::{Open, Places, SqliteJournal};
use keywheel_journal::{Entry, Journal};
use zeroize::Zeroizing;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).map_while(|argument| argument.parse::<u64>().ok());
    let (tasks, each) = (arguments.next().unwrap_or(1_000), arguments.next().unwrap_or(50));

    let memory = || MemoryJournal::new("here", Zeroizing::new([7; 32]));
    measure("in memory, links only counted", Arc::new(memory().with_audit(false)), 1, tasks * each)
        .await?;
    measure("in memory, with its audit chain", Arc::new(memory()), 1, tasks * each).await?;

    let folder = tempfile::tempdir()?;
    let places = Places {
        journal: folder.path().join("state/journal.sqlite"),
        kek: folder.path().join("config/kek"),
        allow_work_tree: false,
    };
    let sqlite = Arc::new(SqliteJournal::open(&places, Open::CreateIfMissing)?);
    measure("in SQLite, one waiting", Arc::clone(&sqlite) as Arc<dyn Journal>, 1, each).await?;
    measure("in SQLite, many waiting", sqlite, tasks, each).await
}

async fn measure(
    what: &str,
    journal: Arc<dyn Journal>,
    tasks: u64,
    each: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut begun = Vec::new();
    for n in 0..tasks {
        begun.push(Begun::of(&*journal, &format!("s{n}@of-{tasks}")).await);
    }
    let start = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for begun in begun {
        running.spawn(append_all(Arc::clone(&journal), begun, each));
    }
    while let Some(done) = running.join_next().await {
        done?;
    }
    let rate = (tasks * each) as f64 / start.elapsed().as_secs_f64();
    println!("{what}: {rate:.0} entries a second");
    Ok(())
}

async fn append_all(journal: Arc<dyn Journal>, begun: Begun, count: u64) {
    for sequence in 1..=count {
        let event = Event::Intended {
            step: Step::Preflight,
            until: Timestamp::from_millis(1),
            clocks: None,
        };
        let row = Inventory::new(begun.secret.clone());
        let entry = Entry { inventory: Some(row), ..begun.entry(sequence, event) };
        conformance::append(&*journal, vec![entry]).await.expect("the next record is taken");
    }
}
