//! The limiter: `KG.CLAIM`, `KG.REMAINING`, `KG.REFUND`, `KG.INSPECT`.

use keyguard_core::asked::Asked;
use keyguard_core::limiter::{Decision, Retry};
use keyguard_core::names::belongs_to_store;
use keyguard_core::waiting::{Bucket, Demand, Wish};
use keyguard_core::window::{MAX_INSTANT_MS, WindowLog};
use keyguard_core::{Error, Result, parse};

use super::Call;
use crate::args::{Args, once};
use crate::config;
use crate::effects;
use crate::ffi::{Name, raw};
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::{ClaimReply, Map, integer};
use crate::waiting;

const LIMITS: Arg = Arg::block(c"limit", &[Arg::integer(c"count"), Arg::text(c"window")]).multiple();

const COST: Arg = Arg::integer(c"n").token(c"COST").optional();

/// `KG.CLAIM bucket count window [count window ...] [COST n] [BLOCK duration] [LOCKOUT duration]`
pub struct Claim;

impl Command for Claim {
    const SPEC: Spec = Spec {
        name: c"KG.CLAIM",
        summary: c"Takes units from a bucket if every limit allows it, else says when to come back, or waits",
        complexity: c"O(1) amortized when granted, O(log N) when refused, N being the entries in the longest window",
        flags: "deny-oom fast blocking",
        access: Access::Write,
        category: Category::Use,
        min_args: 4,
        secrets: &[],
        secrets_from: 0,
        args: &[
            Arg::key(c"bucket"),
            LIMITS,
            COST,
            Arg::text(c"wait").token(c"BLOCK").optional(),
            Arg::text(c"lock").token(c"LOCKOUT").optional(),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let bucket = bucket(&mut args)?;
        let asked = Asked::claim(args)?;
        let block_ms = asked.block_ms.map(config::checked_block_ms).transpose()?;

        let mut key = call.ctx.change(bucket);
        let mut decision = Decision::on(key.native::<WindowLog>()?, &asked.limits, asked.cost, call.now_ms)?;
        if let Some(ms) = waiting::others_wait_ms(call.ctx, bucket, &asked.limits, call.now_ms) {
            decision.defer(ms);
        }
        if let (Some(block_ms), Retry::After(retry_ms)) = (block_ms, decision.verdict.retry)
            && !call.ctx.has_flags(raw::REDISMODULE_CTX_FLAGS_DENY_BLOCKING)
            && call.ctx.has_flags(raw::REDISMODULE_CTX_FLAGS_MASTER)
        {
            drop(key);
            let Asked { limits, cost, lockout_ms, .. } = asked;
            let bucket = Bucket::new(call.ctx.selected_database(), bucket.bytes());
            let wish = Wish { bucket, demand: Demand::Units { limits, cost, lockout_ms } };
            return waiting::join(call.ctx, wish, call.now_ms, retry_ms, block_ms);
        }

        if let Some(effect) = decision.effect(asked.lockout_ms) {
            effects::book(call.ctx, bucket, &mut key, &effect)?;
            drop(key);
            waiting::touched(call.ctx, bucket);
        }

        ClaimReply::of_claim(&decision).send(call.ctx);
        Ok(())
    }
}

/// `KG.REMAINING bucket count window [count window ...] [COST n]`
pub struct Remaining;

impl Command for Remaining {
    const SPEC: Spec = Spec {
        name: c"KG.REMAINING",
        summary: c"Says what KG.CLAIM would answer, and changes nothing",
        complexity: c"O(log N), N being the entries in the longest window",
        flags: "fast",
        access: Access::Read,
        category: Category::Use,
        min_args: 4,
        secrets: &[],
        secrets_from: 0,
        args: &[Arg::key(c"bucket"), LIMITS, COST],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let bucket = bucket(&mut args)?;
        let asked = Asked::remaining(args)?;

        let key = call.ctx.read(bucket);
        let log = key.native::<WindowLog>()?;
        let mut decision = Decision::on(log, &asked.limits, asked.cost, call.now_ms)?;
        if let Some(ms) = waiting::others_wait_ms(call.ctx, bucket, &asked.limits, call.now_ms) {
            decision.defer(ms);
        }

        ClaimReply::of_remaining(&decision, log).send(call.ctx);
        Ok(())
    }
}

/// `KG.REFUND bucket n [AT claimed_at_ms]`
pub struct Refund;

impl Command for Refund {
    const SPEC: Spec = Spec {
        name: c"KG.REFUND",
        summary: c"Gives units back to a bucket, those of one claim or the newest, and wakes who waits",
        complexity: c"O(N/100) in the worst case, N being the entries in the bucket",
        flags: "fast",
        access: Access::Write,
        category: Category::Use,
        min_args: 3,
        secrets: &[],
        secrets_from: 0,
        args: &[Arg::key(c"bucket"), Arg::integer(c"n"), Arg::integer(c"claimed_at_ms").token(c"AT").optional()],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let bucket = bucket(&mut args)?;
        let units = args.units("n")?;
        let mut at_ms = None;
        while let Some(option) = args.option(&["AT"])? {
            let value = parse::unsigned(args.value(option)?).filter(|at| (1..=MAX_INSTANT_MS).contains(at));
            let accepted = "claimed_at_ms as KG.CLAIM answered it, unix milliseconds";
            once(&mut at_ms, option, value.ok_or(Error::Invalid { what: "AT", accepted })?)?;
        }
        args.finish()?;

        let mut key = call.ctx.change(bucket);
        let Some(log) = key.native::<WindowLog>()? else {
            call.ctx.reply_integer(0);
            return Ok(());
        };
        let dead_until_ms = call.now_ms.max(log.latest_ms().unwrap_or(0)).checked_sub(log.retention_ms());

        let taken = effects::refund(call.ctx, bucket, &mut key, units, at_ms, dead_until_ms)?;
        drop(key);
        if taken > 0 {
            waiting::touched(call.ctx, bucket);
        }

        call.ctx.reply_integer(integer(taken));
        Ok(())
    }
}

/// `KG.INSPECT bucket`
pub struct Inspect;

impl Command for Inspect {
    const SPEC: Spec = Spec {
        name: c"KG.INSPECT",
        summary: c"Says what a bucket holds: entries, units, bytes and their age; a lock; and how many wait",
        complexity: c"O(N/100), N being the entries in the bucket",
        flags: "",
        access: Access::Read,
        category: Category::Read,
        min_args: 2,
        secrets: &[],
        secrets_from: 0,
        args: &[Arg::key(c"bucket")],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let bucket = bucket(&mut args)?;
        args.finish()?;

        let key = call.ctx.read(bucket);
        let absent = WindowLog::default();
        let log = key.native::<WindowLog>()?.unwrap_or(&absent);

        let mut map = Map::default();
        map.field("entries", log.entries() as u64)
            .field("units", log.units())
            .field("bytes", if log.is_empty() { 0 } else { log.memory_bytes() as u64 })
            .optional("oldest", log.oldest_ms())
            .optional("newest", log.newest_ms())
            .field("retention", log.retention_ms())
            .optional("locked_until", log.locked_until_ms().filter(|until| *until > call.now_ms))
            .field("waiters", waiting::waiters_of(call.ctx, bucket) as u64);
        map.send(call.ctx);
        Ok(())
    }
}

/// The name of a bucket: any but those of a store's own keys.
fn bucket<'c>(args: &mut Args<'c>) -> Result<Name<'c>> {
    let name = args.name()?;
    if belongs_to_store(name.bytes()) { Err(Error::ReservedName) } else { Ok(name) }
}
