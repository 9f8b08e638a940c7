//! What can happen to a rotation: the records of its journal, read for ever once written.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::call::{Refusal, RefusalKind};
use crate::evidence::Count;
use crate::fingerprint::Fingerprint;
use crate::gate::{Clocks, Visit};
use crate::incident::{Behind, BehindStore, WorkloadLogs};
use crate::plan::{Plan, RotationId};
use crate::strategy::{Position, Side};
use crate::time::Timestamp;
use crate::version::{IssuedId, VersionId};

/// One record.
///
/// Two kinds alternate for everything outside the journal: [`Event::Intended`] is durable before a step's call begins, and
/// one of `Done`, `Refused`, `Unknown` says what came of it. All others are records only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The rotation begins; nothing has been done.
    Planned(Arc<Plan>),
    /// A step is about to be taken, and its call ends by itself at `until`.
    Intended {
        /// The step.
        step: Step,
        /// The hard deadline of its call.
        until: Timestamp,
        /// The clocks just before, by which a wall clock that was set back is found; none in records of before they were kept.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        clocks: Option<Clocks>,
    },
    /// The step was taken.
    Done {
        /// The step.
        step: Step,
        /// What it brought.
        report: Report,
    },
    /// The step was definitely not taken.
    Refused {
        /// The step.
        step: Step,
        /// Why.
        refusal: Refusal,
    },
    /// Nobody knows whether the step was taken, and it may still land.
    Unknown {
        /// The step.
        step: Step,
    },
    /// A move to a neighbouring arrangement begins; its wave leases are taken in the same commit.
    MoveBegun {
        /// Where it leads.
        to: Position,
    },
    /// Every store holds the arrangement, and every replica proved it; its wave leases are given back in the same commit.
    Arrived {
        /// Where.
        at: Position,
    },
    /// A version became current.
    Promoted {
        /// Which.
        side: Side,
    },
    /// The suspect is ended although delivery is not complete (`stage_for` is over).
    StageClosed,
    /// The rotation turns round and walks back.
    TurnedBack {
        /// Why.
        because: Because,
    },
    /// The rotation waits for an operator. Nothing destructive runs.
    Parked {
        /// Why.
        reason: ParkReason,
    },
    /// An operator lets a parked rotation go on; everything is observed anew.
    Resumed,
    /// An operator names the issuer's id of a version that was adopted without one.
    Identified {
        /// The version.
        version: VersionId,
        /// Its id.
        issued: IssuedId,
    },
    /// An operator overrides a closed gate, and names the use that was seen.
    Overridden {
        /// The words.
        because: String,
    },
    /// An operator or policy ends the rollback window early.
    WindowClosed {
        /// The words.
        because: String,
    },
    /// An operator closes a parked rotation on their word.
    Resolved {
        /// How it is recorded.
        outcome: Outcome,
        /// The words.
        because: String,
    },
    /// An emergency took this rotation over, with its obligations.
    Superseded {
        /// The emergency's rotation.
        by: RotationId,
    },
    /// The sealed values that are no longer needed were destroyed in the same commit.
    Purged,
    /// Nothing is owed any more.
    Ended {
        /// How it ended.
        outcome: Outcome,
    },
}

/// One journaled unit of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Checks everything that can be checked without changing anything (H19).
    Preflight,
    /// Reads and seals what every store holds now.
    Capture,
    /// Asks the issuer for the pending version.
    Mint {
        /// The attempt; each has its own label.
        attempt: u16,
    },
    /// Finds out what became of a mint whose answer never came.
    FindMint {
        /// The attempt.
        attempt: u16,
    },
    /// Ends a credential that a lost mint left behind and whose value nobody has.
    RevokeStray {
        /// The attempt whose label it carries; 0 where a sweep found it.
        attempt: u16,
    },
    /// Asks the issuer, several times in a row where its answers have to spread, whether it accepts a version.
    Verify(VersionId),
    /// Writes one store.
    Write {
        /// Which store, by index.
        store: u8,
        /// The arrangement it is to hold.
        to: Position,
    },
    /// Makes every replica of one workload hold an arrangement.
    Roll {
        /// Which workload, by index.
        workload: u8,
        /// The arrangement.
        to: Position,
    },
    /// Looks at every replica of one workload.
    Evidence {
        /// Which workload, by index.
        workload: u8,
        /// The arrangement that they should hold.
        to: Position,
    },
    /// Asks every probe.
    Probe {
        /// The arrangement that was just rolled out.
        to: Position,
    },
    /// Looks at every gate and counts soak.
    Visit,
    /// Makes a version refused, reversibly.
    Suspend(VersionId),
    /// Makes a suspended version accepted again.
    Resume(VersionId),
    /// Ends a version for good.
    Revoke(VersionId),
    /// Proves that a version is refused.
    VerifyDead(VersionId),
    /// Looks for live credentials under this rotation's labels that nobody owns.
    Sweep,
    /// Extends a lease.
    Extend,
    /// Extends the lease of a version that readers may hold, while another rotation of its secret is open.
    KeepAlive(VersionId),
    /// Removes what one store kept for the way back, where nobody can need it any more.
    CleanUp {
        /// Which store, by index.
        store: u8,
    },
}

