//! What the tests of all issuers before a twin have in common.

use std::time::Duration;

use keywheel_core::plan::Label;
use keywheel_core::secret::{Credential, SecretValue};
use keywheel_core::version::IssuedId;
use keywheel_driver::conformance::faults::{
    Call, Faulty, LATE, OtherSide, Wrong, no_fault_does_harm,
};
use keywheel_driver::issuer::{Issuer, Mint, Minted, Verdict};
use keywheel_driver::{CallError, Refusal};
use keywheel_twins::fault::{Echo, Fault, Faults, Rule};
use serde_json::Value;

/// Makes a folder in which an admin credential stands in `admin.key`.
pub(crate) fn written(admin: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("admin.key"), format!("{admin}\n")).unwrap();
    folder
}

/// Takes what is said in `changes` into a configuration.
pub(crate) fn taken_over(mut config: Value, changes: Value) -> Value {
    let Value::Object(changes) = changes else { panic!("changes are an object") };
    config.as_object_mut().unwrap().extend(changes);
    config
}

pub(crate) fn credential(value: &str) -> Credential {
    Credential::of_value(SecretValue::new(value.into()))
}

pub(crate) async fn mint(
    issuer: &dyn Issuer,
    label: &str,
    previous: Option<&IssuedId>,
    in_use: Option<&Credential>,
) -> Result<Minted, CallError> {
    let label = Label(label.into());
    issuer.mint(&Mint { previous, in_use, ..Mint::new(&label) }).await
}

pub(crate) fn status(code: u16, body: Echo) -> Fault {
    Fault::Status { code, retry_after: None, body, applied: false }
}

pub(crate) fn refusal<T>(outcome: Result<T, CallError>) -> Refusal {
    match outcome {
        Err(CallError::Refused(refusal)) => refusal,
        Err(CallError::Unknown(message)) => panic!("unknown: {message}"),
        Ok(_) => panic!("it was done"),
    }
}

pub(crate) fn is_unknown<T>(outcome: &Result<T, CallError>) -> bool {
    matches!(outcome, Err(CallError::Unknown(_)))
}

/// Revokes a version while one call of it comes to a fault: it is done (`Some(true)`), refused, or nobody knows (`None`).
/// Asked again without the fault, it is done.
pub(crate) async fn revoke_means(
    issuer: &dyn Issuer,
    faults: &Faults,
    id: &IssuedId,
    (operation, fault, done): (&str, Fault, Option<bool>),
) {
    faults.set(vec![Rule::first(operation, fault.clone())]).unwrap();
    let outcome = issuer.revoke(id).await;
    assert_eq!(faults.unfired(), [], "{operation} {fault:?}");
    assert_eq!(is_unknown(&outcome), done.is_none(), "{operation} {fault:?}: {outcome:?}");
    assert_eq!(outcome.is_ok(), done == Some(true), "{operation} {fault:?}: {outcome:?}");
    issuer.revoke(id).await.unwrap_or_else(|e| panic!("{operation} {fault:?}: {e}"));
}

/// A call of a provider as its twin has it: what the call is for, the name of the operation, and where its answer names a version.
pub(crate) type Operation = (Call, &'static str, &'static [&'static str]);

/// A twin that goes wrong as the suite of faults tells it.
pub(crate) struct Script<'a> {
    pub(crate) faults: &'a Faults,
    pub(crate) operations: &'a [Operation],
    /// What an answer of this operation names there, where it names this version.
    pub(crate) names: &'a (dyn Fn(&str, &str, &IssuedId) -> String + Sync),
    /// Counts the live keys of a label.
    pub(crate) live: &'a (dyn Fn(&str) -> usize + Sync),
}

impl Script<'_> {
    /// Runs every fault at each of these calls of the issuer before this twin; returns how many pairs of both there were.
    pub(crate) async fn does_no_harm(
        &self,
        issuer: &dyn Issuer,
        looks_at_what_it_made: bool,
    ) -> usize {
        let (prefix, side) = ("kw-row-", self as &dyn OtherSide);
        no_fault_does_harm(&Faulty { issuer, prefix, side, looks_at_what_it_made }).await
    }
}

