//! Digests: how a secret is found and checked without being kept.
//!
//! ```text
//! digest = HMAC-SHA-256(subkey of the domain, len(input) as 8 bytes big-endian || input)
//! ```
//!
//! The subkey (the *pepper*) comes from the keyring, one for each domain, so that a vault secret and an API key of the same
//! bytes have digests that nobody can tie together, and a copy of the data is of no use for guessing. It is a keyed hash of
//! a random key, not of a password: there is nothing to stretch, and it costs two or three compressions.
//!
//! API keys that `keyguard_python` issued come with digests of its making, and go on under them until they are next found valid:
//!
//! ```text
//! digest = SHA-256(raw key || secret key)
//! ```

use arrayvec::ArrayString;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::Mac as _;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use crate::keyring::{KeyringKey, Pepper};

/// What kind of secret is digested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// The secret of a vault key.
    Vault,
    /// A raw API key.
    Api,
}

/// A keyed hash of a secret.
///
/// Not secret in itself (it names a key), yet it does not print itself and compares in constant time: whoever measures how
/// much of a digest was right must learn nothing.
#[derive(Clone, Copy, serde::Serialize, serde::Deserialize)]
pub struct Digest([u8; 32]);

impl Digest {
    /// A stored digest.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A stored digest; None unless it has 32 bytes.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether both are the same, in constant time.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        // Eight bytes at a time, and one comparison of what differs: byte by byte takes some 300 instructions.
        let pairs = self.0.as_chunks::<8>().0.iter().zip(other.0.as_chunks::<8>().0);
        let differing =
            pairs.fold(0, |all, (own, other)| all | (u64::from_ne_bytes(*own) ^ u64::from_ne_bytes(*other)));
        differing.ct_eq(&0).into()
    }

    /// 43 characters of base64url without padding, as they stand in a key's name.
    #[must_use]
    pub fn base64url(&self) -> ArrayString<43> {
        let mut text = [0; 43];
        // 32 bytes are 43 characters of ASCII, so none of the steps can fail.
        let encoded = URL_SAFE_NO_PAD.encode_slice(self.0, &mut text);
        debug_assert_eq!(encoded, Ok(text.len()));
        ArrayString::from_byte_string(&text).unwrap_or_default()
    }
}

/// In constant time.
impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other)
    }
}

impl Eq for Digest {}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Digest(..)")
    }
}

/// The digest of `input` under this key of the keyring.
#[must_use]
pub fn digest(key: &KeyringKey, domain: Domain, input: &[u8]) -> Digest {
    let keyed = match domain {
        Domain::Vault => key.vault_digest(),
        Domain::Api => key.api_digest(),
    };
    let mut hmac = keyed.clone();
    hmac.update(&(input.len() as u64).to_be_bytes());
    hmac.update(input);
    Digest(hmac.finalize().into_bytes().into())
}

/// The digest of a raw API key as `keyguard_python` made it, under what was its secret key.
#[must_use]
pub fn foreign_digest(pepper: &Pepper, raw_key: &[u8]) -> Digest {
    Digest(Sha256::new().chain_update(raw_key).chain_update(pepper.as_bytes()).finalize().into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::keyring::tests::keyring;

    #[test]
    fn digests_are_what_another_implementation_says() {
        // Computed with Python's hmac and base64.
        for (domain, first_byte, base64url) in [
            (Domain::Vault, 0x3f, "P0JXua63ObF3qZUsUrOjKHjH_g8FVJLcmyczHcADgrg"),
            (Domain::Api, 0x5b, "W-d3doxAUI1gWYDREzToT83gETPf-plBm3KtDeyl9ro"),
        ] {
            let digest = digest(keyring().newest(), domain, b"kg_live_x");
            assert_eq!(digest.as_bytes()[0], first_byte);
            assert_eq!(digest.base64url().as_str(), base64url);
        }
    }

    #[test]
    fn foreign_digests_are_those_of_keyguard_python() {
        use crate::keyring::{Label, Pepper};

        // Its AuthService("pepper").hash_key("kg_live_x") and, with text beyond ASCII, hash_key("k\u{e9}y").
        let pepper = |text: &str| Pepper::new(Label::parse("old").unwrap(), text.as_bytes()).unwrap();
        for (pepper, raw_key, hex) in [
            (pepper("pepper"), "kg_live_x", "79c3e25427144b3d00863948c5531898055154dc30fbbf44819ad65a4269df60"),
            (pepper("p\u{e9}pper"), "k\u{e9}y", "38d2985d73a0a27ae0a4d41f655c0bfe66adf7ab8cd43e3dbbcda12489acbc36"),
        ] {
            let digest = foreign_digest(&pepper, raw_key.as_bytes());
            let found: String = digest.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, hex);
        }
    }

    #[test]
    fn no_two_keys_domains_or_inputs_share_a_digest() {
        let keyring = keyring();
        let mut seen = HashSet::new();
        let inputs: [&[u8]; 6] = [b"", b"\0", b"a", b"a\0", b"\0\0\0\0\0\0\0\x01a", &[b'a'; 1000]];
        for key in keyring.newest_first() {
            for domain in [Domain::Vault, Domain::Api] {
                for input in inputs {
                    assert!(seen.insert(*digest(key, domain, input).as_bytes()));
                }
            }
        }
        assert_eq!(seen.len(), 24);
    }

    #[test]
    fn a_digest_matches_itself_alone_and_does_not_print_itself() {
        let digest = Digest::from_slice(&[7; 32]).unwrap();
        assert!(digest.matches(&digest));
        for bit in 0..256 {
            let mut bytes = [7; 32];
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!digest.matches(&Digest::from_slice(&bytes).unwrap()), "bit {bit}");
        }
        assert_eq!(format!("{digest:?}"), "Digest(..)");
        for length in [0, 31, 33] {
            assert!(Digest::from_slice(&vec![0; length]).is_none());
        }
    }
}
