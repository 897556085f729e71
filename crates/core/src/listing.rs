//! Which key records a command is about, and in which order: the index of ids, filters, sort orders, and the sets of a vault.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use arrayvec::ArrayVec;

use crate::args::{Args, Argument, once};
use crate::error::{Error, Result};
use crate::names::name;
use crate::pool::{Pool, Wanted};
use crate::record::{ApiRecord, Record, RecordType, Status, VaultRecord};
use crate::secret::Hint;

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
        base = base.wrapping_add(64);
    }
    ids
}

/// Whether a bitmap lists an id: see [`ids_after`].
#[must_use]
pub fn is_listed(bitmap: &[u8], id: u64) -> bool {
    let byte = usize::try_from(id / 8).ok().and_then(|byte| bitmap.get(byte));
    byte.is_some_and(|byte| byte & (0x80 >> (id % 8)) != 0)
}

/// How many ids a bitmap lists: see [`ids_after`].
#[must_use]
pub fn count(bitmap: &[u8]) -> u64 {
    let (words, tail) = bitmap.as_chunks();
    let words = words.iter().map(|word| u64::from(u64::from_ne_bytes(*word).count_ones()));
    words.sum::<u64>() + tail.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>()
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

/// What records can be sorted by: the fields of their descriptions that have an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Id,
    Type,
    Name,
    Label,
    Org,
    Source,
    Login,
    Batch,
    Account,
    Status,
    Active,
    Expired,
    Usable,
    CreatedAt,
    ExpiresAt,
    Weight,
    Hint,
}

impl Field {
    const ALL: [(&'static str, Self); 17] = [
        ("id", Self::Id),
        ("type", Self::Type),
        ("name", Self::Name),
        ("label", Self::Label),
        ("org", Self::Org),
        ("source", Self::Source),
        ("login", Self::Login),
        ("batch", Self::Batch),
        ("account", Self::Account),
        ("status", Self::Status),
        ("active", Self::Active),
        ("expired", Self::Expired),
        ("usable", Self::Usable),
        ("created_at", Self::CreatedAt),
        ("expires_at", Self::ExpiresAt),
        ("weight", Self::Weight),
        ("hint", Self::Hint),
    ];

    fn parse(bytes: &[u8]) -> Result<Self> {
        const ACCEPTED: &str = "id, type, name, label, org, source, login, batch, account, status, active, expired, usable, \
                                created_at, expires_at, weight or hint";
        let known = Self::ALL.into_iter().find(|(word, _)| bytes.eq_ignore_ascii_case(word.as_bytes()));
        known.map(|(_, field)| field).ok_or(Error::Invalid { what: "SORTBY", accepted: ACCEPTED })
    }

    /// The field of a record; None if it does not apply.
    fn value<'a>(self, id: u64, record: &Record<'a>, now_ms: u64) -> Option<Value<'a>> {
        let active = record.status() == Status::Active;
        match (self, record) {
            (Self::Id, _) => Some(Value::Number(id)),
            (Self::Type, _) => Some(Value::Text(record.type_name())),
            (Self::Status, _) => Some(Value::Text(record.status().as_str())),
            (Self::Active, _) => Some(Value::Number(u64::from(active))),
            (Self::Expired, _) => Some(Value::Number(u64::from(record.expired(now_ms)))),
            (Self::Usable, _) => Some(Value::Number(u64::from(record.usable(now_ms)))),
            (Self::CreatedAt, _) => Some(Value::Number(record.created_ms())),
            (Self::ExpiresAt, _) => record.expires_ms().map(Value::Number),
            (Self::Name, Record::Vault(vault)) => Some(Value::Text(vault.name)),
            (Self::Source, Record::Vault(vault)) => vault.source.map(Value::Text),
            (Self::Login, Record::Vault(vault)) => vault.login.map(Value::Text),
            (Self::Batch, Record::Vault(vault)) => vault.batch.map(Value::Text),
            (Self::Account, Record::Vault(vault)) => vault.account.map(Value::Text),
            (Self::Weight, Record::Vault(vault)) => Some(Value::Number(u64::from(vault.weight))),
            (Self::Hint, Record::Vault(vault)) => vault.hint.map(Value::Hint),
            (Self::Org, Record::Api(api)) => Some(Value::Text(api.org)),
            (Self::Label, Record::Api(api)) => Some(Value::Text(api.label)),
            // What is shown of an API key, as the hint is of a vault key.
            (Self::Hint, Record::Api(api)) => Some(Value::Text(api.issued.start)),
            _ => None,
        }
    }
}

