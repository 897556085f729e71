//! The options by which a key is described: those of ADDKEY, NEWKEY and SETKEY.

use arrayvec::ArrayVec;
use keyguard_core::allowed::Allowed;
use keyguard_core::ip::Net;
use keyguard_core::names::{Meta, name};
use keyguard_core::quota::Quotas;
use keyguard_core::record::{ApiRecord, MAX_WEIGHT, RecordType, Status, UnitLimits, VaultRecord};
use keyguard_core::scope::Scopes;
use keyguard_core::{Error, Result};

use super::{expiry, quota, unit_limit};
use crate::args::{Args, once};

/// What a call says of a key, beside its name and secret.
#[derive(Default)]
pub struct Given<'c> {
    pub active: Option<bool>,
    pub expires: Option<Option<u64>>,
    pub meta: Option<Meta<'c>>,
    pub limits: UnitLimits<'c>,
    // Of vault keys.
    pub source: Option<&'c str>,
    pub login: Option<&'c str>,
    pub batch: Option<&'c str>,
    pub account: Option<&'c str>,
    pub shared: UnitLimits<'c>,
    weight: Option<u64>,
    pub unique: Option<()>,
    // Of API keys.
    pub scopes: Option<Scopes<'c>>,
    pub quotas: Quotas<'c>,
    pub allowed: Allowed<'c>,
}

/// The names of fields, as KG.GETKEY shows them, that SETKEY is to clear.
pub type Cleared = ArrayVec<&'static str, { CLEARABLE.len() }>;

/// The fields that CLEAR takes.
const CLEARABLE: [&str; 12] = [
    "source",
    "login",
    "batch",
    "account",
    "expires_at",
    "limits",
    "shared",
    "weight",
    "meta",
    "scopes",
    "quotas",
    "allowed",
];

impl<'c> Given<'c> {
    /// Those of vault keys.
    pub const OF_VAULT_KEYS: [&'static str; 12] = [
        "INACTIVE", "EXPIREAT", "EXPIREIN", "SOURCE", "LOGIN", "BATCH", "ACCOUNT", "SHARED", "LIMIT", "WEIGHT", "META",
        "UNIQUE",
    ];

