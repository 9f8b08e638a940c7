//! The inventory: one row for each secret, which `status` reads and each commit keeps in step with the rotation it belongs to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::call::{Refusal, RefusalKind};
use crate::event::{Event, Outcome, ParkReason, Report, Step};
use crate::fingerprint::Fingerprint;
use crate::incident::IncidentId;
use crate::plan::{Bound, Label, Pin, Pinned, Plan, PlanHash, RotationId, StorePlan, VersionRef};
use crate::rotation::{Next, Rotation};
use crate::secret::SecretName;
use crate::strategy::Side;
use crate::time::Timestamp;
use crate::version::{IssuedId, Stage, State, VersionId};

/// What is known of one secret between rotations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// The secret.
    pub secret: SecretName,
    /// Its versions that are not destroyed, oldest first.
    pub versions: Vec<Version>,
    /// The number that the next version gets. Numbers are never used twice.
    pub next: VersionId,
    /// The open rotation and what it owes.
    pub open: Option<OpenRotation>,
    /// When the current version became current, where it is known.
    pub rotated_at: Option<Timestamp>,
    /// How the last rotation ended.
    pub last_outcome: Option<Outcome>,
    /// Why the schedule is held, where it is: after a reversal, until a rotation that an operator asked for has completed.
    pub held_because: Option<String>,
    /// The rotation that waits for the retirement of the one before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued: Option<Queued>,
    /// The stores that were claimed for it, the ones that it no longer has included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claimed: Vec<Bound>,
    /// Where its stores and workloads are, by their [keys](Pinned::key).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pins: BTreeMap<String, Pin>,
    /// When it was taken over; it stands for the age of a version where nobody knows that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted_at: Option<Timestamp>,
    /// What an operator decided last about where it lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided: Option<Decision>,
    /// The version that its issuer refused although readers used it, when that was last looked at (H95).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
    /// What people were not told of yet, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub untold: Vec<News>,
    /// What emergencies of this secret owed, and an operator closed without doing it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closed: Vec<Closed>,
}

/// A version that its issuer ended by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The version.
    pub version: VersionId,
    /// When it was refused first.
    pub at: Timestamp,
}

/// Something that an emergency owed and that an operator closed with a note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// The emergency.
    pub incident: IncidentId,
    /// The secret that was to be rotated.
    pub secret: SecretName,
    /// When.
    pub at: Timestamp,
    /// Why, in the operator's words.
    pub note: String,
}

/// A decision of an operator outside a rotation, for the audit chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// When.
    pub at: Timestamp,
    /// What was done, as a past tense: `took over its stores`.
    pub what: String,
    /// Why, in the operator's words.
    pub because: String,
}

/// Something of a rotation that people are to be told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    /// When it happened.
    pub at: Timestamp,
    /// The rotation.
    pub rotation: RotationId,
    /// What happened.
    pub topic: Topic,
}

/// What people are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// A version is in other hands, and its emergency begins.
    Emergency,
    /// The rotation waits for an operator.
    NeedsOperator,
    /// Readers use the new version; the former one is ended later.
    Promoted,
    /// The former version is ended.
    Completed,
    /// The former version is current again, and the new one is ended.
    Undone,
}

impl News {
    fn of(rotation: &Rotation, event: &Event, at: Timestamp) -> Option<Self> {
        let topic = match event {
            Event::Planned(plan) if plan.is_emergency() => Topic::Emergency,
            Event::Parked { .. } => Topic::NeedsOperator,
            Event::Promoted { side: Side::Pending } => Topic::Promoted,
            Event::Ended { outcome } | Event::Resolved { outcome, .. } => match outcome {
                Outcome::Completed => Topic::Completed,
                Outcome::Undone => Topic::Undone,
                Outcome::Superseded => return None,
            },
            _ => return None,
        };
        // An extension is news only where it needs somebody.
        let is_news = !rotation.plan().extend || topic == Topic::NeedsOperator;
        let told = rotation.plan().policy.notify && is_news;
        told.then(|| Self { at, rotation: rotation.id().clone(), topic })
    }
}

/// A rotation that was asked for while the one before it still retires a version. Several requests are one. It is taken out when a
/// rotation begins that somebody asked for; what a lease needs meanwhile leaves it where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queued {
    /// When it was asked for first.
    pub at: Timestamp,
    /// Why, in the operator's words.
    pub because: Option<String>,
    /// What must have completed first, in another environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Staged>,
}

