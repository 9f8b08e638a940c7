//! Sealing: how values lie in a journal, and how they stop being readable.
//!
//! Each value has a data key of its own, 256 bits from the operating system. The value is encrypted under it with
//! XChaCha20-Poly1305, bound to the installation, secret, version and part, so that no ciphertext can stand in for another.
//! The data key is encrypted the same way under the key-encryption key (KEK), bound to the value's id and the generation of
//! the KEK. Destroying the wrapped data key is the deletion of the value (H130).
//!
//! Plaintext is kept in buffers that are overwritten when they are dropped and that never grow; that reduces exposure and
//! does not prove erasure (H113).

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};
use keywheel_core::secret::{Credential, Field, SecretValue};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::{JournalError, ValueKey};

const KEK_HEADER: &str = "keywheel-kek-1";
const TAG: usize = 16;

/// A key-encryption key: 32 random bytes and the id that follows from them.
pub struct Kek {
    id: String,
    key: Zeroizing<[u8; 32]>,
}

impl Kek {
    /// Makes a new key.
    ///
    /// # Errors
    /// [`JournalError::Sealing`] where the operating system gives no randomness.
    pub fn generate() -> Result<Self, JournalError> {
        let mut key = Zeroizing::new([0; 32]);
        random(key.as_mut())?;
        Ok(Self { id: kek_id(&key), key })
    }

    /// Reads a key from the contents of its file: the line `keywheel-kek-1 <id>`, and 64 hex digits.
    ///
    /// # Errors
    /// [`JournalError::Sealing`] where it is anything else, or the digits are not of the key with that id.
    pub fn from_text(text: &[u8]) -> Result<Self, JournalError> {
        let text = std::str::from_utf8(text).map_err(|_| bad_kek("it is not text"))?;
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let header = lines.next().and_then(|line| line.split_once(' '));
        let Some((KEK_HEADER, id)) = header else {
            return Err(bad_kek("its first line is not `keywheel-kek-1 <id>`"));
        };
        let (Some(digits), None) = (lines.next(), lines.next()) else {
            return Err(bad_kek("it is not two lines"));
        };
        let mut key = Zeroizing::new([0; 32]);
        hex::decode_to_slice(digits, key.as_mut())
            .map_err(|_| bad_kek("its second line is not 64 hex digits"))?;
        if kek_id(&key) == id {
            Ok(Self { id: id.into(), key })
        } else {
            Err(bad_kek("its digits do not fit its id"))
        }
    }

    /// Writes the key as [`Kek::from_text`] reads it.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut digits = Zeroizing::new([0; 64]);
        hex::encode_to_slice(self.key.as_ref(), digits.as_mut()).expect("64 digits hold 32 bytes");
        let digits = std::str::from_utf8(digits.as_ref()).expect("hex digits are ASCII");
        let mut text = Zeroizing::new(String::with_capacity(
            KEK_HEADER.len() + self.id.len() + digits.len() + 3,
        ));
        for part in [KEK_HEADER, " ", &self.id, "\n", digits, "\n"] {
            text.push_str(part);
        }
        text
    }

    /// Returns the id: half of a hash of the key, which is too random to be guessed back.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// A sealed value as it is stored.
pub(crate) struct Envelope {
    /// The id of the value: random, never used twice.
    pub(crate) value: [u8; 16],
    /// The nonce of the value.
    pub(crate) nonce: [u8; 24],
    /// The encrypted value and its tag.
    pub(crate) ciphertext: Vec<u8>,
    /// The data key, wrapped.
    pub(crate) wrapped: Wrapped,
}

/// A data key under the KEK.
pub(crate) struct Wrapped {
    /// The generation of the KEK.
    pub(crate) generation: u32,
    /// The nonce of the wrap.
    pub(crate) nonce: [u8; 24],
    /// The encrypted data key and its tag.
    pub(crate) key: Vec<u8>,
}

impl Envelope {
    /// Returns the digest of the ciphertext, which the audit chain holds.
    pub(crate) fn digest(&self) -> [u8; 32] {
        ciphertext_digest(&self.nonce, &self.ciphertext)
    }
}

