//! Handing out vault keys: `KG.ACQUIRE`, `KG.SETTLE`, `KG.FEEDBACK`, `KG.NEXTKEY`.

use keyguard_core::cooling::{self, Feedback as Learnt};
use keyguard_core::effect::{Effect, UnitClaims};
use keyguard_core::limit::{Limit, MAX_LIMITS};
use keyguard_core::meters::Meters;
use keyguard_core::names::name;
use keyguard_core::parse::MAX_INSTANT_MS;
use keyguard_core::pool::{History, Pool, Traits, Unit, Wanted};
use keyguard_core::record::{Record, Status, UnitLimits, VaultRecord};
use keyguard_core::selection::{AHEAD_MS, Ask, Order, kept_ms};
use keyguard_core::waiting::{Bucket, Demand, Wish};
use keyguard_core::{Error, Result, parse};

use super::keys::{describe_record, write_vault};
use super::{COST, Call, LIMIT, unit, unit_limit};
use crate::acquire;
use crate::adding::pool_touched;
use crate::args::{Args, once};
use crate::ffi::{OwnedString, raw};
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::store::{Missing, Packed, Store};
use crate::{config, effects, waiting};

/// `[SOURCE source] [LOGIN login] [BATCH batch]`
const SOURCE: Arg = Arg::text(c"source").token(c"SOURCE").optional();
const LOGIN: Arg = Arg::text(c"login").token(c"LOGIN").optional();
const BATCH: Arg = Arg::text(c"batch").token(c"BATCH").optional();

/// `COST n [UNIT u]`, at least once.
const ACTUAL: Arg =
    Arg::block(c"cost", &[Arg::integer(c"n").token(c"COST"), Arg::text(c"unit").token(c"UNIT").optional()]).multiple();

/// Reads the value of SOURCE, LOGIN or BATCH.
fn want<'c>(wanted: &mut Wanted, option: &'static str, args: &mut Args<'c>) -> Result<()> {
    let value = name(args.value(option)?, option)?;
    let field = match option {
        "SOURCE" => &mut wanted.source,
        "LOGIN" => &mut wanted.login,
        _ => &mut wanted.batch,
    };
    once(field, option, value.into())
}

/// `KG.ACQUIRE store name [SOURCE s] [LOGIN s] [BATCH s] [LIMIT ...]... [COST ...]... [ORDER order] [BLOCK duration]`
pub struct Acquire;

