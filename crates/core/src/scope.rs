//! Scopes: what an API key may do, as words that its owner chose.
//!
//! A key holds a list of granted scopes; a request asks for one. `*` grants everything, `orders:*` everything that starts
//! with `orders:`, anything else only itself. No scopes grant nothing.

use std::borrow::Cow;

use crate::error::{Error, Result};

/// The longest scope, in bytes.
pub const MAX_SCOPE_BYTES: usize = 256;

/// The most scopes of one record.
pub const MAX_SCOPES: usize = 64;

const ACCEPTED: &str = "1 to 256 characters of printable ASCII without space and comma";
const ACCEPTED_LIST: &str = "up to 64 scopes with commas between, each of printable ASCII without space";

/// One scope, granted or asked for: 1 to [`MAX_SCOPE_BYTES`] of printable ASCII without space and comma.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope<'a>(&'a str);

impl<'a> Scope<'a> {
    /// A client's bytes.
    ///
    /// # Errors
    /// [`Error::Invalid`] when empty or with another character, [`Error::TooLong`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        if bytes.len() > MAX_SCOPE_BYTES {
            return Err(Error::TooLong { what: "scope", max: MAX_SCOPE_BYTES });
        }
        let refused = Error::Invalid { what: "scope", accepted: ACCEPTED };
        if bytes.is_empty() || !bytes.iter().copied().all(is_scope_byte) {
            return Err(refused);
        }
        str::from_utf8(bytes).map(Self).map_err(|_| refused)
    }

    /// The scope as text.
    #[must_use]
    pub const fn as_str(&self) -> &'a str {
        self.0
    }
}

impl AsRef<str> for Scope<'_> {
    fn as_ref(&self) -> &str {
        self.0
    }
}

/// Up to [`MAX_SCOPES`] scopes, kept as one text with commas between: so a record is read without allocating.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scopes<'a>(Cow<'a, str>);

impl<'a> Scopes<'a> {
    /// A client's list `a,b,c`. The empty text is the empty list; duplicates are dropped, the order is kept.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty item or a character that no scope has, [`Error::TooLong`],
    /// [`Error::TooManyItems`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        // Counted before anything is split, so that a huge list costs one pass.
        if bytes.iter().filter(|byte| **byte == b',').count() >= MAX_SCOPES {
            return Err(Error::TooManyItems { what: "scopes", max: MAX_SCOPES });
        }
        if bytes.split(|byte| *byte == b',').any(|item| item.len() > MAX_SCOPE_BYTES) {
            return Err(Error::TooLong { what: "scope", max: MAX_SCOPE_BYTES });
        }
        let list = str::from_utf8(bytes)
            .ok()
            .and_then(Self::from_joined)
            .ok_or(Error::Invalid { what: "SCOPES", accepted: ACCEPTED_LIST })?;
        let mut unique: Vec<&str> = Vec::with_capacity(list.len());
        for scope in list.iter() {
            if !unique.contains(&scope) {
                unique.push(scope);
            }
        }
        if unique.len() == list.len() { Ok(list) } else { Ok(Self(Cow::Owned(unique.join(",")))) }
    }

    /// A list in its stored form, in one pass. None unless every item is a scope and there are at most [`MAX_SCOPES`].
    #[must_use]
    pub fn from_joined(text: &'a str) -> Option<Self> {
        let (mut commas, mut proper, mut previous) = (0, true, b',');
        for byte in text.bytes() {
            // No leading comma and no two together: before a comma stands another byte.
            proper &= byte.is_ascii_graphic() & !((byte == b',') & (previous == b','));
            commas += usize::from(byte == b',');
            previous = byte;
        }
        let ended = text.is_empty() || previous != b',';
        let short = text.len() <= MAX_SCOPE_BYTES || text.split(',').all(|scope| scope.len() <= MAX_SCOPE_BYTES);
        (proper && ended && short && commas < MAX_SCOPES).then_some(Self(Cow::Borrowed(text)))
    }

    /// The scopes, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split(',').filter(|scope| !scope.is_empty())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        if self.0.is_empty() { 0 } else { self.0.bytes().filter(|byte| *byte == b',').count() + 1 }
    }

    /// Whether there is none, and so nothing is granted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The stored form, with commas between.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this list grants `wanted`.
    #[must_use]
    pub fn grant(&self, wanted: &str) -> bool {
        grants(self.iter(), wanted)
    }

    /// The same list, owning its text.
    #[must_use]
    pub fn into_owned(self) -> Scopes<'static> {
        Scopes(Cow::Owned(self.0.into_owned()))
    }
}

