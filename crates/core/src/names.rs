//! Names: of stores, of the keys derived from them, and of what clients name.

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::ip::Net;
use crate::record::RecordType;

/// The longest name of a store, in bytes.
pub const MAX_STORE_BYTES: usize = 64;

/// The longest name of anything else, in bytes.
pub const MAX_NAME_BYTES: usize = 256;

/// The longest META, in bytes.
pub const MAX_META_BYTES: usize = 16 * 1024;

/// The name of a store: 1 to [`MAX_STORE_BYTES`] of `A-Z a-z 0-9 . _ -`.
///
/// Every key that belongs to a store carries its name in braces, so that all of them lie in the slot of the store's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreName<'a>(&'a str);

impl<'a> StoreName<'a> {
    /// A client's bytes.
    ///
    /// # Errors
    /// [`Error::BadStore`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        if !is_store_name(bytes) {
            return Err(Error::BadStore);
        }
        str::from_utf8(bytes).map(Self).map_err(|_| Error::BadStore)
    }

    /// The name, which is also the key of the store's header.
    #[must_use]
    pub const fn as_str(&self) -> &'a str {
        self.0
    }

    /// As [`as_str`](Self::as_str), in bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.0.as_bytes()
    }

    /// The name of a derived key.
    #[must_use]
    pub fn derived(&self, key: &Derived<'_>) -> Vec<u8> {
        // `{` + `}:orgwin:` and twenty digits or a digest; only a long name of a pool or organization needs more.
        let mut name = Vec::with_capacity(self.0.len() + 54 + key.name().len());
        self.write_derived(key, &mut name);
        name
    }

    /// Writes the name of a derived key into a buffer that is used again, clearing it first.
    pub fn write_derived(&self, key: &Derived<'_>, out: &mut Vec<u8>) {
        out.clear();
        out.push(b'{');
        out.extend_from_slice(self.as_bytes());
        out.extend_from_slice(b"}:");
        let kind: &[u8] = match key {
            Derived::Key(_) => b"key:",
            Derived::Win(_) => b"win:",
            Derived::Digest(_) => b"digest:",
            Derived::Pool(_) => b"pool:",
            Derived::Orgs => b"orgs",
            Derived::Org(_) => b"org:",
            Derived::OrgWin(_) => b"orgwin:",
            Derived::Ips => b"ips",
            Derived::Ip(_) => b"ip:",
            Derived::Account(_) => b"account:",
            Derived::Ids(Listed::Keys(RecordType::Vault)) => b"ids:vault",
            Derived::Ids(Listed::Keys(RecordType::Api)) => b"ids:api",
            Derived::Ids(Listed::Orgs) => b"ids:org",
            Derived::Usage => b"usage",
            Derived::Stats => b"stats:all",
            Derived::Days(_) => b"stats:",
            Derived::Starts(_) => b"starts:",
        };
        out.extend_from_slice(kind);
        match key {
            Derived::Key(id) | Derived::Win(id) | Derived::Days(id) => push_decimal(out, *id),
            Derived::Digest(digest) => out.extend_from_slice(digest.base64url().as_bytes()),
            Derived::Pool(name)
            | Derived::Org(name)
            | Derived::OrgWin(name)
            | Derived::Account(name)
            | Derived::Ip(name) => out.extend_from_slice(name),
            Derived::Starts(end) => out.extend_from_slice(end),
            Derived::Orgs | Derived::Ips | Derived::Ids(_) | Derived::Usage | Derived::Stats => {}
        }
    }

    /// `{acme}:key:17`
    #[must_use]
    pub fn key(&self, id: u64) -> Vec<u8> {
        self.derived(&Derived::Key(id))
    }

    /// `{acme}:win:17`
    #[must_use]
    pub fn win(&self, id: u64) -> Vec<u8> {
        self.derived(&Derived::Win(id))
    }

    /// `{acme}:digest:<43 characters of base64url>`
    #[must_use]
    pub fn digest(&self, digest: &Digest) -> Vec<u8> {
        self.derived(&Derived::Digest(digest))
    }

    /// `{acme}:pool:<name>`
    #[must_use]
    pub fn pool(&self, name: impl AsRef<[u8]>) -> Vec<u8> {
        self.derived(&Derived::Pool(name.as_ref()))
    }

    /// `{acme}:orgs`
    #[must_use]
    pub fn orgs(&self) -> Vec<u8> {
        self.derived(&Derived::Orgs)
    }

    /// `{acme}:org:<name>`
    #[must_use]
    pub fn org(&self, name: impl AsRef<[u8]>) -> Vec<u8> {
        self.derived(&Derived::Org(name.as_ref()))
    }

    /// `{acme}:orgwin:<name>`
    #[must_use]
    pub fn orgwin(&self, name: impl AsRef<[u8]>) -> Vec<u8> {
        self.derived(&Derived::OrgWin(name.as_ref()))
    }

    /// `{acme}:account:<name>`
    #[must_use]
    pub fn account(&self, name: impl AsRef<[u8]>) -> Vec<u8> {
        self.derived(&Derived::Account(name.as_ref()))
    }

    /// The store whose derived key this is, if it is the pool of a name, and that name.
    #[must_use]
    pub fn of_pool(key: &'a [u8]) -> Option<(Self, &'a str)> {
        let end = key.iter().position(|byte| *byte == b'}')?;
        let (store, rest) = key.strip_prefix(b"{")?.split_at_checked(end.checked_sub(1)?)?;
        let name = str::from_utf8(rest.strip_prefix(b"}:pool:")?).ok()?;
        Some((Self::parse(store).ok()?, name))
    }

    /// `{acme}:ips`
    #[must_use]
    pub fn ips(&self) -> Vec<u8> {
        self.derived(&Derived::Ips)
    }

    /// `{acme}:starts:<the last two characters>`, and the field of it, in which the ids of the keys with this visible beginning
    /// stand: so that two thousand keys are in a hash that the server keeps packed, instead of each in one of its own.
    #[must_use]
    pub fn starts<'s>(&self, start: &'s str) -> (Vec<u8>, &'s str) {
        let (field, end) = start.split_at_checked(start.len().saturating_sub(2)).unwrap_or((start, ""));
        (self.derived(&Derived::Starts(end.as_bytes())), field)
    }

    /// `{acme}:ip:<net>`
    #[must_use]
    pub fn ip(&self, net: Net) -> Vec<u8> {
        self.derived(&Derived::Ip(net.to_string().as_bytes()))
    }

    /// `{acme}:ids:vault`
    #[must_use]
    pub fn ids(&self, of: impl Into<Listed>) -> Vec<u8> {
        self.derived(&Derived::Ids(of.into()))
    }

    /// `{acme}:usage`
    #[must_use]
    pub fn usage(&self) -> Vec<u8> {
        self.derived(&Derived::Usage)
    }

    /// `{acme}:stats:all`
    #[must_use]
    pub fn stats(&self) -> Vec<u8> {
        self.derived(&Derived::Stats)
    }

    /// `{acme}:stats:<n>`, which holds the days of the 256 keys whose ids divided by 256 give `n`.
    #[must_use]
    pub fn days(&self, n: u64) -> Vec<u8> {
        self.derived(&Derived::Days(n))
    }
}

