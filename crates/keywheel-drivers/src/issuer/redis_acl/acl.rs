//! What a node keeps of the user and of its versions, as `ACL LIST` tells it, and the commands that change it.

use keywheel_core::secret::SecretValue;
use keywheel_core::time::Timestamp;
use sha2::{Digest, Sha256};

use super::before::BEFORE;

/// What the pattern begins with that says when a version was made; a user who is off reaches nothing by it.
pub(super) const MADE: &str = "~keywheel:";

/// What is kept of the user, and in its name.
#[derive(Default)]
pub(super) struct Acl {
    pub(super) account: Option<Account>,
    pub(super) markers: Vec<Marker>,
    /// Whether the password that was there before keywheel came is known to be gone.
    pub(super) before_is_gone: bool,
    /// Whether `default` is let in without a password.
    pub(super) open: bool,
}

/// The user as `ACL LIST` shows it.
#[derive(Default)]
pub(super) struct Account {
    pub(super) on: bool,
    pub(super) any_password: bool,
    pub(super) hashes: Vec<String>,
    pub(super) rules: String,
}

/// A version as it is kept.
#[derive(Clone)]
pub(super) struct Marker {
    pub(super) id: String,
    pub(super) hash: String,
    pub(super) made_at: Timestamp,
    /// The run of the server in which it was made, and the number of the client that did.
    pub(super) run: String,
    pub(super) client: i64,
}

impl Account {
    pub(super) fn has(&self, hash: &str) -> bool {
        self.hashes.iter().any(|known| known == hash)
    }
}

impl Marker {
    pub(super) fn order(&self) -> (Timestamp, i64) {
        (self.made_at, self.client)
    }

    pub(super) fn read(id: &str, words: &[&str]) -> Option<Self> {
        let hash = words.iter().find_map(|word| word.strip_prefix('#'))?;
        let made = words.iter().find_map(|word| word.strip_prefix(MADE)).unwrap_or_default();
        let mut parts = made.split(':');
        let mut part = || parts.next().unwrap_or_default();
        let made_at = Timestamp::from_millis(part().parse().unwrap_or(0));
        let (run, client) = (part().to_owned(), part().parse().unwrap_or(0));
        Some(Self { id: id.into(), hash: hash.into(), made_at, run, client })
    }
}

impl Acl {
    /// Reads what `ACL LIST` says of one user: each line is `user <name> <word>…`.
    pub(super) fn read(lines: &[String], user: &str) -> Self {
        let mut acl = Self::default();
        for line in lines {
            let mut words = line.split_whitespace().skip(1);
            let Some(name) = words.next() else { continue };
            let words: Vec<&str> = words.collect();
            let has = |word| words.contains(&word);
            if name == "default" {
                acl.open = has("on") && has("nopass");
            }
            if name == user {
                let is_rule = |word: &&&str| !word.starts_with('#');
                let rules: Vec<&str> = words.iter().filter(is_rule).copied().collect();
                let mut hashes: Vec<String> = words
                    .iter()
                    .filter_map(|word| word.strip_prefix('#').map(str::to_owned))
                    .collect();
                hashes.sort_unstable();
                acl.account = Some(Account {
                    on: has("on"),
                    any_password: has("nopass"),
                    hashes,
                    rules: rules.join(" "),
                });
            }
            let of_user = name.rsplit_once('@').is_some_and(|(_, of)| of == user);
            if of_user && has("off") && words.iter().any(|word| word.starts_with(MADE)) {
                let marker = Marker::read(name, &words);
                acl.before_is_gone |= marker.is_none() && name.starts_with(BEFORE);
                acl.markers.extend(marker);
            }
        }
        acl
    }

    pub(super) fn marker(&self, id: &str) -> Option<&Marker> {
        self.markers.iter().find(|marker| marker.id == id)
    }

    /// The passwords that carry no name of ours.
    pub(super) fn by_hand(&self) -> Vec<&str> {
        let hashes = self.account.iter().flat_map(|account| &account.hashes);
        let is_ours = |hash: &&String| self.markers.iter().any(|marker| marker.hash == **hash);
        hashes.filter(|hash| !is_ours(hash)).map(String::as_str).collect()
    }
}

pub(super) fn acl_setuser(name: &str) -> redis::Cmd {
    redis::cmd("ACL").arg("SETUSER").arg(name).clone()
}

pub(super) fn acl_deluser(name: &str) -> redis::Cmd {
    redis::cmd("ACL").arg("DELUSER").arg(name).clone()
}

pub(super) fn hash(password: &SecretValue) -> String {
    hex::encode(Sha256::digest(password.expose()))
}