impl OtherSide for Script<'_> {
    fn arm(&self, call: Call, wrong: Wrong, other: &IssuedId) -> bool {
        let operation = self.operations.iter().find(|(what, ..)| *what == call);
        let Some((_, operation, ids)) = operation else { return false };
        let fault = match wrong {
            Wrong::SilentBefore => Fault::TimeoutBefore,
            Wrong::SilentAfter => Fault::TimeoutAfter,
            Wrong::Hangs => Fault::Hang,
            Wrong::Cut => Fault::Cut,
            Wrong::Late => {
                Fault::LateLanding { after_ms: u64::try_from(LATE.as_millis()).unwrap() }
            }
            Wrong::Twice => Fault::Twice,
            Wrong::Status(code) => Fault::status(code),
            Wrong::Page(code) => status(code, Echo::Html),
            Wrong::Echo(code) => status(code, Echo::EchoKey),
            Wrong::Busy => Fault::busy(),
            Wrong::Nonsense => status(200, Echo::Html),
            Wrong::AnotherId(nth) => {
                let Some(at) = ids.get(nth) else { return false };
                let id = (self.names)(operation, at, other);
                Fault::AnotherId { at: (*at).into(), id }
            }
        };
        self.faults.set(vec![Rule::first(operation, fault)]).unwrap();
        true
    }

    fn has_happened(&self) -> bool {
        self.faults.unfired().is_empty()
    }

    fn has_landed(&self) -> bool {
        self.faults.has_landed()
    }

    fn disarm(&self) {
        self.faults.set(Vec::new()).unwrap();
    }

    fn live(&self, label: &str) -> usize {
        (self.live)(label)
    }
}

/// What an answer names where a version has one id everywhere.
pub(crate) fn one_id(_operation: &str, _at: &str, version: &IssuedId) -> String {
    version.id.clone()
}

/// Asks about a live credential while the one call of it comes to whatever says neither yes nor a definite no: none of it
/// proves a death (H88).
pub(crate) async fn unclear_answers_prove_nothing(
    issuer: &dyn Issuer,
    faults: &Faults,
    operation: &str,
    live: &Credential,
) {
    assert_eq!(issuer.verify(live).await.unwrap(), Verdict::Accepted);
    let codes = [400, 402, 403, 404, 409, 429, 500, 503, 529].map(Fault::status);
    let unclear = [status(401, Echo::Html), status(200, Echo::Html)];
    for fault in codes.into_iter().chain(unclear) {
        faults.set(vec![Rule::first(operation, fault.clone())]).unwrap();
        let verdict = issuer.verify(live).await.unwrap();
        assert!(matches!(verdict, Verdict::CannotTell(_)), "{fault:?}: {verdict:?}");
    }
    faults.set(vec![Rule::first(operation, Fault::Cut)]).unwrap();
    assert!(is_unknown(&issuer.verify(live).await));
}

/// Waits until the issuer accepts a version that it does not know yet, revokes it, and waits until it refuses it (H87, H88).
pub(crate) async fn changes_are_known_later(
    issuer: &dyn Issuer,
    id: &IssuedId,
    credential: &Credential,
) {
    let verdict = async || issuer.verify(credential).await.unwrap();
    for (before, after) in
        [(Verdict::Refused, Verdict::Accepted), (Verdict::Accepted, Verdict::Refused)]
    {
        assert_eq!(verdict().await, before);
        while verdict().await != after {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        issuer.revoke(id).await.unwrap_or_else(|e| panic!("{e}"));
    }
}

/// Suspends a version while the one call of it comes to a fault: nobody knows, and asked again it is done.
pub(crate) async fn suspend_is_made_again(
    issuer: &dyn Issuer,
    faults: &Faults,
    (id, credential): &(IssuedId, Credential),
    (operation, fault): (&str, Fault),
) {
    faults.set(vec![Rule::first(operation, fault.clone())]).unwrap();
    let suspend = issuer.suspend().unwrap();
    assert!(is_unknown(&suspend.suspend(id).await), "{fault:?}");
    suspend.suspend(id).await.unwrap_or_else(|e| panic!("{fault:?}: {e}"));
    assert_eq!(issuer.verify(credential).await.unwrap(), Verdict::Refused);
}
