//! What the twin of Google Secret Manager holds.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{PROJECT, TwinOptions};
use crate::life::{Life, rfc3339};
use crate::random;

/// The number of the project, by which answers name it.
const PROJECT_NUMBER: &str = "481516234200";

/// What may be done with a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionState {
    /// It can be read.
    Enabled,
    /// It cannot be read for now.
    Disabled,
    /// Its contents are gone.
    Destroyed,
}

pub(super) struct State {
    pub(super) options: TwinOptions,
    pub(super) token: String,
    pub(super) federated: String,
    pub(super) subject: String,
    pub(super) sign_ins: usize,
    pub(super) denied: BTreeSet<String>,
    secrets: BTreeMap<String, Secret>,
    /// How many secrets were made.
    made: u32,
}

impl State {
    pub(super) fn new(options: TwinOptions) -> Self {
        let random =
            |begins: &str| format!("{begins}{}", random(b"abcdefghijkmnpqrstuvwxyz0123456789", 40));
        let (token, federated, subject) = (random("ya29."), random("ya29.d."), random("eyJhbGci."));
        Self {
            options,
            token,
            federated,
            subject,
            sign_ins: 0,
            denied: BTreeSet::new(),
            secrets: BTreeMap::new(),
            made: 0,
        }
    }

    pub(super) fn make_secret(&mut self, name: &str) {
        self.made += 1;
        self.secrets.insert(name.into(), Secret::new(name, self.made));
    }

    /// Returns a secret that a test has made.
    pub(super) fn secret_mut(&mut self, name: &str) -> &mut Secret {
        self.secrets.get_mut(name).expect("the secret was made")
    }

    pub(super) fn find(&mut self, project: &str, name: &str) -> Option<&mut Secret> {
        let is_ours = project == PROJECT || project == PROJECT_NUMBER;
        self.secrets.get_mut(name).filter(|_| is_ours)
    }
}

pub(super) struct Secret {
    name: String,
    /// How many were made before it, this one included.
    made: u32,
    etag: u64,
    order: u64,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) aliases: BTreeMap<String, u64>,
    pub(super) versions: BTreeMap<u64, Version>,
}

pub(super) struct Version {
    pub(super) life: Life,
    pub(super) state: VersionState,
    pub(super) data: Vec<u8>,
    pub(super) checksum: u32,
    etag: u64,
}

impl Secret {
    fn new(name: &str, made: u32) -> Self {
        Self {
            name: name.into(),
            made,
            etag: 1,
            order: 0,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            aliases: BTreeMap::new(),
            versions: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self, data: Vec<u8>) -> u64 {
        let number = self.versions.len() as u64 + 1;
        let life = Life::begin(&mut self.order);
        let checksum = crc32c(&data);
        let version = Version { life, state: VersionState::Enabled, data, checksum, etag: 1 };
        self.versions.insert(number, version);
        self.touch();
        number
    }

    /// Gives it another etag.
    pub(super) fn touch(&mut self) {
        self.etag += 1;
    }

    pub(super) fn etag(&self) -> String {
        format!("\"{:x}\"", 0x1600 + self.etag)
    }

    pub(super) fn version_mut(&mut self, number: u64) -> &mut Version {
        self.versions.get_mut(&number).expect("the version was made")
    }

    pub(super) fn set_state(&mut self, number: u64, state: VersionState) {
        let version = self.version_mut(number);
        version.state = state;
        version.etag += 1;
        if state == VersionState::Destroyed {
            version.data.clear();
        }
    }

    /// Returns which version is meant by `latest`, an alias or a number.
    pub(super) fn number(&self, meant: &str) -> Option<u64> {
        let number = match meant {
            "latest" => self.versions.keys().next_back().copied(),
            _ => meant.parse().ok().or_else(|| self.aliases.get(meant).copied()),
        };
        number.filter(|number| self.versions.contains_key(number))
    }

    pub(super) fn full_name(&self) -> String {
        format!("projects/{PROJECT_NUMBER}/secrets/{}", self.name)
    }

    pub(super) fn json(&self) -> Value {
        let aliases: BTreeMap<_, _> =
            self.aliases.iter().map(|(alias, number)| (alias, number.to_string())).collect();
        let mut secret = json!({
            "name": self.full_name(),
            "replication": { "automatic": {} },
            "createTime": format!("2026-01-31T09:14:00.{:06}Z", self.made),
            "etag": self.etag(),
        });
        for (field, map) in [
            ("labels", json!(self.labels)),
            ("annotations", json!(self.annotations)),
            ("versionAliases", json!(aliases)),
        ] {
            if map.as_object().is_some_and(|map| !map.is_empty()) {
                secret[field] = map;
            }
        }
        secret
    }

    pub(super) fn version_json(&self, number: u64) -> Value {
        let version = &self.versions[&number];
        let state = match version.state {
            VersionState::Enabled => "ENABLED",
            VersionState::Disabled => "DISABLED",
            VersionState::Destroyed => "DESTROYED",
        };
        json!({
            "name": format!("{}/versions/{number}", self.full_name()),
            "createTime": rfc3339(version.life.created),
            "state": state,
            "replicationStatus": { "automatic": {} },
            "etag": version.etag(),
            "clientSpecifiedPayloadChecksum": true,
        })
    }
}

impl Version {
    pub(super) fn etag(&self) -> String {
        format!("\"{:x}\"", 0x2600 + self.etag)
    }
}

/// Returns the checksum that the service keeps with a payload: CRC-32C.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    let shifted = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    let step = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), shifted);
    !bytes.iter().fold(!0, step)
}
