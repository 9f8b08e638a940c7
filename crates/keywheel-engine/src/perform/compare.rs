//! What is compared with stores and issuer before a call that cannot be taken back.
//!
//! A journal may be older than the world, and so may a store: a backup was put back, or a replica took over that lacked the last
//! writes (H18). What is lost cannot be told from the journal, so whoever goes on with the records of another process asks before it
//! mints, writes or ends anything. Nothing is mended here: what the journal does not know is named, and refused. An emergency does
//! not compare: it goes forward only, over whatever it finds.

use keywheel_core::call::{CallError, Refusal, RefusalKind};
use keywheel_core::event::Step;
use keywheel_core::facts::{Authority, ReadBack};
use keywheel_core::plan::{Role, Slot};
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_core::strategy::{Position, Side};
use keywheel_core::version::VersionId;
use keywheel_driver::issuer::Verdict;

use super::{Outcome, Work};

impl Work<'_> {
    /// Refuses a step that stores or issuer show to rest on an old state.
    pub(super) async fn compare(&self, step: Step) -> Outcome<()> {
        if self.plan.is_emergency() {
            return Ok(());
        }
        let may_lack_records = self.member.known_until.is_some();
        match step {
            Step::Suspend(version) | Step::Revoke(version) => self.no_store_names(version).await,
            Step::RevokeStray { .. } if !planted!("stray_ended_unseen") => {
                self.stores_hold_what_is_known(may_lack_records).await
            }
            Step::Mint { attempt } => {
                if may_lack_records && !planted!("minted_over_an_unknown_value") {
                    self.stores_hold_what_is_known(true).await?;
                }
                // A plan that is made again has the labels of one that is lost.
                let is_first =
                    !(1..attempt).any(|attempt| self.member.rotation.may_have_made(attempt));
                if is_first || may_lack_records {
                    self.attempt_is_new(attempt).await?;
                }
                Ok(())
            }
            Step::Write { to, .. } if may_lack_records && !planted!("written_without_asking") => {
                self.is_not_refused(to).await
            }
            _ => Ok(()),
        }
    }

    /// A version that a store was moved away from may be there again: a write that was answered is lost with the replica that took
    /// it, or somebody undid it. A store that was never written does not hold the pending version, unless the record of that is lost.
    async fn no_store_names(&self, version: VersionId) -> Outcome<()> {
        if planted!("ended_while_a_store_names_it") {
            return Ok(());
        }
        let rotation = &self.member.rotation;
        let may_lack_records = self.member.known_until.is_some();
        for (index, planned) in self.plan.stores.iter().enumerate() {
            let may_hold_it = rotation.toward() == Side::Pending
                || may_lack_records
                || rotation.walk().is_store_touched(index as u8);
            let names_it = match planned.facts.read_back {
                ReadBack::Value if may_hold_it => self.holds_the_other_side(index).await?,
                // Whatever was written there without a record of it, the time has moved.
                ReadBack::Timestamp if may_lack_records => {
                    !self.is_as_left(index).await.map_err(not_asked)?
                }
                _ => false,
            };
            if names_it {
                let message = format!(
                    "store `{}` may hold {version} again: its last write is lost, or somebody undid it",
                    planned.bound.name
                );
                return Err(Refusal::retry(RefusalKind::Conflict, None, message).into());
            }
        }
        Ok(())
    }

    /// Whether a slot holds what it is given under the version that the rotation walks away from.
    async fn holds_the_other_side(&self, index: usize) -> Outcome<bool> {
        let rotation = &self.member.rotation;
        let (here, there) =
            (rotation.walk().should_hold(), rotation.line().end(rotation.toward().other()));
        for (slot, held) in self.current(index).await? {
            if held.is_none() || self.is_of_another_login(slot, here).await? {
                continue;
            }
            let wanted = self.content(index, slot, here).await?;
            let ended = self.content(index, slot, there).await?;
            let is = |known: Option<SecretValue>| SecretValue::same(known.as_ref(), held.as_ref());
            if is(ended) && !is(wanted) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What a store holds and the journal does not know may be a version that readers use, and whose records are lost.
    /// One that does not answer stands in the way where records may be lacking.
    async fn stores_hold_what_is_known(&self, each: bool) -> Outcome<()> {
        for index in 0..self.plan.stores.len() {
            let current = match self.current(index).await {
                Err(_) if !each => continue,
                current => current?,
            };
            for (slot, held) in current {
                if held.is_some() && !self.is_known(index, slot, held.as_ref()).await? {
                    let name = &self.plan.stores[index].bound.name;
                    return Err(unknown(&format!("store `{name}` holds a value")).into());
                }
            }
        }
        Ok(())
    }

    async fn is_known(
        &self,
        index: usize,
        slot: &Slot,
        held: Option<&SecretValue>,
    ) -> Outcome<bool> {
        for position in 0..=self.member.rotation.line().end(Side::Pending) {
            if self.is_of_another_login(slot, position).await? {
                return Ok(true);
            }
            let known = self.content(index, slot, position).await?;
            if SecretValue::same(known.as_ref(), held) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A label is given once: what carries that of an attempt that the journal did not begin, or saw refused, was made by it all
    /// the same.
    async fn attempt_is_new(&self, attempt: u16) -> Outcome<()> {
        let facts = &self.plan.issuer.facts;
        if !facts.label || facts.by_hand.is_some() || planted!("attempt_is_made_twice") {
            return Ok(());
        }
        let rotation = &self.member.rotation;
        let id = rotation.id();
        let begun = (1..attempt).filter(|attempt| rotation.may_have_made(*attempt));
        let begun: Vec<_> = begun.map(|attempt| id.label(attempt)).collect();
        let live = self.member.drivers.issuer.list(&id.label_prefix()).await.map_err(not_asked)?;
        let is_begun = |label| begun.contains(label);
        match live.iter().find(|live| !live.label.as_ref().is_some_and(is_begun)) {
            None => Ok(()),
            Some(live) => Err(unknown(&format!("the issuer has `{}`", live.issued)).into()),
        }
    }

    /// A version that the journal calls live may have been ended since. An issuer that says nothing holds no way back up.
    async fn is_not_refused(&self, to: Position) -> Outcome<()> {
        if self.plan.issuer.facts.authority != Authority::Issuer {
            return Ok(());
        }
        let rotation = &self.member.rotation;
        let Some(version) = rotation.version(rotation.line().at(to).current) else { return Ok(()) };
        let Some(credential) = self.sealed(version).await? else { return Ok(()) };
        match self.member.drivers.issuer.verify(&credential).await {
            Ok(Verdict::Refused) => Err(self.refused_by_issuer(version).into()),
            Ok(Verdict::Accepted | Verdict::CannotTell(_)) | Err(_) => Ok(()),
        }
    }

    /// What the slots of a store hold that readers use now; nothing where it cannot be read.
    async fn current(&self, index: usize) -> Outcome<Vec<(&Slot, Option<SecretValue>)>> {
        let Some(held) = self.read(index).await.map_err(not_asked)? else { return Ok(Vec::new()) };
        let slots = self.plan.stores[index].slots.iter().zip(held);
        Ok(slots.filter(|(slot, _)| slot.role == Role::Current).collect())
    }
}

/// A question without an answer is no step without an answer.
fn not_asked(error: CallError) -> CallError {
    match error {
        CallError::Unknown(why) => Refusal::retry(RefusalKind::Unavailable, None, why).into(),
        refused @ CallError::Refused(_) => refused,
    }
}

fn unknown(what: &str) -> Refusal {
    let message = format!(
        "{what} that the journal does not know: the journal may be older than the world, as after a backup was put back or a \
         replica took over; `keywheel doctor` compares them"
    );
    Refusal::operator(RefusalKind::Conflict, message)
}
