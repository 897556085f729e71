//! What becomes of the rows of the two Python packages: organizations, API keys and secrets that were made elsewhere.

use keyguard_core::digest::{Digest, Domain, digest};
use keyguard_core::effect::Effect;
use keyguard_core::limit::Limit;
use keyguard_core::names;
use keyguard_core::quota::{Period, Quota, Quotas};
use keyguard_core::record::{
    ApiRecord, DEFAULT_UNIT, Issued, OrgRecord, OrgStatus, Record, RecordType, Status, UnitLimit, UnitLimits,
    VaultRecord,
};
use keyguard_core::scope::Scopes;
use keyguard_core::secret::Secret;
use keyguard_core::usage::printable_path;
use keyguard_core::{Error, Result, vault};
use keyguard_snapshot::item::{self, ForeignKey, ForeignOrg, ForeignSecret};

use super::report::Report;
use super::taking::{Before, FINAL, LACKING, THERE, Taken, Taking, skip_usage};
use crate::adding::{Activity, NewApiKey, NewOrg, NewVaultKey, pool_touched};
use crate::effects;
use crate::keyring;
use crate::store::{META, api_fields, org_fields, place, vault_fields};

/// Requests a minute of `keyguard_python`, in milliseconds.
const MINUTE_MS: u64 = 60_000;

/// How many API keys of a store are looked at in one step.
const LOOKED_AT: usize = 64;

