//! API keys as their holders see them.
//!
//! ```text
//! key      = prefix || body || checksum
//! body     = 256 random bits, a big-endian number in 43 digits of base62
//! checksum = CRC-32 (ISO-HDLC) of prefix || body, a number in 6 digits of base62
//! digits   = 0-9 A-Z a-z
//! ```
//!
//! The checksum is no secret and no authentication. It refuses a mistyped key before any look-up, and lets a scanner for leaked
//! secrets tell a key from other text offline.

use zeroize::{Zeroize as _, Zeroizing};

use crate::error::{Error, Result};

/// The longest prefix, in bytes.
pub const MAX_PREFIX_BYTES: usize = 32;

/// Characters of the random part.
pub const BODY_BYTES: usize = 43;

/// Characters of the checksum.
pub const CHECKSUM_BYTES: usize = 6;

/// The longest raw key that was made elsewhere, in bytes.
pub const MAX_FOREIGN_BYTES: usize = 1024;

/// How much of the body may be shown: 6 characters of 43 leave 220 bits.
pub const SHOWN_BODY_BYTES: usize = 6;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// What an API key starts with, so that people and scanners see what it is for: up to [`MAX_PREFIX_BYTES`] of
/// `A-Z a-z 0-9 _ -`, or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix<'a>(&'a str);

impl<'a> Prefix<'a> {
    /// A client's bytes.
    ///
    /// # Errors
    /// [`Error::TooLong`], or [`Error::Invalid`] for other characters.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        if bytes.len() > MAX_PREFIX_BYTES {
            return Err(Error::TooLong { what: "PREFIX", max: MAX_PREFIX_BYTES });
        }
        let refused = Error::Invalid { what: "PREFIX", accepted: "up to 32 of A-Z a-z 0-9 _ -" };
        if !bytes.iter().copied().all(is_prefix_byte) {
            return Err(refused);
        }
        str::from_utf8(bytes).map(Self).map_err(|_| refused)
    }

    /// The prefix as text.
    #[must_use]
    pub const fn as_str(&self) -> &'a str {
        self.0
    }
}

/// `kg_live_`.
impl Default for Prefix<'_> {
    fn default() -> Self {
        Self("kg_live_")
    }
}

/// A fresh API key: shown to its holder once, then only its digest remains. Wiped when dropped, never printed.
pub struct RawKey {
    text: Zeroizing<Vec<u8>>,
    start_bytes: usize,
}

impl RawKey {
    /// The key of these 256 random bits. The caller's copy of them is the caller's to wipe.
    #[must_use]
    pub fn new(prefix: &Prefix<'_>, entropy: &[u8; 32]) -> Self {
        // The whole capacity at once: a vector that grows leaves copies behind.
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_PREFIX_BYTES + BODY_BYTES + CHECKSUM_BYTES));
        text.extend_from_slice(prefix.as_str().as_bytes());
        text.extend_from_slice(body_of(entropy).as_slice());
        let checksum = checksum_of(&text);
        text.extend_from_slice(&checksum);
        Self { text, start_bytes: prefix.as_str().len() + SHOWN_BODY_BYTES }
    }

    /// The whole key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.text
    }

    /// Its visible beginning: the prefix and the first [`SHOWN_BODY_BYTES`] characters of the body.
    #[must_use]
    pub fn start(&self) -> &str {
        let shown = self.text.get(..self.start_bytes).unwrap_or_default();
        // Prefix and body are ASCII, so the default is never used.
        str::from_utf8(shown).unwrap_or_default()
    }
}

impl std::fmt::Debug for RawKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RawKey(..)")
    }
}

/// Whether the bytes have the form of a key that [`RawKey::new`] makes, checksum included. It allocates nothing.
#[must_use]
pub fn well_formed(raw: &[u8]) -> bool {
    let Some((before, checksum)) = raw.split_last_chunk::<CHECKSUM_BYTES>() else { return false };
    let Some((prefix, body)) = before.split_last_chunk::<BODY_BYTES>() else { return false };
    prefix.len() <= MAX_PREFIX_BYTES
        && prefix.iter().copied().all(is_prefix_byte)
        && body.iter().all(u8::is_ascii_alphanumeric)
        && checksum_of(before) == *checksum
}

