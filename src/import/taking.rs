//! What becomes of a row of a file: everything is looked at before the first write of it, and it is there as a whole or not at all.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use keyguard_core::effect::{Effect, RuleSet, WholeValue, path_of};
use keyguard_core::gate::Code;
use keyguard_core::ip::{Address, Net, Rule, Rules};
use keyguard_core::keyring::Keyring;
use keyguard_core::meters::{Lifetime, Meters};
use keyguard_core::names::{self, Derived, Listed, StoreName};
use keyguard_core::record::{OrgRecord, Record, RecordType, Status};
use keyguard_core::usage::{
    Counts, KEYS, KeyDays, MAX_LATENCY_MS, Row as UsageRow, StoreStats, Tally, Totals, UsageBatch, hour_of, minute_of,
};
use keyguard_core::zone::Zone;
use keyguard_core::{Error, Result, parse, vault};
use keyguard_snapshot::item::{self, Header, Item, Row};

use super::prepared::{Prepared, rowid};
use super::report::{Report, Told, What};
use crate::adding::{NewApiKey, NewOrg, NewVaultKey, digest_keys, pool_touched};
use crate::doomed::Doomed;
use crate::effects::{self, LAST_USED_AT};
use crate::ffi::{EntryId, Kind, OwnedString, to_c_string};
use crate::store::{Fields, IP_THRESHOLD, Store, TZ, USAGE_FROM, org_fields};
use crate::{config, server, usage};

/// What the rows before lead to.
#[derive(Default)]
pub(super) struct Before {
    /// Whether the store was there, or something was written: then it must still be there.
    pub(super) exists: bool,
    /// The names that organizations of `keyguard_python` have here, by their ids there.
    pub(super) orgs: HashMap<String, String>,
    /// The names of the file's organizations: with CHECK they may be nowhere else.
    pub(super) names: HashSet<String>,
    /// The id from which on the store of the snapshot has given none out, as long as the lists are too short for it.
    pub(super) next_id: Option<u64>,
    /// The last number that was put behind a name.
    pub(super) numbers: HashMap<String, u32>,
    /// The ids that the store's API keys have which were imported, by those in `keyguard_python`.
    pub(super) known: HashMap<String, u64>,
    /// Those ids alone: what one of them is, is known, however much it is like another.
    pub(super) known_ids: HashSet<u64>,
    /// The last id that was looked at for them; None when all were.
    pub(super) looked_up_to: Option<u64>,
    /// The ids that API keys of `keyguard_python` got from this import, by those there: what they did is not known here.
    pub(super) keys: HashMap<String, u64>,
    /// How far the usage of a snapshot has come, if the store takes it.
    mark: Option<Mark>,
    /// How far it had come in an import that broke off, which this one goes on with.
    resumed: Option<Mark>,
    /// Why none of it is taken.
    no_usage: &'static str,
    /// How many values of statistics the snapshot has had so far.
    values: u64,
    /// Why usage was left out, as far as it was told.
    told_of_usage: Vec<&'static str>,
    /// With CHECK, the time of the last line that the log would have, in unix milliseconds.
    newest_ms: u64,
    /// Usage that waits to be written down.
    pub(super) usage: Usage,
}

/// How far the usage of a snapshot has come, as the header of the store has it while the import is at work: after one that broke off
/// nothing else could tell what of the log and the statistics comes from there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    /// The store that the snapshot is of.
    store: String,
    /// When the snapshot was begun, in unix milliseconds.
    begun_ms: u64,
    /// The last line of its log that was looked at: its time in unix milliseconds, and its number within that.
    line: EntryId,
    /// How many of its values of statistics were looked at.
    values: u64,
}

impl Mark {
    /// That nothing has come yet.
    fn of(header: &Header) -> Self {
        // A snapshot of ours has no other name.
        let store = StoreName::parse(header.store.as_bytes()).map_or("", |name| name.as_str());
        Self { store: store.to_owned(), begun_ms: header.begun_ms, line: (0, 0), values: 0 }
    }

    fn text(&self) -> String {
        let Self { store, begun_ms, line: (at_ms, seq), values } = self;
        format!("{begun_ms} {at_ms}-{seq} {values} {store}")
    }

