//! Keyed fingerprints: how values are compared without being stored (H118), and digests of whole arrangements.

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

/// The id of the key that fingerprints were made with. Fingerprints of another key compare as unknown, never as different.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FingerprintKeyId(pub u32);

/// A keyed, truncated fingerprint of the exact bytes of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Fingerprint {
    /// The key it was made with.
    pub key: FingerprintKeyId,
    mac: [u8; 16],
}

/// What a comparison of two fingerprints proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// The same bytes.
    Same,
    /// Other bytes.
    Different,
    /// Made with different keys: nothing is proven.
    Unknown,
}

impl Fingerprint {
    /// Compares two fingerprints; another key proves nothing.
    pub fn compare(&self, other: &Self) -> Compared {
        let same_key = self.key == other.key || crate::planted!("other_key_means_different");
        match (same_key, self.mac == other.mac) {
            (false, _) => Compared::Unknown,
            (true, true) => Compared::Same,
            (true, false) => Compared::Different,
        }
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        format!("{}:{}", fingerprint.key.0, hex::encode(fingerprint.mac))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parse = || {
            let (key, mac) = text.split_once(':')?;
            let mut bytes = [0; 16];
            hex::decode_to_slice(mac, &mut bytes).ok()?;
            Some(Self { key: FingerprintKeyId(key.parse().ok()?), mac: bytes })
        };
        parse().ok_or_else(|| "a fingerprint is `<key>:<32 hex digits>`".into())
    }
}

/// Makes fingerprints under one installation's key (HMAC-SHA-256, truncated to 128 bits).
pub struct Fingerprinter {
    id: FingerprintKeyId,
    key: Zeroizing<[u8; 32]>,
}

impl Fingerprinter {
    /// Takes the installation's key.
    pub fn new(id: FingerprintKeyId, key: Zeroizing<[u8; 32]>) -> Self {
        Self { id, key }
    }

    /// Fingerprints the exact bytes of a slot.
    pub fn of(&self, bytes: &[u8]) -> Fingerprint {
        self.mac("value", [bytes])
    }

    /// Digests an arrangement: ordered pairs of slot name and fingerprint, absence included.
    pub fn digest<'a>(
        &self,
        slots: impl IntoIterator<Item = (&'a str, Option<&'a Fingerprint>)>,
    ) -> Fingerprint {
        let mut mac = self.start("arrangement");
        for (slot, fingerprint) in slots {
            feed(&mut mac, slot.as_bytes());
            match fingerprint {
                Some(fingerprint) => feed(&mut mac, &fingerprint.mac),
                None => feed(&mut mac, b"absent"),
            }
        }
        self.finish(mac)
    }

    fn mac<const N: usize>(&self, domain: &str, parts: [&[u8]; N]) -> Fingerprint {
        let mut mac = self.start(domain);
        parts.iter().for_each(|part| feed(&mut mac, part));
        self.finish(mac)
    }

    fn start(&self, domain: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.as_ref())
            .expect("HMAC takes a key of any length");
        feed(&mut mac, domain.as_bytes());
        mac
    }

    fn finish(&self, mac: Hmac<Sha256>) -> Fingerprint {
        let full = mac.finalize().into_bytes();
        let mut short = [0; 16];
        short.copy_from_slice(&full[..16]);
        Fingerprint { key: self.id, mac: short }
    }
}

/// Feeds one part with its length, so that no two lists of parts read alike.
fn feed(mac: &mut Hmac<Sha256>, part: &[u8]) {
    mac.update(&(part.len() as u64).to_be_bytes());
    mac.update(part);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprinter(id: u32) -> Fingerprinter {
        Fingerprinter::new(FingerprintKeyId(id), Zeroizing::new([id as u8; 32]))
    }

    #[test]
    fn h118_another_key_proves_nothing() {
        let (one, two) = (fingerprinter(1), fingerprinter(2));
        assert_eq!(one.of(b"a").compare(&one.of(b"a")), Compared::Same);
        assert_eq!(one.of(b"a").compare(&one.of(b"b")), Compared::Different);
        assert_eq!(one.of(b"a").compare(&two.of(b"a")), Compared::Unknown);
    }

    #[test]
    fn a_digest_tells_slots_apart() {
        let f = fingerprinter(1);
        let (a, b) = (f.of(b"a"), f.of(b"b"));
        let digest = |x, y| f.digest([("CURRENT", x), ("ALSO", y)]);
        assert_ne!(digest(Some(&a), Some(&b)), digest(Some(&b), Some(&a)));
        assert_ne!(digest(Some(&a), None), digest(Some(&a), Some(&b)));
    }

    #[test]
    fn a_fingerprint_survives_its_text_form() {
        let f = fingerprinter(7).of(b"x");
        let text = String::from(f);
        assert_eq!(Fingerprint::try_from(text), Ok(f));
    }
}
