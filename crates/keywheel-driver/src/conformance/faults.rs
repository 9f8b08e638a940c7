//! The faults that providers are known for, each at every call that an issuer makes of one.
//!
//! Whatever comes, two things hold. What the issuer says was made is what was made, and what it says was not made is not there,
//! so that one live version carries the label in the end and readers have its value (H04, H94). And no version is touched but
//! the one that was named, also where an answer names another (H92).

use std::future::Future;
use std::time::Duration;

use keywheel_core::call::CallError;
use keywheel_core::facts::Authority;
use keywheel_core::plan::Label;
use keywheel_core::secret::Credential;
use keywheel_core::version::IssuedId;

use crate::issuer::{Issuer, Mint, Minted, Verdict};

/// A call of a provider's API, by what the issuer wants of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Makes a version.
    Make,
    /// Shows one version.
    Look,
    /// Shows all of them.
    List,
    /// Switches a version off.
    Switch,
    /// Ends a version.
    End,
}

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It is not done, and there is no answer.
    SilentBefore,
    /// It is done, and there is no answer.
    SilentAfter,
    /// It is done, and the answer stops in its middle.
    Hangs,
    /// It is done, and the connection is cut.
    Cut,
    /// The connection is cut, and it is done later.
    Late,
    /// It is done twice, and the second answer is given.
    Twice,
    /// This status is answered instead, and nothing is done.
    Status(u16),
    /// The same, with the page of a proxy.
    Page(u16),
    /// The same, with the credential of the request.
    Echo(u16),
    /// It is to be tried again in an hour.
    Busy,
    /// A success of something else than the provider: nothing is done.
    Nonsense,
    /// It is done, and the answer names another version, at the first or a further place where it names one.
    AnotherId(usize),
}

const CALLS: [Call; 5] = [Call::Make, Call::Look, Call::List, Call::Switch, Call::End];

const WRONG: [Wrong; 23] = [
    Wrong::SilentBefore,
    Wrong::SilentAfter,
    Wrong::Hangs,
    Wrong::Cut,
    Wrong::Late,
    Wrong::Twice,
    Wrong::Status(400),
    Wrong::Status(401),
    Wrong::Status(403),
    Wrong::Status(404),
    Wrong::Status(409),
    Wrong::Status(410),
    Wrong::Status(422),
    Wrong::Status(429),
    Wrong::Status(500),
    Wrong::Status(503),
    Wrong::Page(403),
    Wrong::Page(502),
    Wrong::Echo(401),
    Wrong::Busy,
    Wrong::Nonsense,
    Wrong::AnotherId(0),
    Wrong::AnotherId(1),
];

/// How long something takes that is done after the connection is gone.
pub const LATE: Duration = Duration::from_millis(20);

/// How long is waited for an answer that never comes.
const SILENCE: Duration = Duration::from_millis(80);

/// How long is waited for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A provider that goes wrong as it is told.
pub trait OtherSide: Sync {
    /// Lets the next call of a kind go wrong; an answer that names another version names this one. Returns false where this
    /// provider has no such call, or its answer names no version there.
    fn arm(&self, call: Call, wrong: Wrong, other: &IssuedId) -> bool;

    /// Returns whether the call came.
    fn has_happened(&self) -> bool;

    /// Returns whether all is done that was to be done late.
    fn has_landed(&self) -> bool;

    /// Lets nothing go wrong any more.
    fn disarm(&self);

    /// Counts the versions that live under a label, without asking the issuer.
    fn live(&self, label: &str) -> usize;
}

/// An issuer before a provider that goes wrong.
pub struct Faulty<'a> {
    /// The issuer; it takes no longer than a moment for a call that is done.
    pub issuer: &'a dyn Issuer,
    /// What the labels of the suite begin with; nothing else at the issuer does.
    pub prefix: &'a str,
    /// The provider.
    pub side: &'a dyn OtherSide,
    /// Whether a mint looks at what it made before it goes by the answer (H92).
    pub looks_at_what_it_made: bool,
}

/// What came of a call that went wrong.
enum Outcome<T> {
    Done(T),
    Refused,
    /// Nobody knows, or the time was up.
    Unknown,
}

/// Runs every fault at every call, and returns how many there were.
pub async fn no_fault_does_harm(faulty: &Faulty<'_>) -> usize {
    let kept = faulty.minted("kept").await;
    let mut run = 0;
    for wrong in WRONG {
        for call in CALLS {
            let case = format!("{call:?}-{wrong:?}").replace(['(', ')'], "").to_lowercase();
            if !faulty.side.arm(call, wrong, &kept.0) {
                continue;
            }
            faulty.side.disarm();
            run += 1;
            match call {
                Call::Make => faulty.at_a_mint(call, wrong, &kept.0, &case).await,
                Call::List => faulty.at_a_list(wrong, &kept.0, &case).await,
                Call::Look | Call::Switch | Call::End => {
                    faulty.at_an_end(call, wrong, &kept.0, &case).await;
                }
            }
            if call == Call::Look && faulty.looks_at_what_it_made {
                faulty.at_a_mint(call, wrong, &kept.0, &format!("{case}-made")).await;
            }
            assert_eq!(faulty.verdict(&kept.1).await, Some(Verdict::Accepted), "{case}: another");
        }
    }
    faulty.ended(&kept.0).await;
    run
}

