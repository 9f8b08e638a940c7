//! Live credentials that carry a label of ours and that nobody owns: which they are, and how they are ended.
//!
//! Ours is a label that a rotation of the same secret in this journal made. What carries another one is named at most (H90). A
//! credential is owned where a version of the journal has its id, or its label and an id that nothing live has, or where an open
//! rotation may still find and end it by itself. A journal may lack records, so what a store of the secret holds, or may hold, is
//! left alone too, whatever the journal says. Nothing is ended on the word of an earlier look (H92).

use std::sync::Arc;

use keywheel_core::call::CallError;
use keywheel_core::facts::ReadBack;
use keywheel_core::fingerprint::{Compared, Fingerprint};
use keywheel_core::inventory::{Decision, Inventory};
use keywheel_core::plan::{Label, Plan, RotationId, StorePlan};
use keywheel_core::planted;
use keywheel_core::secret::{Credential, SecretName};
use keywheel_core::version::IssuedId;
use keywheel_driver::Store;
use keywheel_driver::issuer::{Identity, Issuer, Live};
use keywheel_driver::pin::elsewhere;
use keywheel_journal::Epoch;

use crate::request::CLAIM;
use crate::{Drivers, Engine, EngineError, held, recover};

/// What the labels of every rotation begin with.
pub const PREFIX: &str = "kw-";

/// A live credential under a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    /// Its id.
    pub issued: IssuedId,
    /// Its label.
    pub label: Label,
}

/// What carries a label and belongs to no version of a secret.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sorted {
    /// What this journal made and nobody owns.
    pub orphans: Vec<Labelled>,
    /// What no rotation of this journal made.
    pub foreign: Vec<Labelled>,
}

/// What became of an orphan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its issuer ended it.
    Ended,
    /// It may live, and why.
    Left(String),
}

/// Who owns the labelled credentials of one secret, as the journal says.
pub struct Owners {
    /// Every version of every secret: one of another name may have adopted the same credential.
    versions: Vec<(Option<IssuedId>, Option<Label>)>,
    made_here: Vec<String>,
    made_for_secret: Vec<String>,
    at_work: Vec<String>,
}

impl Owners {
    /// Tells orphans from what is owned and from what is somebody else's.
    pub fn sort(&self, live: Vec<Live>) -> Sorted {
        let mut sorted = Sorted::default();
        let ids: Vec<IssuedId> = live.iter().map(|live| live.issued.clone()).collect();
        for Live { issued, label } in live {
            let Some(label) = label.filter(|label| label.0.starts_with(PREFIX)) else { continue };
            let carries = |prefixes: &[String]| {
                prefixes.iter().any(|prefix| label.0.starts_with(prefix.as_str()))
            };
            let one = Labelled { issued, label: label.clone() };
            if carries(&self.made_for_secret) || planted!("orphans_of_others_are_ours") {
                if !carries(&self.at_work) && !self.has_owner(&one, &ids) {
                    sorted.orphans.push(one);
                }
            } else if !carries(&self.made_here) {
                sorted.foreign.push(one);
            }
        }
        sorted
    }

    /// A credential under the label of a version may be that version although its id reads otherwise: some lists are late, and an
    /// id that a person gave is the name of the key, whatever the issuer calls it since. Where that version is live under its own
    /// id, a second one under its label is of a mint that was made twice.
    fn has_owner(&self, one: &Labelled, live: &[IssuedId]) -> bool {
        let is_named = |issued: &IssuedId| *issued == one.issued || issued.id == one.label.0;
        let is_seen = |issued: &IssuedId| live.contains(issued) && !planted!("namesakes_are_owned");
        let is_it = |(issued, label): &(Option<IssuedId>, Option<Label>)| {
            let (id, is_labelled) = (issued.as_ref(), label.as_ref() == Some(&one.label));
            id.is_some_and(is_named) || is_labelled && !id.is_some_and(is_seen)
        };
        self.versions.iter().any(is_it) && !planted!("owned_credentials_are_orphans")
    }
}

/// What the stores of a secret hold now, told by the ids of its issuer.
pub struct InStores {
    /// By the names of the stores.
    holds: Vec<(String, Holds)>,
}

enum Holds {
    /// One of these, or nothing that the issuer knows.
    OneOf(Vec<IssuedId>),
    /// Nothing tells, and why.
    Untold(String),
}

/// Why a credential that no version has is no orphan.
pub struct InUse {
    /// The reason, for people.
    pub why: String,
    /// Whether a store certainly holds it.
    pub is_certain: bool,
}