/// The visible beginning of a raw key, as [`RawKey::start`] gives it; None for what is not [`well_formed`].
#[must_use]
pub fn start_of(raw: &[u8]) -> Option<&str> {
    if !well_formed(raw) {
        return None;
    }
    let hidden = BODY_BYTES - SHOWN_BODY_BYTES + CHECKSUM_BYTES;
    str::from_utf8(raw.get(..raw.len().checked_sub(hidden)?)?).ok()
}

/// What a raw key starts with that comes in the place of another, whose visible beginning is known. Of a foreign one nobody knows
/// where the prefix ended: it is [`Prefix::default`] if it begins so, else all up to the last `_`, else nothing.
#[must_use]
pub fn prefix_after(start: &str, is_foreign: bool) -> Prefix<'_> {
    let known = match (is_foreign, start.starts_with(Prefix::default().as_str())) {
        (false, _) => start.len().checked_sub(SHOWN_BODY_BYTES).and_then(|length| start.get(..length)),
        (true, true) => Some(Prefix::default().as_str()),
        (true, false) => start.rfind('_').and_then(|last| start.get(..=last)),
    };
    Prefix::parse(known.unwrap_or_default().as_bytes()).unwrap_or_default()
}

fn is_prefix_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

fn digit(value: u32) -> u8 {
    // The callers pass a remainder of 62.
    DIGITS.get(value as usize).copied().unwrap_or(b'0')
}

/// Long division by 62, the least digit first. 62^43 is just over 2^256, so 43 digits hold every value.
fn body_of(entropy: &[u8; 32]) -> Zeroizing<[u8; BODY_BYTES]> {
    let mut limbs = Zeroizing::new([0_u32; 8]);
    for (limb, bytes) in limbs.iter_mut().zip(entropy.as_chunks().0) {
        *limb = u32::from_be_bytes(*bytes);
    }
    let mut body = Zeroizing::new([0; BODY_BYTES]);
    for place in body.iter_mut().rev() {
        let mut remainder = 0_u64;
        for limb in limbs.iter_mut() {
            let value = (remainder << 32) | u64::from(*limb);
            *limb = (value / 62) as u32;
            remainder = value % 62;
        }
        *place = digit(remainder as u32);
        remainder.zeroize();
    }
    body
}