    /// Those that only API keys have.
    pub const OF_API_KEYS_ONLY: [&'static str; 3] = ["SCOPES", "QUOTA", "ALLOW"];

    /// Reads what follows one of the options.
    pub fn take(&mut self, option: &'static str, args: &mut Args<'c>, now_ms: u64) -> Result<()> {
        match option {
            "INACTIVE" => once(&mut self.active, option, false),
            "UNIQUE" => once(&mut self.unique, option, ()),
            "EXPIREAT" | "EXPIREIN" => once(&mut self.expires, option, expiry(args, option, now_ms)?),
            "SOURCE" => once(&mut self.source, option, name(args.value(option)?, option)?),
            "LOGIN" => once(&mut self.login, option, name(args.value(option)?, option)?),
            "BATCH" => once(&mut self.batch, option, name(args.value(option)?, option)?),
            "ACCOUNT" => once(&mut self.account, option, name(args.value(option)?, option)?),
            "SHARED" => unit_limit(args, &mut self.shared),
            "LIMIT" => unit_limit(args, &mut self.limits),
            "WEIGHT" => {
                let accepted = "a whole number from 1 to 1000000";
                once(&mut self.weight, option, args.positive(option, u64::from(MAX_WEIGHT), accepted)?)
            }
            "SCOPES" => once(&mut self.scopes, option, Scopes::parse(args.value(option)?)?),
            "QUOTA" => quota(args, &mut self.quotas),
            "ALLOW" => self.allowed.add(Net::parse_allowed(args.value(option)?)?),
            _ => once(&mut self.meta, option, Meta::parse(args.value(option)?)?),
        }
    }

    /// The weight, if one was given.
    pub fn weight(&self) -> Option<u32> {
        self.weight.and_then(|weight| u32::try_from(weight).ok())
    }

    /// Makes sure that nothing was given or is to be cleared that a record of this type does not have.
    pub fn expect(&self, of: RecordType, cleared: &Cleared) -> Result<()> {
        let of_vault_keys = [
            ("SOURCE", self.source.is_some()),
            ("LOGIN", self.login.is_some()),
            ("BATCH", self.batch.is_some()),
            ("ACCOUNT", self.account.is_some()),
            ("SHARED", !self.shared.is_empty()),
            ("WEIGHT", self.weight.is_some()),
            ("UNIQUE", self.unique.is_some()),
        ];
        let of_api_keys = [
            ("SCOPES", self.scopes.is_some()),
            ("QUOTA", !self.quotas.is_empty()),
            ("ALLOW", !self.allowed.is_empty()),
        ];
        let (foreign, fields): (&[(&'static str, bool)], &[&str]) = match of {
            RecordType::Api => (&of_vault_keys, &["source", "login", "batch", "account", "shared", "weight"]),
            RecordType::Vault => (&of_api_keys, &["scopes", "quotas", "allowed"]),
        };
        let given = foreign.iter().find(|(_, given)| *given).map(|(option, _)| *option);
        let cleared = cleared.iter().any(|field| fields.contains(field)).then_some("CLEAR of this field");
        let accepted = match of {
            RecordType::Api => "for vault keys only, and this is an API key",
            RecordType::Vault => "for API keys only, and this is a vault key",
        };
        given.or(cleared).map_or(Ok(()), |what| Err(Error::Invalid { what, accepted }))
    }

    /// Makes sure that nothing is both given and cleared.
    pub fn expect_not(&self, cleared: &Cleared) -> Result<()> {
        let given = [
            ("source", self.source.is_some()),
            ("login", self.login.is_some()),
            ("batch", self.batch.is_some()),
            ("account", self.account.is_some()),
            ("expires_at", self.expires.is_some()),
            ("limits", !self.limits.is_empty()),
            ("shared", !self.shared.is_empty()),
            ("weight", self.weight.is_some()),
            ("meta", self.meta.is_some()),
            ("scopes", self.scopes.is_some()),
            ("quotas", !self.quotas.is_empty()),
            ("allowed", !self.allowed.is_empty()),
        ];
        let both = given.iter().any(|(field, given)| *given && cleared.contains(field));
        if both { Err(Error::Repeated { option: "CLEAR" }) } else { Ok(()) }
    }

    fn status(&self, old: Status) -> Status {
        match self.active {
            Some(true) => Status::Active,
            Some(false) => Status::Inactive,
            None => old,
        }
    }

    fn expires_ms(&self, old: Option<u64>, cleared: &Cleared) -> Option<u64> {
        self.expires.unwrap_or(old.filter(|_| !cleared.contains(&"expires_at")))
    }

    /// What becomes of a vault key.
    pub fn applied<'r>(&self, old: &VaultRecord<'r>, cleared: &Cleared) -> VaultRecord<'r>
    where
        'c: 'r,
    {
        let text =
            |given: Option<&'c str>, old: Option<&'r str>, field| given.or(old.filter(|_| !cleared.contains(&field)));
        let account = text(self.account, old.account, "account");
        VaultRecord {
            status: self.status(old.status),
            // Taken into use again, or put away by hand: what the vendor said is past.
            rejected: old.rejected.filter(|_| self.active.is_none()),
            expires_ms: self.expires_ms(old.expires_ms, cleared),
            source: text(self.source, old.source, "source"),
            login: text(self.login, old.login, "login"),
            batch: text(self.batch, old.batch, "batch"),
            account,
            weight: self.weight().unwrap_or(if cleared.contains(&"weight") { 1 } else { old.weight }),
            limits: or_old(&self.limits, &old.limits, cleared.contains(&"limits")),
            shared: match or_old(&self.shared, &old.shared, cleared.contains(&"shared")) {
                // Without its account, its limits go too, unless they are asked for.
                _ if account.is_none() && self.shared.is_empty() => UnitLimits::new(),
                shared => shared,
            },
            ..old.clone()
        }
    }

    /// What becomes of an API key.
    ///
    /// # Errors
    /// [`Error::Invalid`] for one that is revoked and shall work or rest: revoking is final.
    pub fn applied_to_api<'r>(&self, old: &ApiRecord<'r>, cleared: &Cleared) -> Result<ApiRecord<'r>>
    where
        'c: 'r,
    {
        if old.status == Status::Revoked && self.active.is_some() {
            return Err(Error::Invalid { what: "ACTIVE", accepted: "not for a key that is revoked, which is final" });
        }
        let scopes = match &self.scopes {
            Some(scopes) => scopes.clone(),
            None if cleared.contains(&"scopes") => Scopes::default(),
            None => old.scopes.clone(),
        };
        let allowed = match &self.allowed {
            allowed if !allowed.is_empty() => allowed.clone(),
            _ if cleared.contains(&"allowed") => Allowed::default(),
            _ => old.allowed.clone(),
        };
        Ok(ApiRecord {
            status: self.status(old.status),
            expires_ms: self.expires_ms(old.expires_ms, cleared),
            scopes,
            limits: or_old(&self.limits, &old.limits, cleared.contains(&"limits")),
            quotas: or_old(&self.quotas, &old.quotas, cleared.contains(&"quotas")),
            allowed,
            ..old.clone()
        })
    }
}

/// What was given, if anything was; else what there was, unless it is cleared.
fn or_old<T: Clone, const N: usize>(given: &ArrayVec<T, N>, old: &ArrayVec<T, N>, is_cleared: bool) -> ArrayVec<T, N> {
    match given.is_empty() {
        true if is_cleared => ArrayVec::new(),
        true => old.clone(),
        false => given.clone(),
    }
}

/// Reads the value of CLEAR.
pub fn clear(field: &[u8], cleared: &mut Cleared) -> Result<()> {
    let known = CLEARABLE.into_iter().find(|name| field.eq_ignore_ascii_case(name.as_bytes()));
    let accepted = "expires_at, limits or meta; of a vault key source, login, batch, account, shared or weight; of an API key scopes, quotas or allowed";
    let field = known.ok_or(Error::Invalid { what: "CLEAR", accepted })?;
    if cleared.contains(&field) {
        return Err(Error::Repeated { option: "CLEAR" });
    }
    cleared.try_push(field).map_err(|_| Error::Internal)
}
