//! Signatures, by which receivers recognize requests as ours.
//!
//! They use the symmetric scheme `v1` of Standard Webhooks 1.0.0
//! (<https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>):
//! HMAC-SHA256 over `<id>.<timestamp>.<body>`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::secret::Secret;

/// The prefix of a secret, by which people and scanners recognize it.
pub const PREFIX: &str = "whsec_";

/// The prefix of a signature of this scheme.
const SCHEME: &str = "v1,";

/// The allowed lengths of a key in bytes.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// How far the timestamp of a request may be from now; beyond that, it may be a replay attack. The
/// specification sets no value; its own libraries use this one.
pub const TOLERANCE_SECONDS: u64 = 300;

/// A time in seconds since the Unix epoch, as in the header `webhook-timestamp`.
pub type UnixSeconds = u64;

/// A text that isn't a secret of this scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the secret is not `{PREFIX}` and the base64 of 24 to 64 bytes")]
pub struct BadSecret;

/// Why a signature is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSignature {
    /// One of the three headers is missing.
    #[error("not signed")]
    Missing,
    /// The timestamp isn't a number, or is too far from now.
    #[error("its timestamp is not within {TOLERANCE_SECONDS} s of now")]
    Timestamp,
    /// The signature was made with another key, or for another request.
    #[error("made with another secret, or for another request")]
    Mismatch,
}

/// A signing key.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey(Box<[u8]>);

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

impl SigningKey {
    /// Reads a secret: `whsec_` and base64.
    ///
    /// # Errors
    /// [`BadSecret`], which discloses nothing of the given text.
    pub fn parse(secret: &str) -> Result<Self, BadSecret> {
        let encoded = secret.strip_prefix(PREFIX).ok_or(BadSecret)?;
        let key = BASE64.decode(encoded).map_err(|_| BadSecret)?;
        if KEY_BYTES.contains(&key.len()) { Ok(Self(key.into())) } else { Err(BadSecret) }
    }

    /// Makes a secret from random bytes.
    #[must_use]
    pub fn secret_of(drawn: [u8; 32]) -> Secret {
        Secret::new(format!("{PREFIX}{}", BASE64.encode(drawn)))
    }

    fn mac(&self, id: &str, timestamp: &str, body: &[u8]) -> Option<Hmac<Sha256>> {
        // HMAC accepts keys of any length, so this never fails.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        Some(mac)
    }

    fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> Option<String> {
        let code = self.mac(id, timestamp, body)?.finalize().into_bytes();
        Some(format!("{SCHEME}{}", BASE64.encode(code)))
    }

    /// Checks that a request received at `now` was signed with this key. `signatures` is the header
    /// `webhook-signature`, in which one matching signature is enough. Empty values count as missing.
    ///
    /// # Errors
    /// Why the signature is invalid.
    pub fn verify(
        &self,
        id: &str,
        timestamp: &str,
        signatures: &str,
        body: &[u8],
        now: UnixSeconds,
    ) -> Result<(), BadSignature> {
        if id.is_empty() || timestamp.is_empty() || signatures.is_empty() {
            return Err(BadSignature::Missing);
        }
        let at: UnixSeconds = timestamp.parse().map_err(|_| BadSignature::Timestamp)?;
        if at.abs_diff(now) > TOLERANCE_SECONDS {
            return Err(BadSignature::Timestamp);
        }
        let mac = self.mac(id, timestamp, body).ok_or(BadSignature::Mismatch)?;
        let fits = signatures.split(' ').filter_map(|one| one.strip_prefix(SCHEME)).any(|code| {
            // Compares in constant time.
            BASE64.decode(code).is_ok_and(|code| mac.clone().verify_slice(&code).is_ok())
        });
        if fits { Ok(()) } else { Err(BadSignature::Mismatch) }
    }
}

/// The keys that sign the requests to one webhook: the current one, and for a while the previous one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SigningKeys {
    /// The current key; `None` if the requests aren't signed.
    pub current: Option<SigningKey>,
    /// The previous key, and when it expires.
    pub previous: Option<(SigningKey, UnixSeconds)>,
}

