//! The keyring: the module's own secrets, and the one place where keys are made from them.
//!
//! ```text
//! prk         = HKDF-Extract-SHA-256(salt = 32 zero bytes, root)
//! subkey      = HKDF-Expand-SHA-256(prk, "keyguard/v1/" || purpose, 32)
//! fingerprint = HKDF-Expand-SHA-256(prk, "keyguard/v1/fingerprint", 8)
//! ```
//!
//! Each root key gives one subkey per purpose (`seal`, `digest/vault`, `digest/api`), so that no key is ever used in two ways.
//! The fingerprint names the root key in every ciphertext and digest; being an output of its own of HKDF, it tells nothing
//! about the root or the subkeys. Root keys are 32 random bytes: there is no password here to stretch.
//!
//! A keyring file may also name secrets of the packages that keyguard succeeds: Fernet keys, and *peppers*, the secret keys under
//! which `keyguard_python` digested its API keys. A pepper is known in records by a fingerprint, like a root key:
//!
//! ```text
//! fingerprint = SHA-256("keyguard/v1/pepper/" || label), its first 8 bytes
//! ```
//!
//! It is made of the label and not of the pepper: people chose those, and whoever has a copy of the data could try out guesses on
//! anything that is a function of one. So a pepper must keep its label as long as records use it, and under that label no other
//! text may be put in its place.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use arrayvec::ArrayString;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_PAD_INDIFFERENT};
use chacha20poly1305::XChaCha20Poly1305;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize as _, Zeroizing};

use crate::{fernet, parse};

/// The most keys of one keyring. A rotation a month for five years fits.
pub const MAX_KEYS: usize = 64;

/// The most Fernet keys of one keyring, and the most peppers.
pub const MAX_NAMED: usize = 64;

/// The longest label, in bytes.
pub const MAX_LABEL_BYTES: usize = 64;

/// The longest pepper, in bytes.
pub const MAX_PEPPER_BYTES: usize = 4096;

/// The name under which a `.netrc` file gives the keyring.
pub const NETRC_MACHINE: &str = "KEYGUARD_KEYRING";

/// The version of the keyring file that this release writes and reads.
const FILE_VERSION: u64 = 1;

/// Which root key something was sealed or digested under: 8 bytes, shown as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Fingerprint([u8; 8]);

impl Fingerprint {
    /// A fingerprint read from a ciphertext or a record.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// Its bytes, as they stand in a ciphertext.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// The text was not 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 16 hexadecimal digits")]
pub struct NotAFingerprint;

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        // `from_str_radix` alone would take a sign and any length.
        if text.len() != 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NotAFingerprint);
        }
        u64::from_str_radix(text, 16).map(|value| Self(value.to_be_bytes())).map_err(|_| NotAFingerprint)
    }
}

/// What is wrong with a keyring. It names the position of a key, counted from 1, never its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// No key at all.
    #[error("the keyring holds no key")]
    Empty,
    /// More than [`MAX_KEYS`].
    #[error("the keyring holds more than 64 keys")]
    TooManyKeys,
    /// Not base64 of 32 bytes.
    #[error("key {position} of the keyring is not 32 bytes in base64")]
    BadKey {
        /// Counted from 1.
        position: usize,
    },
    /// A key of zero bytes only: a placeholder, or a file that was never filled.
    #[error("key {position} of the keyring is all zeros")]
    ZeroKey {
        /// Counted from 1.
        position: usize,
    },
    /// A key that stands there twice.
    #[error("key {position} of the keyring is the same as an earlier one")]
    DuplicateKey {
        /// Counted from 1.
        position: usize,
    },
    /// A `created` that is not a time, or earlier than that of the key before it: the newest key must come last.
    #[error(
        "\"created\" of key {position} of the keyring is not an RFC 3339 time at or after the one before it; the newest key comes last"
    )]
    BadCreated {
        /// Counted from 1.
        position: usize,
    },
    /// More than [`MAX_NAMED`].
    #[error("\"{what}\" of the keyring holds more than 64")]
    TooManyNamed {
        /// `fernet` or `peppers`.
        what: &'static str,
    },
    /// Not a label. It is not shown: somebody may have put the secret there.
    #[error("label {position} in \"{what}\" of the keyring is not 1 to 64 of A-Z a-z 0-9 . _ -")]
    BadLabel {
        /// `fernet` or `peppers`.
        what: &'static str,
        /// Counted from 1.
        position: usize,
    },
    /// A label that stands there twice.
    #[error("label {position} in \"{what}\" of the keyring is the same as an earlier one")]
    DuplicateLabel {
        /// `fernet` or `peppers`.
        what: &'static str,
        /// Counted from 1.
        position: usize,
    },
    /// Not a key of Fernet.
    #[error("Fernet key {position} of the keyring is not 44 characters of URL-safe base64")]
    BadFernetKey {
        /// Counted from 1.
        position: usize,
    },
    /// A pepper without text, or with too much.
    #[error("pepper {position} of the keyring has not 1 to 4096 bytes")]
    BadPepper {
        /// Counted from 1.
        position: usize,
    },
    /// A file of a later version.
    #[error("the keyring is of a version that this release does not read")]
    UnknownVersion,
    /// A text that starts like JSON and is not a keyring file.
    #[error(
        "the keyring is not of the form {{\"version\":1,\"keys\":[{{\"key\":\"<base64>\",\"created\":\"<time>\"}}],\"fernet\":{{\"<label>\":\"<base64>\"}},\"peppers\":{{\"<label>\":\"<text>\"}}}}, of which \"fernet\" and \"peppers\" may be left out"
    )]
    BadFile,
    /// Other bytes than text.
    #[error("the keyring is not UTF-8 text")]
    NotText,
    /// The `.netrc` entry without a password.
    #[error("the .netrc entry KEYGUARD_KEYRING has no password")]
    NoPassword,
}