/// A rotation in another environment that a queued one waits for, and the plan that was approved for afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// The secret in the other environment.
    pub secret: SecretName,
    /// Its rotation.
    pub rotation: RotationId,
    /// The plan that may follow it, and no other (H127).
    pub approved: PlanHash,
    /// The number of the version in that plan: extensions of a lease take numbers too, and change nothing else of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<VersionId>,
    /// The version in use in that plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<VersionRef>,
    /// The lease that took the place of that version before it ended, without being asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_its_place: Option<VersionId>,
}

impl Staged {
    /// Returns whether a plan was approved: as it is, or with the number that its version had then and the lease that was in use.
    pub fn approves(&self, plan: &Plan) -> bool {
        plan.hash() == self.approved || self.as_shown(plan).hash() == self.approved
    }

    /// Returns a plan without what leases changed of it by themselves since it was shown.
    fn as_shown(&self, plan: &Plan) -> Plan {
        let pending = self.pending.filter(|_| !crate::planted!("extension_voids_approval"));
        let is_replaced = self.in_its_place.is_some()
            && plan.previous.as_ref().map(|previous| previous.version) == self.in_its_place
            && !crate::planted!("replacement_voids_approval");
        let previous = if is_replaced { &self.previous } else { &plan.previous };
        Plan {
            pending: pending.unwrap_or(plan.pending),
            previous: previous.clone(),
            ..plan.clone()
        }
    }

    /// Notes that one lease took the place of another. Where it is not the one of the plan, the plan is another one from then on.
    fn replaced(&mut self, former: Option<VersionId>, by: VersionId) {
        let shown = self.previous.as_ref().map(|previous| previous.version);
        if former.is_some() && former == self.in_its_place.or(shown) {
            self.in_its_place = Some(by);
        }
    }
}

/// One version of a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Its number.
    pub version: VersionId,
    /// Which readers are given it.
    pub stage: Option<Stage>,
    /// Whether it may be used.
    pub state: State,
    /// Its id at the issuer, where it is known.
    pub issued: Option<IssuedId>,
    /// The label it was minted under.
    pub label: Option<Label>,
    /// When it was made, where it is known.
    pub created_at: Option<Timestamp>,
    /// When the issuer ends it by itself.
    pub expires_at: Option<Timestamp>,
    /// When that was moved last, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extended_at: Option<Timestamp>,
    /// When it ends whatever is asked, where its issuer showed that: an extension was refused, or gave less than the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dies_at: Option<Timestamp>,
    /// Whether only the last extension showed that: another one may give more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gave_less: bool,
    /// The fingerprint of its credential, where it was ever seen.
    pub fingerprint: Option<Fingerprint>,
}

/// The open rotation of a secret, as `status` shows it without replaying its records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRotation {
    /// Its id.
    pub rotation: RotationId,
    /// Its phase, in the pinned words.
    pub phase: String,
    /// When it owes something next; none while it waits for an operator.
    pub owed_at: Option<Timestamp>,
    /// Why it waits for an operator, where it does.
    pub parked: Option<ParkReason>,
    /// Whether the new version was promoted: what is left is the retirement of the previous one.
    pub retirement: bool,
}

impl Inventory {
    /// Begins the row of a secret that was never seen.
    pub fn new(secret: SecretName) -> Self {
        Self {
            secret,
            versions: Vec::new(),
            next: VersionId(1),
            open: None,
            rotated_at: None,
            last_outcome: None,
            held_because: None,
            queued: None,
            untold: Vec::new(),
            closed: Vec::new(),
            claimed: Vec::new(),
            pins: BTreeMap::new(),
            adopted_at: None,
            decided: None,
            refused: None,
        }
    }