impl SigningKeys {
    /// The header `webhook-signature` of a request at the time `at`: a signature with each key that is
    /// valid then, separated by spaces.
    #[must_use]
    pub fn sign(&self, id: &str, at: UnixSeconds, body: &[u8]) -> Option<String> {
        let previous = self.previous.as_ref().filter(|(_, ends)| at < *ends).map(|(key, _)| key);
        let timestamp = at.to_string();
        let keys = self.current.iter().chain(previous);
        let signatures: Vec<_> = keys.filter_map(|key| key.sign(id, &timestamp, body)).collect();
        (!signatures.is_empty()).then(|| signatures.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // The example in the specification's reference libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const AT: UnixSeconds = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn key(secret: &str) -> SigningKey {
        SigningKey::parse(secret).expect("a secret")
    }

    fn verify(signatures: &str, now: UnixSeconds) -> Result<(), BadSignature> {
        key(SECRET).verify(ID, &AT.to_string(), signatures, BODY, now)
    }

    #[test]
    fn the_example_of_the_specification_gets_the_same_signature() {
        let keys = SigningKeys { current: Some(key(SECRET)), previous: None };
        assert_eq!(keys.sign(ID, AT, BODY).as_deref(), Some(SIGNATURE));
    }

    #[test]
    fn without_a_key_there_is_no_signature() {
        assert_eq!(SigningKeys::default().sign(ID, AT, BODY), None);
    }

    #[test]
    fn the_previous_key_signs_too_until_it_expires() {
        let previous = SigningKey::secret_of([7; 32]);
        let previous = key(previous.expose());
        let keys =
            SigningKeys { current: Some(key(SECRET)), previous: Some((previous.clone(), AT + 1)) };
        let both = keys.sign(ID, AT, BODY).expect("two signatures");
        let own = previous.sign(ID, &AT.to_string(), BODY).expect("a signature");
        assert_eq!(both, format!("{SIGNATURE} {own}"));
        let later = keys.sign(ID, AT + 1, BODY).expect("one signature");
        assert!(!later.contains(' '));
    }

    #[test]
    fn a_signature_is_valid_for_one_request_with_one_key_around_its_time() {
        for good in [SIGNATURE, &format!("v1,AAAA v1a,x {SIGNATURE}")] {
            assert_eq!(verify(good, AT), Ok(()), "{good}");
        }
        assert_eq!(verify(SIGNATURE, AT + TOLERANCE_SECONDS), Ok(()));
        assert_eq!(verify(SIGNATURE, AT + TOLERANCE_SECONDS + 1), Err(BadSignature::Timestamp));
        assert_eq!(verify(SIGNATURE, AT - TOLERANCE_SECONDS - 1), Err(BadSignature::Timestamp));
        assert_eq!(verify("", AT), Err(BadSignature::Missing));
        for bad in ["v1,", "v1", "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", " ", "v1,AAAA"]
        {
            assert_eq!(verify(bad, AT), Err(BadSignature::Mismatch), "{bad:?}");
        }
        let other = key(SigningKey::secret_of([7; 32]).expose());
        let at = AT.to_string();
        let verified = other.verify(ID, &at, SIGNATURE, BODY, AT);
        assert_eq!(verified, Err(BadSignature::Mismatch));
        let verified = key(SECRET).verify(ID, "soon", SIGNATURE, BODY, AT);
        assert_eq!(verified, Err(BadSignature::Timestamp));
    }

    #[test]
    fn a_secret_has_its_prefix_and_24_to_64_bytes() {
        let of = |bytes: usize| format!("whsec_{}", BASE64.encode(vec![1; bytes]));
        for good in [of(24), of(64)] {
            assert!(SigningKey::parse(&good).is_ok(), "{good}");
        }
        let bare = BASE64.encode([1; 32]);
        for bad in [of(23), of(65), of(0), bare, "whsec_???".to_owned(), String::new()] {
            assert_eq!(SigningKey::parse(&bad), Err(BadSecret), "{bad}");
        }
        assert!(!BadSecret.to_string().contains('{'));
        assert_eq!(format!("{:?}", key(SECRET)), "***");
    }

    proptest! {
        #[test]
        fn a_signature_is_valid_for_the_signed_body_only(
            drawn: [u8; 32], id in "[!-~]{1,40}", at in 0..u64::MAX / 2,
            body: Vec<u8>, flipped: prop::sample::Index,
        ) {
            let key = key(SigningKey::secret_of(drawn).expose());
            let keys = SigningKeys { current: Some(key.clone()), previous: None };
            let signature = keys.sign(&id, at, &body).expect("it has a key");
            let timestamp = at.to_string();
            prop_assert_eq!(key.verify(&id, &timestamp, &signature, &body, at), Ok(()));
            let mut other = body.clone();
            other.push(0);
            prop_assert!(key.verify(&id, &timestamp, &signature, &other, at).is_err());
            if !body.is_empty() {
                let mut other = body.clone();
                other[flipped.index(body.len())] ^= 1;
                prop_assert!(key.verify(&id, &timestamp, &signature, &other, at).is_err());
            }
        }

        #[test]
        fn verifying_never_panics(
            id in ".{0,20}", timestamp in ".{0,20}", signatures in ".{0,80}",
        ) {
            let verified = key(SECRET).verify(&id, &timestamp, &signatures, BODY, AT);
            prop_assert!(verified.is_err());
        }
    }
}