/// Whether one of the `granted` scopes covers `wanted`.
///
/// `*` counts only alone or at the end behind a `:`; elsewhere it is a character like any other.
pub fn grants<I>(granted: I, wanted: &str) -> bool
where
    I: IntoIterator,
    I::Item: AsRef<str>,
{
    granted.into_iter().any(|scope| {
        let scope = scope.as_ref();
        scope == wanted
            || scope == "*"
            || scope.strip_suffix('*').is_some_and(|under| under.ends_with(':') && wanted.starts_with(under))
    })
}

fn is_scope_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b','
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_is_granted_is_granted() {
        let cases: &[(&[&str], &str, bool)] = &[
            (&[], "orders:read", false),
            (&["orders:read"], "orders:read", true),
            (&["orders:read"], "orders:write", false),
            (&["orders:read"], "orders:read:all", false),
            (&["orders:read"], "Orders:read", false),
            (&["a", "b"], "b", true),
            (&["*"], "anything", true),
            (&["orders:*"], "orders:read", true),
            (&["orders:*"], "orders:read:all", true),
            (&["orders:*"], "orders:", true),
            (&["orders:*"], "orders:*", true),
            (&["orders:*"], "orders", false),
            (&["orders:*"], "ordersx:read", false),
            (&["orders:*"], "*", false),
            (&["orders*"], "orders:read", false),
            (&["orders*"], "orders*", true),
            (&["*:read"], "orders:read", false),
            (&["*:read"], "*:read", true),
            (&["or*:read"], "orders:read", false),
            (&["orders:**"], "orders:read", false),
            (&["**"], "x", false),
            (&[":*"], "orders:read", false),
            (&[":*"], ":x", true),
            (&["a:b:*"], "a:c", false),
        ];
        for (granted, wanted, expected) in cases {
            assert_eq!(grants(*granted, wanted), *expected, "{granted:?} {wanted:?}");
            let joined = granted.join(",");
            assert_eq!(Scopes::parse(joined.as_bytes()).unwrap().grant(wanted), *expected, "{granted:?} {wanted:?}");
        }
    }

    #[test]
    fn a_list_keeps_its_order_and_drops_duplicates() {
        let cases: &[(&str, Option<&[&str]>)] = &[
            ("", Some(&[])),
            ("a", Some(&["a"])),
            ("a,b", Some(&["a", "b"])),
            ("b,a,b,a", Some(&["b", "a"])),
            ("orders:*,*", Some(&["orders:*", "*"])),
            (",", None),
            ("a,", None),
            (",a", None),
            ("a,,b", None),
            ("a, b", None),
            ("a b", None),
            ("a\tb", None),
            ("\u{e9}", None),
            ("a\0", None),
        ];
        for (text, expected) in cases {
            let parsed = Scopes::parse(text.as_bytes());
            assert_eq!(
                parsed.as_ref().map(|list| list.iter().collect::<Vec<_>>()).ok().as_deref(),
                *expected,
                "{text:?}"
            );
            if let (Ok(list), Some(expected)) = (parsed, expected) {
                assert_eq!((list.len(), list.is_empty()), (expected.len(), expected.is_empty()), "{text:?}");
            }
        }
    }

    #[test]
    fn a_list_holds_64_scopes_of_256_bytes() {
        let longest = vec!["x".repeat(MAX_SCOPE_BYTES); 1].join(",");
        assert!(Scopes::parse(longest.as_bytes()).is_ok());
        assert!(matches!(Scopes::parse(format!("{longest}x").as_bytes()), Err(Error::TooLong { .. })));
        let most = (0..MAX_SCOPES).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        assert_eq!(Scopes::parse(most.as_bytes()).unwrap().len(), MAX_SCOPES);
        assert!(matches!(Scopes::parse(format!("{most},x").as_bytes()), Err(Error::TooManyItems { .. })));
        assert_eq!(Scopes::from_joined(&format!("{most},x")), None);
    }

    proptest! {
        #[test]
        fn parsing_is_total_and_its_result_is_in_stored_form(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Scope::parse(&bytes);
            if let Ok(list) = Scopes::parse(&bytes) {
                prop_assert_eq!(Scopes::from_joined(list.as_str()), Some(list.clone()));
                prop_assert!(list.iter().all(|scope| Scope::parse(scope.as_bytes()).is_ok()));
            }
        }
    }
}