/// Why a keyring cannot be had from where it lies. It tells no path and nothing of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// No place names a keyring.
    #[error("there is no keyring-file, no environment variable KEYGUARD_KEYRING and no .netrc entry of that name")]
    Nowhere,
    /// The file that was named is not there.
    #[error("keyring-file does not exist")]
    NoFile,
    /// The system does not let it be read.
    #[error("the keyring cannot be read: {0}")]
    Unreadable(std::io::ErrorKind),
    /// A pipe or a device, which might never end.
    #[error("the keyring is not a regular file")]
    NotAFile,
    /// Larger than any keyring.
    #[error("the keyring is larger than 1 MiB")]
    TooLarge,
    /// Others than its owner can read it.
    #[error("the keyring has mode {0:04o}: it must be 0400 or 0600, so that nobody else can read it")]
    Mode(u32),
    /// It was read, and is none.
    #[error("{source_name}: {why}")]
    Content {
        /// `keyring-file`, `KEYGUARD_KEYRING` or `.netrc`.
        source_name: &'static str,
        /// What is wrong.
        why: KeyringError,
    },
}

/// 32 random bytes from which everything else is derived. Wiped when dropped, never printed.
#[derive(Clone)]
pub struct RootKey(Zeroizing<[u8; 32]>);

impl RootKey {
    /// A root key of fresh random bytes, or of a keyring's. None for all zeros, which no randomness gives.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Option<Self> {
        (*bytes != [0; 32]).then(|| Self(Zeroizing::new(*bytes)))
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey(..)")
    }
}

/// One key of the keyring, with all that is derived from it made ready: a call costs no key schedule.
#[derive(Clone)]
pub struct KeyringKey {
    fingerprint: Fingerprint,
    seal: XChaCha20Poly1305,
    digest_vault: Hmac<Sha256>,
    digest_api: Hmac<Sha256>,
}

impl KeyringKey {
    /// Derives everything from a root key.
    #[must_use]
    pub fn derive(root: &RootKey) -> Self {
        let hkdf = Hkdf::<Sha256>::new(None, root.0.as_slice());
        let fingerprint = expand::<8>(&hkdf, b"keyguard/v1/fingerprint");
        let seal = expand::<32>(&hkdf, b"keyguard/v1/seal");
        Self {
            fingerprint: Fingerprint(*fingerprint),
            seal: XChaCha20Poly1305::new((&*seal).into()),
            digest_vault: keyed_hmac(&expand(&hkdf, b"keyguard/v1/digest/vault")),
            digest_api: keyed_hmac(&expand(&hkdf, b"keyguard/v1/digest/api")),
        }
    }

    /// The name of this key.
    #[must_use]
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The cipher of the vault.
    pub(crate) const fn seal_cipher(&self) -> &XChaCha20Poly1305 {
        &self.seal
    }

    /// HMAC keyed for digests of vault secrets: cloning it saves the two compressions that take in the key.
    pub(crate) const fn vault_digest(&self) -> &Hmac<Sha256> {
        &self.digest_vault
    }

    /// As [`vault_digest`](Self::vault_digest), for API keys.
    pub(crate) const fn api_digest(&self) -> &Hmac<Sha256> {
        &self.digest_api
    }
}

impl fmt::Debug for KeyringKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyringKey({}, ..)", self.fingerprint)
    }
}

/// What a Fernet key or a pepper is called: 1 to [`MAX_LABEL_BYTES`] of `A-Za-z0-9._-`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(ArrayString<MAX_LABEL_BYTES>);

impl Label {
    /// A label; None if it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_label = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let label = ArrayString::from(text).ok().filter(|label| !label.is_empty())?;
        text.bytes().all(is_label).then_some(Self(label))
    }

    /// The label as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The secret key of a `keyguard_python`, under which API keys were digested there. Wiped when dropped, never printed.
#[derive(Clone)]
pub struct Pepper {
    label: Label,
    fingerprint: Fingerprint,
    text: Zeroizing<Vec<u8>>,
}

impl Pepper {
    /// None for a text that is empty or longer than [`MAX_PEPPER_BYTES`].
    #[must_use]
    pub fn new(label: Label, text: &[u8]) -> Option<Self> {
        let sized = (1..=MAX_PEPPER_BYTES).contains(&text.len());
        let hash: [u8; 32] =
            Sha256::new().chain_update(b"keyguard/v1/pepper/").chain_update(label.as_str()).finalize().into();
        let fingerprint = Fingerprint(*hash.first_chunk()?);
        sized.then(|| Self { label, fingerprint, text: Zeroizing::new(text.to_vec()) })
    }

