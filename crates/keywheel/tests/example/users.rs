//! What the users of the shop notice while everything is rotated, and that they would notice a mistake.

use super::readme::{Block, blocks, edited};
use super::shop::Shop;

/// What one line of the users tells.
#[derive(Debug)]
struct Counts {
    seconds: u64,
    requests: u64,
    failed: u64,
    shown: u64,
    refused: u64,
}

/// Ends the users, and returns what they counted to their end.
fn counts(shop: &mut Shop) -> (Counts, String) {
    let _said = shop.well("docker compose stop users");
    let said = shop.well("docker compose logs --no-log-prefix users");
    let last = said.lines().next_back().unwrap_or_default();
    let numbers = last.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok());
    let [seconds, requests, failed, shown, refused] = numbers.collect::<Vec<u64>>()[..] else {
        panic!("the users counted nothing: {said}");
    };
    (Counts { seconds, requests, failed, shown, refused }, said)
}

/// Opens a shop whose users are many, and whose windows are short.
fn busy_shop() -> Option<Shop> {
    let mut shop = Shop::copy()?;
    shop.edit("docker-compose.yml", |text| {
        text.replace("REQUESTS_EACH_SECOND: 50", "REQUESTS_EACH_SECOND: 220")
            .replace("JWT_LIFE_SECONDS: 40", "JWT_LIFE_SECONDS: 4")
    });
    let _said = shop.well("cargo xtask example");
    let _said = shop.well("./open-shop");
    let _said = shop.well("keywheel init");
    let printed = shop.with_ports(include_str!("../../../../examples/compose/README.md"));
    let (proposed, _) = printed.split_once("## Check and adopt").unwrap();
    for block in blocks(proposed) {
        if let Block::Edited(diff) = block {
            shop.edit("keywheel.yaml", |text| edited(&text, &diff));
        }
    }
    shop.edit("keywheel.yaml", |text| {
        text.replace("soak: 20s, rollback: 5s", "soak: 1s, rollback: 1s, watch: 1s")
            .replace("longest_token: 40s", "longest_token: 4s")
            .replace("service: backend,", "service: backend, ready_for: 200ms, settle_for: 1s,")
            .replace("service: worker,", "service: worker, ready_for: 200ms, settle_for: 1s,")
    });
    Some(shop)
}

#[test]
fn no_request_fails_while_everything_is_rotated_and_the_users_would_notice() {
    let Some(mut shop) = busy_shop() else { return };
    let key = shop.value("OPENAI_API_KEY");
    let said = shop.well("keywheel rotate jwt-secret openai-api-key --yes --soak");
    assert_eq!(said.matches("completed; v2 is current").count(), 2, "{said}");
    assert_eq!((shop.holders(&key), shop.holders(&shop.value("OPENAI_API_KEY"))), (0, 3));

    // The backend does not start with a secret that is longer than it knows.
    let secret = shop.value("JWT_SECRET");
    shop.edit("keywheel.yaml", |text| text.replace("bytes: 32", "bytes: 64"));
    let ran = shop.sh("keywheel rotate jwt-secret --yes");
    assert_eq!(ran.code, 2, "{}", ran.said);
    assert!(ran.said.contains("ended with 1 before it was ready"), "{}", ran.said);
    assert_eq!(shop.value("JWT_SECRET"), secret);
    let said = shop.well("keywheel doctor");
    assert!(said.contains("world and journal agree"), "{said}");

    let (counts, said) = counts(&mut shop);
    assert_eq!((counts.failed, counts.refused), (0, 0), "{said}");
    assert!(counts.requests >= 200 * counts.seconds && counts.shown > counts.seconds, "{said}");

    // One that was made by hand with a former value.
    let _said = shop.well(&format!("OPENAI_API_KEY={key} docker compose up -d --no-deps worker"));
    let ran = shop.sh("keywheel doctor");
    assert_eq!(ran.code, 3, "{}", ran.said);
    assert!(ran.said.contains("1 of 1 replicas of `worker` hold another value"), "{}", ran.said);

    at_once(&mut shop);
}

/// What a rotation must never do: every replica at once. Users who did not notice would prove nothing.
fn at_once(shop: &mut Shop) {
    let _said = shop.well("docker compose up -d --no-deps --force-recreate users");
    std::thread::sleep(std::time::Duration::from_secs(2));
    let _said = shop.well("docker compose up -d --no-deps --force-recreate backend");
    let (counts, said) = counts(shop);
    assert!(counts.failed > 0, "the users noticed nothing: {said}");
}