/// Returns the digest of a ciphertext as the audit chain holds it.
pub(crate) fn ciphertext_digest(nonce: &[u8], ciphertext: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(nonce).chain_update(ciphertext).finalize().into()
}

/// Seals and opens the values of one installation.
pub(crate) struct Sealer {
    installation: String,
    kek: Kek,
    generation: u32,
}

impl Sealer {
    /// Takes the installation's id, and its KEK of the present generation.
    pub(crate) fn new(installation: String, kek: Kek, generation: u32) -> Self {
        Self { installation, kek, generation }
    }

    /// Seals a credential.
    pub(crate) fn seal(
        &self,
        key: &ValueKey,
        credential: &Credential,
    ) -> Result<Envelope, JournalError> {
        self.seal_bytes(&Name::of(key), encode(credential))
    }

    /// Opens a sealed credential.
    pub(crate) fn open(
        &self,
        key: &ValueKey,
        envelope: Envelope,
    ) -> Result<Credential, JournalError> {
        let plain = self.open_bytes(&Name::of(key), envelope)?;
        decode(&plain).ok_or_else(|| unreadable(&Name::of(key)))
    }

    /// Seals bytes under a name.
    pub(crate) fn seal_bytes(
        &self,
        name: &Name,
        mut plain: Zeroizing<Vec<u8>>,
    ) -> Result<Envelope, JournalError> {
        let mut value = [0; 16];
        random(&mut value)?;
        let mut data_key = Zeroizing::new([0; 32]);
        random(data_key.as_mut())?;
        let (nonce, ciphertext) =
            encrypt(&data_key, &name.bound_to(&self.installation), &mut plain)?;
        let mut to_wrap = Zeroizing::new(data_key.to_vec());
        let (wrap_nonce, key) =
            encrypt(&self.kek.key, &wrap_binding(&value, self.generation), &mut to_wrap)?;
        let wrapped = Wrapped { generation: self.generation, nonce: wrap_nonce, key };
        Ok(Envelope { value, nonce, ciphertext, wrapped })
    }

    /// Opens bytes that were sealed under a name.
    pub(crate) fn open_bytes(
        &self,
        name: &Name,
        envelope: Envelope,
    ) -> Result<Zeroizing<Vec<u8>>, JournalError> {
        let Wrapped { generation, nonce, key } = envelope.wrapped;
        let opened =
            decrypt(&self.kek.key, &wrap_binding(&envelope.value, generation), &nonce, key)
                .ok_or_else(|| unreadable(name))?;
        let mut data_key = Zeroizing::new([0; 32]);
        if opened.len() != data_key.len() {
            return Err(unreadable(name));
        }
        data_key.copy_from_slice(&opened);
        decrypt(&data_key, &name.bound_to(&self.installation), &envelope.nonce, envelope.ciphertext)
            .ok_or_else(|| unreadable(name))
    }
}

/// The name that a ciphertext is bound to.
pub(crate) struct Name {
    /// The secret; empty for what belongs to the journal itself.
    pub(crate) secret: String,
    /// The version.
    pub(crate) version: u32,
    /// The part.
    pub(crate) part: String,
}

impl Name {
    /// Names a value of a secret.
    pub(crate) fn of(key: &ValueKey) -> Self {
        Self { secret: key.secret.to_string(), version: key.version.0, part: key.part.clone() }
    }

    fn bound_to(&self, installation: &str) -> Vec<u8> {
        let version = self.version.to_be_bytes();
        binding([
            b"keywheel-value-1",
            installation.as_bytes(),
            self.secret.as_bytes(),
            &version,
            self.part.as_bytes(),
        ])
    }
}

fn wrap_binding(value: &[u8; 16], generation: u32) -> Vec<u8> {
    binding([b"keywheel-wrap-1".as_slice(), value, &generation.to_be_bytes()])
}

/// Joins parts, each with its length in front, so that no two lists of parts read alike.
fn binding<const N: usize>(parts: [&[u8]; N]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend((part.len() as u32).to_be_bytes());
        bytes.extend(part);
    }
    bytes
}

