//! The limiter: `KG.CLAIM`, `KG.REMAINING`, `KG.REFUND`, `KG.INSPECT`.

use keyguard_core::asked::Asked;
use keyguard_core::effect::Claimed;
use keyguard_core::limiter::{self, Moment, Verdict, clock, longest_ms};
use keyguard_core::names::belongs_to_store;
use keyguard_core::window::{MAX_INSTANT_MS, WindowLog};
use keyguard_core::{Error, Result, parse};

use super::Call;
use crate::args::{Args, once};
use crate::effects;
use crate::ffi::{Ctx, Name};
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::{Map, integer};

const LIMITS: Arg = Arg::block(c"limit", &[Arg::integer(c"count"), Arg::text(c"window")]).multiple();

/// `KG.CLAIM bucket count window [count window ...] [COST n]`
pub struct Claim;

impl Command for Claim {
    const SPEC: Spec = Spec {
        name: c"KG.CLAIM",
        summary: c"Takes units from a bucket if every limit allows it, and says when to come back if not",
        complexity: c"O(1) amortized when granted, O(log N) when refused, N being the entries in the longest window",
        flags: "deny-oom fast",
        access: Access::Write,
        category: Category::Use,
        min_args: 4,
        secrets: &[],
        args: &[Arg::key(c"bucket"), LIMITS, Arg::integer(c"n").token(c"COST").optional()],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let bucket = bucket(&mut args)?;
        let asked = Asked::claim(args)?;
        if asked.block_ms.is_some() {
            return Err(Error::NotYet { what: "BLOCK" });
        }
        if asked.lockout_ms.is_some() {
            return Err(Error::NotYet { what: "LOCKOUT" });
        }

        let mut key = call.ctx.change(bucket);
        let (verdict, moment) = decide(key.native::<WindowLog>()?, &asked, call.now_ms)?;

        if verdict.granted() && asked.cost > 0 {
            let claimed = Claimed { at_ms: moment.at_ms, units: asked.cost, window_ms: longest_ms(&asked.limits) };
            effects::claim(call.ctx, bucket, &mut key, claimed)?;
        }

        let claimed_at_ms = if verdict.granted() { moment.at_ms } else { 0 };
        reply(call.ctx, &verdict, verdict.remaining(), verdict.reset_after_ms, claimed_at_ms);
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
        args: Claim::SPEC.args,
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let bucket = bucket(&mut args)?;
        let asked = Asked::remaining(args)?;

        let key = call.ctx.read(bucket);
        let log = key.native::<WindowLog>()?;
        let (verdict, moment) = decide(log, &asked, call.now_ms)?;

        let reset_after_ms = verdict.reset_before_ms(log, moment);
        reply(call.ctx, &verdict, verdict.remaining_before(), reset_after_ms, 0);
        Ok(())
    }
}

/// `KG.REFUND bucket n [AT claimed_at_ms]`
pub struct Refund;

impl Command for Refund {
    const SPEC: Spec = Spec {
        name: c"KG.REFUND",
        summary: c"Gives units back to a bucket: those of one claim, or the newest",
        complexity: c"O(N/100) in the worst case, N being the entries in the bucket",
        flags: "fast",
        access: Access::Write,
        category: Category::Use,
        min_args: 3,
        secrets: &[],
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
        let dead_until_ms = call.now_ms.max(log.newest_ms().unwrap_or(0)).checked_sub(log.retention_ms());

        let taken = effects::refund(call.ctx, bucket, &mut key, units, at_ms, dead_until_ms)?;

        call.ctx.reply_integer(integer(taken));
        Ok(())
    }
}

/// `KG.INSPECT bucket`
pub struct Inspect;

impl Command for Inspect {
    const SPEC: Spec = Spec {
        name: c"KG.INSPECT",
        summary: c"Says what a bucket holds: entries, units, bytes and their age",
        complexity: c"O(N/100), N being the entries in the bucket",
        flags: "",
        access: Access::Read,
        category: Category::Read,
        min_args: 2,
        secrets: &[],
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
            .field("retention", log.retention_ms());
        map.send(call.ctx);
        Ok(())
    }
}

/// What becomes of a claim now, and the instant that it would stand under.
fn decide(log: Option<&WindowLog>, asked: &Asked, now_ms: u64) -> Result<(Verdict, Moment)> {
    let moment = clock(log, longest_ms(&asked.limits), now_ms);
    let verdict = limiter::decide(log, &asked.limits, asked.cost, moment)?.ok_or(Error::Internal)?;
    Ok((verdict, moment))
}

/// The name of a bucket: any but those of a store's own keys.
fn bucket<'c>(args: &mut Args<'c>) -> Result<Name<'c>> {
    let name = args.name()?;
    if belongs_to_store(name.bytes()) { Err(Error::ReservedName) } else { Ok(name) }
}

fn reply(ctx: Ctx<'_>, verdict: &Verdict, remaining: u64, reset_after_ms: u64, claimed_at_ms: u64) {
    ctx.reply_array(6);
    ctx.reply_integer(i64::from(verdict.granted()));
    ctx.reply_integer(integer(verdict.limit.count()));
    ctx.reply_integer(integer(remaining));
    ctx.reply_integer(verdict.retry.as_reply());
    ctx.reply_integer(integer(reset_after_ms));
    ctx.reply_integer(integer(claimed_at_ms));
}
