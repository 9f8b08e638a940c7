//! The plan of one rotation: data, compiled once, hashed, and stored whole in its first journal record.
//!
//! It holds everything a rotation needs to finish after the configuration file was edited: the drivers' configuration with
//! references, and no values.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::event::Step;
use crate::facts::{IssuerFacts, StoreFacts, WorkloadFacts};
use crate::fingerprint::Fingerprint;
use crate::incident::Incident;
use crate::secret::{Field, SecretName};
use crate::strategy::Strategy;
use crate::time::{Span, Timestamp};
use crate::version::{IssuedId, State, VersionId};

/// The version of the plan's form, read for ever once written.
pub const FORMAT: u16 = 1;

/// What one rotation will do, to what, and within which limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The version of this form.
    pub format: u16,
    /// The installation that made the plan; its claims carry this id.
    pub installation: String,
    /// The secret, in its environment.
    pub secret: SecretName,
    /// Why it is rotated.
    pub reason: Reason,
    /// The words of whoever asked, where policy or mode wants them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// How one version gives way to the next.
    pub strategy: Strategy,
    /// Forward at a steady pace, or an emergency.
    pub mode: Mode,
    /// The version in use now; none for the first one ever.
    pub previous: Option<VersionRef>,
    /// The number of the version to be made.
    pub pending: VersionId,
    /// Versions beside `previous` that an emergency must end: the pending one of a rotation that was taken over (H125).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspects: Vec<VersionRef>,
    /// The rotation that this one takes over, whose obligations it inherits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takes_over: Option<RotationId>,
    /// Until when a call of the rotation that was taken over can still land.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inherits_until: Option<Timestamp>,
    /// The emergency that it is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<Incident>,
    /// Whether this only extends a lease, and keeps its value.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub extend: bool,
    /// The other secrets that share this rotation's rolls, in order; empty for a rotation alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub batch: Vec<SecretName>,
    /// The folder of the configuration file: relative names in the drivers' configuration begin here, and their programs
    /// run in it, wherever the rotation is finished.
    pub folder: String,
    /// What mints and ends the versions.
    pub issuer: IssuerPlan,
    /// Where readers get the value, in the order in which they are written.
    pub stores: Vec<StorePlan>,
    /// What reads it.
    pub workloads: Vec<WorkloadPlan>,
    /// Questions put to the running system after each roll and at each visit.
    pub probes: Vec<ProbePlan>,
    /// The limits.
    pub policy: Policy,
}

impl Plan {
    /// Returns the hash of everything in the plan. Approval, `rotate --plan` and the rotation's id are bound to it (H127).
    pub fn hash(&self) -> PlanHash {
        let bytes = serde_json::to_vec(self).expect("a plan is plain data");
        PlanHash(hex::encode(Sha256::digest(&bytes)))
    }

    /// Returns the id of the rotation that runs this plan. Version numbers are never used twice, so neither is the id.
    pub fn rotation(&self) -> RotationId {
        RotationId(self.hash().0[..12].to_owned())
    }

    /// Returns how long a person is given for a step, where it takes one: what mints, finds and ends versions at an issuer that
    /// is a person.
    pub fn by_hand(&self, step: Step) -> Option<Span> {
        let facts = &self.issuer.facts;
        match step {
            Step::Mint { .. } => facts.by_hand,
            Step::FindMint { .. } | Step::RevokeStray { .. } | Step::Revoke(_) | Step::Sweep => {
                facts.by_hand.filter(|_| facts.is_kept_by_hand())
            }
            _ => None,
        }
    }

    /// Returns whether its version, once promoted, leaves the previous one a soak and a rollback window.
    pub fn has_soak(&self) -> bool {
        !self.is_emergency() && !matches!(self.strategy, Strategy::Lease | Strategy::Cutover)
    }

    /// Returns how long a move takes at the longest: every store is written and every workload rolled, each after a long trouble.
    pub fn longest_move(&self) -> Span {
        let Policy { call, roll, patience, .. } = &self.policy;
        let times =
            |span: Span, count: usize| Span::millis(span.as_millis().saturating_mul(count as u64));
        times(*call + *patience, 2 + self.stores.len())
            + times(*roll + *patience, self.workloads.len())
    }

