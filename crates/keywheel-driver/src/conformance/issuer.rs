//! The suite that every issuer passes.
//!
//! It asks each question once and at once, so the other side must be one that knows new and revoked credentials without
//! delay. It panics where the issuer fails, and ends whatever it minted where the issuer can.

use std::collections::BTreeSet;

use keywheel_core::call::CallError;
use keywheel_core::facts::{Authority, Observe, ValueOrigin};
use keywheel_core::plan::Label;
use keywheel_core::secret::{Credential, Field, SecretValue};
use keywheel_core::time::Timestamp;
use keywheel_core::version::IssuedId;

use crate::issuer::{Issuer, Live, Mint, Minted, Verdict};

/// An issuer and what the suite needs beside it.
pub struct Subject<'a> {
    /// The issuer.
    pub issuer: &'a dyn Issuer,
    /// What the labels of the suite begin with; nothing else at the issuer does.
    pub prefix: &'a str,
    /// A credential in the right shape that the issuer never knew.
    pub garbage: &'a Credential,
    /// Makes the next mint be done and its answer be lost, where the other side can be told to.
    pub lose_next_answer: Option<&'a (dyn Fn() + Sync)>,
    /// The same kind of issuer before other sides that fail, and that repeat in their answers what they are sent.
    pub broken: &'a [&'a dyn Issuer],
    /// The values that no message may hold: those that the broken ones are configured with or asked about.
    pub canaries: &'a [&'a Credential],
}

/// Runs the whole suite.
pub async fn run(subject: &Subject<'_>) {
    facts_and_abilities_agree(subject.issuer);
    values_are_fresh(subject.issuer);
    a_mint_is_found_by_its_label(subject).await;
    a_revoke_ends_one_version_only(subject).await;
    garbage_is_never_accepted(subject).await;
    a_lost_mint_is_found_once(subject).await;
    no_message_holds_a_value(subject).await;
}

/// An ability is there if and only if the facts say so.
pub fn facts_and_abilities_agree(issuer: &dyn Issuer) {
    let facts = issuer.facts();
    assert_eq!(issuer.suspend().is_some(), facts.suspend, "`suspend` and its fact disagree");
    assert_eq!(
        issuer.usage().is_some(),
        facts.last_used.is_some(),
        "`usage` and its fact disagree"
    );
    assert_eq!(
        issuer.tokens().is_some(),
        facts.authority == Authority::Workload,
        "`tokens` and its fact disagree"
    );
    let generates = issuer.generate(&mut Stream::new(0).fill(), None).is_some();
    assert_eq!(
        generates,
        facts.value == ValueOrigin::Ours,
        "`generate` and the origin of the value disagree"
    );
    assert!(
        facts.label || facts.observe != Observe::Label,
        "a label that is not kept cannot be observed"
    );
}

/// Values that are ours come from the given randomness alone, hold at least 128 bits of it, and need no quoting anywhere
/// (H75, H99).
pub fn values_are_fresh(issuer: &dyn Issuer) {
    let value = |seed| {
        let made = issuer.generate(&mut Stream::new(seed).fill(), None)?;
        let secret = made.value().or_else(|| made.field(&Field::new("password")));
        Some(
            secret
                .expect("a credential that is generated has a `value` or a `password`")
                .duplicate(),
        )
    };
    let Some(first) = value(0) else { return };
    let again = value(0).expect("it generated before");
    assert!(first.same_as(&again), "a value depends on more than the given randomness");

    let values: Vec<SecretValue> = (0..256).filter_map(value).collect();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
    assert!(
        values.iter().all(|value| value.expose().iter().all(plain)),
        "a value has a character that needs quoting"
    );
    let distinct: BTreeSet<&[u8]> = values.iter().map(SecretValue::expose).collect();
    assert_eq!(distinct.len(), values.len(), "two values are alike");
    let varieties = (0..first.expose().len()).map(|position| {
        values
            .iter()
            .filter_map(|value| value.expose().get(position))
            .collect::<BTreeSet<_>>()
            .len()
    });
    let bits: f64 = varieties.map(|distinct| (distinct.max(1) as f64).log2()).sum();
    assert!(bits >= 128.0, "a value holds {bits:.0} bits");
}

