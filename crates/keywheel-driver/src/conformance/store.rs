//! The suite that every store passes.
//!
//! A store's tests make a [`Subject`] for each case and call [`every_case`], or the cases one by one:
//!
//! ```ignore
//! #[tokio::test]
//! async fn the_store_conforms() {
//!     conformance::store::every_case(async || subject_in_a_fresh_folder()).await;
//! }
//! ```
//!
//! The suite needs no runtime of its own; it drives several calls at a time by polling them in turn.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use keywheel_core::call::{CallError, RefusalKind};
use keywheel_core::facts::ReadBack;
use keywheel_core::secret::SecretValue;

use crate::Store;
use crate::store::{Accept, Edit, Written};

/// A fresh container, with all its slots absent, and what the suite must know of it.
pub struct Subject {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The same container through another store, as another process would have it.
    pub other: Arc<dyn Store>,
    /// Slots of the container, at least one; two or more where the store has siblings.
    pub addresses: Vec<String>,
    /// Values that the store must refuse, with nothing changed; some of [`hostile_values`] may be among them.
    pub uncarriable: Vec<Vec<u8>>,
    /// What lives as long as the container: a folder, a server.
    pub guard: Box<dyn Any + Send>,
}

/// Runs all cases, each on a fresh container.
pub async fn every_case(fresh: impl AsyncFn() -> Subject) {
    bytes_come_back_as_they_were_written(fresh().await).await;
    h99_hostile_values_come_back_and_disturb_no_sibling(fresh().await).await;
    a_repeated_write_changes_nothing(fresh().await).await;
    the_new_value_itself_is_always_accepted(fresh().await).await;
    an_absent_slot_is_none_and_can_be_absent_again(fresh().await).await;
    an_unexpected_value_is_refused_with_nothing_written(fresh().await).await;
    a_refused_edit_holds_up_all_edits(fresh().await).await;
    an_uncarriable_value_is_refused_with_nothing_written(fresh().await).await;
    h63_writers_of_sibling_slots_lose_nothing(fresh().await).await;
    h126_of_two_conditional_writers_one_is_refused(fresh().await).await;
    h106_readers_see_only_whole_values(fresh().await).await;
    errors_hold_no_value(fresh().await).await;
    preflight_changes_nothing(fresh().await).await;
    a_list_has_each_slot_that_holds_something(fresh().await).await;
}

/// Values that parsers, shells, templates and editors have stumbled over.
pub fn hostile_values() -> Vec<Vec<u8>> {
    let texts = [
        "plain-Value_0",
        "",
        " ",
        " leading and trailing ",
        "\ttabs\t",
        "it's",
        "'",
        "''",
        "\"double\"",
        "\"",
        "both ' and \"",
        "$HOME",
        "${HOME}",
        "${",
        "$$",
        "$",
        "cost: $5",
        "$(id)",
        "`id`",
        "back\\slash",
        "\\",
        "\\\\",
        "ends with \\",
        "\\n is no newline",
        "\\'",
        "\\\"",
        "\\$HOME",
        "\\0123",
        "#",
        "# no comment",
        "with # in it",
        "with#in-it",
        "with\t# in it",
        "a=b",
        "KEY: value",
        "export KEY=value",
        "one\ntwo",
        "one\r\ntwo",
        "\n",
        "ends with a newline\n",
        "ends with a return\r",
        "value\nINJECTED=yes",
        "value'\nINJECTED='yes",
        "value\"\nINJECTED=\"yes",
        "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n",
        "postgres://app:p%40ss@db:5432/app?sslmode=require&x=1#f",
        "{\"json\": [1, null]}",
        "!reverse && rm -rf / ; true | false",
        "*?[a-z]~",
        "<tag attribute='x'>&amp;</tag>",
        "ünïcödé \u{1f511} 鍵",
        "\u{feff}byte order mark",
        "\u{a0}no-break\u{a0}",
        "\u{2028}",
        "bell\u{7}escape\u{1b}[31m",
    ];
    let long = [vec![b'x'; 8 * 1024], "'\"$\\# \n".repeat(1170).into_bytes()];
    texts.into_iter().map(|text| text.as_bytes().to_vec()).chain(long).collect()
}

/// What is written can be read back, and is seen by others, byte for byte.
pub async fn bytes_come_back_as_they_were_written(subject: Subject) {
    let first = &subject.addresses[0];
    assert_eq!(set(&*subject.store, first, b"one").await, Ok(Written { changed: true }));
    assert_eq!(set(&*subject.other, first, b"two").await, Ok(Written { changed: true }));
    subject.holds(first, Some(b"two")).await;
    let every: Vec<_> = subject.addresses.iter().rev().cloned().collect();
    let Ok(values) = subject.store.read(&every).await else {
        panic!("several slots cannot be read at once")
    };
    assert_eq!(values.len(), every.len(), "one answer for each address");
    assert!(
        is(values.last().and_then(Option::as_ref), Some(b"two")),
        "answers come in the order asked"
    );
    assert!(values.iter().rev().skip(1).all(Option::is_none), "siblings stay absent");
}