impl Step {
    /// Returns whether the call can change anything outside the journal.
    pub fn mutates(self) -> bool {
        matches!(
            self,
            Self::Mint { .. }
                | Self::RevokeStray { .. }
                | Self::Write { .. }
                | Self::Roll { .. }
                | Self::Suspend(_)
                | Self::Resume(_)
                | Self::Revoke(_)
                | Self::Extend
                | Self::KeepAlive(_)
        )
    }
}

/// What a step brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// Nothing beyond being done.
    Plain,
    /// What every store holds now was read and sealed.
    Captured {
        /// The fingerprint of the credential that the stores agree on; none where there is none yet, or they are not asked to agree.
        fingerprint: Option<Fingerprint>,
        /// Where the logs are of what may be replaced, by workload.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        logs: Vec<WorkloadLogs>,
        /// When each slot was changed last, by store, where a store tells nothing else: a change after that is somebody else's.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        changed_at: Vec<(u8, Vec<Option<Timestamp>>)>,
        /// What an emergency could not read, in sentences for people.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        passed_over: Vec<String>,
    },
    /// It was done, and this is worth knowing: what an emergency passed over.
    Noted {
        /// Sentences for people.
        notes: Vec<String>,
    },
    /// A suspect was ended while readers may still have needed it: a declared outage.
    Revoked {
        /// The replicas that did not prove the new version at that time.
        behind: Vec<Behind>,
        /// The stores that may still hold the suspect.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        stores: Vec<BehindStore>,
    },
    /// A mint made a version.
    Minted {
        /// The issuer's id.
        issued: Option<IssuedId>,
        /// The fingerprint of the credential.
        fingerprint: Option<Fingerprint>,
        /// When the issuer ends it by itself.
        expires_at: Option<Timestamp>,
        /// What the version in use has and this one has not (H91).
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        notes: Vec<String>,
    },
    /// A search found what a lost mint left, or nothing.
    Found {
        /// The issuer's id, or an empty one where the issuer keeps none and accepts the value.
        issued: Option<IssuedId>,
        /// Whether we hold its value: it was ours, or could be read again.
        held: bool,
        /// The fingerprint of the credential, where we hold it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fingerprint: Option<Fingerprint>,
    },
    /// A write was made.
    Written {
        /// Whether the store held something else before.
        changed: bool,
        /// When each slot was changed last, as a store tells it that tells nothing else of what it holds.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        changed_at: Vec<Option<Timestamp>>,
    },
    /// Replicas were looked at.
    Seen(Count),
    /// Gates were looked at.
    Visited(Box<Visit>),
    /// What a proof of death found.
    Dead(Death),
    /// A sweep found these.
    Swept {
        /// Live ids under our labels that nobody owns.
        strays: Vec<IssuedId>,
    },
    /// A lease now ends then.
    Extended {
        /// When.
        expires_at: Timestamp,
    },
}

/// What a proof of death found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Death {
    /// Refused as often as policy wants, while a control with the current version succeeded.
    Refused,
    /// Still accepted somewhere.
    StillAccepted,
    /// The answers prove nothing.
    CannotTell,
    /// There is no one to ask.
    NoOneToAsk,
    /// Nobody can end it before it ends by itself.
    EndsAt {
        /// When that is, for whoever accepts it last.
        at: Timestamp,
    },
}