fn checksum_of(before: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut crc = crc32fast::hash(before);
    let mut checksum = [0; CHECKSUM_BYTES];
    for place in checksum.iter_mut().rev() {
        *place = digit(crc % 62);
        crc /= 62;
    }
    checksum
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KNOWN: &[u8] = b"kg_live_003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf0BwQDy";

    #[test]
    fn keys_are_what_another_implementation_says() {
        // Computed with Python's integers and zlib.crc32.
        let counting = std::array::from_fn(|index| index as u8);
        for (prefix, entropy, text, start) in [
            ("kg_live_", counting, str::from_utf8(KNOWN).unwrap(), "kg_live_003aUl"),
            ("", [0; 32], "00000000000000000000000000000000000000000002CZclj", "000000"),
            (
                "acme-test_",
                [0xff; 32],
                "acme-test_yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp12dYMVE",
                "acme-test_yhjskw",
            ),
        ] {
            let key = RawKey::new(&Prefix::parse(prefix.as_bytes()).unwrap(), &entropy);
            assert_eq!(str::from_utf8(key.as_bytes()).unwrap(), text);
            assert_eq!(key.start(), start);
            assert_eq!(start_of(key.as_bytes()), Some(start));
            assert!(well_formed(key.as_bytes()), "{text}");
        }
        assert_eq!(Prefix::default().as_str(), "kg_live_");
    }

    #[test]
    fn a_prefix_is_up_to_32_harmless_characters() {
        let longest = "x".repeat(MAX_PREFIX_BYTES);
        for prefix in ["", "a", "kg_live_", "A-Z_09", &longest] {
            assert_eq!(Prefix::parse(prefix.as_bytes()).unwrap().as_str(), prefix);
        }
        assert!(matches!(Prefix::parse(&[b'x'; MAX_PREFIX_BYTES + 1]), Err(Error::TooLong { .. })));
        for prefix in [&b" "[..], b"a:b", b"a.b", b"\0", b"\xff", "\u{e9}".as_bytes()] {
            assert!(matches!(Prefix::parse(prefix), Err(Error::Invalid { .. })), "{prefix:?}");
        }
    }

    #[test]
    fn every_typo_of_one_character_is_refused() {
        for index in 0..KNOWN.len() {
            for byte in 0..=u8::MAX {
                let mut typo = KNOWN.to_vec();
                typo[index] = byte;
                assert_eq!(well_formed(&typo), typo == KNOWN, "{byte} at {index}");
            }
            let mut missing = KNOWN.to_vec();
            missing.remove(index);
            assert!(!well_formed(&missing), "without {index}");
            for byte in 0..=u8::MAX {
                let mut extra = KNOWN.to_vec();
                extra.insert(index, byte);
                assert!(!well_formed(&extra), "{byte} before {index}");
            }
        }
    }

    #[test]
    fn every_swap_of_two_characters_is_refused() {
        for left in 0..KNOWN.len() {
            for right in left + 1..KNOWN.len() {
                let mut typo = KNOWN.to_vec();
                typo.swap(left, right);
                assert_eq!(well_formed(&typo), typo == KNOWN, "{left} and {right}");
            }
        }
    }

    #[test]
    fn a_key_cut_off_or_continued_is_refused() {
        for length in 0..KNOWN.len() {
            assert!(!well_formed(&KNOWN[..length]), "{length}");
        }
        for tail in [&b"0"[..], b"\n", b"\0", KNOWN] {
            assert!(!well_formed(&[KNOWN, tail].concat()));
        }
    }

    #[test]
    fn a_key_does_not_print_itself() {
        assert_eq!(format!("{:?}", RawKey::new(&Prefix::default(), &[1; 32])), "RawKey(..)");
    }

    #[test]
    fn a_key_starts_with_what_the_one_before_it_started_with() {
        for (start, is_foreign, prefix) in [
            ("kg_live_003aUl", false, "kg_live_"),
            ("003aUl", false, ""),
            ("acme-003aUl", false, "acme-"),
            ("kg_live_ab_c", true, "kg_live_"),
            ("sk_test_abcd", true, "sk_test_"),
            ("abcdefghijkl", true, ""),
            ("a!b_cdefghij", true, "kg_live_"),
            ("x", false, ""),
            ("", true, ""),
        ] {
            assert_eq!(prefix_after(start, is_foreign).as_str(), prefix, "{start}");
        }
    }

    proptest! {
        #[test]
        fn every_key_is_well_formed(prefix in "[A-Za-z0-9_-]{0,32}", entropy: [u8; 32]) {
            let key = RawKey::new(&Prefix::parse(prefix.as_bytes()).unwrap(), &entropy);
            prop_assert!(well_formed(key.as_bytes()));
            prop_assert_eq!(key.as_bytes().len(), prefix.len() + BODY_BYTES + CHECKSUM_BYTES);
            prop_assert_eq!(start_of(key.as_bytes()), Some(key.start()));
        }

        #[test]
        fn checking_is_total_and_refuses_noise(bytes in proptest::collection::vec(any::<u8>(), 0..120), text in "[A-Za-z0-9]{40,90}") {
            prop_assert!(!well_formed(&bytes));
            prop_assert!(!well_formed(text.as_bytes()));
        }
    }
}