/// A mint under a fresh label is in the list under that label, once, with the id that the mint returned.
pub async fn a_mint_is_found_by_its_label(subject: &Subject<'_>) {
    let label = label(subject, "found");
    let minted = mint(subject, &label, None).await;
    assert!(minted.credential.is_some(), "nobody made a value");
    if subject.issuer.facts().label {
        let issued = minted.issued.expect("an issuer with labels has ids");
        let wanted = Live { issued: issued.clone(), label: Some(label.clone()) };
        assert_eq!(list(subject, &label.0).await, [wanted]);
        revoke(subject, &issued).await;
        assert_eq!(list(subject, &label.0).await, []);
    } else if let (true, Some(issued)) = (subject.issuer.facts().destroy, minted.issued) {
        // It may hold no more than a few at once.
        revoke(subject, &issued).await;
    }
}

/// A revoke ends the version that it names and no other, and is done where it was done before (H92, H96).
pub async fn a_revoke_ends_one_version_only(subject: &Subject<'_>) {
    if !subject.issuer.facts().destroy {
        return;
    }
    // The one label begins with the other.
    let (one, other) = (label(subject, "exact-1"), label(subject, "exact-10"));
    let ended = mint(subject, &one, None).await;
    let kept = mint(subject, &other, ended.issued.as_ref()).await;
    let ended_id = ended.issued.expect("what can be ended has an id");
    let kept_id = kept.issued.expect("what can be ended has an id");
    revoke(subject, &ended_id).await;
    revoke(subject, &ended_id).await;
    let left: Vec<IssuedId> =
        list(subject, subject.prefix).await.into_iter().map(|live| live.issued).collect();
    assert!(left.contains(&kept_id) && !left.contains(&ended_id), "the wrong version was ended");
    let asks = subject.issuer.facts().authority == Authority::Issuer;
    if let (true, Some(ended), Some(kept)) = (asks, ended.credential, kept.credential) {
        assert_eq!(verify(subject.issuer, &ended).await, Ok(Verdict::Refused), "an ended version");
        assert_eq!(
            verify(subject.issuer, &kept).await,
            Ok(Verdict::Accepted),
            "the version beside it"
        );
    }
    revoke(subject, &kept_id).await;
}

/// A credential that was never issued is refused, or nobody can tell.
pub async fn garbage_is_never_accepted(subject: &Subject<'_>) {
    let verdict = verify(subject.issuer, subject.garbage).await;
    match subject.issuer.facts().authority {
        Authority::Issuer => assert_eq!(verdict, Ok(Verdict::Refused)),
        Authority::Workload | Authority::None => {
            assert!(matches!(verdict, Ok(Verdict::CannotTell(_))), "{verdict:?}")
        }
    }
}

/// A mint that was done and whose answer was lost is unknown, and its label finds exactly one (H04).
pub async fn a_lost_mint_is_found_once(subject: &Subject<'_>) {
    let Some(lose_next_answer) = subject.lose_next_answer else { return };
    let label = label(subject, "lost");
    lose_next_answer();
    match attempt(subject.issuer, &label, None).await {
        Err(CallError::Unknown(_)) => {}
        Err(error) => panic!("a lost answer is not unknown: {error}"),
        Ok(_) => panic!("the answer was not lost"),
    }
    let found = list(subject, &label.0).await;
    let [orphan] = found.as_slice() else { panic!("{} versions carry the label", found.len()) };
    revoke(subject, &orphan.issued).await;
    assert_eq!(list(subject, &label.0).await, []);
}