/// Why a rotation turned round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// An operator said so.
    Operator {
        /// The words.
        because: String,
    },
    /// A step was refused for good, or for too long.
    Step {
        /// The step.
        step: Step,
        /// The last refusal, where there was one.
        refusal: Option<Refusal>,
    },
    /// Another member of the batch failed at a shared roll; which one is the cause is not known.
    Batch,
}

/// Why a rotation waits for an operator. The list is short on purpose: parking on any unknown would be a bug.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParkReason {
    /// A step was refused in a way that only an operator can change, where there is no way back.
    Refused {
        /// The step.
        step: Step,
        /// Why.
        refusal: Refusal,
    },
    /// A step was not done within policy's patience, where there is no way back.
    OutOfPatience {
        /// The step.
        step: Step,
    },
    /// A mint's outcome is unknown and this issuer has no way to find out.
    MintUnobservable,
    /// The issuer's id of the version to be ended is not known.
    IdUnknown {
        /// The version.
        version: VersionId,
    },
    /// A gate stayed closed for `gate_limit`.
    GateClosed,
    /// Probes turned red soon after a suspend; the version was resumed.
    RedAfterSuspend,
    /// Data may still be sealed under the previous key.
    ProofNeeded,
    /// The version may be dead or alive: the proof did not come out within patience.
    DeathUnproven,
}

/// How a rotation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The pending version is current, and the previous one is ended.
    Completed,
    /// The previous version is current, and the pending one is ended.
    Undone,
    /// An emergency took over.
    Superseded,
}

/// An event that does not fit the rotation it was applied to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record out of order: {event} while {phase}")]
pub struct OutOfOrder {
    /// What was applied.
    pub event: String,
    /// The phase it was applied in.
    pub phase: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Preflight => f.write_str("preflight"),
            Self::Capture => f.write_str("capture"),
            Self::Mint { attempt } => write!(f, "mint (attempt {attempt})"),
            Self::FindMint { attempt } => write!(f, "find what became of mint attempt {attempt}"),
            Self::RevokeStray { .. } => f.write_str("revoke a stray credential"),
            Self::Verify(version) => write!(f, "verify {version}"),
            Self::Write { store, to } => write!(f, "write store {store} (arrangement {to})"),
            Self::Roll { workload, to } => write!(f, "roll workload {workload} (arrangement {to})"),
            Self::Evidence { workload, to } => {
                write!(f, "evidence of workload {workload} (arrangement {to})")
            }
            Self::Probe { to } => write!(f, "probe (arrangement {to})"),
            Self::Visit => f.write_str("look at the gates"),
            Self::Suspend(version) => write!(f, "suspend {version}"),
            Self::Resume(version) => write!(f, "resume {version}"),
            Self::Revoke(version) => write!(f, "revoke {version}"),
            Self::VerifyDead(version) => write!(f, "prove that {version} is dead"),
            Self::Sweep => f.write_str("sweep for strays"),
            Self::Extend => f.write_str("extend the lease"),
            Self::KeepAlive(version) => write!(f, "extend the lease of {version}"),
            Self::CleanUp { store } => write!(f, "clean up store {store}"),
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Previous => "previous",
            Self::Pending => "pending",
        })
    }
}

impl fmt::Display for ParkReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { step, refusal } if refusal.kind == RefusalKind::Conflict => {
                write!(f, "drift: {step}: {refusal}")
            }
            Self::Refused { step, refusal } => write!(f, "{step}: {refusal}"),
            Self::OutOfPatience { step } => write!(f, "{step}: not done in time"),
            Self::MintUnobservable => f.write_str(
                "a mint's answer was lost, and the issuer cannot be asked what became of it",
            ),
            Self::IdUnknown { version } => write!(f, "the issuer's id of {version} is not known"),
            Self::GateClosed => f.write_str("a gate stayed closed for too long"),
            Self::RedAfterSuspend => {
                f.write_str("probes turned red after the suspend; the version was resumed")
            }
            Self::ProofNeeded => {
                f.write_str("proof is needed that nothing is sealed under the previous key")
            }
            Self::DeathUnproven => f.write_str("the ended version could not be proven dead"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Completed => "completed",
            Self::Undone => "undone",
            Self::Superseded => "superseded",
        })
    }
}