impl Taking<'_> {
    /// An organization of `keyguard_python`: its name, or, if that was there before in the file, the name with a number behind it.
    pub(super) fn foreign_org(&self, org: &ForeignOrg, before: &mut Before, status: &mut Report) -> Result<Taken> {
        let store = &self.store;
        let mut name = org.name.clone();
        if before.names.contains(&name) {
            // Whoever calls another one `name (2)` shall not make this a search through all that follow.
            let number = before.numbers.entry(name.clone()).or_insert(1);
            while before.names.contains(&name) {
                *number = number.saturating_add(1);
                name = format!("{} ({number})", org.name);
            }
        }
        names::name(name.as_bytes(), "name")?;
        let record = OrgRecord {
            id: store.next_id()?,
            status: if org.is_active { OrgStatus::Active } else { OrgStatus::Suspended },
            created_ms: org.created_ms.unwrap_or(self.now_ms),
            limits: UnitLimits::new(),
            quotas: Quotas::new(),
        };
        let (check, replace) = (status.order.check, status.order.replace);
        let taken = match store.packed_org(&name) {
            Ok(_) if !replace => Taken::Skipped(THERE),
            Ok(packed) => {
                let old = OrgRecord::decode(packed.bytes())?;
                let fields = org_fields(&name, &OrgRecord { status: record.status, ..old })?;
                if !check {
                    store.rewrite_hash(&store.name.org(&name), &fields, &[])?;
                }
                Taken::Replaced
            }
            Err(Error::NoSuch { .. }) => {
                let adding = NewOrg::expect(store, &name, &record)?;
                if !check {
                    adding.write(store, self.now_ms)?;
                }
                Taken::Added
            }
            Err(error) => return Err(error),
        };
        if name != org.name {
            status.tell("organizations", org.rowid, "its name is there before in the file: a number stands behind it");
        }
        before.names.insert(name.clone());
        before.orgs.insert(org.id.clone(), name);
        Ok(taken)
    }

    /// An API key of `keyguard_python`.
    pub(super) fn foreign_key(&self, key: &ForeignKey, before: &mut Before, status: &mut Report) -> Result<Taken> {
        let store = &self.store;
        let (check, replace) = (status.order.check, status.order.replace);
        let Some(org) = before.orgs.get(&key.org).cloned() else {
            return Ok(Taken::Skipped("its organization was skipped"));
        };
        let pepper = status.order.pepper.as_ref().and_then(|label| self.keyring.pepper(label));
        // Somebody may have taken it away meanwhile.
        let Some(pepper) = pepper else { return Ok(Taken::Skipped(LACKING)) };
        let is_active = key.is_active && key.per_minute > 0;
        let mut limits = UnitLimits::new();
        if key.per_minute > 0 {
            limits.push(UnitLimit { unit: DEFAULT_UNIT, limit: Limit::new(key.per_minute, MINUTE_MS)? });
        }
        let mut quotas = Quotas::new();
        if let Some(count) = key.per_month.filter(|count| *count > 0) {
            quotas.push(Quota { count, period: Period::Month, unit: DEFAULT_UNIT });
        }
        let scopes = key.scopes.join(",");
        let digest = Digest::from_bytes(key.hash);
        let record = ApiRecord {
            org: &org,
            label: &key.label,
            status: if is_active { Status::Active } else { Status::Inactive },
            created_ms: key.created_ms.unwrap_or(0),
            expires_ms: key.expires_ms,
            scopes: Scopes::parse(scopes.as_bytes())?,
            limits,
            quotas,
            allowed: Default::default(),
            issued: Issued { digest, digest_key: pepper.fingerprint(), start: &key.start, is_foreign: true },
            previous: None,
        };
        let meta = Imported { imported_id: key.id.clone() };
        let meta = serde_json::to_string(&meta).map_err(|_| Error::Internal)?;
        let taken = match self.same_api_key(key, &record, before)? {
            Some(_) if !replace => Taken::Skipped(THERE),
            Some(id) => {
                let packed = store.packed_record(id)?;
                let Record::Api(old) = Record::decode(packed.bytes())? else {
                    return Err(Error::Damaged { what: "digest index" });
                };
                if old.status == Status::Revoked {
                    return Ok(Taken::Skipped(FINAL));
                }
                let before_status = old.status;
                let ApiRecord { label, status, expires_ms, scopes, limits, quotas, .. } = record;
                let new = ApiRecord { label, status, expires_ms, scopes, limits, quotas, ..old };
                let fields = api_fields(&new, Some(&meta))?;
                let activity = Activity::expect(store, before_status, new.status)?;
                if !check {
                    store.rewrite_hash(&store.name.key(id), &fields, &[])?;
                    activity.write(store)?;
                }
                Taken::Replaced
            }
            None => {
                let id = store.next_id()?;
                let adding = NewApiKey::expect(store, id, &record, Some(&meta), false)?;
                if !check {
                    adding.write(store, self.now_ms)?;
                    self.note_use(id, key.last_used_ms)?;
                }
                before.keys.insert(key.id.clone(), id);
                before.known_ids.insert(id);
                Taken::Added
            }
        };
        if key.per_minute == 0 && !matches!(taken, Taken::Skipped(_)) {
            let why = "it is inactive: its rate_limit_per_minute of 0 lets nothing in";
            status.tell("api_keys", key.rowid, why);
        }
        if key.per_month == Some(0) && !matches!(taken, Taken::Skipped(_)) {
            let why = "it has no quota: its monthly_limit of 0, which was never enforced, would let nothing in";
            status.tell("api_keys", key.rowid, why);
        }
        Ok(taken)
    }

    /// A line of the log of `keyguard_python`. What a key did that was there before the import is known, or is not asked for.
    pub(super) fn foreign_use(&self, key: &str, usage: item::Usage, before: &mut Before, status: &mut Report) {
        let Some(id) = before.keys.get(key).copied() else {
            skip_usage(before, status, "usage_logs", "usage is taken only of keys that this import has added");
            return;
        };
        let path = usage.path.as_deref().map(|path| printable_path(path.as_bytes()));
        let usage = item::Usage { key: id, seq: 0, code: None, path, ..usage };
        before.usage.count(&usage, &self.zone);
        before.usage.rows.push(usage);
    }

    /// Looks at some API keys of the store for those that were imported, and as what.
    pub(super) fn look_for_imported(&self, before: &mut Before) -> Result<()> {
        let ids = self.store.ids_after(RecordType::Api, before.looked_up_to.unwrap_or(0), LOOKED_AT)?;
        before.looked_up_to = ids.last().copied();
        for id in ids {
            // One that somebody put another value in the place of was not imported.
            let meta = self.store.record_field(id, &META).ok().flatten();
            let meta = meta.as_ref().map_or(&[][..], |meta| meta.name().bytes());
            if let Ok(Imported { imported_id }) = serde_json::from_slice(meta) {
                before.known.insert(imported_id, id);
                before.known_ids.insert(id);
            }
        }
        Ok(())
    }

    /// The key that was imported before as this one: by its digest, which may have been renewed since; by its META; or, where that was
    /// changed, by everything that tells keys apart.
    fn same_api_key(&self, key: &ForeignKey, record: &ApiRecord<'_>, before: &Before) -> Result<Option<u64>> {
        let store = &self.store;
        if let Some(id) = store.ids_of(&record.issued.digest)?.first() {
            return Ok(Some(*id));
        }
        let found = |id| match store.packed_record(id) {
            Err(Error::NoSuch { .. }) => Ok(None),
            packed => packed.map(Some),
        };
        if let Some(id) = before.known.get(&key.id)
            && found(*id)?.is_some()
        {
            return Ok(Some(*id));
        }
        for id in store.ids_of_start(&key.start)? {
            let Some(packed) = found(id)?.filter(|_| !before.known_ids.contains(&id)) else { continue };
            let Ok(Record::Api(found)) = Record::decode(packed.bytes()) else { continue };
            if (found.org, found.label, found.created_ms) == (record.org, record.label, record.created_ms) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// A key of `simple_keystore`, with its secret.
    pub(super) fn foreign_secret(
        &self,
        row: &ForeignSecret,
        secret: &Secret,
        check: bool,
        replace: bool,
    ) -> Result<Taken> {
        let store = &self.store;
        let newest = self.keyring.newest();
        let (source, login, batch) = (row.source.as_deref(), row.login.as_deref(), row.batch.as_deref());
        let status = if row.is_active { Status::Active } else { Status::Inactive };
        for key in self.keyring.newest_first().filter(|key| store.uses(key.fingerprint())) {
            for id in store.ids_of(&digest(key, Domain::Vault, secret.expose()))? {
                let packed = match store.packed_record(id) {
                    Err(Error::NoSuch { .. }) => continue,
                    packed => packed?,
                };
                let Record::Vault(old) = Record::decode(packed.bytes())? else { continue };
                if (old.name, old.source, old.login, old.batch) != (row.name.as_str(), source, login, batch) {
                    continue;
                }
                if !replace {
                    return Ok(Taken::Skipped(THERE));
                }
                if old.status == Status::Revoked {
                    return Ok(Taken::Skipped(FINAL));
                }
                let rejected = old.rejected.filter(|_| status != Status::Active);
                let new = VaultRecord { status, rejected, expires_ms: row.expires_ms, ..old };
                let fields = vault_fields(&new, None)?;
                let pool = store.name.pool(new.name);
                store.read(&pool)?.native::<keyguard_core::pool::Pool>()?;
                let traits = keyguard_core::pool::Traits::of(&new).encode();
                if !check {
                    store.rewrite_hash(&store.name.key(id), &fields, &[META.as_str()])?;
                    let effect = Effect::Enroll { pool: new.name, from: None, id, traits: &traits };
                    effects::commit(store.ctx(), store.header, &effect)?;
                    pool_touched(store, new.name);
                }
                return Ok(Taken::Replaced);
            }
        }
        let id = store.next_id()?;
        let sealed = vault::seal(newest, *keyring::random()?, &place(store, id), secret)?;
        let record = VaultRecord {
            name: &row.name,
            status,
            created_ms: row.created_ms.unwrap_or(self.now_ms),
            expires_ms: row.expires_ms,
            source,
            login,
            batch,
            account: None,
            weight: 1,
            limits: UnitLimits::new(),
            shared: UnitLimits::new(),
            rejected: None,
            sealed: &sealed,
            digest: digest(newest, Domain::Vault, secret.expose()),
            digest_key: newest.fingerprint(),
            hint: secret.hint(),
        };
        let adding = NewVaultKey::expect(store, id, &record, None, false)?;
        if !check {
            adding.write(store, self.now_ms)?;
        }
        Ok(Taken::Added)
    }
}

/// What META says of an API key of `keyguard_python`.
#[derive(serde::Deserialize, serde::Serialize)]
struct Imported {
    imported_id: String,
}
