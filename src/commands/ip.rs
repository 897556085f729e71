//! Address rules: `KG.BLOCKIP`, `KG.UNBLOCKIP`, `KG.CHECKIP`.

use keyguard_core::effect::Effect;
use keyguard_core::ip::{Address, Net, Rules};
use keyguard_core::names::text;
use keyguard_core::{Error, Result, parse};

use super::Call;
use crate::args::{Args, once};
use crate::effects;
use crate::ffi::OwnedString;
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::Map;
use crate::store::{Missing, Store};

/// The most rules of a store: reading or writing them as one value must not hold the server up.
const MAX_RULES: usize = 2_000;

/// The longest reason, in bytes.
const MAX_REASON_BYTES: usize = 256;

/// `KG.BLOCKIP store addr [duration] [REASON s]`
pub struct BlockIp;

impl Command for BlockIp {
    const SPEC: Spec = Spec {
        name: c"KG.BLOCKIP",
        summary: c"Blocks an address, for a time or for good",
        complexity: c"O(N), N being the rules of the store, because those that have run out are removed",
        flags: "",
        access: Access::Write,
        category: Category::Admin,
        min_args: 3,
        secrets: &[],
        secrets_from: 0,
        args: &[
            Arg::key(c"store"),
            Arg::text(c"addr"),
            Arg::text(c"duration").optional(),
            Arg::text(c"reason").token(c"REASON").optional(),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let net = address(&mut args)?;
        let mut duration_ms = None;
        if args.peek().is_some_and(|next| next.first().is_some_and(|first| !first.is_ascii_alphabetic())) {
            duration_ms = Some(parse::duration_ms(args.bytes()?, "duration")?);
        }
        let mut reason = None;
        while let Some(option) = args.option(&["REASON", "UNTIL", "PATH"])? {
            match option {
                "REASON" => once(&mut reason, option, text(args.value(option)?, "REASON", MAX_REASON_BYTES)?)?,
                what => return Err(Error::NotYet { what }),
            }
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Create)?;
        let key = store.read(&store.name.ips())?;
        let full = |rules: &Rules| {
            let held = rules.iter().filter(|(_, rule)| rule.holds(call.now_ms)).count();
            held >= MAX_RULES && rules.rule(net).is_none()
        };
        if key.native::<Rules>()?.is_some_and(full) {
            return Err(Error::TooMany { what: "address rules", max: MAX_RULES });
        }
        drop(key);

        let until_ms = duration_ms.map(|duration_ms| call.now_ms + duration_ms);
        store.write_header(call.now_ms, None)?;
        let block = Effect::Block { at_ms: call.now_ms, net: &net.to_string(), until_ms, reason: reason.unwrap_or("") };
        effects::commit(call.ctx, store.header, &block)?;
        call.ctx.notify(c"kg.block", OwnedString::new(&store.name.ips()).name());

        call.ctx.reply_status(c"OK");
        Ok(())
    }
}

/// `KG.UNBLOCKIP store addr`
pub struct UnblockIp;

impl Command for UnblockIp {
    const SPEC: Spec = Spec {
        name: c"KG.UNBLOCKIP",
        summary: c"Takes the block of an address away",
        complexity: c"O(1)",
        flags: "fast",
        access: Access::Write,
        category: Category::Admin,
        min_args: 3,
        secrets: &[],
        secrets_from: 0,
        args: &[Arg::key(c"store"), Arg::text(c"addr")],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let net = address(&mut args)?;
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;
        let key = store.read(&store.name.ips())?;
        let blocked = key.native::<Rules>()?.is_some_and(|rules| rules.rule(net).is_some());
        drop(key);

        if blocked {
            effects::commit(call.ctx, store.header, &Effect::Unblock { net: &net.to_string() })?;
        }

        call.ctx.reply_integer(i64::from(blocked));
        Ok(())
    }
}

/// `KG.CHECKIP store addr`
pub struct CheckIp;

impl Command for CheckIp {
    const SPEC: Spec = Spec {
        name: c"KG.CHECKIP",
        summary: c"Says whether an address is blocked, by which rule and for how long",
        complexity: c"O(1)",
        flags: "fast",
        access: Access::Read,
        category: Category::Read,
        min_args: 3,
        secrets: &[],
        secrets_from: 0,
        args: &[Arg::key(c"store"), Arg::text(c"addr")],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let address = Address::parse(args.bytes()?)?;
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;
        let key = store.read(&store.name.ips())?;
        let rule = key.native::<Rules>()?.and_then(|rules| rules.blocked(address, call.now_ms));

        let net = rule.map(|(net, _)| net.to_string());
        let mut map = Map::default();
        map.field("code", if rule.is_some() { "IP_BLOCKED" } else { "VALID" }).optional("rule", net.as_ref());
        if let Some((_, rule)) = rule {
            map.optional("retry_after_ms", rule.until_ms.map(|until| until.saturating_sub(call.now_ms)));
            map.optional("reason", (!rule.reason.is_empty()).then_some(&rule.reason));
        }
        map.send(call.ctx);
        Ok(())
    }
}

/// A single address as what is blocked for it: itself, or the /64 of an IPv6 address.
fn address(args: &mut Args<'_>) -> Result<Net> {
    Ok(Address::parse(args.bytes()?)?.net())
}
