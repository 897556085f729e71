//! Sealing: how the secret of a vault key is kept.
//!
//! ```text
//! sealed = 0x01 || fingerprint (8) || nonce (24) || XChaCha20-Poly1305(key, nonce, secret, associated data) || tag (16)
//! associated data = L(record type) || L(store) || L(id, 8 bytes big-endian) || L(field) || L(fingerprint)
//! L(x) = len(x) as 4 bytes big-endian || x
//! ```
//!
//! The key is the `seal` subkey of the keyring key that the fingerprint names.
//!
//! **Nonce rule:** a nonce is 24 fresh bytes of the system's randomness for every sealing, never a counter, never derived, never
//! reused with another secret. At 192 bits a repetition by chance is out of reach (2^-96 after 2^48 sealings), which is why the
//! cipher is XChaCha20 and not ChaCha20. A replica does not seal again: it is sent the sealed bytes.
//!
//! The associated data ties a ciphertext to its place. Copied under another store, record or field it does not open; since every
//! part has its length before it, no two places give the same data.

use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut as _, Tag};
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::keyring::{Fingerprint, Keyring, KeyringKey};
use crate::secret::{MAX_SECRET_BYTES, Secret};

/// How many bytes a sealed secret is longer than the secret.
pub const OVERHEAD_BYTES: usize = 1 + FINGERPRINT_BYTES + NONCE_BYTES + TAG_BYTES;

/// The longest sealed secret, in bytes.
pub const MAX_SEALED_BYTES: usize = MAX_SECRET_BYTES + OVERHEAD_BYTES;

const VERSION: u8 = 1;
const FINGERPRINT_BYTES: usize = 8;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;

/// Where a sealed secret stands, and the only place where it opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// The type of the record: `vault`.
    pub record_type: &'static str,
    /// The name of the store.
    pub store: &'a str,
    /// The id of the record.
    pub id: u64,
    /// The field of the record: `secret`.
    pub field: &'static str,
}

impl Place<'_> {
    fn associated_data(&self, fingerprint: Fingerprint) -> Vec<u8> {
        let id = self.id.to_be_bytes();
        let parts: [&[u8]; 5] =
            [self.record_type.as_bytes(), self.store.as_bytes(), &id, self.field.as_bytes(), fingerprint.as_bytes()];
        let mut data = Vec::with_capacity(parts.iter().map(|part| 4 + part.len()).sum());
        for part in parts {
            // A part of 4 GiB does not exist: names of stores have at most 64 bytes.
            data.extend_from_slice(&(part.len() as u32).to_be_bytes());
            data.extend_from_slice(part);
        }
        data
    }
}

/// Seals a secret for its place. See the nonce rule above.
///
/// # Errors
/// [`Error::Invalid`] or [`Error::TooLong`] for a secret that [`Secret::parse`] would not take; [`open`] would refuse it.
pub fn seal(key: &KeyringKey, nonce: [u8; NONCE_BYTES], place: &Place<'_>, secret: &Secret) -> Result<Vec<u8>> {
    let plaintext = secret.expose();
    if plaintext.is_empty() {
        return Err(Error::Invalid { what: "secret", accepted: "1 to 65536 bytes" });
    }
    if plaintext.len() > MAX_SECRET_BYTES {
        return Err(Error::TooLong { what: "secret", max: MAX_SECRET_BYTES });
    }
    let fingerprint = key.fingerprint();
    let mut sealed = Vec::with_capacity(plaintext.len() + OVERHEAD_BYTES);
    sealed.push(VERSION);
    sealed.extend_from_slice(fingerprint.as_bytes());
    sealed.extend_from_slice(&nonce);
    let header_bytes = sealed.len();
    sealed.extend_from_slice(plaintext);
    let (_, text) = sealed.split_at_mut_checked(header_bytes).ok_or(Error::Internal)?;
    let tag = key
        .seal_cipher()
        .encrypt_inout_detached(&nonce.into(), &place.associated_data(fingerprint), InOutBuf::from(text))
        .map_err(|_| Error::Internal)?;
    sealed.extend_from_slice(&tag);
    Ok(sealed)
}

