//! Stores as a whole: `KG.SETSTORE`, `KG.GETSTORE`, `KG.DELSTORE`.

use keyguard_core::failures::MAX_THRESHOLD;
use keyguard_core::names::Listed;
use keyguard_core::record::{Record, RecordType};
use keyguard_core::usage::KEYS;
use keyguard_core::zone::Zone;
use keyguard_core::{Error, Result, parse};

use super::Call;
use super::delete::MAX_DELETED;
use super::list::MAX_BYTES;
use crate::args::{Args, once};
use crate::doomed::{Doomed, Listing};
use crate::ffi::{Kind, OwnedString};
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::{Map, Value, integer};
use crate::store::{
    API_KEYS, Fields, IP_THRESHOLD, Missing, ORGANIZATIONS, OrgNames, Packed, Store, TZ, VAULT_KEYS, fingerprints,
};
use crate::{rekey, usage};

/// `KG.SETSTORE store [TZ zone] [IPTHRESHOLD n] [CLEAR field]...`
pub struct SetStore;

/// What becomes of a setting.
enum Setting {
    /// It is this.
    To(String),
    /// It is what it was at first.
    Cleared,
}

impl Command for SetStore {
    const SPEC: Spec = Spec {
        name: c"KG.SETSTORE",
        summary: c"Changes or clears the settings of a store, and creates it if need be",
        complexity: c"O(1)",
        flags: "fast",
        access: Access::Write,
        category: Category::Admin,
        min_args: 4,
        secrets: &[],
        secrets_from: 0,
        args: &[
            Arg::key(c"store"),
            Arg::text(c"zone").token(c"TZ").optional(),
            Arg::integer(c"n").token(c"IPTHRESHOLD").optional(),
            Arg::text(c"field").token(c"CLEAR").optional().multiple(),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let (mut zone, mut threshold) = (None, None);
        while let Some(option) = args.option(&["TZ", "IPTHRESHOLD", "CLEAR"])? {
            let value = args.value(option)?;
            match option {
                "TZ" => once(&mut zone, option, Setting::To(Zone::parse(value)?.name().to_owned()))?,
                "IPTHRESHOLD" => once(&mut threshold, option, Setting::To(ip_threshold(value)?.to_string()))?,
                _ => {
                    let cleared = [(TZ, &mut zone), (IP_THRESHOLD, &mut threshold)];
                    let field = cleared.into_iter().find(|(field, _)| value.eq_ignore_ascii_case(field.as_bytes()));
                    let accepted = "tz or ip_threshold";
                    let (_, setting) = field.ok_or(Error::Invalid { what: option, accepted })?;
                    once(setting, option, Setting::Cleared)?;
                }
            }
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Create)?;
        let mut fields = Fields::default();
        for (field, setting) in [(TZ, zone), (IP_THRESHOLD, threshold)] {
            match setting {
                None => {}
                Some(Setting::To(value)) => drop(fields.set(field, value)),
                Some(Setting::Cleared) => drop(fields.optional(field, None::<&str>)),
            }
        }

        store.write_header(call.now_ms, None)?;
        store.rewrite_hash(store.name.as_bytes(), &fields, &[])?;

        call.ctx.reply_status(c"OK");
        Ok(())
    }
}

fn ip_threshold(value: &[u8]) -> Result<u64> {
    let accepted = "a whole number from 0 to 60000";
    let threshold = parse::unsigned(value).filter(|threshold| *threshold <= MAX_THRESHOLD);
    threshold.ok_or(Error::Invalid { what: "IPTHRESHOLD", accepted })
}

/// `KG.GETSTORE store`
pub struct GetStore;

impl Command for GetStore {
    const SPEC: Spec = Spec {
        name: c"KG.GETSTORE",
        summary: c"Describes a store: its settings, what it holds, and which keys of the keyring it uses",
        complexity: c"O(1)",
        flags: "fast",
        access: Access::Read,
        category: Category::Read,
        min_args: 2,
        secrets: &[],
        secrets_from: 0,
        args: &[Arg::key(c"store")],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;
        let (created_ms, zone, threshold) = (store.created_ms()?, store.zone()?, store.ip_threshold()?);
        let [vault_keys, api_keys, organizations] =
            [store.counted(VAULT_KEYS)?, store.counted(API_KEYS)?, store.counted(ORGANIZATIONS)?];
        let used = fingerprints(call.ctx, store.name.as_bytes());
        let used: Vec<String> = used.into_iter().map(|(fingerprint, _)| fingerprint.to_string()).collect();

        Map::default()
            .field("created_at", created_ms)
            .field(TZ, zone.name())
            .optional(IP_THRESHOLD, threshold)
            .field(VAULT_KEYS, vault_keys)
            .field(API_KEYS, api_keys)
            .field(ORGANIZATIONS, organizations)
            .field("keyring", Value::Strings(used.iter().map(String::as_str).collect()))
            .send(call.ctx);
        Ok(())
    }
}

/// `KG.DELSTORE store`
pub struct DelStore;

impl Command for DelStore {
    const SPEC: Spec = Spec {
        name: c"KG.DELSTORE",
        summary:
            c"Deletes a slice of a store, and answers how many key records and organizations are left; 0: it is gone",
        complexity: c"O(N), N being the key records and organizations deleted, at most 100",
        flags: "",
        access: Access::Write,
        category: Category::Admin,
        min_args: 2,
        secrets: &[],
        secrets_from: 0,
        args: &[Arg::key(c"store")],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;
        store.expect(&store.name.orgs(), Kind::Hash)?;

        let mut left = 0;
        for of in Listed::ALL {
            left += store.listed(of)?;
        }
        let records = Records::first(&store)?;
        let slice = records.decoded();
        let mut doomed = Doomed::of_store(&store, &slice)?;
        let orgs = store.ids_after(Listed::Orgs, 0, records.room())?;
        let names = OrgNames::of(&store)?;
        let mut keys = Vec::new();
        for id in &orgs {
            if let Some(org) = names.name(*id)? {
                keys.extend([store.name.org(&org), store.name.orgwin(&org)]);
            }
        }
        drop(names);
        for key in &keys {
            store.read(key)?;
        }
        left = left.saturating_sub(records.listings + orgs.len() as u64);
        doomed.keys.append(&mut keys);
        if left == 0 {
            let lists = Listed::ALL.map(|of| store.name.ids(of));
            let last = [store.name.orgs(), store.name.ips(), store.name.usage(), store.name.stats()];
            for key in last.into_iter().chain(lists) {
                store.read(&key)?;
                doomed.keys.push(key);
            }
            doomed.keys.append(&mut days_left(&store)?);
        }

        // Nobody needs sealing again what is about to go.
        rekey::stop(call.ctx, &store);
        #[cfg(feature = "snapshot")]
        crate::import::stop(call.ctx, &store);
        usage::store_goes(call.ctx, &store, left == 0, &records.ids());
        if left == 0 {
            doomed.keys.push(store.name.as_bytes().to_vec());
            doomed.unlink(&store)?;
        } else {
            doomed.delete(&store)?;
            forget_orgs(&store, &orgs)?;
        }

        call.ctx.reply_integer(integer(left));
        Ok(())
    }
}

/// The most values of days that are looked for beside those of the records that went: those of a million ids.
const MAX_DAYS_LEFT: u64 = 4_096;

/// Where days of keys stand whose records somebody deleted by hand.
fn days_left(store: &Store<'_>) -> Result<Vec<Vec<u8>>> {
    let mut left = Vec::new();
    // An id that cannot be given out makes the header damaged, which must not keep a store alive.
    let chunks = store.next_id().unwrap_or(0) / KEYS;
    for chunk in 0..=chunks.min(MAX_DAYS_LEFT) {
        let name = store.name.days(chunk);
        if store.ctx().read(OwnedString::new(&name).name()).kind() != Kind::Empty {
            left.push(name);
        }
    }
    Ok(left)
}

/// Takes organizations whose records are gone out of the list, the index and the count.
fn forget_orgs(store: &Store<'_>, orgs: &[u64]) -> Result<()> {
    if orgs.is_empty() {
        return Ok(());
    }
    store.delist(Listed::Orgs, orgs)?;
    let names = store.name.orgs();
    let ids: Vec<String> = orgs.iter().map(u64::to_string).collect();
    store.write(c"HDEL", &std::iter::once(&*names).chain(ids.iter().map(String::as_bytes)).collect::<Vec<_>>())?;
    // One that is no number goes with the header.
    match store.expect_counts(&[ORGANIZATIONS], None) {
        Ok(()) => store.count(ORGANIZATIONS, -i64::try_from(orgs.len()).unwrap_or(0)),
        Err(_) => Ok(()),
    }
}

/// The first key records of a store, as many as one call deletes.
struct Records {
    found: Vec<Found>,
    /// In how many places of the lists they stand.
    listings: u64,
    /// Whether there are more.
    more: bool,
}

struct Found {
    id: u64,
    /// The packed record, if there is one.
    packed: Option<Packed>,
    /// The readable name, of one that does not decode: then it alone tells which pool the record is in.
    name: Option<OwnedString>,
}

impl Records {
    fn first(store: &Store<'_>) -> Result<Self> {
        // One more than are taken tells whether there are more.
        let vault = store.ids_after(RecordType::Vault, 0, MAX_DELETED + 1)?;
        let api = store.ids_after(RecordType::Api, 0, MAX_DELETED + 1)?;
        let mut ids = [&*vault, &*api].concat();
        ids.sort_unstable();
        ids.dedup();
        let (mut found, mut bytes) = (Vec::new(), 0);
        for id in ids.iter().take(MAX_DELETED) {
            let key = store.read(&store.name.key(*id))?;
            let is_hash = key.kind() == Kind::Hash;
            let packed = if is_hash { Packed::read(&key)? } else { None };
            let sound = packed.as_ref().is_some_and(|packed| Record::decode(packed.bytes()).is_ok());
            let name = if is_hash && !sound { key.hash_field(c"name")? } else { None };
            bytes += packed.as_ref().map_or(0, |packed| packed.bytes().len());
            bytes += name.as_ref().map_or(0, |name| name.name().bytes().len());
            found.push(Found { id: *id, packed, name });
            if bytes >= MAX_BYTES {
                break;
            }
        }
        let last = found.last().map_or(0, |found| found.id);
        let listings = [vault, api].iter().flatten().filter(|id| **id <= last).count() as u64;
        Ok(Self { more: found.len() < ids.len(), found, listings })
    }

    fn decoded(&self) -> Vec<Listing<'_>> {
        let mut slice = Vec::with_capacity(self.found.len());
        for Found { id, packed, name } in &self.found {
            let record = packed.as_ref().and_then(|packed| Record::decode(packed.bytes()).ok());
            let pool = match &record {
                Some(Record::Vault(vault)) => Some(vault.name.as_bytes()),
                Some(Record::Api(_)) => None,
                None => name.as_ref().map(|name| name.name().bytes()),
            };
            slice.push(Listing { id: *id, record, pool });
        }
        slice
    }

    fn ids(&self) -> Vec<u64> {
        self.found.iter().map(|found| found.id).collect()
    }

    /// How many organizations may go with them: none while there are keys, which belong to them.
    fn room(&self) -> usize {
        if self.more { 0 } else { MAX_DELETED.saturating_sub(self.found.len()) }
    }
}