    /// What [`text`](Self::text) gave; None for anything else.
    fn parse(text: &[u8]) -> Option<Self> {
        let mut words = text.splitn(4, |byte| *byte == b' ');
        let begun_ms = parse::unsigned(words.next()?)?;
        let line = usage::entry_id(words.next()?)?;
        let values = parse::unsigned(words.next()?)?;
        let store = str::from_utf8(words.next()?).ok()?.to_owned();
        Some(Self { store, begun_ms, line, values })
    }

    fn is_of_same_snapshot(&self, other: &Self) -> bool {
        (&self.store, self.begun_ms) == (&other.store, other.begun_ms)
    }
}

/// Usage on its way into a store.
#[derive(Default)]
pub(super) struct Usage {
    pub(super) rows: Vec<item::Usage>,
    totals: Totals,
    hours: BTreeMap<u32, Tally>,
    minutes: BTreeMap<u32, Tally>,
    pub(super) keys: BTreeMap<u64, (Counts, BTreeMap<u32, Tally>)>,
}

impl Usage {
    /// Counts a call of a key that was let in and ended.
    pub(super) fn count(&mut self, usage: &item::Usage, zone: &Zone) {
        let errors = u64::from(usage.status.is_some_and(|status| status >= 400));
        let latency_ms = u64::from(usage.latency_ms.unwrap_or(0).min(MAX_LATENCY_MS));
        let one = Counts { requests: 1, refused: 0, logged: 1, errors, latency_ms };
        let (minute, tally) = (minute_of(usage.at_ms), one.tally());
        self.totals.count(Code::Valid);
        self.totals.logged += 1;
        self.totals.errors += errors;
        self.totals.latency_ms += latency_ms;
        self.minutes.entry(minute).or_default().add(&tally);
        self.hours.entry(hour_of(minute)).or_default().add(&tally);
        let (totals, days) = self.keys.entry(usage.key).or_default();
        totals.add(&one);
        days.entry(zone.day(usage.at_ms)).or_default().add(&tally);
    }
}

/// A line as the log takes it.
fn line(usage: &item::Usage) -> UsageRow<'_> {
    let is_token = |text: &&str| (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    UsageRow {
        at_ms: usage.at_ms,
        seq: usage.seq,
        id: usage.key,
        code: usage.code.as_deref().and_then(|code| Code::ALL.into_iter().find(|known| known.as_str() == code)),
        status: usage.status,
        latency_ms: usage.latency_ms.map(|latency_ms| latency_ms.min(MAX_LATENCY_MS)),
        method: usage.method.as_deref().filter(is_token),
        path: usage.path.as_deref(),
        ip: usage.ip.as_deref().filter(|ip| Address::parse(ip.as_bytes()).is_ok()),
    }
}

/// What became of a row that stands for something.
pub(super) enum Taken {
    /// It was added; with CHECK, it would be.
    Added,
    /// What was there became what it says.
    Replaced,
    /// It was left out.
    Skipped(&'static str),
    /// There was nothing to do.
    Nothing,
}

/// A slice of rows that are taken into a store.
pub(super) struct Taking<'c> {
    pub(super) store: Store<'c>,
    pub(super) zone: Zone,
    pub(super) keyring: Arc<Keyring>,
    pub(super) now_ms: u64,
}

