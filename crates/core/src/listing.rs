//! Which key records a command is about, and in which order: the index of ids, filters, sort orders, and the sets of a vault.

use crate::args::{Args, Argument, once};
use crate::error::{Error, Result};
use crate::names::name;
use crate::record::{ApiRecord, Record, RecordType, Status, VaultRecord};

/// The ids after `after` that a bitmap lists, in order, and at most `n` of them.
///
/// Id `N` is listed when the bit is set that the server's SETBIT calls `N`: the first is the most significant of the first byte.
/// Any bytes are such a bitmap. A store may have had ten million ids, so that runs of zeros are passed 64 ids at a time.
#[must_use]
pub fn ids_after(bitmap: &[u8], after: u64, n: usize) -> Vec<u64> {
    let mut ids = Vec::new();
    let Some(first) = after.checked_add(1) else { return ids };
    let rest = usize::try_from(first / 64).ok().and_then(|word| bitmap.get(word.checked_mul(8)?..));
    let (words, tail) = rest.unwrap_or_default().as_chunks();
    let mut last = [0; 8];
    last.iter_mut().zip(tail).for_each(|(byte, tail)| *byte = *tail);
    let mut base = first / 64 * 64;
    // The ids before the first that is asked for are masked in the word that they share with it.
    let mut mask = u64::MAX >> (first % 64);
    for word in words.iter().chain(std::iter::once(&last)) {
        let mut bits = u64::from_be_bytes(*word) & mask;
        mask = u64::MAX;
        while bits != 0 {
            if ids.len() >= n {
                return ids;
            }
            let bit = bits.leading_zeros();
            ids.push(base + u64::from(bit));
            bits &= !(1 << 63 >> bit);
        }
        base += 64;
    }
    ids
}

/// Whether a bitmap lists an id: see [`ids_after`].
#[must_use]
pub fn is_listed(bitmap: &[u8], id: u64) -> bool {
    let byte = usize::try_from(id / 8).ok().and_then(|byte| bitmap.get(byte));
    byte.is_some_and(|byte| byte & (0x80 >> (id % 8)) != 0)
}

/// What a record must be for a command to take it: every option that was given must hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filter<'a> {
    /// TYPE, if it was given: see [`record_type`](Self::record_type).
    pub of_type: Option<RecordType>,
    /// NAME: of a vault key its name, of an API key its label.
    pub name: Option<&'a str>,
    /// SOURCE, which only vault keys have.
    pub source: Option<&'a str>,
    /// LOGIN, which only vault keys have.
    pub login: Option<&'a str>,
    /// BATCH, which only vault keys have.
    pub batch: Option<&'a str>,
    /// ACCOUNT, which only vault keys have.
    pub account: Option<&'a str>,
    /// ORG, which only API keys have.
    pub org: Option<&'a str>,
    /// ACTIVE: whether the status is active.
    pub active: Option<bool>,
    /// EXPIRED: whether the expiry has passed.
    pub expired: Option<bool>,
}

impl<'a> Filter<'a> {
    /// The words that [`take`](Self::take) knows.
    pub const OPTIONS: [&'static str; 9] =
        ["TYPE", "NAME", "SOURCE", "LOGIN", "BATCH", "ACCOUNT", "ORG", "ACTIVE", "EXPIRED"];

    /// Takes the value of `option`, if it is one of [`OPTIONS`](Self::OPTIONS); else takes nothing and says so.
    ///
    /// # Errors
    /// [`Error::MissingValue`], [`Error::Repeated`], or that the value cannot be one.
    pub fn take<A: Argument<'a>>(&mut self, option: &'static str, args: &mut Args<'a, A>) -> Result<bool> {
        let text = match option {
            "NAME" => &mut self.name,
            "SOURCE" => &mut self.source,
            "LOGIN" => &mut self.login,
            "BATCH" => &mut self.batch,
            "ACCOUNT" => &mut self.account,
            "ORG" => &mut self.org,
            "TYPE" => {
                once(&mut self.of_type, option, RecordType::parse(args.value(option)?)?)?;
                return Ok(true);
            }
            "ACTIVE" => {
                once(&mut self.active, option, yes_or_no(args.value(option)?, option)?)?;
                return Ok(true);
            }
            "EXPIRED" => {
                once(&mut self.expired, option, yes_or_no(args.value(option)?, option)?)?;
                return Ok(true);
            }
            _ => return Ok(false),
        };
        once(text, option, name(args.value(option)?, option)?)?;
        Ok(true)
    }

    /// The only type that can match, if there is only one: TYPE, else that of the options which only one type has. NAME alone
    /// means vault keys: it is theirs that are looked up by name.
    #[must_use]
    pub fn record_type(&self) -> Option<RecordType> {
        let of_vault = [self.name, self.source, self.login, self.batch, self.account];
        match (self.of_type, self.org) {
            (Some(given), _) => Some(given),
            (None, Some(_)) => Some(RecordType::Api),
            (None, None) => of_vault.iter().any(Option::is_some).then_some(RecordType::Vault),
        }
    }