/// Opens what [`seal`] made, at the same place.
///
/// # Errors
/// [`Error::NoKeyring`] when the keyring lacks the key that it names, [`Error::Tampered`] when it is not a sealed secret, was
/// changed, or belongs to another place.
pub fn open(keyring: &Keyring, place: &Place<'_>, sealed: &[u8]) -> Result<Secret> {
    let Parts { fingerprint, nonce, text, tag } = Parts::split(sealed).ok_or(Error::Tampered)?;
    let key = keyring.find(fingerprint).ok_or(Error::NoKeyring {
        why: "this server's keyring lacks the key that the record was sealed under; KG.KEYRING STATUS names the keys",
    })?;
    let mut plaintext = Zeroizing::new(text.to_vec());
    key.seal_cipher()
        .decrypt_inout_detached(
            &(*nonce).into(),
            &place.associated_data(fingerprint),
            InOutBuf::from(plaintext.as_mut_slice()),
            &Tag::from(*tag),
        )
        .map_err(|_| Error::Tampered)?;
    Ok(Secret::new(std::mem::take(&mut *plaintext)))
}

/// The fingerprint of the key that a sealed secret names; None when it is not a sealed secret. Nothing is verified.
#[must_use]
pub fn fingerprint_of(sealed: &[u8]) -> Option<Fingerprint> {
    Parts::split(sealed).map(|parts| parts.fingerprint)
}

struct Parts<'a> {
    fingerprint: Fingerprint,
    nonce: &'a [u8; NONCE_BYTES],
    text: &'a [u8],
    tag: &'a [u8; TAG_BYTES],
}

impl<'a> Parts<'a> {
    fn split(sealed: &'a [u8]) -> Option<Self> {
        let (&VERSION, rest) = sealed.split_first()? else { return None };
        let (fingerprint, rest) = rest.split_first_chunk()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let (text, tag) = rest.split_last_chunk()?;
        let sized = (1..=MAX_SECRET_BYTES).contains(&text.len());
        sized.then_some(Self { fingerprint: Fingerprint::from_bytes(*fingerprint), nonce, text, tag })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305};
    use proptest::prelude::*;

    use super::*;
    use crate::keyring::tests::keyring;

    const PLACE: Place<'static> = Place { record_type: "vault", store: "acme", id: 17, field: "secret" };