/// A value to sort by. All of one field's are of one kind, but for hints: those compare as texts.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Text(&'a str),
    Hint(Hint),
}

impl Value<'_> {
    fn number_and_bytes(&self) -> (u64, &[u8]) {
        match self {
            Self::Number(number) => (*number, &[]),
            Self::Text(text) => (0, text.as_bytes()),
            Self::Hint(hint) => (0, hint.as_bytes()),
        }
    }
}

/// One SORTBY.
#[derive(Debug, Clone, Copy)]
struct Sort {
    by: Field,
    descending: bool,
}

/// The order that records are asked for in: by the first SORTBY, those that are equal there by the next, and in the end by id.
///
/// Texts are ordered by their bytes. A record that lacks a field comes after all that have it, in both directions.
#[derive(Debug, Clone, Default)]
pub struct SortBy(ArrayVec<Sort, { Field::ALL.len() }>);

impl SortBy {
    /// Takes what follows the word SORTBY: `field [ASC | DESC]`. A field that is named again decides nothing.
    ///
    /// # Errors
    /// [`Error::MissingValue`], or [`Error::Invalid`] if there is no such field.
    pub fn take<'a, A: Argument<'a>>(&mut self, args: &mut Args<'a, A>) -> Result<()> {
        let by = Field::parse(args.value("SORTBY")?)?;
        let descending = !args.take_word("ASC") && args.take_word("DESC");
        if self.0.iter().all(|sort| sort.by != by) {
            // There is room for every field.
            let _ = self.0.try_push(Sort { by, descending });
        }
        Ok(())
    }

    /// Whether no SORTBY was given: the order is that of the ids.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Records being put in order, by what of them is compared: a record need not be kept as it is.
#[derive(Debug)]
pub struct Sorting<'a> {
    by: SortBy,
    ids: Vec<u64>,
    /// For each record, a value for each SORTBY.
    values: Vec<Option<Value<'a>>>,
}

impl<'a> Sorting<'a> {
    /// An order to put about so many records in.
    #[must_use]
    pub fn new(by: &SortBy, records: usize) -> Self {
        Self { ids: Vec::with_capacity(records), values: Vec::with_capacity(records * by.0.len()), by: by.clone() }
    }

    /// Adds a record.
    pub fn push(&mut self, id: u64, record: &Record<'a>, now_ms: u64) {
        self.ids.push(id);
        self.values.extend(self.by.0.iter().map(|sort| sort.by.value(id, record, now_ms)));
    }

    /// The records in order, each as how many were added before it.
    #[must_use]
    pub fn into_positions(self) -> Vec<usize> {
        let width = self.by.0.len();
        let row = |position: usize| self.values.get(position * width..(position + 1) * width).unwrap_or_default();
        let mut positions: Vec<usize> = (0..self.ids.len()).collect();
        positions.sort_unstable_by(|left, right| {
            let pairs = row(*left).iter().zip(row(*right)).zip(&self.by.0);
            pairs
                .map(|((left, right), sort)| compare(left.as_ref(), right.as_ref(), sort.descending))
                .find(|order| order.is_ne())
                .unwrap_or_else(|| self.ids.get(*left).cmp(&self.ids.get(*right)))
        });
        positions
    }
}

