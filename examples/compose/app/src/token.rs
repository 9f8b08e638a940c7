//! Sessions: compact JWTs (RFC 7519) that are signed with HS256.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use keywheel_core::secret::SecretValue;
use serde_json::{Value, json};
use sha2::Sha256;

/// Signs claims.
pub fn sign(claims: &Value, secret: &SecretValue) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({ "alg": "HS256", "typ": "JWT" })), part(claims));
    let signature = mac(&signed, secret).finalize().into_bytes();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// Returns the claims of a token that is signed with a secret, valid already and not expired.
pub fn verify(token: &str, secret: &SecretValue, now: u64) -> Option<Value> {
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    mac(signed, secret).verify_slice(&URL_SAFE_NO_PAD.decode(signature).ok()?).ok()?;
    let part = |text| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(text).ok()?).ok();
    let (header, claims) = (part(header)?, part(claims)?);
    let begins = claims.get("nbf").map_or(Some(0), Value::as_u64)?;
    let is_valid = header["alg"] == "HS256" && begins <= now && now < claims["exp"].as_u64()?;
    is_valid.then_some(claims)
}

/// Returns the seconds since 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn mac(text: &str, secret: &SecretValue) -> Hmac<Sha256> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.expose()).expect("HMAC takes a key of any length");
    mac.update(text.as_bytes());
    mac
}
