//! What addresses claim by themselves, without a key: `KG.CLAIMIP`, `KG.CLEARIP`.

use keyguard_core::address::AddressLogs;
use keyguard_core::effect::{Effect, RuleSet};
use keyguard_core::ip::{Address, By, Kind, Rules, Standing};
use keyguard_core::limiter::Decision;
use keyguard_core::path::Path;
use keyguard_core::{Result, parse};

use super::Call;
use super::ip::{End, PATH, blocked, option_path};
use crate::args::{Args, once};
use crate::effects;
use crate::failures;
use crate::ffi::OwnedString;
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::{Map, Value, integer};
use crate::store::{Missing, Store};

/// `KG.CLAIMIP store addr count window [PATH path] [LOCKOUT duration | UNTIL time] [EVERYWHERE]`
pub struct ClaimIp;

impl Command for ClaimIp {
    const SPEC: Spec = Spec {
        name: c"KG.CLAIMIP",
        summary:
            c"Counts a call of an address, on a path or in all, and keeps it out for a while when there are too many",
        complexity: c"O(log N), N being the address rules of the store and the entries in the window",
        flags: "deny-oom fast",
        access: Access::Write,
        category: Category::Use,
        min_args: 5,
        secrets: &[],
        secrets_from: 0,
        args: &[
            Arg::key(c"store"),
            Arg::text(c"addr"),
            Arg::integer(c"count"),
            Arg::text(c"window"),
            PATH,
            Arg::one_of(c"end", &[Arg::text(c"duration"), Arg::text(c"time").token(c"UNTIL")])
                .token(c"LOCKOUT")
                .optional(),
            Arg::word(c"everywhere", c"EVERYWHERE").optional(),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let address = Address::parse(args.bytes()?)?;
        let limit = args.limit()?;
        let (mut path, mut lockout, mut everywhere) = (None, None, None);
        while let Some(option) = args.option(&["PATH", "LOCKOUT", "EVERYWHERE"])? {
            match option {
                "PATH" => once(&mut path, option, Path::parse(args.value(option)?)?)?,
                "LOCKOUT" => {
                    let end = if args.take_word("UNTIL") {
                        End::At(args.value("UNTIL")?)
                    } else {
                        End::In(parse::duration_ms(args.value(option)?, option)?)
                    };
                    once(&mut lockout, option, end)?;
                }
                _ => once(&mut everywhere, option, ())?,
            }
        }
        if everywhere.is_some() && lockout.is_none() {
            return Err(args.misuse());
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;
        let lockout_until_ms = lockout.map(|end| end.until_ms(&store, call.now_ms)).transpose()?;

        let ips = store.name.ips();
        let rules_key = store.read(&ips)?;
        let none = Rules::new();
        let rules = rules_key.native::<Rules>()?.unwrap_or(&none);
        match rules.judge(address, path.as_ref(), call.now_ms) {
            Standing::Allowed(net, _) => {
                let net = net.to_string();
                Map::default().field("code", "VALID").field("allowed", &net).send(call.ctx);
                return Ok(());
            }
            Standing::Blocked(net, rule) => {
                let net = net.to_string();
                let mut map = Map::default();
                blocked(&mut map, &net, &rule, call.now_ms).field("limited_by", "address").send(call.ctx);
                return Ok(());
            }
            Standing::Neutral => {}
        }
        let net = address.net();
        let logs_key = store.read(&store.name.ip(net))?;
        let logs = logs_key.native::<AddressLogs>()?;
        let log = logs.and_then(|logs| logs.log(path.as_ref()));
        let mut decision = Decision::on(log, &[limit], 1, call.now_ms)?;
        let wait_ms = logs.map_or(0, |logs| logs.wait_for_room_ms(path.as_ref(), call.now_ms));
        let mut lock = None;
        if wait_ms > 0 {
            decision.defer(wait_ms);
        } else if !decision.verdict.granted()
            && let Some(until_ms) = lockout_until_ms
        {
            let wide = if everywhere.is_some() { None } else { path.clone() };
            lock = rules.lock_out(net, wide, until_ms, call.now_ms);
            // With all those rules there, the claim is refused all the same: only not for longer.
            if let Some(Err(error)) = lock.as_ref().map(|lock| rules.accept(net, lock, call.now_ms)) {
                failures::log_no_room(call, &store, net, error);
                lock = None;
            }
        }
        drop((rules_key, logs_key));

        let text = net.to_string();
        if let Some(lock) = &lock {
            let effect = Effect::SetRule { at_ms: call.now_ms, net: &text, rule: RuleSet::of(lock) };
            effects::commit(call.ctx, store.header, &effect)?;
            call.ctx.notify(c"kg.block", OwnedString::new(&ips).name());
            let lasts_ms = lock.left_ms(call.now_ms).unwrap_or(0);
            decision.verdict.refuse(lasts_ms);
            decision.verdict.reset_after_ms = decision.verdict.reset_after_ms.max(lasts_ms);
        } else if let Some(Effect::Claim(claimed)) = decision.effect(None) {
            let effect = Effect::ClaimAddress { net: &text, path: path.as_ref().map(Path::as_str), claimed };
            effects::commit(call.ctx, store.header, &effect)?;
        }

        let verdict = &decision.verdict;
        let mut map = Map::default();
        map.field("code", if verdict.granted() { "VALID" } else { "RATE_LIMITED" })
            .field("limit", verdict.limit.count())
            .field("remaining", verdict.remaining())
            .field("window_ms", verdict.limit.window_ms())
            .field("reset_after_ms", verdict.reset_after_ms);
        if !verdict.granted() {
            map.field("retry_after_ms", Value::Integer(verdict.retry.as_reply())).field("limited_by", "address");
        }
        map.optional("claimed_at_ms", decision.claimed_at_ms()).send(call.ctx);
        Ok(())
    }
}

/// `KG.CLEARIP store addr [PATH path]`
pub struct ClearIp;

impl Command for ClearIp {
    const SPEC: Spec = Spec {
        name: c"KG.CLEARIP",
        summary: c"Forgets the failures, claims and lock-outs of an address, as after a login that succeeded",
        complexity: c"O(log N + M), N being the address rules of the store and M what the address has",
        flags: "fast",
        access: Access::Write,
        category: Category::Use,
        min_args: 3,
        secrets: &[],
        secrets_from: 0,
        args: &[Arg::key(c"store"), Arg::text(c"addr"), PATH],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let address = Address::parse(args.bytes()?)?;
        let path = option_path(&mut args)?;
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;
        let net = address.net();
        let logs_key = store.read(&store.name.ip(net))?;
        let logs = match (logs_key.native::<AddressLogs>()?, &path) {
            (None, _) => 0,
            (Some(logs), None) => logs.len(),
            (Some(logs), Some(path)) => usize::from(logs.log(Some(path)).is_some()),
        };
        let rules_key = store.read(&store.name.ips())?;
        let mut rules = rules_key.native::<Rules>()?.map_or_else(Vec::new, |rules| rules.of(net));
        rules.retain(|rule| {
            rule.kind == Kind::Block && rule.by != By::Hand && (path.is_none() || rule.path.as_ref() == path.as_ref())
        });
        let blocks: Vec<Option<String>> =
            rules.iter().map(|rule| rule.path.as_ref().map(ToString::to_string)).collect();
        drop(rules);
        drop((logs_key, rules_key));

        if logs > 0 || !blocks.is_empty() {
            let net = net.to_string();
            let blocks = blocks.iter().map(Option::as_deref).collect();
            let effect = Effect::ClearAddress { net: &net, path: path.as_ref().map(Path::as_str), blocks };
            effects::commit(call.ctx, store.header, &effect)?;
        }
        let failures = usize::from(failures::forget(call.ctx, &store, address, call.now_ms));

        call.ctx.reply_integer(integer((logs + blocks.len() + failures) as u64));
        Ok(())
    }
}
