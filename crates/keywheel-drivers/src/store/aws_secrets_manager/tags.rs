//! What the tags of a secret say: whose it is, and what else manages it.
//!
//! A tag holds 256 letters, digits and a few signs, so a claim has a tag for each of its parts, in which every other character is
//! written as `=` and two hex digits for each byte.

use aws_sdk_secretsmanager::types::Tag;
use keywheel_core::planted;
use keywheel_driver::{Claim, Owner};

/// What our tags begin with.
pub(super) const PREFIX: &str = "keywheel:";

/// The longest value of a tag.
const LONGEST: usize = 256;

const PARTS: [&str; 6] = ["installation", "folder", "environment", "host", "account", "since"];

/// Returns whose a secret with these tags is.
pub(super) fn owner(tags: &[Tag], ours: &Claim) -> Owner {
    match found(tags) {
        Ok(found) => Owner::of(found, ours),
        Err(why) => Owner::Unreadable(why),
    }
}

fn found(tags: &[Tag]) -> Result<Option<Claim>, String> {
    let value = |part: &str| {
        let tag = tags.iter().find(|tag| tag.key().is_some_and(|key| key == key_of(part)));
        tag.and_then(Tag::value)
    };
    if PARTS.iter().all(|part| value(part).is_none()) {
        return Ok(None);
    }
    let read = |part: &str| {
        let why = || format!("the tag `{}` is missing or was changed", key_of(part));
        value(part).and_then(decoded).ok_or_else(why)
    };
    Ok(Some(Claim {
        installation: read("installation")?,
        folder: read("folder")?,
        environment: read("environment")?,
        host: read("host")?,
        account: read("account")?,
        since: read("since")?,
    }))
}

/// Returns the tags of a claim; an error says what does not fit into one.
pub(super) fn of(claim: &Claim) -> Result<Vec<Tag>, String> {
    let Claim { installation, folder, environment, host, account, since } = claim;
    let values = [installation, folder, environment, host, account, since];
    let tag = |(part, value): (&str, &String)| {
        let value = encoded(value);
        if value.len() > LONGEST {
            return Err(format!("the {part} of this installation is too long for a tag"));
        }
        Ok(Tag::builder().key(key_of(part)).value(value).build())
    };
    PARTS.into_iter().zip(values).map(tag).collect()
}

/// Returns the keys of a claim's tags.
pub(super) fn keys() -> Vec<String> {
    PARTS.into_iter().map(key_of).collect()
}

/// Returns what tags say of programs that manage the secret, for people.
pub(super) fn managers(tags: &[Tag]) -> Vec<String> {
    let mut managers = Vec::new();
    if planted!("manager_unseen") {
        return managers;
    }
    for (key, value) in tags.iter().filter_map(|tag| tag.key().zip(tag.value())) {
        if key == "aws:cloudformation:stack-name" {
            managers.push("CloudFormation".to_owned());
        }
        let key = key.to_ascii_lowercase();
        let is_mark =
            ["managedby", "managed-by", "managed_by", "terraform"].contains(&key.as_str());
        let known = ["terraform", "pulumi", "cloudformation", "argocd", "flux"];
        if is_mark {
            let value = value.to_ascii_lowercase();
            let manager = known.into_iter().find(|known| value.contains(known));
            managers.push(manager.unwrap_or("another program").to_owned());
        }
    }
    managers
}

fn key_of(part: &str) -> String {
    format!("{PREFIX}{part}")
}

fn encoded(value: &str) -> String {
    let mut text = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b" +-._:/@".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text += &format!("={byte:02x}");
        }
    }
    text
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut parts = text.split('=');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_survives_its_tags_whatever_stands_in_it() {
        let text = |text: &str| text.to_owned();
        let claim = Claim {
            installation: text("one"),
            folder: text("/srv/ünï=code {shop}"),
            environment: text("production"),
            host: text("here"),
            account: text("dana (sudo from sam)"),
            since: text("2026-01-31T00:00:00Z"),
        };
        let tags = of(&claim).unwrap();
        assert_eq!(found(&tags), Ok(Some(claim.clone())));
        assert_eq!(owner(&tags, &claim), Owner::Us);
        assert_eq!(owner(&[], &claim), Owner::Nobody);
        assert!(matches!(owner(&tags[1..], &claim), Owner::Unreadable(_)));
        let long = Claim { folder: "x".repeat(257), ..claim };
        assert!(of(&long).is_err_and(|why| why.contains("folder")));
    }
}