    /// Returns how long a reader may go on with the value that it began with, where any store has such readers.
    pub fn longest_run(&self) -> Option<Span> {
        self.stores.iter().filter_map(|store| store.facts.longest_run).max()
    }

    /// Returns how many acceptances in a row prove that a version works: one where nothing has to spread.
    pub fn acceptances(&self) -> u8 {
        match self.issuer.facts.propagation.is_zero() {
            true => 1,
            false => self.policy.refusals.max(1),
        }
    }

    /// Returns what is touched at one place only: its workloads, and then its stores.
    pub fn pinned(&self) -> impl Iterator<Item = &dyn Pinned> {
        let workloads = self.workloads.iter().map(|workload| workload as &dyn Pinned);
        workloads.chain(self.stores.iter().map(|store| store as &dyn Pinned))
    }

    /// Returns the same, so that it can be pinned.
    pub fn pinned_mut(&mut self) -> impl Iterator<Item = &mut dyn Pinned> {
        let workloads = self.workloads.iter_mut().map(|workload| workload as &mut dyn Pinned);
        workloads.chain(self.stores.iter_mut().map(|store| store as &mut dyn Pinned))
    }

    /// Returns whether nobody asked for it: it gives a lease that ends soon more time, or another value.
    pub fn keeps_a_lease(&self) -> bool {
        self.extend || self.strategy == Strategy::Lease && self.reason == Reason::Expiring
    }

    /// Returns whether the plan is run as an emergency.
    pub fn is_emergency(&self) -> bool {
        matches!(self.mode, Mode::Emergency { .. })
    }
}

/// SHA-256 over a plan, in hex. A prefix of at least six digits names it on the command line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlanHash(pub String);

impl PlanHash {
    /// Hashes the plans of a batch into one: it covers each member, in order.
    pub fn of_batch<'a>(members: impl IntoIterator<Item = &'a Plan>) -> Self {
        let mut hasher = Sha256::new();
        members.into_iter().for_each(|plan| hasher.update(plan.hash().0.as_bytes()));
        Self(hex::encode(hasher.finalize()))
    }

    /// Returns the six digits that people are shown.
    pub fn short(&self) -> &str {
        &self.0[..6]
    }
}

/// The id of one rotation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RotationId(pub String);

impl RotationId {
    /// Returns the label of one mint attempt: `kw-<rotation>-<attempt>`.
    pub fn label(&self, attempt: u16) -> Label {
        Label(format!("kw-{}-{attempt}", self.0))
    }

    /// Returns what every label of this rotation begins with.
    pub fn label_prefix(&self) -> String {
        format!("kw-{}-", self.0)
    }
}

impl fmt::Display for RotationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name that an issuer keeps with a credential, so that a lost answer can be found by it (H04).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Label(pub String);

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a secret is rotated (after the reason codes of RFC 5280).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Its cryptoperiod ends.
    Scheduled,
    /// Someone asked.
    Requested,
    /// The issuer ends it by itself soon.
    Expiring,
    /// It is known or suspected to be in other hands.
    Compromised,
}

/// How a rotation is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// With every gate, wait and window.
    Normal,
    /// Forward only, without soak or windows.
    Emergency {
        /// Revoke before anything is delivered: a declared outage.
        revoke_first: bool,
        /// How long delivery may take before the suspect is revoked all the same.
        stage_for: Span,
    },
}

/// One version and how its issuer names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRef {
    /// Its number.
    pub version: VersionId,
    /// Its id at the issuer, where it is known.
    pub issued: Option<IssuedId>,
    /// Whether it may be used.
    pub state: State,
    /// The fingerprint of its credential, where it was ever seen; a capture that finds another one is drift (H35).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
}

/// A driver and its configuration as the file has it: references, never values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// The name under which the configuration declares it, for people.
    pub name: String,
    /// The driver's configuration: `{"<kind>": {…}}`.
    pub driver: serde_json::Value,
}

/// The issuer as planned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerPlan {
    /// The driver.
    pub bound: Bound,
    /// What it can do.
    pub facts: IssuerFacts,
}

