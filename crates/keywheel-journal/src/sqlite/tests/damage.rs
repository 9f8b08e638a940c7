//! Damaged and rewritten journals: what is refused, and what the audit chain shows.

use super::*;

const RECORDS: u64 = 6;

/// Writes a journal with a few records, a sealed and a destroyed value, and closes it.
async fn written() -> (Here, Begun, AuditVerdict) {
    let here = Here::new();
    let journal = here.open();
    let begun = Begun::of(&journal, "a@test").await;
    seal(&journal, &begun, 1).await;
    destroy(&journal, &begun, 2).await;
    seal(&journal, &begun, 3).await;
    begun.append(&journal, 4, Event::StageClosed).await.unwrap();
    begun.append(&journal, 5, Event::Resumed).await.unwrap();
    let exported = journal.verify_audit().await.unwrap();
    assert_eq!((exported.links, exported.faults.len()), (RECORDS, 0));
    (here, begun, exported)
}

/// Returns what an edit of a fresh journal brings to light.
async fn faults_after(edit: &str) -> Vec<String> {
    let (here, _, exported) = written().await;
    here.edit(edit);
    let journal = here.open();
    let mut faults = journal.verify_audit().await.unwrap().faults;
    faults.extend(audit_contradiction(&journal, &exported).await);
    faults
}

async fn audit_contradiction(journal: &SqliteJournal, exported: &AuditVerdict) -> Option<String> {
    crate::audit::contradiction(journal, exported).await.unwrap()
}

#[tokio::test]
async fn h132_a_changed_field_of_any_record_is_noticed() {
    let changes = [
        "event = replace(event, 'e', 'f')",
        "at = at + 1",
        "epoch = epoch + 1",
        "sequence = sequence + 100",
        "secret = 'b@test'",
        "rotation = 'another'",
        "action = 'resumed by nobody'",
        "event_hash = sealed_hash",
        "sealed_hash = event_hash",
        "hash = event_hash",
        "event = NULL",
    ];
    for link in 0..RECORDS {
        for change in changes {
            let faults =
                faults_after(&format!("UPDATE records SET {change} WHERE link = {link}")).await;
            assert!(!faults.is_empty(), "link {link}: {change}");
        }
    }
    assert!(!faults_after("UPDATE actors SET account = 'nobody'").await.is_empty());
    assert!(
        !faults_after("UPDATE records SET previous_hash = hash WHERE link = 3").await.is_empty()
    );
}

#[tokio::test]
async fn h132_a_dropped_record_is_noticed_wherever_it_was() {
    for link in 0..RECORDS {
        let faults = faults_after(&format!(
            "PRAGMA foreign_keys = 0; DELETE FROM records WHERE link = {link}"
        ))
        .await;
        assert!(!faults.is_empty(), "link {link}");
    }
}

#[tokio::test]
async fn h132_a_rotation_that_vanished_with_all_its_traces_leaves_a_gap() {
    let here = Here::new();
    let journal = here.open();
    for secret in ["a@test", "b@test", "c@test"] {
        Begun::of(&journal, secret).await;
    }
    drop(journal);
    here.edit("DELETE FROM records WHERE secret = 'b@test'; DELETE FROM rotations WHERE secret = 'b@test'");
    let faults = here.open().verify_audit().await.unwrap().faults;
    assert!(
        faults.iter().any(|fault| fault == "audit link 2 stands where link 1 belongs"),
        "{faults:?}"
    );
}

#[tokio::test]
async fn h132_a_link_that_was_forged_with_its_own_hash_does_not_lead_to_the_next_one() {
    for forged in 0..RECORDS - 1 {
        let (here, _, _) = written().await;
        let mut link = here.open().audit(forged).await.unwrap().swap_remove(0);
        link.action = "done by another".into();
        let hash = crate::audit::link_hash(&link);
        here.edit(&format!(
            "UPDATE records SET action = 'done by another', hash = '{hash}' WHERE link = {forged}"
        ));
        let faults = here.open().verify_audit().await.unwrap().faults;
        assert_eq!(
            faults,
            [format!("audit link {} does not follow the link before it", forged + 1)]
        );
    }
}

#[tokio::test]
async fn h132_reordered_records_are_noticed() {
    for link in 1..RECORDS {
        let former = link - 1;
        let swap = format!(
            "PRAGMA foreign_keys = 0; UPDATE records SET link = 99 WHERE link = {link};
             UPDATE records SET link = {link} WHERE link = {former}; UPDATE records SET link = {former} WHERE link = 99;"
        );
        assert!(!faults_after(&swap).await.is_empty(), "links {former} and {link}");
    }
}

#[tokio::test]
async fn h132_i14_a_cut_tail_contradicts_the_exported_head_even_if_all_tables_agree() {
    for cut in 0..RECORDS {
        let (here, _, exported) = written().await;
        here.edit(&format!(
            "PRAGMA foreign_keys = 0;
             DELETE FROM records WHERE link >= {cut}; DELETE FROM sealings WHERE link >= {cut};
             DELETE FROM sealed_values WHERE secret <> '' AND {cut} < 4; DELETE FROM rotations WHERE {cut} = 0;
             UPDATE rotations SET next = {cut};"
        ));
        let journal = here.open();
        let verdict = journal.verify_audit().await.unwrap();
        assert_eq!((verdict.links, &verdict.faults), (cut, &Vec::new()), "the cut itself is clean");
        assert!(audit_contradiction(&journal, &exported).await.is_some(), "cut before link {cut}");
    }
}

