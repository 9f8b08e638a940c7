//! Signatures of requests (version 4): whose a request is, and that it was made with the secret of that key.

use axum::http::HeaderMap;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::keys::Keys;
use super::{Failure, failure};

/// Who called.
pub(super) struct Caller {
    pub(super) user: String,
    pub(super) arn: String,
    pub(super) key: String,
}

/// Returns whose request it is, or why it is nobody's, in the words of the service that it was for.
pub(super) fn caller(keys: &Keys, headers: &HeaderMap, body: &[u8]) -> Result<Caller, Failure> {
    let signed = Signed::of(headers)
        .ok_or_else(|| failure(403, "MissingAuthenticationToken", "the request is not signed"))?;
    let is_json = headers.contains_key("x-amz-target");
    let unknown = if is_json { "UnrecognizedClientException" } else { "InvalidClientTokenId" };
    let key = keys.accepted(signed.key).ok_or_else(|| {
        failure(403, unknown, "The security token included in the request is invalid.")
    })?;
    if signed.expected(&key.secret, headers, body).as_deref() != Some(signed.signature) {
        let wrong = if is_json { "InvalidSignatureException" } else { "SignatureDoesNotMatch" };
        return Err(failure(403, wrong, "The request signature we calculated does not match."));
    }
    let token = headers.get("x-amz-security-token").and_then(|token| token.to_str().ok());
    if key.session.as_ref().map(|session| session.token.as_str()) != token {
        return Err(failure(
            403,
            unknown,
            "The security token included in the request is invalid.",
        ));
    }
    let of_user = || format!("arn:aws:iam::123456789012:user/{}", key.user);
    let arn = key.session.as_ref().map_or_else(of_user, |session| session.arn.clone());
    Ok(Caller { user: key.user.clone(), arn, key: key.id.clone() })
}

struct Signed<'a> {
    key: &'a str,
    day: &'a str,
    region: &'a str,
    service: &'a str,
    headers: &'a str,
    signature: &'a str,
}

impl<'a> Signed<'a> {
    fn of(headers: &'a HeaderMap) -> Option<Self> {
        let header = headers.get("authorization")?.to_str().ok()?;
        let header = header.strip_prefix("AWS4-HMAC-SHA256 ")?;
        let part = |name: &str| {
            header.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='))
        };
        let scope: Vec<&str> = part("Credential")?.split('/').collect();
        let [key, day, region, service, "aws4_request"] = scope[..] else { return None };
        Some(Self {
            key,
            day,
            region,
            service,
            headers: part("SignedHeaders")?,
            signature: part("Signature")?,
        })
    }

    fn expected(&self, secret: &str, headers: &HeaderMap, body: &[u8]) -> Option<String> {
        let mut canonical = "POST\n/\n\n".to_owned();
        for name in self.headers.split(';') {
            let value = headers.get(name)?.to_str().ok()?;
            canonical += &format!("{name}:{}\n", value.trim());
        }
        canonical += &format!("\n{}\n{}", self.headers, hex::encode(Sha256::digest(body)));
        let scope = format!("{}/{}/{}/aws4_request", self.day, self.region, self.service);
        let at = headers.get("x-amz-date")?.to_str().ok()?;
        let digest = hex::encode(Sha256::digest(canonical.as_bytes()));
        let text = format!("AWS4-HMAC-SHA256\n{at}\n{scope}\n{digest}");
        let mut key = format!("AWS4{secret}").into_bytes();
        for part in [self.day, self.region, self.service, "aws4_request"] {
            key = signed(&key, part.as_bytes());
        }
        Some(hex::encode(signed(&key, text.as_bytes())))
    }
}

fn signed(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length is taken");
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}
