//! The gate: `KG.AUTH` and `KG.CHECK`.

use arrayvec::ArrayVec;
use keyguard_core::digest::{Digest, Domain, digest};
use keyguard_core::effect::{Charge, Charges, Claimed, Effect, Owner};
use keyguard_core::ip::{Address, Rules, Standing};
use keyguard_core::limit::{Limits, MAX_LIMITS};
use keyguard_core::limiter::{Moment, Verdict, clock, decide, longest_ms};
use keyguard_core::meters::Meters;
use keyguard_core::record::{ApiRecord, DEFAULT_UNIT, OrgRecord, OrgStatus, Status, UnitLimits};
use keyguard_core::scope::Scope;
use keyguard_core::token;
use keyguard_core::window::WindowLog;
use keyguard_core::{Error, Result};

use super::{COST, Call, unit};
use crate::args::{Args, once};
use crate::effects;
use crate::failures;
use crate::ffi::OwnedString;
use crate::keyring;
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::{Map, Value};
use crate::store::Store;

/// The most scopes that one call may ask for.
const MAX_ASKED_SCOPES: usize = 64;

/// `KG.AUTH store key [IP addr] [SCOPE s]... [COST n [UNIT u]]...`
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
            Arg::text(c"scope").token(c"SCOPE").optional().multiple(),
            COST,
        ],
    };

    fn run(call: &Call<'_>, args: Args<'_>) -> Result<()> {
        authenticate(call, args, true)
    }
}

/// `KG.CHECK store key [IP addr] [SCOPE s]... [COST n [UNIT u]]...`
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

/// What a call is asked to check beside the key itself.
#[derive(Default)]
struct Asked<'c> {
    address: Option<Address>,
    scopes: ArrayVec<Scope<'c>, MAX_ASKED_SCOPES>,
    costs: ArrayVec<(&'c str, u64), MAX_LIMITS>,
}