impl Taking<'_> {
    /// Takes a row, and notes what became of it.
    ///
    /// # Errors
    /// What ends the import: all else is noted.
    pub(super) fn take(&self, row: Prepared, before: &mut Before, status: &mut Report) -> Result<()> {
        status.rows += 1;
        let (check, replace) = (status.order.check, status.order.replace);
        let (what, table, rowid, taken) = match row {
            Prepared::Refused(Told { table, rowid, why }) => {
                status.skip(table, rowid, why);
                return Ok(());
            }
            Prepared::Secret(row, secret) => {
                let taken = self.foreign_secret(&row, &secret, check, replace);
                (What::VaultKey, "keystore", row.id, taken)
            }
            Prepared::Row(Row::Skipped(item::Skipped { table, rowid, why })) => {
                status.skip(table, rowid, why);
                return Ok(());
            }
            Prepared::Row(Row::ForeignOrg(row)) => {
                let taken = self.foreign_org(&row, before, status);
                (What::Org, "organizations", row.rowid, taken)
            }
            Prepared::Row(Row::ForeignKey(row)) => {
                let taken = self.foreign_key(&row, before, status);
                (What::ApiKey, "api_keys", row.rowid, taken)
            }
            // The thread has made a secret of it.
            Prepared::Row(Row::ForeignSecret(_)) => return Err(Error::Internal),
            Prepared::Row(Row::ForeignUse { key, usage }) => {
                self.foreign_use(&key, usage, before, status);
                return Ok(());
            }
            Prepared::Row(Row::Item(item)) => match item {
                Item::Header(header) => return self.header(&header, before, check),
                Item::Org(org) => (What::Org, "keyguard_orgs", rowid(org.id), self.org(&org, before, check, replace)),
                Item::Key(key) => {
                    let what = if matches!(key.packed.get(1), Some(&1)) { What::VaultKey } else { What::ApiKey };
                    (what, "keyguard_keys", rowid(key.id), self.key(&key, before, check, replace))
                }
                Item::Rule(rule) => (What::Rule, "keyguard_address_rules", 0, self.rule(&rule, check, replace)),
                Item::Account { name, meters } => {
                    (What::Account, "keyguard_accounts", 0, self.account(&name, &meters, check, replace))
                }
                Item::Usage(usage) => {
                    take_usage(usage, before, status);
                    return Ok(());
                }
                // For people, as the readable fields of records are: what counts is the values.
                Item::Hour { .. } | Item::Day { .. } | Item::Total { .. } => return Ok(()),
                Item::Value { name, packed } => return self.take_value(&name, &packed, before, status),
            },
        };
        match taken {
            Ok(taken @ (Taken::Added | Taken::Replaced)) => {
                if let Some(count) = status.imported.get_mut(what as usize) {
                    *count += 1;
                }
                status.replaced += u64::from(matches!(taken, Taken::Replaced));
            }
            Ok(Taken::Skipped(why)) => status.skip(table, rowid, why),
            Ok(Taken::Nothing) => {}
            // These are not about this row.
            Err(error @ (Error::TryAgain | Error::Internal | Error::OutOfMemory | Error::NoStore)) => {
                return Err(error);
            }
            Err(error) => status.skip(table, rowid, error.to_string()),
        }
        Ok(())
    }

    /// Makes sure that no id of the snapshot is given out again, and takes over settings that the store has not.
    fn header(&self, header: &Header, before: &mut Before, check: bool) -> Result<()> {
        let store = &self.store;
        let mut fields = Fields::default();
        let mark = Mark::of(header);
        before.resumed = store.usage_from()?.and_then(|text| Mark::parse(text.name().bytes()));
        before.resumed.take_if(|resumed| !resumed.is_of_same_snapshot(&mark));
        match (&before.resumed, self.refusal_of_usage()?) {
            (Some(resumed), _) => before.mark = Some(resumed.clone()),
            (None, Some(why)) => before.no_usage = why,
            (None, None) => {
                // It stands there before the first record of the snapshot does, which would be one of others without it.
                fields.set(USAGE_FROM, mark.text());
                before.mark = Some(mark);
            }
        }
        if !store.exists() {
            fields.set("created_at", header.created_ms.to_string());
        }
        if header.next_id > store.next_id()? {
            before.next_id = Some(header.next_id);
        }
        if let Some(tz) = header.tz.as_ref().filter(|_| matches!(store.named_zone(), Ok(None))) {
            fields.set(TZ, tz);
        }
        if let Some(threshold) = header.ip_threshold.filter(|_| matches!(store.ip_threshold(), Ok(None))) {
            fields.set(IP_THRESHOLD, threshold.to_string());
        }
        if check {
            return Ok(());
        }

        store.write_header(self.now_ms, None)?;
        store.rewrite_hash(store.name.as_bytes(), &fields, &[])?;
        self.take_next_id(before)
    }

    /// Why the store takes no usage of a snapshot, if it does not.
    fn refusal_of_usage(&self) -> Result<Option<&'static str>> {
        let store = &self.store;
        for key in [store.name.usage(), store.name.stats()] {
            if store.read(&key)?.kind() != Kind::Empty {
                return Ok(Some("the store has a usage log or statistics of its own"));
            }
        }
        for of in [RecordType::Api, RecordType::Vault] {
            if !store.ids_after(of, 0, 1)?.is_empty() {
                return Ok(Some("the store had keys before: usage under their ids may be that of others"));
            }
        }
        Ok(None)
    }

    /// Notes in the header how far the usage of a snapshot has come.
    fn write_mark(&self, before: &Before) -> Result<()> {
        let Some(mark) = &before.mark else { return Ok(()) };
        self.store.rewrite_hash(self.store.name.as_bytes(), Fields::default().set(USAGE_FROM, mark.text()), &[])
    }

    /// All usage of the snapshot is there.
    pub(super) fn forget_mark(&self, before: &Before) -> Result<()> {
        match before.mark {
            Some(_) => self.store.write(c"HDEL", &[self.store.name.as_bytes(), USAGE_FROM.as_bytes()]),
            None => Ok(()),
        }
    }

    /// Makes sure that no id of the snapshot is given out again, as soon as the lists of the store reach near enough to it: whatever
    /// the file says, an id that no list can take makes the store one that takes no records.
    pub(super) fn take_next_id(&self, before: &mut Before) -> Result<()> {
        let store = &self.store;
        let Some(next_id) = before.next_id.filter(|next_id| store.expect_list(Listed::Orgs, *next_id).is_ok()) else {
            return Ok(());
        };
        before.next_id = None;
        if next_id <= store.next_id()? {
            return Ok(());
        }
        let mut fields = Fields::default();
        fields.set("next_id", next_id.to_string()).set("run_id", server::run_id());
        store.rewrite_hash(store.name.as_bytes(), &fields, &[])
    }

    pub(super) fn org(&self, org: &item::Org, before: &mut Before, check: bool, replace: bool) -> Result<Taken> {
        let (store, name) = (&self.store, names::name(org.name.as_bytes(), "name")?);
        let record = OrgRecord::decode(&org.packed)?;
        if record.id != org.id {
            return Err(Error::Damaged { what: "organization record" });
        }
        if store.read(&store.name.key(org.id))?.kind() != Kind::Empty {
            return Ok(Taken::Skipped("a key has its id"));
        }
        let named = self.org_of_id(org.id)?;
        if named.as_ref().is_some_and(|named| named != name) {
            return Ok(Taken::Skipped("an organization of another name has its id"));
        }
        let win = store.name.orgwin(name);
        store.read(&win)?.native::<Meters>()?;
        match store.packed_org(name) {
            Ok(packed) => {
                before.names.insert(name.to_owned());
                if OrgRecord::decode(packed.bytes())?.id != org.id {
                    return Ok(Taken::Skipped("an organization of its name has another id"));
                }
                if !replace {
                    return Ok(Taken::Skipped(THERE));
                }
                let fields = org_fields(name, &record)?;
                if !check {
                    store.rewrite_hash(&store.name.org(name), &fields, &[])?;
                    self.restore_meters(&win, org.meters.as_deref())?;
                }
                Ok(Taken::Replaced)
            }
            Err(Error::NoSuch { .. }) => {
                let adding = NewOrg::expect(store, name, &record)?;
                before.names.insert(name.to_owned());
                if !check {
                    adding.write(store, self.now_ms)?;
                    self.restore_meters(&win, org.meters.as_deref())?;
                }
                Ok(Taken::Added)
            }
            Err(error) => Err(error),
        }
    }

    /// The name of the organization that has this id.
    fn org_of_id(&self, id: u64) -> Result<Option<String>> {
        let name = self.store.read(&self.store.name.orgs())?.hash_field(&to_c_string(&id.to_string()))?;
        Ok(name.map(|name| String::from_utf8_lossy(name.name().bytes()).into_owned()))
    }

    pub(super) fn key(&self, key: &item::Key, before: &Before, check: bool, replace: bool) -> Result<Taken> {
        let (store, id) = (&self.store, key.id);
        let record = Record::decode(&key.packed)?;
        if self.org_of_id(id)?.is_some() {
            return Ok(Taken::Skipped("an organization has its id"));
        }
        let old = match store.packed_record(id) {
            Ok(_) if !replace => return Ok(Taken::Skipped(THERE)),
            Ok(packed) => Some(packed),
            Err(Error::NoSuch { .. }) => None,
            Err(error) => return Err(error),
        };
        let old = old.as_ref().map(|packed| Record::decode(packed.bytes())).transpose()?;
        if old.as_ref().is_some_and(|old| status_of(old) == Status::Revoked) && status_of(&record) != Status::Revoked {
            return Ok(Taken::Skipped(FINAL));
        }
        let old: Vec<(u64, Record<'_>)> = old.into_iter().map(|old| (id, old)).collect();
        let doomed = Doomed::gather(store, &old)?;
        let (win, replaces) = (store.name.win(id), !old.is_empty());
        store.read(&win)?.native::<Meters>()?;
        match &record {
            Record::Api(api) => {
                if digest_keys(api).any(|used| !self.keyring.holds(used)) {
                    return Ok(Taken::Skipped(LACKING));
                }
                if !self.has_org(api.org, before)? {
                    return Ok(Taken::Skipped("its organization is not in the store"));
                }
                let adding = NewApiKey::expect(store, id, api, key.meta.as_deref(), replaces)?;
                if check {
                    return Ok(if replaces { Taken::Replaced } else { Taken::Added });
                }

                doomed.delete(store)?;
                adding.write(store, self.now_ms)?;
                self.note_use(id, key.last_used_ms)?;
                self.restore_meters(&win, key.meters.as_deref())?;
            }
            Record::Vault(vault) => {
                let sealed_under = vault::fingerprint_of(vault.sealed);
                if sealed_under.into_iter().chain([vault.digest_key]).any(|used| !self.keyring.holds(used)) {
                    return Ok(Taken::Skipped(LACKING));
                }
                let adding = NewVaultKey::expect(store, id, vault, key.meta.as_deref(), replaces)?;
                if check {
                    return Ok(if replaces { Taken::Replaced } else { Taken::Added });
                }

                doomed.delete(store)?;
                adding.write(store, self.now_ms)?;
                if let Some(remembered) = &key.meters {
                    let effect = Effect::Recall { pool: vault.name, id, remembered };
                    effects::commit(store.ctx(), store.header, &effect)?;
                    pool_touched(store, vault.name);
                }
            }
        }
        Ok(if replaces { Taken::Replaced } else { Taken::Added })
    }

    /// Whether an organization is there; with CHECK, whether it would be.
    fn has_org(&self, org: &str, before: &Before) -> Result<bool> {
        match self.store.packed_org(org) {
            Ok(packed) => OrgRecord::decode(packed.bytes()).map(|_| true),
            Err(Error::NoSuch { .. }) => Ok(before.names.contains(org)),
            Err(error) => Err(error),
        }
    }

    /// Writes down when an API key was last used.
    pub(super) fn note_use(&self, id: u64, last_used_ms: Option<u64>) -> Result<()> {
        let Some(at_ms) = last_used_ms else { return Ok(()) };
        let (key, at_ms) = (self.store.name.key(id), at_ms.to_string());
        self.store.write(c"HSET", &[&key, LAST_USED_AT.as_str().as_bytes(), at_ms.as_bytes()])
    }

    /// Puts windows and quotas where they belong, as long as they are worth keeping.
    fn restore_meters(&self, key: &[u8], meters: Option<&[u8]>) -> Result<()> {
        // What cannot be read is a state that nobody has: the record counts.
        let Some((bytes, meters)) = meters.and_then(|bytes| Some((bytes, Meters::decode(bytes)?))) else {
            return Ok(());
        };
        let until_ms = match meters.lifetime() {
            Lifetime::Forever => None,
            Lifetime::Until(at_ms) if at_ms > self.now_ms => Some(at_ms),
            Lifetime::Until(_) | Lifetime::Over => return Ok(()),
        };
        let name = OwnedString::new(key);
        effects::commit(self.store.ctx(), name.name(), &Effect::Whole { value: WholeValue::Meters(bytes) })?;
        match until_ms {
            Some(at_ms) => self.store.write(c"PEXPIREAT", &[key, at_ms.to_string().as_bytes()]),
            None => Ok(()),
        }
    }

    fn rule(&self, rule: &item::Rule, check: bool, replace: bool) -> Result<Taken> {
        let store = &self.store;
        let net = Net::parse(rule.net.as_bytes())?;
        let path = path_of(rule.path.as_deref()).map_err(|_| Error::Damaged { what: "address rule" })?;
        let item::Rule { kind, until_ms, by, strikes, .. } = *rule;
        let rule = Rule { kind, path, until_ms, reason: &rule.reason, by, strikes };
        if !rule.holds(self.now_ms) && strikes.is_none_or(|strikes| strikes.until_ms <= self.now_ms) {
            return Ok(Taken::Skipped("it has ended"));
        }
        let key = store.read(&store.name.ips())?;
        let none = Rules::new();
        let rules = key.native::<Rules>()?.unwrap_or(&none);
        let is_there = rules.rule(net, kind, rule.path.as_ref()).is_some();
        if is_there && !replace {
            return Ok(Taken::Skipped(THERE));
        }
        rules.accept(net, &rule, self.now_ms)?;
        drop(key);
        if !check {
            store.write_header(self.now_ms, None)?;
            let net = net.to_string();
            let effect = Effect::SetRule { at_ms: self.now_ms, net: &net, rule: RuleSet::of(&rule) };
            effects::commit(store.ctx(), store.header, &effect)?;
        }
        Ok(if is_there { Taken::Replaced } else { Taken::Added })
    }

    fn account(&self, name: &str, meters: &[u8], check: bool, replace: bool) -> Result<Taken> {
        let name = names::name(name.as_bytes(), "account")?;
        let key = self.store.name.derived(&Derived::Account(name.as_bytes()));
        let is_there = self.store.read(&key)?.native::<Meters>()?.is_some();
        if is_there && !replace {
            return Ok(Taken::Skipped(THERE));
        }
        let worth = Meters::decode(meters).ok_or(Error::Damaged { what: "state of an account" })?.lifetime();
        if worth <= Lifetime::Until(self.now_ms) {
            return Ok(Taken::Nothing);
        }
        if !check {
            self.restore_meters(&key, Some(meters))?;
        }
        Ok(if is_there { Taken::Replaced } else { Taken::Added })
    }

    /// Writes usage down that waits.
    pub(super) fn write_usage(&self, before: &mut Before, status: &mut Report) -> Result<()> {
        let Usage { mut rows, totals, hours, minutes, keys } = std::mem::take(&mut before.usage);
        let Some(last) = rows.iter().map(|row| (row.at_ms, row.seq)).max() else { return Ok(()) };
        rows.sort_by_key(|row| (row.at_ms, row.seq));
        // An older line would get the time of the newest in the log: an entry has none but that of its id.
        let newest_ms = usage::newest_ms(&self.store).max(before.newest_ms);
        let is_older = |row: &&item::Usage| row.at_ms < newest_ms;
        let older = rows.iter().take_while(is_older).count();
        let table = if before.mark.is_some() { "keyguard_usage" } else { "usage_logs" };
        (0..older).for_each(|_| skip_usage(before, status, table, "older than the newest line of the log"));
        rows.drain(..older);
        if let Some(count) = status.imported.get_mut(What::Usage as usize) {
            *count += rows.len() as u64;
        }
        if let Some(mark) = &mut before.mark {
            mark.line = mark.line.max(last);
        }
        if status.order.check {
            before.newest_ms = newest_ms.max(last.0);
            return Ok(());
        }
        let (most, age_ms) = config::usage_log();
        let oldest_ms = self.now_ms.saturating_sub(age_ms);
        let lines = rows.iter().filter(|row| most > 0 && row.at_ms >= oldest_ms).map(line);
        let keys = keys.into_iter().map(|(id, (counts, days))| (id, counts, days.into_iter().collect()));
        let batch = UsageBatch {
            now_ms: self.now_ms,
            today: self.zone.day(self.now_ms),
            totals: (totals != Totals::default()).then_some(totals),
            minutes: minutes.into_iter().collect(),
            hours: hours.into_iter().collect(),
            keys: keys.collect(),
            rows: lines.collect(),
            ..UsageBatch::default()
        };
        usage::restore(&self.store, batch, most)?;
        self.write_mark(before)
    }

    /// A value of the statistics of a snapshot.
    fn take_value(&self, name: &str, packed: &[u8], before: &mut Before, status: &mut Report) -> Result<()> {
        let (check, is_resumed) = (status.order.check, before.resumed.is_some());
        let Some(mark) = &mut before.mark else {
            let why = before.no_usage;
            skip_usage(before, status, "keyguard_values", why);
            return Ok(());
        };
        before.values += 1;
        if before.values <= mark.values {
            // It came before the import broke off.
            return Ok(());
        }
        mark.values = before.values;
        if let Err(error) = self.value(name, packed, check, is_resumed) {
            status.skip("keyguard_values", 0, error.to_string());
        }
        if check { Ok(()) } else { self.write_mark(before) }
    }

    /// Writes a value of the statistics; where an import goes on that broke off, it comes to what was counted since.
    fn value(&self, name: &str, packed: &[u8], check: bool, is_resumed: bool) -> Result<()> {
        let damaged = Error::Damaged { what: "value of statistics" };
        let of_keys = name.strip_prefix("stats:").ok_or(damaged)?;
        let (now_ms, today) = (self.now_ms, self.zone.day(self.now_ms));
        let mut batch = UsageBatch { now_ms, today, ..UsageBatch::default() };
        let (key, value) = if of_keys == "all" {
            let stats = StoreStats::decode(packed).ok_or(damaged)?;
            (batch.totals, batch.minutes) = (Some(*stats.totals()), stats.minutes().collect());
            batch.hours = stats.hours().collect();
            (self.store.name.stats(), WholeValue::Stats(packed))
        } else {
            let days = KeyDays::decode(packed).ok_or(damaged)?;
            let chunk = parse::unsigned(of_keys.as_bytes()).ok_or(damaged)?;
            // Those of ids that were never given out would outlive the store.
            if chunk > self.store.next_id()? / KEYS && !check {
                return Err(damaged);
            }
            let id = |low| chunk.saturating_mul(KEYS).saturating_add(u64::from(low));
            batch.keys = days.iter().map(|(low, counts, days)| (id(low), counts, days)).collect();
            (self.store.name.days(chunk), WholeValue::Days(packed))
        };
        if is_resumed {
            return if check { Ok(()) } else { usage::restore(&self.store, batch, 0) };
        }
        self.store.expect_free(&key).map_err(|_| Error::Duplicate { what: "statistics of this name" })?;
        if check {
            return Ok(());
        }
        effects::commit(self.store.ctx(), OwnedString::new(&key).name(), &Effect::Whole { value })
    }
}