    /// What it is called.
    #[must_use]
    pub fn label(&self) -> &str {
        self.label.as_str()
    }

    /// What it is known by in records: a function of its label alone.
    #[must_use]
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The pepper itself.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.text
    }

    /// Whether both are the same secret under the same label, in constant time for texts of equal length.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.label == other.label && bool::from(self.text.ct_eq(&other.text))
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pepper({}, ..)", self.fingerprint)
    }
}

/// One to [`MAX_KEYS`] distinct keys, oldest first. The newest seals and digests; all open. Beside them, what is named.
#[derive(Debug, Clone)]
pub struct Keyring {
    newest: KeyringKey,
    /// Oldest first.
    older: Vec<KeyringKey>,
    fernet: Vec<(Label, fernet::Key)>,
    peppers: Vec<Pepper>,
}

impl Keyring {
    /// A keyring of these root keys, oldest first.
    ///
    /// # Errors
    /// [`KeyringError`] when there is none, too many, or one twice.
    pub fn new<'a>(roots: impl IntoIterator<Item = &'a RootKey>) -> Result<Self, KeyringError> {
        let mut keys: Vec<KeyringKey> = Vec::new();
        for root in roots {
            if keys.len() == MAX_KEYS {
                return Err(KeyringError::TooManyKeys);
            }
            let key = KeyringKey::derive(root);
            if keys.iter().any(|other| other.fingerprint == key.fingerprint) {
                return Err(KeyringError::DuplicateKey { position: keys.len() + 1 });
            }
            keys.push(key);
        }
        let newest = keys.pop().ok_or(KeyringError::Empty)?;
        Ok(Self { newest, older: keys, fernet: Vec::new(), peppers: Vec::new() })
    }

    /// Reads a keyring file or the value of an environment variable: the JSON that [`new_file`] writes, or, when the text
    /// does not start with `{`, keys in base64 (standard or URL-safe, padded or not) with commas, spaces or newlines between,
    /// oldest first.
    ///
    /// Only the file can name Fernet keys and peppers. Fields of it that this release does not know are passed over.
    ///
    /// # Errors
    /// [`KeyringError`], which says what and at which key.
    pub fn parse(text: &[u8]) -> Result<Self, KeyringError> {
        let text = str::from_utf8(text).map_err(|_| KeyringError::NotText)?.trim_ascii();
        if text.starts_with('{') { keyring_of_file(text) } else { Self::new(&roots_of_list(text)?) }
    }

    /// Reads the keyring from the text of a `.netrc` file: the password of `machine KEYGUARD_KEYRING`, in the forms that
    /// [`parse`](Self::parse) takes. None when no such machine is named; the `default` entry is for other machines.
    ///
    /// # Errors
    /// [`KeyringError`], when there is such an entry and it gives no keyring.
    pub fn from_netrc(text: &[u8]) -> Result<Option<Self>, KeyringError> {
        let text = str::from_utf8(text).map_err(|_| KeyringError::NotText)?;
        netrc_password(text)?.map(|password| Self::parse(password.as_bytes())).transpose()
    }

    /// The key that seals and digests.
    #[must_use]
    pub const fn newest(&self) -> &KeyringKey {
        &self.newest
    }

    /// The key of this fingerprint.
    #[must_use]
    pub fn find(&self, fingerprint: Fingerprint) -> Option<&KeyringKey> {
        self.newest_first().find(|key| key.fingerprint == fingerprint)
    }

    /// All keys, the one in use first.
    pub fn newest_first(&self) -> impl Iterator<Item = &KeyringKey> {
        std::iter::once(&self.newest).chain(self.older.iter().rev())
    }

    /// The Fernet key of this label.
    #[must_use]
    pub fn fernet(&self, label: &str) -> Option<&fernet::Key> {
        self.fernet.iter().find(|(other, _)| other.as_str() == label).map(|(_, key)| key)
    }

    /// The pepper of this label.
    #[must_use]
    pub fn pepper(&self, label: &str) -> Option<&Pepper> {
        self.peppers.iter().find(|pepper| pepper.label() == label)
    }

    /// All peppers, in the order of the file.
    pub fn peppers(&self) -> impl Iterator<Item = &Pepper> {
        self.peppers.iter()
    }

    /// Whether what is known in records by this fingerprint is there: a key or a pepper.
    #[must_use]
    pub fn holds(&self, fingerprint: Fingerprint) -> bool {
        self.find(fingerprint).is_some() || self.peppers.iter().any(|pepper| pepper.fingerprint == fingerprint)
    }

    /// What of this keyring records may use and another one lacks: a key, or a pepper whose label is gone or names another text.
    #[must_use]
    pub fn lacking_in(&self, other: &Self) -> Option<Fingerprint> {
        let key = self.newest_first().map(KeyringKey::fingerprint).find(|key| other.find(*key).is_none());
        let has = |pepper: &Pepper| other.pepper(pepper.label()).is_some_and(|theirs| theirs.matches(pepper));
        key.or_else(|| self.peppers().find(|pepper| !has(pepper)).map(Pepper::fingerprint))
    }

    /// The same keyring without one of its older keys, or without a pepper. None for the newest, and for what it does not hold.
    #[must_use]
    pub fn without(&self, fingerprint: Fingerprint) -> Option<Self> {
        let mut less = self.clone();
        less.older.retain(|key| key.fingerprint != fingerprint);
        less.peppers.retain(|pepper| pepper.fingerprint != fingerprint);
        (less.older.len() + less.peppers.len() < self.older.len() + self.peppers.len()).then_some(less)
    }

    /// How many keys there are; at least one.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a keyring is never empty")]
    pub const fn len(&self) -> usize {
        self.older.len() + 1
    }
}

