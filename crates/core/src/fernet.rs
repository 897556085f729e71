//! Fernet: how `simple_keystore` keeps its secrets, and how a snapshot may carry those of the vault.
//!
//! ```text
//! token = base64url(0x80 || time (8, big-endian seconds) || iv (16) || AES-128-CBC(encryption key, iv, PKCS7(secret)) || mac (32))
//! mac   = HMAC-SHA-256(signing key, everything before it)
//! key   = base64url(signing key (16) || encryption key (16))
//! ```
//!
//! **IV rule:** an iv is 16 fresh bytes of the system's randomness for every token, never a counter, never derived.
//!
//! The format is what others read and write, and there is no choice in it; what is kept in a store is sealed by
//! [`crate::vault`]. A token says when it was made, and that is not looked at: the secrets of a keystore are old.

use aes::Aes128;
use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockModeDecrypt as _, BlockModeEncrypt as _, KeyIvInit as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::{Zeroize as _, Zeroizing};

use crate::secret::{MAX_SECRET_BYTES, Secret};

/// Characters of a key: 32 bytes in URL-safe base64, padded.
pub const KEY_CHARACTERS: usize = 44;

/// The longest token, in characters: that of a secret of [`MAX_SECRET_BYTES`].
pub const MAX_TOKEN_CHARACTERS: usize = (HEAD_BYTES + MAX_SECRET_BYTES + BLOCK_BYTES + MAC_BYTES).div_ceil(3) * 4;

const VERSION: u8 = 0x80;
const TIME_BYTES: usize = 8;
const BLOCK_BYTES: usize = 16;
const HEAD_BYTES: usize = 1 + TIME_BYTES + BLOCK_BYTES;
const MAC_BYTES: usize = 32;

/// A key of Fernet. Wiped when dropped, never printed.
#[derive(Clone)]
pub struct Key(Zeroizing<[u8; 32]>);