/// Whatever fails, no message holds a value or a part of one (H109, H115).
pub async fn no_message_holds_a_value(subject: &Subject<'_>) {
    for issuer in subject.broken {
        for canary in subject.canaries {
            let said = everything_said(*issuer, canary, &label(subject, "broken")).await;
            let parts: BTreeSet<&[u8]> = said.as_bytes().windows(12).collect();
            for (_, value) in subject.canaries.iter().flat_map(|canary| canary.fields()) {
                let leaked = value.expose().windows(12).any(|part| parts.contains(part));
                assert!(!leaked, "a message holds a part of a value");
            }
        }
    }
}

/// Calls every method and returns all that they have to say.
async fn everything_said(issuer: &dyn Issuer, canary: &Credential, label: &Label) -> String {
    let id = IssuedId::new("owner/key");
    let mut said = format!("{:?}\n", issuer.preflight().await);
    said += &format!("{:?}\n", attempt(issuer, label, None).await.map(|minted| minted.issued));
    said += &format!("{:?}\n", verify(issuer, canary).await);
    said += &format!("{:?}\n", issuer.list(&label.0).await);
    said += &format!("{:?}\n", issuer.confirm(&id).await);
    said += &format!("{:?}\n", issuer.reread(&id).await.map(drop));
    said += &format!("{:?}\n", issuer.revoke(&id).await);
    said += &format!("{:?}\n", issuer.identify(canary).await);
    said += &format!("{:?} {:?}\n", issuer.outdated(&id).await, issuer.ends_at(canary).await);
    if let Some(suspend) = issuer.suspend() {
        said += &format!("{:?} {:?}\n", suspend.suspend(&id).await, suspend.resume(&id).await);
    }
    if let Some(usage) = issuer.usage() {
        said += &format!("{:?}\n", usage.last_used(&id).await);
    }
    if let Some(audit) = issuer.audit() {
        said += &format!("{:?}\n", audit.since(&id, Timestamp::from_millis(0)).await);
    }
    if let Some(extend) = issuer.extend() {
        said += &format!("{:?}\n", extend.extend(&id).await);
    }
    // A token that cannot be made says nothing, and one that is made is a value itself.
    drop(issuer.tokens().map(|tokens| tokens.harmless(canary, Timestamp::from_millis(0))));
    said
}

fn label(subject: &Subject<'_>, name: &str) -> Label {
    Label(format!("{}{name}", subject.prefix))
}

async fn attempt(
    issuer: &dyn Issuer,
    label: &Label,
    previous: Option<&IssuedId>,
) -> Result<Minted, CallError> {
    let stream = Stream::new(label.0.len() as u64);
    let value = issuer.generate(&mut stream.fill(), previous);
    let request = Mint { value: value.as_ref(), previous, ..Mint::new(label) };
    let minted = issuer.mint(&request).await?;
    Ok(Minted { credential: minted.credential.or(value), ..minted })
}

/// Mints a version; where names take turns, beside the previous one.
async fn mint(subject: &Subject<'_>, label: &Label, previous: Option<&IssuedId>) -> Minted {
    let previous = previous.filter(|_| subject.issuer.facts().takes_turns);
    let minted = attempt(subject.issuer, label, previous).await;
    minted.unwrap_or_else(|error| panic!("no mint: {error}"))
}

async fn list(subject: &Subject<'_>, prefix: &str) -> Vec<Live> {
    subject.issuer.list(prefix).await.unwrap_or_else(|error| panic!("no list: {error}"))
}

async fn revoke(subject: &Subject<'_>, id: &IssuedId) {
    subject.issuer.revoke(id).await.unwrap_or_else(|error| panic!("no revoke: {error}"));
}

async fn verify(issuer: &dyn Issuer, credential: &Credential) -> Result<Verdict, CallError> {
    issuer.verify(credential).await
}

/// A stream of bytes that a seed decides (SplitMix64): the suite needs variety, not secrecy.
struct Stream(u64);

impl Stream {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    fn fill(mut self) -> impl FnMut(&mut [u8]) + Send {
        move |bytes| bytes.iter_mut().for_each(|byte| *byte = self.next())
    }

    fn next(&mut self) -> u8 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 56) as u8
    }
}