#[tokio::test]
async fn h132_a_chain_that_was_written_anew_contradicts_the_exported_head() {
    let (here, _, exported) = written().await;
    here.edit("UPDATE records SET action = 'planned by another' WHERE link = 0");
    let links = here.open().audit(0).await.unwrap();
    let mut previous = String::new();
    let mut rewrite = String::new();
    for mut link in links {
        link.previous_hash = previous;
        link.hash = crate::audit::link_hash(&link);
        let (number, before, hash) = (link.sequence, &link.previous_hash, &link.hash);
        rewrite += &format!(
            "UPDATE records SET previous_hash = '{before}', hash = '{hash}' WHERE link = {number};"
        );
        previous = link.hash;
    }
    here.edit(&rewrite);
    let journal = here.open();
    assert_eq!(
        journal.verify_audit().await.unwrap().faults,
        Vec::<String>::new(),
        "it is consistent in itself"
    );
    assert!(audit_contradiction(&journal, &exported).await.is_some());
}

#[tokio::test]
async fn h132_what_was_sealed_cannot_be_exchanged_or_denied() {
    for change in [
        "UPDATE sealings SET digest = zeroblob(32) WHERE link = 3",
        "UPDATE sealings SET digest = NULL WHERE link = 1",
        "UPDATE sealings SET version = 2 WHERE link = 2",
        "DELETE FROM sealings WHERE link = 2",
        "INSERT INTO sealings VALUES (4, 0, 'a@test', 1, 'credential', NULL)",
        "UPDATE sealed_values SET ciphertext = zeroblob(64) WHERE secret <> ''",
        "INSERT INTO sealed_values SELECT randomblob(16), 'b@test', version, part, nonce, ciphertext FROM sealed_values WHERE secret <> ''",
        "UPDATE rotations SET next = next + 1",
        "UPDATE rotations SET open = 0",
        "DELETE FROM rotations",
    ] {
        assert!(!faults_after(change).await.is_empty(), "{change}");
    }
}

#[tokio::test]
async fn a_record_that_is_not_what_was_written_is_named_and_not_read() {
    for (record, change) in [
        (0, "event = replace(event, 'here', 'ther')"),
        (1, "event = '{}'"),
        (2, "event = CAST(x'ff00' AS TEXT)"),
        (3, "at = at + 1"),
        (4, "actor = 77"),
        (5, "event = NULL"),
    ] {
        let (here, begun, _) = written().await;
        here.edit(&format!(
            "PRAGMA foreign_keys = 0; UPDATE records SET {change} WHERE sequence = {record}"
        ));
        let journal = here.open();
        match journal.records(&begun.rotation).await {
            Err(JournalError::Corrupt { place, .. }) => {
                assert_eq!(
                    place,
                    format!("record {record} of rotation {}", begun.rotation),
                    "{change}"
                );
            }
            Err(other) => panic!("{change}: another kind of error: {other}"),
            Ok(_) => panic!("{change}: it was read"),
        }
    }
}

#[tokio::test]
async fn a_damaged_inventory_row_is_named_and_not_read() {
    let here = Here::new();
    let journal = here.open();
    let begun = Begun::of(&journal, "a@test").await;
    let row = Some(Inventory::new(begun.secret.clone()));
    let entry = Entry { inventory: row, ..begun.entry(1, Event::Resumed) };
    conformance::append(&journal, vec![entry]).await.unwrap();
    drop(journal);
    here.edit("UPDATE inventory SET row = replace(row, '\"next\":1', '\"next\":9')");
    let journal = here.open();
    for found in [journal.inventory(&begun.secret).await.err(), journal.inventories().await.err()] {
        match found {
            Some(JournalError::Corrupt { place, .. }) => {
                assert_eq!(place, "the inventory row of `a@test`")
            }
            other => panic!("it was read: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_sealed_value_that_was_moved_or_changed_cannot_be_opened() {
    for change in [
        "ciphertext = zeroblob(length(ciphertext))",
        "part = 'slot:a/B'",
        "version = 2",
        "secret = 'b@test'",
    ] {
        let (here, _, _) = written().await;
        here.edit(&format!("UPDATE sealed_values SET {change} WHERE secret <> ''"));
        let journal = here.open();
        let mut found = Vec::new();
        for (secret, version, part) in [
            ("a@test", 1, "credential"),
            ("a@test", 1, "slot:a/B"),
            ("a@test", 2, "credential"),
            ("b@test", 1, "credential"),
        ] {
            let key = ValueKey {
                secret: secret.parse().unwrap(),
                version: VersionId(version),
                part: part.into(),
            };
            found.push(journal.unseal(&key).await);
        }
        assert!(
            found.iter().any(|found| matches!(found, Err(JournalError::Sealing(_)))),
            "{change}"
        );
        assert!(!found.iter().any(|found| matches!(found, Ok(Some(_)))), "{change}");
    }
}

#[tokio::test]
async fn a_database_file_with_flipped_bytes_never_yields_another_record() {
    let (here, begun, _) = written().await;
    let expected = here.open().records(&begun.rotation).await.unwrap();
    let path = here.places().journal;
    let whole = fs::read(&path).unwrap();
    for at in (100..whole.len()).step_by(611) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x24;
        fs::write(&path, &bytes).unwrap();
        let Ok(journal) = SqliteJournal::open(&here.places(), Open::Existing) else { continue };
        if let Ok(records) = journal.records(&begun.rotation).await {
            assert!(records == expected, "byte {at}");
        }
    }
}