impl Command for Acquire {
    const SPEC: Spec = Spec {
        name: c"KG.ACQUIRE",
        summary: c"Hands out one of the vault keys of a name, within their limits, and its secret; or says when one is back, or waits",
        complexity: c"O(log N) for most calls, N being the keys of that name; O(N) at worst",
        flags: "deny-oom deny-script blocking",
        access: Access::Write,
        category: Category::Secrets,
        min_args: 3,
        secrets: &[],
        secrets_from: 0,
        args: &[
            Arg::key(c"store"),
            Arg::text(c"name"),
            SOURCE,
            LOGIN,
            BATCH,
            LIMIT,
            COST,
            Arg::one_of(
                c"order",
                &[
                    Arg::word(c"expiry", c"expiry"),
                    Arg::word(c"remaining", c"remaining"),
                    Arg::word(c"rotate", c"rotate"),
                    Arg::word(c"weight", c"weight"),
                    Arg::word(c"random", c"random"),
                ],
            )
            .token(c"ORDER")
            .optional(),
            Arg::text(c"wait").token(c"BLOCK").optional(),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let of = name(args.bytes()?, "name")?;
        let (mut wanted, mut order, mut block_ms) = (Wanted::default(), None, None);
        let (mut limits, mut costs) = (UnitLimits::new(), Vec::new());
        while let Some(option) = args.option(&["SOURCE", "LOGIN", "BATCH", "LIMIT", "COST", "ORDER", "BLOCK"])? {
            match option {
                "LIMIT" => unit_limit(&mut args, &mut limits)?,
                "COST" => unit_cost(&mut args, &mut costs)?,
                "ORDER" => once(&mut order, option, parse_order(args.value(option)?)?)?,
                "BLOCK" => once(&mut block_ms, option, parse::duration_with_unit_ms(args.value(option)?, option)?)?,
                _ => want(&mut wanted, option, &mut args)?,
            }
        }
        args.finish()?;
        let block_ms = block_ms.map(config::checked_block_ms).transpose()?;
        let ask = Ask::new(wanted, order.unwrap_or_default(), costs, &limits);
        let store = Store::open_unconfirmed(call.ctx, at)?;

        let pool = OwnedString::new(&store.name.pool(of));
        let others = waiting::wanted_by_others(call.ctx, pool.name());
        let outcome = acquire::attempt(&store, of, &ask, &others, call.now_ms, true)?;
        if let (Some(block_ms), Some(wait_ms)) = (block_ms, outcome.wait_ms())
            && !call.ctx.has_flags(raw::REDISMODULE_CTX_FLAGS_DENY_BLOCKING)
            && call.ctx.has_flags(raw::REDISMODULE_CTX_FLAGS_MASTER)
        {
            let bucket = Bucket::new(call.ctx.selected_database(), pool.name().bytes());
            let wish = Wish { bucket, demand: Demand::Key(ask) };
            return waiting::join(call.ctx, wish, call.now_ms, wait_ms, block_ms);
        }

        outcome.send(call.ctx);
        Ok(())
    }
}

fn parse_order(word: &[u8]) -> Result<Order> {
    let order = Order::WORDS.into_iter().find(|(name, _)| word.eq_ignore_ascii_case(name.as_bytes()));
    let accepted = "expiry, remaining, rotate, weight or random";
    order.map(|(_, order)| order).ok_or(Error::Invalid { what: "ORDER", accepted })
}

/// Reads what follows the word COST.
fn unit_cost(args: &mut Args<'_>, costs: &mut Vec<(Unit, u64)>) -> Result<()> {
    let units = args.cost()?;
    let unit = Unit::from(unit(args)?).map_err(|_| Error::Internal)?;
    if costs.iter().any(|(other, _)| *other == unit) {
        return Err(Error::Repeated { option: "COST" });
    }
    if costs.len() == MAX_LIMITS {
        return Err(Error::TooManyItems { what: "COST", max: MAX_LIMITS });
    }
    costs.push((unit, units));
    Ok(())
}

/// Reads the value of AT: an instant as KG.ACQUIRE answered it.
fn claimed_at(args: &mut Args<'_>) -> Result<u64> {
    let value = parse::unsigned(args.value("AT")?).filter(|at| (1..=MAX_INSTANT_MS).contains(at));
    value.ok_or(Error::Invalid { what: "AT", accepted: "claimed_at_ms as KG.ACQUIRE answered it, unix milliseconds" })
}

/// The vault key of this id, whose packed record is `packed`.
fn vault_record(packed: &Packed) -> Result<VaultRecord<'_>> {
    match Record::decode(packed.bytes())? {
        Record::Vault(record) => Ok(record),
        Record::Api(_) => Err(Error::NoSuch { what: "vault key" }),
    }
}

/// `KG.SETTLE store id AT claimed_at_ms COST actual [UNIT u] [COST ...]...`
pub struct Settle;

