//! Issuers: what mints, verifies and ends versions of a credential.

use async_trait::async_trait;
use keywheel_core::call::CallError;
use keywheel_core::facts::IssuerFacts;
use keywheel_core::plan::Label;
use keywheel_core::secret::{Credential, SecretValue};
use keywheel_core::time::Timestamp;
use keywheel_core::version::IssuedId;

use crate::Finding;

/// Fills a buffer with random bytes: the operating system's generator, or a simulation's.
pub type Randomness<'a> = &'a mut (dyn FnMut(&mut [u8]) + Send);

/// What mints and ends the versions of a secret.
#[async_trait]
pub trait Issuer: Send + Sync {
    /// Returns what this issuer can do, as it is configured.
    fn facts(&self) -> IssuerFacts;

    /// Checks permissions, quotas and caps without changing anything (H19, H90).
    async fn preflight(&self) -> Result<Vec<Finding>, CallError>;

    /// Does the same for an emergency, which an issuer may let pass what it would not let any other rotation.
    async fn preflight_emergency(&self) -> Result<Vec<Finding>, CallError> {
        self.preflight().await
    }

    /// Makes a whole credential, for issuers whose value is ours. It is sealed and journaled before [`mint`](Self::mint) is
    /// called. `previous` is the version in use: of two names that take turns, the other one is next.
    fn generate(
        &self,
        _random: Randomness<'_>,
        _previous: Option<&IssuedId>,
    ) -> Option<Credential> {
        None
    }

    /// Mints a version under a label that was never used before.
    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError>;

    /// Asks whether the issuer accepts a credential, using that credential and no other.
    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError>;

    /// Lists what the issuer holds whose label begins with `prefix`; for issuers without labels, everything.
    async fn list(&self, prefix: &str) -> Result<Vec<Live>, CallError>;

    /// Says whether a version that was found after a mint without an answer was made everywhere, and makes sure that it is kept
    /// there. What is not whole is ended, and made anew under another label.
    async fn confirm(&self, _id: &IssuedId) -> Result<bool, CallError> {
        Ok(true)
    }

    /// Reads the value of a live version again, for issuers that show it more than once.
    async fn reread(&self, _id: &IssuedId) -> Result<Option<Credential>, CallError> {
        Ok(None)
    }

    /// Ends a version for good. Already gone is success (H96). The id, and the generation where there is one, are checked
    /// just before the call; a mismatch is a refusal (H92).
    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError>;

    /// Ends every session that may have been opened with a suspect, after its revoke, whichever other version may have opened
    /// it: what a provider keeps open by itself is none of them (H66).
    async fn end_sessions(&self, _id: &IssuedId) -> Result<(), CallError> {
        Ok(())
    }

    /// Ends a version for good where a person is needed, and the issuer may have nothing but the value to tell versions apart.
    async fn revoke_held(
        &self,
        id: &IssuedId,
        _held: Option<&Credential>,
    ) -> Result<(), CallError> {
        self.revoke(id).await
    }

    /// Finds the id of a live credential that was made by hand, for `adopt`.
    async fn identify(&self, _credential: &Credential) -> Result<Identity, CallError> {
        Ok(Identity::Unknown)
    }

    /// Returns the reversible off switch, where the issuer has one.
    fn suspend(&self) -> Option<&dyn Suspend> {
        None
    }

    /// Returns the last-used data, where the issuer has them.
    fn usage(&self) -> Option<&dyn Usage> {
        None
    }

    /// Returns what the issuer has on record about its versions, where it tells.
    fn audit(&self) -> Option<&dyn Audit> {
        None
    }

    /// Returns how the issuer's side is brought into the shape that its rotations need, where that can be done.
    fn convert(&self) -> Option<&dyn Convert> {
        None
    }

    /// Says why a version must be replaced before its time, where it must: what it was made with is no longer in use. Asked of
    /// what ends by itself, and of nothing else: at each visit, and before readers are given it.
    async fn outdated(&self, _id: &IssuedId) -> Result<Option<String>, CallError> {
        Ok(None)
    }

    /// Returns when a live credential is refused by everybody without anybody's doing, where nobody can end it before: all that
    /// there is to say of one that was replaced.
    async fn ends_at(&self, _credential: &Credential) -> Result<Option<Timestamp>, CallError> {
        Ok(None)
    }

    /// Returns how to extend a short-lived credential, where the issuer can.
    fn extend(&self) -> Option<&dyn Extend> {
        None
    }

    /// Keeps alive what its leases hang on, such as the token that asked for them. Asked on each visit, whether any lease needs
    /// something or not.
    async fn keep_alive(&self) -> Result<(), CallError> {
        Ok(())
    }

    /// Returns the maker of harmless tokens, where the credential is a signing secret.
    fn tokens(&self) -> Option<&dyn Tokens> {
        None
    }
}