    /// Notes which stores are claimed for it.
    pub fn claim<'a>(&mut self, stores: impl IntoIterator<Item = &'a StorePlan>) {
        for store in stores {
            if !self.claimed.contains(&store.bound) {
                self.claimed.push(store.bound.clone());
            }
        }
    }

    /// Returns where a store or a workload is to be reached: where an operator or a rotation pinned it last, else as its plan says.
    pub fn pin_of<'p>(&'p self, planned: &'p dyn Pinned) -> Option<&'p Pin> {
        self.pins.get(&planned.key()).or(planned.pin())
    }

    /// Notes where its stores and its workloads are.
    pub fn pin(&mut self, plan: &Plan) {
        for planned in plan.pinned() {
            if let Some(pin) = planned.pin() {
                self.pins.insert(planned.key(), pin.clone());
            }
        }
    }

    /// Returns the version at a stage.
    pub fn at(&self, stage: Stage) -> Option<&Version> {
        self.versions.iter().find(|version| version.stage == Some(stage))
    }

    /// Returns since when the version that readers use is known to be refused by its issuer.
    pub fn refused_in_use(&self) -> Option<Timestamp> {
        let current = self.at(Stage::Current)?.version;
        let refused = self.refused.as_ref().filter(|refused| refused.version == current);
        refused.filter(|_| !crate::planted!("refusal_forgotten")).map(|refused| refused.at)
    }

    /// Returns a version by its number.
    pub fn version(&self, version: VersionId) -> Option<&Version> {
        self.versions.iter().find(|known| known.version == version)
    }

    /// Follows a rotation of this secret: `event` was just applied to it.
    pub fn follow(&mut self, rotation: &Rotation, event: &Event, at: Timestamp) {
        match event {
            Event::Planned(plan) => {
                // What a lease needs is not what somebody asked for.
                let is_kept = match plan.extend {
                    true => !crate::planted!("extension_wipes_the_queue"),
                    false => {
                        plan.keeps_a_lease() && !crate::planted!("replacement_wipes_the_queue")
                    }
                };
                self.queued = self.queued.take().filter(|_| is_kept);
                self.claim(&plan.stores);
                self.pin(plan);
                self.next = self.next.max(plan.pending.successor());
                self.versions.retain(|known| known.version != plan.pending);
                let suspects = plan.previous.iter().chain(&plan.suspects);
                suspects.for_each(|suspect| {
                    self.set(suspect.version, |known| known.state = suspect.state)
                });
                self.versions.push(Version::pending(plan.pending));
            }
            Event::Done { step, report } => self.done(rotation, *step, report, at),
            Event::Refused { step, refusal } => self.refused(rotation, *step, refusal, at),
            Event::Promoted { side } => self.promoted(rotation, *side, at),
            Event::Identified { version, issued } => {
                self.set(*version, |known| known.issued = Some(issued.clone()))
            }
            Event::Purged => {
                let ended = rotation.retiring();
                let unminted = (!rotation.is_minted()).then_some(rotation.plan().pending);
                self.versions.retain(|known| {
                    !ended.contains(&known.version) && Some(known.version) != unminted
                });
            }
            Event::Ended { outcome } | Event::Resolved { outcome, .. } => {
                // An extension is no rotation: it keeps the version.
                if rotation.plan().extend {
                    self.versions.retain(|known| known.version != rotation.plan().pending);
                } else {
                    self.last_outcome = Some(*outcome);
                }
                match outcome {
                    _ if rotation.plan().extend => {}
                    Outcome::Undone if rotation.was_ever_promoted() => {
                        self.held_because =
                            Some("the last rotation was reversed after its promotion".into())
                    }
                    Outcome::Completed => self.held_because = None,
                    _ => {}
                }
            }
            _ => {}
        }
        self.open = rotation.outcome().is_none().then(|| OpenRotation::of(rotation, at));
        self.untold.extend(News::of(rotation, event, at));
    }

    fn done(&mut self, rotation: &Rotation, step: Step, report: &Report, at: Timestamp) {
        let pending = rotation.plan().pending;
        match (step, report) {
            (Step::Capture, Report::Captured { fingerprint, .. }) => {
                if let Some(previous) = rotation.version(Side::Previous) {
                    self.set(previous, |known| {
                        known.fingerprint = known.fingerprint.or(*fingerprint)
                    });
                }
            }
            (Step::Mint { attempt }, Report::Minted { issued, expires_at, fingerprint, .. }) => {
                self.set(pending, |known| {
                    known.issued = issued.clone();
                    known.label = Some(rotation.id().label(attempt));
                    known.created_at = Some(at);
                    known.expires_at = *expires_at;
                    (known.extended_at, known.dies_at, known.gave_less) = (None, None, false);
                    known.fingerprint = *fingerprint;
                    known.state = State::Active;
                })
            }
            (Step::FindMint { attempt }, Report::Found { held: true, fingerprint, .. }) => self
                .set(pending, |known| {
                    known.issued = rotation.issued(pending).cloned();
                    known.label = Some(rotation.id().label(attempt));
                    known.created_at = Some(at);
                    known.expires_at = rotation.expires_at();
                    (known.extended_at, known.dies_at, known.gave_less) = (None, None, false);
                    known.fingerprint = *fingerprint;
                    known.state = State::Active;
                }),
            (Step::Extend | Step::KeepAlive(_), Report::Extended { expires_at }) => {
                if let Some(version) = extended(rotation, step) {
                    self.set(version, |known| known.extended(*expires_at, at));
                }
            }
            (Step::Suspend(version), _) => {
                self.set(version, |known| known.state = State::Suspended)
            }
            (Step::Resume(version), _) => self.set(version, |known| known.state = State::Active),
            (Step::Revoke(version), _) => self.set(version, |known| {
                if known.state != State::Compromised {
                    known.state = State::Deactivated;
                }
            }),
            _ => {}
        }
    }

    /// A lease whose extension is refused for good ends when it would have ended, or has ended.
    fn refused(&mut self, rotation: &Rotation, step: Step, refusal: &Refusal, at: Timestamp) {
        let Some(version) = extended(rotation, step) else { return };
        if !refusal.is_for_good() {
            return;
        }
        self.set(version, |known| {
            if refusal.kind == RefusalKind::NotFound {
                known.expires_at = known.expires_at.map(|ends| ends.min(at));
            }
            (known.dies_at, known.gave_less) = (known.expires_at, false);
        });
    }

    fn promoted(&mut self, rotation: &Rotation, side: Side, at: Timestamp) {
        let current = rotation.version(side);
        let previous = rotation.version(side.other());
        for known in &mut self.versions {
            if Some(known.version) == current {
                known.stage = Some(Stage::Current);
            } else if Some(known.version) == previous || known.stage == Some(Stage::Current) {
                known.stage = Some(Stage::Previous);
            }
        }
        self.rotated_at = Some(at);
        let staged = self.queued.as_mut().and_then(|queued| queued.after.as_mut());
        if let (Some(staged), Some(by), true) = (staged, current, rotation.plan().keeps_a_lease()) {
            staged.replaced(previous, by);
        }
    }

    fn set(&mut self, version: VersionId, change: impl FnOnce(&mut Version)) {
        if let Some(known) = self.versions.iter_mut().find(|known| known.version == version) {
            change(known);
        }
    }
}

