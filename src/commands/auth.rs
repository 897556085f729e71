//! The gate: `KG.AUTH` and `KG.CHECK`.

use keyguard_core::digest::{Domain, digest};
use keyguard_core::gate::{self, Asked, Code, Owner, Whose};
use keyguard_core::ip::{Address, Rules, Standing};
use keyguard_core::limit::MAX_LIMITS;
use keyguard_core::meters::Meters;
use keyguard_core::names::Derived;
use keyguard_core::path::Path;
use keyguard_core::quota::QuotaVerdict;
use keyguard_core::record::{ApiRecord, OrgRecord};
use keyguard_core::scope::{MAX_SCOPES, Scope};
use keyguard_core::{Error, Result};

use super::apikeys::Reissue;
use super::{COST, Call, unit};
use crate::args::{Args, once};
use crate::ffi::OwnedString;
use crate::gate::{Found, count, look_up};
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::{Map, Value};
use crate::store::{META, Store};
use crate::usage::Told;
use crate::{effects, failures, keyring, usage};

/// `KG.AUTH store key [IP addr] [PATH path] [METHOD method] [SCOPE s]... [COST n [UNIT u]]... [WITHMETA]`
pub struct Auth;

impl Command for Auth {
    const SPEC: Spec = Spec {
        name: c"KG.AUTH",
        summary: c"Authenticates an API key, checks its scopes and limits, and charges the call",
        complexity: c"O(1) when valid, O(log N) when a limit refuses, N being the entries in its window",
        flags: "deny-oom deny-script fast",
        access: Access::Write,
        category: Category::Use,
        min_args: 3,
        secrets: &[2],
        secrets_from: 0,
        args: &[
            Arg::key(c"store"),
            Arg::text(c"raw-key"),
            Arg::text(c"addr").token(c"IP").optional(),
            Arg::text(c"path").token(c"PATH").optional(),
            Arg::text(c"method").token(c"METHOD").optional(),
            Arg::text(c"scope").token(c"SCOPE").optional().multiple(),
            COST,
            Arg::word(c"withmeta", c"WITHMETA").optional(),
        ],
    };

    fn run(call: &Call<'_>, args: Args<'_>) -> Result<()> {
        authenticate(call, args, true)
    }
}

/// `KG.CHECK store key`, with the options of `KG.AUTH`
pub struct Check;

impl Command for Check {
    const SPEC: Spec = Spec {
        name: c"KG.CHECK",
        summary: c"Says what KG.AUTH would answer, and charges nothing",
        complexity: c"O(log N), N being the entries in the longest window",
        flags: "deny-script fast",
        access: Access::Read,
        category: Category::Use,
        min_args: 3,
        secrets: &[2],
        secrets_from: 0,
        args: Auth::SPEC.args,
    };

    fn run(call: &Call<'_>, args: Args<'_>) -> Result<()> {
        authenticate(call, args, false)
    }
}

/// What a call says, beside its key.
#[derive(Default)]
struct Given<'c> {
    asked: Asked<'c>,
    path: Option<Path<'c>>,
    /// The path as it was given.
    raw_path: Option<&'c [u8]>,
    method: Option<&'c str>,
    with_meta: Option<()>,
}

impl<'c> Given<'c> {
    fn parse(args: &mut Args<'c>) -> Result<Self> {
        let mut given = Self::default();
        while let Some(option) = args.option(&["IP", "PATH", "SCOPE", "METHOD", "COST", "WITHMETA"])? {
            let asked = &mut given.asked;
            match option {
                "IP" => once(&mut asked.address, option, Address::parse(args.value(option)?)?)?,
                "PATH" => {
                    let path = args.value(option)?;
                    once(&mut given.path, option, Path::of_request(path))?;
                    given.raw_path = Some(path);
                }
                "METHOD" => once(&mut given.method, option, method(args.value(option)?)?)?,
                "SCOPE" => {
                    let scope = Scope::parse(args.value(option)?)?;
                    let too_many = Error::TooManyItems { what: "SCOPE", max: MAX_SCOPES };
                    asked.scopes.try_push(scope).map_err(|_| too_many)?;
                }
                "COST" => {
                    let units = args.cost()?;
                    let unit = unit(args)?;
                    if asked.costs.iter().any(|(other, _)| *other == unit) {
                        return Err(Error::Repeated { option });
                    }
                    let too_many = Error::TooManyItems { what: "COST", max: MAX_LIMITS };
                    asked.costs.try_push((unit, units)).map_err(|_| too_many)?;
                }
                _ => once(&mut given.with_meta, option, ())?,
            }
        }
        Ok(given)
    }
}