impl std::fmt::Display for StoreName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

/// A key derived from the name of a store.
#[derive(Debug, Clone, Copy)]
pub enum Derived<'a> {
    /// A key record.
    Key(u64),
    /// The hot state of a record.
    Win(u64),
    /// The ids that have a secret.
    Digest(&'a Digest),
    /// What ACQUIRE needs to choose among the vault keys of a name.
    Pool(&'a [u8]),
    /// The organizations: from id to name.
    Orgs,
    /// An organization.
    Org(&'a [u8]),
    /// The hot state of an organization.
    OrgWin(&'a [u8]),
    /// The windows of an account that several vault keys draw on.
    Account(&'a [u8]),
    /// The address rules.
    Ips,
    /// What an address claimed: the network that it counts as.
    Ip(&'a [u8]),
    /// Which ids are those of key records of a type, or of organizations: a bitmap.
    Ids(Listed),
    /// The ids of API keys by their visible beginnings, of which these are the last characters.
    Starts(&'a [u8]),
    /// The usage log.
    Usage,
    /// What the store counted as a whole.
    Stats,
    /// What its keys counted by days: the 256 keys of this number.
    Days(u64),
}

/// What a store lists by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Listed {
    /// Key records of a type.
    Keys(RecordType),
    /// Organizations.
    Orgs,
}

impl Listed {
    /// All that there is a list of; they share one counter of ids.
    pub const ALL: [Self; 3] = [Self::Keys(RecordType::Vault), Self::Keys(RecordType::Api), Self::Orgs];
}

impl From<RecordType> for Listed {
    fn from(of: RecordType) -> Self {
        Self::Keys(of)
    }
}

impl<'a> Derived<'a> {
    fn name(&self) -> &'a [u8] {
        match self {
            Self::Pool(name) | Self::Org(name) | Self::OrgWin(name) | Self::Account(name) | Self::Ip(name) => name,
            _ => &[],
        }
    }
}

/// Whether a key's name has the form of one that belongs to a store, which no bucket may have: `{`, a name of a store, `}:` and
/// one of the kinds of derived keys.
#[must_use]
pub fn belongs_to_store(key: &[u8]) -> bool {
    let Some((b'{', rest)) = key.split_first() else { return false };
    // A store's name has no brace, so the first one ends it, as it ends the hash tag.
    let Some(end) = rest.iter().take(MAX_STORE_BYTES + 1).position(|byte| *byte == b'}') else { return false };
    let Some((store, b"}:", kind)) = rest.split_at_checked(end).and_then(|(store, rest)| {
        let (braced, kind) = rest.split_at_checked(2)?;
        Some((store, braced, kind))
    }) else {
        return false;
    };
    is_store_name(store)
        && match kind {
            b"orgs" | b"ips" | b"usage" => true,
            _ => [
                &b"key:"[..],
                b"win:",
                b"digest:",
                b"pool:",
                b"org:",
                b"orgwin:",
                b"account:",
                b"ids:",
                b"starts:",
                b"ip:",
                b"stats:",
            ]
            .iter()
            .any(|prefix| kind.starts_with(prefix)),
        }
}

/// A name that a client gives (of a key, an organization, a label, source, login, batch, account): UTF-8 of 1 to `max` bytes
/// without control characters.
///
/// # Errors
/// [`Error::TooLong`] or [`Error::Invalid`] for `what`.
pub fn text<'a>(bytes: &'a [u8], what: &'static str, max: usize) -> Result<&'a str> {
    if bytes.len() > max {
        return Err(Error::TooLong { what, max });
    }
    str::from_utf8(bytes)
        .ok()
        .filter(|text| is_name(text))
        .ok_or(Error::Invalid { what, accepted: "UTF-8 text without control characters, and not empty" })
}

/// [`text`] of up to [`MAX_NAME_BYTES`].
///
/// # Errors
/// As there.
pub fn name<'a>(bytes: &'a [u8], what: &'static str) -> Result<&'a str> {
    text(bytes, what, MAX_NAME_BYTES)
}

/// Whether [`name`] would take this text: for what is read back from a record.
#[must_use]
pub fn is_name(text: &str) -> bool {
    // AUTH asks this of every name that it reads. Plain ASCII is settled without decoding characters, and without leaving the
    // loop early, which lets the compiler take many bytes at a time.
    let plain = text.bytes().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~'));
    (1..=MAX_NAME_BYTES).contains(&text.len()) && (plain || !text.contains(char::is_control))
}

/// What a client keeps with a record: a JSON object of at most [`MAX_META_BYTES`], in the client's own bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta<'a>(&'a str);

impl<'a> Meta<'a> {
    /// A client's bytes.
    ///
    /// # Errors
    /// [`Error::TooLong`]; [`Error::Invalid`] unless it is one JSON object, nested at most 128 deep.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        if bytes.len() > MAX_META_BYTES {
            return Err(Error::TooLong { what: "META", max: MAX_META_BYTES });
        }
        str::from_utf8(bytes)
            .ok()
            // Read in full, not only scanned: whoever reads it later with the same library shall not fail.
            .filter(|text| serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).is_ok())
            .map(Self)
            .ok_or(Error::Invalid { what: "META", accepted: "a JSON object" })
    }

    /// The JSON, byte for byte as it was given.
    #[must_use]
    pub const fn as_str(&self) -> &'a str {
        self.0
    }
}

