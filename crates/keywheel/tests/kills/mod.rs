//! Kills of the program at the fail points of the steps that an issuer has a part in; `kill9` has the others.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;

const STEPS: [&str; 7] =
    ["mint", "verify", "suspend", "revoke", "verify-dead", "verify_dead", "sweep"];

/// Returns the places of an issuer's steps among those that a whole run wrote down, each once.
pub(crate) fn places(list: &Path) -> Vec<String> {
    let passed = fs::read_to_string(list).unwrap();
    let of_the_issuer =
        |place: &&str| place.split_once(':').is_some_and(|(_, step)| STEPS.contains(&step));
    let mut places: Vec<String> = passed.lines().filter(of_the_issuer).map(str::to_owned).collect();
    places.sort_unstable();
    places.dedup();
    assert!(places.len() >= 20, "{places:?}");
    places
}

/// Kills at each of these places, in so many worlds at once; each place has a number.
pub(crate) fn at_each(places: &[String], at_once: usize, kill: impl Fn(usize, &str) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let nth = next.fetch_add(1, Ordering::SeqCst);
                    let Some(place) = places.get(nth) else { return };
                    kill(nth, place);
                }
            });
        }
    });
}

/// The run ended by the kill at this place, which wrote it into the log.
pub(crate) fn assert_killed(killed: ExitStatus, log: &Path, place: &str) {
    assert_eq!(killed.signal(), Some(9), "{place}: {killed}");
    assert_eq!(fs::read_to_string(log).unwrap().trim(), place);
}

/// There is one rotation, it is completed, and the record of it holds. `run` returns what a command says that ends well.
pub(crate) fn assert_one_completed(run: impl Fn(&[&str]) -> String, place: &str) {
    let listed: Value =
        serde_json::from_str(&run(&["rotation", "list", "--output", "json"])).unwrap();
    let [only] = listed["rotations"].as_array().unwrap().as_slice() else { panic!("{place}") };
    let id = only["rotation"].as_str().unwrap();
    let shown = run(&["rotation", "show", id, "--output", "json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["rotation"]["outcome"], "completed", "{place}");
    assert!(run(&["audit", "verify"]).contains("holds"), "{place}");
}
