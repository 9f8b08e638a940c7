//! Stores: where readers get a value.

use async_trait::async_trait;
use keywheel_core::call::CallError;
use keywheel_core::facts::StoreFacts;
use keywheel_core::plan::Pin;
use keywheel_core::planted;
use keywheel_core::secret::{Credential, SecretValue};
use keywheel_core::time::Timestamp;

use crate::issuer::Verdict;
use crate::{Claims, Finding, Right, Writer};

/// A place that holds slots: a file, a Secret, a path.
#[async_trait]
pub trait Store: Send + Sync {
    /// Returns what this store can do, as it is configured.
    fn facts(&self) -> StoreFacts;

    /// Returns the one name under which everyone who writes to this container knows it; wave leases are taken on it.
    fn container(&self) -> String;

    /// Lists every container that holds what its slots hold: its own first, and those that it is brought from.
    fn containers(&self) -> Vec<String> {
        vec![self.container()]
    }

    /// Returns the place where it is reached, as that place names itself now; none where it has no name of its own. A store whose
    /// plan was pinned to another place is not written.
    async fn identity(&self) -> Result<Option<Pin>, CallError> {
        Ok(None)
    }

    /// Checks permissions, owners and the shape of the container without changing anything. `addresses` are the slots that
    /// will be written; `sample` is a value of the kind that will be written, to check that it can be quoted.
    async fn preflight(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError>;

    /// Finds slots that are to be there already and are not, in a container where that is a mistyped address. `addresses` are
    /// those that readers use now; a slot that only a rotation fills is not among them.
    async fn missing(&self, _addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    /// Lists every slot that holds something, its neighbours' and strangers' too, by address; none where it cannot be listed.
    /// An emergency asks it: whoever has one value of a container may have them all.
    async fn addresses(&self) -> Result<Option<Vec<String>>, CallError> {
        Ok(None)
    }

    /// Names who wrote these slots last and is not keywheel, as the container itself tells it; nobody where it does not. Asked for
    /// people only, where somebody else's write was found.
    async fn others(&self, _addresses: &[String]) -> Result<Vec<Writer>, CallError> {
        Ok(Vec::new())
    }

    /// Reads the exact bytes of slots, in the order asked; none for a slot that is absent. Never asked of a store that is not
    /// [readable](StoreFacts::is_readable).
    async fn read(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError>;

    /// Writes slots, all of them or none, and leaves every other byte and all metadata as they are (I12).
    ///
    /// Each edit names what the slot may hold now; anything else is refused as a conflict, with nothing written (H63, H126).
    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError>;

    /// Returns when each slot was changed last, by the store's own clock; none for a slot that is absent. Only asked of a store
    /// that gives back [the time of a write](keywheel_core::facts::ReadBack::Timestamp) and nothing else. The time moves with every
    /// write that changes something: one that comes too soon after another waits until it can.
    async fn changed_at(&self, addresses: &[String]) -> Result<Vec<Option<Timestamp>>, CallError> {
        Ok(vec![None; addresses.len()])
    }

    /// Logs in with a credential at every place where readers do, for a store that [answers logins](StoreFacts::answers_logins).
    async fn lets_in(&self, _credential: &Credential) -> Result<Verdict, CallError> {
        Ok(Verdict::CannotTell("the store answers no logins".into()))
    }

    /// Removes what it kept for the way back and nobody can need any more, at the end of a rotation. Returns what stays, and why, for
    /// people. What fails here is tried again at the end of the next one.
    async fn clean_up(&self) -> Result<Vec<String>, CallError> {
        Ok(Vec::new())
    }

    /// Lists what an account must be allowed in a cluster that reads and writes it, and keeps its claim on it; nothing where it is not in one.
    fn rights(&self) -> Vec<Right> {
        Vec::new()
    }

    /// Finds everything at the place of the container that holds or names these slots now, running or not; none where the place tells
    /// nothing of that. Asked for people only.
    async fn whereabouts(&self, _addresses: &[String]) -> Result<Option<Whereabouts>, CallError> {
        Ok(None)
    }

    /// Returns how the container says which installation owns it, where it can carry that.
    fn claims(&self) -> Option<&dyn Claims> {
        None
    }
}

/// What holds or names slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// What was found.
    pub found: Vec<Whereabout>,
    /// What could not be looked at, in words.
    pub unseen: Vec<String>,
}

/// Something that holds or names slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whereabout {
    /// Its kind, in the words of the place.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// How it holds or names them, and whether it runs.
    pub how: String,
}

/// One slot to be written.
pub struct Edit<'a> {
    /// The slot.
    pub address: &'a str,
    /// What the slot may hold now.
    pub accept: Accept<'a>,
    /// What it is to hold; none removes it.
    pub value: Option<&'a SecretValue>,
}

/// What a slot may hold before a write.
#[derive(Clone)]
pub enum Accept<'a> {
    /// Anything: an emergency does not wait for an explanation.
    Anything,
    /// One of these; none stands for absence. The new value itself is always accepted.
    OneOf(Vec<Option<&'a SecretValue>>),
}

impl Edit<'_> {
    /// Returns whether the slot may be written while it holds `present`.
    pub fn accepts(&self, present: Option<&SecretValue>) -> bool {
        match &self.accept {
            Accept::OneOf(_) if planted!("condition_ignored") => true,
            Accept::Anything => true,
            Accept::OneOf(accepted) => {
                let is = |held: Option<&SecretValue>| SecretValue::same(present, held);
                is(self.value) || accepted.iter().any(|accepted| is(*accepted))
            }
        }
    }

    /// Returns whether the slot holds something else than the edit would write, while it holds `present`.
    pub fn changes(&self, present: Option<&SecretValue>) -> bool {
        !SecretValue::same(present, self.value)
    }
}

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Whether any slot held something else before.
    pub changed: bool,
}