/// A method of HTTP, or of what else is spoken: a token.
pub(super) fn method(bytes: &[u8]) -> Result<&str> {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let proper = (1..=32).contains(&bytes.len()) && bytes.iter().all(is_token);
    let accepted = "a method of HTTP, of up to 32 characters";
    str::from_utf8(bytes).ok().filter(|_| proper).ok_or(Error::Invalid { what: "METHOD", accepted })
}

fn authenticate(call: &Call<'_>, mut args: Args<'_>, charging: bool) -> Result<()> {
    let at = args.store()?;
    let raw_key = args.bytes()?;
    let Given { asked, path, raw_path, method, with_meta } = Given::parse(&mut args)?;
    args.finish()?;
    let store = Store::open_unconfirmed(call.ctx, at)?;
    let mut buffer = Vec::with_capacity(128);
    let told = Told { path: raw_path, method, address: asked.address };
    let answer = |map: &mut Map<'_>, code: Code, id: u64| {
        if charging {
            count(code);
            usage::answered(call, &store, code, id, told);
        }
        map.field("code", code.as_str());
    };

    if let Some(address) = asked.address {
        let (_, rules) = store.open_derived(&Derived::Ips, &mut buffer, false)?;
        if let Some(Standing::Blocked(_, rule)) =
            rules.native::<Rules>()?.map(|rules| rules.judge(address, path.as_ref(), call.now_ms))
        {
            let mut map = Map::default();
            answer(&mut map, Code::IpBlocked, 0);
            map.optional("retry_after_ms", rule.left_ms(call.now_ms));
            map.field("limited_by", "address");
            map.send(call.ctx);
            return Ok(());
        }
    }

    let not_found = || {
        store.confirm()?;
        if let Some(address) = asked.address
            && charging
            && !raw_key.is_empty()
        {
            failures::note(call, &store, address)?;
        }
        let mut map = Map::default();
        answer(&mut map, Code::NotFound, 0);
        map.send(call.ctx);
        Ok(())
    };
    let Some(found) = look_up(call.ctx, &store, raw_key, &mut buffer)? else { return not_found() };
    let (id, key) = (found.id, ApiRecord::decode(found.packed.bytes())?);
    if !found.works(&key, call.now_ms)? {
        return not_found();
    }
    let (_, org) = store.open_derived(&Derived::Org(key.org.as_bytes()), &mut buffer, false)?;
    let damaged = "organization record";
    let packed_org = Store::packed_in(&org, damaged, damaged).map_err(|error| match error {
        Error::NoSuch { what } => Error::Damaged { what },
        error => error,
    })?;
    drop(org);
    let org = OrgRecord::decode(packed_org.bytes())?;
    let meta = with_meta.map(|()| store.record_field(id, &META)).transpose()?.flatten();

    if let Some(code) = gate::standing(&key, &org, &asked, call.now_ms) {
        let mut map = Map::default();
        answer(&mut map, code, id);
        describe(&mut map, id, &key);
        map.optional("meta", meta.as_ref().map(|meta| meta.name().bytes())).send(call.ctx);
        return Ok(());
    }

    let (own_name, mut own) = store.open_derived(&Derived::Win(id), &mut buffer, charging)?;
    let is_metered = !org.limits.is_empty() || !org.quotas.is_empty();
    let of_org = Derived::OrgWin(key.org.as_bytes());
    let mut shared = is_metered.then(|| store.open_derived(&of_org, &mut buffer, charging)).transpose()?;
    let meters = own.native::<Meters>()?;
    let shared_meters = shared.as_ref().map(|(_, key)| key.native::<Meters>()).transpose()?.flatten();
    let use_is_due = meters.is_none_or(|meters| meters.use_is_due(call.now_ms));
    let mut decision = gate::admit(
        Owner { limits: &key.limits, quotas: &key.quotas, meters },
        Owner { limits: &org.limits, quotas: &org.quotas, meters: shared_meters },
        &asked,
        charging,
        call.now_ms,
        &|| store.zone(),
    )?;
    let granted = decision.code == Code::Valid;

    if granted
        && charging
        && let Some(admitted) = gate::admitted(&mut decision, id, key.org, use_is_due)
    {
        let shared = shared.as_mut().map(|(name, key)| (&*name, key));
        effects::commit_admitted(call.ctx, (store.name, store.header), admitted, (&own_name, &mut own), shared)?;
    }
    drop((own, shared));
    if granted && charging {
        renew(&store, &found, &key, raw_key, call.now_ms);
    }
    if charging && decision.code == Code::QuotaExceeded {
        call.ctx.notify(c"kg.quota", OwnedString::new(&store.name.key(id)).name());
    }

    let mut map = Map::default();
    answer(&mut map, decision.code, id);
    describe(&mut map, id, &key);
    if let Some(verdict) = decision.limit {
        map.field("limit", verdict.limit.count())
            .field("remaining", verdict.remaining)
            .field("window_ms", verdict.limit.window_ms())
            .field("reset_after_ms", verdict.reset_after_ms);
        if decision.code == Code::RateLimited {
            map.field("retry_after_ms", Value::Integer(verdict.retry.as_reply()));
            map.field("limited_by", if verdict.whose == Whose::Key { "key" } else { "org" });
        }
    }
    if let Some(quota) = decision.quota {
        if decision.code == Code::QuotaExceeded {
            map.field("retry_after_ms", Value::Integer(quota.retry.as_reply())).field("limited_by", "quota");
        }
        let remaining = if charging { quota.remaining() } else { QuotaVerdict::remaining_before(&quota) };
        map.field("quota_remaining", remaining)
            .optional("quota_reset_ms", quota.until_ms.map(|until_ms| until_ms.saturating_sub(call.now_ms)));
    }
    map.optional("meta", meta.as_ref().map(|meta| meta.name().bytes()));
    if granted && charging {
        map.field("claimed_at_ms", decision.at_ms);
    }
    map.send(call.ctx);
    Ok(())
}

