//! Address rules: `KG.BLOCKIP`, `KG.UNBLOCKIP`, `KG.ALLOWIP`, `KG.UNALLOWIP`, `KG.LISTIPS`, `KG.CHECKIP`.

use keyguard_core::effect::{Effect, RuleSet};
use keyguard_core::ip::{Address, By, Kind, MAX_REASON_BYTES, Mark, Net, Rule, Rules, Standing};
use keyguard_core::names::text;
use keyguard_core::path::Path;
use keyguard_core::{Error, Result, parse};

use super::Call;
use crate::args::{Args, once};
use crate::effects;
use crate::failures;
use crate::ffi::OwnedString;
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::Map;
use crate::store::{Missing, Store};

/// The most rules that one LISTIPS looks at: more would hold the server up for over 2 ms.
const MAX_PAGE: u64 = 1_000;

const RULES_LISTED: u64 = 100;

/// `PATH p`.
pub(super) const PATH: Arg = Arg::text(c"path").token(c"PATH").optional();

const RULE: &[Arg] = &[
    Arg::key(c"store"),
    Arg::text(c"net"),
    Arg::one_of(c"end", &[Arg::text(c"duration"), Arg::text(c"time").token(c"UNTIL")]).optional(),
    PATH,
    Arg::text(c"reason").token(c"REASON").optional(),
];

const NET: &[Arg] = &[Arg::key(c"store"), Arg::text(c"net"), PATH];

/// `KG.BLOCKIP store net [duration | UNTIL time] [PATH path] [REASON reason]`
pub struct BlockIp;

impl Command for BlockIp {
    const SPEC: Spec = Spec {
        name: c"KG.BLOCKIP",
        summary: c"Keeps an address or a network out, everywhere or of a path, for a time or for good",
        complexity: c"O(log N), N being the rules of the store",
        flags: "",
        access: Access::Write,
        category: Category::Admin,
        min_args: 3,
        secrets: &[],
        secrets_from: 0,
        args: RULE,
    };

    fn run(call: &Call<'_>, args: Args<'_>) -> Result<()> {
        set(call, args, Kind::Block)
    }
}

/// `KG.ALLOWIP store net [duration | UNTIL time] [PATH path] [REASON reason]`
pub struct AllowIp;

impl Command for AllowIp {
    const SPEC: Spec = Spec {
        name: c"KG.ALLOWIP",
        summary: c"Lets an address or a network in, whatever blocks it",
        args: RULE,
        ..BlockIp::SPEC
    };

    fn run(call: &Call<'_>, args: Args<'_>) -> Result<()> {
        set(call, args, Kind::Allow)
    }
}

/// `KG.UNBLOCKIP store net [PATH path]`
pub struct UnblockIp;

impl Command for UnblockIp {
    const SPEC: Spec = Spec {
        name: c"KG.UNBLOCKIP",
        summary: c"Takes the block of an address or a network away",
        complexity: c"O(log N), N being the rules of the store",
        flags: "fast",
        access: Access::Write,
        category: Category::Admin,
        min_args: 3,
        secrets: &[],
        secrets_from: 0,
        args: NET,
    };

    fn run(call: &Call<'_>, args: Args<'_>) -> Result<()> {
        remove(call, args, Kind::Block)
    }
}

/// `KG.UNALLOWIP store net [PATH path]`
pub struct UnallowIp;

impl Command for UnallowIp {
    const SPEC: Spec = Spec {
        name: c"KG.UNALLOWIP",
        summary: c"Takes the allow rule of an address or a network away",
        args: NET,
        ..UnblockIp::SPEC
    };

    fn run(call: &Call<'_>, args: Args<'_>) -> Result<()> {
        remove(call, args, Kind::Allow)
    }
}