fn is_store_name(bytes: &[u8]) -> bool {
    (1..=MAX_STORE_BYTES).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

/// Without the machinery of `format!`, for the path of every AUTH.
fn push_decimal(out: &mut Vec<u8>, mut value: u64) {
    let start = out.len();
    loop {
        out.push(b'0' + (value % 10) as u8);
        value /= 10;
        if value == 0 {
            break;
        }
    }
    if let Some(digits) = out.get_mut(start..) {
        digits.reverse();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_store_is_named_with_1_to_64_plain_characters() {
        let longest = "x".repeat(MAX_STORE_BYTES);
        for name in ["a", "acme", "Acme-1_2.3", "..", &longest] {
            assert_eq!(StoreName::parse(name.as_bytes()).unwrap().as_str(), name);
        }
        let too_long = "x".repeat(MAX_STORE_BYTES + 1);
        for name in ["", " ", "a b", "{a}", "a:b", "a*", "a\0", "\u{e9}", &too_long] {
            assert_eq!(StoreName::parse(name.as_bytes()), Err(Error::BadStore), "{name:?}");
        }
        assert_eq!(StoreName::parse(b"\xff"), Err(Error::BadStore));
    }

    #[test]
    fn derived_keys_carry_the_store_as_hash_tag_and_are_recognised() {
        let store = StoreName::parse(b"acme").unwrap();
        let digest = Digest::from_slice(&[0xfb; 32]).unwrap();
        for (key, expected) in [
            (store.key(17), "{acme}:key:17"),
            (store.key(0), "{acme}:key:0"),
            (store.key(u64::MAX), "{acme}:key:18446744073709551615"),
            (store.win(1024), "{acme}:win:1024"),
            (store.digest(&digest), "{acme}:digest:-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s"),
            (store.pool(b"openai \xff"), "{acme}:pool:openai \u{fffd}"),
            (store.orgs(), "{acme}:orgs"),
            (store.org("Acme: {Inc}"), "{acme}:org:Acme: {Inc}"),
            (store.orgwin("x"), "{acme}:orgwin:x"),
            (store.ips(), "{acme}:ips"),
            (store.ip(Net::parse(b"192.0.2.7").unwrap()), "{acme}:ip:192.0.2.7"),
            (store.ip(Net::parse(b"2001:db8::7").unwrap()), "{acme}:ip:2001:db8::/64"),
            (store.ids(RecordType::Vault), "{acme}:ids:vault"),
            (store.ids(RecordType::Api), "{acme}:ids:api"),
            (store.starts("kg_live_abcdef").0, "{acme}:starts:ef"),
            (store.ids(Listed::Orgs), "{acme}:ids:org"),
            (store.usage(), "{acme}:usage"),
            (store.stats(), "{acme}:stats:all"),
            (store.days(3), "{acme}:stats:3"),
        ] {
            assert_eq!(String::from_utf8_lossy(&key), expected);
            assert!(belongs_to_store(&key), "{expected}");
        }
    }

    #[test]
    fn a_buffer_is_used_again() {
        let store = StoreName::parse(b"acme").unwrap();
        let mut name = b"something longer than what comes, from another command".to_vec();
        store.write_derived(&Derived::Win(5), &mut name);
        assert_eq!(name, b"{acme}:win:5");
    }

    #[test]
    fn only_names_of_our_own_form_belong_to_a_store() {
        let tag = format!("{{{}}}", "x".repeat(MAX_STORE_BYTES));
        for key in ["{a}:key:", "{a}:key:no number", "{a}:usage", "{a}:stats:", "{a}:stats:x", &format!("{tag}:ips")] {
            assert!(belongs_to_store(key.as_bytes()), "{key:?}");
        }
        let long_tag = format!("{{{}}}", "x".repeat(MAX_STORE_BYTES + 1));
        for key in [
            "",
            "{",
            "{}",
            "{a}",
            "{a}:",
            "acme",
            "acme:key:17",
            "x{acme}:key:17",
            "{}:key:17",
            "{a b}:key:17",
            "{a}key:17",
            "{a}::key:17",
            "{a}:KEY:17",
            "{a}:keys:17",
            "{a}:key",
            "{a}:orgs:",
            "{a}:ips2",
            "{a}:ids",
            "{a}:usage:x",
            "{a}:stats",
            "{a}:claim:17",
            "{user}:login",
            "{a}}:key:1",
            "{{a}:key:1",
            &format!("{long_tag}:ips"),
        ] {
            assert!(!belongs_to_store(key.as_bytes()), "{key:?}");
        }
    }

    #[test]
    fn a_name_is_text_of_1_to_256_bytes() {
        let longest = "\u{e9}".repeat(MAX_NAME_BYTES / 2);
        for text in ["a", "Acme Inc.", "\u{65e5}\u{672c}", " ", "\u{1f511}", "a,b\"'{}", &longest] {
            assert_eq!(name(text.as_bytes(), "name"), Ok(text));
        }
        for bytes in [&b""[..], b"a\0", b"a\n", b"\x1b[0m", b"\x7f", "\u{85}".as_bytes(), b"\xff", b"a\xc3"] {
            assert!(matches!(name(bytes, "label"), Err(Error::Invalid { what: "label", .. })), "{bytes:?}");
        }
        let too_long = Err(Error::TooLong { what: "org", max: MAX_NAME_BYTES });
        assert_eq!(name(format!("{longest}x").as_bytes(), "org"), too_long);
        assert_eq!(text(b"abcd", "REASON", 3), Err(Error::TooLong { what: "REASON", max: 3 }));
    }

    #[test]
    fn meta_is_one_json_object_in_the_client_s_own_bytes() {
        let longest = format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_META_BYTES - 8));
        for json in ["{}", " { \"a\" : [1, 2.50, null] } ", "{\"a\":{\"b\":\"\\u00e9\u{e9}\"}}", &longest] {
            assert_eq!(Meta::parse(json.as_bytes()).unwrap().as_str(), json);
        }
        assert!(matches!(Meta::parse(format!("{longest} ").as_bytes()), Err(Error::TooLong { .. })));
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
        for json in [
            "",
            "[]",
            "1",
            "null",
            "\"a\"",
            "{",
            "{}{}",
            "{} x",
            "{a:1}",
            "{\"a\":1,}",
            "{\"a\":\"\n\"}",
            "{\"a\":1e999}",
            &deep,
        ] {
            assert!(matches!(Meta::parse(json.as_bytes()), Err(Error::Invalid { .. })), "{json:?}");
        }
        assert!(Meta::parse(b"{\"a\":\"\xff\"}").is_err());
    }

    proptest! {
        #[test]
        fn everything_here_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..100), text in "[{}:a-z]{0,30}") {
            for bytes in [bytes.as_slice(), text.as_bytes()] {
                let _ = (StoreName::parse(bytes), name(bytes, "x"), Meta::parse(bytes), belongs_to_store(bytes));
            }
        }

        #[test]
        fn every_derived_key_is_recognised(store in "[A-Za-z0-9._-]{1,64}", id: u64, name in proptest::collection::vec(any::<u8>(), 0..300)) {
            let store = StoreName::parse(store.as_bytes()).unwrap();
            for key in [store.key(id), store.win(id), store.pool(&name), store.org(&name), store.orgwin(&name), store.orgs(), store.ips()] {
                prop_assert!(belongs_to_store(&key));
            }
            prop_assert_eq!(store.key(id), format!("{{{store}}}:key:{id}").into_bytes());
        }
    }
}
