//! A secret held in memory: wiped when dropped, never printed, compared in constant time.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// The longest secret: 64 KiB, in bytes.
pub const MAX_SECRET_BYTES: usize = 64 * 1024;

/// How many characters a secret needs before its last four may be shown: four of fifteen would tell too much.
const MIN_CHARACTERS_FOR_HINT: usize = 16;

/// The plaintext of a vault key.
///
/// Its buffer is wiped when it is dropped. Copies that others make of [`expose`](Self::expose) are theirs to wipe.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes over bytes that are known to be a secret already (opened from the vault). For a client's bytes there is
    /// [`parse`](Self::parse).
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// As [`new`](Self::new), from a copy.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Self {
        Self::new(bytes.to_vec())
    }

    /// A client's bytes: any, but at least one and at most [`MAX_SECRET_BYTES`].
    ///
    /// # Errors
    /// [`Error::Invalid`] when empty, [`Error::TooLong`] when longer.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() {
            return Err(Error::Invalid { what: "secret", accepted: "1 to 65536 bytes" });
        }
        if bytes.len() > MAX_SECRET_BYTES {
            return Err(Error::TooLong { what: "secret", max: MAX_SECRET_BYTES });
        }
        Ok(Self::from_slice(bytes))
    }

    /// The plaintext. The name is meant to stand out where it is called.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The last four characters, so that a person can tell two keys apart: only of a secret of 16 or more characters, and
    /// only when the four are printable ASCII.
    #[must_use]
    pub fn hint(&self) -> Option<Hint> {
        let bytes = self.expose();
        let characters = str::from_utf8(bytes).map_or(bytes.len(), |text| text.chars().count());
        if characters < MIN_CHARACTERS_FOR_HINT {
            return None;
        }
        Hint::try_from(*bytes.last_chunk()?).ok()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// In constant time for secrets of equal length; the length itself is not hidden.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose().ct_eq(other.expose()).into()
    }
}

impl Eq for Secret {}

/// The last four characters of a secret, all printable ASCII.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint([u8; 4]);

impl Hint {
    /// The four characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Printable ASCII is UTF-8, so the default is never used.
        str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The four characters as bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 4] {
        &self.0
    }
}

/// The bytes that were to be a [`Hint`] are not printable ASCII.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a hint is four characters of printable ASCII")]
pub struct NotAHint;

impl TryFrom<[u8; 4]> for Hint {
    type Error = NotAHint;

    fn try_from(bytes: [u8; 4]) -> std::result::Result<Self, NotAHint> {
        if bytes.iter().all(|byte| matches!(byte, b' '..=b'~')) { Ok(Self(bytes)) } else { Err(NotAHint) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_1_to_65536_bytes() {
        assert!(matches!(Secret::parse(b""), Err(Error::Invalid { what: "secret", .. })));
        assert_eq!(Secret::parse(b"\0").unwrap().expose(), b"\0");
        assert!(Secret::parse(&[0xff; MAX_SECRET_BYTES]).is_ok());
        assert_eq!(
            Secret::parse(&[1; MAX_SECRET_BYTES + 1]),
            Err(Error::TooLong { what: "secret", max: MAX_SECRET_BYTES })
        );
    }

    #[test]
    fn a_secret_does_not_print_itself() {
        assert_eq!(format!("{:?}", Secret::from_slice(b"hunter2")), "Secret(..)");
    }

    #[test]
    fn secrets_are_equal_when_their_bytes_are() {
        for (left, right) in [("", ""), ("a", "a"), ("a", "b"), ("a", "aa"), ("a", ""), ("sk-1", "sk-2")] {
            let equal = Secret::from_slice(left.as_bytes()) == Secret::from_slice(right.as_bytes());
            assert_eq!(equal, left == right, "{left:?} {right:?}");
        }
    }

    #[test]
    fn a_hint_needs_16_characters_and_four_printable_ones() {
        let cases: &[(&[u8], Option<&str>)] = &[
            (b"", None),
            (b"abc", None),
            (b"123456789012345", None),
            (b"1234567890123456", Some("3456")),
            (b"sk-proj-0123456789 +/", Some("9 +/")),
            (b"123456789012345\n", None),
            (b"123456789012345\x7f", None),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff1234", Some("1234")),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff123\xff", None),
            // Eleven characters in fifteen or more bytes are still eleven.
            ("\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}1234".as_bytes(), None),
            ("\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}1234".as_bytes(), Some("1234")),
        ];
        for (secret, hint) in cases {
            let found = Secret::from_slice(secret).hint();
            assert_eq!(found.as_ref().map(Hint::as_str), *hint, "{secret:?}");
        }
    }
}