impl InStores {
    /// Says why a credential may be in use; none where every store holds something else.
    pub fn may_hold(&self, one: &Labelled) -> Option<InUse> {
        let told = self.holds.iter().find_map(|(store, holds)| match holds {
            Holds::OneOf(ids) if *ids == [one.issued.clone()] => {
                Some(InUse { why: format!("store `{store}` holds it"), is_certain: true })
            }
            Holds::OneOf(ids) if ids.contains(&one.issued) => {
                Some(InUse { why: format!("store `{store}` may hold it"), is_certain: false })
            }
            Holds::OneOf(_) => None,
            Holds::Untold(why) => Some(InUse {
                why: format!("store `{store}` may hold it: {why}"),
                is_certain: false,
            }),
        });
        told.filter(|_| !planted!("orphan_in_a_store_is_ended"))
    }
}

impl Engine {
    /// Looks which credentials of its issuer the stores of a plan hold.
    ///
    /// # Errors
    /// [`EngineError`] where the journal fails, or a driver cannot be built.
    pub async fn in_stores(&self, plan: &Plan) -> Result<InStores, EngineError> {
        let drivers = self.build.build(plan)?;
        let row = self.journal.inventory(&plan.secret).await?;
        let row = row.unwrap_or_else(|| Inventory::new(plan.secret.clone()));
        let read = held::by_each(&drivers.stores, plan).await;
        let mut holds = Vec::new();
        for (index, planned) in plan.stores.iter().enumerate() {
            let store = &drivers.stores[index];
            let found = match elsewhere(store.identity(), row.pin_of(planned)).await {
                Err(error) => Holds::Untold(error.to_string()),
                Ok(Some(objection)) => Holds::Untold(objection),
                Ok(None) => match planned.facts.read_back {
                    ReadBack::Value => self.told_by(plan, &drivers, &row, &read, index).await,
                    ReadBack::Timestamp => self.as_left(plan, planned, store).await?,
                    ReadBack::Digest | ReadBack::None => Holds::Untold("it cannot be read".into()),
                },
            };
            holds.push((planned.bound.name.clone(), found));
        }
        Ok(InStores { holds })
    }

    /// Tells what was read from a store by its fingerprint, and by what the issuer makes of it where the journal does not know it.
    async fn told_by(
        &self,
        plan: &Plan,
        drivers: &Drivers,
        row: &Inventory,
        read: &[Result<Option<Credential>, CallError>],
        index: usize,
    ) -> Holds {
        let held = match &read[index] {
            Err(error) => return Holds::Untold(error.to_string()),
            Ok(None) => return Holds::OneOf(Vec::new()),
            Ok(Some(held)) => held,
        };
        let whole =
            held::completed(held, read.iter().filter_map(|held| held.as_ref().ok()?.as_ref()));
        let seen = self.fingerprint(&plan.stores, &whole);
        let is_it = |known: &Fingerprint| known.compare(&seen) == Compared::Same;
        let known =
            row.versions.iter().filter(|known| known.fingerprint.as_ref().is_some_and(is_it));
        let known: Vec<IssuedId> = known.filter_map(|known| known.issued.clone()).collect();
        if !known.is_empty() {
            return Holds::OneOf(known);
        }
        match drivers.issuer.identify(&whole).await {
            Ok(Identity::Known { issued, .. }) => Holds::OneOf(vec![issued]),
            Ok(Identity::Candidates(ids)) => Holds::OneOf(ids),
            Ok(Identity::Unknown) => {
                Holds::Untold("neither journal nor issuer knows its value".into())
            }
            Err(error) => Holds::Untold(error.to_string()),
        }
    }

    /// A store that tells nothing but when it was changed holds what the journal says as long as our last write is its last one.
    async fn as_left(
        &self,
        plan: &Plan,
        planned: &StorePlan,
        store: &Arc<dyn Store>,
    ) -> Result<Holds, EngineError> {
        let is_it =
            |other: &StorePlan| (&other.bound, &other.slots) == (&planned.bound, &planned.slots);
        for row in self.journal.rotations(Some(&plan.secret)).await? {
            let rotation = recover::read(self.journal.as_ref(), &row.rotation).await?;
            let Some(index) = rotation.plan().stores.iter().position(is_it) else { continue };
            // One that never wrote it knows when somebody did, and not what.
            let walk = rotation.walk();
            if !u8::try_from(index).is_ok_and(|store| walk.is_store_touched(store)) {
                continue;
            }
            let Some(left) = walk.changed_at(index) else { continue };
            let addresses: Vec<String> =
                planned.slots.iter().map(|slot| slot.address.clone()).collect();
            return Ok(match store.changed_at(&addresses).await {
                Ok(now) if now == left => Holds::OneOf(Vec::new()),
                Ok(_) => {
                    Holds::Untold("it was written since the journal's last record of it".into())
                }
                Err(error) => Holds::Untold(error.to_string()),
            });
        }
        Ok(Holds::Untold("the journal has no write to it, and it cannot be read".into()))
    }

