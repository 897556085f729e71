//! Who is let in: the decision of `KG.AUTH` and `KG.CHECK`, once a raw key has led to a record.
//!
//! What is checked, in this order; the first that fails is the code: the record (active, not expired), its organization, where the
//! call comes from, the scopes that it needs, the limits, the quotas. A call is charged only if everything passed, and then to all
//! limits and quotas of the key and of its organization together.

use arrayvec::ArrayVec;
use serde::{Deserialize, Serialize};

use crate::effect::{Admitted, Charged};
use crate::error::{Error, Result};
use crate::ip::Address;
use crate::limit::{Limit, Limits, MAX_LIMITS};
use crate::limiter::{Moment, Retry, Verdict, clock, decide, longest_ms};
use crate::meters::Meters;
use crate::quota::{MAX_QUOTAS, Quota, QuotaVerdict, Quotas};
use crate::record::{ApiRecord, DEFAULT_UNIT, OrgRecord, OrgStatus, Status, UnitLimits};
use crate::scope::{MAX_SCOPES, Scope};
use crate::window::WindowLog;
use crate::zone::Zone;

/// What becomes of a call. Effects and statistics carry the place of a code in this list: a new one goes to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Code {
    /// It is let in.
    Valid,
    /// Its address is kept out.
    IpBlocked,
    /// No key of the store is this one.
    NotFound,
    /// The key is not active, or revoked.
    Disabled,
    /// The key has expired.
    Expired,
    /// No key of its organization works.
    OrgSuspended,
    /// The key may not be used from there.
    IpNotAllowed,
    /// The key lacks a scope that the call needs.
    InsufficientScope,
    /// A limit of the key or its organization refuses it.
    RateLimited,
    /// A quota of the key or its organization does.
    QuotaExceeded,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Valid,
        Self::IpBlocked,
        Self::NotFound,
        Self::Disabled,
        Self::Expired,
        Self::OrgSuspended,
        Self::IpNotAllowed,
        Self::InsufficientScope,
        Self::RateLimited,
        Self::QuotaExceeded,
    ];

    /// The word that replies use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "VALID",
            Self::IpBlocked => "IP_BLOCKED",
            Self::NotFound => "NOT_FOUND",
            Self::Disabled => "DISABLED",
            Self::Expired => "EXPIRED",
            Self::OrgSuspended => "ORG_SUSPENDED",
            Self::IpNotAllowed => "IP_NOT_ALLOWED",
            Self::InsufficientScope => "INSUFFICIENT_SCOPE",
            Self::RateLimited => "RATE_LIMITED",
            Self::QuotaExceeded => "QUOTA_EXCEEDED",
        }
    }
}

/// What a call asks for, beside showing its key.
#[derive(Debug, Clone, Default)]
pub struct Asked<'c> {
    /// Where it comes from.
    pub address: Option<Address>,
    /// The scopes that it needs, all of them.
    pub scopes: ArrayVec<Scope<'c>, MAX_SCOPES>,
    /// What it costs, by unit.
    pub costs: ArrayVec<(&'c str, u64), MAX_LIMITS>,
}

impl Asked<'_> {
    /// What the call costs in a unit: what it says, else one request.
    #[must_use]
    pub fn cost(&self, unit: &str) -> u64 {
        let named = self.costs.iter().find(|(name, _)| *name == unit).map(|(_, units)| *units);
        named.unwrap_or(u64::from(unit == DEFAULT_UNIT))
    }
}

/// The code of a call that is refused for what its key and its organization are, whatever they used so far; None if it is not.
#[must_use]
pub fn standing(key: &ApiRecord<'_>, org: &OrgRecord<'_>, asked: &Asked<'_>, now_ms: u64) -> Option<Code> {
    if key.status != Status::Active {
        Some(Code::Disabled)
    } else if key.expired(now_ms) {
        Some(Code::Expired)
    } else if org.status == OrgStatus::Suspended {
        Some(Code::OrgSuspended)
    } else if !key.allowed.admits(asked.address) {
        Some(Code::IpNotAllowed)
    } else if !asked.scopes.iter().all(|scope| key.scopes.grant(scope.as_str())) {
        Some(Code::InsufficientScope)
    } else {
        None
    }
}

/// Who is charged, and what it used so far.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'r, 's> {
    /// Its limits.
    pub limits: &'r UnitLimits<'r>,
    /// Its quotas.
    pub quotas: &'r Quotas<'r>,
    /// What it used so far.
    pub meters: Option<&'s Meters>,
}

/// Whose limit it is that is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The key's.
    Key,
    /// Its organization's.
    Org,
}

/// What a limit says of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitVerdict {
    /// The limit.
    pub limit: Limit,
    /// Whose it is.
    pub whose: Whose,
    /// Units left when all is done.
    pub remaining: u64,
    /// Milliseconds until it is full again, when all is done.
    pub reset_after_ms: u64,
    /// Whether the call fits, and when it may come back if not.
    pub retry: Retry,
}