impl Key {
    /// A key as it is written: [`KEY_CHARACTERS`] of URL-safe base64. None for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != KEY_CHARACTERS {
            return None;
        }
        // One byte more than wanted, as the decoder asks for room for every full group of four.
        let mut decoded = Zeroizing::new([0; 33]);
        let length = URL_SAFE.decode_slice(text, decoded.as_mut_slice()).ok()?;
        let mut key = Self(Zeroizing::new([0; 32]));
        key.0.copy_from_slice(decoded.first_chunk::<32>().filter(|_| length == 32)?);
        Some(key)
    }

    /// What signs, and what encrypts.
    fn halves(&self) -> (&[u8; 16], &[u8; 16]) {
        match self.0.as_chunks::<16>().0 {
            [signing, encryption] => (signing, encryption),
            // 32 bytes are two times 16.
            _ => (&[0; 16], &[0; 16]),
        }
    }

    #[allow(clippy::expect_used, reason = "HMAC takes keys of any length; no input reaches this")]
    fn mac(&self) -> Hmac<Sha256> {
        Hmac::new_from_slice(self.halves().0).expect("HMAC takes keys of any length")
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Why a token does not give a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FernetError {
    /// It is none.
    #[error("not a Fernet token")]
    NotAToken,
    /// It was made under another key, or changed.
    #[error("the Fernet token was made under another key, or was changed")]
    WrongKey,
    /// The secret in it is none that the vault takes.
    #[error("the secret in the Fernet token is empty or longer than 65536 bytes")]
    BadSecret,
}

/// The token of a secret, made at `now_s`, in unix seconds. See the rule for the iv above.
#[must_use]
pub fn encrypt(key: &Key, secret: &Secret, now_s: u64, iv: [u8; BLOCK_BYTES]) -> String {
    let plaintext = secret.expose();
    let padded = plaintext.len() + BLOCK_BYTES - plaintext.len() % BLOCK_BYTES;
    // The whole capacity at once: a vector that grows leaves copies of the secret behind.
    let mut token = Zeroizing::new(Vec::with_capacity(HEAD_BYTES + padded + MAC_BYTES));
    token.push(VERSION);
    token.extend_from_slice(&now_s.to_be_bytes());
    token.extend_from_slice(&iv);
    token.extend_from_slice(plaintext);
    token.resize(HEAD_BYTES + padded, 0);
    let cipher = cbc::Encryptor::<Aes128>::new(key.halves().1.into(), &iv.into());
    let text = token.get_mut(HEAD_BYTES..).unwrap_or_default();
    if cipher.encrypt_padded::<Pkcs7>(text, plaintext.len()).is_err() {
        // There is room for the padding. If there were none, the secret would stand here as it is.
        text.zeroize();
    }
    let mut mac = key.mac();
    mac.update(&token);
    token.extend_from_slice(&mac.finalize().into_bytes());
    URL_SAFE.encode(token.as_slice())
}

/// The secret in a token, however old that is. The mac is compared, in constant time, before anything is decrypted.
///
/// # Errors
/// [`FernetError`].
pub fn decrypt(key: &Key, token: &[u8]) -> Result<Secret, FernetError> {
    if token.len() > MAX_TOKEN_CHARACTERS {
        return Err(FernetError::BadSecret);
    }
    let token = URL_SAFE.decode(token).map_err(|_| FernetError::NotAToken)?;
    let (signed, mac) = token.split_last_chunk::<MAC_BYTES>().ok_or(FernetError::NotAToken)?;
    let (head, text) = signed.split_first_chunk::<HEAD_BYTES>().ok_or(FernetError::NotAToken)?;
    let (Some(&VERSION), Some(iv)) = (head.first(), head.last_chunk::<BLOCK_BYTES>()) else {
        return Err(FernetError::NotAToken);
    };
    let mut expected = key.mac();
    expected.update(signed);
    expected.verify_slice(mac).map_err(|_| FernetError::WrongKey)?;
    let mut plaintext = Zeroizing::new(text.to_vec());
    let cipher = cbc::Decryptor::<Aes128>::new(key.halves().1.into(), iv.into());
    let length = cipher.decrypt_padded::<Pkcs7>(&mut plaintext).map_err(|_| FernetError::NotAToken)?.len();
    plaintext.truncate(length);
    Secret::parse(&plaintext).map_err(|_| FernetError::BadSecret)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The key of all vectors of the specification.
    const KEY: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";

    /// From `generate.json` and `verify.json`: `hello`, made at 1985-10-26T01:20:00-07:00 with the iv 00 01 .. 0f.
    const TOKEN: &str =
        "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==";
    const MADE_AT: u64 = 499_162_800;

    fn key() -> Key {
        Key::parse(KEY).unwrap()
    }

    #[test]
    fn tokens_are_those_of_the_specification() {
        let secret = Secret::from_slice(b"hello");
        assert_eq!(encrypt(&key(), &secret, MADE_AT, std::array::from_fn(|index| index as u8)), TOKEN);
        assert_eq!(decrypt(&key(), TOKEN.as_bytes()), Ok(secret));
    }

    #[test]
    fn what_the_specification_calls_invalid_is_refused() {
        use FernetError::{NotAToken, WrongKey};
        // `invalid.json` without the two whose time alone is wrong.
        for (what, token, why) in [
            (
                "incorrect mac",
                "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAl1-szkFVzXTuGb4hR8AKtwcaX1YdykQUFBQUFBQUFBQQ==",
                WrongKey,
            ),
            ("too short", "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPA==", NotAToken),
            (
                "invalid base64",
                "%%%%%%%%%%%%%AECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAl1-szkFVzXTuGb4hR8AKtwcaX1YdykRtfsH-p1YsUD2Q==",
                NotAToken,
            ),
            (
                "payload size not multiple of block size",
                "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPOm73QeoCk9uGib28Xe5vz6oxq5nmxbx_v7mrfyudzUm",
                NotAToken,
            ),
            (
                "payload padding error",
                "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0ODz4LEpdELGQAad7aNEHbf-JkLPIpuiYRLQ3RtXatOYREu2FWke6CnJNYIbkuKNqOhw==",
                NotAToken,
            ),
            (
                "incorrect IV (causes padding error)",
                "gAAAAAAdwJ6xBQECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAkLhFLHpGtDBRLRTZeUfWgHSv49TF2AUEZ1TIvcZjK1zQ==",
                NotAToken,
            ),
            ("very short payload size", "gAAAAABdnQ1TUKh2OE_ggbyCIxfg", NotAToken),
            ("super short payload size", "gAAA", NotAToken),
            ("empty", "", NotAToken),
        ] {
            assert_eq!(decrypt(&key(), token.as_bytes()), Err(why), "{what}");
        }
        // Only the times of these are wrong, which are not looked at. They hold an empty text, which is no secret.
        for token in [
            "gAAAAAAdwStRAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAnja1xKYyhd-Y6mSkTOyTGJmw2Xc2a6kBd-iX9b_qXQcw==",
            "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAl1-szkFVzXTuGb4hR8AKtwcaX1YdykRtfsH-p1YsUD2Q==",
        ] {
            assert_eq!(decrypt(&key(), token.as_bytes()), Err(FernetError::BadSecret));
        }
    }

    #[test]
    fn a_key_is_32_bytes_of_urlsafe_base64_and_does_not_print_itself() {
        assert_eq!(format!("{:?}", key()), "Key(..)");
        for text in ["", "a", KEY.trim_end_matches('='), &KEY.replace('-', "+"), &format!("{KEY}="), &KEY[..40]] {
            assert!(Key::parse(text).is_none(), "{text}");
        }
        assert!(Key::parse(&"A".repeat(44)).is_none());
    }

    #[test]
    fn secrets_have_1_to_65536_bytes() {
        let token = |secret| encrypt(&key(), &Secret::new(secret), 0, [0; 16]);
        let longest = token(vec![7; MAX_SECRET_BYTES]);
        assert_eq!(longest.len(), MAX_TOKEN_CHARACTERS);
        assert_eq!(decrypt(&key(), longest.as_bytes()).unwrap().expose(), vec![7; MAX_SECRET_BYTES]);
        for secret in [vec![], vec![7; MAX_SECRET_BYTES + 1], vec![7; MAX_SECRET_BYTES + 100]] {
            assert_eq!(decrypt(&key(), token(secret).as_bytes()), Err(FernetError::BadSecret));
        }
    }

    proptest! {
        #[test]
        fn a_token_gives_its_secret_back_under_its_key_alone(
            secret in proptest::collection::vec(any::<u8>(), 1..200),
            now_s: u64,
            iv: [u8; 16],
            flipped in 0_usize..1000,
        ) {
            let token = encrypt(&key(), &Secret::from_slice(&secret), now_s, iv);
            prop_assert_eq!(decrypt(&key(), token.as_bytes()), Ok(Secret::from_slice(&secret)));
            let other = Key::parse("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
            prop_assert_eq!(decrypt(&other, token.as_bytes()), Err(FernetError::WrongKey));
            let mut bytes = URL_SAFE.decode(&token).unwrap();
            let at = flipped % bytes.len();
            bytes[at] ^= 1;
            prop_assert!(decrypt(&key(), URL_SAFE.encode(bytes).as_bytes()).is_err());
        }

        #[test]
        fn decrypting_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (decrypt(&key(), &bytes), decrypt(&key(), URL_SAFE.encode(&bytes).as_bytes()));
        }
    }
}