/// One mint.
pub struct Mint<'a> {
    /// The label of this attempt.
    pub label: &'a Label,
    /// The value, where it is ours.
    pub value: Option<&'a Credential>,
    /// The version in use, for issuers that copy its settings (H91).
    pub previous: Option<&'a IssuedId>,
    /// The credential in use, for issuers that are told the new one and must know the two apart.
    pub in_use: Option<&'a Credential>,
    /// What an emergency ends beside the version in use.
    pub suspects: &'a [Suspect],
}

/// A version that an emergency ends.
#[derive(Default)]
pub struct Suspect {
    /// Its id, where it is known: of two names that take turns, the next one may still be its own.
    pub issued: Option<IssuedId>,
    /// Its value as far as it is known, for an issuer that is a person and tells versions apart by nothing else.
    pub value: Option<Credential>,
}

impl<'a> Mint<'a> {
    /// A first mint, of a value that the issuer makes.
    pub const fn new(label: &'a Label) -> Self {
        Self { label, value: None, previous: None, in_use: None, suspects: &[] }
    }
}

/// What a mint made.
#[derive(Default)]
pub struct Minted {
    /// The issuer's id; none where the issuer keeps nothing (a random value).
    pub issued: Option<IssuedId>,
    /// The credential, where the issuer made it.
    pub credential: Option<Credential>,
    /// When the issuer ends it by itself.
    pub expires_at: Option<Timestamp>,
    /// What the version in use has and this one has not, for people (H91): `the spend limit could not be copied`.
    pub notes: Vec<String>,
}

/// One live version at the issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// Its id.
    pub issued: IssuedId,
    /// Its label, where the issuer keeps one.
    pub label: Option<Label>,
}

/// What the issuer says of a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is accepted (it may lack a permission, and is alive).
    Accepted,
    /// It is definitely refused: wrong, suspended or revoked.
    Refused,
    /// The answer proves neither (429, 5xx, a scope, a network, no one to ask); the words say why.
    CannotTell(String),
}

/// What `adopt` finds out about a live credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Its id, how that is known, and when it was made if the issuer says so.
    Known {
        /// The id.
        issued: IssuedId,
        /// How it is known, for people: `the list shows the same redacted value`.
        how: String,
        /// When the issuer made it.
        created_at: Option<Timestamp>,
    },
    /// One of these.
    Candidates(Vec<IssuedId>),
    /// Nothing tells; retirement parks until an operator names the id.
    Unknown,
}

/// The reversible off switch of an issuer.
#[async_trait]
pub trait Suspend: Send + Sync {
    /// Makes a version refused until it is resumed. Already suspended is success.
    async fn suspend(&self, id: &IssuedId) -> Result<(), CallError>;

    /// Makes a suspended version accepted again. Already active is success.
    async fn resume(&self, id: &IssuedId) -> Result<(), CallError>;
}

/// The last-used data of an issuer.
#[async_trait]
pub trait Usage: Send + Sync {
    /// Returns when a version was last used.
    async fn last_used(&self, id: &IssuedId) -> Result<LastUsed, CallError>;
}

/// When a version was last used, as far as the issuer tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastUsed {
    /// The time, or none where no use is known.
    pub at: Option<Timestamp>,
    /// More about the use, for people: `212 requests since 02:00`.
    pub detail: Option<String>,
}

/// What an issuer has on record about its versions.
#[async_trait]
pub trait Audit: Send + Sync {
    /// Returns what happened to a version, and what was done with it, since a time: the earliest first. What the issuer cannot
    /// tell is an entry too, without a time.
    async fn since(&self, id: &IssuedId, since: Timestamp) -> Result<Vec<Entry>, CallError>;
}

/// One entry of an issuer's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it happened, where that is known.
    pub at: Option<Timestamp>,
    /// What happened, for people, without a value: `212 requests to model x`.
    pub what: String,
}

impl Entry {
    /// Makes an entry of which the time is not known, or of what cannot be told.
    pub fn untimed(what: impl Into<String>) -> Self {
        Self { at: None, what: what.into() }
    }
}

/// The way of an issuer's side into the shape that rotations need.
#[async_trait]
pub trait Convert: Send + Sync {
    /// Returns what has to be changed, in order; nothing where the shape is right. Changes nothing.
    async fn changes(&self) -> Result<Vec<Change>, CallError>;

    /// Makes these changes. What failed half-way is finished by asking for the changes again.
    async fn run(&self, changes: &[Change]) -> Result<(), CallError>;
}

/// One change of an issuer's side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where: the name of a database.
    pub place: String,
    /// The whole statement, which people can run themselves.
    pub what: String,
    /// The statement that undoes it; none where there is no way back.
    pub undo: Option<String>,
}

/// The extension of a lease.
#[async_trait]
pub trait Extend: Send + Sync {
    /// Extends a version and returns when it ends now.
    async fn extend(&self, id: &IssuedId) -> Result<Timestamp, CallError>;
}

/// A signing secret's maker of tokens that open nothing.
pub trait Tokens: Send + Sync {
    /// Signs a token that a workload answers to and that grants nothing.
    fn harmless(&self, credential: &Credential, now: Timestamp) -> Option<SecretValue>;
}