fn encrypt(
    key: &[u8; 32],
    binding: &[u8],
    plain: &mut Zeroizing<Vec<u8>>,
) -> Result<([u8; 24], Vec<u8>), JournalError> {
    let mut nonce = [0; 24];
    random(&mut nonce)?;
    let cipher = XChaCha20Poly1305::new(key.into());
    let tag = cipher
        .encrypt_inout_detached(&XNonce::from(nonce), binding, plain.as_mut_slice().into())
        .map_err(|_| JournalError::Sealing("the value is too long to be sealed".into()))?;
    // Only ciphertext is copied; the buffer that held the plaintext is overwritten on drop.
    let mut ciphertext = Vec::with_capacity(plain.len() + TAG);
    ciphertext.extend_from_slice(plain);
    ciphertext.extend_from_slice(&tag);
    Ok((nonce, ciphertext))
}

fn decrypt(
    key: &[u8; 32],
    binding: &[u8],
    nonce: &[u8; 24],
    ciphertext: Vec<u8>,
) -> Option<Zeroizing<Vec<u8>>> {
    let mut buffer = Zeroizing::new(ciphertext);
    let length = buffer.len().checked_sub(TAG)?;
    let tag = Tag::try_from(&buffer[length..]).ok()?;
    let cipher = XChaCha20Poly1305::new(key.into());
    let opened = cipher.decrypt_inout_detached(
        &XNonce::from(*nonce),
        binding,
        (&mut buffer[..length]).into(),
        &tag,
    );
    opened.ok()?;
    buffer.truncate(length);
    Some(buffer)
}

/// Encodes a credential: the number of fields, then each field's name and value, all with their lengths in front.
fn encode(credential: &Credential) -> Zeroizing<Vec<u8>> {
    let length = 4 + credential
        .fields()
        .map(|(f, v)| 8 + f.as_str().len() + v.expose().len())
        .sum::<usize>();
    let mut bytes = Zeroizing::new(Vec::with_capacity(length));
    bytes.extend_from_slice(&(credential.fields().count() as u32).to_be_bytes());
    for (field, value) in credential.fields() {
        for part in [field.as_str().as_bytes(), value.expose()] {
            bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
            bytes.extend_from_slice(part);
        }
    }
    debug_assert_eq!(bytes.len(), length, "the buffer never grew, so no copy was left behind");
    bytes
}

fn decode(mut bytes: &[u8]) -> Option<Credential> {
    let count = take_number(&mut bytes)?;
    let mut credential = Credential::default();
    for _ in 0..count {
        let field = String::from_utf8(take_part(&mut bytes)?.to_vec()).ok()?;
        let value = take_part(&mut bytes)?.to_vec();
        credential = credential.with(Field::new(field), SecretValue::new(value));
    }
    bytes.is_empty().then_some(credential)
}

fn take_number(bytes: &mut &[u8]) -> Option<u32> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(u32::from_be_bytes(*number))
}

fn take_part<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_number(bytes)?).ok()?;
    let (part, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(part)
}

/// Fills bytes from the operating system's generator, the only one there is.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), JournalError> {
    getrandom::fill(bytes).map_err(|error| JournalError::Sealing(format!("no randomness: {error}")))
}

fn kek_id(key: &[u8; 32]) -> String {
    let hash = Sha256::new().chain_update(b"keywheel-kek-id-1").chain_update(key).finalize();
    hex::encode(&hash[..16])
}

fn bad_kek(detail: &str) -> JournalError {
    JournalError::Sealing(format!("the key-encryption key cannot be read: {detail}"))
}

fn unreadable(name: &Name) -> JournalError {
    let what = if name.secret.is_empty() {
        format!("the journal's {}", name.part)
    } else {
        format!("sealed value `{}` of `{}` v{}", name.part, name.secret, name.version)
    };
    JournalError::Sealing(format!(
        "{what} cannot be opened: wrong key-encryption key, or a damaged record"
    ))
}

#[cfg(test)]
mod tests {
    use keywheel_core::version::VersionId;

    use super::*;

    fn sealer() -> Sealer {
        Sealer::new("here".into(), Kek::generate().unwrap(), 1)
    }

    fn key(secret: &str, version: u32, part: &str) -> ValueKey {
        ValueKey { secret: secret.parse().unwrap(), version: VersionId(version), part: part.into() }
    }