/// The text of a fresh keyring file with one key. `created` is an RFC 3339 time, written as it is given.
#[must_use]
pub fn new_file(root: &RootKey, created: &str) -> Zeroizing<String> {
    let mut base64 = Zeroizing::new([0_u8; 44]);
    // 32 bytes are 44 characters of base64, so neither of the two can fail.
    let key = match STANDARD.encode_slice(root.0.as_slice(), base64.as_mut_slice()) {
        Ok(_) => str::from_utf8(base64.as_slice()).unwrap_or_default(),
        Err(_) => "",
    };
    // Quotes and backslashes would break the file; a time has none.
    let created = created.replace(['"', '\\'], "");
    // The whole capacity at once: a string that grows leaves copies of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(128 + created.len()));
    for part in
        ["{\n  \"version\": 1,\n  \"keys\": [\n    {\"key\": \"", key, "\", \"created\": \"", &created, "\"}\n  ]\n}\n"]
    {
        text.push_str(part);
    }
    text
}

#[allow(clippy::expect_used, reason = "HKDF-SHA-256 expands to 8,160 bytes; no input reaches this length")]
fn expand<const N: usize>(hkdf: &Hkdf<Sha256>, info: &[u8]) -> Zeroizing<[u8; N]> {
    let mut out = Zeroizing::new([0; N]);
    hkdf.expand(info, out.as_mut_slice()).expect("short enough for HKDF");
    out
}

#[allow(clippy::expect_used, reason = "HMAC takes keys of any length; no input reaches this")]
fn keyed_hmac(subkey: &[u8; 32]) -> Hmac<Sha256> {
    Hmac::new_from_slice(subkey).expect("HMAC takes keys of any length")
}

/// Base64 of exactly 32 bytes, in either alphabet, padded or not.
fn root_of_base64(text: &str, position: usize) -> Result<RootKey, KeyringError> {
    let bad = KeyringError::BadKey { position };
    let mut standard = Zeroizing::new([0_u8; 44]);
    let characters = standard.get_mut(..text.len()).ok_or(bad)?;
    for (to, from) in characters.iter_mut().zip(text.bytes()) {
        *to = match from {
            b'-' => b'+',
            b'_' => b'/',
            other => other,
        };
    }
    // One byte more than wanted, as the decoder asks for room for every full group of four.
    let mut decoded = Zeroizing::new([0_u8; 33]);
    let length = STANDARD_PAD_INDIFFERENT.decode_slice(characters, decoded.as_mut_slice()).map_err(|_| bad)?;
    if length != 32 {
        return Err(bad);
    }
    let mut root = Zeroizing::new([0; 32]);
    for (to, from) in root.iter_mut().zip(decoded.iter()) {
        *to = *from;
    }
    RootKey::new(&root).ok_or(KeyringError::ZeroKey { position })
}

fn roots_of_list(text: &str) -> Result<Vec<RootKey>, KeyringError> {
    text.split(|c: char| c == ',' || c.is_ascii_whitespace())
        .filter(|item| !item.is_empty())
        .take(MAX_KEYS + 1)
        .enumerate()
        .map(|(index, item)| root_of_base64(item, index + 1))
        .collect()
}

fn keyring_of_file(text: &str) -> Result<Keyring, KeyringError> {
    #[derive(serde::Deserialize)]
    struct Version {
        version: u64,
    }
    #[derive(serde::Deserialize)]
    struct File<'a> {
        #[serde(borrow)]
        keys: Vec<Key<'a>>,
        #[serde(borrow, default)]
        fernet: Named<'a>,
        #[serde(borrow, default)]
        peppers: Named<'a>,
    }
    #[derive(serde::Deserialize)]
    struct Key<'a> {
        #[serde(borrow)]
        key: SecretText<'a>,
        #[serde(borrow)]
        created: Option<Cow<'a, str>>,
    }

    // The version first: a later one may have changed everything else.
    let Version { version } = serde_json::from_str(text).map_err(|_| KeyringError::BadFile)?;
    if version != FILE_VERSION {
        return Err(KeyringError::UnknownVersion);
    }
    let file: File<'_> = serde_json::from_str(text).map_err(|_| KeyringError::BadFile)?;
    if file.keys.len() > MAX_KEYS {
        return Err(KeyringError::TooManyKeys);
    }
    let mut latest_ms = 0;
    let mut roots = Vec::with_capacity(file.keys.len());
    for (index, key) in file.keys.iter().enumerate() {
        let position = index + 1;
        if let Some(created) = &key.created {
            latest_ms = parse::rfc3339_ms(created.as_bytes())
                .filter(|created_ms| *created_ms >= latest_ms)
                .ok_or(KeyringError::BadCreated { position })?;
        }
        roots.push(root_of_base64(&key.key.0, position)?);
    }
    let mut keyring = Keyring::new(&roots)?;
    for (index, (label, key)) in file.fernet.labelled("fernet")?.into_iter().enumerate() {
        let key = fernet::Key::parse(key).ok_or(KeyringError::BadFernetKey { position: index + 1 })?;
        keyring.fernet.push((label, key));
    }
    for (index, (label, text)) in file.peppers.labelled("peppers")?.into_iter().enumerate() {
        let pepper = Pepper::new(label, text.as_bytes()).ok_or(KeyringError::BadPepper { position: index + 1 })?;
        keyring.peppers.push(pepper);
    }
    Ok(keyring)
}

