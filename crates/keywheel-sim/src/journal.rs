//! The journal as processes of the simulation see it: the one in memory, with faults around it and a book beside it.
//!
//! The book is a second, independent account of what is durable, by which every answer of the journal is checked.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use async_trait::async_trait;
use keywheel_core::call::Remedy;
use keywheel_core::event::{Event, Step};
use keywheel_core::inventory::Inventory;
use keywheel_core::plan::RotationId;
use keywheel_core::secret::{Credential, SecretName};
use keywheel_core::time::{Span, Timestamp};
use keywheel_journal::memory::{Fault as CommitFault, MemoryJournal};
use keywheel_journal::{
    Append, AuditRecord, AuditVerdict, Epoch, Holder, Installation, Journal, JournalError, Record,
    Resource, RotationRow, ValueKey,
};
use smallvec::SmallVec;

use crate::drivers::index;
use crate::faults::{Fault, StepKind};
use crate::life::ready;
use crate::world::{BrownOut, EPOCH, Intent, Order, RequestKind, Shared, World};

/// One process's view of the journal.
pub(crate) struct SimJournal {
    pub(crate) inner: Arc<MemoryJournal>,
    pub(crate) world: Shared,
    pub(crate) process: usize,
}

/// What the book keeps of one entry.
struct Note {
    secret: usize,
    rotation: String,
    group: String,
    epoch: u64,
    sequence: u64,
    what: What,
    asks: Asks,
    take: Vec<String>,
    give_back: bool,
}

enum What {
    Row,
    Planned { emergency: bool },
    Intended { step: StepKind, until: i64 },
    Promoted,
    Ended(keywheel_core::event::Outcome),
    Other { closes_intent: bool },
}

/// What an entry has to do with a step that was refused in a way that only an operator can change.
pub(crate) enum Asks {
    /// It announces this one.
    For(Step),
    /// It says that this one was refused so.
    InVain(Step),
    /// It says what else came of a step.
    Nothing,
    /// It changes what is owed.
    Anew,
}

impl SimJournal {
    /// A point before a commit at which something can go wrong; returns how the commit then goes.
    async fn before_commit(&self, notes: &[Note]) -> Option<CommitFault> {
        let fault = {
            let mut world = self.world.lock();
            if std::mem::take(&mut world.crash_at_next_commit) {
                world.orders.push(Order::Crash);
                None
            } else {
                let step = notes.iter().rev().find_map(|note| match note.what {
                    What::Intended { step, .. } => Some(step),
                    What::Planned { .. } => Some(StepKind::Preflight),
                    _ => world.book[note.secret].intent.map(|intent| intent.step),
                });
                step.and_then(|step| world.fault_at(step, RequestKind::Commit))
            }
        };
        if !self.world.lock().orders.is_empty() {
            // The order takes effect after this poll; the future is never polled again.
            let () = std::future::pending().await;
        }
        match fault? {
            Fault::CommitRefused => Some(CommitFault::RefuseBefore),
            Fault::CommitUnacknowledged => Some(CommitFault::FailAfter),
            Fault::TailLost => Some(CommitFault::LoseTail(1)),
            Fault::CommitSlow => {
                self.stall(60_000).await;
                None
            }
            _ => None,
        }
    }

    async fn stall(&self, span: i64) {
        let until = self.world.lock().now + span;
        poll_fn(|_| {
            let mut world = self.world.lock();
            if world.now >= until {
                return Poll::Ready(());
            }
            world.wake_at(until);
            Poll::Pending
        })
        .await;
    }
}

#[async_trait]
impl Journal for SimJournal {
    fn installation(&self) -> &Installation {
        self.inner.installation()
    }

    async fn claim(
        &self,
        secret: &SecretName,
        holder: &Holder,
        now: Timestamp,
        lease: Span,
    ) -> Result<Epoch, JournalError> {
        let epoch = self.inner.claim(secret, holder, now, lease).await?;
        self.world.lock().claimed(
            index(secret.name()),
            self.process,
            epoch.0,
            (now + lease).millis() - EPOCH,
            now.millis() - EPOCH,
        );
        Ok(epoch)
    }

    async fn give_up(&self, secret: &SecretName, epoch: Epoch) -> Result<(), JournalError> {
        self.inner.give_up(secret, epoch).await?;
        let mut world = self.world.lock();
        let book = &mut world.book[index(secret.name())];
        if book.epoch == epoch.0 {
            book.holder = None;
        }
        Ok(())
    }