impl Faulty<'_> {
    /// One version is left under the label, and it is the one that was answered.
    async fn at_a_mint(&self, call: Call, wrong: Wrong, other: &IssuedId, case: &str) {
        let label = self.label(case);
        self.side.arm(call, wrong, other);
        let outcome = self.struck(wrong, self.issuer.mint(&Mint::new(&label))).await;
        assert!(self.side.has_happened(), "{case} did not happen");
        let live = self.listed(&label).await;
        match outcome {
            Outcome::Done(minted) => {
                let misnamed = call == Call::Make && matches!(wrong, Wrong::AnotherId(_));
                assert!(!misnamed, "{case}: a wrong id was believed");
                let issued = minted.issued.expect("an issuer with labels has ids");
                assert!(live.contains(&issued), "{case}: {issued} is not what was made");
                // As the last sweep of a rotation does.
                for stray in live.iter().filter(|id| **id != issued) {
                    self.ended(stray).await;
                }
                let left = self.listed(&label).await;
                assert_eq!(left, std::slice::from_ref(&issued), "{case}");
                assert_eq!(self.side.live(&label.0), 1, "{case}");
                let credential = minted.credential.expect("somebody made a value");
                assert_eq!(self.verdict(&credential).await, Some(Verdict::Accepted), "{case}");
                self.ended(&issued).await;
            }
            Outcome::Refused => assert_eq!(live, [], "{case}: it was refused, and is there"),
            Outcome::Unknown => {
                for orphan in &live {
                    self.ended(orphan).await;
                }
            }
        }
        assert_eq!(self.side.live(&label.0), 0, "{case}: a version is left");
    }

    /// What is there is shown, or the list is no list.
    async fn at_a_list(&self, wrong: Wrong, kept: &IssuedId, case: &str) {
        self.side.arm(Call::List, wrong, kept);
        let outcome = self.struck(wrong, self.issuer.list(self.prefix)).await;
        assert!(self.side.has_happened(), "{case} did not happen");
        if let Outcome::Done(live) = outcome {
            assert!(live.iter().any(|live| live.issued == *kept), "{case}: a version is not shown");
        }
    }

    /// What is said to be ended, or switched off, is; and it can be ended once all is well.
    async fn at_an_end(&self, call: Call, wrong: Wrong, other: &IssuedId, case: &str) {
        let (issued, credential) = self.minted(case).await;
        let label = self.label(case);
        self.side.arm(call, wrong, other);
        let outcome = match (call, self.issuer.suspend()) {
            (Call::Switch, Some(switch)) => self.struck(wrong, switch.suspend(&issued)).await,
            _ => self.struck(wrong, self.issuer.revoke(&issued)).await,
        };
        assert!(self.side.has_happened(), "{case} did not happen");
        // A provider that does not show a version that lives cannot be told from one where it is gone.
        let is_lie = call != Call::Switch && matches!(wrong, Wrong::Status(404 | 410));
        if matches!(outcome, Outcome::Done(())) && !is_lie {
            assert!(!matches!(wrong, Wrong::AnotherId(_)), "{case}: another version is believed");
            let verdict = self.verdict(&credential).await;
            assert!(verdict.is_none_or(|verdict| verdict == Verdict::Refused), "{case}: it lives");
        }
        if let (Call::Switch, Some(switch)) = (call, self.issuer.suspend()) {
            let resumed = switch.resume(&issued).await;
            resumed.unwrap_or_else(|error| panic!("{case}: not resumed: {error}"));
            assert_eq!(self.verdict(&credential).await, Some(Verdict::Accepted), "{case}");
        }
        self.ended(&issued).await;
        assert_eq!((self.listed(&label).await, self.side.live(&label.0)), (vec![], 0), "{case}");
    }

    /// Waits for a call until it ends, and until nothing of it can land any more. One that is never answered is dropped, as the
    /// engine drops what takes too long.
    async fn struck<T>(
        &self,
        wrong: Wrong,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Outcome<T> {
        let is_silent = matches!(wrong, Wrong::SilentBefore | Wrong::SilentAfter | Wrong::Hangs);
        let time_is_up = async {
            until(|| is_silent && self.side.has_happened()).await;
            tokio::time::sleep(SILENCE).await;
        };
        let outcome = tokio::select! {
            biased;
            done = call => match done {
                Ok(done) => Outcome::Done(done),
                Err(CallError::Refused(_)) => Outcome::Refused,
                Err(CallError::Unknown(_)) => Outcome::Unknown,
            },
            () = time_is_up => Outcome::Unknown,
        };
        let landed = until(|| self.side.has_landed());
        tokio::time::timeout(PATIENCE, landed).await.expect("it lands");
        outcome
    }

    fn label(&self, name: &str) -> Label {
        Label(format!("{}{name}", self.prefix))
    }

    async fn minted(&self, name: &str) -> (IssuedId, Credential) {
        let label = self.label(name);
        let minted = self.issuer.mint(&Mint::new(&label)).await;
        let Minted { issued, credential, .. } =
            minted.unwrap_or_else(|error| panic!("{name}: no mint: {error}"));
        issued.zip(credential).expect("an issuer that makes values has ids")
    }

    async fn listed(&self, label: &Label) -> Vec<IssuedId> {
        let live = self.issuer.list(&label.0).await;
        let live = live.unwrap_or_else(|error| panic!("no list: {error}")).into_iter();
        // One label may begin with another.
        live.filter(|live| live.label.as_ref() == Some(label)).map(|live| live.issued).collect()
    }

    async fn ended(&self, id: &IssuedId) {
        self.issuer.revoke(id).await.unwrap_or_else(|error| panic!("no end of {id}: {error}"));
    }

    /// What the issuer says of a value, where it is one that can be asked.
    async fn verdict(&self, credential: &Credential) -> Option<Verdict> {
        if self.issuer.facts().authority != Authority::Issuer {
            return None;
        }
        let verdict = self.issuer.verify(credential).await;
        Some(verdict.unwrap_or_else(|error| panic!("no verdict: {error}")))
    }
}

async fn until(it_is_so: impl Fn() -> bool) {
    while !it_is_so() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