/// Secrets by their labels, in the order of the file. A map would take the last of two with one label for the only one.
#[derive(Default)]
struct Named<'a>(Vec<(SecretText<'a>, SecretText<'a>)>);

impl Named<'_> {
    fn labelled(&self, what: &'static str) -> Result<Vec<(Label, &str)>, KeyringError> {
        if self.0.len() > MAX_NAMED {
            return Err(KeyringError::TooManyNamed { what });
        }
        let mut labelled: Vec<(Label, &str)> = Vec::with_capacity(self.0.len());
        for (index, (label, text)) in self.0.iter().enumerate() {
            let position = index + 1;
            let label = Label::parse(&label.0).ok_or(KeyringError::BadLabel { what, position })?;
            if labelled.iter().any(|(other, _)| *other == label) {
                return Err(KeyringError::DuplicateLabel { what, position });
            }
            labelled.push((label, &text.0));
        }
        Ok(labelled)
    }
}

impl<'de: 'a, 'a> serde::Deserialize<'de> for Named<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Named<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("secrets by their labels")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut named = Vec::new();
                // One more than there may be tells that there are too many.
                while let Some(entry) = map.next_entry()? {
                    if named.len() <= MAX_NAMED {
                        named.push(entry);
                    }
                }
                Ok(Named(named))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// A secret as it stands in JSON: borrowed, or, where a `/` was written `\/`, a copy that is wiped. Labels too: somebody may have
/// put a secret in the place of one.
#[derive(serde::Deserialize)]
struct SecretText<'a>(#[serde(borrow)] Cow<'a, str>);

impl Drop for SecretText<'_> {
    fn drop(&mut self) {
        if let Cow::Owned(copy) = &mut self.0 {
            copy.zeroize();
        }
    }
}

/// The password of the first entry for our machine.
fn netrc_password(text: &str) -> Result<Option<&str>, KeyringError> {
    let mut rest = text;
    let mut ours = false;
    while let Some(token) = next_token(&mut rest) {
        match token {
            "machine" => {
                if ours {
                    return Err(KeyringError::NoPassword);
                }
                ours = next_token(&mut rest) == Some(NETRC_MACHINE);
            }
            "default" if ours => return Err(KeyringError::NoPassword),
            "login" | "account" => {
                next_token(&mut rest);
            }
            "password" => {
                let password = next_token(&mut rest);
                if ours {
                    return password.map(Some).ok_or(KeyringError::NoPassword);
                }
            }
            "macdef" => rest = after_blank_line(rest),
            comment if comment.starts_with('#') => rest = rest.split_once('\n').map_or("", |(_, lines)| lines),
            _ => {}
        }
    }
    if ours { Err(KeyringError::NoPassword) } else { Ok(None) }
}

/// The next word, or the inside of the next pair of double quotes.
fn next_token<'a>(rest: &mut &'a str) -> Option<&'a str> {
    let text = rest.trim_ascii_start();
    if text.is_empty() {
        return None;
    }
    let (token, behind) = match text.strip_prefix('"').and_then(|quoted| quoted.split_once('"')) {
        Some(inside) => inside,
        None => text.split_at_checked(text.find(|c: char| c.is_ascii_whitespace()).unwrap_or(text.len()))?,
    };
    *rest = behind;
    Some(token)
}

