//! Capability records: what a driver can and cannot do, as data. The plan carries them; no driver's name drives a decision.

use serde::{Deserialize, Serialize};

use crate::time::Span;

/// What an issuer can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerFacts {
    /// Who makes the value, and whether it can be read again.
    pub value: ValueOrigin,
    /// How a mint whose answer never came is found.
    pub observe: Observe,
    /// Who can say that a version is dead.
    pub authority: Authority,
    /// The most live credentials the issuer holds at once, where it has a cap.
    pub max_live: Option<u16>,
    /// Whether the issuer keeps our label with the credential.
    pub label: bool,
    /// Whether a value that we hold can be set again.
    pub settable_old_value: bool,
    /// Whether a version can be refused for a while and accepted again.
    pub suspend: bool,
    /// Whether there is a call that ends a version for good.
    pub destroy: bool,
    /// Whether the expiry of a version can be chosen.
    pub expiry_settable: bool,
    /// Whether the mint can be repeated without harm when its outcome stays unknown (`cutover` only).
    pub reset_repeatable: bool,
    /// How the issuer tells when a version was last used.
    pub last_used: Option<LastUsedFacts>,
    /// How long a new version may be refused after its mint, and a revoked one accepted after its end.
    pub propagation: Span,
    /// How long a call without an answer can still take effect and stay out of a list: the longest life of a request plus list lag.
    pub settle_for: Span,
    /// How long a person is given for a step, where the issuer is one: who mints and ends versions by hand, on what keywheel says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_hand: Option<Span>,
    /// Whether that person mints only, and finding and ending versions takes none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_mint_by_hand: bool,
    /// Whether a mint is told the credential in use, and not its id alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub told_in_use: bool,
    /// Whether it has two names that take turns, each used again under a new generation (database logins): such a secret is
    /// rotated by `alternate`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub takes_turns: bool,
    /// Whether what it issues is an identifier that anybody may see: no secret, and rotated against abuse only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub publishable: bool,
    /// How long what it issues lives, where it ends by itself: such a secret is rotated by `lease`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseFacts>,
}

/// What is known of the leases of an issuer before one is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseFacts {
    /// How long one lives at most, however often it is extended; none where it is not extended.
    pub longest_life: Option<Span>,
}

impl IssuerFacts {
    /// Describes an issuer that can do nothing beyond these three, and that is as slow as any: a driver says what it can do
    /// with struct update syntax.
    pub const fn new(value: ValueOrigin, observe: Observe, authority: Authority) -> Self {
        Self {
            value,
            observe,
            authority,
            max_live: None,
            label: false,
            settable_old_value: false,
            suspend: false,
            destroy: false,
            expiry_settable: false,
            reset_repeatable: false,
            last_used: None,
            propagation: Span::minutes(5),
            settle_for: Span::minutes(10),
            by_hand: None,
            only_mint_by_hand: false,
            told_in_use: false,
            takes_turns: false,
            publishable: false,
            lease: None,
        }
    }

    /// Returns whether a person has to be asked what there is, and to end it.
    pub fn is_kept_by_hand(&self) -> bool {
        self.by_hand.is_some() && !self.only_mint_by_hand
    }
}

/// How exact and how late an issuer's last-used data are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastUsedFacts {
    /// How long after a use it shows.
    pub lag: Span,
    /// How coarse its times are.
    pub granularity: Span,
}

/// Who makes the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValueOrigin {
    /// keywheel generates it; it is sealed in the same commit as the mint's intent, so no crash can lose it (I04).
    Ours,
    /// The issuer makes it and shows it once.
    Theirs,
    /// The issuer makes it and shows it again when asked.
    TheirsRereadable,
}

/// How a mint with an unknown outcome is observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Observe {
    /// A list that shows our label.
    Label,
    /// A list without labels: an id that was not there before.
    IdSetDifference,
    /// The value is ours: ask whether it is accepted.
    Probe,
    /// Not at all: an unknown outcome parks.
    None,
}

/// Who can say that a version is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Authority {
    /// The issuer refuses it.
    Issuer,
    /// The workloads refuse it (a signing secret).
    Workload,
    /// No one: `old_refused` stays empty, and says so.
    None,
}

/// What a store can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreFacts {
    /// What can be read back after a write.
    pub read_back: ReadBack,
    /// Whether a write names the contents it expects to replace.
    pub conditional: bool,
    /// Whether a version can be written without readers being given it.
    pub staged: bool,
    /// How a write is undone.
    pub revert: Revert,
    /// Whether the store keeps earlier versions readable.
    pub history: bool,
    /// When a reader sees a write.
    pub pickup: Pickup,
    /// How long a write without an answer can still take effect.
    pub settle_for: Span,
    /// Whether it keeps things beside its slots for the way back, and is asked at the end of a rotation to remove those that nobody
    /// can need.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaves_behind: bool,
    /// Whether readers log in at the store itself: it is asked whether it lets a version in, and no reader holds its slots (H72).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub answers_logins: bool,
    /// How long a reader that begins with one value may go on with it, where readers see a write when they next run. Nobody tells
    /// when they end, so that much is waited for before a version is ended that one of them may have begun with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_run: Option<Span>,
}

impl StoreFacts {
    /// Returns whether what it holds can be compared. What cannot is never read, and a write to it is attested.
    pub fn is_readable(&self) -> bool {
        self.read_back == ReadBack::Value
    }

    /// Returns whether a change by somebody else can be seen.
    pub fn shows_changes(&self) -> bool {
        matches!(self.read_back, ReadBack::Value | ReadBack::Timestamp)
    }
}

/// What a store gives back of what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadBack {
    /// The bytes.
    Value,
    /// A digest of them.
    Digest,
    /// The time of the last write only.
    Timestamp,
    /// Nothing: a write is attested, not observed.
    None,
}

/// How a write to a store is undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Revert {
    /// The former bytes are put back.
    Restore,
    /// The former value becomes one more version.
    Append,
    /// Not at all; such a store is written last.
    No,
}

/// When a reader of a store sees a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pickup {
    /// While it runs.
    Live,
    /// When it is rolled.
    Roll,
    /// When it next happens to run.
    NextRun,
}

/// What a workload can show of the values that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadFacts {
    /// How long a roll without an answer can still restart replicas.
    pub settle_for: Span,
    /// How exact the replicas' start times are: a replica that started this soon after a write proves nothing.
    pub start_granularity: Span,
    /// Whether each replica can be asked at its own address whether it accepts a token.
    pub answers_tokens: bool,
    /// Whether a roll leaves a time in which no replica serves.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gap: bool,
}