fn compare(left: Option<&Value<'_>>, right: Option<&Value<'_>>, descending: bool) -> Ordering {
    match (left, right) {
        (Some(left), Some(right)) => {
            let order = left.number_and_bytes().cmp(&right.number_and_bytes());
            if descending { order.reverse() } else { order }
        }
        // None is last.
        _ => left.is_none().cmp(&right.is_none()),
    }
}

/// What vault keys have in common that are one set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetName<'a> {
    /// The name.
    pub name: &'a str,
    /// The source.
    pub source: Option<&'a str>,
    /// The login.
    pub login: Option<&'a str>,
    /// The batch.
    pub batch: Option<&'a str>,
}

/// How many vault keys of a set there are, and of what use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usability {
    /// All.
    pub total: u64,
    /// Those whose status is active.
    pub active: u64,
    /// Those whose expiry has passed.
    pub expired: u64,
    /// Those that are active and have not expired.
    pub usable: u64,
    /// When the first of the usable expires, in unix milliseconds; None if none ever does.
    pub expires_ms: Option<u64>,
}

impl Usability {
    /// Counts one more key.
    pub fn add(&mut self, active: bool, expires_ms: Option<u64>, now_ms: u64) {
        let expired = expires_ms.is_some_and(|at_ms| at_ms <= now_ms);
        self.total += 1;
        self.active += u64::from(active);
        self.expired += u64::from(expired);
        if active && !expired {
            self.usable += 1;
            self.expires_ms = self.expires_ms.into_iter().chain(expires_ms).min();
        }
    }
}

/// The sets of vault keys, in order of their names.
#[derive(Debug, Default)]
pub struct Sets<'a>(BTreeMap<SetName<'a>, Usability>);

impl<'a> Sets<'a> {
    /// Counts a vault key in its set.
    pub fn add(&mut self, record: &VaultRecord<'a>, now_ms: u64) {
        let VaultRecord { name, source, login, batch, .. } = *record;
        let set = self.0.entry(SetName { name, source, login, batch }).or_default();
        set.add(record.status == Status::Active, record.expires_ms, now_ms);
    }

    /// Counts the keys of a pool in their sets.
    pub fn add_pool(&mut self, name: &'a str, pool: &'a Pool, now_ms: u64) {
        for (wanted, active, expires_ms) in pool.usabilities() {
            let Wanted { source, login, batch } = wanted;
            let set = SetName { name, source: source.as_deref(), login: login.as_deref(), batch: batch.as_deref() };
            self.0.entry(set).or_default().add(active, expires_ms, now_ms);
        }
    }

    /// How many sets there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sets, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&SetName<'a>, &Usability)> {
        self.0.iter()
    }
}