impl<'c> Asked<'c> {
    fn parse(args: &mut Args<'c>) -> Result<Self> {
        let mut asked = Self::default();
        while let Some(option) = args.option(&["IP", "SCOPE", "COST", "PATH", "METHOD", "WITHMETA"])? {
            match option {
                "IP" => once(&mut asked.address, option, Address::parse(args.value(option)?)?)?,
                "SCOPE" => {
                    let scope = Scope::parse(args.value(option)?)?;
                    let too_many = Error::TooManyItems { what: "SCOPE", max: MAX_ASKED_SCOPES };
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
                what => return Err(Error::NotYet { what }),
            }
        }
        Ok(asked)
    }

    /// What the call costs in a unit: what it says, else one request.
    fn cost(&self, unit: &str) -> u64 {
        let named = self.costs.iter().find(|(name, _)| *name == unit).map(|(_, units)| *units);
        named.unwrap_or(u64::from(unit == DEFAULT_UNIT))
    }
}

fn authenticate(call: &Call<'_>, mut args: Args<'_>, charging: bool) -> Result<()> {
    let at = args.store()?;
    let raw_key = args.bytes()?;
    let asked = Asked::parse(&mut args)?;
    args.finish()?;
    let store = Store::open_unconfirmed(call.ctx, at)?;
    let mut map = Map::default();

    if let Some(address) = asked.address {
        let rules = store.read(&store.name.ips())?;
        if let Some(Standing::Blocked(_, rule)) =
            rules.native::<Rules>()?.map(|rules| rules.judge(address, None, call.now_ms))
        {
            map.field("code", "IP_BLOCKED");
            map.optional("retry_after_ms", rule.left_ms(call.now_ms));
            map.field("limited_by", "address");
            map.send(call.ctx);
            return Ok(());
        }
    }

    let Some((id, packed)) = look_up(call, &store, raw_key)? else {
        store.confirm()?;
        if let Some(address) = asked.address
            && charging
            && !raw_key.is_empty()
        {
            failures::note(call, &store, address)?;
        }
        map.field("code", "NOT_FOUND").send(call.ctx);
        return Ok(());
    };
    let key = ApiRecord::decode(packed.name().bytes())?;
    let packed_org = store.packed_org(key.org).map_err(|error| match error {
        Error::NoSuch { .. } => Error::Damaged { what: "organization record" },
        error => error,
    })?;
    let org = OrgRecord::decode(packed_org.name().bytes())?;

    let code = if key.status != Status::Active {
        Some("DISABLED")
    } else if key.expired(call.now_ms) {
        Some("EXPIRED")
    } else if org.status == OrgStatus::Suspended {
        Some("ORG_SUSPENDED")
    } else if !asked.scopes.iter().all(|scope| key.scopes.grant(scope.as_str())) {
        Some("INSUFFICIENT_SCOPE")
    } else {
        None
    };
    if let Some(code) = code {
        describe(map.field("code", code), id, &key).send(call.ctx);
        return Ok(());
    }

    let meters = |name: Vec<u8>, limits: &UnitLimits<'_>| {
        if limits.is_empty() { Ok(None) } else { store.read(&name).map(Some) }
    };
    let key_meters = meters(store.name.win(id), &key.limits)?;
    let org_meters = meters(store.name.orgwin(key.org), &org.limits)?;
    let mut claims: Vec<Claim<'_, '_>> = Vec::new();
    for (owner, limits, meters) in
        [(Owner::Key(id), &key.limits, &key_meters), (Owner::Org(key.org), &org.limits, &org_meters)]
    {
        let meters = meters.as_ref().map(|meters| meters.native::<Meters>()).transpose()?.flatten();
        collect(&mut claims, owner, limits, meters, &asked);
    }
    let moment = claims.iter().fold(Moment::at(call.now_ms, call.now_ms), |moment, claim| {
        let own = clock(claim.log, longest_ms(&claim.limits), call.now_ms);
        Moment::at(call.now_ms, moment.at_ms.max(own.at_ms))
    });
    let mut told: Option<(Verdict, Owner<'_>)> = None;
    for claim in &claims {
        let mut verdict = decide(claim.log, &claim.limits, claim.cost, moment)?.ok_or(Error::Internal)?;
        if !charging {
            verdict.reset_after_ms = verdict.reset_before_ms(claim.log, moment);
        }
        if told.as_ref().is_none_or(|(told, _)| !told.matters_more_than(&verdict)) {
            told = Some((verdict, claim.owner));
        }
    }
    let granted = told.as_ref().is_none_or(|(verdict, _)| verdict.granted());

    let charges: Charges<'_> = claims.iter().filter(|claim| claim.cost > 0).map(|claim| claim.charge(moment)).collect();
    drop(claims);
    drop((key_meters, org_meters));
    if granted && charging && !charges.is_empty() {
        effects::commit(call.ctx, store.header, &Effect::Charge(charges))?;
    }

    describe(map.field("code", if granted { "VALID" } else { "RATE_LIMITED" }), id, &key);
    if let Some((verdict, owner)) = told {
        let remaining = if charging { verdict.remaining() } else { verdict.remaining_before() };
        map.field("limit", verdict.limit.count())
            .field("remaining", remaining)
            .field("window_ms", verdict.limit.window_ms())
            .field("reset_after_ms", verdict.reset_after_ms);
        if !granted {
            map.field("retry_after_ms", Value::Integer(verdict.retry.as_reply()));
            map.field("limited_by", if matches!(owner, Owner::Key(_)) { "key" } else { "org" });
        }
    }
    if granted && charging {
        map.field("claimed_at_ms", moment.at_ms);
    }
    map.send(call.ctx);
    Ok(())
}

/// The record whose digest is that of the raw key, and its id.
fn look_up(call: &Call<'_>, store: &Store<'_>, raw_key: &[u8]) -> Result<Option<(u64, OwnedString)>> {
    if !token::well_formed(raw_key) {
        return Ok(None);
    }
    let keyring = keyring::current(call.ctx)?;
    for key in keyring.newest_first() {
        let digest = digest(key, Domain::Api, raw_key);
        if let Some(id) = store.ids_of(&digest)?.first() {
            return confirmed(store, *id, &digest).map(|packed| Some((*id, packed)));
        }
    }
    store.confirm_keyring(&keyring)?;
    Ok(None)
}

/// The packed record that an index entry led to, if it is the one that the entry was made for.
fn confirmed(store: &Store<'_>, id: u64, digest: &Digest) -> Result<OwnedString> {
    let damaged = Error::Damaged { what: "digest index" };
    let packed = store.packed_record(id).map_err(|error| match error {
        Error::NoSuch { .. } => damaged,
        error => error,
    })?;
    if ApiRecord::decode(packed.name().bytes())?.digest.matches(digest) { Ok(packed) } else { Err(damaged) }
}

fn describe<'m, 'a>(map: &'m mut Map<'a>, id: u64, key: &'a ApiRecord<'_>) -> &'m mut Map<'a> {
    map.field("id", id)
        .field("org", key.org)
        .field("label", key.label)
        .field("scopes", Value::Strings(key.scopes.iter().collect()))
}

/// A claim on one unit of one owner.
struct Claim<'a, 'm> {
    owner: Owner<'a>,
    unit: &'a str,
    limits: Limits,
    cost: u64,
    log: Option<&'m WindowLog>,
}

impl<'a> Claim<'a, '_> {
    fn charge(&self, moment: Moment) -> Charge<'a> {
        let claimed = Claimed { at_ms: moment.at_ms, units: self.cost, window_ms: longest_ms(&self.limits) };
        Charge { owner: self.owner, unit: self.unit, claimed }
    }
}

/// Adds the claims on an owner's limits, those of one unit together.
fn collect<'a, 'm>(
    claims: &mut Vec<Claim<'a, 'm>>,
    owner: Owner<'a>,
    limits: &UnitLimits<'a>,
    meters: Option<&'m Meters>,
    asked: &Asked<'_>,
) {
    for limit in limits {
        let same = claims.iter_mut().find(|claim| claim.owner == owner && claim.unit == limit.unit);
        match same {
            Some(claim) => claim.limits.push(limit.limit),
            None => claims.push(Claim {
                owner,
                unit: limit.unit,
                limits: [limit.limit].into_iter().collect(),
                cost: asked.cost(limit.unit),
                log: meters.and_then(|meters| meters.log(limit.unit)),
            }),
        }
    }
}