/// A key that was digested under an older key of the keyring gets its digest under the newest: this is the only time that its
/// holder shows it. The key before it is forgotten when its grace has ended. What cannot be written as it should be, stays.
fn renew(store: &Store<'_>, found: &Found, key: &ApiRecord<'_>, raw_key: &[u8], now_ms: u64) {
    let is_older = !found.is_newest && key.issued.digest.matches(&found.digest);
    let previous = key.previous.filter(|(_, until_ms)| now_ms < *until_ms);
    if !is_older && previous.is_some() == key.previous.is_some() {
        return;
    }
    let mut new = ApiRecord { previous, ..key.clone() };
    if is_older {
        let Ok(keyring) = keyring::current(store.ctx()) else { return };
        new.issued.digest = digest(keyring.newest(), Domain::Api, raw_key);
        new.issued.digest_key = keyring.newest().fingerprint();
    }
    // The call was let in, and is answered so: what the server refuses to write now, it has logged.
    if let Ok(changing) = Reissue::expect(store, found.id, key, &new) {
        let _ = changing.write(store);
    }
}

fn describe<'m, 'a>(map: &'m mut Map<'a>, id: u64, key: &'a ApiRecord<'_>) -> &'m mut Map<'a> {
    map.field("id", id).field("org", key.org).field("label", key.label).field("scopes", &key.scopes)
}
