//! Paths of requests, as address rules and claims of addresses name them.
//!
//! A path is what stands before `?`; empty segments, and with them a `/` at the end, are ignored: `/api/`, `//api` and `/api?x=1`
//! are `/api`. It covers itself and all below it by whole segments: `/api` covers `/api/x`, not `/apiary`; `/` covers every path.
//!
//! Nothing is decoded and no case is changed: `/%61pi` is not `/api`. Whoever asks gives the path that the application routes by,
//! after whatever decoding the application does, and writes the rules alike. Segments `.` and `..` are refused, because what they
//! lead to would be a guess: `/public/../admin` must not pass by a rule for `/public`, nor by one for `/admin`.

use std::borrow::Cow;
use std::fmt;

use crate::error::{Error, Result};

/// The longest path, in bytes, what follows `?` aside.
pub const MAX_PATH_BYTES: usize = 1_024;

/// The path of a request, or of a rule, in its one canonical form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path<'a>(Cow<'a, str>);

impl<'a> Path<'a> {
    /// A client's bytes. Only what has empty segments is copied.
    ///
    /// # Errors
    /// [`Error::TooLong`] beyond [`MAX_PATH_BYTES`]; [`Error::Invalid`] unless it begins with `/` and is UTF-8 without control
    /// characters and without segments `.` and `..`.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let end = bytes.iter().position(|byte| *byte == b'?').unwrap_or(bytes.len());
        let path = bytes.get(..end).unwrap_or_default();
        if path.len() > MAX_PATH_BYTES {
            return Err(Error::TooLong { what: "PATH", max: MAX_PATH_BYTES });
        }
        str::from_utf8(path).ok().and_then(Self::canonical).ok_or(Error::Invalid {
            what: "PATH",
            accepted: "a path such as /api/login, without control characters and segments . and ..",
        })
    }

    /// The path that a request came with. It may be anything, and is no mistake of whoever asks: one that [`parse`](Self::parse)
    /// refuses lies below every path, as far as blocks go, and below none that is allowed.
    #[must_use]
    pub fn of_request(bytes: &'a [u8]) -> Self {
        Self::parse(bytes).unwrap_or(Self(Cow::Borrowed("")))
    }

    /// Whether it is that of a request, and nobody knows where it leads.
    #[must_use]
    pub fn leads_anywhere(&self) -> bool {
        self.0.is_empty()
    }

    /// A path that [`as_str`](Self::as_str) gave, and no other spelling of it.
    pub(crate) fn from_canonical(text: &'a str) -> Option<Self> {
        (text.len() <= MAX_PATH_BYTES && !text.contains('?'))
            .then(|| Self::canonical(text))
            .flatten()
            .filter(|path| matches!(path.0, Cow::Borrowed(canonical) if canonical.len() == text.len()))
    }

    /// One that was checked before.
    pub(crate) const fn trusted(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }

    fn canonical(text: &'a str) -> Option<Self> {
        // As in names: plain ASCII is settled without decoding characters.
        let plain = text.bytes().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~'));
        let dots = |segment| segment == "." || segment == "..";
        if !text.starts_with('/') || (!plain && text.contains(char::is_control)) || text.split('/').any(dots) {
            return None;
        }
        if !text.contains("//") {
            let trimmed = text.strip_suffix('/').unwrap_or(text);
            return Some(Self(Cow::Borrowed(if trimmed.is_empty() { "/" } else { trimmed })));
        }
        let mut canonical = String::with_capacity(text.len());
        for segment in text.split('/').filter(|segment| !segment.is_empty()) {
            canonical.push('/');
            canonical.push_str(segment);
        }
        if canonical.is_empty() {
            canonical.push('/');
        }
        Some(Self(Cow::Owned(canonical)))
    }

    /// The same, for as long as need be.
    #[must_use]
    pub fn to_static(&self) -> Path<'static> {
        Path(Cow::Owned(self.0.clone().into_owned()))
    }

    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a rule for this path is one for the other, too.
    #[must_use]
    pub fn covers(&self, other: &Path<'_>) -> bool {
        match other.0.strip_prefix(&*self.0) {
            Some(rest) => rest.is_empty() || rest.starts_with('/') || &*self.0 == "/",
            None => false,
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> Path<'_> {
        Path::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_path_has_one_form() {
        let longest = format!("/{}", "x".repeat(MAX_PATH_BYTES - 1));
        for (text, canonical) in [
            ("/", "/"),
            ("//", "/"),
            ("///", "/"),
            ("/?x=/api", "/"),
            ("/api", "/api"),
            ("/api/", "/api"),
            ("/api//", "/api"),
            ("//api", "/api"),
            ("/api///v1//x/", "/api/v1/x"),
            ("/api?", "/api"),
            ("/api/?a=\n/../", "/api"),
            ("/API/%61;v=1/a b", "/API/%61;v=1/a b"),
            ("/.well-known/...", "/.well-known/..."),
            ("/\u{65e5}\u{672c}", "/\u{65e5}\u{672c}"),
            (&longest, &longest),
        ] {
            assert_eq!(path(text).as_str(), canonical, "{text}");
            assert_eq!(path(canonical), path(text));
            assert_eq!(Path::from_canonical(text).is_some(), text == canonical, "{text}");
        }
        let too_long = format!("{longest}x");
        assert_eq!(Path::parse(too_long.as_bytes()), Err(Error::TooLong { what: "PATH", max: MAX_PATH_BYTES }));
        assert!(Path::from_canonical(&too_long).is_none());
        for bytes in [
            &b""[..],
            b"?",
            b"api",
            b" /api",
            b"https://example.com/",
            b"/a\0",
            b"/a\n",
            b"/\x7f",
            b"/\xc2\x85",
            b"/\xff",
            b"/.",
            b"/..",
            b"/a/../b",
            b"/a/./b",
            b"//../b",
        ] {
            assert!(matches!(Path::parse(bytes), Err(Error::Invalid { what: "PATH", .. })), "{bytes:?}");
        }
    }

    #[test]
    fn a_path_covers_whole_segments() {
        for (rule, asked, covered) in [
            ("/api", "/api", true),
            ("/api", "/api/", true),
            ("/api/", "/api/x", true),
            ("/api", "/api//x/y?z", true),
            ("/api", "/apiary", false),
            ("/api", "/ap", false),
            ("/api", "/API", false),
            ("/api", "/v1/api", false),
            ("/api", "/", false),
            ("/", "/", true),
            ("/", "/anything/at/all", true),
            ("/a/b", "/a/b/c", true),
            ("/a/b", "/a", false),
        ] {
            assert_eq!(path(rule).covers(&path(asked)), covered, "{rule} {asked}");
        }
    }

    proptest! {
        #[test]
        fn covering_is_that_the_segments_begin_alike(rule in "(/[ab]{0,2}){1,4}/?", asked in "(/[ab]{0,2}){1,5}/?(\\?[/ab]*)?") {
            fn segments(text: &str) -> Vec<&str> {
                text.split('?').next().unwrap_or("").split('/').filter(|segment| !segment.is_empty()).collect()
            }
            let covered = segments(&asked).starts_with(&segments(&rule));
            prop_assert_eq!(path(&rule).covers(&path(&asked)), covered);
        }

        #[test]
        fn parsing_is_total_and_settles(bytes in proptest::collection::vec(any::<u8>(), 0..40), text in "/[/.?a]{0,12}") {
            let _ = Path::parse(&bytes);
            if let Ok(path) = Path::parse(text.as_bytes()) {
                prop_assert_eq!(Path::from_canonical(path.as_str()), Some(path.clone()));
            }
        }
    }
}