    fn login() -> Credential {
        Credential::default()
            .with(Field::new("username"), SecretValue::new(b"app".to_vec()))
            .with(Field::new("password"), SecretValue::new(vec![0, 255, b'\n']))
    }

    #[test]
    fn a_credential_comes_back_as_it_was_sealed() {
        let (sealer, key) = (sealer(), key("db@production", 3, "credential"));
        for credential in [login(), Credential::default()] {
            let envelope = sealer.seal(&key, &credential).unwrap();
            assert!(sealer.open(&key, envelope).unwrap().same_as(&credential));
        }
    }

    #[test]
    fn c1_a_ciphertext_cannot_stand_in_for_another() {
        let sealer = sealer();
        let named = key("db@production", 3, "credential");
        for other in [
            key("db@staging", 3, "credential"),
            key("db@production", 4, "credential"),
            key("db@production", 3, "slot:a/B"),
        ] {
            let envelope = sealer.seal(&named, &login()).unwrap();
            assert!(matches!(sealer.open(&other, envelope), Err(JournalError::Sealing(_))));
        }
        let elsewhere = Sealer {
            installation: "there".into(),
            kek: Kek::from_text(sealer.kek.to_text().as_bytes()).unwrap(),
            generation: 1,
        };
        let envelope = sealer.seal(&named, &login()).unwrap();
        assert!(matches!(elsewhere.open(&named, envelope), Err(JournalError::Sealing(_))));
    }

    #[test]
    fn c1_a_wrapped_key_is_bound_to_its_value_and_generation() {
        let (sealer, key) = (sealer(), key("db@production", 3, "credential"));
        let mut envelope = sealer.seal(&key, &login()).unwrap();
        envelope.wrapped.generation = 2;
        assert!(matches!(sealer.open(&key, envelope), Err(JournalError::Sealing(_))));
        let mut envelope = sealer.seal(&key, &login()).unwrap();
        envelope.value[0] ^= 1;
        assert!(matches!(sealer.open(&key, envelope), Err(JournalError::Sealing(_))));
    }

    #[test]
    fn every_flipped_byte_of_an_envelope_is_noticed() {
        let (sealer, key) = (sealer(), key("db@production", 3, "credential"));
        let length = sealer.seal(&key, &login()).unwrap().ciphertext.len();
        for at in 0..length {
            let mut envelope = sealer.seal(&key, &login()).unwrap();
            envelope.ciphertext[at] ^= 1;
            assert!(sealer.open(&key, envelope).is_err(), "byte {at}");
        }
    }

    #[test]
    fn no_two_envelopes_share_a_key_or_a_nonce() {
        let (sealer, key) = (sealer(), key("db@production", 3, "credential"));
        let (a, b) = (sealer.seal(&key, &login()).unwrap(), sealer.seal(&key, &login()).unwrap());
        assert_ne!(a.value, b.value);
        assert_ne!(a.nonce, b.nonce);
        assert_ne!(a.ciphertext, b.ciphertext);
        assert_ne!(a.wrapped.nonce, b.wrapped.nonce);
        assert_ne!(a.wrapped.key, b.wrapped.key);
    }

    #[test]
    fn a_key_file_survives_its_text_form_and_a_typing_error_is_noticed() {
        let kek = Kek::generate().unwrap();
        let text = kek.to_text();
        assert_eq!(Kek::from_text(text.as_bytes()).unwrap().id(), kek.id());
        let last = if text.trim_end().ends_with('0') { "1\n" } else { "0\n" };
        let mistyped = format!("{}{last}", &text[..text.len() - 2]);
        let cut = &text.as_bytes()[..text.len() - 10];
        for bad in [mistyped.as_bytes(), cut, b"", b"keywheel-kek-1 x", &[255]] {
            assert!(matches!(Kek::from_text(bad), Err(JournalError::Sealing(_))));
        }
    }

    #[test]
    fn an_error_names_the_value_and_not_what_is_in_it() {
        let (one, two) = (sealer(), sealer());
        let key = key("db@production", 3, "credential");
        let error = two.open(&key, one.seal(&key, &login()).unwrap()).err().unwrap().to_string();
        assert!(error.contains("`db@production` v3"), "{error}");
    }
}