fn set(call: &Call<'_>, mut args: Args<'_>, kind: Kind) -> Result<()> {
    let at = args.store()?;
    let net = net_of(kind, args.bytes()?)?;
    let mut end = None;
    if args.peek().is_some_and(|next| next.first().is_some_and(|first| !first.is_ascii_alphabetic())) {
        end = Some(End::In(parse::duration_ms(args.bytes()?, "duration")?));
    }
    let (mut path, mut reason) = (None, None);
    while let Some(option) = args.option(&["REASON", "UNTIL", "PATH"])? {
        match option {
            "REASON" => once(&mut reason, option, text(args.value(option)?, "REASON", MAX_REASON_BYTES)?)?,
            "PATH" => once(&mut path, option, Path::parse(args.value(option)?)?)?,
            _ => once(&mut end, option, End::At(args.value(option)?))?,
        }
    }
    args.finish()?;
    let store = Store::open(call.ctx, at, Missing::Create)?;
    let until_ms = end.map(|end| end.until_ms(&store, call.now_ms)).transpose()?;
    let rule = Rule { kind, path, until_ms, reason: reason.unwrap_or(""), by: By::Hand, strikes: None };
    let name = store.name.ips();
    let key = store.read(&name)?;
    match key.native::<Rules>()? {
        Some(rules) => rules.accept(net, &rule, call.now_ms)?,
        None => Rules::new().accept(net, &rule, call.now_ms)?,
    }
    drop(key);

    store.write_header(call.now_ms, None)?;
    let net = net.to_string();
    let effect = Effect::SetRule { at_ms: call.now_ms, net: &net, rule: RuleSet::of(&rule) };
    effects::commit(call.ctx, store.header, &effect)?;
    let event = if kind == Kind::Block { c"kg.block" } else { c"kg.allow" };
    call.ctx.notify(event, OwnedString::new(&name).name());

    call.ctx.reply_status(c"OK");
    Ok(())
}

fn remove(call: &Call<'_>, mut args: Args<'_>, kind: Kind) -> Result<()> {
    let at = args.store()?;
    let net = net_of(kind, args.bytes()?)?;
    let path = option_path(&mut args)?;
    args.finish()?;
    let store = Store::open(call.ctx, at, Missing::Refuse)?;
    let key = store.read(&store.name.ips())?;
    let found = key.native::<Rules>()?.is_some_and(|rules| rules.rule(net, kind, path.as_ref()).is_some());
    drop(key);

    if found {
        let net = net.to_string();
        let effect = Effect::DropRule { net: &net, kind, path: path.as_ref().map(Path::as_str) };
        effects::commit(call.ctx, store.header, &effect)?;
    }

    call.ctx.reply_integer(i64::from(found));
    Ok(())
}

/// `KG.LISTIPS store [CURSOR cursor] [COUNT count]`
pub struct ListIps;