/// One store and the slots in it that this secret owns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorePlan {
    /// The driver.
    pub bound: Bound,
    /// What it can do.
    pub facts: StoreFacts,
    /// The slots, in order of their addresses.
    pub slots: Vec<Slot>,
    /// Where it is; at another place it is not written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
}

/// One owned field of one store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Where it is in the store: a variable's name, a key, a path.
    pub address: String,
    /// Which version of an arrangement it holds.
    pub role: Role,
    /// Which bytes of the slot are ours.
    pub part: Part,
}

/// The place of a slot in an arrangement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Holds the version that readers use.
    Current,
    /// Holds a second version that readers accept.
    AlsoAccepted,
}

/// Which bytes of a slot a secret owns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// All of them: one field of the credential.
    Plain(Field),
    /// A part of a URL, percent-encoded.
    Url(UrlPart),
    /// Properties of a JDBC URL (`?user=…&password=…`), percent-encoded.
    Jdbc(LoginPart),
    /// Keywords of a libpq connection string (`host=… user=… password='…'`), quoted.
    Libpq(LoginPart),
    /// User name and password at the end of a line of a libpq password file (`user:password`), escaped.
    Pgpass(LoginPart),
    /// The password of this login, where a store lists logins. While a version of another login is in use it stays as it is;
    /// it goes when the login's version is revoked.
    PasswordOf(String),
}

impl Part {
    /// Returns the fields of a credential that a slot is given and that are read back out of it: what a list of logins holds may
    /// be another login's.
    pub fn fields(&self) -> Vec<Field> {
        let (username, password) = (|| Field::new("username"), || Field::new("password"));
        match self {
            Self::Plain(field) => vec![field.clone()],
            Self::Url(UrlPart::Username)
            | Self::Jdbc(LoginPart::Username)
            | Self::Libpq(LoginPart::Username)
            | Self::Pgpass(LoginPart::Username) => vec![username()],
            Self::Url(UrlPart::Password)
            | Self::Jdbc(LoginPart::Password)
            | Self::Libpq(LoginPart::Password)
            | Self::Pgpass(LoginPart::Password) => vec![password()],
            Self::Url(UrlPart::Userinfo)
            | Self::Jdbc(LoginPart::Login)
            | Self::Libpq(LoginPart::Login)
            | Self::Pgpass(LoginPart::Login) => vec![username(), password()],
            Self::PasswordOf(_) => Vec::new(),
        }
    }
}

/// The part of a URL that a secret owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UrlPart {
    /// `username:password`, from the fields of those names.
    Userinfo,
    /// The user name only.
    Username,
    /// The password only.
    Password,
}

/// The part of a connection string that a secret owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoginPart {
    /// User name and password, from the fields `username` and `password`.
    Login,
    /// The user name only.
    Username,
    /// The password only.
    Password,
}

/// One workload as planned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadPlan {
    /// The driver.
    pub bound: Bound,
    /// What it can show.
    pub facts: WorkloadFacts,
    /// The stores it reads, by index into [`Plan::stores`].
    pub reads: Vec<u8>,
    /// Where it runs; at another place it is not rolled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
}

/// The place where a store or a workload is, as that place names itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Its id.
    pub id: String,
    /// The name of its machine, where it is an engine: one that was copied keeps the id. Empty for what is no machine.
    pub machine: String,
    /// Its folder: two on one machine may have one id. Empty where there is none.
    pub folder: String,
}

/// What stands between a place and what it leads to.
const WITH: &str = " with ";

impl Pin {
    /// Returns it with the place that it leads to.
    #[must_use]
    pub fn with(self, beyond: &Self) -> Self {
        Self { id: format!("{}{WITH}{beyond}", self.id), ..self }
    }

    /// Returns whether this is the place that was found, which may have come to say where it leads to: what is made by a first
    /// write has no name before.
    pub fn admits(&self, found: &Self) -> bool {
        let leads_on = |rest: &str| rest.starts_with(WITH) || crate::planted!("every_pin_leads_on");
        self == found
            || (&self.machine, &self.folder) == (&found.machine, &found.folder)
                && found.id.strip_prefix(&self.id).is_some_and(leads_on)
    }
}