/// What becomes of a call whose key and organization are in good standing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision<'r> {
    /// `Valid`, `RateLimited` or `QuotaExceeded`.
    pub code: Code,
    /// The limit that matters most, if there is any.
    pub limit: Option<LimitVerdict>,
    /// The quota that matters most, if there is any; not told of where a limit refuses.
    pub quota: Option<QuotaVerdict>,
    /// When a valid call is booked, in unix milliseconds.
    pub at_ms: u64,
    /// What a valid call charges the key and its organization.
    pub charged: [Charged<'r>; 2],
}

/// A claim on one unit of one owner.
struct Claim<'r, 's> {
    whose: Whose,
    unit: &'r str,
    limits: Limits,
    cost: u64,
    log: Option<&'s WindowLog>,
}

/// Decides a call on a key and its organization. Verdicts tell of what is left after it, if it is `charging` and valid, else of how
/// things stand.
///
/// # Errors
/// [`Error::BucketFull`] when it would be granted and a log has no room for another entry; those of `zone`, which is asked for the
/// store's time zone when a new period of a quota begins.
pub fn admit<'r>(
    key: Owner<'r, '_>,
    org: Owner<'r, '_>,
    asked: &Asked<'_>,
    charging: bool,
    now_ms: u64,
    zone: &dyn Fn() -> Result<Zone>,
) -> Result<Decision<'r>> {
    let owners = [(Whose::Key, key), (Whose::Org, org)];
    let mut claims: ArrayVec<Claim<'r, '_>, { 2 * MAX_LIMITS }> = ArrayVec::new();
    for (whose, owner) in &owners {
        for limit in owner.limits {
            let same = claims.iter_mut().find(|claim| claim.whose == *whose && claim.unit == limit.unit);
            if let Some(claim) = same {
                claim.limits.push(limit.limit);
                continue;
            }
            let mut limits = Limits::new();
            limits.push(limit.limit);
            let log = owner.meters.and_then(|meters| meters.log(limit.unit));
            claims.push(Claim { whose: *whose, unit: limit.unit, limits, cost: asked.cost(limit.unit), log });
        }
    }
    let mut moment = Moment::at(now_ms, now_ms);
    for claim in &claims {
        let own = clock(claim.log, longest_ms(&claim.limits), now_ms);
        moment = Moment::at(now_ms, moment.at_ms.max(own.at_ms));
    }

    let mut told: Option<(Verdict, &Claim<'r, '_>)> = None;
    for claim in &claims {
        let verdict = decide(claim.log, &claim.limits, claim.cost, moment)?.ok_or(Error::Internal)?;
        if told.is_none_or(|(told, _)| !told.matters_more_than(&verdict)) {
            told = Some((verdict, claim));
        }
    }
    let limit = told.map(|(verdict, claim)| LimitVerdict {
        limit: verdict.limit,
        whose: claim.whose,
        remaining: verdict.remaining(),
        reset_after_ms: verdict.reset_after_ms,
        retry: verdict.retry,
    });
    // How things stand when nothing is charged.
    let uncharged = told.map(|(verdict, claim)| LimitVerdict {
        limit: verdict.limit,
        whose: claim.whose,
        remaining: verdict.remaining_before(),
        reset_after_ms: verdict.reset_before_ms(claim.log, moment),
        retry: verdict.retry,
    });
    let mut decision = Decision {
        code: Code::Valid,
        limit: if charging { limit } else { uncharged },
        quota: None,
        at_ms: moment.at_ms,
        charged: Default::default(),
    };
    if told.is_some_and(|(verdict, _)| !verdict.granted()) {
        decision.code = Code::RateLimited;
        return Ok(decision);
    }

    let mut counts: ArrayVec<(Whose, &Quota<'r>, QuotaVerdict), { 2 * MAX_QUOTAS }> = ArrayVec::new();
    for (whose, owner) in &owners {
        for quota in owner.quotas {
            let used = owner.meters.and_then(|meters| meters.used(quota.period, quota.unit));
            let verdict = QuotaVerdict::on(quota, used, asked.cost(quota.unit), now_ms, zone)?;
            if decision.quota.is_none_or(|told| !told.matters_more_than(&verdict)) {
                decision.quota = Some(verdict);
            }
            counts.push((*whose, quota, verdict));
        }
    }
    if decision.quota.is_some_and(|verdict| !verdict.granted()) {
        decision.code = Code::QuotaExceeded;
        decision.limit = uncharged;
        return Ok(decision);
    }

    let [own, shared] = &mut decision.charged;
    for claim in claims.iter().filter(|claim| claim.cost > 0) {
        let to = if claim.whose == Whose::Key { &mut *own } else { &mut *shared };
        to.claims.push((claim.unit, claim.cost, longest_ms(&claim.limits)));
    }
    for (whose, quota, verdict) in counts.iter().filter(|(_, _, verdict)| verdict.cost > 0) {
        let to = if *whose == Whose::Key { &mut *own } else { &mut *shared };
        to.quotas.push((quota.period, quota.unit, verdict.until_ms, verdict.used + verdict.cost));
    }
    Ok(decision)
}