/// H59, H99, H108: every value goes in and comes out, over an absent slot and over each other.
pub async fn h99_hostile_values_come_back_and_disturb_no_sibling(subject: Subject) {
    let (first, siblings) =
        subject.addresses.split_first().unwrap_or_else(|| panic!("a store has slots"));
    for sibling in siblings {
        must(set(&*subject.store, sibling, b"sibling's").await);
    }
    let carried: Vec<_> = hostile_values().into_iter().filter(|v| subject.carries(v)).collect();
    for (number, value) in carried.iter().enumerate() {
        match set(&*subject.store, first, value).await {
            Ok(_) => {}
            Err(error) => panic!("hostile value {number}: {error}"),
        }
        let read = read(&*subject.other, first).await;
        assert!(
            is(read.as_ref(), Some(value)),
            "hostile value {number} came back as something else"
        );
    }
    for sibling in siblings {
        subject.holds(sibling, Some(b"sibling's")).await;
    }
    for value in &carried {
        must(write_one(&*subject.store, first, Accept::Anything, None).await);
        must(set(&*subject.store, first, value).await);
        subject.holds(first, Some(value)).await;
    }
}

/// The second of two equal writes says that it changed nothing.
pub async fn a_repeated_write_changes_nothing(subject: Subject) {
    let first = &subject.addresses[0];
    assert_eq!(set(&*subject.store, first, b"one").await, Ok(Written { changed: true }));
    assert_eq!(set(&*subject.store, first, b"one").await, Ok(Written { changed: false }));
    assert_eq!(set(&*subject.other, first, b"one").await, Ok(Written { changed: false }));
    subject.holds(first, Some(b"one")).await;
}

/// A write whose answer was lost can be repeated with the condition that it had.
pub async fn the_new_value_itself_is_always_accepted(subject: Subject) {
    let first = &subject.addresses[0];
    must(set(&*subject.store, first, b"one").await);
    let (old, new) = (value(b"one"), value(b"two"));
    let write = || write_one(&*subject.store, first, Accept::OneOf(vec![Some(&old)]), Some(&new));
    assert_eq!(write().await, Ok(Written { changed: true }));
    assert_eq!(write().await, Ok(Written { changed: false }));
    subject.holds(first, Some(b"two")).await;
}

/// Absence is a state that can be expected, and restored.
pub async fn an_absent_slot_is_none_and_can_be_absent_again(subject: Subject) {
    let first = &subject.addresses[0];
    subject.holds(first, None).await;
    let (one, two) = (value(b"one"), value(b"two"));
    let absent = || Accept::OneOf(vec![None]);
    assert_eq!(
        write_one(&*subject.store, first, absent(), None).await,
        Ok(Written { changed: false })
    );
    assert_eq!(
        write_one(&*subject.store, first, absent(), Some(&one)).await,
        Ok(Written { changed: true })
    );
    refused(write_one(&*subject.store, first, absent(), Some(&two)).await, RefusalKind::Conflict);
    subject.holds(first, Some(b"one")).await;
    let only_one = Accept::OneOf(vec![Some(&one)]);
    assert_eq!(
        write_one(&*subject.store, first, only_one, None).await,
        Ok(Written { changed: true })
    );
    subject.holds(first, None).await;
    let only_one = Accept::OneOf(vec![Some(&one)]);
    refused(write_one(&*subject.store, first, only_one, Some(&two)).await, RefusalKind::Conflict);
    subject.holds(first, None).await;
}

/// A value that the writer does not know is not overwritten.
pub async fn an_unexpected_value_is_refused_with_nothing_written(subject: Subject) {
    if !subject.store.facts().conditional {
        return;
    }
    let first = &subject.addresses[0];
    must(set(&*subject.other, first, b"theirs").await);
    let (old, new) = (value(b"old"), value(b"new"));
    let accept = Accept::OneOf(vec![Some(&old), None]);
    refused(write_one(&*subject.store, first, accept, Some(&new)).await, RefusalKind::Conflict);
    subject.holds(first, Some(b"theirs")).await;
}