    async fn append(&self, append: Append) -> Result<(), JournalError> {
        let notes: SmallVec<[Note; 2]> = append.entries.iter().map(note).collect();
        let fault = self.before_commit(&notes).await;
        if let Some(fault) = fault {
            self.inner.fail_next(fault);
        }
        let answer = self.inner.append(append).await;
        let durable = answer.is_ok()
            || (fault == Some(CommitFault::FailAfter)
                && matches!(answer, Err(JournalError::Storage(_))));
        if durable {
            let mut world = self.world.lock();
            world.commits += usize::from(!notes.iter().all(|note| matches!(note.what, What::Row)));
            notes.iter().for_each(|note| world.entered(self.process, note));
        }
        answer
    }

    async fn records(&self, rotation: &RotationId) -> Result<Vec<Record>, JournalError> {
        self.inner.records(rotation).await
    }

    async fn rotations(
        &self,
        secret: Option<&SecretName>,
    ) -> Result<Vec<RotationRow>, JournalError> {
        self.inner.rotations(secret).await
    }

    async fn inventory(&self, secret: &SecretName) -> Result<Option<Inventory>, JournalError> {
        let row = self.inner.inventory(secret).await;
        if self.world.lock().racing {
            self.stall(5).await;
        }
        row
    }

    async fn inventories(&self) -> Result<Vec<Inventory>, JournalError> {
        self.inner.inventories().await
    }

    async fn unseal(&self, key: &ValueKey) -> Result<Option<Credential>, JournalError> {
        self.inner.unseal(key).await
    }

    async fn sealed(&self, secret: &SecretName) -> Result<Vec<ValueKey>, JournalError> {
        self.inner.sealed(secret).await
    }

    async fn leases(&self) -> Result<Vec<(Resource, RotationId)>, JournalError> {
        self.inner.leases().await
    }

    async fn audit(&self, from: u64) -> Result<Vec<AuditRecord>, JournalError> {
        self.inner.audit(from).await
    }

    async fn verify_audit(&self) -> Result<AuditVerdict, JournalError> {
        self.inner.verify_audit().await
    }
}

fn note(entry: &keywheel_journal::Entry) -> Note {
    let what = match &entry.event {
        None => What::Row,
        Some(Event::Planned(plan)) => What::Planned { emergency: plan.is_emergency() },
        Some(Event::Intended { step, until, .. }) => {
            What::Intended { step: StepKind::of(*step), until: until.millis() - EPOCH }
        }
        Some(Event::Promoted { .. }) => What::Promoted,
        Some(Event::Ended { outcome } | Event::Resolved { outcome, .. }) => What::Ended(*outcome),
        Some(Event::Superseded { .. }) => What::Ended(keywheel_core::event::Outcome::Superseded),
        Some(event) => What::Other {
            closes_intent: matches!(
                event,
                Event::Done { .. } | Event::Refused { .. } | Event::Unknown { .. }
            ),
        },
    };
    Note {
        secret: index(entry.secret.name()),
        rotation: entry.rotation.0.clone(),
        group: entry.group.0.clone(),
        epoch: entry.epoch.0,
        sequence: entry.sequence,
        what,
        asks: entry.event.as_ref().map_or(Asks::Nothing, asks),
        take: entry.take.iter().map(|resource| resource.0.clone()).collect(),
        give_back: entry.give_back,
    }
}

fn asks(event: &Event) -> Asks {
    match event {
        Event::Intended { step, .. } => Asks::For(*step),
        Event::Refused { step, refusal } if refusal.remedy == Remedy::Operator => {
            Asks::InVain(*step)
        }
        Event::Refused { .. } | Event::Done { .. } | Event::Unknown { .. } => Asks::Nothing,
        _ => Asks::Anew,
    }
}

/// I05: the journal's answers, checked by the book.
impl World {
    fn claimed(&mut self, secret: usize, process: usize, epoch: u64, until: i64, now: i64) {
        let book = &self.book[secret];
        let other = book.holder.filter(|holder| *holder != process);
        let lives = other.is_some_and(|holder| self.alive[holder] && now < book.claimed_until);
        if lives {
            self.violate("I05", || {
                format!(
                    "process {process} claims secret {secret} from process {other:?}, which lives"
                )
            });
        }
        let book = &mut self.book[secret];
        if epoch < book.epoch {
            self.violate("I05", || format!("the epoch of secret {secret} goes back to {epoch}"));
            return;
        }
        (book.epoch, book.holder, book.claimed_until) = (epoch, Some(process), until);
    }