impl Command for ListIps {
    const SPEC: Spec = Spec {
        name: c"KG.LISTIPS",
        summary: c"Lists address rules by pages: the cursor of the next one, 0 after the last, and the rules of this",
        complexity: c"O(log N + M), N being the rules of the store and M those looked at",
        flags: "",
        access: Access::Read,
        category: Category::Read,
        min_args: 2,
        secrets: &[],
        secrets_from: 0,
        args: &[
            Arg::key(c"store"),
            Arg::text(c"cursor").token(c"CURSOR").optional(),
            Arg::integer(c"count").token(c"COUNT").optional(),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let (mut cursor, mut count) = (None, None);
        while let Some(option) = args.option(&["CURSOR", "COUNT"])? {
            let value = args.value(option)?;
            match option {
                "CURSOR" => once(&mut cursor, option, if value == b"0" { None } else { Some(Mark::parse(value)?) })?,
                _ => {
                    let accepted = "a whole number from 1 to 1000";
                    let value = parse::unsigned(value).filter(|count| (1..=MAX_PAGE).contains(count));
                    once(&mut count, option, value.ok_or(Error::Invalid { what: "COUNT", accepted })?)?;
                }
            }
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;
        let key = store.read(&store.name.ips())?;
        let none = Rules::new();
        let rules = key.native::<Rules>()?.unwrap_or(&none);

        let mut rest = rules.after(cursor.flatten().as_ref());
        let mut page: Vec<(Net, Rule<'_>)> = rest.by_ref().take(count.unwrap_or(RULES_LISTED) as usize).collect();
        let next = rest.next().and_then(|_| page.last()).map(|(net, rule)| Mark::of(*net, rule).to_string());
        page.retain(|(_, rule)| rule.holds(call.now_ms));

        call.ctx.reply_array(2);
        call.ctx.reply_bytes(next.as_deref().unwrap_or("0").as_bytes());
        call.ctx.reply_array(page.len());
        for (net, rule) in &page {
            let net = net.to_string();
            let mut map = Map::default();
            map.field("rule", &net).field("kind", rule.kind.as_str());
            map.optional("path", rule.path.as_ref().map(Path::as_str));
            map.optional("retry_after_ms", rule.left_ms(call.now_ms)).optional("expires_at", rule.until_ms);
            describe(&mut map, rule);
            map.send(call.ctx);
        }
        Ok(())
    }
}

/// `KG.CHECKIP store addr [PATH path]`
pub struct CheckIp;

impl Command for CheckIp {
    const SPEC: Spec = Spec {
        name: c"KG.CHECKIP",
        summary: c"Says whether an address is kept out, by which rule and for how long, and how often it failed",
        complexity: c"O(log N), N being the rules of the store",
        flags: "fast",
        access: Access::Read,
        category: Category::Read,
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
        let key = store.read(&store.name.ips())?;
        let rules = key.native::<Rules>()?;
        let standing = rules.map_or(Standing::Neutral, |rules| rules.judge(address, path.as_ref(), call.now_ms));
        let failures = failures::count(call.ctx, &store, address, call.now_ms);

        let net = match &standing {
            Standing::Allowed(net, _) | Standing::Blocked(net, _) => net.to_string(),
            Standing::Neutral => String::new(),
        };
        let mut map = Map::default();
        match &standing {
            Standing::Neutral => _ = map.field("code", "VALID"),
            Standing::Allowed(_, rule) => {
                map.field("code", "VALID").field("allowed", &net);
                map.optional("path", rule.path.as_ref().map(Path::as_str));
                describe(&mut map, rule);
            }
            Standing::Blocked(_, rule) => {
                blocked(&mut map, &net, rule, call.now_ms);
                describe(&mut map, rule);
            }
        }
        map.optional("failures", (failures > 0).then_some(failures));
        map.send(call.ctx);
        Ok(())
    }
}

/// Says that an address is kept out, by which rule and for how long.
pub(super) fn blocked<'m, 'a>(
    map: &'m mut Map<'a>,
    net: &'a String,
    rule: &'a Rule<'_>,
    now_ms: u64,
) -> &'m mut Map<'a> {
    map.field("code", "IP_BLOCKED").field("rule", net);
    map.optional("path", rule.path.as_ref().map(Path::as_str)).optional("retry_after_ms", rule.left_ms(now_ms))
}

/// What else there is to say of a rule.
fn describe<'a>(map: &mut Map<'a>, rule: &'a Rule<'_>) {
    map.optional("reason", (!rule.reason.is_empty()).then_some(rule.reason));
    map.optional(
        "by",
        match rule.by {
            By::Hand => None,
            By::Claims => Some("claims"),
            By::Failures => Some("failures"),
        },
    );
    map.optional("strikes", rule.strikes.map(|strikes| u64::from(strikes.count)));
}

/// When a block or a lock-out is to end, before the store is known.
#[derive(Clone, Copy)]
pub(super) enum End<'c> {
    /// In so many milliseconds.
    In(u64),
    /// At this time, in the zone of the store.
    At(&'c [u8]),
}

impl End<'_> {
    /// In unix milliseconds.
    pub(super) fn until_ms(self, store: &Store<'_>, now_ms: u64) -> Result<u64> {
        match self {
            Self::In(duration_ms) => Ok(now_ms + duration_ms),
            Self::At(time) => parse::until_ms(time, "UNTIL", &store.zone()?, now_ms),
        }
    }
}

/// The network that a rule of this kind is for.
fn net_of(kind: Kind, bytes: &[u8]) -> Result<Net> {
    match kind {
        Kind::Allow => Net::parse_allowed(bytes),
        Kind::Block => Net::parse(bytes),
    }
}

/// Reads `PATH p`, if it comes next.
pub(super) fn option_path<'c>(args: &mut Args<'c>) -> Result<Option<Path<'c>>> {
    let mut path = None;
    while let Some(option) = args.option(&["PATH"])? {
        once(&mut path, option, Path::parse(args.value(option)?)?)?;
    }
    Ok(path)
}