    /// Whether nothing but TYPE, or nothing at all, was given.
    #[must_use]
    pub fn is_type_only(&self) -> bool {
        *self == Self { of_type: self.of_type, ..Self::default() }
    }

    /// The name, if it is all that vault keys must have: then their number is that of the name.
    #[must_use]
    pub fn vault_name_only(&self) -> Option<&'a str> {
        let named = Self { of_type: self.of_type, name: self.name, ..Self::default() };
        self.vault_name().filter(|_| *self == named)
    }

    /// The name that vault keys must have, if no API key can match: then those of the name are all that need be looked at.
    #[must_use]
    pub fn vault_name(&self) -> Option<&'a str> {
        self.name.filter(|_| self.record_type() == Some(RecordType::Vault))
    }

    /// Whether a record is what was asked for.
    #[must_use]
    pub fn matches(&self, record: &Record<'_>, now_ms: u64) -> bool {
        self.record_type().is_none_or(|asked| asked == record.record_type())
            && match record {
                Record::Vault(vault) => self.matches_vault(vault, now_ms),
                Record::Api(api) => self.matches_api(api, now_ms),
            }
    }

    /// Whether a vault key is what was asked for, whatever TYPE says.
    #[must_use]
    pub fn matches_vault(&self, record: &VaultRecord<'_>, now_ms: u64) -> bool {
        self.org.is_none()
            && self.name.is_none_or(|asked| asked == record.name)
            && [
                (self.source, record.source),
                (self.login, record.login),
                (self.batch, record.batch),
                (self.account, record.account),
            ]
            .iter()
            .all(|(asked, found)| asked.is_none() || asked == found)
            && self.matches_state(record.status, record.expired(now_ms))
    }

    fn matches_api(&self, record: &ApiRecord<'_>, now_ms: u64) -> bool {
        [self.source, self.login, self.batch, self.account].iter().all(Option::is_none)
            && self.name.is_none_or(|asked| asked == record.label)
            && self.org.is_none_or(|asked| asked == record.org)
            && self.matches_state(record.status, record.expired(now_ms))
    }

    fn matches_state(&self, status: Status, expired: bool) -> bool {
        self.active.is_none_or(|asked| asked == (status == Status::Active))
            && self.expired.is_none_or(|asked| asked == expired)
    }
}

