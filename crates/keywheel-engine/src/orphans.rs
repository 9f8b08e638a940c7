//! Live credentials that carry a label of ours and that nobody owns: which they are, and how they are ended.
//!
//! Ours is a label that a rotation of the same secret in this journal made. What carries another one is named at most (H90). A
//! credential is owned where a version of the journal has its id, or its label and an id that nothing live has, or where an open
//! rotation may still find and end it by itself. Nothing is ended on the word of an earlier look (H92).

use keywheel_core::inventory::{Decision, Inventory};
use keywheel_core::plan::{Label, RotationId};
use keywheel_core::planted;
use keywheel_core::secret::SecretName;
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{Issuer, Live};
use keywheel_journal::Epoch;

use crate::request::CLAIM;
use crate::{Engine, EngineError, recover};

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

impl Engine {
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
        secret: &SecretName,
        issuer: &dyn Issuer,
        orphan: &Labelled,
        because: &str,
    ) -> Result<Fate, EngineError> {
        let epoch = self.journal.claim(secret, &self.holder, self.clock.now(), CLAIM).await?;
        let fate = self.end_claimed(secret, issuer, orphan, because, epoch).await;
        let given_up = self.journal.give_up(secret, epoch).await;
        let fate = fate?;
        given_up?;
        Ok(fate)
    }

    async fn end_claimed(
        &self,
        secret: &SecretName,
        issuer: &dyn Issuer,
        orphan: &Labelled,
        because: &str,
        epoch: Epoch,
    ) -> Result<Fate, EngineError> {
        if let Some(why) = self.is_none_any_more(secret, issuer, orphan).await? {
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
        secret: &SecretName,
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
        let is_orphan = self.owners(secret).await?.sort(live).orphans.contains(orphan);
        Ok((!is_orphan).then(|| "it has an owner by now".into()))
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