/// What is touched at one place only.
pub trait Pinned {
    /// Returns the key of its pin among those of its secret: the name of a workload, or `store NAME`, which is the name of nothing.
    fn key(&self) -> String;

    /// Returns what it is, for people: "workload `backend`".
    fn what(&self) -> String;

    /// Returns where it was found when it was planned.
    fn pin(&self) -> Option<&Pin>;

    /// Notes where it is.
    fn set_pin(&mut self, pin: Option<Pin>);
}

impl Pinned for WorkloadPlan {
    fn key(&self) -> String {
        self.bound.name.clone()
    }

    fn what(&self) -> String {
        format!("workload `{}`", self.bound.name)
    }

    fn pin(&self) -> Option<&Pin> {
        self.pin.as_ref()
    }

    fn set_pin(&mut self, pin: Option<Pin>) {
        self.pin = pin;
    }
}

impl Pinned for StorePlan {
    fn key(&self) -> String {
        format!("store {}", self.bound.name)
    }

    fn what(&self) -> String {
        format!("store `{}`", self.bound.name)
    }

    fn pin(&self) -> Option<&Pin> {
        self.pin.as_ref()
    }

    fn set_pin(&mut self, pin: Option<Pin>) {
        self.pin = pin;
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.folder.as_str(), self.machine.as_str()) {
            ("", "") => f.write_str(&self.id),
            (folder, machine) => write!(f, "{} in `{folder}` on `{machine}`", self.id),
        }
    }
}

/// One probe as planned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbePlan {
    /// The driver.
    pub bound: Bound,
}

/// The limits of one rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// How long a version may stay current.
    pub cryptoperiod: Span,
    /// Promoted until suspend.
    pub soak: Span,
    /// For how long the version to be ended is suspended in the middle of soak, to see who misses it; not at all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brownout: Option<Span>,
    /// Suspend until revoke.
    pub rollback: Span,
    /// When a destroy-only issuer ends the previous version.
    pub keep: Keep,
    /// What a gate that cannot tell does.
    pub cannot_tell: CannotTell,
    /// How long after a suspend red probes resume the version.
    pub watch: Span,
    /// How long a gate may stay closed before the rotation parks.
    pub gate_limit: Span,
    /// How old a green visit may be when something is ended on its word.
    pub fresh_for: Span,
    /// The hard deadline of one call.
    pub call: Span,
    /// The hard deadline of one roll.
    pub roll: Span,
    /// How long a step that is refused for now is retried before the move is undone, or parked where it cannot be.
    pub patience: Span,
    /// The first wait between two tries; it doubles up to `patience`/4.
    pub retry: Span,
    /// How many refusals in a row prove a version dead.
    pub refusals: u8,
    /// What the operator accepted in so many words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accept: Vec<Accept>,
    /// Whether people are to be told of what happens while nobody watches.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub notify: bool,
    /// Whether age alone never makes it due, whatever the cryptoperiod says: a publishable identifier.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unscheduled: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            cryptoperiod: Span::days(90),
            soak: Span::hours(24),
            brownout: None,
            rollback: Span::days(7),
            keep: Keep::Exposure,
            cannot_tell: CannotTell::Allow,
            watch: Span::hours(1),
            gate_limit: Span::days(7),
            fresh_for: Span::minutes(5),
            call: Span::seconds(30),
            roll: Span::minutes(10),
            patience: Span::minutes(10),
            retry: Span::seconds(1),
            refusals: 3,
            accept: Vec::new(),
            notify: false,
            unscheduled: false,
        }
    }
}

/// When an issuer that can only destroy ends the previous version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// At the end of soak: the least exposure.
    Exposure,
    /// At the end of the rollback window: the longest way back.
    Rollback,
}

/// What a gate does that has no way to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CannotTell {
    /// It holds the rotation up.
    Wait,
    /// It lets the rotation pass, and the record says so.
    Allow,
}

/// A loss that the operator accepted beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accept {
    /// Requests may fail while one value gives way to another.
    Outage,
    /// Sessions signed by the previous version end (H83).
    SessionsEnd,
}
