//! The suite that every store passes that tells nothing of what it holds but when it was changed.

use keywheel_core::call::CallError;
use keywheel_core::facts::ReadBack;
use keywheel_core::secret::SecretValue;

use super::store::hostile_values;
use crate::Store;
use crate::store::{Accept, Edit, Written};

/// Looks behind the store: what its readers would be given.
pub type Held = Box<dyn Fn(&str) -> Option<Vec<u8>> + Send>;

/// Writes a slot behind the store's back.
pub type ByHand = Box<dyn Fn(&str, &[u8]) + Send>;

/// A fresh container, with all its slots absent, and what the suite must know of it.
pub struct Subject {
    /// The store.
    pub store: std::sync::Arc<dyn Store>,
    /// Slots of the container, at least two.
    pub addresses: Vec<String>,
    /// What readers would be given.
    pub held: Held,
    /// Writes as somebody else would.
    pub by_hand: ByHand,
    /// Values that the store must refuse, with nothing changed.
    pub uncarriable: Vec<Vec<u8>>,
}

/// Runs all cases, each on a fresh container.
pub async fn every_case(fresh: impl AsyncFn() -> Subject) {
    it_is_said_that_nothing_can_be_read(fresh().await).await;
    h99_hostile_values_reach_readers_byte_for_byte(fresh().await).await;
    every_write_moves_the_time_of_its_slot_alone(fresh().await).await;
    a_change_by_somebody_else_shows(fresh().await).await;
    a_slot_can_be_absent_again(fresh().await).await;
    an_uncarriable_value_is_refused_with_nothing_written(fresh().await).await;
    preflight_and_looks_change_nothing(fresh().await).await;
}

/// The store does not claim to give values back.
pub async fn it_is_said_that_nothing_can_be_read(subject: Subject) {
    assert_eq!(subject.store.facts().read_back, ReadBack::Timestamp);
    assert!(!subject.store.facts().is_readable());
    assert!(subject.store.read(&subject.addresses).await.is_err());
}

/// H59, H99: what is written is what readers are given. A few at a time: every write waits for the store's clock.
pub async fn h99_hostile_values_reach_readers_byte_for_byte(subject: Subject) {
    let first = &subject.addresses[0];
    let every = hostile_values().into_iter().filter(|value| !value.is_empty());
    let all: Vec<u8> = every.collect::<Vec<_>>().join(&b"\n"[..]);
    for value in [b"plain".to_vec(), all] {
        must(set(&subject, first, Some(&value)).await);
        assert!((subject.held)(first).as_ref() == Some(&value), "readers are given something else");
    }
}

/// The time of a write moves although one came just before; siblings keep theirs.
pub async fn every_write_moves_the_time_of_its_slot_alone(subject: Subject) {
    let [first, second, ..] = &subject.addresses[..] else { panic!("a suite of two slots") };
    must(set(&subject, second, Some(b"sibling's")).await);
    must(set(&subject, first, Some(b"one")).await);
    let before = times(&subject).await;
    must(set(&subject, first, Some(b"two")).await);
    let after = times(&subject).await;
    assert!(before[0] < after[0], "a second write does not show");
    assert_eq!(before[1], after[1], "a sibling seems to be changed");
    assert!((subject.held)(second).as_deref() == Some(b"sibling's"));
}

/// Whatever somebody else writes is seen to be written.
pub async fn a_change_by_somebody_else_shows(subject: Subject) {
    let first = &subject.addresses[0];
    must(set(&subject, first, Some(b"ours")).await);
    let before = times(&subject).await;
    // The clock of a store may be as coarse as a second.
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    (subject.by_hand)(first, b"theirs");
    assert_ne!(before[0], times(&subject).await[0]);
}

/// Absence shows, and is restored.
pub async fn a_slot_can_be_absent_again(subject: Subject) {
    let first = &subject.addresses[0];
    assert_eq!(times(&subject).await[0], None);
    must(set(&subject, first, Some(b"one")).await);
    assert!(times(&subject).await[0].is_some());
    for _ in 0..2 {
        must(set(&subject, first, None).await);
        assert_eq!(times(&subject).await[0], None);
        assert!((subject.held)(first).is_none());
    }
}

/// A value that readers would be given as another one is a definite no.
pub async fn an_uncarriable_value_is_refused_with_nothing_written(subject: Subject) {
    let first = &subject.addresses[0];
    must(set(&subject, first, Some(b"one")).await);
    for value in &subject.uncarriable {
        let answer = set(&subject, first, Some(value)).await;
        assert!(matches!(answer, Err(CallError::Refused(_))), "a value that cannot be carried");
        assert!((subject.held)(first).as_deref() == Some(b"one"));
    }
}

/// Questions change nothing.
pub async fn preflight_and_looks_change_nothing(subject: Subject) {
    let first = &subject.addresses[0];
    must(set(&subject, first, Some(b"one")).await);
    let before = times(&subject).await;
    must(subject.store.preflight(&subject.addresses).await);
    assert_eq!(before, times(&subject).await);
}

async fn times(subject: &Subject) -> Vec<Option<keywheel_core::time::Timestamp>> {
    must(subject.store.changed_at(&subject.addresses).await)
}

async fn set(subject: &Subject, address: &str, value: Option<&[u8]>) -> Result<Written, CallError> {
    let value = value.map(|value| SecretValue::new(value.to_vec()));
    let edit = Edit { address, accept: Accept::Anything, value: value.as_ref() };
    subject.store.write(&[edit]).await
}

fn must<T>(answer: Result<T, CallError>) -> T {
    answer.unwrap_or_else(|error| panic!("{error}"))
}