/// All edits are written, or none.
pub async fn a_refused_edit_holds_up_all_edits(subject: Subject) {
    let [first, second, ..] = &subject.addresses[..] else { return };
    must(set(&*subject.store, first, b"one").await);
    must(set(&*subject.store, second, b"theirs").await);
    let (old, new) = (value(b"one"), value(b"two"));
    for (good, bad) in [(first, second), (second, first)] {
        let edit = |address, accept| Edit { address, accept, value: Some(&new) };
        let edits = [edit(good, Accept::Anything), edit(bad, Accept::OneOf(vec![None]))];
        refused(subject.store.write(&edits).await, RefusalKind::Conflict);
        subject.holds(first, Some(b"one")).await;
        subject.holds(second, Some(b"theirs")).await;
    }
    let edit = |address, accept| Edit { address, accept, value: Some(&new) };
    let edits = [edit(first, Accept::OneOf(vec![Some(&old)])), edit(second, Accept::Anything)];
    assert_eq!(subject.store.write(&edits).await, Ok(Written { changed: true }));
    subject.holds(first, Some(b"two")).await;
    subject.holds(second, Some(b"two")).await;
}

/// A value that would come back as another one is a definite no.
pub async fn an_uncarriable_value_is_refused_with_nothing_written(subject: Subject) {
    let first = &subject.addresses[0];
    must(set(&*subject.store, first, b"one").await);
    for bytes in &subject.uncarriable {
        let answer = set(&*subject.store, first, bytes).await;
        assert!(
            matches!(answer, Err(CallError::Refused(_))),
            "a value that cannot be carried is refused"
        );
        subject.holds(first, Some(b"one")).await;
    }
}

/// H63: what another writer puts into a sibling slot at the same time stays.
pub async fn h63_writers_of_sibling_slots_lose_nothing(subject: Subject) {
    let [first, second, ..] = &subject.addresses[..] else { return };
    for round in 0..12 {
        let text = format!("round {round}");
        let one = persistent(&*subject.store, first, text.as_bytes());
        let two = persistent(&*subject.other, second, text.as_bytes());
        together(vec![Box::pin(one), Box::pin(two)]).await;
        subject.holds(first, Some(text.as_bytes())).await;
        subject.holds(second, Some(text.as_bytes())).await;
    }
}

/// H126: two writers that expect the same value do not both succeed with different ones.
pub async fn h126_of_two_conditional_writers_one_is_refused(subject: Subject) {
    if !subject.store.facts().conditional {
        return;
    }
    let first = &subject.addresses[0];
    let (old, ours, theirs) = (value(b"old"), value(b"ours"), value(b"theirs"));
    for _ in 0..12 {
        must(set(&*subject.store, first, b"old").await);
        let write = |store: &'_ Arc<dyn Store>, new| {
            let store = Arc::clone(store);
            let old = &old;
            async move { write_one(&*store, first, Accept::OneOf(vec![Some(old)]), Some(new)).await }
        };
        let (mut one, mut two) = (None, None);
        together(vec![
            Box::pin(async { one = Some(write(&subject.store, &ours).await.is_ok()) }),
            Box::pin(async { two = Some(write(&subject.other, &theirs).await.is_ok()) }),
        ])
        .await;
        let expected: &[u8] = match (one, two) {
            (Some(true), Some(false)) => b"ours",
            (Some(false), Some(true)) => b"theirs",
            (Some(false), Some(false)) => b"old",
            _ => panic!("both writers believe that they replaced the old value"),
        };
        subject.holds(first, Some(expected)).await;
    }
}

/// H106: no reader sees a part of a value, or no value, while one is replaced by another.
pub async fn h106_readers_see_only_whole_values(subject: Subject) {
    if subject.store.facts().read_back != ReadBack::Value {
        return;
    }
    let first = &subject.addresses[0];
    let size = if subject.carries(&[b'x'; 8 * 1024]) { 8 * 1024 } else { 512 };
    let values = [vec![b'a'; size / 2], vec![b'b'; size]];
    must(set(&*subject.store, first, &values[0]).await);
    let written = std::cell::Cell::new(false);
    let writer = async {
        for round in 1..=24 {
            must(set(&*subject.store, first, &values[round % 2]).await);
        }
        written.set(true);
    };
    let reader = async {
        while !written.get() {
            let seen = read(&*subject.other, first).await;
            assert!(
                values.iter().any(|whole| is(seen.as_ref(), Some(whole))),
                "a reader saw a part of a value"
            );
        }
    };
    together(vec![Box::pin(writer), Box::pin(reader)]).await;
}