impl Command for Settle {
    const SPEC: Spec = Spec {
        name: c"KG.SETTLE",
        summary: c"Corrects what KG.ACQUIRE charged to a key, up or down, once the real use is known",
        complexity: c"O(log N), N being the claims in the key's windows",
        flags: "fast",
        access: Access::Write,
        category: Category::Use,
        min_args: 7,
        secrets: &[],
        secrets_from: 0,
        args: &[Arg::key(c"store"), Arg::integer(c"id"), Arg::integer(c"claimed_at_ms").token(c"AT"), ACTUAL],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let id = args.id()?;
        let (mut at_ms, mut costs) = (None, Vec::new());
        while let Some(option) = args.option(&["AT", "COST"])? {
            match option {
                "AT" => once(&mut at_ms, option, claimed_at(&mut args)?)?,
                _ => unit_cost(&mut args, &mut costs)?,
            }
        }
        let at_ms = at_ms.ok_or(Error::MissingValue { option: "AT" })?;
        if costs.is_empty() {
            return Err(Error::MissingValue { option: "COST" });
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;

        let packed = store.packed_record(id)?;
        let record = vault_record(&packed)?;
        let pool = store.read(&store.name.pool(record.name))?;
        let Some((pool, history)) = member(pool.native()?, id) else { return Err(Error::Damaged { what: "pool" }) };
        let limits = pool.limits(id).ok_or(Error::Internal)?;
        let mut own = UnitClaims::new();
        let mut account: Option<(&str, UnitClaims<'_>)> = None;
        for (unit, units) in &costs {
            let log = history.meters.log(unit);
            let longest = |(_, limits): (&str, &[Limit])| kept_ms(limits);
            let is_unit = |(name, _): &(&str, &[Limit])| *name == unit.as_str();
            let shared = limits.of_account().map(|(name, mut shared)| (name, shared.find(is_unit).map(longest)));
            // Without a limit of its own, a key is charged where its account has one, or where the call named one.
            let named = limits.own().find(is_unit).map(longest).or(shared.and_then(|(_, window_ms)| window_ms));
            let window_ms = named.or(log.map(|log| log.retention_ms())).unwrap_or(0);
            let before = log.map_or(0, |log| log.units_at(at_ms));
            // It is kept for longer than it counts.
            let runs_out_ms = at_ms + window_ms.saturating_sub(AHEAD_MS);
            let counts = runs_out_ms > call.now_ms && at_ms <= call.now_ms + AHEAD_MS;
            if !counts || before == *units {
                continue;
            }
            own.push((unit, *units, window_ms));
            let Some((name, window_ms)) = shared else { continue };
            let key = store.read(&store.name.account(name))?;
            let log = key.native::<Meters>()?.and_then(|meters| meters.log(unit));
            let Some(window_ms) = window_ms.or(log.map(|log| log.retention_ms())) else { continue };
            let there = log.map_or(0, |log| log.units_at(at_ms));
            let claims = &mut account.get_or_insert_with(|| (name, UnitClaims::new())).1;
            claims.push((unit, (there + units).saturating_sub(before), window_ms));
        }
        let corrected = own.len() as i64;
        let on_account = account.is_some();

        if corrected > 0 {
            let effect = Effect::Settle { pool: record.name, id, at_ms, own, account };
            let packed = effect.encode()?;
            effects::commit(call.ctx, store.header, &Effect::decode(&packed)?)?;
            pool_touched(&store, record.name);
            if on_account {
                waiting::account_touched(call.ctx, store.name);
            }
        }

        call.ctx.reply_integer(corrected);
        Ok(())
    }
}

fn member(pool: Option<&Pool>, id: u64) -> Option<(&Pool, &History)> {
    pool.and_then(|pool| pool.history(id).map(|history| (pool, history)))
}

/// `KG.FEEDBACK store id <OK | THROTTLED [duration] | REJECTED [REASON s]> [AT claimed_at_ms]`
pub struct Feedback;

enum Report {
    Learnt(Learnt),
    Rejected,
}

impl Command for Feedback {
    const SPEC: Spec = Spec {
        name: c"KG.FEEDBACK",
        summary: c"Tells what a vendor said to a key: that it was taken, throttled or rejected",
        complexity: c"O(log N), N being the keys of its name",
        flags: "fast",
        access: Access::Write,
        category: Category::Use,
        min_args: 4,
        secrets: &[],
        secrets_from: 0,
        args: &[
            Arg::key(c"store"),
            Arg::integer(c"id"),
            Arg::one_of(
                c"report",
                &[
                    Arg::word(c"ok", c"OK"),
                    Arg::block(
                        c"throttled",
                        &[Arg::word(c"throttled", c"THROTTLED"), Arg::text(c"duration").optional()],
                    ),
                    Arg::block(
                        c"rejected",
                        &[Arg::word(c"rejected", c"REJECTED"), Arg::text(c"reason").token(c"REASON").optional()],
                    ),
                ],
            ),
            Arg::integer(c"claimed_at_ms").token(c"AT").optional(),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let id = args.id()?;
        let report = match args.option(&["OK", "THROTTLED", "REJECTED"])? {
            Some("OK") => Report::Learnt(Learnt::Ok),
            Some("THROTTLED") => {
                let is_duration = args.peek().is_some_and(|next| !next.eq_ignore_ascii_case(b"AT"));
                let said = is_duration.then(|| args.bytes()).transpose()?;
                Report::Learnt(Learnt::Throttled(said.map(|said| parse::duration_ms(said, "THROTTLED")).transpose()?))
            }
            Some(_) => Report::Rejected,
            None => return Err(Error::MissingValue { option: "KG.FEEDBACK" }),
        };
        let options: &[&str] = if matches!(report, Report::Rejected) { &["AT", "REASON"] } else { &["AT"] };
        let (mut claimed_ms, mut reason) = (None, None);
        while let Some(option) = args.option(options)? {
            match option {
                "AT" => once(&mut claimed_ms, option, claimed_at(&mut args)?)?,
                _ => once(&mut reason, option, name(args.value(option)?, option)?)?,
            }
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;

        let packed = store.packed_record(id)?;
        let mut record = vault_record(&packed)?;
        let pool = store.read(&store.name.pool(record.name))?;
        let Some((_, history)) = member(pool.native()?, id) else { return Err(Error::Damaged { what: "pool" }) };
        let (before, used_ms) = (history.cooling.as_deref().copied(), history.used_ms);
        drop(pool);

        let cooling_ms = match report {
            Report::Learnt(learnt) => {
                let after = cooling::after(before, learnt, claimed_ms, used_ms, call.now_ms);
                if after != before {
                    let effect = Effect::Cool { pool: record.name, id, cooling: after };
                    effects::commit(call.ctx, store.header, &effect)?;
                    pool_touched(&store, record.name);
                }
                after.map_or(0, |cooling| cooling.until_ms.saturating_sub(call.now_ms)) as i64
            }
            Report::Rejected => {
                record.status = Status::Inactive;
                record.rejected = Some(reason.unwrap_or("rejected by the vendor"));
                write_vault(&store, id, &record, None)?;
                let traits = Traits::of(&record).encode();
                let effect = Effect::Enroll { pool: record.name, from: None, id, traits: &traits };
                effects::commit(call.ctx, store.header, &effect)?;
                pool_touched(&store, record.name);
                -1
            }
        };

        call.ctx.reply_integer(cooling_ms);
        Ok(())
    }
}

/// `KG.NEXTKEY store name [SOURCE s] [LOGIN s] [BATCH s]`
pub struct NextKey;

impl Command for NextKey {
    const SPEC: Spec = Spec {
        name: c"KG.NEXTKEY",
        summary:
            c"Describes the usable vault key of a name to be used up next: soonest to expire, from the smallest set",
        complexity: c"O(N), N being the keys of that name",
        flags: "",
        access: Access::Read,
        category: Category::Read,
        min_args: 3,
        secrets: &[],
        secrets_from: 0,
        args: &[Arg::key(c"store"), Arg::text(c"name"), SOURCE, LOGIN, BATCH],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let of = name(args.bytes()?, "name")?;
        let mut wanted = Wanted::default();
        while let Some(option) = args.option(&["SOURCE", "LOGIN", "BATCH"])? {
            want(&mut wanted, option, &mut args)?;
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;

        let key = store.read(&store.name.pool(of))?;
        let pool = key.native::<Pool>()?.ok_or(Error::NoSuch { what: "name" })?;
        let id = pool.next(&wanted, call.now_ms).ok_or(Error::NoSuch { what: "usable key" })?;
        drop(key);

        describe_record(call, &store, id)
    }
}