/// The version whose lease a step extends.
fn extended(rotation: &Rotation, step: Step) -> Option<VersionId> {
    match step {
        Step::Extend => rotation.version(Side::Previous),
        Step::KeepAlive(version) => Some(version),
        _ => None,
    }
}

impl Version {
    /// Notes an extension. One that gives clearly less than the one before shows the longest life that its issuer allows, until
    /// one moves the end clearly on.
    fn extended(&mut self, expires_at: Timestamp, at: Timestamp) {
        let since = self.extended_at.or(self.created_at);
        let former = self.expires_at.zip(since).map(|(ends, since)| ends.since(since));
        let gives_less = former.is_some_and(|former| expires_at.since(at) < former.part(7, 8));
        let given = expires_at.since(at);
        let goes_on = |dies_at: &Timestamp| expires_at > *dies_at + given.part(1, 8);
        if gives_less && !crate::planted!("short_extension_unnoticed") {
            (self.dies_at, self.gave_less) = (Some(expires_at), true);
        } else if self.dies_at.as_ref().is_some_and(goes_on) {
            (self.dies_at, self.gave_less) = (None, false);
        }
        self.expires_at = Some(expires_at);
        self.extended_at = Some(at);
    }

    fn pending(version: VersionId) -> Self {
        Self {
            version,
            stage: Some(Stage::Pending),
            state: State::PreActivation,
            issued: None,
            label: None,
            created_at: None,
            expires_at: None,
            extended_at: None,
            dies_at: None,
            gave_less: false,
            fingerprint: None,
        }
    }

    /// Takes over a version that was made by hand.
    pub fn adopted(
        version: VersionId,
        issued: Option<IssuedId>,
        created_at: Option<Timestamp>,
        fingerprint: Option<Fingerprint>,
    ) -> Self {
        Self {
            stage: Some(Stage::Current),
            state: State::Active,
            issued,
            created_at,
            fingerprint,
            ..Self::pending(version)
        }
    }

    /// Returns the version as a plan names it.
    pub fn reference(&self) -> VersionRef {
        VersionRef {
            version: self.version,
            issued: self.issued.clone(),
            state: self.state,
            fingerprint: self.fingerprint,
        }
    }
}

impl OpenRotation {
    fn of(rotation: &Rotation, at: Timestamp) -> Self {
        let owed_at = match rotation.next(at) {
            Next::Wait { until, .. } => Some(until),
            Next::Operator(_) | Next::Rest(_) => None,
            Next::Do(_) | Next::Record(_) | Next::Await(_) => Some(at),
        };
        Self {
            rotation: rotation.id().clone(),
            phase: rotation.phase().to_string(),
            owed_at,
            parked: rotation.parked().cloned(),
            retirement: rotation.retires(),
        }
    }
}