    /// Reads who owns the labelled credentials of a secret.
    ///
    /// # Errors
    /// [`EngineError`] where the journal fails.
    pub async fn owners(&self, secret: &SecretName) -> Result<Owners, EngineError> {
        let rows = self.journal.rotations(None).await?;
        let inventories = self.journal.inventories().await?;
        let versions = inventories.iter().flat_map(|row| &row.versions);
        let versions = versions.map(|known| (known.issued.clone(), known.label.clone()));
        let open = inventories.iter().find(|row| row.secret == *secret);
        let open = open.and_then(|row| row.open.as_ref()).map(|open| &open.rotation);
        let of_secret = rows.iter().filter(|row| row.secret == *secret);
        Ok(Owners {
            versions: versions.collect(),
            made_here: rows.iter().map(|row| row.rotation.label_prefix()).collect(),
            made_for_secret: of_secret.map(|row| row.rotation.label_prefix()).collect(),
            at_work: self.at_work(open).await?,
        })
    }

    /// The labels of an open rotation, and of those that it took over: it looks for what they left.
    async fn at_work(&self, open: Option<&RotationId>) -> Result<Vec<String>, EngineError> {
        let open = open.filter(|_| !planted!("open_rotation_owns_nothing"));
        let lineage = recover::lineage(self.journal.as_ref(), open).await?;
        Ok(lineage.iter().map(RotationId::label_prefix).collect())
    }

    /// Ends an orphan for good, after another look at it while nobody else can work on its secret. The audit chain says that
    /// it was asked for before it is, and that it is done afterwards.
    ///
    /// # Errors
    /// [`keywheel_journal::JournalError::Held`] where the secret is being worked on; nothing was asked for then.
    pub async fn end_orphan(
        &self,
        plan: &Plan,
        orphan: &Labelled,
        because: &str,
    ) -> Result<Fate, EngineError> {
        let secret = &plan.secret;
        let epoch = self.journal.claim(secret, &self.holder, self.clock.now(), CLAIM).await?;
        let fate = self.end_claimed(plan, orphan, because, epoch).await;
        let given_up = self.journal.give_up(secret, epoch).await;
        let fate = fate?;
        given_up?;
        Ok(fate)
    }

    async fn end_claimed(
        &self,
        plan: &Plan,
        orphan: &Labelled,
        because: &str,
        epoch: Epoch,
    ) -> Result<Fate, EngineError> {
        let (secret, issuer) = (&plan.secret, self.build.build(plan)?.issuer);
        if let Some(why) = self.is_none_any_more(plan, issuer.as_ref(), orphan).await? {
            return Ok(Fate::Left(why));
        }
        let Labelled { issued, label } = orphan;
        let decide = |what: &str| {
            format!("{what} of credential `{issued}`, labelled `{label}`, which nobody owned")
        };
        self.decided(secret, decide("asked for the end"), because, epoch).await?;
        match issuer.revoke(issued).await {
            Ok(()) => {
                self.decided(secret, decide("saw the end"), because, epoch).await?;
                Ok(Fate::Ended)
            }
            Err(error) => Ok(Fate::Left(error.to_string())),
        }
    }

    /// Says why a credential that was an orphan is none at a second look.
    async fn is_none_any_more(
        &self,
        plan: &Plan,
        issuer: &dyn Issuer,
        orphan: &Labelled,
    ) -> Result<Option<String>, EngineError> {
        if planted!("orphan_not_read_again") {
            return Ok(None);
        }
        let live = match issuer.list(&orphan.label.0).await {
            Ok(live) => live,
            Err(error) => return Ok(Some(format!("it could not be looked at again: {error}"))),
        };
        let is_listed = live
            .iter()
            .any(|live| live.issued == orphan.issued && live.label.as_ref() == Some(&orphan.label));
        if !is_listed {
            return Ok(Some("it is gone, or carries another label by now".into()));
        }
        if !self.owners(&plan.secret).await?.sort(live).orphans.contains(orphan) {
            return Ok(Some("it has an owner by now".into()));
        }
        Ok(self.in_stores(plan).await?.may_hold(orphan).map(|in_use| in_use.why))
    }

    async fn decided(
        &self,
        secret: &SecretName,
        what: String,
        because: &str,
        epoch: Epoch,
    ) -> Result<(), EngineError> {
        let at = self.clock.now();
        let row = self.journal.inventory(secret).await?;
        let row = row.unwrap_or_else(|| Inventory::new(secret.clone()));
        let decided = Some(Decision { at, what, because: because.into() });
        self.append_row(Inventory { decided, ..row }, "orphan", epoch, at).await
    }
}
