//! Claims: which installation of keywheel owns a container, kept with the container itself.
//!
//! Two journals know nothing of each other, so only what both can see keeps them apart (H61). A claim holds no value, and is
//! never taken by a question: `adopt` and the beginning of a rotation take it, and each write compares it.

use std::fmt;

use async_trait::async_trait;
use keywheel_core::call::{CallError, Refusal, RefusalKind};
use keywheel_core::planted;
use serde::{Deserialize, Serialize};

/// Who owns a container, for people and for the comparison.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The installation: the id of its journal.
    pub installation: String,
    /// The folder of its configuration.
    pub folder: String,
    /// The environment.
    pub environment: String,
    /// The machine on which the claim was made.
    pub host: String,
    /// The account that made it.
    pub account: String,
    /// When it was made, in RFC 3339.
    pub since: String,
}

impl Claim {
    /// Whether it came here with the copy of a folder: the one that it was made for is still there.
    fn is_copied(&self, ours: &Self) -> bool {
        let is_there = |folder: &str| std::path::Path::new(folder).is_dir();
        self.host == ours.host && self.folder != ours.folder && is_there(&self.folder)
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { installation, folder, environment, host, account, since } = self;
        write!(
            f,
            "`{folder}`, environment `{environment}`, journal {installation}, claimed by {account} on {host} at {since}"
        )
    }
}

/// Whose a container is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody claimed it.
    Nobody,
    /// This installation.
    Us,
    /// Another installation.
    Other(Box<Claim>),
    /// There is a claim that cannot be read; the words say why.
    Unreadable(String),
}

impl Owner {
    /// Compares a claim that was found with ours.
    pub fn of(found: Option<Claim>, ours: &Claim) -> Self {
        match found {
            None => Self::Nobody,
            Some(found) if found.installation == ours.installation && !found.is_copied(ours) => {
                Self::Us
            }
            Some(_) if planted!("foreign_claim_ignored") => Self::Us,
            Some(found) => Self::Other(Box::new(found)),
        }
    }

    /// Says why `container` may not be written; none where it may.
    pub fn objection(&self, container: &str) -> Option<String> {
        match self {
            Self::Nobody | Self::Us => None,
            Self::Other(claim) => {
                Some(format!("{container} belongs to another installation of keywheel: {claim}"))
            }
            Self::Unreadable(why) => {
                Some(format!("{container} has a claim that cannot be read: {why}"))
            }
        }
    }

    /// Refuses a write to a container that is not ours.
    ///
    /// # Errors
    /// A refusal that names the owner.
    pub fn check(&self, container: &str) -> Result<(), Refusal> {
        let refused = |objection| Refusal::operator(RefusalKind::Permission, objection);
        self.objection(container).map_or(Ok(()), |objection| Err(refused(objection)))
    }
}

/// A container that carries a claim.
#[async_trait]
pub trait Claims: Send + Sync {
    /// Returns where the claim is kept, for people.
    fn place(&self) -> String;

    /// Returns whose the container is, without changing anything.
    async fn owner(&self) -> Result<Owner, CallError>;

    /// Makes the container ours, and returns whether it was nobody's before. One that is another's is refused.
    async fn take(&self) -> Result<bool, CallError>;

    /// Makes the container ours, whoever owns it.
    async fn take_over(&self) -> Result<(), CallError>;

    /// Makes the container nobody's, if it is ours.
    async fn release(&self) -> Result<(), CallError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(folder: &str) -> Claim {
        let text = |text: &str| text.to_owned();
        Claim {
            installation: text("one"),
            folder: text(folder),
            environment: text("default"),
            host: text("here"),
            account: text("dana"),
            since: text("2026-01-31T00:00:00Z"),
        }
    }

    #[test]
    fn h61_a_claim_that_was_copied_with_its_folder_is_not_ours() {
        let ours = claim("/srv/shop");
        assert_eq!(Owner::of(Some(claim("/srv/shop")), &ours), Owner::Us);
        let copied = claim(env!("CARGO_MANIFEST_DIR"));
        assert_eq!(Owner::of(Some(copied.clone()), &ours), Owner::Other(Box::new(copied)));
        let moved = claim("/a/folder/that/is/gone");
        assert_eq!(Owner::of(Some(moved), &ours), Owner::Us, "a folder may be moved");
    }
}