fn status_of(record: &Record<'_>) -> Status {
    match record {
        Record::Api(api) => api.status,
        Record::Vault(vault) => vault.status,
    }
}

/// A line of the log of a snapshot. What it counted stands in the values.
fn take_usage(usage: item::Usage, before: &mut Before, status: &mut Report) {
    if before.mark.is_none() {
        let why = before.no_usage;
        skip_usage(before, status, "keyguard_usage", why);
    } else if before.resumed.as_ref().is_none_or(|resumed| (usage.at_ms, usage.seq) > resumed.line) {
        before.usage.rows.push(usage);
    }
}

/// Counts usage that is left out, and tells once why: there are few reasons, and however much was told before, these are too.
pub(super) fn skip_usage(before: &mut Before, status: &mut Report, table: &'static str, why: &'static str) {
    status.skipped += 1;
    if !before.told_of_usage.contains(&why) {
        before.told_of_usage.push(why);
        status.told.push(Told { table, rowid: 0, why: why.to_owned() });
    }
}

/// Why a row was skipped that is in the store already.
pub(super) const THERE: &str = "it is there already";

/// Why one was that nothing brings back.
pub(super) const FINAL: &str = "it is there and revoked, which is final";

/// Why one was skipped that is of no use here.
pub(super) const LACKING: &str = "the keyring of this server lacks the key or pepper that it is under";