    fn hex(text: &str) -> Vec<u8> {
        text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    fn nonce() -> [u8; 24] {
        std::array::from_fn(|index| 100 + index as u8)
    }

    #[test]
    fn the_cipher_is_the_one_of_the_draft() {
        // draft-irtf-cfrg-xchacha-03, A.3.1
        let key: [u8; 32] = std::array::from_fn(|index| 0x80 + index as u8);
        let nonce: [u8; 24] = std::array::from_fn(|index| 0x40 + index as u8);
        let mut text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
                         sunscreen would be it."
            .to_vec();
        let tag = XChaCha20Poly1305::new(&key.into())
            .encrypt_inout_detached(
                &nonce.into(),
                &hex("50515253c0c1c2c3c4c5c6c7"),
                InOutBuf::from(text.as_mut_slice()),
            )
            .unwrap();
        assert_eq!(
            text,
            hex("bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39\
                 ae64c6708c54c216cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9\
                 21f9664c97637da9768812f615c68b13b52e")
        );
        assert_eq!(tag.as_slice(), hex("c0875924c1c7987947deafd8780acf49"));
    }

    #[test]
    fn a_sealed_secret_is_what_another_implementation_says() {
        // Computed in Python from the formula above, root key 00 01 02 ... 1f.
        let sealed = seal(keyring().newest(), nonce(), &PLACE, &Secret::from_slice(b"sk-0123456789abcdef")).unwrap();
        assert_eq!(
            sealed,
            hex("0146b786b0bde1a7096465666768696a6b6c6d6e6f707172737475767778797a7b\
                 f5798b07b1fae24c38e47f60096089096d49310997d4edfdce64af78f874a61f5f24c0")
        );
    }

    #[test]
    fn every_size_seals_under_every_key_and_opens() {
        let keyring = keyring();
        for size in [1, 15, 16, 17, 63, 64, 65, 1000, MAX_SECRET_BYTES] {
            let secret = Secret::new((0..size).map(|index| index as u8).collect());
            for key in keyring.newest_first() {
                let sealed = seal(key, nonce(), &PLACE, &secret).unwrap();
                assert_eq!(sealed.len(), size + OVERHEAD_BYTES);
                assert_eq!(fingerprint_of(&sealed), Some(key.fingerprint()));
                assert_eq!(open(&keyring, &PLACE, &sealed), Ok(secret.clone()), "{size} bytes");
            }
        }
        for size in [0, MAX_SECRET_BYTES + 1] {
            assert!(seal(keyring.newest(), nonce(), &PLACE, &Secret::new(vec![1; size])).is_err(), "{size} bytes");
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let keyring = keyring();
        for (size, step) in [(1, 1), (100, 1), (MAX_SECRET_BYTES, 104_729)] {
            let mut sealed = seal(keyring.newest(), nonce(), &PLACE, &Secret::new(vec![7; size])).unwrap();
            for bit in (0..sealed.len() * 8).step_by(step) {
                sealed[bit / 8] ^= 1 << (bit % 8);
                let error = open(&keyring, &PLACE, &sealed).unwrap_err();
                // A changed fingerprint names another key, and there is none.
                let expected = if (1..9).contains(&(bit / 8)) { "NOKEYRING" } else { "TAMPERED" };
                assert!(error.to_string().starts_with(expected), "bit {bit} of {size} bytes: {error}");
                sealed[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn a_fingerprint_exchanged_for_another_key_s_is_noticed() {
        let keyring = keyring();
        let mut sealed = seal(keyring.newest(), nonce(), &PLACE, &Secret::from_slice(b"x")).unwrap();
        let oldest = keyring.newest_first().last().unwrap().fingerprint();
        sealed[1..9].copy_from_slice(oldest.as_bytes());
        assert_eq!(open(&keyring, &PLACE, &sealed), Err(Error::Tampered));
    }

    #[test]
    fn a_truncated_or_extended_ciphertext_is_noticed() {
        let keyring = keyring();
        let sealed = seal(keyring.newest(), nonce(), &PLACE, &Secret::from_slice(b"secret")).unwrap();
        for length in 0..sealed.len() {
            assert_eq!(open(&keyring, &PLACE, &sealed[..length]), Err(Error::Tampered), "{length} bytes");
        }
        assert_eq!(open(&keyring, &PLACE, &[sealed.as_slice(), &[0]].concat()), Err(Error::Tampered));
        assert_eq!(open(&keyring, &PLACE, &vec![VERSION; MAX_SEALED_BYTES + 1]), Err(Error::Tampered));
    }

    #[test]
    fn a_secret_opens_at_its_own_place_only() {
        let keyring = keyring();
        let sealed = seal(keyring.newest(), nonce(), &PLACE, &Secret::from_slice(b"secret")).unwrap();
        for place in [
            Place { record_type: "api", ..PLACE },
            Place { store: "acme2", ..PLACE },
            Place { store: "", ..PLACE },
            Place { id: 18, ..PLACE },
            Place { id: 17 << 32, ..PLACE },
            Place { field: "meta", ..PLACE },
            // The same characters, cut elsewhere.
            Place { record_type: "vaulta", store: "cme", ..PLACE },
            Place { record_type: "secret", field: "vault", ..PLACE },
        ] {
            assert_eq!(open(&keyring, &place, &sealed), Err(Error::Tampered), "{place:?}");
        }
    }

    #[test]
    fn a_keyring_without_the_key_says_so() {
        let sealed = seal(keyring().newest(), nonce(), &PLACE, &Secret::from_slice(b"secret")).unwrap();
        let other = Keyring::parse(b"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=").unwrap();
        assert!(matches!(open(&other, &PLACE, &sealed), Err(Error::NoKeyring { .. })));
    }

    proptest! {
        #[test]
        fn opening_is_total(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), ours: bool) {
            let keyring = keyring();
            if ours && bytes.len() > 9 {
                bytes[0] = VERSION;
                bytes[1..9].copy_from_slice(keyring.newest().fingerprint().as_bytes());
            }
            prop_assert!(open(&keyring, &PLACE, &bytes).is_err());
            let _ = fingerprint_of(&bytes);
        }

        #[test]
        fn different_places_have_different_associated_data(
            left in ("[a-c]{0,3}", any::<u64>()), right in ("[a-c]{0,3}", any::<u64>()), types in (0..3_usize, 0..3_usize),
        ) {
            const WORDS: [&str; 3] = ["a", "ab", "b"];
            let fingerprint = Fingerprint::from_bytes([0; 8]);
            let a = Place { record_type: WORDS[types.0], store: &left.0, id: left.1, field: "secret" };
            let b = Place { record_type: WORDS[types.1], store: &right.0, id: right.1, field: "secret" };
            prop_assert_eq!(a.associated_data(fingerprint) == b.associated_data(fingerprint), a == b);
        }
    }
}