    fn entered(&mut self, process: usize, note: &Note) {
        self.checks += 1;
        let (now, wall) = (self.now, self.wall().millis() - EPOCH);
        let secret = note.secret;
        let book = &self.book[secret];
        if note.epoch != book.epoch {
            self.violate("I05", || {
                format!("process {process} appends to secret {secret} under epoch {}", note.epoch)
            });
            return;
        }
        if matches!(note.what, What::Row) {
            return;
        }
        let superseded =
            matches!(note.what, What::Ended(keywheel_core::event::Outcome::Superseded));
        let same = book.rotation.as_deref() == Some(&note.rotation);
        match note.what {
            What::Planned { .. } if book.rotation.is_some() => {
                self.violate("I05", || format!("secret {secret} has two open rotations"));
                return;
            }
            What::Planned { .. } => {}
            _ if !same || note.sequence != book.next => {
                let (sequence, next) = (note.sequence, book.next);
                self.violate("I05", || {
                    format!("record {sequence} of secret {secret} is written as its record {next}")
                });
                return;
            }
            _ => {}
        }
        if let Some(taken) = self.taken_by_other(note) {
            self.violate("I05", || {
                format!("the wave of secret {secret} takes `{taken}`, which another wave has")
            });
            return;
        }
        if note.give_back || superseded {
            self.book
                .iter_mut()
                .for_each(|book| book.taken.retain(|(_, group)| *group != note.group));
        }
        self.check_refused(secret, &note.asks);
        let book = &mut self.book[secret];
        book.next = note.sequence + 1;
        book.taken.extend(note.take.iter().map(|resource| (resource.clone(), note.group.clone())));
        match &note.what {
            What::Planned { emergency } => {
                book.rotation = Some(note.rotation.clone());
                book.planned += 1;
                book.outcome = None;
                book.promoted_at = now;
                self.secrets[secret].emergency |= *emergency;
                if *emergency {
                    self.values
                        .iter_mut()
                        .filter(|value| value.secret == Some(secret))
                        .for_each(|value| value.suspect = true);
                }
            }
            What::Intended { step, until } => {
                let intent = Intent { step: *step, until: *until, process };
                book.intent = Some(intent);
                // The latest of each process is kept even when it is over, so that a late call is told from a lawless one.
                book.running.retain(|known| known.until > wall || known.process != process);
                book.running.push(intent);
            }
            What::Promoted => book.promoted_at = now,
            What::Ended(outcome) => {
                book.rotation = None;
                book.outcome = Some(*outcome);
                book.intent = None;
            }
            What::Other { closes_intent: true } => book.intent = None,
            What::Other { .. } | What::Row => {}
        }
    }

    /// Begins the book anew from a journal that lacks what was written last.
    pub(crate) fn read_again(&mut self, journal: &MemoryJournal) {
        for secret in 0..self.book.len() {
            let name = format!("secret{secret}");
            let Ok(name) = SecretName::new(&name, "sim") else { continue };
            let row = ready(journal.inventory(&name)).ok().flatten();
            let open = row.as_ref().and_then(|row| row.open.as_ref()).map(|open| &open.rotation);
            let records = open.map(|open| ready(journal.records(open)).unwrap_or_default());
            let book = &mut self.book[secret];
            (book.epoch, book.holder, book.claimed_until) = (0, None, 0);
            book.rotation = open.map(|open| open.0.clone());
            book.next = records.as_ref().map_or(0, |records| records.len() as u64);
            book.outcome = row.as_ref().and_then(|row| row.last_outcome);
            (book.intent, book.refused) = (None, None);
            book.running.clear();
            book.taken.clear();
            book.brown_out = BrownOut::default();
        }
        let leases = ready(journal.leases()).unwrap_or_default().into_iter();
        let taken = leases.map(|(resource, group)| (resource.0, group.0));
        self.book[0].taken.extend(taken);
    }

    fn taken_by_other(&self, note: &Note) -> Option<String> {
        let others =
            self.book.iter().flat_map(|book| &book.taken).filter(|(_, group)| *group != note.group);
        others.map(|(resource, _)| resource).find(|resource| note.take.contains(resource)).cloned()
    }
}
