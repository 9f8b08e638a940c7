//! The rules of an append and of a claim, in one place for every journal.
//!
//! They are pure: a journal shows what it [`Known`]s, the rules answer yes or why not, and only then does the journal write.
//! All entries of an append are judged before the first is written, each as if the ones before it were.

use keywheel_core::event::Event;
use keywheel_core::plan::RotationId;
use keywheel_core::planted;
use keywheel_core::secret::SecretName;
use keywheel_core::time::{Span, Timestamp};

use crate::{Append, Entry, Epoch, Holder, JournalError, Resource, Sealed, ValueKey};

/// The bugs that can be planted in the rules.
#[cfg(feature = "planted-bugs")]
pub const PLANTED: [&str; 7] = [
    "ignore_epoch",
    "ignore_sequence",
    "open_twice",
    "no_wave_leases",
    "lost_seal",
    "destroy_ignored",
    "claim_of_the_living",
];

/// What a journal shows of itself to the rules.
pub(crate) trait Known {
    /// Returns the epoch under which a secret is held now.
    fn epoch(&self, secret: &SecretName) -> Result<Option<Epoch>, JournalError>;

    /// Returns where the records of a rotation stand; none where it was never planned.
    fn place(
        &self,
        rotation: &RotationId,
        secret: &SecretName,
    ) -> Result<Option<Place>, JournalError>;

    /// Returns the open rotation of a secret.
    fn open(&self, secret: &SecretName) -> Result<Option<RotationId>, JournalError>;

    /// Returns which rotation holds a wave lease.
    fn lease(&self, resource: &Resource) -> Result<Option<RotationId>, JournalError>;
}

/// Where the records of a rotation stand.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Whether the rotation is of the secret that was asked for.
    pub(crate) of_secret: bool,
    /// The sequence of its next record.
    pub(crate) next: u64,
    /// Whether it is open.
    pub(crate) open: bool,
}

/// Who holds a secret, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The epoch; it only grows.
    pub(crate) epoch: Epoch,
    /// The holder; none once it gave the secret up.
    pub(crate) holder: Option<Holder>,
    /// When its lease ends.
    pub(crate) until: Timestamp,
}

/// Judges an append as a whole.
pub(crate) fn check(known: &impl Known, append: &Append) -> Result<(), JournalError> {
    let mut draft = Draft::new(known);
    let (last, before) = match append.entries.split_last() {
        Some(split) => split,
        None => return Err(JournalError::Malformed("an append without entries".into())),
    };
    for entry in before {
        draft.check(entry)?;
        draft.note(entry);
    }
    draft.check(last)
}

/// Judges a claim and returns what it becomes.
pub(crate) fn claim(
    present: Option<&Claim>,
    secret: &SecretName,
    holder: &Holder,
    now: Timestamp,
    lease: Span,
    proven_dead: impl FnOnce(&Holder) -> bool,
) -> Result<Claim, JournalError> {
    let epoch = match present {
        None => Epoch(1),
        Some(claim) => match &claim.holder {
            Some(former) if former.id == holder.id => claim.epoch,
            Some(former)
                if now < claim.until
                    && !proven_dead(former)
                    && !planted!("claim_of_the_living") =>
            {
                return Err(JournalError::Held {
                    secret: secret.clone(),
                    holder: former.name.clone(),
                    until: claim.until,
                });
            }
            _ => Epoch(claim.epoch.0 + 1),
        },
    };
    Ok(Claim { epoch, holder: Some(holder.clone()), until: now + lease })
}

/// Returns whether a rotation is over with this event.
pub(crate) fn closes(event: &Event) -> bool {
    matches!(event, Event::Ended { .. } | Event::Resolved { .. } | Event::Superseded { .. })
}

/// Returns whether the wave leases of the entry's group are given back: on demand, and when a rotation alone is over.
pub(crate) fn gives_back(entry: &Entry) -> bool {
    let is_over = entry.group == entry.rotation && entry.event.as_ref().is_some_and(closes);
    (entry.give_back || is_over) && !planted!("nothing_is_given_back")
}

/// Returns the values that an entry seals.
pub(crate) fn seals(entry: &Entry) -> &[Sealed] {
    if planted!("lost_seal") { &[] } else { &entry.seal }
}

/// Returns the values whose keys an entry destroys.
pub(crate) fn destroys(entry: &Entry) -> &[ValueKey] {
    if planted!("destroy_ignored") { &[] } else { &entry.destroy }
}

/// What is known, with the entries noted so far on top of it.
struct Draft<'a, K> {
    known: &'a K,
    places: Vec<(&'a RotationId, Place)>,
    open: Vec<(&'a SecretName, Option<&'a RotationId>)>,
    taken: Vec<(&'a Resource, &'a RotationId)>,
    gave_back: Vec<&'a RotationId>,
}