/// What a valid call leaves behind; None if that is nothing.
#[must_use]
pub fn admitted<'r>(decision: &mut Decision<'r>, id: u64, org: &'r str, last_use: bool) -> Option<Admitted<'r>> {
    let [own, shared] = std::mem::take(&mut decision.charged);
    if own.is_empty() && shared.is_empty() && !last_use {
        return None;
    }
    let org = (!shared.is_empty()).then_some((org, shared));
    Some(Admitted { id, at_ms: decision.at_ms, last_use, own, org })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::effect::Claimed;
    use crate::quota::{Period, Used};
    use crate::record::UnitLimit;

    const NOW_MS: u64 = 1_800_000_000_000;
    const HOUR_MS: u64 = 3_600_000;

    fn limits(counts: &[u64]) -> UnitLimits<'static> {
        let limit = |count: &u64| UnitLimit { unit: DEFAULT_UNIT, limit: Limit::new(*count, HOUR_MS).unwrap() };
        counts.iter().map(limit).collect()
    }

    fn quotas(counts: &[u64]) -> Quotas<'static> {
        let quota = |count: &u64| Quota { count: *count, period: Period::Total, unit: DEFAULT_UNIT };
        counts.iter().map(quota).collect()
    }

    fn used(units: u64) -> Meters {
        let mut meters = Meters::default();
        meters.charge(&[(DEFAULT_UNIT, Claimed { at_ms: NOW_MS - 1_000, units, window_ms: HOUR_MS })]);
        meters.set_used(Period::Total, DEFAULT_UNIT, Used { until_ms: None, units });
        meters
    }

    /// The code, what is told of a limit and of a quota, and whether the key and its organization are charged.
    type Outcome = (Code, Option<(Whose, u64, u64)>, Option<u64>, [bool; 2]);

    /// What becomes of a call, by the limits and quotas of a key and of its organization, both of which used so many units.
    fn decided([key, org]: [(&[u64], &[u64]); 2], units: u64, cost: u64, charging: bool) -> Outcome {
        let meters = used(units);
        let (own, shared) = ((limits(key.0), quotas(key.1)), (limits(org.0), quotas(org.1)));
        let asked = Asked { costs: [(DEFAULT_UNIT, cost)].into_iter().collect(), ..Asked::default() };
        let owner = |(limits, quotas)| Owner { limits, quotas, meters: Some(&meters) };
        let (key, org) = (owner((&own.0, &own.1)), owner((&shared.0, &shared.1)));
        let decision = admit(key, org, &asked, charging, NOW_MS, &|| Ok(Zone::default())).unwrap();
        let limit = decision.limit.map(|told| (told.whose, told.remaining, told.reset_after_ms));
        let quota = decision.quota.map(|told| if charging { told.remaining() } else { told.remaining_before() });
        (decision.code, limit, quota, decision.charged.map(|charged| !charged.is_empty()))
    }

    #[test]
    fn all_are_charged_or_none() {
        use Whose::{Key, Org};
        let reset_before = HOUR_MS - 1_000;
        let table = [
            // Neither has limits: nothing is charged, and nothing told.
            ([(&[][..], &[][..]), (&[][..], &[][..])], 3, true, (Code::Valid, None, None, [false, false])),
            ([(&[9], &[]), (&[8], &[])], 3, true, (Code::Valid, Some((Org, 1, HOUR_MS)), None, [true, true])),
            ([(&[9], &[]), (&[], &[])], 3, true, (Code::Valid, Some((Key, 2, HOUR_MS)), None, [true, false])),
            ([(&[9], &[]), (&[], &[20])], 3, true, (Code::Valid, Some((Key, 2, HOUR_MS)), Some(13), [true, true])),
            // A look tells of how things stand.
            (
                [(&[9], &[20]), (&[], &[])],
                3,
                false,
                (Code::Valid, Some((Key, 5, reset_before)), Some(16), [true, false]),
            ),
            // One limit refuses, whatever the others say; quotas are not looked at.
            (
                [(&[9], &[20]), (&[6], &[4])],
                3,
                true,
                (Code::RateLimited, Some((Org, 2, reset_before)), None, [false, false]),
            ),
            // One quota refuses: limits are told of as they stand, since nothing was charged.
            (
                [(&[9], &[20]), (&[], &[6])],
                3,
                true,
                (Code::QuotaExceeded, Some((Key, 5, reset_before)), Some(2), [false, false]),
            ),
            (
                [(&[9], &[4]), (&[], &[])],
                3,
                true,
                (Code::QuotaExceeded, Some((Key, 5, reset_before)), Some(0), [false, false]),
            ),
            // What costs nothing is charged to nobody.
            (
                [(&[9], &[4]), (&[9], &[])],
                0,
                true,
                (Code::Valid, Some((Key, 5, reset_before)), Some(0), [false, false]),
            ),
        ];
        for (owners, cost, charging, told) in table {
            assert_eq!(decided(owners, 4, cost, charging), told, "{owners:?}, cost {cost}, charging {charging}");
        }
    }
}
