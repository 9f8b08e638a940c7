//! Marks of writes, for services in which a write that is repeated makes one version more.

use hmac::{Hmac, KeyInit as _, Mac as _};
use keywheel_core::secret::SecretValue;
use sha2::Sha256;

/// Names the write that replaces the version `base`, which holds `held`: the same replacement has the same name, and who has not both
/// contents learns nothing of either from it.
pub(super) fn of(base: &str, held: Option<&SecretValue>, new: &SecretValue) -> [u8; 32] {
    let held = held.map_or(&b""[..], SecretValue::expose);
    let length = u64::try_from(held.len()).unwrap_or(u64::MAX).to_be_bytes();
    let key = SecretValue::new([&length[..], held, new.expose()].concat());
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key.expose()).expect("a key of any length is taken");
    mac.update(base.as_bytes());
    mac.finalize().into_bytes().into()
}