/// A macro ends at the first blank line. Its name stands on the line of `macdef`, so that line is never blank.
fn after_blank_line(text: &str) -> &str {
    let mut rest = text;
    while let Some((line, lines)) = rest.split_once('\n') {
        rest = lines;
        if line.trim_ascii().is_empty() {
            return rest;
        }
    }
    ""
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const B: &str = "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=";
    const B_URL: &str = "-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s";
    const ZERO: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    /// The keyring of the test vectors in this crate: its newest key has the root 00 01 02 ... 1f.
    pub(crate) fn keyring() -> Keyring {
        Keyring::parse(format!("{B},{A}").as_bytes()).unwrap()
    }

    fn fingerprints(keyring: &Keyring) -> Vec<String> {
        keyring.newest_first().map(|key| key.fingerprint().to_string()).collect()
    }

    /// Computed by another implementation (Python's hmac and hashlib).
    const FINGERPRINT_A: &str = "46b786b0bde1a709";

    #[test]
    fn fingerprints_are_what_another_implementation_says() {
        let keyring = Keyring::parse(A.as_bytes()).unwrap();
        assert_eq!(fingerprints(&keyring), [FINGERPRINT_A]);
        assert_eq!(FINGERPRINT_A.parse(), Ok(keyring.newest().fingerprint()));
    }

    #[test]
    fn a_fingerprint_is_16_hexadecimal_digits() {
        for text in [
            "",
            "46b786b0bde1a70",
            "46b786b0bde1a7090",
            "+6b786b0bde1a709",
            "46b786b0bde1a70g",
            "46b786b0bde1a70\u{e9}",
        ] {
            assert_eq!(text.parse::<Fingerprint>(), Err(NotAFingerprint), "{text:?}");
        }
        assert_eq!("46B786B0BDE1A709".parse::<Fingerprint>().unwrap().to_string(), FINGERPRINT_A);
        assert_eq!(Fingerprint::from_bytes([0, 0, 0, 0, 0, 0, 0, 1]).to_string(), "0000000000000001");
    }

    #[test]
    fn a_list_of_keys_has_the_newest_last() {
        let b = fingerprints(&Keyring::parse(B.as_bytes()).unwrap()).remove(0);
        for text in [
            format!("{B},{A}"),
            format!("{B_URL},{A}"),
            format!("{B_URL},{}", A.trim_end_matches('=')),
            format!("  {B}\n\n{A}\n"),
            format!("{B} ,\r\n\t{A},"),
            format!(r#"{{"version":1,"keys":[{{"key":"{B}"}},{{"key":"{A}"}}]}}"#),
            // As PHP and others write a slash.
            format!(r#"{{"version":1,"keys":[{{"key":"{}"}},{{"key":"{A}"}}]}}"#, B.replace('/', "\\/")),
            format!(
                r#" {{"vendors":{{"old":["x"]}},"keys":[{{"key":"{B_URL}","created":"2026-01-01T00:00:00Z","note":1}},
                {{"created":"2026-01-01T00:00:00Z","key":"{A}"}}],"peppers":{{}},"version":1}} "#
            ),
        ] {
            let keyring = Keyring::parse(text.as_bytes()).unwrap();
            assert_eq!(fingerprints(&keyring), [FINGERPRINT_A.to_owned(), b.clone()], "{text}");
            assert_eq!(keyring.len(), 2);
            for key in keyring.newest_first() {
                assert_eq!(keyring.find(key.fingerprint()).unwrap().fingerprint(), key.fingerprint());
            }
            assert!(keyring.find(Fingerprint::from_bytes([0; 8])).is_none());
        }
    }

    #[test]
    fn a_bad_keyring_says_what_is_wrong_and_where_and_not_with_what() {
        let file = |keys: &str| format!(r#"{{"version":1,"keys":[{keys}]}}"#);
        let many = |count: u8| {
            let key = |n| STANDARD.encode([n; 32]);
            (1..=count).map(key).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(Keyring::parse(many(64).as_bytes()).unwrap().len(), MAX_KEYS);
        let cases = [
            (String::new(), KeyringError::Empty),
            (" ,\n".to_owned(), KeyringError::Empty),
            (file(""), KeyringError::Empty),
            (many(65), KeyringError::TooManyKeys),
            ("hunter2".to_owned(), KeyringError::BadKey { position: 1 }),
            (format!("{A},hunter2"), KeyringError::BadKey { position: 2 }),
            (format!("{A}{B}"), KeyringError::BadKey { position: 1 }),
            (A[4..].to_owned(), KeyringError::BadKey { position: 1 }),
            (format!("AAAA{A}"), KeyringError::BadKey { position: 1 }),
            (A.replace("8=", "9="), KeyringError::BadKey { position: 1 }),
            (file(r#"{"key":"hunter2"}"#), KeyringError::BadKey { position: 1 }),
            (ZERO.to_owned(), KeyringError::ZeroKey { position: 1 }),
            (format!("{A},{ZERO}"), KeyringError::ZeroKey { position: 2 }),
            (format!("{A},{B},{A}"), KeyringError::DuplicateKey { position: 3 }),
            (format!("{B},{B_URL}"), KeyringError::DuplicateKey { position: 2 }),
            (file(&format!(r#"{{"key":"{A}","created":"hunter2"}}"#)), KeyringError::BadCreated { position: 1 }),
            (
                file(&format!(
                    r#"{{"key":"{A}","created":"2026-02-01T00:00:00Z"}},{{"key":"{B}","created":"2026-01-01T00:00:00Z"}}"#
                )),
                KeyringError::BadCreated { position: 2 },
            ),
            (format!(r#"{{"version":2,"keys":"{A}"}}"#), KeyringError::UnknownVersion),
            (format!(r#"{{"version":"1","keys":[{{"key":"{A}"}}]}}"#), KeyringError::BadFile),
            (format!(r#"{{"keys":[{{"key":"{A}"}}]}}"#), KeyringError::BadFile),
            (r#"{"version":1}"#.to_owned(), KeyringError::BadFile),
            (file(r#"{"created":"2026-01-01T00:00:00Z"}"#), KeyringError::BadFile),
            (file(r#"{"key":1}"#), KeyringError::BadFile),
            ("{".to_owned(), KeyringError::BadFile),
        ];
        for (text, expected) in cases {
            let error = Keyring::parse(text.as_bytes()).map(|keyring| keyring.len()).unwrap_err();
            assert_eq!(error, expected, "{text}");
            assert!(!error.to_string().contains("hunter2"), "{text}");
        }
        assert_eq!(Keyring::parse(b"\xff").map(|_| ()).unwrap_err(), KeyringError::NotText);
    }

    #[test]
    fn only_an_older_key_can_be_left_out() {
        let keyring = keyring();
        let [newest, older] = fingerprints(&keyring).try_into().unwrap();
        let without = |fingerprint: &str| keyring.without(fingerprint.parse().unwrap());
        assert_eq!(fingerprints(&without(&older).unwrap()), [&*newest]);
        assert!(without(&newest).is_none());
        assert!(without("0000000000000000").is_none());
        assert_eq!(fingerprints(&keyring), [newest, older], "the keyring itself stays as it was");
    }

    fn named(fernet: &str, peppers: &str) -> String {
        format!(r#"{{"version":1,"keys":[{{"key":"{A}"}}],"fernet":{fernet},"peppers":{peppers}}}"#)
    }

    const FERNET: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";

    #[test]
    fn a_file_names_fernet_keys_and_peppers() {
        let text = named(
            &format!(r#"{{"keystore":"{FERNET}","a.b_c-9":"{}="}}"#, "A".repeat(43)),
            r#"{"old":"super-secret \u00e9\"","older":"x"}"#,
        );
        let keyring = Keyring::parse(text.as_bytes()).unwrap();
        assert!(keyring.fernet("keystore").is_some() && keyring.fernet("a.b_c-9").is_some());
        assert!(keyring.fernet("old").is_none() && keyring.pepper("keystore").is_none());
        assert_eq!(keyring.pepper("old").unwrap().as_bytes(), "super-secret \u{e9}\"".as_bytes());
        assert_eq!(keyring.peppers().map(Pepper::label).collect::<Vec<_>>(), ["old", "older"]);
        for pepper in keyring.peppers() {
            assert!(keyring.holds(pepper.fingerprint()) && keyring.find(pepper.fingerprint()).is_none());
        }
        assert!(keyring.holds(keyring.newest().fingerprint()) && !keyring.holds(Fingerprint([0; 8])));
        assert_eq!(fingerprints(&keyring), [FINGERPRINT_A], "what is named is no key");
    }

    #[test]
    fn the_fingerprint_of_a_pepper_is_a_function_of_its_label_alone() {
        let pepper = |label, text: &[u8]| Pepper::new(Label::parse(label).unwrap(), text).unwrap();
        // Computed with Python's hashlib.
        assert_eq!(pepper("old", b"x").fingerprint().to_string(), "79a328593eef9840");
        assert_eq!(pepper("old", b"x").fingerprint(), pepper("old", b"y").fingerprint());
        assert_ne!(pepper("old", b"x").fingerprint(), pepper("older", b"x").fingerprint());
        assert!(pepper("old", b"x").matches(&pepper("old", b"x")));
        for other in [pepper("old", b"y"), pepper("old", b"xx"), pepper("older", b"x")] {
            assert!(!pepper("old", b"x").matches(&other));
        }
    }

    #[test]
    fn what_is_wrong_with_what_is_named_is_told_by_its_position() {
        let list = |count: usize, value: &str| {
            let entries: Vec<String> = (0..count).map(|n| format!(r#""l{n}":"{value}""#)).collect();
            format!("{{{}}}", entries.join(","))
        };
        assert_eq!(Keyring::parse(named(&list(64, FERNET), &list(64, "p")).as_bytes()).unwrap().peppers().count(), 64);
        let long = format!(r#"{{"{}":"p"}}"#, "x".repeat(65));
        let position = 2;
        for (fernet, peppers, error) in [
            (list(65, FERNET), list(1, "p"), KeyringError::TooManyNamed { what: "fernet" }),
            (list(0, ""), list(65, "p"), KeyringError::TooManyNamed { what: "peppers" }),
            (list(1, FERNET), long, KeyringError::BadLabel { what: "peppers", position: 1 }),
            (format!(r#"{{"":"{FERNET}"}}"#), list(0, ""), KeyringError::BadLabel { what: "fernet", position: 1 }),
            (list(0, ""), r#"{"a":"p","a b":"hunter2"}"#.into(), KeyringError::BadLabel { what: "peppers", position }),
            (list(0, ""), r#"{"a":"p","a":"q"}"#.into(), KeyringError::DuplicateLabel { what: "peppers", position }),
            (format!(r#"{{"a":"{FERNET}","b":"hunter2"}}"#), list(0, ""), KeyringError::BadFernetKey { position }),
            (list(0, ""), r#"{"a":"p","b":""}"#.into(), KeyringError::BadPepper { position }),
            (list(0, ""), list(1, &"p".repeat(4097)), KeyringError::BadPepper { position: 1 }),
            (r#"["hunter2"]"#.into(), list(0, ""), KeyringError::BadFile),
            (list(0, ""), r#"{"a":["hunter2"]}"#.into(), KeyringError::BadFile),
            (list(0, ""), "null".into(), KeyringError::BadFile),
        ] {
            let found = Keyring::parse(named(&fernet, &peppers).as_bytes()).map(drop).unwrap_err();
            assert_eq!(found, error);
            assert!(!found.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn a_keyring_lacks_what_another_one_has_under_another_label_or_text() {
        let keyring = |peppers| Keyring::parse(named("{}", peppers).as_bytes()).unwrap();
        let full = keyring(r#"{"old":"p","older":"q"}"#);
        let [old, older] = ["old", "older"].map(|label| full.pepper(label).unwrap().fingerprint());
        assert_eq!(full.lacking_in(&full), None);
        assert_eq!(full.lacking_in(&keyring(r#"{"new":"r","older":"q","old":"p"}"#)), None);
        assert_eq!(full.lacking_in(&keyring(r#"{"older":"q"}"#)), Some(old));
        assert_eq!(full.lacking_in(&keyring(r#"{"older":"q","old":"typo"}"#)), Some(old));
        assert_eq!(full.lacking_in(&keyring(r#"{"old":"p","renamed":"q"}"#)), Some(older));
        let key = self::keyring();
        assert_eq!(key.lacking_in(&full), Some(key.newest_first().nth(1).unwrap().fingerprint()));
        let without = full.without(old).unwrap();
        assert!(!without.holds(old) && without.holds(older) && without.len() == 1);
        assert_eq!(full.lacking_in(&without), Some(old));
        assert!(without.without(old).is_none());
    }

    #[test]
    fn netrc_gives_the_password_of_our_machine() {
        let ours = format!("machine KEYGUARD_KEYRING login keyguard password {A}");
        let found = [
            ours.clone(),
            format!("# a comment: machine KEYGUARD_KEYRING password no\n{ours}\n"),
            format!("machine example.com login a password b\n{ours}\ndefault login c password d"),
            format!("machine example.com login machine password password {ours}"),
            format!("machine KEYGUARD_KEYRING\n\tpassword {A}\n\tlogin x"),
            format!("machine KEYGUARD_KEYRING password \"{A}\""),
            format!("macdef init\nmachine KEYGUARD_KEYRING password no\n\n{ours}"),
            format!("{ours}\nmachine KEYGUARD_KEYRING password {B}"),
            format!("machine \"a b\" login \"c d\" password \"machine KEYGUARD_KEYRING\" {ours}"),
        ];
        for text in found {
            let keyring = Keyring::from_netrc(text.as_bytes()).unwrap().expect(&text);
            assert_eq!(fingerprints(&keyring), [FINGERPRINT_A], "{text}");
        }
        let two =
            Keyring::from_netrc(format!("machine KEYGUARD_KEYRING password {B},{A}").as_bytes()).unwrap().unwrap();
        assert_eq!(two.len(), 2);
        for text in [
            String::new(),
            "machine".to_owned(),
            format!("machine example.com password {A}"),
            format!("machine keyguard_keyring password {A}"),
            format!("default password {A}"),
            format!("macdef init\n{ours}\n"),
            format!("# {ours}"),
        ] {
            assert!(Keyring::from_netrc(text.as_bytes()).unwrap().is_none(), "{text}");
        }
        for (text, error) in [
            ("machine KEYGUARD_KEYRING", KeyringError::NoPassword),
            ("machine KEYGUARD_KEYRING password", KeyringError::NoPassword),
            ("machine KEYGUARD_KEYRING login x default password y", KeyringError::NoPassword),
            ("machine KEYGUARD_KEYRING login x machine a password y", KeyringError::NoPassword),
            ("machine KEYGUARD_KEYRING password hunter2", KeyringError::BadKey { position: 1 }),
        ] {
            assert_eq!(Keyring::from_netrc(text.as_bytes()).map(|_| ()).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn a_new_file_reads_back() {
        let root = RootKey::new(&std::array::from_fn(|index| index as u8)).unwrap();
        let text = new_file(&root, "2026-01-01T00:00:00Z");
        assert!(text.contains(A) && text.contains("2026-01-01T00:00:00Z"));
        assert_eq!(fingerprints(&Keyring::parse(text.as_bytes()).unwrap()), [FINGERPRINT_A]);
        assert!(RootKey::new(&[0; 32]).is_none());
    }

    #[test]
    fn nothing_prints_a_key() {
        let root = RootKey::new(&[7; 32]).unwrap();
        let key = KeyringKey::derive(&root);
        assert_eq!(format!("{root:?}"), "RootKey(..)");
        assert_eq!(format!("{key:?}"), format!("KeyringKey({}, ..)", key.fingerprint()));
        let text = named(&format!(r#"{{"a":"{FERNET}"}}"#), r#"{"b":"hunter2"}"#);
        let printed = format!("{:?}", Keyring::parse(text.as_bytes()).unwrap());
        assert!(!printed.contains("hunter2") && !printed.contains("104, 117, 110") && printed.contains("Key(..)"));
    }

    proptest! {
        #[test]
        fn parsing_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..80), text in "[{}\\[\\]\":, a-z0-9\n#]{0,80}") {
            let _ = (Keyring::parse(&bytes), Keyring::from_netrc(&bytes));
            let _ = (Keyring::parse(text.as_bytes()), Keyring::from_netrc(text.as_bytes()));
        }

        #[test]
        fn netrc_parsing_is_total(words in proptest::collection::vec("machine|KEYGUARD_KEYRING|password|login|default|macdef|\n|\n\n|#|\"|x", 0..12)) {
            let _ = Keyring::from_netrc(words.join(" ").as_bytes());
            let _ = Keyring::from_netrc(words.concat().as_bytes());
        }
    }
}