/// The value of an option that is `yes` or `no`, whatever its case.
fn yes_or_no(bytes: &[u8], option: &'static str) -> Result<bool> {
    match bytes {
        _ if bytes.eq_ignore_ascii_case(b"yes") => Ok(true),
        _ if bytes.eq_ignore_ascii_case(b"no") => Ok(false),
        _ => Err(Error::Invalid { what: option, accepted: "yes or no" }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::digest::Digest;
    use crate::keyring::Fingerprint;
    use crate::record::UnitLimits;
    use crate::scope::Scopes;

    const SEALED: [u8; 64] = [9; 64];

    fn vault<'a>(name: &'a str, status: Status, expires_ms: Option<u64>) -> VaultRecord<'a> {
        VaultRecord {
            name,
            status,
            created_ms: 1,
            expires_ms,
            source: Some("web"),
            login: None,
            batch: Some("b1"),
            account: None,
            weight: 1,
            limits: UnitLimits::new(),
            sealed: &SEALED,
            digest: Digest::from_bytes([1; 32]),
            digest_key: Fingerprint::from_bytes([2; 8]),
            hint: None,
        }
    }

    fn api<'a>(org: &'a str, label: &'a str, status: Status, expires_ms: Option<u64>) -> ApiRecord<'a> {
        ApiRecord {
            org,
            label,
            status,
            created_ms: 1,
            expires_ms,
            scopes: Scopes::default(),
            limits: UnitLimits::new(),
            digest: Digest::from_bytes([1; 32]),
            digest_key: Fingerprint::from_bytes([2; 8]),
            start: "kg_live_abcd",
        }
    }

    /// The filter that some options make.
    fn filter(options: &'static str) -> Result<Filter<'static>> {
        let arguments: Vec<&'static [u8]> = options.split_ascii_whitespace().map(str::as_bytes).collect();
        let mut args = Args::new(arguments.leak(), || "usage");
        let mut filter = Filter::default();
        while let Some(option) = args.option(&Filter::OPTIONS)? {
            assert!(filter.take(option, &mut args)?, "{option} is taken");
        }
        args.finish()?;
        Ok(filter)
    }

    #[test]
    fn every_option_holds_or_the_record_is_left_out() {
        let plain = Record::Vault(vault("openai", Status::Active, None));
        let expired = Record::Vault(vault("openai", Status::Inactive, Some(1000)));
        let web = Record::Api(api("shop", "web", Status::Active, Some(1001)));
        let revoked = Record::Api(api("shop", "openai", Status::Revoked, None));
        for (options, expected) in [
            ("", [true, true, true, true]),
            ("TYPE vault", [true, true, false, false]),
            ("type API", [false, false, true, true]),
            ("NAME openai", [true, true, false, false]),
            ("NAME openai TYPE api", [false, false, false, true]),
            ("NAME web", [false; 4]),
            ("NAME web TYPE api", [false, false, true, false]),
            ("NAME OPENAI", [false; 4]),
            ("SOURCE web", [true, true, false, false]),
            ("SOURCE we", [false; 4]),
            ("SOURCE web TYPE api", [false; 4]),
            ("BATCH b1 SOURCE web", [true, true, false, false]),
            ("BATCH b2 SOURCE web", [false; 4]),
            ("LOGIN x", [false; 4]),
            ("ACCOUNT x", [false; 4]),
            ("ORG shop", [false, false, true, true]),
            ("ORG shop NAME web", [false, false, true, false]),
            ("ORG shop TYPE vault", [false; 4]),
            ("ORG lab", [false; 4]),
            ("ACTIVE yes", [true, false, true, false]),
            ("ACTIVE No", [false, true, false, true]),
            ("EXPIRED yes", [false, true, false, false]),
            ("EXPIRED no", [true, false, true, true]),
            ("EXPIRED no ACTIVE yes NAME openai", [true, false, false, false]),
        ] {
            let filter = filter(options).unwrap();
            let found = [&plain, &expired, &web, &revoked].map(|record| filter.matches(record, 1000));
            assert_eq!(found, expected, "{options}");
        }
    }

    #[test]
    fn a_filter_takes_each_option_once_with_a_value_that_it_can_have() {
        for option in Filter::OPTIONS {
            let missing = Args::<&[u8]>::new(&[], || "usage");
            let mut args = missing;
            assert_eq!(Filter::default().take(option, &mut args), Err(Error::MissingValue { option }));
        }
        for options in ["TYPE x", "TYPE vaul", "ACTIVE 1", "EXPIRED true", "NAME \x01"] {
            assert!(matches!(filter(options), Err(Error::Invalid { .. })), "{options}");
        }
        for options in ["TYPE api TYPE api", "NAME a NAME a", "ORG a ORG b", "ACTIVE yes ACTIVE no"] {
            assert!(matches!(filter(options), Err(Error::Repeated { .. })), "{options}");
        }
        let mut args = Args::<&[u8]>::new(&[b"5"], || "usage");
        assert_eq!(Filter::default().take("LIMIT", &mut args), Ok(false));
        assert_eq!(args.left(), 1, "what is not a filter's stays");
    }

    #[test]
    fn a_filter_says_where_its_records_are_to_be_found() {
        use RecordType::{Api, Vault};
        for (options, of_type, name, name_only, type_only) in [
            ("", None, None, None, true),
            ("TYPE api", Some(Api), None, None, true),
            ("NAME a", Some(Vault), Some("a"), Some("a"), false),
            ("NAME a TYPE vault", Some(Vault), Some("a"), Some("a"), false),
            ("NAME a TYPE api", Some(Api), None, None, false),
            ("NAME a ORG b", Some(Api), None, None, false),
            ("NAME a ACTIVE yes", Some(Vault), Some("a"), None, false),
            ("LOGIN a", Some(Vault), None, None, false),
            ("EXPIRED no", None, None, None, false),
        ] {
            let filter = filter(options).unwrap();
            assert_eq!(filter.record_type(), of_type, "{options}");
            assert_eq!(filter.vault_name(), name, "{options}");
            assert_eq!(filter.vault_name_only(), name_only, "{options}");
            assert_eq!(filter.is_type_only(), type_only, "{options}");
        }
    }

    #[test]
    fn ids_are_bits_as_the_server_counts_them() {
        const NONE: [u64; 0] = [];
        let bitmap = [0b0100_0001, 0, 0b1000_0000];
        assert_eq!(ids_after(&bitmap, 0, 10), [1, 7, 16]);
        assert_eq!(ids_after(&bitmap, 1, 10), [7, 16]);
        assert_eq!(ids_after(&bitmap, 6, 1), [7]);
        assert_eq!(ids_after(&bitmap, 16, 10), NONE);
        assert_eq!(ids_after(&bitmap, 0, 0), NONE);
        assert_eq!(ids_after(&bitmap, u64::MAX, 10), NONE);
        assert_eq!(ids_after(&bitmap, u64::MAX - 1, 10), NONE);
        assert_eq!(ids_after(&[], 0, 10), NONE);
    }

    proptest! {
        #[test]
        fn ids_after_are_those_of_a_naive_search(
            bytes in proptest::collection::vec(prop_oneof![3 => Just(0), 1 => any::<u8>()], 0..60),
            after in 0..500_u64,
            n in 0..40_usize,
        ) {
            let listed = |id: &u64| bytes.get((id / 8) as usize).is_some_and(|byte| byte & (0x80 >> (id % 8)) != 0);
            let naive: Vec<u64> = (after + 1..500).filter(listed).take(n).collect();
            prop_assert!((0..500).all(|id| is_listed(&bytes, id) == listed(&id)));
            prop_assert_eq!(ids_after(&bytes, after, n), naive);
        }
    }
}