/// The value of an option that is `yes` or `no`, whatever its case.
///
/// # Errors
/// [`Error::Invalid`] for anything else.
pub fn yes_or_no(bytes: &[u8], option: &'static str) -> Result<bool> {
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
    use crate::allowed::Allowed;
    use crate::digest::Digest;
    use crate::keyring::Fingerprint;
    use crate::quota::Quotas;
    use crate::record::Issued;
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
            shared: UnitLimits::new(),
            rejected: None,
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
            issued: Issued {
                digest: Digest::from_bytes([1; 32]),
                digest_key: Fingerprint::from_bytes([2; 8]),
                start: "kg_live_abcd",
                is_foreign: false,
            },
            quotas: Quotas::new(),
            allowed: Allowed::default(),
            previous: None,
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

    /// The ids of records, in the order of some SORTBYs.
    fn sorted(options: &'static str, records: &[(u64, Record<'_>)], now_ms: u64) -> Result<Vec<u64>> {
        let arguments: Vec<&'static [u8]> = options.split_ascii_whitespace().map(str::as_bytes).collect();
        let mut args = Args::new(arguments.leak(), || "usage");
        let mut by = SortBy::default();
        while args.option(&["SORTBY"])?.is_some() {
            by.take(&mut args)?;
        }
        args.finish()?;
        let mut sorting = Sorting::new(&by, records.len());
        records.iter().for_each(|(id, record)| sorting.push(*id, record, now_ms));
        Ok(sorting.into_positions().into_iter().map(|position| records[position].0).collect())
    }

    #[test]
    fn every_field_sorts_both_ways_and_what_is_missing_comes_last() {
        let now_ms = 1000;
        let records = [
            (7, Record::Vault(VaultRecord { weight: 10, ..vault("b", Status::Inactive, Some(1000)) })),
            (
                3,
                Record::Vault(VaultRecord {
                    login: Some("x"),
                    account: Some("n"),
                    created_ms: 9,
                    hint: Hint::try_from(*b"zzzz").ok(),
                    ..vault("a", Status::Active, Some(5000))
                }),
            ),
            (
                5,
                Record::Vault(VaultRecord {
                    source: None,
                    batch: Some("b0"),
                    login: Some("y"),
                    weight: 9,
                    ..vault("B", Status::Active, None)
                }),
            ),
            (4, Record::Api(api("shop", "web", Status::Revoked, Some(10_000)))),
            (9, Record::Api(api("lab", "cron", Status::Active, Some(999)))),
        ];
        for (field, ascending, descending) in [
            ("id", [3, 4, 5, 7, 9], [9, 7, 5, 4, 3]),
            ("TYPE", [4, 9, 3, 5, 7], [3, 5, 7, 4, 9]),
            ("name", [5, 3, 7, 4, 9], [7, 3, 5, 4, 9]),
            ("label", [9, 4, 3, 5, 7], [4, 9, 3, 5, 7]),
            ("org", [9, 4, 3, 5, 7], [4, 9, 3, 5, 7]),
            ("source", [3, 7, 4, 5, 9], [3, 7, 4, 5, 9]),
            ("login", [3, 5, 4, 7, 9], [5, 3, 4, 7, 9]),
            ("batch", [5, 3, 7, 4, 9], [3, 7, 5, 4, 9]),
            ("account", [3, 4, 5, 7, 9], [3, 4, 5, 7, 9]),
            ("status", [3, 5, 9, 7, 4], [4, 7, 3, 5, 9]),
            ("active", [4, 7, 3, 5, 9], [3, 5, 9, 4, 7]),
            ("expired", [3, 4, 5, 7, 9], [7, 9, 3, 4, 5]),
            ("usable", [4, 7, 9, 3, 5], [3, 5, 4, 7, 9]),
            ("created_at", [4, 5, 7, 9, 3], [3, 4, 5, 7, 9]),
            ("expires_at", [9, 7, 3, 4, 5], [4, 3, 7, 9, 5]),
            ("weight", [3, 5, 7, 4, 9], [7, 5, 3, 4, 9]),
            ("hint", [4, 9, 3, 5, 7], [3, 4, 9, 5, 7]),
        ] {
            for (order, expected) in [("", ascending), (" ASC", ascending), (" desc", descending)] {
                let options: &str = format!("SORTBY {field}{order}").leak();
                assert_eq!(sorted(options, &records, now_ms).unwrap(), expected, "{options}");
            }
        }
        for (options, expected) in [
            ("", [3, 4, 5, 7, 9]),
            ("SORTBY type DESC SORTBY weight DESC SORTBY id", [7, 5, 3, 4, 9]),
            ("SORTBY active SORTBY expired DESC SORTBY id DESC", [7, 4, 9, 5, 3]),
            ("SORTBY active SORTBY active DESC", [4, 7, 3, 5, 9]),
        ] {
            assert_eq!(sorted(options, &records, now_ms).unwrap(), expected, "{options}");
        }
        for options in ["SORTBY", "SORTBY x", "SORTBY secret", "SORTBY digest", "SORTBY meta", "SORTBY id UP"] {
            assert!(sorted(options, &records, now_ms).is_err(), "{options}");
        }
    }

    #[test]
    fn sets_count_what_can_be_used_and_when_that_ends() {
        let other = VaultRecord { source: None, ..vault("a", Status::Active, None) };
        let mut sets = Sets::default();
        assert!(sets.is_empty());
        for record in [
            &vault("a", Status::Active, Some(1001)),
            &vault("a", Status::Active, Some(1000)),
            &vault("a", Status::Active, Some(5000)),
            &vault("a", Status::Active, None),
            &vault("a", Status::Inactive, Some(1001)),
            &vault("a", Status::Inactive, Some(1)),
            &vault("b", Status::Inactive, Some(5000)),
            &other,
        ] {
            sets.add(record, 1000);
        }
        let name = |name, source| SetName { name, source, login: None, batch: Some("b1") };
        let expected = [
            (name("a", None), Usability { total: 1, active: 1, expired: 0, usable: 1, expires_ms: None }),
            (name("a", Some("web")), Usability { total: 6, active: 4, expired: 2, usable: 3, expires_ms: Some(1001) }),
            (name("b", Some("web")), Usability { total: 1, active: 0, expired: 0, usable: 0, expires_ms: None }),
        ];
        let found: Vec<_> = sets.iter().map(|(name, usability)| (*name, *usability)).collect();
        assert_eq!((sets.len(), found), (3, expected.to_vec()));
    }

    proptest! {
        #[test]
        fn sorting_is_that_of_a_naive_model(
            expiries in proptest::collection::vec((0..4_u64, proptest::option::of(0..4_u64), "[ab]{1,2}"), 0..20),
            descending: [bool; 2],
        ) {
            let records: Vec<(u64, Record<'_>)> = expiries
                .iter()
                .enumerate()
                .map(|(n, (weight, expires_ms, name))| {
                    let record = VaultRecord { weight: *weight as u32 + 1, ..vault(name, Status::Active, *expires_ms) };
                    ((n as u64 * 7) % 23, Record::Vault(record))
                })
                .collect();
            let by = SortBy(descending.into_iter().zip([Field::ExpiresAt, Field::Name])
                .map(|(descending, by)| Sort { by, descending }).collect());
            let mut sorting = Sorting::new(&by, 0);
            records.iter().for_each(|(id, record)| sorting.push(*id, record, 2));
            let positions = sorting.into_positions();
            // A stable sort by each field in turn, the last that decides first, is the model.
            let mut naive: Vec<usize> = (0..records.len()).collect();
            naive.sort_by_key(|position| records[*position].0);
            naive.sort_by(|left, right| {
                let (left, right) = (&expiries[*left].2, &expiries[*right].2);
                if descending[1] { right.cmp(left) } else { left.cmp(right) }
            });
            naive.sort_by_key(|position| match expiries[*position].1 {
                None => i64::MAX,
                Some(at) => if descending[0] { -(at as i64) } else { at as i64 },
            });
            prop_assert_eq!(positions, naive);
        }

        #[test]
        fn ids_after_are_those_of_a_naive_search(
            bytes in proptest::collection::vec(prop_oneof![3 => Just(0), 1 => any::<u8>()], 0..60),
            after in 0..500_u64,
            n in 0..40_usize,
        ) {
            let listed = |id: &u64| bytes.get((id / 8) as usize).is_some_and(|byte| byte & (0x80 >> (id % 8)) != 0);
            let naive: Vec<u64> = (after + 1..500).filter(listed).take(n).collect();
            prop_assert!((0..500).all(|id| is_listed(&bytes, id) == listed(&id)));
            prop_assert_eq!(count(&bytes), (0..500).filter(listed).count() as u64);
            prop_assert_eq!(ids_after(&bytes, after, n), naive);
        }
    }
}