/// H115: no error, in any of its forms, holds a value that was present, expected or to be written.
pub async fn errors_hold_no_value(subject: Subject) {
    let canary = super::canary("store");
    let first = &subject.addresses[0];
    let named = |what: &str| value(format!("{canary}-{what}").as_bytes());
    let (present, expected, new) = (named("present"), named("expected"), named("new"));
    must(set(&*subject.store, first, present.expose()).await);
    let mut answers = vec![
        write_one(&*subject.store, first, Accept::OneOf(vec![Some(&expected)]), Some(&new)).await,
    ];
    for bytes in &subject.uncarriable {
        let bytes = [canary.as_bytes(), bytes].concat();
        answers.push(set(&*subject.store, first, &bytes).await);
    }
    let unknown = "no such slot'\"\n";
    answers.push(set(&*subject.store, unknown, new.expose()).await);
    for error in answers.into_iter().filter_map(Result::err) {
        let told = format!("{error} {error:?} {error:#?}");
        assert!(!told.contains(&canary), "an error holds a value");
    }
}

/// Preflight looks and does not touch.
pub async fn preflight_changes_nothing(subject: Subject) {
    let first = &subject.addresses[0];
    for present in [None, Some(&b"one"[..])] {
        if let Some(present) = present {
            must(set(&*subject.store, first, present).await);
        }
        match subject.store.preflight(&subject.addresses).await {
            Ok(findings) => {
                let blocking = findings.iter().find(|f| f.severity == crate::Severity::Blocks);
                assert_eq!(blocking, None, "nothing speaks against writing a fresh container");
            }
            Err(error) => panic!("preflight: {error}"),
        }
        subject.holds(first, present).await;
    }
}

/// A store that can be listed names every slot that holds something.
pub async fn a_list_has_each_slot_that_holds_something(subject: Subject) {
    for address in &subject.addresses {
        must(set(&*subject.store, address, b"one").await);
    }
    match subject.other.addresses().await {
        Ok(Some(listed)) => assert!(
            subject.addresses.iter().all(|address| listed.contains(address)),
            "a slot that holds something is not listed"
        ),
        Ok(None) => {}
        Err(error) => panic!("a list: {error}"),
    }
}

impl Subject {
    fn carries(&self, value: &[u8]) -> bool {
        self.uncarriable.iter().all(|refused| refused != value)
    }

    /// Asserts what a slot holds, through both stores.
    async fn holds(&self, address: &str, expected: Option<&[u8]>) {
        for store in [&self.store, &self.other] {
            let present = read(&**store, address).await;
            assert!(
                is(present.as_ref(), expected),
                "slot `{address}` holds something else than expected"
            );
        }
    }
}

fn value(bytes: &[u8]) -> SecretValue {
    SecretValue::new(bytes.to_vec())
}

fn is(present: Option<&SecretValue>, expected: Option<&[u8]>) -> bool {
    present.map(SecretValue::expose) == expected
}

async fn read(store: &dyn Store, address: &str) -> Option<SecretValue> {
    match store.read(&[address.to_owned()]).await {
        Ok(values) => {
            values.into_iter().next().unwrap_or_else(|| panic!("one address gets one answer"))
        }
        Err(error) => panic!("slot `{address}` cannot be read: {error}"),
    }
}

async fn set(store: &dyn Store, address: &str, bytes: &[u8]) -> Result<Written, CallError> {
    write_one(store, address, Accept::Anything, Some(&value(bytes))).await
}

async fn write_one(
    store: &dyn Store,
    address: &str,
    accept: Accept<'_>,
    value: Option<&SecretValue>,
) -> Result<Written, CallError> {
    store.write(&[Edit { address, accept, value }]).await
}

/// Writes as the engine does: again, where the store says that it may be tried again.
async fn persistent(store: &dyn Store, address: &str, bytes: &[u8]) {
    use keywheel_core::call::Remedy;
    for _ in 0..100 {
        match set(store, address, bytes).await {
            Ok(_) => return,
            Err(CallError::Refused(refusal)) if matches!(refusal.remedy, Remedy::Retry { .. }) => {}
            Err(error) => panic!("slot `{address}` cannot be written: {error}"),
        }
    }
    panic!("slot `{address}` cannot be written in 100 attempts");
}

fn must(answer: Result<Written, CallError>) {
    if let Err(error) = answer {
        panic!("a write that nothing speaks against: {error}");
    }
}

fn refused(answer: Result<Written, CallError>, kind: RefusalKind) {
    match answer {
        Err(CallError::Refused(refusal)) => assert_eq!(refusal.kind, kind, "{refusal}"),
        other => panic!("expected a refusal, and got {other:?}"),
    }
}

/// Polls several futures in turn until all are done.
async fn together<'a>(futures: Vec<Pin<Box<dyn Future<Output = ()> + 'a>>>) {
    let mut running = futures;
    poll_fn(|context| {
        running.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