impl<'a, K: Known> Draft<'a, K> {
    fn new(known: &'a K) -> Self {
        Self {
            known,
            places: Vec::new(),
            open: Vec::new(),
            taken: Vec::new(),
            gave_back: Vec::new(),
        }
    }

    fn check(&self, entry: &Entry) -> Result<(), JournalError> {
        check_form(entry)?;
        self.check_epoch(entry)?;
        if let Some(event) = &entry.event {
            self.check_sequence(entry, event)?;
        }
        self.check_leases(entry)
    }

    fn check_epoch(&self, entry: &Entry) -> Result<(), JournalError> {
        let present = self.known.epoch(&entry.secret)?;
        if present == Some(entry.epoch) || planted!("ignore_epoch") {
            Ok(())
        } else {
            Err(stale(entry))
        }
    }

    fn check_sequence(&self, entry: &Entry, event: &Event) -> Result<(), JournalError> {
        let place = self.place(entry)?;
        let next = place.map_or(0, |place| place.next);
        let fits =
            entry.sequence == next && place.is_none_or(|place| place.of_secret && place.open);
        if !fits && !planted!("ignore_sequence") {
            return Err(stale(entry));
        }
        if matches!(event, Event::Planned(_)) { self.check_open(entry) } else { Ok(()) }
    }

    fn check_open(&self, entry: &Entry) -> Result<(), JournalError> {
        match self.open_rotation(&entry.secret)? {
            Some(rotation) if !planted!("open_twice") => {
                Err(JournalError::OpenAlready { secret: entry.secret.clone(), rotation })
            }
            _ => Ok(()),
        }
    }

    fn check_leases(&self, entry: &Entry) -> Result<(), JournalError> {
        if planted!("no_wave_leases") {
            return Ok(());
        }
        for resource in &entry.take {
            match self.lease(resource)? {
                Some(rotation) if rotation != entry.group => {
                    return Err(JournalError::Busy { resource: resource.clone(), rotation });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn note(&mut self, entry: &'a Entry) {
        if gives_back(entry) {
            self.taken.retain(|(_, rotation)| *rotation != &entry.group);
            self.gave_back.push(&entry.group);
        }
        self.taken.extend(entry.take.iter().map(|resource| (resource, &entry.group)));
        let Some(event) = &entry.event else { return };
        let open = !closes(event);
        self.places
            .push((&entry.rotation, Place { of_secret: true, next: entry.sequence + 1, open }));
        self.open.push((&entry.secret, open.then_some(&entry.rotation)));
    }

    fn place(&self, entry: &Entry) -> Result<Option<Place>, JournalError> {
        match self.places.iter().rev().find(|(rotation, _)| *rotation == &entry.rotation) {
            Some((_, place)) => Ok(Some(*place)),
            None => self.known.place(&entry.rotation, &entry.secret),
        }
    }

    fn open_rotation(&self, secret: &SecretName) -> Result<Option<RotationId>, JournalError> {
        match self.open.iter().rev().find(|(noted, _)| *noted == secret) {
            Some((_, rotation)) => Ok(rotation.cloned()),
            None => self.known.open(secret),
        }
    }

    fn lease(&self, resource: &Resource) -> Result<Option<RotationId>, JournalError> {
        if let Some((_, rotation)) = self.taken.iter().find(|(taken, _)| *taken == resource) {
            return Ok(Some((*rotation).clone()));
        }
        let holder = self.known.lease(resource)?;
        Ok(holder.filter(|rotation| !self.gave_back.contains(&rotation)))
    }
}

/// Refuses an entry that contradicts itself, whatever the journal holds.
fn check_form(entry: &Entry) -> Result<(), JournalError> {
    let planned = entry.event.as_ref().and_then(|event| match event {
        Event::Planned(plan) => Some(plan),
        _ => None,
    });
    let fault = if entry.event.is_some() && planned.is_some() != (entry.sequence == 0) {
        "a rotation begins with its plan, and only there"
    } else if planned.is_some_and(|plan| plan.secret != entry.secret) {
        "the plan is of another secret"
    } else if entry.inventory.as_ref().is_some_and(|row| row.secret != entry.secret) {
        "the inventory row is of another secret"
    } else if entry.event.is_none() && entry.inventory.is_none() {
        "an entry without an event or an inventory row"
    } else {
        return Ok(());
    };
    Err(JournalError::Malformed(fault.into()))
}

fn stale(entry: &Entry) -> JournalError {
    JournalError::Stale { secret: entry.secret.clone() }
}
